//! Numbers of a random stream, one after the other.

use margay_tensor::random::Philox;

const SEED: u64 = 0x6d61_7267_6179;

/// Integers that programs get wrong: around zero, and around the limits of types.
const BOUNDARIES: [i64; 20] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    7,
    64,
    255,
    256,
    65_535,
    1 << 20,
    i32::MAX as i64,
    1 << 31,
    i32::MIN as i64,
    1 << 32,
    1 << 40,
    1 << 62,
    i64::MAX,
    i64::MIN,
];

/// A random stream.
pub struct Draw {
    philox: Philox,
    next: u64,
}

impl Draw {
    /// The stream of a number.
    pub fn new(stream: u64) -> Draw {
        Draw { philox: Philox::new(SEED, stream), next: 0 }
    }

    /// A number of 32 bits.
    pub fn word(&mut self) -> u32 {
        self.next += 1;
        self.philox.block(self.next)[0]
    }

    /// A number below `n`; 0 where `n` is.
    pub fn below(&mut self, n: usize) -> usize {
        self.word() as usize % n.max(1)
    }

    /// True once in so many.
    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// One of some values; `None` of none.
    pub fn of<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    /// An integer at which something often breaks.
    pub fn boundary(&mut self) -> i64 {
        BOUNDARIES[self.below(BOUNDARIES.len())]
    }

    /// As [`boundary`](Draw::boundary), or one of the small extents that models have.
    pub fn extent(&mut self) -> i64 {
        if self.chance(2) { self.below(6) as i64 } else { self.boundary() }
    }
}
