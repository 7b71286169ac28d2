//! Derivatives of softmax attention in the memory of their results: scores are computed again and never stored (Dao,
//! arXiv 2307.08691).
//!
//! There are two kernels. In the first a warp has a query, goes through the keys 32 at a time and sums dQ. In the second a warp
//! has a key, goes through the queries of all heads that share it, and sums dK and dV. In both each thread has one pair,
//! leaves what it found of it in shared memory, and then adds the products of 32 pairs to its own columns. No result is
//! added to by two warps, so that the order of sums is that of keys or queries.

use margay_loops::{Arithmetic, AttentionGradient, Comparison, KernelCall};
use margay_tensor::DType;

use super::epilogue::{read, write};
use super::scores::{Matrix, Query, Scores, column, int};
use super::{Arguments, Written, is_float};
use crate::WARP;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// Warps of a block.
const WARPS: usize = 4;
/// The longest queries and values: a thread holds one column of every 32 in registers.
const MOST_COLUMNS: usize = 256;

/// Whether there is a kernel, and if not, why.
pub(super) fn supports(c: &AttentionGradient) -> Result<(), String> {
    if !is_float(c.dtype) {
        return Err(format!("elements of {}", c.dtype));
    }
    match c.qk_dim.max(c.v_dim) <= MOST_COLUMNS {
        true => Ok(()),
        false => Err(format!("queries of {} and values of {}, at most {MOST_COLUMNS}", c.qk_dim, c.v_dim)),
    }
}

/// The kernels; none for results that are empty.
pub(super) fn write_kernels(c: &AttentionGradient) -> Vec<Written> {
    let queries = c.batch * c.heads * c.q_len;
    let keys = c.batch * c.kv_heads * c.kv_len;
    let mut kernels = Vec::new();
    if queries * c.qk_dim > 0 {
        kernels.push(kernel(c, queries, &|w, operands, place| operands.write_query(w, place)));
    }
    if keys * (c.qk_dim + c.v_dim) > 0 {
        kernels.push(kernel(c, keys, &|w, operands, place| operands.write_key(w, place)));
    }
    kernels
}

/// A kernel that has a warp for each of so many rows.
fn kernel(c: &AttentionGradient, rows: usize, body: &dyn Fn(&mut Writer, &Operands<'_>, &Place)) -> Written {
    let mut args = Arguments::new(&KernelCall::AttentionGradient(c.clone()), false);
    let (mut w, values) = Writer::new(args.params(), WARPS * WARP);
    args.values(&values);
    let [q, k, v, logarithms, deltas, d_o] = std::array::from_fn(|_| args.take());
    let mask = c.mask.map(|_| args.take());
    let [dq, dk, dv] = std::array::from_fn(|_| args.take());
    let operands = Operands {
        c,
        scores: Scores::backward(c, args.index(), [q, k], mask),
        v: Matrix { base: v, strides: c.v },
        d_o: Matrix { base: d_o, strides: c.d_o },
        logarithms,
        deltas,
        dq: Matrix { base: dq, strides: c.dq },
        dk: Matrix { base: dk, strides: c.dk },
        dv: Matrix { base: dv, strides: c.dv },
    };
    let (size, warps) = (int(&mut w, WARP), int(&mut w, WARPS));
    let (thread, block) = (w.thread(), w.block_number());
    let (lane, warp) = (w.remainder(thread, size), w.divide(thread, size));
    let number = w.imul(block, warps);
    let number = w.iadd(number, warp);
    let (all, last) = (int(&mut w, rows), int(&mut w, rows - 1));
    let is_there = w.compare_ints(Comparison::Less, number, all);
    // A warp without a row does as the last one does, and stores nothing.
    let number = w.choose(is_there, number, last);
    let line = w.imul(warp, size);
    body(&mut w, &operands, &Place { number, is_there, lane, line });
    Written { text: w.finish(), blocks: rows.div_ceil(WARPS), threads: WARPS * WARP }
}

/// The row of a warp, and the thread that works on it.
struct Place {
    number: Value,
    is_there: Value,
    lane: Value,
    /// Where the numbers of the warp begin in shared memory.
    line: Value,
}

/// The operands of a call.
struct Operands<'c> {
    c: &'c AttentionGradient,
    scores: Scores,
    v: Matrix,
    d_o: Matrix,
    logarithms: Value,
    deltas: Value,
    dq: Matrix,
    dk: Matrix,
    dv: Matrix,
}

