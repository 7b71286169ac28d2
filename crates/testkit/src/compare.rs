//! Comparisons. Tolerances live here, in one table with reasons.

use margay_ir::ops::Numbers;
use margay_tensor::{DType, Tensor};

/// How close two results must be: `|a - b| <= absolute + relative * |b|`, where the reference `b` was computed in f64
/// and rounded.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Multiplies the size of the reference.
    pub relative: f64,
    /// Allowed everywhere.
    pub absolute: f64,
}

impl Tolerance {
    /// Bit equality (NaN equals NaN).
    pub const EXACT: Tolerance = Tolerance { relative: 0.0, absolute: 0.0 };
    /// Scalar functions by polynomials in f32: a few units in the last place, and cancellation near zeros.
    pub const ELEMENTWISE: Tolerance = Tolerance { relative: 1e-5, absolute: 2e-6 };
    /// Sums of up to some thousands of products of numbers of size 1 in f32.
    pub const REDUCTION: Tolerance = Tolerance { relative: 1e-4, absolute: 1e-4 };

    /// The same for results of a type: f16 and bf16 are computed in f32 and rounded at the end, to 11 and 8 bits.
    #[must_use]
    pub fn of(self, dtype: DType) -> Tolerance {
        let relative = match dtype {
            DType::F16 => self.relative.max(1e-3),
            DType::BF16 => self.relative.max(8e-3),
            _ => self.relative,
        };
        Tolerance { relative, ..self }
    }
}

/// The largest absolute difference between two tensors of one shape; infinite when one has a number that is not finite
/// where the other has another one.
pub fn max_error(a: &Tensor, b: &Tensor) -> f64 {
    let floats = |t: &Tensor| Numbers::of(t).expect("any tensor reads as numbers").floats();
    floats(a)
        .into_iter()
        .zip(floats(b))
        .map(|(x, y)| match x == y || x.is_nan() && y.is_nan() {
            true => 0.0,
            false if (x - y).is_finite() => (x - y).abs(),
            false => f64::INFINITY,
        })
        .fold(0.0, f64::max)
}

/// Panics unless type and shape are the same and every element is close.
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: Tolerance) {
    assert_eq!(found.dtype(), expected.dtype(), "{what}: type");
    assert_eq!(found.shape(), expected.shape(), "{what}: shape");
    let numbers = |t: &Tensor| Numbers::of(t).expect("any tensor reads as numbers");
    if let (Numbers::Int(x), Numbers::Int(y)) = (numbers(found), numbers(expected)) {
        // Integers are exact, and those of 64 bits no f64.
        assert_eq!(x, y, "{what}");
        return;
    }
    for (i, (x, y)) in numbers(found).floats().into_iter().zip(numbers(expected).floats()).enumerate() {
        let close = x == y
            || x.is_nan() && y.is_nan()
            || (x - y).abs() <= tolerance.absolute + tolerance.relative * y.abs();
        assert!(close, "{what}: element {i} is {x}, expected {y}");
    }
}
