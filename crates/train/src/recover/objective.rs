//! What the student is to minimize, as nodes of its graph.
//!
//! For each output the mean of `(s - t)²` over the variance of the teacher's `t`, so that outputs of all sizes count the
//! same; for values inside the same, averaged. Padding does not count. Where padding is marked, an output of three axes is
//! a row of vectors for each sample, and the cosine between the means of these rows counts as well: sentence encoders are
//! used that way.

use margay_driver::Mask;
use margay_ir::ops::{Reduce, ReduceKind, Reshape};
use margay_ir::{Builder, Graph, NodeId, Op, Origin, TensorType, Value};
use margay_tensor::{DType, Dim};

use super::pairs::Pair;
use crate::evaluator::Named;
use crate::{TrainError, loss};

/// How much the parts of the objective count.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Weights {
    /// Relative squared errors of the outputs.
    pub outputs: f64,
    /// `1 - cosine` of mean outputs.
    pub pooled: f64,
    /// Relative squared errors of values inside.
    pub hidden: f64,
}

impl Default for Weights {
    fn default() -> Weights {
        Weights { outputs: 1.0, pooled: 2.0, hidden: 0.5 }
    }
}

/// A value with what its squared errors are divided by.
#[derive(Clone, Debug)]
pub(super) struct Scaled {
    pub(super) pair: Pair,
    pub(super) variance: f64,
}

/// What the student is to minimize.
#[derive(Clone, Debug)]
pub(super) struct Objective {
    pub(super) outputs: Vec<Scaled>,
    pub(super) hidden: Vec<Scaled>,
    pub(super) mask: Mask,
    pub(super) weights: Weights,
}

/// The parts, as scalars of f32.
struct Parts {
    outputs: Value,
    /// `1 - cosine` of mean outputs, where there are rows to take the mean of.
    pooled: Option<Value>,
    hidden: Option<Value>,
}

impl Objective {
    /// The loss of a step.
    pub(super) fn loss(&self, g: &mut Graph) -> Result<Value, TrainError> {
        let parts = self.parts(g, true)?;
        let mut n = Builder::new(g, Origin::named("loss"));
        let mut total = n.scale(parts.outputs, self.weights.outputs)?;
        for (part, weight) in [(parts.pooled, self.weights.pooled), (parts.hidden, self.weights.hidden)] {
            if let Some(part) = part.filter(|_| weight > 0.0) {
                let part = n.scale(part, weight)?;
                total = n.add(total, part)?;
            }
        }
        Ok(total)
    }

    /// What is measured on held-out data: `error`, and `distance` where means of rows are compared.
    pub(super) fn measures(&self, g: &mut Graph) -> Result<Named, TrainError> {
        let parts = self.parts(g, false)?;
        let mut named = vec![("error", parts.outputs)];
        named.extend(parts.pooled.map(|pooled| ("distance", pooled)));
        Ok(named)
    }

    fn parts(&self, g: &mut Graph, with_hidden: bool) -> Result<Parts, TrainError> {
        let mask = self.mask_value(g);
        let mut squared = Vec::new();
        let mut pooled = Vec::new();
        for scaled in &self.outputs {
            let target = add_target(g, &scaled.pair);
            let weights = mask.filter(|m| is_prefix(g, *m, scaled.pair.student));
            squared.push(relative(g, scaled, target, weights)?);
            if let Some(mask) = weights.filter(|_| g.ty(target).ndim() == 3) {
                let student = mean_row(g, scaled.pair.student, mask)?;
                let teacher = mean_row(g, target, mask)?;
                pooled.push(loss::cosine(g, student, teacher, None)?);
            }
        }
        let mut hidden = Vec::new();
        for scaled in self.hidden.iter().filter(|_| with_hidden && self.weights.hidden > 0.0) {
            let target = add_target(g, &scaled.pair);
            let weights = mask.filter(|m| is_prefix(g, *m, target));
            hidden.push(relative(g, scaled, target, weights)?);
        }
        Ok(Parts {
            outputs: mean(g, &squared)?.expect("there is an output"),
            pooled: mean(g, &pooled)?,
            hidden: mean(g, &hidden)?,
        })
    }

    /// The constants that what is compared depends on: others learn nothing.
    pub(super) fn reached(&self, student: &Graph, mut constants: Vec<NodeId>) -> Vec<NodeId> {
        let compared = self.outputs.iter().chain(&self.hidden);
        let wanted: Vec<_> = compared.map(|scaled| (scaled.pair.name.clone(), scaled.pair.student)).collect();
        let part = student.cut(&[], &wanted);
        constants.retain(|n| part.contains(*n));
        constants
    }

    fn mask_value(&self, g: &Graph) -> Option<Value> {
        let name = self.mask.input()?;
        let is_mask = |op: &Op| matches!(op, Op::Input(input) if *input.name == *name);
        g.inputs().iter().find(|n| is_mask(g.op(**n))).map(|n| (*n).into())
    }
}

fn add_target(g: &mut Graph, pair: &Pair) -> Value {
    let ty: TensorType = g.ty(pair.student).clone();
    g.add_input(&pair.target, ty)
}

/// The mean squared error over the variance, in f32.
fn relative(g: &mut Graph, s: &Scaled, target: Value, weights: Option<Value>) -> Result<Value, TrainError> {
    let error = loss::mse(g, s.pair.student, target, weights)?;
    let mut n = Builder::new(g, Origin::named("loss"));
    let error = n.cast(error, DType::F32)?;
    Ok(n.scale(error, 1.0 / s.variance)?)
}

/// The mean over the second of three axes, of the places that the mask marks.
fn mean_row(g: &mut Graph, v: Value, mask: Value) -> Result<Value, TrainError> {
    let mut n = Builder::new(g, Origin::named("loss"));
    let marks = n.cast(mask, n.ty(v).dtype)?;
    let mut shape = n.ty(marks).shape.clone();
    shape.push(Dim::from(1usize));
    let marks = n.op(Reshape { shape }, &[marks])?;
    let v = loss::counted(&mut n, v, Some(mask))?;
    let over = |keepdims| Reduce { kind: ReduceKind::Sum, axes: vec![1], keepdims };
    let marked = n.mul(v, marks)?;
    let (sum, count) = (n.op(over(false), &[marked])?, n.op(over(false), &[marks])?);
    let count = n.at_least(count, 1.0)?;
    Ok(n.div(sum, count)?)
}

fn mean(g: &mut Graph, values: &[Value]) -> Result<Option<Value>, TrainError> {
    let mut n = Builder::new(g, Origin::named("loss"));
    let Some((&first, rest)) = values.split_first() else { return Ok(None) };
    let mut sum = n.cast(first, DType::F32)?;
    for &v in rest {
        let v = n.cast(v, DType::F32)?;
        sum = n.add(sum, v)?;
    }
    Ok(Some(n.scale(sum, 1.0 / values.len() as f64)?))
}

/// Whether the axes of one value are the first ones of another.
fn is_prefix(g: &Graph, short: Value, long: Value) -> bool {
    g.ty(long).shape.starts_with(&g.ty(short).shape)
}
