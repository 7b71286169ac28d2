//! Constants that are stored narrow: what is written computes the same, and stays as it was where ONNX has a node for it.

use margay_ir::{Graph, Origin, Payload, TensorType, ops};
use margay_onnx::ExportOptions;
use margay_tensor::{DType, Storage, StoredTensor, Tensor};
use margay_testkit::{Tolerance, assert_close, normal};

use super::{round_trip, run, written};

/// A product with a constant that is stored in some way.
fn product(storage: &str) -> Graph {
    let mut g = Graph::new("stored");
    let x = g.add_input("x", TensorType::known(DType::F32, &[3, 40]));
    let storage = Storage::parse(storage).unwrap();
    let stored = StoredTensor::encode(&normal(&[40, 6], 3, 1), storage).unwrap();
    let constant = ops::Const { payload: Payload::new(stored) };
    let w = g.add(constant, &[], Origin::named("fc.weight")).unwrap();
    let y = g.add(ops::MatMul, &[x, w], Origin::named("fc")).unwrap();
    g.add_output("y", y);
    g
}

fn storages(g: &Graph) -> Vec<Storage> {
    g.payloads().iter().map(|p| p.storage()).collect()
}

#[test]
fn narrow_constants_are_read_back_as_they_are_stored() {
    for (storage, opset, kept) in [
        ("bf16", 17, None),
        ("i8(axis = 1)", 17, Some("i8(axis = 1)")),
        ("i8(axis = 0, block = 16)", 21, Some("i8(axis = 0, block = 16)")),
        ("u4(axis = 0, block = 16, zero points)", 21, Some("u4(axis = 0, block = 16, zero points)")),
        (
            "u4(axis = 0, block = 32, bf16 scales, zero points)",
            21,
            Some("u4(axis = 0, block = 32, bf16 scales, zero points)"),
        ),
        ("i4(axis = 1, block = 2)", 21, Some("i4(axis = 1, block = 2)")),
        // ONNX has no elements of three bits.
        (
            "u3(axis = 0, block = 32, bf16 scales, zero points)",
            21,
            Some("u4(axis = 0, block = 32, bf16 scales, zero points)"),
        ),
    ] {
        let g = product(storage);
        let given = [("x".to_owned(), normal(&[3, 40], 3, 2))];
        let expected = &run(&g, &given)[0];
        assert_eq!(ExportOptions::of(&g).opset, opset, "{storage}");
        let again = round_trip(&g, opset);
        assert_close(storage, &run(&again, &given)[0], expected, Tolerance::EXACT);
        if let Some(kept) = kept {
            assert!(storages(&again).contains(&Storage::parse(kept).unwrap()), "{storage}: {again}");
        }
        // Elements and steps are written, and no numbers.
        let bytes = written(&g, opset).to_bytes().unwrap().len();
        assert!(bytes < 40 * 6 * 4, "{storage}: {bytes} bytes");
    }
}

#[test]
fn older_operator_sets_have_the_numbers() {
    let g = product("u4(axis = 0, block = 32, bf16 scales, zero points)");
    let given = [("x".to_owned(), normal(&[3, 40], 3, 2))];
    let again = round_trip(&g, 17);
    assert_eq!(storages(&again), [Storage::plain(DType::F32)]);
    assert_close("numbers", &run(&again, &given)[0], &run(&g, &given)[0], Tolerance::EXACT);
}

#[test]
fn rows_of_bytes_are_taken_before_numbers_are_made_of_them() {
    for (storage, expected) in [
        ("i8(tensor)", &["Gather", "DequantizeLinear"][..]),
        ("u8(tensor, zero points)", &["Gather", "DequantizeLinear"]),
        ("i8(axis = 0)", &["DequantizeLinear", "Gather"]),
    ] {
        let mut g = Graph::new("table");
        let at = g.add_input("at", TensorType::known(DType::I64, &[2, 3]));
        let stored = StoredTensor::encode(&normal(&[7, 6], 3, 1), Storage::parse(storage).unwrap()).unwrap();
        let constant = ops::Const { payload: Payload::new(stored) };
        let table = g.add(constant, &[], Origin::named("words")).unwrap();
        let y = g.add(ops::Gather { axis: 0 }, &[table, at], Origin::named("rows")).unwrap();
        g.add_output("y", y);
        let found: Vec<String> = written(&g, 17).graph.nodes.iter().map(|n| n.op_type.clone()).collect();
        assert_eq!(found, expected, "{storage}");
        let given = [("at".to_owned(), Tensor::from_slice(&[2, 3], &[6i64, 0, 3, 3, -1, 2]).unwrap())];
        let again = run(&round_trip(&g, 17), &given);
        assert_close(storage, &again[0], &run(&g, &given)[0], Tolerance::EXACT);
    }
}
