//! `LSTM`, `GRU` and `RNN`: loops over time.
//!
//! What the inputs contribute to the gates is one product for all times, before the loop; the body of the loop adds the
//! state's contribution. Both directions are loops of their own, the second one reads and writes times backwards.
//! Behind the end of a shorter sequence the state stays and the output is zero.

use margay_ir::ops::{
    Abs, Add, Concat, Const, Exp, Gather, Loop, MatMul, Max, Min, Relu, Reshape, Select, Sigmoid, Slice,
    Softplus, Tanh, Transpose,
};
use margay_ir::{AddError, Builder, Graph, Op, Payload, Region, TensorType, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::shapes::broadcast_to;
use super::slices::slice_axes;

/// `LSTM`.
pub(super) fn lstm(cx: &mut Importer, call: &Call) -> Imported {
    recurrent(cx, call, Cell::Lstm { coupled: call.flag("input_forget", false)? })
}

/// `GRU`.
pub(super) fn gru(cx: &mut Importer, call: &Call) -> Imported {
    recurrent(cx, call, Cell::Gru { reset_after: call.flag("linear_before_reset", false)? })
}

/// `RNN`.
pub(super) fn rnn(cx: &mut Importer, call: &Call) -> Imported {
    recurrent(cx, call, Cell::Plain)
}

/// The kind of a cell.
#[derive(Clone, Copy, PartialEq)]
enum Cell {
    /// Gates input, output, forget, cell; forget is 1 - input where they are coupled.
    Lstm {
        coupled: bool,
    },
    /// Gates update, reset, hidden; the reset may come after the product with the state.
    Gru {
        reset_after: bool,
    },
    Plain,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Lstm { .. } => 4,
            Cell::Gru { .. } => 3,
            Cell::Plain => 1,
        }
    }

    fn default_activations(self) -> &'static [&'static str] {
        match self {
            Cell::Lstm { .. } => &["Sigmoid", "Tanh", "Tanh"],
            Cell::Gru { .. } => &["Sigmoid", "Tanh"],
            Cell::Plain => &["Tanh"],
        }
    }

    /// Values handed from one time to the next.
    fn states(self) -> usize {
        if matches!(self, Cell::Lstm { .. }) { 2 } else { 1 }
    }
}

/// A function of the gates, with its parameters.
#[derive(Clone, Copy, PartialEq)]
enum Activation {
    Affine(f64, f64),
    Elu(f64),
    HardSigmoid(f64, f64),
    LeakyRelu(f64),
    Relu,
    ScaledTanh(f64, f64),
    Sigmoid,
    Softplus,
    Softsign,
    Tanh,
    ThresholdedRelu(f64),
}

impl Activation {
    /// The function of a name, which takes its parameters from the lists where they have some left.
    fn named(
        name: &str,
        alpha: &mut dyn Iterator<Item = f64>,
        beta: &mut dyn Iterator<Item = f64>,
    ) -> Option<Activation> {
        let mut a = |default: f64| alpha.next().unwrap_or(default);
        let mut b = |default: f64| beta.next().unwrap_or(default);
        Some(match name.to_ascii_lowercase().as_str() {
            "affine" => Activation::Affine(a(1.0), b(0.0)),
            "elu" => Activation::Elu(a(1.0)),
            "hardsigmoid" => Activation::HardSigmoid(a(0.2), b(0.5)),
            "leakyrelu" => Activation::LeakyRelu(a(0.01)),
            "relu" => Activation::Relu,
            "scaledtanh" => Activation::ScaledTanh(a(1.0), b(1.0)),
            "sigmoid" => Activation::Sigmoid,
            "softplus" => Activation::Softplus,
            "softsign" => Activation::Softsign,
            "tanh" => Activation::Tanh,
            "thresholdedrelu" => Activation::ThresholdedRelu(a(1.0)),
            _ => return None,
        })
    }

