//! What the functions of operators refuse: each condition has a node that violates it and nothing else.

use margay_onnx::{Kind, OnnxError};
use margay_tensor::Tensor;

use super::*;

fn text(v: &str) -> Attribute {
    Attribute::String(v.to_owned())
}

/// Refused as wrong.
const WRONG: Kind = Kind::Malformed;
/// Refused as not supported.
const OTHER: Kind = Kind::Unsupported;

/// Checks that a node is refused with this message, and for which of the two reasons.
fn check(
    opset: i64,
    op: &str,
    attributes: &[(&str, Attribute)],
    operands: Vec<Operand>,
    kind: Kind,
    says: &str,
) {
    check_outputs(opset, op, attributes, operands, 1, kind, says);
}

fn check_outputs(
    opset: i64,
    op: &str,
    attributes: &[(&str, Attribute)],
    operands: Vec<Operand>,
    outputs: usize,
    kind: Kind,
    says: &str,
) {
    let (model, _) = single(opset, op, attributes, operands, outputs);
    let what = format!("{op} {attributes:?}");
    let Err(OnnxError::Invalid(problems)) = import(&model) else { panic!("{what} is not refused") };
    let [problem] = problems.as_slice() else { panic!("{what}: {problems:?}") };
    let label = match kind {
        Kind::Malformed => format!("node `y0` ({op}): {says}; inputs are "),
        _ => format!("operator `{op}`: {says}; used by node `y0` ({op})"),
    };
    assert!(problem.to_string().starts_with(&label), "{what}: expected `{label}`, found `{problem}`");
    assert_eq!(problem.kind(), kind, "{what}");
}

fn x(shape: &[usize]) -> Operand {
    Input(counting(shape))
}

fn c(shape: &[usize]) -> Operand {
    Constant(counting(shape))
}

fn numbers(values: &[i64]) -> Operand {
    Constant(ints(values))
}

fn given(values: &[i64]) -> Operand {
    Input(ints(values))
}

#[test]
fn attributes_of_another_kind() {
    let image = || vec![x(&[1, 2, 4, 4]), c(&[3, 2, 1, 1])];
    let says = |name: &str, kind: &str| format!("expected attribute `{name}` to be {kind}");
    check(17, "Softmax", &[("axis", text("last"))], vec![x(&[2])], WRONG, &says("axis", "an integer"));
    check(17, "Elu", &[("alpha", int(1))], vec![x(&[2])], WRONG, &says("alpha", "a number"));
    check(17, "Conv", &[("strides", int(1))], image(), WRONG, &says("strides", "a list of integers"));
    check(17, "Conv", &[("auto_pad", int(1))], image(), WRONG, &says("auto_pad", "a text"));
    check(17, "Constant", &[("value", int(1))], vec![], WRONG, &says("value", "a tensor"));
    check(
        17,
        "Constant",
        &[("value_floats", int(1))],
        vec![],
        WRONG,
        &says("value_floats", "a list of numbers"),
    );
}

#[test]
fn inputs_too_few_and_too_many() {
    check(17, "Relu", &[], vec![], WRONG, "expected input 0, found none");
    check(17, "Add", &[], vec![x(&[2])], WRONG, "expected input 1, found none");
    check(17, "Relu", &[], vec![x(&[2]), x(&[2])], WRONG, "expected at most 1 inputs, found 2");
    check(
        17,
        "Clip",
        &[],
        vec![x(&[2]), Absent, Absent, x(&[])],
        WRONG,
        "expected at most 3 inputs, found 4",
    );
    check(10, "Clip", &[], vec![x(&[2]), x(&[])], WRONG, "expected at most 1 inputs, found 2");
    check(12, "ReduceSum", &[], vec![x(&[2]), numbers(&[0])], WRONG, "expected at most 1 inputs, found 2");
    check(17, "ReduceMax", &[], vec![x(&[2]), numbers(&[0])], WRONG, "expected at most 1 inputs, found 2");
    check(
        13,
        "ReduceSum",
        &[("axes", list(&[0]))],
        vec![x(&[2])],
        OTHER,
        "attribute `axes` is not supported",
    );
    check(
        18,
        "ReduceMax",
        &[("axes", list(&[0]))],
        vec![x(&[2])],
        OTHER,
        "attribute `axes` is not supported",
    );
    check(13, "Squeeze", &[("axes", list(&[0]))], vec![x(&[1])], OTHER, "attribute `axes` is not supported");
    check(
        11,
        "Clip",
        &[("min", Attribute::Float(0.0))],
        vec![x(&[2])],
        OTHER,
        "attribute `min` is not supported",
    );
    check_outputs(17, "Relu", &[], vec![x(&[2])], 2, OTHER, "output 1 is not supported");
}

