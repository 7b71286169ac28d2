//! The matrix product over the last two axes, `C[i, j] = Σₖ A[i, k] B[k, j]`; the axes before them broadcast.
//!
//! Vectors are not accepted: reshape them to matrices first.
//!
//! Operands of 8-bit integers, each signed or not, give sums of 32 bits, which wrap around. There is no product of wider
//! integers.
//!
//! A constant matrix B is read as it is stored. Where that is bf16 and A is an f32 rounded to bf16 (by a cast there and
//! back), the kernel does the rounding.

use margay_loops::{BatchAxis, Epilogue, KernelCall, MatLayout, ProductTypes};
use margay_tensor::{DType, Dim, Scales, Storage, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::{Numbers, broadcast_positions};
use crate::ops::facts::Parameter;
use crate::ops::lowering::strides_of;
use crate::ops::nn::wide;
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, Reshape, Strided};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Op, TensorType, TypeError, Types, Value, types};

/// The (batched) product of A `[…, m, k]` and B `[…, k, n]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MatMul;

attributes!(MatMul {});

impl OpDef for MatMul {
    const NAME: &'static str = "matmul";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [a, b] = types::inputs(inputs, "2")?;
        types::expect(0, a, a.dtype.is_float() || is_byte(a.dtype), "a float type, i8 or u8")?;
        let result = if is_byte(a.dtype) {
            types::expect(1, b, is_byte(b.dtype), "i8 or u8")?;
            DType::I32
        } else {
            types::expect_dtype(1, b, a.dtype)?;
            a.dtype
        };
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
        types::one(result, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let [a, b] = [inputs[0], inputs[1]];
        let ty = self.infer(&[&TensorType::of(a), &TensorType::of(b)])?.swap_remove(0);
        let shape = ty.extents().unwrap_or_default();
        let (batch, matrix) = shape.split_at(shape.len() - 2);
        let (m, n, k) = (matrix[0], matrix[1], b.shape()[b.shape().len() - 2]);
        let blocks = |x: &Tensor| broadcast_positions(batch, &x.shape()[..x.shape().len() - 2]);
        let (a_blocks, b_blocks) = (blocks(a), blocks(b));
        let out = match (Numbers::of(a)?, Numbers::of(b)?) {
            (Numbers::Int(a), Numbers::Int(b)) => {
                Numbers::Int(products(&a, &b, [m, n, k], &a_blocks, &b_blocks))
            }
            (a, b) => Numbers::Float(products(&a.floats(), &b.floats(), [m, n, k], &a_blocks, &b_blocks)),
        };
        Ok(vec![out.into_tensor(ty.dtype, &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        if is_byte(cx.ty(cx.input(0)).dtype) {
            return Grad::none("a product of integers has no derivative");
        }
        let (a, b, dc) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let da = if cx.wants(0) {
            let transposed = cx.transposed(b)?;
            Some(cx.op(MatMul, &[dc, transposed])?)
        } else {
            None
        };
        let db = if cx.wants(1) {
            // With one matrix B, all rows of A are summed over at once.
            let (mut a, mut dc) = (a, dc);
            if cx.ty(b).ndim() == 2 {
                (a, dc) = (rows(cx, a)?, rows(cx, dc)?);
            }
            let transposed = cx.transposed(a)?;
            Some(cx.op(MatMul, &[transposed, dc])?)
        } else {
            None
        };
        Ok(Grad::Inputs(vec![da, db]))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (a, b, shape) = (&io.inputs[0], &io.inputs[1], &io.outputs[0].shape);
        if wide::is_wide(a) {
            return Ok(wide::matmul(io));
        }
        let c = strides_of(shape);
        let rows = shape.len() - 2;
        let outer = b.shape.len() - 2;
        let b_packed = b.constant
            && is_one_matrix(b)
            && b.is_contiguous()
            && b.storage.signs.is_none_or(|signs| signs.axis >= outer);
        let right = if b_packed { matrix_storage(b) } else { Storage::plain(b.dtype) };
        // Rounding pays where the constant is as narrow.
        let rounded = if right == Storage::plain(a.rounded) { a.rounded } else { a.dtype };
        let result = io.outputs[0].dtype;
        let types = ProductTypes { left: a.dtype, left_rounded: rounded, right, result };
        let mut call = margay_loops::MatMul {
            m: shape[rows],
            n: shape[rows + 1],
            k: a.shape[a.shape.len() - 1],
            batch: Vec::new(),
            a: layout(a)?,
            b: layout(b)?,
            c_row_stride: c[rows] as usize,
            b_packed,
            types,
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

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let ndim = [cx.type_of(0).ndim(), cx.type_of(1).ndim()];
        // What is summed over is the last axis of the left operand, and the one before it of the right one.
        cx.along(self.clone(), |input, axis| {
            if axis + 1 + input == ndim[input] { Along::Neutral(0.0) } else { Along::Apart }
        })
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
        let mut cases = shapes.map(|s| (MatMul, Case::f32(&s))).to_vec();
        let bytes = |dtype| if dtype == DType::I8 { (-128.0, 128.0) } else { (0.0, 256.0) };
        for (a, b) in [DType::U8, DType::I8].into_iter().flat_map(|a| [(a, DType::U8), (a, DType::I8)]) {
            for [left, right] in shapes {
                let random = |dtype, shape: &[usize]| {
                    let (low, high) = bytes(dtype);
                    CaseInput::Random { dtype, shape: shape.to_vec(), low, high }
                };
                cases.push((MatMul, Case { inputs: vec![random(a, left), random(b, right)] }));
            }
        }
        cases
    }
}

/// Whether products of the type are sums of 32 bits.
fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8)
}

/// The products of the blocks of A `[m, k]` and B `[k, n]` at the given places.
fn products<T: Copy + Default + std::ops::AddAssign + std::ops::Mul<Output = T>>(
    a: &[T],
    b: &[T],
    [m, n, k]: [usize; 3],
    a_blocks: &[usize],
    b_blocks: &[usize],
) -> Vec<T> {
    let mut out = vec![T::default(); a_blocks.len() * m * n];
    for (block, (a_block, b_block)) in a_blocks.iter().zip(b_blocks).enumerate() {
        for (i, l) in (0..m).flat_map(|i| (0..k).map(move |l| (i, l))) {
            let factor = a[(a_block * m + i) * k + l];
            let row = &b[(b_block * k + l) * n..][..n];
            let sums = &mut out[(block * m + i) * n..][..n];
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * *x);
        }
    }
    out
}

/// The storage of a constant as that of its last two axes; the others have an extent of 1.
fn matrix_storage(port: &Strided) -> Storage {
    let outer = port.shape.len() - 2;
    let scales = match port.storage.scales {
        Scales::Axis(axis) | Scales::Block { axis, size: _ } if axis < outer => Scales::Tensor,
        Scales::Axis(axis) => Scales::Axis(axis - outer),
        Scales::Block { axis, size } => Scales::Block { axis: axis - outer, size },
        shared @ (Scales::None | Scales::Tensor) => shared,
    };
    let signs = port.storage.signs.map(|signs| signs.along(signs.axis - outer));
    Storage { scales, signs, ..port.storage }
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
        let out = MatMul.infer(&[&types[0], &types[1]]).unwrap().swap_remove(0);
        let outputs = vec![Strided::contiguous(out.dtype, &out.extents().unwrap())];
        let io = Io { outputs, inputs: vec![a, b] };
        match MatMul.lower(&io)? {
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
    fn constants_are_read_as_they_are_stored() {
        let text = |a: Strided, b: Strided| call(a, b).map(|c| KernelCall::MatMul(c).to_string()).unwrap();
        let stored = |storage| Strided { constant: true, storage, ..port(&[1, 5, 4]) };
        let rounded = || Strided { rounded: DType::BF16, ..port(&[3, 5]) };
        let bf16 = Storage::plain(DType::BF16);
        assert_eq!(text(port(&[3, 5]), stored(bf16)), "matmul [3x5x4] packed right bf16");
        assert_eq!(text(rounded(), stored(bf16)), "matmul [3x5x4] packed left to bf16 right bf16");
        assert_eq!(text(rounded(), stored(Storage::int8(2))), "matmul [3x5x4] packed right i8(axis = 1)");
        assert_eq!(text(rounded(), stored(Storage::int8(0))), "matmul [3x5x4] packed right i8(tensor)");
        // What is no constant matrix is read as numbers.
        assert_eq!(text(rounded(), port(&[5, 4])), "matmul [3x5x4]");
        let matrices = Strided { constant: true, storage: bf16, ..port(&[2, 5, 4]) };
        assert_eq!(text(port(&[2, 3, 5]), matrices), "matmul 2x[3x5x4]");
        let half = || Strided::contiguous(DType::F16, &[3, 3]);
        assert_eq!(text(half(), half()), "matmul [3x3x3] left f16 right f16 result f16");
    }

    #[test]
    fn bytes_give_sums_of_32_bits() {
        let bytes = |dtype, shape: &[usize]| Strided::contiguous(dtype, shape);
        let weights = Strided { constant: true, ..bytes(DType::I8, &[5, 4]) };
        let call = call(bytes(DType::U8, &[3, 5]), weights).unwrap();
        assert_eq!(KernelCall::MatMul(call).to_string(), "matmul [3x5x4] packed left u8 right i8 result i32");
        let ty = |dtype, shape: &[usize]| TensorType::known(dtype, shape);
        let error = MatMul.infer(&[&ty(DType::U8, &[3, 5]), &ty(DType::F32, &[5, 4])]).unwrap_err();
        assert_eq!(error.to_string(), "input 1 is f32, expected i8 or u8");
        let error = MatMul.infer(&[&ty(DType::I32, &[3, 5]), &ty(DType::I32, &[5, 4])]).unwrap_err();
        assert_eq!(error.to_string(), "input 0 is i32, expected a float type, i8 or u8");
        let sums = MatMul
            .eval(&[
                &Tensor::from_slice(&[1, 70_000], &vec![255u8; 70_000]).unwrap(),
                &Tensor::from_slice(&[70_000, 1], &vec![255u8; 70_000]).unwrap(),
            ])
            .unwrap();
        assert_eq!(sums[0].to_vec::<i32>().unwrap(), [4_551_750_000i64 as i32]);
    }

    #[test]
    fn refusals_say_why() {
        let reversed = Strided { strides: vec![-5, 1], ..port(&[3, 5]) };
        let error = call(reversed, port(&[5, 2])).unwrap_err();
        assert_eq!(error.to_string(), "a matrix product of a reversed operand");
        let vector = TensorType::known(DType::F32, &[5]);
        let matrix = TensorType::known(DType::F32, &[5, 2]);
        let error = MatMul.infer(&[&vector, &matrix]).unwrap_err();
        assert_eq!(error.to_string(), "input 0 has 1 axes, expected at least 2");
        let error = MatMul.infer(&[&matrix, &matrix]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "columns of input 0 and rows of input 1: extents `2` and `5` differ or are not known to be equal"
        );
    }
}
