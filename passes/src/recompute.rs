//! Computes values of the forward pass a second time for the backward pass, so that fewer of them are kept in between.
//!
//! Required stage: lowerable: what is worth it depends on sizes. Values that take the most bytes per operation go first,
//! and only those whose operands are kept anyway or computed again too; products, convolutions and attention are computed
//! twice only when nothing else is left. The backward pass is made anew in the order in which it should run, so that
//! nothing is computed before it is needed. Fails where the limit cannot be met, and says what can.
//!
//! After Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016 (arXiv 1604.06174); here choices are made value
//! by value rather than by segments.
//!
//! ```text
//! graph @before(%x: f32[8, 4]) -> (loss: f32, gradient.x: f32[8, 4]) {
//!   %0 = exp %x : f32[8, 4]  // scale
//!   %1 = mul %0, %x : f32[8, 4]  // product
//!   %2 = reduce %1 {kind = sum, axes = [0, 1]} : f32  // total
//!   %3 = mul %0, %1 : f32[8, 4]  // scale gradient
//!   return %2, %3
//! }
//! graph @after(%x: f32[8, 4]) -> (loss: f32, gradient.x: f32[8, 4]) {
//!   %0 = exp %x : f32[8, 4]  // scale
//!   %1 = mul %0, %x : f32[8, 4]  // product
//!   %2 = reduce %1 {kind = sum, axes = [0, 1]} : f32  // total
//!   %3 = exp %x : f32[8, 4]  // scale gradient
//!   %4 = mul %3, %x : f32[8, 4]  // product gradient
//!   %5 = mul %3, %4 : f32[8, 4]  // scale gradient
//!   return %2, %5
//! }
//! ```

use std::collections::{HashMap, HashSet};

use margay_ir::ops::Lowered;
use margay_ir::{
    AddError, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Part, Pass, PassError, Patch, Remark,
    Value,
};

use crate::text::{number, pairs};

/// Computes values again rather than keep them.
#[derive(Clone, Copy, Debug)]
pub struct Recompute {
    /// The most bytes that may be kept between the forward and the backward pass.
    pub max_saved_bytes: u64,
}

impl Recompute {
    /// Reads `max-saved-bytes = 40000`.
    pub(crate) fn read(text: &str) -> Result<Recompute, String> {
        match pairs(text)?.as_slice() {
            [(name, value)] if name == "max-saved-bytes" => {
                Ok(Recompute { max_saved_bytes: number(name, value)? })
            }
            _ => Err(format!("expected `max-saved-bytes = …`, found `{text}`")),
        }
    }
}

impl Pass for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn configuration(&self) -> Configuration {
        Configuration::of(format!("max-saved-bytes = {}", self.max_saved_bytes))
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let backward = backward_nodes(g);
        let mut choice = Choice::new(g, &backward);
        let before = choice.bytes();
        for expensive in [false, true] {
            while choice.bytes() > self.max_saved_bytes && choice.take_best(expensive) {}
        }
        let after = choice.bytes();
        if after > self.max_saved_bytes {
            return Err(PassError::Refused(format!(
                "{} bytes may be kept for the backward pass, expected at least {after}",
                self.max_saved_bytes
            )));
        }
        let again = choice.again;
        if !again.is_empty() {
            let patch = repeat(g, &backward, &again)?;
            g.apply(patch).map_err(|error| PassError::Patch {
                rule: "recompute",
                at: String::new(),
                error: error.into(),
            })?;
            g.remove_dead();
        }
        cx.remarks.push(Remark {
            pass: self.name(),
            at: g.name().to_string(),
            message: format!(
                "{} values are computed twice; {after} bytes are kept for the backward pass, {before} before",
                again.len()
            ),
            declined: false,
        });
        Ok(Changed::times(again.len()))
    }
}

/// The nodes of the backward pass: those that compute derivatives, and all that follow from them.
pub fn backward_nodes(g: &Graph) -> HashSet<NodeId> {
    let mut found = HashSet::new();
    for n in g.order() {
        let follows = g.inputs_of(n).iter().any(|v| found.contains(&v.node));
        let leaf = matches!(g.op(n), Op::Const(_) | Op::Input(_));
        if !leaf && (follows || g.node(n).origin.part == Some(Part::Gradient)) {
            found.insert(n);
        }
    }
    found
}