#[test]
fn operator_sets_that_lack_the_operator() {
    for (op, opset) in [("Gelu", 19), ("LayerNormalization", 16), ("HardSwish", 13), ("GreaterOrEqual", 11)] {
        let says = format!("expected operator set {} or newer, found {opset}", opset + 1);
        check(opset, op, &[], vec![x(&[2]), x(&[2])], WRONG, &says);
    }
}

#[test]
fn axes_that_are_not_there() {
    let outside = "axis 2 of a tensor with 2 axes";
    check(17, "Softmax", &[("axis", int(2))], vec![x(&[2, 2])], WRONG, outside);
    check(17, "Softmax", &[("axis", int(-3))], vec![x(&[2, 2])], WRONG, "axis -3 of a tensor with 2 axes");
    check(17, "Gather", &[("axis", int(2))], vec![x(&[2, 2]), numbers(&[0])], WRONG, outside);
    check(17, "Concat", &[("axis", int(2))], vec![x(&[2, 2]), x(&[2, 2])], WRONG, outside);
    check(17, "Concat", &[], vec![x(&[2, 2])], WRONG, "expected attribute `axis`, found none");
    check(17, "Flatten", &[("axis", int(3))], vec![x(&[2, 2])], WRONG, "axis 3 of a tensor with 2 axes");
    check(17, "Split", &[("axis", int(2))], vec![x(&[2, 2])], WRONG, outside);
    check(17, "ReduceMax", &[("axes", list(&[0, 2]))], vec![x(&[2, 2])], WRONG, outside);
    check(17, "ReduceMax", &[("axes", list(&[1, -1]))], vec![x(&[2, 2])], WRONG, "axis 1 is given twice");
    check(17, "Unsqueeze", &[], vec![x(&[2, 2]), numbers(&[3])], WRONG, "axis 3 of a tensor with 3 axes");
    check(17, "Unsqueeze", &[], vec![x(&[2, 2])], WRONG, "expected a list of axes, found none");
    check(17, "Transpose", &[("perm", list(&[0, 2]))], vec![x(&[2, 2])], WRONG, outside);
    check(17, "LayerNormalization", &[("axis", int(2))], vec![x(&[2, 2]), c(&[2])], WRONG, outside);
    let parts = vec![x(&[4, 4]), numbers(&[0]), numbers(&[1]), numbers(&[2])];
    check(17, "Slice", &[], parts, WRONG, outside);
    check(18, "Pad", &[], vec![x(&[2, 2]), numbers(&[1, 1]), Absent, numbers(&[2])], WRONG, outside);
}

