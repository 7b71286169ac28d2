//! Every scheme that says of itself that it can be trained is put in place of layers, and is trained.

use margay_driver::{Samples, Silent};
use margay_ir::{Cx, Graph, Part};
use margay_passes::parameter_names;
use margay_passes::sketch::{SCHEMES, SchemeTraining, read_plan, scheme_for_training, sites};
use margay_tensor::Tensor;
use margay_tensor::random::Philox;
use margay_testkit::parse_with_random_constants;
use margay_train::Objective;

use crate::support::supervised;

const ROWS: usize = 200;

/// Two layers with units between them.
const PRODUCTS: &str = "graph @classifier(%x: f32[N, 24]) -> (logits: f32[N, 3]) {
  %0 = const #w1 : f32[24, 24]  // fc1.weight
  %1 = matmul %x, %0 : f32[N, 24]  // fc1
  %2 = const #b1 : f32[24]  // fc1.bias
  %3 = add %1, %2 : f32[N, 24]
  %4 = tanh %3 : f32[N, 24]
  %5 = const #w2 : f32[24, 30]  // fc2.weight
  %6 = matmul %4, %5 : f32[N, 30]  // fc2
  %7 = tanh %6 : f32[N, 30]
  %8 = const #w3 : f32[30, 3]  // fc3.weight
  %9 = matmul %7, %8 : f32[N, 3]  // fc3
  return %9
}";

/// Two kernels, of which one has groups, over the same numbers as an image.
const KERNELS: &str = "graph @classifier(%x: f32[N, 24]) -> (logits: f32[N, 3]) {
  %0 = reshape %x {shape = [N, 1, 6, 4]} : f32[N, 1, 6, 4]
  %1 = const #k1 : f32[12, 1, 3, 3]  // conv1.weight
  %2 = conv %0, %1 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 12, 6, 4]  // conv1
  %3 = tanh %2 : f32[N, 12, 6, 4]
  %4 = const #k2 : f32[12, 6, 3, 3]  // conv2.weight
  %5 = conv %3, %4 {pads_before = [1, 1], pads_after = [1, 1], groups = 2} : f32[N, 12, 6, 4]  // conv2
  %6 = tanh %5 : f32[N, 12, 6, 4]
  %7 = reshape %6 {shape = [N, 288]} : f32[N, 288]
  %8 = const #w3 : f32[288, 3]  // fc3.weight
  %9 = matmul %7, %8 : f32[N, 3]  // fc3
  return %9
}";

/// Attention over the same numbers as six places.
const ATTENTION: &str = "graph @classifier(%x: f32[N, 24]) -> (logits: f32[N, 3]) {
  %0 = reshape %x {shape = [N, 1, 6, 4]} : f32[N, 1, 6, 4]
  %1 = const #v : f32[4, 4]  // v.weight
  %2 = matmul %0, %1 : f32[N, 1, 6, 4]  // v
  %3 = attention %0, %0, %2 {scale = 0.5} : f32[N, 1, 6, 4]  // att
  %4 = add %3, %0 : f32[N, 1, 6, 4]
  %5 = reshape %4 {shape = [N, 24]} : f32[N, 24]
  %6 = const #w3 : f32[24, 3]  // fc3.weight
  %7 = matmul %5, %6 : f32[N, 3]  // fc3
  return %7
}";

/// For each scheme a model, settings, and the sites that have them.
const CHOICES: [(&str, &str, &str, usize); 16] = [
    ("cp", KERNELS, "rank = 3", 2),
    ("favor", ATTENTION, "features = 5", 1),
    ("interpolative", PRODUCTS, "rank = 5", 2),
    ("kronecker", PRODUCTS, "block = [4, 6], terms = 2", 2),
    ("local", ATTENTION, "window = 1", 1),
    ("lowrank", KERNELS, "rank = 2", 3),
    ("lowrank-diag", PRODUCTS, "rank = 4", 1),
    ("lowrank-sparse", PRODUCTS, "rank = 3, inputs = 4", 2),
    ("monarch", PRODUCTS, "blocks = [4, 6]", 2),
    ("neurons", PRODUCTS, "units = 12", 1),
    ("nystrom", ATTENTION, "landmarks = 3", 1),
    ("panther", KERNELS, "rank = 1", 3),
    ("spatial", KERNELS, "rank = 2", 2),
    ("structured", PRODUCTS, "form = \"(4x5 ⊗ 6x6) + 24x2 · 2x30\"", 1),
    ("tt", PRODUCTS, "inputs = [4, 6], outputs = [4, 6], rank = 3", 1),
    ("tucker", KERNELS, "ranks = [3, 3]", 1),
];

