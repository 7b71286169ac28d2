//! Sketches for models that are trained afterwards: the same settings everywhere, without samples and without a search.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use margay_ir::{Changed, Cx, Graph, Pass, PassError, Remark};
use margay_plan::{Choice, Settings};
use margay_randnla::Stored;
use serde::Serialize;

use super::forms::Form;
use super::lowrank::RankSettings;
use super::lowrank_diag::{LowRankDiag, LowRankDiagSettings};
use super::structured::AnyStructure;
use super::tt::{TensorTrain, TtSettings};
use super::tt_rows::TrainOfRows;
use super::{
    Context, Decompositions, FavorScheme, FavorSettings, Fitted, Layer, LocalScheme, LocalSettings,
    LowRankDiagScheme, LowRankScheme, NystromScheme, NystromSettings, PantherScheme, PantherSettings, Scheme,
    Site, Start, StructuredScheme, StructuredSettings, TtScheme, form, sites,
};
use crate::{ApplyPlan, RemoveDead};

/// What is put in place of layers before a model is trained.
#[derive(Clone, PartialEq, Debug)]
pub enum SketchTraining {
    /// Products with random signs in place of weights.
    Panther(PantherTraining),
    /// Two factors in place of weights.
    LowRank(LowRankTraining),
    /// A form of several factors in place of weights.
    Structured(StructuredTraining),
    /// Another form in place of exact attention.
    Attention(AttentionTraining),
    /// Any scheme, with settings as a plan says them.
    Scheme(SchemeTraining),
}

impl fmt::Display for SketchTraining {
    /// The scheme and its size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SketchTraining::Panther(PantherTraining { rank, terms, .. }) => {
                write!(f, "panther of rank {rank}, {terms} term(s)")
            }
            SketchTraining::LowRank(LowRankTraining { rank: TrainingRank::Fixed(rank), .. }) => {
                write!(f, "lowrank of rank {rank}")
            }
            SketchTraining::LowRank(_) => write!(f, "lowrank of ranks chosen during training"),
            SketchTraining::Structured(StructuredTraining { form, .. }) => match form {
                StructuredForm::LowRankDiag { rank } => write!(f, "lowrank-diag of rank {rank}"),
                StructuredForm::TensorTrain { cores, rank } => {
                    write!(f, "tt of {cores} cores and rank {rank}")
                }
                StructuredForm::Structure(settings) => write!(f, "structured, {}", settings.form),
            },
            SketchTraining::Scheme(SchemeTraining { scheme, settings, .. }) => {
                write!(f, "{scheme}, {settings}")
            }
            SketchTraining::Attention(AttentionTraining { form, .. }) => match form {
                AttentionForm::Favor(settings) => write!(f, "favor with {} features", settings.features),
                AttentionForm::Nystrom(settings) => {
                    write!(f, "nystrom with {} landmarks", settings.landmarks)
                }
                AttentionForm::Local(settings) => {
                    write!(f, "local with windows of {} positions", settings.window)
                }
            },
        }
    }
}

impl SketchTraining {
    /// Puts it there.
    ///
    /// # Errors
    /// As [`panther_for_training`], [`lowrank_for_training`], [`structured_for_training`], [`attention_for_training`] and
    /// [`scheme_for_training`].
    pub fn apply(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        match self {
            SketchTraining::Panther(options) => panther_for_training(g, options, cx),
            SketchTraining::LowRank(options) => lowrank_for_training(g, options, cx),
            SketchTraining::Structured(options) => structured_for_training(g, options, cx),
            SketchTraining::Attention(options) => attention_for_training(g, options, cx),
            SketchTraining::Scheme(options) => scheme_for_training(g, options, cx),
        }
    }
}

/// Which attention is replaced, and by what.
#[derive(Clone, PartialEq, Debug)]
pub struct AttentionTraining {
    /// What takes its place.
    pub form: AttentionForm,
    /// Names the directions of random features.
    pub seed: u64,
    /// The attention nodes by the names of their sites; `None` for all.
    pub modules: Option<Vec<String>>,
}

