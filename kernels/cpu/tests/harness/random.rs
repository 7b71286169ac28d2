//! Seeded random numbers for tests.

use margay_tensor::random::Philox;

/// A stream of choices and of elements.
pub(crate) struct Random {
    stream: Philox,
    next: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random { stream: Philox::new(seed, 0), next: 0 }
    }

    /// A number in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        self.stream.block(self.next)[0] as usize % n
    }

    /// One of several.
    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Normal numbers.
    pub(crate) fn normal(&mut self, n: usize) -> Vec<f32> {
        self.next += 1;
        let mut out = vec![0.0; n];
        Philox::new(self.next, 1).fill_normal_f32(0, &mut out);
        out
    }
}
