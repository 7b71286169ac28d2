//! Refits the factors of each layer to what the teacher computes there, one layer after the other, without gradients.
//!
//! A layer of the student reads what the layers before it, already refitted, make of the data; its target is what the
//! teacher has at the same place. The best factors of the same rank for that are known in closed form (see
//! [`Regression`]), and so is the bias. This makes up for errors that add up along the way. How much an error of a layer's
//! output matters to the outputs of the model is known from its second moment of gradients, where that was measured.
//!
//! How far the estimate is shrunk towards the weight of the teacher is chosen for each layer on data that was held out; a
//! layer keeps its old factors where no new ones do better there.

mod fitting;
mod stages;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use margay_ir::ops::Const;
use margay_ir::{Graph, NodeId, Op, Patch, Payload, Value};
use margay_loops::Backend;
use margay_passes::sketch::{Factored, Layer as DenseLayer, MAX_ROWS, Moments, Thinning, factored};
use margay_passes::with_constants;
use margay_randnla::{Gram, Matrix, RandnlaError, Regression};
use margay_tensor::Tensor;
use serde::{Deserialize, Serialize};

use self::fitting::{Seen, fit_layers};
pub use self::stages::Stages;
use crate::mask::{Marks, Mask};
use crate::padding::{Padding, Runs, runs};
use crate::rows::rows_of_a_sample;
use crate::twins::Named;
use crate::{Arrays, DriverError, Interruption, Progress, Samples, Silent, parallel};

/// Samples that layers are fitted to, at most, and samples that are held out for them.
const MOST_SAMPLES: [usize; 2] = [2048, 512];

/// The least of both, however many rows a sample has: rows of one sample are alike.
const LEAST_SAMPLES: [usize; 2] = [512, 256];

/// Samples run at once where the model leaves its batch open.
const SAMPLES_AT_ONCE: usize = 64;

/// Parts in which the moments of a layer are summed.
const PARTS: usize = 4;

/// What became of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Sketched layers that the teacher has, too.
    pub matched: usize,
    /// What became of each layer.
    pub reports: Vec<LayerRefit>,
    /// The new contents of constants of the student.
    pub contents: Contents,
    /// The student with them: in the same order, with new ids.
    pub graph: Graph,
}

/// New contents of constants.
pub type Contents = Vec<(NodeId, Tensor)>;

/// Second moments of the gradients of a model by the results of products and convolutions, by their nodes.
pub type Metrics = HashMap<NodeId, Arc<Moments>>;

/// What layers are refitted with.
pub struct RefitData<'a> {
    /// The dense model.
    pub teacher: &'a Graph,
    /// Data that layers are fitted to.
    pub train: &'a Samples,
    /// Data that decides whether the new factors are better.
    pub held_out: &'a Samples,
    /// Whether factors that are better are fitted once more, to both.
    pub fit_to_both: bool,
    /// How errors of the teacher's layers weigh.
    pub metrics: &'a Metrics,
    /// Which rows of the data count.
    pub mask: &'a Mask,
    /// What of the samples is padding that models compute the same without.
    pub padding: Option<&'a Padding>,
    /// Processor class.
    pub backend: &'a Arc<dyn Backend>,
    /// Threads to work with.
    pub threads: usize,
    /// When to leave the rest of the layers as they are.
    pub interruption: &'a Interruption,
}

/// A layer with what it is fitted to.
struct Layer {
    module: Factored,
    /// The teacher's output, by place.
    targets: Vec<Value>,
    /// The weight of the teacher, `[d_in, d_out]`, where it has one.
    prior: Option<Matrix>,
    /// How errors of its outputs weigh, where that is known.
    metric: Option<Arc<Moments>>,
    /// How many layers are before it.
    level: usize,
    /// The samples that it needs rows of, to learn from and held out.
    samples: [usize; 2],
}

impl Layer {
    /// What its places read.
    fn inputs(&self) -> Vec<Value> {
        self.module.places.iter().map(|p| p.input.value).collect()
    }

    /// Of the batches of a part the first few that it needs.
    fn needed<'b>(&self, batches: &'b [Vec<Arrays>; 2], part: usize) -> &'b [Arrays] {
        let mut samples = 0;
        let enough = |batch: &Arrays| {
            samples += rows_of(batch);
            samples >= self.samples[part]
        };
        let count = batches[part].iter().position(enough).map_or(batches[part].len(), |last| last + 1);
        &batches[part][..count]
    }

    /// How many rows it reads of some batches, padding included.
    fn rows(&self, batches: &[Arrays], of_student: &Stages<'_>) -> usize {
        let thinning = thinning(batches);
        let of = |batch: usize| {
            let inputs = self.module.places.iter().map(|p| &p.input);
            inputs.map(|i| i.count(of_student.value(batch, i.value).shape(), thinning)).sum::<usize>()
        };
        (0..batches.len()).map(of).sum()
    }
}

