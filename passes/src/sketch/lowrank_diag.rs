//! Two factors and a diagonal in place of a square weight: `x W ≈ (x A) B + x ∘ d`.
//!
//! A layer that mostly passes its inputs on, each to one output, has a great diagonal that no factors of low rank hold. With
//! the second moment `C` of the inputs and the metric `G` of the outputs the best factors beside a diagonal are those of the
//! whitened `W - diag(d)`, and the best diagonal beside factors solves `(C ∘ G) d = diag(C (W - A B) G)`. The two are taken in turns, from
//! `d = 0` on, so that the error is never above that of the factors alone, and never rises, but for what a randomized
//! decomposition of a large weight loses; the equations are solved by sweeps
//! of Gauss and Seidel, none of which makes it rise. It takes `rank (d_in + d_out) + d_in` numbers.
//!
//! ```text
//! graph @before(%x: f32[N, 48]) -> (y: f32[N, 48]) {
//!   %0 = const #5be1c0 : f32[48, 48]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 48]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 48]) -> (y: f32[N, 48]) {
//!   %0 = const lowrank-diag.factor1(#5be1c0, rank 8) : f32[48, 8]  // fc1.weight left
//!   %1 = const lowrank-diag.factor2(#5be1c0, rank 8) : f32[8, 48]  // fc1.weight left
//!   %2 = const lowrank-diag.factor3(#5be1c0, rank 8) : f32[48]  // fc1.weight right
//!   %3 = matmul %x, %0 : f32[N, 8]  // fc1/MatMul left
//!   %4 = matmul %3, %1 : f32[N, 48]  // fc1/MatMul left
//!   %5 = mul %x, %2 : f32[N, 48]  // fc1/MatMul left
//!   %6 = add %4, %5 : f32[N, 48]  // fc1/MatMul right
//!   return %6
//! }
//! ```
//!
//! Deliberately absent: convolutions of more than one tap. Other sparse matrices beside factors are those of `lowrank-sparse`.

use margay_ir::Graph;
use margay_plan::Settings;
use margay_randnla::{Contents, LowRank, LowRankOptions, Matrix, RandnlaError, Structure, Whitening};
use serde::{Deserialize, Serialize};

use super::algebra::{Algebraic, structure};
use super::forms::{Structured, Subject, contents, offered, sites};
use super::{Context, Factored, Fitted, Layer, Scheme, SchemeFacts, Site, reads};

/// Low-rank factors and a diagonal.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowRankDiagScheme;

/// What a plan says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LowRankDiagSettings {
    /// Columns of the left factor.
    rank: usize,
}

impl LowRankDiagSettings {
    /// Factors of a rank.
    pub(super) fn new(rank: usize) -> LowRankDiagSettings {
        LowRankDiagSettings { rank }
    }
}

impl Scheme for LowRankDiagScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: LowRankDiag::NAME,
            only_by_name: Some(
                "a diagonal pays for layers that pass their inputs on, which few trained ones do",
            ),
            is_storage: false,
            check: reads::<LowRankDiagSettings>,
            examples: &["rank = 8"],
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<LowRankDiag>(g)
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        Structured::<LowRankDiag>::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<LowRankDiag>::fit(context)
    }

    /// None: a map with a diagonal is of no low rank.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

/// The extent of a square weight.
#[derive(Debug)]
pub(super) struct LowRankDiag(usize);

/// Turns after which the error hardly falls any further.
const TURNS: usize = 12;

impl Algebraic for LowRankDiag {
    const NAME: &'static str = "lowrank-diag";

    const SEEDED: bool = false;

    type Settings = LowRankDiagSettings;

    fn of(layer: &Layer) -> Option<LowRankDiag> {
        (layer.d_in == layer.d_out).then_some(LowRankDiag(layer.d_in))
    }

    fn structure(&self, s: &LowRankDiagSettings) -> Result<Structure, String> {
        let (d, rank) = (self.0, s.rank);
        offered("rank", rank, d)?;
        structure(&format!("{d}x{rank} · {rank}x{d} + diag({d})"))
    }

    fn contents(&self, subject: &Subject, s: &LowRankDiagSettings) -> Result<Vec<Contents>, RandnlaError> {
        let Subject { weight, seen, .. } = subject;
        let whitening = seen.inputs().map(|moments| moments.whitening()).transpose()?;
        let outputs = seen.outputs()?;
        let (whitening, outputs) = (whitening.as_ref(), outputs.as_ref());
        let [c, g] = [second_moment(whitening, self.0)?, second_moment(outputs, self.0)?];
        let options = LowRankOptions { max_rank: Some(s.rank), ..LowRankOptions::default() };
        let mut diagonal = vec![0f64; self.0];
        let mut found = None;
        for _ in 0..TURNS {
            let beside = Matrix::from_fn(self.0, self.0, |i, j| {
                weight.at(i, j) - if i == j { diagonal[i] } else { 0.0 }
            });
            let factors = LowRank::new(&beside, whitening, outputs, &options)?.factors(s.rank)?;
            let product = factors.left.product(&factors.right)?;
            let rest = Matrix::from_fn(self.0, self.0, |i, j| weight.at(i, j) - product.at(i, j));
            sweep(&mut diagonal, &rest, &c, &g)?;
            found = Some(factors);
        }
        let factors = found.expect("there is at least one turn");
        let diagonal = diagonal.iter().map(|d| *d as f32).collect();
        Ok(contents([factors.left.to_row_major(), factors.right.to_row_major(), diagonal]))
    }
}

/// Sweeps over the equations of the diagonal for a turn.
const SWEEPS: usize = 4;

/// Lowers the error of a diagonal beside factors, of which `rest` is what they leave of the weight.
fn sweep(diagonal: &mut [f64], rest: &Matrix, c: &Matrix, g: &Matrix) -> Result<(), RandnlaError> {
    let size = diagonal.len();
    let entry = |i: usize, j: usize| c.at(i, j) * g.at(i, j);
    let moved = c.product(rest)?;
    let wanted = |i: usize| (0..size).map(|k| moved.at(i, k) * g.at(k, i)).sum::<f64>();
    let held = |i: usize| (0..size).map(|j| entry(i, j) * diagonal[j]).sum::<f64>();
    let mut missing: Vec<f64> = (0..size).map(|i| wanted(i) - held(i)).collect();
    for _ in 0..SWEEPS {
        for (j, d) in diagonal.iter_mut().enumerate() {
            let step = missing[j] / entry(j, j);
            *d += step;
            missing.iter_mut().enumerate().for_each(|(i, m)| *m -= entry(i, j) * step);
        }
    }
    Ok(())
}

/// The second moment that a whitening is a root of; the identity without one.
fn second_moment(whitening: Option<&Whitening>, size: usize) -> Result<Matrix, RandnlaError> {
    match whitening {
        None => Ok(Matrix::from_fn(size, size, |i, j| f64::from(i == j))),
        Some(whitening) => {
            let root = whitening.triangle();
            root.transposed().product(&root)
        }
    }
}
