//! A kernel as a sum of products of a vector along each of its axes (canonical polyadic; Lebedev and others, *Speeding-up
//! Convolutional Neural Networks Using Fine-tuned CP-Decomposition*, arXiv 1412.6553): a 1x1 convolution to `k` channels, a
//! column of taps and a row of taps for each channel by itself, and a 1x1 convolution to all outputs. Over one spatial axis there
//! are taps along that alone.
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
//! Declines kernels of one tap, which low rank is the form of. All convolutions are in as many groups as it had.

use margay_ir::ops::Conv;
use margay_ir::{AddError, Graph, NodeId, Op, Part, Value};
use margay_plan::Settings;
use margay_randnla::{Contents, CpOptions, DenseTensor, Matrix, RandnlaError, Stored, cp_als};
use serde::{Deserialize, Serialize};

use super::forms::{Form, Structured, Subject, contents, numbers, offered, sites};
use super::kernels::{Kernel, add_pointwise};
use super::spatial::along;
use super::{Context, Factored, Fitted, Layer, Replacement, Scheme, SchemeFacts, Site, reads};

/// Sums of products of vectors.
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

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        Structured::<Cp>::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<Cp>::fit(context)
    }

    /// None: there are more than two factors.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(super) struct Cp {
    /// Of one group.
    kernel: Kernel,
}

impl Cp {
    /// Extents of the kernel of a group as a tensor: channels, taps and outputs.
    fn extents(&self) -> Vec<usize> {
        let Kernel { channels, outputs, axes, .. } = &self.kernel;
        [&[*channels], axes.as_slice(), &[*outputs]].concat()
    }
}

impl Form for Cp {
    const NAME: &'static str = "cp";

    type Settings = CpSettings;

    fn of(g: &Graph, layer: &Layer) -> Option<Cp> {
        layer.kernel_of_images(g).filter(|kernel| kernel.taps() > 1).map(|kernel| Cp { kernel })
    }

    fn stored(&self, s: &CpSettings) -> Result<Vec<Stored>, String> {
        let (kernel, k) = (&self.kernel, s.rank);
        // More terms than a product of two unfolded axes has are never needed.
        offered("rank", k, kernel.d_in().min(kernel.outputs * kernel.taps()))?;
        let along = |axis: usize| {
            let only = |a: usize| if a == axis { kernel.axes[a] } else { 1 };
            [vec![k, 1], (0..kernel.axes.len()).map(only).collect()].concat()
        };
        let first = kernel.pointwise([kernel.channels, k]);
        let last = kernel.pointwise([k, kernel.outputs]);
        let all = std::iter::once(first).chain((0..kernel.axes.len()).map(along)).chain([last]);
        Ok(numbers(all))
    }

    fn factors(&self, subject: &Subject, s: &CpSettings) -> Result<Vec<Contents>, RandnlaError> {
        let (weight, extents) = (&subject.weight, self.extents());
        let (last, before) = (extents.len() - 1, extents[..extents.len() - 1].to_vec());
        let kernel = DenseTensor::from_fn(extents.clone(), |at| {
            let row = at[..last].iter().zip(&before).fold(0, |row, (i, extent)| row * extent + i);
            weight.at(row, at[last])
        });
        // Rows of the least squares problems: all of them.
        let all: usize = extents.iter().product();
        let samples = extents.iter().map(|extent| all / extent).max().unwrap_or(1).max(s.rank);
        let options = CpOptions { rank: s.rank, rounds: ROUNDS, samples, seed: s.start, stream: 0 };
        let found = cp_als(&kernel, &options)?;
        let by_term = |mode: usize| -> Vec<f32> {
            let entries = (0..s.rank).flat_map(|r| (0..extents[mode]).map(move |i| (i, r)));
            entries.map(|(i, r)| found.factors[mode].at(i, r) as f32).collect()
        };
        let outputs =
            Matrix::from_fn(extents[last], s.rank, |o, r| found.weights[r] * found.factors[last].at(o, r));
        Ok(contents((0..last).map(by_term).chain([outputs.to_row_major()])))
    }

    fn weight(&self, s: &CpSettings, factors: &[Contents]) -> Result<Matrix, RandnlaError> {
        let (extents, k) = (self.extents(), s.rank);
        let last = extents.len() - 1;
        Ok(Matrix::from_fn(self.kernel.d_in(), self.kernel.outputs, |at, o| {
            let term = |r: usize| {
                let (mut at, mut product) = (at, factors[last].numbers()[o * k + r]);
                for mode in (0..last).rev() {
                    product *= factors[mode].numbers()[r * extents[mode] + at % extents[mode]];
                    at /= extents[mode];
                }
                product
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
        let x = work.input(n);
        let mut thin = add_pointwise(work, n, [x, factors[0]], Part::Left)?;
        for axis in 0..self.kernel.axes.len() {
            let alone = Conv { groups: conv.groups * s.rank, ..along(&conv, axis) };
            thin = work.add(alone, &[thin, factors[axis + 1]], origin.part(Part::Left))?;
        }
        add_pointwise(work, n, [thin, factors[factors.len() - 1]], Part::Right)
    }
}