/// The values of the forward pass that are kept for the backward pass: each memory once, whatever views of it are read;
/// where extents are open, views count as memory of their own. Inputs and constants are there anyway, and what
/// derivatives do not depend on is no part of the forward pass, such as moments that an update makes smaller.
pub fn saved(g: &Graph, backward: &HashSet<NodeId>) -> Vec<Value> {
    let order = g.order();
    let mut forward: HashSet<NodeId> = HashSet::new();
    for n in order.iter().rev() {
        if forward.contains(n) || g.node(*n).origin.part == Some(Part::Gradient) {
            forward.extend(g.inputs_of(*n).iter().map(|v| v.node));
        }
    }
    let mut found: Vec<Value> = Vec::new();
    for n in order.into_iter().filter(|n| backward.contains(n)) {
        for v in g.inputs_of(n).into_iter().filter(|v| !backward.contains(&v.node)) {
            let base = memory_of(g, v);
            if !is_leaf(g, base) && forward.contains(&base.node) && !found.contains(&base) {
                found.push(base);
            }
        }
    }
    found
}

fn is_leaf(g: &Graph, v: Value) -> bool {
    matches!(g.op(v.node), Op::Const(_) | Op::Input(_))
}

/// Bytes of a value whose extents are known.
pub fn bytes_of(g: &Graph, v: Value) -> u64 {
    let elements: usize = g.ty(v).extents().unwrap_or_default().iter().product();
    (elements * g.ty(v).dtype.bytes()) as u64
}

/// The value whose memory a view of it shows.
fn memory_of(g: &Graph, v: Value) -> Value {
    let mut v = v;
    while let Some(io) = g.io_of(v.node)
        && matches!(g.op(v.node).lower(&io), Ok(Lowered::View(_)))
    {
        v = g.inputs_of(v.node)[0];
    }
    v
}

/// Whether computing it again costs what the hardware does best.
fn is_expensive(op: &Op) -> bool {
    !op.facts().cheap
}

/// What is kept and what is computed again, so far.
struct Choice<'g> {
    g: &'g Graph,
    saved: HashMap<Value, u64>,
    again: HashSet<NodeId>,
    /// Position of every node of the forward pass, for ties.
    position: HashMap<NodeId, usize>,
}

/// What computing a value again takes.
#[derive(Default)]
struct Needs {
    nodes: HashSet<NodeId>,
    kept: HashMap<Value, u64>,
    flops: u64,
}

