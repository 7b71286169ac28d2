//! Adds parts of the first operand up where the second says: starting from zeros, `result[o…, indices[j…], i…] +=
//! updates[o…, j…, i…]`. The adjoint of [`Gather`]: what is read from one place several times is added up there.
//!
//! Negative indices count from the end. An index outside the axis is an error of the reference interpreter and a
//! fault of a compiled program, which then adds to the nearest element instead.

use margay_loops::{Index, Literal};
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::shape::checked_position;
use crate::ops::shape::known_extents;
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Gather, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Adds up parts of the first operand (floats) at the places in the second (i64 or i32).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ScatterAdd {
    /// The axis of the result that the indices count.
    pub axis: usize,
    /// The extent of that axis.
    pub extent: Dim,
    /// Number of axes of the indices; they begin at `axis` of the first operand.
    pub indices: usize,
}

attributes!(ScatterAdd { axis, extent, indices });

impl OpDef for ScatterAdd {
    const NAME: &'static str = "scatter_add";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [updates, at] = types::inputs(inputs, "2")?;
        types::expect_float(0, updates)?;
        types::expect(1, at, matches!(at.dtype, DType::I64 | DType::I32), "i64 or i32")?;
        if at.ndim() != self.indices {
            return Err(TypeError::Ndim { input: 1, expected: self.indices.to_string(), found: at.ndim() });
        }
        let inner = self.axis + self.indices;
        if updates.ndim() < inner {
            let expected = format!("at least {inner}");
            return Err(TypeError::Ndim { input: 0, expected, found: updates.ndim() });
        }
        for (axis, extent) in at.shape.iter().enumerate() {
            let what = format!("axis {} of input 0 and axis {axis} of input 1", axis + self.axis);
            types::same_extent(&what, &updates.shape[axis + self.axis], extent)?;
        }
        let (outer, rest) = (&updates.shape[..self.axis], &updates.shape[inner..]);
        types::one(updates.dtype, [outer, std::slice::from_ref(&self.extent), rest].concat())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (updates, at) = (inputs[0], inputs[1]);
        let extent = known_extents(std::slice::from_ref(&self.extent))?[0];
        let (outer, rest) = updates.shape().split_at(self.axis);
        let inner = &rest[self.indices..];
        let size: usize = inner.iter().product();
        let (given, values) = (Numbers::of(at)?.ints(), Numbers::of(updates)?.floats());
        let shape = [outer, &[extent], inner].concat();
        let mut out = vec![0.0; shape.iter().product()];
        for o in 0..outer.iter().product() {
            for (j, &index) in given.iter().enumerate() {
                let wrapped = if index < 0 { index.saturating_add(extent as i64) } else { index };
                let found = usize::try_from(wrapped).ok().filter(|&p| p < extent);
                let p = found.ok_or(EvalError::Index { index, extent })?;
                let from = &values[(o * given.len() + j) * size..][..size];
                let to = &mut out[(o * extent + p) * size..][..size];
                to.iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
            }
        }
        Ok(vec![Numbers::Float(out).into_tensor(updates.dtype(), &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (at, dy) = (cx.input(1), cx.cotangent()?);
        Ok(Grad::Inputs(vec![Some(cx.op(Gather { axis: self.axis }, &[dy, at])?), None]))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (axis, places) = (self.axis, io.inputs[1].shape.clone());
        let extent = io.outputs[0].shape[axis];
        let dtype = io.outputs[0].dtype;
        if matches!(dtype, DType::F16 | DType::BF16) {
            // The sums lie in the result, which would round each of them.
            return Err(NotLowered(format!("sums of {dtype} in memory")));
        }
        if extent == 0 && io.inputs[0].elements() > 0 {
            return Err(NotLowered("a sum into an axis of extent 0".into()));
        }
        let (outer, inner) = (io.outputs[0].shape[..axis].to_vec(), io.outputs[0].shape[axis + 1..].to_vec());
        let range = io.inputs[1].range;
        Ok(Lowered::nest(move |n| {
            n.for_each(&outer, |n, o| {
                let rows = [&[extent][..], &inner].concat();
                n.serial_each(&rows, o, &mut |n, at| {
                    let zero = n.literal(Literal::of(dtype, 0.0));
                    n.store_raw(0, at, zero);
                });
                // Indices are counted through as one axis, innermost last; equal ones add up in their order.
                n.serial_each(&places, o, &mut |n, at| {
                    let given = n.load(1, &at[o.len()..]);
                    let position = Index::reg(checked_position(n, given, extent, range));
                    let at = at.to_vec();
                    n.serial_each(&inner, &at, &mut |n, from| {
                        let mut to = o.to_vec();
                        to.push(position.clone());
                        to.extend_from_slice(&from[at.len()..]);
                        let (sum, x) = (n.reload(0, &to), n.load(0, from));
                        let sum = n.add(sum, x);
                        n.store_raw(0, &to, sum);
                    });
                });
                n.serial_each(&rows, o, &mut |n, at| {
                    let sum = n.reload(0, at);
                    n.store(0, at, sum);
                });
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::plain(true)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let at = cx.indices(1, &self.extent)?;
        cx.replace(1, at);
        let indices = self.axis..self.axis + self.indices;
        cx.along(self.clone(), |input, axis| match input == 0 && indices.contains(&axis) {
            true => Along::Neutral(0.0),
            false => Along::Apart,
        })
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |updates: &[usize], dtype: DType, shape: &[usize], extent: f64| {
            let shape = shape.to_vec();
            Case::f32(&[updates]).with(CaseInput::Random { dtype, shape, low: -extent, high: extent })
        };
        let op = |axis, extent: usize, indices| ScatterAdd { axis, extent: Dim::from(extent), indices };
        vec![
            (op(0, 5, 2), case(&[2, 3, 7], DType::I64, &[2, 3], 5.0)),
            (op(1, 4, 1), case(&[2, 9, 3], DType::I32, &[9], 4.0)),
            (op(2, 9, 0), case(&[2, 3], DType::I64, &[], 9.0)),
            (op(0, 1, 1), case(&[3], DType::I64, &[3], 1.0)),
        ]
    }
}
