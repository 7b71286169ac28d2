//! Changes of bytes without regard to what they mean.

use super::Draw;

/// One to four changes of one to eight bytes: other bits, other bytes, missing bytes, repeated bytes, or a cut end.
pub(super) fn change(whole: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..=draw.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = draw.below(bytes.len());
        let end = (at + 1 + draw.below(8)).min(bytes.len());
        match draw.below(6) {
            0 | 1 => bytes[at] ^= 1 << draw.below(8),
            2 => bytes[at] = draw.word() as u8,
            3 => _ = bytes.drain(at..end),
            4 => {
                let repeated = bytes[at..end].repeat(1 + draw.below(3));
                bytes.splice(at..at, repeated);
            }
            _ if draw.chance(16) => bytes.truncate(at),
            _ => bytes[at] = [0, 0x7F, 0x80, 0xFF][draw.below(4)],
        }
    }
    bytes
}
