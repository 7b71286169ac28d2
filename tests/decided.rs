//! Extents that a run decides: what operators answer for their padding, from the graph to results of a run.

use margay_driver::{Dump, backend, build::jit};
use margay_ir::ops::{
    Add, Broadcast, Concat, Cumulate, Cut, Dims, Exp, Gather, LayerNorm, MatMul, NonZero, Range, Reduce,
    ReduceKind, Reshape, Scatter, ScatterAdd, ScatterKind, Slice, Softmax, TopK, Transpose,
};
use margay_ir::ops::{Bits, NonMaxSuppression, Position};
use margay_ir::{AddError, Graph, Op, Origin, TensorType, Value, eval, text};
use margay_onnx::{ExportOptions, export, import};
use margay_passes::Pipeline;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Dim, Tensor};
use margay_testkit::{Tolerance, assert_close, normal};

/// A graph with rows and columns of which a run takes the first `n`, and other operands.
struct Taken {
    g: Graph,
    /// f32\[n', 4\].
    rows: Value,
    /// f32\[3, n'\].
    columns: Value,
    /// i64\[n'\], positions along an axis of 6.
    at: Value,
    /// i64\[2\], from -n' on.
    indices: Value,
}

fn dim(text: &str) -> Dim {
    Dim::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

fn dims<const N: usize>(texts: [&str; N]) -> Vec<Dim> {
    texts.map(dim).to_vec()
}

impl Taken {
    fn new() -> Taken {
        let mut g = Graph::new("decided");
        let input = |g: &mut Graph, name: &str, dtype, shape: &[usize]| {
            g.add_input(name, TensorType::known(dtype, shape))
        };
        let rows = input(&mut g, "rows", DType::F32, &[6, 4]);
        let columns = input(&mut g, "columns", DType::F32, &[3, 6]);
        let at = input(&mut g, "at", DType::I64, &[6]);
        let indices = input(&mut g, "indices", DType::I64, &[2]);
        let count = input(&mut g, "n", DType::I64, &[]);
        let mut cut = |v, axis| {
            let op = Cut { axis, extent: dim("n'") };
            g.add(op, &[v, count], Origin::named("cut")).unwrap_or_else(|e| panic!("{e}"))
        };
        let (rows, columns, at) = (cut(rows, 0), cut(columns, 1), cut(at, 0));
        Taken { g, rows, columns, at, indices }
    }

    fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        let added: Result<Value, AddError> = self.g.add(op, inputs, Origin::named("node"));
        added.unwrap_or_else(|e| panic!("{e}"))
    }
}

fn inputs(n: i64) -> Vec<(&'static str, Tensor)> {
    let at = Tensor::from_slice(&[6], &[4i64, -1, 0, 3, 5, 2]).unwrap();
    let indices = Tensor::from_slice(&[2], &[-1i64, 0]).unwrap();
    let (rows, columns) = (normal(&[6, 4], 3, 1), normal(&[3, 6], 3, 2));
    vec![("rows", rows), ("columns", columns), ("at", at), ("indices", indices), ("n", Tensor::scalar(n))]
}

/// Compiled code gives what the interpreter gives, whatever the run decides; twice.
fn agrees(name: &str, g: &Graph, numbers: &[i64]) {
    for backend in backend::supported() {
        let what = format!("{name} on {}", backend.target());
        let executable = jit(g, &Binding::new(), &*backend).unwrap_or_else(|e| panic!("{what}: {e}\n{g}"));
        let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
        for n in numbers.iter().chain(numbers) {
            let given = inputs(*n);
            let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, t)| (*name, t)).collect();
            let expected = eval::run(g, &given).unwrap_or_else(|e| panic!("{what}: {e}\n{g}"));
            let found = session.run(&given).unwrap_or_else(|e| panic!("{what}: {e}\n{g}"));
            assert_eq!(found.len(), expected.len(), "{what}");
            for ((output, found), expected) in found.iter().zip(&expected) {
                assert_eq!(found.shape(), expected.shape(), "{what}: {output} of {n}");
                assert_close(&format!("{what}: {output} of {n}"), found, expected, Tolerance::REDUCTION);
            }
        }
    }
}

type Made = fn(&mut Taken) -> Value;

