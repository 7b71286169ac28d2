//! Training on samples with labels, from a graph to a trained graph; what does not fit is refused; first parameters.

use margay_driver::{Runner, Samples, Silent, backend};
use margay_ir::{Cx, Graph, Part};
use margay_passes::sketch::{PantherTraining, Start, panther_for_training};
use margay_passes::{parameter_names, with_parameters};
use margay_tensor::random::Philox;
use margay_tensor::{DType, Tensor};
use margay_testkit::parse_with_random_constants;
use margay_train::init::initial;
use margay_train::masking::Masking;
use margay_train::{
    FitOptions, Length, Objective, Optimizer, Schedule, Selection, Stop, Supervised, Trained, Update,
};

use crate::support;

const CLASSIFIER: &str = "graph @classifier(%x: f32[N, 6]) -> (logits: f32[N, 3]) {
  %0 = const #w1 : f32[6, 16]  // fc1.weight
  %1 = matmul %x, %0 : f32[N, 16]  // fc1
  %2 = const splat(0.0) : f32[16]  // fc1.bias
  %3 = add %1, %2 : f32[N, 16]
  %4 = relu %3 : f32[N, 16]
  %5 = const #w2 : f32[16, 3]  // fc2.weight
  %6 = matmul %4, %5 : f32[N, 3]  // fc2
  %7 = const [0.0, 0.0, 0.0] : f32[3]  // fc2.bias
  %8 = add %6, %7 : f32[N, 3]
  return %8
}";

fn graph(source: &str) -> Graph {
    parse_with_random_constants(source).0
}

/// Points around three centres, and which centre each is from.
fn points(rows: usize) -> (Samples, Tensor) {
    let mut noise = vec![0f32; rows * 6];
    Philox::new(1, 1).fill_normal_f32(0, &mut noise);
    let label = |r: usize| (r * 7 + r / 5) % 3;
    let x: Vec<f32> =
        noise.iter().enumerate().map(|(i, z)| 0.4 * z + f32::from((i % 6) / 2 == label(i / 6))).collect();
    let labels: Vec<u8> = (0..rows).map(|r| label(r) as u8).collect();
    let x = Tensor::from_slice(&[rows, 6], &x).unwrap();
    (Samples::new(vec![("x".into(), x)]).unwrap(), Tensor::from_slice(&[rows], &labels).unwrap())
}

fn supervised(objective: Objective) -> Supervised {
    support::supervised(objective, 60)
}

fn train(options: &Supervised, g: &Graph, samples: &Samples, labels: Option<&Tensor>) -> Trained {
    options.train(g, samples, labels, &mut Silent).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn classes_are_learned() {
    let (g, (samples, labels)) = (graph(CLASSIFIER), points(203));
    let mut options = supervised(Objective::CrossEntropy);
    options.fit.length = Length::Steps(300);
    let trained = train(&options, &g, &samples, Some(&labels));
    assert_eq!(trained.samples, (163, 40));
    assert_eq!(trained.parameters, 6 * 16 + 16 + 16 * 3 + 3);
    assert_eq!(trained.fitted.stop, Stop::Finished);
    let (first, best) = (trained.fitted.first(), trained.fitted.best());
    assert!(best.error < 0.5 * first.error, "{first:?} {best:?}");
    assert_eq!(best.measures[0].0, "accuracy");
    assert!(best.measures[0].1 > 0.85, "{best:?}");
    // The graph that comes back has the accuracy that was measured.
    let mut runner = Runner::new(trained.graph, &backend::native(), 1);
    let logits = runner.run(samples.arrays()).unwrap().remove(0).1.to_vec::<f32>().unwrap();
    let largest = |row: &[f32]| (0..3).fold(0, |b, i| if row[i] > row[b] { i } else { b });
    let labels = labels.to_vec::<u8>().unwrap();
    let right = (0..203)
        .filter(|r| ((r + 1) as f64 * 0.2) as usize > (*r as f64 * 0.2) as usize)
        .filter(|&r| largest(&logits[3 * r..][..3]) == usize::from(labels[r]))
        .count();
    assert!((right as f64 / 40.0 - best.measures[0].1).abs() < 1e-6, "{right}");
}

/// A model of known constants. Nothing in it reads the weights of samples.
const WEIGHED: &str = "graph @weighed(%x: f32[N, 2], %w: f32[N]) -> (y: f32[N, 3]) {
  %0 = const [1.0, -0.5, 0.25, 2.0, 0.75, -1.0] : f32[2, 3]  // weight
  %1 = matmul %x, %0 : f32[N, 3]
  return %1
}";

