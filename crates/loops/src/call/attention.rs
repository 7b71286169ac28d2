//! Softmax attention.

use std::fmt;

use margay_tensor::DType;

use super::{Call, CallArg, Epilogue, dtype_text, product};
use crate::text::fields;

/// Exact softmax attention: `O = softmax(scale · Q Kᵀ + mask) V` for every batch and head.
///
/// A row whose scores are all -∞, or that sees no key for being causal, is 0 / 0, a NaN; without any keys O is 0.
/// The logarithm of the sum of exponentials, `log Σ exp(scale · q·k + mask)`, is -∞ in both cases.
///
/// Arguments: Q, K, V, mask if any (additive), O, log-sum-exp if any, workspace if any. The last axis of each is
/// contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attention {
    /// Type of Q, K, V, mask and O; logarithms are f32.
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
    /// Strides of (batch, head, row) of O.
    pub o: [usize; 3],
    /// Strides of (batch, head, query, key) of the mask; 0 where it is shared.
    pub mask: Option<[usize; 4]>,
    /// Query i sees the keys j <= i + kv_len - q_len only.
    pub causal: bool,
    /// The logarithms of the sums of exponentials are a result too: row-major [batch, head, query].
    pub log_sum_exp: bool,
}

impl Attention {
    /// Pairs of a query and a key that it sees, of one head. Causal queries are the last of as many as there are
    /// keys: query i sees key j where j <= i + `kv_len` - `q_len`.
    pub fn pairs(q_len: usize, kv_len: usize, causal: bool) -> u64 {
        let (queries, keys) = (q_len as u128, kv_len as u128);
        let side = queries.min(keys);
        let triangle = side * (side + 1) / 2 + queries * keys.saturating_sub(queries);
        u64::try_from(if causal { triangle } else { queries * keys }).unwrap_or(u64::MAX)
    }
}

fields!(Attention {
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
    o,
    mask = None,
    causal = false,
    log_sum_exp = false,
});

/// Rows of so many elements of every (batch, head, row).
pub(super) fn rows(extents: [usize; 3], strides: [usize; 3], dim: usize) -> Vec<(usize, usize)> {
    extents.into_iter().zip(strides).chain([(dim, 1)]).collect()
}

/// A mask of (batch, head, query, key).
pub(super) fn mask_arg(dtype: DType, extents: [usize; 4], strides: [usize; 4]) -> CallArg {
    CallArg::read(dtype, &extents.into_iter().zip(strides).collect::<Vec<_>>())
}

impl Call for Attention {
    const FAMILY: &'static str = "attention";

    fn flops(&self) -> u64 {
        2 * product(&[self.batch, self.heads, self.qk_dim + self.v_dim])
            * Attention::pairs(self.q_len, self.kv_len, self.causal)
    }

    fn args(&self) -> Vec<CallArg> {
        let read = |axes: Vec<(usize, usize)>| CallArg::read(self.dtype, &axes);
        let keys = [self.batch, self.kv_heads, self.kv_len];
        let mut args = vec![
            read(rows([self.batch, self.heads, self.q_len], self.q, self.qk_dim)),
            read(rows(keys, self.k, self.qk_dim)),
            read(rows(keys, self.v, self.v_dim)),
        ];
        args.extend(
            self.mask
                .map(|mask| mask_arg(self.dtype, [self.batch, self.heads, self.q_len, self.kv_len], mask)),
        );
        let o = rows([self.batch, self.heads, self.q_len], self.o, self.v_dim);
        args.push(CallArg::written(self.dtype, &o));
        let logarithms = [(self.batch * self.heads * self.q_len, 1)];
        args.extend(self.log_sum_exp.then(|| CallArg::written(DType::F32, &logarithms)));
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
        (result == 0).then_some(&mut self.o)
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "attention {}x{}x[{}, {}] dims {} and {}{}{}{}{}",
            self.batch,
            self.heads,
            self.q_len,
            self.kv_len,
            self.qk_dim,
            self.v_dim,
            if self.causal { " causal" } else { "" },
            if self.mask.is_some() { " +mask" } else { "" },
            if self.log_sum_exp { " +log_sum_exp" } else { "" },
            dtype_text(self.dtype)
        )
    }
}
