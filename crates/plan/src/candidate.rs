//! What can be done to a module, and what each way loses and costs.

use crate::Choice;

/// One way to treat a module.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    /// What would be done.
    pub choice: Choice,
    /// Predicted squared error of the model's output that this alone would cause. The unit is the same for
    /// all modules and schemes, so that errors of different modules may be added.
    pub error: f64,
    /// Stored bytes.
    pub bytes: u64,
    /// Operations of one run.
    pub flops: u64,
    /// Predicted time of one run.
    pub seconds: f64,
}

/// Everything that can be done to one module.
#[derive(Clone, PartialEq, Debug)]
pub struct Curve {
    /// The module.
    pub module: String,
    /// Leaving it as it is.
    pub dense: Candidate,
    /// The other ways, in any order.
    pub points: Vec<Candidate>,
}

/// What a candidate uses, and what may be scarce.
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
}

impl Candidate {
    /// How much of a resource it uses. Counts above 2^53 are rounded.
    pub fn cost(&self, resource: Resource) -> f64 {
        match resource {
            Resource::Bytes => self.bytes as f64,
            Resource::Flops => self.flops as f64,
            Resource::Seconds => self.seconds,
        }
    }
}

impl Curve {
    /// Every candidate, dense first.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        std::iter::once(&self.dense).chain(&self.points)
    }

    /// Removes, and returns, the points that lose at least as much as another candidate and cost no less. Of
    /// equal points the first stays.
    pub fn drop_dominated(&mut self, resource: Resource) -> Vec<Candidate> {
        let all: Vec<(f64, f64)> = self.candidates().map(|c| (c.cost(resource), c.error)).collect();
        let mut position = 0;
        self.remove(|_| {
            position += 1;
            let this = all[position];
            let beats = |(i, other): (usize, &(f64, f64))| {
                other.0 <= this.0 && other.1 <= this.1 && (*other != this || i < position)
            };
            all.iter().enumerate().any(beats)
        })
    }

    fn remove(&mut self, unwanted: impl FnMut(&mut Candidate) -> bool) -> Vec<Candidate> {
        self.points.extract_if(.., unwanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(rank: usize, error: f64, bytes: u64, seconds: f64) -> Candidate {
        let scheme = if rank == 0 { "dense" } else { "lowrank" };
        Candidate { choice: Choice::new(scheme, rank), error, bytes, flops: 2 * bytes, seconds }
    }

    fn curve(points: Vec<Candidate>) -> Curve {
        Curve { module: "fc1".to_owned(), dense: candidate(0, 0.0, 100, 1.0), points }
    }

    fn ranks(points: &[Candidate]) -> Vec<usize> {
        points.iter().map(|p| p.choice.rank).collect()
    }

    #[test]
    fn dominated_points_go() {
        let mut curve = curve(vec![
            candidate(1, 4.0, 20, 0.2),
            candidate(2, 4.0, 30, 0.1), // as bad, larger, but faster
            candidate(3, 1.0, 60, 0.6),
            candidate(4, 1.0, 60, 0.6),  // the same again
            candidate(5, 0.5, 100, 0.9), // as large as dense
            candidate(6, 5.0, 10, 2.0),
        ]);
        let mut by_time = curve.clone();
        assert_eq!(ranks(&curve.drop_dominated(Resource::Bytes)), [2, 4, 5]);
        assert_eq!(ranks(&curve.points), [1, 3, 6]);
        assert_eq!(ranks(&by_time.drop_dominated(Resource::Seconds)), [1, 4, 6]);
        assert_eq!(ranks(&by_time.points), [2, 3, 5]);
        assert!(by_time.drop_dominated(Resource::Seconds).is_empty());
    }
}