#[test]
fn what_is_computed_at_run_time() {
    let at_run_time = |what: &str| format!("{what} is computed at run time");
    check(17, "Reshape", &[], vec![x(&[4]), given(&[2, 2])], OTHER, &at_run_time("the shape"));
    check(17, "Expand", &[], vec![x(&[1]), given(&[2])], OTHER, &at_run_time("the shape"));
    check(17, "ConstantOfShape", &[], vec![given(&[2])], OTHER, &at_run_time("the shape"));
    check(17, "Tile", &[], vec![x(&[2]), given(&[2])], OTHER, &at_run_time("the number of repeats"));
    check(17, "Pad", &[], vec![x(&[2]), given(&[1, 1])], OTHER, &at_run_time("the padding"));
    let value = vec![x(&[2]), numbers(&[1, 1]), x(&[])];
    check(17, "Pad", &[], value, OTHER, &at_run_time("the value of the padding"));
    let axes = vec![x(&[2]), numbers(&[1, 1]), Absent, given(&[0])];
    check(18, "Pad", &[], axes, OTHER, &at_run_time("the list of axes"));
    check(17, "Unsqueeze", &[], vec![x(&[2]), given(&[0])], OTHER, &at_run_time("the list of axes"));
    check(17, "ReduceSum", &[], vec![x(&[2]), given(&[0])], OTHER, &at_run_time("the list of axes"));
    // Forwards and without gaps a run may say where a part begins and ends.
    let gaps = |start, end| vec![x(&[4]), start, end, numbers(&[0]), numbers(&[2])];
    check(17, "Slice", &[], gaps(given(&[0]), numbers(&[1])), OTHER, &at_run_time("the start"));
    check(17, "Slice", &[], gaps(numbers(&[0]), given(&[1])), OTHER, &at_run_time("the end"));
    let axes = vec![x(&[4]), numbers(&[0]), numbers(&[1]), given(&[0])];
    check(17, "Slice", &[], axes, OTHER, &at_run_time("the list of axes"));
    let steps = vec![x(&[4]), numbers(&[0]), numbers(&[1]), numbers(&[0]), given(&[1])];
    check(17, "Slice", &[], steps, OTHER, &at_run_time("the step"));
    check(17, "Split", &[], vec![x(&[4]), given(&[4])], OTHER, &at_run_time("the length of the parts"));
    let scalar = |v: f32| Constant(Tensor::scalar(v));
    check(17, "Range", &[], vec![scalar(0.0), x(&[]), scalar(1.0)], OTHER, &at_run_time("the range"));
    let training = || vec![x(&[2]), Absent, Input(Tensor::from_bools(&[], &[false]).unwrap())];
    let why = "training with a ratio that is not 0 is not supported where a model is not trained";
    check(17, "Dropout", &[], training(), OTHER, why);
    let training = vec![x(&[2]), Absent, Constant(Tensor::from_bools(&[], &[true]).unwrap())];
    check(17, "Dropout", &[], training, OTHER, why);
}

fn numbers3() -> Operand {
    Constant(Tensor::from_slice(&[2, 1, 3], &[0i64; 6]).unwrap())
}

