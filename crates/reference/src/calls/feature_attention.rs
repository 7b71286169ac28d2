//! Linear attention that makes its features.

use margay_loops::{FeatureAttention, FeatureMap};

use crate::Problem;
use crate::calls::Arguments;

pub(crate) fn run(c: &FeatureAttention, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let (q, k, v, of_queries, of_keys) = (args.take(), args.take(), args.take(), args.take(), args.take());
    let (mask, weights) = (args.take_if(c.mask.is_some()), args.take_if(c.weights.is_some()));
    let out = args.take();
    let read = |argument, rows: usize, columns: usize, [batch, head, row]: [usize; 3]| {
        args.read(argument, 0, &[c.batch, c.heads, rows, columns], &[batch, head, row, 1])
    };
    let q = read(q, c.q_len, c.dim, c.q)?;
    let k = read(k, c.kv_len, c.dim, c.k)?;
    let v = read(v, c.kv_len, c.v_dim, c.v)?;
    let directions =
        |argument, strides: [usize; 3]| args.read(argument, 0, &[c.heads, c.dim, c.features], &strides);
    let of_queries = directions(of_queries, c.query_directions)?;
    let of_keys = directions(of_keys, c.key_directions)?;
    let mask = match (mask, c.mask) {
        (Some(mask), Some(strides)) => args.read(mask, 0, &[c.batch, c.heads, c.kv_len], &strides)?,
        _ => vec![0.0; c.batch * c.heads * c.kv_len],
    };
    let weights = match (weights, c.weights) {
        (Some(weights), Some(head)) => args.read(weights, 0, &[c.heads, c.features], &[head, 1])?,
        _ => vec![0.0; c.heads * c.features],
    };
    let number = |bits: u32| f64::from(f32::from_bits(bits));
    let (least, epsilon) = (number(c.least_bits), number(c.epsilon_bits));
    let product = |x: &[f64], directions: &[f64], head: usize, i: usize| {
        let column = directions[head * c.dim * c.features..].iter().skip(i).step_by(c.features);
        weights[head * c.features + i] + x.iter().zip(column).map(|(x, w)| x * w).sum::<f64>()
    };
    let squared = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
    let most = |numbers: &mut dyn Iterator<Item = f64>| numbers.fold(f64::NEG_INFINITY, f64::max);
    let positive = |x: f64| if x < 0.0 { 0.0 } else { x };
    let mut o = vec![0.0; c.batch * c.heads * c.q_len * c.v_dim];
    for block in 0..c.batch * c.heads {
        let head = block % c.heads;
        let key = |at: usize| &k[(block * c.kv_len + at) * c.dim..][..c.dim];
        let of_key = |at: usize, i: usize| product(key(at), &of_keys, head, i);
        let hides = |at: usize| mask[block * c.kv_len + at];
        let exponent =
            |at: usize, i: usize| of_key(at, i) - number(c.key_norm_bits) * squared(key(at)) + hides(at);
        let all = (0..c.kv_len).flat_map(|at| (0..c.features).map(move |i| (at, i)));
        let shift = match c.map {
            FeatureMap::Relu | FeatureMap::Exp => 0.0,
            FeatureMap::ExpByExponents => most(&mut all.map(|(at, i)| exponent(at, i))),
            FeatureMap::ExpByProducts => most(&mut all.map(|(at, i)| of_key(at, i))),
        };
        let shift = if shift == f64::NEG_INFINITY { 0.0 } else { shift };
        let features = |at: usize| -> Vec<f64> {
            let seen = libm::exp(hides(at));
            let feature = |i: usize| match c.map {
                FeatureMap::Relu => (positive(of_key(at, i)) + least) * seen,
                _ => libm::exp(exponent(at, i) - shift) + least * seen,
            };
            (0..c.features).map(feature).collect()
        };
        let keys: Vec<Vec<f64>> = (0..c.kv_len).map(features).collect();
        for query in 0..c.q_len {
            let row = block * c.q_len + query;
            let x = &q[row * c.dim..][..c.dim];
            let products: Vec<f64> = (0..c.features).map(|i| product(x, &of_queries, head, i)).collect();
            let top = most(&mut products.iter().copied()) + number(c.query_norm_bits) * squared(x);
            let feature = |x: &f64| match c.map {
                FeatureMap::Relu => positive(*x) + least,
                _ => libm::exp(x - top) + least,
            };
            let features: Vec<f64> = products.iter().map(feature).collect();
            let mut total = epsilon;
            for (at, key) in keys.iter().enumerate().take(if c.causal { query + 1 } else { c.kv_len }) {
                let weight: f64 = features.iter().zip(key).map(|(x, y)| x * y).sum();
                total += weight;
                for i in 0..c.v_dim {
                    o[row * c.v_dim + i] += weight * v[(block * c.kv_len + at) * c.v_dim + i];
                }
            }
            o[row * c.v_dim..][..c.v_dim].iter_mut().for_each(|x| *x /= total);
        }
    }
    let [batch, head, row] = c.o;
    args.write(out, 0, &[c.batch, c.heads, c.q_len, c.v_dim], &[batch, head, row, 1], &o)
}
