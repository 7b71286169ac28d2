//! Functions of f32 as polynomials, on a scalar or on four lanes alike.
//!
//! Errors, as the tests sweep them (relative unless said otherwise):
//!
//! | Function | Error | Remarks |
//! |---|---|---|
//! | exp | 1e-7 | results below the smallest normal number are 0 |
//! | log | 1e-7 | |
//! | erf | 4e-7 | may exceed 1 by one unit in the last place |
//! | tanh | 4e-7 | |
//! | sigmoid | 2e-7 | |
//! | sin, cos | 1e-7 absolute | of any argument: beyond 1e4 they are computed in f64 (`calls.rs`) |
//! | pow | 1e-5 | exponents 2, 3, 0.5, -1 and -0.5 given as literals cost, and err, one or two operations |
//!
//! NaN in gives NaN out, except pow(x, 0) = pow(1, y) = 1. A negative number, -∞ included, to a fraction is NaN.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value};

use crate::scalar::Ops;

/// 1.5 · 2²³: adding it leaves the nearest integer in the low bits.
const MAGIC: f64 = 12_582_912.0;
/// ln 2 in two parts; the first has so few bits that products with exponents are exact.
const LN2_HIGH: f64 = 0.693_359_375;
const LN2_LOW: f64 = -2.121_944_4e-4;