    fn apply(self, b: &mut Builder, x: Value) -> Result<Value, AddError> {
        match self {
            Activation::Affine(alpha, beta) => {
                let scaled = b.scale(x, alpha)?;
                b.offset(scaled, beta)
            }
            Activation::Elu(alpha) => {
                // Of negative x only, so that nothing overflows.
                let below = b.at_most(x, 0.0)?;
                let power = b.op(Exp, &[below])?;
                let less_one = b.offset(power, -1.0)?;
                let negative = b.scale(less_one, alpha)?;
                let positive = b.at_least(x, 0.0)?;
                b.add(positive, negative)
            }
            Activation::HardSigmoid(alpha, beta) => {
                let scaled = b.scale(x, alpha)?;
                let shifted = b.offset(scaled, beta)?;
                let low = b.at_least(shifted, 0.0)?;
                b.at_most(low, 1.0)
            }
            Activation::LeakyRelu(alpha) => {
                let positive = b.at_least(x, 0.0)?;
                let below = b.at_most(x, 0.0)?;
                let negative = b.scale(below, alpha)?;
                b.add(positive, negative)
            }
            Activation::Relu => b.op(Relu, &[x]),
            Activation::ScaledTanh(alpha, beta) => {
                let inner = b.scale(x, beta)?;
                let tanh = b.op(Tanh, &[inner])?;
                b.scale(tanh, alpha)
            }
            Activation::Sigmoid => b.op(Sigmoid, &[x]),
            Activation::Softplus => b.op(Softplus, &[x]),
            Activation::Softsign => {
                let size = b.op(Abs, &[x])?;
                let divisor = b.offset(size, 1.0)?;
                b.div(x, divisor)
            }
            Activation::Tanh => b.op(Tanh, &[x]),
            Activation::ThresholdedRelu(alpha) => {
                let threshold = b.number(x, alpha)?;
                let above = b.less(threshold, x)?;
                b.where_or(above, x, 0.0)
            }
        }
    }
}

/// What the attributes say.
struct Settings {
    cell: Cell,
    /// One list for every direction.
    activations: Vec<Vec<Activation>>,
    backwards: Vec<bool>,
    clip: Option<f64>,
    /// The batch comes before the time.
    batch_first: bool,
}

impl Settings {
    fn of(call: &Call, cell: Cell) -> Result<Settings, Refusal> {
        let backwards = match call.text("direction", "forward")? {
            "forward" => vec![false],
            "reverse" => vec![true],
            "bidirectional" => vec![false, true],
            other => return Err(Refusal::Invalid(format!("`{other}` is no direction"))),
        };
        let floats = |name| Ok::<_, Refusal>(call.floats(name)?.unwrap_or_default().to_vec());
        let (alpha, beta) = (floats("activation_alpha")?, floats("activation_beta")?);
        let mut alpha = alpha.into_iter().map(f64::from);
        let mut beta = beta.into_iter().map(f64::from);
        let names: Vec<&str> = match call.texts("activations")? {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => cell.default_activations().repeat(backwards.len()),
        };
        let each = cell.default_activations().len();
        if names.len() != each * backwards.len() {
            let (expected, found) = (each * backwards.len(), names.len());
            return Err(Refusal::Invalid(format!("expected {expected} activations, found {found}")));
        }
        let all: Vec<Activation> = names
            .iter()
            .map(|name| {
                let known = Activation::named(name, &mut alpha, &mut beta);
                known.ok_or_else(|| Refusal::Unsupported(format!("activation `{name}` is not supported")))
            })
            .collect::<Result<_, _>>()?;
        let clip = call.optional_float("clip")?;
        let batch_first = match call.int("layout", 0)? {
            0 => false,
            1 => true,
            other => return Err(Refusal::Invalid(format!("expected layout 0 or 1, found {other}"))),
        };
        let activations = all.chunks(each).map(<[Activation]>::to_vec).collect();
        Ok(Settings { cell, activations, backwards, clip, batch_first })
    }
}

