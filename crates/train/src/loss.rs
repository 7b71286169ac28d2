//! Losses: scalars that say how far predictions are from targets, added to a graph as ordinary operators.
//!
//! All are means over rows, a row being what is left when the last axis is taken away. *Weights* say how much each row
//! counts: their shape is that of the prediction without some of its last axes, their type a number or a truth value,
//! as that of an attention mask. Rows of weight 0 do not count; if none counts, the loss is 0.
//!
//! Exponentials are shifted by the largest number of their row, rounded down, so that nothing overflows. Rounding has
//! derivative 0, so no derivative is taken through the search for the largest number, where it would cancel anyway.

use margay_ir::ops::{Equal, Exp, Floor, Log, Not, Reduce, ReduceKind, Reshape, Sub};
use margay_ir::types::ShapeText;
use margay_ir::{AddError, Builder, Graph, Origin, Value};
use margay_tensor::{DType, Dim, Tensor};

use crate::TrainError;

/// The label of positions that a masked language model need not predict.
pub const IGNORED: i64 = -100;

/// The mean of squared differences between floats of one type and shape.
///
/// # Errors
/// [`TrainError::Mismatch`] where types or shapes do not fit.
pub fn mse(
    g: &mut Graph,
    prediction: Value,
    target: Value,
    weights: Option<Value>,
) -> Result<Value, TrainError> {
    let mut n = Builder::new(g, Origin::named("loss"));
    expect_alike(&n, prediction, target)?;
    let difference = n.op(Sub, &[prediction, target])?;
    let difference = counted(&mut n, difference, weights)?;
    let square = n.mul(difference, difference)?;
    average(&mut n, square, weights)
}

/// 1 minus the mean cosine between vectors along the last axis, of floats of one type and shape. A vector of
/// length below 1e-8 counts as one of that length, so that zeros have a cosine of 0 and no derivative.
///
/// # Errors
/// [`TrainError::Mismatch`] where types or shapes do not fit.
pub fn cosine(
    g: &mut Graph,
    prediction: Value,
    target: Value,
    weights: Option<Value>,
) -> Result<Value, TrainError> {
    let mut n = Builder::new(g, Origin::named("loss"));
    expect_alike(&n, prediction, target)?;
    expect_rows(&n, prediction)?;
    let prediction = counted(&mut n, prediction, weights)?;
    let target = counted(&mut n, target, weights)?;
    let product = n.mul(prediction, target)?;
    let product = n.sum_last(product)?;
    let mut lengths = Vec::with_capacity(2);
    for v in [prediction, target] {
        let square = n.mul(v, v)?;
        let sum = n.sum_last(square)?;
        let bounded = n.at_least(sum, 1e-16)?;
        lengths.push(n.sqrt(bounded)?);
    }
    let length = n.mul(lengths[0], lengths[1])?;
    let cosine = n.div(product, length)?;
    let one = n.number(cosine, 1.0)?;
    let distance = n.sub(one, cosine)?;
    average(&mut n, distance, weights)
}

/// The mean of -log softmax(logits)\[label\] over the rows whose label is not `ignore`. Classes lie along the last axis;
/// `labels` are integers with the other axes. Labels must be classes or `ignore`, see [`check_labels`]: at any other
/// label the loss is that of a class of which the logit is the largest of its row.
///
/// # Errors
/// [`TrainError::Mismatch`] where types or shapes do not fit, and where the number of classes is not known.
pub fn cross_entropy(
    g: &mut Graph,
    logits: Value,
    labels: Value,
    ignore: Option<i64>,
    weights: Option<Value>,
) -> Result<Value, TrainError> {
    let mut n = Builder::new(g, Origin::named("loss"));
    let kept = match ignore {
        None => None,
        Some(label) => {
            let ignored = n.number(labels, label as f64)?;
            let equal = n.op(Equal, &[labels, ignored])?;
            Some(n.op(Not, &[equal])?)
        }
    };
    let hit = hits(&mut n, logits, labels)?;
    let logits = counted(&mut n, logits, weights)?;
    let logits = counted(&mut n, logits, kept)?;
    let (shifted, log_sum) = log_sum_exp(&mut n, logits)?;
    let chosen = n.where_or(hit, shifted, 0.0)?;
    let chosen = n.sum_last(chosen)?;
    let surprise = n.sub(log_sum, chosen)?;
    let Some(kept) = kept else { return average(&mut n, surprise, weights) };
    let surprise = n.where_or(kept, surprise, 0.0)?;
    let mut counts = n.cast(kept, n.ty(surprise).dtype)?;
    if let Some(weights) = weights {
        let (dtype, axes) = (n.ty(surprise).dtype, n.ty(surprise).ndim());
        expect_prefix(&n, surprise, weights)?;
        let weights = n.cast(weights, dtype)?;
        let mut shape = n.ty(weights).shape.clone();
        shape.resize(axes, Dim::from(1usize));
        let weights = n.op(Reshape { shape }, &[weights])?;
        counts = n.mul(counts, weights)?;
    }
    average(&mut n, surprise, Some(counts))
}

