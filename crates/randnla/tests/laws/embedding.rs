//! Subspace embeddings: for an `r`-dimensional subspace with basis `Q`, all singular values of `S Q` are within `1 ± δ`.

use margay_randnla::{Distribution, Draw, Law, Matrix, Scalar, Sketch, leverage_scores};

use crate::spectra::{gaussian, orthonormal, singular_values};

/// Dimension of the subspaces, and of the space.
const R: usize = 16;
const N: usize = 1024;

/// Rows for a distortion of `delta` with a failure rate of at most 1 in 1000, for Gaussian entries: singular values exceed
/// `1 ± (√(r/d) + t)` with probability `2 exp(-d t² / 2)` (Davidson and Szarek 2001), and `t = τ √(r/d)` with
/// `τ² r = 2 ln 2000`.
fn rows(delta: f64) -> usize {
    let tau = (2.0 * 2000f64.ln() / R as f64).sqrt();
    (((1.0 + tau) / delta).powi(2) * R as f64).ceil() as usize
}

fn distortion(sketch: &Sketch, basis: &Matrix) -> f64 {
    distortion_in::<f64>(sketch, basis)
}

/// The same of a product in some precision.
fn distortion_in<T: Scalar>(sketch: &Sketch, basis: &Matrix) -> f64 {
    let basis = Matrix::<T>::from_fn(basis.rows(), basis.columns(), |i, j| T::from_f64(basis.at(i, j)));
    let image = sketch.apply(&basis).unwrap();
    let image = Matrix::<f64>::from_fn(image.rows(), image.columns(), |i, j| image.at(i, j).to_f64());
    let values = singular_values(&image);
    (values[0] - 1.0).max(1.0 - values[values.len() - 1])
}

/// The unit vectors of the last coordinates: all their energy is in a few rows.
fn coherent() -> Matrix {
    Matrix::from_fn(N, R, |i, j| f64::from(i == N - R + j))
}

fn laws() -> Vec<(&'static str, Law)> {
    laws_of([32, 32])
}

/// All laws, for as many columns as two factors of a Kronecker product have together.
fn laws_of(extents: [usize; 2]) -> Vec<(&'static str, Law)> {
    let dense = |d| Law::Dense(d);
    vec![
        ("gaussian", dense(Distribution::Gaussian)),
        ("uniform", dense(Distribution::Uniform)),
        ("rademacher", dense(Distribution::Sign)),
        ("sjlt 8", Law::Sjlt { nonzeros: 8 }),
        ("sjlt 4", Law::Sjlt { nonzeros: 4 }),
        ("sjlt 2", Law::Sjlt { nonzeros: 2 }),
        ("count", Law::Sjlt { nonzeros: 1 }),
        ("srht", Law::Srht),
        ("less 16", Law::Less { nonzeros: 16, draw: Draw::UNIFORM }),
        ("tensor", Law::Tensor { extents: extents.to_vec() }),
    ]
}

/// Random subspaces: in none of 64 draws is the distortion greater than that for which Gaussian entries fail once in 1000, in f64
/// and in f32.
#[test]
fn random_subspaces_are_embedded_by_every_law() {
    let basis = orthonormal(N, R, 5);
    for delta in [0.75, 0.5, 0.25] {
        let d = rows(delta).min(N);
        for (name, law) in laws() {
            for seed in 0..64 {
                let sketch = Sketch::new(law.clone(), d, N, seed, 1).unwrap();
                for found in [distortion(&sketch, &basis), distortion_in::<f32>(&sketch, &basis)] {
                    assert!(found <= delta, "{name} with {d} rows, seed {seed}: {found}, at most {delta}");
                }
            }
        }
    }
}

/// A finer distortion needs more rows: 10 % of it by every law, in f64 and, of another draw, in f32.
#[test]
fn ten_percent_takes_a_hundred_times_the_rows() {
    let d = rows(0.1);
    let n = 8192;
    let basis = orthonormal(n, R, 6);
    for (name, law) in laws_of([64, 128]) {
        let sketch = |seed| Sketch::new(law.clone(), d, n, seed, 1).unwrap();
        for found in [distortion(&sketch(0), &basis), distortion_in::<f32>(&sketch(1), &basis)] {
            assert!(found <= 0.1, "{name} with {d} rows: {found}");
        }
    }
}

/// Subspaces whose energy is in a few rows: laws with dense or mixed columns embed them as they do others. One entry in a
/// column does not, where two of the rows meet, and sampled rows do not at all.
#[test]
fn coherent_subspaces_need_more_than_one_entry() {
    let (delta, basis) = (0.5, coherent());
    let d = rows(delta);
    let failures = |law: &Law| {
        let of = |seed| distortion(&Sketch::new(law.clone(), d, N, seed, 1).unwrap(), &basis);
        (0..64).filter(|&seed| of(seed) > delta).count()
    };
    for (name, law) in laws().into_iter().filter(|(name, _)| !["count", "sjlt 2", "less 16"].contains(name)) {
        if name != "tensor" {
            assert_eq!(failures(&law), 0, "{name}");
        }
    }
    // The chance that some of 16 vectors meet in 250 rows is 1 - exp(-16 · 15 / 2 / 250), about 0.4.
    let count = failures(&Law::Sjlt { nonzeros: 1 });
    assert!((10..45).contains(&count), "{count}");
    assert_eq!(failures(&Law::Rows(Draw::UNIFORM)), 64);
}

/// Rows that are drawn by leverage scores embed what uniform ones do not.
#[test]
fn leverage_scores_mend_row_sampling() {
    let spread: Matrix = gaussian(N, R, 8);
    let a = Matrix::from_fn(N, R, |i, j| if i < 4 { 300.0 * spread.at(i, j) } else { spread.at(i, j) });
    let scores = leverage_scores(&a, 1, 0).unwrap();
    assert!((scores.iter().sum::<f64>() / R as f64 - 1.0).abs() < 0.5);
    let basis = margay_randnla::cqrrt(&a, &Default::default()).unwrap().q;
    for (i, found) in scores.iter().enumerate() {
        let exact: f64 = (0..R).map(|j| basis.at(i, j).powi(2)).sum();
        assert!((0.2..5.0).contains(&(found / exact)), "row {i}: {found}, exactly {exact}");
    }
    let fails =
        |law: &Law, seed| distortion(&Sketch::new(law.clone(), 400, N, seed, 3).unwrap(), &basis) > 0.6;
    let law = Law::Rows(Draw::weighted(&scores).unwrap());
    assert!((0..64).filter(|&seed| fails(&law, seed)).count() <= 1);
    let uniform = Law::Rows(Draw::UNIFORM);
    assert!((0..64).filter(|&seed| fails(&uniform, seed)).count() >= 60);
}

/// The distortion of points (Johnson and Lindenstrauss): all of 100 squared norms are within `1 ± 0.5` in 250 rows.
#[test]
fn points_keep_their_norms() {
    let points: Matrix = gaussian(N, 100, 9);
    let squared = |m: &Matrix, j: usize| (0..m.rows()).map(|i| m.at(i, j).powi(2)).sum::<f64>();
    for (name, law) in laws() {
        for seed in 0..8 {
            let image = Sketch::new(law.clone(), 250, N, seed, 2).unwrap().apply(&points).unwrap();
            for j in 0..100 {
                let ratio = squared(&image, j) / squared(&points, j);
                assert!((0.5..1.5).contains(&ratio), "{name} seed {seed}: {ratio}");
            }
        }
    }
}
