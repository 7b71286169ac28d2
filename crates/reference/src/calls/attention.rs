//! Softmax attention and its cotangents.

use margay_loops::{Attention, AttentionGradient};

use crate::Problem;
use crate::calls::{Argument, Arguments, row_major};

/// The scores of one call, -∞ for a key that a query does not see.
struct Scores {
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    scale: f64,
    causal: bool,
    q: Vec<f64>,
    k: Vec<f64>,
    mask: Option<Vec<f64>>,
}

impl Scores {
    /// The row of K or V blocks that a head reads: `[batch, kv head]` flattened.
    fn block(&self, batch: usize, head: usize) -> usize {
        batch * self.kv_heads + head * self.kv_heads / self.heads
    }

    fn score(&self, batch: usize, head: usize, query: usize, key: usize) -> f64 {
        if self.causal && key + self.queries > query + self.keys {
            return f64::NEG_INFINITY;
        }
        let row = (batch * self.heads + head) * self.queries + query;
        let q = &self.q[row * self.dim..][..self.dim];
        let k = &self.k[(self.block(batch, head) * self.keys + key) * self.dim..][..self.dim];
        let product: f64 = q.iter().zip(k).map(|(x, y)| x * y).sum();
        self.scale * product + self.mask.as_ref().map_or(0.0, |mask| mask[row * self.keys + key])
    }
}

/// A matrix for every batch and head, its rows contiguous.
fn matrices(
    args: &Arguments<'_, '_>,
    argument: Argument,
    extents: [usize; 4],
    strides: [usize; 3],
) -> Result<Vec<f64>, Problem> {
    args.read(argument, 0, &extents, &[strides[0], strides[1], strides[2], 1])
}

fn write_matrices(
    args: &mut Arguments<'_, '_>,
    argument: Argument,
    extents: [usize; 4],
    strides: [usize; 3],
    values: &[f64],
) -> Result<(), Problem> {
    args.write(argument, 0, &extents, &[strides[0], strides[1], strides[2], 1], values)
}

pub(crate) fn run(c: &Attention, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let (q, k, v) = (args.take(), args.take(), args.take());
    let mask = args.take_if(c.mask.is_some());
    let out = args.take();
    let logs = args.take_if(c.log_sum_exp);
    let mask_extents = [c.batch, c.heads, c.q_len, c.kv_len];
    let read_mask = |(m, strides): (Argument, [usize; 4])| args.read(m, 0, &mask_extents, &strides);
    let scores = Scores {
        heads: c.heads,
        kv_heads: c.kv_heads,
        queries: c.q_len,
        keys: c.kv_len,
        dim: c.qk_dim,
        scale: f32::from_bits(c.scale_bits).into(),
        causal: c.causal,
        q: matrices(args, q, [c.batch, c.heads, c.q_len, c.qk_dim], c.q)?,
        k: matrices(args, k, [c.batch, c.kv_heads, c.kv_len, c.qk_dim], c.k)?,
        mask: mask.zip(c.mask).map(read_mask).transpose()?,
    };
    let v = matrices(args, v, [c.batch, c.kv_heads, c.kv_len, c.v_dim], c.v)?;
    let (mut o, mut sums) = (Vec::new(), Vec::new());
    for batch in 0..c.batch {
        for head in 0..c.heads {
            for query in 0..c.q_len {
                let row: Vec<f64> = (0..c.kv_len).map(|key| scores.score(batch, head, query, key)).collect();
                let max = row.iter().fold(f64::NEG_INFINITY, |m, &x| if x > m { x } else { m });
                let weights: Vec<f64> = row.iter().map(|x| libm::exp(x - max)).collect();
                let sum: f64 = weights.iter().sum();
                let nothing = row.iter().all(|&x| x == f64::NEG_INFINITY);
                sums.push(if nothing { f64::NEG_INFINITY } else { max + libm::log(sum) });
                let first = scores.block(batch, head) * c.kv_len;
                for column in 0..c.v_dim {
                    let value =
                        |(key, weight): (usize, &f64)| weight / sum * v[(first + key) * c.v_dim + column];
                    o.push(weights.iter().enumerate().map(value).sum());
                }
            }
        }
    }
    write_matrices(args, out, [c.batch, c.heads, c.q_len, c.v_dim], c.o, &o)?;
    match logs {
        Some(logs) => {
            let extents = [c.batch, c.heads, c.q_len];
            args.write(logs, 0, &extents, &row_major(&extents), &sums)
        }
        None => Ok(()),
    }
}

pub(crate) fn gradient(c: &AttentionGradient, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let (q, k, v, logs, centres, d_o) =
        (args.take(), args.take(), args.take(), args.take(), args.take(), args.take());
    let mask = args.take_if(c.mask.is_some());
    let outputs = [args.take(), args.take(), args.take()];
    let q_extents = [c.batch, c.heads, c.q_len, c.qk_dim];
    let k_extents = [c.batch, c.kv_heads, c.kv_len, c.qk_dim];
    let v_extents = [c.batch, c.kv_heads, c.kv_len, c.v_dim];
    let rows = [c.batch, c.heads, c.q_len];
    let mask_extents = [c.batch, c.heads, c.q_len, c.kv_len];
    let read_mask = |(m, strides): (Argument, [usize; 4])| args.read(m, 0, &mask_extents, &strides);
    let scores = Scores {
        heads: c.heads,
        kv_heads: c.kv_heads,
        queries: c.q_len,
        keys: c.kv_len,
        dim: c.qk_dim,
        scale: f32::from_bits(c.scale_bits).into(),
        causal: c.causal,
        q: matrices(args, q, q_extents, c.q)?,
        k: matrices(args, k, k_extents, c.k)?,
        mask: mask.zip(c.mask).map(read_mask).transpose()?,
    };
    let v = matrices(args, v, v_extents, c.v)?;
    let d_o = matrices(args, d_o, [c.batch, c.heads, c.q_len, c.v_dim], c.d_o)?;
    let logs = args.read(logs, 0, &rows, &row_major(&rows))?;
    let centres = args.read(centres, 0, &rows, &row_major(&rows))?;
    let zeros = |extents: [usize; 4]| vec![0.0; extents.iter().product()];
    let (mut dq, mut dk, mut dv) = (zeros(q_extents), zeros(k_extents), zeros(v_extents));
    for batch in 0..c.batch {
        for head in 0..c.heads {
            for query in 0..c.q_len {
                for key in 0..c.kv_len {
                    let score = scores.score(batch, head, query, key);
                    if score == f64::NEG_INFINITY {
                        continue;
                    }
                    let row = (batch * c.heads + head) * c.q_len + query;
                    let column = scores.block(batch, head) * c.kv_len + key;
                    let p = libm::exp(score - logs[row]);
                    let d_row = &d_o[row * c.v_dim..][..c.v_dim];
                    let along: f64 = d_row.iter().zip(&v[column * c.v_dim..]).map(|(x, y)| x * y).sum();
                    let ds = scores.scale * p * (along - centres[row]);
                    for i in 0..c.qk_dim {
                        dq[row * c.qk_dim + i] += ds * scores.k[column * c.qk_dim + i];
                        dk[column * c.qk_dim + i] += ds * scores.q[row * c.qk_dim + i];
                    }
                    for i in 0..c.v_dim {
                        dv[column * c.v_dim + i] += p * d_row[i];
                    }
                }
            }
        }
    }
    write_matrices(args, outputs[0], q_extents, c.dq, &dq)?;
    write_matrices(args, outputs[1], k_extents, c.dk, &dk)?;
    write_matrices(args, outputs[2], v_extents, c.dv, &dv)
}
