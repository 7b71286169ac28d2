//! Sites that share weights, and what can be done to them together.

use std::collections::HashMap;

use crate::{Candidate, Curve, Price, Resource};

/// At most one candidate for each site of a group, no two of which cover the same weight.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Arrangement {
    /// Positions of curves, and of candidates in them.
    pub(crate) picks: Vec<(usize, usize)>,
    /// Sum of the squared errors.
    pub(crate) squared_error: f64,
    /// What the group uses.
    pub(crate) price: Price,
}

/// Arrangements of a group that are all listed, at most.
const MOST_LISTED: usize = 1 << 14;

/// Partial choices that are looked at to solve a group for one multiplier, at most; beyond that it is solved greedily.
const MOST_STATES: usize = 1 << 16;

/// The groups of connected sites, in the order of their first sites, each with its arrangements, the empty one first.
pub(crate) fn groups(curves: &[Curve], resource: Resource) -> Vec<Vec<Arrangement>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, curve) in curves.iter().enumerate() {
        let touches = |j: &usize| curves[*j].covers.iter().any(|weight| curve.covers.contains(weight));
        let (mut joined, rest): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| group.iter().any(touches));
        joined.push(vec![i]);
        groups = rest;
        groups.push(joined.concat());
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort_unstable();
    let arranged = |group: &Vec<usize>| match group.as_slice() {
        &[only] => alone(only, &curves[only]),
        several => Group::new(curves, several, resource).arrangements(),
    };
    groups.iter().map(arranged).collect()
}

/// A site by itself: as it is, and with each of its candidates.
fn alone(position: usize, curve: &Curve) -> Vec<Arrangement> {
    let with = |(i, c): (usize, &Candidate)| Arrangement {
        picks: vec![(position, i)],
        squared_error: c.squared_error,
        price: c.price,
    };
    let bare = Arrangement { price: curve.dense, ..Arrangement::default() };
    std::iter::once(bare).chain(curve.candidates.iter().enumerate().map(with)).collect()
}

/// Several sites that are connected by shared weights.
struct Group {
    resource: Resource,
    members: Vec<Member>,
    /// Number of distinct weights.
    weights: usize,
    /// What the sites of one weight use as they are.
    bare: Price,
}

/// A site of a group.
struct Member {
    position: usize,
    /// Its weights, numbered within the group, ascending.
    covers: Vec<usize>,
    /// Candidates that no other one of the site beats.
    changes: Vec<Change>,
}

/// What a candidate does to the dense site.
#[derive(Clone, Copy)]
struct Change {
    /// The candidate's position.
    candidate: usize,
    squared_error: f64,
    /// What it uses beyond the dense site.
    price: Price,
}

impl Group {
    fn new(curves: &[Curve], group: &[usize], resource: Resource) -> Group {
        let mut weights: Vec<usize> = group.iter().flat_map(|&i| curves[i].covers.clone()).collect();
        weights.sort_unstable();
        weights.dedup();
        let member = |&i: &usize| {
            let curve = &curves[i];
            let cost = |c: &Candidate| (c.price.of(resource), c.squared_error);
            let beaten = |(at, c): &(usize, &Candidate)| {
                let this = cost(c);
                let beats = |(j, other): (usize, &Candidate)| {
                    let other = cost(other);
                    other.0 <= this.0 && other.1 <= this.1 && (other != this || j < *at)
                };
                this.0 >= curve.dense.of(resource) || curve.candidates.iter().enumerate().any(beats)
            };
            let kept = curve.candidates.iter().enumerate().filter(|c| !beaten(c));
            let mut covers: Vec<usize> =
                curve.covers.iter().filter_map(|w| weights.binary_search(w).ok()).collect();
            covers.sort_unstable();
            Member {
                position: i,
                covers,
                changes: kept
                    .map(|(candidate, c)| Change {
                        candidate,
                        squared_error: c.squared_error,
                        price: c.price - curve.dense,
                    })
                    .collect(),
            }
        };
        let single = group.iter().filter(|&&i| curves[i].covers.len() == 1);
        let bare = single.fold(Price::default(), |sum, &i| sum + curves[i].dense);
        Group { resource, members: group.iter().map(member).collect(), weights: weights.len(), bare }
    }

    fn empty(&self) -> Arrangement {
        Arrangement { price: self.bare, ..Arrangement::default() }
    }

    /// All arrangements, the empty one first, or those at the corners of the hull where there are too many.
    fn arrangements(&self) -> Vec<Arrangement> {
        let mut all = vec![(self.empty(), vec![false; self.weights])];
        for member in &self.members {
            for i in 0..all.len() {
                if member.covers.iter().any(|&w| all[i].1[w]) {
                    continue;
                }
                let mut taken = all[i].1.clone();
                member.covers.iter().for_each(|&w| taken[w] = true);
                let with: Vec<_> = member
                    .changes
                    .iter()
                    .map(|change| (extended(&all[i].0, member, change), taken.clone()))
                    .collect();
                all.extend(with);
                if all.len() > MOST_LISTED {
                    return self.corners();
                }
            }
        }
        all.into_iter().map(|(arrangement, _)| arrangement).collect()
    }

