//! Tensor trains, Tucker and canonical polyadic decompositions.

use margay_randnla::{
    CpOptions, DenseTensor, LowRank, LowRankOptions, Matrix, RsvdOptions, Scalar, cp_als, hooi, hosvd,
    hosvd_to_tolerance, tt_svd, tt_svd_to_rank,
};

use crate::spectra::{gaussian, orthonormality};

fn distance<T: Scalar>(a: &DenseTensor<T>, b: &DenseTensor<T>) -> f64 {
    assert_eq!(a.extents(), b.extents());
    let pairs = a.data().iter().zip(b.data());
    pairs.map(|(x, y)| (x.to_f64() - y.to_f64()).powi(2)).sum::<f64>().sqrt()
}

fn norm<T: Scalar>(a: &DenseTensor<T>) -> f64 {
    a.squared_norm().sqrt()
}

/// `1 / (1 + Σ indices)`: numerically of low rank in every way of cutting it.
fn hilbert<T: Scalar>(extents: &[usize]) -> DenseTensor<T> {
    DenseTensor::from_fn(extents.to_vec(), |i| T::from_f64(1.0 / (1 + i.iter().sum::<usize>()) as f64))
}

/// Errors are at most what was asked for, for every tolerance, and ranks fall with it.
#[test]
fn tensor_trains_meet_their_tolerance() {
    fn check<T: Scalar>(tolerances: &[f64]) {
        for extents in [vec![7, 6, 5, 8], vec![9, 4], vec![5], vec![3, 1, 4, 1, 5]] {
            let tensor: DenseTensor<T> = hilbert(&extents);
            let mut parameters = usize::MAX;
            for &tolerance in tolerances {
                let train = tt_svd(&tensor, tolerance).unwrap();
                let error = distance(&train.to_tensor(), &tensor);
                // faer's singular value decomposition loses some hundred `ε` where values fall below `ε`.
                let rounding = 2e3 * T::EPSILON * norm(&tensor);
                assert!(error <= tolerance * norm(&tensor) + rounding, "{extents:?} {tolerance}: {error}");
                assert!(train.parameters() <= parameters);
                parameters = train.parameters();
            }
        }
    }
    check::<f64>(&[0.0, 1e-8, 1e-4, 1e-2, 0.3]);
    check::<f32>(&[0.0, 1e-4, 1e-2, 0.3]);
}

/// What each unfolding of a tensor leaves out at a rank.
fn left_out(tensor: &DenseTensor, rank: usize) -> Vec<f64> {
    let extents = tensor.extents();
    let unfolding = |k: usize| {
        let rows: usize = extents[..=k].iter().product();
        let data: Vec<f32> = tensor.data().iter().map(|v| *v as f32).collect();
        Matrix::from_row_major(rows, data.len() / rows, &data).unwrap()
    };
    let tail = |k: usize| {
        let m = unfolding(k);
        let smaller = m.rows().min(m.columns());
        let found = LowRank::new(&m, None, None, &LowRankOptions::default()).unwrap();
        found.squared_errors()[rank.min(smaller)]
    };
    (0..extents.len() - 1).map(tail).collect()
}

/// The squared error of a rank is between the greatest of what unfoldings leave out, which no train of the rank is below, and
/// their sum.
#[test]
fn tensor_trains_of_a_rank_are_within_the_sum_of_what_unfoldings_leave_out() {
    for extents in [vec![7, 6, 5, 8], vec![9, 4], vec![3, 5, 4, 5]] {
        let noise: Matrix = gaussian(1, extents.iter().product(), 9);
        let mut at = 0;
        let tensor = DenseTensor::from_fn(extents.clone(), |i| {
            at += 1;
            1.0 / (1 + i.iter().sum::<usize>()) as f64 + 0.01 * f64::from(noise.at(0, at - 1) as f32)
        });
        for rank in [1, 2, 4, 40] {
            let train = tt_svd_to_rank(&tensor, rank).unwrap();
            assert!(train.ranks().iter().all(|r| *r <= rank));
            let error = distance(&train.to_tensor(), &tensor).powi(2);
            let left_out = left_out(&tensor, rank);
            let (sum, most) = (left_out.iter().sum::<f64>(), left_out.iter().copied().fold(0.0, f64::max));
            let rounding = 1e-6 * tensor.squared_norm();
            assert!(
                error <= sum + rounding && error >= most - rounding,
                "{extents:?} {rank}: {error} {left_out:?}"
            );
        }
    }
    let tensor: DenseTensor = hilbert(&[4, 4]);
    assert!(tt_svd_to_rank(&tensor, 0).is_err());
}