fn recurrent(cx: &mut Importer, call: &Call, cell: Cell) -> Imported {
    let settings = Settings::of(call, cell)?;
    let (x, w, r) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (bias, lengths) = (call.optional(3), call.optional(4));
    let lstm = cell.states() == 2;
    let mut initial = vec![call.optional(5)];
    let peepholes = if lstm {
        initial.push(call.optional(6));
        call.optional(7)
    } else {
        None
    };
    for (at, v, ndim) in [(0, x, 3), (1, w, 3), (2, r, 3)] {
        if cx.ty(v).ndim() != ndim {
            return Err(Refusal::Invalid(format!(
                "expected input {at} with {ndim} axes, found {}",
                cx.ty(v)
            )));
        }
    }
    let hidden = cx.ty(r).shape[2].clone();
    if let Some(declared) = call.optional_int("hidden_size")?
        && hidden.as_const().is_some_and(|h| h != declared)
    {
        return Err(Refusal::Invalid(format!("expected a hidden size of {declared}, found {hidden}")));
    }
    // Time first from here on.
    let first = |cx: &mut Importer, v: Value| match settings.batch_first {
        true => cx.add(Transpose { perm: vec![1, 0, 2] }, &[v]),
        false => Ok(v),
    };
    let x = first(cx, x)?;
    let initial: Vec<Option<Value>> =
        initial.into_iter().map(|v| v.map(|v| first(cx, v)).transpose()).collect::<Result<_, _>>()?;
    let (mut outputs, mut finals) = (Vec::new(), vec![Vec::new(); cell.states()]);
    for d in 0..settings.backwards.len() {
        let part = |cx: &mut Importer, v: Value| direction(cx, v, d);
        let weights = Weights {
            w: part(cx, w)?,
            r: part(cx, r)?,
            bias: bias.map(|v| part(cx, v)).transpose()?,
            peepholes: peepholes.map(|v| part(cx, v)).transpose()?,
        };
        let mut states = Vec::new();
        for given in &initial {
            states.push(match given {
                Some(v) => part(cx, *v)?,
                None => {
                    let zero = cx.number(x, 0.0)?;
                    let shape = vec![cx.ty(x).shape[1].clone(), hidden.clone()];
                    broadcast_to(cx, zero, shape)?
                }
            });
        }
        let (y, last) = one_direction(cx, &settings, d, x, &weights, lengths, &states)?;
        // A new axis for the direction.
        let mut shape = cx.ty(y).shape.clone();
        shape.insert(1, Dim::from(1usize));
        outputs.push(cx.shaped(y, shape)?);
        for (all, v) in finals.iter_mut().zip(last) {
            let mut shape = cx.ty(v).shape.clone();
            shape.insert(0, Dim::from(1usize));
            all.push(cx.shaped(v, shape)?);
        }
    }
    let y = joined(cx, outputs, 1)?;
    let y = if settings.batch_first { cx.add(Transpose { perm: vec![2, 0, 1, 3] }, &[y])? } else { y };
    let mut results = vec![y];
    for all in finals {
        let v = joined(cx, all, 0)?;
        results.push(first(cx, v)?);
    }
    Ok(results)
}

fn joined(cx: &mut Importer, parts: Vec<Value>, axis: usize) -> Result<Value, Refusal> {
    match parts.as_slice() {
        [only] => Ok(*only),
        all => cx.add(Concat { axis }, all),
    }
}

/// The part of one direction, along the first axis. Of a constant it is a constant.
fn direction(cx: &mut Importer, v: Value, d: usize) -> Result<Value, Refusal> {
    let origin = cx.graph.node(v.node).origin.clone();
    let constant = cx.graph.constant(v).map(|p| p.tensor().clone());
    if let Some(tensor) = constant {
        let wrong = || Refusal::Invalid(format!("expected weights of direction {d}, found none"));
        let (count, rest) = tensor.shape().split_first().ok_or_else(wrong)?;
        let size = rest.iter().product::<usize>() * tensor.dtype().bytes();
        let bytes = tensor.bytes().get(d * size..(d + 1) * size).filter(|_| d < *count).ok_or_else(wrong)?;
        let part = Tensor::from_bytes(tensor.dtype(), rest, bytes);
        return cx.leaf(part.map_err(|e| Refusal::Invalid(e.to_string()))?, origin);
    }
    let shape = cx.ty(v).shape.clone();
    let mut op =
        Slice { starts: vec![Dim::default(); shape.len()], ends: shape.clone(), steps: vec![1; shape.len()] };
    (op.starts[0], op.ends[0]) = (Dim::from(d), Dim::from(d + 1));
    let part = cx.add(op, &[v])?;
    cx.shaped(part, shape[1..].to_vec())
}

