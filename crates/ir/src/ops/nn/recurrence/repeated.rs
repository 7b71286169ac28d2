//! A recurrence as a loop over time.

use margay_tensor::{DType, Dim};

use super::{Cell, Operands, Recurrence};
use crate::graph::AddError;
use crate::ops::{Const, Dims, Gather, Loop, MatMul, Max, Min, Reshape, Select, Slice};
use crate::{Builder, Graph, Op, Payload, Region, TensorType, Value};

/// The body of a loop over time in the making. Its inputs are the number of the repetition, the states, then what it
/// reads of the graph around it.
pub(super) struct Body {
    /// The graph of the body.
    pub(super) graph: Graph,
    pub(super) number: Value,
    pub(super) states: Vec<Value>,
    /// What it reads from outside.
    read: Vec<Value>,
    /// Whether constants are operands too, as what derivatives are taken by.
    constants_outside: bool,
}

impl Body {
    /// A body over states, values of the graph around it.
    pub(super) fn new(b: &Builder<'_>, states: &[Value]) -> Body {
        let mut graph = Graph::new("step");
        let number = graph.add_input("i", TensorType::known(DType::I64, &[]));
        let name = |i: usize| ["h", "c"].get(i).map_or_else(|| format!("s{i}"), ToString::to_string);
        let state = |(i, v): (usize, &Value)| graph.add_input(&name(i), b.ty(*v).clone());
        let states = states.iter().enumerate().map(state).collect();
        Body { graph, number, states, read: Vec::new(), constants_outside: false }
    }

    /// The same, of which constants are operands as anything else.
    pub(super) fn with_constants_outside(self) -> Body {
        Body { constants_outside: true, ..self }
    }

    /// A value of the graph around it: a constant is repeated inside, anything else is an operand.
    pub(super) fn read(&mut self, b: &Builder<'_>, outer: Value) -> Result<Value, AddError> {
        if let (Some((payload, origin)), false) = (b.constant_of(outer), self.constants_outside) {
            return self.graph.add(Const { payload: payload.clone() }, &[], origin.clone());
        }
        self.read.push(outer);
        let name = format!("x{}", self.read.len());
        Ok(self.graph.add_input(&name, b.ty(outer).clone()))
    }
}

/// The weights of the state, as a body reads them.
#[derive(Clone, Copy)]
pub(super) enum Weights {
    /// `[H, gates H]`.
    Whole(Value),
    /// Two constants that they are the product of, `[H, k]` and `[k, gates H]`: a product with both takes less than one with what
    /// they stand for.
    Factors([Value; 2]),
}

impl Weights {
    /// What a value of the graph around a body is there.
    fn read(b: &Builder<'_>, body: &mut Body, r: Value) -> Result<Weights, AddError> {
        let factors = b.factors_of(r).filter(|[left, _]| {
            let (columns, of) = (&b.ty(*left).shape[1], &b.ty(r).shape);
            let [Some(k), Some(h), Some(width)] = [columns, &of[0], &of[1]].map(Dim::as_extent) else {
                return false;
            };
            k * (h + width) < h * width
        });
        match factors {
            Some([left, right]) => Ok(Weights::Factors([body.read(b, left)?, body.read(b, right)?])),
            None => Ok(Weights::Whole(body.read(b, r)?)),
        }
    }

    /// `[B, gates H]`: the product of a state with them.
    fn product(self, b: &mut Builder, h: Value) -> Result<Value, AddError> {
        match self {
            Weights::Whole(r) => b.op(MatMul, &[h, r]),
            Weights::Factors([left, right]) => {
                let thin = b.op(MatMul, &[h, left])?;
                b.op(MatMul, &[thin, right])
            }
        }
    }
}

/// One time: what there is to compute with.
struct Step<'a> {
    op: &'a Recurrence,
    hidden: Dim,
    /// `[B, gates H]`: the contribution of the inputs.
    now: Value,
    /// `[B, gates H]`: the contribution of the state.
    product: Value,
    r: Weights,
    /// `[3 H]`: input, output, forget.
    peepholes: Option<Value>,
}

impl Recurrence {
    /// The same as a loop over time: the results in the order of this operator.
    ///
    /// # Errors
    /// For operands that [`infer`](crate::ops::OpDef::infer) refuses.
    pub fn repeated(&self, b: &mut Builder<'_>, operands: &[Value]) -> Result<Vec<Value>, AddError> {
        let given = self.operands(operands).map_err(|error| AddError { op: "recurrence", error })?;
        let mut body = Body::new(b, &given.states);
        let trips = trips(b, given.x)?;
        let Time { next, row, .. } = self.time(b, &mut body, &given, trips)?;
        let results = finish(b, body, given.x, trips, &given.states, &next, &[row])?;
        let carried = next.len();
        let y = match self.reverse {
            true => flipped(b, results[carried])?,
            false => results[carried],
        };
        Ok(std::iter::once(y).chain(results[..carried].iter().copied()).collect())
    }

