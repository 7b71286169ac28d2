//! Draws the laws of sketches and factorizations beside what is measured, as pictures (SVG).
//!
//! `laws FOLDER [WEIGHT...]` writes `embeddings.svg`, `rsvd.svg`, `least_squares.svg`, `trace.svg`, `copies.svg` and
//! `features.svg` into the folder; `lowrank.svg` for a weight `FILE:ROWSxCOLUMNS`, and `kernels.svg` for the kernel of a
//! convolution `FILE:OUTxINxHEIGHTxWIDTH`. Files hold `f32`, little-endian, the last axis varying fastest. Everything is named by
//! seeds, so that a second run draws the same.

use std::error::Error;
use std::path::{Path, PathBuf};

use margay_randnla::{
    CpOptions, DenseTensor, Directions, Distribution, Law, LeastSquaresOptions, LowRank, LowRankOptions,
    Matrix, RsvdOptions, Sketch, cp_als, cqrrt, hooi, hutch_plus_plus, least_squares, panther,
    random_directions, range_finder, rsvd, svd,
};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

type Outcome = Result<(), Box<dyn Error>>;

/// Width and height in pixels.
const SIZE: (u32, u32) = (640, 400);

const COLOURS: [RGBColor; 5] =
    [RGBColor(31, 97, 171), RGBColor(200, 82, 0), RGBColor(44, 130, 70), RGBColor(130, 70, 150), BLACK];

/// Points with a colour of their own, and a line in it for what a law says of them.
struct Series {
    label: String,
    colour: usize,
    /// Whether it is a line, for a law, or circles, for what was measured.
    is_law: bool,
    points: Vec<(f64, f64)>,
}

fn measured(label: &str, colour: usize, points: Vec<(f64, f64)>) -> Series {
    Series { label: label.into(), colour, is_law: false, points }
}

fn law(label: &str, colour: usize, points: Vec<(f64, f64)>) -> Series {
    Series { label: label.into(), colour, is_law: true, points }
}

fn gaussian(rows: usize, columns: usize, stream: u64) -> Matrix {
    let sketch = Sketch::new(Law::Dense(Distribution::Gaussian), rows, columns, 11, stream);
    sketch.expect("the shape is not empty").unscaled().to_matrix()
}

fn orthonormal(rows: usize, columns: usize, stream: u64) -> Result<Matrix, Box<dyn Error>> {
    Ok(cqrrt(&gaussian(rows, columns, stream), &Default::default())?.q)
}

/// Random singular vectors, and these values.
fn with_spectrum(rows: usize, values: &[f64], stream: u64) -> Result<Matrix, Box<dyn Error>> {
    let (u, v) =
        (orthonormal(rows, values.len(), stream)?, orthonormal(values.len(), values.len(), stream + 1)?);
    let scaled = Matrix::from_fn(rows, values.len(), |i, j| u.at(i, j) * values[j]);
    Ok(scaled.product(&v.transposed())?)
}

fn distance(a: &Matrix, b: &Matrix) -> f64 {
    Matrix::from_fn(a.rows(), a.columns(), |i, j| a.at(i, j) - b.at(i, j)).squared_norm().sqrt()
}

/// The root of the sum of squares from each place on.
fn tails(values: &[f64]) -> Vec<f64> {
    let mut tails = vec![0.0; values.len() + 1];
    for i in (0..values.len()).rev() {
        tails[i] = tails[i + 1] + values[i] * values[i];
    }
    tails.into_iter().map(f64::sqrt).collect()
}

/// The mean over seeds.
fn mean(seeds: u64, mut of: impl FnMut(u64) -> Result<f64, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut sum = 0.0;
    for seed in 0..seeds {
        sum += of(seed)?;
    }
    Ok(sum / seeds as f64)
}

