//! `LSTM`, `GRU` and `RNN`: recurrences.
//!
//! What the inputs contribute to the gates is one product for all times, before the recurrence. Both directions are
//! recurrences of their own.

use margay_ir::Value;
use margay_ir::ops::recurrence::{Activation, Cell, Operands};
use margay_ir::ops::{Add, Bits, Concat, MatMul, Recurrence, Slice, Transpose};
use margay_tensor::{DType, Dim, Tensor};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::quantized::{dequantized_columns, dynamic_product};
use super::shapes::broadcast_to;
use super::slices::slice_axes;

/// `LSTM`.
pub(super) fn lstm(cx: &mut Importer, call: &Call) -> Imported {
    of_numbers(cx, call, lstm_cell(call)?)
}

/// `GRU`.
pub(super) fn gru(cx: &mut Importer, call: &Call) -> Imported {
    let after = call.flag("linear_before_reset", false)?;
    of_numbers(cx, call, if after { Cell::GruResetAfter } else { Cell::Gru })
}

/// `RNN`.
pub(super) fn rnn(cx: &mut Importer, call: &Call) -> Imported {
    of_numbers(cx, call, Cell::Rnn)
}

/// `DynamicQuantizeLSTM`: weights are integers with the terms first, and what they are multiplied with is quantized by
/// its range: the inputs of all times at once, the state at each time.
pub(super) fn dynamic_quantize_lstm(cx: &mut Importer, call: &Call) -> Imported {
    let quantization = |at: usize| Ok::<_, Refusal>(Some([call.input(at)?, call.input(at + 1)?]));
    let matrices = [
        Matrix { columns: call.input(1)?, quantization: quantization(8)? },
        Matrix { columns: call.input(2)?, quantization: quantization(10)? },
    ];
    recurrent(cx, call, Settings::of(call, lstm_cell(call)?)?, matrices)
}

fn lstm_cell(call: &Call) -> Result<Cell, Refusal> {
    Ok(if call.flag("input_forget", false)? { Cell::CoupledLstm } else { Cell::Lstm })
}

/// `LSTM`, `GRU` and `RNN`, whose weights are transposed.
fn of_numbers(cx: &mut Importer, call: &Call, cell: Cell) -> Imported {
    let settings = Settings::of(call, cell)?;
    let mut columns = |at: usize| {
        let v = call.input(at)?;
        match cx.ty(v).ndim() {
            3 => Ok(Matrix { columns: cx.turned(v, &[0, 2, 1])?, quantization: None }),
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

    /// What the integers stand for.
    fn numbers(self, cx: &mut Importer) -> Result<Value, Refusal> {
        match self.quantization {
            Some([scale, zero]) => dequantized_columns(cx, self.columns, scale, zero),
            None => Ok(self.columns),
        }
    }

    /// x times this.
    fn product(self, cx: &mut Importer, x: Value) -> Result<Value, Refusal> {
        match self.quantization {
            Some([scale, zero]) => dynamic_product(cx, x, self.columns, scale, Some(zero), None),
            None => cx.add(MatMul, &[x, self.columns]),
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
        let mut named = |name: &String| {
            let known = Activation::named(name, &mut alpha, &mut beta);
            known.ok_or_else(|| Refusal::Unsupported(format!("activation `{name}` is not supported")))
        };
        let each = cell.default_activations().len();
        let all: Vec<Activation> = match call.texts("activations")? {
            Some(names) => names.iter().map(&mut named).collect::<Result<_, _>>()?,
            None => cell.default_activations().repeat(backwards.len()),
        };
        if all.len() != each * backwards.len() {
            let (expected, found) = (each * backwards.len(), all.len());
            return Err(Refusal::Invalid(format!("expected {expected} activations, found {found}")));
        }
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
    let part = if shape[0].is(1) && d == 0 { v } else { cx.add(op, &[v])? };
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
    let cell = settings.cell;
    let width = &cx.ty(weights.r.columns).shape[0] * &Dim::from(cell.gates());
    // What the inputs contribute, with the biases that do not depend on the state.
    let mut inputs = weights.w.product(cx, x)?;
    let mut state_bias = None;
    if let Some(bias) = weights.bias {
        let mut own = slice(cx, bias, &Dim::default(), &width)?;
        let of_state = slice(cx, bias, &width, &(&width + &width))?;
        match cell {
            Cell::GruResetAfter => state_bias = Some(of_state),
            _ => own = cx.add(Add, &[own, of_state])?,
        }
        inputs = cx.add(Add, &[inputs, own])?;
    }
    if cell == Cell::GruResetAfter && state_bias.is_none() {
        let zero = cx.number(inputs, 0.0)?;
        state_bias = Some(broadcast_to(cx, zero, vec![width])?);
    }
    // States of 16 bits are f32 from one time to the next.
    let dtype = cx.ty(inputs).dtype;
    let r = weights.r.numbers(cx)?;
    let mut wide = |v: Value| match dtype {
        DType::F16 | DType::BF16 => cx.cast(v, DType::F32),
        _ => Ok(v),
    };
    let operands = Operands {
        x: wide(inputs)?,
        r: wide(r)?,
        states: states.iter().map(|v| wide(*v)).collect::<Result<_, _>>()?,
        bias: state_bias.map(&mut wide).transpose()?,
        peepholes: weights.peepholes.map(&mut wide).transpose()?,
        lengths,
    };
    let op = Recurrence {
        cell,
        activations: settings.activations[d].clone(),
        clip: Bits::new(settings.clip.unwrap_or(f64::INFINITY)),
        reverse: settings.backwards[d],
        peepholes: weights.peepholes.is_some(),
        lengths: lengths.is_some(),
        quantized: weights.r.quantization.is_some(),
    };
    let all = cx.add_all(op, &operands.list())?;
    let all = all.into_iter().map(|v| cx.cast(v, dtype)).collect::<Result<Vec<_>, _>>()?;
    Ok((all[0], all[1..].to_vec()))
}

/// Elements `from..to` of a value of one axis.
fn slice(cx: &mut Importer, v: Value, from: &Dim, to: &Dim) -> Result<Value, Refusal> {
    slice_axes(cx, v, &[0], std::slice::from_ref(from), std::slice::from_ref(to), &[1])
}
