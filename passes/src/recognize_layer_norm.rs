//! Finds layer normalization over the last axis in the pieces exporters write.
//!
//! Required stage: imported. Declines a mean over other axes than the last.
//!
//! ```text
//! graph @before(%x: f32[N, 4]) -> (y: f32[N, 4]) {
//!   %0 = reduce %x {kind = mean, axes = [1], keepdims = true} : f32[N, 1]  // ln/ReduceMean
//!   %1 = sub %x, %0 : f32[N, 4]  // ln/Sub
//!   %2 = const 2.0 : f32
//!   %3 = pow %1, %2 : f32[N, 4]  // ln/Pow
//!   %4 = reduce %3 {kind = mean, axes = [1], keepdims = true} : f32[N, 1]  // ln/ReduceMean_1
//!   %5 = const 1e-12 : f32
//!   %6 = add %4, %5 : f32[N, 1]  // ln/Add
//!   %7 = sqrt %6 : f32[N, 1]  // ln/Sqrt
//!   %8 = div %1, %7 : f32[N, 4]  // ln/Div
//!   %9 = const [1.0, 1.5, 2.0, 2.5] : f32[4]  // ln.weight
//!   %10 = mul %8, %9 : f32[N, 4]  // ln/Mul
//!   %11 = const [0.0, 0.1, 0.2, 0.3] : f32[4]  // ln.bias
//!   %12 = add %10, %11 : f32[N, 4]  // ln/Add_1
//!   return %12
//! }
//! graph @after(%x: f32[N, 4]) -> (y: f32[N, 4]) {
//!   %0 = const [1.0, 1.5, 2.0, 2.5] : f32[4]  // ln.weight
//!   %1 = const [0.0, 0.1, 0.2, 0.3] : f32[4]  // ln.bias
//!   %2 = layer_norm %x, %0, %1 {axis = 1, epsilon = 1e-12} : f32[N, 4]  // ln/Add_1
//!   return %2
//! }
//! ```

use margay_ir::ops::{Bits, LayerNorm, ReduceKind};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict,
};

use crate::matching::{both_orders, is_number, scalar};

/// Finds layer normalization.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeLayerNorm;

impl Pass for RecognizeLayerNorm {
    fn name(&self) -> &'static str {
        "recognize-layer-norm"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "layer-norm-from-means", apply: layer_norm }])
    }
}

fn layer_norm(g: &Graph, n: NodeId, _: &RecognizeLayerNorm) -> RuleResult {
    let Some((x, scale, bias, epsilon)) = find(g, n.into()) else { return Ok(Verdict::NoMatch) };
    let axis = g.ty(x).ndim() - 1;
    let mut patch = Patch::new();
    let op = LayerNorm { axis, epsilon: Bits::new(epsilon) };
    let new = patch.add(g, op, &[x, scale, bias], g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// `(x, scale, bias, epsilon)` where `v` is `normalized(x) * scale + bias`.
fn find(g: &Graph, v: Value) -> Option<(Value, Value, Value, f64)> {
    if !matches!(g.op(v.node), Op::Add(_)) {
        return None;
    }
    both_orders(g, v).into_iter().find_map(|[product, bias]| {
        if !matches!(g.op(product.node), Op::Mul(_)) {
            return None;
        }
        both_orders(g, product).into_iter().find_map(|[unit, scale]| {
            let (x, epsilon) = normalized(g, unit)?;
            let row = &g.ty(x).shape[g.ty(x).ndim() - 1..];
            let fits = |p: Value| g.constant(p).is_some() && g.ty(p).shape == row;
            // An epsilon or exponent with more axes than x gives the result its axes.
            let same = g.ty(x) == g.ty(v);
            (same && fits(scale) && fits(bias)).then_some((x, scale, bias, epsilon))
        })
    })
}

/// `(x, epsilon)` where `v` is `(x - mean) / sqrt(var + epsilon)`.
fn normalized(g: &Graph, v: Value) -> Option<(Value, f64)> {
    let Op::Div(_) = g.op(v.node) else { return None };
    let [centred, deviation] = both_orders(g, v)[0];
    let (Op::Sub(_), Op::Sqrt(_)) = (g.op(centred.node), g.op(deviation.node)) else { return None };
    let [x, mean] = both_orders(g, centred)[0];
    if mean_of(g, mean) != Some(x) {
        return None;
    }
    let shifted = g.inputs_of(deviation.node)[0];
    if !matches!(g.op(shifted.node), Op::Add(_)) {
        return None;
    }
    both_orders(g, shifted).into_iter().find_map(|[variance, epsilon]| {
        let epsilon = scalar(g, epsilon)?;
        let square = mean_of(g, variance)?;
        let squares_centred = match g.op(square.node) {
            Op::Pow(_) => {
                both_orders(g, square)[0][0] == centred && is_number(g, both_orders(g, square)[0][1], 2.0)
            }
            Op::Mul(_) => both_orders(g, square)[0] == [centred, centred],
            _ => false,
        };
        squares_centred.then_some((x, epsilon))
    })
}

/// The operand of a mean over the last axis that keeps the axis.
fn mean_of(g: &Graph, v: Value) -> Option<Value> {
    let x = *g.inputs_of(v.node).first()?;
    match g.op(v.node) {
        Op::Reduce(r) if r.kind == ReduceKind::Mean && r.keepdims && r.axes == [g.ty(x).ndim() - 1] => {
            Some(x)
        }
        _ => None,
    }
}
