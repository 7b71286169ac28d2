//! A pair of factors with a smaller rank, and what becomes of the states of training.

use margay_passes::sketch::FactorPair;
use margay_randnla::{
    Centring, Conditioning, Factors, Gram, LowRank, LowRankOptions, Matrix, RandnlaError, Whitening,
};
use margay_tensor::Tensor;

use super::{Measured, Spectrum};

/// What a pair may become, of any smaller rank.
pub(crate) struct Change<'a> {
    pair: &'a FactorPair,
    left: Matrix,
    right: Matrix,
    /// With `C`, as conditioned: `[rank, rank]`. `None` where all rows or all outputs of `B` are zero.
    decomposition: Option<(LowRank, Matrix)>,
    /// `γ √n`.
    scale: f64,
}

/// New factors `A P` and `N B`.
pub(crate) struct Projected {
    /// `A P`: `[d_in, r]`.
    left: Matrix,
    /// `N B`: `[r, d_out]`.
    right: Matrix,
    /// `P`: `[k, r]`.
    into: Matrix,
    /// `N`: `[r, k]`, with `N P = 1`.
    back: Matrix,
}

impl<'a> Change<'a> {
    /// Decomposes the factors, which lie as in the graph.
    pub(crate) fn new(
        pair: &'a FactorPair,
        [left, right]: [&[f32]; 2],
        measured: &Measured,
    ) -> Result<Change<'a>, RandnlaError> {
        let right = pair.right_matrix(right)?;
        Ok(Change {
            pair,
            left: pair.left_matrix(left)?,
            decomposition: decompose(&measured.gram, &right)?,
            right,
            scale: (measured.squared_gradient * measured.rows).sqrt(),
        })
    }

    /// How much the loss changes at most, by rank. The greatest is the present one, whose factors stay as they are.
    pub(crate) fn spectrum(&self) -> Spectrum {
        let errors = self.decomposition.as_ref().map_or(&[][..], |(found, _)| found.squared_errors());
        let mut bounds: Vec<f64> = errors.iter().map(|e| self.scale * e.max(0.0).sqrt()).collect();
        // Where there are fewer outputs than columns, the last ranks add nothing.
        bounds.resize(self.pair.rank() + 1, 0.0);
        Spectrum { numbers_per_rank: self.pair.numbers_per_rank(), bounds }
    }

    /// The best factors of a rank, columns of the left one as long as rows of the right one. The rank is smaller where the pair
    /// has fewer directions, to the precision of f32.
    pub(crate) fn to_rank(&self, rank: usize) -> Result<Projected, RandnlaError> {
        let (into, back, right) = match &self.decomposition {
            Some((found, moment)) => projections(found, moment, rank)?,
            None => {
                let unit = |i: usize, j: usize| f64::from(i == j);
                let back = Matrix::from_fn(rank, self.right.rows(), unit);
                let right = back.product(&self.right)?;
                (back.transposed(), back, right)
            }
        };
        let left = self.left.product(&into)?;
        let scales: Vec<f64> = (0..into.columns()).map(|i| balance(&left, &right, i)).collect();
        Ok(Projected {
            left: scaled_columns(&left, &scales),
            right: scaled_rows(&right, &scales),
            into: scaled_columns(&into, &scales),
            back: scaled_rows(&back, &scales),
        })
    }

    /// The new factors as they lie in the graph.
    pub(crate) fn factors(&self, projected: &Projected) -> [Tensor; 2] {
        [self.pair.left_tensor(&projected.left), self.pair.right_tensor(&projected.right)]
    }

    /// Means of gradients by the factors, or of their squares with `squared`, as those of the new factors.
    pub(crate) fn moments(
        &self,
        projected: &Projected,
        [left, right]: [&[f32]; 2],
        squared: bool,
    ) -> Result<[Tensor; 2], RandnlaError> {
        let of = |m: Matrix| match squared {
            true => Matrix::from_fn(m.rows(), m.columns(), |i, j| m.at(i, j).powi(2)),
            false => m,
        };
        let left = self.pair.left_matrix(left)?.product(&of(projected.back.transposed()))?;
        let right = of(projected.into.transposed()).product(&self.pair.right_matrix(right)?)?;
        Ok([self.pair.left_tensor(&left), self.pair.right_tensor(&right)])
    }
}

/// The decomposition of a right factor for rows of some moments, with their second moment; `None` where it has no direction.
fn decompose(gram: &Gram, right: &Matrix) -> Result<Option<(LowRank, Matrix)>, RandnlaError> {
    if gram.second_moment()?.squared_norm() == 0.0 {
        return Ok(None);
    }
    let whitening = Whitening::from_gram(gram, Centring::Uncentred, &Conditioning::default())?;
    let found = LowRank::new(right, Some(&whitening), None, &LowRankOptions::default())?;
    let root = whitening.triangle();
    let moment = root.transposed().product(&root)?;
    Ok((found.energy() > 0.0).then_some((found, moment)))
}

