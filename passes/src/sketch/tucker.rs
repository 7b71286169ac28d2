//! A kernel of fewer channels on either side (Tucker-2; Kim and others, *Compression of Deep Convolutional Neural Networks*,
//! arXiv 1511.06530): a 1x1 convolution to `r₁` channels, the kernel of `r₁` and `r₂` channels, and a 1x1 convolution to all.
//!
//! The factor of the outputs is that of `lowrank`: whitened by the windows that calibration saw and by the metric of the
//! outputs. What is left of the kernel is unfolded along its input channels and decomposed once more, whitened by the mean
//! covariance of channels over the taps. It takes `C r₁ + h w r₁ r₂ + r₂ O` numbers.
//!
//! ```text
//! graph @before(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const #77aa01 : f32[32, 16, 3, 3]  // conv.weight
//!   %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 32, 8, 8]  // conv
//!   return %1
//! }
//! graph @after(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const tucker.factor1(#77aa01, ranks [8, 16]) : f32[8, 16, 1, 1]  // conv.weight left
//!   %1 = const tucker.factor2(#77aa01, ranks [8, 16]) : f32[16, 8, 3, 3]  // conv.weight left
//!   %2 = const tucker.factor3(#77aa01, ranks [8, 16]) : f32[32, 16, 1, 1]  // conv.weight right
//!   %3 = conv %x, %0 : f32[N, 8, 8, 8]  // conv left
//!   %4 = conv %3, %1 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 16, 8, 8]  // conv left
//!   %5 = conv %4, %2 : f32[N, 32, 8, 8]  // conv right
//!   return %5
//! }
//! ```
//!
//! Strides, padding and dilation are those of the kernel in the middle. Deliberately absent: groups, and one or three spatial
//! axes.

use margay_ir::ops::Conv;
use margay_ir::{AddError, Graph, NodeId, Op, Part, Value};
use margay_randnla::{LowRank, LowRankOptions, Matrix, RandnlaError};
use serde::{Deserialize, Serialize};

use super::moments::Seen;
use super::structured::{Form, Structured, offered, part_whitening, sites};
use super::{Context, Factored, Fitted, Layer, Moments, Replacement, Scheme, SchemeFacts, Site, reads};

/// Fewer channels on either side of a kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct TuckerScheme;

/// What a plan says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TuckerSettings {
    /// Channels in front of the kernel and behind it.
    ranks: [usize; 2],
}

impl Scheme for TuckerScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: Tucker::NAME,
            only_by_name: Some("its three factors are not refitted to what the layers before it have become"),
            is_storage: false,
            examples: &["ranks = [8, 16]"],
            check: reads::<TuckerSettings>,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<Tucker>(g)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<Tucker>::fit(context)
    }

    /// None: there are three factors.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(super) struct Tucker {
    /// Channels, height and width of the kernel.
    kernel: [usize; 3],
    d_out: usize,
}

impl Form for Tucker {
    const NAME: &'static str = "tucker";

    type Settings = TuckerSettings;

    fn of(g: &Graph, layer: &Layer) -> Option<Tucker> {
        Some(Tucker { kernel: layer.kernel_of_images(g)?, d_out: layer.d_out })
    }

    fn shapes(&self, s: &TuckerSettings) -> Result<Vec<Vec<usize>>, String> {
        let ([c, h, w], [before, behind]) = (self.kernel, s.ranks);
        offered("rank before the kernel", before, c)?;
        offered("rank behind the kernel", behind, self.d_out.min(c * h * w))?;
        Ok(vec![vec![before, c, 1, 1], vec![behind, before, h, w], vec![self.d_out, behind, 1, 1]])
    }

    fn factors(
        &self,
        weight: &Matrix,
        seen: &Seen,
        s: &TuckerSettings,
    ) -> Result<Vec<Vec<f32>>, RandnlaError> {
        let ([c, h, w], [before, behind]) = (self.kernel, s.ranks);
        let taps = h * w;
        let options = |rank| LowRankOptions { max_rank: Some(rank), ..LowRankOptions::default() };
        let inputs = seen.inputs().map(Moments::whitening).transpose()?;
        let outputs = seen.outputs()?;
        let behind_it = LowRank::new(weight, inputs.as_ref(), outputs.as_ref(), &options(behind))?.factors(behind)?;
        // Rows are channels; columns are taps and channels behind the kernel.
        let unfolded = Matrix::from_fn(c, taps * behind, |channel, j| {
            behind_it.left.at(channel * taps + j / behind, j % behind)
        });
        let channels = part_whitening(seen, c, taps, |channel, tap| channel * taps + tap)?;
        let most = before.min(taps * behind);
        let found = LowRank::new(&unfolded, channels.as_ref(), None, &options(most))?.factors(most)?;
        // More channels than the unfolding has columns carry nothing.
        let first =
            Matrix::from_fn(before, c, |r, channel| if r < most { found.left.at(channel, r) } else { 0.0 });
        let core = Matrix::from_fn(behind, before * taps, |r, j| match j / taps < most {
            true => found.right.at(j / taps, j % taps * behind + r),
            false => 0.0,
        });
        Ok([first, core, behind_it.right.transposed()].iter().map(Matrix::to_row_major).collect())
    }

    fn weight(&self, s: &TuckerSettings, factors: &[Vec<f32>]) -> Matrix {
        let ([c, h, w], [before, behind]) = (self.kernel, s.ranks);
        let of =
            |rows, columns, at: usize| Matrix::from_row_major(rows, columns, &factors[at]).expect("a factor");
        let (first, core, last) =
            (of(before, c, 0), of(behind, before * h * w, 1), of(self.d_out, behind, 2));
        let wide = last.product(&core).expect("factors fit"); // [out, before taps]
        let taps = h * w;
        Matrix::from_fn(c * taps, self.d_out, |i, o| {
            (0..before).map(|r| first.at(r, i / taps) * wide.at(o, r * taps + i % taps)).sum()
        })
    }

    fn nodes(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        _: &TuckerSettings,
        factors: &[Value],
    ) -> Result<Value, AddError> {
        let Op::Conv(conv) = work.graph.op(n).clone() else { unreachable!("the layer is a convolution") };
        let origin = work.graph.node(n).origin.clone();
        let pointwise = Conv { layout: conv.layout, ..Conv::pointwise() };
        let x = work.input(n);
        let thin = work.add(pointwise.clone(), &[x, factors[0]], origin.part(Part::Left))?;
        let thin = work.add(conv, &[thin, factors[1]], origin.part(Part::Left))?;
        work.add(pointwise, &[thin, factors[2]], origin.part(Part::Right))
    }
}
