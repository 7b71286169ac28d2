//! Texts of graphs; and graphs that came from a file, whatever its kind: they are printed, compiled and run.

use margay_driver::{Backend, DriverError, Dump, Kind, Model, backend, build};
use margay_ir::ops::Numbers;
use margay_ir::verify::Stage;
use margay_ir::{Graph, Op, Origin, TensorType, Value, text};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, StoredTensor, Tensor};
use margay_testkit::{case_inputs, in_other_types};

use super::{Draw, distinct, words};

/// The most elements of a constant that a text only names.
const MAX_RESOLVED: usize = 1 << 16;

/// The most bytes of a value, and operations of a node, of a graph that is run.
const MAX_RUN: u64 = 1 << 18;

/// Accepts what parses, and compiles what fits its types.
pub(super) fn run(bytes: &[u8]) -> bool {
    let Ok(source) = str::from_utf8(bytes) else { return false };
    let Ok(g) = text::parse(source, &resolve) else { return false };
    reads_back(&g);
    if g.verify(Stage::Imported).is_ok() {
        goes_on(g);
    }
    true
}

/// Zeros for constants that a text only names.
fn resolve(_: &str, ty: &TensorType) -> Option<StoredTensor> {
    let shape = ty.extents()?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (elements <= MAX_RESOLVED).then(|| Tensor::zeros(ty.dtype, &shape).ok().map(Into::into))?
}

/// The text of a graph is that of the graph it is read as.
pub(super) fn reads_back(g: &Graph) {
    let constants = text::named_constants(g);
    let printed = g.to_string();
    let find = |key: &str, ty: &TensorType| {
        let same = |p: &&&margay_ir::Payload| {
            p.key().to_string() == key
                && p.stored().dtype() == ty.dtype
                && Some(p.stored().shape()) == ty.extents().as_deref()
        };
        constants.iter().find(same).map(|p| p.stored().clone())
    };
    let again = text::parse(&printed, &find).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    let again = again.to_string();
    assert!(again == printed, "{printed}\nreads back as\n{again}");
}

/// Brings a graph as imported into canonical form and compiles it with 1 for open dimensions. Runs what is small, as
/// machine code and with every access checked. Refusals are fine; faults of margay are not.
pub(super) fn goes_on(g: Graph) {
    if let Err(violations) = g.verify(Stage::Imported) {
        panic!("{violations:?}\n{g}");
    }
    let printed = g.to_string();
    let Some(model) = answer(&printed, Model::new(g, "hostile", &mut Dump::none())) else { return };
    reads_back(&model.graph);
    let binding: Binding = model.graph.symbols().into_iter().map(|s| (s, 1)).collect();
    let native = &*backend::native();
    let bound = build::bind(&model.graph, &binding, native, &mut Dump::none());
    let Some(bound) = answer(&printed, bound) else { return };
    if !is_small(&bound) {
        answer(&printed, build::try_compile(&bound, &Binding::new()));
        return;
    }
    runs(&printed, &bound, native);
    if let Ok(checking) = backend::named("reference", "native", margay_loops::Precision::F32) {
        runs(&printed, &model.graph, &*checking);
    }
}

fn runs(printed: &str, g: &Graph, backend: &dyn Backend) {
    let binding: Binding = g.symbols().into_iter().map(|s| (s, 1)).collect();
    let Some(executable) = answer(printed, build::jit(g, &binding, backend)) else { return };
    let session = Session::new(&executable, SessionOptions { threads: 1 });
    let Some(mut session) = answer(printed, session.map_err(DriverError::from)) else { return };
    let ports = &executable.entries()[0].parts.inputs;
    let inputs: Vec<(&str, Tensor)> =
        ports.iter().map(|port| (port.name.as_str(), numbers(port.dtype, &port.shape))).collect();
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    answer(printed, session.run(&inputs).map_err(DriverError::from));
}

/// What there is of an answer.
///
/// # Panics
/// If it is a fault of margay.
fn answer<T>(printed: &str, found: Result<T, DriverError>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(e) => {
            assert_ne!(e.kind(), Kind::Internal, "{e}\n{printed}");
            None
        }
    }
}

/// Whether every node is small and none repeats others.
fn is_small(g: &Graph) -> bool {
    g.order().into_iter().all(|n| {
        let values: Vec<Value> = g.values_of(n).chain(g.inputs_of(n)).collect();
        let few = |v: &Value| {
            let shape = g.ty(*v).extents()?;
            shape.iter().try_fold(8u64, |n, &d| n.checked_mul(d as u64)).filter(|&n| n <= MAX_RUN)
        };
        g.op(n).regions().is_empty()
            && values.iter().all(|v| few(v).is_some())
            && g.io_of(n).is_some_and(|io| g.op(n).cost(&io).flops <= MAX_RUN)
    })
}

