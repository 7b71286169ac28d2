//! Two thinner products in place of one: `x W ≈ (x A) B`, and the same for the unfolded kernel of a convolution.
//!
//! Factors come from the singular value decomposition of the weight, whitened by the layer's inputs where calibration
//! measured them (see [`margay_randnla::LowRank`]). A convolution becomes one with `k` filters followed by a
//! 1x1 convolution, each in as many groups as there were: every group has factors of its own, of one rank. What the factors leave
//! out of the mean output is added to the bias.
//!
//! ```text
//! graph @before(%x: f32[N, 64]) -> (y: f32[N, 32]) {
//!   %0 = const #5be1c0 : f32[64, 32]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 32]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 64]) -> (y: f32[N, 32]) {
//!   %0 = const lowrank.left(#5be1c0, k = 8) : f32[64, 8]  // fc1.weight left
//!   %1 = const lowrank.right(#5be1c0, k = 8) : f32[8, 32]  // fc1.weight right
//!   %2 = matmul %x, %0 : f32[N, 8]  // fc1/MatMul left
//!   %3 = matmul %2, %1 : f32[N, 32]  // fc1/MatMul right
//!   return %3
//! }
//! ```
//!
//! A lookup of rows of a table multiplies it by rows with a single one, and becomes a lookup in the left factor and a product. Rows
//! of the table weigh by how often samples look them up, and once more each (see [`Moments::of_inputs`]); there is no correction of
//! the mean, and the factors are not refitted.
//!
//! ```text
//! graph @before(%t: i64[N, 16]) -> (y: f32[N, 16, 32]) {
//!   %0 = const #5be1c0 : f32[64, 32]  // embed.weight
//!   %1 = gather %0, %t {axis = 0} : f32[N, 16, 32]  // embed
//!   return %1
//! }
//! graph @after(%t: i64[N, 16]) -> (y: f32[N, 16, 32]) {
//!   %0 = const lowrank.left(#5be1c0, k = 8) : f32[64, 8]  // embed.weight left
//!   %1 = const lowrank.right(#5be1c0, k = 8) : f32[8, 32]  // embed.weight right
//!   %2 = gather %0, %t {axis = 0} : f32[N, 16, 8]  // embed left
//!   %3 = matmul %2, %1 : f32[N, 16, 32]  // embed right
//!   return %3
//! }
//! ```
//!
//! A recurrence gets two factors in place of the weights of its state, which its loop multiplies with one after the other.
//! Their inputs are the states that it shows. There is no correction of the mean, since not all cells have a bias where the
//! product enters, and the factors are not refitted. Where gates differ in what they read or add to, as in a GRU, the error is
//! predicted as if they did not.
//!
//! ```text
//! graph @before(%x: f32[T, 2, 6], %h: f32[2, 6]) -> (y: f32[T, 2, 6]) {
//!   %0 = const #5be1c0 : f32[6, 6]  // rnn.weight
//!   %1 = recurrence %x, %0, %h {cell = rnn, activations = [Tanh]} : f32[T, 2, 6], f32[2, 6]  // rnn
//!   return %1
//! }
//! graph @after(%x: f32[T, 2, 6], %h: f32[2, 6]) -> (y: f32[T, 2, 6]) {
//!   %0 = const lowrank.left(#5be1c0, k = 1) : f32[6, 1]  // rnn.weight left
//!   %1 = const lowrank.right(#5be1c0, k = 1) : f32[1, 6]  // rnn.weight right
//!   %2 = matmul %0, %1 : f32[6, 6]  // rnn right
//!   %3 = recurrence %x, %2, %h {cell = rnn, activations = [Tanh]} : f32[T, 2, 6], f32[2, 6]  // rnn
//!   return %3
//! }
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use margay_ir::{Graph, NodeId, Part};
use margay_plan::Settings;
use margay_randnla::{Factors, LowRank, LowRankOptions, Matrix, RandnlaError, RsvdOptions, Subset};
use serde::{Deserialize, Serialize};

