//! From candidates to the choice that meets the user's goal.

use std::collections::BTreeMap;

use margay_passes::StoreConstants;
use margay_passes::sketch::Site;
use margay_plan::{
    AllocateError, Allocation, Budgets, Candidate, Choice, Curve, ErrorLimit, Goal, Price, Resource,
    least_cost, least_error, least_error_within, uniform,
};

use super::Job;
use super::apply::{Finish, apply, pass_of};
use super::check::{Checker, judged};
use super::fit::Fit;
use super::limit::{Measures, Met, meet_error};
use super::price::Prices;
use crate::{DriverError, Dump};

/// A candidate that is predicted to take more than this share of the dense time is not worth its error.
const MAX_SHARE: f64 = 0.95;

/// What can be done to each site, in one unit of error.
pub(crate) struct Candidates {
    /// By site.
    pub(crate) curves: Vec<Curve>,
    /// By site: why it has no candidate.
    pub(crate) excluded: BTreeMap<String, String>,
    /// What the model uses without a sketch, its constants stored as those of the result; equal weights of different sites
    /// count for each, so that the prices of candidates add up.
    pub(crate) dense: Price,
    /// The bytes of that as they are.
    pub(crate) dense_bytes: i64,
    /// Bytes that the weights of the model take as they are: what shares are of.
    pub(crate) whole_bytes: u64,
    /// Whether errors of different sites can be compared.
    pub(crate) weighed: bool,
}

/// What is chosen, and what it was chosen from.
pub(crate) struct Chosen {
    pub(crate) candidates: Candidates,
    pub(crate) allocation: Allocation,
    /// The least error of a sketch that was tried to meet an error limit.
    pub(crate) closest: Option<f64>,
}

/// The choice that meets the goal, or the one of the plan. Without `weights` every site weighs the same; an error limit
/// is checked by `checker`, and what the refit leaves of it is used up.
pub(crate) fn allocate(
    job: &Job<'_>,
    fits: &[Fit],
    prices: &Prices,
    weights: Option<Vec<f64>>,
    checker: Option<&Checker>,
    finish: Finish<'_>,
) -> Result<Chosen, DriverError> {
    let mut candidates = candidates(&job.sites, fits, prices, weights.as_deref())?;
    let met = match job.options.searched() {
        None => Met { allocation: candidates.planned(), closest: None },
        Some(goal) => {
            let budgets = &job.options.budgets;
            candidates.narrow(&job.sites, &resources(goal, budgets));
            let fitted = |choice: &Allocation| error_of(job, fits, checker, (choice, finish.without_refit()));
            let refitted = |choice: &Allocation| error_of(job, fits, checker, (choice, finish));
            let measures =
                Measures { fitted: &fitted, refitted: finish.refit.is_some().then_some(&refitted) };
            meet(&candidates, goal, budgets, measures)?
        }
    };
    Ok(Chosen { candidates, allocation: met.allocation, closest: met.closest })
}

/// For evenly spaced amounts of a resource, from that of the dense model down to the least that there is, the choice of least
/// predicted error: `points` of them at most, each another one. They are those that goals of these amounts get.
pub(crate) fn along(
    job: &Job<'_>,
    fits: &[Fit],
    prices: &Prices,
    weights: Option<&[f64]>,
    resource: Resource,
    points: usize,
) -> Result<Vec<Allocation>, DriverError> {
    let mut candidates = candidates(&job.sites, fits, prices, weights)?;
    candidates.narrow(&job.sites, &[resource]);
    let Candidates { curves, dense, .. } = &candidates;
    let all: f64 = curves.iter().flat_map(|c| &c.candidates).map(|c| c.squared_error).sum();
    let least = least_cost(curves, *dense, resource, all)?.price.of(resource);
    let most = dense.of(resource);
    let mut found: Vec<Allocation> = Vec::new();
    for point in 1..=points {
        let amount = most - (most - least) * point as f64 / points as f64;
        let choice = least_error(curves, *dense, resource, amount)?;
        let known = |other: &Allocation| other.choices == choice.choices;
        if !choice.choices.is_empty() && !found.iter().any(known) {
            found.push(choice);
        }
    }
    Ok(found)
}

