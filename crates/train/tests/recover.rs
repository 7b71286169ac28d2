//! A sketched model learns from the dense one: layers refitted in closed form, all of them together, and what is refused.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use margay_driver::{Interruption, MaskChoice, Samples, Silent};
use margay_ir::ops::{Add, Const, Conv, MatMul, Relu};
use margay_ir::{Graph, NodeId, Op, Origin, Part, Payload, TensorType, Value};
use margay_passes::parameter_names;
use margay_passes::sketch::RowKind;
use margay_randnla::{Distribution, random_matrix};
use margay_tensor::{DType, Dim, Tensor};
use margay_train::recover::trainable::{Train, balanced, factored, trainable};
use margay_train::recover::{Hidden, RecoverOptions, Recovered, recover};
use margay_train::{Observer, Point, Stop, TrainError};

const WIDE: usize = 24;
const RANK: usize = 5;
const OUTPUTS: usize = 10;
const ROWS: usize = 256;

fn gaussian(shape: &[usize], seed: u64) -> Tensor {
    let columns = shape[1..].iter().product();
    let scale = 1.0 / (shape[0] as f64).sqrt();
    let m = random_matrix(Distribution::Gaussian, shape[0], columns, seed, 1);
    let scaled: Vec<f32> = m.to_row_major().iter().map(|v| (f64::from(*v) * scale) as f32).collect();
    Tensor::from_slice(shape, &scaled).unwrap()
}

fn constant(g: &mut Graph, origin: Origin, tensor: Tensor) -> Value {
    g.add(Const { payload: Payload::new(tensor) }, &[], origin).unwrap()
}