/// A table of the sum of digits has ranks of 2, whatever the number of digits, and its contraction with distributions is
/// the sum of their means, as exact enumeration says.
#[test]
fn tables_of_sums_are_trains_of_rank_two() {
    for digits in [2usize, 3, 4] {
        let table = DenseTensor::from_fn(vec![10; digits], |i| i.iter().sum::<usize>() as f64);
        let train = tt_svd(&table, 1e-12).unwrap();
        assert_eq!(train.ranks(), vec![2; digits - 1]);
        let draw: Matrix = gaussian(digits, 10, 4);
        let distributions: Vec<Vec<f64>> = (0..digits)
            .map(|k| {
                let whole: f64 = (0..10).map(|j| draw.at(k, j).abs()).sum();
                (0..10).map(|j| draw.at(k, j).abs() / whole).collect()
            })
            .collect();
        let vectors: Vec<&[f64]> = distributions.iter().map(Vec::as_slice).collect();
        let weight = |i: &[usize]| i.iter().zip(&distributions).map(|(i, p)| p[*i]).product::<f64>();
        let weights = DenseTensor::from_fn(vec![10; digits], weight);
        let exact: f64 = table.data().iter().zip(weights.data()).map(|(t, w)| t * w).sum();
        let found = train.contract(&vectors).unwrap();
        assert!((found - exact).abs() < 1e-10, "{found} and {exact}");
        assert!(train.contract(&vectors[1..]).is_err());
    }
}

#[test]
fn trains_of_low_rank_are_found() {
    // A random train of ranks 2 and 3.
    let cores: [Matrix; 3] = [gaussian(1, 4 * 2, 0), gaussian(2, 5 * 3, 1), gaussian(3, 6, 2)];
    let tensor = DenseTensor::from_fn(vec![4, 5, 6], |i| {
        (0..2)
            .flat_map(|a| (0..3).map(move |b| (a, b)))
            .map(|(a, b)| cores[0].at(0, i[0] * 2 + a) * cores[1].at(a, i[1] * 3 + b) * cores[2].at(b, i[2]))
            .sum::<f64>()
    });
    let train = tt_svd(&tensor, 1e-10).unwrap();
    assert_eq!(train.ranks(), [2, 3]);
    assert_eq!(train.parameters(), 4 * 2 + 2 * 5 * 3 + 3 * 6);
    assert!(distance(&train.to_tensor(), &tensor) < 1e-12 * norm(&tensor));
}

#[test]
fn tucker_decompositions_meet_their_tolerance() {
    fn check<T: Scalar>(tolerances: &[f64]) {
        let tensor: DenseTensor<T> = hilbert(&[9, 8, 7]);
        for &tolerance in tolerances {
            let found = hosvd_to_tolerance(&tensor, tolerance).unwrap();
            let error = distance(&found.to_tensor(), &tensor);
            let rounding = 2e3 * T::EPSILON * norm(&tensor);
            assert!(error <= tolerance * norm(&tensor) + rounding, "{tolerance}: {error}");
            for (factor, (&rank, &extent)) in
                found.factors.iter().zip(found.ranks().iter().zip(tensor.extents()))
            {
                assert_eq!((factor.rows(), factor.columns()), (extent, rank));
                assert!(orthonormality(factor) < 1e2 * T::EPSILON);
            }
            // Truncation of each mode by the same share costs at most `√d` times the best error for the ranks.
            let again = hosvd(&tensor, found.ranks(), &RsvdOptions::default()).unwrap();
            let other = distance(&again.to_tensor(), &tensor);
            assert!(other <= 3f64.sqrt() * error * 1.1 + rounding, "{other} and {error}");
        }
    }
    check::<f64>(&[0.0, 1e-6, 1e-3, 1e-1]);
    check::<f32>(&[0.0, 1e-3, 1e-1]);
}

/// Orthogonal iteration lowers the error, round by round.
#[test]
fn orthogonal_iteration_improves() {
    let noise: Matrix = gaussian(12, 110, 3);
    let smooth: DenseTensor = hilbert(&[12, 11, 10]);
    let tensor = DenseTensor::from_fn(vec![12, 11, 10], |i| {
        smooth.data()[(i[0] * 11 + i[1]) * 10 + i[2]] + 0.05 * noise.at(i[0], i[1] * 10 + i[2])
    });
    let ranks = [3, 2, 3];
    let options = RsvdOptions::default();
    let error = |rounds| distance(&hooi(&tensor, &ranks, rounds, &options).unwrap().to_tensor(), &tensor);
    let errors = [0, 1, 2, 5].map(error);
    assert!(errors.windows(2).all(|w| w[1] <= w[0] * (1.0 + 1e-9)), "{errors:?}");
    assert!(errors[1] < errors[0]);
    let plain = distance(&hosvd(&tensor, &ranks, &options).unwrap().to_tensor(), &tensor);
    assert_eq!(plain, errors[0]);
}

