//! Contents of structures: drawn at random, or fitted to a matrix by alternating least squares.
//!
//! The matrix is linear in each of the tensors that a structure stores, so with the others as they are the best one solves a
//! problem of least squares. Conjugate gradients on its normal equations, with an estimate of their diagonal (Bekas, Kokiopoulou and
//! Saad, *An estimator for the diagonal of a matrix*, 2007) or, for matrices that read the inputs or write the outputs, with the
//! inverse of their second moment, lower the error by a few steps; then comes the next tensor, so that the
//! error never rises. What is found is no worse than what it began with, and need not be the best there is: but for
//! single factors the problem is not convex.
//!
//! Terms of a sum begin one after another, each on what those before it leave. Positions are chosen then, and stay: of a term that
//! is sparse the largest entries of each column of the rest, of a product that begins with some of the inputs those whose rows
//! are largest, both as far as the inputs are large. Positions elsewhere are drawn at random.

use faer::{Mat, MatRef};
use margay_tensor::random::Philox;

use super::product::{At, Rows};
use super::{Contents, Kind, Stored, Structure};
use crate::matrix::check_factorable;
use crate::{Matrix, RandnlaError, Whitening, dense};

/// How contents are fitted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StructureOptions {
    /// How often each tensor is fitted.
    pub sweeps: usize,
    /// Steps of conjugate gradients, each time.
    pub steps: usize,
    /// Names the numbers that it begins with.
    pub seed: u64,
    /// Their stream.
    pub stream: u64,
}

impl Default for StructureOptions {
    /// 30 sweeps of 8 steps.
    fn default() -> StructureOptions {
        StructureOptions { sweeps: 30, steps: 8, seed: 0, stream: 0 }
    }
}

/// Random signs for the estimate of a diagonal.
const PROBES: u64 = 4;

/// Sweeps over a term of a sum before the next one begins.
const FIRST_SWEEPS: usize = 6;

/// A share of the error that is not worth another sweep.
const LEAST_GAIN: f64 = 1e-5;

impl Structure {
    /// Random contents: entries of a product with a row of mean squares 1 have a mean square of about 1, and positions differ
    /// from each other in every column, as far as they can.
    pub fn random(&self, seed: u64, stream: u64) -> Vec<Contents> {
        let mut first = 0u64;
        let mut found = Vec::new();
        self.add_random(1, 1.0, &Philox::new(seed, stream), &mut first, &mut found);
        found
    }

    fn add_random(
        &self,
        copies: usize,
        scale: f64,
        philox: &Philox,
        first: &mut u64,
        found: &mut Vec<Contents>,
    ) {
        let [rows, columns] = self.shape();
        let deviation = match self.kind() {
            Kind::Dense | Kind::Toeplitz | Kind::Circulant => scale / (rows as f64).sqrt(),
            Kind::Sparse(each) => scale / (*each as f64).sqrt(),
            _ => scale,
        };
        let each = match self.kind() {
            Kind::Sparse(each) => *each,
            _ => columns,
        };
        match self.kind() {
            Kind::Blocks(count, of) => of.add_random(copies * count, scale, philox, first, found),
            Kind::Sum(terms) => {
                let scale = scale / (terms.len() as f64).sqrt();
                terms.iter().for_each(|term| term.add_random(copies, scale, philox, first, found));
            }
            // The whole scale goes to the first part that stores something.
            Kind::Product(parts) | Kind::Kronecker(parts) => {
                let mut scale = scale;
                for part in parts {
                    part.add_random(copies, scale, philox, first, found);
                    scale = if part.stored_count() > 0 { 1.0 } else { scale };
                }
            }
            Kind::Transpose(of) => of.add_random(copies, scale, philox, first, found),
            _ => {
                let mut own = Vec::new();
                self.add_stored(copies, &mut own);
                for stored in own {
                    let count = stored.count();
                    found.push(match stored {
                        Stored::Numbers(_) => {
                            let mut numbers = vec![0.0; count];
                            philox.fill_normal_f64(*first, &mut numbers);
                            numbers.iter_mut().for_each(|number| *number *= deviation);
                            Contents::Numbers(numbers)
                        }
                        Stored::Positions { .. } => {
                            let mut draws = vec![0.0; rows];
                            let lists = count / each;
                            let mut positions = vec![0; count];
                            for list in 0..lists {
                                philox.fill_uniform_f64(*first + (list * rows) as u64, &mut draws);
                                let mut order: Vec<usize> = (0..rows).collect();
                                order.sort_by(|a, b| draws[*a].total_cmp(&draws[*b]));
                                // Lists of inputs follow each other; those of columns lie side by side.
                                match self.kind() {
                                    Kind::Sparse(_) => {
                                        let (block, column) = (list / columns, list % columns);
                                        (0..each).for_each(|k| {
                                            positions[(block * each + k) * columns + column] =
                                                block * rows + order[k];
                                        });
                                    }
                                    _ => (0..each)
                                        .for_each(|k| positions[list * each + k] = list * rows + order[k]),
                                }
                            }
                            *first += (lists * rows) as u64;
                            Contents::Positions(positions)
                        }
                    });
                    *first += (count + 4) as u64;
                }
            }
        }
    }

