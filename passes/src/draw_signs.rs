//! Leaves random signs out of constant right operands: whoever multiplies with them makes them of their name.
//!
//! Required stage: canonical. A matrix of numbers and one of random signs that lie side by side become one constant, of which
//! the numbers are stored; so does a matrix of signs alone, and a kernel of one tap. Products and convolutions must be
//! all that reads it. Back ends without a kernel for such a constant make numbers of it when a graph is lowered. Declines more
//! signs than numbers that a program may hold.
//!
//! ```text
//! graph @before(%x: f32[N, 256]) -> (y: f32[N, 32]) {
//!   %0 = const #s : f32[256, 16]  // fc.weight left
//!   %1 = const random(7, 5, sign, 0.25) : f32[256, 16]  // fc.weight random
//!   %2 = concat %0, %1 {axis = 1} : f32[256, 32]  // fc.weight left
//!   %3 = matmul %x, %2 : f32[N, 32]  // fc left
//!   return %3
//! }
//! graph @after(%x: f32[N, 256]) -> (y: f32[N, 32]) {
//!   %0 = const #s : f32[256, 32] stored f32(signs, axis = 1, from = 16, to = 32, seed = 7, stream = 5, size = 0.25)  // fc.weight left
//!   %1 = matmul %x, %0 : f32[N, 32]  // fc left
//!   return %1
//! }
//! ```

use margay_ir::ops::Const;
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Draw, DrawKind, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Payload,
    Value, Verdict,
};
use margay_tensor::{DType, Signs, Tensor};

/// Draws signs where they are multiplied.
#[derive(Clone, Copy, Debug, Default)]
pub struct DrawSigns;

impl Pass for DrawSigns {
    fn name(&self) -> &'static str {
        "draw-signs"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rules =
            [Rule { name: "beside-numbers", apply: beside_numbers }, Rule { name: "alone", apply: alone }];
        rewrite(self.name(), g, cx, &(), &rules)
    }
}

/// How a constant is drawn, if it is signs.
fn signs_of(payload: &Payload) -> Option<Draw> {
    payload.draw().filter(|draw| draw.kind == DrawKind::Sign)
}

/// Whether all that reads a value are products of one matrix, or convolutions with kernels of one tap, whose constant it is.
fn is_weight(g: &Graph, v: Value) -> bool {
    let Some(shape) = g.ty(v).extents() else { return false };
    let reads = |(user, slot): &(NodeId, u16)| match g.op(*user) {
        Op::MatMul(_) => *slot == 1 && shape.len() == 2,
        Op::Conv(conv) => *slot == 1 && conv.groups == 1 && shape[2..].iter().all(|&taps| taps == 1),
        _ => false,
    };
    let users = g.users_of(v);
    !users.is_empty() && users.iter().all(reads) && !g.is_output(v)
}

fn beside_numbers(g: &Graph, n: NodeId, (): &()) -> RuleResult {
    let Op::Concat(concat) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let operands = g.inputs_of(n);
    let [Some(first), Some(second)] = [0, 1].map(|i| g.constant(*operands.get(i)?)) else {
        return Ok(Verdict::NoMatch);
    };
    let (numbers, draw, signs_first) = match (signs_of(first), signs_of(second)) {
        (None, Some(draw)) => (first, draw, false),
        (Some(draw), None) => (second, draw, true),
        // One name for all signs of a constant.
        (Some(_), Some(_)) | (None, None) => return Ok(Verdict::NoMatch),
    };
    let plain = numbers.stored().dtype() == DType::F32 && numbers.stored().is_plain();
    if operands.len() != 2 || !plain || !is_weight(g, n.into()) {
        return Ok(Verdict::NoMatch);
    }
    let axis = concat.axis;
    let [before, count] = [first, second].map(|payload| payload.stored().shape()[axis]);
    let range = if signs_first { [0, before] } else { [before, before + count] };
    drawn(g, n, numbers, draw, (axis, range))
}

fn alone(g: &Graph, n: NodeId, (): &()) -> RuleResult {
    let Op::Const(constant) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let Some(draw) = signs_of(&constant.payload).filter(|_| is_weight(g, n.into())) else {
        return Ok(Verdict::NoMatch);
    };
    let mut shape = constant.payload.stored().shape().to_vec();
    let range = [0, std::mem::replace(&mut shape[0], 0)];
    let Ok(nothing) = Tensor::zeros(DType::F32, &shape) else { return Ok(Verdict::NoMatch) };
    drawn(g, n, &Payload::derived(&draw.to_string(), nothing), draw, (0, range))
}

/// The constant of numbers beside signs in place of a node.
fn drawn(
    g: &Graph,
    n: NodeId,
    numbers: &Payload,
    draw: Draw,
    (axis, range): (usize, [usize; 2]),
) -> RuleResult {
    let signs = Signs::new(axis, range, [draw.seed, draw.stream], draw.size);
    let payload = match numbers.with_signs(signs) {
        Ok(payload) => payload,
        Err(error) => return Ok(Verdict::Declined(error.to_string())),
    };
    let mut patch = Patch::new();
    let new = patch.add(g, Const { payload }, &[], g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}
