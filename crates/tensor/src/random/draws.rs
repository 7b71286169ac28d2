//! Random positions with signs, of which sparse and structured random matrices are made.
//!
//! A draw is one block of a stream: its first two words are a position of 64 bits, the lowest bit of the third a sign.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::Philox;

impl Philox {
    /// The block where a second kind of draws of one stream begins.
    pub const SECOND: u64 = 1 << 40;

    /// A position of 64 bits and a sign, ±1, from one block.
    pub fn draw(&self, block: u64) -> (u64, f64) {
        let [low, high, sign, _] = self.block(block);
        (u64::from(low) | u64::from(high) << 32, if sign & 1 == 0 { 1.0 } else { -1.0 })
    }

    /// The `column`th set of `entries.len()` different numbers below `rows`, each with a sign: draw `k` of column `j` is block
    /// `j · entries + k`. All sets are equally likely (the draw of a set of Floyd; Bentley and Floyd, *A sample of brilliance*,
    /// CACM 1987).
    pub fn draw_set(&self, column: usize, rows: usize, entries: &mut [(usize, f64)]) {
        let count = entries.len();
        // Few are compared one by one.
        let mut many = (count > 64).then(|| HashSet::with_capacity(count));
        for k in 0..count {
            let last = rows - count + k;
            let (bits, sign) = self.draw((column * count + k) as u64);
            let row = below(bits, last + 1);
            let taken = match &many {
                Some(taken) => taken.contains(&row),
                None => entries[..k].iter().any(|(other, _)| *other == row),
            };
            entries[k] = (if taken { last } else { row }, sign);
            if let Some(taken) = &mut many {
                taken.insert(entries[k].0);
            }
        }
    }

    /// Places `rows` of the numbers `0..count` in random order: draw `i` is block `i`.
    pub fn draw_order(&self, count: usize, rows: Range<usize>) -> Vec<usize> {
        // Fisher and Yates's shuffle, of which only what was moved is stored.
        let mut moved: HashMap<usize, usize> = HashMap::new();
        let shuffled = (0..rows.end).map(|i| {
            let at = i + below(self.draw(i as u64).0, count - i);
            let here = moved.remove(&i).unwrap_or(i);
            if at == i { here } else { moved.insert(at, here).unwrap_or(at) }
        });
        shuffled.skip(rows.start).collect()
    }
}

/// A number below `n` from 64 random bits.
pub fn below(bits: u64, n: usize) -> usize {
    ((u128::from(bits) * n as u128) >> 64) as usize
}
