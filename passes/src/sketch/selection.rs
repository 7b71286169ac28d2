//! What to do with which module: a plan's choices with the schemes fitted to apply them.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_ir::{Changed, Cx, Graph, PassError, Remark};

use super::{ApplyError, Fitted, ModuleKind, modules};

/// A fitted scheme and the rank to apply it at.
#[derive(Clone)]
pub struct Chosen {
    /// The scheme, fitted to the module.
    pub fitted: Arc<dyn Fitted>,
    /// Its setting.
    pub rank: usize,
}

/// Choices by module name. Modules without one stay dense.
#[derive(Clone, Default)]
pub struct Selection {
    /// The choices.
    pub choices: BTreeMap<String, Chosen>,
}

impl Selection {
    /// Replaces the chosen modules of one kind.
    pub(crate) fn apply(
        &self,
        pass: &'static str,
        kind: ModuleKind,
        g: &mut Graph,
        cx: &mut Cx,
    ) -> Result<Changed, PassError> {
        let mut changed = 0;
        for module in modules(g).into_iter().filter(|m| m.kind == kind) {
            let Some(choice) = self.choices.get(&module.name) else { continue };
            let offered = choice.fitted.points().iter().any(|p| p.rank == choice.rank);
            if !offered {
                let message = format!(
                    "rank {} would store no less than the {} bytes of the weight",
                    choice.rank,
                    module.bytes()
                );
                cx.remarks.push(Remark { pass, at: module.name, message, declined: true });
                continue;
            }
            let at = module.name.clone();
            let patch = choice.fitted.apply(g, &module, choice.rank).map_err(|e| match e {
                ApplyError::Add(error) => PassError::Add { rule: pass, at: at.clone(), error: error.into() },
                ApplyError::Randnla(error) => PassError::Refused(format!("`{at}`: {error}")),
            })?;
            g.apply(patch).map_err(|error| PassError::Patch {
                rule: pass,
                at: at.clone(),
                error: error.into(),
            })?;
            changed += 1;
        }
        g.remove_dead();
        Ok(Changed::times(changed))
    }
}