use super::kernels::matrices;
use super::moments::Seen;
use super::{
    ApplyError, Context, Factored, Fitted, Layer, Replacement, Scheme, SchemeFacts, Site, check_rank,
    factors, layers, lookups, moments, rank_grid, reads, recurrences,
};

/// Low-rank factors.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowRankScheme;

/// What a plan says of factors of any gauge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RankSettings {
    /// Columns of the left factor.
    rank: usize,
}

impl RankSettings {
    /// Factors of a rank.
    pub(super) fn new(rank: usize) -> RankSettings {
        RankSettings { rank }
    }

    pub(super) fn check(settings: &Settings) -> Result<(), String> {
        reads::<RankSettings>(settings)
    }

    /// As [`Scheme::check_at`].
    pub(super) fn check_at(g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        let RankSettings { rank } = settings.read()?;
        check_rank(rank, Offered::of(&Layer::of(g, site)).max_rank)
    }
}

/// How weights are decomposed, and up to which rank.
#[derive(Clone, Copy)]
struct Offered {
    /// Large weights are decomposed by a randomized method, which pays for ranks well below the full one.
    randomized: bool,
    max_rank: usize,
}

impl Offered {
    fn of(layer: &Layer) -> Offered {
        let (d_in, d_out) = (layer.d_in, layer.outputs());
        let smaller = d_in.min(d_out);
        let randomized = smaller > LowRankOptions::default().exact_up_to;
        let saving = (d_in * d_out).saturating_sub(1) / (d_in + d_out);
        let max_rank = if randomized { saving.min(2 * smaller / 5) } else { smaller };
        Offered { randomized, max_rank: max_rank.max(1) }
    }
}

impl Scheme for LowRankScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "lowrank",
            only_by_name: None,
            is_storage: false,
            // Of a product, of a lookup and of a recurrence.
            examples: &["rank = 8", "rank = 8", "rank = 1"],
            check: RankSettings::check,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        let others = [lookups(g), recurrences(g)].concat();
        layers(g).iter().chain(&others).map(|layer| layer.site(g, self.facts().name)).collect()
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        RankSettings::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Ok(Box::new(FittedLowRank::new(context)?))
    }

    fn factors(&self, g: &Graph) -> Vec<Factored> {
        factors::two_products(g)
    }
}

/// Names a decomposition: the nodes that read the weight, and the seed.
pub type DecompositionKey = (Vec<NodeId>, u64);

/// Decompositions of the weights of one graph, for one set of samples.
#[derive(Default)]
pub struct Decompositions {
    /// Of weights, which several schemes look at.
    pub low_rank: Known<LowRank>,
    /// Orders of the units of a layer.
    pub subsets: Known<Subset>,
}

/// Decompositions of one kind, by the nodes that read the weight and the seed. The first to ask computes, and all others
/// share.
pub struct Known<T>(Mutex<HashMap<DecompositionKey, Shared<T>>>);

type Decomposed<T> = Result<Arc<T>, RandnlaError>;
type Shared<T> = Arc<OnceLock<Decomposed<T>>>;

impl<T> Default for Known<T> {
    fn default() -> Self {
        Known(Mutex::default())
    }
}

impl<T> Known<T> {
    /// What was known before.
    pub fn of(known: impl IntoIterator<Item = (DecompositionKey, T)>) -> Known<T> {
        let shared = |(key, found)| (key, Arc::new(OnceLock::from(Ok(Arc::new(found)))));
        Known(Mutex::new(known.into_iter().map(shared).collect()))
    }

    /// What is known now, sorted.
    pub fn all(&self) -> Vec<(DecompositionKey, Arc<T>)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |(key, shared): (&DecompositionKey, &Shared<T>)| {
            Some((key.clone(), shared.get()?.as_ref().ok()?.clone()))
        };
        let mut all: Vec<_> = known.iter().filter_map(found).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    pub(super) fn get(
        &self,
        nodes: &[NodeId],
        seed: u64,
        compute: impl FnOnce() -> Result<T, RandnlaError>,
    ) -> Decomposed<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.entry((nodes.to_vec(), seed)).or_default().clone();
        drop(known);
        place.get_or_init(|| compute().map(Arc::new)).clone()
    }
}