/// Rows of [`WEIGHED`], with weights of which some are 0.
fn weighed(rows: usize) -> (Samples, Vec<Vec<f64>>, Vec<f64>) {
    let mut noise = vec![0f32; rows * 2];
    Philox::new(2, 1).fill_normal_f32(0, &mut noise);
    let w: Vec<f32> = (0..rows).map(|r| (r * 5 % 4) as f32 * 0.5).collect();
    let of = |r: usize, c: [f32; 2]| f64::from(noise[2 * r] * c[0] + noise[2 * r + 1] * c[1]);
    let y = (0..rows).map(|r| [[1.0, 2.0], [-0.5, 0.75], [0.25, -1.0]].map(|c| of(r, c)).to_vec()).collect();
    let arrays = vec![
        ("x".to_string(), Tensor::from_slice(&[rows, 2], &noise).unwrap()),
        ("w".to_string(), Tensor::from_slice(&[rows], &w).unwrap()),
    ];
    (Samples::new(arrays).unwrap(), y, w.into_iter().map(f64::from).collect())
}

/// The samples held out of so many.
fn held_out(rows: usize, share: f64) -> Vec<usize> {
    (0..rows).filter(|r| ((r + 1) as f64 * share) as usize > (*r as f64 * share) as usize).collect()
}

/// The mean over the held-out samples of a number per row, with weights.
fn mean(rows: &[usize], weight: impl Fn(usize) -> f64, number: impl Fn(usize) -> f64) -> f64 {
    let total: f64 = rows.iter().map(|&r| weight(r)).sum();
    rows.iter().map(|&r| weight(r) * number(r)).sum::<f64>() / total
}

#[test]
fn samples_count_by_their_weights() {
    const ROWS: usize = 23;
    let (g, (samples, y, w)) = (graph(WEIGHED), weighed(ROWS));
    // Nine samples in batches of 4, 4 and 1, of unequal weight.
    let held = held_out(ROWS, 0.4);
    assert_eq!(held.len(), 9);
    let targets: Vec<f32> = (0..3 * ROWS).map(|i| (i % 5) as f32 - 2.0).collect();
    let target = Tensor::from_slice(&[ROWS, 3], &targets).unwrap();
    let row = |r: usize| -> Vec<f64> { targets[3 * r..][..3].iter().map(|t| f64::from(*t)).collect() };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let squares = |r: usize| y[r].iter().zip(row(r)).map(|(y, t)| (y - t).powi(2)).sum::<f64>() / 3.0;
    let distance = |r: usize| 1.0 - dot(&y[r], &row(r)) / (dot(&y[r], &y[r]) * dot(&row(r), &row(r))).sqrt();
    let first = |objective: Objective, weights: bool, labels: &Tensor| {
        let mut options = supervised(objective);
        options.weights = weights.then(|| "w".to_string());
        (options.held_out, options.fit.batch) = (0.4, 4);
        options.fit.length = Length::Steps(1);
        train(&options, &g, &samples, Some(labels)).fitted.first().clone()
    };
    let near = |what: &str, found: f64, expected: f64| {
        assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{what}: {found}, expected {expected}");
    };
    for weights in [false, true] {
        let weight = |r: usize| if weights { w[r] } else { 1.0 };
        near("mse", first(Objective::Mse, weights, &target).error, mean(&held, weight, squares));
        near("cosine", first(Objective::Cosine, weights, &target).error, mean(&held, weight, distance));

        let labels: Vec<i64> = (0..ROWS as i64).map(|r| if r % 4 == 1 { -100 } else { r % 3 }).collect();
        let surprise = |r: usize| {
            let sum: f64 = y[r].iter().map(|x| x.exp()).sum();
            sum.ln() - usize::try_from(labels[r]).map_or(0.0, |label| y[r][label])
        };
        let kept = |r: usize| if labels[r] >= 0 { weight(r) } else { 0.0 };
        let tensor = Tensor::from_slice(&[ROWS], &labels).unwrap();
        let found = first(Objective::CrossEntropy, weights, &tensor);
        near("cross-entropy", found.error, mean(&held, kept, surprise));
        if !weights {
            let largest = |r: usize| (0..3).fold(0, |b, i| if y[r][i] > y[r][b] { i } else { b });
            let right = |r: usize| f64::from(u8::from(largest(r) as i64 == labels[r]));
            near("accuracy", found.measures[0].1, mean(&held, kept, right));
        }
    }
}

