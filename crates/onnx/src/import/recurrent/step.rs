//! One time of a recurrent cell: the gates, and the states that follow.

use margay_ir::ops::{MatMul, Max, Min, Slice};
use margay_ir::{AddError, Builder, Value};
use margay_tensor::Dim;

use super::Activation;

/// One time: what there is to compute with.
pub(super) struct Step<'a> {
    pub(super) activations: &'a [Activation],
    pub(super) clip: Option<f64>,
    pub(super) hidden: &'a Dim,
    /// `[B, gates H]`: the contribution of the inputs.
    pub(super) now: Value,
    /// `[B, gates H]`: the contribution of the state.
    pub(super) product: Value,
    /// `[H, gates H]`, where a part of the state's contribution depends on the gates.
    pub(super) r: Value,
    /// `[gates H]`, of the state where the reset comes after.
    pub(super) state_bias: Option<Value>,
    /// `[3 H]`: input, output, forget.
    pub(super) peepholes: Option<Value>,
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

    pub(super) fn lstm(&self, b: &mut Builder, c: Value, coupled: bool) -> Result<Vec<Value>, AddError> {
        let all = b.add(self.now, self.product)?;
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

    pub(super) fn gru(&self, b: &mut Builder, h: Value, reset_after: bool) -> Result<Value, AddError> {
        let mut product = self.product;
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

    pub(super) fn plain(&self, b: &mut Builder) -> Result<Value, AddError> {
        let all = b.add(self.now, self.product)?;
        self.activate(b, 0, all)
    }
}
