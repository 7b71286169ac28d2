//! Losses of classes.

use margay_ir::Value;
use margay_ir::ops::{Reduce, ReduceKind};
use margay_tensor::DType;

use super::Importer;
use super::call::{Call, Imported, Refusal};

/// `NegativeLogLikelihoodLoss`: minus the log-probability of the right class.
pub(super) fn negative_log_likelihood(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    Ok(vec![loss(cx, call, x)?])
}

/// `SoftmaxCrossEntropyLoss`: the same of the logarithms of softmax, which are its second result.
pub(super) fn softmax_cross_entropy(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let logs = super::normalizations::log_softmax_of(cx, x, 1)?;
    Ok(vec![loss(cx, call, logs)?, logs])
}

/// Of log-probabilities `[N, C, d…]`, targets `[N, d…]` (input 1) and perhaps weights `[C]` (input 2).
fn loss(cx: &mut Importer, call: &Call, logs: Value) -> Result<Value, Refusal> {
    let (target, weights) = (call.input(1)?, call.optional(2));
    let shape = cx.ty(logs).shape.clone();
    if shape.len() < 2 {
        return Err(Refusal::Invalid(format!("expected at least 2 axes, found {}", shape.len())));
    }
    let target = cx.cast(target, DType::I64)?;
    let places = cx.unsqueezed(target, 1)?;
    let classes = cx.positions(&shape, 1)?;
    let mut here = cx.equal(classes, places)?;
    let ignored = call.optional_int("ignore_index")?;
    let taken = match ignored {
        Some(ignored) => {
            let ignored = cx.scalar(DType::I64, ignored as f64)?;
            let dropped = cx.equal(target, ignored)?;
            let taken = cx.not(dropped)?;
            let kept = cx.unsqueezed(taken, 1)?;
            here = cx.both(here, kept)?;
            Some(taken)
        }
        None => None,
    };
    let of_target = |cx: &mut Importer, x: Value| {
        let chosen = cx.chosen_or(here, x, 0.0)?;
        cx.joined(ReduceKind::Sum, chosen, &[1], false)
    };
    let picked = of_target(cx, logs)?;
    let mut losses = cx.negated(picked)?;
    let weight = match weights {
        Some(weights) => {
            let weights = cx.along(weights, 1, shape.len())?;
            let weight = of_target(cx, weights)?;
            losses = cx.times(losses, weight)?;
            Some(weight)
        }
        None => taken.map(|taken| cx.cast(taken, cx.ty(logs).dtype)).transpose()?,
    };
    let all = |kind| Reduce { kind, axes: (0..shape.len() - 1).collect(), keepdims: false };
    match call.text("reduction", "mean")? {
        "none" => Ok(losses),
        "sum" => cx.add(all(ReduceKind::Sum), &[losses]),
        "mean" => match weight {
            None => cx.add(all(ReduceKind::Mean), &[losses]),
            Some(weight) => {
                let sum = cx.add(all(ReduceKind::Sum), &[losses])?;
                let count = cx.add(all(ReduceKind::Sum), &[weight])?;
                cx.over(sum, count)
            }
        },
        other => Err(Refusal::Invalid(format!("expected reduction none, sum or mean, found `{other}`"))),
    }
}
