//! The loop around a compiled step: what it keeps, when it ends, and that going on from a checkpoint gives the same bits.

use std::path::Path;

use margay_driver::{Interruption, Silent, backend};
use margay_ir::ops::{Const, MatMul, Tanh};
use margay_ir::{Graph, NodeId, Origin, Payload, TensorType, Value};
use margay_tensor::{DType, Dim, Tensor};
use margay_train::{
    Evaluation, Evaluator, FitOptions, Fitted, Length, Observer, Optimizer, Point, Schedule, Stop, Task,
    Tensors, TrainError, Trainer, TrainingStep, Update, fit, loss,
};

use crate::support::StopAfter;

const INPUTS: usize = 12;
const HIDDEN: usize = 20;
const OUTPUTS: usize = 5;
const ROWS: usize = 96;

/// Numbers that are neither round nor large.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn tensor(shape: &[usize], seed: usize) -> Tensor {
    let scale = if shape[0] == ROWS { 1.0 } else { 1.0 / (shape[0] as f32).sqrt() };
    let values: Vec<f32> = numbers(shape.iter().product(), seed).iter().map(|x| x * scale).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

/// `y = tanh(x A) B` with the batch left open.
fn model() -> (Graph, Vec<NodeId>) {
    let mut g = Graph::new("net");
    let x = g
        .add_input("x", TensorType::new(DType::F32, [Dim::symbol("N"), INPUTS.into()].into_iter().collect()));
    let constant = |g: &mut Graph, name: &str, shape: &[usize], seed| {
        let payload = Payload::new(tensor(shape, seed));
        g.add(Const { payload }, &[], Origin::named(name)).unwrap()
    };
    let a = constant(&mut g, "a", &[INPUTS, HIDDEN], 1);
    let b = constant(&mut g, "b", &[HIDDEN, OUTPUTS], 2);
    let hidden = g.add(MatMul, &[x, a], Origin::named("hidden")).unwrap();
    let hidden = g.add(Tanh, &[hidden], Origin::named("tanh")).unwrap();
    let y = g.add(MatMul, &[hidden, b], Origin::named("y")).unwrap();
    g.add_output("y", y);
    (g, vec![a.node, b.node])
}

fn objective(g: &mut Graph) -> Result<Value, TrainError> {
    let y = g.outputs()[0].value;
    let target = g.add_input("target", g.ty(y).clone());
    loss::mse(g, y, target, None)
}

/// Targets are what another model of the same form gives.
struct Regression {
    x: Tensor,
    target: Tensor,
    evaluator: Evaluator,
    evaluations: usize,
}

impl Regression {
    fn new() -> Regression {
        Regression::of([4, 5])
    }

    /// With a teacher of these seeds.
    fn of(seeds: [usize; 2]) -> Regression {
        let (g, parameters) = model();
        let mut evaluator =
            Evaluator::new(&g, &parameters, &|_| Ok(Vec::new()), &backend::native(), 1).unwrap();
        let x = tensor(&[ROWS, INPUTS], 3);
        let teacher = vec![
            ("a".to_string(), tensor(&[INPUTS, HIDDEN], seeds[0])),
            ("b".to_string(), tensor(&[HIDDEN, OUTPUTS], seeds[1])),
        ];
        let target = evaluator.run(&teacher, &[("x".into(), x.clone())]).unwrap().remove(0).1;
        Regression { x, target, evaluator, evaluations: 0 }
    }

    fn pick(t: &Tensor, rows: &[usize]) -> Tensor {
        let width = t.shape()[1];
        let all = t.to_vec::<f32>().unwrap();
        let picked: Vec<f32> = rows.iter().flat_map(|r| all[r * width..(r + 1) * width].to_vec()).collect();
        Tensor::from_slice(&[rows.len(), width], &picked).unwrap()
    }
}