/// The product of two matrices.
fn product(a: &Tensor, b: &Tensor) -> Tensor {
    let (n, k, m) = (a.shape()[0], a.shape()[1], b.shape()[1]);
    let (x, y) = (a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
    let entry = |i: usize, j: usize| (0..k).map(|l| x[i * k + l] * y[l * m + j]).sum::<f32>();
    let all: Vec<f32> = (0..n * m).map(|at| entry(at / m, at % m)).collect();
    Tensor::from_slice(&[n, m], &all).unwrap()
}

/// A weight as it is, or two factors in its place.
enum Weight {
    Dense(Tensor),
    Factors(Tensor, Tensor),
}

/// `x W + b` under a name.
fn linear(g: &mut Graph, x: Value, name: &str, weight: Weight, bias: Option<Tensor>, marked: bool) -> Value {
    let (node, of) = (Origin::named(name), Origin::named(&format!("{name}.weight")));
    let part = |origin: &Origin, part| if marked { origin.part(part) } else { origin.clone() };
    let mut y = match weight {
        Weight::Dense(w) => {
            let w = constant(g, of, w);
            g.add(MatMul, &[x, w], node).unwrap()
        }
        Weight::Factors(left, right) => {
            let left = constant(g, part(&of, Part::Left), left);
            let right = constant(g, part(&of, Part::Right), right);
            let first = if marked { node.part(Part::Left) } else { Origin::named(&format!("{name}/thin")) };
            let thin = g.add(MatMul, &[x, left], first).unwrap();
            g.add(MatMul, &[thin, right], part(&node, Part::Right)).unwrap()
        }
    };
    if let Some(bias) = bias {
        let b = constant(g, Origin::named(&format!("{name}.bias")), bias);
        y = g.add(Add, &[y, b], Origin::named(&format!("{name}/Add"))).unwrap();
    }
    y
}

fn rows_input(g: &mut Graph) -> Value {
    g.add_input("x", TensorType::new(DType::F32, vec![Dim::symbol("N"), WIDE.into()]))
}

fn bias(size: usize, seed: u64) -> Tensor {
    gaussian(&[1, size], seed).reshaped(&[size]).unwrap()
}

/// Two layers. The first weight of the teacher is given; the student has factors for it.
fn mlp(first: Weight, first_bias: Tensor, marked: bool) -> Graph {
    let mut g = Graph::new("mlp");
    let x = rows_input(&mut g);
    let y = linear(&mut g, x, "fc1", first, Some(first_bias), marked);
    let y = g.add(Relu, &[y], Origin::named("relu")).unwrap();
    let y = linear(&mut g, y, "fc2", Weight::Dense(gaussian(&[WIDE, OUTPUTS], 3)), None, marked);
    g.add_output("y", y);
    g
}

fn teacher() -> Graph {
    mlp(Weight::Dense(gaussian(&[WIDE, WIDE], 1)), bias(WIDE, 2), true)
}

fn student() -> Graph {
    let factors = Weight::Factors(gaussian(&[WIDE, RANK], 8), gaussian(&[RANK, WIDE], 9));
    mlp(factors, bias(WIDE, 10), true)
}

fn samples() -> Samples {
    let x = random_matrix(Distribution::Gaussian, ROWS, WIDE, 20, 1).to_row_major();
    Samples::new(vec![("x".into(), Tensor::from_slice(&[ROWS, WIDE], &x).unwrap())]).unwrap()
}

fn options() -> RecoverOptions {
    let steps = Some(60);
    RecoverOptions { steps, threads: 1, learning_rate: 1e-2, evaluations: 6, ..RecoverOptions::default() }
}

fn run(student: &Graph, teacher: &Graph, options: &RecoverOptions) -> Result<Recovered, TrainError> {
    recover(student, teacher, &samples(), options, &Silent, &mut Silent)
}

fn numbers(g: &Graph) -> Vec<(String, Vec<f32>)> {
    let contents = |n: NodeId| g.constant(n.into()).unwrap().tensor().to_vec::<f32>().unwrap();
    parameter_names(g).into_iter().map(|(n, name)| (name, contents(n))).collect()
}

#[test]
fn a_layer_that_can_be_exact_becomes_exact() {
    let (left, right) = (gaussian(&[WIDE, RANK], 5), gaussian(&[RANK, WIDE], 6));
    let teacher = mlp(Weight::Dense(product(&left, &right)), bias(WIDE, 2), true);
    let found = run(&student(), &teacher, &RecoverOptions { together: false, ..options() }).unwrap();
    assert!(found.before.error > 0.5, "{:?}", found.before);
    assert!(found.after.error < 1e-3, "{:?}", found.after);
    assert_eq!(found.layers.len(), 1);
    let layer = &found.layers[0];
    assert!(layer.refitted && layer.name == "fc1" && layer.after < 1e-3, "{layer:?}");
    assert!(found.fitted.is_none());
}

#[test]
fn learning_together_goes_beyond_the_layers_and_leaves_the_rest_as_it_is() {
    let (student, teacher) = (student(), teacher());
    let found = run(&student, &teacher, &options()).unwrap();
    let refitted = found.refitted.as_ref().unwrap().error;
    assert!(refitted < 0.7 * found.before.error, "{refitted} {:?}", found.before);
    assert!(found.after.error < 0.95 * refitted, "{refitted} {:?}", found.after);
    let frozen = |g: &Graph| numbers(g).into_iter().find(|(name, _)| name == "fc2.weight").unwrap();
    assert_eq!(frozen(&found.graph), frozen(&student));
    assert_eq!(found.trained, 2 * WIDE * RANK + WIDE);
    let again = run(&student, &teacher, &options()).unwrap();
    assert_eq!(numbers(&again.graph), numbers(&found.graph), "the same gives the same");
    let threads = run(&student, &teacher, &RecoverOptions { threads: 2, ..options() }).unwrap();
    assert_eq!(numbers(&threads.graph), numbers(&found.graph), "on any number of threads");
}

/// Ends a run after some steps.
struct Until(u64, Arc<AtomicU64>);

impl Observer for Until {
    fn stepped(&mut self, step: u64, _: u64, _: f32, _: f64) {
        self.1.store(step, Ordering::Relaxed);
    }

    fn evaluated(&mut self, _: &Point, _: bool) {}

    fn failed(&mut self, error: &TrainError) {
        panic!("{error}");
    }

    fn interruption(&self) -> Interruption {
        let (last, step) = (self.0, Arc::clone(&self.1));
        Interruption::new(move || step.load(Ordering::Relaxed) >= last)
    }
}

#[test]
fn going_on_from_a_checkpoint_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        |file: &Path, resume| RecoverOptions { checkpoint: Some(file.to_path_buf()), resume, ..options() };
    let (student, teacher) = (student(), teacher());
    let whole = run(&student, &teacher, &options(&folder.path().join("whole"), false)).unwrap();
    let file = folder.path().join("parts");
    let begun = recover(
        &student,
        &teacher,
        &samples(),
        &options(&file, false),
        &Silent,
        &mut Until(23, Arc::default()),
    );
    let begun = begun.unwrap().fitted.unwrap();
    assert_eq!((begun.stop, begun.steps), (Stop::Interrupted, 23));
    let ended = run(&student, &teacher, &options(&file, true)).unwrap();
    assert!(ended.refitted.is_none(), "layers are not refitted a second time");
    assert_eq!(numbers(&ended.graph), numbers(&whole.graph));
    assert_eq!(ended.after, whole.after);

    let other = RecoverOptions { learning_rate: 2e-2, ..options(&file, true) };
    let message = run(&student, &teacher, &other).unwrap_err().to_string();
    assert!(
        message.ends_with("it was written by another run: the learning rate was 0.01, is 0.02"),
        "{message}"
    );
}

