//! The graph with sites replaced.

use std::collections::BTreeMap;

use margay_ir::{Graph, Remark, Stage};
use margay_passes::sketch::Site;
use margay_passes::{ApplyPlan, Pipeline, PipelineItem, Sketch};
use margay_plan::{Allocation, Settings};

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
            pass.sketches.insert(name.clone(), sketch(fit, &candidate.choice.settings));
        }
    }
    pass
}

/// The pass that replaces one site.
pub(crate) fn alone(site: &Site, fit: &Fit, settings: &Settings) -> ApplyPlan {
    ApplyPlan { sketches: BTreeMap::from([(site.name.clone(), sketch(fit, settings))]) }
}

fn sketch(fit: &Fit, settings: &Settings) -> Sketch {
    Sketch { fitted: fit.fitted.clone(), settings: settings.clone() }
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
    let remarks = pipeline.run(&mut graph, &mut |run| dump.pass(run))?;
    Ok(Sketched { graph, remarks })
}