    /// Contents with which the structure is near a weight, as far as its inputs and outputs matter: the mean of
    /// `(x W - x W̃) G (x W - x W̃)ᵀ` is small, where `input` is a root of the second moment of `x` and `output` one of `G`; the
    /// identity where they are absent.
    ///
    /// Every number is an `f32`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] for a weight or whitenings of other shapes, [`RandnlaError::NonFinite`].
    pub fn fitted(
        &self,
        weight: &Matrix,
        input: Option<&Whitening>,
        output: Option<&Whitening>,
        options: &StructureOptions,
    ) -> Result<Vec<Contents>, RandnlaError> {
        let expected = (self.rows(), self.columns());
        let shape = |what, found: (usize, usize)| match found == expected {
            true => Ok(()),
            false => Err(RandnlaError::Shape { what, expected, found }),
        };
        shape("the weight", (weight.rows(), weight.columns()))?;
        shape(
            "the whitenings",
            (input.map_or(expected.0, Whitening::dim), output.map_or(expected.1, Whitening::dim)),
        )?;
        check_factorable("the weight", weight)?;
        let inputs = match input {
            Some(whitening) => Rows::of(&whitening.triangle()),
            None => Rows::identity(weight.rows()),
        };
        let output = output.map(Whitening::triangle);
        let target = inputs.times(weight.as_faer());
        let mut work = Work { inputs, output, rest: target, options };
        let mut contents = self.random(options.seed, options.stream);
        let terms = match self.kind() {
            Kind::Sum(terms) => terms.as_slice(),
            _ => std::slice::from_ref(self),
        };
        // `rest` is what the terms so far leave.
        let mut left = weight.clone();
        let mut at = 0;
        for (i, term) in terms.iter().enumerate() {
            let own = &mut contents[at..at + term.stored_count()];
            at += term.stored_count();
            work.choose(term, own, &left);
            let product = work.product(term, own, None);
            work.take(&product, 1.0);
            if terms.len() > 1 {
                (0..FIRST_SWEEPS).for_each(|sweep| work.sweep(term, own, sweep));
            }
            if i + 1 < terms.len() {
                let made = term.to_matrix(own)?;
                left = Matrix::from_fn(left.rows(), left.columns(), |i, j| left.at(i, j) - made.at(i, j));
            }
        }
        let mut error = work.squared_error();
        for sweep in 0..options.sweeps {
            work.sweep(self, &mut contents, FIRST_SWEEPS + sweep);
            let before = std::mem::replace(&mut error, work.squared_error());
            if error >= before * (1.0 - LEAST_GAIN) {
                break;
            }
        }
        for contents in &mut contents {
            if let Contents::Numbers(numbers) = contents {
                numbers.iter_mut().for_each(|number| *number = f64::from(*number as f32));
            }
        }
        Ok(contents)
    }
}

/// Whether a tensor is a matrix that reads the inputs as they are, and whether it writes the outputs.
#[derive(Clone, Copy, Default)]
struct Role {
    reads: bool,
    writes: bool,
    shape: [usize; 2],
}

/// By tensor. Others than whole matrices have no role.
fn roles(s: &Structure) -> Vec<Role> {
    match s.kind() {
        Kind::Dense => vec![Role { reads: true, writes: true, shape: s.shape() }],
        Kind::Sum(terms) => terms.iter().flat_map(roles).collect(),
        Kind::Product(factors) => {
            let of = |(i, factor): (usize, &Structure)| {
                let ends = (i == 0, i + 1 == factors.len());
                match (factor.kind(), ends) {
                    (Kind::Dense, (reads, writes)) if reads || writes => {
                        vec![Role { reads, writes, shape: factor.shape() }]
                    }
                    _ => vec![Role::default(); factor.stored_count()],
                }
            };
            factors.iter().enumerate().flat_map(of).collect()
        }
        _ => vec![Role::default(); s.stored_count()],
    }
}

