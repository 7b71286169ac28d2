//! `LSTM`, `GRU` and `RNN`, written out step by step for sequences of known length.
//!
//! What the steps read of the sequence is one product for all of them; only what depends on the step before is left in
//! each.

use margay_ir::Value;
use margay_ir::ops::{Concat, MatMul, Relu, Sigmoid, Tanh};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::slices::slice_axes;

/// Longer sequences would make too large a graph.
const LONGEST: usize = 256;

/// Which of the three.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Lstm,
    Gru {
        /// The reset gate is applied to the product of the state, not to the state.
        after_product: bool,
    },
    Rnn,
}

impl Kind {
    fn gates(self) -> usize {
        match self {
            Kind::Lstm => 4,
            Kind::Gru { .. } => 3,
            Kind::Rnn => 1,
        }
    }

    fn activations(self) -> &'static [&'static str] {
        match self {
            Kind::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Kind::Gru { .. } => &["Sigmoid", "Tanh"],
            Kind::Rnn => &["Tanh"],
        }
    }
}

/// `LSTM`.
pub(super) fn lstm(cx: &mut Importer, call: &Call) -> Imported {
    recurrent(cx, call, Kind::Lstm)
}

/// `GRU`.
pub(super) fn gru(cx: &mut Importer, call: &Call) -> Imported {
    let after_product = call.flag("linear_before_reset", false)?;
    recurrent(cx, call, Kind::Gru { after_product })
}

/// `RNN`.
pub(super) fn rnn(cx: &mut Importer, call: &Call) -> Imported {
    recurrent(cx, call, Kind::Rnn)
}

/// One direction of a layer.
struct Direction {
    kind: Kind,
    hidden: usize,
    activations: Vec<String>,
    clip: Option<f64>,
    /// Of `[4 H, H]` and the like, turned.
    recurrence: Value,
    /// What each step reads of the sequence, `[T, B, gates · H]`.
    inputs: Value,
    /// The bias of the last gate of a GRU, where that is applied with the product.
    inner_bias: Option<Value>,
    /// Weights of the cell in the gates of an LSTM, `[3, H]`.
    peepholes: Option<Value>,
    /// Input and forget gate of an LSTM add up to 1.
    coupled: bool,
}

