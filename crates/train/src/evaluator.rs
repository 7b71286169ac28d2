//! A model whose parameters change between runs, without compiling it anew.

use std::sync::Arc;

use margay_driver::{Backend, Interruption, Runner};
use margay_ir::{Graph, NodeId, Value};
use margay_passes::make_trainable;
use margay_tensor::Tensor;

use crate::TrainError;
use crate::fit::Tensors;

/// Outputs that an objective asks for, by name.
pub type Named = Vec<(&'static str, Value)>;

/// Runs the forward graph of a model with given parameters.
pub struct Evaluator {
    runner: Runner,
}

impl Evaluator {
    /// A model some of whose constants are given with every run, by the names of the training step. `objective` may add
    /// inputs, and returns outputs that take the place of the model's, if any.
    ///
    /// # Errors
    /// As [`TrainingStep::new`](crate::TrainingStep::new).
    pub fn new(
        forward: &Graph,
        parameters: &[NodeId],
        objective: &dyn Fn(&mut Graph) -> Result<Named, TrainError>,
        backend: &Arc<dyn Backend>,
        threads: usize,
    ) -> Result<Evaluator, TrainError> {
        let mut g = forward.clone();
        make_trainable(&mut g, parameters)?;
        let outputs = objective(&mut g)?;
        if !outputs.is_empty() {
            let wanted: Vec<_> = outputs.into_iter().map(|(name, v)| (name.to_owned(), v)).collect();
            g = g.cut(&[], &wanted);
        }
        Ok(Evaluator { runner: Runner::new(g, backend, threads) })
    }

    /// The same, which gives up when it is interrupted.
    #[must_use]
    pub fn until(self, interruption: &Interruption) -> Evaluator {
        Evaluator { runner: self.runner.until(interruption) }
    }

    /// The outputs for a batch.
    pub fn run(
        &mut self,
        parameters: &[(String, Tensor)],
        batch: &[(String, Tensor)],
    ) -> Result<Tensors, TrainError> {
        let inputs: Tensors = parameters.iter().chain(batch).cloned().collect();
        Ok(self.runner.run(&inputs)?)
    }
}
