//! The schemes that look at the sites: all that may be chosen, or those that a plan names.

use std::collections::HashMap;
use std::sync::Arc;

use margay_ir::{NodeId, Remark, Value};
use margay_loops::Precision;
use margay_passes::sketch::{
    Context, DecompositionKey, Decompositions, Fitted, Known, Moments, Rows, SCHEMES, Scheme, scheme,
};
use margay_plan::Settings;
use margay_randnla::{Gram, LowRank, RandnlaError, Subset};
use margay_tensor::Tensor;

use super::Job;
use super::calibrate::{GRADIENT_ROWS, calibrate, calibrate_gradients, sampled};
use super::split::{Split, enough};
use crate::cache::{joined, pieces};
use crate::samples::several;
use crate::{DriverError, Kind, parallel};

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
    /// What of the site stays as it is, whatever is chosen.
    pub(crate) remarks: Vec<Remark>,
}

/// What is to be fitted, in the order of the sites: every scheme that may be chosen, or what a plan names.
///
/// # Errors
/// [`DriverError::Options`] with all that is wrong with a plan: schemes that do not take their sites, settings that these do not
/// have, and sites that share a weight.
pub(crate) fn tasks(job: &Job<'_>) -> Result<Vec<Task>, DriverError> {
    let (sites, seed) = (&job.sites, job.options.seed());
    if !job.options.sketches() {
        return Ok(Vec::new());
    }
    let narrow = job.options.precision == Precision::Int8;
    let Some(plan) = &job.options.plan else {
        let choosable = |site: usize| {
            let takes = move |s: &&&'static dyn Scheme| sites[site].schemes.contains(&s.facts().name);
            let offered = SCHEMES.iter().filter(takes).filter(|s| s.facts().only_by_name.is_none());
            let offered = offered.filter(move |s| narrow || !s.facts().is_storage);
            offered.map(move |s| Task { site, scheme: *s, settings: None, seed })
        };
        return Ok((0..sites.len()).flat_map(choosable).collect());
    };
    let (mut tasks, mut problems): (Vec<Task>, Vec<String>) = Default::default();
    for (i, site) in sites.iter().enumerate() {
        let choice = plan.sites.get(&site.name).filter(|choice| !choice.is_dense());
        let Some(choice) = choice else { continue };
        let mut refused = |why: String| problems.push(format!("plan: `{}`: {why}", site.name));
        let found = scheme(&choice.scheme).filter(|s| site.schemes.contains(&s.facts().name));
        let Some(scheme) = found else {
            refused(format!("scheme `{}` is not for {} layers", choice.scheme, site.kind));
            continue;
        };
        let other = tasks.iter().find(|t| sites[t.site].weights.iter().any(|w| site.weights.contains(w)));
        if let Some(other) = other {
            refused(format!("`{}` replaces one of its weights already", sites[other.site].name));
            continue;
        }
        if let Err(why) = scheme.check_at(job.graph(), site, &choice.settings) {
            refused(why);
            continue;
        }
        let settings = Some(choice.settings.clone());
        tasks.push(Task { site: i, scheme, settings, seed: choice.seed.unwrap_or(seed) });
    }
    all_right(&problems)?;
    Ok(tasks)
}

/// An error that tells all problems of a plan, if there are any.
fn all_right(problems: &[String]) -> Result<(), DriverError> {
    match problems.is_empty() {
        true => Ok(()),
        false => Err(DriverError::Options(several(problems, "; "))),
    }
}

/// What calibration measured for tasks.
pub(crate) struct Measured {
    /// What their sites ask for: one list per task.
    inputs: Vec<Vec<Arc<Moments>>>,
    /// What their sites were in a few runs: one list per task, of the runs.
    samples: Vec<Vec<Vec<Tensor>>>,
    gradients: Gradients,
}

/// What is kept of that when tasks are fitted.
pub(crate) struct Gradients {
    /// By site, the gradients of the outputs by what it gives; absent where an operator has no derivative.
    moments: Option<Vec<Option<Arc<Moments>>>>,
    /// Why there are no gradients.
    pub(crate) remark: Option<Remark>,
}

