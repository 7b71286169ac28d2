//! Convolutions.

use std::fmt;

use margay_tensor::DType;

use super::{Call, CallArg, Epilogue, ProductTypes, product};
use crate::text::fields;

/// A two-dimensional convolution: `Y[n, y, x, o] = epilogue(Σ X[n, …, c] K[o, c, i, j])`, images row-major
/// in NHWC or NCHW order, the kernel in OIHW order. A one-dimensional one has a height of 1.
///
/// Arguments: X, K, zero, offset, scale, bias and residual where there are any, Y, workspace if any.
///
/// Of 8-bit integers X and K, each signed or not, `zero` is taken off X first, sums and what is added to them are i32 and
/// wrap around. Y is i32, or f32 made of the sums.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Conv {
    /// Images lie in NHWC order; else in NCHW.
    pub channels_last: bool,
    /// Images.
    pub batch: usize,
    /// Channels of the input, all groups together.
    pub in_channels: usize,
    /// Channels of the output, all groups together.
    pub out_channels: usize,
    /// Groups; divides both channel counts.
    pub groups: usize,
    /// Height and width of the input.
    pub in_size: [usize; 2],
    /// Height and width of the output.
    pub out_size: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Steps between outputs.
    pub strides: [usize; 2],
    /// Zeros before the first row and column.
    pub pads: [usize; 2],
    /// Steps between taps.
    pub dilations: [usize; 2],
    /// K is a constant, stored in the layout the target packs it into; else it is row-major.
    pub k_packed: bool,
    /// X is less a number of its type: one element.
    pub zero: bool,
    /// Element types of X, K and Y.
    pub types: ProductTypes,
    /// What happens before the store.
    pub epilogue: Epilogue,
}

impl Conv {
    /// The extents as text.
    pub(super) fn extents(&self) -> String {
        let ([h, w], [y, x], [i, j]) = (self.in_size, self.out_size, self.kernel);
        let (inner, outer) = (self.in_channels, self.out_channels);
        let order = if self.channels_last { "" } else { "nchw " };
        let (batch, groups) = (self.batch, self.groups);
        format!("{order}{batch}x[{inner}x{h}x{w} -> {outer}x{y}x{x}] kernel {i}x{j} groups {groups}")
    }
}

fields!(Conv {
    channels_last = true,
    batch,
    in_channels,
    out_channels,
    groups,
    in_size,
    out_size,
    kernel,
    strides,
    pads,
    dilations,
    k_packed = false,
    zero = false,
    types = ProductTypes::F32,
    epilogue = Epilogue::default(),
});

impl Call for Conv {
    const FAMILY: &'static str = "conv";

    fn flops(&self) -> u64 {
        let taps = self.in_channels / self.groups * self.kernel[0] * self.kernel[1];
        2 * product(&[self.batch, self.out_channels, self.out_size[0], self.out_size[1], taps])
    }

    fn args(&self) -> Vec<CallArg> {
        let whole = |n: usize| [(n, 1)];
        let pixels = |size: [usize; 2]| self.batch * size[0] * size[1];
        let taps = self.in_channels / self.groups.max(1) * self.kernel[0] * self.kernel[1];
        let y = CallArg::written(self.types.result, &whole(pixels(self.out_size) * self.out_channels));
        let mut args = vec![
            CallArg::read(self.types.left, &whole(pixels(self.in_size) * self.in_channels)),
            CallArg::read(self.types.right.dtype, &whole(self.out_channels * taps)),
        ];
        args.extend(self.zero.then(|| CallArg::read(self.types.left, &[(1, 1)])));
        args.extend(self.epilogue.args(self.out_channels, &y));
        args.push(y);
        args
    }

    fn epilogue(&mut self) -> Option<&mut Epilogue> {
        // A bias lies along the last axis.
        self.channels_last.then_some(&mut self.epilogue)
    }

    fn packed(&mut self) -> Option<(usize, &mut bool)> {
        Some((1, &mut self.k_packed))
    }

    fn rounds(&self, operand: usize) -> Option<DType> {
        self.types.rounds(operand)
    }

    fn sums_of_integers(&mut self) -> Option<&mut DType> {
        self.types.left.is_int().then_some(&mut self.types.result)
    }

    fn transposable(&mut self, _: usize) -> Option<&mut [usize; 3]> {
        None
    }
}

impl fmt::Display for Conv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conv {}", self.extents())?;
        f.write_str(if self.k_packed { "" } else { " computed" })?;
        f.write_str(if self.zero { " less zero" } else { "" })?;
        write!(f, "{}{}", self.types, self.epilogue)
    }
}
