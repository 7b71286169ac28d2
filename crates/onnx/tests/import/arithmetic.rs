//! Elementwise operators, activations and reductions.

use super::*;

#[test]
fn clip_takes_bounds_from_attributes_then_inputs() {
    let x = || Input(floats(&[4], &[-2.0, -0.5, 0.5, 9.0]));
    let bounds = [("min", Attribute::Float(-1.0)), ("max", Attribute::Float(6.0))];
    assert_floats(&run(7, "Clip", &bounds, vec![x()]), &[4], &[-1.0, -0.5, 0.5, 6.0]);
    let high = Constant(Tensor::scalar(0f32));
    assert_floats(&run(13, "Clip", &[], vec![x(), Absent, high]), &[4], &[-2.0, -0.5, 0.0, 0.0]);
    assert_floats(&run(7, "Clip", &[], vec![x()]), &[4], &[-2.0, -0.5, 0.5, 9.0]);
}

#[test]
fn powers_take_exponents_of_any_type() {
    let exponent = || Constant(ints(&[2]));
    let x = Input(floats(&[3], &[-2.0, 0.5, 3.0]));
    assert_floats(&run(13, "Pow", &[], vec![x, exponent()]), &[3], &[4.0, 0.25, 9.0]);
    let y = run(13, "Pow", &[], vec![Input(ints(&[-3, 5])), exponent()]);
    assert_eq!(y, ints(&[9, 25]));
}

#[test]
fn comparisons_turn_around() {
    let (x, y) = (|| Input(floats(&[3], &[1.0, 2.0, 3.0])), || Input(floats(&[], &[2.0])));
    let test = |op: &str| run(13, op, &[], vec![x(), y()]).bytes().to_vec();
    assert_eq!(test("Greater"), [0, 0, 1]);
    assert_eq!(test("GreaterOrEqual"), [0, 1, 1]);
    assert_eq!(test("Less"), [1, 0, 0]);
    assert_eq!(test("LessOrEqual"), [1, 1, 0]);
    assert_eq!(test("Equal"), [0, 1, 0]);
}

#[test]
fn any_number_of_operands() {
    let x =
        || vec![Input(floats(&[2], &[1.0, 6.0])), Input(floats(&[], &[3.0])), Input(floats(&[1], &[5.0]))];
    assert_floats(&run(13, "Max", &[], x()), &[2], &[5.0, 6.0]);
    assert_floats(&run(13, "Min", &[], x()), &[2], &[1.0, 3.0]);
    assert_floats(&run(13, "Sum", &[], x()), &[2], &[9.0, 14.0]);
    assert_floats(&run(13, "Mean", &[], x()), &[2], &[3.0, 14.0 / 3.0]);
}

#[test]
fn activations() {
    let x = || vec![Input(floats(&[3], &[-1.0, 0.0, 2.0]))];
    let alpha = |v: f32| [("alpha", Attribute::Float(v))];
    assert_floats(&run(16, "LeakyRelu", &alpha(0.1), x()), &[3], &[-0.1, 0.0, 2.0]);
    assert_floats(&run(16, "LeakyRelu", &alpha(3.0), x()), &[3], &[-3.0, 0.0, 2.0]);
    assert_floats(&run(7, "Elu", &alpha(2.0), x()), &[3], &[-1.264241, 0.0, 2.0]);
    assert_floats(&run(14, "HardSwish", &[], x()), &[3], &[-1.0 / 3.0, 0.0, 5.0 / 3.0]);
    assert_floats(&run(7, "HardSigmoid", &[], x()), &[3], &[0.3, 0.5, 0.9]);
    assert_floats(&run(20, "Gelu", &[], x()), &[3], &[-0.158655, 0.0, 1.9545]);
    let tanh = [("approximate", Attribute::String("tanh".to_owned()))];
    assert_floats(&run(20, "Gelu", &tanh, x()), &[3], &[-0.158808, 0.0, 1.954598]);
    let slope = Constant(floats(&[3], &[0.5, 0.5, 0.5]));
    let y = run(16, "PRelu", &[], vec![Input(floats(&[3], &[-1.0, 0.0, 2.0])), slope]);
    assert_floats(&y, &[3], &[-0.5, 0.0, 2.0]);
}

