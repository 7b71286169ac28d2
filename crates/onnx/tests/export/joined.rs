//! Several nodes that are one operator of ONNX, and graphs beside them that are not.

use margay_testkit::{Tolerance, assert_close, normal};

use super::{parse, round_trip, run, written};

/// A graph over `x`, the extents of `x`, and the operators that it is written as.
type Case = (String, &'static [usize], &'static [&'static str]);

/// Products of `x` with 0.1 where it is below an edge, or where it is not.
fn leaky(edge: &str, [below, above]: [&str; 2]) -> String {
    format!(
        "graph @leaky(%x: f32[2, 3]) -> (y: f32[2, 3]) {{
  %0 = const 0.1 : f32
  %1 = const {edge} : f32
  %2 = mul %x, %0 : f32[2, 3]
  %3 = less %x, %1 : bool[2, 3]
  %4 = select %3, {below}, {above} : f32[2, 3]
  return %4
}}"
    )
}

/// `x + 0.5`, kept between 0 and a height.
fn clipped(height: &str) -> String {
    format!(
        "graph @clipped(%x: f32[2, 3]) -> (y: f32[2, 3]) {{
  %0 = const 0.5 : f32
  %1 = const {height} : f32
  %2 = const 0.0 : f32
  %3 = add %x, %0 : f32[2, 3]
  %4 = min %3, %1 : f32[2, 3]
  %5 = max %4, %2 : f32[2, 3]
  return %5
}}"
    )
}

/// An image with every row twice and every column three times, in some shape.
fn repeated(result: &str) -> String {
    format!(
        "graph @repeated(%x: f32[1, 2, 2, 3]) -> (y: f32[{result}]) {{
  %0 = reshape %x {{shape = [1, 2, 2, 1, 3]}} : f32[1, 2, 2, 1, 3]
  %1 = broadcast %0 {{shape = [1, 2, 2, 2, 3]}} : f32[1, 2, 2, 2, 3]
  %2 = reshape %1 {{shape = [1, 2, 4, 3, 1]}} : f32[1, 2, 4, 3, 1]
  %3 = broadcast %2 {{shape = [1, 2, 4, 3, 3]}} : f32[1, 2, 4, 3, 3]
  %4 = reshape %3 {{shape = [{result}]}} : f32[{result}]
  return %4
}}"
    )
}

/// Every channel of an image twice, as rows or as channels.
fn wholes(result: &str) -> String {
    format!(
        "graph @wholes(%x: f32[1, 2, 2, 2]) -> (y: f32[{result}]) {{
  %0 = reshape %x {{shape = [1, 2, 1, 2, 2]}} : f32[1, 2, 1, 2, 2]
  %1 = broadcast %0 {{shape = [1, 2, 2, 2, 2]}} : f32[1, 2, 2, 2, 2]
  %2 = reshape %1 {{shape = [{result}]}} : f32[{result}]
  return %2
}}"
    )
}

/// A mean of `x`.
fn mean(x: &str, attributes: &str, result: &str) -> String {
    format!(
        "graph @mean(%x: f32[{x}]) -> (y: f32[{result}]) {{
  %0 = reduce %x {{kind = mean, {attributes}}} : f32[{result}]
  return %0
}}"
    )
}

/// Channels in blocks of four as places of an image, moved by a permutation.
fn blocks(perm: &str) -> String {
    format!(
        "graph @blocks(%x: f32[1, 8, 2, 3]) -> (y: f32[1, 2, 4, 6]) {{
  %0 = reshape %x {{shape = [1, 2, 2, 2, 2, 3]}} : f32[1, 2, 2, 2, 2, 3]
  %1 = transpose %0 {{perm = [{perm}]}} : f32[1, 2, 2, 2, 3, 2]
  %2 = reshape %1 {{shape = [1, 2, 4, 6]}} : f32[1, 2, 4, 6]
  return %2
}}"
    )
}

/// Channels of a pointwise convolution as places of an image, moved by a permutation.
fn spread(perm: &str) -> String {
    format!(
        "graph @spread(%x: f32[1, 1, 2, 3]) -> (y: f32[1, 2, 4, 6]) {{
  %0 = const [0.5, 1.0, -2.0, 3.0, 0.25, -1.5, 4.0, 0.75] : f32[8, 1, 1, 1]
  %1 = conv %x, %0 : f32[1, 8, 2, 3]
  %2 = reshape %1 {{shape = [1, 2, 2, 2, 2, 3]}} : f32[1, 2, 2, 2, 2, 3]
  %3 = transpose %2 {{perm = [{perm}]}} : f32[1, 2, 2, 2, 3, 2]
  %4 = reshape %3 {{shape = [1, 2, 4, 6]}} : f32[1, 2, 4, 6]
  return %4
}}"
    )
}

/// Columns of `x` at some places.
fn columns(places: &[i64]) -> String {
    let count = places.len();
    format!(
        "graph @columns(%x: f32[2, 3]) -> (y: f32[2, {count}]) {{
  %0 = const {places:?} : i64[{count}]
  %1 = gather %x, %0 {{axis = 1}} : f32[2, {count}]
  return %1
}}"
    )
}

