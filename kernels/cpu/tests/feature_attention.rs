//! Linear attention that makes its features, of every class against plain loops in f64.

mod harness;

use harness::random::Random;
use harness::{Expected, GAP, classes, compare, execute};
use margay_kernels_cpu::Class;
use margay_loops::{FeatureAttention, FeatureMap, KernelCall};
use margay_tensor::DType;

/// Sizes: batch, heads, queries, keys, length of a query, features, length of a value.
fn call(
    [batch, heads, q_len, kv_len, dim, features, v_dim]: [usize; 7],
    map: FeatureMap,
) -> FeatureAttention {
    let strides = |len: usize, dim: usize| [heads * len * dim, len * dim, dim];
    let norm = if map == FeatureMap::Relu { 0.0 } else { 0.3f32 };
    FeatureAttention {
        dtype: DType::F32,
        batch,
        heads,
        q_len,
        kv_len,
        dim,
        features,
        v_dim,
        map,
        query_norm_bits: 0,
        key_norm_bits: norm.to_bits(),
        least_bits: 1e-3f32.to_bits(),
        epsilon_bits: 0,
        causal: false,
        q: strides(q_len, dim),
        k: strides(kv_len, dim),
        v: strides(kv_len, v_dim),
        o: strides(q_len, v_dim),
        query_directions: [0, features, 1],
        key_directions: [0, features, 1],
        mask: None,
        weights: None,
    }
}

/// Operands: directions are of the size that keeps products near 1.
fn inputs(c: &FeatureAttention, random: &mut Random) -> Vec<Vec<f32>> {
    let times = c.batch * c.heads;
    let mut all: Vec<Vec<f32>> = [c.q_len * c.dim, c.kv_len * c.dim, c.kv_len * c.v_dim]
        .iter()
        .map(|len| random.normal(times * len))
        .collect();
    for strides in [c.query_directions, c.key_directions] {
        let heads = if strides[0] == 0 { 1 } else { c.heads };
        let root = 0.7 / (c.dim.max(1) as f32).sqrt();
        all.push(random.normal(heads * c.dim * c.features).iter().map(|x| x * root).collect());
    }
    if let Some([batch, head, key]) = c.mask {
        let extents = [(batch, c.batch), (head, c.heads), (key, c.kv_len)];
        let len: usize =
            extents.iter().map(|(stride, extent)| if *stride == 0 { 1 } else { *extent }).product();
        all.push(random.normal(len));
    }
    if let Some(head) = c.weights {
        all.push(random.normal(if head == 0 { c.features } else { c.heads * c.features }));
    }
    all
}

/// Features of a head, `[rows, features]`, as the documentation of the call writes them.
struct Made {
    exponents: Vec<f64>,
    products: Vec<f64>,
    masks: Vec<f64>,
}

fn number(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits))
}

fn made(
    c: &FeatureAttention,
    inputs: &[Vec<f32>],
    which: usize,
    rows: usize,
    [batch, head]: [usize; 2],
) -> Made {
    let at = |input: usize, at: usize| f64::from(inputs[input][at]);
    let (strides, w) = [(c.q, c.query_directions), (c.k, c.key_directions)][which];
    let norm = number([c.query_norm_bits, c.key_norm_bits][which]);
    let weights = 5 + usize::from(c.mask.is_some());
    let (mut products, mut exponents, mut masks) = (vec![], vec![], vec![]);
    for row in 0..rows {
        let x = |d: usize| at(which, batch * strides[0] + head * strides[1] + row * strides[2] + d);
        let squared: f64 = (0..c.dim).map(|d| x(d) * x(d)).sum();
        let mask = match c.mask {
            Some(m) if which == 1 => at(5, batch * m[0] + head * m[1] + row * m[2]),
            _ => 0.0,
        };
        masks.push(mask);
        for f in 0..c.features {
            let terms = (0..c.dim).map(|d| x(d) * at(3 + which, head * w[0] + d * w[1] + f * w[2]));
            let weight = c.weights.map_or(0.0, |stride| at(weights, head * stride + f));
            let product = terms.sum::<f64>() + weight;
            products.push(product);
            exponents.push(product - norm * squared + mask);
        }
    }
    Made { exponents, products, masks }
}

