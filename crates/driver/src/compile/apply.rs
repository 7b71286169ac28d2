//! The graph with sites replaced.

use margay_ir::{Graph, Remark, Stage};
use margay_loops::Precision;
use margay_passes::sketch::Site;
use margay_passes::{ApplyPlan, Pipeline, PipelineItem};
use margay_plan::{Allocation, Choice, Settings};

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
    let choice = Choice { scheme: fit.scheme.to_owned(), settings: settings.clone(), seed: Some(fit.seed) };
    pass.choices.insert(site.to_owned(), choice);
    pass.fitted.insert(site.to_owned(), fit.fitted.clone());
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
    let remarks = dump.run(&pipeline, &mut out)?;
    Ok((build::in_precision(out, precision, dump)?, remarks))
}
