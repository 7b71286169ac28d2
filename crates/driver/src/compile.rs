//! Calibrate, fit, allocate, rewrite, check, adjust: from a model to a sketched executable.

use std::path::Path;
use std::sync::Arc;

use margay_artifact::ArtifactBuilder;
use margay_ir::{Graph, Op};
use margay_loops::{Backend, Precision, Program};
use margay_passes::sketch::{modules, scheme_of};
use margay_plan::{Allocation, Budget, Header, Plan, plan};
use margay_runtime::Executable;
use margay_tensor::Binding;

use crate::bindings::bindings;
use crate::checker::Checker;
use crate::choose::{Table, least_time, module_reports, selection, table, within_budget};
use crate::curves::{Configured, Prospect, fit, price, sketch, weigh};
use crate::report::Report;
use crate::samples::bound_batch;
use crate::{DriverError, Dump, Progress, Runner, Samples, Source, backend, build, calibrate, export_graph};

/// The piece of an artifact's source that holds its graph.
pub(crate) const GRAPH_PIECE: &str = "graph.ir";

/// What a compilation is to achieve.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Goal {
    /// Nothing is sketched.
    #[default]
    Dense,
    /// The fastest model whose relative L2 error of the outputs on held-out samples is at most this.
    Error(f64),
    /// The smallest error with so many stored bytes of the modules' weights.
    Bytes(Budget),
    /// The smallest error with a predicted time of one run of so many seconds.
    Seconds(f64),
}

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
    /// The back end, one of [`backend::NAMES`].
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

/// A compiled model.
pub struct Compiled {
    /// What was done.
    pub report: Report,
    /// The choices, to be replayed.
    pub plan: Plan,
    /// The sketched graph.
    pub graph: Graph,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) bindings: Vec<Binding>,
}

/// Calibration samples taken to weigh layers, at most.
const WEIGHING_SAMPLES: usize = 32;

/// Allocations tried to meet an error limit.
const ERROR_TRIES: usize = 10;

/// Compiles a model. With samples, half of them calibrate and the other half measures the error that is reported.
pub fn compile(
    source: &Source,
    samples: Option<&Samples>,
    options: &CompileOptions,
    progress: &dyn Progress,
) -> Result<Compiled, DriverError> {
    compile_with(source, samples, options, progress, &mut Dump::none())
}

impl Compiled {
    /// A runner of the sketched graph, for inputs of any shape.
    pub fn runner(&self, threads: usize) -> Runner {
        Runner::new(self.graph.clone(), &self.backend, threads)
    }

    /// The executable for the shapes that were asked for, to run in this process.
    pub fn executable(&self) -> Result<Executable, DriverError> {
        backend::executable(self.builder(true, &mut Dump::none())?.into_parts()?, &*self.backend)
    }

    /// Writes the artifact. With `strip` it does not carry its graph, plan and report.
    pub fn write(&self, path: &Path, strip: bool, dump: &mut Dump) -> Result<(), DriverError> {
        Ok(self.builder(strip, dump)?.write(path)?)
    }

    /// Writes the sketched graph as ONNX, its open dimensions still open.
    pub fn export(&self, path: &Path) -> Result<(), DriverError> {
        export_graph(&self.graph, Some((&self.plan, &self.report)), path)
    }

    fn builder(&self, strip: bool, dump: &mut Dump) -> Result<ArtifactBuilder, DriverError> {
        let mut builder = ArtifactBuilder::new(&self.report.model);
        for binding in &self.bindings {
            build::add_entry(&mut builder, &self.graph, binding, &*self.backend, dump)?;
        }
        if !strip {
            self.add_sources(&mut builder)?;
        }
        Ok(builder)
    }