impl<'g> Choice<'g> {
    fn new(g: &'g Graph, backward: &HashSet<NodeId>) -> Choice<'g> {
        let position = g.order().into_iter().enumerate().map(|(i, n)| (n, i)).collect();
        Choice {
            g,
            saved: saved(g, backward).into_iter().map(|v| (v, bytes_of(g, v))).collect(),
            again: HashSet::new(),
            position,
        }
    }

    fn bytes(&self) -> u64 {
        self.saved.values().sum()
    }

    /// Moves the value that frees the most bytes per operation from what is kept to what is computed again; false if
    /// none frees any.
    fn take_best(&mut self, expensive: bool) -> bool {
        let mut best: Option<(f64, std::cmp::Reverse<usize>, Value, Needs)> = None;
        for (&v, &bytes) in &self.saved {
            let Some(needs) = self.needs(v, expensive) else { continue };
            let more: u64 = needs.kept.values().sum();
            let Some(freed) = bytes.checked_sub(more).filter(|f| *f > 0) else { continue };
            let score = freed as f64 / (needs.flops + 1) as f64;
            let at = std::cmp::Reverse(self.position[&v.node]);
            if best.as_ref().is_none_or(|(s, p, ..)| (score, at) > (*s, *p)) {
                best = Some((score, at, v, needs));
            }
        }
        let Some((_, _, v, needs)) = best else { return false };
        self.saved.remove(&v);
        self.saved.extend(needs.kept);
        self.again.extend(needs.nodes);
        true
    }

    /// What it takes to compute a kept value again; `None` if it cannot be.
    fn needs(&self, v: Value, expensive: bool) -> Option<Needs> {
        let mut needs = Needs::default();
        self.collect(v, expensive, &mut needs)?;
        // It is itself what must not be kept.
        (!needs.kept.contains_key(&v)).then_some(needs)
    }

    fn collect(&self, v: Value, expensive: bool, needs: &mut Needs) -> Option<()> {
        let n = v.node;
        if self.again.contains(&n) || needs.nodes.contains(&n) {
            return Some(());
        }
        let io = self.g.io_of(n)?;
        if (is_expensive(self.g.op(n)) && !expensive) || self.g.node(n).types.len() > 1 {
            return None;
        }
        needs.nodes.insert(n);
        needs.flops += self.g.op(n).cost(&io).flops;
        for operand in self.g.inputs_of(n) {
            let base = memory_of(self.g, operand);
            if is_leaf(self.g, base) || self.saved.contains_key(&base) {
                // Views on the way are made again.
                continue;
            }
            if self.collect(base, expensive, needs).is_none() {
                needs.kept.insert(base, bytes_of(self.g, base));
            }
        }
        Some(())
    }
}

/// The patch that makes the backward pass anew, with what is computed again in it. Nodes are made in the order in which
/// they should run: products and their like as before, everything else when the first of them asks for it.
fn repeat(g: &Graph, backward: &HashSet<NodeId>, again: &HashSet<NodeId>) -> Result<Patch, PassError> {
    let order = g.order();
    let shows_again = |n: NodeId| again.contains(&memory_of(g, n.into()).node);
    let anew = order.iter().copied().filter(|n| backward.contains(n) || shows_again(*n));
    let mut work = Repeat { g, backward, anew: anew.collect(), patch: Patch::new(), made: HashMap::new() };
    let own: Vec<NodeId> = order.into_iter().filter(|n| backward.contains(n)).collect();
    for &n in own.iter().filter(|n| is_expensive(g.op(**n))).chain(&own) {
        work.demand(n).map_err(|error| PassError::Add {
            rule: "recompute",
            at: g.node(n).origin.name().to_string(),
            error: error.into(),
        })?;
    }
    for n in own {
        for old in g.values_of(n) {
            work.patch.redirect(old, work.made[&old]);
        }
    }
    Ok(work.patch)
}

struct Repeat<'g> {
    g: &'g Graph,
    backward: &'g HashSet<NodeId>,
    /// The backward pass, what is computed again for it, and views of that.
    anew: HashSet<NodeId>,
    patch: Patch,
    /// What stands for the values of these nodes.
    made: HashMap<Value, Value>,
}

