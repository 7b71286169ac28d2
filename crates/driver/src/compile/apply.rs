//! The graph with sites replaced, their factors refitted to what the layers before them have become, and constants stored as
//! was asked for.
//!
//! Constants that get a few bits are rounded with error feedback for what their products read in the sketched graph, so that
//! weights and factors are treated alike.

use std::cell::RefCell;

use margay_ir::{Graph, Remark, Stage};
use margay_passes::sketch::{Rows, Site};
use margay_passes::{ApplyPlan, Pipeline, PipelineItem, StoreConstants};
use margay_plan::{Allocation, Choice, Settings};

use super::Job;
use super::calibrate::{Measuring, calibrate};
use super::fit::{Fit, Gradients};
use super::split::{Split, drawn};
use crate::{
    DriverError, Dump, Interruption, LayerRefit, Metrics, RefitData, Refitted, Samples, build, refit_layers,
};

/// One of so many calibration samples decides how far layers are refitted, before they are fitted to all.
const DECIDE_EVERY: usize = 4;

/// The pass that makes the choices of an allocation.
pub(crate) fn pass_of(sites: &[Site], fits: &[Fit], allocation: &Allocation) -> ApplyPlan {
    let mut pass = ApplyPlan::default();
    for fit in fits {
        let name = &sites[fit.site].name;
        let chosen = allocation.choices.get(name).filter(|c| c.choice.scheme == fit.scheme);
        if let Some(candidate) = chosen {
            add(&mut pass, name, fit, &candidate.choice.settings);
        }
    }
    pass
}

/// The pass that replaces one site.
pub(crate) fn alone(site: &Site, fit: &Fit, settings: &Settings) -> ApplyPlan {
    let mut pass = ApplyPlan::default();
    add(&mut pass, &site.name, fit, settings);
    pass
}

fn add(pass: &mut ApplyPlan, site: &str, fit: &Fit, settings: &Settings) {
    let (scheme, settings) = (fit.scheme.to_owned(), settings.clone());
    let choice = Choice { scheme, settings, storage: None, seed: Some(fit.seed) };
    pass.choices.insert(site.to_owned(), choice);
    pass.fitted.insert(site.to_owned(), fit.fitted.clone());
}

/// A graph with sites replaced, and what passes declined.
pub(crate) struct Sketched {
    pub(crate) graph: Graph,
    pub(crate) remarks: Vec<Remark>,
    /// What the refit made of each layer.
    pub(crate) refits: Vec<LayerRefit>,
}

/// What factors are refitted with.
pub(crate) struct Refit {
    train: Samples,
    decide: Samples,
    metrics: Metrics,
    /// What became of the last graphs, by the hash of their texts, which name constants by all that they follow from: a search
    /// ends with one that it has refitted.
    last: RefCell<Vec<(blake3::Hash, Refitted)>>,
}

/// Refitted graphs that are kept.
const KEPT: usize = 2;

impl Refit {
    /// `None` without samples, or with too few of them to decide by.
    pub(crate) fn new(
        job: &Job<'_>,
        split: Option<&Split>,
        gradients: Option<&Gradients>,
    ) -> Result<Option<Refit>, DriverError> {
        let (Some(split), Some(gradients)) = (split, gradients) else { return Ok(None) };
        let samples = &split.calibration;
        let batch = samples.bound_batch(job.graph()).unwrap_or(1);
        let count = (samples.rows() / DECIDE_EVERY).max(batch);
        if samples.rows() < count + batch {
            return Ok(None);
        }
        let (train, decide) = drawn(samples.rows(), count, job.options.seed(), "refit");
        let mut metrics = Metrics::default();
        for (i, site) in job.sites.iter().enumerate().filter(|(_, site)| site.weights.len() == 1) {
            let metric = gradients.metric(i);
            metrics.extend(site.nodes.iter().filter_map(|n| Some((*n, metric?.clone()))));
        }
        let (train, decide) = (samples.part(&train)?, samples.part(&decide)?);
        Ok(Some(Refit { train, decide, metrics, last: RefCell::default() }))
    }

