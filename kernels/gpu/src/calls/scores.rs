//! Scores of softmax attention: products of a query and a key, scaled and masked. A thread computes one.

use margay_loops::{Arithmetic, Attention, AttentionGradient, Comparison};
use margay_tensor::DType;

use super::epilogue::read;
use crate::WARP;
use crate::value::{Type, Value};
use crate::writer::Writer;

/// What scores depend on.
pub(super) struct Scores {
    pub(super) dtype: DType,
    /// The type of positions in memory.
    pub(super) ty: Type,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) q_len: usize,
    pub(super) kv_len: usize,
    pub(super) qk_dim: usize,
    pub(super) scale_bits: u32,
    pub(super) causal: bool,
    pub(super) q: Matrix,
    pub(super) k: Matrix,
    pub(super) mask: Option<(Value, [usize; 4])>,
}

/// Rows of every (batch, head, row), with contiguous elements.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) base: Value,
    pub(super) strides: [usize; 3],
}

/// A query.
#[derive(Clone, Copy)]
pub(super) struct Query {
    pub(super) batch: Value,
    pub(super) head: Value,
    pub(super) row: Value,
}

pub(super) fn int(w: &mut Writer, n: usize) -> Value {
    w.int(Type::I32, n as i64)
}

impl Scores {
    pub(super) fn forward(c: &Attention, ty: Type, [q, k]: [Value; 2], mask: Option<Value>) -> Scores {
        Scores {
            dtype: c.dtype,
            ty,
            heads: c.heads,
            kv_heads: c.kv_heads,
            q_len: c.q_len,
            kv_len: c.kv_len,
            qk_dim: c.qk_dim,
            scale_bits: c.scale_bits,
            causal: c.causal,
            q: Matrix { base: q, strides: c.q },
            k: Matrix { base: k, strides: c.k },
            mask: mask.zip(c.mask),
        }
    }

    pub(super) fn backward(
        c: &AttentionGradient,
        ty: Type,
        [q, k]: [Value; 2],
        mask: Option<Value>,
    ) -> Scores {
        Scores {
            dtype: c.dtype,
            ty,
            heads: c.heads,
            kv_heads: c.kv_heads,
            q_len: c.q_len,
            kv_len: c.kv_len,
            qk_dim: c.qk_dim,
            scale_bits: c.scale_bits,
            causal: c.causal,
            q: Matrix { base: q, strides: c.q },
            k: Matrix { base: k, strides: c.k },
            mask: mask.zip(c.mask),
        }
    }

    /// `Σ position * stride`.
    pub(super) fn at(&self, w: &mut Writer, terms: &[(Value, usize)]) -> Value {
        let mut sum = w.int(self.ty, 0);
        for &(position, stride) in terms {
            let (position, stride) =
                (w.resize(position, self.ty.element, false), w.int(self.ty, stride as i64));
            let further = w.imul(position, stride);
            sum = w.iadd(sum, further);
        }
        sum
    }

    /// Where a row of a matrix begins.
    pub(super) fn row(&self, w: &mut Writer, matrix: Matrix, [batch, head, row]: [Value; 3]) -> Value {
        let [by_batch, by_head, by_row] = matrix.strides;
        self.at(w, &[(batch, by_batch), (head, by_head), (row, by_row)])
    }

    /// The element of a matrix at a column of the row that begins at `start`.
    pub(super) fn element(&self, w: &mut Writer, matrix: Matrix, start: Value, column: Value) -> Value {
        let column = w.resize(column, self.ty.element, false);
        let at = w.iadd(start, column);
        read(w, matrix.base, at, self.dtype)
    }

    /// The head that keys and values of a query's head are read from.
    pub(super) fn kv_head(&self, w: &mut Writer, head: Value) -> Value {
        let (kv_heads, heads) = (int(w, self.kv_heads), int(w, self.heads));
        let product = w.imul(head, kv_heads);
        w.divide(product, heads)
    }

    /// The sum of products of two rows of so many elements.
    pub(super) fn dot(
        &self,
        w: &mut Writer,
        [(a, of_a), (b, of_b)]: [(Matrix, Value); 2],
        elements: usize,
    ) -> Value {
        let (none, zero, one, end) = (w.float(Type::F32, 0.0), int(w, 0), int(w, 1), int(w, elements));
        let (i, sums) = w.begin_for(zero, end, one, &[none]);
        let (x, y) = (self.element(w, a, of_a, i), self.element(w, b, of_b, i));
        let sum = w.fma(x, y, sums[0]);
        w.end_for(&[sum])[0]
    }

    /// Whether a query sees a key, where both are there.
    pub(super) fn sees(&self, w: &mut Writer, row: Value, key: Value) -> Value {
        let (rows, keys) = (int(w, self.q_len), int(w, self.kv_len));
        let is_row = w.compare_ints(Comparison::Less, row, rows);
        let is_key = w.compare_ints(Comparison::Less, key, keys);
        let mut seen = w.and(is_row, is_key);
        if self.causal {
            let ahead = w.int(Type::I32, self.kv_len as i64 - self.q_len as i64);
            let last = w.iadd(row, ahead);
            let past = w.compare_ints(Comparison::LessOrEqual, key, last);
            seen = w.and(seen, past);
        }
        seen
    }

    /// The score of a key that a query sees.
    pub(super) fn score(&self, w: &mut Writer, query: Query, kv_head: Value, key: Value) -> Value {
        let Query { batch, head, row } = query;
        let (of_query, of_key) =
            (self.row(w, self.q, [batch, head, row]), self.row(w, self.k, [batch, kv_head, key]));
        let product = self.dot(w, [(self.q, of_query), (self.k, of_key)], self.qk_dim);
        let scale = w.float(Type::F32, f32::from_bits(self.scale_bits).into());
        let score = w.fmul(product, scale);
        let Some((mask, [by_batch, by_head, by_row, by_column])) = self.mask else { return score };
        let at = self.at(w, &[(batch, by_batch), (head, by_head), (row, by_row), (key, by_column)]);
        let mask = read(w, mask, at, self.dtype);
        w.fadd(score, mask)
    }
}

/// What `read` gives for column `lane + 32 n` of so many, or `otherwise` where there is none.
pub(super) fn column(
    w: &mut Writer,
    lane: Value,
    [n, columns]: [usize; 2],
    otherwise: Value,
    read: impl FnOnce(&mut Writer, Value) -> Value,
) -> Value {
    let further = int(w, n * WARP);
    let column = w.iadd(lane, further);
    if (n + 1) * WARP <= columns {
        return read(w, column);
    }
    let end = int(w, columns);
    let inside = w.compare_ints(Comparison::Less, column, end);
    w.begin_if(inside, &[otherwise.ty]);
    let x = read(w, column);
    w.otherwise(&[x]);
    w.end_if(&[otherwise])[0]
}
