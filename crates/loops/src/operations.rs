//! How much kernels compute, for predicted times.

use crate::{Binary, Kernel, Stmt, Unary};

/// What a loop nest computes, counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Operations {
    /// Additions, multiplications, comparisons and the like.
    pub cheap: u64,
    /// Exponentials, error functions and their kin.
    pub evaluations: u64,
}

impl Unary {
    /// Whether it costs tens of operations: exponentials, error functions and their kin.
    pub fn is_evaluation(self) -> bool {
        match self {
            Unary::Exp | Unary::Log | Unary::Erf | Unary::Tanh | Unary::Sigmoid | Unary::Sin | Unary::Cos => {
                true
            }
            Unary::Neg
            | Unary::Abs
            | Unary::Sqrt
            | Unary::Floor
            | Unary::Ceil
            | Unary::Round
            | Unary::Not
            | Unary::IsNan
            | Unary::RoundF16
            | Unary::RoundBf16 => false,
        }
    }
}

impl Kernel {
    /// How much the kernel computes at most: loops run as often as they may. Of reads, writes and positions nothing is
    /// counted.
    pub fn operations(&self) -> Operations {
        fn count(body: &[Stmt], times: u64, sum: &mut Operations) {
            let add = |sum: &mut u64, n: u64| *sum = sum.saturating_add(n);
            for stmt in body {
                match stmt {
                    Stmt::Unary { op, .. } if op.is_evaluation() => add(&mut sum.evaluations, times),
                    Stmt::Binary { op: Binary::Pow, .. } => add(&mut sum.evaluations, times),
                    Stmt::Unary { .. } | Stmt::Binary { .. } | Stmt::Select { .. } | Stmt::Cast { .. } => {
                        add(&mut sum.cheap, times);
                    }
                    Stmt::Literal { .. }
                    | Stmt::Size { .. }
                    | Stmt::IndexValue { .. }
                    | Stmt::Load { .. }
                    | Stmt::Store { .. }
                    | Stmt::Require { .. } => {}
                    Stmt::Loop { extent, body, .. } => {
                        count(body, times.saturating_mul(extent.bound() as u64), sum);
                    }
                    Stmt::Reduce { extent, results, body, .. } => {
                        let times = times.saturating_mul(extent.bound() as u64);
                        add(&mut sum.cheap, times.saturating_mul(results.len() as u64));
                        count(body, times, sum);
                    }
                }
            }
        }
        let mut sum = Operations::default();
        count(&self.body, 1, &mut sum);
        sum
    }
}
