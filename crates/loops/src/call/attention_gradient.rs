//! Derivatives of softmax attention.

use std::fmt;

use margay_tensor::DType;

use super::attention::{mask_arg, rows};
use super::{Attention, Call, CallArg, Epilogue, dtype_text, product};
use crate::text::fields;

/// The cotangents of the operands of [`Attention`] (Dao, arXiv 2307.08691). With the scores
/// `S = scale · Q Kᵀ + mask`, the logarithms L of the sums of exponentials and a number Δ for every query,
/// `P = exp(S - L)`, `dS = P ∘ (dO Vᵀ - Δ)`:
///
/// `dQ = scale · dS K`, `dK = scale · dSᵀ Q`, `dV = Pᵀ dO`, the last two summed over the heads that share keys.
///
/// A pair whose score is -∞, or whose key the query does not see, has no part in any sum.
///
/// Arguments: Q, K, V, L, Δ (both row-major [batch, head, query]), dO, mask if any (additive), dQ, dK, dV, workspace if
/// any. The last axis of matrices is contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AttentionGradient {
    /// Type of Q, K, V, dO, mask, dQ, dK and dV; L and Δ are f32.
    pub dtype: DType,
    /// Sequences.
    pub batch: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values; divides `heads`, and head h reads that with number h · kv_heads / heads.
    pub kv_heads: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys per sequence.
    pub kv_len: usize,
    /// Length of a query and of a key.
    pub qk_dim: usize,
    /// Length of a value.
    pub v_dim: usize,
    /// Multiplies the scores; the bits of an f32.
    pub scale_bits: u32,
    /// Strides of (batch, head, row) of Q.
    pub q: [usize; 3],
    /// Strides of (batch, head, row) of K.
    pub k: [usize; 3],
    /// Strides of (batch, head, row) of V.
    pub v: [usize; 3],
    /// Strides of (batch, head, row) of dO.
    pub d_o: [usize; 3],
    /// Strides of (batch, head, query, key) of the mask; 0 where it is shared.
    pub mask: Option<[usize; 4]>,
    /// Query i sees the keys j <= i + kv_len - q_len only.
    pub causal: bool,
    /// Strides of (batch, head, row) of dQ.
    pub dq: [usize; 3],
    /// Strides of (batch, head, row) of dK.
    pub dk: [usize; 3],
    /// Strides of (batch, head, row) of dV.
    pub dv: [usize; 3],
}

fields!(AttentionGradient {
    dtype = DType::F32,
    batch,
    heads,
    kv_heads,
    q_len,
    kv_len,
    qk_dim,
    v_dim,
    scale_bits,
    q,
    k,
    v,
    d_o,
    mask = None,
    causal = false,
    dq,
    dk,
    dv,
});

impl Call for AttentionGradient {
    const FAMILY: &'static str = "attention_gradient";

    /// The scores again, and four products more.
    fn flops(&self) -> u64 {
        2 * product(&[self.batch, self.heads, 3 * self.qk_dim + 2 * self.v_dim])
            * Attention::pairs(self.q_len, self.kv_len, self.causal)
    }

    fn args(&self) -> Vec<CallArg> {
        let read = |axes: Vec<(usize, usize)>| CallArg::read(self.dtype, &axes);
        let written = |axes: Vec<(usize, usize)>| CallArg::written(self.dtype, &axes);
        let queries = [self.batch, self.heads, self.q_len];
        let keys = [self.batch, self.kv_heads, self.kv_len];
        let numbers = vec![(self.batch * self.heads * self.q_len, 1)];
        let mut args = vec![
            read(rows(queries, self.q, self.qk_dim)),
            read(rows(keys, self.k, self.qk_dim)),
            read(rows(keys, self.v, self.v_dim)),
            CallArg::read(DType::F32, &numbers),
            CallArg::read(DType::F32, &numbers),
            read(rows(queries, self.d_o, self.v_dim)),
        ];
        args.extend(
            self.mask
                .map(|mask| mask_arg(self.dtype, [self.batch, self.heads, self.q_len, self.kv_len], mask)),
        );
        args.push(written(rows(queries, self.dq, self.qk_dim)));
        args.push(written(rows(keys, self.dk, self.qk_dim)));
        args.push(written(rows(keys, self.dv, self.v_dim)));
        args
    }

    fn epilogue(&mut self) -> Option<&mut Epilogue> {
        None
    }

    fn packed(&mut self) -> Option<(usize, &mut bool)> {
        None
    }

    fn rounds(&self, _: usize) -> Option<DType> {
        None
    }

    fn sums_of_integers(&mut self) -> Option<&mut DType> {
        None
    }

    fn transposable(&mut self, result: usize) -> Option<&mut [usize; 3]> {
        [&mut self.dq, &mut self.dk, &mut self.dv].into_iter().nth(result)
    }
}

impl fmt::Display for AttentionGradient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "attention_gradient {}x{}x[{}, {}] dims {} and {}{}{}{}",
            self.batch,
            self.heads,
            self.q_len,
            self.kv_len,
            self.qk_dim,
            self.v_dim,
            if self.causal { " causal" } else { "" },
            if self.mask.is_some() { " +mask" } else { "" },
            dtype_text(self.dtype)
        )
    }
}
