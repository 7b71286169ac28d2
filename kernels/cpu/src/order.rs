//! Numbers as words in the order of the numbers, for kernels that sort: what is equal has the same word, and NaN that
//! of +∞.

use margay_tensor::DType;

/// How words are made of the elements of a type.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Kind {
    Unsigned,
    Signed,
    F16,
    BF16,
    Float,
}

/// The words of a kernel's parameters that say how elements are read: their bytes and their kind.
pub(crate) fn words_of(dtype: DType) -> [usize; 2] {
    let kind = match dtype {
        DType::F32 | DType::F64 => Kind::Float,
        DType::F16 => Kind::F16,
        DType::BF16 => Kind::BF16,
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => Kind::Signed,
        DType::Bool | DType::U8 | DType::U16 | DType::U32 | DType::U64 => Kind::Unsigned,
    };
    [dtype.bytes(), kind as usize]
}

/// The word of a float of which these are the bits, `infinity` those of +∞ and `sign` the highest.
#[inline(always)]
fn of_float(bits: u64, infinity: u64, sign: u64) -> u64 {
    let size = bits & (sign - 1);
    let nan = size > infinity;
    let negative = bits & sign != 0 && size != 0;
    let above = if nan { infinity } else { size } | sign;
    if negative && !nan { (sign - 1) - size } else { above }
}

/// The word of an f32.
#[inline(always)]
pub(crate) fn of_f32(x: f32) -> u32 {
    of_float(x.to_bits().into(), 0x7f80_0000, 1 << 31) as u32
}

/// Hands the words of `len` elements, `stride` elements apart, to `put` with their places, in order. They have as many
/// bits as the elements.
///
/// # Safety
/// The elements are readable at `x`, of any alignment; `how` comes from [`words_of`].
#[inline(always)]
pub(crate) unsafe fn each_word(
    how: [usize; 2],
    x: *const u8,
    len: usize,
    stride: usize,
    mut put: impl FnMut(usize, u64),
) {
    macro_rules! each {
        ($t:ty, $word:expr) => {
            for i in 0..len {
                // SAFETY: the caller's promise.
                let bits = unsafe { x.cast::<$t>().add(i * stride).read_unaligned() };
                put(i, $word(u64::from(bits)));
            }
        };
    }
    const UNSIGNED: usize = Kind::Unsigned as usize;
    const SIGNED: usize = Kind::Signed as usize;
    const F16: usize = Kind::F16 as usize;
    const BF16: usize = Kind::BF16 as usize;
    match how {
        [1, UNSIGNED] => each!(u8, |bits| bits),
        [1, _] => each!(u8, |bits| bits ^ (1 << 7)),
        [2, UNSIGNED] => each!(u16, |bits| bits),
        [2, SIGNED] => each!(u16, |bits| bits ^ (1 << 15)),
        [2, F16] => each!(u16, |bits| of_float(bits, 0x7c00, 1 << 15)),
        [2, BF16] => each!(u16, |bits| of_float(bits, 0x7f80, 1 << 15)),
        [4, UNSIGNED] => each!(u32, |bits| bits),
        [4, SIGNED] => each!(u32, |bits| bits ^ (1 << 31)),
        [4, _] => each!(u32, |bits| of_float(bits, 0x7f80_0000, 1 << 31)),
        [_, UNSIGNED] => each!(u64, |bits: u64| bits),
        [_, SIGNED] => each!(u64, |bits: u64| bits ^ (1 << 63)),
        [_, _] => each!(u64, |bits: u64| of_float(bits, 0x7ff0 << 48, 1 << 63)),
    }
}
