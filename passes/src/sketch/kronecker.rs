//! A weight as a sum of Kronecker products: `W ≈ Σᵢ Aᵢ ⊗ Bᵢ`.
//!
//! With `Bᵢ [p, r]` a weight `[m p, n r]` takes `terms (m n + p r)` numbers. The nearest sum is a low-rank approximation of
//! the weight rearranged, with a row for each block and a column for each place in it (Van Loan and Pitsianis,
//! *Approximation with Kronecker Products*, 1993). `x` is cut into `m` pieces of length `p`, all multiplied with `B₁, B₂, …`
//! side by side, and then the pieces are joined by the `Aᵢ` below each other: no matrix of the size of the weight is made.
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
//!   %4 = reshape %3 {shape = [N, 8, 2, 8]} : f32[N, 8, 2, 8]  // fc1/MatMul left
//!   %5 = transpose %4 {perm = [0, 3, 1, 2]} : f32[N, 8, 8, 2]  // fc1/MatMul left
//!   %6 = reshape %5 {shape = [N, 8, 16]} : f32[N, 8, 16]  // fc1/MatMul left
//!   %7 = matmul %6, %1 : f32[N, 8, 8]  // fc1/MatMul right
//!   %8 = transpose %7 {perm = [0, 2, 1]} : f32[N, 8, 8]  // fc1/MatMul right
//!   %9 = reshape %8 {shape = [N, 64]} : f32[N, 64]  // fc1/MatMul right
//!   return %9
//! }
//! ```
//!
//! Blocks are not chosen by what calibration saw; the error is. Deliberately absent: convolutions.

use margay_ir::ops::{MatMul, Reshape, Transpose};
use margay_ir::{AddError, Graph, NodeId, Op, Part, Value};
use margay_randnla::{LowRank, LowRankOptions, Matrix, RandnlaError};
use margay_tensor::Dim;
use serde::{Deserialize, Serialize};

use super::structured::{Form, Structured, Subject, offered, sites};
use super::{Context, Factored, Fitted, Layer, Replacement, Scheme, SchemeFacts, Site, reads};

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
            only_by_name: Some(
                "not compared with low rank on trained weights yet: it is a form to be trained",
            ),
            is_storage: false,
            examples: &["block = [4, 8], terms = 2"],
            check: reads::<KroneckerSettings>,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<Kronecker>(g)
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

impl Form for Kronecker {
    const NAME: &'static str = "kronecker";

    type Settings = KroneckerSettings;

    fn of(_: &Graph, layer: &Layer) -> Option<Kronecker> {
        layer.is_product().then_some(Kronecker { d_in: layer.d_in, d_out: layer.d_out })
    }

    /// `[p, terms r]`, then `[m terms, n]`.
    fn shapes(&self, s: &KroneckerSettings) -> Result<Vec<Vec<usize>>, String> {
        let ([p, r], KroneckerSettings { terms, .. }) = (s.block, *s);
        if p == 0 || r == 0 || !self.d_in.is_multiple_of(p) || !self.d_out.is_multiple_of(r) {
            return Err(format!(
                "blocks of {p} x {r} do not divide a weight of {} x {}",
                self.d_in, self.d_out
            ));
        }
        let [m, n] = self.outer(s);
        offered("a number of terms of", terms, (m * n).min(p * r))?;
        Ok(vec![vec![p, terms * r], vec![m * terms, n]])
    }

    fn factors(&self, subject: &Subject, s: &KroneckerSettings) -> Result<Vec<Vec<f32>>, RandnlaError> {
        let weight = &subject.weight;
        let ([p, r], [m, n]) = (s.block, self.outer(s));
        let rearranged =
            Matrix::from_fn(m * n, p * r, |i, j| weight.at(i / n * p + j / r, i % n * r + j % r));
        let options = LowRankOptions { max_rank: Some(s.terms), ..LowRankOptions::default() };
        let found = LowRank::new(&rearranged, None, None, &options)?.factors(s.terms)?;
        let first = Matrix::from_fn(p, s.terms * r, |i, j| found.right.at(j / r, i * r + j % r));
        let second = Matrix::from_fn(m * s.terms, n, |i, j| found.left.at(i / s.terms * n + j, i % s.terms));
        Ok(vec![first.to_row_major(), second.to_row_major()])
    }

    fn weight(&self, s: &KroneckerSettings, factors: &[Vec<f32>]) -> Matrix {
        let ([p, r], [_, n], terms) = (s.block, self.outer(s), s.terms);
        Matrix::from_fn(self.d_in, self.d_out, |i, j| {
            let product = |t: usize| {
                let a = factors[1][(i / p * terms + t) * n + j / r];
                f64::from(a) * f64::from(factors[0][i % p * terms * r + t * r + j % r])
            };
            (0..terms).map(product).sum()
        })
    }

    fn nodes(
        &self,
        work: &mut Replacement<'_>,
        at: NodeId,
        s: &KroneckerSettings,
        factors: &[Value],
    ) -> Result<Value, AddError> {
        let ([_, r], [m, n], terms) = (s.block, self.outer(s), s.terms);
        let origin = work.graph.node(at).origin.clone();
        let x = work.input(at);
        let mut lead = work.ty(x).shape.clone();
        lead.pop();
        let rows = lead.len();
        let mut add = |op: Op, inputs: &[Value], part| work.add(op, inputs, origin.part(part));
        let shape = |last: &[usize]| {
            let last = last.iter().map(|extent| Dim::from(*extent));
            Reshape { shape: lead.iter().cloned().chain(last).collect() }.into()
        };
        let perm = |last: &[usize]| {
            Transpose { perm: (0..rows).chain(last.iter().map(|axis| rows + axis)).collect() }.into()
        };
        let pieces = add(shape(&[m, s.block[0]]), &[x], Part::Left)?;
        let products = add(MatMul.into(), &[pieces, factors[0]], Part::Left)?; // [.., m, terms r]
        let products = add(shape(&[m, terms, r]), &[products], Part::Left)?;
        let products = add(perm(&[2, 0, 1]), &[products], Part::Left)?; // [.., r, m, terms]
        let products = add(shape(&[r, m * terms]), &[products], Part::Left)?;
        let joined = add(MatMul.into(), &[products, factors[1]], Part::Right)?; // [.., r, n]
        let joined = add(perm(&[1, 0]), &[joined], Part::Right)?;
        add(shape(&[n * r]), &[joined], Part::Right)
    }
}
