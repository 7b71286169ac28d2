//! A weight as a tensor train (Novikov, Podoprikhin, Osokin and Vetrov, *Tensorizing Neural Networks*, arXiv 1509.06569).
//!
//! Inputs and outputs are cut into as many extents each, `d_in = m₁ … m_d` and `d_out = n₁ … n_d`, and the weight is a tensor with
//! a mode of `m_k n_k` for each pair of them: the entry at inputs `i₁ … i_d` and outputs `j₁ … j_d` is the product of matrices
//! `G₁[i₁, j₁] … G_d[i_d, j_d]`, with ranks of at most `rank` between them. Core `k` is stored as `[r_{k-1} m_k, n_k r_k]`. Rows are
//! multiplied by one core after the other: no matrix of the size of the weight is made. Two extents are a sum of Kronecker
//! products.
//!
//! ```text
//! graph @before(%x: f32[N, 32]) -> (y: f32[N, 64]) {
//!   %0 = const #5be1c0 : f32[32, 64]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 64]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 32]) -> (y: f32[N, 64]) {
//!   %0 = const tt.factor1(#5be1c0, inputs [4, 8], outputs [8, 8], rank 4) : f32[4, 32]  // fc1.weight left
//!   %1 = const tt.factor2(#5be1c0, inputs [4, 8], outputs [8, 8], rank 4) : f32[32, 8]  // fc1.weight right
//!   %2 = reshape %x {shape = [N, 4, 8]} : f32[N, 4, 8]  // fc1/MatMul left
//!   %3 = transpose %2 {perm = [0, 2, 1]} : f32[N, 8, 4]  // fc1/MatMul left
//!   %4 = matmul %3, %0 : f32[N, 8, 32]  // fc1/MatMul left
//!   %5 = transpose %4 {perm = [0, 2, 1]} : f32[N, 32, 8]  // fc1/MatMul left
//!   %6 = reshape %5 {shape = [N, 8, 32]} : f32[N, 8, 32]  // fc1/MatMul left
//!   %7 = matmul %6, %1 : f32[N, 8, 8]  // fc1/MatMul left
//!   %8 = reshape %7 {shape = [N, 64]} : f32[N, 64]  // fc1/MatMul right
//!   return %8
//! }
//! ```
//!
//! Cores are those of TT-SVD (Oseledets, *Tensor-train decomposition*, 2011), whose squared error is at most `d - 1`
//! times the least one of these ranks; what calibration saw does not change them, the error and the bias follow it.
//! Deliberately absent: convolutions of more than one tap.
//!
//! Lookups of rows of a table take a train whose cores are looked up by the digits of a place (see `tt_rows`).
//!
//! ```text
//! graph @before(%t: i64[N]) -> (y: f32[N, 16]) {
//!   %0 = const #5be1c0 : f32[60, 16]  // embed.weight
//!   %1 = gather %0, %t {axis = 0} : f32[N, 16]  // embed
//!   return %1
//! }
//! graph @after(%t: i64[N]) -> (y: f32[N, 16]) {
//!   %0 = const tt.factor1(#5be1c0, inputs [8, 8], outputs [4, 4], rank 3) : f32[8, 12]  // embed.weight left
//!   %1 = const tt.factor2(#5be1c0, inputs [8, 8], outputs [4, 4], rank 3) : f32[8, 12]  // embed.weight right
//!   %2 = const 0 : i64  // embed left
//!   %3 = const 60 : i64  // embed left
//!   %4 = less %t, %2 : bool[N]  // embed left
//!   %5 = add %t, %3 : i64[N]  // embed left
//!   %6 = select %4, %5, %t : i64[N]  // embed left
//!   %7 = const 8 : i64  // embed left
//!   %8 = div %6, %7 : i64[N]  // embed left
//!   %9 = mul %8, %7 : i64[N]  // embed left
//!   %10 = sub %6, %9 : i64[N]  // embed left
//!   %11 = gather %0, %8 {axis = 0} : f32[N, 12]  // embed left
//!   %12 = gather %1, %10 {axis = 0} : f32[N, 12]  // embed left
//!   %13 = reshape %11 {shape = [N, 4, 3]} : f32[N, 4, 3]  // embed left
//!   %14 = reshape %12 {shape = [N, 3, 4]} : f32[N, 3, 4]  // embed left
//!   %15 = matmul %13, %14 : f32[N, 4, 4]  // embed left
//!   %16 = reshape %15 {shape = [N, 16]} : f32[N, 16]  // embed right
//!   return %16
//! }
//! ```

