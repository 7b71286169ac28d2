//! One choice over all modules and schemes at once.
//!
//! Errors are squared errors of the model's output in one unit, and small ones of different modules add. So
//! the best use of a budget `B` is the choice of one candidate per module that minimises `Σ error` subject to
//! `Σ cost ≤ B`; its Lagrangian `Σ (error + λ cost)` falls apart into modules. As the multiplier λ falls, the
//! best candidate of a module moves along the lower convex hull of its points (cost, error), and a step of
//! the hull is taken where λ passes its slope. The steps of all hulls in the order of their slopes are
//! therefore every multiplier that matters, and the longest run of them that fits the budget is exact: no
//! other choice of the same cost has less error. What is left of the budget is then spent greedily, on points
//! above the hulls too. The error exceeds the least possible by at most the error that the first step that
//! did not fit would have removed, and never rises with the budget.
//!
//! Minimising `Σ cost` subject to `Σ error ≤ E` is the same with the axes exchanged.
//!
//! Ties go to the module, then to the candidate, that is listed first; a module's dense candidate always
//! comes first. Deliberately absent: interactions between modules (the driver measures the result and adjusts
//! the goal).

use std::collections::BTreeMap;

use crate::{AllocateError, Candidate, Choice, Curve, Header, Plan, Resource};

/// What an allocation is to achieve. Limits on seconds and errors are met up to one part in 10^9, since sums
/// are rounded; those on bytes and operations exactly.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Goal {
    /// As little error as a budget allows.
    LeastError {
        /// What is scarce.
        resource: Resource,
        /// How much of it all modules together may use.
        budget: f64,
    },
    /// As little of a resource as a limit on the error allows.
    LeastCost {
        /// What is to be saved.
        resource: Resource,
        /// The greatest total squared error.
        limit: f64,
    },
}

/// One candidate per module.
#[derive(Clone, PartialEq, Debug)]
pub struct Allocation {
    /// The candidates, by module.
    pub choices: BTreeMap<String, Candidate>,
    /// Sum of the squared errors.
    pub total_error: f64,
    /// Sum of the stored bytes.
    pub total_bytes: u64,
    /// Sum of the operations.
    pub total_flops: u64,
    /// Sum of the predicted times.
    pub total_seconds: f64,
}

/// Chooses one candidate per module.
///
/// # Errors
/// [`AllocateError::Infeasible`], and [`AllocateError::Number`] or [`AllocateError::Duplicate`] for unusable
/// tables.
pub fn allocate(curves: &[Curve], goal: Goal) -> Result<Allocation, AllocateError> {
    check(curves)?;
    // Sums of bytes and operations are exact.
    let (what, asked, exact) = match goal {
        Goal::LeastError { resource, budget } => (resource.name(), budget, resource != Resource::Seconds),
        Goal::LeastCost { limit, .. } => ("error", limit, false),
    };
    let limit = if exact { asked } else { asked + ROUNDING * asked.abs() };
    let point = |c: &Candidate| match goal {
        Goal::LeastError { resource, .. } => Point { used: c.cost(resource), lost: c.error },
        Goal::LeastCost { resource, .. } => Point { used: c.error, lost: c.cost(resource) },
    };
    let tables: Vec<Vec<Point>> = curves.iter().map(|c| c.candidates().map(point).collect()).collect();
    match solve(&tables, limit) {
        Ok(chosen) => Ok(Allocation::new(curves, &chosen)),
        Err(best) => Err(AllocateError::Infeasible { what, best, asked }),
    }
}

/// Gives every module the same share of its own dense bytes: the candidate of least error that fits, or the
/// smallest one where none does.
///
/// Only errors of the same module are compared, so this serves while their common unit is not known.
///
/// # Errors
/// [`AllocateError::Number`] or [`AllocateError::Duplicate`] for unusable tables.
pub fn uniform(curves: &[Curve], ratio: f64) -> Result<Allocation, AllocateError> {
    check(curves)?;
    let best = |curve: &Curve| {
        let most = curve.dense.bytes as f64 * ratio;
        let fitting = curve.candidates().enumerate().filter(|(_, c)| c.bytes as f64 <= most);
        let least_error =
            fitting.min_by(|(_, a), (_, b)| a.error.total_cmp(&b.error).then(a.bytes.cmp(&b.bytes)));
        let smallest = || curve.candidates().enumerate().min_by_key(|(_, c)| c.bytes);
        least_error.or_else(smallest).map_or(0, |(i, _)| i)
    };
    let chosen: Vec<usize> = curves.iter().map(best).collect();
    Ok(Allocation::new(curves, &chosen))
}

