//! A model trained on samples with labels: begun anew or sketched first where that is asked for.

use std::path::Path;

use margay_driver::{CompileOptions, Compiled, Dump, Model, Samples, Silent, compile, listed};
use margay_ir::{Cx, Graph, Remark};
use margay_passes::sketch::SketchTraining;
use margay_passes::{parameter_names, with_parameters};
use margay_tensor::Tensor;
use margay_train::dropout::places;
use margay_train::head::with_head;
use margay_train::init::initial;
use margay_train::{
    Objective, Observer, Optimizer, Point, RankChange, RateTest, Redraw, StepMemory, Stop, Supervised,
    TrainError, Trained,
};
use serde::Serialize;

use crate::{Error, is_array_file, read_array};

/// Samples of a step where neither the model nor anybody else says how many.
const BATCH: usize = 32;

/// A model ready to be trained.
pub struct Training {
    name: String,
    graph: Graph,
    options: Supervised,
    before: Option<Sketched>,
    /// What was left as it is when layers were sketched.
    pub remarks: Vec<Remark>,
    dense_stored: usize,
}

impl Training {
    /// A model with a fresh head of so many classes on the output that is trained, with random parameters where it is begun
    /// `anew`, and with sketches in place of layers, each where that is asked for; `redraw` says after how many steps directions of
    /// random features are drawn anew.
    ///
    /// # Errors
    /// Names and settings that do not fit the model.
    pub fn new(
        source: &Model,
        mut options: Supervised,
        head: Option<usize>,
        anew: bool,
        sketches: Option<&SketchTraining>,
        redraw: Option<u64>,
    ) -> Result<Training, TrainError> {
        let mut graph = source.graph.clone();
        if let Some(classes) = head {
            graph = with_head(&graph, options.output.as_deref(), classes, options.fit.seed)?;
        }
        if anew {
            let nodes = options.parameters(&graph)?;
            graph = with_parameters(&graph, &initial(&graph, &nodes, options.fit.seed)?)?;
        }
        let (dense_stored, mut cx) = (stored(&graph), Cx::default());
        let before = sketches.map(|s| Sketched { dense: graph.clone(), by: s.to_string() });
        if let (Some(every), Some(SketchTraining::Attention(attention))) = (redraw, sketches) {
            options.redraw = Some(Redraw { every, exact: graph.clone(), attention: attention.clone() });
        }
        if let Some(sketches) = sketches {
            sketches.apply(&mut graph, &mut cx)?;
        }
        Ok(Training { name: source.name.clone(), graph, options, before, remarks: cx.remarks, dense_stored })
    }

    /// Trains it; `labels` has a row for each sample.
    ///
    /// # Errors
    /// As [`Supervised::train`].
    pub fn train(
        self,
        samples: &Samples,
        labels: Option<&Tensor>,
        observer: &mut dyn Observer,
    ) -> Result<TrainedModel, TrainError> {
        let trained = self.options.train(&self.graph, samples, labels, observer)?;
        let Training { name, options, before, dense_stored, .. } = self;
        Ok(TrainedModel { stored: stored(&trained.graph), name, trained, options, before, dense_stored })
    }
}

/// Of a model whose layers were sketched before it was trained.
struct Sketched {
    dense: Graph,
    /// By what, in words.
    by: String,
}

/// A model that was trained.
pub struct TrainedModel {
    name: String,
    options: Supervised,
    before: Option<Sketched>,
    /// The model with its best parameters, and how training went.
    pub trained: Trained,
    /// Numbers in all constants of floats.
    pub stored: usize,
    /// The same before layers were sketched.
    pub dense_stored: usize,
}

impl TrainedModel {
    /// Compiles it as it is.
    ///
    /// # Errors
    /// As [`compile`].
    pub fn compile(&self, options: &CompileOptions) -> Result<Compiled, Error> {
        let compiled = |graph: &Graph| {
            compile(&Model::new(graph.clone(), &self.name, &mut Dump::none())?, None, options, &Silent)
        };
        let mut trained = compiled(&self.trained.graph)?;
        let report = &mut trained.report;
        report.goal = "training".into();
        if let Some(Sketched { dense, by }) = &self.before {
            let dense = compiled(dense)?.report;
            report.goal += &format!(" with sketches: {by}");
            report.bytes_before = dense.bytes_before;
            report.constant_bytes_before = dense.constant_bytes_before;
            report.flops_before = dense.flops_before;
            report.predicted_ms_before = dense.predicted_ms_before;
        }
        Ok(trained)
    }

