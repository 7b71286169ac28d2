//! Relative positions inside of random features: sinusoidal stochastic positional encoding (Liutkus, Cífka, Wu, Şimşekli,
//! Yang and Richard, *Relative Positional Encoding for Transformers with Linear Complexity*, arXiv 2105.08399).
//!
//! The product of a query at position m and a key at position n becomes `Σ_c q_c P_c(m - n) k_c`, with a function of their
//! distance for each of the `d` entries of a head. That function is a sum of `sines` waves,
//!
//! ```text
//! P_c(t) = Σ_s λ_cs² cos(2π f_cs t + θ_cs)      with  f = sigmoid(frequency) / 2,  λ = softplus(gain)
//! ```
//!
//! and `gated` mixes it with no position at all, `P_c ← δ_c P_c + 1 - δ_c` with `δ = sigmoid(gate)`. No array over pairs of
//! positions is made: with R `realizations` of normal noise, divided by `√R`,
//!
//! ```text
//! q̂_m = Σ_cs q_mc λ_cs (cos(2π f m + θ) Z_cs + sin(2π f m + θ) Z'_cs) √δ_c + Σ_c q_mc √(1 - δ_c) E_c    [R]
//! k̂_n = Σ_cs k_nc λ_cs (cos(2π f n)     Z_cs + sin(2π f n)     Z'_cs) √δ_c + Σ_c k_nc √(1 - δ_c) E_c    [R]
//! ```
//!
//! have the product above as the mean of `q̂_m·k̂_n` over the noise, and features are those of q̂ and k̂. Waves of a position
//! multiply an operand before the noise does, so that `[n, d · sines]` numbers are kept where the paper's order of the same sums
//! keeps `[n, d, R]`.
//!
//! Frequencies, phases, gains and gates are numbers of each head, trained with the model; the noise stays, as directions do. They
//! begin at low frequencies (`frequency` about -4, a wavelength of about 110 positions), small phases, and gains whose squares add
//! up to 1, so that `P` is about 1 between neighbours.

use std::f64::consts::PI;

use margay_ir::ops::{Add, Cast, Cos, MatMul, Mul, Neg, Range, Reshape, Sigmoid, Sin, Softplus, Sqrt};
use margay_ir::{AddError, Op, Part, Value};
use margay_randnla::{Distribution, random_matrix};
use margay_tensor::random::stream_of;
use margay_tensor::{DType, Dim};
use serde::{Deserialize, Serialize};

use super::blocks::with_axis;
use super::heads::Nodes;

/// What a plan says of relative positions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativePositions {
    /// Waves of each entry of a head; at least 1.
    pub sines: usize,
    /// Draws of the noise: the length of what takes the place of queries and keys; at least 1.
    pub realizations: usize,
    /// Whether a gate for each entry mixes relative positions with none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gated: bool,
}

/// Sines times realizations, at most: the noise has so many numbers for each number of a query.
const MOST: usize = 1 << 16;

impl RelativePositions {
    pub(super) fn check(&self) -> Result<(), String> {
        for (what, count) in [("sines", self.sines), ("realizations", self.realizations)] {
            if !(1..=MOST).contains(&count) {
                return Err(format!("{count} {what} of relative positions, expected 1 to {MOST}"));
            }
        }
        match self.sines.saturating_mul(self.realizations) {
            ..=MOST => Ok(()),
            all => {
                Err(format!("{all} sines times realizations of relative positions, expected at most {MOST}"))
            }
        }
    }
}

/// Where the constants of an attention are named from.
pub(super) struct Encoding<'a> {
    pub(super) s: &'a RelativePositions,
    /// Names the first parameters and the noise.
    pub(super) seed: u64,
    pub(super) stream: u64,
    /// Heads of queries, each with keys of its own, and the length of a query.
    pub(super) heads: usize,
    pub(super) d: usize,
}

/// Numbers of each head, trained: `[heads, 1, d, sines]`.
struct Waves {
    /// Angle from one position to the next, in radians.
    steps: Value,
    phases: Value,
    gains: Value,
}