/// `P`, `N` and `N B` of a rank.
fn projections(
    found: &LowRank,
    moment: &Matrix,
    rank: usize,
) -> Result<(Matrix, Matrix, Matrix), RandnlaError> {
    let values = found.singular_values();
    let seen = values.iter().take_while(|s| **s > f64::from(f32::EPSILON) * values[0]).count();
    let Factors { left: into, right, .. } = found.factors(rank.min(seen))?;
    // Columns of P are orthogonal in C, so that this N is its inverse from the left, and N B is the right factor.
    let moved = moment.product(&into)?;
    let norm = |i: usize| (0..into.rows()).map(|j| into.at(j, i) * moved.at(j, i)).sum::<f64>();
    let norms: Vec<f64> = (0..into.columns()).map(norm).collect();
    let back = Matrix::from_fn(into.columns(), into.rows(), |i, j| moved.at(j, i) / norms[i]);
    Ok((into, back, right))
}

/// What a column of the left factor is to be multiplied by, and a row of the right one divided by, so that both have one norm.
fn balance(left: &Matrix, right: &Matrix, i: usize) -> f64 {
    let column: f64 = (0..left.rows()).map(|j| left.at(j, i).powi(2)).sum();
    let row: f64 = (0..right.columns()).map(|j| right.at(i, j).powi(2)).sum();
    let ratio = (row / column).sqrt().sqrt();
    if ratio.is_finite() && ratio > 0.0 { ratio } else { 1.0 }
}

fn scaled_columns(m: &Matrix, by: &[f64]) -> Matrix {
    Matrix::from_fn(m.rows(), m.columns(), |i, j| m.at(i, j) * by[j])
}

fn scaled_rows(m: &Matrix, by: &[f64]) -> Matrix {
    Matrix::from_fn(m.rows(), m.columns(), |i, j| m.at(i, j) / by[i])
}

#[cfg(test)]
mod tests {
    use margay_ir::{Cx, Graph};
    use margay_passes::sketch::{LowRankTraining, TrainingRank, factor_pairs, lowrank_for_training};
    use margay_randnla::{Distribution, random_matrix};
    use margay_testkit::parse_with_random_constants;

    use super::*;

