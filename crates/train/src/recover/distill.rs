//! Distillation as a task for [`fit`](mod@crate::fit): the teacher says on every batch what the student is to compute.

use std::sync::Arc;

use margay_driver::padding::{Padding, Runs, runs, without};
use margay_driver::{Arrays, Backend, Interruption, Marks, Mask, Runner, Samples};
use margay_ir::Graph;
use margay_tensor::Tensor;

use super::objective::{Objective, Scaled};
use super::pairs::Pair;
use crate::fit::Tensors;
use crate::{Evaluation, Evaluator, Task, TrainError};

/// Samples by which the size of the teacher's values is measured, at most.
const SCALING_SAMPLES: usize = 256;

/// The dense model, with the values that the student is to have as its outputs.
pub(super) struct Teacher {
    runner: Runner,
}

impl Teacher {
    /// A teacher of these values.
    pub(super) fn new(g: &Graph, pairs: &[Pair], backend: &Arc<dyn Backend>, threads: usize) -> Teacher {
        let targets: Vec<_> = pairs.iter().map(|p| (p.target.clone(), p.teacher)).collect();
        Teacher { runner: Runner::new(g.cut(&[], &targets), backend, threads) }
    }

    /// The inputs of a batch together with the targets.
    fn taught(&mut self, batch: Arrays) -> Result<Tensors, TrainError> {
        let targets = self.runner.run(&batch)?;
        Ok(batch.into_iter().chain(targets).collect())
    }

    /// The variance of each of its values over the places that count.
    pub(super) fn variances(
        &mut self,
        samples: &Samples,
        mask: &Mask,
        batch: usize,
    ) -> Result<Vec<f64>, TrainError> {
        let mut sums: Vec<Spread> = Vec::new();
        let few = samples.spread(self.runner.graph(), SCALING_SAMPLES, batch)?;
        for inputs in few.runs(self.runner.graph(), batch) {
            let inputs = inputs?;
            let marks = mask.marks(&inputs);
            let outputs = self.runner.run(&inputs)?;
            sums.resize_with(outputs.len(), Spread::default);
            for (sum, (name, tensor)) in sums.iter_mut().zip(&outputs) {
                sum.add(tensor, marks.as_ref().map(Marks::counts));
                if !sum.energy.is_finite() {
                    let message = format!("the teacher's `{name}` is not finite on the data");
                    return Err(TrainError::Options(message));
                }
            }
        }
        Ok(sums.iter().map(Spread::variance).collect())
    }
}

/// Mean and variance of the elements of a value, feature by feature along the last axis.
#[derive(Default)]
struct Spread {
    rows: usize,
    sum: Vec<f64>,
    energy: f64,
}

impl Spread {
    fn add(&mut self, t: &Tensor, marks: Option<&[bool]>) {
        let width = t.shape().last().copied().unwrap_or(1).max(1);
        let data = margay_ir::ops::Numbers::of(t).map_or(Vec::new(), margay_ir::ops::Numbers::floats);
        self.sum.resize(width, 0.0);
        let marks = marks.filter(|m| m.len() * width == data.len());
        for (i, row) in data.chunks_exact(width).enumerate() {
            if marks.is_none_or(|m| m[i]) {
                self.rows += 1;
                self.sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
                self.energy += row.iter().map(|v| v * v).sum::<f64>();
            }
        }
    }

    /// Never zero: a value that does not vary has nothing to be relative to.
    fn variance(&self) -> f64 {
        let rows = (self.rows as f64).max(1.0);
        let mean: f64 = self.sum.iter().map(|s| (s / rows).powi(2)).sum();
        let numbers = self.sum.len().max(1) as f64;
        let (energy, centred) = (self.energy / rows / numbers, (self.energy / rows - mean) / numbers);
        if centred > 1e-9 * energy { centred } else { energy.max(1e-12) }
    }
}