/// What operators make of rows and columns; those that need one row at least say so.
const MADE: &[(&str, bool, Made)] = &[
    ("elementwise", false, |t| t.op(Exp, &[t.rows])),
    ("broadcast operands", false, |t| {
        let last = t.op(Reduce { kind: ReduceKind::Max, axes: vec![1], keepdims: true }, &[t.rows]);
        t.op(Add, &[t.rows, last])
    }),
    ("columns", false, |t| t.op(Exp, &[t.columns])),
    ("transpose", false, |t| t.op(Transpose { perm: vec![1, 0] }, &[t.rows])),
    ("sum of all", false, |t| {
        t.op(Reduce { kind: ReduceKind::Sum, axes: vec![0, 1], keepdims: false }, &[t.rows])
    }),
    ("mean", true, |t| t.op(Reduce { kind: ReduceKind::Mean, axes: vec![0], keepdims: true }, &[t.rows])),
    ("product", false, |t| {
        t.op(Reduce { kind: ReduceKind::Prod, axes: vec![1], keepdims: false }, &[t.columns])
    }),
    ("minimum", true, |t| {
        t.op(Reduce { kind: ReduceKind::Min, axes: vec![1], keepdims: false }, &[t.columns])
    }),
    ("sums from the end", false, |t| {
        t.op(Cumulate { axis: 0, product: false, exclusive: true, reverse: true }, &[t.rows])
    }),
    ("softmax over rows", false, |t| t.op(Softmax { axis: 0 }, &[t.rows])),
    ("matrix product over columns", false, |t| t.op(MatMul, &[t.columns, t.rows])),
    ("layer norm", false, |t| {
        let one = t.op(margay_ir::ops::Const { payload: margay_ir::Payload::number(DType::F32, 1.0) }, &[]);
        let one = t.op(Broadcast { shape: dims(["4"]) }, &[one]);
        t.op(LayerNorm { axis: 1, epsilon: Bits::new(1e-5) }, &[t.rows, one, one])
    }),
    ("flat", false, |t| t.op(Reshape { shape: dims(["4*n'"]) }, &[t.rows])),
    ("split", false, |t| t.op(Reshape { shape: dims(["n'", "1", "2", "2"]) }, &[t.rows])),
    ("rows behind each other", false, |t| t.op(Concat { axis: 0 }, &[t.rows, t.rows])),
    ("rows before others", false, |t| {
        let turned = t.op(Transpose { perm: vec![1, 0] }, &[t.rows]);
        let wide = t.op(Concat { axis: 1 }, &[turned, turned, turned]);
        t.op(Exp, &[wide])
    }),
    ("lookup of rows", false, |t| {
        let table = t.g.inputs()[0].into();
        t.op(Gather { axis: 0 }, &[table, t.at])
    }),
    ("lookup in rows", true, |t| t.op(Gather { axis: 0 }, &[t.rows, t.indices])),
    ("positions", true, |t| t.op(Position { extent: dim("n'") }, &[t.indices])),
    ("rows but the first", true, |t| {
        let (starts, ends) = (dims(["1", "0"]), dims(["n'", "4"]));
        t.op(Slice { starts, ends, steps: vec![1, 2] }, &[t.rows])
    }),
    ("the last row", true, |t| {
        let (starts, ends) = (dims(["n' - 1", "0"]), dims(["n'", "4"]));
        t.op(Slice { starts, ends, steps: vec![1, 1] }, &[t.rows])
    }),
    ("rows backwards", true, |t| {
        let (starts, ends) = (dims(["n' - 1", "0"]), dims(["-1", "4"]));
        t.op(Slice { starts, ends, steps: vec![-1, 1] }, &[t.rows])
    }),
    ("sums in places", false, |t| {
        t.op(ScatterAdd { axis: 0, extent: dim("6"), indices: 1 }, &[t.rows, t.at])
    }),
    ("rows put in places", false, |t| {
        let table = t.g.inputs()[0].into();
        let turned = t.op(Exp, &[t.rows]);
        t.op(Scatter { kind: ScatterKind::Set }, &[table, t.at, turned])
    }),
    ("the order of rows", false, |t| {
        let column =
            t.op(Slice { starts: dims(["0", "0"]), ends: dims(["n'", "1"]), steps: vec![1, 1] }, &[t.rows]);
        let column = t.op(Reshape { shape: dims(["n'"]) }, &[column]);
        t.op(TopK { axis: 0, k: dim("n'"), largest: false }, &[column])
    }),
    ("numbers of rows", false, |t| t.op(Dims { values: dims(["n'", "2*n' + 1", "7"]) }, &[])),
    ("a range", false, |t| t.op(Range { start: dim("n'"), step: -2, count: dim("n' + 1") }, &[])),
    ("places of places", false, |t| {
        let zero = t.op(margay_ir::ops::Const { payload: margay_ir::Payload::number(DType::F32, 0.0) }, &[]);
        let above = t.op(margay_ir::ops::Less, &[zero, t.rows]);
        let found = t.op(NonZero, &[above]);
        let count = Value { node: found.node, out: 1 };
        t.op(Cut { axis: 0, extent: dim("m'") }, &[found, count])
    }),
    ("boxes", false, |t| {
        let boxes = t.op(Reshape { shape: dims(["1", "n'", "4"]) }, &[t.rows]);
        let scores = t.op(Reshape { shape: dims(["1", "3", "n'"]) }, &[t.columns]);
        let number = |t: &mut Taken, v: f64, dtype| {
            t.op(margay_ir::ops::Const { payload: margay_ir::Payload::number(dtype, v) }, &[])
        };
        let most = number(t, 3.0, DType::I64);
        let (share, least) = (number(t, 0.2, DType::F32), number(t, -0.5, DType::F32));
        let found = t.op(NonMaxSuppression { most: dim("n'") }, &[boxes, scores, most, share, least]);
        let count = Value { node: found.node, out: 1 };
        t.op(Cut { axis: 0, extent: dim("m'") }, &[found, count])
    }),
];