fn recurrent(cx: &mut Importer, call: &Call, kind: Kind) -> Imported {
    let (mut x, w, r) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (bias, lengths, first) = (call.optional(3), call.optional(4), call.optional(5));
    let (first_cell, peepholes) = match kind {
        Kind::Lstm => (call.optional(6), call.optional(7)),
        Kind::Gru { .. } | Kind::Rnn => (None, None),
    };
    let backwards = match call.text("direction", "forward")? {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => return Err(Refusal::Invalid(format!("`{other}` is no direction"))),
    };
    let batch_first = call.flag("layout", false)?;
    if cx.ty(x).ndim() != 3 || cx.ty(w).ndim() != 3 || cx.ty(r).ndim() != 3 {
        return Err(Refusal::Invalid(format!("a sequence {} for weights {}", cx.ty(x), cx.ty(w))));
    }
    if batch_first {
        x = cx.turned(x, &[1, 0, 2])?;
    }
    let hidden = cx.ty(r).shape[2].as_extent();
    let hidden =
        hidden.ok_or_else(|| Refusal::Unsupported("an open number of states is not supported".into()))?;
    if let Some(declared) = call.optional_int("hidden_size")?
        && declared != hidden as i64
    {
        return Err(Refusal::Invalid(format!("expected {declared} states, found {hidden}")));
    }
    let steps = cx.ty(x).shape[0].clone();
    let steps = steps.as_extent().filter(|&t| (1..=LONGEST).contains(&t)).ok_or_else(|| {
        let why = format!(
            "a sequence of `{steps}` elements is not supported, only 1 to {LONGEST} of a known number"
        );
        Refusal::Unsupported(why)
    })?;
    let names = match call.texts("activations")? {
        Some(list) => list.to_vec(),
        None => kind.activations().repeat(backwards.len()).into_iter().map(str::to_owned).collect(),
    };
    let each = kind.activations().len();
    if names.len() != each * backwards.len() {
        let (expected, found) = (each * backwards.len(), names.len());
        return Err(Refusal::Invalid(format!("expected {expected} activations, found {found}")));
    }
    let clip = call.optional_float("clip")?;
    let coupled = kind == Kind::Lstm && call.flag("input_forget", false)?;
    let batch = cx.ty(x).shape[1].clone();
    let (mut all, mut states, mut cells) = (Vec::new(), Vec::new(), Vec::new());
    for (d, &reverse) in backwards.iter().enumerate() {
        let of = |cx: &mut Importer, v: Value| {
            let part = slice_axes(cx, v, &[0], &[Dim::from(d)], &[Dim::from(d + 1)], &[1])?;
            let shape = cx.ty(part).shape[1..].to_vec();
            cx.shaped(part, shape)
        };
        let (w, r) = (of(cx, w)?, of(cx, r)?);
        let (w, recurrence) = (cx.turned(w, &[1, 0])?, cx.turned(r, &[1, 0])?);
        let mut inputs = cx.add(MatMul, &[x, w])?;
        let mut inner_bias = None;
        if let Some(bias) = bias {
            let bias = of(cx, bias)?;
            let width = kind.gates() * hidden;
            let own = part(cx, bias, 0, width)?;
            inputs = cx.plus(inputs, own)?;
            let mut state = part(cx, bias, width, 2 * width)?;
            if kind == (Kind::Gru { after_product: true }) {
                inner_bias = Some(part(cx, state, 2 * hidden, width)?);
                let gates = part(cx, state, 0, 2 * hidden)?;
                let zero = cx.number(bias, 0.0)?;
                let zeros = cx.spread(zero, vec![Dim::from(hidden)])?;
                state = cx.add(Concat { axis: 0 }, &[gates, zeros])?;
            }
            inputs = cx.plus(inputs, state)?;
        }
        let peepholes = peepholes.map(|p| of(cx, p)).transpose()?;
        let direction = Direction {
            kind,
            hidden,
            activations: names[d * each..(d + 1) * each].to_vec(),
            clip,
            recurrence,
            inputs,
            inner_bias,
            peepholes,
            coupled,
        };
        let start = |cx: &mut Importer, given: Option<Value>| match given {
            Some(given) => {
                let given = if batch_first { cx.turned(given, &[1, 0, 2])? } else { given };
                of(cx, given)
            }
            None => {
                let zero = cx.number(x, 0.0)?;
                cx.spread(zero, vec![batch.clone(), Dim::from(hidden)])
            }
        };
        let (mut h, mut c) = (start(cx, first)?, start(cx, first_cell)?);
        let mut outputs = vec![h; steps];
        let order: Vec<usize> = if reverse { (0..steps).rev().collect() } else { (0..steps).collect() };
        for t in order {
            let (mut next, mut next_cell) = direction.step(cx, t, h, c)?;
            let mut shown = next;
            if let Some(lengths) = lengths {
                let lengths = cx.cast(lengths, DType::I64)?;
                let inside = cx.above(lengths, t as f64)?;
                let inside = cx.unsqueezed(inside, 1)?;
                shown = cx.chosen_or(inside, next, 0.0)?;
                next = cx.chosen(inside, next, h)?;
                next_cell = cx.chosen(inside, next_cell, c)?;
            }
            (h, c) = (next, next_cell);
            outputs[t] = cx.unsqueezed(shown, 0)?;
        }
        let joined = match outputs.as_slice() {
            [only] => *only,
            all => cx.add(Concat { axis: 0 }, all)?,
        };
        all.push(cx.unsqueezed(joined, 1)?);
        states.push(cx.unsqueezed(h, 0)?);
        cells.push(cx.unsqueezed(c, 0)?);
    }
    let join = |cx: &mut Importer, parts: &[Value], axis: usize, perm: &[usize]| {
        let joined = match parts {
            [only] => *only,
            all => cx.add(Concat { axis }, all)?,
        };
        if batch_first { cx.turned(joined, perm) } else { Ok(joined) }
    };
    let mut outputs = vec![join(cx, &all, 1, &[2, 0, 1, 3])?, join(cx, &states, 0, &[1, 0, 2])?];
    if kind == Kind::Lstm {
        outputs.push(join(cx, &cells, 0, &[1, 0, 2])?);
    }
    Ok(outputs)
}

/// Columns of the last axis.
fn part(cx: &mut Importer, x: Value, from: usize, to: usize) -> Result<Value, Refusal> {
    let last = cx.ty(x).ndim().saturating_sub(1);
    slice_axes(cx, x, &[last], &[Dim::from(from)], &[Dim::from(to)], &[1])
}

impl Direction {
    /// Columns that belong to a gate.
    fn gate(&self, cx: &mut Importer, x: Value, gate: usize) -> Result<Value, Refusal> {
        part(cx, x, gate * self.hidden, (gate + 1) * self.hidden)
    }

