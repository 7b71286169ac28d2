//! What a further sample errs by, with which probability.
//!
//! Split conformal prediction (Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005): of `n` samples
//! that had no part in the choice, and a further one that is exchangeable with them, the latter errs by more than the
//! `⌈(n + 1) p⌉`th smallest error with a probability of at most `1 - p`. Nothing else is assumed; for data of another
//! kind nothing is said.

use serde::{Deserialize, Serialize};

use crate::errors::infinite_if_null;

/// A bound of the error of one further sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBound {
    /// The least probability that it holds with.
    pub level: f64,
    /// The relative L2 error of the outputs of that sample, at most.
    #[serde(deserialize_with = "infinite_if_null")]
    pub relative_l2: f64,
}

/// The probabilities that bounds are given for.
const LEVELS: [f64; 3] = [0.9, 0.95, 0.99];

/// The relative errors of samples, ascending, by the squared difference and the squared size of the outputs of each.
pub(crate) fn ascending(by_sample: &[(f64, f64)]) -> Vec<f64> {
    let relative = |(difference, size): &(f64, f64)| match *difference == 0.0 {
        true => 0.0,
        false if difference.is_nan() => f64::INFINITY,
        false => (difference / size).sqrt(),
    };
    let mut errors: Vec<f64> = by_sample.iter().map(relative).collect();
    errors.sort_by(f64::total_cmp);
    errors
}

/// The `⌈(n + 1) p⌉`th smallest of `n` errors; `None` where there are fewer.
pub(crate) fn bound(errors: &[f64], level: f64) -> Option<f64> {
    let rank = ((errors.len() + 1) as f64 * level).ceil() as usize;
    errors.get(rank.checked_sub(1)?).copied()
}

/// The bounds that such errors give.
pub(crate) fn bounds(errors: &[f64]) -> Vec<ErrorBound> {
    let of = |level| Some(ErrorBound { level, relative_l2: bound(errors, level)? });
    LEVELS.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples of one kind are covered as often as the level says.
    #[test]
    fn bounds_hold_for_further_samples() {
        const HELD_OUT: usize = 64;
        const FRESH: usize = 300;
        const TRIALS: usize = 60;
        let mut covered = [0usize; 2];
        for trial in 0..TRIALS {
            let mut uniform = vec![0f64; HELD_OUT + FRESH];
            margay_tensor::random::Philox::new(3, trial as u64).fill_uniform_f64(0, &mut uniform);
            // Relative errors of a skewed distribution.
            let errors: Vec<f64> = uniform.iter().map(|u| 0.1 * (1.0 / (1.0 - u)).ln()).collect();
            let by_sample: Vec<(f64, f64)> = errors[..HELD_OUT].iter().map(|e| (4.0 * e * e, 4.0)).collect();
            let bounds = bounds(&ascending(&by_sample));
            assert_eq!(bounds.len(), covered.len());
            for (covered, bound) in covered.iter_mut().zip(&bounds) {
                *covered += errors[HELD_OUT..].iter().filter(|e| **e <= bound.relative_l2).count();
            }
        }
        for (covered, level) in covered.into_iter().zip(LEVELS) {
            let share = covered as f64 / (FRESH * TRIALS) as f64;
            assert!((share - level).abs() < 0.02, "{share} at {level}");
        }
    }

    #[test]
    fn few_samples_give_no_bound() {
        let of = |count: usize| bounds(&ascending(&vec![(1.0, 4.0); count])).len();
        assert_eq!([0, 8, 9, 18, 19, 98, 99].map(of), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(bounds(&ascending(&[(f64::NAN, 1.0); 9]))[0].relative_l2, f64::INFINITY);
    }
}
