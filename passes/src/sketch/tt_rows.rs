//! The rows of a table as those of a tensor train (Hrinchuk and others, *Tensorized Embedding Layers*, arXiv 1901.10787).
//!
//! A row's index is written in digits of the extents of `inputs`, the most significant first, and a row is a product
//! of one matrix `[r_{k-1}, n_k r_k]` of each core, chosen by a digit: core `k` is stored as `[m_k, r_{k-1} n_k r_k]`,
//! so that a digit looks up a row of it. The product of the extents may exceed the rows of the table; rows beyond are
//! zeros. The table is never made.

use margay_ir::ops::{Add, Const, Div, Gather, Less, MatMul, Mul, Reshape, Select, Sub};
use margay_ir::{AddError, Graph, NodeId, Op, Part, Payload, Value};
use margay_randnla::{Contents, DenseTensor, Matrix, RandnlaError, Stored, tt_svd_to_rank};
use margay_tensor::{DType, Dim, Tensor};

use super::forms::{Form, Subject, contents, numbers};
use super::tt::{Core, TtSettings};
use super::{Layer, Replacement};

/// The rows and columns of a table.
#[derive(Debug)]
pub(super) struct TrainOfRows {
    rows: usize,
    columns: usize,
}

/// `count` extents whose product is at least `places`, in ascending order and as equal as they can be.
pub(super) fn covering(places: usize, count: usize) -> Vec<usize> {
    let mut left = places.max(1);
    let mut extents: Vec<usize> = (1..=count)
        .rev()
        .map(|rest| {
            let covers = |extent: &usize| extent.checked_pow(rest as u32).is_none_or(|all| all >= left);
            let extent = (1..=left).find(covers).unwrap_or(left);
            left = left.div_ceil(extent);
            extent
        })
        .collect();
    extents.sort_unstable();
    extents
}

/// So many places for each row of a table, at most: the digits of few rows have room for many more.
const MOST_PLACES: usize = 64;

impl TrainOfRows {
    /// By digit, from the first, what one of it counts.
    fn weights(s: &TtSettings) -> Vec<usize> {
        (0..s.inputs.len()).map(|k| s.inputs[k + 1..].iter().product()).collect()
    }
}

impl Form for TrainOfRows {
    const NAME: &'static str = "tt";

    type Settings = TtSettings;

    fn of(_: &Graph, layer: &Layer) -> Option<TrainOfRows> {
        layer.is_lookup().then_some(TrainOfRows { rows: layer.d_in, columns: layer.d_out })
    }

    fn stored(&self, s: &TtSettings) -> Result<Vec<Stored>, String> {
        let places = s.inputs.iter().try_fold(1usize, |p, e| p.checked_mul(*e));
        if places.is_some_and(|places| places < self.rows) {
            return Err(format!("the product of inputs {:?} is less than {} rows", s.inputs, self.rows));
        }
        let most = self.rows.saturating_mul(MOST_PLACES);
        if places.is_none_or(|places| places > most) {
            return Err(format!(
                "the product of inputs {:?} is more than {MOST_PLACES} times {} rows",
                s.inputs, self.rows
            ));
        }
        s.check(self.rows * self.columns, ("outputs", &s.outputs, self.columns))?;
        let shape = |c: Core| vec![c.inputs, c.before * c.outputs * c.after];
        Ok(numbers(s.cores().into_iter().map(shape)))
    }

    fn factors(&self, subject: &Subject, s: &TtSettings) -> Result<Vec<Contents>, RandnlaError> {
        let extents = s.inputs.iter().zip(&s.outputs).map(|(m, n)| m * n).collect();
        let tensor = DenseTensor::from_fn(extents, |at| {
            let (row, column) = s.place(at);
            if row < self.rows { subject.weight.at(row, column) } else { 0.0 }
        });
        let train = tt_svd_to_rank(&tensor, s.rank)?;
        let by_digit = |(core, data): (Core, &[f64])| -> Vec<f32> {
            let Core { before, inputs, outputs, after } = core;
            let at = |i: usize| {
                let (digit, left, right) =
                    (i / (before * outputs * after), i / (outputs * after) % before, i % (outputs * after));
                data[(left * inputs + digit) * outputs * after + right] as f32
            };
            (0..before * inputs * outputs * after).map(at).collect()
        };
        Ok(contents(s.cores().into_iter().zip(train.cores.iter().map(DenseTensor::data)).map(by_digit)))
    }

