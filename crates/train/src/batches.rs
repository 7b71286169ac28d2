//! The order in which samples are trained on.
//!
//! Every epoch is a permutation named by seed and number of the epoch, so that a step's samples follow from its number
//! alone: a resumed run goes on as if it had never stopped.

use margay_tensor::random::Philox;
use rand_core::Rng;

use crate::TrainError;

/// Shuffled batches of equal size. Samples that fill no whole batch are left out of an epoch, other ones in each.
#[derive(Clone, Debug)]
pub struct Batches {
    rows: usize,
    size: usize,
    seed: u64,
    /// By sample, what is to be similar in a batch.
    lengths: Option<Vec<usize>>,
    epoch: Option<u64>,
    order: Vec<usize>,
}

/// Batches among whose samples those of similar length are brought together.
const SORTED_TOGETHER: usize = 16;

/// Names the order of batches of an epoch, beside that of samples.
const OF_BATCHES: u64 = 1 << 63;

impl Batches {
    /// Batches of `size` of `rows` samples.
    ///
    /// # Errors
    /// [`TrainError::Options`] where the samples fill no batch.
    pub fn new(rows: usize, size: usize, seed: u64) -> Result<Batches, TrainError> {
        if size == 0 || rows < size {
            return Err(TrainError::Options(format!("a batch of {size} samples, of {rows} to train on")));
        }
        Ok(Batches { rows, size, seed, lengths: None, epoch: None, order: Vec::new() })
    }

    /// The same, but that samples in a batch have similar lengths: of every few batches that an epoch would have in a row,
    /// all samples are sorted by length, and all batches of the epoch are then taken in a random order.
    #[must_use]
    pub fn by_length(mut self, lengths: Vec<usize>) -> Batches {
        assert_eq!(lengths.len(), self.rows, "one length per sample");
        self.lengths = Some(lengths);
        self
    }

    /// Steps of one epoch.
    pub fn per_epoch(&self) -> u64 {
        (self.rows / self.size) as u64
    }

    /// The samples of a step, steps counted from 0.
    pub fn batch(&mut self, step: u64) -> &[usize] {
        let (epoch, within) = (step / self.per_epoch(), (step % self.per_epoch()) as usize);
        if self.epoch != Some(epoch) {
            self.order = self.epoch_order(epoch);
            self.epoch = Some(epoch);
        }
        &self.order[within * self.size..][..self.size]
    }

    fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        let mut order = permutation(self.rows, self.seed, epoch);
        let Some(lengths) = &self.lengths else { return order };
        order.truncate(self.rows / self.size * self.size);
        for some in order.chunks_mut(SORTED_TOGETHER * self.size) {
            some.sort_by_key(|row| lengths[*row]);
        }
        let batches = permutation(order.len() / self.size, self.seed, OF_BATCHES | epoch);
        batches.into_iter().flat_map(|i| order[i * self.size..][..self.size].to_vec()).collect()
    }
}

/// A permutation of `0..n` by Fisher and Yates; bias of the drawn positions is below n/2⁶⁴.
fn permutation(n: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut random = Philox::new(seed, stream);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = ((u128::from(random.next_u64()) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_takes_every_sample_once_and_another_order_each_time() {
        let mut batches = Batches::new(12, 4, 7).unwrap();
        let epoch = |b: &mut Batches, e: u64| -> Vec<usize> {
            (0..3).flat_map(|i| b.batch(3 * e + i).to_vec()).collect()
        };
        let (first, second) = (epoch(&mut batches, 0), epoch(&mut batches, 1));
        assert_ne!(first, second);
        for mut order in [first.clone(), second] {
            order.sort_unstable();
            assert_eq!(order, (0..12).collect::<Vec<_>>());
        }
        assert_eq!(epoch(&mut batches, 0), first, "what a step takes follows from its number");
    }

    #[test]
    fn batches_by_length_take_every_sample_once_and_differ_little_within() {
        let lengths: Vec<usize> = (0..64).map(|i| i * 37 % 64).collect();
        let mut batches = Batches::new(64, 8, 7).unwrap().by_length(lengths.clone());
        let epoch = |b: &mut Batches, e: u64| -> Vec<Vec<usize>> {
            (0..8).map(|i| b.batch(8 * e + i).to_vec()).collect()
        };
        let (first, second) = (epoch(&mut batches, 0), epoch(&mut batches, 1));
        assert_ne!(first, second);
        let longest: Vec<usize> =
            first.iter().map(|b| b.iter().map(|r| lengths[*r]).max().unwrap()).collect();
        assert!(!longest.is_sorted(), "batches come in a random order: {longest:?}");
        for mut batches in [first, second] {
            for batch in &batches {
                let of = || batch.iter().map(|r| lengths[*r]);
                assert_eq!(of().max().unwrap() - of().min().unwrap(), 7, "{batch:?}");
            }
            batches.sort();
            let mut all = batches.concat();
            all.sort_unstable();
            assert_eq!(all, (0..64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn all_orders_are_about_equally_frequent() {
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..2400 {
            *counts.entry(permutation(4, 3, epoch)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&n| (60..=140).contains(&n)), "{counts:?}");
    }

    #[test]
    fn fewer_samples_than_a_batch_are_refused() {
        let message = Batches::new(3, 4, 0).unwrap_err().to_string();
        assert_eq!(message, "a batch of 4 samples, of 3 to train on");
    }
}
