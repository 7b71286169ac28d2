//! Choices against every choice there is.

use margay_tensor::random::Philox;

use super::*;
use crate::Choice;

/// A site from rows (error, bytes); the first is dense. Its candidates are named by their position from 1.
fn curve(site: &str, covers: &[usize], rows: &[(f64, i64)]) -> Curve {
    let price = |bytes: i64| Price { bytes, flops: 3 * bytes, seconds: bytes as f64 * 1e-7 };
    let candidate = |(i, &(squared_error, bytes)): (usize, &(f64, i64))| Candidate {
        choice: Choice { scheme: i.to_string(), ..Choice::dense() },
        squared_error,
        price: price(bytes),
    };
    let candidates = rows.iter().enumerate().skip(1).map(candidate).collect();
    Curve { site: site.to_owned(), covers: covers.to_vec(), dense: price(rows[0].1), candidates }
}

/// What all sites use as they are, where no two share a weight.
fn dense(curves: &[Curve]) -> Price {
    curves.iter().fold(Price::default(), |sum, c| sum + c.dense)
}

fn tables() -> Vec<Curve> {
    vec![
        curve("q", &[0], &[(0.0, 100), (8.5, 10), (2.0, 30), (1.8, 50), (0.5, 70)]),
        curve("v", &[1], &[(0.0, 100), (90.0, 10), (40.0, 30), (20.0, 50), (9.0, 70)]),
    ]
}

/// The positions of the candidates, 0 for dense.
fn picks(curves: &[Curve], allocation: &Allocation) -> Vec<usize> {
    let position =
        |c: &Curve| allocation.choices.get(&c.site).map_or(0, |c| c.choice.scheme.parse().unwrap());
    curves.iter().map(position).collect()
}

fn at_bytes(curves: &[Curve], budget: f64) -> Result<Allocation, AllocateError> {
    least_error(curves, dense(curves), Resource::Bytes, budget)
}

#[test]
fn error_is_bought_where_it_is_cheapest() {
    let at = |budget| picks(&tables(), &at_bytes(&tables(), budget).unwrap());
    assert_eq!(at(20.0), [1, 1]);
    assert_eq!(at(39.0), [1, 1]);
    assert_eq!(at(40.0), [1, 2]);
    assert_eq!(at(80.0), [1, 4]);
    assert_eq!(at(100.0), [2, 4]);
    // The hull of `q` passes below candidate 3; what is left of the budget pays for it all the same.
    assert_eq!(at(155.0), [3, 0]);
    assert_eq!(at(200.0), [0, 0]);
    let found = at_bytes(&tables(), 100.0).unwrap();
    assert_eq!((found.squared_error, found.price.bytes, found.price.flops), (11.0, 100, 300));
    assert!((found.price.seconds / 1e-5 - 1.0).abs() < 1e-12);
}

#[test]
fn a_budget_is_exact_in_bytes_and_up_to_rounding_in_seconds() {
    // The candidate uses a little more than the budget: one part in 2 10^9 and one in 10^8.
    let one = |seconds: f64, bytes: i64| {
        let candidate = Candidate {
            choice: Choice { scheme: "1".into(), ..Choice::dense() },
            squared_error: 1.0,
            price: Price { bytes, flops: 0, seconds },
        };
        let dense = Price { bytes: 10_000_000_000, flops: 0, seconds: 4000.0 };
        vec![Curve { site: "a".into(), covers: vec![0], dense, candidates: vec![candidate] }]
    };
    let met =
        |resource, budget, curves: Vec<Curve>| least_error(&curves, dense(&curves), resource, budget).is_ok();
    assert!(met(Resource::Seconds, 2000.0, one(2000.0 * (1.0 + 5e-10), 0)));
    assert!(!met(Resource::Seconds, 2000.0, one(2000.0 * (1.0 + 1e-8), 0)));
    assert!(met(Resource::Bytes, 4e9, one(0.0, 4_000_000_000)));
    assert!(!met(Resource::Bytes, 4e9, one(0.0, 4_000_000_001)));
}

#[test]
fn what_is_no_site_counts_against_the_budget() {
    let whole = dense(&tables()) + Price { bytes: 1000, flops: 0, seconds: 0.0 };
    let at = |budget| least_error(&tables(), whole, Resource::Bytes, budget);
    let found = at(1100.0).unwrap();
    assert_eq!((picks(&tables(), &found), found.price.bytes), (vec![2, 4], 1100));
    let expected = AllocateError::Infeasible { what: "bytes", best: 1020.0, asked: 1019.0 };
    assert_eq!(at(1019.0), Err(expected));
}

#[test]
fn large_budgets_leave_everything_dense() {
    for resource in [Resource::Bytes, Resource::Flops, Resource::Seconds] {
        let whole = dense(&tables());
        for budget in [whole.of(resource), 10.0 * whole.of(resource), f64::INFINITY] {
            let found = least_error(&tables(), whole, resource, budget).unwrap();
            assert_eq!(found, Allocation::dense(whole));
        }
    }
}

