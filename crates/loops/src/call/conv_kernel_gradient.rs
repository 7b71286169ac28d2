//! Derivatives of convolutions by their kernels.

use std::fmt;

use margay_tensor::DType;

use super::{Call, CallArg, Conv, Epilogue};
use crate::text::fields;

/// The cotangent of the kernel of a [`Conv`]: `dK[o, c, i, j] = Σ X[n, …, c] dY[n, y, x, o]` over images and
/// pixels, X and dY row-major in the order of the forward images, dK in OIHW order.
///
/// Arguments: X, dY, dK, workspace if any; their types are the left one, the result and the right one of the convolution.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConvKernelGradient {
    /// The convolution; its epilogue and where its kernel comes from play no part.
    pub forward: Conv,
}

fields!(ConvKernelGradient { forward });

impl Call for ConvKernelGradient {
    const FAMILY: &'static str = "conv_kernel_gradient";

    fn flops(&self) -> u64 {
        self.forward.flops()
    }

    fn args(&self) -> Vec<CallArg> {
        let plain = Conv { epilogue: Epilogue::default(), ..self.forward.clone() };
        let [x, k, y] = &plain.args()[..] else { unreachable!("a convolution without an epilogue") };
        vec![x.clone(), CallArg::read(y.dtype, &y.axes), CallArg::written(k.dtype, &k.axes)]
    }

    fn epilogue(&mut self) -> Option<&mut Epilogue> {
        None
    }

    fn packed(&mut self) -> Option<(usize, &mut bool)> {
        None
    }

    fn rounds(&self, _: usize) -> Option<DType> {
        None
    }

    fn sums_of_integers(&mut self) -> Option<&mut DType> {
        None
    }

    fn transposable(&mut self, _: usize) -> Option<&mut [usize; 3]> {
        None
    }
}

impl fmt::Display for ConvKernelGradient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conv_kernel_gradient {}{}", self.forward.extents(), self.forward.types)
    }
}
