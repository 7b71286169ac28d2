//! The loop around training steps: batches, the clock, held-out evaluation, early stopping, checkpoints.
//!
//! What a step computes depends on its number, the states and the data alone, never on the clock; only where training
//! ends may depend on time, and how many steps a schedule is made for under a time limit. Both are in the checkpoint, so
//! that a run that goes on from one computes the same bits as one that never stopped.

mod restart;

use std::path::PathBuf;
use std::time::Instant;

use margay_driver::Interruption;
use margay_tensor::Tensor;
use serde::{Deserialize, Serialize};

pub use self::restart::Restart;
use crate::checkpoint::{Checkpoint, Identity, Record};
use crate::error::unless_interrupted;
use crate::rate::{self, RateTest, find_rate};
use crate::{Batches, NonFinite, RankChange, TrainError, Trainer};

/// Named tensors.
pub type Tensors = Vec<(String, Tensor)>;

/// What is trained on, and what is measured.
pub trait Task {
    /// Number of samples to train on.
    fn rows(&self) -> usize;

    /// By sample, what is to be similar among the samples of a step; `None` for samples at random.
    fn lengths(&self) -> Option<Vec<usize>> {
        None
    }

    /// The inputs of a step for these samples.
    fn batch(&mut self, rows: &[usize]) -> Result<Tensors, TrainError>;

    /// The error of a model with these parameters on samples that are not trained on.
    fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError>;

    /// Constants that change before a step of this number, whatever training makes of it; none for most.
    ///
    /// # Errors
    /// What making them fails with.
    fn changed(&mut self, _step: u64) -> Result<Tensors, TrainError> {
        Ok(Tensors::new())
    }

    /// The same task, where ranks of factors are chosen while they are trained; `None` where parameters keep their shapes.
    fn ranks(&mut self) -> Option<&mut dyn Ranked> {
        None
    }
}

/// A task in which [ranks](crate::ranks) of factors are chosen while they are trained.
pub trait Ranked {
    /// How many choices are due after so many steps of all.
    fn due(&self, step: u64, total: u64) -> usize;

    /// Makes a choice, the `number`th, after so many steps: puts a trainer of parameters of other shapes in place of the one that is there, which
    /// goes on from its states. `batches` are the samples to measure on.
    ///
    /// # Errors
    /// What measuring and compiling fail with; the trainer is as it was then.
    fn choose(
        &mut self,
        trainer: &mut Trainer,
        number: usize,
        step: u64,
        batches: &[Vec<usize>],
    ) -> Result<RankChange, TrainError>;

    /// Puts a trainer of the shapes of some states in place of the one that is there.
    ///
    /// # Errors
    /// For states that are not those of the model at any ranks, and what compiling fails with.
    fn resize(&mut self, trainer: &mut Trainer, states: &[(String, Tensor)]) -> Result<(), TrainError>;
}

/// An error on held-out samples, to become small, and other measures by name.
#[derive(Clone, PartialEq, Debug)]
pub struct Evaluation {
    /// What decides.
    pub error: f64,
    /// What is also of interest.
    pub measures: Vec<(String, f64)>,
}

/// An evaluation during training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Point {
    /// Steps done before it.
    pub step: u64,
    /// Time since training began.
    pub seconds: f64,
    /// Mean loss of the steps since the evaluation before; 0 at the first one.
    pub loss: f64,
    /// The error on held-out samples.
    pub error: f64,
    /// Other measures by name.
    pub measures: Vec<(String, f64)>,
}

/// How long to train.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Length {
    /// So many steps.
    Steps(u64),
    /// So many times through all samples.
    Epochs(f64),
    /// So many seconds, evaluations included. The number of steps is estimated from the first ones.
    Seconds(f64),
}