/// How far singular values of `S Q` are from 1, for an orthonormal `Q`, over the rows of `S`.
fn embeddings(folder: &Path) -> Outcome {
    const R: usize = 16;
    const N: usize = 1024;
    let basis = orthonormal(N, R, 5)?;
    let sizes = [32, 64, 128, 256, 512, 1024];
    let laws = [
        ("Gaussian", Law::Dense(Distribution::Gaussian)),
        ("SJLT, 8 entries", Law::Sjlt { nonzeros: 8 }),
        ("CountSketch", Law::Sjlt { nonzeros: 1 }),
        ("SRHT", Law::Srht),
    ];
    let edge = |d: f64| (R as f64 / d).sqrt();
    // With probability 0.999.
    let tau = (2.0 * 2000f64.ln() / R as f64).sqrt();
    let over = |f: &dyn Fn(f64) -> f64| sizes.map(|d| (d as f64, f(d as f64))).to_vec();
    let mut series = vec![
        law("√(r / d)", 4, over(&edge)),
        law("bound of 999 in 1000, Gaussian", 0, over(&|d| (1.0 + tau) * edge(d))),
    ];
    for (colour, (name, of)) in laws.into_iter().enumerate() {
        let mut points = Vec::new();
        for d in sizes {
            let worst = mean(16, |seed| {
                let values = svd(&Sketch::new(of.clone(), d, N, seed, 1)?.apply(&basis)?)?.singular_values;
                Ok((values[0] - 1.0).max(1.0 - values[R - 1]))
            })?;
            // All rows of an SRHT keep everything; a logarithm of that is no place.
            if worst > 1e-3 {
                points.push((d as f64, worst));
            }
        }
        series.push(measured(name, colour, points));
    }
    let title = "Distortion of a random subspace of 16 dimensions in 1024, mean of 16 seeds";
    draw(&folder.join("embeddings.svg"), title, ["rows d", "distortion"], &series, true)
}

/// Errors of ranges over their rank, for three spectra.
fn ranges(folder: &Path) -> Outcome {
    const N: usize = 200;
    const P: usize = 8;
    type Spectrum = fn(usize) -> f64;
    let spectra: [(&str, Spectrum); 3] = [
        ("1 / i", |i| 1.0 / (1.0 + i as f64)),
        ("exponential", |i| (-(i as f64) / 12.0).exp()),
        ("step at 30", |i| if i < 30 { 1.0 } else { 1e-2 }),
    ];
    let ranks: Vec<usize> = (0..16).map(|i| 4 + 4 * i).collect();
    let mut series = Vec::new();
    for (colour, (name, spectrum)) in spectra.into_iter().enumerate() {
        let values: Vec<f64> = (0..N).map(spectrum).collect();
        let (a, tails) = (with_spectrum(N, &values, 20)?, tails(&values));
        let bound = |k: usize| (1.0 + k as f64 / (P - 1) as f64).sqrt() * tails[k] / tails[0];
        series.push(law(
            &format!("{name}, bound"),
            colour,
            ranks.iter().map(|&k| (k as f64, bound(k))).collect(),
        ));
        let mut points = Vec::new();
        for &k in &ranks {
            let squared = mean(8, |seed| {
                let sketch = Sketch::new(Law::Dense(Distribution::Gaussian), k + P, N, seed, 0)?;
                let q = range_finder(&a, &sketch, 0)?.basis;
                let seen = q.product(&q.transposed().product(&a)?)?;
                Ok(distance(&a, &seen).powi(2))
            })?;
            points.push((k as f64, squared.sqrt() / tails[0]));
        }
        series.push(measured(name, colour, points));
    }
    let title = "Error of the range of k + 8 random vectors, 200 x 200, mean of 8 seeds";
    draw(&folder.join("rsvd.svg"), title, ["rank k", "relative error"], &series, false)
}

/// Errors over the steps of least squares.
fn steps(folder: &Path) -> Outcome {
    const M: usize = 4000;
    const N: usize = 60;
    let values: Vec<f64> = (0..N).map(|i| 10f64.powf(-6.0 * i as f64 / (N - 1) as f64)).collect();
    let a = with_spectrum(M, &values, 30)?;
    let noise = gaussian(M, 1, 33);
    let image = a.product(&gaussian(N, 1, 32))?;
    let b = Matrix::from_fn(M, 1, |i, _| image.at(i, 0) + 0.1 * noise.at(i, 0));
    let of = |rows_per_column, max_iterations, seed| {
        let options =
            LeastSquaresOptions { rows_per_column, max_iterations, seed, ..LeastSquaresOptions::default() };
        least_squares(&a, &b, &options)
    };
    let exact = a.product(&of(8.0, 100, 99)?.x)?;
    let mut series = Vec::new();
    for (colour, rows) in [2.0, 4.0, 16.0].into_iter().enumerate() {
        let counts: Vec<usize> = (1..=14).collect();
        let mut points = Vec::new();
        for &count in &counts {
            let error = mean(4, |seed| {
                let found = a.product(&of(rows, count, seed)?.x)?;
                Ok(distance(&found, &exact) / exact.squared_norm().sqrt())
            })?;
            if error > 1e-14 {
                points.push((count as f64, error));
            }
        }
        let (first, error) = points[0];
        let line = points.iter().map(|(x, _)| (*x, error * rows.powf(-(x - first) / 2.0))).collect();
        series.push(law(&format!("factor 1 / √{rows}"), colour, line));
        series.push(measured(&format!("{rows} rows for a column"), colour, points));
    }
    let title = "Error of A x by steps, 4000 x 60 of condition 1e6, mean of 4 seeds";
    draw(&folder.join("least_squares.svg"), title, ["steps", "relative error"], &series, false)
}

