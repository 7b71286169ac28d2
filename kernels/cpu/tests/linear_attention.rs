//! Linear attention of every class against plain loops in f64.

mod harness;

use harness::random::Random;
use harness::{Expected, GAP, classes, compare, execute};
use margay_kernels_cpu::Class;
use margay_loops::{KernelCall, LinearAttention};
use margay_tensor::DType;

/// Sizes: batch, heads, queries, keys, features, length of a value.
fn call(
    [batch, heads, q_len, kv_len, features, v_dim]: [usize; 6],
    causal: bool,
    heads_first: bool,
) -> LinearAttention {
    let strides = |len: usize, dim: usize| {
        if heads_first { [heads * len * dim, len * dim, dim] } else { [len * heads * dim, dim, heads * dim] }
    };
    LinearAttention {
        dtype: DType::F32,
        batch,
        heads,
        q_len,
        kv_len,
        features,
        v_dim,
        epsilon_bits: 1e-3f32.to_bits(),
        causal,
        q: strides(q_len, features),
        k: strides(kv_len, features),
        v: strides(kv_len, v_dim),
        o: strides(q_len, v_dim),
    }
}

/// Positive features and normal values.
fn inputs(c: &LinearAttention, random: &mut Random) -> Vec<Vec<f32>> {
    let times = c.batch * c.heads;
    let mut features = |rows: usize| -> Vec<f32> {
        random.normal(times * rows * c.features).into_iter().map(|x| x.abs() + 0.1).collect()
    };
    let (q, k) = (features(c.q_len), features(c.kv_len));
    vec![q, k, random.normal(times * c.kv_len * c.v_dim)]
}

fn expected(c: &LinearAttention, inputs: &[Vec<f32>]) -> Vec<Expected> {
    let mut expected = vec![GAP; c.batch * c.heads * c.q_len * c.v_dim];
    for (batch, head, query) in (0..c.batch)
        .flat_map(|b| (0..c.heads).map(move |h| (b, h)))
        .flat_map(|(b, h)| (0..c.q_len).map(move |q| (b, h, q)))
    {
        let base = |s: [usize; 3], row: usize| batch * s[0] + head * s[1] + row * s[2];
        let keys = if c.causal { query + 1 } else { c.kv_len };
        let weights: Vec<f64> = (0..keys)
            .map(|key| {
                (0..c.features)
                    .map(|f| inputs[0][base(c.q, query) + f] as f64 * inputs[1][base(c.k, key) + f] as f64)
                    .sum()
            })
            .collect();
        let total = weights.iter().sum::<f64>() + f32::from_bits(c.epsilon_bits) as f64;
        for d in 0..c.v_dim {
            let terms = weights.iter().enumerate().map(|(key, w)| w * inputs[2][base(c.v, key) + d] as f64);
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + f64::abs(x)));
            let tolerance = 4e-6 * (size / total.abs()).max(0.0);
            expected[base(c.o, query) + d] = Expected { value: sum / total, tolerance };
        }
    }
    expected
}

fn check(class: Class, c: &LinearAttention, inputs: &[Vec<f32>]) {
    let expected = expected(c, inputs);
    let found = execute(class, &KernelCall::LinearAttention(c.clone()), inputs, &[], expected.len());
    compare(&format!("{} {c:?}", class.name()), &found, &expected);
}

#[test]
fn sampled_sizes_agree() {
    for class in classes() {
        let mut random = Random::new(1);
        for turn in 0..40 {
            let longest = [70, 300, 700][turn % 3];
            let (q_len, kv_len) = (1 + random.below(longest), 1 + random.below(longest));
            let causal = turn % 2 == 0;
            let sizes = [
                1 + random.below(2),
                1 + random.below(3),
                q_len,
                if causal { q_len } else { kv_len },
                1 + random.below(70),
                1 + random.below(70),
            ];
            let c = call(sizes, causal, random.below(2) == 0);
            check(class, &c, &inputs(&c, &mut random));
        }
    }
}

