//! Ranks chosen during training: what a choice does to the loss, to the model, to states, and to a run that goes on.

use margay_driver::{Samples, Silent};
use margay_ir::{Cx, Graph};
use margay_passes::sketch::{FactorPair, LowRankTraining, TrainingRank, factor_pairs, lowrank_for_training};
use margay_passes::{parameter_names, with_parameters};
use margay_tensor::Tensor;
use margay_tensor::random::Philox;
use margay_testkit::parse_with_random_constants;
use margay_train::{
    Objective, Observer, Optimizer, RankChange, RankLimit, RankSelection, Selection, Stop, Supervised,
    Trained,
};

use crate::support::{self, StopAfter};

/// Three layers of unlike sizes, and one that is too small for factors.
const CLASSIFIER: &str = "graph @classifier(%x: f32[N, 12]) -> (logits: f32[N, 3]) {
  %0 = const #w1 : f32[12, 24]  // fc1.weight
  %1 = matmul %x, %0 : f32[N, 24]  // fc1
  %2 = const #b1 : f32[24]  // fc1.bias
  %3 = add %1, %2 : f32[N, 24]
  %4 = tanh %3 : f32[N, 24]
  %5 = const #w2 : f32[24, 16]  // fc2.weight
  %6 = matmul %4, %5 : f32[N, 16]  // fc2
  %7 = tanh %6 : f32[N, 16]
  %8 = const #w3 : f32[16, 3]  // fc3.weight
  %9 = matmul %7, %8 : f32[N, 3]  // fc3
  return %9
}";

/// A convolution, and the same weight read twice behind it.
const IMAGES: &str = "graph @images(%x: f32[N, 2, 6, 6]) -> (logits: f32[N, 3]) {
  %0 = const #k : f32[10, 2, 3, 3]  // conv.weight
  %1 = conv %x, %0 {strides = [2, 2], pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 10, 3, 3]  // conv
  %2 = relu %1 : f32[N, 10, 3, 3]
  %3 = reshape %2 {shape = [N, 90]} : f32[N, 90]
  %4 = const #w1 : f32[90, 8]  // fc1.weight
  %5 = matmul %3, %4 : f32[N, 8]  // fc1
  %6 = const #w2 : f32[8, 8]  // tied.weight
  %7 = matmul %5, %6 : f32[N, 8]  // tied
  %8 = tanh %7 : f32[N, 8]
  %9 = matmul %8, %6 : f32[N, 8]  // tied2
  %10 = const #w3 : f32[8, 3]  // fc3.weight
  %11 = matmul %9, %10 : f32[N, 3]  // fc3
  return %11
}";

/// A model with factors in place of layers.
fn factored(source: &str, rank: TrainingRank) -> Graph {
    let mut g = parse_with_random_constants(source).0;
    let options = LowRankTraining { rank, seed: 1, modules: None };
    lowrank_for_training(&mut g, &options, &mut Cx::default()).unwrap();
    g
}

/// Samples of three classes, which differ along a few of the numbers.
fn samples(rows: usize, shape: &[usize]) -> (Samples, Tensor) {
    let width: usize = shape.iter().product();
    let mut x = vec![0f32; rows * width];
    Philox::new(1, 1).fill_normal_f32(0, &mut x);
    let label = |r: usize| (r * 7 + r / 5) % 3;
    for (r, row) in x.chunks_exact_mut(width).enumerate() {
        (0..4).for_each(|i| row[4 * label(r) % width + i] += 1.0);
    }
    let labels: Vec<u8> = (0..rows).map(|r| label(r) as u8).collect();
    let x = Tensor::from_slice(&[&[rows], shape].concat(), &x).unwrap();
    (Samples::new(vec![("x".into(), x)]).unwrap(), Tensor::from_slice(&[rows], &labels).unwrap())
}

fn supervised(limit: RankLimit, steps: u64) -> Supervised {
    let ranks = Some(RankSelection::new(limit));
    Supervised { ranks, ..support::supervised(Objective::CrossEntropy, steps) }
}

fn train(options: &Supervised, g: &Graph, shape: &[usize], observer: &mut dyn Observer) -> Trained {
    let (samples, labels) = samples(160, shape);
    options.train(g, &samples, Some(&labels), observer).unwrap_or_else(|e| panic!("{e}"))
}

