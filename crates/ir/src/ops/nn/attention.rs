//! Scaled dot-product attention (Vaswani et al., arXiv 1706.03762): `softmax(scale Q Kᵀ + mask) V` for every batch
//! and head, with the softmax over the keys.
//!
//! Operands are Q `[B, H, S, D]`, K `[B, H, T, D]`, V `[B, H, T, E]`, and optionally a mask that is added to the
//! scores and broadcasts to `[B, H, S, T]`. K and V may have fewer heads G, a divisor of H: head h then reads the head
//! h · G / H (Ainslie et al., arXiv 2305.13245). The first result is `[B, H, S, E]`.
//!
//! With `causal`, query i sees key j only where j <= i + T - S: the queries are the last of T positions. With
//! `log_sum_exp` there is a second result `[B, H, S]`, `log Σ exp(scale q·k + mask)` over the keys, natural logarithm.
//!
//! A row that sees no key, or whose scores are all -∞, is 0 / 0, a NaN, as softmax makes it; where T is 0 it is 0. Its
//! logarithm is -∞ in both cases.

use margay_loops::KernelCall;
use margay_tensor::{Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::{Numbers, broadcast_positions};
use crate::ops::lowering::strides_of;
use crate::ops::nn::wide;
use crate::ops::{
    AttentionGradient, Bits, Broadcast, Case, Cost, EvalError, Facts, Io, Lowered, MatMul, NotLowered, OpDef,
    Reduce, ReduceKind, Reshape, Softmax, Strided,
};
use crate::padding::{Along, Padded, Padding};
use crate::types::ShapeText;
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Op, TensorType, TypeError, Types, Value, types};

/// Softmax attention of three operands, or four with a mask.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attention {
    /// Multiplies the scores.
    pub scale: Bits,
    /// Whether queries see keys up to their own position only.
    pub causal: bool,
    /// Whether the logarithms of the sums of exponentials are a second result.
    pub log_sum_exp: bool,
}

attributes!(Attention { scale, causal = false, log_sum_exp = false });

impl Attention {
    /// Attention in which every query sees every key, with one result.
    pub fn new(scale: f64) -> Attention {
        Attention { scale: Bits::new(scale), causal: false, log_sum_exp: false }
    }
}

impl Attention {
    /// Keys or values with a head for every head of the queries.
    fn spread(&self, cx: &mut Vjp<'_>, input: usize) -> Result<Value, AddError> {
        let (x, heads) = (cx.input(input), cx.ty(cx.input(0)).shape[1].clone());
        let shape = cx.ty(x).shape.clone();
        let Some(shared) = heads.floor_div(&shape[1]).filter(|_| heads != shape[1]) else { return Ok(x) };
        let mut split = shape.clone();
        split.insert(2, Dim::from(1usize));
        let x = cx.op(Reshape { shape: split.clone() }, &[x])?;
        split[2] = shared;
        let x = cx.op(Broadcast { shape: split }, &[x])?;
        cx.op(Reshape { shape: [&shape[..1], &[heads], &shape[2..]].concat() }, &[x])
    }

    /// The sum of cotangents of [`spread`](Attention::spread) heads over those that were one.
    fn joined(&self, cx: &mut Vjp<'_>, input: usize, dx: Value) -> Result<Value, AddError> {
        let (x, heads) = (cx.input(input), cx.ty(cx.input(0)).shape[1].clone());
        let shape = cx.ty(x).shape.clone();
        let Some(shared) = heads.floor_div(&shape[1]).filter(|_| heads != shape[1]) else { return Ok(dx) };
        let mut split = shape;
        split.insert(2, shared);
        let dx = cx.op(Reshape { shape: split }, &[dx])?;
        let sum = cx.sum_kept(dx, vec![2])?;
        cx.reshape_like(sum, x)
    }