/// Batches with targets, and the error on held-out samples.
pub(super) struct Distillation {
    train: Samples,
    /// With the targets that `held_out` needs.
    held_out: Vec<Tensors>,
    teacher: Teacher,
    evaluator: Evaluator,
    padding: Option<Padding>,
}

impl Distillation {
    pub(super) fn new(
        train: Samples,
        held_out: &Samples,
        teacher: Teacher,
        output_teacher: &mut Teacher,
        evaluator: Evaluator,
        batch: usize,
        padding: Option<Padding>,
    ) -> Result<Distillation, TrainError> {
        // Batches of one size only, so that all of them count the same.
        let g = output_teacher.runner.graph();
        let whole = runs(g, held_out, padding.as_ref(), batch, held_out.rows(), Runs::Whole)?;
        let held_out = whole.into_iter().map(|run| output_teacher.taught(run)).collect::<Result<_, _>>()?;
        Ok(Distillation { train, held_out, teacher, evaluator, padding })
    }

    /// A batch of each shape that there may be.
    pub(super) fn examples(&mut self, batch: usize) -> Result<Vec<Tensors>, TrainError> {
        let first = self.train.row(0, batch)?;
        let Some(padding) = &self.padding else { return Ok(vec![self.teacher.taught(first)?]) };
        let cut = |length: &usize| padding.cut_to(first.clone(), *length);
        padding.lengths().iter().map(cut).map(|batch| self.teacher.taught(batch)).collect()
    }

    /// What is learned from.
    pub(super) fn samples(&self) -> &Samples {
        &self.train
    }

    /// Measures another student from now on; what measured the one before.
    pub(super) fn measure(&mut self, evaluator: Evaluator) -> Evaluator {
        std::mem::replace(&mut self.evaluator, evaluator)
    }
}

impl Task for Distillation {
    fn rows(&self) -> usize {
        self.train.rows()
    }

    fn lengths(&self) -> Option<Vec<usize>> {
        self.padding.as_ref().map(|padding| padding.of_samples(&self.train))
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Tensors, TrainError> {
        let batch = self.train.pick(rows)?;
        self.teacher.taught(without(self.padding.as_ref(), batch))
    }

    /// `error` is the relative L2 error of the outputs about their mean, of which each output and each batch has the same
    /// share, or, where rows are averaged, `1 - cosine` of the averages; the measures are both.
    fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError> {
        let (mut squared, mut distance) = (0.0, None);
        for batch in &self.held_out {
            for (name, value) in self.evaluator.run(parameters, batch)? {
                let value = value.to_vec::<f32>()?.first().map_or(f64::NAN, |v| f64::from(*v));
                match name.as_str() {
                    "distance" => *distance.get_or_insert(0.0) += value,
                    _ => squared += value,
                }
            }
        }
        let count = self.held_out.len() as f64;
        let relative = (squared / count).sqrt();
        let distance = distance.map(|d: f64| d / count);
        let mut measures = vec![("about_mean_l2".to_owned(), relative)];
        measures.extend(distance.map(|d| ("cosine".to_owned(), 1.0 - d)));
        Ok(Evaluation { error: distance.unwrap_or(relative), measures })
    }
}

/// Values with the variances that were measured for them.
pub(super) fn scaled(pairs: &[Pair], variances: &[f64]) -> Vec<Scaled> {
    pairs.iter().zip(variances).map(|(p, &variance)| Scaled { pair: p.clone(), variance }).collect()
}

/// What is measured while the student learns.
pub(super) fn evaluator(
    student: &Graph,
    parameters: &[margay_ir::NodeId],
    objective: &Objective,
    backend: &Arc<dyn Backend>,
    threads: usize,
    interruption: &Interruption,
) -> Result<Evaluator, TrainError> {
    let evaluator = Evaluator::new(student, parameters, &|g| objective.measures(g), backend, threads)?;
    Ok(evaluator.until(interruption))
}
