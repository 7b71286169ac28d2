//! Ranks of factors, chosen for each layer while they are trained.
//!
//! Layers begin with factors of great rank. A few times during training the loss is measured on batches of the samples that
//! are trained on, and every layer loses the directions that matter least to it. Guo and Yu, *Integrating independent
//! layer-wise rank selection with low-rank SVD training for model compression*, IJCAI 2025 (doi 10.24963/ijcai.2025/589),
//! select ranks within training by a bound of the error of the loss, each layer by itself. The bound here is the following.
//!
//! A layer computes rows `y = z B` from `z = x A`, with `A` of `[d_in, k]` and `B` of `[k, d_out]`. With `C` the mean of `zᵀ z` and `S B = U diag(σ) Vᵀ`
//! for `SᵀS = C`, the best factors of rank `r` change `y` by `Δ` with `E ‖Δ‖² = Σ_{i>r} σᵢ²`. A batch with `n` rows and gradients
//! `g` of its loss by them then has, to first order and by the inequality of Cauchy and Schwarz,
//!
//! ```text
//! |loss(r) - loss| ≤ b(r) = γ (n Σ_{i>r} σᵢ²)^½,    γ² = Σ_rows ‖g‖²
//! ```
//!
//! with `γ²` and `C` means over several batches. Changes of several layers add up. A direction is worth `γ² n σᵢ²` and takes
//! `d_in + d_out` numbers: each layer keeps the directions whose worth for each number is above a price, which is the same for
//! all layers and as great as the [limit](RankLimit) allows. The bound leaves out what is beyond the first order, so the loss
//! with the new factors is measured, too, and reported beside it.
//!
//! New factors are `A P` and `N B` with `N P = 1`, so that gradients by them are those of the old ones times `Nᵀ` and `Pᵀ`:
//! moments of gradients follow exactly, and moments of their squares as if entries were independent.
//!
//! - `choose`: ranks from what was measured.
//! - `measure`: a graph that measures.
//! - `change`: new factors and what becomes of states.

mod change;
mod choose;
mod measure;

use serde::{Deserialize, Serialize};

pub(crate) use change::Change;
pub(crate) use choose::{Limit, Spectrum, choose};
pub(crate) use measure::{Measured, measure};

use crate::TrainError;

/// How ranks are chosen during training.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RankSelection {
    /// What stops ranks from falling further.
    pub limit: RankLimit,
    /// How many times they are chosen; at least 1. Choices are evenly spread over the first half of training.
    pub times: usize,
}

/// What stops ranks from falling.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RankLimit {
    /// A choice may change the loss by at most this share of it, as measured on the batches; above 0. The bound says which
    /// directions go, and is halved until that holds.
    LossChange(f64),
    /// After the last choice the factors have at most this share of the numbers of the weights that they stand in for; above
    /// 0 and below 1. Choices before have shares that fall geometrically. A rank is never below 1.
    Share(f64),
}

impl RankSelection {
    /// Five choices.
    pub fn new(limit: RankLimit) -> RankSelection {
        RankSelection { limit, times: 5 }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`TrainError::Options`] with the number that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        let wrong = |what: &str, expected: &str, found: String| {
            Err(TrainError::Options(format!("{what}: expected {expected}, found {found}")))
        };
        match self.limit {
            _ if self.times == 0 => wrong("choices of ranks", "at least 1", self.times.to_string()),
            RankLimit::LossChange(x) if !(x > 0.0 && x.is_finite()) => {
                wrong("the change of the loss", "above 0", x.to_string())
            }
            RankLimit::Share(x) if !(x > 0.0 && x < 1.0) => {
                wrong("the share of numbers", "above 0 and below 1", x.to_string())
            }
            _ => Ok(()),
        }
    }

    /// How many choices are due after so many steps of all.
    pub(crate) fn due(&self, step: u64, total: u64) -> usize {
        let reached =
            |i: &usize| step as f64 >= (*i as f64 / (2 * self.times) as f64 * total as f64).max(1.0);
        (1..=self.times).take_while(reached).count()
    }

    /// The share of numbers after a choice, from 1 on, of a share before the first one.
    pub(crate) fn share_after(&self, number: usize, before: f64) -> Option<f64> {
        match self.limit {
            RankLimit::LossChange(_) => None,
            RankLimit::Share(last) if number >= self.times || last >= before => Some(last),
            RankLimit::Share(last) => Some(before * (last / before).powf(number as f64 / self.times as f64)),
        }
    }
}

/// One choice of ranks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RankChange {
    /// Which one, from 1 on.
    pub number: usize,
    /// Steps done before it.
    pub step: u64,
    /// The layers by name, in topological order, with the ranks from now on.
    pub ranks: Vec<(String, usize)>,
    /// Numbers of the factors of these layers from now on.
    pub numbers: usize,
    /// How much the loss changes at most, to first order.
    pub bound: f64,
    /// The loss on the batches that were measured, before.
    pub loss_before: f64,
    /// The same with the new factors.
    pub loss_after: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_spread_over_the_first_half() {
        let selection = RankSelection { limit: RankLimit::Share(0.1), times: 5 };
        let due: Vec<usize> = [0, 9, 10, 19, 20, 30, 40, 49, 50, 100].map(|s| selection.due(s, 100)).to_vec();
        assert_eq!(due, [0, 0, 1, 1, 2, 3, 4, 4, 5, 5]);
        // Never before the first step, however short training is.
        assert_eq!((selection.due(0, 1), selection.due(1, 1)), (0, 5));
    }

    #[test]
    fn shares_fall_geometrically_to_the_last() {
        let selection = RankSelection { limit: RankLimit::Share(0.25), times: 2 };
        let shares: Vec<f64> = [1, 2].map(|i| selection.share_after(i, 1.0).unwrap()).to_vec();
        assert_eq!(shares, [0.5, 0.25]);
        // A run that begins with fewer numbers is told the limit at once.
        assert_eq!(selection.share_after(1, 0.2), Some(0.25));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for limit in [RankLimit::LossChange(0.0), RankLimit::Share(1.0), RankLimit::Share(f64::NAN)] {
            assert!(RankSelection::new(limit).check().is_err(), "{limit:?}");
        }
        assert!(RankSelection { times: 0, ..RankSelection::new(RankLimit::Share(0.5)) }.check().is_err());
        assert!(RankSelection::new(RankLimit::LossChange(0.1)).check().is_ok());
    }
}