/// What is fitted: `rest` is `S W` less the product of the inputs and the structure.
struct Work<'a> {
    /// `S`.
    inputs: Rows,
    /// `T`, upper triangular, where outputs have a metric.
    output: Option<Matrix>,
    rest: Rows,
    options: &'a StructureOptions,
}

impl Work<'_> {
    fn product(&self, s: &Structure, contents: &[Contents], only: Option<usize>) -> Rows {
        s.rows_times(contents, At::default(), self.inputs.clone(), only)
    }

    fn take(&mut self, product: &Rows, step: f64) {
        self.rest.data.iter_mut().zip(&product.data).for_each(|(rest, p)| *rest -= step * p);
    }

    /// `rows Tᵀ`.
    fn seen(&self, rows: &Rows) -> Rows {
        match &self.output {
            Some(root) => rows.times(root.as_faer().transpose()),
            None => rows.clone(),
        }
    }

    /// `rows T`.
    fn back(&self, rows: Rows) -> Rows {
        match &self.output {
            Some(root) => rows.times(root.as_faer()),
            None => rows,
        }
    }

    fn squared_error(&self) -> f64 {
        squared(&self.seen(&self.rest).data)
    }

    /// `Jᵀ rows` for the tensors of a structure, where `J` is the product by each.
    fn adjoint(&self, s: &Structure, contents: &[Contents], rows: Rows) -> Vec<Vec<f64>> {
        let mut sums: Vec<Vec<f64>> = contents.iter().map(|c| vec![0.0; c.numbers().len()]).collect();
        s.add_derivatives(contents, At::default(), self.inputs.clone(), self.back(rows), &mut sums);
        sums
    }

    /// Fits each tensor once.
    fn sweep(&mut self, s: &Structure, contents: &mut [Contents], sweep: usize) {
        let diagonals = self.diagonals(s, contents, sweep);
        for (tensor, role) in roles(s).into_iter().enumerate() {
            if let Contents::Numbers(_) = contents[tensor] {
                self.fit(s, contents, tensor, role, &diagonals[tensor]);
            }
        }
    }

    /// An approximate solution of the normal equations of a tensor.
    fn preconditioned(&self, r: &[f64], role: Role, diagonal: &[f64]) -> Vec<f64> {
        if !role.reads && !role.writes {
            return r.iter().zip(diagonal).map(|(r, d)| r / d).collect();
        }
        let (rows, columns) = (role.shape[0], role.shape[1]);
        let mut z = Mat::from_fn(rows, columns, |i, j| r[i * columns + j]);
        if role.reads {
            let root = MatRef::from_row_major_slice(&self.inputs.data, rows, rows);
            z = dense::solve_positive(root, z.as_ref());
        }
        if let (true, Some(root)) = (role.writes, &self.output) {
            z = dense::solve_positive(root.as_faer(), z.transpose()).transpose().to_owned();
        }
        (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|at| z[at]).collect()
    }

    /// Estimates of the diagonals of the normal equations of all tensors, positive.
    fn diagonals(&self, s: &Structure, contents: &[Contents], sweep: usize) -> Vec<Vec<f64>> {
        let mut sums: Vec<Vec<f64>> = contents.iter().map(|c| vec![0.0; c.numbers().len()]).collect();
        for probe in 0..PROBES {
            let mut signs = vec![0.0; self.rest.data.len()];
            let stream = self.options.stream.wrapping_add(1 + sweep as u64 * PROBES + probe);
            Philox::new(self.options.seed ^ 0x5eed, stream).fill_signs(0, &mut signs);
            let found = self.adjoint(s, contents, Rows { count: self.rest.count, data: signs });
            for (sums, found) in sums.iter_mut().zip(found) {
                sums.iter_mut().zip(found).for_each(|(sum, value)| *sum += value * value);
            }
        }
        for sums in &mut sums {
            let mean = sums.iter().sum::<f64>() / sums.len().max(1) as f64;
            let floor = if mean > 0.0 { 1e-3 * mean } else { 1.0 };
            sums.iter_mut().for_each(|sum| *sum += floor);
        }
        sums
    }

    /// Some steps of conjugate gradients for one tensor.
    fn fit(&mut self, s: &Structure, contents: &mut [Contents], tensor: usize, role: Role, diagonal: &[f64]) {
        let mut moved = contents.to_vec();
        let mut residual = self.adjoint(s, contents, self.seen(&self.rest)).swap_remove(tensor);
        let mut z = self.preconditioned(&residual, role, diagonal);
        let mut direction = z.clone();
        let mut product = dot(&residual, &z);
        let enough = product * 1e-16;
        for _ in 0..self.options.steps {
            if product <= enough || !product.is_finite() {
                return;
            }
            moved[tensor] = Contents::Numbers(direction.clone());
            let image = self.product(s, &moved, Some(tensor));
            let seen = self.seen(&image);
            let curvature = squared(&seen.data);
            if curvature <= 0.0 || !curvature.is_finite() {
                return;
            }
            let step = product / curvature;
            if let Contents::Numbers(numbers) = &mut contents[tensor] {
                numbers.iter_mut().zip(&direction).for_each(|(number, d)| *number += step * d);
            }
            self.take(&image, step);
            residual = self.adjoint(s, contents, self.seen(&self.rest)).swap_remove(tensor);
            z = self.preconditioned(&residual, role, diagonal);
            let next = dot(&residual, &z);
            let share = next / product;
            direction.iter_mut().zip(&z).for_each(|(d, z)| *d = z + share * *d);
            product = next;
        }
    }

    /// Chooses the positions of a term by the weight that is left to it.
    fn choose(&self, term: &Structure, contents: &mut [Contents], left: &Matrix) {
        let (rows, columns) = (left.rows(), left.columns());
        let size = |i: usize| {
            let column = self.inputs.data.iter().skip(i).step_by(rows);
            column.map(|s| s * s).sum::<f64>().sqrt()
        };
        let sizes: Vec<f64> = (0..rows).map(size).collect();
        let first = match term.kind() {
            Kind::Product(factors) => &factors[0],
            _ => term,
        };
        let largest = |value: &dyn Fn(usize) -> f64, count: usize| {
            let mut order: Vec<usize> = (0..rows).collect();
            order.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
            order.truncate(count);
            order.sort_unstable();
            order
        };
        match (term.kind(), first.kind()) {
            (Kind::Sparse(each), _) => {
                let mut positions = vec![0; each * columns];
                for j in 0..columns {
                    let chosen = largest(&|i| left.at(i, j).abs() * sizes[i], *each);
                    chosen.iter().enumerate().for_each(|(k, i)| positions[k * columns + j] = *i);
                }
                contents[0] = Contents::Positions(positions);
            }
            (_, Kind::Select) => {
                let row = |i: usize| (0..columns).map(|j| left.at(i, j).powi(2)).sum::<f64>().sqrt();
                let norms: Vec<f64> = (0..rows).map(|i| row(i) * sizes[i]).collect();
                contents[0] = Contents::Positions(largest(&|i| norms[i], first.columns()));
            }
            _ => {}
        }
    }
}

