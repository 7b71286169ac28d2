//! The Walsh–Hadamard transform of the last axis: `y = H x / √n` for its extent n, a power of two, where
//! `H[i][j] = (-1)^(number of bits that i and j share)`. H is symmetric and its own inverse but for the factor, so the
//! transform keeps lengths, undoes itself, and is its own derivative.

use margay_loops::KernelCall;
use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// The Walsh–Hadamard transform of the last axis.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Hadamard;

attributes!(Hadamard {});

impl OpDef for Hadamard {
    const NAME: &'static str = "hadamard";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        types::expect_float(0, x)?;
        let Some(last) = x.shape.last() else {
            return Err(TypeError::Ndim { input: 0, expected: "at least 1".into(), found: 0 });
        };
        if !last.as_extent().is_some_and(usize::is_power_of_two) {
            return Err(TypeError::attribute(format!(
                "the last extent is `{last}`, expected a power of two"
            )));
        }
        types::one(x.dtype, x.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let n = x.shape().last().copied().unwrap_or(1).max(1);
        let mut v = Numbers::of(x)?.floats();
        for row in v.chunks_exact_mut(n) {
            let mut half = 1;
            while half < n {
                for i in (0..n).filter(|i| i & half == 0) {
                    let (a, b) = (row[i], row[i + half]);
                    (row[i], row[i + half]) = (a + b, a - b);
                }
                half *= 2;
            }
            row.iter_mut().for_each(|y| *y /= (n as f64).sqrt());
        }
        Ok(vec![Numbers::Float(v).into_tensor(x.dtype(), x.shape())?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let dy = cx.cotangent()?;
        Grad::all([cx.op(Hadamard, &[dy])?])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let x = &io.inputs[0];
        if x.dtype != DType::F32 {
            return Err(NotLowered(format!("a Walsh–Hadamard transform of {}", x.dtype)));
        }
        if !x.is_contiguous() {
            return Err(NotLowered("a Walsh–Hadamard transform of rows that do not lie side by side".into()));
        }
        let (len, outer) = x.shape.split_last().expect("there is a last axis");
        Ok(Lowered::Call(KernelCall::Hadamard(margay_loops::Hadamard {
            rows: outer.iter().product(),
            len: *len,
        })))
    }

    fn cost(&self, io: &Io) -> Cost {
        let stages = io.inputs[0].shape.last().map_or(0, |n| n.ilog2());
        Cost::per_element(io, u64::from(stages) + 1)
    }

    fn facts(&self) -> Facts {
        Facts::plain(true)
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        // The last axis stays where it is.
        (perm.last()? + 1 == perm.len()).then(|| Hadamard.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let last = cx.type_of(0).ndim() - 1;
        cx.along(self.clone(), |_, axis| if axis == last { Along::Change } else { Along::Apart })
    }

    fn cases() -> Vec<(Self, Case)> {
        let shapes: [&[usize]; 9] =
            [&[5, 1], &[7, 2], &[2, 5, 8], &[9, 16], &[33, 32], &[5, 64], &[3, 2, 128], &[5, 1024], &[4096]];
        shapes.map(|shape| (Hadamard, Case::f32(&[shape]))).to_vec()
    }
}
