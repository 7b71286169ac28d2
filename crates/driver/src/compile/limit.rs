//! The fastest choice whose measured error stays within a limit.
//!
//! Predicted errors are sums over sites, and how far measured ones are from them is not known. So choices are measured: for
//! fixed shares of the time that can be saved the choice of least predicted error, the fastest first, until one is within the
//! limit; then between that one and the one before by bisection. What is tried does not depend on the limit but for where it
//! ends, so that a larger limit never gives a slower model. Where all of these exceed the limit, sites are tried one by one.
//!
//! What is chosen is refitted, which may leave much less of the error; to refit all that is tried would take several times as
//! long. So the one found is refitted, and the search is repeated for the limit divided by the share of the error that was
//! left, until nothing faster is found. That a larger limit gives no slower model is then so as long as a refit leaves no
//! larger share of the error of a faster choice.

use margay_plan::{
    AllocateError, Allocation, Curve, Price, Resource, least_cost, least_error, least_error_within,
};

use super::allocate::Candidates;
use crate::DriverError;

/// Shares of the time that the fastest choice saves.
const SHARES: [f64; 9] = [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.03125];

/// Choices measured between two of those.
const BISECTIONS: usize = 4;

/// Sites tried one by one.
const SINGLE_SITES: usize = 8;

/// Searches for what is within the limit once it is refitted, at most.
const ROUNDS: usize = 4;

/// A refit counts as leaving no less than this share of an error, lest one that leaves nothing makes all limits alike.
const LEAST_SHARE: f64 = 0.125;

/// Where nothing is within the limit, the choice of least error is refitted if it errs by no more than this many limits.
const NEAR: f64 = 2.0;

/// What was found.
pub(crate) struct Met {
    /// The choice; no site is sketched where nothing that was tried is within the limit.
    pub(crate) allocation: Allocation,
    /// The least error of a sketch that was tried.
    pub(crate) closest: Option<f64>,
}

/// The choice of least error that takes at most so much time, within other limits.
fn saving_within(
    curves: &[Curve],
    dense: Price,
    besides: &[(Resource, f64)],
    seconds: f64,
) -> Result<Allocation, AllocateError> {
    let own = besides.iter().filter(|(r, _)| *r == Resource::Seconds).map(|(_, limit)| *limit);
    let mut limits = vec![(Resource::Seconds, own.fold(seconds, f64::min))];
    limits.extend(besides.iter().filter(|(r, _)| *r != Resource::Seconds));
    least_error_within(curves, dense, &limits)
}

/// Says the relative error of a choice on held-out samples.
pub(crate) type Measure<'a> = dyn Fn(&Allocation) -> Result<f64, DriverError> + 'a;

/// How choices are measured.
#[derive(Clone, Copy)]
pub(crate) struct Measures<'a> {
    /// With the factors that schemes found.
    pub(crate) fitted: &'a Measure<'a>,
    /// With factors that are refitted to what is before them, where that can be done.
    pub(crate) refitted: Option<&'a Measure<'a>>,
}

/// The fastest choice of those tried whose error is at most `limit`, as it is or refitted.
pub(crate) fn meet_error(
    candidates: &Candidates,
    limit: f64,
    besides: &[(Resource, f64)],
    measures: Measures<'_>,
) -> Result<Met, DriverError> {
    let mut search = Search { candidates, besides, measure: measures.fitted, known: Vec::new() };
    let found = search.fastest(limit)?;
    let mut closest = search.closest().map(|(_, error)| error);
    let mut faster = None;
    if let Some(refitted) = measures.refitted {
        let mut room = Room { limit, refitted, best: None, closest };
        faster = room.used_up(&mut search, found.as_ref())?;
        closest = room.closest;
    }
    let found = faster.or(found.map(|(choice, _)| choice));
    let fits = besides.iter().all(|(r, limit)| candidates.dense.of(*r) <= *limit);
    if found.is_none() && !fits {
        let found =
            closest.map_or(String::new(), |least| format!("; the least that was found is {least:.3}"));
        return Err(DriverError::Measure(format!(
            "no choice within the budgets errs by at most {limit}{found}"
        )));
    }
    let allocation = found.unwrap_or_else(|| Allocation::dense(candidates.dense));
    Ok(Met { allocation, closest })
}

/// What a limit leaves room for once choices are refitted.
struct Room<'a> {
    limit: f64,
    refitted: &'a Measure<'a>,
    /// The fastest within the limit.
    best: Option<Allocation>,
    /// The least error that was measured.
    closest: Option<f64>,
}

