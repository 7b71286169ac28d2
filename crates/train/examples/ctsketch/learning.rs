//! A network that reads digits, learned from sums of digits alone.

use std::error::Error;
use std::sync::Arc;

use margay_driver::{Backend, Silent};
use margay_ir::ops::{Log, Reshape, Slice, Softmax};
use margay_ir::{Builder, Graph, Origin, TensorType, Value, text};
use margay_passes::{parameter_names, with_parameters};
use margay_tensor::{DType, Tensor};
use margay_train::{
    Batches, Evaluation, Evaluator, FitOptions, Fitted, Length, Optimizer, Schedule, Task, Tensors,
    TrainError, Trainer, TrainingStep, Update, fit, init, loss,
};

use crate::program::{DIGITS, Program};

/// Elements of an image.
pub(crate) const PIXELS: usize = 28 * 28;

/// Images of a step.
const IMAGES_OF_STEP: usize = 64;

/// Probabilities below this count as it: those of tables that are approximated may be 0 or slightly negative.
const LEAST_PROBABILITY: f64 = 1e-6;

/// How often each image is in a sum that is evaluated.
const EVALUATED_SUMS: usize = 8;

/// Images of digits.
pub(crate) struct Images {
    /// `PIXELS` numbers for each image.
    pub(crate) pixels: Vec<f32>,
    /// Digits.
    pub(crate) labels: Vec<i64>,
}

/// How to learn.
pub(crate) struct Options {
    /// How often each image is in a sum.
    pub(crate) passes: usize,
    /// Names first parameters and sums.
    pub(crate) seed: u64,
    /// Threads to run on.
    pub(crate) threads: usize,
    /// What to compile for.
    pub(crate) backend: Arc<dyn Backend>,
}

/// What was learned.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Learned {
    /// The loss on held-out sums before the first step.
    pub(crate) first_loss: f64,
    /// The share of sums of test images that are right.
    pub(crate) sums: f64,
    /// The share of test images whose digit is right.
    pub(crate) digits: f64,
}

/// Learns from the sums of digits of training images; sums of held-out images decide which parameters are kept. Of ten
/// images two are test images and one is held out. Only the last evaluation reads labels of single images.
pub(crate) fn learn(
    images: &Images,
    program: &Program,
    options: &Options,
) -> Result<Learned, Box<dyn Error>> {
    let of =
        |kinds: &[usize]| (0..images.labels.len()).filter(|i| kinds.contains(&(i % 10))).collect::<Vec<_>>();
    let Options { passes, seed, threads, ref backend } = *options;
    let digits = program.inputs();
    let sums = |rows: Vec<usize>, passes, stream| Sums::new(images, &rows, digits, passes, seed ^ stream);
    let train = sums(of(&[3, 4, 5, 6, 7, 8, 9]), passes, 0)?;
    let (held_out, test) =
        (sums(of(&[2]), EVALUATED_SUMS, 1 << 32)?, sums(of(&[0, 1]), EVALUATED_SUMS, 2 << 32)?);

    let model = network(digits, seed)?;
    let parameters: Vec<_> = parameter_names(&model).into_iter().map(|(n, _)| n).collect();
    let update = Update {
        optimizer: Optimizer::ADAM,
        learning_rate: 2e-3,
        schedule: Schedule::Cosine { warm_up: 0.05, floor: 0.0 },
        clip: Some(1.0),
    };
    let objective = |g: &mut Graph| Ok(surprise(g, program)?[0].1);
    let step = TrainingStep::new(&model, &parameters, &objective, &update)?;
    let batch = IMAGES_OF_STEP / digits;
    let mut trainer = Trainer::new(&step, &train.batch(&(0..batch).collect::<Vec<_>>())?, backend, threads)?;
    let measures = |g: &mut Graph| {
        let logits = g.outputs()[0].value;
        let mut measures = surprise(g, program)?;
        let shape = g.ty(logits).shape[..2].to_vec();
        let digits = g.add_input("digit", TensorType::new(DType::I64, shape));
        measures.push(("digits", loss::accuracy(g, logits, digits, None)?));
        Ok(measures)
    };
    let evaluator = Evaluator::new(&model, &parameters, &measures, backend, threads)?;
    let mut task = Learning { train, held_out, evaluator };
    let fit_options = FitOptions { length: Length::Epochs(1.0), batch, seed, ..FitOptions::default() };
    let fitted: Fitted = fit(&mut trainer, &mut task, &fit_options, &mut Silent)?;
    let found = measured(&mut task.evaluator, &fitted.parameters, &test)?;
    Ok(Learned { first_loss: fitted.first().error, sums: found[1], digits: found[2] })
}

