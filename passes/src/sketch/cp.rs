//! A kernel as a sum of products of a vector along each of its axes (canonical polyadic; Lebedev and others, *Speeding-up
//! Convolutional Neural Networks Using Fine-tuned CP-Decomposition*, arXiv 1412.6553): a 1x1 convolution to `k` channels, a
//! column of taps and a row of taps for each channel by itself, and a 1x1 convolution to all outputs.
//!
//! It takes `k (C + h + w + O)` numbers, the fewest of all forms, and its error is the largest. The terms come from
//! alternating least squares (see [`margay_randnla::cp_als`]), which is not convex and may end elsewhere for another seed;
//! they do not depend on what calibration saw, the error does.
//!
//! ```text
//! graph @before(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const #77aa01 : f32[32, 16, 3, 3]  // conv.weight
//!   %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 32, 8, 8]  // conv
//!   return %1
//! }
//! graph @after(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const cp.factor1(#77aa01, rank 8) : f32[8, 16, 1, 1]  // conv.weight left
//!   %1 = const cp.factor2(#77aa01, rank 8) : f32[8, 1, 3, 1]  // conv.weight left
//!   %2 = const cp.factor3(#77aa01, rank 8) : f32[8, 1, 1, 3]  // conv.weight left
//!   %3 = const cp.factor4(#77aa01, rank 8) : f32[32, 8, 1, 1]  // conv.weight right
//!   %4 = conv %x, %0 : f32[N, 8, 8, 8]  // conv left
//!   %5 = conv %4, %1 {pads_before = [1, 0], pads_after = [1, 0], groups = 8} : f32[N, 8, 8, 8]  // conv left
//!   %6 = conv %5, %2 {pads_before = [0, 1], pads_after = [0, 1], groups = 8} : f32[N, 8, 8, 8]  // conv left
//!   %7 = conv %6, %3 : f32[N, 32, 8, 8]  // conv right
//!   return %7
//! }
//! ```
//!
//! Declines kernels of one tap, which low rank is the form of. Deliberately absent: groups, and one or three spatial axes.

use margay_ir::ops::Conv;
use margay_ir::{AddError, Graph, NodeId, Op, Part, Value};
use margay_randnla::{Contents, CpOptions, DenseTensor, Matrix, RandnlaError, Stored, cp_als};
use serde::{Deserialize, Serialize};

use super::forms::{Form, Structured, Subject, contents, numbers, offered, sites};
use super::spatial::along;
use super::{Context, Factored, Fitted, Layer, Replacement, Scheme, SchemeFacts, Site, reads};

/// Sums of products of four vectors.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpScheme;

/// What a plan says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CpSettings {
    /// Terms.
    rank: usize,
    /// Names the numbers that least squares begin from.
    #[serde(default)]
    start: u64,
}

/// Rounds of least squares.
const ROUNDS: usize = 60;

impl Scheme for CpScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: Cp::NAME,
            only_by_name: Some("its terms are not those with the least error of the outputs"),
            is_storage: false,
            examples: &["rank = 8"],
            check: reads::<CpSettings>,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<Cp>(g)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<Cp>::fit(context)
    }

    /// None: there are four factors.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(super) struct Cp {
    /// Channels, height and width of the kernel.
    kernel: [usize; 3],
    d_out: usize,
}

impl Form for Cp {
    const NAME: &'static str = "cp";

    type Settings = CpSettings;

    fn of(g: &Graph, layer: &Layer) -> Option<Cp> {
        let kernel = layer.kernel_of_images(g).filter(|[_, h, w]| h * w > 1)?;
        Some(Cp { kernel, d_out: layer.d_out })
    }

    fn stored(&self, s: &CpSettings) -> Result<Vec<Stored>, String> {
        let ([c, h, w], k) = (self.kernel, s.rank);
        // More terms than a product of two unfolded axes has are never needed.
        offered("rank", k, (c * h * w).min(self.d_out * h * w))?;
        Ok(numbers([vec![k, c, 1, 1], vec![k, 1, h, 1], vec![k, 1, 1, w], vec![self.d_out, k, 1, 1]]))
    }

    fn factors(&self, subject: &Subject, s: &CpSettings) -> Result<Vec<Contents>, RandnlaError> {
        let weight = &subject.weight;
        let [c, h, w] = self.kernel;
        let extents = vec![c, h, w, self.d_out];
        let kernel = DenseTensor::from_fn(extents, |at| weight.at((at[0] * h + at[1]) * w + at[2], at[3]));
        // Rows of the least squares problems: all of them.
        let samples = (c * h * w).max(h * w * self.d_out).max(c * h * self.d_out).max(s.rank);
        let options = CpOptions { rank: s.rank, rounds: ROUNDS, samples, seed: s.start, stream: 0 };
        let found = cp_als(&kernel, &options)?;
        let by_term = |mode: usize, size: usize| -> Vec<f32> {
            let entries = (0..s.rank).flat_map(|r| (0..size).map(move |i| (i, r)));
            entries.map(|(i, r)| found.factors[mode].at(i, r) as f32).collect()
        };
        let outputs =
            Matrix::from_fn(self.d_out, s.rank, |o, r| found.weights[r] * found.factors[3].at(o, r));
        Ok(contents([by_term(0, c), by_term(1, h), by_term(2, w), outputs.to_row_major()]))
    }

    fn weight(&self, s: &CpSettings, factors: &[Contents]) -> Result<Matrix, RandnlaError> {
        let ([c, h, w], k) = (self.kernel, s.rank);
        let [channels, rows, columns, outputs] = [0, 1, 2, 3].map(|k| factors[k].numbers());
        Ok(Matrix::from_fn(c * h * w, self.d_out, |at, o| {
            let (channel, i, j) = (at / (h * w), at / w % h, at % w);
            let term = |r: usize| {
                channels[r * c + channel] * rows[r * h + i] * columns[r * w + j] * outputs[o * k + r]
            };
            (0..k).map(term).sum()
        }))
    }

    fn nodes(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        s: &CpSettings,
        factors: &[Value],
    ) -> Result<Value, AddError> {
        let Op::Conv(conv) = work.graph.op(n).clone() else { unreachable!("the layer is a convolution") };
        let origin = work.graph.node(n).origin.clone();
        let pointwise = Conv { layout: conv.layout, ..Conv::pointwise() };
        let alone = |axis| Conv { groups: s.rank, ..along(&conv, axis) };
        let x = work.input(n);
        let thin = work.add(pointwise.clone(), &[x, factors[0]], origin.part(Part::Left))?;
        let thin = work.add(alone(0), &[thin, factors[1]], origin.part(Part::Left))?;
        let thin = work.add(alone(1), &[thin, factors[2]], origin.part(Part::Left))?;
        work.add(pointwise, &[thin, factors[3]], origin.part(Part::Right))
    }
}
