//! What exporters write around shapes disappears, and extents stay symbols.

use margay_ir::ops::Numbers;

use super::*;

pub(crate) fn shape_model() -> Model {
    let scalar = |v: i64| Tensor::scalar(v);
    let constants = [
        ("zero", scalar(0)),
        ("one", scalar(1)),
        ("axis", ints(&[0])),
        ("heads", ints(&[12])),
        ("minus_one", scalar(-1)),
        ("flat", ints(&[-1])),
        ("positions", Tensor::from_slice(&[1, 8], &[0i64, 1, 2, 3, 4, 5, 6, 7]).unwrap()),
        ("axis_1", ints(&[1])),
    ];
    let axis_0 = [("axis", int(0))];
    let nodes = vec![
        // x.view(batch, length, 12, width / 12)
        node("Shape", &["x"], &["s0"], &[]),
        node("Gather", &["s0", "zero"], &["batch"], &axis_0),
        node("Shape", &["x"], &["s1"], &[]),
        node("Gather", &["s1", "one"], &["length"], &axis_0),
        node("Unsqueeze", &["batch", "axis"], &["u0"], &[]),
        node("Unsqueeze", &["length", "axis"], &["u1"], &[]),
        node("Slice", &["s0", "flat", "last", "axis"], &["width"], &[]),
        node("Div", &["width", "heads"], &["each"], &[]),
        node("Concat", &["u0", "u1", "heads", "each"], &["to"], &axis_0),
        node("Reshape", &["x", "to"], &["split"], &[]),
        // torch's expand: extents of -1 are kept
        node("Concat", &["u0", "u1"], &["wanted"], &axis_0),
        node("Reshape", &["wanted", "flat"], &["wanted_flat"], &[]),
        node("Shape", &["wanted_flat"], &["count"], &[]),
        node("ConstantOfShape", &["count"], &["ones"], &[("value", Attribute::Tensor(ints(&[1])))]),
        node("Mul", &["ones", "minus_one"], &["open"], &[]),
        node("Equal", &["wanted_flat", "open"], &["is_open"], &[]),
        node("Where", &["is_open", "ones", "wanted_flat"], &["extents"], &[]),
        node("Slice", &["positions", "axis", "u1", "axis_1"], &["row"], &[]),
        node("Expand", &["row", "extents"], &["ids"], &[]),
        // flattened, with the product computed
        node("Mul", &["batch", "length"], &["rows"], &[]),
        node("Unsqueeze", &["rows", "axis"], &["u2"], &[]),
        node("Concat", &["u2", "flat"], &["matrix"], &axis_0),
        node("Reshape", &["split", "matrix"], &["y"], &[]),
    ];
    let constants = [&constants[..], &[("last", ints(&[i64::MAX]))]].concat();
    model(13, vec![input("x", DType::F32, &["batch size", "?", "48"])], &constants, nodes, &["y", "ids"])
}

#[test]
fn shape_arithmetic_becomes_attributes() {
    let g = imported(&shape_model());
    assert_eq!(
        g.to_string(),
        "graph @test(%x: f32[batch_size, x_d1, 48]) -> (y: f32[batch_size*x_d1, 48], ids: i64[batch_size, x_d1]) {
  %0 = reshape %x {shape = [batch_size, x_d1, 12, 4]} : f32[batch_size, x_d1, 12, 4]  // split
  %1 = const [0, 1, 2, 3, 4, 5, 6, 7] : i64[1, 8]  // positions
  %2 = slice %1 {starts = [0, 0], ends = [1, x_d1], steps = [1, 1]} : i64[1, x_d1]  // positions
  %3 = broadcast %2 {shape = [batch_size, x_d1]} : i64[batch_size, x_d1]  // ids
  %4 = reshape %0 {shape = [batch_size*x_d1, 48]} : f32[batch_size*x_d1, 48]  // y
  return %4, %3
}
"
    );
    assert!(g.order().iter().all(|n| g.op(*n).name() != "dims"));
    for [batch, length] in [[2, 3], [1, 8]] {
        let x = counting(&[batch, length, 48]);
        let all = run_graph(&g, &BTreeMap::from([("x".to_owned(), x.clone())]));
        assert_eq!(all[0], x.reshaped(&[batch * length, 48]).unwrap());
        assert_eq!(all[1].shape(), [batch, length]);
    }
}