/// What is summed of 32 pairs: rows of a matrix, each times a number that lies in shared memory.
struct Sums<'s> {
    factors: Value,
    rows: Matrix,
    columns: usize,
    /// What was summed before.
    before: &'s [Value],
}

impl Operands<'_> {
    /// `P` and `dS` of a pair; both are 0 if the query does not see the key, or has a score of -∞ for it.
    fn pair(&self, w: &mut Writer, query: Query, kv_head: Value, key: Value) -> [Value; 2] {
        let c = self.c;
        let (none, least) = (w.float(Type::F32, 0.0), w.float(Type::F32, f64::NEG_INFINITY));
        let seen = self.scores.sees(w, query.row, key);
        w.begin_if(seen, &[Type::F32; 2]);
        let score = self.scores.score(w, query, kv_head, key);
        let (heads, rows) = (int(w, c.heads), int(w, c.q_len));
        let number = w.imul(query.batch, heads);
        let number = w.iadd(number, query.head);
        let number = w.imul(number, rows);
        let number = w.iadd(number, query.row);
        let number = w.resize(number, self.scores.ty.element, false);
        let log = read(w, self.logarithms, number, DType::F32);
        let below = w.fsub(score, log);
        let p = w.exp(below);
        let is_out = w.compare(Comparison::Equal, score, least);
        let p = w.choose(is_out, none, p);
        let of_d_o = self.scores.row(w, self.d_o, [query.batch, query.head, query.row]);
        let of_v = self.scores.row(w, self.v, [query.batch, kv_head, key]);
        let dp = self.scores.dot(w, [(self.d_o, of_d_o), (self.v, of_v)], c.v_dim);
        let delta = read(w, self.deltas, number, DType::F32);
        let dp = w.fsub(dp, delta);
        let ds = w.fmul(p, dp);
        let ds = w.choose(is_out, none, ds);
        w.otherwise(&[p, ds]);
        let pair = w.end_if(&[none, none]);
        [pair[0], pair[1]]
    }

    /// Leaves a number of each thread in shared memory.
    fn leave(w: &mut Writer, place: &Place, to: Value, x: Value) {
        let at = w.iadd(place.line, place.lane);
        let at = w.element(to, at, Element::F32);
        w.store(x, at);
    }

    /// Adds the products of up to 32 pairs, the first of which has row `first` of a (batch, head), to sums of columns.
    fn add(
        &self,
        w: &mut Writer,
        place: &Place,
        [batch, head, first]: [Value; 3],
        here: Value,
        all: &[Sums<'_>],
    ) -> Vec<Value> {
        let (zero, one, none) = (int(w, 0), int(w, 1), w.float(Type::F32, 0.0));
        let before: Vec<Value> = all.iter().flat_map(|sums| sums.before).copied().collect();
        let (offset, inside) = w.begin_for(zero, here, one, &before);
        let row = w.iadd(first, offset);
        let mut added = Vec::new();
        for sums in all {
            let at = w.iadd(place.line, offset);
            let at = w.element(sums.factors, at, Element::F32);
            let factor = w.load(Type::F32, at);
            let start = self.scores.row(w, sums.rows, [batch, head, row]);
            for n in 0..sums.before.len() {
                let read = |w: &mut Writer, column| self.scores.element(w, sums.rows, start, column);
                let x = column(w, place.lane, [n, sums.columns], none, read);
                let sum = inside[added.len()];
                added.push(w.fma(factor, x, sum));
            }
        }
        w.end_for(&added)
    }

    /// Stores the columns of a row of a result.
    fn store(&self, w: &mut Writer, place: &Place, to: Matrix, start: Value, columns: usize, sums: &[Value]) {
        let end = int(w, columns);
        for (n, &sum) in sums.iter().enumerate() {
            let further = int(w, n * WARP);
            let at = w.iadd(place.lane, further);
            let inside = w.compare_ints(Comparison::Less, at, end);
            let inside = w.and(inside, place.is_there);
            w.begin_if(inside, &[]);
            let at = w.resize(at, self.scores.ty.element, false);
            let at = w.iadd(start, at);
            write(w, to.base, at, self.c.dtype, sum);
            w.end_if(&[]);
        }
    }

    /// dQ of a query.
    fn write_query(&self, w: &mut Writer, place: &Place) {
        let c = self.c;
        let (q_len, heads) = (int(w, c.q_len), int(w, c.heads));
        let (rest, row) = (w.divide(place.number, q_len), w.remainder(place.number, q_len));
        let (batch, head) = (w.divide(rest, heads), w.remainder(rest, heads));
        let query = Query { batch, head, row };
        let kv_head = self.scores.kv_head(w, head);
        let held = w.shared(WARPS * WARP * 4);
        let (zero, size, keys) = (int(w, 0), int(w, WARP), int(w, c.kv_len));
        let none = w.float(Type::F32, 0.0);
        let (first, before) = w.begin_for(zero, keys, size, &vec![none; c.qk_dim.div_ceil(WARP)]);
        let key = w.iadd(first, place.lane);
        let [_, ds] = self.pair(w, query, kv_head, key);
        // Every thread has added the pairs before.
        w.barrier();
        Self::leave(w, place, held, ds);
        w.barrier();
        let left = w.isub(keys, first);
        let here = w.int_bound(false, true, left, size);
        let sums = Sums { factors: held, rows: self.scores.k, columns: c.qk_dim, before: &before };
        let sums = self.add(w, place, [batch, kv_head, first], here, &[sums]);
        let sums = w.end_for(&sums);
        let sums = self.scaled(w, &sums);
        let start = self.scores.row(w, self.dq, [batch, head, row]);
        self.store(w, place, self.dq, start, c.qk_dim, &sums);
    }

    /// dK and dV of a key.
    fn write_key(&self, w: &mut Writer, place: &Place) {
        let c = self.c;
        let (kv_len, kv_heads) = (int(w, c.kv_len), int(w, c.kv_heads));
        let (rest, key) = (w.divide(place.number, kv_len), w.remainder(place.number, kv_len));
        let (batch, kv_head) = (w.divide(rest, kv_heads), w.remainder(rest, kv_heads));
        let (probabilities, scores) = (w.shared(WARPS * WARP * 4), w.shared(WARPS * WARP * 4));
        let (of_key, of_value) = (c.qk_dim.div_ceil(WARP), c.v_dim.div_ceil(WARP));
        let (zero, one, size, queries) = (int(w, 0), int(w, 1), int(w, WARP), int(w, c.q_len));
        let sharing = int(w, c.heads.checked_div(c.kv_heads).unwrap_or(0));
        let first_head = w.imul(kv_head, sharing);
        let none = w.float(Type::F32, 0.0);
        let (number, outer) = w.begin_for(zero, sharing, one, &vec![none; of_key + of_value]);
        let head = w.iadd(first_head, number);
        let (first, before) = w.begin_for(zero, queries, size, &outer);
        let row = w.iadd(first, place.lane);
        let [p, ds] = self.pair(w, Query { batch, head, row }, kv_head, key);
        // Every thread has added the pairs before.
        w.barrier();
        Self::leave(w, place, probabilities, p);
        Self::leave(w, place, scores, ds);
        w.barrier();
        let left = w.isub(queries, first);
        let here = w.int_bound(false, true, left, size);
        let (before_key, before_value) = before.split_at(of_key);
        let all = [
            Sums { factors: scores, rows: self.scores.q, columns: c.qk_dim, before: before_key },
            Sums { factors: probabilities, rows: self.d_o, columns: c.v_dim, before: before_value },
        ];
        let sums = self.add(w, place, [batch, head, first], here, &all);
        let sums = w.end_for(&sums);
        let sums = w.end_for(&sums);
        let (of_key, of_value) = sums.split_at(of_key);
        let of_key = self.scaled(w, of_key);
        let start = self.scores.row(w, self.dk, [batch, kv_head, key]);
        self.store(w, place, self.dk, start, c.qk_dim, &of_key);
        let start = self.scores.row(w, self.dv, [batch, kv_head, key]);
        self.store(w, place, self.dv, start, c.v_dim, of_value);
    }

    fn scaled(&self, w: &mut Writer, sums: &[Value]) -> Vec<Value> {
        let scale = w.float(Type::F32, f32::from_bits(self.c.scale_bits).into());
        sums.iter().map(|&sum| w.fmul(sum, scale)).collect()
    }
}
