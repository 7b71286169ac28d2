//! A weight as low-rank factors and a sparse matrix: `W ≈ A B + S`.
//!
//! The two are taken in turns (Zhou and Tao, *GoDec: Randomized Low-rank & Sparse Matrix Decomposition in Noisy Case*, ICML 2011),
//! here in the metric of inputs of second moment `C`: places of `S` are those of the greatest gain `(C R)ᵢⱼ² / Cᵢᵢ`, where `R` is what the factors
//! leave, its entries solve the least squares problem of each column with these places, and the factors are the best ones of
//! `W - S`. With whole rows as places, the factors and the rows are the best pair for these rows: `A B` is the best approximation of what no
//! combination of these inputs explains. In another metric than the identity the choice of places may make the error rise; what is returned
//! is the best of all turns.

use faer::Mat;

use crate::{LowRank, LowRankOptions, Matrix, RandnlaError, Whitening, dense};

/// Where a sparse matrix beside factors has entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Places {
    /// In so many rows, which are whole: each is an input.
    Rows(usize),
    /// So many in each column.
    InColumns(usize),
}

/// Factors and a sparse matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankSparse {
    /// `[d_in, k]`. Every number here is an `f32`.
    pub left: Matrix,
    /// `[k, d_out]`.
    pub right: Matrix,
    /// The rows that are whole, ascending; or `[each, d_out]`, the rows of the entries of each column.
    pub positions: Vec<usize>,
    /// `[rows, d_out]`, or `[each, d_out]`: the entries at these positions.
    pub entries: Matrix,
}

/// Turns after which places hardly change.
const TURNS: usize = 6;

/// Decomposes a weight `[d_in, d_out]` into factors of a rank and a sparse matrix. `input` and `output` are roots of the second moment
/// of the inputs and of the metric of the outputs; the identity where they are absent. Entries in columns do not see the metric of
/// the outputs.
///
/// # Errors
/// As [`LowRank::new`]; [`RandnlaError::Parameter`] unless the number of places is from 1 to `d_in`.
pub fn lowrank_sparse(
    weight: &Matrix,
    input: Option<&Whitening>,
    output: Option<&Whitening>,
    rank: usize,
    places: Places,
) -> Result<LowRankSparse, RandnlaError> {
    let (d_in, d_out) = (weight.rows(), weight.columns());
    let (Places::Rows(count) | Places::InColumns(count)) = places;
    if !(1..=d_in).contains(&count) {
        return Err(RandnlaError::Parameter {
            name: "places",
            expected: "1 to the number of rows",
            found: count as f64,
        });
    }
    let options = LowRankOptions { max_rank: Some(rank), ..LowRankOptions::default() };
    let factors = |rest: &Matrix| LowRank::new(rest, input, output, &options)?.factors(rank);
    let root = match input {
        Some(whitening) => whitening.triangle(),
        None => Matrix::from_fn(d_in, d_in, |i, j| f64::from(i == j)),
    };
    let moment = root.transposed().product(&root)?;
    let metric = output.map(Whitening::triangle);
    let mut left_over = weight.clone();
    let mut best: Option<(f64, LowRankSparse)> = None;
    let mut last = Vec::new();
    for _ in 0..TURNS {
        let moved = moment.product(&left_over)?;
        let (positions, entries) = match places {
            Places::Rows(count) => {
                let seen = match &metric {
                    Some(root) => moved.product(&root.transposed())?,
                    None => moved,
                };
                let gain = |i: usize| {
                    let squared: f64 = (0..d_out).map(|j| seen.at(i, j).powi(2)).sum();
                    squared / moment.at(i, i)
                };
                let rows = largest(d_in, count, gain);
                // What these inputs explain of the whole weight, so that the factors are left the rest.
                let right = moment.product(weight)?;
                let right = Mat::from_fn(count, d_out, |i, j| right.at(rows[i], j));
                let entries = Matrix::new(solved(&moment, &rows, right)?);
                (rows, entries)
            }
            Places::InColumns(count) => {
                let mut positions = vec![0; count * d_out];
                let mut entries = Mat::zeros(count, d_out);
                for j in 0..d_out {
                    let rows = largest(d_in, count, |i| moved.at(i, j).powi(2) / moment.at(i, i));
                    let right = Mat::from_fn(count, 1, |i, _| moved.at(rows[i], j));
                    let found = solved(&moment, &rows, right)?;
                    for (k, row) in rows.into_iter().enumerate() {
                        positions[k * d_out + j] = row;
                        entries[(k, j)] = found[(k, 0)];
                    }
                }
                (positions, Matrix::new(entries))
            }
        };
        let entries = Matrix::from_fn(entries.rows(), d_out, |i, j| f64::from(entries.at(i, j) as f32));
        let sparse = spread(&positions, &entries, places, d_in);
        let less =
            |from: &Matrix, by: &Matrix| Matrix::from_fn(d_in, d_out, |i, j| from.at(i, j) - by.at(i, j));
        let found = factors(&less(weight, &sparse))?;
        left_over = less(weight, &found.left.product(&found.right)?);
        let rest = root.product(&less(&left_over, &sparse))?;
        let squared = match &metric {
            Some(metric) => rest.product(&metric.transposed())?.squared_norm(),
            None => rest.squared_norm(),
        };
        let again = positions == last;
        last.clone_from(&positions);
        if best.as_ref().is_none_or(|(least, _)| squared < *least) {
            best =
                Some((squared, LowRankSparse { left: found.left, right: found.right, positions, entries }));
        }
        if again && matches!(places, Places::Rows(_)) {
            break;
        }
    }
    Ok(best.expect("there is at least one turn").1)
}

