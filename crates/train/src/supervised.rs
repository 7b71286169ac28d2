//! Training of a model on samples with labels: data and an objective make a [`Task`](crate::Task).
//!
//! A share of the samples is held out, evenly spread over the file; it decides which parameters are kept. Deliberately
//! absent: augmentation, and data that does not fit in memory.
//!
//! - `labelled`: the task.
//! - `ranked`: what it does where ranks of factors are chosen meanwhile.

mod labelled;
mod ranked;

use std::fmt;
use std::sync::Arc;

use margay_driver::{Backend, Interruption, Samples, hold_out};
use margay_ir::ops::Numbers;
use margay_ir::{Graph, NodeId, Output, Part, TensorType, Value};
use margay_passes::{parameter_names, with_resized_parameters};
use margay_tensor::{DType, Tensor};

use crate::checkpoint::{Checkpoint, Identity, rate_words};
use crate::loss::{self, IGNORED, check_labels};
use crate::masking::Masking;
use crate::redraw::directions;
use crate::{
    Evaluator, FitOptions, Fitted, Observer, RankSelection, Redraw, StepMemory, TrainError, Trainer,
    TrainingStep, Update, fit,
};
use labelled::Labelled;

/// The input of a step that holds labels.
const TARGET: &str = "target";

/// What is to become small.
#[derive(Clone, PartialEq, Debug)]
pub enum Objective {
    /// [Cross-entropy](loss::cross_entropy) with integer labels; those that are -100 do not count.
    CrossEntropy,
    /// The [mean squared error](loss::mse) against labels like the output.
    Mse,
    /// The [cosine distance](loss::cosine) to labels like the output.
    Cosine,
    /// Prediction of [masked tokens](loss::masked_lm). There are no labels: they are tokens of the samples. A sample is
    /// masked the same way whenever it is trained on.
    MaskedLm {
        /// The input that holds tokens.
        tokens: String,
        /// How tokens are masked.
        masking: Masking,
    },
}

impl fmt::Display for Objective {
    /// Its name with all settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Objective::CrossEntropy => f.write_str("cross-entropy"),
            Objective::Mse => f.write_str("mean squared error"),
            Objective::Cosine => f.write_str("cosine distance"),
            Objective::MaskedLm { tokens, masking } => {
                let Masking { mask, vocabulary, special, share } = masking;
                write!(
                    f,
                    "masked tokens of `{tokens}`: {share} of {vocabulary}, masked by {mask}, but for {special:?}"
                )
            }
        }
    }
}

/// Which constants are trained.
#[derive(Clone, PartialEq, Debug)]
pub enum Selection {
    /// All with a name and several elements on which the loss depends, but the random matrices of sketches.
    All,
    /// Those with these names, as [`parameter_names`] gives them; `*` in a name stands for any text, and takes what has
    /// several elements only.
    Named(Vec<String>),
}

/// How to train on labelled samples.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// What is to become small.
    pub objective: Objective,
    /// The output that is trained; `None` for the only one.
    pub output: Option<String>,
    /// An input that says how much each row counts, such as an attention mask.
    pub weights: Option<String>,
    /// Which constants are trained.
    pub selection: Selection,
    /// How they follow gradients.
    pub update: Update,
    /// How long, in which order, with which files. The identity is filled in.
    pub fit: FitOptions,
    /// The share of samples that is held out, above 0 and below 1.
    pub held_out: f64,
    /// How ranks of factors are chosen meanwhile; `None` where they stay. Factors are those that
    /// [`lowrank_for_training`](margay_passes::sketch::lowrank_for_training) puts in place of layers.
    pub ranks: Option<RankSelection>,
    /// How directions of random features are drawn anew meanwhile; `None` where they stay.
    pub redraw: Option<Redraw>,
    /// The most bytes kept from the forward for the backward pass; see [`TrainingStep::max_saved_bytes`].
    pub max_saved_bytes: Option<u64>,
    /// Threads to run on.
    pub threads: usize,
    /// What models and steps are compiled for.
    pub backend: Arc<dyn Backend>,
}

