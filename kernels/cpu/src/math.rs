//! Transcendental functions on vectors and rows of `f32`, the activations made of them, and functions of one f64 or two.
//!
//! | function | method | error |
//! |---|---|---|
//! | exp | x = n ln 2 + r, polynomial of degree 7 in r (Cephes) | 2 units in the last place |
//! | exp2 | x = n + r, polynomial of degree 5 in r, least largest relative error | 2 units in the last place |
//! | erf | rational, odd, 13 over 8 (Eigen) | 5e-7 absolute |
//! | tanh | rational, odd, 13 over 6 (Eigen) | 5e-7 absolute |
//! | sigmoid | 1 / (1 + exp(-x)) | 4 units in the last place; 0 below -88.8 |
//!
//! A NaN gives a NaN; at infinities the values are the limits, and erf and tanh are exactly ±1 from 4 and 9.02
//! on. Activations are the formulas of [`Activation`], so that x · 0 at x = -∞ is a NaN there as in the reference.

use crate::abi::{RowFn, RowFunction, ScalarFn, ScalarFunction};
use margay_loops::Activation;

use crate::Class;
use crate::isa::Isa;
use crate::isa::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::isa::{avx2::Avx2, avx512::Avx512};

#[inline(always)]
fn polynomial<I: Isa>(isa: I, x: I::V, coefficients: &[f32]) -> I::V {
    let mut sum = isa.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = isa.fma(sum, x, isa.splat(c));
    }
    sum
}

