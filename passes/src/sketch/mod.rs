//! Sites that can be sketched, and the schemes that do it.
//!
//! A [`Site`] is one constant weight, or several that change together, with the nodes that read them. A [`Scheme`] lists
//! the sites that it takes and looks at one once, with what calibration measured there. What comes of it, a [`Fitted`],
//! offers settings with their errors, and replaces the site at any of them. Settings are the scheme's own: it writes
//! them as a table of TOML and reads them back from a plan. Choosing among them is the business of the plan crate and the
//! driver; nothing here looks at a budget or a price.
//!
//! What a replacement inserts are ordinary operators over new constants. Constants name what they were derived from, and
//! nodes carry the site's name with a [`Part`](margay_ir::Part).
//!
//! - `layer`: one weight of a product, a convolution or a lookup, which most schemes take.
//! - `kernels`: convolutions that schemes of kernels take, which do not see a kernel as one matrix.
//! - `rows`, `moments`: what a site asks calibration to measure.
//! - `replacement`: a patch in the making.
//! - `forms`: forms of several factors, of which a scheme says how they are made and applied.
//! - `algebra`: those of them that are structures of the algebra of `margay-randnla`, and the nodes that apply these.
//! - `heads`: what schemes of attention share.
//! - `blocks`: positions in blocks and their means, for those of them that read keys together.
//! - `features`: random features of attention; `relative`: relative positions inside of them; `rest`: features of
//!   what windows do not read.
//! - `tt_rows`: tensor trains of tables, whose rows are looked up.
//! - `factors`: what a scheme has put into a graph, for those who train it, with `projections` around replaced
//!   attention; `ranks`: pairs of factors whose rank changes then.
//! - `training`: what is put in place of layers before a model is trained.

mod algebra;
mod blocks;
mod cp;
mod factors;
mod favor;
mod features;
mod forms;
mod heads;
mod interpolative;
mod kernels;
mod kronecker;
mod layer;
mod local;
mod lowrank;
mod lowrank_diag;
mod lowrank_sparse;
mod moments;
mod monarch;
mod neurons;
mod nystrom;
mod panther;
mod projections;
mod quantized;
mod ranks;
mod relative;
mod replacement;
mod rest;
mod rows;
mod spatial;
mod structured;
mod training;
mod tt;
mod tt_rows;
mod tucker;

pub use cp::CpScheme;
pub use factors::{Factored, Place, Stored, factored, learned};
pub use favor::FavorScheme;
pub use features::{FavorSettings, FeatureDirections, FeatureKernel};
pub use heads::HeadChoice;
pub use interpolative::InterpolativeScheme;
pub use kronecker::KroneckerScheme;
pub use layer::{Bias, Layer, layers, lookups, recurrences};
pub use local::{LocalScheme, LocalSettings, LocalSummary};
pub use lowrank::{DecompositionKey, Decompositions, Known, LowRankScheme};
pub use lowrank_diag::LowRankDiagScheme;
pub use lowrank_sparse::LowRankSparseScheme;
pub use moments::Moments;
pub use monarch::MonarchScheme;
pub use neurons::NeuronsScheme;
pub use nystrom::{NystromScheme, NystromSettings};
pub use panther::{PantherScheme, PantherSettings, Start};
pub use quantized::QuantizedScheme;
pub use ranks::{FactorPair, factor_pairs};
pub use relative::RelativePositions;
pub use replacement::{ApplyError, Replacement, form, patch};
pub use rows::{MAX_ROWS, RowKind, Rows, Thinning, Windows};
pub use spatial::SpatialScheme;
pub use structured::{StructureStart, StructuredScheme, StructuredSettings};
pub use training::{
    AttentionForm, AttentionTraining, LowRankTraining, PantherTraining, SchemeTraining, SketchTraining,
    StructuredForm, StructuredTraining, TrainingRank, attention_for_training, lowrank_for_training,
    panther_for_training, scheme_for_training, structured_for_training,
};
pub use tt::TtScheme;
pub use tucker::TuckerScheme;

use std::sync::Arc;

use margay_ir::{Graph, NodeId, Value};
use margay_loops::Precision;
use margay_plan::{Choice, Plan, PlanError, Settings};
use margay_randnla::RandnlaError;
use margay_tensor::Tensor;
use serde::de::DeserializeOwned;

use crate::StoreAs;

/// Weights that change together.
#[derive(Clone, PartialEq, Debug)]
pub struct Site {
    /// The name in plans and reports; unique.
    pub name: String,
    /// What it is, in one word for reports: `linear`, `conv`, `embedding`, `recurrent`.
    pub kind: &'static str,
    /// Whether it is replaced only where a plan names it, and its bytes count for budgets only there.
    pub only_by_name: bool,
    /// Length of the rows that go in.
    pub d_in: usize,
    /// Length of the rows that come out.
    pub d_out: usize,
    /// The constants that go. Of sites with a weight in common, one at most can be sketched.
    pub weights: Vec<Value>,
    /// The nodes that are replaced, in topological order.
    pub nodes: Vec<NodeId>,
    /// What calibration is to measure: for each of the moments that its schemes read, the rows that are summed.
    pub measures: Vec<Vec<Rows>>,
    /// The values of which its schemes see what they were in a few runs.
    pub samples: Vec<Value>,
    /// The values at which its errors enter, as rows of `d_out` numbers: what gradients are measured by.
    pub results: Vec<Rows>,
    /// Names of the schemes that take it.
    pub schemes: Vec<&'static str>,
}

