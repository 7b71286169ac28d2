//! Linear attention (Katharopoulos et al., arXiv 2006.16236; Choromanski et al., arXiv 2009.14794): every query weighs
//! the values by the products of its features and those of the keys, and divides by the sum of these weights.
//!
//! Operands are φQ `[B, H, S, M]`, φK `[B, H, T, M]` and V `[B, H, T, E]`; the features φ are computed before. The
//! result is `[B, H, S, E]`:
//!
//! ```text
//! out_i = φq_i (Σ_j φk_jᵀ v_j) / (φq_i Σ_j φk_jᵀ + epsilon)
//! ```
//!
//! The sums go over all keys, or with `causal`, where S = T, over j <= i. A denominator of 0 makes a quotient by 0.

use margay_loops::KernelCall;
use margay_tensor::{DType, Dim, Tensor};

use super::attention::row_strides;
use super::causal_sums::{CausalSums, padded, part};
use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::lowering::strides_of;
use crate::ops::{
    Bits, Broadcast, Case, Concat, Cost, EvalError, Facts, Io, Lowered, MatMul, NotLowered, OpDef,
};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Builder, Op, TensorType, TypeError, Types, Value, types};

/// Attention by products of features, of three operands.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LinearAttention {
    /// Whether queries see keys up to their own position only.
    pub causal: bool,
    /// Added to the denominators.
    pub epsilon: Bits,
}

attributes!(LinearAttention { causal = false, epsilon = Bits::new(0.0) });

impl LinearAttention {
    /// Whether sums over earlier positions go over several chunks of a given number of positions, or may do so.
    pub fn has_chunks(&self, positions: &Dim) -> bool {
        self.causal && CausalSums::new(positions).has_chunks()
    }

    /// Numerator and denominator of the causal form by ordinary operators, none of which grows with the square of the number of
    /// positions: sums over earlier positions of the values and of 1.
    ///
    /// # Errors
    /// Operands of another operator.
    pub fn in_chunks(&self, b: &mut Builder<'_>, [q, k, v]: [Value; 3]) -> Result<[Value; 2], AddError> {
        let width = b.ty(v).shape[3].clone();
        let with_ones = padded(b, v, 3, 1, 1.0)?;
        let sums = CausalSums::new(&b.ty(q).shape[2]).of(b, [q, k, with_ones], false)?;
        let values = part(b, sums, 3, [&Dim::default(), &width])?;
        let mut total = part(b, sums, 3, [&width, &(&width + &Dim::from(1usize))])?;
        if self.epsilon.get() != 0.0 {
            total = b.offset(total, self.epsilon.get())?;
        }
        Ok([values, total])
    }

    /// Derivatives of the causal form are causal sums themselves, two of them from the last position backwards. With
    /// N = Σ (φq·φk) v and d = Σ φq·φk + epsilon: dN = dO / d, dd = -dO·O / d, and
    ///
    /// ```text
    /// dφq_i = Σ_{j <= i} (dN_i·v_j + dd_i) φk_j
    /// dφk_j = Σ_{i >= j} (dN_i·v_j + dd_i) φq_i
    /// dv_j  = Σ_{i >= j} (φq_i·φk_j) dN_i
    /// ```
    fn causal_vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let [q, k, v] = [0, 1, 2].map(|i| cx.input(i));
        let sums = CausalSums::new(&cx.ty(q).shape[2]);
        let d_out = cx.cotangent()?;
        let mut column = cx.ty(v).shape.clone();
        column[3] = Dim::from(1usize);
        let one = cx.number(v, 1.0)?;
        let ones = cx.op(Broadcast { shape: column }, &[one])?;
        let total = sums.of(cx, [q, k, ones], false)?;
        let total = cx.offset(total, self.epsilon.get())?;
        let d_n = cx.div(d_out, total)?;
        let o = cx.output();
        let along = cx.mul(d_n, o)?;
        let along = cx.sum_kept(along, vec![3])?;
        let d_total = cx.neg(along)?;
        let left = cx.op(Concat { axis: 3 }, &[d_n, d_total])?;
        let right = cx.op(Concat { axis: 3 }, &[v, ones])?;
        let dq = sums.of(cx, [left, right, k], false)?;
        let dk = sums.of(cx, [right, left, q], true)?;
        Grad::all([dq, dk, sums.of(cx, [k, q, d_n], true)?])
    }
}

