//! Products, convolutions and attention in f64 as plain loops: kernels written by hand have operands of at most 32 bits.
//!
//! Loops read operands as they lie. Sums run in the order of the axis.

use margay_loops::{Binary, Combine, Index, Literal, Nest, Reg, Unary};
use margay_tensor::DType;

use crate::ops::nn::conv::{Conv, Window};
use crate::ops::{Attention, Io, Lowered, NotLowered, Strided};

/// Whether no kernel takes operands of this type.
pub(super) fn is_wide(port: &Strided) -> bool {
    port.dtype == DType::F64
}

/// Σ of `terms` terms.
fn sum(n: &mut Nest, terms: usize, term: &mut dyn FnMut(&mut Nest, Index) -> Reg) -> Reg {
    n.reduce(terms, &[Combine::Sum], |n, j| vec![term(n, j)])[0]
}

/// A matrix product whose outer axes broadcast.
pub(super) fn matmul(io: &Io) -> Lowered {
    let [a, b] = [0, 1].map(|i: usize| io.inputs[i].shape.clone());
    let shape = io.outputs[0].shape.clone();
    let terms = a.last().copied().unwrap_or(0);
    Lowered::nest(move |n| {
        n.for_each(&shape, |n, i| {
            let (outer, last) = i.split_at(i.len() - 2);
            let at = |of: &[usize], row: &Index, column: &Index| -> Vec<Index> {
                let own = &of[..of.len() - 2];
                let here = own.iter().zip(&outer[outer.len() - own.len()..]);
                let here = here.map(|(&extent, i)| if extent == 1 { Index::constant(0) } else { i.clone() });
                here.chain([row.clone(), column.clone()]).collect()
            };
            let total = sum(n, terms, &mut |n, j| {
                let x = n.load(0, &at(&a, &last[0], &j));
                let y = n.load(1, &at(&b, &j, &last[1]));
                n.mul(x, y)
            });
            n.store(0, i, total);
        });
    })
}

/// A convolution: taps are looped over, and what they read outside of the image is 0.
pub(super) fn conv(op: &Conv, io: &Io) -> Result<Lowered, NotLowered> {
    let taps = Taps {
        windows: op.windows().map_err(|e| NotLowered(e.to_string()))?,
        size: op.layout.spatial_extents(&io.inputs[0].shape).to_vec(),
        kernel: io.inputs[1].shape[2..].to_vec(),
        op: op.clone(),
    };
    let (channels, outputs) = (io.inputs[1].shape[1], io.inputs[1].shape[0] / op.groups);
    let shape = io.outputs[0].shape.clone();
    Ok(Lowered::nest(move |n| {
        n.for_each(&shape, |n, i| {
            let channel = taps.op.layout.channel_axis(i.len());
            let group = match taps.op.groups {
                1 => Index::constant(0),
                _ => n.divided(&i[channel], outputs as i64),
            };
            let total = sum(n, channels, &mut |n, c| {
                let mut x = i.to_vec();
                x[channel] = group.times(channels as i64).plus(&c, 1);
                taps.sum(n, &mut x, &mut vec![i[channel].clone(), c], i, None)
            });
            n.store(0, i, total);
        });
    }))
}

/// The spatial axes of a convolution.
struct Taps {
    op: Conv,
    windows: Vec<Window>,
    size: Vec<usize>,
    kernel: Vec<usize>,
}

impl Taps {
    /// Sums over the axes of the kernel that `k` does not have yet; `x` is where the image is read.
    fn sum(
        &self,
        n: &mut Nest,
        x: &mut Vec<Index>,
        k: &mut Vec<Index>,
        i: &[Index],
        guard: Option<Reg>,
    ) -> Reg {
        let axis = k.len() - 2;
        let Some(w) = self.windows.get(axis) else {
            let value = match guard {
                Some(test) => n.load_guarded(0, x, test, 0.0),
                None => n.load(0, x),
            };
            let weight = n.load(1, k);
            return n.mul(value, weight);
        };
        let at = self.op.layout.spatial_axis(axis);
        let start = i[at].times(w.stride as i64).plus(&Index::constant(w.before as i64), -1);
        sum(n, self.kernel[axis], &mut |n, tap| {
            x[at] = start.plus(&tap, w.dilation as i64);
            let guard = w.inside(n, guard, &x[at], self.size[axis]);
            k.push(tap);
            let total = self.sum(n, x, k, i, guard);
            k.pop();
            total
        })
    }
}

/// Attention with one result. Scores are computed anew for every element of it.
pub(super) fn attention(op: &Attention, io: &Io) -> Result<Lowered, NotLowered> {
    if op.log_sum_exp {
        return Err(NotLowered("attention in f64 with its logarithms".into()));
    }
    let (q, k, shape) = (io.inputs[0].shape.clone(), io.inputs[1].shape.clone(), io.outputs[0].shape.clone());
    let mask = io.inputs.get(3).map(|mask| mask.shape.clone());
    let op = op.clone();
    Ok(Lowered::nest(move |n| {
        let (queries, dim, keys) = (q[2], q[3], k[2]);
        n.for_each(&shape, |n, i| {
            if keys == 0 {
                let zero = n.literal(Literal::of(DType::F64, 0.0));
                return n.store(0, i, zero);
            }
            let head = n.divided(&i[1], (q[1] / k[1].max(1)) as i64);
            let score = |n: &mut Nest, t: &Index| {
                let product = sum(n, dim, &mut |n, j| {
                    let x = n.load(0, &[i[0].clone(), i[1].clone(), i[2].clone(), j.clone()]);
                    let y = n.load(1, &[i[0].clone(), head.clone(), t.clone(), j]);
                    n.mul(x, y)
                });
                let scale = n.number(product, op.scale.get());
                let mut score = n.mul(product, scale);
                if let Some(mask) = &mask {
                    let whole = [i[0].clone(), i[1].clone(), i[2].clone(), t.clone()];
                    let own = &whole[4 - mask.len()..];
                    let here = mask.iter().zip(own);
                    let here = here.map(|(&d, i)| if d == 1 { Index::constant(0) } else { i.clone() });
                    let added = n.load(3, &here.collect::<Vec<_>>());
                    score = n.add(score, added);
                }
                if op.causal {
                    let last = i[2].plus(&Index::constant(keys as i64 - queries as i64), 1);
                    let (t, last) = (n.index_value(t), n.index_value(&last));
                    let seen = n.binary(Binary::Le, t, last);
                    let hidden = n.number(score, f64::NEG_INFINITY);
                    score = n.select(seen, score, hidden);
                }
                score
            };
            let largest = n.reduce(keys, &[Combine::Max], |n, t| vec![score(n, &t)])[0];
            // -∞ less -∞ is no number, and weights of 0 are meant.
            let (lowest, zero) = (n.number(largest, f64::NEG_INFINITY), n.number(largest, 0.0));
            let none = n.binary(Binary::Eq, largest, lowest);
            let shift = n.select(none, zero, largest);
            let sums = n.reduce(keys, &[Combine::Sum, Combine::Sum], |n, t| {
                let score = score(n, &t);
                let shifted = n.sub(score, shift);
                let weight = n.unary(Unary::Exp, shifted);
                let value = n.load(2, &[i[0].clone(), head.clone(), t, i[3].clone()]);
                vec![weight, n.mul(weight, value)]
            });
            let result = n.div(sums[1], sums[0]);
            n.store(0, i, result);
        });
    }))
}