impl Allocation {
    /// The candidates with these positions: 0 for dense, else one more than the position among the points.
    fn new(curves: &[Curve], chosen: &[usize]) -> Allocation {
        let mut made = Allocation {
            choices: BTreeMap::new(),
            total_error: 0.0,
            total_bytes: 0,
            total_flops: 0,
            total_seconds: 0.0,
        };
        for (curve, &position) in curves.iter().zip(chosen) {
            let candidate = if position == 0 { &curve.dense } else { &curve.points[position - 1] };
            made.total_error += candidate.error;
            made.total_bytes = made.total_bytes.saturating_add(candidate.bytes);
            made.total_flops = made.total_flops.saturating_add(candidate.flops);
            made.total_seconds += candidate.seconds;
            made.choices.insert(curve.module.clone(), candidate.clone());
        }
        made
    }

    /// The plan that does this, dense modules included.
    pub fn plan(&self, header: Header) -> Plan {
        let choices = self.choices.iter().map(|(name, c)| (name.clone(), c.choice.clone()));
        Plan { header, modules: choices.collect::<BTreeMap<String, Choice>>() }
    }
}

/// How far, relatively, a sum of rounded numbers may exceed its limit.
const ROUNDING: f64 = 1e-9;

/// A candidate as the solver sees it: how much it uses of what is limited, and what is to be minimised.
#[derive(Clone, Copy, Debug)]
struct Point {
    used: f64,
    lost: f64,
}

/// A step along the hull of one module.
struct Step {
    module: usize,
    to: usize,
    extra: f64,
    gain: f64,
}

/// One position per table, of small `Σ lost` with `Σ used ≤ limit`; else the least `Σ used`.
fn solve(tables: &[Vec<Point>], limit: f64) -> Result<Vec<usize>, f64> {
    let hulls: Vec<Vec<usize>> = tables.iter().map(|points| hull(points)).collect();
    let mut chosen: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let mut used: f64 = tables.iter().zip(&chosen).map(|(points, &i)| points[i].used).sum();
    if used > limit || limit.is_nan() {
        return Err(used);
    }

    let mut steps = Vec::new();
    for (module, (points, hull)) in tables.iter().zip(&hulls).enumerate() {
        steps.extend(hull.windows(2).map(|pair| {
            let (from, to) = (points[pair[0]], points[pair[1]]);
            Step { module, to: pair[1], extra: to.used - from.used, gain: slope(from, to) }
        }));
    }
    // Stable, and slopes never rise along a hull: the steps of one module stay in order.
    steps.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    for step in steps {
        if used + step.extra > limit {
            break;
        }
        used += step.extra;
        chosen[step.module] = step.to;
    }

    while let Some(step) = best_step(tables, &chosen, limit - used) {
        used += step.extra;
        chosen[step.module] = step.to;
    }
    Ok(chosen)
}

/// The move with the steepest slope among those that use at most `left` more.
fn best_step(tables: &[Vec<Point>], chosen: &[usize], left: f64) -> Option<Step> {
    let mut best: Option<Step> = None;
    for (module, points) in tables.iter().enumerate() {
        let from = points[chosen[module]];
        for (to, &point) in points.iter().enumerate() {
            let extra = point.used - from.used;
            if point.lost >= from.lost || extra > left {
                continue;
            }
            let gain = slope(from, point);
            if best.as_ref().is_none_or(|b| gain > b.gain) {
                best = Some(Step { module, to, extra, gain });
            }
        }
    }
    best
}

