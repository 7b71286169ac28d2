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

use margay_driver::{Arrays, Backend, Mask, Progress, Samples, bound_batch, parallel};
use margay_ir::ops::Const;
use margay_ir::{Graph, NodeId, Op, Patch, Payload, Value};
use margay_passes::sketch::{Factored, Layer as DenseLayer};
use margay_randnla::{Centring, Conditioning, Factors, Matrix, RandnlaError, Regression};
use margay_tensor::Tensor;
use serde::Serialize;

use super::stages::Stages;
use super::trainable::{factored, named};
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
    module: Factored,
    /// The teacher's output, by place.
    targets: Vec<Value>,
    /// The weight of the teacher, `[d_in, d_out]`, where it has one.
    prior: Option<Matrix>,
    /// How many layers are before it.
    level: usize,
}

impl Layer {
    /// What its places read.
    fn inputs(&self) -> Vec<Value> {
        self.module.places.iter().map(|p| p.input.value).collect()
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
        let inputs: Vec<Value> = now.iter().flat_map(|l| l.inputs()).collect();
        let targets: Vec<Value> = now.iter().flat_map(|l| l.targets.clone()).collect();
        let mut sums = Vec::new();
        for part in 0..2 {
            of_student[part].advance(student, &inputs)?;
            of_teacher[part].advance(data.teacher, &targets)?;
            sums.push(measure(data, &batches[part], (&of_student[part], &of_teacher[part]), &now)?);
        }
        let fitted = parallel(data.threads, now.len(), &margay_driver::Silent, "", |i| {
            refit(student, now[i], &sums[0][i], &sums[1][i])
        });
        for (layer, fitted) in now.iter().zip(fitted) {
            let failed = |error| TrainError::Refit { module: layer.module.name.clone(), error };
            let (report, factors) = fitted.map_err(failed)?;
            for (n, tensor) in factors {
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
    let modules = factored(student);
    if modules.is_empty() {
        let message = "the sketched model has no layer of two factors: nothing to recover";
        return Err(TrainError::Options(message.into()));
    }
    let twins = Named::of(teacher);
    let levels = levels(student, &modules);
    let mut layers = Vec::new();
    for (module, level) in modules.into_iter().zip(levels) {
        let target = |output: Value| twins.twin(teacher, student, output.node);
        let targets: Option<Vec<Value>> = module.places.iter().map(|p| target(p.output)).collect();
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
fn levels(g: &Graph, modules: &[Factored]) -> Vec<usize> {
    let mut at = std::collections::HashMap::new();
    for n in g.order() {
        let before = g.inputs_of(n).iter().map(|v| at[&v.node]).max().unwrap_or(0);
        let last = modules.iter().any(|m| m.places.iter().any(|p| p.output.node == n));
        at.insert(n, before + usize::from(last));
    }
    let level = |m: &Factored| m.places.iter().map(|p| at[&p.input.value.node]).max().unwrap_or(0);
    modules.iter().map(level).collect()
}

/// The weight behind a value of the teacher, if it is a product with a constant, or that with a bias.
fn dense_weight(teacher: &Graph, module: &Factored, output: Value) -> Option<Matrix> {
    let mut n = output.node;
    if matches!(teacher.op(n), Op::Add(_)) {
        n = teacher.inputs_of(n).into_iter().find(|v| teacher.constant(*v).is_none())?.node;
    }
    let layer = DenseLayer::at(teacher, n)?;
    (layer.d_in == module.d_in && layer.d_out == module.d_out).then(|| layer.matrix(teacher).ok())?
}

/// The moments of the layers' inputs in the student and outputs in the teacher.
fn measure(
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
                let x = place.input.of(of_student.value(batch, place.input.value), samples);
                let y = place.input.results(of_teacher.value(batch, *target), samples);
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

/// New contents of constants.
type Contents = Vec<(NodeId, Tensor)>;

/// New factors, where they are better than the old ones on held-out data.
fn refit(
    g: &Graph,
    layer: &Layer,
    train: &Regression,
    held_out: &Regression,
) -> Result<(LayerRefit, Contents), RandnlaError> {
    let stored = &layer.module.stored;
    let old = stored.read(g);
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
    let contents = stored.write(g, &new).filter(|_| after < before);
    let refitted = contents.is_some();
    let report = LayerRefit {
        name: layer.module.name.clone(),
        before: before.sqrt(),
        after: if refitted { after } else { before }.sqrt(),
        refitted,
    };
    Ok((report, contents.unwrap_or_default()))
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