    fn activated(&self, cx: &mut Importer, x: Value, which: usize) -> Result<Value, Refusal> {
        let x = match self.clip {
            Some(bound) => {
                let capped = cx.capped(x, bound)?;
                cx.floored(capped, -bound)?
            }
            None => x,
        };
        match self.activations[which].to_ascii_lowercase().as_str() {
            "sigmoid" => cx.add(Sigmoid, &[x]),
            "tanh" => cx.add(Tanh, &[x]),
            "relu" => cx.add(Relu, &[x]),
            other => Err(Refusal::Unsupported(format!("activation `{other}` is not supported"))),
        }
    }

    /// State and cell after step `t`.
    fn step(&self, cx: &mut Importer, t: usize, h: Value, c: Value) -> Result<(Value, Value), Refusal> {
        let input = slice_axes(cx, self.inputs, &[0], &[Dim::from(t)], &[Dim::from(t + 1)], &[1])?;
        let shape = cx.ty(input).shape[1..].to_vec();
        let input = cx.shaped(input, shape)?;
        match self.kind {
            Kind::Rnn => {
                let product = cx.add(MatMul, &[h, self.recurrence])?;
                let sum = cx.plus(input, product)?;
                Ok((self.activated(cx, sum, 0)?, c))
            }
            Kind::Lstm => {
                let product = cx.add(MatMul, &[h, self.recurrence])?;
                let sum = cx.plus(input, product)?;
                let peeped = |cx: &mut Importer, gate: Value, which: usize, cell: Value| match self.peepholes
                {
                    Some(p) => {
                        let weights = self.gate(cx, p, which)?;
                        let seen = cx.times(weights, cell)?;
                        cx.plus(gate, seen)
                    }
                    None => Ok(gate),
                };
                // Gates stand in the order input, output, forget, cell.
                let i = self.gate(cx, sum, 0)?;
                let i = peeped(cx, i, 0, c)?;
                let i = self.activated(cx, i, 0)?;
                let f = if self.coupled {
                    let one = cx.number(i, 1.0)?;
                    cx.minus(one, i)?
                } else {
                    let f = self.gate(cx, sum, 2)?;
                    let f = peeped(cx, f, 2, c)?;
                    self.activated(cx, f, 0)?
                };
                let g = self.gate(cx, sum, 3)?;
                let g = self.activated(cx, g, 1)?;
                let (kept, new) = (cx.times(f, c)?, cx.times(i, g)?);
                let cell = cx.plus(kept, new)?;
                let o = self.gate(cx, sum, 1)?;
                let o = peeped(cx, o, 1, cell)?;
                let o = self.activated(cx, o, 0)?;
                let bent = match self.activations[2].to_ascii_lowercase().as_str() {
                    "tanh" => cx.add(Tanh, &[cell])?,
                    "sigmoid" => cx.add(Sigmoid, &[cell])?,
                    "relu" => cx.add(Relu, &[cell])?,
                    other => {
                        return Err(Refusal::Unsupported(format!("activation `{other}` is not supported")));
                    }
                };
                Ok((cx.times(o, bent)?, cell))
            }
            Kind::Gru { after_product } => {
                // Gates stand in the order update, reset, new.
                let gates = part(cx, self.recurrence, 0, 2 * self.hidden)?;
                let inner = self.gate(cx, self.recurrence, 2)?;
                let product = cx.add(MatMul, &[h, gates])?;
                let own = part(cx, input, 0, 2 * self.hidden)?;
                let sum = cx.plus(own, product)?;
                let sum = self.activated(cx, sum, 0)?;
                let (z, reset) = (self.gate(cx, sum, 0)?, self.gate(cx, sum, 1)?);
                let of_state = if after_product {
                    let mut product = cx.add(MatMul, &[h, inner])?;
                    if let Some(bias) = self.inner_bias {
                        product = cx.plus(product, bias)?;
                    }
                    cx.times(reset, product)?
                } else {
                    let kept = cx.times(reset, h)?;
                    cx.add(MatMul, &[kept, inner])?
                };
                let own = self.gate(cx, input, 2)?;
                let new = cx.plus(own, of_state)?;
                let new = self.activated(cx, new, 1)?;
                let one = cx.number(z, 1.0)?;
                let rest = cx.minus(one, z)?;
                let (taken, kept) = (cx.times(rest, new)?, cx.times(z, h)?);
                Ok((cx.plus(taken, kept)?, c))
            }
        }
    }
}