const CHANNELS_FIRST: &str = "0, 1, 4, 2, 5, 3";
const BLOCKS_FIRST: &str = "0, 3, 4, 1, 5, 2";

/// Graphs that differ in one place.
fn neighbours() -> Vec<Case> {
    let (image, whole): (&[usize], &[usize]) = (&[1, 2, 2, 3], &[1, 2, 2, 2]);
    vec![
        (leaky("0.0", ["%2", "%x"]), &[2, 3], &["LeakyRelu"]),
        (leaky("0.5", ["%2", "%x"]), &[2, 3], &["Mul", "Less", "Where"]),
        (leaky("0.0", ["%x", "%2"]), &[2, 3], &["Mul", "Less", "Where"]),
        (clipped("1.0"), &[2, 3], &["HardSigmoid"]),
        (clipped("2.0"), &[2, 3], &["Add", "Min", "Max"]),
        (repeated("1, 2, 4, 9"), image, &["Resize"]),
        (repeated("1, 2, 9, 4"), image, &["Resize", "Reshape"]),
        (wholes("1, 2, 4, 2"), whole, &["Reshape", "Expand", "Reshape"]),
        (wholes("1, 4, 2, 2"), whole, &["Reshape", "Expand", "Reshape"]),
        (mean("1, 2, 2, 3", "axes = [2, 3], keepdims = true", "1, 2, 1, 1"), image, &["GlobalAveragePool"]),
        (mean("1, 2, 2, 3", "axes = [3], keepdims = true", "1, 2, 2, 1"), image, &["ReduceMean"]),
        (mean("2, 2, 3", "axes = [2], keepdims = true", "2, 2, 1"), &[2, 2, 3], &["ReduceMean"]),
        (mean("1, 2, 2, 3", "axes = [2, 3]", "1, 2"), image, &["ReduceMean"]),
        (blocks(CHANNELS_FIRST), &[1, 8, 2, 3], &["DepthToSpace"]),
        (blocks(BLOCKS_FIRST), &[1, 8, 2, 3], &["DepthToSpace"]),
        (spread(CHANNELS_FIRST), &[1, 1, 2, 3], &["ConvTranspose"]),
        (spread(BLOCKS_FIRST), &[1, 1, 2, 3], &["ConvTranspose"]),
        (columns(&[0, 0, 1, 2, 2, 2]), &[2, 3], &["Pad"]),
        (columns(&[1, 0, 1, 2, 1]), &[2, 3], &["Pad"]),
        (columns(&[0, 1, 2, 1, 0]), &[2, 3], &["Pad"]),
        (columns(&[1, 0, 0, 1, 2]), &[2, 3], &["Gather"]),
        (columns(&[0, 1, 1, 2]), &[2, 3], &["Gather"]),
    ]
}