/// Errors of traces over products.
fn traces(folder: &Path) -> Outcome {
    const N: usize = 400;
    let v = orthonormal(N, N, 40)?;
    let values: Vec<f64> = (0..N).map(|i| (1.0 + i as f64).powf(-1.5)).collect();
    let scaled = Matrix::from_fn(N, N, |i, j| v.at(i, j) * values[j]);
    let a = scaled.product(&v.transposed())?;
    let trace: f64 = values.iter().sum();
    let counts = [6, 12, 24, 48, 96, 192];
    // Random signs: twice the squares off the diagonal.
    let off: f64 = a.squared_norm() - (0..N).map(|i| a.at(i, i).powi(2)).sum::<f64>();
    let tails = tails(&values);
    let (mut mine, mut plain) = (Vec::new(), Vec::new());
    for m in counts {
        let squared = mean(64, |seed| Ok((hutch_plus_plus(&a, m, seed, 0)?.value / trace - 1.0).powi(2)))?;
        mine.push((m as f64, squared.sqrt()));
        let squared = mean(64, |seed| {
            let signs: Matrix =
                Sketch::new(Law::Dense(Distribution::Sign), m, N, seed, 9)?.unscaled().to_matrix();
            let image = signs.product(&a)?;
            let sum: f64 = (0..m)
                .flat_map(|i| (0..N).map(move |j| (i, j)))
                .map(|(i, j)| signs.at(i, j) * image.at(i, j))
                .sum();
            Ok((sum / m as f64 / trace - 1.0).powi(2))
        })?;
        plain.push((m as f64, squared.sqrt()));
    }
    let over = |f: &dyn Fn(f64) -> f64| counts.map(|m| (m as f64, f(m as f64))).to_vec();
    let series = [
        law("√(2 / m) of the squares off the diagonal", 1, over(&|m| (2.0 * off / m).sqrt() / trace)),
        law(
            "the same of what m / 3 vectors leave",
            0,
            over(&|m| (6.0 / m).sqrt() * tails[m as usize / 3] / trace),
        ),
        measured("random signs alone", 1, plain),
        measured("Hutch++", 0, mine),
    ];
    let title = "Trace of a 400 x 400 matrix, eigenvalues i^-1.5, root mean square of 64 seeds";
    draw(&folder.join("trace.svg"), title, ["products m", "relative error"], &series, true)
}

/// Errors of copies of a weight with random signs over the rank.
fn copies(folder: &Path) -> Outcome {
    const IN: usize = 96;
    const OUT: usize = 128;
    let w = gaussian(IN, OUT, 50);
    let norm = w.squared_norm().sqrt();
    let ranks = [2, 4, 8, 16, 24, 32, 40, 48];
    let mut found = [Vec::new(), Vec::new()];
    for k in ranks {
        let signs = |rows, columns, seed, stream| -> Result<Matrix, Box<dyn Error>> {
            let size = panther::sign_size(1, k);
            let draw: Matrix = Sketch::new(Law::Dense(Distribution::Sign), rows, columns, seed, stream)?
                .unscaled()
                .to_matrix();
            Ok(Matrix::from_fn(rows, columns, |i, j| size * draw.at(i, j)))
        };
        for (at, found) in found.iter_mut().enumerate() {
            let squared = mean(16, |seed| {
                let (u1, u2) = (signs(k, OUT, seed, 1)?, signs(IN, k, seed, 2)?);
                let f = match at {
                    0 => panther::unbiased(&w, &u1, &u2, 1)?,
                    _ => panther::least_squares(&w, &u1, &u2)?,
                };
                let (left, right) = (f.left.product(&u1)?, u2.product(&f.right)?);
                let sum = Matrix::from_fn(IN, OUT, |i, j| left.at(i, j) + right.at(i, j));
                Ok(distance(&sum, &w).powi(2))
            })?;
            found.push((k as f64, squared.sqrt() / norm));
        }
    }
    let over = |f: &dyn Fn(f64) -> f64| ranks.map(|k| (k as f64, f(k as f64))).to_vec();
    let best = tails(&svd(&w)?.singular_values);
    let as_many = |k: f64| best[k as usize] / norm;
    let [unbiased, least] = found;
    let series = [
        law("√((d_in + d_out - 2) / 4k)", 1, over(&|k| ((IN + OUT - 2) as f64 / (4.0 * k)).sqrt())),
        law(
            "√((1 - k / d_in) (1 - k / d_out))",
            0,
            over(&|k| ((1.0 - k / IN as f64) * (1.0 - k / OUT as f64)).sqrt()),
        ),
        law("best factors of rank k", 4, over(&as_many)),
        measured("unbiased copy", 1, unbiased),
        measured("least squares for the same signs", 0, least),
    ];
    let title = "Copies of a Gaussian weight of 96 x 128 with random signs, one term, mean of 16 seeds";
    draw(&folder.join("copies.svg"), title, ["rank k", "relative error"], &series, true)
}

