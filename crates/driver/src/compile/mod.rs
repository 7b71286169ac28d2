//! From a model to a sketched executable: split, calibrate, fit, price, weigh, allocate, apply, check, report.
//!
//! Each step is a function in a file of its own that takes what the steps before it gave, and nothing else.

mod allocate;
mod apply;
pub(crate) mod calibrate;
pub(crate) mod check;
mod fit;
mod price;
mod report;
mod split;
mod weigh;

use std::fmt;
use std::sync::Arc;

use margay_loops::{Backend, Precision};
use margay_onnx::KnownExtents;
use margay_passes::sketch::{Site, sites};
use margay_plan::{Goal, Plan, Price};
use margay_tensor::Binding;

use self::allocate::{allocate, candidates};
use self::apply::{apply, pass_of};
use self::check::{Checker, check};
use self::fit::{fit, measured, tasks};
use self::price::{Pricing, price};
use self::report::{Outcome, header, report};
use self::split::split;
use self::weigh::weigh;
use crate::bindings::bindings;
use crate::{Compiled, DriverError, Dump, Progress, Samples, Source, backend, build};

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// What to achieve; ignored when there is a plan.
    pub goal: Goal,
    /// Choices to replay.
    pub plan: Option<Plan>,
    /// Values of symbols; several values of one symbol give several entries. Symbols without a value take the extents
    /// of the samples, and 1 for the leading axis.
    pub dims: Vec<(String, Vec<i64>)>,
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
}

impl CompileOptions {
    /// What they and the samples say of extents before the model is read.
    pub fn known_extents(&self, samples: Option<&Samples>) -> KnownExtents {
        let single = |(name, values): &(String, Vec<i64>)| match values.as_slice() {
            [value] => Some((name.as_str().into(), *value)),
            _ => None,
        };
        let arrays = samples.map_or(&[][..], Samples::arrays);
        KnownExtents {
            dims: self.dims.iter().filter_map(single).collect(),
            inputs: arrays.iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect(),
        }
    }
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            goal: Goal::Dense,
            plan: None,
            dims: Vec::new(),
            backend: "cpu".into(),
            target_cpu: "native".into(),
            precision: Precision::F32,
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            predict_threads: 1,
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
        write!(f, "{}; seed {}", report::goal_text(self.searched()), self.seed())?;
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
        write!(f, "; compiled by {} thread(s), times predicted for {}", self.threads, self.predict_threads)
    }
}

/// What all steps of one compilation share.
pub(crate) struct Job<'a> {
    source: &'a Source,
    options: &'a CompileOptions,
    /// The samples in the order of the model's inputs.
    samples: Option<Samples>,
    backend: Arc<dyn Backend>,
    /// Values of the symbols, one binding for each entry of the artifact.
    bindings: Vec<Binding>,
    sites: Vec<Site>,
}

impl<'a> Job<'a> {
    /// Checks that options, samples and plan fit the model.
    fn new(
        source: &'a Source,
        samples: Option<&Samples>,
        options: &'a CompileOptions,
    ) -> Result<Job<'a>, DriverError> {
        let g = &source.graph;
        let backend = backend::named(&options.backend, &options.target_cpu, options.precision)?;
        let samples = samples.map(|s| s.for_graph(g)).transpose()?;
        let bindings = bindings(g, options, samples.as_ref())?;
        if matches!(options.searched(), Some(Goal::Error(_))) && samples.is_none() {
            let message =
                "an error limit is checked by running the model: samples are needed (`--calibrate`)";
            return Err(DriverError::Options(message.into()));
        }
        let sites = sites(g);
        if let Some(plan) = &options.plan {
            let names: Vec<&str> = sites.iter().map(|s| s.name.as_str()).collect();
            let calibration = samples.as_ref().map(Samples::hash);
            plan.check(&source.hash, calibration.as_deref(), &names)?;
        }
        Ok(Job { source, options, samples, backend, bindings, sites })
    }
}