#[test]
fn a_checkpoint_is_of_one_model_one_set_of_data_and_one_set_of_options() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let (g, (samples, labels)) = (graph(CLASSIFIER), points(203));
    let mut base = supervised(Objective::CrossEntropy);
    base.fit.length = Length::Steps(6);
    base.fit.checkpoint = Some(path.clone());
    let trained = train(&base, &g, &samples, Some(&labels));
    base.fit.resume = true;
    let again = train(&base, &g, &samples, Some(&labels));
    assert_eq!(again.graph.to_string(), trained.graph.to_string());
    // What a checkpoint does not depend on.
    train(&Supervised { threads: 2, ..base.clone() }, &g, &samples, Some(&labels));

    let mut x = samples.arrays()[0].1.to_vec::<f32>().unwrap();
    x[1217] += 1.0;
    let x = Samples::new(vec![("x".into(), Tensor::from_slice(&[203, 6], &x).unwrap())]).unwrap();
    let mut other = labels.to_vec::<u8>().unwrap();
    other[100] = (other[100] + 1) % 3;
    let other = Tensor::from_slice(&[203], &other).unwrap();
    let model = graph(&CLASSIFIER.replace("[0.0, 0.0, 0.0]", "[0.0, 0.0, 0.5]"));
    let fit = |change: &dyn Fn(&mut FitOptions)| {
        let mut options = base.clone();
        change(&mut options.fit);
        options
    };
    let update = |change: &dyn Fn(&mut Update)| {
        let mut options = base.clone();
        change(&mut options.update);
        options
    };
    let selection = Selection::Named(vec!["fc1.weight".into()]);
    let options = [
        ("held-out samples", Supervised { held_out: 0.25, ..base.clone() }),
        ("parameters", Supervised { selection, ..base.clone() }),
        ("batch", fit(&|f| f.batch = 8)),
        ("seed", fit(&|f| f.seed = 1)),
        ("learning rate", update(&|u| u.learning_rate = 0.02)),
        ("optimizer", update(&|u| u.optimizer = Optimizer::ADAM)),
        ("schedule", update(&|u| u.schedule = Schedule::Constant { warm_up: 0.1 })),
        ("clip", update(&|u| u.clip = None)),
    ];
    let mut runs = vec![("samples", &base, &g, &x, &labels), ("labels", &base, &g, &samples, &other)];
    runs.push(("model", &base, &model, &samples, &labels));
    runs.extend(options.iter().map(|(what, options)| (*what, options, &g, &samples, &labels)));
    for (what, options, g, samples, labels) in runs {
        let refused = options.train(g, samples, Some(labels), &mut Silent).err();
        let message = refused.unwrap_or_else(|| panic!("other {what} are not refused")).to_string();
        let (_, differences) = message.split_once("it was written by another run: ").expect(&message);
        assert!(differences.contains(" was ") && !differences.contains("; the "), "{what}: {message}");
    }
}

#[test]
fn only_what_was_chosen_is_trained() {
    let (g, (samples, labels)) = (graph(CLASSIFIER), points(203));
    let mut options = supervised(Objective::CrossEntropy);
    options.selection = Selection::Named(vec!["fc2.weight".into()]);
    let trained = train(&options, &g, &samples, Some(&labels));
    let contents = |g: &Graph| -> Vec<(String, Tensor)> {
        let tensor = |n| g.constant(margay_ir::Value::from(n)).unwrap().tensor().clone();
        parameter_names(g).into_iter().map(|(n, name)| (name, tensor(n))).collect()
    };
    for ((name, before), (_, after)) in contents(&g).iter().zip(contents(&trained.graph)) {
        assert_eq!(*before == after, name != "fc2.weight", "{name}");
    }
}