/// The corners of the lower convex hull, from the least used to the least lost, points along its edges
/// included. Of equal points the first stands for all.
fn hull(points: &[Point]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&i, &j| {
        let (a, b) = (points[i], points[j]);
        a.used.total_cmp(&b.used).then(a.lost.total_cmp(&b.lost))
    });
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        if hull.last().is_some_and(|&last| points[i].lost >= points[last].lost) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && slope(points[before], points[last]) < slope(points[last], points[i])
        {
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

/// What is gained per unit used more.
fn slope(from: Point, to: Point) -> f64 {
    (from.lost - to.lost) / (to.used - from.used)
}

fn check(curves: &[Curve]) -> Result<(), AllocateError> {
    let mut seen = BTreeMap::new();
    for curve in curves {
        if seen.insert(&curve.module, ()).is_some() {
            return Err(AllocateError::Duplicate { module: curve.module.clone() });
        }
        for candidate in curve.candidates() {
            for (what, found) in [("error", candidate.error), ("seconds", candidate.seconds)] {
                if !(found.is_finite() && found >= 0.0) {
                    let choice = &candidate.choice;
                    let choice = format!("scheme `{}` with rank {}", choice.scheme, choice.rank);
                    return Err(AllocateError::Number { module: curve.module.clone(), choice, what, found });
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use margay_tensor::random::Philox;

    use super::*;

    /// A module from rows (error, bytes); the first is dense.
    fn curve(module: &str, rows: &[(f64, u64)]) -> Curve {
        let candidate = |(i, &(error, bytes)): (usize, &(f64, u64))| Candidate {
            choice: if i == 0 { Choice::dense() } else { Choice::new("lowrank", i) },
            error,
            bytes,
            flops: 3 * bytes,
            seconds: bytes as f64 * 1e-7,
        };
        let mut all: Vec<Candidate> = rows.iter().enumerate().map(candidate).collect();
        let points = all.split_off(1);
        Curve { module: module.to_owned(), dense: all.remove(0), points }
    }

    fn tables() -> Vec<Curve> {
        vec![
            curve("q", &[(0.0, 100), (8.5, 10), (2.0, 30), (1.8, 50), (0.5, 70)]),
            curve("v", &[(0.0, 100), (90.0, 10), (40.0, 30), (20.0, 50), (9.0, 70)]),
        ]
    }

    fn ranks(allocation: &Allocation) -> Vec<usize> {
        allocation.choices.values().map(|c| c.choice.rank).collect()
    }

    fn bytes(budget: f64) -> Goal {
        Goal::LeastError { resource: Resource::Bytes, budget }
    }

    #[test]
    fn error_is_bought_where_it_is_cheapest() {
        let ranks_at = |budget| ranks(&allocate(&tables(), bytes(budget)).unwrap());
        assert_eq!(ranks_at(20.0), [1, 1]);
        assert_eq!(ranks_at(39.0), [1, 1]);
        assert_eq!(ranks_at(40.0), [1, 2]);
        assert_eq!(ranks_at(80.0), [1, 4]);
        assert_eq!(ranks_at(100.0), [2, 4]);
        // The hull of `q` passes below rank 3; what is left of the budget pays for it all the same.
        assert_eq!(ranks_at(155.0), [3, 0]);
        assert_eq!(ranks_at(200.0), [0, 0]);
        let found = allocate(&tables(), bytes(100.0)).unwrap();
        assert_eq!((found.total_error, found.total_bytes, found.total_flops), (11.0, 100, 300));
        assert_eq!(found.total_seconds, 30.0 * 1e-7 + 70.0 * 1e-7);
    }

    #[test]
    fn large_budgets_leave_everything_dense() {
        for resource in [Resource::Bytes, Resource::Flops, Resource::Seconds] {
            let dense: f64 = tables().iter().map(|c| c.dense.cost(resource)).sum();
            for budget in [dense, 10.0 * dense, f64::INFINITY] {
                let found = allocate(&tables(), Goal::LeastError { resource, budget }).unwrap();
                assert_eq!((ranks(&found), found.total_error), (vec![0, 0], 0.0));
            }
        }
    }

    #[test]
    fn cost_is_saved_up_to_an_error() {
        let at = |limit| allocate(&tables(), Goal::LeastCost { resource: Resource::Bytes, limit });
        assert_eq!(ranks(&at(0.0).unwrap()), [0, 0]);
        assert_eq!(ranks(&at(11.0).unwrap()), [2, 4]);
        assert_eq!(ranks(&at(1000.0).unwrap()), [1, 1]);
    }

    #[test]
    fn impossible_goals_say_what_is_possible() {
        let expected = AllocateError::Infeasible { what: "bytes", best: 20.0, asked: 19.0 };
        assert_eq!(allocate(&tables(), bytes(19.0)), Err(expected));
        let mut lossy = tables();
        lossy[0].dense.error = 0.25;
        let goal = Goal::LeastCost { resource: Resource::Seconds, limit: 0.1 };
        let expected = AllocateError::Infeasible { what: "error", best: 0.25, asked: 0.1 };
        assert_eq!(allocate(&lossy, goal), Err(expected.clone()));
        assert_eq!(
            expected.to_string(),
            "the error cannot be brought down to 0.1: the least possible is 0.25"
        );
        assert!(matches!(allocate(&tables(), bytes(f64::NAN)), Err(AllocateError::Infeasible { .. })));
    }

    #[test]
    fn unusable_tables_are_refused() {
        let mut odd = tables();
        odd[1].points[2].error = f64::NAN;
        let message = allocate(&odd, bytes(100.0)).unwrap_err().to_string();
        assert!(message.starts_with("module `v`, scheme `lowrank` with rank 3: `error`"), "{message}");
        odd[1].module = "q".to_owned();
        assert!(matches!(uniform(&odd, 0.5), Err(AllocateError::Duplicate { .. })));
    }

    #[test]
    fn ties_go_to_the_first() {
        let same = [(0.0, 100), (5.0, 50), (5.0, 50)];
        let curves = [curve("a", &same), curve("b", &same)];
        assert_eq!(ranks(&allocate(&curves, bytes(150.0)).unwrap()), [0, 1]);
        let free = [curve("a", &[(0.0, 100), (0.0, 100)])];
        assert_eq!(ranks(&allocate(&free, bytes(100.0)).unwrap()), [0]);
        assert!(allocate(&[], bytes(0.0)).unwrap().choices.is_empty());
    }

    #[test]
    fn uniform_gives_each_module_its_share() {
        let mut curves = tables();
        curves.push(curve("small", &[(0.0, 10), (3.0, 12), (6.0, 8)]));
        let found = uniform(&curves, 0.5).unwrap();
        assert_eq!(ranks(&found), [3, 2, 3]);
        assert_eq!(ranks(&uniform(&curves, 1.0).unwrap()), [0, 0, 0]);
    }

    #[test]
    fn an_allocation_becomes_a_plan() {
        let found = allocate(&tables(), bytes(155.0)).unwrap();
        let header = Header {
            version: crate::plan::FORMAT_VERSION,
            model: "m".to_owned(),
            calibration: None,
            target_cpu: "portable".to_owned(),
            cost_model: "portable/1".to_owned(),
            seed: 0,
        };
        let plan = found.plan(header);
        assert_eq!(plan.modules["q"], Choice::new("lowrank", 3));
        assert_eq!(plan.modules["v"], Choice::dense());
        assert_eq!(Plan::from_toml(&plan.to_toml().unwrap(), &["lowrank"]), Ok(plan));
    }

    /// A few modules with falling and with arbitrary tables.
    fn random_curves(seed: u64) -> Vec<Curve> {
        let mut uniform = vec![0.0; 64];
        Philox::new(seed, 0).fill_uniform_f64(0, &mut uniform);
        let mut next = uniform.into_iter();
        let mut draw = |below: f64| next.next().unwrap() * below;
        (0..2 + seed % 3)
            .map(|module| {
                let scale = 10f64.powf(draw(4.0) - 2.0);
                let mut rows = vec![(0.0, 1000 + draw(1000.0) as u64)];
                for _ in 0..1 + draw(5.0) as usize {
                    let bytes = 100 + draw(1800.0) as u64;
                    let trend = (-(bytes as f64) / 300.0).exp();
                    let shape = if seed.is_multiple_of(2) { trend } else { 0.0 };
                    rows.push((scale * (shape + draw(0.2)), bytes));
                }
                curve(&format!("m{module}"), &rows)
            })
            .collect()
    }

    /// The least Σ lost of every choice with Σ used ≤ limit.
    fn brute_force(tables: &[Vec<Point>], limit: f64) -> Option<f64> {
        let Some((first, rest)) = tables.split_first() else {
            return (limit >= 0.0).then_some(0.0);
        };
        let totals = first.iter().filter_map(|p| Some(p.lost + brute_force(rest, limit - p.used)?));
        totals.min_by(f64::total_cmp)
    }

    fn points(curves: &[Curve], exchanged: bool) -> Vec<Vec<Point>> {
        let point = |c: &Candidate| {
            let (bytes, error) = (c.bytes as f64, c.error);
            if exchanged { Point { used: error, lost: bytes } } else { Point { used: bytes, lost: error } }
        };
        curves.iter().map(|c| c.candidates().map(point).collect()).collect()
    }

    fn totals(tables: &[Vec<Point>], chosen: &[usize]) -> (f64, f64) {
        let picked = tables.iter().zip(chosen).map(|(points, &i)| points[i]);
        picked.fold((0.0, 0.0), |(used, lost), p| (used + p.used, lost + p.lost))
    }

    /// The most that any step along a hull gains.
    fn hull_gap(tables: &[Vec<Point>]) -> f64 {
        let steps = tables.iter().flat_map(|points| {
            let hull = hull(points);
            let gains: Vec<f64> = hull.windows(2).map(|p| points[p[0]].lost - points[p[1]].lost).collect();
            gains
        });
        steps.fold(0.0, f64::max)
    }

    #[test]
    fn near_brute_force_and_monotone() {
        let mut exact = 0;
        let mut cases = 0;
        for seed in 0..200 {
            for exchanged in [false, true] {
                let tables = points(&random_curves(seed), exchanged);
                let most: f64 =
                    tables.iter().map(|t| t.iter().map(|p| p.used).fold(0.0, f64::max)).sum::<f64>();
                let gap = hull_gap(&tables);
                let mut last = f64::INFINITY;
                for step in 0..=24 {
                    let limit = most * f64::from(step) / 24.0;
                    let rounding = 1e-9 * limit;
                    let Ok(chosen) = solve(&tables, limit) else {
                        assert_eq!(brute_force(&tables, limit * (1.0 - 1e-9)), None, "seed {seed}");
                        continue;
                    };
                    let (used, lost) = totals(&tables, &chosen);
                    assert!(used <= limit + rounding, "seed {seed}: {used} > {limit}");
                    let best = brute_force(&tables, limit + rounding).unwrap();
                    let tolerance = 1e-9 * (lost + gap);
                    assert!(lost >= best - tolerance, "seed {seed}: {lost} < {best}");
                    assert!(lost <= best + gap + tolerance, "seed {seed}: {lost} > {best} + {gap}");
                    assert!(lost <= last + tolerance, "seed {seed}: {lost} > {last} with more to use");
                    last = lost;
                    cases += 1;
                    exact += usize::from(lost <= best + tolerance);
                }
            }
        }
        assert!(exact * 10 >= cases * 7, "exact in {exact} of {cases} cases");
    }

    /// At the cost of any corner of the Lagrangian nothing is better.
    #[test]
    fn exact_where_the_budget_meets_a_hull() {
        for seed in 200..260 {
            let tables = points(&random_curves(seed), false);
            for exponent in -24..4 {
                let multiplier = 2f64.powi(exponent);
                let best = |points: &Vec<Point>| {
                    let price = |p: &Point| p.lost + multiplier * p.used;
                    (0..points.len()).min_by(|&i, &j| price(&points[i]).total_cmp(&price(&points[j])))
                };
                let corner: Vec<usize> = tables.iter().filter_map(best).collect();
                let (used, lost) = totals(&tables, &corner);
                let found = totals(&tables, &solve(&tables, used).unwrap());
                assert!(found.1 <= lost * (1.0 + 1e-12), "seed {seed}: {found:?} for {:?}", (used, lost));
            }
        }
    }
}