impl Task for Regression {
    fn rows(&self) -> usize {
        ROWS * 3 / 4
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Tensors, TrainError> {
        Ok(vec![
            ("x".into(), Regression::pick(&self.x, rows)),
            ("target".into(), Regression::pick(&self.target, rows)),
        ])
    }

    fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError> {
        self.evaluations += 1;
        let rows: Vec<usize> = (self.rows()..ROWS).collect();
        let found = self.evaluator.run(parameters, &[("x".into(), Regression::pick(&self.x, &rows))])?;
        let found = found[0].1.to_vec::<f32>().unwrap();
        let expected = Regression::pick(&self.target, &rows).to_vec::<f32>().unwrap();
        let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        let error = found.iter().zip(&expected).map(square).sum::<f64>() / found.len() as f64;
        Ok(Evaluation { error, measures: vec![("root".into(), error.sqrt())] })
    }
}

fn trainer(learning_rate: f64, threads: usize) -> Trainer {
    let (g, parameters) = model();
    let update = Update {
        optimizer: Optimizer::ADAM,
        learning_rate,
        schedule: Schedule::Cosine { warm_up: 0.1, floor: 0.0 },
        clip: Some(1.0),
    };
    let step = TrainingStep::new(&g, &parameters, &objective, &update).unwrap();
    let example = Regression::new().batch(&(0..16).collect::<Vec<_>>()).unwrap();
    Trainer::new(&step, &example, &backend::native(), threads).unwrap()
}

fn options(length: Length) -> FitOptions {
    FitOptions {
        length,
        batch: 16,
        seed: 5,
        evaluations: 10,
        identity: vec![("the run".into(), "one".into())],
        ..FitOptions::default()
    }
}

fn bytes(tensors: &[(String, Tensor)]) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), t.bytes().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn training_lowers_the_error_and_keeps_the_best() {
    let mut task = Regression::new();
    let mut trainer = trainer(0.02, 2);
    let fitted = fit(&mut trainer, &mut task, &options(Length::Steps(300)), &mut Silent).unwrap();
    assert_eq!((fitted.stop, fitted.steps, fitted.history.len()), (Stop::Finished, 300, 11));
    assert!(fitted.best().error < 0.1 * fitted.first().error, "{:?}", fitted.history);
    let least = fitted.history.iter().map(|p| p.error).fold(f64::INFINITY, f64::min);
    assert_eq!(fitted.best().error, least);
    assert_eq!(
        task.evaluate(&fitted.parameters).unwrap().error,
        least,
        "the parameters are those of the best"
    );
    assert_eq!(fitted.history[3].measures, [("root".to_string(), fitted.history[3].error.sqrt())]);
}

#[test]
fn a_rate_is_found_by_a_test_that_leaves_everything_else_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let options = |steps, resume| FitOptions {
        find_rate: true,
        checkpoint: Some(path.clone()),
        resume,
        ..options(Length::Steps(steps))
    };
    // The default is far too small.
    let mut one = trainer(1e-9, 2);
    let fitted = fit(&mut one, &mut Regression::new(), &options(300, false), &mut Silent).unwrap();
    let found = fitted.rate_test.clone().unwrap();
    assert!(found.improved && (1e-3..0.1).contains(&found.rate), "{found:?}");
    assert!((fitted.learning_rate / found.rate - 1.0).abs() < 1e-6);
    assert!(fitted.best().error < 0.1 * fitted.first().error, "{:?}", fitted.history);
    // As if that rate had been given.
    let mut given = trainer(found.rate, 2);
    let same = FitOptions { find_rate: false, checkpoint: None, ..options(300, false) };
    let same = fit(&mut given, &mut Regression::new(), &same, &mut Silent).unwrap();
    assert_eq!(bytes(&same.parameters), bytes(&fitted.parameters));
    // A run that goes on has it from the checkpoint.
    let longer =
        fit(&mut trainer(1e-9, 2), &mut Regression::new(), &options(310, true), &mut Silent).unwrap();
    assert_eq!((longer.learning_rate, longer.rate_test), (fitted.learning_rate, None));
    // A short run has no time for a test.
    let short = FitOptions { find_rate: true, ..self::options(Length::Steps(20)) };
    let short = fit(&mut trainer(0.02, 2), &mut Regression::new(), &short, &mut Silent).unwrap();
    assert_eq!(short.rate_test, None);
}

