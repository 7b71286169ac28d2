//! Refits the factors of each layer to what the teacher computes there, one layer after the other, without gradients.
//!
//! A layer of the student reads what the layers before it, already refitted, make of the data; its target is what the
//! teacher has at the same place. The best factors of the same rank for that are known in closed form (see
//! [`Regression`]), and so is the bias. This makes up for errors that add up along the way; what it cannot see is how
//! much an error matters to the outputs.
//!
//! A layer keeps its old factors where the new ones do no better on data that was held out.

use std::collections::BTreeSet;
use std::sync::Arc;

use margay_driver::{Arrays, Backend, MAX_PATCHES, Progress, Samples, Unfold, bound_batch, parallel};
use margay_ir::ops::Const;
use margay_ir::{Graph, NodeId, Op, Patch, Payload, Value};
use margay_passes::sketch::ModuleKind;
use margay_randnla::{Centring, Conditioning, Factors, Matrix, RandnlaError, Regression};
use margay_tensor::Tensor;
use serde::Serialize;

use super::factors::{FactoredModule, factored_modules};
use super::mask::Mask;
use super::stages::Stages;
use super::trainable::named;
use super::twins::Named;
use crate::TrainError;

/// Weight of the dense layer in the estimate, as a share of the mean variance of its inputs.
const SHRINKAGE: f64 = 0.01;

/// Samples that layers are fitted to, at most, and samples that are held out for them.
const MOST_SAMPLES: [usize; 2] = [2048, 512];

/// Samples run at once where the model leaves its batch open.
const SAMPLES_AT_ONCE: usize = 64;

/// Parts in which the moments of a layer are summed.
const PARTS: usize = 4;

/// What became of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerRefit {
    /// Its name in the model.
    pub name: String,
    /// Relative L2 error of its output, about the mean, on held-out data with the factors it had.
    pub before: f64,
    /// The same with the factors it has now.
    pub after: f64,
    /// Whether the factors are new.
    pub refitted: bool,
}

/// What refitting gave.
#[derive(Clone, Debug)]
pub struct Refitted {
    /// What became of each layer.
    pub reports: Vec<LayerRefit>,
    /// The new contents of constants, by the names that parameters have.
    pub factors: Vec<(String, Tensor)>,
}

/// What layers are refitted with.
pub struct LayerData<'a> {
    /// The dense model.
    pub teacher: &'a Graph,
    /// Data that layers are fitted to.
    pub train: &'a Samples,
    /// Data that decides whether the new factors are better.
    pub held_out: &'a Samples,
    /// Which rows of the data count.
    pub mask: &'a Mask,
    /// Processor class.
    pub backend: &'a Arc<dyn Backend>,
    /// Threads to work with.
    pub threads: usize,
}

/// A layer with what it is fitted to.
struct Layer {
    module: FactoredModule,
    /// The teacher's output, by place.
    targets: Vec<Value>,
    /// The weight of the teacher, `[d_in, d_out]`, where it has one.
    prior: Option<Matrix>,
    /// How many layers are before it.
    level: usize,
}

impl Layer {
    /// What its places read.
    fn inputs(&self, student: &Graph) -> Vec<Value> {
        self.module.places.iter().map(|p| student.inputs_of(p.first)[0]).collect()
    }
}