#[test]
fn outputs_are_fitted_to_targets() {
    let (g, (samples, _)) = (graph(CLASSIFIER), points(200));
    // What another network of the same form gives.
    let nodes: Vec<_> = parameter_names(&g).into_iter().map(|(n, _)| n).collect();
    let teacher = with_parameters(&g, &initial(&g, &nodes, 9).unwrap()).unwrap();
    let target = Runner::new(teacher, &backend::native(), 1).run(samples.arrays()).unwrap().remove(0).1;
    for objective in [Objective::Mse, Objective::Cosine] {
        let trained = train(&supervised(objective), &g, &samples, Some(&target));
        let (first, best) = (trained.fitted.first().error, trained.fitted.best().error);
        assert!(best < 0.3 * first, "{first} {best}");
    }
}

#[test]
fn sketches_are_trained_but_their_signs_stay() {
    let (mut g, (samples, labels)) = (graph(CLASSIFIER), points(203));
    let sketch =
        PantherTraining { rank: 2, terms: 1, start: Start::Random, two_sided: false, seed: 4, modules: None };
    panther_for_training(&mut g, &sketch, &mut Cx::default()).unwrap();
    let mut options = supervised(Objective::CrossEntropy);
    options.fit.length = Length::Steps(200);
    let trained = train(&options, &g, &samples, Some(&labels));
    // Both factors of the first layer; the second one would not get smaller.
    assert_eq!(trained.parameters, 2 * (6 + 16) + 16 + 16 * 3 + 3);
    assert!(trained.fitted.best().measures[0].1 > 0.8, "{:?}", trained.fitted.history);
    let part = |g: &Graph, part: Part| -> Vec<Tensor> {
        let nodes = g.order().into_iter().filter(|n| g.node(*n).origin.part == Some(part));
        nodes.filter_map(|n| Some(g.constant(n.into())?.tensor().clone())).collect()
    };
    assert_eq!(part(&g, Part::Random), part(&trained.graph, Part::Random));
    assert_eq!(part(&g, Part::Random).len(), 2);
    assert_ne!(part(&g, Part::Left), part(&trained.graph, Part::Left));
}

#[test]
fn what_has_no_effect_on_the_loss_is_not_trained() {
    let g = graph(LANGUAGE);
    let tokens = Tensor::from_slice(&[40, 5], &(0..200).map(|i| i % 20).collect::<Vec<i64>>()).unwrap();
    let arrays = ["tokens", "mask"].map(|name| (name.to_string(), tokens.clone())).to_vec();
    let samples = Samples::new(arrays).unwrap();
    let mut options = supervised(Objective::Mse);
    options.output = Some("hidden".into());
    let trained = train(&options, &g, &samples, Some(&Tensor::zeros(DType::F32, &[40, 5, 12]).unwrap()));
    assert_eq!(trained.parameters, 20 * 12, "the embedding alone");
    options.selection = Selection::Named(vec!["head".into()]);
    let target = Tensor::zeros(DType::F32, &[40, 5, 12]).unwrap();
    let refused = options.train(&g, &samples, Some(&target), &mut Silent).unwrap_err();
    assert_eq!(refused.to_string(), "the loss does not depend on `head`");
}

const LANGUAGE: &str = "graph @language(%tokens: i64[B, S], %mask: i64[B, S]) -> (hidden: f32[B, S, 12], logits: f32[B, S, 20]) {
  %0 = const #e : f32[20, 12]  // embedding
  %1 = gather %0, %tokens {axis = 0} : f32[B, S, 12]
  %2 = reduce %1 {kind = mean, axes = [1], keepdims = true} : f32[B, 1, 12]
  %3 = add %1, %2 : f32[B, S, 12]
  %4 = const #h : f32[12, 20]  // head
  %5 = matmul %3, %4 : f32[B, S, 20]
  return %3, %5
}";

