//! From a model to a sketched executable: split, calibrate, fit, price, weigh, allocate, apply and refit, check, report.
//!
//! Each step is a function in a file of its own that takes what the steps before it gave, and nothing else.

mod allocate;
mod apply;
pub(crate) mod calibrate;
pub(crate) mod check;
mod curves;
mod fit;
mod front;
mod limit;
mod price;
mod report;
mod saturation;
mod split;
mod warn;
mod weigh;

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use margay_ir::{Graph, NodeId, Op};
use margay_loops::{Backend, Precision};
use margay_onnx::KnownInputs;
use margay_passes::sketch::{Site, sites};
use margay_passes::{MergeDuplicates, Pipeline, PipelineItem, StoreAs, StoreConstants, WidenProducts};
use margay_plan::{Budgets, Choice, Goal, Plan};
use margay_tensor::{Binding, DType, Scales};

use self::allocate::allocate;
use self::apply::{Finish, Refit, apply, pass_of};
use self::calibrate::Measuring;
pub use self::calibrate::{input_moments, metrics};
use self::check::{Checker, checker, judge};
pub use self::curves::CurvePoint;
use self::curves::curves;
use self::fit::{Fit, Gradients, Measured, fit, measured, tasks};
pub use self::front::{Front, FrontOptions, FrontPoint, front};
use self::price::{Prices, after, price};
use self::report::{Outcome, report};
use self::split::{Split, split};
use self::warn::warnings;
use self::weigh::weigh;
use crate::bindings::{bindings, range_points};
use crate::cache::Cache;
use crate::metric::Asked;
use crate::{
    Compiled, DriverError, Dump, ErrorScope, Interruption, Mask, Model, OwnMetric, Progress, Samples, backend,
};

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// What to achieve; ignored when there is a plan.
    pub goal: Goal,
    /// Choices to replay.
    pub plan: Option<Plan>,
    /// What the model may use besides what the goal says.
    pub budgets: Budgets,
    /// Whether a plan is replayed on other samples than those that it was made with.
    pub recalibrate: bool,
    /// Values of symbols; several values of one symbol give several entries. Symbols without a value take the extents
    /// of the samples, and 1 for the leading axis.
    pub dims: Vec<(String, Vec<i64>)>,
    /// Symbols with ranges of values, the least and the greatest: entries that serve every value between them. Prices and the
    /// report are those of the greatest.
    pub ranges: Vec<(String, (i64, i64))>,
    /// Inputs that become constants: this number in every element. The graph that is compiled has them no more.
    pub fixed: Vec<(String, f64)>,
    /// The back end, by a name that [`backend::named`] knows.
    pub backend: String,
    /// `native` or a class of machines that the back end knows.
    pub target_cpu: String,
    /// How the operands of products with constants are rounded, after sketching.
    pub precision: Precision,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Threads to compile with, and to predict times for. Results do not depend on the former.
    pub threads: usize,
    /// Threads that times are predicted for.
    pub predict_threads: usize,
    /// What counts in errors of the outputs: padding does not, and other outputs than those named.
    pub errors: ErrorScope,
    /// What [`Goal::Drop`] is measured by.
    pub metric: Option<OwnMetric>,
    /// The text of a cost model that predicts times; without it that of the class.
    pub cost_model: Option<String>,
    /// A folder in which calibration and fits are kept by content, so that another goal for the same model and samples costs
    /// less. The result is the same with and without.
    pub cache: Option<PathBuf>,
}

impl CompileOptions {
    /// What they and the samples say of inputs before the model is read.
    pub fn known_inputs(&self, samples: Option<&Samples>) -> KnownInputs {
        let single = |(name, values): &(String, Vec<i64>)| match values.as_slice() {
            [value] => Some((name.as_str().into(), *value)),
            _ => None,
        };
        let arrays = samples.map_or(&[][..], Samples::arrays);
        let several = self.dims.iter().filter(|(_, values)| values.len() > 1 && values.contains(&0));
        let ranges = self.ranges.iter().filter(|(_, (least, _))| *least == 0);
        let empty = several.map(|(name, _)| name).chain(ranges.map(|(name, _)| name));
        KnownInputs {
            dims: self.dims.iter().filter_map(single).collect(),
            empty: empty.map(|name| name.as_str().into()).collect(),
            extents: arrays.iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect(),
            values: Vec::new(),
            fixed: self.fixed.clone(),
        }
    }
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            goal: Goal::Dense,
            budgets: Budgets::default(),
            plan: None,
            recalibrate: false,
            dims: Vec::new(),
            ranges: Vec::new(),
            fixed: Vec::new(),
            backend: "cpu".into(),
            target_cpu: "native".into(),
            precision: Precision::F32,
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            predict_threads: 1,
            errors: ErrorScope::default(),
            metric: None,
            cost_model: None,
            cache: None,
        }
    }
}

