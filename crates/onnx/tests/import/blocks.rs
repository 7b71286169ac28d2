//! Weights of 4 bits with a scale for every run of terms stay as they are.

use margay_ir::{Graph, eval};
use margay_onnx::{Attribute, Model, OnnxDim, OnnxGraph, OnnxNode, OnnxValue, import};
use margay_tensor::{DType, Storage, Tensor};
use margay_testkit::{Tolerance, assert_close, normal};

const TERMS: usize = 40;
const COLUMNS: usize = 3;
const BLOCK: usize = 16;
const RUNS: usize = 3;

/// The element of a term of a column, and the zero point of a run of terms.
fn element(term: usize, column: usize) -> u8 {
    ((7 * term + 5 * column) % 16) as u8
}

fn zero(run: usize, column: usize) -> u8 {
    ((3 * run + column + 2) % 16) as u8
}

fn scale(run: usize, column: usize) -> f32 {
    0.1 + 0.03 * (run + RUNS * column) as f32
}

/// Of every column values two to a byte, the first in the lower bits.
fn packed(count: usize, of: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let byte = |column: usize, pair: usize| {
        let half = |i: usize| if i < count { of(i, column) } else { 0 };
        half(2 * pair) | half(2 * pair + 1) << 4
    };
    (0..COLUMNS).flat_map(|c| (0..count.div_ceil(2)).map(move |p| (c, p))).map(|(c, p)| byte(c, p)).collect()
}

fn model(zeros: bool, terms: i64) -> Model {
    let mut inputs = vec!["x", "q", "scales"];
    let scales: Vec<f32> =
        (0..COLUMNS).flat_map(|column| (0..RUNS).map(move |run| scale(run, column))).collect();
    let elements = packed(RUNS * BLOCK, |t, c| if t < TERMS { element(t, c) } else { 0 });
    let mut initializers = vec![
        ("q".to_owned(), Tensor::from_slice(&[COLUMNS, RUNS, BLOCK / 2], &elements).unwrap()),
        ("scales".to_owned(), Tensor::from_slice(&[COLUMNS * RUNS], &scales).unwrap()),
    ];
    if zeros {
        inputs.push("zeros");
        let zeros = packed(RUNS, zero);
        initializers.push(("zeros".to_owned(), Tensor::from_slice(&[zeros.len()], &zeros).unwrap()));
    }
    let sizes = [("K", terms), ("N", COLUMNS as i64), ("bits", 4), ("block_size", BLOCK as i64)];
    let product = OnnxNode {
        name: "product".to_owned(),
        op_type: "MatMulNBits".to_owned(),
        domain: "com.microsoft".to_owned(),
        inputs: inputs.iter().map(|i| (*i).to_owned()).collect(),
        outputs: vec!["y".to_owned()],
        attributes: sizes.into_iter().map(|(name, size)| (name.to_owned(), Attribute::Int(size))).collect(),
    };
    let value = |name: &str, width: i64| OnnxValue {
        name: name.to_owned(),
        dtype: Some(DType::F32),
        narrow: None,
        dims: Some(vec![OnnxDim::Value(2), OnnxDim::Value(width)]),
    };
    let graph = OnnxGraph {
        name: "bits".to_owned(),
        inputs: vec![value("x", terms)],
        outputs: vec![value("y", COLUMNS as i64)],
        initializers,
        nodes: vec![product],
        ..OnnxGraph::default()
    };
    let mut model = Model::new(17, graph);
    model.domains = [("com.microsoft".to_owned(), 1)].into_iter().collect();
    model
}

fn storages(g: &Graph) -> Vec<Storage> {
    g.payloads().iter().map(|p| p.storage()).filter(Storage::is_packed).collect()
}

#[test]
fn products_of_4_bits_keep_them() {
    for zeros in [false, true] {
        let g = import(&model(zeros, TERMS as i64)).unwrap();
        let expected =
            if zeros { "u4(axis = 0, block = 16, zero points)" } else { "i4(axis = 0, block = 16)" };
        assert_eq!(storages(&g), [Storage::parse(expected).unwrap()]);
        let x = normal(&[2, TERMS], 1, 1);
        let found = eval::run(&g, &[("x", &x)]).unwrap();
        let numbers = x.to_vec::<f32>().unwrap();
        let sum = |row: usize, column: usize| -> f32 {
            let weight = |t: usize| {
                let zero = if zeros { zero(t / BLOCK, column) } else { 8 };
                (f64::from(element(t, column)) - f64::from(zero)) * f64::from(scale(t / BLOCK, column))
            };
            (0..TERMS).map(|t| f64::from(numbers[row * TERMS + t]) * weight(t)).sum::<f64>() as f32
        };
        let sums: Vec<f32> =
            (0..2).flat_map(|row| (0..COLUMNS).map(move |c| (row, c))).map(|(r, c)| sum(r, c)).collect();
        let expected = Tensor::from_slice(&[2, COLUMNS], &sums).unwrap();
        assert_close(&format!("zero points: {zeros}"), &found[0], &expected, Tolerance::REDUCTION);
    }
}

/// Sizes that the constants do not have.
#[test]
fn other_sizes_are_refused() {
    assert!(import(&model(true, TERMS as i64 + 40)).is_err());
}