/// Refits all layers that the teacher has too, or those before an interruption.
///
/// # Errors
/// [`TrainError::Driver`] where a model does not run on the data, [`TrainError::Refit`] where a layer sees numbers that
/// are not finite, [`TrainError::Options`] where there is no layer to refit.
pub fn refit_layers(
    student: &Graph,
    data: &LayerData<'_>,
    progress: &dyn Progress,
    interrupted: &dyn Fn() -> bool,
) -> Result<Refitted, TrainError> {
    let layers = layers(student, data.teacher)?;
    let original = student;
    let student = &mut original.clone();
    let mut new: Vec<(NodeId, Tensor)> = Vec::new();
    let batches = |samples: &Samples, most: usize| -> Result<Vec<Arrays>, TrainError> {
        let size = bound_batch(student).unwrap_or(SAMPLES_AT_ONCE);
        Ok(samples.runs(student, size).take(most.div_ceil(size)).collect::<Result<_, _>>()?)
    };
    let batches = [batches(data.train, MOST_SAMPLES[0])?, batches(data.held_out, MOST_SAMPLES[1])?];
    let stages = |batches| Stages::new(batches, data.backend, data.threads);
    let mut of_student = [stages(&batches[0]), stages(&batches[1])];
    let mut of_teacher = [stages(&batches[0]), stages(&batches[1])];
    let levels: BTreeSet<usize> = layers.iter().map(|l| l.level).collect();
    let mut done = Vec::new();
    for level in levels {
        if interrupted() {
            break;
        }
        progress.at("refitting layers", done.len(), layers.len());
        let now: Vec<&Layer> = layers.iter().filter(|l| l.level == level).collect();
        let inputs: Vec<Value> = now.iter().flat_map(|l| l.inputs(student)).collect();
        let targets: Vec<Value> = now.iter().flat_map(|l| l.targets.clone()).collect();
        let mut sums = Vec::new();
        for part in 0..2 {
            of_student[part].advance(student, &inputs)?;
            of_teacher[part].advance(data.teacher, &targets)?;
            sums.push(measure(student, data, &batches[part], (&of_student[part], &of_teacher[part]), &now)?);
        }
        let fitted = parallel(data.threads, now.len(), &margay_driver::Silent, "", |i| {
            refit(student, now[i], &sums[0][i], &sums[1][i])
        });
        for (layer, fitted) in now.iter().zip(fitted) {
            let failed = |error| TrainError::Refit { module: layer.module.name.clone(), error };
            let (report, factors) = fitted.map_err(failed)?;
            for (n, tensor) in factors.into_iter().flat_map(|f| contents(original, &layer.module, &f)) {
                replace_constant(student, n, tensor.clone());
                new.push((n, tensor));
            }
            done.push(report);
        }
    }
    progress.at("refitting layers", layers.len(), layers.len());
    Ok(Refitted { reports: done, factors: named(original, new) })
}

fn layers(student: &Graph, teacher: &Graph) -> Result<Vec<Layer>, TrainError> {
    let modules = factored_modules(student);
    if modules.is_empty() {
        let message = "the sketched model has no layer of two factors: nothing to recover";
        return Err(TrainError::Options(message.into()));
    }
    let twins = Named::of(teacher);
    let levels = levels(student, &modules);
    let mut layers = Vec::new();
    for (module, level) in modules.into_iter().zip(levels) {
        let target = |output: Value| twins.twin(teacher, student, output.node);
        let targets: Option<Vec<Value>> = module.places.iter().map(|p| target(p.output())).collect();
        if let Some(targets) = targets {
            let prior = dense_weight(teacher, &module, targets[0]);
            layers.push(Layer { module, targets, prior, level });
        }
    }
    if layers.is_empty() {
        let message = "no layer of the sketched model has the name of one of the teacher: \
                       is this the model that was sketched?";
        return Err(TrainError::Options(message.into()));
    }
    Ok(layers)
}

/// For each module how many others are on the longest way to it.
fn levels(g: &Graph, modules: &[FactoredModule]) -> Vec<usize> {
    let mut at = std::collections::HashMap::new();
    let mut levels = vec![0; modules.len()];
    for n in g.order() {
        let before = g.inputs_of(n).iter().map(|v| at[&v.node]).max().unwrap_or(0);
        let first = modules.iter().position(|m| m.places.iter().any(|p| p.first == n));
        if let Some(i) = first {
            levels[i] = before.max(levels[i]);
        }
        let last = modules.iter().any(|m| m.places.iter().any(|p| p.second == n));
        at.insert(n, before + usize::from(last));
    }
    levels
}