#[test]
fn shapes_that_do_not_fit() {
    let twice = "expected at most one extent of -1 in the shape";
    check(17, "Reshape", &[], vec![x(&[4]), numbers(&[-1, -1])], WRONG, twice);
    let absent = "extent 0 keeps axis 1, which is not there";
    check(17, "Reshape", &[], vec![x(&[4]), numbers(&[4, 0])], WRONG, absent);
    let rest = "4 elements are not a multiple of 3";
    check(17, "Reshape", &[], vec![x(&[4]), numbers(&[3, -1])], WRONG, rest);
    check(17, "Tile", &[], vec![x(&[2, 2]), numbers(&[2])], WRONG, "expected 2 repeats, found 1");
    check(17, "Pad", &[], vec![x(&[2, 2]), numbers(&[1, 1])], WRONG, "expected 4 paddings, found 2");
    let axes = vec![x(&[2, 2]), numbers(&[1, 1, 1, 1]), Absent, numbers(&[0])];
    check(18, "Pad", &[], axes, WRONG, "expected 2 paddings, found 4");
    let says = "mode `mirror` is not supported";
    check(17, "Pad", &[("mode", text("mirror"))], vec![x(&[2]), numbers(&[1, 1])], OTHER, says);
    for mode in ["reflect", "edge", "wrap"] {
        let few = "expected 4 paddings, found 2";
        check(17, "Pad", &[("mode", text(mode))], vec![x(&[2, 2]), numbers(&[1, 1])], WRONG, few);
    }
    let lists = |ends: &[i64], axes: &[i64], steps: &[i64]| {
        vec![x(&[4, 4]), numbers(&[0, 0]), numbers(ends), numbers(axes), numbers(steps)]
    };
    check(17, "Slice", &[], lists(&[1], &[0, 1], &[1, 1]), WRONG, "expected 2 ends, found 1");
    check(17, "Slice", &[], lists(&[1, 1], &[0], &[1, 1]), WRONG, "expected 2 axes, found 1");
    check(17, "Slice", &[], lists(&[1, 1], &[0, 1], &[1]), WRONG, "expected 2 steps, found 1");
    check(
        9,
        "Slice",
        &[("ends", list(&[1]))],
        vec![x(&[4])],
        WRONG,
        "expected attribute `starts`, found none",
    );
    check(
        9,
        "Slice",
        &[("starts", list(&[1]))],
        vec![x(&[4])],
        WRONG,
        "expected attribute `ends`, found none",
    );
    let parts = |of: &[i64]| vec![x(&[6]), numbers(of)];
    let short = "expected parts of `6` elements together, found `5`";
    check_outputs(17, "Split", &[], parts(&[2, 3]), 2, WRONG, short);
    let number = [("num_outputs", int(3))];
    check_outputs(18, "Split", &number, vec![x(&[6])], 2, WRONG, "expected 3 outputs, found 2");
    check(17, "Range", &[], vec![numbers(&[0]), numbers(&[5]), numbers(&[0])], WRONG, "a range with step 0");
    let one = "expected input 1 to be one number";
    check(17, "Range", &[], vec![numbers(&[0]), numbers(&[5, 6]), numbers(&[1])], WRONG, one);
    let long = "a range of 1048577 elements, more than 1048576, is not supported";
    check(17, "Range", &[], vec![numbers(&[0]), numbers(&[1_048_577]), numbers(&[1])], OTHER, long);
    let says = "4 positions in data with 3 axes";
    check(17, "GatherND", &[("batch_dims", int(1))], vec![x(&[2, 2, 2]), numbers3()], WRONG, says);
    let none = "1 positions in data with 0 axes";
    check(18, "ScatterND", &[], vec![x(&[]), numbers(&[0]), x(&[])], WRONG, none);
    let way = "`avg` is no way to join";
    let rows = || vec![x(&[3]), numbers(&[0]), x(&[1])];
    check(18, "ScatterElements", &[("reduction", text("avg"))], rows(), WRONG, way);
    let ndim = "expected indices with 2 axes, found 1";
    check(13, "GatherElements", &[], vec![x(&[2, 2]), numbers(&[0])], WRONG, ndim);
    let classes = "expected two values, found f32";
    let one_hot = vec![numbers(&[0]), Constant(Tensor::scalar(3i64)), x(&[])];
    check(13, "OneHot", &[], one_hot, WRONG, classes);
    check(14, "Trilu", &[], vec![x(&[3])], WRONG, "expected at least 2 axes, found 1");
    let blocks = "`3` is not known to be a multiple of `4`";
    check(13, "DepthToSpace", &[("blocksize", int(2))], vec![x(&[1, 3, 2, 2])], OTHER, blocks);
}

