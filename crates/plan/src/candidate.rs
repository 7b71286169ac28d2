//! What can be done to a site, and what each way loses and costs.

use std::ops::{Add, Sub};

use crate::Choice;

/// What may be scarce.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Resource {
    /// Stored bytes.
    Bytes,
    /// Operations of a run.
    Flops,
    /// Predicted time of a run.
    Seconds,
}

impl Resource {
    /// `bytes`, `flops` or `seconds`.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Bytes => "bytes",
            Resource::Flops => "flops",
            Resource::Seconds => "seconds",
        }
    }

    /// All of them.
    pub const ALL: [Resource; 3] = [Resource::Bytes, Resource::Flops, Resource::Seconds];
}

/// How much of every resource something uses.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Price {
    /// Stored bytes.
    pub bytes: i64,
    /// Operations of one run.
    pub flops: i64,
    /// Predicted time of one run.
    pub seconds: f64,
}

impl Price {
    /// How much of one resource. Counts above 2^53 are rounded.
    pub fn of(&self, resource: Resource) -> f64 {
        match resource {
            Resource::Bytes => self.bytes as f64,
            Resource::Flops => self.flops as f64,
            Resource::Seconds => self.seconds,
        }
    }
}

impl Add for Price {
    type Output = Price;

    fn add(self, other: Price) -> Price {
        Price {
            bytes: self.bytes + other.bytes,
            flops: self.flops + other.flops,
            seconds: self.seconds + other.seconds,
        }
    }
}

impl Sub for Price {
    type Output = Price;

    fn sub(self, other: Price) -> Price {
        Price {
            bytes: self.bytes - other.bytes,
            flops: self.flops - other.flops,
            seconds: self.seconds - other.seconds,
        }
    }
}

/// One way to sketch a site.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    /// What would be done.
    pub choice: Choice,
    /// Predicted squared error of the model's output that this alone would cause. The unit is the same for
    /// all sites and schemes, so that errors of different sites may be added.
    pub squared_error: f64,
    /// What the site would use then.
    pub price: Price,
}

/// Everything that can be done to one site.
#[derive(Clone, PartialEq, Debug)]
pub struct Curve {
    /// The site.
    pub site: String,
    /// What it changes, by number. Of sites that have a number in common, one at most is sketched.
    pub covers: Vec<usize>,
    /// What the site uses as it is, without error.
    pub dense: Price,
    /// The ways to sketch it, in any order.
    pub candidates: Vec<Candidate>,
}

impl Curve {
    /// Removes, and returns, the candidates that lose at least as much as another one, or as the dense site, and cost no
    /// less. Of equal ones the first stays.
    pub fn drop_dominated(&mut self, resource: Resource) -> Vec<Candidate> {
        let dense = (self.dense.of(resource), 0.0);
        let cost = |c: &Candidate| (c.price.of(resource), c.squared_error);
        let all: Vec<(f64, f64)> = std::iter::once(dense).chain(self.candidates.iter().map(cost)).collect();
        let mut position = 0;
        let dominated = |_: &mut Candidate| {
            position += 1;
            let this = all[position];
            let beats = |(i, other): (usize, &(f64, f64))| {
                other.0 <= this.0 && other.1 <= this.1 && (*other != this || i < position)
            };
            all.iter().enumerate().any(beats)
        };
        self.candidates.extract_if(.., dominated).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(bytes: i64, seconds: f64) -> Price {
        Price { bytes, flops: 2 * bytes, seconds }
    }

    fn candidate(name: usize, squared_error: f64, bytes: i64, seconds: f64) -> Candidate {
        let choice = Choice { scheme: name.to_string(), ..Choice::dense() };
        Candidate { choice, squared_error, price: price(bytes, seconds) }
    }

    fn curve(candidates: Vec<Candidate>) -> Curve {
        Curve { site: "fc1".to_owned(), covers: vec![0], dense: price(100, 1.0), candidates }
    }

    fn names(candidates: &[Candidate]) -> Vec<&str> {
        candidates.iter().map(|c| c.choice.scheme.as_str()).collect()
    }

    #[test]
    fn dominated_candidates_go() {
        let mut curve = curve(vec![
            candidate(1, 4.0, 20, 0.2),
            candidate(2, 4.0, 30, 0.1), // as bad, larger, but faster
            candidate(3, 1.0, 60, 0.6),
            candidate(4, 1.0, 60, 0.6),  // the same again
            candidate(5, 0.5, 100, 0.9), // as large as dense
            candidate(6, 5.0, 10, 2.0),
        ]);
        let mut by_time = curve.clone();
        assert_eq!(names(&curve.drop_dominated(Resource::Bytes)), ["2", "4", "5"]);
        assert_eq!(names(&curve.candidates), ["1", "3", "6"]);
        assert_eq!(names(&by_time.drop_dominated(Resource::Seconds)), ["1", "4", "6"]);
        assert_eq!(names(&by_time.candidates), ["2", "3", "5"]);
        assert!(by_time.drop_dominated(Resource::Seconds).is_empty());
    }
}