/// Small numbers of either sign.
fn numbers(dtype: DType, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let numbers = match dtype.is_float() || dtype == DType::Bool {
        true => Numbers::Float((0..count).map(|i| (i % 7) as f64 - 3.0).collect()),
        false => Numbers::Int((0..count).map(|i| (i % 3) as i128).collect()),
    };
    numbers.into_tensor(dtype, shape).expect("inputs of what is run are small")
}

/// A graph of one node over inputs, its last operands constants.
fn graph_of(op: &Op, inputs: &[Tensor], constants: usize) -> Graph {
    let mut g = Graph::new(op.name());
    let mut operands: Vec<Value> = Vec::new();
    for (i, t) in inputs.iter().enumerate() {
        operands.push(if i + constants < inputs.len() {
            g.add_input(&format!("x{i}"), TensorType::of(t))
        } else {
            let payload = margay_ir::Payload::new(t.clone());
            let constant = margay_ir::ops::Const { payload };
            g.add(constant, &[], Origin::named("weight")).unwrap_or_else(|e| panic!("{e}"))
        });
    }
    let v = g.add(op.clone(), &operands, Origin::named("node")).unwrap_or_else(|e| panic!("{e}"));
    let outputs: Vec<Value> = g.values_of(v.node).collect();
    for (i, output) in outputs.into_iter().enumerate() {
        g.add_output(&format!("y{i}"), output);
    }
    g
}

/// Every operator by its cases; products and convolutions of constants, too.
pub(super) fn cases() -> impl Iterator<Item = Graph> {
    Op::cases().into_iter().flat_map(|(op, case)| {
        let inputs = case_inputs(&case);
        let constants = match &op {
            Op::Conv(_) | Op::MatMul(_) => &[0, 1][..],
            _ => &[0],
        };
        constants.iter().map(|&constants| graph_of(&op, &inputs, constants)).collect::<Vec<Graph>>()
    })
}

/// Operators in the first other type that they take.
fn cases_in_other_types() -> impl Iterator<Item = Graph> {
    Op::cases().into_iter().filter_map(|(op, case)| {
        let (_, case) = in_other_types(&op, &case).into_iter().next()?;
        Some(graph_of(&op, &case_inputs(&case), 0))
    })
}

/// Small networks with all that a text can say: symbols, guards, stored and derived constants, origins with blanks.
pub(super) const NETWORKS: [&str; 3] = [
    "graph @ffn(%x: f32[N, 64]) -> (y: f32[N, 64]) {
  %0 = const #w : f32[64, 64] stored i8(axis = 1)  // fc.weight
  %1 = matmul %x, %0 : f32[N, 64]  // fc
  %2 = const random(7, 1, uniform, 0.25) : f32[64]
  %3 = add %1, %2 : f32[N, 64]  // bias
  %4 = gelu %3 : f32[N, 64]  // act
  %5 = add %4, %x : f32[N, 64]  // \"a name\\n with a line\"
  return %5
}
",
    "graph @gather(%i: i64[3], %x: f32[M, N]) -> (a: f32[3, 64], b: f32[N, M], c: f32[M, 2*N]) {
  %0 = const #t : f32[16, 64] stored u8(axis = 0, zero points)
  %1 = gather %0, %i {axis = 0} : f32[3, 64]  // rows
  %2 = transpose %x {perm = [1, 0]} : f32[N, M]
  %3 = concat %x, %x {axis = 1} : f32[M, 2*N]
  return %1, %2, %3
}
",
    "graph @image(%x: f32[2, 3, 8, 8]) -> (y: f32[2, 6]) {
  %0 = const #k1 : f32[4, 3, 3, 3]
  %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[2, 4, 8, 8]  // conv1
  %2 = silu %1 : f32[2, 4, 8, 8]
  %3 = const lowrank.left(#k2, k = 2) : f32[6, 4, 3, 3]  // conv2.weight/left
  %4 = conv %2, %3 {strides = [2, 2], pads_before = [1, 1], pads_after = [1, 1]} : f32[2, 6, 4, 4]
  %5 = reduce %4 {kind = mean, axes = [2, 3]} : f32[2, 6]
  %6 = softmax %5 {axis = 1} : f32[2, 6]
  return %6
}
",
];

/// Texts of the cases of all operators, and of small networks.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let cases = cases().chain(cases_in_other_types()).map(|g| g.to_string().into_bytes());
    distinct(NETWORKS.map(|text| text.as_bytes().to_vec()).into_iter().chain(cases))
}

pub(super) fn change(text: &[u8], draw: &mut Draw) -> Vec<u8> {
    let dtypes = DType::ALL.map(DType::name);
    let list = if draw.chance(4) { &dtypes[..] } else { Op::ALL };
    words::change(text, draw, list)
}