    /// The sketched graph with refitted factors.
    fn refitted(&self, job: &Job<'_>, sketched: &Graph) -> Result<Refitted, DriverError> {
        let key = blake3::hash(sketched.to_string().as_bytes());
        if let Some((_, known)) = self.last.borrow().iter().find(|(other, _)| *other == key) {
            return Ok(known.clone());
        }
        let data = RefitData {
            teacher: job.graph(),
            train: &self.train,
            held_out: &self.decide,
            fit_to_both: true,
            metrics: &self.metrics,
            mask: &job.mask,
            padding: None,
            backend: &job.measures_on,
            threads: job.threads(),
            interruption: &Interruption::never(),
        };
        let done = refit_layers(sketched, &data, job.progress)?;
        let mut last = self.last.borrow_mut();
        last.truncate(KEPT - 1);
        last.insert(0, (key, done.clone()));
        Ok(done)
    }
}

/// What is done once sites are replaced.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// The samples that constants of a few bits are rounded for.
    pub(crate) split: Option<&'a Split>,
    /// What factors are refitted with.
    pub(crate) refit: Option<&'a Refit>,
}

impl<'a> Finish<'a> {
    /// The same, with factors as schemes found them.
    pub(crate) fn without_refit(self) -> Finish<'a> {
        Finish { refit: None, ..self }
    }
}

/// Replaces sites, refits their factors, and then stores constants as the options and the plan say.
pub(crate) fn apply(
    job: &Job<'_>,
    pass: ApplyPlan,
    finish: Finish<'_>,
    dump: &mut Dump,
) -> Result<Sketched, DriverError> {
    let sketches = !pass.choices.is_empty();
    let Sketched { mut graph, mut remarks, mut refits } = replaced(job.graph(), pass, dump)?;
    if let Some(refit) = finish.refit.filter(|_| sketches) {
        let done = refit.refitted(job, &graph)?;
        (graph, refits) = (done.graph, done.reports);
        dump.graph("refit", &graph);
    }
    let storage = storage_for(job, &mut graph, finish.split, dump)?;
    let (graph, more) = build::stored(graph, &storage, dump)?;
    remarks.extend(more);
    Ok(Sketched { graph, remarks, refits })
}

/// How constants of a sketched graph are stored, with what was measured of the products whose constants get a few bits.
fn storage_for(
    job: &Job<'_>,
    g: &mut Graph,
    split: Option<&Split>,
    dump: &mut Dump,
) -> Result<StoreConstants, DriverError> {
    let mut storage = job.storage.clone();
    let Some(split) = split.filter(|_| storage != StoreConstants::default()) else { return Ok(storage) };
    // What is measured are the constants as they will be stored.
    build::joined(g, &storage, dump)?;
    let wanted = storage.to_measure(g);
    if wanted.is_empty() {
        return Ok(storage);
    }
    let requests: Vec<&[Rows]> = wanted.iter().map(|(_, rows)| rows.as_slice()).collect();
    // What is kept there is of the model, and not of this graph.
    let measuring = Measuring { cache: None, ..job.measuring() };
    let moments = calibrate(g, &[], &requests, &split.calibration, &measuring)?;
    let found = wanted.into_iter().zip(moments).filter_map(|((constant, _), m)| Some((constant, m?)));
    storage.inputs = found.filter(|(_, moments)| moments.gram().count() > 0).collect();
    Ok(storage)
}

/// Replaces sites.
pub(crate) fn replaced(g: &Graph, pass: ApplyPlan, dump: &mut Dump) -> Result<Sketched, DriverError> {
    let mut graph = g.clone();
    let pipeline =
        Pipeline::new(vec![PipelineItem::Run(Box::new(pass)), PipelineItem::Reach(Stage::Sketched)]);
    let remarks = dump.run(&pipeline, &mut graph)?;
    Ok(Sketched { graph, remarks, refits: Vec::new() })
}
