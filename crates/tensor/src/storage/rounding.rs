//! Numbers to elements of a storage: the grid of a group, and which group an element belongs to.

use half::bf16;

use super::{Scales, Storage};
use crate::DType;

/// The numbers that a group of elements can be: `(q - zero) · scale` for the elements `q` between two limits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Grid {
    /// The distance between neighbours; NaN for a group of which a number is not finite.
    pub scale: f32,
    /// The element that stands for 0.
    pub zero: f32,
    /// The least and the greatest element.
    limits: [f32; 2],
}

impl Grid {
    /// The element whose number is nearest to `x`, ties to even; the zero point where the scale is 0 or NaN.
    pub fn element(self, x: f32) -> f32 {
        let [low, high] = self.limits;
        match self.scale > 0.0 {
            true => ((x / self.scale).round_ties_even() + self.zero).clamp(low, high),
            false => self.zero,
        }
    }

    /// The number of an element.
    pub fn number(self, element: f32) -> f32 {
        (element - self.zero) * self.scale
    }
}

impl Storage {
    /// The least and the greatest element that there can be.
    pub(super) fn range(&self) -> [i32; 2] {
        match self.dtype {
            DType::I8 => [-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1],
            _ => [0, (1 << self.bits) - 1],
        }
    }

    /// The grid of a group whose numbers lie in a range that contains 0. Without zero points the scale is the largest
    /// magnitude over the greatest element, and signed elements are as many above 0 as below; with them it is the width of the
    /// range over that of the elements. Scales of bf16 are rounded, and elements belong to the rounded ones.
    pub fn grid(&self, [low, high]: [f32; 2]) -> Grid {
        let [least, greatest] = self.range().map(|q| q as f32);
        let least = if self.dtype == DType::I8 && !self.zero_points { -greatest } else { least };
        let limits = [least, greatest];
        if !low.is_finite() || !high.is_finite() {
            return Grid { scale: f32::NAN, zero: 0.0, limits };
        }
        let stored = |scale: f32| match self.scale_type {
            DType::BF16 => bf16::from_f32(scale).to_f32(),
            _ => scale,
        };
        if !self.zero_points {
            return Grid { scale: stored(high.max(-low) / greatest), zero: 0.0, limits };
        }
        let steps = greatest - least;
        let scale = stored((high / steps) - (low / steps));
        let zero = if scale > 0.0 { (least - low / scale).round_ties_even() } else { 0.0 };
        Grid { scale, zero: zero.clamp(least, greatest), limits }
    }
}

/// How elements in row-major order fall into groups.
pub(super) struct Groups {
    outer: usize,
    axis: usize,
    inner: usize,
    scales: Scales,
    pub(super) count: usize,
}

impl Groups {
    pub(super) fn of(storage: &Storage, shape: &[usize]) -> Groups {
        let count = storage.scales_shape(shape).map_or(0, |s| s.iter().product());
        let at = match storage.scales {
            Scales::Axis(axis) | Scales::Block { axis, .. } => axis,
            Scales::None | Scales::Tensor => {
                let all = shape.iter().product();
                return Groups { outer: 1, axis: 1, inner: all, scales: storage.scales, count };
            }
        };
        let product = |part: &[usize]| part.iter().product();
        Groups {
            outer: product(&shape[..at]),
            axis: shape[at],
            inner: product(&shape[at + 1..]),
            scales: storage.scales,
            count,
        }
    }

    /// Calls `f` with every element's position and group, in order.
    pub(super) fn visit(&self, mut f: impl FnMut(usize, usize)) {
        let mut at = 0;
        for o in 0..self.outer {
            for i in 0..self.axis {
                // The group of the first of `inner` elements, and what each of the others adds.
                let (first, step) = match self.scales {
                    Scales::None | Scales::Tensor => (0, 0),
                    Scales::Axis(_) => (i, 0),
                    Scales::Block { size, .. } => ((o * self.axis.div_ceil(size) + i / size) * self.inner, 1),
                };
                for j in 0..self.inner {
                    f(at, first + j * step);
                    at += 1;
                }
            }
        }
    }
}