#[test]
fn windows_that_do_not_fit() {
    let image = || vec![x(&[1, 2, 4, 4]), c(&[3, 2, 2, 2])];
    let conv = |name: &str, value: Attribute, kind, says: &str| {
        check(17, "Conv", &[(name, value)], image(), kind, says);
    };
    conv("kernel_shape", list(&[2, 3]), WRONG, "expected a kernel of [2, 3], found [2, 2]");
    for padding in ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"] {
        let padding = [("auto_pad", text(padding))];
        for (image, kernel) in [
            (&[1, 2, 5][..], &[3, 2, 2, 2][..]),
            (&[1, 2, 5, 5], &[3, 2, 2]),
            (&[1, 2, 5, 5, 5], &[3, 2, 2, 2]),
        ] {
            let says = format!("input 1 has {} axes, expected {}", kernel.len(), image.len());
            check(17, "Conv", &padding, vec![x(image), c(kernel)], WRONG, &says);
            let says = format!("a kernel {kernel:?} for f32{image:?} is not supported");
            let says =
                if image.len() < 5 { says.as_str() } else { "a kernel f32[3, 2, 2, 2] is not supported" };
            check(17, "ConvTranspose", &padding, vec![x(image), c(kernel)], OTHER, says);
        }
    }
    conv("group", int(0), WRONG, "expected at least one group, found 0");
    conv("group", int(-1), WRONG, "expected at least one group, found -1");
    conv("strides", list(&[1]), WRONG, "expected 2 values in `strides`, found 1");
    conv("dilations", list(&[1, 1, 1]), WRONG, "expected 2 values in `dilations`, found 3");
    conv("pads", list(&[1, 1]), WRONG, "expected 4 values in `pads`, found 2");
    conv("pads", list(&[0, -1, 0, 0]), OTHER, "`pads` of -1 is not supported");
    conv("strides", list(&[0, 1]), WRONG, "expected strides and dilations of at least 1");
    conv("dilations", list(&[1, 0]), WRONG, "expected strides and dilations of at least 1");
    conv("auto_pad", text("SAME"), WRONG, "`SAME` is no way of padding");
    let flat = "expected at least 3 axes, found f32[4, 4]";
    check(17, "Conv", &[], vec![x(&[4, 4]), c(&[3, 2, 2, 2])], WRONG, flat);
    for op in ["GlobalAveragePool", "GlobalMaxPool"] {
        check(17, op, &[], vec![x(&[4, 4])], WRONG, flat);
    }
    for op in ["MaxPool", "AveragePool"] {
        let missing = "expected attribute `kernel_shape`, found none";
        check(17, op, &[], vec![x(&[1, 2, 4])], WRONG, missing);
        let few = "expected 2 values in `kernel_shape`, found 1";
        check(17, op, &[("kernel_shape", list(&[2]))], vec![x(&[1, 2, 4, 4])], WRONG, few);
    }
}

#[test]
fn transposed_convolutions_that_do_not_fit() {
    let refuse = |name: &str, value: Attribute, kind, says: &str| {
        check(17, "ConvTranspose", &[(name, value)], vec![x(&[1, 4, 3, 3]), c(&[4, 2, 2, 2])], kind, says);
    };
    refuse("group", int(3), WRONG, "expected groups that divide 4, found 3");
    refuse("group", int(0), WRONG, "expected groups that divide 4, found 0");
    refuse("kernel_shape", list(&[2, 3]), WRONG, "expected a kernel of [2, 3], found [2, 2]");
    let most = "expected strides, dilations and a kernel of 1 to 1048576";
    refuse("strides", list(&[0, 1]), WRONG, most);
    refuse("strides", list(&[1, 1_048_577]), WRONG, most);
    refuse("dilations", list(&[1, 0]), WRONG, most);
    refuse("output_padding", list(&[0, 1_048_577]), WRONG, most);
    refuse("auto_pad", text("SAME"), WRONG, "`SAME` is no way of padding");
    refuse("output_shape", list(&[0, 5]), OTHER, "an extent of 0 is not supported");
    refuse("output_shape", list(&[5]), WRONG, "expected 2 extents in `output_shape`, found 1");
    let kernel = "a kernel [4, 2, 2] for f32[1, 4, 3, 3] is not supported";
    check(17, "ConvTranspose", &[], vec![x(&[1, 4, 3, 3]), c(&[4, 2, 2])], OTHER, kernel);
    let kernel = "a kernel f32[4, 2, 2] is not supported";
    check(17, "ConvTranspose", &[], vec![x(&[1, 4, 3, 3]), x(&[4, 2, 2])], OTHER, kernel);
}