impl Ops<'_> {
    fn mul(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().fmul(x, y)
    }

    fn add(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().fadd(x, y)
    }

    fn shift_left(&mut self, x: Value, by: i64) -> Value {
        self.b.ins().ishl_imm_u(x, by)
    }

    /// eˣ = 2ⁿ eʳ with n = round(x / ln 2); the polynomial is that of Cephes.
    pub(crate) fn exp(&mut self, x: Value) -> Value {
        let ty = self.type_of(x);
        let (log2_e, magic) = (self.float(ty, std::f64::consts::LOG2_E), self.float(ty, MAGIC));
        let shifted = self.fma(x, log2_e, magic);
        let n = self.b.ins().fsub(shifted, magic);
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
        let square = self.mul(r, r);
        let p = self.fma(p, square, r);
        let one = self.float(ty, 1.0);
        let p = self.add(p, one);
        let (p, n) = (self.bits(p), self.bits(shifted));
        let n = self.shift_left(n, 23);
        let scaled = self.b.ins().iadd(p, n);
        let y = self.float_of_bits(scaled);
        // Beyond these bounds the exponent field has wrapped.
        let (tiny, huge) = (self.float(ty, -87.336_54), self.float(ty, 88.722_83));
        let (zero, infinity) = (self.float(ty, 0.0), self.float(ty, f64::INFINITY));
        let above_zero = self.compare(FloatCC::GreaterThanOrEqual, x, tiny);
        let y = self.choose(above_zero, y, zero);
        let finite = self.compare(FloatCC::LessThanOrEqual, x, huge);
        let beyond = self.add(x, infinity);
        self.choose(finite, y, beyond)
    }

    /// Natural logarithm: x = 2ᵉ m with m in [√½, √2), and Cephes' polynomial in m - 1.
    pub(crate) fn log(&mut self, x: Value) -> Value {
        let ty = self.type_of(x);
        let (smallest_normal, up) =
            (self.float(ty, f64::from(f32::MIN_POSITIVE)), self.float(ty, 8_388_608.0));
        let subnormal = self.compare(FloatCC::LessThan, x, smallest_normal);
        let lifted = self.mul(x, up);
        let normal = self.choose(subnormal, lifted, x);
        let bits = self.bits(normal);
        let root_half = self.int(ty, 0x3f35_04f3);
        let offset = self.b.ins().isub(bits, root_half);
        let exponent = self.b.ins().sshr_imm_u(offset, 23);
        let exponent_bits = self.shift_left(exponent, 23);
        let mantissa = self.b.ins().isub(bits, exponent_bits);
        let mantissa = self.float_of_bits(mantissa);
        let e = self.b.ins().fcvt_from_sint(ty, exponent);
        let (lift, zero) = (self.float(ty, -23.0), self.float(ty, 0.0));
        let lift = self.choose(subnormal, lift, zero);
        let e = self.add(e, lift);
        let minus_one = self.float(ty, -1.0);
        let f = self.add(mantissa, minus_one);
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
        let square = self.mul(f, f);
        let cube = self.mul(f, square);
        let (low, high, half) = (self.float(ty, LN2_LOW), self.float(ty, LN2_HIGH), self.float(ty, -0.5));
        let y = self.mul(e, low);
        let y = self.fma(p, cube, y);
        let y = self.fma(square, half, y);
        let y = self.add(y, f);
        let y = self.fma(e, high, y);
        self.log_edges(x, y)
    }

    /// The logarithm of what is not a positive finite number: ∞, ±0, negative numbers and NaN.
    fn log_edges(&mut self, x: Value, y: Value) -> Value {
        let ty = self.type_of(x);
        let (zero, infinity) = (self.float(ty, 0.0), self.float(ty, f64::INFINITY));
        let (minus_infinity, nan) = (self.float(ty, f64::NEG_INFINITY), self.float(ty, f64::NAN));
        let finite = self.compare(FloatCC::LessThan, x, infinity);
        let y = self.choose(finite, y, x);
        let is_zero = self.compare(FloatCC::Equal, x, zero);
        let edge = self.choose(is_zero, minus_infinity, nan);
        let positive = self.compare(FloatCC::GreaterThan, x, zero);
        self.choose(positive, y, edge)
    }

    /// x P(x²) / Q(x²) on the range where the result, rounded, is below 1; coefficients by minimax fit of the
    /// relative error.
    pub(crate) fn erf(&mut self, x: Value) -> Value {
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

    /// As for [`erf`](Ops::erf), with the coefficients that Eigen uses.
    pub(crate) fn tanh(&mut self, x: Value) -> Value {
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

    fn odd_rational(&mut self, x: Value, bound: f64, p: &[f64], q: &[f64]) -> Value {
        let ty = self.type_of(x);
        let (low, high) = (self.float(ty, -bound), self.float(ty, bound));
        let x = self.at_least(x, low);
        let x = self.at_most(x, high);
        let square = self.mul(x, x);
        let (p, q) = (self.polynomial(square, p), self.polynomial(square, q));
        let p = self.mul(p, x);
        self.b.ins().fdiv(p, q)
    }

    pub(crate) fn sigmoid(&mut self, x: Value) -> Value {
        let ty = self.type_of(x);
        let negative = self.b.ins().fneg(x);
        let e = self.exp(negative);
        let one = self.float(ty, 1.0);
        let sum = self.add(one, e);
        self.b.ins().fdiv(one, sum)
    }

    pub(crate) fn sin(&mut self, x: Value) -> Value {
        self.circular(x, 0)
    }

    pub(crate) fn cos(&mut self, x: Value) -> Value {
        self.circular(x, 1)
    }

    /// sin(x + quarters π/2): x = n π/2 + r, then the polynomial of sin or cos by the parity of n + quarters. π/2 is
    /// taken off in three parts, the first two short enough for exact products.
    fn circular(&mut self, x: Value, quarters: i64) -> Value {
        let ty = self.type_of(x);
        let (two_over_pi, magic) = (self.float(ty, std::f64::consts::FRAC_2_PI), self.float(ty, MAGIC));
        let shifted = self.fma(x, two_over_pi, magic);
        let n = self.b.ins().fsub(shifted, magic);
        let mut r = x;
        for part in [-1.570_312_5, -4.837_512_969_970_703e-4, -7.549_789_948_768_648e-8] {
            let part = self.float(ty, part);
            r = self.fma(n, part, r);
        }
        let quarter = std::f64::consts::FRAC_PI_4 + 0.01;
        let (low, high) = (self.float(ty, -quarter), self.float(ty, quarter));
        let r = self.at_least(r, low);
        let r = self.at_most(r, high);
        let square = self.mul(r, r);
        let one = self.float(ty, 1.0);
        let sine = self.polynomial(square, &[-1.951_529_589_1e-4, 8.332_160_873_6e-3, -0.166_666_546_11]);
        let cube = self.mul(square, r);
        let sine = self.fma(sine, cube, r);
        let cosine = self.polynomial(
            square,
            &[2.443_315_711_809_948e-5, -1.388_731_625_493_765e-3, 4.166_664_568_298_827e-2, -0.5],
        );
        let cosine = self.fma(cosine, square, one);
        let quadrant = self.bits(shifted);
        let quarters = self.int(ty, quarters);
        let quadrant = self.b.ins().iadd(quadrant, quarters);
        let (bit, zero) = (self.int(ty, 1), self.int(ty, 0));
        let parity = self.b.ins().band(quadrant, bit);
        let even = self.b.ins().icmp(IntCC::Equal, parity, zero);
        let y = self.choose(even, sine, cosine);
        let bit = self.int(ty, 2);
        let half_turn = self.b.ins().band(quadrant, bit);
        let sign = self.shift_left(half_turn, 30);
        let y = self.bits(y);
        let y = self.b.ins().bxor(y, sign);
        self.float_of_bits(y)
    }

    /// xʸ, with `exponent` set when y is a literal.
    pub(crate) fn pow(&mut self, x: Value, y: Value, exponent: Option<f32>) -> Value {
        let ty = self.type_of(x);
        let one = self.float(ty, 1.0);
        match exponent {
            Some(1.0) => x,
            Some(2.0) => self.mul(x, x),
            Some(3.0) => {
                let square = self.mul(x, x);
                self.mul(square, x)
            }
            Some(0.5) => self.b.ins().sqrt(x),
            Some(-1.0) => self.b.ins().fdiv(one, x),
            Some(-0.5) => {
                let root = self.b.ins().sqrt(x);
                self.b.ins().fdiv(one, root)
            }
            Some(_) | None => self.general_pow(x, y),
        }
    }

    /// e^(y ln|x|) with the sign of x for odd y.
    fn general_pow(&mut self, x: Value, y: Value) -> Value {
        let ty = self.type_of(x);
        let size = self.b.ins().fabs(x);
        let log = self.log(size);
        let power = self.mul(y, log);
        let result = self.exp(power);
        let one = self.float(ty, 1.0);
        let is_one = self.compare(FloatCC::Equal, size, one);
        let result = self.choose(is_one, one, result);
        let half = self.float(ty, 0.5);
        let half_y = self.mul(y, half);
        let (whole, half_whole) = (self.floor(y), self.floor(half_y));
        let is_whole = self.compare(FloatCC::Equal, whole, y);
        let is_uneven = self.compare(FloatCC::NotEqual, half_whole, half_y);
        let is_odd = self.b.ins().band(is_whole, is_uneven);
        let sign_bit = self.int(ty, 0x8000_0000);
        let bits = self.bits(x);
        let sign = self.b.ins().band(bits, sign_bit);
        let bits = self.bits(result);
        let signed = self.b.ins().bxor(bits, sign);
        let signed = self.float_of_bits(signed);
        let result = self.choose(is_odd, signed, result);
        let (zero, nan) = (self.float(ty, 0.0), self.float(ty, f64::NAN));
        let negative = self.compare(FloatCC::LessThan, x, zero);
        let is_fraction = self.not(is_whole);
        let undefined = self.b.ins().band(negative, is_fraction);
        let result = self.choose(undefined, nan, result);
        let y_is_zero = self.compare(FloatCC::Equal, y, zero);
        self.choose(y_is_zero, one, result)
    }
}