#[test]
fn a_rate_that_only_makes_it_worse_is_lowered() {
    let folder = tempfile::tempdir().unwrap();
    let run = |path: &Path, observer: &mut dyn Observer, lower_rate, resume| {
        let options = FitOptions {
            lower_rate,
            checkpoint: Some(path.into()),
            checkpoint_seconds: 0.0,
            resume,
            ..options(Length::Steps(300))
        };
        fit(&mut trainer(4.0, 2), &mut Regression::new(), &options, observer).unwrap()
    };
    let whole = folder.path().join("whole");
    let kept = run(&folder.path().join("kept"), &mut Silent, false, false);
    let lowered = run(&whole, &mut Silent, true, false);
    assert!(kept.restarts.is_empty() && !lowered.restarts.is_empty(), "{:?}", lowered.history);
    for (i, restart) in lowered.restarts.iter().enumerate() {
        assert!(
            (restart.learning_rate / (4.0 * 0.25f64.powi(i as i32 + 1)) - 1.0).abs() < 1e-6,
            "{restart:?}"
        );
    }
    assert!(lowered.best().error < 0.5 * kept.best().error, "{:?} {:?}", kept.history, lowered.history);
    // A run that was stopped behind the last beginning goes on to the same bits.
    let (path, last) = (folder.path().join("parts"), lowered.restarts.last().unwrap().step);
    run(&path, &mut StopAfter::steps(last + 3), true, false);
    let parts = run(&path, &mut Silent, true, true);
    assert_eq!(parts.restarts, lowered.restarts);
    assert_eq!(bytes(&parts.parameters), bytes(&lowered.parameters));
}

#[test]
fn where_no_rate_makes_the_loss_smaller_the_default_stays() {
    let mut task = Regression::of([1, 2]);
    let options = FitOptions { find_rate: true, ..options(Length::Steps(200)) };
    let fitted = fit(&mut trainer(0.01, 2), &mut task, &options, &mut Silent).unwrap();
    assert!(!fitted.rate_test.clone().unwrap().improved, "{:?}", fitted.rate_test);
    assert!((fitted.learning_rate / 0.01 - 1.0).abs() < 1e-6);
}

#[test]
fn threads_do_not_change_a_bit() {
    let run = |threads| {
        fit(&mut trainer(0.02, threads), &mut Regression::new(), &options(Length::Steps(20)), &mut Silent)
            .unwrap()
    };
    assert_eq!(bytes(&run(1).parameters), bytes(&run(2).parameters));
}

fn resumed(checkpoint: &Path, observer: &mut dyn Observer, resume: bool) -> (Fitted, Tensors) {
    let mut trainer = trainer(0.02, 2);
    let options = FitOptions {
        checkpoint: Some(checkpoint.into()),
        checkpoint_seconds: 0.0,
        resume,
        ..options(Length::Epochs(15.0))
    };
    let fitted = fit(&mut trainer, &mut Regression::new(), &options, observer).unwrap();
    (fitted, trainer.states().unwrap())
}

#[test]
fn going_on_from_a_checkpoint_gives_the_bits_of_a_run_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, states) = resumed(&folder.path().join("whole"), &mut Silent, false);
    assert_eq!(whole.steps, 60, "72 rows in batches of 16, 15 times");
    let path = folder.path().join("parts");
    let (mut parts, mut after) = resumed(&path, &mut StopAfter::steps(7), false);
    assert_eq!((parts.stop, parts.steps), (Stop::Interrupted, 7));
    for more in [1, 20, 1000] {
        (parts, after) = resumed(&path, &mut StopAfter::steps(more), true);
    }
    assert_eq!((parts.stop, parts.steps), (Stop::Finished, 60));
    assert_eq!(bytes(&after), bytes(&states));
    assert_eq!(bytes(&parts.parameters), bytes(&whole.parameters));
    let numbers = |f: &Fitted| f.history.iter().map(|p| (p.step, p.loss, p.error)).collect::<Vec<_>>();
    assert_eq!(numbers(&parts), numbers(&whole));
    let before = parts.seconds;
    let (again, last) = resumed(&path, &mut Silent, true);
    assert_eq!((again.steps, again.stop), (60, Stop::Finished), "nothing is left to do");
    assert!(again.seconds >= before);
    assert_eq!(bytes(&last), bytes(&states));
    assert_eq!(bytes(&again.parameters), bytes(&whole.parameters));
    assert_eq!(numbers(&again), numbers(&whole));
}

