//! Blocks of a sketched model learn one after the other what the dense model has at their ends.
//!
//! A block ends where both models have a value in common (see [`pairs`](super::pairs)), or an output. It reads what the
//! blocks before it, which have learned already, make of the data; all its factors learn together, by gradients, and
//! nothing else is run. That corrects what the refit of single layers cannot: errors that layers of a block make
//! together, behind what is not linear between them. Refining blocks against the outputs of the dense ones is a step of
//! AA-SVD (arXiv 2604.02119).

use std::collections::{BTreeMap, HashSet};

use margay_driver::padding::{Runs, runs};
use margay_driver::{Arrays, Interruption, Progress, Samples, Stages, replace_constant};
use margay_ir::{Graph, NodeId};
use margay_passes::parameter_names;
use margay_tensor::Tensor;
use serde::Serialize;

use super::objective::{Objective, Scaled, Weights};
use super::pairs::Pair;
use super::{Goal, trainable};
use crate::fit::Tensors;
use crate::{
    Evaluation, Evaluator, FitOptions, Length, Observer, Optimizer, Point, Schedule, Task, TrainError,
    Trainer, TrainingStep, Update, fit,
};

/// Samples that blocks learn from, at most, and samples that are held out for them.
const MOST_SAMPLES: [usize; 2] = [1024, 256];

/// Bytes, at most, of what both models have between two blocks on all of these samples; of images that are fewer samples.
const MOST_KEPT_BYTES: usize = 1 << 30;

/// The largest learning rate of a block, with Adam.
const LEARNING_RATE: f64 = 1e-3;

/// Times that a block sees its samples.
const EPOCHS: u64 = 6;

/// What became of one block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockReport {
    /// The value that it ends with, by its name in the model.
    pub name: String,
    /// Relative L2 error of that value, about the mean, on held-out data before it learned.
    pub before: f64,
    /// The same afterwards.
    pub after: f64,
    /// Steps that it learned for.
    pub steps: u64,
}

/// What all blocks learned.
pub(super) struct Refined {
    /// By the names of the student's parameters.
    pub(super) contents: Tensors,
    pub(super) reports: Vec<BlockReport>,
}

/// The samples of both models on their way through the blocks.
struct Data<'a> {
    student: Stages<'a>,
    teacher: Stages<'a>,
    batches: usize,
}

impl Data<'_> {
    /// What a step of a block reads: what is known in the student, and the target of the teacher.
    fn inputs(&self, batch: usize, pair: &Pair) -> Tensors {
        let mut inputs = self.student.inputs(batch);
        inputs.push((pair.target.clone(), self.teacher.value(batch, pair.teacher).clone()));
        inputs
    }

    /// What a step of a block reads of one batch for each of the shapes that there are.
    fn examples(&self, pair: &Pair) -> Vec<Tensors> {
        let shapes = |inputs: &Tensors| -> Vec<Vec<usize>> {
            inputs.iter().map(|(_, t)| t.shape().to_vec()).collect()
        };
        let all = (0..self.batches).map(|batch| self.inputs(batch, pair));
        let by_shapes: BTreeMap<_, _> = all.map(|inputs| (shapes(&inputs), inputs)).collect();
        by_shapes.into_values().collect()
    }
}

/// Lets every block of the student learn; or those before the time is over.
///
/// # Errors
/// What running both models fails with, and an interruption.
pub(super) fn refine(
    student: &Graph,
    goal: &Goal<'_>,
    (train, held_out): (&Samples, &Samples),
    size: usize,
    seconds: f64,
    progress: &dyn Progress,
    observer: &dyn Observer,
) -> Result<Refined, TrainError> {
    let begin = std::time::Instant::now();
    let interruption = observer.interruption();
    let backend = &goal.options.backend;
    let ends = goal.ends(student)?;
    let batches = |samples: &Samples, most| -> Result<Vec<Arrays>, TrainError> {
        Ok(runs(student, samples, goal.padding, size, most, Runs::Whole)?)
    };
    let bytes = {
        let longest = batches(train, size)?;
        let mut stages = Stages::new(&longest, backend, goal.options.threads, &interruption);
        2 * most_kept(student, &ends, (&mut stages, longest.len()))?.div_ceil(longest.len().max(1) * size)
    };
    let fitting = MOST_KEPT_BYTES / bytes.max(1);
    let all: usize = MOST_SAMPLES.iter().sum();
    let most = MOST_SAMPLES.map(|most| most.min((fitting * most / all).max(1).next_multiple_of(size)));
    let batches = [batches(train, most[0])?, batches(held_out, most[1])?];
    let mut data = [0, 1].map(|part| {
        let stages = || Stages::new(&batches[part], backend, goal.options.threads, &interruption);
        Data { student: stages(), teacher: stages(), batches: batches[part].len() }
    });
    let mut names: Vec<(NodeId, String)> = parameter_names(student);
    let mut student = student.clone();
    let mut learned = HashSet::new();
    let mut refined = Refined { contents: Vec::new(), reports: Vec::new() };
    for (i, end) in ends.iter().enumerate() {
        let left = seconds - begin.elapsed().as_secs_f64();
        if left <= 0.0 || interruption.asked() {
            break;
        }
        progress.at("refining blocks", i, ends.len());
        for data in &mut data {
            data.teacher.advance(goal.teacher, &[end.pair.teacher], data.batches)?;
        }
        let block = data[0].student.part(&student, &[end.pair.student]);
        let mut parameters = trainable::trainable(&block, goal.options.train);
        parameters.retain(|n| !learned.contains(&name_of(&names, *n)));
        if !parameters.is_empty() {
            let share = left / (ends.len() - i) as f64;
            let block = Block { graph: &block, parameters: &parameters, goal, end };
            let (found, report) = block.learn(&data, share, observer)?;
            for (n, tensor) in found {
                let name = name_of(&names, n);
                learned.insert(name.clone());
                let new = replace_constant(&mut student, n, tensor.clone());
                names.push((new, name.clone()));
                refined.contents.push((name, tensor));
            }
            refined.reports.push(report);
        }
        for data in &mut data {
            data.student.advance(&student, &[end.pair.student], data.batches)?;
        }
    }
    progress.at("refining blocks", ends.len(), ends.len());
    Ok(refined)
}

