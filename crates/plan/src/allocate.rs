//! One choice over all sites and schemes at once.
//!
//! Errors are squared errors of the model's output in one unit, and small ones of different sites add. So
//! the best use of a budget `B` is the choice of at most one candidate per site that minimises `Σ error` subject to
//! `Σ cost ≤ B`. Sites that share a weight exclude each other; a *group* is a set of sites that are connected by shared
//! weights, and an *arrangement* of a group is a choice of candidates no two of which cover the same weight. The
//! empty arrangement leaves the group dense, so that there always is one.
//!
//! The Lagrangian `Σ (error + λ cost)` falls apart into groups. As the multiplier λ falls, the
//! best arrangement of a group moves along the lower convex hull of its points (cost, error), and a step of
//! the hull is taken where λ passes its slope. The steps of all hulls in the order of their slopes are
//! therefore every multiplier that matters, and the longest run of them that fits the budget is exact: no
//! other choice of the same cost has less error. What is left of the budget is then spent greedily, on points
//! above the hulls too. The error exceeds the least possible by at most the error that the first step that
//! did not fit would have removed, and never rises with the budget.
//!
//! A group of one site has a point for each candidate. A group of several has one for each arrangement where there are
//! few, and else the corners of its hull alone, which are found by solving the group for the multipliers between
//! neighbouring corners.
//!
//! Minimising `Σ cost` subject to `Σ error ≤ E` is the same with the axes exchanged.
//!
//! Ties go to the site, then to the candidate, that is listed first; dense
//! always comes first. Deliberately absent: interactions between sites (the driver measures the result and adjusts
//! the goal).

use std::collections::BTreeMap;

use crate::group::{Arrangement, groups};
use crate::{AllocateError, Budget, Candidate, Curve, ErrorLimit, Price, Resource};

/// What a compilation is to achieve.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Goal {
    /// Nothing is sketched.
    #[default]
    Dense,
    /// The fastest model whose relative L2 error of the outputs on held-out samples is within this.
    Error(ErrorLimit),
    /// The fastest model whose metric, which the user brings, is at most so much below that of the dense model.
    Drop(f64),
    /// The smallest error with so many stored bytes of the weights that can be sketched.
    Bytes(Budget),
    /// The smallest error with so many multiplications and additions of products and convolutions in one run.
    Flops(Budget),
    /// The smallest error with a predicted time of one run of so many seconds.
    Seconds(f64),
}

/// Limits on what a model uses, besides its goal.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Budgets {
    /// As [`Goal::Bytes`].
    pub bytes: Option<Budget>,
    /// As [`Goal::Flops`].
    pub flops: Option<Budget>,
    /// As [`Goal::Seconds`].
    pub seconds: Option<f64>,
}

impl Budgets {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Budgets::default()
    }

    /// Each as a goal.
    pub fn goals(&self) -> impl Iterator<Item = Goal> {
        let (bytes, flops) = (self.bytes.map(Goal::Bytes), self.flops.map(Goal::Flops));
        [bytes, flops, self.seconds.map(Goal::Seconds)].into_iter().flatten()
    }
}

impl Goal {
    /// What is saved: bytes or operations where they are asked for, else time.
    pub fn resource(&self) -> Resource {
        match self {
            Goal::Bytes(_) => Resource::Bytes,
            Goal::Flops(_) => Resource::Flops,
            Goal::Dense | Goal::Error(_) | Goal::Drop(_) | Goal::Seconds(_) => Resource::Seconds,
        }
    }
}

/// The sites that are sketched, and how.
#[derive(Clone, PartialEq, Debug)]
pub struct Allocation {
    /// The candidates, by site. Sites without one stay dense.
    pub choices: BTreeMap<String, Candidate>,
    /// Sum of the squared errors.
    pub squared_error: f64,
    /// What the model uses then.
    pub price: Price,
}

