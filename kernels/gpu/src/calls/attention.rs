//! Softmax attention in the memory of its results: scores are never stored.
//!
//! A warp computes one query. It goes through the keys 32 at a time: each thread has the score of one key, the warp has the
//! largest so far and the sum of exponentials, which are scaled when a larger one comes (Milakov and Gimelshein 2018, Dao et
//! al. 2022). Then each thread adds the values of these keys to its own columns of the result.

use margay_loops::{Arithmetic, Attention, Comparison, KernelCall};

use super::epilogue::write;
use super::scores::{Matrix, Query, Scores, column, int};
use super::{Arguments, Written, is_float};
use crate::WARP;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// Warps of a block, each with a query of its own.
const WARPS: usize = 4;
/// The longest values: a thread holds one column of every 32 in registers.
const MAX_V_DIM: usize = 512;

/// Whether there is a kernel, and if not, why.
pub(super) fn supports(c: &Attention) -> Result<(), String> {
    if !is_float(c.dtype) {
        return Err(format!("elements of {}", c.dtype));
    }
    match c.v_dim <= MAX_V_DIM {
        true => Ok(()),
        false => Err(format!("values of {}, at most {MAX_V_DIM}", c.v_dim)),
    }
}

pub(super) fn write_kernel(c: &Attention) -> Written {
    let mut args = Arguments::new(&KernelCall::Attention(c.clone()), false);
    let (mut w, values) = Writer::new(args.params(), WARPS * WARP);
    args.values(&values);
    let (q, k, v) = (args.take(), args.take(), args.take());
    let mask = c.mask.map(|_| args.take());
    let out = args.take();
    let logarithms = c.log_sum_exp.then(|| args.take());
    let scores = Scores::forward(c, args.index(), [q, k], mask);
    let kernel = Rows { c, scores, v: Matrix { base: v, strides: c.v }, out, logarithms };
    kernel.write(&mut w);
    let queries = c.batch * c.heads * c.q_len;
    Written { text: w.finish(), blocks: queries.div_ceil(WARPS), threads: WARPS * WARP }
}

/// The operands of a call.
struct Rows<'c> {
    c: &'c Attention,
    scores: Scores,
    v: Matrix,
    out: Value,
    logarithms: Option<Value>,
}

/// `larger` or the other of two floats, over a warp.
fn over_warp(w: &mut Writer, x: Value, join: &dyn Fn(&mut Writer, Value, Value) -> Value) -> Value {
    let mut x = x;
    let mut distance = WARP / 2;
    while distance > 0 {
        let other = w.shuffle(x, distance);
        x = join(w, x, other);
        distance /= 2;
    }
    x
}

