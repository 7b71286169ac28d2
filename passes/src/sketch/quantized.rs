//! A weight of a few bits and a low-rank correction of it: `x W ≈ x Q + (x A) B`.
//!
//! `Q` is the weight rounded with error feedback, where calibration measured the inputs (see [`margay_randnla::Rounded`]), and
//! stored in 3 or 4 bits. `A B` is the best product of its rank in place of what rounding left, for these inputs (Zhang and
//! others, *LQER*, arXiv 2402.02446), stored in 4 bits: an error of theirs is one of a small part. A rank of 0 stores the weight and
//! adds nothing. What is left out of the mean output is added to the bias.
//!
//! The scheme saves bytes and no operations: an allocator is offered it where constants of the model are stored in int8.
//!
//! ```text
//! graph @before(%x: f32[N, 256]) -> (y: f32[N, 64]) {
//!   %0 = const #w : f32[256, 64]  // fc.weight
//!   %1 = matmul %x, %0 : f32[N, 64]  // fc
//!   %2 = const #b : f32[64]  // fc.bias
//!   %3 = add %1, %2 : f32[N, 64]  // fc/Add
//!   return %3
//! }
//! graph @after(%x: f32[N, 256]) -> (y: f32[N, 64]) {
//!   %0 = const #b : f32[64]  // fc.bias
//!   %1 = const quantized.weight(#w, bits = 4) : f32[256, 64] stored u4(axis = 0, block = 64, bf16 scales, zero points)  // fc.weight term
//!   %2 = const quantized.left(#w, bits = 4, k = 8) : f32[256, 8] stored i4(axis = 0, block = 64, bf16 scales)  // fc.weight left
//!   %3 = const quantized.right(#w, bits = 4, k = 8) : f32[8, 64] stored i4(axis = 0, block = 64, bf16 scales)  // fc.weight right
//!   %4 = matmul %x, %1 : f32[N, 64]  // fc term
//!   %5 = add %4, %0 : f32[N, 64]  // fc/Add term
//!   %6 = matmul %x, %2 : f32[N, 8]  // fc left
//!   %7 = matmul %6, %3 : f32[N, 64]  // fc term
//!   %8 = add %5, %7 : f32[N, 64]  // fc/Add
//!   return %8
//! }
//! ```
//!
//! Convolutions of one tap are products of the rows of their channels. Deliberately absent: others, for which there are no kernels
//! of a few bits.

use std::sync::OnceLock;

use margay_ir::ops::{Add, MatMul};
use margay_ir::{AddError, Graph, NodeId, Part, Value};
use margay_plan::Settings;
use margay_randnla::{LowRank, LowRankOptions, Matrix, RandnlaError, Rounded};
use margay_tensor::{DType, Scales, Storage, StoredTensor};
use serde::{Deserialize, Serialize};

use super::kernels::{rows_in, rows_out};
use super::moments::{self, Seen};
use super::{
    ApplyError, Context, Factored, Fitted, Layer, Moments, Replacement, Scheme, SchemeFacts, Site, layers,
};

/// A weight of a few bits with a correction.
#[derive(Clone, Copy, Debug, Default)]
pub struct QuantizedScheme;

/// What a plan says of a weight of a few bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantizedSettings {
    /// Bits of an element of the weight, 3 or 4.
    bits: u32,
    /// Columns of the left factor of the correction; 0 for none.
    #[serde(default)]
    rank: usize,
}

impl QuantizedSettings {
    fn read(settings: &Settings) -> Result<QuantizedSettings, String> {
        let read: QuantizedSettings = settings.read()?;
        match BITS.contains(&read.bits) {
            true => Ok(read),
            false => Err(format!("{} bits are not offered, expected 3 or 4", read.bits)),
        }
    }

    fn check(self, most: usize) -> Result<(), String> {
        match self.rank <= most {
            true => Ok(()),
            false => Err(format!("rank {} is not offered, expected 0 to {most}", self.rank)),
        }
    }
}

/// How many bits an element may have.
const BITS: [u32; 2] = [3, 4];

/// How factors are stored: zero points would take as much as scales in runs as short as a rank.
const FACTORS: Storage = Storage { dtype: DType::I8, zero_points: false, ..Storage::blocks(4, 0) };

/// Factors as wide as a panel of kernels are offered, where weights are large enough.
const RANK_STEP: usize = 32;