#[test]
fn a_run_goes_on_for_more_steps_than_it_was_begun_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let run = |steps, resume| {
        let options = FitOptions { checkpoint: Some(path.clone()), resume, ..options(Length::Steps(steps)) };
        fit(&mut trainer(0.02, 1), &mut Regression::new(), &options, &mut Silent).unwrap()
    };
    let first = run(50, false);
    let more = run(80, true);
    assert_eq!((first.steps, more.steps, more.stop), (50, 80, Stop::Finished));
    assert!(more.best().error <= first.best().error);
    assert_eq!(more.history[..first.history.len()], first.history);
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_told_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gone/run");
    std::fs::create_dir(folder.path().join("gone")).unwrap();
    /// Takes the folder of the checkpoint away before the first step.
    struct Gone<'f>(Regression, &'f Path);
    impl Task for Gone<'_> {
        fn rows(&self) -> usize {
            self.0.rows()
        }

        fn batch(&mut self, rows: &[usize]) -> Result<Tensors, TrainError> {
            let _ = std::fs::remove_dir_all(self.1);
            self.0.batch(rows)
        }

        fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError> {
            self.0.evaluate(parameters)
        }
    }
    let options =
        FitOptions { checkpoint: Some(path), checkpoint_seconds: 0.0, ..options(Length::Steps(50)) };
    let (mut task, mut log) = (Gone(Regression::new(), &folder.path().join("gone")), Log::default());
    let fitted = fit(&mut trainer(0.02, 1), &mut task, &options, &mut log).unwrap();
    assert_eq!((fitted.steps, fitted.stop), (50, Stop::Finished));
    assert!(!log.failures.is_empty() && log.failures[0].starts_with("cannot write `"), "{:?}", log.failures);
}

/// A regression of which the errors at every evaluation are made up, and what was evaluated.
struct Scripted {
    task: Regression,
    errors: Vec<f64>,
    seen: Vec<Vec<(String, Vec<u8>)>>,
}

impl Scripted {
    fn new(errors: &[f64]) -> Scripted {
        Scripted { task: Regression::new(), errors: errors.to_vec(), seen: Vec::new() }
    }
}

impl Task for Scripted {
    fn rows(&self) -> usize {
        self.task.rows()
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Tensors, TrainError> {
        self.task.batch(rows)
    }

    fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError> {
        self.seen.push(bytes(parameters));
        Ok(Evaluation { error: self.errors.remove(0), measures: Vec::new() })
    }
}

/// Losses by step, and the steps evaluated with whether they were the best.
#[derive(Default)]
struct Log {
    losses: Vec<f64>,
    evaluated: Vec<(u64, bool)>,
    failures: Vec<String>,
}

impl Observer for Log {
    fn stepped(&mut self, step: u64, total: u64, loss: f32, _: f64) {
        self.losses.push(f64::from(loss));
        assert_eq!((step, total), (self.losses.len() as u64, 50));
    }

    fn evaluated(&mut self, point: &Point, best: bool) {
        self.evaluated.push((point.step, best));
    }

    fn failed(&mut self, error: &TrainError) {
        self.failures.push(error.to_string());
    }