/// A trained model.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The model with its best parameters.
    pub graph: Graph,
    /// How training went.
    pub fitted: Fitted,
    /// What a step takes.
    pub memory: StepMemory,
    /// Numbers that were trained.
    pub parameters: usize,
    /// Samples that were trained on, and those that were held out.
    pub samples: (usize, usize),
}

impl Supervised {
    /// Trains a model at stage `Canonical` or `Sketched`. Its steps drop elements as [`dropout`](crate::dropout) says, the seed
    /// being that of [`fit`](Supervised::fit); evaluations drop none. `samples` holds its inputs by name; `labels` has a row for
    /// each.
    ///
    /// # Errors
    /// Data, names and options that do not fit the model or each other, each with what was expected; what the compiler
    /// refuses; what [`fit`](fn@crate::fit) fails with.
    pub fn train(
        &self,
        forward: &Graph,
        samples: &Samples,
        labels: Option<&Tensor>,
        observer: &mut dyn Observer,
    ) -> Result<Trained, TrainError> {
        Checkpoint::claim(self.fit.checkpoint.as_deref(), self.fit.resume)?;
        let (model, forward) = (forward, &self.with_output(forward)?);
        let data = self.data(forward, samples, labels)?;
        let batch = self.fit.batch;
        if let Some(bound) = data.bound_batch(forward).filter(|bound| *bound != batch) {
            return Err(TrainError::Options(format!("the model takes batches of {bound}, found {batch}")));
        }
        let (train, held_out) = split(data.rows(), self.held_out)?;
        self.ranks.map_or(Ok(()), |ranks| ranks.check())?;
        self.redraw.as_ref().map_or(Ok(()), |redraw| redraw.check(forward))?;
        let interruption = observer.interruption();
        let (step, evaluator) = self.compiled(forward, &interruption)?;
        let mut trainer = self.trainer(&step, &data, &train)?;
        let options = FitOptions { identity: self.identity(forward, &data, &step), ..self.fit.clone() };
        let mut task = Labelled {
            options: self,
            model: model.clone(),
            forward,
            data: &data,
            train,
            held_out,
            evaluator,
            fixed: data.bound_batch(forward).is_some(),
            first_share: ranked::share(forward),
            interruption,
        };
        let fitted = fit(&mut trainer, &mut task, &options, observer)?;
        // The best parameters may have the ranks of an earlier choice.
        let graph = with_resized_parameters(model, &fitted.parameters)?;
        let is_held = |name: &String| step.held.contains(name);
        let parameters = fitted.parameters.iter().filter(|(n, _)| !is_held(n)).map(|(_, t)| t.len()).sum();
        let samples = (task.train.len(), task.held_out.len());
        Ok(Trained { graph, fitted, memory: trainer.memory(), parameters, samples })
    }

    /// The step of a graph, and what evaluates it.
    fn compiled(
        &self,
        forward: &Graph,
        interruption: &Interruption,
    ) -> Result<(TrainingStep, Evaluator), TrainError> {
        let (mut step, nodes) = self.step(forward)?;
        step.max_saved_bytes = self.max_saved_bytes;
        let nodes = [nodes, self.held(forward)].concat();
        let evaluator = Evaluator::new(forward, &nodes, &|g| self.measures(g), &self.backend, self.threads)?;
        Ok((step, evaluator.until(interruption)))
    }

    /// A step as machine code.
    fn trainer(&self, step: &TrainingStep, data: &Samples, train: &[usize]) -> Result<Trainer, TrainError> {
        Trainer::new(step, &data.pick(&taken(train, self.fit.batch)?)?, &self.backend, self.threads)
    }

    /// The graph with only the output that is trained first, and the others behind it.
    fn with_output(&self, forward: &Graph) -> Result<Graph, TrainError> {
        let outputs = forward.outputs();
        let known = || outputs.iter().map(|o| format!("`{}`", o.name)).collect::<Vec<_>>().join(", ");
        let position = match &self.output {
            Some(name) => outputs.iter().position(|o| *o.name == **name).ok_or_else(|| {
                TrainError::Options(format!("the model has no output `{name}`; it has {}", known()))
            })?,
            None if outputs.len() == 1 => 0,
            None if outputs.is_empty() => {
                return Err(TrainError::Options(
                    "the model has no outputs: there is nothing to train".into(),
                ));
            }
            None => {
                return Err(TrainError::Options(format!(
                    "which output is trained? the model has {}",
                    known()
                )));
            }
        };
        let mut g = forward.clone();
        let mut all: Vec<Output> = outputs.to_vec();
        all[..=position].rotate_right(1);
        g.set_outputs(all);
        Ok(g)
    }