impl Scheme for QuantizedScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "quantized",
            only_by_name: None,
            is_storage: true,
            examples: &["bits = 4, rank = 8"],
            check: |settings| QuantizedSettings::read(settings).map(drop),
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        let numbers = |storage: Storage| storage.scales == Scales::None && storage.signs.is_none();
        let takes = |layer: &&Layer| layer.is_linear(g) && numbers(layer.payload(g).storage());
        layers(g).iter().filter(takes).map(|layer| layer.site(g, self.facts().name)).collect()
    }

    fn check_at(&self, _: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        QuantizedSettings::read(settings)?.check(site.d_in.min(site.d_out))
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        let g = context.graph;
        let layer = Layer::of(g, context.site);
        let weight = layer.matrix(g)?;
        let mut fitted = FittedQuantized {
            source: layer.payload(g).key().to_string(),
            measured: moments::source(context),
            seen: Seen::of(context),
            energy: 0.0,
            weight,
            rounded: [OnceLock::new(), OnceLock::new()],
            rest: [OnceLock::new(), OnceLock::new()],
        };
        fitted.energy = fitted.seen.squared_norm(&fitted.weight)?;
        Ok(Box::new(fitted))
    }

    /// None: the correction is no map of its own, and what is stored in 4 bits cannot learn.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

/// A weight and what is known of its inputs. What is computed of it, by bits, is computed once somebody asks for it.
struct FittedQuantized {
    /// What identifies the weight.
    source: String,
    /// What was measured, for the names of constants.
    measured: String,
    seen: Seen,
    /// The mean squared output, about its mean where there are moments, in the metric of the outputs.
    energy: f64,
    weight: Matrix,
    rounded: [OnceLock<Result<Rounded, RandnlaError>>; 2],
    /// The decomposition of what rounding left.
    rest: [OnceLock<Result<LowRank, RandnlaError>>; 2],
}

/// The contents of what replaces a weight.
struct Contents {
    weight: StoredTensor,
    factors: Option<[StoredTensor; 2]>,
    /// What is added to the bias.
    correction: Option<Vec<f32>>,
}

impl FittedQuantized {
    fn settings(&self, settings: &Settings) -> Result<QuantizedSettings, String> {
        let read = QuantizedSettings::read(settings)?;
        read.check(self.max_rank()).map(|()| read)
    }

    fn max_rank(&self) -> usize {
        self.weight.rows().min(self.weight.columns())
    }

    /// The ranks on offer beside 4 bits: factors of at most half as many numbers as the weight. A correction of 3 bits gives
    /// less than the fourth bit.
    fn offered(&self) -> impl Iterator<Item = QuantizedSettings> {
        let (d_in, d_out) = (self.weight.rows(), self.weight.columns());
        let step = if self.max_rank() >= 4 * RANK_STEP { RANK_STEP } else { 2 };
        let ranks = (0..=d_in * d_out / (2 * (d_in + d_out))).step_by(step);
        let few = QuantizedSettings { bits: 3, rank: 0 };
        std::iter::once(few).chain(ranks.map(|rank| QuantizedSettings { bits: 4, rank }))
    }

    fn rounded(&self, bits: u32) -> Result<&Rounded, RandnlaError> {
        let compute = || {
            let triangle = self.seen.inputs().map(|m| Ok(m.whitening()?.triangle())).transpose()?;
            Rounded::new(&self.weight, triangle.as_ref(), Storage::blocks(bits, 0))
        };
        self.rounded[usize::from(bits == 4)].get_or_init(compute).as_ref().map_err(Clone::clone)
    }

    fn rest(&self, bits: u32) -> Result<&LowRank, RandnlaError> {
        let compute = || {
            let whitening = self.seen.inputs().map(Moments::whitening).transpose()?;
            let outputs = self.seen.outputs()?;
            let (rest, options) = (&self.rounded(bits)?.rest, LowRankOptions::default());
            LowRank::new(rest, whitening.as_ref(), outputs.as_ref(), &options)
        };
        self.rest[usize::from(bits == 4)].get_or_init(compute).as_ref().map_err(Clone::clone)
    }

    fn contents(
        &self,
        QuantizedSettings { bits, rank }: QuantizedSettings,
    ) -> Result<Contents, RandnlaError> {
        let rounded = self.rounded(bits)?;
        let mean = self.seen.inputs().map(|m| m.gram().mean()).transpose()?;
        let mean = mean.map(|mean| Matrix::from_row_major_f64(1, mean.len(), &mean)).transpose()?;
        let mut missed = mean.as_ref().map(|mean| mean.product(&rounded.rest)).transpose()?;
        let mut stored = None;
        if rank > 0 {
            let factors = self.rest(bits)?.factors(rank)?;
            let left = Rounded::new(&factors.left, None, FACTORS)?;
            let right = Rounded::new(&factors.right, None, FACTORS)?;
            if let (Some(mean), Some(rest)) = (&mean, &missed) {
                let thin = mean.product(&left.numbers(&factors.left))?;
                let made = thin.product(&right.numbers(&factors.right))?;
                missed = Some(Matrix::from_fn(1, rest.columns(), |i, j| rest.at(i, j) - made.at(i, j)));
            }
            stored = Some([left.stored, right.stored]);
        }
        let correction = missed.map(|missed| missed.to_row_major());
        Ok(Contents { weight: rounded.stored.clone(), factors: stored, correction })
    }

