//! Training steps of models: forward, a loss, and its derivatives by every weight.

use margay_driver::Model;
use margay_ir::ops::{
    Add, Attention, Bits, Concat, Const, Gather, Gelu, LayerNorm, MatMul, Mul, Reduce, ReduceKind, Reshape,
    Transpose,
};
use margay_ir::{Cx, Graph, Op, Origin, Pass, PassError, Patch, Payload, TensorType, Value};
use margay_passes::{BindDims, Differentiate};
use margay_tensor::{DType, Dim, Tensor};

/// A step, and what is to be fed to it besides weights.
pub(crate) struct Step {
    /// Outputs `loss` and `gradient.NAME`.
    pub(crate) graph: Graph,
    /// The bound of integer inputs.
    pub(crate) tokens: usize,
}

/// A graph under construction whose weights are inputs.
struct Builder {
    g: Graph,
    weights: Vec<String>,
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&d| Dim::from(d)).collect()
}

impl Builder {
    fn new(name: &str) -> Builder {
        Builder { g: Graph::new(name), weights: Vec::new() }
    }

    fn op(&mut self, op: impl Into<Op>, inputs: &[Value], name: &str) -> Value {
        self.g.add(op, inputs, Origin::named(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// An input by which the loss is derived.
    fn weight(&mut self, name: &str, shape: &[usize]) -> Value {
        self.weights.push(name.into());
        self.g.add_input(name, TensorType::known(DType::F32, shape))
    }

    fn linear(&mut self, x: Value, name: &str, rows: usize, cols: usize) -> Value {
        let w = self.weight(&format!("{name}.weight"), &[rows, cols]);
        let b = self.weight(&format!("{name}.bias"), &[cols]);
        let y = self.op(MatMul, &[x, w], name);
        self.op(Add, &[y, b], &format!("{name}.add"))
    }

    fn norm(&mut self, x: Value, name: &str, width: usize) -> Value {
        let scale = self.weight(&format!("{name}.weight"), &[width]);
        let bias = self.weight(&format!("{name}.bias"), &[width]);
        let op = LayerNorm { axis: 2, epsilon: Bits::new(1e-12) };
        self.op(op, &[x, scale, bias], name)
    }

    /// The step whose loss is the mean of squares of a value.
    fn step(mut self, y: Value, tokens: usize) -> Result<Step, PassError> {
        let axes = (0..self.g.ty(y).ndim()).collect();
        let square = self.op(Mul, &[y, y], "square");
        let mean = Reduce { kind: ReduceKind::Mean, axes, keepdims: false };
        let loss = self.op(mean, &[square], "loss");
        self.g.add_output("loss", loss);
        Differentiate { output: "loss".into(), by: self.weights }.run(&mut self.g, &mut Cx::default())?;
        Ok(Step { graph: self.g, tokens })
    }
}

/// An encoder as BERT-base has it, without pooling: 768 wide, 12 heads, 3072 in between, 30522 tokens.
pub(crate) fn encoder(layers: usize, batch: usize, length: usize) -> Result<Step, PassError> {
    const WIDTH: usize = 768;
    const HEADS: usize = 12;
    const INNER: usize = 3072;
    const TOKENS: usize = 30_522;
    let mut b = Builder::new("encoder");
    let tokens = b.g.add_input("tokens", TensorType::known(DType::I64, &[batch, length]));
    let table = b.weight("words.weight", &[TOKENS, WIDTH]);
    let places = b.weight("places.weight", &[length, WIDTH]);
    let words = b.op(Gather { axis: 0 }, &[table, tokens], "words");
    let sum = b.op(Add, &[words, places], "places");
    let mut x = b.norm(sum, "norm", WIDTH);
    for layer in 0..layers {
        let name = |part: &str| format!("{layer}.{part}");
        let heads = |b: &mut Builder, part: &str| {
            let y = b.linear(x, &name(part), WIDTH, WIDTH);
            let split = Reshape { shape: dims(&[batch, length, HEADS, WIDTH / HEADS]) };
            let y = b.op(split, &[y], &name(part));
            b.op(Transpose { perm: vec![0, 2, 1, 3] }, &[y], &name(part))
        };
        let (q, k, v) = (heads(&mut b, "query"), heads(&mut b, "key"), heads(&mut b, "value"));
        let scale = 1.0 / ((WIDTH / HEADS) as f64).sqrt();
        let y = b.op(Attention::new(scale), &[q, k, v], &name("attention"));
        let y = b.op(Transpose { perm: vec![0, 2, 1, 3] }, &[y], &name("joined"));
        let y = b.op(Reshape { shape: dims(&[batch, length, WIDTH]) }, &[y], &name("joined"));
        let y = b.linear(y, &name("out"), WIDTH, WIDTH);
        let y = b.op(Add, &[y, x], &name("residual1"));
        x = b.norm(y, &name("norm1"), WIDTH);
        let y = b.linear(x, &name("up"), WIDTH, INNER);
        let y = b.op(Gelu { tanh: false }, &[y], &name("gelu"));
        let y = b.linear(y, &name("down"), INNER, WIDTH);
        let y = b.op(Add, &[y, x], &name("residual2"));
        x = b.norm(y, &name("norm2"), WIDTH);
    }
    b.step(x, TOKENS)
}

/// One linear layer, derived by its input too.
pub(crate) fn linear(width: usize, batch: usize) -> Result<Step, PassError> {
    let mut b = Builder::new("linear");
    let x = b.weight("x", &[batch, width]);
    let y = b.linear(x, "fc", width, width);
    b.step(y, 0)
}

/// The same width as a sum of two thin products with `rank` each, of which one factor is trained: (x [S₁|U₂]) [U₁; S₂],
/// as two products.
pub(crate) fn thin_linear(width: usize, batch: usize, rank: usize) -> Result<Step, PassError> {
    let mut b = Builder::new("thin-linear");
    let x = b.weight("x", &[batch, width]);
    let fixed = |b: &mut Builder, name: &str, shape: &[usize], stream: u64| {
        let payload = Payload::new(margay_testkit::normal(shape, 3, stream));
        b.op(Const { payload }, &[], name)
    };
    let s1 = b.weight("S1", &[width, rank]);
    let u2 = fixed(&mut b, "U2", &[width, rank], 0);
    let u1 = fixed(&mut b, "U1", &[rank, width], 1);
    let s2 = b.weight("S2", &[rank, width]);
    let left = b.op(Concat { axis: 1 }, &[s1, u2], "left");
    let right = b.op(Concat { axis: 0 }, &[u1, s2], "right");
    let thin = b.op(MatMul, &[x, left], "left");
    let y = b.op(MatMul, &[thin, right], "right");
    let bias = b.weight("bias", &[width]);
    let y = b.op(Add, &[y, bias], "bias");
    b.step(y, 0)
}

/// A model whose constants of floats become inputs; all its extents are bound to `batch`.
pub(crate) fn model(source: &Model, batch: usize) -> Result<Step, PassError> {
    let mut g = source.graph.clone();
    let binding = g.symbols().into_iter().map(|s| (s, batch as i64)).collect();
    BindDims { binding }.run(&mut g, &mut Cx::default())?;
    let mut weights = Vec::new();
    for n in g.order() {
        let Op::Const(c) = g.op(n) else { continue };
        let tensor = c.payload.tensor();
        if tensor.dtype() != DType::F32 || tensor.shape().is_empty() {
            continue;
        }
        let (ty, name) = (TensorType::of(tensor), format!("w{}.{}", weights.len(), g.node(n).origin.name()));
        let input = g.add_input(&name, ty);
        let mut patch = Patch::new();
        patch.redirect(n.into(), input);
        g.apply(patch).unwrap_or_else(|e| panic!("{name}: {e}"));
        weights.push(name);
    }
    g.remove_dead();
    let y = g.outputs()[0].value;
    g.set_outputs(Vec::new());
    Builder { g, weights }.step(y, 0)
}

/// Inputs for a graph: small random numbers, and tokens below a bound.
pub(crate) fn inputs(step: &Step) -> Vec<(String, Tensor)> {
    let g = &step.graph;
    let input = |(stream, n): (usize, &margay_ir::NodeId)| {
        let (name, ty) = (g.node(*n).origin.name().to_string(), g.ty((*n).into()));
        let shape = ty.extents().unwrap_or_default();
        let values = margay_testkit::normal(&shape, 5, stream as u64);
        let values = values.to_vec::<f32>().unwrap_or_default();
        let tensor = if ty.dtype == DType::I64 {
            let token = |x: &f32| (x.abs() * 1e4) as i64 % step.tokens.max(1) as i64;
            Tensor::from_slice(&shape, &values.iter().map(token).collect::<Vec<_>>())
        } else {
            // Sums keep the size of their terms.
            let rows = if shape.len() > 1 { shape[0] } else { 1 };
            let scale = 1.0 / (rows as f32).sqrt();
            Tensor::from_slice(&shape, &values.iter().map(|x| x * scale).collect::<Vec<_>>())
        };
        (name, tensor.unwrap_or_else(|e| panic!("{e}")))
    };
    g.inputs().iter().enumerate().map(input).collect()
}