fn most(x: &[f64]) -> f64 {
    x.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn expected(c: &FeatureAttention, inputs: &[Vec<f32>]) -> Vec<Expected> {
    let (m, least) = (c.features, number(c.least_bits));
    let mut expected = vec![GAP; c.batch * c.heads * c.q_len * c.v_dim];
    for [batch, head] in (0..c.batch).flat_map(|b| (0..c.heads).map(move |h| [b, h])) {
        let (queries, keys) =
            (made(c, inputs, 0, c.q_len, [batch, head]), made(c, inputs, 1, c.kv_len, [batch, head]));
        let shift = match c.map {
            FeatureMap::Relu | FeatureMap::Exp => 0.0,
            FeatureMap::ExpByExponents => most(&keys.exponents),
            FeatureMap::ExpByProducts => most(&keys.products),
        };
        let shift = if shift.is_infinite() { 0.0 } else { shift };
        let of_key = |at: usize| match c.map {
            FeatureMap::Relu => (keys.products[at].max(0.0) + least) * keys.masks[at / m].exp(),
            _ => (keys.exponents[at] - shift).exp() + least * keys.masks[at / m].exp(),
        };
        let of_keys: Vec<f64> = (0..c.kv_len * m).map(of_key).collect();
        for query in 0..c.q_len {
            let row = query * m..(query + 1) * m;
            let top = most(&queries.products[row.clone()]);
            let of_query = |f: usize| match c.map {
                FeatureMap::Relu => queries.products[query * m + f].max(0.0) + least,
                _ => (queries.exponents[query * m + f] - top).exp() + least,
            };
            let features: Vec<f64> = (0..m).map(of_query).collect();
            let seen = if c.causal { query + 1 } else { c.kv_len };
            let weight = |key: usize| features.iter().zip(&of_keys[key * m..]).map(|(x, y)| x * y).sum();
            let weights: Vec<f64> = (0..seen).map(weight).collect();
            let total = weights.iter().sum::<f64>() + number(c.epsilon_bits);
            for d in 0..c.v_dim {
                let value =
                    |key: usize| f64::from(inputs[2][batch * c.v[0] + head * c.v[1] + key * c.v[2] + d]);
                let terms = weights.iter().enumerate().map(|(key, w)| w * value(key));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + f64::abs(x)));
                // An exponential has the absolute error of its argument as a relative one.
                let tolerance = 2e-5 * (size / total.abs()).max(0.0);
                let to = batch * c.o[0] + head * c.o[1] + query * c.o[2] + d;
                expected[to] = Expected { value: sum / total, tolerance };
            }
        }
    }
    expected
}

fn run(class: Class, c: &FeatureAttention, inputs: &[Vec<f32>]) -> Vec<f32> {
    let out = c.batch * c.heads * c.q_len * c.v_dim;
    execute(class, &KernelCall::FeatureAttention(c.clone()), inputs, &[], out)
}

fn check(class: Class, c: &FeatureAttention, inputs: &[Vec<f32>]) {
    compare(&format!("{} {c:?}", class.name()), &run(class, c, inputs), &expected(c, inputs));
}

/// A causal call of the same sizes, where there is one.
fn causal(c: FeatureAttention) -> FeatureAttention {
    let map = if c.map == FeatureMap::Relu { FeatureMap::Relu } else { FeatureMap::Exp };
    FeatureAttention { causal: c.q_len == c.kv_len, map, ..c }
}

#[test]
fn sampled_sizes_agree() {
    for class in classes() {
        let mut random = Random::new(1);
        for turn in 0..60 {
            let longest = [70, 300, 700][turn % 3];
            let q_len = 1 + random.below(longest);
            let kv_len = if turn % 2 == 0 { q_len } else { 1 + random.below(longest) };
            let [batch, heads] = [1 + random.below(2), 1 + random.below(3)];
            let [dim, features, v_dim] = [1 + random.below(40), 1 + random.below(70), 1 + random.below(70)];
            let mut c =
                call([batch, heads, q_len, kv_len, dim, features, v_dim], random.pick(&FeatureMap::ALL));
            if random.below(3) == 0 {
                // Rows of heads lie beside each other.
                let beside = |len: usize, dim: usize| [len * heads * dim, dim, heads * dim];
                (c.q, c.k) = (beside(q_len, dim), beside(kv_len, dim));
                (c.v, c.o) = (beside(kv_len, v_dim), beside(q_len, v_dim));
            }
            if random.below(2) == 0 {
                // Directions of each head, transposed.
                c.query_directions = [dim * features, 1, dim];
                c.key_directions = [dim * features, features, 1];
            }
            c.mask = random.pick(&[
                None,
                Some([kv_len, 0, 1]),
                Some([heads * kv_len, kv_len, 1]),
                Some([0, 0, 1]),
            ]);
            c.weights = random.pick(&[None, Some(0), Some(features)]);
            if c.map != FeatureMap::Relu {
                c.query_norm_bits = random.pick(&[0.0f32, 0.2]).to_bits();
            }
            c.epsilon_bits = random.pick(&[0.0f32, 1e-3, 10.0]).to_bits();
            if random.below(2) == 0 {
                c = causal(c);
            }
            check(class, &c, &inputs(&c, &mut random));
        }
    }
}