/// The decompositions of a layer's weight, one for each group.
pub(super) struct FittedLowRank {
    pub(super) decompositions: Vec<Arc<LowRank>>,
    /// What identifies the weight.
    source: String,
    /// What was measured, for the names of constants.
    measured: String,
    corrects: bool,
    /// The seed, where the factors depend on it.
    seed: Option<u64>,
    /// Biases that the correction of the mean adds.
    pub(super) new_biases: usize,
    /// Those of one group.
    pub(super) d_in: usize,
    pub(super) outputs: usize,
}

impl FittedLowRank {
    pub(super) fn new(context: &Context<'_>) -> Result<FittedLowRank, RandnlaError> {
        let (g, seed) = (context.graph, context.seed);
        let layer = Layer::of(g, context.site);
        let (d_in, d_out) = (layer.d_in, layer.outputs());
        let corrects = context.moments.is_some_and(|m| m[0].is_centred()) && !layer.is_recurrent();
        let rsvd = RsvdOptions { seed, ..RsvdOptions::default() };
        let Offered { randomized, max_rank } = Offered::of(&layer);
        let options = LowRankOptions { max_rank: Some(max_rank), rsvd, ..LowRankOptions::default() };
        let decompose = |weight: &Matrix, seen: &Seen| {
            let (inputs, outputs) = (seen.whitening()?, seen.outputs()?);
            LowRank::new(weight, inputs.as_ref(), outputs.as_ref(), &options)
        };
        let decompositions = match layer.groups() {
            1 => {
                let seen = || match layer.is_recurrent() {
                    true => Seen::about_zero(context),
                    false => Seen::of(context),
                };
                let whole = || decompose(&layer.matrix(g)?, &seen());
                vec![context.decompositions.low_rank.get(&layer.nodes, seed, whole)?]
            }
            // Those of groups are small, and made anew by whoever asks.
            _ => {
                let weights = matrices(g, &layer)?.into_iter();
                let groups = weights.zip(Seen::of_groups(context, &layer)?);
                groups
                    .map(|(weight, seen)| Ok(Arc::new(decompose(&weight, &seen)?)))
                    .collect::<Result<_, _>>()?
            }
        };
        Ok(FittedLowRank {
            decompositions,
            source: layer.payload(g).key().to_string(),
            measured: moments::source(context),
            corrects,
            seed: randomized.then_some(seed),
            new_biases: if corrects { layer.without_bias(g) } else { 0 },
            d_in,
            outputs: d_out,
        })
    }

    /// Outputs of all groups.
    pub(super) fn d_out(&self) -> usize {
        self.decompositions.len() * self.outputs
    }

    fn numbers(&self, rank: usize) -> usize {
        let groups = self.decompositions.len();
        groups * rank * (self.d_in + self.outputs) + self.new_biases * self.d_out()
    }

    /// The greatest rank of each group.
    fn max_rank(&self) -> usize {
        self.decompositions.iter().map(|group| group.max_rank()).min().unwrap_or(0)
    }

    /// The largest rank that takes fewer numbers than so many, where `numbers` says what one takes.
    fn largest(&self, below: usize, numbers: impl Fn(usize) -> usize) -> usize {
        (1..=self.max_rank()).take_while(|rank| numbers(*rank) < below).last().unwrap_or(0)
    }

    /// The ranks on offer: those that take fewer numbers than the weight.
    pub(super) fn candidates_of(&self, numbers: impl Fn(usize) -> usize) -> Vec<Settings> {
        let most = self.largest(self.d_in * self.d_out(), numbers);
        rank_grid(most).map(|rank| Settings::write(&RankSettings { rank })).collect()
    }