    const LINEAR: &str = "graph @linear(%x: f32[N, 14]) -> (y: f32[N, 10]) {
      %0 = const #w : f32[14, 10]  // fc.weight
      %1 = matmul %x, %0 : f32[N, 10]  // fc
      return %1
    }";

    const CONV: &str = "graph @conv(%x: f32[N, 3, 6, 6]) -> (y: f32[N, 10, 4, 4]) {
      %0 = const #w : f32[10, 3, 3, 3]  // conv.weight
      %1 = conv %x, %0 {strides = [1, 1]} : f32[N, 10, 4, 4]  // conv
      return %1
    }";

    const RANK: usize = 5;

    fn factored(source: &str) -> Graph {
        let mut g = parse_with_random_constants(source).0;
        let options = LowRankTraining { rank: TrainingRank::Fixed(RANK), seed: 0, modules: None };
        lowrank_for_training(&mut g, &options, &mut Cx::default()).unwrap();
        g
    }

    fn random(rows: usize, columns: usize, seed: u64) -> Matrix {
        random_matrix(Distribution::Gaussian, rows, columns, seed, 1)
    }

    fn numbers(t: &Tensor) -> Vec<f32> {
        t.to_vec().unwrap()
    }

    fn contents(g: &Graph, layer: &margay_passes::sketch::Layer) -> Vec<f32> {
        numbers(layer.payload(g).tensor())
    }

    /// Factors of any rank as matrices.
    fn matrices(pair: &FactorPair, [left, right]: [&[f32]; 2]) -> [Matrix; 2] {
        let (d_in, d_out) = (pair.left.d_in, pair.right.d_out);
        let of = |rows: usize, columns: usize, data: &[f32]| match pair.left.is_product() {
            true => Matrix::from_row_major(rows, columns, data).unwrap(),
            false => Matrix::from_row_major(columns, rows, data).unwrap().transposed(),
        };
        [of(d_in, left.len() / d_in, left), of(right.len() / d_out, d_out, right)]
    }

    fn distance(a: &Matrix, b: &Matrix) -> f64 {
        let difference = Matrix::from_fn(a.rows(), a.columns(), |i, j| a.at(i, j) - b.at(i, j));
        difference.squared_norm().sqrt() / (1e-9 + b.squared_norm().sqrt())
    }

    fn measured(rows: &Matrix) -> Measured {
        let mut gram = Gram::new(rows.columns());
        gram.add_rows(&rows.to_row_major()).unwrap();
        Measured { gram, rows: rows.rows() as f64, squared_gradient: 4.0 }
    }

    #[test]
    fn moments_are_those_that_the_new_factors_would_have_had() {
        for source in [LINEAR, CONV] {
            let g = factored(source);
            let pair = &factor_pairs(&g)[0];
            let (left, right) = (contents(&g, &pair.left), contents(&g, &pair.right));
            let z = random(60, RANK, 1);
            let change = Change::new(pair, [&left, &right], &measured(&z)).unwrap();
            let (a, b) = (pair.left_matrix(&left).unwrap(), pair.right_matrix(&right).unwrap());
            // A gradient by the weight, and those by the factors that follow from it.
            let by_weight = random(pair.left.d_in, pair.right.d_out, 2);
            let of = |a: &Matrix, b: &Matrix| {
                let by_left = by_weight.product(&b.transposed()).unwrap();
                [by_left, a.transposed().product(&by_weight).unwrap()]
            };
            let [by_left, by_right] = of(&a, &b);
            let (by_left, by_right) = (pair.left_tensor(&by_left), pair.right_tensor(&by_right));
            for rank in 1..RANK {
                let projected = change.to_rank(rank).unwrap();
                let identity = projected.back.product(&projected.into).unwrap();
                let unit = Matrix::from_fn(rank, rank, |i, j| f64::from(i == j));
                assert!(distance(&identity, &unit) < 1e-5, "rank {rank}");
                let [new_left, new_right] = change.factors(&projected).map(|t| numbers(&t));
                let new = matrices(pair, [&new_left, &new_right]);
                let expected = of(&new[0], &new[1]);
                let moments = change.moments(&projected, [&numbers(&by_left), &numbers(&by_right)], false);
                let [m_left, m_right] = moments.unwrap().map(|t| numbers(&t));
                let found = matrices(pair, [&m_left, &m_right]);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(distance(found, expected) < 1e-5, "rank {rank}");
                }
                // Both factors are of one size.
                assert!((new[0].squared_norm() / new[1].squared_norm() - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn squares_follow_as_those_of_independent_entries() {
        let g = factored(LINEAR);
        let pair = &factor_pairs(&g)[0];
        let (left, right) = (contents(&g, &pair.left), contents(&g, &pair.right));
        let change = Change::new(pair, [&left, &right], &measured(&random(60, RANK, 1))).unwrap();
        let projected = change.to_rank(3).unwrap();
        // Entries of variance 1: those of a row of the projection have the sum of squares of its column.
        let ones = |t: Vec<f32>| vec![1f32; t.len()];
        let found = change.moments(&projected, [&ones(left), &ones(right)], true).unwrap();
        let [by_left, by_right] = found.map(|t| numbers(&t));
        for i in 0..3 {
            let row: f64 = (0..RANK).map(|k| projected.back.at(i, k).powi(2)).sum();
            let column: f64 = (0..RANK).map(|k| projected.into.at(k, i).powi(2)).sum();
            assert!((f64::from(by_left[i]) / row - 1.0).abs() < 1e-5);
            assert!((f64::from(by_right[10 * i]) / column - 1.0).abs() < 1e-5);
        }
        assert!(by_left.iter().chain(&by_right).all(|v| *v > 0.0));
    }

    #[test]
    fn bounds_are_those_of_the_rows_that_were_measured() {
        let g = factored(LINEAR);
        let pair = &factor_pairs(&g)[0];
        let (left, right) = (contents(&g, &pair.left), contents(&g, &pair.right));
        let z = random(60, RANK, 1);
        let change = Change::new(pair, [&left, &right], &measured(&z)).unwrap();
        let bounds = change.spectrum().bounds;
        assert_eq!((bounds.len(), bounds[RANK]), (RANK + 1, 0.0));
        let b = pair.right_matrix(&right).unwrap();
        for (rank, bound) in bounds.iter().enumerate().take(RANK).skip(1) {
            let projected = change.to_rank(rank).unwrap();
            let kept = projected.into.product(&projected.back.product(&b).unwrap()).unwrap();
            let lost = Matrix::from_fn(b.rows(), b.columns(), |i, j| b.at(i, j) - kept.at(i, j));
            // γ = 2, and the sum over 60 rows of what is lost.
            let expected = 2.0 * z.product(&lost).unwrap().squared_norm().sqrt();
            assert!((bound / expected - 1.0).abs() < 1e-4, "{rank}: {bound} {expected}");
        }
    }

    #[test]
    fn factors_without_a_direction_keep_the_first_columns() {
        let g = factored(LINEAR);
        let pair = &factor_pairs(&g)[0];
        let (left, right) = (contents(&g, &pair.left), contents(&g, &pair.right));
        let zeros = measured(&Matrix::from_fn(10, RANK, |_, _| 0.0));
        let still = measured(&random(60, RANK, 1));
        for (right, seen) in [(right.clone(), &zeros), (vec![0.0; right.len()], &still)] {
            let change = Change::new(pair, [&left, &right], seen).unwrap();
            assert_eq!(change.spectrum().bounds, [0.0; RANK + 1]);
            let [new_left, new_right] = change.factors(&change.to_rank(2).unwrap());
            assert_eq!((new_left.shape(), new_right.shape()), (&[14, 2][..], &[2, 10][..]));
            assert!(numbers(&new_left).iter().chain(&numbers(&new_right)).all(|v| v.is_finite()));
        }
        // Fewer directions than were asked for.
        let once = Matrix::from_fn(60, RANK, |i, j| (i as f64).sin() * f64::from(j as u8 + 1));
        let change = Change::new(pair, [&left, &right], &measured(&once)).unwrap();
        let [new_left, _] = change.factors(&change.to_rank(4).unwrap());
        assert!(numbers(&new_left).iter().all(|v| v.is_finite()));
    }
}