    /// The cotangents of all operands by the whole matrix of weights P: dS = P (dO Vᵀ - Σ dO O + dL), where S = scale Q
    /// Kᵀ + mask, and dL is the cotangent of the logarithms. The cotangent of the mask is as large as that.
    fn vjp_with_mask(&self, cx: &mut Vjp<'_>) -> GradResult {
        let q = cx.input(0);
        let (k, v) = (self.spread(cx, 1)?, self.spread(cx, 2)?);
        let transposed = cx.transposed(k)?;
        let scores = cx.op(MatMul, &[q, transposed])?;
        let scores = cx.scale(scores, self.scale.get())?;
        let mask = cx.input(3);
        let mut scores = cx.add(scores, mask)?;
        if self.causal {
            let (rows, keys) = (cx.ty(scores).shape[2].as_extent(), cx.ty(scores).shape[3].as_extent());
            let (Some(rows), Some(keys)) = (rows, keys) else {
                return Grad::none("there is no rule for a causal mask of open extents");
            };
            let hidden =
                |at: usize| if at % keys + rows > at / keys + keys { f64::NEG_INFINITY } else { 0.0 };
            let mask = Numbers::Float((0..rows * keys).map(hidden).collect());
            let mask = mask.into_tensor(cx.ty(scores).dtype, &[rows, keys]);
            let mask = mask.map_err(|e| TypeError::attribute(e.to_string()));
            let mask = mask.map_err(|error| AddError { op: Attention::NAME, error })?;
            let mask = cx.constant(mask)?;
            scores = cx.add(scores, mask)?;
        }
        let weights = cx.op(Softmax { axis: 3 }, &[scores])?;
        let d_scores = match (cx.cotangent_of(0), cx.cotangent_of(1)) {
            (Some(d_o), d_log) => {
                let v_transposed = cx.transposed(v)?;
                let d_weights = cx.op(MatMul, &[d_o, v_transposed])?;
                let o = cx.output();
                let product = cx.product(d_o, o)?;
                let sum = cx.sum_kept(product, vec![3])?;
                let mut centred = cx.sub(d_weights, sum)?;
                if let Some(d_log) = d_log {
                    let d_log = cx.reshape_like(d_log, sum)?;
                    centred = cx.add(centred, d_log)?;
                }
                cx.product(centred, weights)?
            }
            (None, Some(d_log)) => {
                let mut shape = cx.ty(weights).shape.clone();
                shape[3] = Dim::from(1usize);
                let d_log = cx.op(Reshape { shape }, &[d_log])?;
                cx.product(d_log, weights)?
            }
            (None, None) => return Grad::zero(cx.arity()),
        };
        let inner = cx.scale(d_scores, self.scale.get())?;
        let dq = cx.op(MatMul, &[inner, k])?;
        let inner_transposed = cx.transposed(inner)?;
        let dk = cx.op(MatMul, &[inner_transposed, q])?;
        let dk = self.joined(cx, 1, dk)?;
        let dv = match cx.cotangent_of(0) {
            Some(d_o) => {
                let weights_transposed = cx.transposed(weights)?;
                let dv = cx.op(MatMul, &[weights_transposed, d_o])?;
                Some(self.joined(cx, 2, dv)?)
            }
            None => None,
        };
        Ok(Grad::Inputs(vec![Some(dq), Some(dk), dv, Some(d_scores)]))
    }
}

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
            if !divides(&t.shape[1], &q.shape[1]) {
                types::same_extent(&format!("heads of inputs 0 and {input}"), &q.shape[1], &t.shape[1])?;
            }
        }
        types::same_extent("length of queries and keys", &q.shape[3], &k.shape[3])?;
        types::same_extent("heads of keys and values", &k.shape[1], &v.shape[1])?;
        types::same_extent("number of keys and values", &k.shape[2], &v.shape[2])?;
        let [batch, heads, rows] = [0, 1, 2].map(|axis| q.shape[axis].clone());
        let scores = vec![batch.clone(), heads.clone(), rows.clone(), k.shape[2].clone()];
        if let Some(mask) = mask
            && types::broadcast_shapes(&mask.shape, &scores).ok().as_ref() != Some(&scores)
        {
            let (from, to) = (ShapeText(&mask.shape), ShapeText(&scores));
            return Err(TypeError::attribute(format!("mask `{from}` does not broadcast to scores `{to}`")));
        }
        let logs = vec![batch.clone(), heads.clone(), rows.clone()];
        let mut results = types::one(q.dtype, vec![batch, heads, rows, v.shape[3].clone()])?;
        if self.log_sum_exp {
            results.push(TensorType::new(q.dtype, logs));
        }
        Ok(results)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (q_shape, v_shape) = (inputs[0].shape(), inputs[2].shape());
        let (heads, queries, dim) = (q_shape[1], q_shape[2], q_shape[3]);
        let (kv_heads, keys, v_dim) = (v_shape[1], v_shape[2], v_shape[3]);
        let blocks = q_shape[0] * heads;
        let read = |input: usize| Numbers::of(inputs[input]).map(Numbers::floats);
        let (q, k, v) = (read(0)?, read(1)?, read(2)?);
        let mask: Vec<f64> = match inputs.get(3) {
            Some(mask) => {
                let values = read(3)?;
                let at = broadcast_positions(&[q_shape[0], heads, queries, keys], mask.shape());
                at.into_iter().map(|p| values[p]).collect()
            }
            None => vec![0.0; blocks * queries * keys],
        };
        let mut out = vec![0.0; blocks * queries * v_dim];
        let mut logs = vec![0.0; blocks * queries];
        for row in 0..blocks * queries {
            let (batch, head) = (row / queries / heads, row / queries % heads);
            let block = batch * kv_heads + head * kv_heads / heads;
            let query = &q[row * dim..][..dim];
            let score = |t: usize| {
                if self.causal && t + queries > row % queries + keys {
                    return f64::NEG_INFINITY;
                }
                let key = &k[(block * keys + t) * dim..][..dim];
                let product: f64 = query.iter().zip(key).map(|(x, y)| x * y).sum();
                self.scale.get() * product + mask[row * keys + t]
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let max = scores.iter().fold(f64::NEG_INFINITY, |m, &x| if x > m { x } else { m });
            let weights: Vec<f64> = scores.iter().map(|x| libm::exp(x - max)).collect();
            let sum: f64 = weights.iter().sum();
            let none = scores.iter().all(|&x| x == f64::NEG_INFINITY);
            logs[row] = if none { f64::NEG_INFINITY } else { max + libm::log(sum) };
            for (t, weight) in weights.iter().enumerate() {
                let value = &v[(block * keys + t) * v_dim..][..v_dim];
                let result = &mut out[row * v_dim..][..v_dim];
                result.iter_mut().zip(value).for_each(|(o, x)| *o += weight / sum * x);
            }
        }
        let (dtype, shape) = (inputs[0].dtype(), [q_shape[0], heads, queries, v_dim]);
        let mut results = vec![Numbers::Float(out).into_tensor(dtype, &shape)?];
        if self.log_sum_exp {
            results.push(Numbers::Float(logs).into_tensor(dtype, &shape[..3])?);
        }
        Ok(results)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let masked = cx.arity() == 4;
        if masked && cx.wants(3) {
            return self.vjp_with_mask(cx);
        }
        // What the gradient reads of the forward pass comes from this node with both results, which takes its place.
        let both = Attention { log_sum_exp: true, ..self.clone() };
        let operands: Vec<Value> = (0..cx.arity()).map(|i| cx.input(i)).collect();
        let output = cx.again(both, &operands)?;
        let logs = Value { out: 1, ..output };
        let (d_o, d_log) = (cx.cotangent()?, cx.cotangent_of(1));
        let product = cx.product(d_o, output)?;
        let sum = Reduce { kind: ReduceKind::Sum, axes: vec![3], keepdims: false };
        let mut centres = cx.op(sum, &[product])?;
        if let Some(d_log) = d_log {
            centres = cx.sub(centres, d_log)?;
        }
        let mut inputs = vec![operands[0], operands[1], operands[2], logs, centres, d_o];
        inputs.extend(operands.get(3));
        let gradient = cx.op(AttentionGradient { scale: self.scale, causal: self.causal }, &inputs)?;
        let mut found: Vec<_> = (0..3).map(|out| Some(Value { out, ..gradient })).collect();
        found.extend(masked.then_some(None));
        Ok(Grad::Inputs(found))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (q, k, v, o) = (&io.inputs[0], &io.inputs[1], &io.inputs[2], &io.outputs[0]);
        if wide::is_wide(q) {
            return wide::attention(self, io);
        }
        let scores = [q.shape[0], q.shape[1], q.shape[2], k.shape[2]];
        let o_strides = strides_of(&o.shape);
        Ok(Lowered::Call(KernelCall::Attention(margay_loops::Attention {
            dtype: q.dtype,
            batch: q.shape[0],
            heads: q.shape[1],
            kv_heads: k.shape[1],
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
            causal: self.causal,
            log_sum_exp: self.log_sum_exp,
        })))
    }

    fn cost(&self, io: &Io) -> Cost {
        let (q, v) = (&io.inputs[0].shape, &io.inputs[2].shape);
        let scores = (q[0] * q[1]) as u64 * margay_loops::Attention::pairs(q[2], v[2], self.causal);
        let per_score = (2 * (q[3] + v[3]) + SOFTMAX_FLOPS) as u64;
        Cost { flops: scores * per_score, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts {
            elementwise: None,
            cheap: false,
            identity: false,
            symbolic: None,
            parameters: &[],
            image: None,
            with_all_results: Some(Attention { log_sum_exp: true, ..self.clone() }.into()),
        }
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        // Queries and batches stand for themselves; keys do not.
        cx.along(self.clone(), |input, axis| match (input, axis) {
            (0..=2, 0) => Along::Apart,
            (0, 2) if !self.causal => Along::Apart,
            _ => Along::Change,
        })
    }

    fn cases() -> Vec<(Self, Case)> {
        let plain: [&[usize]; 3] = [&[1, 2, 5, 8], &[1, 2, 5, 8], &[1, 2, 5, 8]];
        let uneven: [&[usize]; 3] = [&[2, 3, 4, 7], &[2, 3, 9, 7], &[2, 3, 9, 5]];
        let masked = |mask: &'static [usize]| Case::f32(&[uneven[0], uneven[1], uneven[2], mask]);
        vec![
            (Attention::new(0.5), Case::f32(&plain)),
            (Attention::new(0.25), Case::f32(&uneven)),
            (Attention::new(0.25), masked(&[2, 1, 1, 9])),
            (Attention::new(1.0), masked(&[3, 4, 9])),
            (Attention::new(1.0), masked(&[4, 1])),
            (Attention::new(1.0), masked(&[2, 3, 4, 9])),
            (Attention { causal: true, ..Attention::new(0.5) }, Case::f32(&plain)),
            (Attention { causal: true, log_sum_exp: true, ..Attention::new(0.25) }, masked(&[2, 1, 1, 9])),
            (Attention { log_sum_exp: true, ..Attention::new(0.5) }, Case::f32(&uneven)),
            (Attention::new(0.5), Case::f32(&[&[2, 6, 5, 8], &[2, 2, 7, 8], &[2, 2, 7, 3]])),
        ]
    }
}

