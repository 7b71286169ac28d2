//! What layers are replaced by before training.

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use margay::{
    AttentionForm, AttentionTraining, FavorSettings, FeatureKernel, LocalSettings, LocalSummary,
    LowRankTraining, NystromSettings, PantherTraining, RankLimit, RankSelection, RelativePositions, SCHEMES,
    SchemeTraining, Settings, SketchTraining, Start, StructureStart, StructuredForm, StructuredSettings,
    StructuredTraining, TrainingRank,
};

use crate::args::{at_least_one, positive};
use crate::error::Failure;

/// The schemes with options of their own; all others are given as `--settings`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scheme {
    Panther,
    Lowrank,
    LowrankDiag,
    Tt,
    Structured,
    Favor,
    Nystrom,
    Local,
}

/// The function of random features.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kernel {
    Softmax,
    Relu,
}

/// What factors are at first.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Begin {
    LeastSquares,
    Unbiased,
    Random,
}

/// A rank for all layers, or one for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RankArg {
    Fixed(usize),
    Auto,
}

fn rank(text: &str) -> Result<RankArg, String> {
    match text {
        "auto" => Ok(RankArg::Auto),
        _ => at_least_one(text).map(RankArg::Fixed).map_err(|why| format!("{why}, or `auto`")),
    }
}

/// Sketches in place of layers, trained from the beginning.
#[derive(clap::Args)]
pub(super) struct SketchArgs {
    /// Replace layers by sketches before training: weights by products with random signs that stay and factors that are
    /// trained (panther), by two factors (lowrank), by two factors and a diagonal (lowrank-diag), by a tensor train (tt) or by a structure
    /// that --form says (structured), or attention by random features (favor), by landmarks (nystrom) or by windows (local). All
    /// other schemes of plans that can be trained take --settings.
    #[arg(long, value_name = "SCHEME", value_parser = PossibleValuesParser::new(trained_schemes()))]
    scheme: Option<String>,
    /// With schemes that have no options here: their settings as in a plan, such as 'block = [4, 8], terms = 2' for kronecker or
    /// 'ranks = [8, 16]' for tucker. Layers that do not have them stay.
    #[arg(long, value_name = "TOML", requires = "scheme")]
    settings: Option<String>,
    /// With --scheme panther: columns of each sketch. With --scheme lowrank and lowrank-diag: columns of the left factor. With
    /// --scheme tt: the greatest rank between two cores. With --scheme lowrank also auto: factors begin with the greatest rank
    /// that saves numbers, and during training each layer keeps the rank that the loss needs. Layers that would not get
    /// smaller stay.
    #[arg(
        long, value_name = "K|auto", value_parser = rank, requires = "scheme",
        required_if_eq_any([("scheme", "panther"), ("scheme", "lowrank"), ("scheme", "lowrank-diag"), ("scheme", "tt")]),
    )]
    rank: Option<RankArg>,
    /// With --rank auto: the share of the numbers of the weights that their factors have in the end.
    #[arg(long, value_name = "SHARE", value_parser = positive, requires = "rank", conflicts_with = "loss_change")]
    keep: Option<f64>,
    /// With --rank auto: ranks fall as far as the loss changes by at most this share of it, each of the five times that they are
    /// chosen [default: 0.02].
    #[arg(long, value_name = "SHARE", value_parser = positive, requires = "rank")]
    loss_change: Option<f64>,
    /// With --scheme panther: sketches that are averaged [default: 1].
    #[arg(long, value_name = "L", requires = "scheme", value_parser = at_least_one)]
    terms: Option<usize>,
    /// With --scheme tt: cores of each weight, at least 2 [default: 3].
    #[arg(long, value_name = "N", requires = "scheme", value_parser = at_least_one)]
    cores: Option<usize>,
    /// With --scheme structured: the structure, such as '16x8 ⊗ 48x48 + 768x16 · 16x384' (`(x)` and `*` are read too). Layers of
    /// its shape take it.
    #[arg(long, value_name = "TEXT", requires = "scheme", required_if_eq("scheme", "structured"))]
    form: Option<String>,
    /// With --scheme panther: sketch the kernels of convolutions on both sides, over outputs and over channels.
    #[arg(long, requires = "scheme")]
    two_sided: bool,
    /// With --scheme favor: features of a query or key. With --scheme local: read what is beyond the windows by so many.
    #[arg(long, value_name = "M", value_parser = at_least_one, requires = "scheme", required_if_eq("scheme", "favor"))]
    features: Option<usize>,
    /// With --scheme favor: the function of random features [default: softmax].
    #[arg(long, value_name = "KERNEL", requires = "scheme")]
    kernel: Option<Kernel>,
    /// With --features: draw the directions of features anew after every so many steps [default: never].
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..), requires = "scheme")]
    redraw: Option<u64>,
    /// With --scheme favor: relative positions as so many trained waves of each entry of a head.
    #[arg(long, value_name = "S", value_parser = at_least_one, requires = "scheme")]
    sines: Option<usize>,
    /// With --sines: draws of noise that estimate products of queries and keys with their positions [default: 64].
    #[arg(long, value_name = "R", value_parser = at_least_one, requires = "sines")]
    realizations: Option<usize>,
    /// With --sines: mix relative positions with none, by a trained share for each entry of a head.
    #[arg(long, requires = "sines")]
    gated: bool,
    /// With --scheme nystrom: means of queries and of keys.
    #[arg(long, value_name = "M", value_parser = at_least_one, requires = "scheme", required_if_eq("scheme", "nystrom"))]
    landmarks: Option<usize>,
    /// With --scheme local: positions before a query that it reads, and as many after it.
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "scheme", required_if_eq("scheme", "local"))]
    window: Option<usize>,
    /// With --scheme local: first positions that are read by all [default: 0].
    #[arg(long, value_name = "N", requires = "scheme")]
    global: Option<usize>,
    /// With --scheme local: read what is beyond the windows by the means of blocks.
    #[arg(long, requires = "window")]
    means: bool,
    /// With --scheme: the layers by name [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "scheme")]
    layers: Option<Vec<String>>,
    /// With --scheme panther and structured: what the factors are at first [default: least-squares, or random with --init].
    #[arg(long, value_name = "START", requires = "scheme")]
    start: Option<Begin>,
}