/// The choice of little error that uses at most so much of a resource. `dense` is what the model uses as it is. Limits on
/// seconds are met up to one part in 10^9, since sums are rounded; those on bytes and operations exactly.
///
/// # Errors
/// [`AllocateError::Infeasible`], and [`AllocateError::Number`] or [`AllocateError::Duplicate`] for unusable
/// tables.
pub fn least_error(
    curves: &[Curve],
    dense: Price,
    resource: Resource,
    budget: f64,
) -> Result<Allocation, AllocateError> {
    let point = |a: &Arrangement| Point { used: a.price.of(resource), lost: a.squared_error };
    // Sums of bytes and operations are exact.
    let limit = if resource == Resource::Seconds { budget + ROUNDING * budget.abs() } else { budget };
    // What the sites do not use themselves.
    let apart = |bare: Price| (dense - bare).of(resource);
    let what = resource.name();
    allocate(curves, dense, resource, &|bare| limit - apart(bare), &point)
        .map_err(|e| e.infeasible(|bare, least| (what, least + apart(bare), budget)))
}

/// The choice that uses little of a resource with a total squared error of at most a limit, which is met up to one part
/// in 10^9. `dense` is what the model uses as it is.
///
/// # Errors
/// As [`least_error`].
pub fn least_cost(
    curves: &[Curve],
    dense: Price,
    resource: Resource,
    limit: f64,
) -> Result<Allocation, AllocateError> {
    let point = |a: &Arrangement| Point { used: a.squared_error, lost: a.price.of(resource) };
    let most = limit + ROUNDING * limit.abs();
    allocate(curves, dense, resource, &|_| most, &point)
        .map_err(|e| e.infeasible(|_, least| ("error", least, limit)))
}

/// Why there is no allocation.
enum Failure {
    Tables(AllocateError),
    /// What the groups use as they are, and the least possible of what is limited.
    Infeasible(Price, f64),
}

impl Failure {
    /// The error, in which the least possible and the limit are those of the whole model.
    fn infeasible(self, whole: impl Fn(Price, f64) -> (&'static str, f64, f64)) -> AllocateError {
        match self {
            Failure::Tables(error) => error,
            Failure::Infeasible(bare, least) => {
                let (what, best, asked) = whole(bare, least);
                AllocateError::Infeasible { what, best, asked }
            }
        }
    }
}

/// Solves for the limit that follows from what all groups use as they are.
fn allocate(
    curves: &[Curve],
    dense: Price,
    resource: Resource,
    limit: &dyn Fn(Price) -> f64,
    point: &dyn Fn(&Arrangement) -> Point,
) -> Result<Allocation, Failure> {
    check(curves).map_err(Failure::Tables)?;
    let groups = groups(curves, resource);
    let bare = groups.iter().fold(Price::default(), |sum, g| sum + g[0].price);
    let tables: Vec<Vec<Point>> = groups.iter().map(|g| g.iter().map(point).collect()).collect();
    let chosen = solve(&tables, limit(bare)).map_err(|least| Failure::Infeasible(bare, least))?;
    let picked = groups.iter().zip(&chosen).flat_map(|(group, &i)| &group[i].picks);
    Ok(Allocation::new(curves, dense, picked.copied()))
}

/// Gives every site the same share of its own dense bytes: the candidate of least error that fits, or the
/// smallest one where none does. Of sites that share a weight, the one that covers the fewest is sketched.
///
/// Only errors of the same site are compared, so this serves while their common unit is not known.
///
/// # Errors
/// [`AllocateError::Number`] or [`AllocateError::Duplicate`] for unusable tables.
pub fn uniform(curves: &[Curve], dense: Price, ratio: f64) -> Result<Allocation, AllocateError> {
    check(curves)?;
    let best = |curve: &Curve| {
        let most = curve.dense.bytes as f64 * ratio;
        // Dense is without error, and first.
        if curve.dense.bytes as f64 <= most {
            return None;
        }
        let all = || curve.candidates.iter().enumerate();
        let least_error = all().filter(|(_, c)| c.price.bytes as f64 <= most).min_by(|(_, a), (_, b)| {
            a.squared_error.total_cmp(&b.squared_error).then(a.price.bytes.cmp(&b.price.bytes))
        });
        let smallest =
            || all().min_by_key(|(_, c)| c.price.bytes).filter(|(_, c)| c.price.bytes < curve.dense.bytes);
        least_error.or_else(smallest).map(|(i, _)| i)
    };
    let mut order: Vec<usize> = (0..curves.len()).collect();
    order.sort_by_key(|&i| curves[i].covers.len());
    let mut taken = Vec::new();
    let mut picks = Vec::new();
    for i in order {
        if curves[i].covers.iter().any(|weight| taken.contains(weight)) {
            continue;
        }
        if let Some(candidate) = best(&curves[i]) {
            taken.extend(&curves[i].covers);
            picks.push((i, candidate));
        }
    }
    picks.sort_unstable();
    Ok(Allocation::new(curves, dense, picks))
}

impl Allocation {
    /// Nothing is sketched.
    pub fn dense(price: Price) -> Allocation {
        Allocation { choices: BTreeMap::new(), squared_error: 0.0, price }
    }