/// An image through two convolutions; the first one is two in the student.
fn images(first: Option<(Tensor, Tensor)>, dense: Tensor) -> Graph {
    let mut g = Graph::new("images");
    let shape = vec![Dim::symbol("N"), 3usize.into(), 9usize.into(), 8usize.into()];
    let x = g.add_input("x", TensorType::new(DType::F32, shape));
    let conv =
        Conv { strides: vec![2, 1], pads_before: vec![1, 0], pads_after: vec![1, 1], ..Conv::pointwise() };
    let (name, of) = (Origin::named("conv"), Origin::named("conv.weight"));
    let y = match first {
        None => {
            let w = constant(&mut g, of, dense);
            g.add(conv, &[x, w], name).unwrap()
        }
        Some((left, right)) => {
            let left = constant(&mut g, of.part(Part::Left), left);
            let right = constant(&mut g, of.part(Part::Right), right);
            let thin = g.add(conv, &[x, left], name.part(Part::Left)).unwrap();
            g.add(Conv::pointwise(), &[thin, right], name.part(Part::Right)).unwrap()
        }
    };
    let b = constant(&mut g, Origin::named("conv.bias"), gaussian(&[12, 1, 1], 7));
    let y = g.add(Add, &[y, b], Origin::named("sum")).unwrap();
    let y = g.add(Relu, &[y], Origin::named("relu")).unwrap();
    g.add_output("y", y);
    g
}

#[test]
fn convolutions_are_refitted_too() {
    let (left, right) = (gaussian(&[4, 27], 1), gaussian(&[12, 4], 2));
    let dense = product(&right, &left).reshaped(&[12, 3, 3, 3]).unwrap();
    let teacher = images(None, dense.clone());
    let factors = (gaussian(&[4, 3, 3, 3], 3), gaussian(&[12, 4, 1, 1], 4));
    let student = images(Some(factors), dense);
    let module = &factored(&student)[0];
    assert_eq!((module.d_in, module.rank, module.d_out), (27, 4, 12));
    assert!(module.places[0].input.kind != RowKind::LastAxis);
    let x = random_matrix(Distribution::Gaussian, 96, 3 * 9 * 8, 20, 1).to_row_major();
    let x = Tensor::from_slice(&[96, 3, 9, 8], &x).unwrap();
    let samples = Samples::new(vec![("x".into(), x)]).unwrap();
    let options = RecoverOptions { together: false, ..options() };
    let found = recover(&student, &teacher, &samples, &options, &Silent, &mut Silent).unwrap();
    assert!(found.before.error > 0.5 && found.after.error < 1e-3, "{:?} {:?}", found.before, found.after);
}

