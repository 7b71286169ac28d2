//! Several nodes that are one operator of ONNX, and graphs beside them that are not.

use margay_testkit::{Tolerance, assert_close, normal};

use super::{parse, round_trip, run, written};

/// A graph over `x`, and the operators that it is written as.
const CASES: &[(&str, &[usize], &[&str])] = &[
    (
        "graph @leaky(%x: f32[2, 3]) -> (y: f32[2, 3]) {
  %0 = const 0.1 : f32
  %1 = const 0.0 : f32
  %2 = mul %x, %0 : f32[2, 3]
  %3 = less %x, %1 : bool[2, 3]
  %4 = select %3, %2, %x : f32[2, 3]
  return %4
}",
        &[2, 3],
        &["LeakyRelu"],
    ),
    (
        "graph @another_edge(%x: f32[2, 3]) -> (y: f32[2, 3]) {
  %0 = const 0.1 : f32
  %1 = const 0.5 : f32
  %2 = mul %x, %0 : f32[2, 3]
  %3 = less %x, %1 : bool[2, 3]
  %4 = select %3, %2, %x : f32[2, 3]
  return %4
}",
        &[2, 3],
        &["Mul", "Less", "Where"],
    ),
    (
        "graph @sides_swapped(%x: f32[2, 3]) -> (y: f32[2, 3]) {
  %0 = const 0.1 : f32
  %1 = const 0.0 : f32
  %2 = mul %x, %0 : f32[2, 3]
  %3 = less %x, %1 : bool[2, 3]
  %4 = select %3, %x, %2 : f32[2, 3]
  return %4
}",
        &[2, 3],
        &["Mul", "Less", "Where"],
    ),
    (
        "graph @rows_and_columns(%x: f32[1, 2, 2, 3]) -> (y: f32[1, 2, 4, 9]) {
  %0 = reshape %x {shape = [1, 2, 2, 1, 3]} : f32[1, 2, 2, 1, 3]
  %1 = broadcast %0 {shape = [1, 2, 2, 2, 3]} : f32[1, 2, 2, 2, 3]
  %2 = reshape %1 {shape = [1, 2, 4, 3, 1]} : f32[1, 2, 4, 3, 1]
  %3 = broadcast %2 {shape = [1, 2, 4, 3, 3]} : f32[1, 2, 4, 3, 3]
  %4 = reshape %3 {shape = [1, 2, 4, 9]} : f32[1, 2, 4, 9]
  return %4
}",
        &[1, 2, 2, 3],
        &["Resize"],
    ),
    (
        "graph @under_other_extents(%x: f32[1, 2, 2, 3]) -> (y: f32[1, 2, 9, 4]) {
  %0 = reshape %x {shape = [1, 2, 2, 1, 3]} : f32[1, 2, 2, 1, 3]
  %1 = broadcast %0 {shape = [1, 2, 2, 2, 3]} : f32[1, 2, 2, 2, 3]
  %2 = reshape %1 {shape = [1, 2, 4, 3, 1]} : f32[1, 2, 4, 3, 1]
  %3 = broadcast %2 {shape = [1, 2, 4, 3, 3]} : f32[1, 2, 4, 3, 3]
  %4 = reshape %3 {shape = [1, 2, 9, 4]} : f32[1, 2, 9, 4]
  return %4
}",
        &[1, 2, 2, 3],
        &["Resize", "Reshape"],
    ),
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
        "graph @no_slope(%x: f32[2, 3]) -> (y: f32[2, 3]) {
  %0 = const 0.5 : f32
  %1 = const 1.0 : f32
  %2 = const 0.0 : f32
  %3 = add %x, %0 : f32[2, 3]
  %4 = min %3, %1 : f32[2, 3]
  %5 = max %4, %2 : f32[2, 3]
  return %5
}",
        &[2, 3],
        &["HardSigmoid"],
    ),
    (
        "graph @another_height(%x: f32[2, 3]) -> (y: f32[2, 3]) {
  %0 = const 0.5 : f32
  %1 = const 2.0 : f32
  %2 = const 0.0 : f32
  %3 = add %x, %0 : f32[2, 3]
  %4 = min %3, %1 : f32[2, 3]
  %5 = max %4, %2 : f32[2, 3]
  return %5
}",
        &[2, 3],
        &["Add", "Min", "Max"],
    ),
    (
        "graph @mean_of_an_image(%x: f32[1, 2, 2, 3]) -> (y: f32[1, 2, 1, 1]) {
  %0 = reduce %x {kind = mean, axes = [2, 3], keepdims = true} : f32[1, 2, 1, 1]
  return %0
}",
        &[1, 2, 2, 3],
        &["GlobalAveragePool"],
    ),
    (
        "graph @mean_of_rows(%x: f32[1, 2, 2, 3]) -> (y: f32[1, 2, 2, 1]) {
  %0 = reduce %x {kind = mean, axes = [3], keepdims = true} : f32[1, 2, 2, 1]
  return %0
}",
        &[1, 2, 2, 3],
        &["ReduceMean"],
    ),
    (
        "graph @mean_of_one_axis(%x: f32[2, 2, 3]) -> (y: f32[2, 2, 1]) {
  %0 = reduce %x {kind = mean, axes = [2], keepdims = true} : f32[2, 2, 1]
  return %0
}",
        &[2, 2, 3],
        &["ReduceMean"],
    ),
    (
        "graph @mean_without_its_axes(%x: f32[1, 2, 2, 3]) -> (y: f32[1, 2]) {
  %0 = reduce %x {kind = mean, axes = [2, 3]} : f32[1, 2]
  return %0
}",
        &[1, 2, 2, 3],
        &["ReduceMean"],
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
        "graph @rows_as_wholes(%x: f32[1, 2, 2, 2]) -> (y: f32[1, 2, 4, 2]) {
  %0 = reshape %x {shape = [1, 2, 1, 2, 2]} : f32[1, 2, 1, 2, 2]
  %1 = broadcast %0 {shape = [1, 2, 2, 2, 2]} : f32[1, 2, 2, 2, 2]
  %2 = reshape %1 {shape = [1, 2, 4, 2]} : f32[1, 2, 4, 2]
  return %2
}",
        &[1, 2, 2, 2],
        &["Reshape", "Expand", "Reshape"],
    ),
    (
        "graph @heads(%x: f32[1, 2, 2, 2]) -> (y: f32[1, 4, 2, 2]) {
  %0 = reshape %x {shape = [1, 2, 1, 2, 2]} : f32[1, 2, 1, 2, 2]
  %1 = broadcast %0 {shape = [1, 2, 2, 2, 2]} : f32[1, 2, 2, 2, 2]
  %2 = reshape %1 {shape = [1, 4, 2, 2]} : f32[1, 4, 2, 2]
  return %2
}",
        &[1, 2, 2, 2],
        &["Reshape", "Expand", "Reshape"],
    ),
    (
        "graph @channels_first(%x: f32[1, 8, 2, 3]) -> (y: f32[1, 2, 4, 6]) {
  %0 = reshape %x {shape = [1, 2, 2, 2, 2, 3]} : f32[1, 2, 2, 2, 2, 3]
  %1 = transpose %0 {perm = [0, 1, 4, 2, 5, 3]} : f32[1, 2, 2, 2, 3, 2]
  %2 = reshape %1 {shape = [1, 2, 4, 6]} : f32[1, 2, 4, 6]
  return %2
}",
        &[1, 8, 2, 3],
        &["DepthToSpace"],
    ),
    (
        "graph @blocks_first(%x: f32[1, 8, 2, 3]) -> (y: f32[1, 2, 4, 6]) {
  %0 = reshape %x {shape = [1, 2, 2, 2, 2, 3]} : f32[1, 2, 2, 2, 2, 3]
  %1 = transpose %0 {perm = [0, 3, 4, 1, 5, 2]} : f32[1, 2, 2, 2, 3, 2]
  %2 = reshape %1 {shape = [1, 2, 4, 6]} : f32[1, 2, 4, 6]
  return %2
}",
        &[1, 8, 2, 3],
        &["DepthToSpace"],
    ),
    (
        "graph @spread_channels_first(%x: f32[1, 1, 2, 3]) -> (y: f32[1, 2, 4, 6]) {
  %0 = const [0.5, 1.0, -2.0, 3.0, 0.25, -1.5, 4.0, 0.75] : f32[8, 1, 1, 1]
  %1 = conv %x, %0 : f32[1, 8, 2, 3]
  %2 = reshape %1 {shape = [1, 2, 2, 2, 2, 3]} : f32[1, 2, 2, 2, 2, 3]
  %3 = transpose %2 {perm = [0, 1, 4, 2, 5, 3]} : f32[1, 2, 2, 2, 3, 2]
  %4 = reshape %3 {shape = [1, 2, 4, 6]} : f32[1, 2, 4, 6]
  return %4
}",
        &[1, 1, 2, 3],
        &["ConvTranspose"],
    ),
    (
        "graph @spread_blocks_first(%x: f32[1, 1, 2, 3]) -> (y: f32[1, 2, 4, 6]) {
  %0 = const [0.5, 1.0, -2.0, 3.0, 0.25, -1.5, 4.0, 0.75] : f32[8, 1, 1, 1]
  %1 = conv %x, %0 : f32[1, 8, 2, 3]
  %2 = reshape %1 {shape = [1, 2, 2, 2, 2, 3]} : f32[1, 2, 2, 2, 2, 3]
  %3 = transpose %2 {perm = [0, 3, 4, 1, 5, 2]} : f32[1, 2, 2, 2, 3, 2]
  %4 = reshape %3 {shape = [1, 2, 4, 6]} : f32[1, 2, 4, 6]
  return %4
}",
        &[1, 1, 2, 3],
        &["ConvTranspose"],
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
    (
        "graph @edges(%x: f32[2, 3]) -> (y: f32[2, 6]) {
  %0 = const [0, 0, 1, 2, 2, 2] : i64[6]
  %1 = gather %x, %0 {axis = 1} : f32[2, 6]
  return %1
}",
        &[2, 3],
        &["Pad"],
    ),
    (
        "graph @reflected(%x: f32[2, 3]) -> (y: f32[2, 5]) {
  %0 = const [1, 0, 1, 2, 1] : i64[5]
  %1 = gather %x, %0 {axis = 1} : f32[2, 5]
  return %1
}",
        &[2, 3],
        &["Pad"],
    ),
    (
        "graph @reflected_behind(%x: f32[2, 3]) -> (y: f32[2, 5]) {
  %0 = const [0, 1, 2, 1, 0] : i64[5]
  %1 = gather %x, %0 {axis = 1} : f32[2, 5]
  return %1
}",
        &[2, 3],
        &["Pad"],
    ),
    (
        "graph @reflected_with_the_edge(%x: f32[2, 3]) -> (y: f32[2, 5]) {
  %0 = const [1, 0, 0, 1, 2] : i64[5]
  %1 = gather %x, %0 {axis = 1} : f32[2, 5]
  return %1
}",
        &[2, 3],
        &["Gather"],
    ),
    (
        "graph @the_middle_twice(%x: f32[2, 3]) -> (y: f32[2, 4]) {
  %0 = const [0, 1, 1, 2] : i64[4]
  %1 = gather %x, %0 {axis = 1} : f32[2, 4]
  return %1
}",
        &[2, 3],
        &["Gather"],
    ),
];

#[test]
fn nodes_that_are_one_operator_are_written_as_one() {
    for (source, shape, expected) in CASES {
        let g = parse(source);
        let given = [("x".to_owned(), normal(shape, 3, 0))];
        let found: Vec<String> = written(&g, 17).graph.nodes.iter().map(|n| n.op_type.clone()).collect();
        assert_eq!(found, *expected, "{source}");
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