impl Site {
    /// Bytes of its weights in the graph.
    pub fn bytes(&self, g: &Graph) -> u64 {
        let bytes = |weight: &Value| g.constant(*weight).map_or(0, |c| c.tensor().bytes().len() as u64);
        self.weights.iter().map(bytes).sum()
    }

    /// The same site in another graph, without what was to be measured.
    #[must_use]
    pub fn mapped(&self, map: &dyn Fn(NodeId) -> NodeId) -> Site {
        Site {
            weights: self.weights.iter().map(|v| Value { node: map(v.node), out: v.out }).collect(),
            nodes: self.nodes.iter().map(|n| map(*n)).collect(),
            measures: Vec::new(),
            samples: Vec::new(),
            results: Vec::new(),
            ..self.clone()
        }
    }
}

/// What a scheme says of itself, apart from any site.
#[derive(Clone, Copy, Debug)]
pub struct SchemeFacts {
    /// The name in plans.
    pub name: &'static str,
    /// Why this is for plans that name it, and never to be chosen by its errors; `None` where an allocator may.
    pub only_by_name: Option<&'static str>,
    /// Whether it stores weights in fewer bits and does no less with them: an allocator is offered it where the constants of
    /// the model are to be stored narrow.
    pub is_storage: bool,
    /// What a plan says where the examples in the head of its file are made, in their order: settings as TOML, and a seed.
    pub examples: &'static [&'static str],
    /// Says what is wrong with settings, whatever the site.
    pub check: fn(&Settings) -> Result<(), String>,
}

impl SchemeFacts {
    /// Whether a model may be trained with what it puts into a graph: what is stored in a few bits does not move.
    pub fn can_be_trained(&self) -> bool {
        !self.is_storage
    }
}

/// A way to replace a site.
pub trait Scheme: Sync {
    /// What it says of itself.
    fn facts(&self) -> SchemeFacts;

    /// The sites of a canonical graph that it takes. Nodes that a rewrite made are left out, so that applying a plan twice
    /// changes nothing.
    fn sites(&self, g: &Graph) -> Vec<Site>;

    /// Says what is wrong with settings for a site, before anything is measured: that of a scheme of weights depends on their
    /// extents.
    ///
    /// # Errors
    /// Why these settings are not offered, in words.
    fn check_at(&self, _: &Graph, _: &Site, settings: &Settings) -> Result<(), String> {
        (self.facts().check)(settings)
    }

    /// Looks at a site. Costs a factorization; everything afterwards is cheap.
    ///
    /// # Errors
    /// Weights or samples that cannot be factorized.
    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError>;

    /// What it has put into a graph, as far as that can be told from the graph alone.
    fn factors(&self, g: &Graph) -> Vec<Factored>;
}

/// What a scheme looks at.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// One of its sites.
    pub site: &'a Site,
    /// What was asked for in [`Site::measures`], in that order; absent without samples.
    pub moments: Option<&'a [Arc<Moments>]>,
    /// By run, what the values of [`Site::samples`] were; absent without samples, and where the site asks for none.
    pub samples: Option<&'a [Vec<Tensor>]>,
    /// Moments of the gradients of the model's outputs by [`Site::results`]: errors weigh by them; absent where that is not
    /// known.
    pub metric: Option<&'a Arc<Moments>>,
    /// What schemes share, of one graph with one set of samples.
    pub decompositions: &'a Decompositions,
    /// Names the random numbers.
    pub seed: u64,
}

/// A scheme that has looked at a site.
pub trait Fitted: Send + Sync {
    /// The settings that an allocator may choose among, from the smallest sketch to the largest: all with fewer
    /// numbers than the weights. None for a scheme that is chosen by name alone.
    fn candidates(&self) -> Vec<Settings> {
        Vec::new()
    }

    /// The settings, of about half the numbers of the weights, at which the site is replaced to measure how much its
    /// error weighs in the outputs; `None` where there are none.
    fn probe(&self) -> Option<Settings> {
        None
    }

    /// The settings that those of a plan stand for. A scheme that measures may take a part of a site only, and says of the
    /// others why not; most take settings as they are.
    ///
    /// # Errors
    /// Why these settings are not offered, in words.
    fn resolved(&self, settings: &Settings) -> Result<Resolved, String> {
        Ok(Resolved { settings: settings.clone(), remarks: Vec::new() })
    }

    /// Predicted squared error of the site's output over its squared norm (centred where there are moments), on the
    /// calibration inputs; both in the metric of the outputs, where there is one.
    ///
    /// # Errors
    /// Why these settings are not offered, in words.
    fn squared_error(&self, settings: &Settings) -> Result<f64, String>;