/// How to train.
#[derive(Clone, PartialEq, Debug)]
pub struct FitOptions {
    /// How long.
    pub length: Length,
    /// Never longer than this many seconds.
    pub max_seconds: Option<f64>,
    /// Whether the learning rate of the step is only a default, and a [test](crate::rate) finds a better one first where
    /// training is long enough for that.
    pub find_rate: bool,
    /// Whether training that only made things worse begins again from its best parameters, with a smaller learning rate.
    pub lower_rate: bool,
    /// Samples of a step.
    pub batch: usize,
    /// Names the order of the samples.
    pub seed: u64,
    /// Evaluations in all, evenly spread, besides the one before the first step.
    pub evaluations: u64,
    /// Training ends after so many evaluations in a row without a new best. `None`: never.
    pub patience: Option<u64>,
    /// Where states are kept while training.
    pub checkpoint: Option<PathBuf>,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: f64,
    /// Whether to go on from the checkpoint, if there is one.
    pub resume: bool,
    /// Identifies model, data and options in the checkpoint.
    pub identity: Identity,
    /// What a checkpoint is to hold of the model besides states.
    pub fixed: Tensors,
}

impl Default for FitOptions {
    fn default() -> FitOptions {
        FitOptions {
            length: Length::Epochs(1.0),
            max_seconds: None,
            find_rate: false,
            lower_rate: false,
            batch: 32,
            seed: 0,
            evaluations: 20,
            patience: None,
            checkpoint: None,
            checkpoint_seconds: 20.0,
            resume: false,
            identity: Identity::new(),
            fixed: Tensors::new(),
        }
    }
}

/// Why training ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// All steps are done.
    Finished,
    /// The time is over.
    Time,
    /// No evaluation gave a new best for long enough.
    Patience,
    /// The observer asked for it.
    Interrupted,
    /// The loss or the gradients were not finite: the learning rate is too large.
    Diverged,
}

impl Stop {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Stop::Finished => "all steps done",
            Stop::Time => "time is over",
            Stop::Patience => "no better for long enough",
            Stop::Interrupted => "interrupted",
            Stop::Diverged => "the loss or its derivatives are not finite",
        }
    }
}

/// What happens while training.
pub trait Observer {
    /// A step is done: its number from 1 on, of how many in all, its loss, seconds so far.
    fn stepped(&mut self, step: u64, total: u64, loss: f32, seconds: f64);

    /// Held-out samples were evaluated; whether it is the best so far.
    fn evaluated(&mut self, point: &Point, best: bool);

    /// Something went wrong that does not end training, such as a checkpoint that could not be written.
    fn failed(&mut self, error: &TrainError);

    /// Asked after every step and during longer work: whether to stop and keep the best so far.
    fn interruption(&self) -> Interruption;
}

/// Sees nothing and never stops.
impl Observer for margay_driver::Silent {
    fn stepped(&mut self, _: u64, _: u64, _: f32, _: f64) {}

    fn evaluated(&mut self, _: &Point, _: bool) {}

    fn failed(&mut self, _: &TrainError) {}

    fn interruption(&self) -> Interruption {
        Interruption::never()
    }
}

/// What training gave.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The parameters with the smallest error on held-out samples, which may be the initial ones.
    pub parameters: Tensors,
    /// Every evaluation, the one before training first.
    pub history: Vec<Point>,
    /// Position of the best one.
    pub best: usize,
    /// Steps done.
    pub steps: u64,
    /// Time spent, that of runs which this one went on from included.
    pub seconds: f64,
    /// The largest learning rate of the schedule.
    pub learning_rate: f64,
    /// What a test of learning rates found, if this run began with one.
    pub rate_test: Option<RateTest>,
    /// Every choice of ranks.
    pub rank_changes: Vec<RankChange>,
    /// Every time that it began again with a smaller rate.
    pub restarts: Vec<Restart>,
    /// Why it ended.
    pub stop: Stop,
    /// Where the loss stopped being finite, if that is why.
    pub non_finite: Option<NonFinite>,
}

impl Fitted {
    /// The evaluation before training.
    pub fn first(&self) -> &Point {
        &self.history[0]
    }

    /// Which step was no use and why, if training ended for that.
    pub fn divergence(&self) -> Option<String> {
        let step = self.steps;
        (self.stop == Stop::Diverged).then(|| match &self.non_finite {
            Some(found) => format!("the loss of step {step} is not finite: {found}"),
            None => format!("the derivatives of step {step} are not finite"),
        })
    }

    /// The best evaluation.
    pub fn best(&self) -> &Point {
        &self.history[self.best]
    }
}

/// The first steps, which are slower than others: memory is touched for the first time.
const FIRST_STEPS: usize = 6;