/// The mean surprise at the masked tokens of the held-out samples, those that the mask hides left out.
fn first_error(g: &Graph, arrays: &[(String, Tensor)], masking: &Masking, seed: u64) -> f64 {
    let (inputs, labels) = masking.apply(&arrays[0].1, seed, 1 << 32).unwrap();
    let outputs = Runner::new(g.clone(), &backend::native(), 1)
        .run(&[("tokens".into(), inputs), arrays[1].clone()])
        .unwrap();
    let logits = outputs[1].1.to_vec::<f32>().unwrap();
    let (labels, mask) = (labels.to_vec::<i64>().unwrap(), arrays[1].1.to_vec::<i64>().unwrap());
    let places: Vec<usize> = held_out(120, 0.2).into_iter().flat_map(|r| 10 * r..10 * (r + 1)).collect();
    let surprise = |at: usize| {
        let row: Vec<f64> = logits[20 * at..][..20].iter().map(|x| f64::from(*x)).collect();
        row.iter().map(|x| x.exp()).sum::<f64>().ln() - usize::try_from(labels[at]).map_or(0.0, |l| row[l])
    };
    mean(&places, |at| if labels[at] >= 0 { mask[at] as f64 } else { 0.0 }, surprise)
}

#[test]
fn masked_tokens_are_predicted() {
    // Every sample is one token over and over, so that the others tell the masked ones.
    let tokens: Vec<i64> = (0..120 * 10).map(|i| (i / 10) % 17 + 2).collect();
    let mask: Vec<i64> = (0..120 * 10).map(|i| i64::from(i % 10 < 8)).collect();
    let arrays = [("tokens", tokens), ("mask", mask)]
        .map(|(name, v)| (name.to_string(), Tensor::from_slice(&[120, 10], &v).unwrap()));
    let samples = Samples::new(arrays.to_vec()).unwrap();
    let masking = Masking { mask: 1, vocabulary: 20, special: vec![0], share: 0.15 };
    let mut options = supervised(Objective::MaskedLm { tokens: "tokens".into(), masking: masking.clone() });
    options.output = Some("logits".into());
    options.weights = Some("mask".into());
    options.update.learning_rate = 0.03;
    let g = graph(LANGUAGE);
    let trained = train(&options, &g, &samples, None);
    let best = trained.fitted.best();
    assert!(best.error < 0.6 * trained.fitted.first().error, "{:?}", trained.fitted.history);
    assert!(best.measures[0].1 > 0.5, "{best:?}");
    assert_eq!(train(&options, &g, &samples, None).graph.to_string(), trained.graph.to_string());
    // Padded positions do not count: neither in the error nor in what is learned.
    let error = trained.fitted.first().error;
    let expected = first_error(&g, samples.arrays(), &masking, options.fit.seed);
    assert!((error - expected).abs() < 1e-5 * expected, "{error}, expected {expected}");
    let everything = Supervised { weights: None, ..options.clone() };
    let everything = train(&everything, &g, &samples, None);
    assert_ne!(everything.fitted.first().error, error);
    assert_ne!(everything.graph.to_string(), trained.graph.to_string());
    assert_eq!(&*trained.graph.outputs()[0].name, "hidden", "outputs stay in order");

    options.output = None;
    let refused = options.train(&g, &samples, None, &mut Silent).unwrap_err();
    assert_eq!(refused.to_string(), "which output is trained? the model has `hidden`, `logits`");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (g, (samples, labels)) = (graph(CLASSIFIER), points(40));
    let base = supervised(Objective::CrossEntropy);
    let mut said = Vec::new();
    let mut refused = |options: &Supervised, samples: &Samples, labels: Option<&Tensor>| {
        said.push(options.train(&g, samples, labels, &mut Silent).unwrap_err().to_string());
    };
    refused(&Supervised { output: Some("y".into()), ..base.clone() }, &samples, Some(&labels));
    refused(&Supervised { weights: Some("mask".into()), ..base.clone() }, &samples, Some(&labels));
    refused(&Supervised { held_out: 0.01, ..base.clone() }, &samples, Some(&labels));
    let named = Selection::Named(vec!["fc3.weight".into()]);
    refused(&Supervised { selection: named, ..base.clone() }, &samples, Some(&labels));
    let large = FitOptions { batch: 64, ..base.fit.clone() };
    refused(&Supervised { fit: large, ..base.clone() }, &samples, Some(&labels));
    refused(&base, &samples, None);
    refused(&base, &samples, Some(&Tensor::zeros(DType::F32, &[40]).unwrap()));
    refused(&base, &samples, Some(&Tensor::zeros(DType::I64, &[39]).unwrap()));
    refused(&base, &samples, Some(&Tensor::from_slice(&[40], &[3i64; 40]).unwrap()));
    refused(&supervised(Objective::Mse), &samples, Some(&Tensor::zeros(DType::F32, &[40, 2]).unwrap()));
    let bytes = Samples::new(vec![("x".into(), Tensor::zeros(DType::U8, &[40, 6]).unwrap())]).unwrap();
    refused(&base, &bytes, Some(&labels));
    let masking = Masking { mask: 1, vocabulary: 20, special: vec![], share: 0.15 };
    let language = supervised(Objective::MaskedLm { tokens: "tokens".into(), masking });
    refused(&language, &samples, None);
    refused(&language, &samples, Some(&labels));
    insta::assert_snapshot!(said.join("\n"), @r#"
    the model has no output `y`; it has `logits`
    the model has no input `mask`
    a share of 0.01 of 40 samples is held out: expected at least 1 sample, and 1 left to train on
    the model has no constant `fc3.weight`; it has `fc1.weight`, `fc1.bias`, `fc2.weight`, `fc2.bias`
    a batch of 64 samples, of 32 to train on
    labels are missing
    labels: expected i64[N], found f32[40]
    labels: expected 40 rows, found i64[39]
    label 0: expected 0 to 2, or -100, found 3
    labels: expected f32[N, 3], found f32[40, 2]
    samples: `x` is u8[40, 6], expected f32[N, 6]: in numpy, `x.astype("float32")` converts it
    the model has no input `tokens`
    a masked language model takes no labels: its tokens are
    "#);
}

#[test]
fn first_parameters_follow_from_what_reads_them() {
    let source = "graph @first(%x: f32[N, 3, 8, 8], %i: i64[N]) -> (y: f32[N, 400]) {
      %0 = const #k : f32[32, 3, 5, 5]  // conv.weight
      %1 = conv %x, %0 {pads_before = [2, 2], pads_after = [2, 2]} : f32[N, 32, 8, 8]
      %2 = const #b : f32[32, 1, 1]  // conv.bias
      %3 = add %1, %2 : f32[N, 32, 8, 8]
      %4 = relu %3 : f32[N, 32, 8, 8]
      %5 = reduce %4 {kind = mean, axes = [2, 3]} : f32[N, 32]
      %6 = const #e : f32[50, 32]  // embedding
      %7 = gather %6, %i {axis = 0} : f32[N, 32]
      %8 = add %5, %7 : f32[N, 32]
      %9 = const #s : f32[32]  // norm.weight
      %10 = const #t : f32[32]  // norm.bias
      %11 = layer_norm %8, %9, %10 {axis = 1} : f32[N, 32]
      %12 = const #w : f32[32, 400]  // fc.weight
      %13 = matmul %11, %12 : f32[N, 400]
      return %13
    }";
    let g = graph(source);
    let nodes: Vec<_> = parameter_names(&g).into_iter().map(|(n, _)| n).collect();
    let first = initial(&g, &nodes, 3).unwrap();
    let again = initial(&g, &nodes[2..], 3).unwrap();
    assert_eq!(again, first[2..], "what a parameter gets does not depend on which others get some");
    let deviation = |name: &str| {
        let v = first.iter().find(|(n, _)| n == name).unwrap().1.to_vec::<f32>().unwrap();
        let n = v.len() as f64;
        let mean = v.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        (mean, (v.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt(), n)
    };
    for (name, expected) in
        [("conv.weight", (2.0f64 / 75.0).sqrt()), ("embedding", 0.02), ("fc.weight", (1.0f64 / 32.0).sqrt())]
    {
        let (mean, found, n) = deviation(name);
        assert!(mean.abs() < 4.0 * expected / n.sqrt(), "{name}: mean {mean}");
        assert!(
            (found / expected - 1.0).abs() < 4.0 / (2.0 * n).sqrt(),
            "{name}: {found}, expected {expected}"
        );
    }
    for (name, expected) in [("conv.bias", 0.0), ("norm.bias", 0.0), ("norm.weight", 1.0)] {
        assert_eq!(deviation(name), (expected, 0.0, 32.0), "{name}");
    }
}