    /// The constants of a graph that are chosen. Of [`Selection::All`] some may turn out to have no effect on the loss.
    ///
    /// # Errors
    /// [`TrainError::Options`] for a name that no constant has.
    pub fn parameters(&self, forward: &Graph) -> Result<Vec<NodeId>, TrainError> {
        Ok(self.chosen(forward)?.into_iter().map(|(n, _)| n).collect())
    }

    /// The constants that change by other means than gradients.
    fn held(&self, forward: &Graph) -> Vec<NodeId> {
        self.redraw.as_ref().map(|_| directions(forward)).unwrap_or_default()
    }

    fn chosen(&self, forward: &Graph) -> Result<Vec<(NodeId, String)>, TrainError> {
        let known = parameter_names(forward);
        match &self.selection {
            Selection::All => Ok(known.into_iter().filter(|(n, _)| is_weight(forward, *n)).collect()),
            Selection::Named(names) => {
                let mut chosen: Vec<(NodeId, String)> = Vec::new();
                for name in names {
                    let fits = |(n, known): &&(NodeId, String)| match name.contains('*') {
                        true => matches_pattern(name, known) && is_weight(forward, *n),
                        false => known == name,
                    };
                    let found: Vec<_> = known.iter().filter(fits).cloned().collect();
                    if found.is_empty() {
                        return Err(no_parameter(name, &known));
                    }
                    let new = found.into_iter().filter(|(n, _)| chosen.iter().all(|(c, _)| c != n));
                    chosen.extend(new.collect::<Vec<_>>());
                }
                Ok(chosen)
            }
        }
    }

    /// The step, which drops elements where the model says so, and the constants it trains.
    fn step(&self, forward: &Graph) -> Result<(TrainingStep, Vec<NodeId>), TrainError> {
        let mut chosen = self.chosen(forward)?;
        let build = |chosen: &[(NodeId, String)]| {
            let nodes: Vec<NodeId> = chosen.iter().map(|(n, _)| *n).collect();
            let objective = |g: &mut Graph| self.loss(g).map(|(loss, _)| loss);
            let both = [nodes.as_slice(), &self.held(forward)];
            let step = TrainingStep::dropping(forward, both, &objective, &self.update, self.fit.seed);
            step.map(|step| (step, nodes))
        };
        match build(&chosen) {
            Err(TrainError::Unreached(names)) if self.selection == Selection::All => {
                chosen.retain(|(_, name)| !names.contains(name));
                build(&chosen)
            }
            built => built,
        }
    }

    /// The loss and, for labels that are classes, the accuracy, of the first output.
    fn loss(&self, g: &mut Graph) -> Result<(Value, Option<Value>), TrainError> {
        let prediction = g.outputs()[0].value;
        let weights = match &self.weights {
            None => None,
            Some(name) => {
                let found = g.inputs().iter().find(|n| g.node(**n).origin.name() == name);
                let none = || TrainError::Options(format!("the model has no input `{name}`"));
                Some(Value::from(*found.ok_or_else(none)?))
            }
        };
        let target = g.add_input(TARGET, self.target_type(g.ty(prediction)));
        match self.objective {
            Objective::Mse => Ok((loss::mse(g, prediction, target, weights)?, None)),
            Objective::Cosine => Ok((loss::cosine(g, prediction, target, weights)?, None)),
            Objective::CrossEntropy | Objective::MaskedLm { .. } => {
                let loss = loss::cross_entropy(g, prediction, target, Some(IGNORED), weights)?;
                Ok((loss, Some(loss::accuracy(g, prediction, target, Some(IGNORED))?)))
            }
        }
    }

