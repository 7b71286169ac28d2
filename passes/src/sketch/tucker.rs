//! A kernel of fewer channels on either side (Tucker-2; Kim and others, *Compression of Deep Convolutional Neural Networks*,
//! arXiv 1511.06530): a 1x1 convolution to `r₁` channels, the kernel of `r₁` and `r₂` channels, and a 1x1 convolution to all.
//!
//! The factors behind the kernel are those of `lowrank`: whitened by the windows that calibration saw and by the metric of the
//! outputs. With each of its columns weighed by what it gives to the outputs, the left one is unfolded along the input
//! channels and decomposed once more, whitened by the mean covariance of channels over the taps. Errors of both steps are
//! orthogonal in the metric, so that their squares add up. It takes `C r₁ + h w r₁ r₂ + r₂ O` numbers.
//!
//! The kernel and the convolution behind it are refitted as two factors of a layer that reads `r₁` channels; the first
//! convolution stays as it is.
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
//! Strides, padding and dilation are those of the kernel in the middle, and all three have as many groups as it.

use margay_ir::{AddError, Graph, NodeId, Op, Part, Value};
use margay_plan::Settings;
use margay_randnla::{Contents, Factors, Gram, LowRank, LowRankOptions, Matrix, RandnlaError, Stored};
use serde::{Deserialize, Serialize};

use super::forms::{Form, Offers, Structured, Subject, contents, numbers, offered, part_whitening, sites};
use super::kernels::{Kernel, add_pointwise};
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
            only_by_name: None,
            is_storage: false,
            examples: &["ranks = [8, 16]"],
            check: reads::<TuckerSettings>,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<Tucker>(g)
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        Structured::<Tucker>::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<Tucker>::fit(context)
    }

    /// None of its own: the kernel and the convolution behind it are two factors as `lowrank` makes them.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(super) struct Tucker {
    /// Of one group.
    kernel: Kernel,
}

/// Ranks that are offered on either side, in as many steps to the greatest one.
const STEPS: usize = 8;

/// What is behind the kernel, and its left factor unfolded.
struct Unfolded {
    behind: Factors,
    /// By column of the left factor: the norm of what a one there gives, in the metric of the outputs.
    scales: Vec<f64>,
    /// Rows are channels; columns are taps and channels behind the kernel, each times its scale.
    matrix: Matrix,
    decomposition: LowRank,
}

impl Tucker {
    /// The greatest rank behind a kernel.
    fn most_behind(&self) -> usize {
        self.kernel.outputs.min(self.kernel.d_in())
    }

    fn unfolded(&self, subject: &Subject, before: usize, behind: usize) -> Result<Unfolded, RandnlaError> {
        let (channels, taps) = (self.kernel.channels, self.kernel.taps());
        let options = |rank| LowRankOptions { max_rank: Some(rank), ..LowRankOptions::default() };
        let (seen, shared) = (&subject.seen, &subject.low_rank);
        let outputs = seen.outputs()?;
        let behind_it = match shared.as_ref().filter(|known| behind <= known.max_rank()) {
            Some(known) => known.factors(behind)?,
            None => {
                let inputs = seen.inputs().map(Moments::whitening).transpose()?;
                let (inputs, outputs) = (inputs.as_ref(), outputs.as_ref());
                LowRank::new(&subject.weight, inputs, outputs, &options(behind))?.factors(behind)?
            }
        };
        let image = match &outputs {
            Some(outputs) => behind_it.right.product(&outputs.triangle().transposed())?,
            None => behind_it.right.clone(),
        };
        let squared = |r: usize| (0..image.columns()).map(|j| image.at(r, j).powi(2)).sum::<f64>();
        // A row of zeros gives nothing, whatever stands in front of it.
        let scale = |r: usize| Some(squared(r).sqrt()).filter(|norm| *norm > 0.0).unwrap_or(1.0);
        let scales: Vec<f64> = (0..behind).map(scale).collect();
        let matrix = Matrix::from_fn(channels, taps * behind, |channel, j| {
            behind_it.left.at(channel * taps + j / behind, j % behind) * scales[j % behind]
        });
        let whitening = part_whitening(seen, channels, taps, |channel, tap| channel * taps + tap)?;
        // More channels than the unfolding has columns carry nothing.
        let most = before.min(taps * behind);
        let decomposition = LowRank::new(&matrix, whitening.as_ref(), None, &options(most))?;
        Ok(Unfolded { behind: behind_it, scales, matrix, decomposition })
    }
}

impl Form for Tucker {
    const NAME: &'static str = "tucker";

    const DECOMPOSED: bool = true;

    type Settings = TuckerSettings;

    fn of(g: &Graph, layer: &Layer) -> Option<Tucker> {
        Some(Tucker { kernel: layer.kernel_of_images(g)? })
    }

