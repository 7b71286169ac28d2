//! Computes at compile time what depends on constants alone.
//!
//! Required stage: imported. Declines a node whose result would be much larger than its operands (a broadcast zero) or
//! whose computation would take long. What is stored narrow would become numbers and is left, but for transposes: their
//! results are stored as the operands are.
//!
//! ```text
//! graph @before(%x: f32[N, 3]) -> (y: f32[N, 2]) {
//!   %0 = const [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] : f32[2, 3]  // fc.weight
//!   %1 = transpose %0 {perm = [1, 0]} : f32[3, 2]
//!   %2 = matmul %x, %1 : f32[N, 2]  // fc
//!   return %2
//! }
//! graph @after(%x: f32[N, 3]) -> (y: f32[N, 2]) {
//!   %0 = const [1.0, 4.0, 2.0, 5.0, 3.0, 6.0] : f32[3, 2]  // fc.weight
//!   %1 = matmul %x, %0 : f32[N, 2]  // fc
//!   return %1
//! }
//! ```

use std::cell::Cell;

use margay_ir::ops::{Const, EvalError, Parameter, Strided, Transpose};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Origin, Pass, PassError, Patch, Payload, Value,
    Verdict,
};
use margay_tensor::{Dim, Scales, Storage, StoredTensor, Tensor};

use crate::matching::is_weight_of_state;
use crate::text::{number, pairs};

/// Folds nodes whose operands are constants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoldConstants {
    /// Results of more bytes than this are made only if they are no larger than the operands.
    pub max_growth_bytes: usize,
    /// The same for what a product or a convolution reads as its weight, which is then packed once and not in every run.
    pub max_weight_growth_bytes: usize,
    /// Nodes with more floating point operations than this are left.
    pub max_flops: u64,
    /// Bytes that one run of the pass may add in all.
    pub max_total_growth_bytes: usize,
    /// Floating point operations of one run of the pass in all.
    pub max_total_flops: u64,
}

/// The limits and what one run has used of them.
struct Budget<'a> {
    limits: &'a FoldConstants,
    grown_bytes: Cell<usize>,
    flops: Cell<u64>,
}

impl Default for FoldConstants {
    fn default() -> Self {
        FoldConstants {
            max_growth_bytes: 1 << 20,
            max_weight_growth_bytes: 64 << 20,
            max_flops: 200_000_000,
            max_total_growth_bytes: 256 << 20,
            max_total_flops: 2_000_000_000,
        }
    }
}

impl FoldConstants {
    /// Reads limits that differ from the default, such as `max-growth-bytes = 4096`.
    pub(crate) fn read(text: &str) -> Result<FoldConstants, String> {
        let mut pass = FoldConstants::default();
        for (name, value) in pairs(text)? {
            match name.as_str() {
                "max-growth-bytes" => pass.max_growth_bytes = number(&name, value)?,
                "max-weight-growth-bytes" => pass.max_weight_growth_bytes = number(&name, value)?,
                "max-flops" => pass.max_flops = number(&name, value)?,
                "max-total-growth-bytes" => pass.max_total_growth_bytes = number(&name, value)?,
                "max-total-flops" => pass.max_total_flops = number(&name, value)?,
                _ => return Err(format!("unknown limit `{name}`")),
            }
        }
        Ok(pass)
    }
}

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold-constants"
    }

    fn configuration(&self) -> Configuration {
        let usual = FoldConstants::default();
        let limits = [
            ("max-growth-bytes", self.max_growth_bytes as u64, usual.max_growth_bytes as u64),
            (
                "max-weight-growth-bytes",
                self.max_weight_growth_bytes as u64,
                usual.max_weight_growth_bytes as u64,
            ),
            ("max-flops", self.max_flops, usual.max_flops),
            (
                "max-total-growth-bytes",
                self.max_total_growth_bytes as u64,
                usual.max_total_growth_bytes as u64,
            ),
            ("max-total-flops", self.max_total_flops, usual.max_total_flops),
        ];
        let other = limits.into_iter().filter(|(_, limit, usual)| limit != usual);
        let other: Vec<String> = other.map(|(name, limit, _)| format!("{name} = {limit}")).collect();
        Configuration::of(other.join(", "))
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let budget = Budget { limits: self, grown_bytes: Cell::new(0), flops: Cell::new(0) };
        let rules = [Rule { name: "fold", apply: fold }, Rule { name: "turn-stored", apply: turn_stored }];
        rewrite(self.name(), g, cx, &budget, &rules)
    }
}