    /// The states before every time, `[T, B, H]` each, in the order in which times are taken.
    pub(super) fn states_before(
        &self,
        b: &mut Builder<'_>,
        given: &Operands<Value>,
    ) -> Result<Vec<Value>, AddError> {
        let mut body = Body::new(b, &given.states);
        let trips = trips(b, given.x)?;
        let Time { next, .. } = self.time(b, &mut body, given, trips)?;
        let states = body.states.clone();
        let results = finish(b, body, given.x, trips, &given.states, &next, &states)?;
        Ok(results[next.len()..].to_vec())
    }

    /// What a body computes of one time.
    fn time(
        &self,
        b: &Builder<'_>,
        body: &mut Body,
        given: &Operands<Value>,
        trips: Value,
    ) -> Result<Time, AddError> {
        let r = Weights::read(b, body, given.r)?;
        let (number, states) = (body.number, body.states.clone());
        let mut inner = Builder::new(&mut body.graph, b.origin().clone());
        let h = if self.quantized { inner.rounded_by_range(states[0])? } else { states[0] };
        let product = r.product(&mut inner, h)?;
        self.time_of(b, body, given, trips, At { number, states: &states, product, r })
    }

    /// The same of states and a number of the repetition that the body found elsewhere.
    pub(super) fn time_of(
        &self,
        b: &Builder<'_>,
        body: &mut Body,
        given: &Operands<Value>,
        trips: Value,
        of: At<'_>,
    ) -> Result<Time, AddError> {
        let At { number, states, product, r } = of;
        let hidden = b.ty(given.states[0]).shape[1].clone();
        let x = body.read(b, given.x)?;
        let mut optional = |v: Option<Value>| v.map(|v| body.read(b, v)).transpose();
        let bias = optional(given.bias)?;
        let peepholes = optional(given.peepholes)?;
        let lengths = optional(given.lengths)?;
        let total = optional(self.reverse.then_some(trips))?;
        let mut inner = Builder::new(&mut body.graph, b.origin().clone());
        let at = match total {
            None => number,
            Some(total) => mirrored(&mut inner, total, number)?,
        };
        let now = inner.op(Gather { axis: 0 }, &[x, at])?;
        let product = match bias {
            Some(bias) => inner.add(product, bias)?,
            None => product,
        };
        let step = Step { op: self, hidden, now, product, r, peepholes };
        let mut next = match self.cell {
            Cell::Lstm | Cell::CoupledLstm => step.lstm(&mut inner, states[1])?,
            Cell::Gru | Cell::GruResetAfter => vec![step.gru(&mut inner, states[0])?],
            Cell::Rnn => vec![step.plain(&mut inner)?],
        };
        let mut row = next[0];
        if let Some(lengths) = lengths {
            let lengths = inner.cast(lengths, DType::I64)?;
            let active = inner.less(at, lengths)?;
            let shape = vec![inner.ty(active).shape[0].clone(), Dim::from(1usize)];
            let active = inner.op(Reshape { shape }, &[active])?;
            row = inner.where_or(active, row, 0.0)?;
            for (new, old) in next.iter_mut().zip(states) {
                *new = inner.op(Select, &[active, *new, *old])?;
            }
        }
        Ok(Time { next, row, at, now, bias, peepholes })
    }
}

/// The number of times, as a value.
pub(super) fn trips(b: &mut Builder<'_>, x: Value) -> Result<Value, AddError> {
    let times = b.ty(x).shape[0].clone();
    match times.as_const() {
        Some(count) => b.constant(margay_tensor::Tensor::scalar(count)),
        None => {
            let count = b.op(Dims { values: vec![times] }, &[])?;
            b.op(Reshape { shape: Vec::new() }, &[count])
        }
    }
}

/// `total - 1 - number`.
pub(super) fn mirrored(b: &mut Builder<'_>, total: Value, number: Value) -> Result<Value, AddError> {
    let last = b.offset(total, -1.0)?;
    b.sub(last, number)
}

/// A loop over a body whose carried values begin as `states` and go on as `next`, and that gives `rows` of every time: the carried
/// values at the end, then the rows.
pub(super) fn finish(
    b: &mut Builder<'_>,
    mut body: Body,
    x: Value,
    trips: Value,
    states: &[Value],
    next: &[Value],
    rows: &[Value],
) -> Result<Vec<Value>, AddError> {
    let names =
        (0..next.len()).map(|i| ["h", "c"].get(i).map_or_else(|| format!("s{i}"), ToString::to_string));
    for (v, name) in next.iter().zip(names) {
        body.graph.add_output(&name, *v);
    }
    for (i, row) in rows.iter().enumerate() {
        let name = if i == 0 { "y".to_owned() } else { format!("y{i}") };
        body.graph.add_output(&name, *row);
    }
    let operands: Vec<Value> =
        std::iter::once(trips).chain(states.iter().copied()).chain(body.read).collect();
    let (max, carried) = (b.ty(x).shape[0].clone(), states.len());
    let op = Loop { body: Region::new(body.graph), max, carried, condition: false };
    let node = b.op(op, &operands)?.node;
    Ok((0..carried + rows.len()).map(|out| Value { node, out: out as u16 }).collect())
}