use margay_ir::Graph;
use margay_plan::Settings;
use margay_randnla::{Contents, DenseTensor, RandnlaError, Structure, tt_svd_to_rank};
use serde::{Deserialize, Serialize};

use super::algebra::{Algebraic, structure};
use super::forms::{Structured, Subject, contents, offered, sites};
use super::tt_rows::{TrainOfRows, covering};
use super::{Context, Factored, Fitted, Layer, Scheme, SchemeFacts, Site, reads};

/// Tensor trains.
#[derive(Clone, Copy, Debug, Default)]
pub struct TtScheme;

/// What a plan says of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TtSettings {
    /// Extents whose product is the number of inputs, or at least that of the rows of a table: at least two.
    pub(super) inputs: Vec<usize>,
    /// As many extents whose product is the number of outputs.
    pub(super) outputs: Vec<usize>,
    /// The greatest rank between two cores.
    pub(super) rank: usize,
}

impl Scheme for TtScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: TensorTrain::NAME,
            only_by_name: Some(
                "its cores are not fitted to what calibration saw: it is a form to be trained",
            ),
            is_storage: false,
            check: reads::<TtSettings>,
            examples: &[
                "inputs = [4, 8], outputs = [8, 8], rank = 4",
                "inputs = [8, 8], outputs = [4, 4], rank = 3",
            ],
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        [sites::<TensorTrain>(g), sites::<TrainOfRows>(g)].concat()
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        match Layer::of(g, site).is_lookup() {
            true => Structured::<TrainOfRows>::check_at(g, site, settings),
            false => Structured::<TensorTrain>::check_at(g, site, settings),
        }
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        match Layer::of(context.graph, context.site).is_lookup() {
            true => Structured::<TrainOfRows>::fit(context),
            false => Structured::<TensorTrain>::fit(context),
        }
    }

    /// None: operators lie between its products.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(super) struct TensorTrain {
    d_in: usize,
    d_out: usize,
}

/// One core: `[before, inputs, outputs, after]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Core {
    pub(super) before: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) after: usize,
}

impl TtSettings {
    /// So many cores for a layer, whose extents are about the same.
    pub(super) fn balanced(layer: &Layer, cores: usize, rank: usize) -> TtSettings {
        let inputs = if layer.is_lookup() { covering } else { balanced };
        TtSettings { inputs: inputs(layer.d_in, cores), outputs: balanced(layer.d_out, cores), rank }
    }

    /// An error unless extents have this product, there are as many on either side, and the rank is at most so much.
    pub(super) fn check(
        &self,
        most: usize,
        (what, extents, expected): (&str, &[usize], usize),
    ) -> Result<(), String> {
        if extents.iter().try_fold(1usize, |p, e| p.checked_mul(*e)) != Some(expected) {
            return Err(format!("the product of {what} {extents:?} is not {expected}"));
        }
        let (found, modes) = (self.outputs.len(), self.inputs.len());
        if modes < 2 || found != modes {
            return Err(format!(
                "{modes} inputs and {found} outputs, expected as many of each, and at least 2"
            ));
        }
        offered("rank", self.rank, most)
    }

    /// The row and the column of an entry of the tensor.
    pub(super) fn place(&self, at: &[usize]) -> (usize, usize) {
        let place = |(row, column): (usize, usize), (k, i): (usize, &usize)| {
            (row * self.inputs[k] + i / self.outputs[k], column * self.outputs[k] + i % self.outputs[k])
        };
        at.iter().enumerate().fold((0, 0), place)
    }

    /// The shapes of the cores.
    pub(super) fn cores(&self) -> Vec<Core> {
        let modes: Vec<usize> = self.inputs.iter().zip(&self.outputs).map(|(m, n)| m * n).collect();
        let mut before = 1;
        let core = |k: usize| {
            let rest: usize = modes[k + 1..].iter().fold(1, |rest, mode| mode.saturating_mul(rest));
            let after = if k + 1 == modes.len() { 1 } else { self.rank.min(before * modes[k]).min(rest) };
            let core = Core { before, inputs: self.inputs[k], outputs: self.outputs[k], after };
            before = after;
            core
        };
        (0..modes.len()).map(core).collect()
    }
}