/// Weights of one direction: `w` is `[gates H, I]`, `r` is `[gates H, H]`, `bias` `[2 gates H]`, `peepholes` `[3 H]`.
struct Weights {
    w: Value,
    r: Value,
    bias: Option<Value>,
    peepholes: Option<Value>,
}

/// The outputs of all times, `[T, B, H]`, and the last states, `[B, H]` each.
fn one_direction(
    cx: &mut Importer,
    settings: &Settings,
    d: usize,
    x: Value,
    weights: &Weights,
    lengths: Option<Value>,
    states: &[Value],
) -> Result<(Value, Vec<Value>), Refusal> {
    let gates = settings.cell.gates();
    let hidden = cx.ty(weights.r).shape[1].clone();
    let width = &hidden * &Dim::from(gates);
    let times = cx.ty(x).shape[0].clone();
    // What the inputs contribute, with the biases that do not depend on the state.
    let columns = transposed(cx, weights.w)?;
    let mut inputs = cx.add(MatMul, &[x, columns])?;
    let mut state_bias = None;
    if let Some(bias) = weights.bias {
        let own = slice(cx, bias, &Dim::default(), &width)?;
        let of_state = slice(cx, bias, &width, &(&width + &width))?;
        inputs = cx.add(Add, &[inputs, own])?;
        match settings.cell {
            Cell::Gru { reset_after: true } => state_bias = Some(of_state),
            _ => inputs = cx.add(Add, &[inputs, of_state])?,
        }
    }
    let recurrent = transposed(cx, weights.r)?;
    let mut body = Body::new(states, cx);
    let number = body.inputs[0];
    let contributions = body.read(cx, inputs);
    let r = body.read(cx, recurrent);
    let state_bias = state_bias.map(|v| body.read(cx, v));
    let peepholes = weights.peepholes.map(|v| body.read(cx, v));
    let lengths = lengths.map(|v| body.read(cx, v));
    let total = match (settings.backwards[d], times.as_const()) {
        (false, _) => None,
        (true, Some(_)) => None,
        (true, None) => {
            let count = cx.dim(times.clone())?;
            Some(body.read(cx, count))
        }
    };
    let dtype = body.graph.ty(contributions).dtype;
    let current: Vec<Value> = body.inputs[1..=states.len()].to_vec();
    let mut b = Builder::new(&mut body.graph, cx.origin.clone());
    let at = match (settings.backwards[d], times.as_const(), total) {
        (false, ..) => number,
        (true, Some(count), _) => {
            let last = b.scalar(DType::I64, (count - 1) as f64)?;
            b.sub(last, number)?
        }
        (true, None, total) => {
            let total = total.unwrap_or(number);
            let last = b.offset(total, -1.0)?;
            b.sub(last, number)?
        }
    };
    let now = b.op(Gather { axis: 0 }, &[contributions, at])?;
    let step = Step {
        activations: &settings.activations[d],
        clip: settings.clip,
        hidden: &hidden,
        now,
        r,
        state_bias,
        peepholes,
    };
    let mut next = match settings.cell {
        Cell::Lstm { coupled } => step.lstm(&mut b, current[0], current[1], coupled)?,
        Cell::Gru { reset_after } => vec![step.gru(&mut b, current[0], reset_after)?],
        Cell::Plain => vec![step.plain(&mut b, current[0])?],
    };
    let mut row = next[0];
    if let Some(lengths) = lengths {
        let lengths = b.cast(lengths, DType::I64)?;
        let active = b.less(at, lengths)?;
        let shape = vec![b.ty(active).shape[0].clone(), Dim::from(1usize)];
        let active = b.op(Reshape { shape }, &[active])?;
        row = b.where_or(active, row, 0.0)?;
        for (new, old) in next.iter_mut().zip(&current) {
            *new = b.op(Select, &[active, *new, *old])?;
        }
    }
    debug_assert_eq!(b.ty(row).dtype, dtype);
    let names = ["h", "c"];
    for (v, name) in next.iter().zip(names) {
        body.graph.add_output(name, *v);
    }
    body.graph.add_output("y", row);
    let trips = cx.dim(times.clone())?;
    let op = Loop { body: Region::new(body.graph), max: times, carried: states.len(), condition: false };
    let operands: Vec<Value> =
        std::iter::once(trips).chain(states.iter().copied()).chain(body.operands).collect();
    let first = cx.add_all(op, &operands)?;
    let mut y = first[states.len()];
    if settings.backwards[d] {
        y = flipped(cx, y)?;
    }
    Ok((y, first[..states.len()].to_vec()))
}