/// Measures what the sites of the tasks ask for, on the samples that calibrate.
pub(crate) fn measured(
    job: &Job<'_>,
    tasks: &[Task],
    split: Option<&Split>,
) -> Result<Option<Measured>, DriverError> {
    let Some(split) = split.filter(|_| !tasks.is_empty()) else { return Ok(None) };
    let measures = |t: &Task| job.sites[t.site].measures.iter();
    let requests: Vec<&[Rows]> = tasks.iter().flat_map(measures).map(Vec::as_slice).collect();
    let samples = &split.calibration;
    let rows = job.sites.iter().flat_map(|site| site.measures.iter().flatten());
    let probes: Vec<Value> = rows.map(|asked| asked.value).collect();
    let measuring = job.measuring();
    let mut all = calibrate(job.graph(), &probes, &requests, samples, &measuring)?.into_iter();
    let mut next = || all.next().flatten().expect("sites ask for some rows");
    let inputs = tasks.iter().map(|t| measures(t).map(|_| next()).collect()).collect();
    let asked: Vec<&[Value]> = tasks.iter().map(|t| job.sites[t.site].samples.as_slice()).collect();
    let seen = sampled(job.graph(), &asked, samples, &measuring)?;
    // Moments of longer rows would be larger than the weight.
    let results = job.sites.iter().map(|site| match site.d_out <= Gram::MOST_DENSE {
        true => site.results.as_slice(),
        false => &[],
    });
    let results: Vec<&[Rows]> = results.collect();
    let counted = job.options.errors.restricted(job.graph());
    let (gradients, remark) = match calibrate_gradients(
        &counted,
        &results,
        &enough(job, samples, GRADIENT_ROWS)?,
        job.options.seed(),
        &measuring,
    ) {
        Ok(found) => (Some(found), None),
        // Without derivatives, errors of a layer's outputs all weigh the same.
        Err(error) if error.kind() == Kind::Usage => {
            let message = format!("errors of outputs of a layer all weigh the same: {error}");
            let at = job.source.name.clone();
            (None, Some(Remark { pass: "gradients", at, message, declined: true }))
        }
        Err(error) => return Err(error),
    };
    let gradients = Gradients { moments: gradients, remark };
    Ok(Some(Measured { inputs, samples: seen, gradients }))
}

impl Measured {
    /// By task, the fewest rows that its layer was calibrated on.
    pub(crate) fn rows(&self) -> Vec<u64> {
        let fewest = |all: &Vec<Arc<Moments>>| all.iter().map(|m| m.gram().count()).min().unwrap_or(0);
        self.inputs.iter().map(fewest).collect()
    }

    /// What is left once tasks are fitted: inputs take more memory than the model.
    pub(crate) fn into_gradients(self) -> Gradients {
        self.gradients
    }
}

impl Gradients {
    /// What errors of a site weigh by; `None` where outputs do not depend on it, as far as was seen.
    pub(crate) fn metric(&self, site: usize) -> Option<&Arc<Moments>> {
        let found = self.moments.as_ref().and_then(|all| all[site].as_ref());
        found.filter(|moments| moments.gram().count() > 0)
    }
}

