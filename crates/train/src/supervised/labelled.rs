//! Samples with labels as a task: batches of those that are trained on, errors on those held out.

use margay_driver::{Interruption, Samples};
use margay_ir::Graph;
use margay_ir::ops::Numbers;
use margay_tensor::{DType, Tensor};

use super::{Supervised, TARGET};
use crate::fit::{Ranked, Tensors};
use crate::loss::IGNORED;
use crate::{Evaluation, Evaluator, Task, TrainError};

/// Samples with labels, and what measures a model on them.
pub(super) struct Labelled<'a> {
    pub(super) options: &'a Supervised,
    /// The model, with factors of the ranks that they have now.
    pub(super) model: Graph,
    /// The model as it was at first, which names directions of features.
    pub(super) forward: &'a Graph,
    pub(super) data: &'a Samples,
    pub(super) train: Vec<usize>,
    pub(super) held_out: Vec<usize>,
    pub(super) evaluator: Evaluator,
    /// Whether the model takes whole batches only.
    pub(super) fixed: bool,
    /// The numbers of the factors at first, for each of the weights that they stand in for.
    pub(super) first_share: f64,
    pub(super) interruption: Interruption,
}

impl Labelled<'_> {
    /// How much a batch counts in a mean over all.
    fn weight(&self, batch: &[(String, Tensor)]) -> Result<f64, TrainError> {
        let find = |name: &str| batch.iter().find(|(n, _)| n == name).map(|(_, t)| t);
        let floats = |t: &Tensor| match Numbers::of(t) {
            Ok(numbers) => Ok(numbers.floats()),
            Err(e) => Err(TrainError::Options(e.to_string())),
        };
        let weights = self.options.weights.as_deref().and_then(find).map(floats).transpose()?;
        let labels = find(TARGET).filter(|t| t.dtype() == DType::I64);
        let Some(labels) = labels.map(Tensor::to_vec::<i64>).transpose()? else {
            let rows = find(TARGET).and_then(|t| t.shape().first().copied()).unwrap_or(0);
            return Ok(weights.map_or(rows as f64, |w| w.iter().sum()));
        };
        // Weights may be those of groups of labels.
        let group = weights.as_ref().map_or(1, |w| (labels.len() / w.len().max(1)).max(1));
        let weight = |i: usize| weights.as_ref().map_or(1.0, |w| w.get(i / group).copied().unwrap_or(0.0));
        Ok(labels.iter().enumerate().filter(|(_, l)| **l != IGNORED).map(|(i, _)| weight(i)).sum())
    }
}

impl Task for Labelled<'_> {
    fn ranks(&mut self) -> Option<&mut dyn Ranked> {
        match self.options.ranks {
            Some(_) => Some(self),
            None => None,
        }
    }

    fn changed(&mut self, step: u64) -> Result<Tensors, TrainError> {
        let redraw = self.options.redraw.as_ref();
        let due = redraw.and_then(|redraw| Some((redraw, redraw.due(step)?)));
        due.map_or_else(|| Ok(Tensors::new()), |(redraw, number)| redraw.draw(self.forward, number))
    }

    fn rows(&self) -> usize {
        self.train.len()
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Tensors, TrainError> {
        let rows: Vec<usize> = rows.iter().map(|r| self.train[*r]).collect();
        Ok(self.data.pick(&rows)?)
    }

    fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError> {
        let (mut sums, mut total) = (Vec::<(String, f64)>::new(), 0.0);
        let size = self.options.fit.batch;
        let whole = self.held_out.len() / size * size;
        let used = if self.fixed { whole } else { self.held_out.len() };
        if used == 0 {
            return Err(TrainError::Options(format!(
                "the model takes batches of {size}, and {} samples are held out",
                self.held_out.len()
            )));
        }
        for rows in self.held_out[..used].chunks(size) {
            let batch = self.data.pick(rows)?;
            let weight = self.weight(&batch)?;
            for (name, t) in self.evaluator.run(parameters, &batch)? {
                let numbers = Numbers::of(&t).map_err(|e| TrainError::Options(e.to_string()))?.floats();
                let value = numbers.first().copied().unwrap_or(f64::NAN) * weight;
                match sums.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, sum)) => *sum += value,
                    None => sums.push((name, value)),
                }
            }
            total += weight;
        }
        let mean = |(name, sum): (String, f64)| (name, if total > 0.0 { sum / total } else { 0.0 });
        let mut means: Vec<(String, f64)> = sums.into_iter().map(mean).collect();
        let (_, error) = means.remove(0);
        Ok(Evaluation { error, measures: means })
    }
}