/// Sums of outer products are recovered from samples of the rows, to 1e-6 for at least 6 of 16 seeds, as they are from all
/// rows: the others are at another local minimum, or still on their way.
#[test]
fn sums_of_outer_products_are_recovered_from_samples() {
    let factors: [Matrix; 3] = [gaussian(16, 3, 0), gaussian(15, 3, 1), gaussian(14, 3, 2)];
    let tensor = DenseTensor::from_fn(vec![16, 15, 14], |i| {
        (0..3).map(|r| factors.iter().zip(i).map(|(f, &i)| f.at(i, r)).product::<f64>()).sum::<f64>()
    });
    for samples in [80, usize::MAX] {
        let found = (0..16).filter(|&seed| {
            let options = CpOptions { rank: 3, rounds: 40, samples, seed, stream: 0 };
            let cp = cp_als(&tensor, &options).unwrap();
            for factor in &cp.factors {
                for r in 0..3 {
                    let squared: f64 = (0..factor.rows()).map(|i| factor.at(i, r).powi(2)).sum();
                    assert!((squared - 1.0).abs() < 1e-10);
                }
            }
            let rebuilt = DenseTensor::from_fn(vec![16, 15, 14], |i| {
                let term = |r: usize| cp.factors.iter().zip(i).map(|(f, &i)| f.at(i, r)).product::<f64>();
                (0..3).map(|r| cp.weights[r] * term(r)).sum()
            });
            let error = distance(&rebuilt, &tensor) / norm(&tensor);
            assert!((error - cp.relative_error).abs() < 1e-9);
            error < 1e-6
        });
        assert!(found.count() >= 6, "{samples} samples");
    }
}

/// With noise, samples cost little of the fit.
#[test]
fn sampled_fits_are_near_those_of_all_rows() {
    let noise: Matrix<f32> = gaussian(20, 20 * 20, 5);
    let factors: Vec<Matrix<f32>> = (0..3).map(|k| gaussian(20, 2, k)).collect();
    let tensor = DenseTensor::from_fn(vec![20, 20, 20], |i| {
        let terms = (0..2).map(|r| factors.iter().zip(i).map(|(f, &i)| f.at(i, r)).product::<f32>());
        terms.sum::<f32>() + 0.1 * noise.at(i[0], i[1] * 20 + i[2])
    });
    let error = |samples| {
        let of =
            |seed| cp_als(&tensor, &CpOptions { rank: 2, rounds: 15, samples, seed, stream: 0 }).unwrap();
        (0..4).map(|seed| of(seed).relative_error).fold(f64::INFINITY, f64::min)
    };
    let (sampled, all) = (error(100), error(usize::MAX));
    assert!(sampled <= 1.1 * all, "{sampled} and {all}");
}

#[test]
fn wrong_input_is_named() {
    let tensor: DenseTensor = hilbert(&[3, 4]);
    assert!(tt_svd(&tensor, -1.0).unwrap_err().to_string().contains("`tolerance`"));
    assert!(hosvd_to_tolerance(&tensor, f64::NAN).is_err());
    let options = RsvdOptions::default();
    assert!(hosvd(&tensor, &[2], &options).unwrap_err().to_string().contains("list of ranks"));
    assert!(hosvd(&tensor, &[4, 2], &options).unwrap_err().to_string().contains("1 to 3"));
    let cp = CpOptions { rank: 2, rounds: 1, samples: 1, seed: 0, stream: 0 };
    assert!(cp_als(&tensor, &cp).unwrap_err().to_string().contains("`samples`"));
    assert!(cp_als(&tensor, &CpOptions { rank: 0, ..cp }).unwrap_err().to_string().contains("`rank`"));
    assert!(cp_als(&hilbert::<f64>(&[3]), &CpOptions { rank: 1, ..cp }).is_err());
    let err = DenseTensor::new(vec![2, 3], vec![1.0; 5]).unwrap_err().to_string();
    assert_eq!(err, "the tensor has the wrong length: expected 6, found 5");
    assert!(DenseTensor::<f64>::new(vec![usize::MAX, 2], vec![]).is_err());
    let nan = DenseTensor::new(vec![2], vec![1.0, f64::NAN]).unwrap();
    assert!(tt_svd(&nan, 0.1).unwrap_err().to_string().starts_with("the tensor is not finite"));
    assert!(tt_svd(&DenseTensor::<f64>::new(vec![], vec![1.0]).unwrap(), 0.1).is_err());
}