/// The names of all schemes that a model can be trained with.
fn trained_schemes() -> Vec<&'static str> {
    let trained = SCHEMES.iter().map(|scheme| scheme.facts()).filter(|facts| facts.can_be_trained());
    trained.map(|facts| facts.name).collect()
}

/// The default of `--loss-change`.
const DEFAULT_LOSS_CHANGE: f64 = 0.02;

/// The default of `--realizations`.
const DEFAULT_REALIZATIONS: usize = 64;

/// The default of `--cores`.
const DEFAULT_CORES: usize = 3;

impl SketchArgs {
    /// The sketches that are asked for.
    pub(super) fn sketches(&self, seed: u64, anew: bool) -> Result<Option<SketchTraining>, Failure> {
        let Some(name) = &self.scheme else { return Ok(None) };
        let own = Scheme::from_str(name, false).ok();
        self.check(name, own)?;
        let modules = self.layers.clone();
        let Some(scheme) = own else {
            let settings = self.settings(name)?;
            return Ok(Some(SketchTraining::Scheme(SchemeTraining {
                scheme: name.clone(),
                settings,
                seed,
                modules,
            })));
        };
        let attention =
            |form| SketchTraining::Attention(AttentionTraining { form, seed, modules: modules.clone() });
        let structured =
            |form| SketchTraining::Structured(StructuredTraining { form, seed, modules: modules.clone() });
        Ok(Some(match scheme {
            Scheme::Panther => SketchTraining::Panther(PantherTraining {
                rank: self.fixed_rank()?,
                terms: self.terms.unwrap_or(1),
                start: self.start(anew),
                two_sided: self.two_sided,
                seed,
                modules,
            }),
            Scheme::Lowrank => {
                let rank = match self.rank {
                    Some(RankArg::Auto) => TrainingRank::Greatest,
                    _ => TrainingRank::Fixed(self.fixed_rank()?),
                };
                SketchTraining::LowRank(LowRankTraining { rank, seed, modules })
            }
            Scheme::LowrankDiag => structured(StructuredForm::LowRankDiag { rank: self.fixed_rank()? }),
            Scheme::Tt => {
                let cores = self.cores.unwrap_or(DEFAULT_CORES);
                structured(StructuredForm::TensorTrain { cores, rank: self.fixed_rank()? })
            }
            Scheme::Structured => {
                let start = match self.start(anew) {
                    Start::LeastSquares => StructureStart::Fitted,
                    Start::Random => StructureStart::Random,
                    Start::Unbiased => {
                        return Err(Failure::usage("`--start unbiased` is for `--scheme panther`"));
                    }
                };
                let settings = StructuredSettings { form: self.form.clone().unwrap_or_default(), start };
                settings.structure().map_err(|why| Failure::usage(format!("`--form`: {why}")))?;
                structured(StructuredForm::Structure(settings))
            }
            Scheme::Favor => {
                let kernel = match self.kernel.unwrap_or(Kernel::Softmax) {
                    Kernel::Softmax => FeatureKernel::Softmax,
                    Kernel::Relu => FeatureKernel::Relu,
                };
                let settings = FavorSettings::new(self.features.unwrap_or_default());
                let relative = self.sines.map(|sines| RelativePositions {
                    sines,
                    realizations: self.realizations.unwrap_or(DEFAULT_REALIZATIONS),
                    gated: self.gated,
                });
                attention(AttentionForm::Favor(FavorSettings { kernel, relative, ..settings }))
            }
            Scheme::Nystrom => {
                attention(AttentionForm::Nystrom(NystromSettings::new(self.landmarks.unwrap_or_default())))
            }
            Scheme::Local => {
                let settings = LocalSettings::new(self.window.unwrap_or_default());
                let summary = match (self.means, self.features) {
                    (true, Some(_)) => {
                        return Err(Failure::usage(
                            "`--means` and `--features` of `--scheme local` are two ways to read the rest",
                        ));
                    }
                    (true, None) => Some(LocalSummary::Means),
                    (false, Some(_)) => Some(LocalSummary::Features),
                    (false, None) => None,
                };
                attention(AttentionForm::Local(LocalSettings {
                    global: self.global.unwrap_or(0),
                    features: self.features.unwrap_or(0),
                    summary,
                    ..settings
                }))
            }
        }))
    }

