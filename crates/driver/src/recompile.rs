//! A sketched graph whose constants have changed since it was compiled, compiled again.

use margay_artifact::Artifact;
use margay_ir::Graph;
use margay_passes::sketch::read_plan;
use margay_plan::Plan;
use margay_tensor::Binding;

use crate::compile::check::Checker;
use crate::{Compiled, DriverError, ErrorMeasure, ErrorScope, Progress, Report, Samples, backend};

/// What an artifact holds, with another graph in place of its own: the same processor class, dimensions, plan and
/// report, but for the error on held-out samples, which is that of the graph.
///
/// # Errors
/// [`DriverError::Stripped`] for an artifact that was stripped; [`DriverError::Artifact`] for one that is damaged.
pub fn recompile(
    artifact: &Artifact,
    graph: Graph,
    held_out: Option<ErrorMeasure>,
    held_out_rows: Vec<usize>,
) -> Result<Compiled, DriverError> {
    let (plan, report) = plan_and_report(artifact)?;
    let description = artifact.description();
    let binding = |symbols: &std::collections::BTreeMap<String, i64>| -> Binding {
        symbols.iter().map(|(name, v)| (name.as_str().into(), *v)).collect()
    };
    let entries = || description.entries.iter().map(|e| &e.parts);
    let closed = entries().filter(|parts| parts.open.is_closed());
    let bindings = closed.map(|parts| binding(&parts.symbols)).collect();
    let open = entries().filter(|parts| !parts.open.is_closed());
    let ranged = open.flat_map(|parts| {
        parts.open.points().into_iter().map(|point| {
            let mut all = binding(&parts.symbols);
            all.extend(parts.open.symbols.iter().cloned().zip(point));
            all
        })
    });
    let ranged: Vec<Binding> = ranged.collect();
    Ok(Compiled {
        report: Report {
            held_out,
            held_out_rows,
            refits: Vec::new(),
            metric: None,
            // They were about the error before.
            warnings: Vec::new(),
            ..report
        },
        plan,
        curves: Vec::new(),
        graph,
        backend: backend::of_artifact(artifact)?,
        bindings,
        ranges: vec![ranged].into_iter().filter(|points| !points.is_empty()).collect(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// The plan and the report that an artifact carries.
fn plan_and_report(artifact: &Artifact) -> Result<(Plan, Report), DriverError> {
    let stripped = || DriverError::Stripped { path: artifact.path().to_path_buf(), lacks: "plan and report" };
    let piece = |name: &str| artifact.source(name)?.ok_or_else(stripped);
    let plan = read_plan(&String::from_utf8_lossy(piece("plan.toml")?))?;
    let report = serde_json::from_slice(piece("report.json")?)
        .map_err(|e| DriverError::Report { path: artifact.path().to_path_buf(), message: e.to_string() })?;
    Ok((plan, report))
}

/// The numbers of the samples that were held out when an artifact was compiled, if it was compiled with these samples, in the
/// order of its inputs; none if it was not, or does not say.
///
/// # Errors
/// [`DriverError::Artifact`] for an artifact that is damaged.
pub fn held_out_rows(artifact: &Artifact, samples: &Samples) -> Result<Vec<usize>, DriverError> {
    match plan_and_report(artifact) {
        Ok((plan, report)) => {
            let same = plan.header.calibration == Some(samples.hash());
            Ok(if same { report.held_out_rows } else { Vec::new() })
        }
        Err(DriverError::Stripped { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The error of a graph against a reference on samples, as reports state it.
///
/// # Errors
/// [`DriverError::Samples`] where they fill no run; [`DriverError::Measure`] where the reference is not finite.
pub fn measure_error(
    reference: &Graph,
    graph: &Graph,
    samples: &Samples,
    scope: &ErrorScope,
    threads: usize,
    progress: &dyn Progress,
) -> Result<ErrorMeasure, DriverError> {
    let batch = samples.bound_batch(reference).unwrap_or(1);
    if samples.rows() < batch {
        let (expected, found) = (batch, samples.rows());
        return Err(DriverError::Samples(format!("expected at least {expected}, found {found}")));
    }
    let backend = &backend::native();
    Checker::new(reference, samples, scope, backend, threads, progress)?
        .measure(graph, backend, threads, progress)
}