    /// The name of a derived constant.
    fn derivation(&self, part: &str, settings: QuantizedSettings) -> String {
        let QuantizedSettings { bits, rank } = settings;
        let rank = if part == "weight" { String::new() } else { format!(", k = {rank}") };
        format!("quantized.{part}({}, bits = {bits}{rank}{})", self.source, self.measured)
    }

    /// The sum that stands for a node: the product with the weight, with bias, and the correction.
    fn sum(
        &self,
        work: &mut Replacement<'_>,
        layer: &Layer,
        n: NodeId,
        [weight, left, right]: [Option<Value>; 3],
        (name, correction): (&str, Option<&[f32]>),
    ) -> Result<(), AddError> {
        let (g, x) = (work.graph, rows_in(work, n)?);
        let term = |n: NodeId| g.node(n).origin.part(Part::Term);
        let main = work.add(MatMul, &[x, weight.expect("there is a weight")], term(n))?;
        if layer.kernel().is_some() {
            // Channels are brought back once both terms are added.
            let mut sum = main;
            if let (Some(left), Some(right)) = (left, right) {
                let thin = work.add(MatMul, &[x, left], g.node(n).origin.part(Part::Left))?;
                let wide = work.add(MatMul, &[thin, right], term(n))?;
                sum = work.add(Add, &[main, wide], term(n))?;
            }
            let sum = rows_out(work, n, sum)?;
            match self.seen.corrects() {
                true => layer.replace_corrected(work, n, sum, (name, correction))?,
                false => work.replace(n.into(), sum),
            }
            return Ok(());
        }
        let (replaced, main) = match (self.seen.corrects(), layer.bias(g, n)) {
            (true, _) => layer.corrected(work, n, main, (name, correction))?,
            // In front of the correction, so that a kernel adds both.
            (false, Some(bias)) => {
                let constant = bias.constant.into();
                (bias.add.into(), work.add(Add, &[main, constant], term(bias.add))?)
            }
            (false, None) => (n.into(), main),
        };
        let (Some(left), Some(right)) = (left, right) else {
            work.replace(replaced, main);
            return Ok(());
        };
        let thin = layer.left_product(work, n, left)?;
        let wide = work.add(MatMul, &[thin, right], term(n))?;
        let sum = work.add(Add, &[main, wide], g.node(replaced.node).origin.clone())?;
        work.replace(replaced, sum);
        Ok(())
    }
}

impl Fitted for FittedQuantized {
    fn candidates(&self) -> Vec<Settings> {
        self.offered().map(|settings| Settings::write(&settings)).collect()
    }

    fn probe(&self) -> Option<Settings> {
        Some(Settings::write(&QuantizedSettings { bits: 4, rank: 0 }))
    }

    fn squared_error(&self, settings: &Settings) -> Result<f64, String> {
        let QuantizedSettings { bits, rank } = self.settings(settings)?;
        let error = match rank {
            0 => self.rounded(bits).and_then(|rounded| self.seen.squared_norm(&rounded.rest)),
            rank => self.rest(bits).map(|rest| rest.squared_errors()[rank]),
        };
        let error = error.map_err(|e| e.to_string())?;
        Ok(if self.energy > 0.0 { error / self.energy } else { 0.0 })
    }

    fn replace(
        &self,
        work: &mut Replacement<'_>,
        site: &Site,
        settings: &Settings,
    ) -> Result<(), ApplyError> {
        let settings = self.settings(settings).map_err(ApplyError::Settings)?;
        let g = work.graph;
        let layer = Layer::of(g, site);
        let (weight, factors, correction) = match work.computed(|| self.contents(settings))? {
            Some(contents) => (Some(contents.weight), contents.factors, contents.correction),
            None => (None, None, None),
        };
        let origin = |part| g.node(layer.weight.node).origin.part(part);
        let shape = [layer.d_in, layer.d_out];
        let storage = Storage::blocks(settings.bits, 0);
        let name = self.derivation("weight", settings);
        let weight = work.stored(&name, &shape, storage, weight, origin(Part::Term))?;
        let mut constants = [Some(weight), None, None];
        if settings.rank > 0 {
            let [left, right] = factors.map_or([None, None], |factors| factors.map(Some));
            let [left_shape, right_shape] = [[layer.d_in, settings.rank], [settings.rank, layer.d_out]];
            let name = self.derivation("left", settings);
            constants[1] = Some(work.stored(&name, &left_shape, FACTORS, left, origin(Part::Left))?);
            let name = self.derivation("right", settings);
            constants[2] = Some(work.stored(&name, &right_shape, FACTORS, right, origin(Part::Right))?);
        }
        let name = self.derivation("bias", settings);
        for &n in &layer.nodes {
            self.sum(work, &layer, n, constants, (&name, correction.as_deref()))?;
        }
        Ok(())
    }
}
