//! The graph with sites replaced, and their factors refitted to what the layers before them have become.

use std::cell::RefCell;

use margay_ir::{Graph, Remark, Stage};
use margay_passes::sketch::Site;
use margay_passes::{ApplyPlan, Pipeline, PipelineItem};
use margay_plan::{Allocation, Choice, Settings};

use super::Job;
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

/// Replaces sites, refits their factors, and then stores constants as the options and the plan say.
pub(crate) fn apply(
    job: &Job<'_>,
    pass: ApplyPlan,
    refit: Option<&Refit>,
    dump: &mut Dump,
) -> Result<Sketched, DriverError> {
    let sketches = !pass.choices.is_empty();
    let Sketched { mut graph, mut remarks, mut refits } = replaced(job.graph(), pass, dump)?;
    if let Some(refit) = refit.filter(|_| sketches) {
        let done = refit.refitted(job, &graph)?;
        (graph, refits) = (done.graph, done.reports);
        dump.graph("refit", &graph);
    }
    let (graph, more) = build::stored(graph, &job.storage, dump)?;
    remarks.extend(more);
    Ok(Sketched { graph, remarks, refits })
}

/// Replaces sites.
pub(crate) fn replaced(g: &Graph, pass: ApplyPlan, dump: &mut Dump) -> Result<Sketched, DriverError> {
    let mut graph = g.clone();
    let pipeline =
        Pipeline::new(vec![PipelineItem::Run(Box::new(pass)), PipelineItem::Reach(Stage::Sketched)]);
    let remarks = dump.run(&pipeline, &mut graph)?;
    Ok(Sketched { graph, remarks, refits: Vec::new() })
}
