//! Exporting: what is written and read back computes the same.

mod again;
mod joined;
mod stored;

use std::collections::BTreeMap;

use margay_ir::ops::{CaseInput, Numbers};
use margay_ir::{Graph, Op, Origin, Part, Stage, TensorType, Value, eval, ops, text};
use margay_onnx::{ExportOptions, Model, OnnxDim, export, import};
use margay_tensor::{DType, Dim, Tensor, shape_of};
use margay_testkit::{Tolerance, assert_close, case_inputs};

/// The oldest, those where operators change, the newest.
const OPSETS: [i64; 5] = [13, 17, 18, 20, 23];

fn written(g: &Graph, opset: i64) -> Model {
    export(g, &ExportOptions { opset, ..ExportOptions::default() }).unwrap()
}

/// Through the bytes of a file and back.
fn round_trip(g: &Graph, opset: i64) -> Graph {
    let model = written(g, opset);
    let read = Model::from_bytes(&model.to_bytes().unwrap()).unwrap();
    assert_eq!(read, model);
    let g = import(&read).unwrap();
    g.verify(Stage::Imported).unwrap();
    g
}

fn run(g: &Graph, given: &[(String, Tensor)]) -> Vec<Tensor> {
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
    eval::run(g, &given).unwrap()
}

fn parse(source: &str) -> Graph {
    text::parse(source, &|_, _| None).unwrap()
}

/// The oldest operator set that can say what an operator does to values of a type.
fn needed_opset(op: &Op, dtype: DType) -> i64 {
    match op {
        Op::ScatterAdd(_) => 16,
        Op::Scatter(op) => match op.kind {
            ops::ScatterKind::Set => 13,
            ops::ScatterKind::Add | ops::ScatterKind::Mul => 16,
            ops::ScatterKind::Min | ops::ScatterKind::Max => 18,
        },
        Op::And(_) | Op::Or(_) | Op::Xor(_) if dtype.is_int() => 18,
        _ => 13,
    }
}

#[test]
fn every_operator_computes_the_same_afterwards() {
    let (mut seen, mut refused): (BTreeMap<&str, usize>, _) = (BTreeMap::new(), 0);
    for (op, case) in Op::cases() {
        if matches!(op, Op::Const(_)) {
            continue;
        }
        *seen.entry(op.name()).or_default() += 1;
        let mut g = Graph::new("case");
        let (mut operands, mut given) = (Vec::new(), Vec::new());
        for (i, t) in case_inputs(&case).into_iter().enumerate() {
            let name = format!("x{i}");
            operands.push(g.add_input(&name, TensorType::of(&t)));
            given.push((name, t));
        }
        let y = g.add(op.clone(), &operands, Origin::named("node")).unwrap();
        for out in 0..g.node(y.node).types.len() as u16 {
            g.add_output(&format!("y{out}"), Value { node: y.node, out });
        }
        // What programs give out.
        if matches!(op, Op::Pack(_) | Op::NonMaxSuppression(_))
            && let Err(refusal) = export(&g, &ExportOptions::default())
        {
            let refusal = refusal.to_string();
            assert!(refusal.contains(" not exported"), "{refusal}");
            refused += 1;
            continue;
        }
        // Zeros behind what was found or ran, which are as many as a run says, are not read back.
        let has_rows = |op: &Op| matches!(op, Op::Loop(op) if op.body.graph().outputs().len() > op.carried + usize::from(op.condition));
        if matches!(op, Op::NonZero(_)) || has_rows(&op) {
            export(&g, &ExportOptions::default()).unwrap();
            continue;
        }
        let expected = run(&g, &given);
        for opset in OPSETS {
            let what = format!("{op:?} in operator set {opset}");
            let needed = needed_opset(&op, g.ty(y).dtype);
            if opset < needed {
                let refusal = export(&g, &ExportOptions { opset, ..ExportOptions::default() }).unwrap_err();
                let expected = format!("needs operator set {needed}, not {opset}");
                assert!(refusal.to_string().contains(&expected), "{refusal}");
                continue;
            }
            let again = round_trip(&g, opset);
            for (before, after) in g.outputs().iter().zip(again.outputs()) {
                let (before, after) = (g.ty(before.value), again.ty(after.value));
                // What a run decides is no number when it is read back.
                assert!(before == after || after.shape.iter().any(Dim::is_decided), "{what}");
            }
            for (found, expected) in run(&again, &given).iter().zip(&expected) {
                // Its logarithms are no normalizers here, so that weights are large and their products cancel.
                let tolerance = match op {
                    Op::AttentionGradient(_) => Tolerance::REDUCTION,
                    _ => Tolerance::ELEMENTWISE,
                };
                assert_close(&what, found, expected, tolerance);
            }
        }
    }
    assert_eq!(refused, seen["pack"] + seen["non_max_suppression"], "cases that are refused");
    let without: Vec<_> = Op::ALL.iter().filter(|name| !seen.contains_key(*name)).collect();
    assert_eq!(without, [&"const", &"input"]);
}