/// Steps whose time is taken before the number of steps under a time limit is settled, unless the first ones take longer than
/// [`TIMING_SHARE`].
const TIMED_STEPS: usize = 24;

/// Batches on which the loss is measured before ranks are chosen.
const RANK_BATCHES: u64 = 8;

/// The share of a time limit after which the number of steps is settled by what is known.
const TIMING_SHARE: f64 = 0.04;

/// The share of the time left that a schedule is made for: one that is cut off learns less than one that ends early.
const SCHEDULED_SHARE: f64 = 0.97;

/// Trains until the end of the schedule, or one of the reasons of [`Stop`]. Parameters never get worse than they were
/// on the held-out samples: the best ones are kept. An evaluation that is interrupted and would take longer than a moment is
/// left out.
///
/// # Errors
/// What a step, an evaluation or a first checkpoint fails with; [`DriverError::Interrupted`](margay_driver::DriverError) where
/// nothing was evaluated yet.
pub fn fit(
    trainer: &mut Trainer,
    task: &mut dyn Task,
    options: &FitOptions,
    observer: &mut dyn Observer,
) -> Result<Fitted, TrainError> {
    let mut run = Run::begin(trainer, task, options, observer)?;
    let mut non_finite = None;
    let chosen = unless_interrupted(run.choose_ranks(trainer, task))?;
    if chosen == Some(true) {
        unless_interrupted(run.evaluate(trainer, task, observer))?;
    }
    let stop = loop {
        if let Some(stop) = run.ended() {
            break stop;
        }
        if !run.step(trainer, task, observer)? {
            if run.may_restart() && run.record.step < run.record.total_steps {
                run.restart(trainer)?;
                continue;
            }
            let batch = task.batch(run.batches.batch(run.record.step - 1))?;
            non_finite = trainer.first_non_finite(&batch)?;
            break Stop::Diverged;
        }
        // A choice that was interrupted is made by the run that goes on, at the same step.
        let Some(changed) = unless_interrupted(run.choose_ranks(trainer, task))? else {
            break Stop::Interrupted;
        };
        if changed || run.record.step.is_multiple_of(run.every()) || run.record.step == run.record.total_steps
        {
            unless_interrupted(run.evaluate(trainer, task, observer))?;
            if run.is_worse() && run.record.step < run.record.total_steps {
                run.restart(trainer)?;
            }
        }
        run.try_save(trainer, options.checkpoint_seconds, observer);
    };
    if stop != Stop::Diverged {
        // Before an evaluation that a run which goes on would not make.
        run.try_save(trainer, 0.0, observer);
        if run.record.history.last().is_none_or(|p| p.step != run.record.step) {
            unless_interrupted(run.evaluate(trainer, task, observer))?;
        }
    }
    let best = run.record.history.iter().position(|p| p.step == run.record.best_step);
    Ok(Fitted {
        parameters: run.best,
        best: best.expect("the best was evaluated"),
        steps: run.record.step,
        seconds: run.record.seconds,
        learning_rate: trainer.peak_rate(),
        rate_test: run.rate_test,
        rank_changes: run.record.rank_changes,
        restarts: run.record.restarts,
        history: run.record.history,
        stop,
        non_finite,
    })
}

/// A run on its way.
struct Run<'o> {
    options: &'o FitOptions,
    batches: Batches,
    record: Record,
    best: Tensors,
    /// Seconds spent in runs before this one.
    before: f64,
    start: Instant,
    /// Duration of the last evaluation.
    evaluation_seconds: f64,
    /// Durations of the steps that are timed.
    timed: Vec<f64>,
    /// When states were saved last.
    saved: f64,
    rate_test: Option<RateTest>,
    interruption: Interruption,
}

/// A test of learning rates takes this share of all steps, or of the time, at most.
const TEST_SHARE: f64 = 0.25;

/// Seconds that a test of learning rates may take.
fn most_of_test(options: &FitOptions) -> f64 {
    let limit = match options.length {
        Length::Seconds(limit) => limit,
        _ => f64::INFINITY,
    };
    TEST_SHARE * limit.min(options.max_seconds.unwrap_or(f64::INFINITY))
}

