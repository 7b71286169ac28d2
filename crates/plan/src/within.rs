//! Several limits at once.
//!
//! The choice of least error under limits on several resources is a knapsack with as many constraints. For shares `w` that sum
//! to 1, any choice within all limits `B` also keeps the one limit `Σ w cost / B ≤ 1`, whose best choice
//! [`least_error`] finds: a relaxation for each `w`. Where that choice keeps every limit it is as good as any. So the
//! shares of limits that are exceeded are raised, and those of the others lowered, step by step (the subgradient method on the
//! Lagrangian dual; Fisher, *The Lagrangian relaxation method for solving integer programming problems*, 1981), and the best
//! choice within all limits that was met is taken. Where none was, the one limit is lowered until one is.

use crate::{AllocateError, Allocation, Curve, Price, Resource, least_error};

/// Changes of the shares.
const STEPS: usize = 48;

/// The first change of a share's logarithm per relative excess of its limit.
const FIRST_STEP: f64 = 8.0;

/// How much lower the one limit is from attempt to attempt, and attempts.
const TIGHTER: (f64, usize) = (0.99, 60);

/// Relative rounding of a sum of times.
const ROUNDING: f64 = 1e-9;

/// As [`least_error`], with a limit for each of some resources.
///
/// # Errors
/// As [`least_error`] for a limit that cannot be kept alone, and [`AllocateError::Together`] where no choice was found that
/// keeps them all.
pub fn least_error_within(
    curves: &[Curve],
    dense: Price,
    limits: &[(Resource, f64)],
) -> Result<Allocation, AllocateError> {
    let used =
        |a: &Allocation| limits.iter().map(|(r, limit)| share(a.price.of(*r), *limit)).collect::<Vec<_>>();
    // Sums of bytes and operations are exact.
    let most = |resource: Resource| if resource == Resource::Seconds { 1.0 + ROUNDING } else { 1.0 };
    let keeps = |a: &Allocation| used(a).iter().zip(limits).all(|(share, (r, _))| *share <= most(*r));
    if limits.iter().all(|(r, limit)| share(dense.of(*r), *limit) <= 1.0) {
        return Ok(Allocation::dense(dense));
    }
    // A choice that is best for one limit and keeps the others is best.
    for (resource, limit) in limits {
        let found = least_error(curves, dense, *resource, *limit)?;
        if keeps(&found) {
            return Ok(found);
        }
    }
    let mut weights = vec![1.0 / limits.len() as f64; limits.len()];
    let mut best: Option<Allocation> = None;
    for step in 0..STEPS {
        let Ok(found) = relaxed(curves, dense, limits, &weights, 1.0) else { break };
        if keeps(&found) && best.as_ref().is_none_or(|best| found.squared_error < best.squared_error) {
            best = Some(found.clone());
        }
        let size = FIRST_STEP / (1.0 + step as f64).sqrt();
        for (weight, used) in weights.iter_mut().zip(used(&found)) {
            *weight *= (size * (used - 1.0).clamp(-1.0, 1.0)).exp();
        }
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    let mut limit = 1.0;
    for _ in 0..TIGHTER.1 {
        if best.is_some() {
            break;
        }
        limit *= TIGHTER.0;
        best = relaxed(curves, dense, limits, &weights, limit).ok().filter(|found| keeps(found));
    }
    best.ok_or_else(|| AllocateError::Together { limits: limits.iter().map(|(r, _)| r.name()).collect() })
}

fn share(used: f64, limit: f64) -> f64 {
    if used <= limit { (used / limit).min(1.0) } else { (used / limit.max(f64::MIN_POSITIVE)).min(1e9) }
}

/// The choice of least error under one limit on a weighted sum of what is used, each relative to its limit.
fn relaxed(
    curves: &[Curve],
    dense: Price,
    limits: &[(Resource, f64)],
    weights: &[f64],
    limit: f64,
) -> Result<Allocation, AllocateError> {
    let sum = |price: Price| {
        let parts = limits.iter().zip(weights);
        let seconds = parts.map(|((r, limit), w)| w * price.of(*r) / limit.max(f64::MIN_POSITIVE)).sum();
        Price { seconds, ..price }
    };
    let mut summed = curves.to_vec();
    for curve in &mut summed {
        curve.dense = sum(curve.dense);
        curve.candidates.iter_mut().for_each(|c| c.price = sum(c.price));
    }
    let found = least_error(&summed, sum(dense), Resource::Seconds, limit)?;
    let mut choice = Allocation::dense(dense);
    for (curve, summed) in curves.iter().zip(&summed) {
        let Some(chosen) = found.choices.get(&curve.site) else { continue };
        let at = summed.candidates.iter().position(|c| c == chosen).expect("it was chosen from these");
        choice.choose(curve, curve.candidates[at].clone());
    }
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use margay_tensor::random::Philox;

    use super::*;
    use crate::{Candidate, Choice};

    /// Sites whose candidates save bytes, operations and time in different measure.
    fn curves(sites: usize, seed: u64) -> (Vec<Curve>, Price) {
        let mut random = vec![0f64; sites * 4 * 4];
        Philox::new(seed, 0).fill_uniform_f64(0, &mut random);
        let price = |r: &[f64]| Price {
            bytes: (1000.0 * r[0]) as i64,
            flops: (1000.0 * r[1]) as i64,
            seconds: 0.05 + r[2],
        };
        let dense = Price { bytes: 1000, flops: 1000, seconds: 1.0 };
        let curve = |site: usize| Curve {
            site: format!("{site:02}"),
            covers: vec![site],
            dense,
            candidates: (0..4)
                .map(|i| {
                    let r = &random[16 * site + 4 * i..][..4];
                    let choice = Choice { scheme: i.to_string(), ..Choice::dense() };
                    Candidate { choice, squared_error: 0.01 + r[3], price: price(r) }
                })
                .collect(),
        };
        let all = (0..sites).map(curve).collect();
        (all, Price { bytes: 1000 * sites as i64, flops: 1000 * sites as i64, seconds: sites as f64 })
    }

    /// The least error of every choice there is.
    fn exhaustive(curves: &[Curve], dense: Price, limits: &[(Resource, f64)]) -> Option<f64> {
        let mut choices = vec![Allocation::dense(dense)];
        for curve in curves {
            let more = choices.iter().flat_map(|before| {
                curve.candidates.iter().map(|candidate| {
                    let mut choice = before.clone();
                    choice.choose(curve, candidate.clone());
                    choice
                })
            });
            choices = choices.iter().cloned().chain(more.collect::<Vec<_>>()).collect();
        }
        let keeps = |a: &&Allocation| limits.iter().all(|(r, limit)| a.price.of(*r) <= *limit);
        choices.iter().filter(keeps).map(|a| a.squared_error).min_by(f64::total_cmp)
    }

    #[test]
    fn all_limits_are_kept_with_little_more_than_the_least_error() {
        let (mut met, mut possible, mut excess) = (0, 0, 0.0);
        for seed in 0..40 {
            let (curves, dense) = curves(5, seed);
            for [bytes, flops, seconds] in
                [[0.8, 0.8, 1.0], [0.6, 0.7, 0.9], [0.7, 0.55, 0.6], [0.5, 0.9, 0.5]]
            {
                let limits = [
                    (Resource::Bytes, bytes * dense.bytes as f64),
                    (Resource::Flops, flops * dense.flops as f64),
                    (Resource::Seconds, seconds * dense.seconds),
                ];
                let Some(least) = exhaustive(&curves, dense, &limits) else { continue };
                possible += 1;
                let Ok(found) = least_error_within(&curves, dense, &limits) else { continue };
                assert!(limits.iter().all(|(r, limit)| found.price.of(*r) <= limit * (1.0 + 1e-9)));
                assert!(found.squared_error >= least - 1e-12);
                met += 1;
                excess += found.squared_error / least - 1.0;
            }
        }
        assert!(possible > 100 && met as f64 >= 0.95 * possible as f64, "{met} of {possible}");
        assert!(excess / f64::from(met) < 0.1, "{}", excess / f64::from(met));
    }

    #[test]
    fn one_limit_is_that_of_one_resource_and_dense_is_kept_where_it_fits() {
        let (curves, dense) = curves(6, 3);
        let limit = 0.6 * dense.bytes as f64;
        let one = least_error_within(&curves, dense, &[(Resource::Bytes, limit)]).unwrap();
        assert_eq!(one, least_error(&curves, dense, Resource::Bytes, limit).unwrap());
        let loose = [(Resource::Bytes, dense.bytes as f64), (Resource::Seconds, 1e3)];
        assert!(least_error_within(&curves, dense, &loose).unwrap().choices.is_empty());
        let impossible = [(Resource::Bytes, limit), (Resource::Seconds, 1e-6)];
        let error = least_error_within(&curves, dense, &impossible).unwrap_err();
        assert!(matches!(error, AllocateError::Infeasible { what: "seconds", .. }), "{error}");
    }
}