/// The loss of masked language models: cross-entropy of logits \[batch, length, vocabulary\] at the positions whose
/// label is not [`IGNORED`].
///
/// # Errors
/// As [`cross_entropy`].
pub fn masked_lm(
    g: &mut Graph,
    logits: Value,
    labels: Value,
    weights: Option<Value>,
) -> Result<Value, TrainError> {
    cross_entropy(g, logits, labels, Some(IGNORED), weights)
}

/// `T²` times the mean of KL(softmax(teacher / T) ‖ softmax(student / T)) along the last axis: Hinton, Vinyals and Dean,
/// *Distilling the Knowledge in a Neural Network*, 2015 (arXiv 1503.02531). The factor keeps gradients of one size when
/// the temperature `T` changes.
///
/// # Errors
/// [`TrainError::Mismatch`] where types or shapes do not fit; [`TrainError::Options`] unless `T` is above 0.
pub fn kl_divergence(
    g: &mut Graph,
    student: Value,
    teacher: Value,
    temperature: f64,
    weights: Option<Value>,
) -> Result<Value, TrainError> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(TrainError::Options(format!("temperature: expected above 0, found {temperature}")));
    }
    let mut n = Builder::new(g, Origin::named("loss"));
    expect_alike(&n, student, teacher)?;
    expect_rows(&n, student)?;
    let [teacher, student] = [teacher, student].map(|logits| {
        let logits = counted(&mut n, logits, weights)?;
        let soft = n.scale(logits, 1.0 / temperature)?;
        let (shifted, log_sum) = log_sum_exp(&mut n, soft)?;
        let log_sum = keep_axis(&mut n, log_sum)?;
        Ok::<Value, TrainError>(n.sub(shifted, log_sum)?)
    });
    let (teacher, student) = (teacher?, student?);
    let share = n.op(Exp, &[teacher])?;
    let gap = n.sub(teacher, student)?;
    let term = n.mul(share, gap)?;
    // A class that the teacher rules out adds nothing, however unlikely it is to the student.
    let possible = n.positive(share)?;
    let term = n.where_or(possible, term, 0.0)?;
    let rows = n.sum_last(term)?;
    let mean = average(&mut n, rows, weights)?;
    Ok(n.scale(mean, temperature * temperature)?)
}

/// The share of rows whose largest logit is that of their label, among rows whose label is not `ignore`. No loss: it
/// has no derivative.
///
/// # Errors
/// As [`cross_entropy`].
pub fn accuracy(
    g: &mut Graph,
    logits: Value,
    labels: Value,
    ignore: Option<i64>,
) -> Result<Value, TrainError> {
    let mut n = Builder::new(g, Origin::named("accuracy"));
    let hit = hits(&mut n, logits, labels)?;
    let axis = n.ty(logits).ndim() - 1;
    let largest = n.op(Reduce { kind: ReduceKind::Max, axes: vec![axis], keepdims: true }, &[logits])?;
    let best = n.op(Equal, &[logits, largest])?;
    let both = n.op(margay_ir::ops::And, &[hit, best])?;
    let right = n.cast(both, n.ty(logits).dtype)?;
    let right = n.sum_last(right)?;
    let kept = match ignore {
        None => None,
        Some(label) => {
            let ignored = n.number(labels, label as f64)?;
            let equal = n.op(Equal, &[labels, ignored])?;
            Some(n.op(Not, &[equal])?)
        }
    };
    average(&mut n, right, kept)
}

/// Checks that labels are classes below `classes`, or `ignore`.
///
/// # Errors
/// [`TrainError::Mismatch`] with the first label that is not.
pub fn check_labels(labels: &Tensor, classes: usize, ignore: Option<i64>) -> Result<(), TrainError> {
    let values = match labels.dtype() {
        DType::I32 => labels.as_slice::<i32>()?.iter().map(|&v| i64::from(v)).collect(),
        _ => labels.to_vec::<i64>()?,
    };
    let right = |v: i64| Some(v) == ignore || (0..classes as i64).contains(&v);
    match values.iter().position(|&v| !right(v)) {
        None => Ok(()),
        Some(at) => Err(TrainError::Mismatch {
            what: format!("label {at}"),
            expected: match ignore {
                Some(ignore) => format!("0 to {}, or {ignore}", classes.saturating_sub(1)),
                None => format!("0 to {}", classes.saturating_sub(1)),
            },
            found: values[at].to_string(),
        }),
    }
}

