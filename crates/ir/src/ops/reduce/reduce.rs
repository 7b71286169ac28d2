//! Joins the elements along axes: sum, mean, maximum, minimum or product. Without axes nothing is joined.

use margay_loops::{Combine, Index, Literal, Nest, Reg};
use margay_tensor::{Binding, DType, Dim, Tensor};

use crate::ops::attributes::{Attribute, attributes};
use crate::ops::elementwise::{Domain, Numbers, broadcast_positions};
use crate::ops::facts::{Symbolic, larger, smaller};
use crate::ops::{Case, Cost, Equal, EvalError, Facts, Io, Lowered, NotLowered, OpDef, Reshape};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// How elements are joined.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReduceKind {
    /// Σ x; 0 over no elements. Integers wrap.
    Sum,
    /// Σ x / n, of floats; 0 over no elements.
    Mean,
    /// The largest; NaN if any is. Over no elements -∞, or the lowest integer of the type.
    Max,
    /// The smallest; NaN if any is. Over no elements ∞, or the highest integer of the type.
    Min,
    /// Π x; 1 over no elements. Integers wrap.
    Prod,
}

impl ReduceKind {
    const ALL: [ReduceKind; 5] =
        [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min, ReduceKind::Prod];

    fn name(self) -> &'static str {
        match self {
            ReduceKind::Sum => "sum",
            ReduceKind::Mean => "mean",
            ReduceKind::Max => "max",
            ReduceKind::Min => "min",
            ReduceKind::Prod => "prod",
        }
    }

    fn combine(self) -> Combine {
        match self {
            ReduceKind::Sum | ReduceKind::Mean => Combine::Sum,
            ReduceKind::Max => Combine::Max,
            ReduceKind::Min => Combine::Min,
            ReduceKind::Prod => Combine::Product,
        }
    }

    /// What changes nothing when joined, brought into the range of the type.
    fn neutral(self) -> f64 {
        match self {
            ReduceKind::Sum | ReduceKind::Mean => 0.0,
            ReduceKind::Max => f64::NEG_INFINITY,
            ReduceKind::Min => f64::INFINITY,
            ReduceKind::Prod => 1.0,
        }
    }
}

impl Attribute for ReduceKind {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        let found = ReduceKind::ALL.into_iter().find(|k| k.name() == text);
        found.ok_or_else(|| format!("`{text}` is not a kind of reduction"))
    }
    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}

/// Joins the elements along axes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reduce {
    /// How elements are joined.
    pub kind: ReduceKind,
    /// The axes that disappear, ascending.
    pub axes: Vec<usize>,
    /// Whether the axes stay, with extent 1.
    pub keepdims: bool,
}

attributes!(Reduce { kind, axes, keepdims = false });