/// A value with its last two axes exchanged; of a constant, a constant.
fn transposed(cx: &mut Importer, v: Value) -> Result<Value, Refusal> {
    let op = Transpose { perm: vec![1, 0] };
    let origin = cx.graph.node(v.node).origin.clone();
    let constant = cx.graph.constant(v).map(|p| p.tensor().clone());
    match constant.and_then(|t| Op::from(op.clone()).eval(&[&t]).ok()?.pop()) {
        Some(t) => cx.leaf(t, origin),
        None => cx.add(op, &[v]),
    }
}

/// Elements `from..to` of a value of one axis.
fn slice(cx: &mut Importer, v: Value, from: &Dim, to: &Dim) -> Result<Value, Refusal> {
    slice_axes(cx, v, &[0], std::slice::from_ref(from), std::slice::from_ref(to), &[1])
}

/// Backwards along the first axis.
fn flipped(cx: &mut Importer, v: Value) -> Result<Value, Refusal> {
    let last = &cx.ty(v).shape[0] - &Dim::from(1usize);
    slice_axes(cx, v, &[0], &[last], &[Dim::from(-1i64)], &[-1])
}

/// The body of a loop in the making.
struct Body {
    graph: Graph,
    /// The number of the repetition and the states.
    inputs: Vec<Value>,
    /// What it reads from outside.
    operands: Vec<Value>,
}

impl Body {
    fn new(states: &[Value], cx: &Importer) -> Body {
        let mut graph = Graph::new("step");
        let mut inputs = vec![graph.add_input("i", TensorType::known(DType::I64, &[]))];
        for (v, name) in states.iter().zip(["h", "c"]) {
            inputs.push(graph.add_input(name, cx.ty(*v).clone()));
        }
        Body { graph, inputs, operands: Vec::new() }
    }

    /// A value of the graph around it: a constant is repeated inside, anything else is an operand.
    fn read(&mut self, cx: &Importer, outer: Value) -> Value {
        if let Some(payload) = cx.graph.constant(outer) {
            let origin = cx.graph.node(outer.node).origin.clone();
            let payload: Payload = payload.clone();
            if let Ok(v) = self.graph.add(Const { payload }, &[], origin) {
                return v;
            }
        }
        self.operands.push(outer);
        let name = format!("x{}", self.operands.len());
        self.graph.add_input(&name, cx.ty(outer).clone())
    }
}

/// One time: what there is to compute with.
struct Step<'a> {
    activations: &'a [Activation],
    clip: Option<f64>,
    hidden: &'a Dim,
    /// `[B, gates H]`: the contribution of the inputs.
    now: Value,
    /// `[H, gates H]`.
    r: Value,
    /// `[gates H]`, of the state where the reset comes after.
    state_bias: Option<Value>,
    /// `[3 H]`: input, output, forget.
    peepholes: Option<Value>,
}