/// Errors of the factors of a weight over their rank, and of its randomized decompositions.
fn lowrank(folder: &Path, path: &str, rows: usize, columns: usize) -> Outcome {
    let w = Matrix::from_row_major(rows, columns, &numbers(path)?)?;
    let best = tails(&svd(&w)?.singular_values);
    let size = rows.min(columns);
    let ranks: Vec<usize> = (1..=16).map(|i| i * size / 16).filter(|k| *k < size).collect();
    let fitted = LowRank::new(&w, None, None, &LowRankOptions::default())?;
    let (mut exact, mut none, mut two) = (Vec::new(), Vec::new(), Vec::new());
    for &k in &ranks {
        let f = fitted.factors(k)?;
        exact.push((k as f64, distance(&f.left.product(&f.right)?, &w) / best[0]));
        for (q, points) in [(0, &mut none), (2, &mut two)] {
            let options = RsvdOptions { power_iterations: q, ..RsvdOptions::default() };
            let found = rsvd(&w, k, &options)?;
            let scaled = Matrix::from_fn(rows, k, |i, j| found.left.at(i, j) * found.singular_values[j]);
            points.push((k as f64, distance(&scaled.product(&found.right.transposed())?, &w) / best[0]));
        }
    }
    let series = [
        law("singular values from k on", 4, ranks.iter().map(|&k| (k as f64, best[k] / best[0])).collect()),
        measured("RSVD without power iterations", 1, none),
        measured("RSVD with two", 2, two),
        measured("LowRank", 0, exact),
    ];
    let title = format!("{}, {rows} x {columns}", name(path));
    draw(&folder.join("lowrank.svg"), &title, ["rank k", "relative error"], &series, false)
}

