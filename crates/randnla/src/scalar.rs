//! The numbers that matrices hold.

use std::fmt::Display;

use margay_tensor::random::Philox;

use crate::Distribution;
use crate::linalg::Linalg;
use crate::normal;

/// `f32` or `f64`.
///
/// Every driver is written once for both; no other type can have this trait. Sums of squares, tolerances and reported errors are `f64` in either case.
pub trait Scalar: Linalg + Copy + Default + Display + Send + Sync + 'static {
    /// The distance from 1 to the next greater number.
    const EPSILON: f64;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;

    /// The nearest number to `value`.
    fn from_f64(value: f64) -> Self;

    /// The same number.
    fn to_f64(self) -> f64;

    /// Writes independent numbers of mean 0 and variance 1: elements `first` to `first + out.len()` of the stream.
    fn fill(distribution: Distribution, stream: &Philox, first: u64, out: &mut [Self]);
}

macro_rules! scalar {
    ($scalar:ty, $uniform:ident) => {
        impl Scalar for $scalar {
            const EPSILON: f64 = <$scalar>::EPSILON as f64;
            const ZERO: $scalar = 0.0;
            const ONE: $scalar = 1.0;

            #[inline(always)]
            fn from_f64(value: f64) -> $scalar {
                value as $scalar
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }

            fn fill(distribution: Distribution, stream: &Philox, first: u64, out: &mut [$scalar]) {
                match distribution {
                    Distribution::Gaussian => normal::fill(stream, first, out),
                    Distribution::Sign => stream.fill_signs(first, out),
                    Distribution::Uniform => {
                        stream.$uniform(first, out);
                        let root = <$scalar>::from_f64(3f64.sqrt());
                        out.iter_mut().for_each(|u| *u = root * (2.0 * *u - 1.0));
                    }
                }
            }
        }
    };
}

scalar!(f32, fill_uniform_f32);
scalar!(f64, fill_uniform_f64);
