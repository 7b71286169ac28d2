//! The memory plan: lifetimes and sizes in, offsets and peak out.

/// When a buffer is needed, and how large it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetime {
    /// The step that writes it first.
    pub first: usize,
    /// The last step that touches it.
    pub last: usize,
    /// Its size.
    pub bytes: usize,
}

impl Lifetime {
    fn overlaps(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Offsets for buffers such that two that are alive at one step never share a byte, and the bytes needed in all.
///
/// Larger buffers choose first, each the lowest gap that holds it (greedy by size, Pisarchyk and Lee, arXiv
/// 2001.03288). Offsets are multiples of `align`.
pub fn plan_memory(lifetimes: &[Lifetime], align: usize) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), lifetimes[i].first, i));
    let mut offsets = vec![0; lifetimes.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut peak = 0;
    for i in order {
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&j| lifetimes[j].overlaps(&lifetimes[i]))
            .map(|&j| (offsets[j], offsets[j] + lifetimes[j].bytes))
            .collect();
        taken.sort_unstable();
        let mut at = 0;
        for (start, end) in taken {
            if at + lifetimes[i].bytes <= start {
                break;
            }
            at = at.max(end.next_multiple_of(align));
        }
        offsets[i] = at;
        peak = peak.max(at + lifetimes[i].bytes);
        placed.push(i);
    }
    (offsets, peak.next_multiple_of(align))
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::random::Philox;
    use rand_core::Rng;

    fn life(first: usize, last: usize, bytes: usize) -> Lifetime {
        Lifetime { first, last, bytes }
    }

    #[test]
    fn buffers_that_are_not_alive_together_share_bytes() {
        let (offsets, peak) = plan_memory(&[life(0, 1, 100), life(1, 2, 50), life(2, 3, 100)], 64);
        assert_eq!((offsets, peak), (vec![0, 128, 0], 192));
    }

    #[test]
    fn a_gap_is_filled() {
        let table = [life(0, 5, 128), life(0, 1, 64), life(0, 5, 64), life(2, 5, 64)];
        let (offsets, peak) = plan_memory(&table, 64);
        assert_eq!((offsets, peak), (vec![0, 128, 192, 128], 256));
    }

    #[test]
    fn overlapping_lifetimes_never_share_bytes() {
        let mut rng = Philox::new(7, 0);
        for _ in 0..200 {
            let lives: Vec<Lifetime> = (0..40)
                .map(|_| {
                    let first = (rng.next_u32() % 50) as usize;
                    life(first, first + (rng.next_u32() % 10) as usize, 1 + (rng.next_u32() % 5000) as usize)
                })
                .collect();
            let (offsets, peak) = plan_memory(&lives, 64);
            for (i, a) in lives.iter().enumerate() {
                assert!(offsets[i] % 64 == 0 && offsets[i] + a.bytes <= peak);
                for (j, b) in lives.iter().enumerate().skip(i + 1) {
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    assert!(apart || !a.overlaps(b), "buffers {i} and {j}");
                }
            }
        }
    }
}