    /// The type that labels have for an output.
    fn target_type(&self, output: &TensorType) -> TensorType {
        match self.objective {
            Objective::Mse | Objective::Cosine => output.clone(),
            Objective::CrossEntropy | Objective::MaskedLm { .. } => {
                let rows = output.ndim().saturating_sub(1);
                TensorType::new(DType::I64, output.shape[..rows].to_vec())
            }
        }
    }

    fn measures(&self, g: &mut Graph) -> Result<Vec<(&'static str, Value)>, TrainError> {
        let (loss, accuracy) = self.loss(g)?;
        Ok(std::iter::once(("loss", loss)).chain(accuracy.map(|v| ("accuracy", v))).collect())
    }

    /// Inputs and labels, checked.
    fn data(&self, g: &Graph, samples: &Samples, labels: Option<&Tensor>) -> Result<Samples, TrainError> {
        let samples = samples.for_graph(g)?;
        let mut arrays = samples.arrays().to_vec();
        let output = g.ty(g.outputs()[0].value).clone();
        let classes = output.shape.last().and_then(|d| d.as_extent());
        let target = match (&self.objective, labels) {
            (Objective::MaskedLm { tokens, masking }, None) => {
                masked(&mut arrays, tokens, masking, self.fit.seed)?
            }
            (Objective::MaskedLm { .. }, Some(_)) => {
                return Err(TrainError::Options(
                    "a masked language model takes no labels: its tokens are".into(),
                ));
            }
            (_, None) => return Err(TrainError::Options("labels are missing".into())),
            (Objective::CrossEntropy, Some(t)) if !t.dtype().is_float() && t.dtype() != DType::Bool => {
                let values = Numbers::of(t).map_err(|e| TrainError::Options(e.to_string()))?.ints();
                Tensor::from_slice(t.shape(), &values)?
            }
            (_, Some(t)) => t.clone(),
        };
        let (expected, found) = (self.target_type(&output), TensorType::of(&target));
        let same = |(e, f): (&margay_tensor::Dim, &margay_tensor::Dim)| e.as_extent().is_none() || e == f;
        let fits = expected.dtype == found.dtype
            && expected.ndim() == found.ndim()
            && expected.shape.iter().zip(&found.shape).skip(1).all(same);
        if !fits {
            let (expected, found) = (expected.to_string(), found.to_string());
            return Err(TrainError::Mismatch { what: "labels".into(), expected, found });
        }
        if target.shape().first() != Some(&samples.rows()) {
            let (expected, found) = (format!("{} rows", samples.rows()), found.to_string());
            return Err(TrainError::Mismatch { what: "labels".into(), expected, found });
        }
        if let (DType::I64, Some(classes)) = (expected.dtype, classes) {
            check_labels(&target, classes, Some(IGNORED))?;
        }
        arrays.push((TARGET.to_string(), target));
        Ok(Samples::with_shared(arrays, samples.shared().clone())?)
    }

    /// All that a step's numbers depend on, but for how they are rounded. How long a run is to be is not part of it: it may go on
    /// for longer, and on another device.
    fn identity(&self, forward: &Graph, data: &Samples, step: &TrainingStep) -> Identity {
        let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex()[..16].to_string();
        let Update { optimizer, learning_rate, schedule, clip } = self.update;
        let parts = [
            ("the model", hash(&forward.to_string())),
            ("the data", data.hash()),
            ("what is trained", hash(&step.parameters.join("\n"))),
            ("the loss", self.objective.to_string()),
            ("the output", words(self.output.as_ref())),
            ("the mask", words(self.weights.as_ref())),
            ("the optimizer", optimizer.to_string()),
            ("the learning rate", rate_words(learning_rate, self.fit.find_rate)),
            ("the schedule", schedule.to_string()),
            ("the clip", words(clip.as_ref())),
            ("the share held out", self.held_out.to_string()),
            ("the choice of ranks", format!("{:?}", self.ranks)),
            ("the steps between draws of directions", words(self.redraw.as_ref().map(|r| r.every).as_ref())),
            ("the batch", self.fit.batch.to_string()),
            ("the seed", self.fit.seed.to_string()),
        ];
        parts.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }
}