/// A value `[T, B, n]` with its times in the opposite order.
pub(super) fn flipped(b: &mut Builder<'_>, v: Value) -> Result<Value, AddError> {
    let shape = b.ty(v).shape.clone();
    let times = shape[0].clone();
    let mut flip = Slice { starts: vec![Dim::default(); 3], ends: shape, steps: vec![1; 3] };
    (flip.starts[0], flip.ends[0]) = (&times - &Dim::from(1usize), Dim::from(-1i64));
    flip.steps[0] = -1;
    b.op(flip, &[v])
}

/// Where a body finds what a time begins with.
pub(super) struct At<'a> {
    /// The number of the time, in the order in which times are taken.
    pub(super) number: Value,
    pub(super) states: &'a [Value],
    /// `[B, gates H]`: the product of state and weights.
    pub(super) product: Value,
    pub(super) r: Weights,
}

/// What a body computes of one time.
pub(super) struct Time {
    /// The states after it.
    pub(super) next: Vec<Value>,
    /// What is shown.
    pub(super) row: Value,
    /// The number of the time.
    pub(super) at: Value,
    /// `[B, gates H]`: the contribution of the inputs.
    pub(super) now: Value,
    pub(super) bias: Option<Value>,
    pub(super) peepholes: Option<Value>,
}

impl Step<'_> {
    /// Part `at` of `[.., parts H]` along the last axis; of a constant, a constant.
    fn part(&self, b: &mut Builder, v: Value, at: usize) -> Result<Value, AddError> {
        let shape = b.ty(v).shape.clone();
        let n = shape.len();
        let mut op = Slice { starts: vec![Dim::default(); n], ends: shape, steps: vec![1; n] };
        op.starts[n - 1] = &self.hidden * &Dim::from(at);
        op.ends[n - 1] = &self.hidden * &Dim::from(at + 1);
        let constant = b.constant_of(v).map(|(payload, origin)| (payload.tensor().clone(), origin.clone()));
        if let Some((tensor, origin)) = constant
            && let Some(part) = Op::from(op.clone()).eval(&[&tensor]).ok().and_then(|mut parts| parts.pop())
        {
            return b.op_for(Const { payload: Payload::new(part) }, &[], origin);
        }
        b.op(op, &[v])
    }

    fn activate(&self, b: &mut Builder, which: usize, x: Value) -> Result<Value, AddError> {
        let clip = self.op.clip.get();
        let x = match clip.is_finite() {
            true => {
                let (low, high) = (b.number(x, -clip)?, b.number(x, clip)?);
                let x = b.op(Max, &[x, low])?;
                b.op(Min, &[x, high])?
            }
            false => x,
        };
        self.op.activations[which].apply(b, x)
    }

    /// A gate with what the cell contributes through a peephole.
    fn peep(&self, b: &mut Builder, gate: Value, cell: Value, at: usize) -> Result<Value, AddError> {
        let Some(peepholes) = self.peepholes else { return Ok(gate) };
        let weight = self.part(b, peepholes, at)?;
        let more = b.mul(weight, cell)?;
        b.add(gate, more)
    }

    fn lstm(&self, b: &mut Builder, c: Value) -> Result<Vec<Value>, AddError> {
        let all = b.add(self.now, self.product)?;
        let parts = (0..4).map(|at| self.part(b, all, at)).collect::<Result<Vec<_>, _>>()?;
        let input = self.peep(b, parts[0], c, 0)?;
        let input = self.activate(b, 0, input)?;
        let forget = if self.op.cell == Cell::CoupledLstm {
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
        let shown = self.op.activations[2].apply(b, cell)?;
        Ok(vec![b.mul(output, shown)?, cell])
    }

    fn gru(&self, b: &mut Builder, h: Value) -> Result<Value, AddError> {
        let gate = |b: &mut Builder, at: usize| {
            let (x, y) = (self.part(b, self.now, at)?, self.part(b, self.product, at)?);
            b.add(x, y)
        };
        let update = gate(b, 0)?;
        let update = self.activate(b, 0, update)?;
        let reset = gate(b, 1)?;
        let reset = self.activate(b, 0, reset)?;
        let of_state = match self.op.cell {
            Cell::Gru => {
                let kept = b.mul(reset, h)?;
                let part = match self.r {
                    Weights::Whole(r) => Weights::Whole(self.part(b, r, 2)?),
                    Weights::Factors([left, right]) => Weights::Factors([left, self.part(b, right, 2)?]),
                };
                part.product(b, kept)?
            }
            _ => {
                let of_state = self.part(b, self.product, 2)?;
                b.mul(reset, of_state)?
            }
        };
        let hidden = self.part(b, self.now, 2)?;
        let hidden = b.add(hidden, of_state)?;
        let hidden = self.activate(b, 1, hidden)?;
        // (1 - z) h' + z h.
        let difference = b.sub(h, hidden)?;
        let change = b.mul(update, difference)?;
        b.add(hidden, change)
    }

    fn plain(&self, b: &mut Builder) -> Result<Value, AddError> {
        let all = b.add(self.now, self.product)?;
        self.activate(b, 0, all)
    }
}