/// Graphs with symbols. Each is run with B = 2, S = 3 and with B = 1, S = 6.
const SYMBOLIC: &[&str] = &[
    // Extents that stay, one that follows, and several that must be computed.
    "graph @reshapes(%x: f32[B, S, 6]) -> (a: f32[B, S, 2, 3], b: f32[B*S, 6], c: f32[S, B, 6], d: f32[6*B*S]) {
  %0 = reshape %x {shape = [B, S, 2, 3]} : f32[B, S, 2, 3]
  %1 = reshape %x {shape = [B*S, 6]} : f32[B*S, 6]
  %2 = reshape %x {shape = [S, B, 6]} : f32[S, B, 6]
  %3 = reshape %x {shape = [6*B*S]} : f32[6*B*S]
  return %0, %1, %2, %3
}",
    "graph @broadcasts(%x: f32[B, S, 6]) -> (a: f32[B, S, 6], b: f32[S, B, S, 6]) {
  %0 = const [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] : f32[6]
  %1 = broadcast %0 {shape = [B, S, 6]} : f32[B, S, 6]
  %2 = broadcast %x {shape = [S, B, S, 6]} : f32[S, B, S, 6]
  return %1, %2
}",
    "graph @slices(%x: f32[B, S, 6]) -> (a: f32[B, S - 1, 6], b: f32[B, 1, 2], c: f32[B, S, 6], d: f32[B, 6, 6]) {
  %0 = slice %x {starts = [0, 1, 0], ends = [B, S, 6], steps = [1, 1, 1]} : f32[B, S - 1, 6]
  %1 = slice %x {starts = [0, S - 1, 1], ends = [B, S, 4], steps = [1, 1, 2]} : f32[B, 1, 2]
  %2 = slice %x {starts = [0, S - 1, 0], ends = [B, -1, 6], steps = [1, -1, 1]} : f32[B, S, 6]
  %3 = const 0.0 : f32
  %4 = broadcast %3 {shape = [B, 6, 6]} : f32[B, 6, 6]
  return %0, %1, %2, %4
}",
    "graph @windows(%x: f32[B, S, 6]) -> (a: f32[B, S, 2, 2, 2, 3], b: f32[B, S, 2, 3], c: f32[B, S, 3]) {
  %0 = reshape %x {shape = [B, S, 2, 3]} : f32[B, S, 2, 3]
  %1 = im2col %0 {kernel = [2, 2], pads_before = [1, 0], pads_after = [0, 1]} : f32[B, S, 2, 2, 2, 3]
  %2 = col2im %1 {kernel = [2, 2], pads_before = [1, 0], pads_after = [0, 1], size = [2, 3]} : f32[B, S, 2, 3]
  %3 = const [0, 2, -1, 0, 1, 2] : i64[6]
  %4 = scatter_add %x, %3 {axis = 2, extent = 3, indices = 1} : f32[B, S, 3]
  return %1, %2, %4
}",
    "graph @computed(%x: f32[B, S, 6]) -> (a: i64[3], b: f32[B, S, 6], n: i64[1]) {
  %0 = dims {values = [B, 2*S + 1, floordiv(B + S, 2)]} : i64[3]
  %1 = dims {values = [S]} : i64[1]
  %2 = reshape %1 {shape = []} : i64
  %3 = cast %2 {to = f32} : f32
  %4 = sqrt %3 : f32
  %5 = div %x, %4 : f32[B, S, 6]
  return %0, %5, %1
}",
    "graph @attention(%x: f32[B, S, 6]) -> (y: f32[B, S, 6]) {
  %0 = reshape %x {shape = [B, S, 2, 3]} : f32[B, S, 2, 3]  // split
  %1 = transpose %0 {perm = [0, 2, 1, 3]} : f32[B, 2, S, 3]  // heads
  %2 = attention %1, %1, %1 {scale = 0.5} : f32[B, 2, S, 3]  // attend
  %3 = transpose %2 {perm = [0, 2, 1, 3]} : f32[B, S, 2, 3]  // join
  %4 = reshape %3 {shape = [B, S, 6]} : f32[B, S, 6]  // join
  %5 = gelu %4 : f32[B, S, 6]  // act
  return %5
}",
    "graph @pools(%x: f32[B, S, 6]) -> (y: f32[B, S, 3]) {
  %0 = pool %x {kind = average, kernel = [3], strides = [2], pads_before = [2], pads_after = [2], dilations = [2]} : f32[B, S, 3]
  return %0
}",
];