    /// The rank that takes half as many numbers as the weight, if there is one.
    pub(super) fn probe_of(&self, numbers: impl Fn(usize) -> usize) -> Option<Settings> {
        let rank = self.largest(self.d_in * self.d_out() / 2 + 1, numbers);
        (rank > 0).then(|| Settings::write(&RankSettings { rank }))
    }

    /// The rank that settings name. A plan may name ranks that save nothing, up to the exact one.
    pub(super) fn rank(&self, settings: &Settings) -> Result<usize, String> {
        let RankSettings { rank } = settings.read()?;
        check_rank(rank, self.max_rank())?;
        Ok(rank)
    }

    /// Whether the mean of the output is corrected.
    pub(super) fn corrects(&self) -> bool {
        self.corrects
    }

    /// What contents depend on that are derived at a rank.
    pub(super) fn source(&self, rank: usize) -> String {
        let seed = self.seed.map(|s| format!(", seed = {s}")).unwrap_or_default();
        format!("{}, k = {rank}{}{seed}", self.source, self.measured)
    }

    /// Squared error of a rank, relative to the squared norm of the output.
    pub(super) fn relative_error(&self, rank: usize) -> f64 {
        let energy: f64 = self.decompositions.iter().map(|group| group.energy()).sum();
        let error: f64 = self.decompositions.iter().map(|group| group.squared_errors()[rank]).sum();
        if energy > 0.0 { error / energy } else { 0.0 }
    }

    /// The factors of a rank of every group.
    ///
    /// # Errors
    /// Of [`LowRank::factors`].
    pub(super) fn factors(&self, rank: usize) -> Result<Vec<Factors>, RandnlaError> {
        self.decompositions.iter().map(|group| group.factors(rank)).collect()
    }

    /// The name of a derived constant.
    fn derivation(&self, part: &str, rank: usize) -> String {
        format!("lowrank.{part}({})", self.source(rank))
    }
}

/// What is added to the bias of the outputs of all groups.
pub(super) fn correction(factors: &[Factors]) -> Option<Vec<f32>> {
    let parts = factors.iter().map(|group| group.bias.clone());
    parts.collect::<Option<Vec<Vec<f32>>>>().map(|parts| parts.concat())
}

impl Fitted for FittedLowRank {
    fn candidates(&self) -> Vec<Settings> {
        self.candidates_of(|rank| self.numbers(rank))
    }

    fn probe(&self) -> Option<Settings> {
        self.probe_of(|rank| self.numbers(rank))
    }

    fn squared_error(&self, settings: &Settings) -> Result<f64, String> {
        Ok(self.relative_error(self.rank(settings)?))
    }

    fn replace(
        &self,
        work: &mut Replacement<'_>,
        site: &Site,
        settings: &Settings,
    ) -> Result<(), ApplyError> {
        let rank = self.rank(settings).map_err(ApplyError::Settings)?;
        let g = work.graph;
        let layer = Layer::of(g, site);
        let factors = work.computed(|| self.factors(rank))?;
        let [left_shape, right_shape] = layer.factor_shapes(rank);
        let origin = |part| g.node(layer.weight.node).origin.part(part);
        let left = factors.as_ref().map(|f| f.iter().flat_map(|f| layer.factor(&f.left)).collect());
        let left = work.constant(&self.derivation("left", rank), &left_shape, left, origin(Part::Left))?;
        let right = factors.as_ref().map(|f| f.iter().flat_map(|f| layer.factor(&f.right)).collect());
        let right =
            work.constant(&self.derivation("right", rank), &right_shape, right, origin(Part::Right))?;
        let correction = factors.as_deref().and_then(correction);
        for &n in &layer.nodes {
            if layer.is_recurrent() {
                layer.replace_recurrence(work, n, [left, right])?;
                continue;
            }
            let product = layer.two_products(work, n, [left, right])?;
            match self.corrects() {
                true => {
                    let correction = correction.as_deref();
                    layer.replace_corrected(
                        work,
                        n,
                        product,
                        (&self.derivation("bias", rank), correction),
                    )?;
                }
                false => work.replace(n.into(), product),
            }
        }
        Ok(())
    }
}
