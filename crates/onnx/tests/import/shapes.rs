//! Operators that move elements, and the shapes they take.

use super::*;

#[test]
fn axes_of_squeeze_and_unsqueeze_move_from_attribute_to_input() {
    let x = || Input(counting(&[2, 1, 3]));
    assert_eq!(run(11, "Squeeze", &[("axes", list(&[1]))], vec![x()]).shape(), [2, 3]);
    assert_eq!(run(13, "Squeeze", &[], vec![x(), Constant(ints(&[-2]))]).shape(), [2, 3]);
    assert_eq!(run(13, "Squeeze", &[], vec![x()]).shape(), [2, 3]);
    assert_eq!(run(11, "Unsqueeze", &[("axes", list(&[0, 4]))], vec![x()]).shape(), [1, 2, 1, 3, 1]);
    assert_eq!(run(13, "Unsqueeze", &[], vec![x(), Constant(ints(&[-1, 0]))]).shape(), [1, 2, 1, 3, 1]);
}

#[test]
fn reshape_keeps_and_infers_extents() {
    let to =
        |shape: &[i64]| run(13, "Reshape", &[], vec![Input(counting(&[2, 3, 4])), Constant(ints(shape))]);
    assert_eq!(to(&[0, -1]).shape(), [2, 12]);
    assert_eq!(to(&[4, 0, 2]).shape(), [4, 3, 2]);
    let empty = || vec![Input(counting(&[0, 3])), Constant(ints(&[3, 0]))];
    assert_eq!(run(14, "Reshape", &[("allowzero", int(1))], empty()).shape(), [3, 0]);
    assert_eq!(
        refused(13, "Reshape", &[], vec![Input(counting(&[2, 3])), Constant(ints(&[4, -1]))]),
        "node `y0` (Reshape): 6 elements are not a multiple of 4; inputs are f32[2, 3], i64[2]"
    );
}

#[test]
fn slices_clamp_known_bounds() {
    let x = || Input(counting(&[5]));
    let cut = [("starts", list(&[-9])), ("ends", list(&[3])), ("axes", list(&[0]))];
    assert_floats(&run(9, "Slice", &cut, vec![x()]), &[3], &[0.0, 1.0, 2.0]);
    let bounds = |start: i64, end: i64, step: i64| {
        let [start, end, axis, step] = [start, end, 0, step].map(|v| Constant(ints(&[v])));
        run(13, "Slice", &[], vec![x(), start, end, axis, step])
    };
    assert_floats(&bounds(1, i64::MAX, 2), &[2], &[1.0, 3.0]);
    assert_floats(&bounds(-1, i64::MIN, -2), &[3], &[4.0, 2.0, 0.0]);
    assert_eq!(bounds(4, 2, 1).shape(), [0]);
}

#[test]
fn split_by_lengths_and_equally() {
    let parts = |opset, attributes: &[_], operands, outputs| {
        let all = run_all(opset, "Split", attributes, operands, outputs);
        all.iter().map(|t| t.to_vec::<f32>().unwrap()).collect::<Vec<_>>()
    };
    let x = || Input(counting(&[5]));
    assert_eq!(parts(11, &[("split", list(&[2, 3]))], vec![x()], 2), [vec![0.0, 1.0], vec![2.0, 3.0, 4.0]]);
    assert_eq!(parts(13, &[], vec![x(), Constant(ints(&[4, 1]))], 2)[1], [4.0]);
    assert_eq!(parts(18, &[("num_outputs", int(2))], vec![x()], 2)[1], [3.0, 4.0]);
}

#[test]
fn pad_and_cut() {
    let x = || Input(counting(&[3]));
    let pads = [("pads", list(&[1, 2])), ("value", Attribute::Float(9.0))];
    assert_floats(&run(7, "Pad", &pads, vec![x()]), &[6], &[9.0, 0.0, 1.0, 2.0, 9.0, 9.0]);
    let operands = vec![x(), Constant(ints(&[-1, 1])), Constant(Tensor::scalar(7f32)), Constant(ints(&[-1]))];
    assert_floats(&run(18, "Pad", &[], operands), &[3], &[1.0, 2.0, 7.0]);
    let reflect = [("mode", Attribute::String("reflect".to_owned()))];
    let around = run(13, "Pad", &reflect, vec![x(), Constant(ints(&[1, 1]))]);
    assert_floats(&around, &[5], &[1.0, 0.0, 1.0, 2.0, 1.0]);
}

#[test]
fn repeats() {
    let x = || Input(floats(&[2, 1], &[1.0, 2.0]));
    let y = run(13, "Tile", &[], vec![x(), Constant(ints(&[2, 2]))]);
    assert_floats(&y, &[4, 2], &[1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
    let y = run(13, "Expand", &[], vec![x(), Constant(ints(&[3, 1, 2]))]);
    assert_eq!(y.shape(), [3, 2, 2]);
    let y =
        run(9, "ConstantOfShape", &[("value", Attribute::Tensor(ints(&[7])))], vec![Constant(ints(&[3]))]);
    assert_eq!(y, ints(&[7, 7, 7]));
    let range = [1, 8, 3].map(|v| Constant(Tensor::scalar(v as i64)));
    assert_eq!(run(11, "Range", &[], range.into()), ints(&[1, 4, 7]));
}

#[test]
fn flatten_transpose_gather_concat() {
    let x = || Input(counting(&[2, 3]));
    assert_eq!(run(13, "Flatten", &[("axis", int(0))], vec![x()]).shape(), [1, 6]);
    assert_eq!(run(13, "Flatten", &[("axis", int(2))], vec![x()]).shape(), [6, 1]);
    assert_floats(&run(13, "Transpose", &[], vec![x()]), &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    let y = run(13, "Gather", &[("axis", int(-1))], vec![x(), Constant(ints(&[-1, 0]))]);
    assert_floats(&y, &[2, 2], &[2.0, 0.0, 5.0, 3.0]);
    assert_eq!(run(13, "Concat", &[("axis", int(-1))], vec![x(), x()]).shape(), [2, 6]);
}

#[test]
fn parts_of_shapes() {
    let x = || Input(counting(&[2, 3, 4]));
    assert_eq!(run(13, "Shape", &[], vec![x()]), ints(&[2, 3, 4]));
    assert_eq!(run(15, "Shape", &[("start", int(-2)), ("end", int(-1))], vec![x()]), ints(&[3]));
    assert_eq!(run(13, "Size", &[], vec![x()]), Tensor::scalar(24i64));
}
