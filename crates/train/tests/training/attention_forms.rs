//! Attention replaced before training: a model that has to find one position among others learns it with each form.

use margay_driver::{Samples, Silent};
use margay_ir::{Cx, Graph};
use margay_passes::sketch::{
    AttentionForm, AttentionTraining, FavorSettings, LocalSettings, LocalSummary, NystromSettings,
    attention_for_training,
};
use margay_tensor::Tensor;
use margay_tensor::random::Philox;
use margay_testkit::parse_with_random_constants;
use margay_train::redraw::{Redraw, directions};
use margay_train::{Objective, Optimizer, Stop, Supervised, Trained};

use crate::support::{StopAfter, supervised};

const POSITIONS: usize = 16;
const WIDTH: usize = 8;
const CLASSES: usize = 3;

/// Two heads over sixteen positions, and the mean of what they read.
const MODEL: &str = "graph @model(%x: f32[N, 16, 8]) -> (logits: f32[N, 3]) {
  %0 = const #q : f32[8, 8]  // q.weight
  %1 = matmul %x, %0 : f32[N, 16, 8]  // q
  %2 = reshape %1 {shape = [N, 16, 2, 4]} : f32[N, 16, 2, 4]
  %3 = transpose %2 {perm = [0, 2, 1, 3]} : f32[N, 2, 16, 4]
  %4 = const #k : f32[8, 8]  // k.weight
  %5 = matmul %x, %4 : f32[N, 16, 8]  // k
  %6 = reshape %5 {shape = [N, 16, 2, 4]} : f32[N, 16, 2, 4]
  %7 = transpose %6 {perm = [0, 2, 1, 3]} : f32[N, 2, 16, 4]
  %8 = const #v : f32[8, 8]  // v.weight
  %9 = matmul %x, %8 : f32[N, 16, 8]  // v
  %10 = reshape %9 {shape = [N, 16, 2, 4]} : f32[N, 16, 2, 4]
  %11 = transpose %10 {perm = [0, 2, 1, 3]} : f32[N, 2, 16, 4]
  %12 = attention %3, %7, %11 {scale = 0.5} : f32[N, 2, 16, 4]  // att
  %13 = transpose %12 {perm = [0, 2, 1, 3]} : f32[N, 16, 2, 4]
  %14 = reshape %13 {shape = [N, 16, 8]} : f32[N, 16, 8]
  %15 = reduce %14 {kind = mean, axes = [1]} : f32[N, 8]
  %16 = const #h : f32[8, 3]  // head.weight
  %17 = matmul %15, %16 : f32[N, 3]  // head
  return %17
}";

/// At one position a mark and the class; at all others classes that mean nothing.
fn samples(rows: usize) -> (Samples, Tensor) {
    let mut noise = vec![0f32; rows * POSITIONS * WIDTH];
    Philox::new(3, 1).fill_normal_f32(0, &mut noise);
    let mut x: Vec<f32> = noise.iter().map(|z| 0.1 * z).collect();
    let label = |r: usize| (r * 7 + r / 5) % CLASSES;
    for (r, sample) in x.chunks_exact_mut(POSITIONS * WIDTH).enumerate() {
        for (p, row) in sample.chunks_exact_mut(WIDTH).enumerate() {
            let marked = p == (r * 5 + r / 3) % POSITIONS;
            let class = if marked { label(r) } else { (r * 11 + p * 7 + r * p / 3) % CLASSES };
            row[0] += f32::from(u8::from(marked)) * 2.0;
            row[1 + class] += 1.0;
        }
    }
    let labels: Vec<u8> = (0..rows).map(|r| label(r) as u8).collect();
    let x = Tensor::from_slice(&[rows, POSITIONS, WIDTH], &x).unwrap();
    (Samples::new(vec![("x".into(), x)]).unwrap(), Tensor::from_slice(&[rows], &labels).unwrap())
}

fn replaced(form: Option<AttentionForm>) -> Graph {
    let mut g = parse_with_random_constants(MODEL).0;
    if let Some(form) = form {
        let mut cx = Cx::default();
        let options = AttentionTraining { form, seed: 2, modules: None };
        attention_for_training(&mut g, &options, &mut cx).unwrap();
        assert!(cx.remarks.is_empty());
        assert!(!g.to_string().contains(" = attention %3, %7, "), "{g}");
    }
    g
}