impl CompileOptions {
    /// Whether anything is to be sketched.
    fn sketches(&self) -> bool {
        self.plan.is_some() || self.goal != Goal::Dense
    }

    /// The goal, where there is no plan.
    fn searched(&self) -> Option<&Goal> {
        self.plan.is_none().then_some(&self.goal)
    }

    fn seed(&self) -> u64 {
        self.plan.as_ref().map_or(self.seed, |p| p.header.seed)
    }
}

impl fmt::Display for CompileOptions {
    /// All of them on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; seed {}", report::goal_text(self.searched(), &self.budgets), self.seed())?;
        write!(
            f,
            "; back end {}, target {}, precision {}",
            self.backend,
            self.target_cpu,
            self.precision.name()
        )?;
        for (name, values) in &self.dims {
            write!(
                f,
                "; {name} = {}",
                values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )?;
        }
        for (name, (least, most)) in &self.ranges {
            write!(f, "; {name} = {least}..{most}")?;
        }
        write!(f, "; compiled by {} thread(s), times predicted for {}", self.threads, self.predict_threads)
    }
}

/// What all steps of one compilation share.
pub(crate) struct Job<'a> {
    source: &'a Model,
    options: &'a CompileOptions,
    progress: &'a dyn Progress,
    /// The samples in the order of the model's inputs.
    samples: Option<Samples>,
    backend: Arc<dyn Backend>,
    /// The back end of what a choice measures, which every machine runs.
    measures_on: Arc<dyn Backend>,
    /// Values of the symbols, one binding for each entry of the artifact.
    bindings: Vec<Binding>,
    /// For each binding the values that its ranges have; nothing without ranges.
    ranges: Vec<Vec<Binding>>,
    sites: Vec<Site>,
    /// How the constants of the result are stored.
    storage: StoreConstants,
    /// Which places of samples count.
    mask: Mask,
    /// The metric of the goal.
    metric: Option<Asked<'a>>,
    cache: Option<Cache>,
    /// All that calibration and fits follow from, whatever the goal; empty without a cache.
    basis: String,
}

impl<'a> Job<'a> {
    /// Checks that options, samples and plan fit the model.
    fn new(
        source: &'a Model,
        samples: Option<&Samples>,
        options: &'a CompileOptions,
        progress: &'a dyn Progress,
    ) -> Result<Job<'a>, DriverError> {
        let g = &source.graph;
        options.errors.check(g)?;
        let (name, target, precision) = (&options.backend, &options.target_cpu, options.precision);
        let backend = match &options.cost_model {
            Some(text) => backend::with_cost_model(name, target, precision, text)?,
            None => backend::named(name, target, precision)?,
        };
        let samples = samples.map(|s| s.for_graph(g)).transpose()?;
        let bindings = bindings(g, options, samples.as_ref())?;
        let ranges = range_points(g, options, &bindings)?;
        if matches!(options.searched(), Some(Goal::Error(_) | Goal::Drop(_))) && samples.is_none() {
            let message = "an error limit is checked by running the model: samples are needed (`--data`)";
            return Err(DriverError::Options(message.into()));
        }
        let mut sites = sites(g);
        if let Some(plan) = &options.plan {
            let names: Vec<&str> = sites.iter().map(|s| s.name.as_str()).collect();
            let calibration = match options.recalibrate {
                true => plan.header.calibration.clone(),
                false => samples.as_ref().map(Samples::hash),
            };
            plan.check(&source.hash, calibration.as_deref(), &names)?;
        }
        let named =
            |site: &Site| options.plan.as_ref().is_some_and(|plan| plan.sites.contains_key(&site.name));
        sites.retain(|site| !site.only_by_name || named(site));
        let storage = storage(g, &sites, options)?;
        let mask = Mask::find(g, &options.errors.mask)?;
        samples.iter().try_for_each(|samples| mask.check(samples.arrays()))?;
        let metric = match (options.searched(), &options.metric) {
            (Some(Goal::Drop(_)), Some(metric)) => Some(Asked::new(metric, g)?),
            (Some(Goal::Drop(_)), None) => {
                return Err(DriverError::Options(
                    "a drop is measured: a metric is needed (`--metric`)".into(),
                ));
            }
            _ => None,
        };
        let measures_on = backend::measuring(&backend);
        let cache = options.cache.as_deref().map(Cache::open).transpose()?;
        let basis = match &cache {
            Some(_) => format!(
                "{} of {}, outputs {:?}, seed {}, samples {:?}, {mask:?}\n{g}",
                measures_on.target(),
                measures_on.name(),
                options.errors.outputs,
                options.seed(),
                samples.as_ref().map(Samples::hash)
            ),
            None => String::new(),
        };
        Ok(Job {
            source,
            options,
            progress,
            samples,
            measures_on,
            backend,
            bindings,
            ranges,
            sites,
            storage,
            mask,
            metric,
            cache,
            basis,
        })
    }

    /// What the plan says of a site.
    fn planned(&self, site: &Site) -> Option<&'a Choice> {
        self.options.plan.as_ref().and_then(|plan| plan.sites.get(&site.name))
    }

    /// How the constants are stored that products of a site read.
    fn storage_of(&self, site: &Site) -> StoreConstants {
        let weights = site.weights.iter().map(|w| self.graph().node(w.node).origin.name());
        let named = weights.into_iter().find_map(|name| self.storage.named.get(name));
        let products = match named.copied().unwrap_or(self.storage.products) {
            // The word of the whole model rounds left operands, too; that of a site does not.
            StoreAs::Precision(word) if named.is_some_and(|named| *named != self.storage.products) => {
                StoreAs::Storage(word.storage(1))
            }
            products => products,
        };
        StoreConstants { products, ..StoreConstants::default() }
    }

    /// The model as it is.
    fn graph(&self) -> &'a Graph {
        &self.source.graph
    }

    /// How calibration measures.
    fn measuring(&self) -> Measuring<'_> {
        let (threads, never) = (self.threads(), Interruption::never());
        let cache = self.cache.as_ref().map(|cache| (cache, self.basis.as_str()));
        Measuring { cache, ..Measuring::new(&self.mask, &self.measures_on, threads, self.progress, &never) }
    }

    fn threads(&self) -> usize {
        self.options.threads
    }
}