#[test]
fn operators_serve_extents_that_a_run_decides() {
    for (name, some, make) in MADE {
        let mut taken = Taken::new();
        let y = make(&mut taken);
        taken.g.add_output("y", y);
        agrees(name, &taken.g, if *some { &[1, 4, 6] } else { &[0, 1, 4, 6] });
    }
}

#[test]
fn exported_models_decide_the_same_extents() {
    let options = ExportOptions { opset: 18, ..ExportOptions::default() };
    for (name, some, make) in MADE {
        let mut taken = Taken::new();
        let y = make(&mut taken);
        taken.g.add_output("y", y);
        let model = export(&taken.g, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let again = import(&model).unwrap_or_else(|e| panic!("{name}: {e}"));
        for n in if *some { &[1, 4, 6][..] } else { &[0, 1, 4, 6] } {
            let given = inputs(*n);
            let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, t)| (*name, t)).collect();
            let run = |g: &Graph| eval::run(g, &given).unwrap_or_else(|e| panic!("{name}: {e}\n{g}"));
            let (expected, found) = (run(&taken.g), run(&again));
            assert_eq!(found[0].shape(), expected[0].shape(), "{name} of {n}");
            assert_close(&format!("{name} of {n}"), &found[0], &expected[0], Tolerance::REDUCTION);
        }
    }
}

#[test]
fn a_number_alone_is_what_a_run_says() {
    let mut t = Taken::new();
    let y = t.op(Dims { values: dims(["n'", "2*n'"]) }, &[]);
    t.g.add_output("y", y);
    t.g.remove_dead();
    Dump::none().run(&Pipeline::canonicalize(), &mut t.g).unwrap_or_else(|e| panic!("{e}"));
    agrees("numbers", &t.g, &[0, 5]);
}

#[test]
fn several_such_extents_of_one_output_are_packed() {
    let mut t = Taken::new();
    let turned = t.op(Transpose { perm: vec![1, 0] }, &[t.rows]);
    let pairs = t.op(MatMul, &[t.rows, turned]);
    let both = t.op(Broadcast { shape: dims(["2", "n'", "n'"]) }, &[pairs]);
    t.g.add_output("pairs", pairs);
    t.g.add_output("both", both);
    agrees("pairs", &t.g, &[0, 1, 3, 6]);
}

#[test]
fn what_has_no_answer_is_refused_with_node_and_extent() {
    let refusal = |make: Made| {
        let mut taken = Taken::new();
        let y = make(&mut taken);
        taken.g.add_output("y", y);
        let backend = backend::native();
        let pipeline = Pipeline::bind(&Binding::new(), &backend.preferences());
        Dump::none().run(&pipeline, &mut taken.g).unwrap_err().to_string()
    };
    let message = refusal(|t| t.op(Reshape { shape: dims(["3*n'"]) }, &[t.columns]));
    let expected = "`node`: a run decides the extent `n'` of axis 1 of f32[3, n'], its operand 0";
    assert!(message.ends_with(expected), "{message}");
    let message = refusal(|t| {
        let count = t.g.inputs()[4].into();
        let all = t.op(Cut { axis: 0, extent: dim("n'") }, &[t.indices, count]);
        t.op(Add, &[all, all])
    });
    assert!(
        message.ends_with("`cut`: `n'` has two numbers or two bounds") || message.contains("two bounds"),
        "{message}"
    );
}

#[test]
fn graphs_with_such_extents_read_back() {
    let source =
        "graph @m(%x: f32[6], %n: i64) -> (y: f32[n'], z: f32[6], \"z.count0\": i64 counts axis 0 of z) {
  %0 = cut %x, %n {axis = 0, extent = n'} : f32[n']
  return %0, %x, %n
}
";
    let g = text::parse(source, &|_, _| None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(g.to_string(), source.replace("\"z.count0\"", "z.count0"));
    assert_eq!(g.symbols(), Vec::<margay_tensor::Symbol>::new());
}