/// What takes the place of exact attention.
#[derive(Clone, PartialEq, Debug)]
pub enum AttentionForm {
    /// Random features, of [`FavorScheme`](super::FavorScheme).
    Favor(FavorSettings),
    /// Landmarks, of [`NystromScheme`](super::NystromScheme).
    Nystrom(NystromSettings),
    /// Windows about each query, of [`LocalScheme`](super::LocalScheme).
    Local(LocalSettings),
}

impl AttentionForm {
    fn choice(&self) -> (&'static dyn Scheme, Choice) {
        fn of(scheme: &'static dyn Scheme, settings: &impl Serialize) -> (&'static dyn Scheme, Choice) {
            (scheme, Choice::new(scheme.facts().name, settings))
        }
        match self {
            AttentionForm::Favor(settings) => of(&FavorScheme, settings),
            AttentionForm::Nystrom(settings) => of(&NystromScheme, settings),
            AttentionForm::Local(settings) => of(&LocalScheme, settings),
        }
    }
}

/// Replaces attention, to be trained around what takes its place. What the scheme declines stays as it is, with a remark.
///
/// # Errors
/// [`PassError::Refused`] for settings that are not those of the scheme, a model without attention, and attention that it does
/// not have.
pub fn attention_for_training(
    g: &mut Graph,
    options: &AttentionTraining,
    cx: &mut Cx,
) -> Result<Changed, PassError> {
    let (scheme, choice) = options.form.choice();
    let (facts, choice) = (scheme.facts(), Choice { seed: Some(options.seed), ..choice });
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
    let settings = PantherSettings { rank, terms, start, two_sided };
    let choice = |site: &Site, fitted: &dyn Fitted, g: &Graph| {
        let written = Settings::write(&settings);
        fitted.squared_error(&written).map(|_| written).map_err(|_| settings.numbers(g, site))
    };
    layers_for_training(g, &PantherScheme, (seed, options.modules.as_deref()), &choice, cx)
}

/// Which layers get two factors of [`LowRankScheme`], and of which rank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LowRankTraining {
    /// Columns of the left factor.
    pub rank: TrainingRank,
    /// Names the decompositions of large weights.
    pub seed: u64,
    /// The layers by name; `None` for all.
    pub modules: Option<Vec<String>>,
}

/// The rank of factors when training begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrainingRank {
    /// The same for all layers.
    Fixed(usize),
    /// For each layer the greatest with which the factors take fewer numbers than the weight.
    Greatest,
}

/// Replaces layers by two factors to be trained: the best ones of their weights. Those of a weight that was drawn at random are
/// the spectral initialization of Khodak, Tenenholtz, Mackey and Fusi, *Initialization and regularization of factorized
/// neural layers*, arXiv 2105.01029. A layer that would not take fewer numbers stays as it is, with a remark: one with
/// `rank · (d_in + d_out) >= d_in · d_out`.
///
/// # Errors
/// [`PassError::Refused`] for a rank of 0, layers that the graph does not have, and a weight that has numbers that are not
/// finite.
pub fn lowrank_for_training(
    g: &mut Graph,
    options: &LowRankTraining,
    cx: &mut Cx,
) -> Result<Changed, PassError> {
    if options.rank == TrainingRank::Fixed(0) {
        return Err(PassError::Refused("rank 0, expected at least 1".to_owned()));
    }
    let choice = |site: &Site, fitted: &dyn Fitted, g: &Graph| {
        let layer = Layer::of(g, site);
        let each = layer.groups() * site.d_in + site.d_out;
        let dense = site.d_in * site.d_out;
        let settings = |rank| Settings::write(&RankSettings::new(rank));
        let few = |rank| format!("{rank} x {each} numbers would not be fewer than {dense}");
        match options.rank {
            TrainingRank::Fixed(rank) if rank.saturating_mul(each) >= dense => Err(few(rank)),
            TrainingRank::Fixed(rank) => fitted.squared_error(&settings(rank)).map(|_| settings(rank)),
            TrainingRank::Greatest if layer.is_lookup() => {
                Err("ranks of lookups are not chosen during training".to_owned())
            }
            TrainingRank::Greatest if layer.is_recurrent() => {
                Err("ranks of recurrences are not chosen during training".to_owned())
            }
            TrainingRank::Greatest => (1..=dense.saturating_sub(1) / each)
                .rev()
                .map(settings)
                .find(|settings| fitted.squared_error(settings).is_ok())
                .ok_or_else(|| few(1)),
        }
    };
    layers_for_training(g, &LowRankScheme, (options.seed, options.modules.as_deref()), &choice, cx)
}