/// The weight behind a value of the teacher, if it is a product with a constant, or that with a bias.
fn dense_weight(teacher: &Graph, module: &FactoredModule, output: Value) -> Option<Matrix> {
    let mut n = output.node;
    if matches!(teacher.op(n), Op::Add(_)) {
        n = teacher.inputs_of(n).into_iter().find(|v| teacher.constant(*v).is_none())?.node;
    }
    let weight = match (module.kind, teacher.op(n)) {
        (ModuleKind::Linear, Op::MatMul(_)) | (ModuleKind::Conv, Op::Conv(_)) => teacher.inputs_of(n)[1],
        _ => return None,
    };
    let tensor = teacher.constant(weight)?.tensor();
    let matrix = as_matrix(module.kind, tensor)?;
    (matrix.rows() == module.d_in && matrix.columns() == module.d_out).then_some(matrix)
}

/// A weight as a matrix that rows are multiplied with.
fn as_matrix(kind: ModuleKind, tensor: &Tensor) -> Option<Matrix> {
    let data = tensor.to_vec::<f32>().ok()?;
    match (kind, tensor.shape()) {
        (ModuleKind::Linear, &[rows, columns]) => Matrix::from_row_major(rows, columns, &data).ok(),
        (ModuleKind::Conv, &[out, c, h, w]) => {
            Some(Matrix::from_row_major(out, c * h * w, &data).ok()?.transposed())
        }
        _ => None,
    }
}

/// The moments of the layers' inputs in the student and outputs in the teacher.
fn measure(
    student: &Graph,
    data: &LayerData<'_>,
    batches: &[Arrays],
    (of_student, of_teacher): (&Stages<'_>, &Stages<'_>),
    layers: &[&Layer],
) -> Result<Vec<Regression>, TrainError> {
    let samples: usize = batches.iter().map(rows_of).sum();
    let marks: Vec<Option<Vec<bool>>> = batches.iter().map(|b| data.mask.rows(b)).collect();
    // Parts of the batches are summed side by side; how many there are does not depend on the threads.
    let sums = parallel(data.threads, PARTS * layers.len(), &margay_driver::Silent, "", |i| {
        let (part, layer) = (i % PARTS, layers[i / PARTS]);
        let (module, targets) = (&layer.module, &layer.targets);
        let mut sum = Regression::new(module.d_in, module.d_out);
        for (batch, marks) in marks.iter().enumerate().filter(|(batch, _)| batch % PARTS == part) {
            for (place, target) in module.places.iter().zip(targets) {
                let x = of_student.value(batch, student.inputs_of(place.first)[0]);
                let y = of_teacher.value(batch, *target);
                let (x, y) = rows(student, place.first, (x, y), module, samples);
                let (x, y) = match marks {
                    Some(keep) => kept(x, y, keep),
                    None => (x, y),
                };
                sum.add_rows(&x, &y)?;
            }
        }
        Ok::<Regression, RandnlaError>(sum)
    });
    let mut sums = sums.into_iter();
    let whole = |layer: &&Layer| {
        let parts: Vec<_> = sums.by_ref().take(PARTS).collect();
        let mut sum = Regression::new(layer.module.d_in, layer.module.d_out);
        let added = parts.into_iter().try_for_each(|part| sum.merge(&part?));
        let failed = |error| TrainError::Refit { module: layer.module.name.clone(), error };
        added.map(|()| sum).map_err(failed)
    };
    layers.iter().map(whole).collect()
}

/// Samples in a batch.
fn rows_of(batch: &Arrays) -> usize {
    batch.first().and_then(|(_, t)| t.shape().first().copied()).unwrap_or(1)
}

/// Inputs and outputs of a layer as rows.
fn rows(
    g: &Graph,
    n: NodeId,
    (x, y): (&Tensor, &Tensor),
    module: &FactoredModule,
    samples: usize,
) -> (Vec<f32>, Vec<f32>) {
    let floats = |t: &Tensor| t.to_vec::<f32>().expect("layers compute f32");
    let unfold = match g.op(n) {
        Op::Conv(c) => {
            let kernel = g.ty(module.left_value()).extents().expect("constants have extents");
            Unfold::new(c, [kernel[2], kernel[3]])
        }
        _ => None,
    };
    let Some(unfold) = unfold else { return (floats(x), floats(y)) };
    let positions = y.shape()[2] * y.shape()[3];
    let every = (samples * positions).div_ceil(MAX_PATCHES);
    let (data, channels) = (floats(y), y.shape()[1]);
    let windows = (0..y.shape()[0] * positions).step_by(every);
    let targets = windows.flat_map(|window| {
        let (image, at) = (window / positions, window % positions);
        let data = &data;
        (0..channels).map(move |c| data[(image * channels + c) * positions + at])
    });
    (unfold.rows(x, every), targets.collect())
}

