//! Functions of f32 and of 16-bit floats, written once over the operations that every back end has.
//!
//! A back end implements [`Arithmetic`] for whatever writes its code: the operations without a body. The functions with a
//! body are polynomials over these, the same on a scalar and on several lanes, so that results of back ends that fuse
//! products and sums alike agree in every bit.
//!
//! Errors, as tests sweep them (relative unless said otherwise):
//!
//! | Function | Error | Remarks |
//! |---|---|---|
//! | exp | 1e-7 | results below the smallest normal number are 0 |
//! | log | 1e-7 | |
//! | erf | 4e-7 | may exceed 1 by one unit in the last place |
//! | tanh | 4e-7 | |
//! | sigmoid | 2e-7 | |
//! | sin, cos | 1e-7 absolute | of arguments up to 1e4 |
//! | pow | 1e-5 | exponents 2, 3, 0.5, -1 and -0.5 given as literals cost, and err, one or two operations |
//!
//! NaN in gives NaN out, except pow(x, 0) = pow(1, y) = 1. A negative number, -∞ included, to a fraction is NaN.
//!
//! 16-bit floats are in registers the f32 that they stand for; their bits are the lower half of a 32-bit integer.

use margay_tensor::DType;

/// 1.5 · 2²³: adding it leaves the nearest integer in the low bits.
const MAGIC: f64 = 12_582_912.0;
/// ln 2 in two parts; the first has so few bits that products with exponents are exact.
const LN2_HIGH: f64 = 0.693_359_375;
const LN2_LOW: f64 = -2.121_944_4e-4;
/// The bits of ½: adding it to a magnitude below 2⁻¹⁴ leaves the multiple of 2⁻²⁴ nearest to that in the low bits.
const HALF: i64 = 0x3f00_0000;
/// What the exponents of f32 and f16 differ by, in place.
const REBIAS: i64 = 112 << 23;

/// How two numbers compare. Of floats all but [`NotEqual`](Comparison::NotEqual) and
/// [`Unordered`](Comparison::Unordered) are false where one is not a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Comparison {
    /// x = y.
    Equal,
    /// x ≠ y, or one is not a number.
    NotEqual,
    /// x < y.
    Less,
    /// x <= y.
    LessOrEqual,
    /// x > y.
    Greater,
    /// x >= y.
    GreaterOrEqual,
    /// One is not a number.
    Unordered,
}

/// What writes operations on scalars, or on lanes, into the code of a back end.
pub trait Arithmetic {
    /// A value of the code that is written.
    type Value: Copy;
    /// The type of a value.
    type Type: Copy;

    /// The type of a value.
    fn type_of(&self, x: Self::Value) -> Self::Type;

    /// A float in a type of floats.
    fn float(&mut self, ty: Self::Type, v: f64) -> Self::Value;

    /// An integer in the type of integers as wide as `ty`, cut off to its width.
    fn int(&mut self, ty: Self::Type, v: i64) -> Self::Value;