fn squared(data: &[f64]) -> f64 {
    dot(data, data)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Centring, Conditioning, Distribution, Gram, LowRank, LowRankOptions, random_matrix};

    fn error(s: &Structure, contents: &[Contents], weight: &Matrix, input: Option<&Whitening>) -> f64 {
        let made = s.to_matrix(contents).unwrap();
        let rest = Matrix::from_fn(weight.rows(), weight.columns(), |i, j| weight.at(i, j) - made.at(i, j));
        let seen = |m: &Matrix| match input {
            Some(whitening) => whitening.triangle().product(m).unwrap().squared_norm(),
            None => m.squared_norm(),
        };
        (seen(&rest) / seen(weight)).sqrt()
    }

    /// Inputs of very different sizes.
    fn whitening(size: usize) -> Whitening {
        let rows = random_matrix(Distribution::Gaussian, 200, size, 5, 1);
        let scaled = Matrix::from_fn(200, size, |i, j| rows.at(i, j) * 1.3f64.powi(j as i32 % 12));
        let mut gram = Gram::new(size);
        gram.add_rows(&scaled.to_row_major()).unwrap();
        Whitening::from_gram(&gram, Centring::Centred, &Conditioning::default()).unwrap()
    }

    /// A matrix that has the structure is found again, from another start.
    #[test]
    fn structures_of_a_matrix_are_found() {
        for (text, most) in [
            ("20x4 · 4x16", 1e-3),
            ("4x3 ⊗ 5x6", 1e-3),
            ("toeplitz(12x8)", 1e-6),
            ("circulant(12)", 1e-6),
            ("diag(9)", 1e-6),
            ("blocks(3, 4x2 · 2x5)", 1e-3),
            ("12x2 · 2x12 + diag(12)", 0.03),
            ("4x4 ⊗ 5x5 + 20x1 · 1x20", 0.03),
            // Its inputs are chosen once.
            ("20x3 · 3x20 + select(20x3) · 3x20", 0.2),
        ] {
            let s: Structure = text.parse().unwrap();
            let weight = s.to_matrix(&s.random(11, 3)).unwrap();
            let input = whitening(s.rows());
            let options = StructureOptions { sweeps: 200, ..StructureOptions::default() };
            let found = s.fitted(&weight, Some(&input), None, &options).unwrap();
            let error = error(&s, &found, &weight, Some(&input));
            assert!(error < most, "{text}: {error}");
        }
    }

    /// Two factors are nearly as good as the best ones, which a decomposition finds.
    #[test]
    fn factors_are_near_the_best() {
        let weight = random_matrix(Distribution::Gaussian, 24, 18, 2, 2);
        let (input, output) = (whitening(24), whitening(18));
        let s: Structure = "24x6 · 6x18".parse().unwrap();
        for (input, output) in [(None, None), (Some(&input), None), (Some(&input), Some(&output))] {
            let best = LowRank::new(&weight, input, output, &LowRankOptions::default()).unwrap();
            let found = s.fitted(&weight, input, output, &StructureOptions::default()).unwrap();
            let made = s.to_matrix(&found).unwrap();
            let rest = Matrix::from_fn(24, 18, |i, j| weight.at(i, j) - made.at(i, j));
            let rest = input.map_or(rest.clone(), |w| w.triangle().product(&rest).unwrap());
            let rest = output.map_or(rest.clone(), |w| rest.product(&w.triangle().transposed()).unwrap());
            let ratio = rest.squared_norm() / best.squared_errors()[6];
            assert!((0.999..1.02).contains(&ratio), "{ratio}");
        }
    }

    /// Terms and sweeps: more of them never lose anything.
    #[test]
    fn errors_fall_with_sweeps() {
        let weight = random_matrix(Distribution::Gaussian, 12, 12, 2, 2);
        let input = whitening(12);
        for text in [
            "12x2 · 2x12 + sparse(12x12, 2)",
            "(3x3 ⊗ 4x4) · (3x3 ⊗ 4x4)",
            "blocks(3, 4x4) · shuffle(3x4) · blocks(4, 3x3)",
        ] {
            let s: Structure = text.parse().unwrap();
            let mut last = f64::INFINITY;
            for sweeps in [0, 1, 2, 5, 20] {
                let options = StructureOptions { sweeps, ..StructureOptions::default() };
                let found = s.fitted(&weight, Some(&input), None, &options).unwrap();
                let error = error(&s, &found, &weight, Some(&input));
                assert!(error <= last * (1.0 + 1e-6), "{text}, {sweeps} sweeps: {error} after {last}");
                last = error;
            }
            assert!(last < 0.98, "{text}: {last}");
        }
    }

    /// Entries of a weight that stand out are the ones that get a place.
    #[test]
    fn large_entries_and_rows_are_chosen() {
        let weight = Matrix::from_fn(8, 5, |i, j| if (i + j) % 8 == 3 { 4.0 } else { 0.1 });
        let s: Structure = "sparse(8x5, 1)".parse().unwrap();
        let found = s.fitted(&weight, None, None, &StructureOptions::default()).unwrap();
        assert_eq!(found[0].positions(), [3, 2, 1, 0, 7]);
        let weight = Matrix::from_fn(8, 5, |i, _| if i == 2 || i == 6 { 2.0 } else { 0.1 });
        let s: Structure = "select(8x2) · 2x5".parse().unwrap();
        let found = s.fitted(&weight, None, None, &StructureOptions::default()).unwrap();
        assert_eq!(found[0].positions(), [2, 6]);
    }

    #[test]
    fn random_contents_keep_the_size_of_rows() {
        for text in
            ["64x8 · 8x64", "8x8 ⊗ 8x8", "circulant(64)", "blocks(4, 16x16) + diag(64)", "sparse(64x64, 3)"]
        {
            let s: Structure = text.parse().unwrap();
            let mean: f64 =
                (0..8).map(|seed| s.to_matrix(&s.random(seed, 0)).unwrap().squared_norm() / 64.0).sum();
            assert!((0.5..2.0).contains(&(mean / 8.0)), "{text}: {}", mean / 8.0);
            assert_eq!(s.random(1, 2), s.random(1, 2));
            assert_ne!(s.random(1, 2), s.random(1, 3));
        }
    }
}
