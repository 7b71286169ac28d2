//! Linear attention that makes its features.

use std::fmt;

use margay_tensor::DType;

use super::attention::rows;
use super::{Call, CallArg, Epilogue, dtype_text, product};
use crate::text::{Field, fields};

/// What features are made of the products `x` of a query or a key with directions. In a product with the sum of the weights of a
/// query, what all its features are multiplied by does not count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FeatureMap {
    /// `max(x, 0)`.
    Relu,
    /// Exponentials, of queries below their greatest x, of keys as they are.
    Exp,
    /// Exponentials, of queries below their greatest x, of keys below the greatest exponent of all keys of the head.
    ExpByExponents,
    /// Exponentials, of queries below their greatest x, of keys below the greatest x of all keys of the head.
    ExpByProducts,
}

impl FeatureMap {
    /// Every one.
    pub const ALL: [FeatureMap; 4] =
        [FeatureMap::Relu, FeatureMap::Exp, FeatureMap::ExpByExponents, FeatureMap::ExpByProducts];

    /// The name used in text forms.
    pub fn name(self) -> &'static str {
        match self {
            FeatureMap::Relu => "relu",
            FeatureMap::Exp => "exp",
            FeatureMap::ExpByExponents => "exp-by-exponents",
            FeatureMap::ExpByProducts => "exp-by-products",
        }
    }

    /// The one with a name.
    ///
    /// # Errors
    /// In words: there is none.
    pub fn from_name(name: &str) -> Result<FeatureMap, String> {
        let found = FeatureMap::ALL.into_iter().find(|map| map.name() == name);
        found.ok_or_else(|| format!("`{name}` makes no features"))
    }

    /// Whether features of a key depend on all keys of the head.
    pub fn sees_all_keys(self) -> bool {
        match self {
            FeatureMap::Relu | FeatureMap::Exp => false,
            FeatureMap::ExpByExponents | FeatureMap::ExpByProducts => true,
        }
    }
}

impl Field for FeatureMap {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        FeatureMap::from_name(text)
    }
}

/// Linear attention, `O = φQ (φKᵀ V) / (φQ Σ φK + ε)` for every batch and head, with features φ that are made of queries and keys.
/// With directions W, weights b of the features, a mask m of the keys and the small number δ, `x = q W + b`:
///
/// ```text
/// relu  φq = max(x, 0) + δ                        φk = (max(x, 0) + δ) exp(m)
/// exp   φq = exp(x - max x - norm ‖q‖²) + δ       φk = exp(x - norm ‖k‖² + m - c) + δ exp(m)
/// ```
///
/// The greatest x of a query is that over its features. c is 0 or what [`FeatureMap`] says, and 0 where that is -∞: keys that are
/// all hidden count as nothing.
///
/// Arguments: Q, K, V, W of queries, W of keys, m if any, b if any, O, workspace if any. The last axis of Q, K, V, O and b is
/// contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FeatureAttention {
    /// Type of all operands and of O.
    pub dtype: DType,
    /// Sequences.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys per sequence; as many as queries if `causal`.
    pub kv_len: usize,
    /// Length of a query and of a key.
    pub dim: usize,
    /// Features of a query and of a key.
    pub features: usize,
    /// Length of a value.
    pub v_dim: usize,
    /// What features are.
    pub map: FeatureMap,
    /// norm of queries; the bits of an f32.
    pub query_norm_bits: u32,
    /// norm of keys; the bits of an f32.
    pub key_norm_bits: u32,
    /// δ, added to every feature; the bits of an f32.
    pub least_bits: u32,
    /// ε, added to the denominators; the bits of an f32.
    pub epsilon_bits: u32,
    /// Query i sees the keys j <= i only; features of a key then do not depend on others.
    pub causal: bool,
    /// Strides of (batch, head, row) of Q.
    pub q: [usize; 3],
    /// Strides of (batch, head, row) of K.
    pub k: [usize; 3],
    /// Strides of (batch, head, row) of V.
    pub v: [usize; 3],
    /// Strides of (batch, head, row) of O.
    pub o: [usize; 3],
    /// Strides of (head, row, column) of the directions of queries, `dim` rows of `features` columns.
    pub query_directions: [usize; 3],
    /// Strides of (head, row, column) of the directions of keys.
    pub key_directions: [usize; 3],
    /// Strides of (batch, head, key) of the mask; 0 where it is shared.
    pub mask: Option<[usize; 3]>,
    /// The stride of heads of the weights; 0 where they are shared.
    pub weights: Option<usize>,
}

fields!(FeatureAttention {
    dtype = DType::F32,
    batch,
    heads,
    q_len,
    kv_len,
    dim,
    features,
    v_dim,
    map,
    query_norm_bits = 0,
    key_norm_bits = 0,
    least_bits,
    epsilon_bits,
    causal = false,
    q,
    k,
    v,
    o,
    query_directions,
    key_directions,
    mask = None,
    weights = None,
});

impl Call for FeatureAttention {
    const FAMILY: &'static str = "feature_attention";

    fn flops(&self) -> u64 {
        let rows = self.q_len as u64 + self.kv_len as u64;
        let of_feature = self.dim.saturating_add(self.v_dim).saturating_add(1);
        2 * product(&[self.batch, self.heads, self.features, of_feature]) * rows
    }

    fn args(&self) -> Vec<CallArg> {
        let read = |axes: &[(usize, usize)]| CallArg::read(self.dtype, axes);
        let (queries, keys) = ([self.batch, self.heads, self.q_len], [self.batch, self.heads, self.kv_len]);
        let directions = |[head, row, column]: [usize; 3]| {
            read(&[(self.heads, head), (self.dim, row), (self.features, column)])
        };
        let mut args = vec![
            read(&rows(queries, self.q, self.dim)),
            read(&rows(keys, self.k, self.dim)),
            read(&rows(keys, self.v, self.v_dim)),
            directions(self.query_directions),
            directions(self.key_directions),
        ];
        args.extend(
            self.mask.map(|strides| read(&std::array::from_fn::<_, 3, _>(|i| (keys[i], strides[i])))),
        );
        args.extend(self.weights.map(|head| read(&[(self.heads, head), (self.features, 1)])));
        args.push(CallArg::written(self.dtype, &rows(queries, self.o, self.v_dim)));
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

impl fmt::Display for FeatureAttention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "feature_attention {}x{}x[{}, {}] {} features {} of {} dim {}{}{}{}{}",
            self.batch,
            self.heads,
            self.q_len,
            self.kv_len,
            self.map.name(),
            self.features,
            self.dim,
            self.v_dim,
            if self.causal { " causal" } else { "" },
            if self.mask.is_some() { " masked" } else { "" },
            if self.weights.is_some() { " weighted" } else { "" },
            dtype_text(self.dtype)
        )
    }
}