    /// The candidates with these positions: of a curve, and in it.
    fn new(curves: &[Curve], dense: Price, picks: impl IntoIterator<Item = (usize, usize)>) -> Allocation {
        let mut made = Allocation::dense(dense);
        for (curve, candidate) in picks {
            made.choose(&curves[curve], curves[curve].candidates[candidate].clone());
        }
        made
    }

    /// Sketches a site that is dense so far.
    pub fn choose(&mut self, curve: &Curve, candidate: Candidate) {
        self.squared_error += candidate.squared_error;
        self.price = self.price + (candidate.price - curve.dense);
        self.choices.insert(curve.site.clone(), candidate);
    }
}

/// How far, relatively, a sum of rounded numbers may exceed its limit.
const ROUNDING: f64 = 1e-9;

/// An arrangement as the solver sees it: how much it uses of what is limited, and what is to be minimised.
#[derive(Clone, Copy, Debug)]
struct Point {
    used: f64,
    lost: f64,
}

/// A step along the hull of one group.
struct Step {
    group: usize,
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
    for (group, (points, hull)) in tables.iter().zip(&hulls).enumerate() {
        steps.extend(hull.windows(2).map(|pair| {
            let (from, to) = (points[pair[0]], points[pair[1]]);
            Step { group, to: pair[1], extra: to.used - from.used, gain: slope(from, to) }
        }));
    }
    // Stable, and slopes never rise along a hull: the steps of one group stay in order.
    steps.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    for step in steps {
        if used + step.extra > limit {
            break;
        }
        used += step.extra;
        chosen[step.group] = step.to;
    }

    while let Some(step) = best_step(tables, &chosen, limit - used) {
        used += step.extra;
        chosen[step.group] = step.to;
    }
    Ok(chosen)
}

/// The move with the steepest slope among those that use at most `left` more.
fn best_step(tables: &[Vec<Point>], chosen: &[usize], left: f64) -> Option<Step> {
    let mut best: Option<Step> = None;
    for (group, points) in tables.iter().enumerate() {
        let from = points[chosen[group]];
        for (to, &point) in points.iter().enumerate() {
            let extra = point.used - from.used;
            if point.lost >= from.lost || extra > left {
                continue;
            }
            let gain = slope(from, point);
            if best.as_ref().is_none_or(|b| gain > b.gain) {
                best = Some(Step { group, to, extra, gain });
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
        if seen.insert(&curve.site, ()).is_some() {
            return Err(AllocateError::Duplicate { site: curve.site.clone() });
        }
        let prices =
            curve.candidates.iter().map(|c| (c.choice.to_string(), c.squared_error, c.price.seconds));
        for (choice, error, seconds) in prices.chain([("dense".to_owned(), 0.0, curve.dense.seconds)]) {
            for (what, found) in [("squared error", error), ("seconds", seconds)] {
                if !(found.is_finite() && found >= 0.0) {
                    return Err(AllocateError::Number { site: curve.site.clone(), choice, what, found });
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
