//! A kernel as a column of taps, then a row of taps (Jaderberg and others, *Speeding up Convolutional Neural Networks with
//! Low Rank Expansions*, arXiv 1405.3866): a convolution of `h x 1` taps with `k` filters, then one of `1 x w` taps.
//!
//! The kernel is a matrix with a row for each channel and row of taps, and a column for each column of taps and output; the
//! factors are the best of their rank, whitened by the mean covariance of the columns of windows that calibration saw. It
//! takes `k (C h + O w)` numbers.
//!
//! ```text
//! graph @before(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const #77aa01 : f32[32, 16, 3, 3]  // conv.weight
//!   %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 32, 8, 8]  // conv
//!   return %1
//! }
//! graph @after(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const spatial.factor1(#77aa01, rank 8) : f32[8, 16, 3, 1]  // conv.weight left
//!   %1 = const spatial.factor2(#77aa01, rank 8) : f32[32, 8, 1, 3]  // conv.weight right
//!   %2 = conv %x, %0 {pads_before = [1, 0], pads_after = [1, 0]} : f32[N, 8, 8, 8]  // conv left
//!   %3 = conv %2, %1 {pads_before = [0, 1], pads_after = [0, 1]} : f32[N, 32, 8, 8]  // conv right
//!   return %3
//! }
//! ```
//!
//! Declines kernels of one row or one column, which this is no form of. Both convolutions have as many groups as it.
//! Deliberately absent: one spatial axis.

use margay_ir::ops::Conv;
use margay_ir::{AddError, Graph, NodeId, Op, Part, Value};
use margay_plan::Settings;
use margay_randnla::{Contents, LowRank, LowRankOptions, Matrix, RandnlaError, Stored};
use serde::{Deserialize, Serialize};

use super::forms::{Form, Structured, Subject, contents, numbers, offered, part_whitening, sites};
use super::{Context, Factored, Fitted, Layer, Replacement, Scheme, SchemeFacts, Site, reads};

/// A column of taps, then a row of taps.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpatialScheme;

/// What a plan says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpatialSettings {
    /// Filters of the column.
    rank: usize,
}

impl Scheme for SpatialScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: Spatial::NAME,
            only_by_name: Some("its factors are not refitted to what the layers before it have become"),
            is_storage: false,
            examples: &["rank = 8"],
            check: reads::<SpatialSettings>,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<Spatial>(g)
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        Structured::<Spatial>::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<Spatial>::fit(context)
    }

    /// None: its second factor has taps.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(super) struct Spatial {
    /// Channels, height and width of the kernel of a group.
    kernel: [usize; 3],
    /// Of a group.
    d_out: usize,
}

impl Form for Spatial {
    const NAME: &'static str = "spatial";

    type Settings = SpatialSettings;

    fn of(g: &Graph, layer: &Layer) -> Option<Spatial> {
        let kernel = layer.kernel_of_images(g)?;
        let &[h, w] = kernel.axes.as_slice() else { return None };
        (h > 1 && w > 1).then_some(Spatial { kernel: [kernel.channels, h, w], d_out: kernel.outputs })
    }

    fn stored(&self, s: &SpatialSettings) -> Result<Vec<Stored>, String> {
        let [c, h, w] = self.kernel;
        offered("rank", s.rank, (c * h).min(w * self.d_out))?;
        Ok(numbers([vec![s.rank, c, h, 1], vec![self.d_out, s.rank, 1, w]]))
    }

    fn factors(&self, subject: &Subject, s: &SpatialSettings) -> Result<Vec<Contents>, RandnlaError> {
        let Subject { weight, seen, .. } = subject;
        let ([c, h, w], rank) = (self.kernel, s.rank);
        let unfolded =
            Matrix::from_fn(c * h, w * self.d_out, |i, j| weight.at(i * w + j / self.d_out, j % self.d_out));
        let columns = part_whitening(seen, c * h, w, |i, column| i * w + column)?;
        let options = LowRankOptions { max_rank: Some(rank), ..LowRankOptions::default() };
        let found = LowRank::new(&unfolded, columns.as_ref(), None, &options)?.factors(rank)?;
        let second =
            Matrix::from_fn(self.d_out, rank * w, |o, j| found.right.at(j / w, j % w * self.d_out + o));
        Ok(contents([found.left.transposed().to_row_major(), second.to_row_major()]))
    }

    fn weight(&self, s: &SpatialSettings, factors: &[Contents]) -> Result<Matrix, RandnlaError> {
        let ([c, h, w], rank) = (self.kernel, s.rank);
        let [first, second] = [0, 1].map(|k| factors[k].numbers());
        Ok(Matrix::from_fn(c * h * w, self.d_out, |i, o| {
            let (row, column) = (i / w, i % w);
            let product = |r: usize| first[r * c * h + row] * second[(o * rank + r) * w + column];
            (0..rank).map(product).sum()
        }))
    }

    fn nodes(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        _: &SpatialSettings,
        factors: &[Value],
    ) -> Result<Value, AddError> {
        let Op::Conv(conv) = work.graph.op(n).clone() else { unreachable!("the layer is a convolution") };
        let origin = work.graph.node(n).origin.clone();
        let x = work.input(n);
        let column = work.add(along(&conv, 0), &[x, factors[0]], origin.part(Part::Left))?;
        work.add(along(&conv, 1), &[column, factors[1]], origin.part(Part::Right))
    }
}

/// A convolution along one of its spatial axes.
pub(super) fn along(conv: &Conv, axis: usize) -> Conv {
    let only = |of: &[usize], other: usize| {
        of.iter().enumerate().map(|(a, of)| if a == axis { *of } else { other }).collect::<Vec<usize>>()
    };
    Conv {
        strides: only(&conv.strides, 1),
        pads_before: only(&conv.pads_before, 0),
        pads_after: only(&conv.pads_after, 0),
        dilations: only(&conv.dilations, 1),
        ..conv.clone()
    }
}
