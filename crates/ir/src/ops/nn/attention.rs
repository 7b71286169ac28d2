//! Scaled dot-product attention (Vaswani et al., arXiv 1706.03762): `softmax(scale Q Kᵀ + mask) V` for every batch
//! and head, with the softmax over the keys.
//!
//! Operands are Q `[B, H, S, D]`, K `[B, H, T, D]`, V `[B, H, T, E]`, and optionally a mask that is added to the
//! scores and broadcasts to `[B, H, S, T]`. The result is `[B, H, S, E]`.

use margay_loops::KernelCall;
use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::{Numbers, broadcast_positions};
use crate::ops::lowering::strides_of;
use crate::ops::{Bits, Case, Cost, EvalError, Io, Lowered, MatMul, NotLowered, OpDef, Port, Softmax};
use crate::types::ShapeText;
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{TensorType, TypeError, Types, types};

/// Softmax attention of three operands, or four with a mask.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attention {
    /// Multiplies the scores.
    pub scale: Bits,
}

attributes!(Attention { scale });

/// Operations per score besides the two products: scale, maximum, exponential, sum, quotient.
const SOFTMAX_FLOPS: usize = 14;

impl OpDef for Attention {
    const NAME: &'static str = "attention";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let (q, k, v, mask) = match *inputs {
            [q, k, v] => (q, k, v, None),
            [q, k, v, mask] => (q, k, v, Some(mask)),
            _ => return Err(TypeError::Arity { expected: "3 or 4", found: inputs.len() }),
        };
        types::expect_float(0, q)?;
        for (input, t) in inputs.iter().enumerate() {
            types::expect_dtype(input, t, q.dtype)?;
        }
        for (input, t) in [q, k, v].into_iter().enumerate() {
            if t.ndim() != 4 {
                return Err(TypeError::Ndim { input, expected: "4".into(), found: t.ndim() });
            }
        }
        for (input, t) in [(1, k), (2, v)] {
            types::same_extent(&format!("batch of inputs 0 and {input}"), &q.shape[0], &t.shape[0])?;
            types::same_extent(&format!("heads of inputs 0 and {input}"), &q.shape[1], &t.shape[1])?;
        }
        types::same_extent("length of queries and keys", &q.shape[3], &k.shape[3])?;
        types::same_extent("number of keys and values", &k.shape[2], &v.shape[2])?;
        let [batch, heads, rows] = [0, 1, 2].map(|axis| q.shape[axis].clone());
        let scores = vec![batch.clone(), heads.clone(), rows.clone(), k.shape[2].clone()];
        if let Some(mask) = mask
            && types::broadcast_shapes(&mask.shape, &scores).ok().as_ref() != Some(&scores)
        {
            let (from, to) = (ShapeText(&mask.shape), ShapeText(&scores));
            return Err(TypeError::attribute(format!("mask `{from}` does not broadcast to scores `{to}`")));
        }
        types::one(q.dtype, vec![batch, heads, rows, v.shape[3].clone()])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (q_shape, v_shape) = (inputs[0].shape(), inputs[2].shape());
        let (queries, dim) = (q_shape[2], q_shape[3]);
        let (keys, v_dim) = (v_shape[2], v_shape[3]);
        let blocks = q_shape[0] * q_shape[1];
        let read = |input: usize| Numbers::of(inputs[input]).map(Numbers::floats);
        let (q, k, v) = (read(0)?, read(1)?, read(2)?);
        let mask: Vec<f64> = match inputs.get(3) {
            Some(mask) => {
                let values = read(3)?;
                let at = broadcast_positions(&[q_shape[0], q_shape[1], queries, keys], mask.shape());
                at.into_iter().map(|p| values[p]).collect()
            }
            None => vec![0.0; blocks * queries * keys],
        };
        let mut out = vec![0.0; blocks * queries * v_dim];
        for row in 0..blocks * queries {
            let block = row / queries;
            let query = &q[row * dim..][..dim];
            let score = |t: usize| {
                let key = &k[(block * keys + t) * dim..][..dim];
                let product: f64 = query.iter().zip(key).map(|(x, y)| x * y).sum();
                self.scale.get() * product + mask[row * keys + t]
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let max = scores.iter().fold(f64::NEG_INFINITY, |m, &x| if x > m { x } else { m });
            let weights: Vec<f64> = scores.iter().map(|x| libm::exp(x - max)).collect();
            let sum: f64 = weights.iter().sum();
            for (t, weight) in weights.iter().enumerate() {
                let value = &v[(block * keys + t) * v_dim..][..v_dim];
                let result = &mut out[row * v_dim..][..v_dim];
                result.iter_mut().zip(value).for_each(|(o, x)| *o += weight / sum * x);
            }
        }
        let shape = [q_shape[0], q_shape[1], queries, v_dim];
        Ok(vec![Numbers::Float(out).into_tensor(inputs[0].dtype(), &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        // By the whole matrix of weights P: dS = P (dO Vᵀ - Σ dO O), where S = scale Q Kᵀ + mask.
        let [q, k, v] = [0, 1, 2].map(|i| cx.input(i));
        let (o, d_o) = (cx.output(), cx.cotangent()?);
        let turned = cx.transposed(k)?;
        let scores = cx.op(MatMul, &[q, turned])?;
        let mut scores = cx.scale(scores, self.scale.get())?;
        if cx.arity() == 4 {
            scores = cx.add(scores, cx.input(3))?;
        }
        let weights = cx.op(Softmax { axis: 3 }, &[scores])?;
        let weights_turned = cx.transposed(weights)?;
        let dv = cx.op(MatMul, &[weights_turned, d_o])?;
        let v_turned = cx.transposed(v)?;
        let d_weights = cx.op(MatMul, &[d_o, v_turned])?;
        let product = cx.mul(d_o, o)?;
        let sum = cx.sum_kept(product, vec![3])?;
        let centred = cx.sub(d_weights, sum)?;
        let d_scores = cx.mul(weights, centred)?;
        let inner = cx.scale(d_scores, self.scale.get())?;
        let dq = cx.op(MatMul, &[inner, k])?;
        let inner_turned = cx.transposed(inner)?;
        let dk = cx.op(MatMul, &[inner_turned, q])?;
        let mut cotangents = vec![Some(dq), Some(dk), Some(dv)];
        cotangents.extend((cx.arity() == 4).then_some(Some(d_scores)));
        Ok(Grad::Inputs(cotangents))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (q, k, v, o) = (&io.inputs[0], &io.inputs[1], &io.inputs[2], &io.outputs[0]);
        if q.dtype != DType::F32 {
            return Err(NotLowered(format!("attention of {}", q.dtype)));
        }
        let scores = [q.shape[0], q.shape[1], q.shape[2], k.shape[2]];
        let o_strides = strides_of(&o.shape);
        Ok(Lowered::Call(KernelCall::Attention(margay_loops::Attention {
            batch: q.shape[0],
            heads: q.shape[1],
            q_len: q.shape[2],
            kv_len: k.shape[2],
            qk_dim: q.shape[3],
            v_dim: v.shape[3],
            scale_bits: (self.scale.get() as f32).to_bits(),
            q: row_strides(q)?,
            k: row_strides(k)?,
            v: row_strides(v)?,
            o: [0, 1, 2].map(|axis| o_strides[axis] as usize),
            mask: io.inputs.get(3).map(|mask| mask_strides(mask, scores)).transpose()?,
        })))
    }

    fn cost(&self, io: &Io) -> Cost {
        let (q, v) = (&io.inputs[0].shape, &io.inputs[2].shape);
        let scores = (q[0] * q[1] * q[2] * v[2]) as u64;
        let per_score = (2 * (q[3] + v[3]) + SOFTMAX_FLOPS) as u64;
        Cost { flops: scores * per_score, bytes: io.bytes() }
    }

    fn cases() -> Vec<(Self, Case)> {
        let plain: [&[usize]; 3] = [&[1, 2, 5, 8], &[1, 2, 5, 8], &[1, 2, 5, 8]];
        let uneven: [&[usize]; 3] = [&[2, 3, 4, 7], &[2, 3, 9, 7], &[2, 3, 9, 5]];
        let masked = |mask: &'static [usize]| Case::f32(&[uneven[0], uneven[1], uneven[2], mask]);
        vec![
            (Attention { scale: Bits::new(0.5) }, Case::f32(&plain)),
            (Attention { scale: Bits::new(0.25) }, Case::f32(&uneven)),
            (Attention { scale: Bits::new(0.25) }, masked(&[2, 1, 1, 9])),
            (Attention { scale: Bits::new(1.0) }, masked(&[3, 4, 9])),
            (Attention { scale: Bits::new(1.0) }, masked(&[4, 1])),
        ]
    }
}

fn known_stride(stride: i64) -> Result<usize, NotLowered> {
    usize::try_from(stride).map_err(|_| NotLowered("attention of a reversed operand".into()))
}

/// The strides of batch, head and row; the last axis must be contiguous.
fn row_strides(port: &Port) -> Result<[usize; 3], NotLowered> {
    if port.shape[3] != 1 && port.strides[3] != 1 {
        let message = format!("attention of an operand whose last axis has stride {}", port.strides[3]);
        return Err(NotLowered(message));
    }
    let strides = &port.strides;
    Ok([known_stride(strides[0])?, known_stride(strides[1])?, known_stride(strides[2])?])
}

/// The strides of the mask along the axes of the scores; 0 where it is shared.
fn mask_strides(mask: &Port, scores: [usize; 4]) -> Result<[usize; 4], NotLowered> {
    let mut strides = [0; 4];
    let skip = scores.len() - mask.shape.len();
    for (axis, (&extent, &stride)) in mask.shape.iter().zip(&mask.strides).enumerate() {
        if extent != 1 {
            strides[skip + axis] = known_stride(stride)?;
        }
    }
    Ok(strides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(shape: &[usize]) -> Port {
        Port::contiguous(DType::F32, shape)
    }

    #[test]
    fn strided_heads_and_shared_masks_are_read_where_they_lie() {
        // [B, S, H, D] seen as [B, H, S, D].
        let x = Port { strides: vec![7 * 96, 32, 96, 1], ..port(&[2, 3, 7, 32]) };
        let io = Io {
            inputs: vec![x.clone(), x.clone(), x.clone(), port(&[2, 1, 1, 7])],
            outputs: vec![port(&[2, 3, 7, 32])],
        };
        let op = Attention { scale: Bits::new(0.125) };
        let Ok(Lowered::Call(KernelCall::Attention(call))) = op.lower(&io) else {
            unreachable!("attention lowers to a call")
        };
        assert_eq!((call.q, call.o), ([672, 32, 96], [672, 224, 32]));
        assert_eq!(call.mask, Some([7, 0, 0, 1]));
        let transposed = Port { strides: vec![672, 32, 1, 96], ..x.clone() };
        let io = Io { inputs: vec![x.clone(), transposed, x], ..io };
        assert_eq!(
            op.lower(&io).err().map(|e| e.0).unwrap_or_default(),
            "attention of an operand whose last axis has stride 96"
        );
    }

    #[test]
    fn refusals_say_why() {
        let ty = |shape: &[usize]| TensorType::known(DType::F32, shape);
        let (q, k) = (ty(&[1, 2, 3, 8]), ty(&[1, 2, 5, 8]));
        let op = Attention { scale: Bits::new(1.0) };
        let error = |inputs: &[&TensorType]| op.infer(inputs).unwrap_err().to_string();
        assert_eq!(
            error(&[&q, &k, &k, &ty(&[1, 2, 3, 4])]),
            "mask `[1, 2, 3, 4]` does not broadcast to scores `[1, 2, 3, 5]`"
        );
        assert_eq!(
            error(&[&q, &k, &q]),
            "number of keys and values: extents `5` and `3` differ or are not known to be equal"
        );
        assert_eq!(error(&[&q, &k]), "expected 3 or 4 inputs, found 2");
    }
}