#[test]
fn cost_is_saved_up_to_an_error() {
    let at = |limit| least_cost(&tables(), dense(&tables()), Resource::Bytes, limit).unwrap();
    assert_eq!(picks(&tables(), &at(0.0)), [0, 0]);
    assert_eq!(picks(&tables(), &at(11.0)), [2, 4]);
    assert_eq!(picks(&tables(), &at(1000.0)), [1, 1]);
}

#[test]
fn impossible_goals_say_what_is_possible() {
    let expected = AllocateError::Infeasible { what: "bytes", best: 20.0, asked: 19.0 };
    assert_eq!(at_bytes(&tables(), 19.0), Err(expected));
    let expected = AllocateError::Infeasible { what: "error", best: 0.0, asked: -0.5 };
    let found = least_cost(&tables(), dense(&tables()), Resource::Seconds, -0.5);
    assert_eq!(found, Err(expected.clone()));
    assert_eq!(expected.to_string(), "the error cannot be brought down to -0.5: the least possible is 0");
    assert!(matches!(at_bytes(&tables(), f64::NAN), Err(AllocateError::Infeasible { .. })));
}

#[test]
fn unusable_tables_are_refused() {
    let mut odd = tables();
    odd[1].candidates[2].squared_error = f64::NAN;
    let message = at_bytes(&odd, 100.0).unwrap_err().to_string();
    assert!(message.starts_with("site `v`, 3: `squared error`"), "{message}");
    odd[1].site = "q".to_owned();
    assert!(matches!(uniform(&odd, dense(&odd), 0.5), Err(AllocateError::Duplicate { .. })));
}

#[test]
fn ties_go_to_the_first() {
    let same = [(0.0, 100), (5.0, 50), (5.0, 50)];
    let curves = [curve("a", &[0], &same), curve("b", &[1], &same)];
    assert_eq!(picks(&curves, &at_bytes(&curves, 150.0).unwrap()), [0, 1]);
    let free = [curve("a", &[0], &[(0.0, 100), (0.0, 100)])];
    assert_eq!(picks(&free, &at_bytes(&free, 100.0).unwrap()), [0]);
    assert!(at_bytes(&[], 0.0).unwrap().choices.is_empty());
}

#[test]
fn uniform_gives_each_site_its_share() {
    let mut curves = tables();
    curves.push(curve("small", &[2], &[(0.0, 10), (3.0, 12), (6.0, 8)]));
    let at = |curves: &[Curve], ratio| picks(curves, &uniform(curves, dense(curves), ratio).unwrap());
    // The smallest of `small` is above its share.
    assert_eq!(at(&curves, 0.5), [3, 3, 2]);
    assert_eq!(at(&curves, 1.0), [0, 0, 0]);
    curves.insert(0, curve("both", &[0, 1], &[(0.0, 200), (1.0, 20)]));
    assert_eq!(at(&curves, 0.5), [0, 3, 3, 2]);
}

/// An FFN of two layers that can be sketched one by one or together.
fn pair() -> Vec<Curve> {
    vec![
        curve("up", &[0], &[(0.0, 100), (1.0, 60), (4.0, 30)]),
        curve("down", &[1], &[(0.0, 100), (1.0, 60), (4.0, 30)]),
        curve("both", &[0, 1], &[(0.0, 200), (1.5, 120), (9.0, 40)]),
    ]
}

#[test]
fn sites_that_share_a_weight_exclude_each_other() {
    let whole = Price { bytes: 200, flops: 600, seconds: 2e-5 };
    let at = |budget| {
        let found = least_error(&pair(), whole, Resource::Bytes, budget).unwrap();
        assert!(found.price.bytes as f64 <= budget);
        (picks(&pair(), &found), found.squared_error)
    };
    assert_eq!(at(200.0), (vec![0, 0, 0], 0.0));
    assert_eq!(at(160.0), (vec![1, 0, 0], 1.0));
    assert_eq!(at(120.0), (vec![0, 0, 1], 1.5));
    assert_eq!(at(119.0), (vec![1, 2, 0], 5.0));
    assert_eq!(at(60.0), (vec![2, 2, 0], 8.0));
    assert_eq!(at(40.0), (vec![0, 0, 2], 9.0));
    let error = least_error(&pair(), whole, Resource::Bytes, 39.0);
    assert_eq!(error, Err(AllocateError::Infeasible { what: "bytes", best: 40.0, asked: 39.0 }));
}

