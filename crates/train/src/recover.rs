//! Recovery of what sketching lost: the sketched model learns from the dense one, without labels.
//!
//! First each layer is refitted by itself, in closed form ([`refit_layers`]). Then the layers of each block learn together, one
//! block after the other ([`blocks`]), and at last all of them, by gradients, to compute what the teacher does, at the
//! outputs and at some places inside. Whatever is not a factor stays frozen unless
//! asked for. Nothing gets worse on the data that was held out: where a stage does not help, what was before it stays.
//!
//! The schemes of this are those of FitNets (Romero and others, 2014, arXiv 1412.6550) for places inside, and of
//! SVD-LLM (Wang and others, 2024, arXiv 2403.07378) for the refit of layers on what the compressed layers before them
//! compute.
//!
//! - [`blocks`]: the layers of one block learn what the teacher has at its end.
//! - [`trainable`]: which constants learn.
//! - [`pairs`]: what both models have in common.

pub mod blocks;
mod distill;
mod held_out;
mod objective;
pub mod pairs;
pub mod trainable;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use margay_driver::backend::native;
use margay_driver::{
    Backend, Contents, DriverError, ErrorScope, Interruption, LayerRefit, Mask, MaskChoice, Padding,
    Progress, RefitData, Samples, Silent, input_moments, metrics, parallel, refit_layers,
};
use margay_ir::{Graph, NodeId, Op};
use margay_passes::with_constants;
use margay_tensor::Tensor;

use crate::checkpoint::{Checkpoint, Identity, rate_words};
use crate::error::unless_interrupted;
use crate::fit::Tensors;
use crate::step::{Axes, with_parameters};
use crate::{
    Evaluation, FitOptions, Fitted, Length, Observer, Optimizer, Schedule, Task, TrainError, Trainer,
    TrainingStep, Update, fit,
};
pub use blocks::BlockReport;
use distill::{Distillation, Teacher};
use held_out::{Split, held_out_words, split};
use objective::Objective;
pub use objective::Weights;
pub use pairs::Hidden;
pub use trainable::Train;

/// How to recover.
#[derive(Clone, Debug)]
pub struct RecoverOptions {
    /// Seconds for all of it.
    pub max_seconds: f64,
    /// Steps of learning together; as many as there is time for, if not given.
    pub steps: Option<u64>,
    /// Samples of a step, where the model leaves its batch open.
    pub batch: usize,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// Whether that is only a default; see [`FitOptions::find_rate`].
    pub find_rate: bool,
    /// Which values inside are to agree.
    pub hidden: Hidden,
    /// How much what counts.
    pub weights: Weights,
    /// Which constants learn.
    pub train: Train,
    /// The input that marks padding.
    pub mask: MaskChoice,
    /// The outputs that are learned and count in errors; empty for all of floating point numbers.
    pub outputs: Vec<String>,
    /// Whether layers are refitted by themselves first.
    pub layers: bool,
    /// Whether the layers of each block then learn together.
    pub blocks: bool,
    /// Whether all layers learn together.
    pub together: bool,
    /// The share of the samples that is held out, of which at most 512 are taken. Without it those of `held_out_rows`, where
    /// they are enough for a batch, else an eighth.
    pub held_out: Option<f64>,
    /// The numbers of samples that nothing was chosen by.
    pub held_out_rows: Vec<usize>,
    /// Evaluations in a row without a new best after which learning ends.
    pub patience: Option<u64>,
    /// Evaluations in all.
    pub evaluations: u64,
    /// Names the order of the samples.
    pub seed: u64,
    /// Where states are kept.
    pub checkpoint: Option<PathBuf>,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: f64,
    /// Whether to go on from the checkpoint, if there is one.
    pub resume: bool,
    /// Threads to work with.
    pub threads: usize,
    /// What models and steps are compiled for.
    pub backend: Arc<dyn Backend>,
}

