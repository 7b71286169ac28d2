//! Derivatives of attention of every class against sums in f64.

mod harness;

use harness::random::Random;
use harness::{Expected, classes, compare, execute_all};
use margay_kernels_cpu::{Class, CpuTarget};
use margay_loops::{AttentionGradient, KernelCall};
use margay_tensor::DType;

/// Sizes: batch, heads, heads of keys, queries, keys, length of a key, length of a value. Rows lie one after the other,
/// or are `[batch, row, head, dim]`.
fn call(
    [batch, heads, kv_heads, q_len, kv_len, qk_dim, v_dim]: [usize; 7],
    mask: Option<[usize; 4]>,
    heads_first: bool,
) -> AttentionGradient {
    let strides = |heads: usize, len: usize, dim: usize| {
        if heads_first { [heads * len * dim, len * dim, dim] } else { [len * heads * dim, dim, heads * dim] }
    };
    let (q, k) = (strides(heads, q_len, qk_dim), strides(kv_heads, kv_len, qk_dim));
    let (v, d_o) = (strides(kv_heads, kv_len, v_dim), strides(heads, q_len, v_dim));
    AttentionGradient {
        dtype: DType::F32,
        batch,
        heads,
        kv_heads,
        q_len,
        kv_len,
        qk_dim,
        v_dim,
        scale_bits: (1.0 / (qk_dim.max(1) as f32).sqrt()).to_bits(),
        q,
        k,
        v,
        d_o,
        mask,
        causal: false,
        dq: q,
        dk: k,
        dv: v,
    }
}

/// The scores of a query and the size of their largest term, in f64.
fn scores(c: &AttentionGradient, inputs: &[Vec<f32>], [batch, head, query]: [usize; 3]) -> (Vec<f64>, f64) {
    let base = |s: [usize; 3], head: usize, row: usize| batch * s[0] + head * s[1] + row * s[2];
    let scale = f32::from_bits(c.scale_bits) as f64;
    let mut size = 0.0f64;
    let score = |key: usize| {
        let at = base(c.k, head * c.kv_heads / c.heads, key);
        let mut sum = 0.0;
        for d in 0..c.qk_dim {
            let x = scale * inputs[0][base(c.q, head, query) + d] as f64 * inputs[1][at + d] as f64;
            size = size.max(x.abs());
            sum += x;
        }
        if let Some(s) = c.mask {
            sum += inputs[6][batch * s[0] + head * s[1] + query * s[2] + key * s[3]] as f64;
        }
        if c.causal && key + c.q_len > query + c.kv_len { f64::NEG_INFINITY } else { sum }
    };
    let found = (0..c.kv_len).map(score).collect();
    (found, size)
}