    fn interruption(&self) -> Interruption {
        Interruption::never()
    }
}

#[test]
fn the_first_of_the_best_is_kept_and_losses_are_means_since_the_evaluation_before() {
    let mut task = Scripted::new(&[5.0, 2.0, 3.0, 2.0, 1.0, 1.0]);
    let options = FitOptions { evaluations: 5, patience: Some(3), ..options(Length::Steps(50)) };
    let mut log = Log::default();
    let fitted = fit(&mut trainer(0.02, 1), &mut task, &options, &mut log).unwrap();
    let best = [true, true, false, false, true, false];
    let expected: Vec<(u64, bool)> = best.into_iter().enumerate().map(|(i, b)| (10 * i as u64, b)).collect();
    assert_eq!(log.evaluated, expected);
    assert_eq!((fitted.best, fitted.best().step, fitted.stop), (4, 40, Stop::Finished));
    assert_eq!(bytes(&fitted.parameters), task.seen[4]);
    assert_ne!(task.seen[4], task.seen[5]);
    assert_eq!(fitted.history[0].loss, 0.0);
    for (i, point) in fitted.history.iter().enumerate().skip(1) {
        let mean = log.losses[10 * (i - 1)..10 * i].iter().sum::<f64>() / 10.0;
        assert!((point.loss - mean).abs() < 1e-12, "evaluation {i}: {} {mean}", point.loss);
    }
}

#[test]
fn patience_counts_the_evaluations_since_the_best() {
    for (patience, steps) in [(1, 30), (2, 40), (0, 30)] {
        let mut task = Scripted::new(&[5.0, 4.0, 3.0, 3.5, 3.0, 2.0]);
        let options = FitOptions { evaluations: 5, patience: Some(patience), ..options(Length::Steps(50)) };
        let fitted = fit(&mut trainer(0.02, 1), &mut task, &options, &mut Silent).unwrap();
        assert_eq!((fitted.stop, fitted.steps, fitted.best), (Stop::Patience, steps, 2), "{patience}");
    }
}

#[test]
fn the_best_before_a_checkpoint_is_kept_by_the_run_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let options = |resume| FitOptions {
        checkpoint: Some(path.clone()),
        checkpoint_seconds: 0.0,
        resume,
        ..FitOptions { evaluations: 5, ..options(Length::Steps(50)) }
    };
    // The best evaluation is that of step 10; the last one is of the interruption.
    let mut begun = Scripted::new(&[5.0, 1.0, 3.0, 4.0]);
    let fitted = fit(&mut trainer(0.02, 1), &mut begun, &options(false), &mut StopAfter::steps(25)).unwrap();
    assert_eq!((fitted.stop, fitted.best().step), (Stop::Interrupted, 10));
    let mut rest = Scripted::new(&[2.0, 2.0, 2.0]);
    let mut trainer = trainer(0.02, 1);
    let fitted = fit(&mut trainer, &mut rest, &options(true), &mut Silent).unwrap();
    let steps: Vec<u64> = fitted.history.iter().map(|p| p.step).collect();
    assert_eq!(steps, [0, 10, 20, 30, 40, 50]);
    assert_eq!((fitted.stop, fitted.best().step), (Stop::Finished, 10));
    assert_eq!(bytes(&fitted.parameters), begun.seen[1]);
    assert_ne!(bytes(&trainer.parameters().unwrap()), begun.seen[1]);
}