/// Refits all layers that the teacher has too, or those before an interruption. There may be none. Layers with inputs longer
/// than [`Gram::MOST_DENSE`], or than there are rows to learn from, keep their factors.
///
/// # Errors
/// Those of running a model on the data, and [`DriverError::Factorize`] where a layer sees numbers that are not finite.
pub fn refit_layers(
    student: &Graph,
    data: &RefitData<'_>,
    progress: &dyn Progress,
) -> Result<Refitted, DriverError> {
    let mut layers: Vec<Arc<Layer>> = layers(student, data)?.into_iter().map(Arc::new).collect();
    let matched = layers.len();
    // Second moments of longer rows would be larger than the weight.
    layers.retain(|layer| layer.module.d_in <= Gram::MOST_DENSE);
    let original = student;
    let student = &mut original.clone();
    let mut new: Vec<(NodeId, Tensor)> = Vec::new();
    let batches =
        |samples: &Samples, most| runs(student, samples, data.padding, SAMPLES_AT_ONCE, most, Runs::All);
    let most = |part: usize| layers.iter().map(|layer| layer.samples[part]).max().unwrap_or(0);
    let batches = [batches(data.train, most(0))?, batches(data.held_out, most(1))?];
    let stages = |batches| Stages::new(batches, data.backend, data.threads, data.interruption);
    let mut of_student = [stages(&batches[0]), stages(&batches[1])];
    let mut of_teacher = [stages(&batches[0]), stages(&batches[1])];
    let levels: BTreeSet<usize> = layers.iter().map(|l| l.level).collect();
    let mut done = Vec::new();
    for level in levels {
        progress.at("refitting layers", done.len(), layers.len());
        let now: Vec<Arc<Layer>> = layers.iter().filter(|l| l.level == level).cloned().collect();
        let fitted = refit_level(student, data, &batches, (&mut of_student, &mut of_teacher), now);
        let fitted = match fitted {
            Err(DriverError::Interrupted) => break,
            fitted => fitted?,
        };
        for (report, factors) in fitted {
            for (n, tensor) in factors {
                replace_constant(student, n, tensor.clone());
                new.push((n, tensor));
            }
            done.push(report);
        }
    }
    progress.at("refitting layers", layers.len(), layers.len());
    let graph = with_constants(original, &new).expect("layers write contents of the types that were there");
    Ok(Refitted { matched, reports: done, contents: new, graph })
}

/// The layers that have as many others before them: what became of each, and its new contents.
fn refit_level(
    student: &Graph,
    data: &RefitData<'_>,
    batches: &[Vec<Arrays>; 2],
    (of_student, of_teacher): (&mut [Stages<'_>; 2], &mut [Stages<'_>; 2]),
    layers: Vec<Arc<Layer>>,
) -> Result<Vec<(LayerRefit, Contents)>, DriverError> {
    let interruption = data.interruption;
    if interruption.asked() {
        return Err(DriverError::Interrupted);
    }
    let inputs: Vec<Value> = layers.iter().flat_map(|l| l.inputs()).collect();
    let targets: Vec<Value> = layers.iter().flat_map(|l| l.targets.clone()).collect();
    for part in 0..2 {
        let count = layers.iter().map(|layer| layer.needed(batches, part).len()).max().unwrap_or(0);
        of_student[part].advance(student, &inputs, count)?;
        of_teacher[part].advance(data.teacher, &targets, count)?;
    }
    let enough = |l: &Arc<Layer>| l.rows(l.needed(batches, 0), &of_student[0]) >= l.module.d_in;
    let layers: Vec<Arc<Layer>> = layers.into_iter().filter(enough).collect();
    let mut sums = Vec::new();
    for part in 0..2 {
        sums.push(measure(data, (batches, part), (&of_student[part], &of_teacher[part]), &layers)?);
    }
    let sums: Seen = sums.try_into().expect("both parts were measured");
    let (graph, threads, fit_to_both) = (student.clone(), data.threads, data.fit_to_both);
    let goes_on = interruption.clone();
    // A thread that is left to itself ends with the work at hand.
    interruption.run(move || fit_layers(&graph, &layers, &sums, fit_to_both, threads, &goes_on))?
}

