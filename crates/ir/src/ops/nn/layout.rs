//! Where the channels of an image lie among its axes.

use margay_tensor::{Binding, Dim, Tensor};

use crate::ops::attributes::Attribute;
use crate::ops::{EvalError, OpDef, Transpose};
use crate::{TensorType, TypeError};

/// The order of the axes of images: batch N, channels C, then spatial axes; or channels last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ImageLayout {
    /// `[N, C, spatial…]`.
    Nchw,
    /// `[N, spatial…, C]`.
    Nhwc,
}

impl ImageLayout {
    /// The axis of the channels.
    pub fn channel_axis(self, ndim: usize) -> usize {
        match self {
            ImageLayout::Nchw => 1,
            ImageLayout::Nhwc => ndim - 1,
        }
    }

    /// The axis of a spatial axis.
    pub fn spatial_axis(self, axis: usize) -> usize {
        match self {
            ImageLayout::Nchw => axis + 2,
            ImageLayout::Nhwc => axis + 1,
        }
    }

    /// The spatial extents of an image.
    pub(super) fn spatial_extents(self, shape: &[usize]) -> &[usize] {
        let first = self.spatial_axis(0);
        &shape[first..first + shape.len() - 2]
    }

    /// The order of axes that turns an image in NCHW into this layout.
    pub fn perm_from_nchw(self, ndim: usize) -> Vec<usize> {
        match self {
            ImageLayout::Nchw => (0..ndim).collect(),
            ImageLayout::Nhwc => [0].into_iter().chain(2..ndim).chain([1]).collect(),
        }
    }

    /// The order of axes that turns an image in this layout into NCHW.
    pub fn perm_to_nchw(self, ndim: usize) -> Vec<usize> {
        match self {
            ImageLayout::Nchw => (0..ndim).collect(),
            ImageLayout::Nhwc => [0, ndim - 1].into_iter().chain(1..ndim - 1).collect(),
        }
    }

    /// The type of an image in NCHW; it has at least two axes.
    pub(super) fn type_to_nchw(self, ty: &TensorType) -> TensorType {
        TensorType::new(ty.dtype, self.perm_to_nchw(ty.ndim()).iter().map(|&p| ty.shape[p].clone()).collect())
    }

    /// A shape in NCHW in this layout.
    pub(super) fn shape_from_nchw(self, shape: &[Dim]) -> Vec<Dim> {
        self.perm_from_nchw(shape.len()).iter().map(|&p| shape[p].clone()).collect()
    }

    /// Extents in NCHW of an image with these extents.
    pub(super) fn extents_to_nchw(self, shape: &[usize]) -> Vec<usize> {
        self.perm_to_nchw(shape.len()).iter().map(|&p| shape[p]).collect()
    }

    /// The image in NCHW.
    pub(super) fn tensor_to_nchw(self, x: &Tensor) -> Result<Tensor, EvalError> {
        reordered(x, self.perm_to_nchw(x.shape().len()))
    }

    /// An image in NCHW in this layout.
    pub(super) fn tensor_from_nchw(self, x: &Tensor) -> Result<Tensor, EvalError> {
        reordered(x, self.perm_from_nchw(x.shape().len()))
    }

    /// Refuses operand 0 where it does not have the axes of an image with `spatial` spatial axes.
    pub(super) fn check(x: &TensorType, spatial: usize) -> Result<(), TypeError> {
        if x.ndim() == spatial + 2 {
            return Ok(());
        }
        Err(TypeError::Ndim { input: 0, expected: (spatial + 2).to_string(), found: x.ndim() })
    }
}

fn reordered(x: &Tensor, perm: Vec<usize>) -> Result<Tensor, EvalError> {
    let mut all = Transpose { perm }.eval(&[x])?;
    Ok(all.remove(0))
}

impl Attribute for ImageLayout {
    fn write(&self) -> String {
        match self {
            ImageLayout::Nchw => "nchw".into(),
            ImageLayout::Nhwc => "nhwc".into(),
        }
    }
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "nchw" => Ok(ImageLayout::Nchw),
            "nhwc" => Ok(ImageLayout::Nhwc),
            _ => Err(format!("`{text}` is not an order of axes, expected `nchw` or `nhwc`")),
        }
    }
    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}