impl Default for RecoverOptions {
    fn default() -> RecoverOptions {
        RecoverOptions {
            max_seconds: 600.0,
            steps: None,
            batch: 32,
            learning_rate: 2e-4,
            find_rate: false,
            hidden: Hidden::Auto,
            weights: Weights::default(),
            train: Train::Sketch,
            mask: MaskChoice::Default,
            outputs: Vec::new(),
            layers: true,
            blocks: true,
            together: true,
            held_out: None,
            held_out_rows: Vec::new(),
            patience: None,
            evaluations: 10,
            seed: 0,
            checkpoint: None,
            checkpoint_seconds: 20.0,
            resume: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            backend: native(),
        }
    }
}

/// What recovery gave.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The student with what it learned.
    pub graph: Graph,
    /// The error on held-out samples before anything was done.
    pub before: Evaluation,
    /// The error with all layers refitted; absent where that was not asked for, or was done by an earlier run.
    pub refitted: Option<Evaluation>,
    /// What became of each layer.
    pub layers: Vec<LayerRefit>,
    /// The error with all blocks refined; absent where that was not asked for, or was done by an earlier run.
    pub refined: Option<Evaluation>,
    /// What became of each block.
    pub blocks: Vec<BlockReport>,
    /// How learning together went; absent where that was not asked for, and where what comes before was interrupted.
    pub fitted: Option<Fitted>,
    /// Whether the observer asked for the end.
    pub interrupted: bool,
    /// The error of the result.
    pub after: Evaluation,
    /// Numbers that could learn.
    pub trained: usize,
    /// The values inside that were to agree.
    pub hidden: Vec<String>,
    /// Samples that were learned from.
    pub learned_from: usize,
    /// Samples that decided what is better.
    pub held_out: Samples,
    /// Their numbers, where they are those of [`RecoverOptions::held_out_rows`].
    pub held_out_rows: Vec<usize>,
    /// The lengths that batches are cut to; `None` where padding is not cut (see [`Padding`]).
    pub lengths: Option<Vec<usize>>,
    /// What marked padding in them.
    pub mask: MaskChoice,
    /// The outputs that counted; empty for all of floating point numbers.
    pub outputs: Vec<String>,
    /// Seconds in all, by this run.
    pub seconds: f64,
}

/// Whether constants of a graph are stored in narrow types, which do not learn.
pub fn has_narrow_constants(g: &Graph) -> bool {
    g.order().into_iter().any(|n| g.constant(n.into()).is_some_and(|p| !p.stored().is_plain()))
}