/// Random operands; the logarithms are those of the others.
fn inputs(c: &AttentionGradient, random: &mut Random) -> Vec<Vec<f32>> {
    let (queries, keys) = (c.batch * c.heads * c.q_len, c.batch * c.kv_heads * c.kv_len);
    let mut inputs = vec![
        random.normal(queries * c.qk_dim),
        random.normal(keys * c.qk_dim),
        random.normal(keys * c.v_dim),
        vec![0.0; queries],
        random.normal(queries),
        random.normal(queries * c.v_dim),
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
    take_logarithms(c, &mut inputs);
    inputs
}

fn take_logarithms(c: &AttentionGradient, inputs: &mut [Vec<f32>]) {
    for row in 0..inputs[3].len() {
        let place = [row / c.q_len / c.heads, row / c.q_len % c.heads, row % c.q_len];
        let (scores, _) = scores(c, inputs, place);
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        inputs[3][row] = if top == f64::NEG_INFINITY { f32::NEG_INFINITY } else { (top + sum.ln()) as f32 };
    }
}

fn lengths(c: &AttentionGradient) -> [usize; 3] {
    let keys = c.batch * c.kv_heads * c.kv_len;
    [c.batch * c.heads * c.q_len * c.qk_dim, keys * c.qk_dim, keys * c.v_dim]
}

fn run(class: Class, c: &AttentionGradient, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
    execute_all(class, &KernelCall::AttentionGradient(c.clone()), inputs, &[], &lengths(c))
}

fn check(class: Class, c: &AttentionGradient, inputs: &[Vec<f32>]) {
    // Sums, and the sums of the sizes of their terms.
    let mut sums = lengths(c).map(|n| vec![(0.0f64, 0.0f64); n]);
    let scale = f32::from_bits(c.scale_bits) as f64;
    for row in 0..c.batch * c.heads * c.q_len {
        let (batch, head, query) = (row / c.q_len / c.heads, row / c.q_len % c.heads, row % c.q_len);
        let base = |s: [usize; 3], head: usize, row: usize| batch * s[0] + head * s[1] + row * s[2];
        let (scores, terms) = scores(c, inputs, [batch, head, query]);
        let (log, centre) = (inputs[3][row] as f64, inputs[4][row] as f64);
        for (key, score) in scores.into_iter().enumerate() {
            if score == f64::NEG_INFINITY {
                continue;
            }
            let kv_head = head * c.kv_heads / c.heads;
            let weight = (score - log).exp();
            let (mut product, mut size) = (-centre, centre.abs());
            for d in 0..c.v_dim {
                let d_o = inputs[5][base(c.d_o, head, query) + d] as f64;
                let x = d_o * inputs[2][base(c.v, kv_head, key) + d] as f64;
                (product, size) = (product + x, size + x.abs());
                let sum = &mut sums[2][base(c.dv, kv_head, key) + d];
                *sum = (sum.0 + weight * d_o, sum.1 + (weight * d_o).abs() * (1.0 + terms));
            }
            let (ds, ds_size) = (scale * weight * product, scale * weight * size * (1.0 + terms));
            for d in 0..c.qk_dim {
                let q = inputs[0][base(c.q, head, query) + d] as f64;
                let k = inputs[1][base(c.k, kv_head, key) + d] as f64;
                let sum = &mut sums[0][base(c.dq, head, query) + d];
                *sum = (sum.0 + ds * k, sum.1 + ds_size * k.abs());
                let sum = &mut sums[1][base(c.dk, kv_head, key) + d];
                *sum = (sum.0 + ds * q, sum.1 + ds_size * q.abs());
            }
        }
    }
    for ((name, sums), found) in ["dQ", "dK", "dV"].into_iter().zip(sums).zip(run(class, c, inputs)) {
        let expected: Vec<Expected> = sums
            .into_iter()
            .map(|(value, size)| Expected { value, tolerance: 1e-5 * (size + 1e-3) })
            .collect();
        compare(&format!("{} {name} {c:?}", class.name()), &found, &expected);
    }
}

#[test]
fn sampled_sizes_and_masks_agree() {
    for class in classes() {
        let mut random = Random::new(1);
        for _ in 0..60 {
            let kv_heads = 1 + random.below(3);
            let sizes = [
                1 + random.below(2),
                kv_heads * (1 + random.below(2)),
                kv_heads,
                1 + random.below(150),
                1 + random.below(300),
                1 + random.below(70),
                1 + random.below(70),
            ];
            let [batch, heads, _, q_len, kv_len, ..] = sizes;
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
            c.causal = random.below(3) == 0;
            check(class, &c, &inputs(&c, &mut random));
        }
    }
}

#[test]
fn every_operand_has_a_layout_of_its_own() {
    for class in classes() {
        let mut random = Random::new(7);
        for _ in 0..60 {
            let kv_heads = 1 + random.below(2);
            let (batch, heads) = (1 + random.below(2), kv_heads * (1 + random.below(2)));
            let q_len = random.pick(&[1, 7, 33, 64, 65, 90]);
            let kv_len = random.pick(&[1, 16, 31, 64, 65, 129]);
            let (qk_dim, v_dim) = (random.pick(&[1, 5, 16, 33]), random.pick(&[1, 7, 16, 33]));
            let mask =
                random.pick(&[None, Some([0, 0, kv_len, 1]), Some([heads, 1, 0, 0]), Some([0, 0, 0, 1])]);
            let mut c = call([batch, heads, kv_heads, q_len, kv_len, qk_dim, v_dim], mask, true);
            c.causal = random.below(2) == 0;
            c.scale_bits = random.pick(&[0.125f32, 0.4, 1.0]).to_bits();
            let mut strides = |heads: usize, len: usize, dim: usize| match random.below(2) == 0 {
                true => [heads * len * dim, len * dim, dim],
                false => [len * heads * dim, dim, heads * dim],
            };
            c.q = strides(heads, q_len, qk_dim);
            c.k = strides(kv_heads, kv_len, qk_dim);
            c.v = strides(kv_heads, kv_len, v_dim);
            c.d_o = strides(heads, q_len, v_dim);
            c.dq = strides(heads, q_len, qk_dim);
            c.dk = strides(kv_heads, kv_len, qk_dim);
            c.dv = strides(kv_heads, kv_len, v_dim);
            check(class, &c, &inputs(&c, &mut random));
        }
    }
}

#[test]
fn rows_far_apart_that_many_panels_read_are_copied() {
    for class in classes() {
        let mut random = Random::new(2);
        for (q_len, kv_len, causal) in [(800, 97, true), (70, 801, false)] {
            let mut c = call([1, 2, 2, q_len, kv_len, 5, 9], None, false);
            c.causal = causal;
            let call = KernelCall::AttentionGradient(c.clone());
            let phases = CpuTarget::new(class).prepare(&call).unwrap().phases;
            assert_eq!(phases.len(), 4, "two copies, then queries and keys");
            check(class, &c, &inputs(&c, &mut random));
        }
    }
}

#[test]
fn pairs_out_of_sight_have_no_part() {
    for class in classes() {
        let mut random = Random::new(3);
        // Causal, with more queries than keys: the first ones see none. Their numbers must reach nothing.
        let mut c = call([1, 2, 1, 130, 99, 8, 6], None, true);
        c.causal = true;
        let mut inputs = inputs(&c, &mut random);
        for head in 0..2 {
            let rows = head * 130..head * 130 + 31;
            assert!(inputs[3][rows.clone()].iter().all(|x| *x == f32::NEG_INFINITY));
            inputs[4][rows].fill(f32::NAN);
        }
        check(class, &c, &inputs);
        // A mask that hides whole rows and whole blocks.
        let c = call([1, 1, 1, 40, 400, 8, 8], Some([0, 0, 400, 1]), true);
        let mut inputs = self::inputs(&c, &mut random);
        inputs[6].fill(0.0);
        inputs[6][..400].fill(f32::NEG_INFINITY);
        inputs[6][400..800 - 3].fill(f32::NEG_INFINITY);
        take_logarithms(&c, &mut inputs);
        inputs[4][0] = f32::NAN;
        check(class, &c, &inputs);
        assert!(run(class, &c, &inputs).iter().flatten().all(|x| x.is_finite()));
    }
}

#[test]
fn what_is_no_number_reaches_what_reads_it() {
    for class in classes() {
        let mut random = Random::new(4);
        let c = call([1, 1, 1, 37, 41, 6, 5], None, true);
        let mut inputs = inputs(&c, &mut random);
        inputs[5][7 * 5 + 2] = f32::NAN;
        let found = run(class, &c, &inputs);
        // Query 7 moves nowhere certain, and neither does any key; the values do, but for one element.
        for (row, dq) in found[0].chunks(6).enumerate() {
            assert!(dq.iter().all(|x| x.is_nan() == (row == 7)), "row {row}: {dq:?}");
        }
        assert!(found[1].iter().all(|x| x.is_nan()));
        assert!(found[2].chunks(5).all(|dv| dv.iter().enumerate().all(|(i, x)| x.is_nan() == (i == 2))));
    }
}

#[test]
fn large_scores_and_small_numbers_keep_their_size() {
    for class in classes() {
        let mut random = Random::new(5);
        let c = call([1, 2, 2, 9, 270, 16, 5], None, false);
        let mut inputs = inputs(&c, &mut random);
        inputs[0].iter_mut().for_each(|x| *x *= 100.0);
        take_logarithms(&c, &mut inputs);
        assert!(run(class, &c, &inputs).iter().flatten().all(|x| x.is_finite()));
        inputs[0].iter_mut().for_each(|x| *x *= 1e-41);
        inputs[5].iter_mut().step_by(3).for_each(|x| *x *= 1e-40);
        take_logarithms(&c, &mut inputs);
        check(class, &c, &inputs);
    }
}

#[test]
fn empty_extents_are_fine() {
    for class in classes() {
        let mut random = Random::new(6);
        for sizes in [
            [0, 2, 2, 3, 4, 5, 6],
            [1, 0, 0, 3, 4, 5, 6],
            [1, 2, 2, 0, 4, 5, 6],
            [1, 2, 1, 3, 0, 5, 6],
            [1, 2, 2, 3, 4, 0, 6],
            [1, 2, 2, 3, 4, 5, 0],
        ] {
            let c = call(sizes, None, true);
            check(class, &c, &inputs(&c, &mut random));
        }
        // Without keys nothing moves, but it is written.
        let c = call([1, 2, 1, 3, 0, 5, 6], None, true);
        assert_eq!(run(class, &c, &inputs(&c, &mut random))[0], [0.0; 30]);
    }
}
