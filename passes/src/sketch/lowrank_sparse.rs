//! Two factors and a sparse matrix in place of a weight: `x W ≈ (x A) B + x S`.
//!
//! `S` has whole rows, of the inputs that the factors lose most of: `x` is looked up at their positions and multiplied once more,
//! `d_in x rank · rank x d_out + select(d_in x inputs) · inputs x d_out` in the algebra. Or it has as many entries in each column, wherever they are
//! largest, `sparse(d_in x d_out, entries)`: a number and a position each, and a look-up of `x`, which takes as much time as many
//! entries of a product. Both are chosen by what calibration saw, in turns with the factors ([`margay_randnla::lowrank_sparse()`]).
//!
//! ```text
//! graph @before(%x: f32[N, 48]) -> (y: f32[N, 40]) {
//!   %0 = const #5be1c0 : f32[48, 40]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 40]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 48]) -> (y: f32[N, 40]) {
//!   %0 = const lowrank-sparse.factor1(#5be1c0, inputs 8, rank 6) : f32[48, 6]  // fc1.weight left
//!   %1 = const lowrank-sparse.factor2(#5be1c0, inputs 8, rank 6) : f32[6, 40]  // fc1.weight left
//!   %2 = const lowrank-sparse.factor3(#5be1c0, inputs 8, rank 6) : i64[8]  // fc1.weight left
//!   %3 = const lowrank-sparse.factor4(#5be1c0, inputs 8, rank 6) : f32[8, 40]  // fc1.weight right
//!   %4 = matmul %x, %0 : f32[N, 6]  // fc1/MatMul left
//!   %5 = matmul %4, %1 : f32[N, 40]  // fc1/MatMul left
//!   %6 = gather %x, %2 {axis = 1} : f32[N, 8]  // fc1/MatMul left
//!   %7 = matmul %6, %3 : f32[N, 40]  // fc1/MatMul left
//!   %8 = add %5, %7 : f32[N, 40]  // fc1/MatMul right
//!   return %8
//! }
//! ```
//!
//!
//! ```text
//! graph @before(%x: f32[N, 48]) -> (y: f32[N, 40]) {
//!   %0 = const #5be1c0 : f32[48, 40]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 40]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 48]) -> (y: f32[N, 40]) {
//!   %0 = const lowrank-sparse.factor1(#5be1c0, entries 2, rank 6) : f32[48, 6]  // fc1.weight left
//!   %1 = const lowrank-sparse.factor2(#5be1c0, entries 2, rank 6) : f32[6, 40]  // fc1.weight left
//!   %2 = const lowrank-sparse.factor3(#5be1c0, entries 2, rank 6) : i64[80]  // fc1.weight left
//!   %3 = const lowrank-sparse.factor4(#5be1c0, entries 2, rank 6) : f32[2, 40]  // fc1.weight right
//!   %4 = matmul %x, %0 : f32[N, 6]  // fc1/MatMul left
//!   %5 = matmul %4, %1 : f32[N, 40]  // fc1/MatMul left
//!   %6 = gather %x, %2 {axis = 1} : f32[N, 80]  // fc1/MatMul left
//!   %7 = reshape %6 {shape = [N, 2, 40]} : f32[N, 2, 40]  // fc1/MatMul left
//!   %8 = mul %7, %3 : f32[N, 2, 40]  // fc1/MatMul left
//!   %9 = reduce %8 {kind = sum, axes = [1]} : f32[N, 40]  // fc1/MatMul left
//!   %10 = add %5, %9 : f32[N, 40]  // fc1/MatMul right
//!   return %10
//! }
//! ```
//!
//! Deliberately absent: convolutions, and blocks of entries.

use margay_ir::Graph;
use margay_plan::Settings;
use margay_randnla::{Contents, Places, RandnlaError, Structure, lowrank_sparse};
use serde::{Deserialize, Serialize};

use super::algebra::{Algebraic, structure};
use super::forms::{Structured, Subject, offered, sites};
use super::{Context, Factored, Fitted, Layer, Moments, Scheme, SchemeFacts, Site, reads};

/// Low-rank factors and a sparse matrix.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowRankSparseScheme;

/// What a plan says of them: one of `inputs` and `entries`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LowRankSparseSettings {
    /// Columns of the left factor.
    rank: usize,
    /// Rows of the sparse matrix, which are whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inputs: Option<usize>,
    /// Entries in each column of the sparse matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entries: Option<usize>,
}

impl LowRankSparseSettings {
    fn places(&self) -> Result<Places, String> {
        match (self.inputs, self.entries) {
            (Some(inputs), None) => Ok(Places::Rows(inputs)),
            (None, Some(entries)) => Ok(Places::InColumns(entries)),
            _ => Err("either `inputs` or `entries` is expected".to_owned()),
        }
    }
}

impl Scheme for LowRankSparseScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: LowRankSparse::NAME,
            only_by_name: Some("its error is known for settings that were fitted, one by one"),
            is_storage: false,
            check: |settings| {
                reads::<LowRankSparseSettings>(settings)?;
                settings.read::<LowRankSparseSettings>()?.places().map(drop)
            },
            examples: &["rank = 6, inputs = 8", "rank = 6, entries = 2"],
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<LowRankSparse>(g)
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        Structured::<LowRankSparse>::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<LowRankSparse>::fit(context)
    }

    /// None: a map with rows of its own is of no low rank.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

/// The extents of a weight.
#[derive(Debug)]
pub(super) struct LowRankSparse([usize; 2]);

impl Algebraic for LowRankSparse {
    const NAME: &'static str = "lowrank-sparse";

    const SEEDED: bool = false;

    type Settings = LowRankSparseSettings;

    fn of(layer: &Layer) -> Option<LowRankSparse> {
        Some(LowRankSparse([layer.d_in, layer.d_out]))
    }

    fn structure(&self, s: &LowRankSparseSettings) -> Result<Structure, String> {
        let ([d_in, d_out], rank) = (self.0, s.rank);
        offered("rank", rank, d_in.min(d_out))?;
        let sparse = match s.places()? {
            Places::Rows(inputs) => {
                offered("a number of inputs of", inputs, d_in)?;
                format!("select({d_in}x{inputs}) · {inputs}x{d_out}")
            }
            Places::InColumns(entries) => {
                offered("a number of entries of", entries, d_in)?;
                format!("sparse({d_in}x{d_out}, {entries})")
            }
        };
        structure(&format!("{d_in}x{rank} · {rank}x{d_out} + {sparse}"))
    }

    fn contents(&self, subject: &Subject, s: &LowRankSparseSettings) -> Result<Vec<Contents>, RandnlaError> {
        let Subject { weight, seen, .. } = subject;
        let inputs = seen.inputs().map(Moments::whitening).transpose()?;
        let outputs = seen.outputs()?;
        let places = s.places().map_err(RandnlaError::Algebra)?;
        let found = lowrank_sparse(weight, inputs.as_ref(), outputs.as_ref(), s.rank, places)?;
        Ok(vec![
            Contents::Numbers(found.left.to_row_major_f64()),
            Contents::Numbers(found.right.to_row_major_f64()),
            Contents::Positions(found.positions),
            Contents::Numbers(found.entries.to_row_major_f64()),
        ])
    }
}
