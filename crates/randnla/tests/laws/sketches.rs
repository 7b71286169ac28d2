//! Sketches as values: blocks, streams, scales, products.

use margay_randnla::{Distribution, Draw, Law, Matrix, MatrixRef, RandnlaError, Scalar, Sketch, Sparse};

use crate::spectra::{convert, distance, gaussian, norm, row_major};

/// Every law, and both compositions, of 12 rows and 40 columns.
pub(crate) fn all(seed: u64, stream: u64) -> Vec<(&'static str, Sketch)> {
    let weights: Vec<f64> = (0..40).map(|i| 1.0 + (i % 5) as f64).collect();
    let draw = Draw::weighted(&weights).unwrap();
    let new = |law, rows, columns, stream| Sketch::new(law, rows, columns, seed, stream).unwrap();
    let single = |law| new(law, 12, 40, stream);
    let gaussian = |rows, columns, stream| new(Law::Dense(Distribution::Gaussian), rows, columns, stream);
    let sjlt = |nonzeros| Law::Sjlt { nonzeros };
    vec![
        ("gaussian", single(Law::Dense(Distribution::Gaussian))),
        ("rademacher", single(Law::Dense(Distribution::Sign))),
        ("uniform", single(Law::Dense(Distribution::Uniform))),
        ("count", single(sjlt(1))),
        ("sjlt", single(sjlt(4))),
        ("full sjlt", single(sjlt(12))),
        ("less", single(Law::Less { nonzeros: 6, draw: Draw::UNIFORM })),
        ("weighted less", single(Law::Less { nonzeros: 6, draw: draw.clone() })),
        ("srht", single(Law::Srht)),
        ("rows", single(Law::Rows(Draw::UNIFORM))),
        ("weighted rows", single(Law::Rows(draw))),
        ("tensor", single(Law::Tensor { extents: vec![2, 4, 5] })),
        ("kronecker", Sketch::kronecker(new(sjlt(2), 3, 8, stream), gaussian(4, 5, stream + 1)).unwrap()),
        (
            "stack",
            Sketch::stacked(vec![(1.0, gaussian(5, 40, stream)), (2.0, new(Law::Srht, 7, 40, stream + 1))])
                .unwrap(),
        ),
    ]
}

fn entries<T: Scalar>(m: &Matrix<T>) -> Vec<f64> {
    (0..m.rows()).flat_map(|i| (0..m.columns()).map(move |j| m.at(i, j).to_f64())).collect()
}