/// Where the class of a logit is the label of its row.
fn hits(n: &mut Builder<'_>, logits: Value, labels: Value) -> Result<Value, TrainError> {
    expect_rows(n, logits)?;
    let (x, y) = (n.ty(logits).clone(), n.ty(labels).clone());
    let outer = &x.shape[..x.ndim() - 1];
    if !matches!(y.dtype, DType::I64 | DType::I32) || y.shape != outer {
        return Err(TrainError::Mismatch {
            what: format!("labels of logits {x}"),
            expected: format!("i64{}", ShapeText(outer)),
            found: y.to_string(),
        });
    }
    let Some(classes) = x.shape[x.ndim() - 1].as_extent() else {
        return Err(TrainError::Mismatch {
            what: "classes along the last axis of the logits".into(),
            expected: "a known number".into(),
            found: x.to_string(),
        });
    };
    // As floats: vectors of these compare at full width, and they hold every class below 2²⁴.
    let numbers: Vec<f32> = (0..classes).map(|i| i as f32).collect();
    let numbers = n.constant(Tensor::from_slice(&[classes], &numbers)?)?;
    let labels = n.cast(labels, DType::F32)?;
    let labels = keep_axis(n, labels)?;
    Ok(n.op(Equal, &[numbers, labels])?)
}

/// Logits less a number of their row, and the logarithm of the sum of the exponentials of these.
fn log_sum_exp(n: &mut Builder<'_>, logits: Value) -> Result<(Value, Value), AddError> {
    let axis = n.ty(logits).ndim() - 1;
    let largest = n.op(Reduce { kind: ReduceKind::Max, axes: vec![axis], keepdims: true }, &[logits])?;
    let shift = n.op(Floor, &[largest])?;
    let shifted = n.sub(logits, shift)?;
    let powers = n.op(Exp, &[shifted])?;
    let sum = n.sum_last(powers)?;
    Ok((shifted, n.op(Log, &[sum])?))
}

/// The mean of `losses`, of which the rows count as the weights say.
fn average(n: &mut Builder<'_>, losses: Value, weights: Option<Value>) -> Result<Value, TrainError> {
    let Some(weights) = weights else { return Ok(n.join(ReduceKind::Mean, losses, 0)?) };
    expect_prefix(n, losses, weights)?;
    let weights = n.cast(weights, n.ty(losses).dtype)?;
    let rows = n.join(ReduceKind::Mean, losses, n.ty(weights).ndim())?;
    let weighted = n.mul(rows, weights)?;
    let (total, count) = (n.join(ReduceKind::Sum, weighted, 0)?, n.join(ReduceKind::Sum, weights, 0)?);
    let some = n.positive(count)?;
    let count = n.where_or(some, count, 1.0)?;
    Ok(n.div(total, count)?)
}

/// A value with zeros in the rows whose weight is 0, which may hold anything: neither they nor derivatives by them, which
/// are 0 too, meet what is there. `weights` have some of the first axes of the value.
pub(crate) fn counted(n: &mut Builder<'_>, v: Value, weights: Option<Value>) -> Result<Value, TrainError> {
    let Some(weights) = weights else { return Ok(v) };
    expect_prefix(n, v, weights)?;
    let counts = match n.ty(weights).dtype {
        DType::Bool => weights,
        _ => {
            let zero = n.number(weights, 0.0)?;
            let none = n.op(Equal, &[weights, zero])?;
            n.op(Not, &[none])?
        }
    };
    let mut shape = n.ty(counts).shape.clone();
    shape.resize(n.ty(v).ndim(), Dim::from(1usize));
    let counts = n.op(Reshape { shape }, &[counts])?;
    Ok(n.where_or(counts, v, 0.0)?)
}

/// A value with an axis of one element at its end.
fn keep_axis(n: &mut Builder<'_>, v: Value) -> Result<Value, AddError> {
    let mut shape = n.ty(v).shape.clone();
    shape.push(Dim::from(1usize));
    n.op(Reshape { shape }, &[v])
}

fn expect_alike(n: &Builder<'_>, prediction: Value, target: Value) -> Result<(), TrainError> {
    let (expected, found) = (n.ty(prediction), n.ty(target));
    if expected == found && expected.dtype.is_float() {
        return Ok(());
    }
    let expected = if expected.dtype.is_float() { expected.to_string() } else { "floats".into() };
    Err(TrainError::Mismatch { what: "target".into(), expected, found: found.to_string() })
}

fn expect_rows(n: &Builder<'_>, v: Value) -> Result<(), TrainError> {
    let ty = n.ty(v);
    if ty.ndim() > 0 && ty.dtype.is_float() {
        return Ok(());
    }
    let expected = "floats with at least 1 axis".into();
    Err(TrainError::Mismatch { what: "prediction".into(), expected, found: ty.to_string() })
}

fn expect_prefix(n: &Builder<'_>, losses: Value, weights: Value) -> Result<(), TrainError> {
    let (rows, found) = (n.ty(losses), n.ty(weights));
    if rows.shape.starts_with(&found.shape) {
        return Ok(());
    }
    Err(TrainError::Mismatch {
        what: "weights".into(),
        expected: format!("first axes of {}", ShapeText(&rows.shape)),
        found: ShapeText(&found.shape).to_string(),
    })
}