/// An option in words.
fn words(option: Option<&impl fmt::Display>) -> String {
    option.map_or_else(|| "none".into(), ToString::to_string)
}

/// Masks the tokens of every sample, and returns the labels.
fn masked(
    arrays: &mut [(String, Tensor)],
    tokens: &str,
    masking: &Masking,
    seed: u64,
) -> Result<Tensor, TrainError> {
    let Some((_, all)) = arrays.iter_mut().find(|(name, _)| name == tokens) else {
        return Err(TrainError::Options(format!("the model has no input `{tokens}`")));
    };
    let (inputs, labels) = masking.apply(all, seed, MASKS)?;
    *all = inputs;
    Ok(labels)
}

/// The stream of random numbers that masks are drawn from. Epochs are streams too, counted from 0.
const MASKS: u64 = 1 << 32;

/// Whether a constant looks like a weight: it has a name and several floats, and is no random matrix of a sketch.
fn is_weight(g: &Graph, n: NodeId) -> bool {
    let (ty, origin) = (g.ty(n.into()), &g.node(n).origin);
    let several = ty.extents().is_some_and(|e| e.iter().product::<usize>() > 1);
    let named = !origin.name().is_empty() && origin.part != Some(Part::Random);
    several && named && matches!(ty.dtype, DType::F32 | DType::F64)
}

/// Whether a name is that of a pattern in which `*` stands for any text.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, rest)) => name.strip_prefix(before).is_some_and(|tail| {
            tail.char_indices()
                .map(|(at, _)| at)
                .chain([tail.len()])
                .any(|at| matches_pattern(rest, &tail[at..]))
        }),
    }
}

fn no_parameter(name: &str, known: &[(NodeId, String)]) -> TrainError {
    const SHOWN: usize = 8;
    let shown: Vec<String> = known.iter().take(SHOWN).map(|(_, n)| format!("`{n}`")).collect();
    let more = known.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    TrainError::Options(format!("the model has no constant `{name}`; it has {}{more}", shown.join(", ")))
}

/// Samples to train on, and those held out: the latter evenly spread.
fn split(rows: usize, held_out: f64) -> Result<(Vec<usize>, Vec<usize>), TrainError> {
    /// Shares are told apart to nine digits.
    const OF: usize = 1_000_000_000;
    let (train, held) = hold_out(rows, (held_out * OF as f64).round() as usize, OF);
    if !(held_out > 0.0 && held_out < 1.0) || held.is_empty() || train.is_empty() {
        return Err(TrainError::Options(format!(
            "a share of {held_out} of {rows} samples is held out: expected at least 1 sample, and 1 left to train on"
        )));
    }
    Ok((train, held))
}

/// The first samples of a batch, to compile for.
fn taken(rows: &[usize], batch: usize) -> Result<Vec<usize>, TrainError> {
    let found = rows.get(..batch).filter(|rows| !rows.is_empty()).map(<[usize]>::to_vec);
    found.ok_or_else(|| {
        TrainError::Options(format!("a batch of {batch} samples, of {} to train on", rows.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, fits) in [("*", true), ("layer.*.weight", true), ("*weight", true), ("layer.1.*", true)]
        {
            assert_eq!(matches_pattern(pattern, "layer.1.fc.weight"), fits, "{pattern}");
        }
        for pattern in ["layer.2.*", "*bias", "layer", "a*", "*.fc"] {
            assert!(!matches_pattern(pattern, "layer.1.fc.weight"), "{pattern}");
        }
    }

    #[test]
    fn samples_are_held_out_evenly() {
        let (train, held) = split(10, 0.3).unwrap();
        assert_eq!(held, [3, 6, 9]);
        assert_eq!(train, [0, 1, 2, 4, 5, 7, 8]);
        assert_eq!(split(4, 0.5).unwrap().1, [1, 3]);
    }

    #[test]
    fn nothing_held_out_and_nothing_left_are_refused() {
        for (rows, share) in [(10, 0.0), (10, 1.0), (3, 0.1), (1, 0.9), (10, f64::NAN)] {
            assert!(split(rows, share).is_err(), "{rows} {share}");
        }
    }
}