/// e to the power of x; infinite from 88.73, zero below -104.
#[inline(always)]
pub(crate) fn exp<I: Isa>(isa: I, x: I::V) -> I::V {
    let x = isa.max(isa.splat(-104.0), isa.min(isa.splat(89.0), x));
    let n = isa.round(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
    let r = isa.fma(n, isa.splat(-0.693_359_4), x); // ln 2 in two parts, the first with few bits
    let r = isa.fma(n, isa.splat(2.121_944_4e-4), r);
    let p = polynomial(
        isa,
        r,
        &[1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5],
    );
    let p = isa.add(isa.fma(isa.mul(p, r), r, r), isa.splat(1.0));
    isa.scale2(p, n)
}

/// 2 to the power of x <= 127; zero below -125: subnormal numbers take processors many times as long. For arguments at hand in
/// units of ln 2, it is cheaper than [`exp`].
#[inline(always)]
pub(crate) fn exp2<I: Isa>(isa: I, x: I::V) -> I::V {
    let least = isa.splat(-125.0);
    let clamped = isa.max(least, x);
    let n = isa.round(clamped);
    let p = polynomial(
        isa,
        isa.sub(clamped, n),
        &[1.330_060_5e-3, 9.669_691e-3, 5.550_558_5e-2, 2.402_228_3e-1, std::f32::consts::LN_2, 1.0],
    );
    isa.select_lt(x, least, isa.splat(0.0), isa.scale2(p, n))
}

/// `y` where |x| <= `edge`, else the sign of x.
#[inline(always)]
fn saturate<I: Isa>(isa: I, x: I::V, edge: f32, y: I::V) -> I::V {
    let y = isa.select_lt(isa.splat(edge), x, isa.splat(1.0), y);
    isa.select_lt(x, isa.splat(-edge), isa.splat(-1.0), y)
}

/// The error function.
#[inline(always)]
pub(crate) fn erf<I: Isa>(isa: I, x: I::V) -> I::V {
    let edge = 4.0;
    let z = isa.max(isa.splat(-edge), isa.min(isa.splat(edge), x));
    let square = isa.mul(z, z);
    let p = polynomial(
        isa,
        square,
        &[
            -2.726_142_3e-10,
            2.770_681_5e-8,
            -2.101_024e-6,
            -5.692_506_5e-5,
            -7.349_906_5e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let q = polynomial(
        isa,
        square,
        &[-1.456_607_2e-5, -2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2],
    );
    saturate(isa, x, edge, isa.div(isa.mul(p, z), q))
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<I: Isa>(isa: I, x: I::V) -> I::V {
    let edge = 9.02; // from here on 1 is the nearest number
    let z = isa.max(isa.splat(-edge), isa.min(isa.splat(edge), x));
    let square = isa.mul(z, z);
    let p = polynomial(
        isa,
        square,
        &[
            -2.760_768_5e-16,
            2.000_188e-13,
            -8.604_672e-11,
            5.122_297e-8,
            1.485_722_4e-5,
            6.372_619e-4,
            4.893_524_6e-3,
        ],
    );
    let q = polynomial(isa, square, &[1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3]);
    saturate(isa, x, edge, isa.div(isa.mul(p, z), q))
}

/// 1 / (1 + exp(-x)).
#[inline(always)]
pub(crate) fn sigmoid<I: Isa>(isa: I, x: I::V) -> I::V {
    let one = isa.splat(1.0);
    isa.div(one, isa.add(one, exp(isa, isa.sub(isa.splat(0.0), x))))
}

#[inline(always)]
pub(crate) fn relu<I: Isa>(isa: I, x: I::V) -> I::V {
    isa.max(isa.splat(0.0), x)
}

#[inline(always)]
pub(crate) fn gelu_erf<I: Isa>(isa: I, x: I::V) -> I::V {
    let half = isa.mul(x, isa.splat(0.5));
    isa.fma(half, erf(isa, isa.mul(x, isa.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
}

#[inline(always)]
pub(crate) fn gelu_tanh<I: Isa>(isa: I, x: I::V) -> I::V {
    let half = isa.mul(x, isa.splat(0.5));
    let cube = isa.mul(isa.mul(x, x), x);
    let inner = isa.mul(isa.splat(0.797_884_6), isa.fma(cube, isa.splat(0.044_715), x)); // √(2/π)
    isa.fma(half, tanh(isa, inner), half)
}

#[inline(always)]
pub(crate) fn silu<I: Isa>(isa: I, x: I::V) -> I::V {
    isa.div(x, isa.add(isa.splat(1.0), exp(isa, isa.sub(isa.splat(0.0), x))))
}

#[inline(always)]
fn relu6<I: Isa>(isa: I, x: I::V) -> I::V {
    isa.min(isa.splat(6.0), relu(isa, x))
}

#[inline(always)]
fn hard_swish<I: Isa>(isa: I, x: I::V) -> I::V {
    let line = isa.add(isa.mul(x, isa.splat(1.0 / 6.0)), isa.splat(0.5));
    isa.mul(x, isa.max(isa.splat(0.0), isa.min(isa.splat(1.0), line)))
}

/// The word that stands for an activation in parameters; 0 for none.
pub(crate) fn activation_word(activation: Option<Activation>) -> usize {
    match activation {
        None => 0,
        Some(Activation::Relu) => 1,
        Some(Activation::GeluErf) => 2,
        Some(Activation::GeluTanh) => 3,
        Some(Activation::Silu) => 4,
        Some(Activation::Tanh) => 5,
        Some(Activation::Sigmoid) => 6,
        Some(Activation::Relu6) => 7,
        Some(Activation::HardSwish) => 8,
    }
}

/// The activation that a word stands for.
#[inline(always)]
pub(crate) fn activate<I: Isa, const WORD: usize>(isa: I, x: I::V) -> I::V {
    match WORD {
        0 => x,
        1 => relu(isa, x),
        2 => gelu_erf(isa, x),
        3 => gelu_tanh(isa, x),
        4 => silu(isa, x),
        5 => tanh(isa, x),
        6 => sigmoid(isa, x),
        7 => relu6(isa, x),
        _ => hard_swish(isa, x),
    }
}

/// Runs `$body` with the constant `$name` equal to a word, so that the body is compiled once per activation.
///
/// Not a closure: one would be compiled without the vector instructions of its surroundings.
macro_rules! with_activation {
    ($word:expr, $name:ident => $body:expr) => {
        with_activation!(@arms $word, $name, $body; 0 1 2 3 4 5 6 7)
    };
    (@arms $word:expr, $name:ident, $body:expr; $($value:literal)*) => {
        match $word {
            $($value => { const $name: usize = $value; $body })*
            _ => { const $name: usize = 8; $body }
        }
    };
}
pub(crate) use with_activation;

/// The functions of rows, in the order of [`RowFunction::ALL`](crate::abi::RowFunction::ALL).
pub type RowTable = [RowFn; RowFunction::ALL.len()];

/// The row functions of a class; `None` where this program has none (another architecture).
///
/// Calling one needs a processor of the class besides the contract of [`RowFn`].
pub fn rows(class: Class) -> Option<&'static RowTable> {
    Some(match class {
        Class::Portable => &[exp_row_portable, erf_row_portable, tanh_row_portable, sigmoid_row_portable],
        #[cfg(target_arch = "x86_64")]
        Class::Avx2 => &[exp_row_avx2, erf_row_avx2, tanh_row_avx2, sigmoid_row_avx2],
        #[cfg(target_arch = "x86_64")]
        Class::Avx512 | Class::Avx512Bf16 => {
            &[exp_row_avx512, erf_row_avx512, tanh_row_avx512, sigmoid_row_avx512]
        }
        #[cfg(not(target_arch = "x86_64"))]
        _ => return None,
    })
}

/// The functions of scalars, in the order of [`ScalarFunction::ALL`].
pub type ScalarTable = [ScalarFn; ScalarFunction::ALL.len()];

/// The scalar functions, the same for all classes and machines.
pub static SCALARS: ScalarTable =
    [exp_f64, log_f64, erf_f64, tanh_f64, sigmoid_f64, sin_f64, cos_f64, pow_f64];

macro_rules! scalar_functions {
    ($($name:ident = |$x:ident, $y:ident| $f:expr;)*) => { $(
        extern "C" fn $name($x: f64, $y: f64) -> f64 {
            $f
        }
    )* };
}

scalar_functions! {
    exp_f64 = |x, _y| libm::exp(x);
    log_f64 = |x, _y| libm::log(x);
    erf_f64 = |x, _y| libm::erf(x);
    tanh_f64 = |x, _y| libm::tanh(x);
    sigmoid_f64 = |x, _y| 1.0 / (1.0 + libm::exp(-x));
    sin_f64 = |x, _y| libm::sin(x);
    cos_f64 = |x, _y| libm::cos(x);
    pow_f64 = |x, y| libm::pow(x, y);
}

/// # Safety
/// The contract of [`RowFn`].
#[inline(always)]
unsafe fn map_row<I: Isa>(isa: I, x: *const f32, y: *mut f32, len: usize, f: impl Fn(I::V) -> I::V) {
    let whole = len - len % I::LANES;
    // SAFETY: every access is below `len`.
    unsafe {
        for i in (0..whole).step_by(I::LANES) {
            isa.store(y.add(i), f(isa.load(x.add(i))));
        }
        if whole < len {
            let v = isa.merge(isa.splat(0.0), x.add(whole), 0, len - whole);
            isa.store_first(y.add(whole), len - whole, f(v));
        }
    }
}

macro_rules! row_kernels {
    ($([$(#[$attribute:meta])*] $isa:expr => $($name:ident = $f:ident),*;)*) => {$(row_kernels! {
        @class [$(#[$attribute])*] $isa => $($name = $f),*
    })*};
    (@class $attributes:tt $isa:expr => $($name:ident = $f:ident),*) => {$(row_kernels! {
        @one $attributes $isa => $name = $f
    })*};
    (@one [$(#[$attribute:meta])*] $isa:expr => $name:ident = $f:ident) => {
        $(#[$attribute])*
        unsafe extern "C" fn $name(x: *const f32, y: *mut f32, len: usize) {
            // SAFETY: the caller's promise: the contract of `RowFn` and a processor of the class.
            unsafe {
                let isa = $isa;
                map_row(isa, x, y, len, |v| $f(isa, v));
            }
        }
    };
}

row_kernels! {
    [] Portable => exp_row_portable = exp, erf_row_portable = erf, tanh_row_portable = tanh,
        sigmoid_row_portable = sigmoid;
    [#[cfg(target_arch = "x86_64")] #[target_feature(enable = "avx2,fma")]]
    Avx2::new() => exp_row_avx2 = exp, erf_row_avx2 = erf, tanh_row_avx2 = tanh, sigmoid_row_avx2 = sigmoid;
    [#[cfg(target_arch = "x86_64")] #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]]
    Avx512::new() => exp_row_avx512 = exp, erf_row_avx512 = erf, tanh_row_avx512 = tanh,
        sigmoid_row_avx512 = sigmoid;
}
