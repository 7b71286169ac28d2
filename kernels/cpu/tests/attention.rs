//! Attention of every class against softmax in f64.

mod harness;

use harness::random::Random;
use harness::{Expected, GAP, classes, compare, execute, execute_all};
use margay_kernels_cpu::Class;
use margay_loops::{Attention, KernelCall};
use margay_tensor::DType;

/// Sizes: batch, heads, queries, keys, length of a key, length of a value.
fn call(
    [batch, heads, q_len, kv_len, qk_dim, v_dim]: [usize; 6],
    mask: Option<[usize; 4]>,
    heads_first: bool,
) -> Attention {
    let strides = |len: usize, dim: usize| {
        if heads_first { [heads * len * dim, len * dim, dim] } else { [len * heads * dim, dim, heads * dim] }
    };
    Attention {
        dtype: DType::F32,
        batch,
        heads,
        kv_heads: heads,
        q_len,
        kv_len,
        qk_dim,
        v_dim,
        scale_bits: (1.0 / (qk_dim.max(1) as f32).sqrt()).to_bits(),
        q: strides(q_len, qk_dim),
        k: strides(kv_len, qk_dim),
        v: strides(kv_len, v_dim),
        o: strides(q_len, v_dim),
        mask,
        causal: false,
        log_sum_exp: false,
    }
}

fn inputs(c: &Attention, random: &mut Random) -> Vec<Vec<f32>> {
    let [queries, keys] = [c.heads * c.q_len, c.kv_heads * c.kv_len].map(|rows| c.batch * rows);
    let mut inputs = vec![
        random.normal(queries * c.qk_dim),
        random.normal(keys * c.qk_dim),
        random.normal(keys * c.v_dim),
    ];
    if let Some(mask) = c.mask {
        let extents = [c.batch, c.heads, c.q_len, c.kv_len];
        let last: usize = mask.iter().zip(extents).map(|(stride, extent)| stride * (extent.max(1) - 1)).sum();
        let mut values = random.normal(last + 1);
        for x in &mut values {
            if random.below(4) == 0 {
                *x = f32::NEG_INFINITY;
            }
        }
        inputs.push(values);
    }
    inputs
}

fn check(class: Class, c: &Attention, inputs: &[Vec<f32>]) {
    let mut expected = vec![GAP; c.batch * c.heads * c.q_len * c.v_dim];
    let mut logs = Vec::new();
    let scale = f32::from_bits(c.scale_bits) as f64;
    for batch in 0..c.batch {
        for head in 0..c.heads {
            let kv_head = head * c.kv_heads / c.heads;
            for query in 0..c.q_len {
                let base = |s: [usize; 3], head: usize, row: usize| batch * s[0] + head * s[1] + row * s[2];
                let (mut scores, mut terms) = (Vec::new(), 0.0f64);
                for key in 0..c.kv_len {
                    let mut sum = 0.0;
                    for d in 0..c.qk_dim {
                        let x = inputs[0][base(c.q, head, query) + d] as f64
                            * inputs[1][base(c.k, kv_head, key) + d] as f64;
                        sum += x * scale;
                        terms = terms.max((x * scale).abs());
                    }
                    if let Some(s) = c.mask {
                        sum += inputs[3][batch * s[0] + head * s[1] + query * s[2] + key * s[3]] as f64;
                    }
                    let hidden = c.causal && key + c.q_len > query + c.kv_len;
                    scores.push(if hidden { f64::NEG_INFINITY } else { sum });
                }
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..c.v_dim {
                    let (mut sum, mut size) = (0.0, 0.0);
                    for (key, weight) in weights.iter().enumerate() {
                        let x = weight / total * inputs[2][base(c.v, kv_head, key) + d] as f64;
                        sum += x;
                        size += x.abs();
                    }
                    expected[base(c.o, head, query) + d] =
                        Expected { value: sum, tolerance: 1e-5 * (size + 1e-3) };
                }
                let value = if top == f64::NEG_INFINITY { top } else { top + total.ln() };
                logs.push(Expected { value, tolerance: 2e-6 * (1.0 + value.abs() + terms) });
            }
        }
    }
    let what = format!("{} {c:?}", class.name());
    let call = KernelCall::Attention(c.clone());
    if !c.log_sum_exp {
        return compare(&what, &execute(class, &call, inputs, &[], expected.len()), &expected);
    }
    let found = execute_all(class, &call, inputs, &[], &[expected.len(), logs.len()]);
    compare(&what, &found[0], &expected);
    compare(&what, &found[1], &logs);
}