impl Rows<'_> {
    fn write(&self, w: &mut Writer) {
        let c = self.c;
        let (size, warps) = (int(w, WARP), int(w, WARPS));
        let (thread, block) = (w.thread(), w.block_number());
        let (lane, warp) = (w.remainder(thread, size), w.divide(thread, size));
        let number = w.imul(block, warps);
        let number = w.iadd(number, warp);
        let queries = int(w, c.batch * c.heads * c.q_len);
        let is_there = w.compare_ints(Comparison::Less, number, queries);
        // A warp without a query does as the last one does, and stores nothing.
        let last = int(w, c.batch * c.heads * c.q_len - 1);
        let query = w.choose(is_there, number, last);
        let (q_len, heads) = (int(w, c.q_len), int(w, c.heads));
        let (rest, row) = (w.divide(query, q_len), w.remainder(query, q_len));
        let (batch, head) = (w.divide(rest, heads), w.remainder(rest, heads));
        let (number, query) = (query, Query { batch, head, row });

        let held = w.shared(WARPS * WARP * 4);
        let line = w.imul(warp, size);
        let (least, none, zero, one) =
            (w.float(Type::F32, f64::NEG_INFINITY), w.float(Type::F32, 0.0), int(w, 0), int(w, 1));
        let columns = c.v_dim.div_ceil(WARP);
        let mut carried = vec![least, none];
        carried.resize(2 + columns, none);
        let keys = int(w, c.kv_len);
        let (first, inside) = w.begin_for(zero, keys, size, &carried);
        let (largest, sum) = (inside[0], inside[1]);
        let key = w.iadd(first, lane);
        let score = self.score(w, query, key);
        let most = over_warp(w, score, &|w, x, y| w.max(x, y));
        let most = w.max(largest, most);
        // Of keys that are all left out nothing is taken: without this -∞ - -∞ would be no number.
        let nothing_yet = w.compare(Comparison::Equal, most, least);
        let base = w.choose(nothing_yet, none, most);
        let below = w.fsub(score, base);
        let weight = w.exp(below);
        let below = w.fsub(largest, base);
        let scale = w.exp(below);
        let weights = over_warp(w, weight, &|w, x, y| w.fadd(x, y));
        let sum = w.fma(sum, scale, weights);
        // Every warp has added the weights of the keys before.
        w.barrier();
        let place = w.iadd(line, lane);
        let place = w.element(held, place, Element::F32);
        w.store(weight, place);
        w.barrier();
        let mut scaled = Vec::new();
        for &column in &inside[2..] {
            scaled.push(w.fmul(column, scale));
        }
        let left = w.isub(keys, first);
        let here = w.int_bound(false, true, left, size);
        let (offset, sums) = w.begin_for(zero, here, one, &scaled);
        let place = w.iadd(line, offset);
        let place = w.element(held, place, Element::F32);
        let weight = w.load(Type::F32, place);
        let key = w.iadd(first, offset);
        let kv_head = self.scores.kv_head(w, query.head);
        let start = self.scores.row(w, self.v, [query.batch, kv_head, key]);
        let mut added = Vec::new();
        for (n, &sum) in sums.iter().enumerate() {
            let read = |w: &mut Writer, column| self.scores.element(w, self.v, start, column);
            let value = column(w, lane, [n, c.v_dim], none, read);
            added.push(w.fma(weight, value, sum));
        }
        let sums = w.end_for(&added);
        let mut next = vec![most, sum];
        next.extend(sums);
        let ended = w.end_for(&next);
        self.store(w, (number, query), is_there, lane, &ended);
    }

    /// The score of a key: -∞ if the query does not see it, or if there is no such key.
    fn score(&self, w: &mut Writer, query: Query, key: Value) -> Value {
        let least = w.float(Type::F32, f64::NEG_INFINITY);
        let seen = self.scores.sees(w, query.row, key);
        w.begin_if(seen, &[Type::F32]);
        let kv_head = self.scores.kv_head(w, query.head);
        let score = self.scores.score(w, query, kv_head, key);
        w.otherwise(&[score]);
        w.end_if(&[least])[0]
    }

    /// Stores a row of the result, and its logarithm.
    fn store(
        &self,
        w: &mut Writer,
        (number, query): (Value, Query),
        is_there: Value,
        lane: Value,
        ended: &[Value],
    ) {
        let (c, ty) = (self.c, self.scores.ty);
        let (largest, sum) = (ended[0], ended[1]);
        w.begin_if(is_there, &[]);
        let start = self.scores.at(w, &[(query.batch, c.o[0]), (query.head, c.o[1]), (query.row, c.o[2])]);
        let end = int(w, c.v_dim);
        for (n, &column) in ended[2..].iter().enumerate() {
            // Without keys a result is 0; where all are left out it is 0 / 0.
            let value = if c.kv_len == 0 { column } else { w.fdiv(column, sum) };
            let further = int(w, n * WARP);
            let at = w.iadd(lane, further);
            let inside = w.compare_ints(Comparison::Less, at, end);
            w.begin_if(inside, &[]);
            let at = w.resize(at, ty.element, false);
            let at = w.iadd(start, at);
            write(w, self.out, at, c.dtype, value);
            w.end_if(&[]);
        }
        if let Some(logarithms) = self.logarithms {
            let zero = int(w, 0);
            let is_first = w.compare_ints(Comparison::Equal, lane, zero);
            w.begin_if(is_first, &[]);
            let log = w.log(sum);
            let log = w.fadd(largest, log);
            let at = w.resize(number, ty.element, false);
            write(w, logarithms, at, margay_tensor::DType::F32, log);
            w.end_if(&[]);
        }
        w.end_if(&[]);
    }
}