/// Which layers get factors of another form, and which.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StructuredTraining {
    /// What takes the place of weights.
    pub form: StructuredForm,
    /// The seed that the plan of the model says.
    pub seed: u64,
    /// The layers by name; `None` for all.
    pub modules: Option<Vec<String>>,
}

/// A form of several factors, all trained.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StructuredForm {
    /// Two factors and a diagonal, of [`LowRankDiagScheme`], in place of square weights.
    LowRankDiag {
        /// Columns of the left factor.
        rank: usize,
    },
    /// A tensor train, of [`TtScheme`]. Inputs and outputs are cut into extents of about the same size.
    TensorTrain {
        /// Cores, at least 2.
        cores: usize,
        /// The greatest rank between two cores.
        rank: usize,
    },
    /// Any structure, of [`StructuredScheme`], in place of the weights that have its shape.
    Structure(StructuredSettings),
}

/// Replaces layers by a form of several factors to be trained, which begin as those of their weights, or at random where a
/// structure says so. A layer that would not take fewer numbers stays as it is, with a remark, and so does one of another shape.
///
/// # Errors
/// [`PassError::Refused`] for settings that no layer has, layers that the graph does not have, and a weight that has numbers
/// that are not finite.
pub fn structured_for_training(
    g: &mut Graph,
    options: &StructuredTraining,
    cx: &mut Cx,
) -> Result<Changed, PassError> {
    let asked = (options.seed, options.modules.as_deref());
    match &options.form {
        StructuredForm::LowRankDiag { rank: 0 } | StructuredForm::TensorTrain { rank: 0, .. } => {
            Err(PassError::Refused("rank 0, expected at least 1".to_owned()))
        }
        StructuredForm::TensorTrain { cores: cores @ (0 | 1), .. } => {
            Err(PassError::Refused(format!("{cores} cores, expected at least 2")))
        }
        StructuredForm::LowRankDiag { rank } => {
            let settings = LowRankDiagSettings::new(*rank);
            let choice = |site: &Site, fitted: &dyn Fitted, g: &Graph| {
                smaller::<LowRankDiag>(g, site, fitted, &settings)
            };
            layers_for_training(g, &LowRankDiagScheme, asked, &choice, cx)
        }
        StructuredForm::TensorTrain { cores, rank } => {
            let choice = |site: &Site, fitted: &dyn Fitted, g: &Graph| {
                let layer = Layer::of(g, site);
                let settings = TtSettings::balanced(&layer, *cores, *rank);
                match layer.is_lookup() {
                    true => smaller::<TrainOfRows>(g, site, fitted, &settings),
                    false => smaller::<TensorTrain>(g, site, fitted, &settings),
                }
            };
            layers_for_training(g, &TtScheme, asked, &choice, cx)
        }
        StructuredForm::Structure(settings) => {
            settings.structure().map_err(PassError::Refused)?;
            let choice = |site: &Site, fitted: &dyn Fitted, g: &Graph| {
                smaller::<AnyStructure>(g, site, fitted, settings)
            };
            layers_for_training(g, &StructuredScheme, asked, &choice, cx)
        }
    }
}

/// Which sites get a scheme, and with which settings.
#[derive(Clone, PartialEq, Debug)]
pub struct SchemeTraining {
    /// The name of a scheme that [can be trained](super::SchemeFacts::can_be_trained).
    pub scheme: String,
    /// What a plan says, the same for all sites.
    pub settings: Settings,
    /// Names random numbers.
    pub seed: u64,
    /// The sites by name; `None` for all.
    pub modules: Option<Vec<String>>,
}

