//! The graph with sites replaced.

use std::collections::BTreeMap;

use margay_ir::{Graph, Remark, Stage};
use margay_loops::Precision;
use margay_passes::sketch::Site;
use margay_passes::{ApplyPlan, Pipeline, PipelineItem, Sketch};
use margay_plan::{Allocation, Settings};

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

/// Replaces sites, and then rounds products as a precision says.
pub(crate) fn apply(
    g: &Graph,
    pass: ApplyPlan,
    precision: Precision,
    dump: &mut Dump,
) -> Result<(Graph, Vec<Remark>), DriverError> {
    let mut out = g.clone();
    let pipeline =
        Pipeline::new(vec![PipelineItem::Run(Box::new(pass)), PipelineItem::Reach(Stage::Sketched)]);
    let remarks = pipeline.run(&mut out, &mut |run| dump.pass(run))?;
    Ok((build::in_precision(out, precision, dump)?, remarks))
}