fn ranks(g: &Graph) -> Vec<(String, usize)> {
    factor_pairs(g).iter().map(|pair| (pair.name.clone(), pair.rank())).collect()
}

fn numbers(pairs: &[FactorPair]) -> usize {
    pairs.iter().map(|pair| pair.rank() * pair.numbers_per_rank()).sum()
}

#[test]
fn ranks_fall_to_the_share_and_the_model_that_comes_back_has_them() {
    for (source, shape) in [(CLASSIFIER, &[12][..]), (IMAGES, &[2, 6, 6])] {
        let g = factored(source, TrainingRank::Greatest);
        let before = factor_pairs(&g);
        let dense: usize = before.iter().map(FactorPair::dense_numbers).sum();
        let trained = train(&supervised(RankLimit::Share(0.4), 60), &g, shape, &mut Silent);
        let changes = &trained.fitted.rank_changes;
        assert_eq!(changes.iter().map(|c| c.step).collect::<Vec<_>>(), [6, 12, 18, 24, 30]);
        let last = changes.last().unwrap();
        assert_eq!(ranks(&trained.graph), last.ranks, "the best parameters are later than the last choice");
        let after = factor_pairs(&trained.graph);
        assert_eq!(numbers(&after), last.numbers);
        assert!(last.numbers as f64 <= 0.4 * dense as f64, "{} of {dense}", last.numbers);
        // Each layer has a rank of its own, and the greatest step down would have been too far.
        let finest = after.iter().map(FactorPair::numbers_per_rank).max().unwrap();
        assert!((last.numbers + finest) as f64 > 0.4 * dense as f64, "{} of {dense}", last.numbers);
        assert!(changes.windows(2).all(|c| c[1].numbers <= c[0].numbers));
        assert!(trained.fitted.best().step >= last.step);
        assert!(
            trained.fitted.best().error < 0.9 * trained.fitted.first().error,
            "{:?}",
            trained.fitted.history
        );
        // What was trained is counted as it is in the end.
        let others = trained.parameters - numbers(&after);
        assert!(others < numbers(&after));
    }
}

#[test]
fn the_loss_changes_by_no_more_than_the_bound() {
    let mut seen = 0;
    for (source, shape) in [(CLASSIFIER, &[12][..]), (IMAGES, &[2, 6, 6])] {
        for limit in [RankLimit::Share(0.5), RankLimit::Share(0.25), RankLimit::LossChange(0.3)] {
            let g = factored(source, TrainingRank::Greatest);
            let trained = train(&supervised(limit, 60), &g, shape, &mut Silent);
            for RankChange { bound, loss_before, loss_after, .. } in &trained.fitted.rank_changes {
                let change = (loss_after - loss_before).abs();
                assert!(change <= bound + 1e-6, "{limit:?}: {loss_before} to {loss_after}, bound {bound}");
                seen += usize::from(*bound > 0.0);
                if let RankLimit::LossChange(most) = limit {
                    assert!(change <= most * loss_before);
                }
            }
        }
    }
    assert!(seen >= 12, "{seen} choices changed something");
}

/// The model with a weight of a rank, whose factors begin with a greater one.
fn of_rank(rank: usize) -> Graph {
    let g = parse_with_random_constants(CLASSIFIER).0;
    let mut numbers = vec![0f32; (24 + 16) * rank];
    Philox::new(5, 1).fill_normal_f32(0, &mut numbers);
    let (a, b) = numbers.split_at(24 * rank);
    let entry = |i: usize| (0..rank).map(|k| a[i / 16 * rank + k] * b[k * 16 + i % 16]).sum::<f32>() * 0.1;
    let weight = Tensor::from_slice(&[24, 16], &(0..24 * 16).map(entry).collect::<Vec<_>>()).unwrap();
    let mut g = with_parameters(&g, &[("fc2.weight".into(), weight)]).unwrap();
    let options =
        LowRankTraining { rank: TrainingRank::Greatest, seed: 1, modules: Some(vec!["fc2".into()]) };
    lowrank_for_training(&mut g, &options, &mut Cx::default()).unwrap();
    g
}

