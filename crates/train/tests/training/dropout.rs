//! Training with dropout: the same bits however it is run, and nothing dropped outside of its steps.

use margay_driver::{Runner, Samples, Silent, backend};
use margay_ir::{Cx, Graph, Pass};
use margay_passes::RemoveDropout;
use margay_tensor::Tensor;
use margay_tensor::random::Philox;
use margay_testkit::parse_with_random_constants;
use margay_train::{FitOptions, Length, Objective, Stop, Supervised, Trained};

use crate::support::{StopAfter, supervised};

const DROPPING: &str = "graph @dropping(%x: f32[N, 6]) -> (logits: f32[N, 3]) {
  %0 = dropout %x {ratio = 0.1, stream = 0} : f32[N, 6]  // drop1
  %1 = const #w1 : f32[6, 18]  // fc1.weight
  %2 = matmul %0, %1 : f32[N, 18]  // fc1
  %3 = tanh %2 : f32[N, 18]
  %4 = dropout %3 {ratio = 0.25, stream = 1} : f32[N, 18]  // drop2
  %5 = const #w2 : f32[18, 3]  // fc2.weight
  %6 = matmul %4, %5 : f32[N, 3]  // fc2
  return %6
}";

fn graph() -> Graph {
    parse_with_random_constants(DROPPING).0
}

/// The same model without dropout.
fn undropped() -> Graph {
    let mut g = graph();
    RemoveDropout.run(&mut g, &mut Cx::default()).unwrap();
    assert!(!g.to_string().contains("dropout"));
    g
}

/// Points around three centres, and which centre each is from.
fn points() -> (Samples, Tensor) {
    const ROWS: usize = 150;
    let mut x = vec![0f32; ROWS * 6];
    Philox::new(1, 1).fill_normal_f32(0, &mut x);
    let label = |r: usize| (r * 7 + r / 5) % 3;
    x.iter_mut().enumerate().for_each(|(i, z)| *z = 0.4 * *z + f32::from((i % 6) / 2 == label(i / 6)));
    let labels: Vec<u8> = (0..ROWS).map(|r| label(r) as u8).collect();
    let x = Tensor::from_slice(&[ROWS, 6], &x).unwrap();
    (Samples::new(vec![("x".into(), x)]).unwrap(), Tensor::from_slice(&[ROWS], &labels).unwrap())
}

fn options() -> Supervised {
    supervised(Objective::CrossEntropy, 30)
}

fn train(options: &Supervised, g: &Graph, steps: Option<u64>) -> Trained {
    let (samples, labels) = points();
    let trained = match steps {
        Some(steps) => options.train(g, &samples, Some(&labels), &mut StopAfter::steps(steps)),
        None => options.train(g, &samples, Some(&labels), &mut Silent),
    };
    trained.unwrap_or_else(|e| panic!("{e}"))
}

/// Step, loss of training and error of every evaluation.
fn course(trained: &Trained) -> Vec<(u64, f64, f64)> {
    trained.fitted.history.iter().map(|p| (p.step, p.loss, p.error)).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let one = train(&options(), &graph(), None);
    for threads in [2, 3] {
        let more = train(&Supervised { threads, ..options() }, &graph(), None);
        assert_eq!(course(&more), course(&one));
        assert_eq!(more.graph.to_string(), one.graph.to_string());
    }
    let fit = FitOptions { seed: 1, ..options().fit };
    assert_ne!(course(&train(&Supervised { fit, ..options() }, &graph(), None)), course(&one));
}

#[test]
fn a_run_that_goes_on_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, steps, resume| {
        let mut options = options();
        options.fit.checkpoint = Some(folder.path().join(name));
        options.fit.checkpoint_seconds = 0.0;
        options.fit.resume = resume;
        train(&options, &graph(), steps)
    };
    let whole = run("whole", None, false);
    let part = run("parts", Some(11), false);
    assert_eq!((part.fitted.stop, part.fitted.steps), (Stop::Interrupted, 11));
    let rest = run("parts", None, true);
    assert_eq!(course(&rest), course(&whole));
    assert_eq!(rest.graph.to_string(), whole.graph.to_string());
}

#[test]
fn only_steps_drop() {
    let (with, without) = (train(&options(), &graph(), None), train(&options(), &undropped(), None));
    assert_eq!(
        with.fitted.first(),
        &margay_train::Point { seconds: with.fitted.first().seconds, ..without.fitted.first().clone() }
    );
    assert_ne!(course(&with), course(&without));
    assert!(with.fitted.best().error < 0.8 * with.fitted.first().error, "{:?}", with.fitted.history);
    // The loss on samples whose elements are dropped is greater.
    assert!(with.fitted.history[2].loss > without.fitted.history[2].loss);
    // The model that comes back drops again when it is trained, and else nothing.
    assert_eq!(with.graph.to_string().matches(" = dropout ").count(), 2);
    let mut plain = with.graph.clone();
    RemoveDropout.run(&mut plain, &mut Cx::default()).unwrap();
    let (samples, _) = points();
    let outputs = |g: Graph| Runner::new(g, &backend::native(), 2).run(samples.arrays()).unwrap();
    assert_eq!(outputs(with.graph.clone()), outputs(plain));
}

#[test]
fn a_ratio_of_0_trains_as_without() {
    let source = DROPPING.replace("0.25", "0.0").replace("0.1", "0.0");
    let none = train(&options(), &parse_with_random_constants(&source).0, None);
    assert_eq!(course(&none), course(&train(&options(), &undropped(), None)));
}

#[test]
fn a_checkpoint_of_another_ratio_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options();
    options.fit.checkpoint = Some(folder.path().join("run"));
    options.fit.length = Length::Steps(4);
    train(&options, &graph(), None);
    options.fit.resume = true;
    let other = parse_with_random_constants(&DROPPING.replace("0.25", "0.5")).0;
    let (samples, labels) = points();
    let refused = options.train(&other, &samples, Some(&labels), &mut Silent).unwrap_err().to_string();
    assert!(refused.contains("it was written by another run: the model was "), "{refused}");
}
