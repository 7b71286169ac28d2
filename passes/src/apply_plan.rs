//! Replaces the sites that a plan names, each by its scheme.
//!
//! Required stage: canonical. Declines settings that the scheme does not offer for the site.
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

use margay_ir::{Changed, Cx, Fidelity, Graph, Pass, PassError, Remark};
use margay_plan::{Plan, Settings};

use crate::sketch::{ApplyError, Context, Decompositions, Fitted, patch, scheme, sites};

/// What a site is to be replaced by: a scheme that has looked at it, and settings of the scheme.
#[derive(Clone)]
pub struct Sketch {
    /// The scheme, fitted to the site.
    pub fitted: Arc<dyn Fitted>,
    /// Its settings.
    pub settings: Settings,
}

/// Sketches sites.
#[derive(Clone, Default)]
pub struct ApplyPlan {
    /// What to do with which site, by name. Sites without an entry stay dense.
    pub sketches: BTreeMap<String, Sketch>,
}

impl ApplyPlan {
    /// The pass of a plan, with every site fitted without samples.
    ///
    /// # Errors
    /// [`PassError::Refused`] for a site that the graph does not have, a scheme that does not take it, and weights that
    /// are not finite.
    pub fn uncalibrated(g: &Graph, plan: &Plan) -> Result<ApplyPlan, PassError> {
        let known = sites(g);
        let mut pass = ApplyPlan::default();
        let decompositions = &Decompositions::default();
        for (name, choice) in plan.sites.iter().filter(|(_, choice)| !choice.is_dense()) {
            let refused = |why: String| PassError::Refused(format!("`{name}`: {why}"));
            let site = known.iter().find(|s| s.name == *name);
            let site = site.ok_or_else(|| refused("the graph has no such site".to_owned()))?;
            let scheme = scheme(&choice.scheme).filter(|s| site.schemes.contains(&s.name()));
            let not_for = || refused(format!("scheme `{}` is not for {} layers", choice.scheme, site.kind));
            let scheme = scheme.ok_or_else(not_for)?;
            let seed = choice.seed.unwrap_or(plan.header.seed);
            let fitted = scheme.fit(&Context { graph: g, site, moments: None, decompositions, seed });
            let fitted = fitted.map_err(|e| refused(e.to_string()))?.into();
            pass.sketches.insert(name.clone(), Sketch { fitted, settings: choice.settings.clone() });
        }
        Ok(pass)
    }
}

impl Pass for ApplyPlan {
    fn name(&self) -> &'static str {
        "apply-plan"
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Approximate
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let mut changed = 0;
        let mut taken = BTreeMap::new();
        for site in sites(g) {
            let Some(sketch) = self.sketches.get(&site.name) else { continue };
            if let Err(message) = sketch.fitted.squared_error(&sketch.settings) {
                cx.remarks.push(Remark { pass: self.name(), at: site.name, message, declined: true });
                continue;
            }
            for weight in &site.weights {
                if let Some(other) = taken.insert(*weight, site.name.clone()) {
                    let message = format!("`{}` and `{other}` both replace one weight", site.name);
                    return Err(PassError::Refused(message));
                }
            }
            let (rule, at) = (self.name(), site.name.clone());
            let patch = patch(&*sketch.fitted, g, &site, &sketch.settings);
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