/// Graphs of their own: source, extents of `x`, operators.
const OTHERS: &[(&str, &[usize], &[&str])] = &[
    (
        "graph @hard_sigmoid(%x: f32[2, 3]) -> (y: f32[2, 3]) {
  %0 = const 0.2 : f32
  %1 = const 0.5 : f32
  %2 = const 1.0 : f32
  %3 = const 0.0 : f32
  %4 = mul %x, %0 : f32[2, 3]
  %5 = add %4, %1 : f32[2, 3]
  %6 = min %5, %2 : f32[2, 3]
  %7 = max %3, %6 : f32[2, 3]
  return %7
}",
        &[2, 3],
        &["HardSigmoid"],
    ),
    (
        "graph @columns_before_rows(%x: f32[1, 2, 2, 2]) -> (y: f32[1, 2, 4, 4]) {
  %0 = reshape %x {shape = [1, 2, 2, 2, 1]} : f32[1, 2, 2, 2, 1]
  %1 = broadcast %0 {shape = [1, 2, 2, 2, 2]} : f32[1, 2, 2, 2, 2]
  %2 = reshape %1 {shape = [1, 2, 2, 1, 4]} : f32[1, 2, 2, 1, 4]
  %3 = broadcast %2 {shape = [1, 2, 2, 2, 4]} : f32[1, 2, 2, 2, 4]
  %4 = reshape %3 {shape = [1, 2, 4, 4]} : f32[1, 2, 4, 4]
  return %4
}",
        &[1, 2, 2, 2],
        &["Resize"],
    ),
    (
        "graph @spread_with_two_readers(%x: f32[1, 1, 2, 3]) -> (y: f32[1, 1, 4, 6], z: f32[1, 4, 2, 3]) {
  %0 = const [0.5, 1.0, -2.0, 3.0] : f32[4, 1, 1, 1]
  %1 = conv %x, %0 : f32[1, 4, 2, 3]
  %2 = reshape %1 {shape = [1, 1, 2, 2, 2, 3]} : f32[1, 1, 2, 2, 2, 3]
  %3 = transpose %2 {perm = [0, 1, 4, 2, 5, 3]} : f32[1, 1, 2, 2, 3, 2]
  %4 = reshape %3 {shape = [1, 1, 4, 6]} : f32[1, 1, 4, 6]
  return %4, %1
}",
        &[1, 1, 2, 3],
        &["Conv", "DepthToSpace"],
    ),
    (
        "graph @spread_in_strides(%x: f32[1, 1, 2, 3]) -> (y: f32[1, 1, 2, 4]) {
  %0 = const [0.5, 1.0, -2.0, 3.0] : f32[4, 1, 1, 1]
  %1 = conv %x, %0 {strides = [2, 2]} : f32[1, 4, 1, 2]
  %2 = reshape %1 {shape = [1, 1, 2, 2, 1, 2]} : f32[1, 1, 2, 2, 1, 2]
  %3 = transpose %2 {perm = [0, 1, 4, 2, 5, 3]} : f32[1, 1, 1, 2, 2, 2]
  %4 = reshape %3 {shape = [1, 1, 2, 4]} : f32[1, 1, 2, 4]
  return %4
}",
        &[1, 1, 2, 3],
        &["Conv", "DepthToSpace"],
    ),
    (
        "graph @blocks_transposed(%x: f32[1, 8, 2, 2]) -> (y: f32[1, 2, 4, 4]) {
  %0 = reshape %x {shape = [1, 2, 2, 2, 2, 2]} : f32[1, 2, 2, 2, 2, 2]
  %1 = transpose %0 {perm = [0, 1, 4, 3, 5, 2]} : f32[1, 2, 2, 2, 2, 2]
  %2 = reshape %1 {shape = [1, 2, 4, 4]} : f32[1, 2, 4, 4]
  return %2
}",
        &[1, 8, 2, 2],
        &["Reshape", "Transpose", "Reshape"],
    ),
    (
        "graph @oblong_blocks(%x: f32[1, 8, 2, 3]) -> (y: f32[1, 2, 8, 3]) {
  %0 = reshape %x {shape = [1, 2, 4, 1, 2, 3]} : f32[1, 2, 4, 1, 2, 3]
  %1 = transpose %0 {perm = [0, 1, 4, 2, 5, 3]} : f32[1, 2, 2, 4, 3, 1]
  %2 = reshape %1 {shape = [1, 2, 8, 3]} : f32[1, 2, 8, 3]
  return %2
}",
        &[1, 8, 2, 3],
        &["Reshape", "Transpose", "Reshape"],
    ),
];

#[test]
fn nodes_that_are_one_operator_are_written_as_one() {
    let others = OTHERS.iter().map(|(source, shape, expected)| ((*source).to_owned(), *shape, *expected));
    for (source, shape, expected) in neighbours().into_iter().chain(others) {
        let g = parse(&source);
        let given = [("x".to_owned(), normal(shape, 3, 0))];
        let found: Vec<String> = written(&g, 17).graph.nodes.iter().map(|n| n.op_type.clone()).collect();
        assert_eq!(found, expected, "{source}");
        for opset in [13, 17, 23] {
            let again = run(&round_trip(&g, opset), &given);
            assert_close(g.name(), &again[0], &run(&g, &given)[0], Tolerance::EXACT);
        }
    }
}

#[test]
fn what_others_read_is_written_as_well() {
    let g = parse(
        "graph @both(%x: f32[2, 3]) -> (y: f32[2, 3], z: f32[2, 3]) {
  %0 = const 0.1 : f32
  %1 = const 0.0 : f32
  %2 = mul %x, %0 : f32[2, 3]
  %3 = less %x, %1 : bool[2, 3]
  %4 = select %3, %2, %x : f32[2, 3]
  return %4, %2
}",
    );
    let found: Vec<String> = written(&g, 17).graph.nodes.iter().map(|n| n.op_type.clone()).collect();
    assert_eq!(found, ["Mul", "LeakyRelu"]);
}

/// ONNX's reflections go no further than to the other end.
#[test]
fn what_goes_beyond_a_reflection_is_a_lookup() {
    for (extent, places, expected) in [
        (3, "[2, 1, 0, 1, 2, 1, 0]", &["Pad"][..]),
        (3, "[1, 2, 1, 0, 1, 2]", &["Gather"][..]),
        (1, "[0, -1, -2]", &["Gather"][..]),
        (2, "[0, 1, 0, -1]", &["Gather"][..]),
    ] {
        let count = places.split(',').count();
        let source = format!(
            "graph @far(%x: f32[2, {extent}]) -> (y: f32[2, {count}]) {{
  %0 = const {places} : i64[{count}]
  %1 = gather %x, %0 {{axis = 1}} : f32[2, {count}]
  return %1
}}"
        );
        let operators = written(&parse(&source), 17).graph.nodes;
        let operators: Vec<&str> = operators.iter().map(|n| n.op_type.as_str()).collect();
        assert_eq!(operators, expected, "{places}");
    }
}