    /// The arrangements at the corners of the lower convex hull, and the empty one.
    fn corners(&self) -> Vec<Arrangement> {
        let (least_used, least_lost) = (self.best([1.0, 0.0]), self.best([0.0, 1.0]));
        let mut corners = vec![self.empty(), least_used.clone(), least_lost.clone()];
        let mut between = vec![(least_used, least_lost)];
        while let Some((a, b)) = between.pop() {
            let used = b.price.of(self.resource) - a.price.of(self.resource);
            let lost = a.squared_error - b.squared_error;
            if used <= 0.0 || lost <= 0.0 {
                continue;
            }
            let value = |x: &Arrangement| lost * x.price.of(self.resource) + used * x.squared_error;
            let corner = self.best([lost, used]);
            if value(&corner) < value(&a) * (1.0 - 1e-12) && corner != b {
                corners.push(corner.clone());
                between.extend([(a, corner.clone()), (corner, b)]);
            }
        }
        corners
    }

    /// The arrangement of the least `weight[0] · used + weight[1] · lost`.
    fn best(&self, weight: [f64; 2]) -> Arrangement {
        let value = |c: &Change| weight[0] * c.price.of(self.resource) + weight[1] * c.squared_error;
        let best = |m: &Member| {
            let least = m.changes.iter().min_by(|a, b| value(a).total_cmp(&value(b)))?;
            Some((value(least), *least)).filter(|(value, _)| *value < 0.0)
        };
        let gains: Vec<Option<(f64, Change)>> = self.members.iter().map(best).collect();
        let values: Vec<f64> = gains.iter().map(|gain| gain.map_or(0.0, |(value, _)| value)).collect();
        let mut search = Search { group: self, values: &values, known: HashMap::new() };
        let picked = match search.least(0, 0) {
            Some(_) => search.picked(),
            None => self.greedy(&values),
        };
        let change = |i: usize| gains[i].map(|(_, change)| (i, change));
        picked
            .into_iter()
            .filter_map(change)
            .fold(self.empty(), |sum, (i, change)| extended(&sum, &self.members[i], &change))
    }

    /// Disjoint members, those of the least value first.
    fn greedy(&self, values: &[f64]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).filter(|&i| values[i] < 0.0).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let mut taken = vec![false; self.weights];
        order.retain(|&i| {
            let free = self.members[i].covers.iter().all(|&w| !taken[w]);
            self.members[i].covers.iter().filter(|_| free).for_each(|&w| taken[w] = true);
            free
        });
        order.sort_unstable();
        order
    }
}

/// An arrangement with one more site sketched.
fn extended(to: &Arrangement, member: &Member, change: &Change) -> Arrangement {
    let mut picks = to.picks.clone();
    picks.push((member.position, change.candidate));
    Arrangement {
        picks,
        squared_error: to.squared_error + change.squared_error,
        price: to.price + change.price,
    }
}

/// Finds the disjoint members of the least total value, weight by weight.
struct Search<'a> {
    group: &'a Group,
    /// By member; never above 0.
    values: &'a [f64],
    /// By weight and the weights taken from there on: the least value, and the member taken there.
    known: HashMap<(usize, u128), (f64, Option<usize>)>,
}

impl Search<'_> {
    /// The least value of what can be done from a weight on; `None` where that takes too long to find out.
    fn least(&mut self, weight: usize, taken: u128) -> Option<f64> {
        if self.group.weights > 128 || self.known.len() > MOST_STATES {
            return None;
        }
        if weight == self.group.weights {
            return Some(0.0);
        }
        if let Some((value, _)) = self.known.get(&(weight, taken)) {
            return Some(*value);
        }
        let after = |taken: u128| taken & !(1 << weight);
        let mut best = (self.least(weight + 1, after(taken))?, None);
        for i in 0..self.values.len() {
            let covers = &self.group.members[i].covers;
            let mask = covers.iter().fold(0u128, |mask, &w| mask | 1 << w);
            if covers.first() != Some(&weight) || mask & taken != 0 || self.values[i] >= 0.0 {
                continue;
            }
            let value = self.values[i] + self.least(weight + 1, after(taken | mask))?;
            if value < best.0 {
                best = (value, Some(i));
            }
        }
        self.known.insert((weight, taken), best);
        Some(best.0)
    }

    /// The members that were found.
    fn picked(&self) -> Vec<usize> {
        let (mut taken, mut picked) = (0u128, Vec::new());
        for weight in 0..self.group.weights {
            let member = self.known.get(&(weight, taken)).and_then(|(_, member)| *member);
            picked.extend(member);
            let covers = member.map_or(&[][..], |i| &self.group.members[i].covers);
            taken = covers.iter().fold(taken, |mask, &w| mask | 1 << w) & !(1 << weight);
        }
        picked
    }
}