impl Encoding<'_> {
    /// Queries and keys `[B, H, S, D]` with their positions, `[B, H, S, realizations]`.
    pub(super) fn of(
        &self,
        nodes: &mut Nodes<'_, '_>,
        [q, k]: [Value; 2],
        positions: &Dim,
    ) -> Result<[Value; 2], AddError> {
        let waves = self.waves(nodes)?;
        let range = nodes.add(Range { start: Dim::default(), step: 1, count: positions.clone() }, &[])?;
        let range = nodes.add(Cast { to: DType::F32 }, &[range])?;
        let one = || Dim::from(1usize);
        let range = nodes.add(Reshape { shape: vec![positions.clone(), one(), one()] }, &[range])?;
        let angles = nodes.add(Mul, &[range, waves.steps])?;
        let noise = [self.noise(nodes, "cosines", self.s.sines)?, self.noise(nodes, "sines", self.s.sines)?];
        let gates = if self.s.gated { Some(self.gates(nodes)?) } else { None };
        let ahead = nodes.add(Add, &[angles, waves.phases])?;
        let mut encoded = |x, angles| self.encoded(nodes, x, (angles, waves.gains), noise, gates);
        Ok([encoded(q, ahead)?, encoded(k, angles)?])
    }

    /// An operand whose entries are multiplied by the waves of their positions, and summed with noise.
    fn encoded(
        &self,
        nodes: &mut Nodes<'_, '_>,
        x: Value,
        (angles, gains): (Value, Value),
        noise: [Value; 2],
        gates: Option<[Value; 3]>,
    ) -> Result<Value, AddError> {
        let gated = |nodes: &mut Nodes<'_, '_>, at: usize| match gates {
            Some(gates) => nodes.add(Mul, &[x, gates[at]]),
            None => Ok(x),
        };
        let positioned = gated(nodes, 0)?;
        let mut flat = nodes.ty(x).shape.clone();
        flat[3] = Dim::from(self.d * self.s.sines);
        let column = with_axis(nodes, positioned, 4)?;
        let functions: [Op; 2] = [Cos.into(), Sin.into()];
        let mut sum = None;
        for (function, noise) in functions.into_iter().zip(noise) {
            let wave = nodes.add(function, &[angles])?;
            let wave = nodes.add(Mul, &[wave, gains])?;
            let products = nodes.add(Mul, &[column, wave])?;
            let products = nodes.add(Reshape { shape: flat.clone() }, &[products])?;
            let part = nodes.add(MatMul, &[products, noise])?;
            sum = Some(sum.map_or(Ok(part), |sum| nodes.add(Add, &[sum, part]))?);
        }
        let sum = sum.expect("two functions");
        let Some([_, _, noise]) = gates else { return Ok(sum) };
        let apart = gated(nodes, 1)?;
        let apart = nodes.add(MatMul, &[apart, noise])?;
        nodes.add(Add, &[sum, apart])
    }

    fn waves(&self, nodes: &mut Nodes<'_, '_>) -> Result<Waves, AddError> {
        let sines = self.s.sines;
        let frequencies = self.parameter(nodes, "frequencies", sines, &|z| {
            z.iter_mut().for_each(|z| *z -= 4.0);
        })?;
        let phases = self.parameter(nodes, "phases", sines, &|z| z.iter_mut().for_each(|z| *z *= 0.1))?;
        let gains = self.parameter(nodes, "gains", sines, &|z| {
            z.iter_mut().for_each(|z| *z = 0.5 + z.abs());
            let norm = z.iter().map(|z| z * z).sum::<f64>().sqrt();
            // The inverse of softplus.
            z.iter_mut().for_each(|z| *z = (*z / norm).exp_m1().ln());
        })?;
        let half = nodes.add(Sigmoid, &[frequencies])?;
        let by = nodes.number(PI)?;
        let steps = nodes.add(Mul, &[half, by])?;
        Ok(Waves { steps, phases, gains: nodes.add(Softplus, &[gains])? })
    }

    /// Roots of the gates and of what they leave, `[heads, 1, d]`, and the noise of what has no position.
    fn gates(&self, nodes: &mut Nodes<'_, '_>) -> Result<[Value; 3], AddError> {
        let gates = self.parameter(nodes, "gates", 1, &|_| ())?;
        let shape = [self.heads, 1, self.d].map(Dim::from).to_vec();
        let gates = nodes.add(Reshape { shape }, &[gates])?;
        let other = nodes.add(Neg, &[gates])?;
        let [open, shut] = [gates, other].map(|x| {
            let share = nodes.add(Sigmoid, &[x])?;
            nodes.add(Sqrt, &[share])
        });
        Ok([open?, shut?, self.noise(nodes, "apart", 1)?])
    }

    /// `[heads, 1, d, each]` numbers to be trained, which begin as what `start` makes of `each` normal ones.
    fn parameter(
        &self,
        nodes: &mut Nodes<'_, '_>,
        what: &str,
        each: usize,
        start: &dyn Fn(&mut [f64]),
    ) -> Result<Value, AddError> {
        let shape = [self.heads, 1, self.d, each];
        let contents = nodes.work.computed(|| {
            let drawn = self.drawn(what, self.heads * self.d, each);
            let each = drawn.chunks_exact(each).flat_map(|chunk| {
                let mut chunk = chunk.to_vec();
                start(&mut chunk);
                chunk
            });
            Ok::<_, AddError>(each.map(|z| z as f32).collect())
        })?;
        let origin = nodes.origin(Part::Term);
        nodes.work.constant(&self.name(what, &shape), &shape, contents, origin)
    }

    /// The noise of `each` numbers of every entry, `[heads, d · each, realizations]`.
    fn noise(&self, nodes: &mut Nodes<'_, '_>, what: &str, each: usize) -> Result<Value, AddError> {
        let what = format!("noise.{what}");
        let shape = [self.heads, self.d * each, self.s.realizations];
        let scale = 1.0 / (self.s.realizations as f64).sqrt();
        let contents = nodes.work.computed(|| {
            let drawn = self.drawn(&what, shape[0] * shape[1], shape[2]);
            Ok::<_, AddError>(drawn.iter().map(|z| (scale * z) as f32).collect())
        })?;
        let origin = nodes.origin(Part::Random);
        nodes.work.constant(&self.name(&what, &shape), &shape, contents, origin)
    }

    /// Normal numbers, row after row.
    fn drawn(&self, what: &str, rows: usize, columns: usize) -> Vec<f64> {
        let stream = self.stream ^ stream_of(what);
        random_matrix(Distribution::Gaussian, rows, columns, self.seed, stream).to_row_major_f64()
    }

    fn name(&self, what: &str, shape: &[usize]) -> String {
        format!("favor.{what}({shape:?}, seed = {}, stream = {})", self.seed, self.stream)
    }
}