impl OpDef for LinearAttention {
    const NAME: &'static str = "linear_attention";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [q, k, v] = types::inputs(inputs, "3")?;
        types::expect_float(0, q)?;
        for (input, t) in [q, k, v].into_iter().enumerate() {
            types::expect_dtype(input, t, q.dtype)?;
            if t.ndim() != 4 {
                return Err(TypeError::Ndim { input, expected: "4".into(), found: t.ndim() });
            }
        }
        for (input, t) in [(1, k), (2, v)] {
            types::same_extent(&format!("batch of inputs 0 and {input}"), &q.shape[0], &t.shape[0])?;
            types::same_extent(&format!("heads of inputs 0 and {input}"), &q.shape[1], &t.shape[1])?;
        }
        types::same_extent("features of queries and keys", &q.shape[3], &k.shape[3])?;
        types::same_extent("number of keys and values", &k.shape[2], &v.shape[2])?;
        if self.causal {
            types::same_extent("number of queries and keys", &q.shape[2], &k.shape[2])?;
        }
        let mut shape = q.shape.clone();
        shape[3] = v.shape[3].clone();
        types::one(q.dtype, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (q_shape, v_shape) = (inputs[0].shape(), inputs[2].shape());
        let (queries, features) = (q_shape[2], q_shape[3]);
        let (keys, v_dim) = (v_shape[2], v_shape[3]);
        let read = |input: usize| Numbers::of(inputs[input]).map(Numbers::floats);
        let (q, k, v) = (read(0)?, read(1)?, read(2)?);
        let rows = q_shape[0] * q_shape[1] * queries;
        let mut out = vec![0.0; rows * v_dim];
        for row in 0..rows {
            let (block, query) = (row / queries, &q[row * features..][..features]);
            let seen = if self.causal { row % queries + 1 } else { keys };
            let mut total = self.epsilon.get();
            let result = &mut out[row * v_dim..][..v_dim];
            for t in block * keys..block * keys + seen {
                let key = &k[t * features..][..features];
                let weight: f64 = query.iter().zip(key).map(|(x, y)| x * y).sum();
                total += weight;
                result.iter_mut().zip(&v[t * v_dim..][..v_dim]).for_each(|(o, x)| *o += weight * x);
            }
            result.iter_mut().for_each(|o| *o /= total);
        }
        let shape = [q_shape[0], q_shape[1], queries, v_dim];
        Ok(vec![Numbers::Float(out).into_tensor(inputs[0].dtype(), &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        if self.causal {
            return self.causal_vjp(cx);
        }
        // out = N / d with N = φQ M, d = φQ s + epsilon, M = φKᵀ V and s = Σ φK.
        let [q, k, v] = [0, 1, 2].map(|i| cx.input(i));
        let d_out = cx.cotangent()?;
        let product = |cx: &mut Vjp<'_>, x, y| cx.op(MatMul, &[x, y]);
        let k_transposed = cx.transposed(k)?;
        let moments = product(cx, k_transposed, v)?;
        let sum = cx.sum_kept(k, vec![2])?;
        let sum_transposed = cx.transposed(sum)?;
        let total = product(cx, q, sum_transposed)?;
        let total = cx.offset(total, self.epsilon.get())?;
        let d_n = cx.div(d_out, total)?;
        let o = cx.output();
        let along = cx.mul(d_n, o)?;
        let along = cx.sum_kept(along, vec![3])?;
        let d_total = cx.neg(along)?;
        let moments_transposed = cx.transposed(moments)?;
        let dq = product(cx, d_n, moments_transposed)?;
        let by_total = product(cx, d_total, sum)?;
        let dq = cx.add(dq, by_total)?;
        let q_transposed = cx.transposed(q)?;
        let d_moments = product(cx, q_transposed, d_n)?;
        let d_sum = product(cx, q_transposed, d_total)?;
        let d_sum = cx.transposed(d_sum)?;
        let d_moments_transposed = cx.transposed(d_moments)?;
        let dk = product(cx, v, d_moments_transposed)?;
        let dk = cx.add(dk, d_sum)?;
        Grad::all([dq, dk, product(cx, k, d_moments)?])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (q, k, v, o) = (&io.inputs[0], &io.inputs[1], &io.inputs[2], &io.outputs[0]);
        let o_strides = strides_of(&o.shape);
        Ok(Lowered::Call(KernelCall::LinearAttention(margay_loops::LinearAttention {
            dtype: q.dtype,
            batch: q.shape[0],
            heads: q.shape[1],
            q_len: q.shape[2],
            kv_len: k.shape[2],
            features: q.shape[3],
            v_dim: v.shape[3],
            epsilon_bits: (self.epsilon.get() as f32).to_bits(),
            causal: self.causal,
            q: row_strides(q)?,
            k: row_strides(k)?,
            v: row_strides(v)?,
            o: [0, 1, 2].map(|axis| o_strides[axis] as usize),
        })))
    }

    fn cost(&self, io: &Io) -> Cost {
        let (q, v) = (&io.inputs[0].shape, &io.inputs[2].shape);
        let rows = q[0] * q[1] * (q[2] + v[2]);
        Cost { flops: (2 * rows * q[3] * (v[3] + 1)) as u64, bytes: io.bytes() }
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
        let op = |causal, epsilon| LinearAttention { causal, epsilon: Bits::new(epsilon) };
        // Features are positive, as those of kernels are.
        let case = |q: &[usize], k: &[usize], v: &[usize]| Case::random(DType::F32, 0.1, 2.0, &[q, k, v]);
        let uneven = || case(&[2, 3, 4, 7], &[2, 3, 9, 7], &[2, 3, 9, 5]);
        let square = || case(&[1, 2, 70, 6], &[1, 2, 70, 6], &[1, 2, 70, 33]);
        vec![
            (op(false, 0.0), uneven()),
            (op(false, 0.5), uneven()),
            (op(true, 0.0), square()),
            (op(true, 1e-3), square()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_why() {
        let ty = |shape: &[usize]| TensorType::known(DType::F32, shape);
        let (q, k) = (ty(&[1, 2, 3, 8]), ty(&[1, 2, 5, 8]));
        let error = |causal, inputs: &[&TensorType]| {
            let op = LinearAttention { causal, epsilon: Bits::new(0.0) };
            op.infer(inputs).unwrap_err().to_string()
        };
        assert_eq!(
            error(true, &[&q, &k, &k]),
            "number of queries and keys: extents `3` and `5` differ or are not known to be equal"
        );
        assert_eq!(
            error(false, &[&q, &ty(&[1, 2, 5, 4]), &k]),
            "features of queries and keys: extents `8` and `4` differ or are not known to be equal"
        );
        assert_eq!(error(false, &[&q, &k]), "expected 3 inputs, found 2");
        assert_eq!(error(false, &[&q, &k, &ty(&[5, 8])]), "input 2 has 2 axes, expected 4");
    }

    #[test]
    fn weights_are_products_over_their_sum() {
        let tensor = |shape: &[usize], x: &[f32]| Tensor::from_slice(shape, x).unwrap();
        let q = tensor(&[1, 1, 2, 1], &[1.0, 2.0]);
        let k = tensor(&[1, 1, 2, 1], &[1.0, 3.0]);
        let v = tensor(&[1, 1, 2, 1], &[4.0, 8.0]);
        let run = |causal, epsilon| {
            let op = LinearAttention { causal, epsilon: Bits::new(epsilon) };
            op.eval(&[&q, &k, &v]).unwrap()[0].to_vec::<f32>().unwrap()
        };
        assert_eq!(run(false, 0.0), [7.0, 7.0]);
        assert_eq!(run(true, 0.0), [4.0, 7.0]);
        assert_eq!(run(false, 3.0), [4.0, 56.0 / 11.0]);
    }
}
