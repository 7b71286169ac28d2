//! Attention of every class against softmax in f64.

mod harness;

use harness::random::Random;
use harness::{Expected, GAP, classes, compare, execute};
use margay_kernels_cpu::Class;
use margay_loops::{Attention, KernelCall};

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
        batch,
        heads,
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
    }
}

fn inputs(c: &Attention, random: &mut Random) -> Vec<Vec<f32>> {
    let times = c.batch * c.heads;
    let mut inputs = vec![
        random.normal(times * c.q_len * c.qk_dim),
        random.normal(times * c.kv_len * c.qk_dim),
        random.normal(times * c.kv_len * c.v_dim),
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
    let scale = f32::from_bits(c.scale_bits) as f64;
    for batch in 0..c.batch {
        for head in 0..c.heads {
            for query in 0..c.q_len {
                let base = |s: [usize; 3], row: usize| batch * s[0] + head * s[1] + row * s[2];
                let scores: Vec<f64> = (0..c.kv_len)
                    .map(|key| {
                        let product = (0..c.qk_dim).map(|d| {
                            inputs[0][base(c.q, query) + d] as f64 * inputs[1][base(c.k, key) + d] as f64
                        });
                        let mask = c.mask.map_or(0.0, |s| {
                            inputs[3][batch * s[0] + head * s[1] + query * s[2] + key * s[3]] as f64
                        });
                        product.sum::<f64>() * scale + mask
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..c.v_dim {
                    let (mut sum, mut size) = (0.0, 0.0);
                    for (key, weight) in weights.iter().enumerate() {
                        let x = weight / total * inputs[2][base(c.v, key) + d] as f64;
                        sum += x;
                        size += x.abs();
                    }
                    expected[base(c.o, query) + d] = Expected { value: sum, tolerance: 1e-5 * (size + 1e-3) };
                }
            }
        }
    }
    let call = KernelCall::Attention(c.clone());
    let found = execute(class, &call, inputs, &[], expected.len());
    compare(&format!("{} {c:?}", class.name()), &found, &expected);
}

#[test]
fn sampled_sizes_and_masks_agree() {
    for class in classes() {
        let mut random = Random::new(1);
        for _ in 0..60 {
            let sizes = [
                1 + random.below(3),
                1 + random.below(3),
                1 + random.below(70),
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
            let c = call(sizes, mask, random.below(2) == 0);
            // One allowed key per row at least: rows without are tested alone.
            let mut inputs = inputs(&c, &mut random);
            if let Some(mask) = inputs.get_mut(3) {
                let finite = mask.iter().any(|x| x.is_finite());
                if !finite || c.mask.is_some_and(|s| s[3] == 0) {
                    mask.fill(0.5);
                }
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
        let c = call([1, 2, 3, 0, 5, 6], None, true);
        let out = execute(class, &KernelCall::Attention(c.clone()), &inputs(&c, &mut random), &[], 36);
        assert!(out.iter().all(|&x| x == 0.0));
    }
}