#[test]
fn extents_that_stay_open() {
    let refused = |op: &str, attributes: &[(&str, Attribute)], kernel: Option<Tensor>, says: &str| {
        let mut inputs = vec!["x"];
        inputs.extend(kernel.as_ref().map(|_| "k"));
        let constants: Vec<(&str, Tensor)> = kernel.iter().map(|k| ("k", k.clone())).collect();
        let nodes = vec![node(op, &inputs, &["y"], attributes)];
        let declared = vec![input("x", DType::F32, &["1", "2", "n"])];
        let error = import(&model(17, declared, &constants, nodes, &["y"])).unwrap_err().to_string();
        assert_eq!(error, format!("operator `{op}`: {says}; used by node `y` ({op})"));
    };
    let same = [("auto_pad", text("SAME_UPPER")), ("strides", list(&[2]))];
    let padding = "the padding depends on the extent `n`; say what it is by `--dim n=N`";
    refused("Conv", &same, Some(counting(&[3, 2, 3])), padding);
    let pads = ("pads", list(&[1, 1]));
    let ceil = [("kernel_shape", list(&[2])), ("strides", list(&[2])), ("ceil_mode", int(1)), pads];
    let windows = "the number of windows depends on the extent `n`; say what it is by `--dim n=N`";
    refused("MaxPool", &ceil, None, windows);
    let axes = "the number of axes depends on the extent `n`; say what it is by `--dim n=N`";
    refused("Squeeze", &[], None, axes);
    let shape = [("output_shape", list(&[5]))];
    let says = padding;
    refused("ConvTranspose", &shape, Some(counting(&[2, 2, 2])), says);
}

#[test]
fn forms_that_are_not_supported() {
    let parameters = || vec![x(&[1, 2, 4]), c(&[2]), c(&[2]), c(&[2]), c(&[2])];
    let positions = [("spatial", int(0))];
    let says = "normalization of each position is not supported";
    check(8, "BatchNormalization", &positions, parameters(), OTHER, says);
    let says = "expected approximation none or tanh, found `erf`";
    check(20, "Gelu", &[("approximate", text("erf"))], vec![x(&[2])], WRONG, says);
    let says = "a constant that is no tensor of numbers is not supported";
    check(17, "Constant", &[], vec![], OTHER, says);
    check(17, "Cast", &[], vec![x(&[2])], WRONG, "expected attribute `to`, found none");
    for number in [8, 14, 27, 99] {
        let says = format!("element type number {number} is not supported");
        check(17, "Cast", &[("to", int(number))], vec![x(&[2])], OTHER, &says);
    }
}

#[test]
fn updates_have_the_axis_that_they_are_written_along() {
    let operands = vec![x(&[2, 3, 4]), x(&[5])];
    let says = "expected a tensor with more than 2 axes, found 1";
    check(24, "TensorScatter", &[("axis", int(-1))], operands, WRONG, says);
}

#[test]
fn operands_of_recurrent_operators_have_their_axes() {
    let right: [&[usize]; 8] =
        [&[4, 2, 3], &[1, 20, 3], &[1, 20, 5], &[1, 40], &[2], &[1, 2, 5], &[1, 2, 5], &[1, 15]];
    for (at, axes) in [(0, 3), (1, 3), (2, 3), (3, 2), (7, 2)] {
        let operand = |i: usize| match i {
            4 => numbers(&[4, 3]),
            _ if i == at => x(&[15]),
            _ => x(right[i]),
        };
        let operands = (0..8).map(operand).collect();
        let says = format!("expected input {at} with {axes} axes, found f32[15]");
        check(14, "LSTM", &[("hidden_size", int(5))], operands, WRONG, &says);
    }
}

