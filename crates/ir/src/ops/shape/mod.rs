//! Operators that move data without computing on it.

mod broadcast;
mod concat;
mod cut;
mod gather;
mod non_zero;
mod pack;
mod pad;
mod reshape;
mod scatter;
mod scatter_add;
mod slice;
mod transpose;

pub use broadcast::Broadcast;
pub use concat::Concat;
pub use cut::Cut;
pub use gather::Gather;
pub use non_zero::NonZero;
pub use pack::Pack;
pub use pad::Pad;
pub use reshape::Reshape;
pub use scatter::{Scatter, ScatterKind};
pub use scatter_add::ScatterAdd;
pub use slice::Slice;
pub use transpose::Transpose;

pub(crate) use broadcast::known_extents;
pub(crate) use gather::checked_position;

use margay_tensor::Tensor;

use crate::ops::EvalError;

/// A tensor of the given shape whose elements are copies of elements of `of`, by position; `None` takes
/// `filler`.
pub(crate) fn pick(
    of: &Tensor,
    shape: &[usize],
    positions: impl Iterator<Item = Option<usize>>,
    filler: &[u8],
) -> Result<Tensor, EvalError> {
    let size = of.dtype().bytes();
    let bytes = of.bytes();
    let mut out = Vec::with_capacity(shape.iter().product::<usize>() * size);
    for p in positions {
        out.extend_from_slice(p.map_or(filler, |p| &bytes[p * size..(p + 1) * size]));
    }
    Ok(Tensor::from_bytes(of.dtype(), shape, &out)?)
}

/// Every index of a shape in row-major order.
pub(crate) fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + '_ {
    let total: usize = shape.iter().product();
    (0..total).map(move |mut flat| {
        let mut index = vec![0; shape.len()];
        for (i, &d) in shape.iter().enumerate().rev() {
            index[i] = flat % d;
            flat /= d;
        }
        index
    })
}