/// The most bytes that a model has between two blocks on some samples.
fn most_kept(
    g: &Graph,
    ends: &[Scaled],
    (stages, batches): (&mut Stages<'_>, usize),
) -> Result<usize, TrainError> {
    let mut most = 0;
    for end in ends {
        stages.advance(g, &[end.pair.student], batches)?;
        most = most.max(stages.kept_bytes());
    }
    Ok(most)
}

fn name_of(names: &[(NodeId, String)], n: NodeId) -> String {
    names.iter().find(|(m, _)| *m == n).map(|(_, name)| name.clone()).unwrap_or_default()
}

/// A block with what it is to learn.
struct Block<'a> {
    graph: &'a Graph,
    parameters: &'a [NodeId],
    goal: &'a Goal<'a>,
    end: &'a Scaled,
}

impl Block<'_> {
    /// The contents that are best on held-out data, where they are better than what was there.
    fn learn(
        &self,
        data: &[Data<'_>; 2],
        seconds: f64,
        observer: &dyn Observer,
    ) -> Result<(Vec<(NodeId, Tensor)>, BlockReport), TrainError> {
        let options = self.goal.options;
        let objective = Objective {
            outputs: vec![self.end.clone()],
            hidden: Vec::new(),
            mask: self.goal.mask.clone(),
            weights: Weights { outputs: 1.0, pooled: 0.0, hidden: 0.0 },
        };
        let update = Update {
            optimizer: Optimizer::ADAM,
            learning_rate: LEARNING_RATE,
            schedule: Schedule::Cosine { warm_up: 0.05, floor: 0.0 },
            clip: Some(1.0),
        };
        let step = TrainingStep::new(self.graph, self.parameters, &|g| objective.loss(g), &update)?;
        let backend = &options.backend;
        let examples = data[0].examples(&self.end.pair);
        let (own, threads) = (backend.clone(), options.threads);
        let interruption = observer.interruption();
        let mut trainer = interruption.run(move || Trainer::of_shapes(&step, &examples, &own, threads))??;
        let evaluator = Evaluator::new(
            self.graph,
            self.parameters,
            &|g| objective.measures(g),
            backend,
            options.threads,
        )?;
        let evaluator = evaluator.until(&interruption);
        let mut task = BlockTask { data, pair: &self.end.pair, evaluator };
        let fit_options = FitOptions {
            length: Length::Epochs(EPOCHS as f64),
            max_seconds: Some(seconds),
            batch: 1,
            seed: options.seed,
            evaluations: 4,
            ..FitOptions::default()
        };
        let fitted = fit(&mut trainer, &mut task, &fit_options, &mut Quiet(observer))?;
        let report = BlockReport {
            name: self.end.pair.name.clone(),
            before: fitted.first().error,
            after: fitted.best().error,
            steps: fitted.steps,
        };
        let names = parameter_names(self.graph);
        let node = |name: &String| names.iter().find(|(_, other)| other == name).map(|(n, _)| *n);
        let better = if fitted.best == 0 { Vec::new() } else { fitted.parameters };
        let contents = better.into_iter().filter_map(|(name, tensor)| Some((node(&name)?, tensor)));
        Ok((contents.collect(), report))
    }
}

/// Whole batches as samples: what a block reads is kept by batch.
struct BlockTask<'a> {
    data: &'a [Data<'a>; 2],
    pair: &'a Pair,
    evaluator: Evaluator,
}

impl Task for BlockTask<'_> {
    fn rows(&self) -> usize {
        self.data[0].batches
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Tensors, TrainError> {
        Ok(rows.iter().flat_map(|row| self.data[0].inputs(*row, self.pair)).collect())
    }

    fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError> {
        let mut squared = 0.0;
        for batch in 0..self.data[1].batches {
            for (name, value) in self.evaluator.run(parameters, &self.data[1].inputs(batch, self.pair))? {
                if name == "error" {
                    squared += value.to_vec::<f32>()?.first().map_or(f64::NAN, |v| f64::from(*v));
                }
            }
        }
        let error = (squared / self.data[1].batches as f64).sqrt();
        Ok(Evaluation { error, measures: Vec::new() })
    }
}

/// Ends when the observer of the whole does, and tells it nothing.
struct Quiet<'a>(&'a dyn Observer);

impl Observer for Quiet<'_> {
    fn stepped(&mut self, _: u64, _: u64, _: f32, _: f64) {}

    fn evaluated(&mut self, _: &Point, _: bool) {}

    fn failed(&mut self, _: &TrainError) {}

    fn interruption(&self) -> Interruption {
        self.0.interruption()
    }
}