impl Step<'_> {
    /// Part `at` of `[.., parts H]` along the last axis.
    fn part(&self, b: &mut Builder, v: Value, at: usize) -> Result<Value, AddError> {
        let shape = b.ty(v).shape.clone();
        let n = shape.len();
        let mut op = Slice { starts: vec![Dim::default(); n], ends: shape, steps: vec![1; n] };
        op.starts[n - 1] = self.hidden * &Dim::from(at);
        op.ends[n - 1] = self.hidden * &Dim::from(at + 1);
        b.op(op, &[v])
    }

    fn activate(&self, b: &mut Builder, which: usize, x: Value) -> Result<Value, AddError> {
        let x = match self.clip {
            Some(clip) => {
                let (low, high) = (b.number(x, -clip)?, b.number(x, clip)?);
                let x = b.op(Max, &[x, low])?;
                b.op(Min, &[x, high])?
            }
            None => x,
        };
        self.activations[which].apply(b, x)
    }

    /// A gate with what the cell contributes through a peephole.
    fn peep(&self, b: &mut Builder, gate: Value, cell: Value, at: usize) -> Result<Value, AddError> {
        let Some(peepholes) = self.peepholes else { return Ok(gate) };
        let weight = self.part(b, peepholes, at)?;
        let more = b.mul(weight, cell)?;
        b.add(gate, more)
    }

    fn lstm(&self, b: &mut Builder, h: Value, c: Value, coupled: bool) -> Result<Vec<Value>, AddError> {
        let product = b.op(MatMul, &[h, self.r])?;
        let all = b.add(self.now, product)?;
        let parts = (0..4).map(|at| self.part(b, all, at)).collect::<Result<Vec<_>, _>>()?;
        let input = self.peep(b, parts[0], c, 0)?;
        let input = self.activate(b, 0, input)?;
        let forget = if coupled {
            let minus = b.neg(input)?;
            b.offset(minus, 1.0)?
        } else {
            let forget = self.peep(b, parts[2], c, 2)?;
            self.activate(b, 0, forget)?
        };
        let candidate = self.activate(b, 1, parts[3])?;
        let kept = b.mul(forget, c)?;
        let added = b.mul(input, candidate)?;
        let cell = b.add(kept, added)?;
        let output = self.peep(b, parts[1], cell, 1)?;
        let output = self.activate(b, 0, output)?;
        let shown = self.activations[2].apply(b, cell)?;
        Ok(vec![b.mul(output, shown)?, cell])
    }

    fn gru(&self, b: &mut Builder, h: Value, reset_after: bool) -> Result<Value, AddError> {
        let mut product = b.op(MatMul, &[h, self.r])?;
        if let Some(bias) = self.state_bias {
            product = b.add(product, bias)?;
        }
        let gate = |b: &mut Builder, at: usize| {
            let (x, y) = (self.part(b, self.now, at)?, self.part(b, product, at)?);
            b.add(x, y)
        };
        let update = gate(b, 0)?;
        let update = self.activate(b, 0, update)?;
        let reset = gate(b, 1)?;
        let reset = self.activate(b, 0, reset)?;
        let of_state = if reset_after {
            let of_state = self.part(b, product, 2)?;
            b.mul(reset, of_state)?
        } else {
            let kept = b.mul(reset, h)?;
            let r = self.part(b, self.r, 2)?;
            b.op(MatMul, &[kept, r])?
        };
        let hidden = self.part(b, self.now, 2)?;
        let hidden = b.add(hidden, of_state)?;
        let hidden = self.activate(b, 1, hidden)?;
        // (1 - z) h' + z h.
        let difference = b.sub(h, hidden)?;
        let change = b.mul(update, difference)?;
        b.add(hidden, change)
    }

    fn plain(&self, b: &mut Builder, h: Value) -> Result<Value, AddError> {
        let product = b.op(MatMul, &[h, self.r])?;
        let all = b.add(self.now, product)?;
        self.activate(b, 0, all)
    }
}