/// Samples of three classes, which differ along a few of the numbers.
fn samples() -> (Samples, Tensor) {
    let mut x = vec![0f32; ROWS * 24];
    Philox::new(1, 1).fill_normal_f32(0, &mut x);
    let label = |r: usize| (r * 7 + r / 5) % 3;
    for (r, row) in x.chunks_exact_mut(24).enumerate() {
        row.iter_mut().for_each(|x| *x *= 0.2);
        row[8 * label(r)..][..4].iter_mut().for_each(|x| *x += 0.5);
    }
    let labels: Vec<u8> = (0..ROWS).map(|r| label(r) as u8).collect();
    let x = Tensor::from_slice(&[ROWS, 24], &x).unwrap();
    (Samples::new(vec![("x".into(), x)]).unwrap(), Tensor::from_slice(&[ROWS], &labels).unwrap())
}

fn options(scheme: &str, settings: &str) -> SchemeTraining {
    let head = "version = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0";
    let plan = format!("[plan]\n{head}\n[modules]\nany = {{ scheme = \"{scheme}\", {settings} }}\n");
    let settings = read_plan(&plan).unwrap_or_else(|e| panic!("{e}")).sites["any"].settings.clone();
    SchemeTraining { scheme: scheme.to_owned(), settings, seed: 3, modules: None }
}

/// What training is to move of what a scheme put there.
fn factors(g: &Graph) -> Vec<Tensor> {
    let made = |n: &margay_ir::NodeId| matches!(g.node(*n).origin.part, Some(Part::Left | Part::Right));
    let names = parameter_names(g).into_iter().map(|(n, _)| n).filter(made);
    names.map(|n| g.constant(n.into()).unwrap().tensor().clone()).collect()
}

#[test]
fn every_scheme_that_can_be_trained_is() {
    let trained = SCHEMES.iter().map(|s| s.facts()).filter(|facts| facts.can_be_trained());
    let expected: Vec<&str> = trained.map(|facts| facts.name).collect();
    assert_eq!(CHOICES.map(|(scheme, ..)| scheme).to_vec(), expected);
    let (samples, labels) = samples();
    for (scheme, model, settings, count) in CHOICES {
        let (dense, _) = parse_with_random_constants(model);
        let (mut g, mut cx) = (dense.clone(), Cx::default());
        scheme_for_training(&mut g, &options(scheme, settings), &mut cx).unwrap_or_else(|e| panic!("{e}"));
        let offered = sites(&dense).into_iter().filter(|site| site.schemes.contains(&scheme)).count();
        assert_eq!(offered - cx.remarks.len(), count, "{scheme}: {:?}", cx.remarks);
        let mut options = supervised(Objective::CrossEntropy, 60);
        options.update.learning_rate = 0.02;
        let trained = options.train(&g, &samples, Some(&labels), &mut Silent);
        let trained = trained.unwrap_or_else(|e| panic!("{scheme}: {e}"));
        let (first, best) = (trained.fitted.first(), trained.fitted.best());
        assert!(best.error < 0.8 * first.error, "{scheme}: {:?}", trained.fitted.history);
        let (before, after) = (factors(&g), factors(&trained.graph));
        assert_eq!(before.len(), after.len(), "{scheme}");
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert_eq!(moved, before.len(), "{scheme}: factors that stayed");
    }
}

#[test]
fn what_cannot_be_trained_is_refused_and_what_does_not_shrink_stays() {
    let (dense, _) = parse_with_random_constants(PRODUCTS);
    let why = |scheme: &str, options: SchemeTraining| {
        let options = SchemeTraining { scheme: scheme.to_owned(), ..options };
        scheme_for_training(&mut dense.clone(), &options, &mut Cx::default()).unwrap_err().to_string()
    };
    let quantized = why("quantized", options("quantized", "bits = 4"));
    assert_eq!(quantized, "what `quantized` stores cannot be trained");
    assert!(why("tucked", options("lowrank", "rank = 4")).contains("unknown scheme `tucked`"));
    let unknown = why("lowrank", options("panther", "rank = 4, terms = 2"));
    assert!(unknown.contains("unknown field `terms`"), "{unknown}");
    let (mut g, mut cx) = (dense.clone(), Cx::default());
    scheme_for_training(&mut g, &options("lowrank", "rank = 3"), &mut cx).unwrap();
    let said: Vec<String> = cx.remarks.iter().map(|r| format!("{}: {}", r.at, r.message)).collect();
    assert_eq!(said, ["fc3: 396 bytes would not be fewer than 360"]);
}