#[test]
fn blocks_are_slices_of_the_whole_bit_by_bit() {
    fn check<T: Scalar>() {
        for (name, sketch) in all(5, 9) {
            let whole: Matrix<T> = sketch.to_matrix();
            for (rows, columns) in
                [(0..12, 0..40), (3..4, 7..8), (0..5, 39..40), (5..12, 1..33), (4..4, 0..40)]
            {
                let expected = Matrix::from_fn(rows.len(), columns.len(), |i, j| {
                    whole.at(rows.start + i, columns.start + j)
                });
                let block = sketch.window(rows.clone(), columns.clone()).unwrap();
                assert_eq!(block.to_matrix::<T>(), expected, "{name} {rows:?} {columns:?}");
                let (rows, columns) = (0..rows.len() / 2, 0..columns.len() / 2);
                let inner = block.window(rows.clone(), columns.clone()).unwrap().to_matrix::<T>();
                let slice = Matrix::from_fn(rows.len(), columns.len(), |i, j| expected.at(i, j));
                assert_eq!(inner, slice, "{name}: a window of a window");
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn threads_do_not_change_bits() {
    for (name, sketch) in all(5, 9) {
        let whole: Matrix = sketch.to_matrix();
        let parts: Vec<Matrix> = std::thread::scope(|scope| {
            let part = |first| sketch.window(0..12, first..first + 10).unwrap();
            let threads: Vec<_> = [0, 10, 20, 30]
                .map(|first| scope.spawn(move || part(first).to_matrix()))
                .into_iter()
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let joined = Matrix::from_fn(12, 40, |i, j| parts[j / 10].at(i, j % 10));
        assert_eq!(joined, whole, "{name}");
    }
}

#[test]
fn seeds_and_streams_are_disjoint() {
    for (((name, a), (_, b)), (_, c)) in all(1, 1).into_iter().zip(all(2, 1)).zip(all(1, 100)) {
        let of = |s: &Sketch| entries(&s.to_matrix::<f64>());
        assert_eq!(of(&a), of(&a), "{name}");
        assert_ne!(of(&a), of(&b), "{name}: seeds");
        assert_ne!(of(&a), of(&c), "{name}: streams");
    }
}

/// Over 64 seeds the mean of `‖S x‖²` is within 4 standard errors of `‖x‖²`, and that of `SᵀS x` of `x`.
#[test]
fn squared_norms_are_kept_on_average() {
    const SEEDS: u64 = 64;
    let x: Matrix = gaussian(40, 1, 3);
    for at in 0..all(0, 0).len() {
        let name = all(0, 0)[at].0;
        let samples: Vec<Vec<f64>> = (0..SEEDS)
            .map(|seed| {
                let sketch = all(seed, 4).swap_remove(at).1;
                let image = sketch.apply(&x).unwrap();
                let mut sample = entries(&sketch.apply_transposed(&image).unwrap());
                sample.push(image.squared_norm());
                sample
            })
            .collect();
        for entry in 0..=40 {
            let expected = if entry < 40 { x.at(entry, 0) } else { x.squared_norm() };
            let n = SEEDS as f64;
            let mean = samples.iter().map(|s| s[entry]).sum::<f64>() / n;
            let squared: f64 = samples.iter().map(|s| (s[entry] - mean).powi(2)).sum();
            let error = (squared / (n * (n - 1.0))).sqrt();
            assert!(
                (mean - expected).abs() <= 4.0 * error + 1e-9,
                "{name} {entry}: {mean}, {expected} ± {error}"
            );
        }
    }
}

#[test]
fn unscaled_entries_have_the_scale_that_is_said() {
    let new = |law| Sketch::new(law, 16, 64, 1, 1).unwrap().unscaled().to_matrix::<f64>();
    for (law, size) in
        [(Law::Dense(Distribution::Sign), 16 * 64), (Law::Srht, 16 * 64), (Law::Sjlt { nonzeros: 3 }, 3 * 64)]
    {
        let ones = entries(&new(law)).into_iter().filter(|v| v.abs() == 1.0).count();
        assert_eq!(ones, size);
    }
    let uniform = entries(&new(Law::Dense(Distribution::Uniform)));
    assert!(uniform.iter().all(|v| v.abs() <= 3f64.sqrt()));
    let variance = uniform.iter().map(|v| v * v).sum::<f64>() / uniform.len() as f64;
    assert!((variance - 1.0).abs() < 0.1, "{variance}");
}

#[test]
fn sparse_laws_have_the_entries_they_say() {
    let s: Matrix = Sketch::new(Law::Sjlt { nonzeros: 4 }, 10, 500, 3, 0).unwrap().to_matrix();
    let mut by_row = vec![0; 10];
    for j in 0..500 {
        let nonzero: Vec<usize> = (0..10).filter(|&i| s.at(i, j) != 0.0).collect();
        assert_eq!(nonzero.len(), 4);
        nonzero.into_iter().for_each(|i| by_row[i] += 1);
    }
    // 500 columns with probability 0.4 each: a standard deviation of 11.
    assert!(by_row.iter().all(|n| (150..250).contains(n)), "{by_row:?}");
    let s: Matrix =
        Sketch::new(Law::Less { nonzeros: 4, draw: Draw::UNIFORM }, 10, 500, 3, 0).unwrap().to_matrix();
    for i in 0..10 {
        let nonzero = (0..500).filter(|&j| s.at(i, j) != 0.0).count();
        assert!((1..=4).contains(&nonzero));
    }
    let s: Matrix = Sketch::new(Law::Rows(Draw::UNIFORM), 10, 500, 3, 0).unwrap().to_matrix();
    for i in 0..10 {
        let nonzero: Vec<f64> = (0..500).map(|j| s.at(i, j)).filter(|v| *v != 0.0).collect();
        assert_eq!(nonzero, [50f64.sqrt()]);
    }
}

/// A column of a tensor sketch is the circular convolution of columns of those of the factors, so that the sketch of a
/// Kronecker product of vectors is the convolution of their sketches.
#[test]
fn tensor_sketches_convolve() {
    let (d, extents) = (8, [3usize, 5]);
    let law = Law::Tensor { extents: extents.to_vec() };
    let sketch = Sketch::new(law, d, 15, 4, 2).unwrap();
    let s: Matrix = sketch.to_matrix();
    let at = |j: usize| (0..d).find(|&i| s.at(i, j) != 0.0).map(|i| (i, s.at(i, j))).unwrap();
    for i in 0..3 {
        for j in 0..5 {
            let ((a, sa), (b, sb)) = (at(i * 5), at(j));
            let ((c, sc), (both, sign)) = (at(0), at(i * 5 + j));
            assert_eq!((a + b) % d, (c + both) % d);
            assert_eq!(sa * sb, sc * sign);
        }
    }
}

fn operands<T: Scalar>(rows: usize, columns: usize) -> (Matrix<T>, Sparse<T>, Sparse<T>) {
    let dense: Matrix<T> = gaussian(rows, columns, 31);
    let keep = Matrix::from_fn(rows, columns, |i, j| {
        if (i * 7 + j * 3).is_multiple_of(4) { dense.at(i, j) } else { T::ZERO }
    });
    let triples: Vec<(usize, usize, T)> = (0..rows)
        .flat_map(|i| (0..columns).map(move |j| (i, j)))
        .map(|(i, j)| (i, j, keep.at(i, j)))
        .collect();
    let nonzero: Vec<_> = triples.iter().copied().filter(|(_, _, v)| *v != T::ZERO).collect();
    let csr = Sparse::from_coo(rows, columns, &nonzero).unwrap();
    let (mut offsets, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
    for j in 0..columns {
        for &(i, _, v) in nonzero.iter().filter(|e| e.1 == j) {
            indices.push(i);
            values.push(v);
        }
        offsets.push(indices.len());
    }
    let csc = Sparse::from_csc(rows, columns, &offsets, &indices, &values).unwrap();
    (keep, csr, csc)
}

/// Products from the left and right, plain and transposed, with dense operands of either layout and sparse ones of either
/// layout, of whole sketches and windows, and with blocks of operands.
#[test]
fn products_are_those_of_the_matrix() {
    fn check<T: Scalar>() {
        for (name, whole) in all(8, 2) {
            for sketch in [whole.clone(), whole.window(2..11, 5..37).unwrap()] {
                let s: Matrix<T> = sketch.to_matrix();
                let st = s.transposed();
                let (d, n) = (s.rows(), s.columns());
                for columns in [1, 8, 21] {
                    let (tall, tall_csr, tall_csc) = operands::<T>(n, columns);
                    let (short, short_csr, short_csc) = operands::<T>(d, columns);
                    let (tall_rows, short_rows) = (row_major(&tall), row_major(&short));
                    let (left, left_t) = (s.product(&tall).unwrap(), st.product(&short).unwrap());
                    let close = |found: Matrix<T>, expected: &Matrix<T>, what: &str| {
                        let bound = 1e2 * T::EPSILON * norm(expected).max(1.0);
                        assert!(distance(&found, expected) <= bound, "{name} {what} {columns}");
                    };
                    let talls: [MatrixRef<'_, T>; 4] = [
                        (&tall).into(),
                        tall_rows.transpose().into(),
                        (&tall_csr).into(),
                        (&tall_csc).into(),
                    ];
                    for a in talls {
                        close(sketch.apply(a).unwrap(), &left, "S a");
                        let right = sketch.apply_right_transposed(a.transposed()).unwrap();
                        close(right, &left.transposed(), "aᵀ Sᵀ");
                    }
                    let shorts: [MatrixRef<'_, T>; 4] = [
                        (&short).into(),
                        short_rows.transpose().into(),
                        (&short_csr).into(),
                        (&short_csc).into(),
                    ];
                    for a in shorts {
                        close(sketch.apply_transposed(a).unwrap(), &left_t, "Sᵀ a");
                        let right = sketch.apply_right(a.transposed()).unwrap();
                        close(right, &left_t.transposed(), "aᵀ S");
                    }
                }
                let (_, big, _) = operands::<T>(n + 3, 9);
                let block = MatrixRef::from(&big).block(2..n + 2, 1..8).unwrap();
                let expected = s.product(&block.to_dense()).unwrap();
                let found = sketch.apply(block).unwrap();
                assert!(distance(&found, &expected) <= 1e2 * T::EPSILON * norm(&expected), "{name} block");
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// Products have the same bits for every layout of the operand and however its columns are cut, of windows too.
#[test]
fn layouts_and_cuts_do_not_change_bits() {
    fn check<T: Scalar>() {
        let laws =
            [Law::Srht, Law::Sjlt { nonzeros: 1 }, Law::Sjlt { nonzeros: 3 }, Law::Sjlt { nonzeros: 4 }];
        for law in laws.into_iter().chain([Law::Tensor { extents: vec![37, 29] }]) {
            let whole = Sketch::new(law.clone(), 60, 1073, 2, 0).unwrap();
            for sketch in [whole.clone(), whole.window(7..53, 90..1001).unwrap()] {
                let (d, n) = (sketch.rows(), sketch.columns());
                let (a, b): (Matrix<T>, Matrix<T>) = (gaussian(n, 75, 3), gaussian(d, 75, 4));
                let (c, e) = (row_major(&a), row_major(&b));
                let of = |a: MatrixRef<'_, T>| sketch.apply(a).unwrap();
                let back = |b: MatrixRef<'_, T>| sketch.apply_transposed(b).unwrap();
                let (left, right) = (of((&a).into()), back((&b).into()));
                assert_eq!(of(c.transpose().into()), left, "{law:?}: rows together");
                assert_eq!(back(e.transpose().into()), right, "{law:?}: rows together, transposed");
                let turned = |m: &Matrix<T>| m.transposed();
                let found = sketch.apply_right_transposed(turned(&a).as_faer()).unwrap();
                assert_eq!(turned(&found), left, "{law:?}: from the right");
                let found = sketch.apply_right(turned(&b).as_faer()).unwrap();
                assert_eq!(turned(&found), right, "{law:?}: from the right, transposed");
                for columns in [0..1, 1..22, 22..75] {
                    let slice = |m: &Matrix<T>| {
                        Matrix::from_fn(m.rows(), columns.len(), |i, j| m.at(i, columns.start + j))
                    };
                    let part = MatrixRef::from(&a).block(0..n, columns.clone()).unwrap();
                    assert_eq!(of(part), slice(&left), "{law:?}: {columns:?}");
                    let part = MatrixRef::from(c.transpose()).block(0..n, columns.clone()).unwrap();
                    assert_eq!(of(part), slice(&left), "{law:?}: {columns:?}, rows together");
                    let part = MatrixRef::from(&b).block(0..d, columns.clone()).unwrap();
                    assert_eq!(back(part), slice(&right), "{law:?}: {columns:?}, transposed");
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// Each number of a product with a sparse sketch is the sum of its terms in the order of the rows of the operand.
#[test]
fn sums_run_in_the_order_of_rows() {
    fn check<T: Scalar>() {
        for (law, d) in [(Law::Sjlt { nonzeros: 1 }, 700), (Law::Sjlt { nonzeros: 8 }, 40)] {
            let sketch = Sketch::new(law.clone(), d, 2500, 3, 1).unwrap();
            let (s, a): (Matrix<T>, Matrix<T>) = (sketch.to_matrix(), gaussian(2500, 70, 2));
            let found = sketch.apply(&a).unwrap();
            for c in [0, 1, 63, 64, 69] {
                for i in 0..d {
                    let mut sum = T::ZERO;
                    for j in (0..2500).filter(|&j| s.at(i, j) != T::ZERO) {
                        sum += s.at(i, j) * a.at(j, c);
                    }
                    assert!(found.at(i, c) == sum, "{law:?}, {i} {c}: {} and {sum}", found.at(i, c));
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// The product with a large sketch is the sum of those with windows of its columns.
#[test]
fn large_products_split() {
    for law in [Law::Dense(Distribution::Gaussian), Law::Srht, Law::Sjlt { nonzeros: 3 }] {
        let sketch = Sketch::new(law, 50, 1500, 6, 0).unwrap();
        let a: Matrix<f32> = gaussian(1500, 17, 1);
        let whole = sketch.apply(&a).unwrap();
        let cut = |first: usize, end: usize| {
            let part = MatrixRef::from(&a).block(first..end, 0..17).unwrap();
            sketch.window(0..50, first..end).unwrap().apply(part).unwrap()
        };
        let (x, y) = (cut(0, 601), cut(601, 1500));
        let sum = Matrix::from_fn(50, 17, |i, j| x.at(i, j) + y.at(i, j));
        assert!(distance(&sum, &whole) < 1e-5 * norm(&whole));
        let exact: Matrix = convert::<f32, f64>(&sketch.to_matrix()).product(&convert(&a)).unwrap();
        assert!(distance(&convert(&whole), &exact) < 1e-5 * norm(&exact));
    }
}

#[test]
fn stacks_and_products_are_what_they_say() {
    let part = |rows, stream| Sketch::new(Law::Dense(Distribution::Gaussian), rows, 6, 1, stream).unwrap();
    let stack = Sketch::stacked(vec![(3.0, part(2, 0)), (4.0, part(3, 1))]).unwrap();
    let (a, b): (Matrix, Matrix) = (part(2, 0).to_matrix(), part(3, 1).to_matrix());
    let expected = Matrix::from_fn(5, 6, |i, j| if i < 2 { 0.6 * a.at(i, j) } else { 0.8 * b.at(i - 2, j) });
    assert!(distance(&stack.to_matrix(), &expected) < 1e-14);
    let both: Matrix = Sketch::kronecker(part(2, 0), part(3, 1)).unwrap().to_matrix();
    let expected = Matrix::from_fn(6, 36, |i, j| a.at(i / 3, j / 6) * b.at(i % 3, j % 6));
    assert!(distance(&both, &expected) < 1e-14);
}

#[test]
fn wrong_sketches_are_refused() {
    let message = |r: Result<Sketch, RandnlaError>| r.unwrap_err().to_string();
    let new = |law, rows, columns| Sketch::new(law, rows, columns, 0, 0);
    assert_eq!(
        message(new(Law::Sjlt { nonzeros: 5 }, 4, 9)),
        "parameter `nonzeros` is out of range: expected 1 to the number of rows, found 5"
    );
    assert!(message(new(Law::Sjlt { nonzeros: 0 }, 4, 9)).contains("found 0"));
    assert!(message(new(Law::Less { nonzeros: 0, draw: Draw::UNIFORM }, 4, 9)).contains("at least 1"));
    assert_eq!(message(new(Law::Srht, 17, 9)), "rank is out of range: expected 1 to 16, found 17");
    assert_eq!(
        message(new(Law::Tensor { extents: vec![2, 3] }, 4, 9)),
        "the product of the extents has the wrong length: expected 9, found 6"
    );
    assert!(message(new(Law::Tensor { extents: vec![usize::MAX, 3] }, 4, 9)).contains("expected 9"));
    assert_eq!(message(new(Law::Srht, 0, 9)), "the sketch is empty: expected rows and columns, found 0 x 9");
    let draw = Draw::weighted(&[1.0, 2.0]).unwrap();
    assert_eq!(
        message(new(Law::Rows(draw), 4, 9)),
        "the list of weights has the wrong length: expected 9, found 2"
    );
    for weights in [vec![1.0, -1.0], vec![f64::NAN], vec![0.0, 0.0], vec![]] {
        assert!(Draw::weighted(&weights).is_err(), "{weights:?}");
    }
    assert!(message(Sketch::stacked(Vec::new())).contains("the stack is empty"));
    let (a, b) = (new(Law::Srht, 2, 4).unwrap(), new(Law::Srht, 2, 5).unwrap());
    assert_eq!(
        message(Sketch::stacked(vec![(1.0, a.clone()), (1.0, b)])),
        "a part of the stack has the wrong shape: expected 2 x 4, found 2 x 5"
    );
    assert!(message(Sketch::stacked(vec![(0.0, a.clone())])).contains("`weights`"));
    assert_eq!(message(a.window(0..3, 0..4)), "the range 0..3 is not in 0..2");
    let wide: Matrix = gaussian(3, 2, 0);
    assert_eq!(
        a.apply(&wide).unwrap_err().to_string(),
        "the operand has the wrong shape: expected 4 x 2, found 3 x 2"
    );
    assert!(
        a.apply_transposed(&wide).is_err()
            && a.apply_right(&wide).is_ok()
            && a.apply_right_transposed(&wide).is_err()
    );
}