/// Whether both extents are known and the first divides the second.
fn divides(part: &Dim, whole: &Dim) -> bool {
    match (part.as_extent(), whole.as_extent()) {
        (Some(part), Some(whole)) => part > 0 && whole % part == 0,
        _ => false,
    }
}

fn known_stride(stride: i64) -> Result<usize, NotLowered> {
    usize::try_from(stride).map_err(|_| NotLowered("attention of a reversed operand".into()))
}

/// The strides of batch, head and row; the last axis must be contiguous.
pub(super) fn row_strides(port: &Strided) -> Result<[usize; 3], NotLowered> {
    if port.shape[3] != 1 && port.strides[3] != 1 {
        let message = format!("attention of an operand whose last axis has stride {}", port.strides[3]);
        return Err(NotLowered(message));
    }
    let strides = &port.strides;
    Ok([known_stride(strides[0])?, known_stride(strides[1])?, known_stride(strides[2])?])
}

/// The strides of the mask along the axes of the scores; 0 where it is shared.
pub(super) fn mask_strides(mask: &Strided, scores: [usize; 4]) -> Result<[usize; 4], NotLowered> {
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
    use margay_tensor::DType;

    use super::*;

    fn port(shape: &[usize]) -> Strided {
        Strided::contiguous(DType::F32, shape)
    }

    #[test]
    fn strided_heads_and_shared_masks_are_read_where_they_lie() {
        // [B, S, H, D] seen as [B, H, S, D].
        let x = Strided { strides: vec![7 * 96, 32, 96, 1], ..port(&[2, 3, 7, 32]) };
        let io = Io {
            inputs: vec![x.clone(), x.clone(), x.clone(), port(&[2, 1, 1, 7])],
            outputs: vec![port(&[2, 3, 7, 32])],
        };
        let op = Attention::new(0.125);
        let Ok(Lowered::Call(KernelCall::Attention(call))) = op.lower(&io) else {
            unreachable!("attention lowers to a call")
        };
        assert_eq!((call.q, call.o), ([672, 32, 96], [672, 224, 32]));
        assert_eq!(call.mask, Some([7, 0, 0, 1]));
        let transposed = Strided { strides: vec![672, 32, 1, 96], ..x.clone() };
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
        let op = Attention::new(1.0);
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
        let three = ty(&[1, 3, 5, 8]);
        assert_eq!(
            error(&[&q, &three, &three]),
            "heads of inputs 0 and 1: extents `2` and `3` differ or are not known to be equal"
        );
    }

    #[test]
    fn rows_without_keys_are_nan_and_their_logarithms_minus_infinity() {
        // Three queries of two keys: the first sees none.
        let op = Attention { causal: true, log_sum_exp: true, ..Attention::new(1.0) };
        let zeros = |shape: &[usize]| Tensor::from_slice(shape, &vec![0f32; shape.iter().product()]).unwrap();
        let v = Tensor::from_slice(&[1, 1, 2, 1], &[3f32, 5.0]).unwrap();
        let results = op.eval(&[&zeros(&[1, 1, 3, 1]), &zeros(&[1, 1, 2, 1]), &v]).unwrap();
        let (o, logs) = (results[0].to_vec::<f32>().unwrap(), results[1].to_vec::<f32>().unwrap());
        assert!(o[0].is_nan());
        assert_eq!(o[1..], [3.0, 4.0]);
        assert_eq!(logs, [f32::NEG_INFINITY, 0.0, std::f32::consts::LN_2]);
        let results =
            op.eval(&[&zeros(&[1, 1, 3, 1]), &zeros(&[1, 1, 0, 1]), &zeros(&[1, 1, 0, 1])]).unwrap();
        assert_eq!(results[0].to_vec::<f32>().unwrap(), [0.0; 3]);
        assert_eq!(results[1].to_vec::<f32>().unwrap(), [f32::NEG_INFINITY; 3]);
    }
}