#[test]
fn directions_that_a_weight_does_not_have_cost_nothing() {
    let g = of_rank(2);
    assert_eq!(ranks(&g), [("fc2".to_owned(), 9)]);
    // Nothing moves, so that the weight keeps its rank until it is measured.
    let mut options = supervised(RankLimit::LossChange(1e-3), 10);
    options.update.learning_rate = 1e-12;
    options.update.optimizer = Optimizer::SGD;
    let trained = train(&options, &g, &[12], &mut Silent);
    let first = &trained.fitted.rank_changes[0];
    assert_eq!(first.ranks, [("fc2".to_owned(), 2)]);
    assert!((first.loss_after / first.loss_before - 1.0).abs() < 1e-5, "{first:?}");
    let (one, last) = (trained.fitted.first(), trained.fitted.history.last().unwrap());
    assert!((last.error / one.error - 1.0).abs() < 1e-5, "{one:?} {last:?}");
}

#[test]
fn names_and_layers_that_are_not_factored_stay_as_they_are() {
    let g = factored(CLASSIFIER, TrainingRank::Greatest);
    let names: Vec<String> = parameter_names(&g).into_iter().map(|(_, name)| name).collect();
    let trained = train(&supervised(RankLimit::Share(0.3), 20), &g, &[12], &mut Silent);
    let after: Vec<String> = parameter_names(&trained.graph).into_iter().map(|(_, name)| name).collect();
    assert_eq!(after, names);
    // A factor that is not trained keeps its rank, and so does its partner.
    let some = ["fc1.*", "fc3.*", "fc2.weight left"].map(str::to_owned).to_vec();
    let options = Supervised { selection: Selection::Named(some), ..supervised(RankLimit::Share(0.3), 20) };
    let trained = train(&options, &g, &[12], &mut Silent);
    let rank = |g: &Graph| ranks(g).iter().find(|(name, _)| name == "fc2").unwrap().1;
    assert_eq!(rank(&trained.graph), rank(&g));
    assert!(trained.fitted.rank_changes.iter().all(|c| c.ranks.iter().all(|(name, _)| name != "fc2")));
}

#[test]
fn a_run_that_goes_on_across_choices_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let g = factored(CLASSIFIER, TrainingRank::Greatest);
    for optimizer in [Optimizer::ADAMW, Optimizer::SGD] {
        let run = |name: &str, stop: u64, resume| {
            let mut options = supervised(RankLimit::Share(0.3), 40);
            options.update.optimizer = optimizer;
            options.fit.checkpoint = Some(folder.path().join(format!("{name} {optimizer:?}")));
            options.fit.checkpoint_seconds = 0.0;
            options.fit.resume = resume;
            train(&options, &g, &[12], &mut StopAfter::steps(stop))
        };
        let whole = run("whole", u64::MAX, false);
        // Stops before the first choice, at the step of the first, and between the third and the fourth.
        let mut parts = run("parts", 3, false);
        for steps in [1, 10] {
            assert_eq!(parts.fitted.stop, Stop::Interrupted);
            parts = run("parts", steps, true);
        }
        assert_eq!(parts.fitted.steps, 14);
        parts = run("parts", u64::MAX, true);
        assert_eq!((parts.fitted.stop, parts.fitted.steps), (Stop::Finished, 40));
        assert_eq!(parts.fitted.rank_changes, whole.fitted.rank_changes);
        assert_eq!(parts.graph.to_string(), whole.graph.to_string(), "contents are named by their hashes");
        let numbers =
            |t: &Trained| t.fitted.history.iter().map(|p| (p.step, p.loss, p.error)).collect::<Vec<_>>();
        assert_eq!(numbers(&parts), numbers(&whole));
    }
}

#[test]
fn a_checkpoint_of_another_choice_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let g = factored(CLASSIFIER, TrainingRank::Greatest);
    let (samples, labels) = samples(160, &[12]);
    let run = |limit, resume| {
        let mut options = supervised(limit, 12);
        options.fit.checkpoint = Some(folder.path().join("run"));
        options.fit.resume = resume;
        options.train(&g, &samples, Some(&labels), &mut Silent)
    };
    run(RankLimit::Share(0.3), false).unwrap();
    let error = run(RankLimit::Share(0.5), true).unwrap_err().to_string();
    assert!(error.contains("the choice of ranks was Some"), "{error}");
    assert!(run(RankLimit::Share(2.0), true).unwrap_err().to_string().contains("the share of numbers"));
}