/// The rows that count, where there are as many rows as the mask has marks.
fn kept(x: Vec<f32>, y: Vec<f32>, keep: &[bool]) -> (Vec<f32>, Vec<f32>) {
    let pick = |v: Vec<f32>| -> Vec<f32> {
        let width = v.len() / keep.len();
        let rows = v.chunks_exact(width.max(1)).zip(keep).filter(|(_, keep)| **keep);
        rows.flat_map(|(row, _)| row.iter().copied()).collect()
    };
    if [&x, &y].iter().any(|v| !v.len().is_multiple_of(keep.len())) {
        return (x, y);
    }
    (pick(x), pick(y))
}

/// New factors, where they are better than the old ones on held-out data.
fn refit(
    g: &Graph,
    layer: &Layer,
    train: &Regression,
    held_out: &Regression,
) -> Result<(LayerRefit, Option<Factors>), RandnlaError> {
    let old = factors_of(g, &layer.module);
    let product;
    let prior = match &layer.prior {
        Some(prior) => prior,
        None => {
            product = old.left.product(&old.right)?;
            &product
        }
    };
    let centring = if old.bias.is_some() { Centring::Centred } else { Centring::Uncentred };
    let conditioning = Conditioning { shrinkage: SHRINKAGE, ..Conditioning::default() };
    let new = train.fit(prior, layer.module.rank, centring, &conditioning, 0)?;
    let energy = held_out.energy()?.max(f64::MIN_POSITIVE);
    let error = |f: &Factors| held_out.squared_error(&f.left, &f.right, f.bias.as_deref());
    let (before, after) = (error(&old)? / energy, error(&new)? / energy);
    let refitted = after < before;
    let report = LayerRefit {
        name: layer.module.name.clone(),
        before: before.sqrt(),
        after: after.min(before).sqrt(),
        refitted,
    };
    Ok((report, refitted.then_some(new)))
}

fn factors_of(g: &Graph, module: &FactoredModule) -> Factors {
    let tensor = |n: NodeId| g.constant(n.into()).expect("factors are constants").tensor();
    let matrix = |n| as_matrix(module.kind, tensor(n)).expect("factors have the shapes they were found by");
    let bias = module.places[0].bias.map(|(_, bias)| tensor(bias).to_vec().expect("a bias is f32"));
    Factors { left: matrix(module.left), right: matrix(module.right), bias }
}

/// New contents of the constants of a module.
fn contents(g: &Graph, module: &FactoredModule, factors: &Factors) -> Vec<(NodeId, Tensor)> {
    let flat = |m: &Matrix| match module.kind {
        ModuleKind::Linear => m.to_row_major(),
        ModuleKind::Conv => m.transposed().to_row_major(),
    };
    let mut new = vec![(module.left, flat(&factors.left)), (module.right, flat(&factors.right))];
    if let Some(bias) = &factors.bias {
        let places = module.places.iter().filter_map(|p| p.bias);
        new.extend(places.map(|(_, constant)| (constant, bias.clone())));
    }
    let shaped = |(n, data): (NodeId, Vec<f32>)| {
        let shape = g.constant(n.into()).expect("only constants are refitted").tensor().shape().to_vec();
        (n, Tensor::from_slice(&shape, &data).expect("as many numbers as before"))
    };
    new.into_iter().map(shaped).collect()
}

/// Makes everybody who reads a constant read another one of the same type.
fn replace_constant(g: &mut Graph, n: NodeId, tensor: Tensor) {
    let mut patch = Patch::new();
    let origin = g.node(n).origin.clone();
    let constant = Const { payload: Payload::new(tensor) };
    let new = patch.add(g, constant, &[], origin).expect("constants take no operands");
    patch.redirect(n.into(), new);
    g.apply(patch).expect("the new constant has the type of the old one");
}
