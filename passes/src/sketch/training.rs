//! Sketches for models that are trained afterwards: the same settings everywhere, without samples and without a search.

use std::fmt;

use margay_ir::{Changed, Cx, Graph, Pass, PassError, Remark};
use margay_plan::Choice;

use super::{
    Context, Decompositions, FavorScheme, FavorSettings, PantherScheme, PantherSettings, Scheme, Site, Start,
    sites,
};
use crate::ApplyPlan;

/// What is put in place of layers before a model is trained.
#[derive(Clone, PartialEq, Debug)]
pub enum SketchTraining {
    /// Products with random signs in place of weights.
    Panther(PantherTraining),
    /// Random features in place of attention.
    Favor(FavorTraining),
}

impl fmt::Display for SketchTraining {
    /// The scheme and its size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SketchTraining::Panther(PantherTraining { rank, terms, .. }) => {
                write!(f, "panther of rank {rank}, {terms} term(s)")
            }
            SketchTraining::Favor(FavorTraining { settings, .. }) => {
                write!(f, "favor with {} features", settings.features)
            }
        }
    }
}

impl SketchTraining {
    /// Puts it there.
    ///
    /// # Errors
    /// As [`panther_for_training`] and [`favor_for_training`].
    pub fn apply(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        match self {
            SketchTraining::Panther(options) => panther_for_training(g, options, cx),
            SketchTraining::Favor(options) => favor_for_training(g, options, cx),
        }
    }
}

/// Which attention gets random features of [`FavorScheme`], and which.
#[derive(Clone, PartialEq, Debug)]
pub struct FavorTraining {
    /// The features.
    pub settings: FavorSettings,
    /// Names the directions.
    pub seed: u64,
    /// The attention nodes by the names of their sites; `None` for all.
    pub modules: Option<Vec<String>>,
}

/// Replaces attention by random features, to be trained around them. What the scheme declines stays as it is, with a remark.
///
/// # Errors
/// [`PassError::Refused`] for settings that are not those of the scheme, a model without attention, and attention that it does
/// not have.
pub fn favor_for_training(g: &mut Graph, options: &FavorTraining, cx: &mut Cx) -> Result<Changed, PassError> {
    let facts = FavorScheme.facts();
    let choice = Choice { seed: Some(options.seed), ..Choice::new(facts.name, &options.settings) };
    (facts.check)(&choice.settings).map_err(PassError::Refused)?;
    let found = sites(g).into_iter().filter(|site| site.schemes.contains(&facts.name));
    let names: Vec<String> = found.map(|site| site.name).collect();
    if names.is_empty() {
        return Err(PassError::Refused("the model has no attention that was found".to_owned()));
    }
    check_names(&names.iter().map(String::as_str).collect::<Vec<_>>(), options.modules.as_deref())?;
    let asked = |name: &String| options.modules.as_ref().is_none_or(|modules| modules.contains(name));
    let choices = names.into_iter().filter(asked).map(|name| (name, choice.clone())).collect();
    ApplyPlan { choices, ..ApplyPlan::default() }.run(g, cx)
}

/// An error unless all modules that are asked for are there.
fn check_names(known: &[&str], asked: Option<&[String]>) -> Result<(), PassError> {
    let unknown: Vec<&str> =
        asked.into_iter().flatten().map(String::as_str).filter(|name| !known.contains(name)).collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(PassError::Refused(format!(
            "the model has no module `{}`; it has `{}`",
            unknown.join("`, `"),
            known.join("`, `")
        ))),
    }
}

/// Which layers get sketches of [`PantherScheme`], and which.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PantherTraining {
    /// Columns of each sketch.
    pub rank: usize,
    /// Sketches that are averaged; at least 1.
    pub terms: usize,
    /// What the trained factors are at first.
    pub start: Start,
    /// Whether kernels of convolutions are sketched on both sides, as weights of products always are.
    pub two_sided: bool,
    /// Names the random signs, and the random factors of [`Start::Random`].
    pub seed: u64,
    /// The layers by name; `None` for all.
    pub modules: Option<Vec<String>>,
}

/// Replaces layers by sketches to be trained. A layer that would not take fewer numbers stays as it is, with a
/// remark: one with `2 terms · rank · (d_in + d_out) >= d_in · d_out`, or, where a kernel is sketched on both sides,
/// `terms · rank · (d_in + d_out + channels + taps · d_out) >= d_in · d_out`.
///
/// # Errors
/// [`PassError::Refused`] for a rank or number of terms of 0, layers that the graph does not have, and a weight to be
/// copied that has numbers that are not finite.
pub fn panther_for_training(
    g: &mut Graph,
    options: &PantherTraining,
    cx: &mut Cx,
) -> Result<Changed, PassError> {
    let PantherTraining { rank, terms, start, two_sided, seed, .. } = *options;
    if rank == 0 || terms == 0 {
        return Err(PassError::Refused(format!("rank {rank} and {terms} terms, expected at least 1")));
    }
    let name = PantherScheme.facts().name;
    let found: Vec<Site> = sites(g).into_iter().filter(|site| site.schemes.contains(&name)).collect();
    check_names(&found.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), options.modules.as_deref())?;
    let settings = PantherSettings { rank, terms, start, two_sided };
    let choice = Choice { seed: Some(seed), ..Choice::new(name, &settings) };
    let mut pass = ApplyPlan::default();
    for site in found {
        if options.modules.as_ref().is_some_and(|names| !names.contains(&site.name)) {
            continue;
        }
        let decompositions = &Decompositions::default();
        let context = Context {
            graph: g,
            site: &site,
            moments: None,
            samples: None,
            metric: None,
            decompositions,
            seed,
        };
        let fitted = PantherScheme.fit(&context);
        let fitted = fitted.map_err(|e| PassError::Refused(format!("`{}`: {e}", site.name)))?;
        if fitted.squared_error(&choice.settings).is_err() {
            let message = settings.numbers(g, &site);
            cx.remarks.push(Remark { pass: name, at: site.name, message, declined: true });
            continue;
        }
        pass.choices.insert(site.name.clone(), choice.clone());
        pass.fitted.insert(site.name, fitted.into());
    }
    pass.run(g, cx)
}
