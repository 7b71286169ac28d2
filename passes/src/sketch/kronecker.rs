//! A weight as a sum of Kronecker products: `W ≈ Σᵢ Aᵢ ⊗ Bᵢ`.
//!
//! With `Bᵢ [p, r]` a weight `[m p, n r]` takes `terms (m n + p r)` numbers. The nearest sum is a low-rank approximation of
//! the weight rearranged, with a row for each block and a column for each place in it (Van Loan and Pitsianis,
//! *Approximation with Kronecker Products*, 1993). `x` is cut into `m` pieces of length `p`, all multiplied with `B₁, B₂, …`
//! side by side, and then the pieces are joined by the `Aᵢ` below each other: `(I(m) ⊗ p x terms·r) · (m·terms x n ⊗ I(r))` in the
//! algebra, of which no matrix of the size of the weight is made.
//!
//! ```text
//! graph @before(%x: f32[N, 32]) -> (y: f32[N, 64]) {
//!   %0 = const #5be1c0 : f32[32, 64]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 64]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 32]) -> (y: f32[N, 64]) {
//!   %0 = const kronecker.factor1(#5be1c0, block [4, 8], terms 2) : f32[4, 16]  // fc1.weight left
//!   %1 = const kronecker.factor2(#5be1c0, block [4, 8], terms 2) : f32[16, 8]  // fc1.weight right
//!   %2 = reshape %x {shape = [N, 8, 4]} : f32[N, 8, 4]  // fc1/MatMul left
//!   %3 = matmul %2, %0 : f32[N, 8, 16]  // fc1/MatMul left
//!   %4 = reshape %3 {shape = [N, 16, 8]} : f32[N, 16, 8]  // fc1/MatMul left
//!   %5 = transpose %4 {perm = [0, 2, 1]} : f32[N, 8, 16]  // fc1/MatMul left
//!   %6 = matmul %5, %1 : f32[N, 8, 8]  // fc1/MatMul left
//!   %7 = transpose %6 {perm = [0, 2, 1]} : f32[N, 8, 8]  // fc1/MatMul right
//!   %8 = reshape %7 {shape = [N, 64]} : f32[N, 64]  // fc1/MatMul right
//!   return %8
//! }
//! ```
//!
//! Blocks are not chosen by what calibration saw; the error is. Deliberately absent: convolutions of more than one tap.

use margay_ir::Graph;
use margay_plan::Settings;
use margay_randnla::{Contents, LowRank, LowRankOptions, Matrix, RandnlaError, Structure};
use serde::{Deserialize, Serialize};

use super::algebra::{Algebraic, structure};
use super::forms::{Structured, Subject, contents, offered, sites};
use super::{Context, Factored, Fitted, Layer, Scheme, SchemeFacts, Site, reads};

/// Sums of Kronecker products.
#[derive(Clone, Copy, Debug, Default)]
pub struct KroneckerScheme;

/// What a plan says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KroneckerSettings {
    /// Rows and columns of the second matrix of each product: divisors of those of the weight.
    block: [usize; 2],
    /// Products that are summed.
    terms: usize,
}

impl Scheme for KroneckerScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: Kronecker::NAME,
            only_by_name: Some("it does not look at inputs when it is fitted: it is a form to be trained"),
            is_storage: false,
            examples: &["block = [4, 8], terms = 2"],
            check: reads::<KroneckerSettings>,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<Kronecker>(g)
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        Structured::<Kronecker>::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<Kronecker>::fit(context)
    }

    /// None: three operators lie between its products.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(super) struct Kronecker {
    d_in: usize,
    d_out: usize,
}

impl Kronecker {
    /// Rows and columns of the first matrices.
    fn outer(&self, s: &KroneckerSettings) -> [usize; 2] {
        [self.d_in / s.block[0], self.d_out / s.block[1]]
    }
}

impl Algebraic for Kronecker {
    const NAME: &'static str = "kronecker";

    const SEEDED: bool = false;

    type Settings = KroneckerSettings;

    fn of(layer: &Layer) -> Option<Kronecker> {
        Some(Kronecker { d_in: layer.d_in, d_out: layer.d_out })
    }

    fn structure(&self, s: &KroneckerSettings) -> Result<Structure, String> {
        let ([p, r], KroneckerSettings { terms, .. }) = (s.block, *s);
        if p == 0 || r == 0 || !self.d_in.is_multiple_of(p) || !self.d_out.is_multiple_of(r) {
            return Err(format!(
                "blocks of {p} x {r} do not divide a weight of {} x {}",
                self.d_in, self.d_out
            ));
        }
        let [m, n] = self.outer(s);
        offered("a number of terms of", terms, (m * n).min(p * r))?;
        structure(&format!("(I({m}) ⊗ {p}x{}) · ({}x{n} ⊗ I({r}))", terms * r, m * terms))
    }

    fn contents(&self, subject: &Subject, s: &KroneckerSettings) -> Result<Vec<Contents>, RandnlaError> {
        let weight = &subject.weight;
        let ([p, r], [m, n]) = (s.block, self.outer(s));
        let rearranged =
            Matrix::from_fn(m * n, p * r, |i, j| weight.at(i / n * p + j / r, i % n * r + j % r));
        let options = LowRankOptions { max_rank: Some(s.terms), ..LowRankOptions::default() };
        let found = LowRank::new(&rearranged, None, None, &options)?.factors(s.terms)?;
        let first = Matrix::from_fn(p, s.terms * r, |i, j| found.right.at(j / r, i * r + j % r));
        let second = Matrix::from_fn(m * s.terms, n, |i, j| found.left.at(i / s.terms * n + j, i % s.terms));
        Ok(contents([first.to_row_major(), second.to_row_major()]))
    }
}
