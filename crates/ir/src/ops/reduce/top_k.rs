//! The positions of the `k` largest elements along an axis, the largest first, as i64; of the smallest, the smallest
//! first, unless `largest`. Of equal elements the first one comes first. NaN counts as larger than all numbers.
//!
//! Where the back end has a kernel, it selects and sorts; loops choose one after the other, in k n steps per row.

use std::cmp::Ordering;

use margay_loops::{Binary, Combine, Index, KernelCall, Literal, Nest, Reg, Unary};
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::{Domain, Numbers};
use crate::ops::shape::known_extents;
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Where the largest or smallest elements are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopK {
    /// The axis.
    pub axis: usize,
    /// How many.
    pub k: Dim,
    /// The largest rather than the smallest.
    pub largest: bool,
}

attributes!(TopK { axis, k, largest = true });

impl OpDef for TopK {
    const NAME: &'static str = "top_k";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        Domain::Number.check(0, x)?;
        types::check_axis(self.axis, x.ndim())?;
        let extent = &x.shape[self.axis];
        if let (Some(k), Some(extent)) = (self.k.as_const(), extent.as_const())
            && !(0..=extent).contains(&k)
        {
            return Err(TypeError::attribute(format!("{k} of an axis of {extent}")));
        }
        let mut shape = x.shape.clone();
        shape[self.axis] = self.k.clone();
        types::one(DType::I64, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let k = known_extents(std::slice::from_ref(&self.k))?[0];
        let shape = inputs[0].shape();
        let (extent, inner) = (shape[self.axis], shape[self.axis + 1..].iter().product::<usize>());
        let outer: usize = shape[..self.axis].iter().product();
        let compare: Box<dyn Fn(usize, usize) -> Ordering> = match Numbers::of(inputs[0])? {
            Numbers::Int(v) => Box::new(move |a, b| v[a].cmp(&v[b])),
            Numbers::Float(v) => {
                let key = move |i: usize| if v[i].is_nan() { f64::INFINITY } else { v[i] };
                Box::new(move |a, b| key(a).partial_cmp(&key(b)).unwrap_or(Ordering::Equal))
            }
        };
        let mut out = vec![0; outer * k * inner];
        for row in 0..outer * inner {
            let (o, i) = (row / inner, row % inner);
            let at = |j: usize| (o * extent + j) * inner + i;
            let mut order: Vec<usize> = (0..extent).collect();
            order.sort_by(|&a, &b| {
                let order = compare(at(a), at(b));
                if self.largest { order.reverse() } else { order }
            });
            order.iter().take(k).enumerate().for_each(|(s, &j)| out[(o * k + s) * inner + i] = j as i128);
        }
        let mut shape = shape.to_vec();
        shape[self.axis] = k;
        Ok(vec![Numbers::Int(out).into_tensor(DType::I64, &shape)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::zero(1)
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (op, shape, dtype) = (self.clone(), io.inputs[0].shape.clone(), io.inputs[0].dtype);
        let k = io.outputs[0].shape[self.axis];
        if k > shape[self.axis] {
            return Err(NotLowered(format!("{k} of an axis of {}", shape[self.axis])));
        }
        // A kernel walks rows that lie without gaps.
        let call = io.inputs[0].is_contiguous().then(|| margay_loops::TopK {
            dtype,
            outer: shape[..self.axis].iter().product(),
            len: shape[self.axis],
            inner: shape[self.axis + 1..].iter().product(),
            k,
            largest: self.largest,
        });
        if k == 0 {
            // No element to choose: loops that do not run.
            let shape = io.outputs[0].shape.clone();
            return Ok(Lowered::nest(move |n| {
                n.for_each(&shape, |n, i| {
                    let place = n.literal(Literal::Int(DType::I64, 0));
                    n.store(0, i, place);
                });
            }));
        }
        let nest = move |n: &mut Nest| {
            let mut rows = shape.clone();
            rows[op.axis] = 1;
            n.for_each(&rows, |n, i| {
                let row = Row { op: &op, dtype, extent: shape[op.axis], index: i };
                let first = row.chosen(n, None);
                n.store_raw(0, &row.at(Index::constant(0)), first);
                if k > 1 {
                    n.serial(k - 1, |n, s| {
                        let before = n.reload(0, &row.at(s.clone()));
                        let next = row.chosen(n, Some(before));
                        n.store_raw(0, &row.at(s.plus(&Index::constant(1), 1)), next);
                    });
                }
                n.serial(k, |n, s| {
                    let chosen = n.reload(0, &row.at(s.clone()));
                    n.store(0, &row.at(s), chosen);
                });
            });
        };
        Ok(match call {
            Some(call) => Lowered::call_or_nest(KernelCall::TopK(call), nest),
            None => Lowered::nest(nest),
        })
    }

    fn cost(&self, io: &Io) -> Cost {
        // Selected, and those chosen sorted.
        let stages = u64::from(io.outputs[0].shape[self.axis].max(2).ilog2());
        let steps = 4 * io.inputs[0].elements() as u64 + io.output_elements().saturating_mul(4 * stages);
        Cost { flops: steps, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::plain(false)
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        Some(TopK { axis: perm.iter().position(|&p| p == self.axis)?, ..self.clone() }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let worst = if self.largest { f64::NEG_INFINITY } else { f64::INFINITY };
        cx.along(self.clone(), |_, axis| if axis == self.axis { Along::Neutral(worst) } else { Along::Apart })
    }

    fn cases() -> Vec<(Self, Case)> {
        let op = |axis, k: usize, largest| TopK { axis, k: Dim::from(k), largest };
        let ties = Tensor::from_slice(&[2, 4], &[2f32, 3.0, 3.0, 1.0, -1.0, f32::NEG_INFINITY, -1.0, 7.0]);
        let ties = || Case { inputs: vec![CaseInput::Values(ties.clone().expect("two rows of four"))] };
        vec![
            (op(1, 3, true), Case::f32(&[&[3, 7]])),
            (op(0, 4, false), Case::f32(&[&[4, 2, 3]])),
            (op(1, 1, true), Case::f32(&[&[2, 5, 3]])),
            (op(1, 4, true), ties()),
            (op(1, 4, false), ties()),
            (op(0, 6, true), Case::random(DType::I64, -3.0, 3.0, &[&[6]])),
        ]
    }
}

/// A row in which elements are chosen.
struct Row<'a> {
    op: &'a TopK,
    dtype: DType,
    extent: usize,
    index: &'a [Index],
}

impl Row<'_> {
    fn at(&self, j: Index) -> Vec<Index> {
        let mut index = self.index.to_vec();
        index[self.op.axis] = j;
        index
    }

    /// What is compared: the element at a position, infinite for NaN.
    fn key(&self, n: &mut Nest, j: Index) -> Reg {
        let x = n.load(0, &self.at(j));
        if self.dtype.is_int() {
            return x;
        }
        let nan = n.unary(Unary::IsNan, x);
        let infinite = n.number(x, f64::INFINITY);
        n.select(nan, infinite, x)
    }

    /// The position of the best element among those that come after the one at `before`.
    fn chosen(&self, n: &mut Nest, before: Option<Reg>) -> Reg {
        let before = before.map(|p| (self.key(n, Index::reg(p)), p));
        let after = |n: &mut Nest, key: Reg, j: &Index| {
            let (bound, place) = before?;
            let at = n.index_value(j);
            let beyond = if self.op.largest { [key, bound] } else { [bound, key] };
            let beyond = n.binary(Binary::Lt, beyond[0], beyond[1]);
            let same = n.binary(Binary::Eq, key, bound);
            let later = n.binary(Binary::Lt, place, at);
            let later = n.binary(Binary::And, same, later);
            Some(n.binary(Binary::Or, beyond, later))
        };
        let (combine, worst) = match self.op.largest {
            true => (Combine::Max, f64::NEG_INFINITY),
            false => (Combine::Min, f64::INFINITY),
        };
        let best = n.reduce(self.extent, &[combine], |n, j| {
            let key = self.key(n, j.clone());
            match after(n, key, &j) {
                None => vec![key],
                Some(test) => {
                    let worst = n.number(key, worst);
                    vec![n.select(test, key, worst)]
                }
            }
        })[0];
        n.reduce(self.extent, &[Combine::Min], |n, j| {
            let key = self.key(n, j.clone());
            let mut test = n.binary(Binary::Eq, key, best);
            if let Some(later) = after(n, key, &j) {
                test = n.binary(Binary::And, test, later);
            }
            let (at, none) = (n.index_value(&j), n.literal(Literal::Int(DType::I64, self.extent as i64 - 1)));
            vec![n.select(test, at, none)]
        })[0]
    }
}
