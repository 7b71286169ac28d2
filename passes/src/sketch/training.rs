//! Sketches for models that are trained afterwards: the same rank everywhere, without samples and without a search.

use margay_ir::{Changed, Cx, Graph, PassError, Remark};

use super::{Chosen, ModuleKind, PantherScheme, Scheme, Selection, Start, modules};

/// Which modules get sketches of [`PantherScheme`], and which.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PantherTraining {
    /// Columns of each sketch.
    pub rank: usize,
    /// Sketches that are averaged; at least 1.
    pub terms: usize,
    /// What the trained factors are at first.
    pub start: Start,
    /// Names the random signs, and the random factors of [`Start::Random`].
    pub seed: u64,
    /// The modules by name; `None` for all.
    pub modules: Option<Vec<String>>,
}

/// Replaces modules by sketches to be trained. A module that would not take fewer numbers stays as it is, with a
/// remark: one with `2 terms · rank · (d_in + d_out) >= d_in · d_out`.
///
/// # Errors
/// [`PassError::Refused`] for a rank or number of terms of 0, modules that the graph does not have, and a weight to be
/// copied that has numbers that are not finite.
pub fn panther_for_training(
    g: &mut Graph,
    options: &PantherTraining,
    cx: &mut Cx,
) -> Result<Changed, PassError> {
    const PASS: &str = "panther";
    if options.rank == 0 || options.terms == 0 {
        let message = format!("rank {} and {} terms, expected at least 1", options.rank, options.terms);
        return Err(PassError::Refused(message));
    }
    let found = modules(g);
    let unknown: Vec<String> = options.modules.iter().flatten().cloned().collect();
    let unknown: Vec<String> =
        unknown.into_iter().filter(|name| found.iter().all(|m| m.name != *name)).collect();
    if !unknown.is_empty() {
        let known: Vec<&str> = found.iter().map(|m| m.name.as_str()).collect();
        return Err(PassError::Refused(format!(
            "the model has no module `{}`; it has `{}`",
            unknown.join("`, `"),
            known.join("`, `")
        )));
    }
    let scheme = PantherScheme { terms: options.terms, start: options.start };
    let mut selection = Selection::default();
    for module in found {
        if options.modules.as_ref().is_some_and(|names| !names.contains(&module.name)) {
            continue;
        }
        let fitted = scheme.fit(g, &module, None, options.seed);
        let fitted = fitted.map_err(|e| PassError::Refused(format!("`{}`: {e}", module.name)))?;
        if !fitted.points().iter().any(|p| p.rank == options.rank) {
            let (a, b) = (module.d_in, module.d_out);
            let width = options.terms.saturating_mul(2).saturating_mul(options.rank);
            let message =
                format!("{width} x ({a} + {b}) numbers would not be fewer than the {a} x {b} of the weight");
            cx.remarks.push(Remark { pass: PASS, at: module.name, message, declined: true });
            continue;
        }
        selection.choices.insert(module.name, Chosen { fitted: fitted.into(), rank: options.rank });
    }
    let mut changed = 0;
    for kind in [ModuleKind::Linear, ModuleKind::Conv] {
        if let Changed::Yes(n) = selection.apply(PASS, kind, g, cx)? {
            changed += n;
        }
    }
    Ok(Changed::times(changed))
}