#[test]
fn symbols_stay_symbols() {
    for source in SYMBOLIC {
        let g = parse(source);
        let oldest = if source.contains("scatter_add") { 16 } else { 13 };
        for opset in OPSETS.into_iter().filter(|&o| o >= oldest) {
            let again = round_trip(&g, opset);
            for (before, after) in g.outputs().iter().zip(again.outputs()) {
                assert_eq!(
                    (&before.name, g.ty(before.value)),
                    (&after.name, again.ty(after.value)),
                    "{source}"
                );
            }
            for shape in [[2, 3, 6], [1, 6, 6]] {
                let case = ops::Case { inputs: vec![random(&shape)] };
                let given = vec![("x".to_owned(), case_inputs(&case).remove(0))];
                for (found, expected) in run(&again, &given).iter().zip(&run(&g, &given)) {
                    assert_close(source, found, expected, Tolerance::ELEMENTWISE);
                }
            }
        }
    }
}

fn random(shape: &[usize]) -> CaseInput {
    CaseInput::Random { dtype: DType::F32, shape: shape.to_vec(), low: -2.0, high: 2.0 }
}

fn listing(model: &Model) -> String {
    let node = |n: &margay_onnx::OnnxNode| {
        format!("{} = {}({}) -> {}\n", n.name, n.op_type, n.inputs.join(", "), n.outputs.join(", "))
    };
    let constant = |(name, t): &(String, Tensor)| format!("{name}: {t:?}\n");
    let constants: String = model.graph.initializers.iter().map(constant).collect();
    format!("{constants}{}", model.graph.nodes.iter().map(node).collect::<String>())
}

#[test]
fn names_come_from_origins_and_parts() {
    let mut g = Graph::new("named");
    let batch = [margay_tensor::Dim::symbol("B"), 4usize.into()];
    let x = g.add_input("x", TensorType::new(DType::F32, batch.to_vec()));
    let weights = |shape: &[usize]| {
        let data = Numbers::Float(vec![0.5; shape.iter().product()]).into_tensor(DType::F32, shape).unwrap();
        ops::Const { payload: margay_ir::Payload::new(data) }
    };
    let (weight, fc) = (Origin::named("fc.weight"), Origin::named("fc"));
    let left = g.add(weights(&[4, 2]), &[], weight.part(Part::Left)).unwrap();
    let right = g.add(weights(&[2, 3]), &[], weight.part(Part::Right)).unwrap();
    let tied = g.add(weights(&[2, 3]), &[], Origin::named("tied")).unwrap();
    let thin = g.add(ops::MatMul, &[x, left], fc.part(Part::Left)).unwrap();
    let wide = g.add(ops::MatMul, &[thin, right], fc.part(Part::Right)).unwrap();
    let other = g.add(ops::MatMul, &[thin, tied], fc.clone()).unwrap();
    let sum = g.add(ops::Add, &[wide, other], fc).unwrap();
    let dead = g.add(ops::Relu, &[sum], Origin::default()).unwrap();
    let last = g.add(ops::Gelu { tanh: false }, &[sum], Origin::default()).unwrap();
    g.add_output("y", last);
    g.add_output("again", last);
    g.add_output("x", x);
    g.add_output("weight", tied);
    assert!(g.contains(dead.node));
    let model = written(&g, 17);
    assert_eq!(
        listing(&model),
        "fc.weight/left: Tensor(f32[4, 2])
fc.weight/right: Tensor(f32[2, 3])
number: Tensor(f32[])
number_1: Tensor(f32[])
number_2: Tensor(f32[])
fc/left = MatMul(x, fc.weight/left) -> fc/left_output
fc/right = MatMul(fc/left_output, fc.weight/right) -> fc/right_output
fc = MatMul(fc/left_output, fc.weight/right) -> fc_output
fc_1 = Add(fc/right_output, fc_output) -> fc_1_output
gelu/Div = Div(fc_1_output, number) -> gelu/Div_output
gelu/Erf = Erf(gelu/Div_output) -> gelu/Erf_output
gelu/Add = Add(gelu/Erf_output, number_1) -> gelu/Add_output
gelu/Mul = Mul(fc_1_output, gelu/Add_output) -> gelu/Mul_output
gelu = Mul(gelu/Mul_output, number_2) -> y
again = Identity(y) -> again
weight = Identity(fc.weight/right) -> weight
"
    );
    let dims = |at: usize| model.graph.outputs[at].dims.clone().unwrap();
    assert_eq!(dims(0), [OnnxDim::Symbol("B".to_owned()), OnnxDim::Value(3)]);
}

