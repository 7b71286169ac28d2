//! Maxima and averages over windows.

use std::fmt;

use margay_tensor::DType;

use super::{Call, CallArg, Epilogue, product};
use crate::text::fields;

/// The maximum or the average over windows of two spatial axes, in f32. Padding never is a maximum; it counts as zeros in
/// an average, or with `inside_only` not at all. A maximum with a NaN is NaN; one over nothing but padding is -∞.
///
/// Arguments: X, row-major \[outer, size\[0\], size\[1\], channels\]; Y, row-major \[outer, out\[0\], out\[1\], channels\].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pool {
    /// The average rather than the maximum.
    pub average: bool,
    /// Images.
    pub outer: usize,
    /// Extents of an image.
    pub size: [usize; 2],
    /// Numbers that lie together at a place of an image.
    pub channels: usize,
    /// Windows along each axis.
    pub out: [usize; 2],
    /// Elements of a window.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub strides: [usize; 2],
    /// Steps between elements of a window.
    pub dilations: [usize; 2],
    /// Padding in front.
    pub pads: [usize; 2],
    /// An average is that of the elements inside the image alone.
    pub inside_only: bool,
}

fields!(Pool {
    average = false,
    outer,
    size,
    channels = 1,
    out,
    kernel,
    strides = [1, 1],
    dilations = [1, 1],
    pads = [0, 0],
    inside_only = false,
});

impl Call for Pool {
    const FAMILY: &'static str = "pool";

    fn flops(&self) -> u64 {
        // Rows of a window are joined first, then columns.
        let [rows, columns] = [[self.kernel[0], self.size[1]], [self.kernel[1], self.out[1]]];
        product(&[self.outer, self.out[0], self.channels])
            .saturating_mul(product(&rows).saturating_add(product(&columns)))
    }

    fn args(&self) -> Vec<CallArg> {
        let axes = |[h, w]: [usize; 2]| {
            let c = self.channels;
            [(self.outer, h * w * c), (h, w * c), (w, c), (c, 1)]
        };
        vec![CallArg::read(DType::F32, &axes(self.size)), CallArg::written(DType::F32, &axes(self.out))]
    }

    fn rounds(&self, _: usize) -> Option<DType> {
        None
    }

    fn epilogue(&mut self) -> Option<&mut Epilogue> {
        None
    }

    fn packed(&mut self) -> Option<(usize, &mut bool)> {
        None
    }

    fn sums_of_integers(&mut self) -> Option<&mut DType> {
        None
    }

    fn transposable(&mut self, _: usize) -> Option<&mut [usize; 3]> {
        None
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pool { outer, size: [h, w], channels, kernel: [i, j], strides, .. } = self;
        let kind = if self.average { "average" } else { "maximum" };
        write!(f, "pool {outer}x[{h}x{w}]x{channels} {kind} of {i}x{j}")?;
        if *strides != [1, 1] {
            write!(f, " every {}x{}", strides[0], strides[1])?;
        }
        Ok(())
    }
}