/// Replaces the sites of a scheme, to be trained. A site that does not have these settings, that would take no fewer bytes, or that
/// has a weight in common with one before it stays as it is, with a remark.
///
/// # Errors
/// [`PassError::Refused`] for a scheme that does not exist or cannot be trained, for settings that it does not have at any site,
/// sites that the graph does not have, and a weight that has numbers that are not finite.
pub fn scheme_for_training(
    g: &mut Graph,
    options: &SchemeTraining,
    cx: &mut Cx,
) -> Result<Changed, PassError> {
    let SchemeTraining { scheme: name, settings, seed, modules } = options;
    let asked = Choice { scheme: name.clone(), settings: settings.clone(), storage: None, seed: Some(*seed) };
    super::check(&asked).map_err(PassError::Refused)?;
    let scheme = super::scheme(name).filter(|scheme| scheme.facts().can_be_trained());
    let scheme =
        scheme.ok_or_else(|| PassError::Refused(format!("what `{name}` stores cannot be trained")))?;
    let taken = RefCell::new(HashSet::new());
    let choice = |site: &Site, fitted: &dyn Fitted, g: &Graph| {
        let settings = fitted.resolved(settings)?.settings;
        fitted.squared_error(&settings)?;
        if site.weights.iter().any(|weight| taken.borrow().contains(weight)) {
            return Err("one of its weights is replaced already".to_owned());
        }
        let mut after = g.clone();
        let patch = form(fitted, g, site, &settings).map_err(|error| error.to_string())?;
        after.apply(patch).map_err(|error| error.to_string())?;
        let before = site.bytes(g);
        let now = (stored_bytes(after)? + before).saturating_sub(stored_bytes(g.clone())?);
        if !site.weights.is_empty() && now >= before {
            return Err(format!("{now} bytes would not be fewer than {before}"));
        }
        taken.borrow_mut().extend(site.weights.iter().copied());
        Ok(settings)
    };
    layers_for_training(g, scheme, (*seed, modules.as_deref()), &choice, cx)
}

/// Bytes of the constants of a graph that are not dead.
fn stored_bytes(mut g: Graph) -> Result<u64, String> {
    RemoveDead.run(&mut g, &mut Cx::default()).map_err(|error| error.to_string())?;
    Ok(g.payloads().iter().map(|payload| payload.tensor().bytes().len() as u64).sum())
}

/// Settings of a form as a plan says them, unless the factors would not take fewer numbers than the weight.
fn smaller<F: Form>(
    g: &Graph,
    site: &Site,
    fitted: &dyn Fitted,
    settings: &F::Settings,
) -> Result<Settings, String> {
    let form = F::of(g, &Layer::of(g, site)).expect("sites have the form of their scheme");
    let numbers: usize = form.stored(settings)?.iter().map(Stored::count).sum();
    let dense = site.d_in * site.d_out;
    if numbers >= dense {
        return Err(format!("{numbers} numbers would not be fewer than {dense}"));
    }
    let written = Settings::write(settings);
    fitted.squared_error(&written).map(|_| written)
}

/// The settings for a site of a graph, or why it stays as it is.
type SiteChoice<'a> = &'a dyn Fn(&Site, &dyn Fitted, &Graph) -> Result<Settings, String>;

/// Replaces the sites of a scheme that are asked for, or all but those that have to be, without samples.
fn layers_for_training(
    g: &mut Graph,
    scheme: &dyn Scheme,
    (seed, modules): (u64, Option<&[String]>),
    choice: SiteChoice<'_>,
    cx: &mut Cx,
) -> Result<Changed, PassError> {
    let name = scheme.facts().name;
    let found: Vec<Site> = sites(g).into_iter().filter(|site| site.schemes.contains(&name)).collect();
    check_names(&found.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), modules)?;
    let mut pass = ApplyPlan::default();
    for site in found {
        if modules.map_or(site.only_by_name, |names| !names.contains(&site.name)) {
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
        let fitted = scheme.fit(&context);
        let fitted = fitted.map_err(|e| PassError::Refused(format!("`{}`: {e}", site.name)))?;
        match choice(&site, &*fitted, g) {
            Ok(settings) => {
                let choice = Choice { seed: Some(seed), ..Choice::new(name, &settings) };
                pass.choices.insert(site.name.clone(), choice);
                pass.fitted.insert(site.name, fitted.into());
            }
            Err(message) => cx.remarks.push(Remark { pass: name, at: site.name, message, declined: true }),
        }
    }
    pass.run(g, cx)
}