#[test]
fn extents_as_numbers_stay_data() {
    // A scale by the square root of a known extent is a constant; one by a symbol is computed when it is known.
    let scale = |dims: &[&str]| {
        let nodes = vec![
            node("Shape", &["x"], &["s"], &[]),
            node("Gather", &["s", "last"], &["d"], &[]),
            node("Cast", &["d"], &["f"], &[("to", int(1))]),
            node("Sqrt", &["f"], &["r"], &[]),
            node("Div", &["x", "r"], &["y"], &[]),
        ];
        let last = [("last", Tensor::scalar(1i64))];
        imported(&model(13, vec![input("x", DType::F32, dims)], &last, nodes, &["y"]))
    };
    assert_eq!(
        scale(&["N", "16"]).to_string(),
        "graph @test(%x: f32[N, 16]) -> (y: f32[N, 16]) {
  %0 = const 4.0 : f32
  %1 = div %x, %0 : f32[N, 16]  // y
  return %1
}
"
    );
    let g = scale(&["N", "D"]);
    assert!(g.order().iter().any(|n| g.op(*n).name() == "dims"));
    let y = run_graph(&g, &BTreeMap::from([("x".to_owned(), floats(&[1, 4], &[2.0, 4.0, 6.0, 8.0]))]));
    assert_floats(&y[0], &[1, 4], &[1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn equal_names_are_one_symbol() {
    let inputs = vec![
        input("a", DType::F32, &["n", "m"]),
        input("b", DType::F32, &["n", "m"]),
        input("c", DType::F32, &["n + 1"]),
    ];
    let nodes = vec![node("Add", &["a", "b"], &["y"], &[])];
    let g = imported(&model(13, inputs, &[], nodes, &["y", "c"]));
    assert_eq!(
        g.to_string(),
        "graph @test(%a: f32[n, m], %b: f32[n, m], %c: f32[n + 1]) -> (y: f32[n, m], c: f32[n + 1]) {
  %0 = add %a, %b : f32[n, m]  // y
  return %0, %c
}
"
    );
}

/// What an image of these extents becomes by `Resize` with what some nodes compute, as text of its type.
fn resized(
    extents: &[&str],
    constants: &[(&str, Tensor)],
    before: Vec<OnnxNode>,
    inputs: [&str; 4],
) -> String {
    let mut nodes = before;
    nodes.push(node("Resize", &inputs, &["y"], &[("mode", Attribute::String("nearest".into()))]));
    let source = model(13, vec![input("x", DType::F32, extents)], constants, nodes, &["y"]);
    match margay_onnx::import(&source) {
        Ok(g) => g.ty(g.outputs()[0].value).to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn shapes_that_pass_through_floats_are_known() {
    let half =
        |values: &[f64]| Numbers::Float(values.to_vec()).into_tensor(DType::F16, &[values.len()]).unwrap();
    let to = |dtype: i64| [("to", int(dtype))];
    // Scales in f16, as converters write them, and a quotient of two lists.
    let widened = vec![node("Cast", &["half"], &["scales"], &to(1))];
    let constants = [("half", half(&[1.0, 1.0, 2.0, 1.5]))];
    assert_eq!(
        resized(&["1", "3", "4", "H"], &constants, widened, ["x", "", "scales", ""]),
        "f32[1, 3, 8, floordiv(3*H, 2)]"
    );
    let quotient = vec![
        node("Cast", &["half"], &["wide"], &to(1)),
        node("Div", &["wide", "by"], &["part"], &[]),
        node("Concat", &["ones", "part"], &["scales"], &[("axis", int(0))]),
    ];
    let constants =
        [("half", half(&[6.0, 3.0])), ("by", floats(&[2], &[2.0, 2.0])), ("ones", floats(&[2], &[1.0, 1.0]))];
    assert_eq!(
        resized(&["1", "3", "4", "6"], &constants, quotient, ["x", "", "scales", ""]),
        "f32[1, 3, 12, 9]"
    );

    // Extents in floats: times a fraction, rounded down.
    let chain = |dtype: i64| {
        vec![
            node("Shape", &["x"], &["shape"], &[]),
            node("Slice", &["shape", "two", "four"], &["space"], &[]),
            node("Slice", &["shape", "zero", "two"], &["front"], &[]),
            node("Cast", &["space"], &["numbers"], &to(dtype)),
            node("Mul", &["numbers", "factors"], &["grown"], &[]),
            node("Floor", &["grown"], &["rounded"], &[]),
            node("Cast", &["rounded"], &["whole"], &to(7)),
            node("Concat", &["front", "whole"], &["sizes"], &[("axis", int(0))]),
        ]
    };
    let places = [("zero", ints(&[0])), ("two", ints(&[2])), ("four", ints(&[4]))];
    let constants = [&places[..], &[("factors", floats(&[2], &[1.5, 2.0]))]].concat();
    let ends = ["x", "", "", "sizes"];
    assert_eq!(
        resized(&["N", "3", "H", "W"], &constants, chain(1), ends),
        "f32[N, 3, floordiv(3*H, 2), 2*W]"
    );
    assert_eq!(resized(&["1", "3", "5", "7"], &constants, chain(1), ends), "f32[1, 3, 7, 14]");
    // f16 rounds large extents: no expression says what becomes of all of them, but those that are known are.
    let constants = [&places[..], &[("factors", half(&[1.5, 2.0]))]].concat();
    assert_eq!(resized(&["1", "3", "5", "2049"], &constants, chain(10), ends), "f32[1, 3, 7, 4096]");
    let refused = resized(&["N", "3", "H", "W"], &constants, chain(10), ends);
    assert!(refused.contains("`--dim H=N`") && refused.contains("`--dim W=N`"), "{refused}");
    // A fraction that is none of small numbers is not taken for one.
    let constants = [&places[..], &[("factors", floats(&[2], &[1.0 / 3.0, 2.0]))]].concat();
    let refused = resized(&["N", "3", "H", "W"], &constants, chain(1), ends);
    assert!(refused.contains("`--dim H=N`") && refused.contains("`--dim W=N`"), "{refused}");
}
