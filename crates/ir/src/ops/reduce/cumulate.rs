//! Sums or products of all elements up to each one along an axis: `y[j] = Σ x[i]` over i <= j; over i < j if
//! `exclusive`; over i >= j or i > j if `reverse`.

use margay_loops::{Binary, Index};
use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::{Domain, Numbers};
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Running sums or products along an axis. Integers wrap.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cumulate {
    /// The axis.
    pub axis: usize,
    /// Products instead of sums.
    pub product: bool,
    /// Without the element itself.
    pub exclusive: bool,
    /// From the end.
    pub reverse: bool,
}

attributes!(Cumulate { axis, product = false, exclusive = false, reverse = false });

impl OpDef for Cumulate {
    const NAME: &'static str = "cumulate";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        Domain::Number.check(0, x)?;
        types::check_axis(self.axis, x.ndim())?;
        types::one(x.dtype, x.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (shape, product) = (inputs[0].shape(), self.product);
        let out = match Numbers::of(inputs[0])? {
            Numbers::Float(v) => {
                let join = |x: f64, y: f64| if product { x * y } else { x + y };
                Numbers::Float(self.run(shape, &v, f64::from(u8::from(product)), join))
            }
            Numbers::Int(v) => {
                let join = |x: i128, y: i128| if product { x.wrapping_mul(y) } else { x.wrapping_add(y) };
                Numbers::Int(self.run(shape, &v, i128::from(product), join))
            }
        };
        Ok(vec![out.into_tensor(inputs[0].dtype(), shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        if self.product {
            return Grad::none("there is no rule for products of elements");
        }
        let dy = cx.cotangent()?;
        Grad::all([cx.op(Cumulate { reverse: !self.reverse, ..self.clone() }, &[dy])?])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (op, shape, dtype) = (self.clone(), io.outputs[0].shape.clone(), io.outputs[0].dtype);
        if matches!(dtype, DType::F16 | DType::BF16) {
            // The sums lie in the result, which would round each of them.
            return Err(NotLowered(format!("sums of {dtype} in memory")));
        }
        Ok(Lowered::nest(move |n| {
            let extent = shape[op.axis];
            if extent == 0 {
                return n.for_each(&shape, |n, i| {
                    let x = n.load(0, i);
                    n.store(0, i, x);
                });
            }
            let mut rows = shape.clone();
            rows[op.axis] = 1;
            n.for_each(&rows, |n, i| {
                let at = |j: &Index| {
                    let last = Index::constant(extent as i64 - 1);
                    let mut index = i.to_vec();
                    index[op.axis] = if op.reverse { last.plus(j, -1) } else { j.clone() };
                    index
                };
                let first = at(&Index::constant(0));
                let x = n.load(0, &first);
                let start = if op.exclusive { n.number(x, f64::from(u8::from(op.product))) } else { x };
                n.store_raw(0, &first, start);
                if extent > 1 {
                    n.serial(extent - 1, |n, j| {
                        let next = j.plus(&Index::constant(1), 1);
                        let so_far = n.reload(0, &at(&j));
                        let x = n.load(0, &at(if op.exclusive { &j } else { &next }));
                        let joined = n.binary(if op.product { Binary::Mul } else { Binary::Add }, so_far, x);
                        n.store_raw(0, &at(&next), joined);
                    });
                }
                n.serial(extent, |n, j| {
                    let y = n.reload(0, &at(&j));
                    n.store(0, &at(&j), y);
                });
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 1)
    }

    fn facts(&self) -> Facts {
        Facts::plain(true)
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        Some(Cumulate { axis: perm.iter().position(|&p| p == self.axis)?, ..self.clone() }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let neutral = if self.product { 1.0 } else { 0.0 };
        cx.along(self.clone(), |_, axis| match axis == self.axis && self.reverse {
            true => Along::Neutral(neutral),
            false => Along::Apart,
        })
    }

    fn cases() -> Vec<(Self, Case)> {
        let mut cases = Vec::new();
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            let op = |axis, product| Cumulate { axis, product, exclusive, reverse };
            cases.push((op(1, false), Case::f32(&[&[3, 7]])));
            cases.push((op(0, false), Case::f32(&[&[4, 2, 3]])));
            cases.push((op(1, true), Case::f32(&[&[2, 5, 3]])));
            cases.push((op(0, false), Case::random(DType::I64, -9.0, 9.0, &[&[6]])));
        }
        cases.push((
            Cumulate { axis: 0, product: false, exclusive: true, reverse: false },
            Case::f32(&[&[1]]),
        ));
        cases
    }
}

impl Cumulate {
    fn run<T: Copy>(&self, shape: &[usize], x: &[T], start: T, join: impl Fn(T, T) -> T) -> Vec<T> {
        let extent = shape[self.axis];
        let inner: usize = shape[self.axis + 1..].iter().product();
        let mut y = x.to_vec();
        if extent == 0 {
            return y;
        }
        for row in (0..x.len() / extent).map(|r| r / inner * extent * inner + r % inner) {
            let mut sum = start;
            for j in 0..extent {
                let at = row + inner * if self.reverse { extent - 1 - j } else { j };
                let next = join(sum, x[at]);
                y[at] = if self.exclusive { sum } else { next };
                sum = next;
            }
        }
        y
    }
}