impl Repeat<'_> {
    /// Makes a node anew, and before it whatever it reads that is not there yet.
    fn demand(&mut self, n: NodeId) -> Result<(), AddError> {
        let mut stack = vec![n];
        while let Some(&top) = stack.last() {
            let operands = self.g.inputs_of(top);
            let missing = |v: &&Value| self.anew.contains(&v.node) && !self.made.contains_key(v);
            let before = stack.len();
            if !self.made.contains_key(&top.into()) {
                stack.extend(operands.iter().rev().filter(missing).map(|v| v.node));
            }
            if stack.len() == before {
                self.make(top)?;
                stack.pop();
            }
        }
        Ok(())
    }

    fn make(&mut self, n: NodeId) -> Result<(), AddError> {
        if self.made.contains_key(&n.into()) {
            return Ok(());
        }
        let operands = self.g.inputs_of(n);
        let now: Vec<Value> = operands.iter().map(|v| self.made.get(v).copied().unwrap_or(*v)).collect();
        let node = self.g.node(n);
        let origin =
            if self.backward.contains(&n) { node.origin.clone() } else { node.origin.part(Part::Gradient) };
        let first = self.patch.add(self.g, node.op.clone(), &now, origin)?;
        for out in 0..node.types.len() as u16 {
            self.made.insert(Value { node: n, out }, Value { node: first.node, out });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradients;
    use margay_ir::ops::{Gelu, MatMul, Reduce, ReduceKind};
    use margay_ir::{Origin, TensorType, eval};
    use margay_tensor::{DType, Tensor};

    /// Three layers `x = gelu(x w)` of 64 rows and 16 columns, the sum, and its derivatives by the weights.
    fn network() -> Graph {
        let mut g = Graph::new("net");
        let mut x = g.add_input("x", TensorType::known(DType::F32, &[64, 16]));
        let w: Vec<Value> =
            (0..3).map(|i| g.add_input(&format!("w{i}"), TensorType::known(DType::F32, &[16, 16]))).collect();
        for (i, &w) in w.iter().enumerate() {
            x = g.add(MatMul, &[x, w], Origin::named(&format!("fc{i}"))).unwrap();
            x = g.add(Gelu { tanh: false }, &[x], Origin::named(&format!("act{i}"))).unwrap();
        }
        let total = Reduce { kind: ReduceKind::Sum, axes: vec![0, 1], keepdims: false };
        let loss = g.add(total, &[x], Origin::named("loss")).unwrap();
        let seed = g.add_input("seed", TensorType::known(DType::F32, &[]));
        let found = gradients(&mut g, &[(loss, seed)], &w).unwrap();
        g.add_output("loss", loss);
        for (i, gradient) in found.into_iter().enumerate() {
            g.add_output(&format!("gradient.w{i}"), gradient.unwrap());
        }
        g.remove_dead();
        g
    }

    fn run(g: &Graph) -> Vec<Tensor> {
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 2003.0 - 0.5).collect()
        };
        let x = Tensor::from_slice(&[64, 16], &numbers(1024, 0)).unwrap();
        let w = [1, 2, 3].map(|i| Tensor::from_slice(&[16, 16], &numbers(256, i)).unwrap());
        let seed = Tensor::scalar(1f32);
        eval::run(g, &[("x", &x), ("w0", &w[0]), ("w1", &w[1]), ("w2", &w[2]), ("seed", &seed)]).unwrap()
    }

    /// Bytes kept of a network under a limit, and the number of nodes computed twice; results must not change.
    fn under(limit: u64) -> Result<(u64, usize), String> {
        let (before, mut g) = (network(), network());
        let mut cx = Cx::default();
        let pass = Recompute { max_saved_bytes: limit };
        let changed = pass.run(&mut g, &mut cx).map_err(|e| e.to_string())?;
        g.verify(margay_ir::verify::Stage::Lowerable).unwrap();
        assert_eq!(run(&before), run(&g), "the same numbers");
        let bytes = saved(&g, &backward_nodes(&g)).iter().map(|v| bytes_of(&g, *v)).sum();
        assert_eq!(pass.run(&mut g, &mut Cx::default()), Ok(Changed::No), "a second time changes nothing");
        Ok((bytes, if let Changed::Yes(n) = changed { n } else { 0 }))
    }

    #[test]
    fn cheap_values_go_first_and_products_last() {
        // Three products for the derivative of GELU, and two activations for those of weights, of 4096 bytes each.
        assert_eq!(under(20480), Ok((20480, 0)));
        assert_eq!(under(20479), Ok((16384, 1)));
        assert_eq!(under(12288), Ok((12288, 2)));
        assert_eq!(under(12287).map(|(bytes, _)| bytes <= 12287), Ok(true));
        assert_eq!(under(0).map(|(bytes, _)| bytes), Ok(0));
    }

    #[test]
    fn what_is_computed_again_runs_when_it_is_needed() {
        let mut g = network();
        Recompute { max_saved_bytes: 12288 }.run(&mut g, &mut Cx::default()).unwrap();
        let names: Vec<&str> = g.order().into_iter().map(|n| g.node(n).origin.name()).collect();
        let last = |name: &str| names.iter().rposition(|n| *n == name).unwrap();
        let again = |act: &str| {
            g.order().iter().position(|n| {
                let node = g.node(*n);
                node.op.name() == "gelu"
                    && node.origin.name() == act
                    && node.origin.part == Some(Part::Gradient)
            })
        };
        // The activation of the first layer, after all that the second one needs for its own.
        assert!(again("act1").unwrap() < again("act0").unwrap());
        assert!(again("act0").unwrap() + 4 > last("fc1"), "{names:?}");
    }
}