    fn stored(&self, s: &TuckerSettings) -> Result<Vec<Stored>, String> {
        let (kernel, [before, behind]) = (&self.kernel, s.ranks);
        offered("rank before the kernel", before, kernel.channels)?;
        offered("rank behind the kernel", behind, self.most_behind())?;
        let core = Kernel { outputs: behind, ..kernel.clone() }.of_channels(before);
        let ends = [[kernel.channels, before], [behind, kernel.outputs]].map(|ends| kernel.pointwise(ends));
        let [first, last] = ends;
        Ok(numbers([first, core, last]))
    }

    fn factors(&self, subject: &Subject, s: &TuckerSettings) -> Result<Vec<Contents>, RandnlaError> {
        let ([before, behind], channels, taps) = (s.ranks, self.kernel.channels, self.kernel.taps());
        let unfolded = self.unfolded(subject, before, behind)?;
        let most = unfolded.decomposition.max_rank();
        let found = unfolded.decomposition.factors(most)?;
        let first = Matrix::from_fn(
            before,
            channels,
            |r, channel| if r < most { found.left.at(channel, r) } else { 0.0 },
        );
        let core = Matrix::from_fn(behind, before * taps, |r, j| match j / taps < most {
            true => found.right.at(j / taps, j % taps * behind + r) / unfolded.scales[r],
            false => 0.0,
        });
        let factors = [first, core, unfolded.behind.right.transposed()];
        Ok(contents(factors.iter().map(Matrix::to_row_major)))
    }

    /// Some ranks on either side that take fewer numbers than the kernel of a group.
    fn offers(&self, subject: &Subject) -> Result<Offers<TuckerSettings>, RandnlaError> {
        let Some(low_rank) = &subject.low_rank else { return Ok(Vec::new()) };
        let Kernel { channels, outputs, .. } = self.kernel;
        let (taps, d_in) = (self.kernel.taps(), self.kernel.d_in());
        // Of a single tap `lowrank` is as good and smaller.
        if taps == 1 || d_in > Gram::MOST_DENSE || low_rank.energy() <= 0.0 {
            return Ok(Vec::new());
        }
        let numbers =
            |before: usize, behind: usize| channels * before + taps * before * behind + behind * outputs;
        let steps = |most: usize| {
            let mut ranks: Vec<usize> = (1..STEPS).map(|step| most * step / STEPS).collect();
            ranks.retain(|rank| *rank > 0);
            ranks.dedup();
            ranks
        };
        let root = subject.seen.inputs().map(Moments::whitening).transpose()?.map(|w| w.triangle());
        let mut offers = Vec::new();
        for behind in steps(self.most_behind().min(low_rank.max_rank())) {
            let fits = |before: &usize| *before <= taps * behind && numbers(*before, behind) < d_in * outputs;
            let ranks: Vec<usize> = steps(channels).into_iter().filter(fits).collect();
            let Some(&most) = ranks.last() else { continue };
            let unfolded = self.unfolded(subject, most, behind)?;
            for before in ranks {
                let found = unfolded.decomposition.factors(before)?;
                let made = found.left.product(&found.right)?;
                let rest = Matrix::from_fn(d_in, behind, |i, r| {
                    let (channel, j) = (i / taps, i % taps * behind + r);
                    unfolded.matrix.at(channel, j) - made.at(channel, j)
                });
                let rest = match &root {
                    Some(root) => root.product(&rest)?,
                    None => rest,
                };
                let squared = low_rank.squared_errors()[behind] + rest.squared_norm();
                offers.push((TuckerSettings { ranks: [before, behind] }, squared));
            }
        }
        Ok(offers)
    }

    fn weight(&self, s: &TuckerSettings, factors: &[Contents]) -> Result<Matrix, RandnlaError> {
        let Kernel { channels, outputs, .. } = self.kernel;
        let (taps, [before, behind]) = (self.kernel.taps(), s.ranks);
        let of = |rows, columns, at: usize| Matrix::from_row_major_f64(rows, columns, factors[at].numbers());
        let (first, core, last) =
            (of(before, channels, 0)?, of(behind, before * taps, 1)?, of(outputs, behind, 2)?);
        let wide = last.product(&core)?; // [out, before taps]
        Ok(Matrix::from_fn(channels * taps, outputs, |i, o| {
            (0..before).map(|r| first.at(r, i / taps) * wide.at(o, r * taps + i % taps)).sum()
        }))
    }

    fn nodes(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        _: &TuckerSettings,
        factors: &[Value],
    ) -> Result<Value, AddError> {
        let Op::Conv(conv) = work.graph.op(n).clone() else { unreachable!("the layer is a convolution") };
        let (x, origin) = (work.input(n), work.graph.node(n).origin.part(Part::Left));
        let thin = add_pointwise(work, n, [x, factors[0]], Part::Left)?;
        let thin = work.add(conv, &[thin, factors[1]], origin)?;
        add_pointwise(work, n, [thin, factors[2]], Part::Right)
    }
}
