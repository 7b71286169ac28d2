//! The memory plan: lifetimes and sizes in, offsets and peak out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

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

/// Buffers, at most, that are compared with each other: the time of that grows with the square of their number.
const MOST_COMPARED: usize = 1 << 14;

/// Offsets for buffers such that two that are alive at one step never share a byte, and the bytes needed in all.
///
/// Larger buffers choose first, each the lowest gap that holds it (greedy by size, Pisarchyk and Lee, arXiv
/// 2001.03288); where there are very many, the earlier ones choose first, each the smallest gap. Offsets are multiples of
/// `align`.
pub fn plan_memory(lifetimes: &[Lifetime], align: usize) -> (Vec<usize>, usize) {
    match lifetimes.len() <= MOST_COMPARED {
        true => by_size(lifetimes, align),
        false => by_time(lifetimes, align),
    }
}

fn by_size(lifetimes: &[Lifetime], align: usize) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (Reverse(lifetimes[i].bytes), lifetimes[i].first, i));
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

fn by_time(lifetimes: &[Lifetime], align: usize) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (lifetimes[i].first, Reverse(lifetimes[i].bytes), i));
    let mut offsets = vec![0; lifetimes.len()];
    let mut ends = BinaryHeap::new();
    let mut gaps = Gaps::default();
    for i in order {
        let Lifetime { first, last, bytes } = lifetimes[i];
        while let Some(&Reverse((end, at, size))) = ends.peek()
            && end < first
        {
            ends.pop();
            gaps.give_back(at, size);
        }
        let size = bytes.next_multiple_of(align);
        if size > 0 {
            offsets[i] = gaps.take(size);
            ends.push(Reverse((last, offsets[i], size)));
        }
    }
    (offsets, gaps.end)
}

/// What is free of the memory so far.
#[derive(Default)]
struct Gaps {
    /// By place. No two touch.
    sizes: BTreeMap<usize, usize>,
    /// The same by size, then place.
    by_size: BTreeSet<(usize, usize)>,
    /// Bytes in all.
    end: usize,
}

impl Gaps {
    /// The place of so many bytes: in the smallest gap that holds them, else at the end.
    fn take(&mut self, size: usize) -> usize {
        if let Some(&(found, at)) = self.by_size.range((size, 0)..).next() {
            self.remove(at, found);
            self.insert(at + size, found - size);
            return at;
        }
        let last = self.sizes.last_key_value().map(|(at, size)| (*at, *size));
        let at = match last.filter(|(at, size)| at + size == self.end) {
            Some((at, size)) => {
                self.remove(at, size);
                at
            }
            None => self.end,
        };
        self.end = at + size;
        at
    }

    fn give_back(&mut self, mut at: usize, mut size: usize) {
        let before = self.sizes.range(..at).next_back().map(|(at, size)| (*at, *size));
        if let Some((start, found)) = before.filter(|(start, found)| start + found == at) {
            self.remove(start, found);
            (at, size) = (start, found + size);
        }
        if let Some(found) = self.sizes.get(&(at + size)).copied() {
            self.remove(at + size, found);
            size += found;
        }
        self.insert(at, size);
    }

    fn insert(&mut self, at: usize, size: usize) {
        if size > 0 {
            self.sizes.insert(at, size);
            self.by_size.insert((size, at));
        }
    }

    fn remove(&mut self, at: usize, size: usize) {
        self.sizes.remove(&at);
        self.by_size.remove(&(size, at));
    }
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
            for (offsets, peak) in [by_size(&lives, 64), by_time(&lives, 64)] {
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

    #[test]
    fn a_gap_between_two_buffers_and_one_at_the_end_are_used_again() {
        let table = [life(0, 9, 64), life(0, 1, 128), life(0, 9, 64), life(2, 3, 64), life(2, 9, 64)];
        assert_eq!(by_time(&table, 64).1, 256);
        // The second one takes the end of what is free and more.
        let table = [life(0, 9, 64), life(0, 1, 64), life(2, 3, 128)];
        assert_eq!(by_time(&table, 64), (vec![0, 64, 64], 192));
    }

    #[test]
    fn many_buffers_of_a_chain_take_the_memory_of_a_few() {
        let chain: Vec<Lifetime> = (0..100_000).map(|i| life(i, i + 1, 256 + 64 * (i % 3))).collect();
        let (_, peak) = plan_memory(&chain, 64);
        assert!(peak <= 2048, "{peak}");
    }
}