    fn weight(&self, s: &TtSettings, factors: &[Contents]) -> Result<Matrix, RandnlaError> {
        let (cores, weights) = (s.cores(), TrainOfRows::weights(s));
        let mut all = Vec::with_capacity(self.rows * self.columns);
        for row in 0..self.rows {
            let (mut made, mut width) = (vec![1.0], 1);
            for (k, core) in cores.iter().enumerate() {
                let (digit, each) = (row / weights[k] % core.inputs, core.outputs * core.after);
                let chosen = &factors[k].numbers()[digit * core.before * each..][..core.before * each];
                // [outputs so far, before] times [before, outputs after].
                let entry = |i: usize| {
                    let (output, j) = (i / each, i % each);
                    (0..core.before).map(|r| made[output * core.before + r] * chosen[r * each + j]).sum()
                };
                made = (0..width * each).map(entry).collect();
                width *= core.outputs;
            }
            all.append(&mut made);
        }
        Matrix::from_row_major_f64(self.rows, self.columns, &all)
    }

    fn nodes(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        s: &TtSettings,
        factors: &[Value],
    ) -> Result<Value, AddError> {
        let origin = work.graph.node(n).origin.clone();
        let places = work.operand(n, 1);
        let given = work.ty(places).clone();
        let add = |work: &mut Replacement<'_>, op: Op, inputs: &[Value]| {
            work.add(op, inputs, origin.part(Part::Left))
        };
        let number = |work: &mut Replacement<'_>, x: usize| {
            let x = x as i64;
            let scalar = if given.dtype == DType::I64 { Tensor::scalar(x) } else { Tensor::scalar(x as i32) };
            work.add(Const { payload: Payload::new(scalar) }, &[], origin.part(Part::Left))
        };
        // Places may count from the end.
        let (zero, rows) = (number(work, 0)?, number(work, self.rows)?);
        let negative = add(work, Less.into(), &[places, zero])?;
        let from_end = add(work, Add.into(), &[places, rows])?;
        let mut left = add(work, Select.into(), &[negative, from_end, places])?;

        let count = given.shape.iter().fold(Dim::from(1usize), |all, extent| &all * extent);
        let shaped = |extents: [usize; 2]| Reshape {
            shape: [vec![count.clone()], extents.map(Dim::from).to_vec()].concat(),
        };
        let (weights, mut product, mut width) = (TrainOfRows::weights(s), None, 1);
        for (k, core) in s.cores().into_iter().enumerate() {
            let mut digit = left;
            if k + 1 < weights.len() {
                let weight = number(work, weights[k])?;
                digit = add(work, Div.into(), &[left, weight])?;
                let taken = add(work, Mul.into(), &[digit, weight])?;
                left = add(work, Sub.into(), &[left, taken])?;
            }
            let mut made = add(work, Gather { axis: 0 }.into(), &[factors[k], digit])?;
            if let Some(before) = product {
                let before = add(work, shaped([width, core.before]).into(), &[before])?;
                made = add(work, shaped([core.before, core.outputs * core.after]).into(), &[made])?;
                made = add(work, MatMul.into(), &[before, made])?;
            }
            width *= core.outputs;
            product = Some(made);
        }
        let shape = [given.shape.as_slice(), &[Dim::from(self.columns)]].concat();
        let product = product.expect("there are at least two cores");
        work.add(Reshape { shape }, &[product], origin.part(Part::Right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_cover_all_places() {
        for (places, count, expected) in [
            (30522, 3, vec![31, 31, 32]),
            (1000, 3, vec![10, 10, 10]),
            (13, 2, vec![4, 4]),
            (1, 2, vec![1, 1]),
            (7, 1, vec![7]),
        ] {
            let found = covering(places, count);
            assert!(found.iter().product::<usize>() >= places);
            assert_eq!(found, expected, "{places}");
        }
    }
}
