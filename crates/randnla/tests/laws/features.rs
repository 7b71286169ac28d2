//! Random features: their directions, and what they say of the kernel that they stand for.

use margay_randnla::{Directions, Distribution, Gram, Matrix, Proposal, random_directions, random_matrix};

const DIM: usize = 6;

/// Two vectors. Estimates of long ones have heavy tails, whose variance few seeds do not show.
fn pair(scale: f64) -> ([f64; DIM], [f64; DIM]) {
    let (x, y) = ([0.3, -0.5, 0.2, 0.4, -0.1, 0.3], [0.5, -0.2, 0.6, -0.3, 0.2, 0.1]);
    (x.map(|x| scale * x), y.map(|y| scale * y))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The mean over directions of the products of positive features of two vectors.
fn estimate(w: &Matrix, x: &[f64], y: &[f64]) -> f64 {
    let column = |j: usize| (0..DIM).map(|i| w.at(i, j)).collect::<Vec<f64>>();
    let feature = |w: &[f64], x: &[f64]| (dot(w, x) - dot(x, x) / 2.0).exp();
    let products = (0..w.columns()).map(|j| feature(&column(j), x) * feature(&column(j), y));
    products.sum::<f64>() / w.columns() as f64
}

/// Mean and variance of the estimates over seeds.
fn statistics(kind: Directions, count: usize, scale: f64, seeds: u64) -> (f64, f64) {
    let (x, y) = pair(scale);
    let found: Vec<f64> =
        (0..seeds).map(|seed| estimate(&random_directions(kind, DIM, count, seed, 1), &x, &y)).collect();
    let mean = found.iter().sum::<f64>() / seeds as f64;
    (mean, found.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (seeds - 1) as f64)
}

#[test]
fn estimates_of_the_exponential_are_unbiased() {
    let (x, y) = pair(1.0);
    let exact = dot(&x, &y).exp();
    for kind in [Directions::Independent, Directions::Orthogonal] {
        let (mean, variance) = statistics(kind, 2 * DIM, 1.0, 64);
        let standard_error = (variance / 64.0).sqrt();
        assert!((mean - exact).abs() < 4.0 * standard_error, "{kind:?}: {mean} for {exact}");
    }
}

#[test]
fn variances_fall_with_the_number_of_directions_and_with_right_angles() {
    let of = |kind, count| statistics(kind, count, 0.7, 512).1;
    let (few, many) = (of(Directions::Independent, 2 * DIM), of(Directions::Independent, 32 * DIM));
    let ratio = few / many;
    assert!((11.0..23.0).contains(&ratio), "16 times the directions: {ratio}");
    let orthogonal = of(Directions::Orthogonal, 2 * DIM);
    assert!(orthogonal < few, "{orthogonal} and {few}");
    assert!(of(Directions::Regularized, 2 * DIM) < orthogonal);
}

#[test]
fn directions_of_a_block_are_at_right_angles() {
    for (kind, count) in [(Directions::Orthogonal, 15), (Directions::Regularized, 4)] {
        let w = random_directions(kind, DIM, count, 3, 9);
        for a in 0..count {
            for b in (0..a).filter(|b| b / DIM == a / DIM) {
                let product: f64 = (0..DIM).map(|i| w.at(i, a) * w.at(i, b)).sum();
                assert!(product.abs() < 1e-12, "{kind:?}: {a} and {b}: {product}");
            }
            let squared: f64 = (0..DIM).map(|i| w.at(i, a).powi(2)).sum();
            assert!(kind == Directions::Orthogonal || (squared - DIM as f64).abs() < 1e-12, "{squared}");
        }
    }
}

/// A coordinate has mean 0 and variance 1: its mean over seeds is within 4 standard errors.
#[test]
fn directions_point_everywhere() {
    for kind in [Directions::Independent, Directions::Orthogonal, Directions::Regularized] {
        let mut sums = [[0.0; 8]; DIM];
        for seed in 0..64 {
            let w = random_directions(kind, DIM, 8, seed, 4);
            sums.iter_mut().enumerate().for_each(|(i, row)| (0..8).for_each(|j| row[j] += w.at(i, j)));
        }
        let most = sums.iter().flatten().fold(0f64, |m, sum| m.max(sum.abs()));
        assert!(most / 64.0 < 4.0 / 8.0, "{kind:?}: {}", most / 64.0);
    }
}

#[test]
fn directions_are_named_by_seed_and_stream() {
    let draw = |kind, seed, stream| random_directions(kind, DIM, 13, seed, stream);
    for kind in [Directions::Independent, Directions::Orthogonal, Directions::Regularized] {
        assert_eq!(draw(kind, 1, 2), draw(kind, 1, 2));
        assert_ne!(draw(kind, 1, 2), draw(kind, 1, 3));
        assert_ne!(draw(kind, 1, 2), draw(kind, 2, 2));
        let (fewer, more) = (random_directions(kind, DIM, 12, 1, 2), draw(kind, 1, 2));
        assert!((0..12).all(|j| (0..DIM).all(|i| fewer.at(i, j) == more.at(i, j))), "{kind:?}");
    }
    assert_eq!(random_directions(Directions::Orthogonal, 0, 3, 1, 1).columns(), 3);
    assert_eq!(random_directions(Directions::Orthogonal, 3, 0, 1, 1).columns(), 0);
}

/// Rows about a mean, with more variance in some directions than in others.
fn rows(stream: u64, mean: f64, scales: [f64; DIM]) -> Matrix {
    let z = random_matrix(Distribution::Gaussian, 200, DIM, 7, stream);
    let turned = |i: usize, j: usize| (z.at(i, j) + 0.5 * z.at(i, (j + 1) % DIM)) * scales[j];
    Matrix::from_fn(200, DIM, |i, j| mean + turned(i, j))
}

fn moments(rows: &Matrix) -> Gram {
    let mut gram = Gram::new(DIM);
    gram.add_rows(&rows.to_row_major()).unwrap();
    gram
}

/// The estimate by fitted directions of the exponential of the product of two rows.
fn fitted_estimate(law: &Proposal, u: &Matrix, x: &[f64], y: &[f64]) -> f64 {
    let (w, b) = law.directions(u).unwrap();
    let turned = |m: &Matrix, x: &[f64]| -> Vec<f64> {
        (0..DIM).map(|i| (0..DIM).map(|j| m.at(i, j) * x[j]).sum()).collect()
    };
    let (x, y) = (turned(law.of_queries(), x), turned(law.of_keys(), y));
    let column = |j: usize| (0..DIM).map(|i| w.at(i, j)).collect::<Vec<f64>>();
    let feature = |j: usize, x: &[f64]| (dot(&column(j), x) - dot(x, x) / 2.0 + b[j]).exp();
    (0..w.columns()).map(|j| feature(j, &x) * feature(j, &y)).sum::<f64>() / w.columns() as f64
}

#[test]
fn fitted_directions_estimate_the_same_with_less_variance() {
    let queries = rows(1, 0.3, [1.2, 0.9, 0.5, 0.2, 0.1, 0.05]);
    let keys = rows(2, -0.2, [0.6, 0.7, 0.4, 0.3, 0.1, 0.2]);
    let law = Proposal::fitted(&moments(&queries), &moments(&keys)).unwrap();
    let row = |m: &Matrix, i: usize| (0..DIM).map(|j| m.at(i, j)).collect::<Vec<f64>>();
    let draw = |seed| random_directions(Directions::Orthogonal, DIM, 2 * DIM, seed, 1);
    let (mut plain, mut fitted) = (0.0, 0.0);
    for pair in 0..40 {
        let (x, y) = (row(&queries, pair), row(&keys, pair + 50));
        let exact = dot(&x, &y).exp();
        let found: Vec<f64> =
            (0..64).map(|seed| fitted_estimate(&law, &draw(seed), &x, &y) / exact).collect();
        let mean = found.iter().sum::<f64>() / 64.0;
        let variance = found.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / 63.0;
        // Tails are heavy for the longest rows, of which few seeds do not show the variance.
        if pair < 8 {
            assert!((mean - 1.0).abs() < 4.0 * (variance / 64.0).sqrt(), "{pair}: {mean}, {variance}");
        }
        let squared = |estimate: f64| (estimate / exact - 1.0).powi(2).ln_1p();
        fitted += found.iter().map(|e| squared(e * exact)).sum::<f64>();
        plain += (0..64).map(|seed| squared(estimate(&draw(seed), &x, &y))).sum::<f64>();
    }
    assert!(fitted < 0.7 * plain, "{fitted} and {plain}");
}

/// Without variance there is nothing to fit but the mean; a factor moved from keys to queries changes nothing.
#[test]
fn fitted_directions_of_constant_rows_are_drawn_about_their_sum() {
    let same = |x: f64| moments(&Matrix::from_fn(20, DIM, |_, _| x));
    let law = Proposal::fitted(&same(0.5), &same(0.25)).unwrap();
    let u = random_directions(Directions::Independent, DIM, 9, 1, 1);
    let (w, b) = law.directions(&u).unwrap();
    assert!((0..9).all(|j| (0..DIM).all(|i| (w.at(i, j) - u.at(i, j) - 0.75).abs() < 1e-3)));
    assert!(b.iter().all(|b| b.is_finite()));
    let (queries, keys) = (rows(1, 0.3, [0.5; DIM]), rows(2, -0.2, [0.4; DIM]));
    let times = |m: &Matrix, by: f64| Matrix::from_fn(m.rows(), DIM, |i, j| by * m.at(i, j));
    let one = Proposal::fitted(&moments(&queries), &moments(&keys)).unwrap();
    let other = Proposal::fitted(&moments(&times(&queries, 4.0)), &moments(&times(&keys, 0.25))).unwrap();
    let (one, other) = (one.directions(&u).unwrap().0, other.directions(&u).unwrap().0);
    assert!((0..9).all(|j| (0..DIM).all(|i| (one.at(i, j) - other.at(i, j)).abs() < 1e-3)));
}

#[test]
fn directions_of_other_lengths_are_not_fitted() {
    let empty = Gram::new(DIM);
    assert!(Proposal::fitted(&empty, &empty).is_err());
    let mut short = Gram::new(2);
    short.add_rows(&[1.0, 2.0]).unwrap();
    let law = Proposal::fitted(&moments(&rows(1, 0.0, [1.0; DIM])), &short);
    assert_eq!(law.unwrap_err().to_string(), "a key has the wrong length: expected 6, found 2");
}