impl Room<'_> {
    /// The fastest choice found that is within the limit when it is refitted. `found` is within it as it is. `None` where the
    /// refit is no help.
    fn used_up(
        &mut self,
        search: &mut Search<'_>,
        found: Option<&(Allocation, f64)>,
    ) -> Result<Option<Allocation>, DriverError> {
        let near = || search.closest().filter(|(_, error)| *error <= NEAR * self.limit);
        let Some((mut choice, mut before)) = found.cloned().or_else(near) else { return Ok(None) };
        let mut tried: Vec<Allocation> = Vec::new();
        for _ in 0..=ROUNDS {
            let after = (self.refitted)(&choice)?;
            self.closest = self.closest.map(|least| least.min(after));
            if after <= self.limit {
                self.best = Some(choice.clone());
            }
            // What is within the limit as it is, and beyond it when it is refitted, says nothing of others.
            let share = (after / before).max(LEAST_SHARE);
            if before == 0.0 || self.best.is_none() {
                break;
            }
            tried.push(choice);
            let Some((next, error)) = search.fastest(self.limit / share)? else { break };
            let faster = self.best.as_ref().is_none_or(|best| next.price.seconds < best.price.seconds);
            if !faster || tried.iter().any(|other| other.choices == next.choices) {
                break;
            }
            (choice, before) = (next, error);
        }
        Ok(self.best.take())
    }
}

struct Search<'a> {
    candidates: &'a Candidates,
    /// What a choice may use besides.
    besides: &'a [(Resource, f64)],
    measure: &'a Measure<'a>,
    /// What was measured, with its error.
    known: Vec<(Allocation, f64)>,
}

/// The fastest choice within a limit so far, with its error.
type Fastest = Option<(Allocation, f64)>;