/// A few sites with falling and with arbitrary tables; with `shared`, further ones cover two neighbours each.
fn random_curves(seed: u64, shared: bool) -> Vec<Curve> {
    let mut uniform = vec![0.0; 128];
    Philox::new(seed, 0).fill_uniform_f64(0, &mut uniform);
    let mut next = uniform.into_iter();
    let mut draw = |below: f64| next.next().unwrap() * below;
    let mut rows = |dense: f64| {
        let scale = 10f64.powf(draw(4.0) - 2.0);
        let mut rows = vec![(0.0, (dense + draw(dense)) as i64)];
        for _ in 0..1 + draw(5.0) as usize {
            let bytes = 0.1 * dense + draw(1.8 * dense);
            let trend = (-bytes / (0.3 * dense)).exp();
            let shape = if seed.is_multiple_of(2) { trend } else { 0.0 };
            rows.push((scale * (shape + draw(0.2)), bytes as i64));
        }
        rows
    };
    let count = 2 + seed as usize % 3;
    let mut curves: Vec<Curve> = (0..count).map(|i| curve(&format!("m{i}"), &[i], &rows(1000.0))).collect();
    for i in (1..count).filter(|_| shared) {
        let mut rows = rows(2000.0);
        rows[0].1 = curves[i - 1].dense.bytes + curves[i].dense.bytes;
        curves.push(curve(&format!("m{}+m{i}", i - 1), &[i - 1, i], &rows));
    }
    curves
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
    let point = |a: &Arrangement| {
        let (bytes, error) = (a.price.bytes as f64, a.squared_error);
        if exchanged { Point { used: error, lost: bytes } } else { Point { used: bytes, lost: error } }
    };
    groups(curves, Resource::Bytes).iter().map(|g| g.iter().map(point).collect()).collect()
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
            let tables = points(&random_curves(seed, false), exchanged);
            let most: f64 = tables.iter().map(|t| t.iter().map(|p| p.used).fold(0.0, f64::max)).sum::<f64>();
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
        let tables = points(&random_curves(seed, false), false);
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

/// The least error of every choice of candidates that excludes none and fits the budget.
fn least_of_all(curves: &[Curve], taken: &mut Vec<usize>, left: i64) -> Option<f64> {
    let Some((first, rest)) = curves.split_first() else { return (left >= 0).then_some(0.0) };
    let mut best = least_of_all(rest, taken, left);
    if first.covers.iter().any(|w| taken.contains(w)) {
        return best;
    }
    let before = taken.len();
    taken.extend(&first.covers);
    for c in &first.candidates {
        let rest = least_of_all(rest, taken, left - (c.price.bytes - first.dense.bytes));
        let with = rest.map(|e| e + c.squared_error);
        best = [best, with].into_iter().flatten().min_by(f64::total_cmp);
    }
    taken.truncate(before);
    best
}

#[test]
fn one_group_of_sites_that_share_weights_is_solved_exactly() {
    for seed in 0..120 {
        let curves = random_curves(seed, true);
        let single: Vec<Curve> = curves.iter().filter(|c| c.covers.len() == 1).cloned().collect();
        let whole = dense(&single);
        for step in 1..=12 {
            let budget = whole.bytes * step / 12;
            let expected = least_of_all(&curves, &mut Vec::new(), budget - whole.bytes);
            let found = least_error(&curves, whole, Resource::Bytes, budget as f64);
            let Some(expected) = expected else {
                assert!(found.is_err(), "seed {seed}");
                continue;
            };
            let found = found.unwrap();
            assert!(found.price.bytes <= budget, "seed {seed}: {} > {budget}", found.price.bytes);
            let close = (found.squared_error - expected).abs() <= 1e-9 * (1.0 + expected);
            assert!(close, "seed {seed}: {} for {expected}", found.squared_error);
            let mut taken: Vec<usize> = Vec::new();
            for curve in curves.iter().filter(|c| found.choices.contains_key(&c.site)) {
                assert!(curve.covers.iter().all(|w| !taken.contains(w)), "seed {seed}");
                taken.extend(&curve.covers);
            }
        }
    }
}

/// A chain of layers, each of which can also be sketched with the next, so long that arrangements cannot be listed.
#[test]
fn long_chains_are_met_at_the_corners_of_their_hull() {
    let mut curves = Vec::new();
    for i in 0..40usize {
        let scale = 1.0 + (i * 7 % 5) as f64;
        curves.push(curve(&format!("m{i}"), &[i], &[(0.0, 100), (scale, 60), (4.0 * scale, 30)]));
    }
    for i in 1..40usize {
        let scale = 1.0 + (i * 3 % 7) as f64;
        curves.push(curve(
            &format!("p{i}"),
            &[i - 1, i],
            &[(0.0, 200), (0.8 * scale, 110), (5.0 * scale, 40)],
        ));
    }
    let whole = Price { bytes: 4000, flops: 12000, seconds: 4e-4 };
    let mut last = f64::INFINITY;
    let alone =
        |budget: f64| least_error(&curves[..40], whole, Resource::Bytes, budget).unwrap().squared_error;
    for budget in [1200.0, 1800.0, 2400.0, 3000.0, 3600.0] {
        let found = least_error(&curves, whole, Resource::Bytes, budget).unwrap();
        assert!(found.price.bytes as f64 <= budget);
        assert!(found.squared_error <= last, "{} after {last}", found.squared_error);
        assert!(found.squared_error <= alone(budget), "{} for {}", found.squared_error, alone(budget));
        assert!(found.choices.keys().any(|site| site.starts_with('p')));
        last = found.squared_error;
    }
    // With all the weight on bytes the chain falls apart into pairs.
    let least = least_error(&curves, whole, Resource::Bytes, 0.0).unwrap_err();
    assert_eq!(least, AllocateError::Infeasible { what: "bytes", best: 800.0, asked: 0.0 });
}
