//! Elements of a few bits one after another, the lowest bit of the first one first.

/// Bytes that `count` elements take.
pub(super) fn packed_len(count: usize, bits: u32) -> usize {
    (count * bits as usize).div_ceil(8)
}

/// The lowest `bits` bits of each byte.
pub(super) fn packed(elements: &[u8], bits: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(packed_len(elements.len(), bits));
    let (mut word, mut held) = (0u32, 0);
    for &element in elements {
        word |= (u32::from(element) & ((1 << bits) - 1)) << held;
        held += bits;
        while held >= 8 {
            out.push(word as u8);
            (word, held) = (word >> 8, held - 8);
        }
    }
    if held > 0 {
        out.push(word as u8);
    }
    out
}

/// The inverse of [`packed`] for `count` elements; the highest bit of signed ones fills their bytes.
pub(super) fn unpacked(bytes: &[u8], bits: u32, signed: bool, count: usize) -> Vec<u8> {
    let mut bytes = bytes.iter();
    let (mut word, mut held) = (0u32, 0);
    let mut element = || {
        while held < bits {
            word |= u32::from(bytes.next().copied().unwrap_or(0)) << held;
            held += 8;
        }
        let q = (word & ((1 << bits) - 1)) as u8;
        (word, held) = (word >> bits, held - bits);
        let up = 8 - bits;
        if signed { ((q << up).cast_signed() >> up).cast_unsigned() } else { q }
    };
    (0..count).map(|_| element()).collect()
}
