//! The schemes that look at the sites: all that may be chosen, or those that a plan names.

use std::sync::Arc;

use margay_ir::Value;
use margay_loops::Precision;
use margay_passes::sketch::{
    Context, Decompositions, Fitted, Moments, QuantizedScheme, Rows, SCHEMES, Scheme, scheme,
};
use margay_plan::Settings;
use margay_randnla::RandnlaError;

use super::Job;
use super::calibrate::calibrate;
use super::split::Split;
use crate::{DriverError, parallel};

/// A scheme that is to look at a site.
pub(crate) struct Task {
    /// Position of the site.
    pub(crate) site: usize,
    scheme: &'static dyn Scheme,
    /// What the plan says; without it the scheme offers what it has.
    settings: Option<Settings>,
    seed: u64,
}

/// A scheme that has looked at a site.
pub(crate) struct Fit {
    /// Position of the site.
    pub(crate) site: usize,
    /// The scheme's name.
    pub(crate) scheme: &'static str,
    /// Names its random numbers.
    pub(crate) seed: u64,
    pub(crate) fitted: Arc<dyn Fitted>,
    /// The settings to choose among.
    pub(crate) settings: Vec<Settings>,
}

/// What is to be fitted, in the order of the sites: every scheme that may be chosen, or what a plan names.
///
/// # Errors
/// [`DriverError::Options`] for a plan with a scheme that does not take the site, or with sites that share a weight.
pub(crate) fn tasks(job: &Job<'_>) -> Result<Vec<Task>, DriverError> {
    let (sites, seed) = (&job.sites, job.options.seed());
    if job.rounds_with_feedback() {
        let scheme: &'static dyn Scheme = &QuantizedScheme;
        let takes = |site: &usize| sites[*site].schemes.contains(&scheme.name());
        let settings = Some(QuantizedScheme::uncorrected());
        let task = |site| Task { site, scheme, settings: settings.clone(), seed };
        return Ok((0..sites.len()).filter(takes).map(task).collect());
    }
    if !job.options.sketches() {
        return Ok(Vec::new());
    }
    let narrow = job.options.precision == Precision::Int8;
    let Some(plan) = &job.options.plan else {
        let choosable = |site: usize| {
            let takes = move |s: &&&'static dyn Scheme| sites[site].schemes.contains(&s.name());
            let offered = SCHEMES.iter().filter(takes).filter(|s| s.only_by_name().is_none());
            let offered = offered.filter(move |s| narrow || !s.is_storage());
            offered.map(move |s| Task { site, scheme: *s, settings: None, seed })
        };
        return Ok((0..sites.len()).flat_map(choosable).collect());
    };
    let mut tasks: Vec<Task> = Vec::new();
    for (i, site) in sites.iter().enumerate() {
        let choice = plan.sites.get(&site.name).filter(|choice| !choice.is_dense());
        let Some(choice) = choice else { continue };
        let refused = |why: String| DriverError::Options(format!("plan: `{}`: {why}", site.name));
        let found = scheme(&choice.scheme).filter(|s| site.schemes.contains(&s.name()));
        let scheme = found
            .ok_or_else(|| refused(format!("scheme `{}` is not for {} layers", choice.scheme, site.kind)))?;
        let other = tasks.iter().find(|t| sites[t.site].weights.iter().any(|w| site.weights.contains(w)));
        if let Some(other) = other {
            return Err(refused(format!("`{}` replaces one of its weights already", sites[other.site].name)));
        }
        let settings = Some(choice.settings.clone());
        tasks.push(Task { site: i, scheme, settings, seed: choice.seed.unwrap_or(seed) });
    }
    Ok(tasks)
}

/// Measures what the sites of the tasks ask for, on the samples that calibrate; one list per task.
pub(crate) fn measured(
    job: &Job<'_>,
    tasks: &[Task],
    split: Option<&Split>,
) -> Result<Option<Vec<Vec<Arc<Moments>>>>, DriverError> {
    let Some(split) = split.filter(|_| !tasks.is_empty()) else { return Ok(None) };
    let measures = |t: &Task| job.sites[t.site].measures.iter();
    let requests: Vec<&[Rows]> = tasks.iter().flat_map(measures).map(Vec::as_slice).collect();
    let (samples, backend) = (&split.calibration, &job.backend);
    let rows = job.sites.iter().flat_map(|site| site.measures.iter().flatten());
    let probes: Vec<Value> = rows.map(|asked| asked.value).collect();
    let (threads, progress) = (job.threads(), job.progress);
    let all = calibrate(job.graph(), &probes, &requests, samples, backend, threads, progress)?;
    let mut all = all.into_iter();
    Ok(Some(tasks.iter().map(|t| all.by_ref().take(measures(t).len()).collect()).collect()))
}

/// Lets the schemes look at their sites.
///
/// # Errors
/// [`DriverError::Factorize`], and [`DriverError::Options`] for settings of a plan that are not offered.
pub(crate) fn fit(
    job: &Job<'_>,
    tasks: Vec<Task>,
    moments: Option<Vec<Vec<Arc<Moments>>>>,
) -> Result<Vec<Fit>, DriverError> {
    let (g, sites, decompositions) = (job.graph(), &job.sites, &Decompositions::default());
    let fitted = parallel(job.threads(), tasks.len(), job.progress, "factorizing weights", |i| {
        let task = &tasks[i];
        let moments = moments.as_ref().map(|m| m[i].as_slice());
        let (site, seed) = (&sites[task.site], task.seed);
        let fitted = task.scheme.fit(&Context { graph: g, site, moments, decompositions, seed })?;
        // A scheme may put off what its errors need.
        let settings = task.settings.clone().map_or_else(|| fitted.candidates(), |settings| vec![settings]);
        let offered = settings.iter().try_for_each(|settings| fitted.squared_error(settings).map(drop));
        Ok::<_, RandnlaError>((fitted, settings, offered))
    });
    let made = tasks.into_iter().zip(fitted).map(|(task, fitted)| {
        let name = &sites[task.site].name;
        let factorized = |error| DriverError::Factorize { module: name.clone(), error };
        let (fitted, settings, offered) = fitted.map_err(factorized)?;
        offered.map_err(|why| DriverError::Options(format!("plan: `{name}`: {why}")))?;
        let (site, scheme, seed) = (task.site, task.scheme.name(), task.seed);
        Ok(Fit { site, scheme, seed, fitted: fitted.into(), settings })
    });
    made.collect()
}