#[test]
fn extents_are_computed_once() {
    let model = written(&parse(SYMBOLIC[0]), 17);
    assert_eq!(
        listing(&model).lines().filter(|l| l.contains(" = ")).collect::<Vec<_>>(),
        [
            "reshape = Reshape(x, integers) -> a",
            "reshape_1 = Reshape(x, integers_1) -> b",
            "extents/x/Shape = Shape(x) -> extents/x/Shape_output",
            "extents/S/Gather = Gather(extents/x/Shape_output, integers_2) -> extents/S/Gather_output",
            "extents/B/Gather = Gather(extents/x/Shape_output, integers_3) -> extents/B/Gather_output",
            "reshape/shape = Concat(extents/S/Gather_output, extents/B/Gather_output, integers_4) -> reshape/shape_output",
            "reshape_2 = Reshape(x, reshape/shape_output) -> c",
            "reshape_3 = Reshape(x, integers_5) -> d",
        ]
    );
    let outputs: Vec<_> = model.graph.outputs.iter().map(|o| o.dims.clone().unwrap()).collect();
    assert_eq!(outputs[1], [OnnxDim::Unknown, OnnxDim::Value(6)]);
}

#[test]
fn refusals_say_why() {
    let g = parse("graph @g(%x: f32[N]) -> (y: f32[N]) {\n  %0 = relu %x : f32[N]\n  return %0\n}");
    let error =
        |opset| export(&g, &ExportOptions { opset, ..ExportOptions::default() }).unwrap_err().to_string();
    assert_eq!(error(12), "expected operator set 13 to 23 to export to, found 12");
    assert_eq!(error(24), "expected operator set 13 to 23 to export to, found 24");
    let mut g = Graph::new("g");
    let x = g.add_input("x", TensorType::new(DType::F32, shape_of(&[1])));
    let shape = vec![margay_tensor::Dim::symbol("N")];
    let y = g.add(ops::Broadcast { shape }, &[x], Origin::named("widen")).unwrap();
    g.add_output("y", y);
    let error = export(&g, &ExportOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot export node `widen`: `N` in `N` is no extent of an input");
    assert!(!error.is_malformed());
}

#[test]
fn notes_travel_along() {
    let g = parse("graph @g(%x: f32[N]) -> (y: f32[N]) {\n  %0 = relu %x : f32[N]\n  return %0\n}");
    let metadata = BTreeMap::from([("plan".to_owned(), "dense".to_owned())]);
    let model = export(&g, &ExportOptions { opset: 18, metadata: metadata.clone() }).unwrap();
    assert_eq!((model.opset, &model.metadata), (18, &metadata));
    assert_eq!(export(&g, &ExportOptions { opset: 18, metadata }).unwrap(), model);
}