#[test]
fn sampled_sizes_and_masks_agree() {
    for class in classes() {
        let mut random = Random::new(1);
        for _ in 0..60 {
            let sizes = [
                1 + random.below(3),
                1 + random.below(3),
                1 + random.below(150),
                1 + random.below(300),
                1 + random.below(70),
                1 + random.below(70),
            ];
            let [batch, heads, q_len, kv_len, ..] = sizes;
            let mask = random.pick(&[
                None,
                None,
                Some([0, 0, kv_len, 1]),
                Some([kv_len, 0, 0, 1]),
                Some([heads * q_len * kv_len, q_len * kv_len, kv_len, 1]),
                Some([0, 1, heads, 0]),
                Some([0, 0, 1, batch * q_len]),
            ]);
            let mut c = call(sizes, mask, random.below(2) == 0);
            c.log_sum_exp = random.below(2) == 0;
            c.causal = q_len <= kv_len && random.below(3) == 0;
            // One allowed key per row at least: rows without are tested alone.
            let mut inputs = inputs(&c, &mut random);
            if let Some(mask) = inputs.get_mut(3) {
                let finite = mask.iter().any(|x| x.is_finite());
                if !finite || c.causal || c.mask.is_some_and(|s| s[3] == 0) {
                    mask.fill(0.5);
                }
            }
            check(class, &c, &inputs);
        }
    }
}

#[test]
fn everything_drawn_together_agrees() {
    for class in classes() {
        let mut random = Random::new(9);
        for _ in 0..120 {
            let kv_heads = 1 + random.below(2);
            let heads = kv_heads * (1 + random.below(3));
            let q_len = random.pick(&[1, 2, 7, 16, 33, 64, 65, 90]);
            let kv_len = random.pick(&[1, 3, 16, 31, 64, 65, 128, 129, 257]);
            let [batch, qk_dim, v_dim] =
                [1 + random.below(2), random.pick(&[1, 5, 16, 33, 64]), random.pick(&[1, 7, 16, 32, 65])];
            let strides = |heads: usize, len: usize, dim: usize, heads_first: bool| match heads_first {
                true => [heads * len * dim, len * dim, dim],
                false => [len * heads * dim, dim, heads * dim],
            };
            // Every subset of the axes of the mask is shared.
            let mask = (random.below(3) > 0).then(|| {
                let mut length = 1;
                let mut strides = [0; 4];
                for (axis, extent) in [batch, heads, q_len, kv_len].into_iter().enumerate().rev() {
                    if random.below(2) == 0 {
                        strides[axis] = length;
                        length *= extent;
                    }
                }
                strides
            });
            let mut c = call([batch, heads, q_len, kv_len, qk_dim, v_dim], mask, true);
            let mut first = || random.below(2) == 0;
            (c.kv_heads, c.q) = (kv_heads, strides(heads, q_len, qk_dim, first()));
            (c.k, c.v) =
                (strides(kv_heads, kv_len, qk_dim, first()), strides(kv_heads, kv_len, v_dim, first()));
            c.o = strides(heads, q_len, v_dim, first());
            (c.log_sum_exp, c.causal) = (first(), q_len <= kv_len && first());
            c.scale_bits = random.pick(&[0.125f32, 0.4, 1.0]).to_bits();
            let mut inputs = inputs(&c, &mut random);
            // Numbers that hide nothing: rows that see nothing are tested alone.
            if let Some(mask) = inputs.get_mut(3) {
                mask.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = -3.0);
            }
            check(class, &c, &inputs);
        }
    }
}

#[test]
fn shared_keys_are_read_with_stride_zero() {
    for class in classes() {
        let mut c = call([2, 3, 17, 150, 20, 33], None, true);
        let mut random = Random::new(2);
        let inputs = inputs(&c, &mut random);
        (c.k[1], c.v[0]) = (0, 0);
        check(class, &c, &inputs);
    }
}

#[test]
fn a_masked_row_is_nan_and_a_masked_block_is_not() {
    for class in classes() {
        let mut c = call([1, 1, 5, 400, 8, 8], Some([0, 0, 400, 1]), true);
        let mut random = Random::new(3);
        let mut inputs = inputs(&c, &mut random);
        inputs[3].fill(0.0);
        inputs[3][..400].fill(f32::NEG_INFINITY); // all keys
        inputs[3][400..800 - 3].fill(f32::NEG_INFINITY); // all but the last three
        inputs[3][800 + 5..1200].fill(f32::NEG_INFINITY); // all but the first five
        inputs[3][1200 + 130] = f32::NAN;
        inputs[3][1600 + 300] = f32::INFINITY;
        check(class, &c, &inputs);
        let out = execute(class, &KernelCall::Attention(c.clone()), &inputs, &[], 40);
        assert!(out[..8].iter().all(|x| x.is_nan()) && out[8..24].iter().all(|x| x.is_finite()));
        assert!(out[24..].iter().all(|x| x.is_nan()));
        c.mask = None;
        inputs.truncate(3);
        check(class, &c, &inputs);
    }
}

#[test]
fn large_scores_do_not_overflow() {
    for class in classes() {
        let c = call([1, 2, 9, 270, 16, 5], None, false);
        let mut random = Random::new(4);
        let mut inputs = inputs(&c, &mut random);
        inputs[0].iter_mut().for_each(|x| *x *= 100.0);
        // One key dominates each row: the rounding of scores must not matter.
        inputs[1].iter_mut().enumerate().for_each(|(i, x)| *x *= 1.0 + (i / 32) as f32);
        let call = KernelCall::Attention(c);
        assert!(execute(class, &call, &inputs, &[], 90).iter().all(|x| x.is_finite()));
    }
}

