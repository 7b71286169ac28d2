//! A training step as machine code, and the session that holds its states.

use std::collections::BTreeSet;
use std::sync::Arc;

use margay_driver::Backend;
use margay_driver::build::{self, CompiledStep, StepForm};
use margay_ir::{Graph, eval};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use serde::Serialize;

use crate::non_finite::{self, NonFinite};
use crate::step::{PEAK_RATE, STEP, TOTAL_STEPS, next};
use crate::{Schedule, TrainError, TrainingStep};

impl TrainingStep {
    /// How it is compiled: which states an output writes in place.
    pub fn form(&self) -> StepForm {
        let states = self.states.iter().map(|s| (s.name.clone(), next(&s.name))).collect();
        StepForm { states, max_saved_bytes: self.max_saved_bytes }
    }

    /// Gives the states of a session, which runs the compiled step, their first contents.
    ///
    /// # Errors
    /// A session of another program, and a device that failed.
    pub fn begin(&self, session: &mut Session) -> Result<(), TrainError> {
        for state in &self.states {
            session.set_state(&state.name, &state.initial)?;
        }
        Ok(())
    }
}

/// Runs a training step on batches of the shapes that it was compiled for.
pub struct Trainer {
    session: Session,
    parameters: Vec<String>,
    arena_bytes: usize,
    parameter_bytes: usize,
    saved: Vec<(String, u64)>,
    schedule: Schedule,
    /// What was compiled, to be looked into when its loss is not finite.
    source: Source,
}

/// A graph, what compiles it, and how many threads run it.
struct Source {
    graph: Graph,
    backend: Arc<dyn Backend>,
    threads: usize,
}

/// The scalars that a step computes.
#[derive(Clone, PartialEq, Debug)]
pub struct StepResult {
    /// The loss before the update.
    pub loss: f32,
    /// The learning rate of the update.
    pub learning_rate: f32,
    /// The norm of all gradients together, before clipping.
    pub gradient_norm: f32,
}

/// Memory of a training step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct StepMemory {
    /// Parameters under training.
    pub parameter_bytes: usize,
    /// Parameters, moments and counters.
    pub state_bytes: usize,
    /// What forward, backward and update keep meanwhile, as planned.
    pub arena_bytes: usize,
    /// What of it is kept from the forward pass for the backward pass.
    pub saved_bytes: u64,
    /// Constants that are not trained, in the layout of the kernels.
    pub constant_bytes: usize,
    /// All that the session holds: states, arena, scratch of the threads, outputs.
    pub session_bytes: usize,
}

impl Trainer {
    /// Compiles a step for batches of the shape of `example`, which gives every input that is no state. States hold
    /// their initial values.
    ///
    /// # Errors
    /// As [`of_shapes`](Trainer::of_shapes).
    pub fn new(
        step: &TrainingStep,
        example: &[(String, Tensor)],
        backend: &Arc<dyn Backend>,
        threads: usize,
    ) -> Result<Trainer, TrainError> {
        Trainer::of_shapes(step, &[example], backend, threads)
    }

    /// As [`new`](Trainer::new), for batches of the shape of any of some examples.
    ///
    /// # Errors
    /// Inputs that are missing or do not fit each other; what the compiler refuses.
    pub fn of_shapes(
        step: &TrainingStep,
        examples: &[impl AsRef<[(String, Tensor)]>],
        backend: &Arc<dyn Backend>,
        threads: usize,
    ) -> Result<Trainer, TrainError> {
        let data = step.data();
        let examples = || examples.iter().map(AsRef::as_ref);
        for example in examples() {
            let missing = data.iter().find(|(name, _)| example.iter().all(|(n, _)| n != name));
            if let Some((name, ty)) = missing {
                return Err(TrainError::Mismatch {
                    what: name.clone(),
                    expected: ty.to_string(),
                    found: "nothing".into(),
                });
            }
        }
        let bindings = examples().map(|example| bound(&step.graph, example));
        let bindings = bindings.collect::<Result<BTreeSet<Binding>, _>>()?;
        let CompiledStep { executable, saved } =
            build::jit_step(&step.graph, &bindings, &**backend, &step.form())?;
        let arena_bytes = executable.sections().map(|s| s.parts.arena_bytes).max().unwrap_or(0);
        let mut session = Session::new(&executable, SessionOptions { threads })?;
        step.begin(&mut session)?;
        let parameters = step.parameters.iter().chain(&step.held).cloned().collect();
        let bytes = |name: &String| session.state(name).map(|t| t.bytes().len());
        let parameter_bytes = step.parameters.iter().map(bytes).sum::<Result<_, _>>()?;
        let source = Source { graph: step.graph.clone(), backend: backend.clone(), threads };
        let schedule = step.schedule;
        Ok(Trainer { session, parameters, arena_bytes, parameter_bytes, saved, schedule, source })
    }

    /// Runs one step on a batch.
    pub fn step(&mut self, batch: &[(String, Tensor)]) -> Result<StepResult, TrainError> {
        let borrowed: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let outputs = self.session.run_in_place(&borrowed)?;
        let scalar = |name: &str| {
            let (_, bytes) =
                outputs.iter().find(|(port, _)| port.name == name && port.dtype == DType::F32)?;
            Some(f32::from_le_bytes(bytes.try_into().ok()?))
        };
        let found = |name: &str| scalar(name).unwrap_or(f32::NAN);
        let result = StepResult {
            loss: found("loss"),
            learning_rate: found("learning_rate"),
            gradient_norm: found("gradient_norm"),
        };
        Ok(result)
    }