fn layers(student: &Graph, data: &RefitData<'_>) -> Result<Vec<Layer>, DriverError> {
    let teacher = data.teacher;
    let modules = factored(student);
    let parts = [data.train, data.held_out];
    let twins = Named::of(teacher);
    let levels = levels(student, &modules);
    let mut layers = Vec::new();
    for (module, level) in modules.into_iter().zip(levels) {
        let target = |output: Value| twins.twin(teacher, student, output.node);
        let targets: Option<Vec<Value>> = module.places.iter().map(|p| target(p.output)).collect();
        if let Some(targets) = targets {
            let (prior, metric) = match dense_layer(teacher, &module, targets[0]) {
                Some(dense) => {
                    let metric = data.metrics.get(&dense.nodes[0]).cloned();
                    (dense.matrix(teacher).ok(), metric)
                }
                None => (None, None),
            };
            let inputs = || module.places.iter().map(|place| &place.input);
            let mut samples = [0; 2];
            for part in 0..2 {
                let of_a_sample = rows_of_a_sample(student, inputs(), data.mask, parts[part])?;
                let enough = MAX_ROWS.div_ceil(of_a_sample.into_iter().sum::<usize>().max(1));
                samples[part] = enough.clamp(LEAST_SAMPLES[part], MOST_SAMPLES[part]);
            }
            layers.push(Layer { module, targets, prior, metric, level, samples });
        }
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

/// The layer behind a value of the teacher, if it is a product with a constant, or that with a bias.
fn dense_layer(teacher: &Graph, module: &Factored, output: Value) -> Option<DenseLayer> {
    let mut n = output.node;
    if matches!(teacher.op(n), Op::Add(_)) {
        n = teacher.inputs_of(n).into_iter().find(|v| teacher.constant(*v).is_none())?.node;
    }
    let layer = DenseLayer::at(teacher, n)?;
    (layer.d_in == module.d_in && layer.d_out == module.d_out).then_some(layer)
}

/// The moments of the layers' inputs in the student and outputs in the teacher.
fn measure(
    data: &RefitData<'_>,
    (batches, part): (&[Vec<Arrays>; 2], usize),
    (of_student, of_teacher): (&Stages<'_>, &Stages<'_>),
    layers: &[Arc<Layer>],
) -> Result<Vec<Regression>, DriverError> {
    let marks: Vec<Option<Marks>> = batches[part].iter().map(|b| data.mask.marks(b)).collect();
    let needed: Vec<&[Arrays]> = layers.iter().map(|layer| layer.needed(batches, part)).collect();
    // Parts of the batches are summed side by side; how many there are does not depend on the threads.
    let sums = parallel(data.threads, PARTS * layers.len(), &Silent, "", |i| {
        let (part, layer, batches) = (i % PARTS, &layers[i / PARTS], needed[i / PARTS]);
        let (module, targets) = (&layer.module, &layer.targets);
        let thinning = thinning(batches);
        let mut sum = Regression::new(module.d_in, module.d_out);
        for batch in (0..batches.len()).filter(|batch| batch % PARTS == part) {
            if data.interruption.asked() {
                break;
            }
            for (place, target) in module.places.iter().zip(targets) {
                let x = place.input.of(of_student.value(batch, place.input.value), thinning);
                let y = place.input.results(of_teacher.value(batch, *target), thinning);
                let (x, y) = match &marks[batch] {
                    Some(marks) => (marks.kept(x, module.d_in), marks.kept(y, module.d_out)),
                    None => (x, y),
                };
                sum.add_rows(&x, &y)?;
            }
        }
        Ok::<Regression, RandnlaError>(sum)
    });
    if data.interruption.asked() {
        return Err(DriverError::Interrupted);
    }
    let mut sums = sums.into_iter();
    let whole = |layer: &Arc<Layer>| {
        let parts: Vec<_> = sums.by_ref().take(PARTS).collect();
        let mut sum = Regression::new(layer.module.d_in, layer.module.d_out);
        let added = parts.into_iter().try_for_each(|part| sum.merge(&part?));
        let failed = |error| DriverError::Factorize { module: layer.module.name.clone(), error };
        added.map(|()| sum).map_err(failed)
    };
    layers.iter().map(whole).collect()
}

/// How rows of all samples of some batches are thinned out.
fn thinning(batches: &[Arrays]) -> Thinning {
    Thinning::of(batches.iter().map(rows_of).sum())
}

/// Samples in a batch.
fn rows_of(batch: &Arrays) -> usize {
    batch.first().and_then(|(_, t)| t.shape().first().copied()).unwrap_or(1)
}

/// Makes everybody who reads a constant read another one of the same type, which is returned.
///
/// # Panics
/// If the types differ.
pub fn replace_constant(g: &mut Graph, n: NodeId, tensor: Tensor) -> NodeId {
    let mut patch = Patch::new();
    let origin = g.node(n).origin.clone();
    let constant = Const { payload: Payload::new(tensor) };
    let new = patch.add(g, constant, &[], origin).expect("constants take no operands");
    patch.redirect(n.into(), new);
    let applied = g.apply(patch).expect("the new constant has the type of the old one");
    applied.value(new).node
}
