//! The cotangents of the operands of [`Attention`], without a matrix of all scores (Dao, arXiv 2307.08691).
//!
//! Operands are Q `[B, H, S, D]`, K `[B, G, T, D]` and V `[B, G, T, E]` as there, then three that stand for the rest of
//! the forward pass and what came back: the logarithms L `[B, H, S]` of the sums of exponentials, the centres
//! Δ `[B, H, S]` and the cotangent dO `[B, H, S, E]` of the first result; last the mask, if there is one. The results are
//!
//! ```text
//! P = exp(scale Q Kᵀ + mask - L)      dS = P ∘ (dO Vᵀ - Δ)
//! dQ = scale dS K      dK = scale dSᵀ Q      dV = Pᵀ dO
//! ```
//!
//! summed over the heads that share one of K and V. Δ = Σ dO ∘ O - dL over a row, with the cotangent dL of the
//! logarithms, makes them the derivatives of attention; it is an operand because ordinary operators compute it well.
//!
//! A pair whose score is -∞ has weight 0 and no part in any sum, whatever L is. The cotangent of the mask would be the
//! whole matrix dS and is not computed here.

use margay_loops::KernelCall;
use margay_tensor::Tensor;

use crate::ops::attributes::attributes;
use crate::ops::elementwise::{Numbers, broadcast_positions};
use crate::ops::lowering::strides_of;
use crate::ops::nn::attention::{Attention, mask_strides, row_strides};
use crate::ops::{Bits, Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Derivatives of softmax attention by queries, keys and values.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AttentionGradient {
    /// Multiplies the scores.
    pub scale: Bits,
    /// Whether queries see keys up to their own position only.
    pub causal: bool,
}

attributes!(AttentionGradient { scale, causal = false });

/// Operations per score besides the five products: scale, exponential, difference, product.
const SCORE_FLOPS: usize = 12;

impl OpDef for AttentionGradient {
    const NAME: &'static str = "attention_gradient";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let &[q, k, v, logs, centres, d_o, ref mask @ ..] = inputs else {
            return Err(TypeError::Arity { expected: "6 or 7", found: inputs.len() });
        };
        if mask.len() > 1 {
            return Err(TypeError::Arity { expected: "6 or 7", found: inputs.len() });
        }
        let forward = Attention { scale: self.scale, causal: self.causal, log_sum_exp: true };
        let results = forward.infer(&[&[q, k, v], mask].concat())?;
        for (input, t, expected) in [(3, logs, &results[1]), (4, centres, &results[1]), (5, d_o, &results[0])]
        {
            types::expect_dtype(input, t, expected.dtype)?;
            if t.ndim() != expected.ndim() {
                let expected = expected.ndim().to_string();
                return Err(TypeError::Ndim { input, expected, found: t.ndim() });
            }
            for (axis, (found, expected)) in t.shape.iter().zip(&expected.shape).enumerate() {
                let what = format!("axis {axis} of input {input} and of attention");
                types::same_extent(&what, found, expected)?;
            }
        }
        Ok([q, k, v].into_iter().cloned().collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (q_shape, v_shape) = (inputs[0].shape(), inputs[2].shape());
        let (heads, queries, dim) = (q_shape[1], q_shape[2], q_shape[3]);
        let (kv_heads, keys, v_dim) = (v_shape[1], v_shape[2], v_shape[3]);
        let read = |input: usize| Numbers::of(inputs[input]).map(Numbers::floats);
        let (q, k, v) = (read(0)?, read(1)?, read(2)?);
        let (logs, centres, d_o) = (read(3)?, read(4)?, read(5)?);
        let mask: Vec<f64> = match inputs.get(6) {
            Some(mask) => {
                let values = read(6)?;
                let at = broadcast_positions(&[q_shape[0], heads, queries, keys], mask.shape());
                at.into_iter().map(|p| values[p]).collect()
            }
            None => vec![0.0; q_shape[0] * heads * queries * keys],
        };
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let scale = self.scale.get();
        for row in 0..q_shape[0] * heads * queries {
            let (batch, head) = (row / queries / heads, row / queries % heads);
            let block = (batch * kv_heads + head * kv_heads / heads) * keys;
            let (query, cotangent) = (row * dim..(row + 1) * dim, &d_o[row * v_dim..][..v_dim]);
            for t in 0..keys {
                let (key, value) = ((block + t) * dim..(block + t + 1) * dim, (block + t) * v_dim);
                let score = scale * dot(&q[query.clone()], &k[key.clone()]) + mask[row * keys + t];
                let hidden = self.causal && t + queries > row % queries + keys;
                if hidden || score == f64::NEG_INFINITY {
                    continue;
                }
                let weight = libm::exp(score - logs[row]);
                let product = dot(cotangent, &v[value..value + v_dim]);
                let d_score = scale * weight * (product - centres[row]);
                for (i, j) in query.clone().zip(key) {
                    dq[i] += d_score * k[j];
                    dk[j] += d_score * q[i];
                }
                dv[value..value + v_dim].iter_mut().zip(cotangent).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        let result = |values, input: usize| {
            Numbers::Float(values).into_tensor(inputs[0].dtype(), inputs[input].shape())
        };
        Ok(vec![result(dq, 0)?, result(dk, 1)?, result(dv, 2)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::none("second derivatives of attention are not taken")
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (q, k, v, d_o) = (&io.inputs[0], &io.inputs[1], &io.inputs[2], &io.inputs[5]);
        if io.inputs[3..5].iter().any(|port| !port.is_contiguous()) {
            return Err(NotLowered("derivatives of attention with logarithms that are not row-major".into()));
        }
        let scores = [q.shape[0], q.shape[1], q.shape[2], k.shape[2]];
        let row_major = |output: usize| {
            let strides = strides_of(&io.outputs[output].shape);
            [0, 1, 2].map(|axis| strides[axis] as usize)
        };
        Ok(Lowered::Call(KernelCall::AttentionGradient(margay_loops::AttentionGradient {
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
            d_o: row_strides(d_o)?,
            mask: io.inputs.get(6).map(|mask| mask_strides(mask, scores)).transpose()?,
            causal: self.causal,
            dq: row_major(0),
            dk: row_major(1),
            dv: row_major(2),
        })))
    }

    fn cost(&self, io: &Io) -> Cost {
        let (q, v) = (&io.inputs[0].shape, &io.inputs[2].shape);
        let scores = (q[0] * q[1]) as u64 * margay_loops::Attention::pairs(q[2], v[2], self.causal);
        let per_score = (6 * q[3] + 4 * v[3] + SCORE_FLOPS) as u64;
        Cost { flops: scores * per_score, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::plain(false)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.none(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let op = |causal| AttentionGradient { scale: Bits::new(0.5), causal };
        let case = |[b, h, g, s, t, d, e]: [usize; 7], mask: &[&[usize]]| {
            let (q, k, v): (&[usize], &[usize], &[usize]) = (&[b, h, s, d], &[b, g, t, d], &[b, g, t, e]);
            let (row, d_o): (&[usize], &[usize]) = (&[b, h, s], &[b, h, s, e]);
            Case::f32(&[&[q, k, v, row, row, d_o], mask].concat())
        };
        vec![
            (op(false), case([1, 2, 2, 5, 5, 8, 8], &[])),
            (op(false), case([2, 3, 3, 4, 9, 7, 5], &[&[2, 1, 1, 9]])),
            (op(false), case([2, 3, 3, 4, 9, 7, 5], &[&[3, 4, 9]])),
            (op(false), case([2, 3, 3, 4, 9, 7, 5], &[&[4, 1]])),
            (op(true), case([1, 2, 2, 6, 6, 8, 8], &[])),
            (op(true), case([2, 6, 2, 4, 9, 8, 3], &[&[2, 6, 4, 9]])),
            (op(true), case([1, 1, 1, 7, 4, 3, 3], &[])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use margay_tensor::DType;

    use super::*;

    #[test]
    fn operands_fit_the_forward_pass() {
        let ty = |shape: &[usize]| TensorType::known(DType::F32, shape);
        let (q, k, row, wide) = (ty(&[1, 2, 3, 8]), ty(&[1, 2, 5, 8]), ty(&[1, 2, 3]), ty(&[1, 2, 4]));
        let op = AttentionGradient { scale: Bits::new(1.0), causal: false };
        let error = |inputs: &[&TensorType]| op.infer(inputs).unwrap_err().to_string();
        assert_eq!(op.infer(&[&q, &k, &k, &row, &row, &q]).unwrap()[..], [q.clone(), k.clone(), k.clone()]);
        assert_eq!(error(&[&q, &k, &k]), "expected 6 or 7 inputs, found 3");
        assert_eq!(
            error(&[&q, &k, &k, &row, &wide, &q]),
            "axis 2 of input 4 and of attention: extents `4` and `3` differ or are not known to be equal"
        );
        assert_eq!(error(&[&q, &k, &k, &q, &row, &q]), "input 3 has 4 axes, expected 3");
    }

    #[test]
    fn rows_that_see_nothing_have_no_part() {
        // Three queries of two keys: the first sees none, and its logarithm is -∞.
        let op = AttentionGradient { scale: Bits::new(1.0), causal: true };
        let ones = |shape: &[usize]| Tensor::from_slice(shape, &vec![1f32; shape.iter().product()]).unwrap();
        let (q, k) = (ones(&[1, 1, 3, 1]), ones(&[1, 1, 2, 1]));
        let logs = Tensor::from_slice(&[1, 1, 3], &[f32::NEG_INFINITY, 1.0, 1.0]).unwrap();
        let centres = Tensor::from_slice(&[1, 1, 3], &[f32::NAN, 0.0, 0.0]).unwrap();
        let found = op.eval(&[&q, &k, &k, &logs, &centres, &q]).unwrap();
        let values = |i: usize| found[i].to_vec::<f32>().unwrap();
        assert_eq!((values(0), values(1)), (vec![0.0, 1.0, 2.0], vec![2.0, 1.0]));
        assert_eq!(values(2), [2.0, 1.0]);
    }
}