    /// Where the loss of the last step, which was run on this batch, is not finite first; `None` where it is finite. A step
    /// whose loss is not finite leaves parameters and moments as they were, so that this can be asked afterwards.
    ///
    /// # Errors
    /// What the compiler refuses.
    pub fn first_non_finite(&self, batch: &[(String, Tensor)]) -> Result<Option<NonFinite>, TrainError> {
        let mut states = self.states()?;
        let last = (self.scalar(STEP) - 1.0).max(0.0) as f32;
        states.iter_mut().filter(|(name, _)| name == STEP).for_each(|(_, t)| *t = Tensor::scalar(last));
        let inputs: Vec<(&str, &Tensor)> =
            batch.iter().chain(&states).map(|(n, t)| (n.as_str(), t)).collect();
        let Source { graph, backend, threads } = &self.source;
        non_finite::find(graph, &inputs, &bound(graph, batch)?, &**backend, *threads)
    }

    /// Says how many steps there are in all, for schedules.
    pub fn set_total_steps(&mut self, steps: u64) -> Result<(), TrainError> {
        Ok(self.session.set_state(TOTAL_STEPS, &Tensor::scalar(steps as f32))?)
    }

    /// The largest learning rate of the schedule.
    pub fn peak_rate(&self) -> f64 {
        self.scalar(PEAK_RATE)
    }

    /// Sets the largest learning rate of the schedule.
    pub fn set_peak_rate(&mut self, rate: f64) -> Result<(), TrainError> {
        Ok(self.session.set_state(PEAK_RATE, &Tensor::scalar(rate as f32))?)
    }

    /// Lets the next step have a learning rate, whatever the schedule makes of it.
    pub fn set_next_rate(&mut self, rate: f64) -> Result<(), TrainError> {
        let share = self.schedule.rate(1.0, self.scalar(STEP), self.scalar(TOTAL_STEPS));
        self.set_peak_rate(rate / share.max(f64::from(f32::MIN_POSITIVE)))
    }

    fn scalar(&self, state: &str) -> f64 {
        let state = self.session.state(state).ok();
        let value = state.and_then(|t| Some(*t.as_slice::<f32>().ok()?.first()?));
        f64::from(value.unwrap_or(f32::NAN))
    }

    /// The parameters as they are now, and what is held beside them.
    ///
    /// # Errors
    /// A device that failed.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        self.take(self.parameters.iter().map(String::as_str))
    }

    /// All states as they are now.
    ///
    /// # Errors
    /// A device that failed.
    pub fn states(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        self.take(self.session.states())
    }

    fn take<'n>(
        &self,
        mut names: impl Iterator<Item = &'n str>,
    ) -> Result<Vec<(String, Tensor)>, TrainError> {
        names.try_fold(Vec::new(), |mut all, name| {
            all.push((name.to_string(), self.session.state(name)?));
            Ok(all)
        })
    }

    /// Puts states back as [`states`](Trainer::states) gave them. All must be given.
    pub fn restore(&mut self, states: &[(String, Tensor)]) -> Result<(), TrainError> {
        let names: Vec<String> = self.session.states().map(str::to_string).collect();
        for name in names {
            let Some((_, value)) = states.iter().find(|(n, _)| *n == name) else {
                return Err(TrainError::Checkpoint(format!("state `{name}` is missing")));
            };
            self.session.set_state(&name, value)?;
        }
        Ok(())
    }

    /// Puts parameters in place and everything else back to what it is before the first step, but for the number of steps and the
    /// largest rate of the schedule.
    ///
    /// # Errors
    /// For parameters that are missing or of another shape; a device that failed.
    pub fn begin_again(&mut self, parameters: &[(String, Tensor)]) -> Result<(), TrainError> {
        if let Some(name) =
            self.parameters.iter().find(|name| parameters.iter().all(|(other, _)| other != *name))
        {
            return Err(TrainError::Checkpoint(format!("parameter `{name}` is missing")));
        }
        let mut states = self.states()?;
        for (name, value) in
            states.iter_mut().filter(|(name, _)| ![TOTAL_STEPS, PEAK_RATE].contains(&name.as_str()))
        {
            *value = match parameters.iter().find(|(parameter, _)| parameter == name) {
                Some((_, parameter)) => parameter.clone(),
                None => Tensor::zeros(value.dtype(), value.shape())?,
            };
        }
        self.restore(&states)
    }

    /// What it takes.
    pub fn memory(&self) -> StepMemory {
        StepMemory {
            parameter_bytes: self.parameter_bytes,
            state_bytes: self.session.states_bytes(),
            arena_bytes: self.arena_bytes,
            saved_bytes: self.saved.iter().map(|(_, bytes)| bytes).sum(),
            constant_bytes: self.session.executable().weights_bytes(),
            session_bytes: self.session.peak_bytes(),
        }
    }

    /// What is kept from the forward pass for the backward pass: the nodes that compute it, and bytes.
    pub fn saved(&self) -> &[(String, u64)] {
        &self.saved
    }

    /// The session, for profiles.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// The values of the symbols of a step for a batch.
fn bound(g: &Graph, batch: &[(String, Tensor)]) -> Result<Binding, TrainError> {
    let find = |name: &str| batch.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
    Ok(eval::bind_symbols(g, find)?)
}