/// The numbers of a file.
fn numbers(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

fn name(path: &str) -> String {
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Errors of the forms of a convolution's kernel over the numbers that they take.
fn kernels(folder: &Path, path: &str, [o, c, h, w]: [usize; 4]) -> Outcome {
    let values: Vec<f64> = numbers(path)?.into_iter().map(f64::from).collect();
    let kernel = DenseTensor::new(vec![o, c, h, w], values)?;
    let at = |o_: usize, c_: usize, y: usize, x: usize| kernel.data()[((o_ * c + c_) * h + y) * w + x];
    let norm = kernel.squared_norm().sqrt();
    let total = (o * c * h * w) as f64;
    let distance_to = |other: &DenseTensor| {
        let squares = kernel.data().iter().zip(other.data()).map(|(a, b)| (a - b).powi(2));
        squares.sum::<f64>().sqrt() / norm
    };
    let tails_of = |m: &Matrix| -> Result<Vec<f64>, Box<dyn Error>> { Ok(tails(&svd(m)?.singular_values)) };
    let ranks: Vec<usize> = (1..12).map(|i| i * o / 12).filter(|k| *k > 0).collect();

    // Filters, of the windows: `lowrank`.
    let filters = Matrix::from_fn(o, c * h * w, |i, j| at(i, j / (h * w), j / w % h, j % w));
    let by_filters = tails_of(&filters)?;
    // Columns of taps, then rows of taps: `spatial`.
    let separated = Matrix::from_fn(c * h, w * o, |i, j| at(j % o, i / h, i % h, j / o));
    let by_taps = tails_of(&separated)?;
    let channels = Matrix::from_fn(c, o * h * w, |i, j| at(j / (h * w), i, j / w % h, j % w));
    let by_channels = tails_of(&channels)?;

    let mut lines = [Vec::new(), Vec::new(), Vec::new()];
    let mut found = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for &k in &ranks {
        let share = |count: usize| count as f64 / total;
        let best = |m: &Matrix, k: usize| -> Result<f64, Box<dyn Error>> {
            let f = LowRank::new(m, None, None, &LowRankOptions::default())?.factors(k)?;
            Ok(distance(&f.left.product(&f.right)?, m) / norm)
        };
        let lowrank = share(k * (c * h * w + o));
        lines[0].push((lowrank, by_filters[k] / norm));
        found[0].push((lowrank, best(&filters, k)?));
        let spatial = share(k * (c * h + o * w));
        lines[1].push((spatial, by_taps[k] / norm));
        found[1].push((spatial, best(&separated, k)?));
        let channels = (k * c).div_ceil(o);
        let tucker = share(c * channels + h * w * channels * k + k * o);
        lines[2].push((tucker, by_filters[k].hypot(by_channels[channels]) / norm));
        let decomposed = hooi(&kernel, &[k, channels, h, w], 1, &RsvdOptions::default())?;
        found[2].push((tucker, distance_to(&decomposed.to_tensor())));
        let terms = 2 * k;
        let options = CpOptions { rank: terms, rounds: 12, samples: 16 * terms, seed: 0, stream: 0 };
        found[3].push((share(terms * (o + c + h + w)), cp_als(&kernel, &options)?.relative_error));
    }
    let [lowrank, spatial, tucker] = lines;
    let mut series = vec![
        law("lowrank: singular values of the filters from k on", 0, lowrank),
        law("spatial: singular values of C h x w O from k on", 1, spatial),
        law("tucker: bound, the tails of both unfoldings", 2, tucker),
    ];
    let [lowrank, spatial, tucker, cp] = found;
    series.extend([
        measured("lowrank", 0, lowrank),
        measured("spatial", 1, spatial),
        measured("tucker", 2, tucker),
        measured("cp", 3, cp),
    ]);
    for s in &mut series {
        s.points.retain(|(share, error)| *share <= 1.0 && *error > 1e-6);
    }
    let title = format!("{}, {o} x {c} x {h} x {w}", name(path));
    draw(
        &folder.join("kernels.svg"),
        &title,
        ["numbers, relative to the kernel", "relative error"],
        &series,
        false,
    )
}

/// Errors of `exp(x·y)` by random features over their number.
fn features(folder: &Path) -> Outcome {
    const D: usize = 16;
    const PAIRS: usize = 64;
    let (x, y) = (gaussian(D, PAIRS, 60), gaussian(D, PAIRS, 61));
    let size = 0.2;
    let dot =
        |a: &Matrix, i: usize, b: &Matrix, j: usize| (0..D).map(|r| a.at(r, i) * b.at(r, j)).sum::<f64>();
    let counts = [8usize, 16, 32, 64, 128, 256, 512];
    // Relative variances of one direction.
    let over_pairs = |f: &dyn Fn(f64) -> f64| {
        let z = Matrix::from_fn(D, PAIRS, |r, p| size * (x.at(r, p) + y.at(r, p)));
        (0..PAIRS).map(|p| f(dot(&z, p, &z, p))).sum::<f64>() / PAIRS as f64
    };
    let positive = over_pairs(&|z| z.exp() - 1.0);
    let pairs = over_pairs(&|z| (1.0 - (-z).exp()) * (z.exp() - 1.0));
    let line = |variance: f64| counts.map(|m| (m as f64, (variance / m as f64).sqrt())).to_vec();
    let error = |kind: Directions, hyperbolic: bool| -> Result<Vec<(f64, f64)>, Box<dyn Error>> {
        let of = |&m: &usize| {
            let drawn = if hyperbolic { m / 2 } else { m };
            let squared = mean(256, |seed| {
                let w = random_directions(kind, D, drawn, seed, 7);
                let mut sum = 0.0;
                for p in 0..PAIRS {
                    let norms = 0.5 * size * size * (dot(&x, p, &x, p) + dot(&y, p, &y, p));
                    let along = |j: usize| size * (dot(&w, j, &x, p) + dot(&w, j, &y, p));
                    let estimate = (0..drawn).map(|j| match hyperbolic {
                        true => (along(j) - norms).exp() + (-along(j) - norms).exp(),
                        false => (along(j) - norms).exp(),
                    });
                    let exact = (size * size * dot(&x, p, &y, p)).exp();
                    sum += (estimate.sum::<f64>() / m as f64 / exact - 1.0).powi(2);
                }
                Ok(sum / PAIRS as f64)
            })?;
            Ok((m as f64, squared.sqrt()))
        };
        counts.iter().map(of).collect()
    };
    let series = [
        law("√((exp ‖x + y‖² - 1) / M), mean of squares over pairs", 0, line(positive)),
        law("√((1 - exp -‖x + y‖²) (exp ‖x + y‖² - 1) / M)", 1, line(pairs)),
        measured("independent", 0, error(Directions::Independent, false)?),
        measured("independent, hyperbolic", 1, error(Directions::Independent, true)?),
        measured("orthogonal", 2, error(Directions::Orthogonal, false)?),
        measured("orthogonal, hyperbolic", 3, error(Directions::Orthogonal, true)?),
    ];
    let title = "exp(x·y) by positive features, 64 pairs of 16 numbers, root mean square of 256 seeds";
    draw(&folder.join("features.svg"), title, ["features M", "relative error"], &series, true)
}

/// Axes, lines and circles. The vertical axis is logarithmic, the horizontal one if asked.
fn draw(path: &Path, title: &str, axes: [&str; 2], series: &[Series], logarithmic: bool) -> Outcome {
    let all = || series.iter().flat_map(|s| &s.points);
    let least = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(f64::INFINITY, f64::min);
    let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(0.0, f64::max);
    let (low, high) = (least(|p| p.1), most(|p| p.1));
    // Above the points is room for the names.
    let (x, y) = (least(|p| p.0)..most(|p| p.0), 0.7 * low..1.5 * high * (high / low).powf(0.35));
    let mut text = String::new();
    if logarithmic {
        chart(&mut text, title, axes, series, (x.start..x.end * 1.02).log_scale(), y)?;
    } else {
        chart(&mut text, title, axes, series, 0.0..x.end * 1.02, y)?;
    }
    std::fs::write(path, text)?;
    Ok(())
}

fn chart<X>(
    text: &mut String,
    title: &str,
    [x_title, y_title]: [&str; 2],
    series: &[Series],
    x: X,
    y: std::ops::Range<f64>,
) -> Outcome
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 14))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y.log_scale())?;
    // Without the rounding errors of ticks.
    let number = |v: &f64| match (v * 1e3).round() / 1e3 {
        rounded if *v == 0.0 || v.abs() >= 1e-2 => format!("{rounded}"),
        _ => format!("{v:.0e}"),
    };
    chart
        .configure_mesh()
        .x_desc(x_title)
        .y_desc(y_title)
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .light_line_style(WHITE)
        .draw()?;
    for s in series {
        let colour = COLOURS[s.colour];
        if s.is_law {
            chart
                .draw_series(LineSeries::new(s.points.clone(), colour.stroke_width(1)))?
                .label(&s.label)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(1)));
        } else {
            chart
                .draw_series(s.points.iter().map(|p| Circle::new(*p, 3, colour.filled())))?
                .label(&s.label)
                .legend(move |(x, y)| Circle::new((x + 8, y), 3, colour.filled()));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(140, 140, 140))
        .draw()?;
    area.present()?;
    Ok(())
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((folder, weights)) = arguments.split_first() else {
        return Err("expected FOLDER [FILE:ROWSxCOLUMNS] [FILE:OUTxINxHEIGHTxWIDTH]".into());
    };
    let folder = PathBuf::from(folder);
    std::fs::create_dir_all(&folder)?;
    embeddings(&folder)?;
    ranges(&folder)?;
    steps(&folder)?;
    traces(&folder)?;
    copies(&folder)?;
    features(&folder)?;
    for weight in weights {
        let (path, shape) = weight.rsplit_once(':').ok_or("expected FILE:SHAPE")?;
        let shape = shape.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        match shape[..] {
            [rows, columns] => lowrank(&folder, path, rows, columns)?,
            [o, c, h, w] => kernels(&folder, path, [o, c, h, w])?,
            _ => return Err(format!("{weight}: expected two or four extents").into()),
        }
    }
    Ok(())
}
