//! Replaces the sites that a plan names, each by its scheme.
//!
//! Required stage: canonical. Declines settings that the scheme does not offer for the site, and names of
//! sites that the graph does not have.
//!
//! ```text
//! graph @before(%x: f32[N, 1024]) -> (y: f32[N, 512]) {
//!   %0 = const #5be1c0 : f32[1024, 512]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 512]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 1024]) -> (y: f32[N, 512]) {
//!   %0 = const lowrank.left(#5be1c0, k = 128) : f32[1024, 128]  // fc1.weight left
//!   %1 = const lowrank.right(#5be1c0, k = 128) : f32[128, 512]  // fc1.weight right
//!   %2 = matmul %x, %0 : f32[N, 128]  // fc1/MatMul left
//!   %3 = matmul %2, %1 : f32[N, 512]  // fc1/MatMul right
//!   return %3
//! }
//! ```
//!
//! A convolution becomes one with fewer filters, then a 1x1 convolution:
//!
//! ```text
//! graph @before(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const #77aa01 : f32[32, 16, 3, 3]  // conv.weight
//!   %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 32, 8, 8]  // conv
//!   return %1
//! }
//! graph @after(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const lowrank.left(#77aa01, k = 8) : f32[8, 16, 3, 3]  // conv.weight left
//!   %1 = const lowrank.right(#77aa01, k = 8) : f32[32, 8, 1, 1]  // conv.weight right
//!   %2 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 8, 8, 8]  // conv left
//!   %3 = conv %2, %1 : f32[N, 32, 8, 8]  // conv right
//!   return %3
//! }
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_ir::{Changed, Configuration, Cx, Fidelity, Graph, Pass, PassError, Remark};
use margay_plan::plan::{FORMAT_VERSION, Header};
use margay_plan::{Choice, Plan};

use crate::Files;
use crate::sketch::{
    ApplyError, Context, Decompositions, Fitted, Resolved, Site, patch, read_plan, scheme, sites,
};

/// Sketches sites.
#[derive(Clone, Default)]
pub struct ApplyPlan {
    /// What to do with which site, by name. Sites without an entry stay dense.
    pub choices: BTreeMap<String, Choice>,
    /// Schemes that have looked at their sites, by the names of these. Other sites are fitted when the pass runs, without
    /// samples.
    pub fitted: BTreeMap<String, Arc<dyn Fitted>>,
}

/// The file that a configuration names.
const FILE: &str = "plan.toml";

impl ApplyPlan {
    /// The pass of a plan, with nothing fitted yet.
    pub fn of(plan: &Plan) -> ApplyPlan {
        let sketched = plan.sites.iter().filter(|(_, choice)| !choice.is_dense());
        let seed = |choice: &Choice| Some(choice.seed.unwrap_or(plan.header.seed));
        let choices =
            sketched.map(|(name, choice)| (name.clone(), Choice { seed: seed(choice), ..choice.clone() }));
        ApplyPlan { choices: choices.collect(), fitted: BTreeMap::new() }
    }

    /// Reads the name of a file with a plan.
    pub(crate) fn read(text: &str, files: &Files<'_>) -> Result<ApplyPlan, String> {
        if text.is_empty() {
            return Err("expected the name of a file with a plan".to_owned());
        }
        let plan = read_plan(&files(text)?).map_err(|e| format!("`{text}`: {e}"))?;
        Ok(ApplyPlan::of(&plan))
    }

    /// The choices as a plan, for whatever model has these sites.
    fn plan(&self) -> Plan {
        let header = Header {
            version: FORMAT_VERSION,
            model: String::new(),
            calibration: None,
            target_cpu: String::new(),
            cost_model: String::new(),
            seed: 0,
        };
        Plan { header, sites: self.choices.clone() }
    }

    /// The scheme that has looked at a site.
    fn fitted(
        &self,
        g: &Graph,
        site: &Site,
        choice: &Choice,
        decompositions: &Decompositions,
    ) -> Result<Arc<dyn Fitted>, PassError> {
        if let Some(fitted) = self.fitted.get(&site.name) {
            return Ok(fitted.clone());
        }
        let refused = |why: String| PassError::Refused(format!("`{}`: {why}", site.name));
        let scheme = scheme(&choice.scheme).filter(|s| site.schemes.contains(&s.facts().name));
        let not_for = || refused(format!("scheme `{}` is not for {} layers", choice.scheme, site.kind));
        let seed = choice.seed.unwrap_or(0);
        let context =
            Context { graph: g, site, moments: None, samples: None, metric: None, decompositions, seed };
        let fitted = scheme.ok_or_else(not_for)?.fit(&context).map_err(|e| refused(e.to_string()))?;
        Ok(fitted.into())
    }
}

impl Pass for ApplyPlan {
    fn name(&self) -> &'static str {
        "apply-plan"
    }

    /// The choices are written into a file. What schemes have seen of samples is not: read again, they have seen none.
    fn configuration(&self) -> Configuration {
        // A seed that TOML cannot hold stands in the file as a comment.
        let plan = self.plan().to_toml().unwrap_or_else(|error| format!("# {error}\n"));
        Configuration { text: FILE.to_owned(), files: vec![(FILE.to_owned(), plan)] }
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Approximate
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let mut changed = 0;
        let mut taken = BTreeMap::new();
        let decline = |cx: &mut Cx, at: &str, message: String| {
            cx.remarks.push(Remark { pass: self.name(), at: at.to_owned(), message, declined: true });
        };
        let found = sites(g);
        for name in self.choices.keys().filter(|name| found.iter().all(|s| s.name != **name)) {
            decline(cx, name, "the graph has no such site".to_owned());
        }
        let mut chosen = Vec::new();
        let decompositions = &Decompositions::default();
        for site in found {
            let Some(choice) = self.choices.get(&site.name) else { continue };
            let fitted = self.fitted(g, &site, choice, decompositions)?;
            let offered = fitted.resolved(&choice.settings);
            let offered = offered.and_then(|found| fitted.squared_error(&found.settings).map(|_| found));
            match offered {
                Ok(Resolved { settings, remarks }) => {
                    remarks.into_iter().for_each(|message| decline(cx, &site.name, message));
                    chosen.push((site, fitted, settings));
                }
                Err(why) => decline(cx, &site.name, why),
            }
        }
        for (site, fitted, settings) in chosen {
            for weight in &site.weights {
                if let Some(other) = taken.insert(*weight, site.name.clone()) {
                    let message = format!("`{}` and `{other}` both replace one weight", site.name);
                    return Err(PassError::Refused(message));
                }
            }
            let (rule, at) = (self.name(), site.name.clone());
            let patch = patch(&*fitted, g, &site, &settings);
            let patch = patch.map_err(|error| match error {
                ApplyError::Add(error) => PassError::Add { rule, at: at.clone(), error: error.into() },
                error => PassError::Refused(format!("`{at}`: {error}")),
            })?;
            g.apply(patch).map_err(|error| PassError::Patch { rule, at, error: error.into() })?;
            changed += 1;
        }
        g.remove_dead();
        Ok(Changed::times(changed))
    }
}