/// The error of a choice, refitted or not, on held-out samples that a limit is for.
fn error_of(
    job: &Job<'_>,
    fits: &[Fit],
    checker: Option<&Checker>,
    (choice, finish): (&Allocation, Finish<'_>),
) -> Result<f64, DriverError> {
    if choice.choices.is_empty() && job.storage == StoreConstants::default() {
        return Ok(0.0);
    }
    let checker = checker.expect("an error limit without samples was refused");
    let sketched = apply(job, pass_of(&job.sites, fits, choice), finish, &mut Dump::none())?;
    judged(job, checker, &sketched.graph)
}

/// The candidates of all sites.
fn candidates(
    sites: &[Site],
    fits: &[Fit],
    prices: &Prices,
    weights: Option<&[f64]>,
) -> Result<Candidates, DriverError> {
    let mut weights_of: Vec<_> = sites.iter().flat_map(|s| s.weights.clone()).collect();
    weights_of.sort_unstable();
    weights_of.dedup();
    let number = |v| weights_of.binary_search(v).expect("every weight was listed");
    let mut curves: Vec<Curve> = sites
        .iter()
        .zip(&prices.dense)
        .map(|(site, dense)| Curve {
            site: site.name.clone(),
            covers: site.weights.iter().map(number).collect(),
            dense: *dense,
            candidates: Vec::new(),
        })
        .collect();
    for (fit, prices) in fits.iter().zip(&prices.candidates) {
        let weight = weights.map_or(1.0, |w| w[fit.site]);
        for (settings, price) in fit.settings.iter().zip(prices) {
            let error = fit.fitted.squared_error(settings).map_err(DriverError::Options)?;
            let choice = Choice {
                scheme: fit.scheme.to_owned(),
                settings: settings.clone(),
                storage: None,
                seed: None,
            };
            let candidate = Candidate { choice, squared_error: error * weight, price: *price };
            curves[fit.site].candidates.push(candidate);
        }
    }
    let whole_bytes = u64::try_from(prices.before.bytes).unwrap_or(0);
    let (excluded, stored) = (BTreeMap::new(), prices.stored);
    let dense = Price { bytes: stored.bytes + prices.repeated, ..stored };
    let (dense_bytes, weighed) = (stored.bytes, weights.is_some());
    Ok(Candidates { curves, excluded, dense, dense_bytes, whole_bytes, weighed })
}

impl Candidates {
    /// Leaves out what is not worth its error: candidates whose predicted time is hardly better than dense, unless bytes are
    /// to be saved, and where one resource is, those that another one beats.
    fn narrow(&mut self, sites: &[Site], resources: &[Resource]) {
        for (site, curve) in sites.iter().zip(&mut self.curves) {
            if curve.candidates.is_empty() {
                let (a, b) = (site.d_in, site.d_out);
                let message = format!("no sketch of {a} x {b} stores fewer numbers than the weight");
                self.excluded.insert(site.name.clone(), message);
            } else if !resources.contains(&Resource::Bytes) {
                let worth = MAX_SHARE * curve.dense.seconds;
                let best = curve.candidates.iter().map(|c| c.price.seconds).fold(f64::INFINITY, f64::min);
                curve.candidates.retain(|c| c.price.seconds <= worth);
                if curve.candidates.is_empty() {
                    let message = format!(
                        "the fastest sketch would take {:.3} ms, dense takes {:.3} ms (predicted)",
                        best * 1e3,
                        curve.dense.seconds * 1e3
                    );
                    self.excluded.insert(site.name.clone(), message);
                }
            }
            if let [resource] = resources {
                curve.drop_dominated(*resource);
            }
        }
    }

    /// Budgets as amounts of what the model may use.
    fn limits(&self, goals: impl Iterator<Item = Goal>) -> Vec<(Resource, f64)> {
        let amount = |goal: Goal| match goal {
            Goal::Bytes(budget) => Some(budget.resolve(self.whole_bytes) as f64),
            Goal::Flops(budget) => Some(budget.resolve(self.dense.flops.unsigned_abs()) as f64),
            Goal::Seconds(seconds) => Some(seconds),
            Goal::Dense | Goal::Error(_) | Goal::Drop(_) => None,
        };
        goals.filter_map(|goal| Some((goal.resource(), amount(goal)?))).collect()
    }

    /// The share of the bytes of the sites that is left where all weights may take so many bytes.
    fn share(&self, bytes: u64) -> f64 {
        let mut counted = Vec::new();
        let mut own = 0.0;
        for curve in &self.curves {
            if curve.covers.iter().all(|weight| !counted.contains(weight)) {
                counted.extend(&curve.covers);
                own += curve.dense.bytes as f64;
            }
        }
        (bytes as f64 - (self.dense.bytes as f64 - own)) / f64::max(own, 1.0)
    }

    /// What a plan says: the only candidate of each site.
    fn planned(&self) -> Allocation {
        let mut planned = Allocation::dense(self.dense);
        for curve in &self.curves {
            if let Some(candidate) = curve.candidates.first() {
                planned.choose(curve, candidate.clone());
            }
        }
        planned
    }
}

/// What is saved.
fn resources(goal: &Goal, budgets: &Budgets) -> Vec<Resource> {
    let mut all = vec![goal.resource()];
    for budget in budgets.goals() {
        if !all.contains(&budget.resource()) {
            all.push(budget.resource());
        }
    }
    all
}

/// The choice that meets a goal within budgets. `measures` say the relative error of a choice on held-out samples; only an error limit
/// needs them.
fn meet(
    candidates: &Candidates,
    goal: &Goal,
    budgets: &Budgets,
    measures: Measures<'_>,
) -> Result<Met, DriverError> {
    let Candidates { curves, dense, weighed, .. } = candidates;
    let besides = candidates.limits(budgets.goals());
    let allocation = match goal {
        Goal::Dense => Ok(Allocation::dense(*dense)),
        Goal::Error(ErrorLimit { most: limit, .. }) | Goal::Drop(limit) => {
            return meet_error(candidates, *limit, &besides, measures);
        }
        Goal::Bytes(_) | Goal::Flops(_) | Goal::Seconds(_)
            if besides.iter().any(|(r, _)| *r != goal.resource()) =>
        {
            let own = candidates.limits(std::iter::once(goal.clone()));
            let others = besides.into_iter().filter(|(r, _)| *r != goal.resource());
            let limits: Vec<_> = own.into_iter().chain(others).collect();
            least_error_within(curves, *dense, &limits).map_err(|e| match e {
                AllocateError::Infeasible { what, best, asked } if what == Resource::Seconds.name() => {
                    DriverError::Budget { asked_ms: asked * 1e3, best_ms: best * 1e3 }
                }
                e => e.into(),
            })
        }
        Goal::Bytes(budget) => {
            let bytes = budget.resolve(candidates.whole_bytes);
            if u64::try_from(candidates.dense_bytes).is_ok_and(|used| used <= bytes) {
                return Ok(Met { allocation: Allocation::dense(*dense), closest: None });
            }
            if !weighed {
                // Errors of different sites have no common unit without samples.
                let even = uniform(curves, *dense, candidates.share(bytes))?;
                if u64::try_from(even.price.bytes).is_ok_and(|used| used <= bytes) {
                    return Ok(Met { allocation: even, closest: None });
                }
            }
            Ok(least_error(curves, *dense, Resource::Bytes, bytes as f64)?)
        }
        Goal::Flops(budget) => {
            let flops = budget.resolve(dense.flops.unsigned_abs());
            Ok(least_error(curves, *dense, Resource::Flops, flops as f64)?)
        }
        Goal::Seconds(seconds) => {
            least_error(curves, *dense, Resource::Seconds, *seconds).map_err(|e| match e {
                AllocateError::Infeasible { best, .. } => {
                    DriverError::Budget { asked_ms: seconds * 1e3, best_ms: best * 1e3 }
                }
                e => e.into(),
            })
        }
    };
    Ok(Met { allocation: allocation?, closest: None })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use margay_plan::{Budget, Settings};

    use super::super::limit::Measure;
    use super::*;

    fn price(bytes: i64, seconds: f64) -> Price {
        Price { bytes, flops: 0, seconds }
    }

    /// A site of 100 bytes and one second, with candidates of squared errors, bytes and seconds. Their schemes are called
    /// by their numbers.
    fn curve(site: &str, number: usize, rows: &[(f64, i64, f64)]) -> Curve {
        let candidate = |(i, &(squared_error, bytes, seconds)): (usize, &(f64, i64, f64))| Candidate {
            choice: Choice {
                scheme: i.to_string(),
                settings: Settings::default(),
                storage: None,
                seed: None,
            },
            squared_error,
            price: price(bytes, seconds),
        };
        let candidates = rows.iter().enumerate().map(candidate).collect();
        Curve {
            site: site.into(),
            covers: [number].into_iter().collect(),
            dense: price(100, 1.0),
            candidates,
        }
    }

    /// Two sites, in a model that takes three seconds of its own besides.
    fn model(weighed: bool) -> Candidates {
        let curves = vec![
            curve("a", 0, &[(0.01, 50, 0.5), (0.04, 25, 0.25)]),
            curve("b", 1, &[(0.02, 50, 0.5), (0.09, 25, 0.25)]),
        ];
        let (excluded, dense) = (BTreeMap::new(), price(200, 5.0));
        Candidates { curves, excluded, dense, dense_bytes: 200, whole_bytes: 200, weighed }
    }

    fn as_fitted<'a>(fitted: &'a Measure<'a>) -> Measures<'a> {
        Measures { fitted, refitted: None }
    }

    fn unmeasured(_: &Allocation) -> Result<f64, DriverError> {
        unreachable!("only an error limit is measured")
    }

    /// The bytes of the sites that are sketched.
    fn chosen(candidates: &Candidates, goal: &Goal) -> Vec<(String, i64)> {
        let found = meet(candidates, goal, &Budgets::default(), as_fitted(&unmeasured))
            .unwrap_or_else(|e| panic!("{e}"))
            .allocation;
        found.choices.iter().map(|(site, c)| (site.clone(), c.price.bytes)).collect()
    }

    fn sites(list: &[(&str, i64)]) -> Vec<(String, i64)> {
        list.iter().map(|(site, bytes)| ((*site).to_owned(), *bytes)).collect()
    }

    #[test]
    fn a_budget_of_time_is_that_of_the_whole_model() {
        let m = model(true);
        for (seconds, expected) in [
            (5.0, &[][..]),
            (4.999, &[("a", 50)][..]),
            (4.5, &[("a", 50)][..]),
            (4.499, &[("a", 50), ("b", 50)][..]),
            (4.0, &[("a", 50), ("b", 50)][..]),
            (3.75, &[("a", 25), ("b", 50)][..]),
            (3.5, &[("a", 25), ("b", 25)][..]),
        ] {
            let goal = Goal::Seconds(seconds);
            let found = meet(&m, &goal, &Budgets::default(), as_fitted(&unmeasured)).unwrap().allocation;
            assert!(found.price.seconds <= seconds * (1.0 + 1e-9), "{seconds}");
            assert_eq!(chosen(&m, &goal), sites(expected), "{seconds} s");
        }
        let error = meet(&m, &Goal::Seconds(3.25), &Budgets::default(), as_fitted(&unmeasured))
            .err()
            .expect("too little");
        let DriverError::Budget { asked_ms, best_ms } = error else { panic!("{error}") };
        assert_eq!((asked_ms, best_ms), (3250.0, 3500.0));
    }

    #[test]
    fn budgets_are_kept_besides_others_and_besides_a_limit() {
        let m = model(true);
        let budgets = |bytes, seconds| Budgets {
            bytes: Some(Budget::Absolute(bytes)),
            seconds: Some(seconds),
            flops: None,
        };
        let bytes = |bytes| Goal::Bytes(Budget::Absolute(bytes));
        for (most, seconds, expected) in [
            (200, 5.0, &[][..]),
            (200, 4.2, &[("a", 50), ("b", 50)][..]),
            (100, 5.0, &[("a", 50), ("b", 50)][..]),
            (75, 4.2, &[("a", 25), ("b", 50)][..]),
            (75, 3.5, &[("a", 25), ("b", 25)][..]),
        ] {
            let found =
                meet(&m, &bytes(most), &budgets(most, seconds), as_fitted(&unmeasured)).unwrap().allocation;
            let found: Vec<_> = found.choices.iter().map(|(site, c)| (site.clone(), c.price.bytes)).collect();
            assert_eq!(found, sites(expected), "{most} bytes, {seconds} s");
        }
        assert!(meet(&m, &bytes(40), &budgets(40, 4.0), as_fitted(&unmeasured)).is_err());
        // A limit of the error besides: the fastest within all of them.
        let measure = |a: &Allocation| Ok(a.squared_error.sqrt());
        let met =
            |limit: f64, most| meet(&m, &Goal::Error(limit.into()), &budgets(most, 9.0), as_fitted(&measure));
        let found = met(0.26, 75).unwrap().allocation;
        assert!(found.price.bytes <= 75 && found.squared_error <= 0.26 * 0.26, "{found:?}");
        assert_eq!(found.choices.len(), 2);
        let why = met(0.2, 75).err().expect("no choice of 75 bytes errs by so little").to_string();
        assert!(why.contains("no choice within the budgets errs by at most 0.2"), "{why}");
    }

    #[test]
    fn a_budget_of_bytes_is_met_at_its_border() {
        let m = model(true);
        let at = |bytes: u64| chosen(&m, &Goal::Bytes(Budget::Absolute(bytes)));
        assert_eq!(at(200), sites(&[]));
        assert_eq!(at(199), sites(&[("a", 50)]));
        assert_eq!(at(150), sites(&[("a", 50)]));
        assert_eq!(at(149), sites(&[("a", 50), ("b", 50)]));
        assert_eq!(at(100), sites(&[("a", 50), ("b", 50)]));
        assert_eq!(at(99), sites(&[("a", 25), ("b", 50)]));
        assert_eq!(at(50), sites(&[("a", 25), ("b", 25)]));
        let none = meet(&m, &Goal::Bytes(Budget::Absolute(49)), &Budgets::default(), as_fitted(&unmeasured))
            .err()
            .expect("too few");
        assert_eq!(none.kind(), crate::Kind::Check);
        let half = chosen(&m, &Goal::Bytes(Budget::Fraction(0.5)));
        assert_eq!(half, at(100));
    }

    #[test]
    fn without_a_common_unit_of_error_each_site_gets_its_share() {
        // Of errors that can be compared, those of `b` would all be larger than those of `a`.
        let mut m = model(false);
        m.curves[1].candidates.iter_mut().for_each(|c| c.squared_error *= 100.0);
        let at = |m: &Candidates| chosen(m, &Goal::Bytes(Budget::Absolute(125)));
        assert_eq!(at(&m), sites(&[("a", 50), ("b", 50)]));
        m.weighed = true;
        assert_eq!(at(&m), sites(&[("a", 25)]));
    }

    #[test]
    fn of_equal_candidates_the_first_is_taken() {
        let twins =
            vec![curve("a", 0, &[(0.01, 50, 0.5), (0.01, 50, 0.5)]), curve("b", 1, &[(0.01, 50, 0.5)])];
        let m = Candidates {
            curves: twins,
            excluded: BTreeMap::new(),
            dense: price(200, 2.0),
            dense_bytes: 200,
            whole_bytes: 200,
            weighed: true,
        };
        // Where one of two equal sites may stay dense, it is the first.
        assert_eq!(chosen(&m, &Goal::Bytes(Budget::Absolute(150))), sites(&[("b", 50)]));
        assert_eq!(chosen(&m, &Goal::Seconds(1.5)), sites(&[("b", 50)]));
        for goal in [Goal::Bytes(Budget::Absolute(100)), Goal::Seconds(1.0)] {
            let found = meet(&m, &goal, &Budgets::default(), as_fitted(&unmeasured)).unwrap().allocation;
            assert_eq!((found.choices.len(), found.choices["a"].choice.scheme.as_str()), (2, "0"));
        }
    }

    #[test]
    fn an_error_limit_takes_the_fastest_choice_that_was_measured_within_it() {
        let m = model(true);
        let tried = RefCell::new(Vec::new());
        // The measured error is what is predicted.
        let measure = |a: &Allocation| {
            tried.borrow_mut().push(a.squared_error.sqrt());
            Ok(a.squared_error.sqrt())
        };
        let limit = 0.06f64.sqrt();
        let found = meet(&m, &Goal::Error(limit.into()), &Budgets::default(), as_fitted(&measure))
            .unwrap()
            .allocation;
        // 0.04 + 0.02 at 0.75 s; the next faster one, 0.04 + 0.09, is beyond the limit.
        assert_eq!(found.price.seconds, 3.75);
        assert!(tried.borrow().iter().any(|e| *e <= limit));
        let nothing =
            meet(&m, &Goal::Error(0.05.into()), &Budgets::default(), as_fitted(&measure)).unwrap().allocation;
        assert!(nothing.choices.is_empty());
        // A model that errs twice as much as is predicted is allowed half as much of it.
        let twice = meet(
            &m,
            &Goal::Error(limit.into()),
            &Budgets::default(),
            as_fitted(&|a| Ok(2.0 * a.squared_error.sqrt())),
        )
        .unwrap()
        .allocation;
        assert_eq!(twice.price.seconds, 4.5);
    }

    #[test]
    fn what_is_hardly_faster_is_left_out_unless_bytes_are_asked_for() {
        let site = |name: &str| Site {
            name: name.into(),
            kind: "linear",
            only_by_name: false,
            d_in: 5,
            d_out: 5,
            weights: vec![],
            nodes: vec![],
            measures: vec![],
            samples: vec![],
            results: Vec::new(),
            schemes: vec![],
        };
        let narrowed = |goal: &Goal, rows: &[(f64, i64, f64)]| {
            let curves = vec![curve("a", 0, rows)];
            let mut m = Candidates {
                curves,
                excluded: BTreeMap::new(),
                dense: price(100, 1.0),
                dense_bytes: 100,
                whole_bytes: 200,
                weighed: true,
            };
            m.narrow(&[site("a")], &[goal.resource()]);
            (m.curves[0].candidates.len(), m.excluded.get("a").cloned())
        };
        let (time, bytes) = (Goal::Seconds(1.0), Goal::Bytes(Budget::Fraction(0.5)));
        let slow = [(0.01, 60, 0.96), (0.02, 50, 0.951)];
        assert_eq!(narrowed(&bytes, &slow), (2, None));
        let why = "the fastest sketch would take 951.000 ms, dense takes 1000.000 ms (predicted)";
        assert_eq!(narrowed(&time, &slow), (0, Some(why.to_owned())));
        assert_eq!(narrowed(&time, &[(0.01, 60, 0.95)]), (1, None));
        // What stores more than the weight may be all that an error limit allows.
        assert_eq!(narrowed(&time, &[(0.001, 110, 0.9), (0.02, 50, 0.5)]), (2, None));
        let none = "no sketch of 5 x 5 stores fewer numbers than the weight";
        assert_eq!(narrowed(&bytes, &[]), (0, Some(none.to_owned())));
    }
}