#[test]
fn empty_extents_are_fine() {
    for class in classes() {
        let mut random = Random::new(5);
        for sizes in [[0, 2, 3, 4, 5, 6], [1, 2, 0, 4, 5, 6], [1, 2, 3, 4, 0, 6], [1, 2, 3, 4, 5, 0]] {
            let c = call(sizes, None, true);
            check(class, &c, &inputs(&c, &mut random));
        }
        for causal in [false, true] {
            let mut c = call([1, 2, 3, 0, 5, 6], None, true);
            (c.causal, c.log_sum_exp) = (causal, true);
            let inputs = inputs(&c, &mut random);
            let found = execute_all(class, &KernelCall::Attention(c), &inputs, &[], &[36, 6]);
            assert!(found[0].iter().all(|&x| x == 0.0));
            assert!(found[1].iter().all(|&x| x == f32::NEG_INFINITY));
        }
    }
}

#[test]
fn causal_rows_see_keys_up_to_their_own() {
    for class in classes() {
        let mut random = Random::new(6);
        for (q_len, kv_len) in [(300, 300), (1, 200), (33, 160), (200, 70), (130, 129)] {
            let mut c = call([1, 2, q_len, kv_len, 9, 6], None, false);
            (c.causal, c.log_sum_exp) = (true, true);
            let mut inputs = inputs(&c, &mut random);
            check(class, &c, &inputs);
            // What comes after the last query that sees it must not reach earlier ones, not even a NaN.
            if q_len == kv_len {
                inputs[1][(kv_len - 1) * c.k[2]..].fill(f32::NAN);
                let outs = [q_len * c.o[2], 2 * q_len];
                let found = execute_all(class, &KernelCall::Attention(c.clone()), &inputs, &[], &outs);
                assert!(found[0][..(q_len - 1) * c.o[2]].iter().all(|x| x.is_finite()));
                assert!(found[0][(q_len - 1) * c.o[2]..].iter().all(|x| x.is_nan()));
            }
        }
        // 130 queries of 129 keys: the first query of each head sees none.
        let mut c = call([1, 1, 130, 129, 4, 3], None, true);
        (c.causal, c.log_sum_exp) = (true, true);
        let inputs = inputs(&c, &mut random);
        let found = execute_all(class, &KernelCall::Attention(c), &inputs, &[], &[390, 130]);
        assert!(found[0][..3].iter().all(|x| x.is_nan()) && found[0][3..].iter().all(|x| x.is_finite()));
        assert_eq!(found[1][0], f32::NEG_INFINITY);
    }
}

#[test]
fn heads_share_keys() {
    for class in classes() {
        let mut random = Random::new(7);
        for (heads, kv_heads, q_len) in [(6, 2, 100), (6, 1, 7), (4, 4, 70), (4, 2, 800)] {
            let mut c = call([2, heads, q_len, 90, 16, 24], None, true);
            c.kv_heads = kv_heads;
            // [batch, key, head, dim], so that rows are apart.
            c.k = [90 * kv_heads * 16, 16, kv_heads * 16];
            c.v = [90 * kv_heads * 24, 24, kv_heads * 24];
            check(class, &c, &inputs(&c, &mut random));
        }
    }
}

#[test]
fn very_negative_masks_are_ordinary_numbers() {
    for class in classes() {
        let mut random = Random::new(8);
        let mut c = call([1, 1, 3, 260, 8, 8], Some([0, 0, 260, 1]), true);
        c.log_sum_exp = true;
        let mut inputs = inputs(&c, &mut random);
        inputs[3].fill(0.0);
        inputs[3][..260].fill(f32::MIN); // absorbs every score: the mean of all values
        inputs[3][260..516].fill(-1e9);
        inputs[3][520..780].fill(1e-42);
        for (i, x) in inputs[0][..8].iter_mut().enumerate() {
            *x = if i == 0 { 1e-40 } else { 0.0 };
        }
        check(class, &c, &inputs);
    }
}

/// A weight below the normal numbers is 0, and no smaller one.
#[test]
fn negligible_weights_are_zero() {
    for class in classes() {
        let c = call([1, 1, 1, 2, 1, 1], Some([0, 0, 2, 1]), true);
        let weight = |mask: f32| {
            let inputs = vec![vec![0.0], vec![0.0; 2], vec![0.0, 1e30], vec![0.0, mask]];
            execute(class, &KernelCall::Attention(c.clone()), &inputs, &[], 1)[0]
        };
        // 2 to the power of -125 is exp(-86.64).
        assert!((weight(-86.0) / (-86.0f32 + 30.0 * 10f32.ln()).exp() - 1.0).abs() < 1e-4);
        for mask in [-87.0, -95.0, -104.0, -1e30, f32::NEG_INFINITY] {
            assert_eq!(weight(mask), 0.0, "{mask}");
        }
    }
}
