//! `LSTM`, `GRU` and `RNN`: loops over time.
//!
//! What the inputs contribute to the gates is one product for all times, before the loop; the body of the loop adds the
//! state's contribution. Both directions are loops of their own, the second one reads and writes times backwards.
//! Behind the end of a shorter sequence the state stays and the output is zero.

mod activation;
mod step;

use margay_ir::ops::{Add, Concat, Const, Gather, Loop, MatMul, Reshape, Select, Slice, Transpose};
use margay_ir::{Builder, Graph, Op, Payload, Region, TensorType, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::quantized::dynamic_product;
use super::shapes::broadcast_to;
use super::slices::slice_axes;
use activation::Activation;
use step::Step;

/// `LSTM`.
pub(super) fn lstm(cx: &mut Importer, call: &Call) -> Imported {
    of_numbers(cx, call, Cell::Lstm { coupled: call.flag("input_forget", false)? })
}

/// `GRU`.
pub(super) fn gru(cx: &mut Importer, call: &Call) -> Imported {
    of_numbers(cx, call, Cell::Gru { reset_after: call.flag("linear_before_reset", false)? })
}

/// `RNN`.
pub(super) fn rnn(cx: &mut Importer, call: &Call) -> Imported {
    of_numbers(cx, call, Cell::Plain)
}

/// `DynamicQuantizeLSTM`: weights are integers with the terms first, and what they are multiplied with is quantized by
/// its range: the inputs of all times at once, the state at each time.
pub(super) fn dynamic_quantize_lstm(cx: &mut Importer, call: &Call) -> Imported {
    let quantization = |at: usize| Ok::<_, Refusal>(Some([call.input(at)?, call.input(at + 1)?]));
    let matrices = [
        Matrix { columns: call.input(1)?, quantization: quantization(8)? },
        Matrix { columns: call.input(2)?, quantization: quantization(10)? },
    ];
    let coupled = call.flag("input_forget", false)?;
    let cell = Cell::Lstm { coupled };
    recurrent(cx, call, Settings::of(call, cell)?, matrices)
}

/// `LSTM`, `GRU` and `RNN`, whose weights are transposed.
fn of_numbers(cx: &mut Importer, call: &Call, cell: Cell) -> Imported {
    let settings = Settings::of(call, cell)?;
    let mut columns = |at: usize| {
        let v = call.input(at)?;
        match cx.ty(v).ndim() {
            3 => Ok(Matrix { columns: transposed(cx, v)?, quantization: None }),
            _ => Err(Refusal::Invalid(format!("expected input {at} with 3 axes, found {}", cx.ty(v)))),
        }
    };
    let matrices = [columns(1)?, columns(2)?];
    recurrent(cx, call, settings, matrices)
}

/// A matrix of weights, `[terms, columns]`, behind an axis of directions until one is taken.
#[derive(Clone, Copy)]
struct Matrix {
    columns: Value,
    /// Scale and zero point of a matrix of integers: one for all, or one for each column.
    quantization: Option<[Value; 2]>,
}

impl Matrix {
    /// The same with other values.
    fn map<E>(self, mut f: impl FnMut(Value) -> Result<Value, E>) -> Result<Matrix, E> {
        let quantization = match self.quantization {
            Some([scale, zero]) => Some([f(scale)?, f(zero)?]),
            None => None,
        };
        Ok(Matrix { columns: f(self.columns)?, quantization })
    }

    /// x times this.
    fn product(self, cx: &mut Importer, x: Value) -> Result<Value, Refusal> {
        match self.quantization {
            Some([scale, zero]) => dynamic_product(cx, x, self.columns, scale, Some(zero), None),
            None => cx.add(MatMul, &[x, self.columns]),
        }
    }
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

fn recurrent(cx: &mut Importer, call: &Call, settings: Settings, [w, r]: [Matrix; 2]) -> Imported {
    let cell = settings.cell;
    let x = call.input(0)?;
    let (bias, lengths) = (call.optional(3), call.optional(4));
    let lstm = cell.states() == 2;
    let mut initial = vec![call.optional(5)];
    let peepholes = if lstm {
        initial.push(call.optional(6));
        call.optional(7)
    } else {
        None
    };
    let needed = [(0, x), (1, w.columns), (2, r.columns)].map(|(at, v)| (at, Some(v), 3));
    for (at, v, axes) in needed.into_iter().chain([(3, bias, 2), (7, peepholes, 2)]) {
        if let Some(ty) = v.map(|v| cx.ty(v)).filter(|ty| ty.ndim() != axes) {
            return Err(Refusal::Invalid(format!("expected input {at} with {axes} axes, found {ty}")));
        }
    }
    let hidden = cx.ty(r.columns).shape[1].clone();
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
            w: w.map(|v| part(cx, v))?,
            r: r.map(|v| part(cx, v))?,
            bias: bias.map(|v| part(cx, v)).transpose()?,
            peepholes: peepholes.map(|v| part(cx, v)).transpose()?,
        };
        let mut states = Vec::new();
        for given in &initial {
            states.push(match given {
                Some(v) => {
                    let own = part(cx, *v)?;
                    let shape = vec![cx.ty(x).shape[1].clone(), hidden.clone()];
                    alike(cx, own, shape)?
                }
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

/// A state with the extents of the inputs, which are assumed to be its own where nothing proves it.
fn alike(cx: &mut Importer, state: Value, shape: Vec<Dim>) -> Result<Value, Refusal> {
    let own = cx.ty(state).shape.clone();
    if own.len() != shape.len() {
        return Err(Refusal::Invalid(format!(
            "expected a state of {} axes, found {}",
            shape.len(),
            own.len()
        )));
    }
    for (own, extent) in own.iter().zip(&shape) {
        if (own - extent).as_const().is_some_and(|d| d != 0) {
            return Err(Refusal::Invalid(format!("a state of extent `{own}`, expected `{extent}`")));
        }
        cx.assume_equal(own, extent)?;
    }
    if own.as_slice() == shape { Ok(state) } else { cx.shaped(state, shape) }
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

/// Weights of one direction: `w` is `[I, gates H]`, `r` is `[H, gates H]`, `bias` `[2 gates H]`, `peepholes` `[3 H]`.
struct Weights {
    w: Matrix,
    r: Matrix,
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
    let hidden = cx.ty(weights.r.columns).shape[0].clone();
    let width = &hidden * &Dim::from(gates);
    let times = cx.ty(x).shape[0].clone();
    // What the inputs contribute, with the biases that do not depend on the state.
    let mut inputs = weights.w.product(cx, x)?;
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
    let mut body = Body::new(states, cx);
    let number = body.inputs[0];
    let contributions = body.read(cx, inputs);
    let r = weights.r.map(|v| Ok::<_, Refusal>(body.read(cx, v)))?;
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
    let product = body.within(cx, |cx| r.product(cx, current[0]))?;
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
        product,
        r: r.columns,
        state_bias,
        peepholes,
    };
    let mut next = match settings.cell {
        Cell::Lstm { coupled } => step.lstm(&mut b, current[1], coupled)?,
        Cell::Gru { reset_after } => vec![step.gru(&mut b, current[0], reset_after)?],
        Cell::Plain => vec![step.plain(&mut b)?],
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
    let op = Transpose { perm: vec![0, 2, 1] };
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

    /// What `f` makes with the graph of the body in place of that around it.
    fn within<'a, T>(
        &mut self,
        cx: &mut Importer<'a>,
        f: impl FnOnce(&mut Importer<'a>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        std::mem::swap(&mut self.graph, &mut cx.graph);
        let made = f(cx);
        std::mem::swap(&mut self.graph, &mut cx.graph);
        made
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