    /// The settings of a scheme without options of its own.
    fn settings(&self, scheme: &str) -> Result<Settings, Failure> {
        let facts = SCHEMES.iter().map(|s| s.facts()).find(|facts| facts.name == scheme);
        let example = facts.and_then(|facts| facts.examples.first()).copied().unwrap_or_default();
        let asked = self.settings.as_deref().ok_or_else(|| {
            Failure::usage(format!("`--scheme {scheme}` needs `--settings`, such as '{example}'"))
        })?;
        Settings::parse(asked).map_err(|why| Failure::usage(format!("`--settings`: {why}")))
    }

    /// Steps after which directions are drawn anew.
    pub(super) fn redraw(&self) -> Option<u64> {
        self.redraw
    }

    /// How ranks are chosen during training.
    pub(super) fn ranks(&self) -> Result<Option<RankSelection>, Failure> {
        match (self.rank, self.keep, self.loss_change) {
            (Some(RankArg::Auto), Some(keep), _) => Ok(Some(RankSelection::new(RankLimit::Share(keep)))),
            (Some(RankArg::Auto), None, change) => {
                let change = change.unwrap_or(DEFAULT_LOSS_CHANGE);
                Ok(Some(RankSelection::new(RankLimit::LossChange(change))))
            }
            (_, None, None) => Ok(None),
            _ => Err(Failure::usage("`--keep` and `--loss-change` need `--rank auto`")),
        }
    }

    /// An error for an option of another scheme.
    fn check(&self, name: &str, scheme: Option<Scheme>) -> Result<(), Failure> {
        if self.settings.is_some() && scheme.is_some() {
            return Err(Failure::usage(format!(
                "`--scheme {name}` has options of its own, and no `--settings`"
            )));
        }
        let ranked = &[Scheme::Panther, Scheme::Lowrank, Scheme::LowrankDiag, Scheme::Tt];
        let of: [(&str, bool, &[Scheme]); 13] = [
            ("--rank", self.rank.is_some(), ranked),
            ("--cores", self.cores.is_some(), &[Scheme::Tt]),
            ("--terms", self.terms.is_some(), &[Scheme::Panther]),
            ("--kernel", self.kernel.is_some(), &[Scheme::Favor]),
            ("--sines", self.sines.is_some(), &[Scheme::Favor]),
            ("--global", self.global.is_some(), &[Scheme::Local]),
            ("--two-sided", self.two_sided, &[Scheme::Panther]),
            ("--start", self.start.is_some(), &[Scheme::Panther, Scheme::Structured]),
            ("--form", self.form.is_some(), &[Scheme::Structured]),
            ("--features", self.features.is_some(), &[Scheme::Favor, Scheme::Local]),
            ("--redraw", self.redraw.is_some(), &[Scheme::Favor, Scheme::Local]),
            ("--landmarks", self.landmarks.is_some(), &[Scheme::Nystrom]),
            ("--window", self.window.is_some(), &[Scheme::Local]),
        ];
        let takes = |schemes: &[Scheme]| scheme.is_some_and(|scheme| schemes.contains(&scheme));
        match of.iter().find(|(_, given, schemes)| *given && !takes(schemes)) {
            None => Ok(()),
            Some((option, _, schemes)) => {
                let names = schemes.iter().filter_map(ValueEnum::to_possible_value);
                let names: Vec<String> =
                    names.map(|name| format!("`--scheme {}`", name.get_name())).collect();
                Err(Failure::usage(format!("`{option}` is for {}", names.join(" and "))))
            }
        }
    }

    fn fixed_rank(&self) -> Result<usize, Failure> {
        match self.rank {
            Some(RankArg::Fixed(rank)) => Ok(rank),
            _ => Err(Failure::usage("`--rank auto` is for `--scheme lowrank`")),
        }
    }

    fn start(&self, anew: bool) -> Start {
        match (self.start, anew) {
            (Some(Begin::LeastSquares), _) | (None, false) => Start::LeastSquares,
            (Some(Begin::Unbiased), _) => Start::Unbiased,
            (Some(Begin::Random), _) | (None, true) => Start::Random,
        }
    }
}