/// A transpose of what is stored as integers times scales: the integers are in another order, and stay stored.
fn turn_stored(g: &Graph, n: NodeId, _: &Budget<'_>) -> RuleResult {
    let Op::Transpose(transpose) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let operand = g.inputs_of(n)[0];
    let Some(payload) = g.constant(operand) else { return Ok(Verdict::NoMatch) };
    let Some(turned) = turned(payload.stored(), transpose) else { return Ok(Verdict::NoMatch) };
    let mut patch = Patch::new();
    let constant = Const { payload: Payload::new(turned) };
    let new = patch.add(g, constant, &[], g.node(operand.node).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

fn turned(stored: &StoredTensor, transpose: &Transpose) -> Option<StoredTensor> {
    let place = |axis: usize| transpose.perm.iter().position(|p| *p == axis);
    let scales = match stored.storage().scales {
        Scales::Axis(axis) => Scales::Axis(place(axis)?),
        Scales::Block { axis, size } => Scales::Block { axis: place(axis)?, size },
        Scales::Tensor => Scales::Tensor,
        Scales::None => return None,
    };
    let storage = Storage { scales, ..stored.storage() };
    let turn = |tensor: &Tensor| Op::from(transpose.clone()).eval(&[tensor]).ok()?.pop();
    let zeros = match stored.zero_points() {
        Some(zeros) => Some(turn(zeros)?),
        None => None,
    };
    StoredTensor::from_parts(storage, turn(stored.elements())?, turn(stored.scales()?)?, zeros).ok()
}

/// Whether a product or a convolution reads the node as its weight.
fn is_weight(g: &Graph, n: NodeId) -> bool {
    let reads = |(user, slot): &(NodeId, u16)| {
        matches!(g.op(*user).facts().parameters.get(usize::from(*slot)), Some(Some(Parameter::Weight(_))))
    };
    g.users_of(n.into()).iter().any(reads)
}

fn fold(g: &Graph, n: NodeId, budget: &Budget<'_>) -> RuleResult {
    let limits = budget.limits;
    let node = g.node(n);
    let operands = g.inputs_of(n);
    match &node.op {
        Op::Input(_) | Op::Const(_) => return Ok(Verdict::NoMatch),
        _ => {}
    }
    let Some(payloads) = operands.iter().map(|v| g.constant(*v)).collect::<Option<Vec<_>>>() else {
        return Ok(Verdict::NoMatch);
    };
    // What is stored narrow stays so: folded, it would be numbers again. And so do factors of the weights of a state.
    if payloads.iter().any(|p| !p.stored().is_plain()) || is_weight_of_state(g, n) {
        return Ok(Verdict::NoMatch);
    }
    let Some(io) = g.io_of(n) else { return Ok(Verdict::NoMatch) };
    let tensors: Vec<&Tensor> = payloads.iter().map(|p| p.tensor()).collect();
    let bytes = |ports: &[Strided]| -> usize {
        ports
            .iter()
            .map(|p| p.shape.iter().try_fold(p.dtype.bytes(), |n, d| n.checked_mul(*d)).unwrap_or(usize::MAX))
            .fold(0, usize::saturating_add)
    };
    let (before, after) = (bytes(&io.inputs), bytes(&io.outputs));
    let max_growth = match is_weight(g, n) {
        true => limits.max_weight_growth_bytes,
        false => limits.max_growth_bytes,
    };
    if after > max_growth && after > before {
        return Ok(Verdict::Declined(format!("folding would turn {before} bytes into {after}")));
    }
    let flops = node.op.cost(&io).flops;
    if flops > limits.max_flops {
        let message = format!("folding takes {flops} operations, over the limit of {}", limits.max_flops);
        return Ok(Verdict::Declined(message));
    }
    let grown = budget.grown_bytes.get().saturating_add(after.saturating_sub(before));
    let worked = budget.flops.get().saturating_add(flops);
    if grown > limits.max_total_growth_bytes || worked > limits.max_total_flops {
        let message = format!("the graph would grow by {grown} bytes in {worked} operations, over the limit");
        return Ok(Verdict::Declined(message));
    }
    budget.grown_bytes.set(grown);
    budget.flops.set(worked);
    // A node that fails on its constants keeps failing at run time, with the same message.
    let results = match node.op.eval(&tensors) {
        Ok(results) => results,
        Err(EvalError::Unbound(_)) => return Ok(Verdict::NoMatch),
        Err(e) => return Ok(Verdict::Declined(format!("folding failed: {e}"))),
    };
    // Moved weights keep the weight's name, so that reports and exports show it.
    let weight = operands.iter().map(|v| &g.node(v.node).origin).find(|o| !o.names.is_empty());
    let origin = match (weight, operands.len()) {
        (Some(o), 1) => Origin { names: o.names.clone(), part: o.part },
        _ => node.origin.clone(),
    };
    let mut patch = Patch::new();
    for (out, tensor) in results.into_iter().enumerate() {
        debug_assert!(
            node.types[out].shape.iter().map(Dim::as_extent).eq(tensor.shape().iter().map(|d| Some(*d)))
        );
        let new = patch.add(g, Const { payload: Payload::new(tensor) }, &[], origin.clone())?;
        patch.redirect(Value { node: n, out: out as u16 }, new);
    }
    Ok(Verdict::Rewrite(patch))
}