    /// What was done.
    pub fn report(&self) -> TrainingReport<'_> {
        let fitted = &self.trained.fitted;
        TrainingReport {
            model: &self.name,
            loss: match self.options.objective {
                Objective::CrossEntropy => "cross-entropy",
                Objective::Mse => "mse",
                Objective::Cosine => "cosine",
                Objective::MaskedLm { .. } => "masked-lm",
            },
            optimizer: match self.options.update.optimizer {
                Optimizer::Sgd { .. } => "sgd",
                Optimizer::Adam { .. } => "adam",
                Optimizer::AdamW { .. } => "adamw",
            },
            output: output_name(&self.trained.graph, self.options.output.as_deref()),
            parameters: self.trained.parameters,
            dropout: places(&self.trained.graph).len(),
            stored: self.stored,
            dense_stored: self.dense_stored,
            samples: TrainedOn { trained: self.trained.samples.0, held_out: self.trained.samples.1 },
            steps: fitted.steps,
            seconds: fitted.seconds,
            learning_rate: fitted.learning_rate,
            rate_test: fitted.rate_test.as_ref(),
            rank_changes: &fitted.rank_changes,
            stop: fitted.stop,
            divergence: fitted.divergence(),
            first: fitted.first(),
            best: fitted.best(),
            history: &fitted.history,
            memory: self.trained.memory,
            seed: self.options.fit.seed,
        }
    }
}

/// What training did.
#[derive(Serialize)]
pub struct TrainingReport<'a> {
    /// The model.
    pub model: &'a str,
    /// What was to become small.
    pub loss: &'static str,
    /// How parameters followed gradients.
    pub optimizer: &'static str,
    /// The output that was trained.
    pub output: &'a str,
    /// Numbers that were trained.
    pub parameters: usize,
    /// Nodes at which training dropped elements.
    pub dropout: usize,
    /// Numbers in all constants of floats.
    pub stored: usize,
    /// The same before layers were sketched.
    pub dense_stored: usize,
    /// Numbers of samples.
    pub samples: TrainedOn,
    /// Steps.
    pub steps: u64,
    /// Seconds in all.
    pub seconds: f64,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// How it was found, where a test did.
    pub rate_test: Option<&'a RateTest>,
    /// Every choice of ranks, where they are chosen during training.
    pub rank_changes: &'a [RankChange],
    /// Why training ended.
    pub stop: Stop,
    /// Which step was no use and why, if that ended it.
    pub divergence: Option<String>,
    /// The error before.
    pub first: &'a Point,
    /// The least error.
    pub best: &'a Point,
    /// The course of the error.
    pub history: &'a [Point],
    /// What a step takes.
    pub memory: StepMemory,
    /// The seed.
    pub seed: u64,
}

/// Numbers of samples.
#[derive(Serialize)]
pub struct TrainedOn {
    /// Those that were trained on.
    pub trained: usize,
    /// Those that were held out.
    pub held_out: usize,
}

/// The numbers in all constants of floats.
fn stored(g: &Graph) -> usize {
    parameter_names(g).iter().filter_map(|(n, _)| Some(g.constant((*n).into())?.tensor().len())).sum()
}

/// The output that is trained: the one with a name, or the first.
fn output_name<'a>(g: &'a Graph, name: Option<&'a str>) -> &'a str {
    name.or_else(|| g.outputs().first().map(|o| &*o.name)).unwrap_or_default()
}

/// The samples of a step for a model: as many as it takes, or 32.
pub fn training_batch(source: &Model, samples: &Samples) -> usize {
    samples.bound_batch(&source.graph).unwrap_or(BATCH)
}

/// How many tokens a masked language model tells apart: the last extent of its output.
///
/// # Errors
/// [`Error::Options`] where the model has no such output, or the extent is open.
pub fn vocabulary(source: &Model, output: Option<&str>) -> Result<usize, Error> {
    let g = &source.graph;
    let name = output_name(g, output);
    let found = g.outputs().iter().find(|o| *o.name == *name);
    let classes = found.and_then(|o| g.ty(o.value).shape.last()?.as_extent());
    classes.ok_or_else(|| Error::Options(format!("output `{name}`: the number of tokens is not known")))
}

/// Labels: an array among the samples by its name, or a file of one array.
///
/// # Errors
/// [`Error::Options`] for a name that the samples do not have; what [`read_array`] fails with.
pub fn read_labels(text: &str, samples: &Samples) -> Result<Tensor, Error> {
    if let Some((_, t)) = samples.arrays().iter().find(|(name, _)| name == text) {
        return Ok(t.clone());
    }
    if !is_array_file(text) {
        let known = listed(samples.names());
        return Err(Error::Options(format!("the data has no array `{text}`; it has {known}")));
    }
    read_array(Path::new(text))
}