/// So many extents of a given product, about as large as each other, the smallest first: prime factors go to the extent that
/// is least so far, the greatest of them first.
fn balanced(product: usize, count: usize) -> Vec<usize> {
    let (mut primes, mut rest, mut divisor) = (Vec::new(), product, 2);
    while rest > 1 {
        if divisor * divisor > rest {
            divisor = rest;
        }
        while rest.is_multiple_of(divisor) {
            primes.push(divisor);
            rest /= divisor;
        }
        divisor += 1;
    }
    let mut extents = vec![1; count];
    for prime in primes.into_iter().rev() {
        if let Some(least) = extents.iter_mut().min() {
            *least *= prime;
        }
    }
    extents.sort_unstable();
    extents
}

impl Algebraic for TensorTrain {
    const NAME: &'static str = "tt";

    const SEEDED: bool = false;

    type Settings = TtSettings;

    fn of(layer: &Layer) -> Option<TensorTrain> {
        Some(TensorTrain { d_in: layer.d_in, d_out: layer.d_out })
    }

    fn structure(&self, s: &TtSettings) -> Result<Structure, String> {
        for side in [("inputs", &s.inputs[..], self.d_in), ("outputs", &s.outputs, self.d_out)] {
            s.check(self.d_in * self.d_out, side)?;
        }
        let (mut done, mut left) = (1, self.d_in);
        let core = |core: Core| {
            left /= core.inputs;
            let [rows, columns] = [core.before * core.inputs, core.outputs * core.after];
            let factor = structure(&format!("I({done}) ⊗ {rows}x{columns} ⊗ I({left})"));
            done *= core.outputs;
            factor
        };
        let factors: Result<Vec<Structure>, String> = s.cores().into_iter().map(core).collect();
        Structure::product(factors?).map_err(|error| error.to_string())
    }

    fn contents(&self, subject: &Subject, s: &TtSettings) -> Result<Vec<Contents>, RandnlaError> {
        let weight = &subject.weight;
        let extents = s.inputs.iter().zip(&s.outputs).map(|(m, n)| m * n).collect();
        let tensor = DenseTensor::from_fn(extents, |at| {
            let (row, column) = s.place(at);
            weight.at(row, column)
        });
        let train = tt_svd_to_rank(&tensor, s.rank)?;
        Ok(contents(
            train.cores.iter().map(|core| core.data().iter().map(|v| *v as f32).collect::<Vec<f32>>()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(inputs: &[usize], outputs: &[usize], rank: usize) -> TtSettings {
        TtSettings { inputs: inputs.to_vec(), outputs: outputs.to_vec(), rank }
    }

    #[test]
    fn ranks_are_no_greater_than_what_lies_on_either_side() {
        let ranks = |s: TtSettings| s.cores().iter().map(|c| c.after).collect::<Vec<_>>();
        assert_eq!(ranks(settings(&[2, 3, 4], &[3, 2, 2], 100)), [6, 8, 1]);
        assert_eq!(ranks(settings(&[2, 3, 4], &[3, 2, 2], 5)), [5, 5, 1]);
    }

    #[test]
    fn extents_are_balanced() {
        for (product, count, expected) in [
            (768, 3, vec![8, 8, 12]),
            (3072, 3, vec![12, 16, 16]),
            (64, 2, vec![8, 8]),
            (30, 2, vec![5, 6]),
            (13, 3, vec![1, 1, 13]),
            (1, 2, vec![1, 1]),
            (49, 2, vec![7, 7]),
        ] {
            assert_eq!(balanced(product, count), expected, "{product}");
        }
    }

    #[test]
    fn extents_that_do_not_fit_are_refused() {
        let form = TensorTrain { d_in: 24, d_out: 12 };
        let why = |s: TtSettings| form.structure(&s).unwrap_err();
        assert_eq!(why(settings(&[2, 3], &[3, 4], 2)), "the product of inputs [2, 3] is not 24");
        assert_eq!(why(settings(&[4, 6], &[3, 5], 2)), "the product of outputs [3, 5] is not 12");
        assert!(why(settings(&[24], &[12], 2)).contains("at least 2"));
        assert!(why(settings(&[4, 6], &[3, 2, 2], 2)).starts_with("2 inputs and 3 outputs"));
        assert_eq!(why(settings(&[4, 6], &[3, 4], 0)), "rank 0 is not offered, expected 1 to 288");
        let found = form.structure(&settings(&[4, 6], &[3, 4], 5)).unwrap();
        assert_eq!(found.to_string(), "(I(1) ⊗ 4x15 ⊗ I(6)) · (I(3) ⊗ 30x4 ⊗ I(1))");
    }
}