    /// The text of the graph, and those of its constants that no entry reads as they are.
    fn add_sources(&self, builder: &mut ArtifactBuilder) -> Result<(), DriverError> {
        for n in self.graph.order() {
            if let Op::Const(c) = self.graph.op(n) {
                let contents = c.payload.stored();
                let key = c.payload.key().to_string();
                let stored = builder.constants.stored().iter().any(|s| s.is_named(&key));
                // What is random is drawn again when the text is read.
                let drawn =
                    c.payload.draw().is_some() && contents.elements().len() <= margay_ir::text::MAX_SPLAT;
                if !stored && !drawn {
                    let stored = contents.clone();
                    let constant = margay_loops::Constant { names: vec![key], stored, packed: None };
                    builder.constants.add(&constant, &*self.backend)?;
                }
            }
        }
        let report = serde_json::to_vec_pretty(&self.report)
            .map_err(|e| DriverError::Options(format!("the report cannot be written: {e}")))?;
        builder.source(GRAPH_PIECE, self.graph.to_string().into_bytes());
        builder.source("plan.toml", self.plan.to_toml()?.into_bytes());
        builder.source("report.json", report);
        Ok(())
    }
}

/// As [`compile`], with dumps of the passes.
pub fn compile_with(
    source: &Source,
    samples: Option<&Samples>,
    options: &CompileOptions,
    progress: &dyn Progress,
    dump: &mut Dump,
) -> Result<Compiled, DriverError> {
    let g = &source.graph;
    let backend = &backend::named(&options.backend, &options.target_cpu, options.precision)?;
    let samples = samples.map(|s| s.for_graph(g)).transpose()?;
    let bindings = bindings(g, options, samples.as_ref())?;
    if matches!(options.goal, Goal::Error(_)) && options.plan.is_none() && samples.is_none() {
        let message = "an error limit is checked by running the model: samples are needed (`--calibrate`)";
        return Err(DriverError::Options(message.into()));
    }

    let found = modules(g);
    let plan = options.plan.as_ref();
    let sketching = plan.is_some() || options.goal != Goal::Dense;
    let batch = bound_batch(g).unwrap_or(1);
    let narrow = options.precision != Precision::F32;
    let halves = samples.as_ref().filter(|_| sketching || narrow).map(|s| s.halves(batch)).transpose()?;
    if let Some(plan) = plan {
        let names: Vec<&str> = found.iter().map(|m| m.name.as_str()).collect();
        let calibration = samples.as_ref().map(Samples::hash);
        plan.check(&source.hash, calibration.as_deref(), &names)?;
    }
    let seed = plan.map_or(options.seed, |p| p.header.seed);
    let statistics = match (&halves, sketching) {
        (Some((calibration, _)), true) => {
            Some(calibrate::measure_inputs(g, &found, calibration, backend, options.threads, progress)?)
        }
        _ => None,
    };
    let fitted = if sketching { found.clone() } else { Vec::new() };
    let seed_of = |name: &str| plan.and_then(|p| p.modules.get(name)?.seed).unwrap_or(seed);
    let own = configured(plan)?;
    let mut prospects = fit(g, &fitted, statistics.as_deref(), &seed_of, &own, options.threads, progress)?;
    let bound = build::bind(g, &bindings[0], &mut Dump::none())?;
    price(&mut prospects, &bound);

    let weighing = halves.is_some() && plan.is_none();
    if let (Some((calibration, _)), true) = (&halves, weighing && sketching) {
        let taken = calibration.runs(g, calibrate::BATCH);
        let most = WEIGHING_SAMPLES.div_ceil(bound_batch(g).unwrap_or(calibrate::BATCH));
        let batches = taken.take(most).collect::<Result<Vec<_>, _>>()?;
        weigh(g, &mut prospects, &batches, backend, options.threads, progress)?;
    }

    let dense_program = margay_lower::lower(&bound, &**backend)?;
    let predicted = |p: &Program| p.seconds(&**backend, options.predict_threads);
    let dense_seconds = predicted(&dense_program);
    let checker = match &halves {
        Some((_, held_out)) => Some(Checker::new(g, held_out, backend, options.threads, progress)?),
        None => None,
    };

    let context = Context { source, options, prospects: &prospects, checker: checker.as_ref(), backend };
    let table = table(&prospects, &options.goal, &**backend, options.predict_threads);
    let module_seconds: f64 = table.curves.iter().map(|c| c.dense.seconds).sum();
    let chosen = match (plan, &options.goal) {
        (Some(plan), _) => context.replay(plan, &table)?,
        (None, Goal::Error(limit)) => context.meet_error(*limit, &table, progress)?,
        (None, goal) => within_budget(&table, goal, dense_seconds - module_seconds, weighing)?,
    };

    let header = Header {
        version: plan::FORMAT_VERSION,
        model: source.hash.clone(),
        calibration: samples.as_ref().map(Samples::hash),
        target_cpu: backend.target().to_owned(),
        cost_model: backend.cost_model().to_owned(),
        seed,
    };
    let out_plan = plan.cloned().unwrap_or_else(|| chosen.plan(header));
    let (graph, remarks) = sketch(g, &selection(&prospects, &chosen.choices), dump)?;
    let graph = build::in_precision(graph, options.precision, dump)?;
    let held_out = match &checker {
        Some(c) => Some(c.measure(&graph, backend, options.threads, progress)?),
        None => None,
    };
    if held_out.as_ref().is_some_and(|e| !e.relative_l2.is_finite()) {
        let message = "the outputs of the sketched model are not finite on the held-out samples";
        return Err(DriverError::Measure(message.into()));
    }
    if let (Goal::Error(limit), None, Some(e)) = (&options.goal, plan, &held_out)
        && narrow
        && e.relative_l2 > *limit
    {
        let (name, found) = (options.precision.name(), e.relative_l2);
        let message =
            format!("in {name} the relative error is {found:.2e} without any sketch, above {limit:.2e}");
        return Err(DriverError::Measure(message));
    }
    let sketched_bound = build::bind(&graph, &bindings[0], &mut Dump::none())?;
    let program = margay_lower::lower(&sketched_bound, &**backend)?;
    let report = Report {
        model: source.name.clone(),
        model_hash: source.hash.clone(),
        target_cpu: backend.target().into(),
        cost_model: backend.cost_model().to_owned(),
        threads: options.predict_threads,
        seed,
        precision: options.precision.name().into(),
        goal: goal_text(&options.goal, plan.is_some()),
        bytes_before: dense_program.packed_bytes(),
        bytes_after: program.packed_bytes(),
        flops_before: dense_program.flops(),
        flops_after: program.flops(),
        predicted_ms_before: dense_seconds * 1e3,
        predicted_ms_after: predicted(&program) * 1e3,
        held_out,
        dims: bindings[0].iter().map(|(s, v)| (s.to_string(), *v)).collect(),
        modules: module_reports(&prospects, &chosen, &table, weighing),
        remarks: source
            .remarks
            .iter()
            .chain(&remarks)
            .map(|r| format!("{} at `{}`: {}", r.pass, r.at, r.message))
            .collect(),
    };
    Ok(Compiled { report, plan: out_plan, graph, backend: Arc::clone(backend), bindings })
}

