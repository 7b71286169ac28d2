//! Two block-diagonal matrices with a permutation between them (Dao and others, *Monarch: Expressive Structured Matrices for
//! Efficient and Accurate Training*, arXiv 2204.00595).
//!
//! A weight is cut into `q k` blocks `[d_in / q, d_out / k]`, and each is approximated by a product of rank `r`; that is
//! Monarch for `r = 1`, up to the order of inputs and outputs. The left factors of the `k` blocks in a row lie side by
//! side, `q` matrices `[d_in / q, k r]`, the right ones of the `q` blocks in a column below each other, `k` matrices
//! `[q r, d_out / k]`: two batches of products, `r (k d_in + q d_out)` numbers. Each block is the best of its rank for the
//! inputs of its row, as far as these do not depend on other inputs, and for the metric of all outputs being equal.
//!
//! ```text
//! graph @before(%x: f32[N, 32]) -> (y: f32[N, 64]) {
//!   %0 = const #5be1c0 : f32[32, 64]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 64]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 32]) -> (y: f32[N, 64]) {
//!   %0 = const monarch.factor1(#5be1c0, blocks [4, 8]) : f32[4, 8, 8]  // fc1.weight left
//!   %1 = const monarch.factor2(#5be1c0, blocks [4, 8]) : f32[8, 4, 8]  // fc1.weight right
//!   %2 = reshape %x {shape = [N, 4, 8]} : f32[N, 4, 8]  // fc1/MatMul left
//!   %3 = transpose %2 {perm = [1, 0, 2]} : f32[4, N, 8]  // fc1/MatMul left
//!   %4 = matmul %3, %0 : f32[4, N, 8]  // fc1/MatMul left
//!   %5 = transpose %4 {perm = [2, 1, 0]} : f32[8, N, 4]  // fc1/MatMul left
//!   %6 = matmul %5, %1 : f32[8, N, 8]  // fc1/MatMul left
//!   %7 = transpose %6 {perm = [1, 0, 2]} : f32[N, 8, 8]  // fc1/MatMul right
//!   %8 = reshape %7 {shape = [N, 64]} : f32[N, 64]  // fc1/MatMul right
//!   return %8
//! }
//! ```
//!
//! Deliberately absent: convolutions, and more than two factors (butterfly matrices).

use margay_ir::Graph;
use margay_plan::Settings;
use margay_randnla::{Contents, LowRank, LowRankOptions, Matrix, RandnlaError, Structure};
use serde::{Deserialize, Serialize};

use super::algebra::{Algebraic, structure};
use super::forms::{Structured, Subject, contents, offered, part_whitening, sites};
use super::{Context, Factored, Fitted, Layer, Scheme, SchemeFacts, Site, reads};

/// Two block-diagonal matrices.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonarchScheme;

/// What a plan says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MonarchSettings {
    /// Blocks in a column and in a row: divisors of the rows and columns of the weight.
    blocks: [usize; 2],
    /// The rank of each block.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    rank: usize,
}

fn one() -> usize {
    1
}

fn is_one(rank: &usize) -> bool {
    *rank == 1
}

impl Scheme for MonarchScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: Monarch::NAME,
            only_by_name: Some("its blocks are fitted one by one: it is a form to be trained"),
            is_storage: false,
            examples: &["blocks = [4, 8]"],
            check: reads::<MonarchSettings>,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<Monarch>(g)
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        Structured::<Monarch>::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<Monarch>::fit(context)
    }

    /// None: operators lie between its products.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(super) struct Monarch {
    d_in: usize,
    d_out: usize,
}

impl Monarch {
    /// Rows and columns of a block.
    fn block(&self, s: &MonarchSettings) -> [usize; 2] {
        [self.d_in / s.blocks[0], self.d_out / s.blocks[1]]
    }
}

impl Algebraic for Monarch {
    const NAME: &'static str = "monarch";

    const SEEDED: bool = false;

    type Settings = MonarchSettings;

    fn of(layer: &Layer) -> Option<Monarch> {
        Some(Monarch { d_in: layer.d_in, d_out: layer.d_out })
    }

    fn structure(&self, s: &MonarchSettings) -> Result<Structure, String> {
        let [q, k] = s.blocks;
        if q == 0 || k == 0 || !self.d_in.is_multiple_of(q) || !self.d_out.is_multiple_of(k) {
            return Err(format!("{q} x {k} blocks do not divide a weight of {} x {}", self.d_in, self.d_out));
        }
        let ([p, b], rank) = (self.block(s), s.rank);
        offered("rank", rank, p.min(b))?;
        structure(&format!(
            "blocks({q}, {p}x{}) · (shuffle({q}x{k}) ⊗ I({rank})) · blocks({k}, {}x{b})",
            k * rank,
            q * rank
        ))
    }

    fn contents(&self, subject: &Subject, s: &MonarchSettings) -> Result<Vec<Contents>, RandnlaError> {
        let Subject { weight, seen, .. } = subject;
        let ([q, k], [p, b], rank) = (s.blocks, self.block(s), s.rank);
        let (mut first, mut second) = (vec![0f32; q * p * k * rank], vec![0f32; k * q * rank * b]);
        let options = LowRankOptions { max_rank: Some(rank), ..LowRankOptions::default() };
        for i in 0..q {
            let whitening = part_whitening(seen, p, 1, |at, _| i * p + at)?;
            for j in 0..k {
                let block = Matrix::from_fn(p, b, |row, column| weight.at(i * p + row, j * b + column));
                let found = LowRank::new(&block, whitening.as_ref(), None, &options)?.factors(rank)?;
                for r in 0..rank {
                    let column = j * rank + r;
                    (0..p).for_each(|a| first[(i * p + a) * k * rank + column] = found.left.at(a, r) as f32);
                    let row = (j * q + i) * rank + r;
                    (0..b).for_each(|c| second[row * b + c] = found.right.at(r, c) as f32);
                }
            }
        }
        Ok(contents([first, second]))
    }
}