    /// x + y of floats.
    fn fadd(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// x - y of floats.
    fn fsub(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// x y of floats.
    fn fmul(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// x / y of floats.
    fn fdiv(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// -x of a float.
    fn fneg(&mut self, x: Self::Value) -> Self::Value;

    /// |x| of a float.
    fn fabs(&mut self, x: Self::Value) -> Self::Value;

    /// √x.
    fn sqrt(&mut self, x: Self::Value) -> Self::Value;

    /// The largest integer not above x, as a float.
    fn floor(&mut self, x: Self::Value) -> Self::Value;

    /// x y + z, with one rounding where the machine can and with two where it cannot.
    fn fma(&mut self, x: Self::Value, y: Self::Value, z: Self::Value) -> Self::Value;

    /// Compares floats.
    fn compare(&mut self, how: Comparison, x: Self::Value, y: Self::Value) -> Self::Value;

    /// Compares integers with a sign.
    fn compare_ints(&mut self, how: Comparison, x: Self::Value, y: Self::Value) -> Self::Value;

    /// `if test { x } else { y }`.
    fn choose(&mut self, test: Self::Value, x: Self::Value, y: Self::Value) -> Self::Value;

    /// The negation of the result of a comparison.
    fn not(&mut self, test: Self::Value) -> Self::Value;

    /// The bits of a float as an integer.
    fn bits(&mut self, x: Self::Value) -> Self::Value;

    /// The float with these bits.
    fn float_of_bits(&mut self, x: Self::Value) -> Self::Value;

    /// The f32 nearest to an integer of 32 bits.
    fn float_from_int(&mut self, x: Self::Value) -> Self::Value;

    /// x + y of integers.
    fn iadd(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// x - y of integers.
    fn isub(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// Bits that both have, of integers and results of comparisons.
    fn and(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// Bits that either has.
    fn or(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// Bits that one has and the other has not.
    fn xor(&mut self, x: Self::Value, y: Self::Value) -> Self::Value;

    /// An integer moved up by some bits.
    fn shift_left(&mut self, x: Self::Value, by: u32) -> Self::Value;

    /// An integer without a sign moved down by some bits.
    fn shift_right(&mut self, x: Self::Value, by: u32) -> Self::Value;

    /// An integer with a sign moved down by some bits.
    fn shift_right_signed(&mut self, x: Self::Value, by: u32) -> Self::Value;

    /// Σ coefficients\[i\] x^(n-1-i), highest power first.
    fn polynomial(&mut self, x: Self::Value, coefficients: &[f64]) -> Self::Value {
        let ty = self.type_of(x);
        let mut sum = self.float(ty, coefficients[0]);
        for &c in &coefficients[1..] {
            let c = self.float(ty, c);
            sum = self.fma(sum, x, c);
        }
        sum
    }

    /// The smaller float, or x when x is not a number, for a `bound` that is a number.
    fn at_most(&mut self, x: Self::Value, bound: Self::Value) -> Self::Value {
        let below = self.compare(Comparison::Less, bound, x);
        self.choose(below, bound, x)
    }

    /// The larger float, or x when x is not a number, for a `bound` that is a number.
    fn at_least(&mut self, x: Self::Value, bound: Self::Value) -> Self::Value {
        let above = self.compare(Comparison::Less, x, bound);
        self.choose(above, bound, x)
    }

    /// The smaller float; NaN if either is.
    fn min(&mut self, x: Self::Value, y: Self::Value) -> Self::Value {
        let less = self.compare(Comparison::Less, x, y);
        let m = self.choose(less, x, y);
        self.keep_nan(x, m)
    }

    /// The larger float; NaN if either is.
    fn max(&mut self, x: Self::Value, y: Self::Value) -> Self::Value {
        let greater = self.compare(Comparison::Less, y, x);
        let m = self.choose(greater, x, y);
        self.keep_nan(x, m)
    }

    /// x where it is not a number, and else `otherwise`.
    fn keep_nan(&mut self, x: Self::Value, otherwise: Self::Value) -> Self::Value {
        let nan = self.compare(Comparison::Unordered, x, x);
        self.choose(nan, x, otherwise)
    }

    /// eˣ = 2ⁿ eʳ with n = round(x / ln 2); the polynomial is that of Cephes.
    fn exp(&mut self, x: Self::Value) -> Self::Value {
        let ty = self.type_of(x);
        let (log2_e, magic) = (self.float(ty, std::f64::consts::LOG2_E), self.float(ty, MAGIC));
        let shifted = self.fma(x, log2_e, magic);
        let n = self.fsub(shifted, magic);
        let (high, low) = (self.float(ty, -LN2_HIGH), self.float(ty, -LN2_LOW));
        let r = self.fma(n, high, x);
        let r = self.fma(n, low, r);
        let p = self.polynomial(
            r,
            &[
                1.987_569_15e-4,
                1.398_199_950_7e-3,
                8.333_451_907_3e-3,
                4.166_579_589_4e-2,
                0.166_666_654_59,
                0.5,
            ],
        );
        let square = self.fmul(r, r);
        let p = self.fma(p, square, r);
        let one = self.float(ty, 1.0);
        let p = self.fadd(p, one);
        let (p, n) = (self.bits(p), self.bits(shifted));
        let n = self.shift_left(n, 23);
        let scaled = self.iadd(p, n);
        let y = self.float_of_bits(scaled);
        // Beyond these bounds the exponent field has wrapped.
        let (tiny, huge) = (self.float(ty, -87.336_54), self.float(ty, 88.722_83));
        let (zero, infinity) = (self.float(ty, 0.0), self.float(ty, f64::INFINITY));
        let above_zero = self.compare(Comparison::GreaterOrEqual, x, tiny);
        let y = self.choose(above_zero, y, zero);
        let finite = self.compare(Comparison::LessOrEqual, x, huge);
        let beyond = self.fadd(x, infinity);
        self.choose(finite, y, beyond)
    }

    /// Natural logarithm: x = 2ᵉ m with m in [√½, √2), and Cephes' polynomial in m - 1.
    fn log(&mut self, x: Self::Value) -> Self::Value {
        let ty = self.type_of(x);
        let (smallest_normal, up) =
            (self.float(ty, f64::from(f32::MIN_POSITIVE)), self.float(ty, 8_388_608.0));
        let subnormal = self.compare(Comparison::Less, x, smallest_normal);
        let lifted = self.fmul(x, up);
        let normal = self.choose(subnormal, lifted, x);
        let bits = self.bits(normal);
        let root_half = self.int(ty, 0x3f35_04f3);
        let offset = self.isub(bits, root_half);
        let exponent = self.shift_right_signed(offset, 23);
        let exponent_bits = self.shift_left(exponent, 23);
        let mantissa = self.isub(bits, exponent_bits);
        let mantissa = self.float_of_bits(mantissa);
        let e = self.float_from_int(exponent);
        let (lift, zero) = (self.float(ty, -23.0), self.float(ty, 0.0));
        let lift = self.choose(subnormal, lift, zero);
        let e = self.fadd(e, lift);
        let minus_one = self.float(ty, -1.0);
        let f = self.fadd(mantissa, minus_one);
        let p = self.polynomial(
            f,
            &[
                7.037_683_629_2e-2,
                -0.115_146_103_1,
                0.116_769_987_4,
                -0.124_201_408_46,
                0.142_493_227_87,
                -0.166_680_576_65,
                0.200_007_147_65,
                -0.249_999_939_93,
                0.333_333_311_74,
            ],
        );
        let square = self.fmul(f, f);
        let cube = self.fmul(f, square);
        let (low, high, half) = (self.float(ty, LN2_LOW), self.float(ty, LN2_HIGH), self.float(ty, -0.5));
        let y = self.fmul(e, low);
        let y = self.fma(p, cube, y);
        let y = self.fma(square, half, y);
        let y = self.fadd(y, f);
        let y = self.fma(e, high, y);
        self.log_edges(x, y)
    }

    /// The logarithm of what is not a positive finite number: ∞, ±0, negative numbers and NaN.
    fn log_edges(&mut self, x: Self::Value, y: Self::Value) -> Self::Value {
        let ty = self.type_of(x);
        let (zero, infinity) = (self.float(ty, 0.0), self.float(ty, f64::INFINITY));
        let (minus_infinity, nan) = (self.float(ty, f64::NEG_INFINITY), self.float(ty, f64::NAN));
        let finite = self.compare(Comparison::Less, x, infinity);
        let y = self.choose(finite, y, x);
        let is_zero = self.compare(Comparison::Equal, x, zero);
        let edge = self.choose(is_zero, minus_infinity, nan);
        let positive = self.compare(Comparison::Greater, x, zero);
        self.choose(positive, y, edge)
    }

    /// x P(x²) / Q(x²) on the range where the result, rounded, is below 1; coefficients by minimax fit of the
    /// relative error.
    fn erf(&mut self, x: Self::Value) -> Self::Value {
        let p = [
            2.097_029_039_302_598e-8,
            -1.985_748_667_721_054e-6,
            1.366_563_519_695_774e-4,
            3.405_210_329_219_699e-3,
            4.959_675_297_141_075e-2,
            0.192_432_180_047_035_22,
            1.128_379_106_521_606_4,
        ];
        let q = [
            8.903_957_787_789_78e-4,
            1.373_125_147_074_461e-2,
            0.111_917_920_410_633_09,
            0.503_870_606_422_424_3,
            1.0,
        ];
        self.odd_rational(x, 3.832_506_9, &p, &q)
    }

    /// As for [`erf`](Arithmetic::erf), with the coefficients that Eigen uses.
    fn tanh(&mut self, x: Self::Value) -> Self::Value {
        let p = [
            -2.760_768_477_423_55e-16,
            2.000_187_904_824_77e-13,
            -8.604_671_522_137_35e-11,
            5.122_297_090_371_14e-8,
            1.485_722_357_179_79e-5,
            6.372_619_288_754_36e-4,
            4.893_524_558_917_86e-3,
        ];
        let q =
            [1.198_258_394_667_02e-6, 1.185_347_056_866_54e-4, 2.268_434_632_439e-3, 4.893_525_185_543_85e-3];
        self.odd_rational(x, 7.905_311_107_635_498, &p, &q)
    }

    /// x P(x²) / Q(x²) where |x| is at most `bound`, and its value at the bound beyond.
    fn odd_rational(&mut self, x: Self::Value, bound: f64, p: &[f64], q: &[f64]) -> Self::Value {
        let ty = self.type_of(x);
        let (low, high) = (self.float(ty, -bound), self.float(ty, bound));
        let x = self.at_least(x, low);
        let x = self.at_most(x, high);
        let square = self.fmul(x, x);
        let (p, q) = (self.polynomial(square, p), self.polynomial(square, q));
        let p = self.fmul(p, x);
        self.fdiv(p, q)
    }

    /// 1 / (1 + e⁻ˣ).
    fn sigmoid(&mut self, x: Self::Value) -> Self::Value {
        let ty = self.type_of(x);
        let negative = self.fneg(x);
        let e = self.exp(negative);
        let one = self.float(ty, 1.0);
        let sum = self.fadd(one, e);
        self.fdiv(one, sum)
    }

    /// The sine.
    fn sin(&mut self, x: Self::Value) -> Self::Value {
        self.circular(x, 0)
    }

    /// The cosine.
    fn cos(&mut self, x: Self::Value) -> Self::Value {
        self.circular(x, 1)
    }

    /// sin(x + quarters π/2): x = n π/2 + r, then the polynomial of sin or cos by the parity of n + quarters. π/2 is
    /// taken off in three parts, the first two short enough for exact products.
    fn circular(&mut self, x: Self::Value, quarters: i64) -> Self::Value {
        let ty = self.type_of(x);
        let (two_over_pi, magic) = (self.float(ty, std::f64::consts::FRAC_2_PI), self.float(ty, MAGIC));
        let shifted = self.fma(x, two_over_pi, magic);
        let n = self.fsub(shifted, magic);
        let mut r = x;
        for part in [-1.570_312_5, -4.837_512_969_970_703e-4, -7.549_789_948_768_648e-8] {
            let part = self.float(ty, part);
            r = self.fma(n, part, r);
        }
        let quarter = std::f64::consts::FRAC_PI_4 + 0.01;
        let (low, high) = (self.float(ty, -quarter), self.float(ty, quarter));
        let r = self.at_least(r, low);
        let r = self.at_most(r, high);
        let square = self.fmul(r, r);
        let one = self.float(ty, 1.0);
        let sine = self.polynomial(square, &[-1.951_529_589_1e-4, 8.332_160_873_6e-3, -0.166_666_546_11]);
        let cube = self.fmul(square, r);
        let sine = self.fma(sine, cube, r);
        let cosine = self.polynomial(
            square,
            &[2.443_315_711_809_948e-5, -1.388_731_625_493_765e-3, 4.166_664_568_298_827e-2, -0.5],
        );
        let cosine = self.fma(cosine, square, one);
        let quadrant = self.bits(shifted);
        let quarters = self.int(ty, quarters);
        let quadrant = self.iadd(quadrant, quarters);
        let (bit, zero) = (self.int(ty, 1), self.int(ty, 0));
        let parity = self.and(quadrant, bit);
        let even = self.compare_ints(Comparison::Equal, parity, zero);
        let y = self.choose(even, sine, cosine);
        let bit = self.int(ty, 2);
        let half_turn = self.and(quadrant, bit);
        let sign = self.shift_left(half_turn, 30);
        let y = self.bits(y);
        let y = self.xor(y, sign);
        self.float_of_bits(y)
    }

    /// xʸ, with `exponent` set when y is a literal.
    fn pow(&mut self, x: Self::Value, y: Self::Value, exponent: Option<f32>) -> Self::Value {
        let ty = self.type_of(x);
        let one = self.float(ty, 1.0);
        match exponent {
            Some(1.0) => x,
            Some(2.0) => self.fmul(x, x),
            Some(3.0) => {
                let square = self.fmul(x, x);
                self.fmul(square, x)
            }
            Some(0.5) => self.sqrt(x),
            Some(-1.0) => self.fdiv(one, x),
            Some(-0.5) => {
                let root = self.sqrt(x);
                self.fdiv(one, root)
            }
            Some(_) | None => self.general_pow(x, y),
        }
    }

    /// e^(y ln|x|) with the sign of x for odd y.
    fn general_pow(&mut self, x: Self::Value, y: Self::Value) -> Self::Value {
        let ty = self.type_of(x);
        let size = self.fabs(x);
        let log = self.log(size);
        let power = self.fmul(y, log);
        let result = self.exp(power);
        let one = self.float(ty, 1.0);
        let is_one = self.compare(Comparison::Equal, size, one);
        let result = self.choose(is_one, one, result);
        let half = self.float(ty, 0.5);
        let half_y = self.fmul(y, half);
        let (whole, half_whole) = (self.floor(y), self.floor(half_y));
        let is_whole = self.compare(Comparison::Equal, whole, y);
        let is_uneven = self.compare(Comparison::NotEqual, half_whole, half_y);
        let is_odd = self.and(is_whole, is_uneven);
        let sign_bit = self.int(ty, 0x8000_0000);
        let bits = self.bits(x);
        let sign = self.and(bits, sign_bit);
        let bits = self.bits(result);
        let signed = self.xor(bits, sign);
        let signed = self.float_of_bits(signed);
        let result = self.choose(is_odd, signed, result);
        let (zero, nan) = (self.float(ty, 0.0), self.float(ty, f64::NAN));
        let negative = self.compare(Comparison::Less, x, zero);
        let is_fraction = self.not(is_whole);
        let undefined = self.and(negative, is_fraction);
        let result = self.choose(undefined, nan, result);
        let y_is_zero = self.compare(Comparison::Equal, y, zero);
        self.choose(y_is_zero, one, result)
    }

    /// The number of a 16-bit type nearest to an f32, ties to even, as an f32.
    fn round_half(&mut self, x: Self::Value, dtype: DType) -> Self::Value {
        match dtype {
            DType::F16 => self.round_f16(x),
            _ => self.round_bf16(x),
        }
    }

    /// The bits of an f32 with so many of them dropped, rounded to even.
    fn drop_bits(&mut self, bits: Self::Value, count: u32) -> Self::Value {
        let ty = self.type_of(bits);
        let kept = self.shift_right(bits, count);
        let (one, most) = (self.int(ty, 1), self.int(ty, (1 << (count - 1)) - 1));
        let odd = self.and(kept, one);
        let sum = self.iadd(bits, most);
        let sum = self.iadd(sum, odd);
        let mask = self.int(ty, !((1i64 << count) - 1));
        self.and(sum, mask)
    }

    /// The bf16 nearest to x, as an f32.
    fn round_bf16(&mut self, x: Self::Value) -> Self::Value {
        let bits = self.bits(x);
        let ty = self.type_of(bits);
        let rounded = self.drop_bits(bits, 16);
        let (quiet, mask) = (self.int(ty, 0x40_0000), self.int(ty, !0xffff));
        let nan = self.or(bits, quiet);
        let nan = self.and(nan, mask);
        let (rounded, nan) = (self.float_of_bits(rounded), self.float_of_bits(nan));
        let is_nan = self.compare(Comparison::Unordered, x, x);
        self.choose(is_nan, nan, rounded)
    }

    /// The f16 nearest to x, as an f32.
    fn round_f16(&mut self, x: Self::Value) -> Self::Value {
        let float = self.type_of(x);
        let bits = self.bits(x);
        let ty = self.type_of(bits);
        let (size, sign) = self.split_sign(bits);
        let rounded = self.drop_bits(size, 13);
        let rounded = self.float_of_bits(rounded);
        let size = self.float_of_bits(size);
        // Below the smallest normal number the steps are 2⁻²⁴ wide.
        let half = self.float(float, 0.5);
        let sum = self.fadd(size, half);
        let stepped = self.fsub(sum, half);
        let (normal, beyond) = (self.float(float, 2f64.powi(-14)), self.float(float, 65_520.0));
        let is_small = self.compare(Comparison::Less, size, normal);
        let rounded = self.choose(is_small, stepped, rounded);
        let infinite = self.float(float, f64::INFINITY);
        let is_beyond = self.compare(Comparison::GreaterOrEqual, size, beyond);
        let rounded = self.choose(is_beyond, infinite, rounded);
        let rounded = self.bits(rounded);
        let rounded = self.or(rounded, sign);
        let rounded = self.float_of_bits(rounded);
        let quiet = self.int(ty, 0x40_0000);
        let nan = self.or(bits, quiet);
        let nan = self.float_of_bits(nan);
        let is_nan = self.compare(Comparison::Unordered, x, x);
        self.choose(is_nan, nan, rounded)
    }

    /// The bits of a magnitude, and the bit of a sign, of an f32.
    fn split_sign(&mut self, bits: Self::Value) -> (Self::Value, Self::Value) {
        let ty = self.type_of(bits);
        let (size, sign) = (self.int(ty, 0x7fff_ffff), self.int(ty, 0x8000_0000));
        (self.and(bits, size), self.and(bits, sign))
    }

    /// The bits of a 16-bit float as the f32 they stand for.
    fn widen_half(&mut self, half: Self::Value, dtype: DType) -> Self::Value {
        if dtype == DType::BF16 {
            let bits = self.shift_left(half, 16);
            return self.float_of_bits(bits);
        }
        let ty = self.type_of(half);
        let (size_mask, sign_mask) = (self.int(ty, 0x7fff), self.int(ty, 0x8000));
        let size = self.and(half, size_mask);
        let sign = self.and(half, sign_mask);
        let sign = self.shift_left(sign, 16);
        let (rebias, infinite, normal) = (self.int(ty, REBIAS), self.int(ty, 0x7c00), self.int(ty, 0x400));
        let moved = self.shift_left(size, 13);
        let moved = self.iadd(moved, rebias);
        let special = self.iadd(moved, rebias);
        let is_finite = self.compare_ints(Comparison::Less, size, infinite);
        let moved = self.choose(is_finite, moved, special);
        // Subnormal numbers are multiples of 2⁻²⁴.
        let half_bits = self.int(ty, HALF);
        let sum = self.or(half_bits, size);
        let sum = self.float_of_bits(sum);
        let half = self.float(self.type_of(sum), 0.5);
        let small = self.fsub(sum, half);
        let small = self.bits(small);
        let is_small = self.compare_ints(Comparison::Less, size, normal);
        let bits = self.choose(is_small, small, moved);
        let bits = self.or(bits, sign);
        self.float_of_bits(bits)
    }

    /// The bits of the 16-bit float that an f32 rounds to.
    fn narrow_half(&mut self, x: Self::Value, dtype: DType) -> Self::Value {
        let x = self.round_half(x, dtype);
        let bits = self.bits(x);
        if dtype == DType::BF16 {
            return self.shift_right(bits, 16);
        }
        let ty = self.type_of(bits);
        let (size, sign) = self.split_sign(bits);
        let sign = self.shift_right(sign, 16);
        // A NaN is quiet by now; infinity and NaN have the largest exponent of either type.
        let (rebias, special, normal) =
            (self.int(ty, REBIAS), self.int(ty, 0x7f80_0000), self.int(ty, 113 << 23));
        let moved = self.isub(size, rebias);
        let twice = self.isub(moved, rebias);
        let is_finite = self.compare_ints(Comparison::Less, size, special);
        let moved = self.choose(is_finite, moved, twice);
        let moved = self.shift_right(moved, 13);
        let magnitude = self.float_of_bits(size);
        let half = self.float(self.type_of(magnitude), 0.5);
        let sum = self.fadd(magnitude, half);
        let sum = self.bits(sum);
        let half_bits = self.int(ty, HALF);
        let small = self.isub(sum, half_bits);
        let is_small = self.compare_ints(Comparison::Less, size, normal);
        let half = self.choose(is_small, small, moved);
        self.or(half, sign)
    }
}
