//! Random features: their directions, and what they say of the kernel that they stand for.

use margay_randnla::{Directions, Matrix, random_directions};

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