impl OpDef for Reduce {
    const NAME: &'static str = "reduce";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        match self.kind {
            ReduceKind::Mean => types::expect_float(0, x)?,
            _ => Domain::Number.check(0, x)?,
        }
        self.axes.iter().try_for_each(|&axis| types::check_axis(axis, x.ndim()))?;
        if !self.axes.is_sorted_by(|a, b| a < b) {
            return Err(TypeError::attribute(format!("axes {:?} are not ascending", self.axes)));
        }
        let shape = x.shape.iter().enumerate().filter_map(|(axis, d)| match self.axes.contains(&axis) {
            false => Some(d.clone()),
            true => self.keepdims.then(|| Dim::from(1usize)),
        });
        types::one(x.dtype, shape.collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let mut kept = x.shape().to_vec();
        self.axes.iter().for_each(|&axis| kept[axis] = 1);
        let (count, at) = (kept.iter().product(), broadcast_positions(x.shape(), &kept));
        let out = match Numbers::of(x)? {
            Numbers::Float(v) => {
                let mut out = vec![self.kind.neutral(); count];
                at.iter().zip(v).for_each(|(&p, x)| out[p] = self.join_floats(out[p], x));
                if self.kind == ReduceKind::Mean && !at.is_empty() {
                    let joined: usize = self.axes.iter().map(|&axis| x.shape()[axis]).product();
                    out.iter_mut().for_each(|v| *v /= joined as f64);
                }
                Numbers::Float(out)
            }
            Numbers::Int(_) if at.is_empty() => Numbers::Float(vec![self.kind.neutral(); count]),
            Numbers::Int(v) => {
                let mut out = vec![self.kind.neutral() as i128; count];
                at.iter().zip(v).for_each(|(&p, x)| out[p] = self.join_ints(out[p], x));
                Numbers::Int(out)
            }
        };
        let shape: Vec<usize> =
            (0..kept.len()).filter(|&axis| self.keeps(axis)).map(|axis| kept[axis]).collect();
        Ok(vec![out.into_tensor(x.dtype(), &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (x, mut y, mut dy) = (cx.input(0), cx.output(), cx.cotangent()?);
        if !self.keepdims {
            let mut shape = cx.ty(x).shape.clone();
            self.axes.iter().for_each(|&axis| shape[axis] = Dim::from(1usize));
            dy = cx.op(Reshape { shape: shape.clone() }, &[dy])?;
            y = cx.op(Reshape { shape }, &[y])?;
        }
        match self.kind {
            ReduceKind::Sum => Grad::all([cx.broadcast_like(dy, x)?]),
            ReduceKind::Mean => {
                let count = cx.count(x, &self.axes)?;
                let share = cx.div(dy, count)?;
                Grad::all([cx.broadcast_like(share, x)?])
            }
            // Elements that are equally large share the cotangent equally.
            ReduceKind::Max | ReduceKind::Min => {
                let chosen = cx.op(Equal, &[x, y])?;
                let to = cx.ty(x).dtype;
                let chosen = cx.cast(chosen, to)?;
                let count = cx.sum_kept(chosen, self.axes.clone())?;
                let share = cx.div(dy, count)?;
                Grad::all([cx.mul(chosen, share)?])
            }
            ReduceKind::Prod => Grad::none("there is no rule for products of elements"),
        }
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (op, shape, dtype) = (self.clone(), io.inputs[0].shape.clone(), io.inputs[0].dtype);
        Ok(Lowered::nest(move |n| {
            let mut kept = shape.clone();
            op.axes.iter().for_each(|&axis| kept[axis] = 1);
            let joined: usize = op.axes.iter().map(|&axis| shape[axis]).product();
            n.for_each(&kept, |n, i| {
                let value = match joined {
                    0 => n.literal(Literal::of(dtype, op.kind.neutral())),
                    _ => join(n, op.kind.combine(), &op.axes, &shape, &mut i.to_vec()),
                };
                let value = match op.kind {
                    ReduceKind::Mean if joined > 0 => {
                        let scale = n.number(value, 1.0 / joined as f64);
                        n.mul(value, scale)
                    }
                    _ => value,
                };
                let to: Vec<Index> =
                    (0..i.len()).filter(|&axis| op.keeps(axis)).map(|axis| i[axis].clone()).collect();
                n.store(0, &to, value);
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        let symbolic = match self.kind {
            ReduceKind::Sum => Some(Symbolic::Joins(|x, y| Some(x + y))),
            ReduceKind::Prod => Some(Symbolic::Joins(|x, y| Some(x * y))),
            ReduceKind::Max => Some(Symbolic::Joins(larger)),
            ReduceKind::Min => Some(Symbolic::Joins(smaller)),
            ReduceKind::Mean => None,
        };
        Facts {
            elementwise: None,
            cheap: true,
            identity: self.axes.is_empty(),
            symbolic,
            parameters: &[],
            image: None,
            with_all_results: None,
        }
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        // Without the axes that it sums over the result has fewer.
        let mut axes: Vec<usize> =
            self.axes.iter().map(|a| perm.iter().position(|p| p == a)).collect::<Option<_>>()?;
        axes.sort_unstable();
        self.keepdims.then(|| Reduce { axes, ..self.clone() }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let joined: Vec<usize> = cx.decided_axes(0).into_iter().filter(|a| self.axes.contains(a)).collect();
        let neutral = |_, axis: usize| match self.axes.contains(&axis) {
            true => Along::Neutral(self.kind.neutral()),
            false => Along::Apart,
        };
        if self.kind != ReduceKind::Mean || joined.is_empty() {
            return cx.along(self.clone(), neutral);
        }
        let sum = Reduce { kind: ReduceKind::Sum, ..self.clone() };
        let sums = cx.along(sum, neutral)?[0];
        let shape = cx.type_of(0).shape.clone();
        let elements = self.axes.iter().fold(Dim::from(1usize), |n, &axis| &n * &shape[axis]);
        let count = cx.count(&elements)?;
        let mut builder = cx.builder();
        let count = builder.at_least(count, 1.0)?;
        let count = builder.cast(count, builder.ty(sums).dtype)?;
        Ok(vec![builder.div(sums, count)?])
    }

    fn cases() -> Vec<(Self, Case)> {
        let reduce = |kind, axes: &[usize], keepdims| Reduce { kind, axes: axes.to_vec(), keepdims };
        let mut cases = Vec::new();
        for kind in ReduceKind::ALL {
            cases.push((reduce(kind, &[1], false), Case::f32(&[&[3, 17]])));
            cases.push((reduce(kind, &[0, 2], true), Case::f32(&[&[2, 3, 5]])));
            if kind != ReduceKind::Mean {
                let case = Case::random(DType::I64, -4.0, 5.0, &[&[5, 3]]);
                cases.push((reduce(kind, &[0], false), case));
            }
        }
        cases.push((reduce(ReduceKind::Mean, &[2, 3], false), Case::f32(&[&[1, 3, 7, 5]])));
        cases.push((reduce(ReduceKind::Sum, &[], false), Case::f32(&[&[4, 3]])));
        cases.push((reduce(ReduceKind::Sum, &[0, 1], false), Case::f32(&[&[33, 16]])));
        cases
    }
}

impl Reduce {
    /// Whether an axis of the operand is one of the result.
    fn keeps(&self, axis: usize) -> bool {
        self.keepdims || !self.axes.contains(&axis)
    }

    fn join_floats(&self, x: f64, y: f64) -> f64 {
        match self.kind {
            ReduceKind::Sum | ReduceKind::Mean => x + y,
            ReduceKind::Max if x.is_nan() || x >= y => x,
            ReduceKind::Min if x.is_nan() || x <= y => x,
            ReduceKind::Max | ReduceKind::Min => y,
            ReduceKind::Prod => x * y,
        }
    }

    fn join_ints(&self, x: i128, y: i128) -> i128 {
        match self.kind {
            ReduceKind::Sum | ReduceKind::Mean => x.wrapping_add(y),
            ReduceKind::Max => x.max(y),
            ReduceKind::Min => x.min(y),
            ReduceKind::Prod => x.wrapping_mul(y),
        }
    }
}

/// Joins the elements at `index` over all positions along `axes`, the last axis innermost.
fn join(n: &mut Nest, combine: Combine, axes: &[usize], shape: &[usize], index: &mut [Index]) -> Reg {
    match axes.split_first() {
        None => n.load(0, index),
        Some((&axis, rest)) => n.reduce(shape[axis], &[combine], |n, i| {
            index[axis] = i;
            vec![join(n, combine, rest, shape, index)]
        })[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_join() {
        let reduce = |kind, dtype| {
            let x = Tensor::zeros(dtype, &[0]).unwrap();
            Reduce { kind, axes: vec![0], keepdims: false }.eval(&[&x]).unwrap().remove(0)
        };
        let floats = [0.0, 0.0, f32::NEG_INFINITY, f32::INFINITY, 1.0];
        for (kind, expected) in ReduceKind::ALL.into_iter().zip(floats) {
            assert_eq!(reduce(kind, DType::F32), Tensor::scalar(expected), "{kind:?}");
        }
        assert_eq!(reduce(ReduceKind::Max, DType::I64), Tensor::scalar(i64::MIN));
        assert_eq!(reduce(ReduceKind::Min, DType::U8), Tensor::scalar(u8::MAX));
    }

    #[test]
    fn not_a_number_stays() {
        for kind in [ReduceKind::Max, ReduceKind::Min] {
            let x = Tensor::from_slice(&[3], &[1f32, f32::NAN, 2.0]).unwrap();
            let out = Reduce { kind, axes: vec![0], keepdims: false }.eval(&[&x]).unwrap();
            assert!(out[0].as_slice::<f32>().unwrap()[0].is_nan());
        }
    }

    #[test]
    fn kinds_read_back() {
        for kind in ReduceKind::ALL {
            assert_eq!(ReduceKind::read(&kind.write()), Ok(kind));
        }
        assert_eq!(ReduceKind::read("norm"), Err("`norm` is not a kind of reduction".into()));
    }
}
