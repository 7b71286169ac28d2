//! Linear attention.

use margay_loops::LinearAttention;

use crate::Problem;
use crate::calls::Arguments;

pub(crate) fn run(c: &LinearAttention, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let (q, k, v, out) = (args.take(), args.take(), args.take(), args.take());
    let read = |argument, rows: usize, columns: usize, [batch, head, row]: [usize; 3]| {
        args.read(argument, 0, &[c.batch, c.heads, rows, columns], &[batch, head, row, 1])
    };
    let q = read(q, c.q_len, c.features, c.q)?;
    let k = read(k, c.kv_len, c.features, c.k)?;
    let v = read(v, c.kv_len, c.v_dim, c.v)?;
    let mut o = vec![0.0; c.batch * c.heads * c.q_len * c.v_dim];
    for block in 0..c.batch * c.heads {
        for query in 0..c.q_len {
            let row = block * c.q_len + query;
            let seen = if c.causal { query + 1 } else { c.kv_len };
            let mut total = f64::from(f32::from_bits(c.epsilon_bits));
            for key in block * c.kv_len..block * c.kv_len + seen {
                let features = q[row * c.features..][..c.features].iter().zip(&k[key * c.features..]);
                let weight: f64 = features.map(|(x, y)| x * y).sum();
                total += weight;
                for i in 0..c.v_dim {
                    o[row * c.v_dim + i] += weight * v[key * c.v_dim + i];
                }
            }
            o[row * c.v_dim..][..c.v_dim].iter_mut().for_each(|x| *x /= total);
        }
    }
    let [batch, head, row] = c.o;
    args.write(out, 0, &[c.batch, c.heads, c.q_len, c.v_dim], &[batch, head, row, 1], &o)
}