#[test]
fn sizes_at_the_edges_of_spans_and_chunks_agree() {
    for class in classes() {
        let mut random = Random::new(2);
        for len in [1, 63, 64, 65, 255, 256, 257, 512, 513] {
            for map in FeatureMap::ALL {
                let c = call([1, 2, len, len, 8, 16, 33], map);
                check(class, &c, &inputs(&c, &mut random));
                let c = causal(c);
                check(class, &c, &inputs(&c, &mut random));
            }
        }
    }
}

/// The greatest exponent is in the last span, so that every state is rescaled, and far above those before.
#[test]
fn exponents_that_rise_from_span_to_span_agree() {
    for class in classes() {
        let mut random = Random::new(3);
        for map in [FeatureMap::ExpByExponents, FeatureMap::ExpByProducts] {
            for falling in [false, true] {
                let mut c = call([1, 1, 70, 900, 6, 19, 5], map);
                c.mask = Some([0, 0, 1]);
                let mut inputs = inputs(&c, &mut random);
                let slope = |key: usize| if falling { 900 - key } else { key } as f32 * 0.15 - 135.0;
                inputs[5] = (0..900).map(slope).collect();
                check(class, &c, &inputs);
            }
        }
    }
}

/// Exponentials of these exponents are beyond what f32 holds, below and above.
#[test]
fn large_operands_agree() {
    for class in classes() {
        let mut random = Random::new(4);
        for map in [FeatureMap::ExpByExponents, FeatureMap::ExpByProducts] {
            let c = call([1, 2, 40, 300, 6, 19, 5], map);
            let mut inputs = inputs(&c, &mut random);
            inputs[..2].iter_mut().flatten().for_each(|x| *x *= 30.0);
            let (found, expected) = (run(class, &c, &inputs), expected(&c, &inputs));
            for (x, e) in found.iter().zip(&expected) {
                // An exponent of some hundreds is known to some units of 1e-5.
                assert!((f64::from(*x) - e.value).abs() < 1e-2, "{map:?}: {x} for {}", e.value);
            }
        }
    }
}

#[test]
fn keys_that_a_mask_hides_count_as_nothing() {
    for class in classes() {
        let mut random = Random::new(5);
        for map in FeatureMap::ALL {
            for shown in [0, 1, 299] {
                let mut c = call([2, 1, 9, 300, 5, 12, 7], map);
                c.mask = Some([300, 0, 1]);
                c.epsilon_bits = 1e-30f32.to_bits();
                let mut inputs = inputs(&c, &mut random);
                let hides = |at: usize| if at >= 300 && at % 300 >= shown { f32::NEG_INFINITY } else { 0.5 };
                inputs[5] = (0..600).map(hides).collect();
                check(class, &c, &inputs);
                if shown == 0 {
                    assert!(run(class, &c, &inputs)[63..].iter().all(|x| *x == 0.0), "{map:?}");
                }
            }
        }
    }
}

#[test]
fn later_positions_do_not_reach_causal_results() {
    for class in classes() {
        let mut random = Random::new(6);
        for map in [FeatureMap::Relu, FeatureMap::Exp] {
            for len in [100, 600] {
                let c = causal(call([1, 1, len, len, 4, 9, 5], map));
                let mut inputs = inputs(&c, &mut random);
                let clean = run(class, &c, &inputs);
                let chunk = (len - 1) / 64 * 64;
                inputs[1][chunk * 4..].fill(f32::NAN);
                inputs[2][chunk * 5..].fill(f32::INFINITY);
                let found = run(class, &c, &inputs);
                assert_eq!(found[..chunk * 5], clean[..chunk * 5]);
                assert!(found[chunk * 5..].iter().all(|x| x.is_nan()));
            }
        }
    }
}

#[test]
fn a_key_that_is_no_number_makes_every_result_none() {
    for class in classes() {
        let mut random = Random::new(7);
        for map in [FeatureMap::ExpByExponents, FeatureMap::ExpByProducts] {
            let c = call([1, 1, 20, 300, 4, 9, 5], map);
            let mut inputs = inputs(&c, &mut random);
            inputs[1][100 * 4 + 1] = f32::NAN;
            assert!(run(class, &c, &inputs).iter().all(|x| x.is_nan()), "{map:?}");
        }
    }
}

#[test]
fn empty_extents_are_fine() {
    for class in classes() {
        let mut random = Random::new(8);
        for map in FeatureMap::ALL {
            for empty in 0..7 {
                let mut sizes = [1, 2, 3, 4, 5, 6, 7];
                sizes[empty] = 0;
                let c = call(sizes, map);
                check(class, &c, &inputs(&c, &mut random));
                if !map.sees_all_keys() {
                    sizes[3] = sizes[2];
                    let c = causal(call(sizes, map));
                    check(class, &c, &inputs(&c, &mut random));
                }
            }
        }
    }
}