/// The positions of the greatest values, ascending.
fn largest(of: usize, count: usize, value: impl Fn(usize) -> f64) -> Vec<usize> {
    let values: Vec<f64> = (0..of).map(value).collect();
    let mut order: Vec<usize> = (0..of).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Solves `C[rows, rows] x = right`.
fn solved(moment: &Matrix, rows: &[usize], right: Mat<f64>) -> Result<Mat<f64>, RandnlaError> {
    let block = Mat::from_fn(rows.len(), rows.len(), |i, j| moment.at(rows[i], rows[j]));
    let root = dense::cholesky(block.as_ref()).map_err(|_| RandnlaError::NoConvergence {
        what: "Cholesky decomposition",
        rows: rows.len(),
        columns: rows.len(),
    })?;
    Ok(dense::solve_positive(root.as_ref(), right.as_ref()))
}

/// The sparse matrix.
fn spread(positions: &[usize], entries: &Matrix, places: Places, d_in: usize) -> Matrix {
    let d_out = entries.columns();
    let mut sparse = Mat::zeros(d_in, d_out);
    for k in 0..entries.rows() {
        for j in 0..d_out {
            let row = match places {
                Places::Rows(_) => positions[k],
                Places::InColumns(_) => positions[k * d_out + j],
            };
            sparse[(row, j)] += entries.at(k, j);
        }
    }
    Matrix::new(sparse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Centring, Conditioning, Distribution, Gram, random_matrix};

    fn whitening(size: usize) -> Whitening {
        let rows = random_matrix(Distribution::Gaussian, 300, size, 5, 1);
        let mixed = rows.product(&random_matrix(Distribution::Gaussian, size, size, 5, 2)).unwrap();
        let mut gram = Gram::new(size);
        gram.add_rows(&mixed.to_row_major()).unwrap();
        Whitening::from_gram(&gram, Centring::Centred, &Conditioning::default()).unwrap()
    }

    fn squared(weight: &Matrix, found: &LowRankSparse, places: Places, input: Option<&Whitening>) -> f64 {
        let sparse = spread(&found.positions, &found.entries, places, weight.rows());
        let product = found.left.product(&found.right).unwrap();
        let rest = Matrix::from_fn(weight.rows(), weight.columns(), |i, j| {
            weight.at(i, j) - product.at(i, j) - sparse.at(i, j)
        });
        input.map_or(rest.squared_norm(), |w| w.triangle().product(&rest).unwrap().squared_norm())
    }

    /// A matrix that is of low rank but for some rows, or for some entries.
    #[test]
    fn what_stands_out_is_found_beside_factors() {
        let product = random_matrix(Distribution::Gaussian, 30, 3, 1, 1)
            .product(&random_matrix(Distribution::Gaussian, 3, 20, 1, 2))
            .unwrap();
        let noise = random_matrix(Distribution::Gaussian, 30, 20, 1, 3);
        let rows = [4, 11, 29];
        let of_rows = Matrix::from_fn(30, 20, |i, j| {
            product.at(i, j) + if rows.contains(&i) { 5.0 * noise.at(i, j) } else { 0.0 }
        });
        let found = lowrank_sparse(&of_rows, None, None, 3, Places::Rows(3)).unwrap();
        assert_eq!(found.positions, rows);
        assert!(squared(&of_rows, &found, Places::Rows(3), None) < 1e-9 * of_rows.squared_norm());
        let of_entries = Matrix::from_fn(30, 20, |i, j| {
            product.at(i, j) + if (i + 3 * j) % 15 == 2 { 20.0 + noise.at(i, j) } else { 0.0 }
        });
        let found = lowrank_sparse(&of_entries, None, None, 3, Places::InColumns(2)).unwrap();
        let share = squared(&of_entries, &found, Places::InColumns(2), None) / of_entries.squared_norm();
        assert!(share < 1e-3, "{share}");
    }

    /// In any metric the error is that of the factors alone at most.
    #[test]
    fn entries_beside_factors_never_make_errors_greater() {
        let weight = random_matrix(Distribution::Gaussian, 24, 18, 7, 1);
        let (input, output) = (whitening(24), whitening(18));
        for (input, output) in [(None, None), (Some(&input), None), (Some(&input), Some(&output))] {
            let alone = LowRank::new(&weight, input, output, &LowRankOptions::default()).unwrap();
            for places in [Places::Rows(4), Places::InColumns(3)] {
                if output.is_some() && places == Places::InColumns(3) {
                    continue;
                }
                let found = lowrank_sparse(&weight, input, output, 5, places).unwrap();
                let sparse = spread(&found.positions, &found.entries, places, 24);
                let product = found.left.product(&found.right).unwrap();
                let rest =
                    Matrix::from_fn(24, 18, |i, j| weight.at(i, j) - product.at(i, j) - sparse.at(i, j));
                let rest = input.map_or(rest.clone(), |w| w.triangle().product(&rest).unwrap());
                let rest = output.map_or(rest.clone(), |w| rest.product(&w.triangle().transposed()).unwrap());
                let ratio = rest.squared_norm() / alone.squared_errors()[5];
                assert!(ratio < 0.95, "{places:?}: {ratio}");
            }
        }
    }

    #[test]
    fn all_rows_are_the_weight() {
        let weight = random_matrix(Distribution::Gaussian, 12, 18, 7, 1);
        let input = whitening(12);
        let found = lowrank_sparse(&weight, Some(&input), None, 2, Places::Rows(12)).unwrap();
        assert!(squared(&weight, &found, Places::Rows(12), Some(&input)) < 1e-9 * weight.squared_norm());
        let refused = lowrank_sparse(&weight, None, None, 2, Places::Rows(13)).unwrap_err().to_string();
        assert_eq!(refused, "parameter `places` is out of range: expected 1 to the number of rows, found 13");
        assert!(lowrank_sparse(&weight, None, None, 2, Places::InColumns(0)).is_err());
    }
}