/// A linear layer on texts, with an input that marks padding.
fn texts(weight: Weight, bias: Tensor) -> Graph {
    let mut g = Graph::new("texts");
    let text = |last: Option<Dim>| [Dim::symbol("N"), Dim::symbol("S")].into_iter().chain(last).collect();
    let x = g.add_input("x", TensorType::new(DType::F32, text(Some(WIDE.into()))));
    g.add_input("attention_mask", TensorType::new(DType::I64, text(None)));
    let y = linear(&mut g, x, "fc", weight, Some(bias), true);
    g.add_output("y", y);
    g
}

#[test]
fn padding_does_not_count() {
    let (left, right) = (gaussian(&[WIDE, RANK], 5), gaussian(&[RANK, WIDE], 6));
    let teacher = texts(Weight::Dense(product(&left, &right)), bias(WIDE, 2));
    let factors = Weight::Factors(gaussian(&[WIDE, RANK], 8), gaussian(&[RANK, WIDE], 9));
    let student = texts(factors, bias(WIDE, 2));
    // Three places of which the last is padding: as large as it may be, it must not be learned from.
    let mut x = random_matrix(Distribution::Gaussian, 128, 3 * WIDE, 20, 1).to_row_major();
    for text in x.chunks_exact_mut(3 * WIDE) {
        text[2 * WIDE..].iter_mut().for_each(|v| *v = 1e15);
    }
    let arrays = |marks: [i64; 3]| {
        let marks: Vec<i64> = marks.repeat(128);
        let mask = Tensor::from_slice(&[128, 3], &marks).unwrap();
        let x = Tensor::from_slice(&[128, 3, WIDE], &x).unwrap();
        Samples::new(vec![("x".into(), x), ("attention_mask".into(), mask)]).unwrap()
    };
    let options = RecoverOptions { together: false, ..options() };
    let go =
        |samples: &Samples| recover(&student, &teacher, samples, &options, &Silent, &mut Silent).unwrap();
    let found = go(&arrays([1, 1, 0]));
    let cosine = found.after.measures.iter().find(|(name, _)| name == "cosine").unwrap().1;
    assert!(cosine > 0.9999, "{:?}", found.after);
    let all = go(&arrays([1, 1, 1]));
    assert!(all.layers[0].before != found.layers[0].before);
}

/// Texts of so many places, of which as many count as their number modulo 8 says, with something else in the others.
fn padded(places: usize, padding: f32) -> Samples {
    let counts = |text: usize, place: usize| place <= text % 8;
    let drawn = random_matrix(Distribution::Gaussian, 128, 8 * WIDE, 20, 1).to_row_major();
    let (mut x, mut marks) = (Vec::new(), Vec::new());
    for (text, place) in (0..128).flat_map(|text| (0..places).map(move |place| (text, place))) {
        marks.push(i64::from(counts(text, place)));
        let at = (text * 8 + place) * WIDE;
        let one = if counts(text, place) { drawn[at..][..WIDE].to_vec() } else { vec![padding; WIDE] };
        x.extend(one);
    }
    let x = Tensor::from_slice(&[128, places, WIDE], &x).unwrap();
    let mask = Tensor::from_slice(&[128, places], &marks).unwrap();
    Samples::new(vec![("x".into(), x), ("attention_mask".into(), mask)]).unwrap()
}

#[test]
fn padding_is_cut_whatever_it_holds_and_however_much_there_is() {
    let (left, right) = (gaussian(&[WIDE, RANK], 5), gaussian(&[RANK, WIDE], 6));
    let teacher = texts(Weight::Dense(product(&left, &right)), bias(WIDE, 2));
    let factors = Weight::Factors(gaussian(&[WIDE, RANK], 8), gaussian(&[RANK, WIDE], 9));
    let student = texts(factors, bias(WIDE, 2));
    let options =
        RecoverOptions { layers: false, learning_rate: 0.01, steps: Some(60), batch: 16, ..options() };
    let learned = |samples: &Samples| {
        let found = recover(&student, &teacher, samples, &options, &Silent, &mut Silent).unwrap();
        assert!(found.after.error < 0.8 * found.before.error, "{:?}", found.fitted);
        numbers(&found.graph)
    };
    let first = learned(&padded(8, 0.0));
    assert_eq!(first, learned(&padded(16, 1e15)));
    assert_eq!(first, learned(&padded(40, -3.0)));
}

