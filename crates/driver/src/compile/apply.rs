//! The graph with sites replaced.

use margay_ir::{Graph, Remark, Stage};
use margay_passes::sketch::Site;
use margay_passes::{ApplyPlan, Pipeline, PipelineItem};
use margay_plan::{Allocation, Choice, Settings};

use super::Job;
use super::fit::Fit;
use crate::{DriverError, Dump, build};

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
}

/// Replaces sites, and then stores constants as the options and the plan say.
pub(crate) fn apply(job: &Job<'_>, pass: ApplyPlan, dump: &mut Dump) -> Result<Sketched, DriverError> {
    let Sketched { graph, mut remarks } = replaced(job.graph(), pass, dump)?;
    let (graph, more) = build::stored(graph, &job.storage, dump)?;
    remarks.extend(more);
    Ok(Sketched { graph, remarks })
}

/// Replaces sites.
pub(crate) fn replaced(g: &Graph, pass: ApplyPlan, dump: &mut Dump) -> Result<Sketched, DriverError> {
    let mut graph = g.clone();
    let pipeline =
        Pipeline::new(vec![PipelineItem::Run(Box::new(pass)), PipelineItem::Reach(Stage::Sketched)]);
    let remarks = dump.run(&pipeline, &mut graph)?;
    Ok(Sketched { graph, remarks })
}
