//! The matrix product over the last two axes, `C[i, j] = Σₖ A[i, k] B[k, j]`; the axes before them broadcast.
//!
//! Vectors are not accepted: reshape them to matrices first.
//!
//! [`MatMul::precision`] says how the operands are rounded before they are multiplied, in [`Precision`]'s words. What
//! goes in and comes out is f32, and so is the constant in the graph; it is stored as narrow as it is rounded. Other
//! than `f32` it is for f32 operands, and lowered only where B is a constant matrix.

use margay_loops::precision::{bf16, from_bf16, int8, int8_scale};
use margay_loops::{BatchAxis, Epilogue, KernelCall, MatLayout, Precision};
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::{Numbers, broadcast_positions};
use crate::ops::facts::Parameter;
use crate::ops::lowering::strides_of;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, Reshape, Strided};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Op, TensorType, TypeError, Types, Value, types};

/// The (batched) product of A `[…, m, k]` and B `[…, k, n]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MatMul {
    /// How the operands are rounded.
    pub precision: Precision,
}

attributes!(MatMul { precision = Precision::F32 });

/// Batch axes a kernel call can have.
const MAX_BATCH_AXES: usize = 4;

impl OpDef for MatMul {
    const NAME: &'static str = "matmul";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [a, b] = types::inputs(inputs, "2")?;
        types::expect_float(0, a)?;
        types::expect_dtype(1, b, a.dtype)?;
        if self.precision != Precision::F32 {
            types::expect_dtype(0, a, DType::F32)?;
        }
        for (input, x) in [a, b].into_iter().enumerate() {
            if x.ndim() < 2 {
                return Err(TypeError::Ndim { input, expected: "at least 2".into(), found: x.ndim() });
            }
        }
        let (a_batch, a_matrix) = a.shape.split_at(a.ndim() - 2);
        let (b_batch, b_matrix) = b.shape.split_at(b.ndim() - 2);
        types::same_extent("columns of input 0 and rows of input 1", &a_matrix[1], &b_matrix[0])?;
        let mut shape = types::broadcast_shapes(a_batch, b_batch)?;
        shape.extend([a_matrix[0].clone(), b_matrix[1].clone()]);
        types::one(a.dtype, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let [a, b] = [inputs[0], inputs[1]];
        let shape = self.infer(&[&TensorType::of(a), &TensorType::of(b)])?[0].extents().unwrap_or_default();
        let (batch, matrix) = shape.split_at(shape.len() - 2);
        let (m, n, k) = (matrix[0], matrix[1], b.shape()[b.shape().len() - 2]);
        let blocks = |x: &Tensor| broadcast_positions(batch, &x.shape()[..x.shape().len() - 2]);
        let (a_blocks, b_blocks) = (blocks(a), blocks(b));
        let (mut a, mut b) = (Numbers::of(a)?.floats(), Numbers::of(b)?.floats());
        match self.precision {
            Precision::F32 => {}
            Precision::Bf16 => {
                a.iter_mut().chain(&mut b).for_each(|x| *x = f64::from(from_bf16(bf16(*x as f32))));
            }
            Precision::Int8 => b.chunks_mut((k * n).max(1)).for_each(|matrix| round_columns(matrix, n)),
        }
        let mut out = vec![0.0; shape.iter().product()];
        for (block, (a_block, b_block)) in a_blocks.into_iter().zip(b_blocks).enumerate() {
            for (i, l) in (0..m).flat_map(|i| (0..k).map(move |l| (i, l))) {
                let factor = a[(a_block * m + i) * k + l];
                let row = &b[(b_block * k + l) * n..][..n];
                let sums = &mut out[(block * m + i) * n..][..n];
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
            }
        }
        Ok(vec![Numbers::Float(out).into_tensor(inputs[0].dtype(), &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        if self.precision != Precision::F32 {
            return Grad::none("it rounds its operands");
        }
        let (a, b, dc) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let da = if cx.wants(0) {
            let turned = cx.transposed(b)?;
            Some(cx.op(MatMul::default(), &[dc, turned])?)
        } else {
            None
        };
        let db = if cx.wants(1) {
            // With one matrix B, all rows of A are summed over at once.
            let (mut a, mut dc) = (a, dc);
            if cx.ty(b).ndim() == 2 {
                (a, dc) = (rows(cx, a)?, rows(cx, dc)?);
            }
            let turned = cx.transposed(a)?;
            Some(cx.op(MatMul::default(), &[turned, dc])?)
        } else {
            None
        };
        Ok(Grad::Inputs(vec![da, db]))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (a, b, shape) = (&io.inputs[0], &io.inputs[1], &io.outputs[0].shape);
        if a.dtype != DType::F32 {
            return Err(NotLowered(format!("a matrix product of {}", a.dtype)));
        }
        let c = strides_of(shape);
        let rows = shape.len() - 2;
        let b_packed = b.constant && is_one_matrix(b) && b.is_contiguous();
        if self.precision != Precision::F32 && !b_packed {
            let name = self.precision.name();
            return Err(NotLowered(format!(
                "a matrix product in {name} whose right operand is no constant matrix"
            )));
        }
        let mut call = margay_loops::MatMul {
            m: shape[rows],
            n: shape[rows + 1],
            k: a.shape[a.shape.len() - 1],
            batch: Vec::new(),
            a: layout(a)?,
            b: layout(b)?,
            c_row_stride: c[rows] as usize,
            b_packed,
            precision: self.precision,
            epilogue: Epilogue::default(),
        };
        for axis in (0..rows).filter(|&axis| shape[axis] != 1) {
            let from_end = shape.len() - axis;
            push_batch_axis(
                &mut call.batch,
                BatchAxis {
                    extent: shape[axis],
                    a: stride(a, from_end)?,
                    b: stride(b, from_end)?,
                    c: c[axis] as usize,
                },
            );
        }
        call.join_rows();
        if call.batch.len() > MAX_BATCH_AXES {
            let found = call.batch.len();
            return Err(NotLowered(format!(
                "a matrix product over {found} batch axes, more than {MAX_BATCH_AXES}"
            )));
        }
        Ok(Lowered::Call(KernelCall::MatMul(call)))
    }

    fn cost(&self, io: &Io) -> Cost {
        let k = io.inputs[0].shape.last().map_or(0, |&k| k as u64);
        Cost { flops: 2 * k * io.output_elements(), bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts {
            elementwise: None,
            cheap: false,
            identity: false,
            symbolic: None,
            parameters: &[
                Some(Parameter::Weight(|a| a.last().copied().unwrap_or(1))),
                Some(Parameter::Weight(|b| b.iter().rev().nth(1).or(b.last()).copied().unwrap_or(1))),
            ],
            image: None,
            with_all_results: None,
        }
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn cases() -> Vec<(Self, Case)> {
        let shapes: [[&[usize]; 2]; 7] = [
            [&[3, 5], &[5, 7]],
            [&[1, 33], &[33, 17]],
            [&[2, 3, 4], &[4, 6]],
            [&[2, 3, 4, 5], &[2, 3, 5, 2]],
            [&[2, 1, 3, 4], &[5, 4, 3]],
            [&[3, 4], &[2, 4, 5]],
            [&[17, 65], &[65, 35]],
        ];
        let mut cases = shapes.map(|s| (MatMul::default(), Case::f32(&s))).to_vec();
        for precision in [Precision::Bf16, Precision::Int8] {
            for shapes in [[&[1, 33][..], &[33, 17]], [&[2, 7, 41], &[41, 40]], [&[19, 65], &[65, 35]]] {
                cases.push((MatMul { precision }, Case::f32(&shapes)));
            }
        }
        cases
    }
}

/// Rounds every column of a matrix of `n` columns as `int8` does.
fn round_columns(matrix: &mut [f64], n: usize) {
    for j in 0..n {
        let scale = int8_scale(matrix.iter().skip(j).step_by(n).map(|&x| x as f32));
        for x in matrix.iter_mut().skip(j).step_by(n) {
            *x = f64::from(int8(*x as f32, scale)) * f64::from(scale);
        }
    }
}

/// A value as one matrix with the same columns.
fn rows(cx: &mut Vjp<'_>, x: Value) -> Result<Value, AddError> {
    let shape = cx.ty(x).shape.clone();
    let (columns, outer) = (shape[shape.len() - 1].clone(), &shape[..shape.len() - 1]);
    if outer.len() == 1 {
        return Ok(x);
    }
    let rows = outer.iter().fold(Dim::from(1usize), |n, d| &n * d);
    cx.op(Reshape { shape: vec![rows, columns] }, &[x])
}

/// The stride of the axis that lies `from_end` from the end; 0 where the operand is shared.
fn stride(port: &Strided, from_end: usize) -> Result<usize, NotLowered> {
    match port.shape.len().checked_sub(from_end) {
        Some(axis) if from_end <= 2 || port.shape[axis] != 1 => usize::try_from(port.strides[axis])
            .map_err(|_| NotLowered("a matrix product of a reversed operand".into())),
        _ => Ok(0),
    }
}

fn layout(port: &Strided) -> Result<MatLayout, NotLowered> {
    Ok(MatLayout { row_stride: stride(port, 2)?, col_stride: stride(port, 1)? })
}

fn is_one_matrix(port: &Strided) -> bool {
    port.shape[..port.shape.len() - 2].iter().all(|&d| d == 1)
}

/// Appends a batch axis, joined with the one before where every operand moves through both as through one.
fn push_batch_axis(batch: &mut Vec<BatchAxis>, axis: BatchAxis) {
    match batch.last_mut() {
        Some(outer)
            if [(outer.a, axis.a), (outer.b, axis.b), (outer.c, axis.c)]
                .iter()
                .all(|&(outer, inner)| outer == axis.extent * inner) =>
        {
            *outer = BatchAxis { extent: outer.extent * axis.extent, ..axis };
        }
        _ => batch.push(axis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(a: Strided, b: Strided) -> Result<margay_loops::MatMul, NotLowered> {
        let types = [&a, &b].map(|p| TensorType::known(p.dtype, &p.shape));
        let out = MatMul::default().infer(&[&types[0], &types[1]]).unwrap()[0].extents().unwrap();
        let io = Io { outputs: vec![Strided::contiguous(DType::F32, &out)], inputs: vec![a, b] };
        match MatMul::default().lower(&io)? {
            Lowered::Call(KernelCall::MatMul(call)) => Ok(call),
            _ => unreachable!("a product lowers to a call"),
        }
    }

    fn port(shape: &[usize]) -> Strided {
        Strided::contiguous(DType::F32, shape)
    }

    #[test]
    fn rows_of_all_batches_meet_a_constant_at_once() {
        let weights = Strided { constant: true, ..port(&[1, 384, 512]) };
        let call = call(port(&[2, 7, 384]), weights).unwrap();
        assert_eq!(KernelCall::MatMul(call.clone()).to_string(), "matmul [14x384x512] packed");
        assert_eq!((call.a, call.c_row_stride), (MatLayout { row_stride: 384, col_stride: 1 }, 512));
    }

    #[test]
    fn heads_are_read_where_they_lie() {
        // [B, S, H, D] seen as [B, H, S, D], and its transpose.
        let q = Strided { strides: vec![7 * 12 * 32, 32, 12 * 32, 1], ..port(&[2, 12, 7, 32]) };
        let k = Strided { strides: vec![7 * 12 * 32, 32, 1, 12 * 32], ..port(&[2, 12, 32, 7]) };
        let call = call(q, k).unwrap();
        assert_eq!(call.b, MatLayout { row_stride: 1, col_stride: 384 });
        let batch = |extent, a, b, c| BatchAxis { extent, a, b, c };
        assert_eq!(call.batch, [batch(2, 2688, 2688, 588), batch(12, 32, 32, 49)]);
    }

    #[test]
    fn contiguous_batch_axes_become_one() {
        let call = call(port(&[2, 3, 4, 5]), port(&[2, 3, 5, 6])).unwrap();
        assert_eq!(call.batch, [BatchAxis { extent: 6, a: 20, b: 30, c: 24 }]);
    }

    #[test]
    fn narrow_products_have_constant_matrices() {
        let narrow = MatMul { precision: Precision::Bf16 };
        let io = |b: Strided| Io { outputs: vec![port(&[3, 4])], inputs: vec![port(&[3, 5]), b] };
        let Ok(Lowered::Call(call)) = narrow.lower(&io(Strided { constant: true, ..port(&[5, 4]) })) else {
            panic!("a constant matrix is lowered");
        };
        assert_eq!(call.to_string(), "matmul [3x5x4] packed bf16");
        let error = narrow.lower(&io(port(&[5, 4]))).err().unwrap();
        let expected = "a matrix product in bf16 whose right operand is no constant matrix";
        assert_eq!(error.to_string(), expected);
        let double = TensorType::known(DType::F64, &[5, 5]);
        let error = narrow.infer(&[&double, &double]).unwrap_err();
        assert_eq!(error.to_string(), "input 0 is f64, expected f32");
    }

    #[test]
    fn refusals_say_why() {
        let reversed = Strided { strides: vec![-5, 1], ..port(&[3, 5]) };
        let error = call(reversed, port(&[5, 2])).unwrap_err();
        assert_eq!(error.to_string(), "a matrix product of a reversed operand");
        let vector = TensorType::known(DType::F32, &[5]);
        let matrix = TensorType::known(DType::F32, &[5, 2]);
        let error = MatMul::default().infer(&[&vector, &matrix]).unwrap_err();
        assert_eq!(error.to_string(), "input 0 has 1 axes, expected at least 2");
        let error = MatMul::default().infer(&[&matrix, &matrix]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "columns of input 0 and rows of input 1: extents `2` and `5` differ or are not known to be equal"
        );
    }
}