#[test]
fn everything_drawn_together_agrees() {
    for class in classes() {
        let mut random = Random::new(6);
        for _ in 0..80 {
            let causal = random.below(2) == 0;
            let q_len = random.pick(&[1, 5, 33, 63, 64, 65, 130, 257]);
            let kv_len = if causal { q_len } else { random.pick(&[1, 5, 64, 66, 129, 260]) };
            let (batch, heads) = (1 + random.below(2), 1 + random.below(3));
            let (features, v_dim) = (random.pick(&[1, 5, 16, 33, 64]), random.pick(&[1, 7, 16, 32, 65]));
            let mut c = call([batch, heads, q_len, kv_len, features, v_dim], causal, true);
            c.epsilon_bits = random.pick(&[0.0f32, 1e-3, 10.0]).to_bits();
            let mut strides = |len: usize, dim: usize| match random.below(2) == 0 {
                true => [heads * len * dim, len * dim, dim],
                false => [len * heads * dim, dim, heads * dim],
            };
            (c.q, c.k) = (strides(q_len, features), strides(kv_len, features));
            (c.v, c.o) = (strides(kv_len, v_dim), strides(q_len, v_dim));
            check(class, &c, &inputs(&c, &mut random));
        }
    }
}

#[test]
fn sizes_at_the_edges_of_spans_and_chunks_agree() {
    for class in classes() {
        let mut random = Random::new(2);
        for len in [1, 63, 64, 65, 255, 256, 257, 512] {
            for causal in [false, true] {
                let c = call([1, 2, len, len, 17, 33], causal, false);
                check(class, &c, &inputs(&c, &mut random));
            }
        }
    }
}

#[test]
fn later_positions_do_not_reach_causal_results() {
    for class in classes() {
        let mut random = Random::new(3);
        for len in [100, 600] {
            let c = call([1, 1, len, len, 9, 5], true, true);
            let mut inputs = inputs(&c, &mut random);
            let clean = execute(class, &KernelCall::LinearAttention(c.clone()), &inputs, &[], len * 5);
            // Within the chunk the upper triangle is left out by zeros, which a NaN would survive as a value.
            let chunk = (len - 1) / 64 * 64;
            inputs[1][chunk * 9..].fill(f32::NAN);
            inputs[2][chunk * 5..].fill(f32::INFINITY);
            let found = execute(class, &KernelCall::LinearAttention(c), &inputs, &[], len * 5);
            assert_eq!(found[..chunk * 5], clean[..chunk * 5]);
            assert!(found[chunk * 5..].iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn a_denominator_of_zero_is_a_quotient_by_zero() {
    for class in classes() {
        let mut random = Random::new(4);
        for causal in [false, true] {
            let mut c = call([1, 1, 40, 40, 8, 6], causal, true);
            c.epsilon_bits = 0;
            let mut inputs = inputs(&c, &mut random);
            inputs[0][8..16].fill(0.0);
            inputs[0][16..24].fill(1e-41);
            let out = execute(class, &KernelCall::LinearAttention(c), &inputs, &[], 240);
            assert!(out[6..12].iter().all(|x| x.is_nan()));
            assert!(out[..6].iter().chain(&out[18..]).all(|x| x.is_finite()));
        }
    }
}

#[test]
fn empty_extents_are_fine() {
    for class in classes() {
        let mut random = Random::new(5);
        for sizes in [
            [0, 2, 3, 3, 5, 6],
            [1, 2, 0, 4, 5, 6],
            [1, 2, 3, 0, 5, 6],
            [1, 2, 3, 4, 0, 6],
            [1, 2, 3, 4, 5, 0],
        ] {
            let c = call(sizes, false, true);
            check(class, &c, &inputs(&c, &mut random));
        }
        for sizes in [[1, 2, 0, 0, 5, 6], [1, 2, 3, 3, 0, 6], [1, 2, 300, 300, 5, 0]] {
            let c = call(sizes, true, true);
            check(class, &c, &inputs(&c, &mut random));
        }
    }
}