    /// Replaces the site. Nodes and shapes of constants depend on the site, the settings and whether there were samples, and
    /// on nothing else.
    ///
    /// # Errors
    /// [`ApplyError`].
    fn replace(&self, work: &mut Replacement<'_>, site: &Site, settings: &Settings)
    -> Result<(), ApplyError>;
}

/// What settings of a plan stand for.
#[derive(Clone, PartialEq, Debug)]
pub struct Resolved {
    /// The settings with nothing left to what is measured.
    pub settings: Settings,
    /// What of the site stays as it is, and why.
    pub remarks: Vec<String>,
}

/// All schemes, sorted by name.
pub const SCHEMES: &[&dyn Scheme] = &[
    &CpScheme,
    &FavorScheme,
    &InterpolativeScheme,
    &KroneckerScheme,
    &LocalScheme,
    &LowRankScheme,
    &LowRankDiagScheme,
    &LowRankSparseScheme,
    &MonarchScheme,
    &NeuronsScheme,
    &NystromScheme,
    &PantherScheme,
    &QuantizedScheme,
    &SpatialScheme,
    &StructuredScheme,
    &TtScheme,
    &TuckerScheme,
];

/// The scheme with this name.
pub fn scheme(name: &str) -> Option<&'static dyn Scheme> {
    SCHEMES.iter().copied().find(|s| s.facts().name == name)
}

/// The sites of a graph, by their first nodes in topological order, those of one weight before those of several.
pub fn sites(g: &Graph) -> Vec<Site> {
    let mut all: Vec<Site> = Vec::new();
    for mut site in SCHEMES.iter().flat_map(|s| s.sites(g)) {
        let same = |other: &&mut Site| {
            other.weights == site.weights
                && other.nodes == site.nodes
                && other.measures == site.measures
                && other.samples == site.samples
        };
        if let Some(known) = all.iter_mut().find(same) {
            known.schemes.append(&mut site.schemes);
            continue;
        }
        site.name = unique(site.name, |name| all.iter().any(|s| s.name == name));
        all.push(site);
    }
    let order: std::collections::HashMap<NodeId, usize> =
        g.order().into_iter().enumerate().map(|(i, n)| (n, i)).collect();
    all.sort_by_key(|s| (s.nodes.first().and_then(|n| order.get(n).copied()), s.weights.len()));
    all
}

/// Whether a plan may say this.
///
/// # Errors
/// A scheme or a storage that does not exist, and what the scheme says of its settings.
pub fn check(choice: &Choice) -> Result<(), String> {
    if let Some(storage) = choice.storage.as_deref().filter(|s| StoreAs::parse(s).is_none()) {
        let words = Precision::ALL.map(Precision::name).join("`, `");
        return Err(format!("unknown storage `{storage}`; known are `{words}`, and such as `i8(axis = 1)`"));
    }
    match scheme(&choice.scheme) {
        Some(scheme) => (scheme.facts().check)(&choice.settings),
        None if choice.is_dense() => Ok(()),
        None => {
            let known: Vec<&str> = SCHEMES.iter().map(|s| s.facts().name).collect();
            let known = known.join("`, `");
            Err(format!(
                "unknown scheme `{}`; known are `{}`, `{known}`",
                choice.scheme,
                margay_plan::plan::DENSE
            ))
        }
    }
}

/// Reads a plan.
///
/// # Errors
/// As [`Plan::from_toml`].
pub fn read_plan(text: &str) -> Result<Plan, PlanError> {
    Plan::from_toml(text, &check)
}

/// What a site of these nodes is called: the first name of one of them in the model, or the operator of the first.
fn name_of(g: &Graph, nodes: &[NodeId]) -> String {
    let names = nodes.iter().map(|n| g.node(*n).origin.name());
    let operator = nodes.iter().map(|n| g.op(*n).name());
    names.chain(operator).find(|name| !name.is_empty()).unwrap_or_default().to_owned()
}

/// The name, or the first of `name#2`, `name#3`, … that is free.
fn unique(name: String, taken: impl Fn(&str) -> bool) -> String {
    match taken(&name) {
        false => name,
        true => (2..).map(|i| format!("{name}#{i}")).find(|n| !taken(n)).expect("one of so many is free"),
    }
}

/// An error unless settings are of a type.
fn reads<T: DeserializeOwned>(settings: &Settings) -> Result<(), String> {
    settings.read::<T>().map(drop)
}

/// The ranks up to `max` that are offered to an allocator.
fn rank_grid(max: usize) -> impl Iterator<Item = usize> {
    let step = if max > 128 { 8 } else { 2 };
    (step..=max).step_by(step)
}

/// An error unless a rank is offered.
fn check_rank(rank: usize, max: usize) -> Result<(), String> {
    match (1..=max).contains(&rank) {
        true => Ok(()),
        false => Err(format!("rank {rank} is not offered, expected 1 to {max}")),
    }
}
