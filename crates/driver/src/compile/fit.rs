//! The schemes that look at the sites: all that may be chosen, or those that a plan names.

use std::sync::Arc;

use margay_ir::Graph;
use margay_loops::Backend;
use margay_passes::sketch::{Context, Fitted, Moments, SCHEMES, Scheme, Site, scheme};
use margay_plan::{Plan, Settings};

use super::calibrate::calibrate;
use crate::{DriverError, Progress, Samples, parallel};

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
pub(crate) fn tasks(sites: &[Site], plan: Option<&Plan>, seed: u64) -> Result<Vec<Task>, DriverError> {
    let Some(plan) = plan else {
        let choosable = |site: usize| {
            let takes = move |s: &&&'static dyn Scheme| sites[site].schemes.contains(&s.name());
            let offered = SCHEMES.iter().filter(takes).filter(|s| s.only_by_name().is_none());
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

/// Measures what the sites of the tasks ask for; one list per task.
pub(crate) fn measured(
    g: &Graph,
    sites: &[Site],
    tasks: &[Task],
    samples: &Samples,
    (backend, threads): (&Arc<dyn Backend>, usize),
    progress: &dyn Progress,
) -> Result<Vec<Vec<Arc<Moments>>>, DriverError> {
    let measures = |t: &Task| sites[t.site].measures.iter();
    let requests: Vec<&[margay_passes::sketch::Rows]> =
        tasks.iter().flat_map(measures).map(Vec::as_slice).collect();
    let mut all = calibrate(g, &requests, samples, backend, threads, progress)?.into_iter();
    Ok(tasks.iter().map(|t| all.by_ref().take(measures(t).len()).collect()).collect())
}

/// Lets the schemes look at their sites.
///
/// # Errors
/// [`DriverError::Factorize`], and [`DriverError::Options`] for settings of a plan that are not offered.
pub(crate) fn fit(
    g: &Graph,
    sites: &[Site],
    tasks: Vec<Task>,
    moments: Option<&[Vec<Arc<Moments>>]>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Fit>, DriverError> {
    let fitted = parallel(threads, tasks.len(), progress, "factorizing weights", |i| {
        let task = &tasks[i];
        let moments = moments.map(|m| m[i].as_slice());
        task.scheme.fit(&Context { graph: g, site: &sites[task.site], moments, seed: task.seed })
    });
    let made = tasks.into_iter().zip(fitted).map(|(task, fitted)| {
        let name = &sites[task.site].name;
        let fitted = fitted.map_err(|error| DriverError::Factorize { module: name.clone(), error })?;
        let settings = match task.settings {
            None => fitted.candidates(),
            Some(settings) => {
                let offered = fitted.squared_error(&settings);
                offered.map_err(|why| DriverError::Options(format!("plan: `{name}`: {why}")))?;
                vec![settings]
            }
        };
        let (site, scheme, seed) = (task.site, task.scheme.name(), task.seed);
        Ok(Fit { site, scheme, seed, fitted: fitted.into(), settings })
    });
    made.collect()
}