#[test]
fn attention_of_operands_with_other_axes_is_refused() {
    let of_heads = [("num_heads", int(1)), ("kv_num_heads", int(1))];
    let new = || x(&[1, 1, 4]);
    type Case<'a> = (&'a str, &'a [(&'a str, Attribute)], Vec<Operand>, &'a str);
    let cases: [Case<'_>; 5] = [
        (
            "GroupQueryAttention",
            &of_heads,
            vec![x(&[]), new(), new(), Absent, Absent, numbers(&[0])],
            "1 heads and 1 of keys and values of f32",
        ),
        (
            "GroupQueryAttention",
            &[],
            vec![new(), new(), new(), Absent, Absent, numbers(&[0])],
            "0 heads and 0 of keys and values of f32[1, 1, 4]",
        ),
        (
            "GroupQueryAttention",
            &of_heads,
            vec![new(), new(), new(), x(&[1, 1, 3, 4]), x(&[3, 4]), numbers(&[3])],
            "expected a cache of 4 axes, found f32[3, 4]",
        ),
        (
            "RotaryEmbedding",
            &[],
            vec![x(&[2, 4]), numbers(&[0]), c(&[4, 2]), c(&[4, 2])],
            "expected 3 or 4 axes, found f32[2, 4]",
        ),
        (
            "RotaryEmbedding",
            &[],
            vec![x(&[4]), numbers(&[0]), c(&[4, 2]), c(&[4, 2])],
            "expected 3 or 4 axes, found f32[4]",
        ),
    ];
    for (op, attributes, operands, says) in cases {
        let (mut model, _) = single(17, op, attributes, operands, 1);
        model.graph.nodes[0].domain = "com.microsoft".to_owned();
        model.domains.insert("com.microsoft".to_owned(), 1);
        let Err(OnnxError::Invalid(problems)) = import(&model) else { panic!("{op} is not refused") };
        assert!(problems.iter().any(|p| p.to_string().contains(says)), "{op}: {problems:?}");
    }
}

/// A classifier whose labels are texts, with these outputs and what else is computed of the label.
fn texts(outputs: &[&str], behind: Vec<OnnxNode>) -> Result<Vec<String>, String> {
    let names = Attribute::Strings(["cat", "dog", "owl"].map(str::to_owned).to_vec());
    let attributes = [
        ("classlabels_strings", names),
        ("coefficients", Attribute::Floats(vec![0.5; 12])),
        ("intercepts", Attribute::Floats(vec![0.0; 3])),
    ];
    let classifier = node("LinearClassifier", &["x"], &["label", "scores"], &attributes);
    let classifier = OnnxNode { domain: "ai.onnx.ml".to_owned(), ..classifier };
    let nodes = [vec![classifier], behind].concat();
    let mut model = model(13, vec![input("x", DType::F32, &["N", "4"])], &[], nodes, outputs);
    model.domains = BTreeMap::from([("ai.onnx.ml".to_owned(), 1)]);
    match import(&model) {
        Ok(g) => Ok(g.outputs().iter().map(|o| o.name.to_string()).collect()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn labels_that_are_texts_are_left_out_and_not_computed_with() {
    assert_eq!(texts(&["label", "scores"], Vec::new()).unwrap(), ["scores"]);
    let renamed = || vec![node("Identity", &["label"], &["named"], &[])];
    assert_eq!(texts(&["scores", "named"], renamed()).unwrap(), ["scores"]);
    let cast = vec![node("Cast", &["label"], &["named"], &[("to", int(8))])];
    assert_eq!(texts(&["scores", "named"], cast).unwrap(), ["scores"]);
    let error = texts(&["named"], renamed()).unwrap_err();
    assert!(error.contains("no other output is there"), "{error}");
    let error = texts(&["scores", "y"], vec![node("Not", &["label"], &["y"], &[])]).unwrap_err();
    assert!(error.contains("texts are not supported as an operand"), "{error}");
}
