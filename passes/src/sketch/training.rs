//! Sketches for models that are trained afterwards: the same rank everywhere, without samples and without a search.

use margay_ir::{Changed, Cx, Graph, Pass, PassError, Remark};
use margay_plan::Choice;

use super::{Context, Decompositions, PantherScheme, PantherSettings, Scheme, Start, layers};
use crate::ApplyPlan;

/// Which layers get sketches of [`PantherScheme`], and which.
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
    /// The layers by name; `None` for all.
    pub modules: Option<Vec<String>>,
}

/// Replaces layers by sketches to be trained. A layer that would not take fewer numbers stays as it is, with a
/// remark: one with `2 terms · rank · (d_in + d_out) >= d_in · d_out`.
///
/// # Errors
/// [`PassError::Refused`] for a rank or number of terms of 0, layers that the graph does not have, and a weight to be
/// copied that has numbers that are not finite.
pub fn panther_for_training(
    g: &mut Graph,
    options: &PantherTraining,
    cx: &mut Cx,
) -> Result<Changed, PassError> {
    let PantherTraining { rank, terms, start, seed, .. } = *options;
    if rank == 0 || terms == 0 {
        return Err(PassError::Refused(format!("rank {rank} and {terms} terms, expected at least 1")));
    }
    let found = layers(g);
    let asked = options.modules.iter().flatten().cloned();
    let unknown: Vec<String> = asked.filter(|name| found.iter().all(|l| l.name != *name)).collect();
    if !unknown.is_empty() {
        let known: Vec<&str> = found.iter().map(|l| l.name.as_str()).collect();
        return Err(PassError::Refused(format!(
            "the model has no module `{}`; it has `{}`",
            unknown.join("`, `"),
            known.join("`, `")
        )));
    }
    let choice = Choice {
        seed: Some(seed),
        ..Choice::new(PantherScheme.name(), &PantherSettings { rank, terms, start })
    };
    let mut pass = ApplyPlan::default();
    for layer in found {
        if options.modules.as_ref().is_some_and(|names| !names.contains(&layer.name)) {
            continue;
        }
        let site = layer.site(g, PantherScheme.name());
        let decompositions = &Decompositions::default();
        let context = Context { graph: g, site: &site, moments: None, metric: None, decompositions, seed };
        let fitted = PantherScheme.fit(&context);
        let fitted = fitted.map_err(|e| PassError::Refused(format!("`{}`: {e}", layer.name)))?;
        if fitted.squared_error(&choice.settings).is_err() {
            let (a, b, width) = (layer.d_in, layer.d_out, terms.saturating_mul(2).saturating_mul(rank));
            let message =
                format!("{width} x ({a} + {b}) numbers would not be fewer than the {a} x {b} of the weight");
            cx.remarks.push(Remark { pass: PantherScheme.name(), at: layer.name, message, declined: true });
            continue;
        }
        pass.choices.insert(layer.name.clone(), choice.clone());
        pass.fitted.insert(layer.name, fitted.into());
    }
    pass.run(g, cx)
}
