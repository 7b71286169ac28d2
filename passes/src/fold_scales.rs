//! Multiplies what scales the channels of a convolution, or the columns of a product, into its constant weight: what a
//! normalization by stored statistics leaves behind.
//!
//! Required stage: imported. A constant that was added before is scaled as well. Not about weights that others read, nor
//! about such as are stored narrow, nor about factors that are no numbers.
//!
//! ```text
//! graph @before(%x: f32[N, 3, 8, 8]) -> (y: f32[N, 2, 8, 8]) {
//!   %0 = const [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] : f32[2, 3, 1, 1]  // conv.weight
//!   %1 = const [2.0, 0.5] : f32[2, 1, 1]
//!   %2 = conv %x, %0 : f32[N, 2, 8, 8]  // conv
//!   %3 = mul %2, %1 : f32[N, 2, 8, 8]  // norm
//!   return %3
//! }
//! graph @after(%x: f32[N, 3, 8, 8]) -> (y: f32[N, 2, 8, 8]) {
//!   %0 = const [2.0, 4.0, 6.0, 2.0, 2.5, 3.0] : f32[2, 3, 1, 1]  // conv.weight
//!   %1 = conv %x, %0 : f32[N, 2, 8, 8]  // conv
//!   return %1
//! }
//! ```

use margay_ir::ops::{Const, ImageLayout};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    AddError, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Payload,
    Value, Verdict,
};
use margay_tensor::{DType, Tensor};

use crate::matching::both_orders;

/// Multiplies factors per channel into weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct FoldScales;

impl Pass for FoldScales {
    fn name(&self) -> &'static str {
        "fold-scales"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "scale-of-weighted-sums", apply: fold }])
    }
}

/// Sums of products with a constant weight: the value, the weight, and where the channels of either are.
struct Sums {
    value: Value,
    weight: Value,
    /// The axis of the channels in the result, from its end; they are axis 0 or the last axis of the weight.
    from_end: usize,
    first: bool,
}

fn fold(g: &Graph, n: NodeId, _: &FoldScales) -> RuleResult {
    if !matches!(g.op(n), Op::Mul(_)) {
        return Ok(Verdict::NoMatch);
    }
    for [x, factor] in both_orders(g, n.into()) {
        if g.sole_user(x) != Some(n) || g.ty(x).shape != g.ty(n.into()).shape {
            continue;
        }
        if let Some(sums) = sums(g, x)
            && let Some(factors) = per_channel(g, factor, &sums)
        {
            let mut patch = Patch::new();
            let scaled = scaled(g, &mut patch, &sums, &factors)?;
            patch.redirect(n.into(), scaled);
            return Ok(Verdict::Rewrite(patch));
        }
        if !matches!(g.op(x.node), Op::Add(_)) {
            continue;
        }
        for [y, shift] in both_orders(g, x) {
            let alone = g.sole_user(y) == Some(x.node) && g.ty(y).shape == g.ty(x).shape;
            let Some(sums) = sums(g, y).filter(|_| alone) else { continue };
            let (Some(factors), Some(shifts)) = (per_channel(g, factor, &sums), per_channel(g, shift, &sums))
            else {
                continue;
            };
            let mut patch = Patch::new();
            let scaled = scaled(g, &mut patch, &sums, &factors)?;
            let mut shape = vec![1; sums.from_end];
            shape[0] = factors.len();
            let shifts: Vec<f32> = shifts.iter().zip(&factors).map(|(a, b)| a * b).collect();
            let payload = Payload::new(Tensor::from_slice(&shape, &shifts).expect("as many as channels"));
            let shift = patch.add(g, Const { payload }, &[], g.node(shift.node).origin.clone())?;
            let sum = patch.add(g, g.op(x.node).clone(), &[scaled, shift], g.node(x.node).origin.clone())?;
            patch.redirect(n.into(), sum);
            return Ok(Verdict::Rewrite(patch));
        }
    }
    Ok(Verdict::NoMatch)
}

/// The operands of a convolution or a product whose constant weight nobody else reads.
fn sums(g: &Graph, value: Value) -> Option<Sums> {
    let (from_end, first) = match g.op(value.node) {
        Op::Conv(conv) if conv.layout == ImageLayout::Nchw => (g.ty(value).ndim() - 1, true),
        Op::MatMul(_) => (1, false),
        _ => return None,
    };
    let weight = g.inputs_of(value.node)[1];
    g.constant(weight).filter(|w| w.stored().is_plain() && w.tensor().dtype() == DType::F32)?;
    (g.sole_user(weight) == Some(value.node)).then_some(Sums { value, weight, from_end, first })
}

/// A constant of one number, or of one number per channel, as numbers of every channel.
fn per_channel(g: &Graph, v: Value, sums: &Sums) -> Option<Vec<f32>> {
    let payload = g.constant(v).filter(|c| c.stored().is_plain())?;
    let weight = g.constant(sums.weight)?.tensor().shape();
    let channels = if sums.first { weight[0] } else { weight[weight.len() - 1] };
    let shape = payload.tensor().shape();
    let at = shape.len().checked_sub(sums.from_end);
    let elsewhere = shape.iter().enumerate().filter(|(axis, _)| Some(*axis) != at).map(|(_, extent)| *extent);
    if payload.tensor().len() != 1
        && (elsewhere.into_iter().any(|extent| extent != 1) || at.map(|at| shape[at]) != Some(channels))
    {
        return None;
    }
    let numbers = payload.tensor().as_slice::<f32>().ok()?;
    let numbers = if numbers.len() == 1 { vec![numbers[0]; channels] } else { numbers.to_vec() };
    numbers.iter().all(|x| x.is_finite()).then_some(numbers)
}

/// The sums with a weight whose channels are multiplied by numbers.
fn scaled(g: &Graph, patch: &mut Patch, sums: &Sums, factors: &[f32]) -> Result<Value, AddError> {
    let weight = g.constant(sums.weight).expect("checked").tensor();
    let mut numbers = weight.as_slice::<f32>().expect("checked").to_vec();
    if sums.first {
        let each = numbers.len() / factors.len().max(1);
        for (channel, factor) in numbers.chunks_exact_mut(each.max(1)).zip(factors) {
            channel.iter_mut().for_each(|x| *x *= factor);
        }
    } else {
        for row in numbers.chunks_exact_mut(factors.len().max(1)) {
            row.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        }
    }
    let payload =
        Payload::new(Tensor::from_slice(weight.shape(), &numbers).expect("the shape of the weight"));
    let origin = g.node(sums.weight.node).origin.clone();
    let weight = patch.add(g, Const { payload }, &[], origin)?;
    let node = g.node(sums.value.node);
    patch.add(g, node.op.clone(), &[g.inputs_of(sums.value.node)[0], weight], node.origin.clone())
}