/// The schemes that a plan names, with their settings.
fn configured(plan: Option<&Plan>) -> Result<Configured, DriverError> {
    let choices = plan.into_iter().flat_map(|p| &p.modules).filter(|(_, choice)| !choice.is_dense());
    choices
        .map(|(name, choice)| match scheme_of(choice) {
            Ok(scheme) => Ok((name.clone(), scheme)),
            Err(why) => Err(DriverError::Options(format!("plan: `{name}`: {why}"))),
        })
        .collect()
}

fn goal_text(goal: &Goal, planned: bool) -> String {
    match goal {
        _ if planned => "replay of a plan".into(),
        Goal::Dense => "dense".into(),
        Goal::Error(e) => format!("relative error of the outputs at most {e}"),
        Goal::Bytes(Budget::Fraction(f)) => format!("{}% of the bytes of the weights", f * 100.0),
        Goal::Bytes(Budget::Absolute(n)) => format!("{n} bytes of weights"),
        Goal::Seconds(s) => format!("{} ms predicted", s * 1e3),
    }
}

struct Context<'a> {
    source: &'a Source,
    options: &'a CompileOptions,
    prospects: &'a [Prospect],
    checker: Option<&'a Checker>,
    backend: &'a Arc<dyn Backend>,
}

impl Context<'_> {
    /// The choices of a plan.
    fn replay(&self, plan: &Plan, table: &Table) -> Result<Allocation, DriverError> {
        let mut choices = std::collections::BTreeMap::new();
        for (p, curve) in self.prospects.iter().zip(&table.curves) {
            let choice = plan.modules.get(&p.module.name).filter(|c| !c.is_dense());
            let candidate = match choice {
                None => curve.dense.clone(),
                Some(choice) => {
                    let offer = p.offers.iter().find(|o| o.scheme == choice.scheme).ok_or_else(|| {
                        let (scheme, kind) = (&choice.scheme, p.module.kind.name());
                        let why = format!("scheme `{scheme}` is not for {kind} layers");
                        DriverError::Options(format!("plan: `{}`: {why}", p.module.name))
                    })?;
                    let point = offer.points.iter().find(|q| q.rank == choice.rank).ok_or_else(|| {
                        DriverError::Options(format!(
                            "plan: `{}`: rank {} is not offered, expected 1 to {}",
                            p.module.name,
                            choice.rank,
                            offer.points.last().map_or(0, |q| q.rank)
                        ))
                    })?;
                    p.candidate(offer, point, &**self.backend, self.options.predict_threads)
                }
            };
            choices.insert(p.module.name.clone(), candidate);
        }
        Ok(Allocation {
            total_error: choices.values().map(|c| c.error).sum(),
            total_bytes: choices.values().map(|c| c.bytes).sum(),
            total_flops: choices.values().map(|c| c.flops).sum(),
            total_seconds: choices.values().map(|c| c.seconds).sum(),
            choices,
        })
    }

    /// The fastest choice whose measured error on held-out samples stays below a limit. The predicted error is a sum over
    /// modules; how far the measured one is from it is found by bisection.
    fn meet_error(
        &self,
        limit: f64,
        table: &Table,
        progress: &dyn Progress,
    ) -> Result<Allocation, DriverError> {
        let Some(checker) = self.checker else {
            return Err(DriverError::Options("an error limit needs samples".into()));
        };
        let mut best = least_time(table, 0.0)?;
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut asked = limit * limit;
        let mut measured: Option<(Allocation, f64)> = None;
        for _ in 0..ERROR_TRIES {
            let candidate = least_time(table, asked)?;
            let chosen = selection(self.prospects, &candidate.choices);
            let error =
                if let Some((_, e)) = measured.as_ref().filter(|(a, _)| a.choices == candidate.choices) {
                    *e
                } else if chosen.choices.is_empty() && self.options.precision == Precision::F32 {
                    0.0
                } else {
                    let (graph, _) = sketch(&self.source.graph, &chosen, &mut Dump::none())?;
                    let graph = build::in_precision(graph, self.options.precision, &mut Dump::none())?;
                    checker.measure(&graph, self.backend, self.options.threads, progress)?.relative_l2
                };
            measured = Some((candidate.clone(), error));
            if error <= limit {
                if candidate.total_seconds <= best.total_seconds {
                    best = candidate;
                }
                low = asked;
            } else {
                high = asked;
            }
            // Towards the limit by the ratio of what was measured, inside the bracket.
            let scaled = if error.is_finite() && error > 0.0 {
                asked * (limit / error).powi(2) * 0.98
            } else {
                asked * 8.0
            };
            asked = match (low, high.is_finite()) {
                (_, false) => scaled.max(asked * 1.05),
                (l, true) if scaled > l && scaled < high => scaled,
                (l, true) => 0.5 * (l + high),
            };
            if high.is_finite() && high - low < 0.02 * high {
                break;
            }
        }
        Ok(best)
    }
}