/// How constants are stored: products as the options say, and those of sites that the plan says more of by the names of
/// their weights. What replaces a weight in 16-bit floats is stored as that was, where nothing else is said.
fn storage(g: &Graph, sites: &[Site], options: &CompileOptions) -> Result<StoreConstants, DriverError> {
    let products = StoreAs::Precision(options.precision);
    let mut storage = StoreConstants { products, ..StoreConstants::default() };
    for site in sites {
        let choice = options.plan.as_ref().and_then(|plan| plan.sites.get(&site.name));
        let Some(word) = choice.and_then(|choice| choice.storage.as_deref()) else { continue };
        let refused = |why: String| DriverError::Options(format!("plan: `{}`: {why}", site.name));
        let store = StoreAs::parse(word).ok_or_else(|| refused(format!("unknown storage `{word}`")))?;
        for weight in &site.weights {
            let is_right = |(user, _): &(NodeId, u16)| matches!(g.op(*user), Op::MatMul(_));
            if !g.users_of(*weight).iter().all(is_right) {
                let kind = site.kind;
                return Err(refused(format!("storage `{word}` is for products, found {kind} layers")));
            }
            let name = g.node(weight.node).origin.name();
            if name.is_empty() {
                return Err(refused(format!("storage `{word}` is for weights that have a name")));
            }
            if storage.named.insert(name.to_owned(), store).is_some_and(|other| other != store) {
                return Err(refused(format!("`{name}` is to be stored as `{word}` and otherwise")));
            }
        }
    }
    let weights = sites.iter().filter(|_| options.precision == Precision::F32).flat_map(|site| &site.weights);
    for weight in weights {
        let Some(payload) = g.constant(*weight) else { continue };
        let (name, stored) = (g.node(weight.node).origin.name(), payload.storage());
        let is_narrow = stored.scales == Scales::None && stored.dtype != DType::F32;
        if is_narrow && payload.ty().dtype == DType::F32 && !name.is_empty() {
            storage.named.entry(name.to_owned()).or_insert(StoreAs::Storage(stored));
        }
    }
    Ok(storage)
}

/// The model with its products of 16-bit floats in f32, where weights are to be sketched or rounded.
fn widened<'m>(
    source: &'m Model,
    options: &CompileOptions,
    dump: &mut Dump,
) -> Result<Cow<'m, Model>, DriverError> {
    if !options.sketches() && options.precision == Precision::F32 {
        return Ok(Cow::Borrowed(source));
    }
    let mut graph = source.graph.clone();
    // Casts of what several products read become one.
    let steps =
        vec![PipelineItem::Run(Box::new(WidenProducts)), PipelineItem::Run(Box::new(MergeDuplicates))];
    dump.run(&Pipeline::new(steps), &mut graph)?;
    Ok(Cow::Owned(Model { graph, ..source.clone() }))
}