impl<'o> Run<'o> {
    fn begin(
        trainer: &mut Trainer,
        task: &mut dyn Task,
        options: &'o FitOptions,
        observer: &mut dyn Observer,
    ) -> Result<Run<'o>, TrainError> {
        let mut batches = Batches::new(task.rows(), options.batch, options.seed)?;
        if let Some(lengths) = task.lengths() {
            batches = batches.by_length(lengths);
        }
        let (total_steps, settled) = match options.length {
            Length::Steps(n) => (n.max(1), true),
            Length::Epochs(n) => (((n * batches.per_epoch() as f64).ceil() as u64).max(1), true),
            // Until the first steps are timed: long, so that a warm-up is short of its end.
            Length::Seconds(_) => (2000, false),
        };
        let mut run = Run {
            options,
            batches,
            record: Record { identity: options.identity.clone(), total_steps, settled, ..Record::default() },
            best: trainer.parameters()?,
            before: 0.0,
            start: Instant::now(),
            evaluation_seconds: 0.0,
            timed: Vec::new(),
            saved: 0.0,
            rate_test: None,
            interruption: observer.interruption(),
        };
        let found = options.checkpoint.as_ref().filter(|path| options.resume && path.exists());
        if let Some(path) = found {
            let checkpoint = Checkpoint::read(path, &options.identity)?;
            if let Some(ranked) = task.ranks() {
                ranked.resize(trainer, &checkpoint.states)?;
            }
            trainer.restore(&checkpoint.states)?;
            run.before = checkpoint.record.seconds;
            run.saved = run.before;
            run.record = checkpoint.record;
            run.best = checkpoint.best;
            // A run may go on for longer than it was meant to at first; its schedule is that of all steps then.
            if settled && run.record.total_steps != total_steps {
                run.record.total_steps = total_steps;
                trainer.set_total_steps(run.scheduled())?;
            }
        } else {
            // How long steps take is not known yet where time is the limit.
            if options.find_rate && rate::STEPS as f64 <= TEST_SHARE * total_steps as f64 {
                let default = trainer.peak_rate();
                let over =
                    || run.interruption.asked() || run.start.elapsed().as_secs_f64() > most_of_test(options);
                let mut batches = run.batches.clone();
                run.rate_test = Some(find_rate(trainer, task, &mut batches, default, &over)?);
            }
            trainer.set_total_steps(total_steps)?;
            run.evaluate(trainer, task, observer)?;
            run.save(trainer, 0.0)?;
        }
        Ok(run)
    }

    fn seconds(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    /// Steps between evaluations.
    fn every(&self) -> u64 {
        self.record.total_steps.div_ceil(self.options.evaluations.max(1)).max(1)
    }

    fn ended(&self) -> Option<Stop> {
        let seconds = self.seconds();
        let limit = match self.options.length {
            Length::Seconds(limit) => Some(limit),
            _ => None,
        };
        let late = [limit, self.options.max_seconds].into_iter().flatten().any(|l| seconds >= l);
        // What learned nothing before a restart says nothing of what follows.
        let from = self.record.restarts.last().map_or(0, |last| last.step).max(self.record.best_step);
        let since_best = self.record.history.iter().rev().take_while(|p| p.step > from).count() as u64;
        if self.record.settled && self.record.step >= self.record.total_steps {
            Some(Stop::Finished)
        } else if self.interruption.asked() {
            Some(Stop::Interrupted)
        } else if late {
            Some(Stop::Time)
        } else if self.options.patience.is_some_and(|p| since_best >= p.max(1)) {
            Some(Stop::Patience)
        } else {
            None
        }
    }

    /// Runs a step; whether loss and gradients are finite.
    fn step(
        &mut self,
        trainer: &mut Trainer,
        task: &mut dyn Task,
        observer: &mut dyn Observer,
    ) -> Result<bool, TrainError> {
        let begin = self.seconds();
        let batch = task.batch(self.batches.batch(self.record.step))?;
        trainer.set(&task.changed(self.record.step)?)?;
        let result = trainer.step(&batch)?;
        self.record.step += 1;
        self.record.loss_sum += f64::from(result.loss);
        self.record.loss_count += 1;
        let seconds = self.seconds();
        if !self.record.settled {
            self.timed.push(seconds - begin);
            self.settle(trainer)?;
        }
        observer.stepped(self.record.step, self.record.total_steps, result.loss, seconds);
        Ok(result.loss.is_finite() && result.gradient_norm.is_finite())
    }

    /// Chooses ranks where a choice is due; whether one was made. Parameters of other ranks are another model: the best ones of
    /// before count until new ones are evaluated.
    fn choose_ranks(&mut self, trainer: &mut Trainer, task: &mut dyn Task) -> Result<bool, TrainError> {
        let Some(ranked) = task.ranks().filter(|_| self.record.settled) else { return Ok(false) };
        let (step, number) = (self.record.step, ranked.due(self.record.step, self.record.total_steps));
        if number <= self.record.rank_changes.last().map_or(0, |last| last.number) {
            return Ok(false);
        }
        // The batches that come next, so that none counts for what was learned from it just before.
        let batches = step..step + RANK_BATCHES;
        let batches: Vec<Vec<usize>> = batches.map(|s| self.batches.batch(s).to_vec()).collect();
        let change = ranked.choose(trainer, number, step, &batches)?;
        self.record.rank_changes.push(change);
        Ok(true)
    }

    /// Settles how many steps a time limit leaves room for, once enough of them are timed.
    fn settle(&mut self, trainer: &mut Trainer) -> Result<(), TrainError> {
        let Length::Seconds(limit) = self.options.length else { return Ok(()) };
        let spent = self.timed.iter().sum::<f64>() / limit.max(f64::MIN_POSITIVE);
        let enough = self.timed.len() >= TIMED_STEPS || spent > TIMING_SHARE;
        if self.timed.len() < FIRST_STEPS || !enough {
            return Ok(());
        }
        let steady = &self.timed[FIRST_STEPS..];
        let each = if steady.len() >= FIRST_STEPS {
            steady.iter().sum::<f64>() / steady.len() as f64
        } else {
            self.timed.sort_by(f64::total_cmp);
            self.timed[self.timed.len() / 2]
        };
        let each = each.max(1e-6);
        let evaluations = self.options.evaluations as f64 * self.evaluation_seconds;
        let left = SCHEDULED_SHARE * (limit - self.seconds() - evaluations).max(0.0);
        self.record.total_steps = self.record.step + (left / each) as u64;
        self.record.settled = true;
        trainer.set_total_steps(self.scheduled())
    }

    fn evaluate(
        &mut self,
        trainer: &Trainer,
        task: &mut dyn Task,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let begin = Instant::now();
        let parameters = trainer.parameters()?;
        let found = task.evaluate(&parameters)?;
        self.evaluation_seconds = begin.elapsed().as_secs_f64();
        let sum = std::mem::take(&mut self.record.loss_sum);
        let count = std::mem::take(&mut self.record.loss_count);
        let point = Point {
            step: self.record.step,
            seconds: self.seconds(),
            loss: if count > 0 { sum / count as f64 } else { 0.0 },
            error: found.error,
            measures: found.measures,
        };
        let since = self.record.rank_changes.last().map_or(0, |last| last.step);
        let best = self.record.history.iter().filter(|p| p.step >= since).all(|p| point.error < p.error);
        if best {
            self.best = parameters;
            self.record.best_step = point.step;
        }
        observer.evaluated(&point, best);
        self.record.history.push(point);
        Ok(())
    }

    /// As [`save`](Run::save), where a failure is told and training goes on: what was learned is worth more than its
    /// checkpoint. The next one is tried as late as if this one had been written.
    fn try_save(&mut self, trainer: &Trainer, older_than: f64, observer: &mut dyn Observer) {
        if let Err(error) = self.save(trainer, older_than) {
            self.saved = self.seconds();
            observer.failed(&error);
        }
    }

    /// Writes a checkpoint if the last one is older than so many seconds.
    fn save(&mut self, trainer: &Trainer, older_than: f64) -> Result<(), TrainError> {
        self.record.seconds = self.seconds();
        let due = self.record.seconds - self.saved >= older_than;
        let Some(path) = self.options.checkpoint.as_ref().filter(|_| due) else { return Ok(()) };
        let checkpoint = Checkpoint {
            record: self.record.clone(),
            states: trainer.states()?,
            best: self.best.clone(),
            fixed: self.options.fixed.clone(),
        };
        checkpoint.write(path)?;
        self.saved = self.seconds();
        Ok(())
    }
}