#[test]
fn balanced_factors_have_one_norm_and_the_same_product() {
    let g = student();
    let found = balanced(&g);
    let tensor = |part: &str| &found.iter().find(|(name, _)| name.ends_with(part)).unwrap().1;
    let (left, right) = (tensor("left"), tensor("right"));
    let (a, b) = (left.to_vec::<f32>().unwrap(), right.to_vec::<f32>().unwrap());
    for r in 0..RANK {
        let p: f32 = (0..WIDE).map(|i| a[i * RANK + r].powi(2)).sum();
        let q: f32 = (0..WIDE).map(|j| b[r * WIDE + j].powi(2)).sum();
        assert!((p / q - 1.0).abs() < 1e-5, "{p} {q}");
    }
    let before = product(&gaussian(&[WIDE, RANK], 8), &gaussian(&[RANK, WIDE], 9));
    let (x, y) = (before.to_vec::<f32>().unwrap(), product(left, right).to_vec::<f32>().unwrap());
    assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-5));
}

#[test]
fn factors_are_found_without_marks_where_they_are_thin() {
    let of = |rank: usize| {
        let factors = Weight::Factors(gaussian(&[WIDE, rank], 8), gaussian(&[rank, WIDE], 9));
        factored(&mlp(factors, bias(WIDE, 2), false))
    };
    let module = &of(11)[0];
    assert_eq!((module.name.as_str(), module.rank, module.constants.len()), ("fc1", 11, 3));
    // As many numbers as one weight: two layers of a dense model.
    assert!(of(12).is_empty());
    let marked = student();
    assert_eq!(factored(&marked).len(), 1);
    let names = |train| -> Vec<String> {
        let known = parameter_names(&marked);
        let nodes = trainable(&marked, train);
        known.into_iter().filter(|(n, _)| nodes.contains(n)).map(|(_, name)| name).collect()
    };
    assert_eq!(names(Train::Sketch), ["fc1.weight left", "fc1.weight right", "fc1.bias"]);
    assert_eq!(names(Train::All).len(), 4);
    assert!(matches!(marked.op(trainable(&marked, Train::Norms)[0]), Op::Const(_)));
}

#[test]
fn what_does_not_fit_is_named() {
    let message = |s: &Graph, t: &Graph, o: &RecoverOptions| run(s, t, o).unwrap_err().to_string();
    let (student, teacher) = (student(), teacher());
    let mut renamed = Graph::new("other");
    let x = renamed.add_input("image", TensorType::new(DType::F32, vec![Dim::symbol("N"), WIDE.into()]));
    renamed.add_output("z", x);
    assert_eq!(
        message(&student, &renamed, &options()),
        "the teacher has no output `y`; the sketched model has no input `image`; the teacher has no input `x`"
    );
    assert_eq!(
        message(&teacher, &teacher, &options()),
        "the sketched model has no factors, and no attention that was replaced: nothing to recover"
    );
    let hidden = |names: &[&str]| RecoverOptions {
        hidden: Hidden::Names(names.iter().map(|n| n.to_string()).collect()),
        ..options()
    };
    assert_eq!(
        message(&student, &teacher, &hidden(&["relu", "rleu"])),
        "the sketched model has no float value `rleu`"
    );
    let found = run(&student, &teacher, &hidden(&["relu"])).unwrap();
    assert_eq!(found.hidden, ["relu"]);
    let masked = RecoverOptions { mask: MaskChoice::Input("y".into()), ..options() };
    assert_eq!(message(&student, &teacher, &masked), "the model has no input `y` to mask by");
    let many = RecoverOptions { batch: 200, ..options() };
    assert_eq!(
        message(&student, &teacher, &many),
        "a batch to learn from and one to hold out: expected at least 400 samples, found 256"
    );
    let share = RecoverOptions { held_out: Some(1.0), ..options() };
    assert_eq!(message(&student, &teacher, &share), "held out: expected above 0 and below 1, found 1");
}