/// Lets the schemes look at their sites.
///
/// # Errors
/// [`DriverError::Factorize`], and [`DriverError::Options`] with all settings of a plan that are not offered.
pub(crate) fn fit(
    job: &Job<'_>,
    tasks: Vec<Task>,
    measured: Option<&Measured>,
) -> Result<Vec<Fit>, DriverError> {
    let (g, sites, decompositions) = (job.graph(), &job.sites, &known_decompositions(job, measured));
    let before = (decompositions.low_rank.all().len(), decompositions.subsets.all().len());
    let fitted = parallel(job.threads(), tasks.len(), job.progress, "factorizing weights", |i| {
        let task = &tasks[i];
        let moments = measured.map(|m| m.inputs[i].as_slice());
        let samples = measured.map(|m| m.samples[i].as_slice()).filter(|runs| !runs.is_empty());
        let metric = measured.and_then(|m| m.gradients.metric(task.site));
        let (site, seed) = (&sites[task.site], task.seed);
        let fitted =
            task.scheme.fit(&Context { graph: g, site, moments, samples, metric, decompositions, seed })?;
        let offered = match &task.settings {
            None => Ok((fitted.candidates(), Vec::new())),
            Some(settings) => fitted.resolved(settings).map(|found| (vec![found.settings], found.remarks)),
        };
        // A scheme may put off what its errors need.
        let offered = offered.and_then(|(settings, remarks)| {
            settings.iter().try_for_each(|settings| fitted.squared_error(settings).map(drop))?;
            Ok((settings, remarks))
        });
        Ok::<_, RandnlaError>((fitted, offered))
    });
    let (low_rank, subsets) = (decompositions.low_rank.all(), decompositions.subsets.all());
    if low_rank.len() > before.0 {
        keep(job, measured, LOW_RANK, &low_rank, LowRank::to_bytes);
    }
    if subsets.len() > before.1 {
        keep(job, measured, SUBSETS, &subsets, Subset::to_bytes);
    }
    let (mut made, mut problems) = (Vec::new(), Vec::new());
    for (task, fitted) in tasks.into_iter().zip(fitted) {
        let name = &sites[task.site].name;
        let factorized = |error| DriverError::Factorize { module: name.clone(), error };
        let (fitted, offered) = fitted.map_err(factorized)?;
        let (settings, remarks) = match offered {
            Ok(offered) => offered,
            Err(why) => {
                problems.push(format!("plan: `{name}`: {why}"));
                continue;
            }
        };
        let (site, scheme, seed) = (task.site, task.scheme.facts().name, task.seed);
        let remark = |message| Remark { pass: scheme, at: name.clone(), message, declined: true };
        let remarks = remarks.into_iter().map(remark).collect();
        made.push(Fit { site, scheme, seed, fitted: fitted.into(), settings, remarks });
    }
    all_right(&problems)?;
    Ok(made)
}

/// What decompositions follow from.
fn decompositions_key(job: &Job<'_>, measured: Option<&Measured>) -> String {
    let metric = measured.is_some_and(|m| m.gradients.moments.is_some());
    format!("measured {}, metric {metric}\n{}", measured.is_some(), job.basis)
}

/// The names of the kinds of decompositions that are kept.
const LOW_RANK: &str = "decompositions";
const SUBSETS: &str = "subsets";

/// The decompositions that were kept.
fn known_decompositions(job: &Job<'_>, measured: Option<&Measured>) -> Decompositions {
    Decompositions {
        low_rank: known(job, measured, LOW_RANK, LowRank::from_bytes),
        subsets: known(job, measured, SUBSETS, Subset::from_bytes),
    }
}

/// Those of one kind. Nodes are counted in the order of the graph.
fn known<T>(
    job: &Job<'_>,
    measured: Option<&Measured>,
    kind: &str,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Known<T> {
    let Some(cache) = &job.cache else { return Known::default() };
    let order = job.graph().order();
    let one = |bytes: &[u8]| -> Option<(DecompositionKey, T)> {
        let [seed, nodes, decomposition] = *pieces(bytes)?.as_slice() else { return None };
        let node = |word: &[u8]| {
            let position = u64::from_le_bytes(word.try_into().ok()?);
            order.get(usize::try_from(position).ok()?).copied()
        };
        let nodes = nodes.chunks(8).map(node).collect::<Option<Vec<_>>>()?;
        Some(((nodes, u64::from_le_bytes(seed.try_into().ok()?)), read(decomposition)?))
    };
    let kept = cache.get(kind, &decompositions_key(job, measured));
    let known = kept.as_deref().and_then(pieces).unwrap_or_default();
    Known::of(known.into_iter().filter_map(one))
}

fn keep<T>(
    job: &Job<'_>,
    measured: Option<&Measured>,
    kind: &str,
    known: &[(DecompositionKey, Arc<T>)],
    bytes: impl Fn(&T) -> Vec<u8>,
) {
    let Some(cache) = &job.cache else { return };
    let order: HashMap<NodeId, usize> = job.graph().order().into_iter().zip(0..).collect();
    let one = |((nodes, seed), found): &(DecompositionKey, Arc<T>)| {
        let nodes: Vec<u8> = nodes.iter().flat_map(|n| (order[n] as u64).to_le_bytes()).collect();
        joined([&seed.to_le_bytes()[..], &nodes, &bytes(found)])
    };
    let all: Vec<Vec<u8>> = known.iter().map(one).collect();
    let all = joined(all.iter().map(Vec::as_slice));
    cache.put(kind, &decompositions_key(job, measured), &all);
}