/// Logits of the digits of some images: two convolutions and a product.
fn network(digits: usize, seed: u64) -> Result<Graph, Box<dyn Error>> {
    let source = format!(
        "graph @digits(%image: f32[B, {digits}, 28, 28]) -> (digit: f32[B, {digits}, {DIGITS}]) {{
           %0 = reshape %image {{shape = [{digits}*B, 1, 28, 28]}} : f32[{digits}*B, 1, 28, 28]
           %1 = const #0 : f32[12, 1, 5, 5]  // first.weight
           %2 = conv %0, %1 {{strides = [2, 2]}} : f32[{digits}*B, 12, 12, 12]
           %3 = const #1 : f32[12, 1, 1]  // first.bias
           %4 = add %2, %3 : f32[{digits}*B, 12, 12, 12]
           %5 = relu %4 : f32[{digits}*B, 12, 12, 12]
           %6 = const #2 : f32[24, 12, 5, 5]  // second.weight
           %7 = conv %5, %6 {{strides = [2, 2]}} : f32[{digits}*B, 24, 4, 4]
           %8 = const #3 : f32[24, 1, 1]  // second.bias
           %9 = add %7, %8 : f32[{digits}*B, 24, 4, 4]
           %10 = relu %9 : f32[{digits}*B, 24, 4, 4]
           %11 = reshape %10 {{shape = [B, {digits}, 384]}} : f32[B, {digits}, 384]
           %12 = const #4 : f32[384, {DIGITS}]  // third.weight
           %13 = matmul %11, %12 : f32[B, {digits}, {DIGITS}]
           %14 = const #5 : f32[{DIGITS}]  // third.bias
           %15 = add %13, %14 : f32[B, {digits}, {DIGITS}]
           return %15
         }}"
    );
    let zeros = |_: &str, ty: &TensorType| Some(Tensor::zeros(ty.dtype, &ty.extents()?).ok()?.into());
    let g = text::parse(&source, &zeros)?;
    let constants: Vec<_> = parameter_names(&g).into_iter().map(|(n, _)| n).collect();
    Ok(with_parameters(&g, &init::initial(&g, &constants, seed)?)?)
}

/// The loss and the share of sums that are right: -log of the probability of the sum, where digits are independent. Adds the
/// input `sum`.
fn surprise(g: &mut Graph, program: &Program) -> Result<Vec<(&'static str, Value)>, TrainError> {
    let logits = g.outputs()[0].value;
    let batch = g.ty(logits).shape[0].clone();
    let mut n = Builder::new(g, Origin::named("sum"));
    let all = n.op(Softmax { axis: 2 }, &[logits])?;
    let mut digits = Vec::with_capacity(program.inputs());
    for k in 0..program.inputs() {
        let (starts, ends) =
            ([0usize.into(), k.into(), 0usize.into()], [batch.clone(), (k + 1).into(), DIGITS.into()]);
        let one = Slice { starts: starts.to_vec(), ends: ends.to_vec(), steps: vec![1; 3] };
        let one = n.op(one, &[all])?;
        let shape = vec![batch.clone(), DIGITS.into()];
        digits.push(n.op(Reshape { shape }, &[one])?);
    }
    let sum = program.distribution(g, &digits)?;
    let mut n = Builder::new(g, Origin::named("sum"));
    let likely = n.at_least(sum, LEAST_PROBABILITY)?;
    let logits = n.op(Log, &[likely])?;
    let target = g.add_input("sum", TensorType::new(DType::I64, vec![batch]));
    let loss = loss::cross_entropy(g, logits, target, None, None)?;
    Ok(vec![("loss", loss), ("sums", loss::accuracy(g, logits, target, None)?)])
}

/// Sums of digits, each of some images.
struct Sums<'a> {
    images: &'a Images,
    digits: usize,
    /// Images of one sum after the other.
    rows: Vec<usize>,
}

impl<'a> Sums<'a> {
    /// Each of the images is in a sum once in each pass, but for those that fill no sum.
    fn new(
        images: &'a Images,
        chosen: &[usize],
        digits: usize,
        passes: usize,
        seed: u64,
    ) -> Result<Sums<'a>, TrainError> {
        let mut groups = Batches::new(chosen.len(), digits, seed)?;
        let count = groups.per_epoch() * passes as u64;
        let rows = (0..count).flat_map(|i| groups.batch(i).iter().map(|at| chosen[*at]).collect::<Vec<_>>());
        Ok(Sums { images, digits, rows: rows.collect() })
    }

    fn len(&self) -> usize {
        self.rows.len() / self.digits
    }

    fn labels(&self, sum: usize) -> impl Iterator<Item = i64> {
        self.rows[sum * self.digits..][..self.digits].iter().map(|row| self.images.labels[*row])
    }

    /// Images and sums.
    fn batch(&self, sums: &[usize]) -> Result<Tensors, TrainError> {
        let rows = sums.iter().flat_map(|sum| &self.rows[sum * self.digits..][..self.digits]);
        let pixels: Vec<f32> =
            rows.flat_map(|row| &self.images.pixels[row * PIXELS..][..PIXELS]).copied().collect();
        let totals: Vec<i64> = sums.iter().map(|sum| self.labels(*sum).sum()).collect();
        Ok(vec![
            ("image".into(), Tensor::from_slice(&[sums.len(), self.digits, 28, 28], &pixels)?),
            ("sum".into(), Tensor::from_slice(&[sums.len()], &totals)?),
        ])
    }
}

/// Loss, share of sums and share of digits that are right.
fn measured(
    evaluator: &mut Evaluator,
    parameters: &[(String, Tensor)],
    sums: &Sums<'_>,
) -> Result<Vec<f64>, TrainError> {
    let all: Vec<usize> = (0..sums.len()).collect();
    let mut batch = sums.batch(&all)?;
    let digits: Vec<i64> = all.iter().flat_map(|sum| sums.labels(*sum)).collect();
    batch.push(("digit".into(), Tensor::from_slice(&[sums.len(), sums.digits], &digits)?));
    let found = evaluator.run(parameters, &batch)?;
    found.iter().map(|(_, t)| Ok(f64::from(t.as_slice::<f32>()?[0]))).collect()
}

/// Sums to learn from, and those that decide which parameters are kept.
struct Learning<'a> {
    train: Sums<'a>,
    held_out: Sums<'a>,
    evaluator: Evaluator,
}

impl Task for Learning<'_> {
    fn rows(&self) -> usize {
        self.train.len()
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Tensors, TrainError> {
        self.train.batch(rows)
    }

    fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError> {
        let found = measured(&mut self.evaluator, parameters, &self.held_out)?;
        Ok(Evaluation { error: found[0], measures: Vec::new() })
    }
}
