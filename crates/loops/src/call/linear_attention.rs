//! Linear attention.

use std::fmt;

use margay_tensor::DType;

use super::attention::rows;
use super::{Call, CallArg, Epilogue, dtype_text, product};
use crate::text::fields;

/// Linear attention: `O = φQ (φKᵀ V) / (φQ Σ φK + ε)` for every batch and head, with a division per row; the sum
/// goes over the keys. The features φ are computed before.
///
/// Arguments: φQ, φK, V, O, workspace if any. The last axis of each is contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LinearAttention {
    /// Type of φQ, φK, V and O.
    pub dtype: DType,
    /// Sequences.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys per sequence; as many as queries if `causal`.
    pub kv_len: usize,
    /// Features of a query and of a key.
    pub features: usize,
    /// Length of a value.
    pub v_dim: usize,
    /// ε, added to the denominators; the bits of an f32.
    pub epsilon_bits: u32,
    /// Query i sees the keys j <= i only.
    pub causal: bool,
    /// Strides of (batch, head, row) of φQ.
    pub q: [usize; 3],
    /// Strides of (batch, head, row) of φK.
    pub k: [usize; 3],
    /// Strides of (batch, head, row) of V.
    pub v: [usize; 3],
    /// Strides of (batch, head, row) of O.
    pub o: [usize; 3],
}

fields!(LinearAttention {
    dtype = DType::F32,
    batch,
    heads,
    q_len,
    kv_len,
    features,
    v_dim,
    epsilon_bits,
    causal = false,
    q,
    k,
    v,
    o,
});

impl Call for LinearAttention {
    const FAMILY: &'static str = "linear_attention";

    fn flops(&self) -> u64 {
        let rows = self.q_len as u64 + self.kv_len as u64;
        2 * product(&[self.batch, self.heads, self.features, self.v_dim + 1]) * rows
    }

    fn args(&self) -> Vec<CallArg> {
        let read = |axes: Vec<(usize, usize)>| CallArg::read(self.dtype, &axes);
        let (queries, keys) = ([self.batch, self.heads, self.q_len], [self.batch, self.heads, self.kv_len]);
        vec![
            read(rows(queries, self.q, self.features)),
            read(rows(keys, self.k, self.features)),
            read(rows(keys, self.v, self.v_dim)),
            CallArg::written(self.dtype, &rows(queries, self.o, self.v_dim)),
        ]
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

    fn transposable(&mut self, _: usize) -> Option<&mut [usize; 3]> {
        None
    }
}

impl fmt::Display for LinearAttention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "linear_attention {}x{}x[{}, {}] features {} dim {}{}{}",
            self.batch,
            self.heads,
            self.q_len,
            self.kv_len,
            self.features,
            self.v_dim,
            if self.causal { " causal" } else { "" },
            dtype_text(self.dtype)
        )
    }
}