#[test]
fn casts_by_number_and_by_example() {
    let x = || Input(floats(&[2], &[-1.5, 2.5]));
    assert_eq!(run(13, "Cast", &[("to", int(7))], vec![x()]), ints(&[-1, 2]));
    assert_eq!(run(15, "CastLike", &[], vec![x(), Constant(ints(&[0]))]), ints(&[-1, 2]));
}

#[test]
fn axes_of_reductions_move_from_attribute_to_input() {
    let x = || Input(counting(&[2, 3]));
    let axes = || Constant(ints(&[-1]));
    assert_floats(&run(12, "ReduceSum", &[("axes", list(&[1]))], vec![x()]), &[2, 1], &[3.0, 12.0]);
    let flat = [("keepdims", int(0))];
    assert_floats(&run(13, "ReduceSum", &flat, vec![x(), axes()]), &[2], &[3.0, 12.0]);
    let flat_axes = [("keepdims", int(0)), ("axes", list(&[-1]))];
    assert_floats(&run(17, "ReduceMean", &flat_axes, vec![x()]), &[2], &[1.0, 4.0]);
    assert_floats(&run(18, "ReduceMax", &flat, vec![x(), axes()]), &[2], &[2.0, 5.0]);
    assert_floats(&run(18, "ReduceMin", &[], vec![x()]), &[1, 1], &[0.0]);
    let nothing = [("noop_with_empty_axes", int(1))];
    assert_floats(&run(18, "ReduceProd", &nothing, vec![x()]), &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn composed_reductions() {
    let x = || Input(floats(&[2, 2], &[3.0, -4.0, 1.0, 1.0]));
    let flat = [("keepdims", int(0)), ("axes", list(&[1]))];
    assert_floats(&run(13, "ReduceL1", &flat, vec![x()]), &[2], &[7.0, 2.0]);
    assert_floats(&run(13, "ReduceL2", &flat, vec![x()]), &[2], &[5.0, std::f32::consts::SQRT_2]);
    assert_floats(&run(13, "ReduceSumSquare", &flat, vec![x()]), &[2], &[25.0, 2.0]);
    let large = Input(floats(&[2], &[100.0, 100.0]));
    assert_floats(&run(13, "ReduceLogSumExp", &[], vec![large]), &[1], &[100.693147]);
}

#[test]
fn logarithms_of_sums_of_powers_take_infinities() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows = [[-inf, -inf], [inf, 1.0], [-inf, 0.5], [inf, -inf], [nan, 1.0]];
    let x = Input(floats(&[5, 2], &rows.concat()));
    let found = run(18, "ReduceLogSumExp", &[("keepdims", int(0))], vec![x, Constant(ints(&[1]))]);
    let found = found.to_vec::<f32>().unwrap();
    assert_eq!(found[..4], [-inf, inf, 0.5, inf]);
    assert!(found[4].is_nan());
}

#[test]
fn operators_of_other_domains_are_known_by_their_domain() {
    let gelu = |domain: &str| OnnxNode { domain: domain.into(), ..node("Gelu", &["x"], &["y"], &[]) };
    let model_of = |domain: &str, version: Option<i64>| {
        let inputs = vec![input("x", DType::F32, &["3"])];
        let mut m = model(17, inputs, &[], vec![gelu(domain)], &["y"]);
        m.domains = version.map(|v| (domain.to_owned(), v)).into_iter().collect();
        m
    };
    let g = import(&model_of("com.microsoft", Some(1))).unwrap();
    assert!(g.order().iter().any(|n| g.op(*n).name() == "gelu"), "{g}");
    let refused = |m: &Model| import(m).unwrap_err().to_string();
    let message = refused(&model_of("com.microsoft", None));
    assert!(message.contains("expected operator set 1 or newer, found 0"), "{message}");
    let message = refused(&model_of("ai.onnx.ml", Some(3)));
    assert!(message.contains("ai.onnx.ml.Gelu"), "{message}");
    // Of the default domain it is newer than the model.
    assert!(refused(&model_of("", None)).contains("expected operator set 20 or newer, found 17"));
}