/// Compiles a model. With samples, a quarter of them, at most 512, measures the error that is reported; of the others as many
/// calibrate as give each layer about 65,536 rows.
pub fn compile(
    source: &Model,
    samples: Option<&Samples>,
    options: &CompileOptions,
    progress: &dyn Progress,
) -> Result<Compiled, DriverError> {
    compile_with(source, samples, options, progress, &mut Dump::none())
}

/// What a choice is made from.
struct Prepared {
    split: Option<Split>,
    /// By task, the fewest rows that its layer was calibrated on; empty without samples.
    rows: Vec<u64>,
    gradients: Option<Gradients>,
    fits: Vec<Fit>,
    prices: Prices,
    /// By site, how its errors weigh in the outputs.
    weights: Option<Vec<f64>>,
    checker: Option<Checker>,
}

impl Prepared {
    /// Calibrates, fits, prices and weighs.
    fn new(job: &Job<'_>) -> Result<Prepared, DriverError> {
        let split = split(job)?;
        let tasks = tasks(job)?;
        let measured = measured(job, &tasks, split.as_ref())?;
        let fits = fit(job, tasks, measured.as_ref())?;
        let rows = measured.as_ref().map_or(Vec::new(), Measured::rows);
        let gradients = measured.map(Measured::into_gradients);
        let prices = price(job, &fits)?;
        let weights = weigh(job, &fits, split.as_ref())?;
        let checker = checker(job, split.as_ref())?;
        Ok(Prepared { split, rows, gradients, fits, prices, weights, checker })
    }

    /// What refits what was chosen.
    fn refit(&self, job: &Job<'_>) -> Result<Option<Refit>, DriverError> {
        Refit::new(job, self.split.as_ref(), self.gradients.as_ref())
    }
}

/// As [`compile`], with dumps of the passes.
pub fn compile_with(
    source: &Model,
    samples: Option<&Samples>,
    options: &CompileOptions,
    progress: &dyn Progress,
    dump: &mut Dump,
) -> Result<Compiled, DriverError> {
    let source = &*widened(source, options, dump)?;
    let job = Job::new(source, samples, options, progress)?;
    let prepared = Prepared::new(&job)?;
    let refit = prepared.refit(&job)?;
    let Prepared { split, rows, gradients, fits, prices, weights, checker } = prepared;
    let curves = curves(&job, &fits, &prices, weights.as_deref())?;
    let finish = Finish { split: split.as_ref(), refit: refit.as_ref() };
    let choice = allocate(&job, &fits, &prices, weights, checker.as_ref(), finish)?;
    let pass = || pass_of(&job.sites, &fits, &choice.allocation);
    let sketched = apply(&job, pass(), finish, dump)?;
    let judged = judge(&job, checker.as_ref(), &sketched.graph)?;
    // What meets the limit before the refit is no reason to miss it.
    let exceeds = judged.as_ref().map_or(Ok(false), |judged| judged.exceeds(&job))?;
    let (sketched, judged) = match exceeds && refit.is_some() {
        true => {
            let sketched = apply(&job, pass(), finish.without_refit(), dump)?;
            let judged = judge(&job, checker.as_ref(), &sketched.graph)?;
            (sketched, judged)
        }
        false => (sketched, judged),
    };
    let judged = judged.map(|judged| judged.checked(&job)).transpose()?;
    let (error, metric) = judged.map_or((None, None), |judged| (Some(judged.error), judged.metric));
    let after = after(&job, &prices, &sketched.graph)?;
    let plan = match &options.plan {
        None => report::plan(&job, &choice.allocation),
        Some(plan) => Plan { header: report::header(&job), ..plan.clone() },
    };
    let doubted = warn::Outcome {
        fits: &fits,
        rows: &rows,
        prices: &prices,
        allocation: &choice.allocation,
        after,
        error: error.as_ref(),
    };
    let warnings = warnings(&job, checker.as_ref(), &doubted)?;
    let mut remarks = sketched.remarks;
    remarks.extend(gradients.and_then(|g| g.remark));
    remarks.extend(fits.iter().flat_map(|fit| fit.remarks.clone()));
    let held_out_rows = split.map_or(Vec::new(), |s| s.held_out_rows);
    let refits = sketched.refits;
    let outcome =
        Outcome { fits, prices, choice, after, error, held_out_rows, refits, metric, remarks, warnings };
    let report = report(&job, &outcome);
    // Values that a range serves need no entries of their own.
    let bindings = if job.ranges.is_empty() { job.bindings } else { Vec::new() };
    let (graph, threads) = (sketched.graph, options.threads);
    Ok(Compiled { report, plan, curves, graph, backend: job.backend, bindings, ranges: job.ranges, threads })
}