fn train(g: &Graph) -> Trained {
    let (samples, labels) = samples(600);
    let mut options = supervised(Objective::CrossEntropy, 500);
    (options.update.optimizer, options.update.learning_rate) = (Optimizer::ADAM, 0.02);
    (options.fit.batch, options.fit.evaluations) = (32, 5);
    options.train(g, &samples, Some(&labels), &mut Silent).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_model_learns_where_to_look_with_each_form_of_attention() {
    let means = LocalSettings { summary: Some(LocalSummary::Means), ..LocalSettings::new(4) };
    for (name, form, right) in [
        ("exact", None, 0.9),
        ("favor", Some(AttentionForm::Favor(FavorSettings::new(16))), 0.8),
        ("nystrom", Some(AttentionForm::Nystrom(NystromSettings::new(8))), 0.6),
        ("local", Some(AttentionForm::Local(means)), 0.6),
    ] {
        let trained = train(&replaced(form));
        let (first, best) = (trained.fitted.first(), trained.fitted.best());
        let accuracy = best.measures[0].1;
        assert!(accuracy > right, "{name}: {accuracy}, {:?}", trained.fitted.history);
        assert!(best.error < 0.8 * first.error, "{name}: {} of {}", best.error, first.error);
    }
}

/// Steps from one draw of directions to the next.
const EVERY: u64 = 7;

fn features(seed: u64) -> AttentionTraining {
    AttentionTraining { form: AttentionForm::Favor(FavorSettings::new(16)), seed, modules: None }
}

/// The directions of a graph.
fn contents(g: &Graph) -> Vec<Tensor> {
    directions(g).into_iter().map(|n| g.constant(n.into()).unwrap().tensor().clone()).collect()
}

/// The directions of a draw.
fn drawn(number: u64) -> Vec<Tensor> {
    let mut g = parse_with_random_constants(MODEL).0;
    attention_for_training(&mut g, &features(2 + (number << 32)), &mut Cx::default()).unwrap();
    contents(&g)
}

fn redrawing() -> Supervised {
    let exact = parse_with_random_constants(MODEL).0;
    let mut options = supervised(Objective::CrossEntropy, 40);
    options.redraw = Some(Redraw { every: EVERY, exact, attention: features(2) });
    options
}

#[test]
fn the_model_that_is_kept_has_the_directions_it_was_evaluated_with() {
    let ((samples, labels), options) = (samples(200), redrawing());
    let g = replaced(Some(features(2).form));
    assert_eq!(contents(&g), drawn(0));
    let trained = options.train(&g, &samples, Some(&labels), &mut Silent).unwrap();
    let best = trained.fitted.best().step;
    // Trained are the products, and no direction.
    assert_eq!(trained.parameters, 3 * 64 + 8 * CLASSES);
    // The draw of the last step before the evaluation.
    assert!(best > EVERY, "{:?}", trained.fitted.history);
    let found = trained.fitted.parameters.iter().filter(|(name, _)| name.contains("random"));
    let found: Vec<Tensor> = found.map(|(_, t)| t.clone()).collect();
    assert_eq!(found, drawn((best - 1) / EVERY));
    assert_ne!(found, drawn(0));
    let of = |g: &Graph| -> Vec<Tensor> {
        let shape = found[0].shape();
        let constants =
            g.order().into_iter().filter_map(|n| g.constant(n.into()).map(|c| c.tensor().clone()));
        constants.filter(|t| t.shape() == shape).collect()
    };
    assert_eq!(of(&trained.graph), found);
    // Directions that stay make another course.
    let staying = Supervised { redraw: None, ..options };
    let other = staying.train(&g, &samples, Some(&labels), &mut Silent).unwrap();
    assert_ne!(other.fitted.best().error, trained.fitted.best().error);
    assert_eq!(of(&other.graph), drawn(0));
}

#[test]
fn a_run_that_goes_on_draws_the_same_directions() {
    let (samples, labels) = samples(200);
    let g = replaced(Some(features(2).form));
    let whole = redrawing().train(&g, &samples, Some(&labels), &mut Silent).unwrap();
    for steps in [EVERY, EVERY + 2] {
        let folder = tempfile::tempdir().unwrap();
        let mut options = redrawing();
        options.fit.checkpoint = Some(folder.path().join("checkpoint.safetensors"));
        let begun = options.train(&g, &samples, Some(&labels), &mut StopAfter::steps(steps)).unwrap();
        assert_eq!((begun.fitted.stop, begun.fitted.steps), (Stop::Interrupted, steps));
        options.fit.resume = true;
        let resumed = options.train(&g, &samples, Some(&labels), &mut Silent).unwrap();
        assert_eq!(resumed.fitted.parameters, whole.fitted.parameters);
        // A checkpoint of other draws is no beginning.
        options.redraw.as_mut().unwrap().every = 5;
        let refused = options.train(&g, &samples, Some(&labels), &mut Silent).unwrap_err().to_string();
        assert!(refused.contains("the steps between draws of directions"), "{refused}");
    }
}

#[test]
fn what_has_no_directions_is_refused() {
    let (samples, labels) = samples(200);
    let train = |options: &Supervised, g: &Graph| {
        options.train(g, &samples, Some(&labels), &mut Silent).unwrap_err().to_string()
    };
    let refused = train(&redrawing(), &replaced(None));
    assert!(refused.contains("no directions of random features"), "{refused}");
    let mut never = redrawing();
    never.redraw.as_mut().unwrap().every = 0;
    let refused = train(&never, &replaced(Some(features(2).form)));
    assert!(refused.contains("after 0 steps"), "{refused}");
}
