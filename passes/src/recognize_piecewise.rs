//! Finds ReLU6, min(max(x, 0), 6), and hard swish, x min(max(x / 6 + 1/2, 0), 1), in the ways in which models write them.
//!
//! Required stage: imported. Not about other bounds, nor about inner values that others read as well.
//!
//! ```text
//! graph @before(%x: f32[N, 8]) -> (y: f32[N, 8]) {
//!   %0 = const 3.0 : f32
//!   %1 = const 0.0 : f32
//!   %2 = const 6.0 : f32
//!   %3 = add %x, %0 : f32[N, 8]  // act/Add
//!   %4 = max %3, %1 : f32[N, 8]  // act/Clip
//!   %5 = min %4, %2 : f32[N, 8]  // act/Clip
//!   %6 = mul %x, %5 : f32[N, 8]  // act/Mul
//!   %7 = div %6, %2 : f32[N, 8]  // act/Div
//!   return %7
//! }
//! graph @after(%x: f32[N, 8]) -> (y: f32[N, 8]) {
//!   %0 = hard_swish %x : f32[N, 8]  // act/Div
//!   return %0
//! }
//! ```

use margay_ir::ops::{HardSwish, Relu6};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict,
};

use crate::matching::{both_orders, factors, is_number, scalar};

/// Finds ReLU6 and hard swish.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizePiecewise;

impl Pass for RecognizePiecewise {
    fn name(&self) -> &'static str {
        "recognize-piecewise"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rules = [
            Rule { name: "hard-swish-from-clip", apply: hard_swish },
            Rule { name: "relu6-from-clip", apply: relu6 },
        ];
        rewrite(self.name(), g, cx, self, &rules)
    }
}

fn hard_swish(g: &Graph, n: NodeId, _: &RecognizePiecewise) -> RuleResult {
    let dividing = matches!(g.op(n), Op::Div(_)) && scalar(g, g.inputs_of(n)[1]).is_some();
    if !dividing && !matches!(g.op(n), Op::Mul(_)) {
        return Ok(Verdict::NoMatch);
    }
    let (values, constant) = factors(g, n.into());
    let [a, b] = values[..] else { return Ok(Verdict::NoMatch) };
    for [x, gate] in [[a, b], [b, a]] {
        let same = g.ty(x) == g.ty(n.into()) && g.ty(x).dtype.is_float();
        if !same || g.sole_user(gate).is_none() {
            continue;
        }
        let Some((line, top)) = clipped(g, gate) else { continue };
        // The gate reaches 1 at x = 3 and is 0 at x = -3, once the constant factor is in it.
        let Some((slope, offset)) = line_of(g, line, x) else { continue };
        let all = [slope * constant * 6.0, offset * constant * 2.0, top * constant];
        if all.iter().all(|one| (one - 1.0).abs() <= 1e-6) {
            let mut patch = Patch::new();
            let new = patch.add(g, HardSwish, &[x], g.node(n).origin.clone())?;
            patch.redirect(n.into(), new);
            return Ok(Verdict::Rewrite(patch));
        }
    }
    Ok(Verdict::NoMatch)
}

fn relu6(g: &Graph, n: NodeId, _: &RecognizePiecewise) -> RuleResult {
    if matches!(g.op(n), Op::Relu6(_)) {
        return Ok(Verdict::NoMatch);
    }
    let Some((x, top)) = clipped(g, n.into()) else { return Ok(Verdict::NoMatch) };
    if top != 6.0 || !g.ty(x).dtype.is_float() || g.ty(x) != g.ty(n.into()) {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    let new = patch.add(g, Relu6, &[x], g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// Of a value between 0 and a constant above: the value and the constant. What lies between has no other reader.
fn clipped(g: &Graph, v: Value) -> Option<(Value, f64)> {
    let bounded = |v: Value| {
        let op = g.op(v.node);
        matches!(op, Op::Max(_) | Op::Min(_)).then(|| {
            both_orders(g, v).into_iter().find_map(|[x, bound]| Some((x, scalar(g, bound)?, bound)))
        })?
    };
    if matches!(g.op(v.node), Op::Relu6(_)) {
        return Some((g.inputs_of(v.node)[0], 6.0));
    }
    let (inner, outer_bound, outer) = bounded(v)?;
    g.sole_user(inner)?;
    let outer_is_min = matches!(g.op(v.node), Op::Min(_));
    if outer_is_min && matches!(g.op(inner.node), Op::Relu(_)) {
        return (outer_bound > 0.0).then(|| (g.inputs_of(inner.node)[0], outer_bound));
    }
    let (x, inner_bound, bottom) = bounded(inner)?;
    match (outer_is_min, matches!(g.op(inner.node), Op::Min(_))) {
        (true, false) => (is_number(g, bottom, 0.0) && outer_bound > 0.0).then_some((x, outer_bound)),
        (false, true) => (is_number(g, outer, 0.0) && inner_bound > 0.0).then_some((x, inner_bound)),
        _ => None,
    }
}

/// Slope and offset of `line`, a sum of a constant and a multiple of x that nobody else reads.
fn line_of(g: &Graph, line: Value, x: Value) -> Option<(f64, f64)> {
    g.sole_user(line)?;
    if !matches!(g.op(line.node), Op::Add(_)) {
        return None;
    }
    both_orders(g, line).into_iter().find_map(|[scaled, offset]| {
        let offset = scalar(g, offset)?;
        if scaled == x {
            return Some((1.0, offset));
        }
        g.sole_user(scaled)?;
        let (values, slope) = factors(g, scaled);
        (values.as_slice() == [x]).then_some((slope, offset))
    })
}