#[test]
fn training_ends_when_time_patience_or_numbers_do() {
    let mut task = Regression::new();
    let limit = FitOptions { length: Length::Seconds(0.4), ..options(Length::Steps(0)) };
    let fitted = fit(&mut trainer(0.01, 1), &mut task, &limit, &mut Silent).unwrap();
    assert!(matches!(fitted.stop, Stop::Finished | Stop::Time), "{:?}", fitted.stop);
    assert!(fitted.steps > 6, "{}", fitted.steps);

    // A learning rate of nothing improves nothing.
    let patient = FitOptions { patience: Some(2), ..options(Length::Steps(100)) };
    let fitted = fit(&mut trainer(1e-12, 1), &mut task, &patient, &mut Silent).unwrap();
    assert_eq!((fitted.stop, fitted.steps, fitted.best), (Stop::Patience, 20, 0), "two evaluations");
    assert_eq!(fitted.history[2].error, fitted.history[0].error);

    let late = FitOptions { max_seconds: Some(0.0), ..options(Length::Steps(100)) };
    let fitted = fit(&mut trainer(0.01, 1), &mut task, &late, &mut Silent).unwrap();
    assert_eq!((fitted.stop, fitted.steps), (Stop::Time, 0));

    let (g, parameters) = model();
    let update = Update {
        optimizer: Optimizer::Sgd { momentum: 0.0 },
        learning_rate: 1e30,
        schedule: Schedule::Constant { warm_up: 0.0 },
        clip: None,
    };
    let step = TrainingStep::new(&g, &parameters, &objective, &update).unwrap();
    let example = task.batch(&(0..16).collect::<Vec<_>>()).unwrap();
    let mut wild = Trainer::new(&step, &example, &backend::native(), 1).unwrap();
    let fitted = fit(&mut wild, &mut task, &options(Length::Steps(100)), &mut Silent).unwrap();
    assert_eq!((fitted.stop, fitted.best), (Stop::Diverged, 0), "the initial parameters were the best");
    let found = fitted.non_finite.as_ref().expect("the loss stopped being finite");
    assert_eq!(found.to_string(), "`loss` (mul) is the first to give infinite values");
    let divergence = fitted.divergence().expect("that ended it");
    assert!(divergence.starts_with("the loss of step 2 is not finite: "), "{divergence}");
    let finite = |t: &Tensor| t.to_vec::<f32>().unwrap().iter().all(|x| x.is_finite());
    assert!(fitted.parameters.iter().all(|(_, t)| finite(t)));
}

#[test]
fn less_may_be_kept_for_the_backward_pass() {
    let (g, parameters) = model();
    let update = Update {
        optimizer: Optimizer::ADAM,
        learning_rate: 0.01,
        schedule: Schedule::Constant { warm_up: 0.0 },
        clip: None,
    };
    let mut step = TrainingStep::new(&g, &parameters, &objective, &update).unwrap();
    let mut task = Regression::new();
    let batch = task.batch(&(0..64).collect::<Vec<_>>()).unwrap();
    let mut run = |limit| {
        step.max_saved_bytes = limit;
        let mut trainer = Trainer::new(&step, &batch, &backend::native(), 2)?;
        let losses: Vec<f32> = (0..3).map(|_| trainer.step(&batch).unwrap().loss).collect();
        Ok::<_, TrainError>((losses, trainer.memory().saved_bytes, trainer.saved().to_vec()))
    };
    let (losses, all, saved) = run(None).unwrap();
    assert!(saved.iter().any(|(name, _)| name == "tanh") && all > 4 * 64 * HIDDEN as u64, "{saved:?}");
    let (again, less, _) = run(Some(4 * 64 * 10)).unwrap();
    assert!(less <= 4 * 64 * 10, "{less} bytes");
    assert_eq!(again, losses, "the same numbers");
}

#[test]
fn batches_of_other_shapes_and_missing_inputs_are_told() {
    let (g, parameters) = model();
    let update = Update {
        optimizer: Optimizer::Sgd { momentum: 0.9 },
        learning_rate: 0.1,
        schedule: Schedule::Constant { warm_up: 0.0 },
        clip: None,
    };
    let step = TrainingStep::new(&g, &parameters, &objective, &update).unwrap();
    let mut example = Regression::new().batch(&[0, 1]).unwrap();
    let mut trainer = Trainer::new(&step, &example, &backend::native(), 1).unwrap();
    let memory = trainer.memory();
    assert_eq!(memory.parameter_bytes, 4 * (INPUTS * HIDDEN + HIDDEN * OUTPUTS));
    assert!(memory.state_bytes >= 2 * memory.parameter_bytes && memory.session_bytes > memory.arena_bytes);
    let other = Regression::new().batch(&[0, 1, 2]).unwrap();
    assert!(
        trainer
            .step(&other)
            .unwrap_err()
            .to_string()
            .starts_with("inputs do not fit: `x`: expected f32[2, 12]")
    );
    example.pop();
    let missing = Trainer::new(&step, &example, &backend::native(), 1).err().unwrap().to_string();
    assert_eq!(missing, "target: expected f32[N, 5], found nothing");
}