impl Search<'_> {
    /// The fastest choice of those tried whose error is at most `limit`.
    fn fastest(&mut self, limit: f64) -> Result<Fastest, DriverError> {
        let Candidates { curves, dense, .. } = self.candidates;
        let all: f64 = curves.iter().flat_map(|c| &c.candidates).map(|c| c.squared_error).sum();
        let fastest = least_cost(curves, *dense, Resource::Seconds, all)?.price.seconds;
        let besides = self.besides;
        let seconds = |share: f64| dense.seconds - share * (dense.seconds - fastest);
        let saving = |share: f64| match besides {
            [] => least_error(curves, *dense, Resource::Seconds, seconds(share)),
            // What the budgets leave room for, which may be slower than the dense model.
            _ if share == 0.0 => least_error_within(curves, *dense, besides),
            _ => saving_within(curves, *dense, besides, seconds(share)),
        };
        let (mut best, mut beyond) = (None, None);
        // So much time cannot always be saved within budgets.
        let last = (!besides.is_empty()).then_some(0.0);
        for share in SHARES.into_iter().chain(last) {
            let choice = match saving(share) {
                Err(AllocateError::Infeasible { .. } | AllocateError::Together { .. }) if share > 0.0 => {
                    beyond = Some(share);
                    continue;
                }
                choice => choice?,
            };
            if !self.within(limit, &choice, &mut best)? {
                beyond = Some(share);
                continue;
            }
            let (mut slow, Some(mut fast)) = (share, beyond) else { return Ok(best) };
            for _ in 0..BISECTIONS {
                let middle = 0.5 * (slow + fast);
                let within = match saving(middle) {
                    Err(AllocateError::Infeasible { .. } | AllocateError::Together { .. }) => false,
                    choice => self.within(limit, &choice?, &mut best)?,
                };
                match within {
                    true => slow = middle,
                    false => fast = middle,
                }
            }
            return Ok(best);
        }
        if besides.is_empty() {
            for choice in self.single_sites() {
                self.within(limit, &choice, &mut best)?;
            }
        }
        Ok(best)
    }

    /// What was measured with the least error.
    fn closest(&self) -> Fastest {
        let finite = self.known.iter().filter(|(_, error)| error.is_finite());
        finite.min_by(|(_, a), (_, b)| a.total_cmp(b)).cloned()
    }

    /// The sites of least predicted error, each by itself at that error.
    fn single_sites(&self) -> Vec<Allocation> {
        let Candidates { curves, dense, .. } = self.candidates;
        let alone = curves.iter().filter_map(|curve| {
            let saves = |p: Price| p.seconds < curve.dense.seconds;
            let found = curve.candidates.iter().filter(|c| saves(c.price));
            let least = found.min_by(|a, b| a.squared_error.total_cmp(&b.squared_error))?;
            let mut choice = Allocation::dense(*dense);
            choice.choose(curve, least.clone());
            Some(choice)
        });
        let mut alone: Vec<Allocation> = alone.collect();
        alone.sort_by(|a, b| a.squared_error.total_cmp(&b.squared_error));
        alone.truncate(SINGLE_SITES);
        alone
    }

    /// Whether a choice is within the limit. It becomes the best one if it is faster.
    fn within(&mut self, limit: f64, choice: &Allocation, best: &mut Fastest) -> Result<bool, DriverError> {
        if choice.choices.is_empty() {
            return Ok(false);
        }
        let known = self.known.iter().find(|(other, _)| other.choices == choice.choices);
        let error = match known {
            Some((_, error)) => *error,
            None => {
                let error = (self.measure)(choice)?;
                self.known.push((choice.clone(), error));
                error
            }
        };
        let within = error <= limit;
        let faster = best.as_ref().is_none_or(|(best, _)| choice.price.seconds < best.price.seconds);
        if within && faster {
            *best = Some((choice.clone(), error));
        }
        Ok(within)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use margay_plan::{Candidate, Choice, Settings};

    use super::*;

    /// Sites of one second each with candidates that save the more the more they err.
    fn model(sites: usize) -> Candidates {
        let curve = |site: usize| Curve {
            site: format!("{site}"),
            covers: [site].into_iter().collect(),
            dense: Price { bytes: 100, flops: 0, seconds: 1.0 },
            candidates: (1..=6)
                .map(|step| Candidate {
                    choice: Choice {
                        scheme: step.to_string(),
                        settings: Settings::default(),
                        storage: None,
                        seed: None,
                    },
                    squared_error: 1e-4 * ((step * step * (site + 2)) as f64),
                    price: Price { bytes: 50, flops: 0, seconds: 0.9 - 0.13 * step as f64 },
                })
                .collect(),
        };
        Candidates {
            curves: (0..sites).map(curve).collect(),
            excluded: BTreeMap::new(),
            dense: Price { bytes: 100, flops: 0, seconds: 1.0 + sites as f64 },
            dense_bytes: 100,
            whole_bytes: 100,
            weighed: true,
        }
    }

    /// An error that is not what is predicted, and does not always grow with it.
    fn uneven(choice: &Allocation) -> f64 {
        let bumps: usize =
            choice.choices.iter().map(|(site, c)| site.len() * 7 + c.choice.scheme.len()).sum();
        let steps: usize = choice.choices.values().map(|c| c.choice.scheme.parse::<usize>().unwrap()).sum();
        1.7 * choice.squared_error.sqrt() * (1.0 + 0.3 * ((bumps + 5 * steps) % 4) as f64)
    }

    /// The fastest choice within a limit, nothing of which is refitted.
    fn unrefitted(
        candidates: &Candidates,
        limit: f64,
        besides: &[(Resource, f64)],
        fitted: &Measure<'_>,
    ) -> Result<Met, DriverError> {
        meet_error(candidates, limit, besides, Measures { fitted, refitted: None })
    }

    #[test]
    fn a_larger_limit_never_gives_a_slower_model() {
        for sites in [1, 3, 8] {
            let m = model(sites);
            let mut before = f64::INFINITY;
            for limit in (1..80).map(|i| 0.004 * f64::from(i) * f64::from(i).sqrt()) {
                let met = unrefitted(&m, limit, &[], &|c| Ok(uneven(c))).unwrap();
                let error = if met.allocation.choices.is_empty() { 0.0 } else { uneven(&met.allocation) };
                assert!(error <= limit);
                assert!(met.allocation.price.seconds <= before, "{sites} sites, limit {limit}");
                before = met.allocation.price.seconds;
            }
            assert_eq!(before, least_cost(&m.curves, m.dense, Resource::Seconds, 1e9).unwrap().price.seconds);
        }
    }

    #[test]
    fn a_larger_limit_never_gives_a_slower_model_that_is_refitted() {
        for (sites, share) in [(3, 0.97), (3, 0.9), (8, 0.97), (8, 0.9), (8, 0.5), (8, 0.0)] {
            let (m, mut before) = (model(sites), f64::INFINITY);
            let (fitted, refitted) = (|c: &Allocation| Ok(uneven(c)), |c: &Allocation| Ok(share * uneven(c)));
            for limit in (1..400).map(|i| 0.002 * f64::from(i)) {
                let measures = Measures { fitted: &fitted, refitted: Some(&refitted) };
                let chosen = meet_error(&m, limit, &[], measures).unwrap().allocation;
                assert!(chosen.choices.is_empty() || refitted(&chosen).unwrap() <= limit);
                assert!(chosen.price.seconds <= before, "{sites} sites, share {share}, limit {limit}");
                before = chosen.price.seconds;
            }
        }
    }

    #[test]
    fn a_model_stays_dense_only_if_no_site_alone_is_within_the_limit() {
        let m = model(4);
        // Whatever is sketched with another site is far off.
        let alone = |c: &Allocation| Ok(if c.choices.len() > 1 { 9.0 } else { c.squared_error.sqrt() });
        let met = unrefitted(&m, 0.03, &[], &alone).unwrap();
        assert_eq!(met.allocation.choices.len(), 1);
        let met = unrefitted(&m, 0.001, &[], &alone).unwrap();
        assert!(met.allocation.choices.is_empty());
        assert_eq!(met.closest, Some(2e-4f64.sqrt()));
    }

    #[test]
    fn budgets_may_take_a_choice_that_is_slower_than_the_model() {
        let mut m = model(1);
        for (i, candidate) in m.curves[0].candidates.iter_mut().enumerate() {
            candidate.price = Price { bytes: 90 - 10 * i as i64, flops: 0, seconds: 1.1 + 0.1 * i as f64 };
        }
        let measure = |c: &Allocation| Ok(c.squared_error.sqrt());
        let met = unrefitted(&m, 1.0, &[(Resource::Bytes, 60.0)], &measure).unwrap();
        assert_eq!(met.allocation.price.bytes, 60);
        assert!(unrefitted(&m, 1e-3, &[(Resource::Bytes, 60.0)], &measure).is_err());
    }

    #[test]
    fn nothing_is_measured_twice() {
        let m = model(3);
        let seen = RefCell::new(Vec::new());
        let measure = |c: &Allocation| {
            assert!(!seen.borrow().contains(&c.choices));
            seen.borrow_mut().push(c.choices.clone());
            Ok(uneven(c))
        };
        unrefitted(&m, 0.0, &[], &measure).unwrap();
        let tried = seen.borrow().len();
        assert!((SINGLE_SITES.min(3)..=SHARES.len() + BISECTIONS + SINGLE_SITES).contains(&tried), "{tried}");
    }

    /// The time of the fastest choice of a fine grid that is within the limit when it is refitted.
    fn fastest_refitted(m: &Candidates, limit: f64, refitted: &Measure<'_>) -> f64 {
        let least = least_cost(&m.curves, m.dense, Resource::Seconds, 1e9).unwrap().price.seconds;
        let at = |i: i32| least + (m.dense.seconds - least) * f64::from(i) / 128.0;
        let all = (0..128).map(|i| least_error(&m.curves, m.dense, Resource::Seconds, at(i)).unwrap());
        let within = all.filter(|choice| refitted(choice).unwrap() <= limit);
        within.map(|choice| choice.price.seconds).fold(m.dense.seconds, f64::min)
    }

    #[test]
    fn what_a_refit_leaves_of_the_limit_is_used_up() {
        let m = model(8);
        let plain = |c: &Allocation| Ok(c.squared_error.sqrt());
        for (share, power) in [(0.5, 1.0), (0.8, 1.0), (0.6, 0.8), (1.1, 1.2)] {
            let refits = RefCell::new(0);
            let of = |c: &Allocation| Ok(share * c.squared_error.sqrt().powf(power));
            let refitted = |c: &Allocation| {
                *refits.borrow_mut() += 1;
                of(c)
            };
            for limit in [0.02, 0.04, 0.06, 0.09, 0.12] {
                *refits.borrow_mut() = 0;
                let measures = Measures { fitted: &plain, refitted: Some(&refitted) };
                let found = meet_error(&m, limit, &[], measures).unwrap().allocation;
                assert!(*refits.borrow() <= 1 + ROUNDS);
                let before = unrefitted(&m, limit, &[], &plain).unwrap().allocation;
                assert!(found.price.seconds <= before.price.seconds);
                let errs = if found.choices.is_empty() { 0.0 } else { of(&found).unwrap() };
                let as_fitted = plain(&found).unwrap();
                assert!(errs.min(as_fitted) <= limit, "{share} {power} {limit}: {errs}");
                let best = fastest_refitted(&m, limit, &of);
                let slack = (found.price.seconds - best) / m.dense.seconds;
                assert!(slack < 0.03 || power > 1.0, "{share} {power} {limit}: {slack}");
            }
        }
    }

    #[test]
    fn a_refit_that_gains_nothing_is_made_once() {
        let m = model(3);
        let refits = RefCell::new(0);
        let plain = |c: &Allocation| Ok(c.squared_error.sqrt());
        let refitted = |c: &Allocation| {
            *refits.borrow_mut() += 1;
            plain(c)
        };
        let measures = Measures { fitted: &plain, refitted: Some(&refitted) };
        let found = meet_error(&m, 0.05, &[], measures).unwrap().allocation;
        assert_eq!(found.choices, unrefitted(&m, 0.05, &[], &plain).unwrap().allocation.choices);
        assert_eq!(*refits.borrow(), 1);
    }
}