/// Lets a sketched model learn from the dense one. Both are at stage `Canonical` or `Sketched`; `samples` give the inputs
/// that they share.
///
/// # Errors
/// [`TrainError::Options`] where models, data and options do not fit each other; what [`fit`](crate::fit()) says.
pub fn recover(
    student: &Graph,
    teacher: &Graph,
    samples: &Samples,
    options: &RecoverOptions,
    progress: &dyn Progress,
    observer: &mut dyn Observer,
) -> Result<Recovered, TrainError> {
    let (start, interruption) = (Instant::now(), observer.interruption());
    if has_narrow_constants(student) {
        return Err(DriverError::Narrow.into());
    }
    Checkpoint::claim(options.checkpoint.as_deref(), options.resume)?;
    let scope = ErrorScope { mask: options.mask.clone(), outputs: options.outputs.clone() };
    scope.check(student)?;
    let outputs = pairs::outputs(student, teacher, &options.outputs)?;
    let hidden = pairs::hidden(student, teacher, &options.hidden)?;
    let mask = Mask::find(student, &options.mask)?;
    let samples = samples.for_graph(student)?;
    mask.check(samples.arrays())?;
    let batch = samples.bound_batch(student).unwrap_or(options.batch);
    let Split { train, held_out, named } = split(&samples, options, batch)?;
    let learned_from = train.rows();
    if trainable::trainable(student, options.train).is_empty() {
        return Err(TrainError::Options(
            "the sketched model has no factors, and no attention that was replaced: nothing to recover"
                .into(),
        ));
    }
    let (backend, threads) = (&options.backend, options.threads);

    let all: Vec<pairs::Pair> = outputs.iter().chain(&hidden).cloned().collect();
    let mut both = Teacher::new(teacher, &all, backend, threads);
    let variances = both.variances(&train, &mask, batch)?;
    let padding = Padding::find(&[student, teacher], &mask, &samples, backend, threads, &interruption)?;
    let goal = Goal {
        teacher,
        options,
        mask: &mask,
        padding: padding.as_ref(),
        variances,
        interruption: interruption.clone(),
    };
    let mut output_teacher = Teacher::new(teacher, &outputs, backend, threads);
    let evaluator = goal.evaluator(student)?;
    let cut = padding.clone();
    let mut task =
        Distillation::new(train.clone(), &held_out, both, &mut output_teacher, evaluator, batch, cut)?;
    let mut best = Best::of(student, options.train, &mut task)?;
    let before = best.error.clone();

    let identity = identity(student, teacher, &samples, padding.as_ref(), options);
    let path = options.checkpoint.as_ref().filter(|path| options.resume && path.exists());
    let resumed = path.map(|path| Checkpoint::read(path, &identity)).transpose()?;
    let mut fixed = Tensors::new();
    if let Some(checkpoint) = &resumed {
        fixed.clone_from(&checkpoint.fixed);
        let changed = with_fixed(student, &fixed)?;
        task.measure(goal.evaluator(&changed)?);
        best = Best::of(&changed, options.train, &mut task)?;
    }
    let mut refitted = None;
    let mut reports = Vec::new();
    // Attention in another form has no factors to be refitted, and products around it are those of the teacher.
    if options.layers && resumed.is_none() && !trainable::factored(student).is_empty() {
        let mut stage = || -> Result<(), TrainError> {
            let few = train.spread(teacher, METRIC_SAMPLES, 1)?;
            let metrics = metrics(
                &scope.restricted(teacher),
                (&few, &mask),
                backend,
                threads,
                progress,
                &interruption,
            )?;
            let share = if options.blocks || options.together { LAYERS_SHARE } else { 1.0 };
            let (asked, most) = (interruption.clone(), share * options.max_seconds);
            let data = RefitData {
                teacher,
                train: &train,
                held_out: &held_out,
                fit_to_both: false,
                mask: &mask,
                padding: padding.as_ref(),
                metrics: &metrics,
                backend,
                threads,
                interruption: &Interruption::new(move || {
                    asked.asked() || start.elapsed().as_secs_f64() >= most
                }),
            };
            let done = refit_layers(student, &data, progress)?;
            if done.matched == 0 {
                let message = "no layer of the sketched model has the name of one of the teacher: \
                               is this the model that was sketched?";
                return Err(TrainError::Options(message.into()));
            }
            reports = done.reports;
            let previous = task.measure(goal.evaluator(&done.graph)?);
            let found = Best::of(&done.graph, options.train, &mut task)?;
            refitted = Some(found.error.clone());
            if found.error.error < best.error.error {
                fixed = changed_positions(student, &done.contents);
                best = found;
            } else {
                task.measure(previous);
            }
            Ok(())
        };
        unless_interrupted(stage())?;
    }
    let mut refined = None;
    let mut blocks = Vec::new();
    if options.blocks && resumed.is_none() && !interruption.asked() {
        let left = options.max_seconds - start.elapsed().as_secs_f64();
        let seconds = if options.together { left * BLOCKS_SHARE } else { left };
        let mut stage = || -> Result<(), TrainError> {
            let start_from = best.balanced()?;
            let data = (&train, &held_out);
            let done = blocks::refine(&start_from, &goal, data, batch, seconds, progress, observer)?;
            blocks = done.reports;
            let graph = with_parameters(&start_from, &done.contents)?;
            let found = Best::of(&graph, options.train, &mut task)?;
            refined = Some(found.error.clone());
            if found.error.error < best.error.error {
                best = found;
            }
            Ok(())
        };
        unless_interrupted(stage())?;
    }
    let mut fitted = None;
    // Whoever interrupts what comes before has what it gave.
    if options.together && !interruption.asked() && start.elapsed().as_secs_f64() < options.max_seconds {
        // A run that goes on begins where the one before began: coordinates follow from there.
        let start_from = match resumed {
            Some(_) => best.graph.clone(),
            None => best.balanced()?,
        };
        if resumed.is_none() {
            fixed.extend(start_values(&start_from, options.train));
        }
        let run = LearnRun { batch, spent: start.elapsed().as_secs_f64(), identity, fixed };
        let result = unless_interrupted(learn(&start_from, &goal, &mut task, run, progress, observer))?;
        if let Some(result) = result {
            let found = result.best();
            if found.error < best.error.error || resumed.is_some() {
                best = Best {
                    graph: with_parameters(&best.graph, &result.parameters)?,
                    error: Evaluation { error: found.error, measures: found.measures.clone() },
                };
            }
            fitted = Some(result);
        }
    }
    let trained = trainable::contents(&best.graph, &trainable::trainable(&best.graph, options.train));
    Ok(Recovered {
        graph: best.graph,
        before,
        refitted,
        layers: reports,
        refined,
        blocks,
        interrupted: interruption.asked(),
        fitted,
        after: best.error,
        trained: trained.iter().map(|(_, t)| t.len()).sum(),
        hidden: hidden.into_iter().map(|p| p.name).collect(),
        learned_from,
        held_out,
        held_out_rows: named,
        lengths: padding.map(|padding| padding.lengths().to_vec()),
        mask: options.mask.clone(),
        outputs: options.outputs.clone(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The best student so far.
struct Best {
    graph: Graph,
    error: Evaluation,
}

impl Best {
    /// A student, measured by a task that is given the constants which learn.
    fn of(graph: &Graph, train: Train, task: &mut Distillation) -> Result<Best, TrainError> {
        let values = trainable::contents(graph, &trainable::trainable(graph, train));
        Ok(Best { graph: graph.clone(), error: task.evaluate(&values)? })
    }

    /// The same student with what belongs together brought to one norm: every number moves at about the same speed.
    fn balanced(&self) -> Result<Graph, TrainError> {
        with_parameters(&self.graph, &trainable::balanced(&self.graph))
    }
}

/// The constants of a graph by their places among all of them.
fn constants(g: &Graph) -> Vec<(String, NodeId)> {
    let order = g.order().into_iter().filter(|n| matches!(g.op(*n), Op::Const(_)));
    order.enumerate().map(|(i, n)| (format!("constant {i}"), n)).collect()
}

/// Of new contents those of integers, which no step changes: positions of lookups.
fn changed_positions(g: &Graph, contents: &Contents) -> Tensors {
    let names = constants(g);
    let name = |n: NodeId| names.iter().find(|(_, m)| *m == n).map(|(name, _)| name.clone());
    let integers = contents.iter().filter(|(_, t)| !t.dtype().is_float());
    integers.filter_map(|(n, t)| Some((name(*n)?, t.clone()))).collect()
}

/// In front of the name of a parameter.
const START: &str = "start ";

/// What learning begins with.
fn start_values(g: &Graph, train: Train) -> Tensors {
    let values = trainable::contents(g, &trainable::trainable(g, train));
    values.into_iter().map(|(name, t)| (format!("{START}{name}"), t)).collect()
}

/// A graph with the contents that [`changed_positions`] and [`start_values`] found.
fn with_fixed(g: &Graph, fixed: &[(String, Tensor)]) -> Result<Graph, TrainError> {
    let names = constants(g);
    let node = |name: &String| names.iter().find(|(other, _)| other == name).map(|(_, n)| *n);
    let contents: Contents = fixed.iter().filter_map(|(name, t)| Some((node(name)?, t.clone()))).collect();
    let start = fixed.iter().filter_map(|(name, t)| Some((name.strip_prefix(START)?.to_owned(), t.clone())));
    with_parameters(&with_constants(g, &contents)?, &start.collect::<Tensors>())
}

/// What is the same for all graphs of one recovery.
struct Goal<'a> {
    teacher: &'a Graph,
    options: &'a RecoverOptions,
    mask: &'a Mask,
    padding: Option<&'a Padding>,
    /// Of the teacher's outputs, then of its values inside.
    variances: Vec<f64>,
    interruption: Interruption,
}

impl Goal<'_> {
    /// Measures students with this graph, but for the constants that learn.
    fn evaluator(&self, student: &Graph) -> Result<crate::Evaluator, TrainError> {
        let parameters = trainable::trainable(student, self.options.train);
        let (backend, threads) = (&self.options.backend, self.options.threads);
        let objective = self.objective(student)?;
        distill::evaluator(student, &parameters, &objective, backend, threads, &self.interruption)
    }

    /// Coordinates in which numbers of parameters matter about the same to what products compute.
    fn axes(
        &self,
        student: &Graph,
        parameters: &[NodeId],
        samples: &Samples,
        progress: &dyn Progress,
    ) -> Result<Axes, TrainError> {
        let few = samples.spread(student, METRIC_SAMPLES, 1)?;
        let (backend, threads) = (&self.options.backend, self.options.threads);
        let first_axis = |n: &NodeId| student.ty((*n).into()).extents().and_then(|e| e.first().copied());
        let short = parameters.iter().filter(|n| first_axis(n).is_some_and(|d| d <= LONGEST_AXIS));
        let short: Vec<NodeId> = short.copied().collect();
        let interruption = &self.interruption;
        let found =
            input_moments(student, &short, (&few, self.mask), backend, threads, progress, interruption)?;
        let moments: Vec<_> =
            found.into_iter().filter(|(n, m)| first_axis(n) == Some(m.gram().dim())).collect();
        let nodes: Vec<NodeId> = moments.iter().map(|(n, _)| *n).collect();
        progress.at("decomposing moments", 0, moments.len());
        let axes = interruption.run(move || {
            parallel(threads, moments.len(), &Silent, "", |i| {
                let gram = moments[i].1.gram();
                let axes = gram.scaled_axes(AXES_SHRINKAGE, 0.5).ok()?;
                Tensor::from_slice(&[gram.dim(), gram.dim()], &axes.to_row_major()).ok()
            })
        })?;
        // Where they cannot be decomposed, the parameter stays as it is.
        Ok(nodes.into_iter().zip(axes).filter_map(|(n, axes)| Some((n, axes?))).collect())
    }

    /// Where blocks of a student with these nodes end: what both have inside, then the outputs.
    fn ends(&self, student: &Graph) -> Result<Vec<objective::Scaled>, TrainError> {
        let Objective { hidden, outputs, .. } = self.objective(student)?;
        Ok(hidden.into_iter().chain(outputs).collect())
    }

    /// What a student with these nodes is to minimize.
    fn objective(&self, student: &Graph) -> Result<Objective, TrainError> {
        let outputs = pairs::outputs(student, self.teacher, &self.options.outputs)?;
        let hidden = pairs::hidden(student, self.teacher, &self.options.hidden)?;
        Ok(Objective {
            hidden: distill::scaled(&hidden, &self.variances[outputs.len()..]),
            outputs: distill::scaled(&outputs, &self.variances),
            mask: self.mask.clone(),
            weights: self.options.weights,
        })
    }
}

/// What a run of learning is given besides models and data.
struct LearnRun {
    batch: usize,
    /// Seconds that are over.
    spent: f64,
    identity: Identity,
    /// What no step changes and a checkpoint is to hold.
    fixed: Tensors,
}

/// All layers together, by gradients.
fn learn(
    student: &Graph,
    goal: &Goal<'_>,
    task: &mut Distillation,
    run: LearnRun,
    progress: &dyn Progress,
    observer: &mut dyn Observer,
) -> Result<Fitted, TrainError> {
    let (begin, options) = (Instant::now(), goal.options);
    let objective = goal.objective(student)?;
    let parameters = objective.reached(student, trainable::trainable(student, options.train));
    if parameters.is_empty() {
        return Err(TrainError::Options(
            "the outputs that count depend on no factors: nothing to recover".into(),
        ));
    }
    let update = Update {
        optimizer: Optimizer::ADAM,
        learning_rate: options.learning_rate,
        schedule: Schedule::Cosine { warm_up: 0.02, floor: 0.0 },
        clip: Some(1.0),
    };
    let axes = goal.axes(student, &parameters, task.samples(), progress)?;
    let step = TrainingStep::in_axes(student, &parameters, &|g| objective.loss(g), &update, &axes)?;
    let examples = task.examples(run.batch)?;
    let (backend, threads) = (options.backend.clone(), options.threads);
    let mut trainer =
        goal.interruption.run(move || Trainer::of_shapes(&step, &examples, &backend, threads))??;
    let left = (options.max_seconds - run.spent - begin.elapsed().as_secs_f64()).max(0.0);
    let fit_options = FitOptions {
        length: options.steps.map_or(Length::Seconds(left), Length::Steps),
        max_seconds: Some(left),
        find_rate: options.find_rate,
        lower_rate: true,
        batch: run.batch,
        seed: options.seed,
        evaluations: options.evaluations,
        patience: options.patience,
        checkpoint: options.checkpoint.clone(),
        checkpoint_seconds: options.checkpoint_seconds,
        resume: options.resume,
        identity: run.identity,
        fixed: run.fixed,
    };
    fit(&mut trainer, task, &fit_options, observer)
}

/// Identifies what a checkpoint belongs to: models, data, and the options that decide what a step computes.
/// How long a run is to be is not part of it, nor the device: it may go on for longer, and elsewhere.
fn identity(
    student: &Graph,
    teacher: &Graph,
    samples: &Samples,
    padding: Option<&Padding>,
    options: &RecoverOptions,
) -> Identity {
    let hash = |g: &Graph| blake3::hash(g.to_string().as_bytes()).to_hex()[..16].to_string();
    let RecoverOptions { batch, learning_rate, hidden, weights, train, layers, blocks, .. } = options;
    let Weights { outputs, pooled, hidden: inside } = weights;
    let counting = if options.outputs.is_empty() { "all".into() } else { options.outputs.join(", ") };
    let parts = [
        ("the sketched model", hash(student)),
        ("the teacher", hash(teacher)),
        ("the data", samples.hash()),
        ("the batch", batch.to_string()),
        ("the learning rate", rate_words(*learning_rate, options.find_rate)),
        ("what is hidden", hidden.to_string()),
        ("the weights of outputs, means and hidden values", format!("{outputs}, {pooled}, {inside}")),
        ("what is trained", train.name().to_owned()),
        ("the mask", options.mask.to_string()),
        ("the outputs that count", counting),
        ("the lengths of batches", padding.map_or("not cut".into(), |p| format!("{:?}", p.lengths()))),
        ("the refit of layers", layers.to_string()),
        ("the refinement of blocks", blocks.to_string()),
        ("the samples held out", held_out_words(options)),
        ("the seed", options.seed.to_string()),
    ];
    parts.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// The share of all time which the refit of layers may take, where something follows.
const LAYERS_SHARE: f64 = 0.5;

/// The share of the time that is left which blocks may take, where all layers learn together afterwards.
const BLOCKS_SHARE: f64 = 0.3;

/// Rows of a parameter, at most, for which coordinates are found.
const LONGEST_AXIS: usize = 2048;

/// See [`Gram::scaled_axes`](margay_randnla::Gram::scaled_axes).
const AXES_SHRINKAGE: f64 = 0.03;

/// Samples by which the weights of errors of layers are measured, at most.
const METRIC_SAMPLES: usize = 256;