/// Compiles a model. With samples, half of them calibrate and the other half measures the error that is reported.
pub fn compile(
    source: &Source,
    samples: Option<&Samples>,
    options: &CompileOptions,
    progress: &dyn Progress,
) -> Result<Compiled, DriverError> {
    compile_with(source, samples, options, progress, &mut Dump::none())
}

/// As [`compile`], with dumps of the passes.
pub fn compile_with(
    source: &Source,
    samples: Option<&Samples>,
    options: &CompileOptions,
    progress: &dyn Progress,
    dump: &mut Dump,
) -> Result<Compiled, DriverError> {
    let job = Job::new(source, samples, options)?;
    let (g, run) = (&source.graph, (&job.backend, options.threads));
    let measures = options.sketches() || options.precision != Precision::F32;
    let tasks = match options.sketches() {
        true => tasks(&job.sites, options.plan.as_ref(), options.seed())?,
        false => Vec::new(),
    };

    let split = job.samples.as_ref().filter(|_| measures).map(|s| split(g, s)).transpose()?;
    let calibration = split.as_ref().map(|s| &s.calibration).filter(|_| !tasks.is_empty());
    let moments = calibration.map(|c| measured(g, &job.sites, &tasks, c, run, progress)).transpose()?;
    let fits = fit(g, &job.sites, tasks, moments.as_deref(), options.threads, progress)?;
    drop(moments);
    let dense = margay_lower::lower(
        &build::bind(g, &job.bindings[0], &*job.backend, &mut Dump::none())?,
        &*job.backend,
    )?;
    let pricing =
        Pricing { binding: &job.bindings[0], backend: &*job.backend, threads: options.predict_threads };
    let prices = price(g, &job.sites, &fits, &pricing, &dense)?;
    let weights = match (options.searched(), calibration) {
        (Some(_), Some(c)) => Some(weigh(g, &job.sites, &fits, c, run, progress)?),
        _ => None,
    };
    let held_out = split.as_ref().map(|s| &s.held_out);
    let checker =
        held_out.map(|h| Checker::new(g, h, &job.backend, options.threads, progress)).transpose()?;

    let mut candidates = candidates(&job.sites, &fits, &prices, weights.as_deref())?;
    let allocation = match options.searched() {
        None => candidates.planned(),
        Some(goal) => {
            candidates.narrow(&job.sites, goal);
            let error_of = |choice: &margay_plan::Allocation| match &checker {
                Some(_) if choice.choices.is_empty() && options.precision == Precision::F32 => Ok(0.0),
                Some(checker) => {
                    let pass = pass_of(&job.sites, &fits, choice);
                    let (graph, _) = apply(g, pass, options.precision, &mut Dump::none())?;
                    Ok(checker.measure(&graph, &job.backend, options.threads, progress)?.relative_l2)
                }
                None => unreachable!("an error limit without samples was refused"),
            };
            allocate(&candidates, goal, &error_of)?
        }
    };
    let (graph, remarks) = apply(g, pass_of(&job.sites, &fits, &allocation), options.precision, dump)?;
    let error = checker.as_ref().map(|c| check(c, &graph, options, run, progress)).transpose()?;
    let sketched = margay_lower::lower(
        &build::bind(&graph, &job.bindings[0], &*job.backend, &mut Dump::none())?,
        &*job.backend,
    )?;
    let mut after = pricing.of_program(&sketched);
    after.bytes = sketched.packed_bytes() as i64;
    let outcome = Outcome {
        candidates: &candidates,
        allocation: &allocation,
        fits: &fits,
        before: Price { bytes: dense.packed_bytes() as i64, ..prices.model },
        after,
        held_out: error,
        remarks: &remarks,
    };
    let plan = options.plan.clone().unwrap_or_else(|| report::plan(&job, header(&job), &allocation));
    let report = report(&job, &outcome);
    Ok(Compiled { report, plan, graph, backend: job.backend, bindings: job.bindings })
}
