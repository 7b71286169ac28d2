//! Products of rows and structures, and derivatives by what structures store.
//!
//! This is the reference of the nodes that apply a structure in a graph, and what fits its contents. Rows lie one after the other.

use faer::MatRef;

use super::{Contents, Kind, Structure, refused};
use crate::{Matrix, RandnlaError, dense};

/// Rows of some length, one after the other.
#[derive(Clone)]
pub(super) struct Rows {
    pub(super) count: usize,
    pub(super) data: Vec<f64>,
}

/// Which of the copies of a structure in blocks, and whether it is transposed.
#[derive(Clone, Copy, Default)]
pub(super) struct At {
    block: usize,
    transposed: bool,
}

impl Rows {
    pub(super) fn of(matrix: &Matrix) -> Rows {
        Rows { count: matrix.rows(), data: matrix.to_row_major_f64() }
    }

    pub(super) fn identity(size: usize) -> Rows {
        let mut data = vec![0.0; size * size];
        data.iter_mut().step_by(size + 1).for_each(|entry| *entry = 1.0);
        Rows { count: size, data }
    }

    fn length(&self) -> usize {
        self.data.len() / self.count.max(1)
    }

    pub(super) fn matrix(&self) -> Matrix {
        let length = self.length();
        Matrix::from_fn(self.count, length, |i, j| self.data[i * length + j])
    }

    fn faer(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.data, self.count, self.length())
    }

    fn of_faer(found: &faer::Mat<f64>) -> Rows {
        let rows = (0..found.nrows()).flat_map(|i| (0..found.ncols()).map(move |j| found[(i, j)]));
        Rows { count: found.nrows(), data: rows.collect() }
    }

    /// The product with a matrix of as many rows as these are long.
    pub(super) fn times(&self, matrix: MatRef<'_, f64>) -> Rows {
        Rows::of_faer(&dense::product(self.faer(), matrix))
    }

    /// Rows along one axis of tensors `[outer, length, inner]`.
    fn along(&self, outer: usize, length: usize, inner: usize) -> Rows {
        let mut data = vec![0.0; self.data.len()];
        for (o, (from, to)) in
            self.data.chunks(length * inner).zip(data.chunks_mut(length * inner)).take(outer).enumerate()
        {
            debug_assert!(o < outer);
            for (i, row) in from.chunks(inner).enumerate() {
                row.iter().enumerate().for_each(|(j, value)| to[j * length + i] = *value);
            }
        }
        Rows { count: outer * inner, data }
    }

    /// The tensors `[outer, length, inner]` that [`along`](Rows::along) was made of, as `count` rows.
    fn back(self, count: usize, length: usize, inner: usize) -> Rows {
        let mut data = vec![0.0; self.data.len()];
        for (from, to) in self.data.chunks(length * inner).zip(data.chunks_mut(length * inner)) {
            for (j, row) in from.chunks(length).enumerate() {
                row.iter().enumerate().for_each(|(i, value)| to[i * inner + j] = *value);
            }
        }
        Rows { count, data }
    }

    /// The part of each row from `first` on.
    fn part(&self, first: usize, length: usize) -> Rows {
        let rows = self.data.chunks(self.length().max(1));
        Rows {
            count: self.count,
            data: rows.flat_map(|row| row[first..][..length].iter().copied()).collect(),
        }
    }

    pub(super) fn add(&mut self, other: &Rows) {
        self.data.iter_mut().zip(&other.data).for_each(|(a, b)| *a += b);
    }
}

/// The parts of a structure with the contents of each, in the order of the text.
fn with_contents<'a>(
    parts: &'a [Structure],
    contents: &'a [Contents],
) -> impl DoubleEndedIterator<Item = (&'a Structure, usize, &'a [Contents])> {
    let mut first = 0;
    let split: Vec<_> = parts
        .iter()
        .map(|part| {
            let at = first;
            first += part.stored_count();
            (part, at, &contents[at..first])
        })
        .collect();
    split.into_iter()
}

impl Structure {
    /// Rows \[n, rows\] times the structure, whose factors hold `contents`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] for rows of another length, and [`RandnlaError::Algebra`] for contents that are not those of
    /// [`stored`](Structure::stored).
    pub fn apply(&self, contents: &[Contents], x: &Matrix) -> Result<Matrix, RandnlaError> {
        if x.columns() != self.rows() {
            let (expected, found) = ((x.rows(), self.rows()), (x.rows(), x.columns()));
            return Err(RandnlaError::Shape { what: "the rows of a structure", expected, found });
        }
        self.check_contents(contents)?;
        Ok(self.rows_times(contents, At::default(), Rows::of(x), None).matrix())
    }

    /// The matrix \[rows, columns\] that the structure stands for.
    ///
    /// # Errors
    /// As [`apply`](Structure::apply).
    pub fn to_matrix(&self, contents: &[Contents]) -> Result<Matrix, RandnlaError> {
        self.check_contents(contents)?;
        let identity = Rows::identity(self.rows());
        Ok(self.rows_times(contents, At::default(), identity, None).matrix())
    }

    fn check_contents(&self, contents: &[Contents]) -> Result<(), RandnlaError> {
        let stored = self.stored();
        let fits = |(stored, contents): (&super::Stored, &Contents)| match (stored, contents) {
            (super::Stored::Numbers(_), Contents::Numbers(numbers)) => numbers.len() == stored.count(),
            (super::Stored::Positions { below, .. }, Contents::Positions(positions)) => {
                positions.len() == stored.count() && positions.iter().all(|p| p < below)
            }
            _ => false,
        };
        match stored.len() == contents.len() && stored.iter().zip(contents).all(fits) {
            true => Ok(()),
            false => refused(format!("the contents are not those of `{self}`")),
        }
    }

    /// The product; of sums only the term that stores tensor `only`, where one is given.
    pub(super) fn rows_times(&self, contents: &[Contents], at: At, x: Rows, only: Option<usize>) -> Rows {
        match self.kind() {
            Kind::Identity => x,
            Kind::Product(factors) => {
                let mut factors: Vec<_> = with_contents(factors, contents).collect();
                if at.transposed {
                    factors.reverse();
                }
                factors.into_iter().fold(x, |x, (factor, first, contents)| {
                    factor.rows_times(contents, at, x, within(only, first, factor))
                })
            }
            Kind::Sum(terms) => {
                let asked = |(term, first, _): &(&Structure, usize, _)| match only {
                    Some(tensor) => (*first..first + term.stored_count()).contains(&tensor),
                    None => true,
                };
                let mut products =
                    with_contents(terms, contents).filter(asked).map(|(term, first, contents)| {
                        term.rows_times(contents, at, x.clone(), within(only, first, term))
                    });
                let mut sum = products.next().expect("a sum has terms, and one of them stores each tensor");
                products.for_each(|product| sum.add(&product));
                sum
            }
            Kind::Kronecker(factors) => self.axes(factors, contents, at).into_iter().fold(x, |x, axis| {
                let (count, [length, new]) = (x.count, axis.factor.extents(at.transposed));
                let rows = x.along(count * axis.outer, length, axis.inner);
                let only = within(only, axis.first, axis.factor);
                axis.factor.rows_times(axis.contents, at, rows, only).back(count, new, axis.inner)
            }),
            Kind::Blocks(count, of) => {
                let [length, new] = of.extents(at.transposed);
                let mut data = vec![0.0; x.count * count * new];
                for i in 0..*count {
                    let at = At { block: at.block * count + i, ..at };
                    let found = of.rows_times(contents, at, x.part(i * length, length), only);
                    for (row, from) in data.chunks_mut(count * new).zip(found.data.chunks(new)) {
                        row[i * new..][..new].copy_from_slice(from);
                    }
                }
                Rows { count: x.count, data }
            }
            Kind::Transpose(of) => of.rows_times(contents, At { transposed: !at.transposed, ..at }, x, only),
            _ => self.leaf_times(contents, at, &x),
        }
    }

    /// Adds to `sums`, one for each stored tensor, the derivative of the sum of `g ∘ (x W)` by it.
    pub(super) fn add_derivatives(
        &self,
        contents: &[Contents],
        at: At,
        x: Rows,
        g: Rows,
        sums: &mut [Vec<f64>],
    ) {
        let back = At { transposed: !at.transposed, ..at };
        match self.kind() {
            Kind::Identity => {}
            Kind::Product(factors) => {
                let mut factors: Vec<_> = with_contents(factors, contents).collect();
                if at.transposed {
                    factors.reverse();
                }
                let mut read = vec![x];
                for (factor, _, contents) in &factors[..factors.len() - 1] {
                    let x = read[read.len() - 1].clone();
                    read.push(factor.rows_times(contents, at, x, None));
                }
                let mut g = g;
                for (i, (factor, first, contents)) in factors.into_iter().enumerate().rev() {
                    let x = read.pop().expect("each factor reads something");
                    let sums = &mut sums[first..first + factor.stored_count()];
                    factor.add_derivatives(contents, at, x, g.clone(), sums);
                    if i > 0 {
                        g = factor.rows_times(contents, back, g, None);
                    }
                }
            }
            Kind::Sum(terms) => {
                for (term, first, contents) in with_contents(terms, contents) {
                    let sums = &mut sums[first..first + term.stored_count()];
                    term.add_derivatives(contents, at, x.clone(), g.clone(), sums);
                }
            }
            Kind::Kronecker(factors) => {
                let axes = self.axes(factors, contents, at);
                let count = x.count;
                let mut read = vec![x];
                for axis in &axes {
                    let x = &read[read.len() - 1];
                    let [length, new] = axis.factor.extents(at.transposed);
                    let rows = x.along(count * axis.outer, length, axis.inner);
                    let found = axis.factor.rows_times(axis.contents, at, rows, None);
                    read.push(found.back(count, new, axis.inner));
                }
                read.pop();
                let mut g = g;
                for axis in axes.into_iter().rev() {
                    let x = read.pop().expect("each axis reads something");
                    let [length, new] = axis.factor.extents(at.transposed);
                    let x = x.along(count * axis.outer, length, axis.inner);
                    let along = g.along(count * axis.outer, new, axis.inner);
                    let sums = &mut sums[axis.first..axis.first + axis.factor.stored_count()];
                    axis.factor.add_derivatives(axis.contents, at, x, along.clone(), sums);
                    let found = axis.factor.rows_times(axis.contents, back, along, None);
                    g = found.back(count, length, axis.inner);
                }
            }
            Kind::Blocks(count, of) => {
                let [length, new] = of.extents(at.transposed);
                for i in 0..*count {
                    let at = At { block: at.block * count + i, ..at };
                    let (x, g) = (x.part(i * length, length), g.part(i * new, new));
                    of.add_derivatives(contents, at, x, g, sums);
                }
            }
            // The sum of `g ∘ (x Wᵀ)` is that of `x ∘ (g W)`.
            Kind::Transpose(of) => of.add_derivatives(contents, back, x, g, sums),
            _ => match at.transposed {
                true => self.add_leaf_derivatives(contents, at, &g, &x, sums),
                false => self.add_leaf_derivatives(contents, at, &x, &g, sums),
            },
        }
    }

    /// The axes of a Kronecker product, in the order in which they are multiplied.
    fn axes<'a>(&self, factors: &'a [Structure], contents: &'a [Contents], at: At) -> Vec<Axis<'a>> {
        let split: Vec<_> = with_contents(factors, contents).collect();
        let mut extents: Vec<usize> = factors.iter().map(|factor| factor.extents(at.transposed)[0]).collect();
        let axis = |i: usize| {
            let (outer, inner) = (extents[..i].iter().product(), extents[i + 1..].iter().product());
            let (factor, first, contents) = split[i];
            extents[i] = factor.extents(at.transposed)[1];
            Axis { factor, first, contents, outer, inner }
        };
        self.order(at.transposed).into_iter().map(axis).collect()
    }

    /// Where a row of a leaf reads and writes: `visit(input, output, number)` for each of its entries, of which all but one
    /// kind of leaf has few.
    fn entries(&self, contents: &[Contents], at: At, mut visit: impl FnMut(usize, usize, Option<usize>)) {
        let ([rows, columns], block) = (self.shape(), at.block);
        match self.kind() {
            Kind::Diagonal => (0..rows).for_each(|i| visit(i, i, Some(block * rows + i))),
            Kind::Shuffle(m, n) => (0..rows).for_each(|i| visit(i, i % n * m + i / n, None)),
            Kind::Select => {
                let positions = &contents[0].positions()[block * columns..][..columns];
                positions.iter().enumerate().for_each(|(j, i)| visit(i - block * rows, j, None));
            }
            Kind::Sparse(each) => {
                let size = each * columns;
                let positions = &contents[0].positions()[block * size..][..size];
                let entry =
                    |(k, i): (usize, &usize)| visit(i - block * rows, k % columns, Some(block * size + k));
                positions.iter().enumerate().for_each(entry);
            }
            Kind::Circulant => {
                for i in 0..rows {
                    (0..rows).for_each(|j| visit(i, j, Some(block * rows + (i + rows - j) % rows)));
                }
            }
            Kind::Toeplitz => {
                let size = rows + columns - 1;
                for i in 0..rows {
                    (0..columns).for_each(|j| visit(i, j, Some(block * size + i + columns - 1 - j)));
                }
            }
            _ => unreachable!("the others are no leaves, or dense"),
        }
    }

    fn dense_numbers<'a>(&self, contents: &'a [Contents], at: At) -> MatRef<'a, f64> {
        let [rows, columns] = self.shape();
        let size = rows * columns;
        MatRef::from_row_major_slice(&contents[0].numbers()[at.block * size..][..size], rows, columns)
    }

    fn leaf_times(&self, contents: &[Contents], at: At, x: &Rows) -> Rows {
        if let Kind::Dense = self.kind() {
            let matrix = self.dense_numbers(contents, at);
            return x.times(if at.transposed { matrix.transpose() } else { matrix });
        }
        let [length, new] = self.extents(at.transposed);
        let numbers = contents.iter().map(Contents::numbers).find(|n| !n.is_empty()).unwrap_or(&[]);
        let mut data = vec![0.0; x.count * new];
        self.entries(contents, at, |i, j, number| {
            let weight = number.map_or(1.0, |n| numbers[n]);
            let (from, to) = if at.transposed { (j, i) } else { (i, j) };
            for (row, out) in x.data.chunks(length).zip(data.chunks_mut(new)) {
                out[to] += row[from] * weight;
            }
        });
        Rows { count: x.count, data }
    }

    fn add_leaf_derivatives(&self, contents: &[Contents], at: At, x: &Rows, g: &Rows, sums: &mut [Vec<f64>]) {
        let [rows, columns] = self.shape();
        if let Kind::Dense = self.kind() {
            let found = dense::product(x.faer().transpose(), g.faer());
            let sums = &mut sums[0][at.block * rows * columns..][..rows * columns];
            sums.iter_mut().enumerate().for_each(|(k, sum)| *sum += found[(k / columns, k % columns)]);
            return;
        }
        let Some(sums) = sums.last_mut() else { return };
        self.entries(contents, at, |i, j, number| {
            let Some(number) = number else { return };
            let products = x.data.chunks(rows).zip(g.data.chunks(columns)).map(|(x, g)| x[i] * g[j]);
            sums[number] += products.sum::<f64>();
        });
    }
}

/// A factor of a Kronecker product, and how many rows lie before and behind its axis.
struct Axis<'a> {
    factor: &'a Structure,
    first: usize,
    contents: &'a [Contents],
    outer: usize,
    inner: usize,
}

/// The place of a tensor among those of a part that begin at `first`.
fn within(only: Option<usize>, first: usize, part: &Structure) -> Option<usize> {
    only.filter(|tensor| (first..first + part.stored_count()).contains(tensor)).map(|tensor| tensor - first)
}

#[cfg(test)]
pub(super) mod tests {
    use margay_tensor::random::Philox;

    use super::*;

    /// One of each kind, and some of several.
    pub(in super::super) fn some() -> [&'static str; 22] {
        [
            "6x4",
            "6x4'",
            "diag(5)",
            "I(3)",
            "shuffle(2x3)",
            "shuffle(2x3)'",
            "select(6x2) · 2x3",
            "4x2 · select(6x2)'",
            "sparse(6x5, 2)",
            "sparse(6x5, 2)'",
            "circulant(5)",
            "circulant(5)'",
            "toeplitz(5x3)",
            "toeplitz(5x3)'",
            "2x3 ⊗ 4x2 ⊗ I(2)",
            "(2x3 ⊗ 4x2) · 6x2 + 8x1 · 1x2",
            "blocks(3, 2x4 · 4x1 + 2x1)",
            "blocks(2, blocks(3, sparse(4x2, 2)))",
            "blocks(2, select(4x2)) ⊗ circulant(3)",
            "blocks(2, diag(3) · toeplitz(3x2))'",
            "(3x2 · 2x4)' ⊗ (2x2 + diag(2))",
            "(I(4) ⊗ 3x5) · shuffle(4x5) · blocks(5, 4x2)",
        ]
    }

    /// A structure drawn at random.
    pub(in super::super) fn drawn(seed: u64) -> Structure {
        let mut draws = Draws { philox: Philox::new(seed, 4), next: 0 };
        let (rows, columns) = (1 + draws.below(6), 1 + draws.below(6));
        draws.structure([rows, columns], 3)
    }

    struct Draws {
        philox: Philox,
        next: u64,
    }

    impl Draws {
        fn below(&mut self, most: usize) -> usize {
            self.next += 1;
            self.philox.block(self.next)[0] as usize % most
        }

        fn structure(&mut self, [rows, columns]: [usize; 2], depth: usize) -> Structure {
            let leaf = depth == 0 || self.below(6) == 0;
            if leaf {
                return match self.below(5) {
                    1 if rows == columns => Structure::diagonal(rows),
                    2 => Structure::sparse(rows, columns, 1 + self.below(rows)),
                    3 if rows == columns => Structure::circulant(rows),
                    3 => Structure::toeplitz(rows, columns),
                    4 if columns <= rows => Structure::select(rows, columns),
                    4 if rows == columns => Structure::identity(rows),
                    _ => Structure::dense(rows, columns),
                }
                .unwrap();
            }
            let divisor = |n: usize| [3, 2].into_iter().find(|d| n.is_multiple_of(*d)).unwrap_or(1);
            match self.below(5) {
                0 => {
                    let inner = 1 + self.below(6);
                    let left = self.structure([rows, inner], depth - 1);
                    Structure::product(vec![left, self.structure([inner, columns], depth - 1)]).unwrap()
                }
                1 => {
                    let terms = (0..2).map(|_| self.structure([rows, columns], depth - 1)).collect();
                    Structure::sum(terms).unwrap()
                }
                2 => {
                    let (m, n) = (divisor(rows), divisor(columns));
                    let first = self.structure([m, n], depth - 1);
                    let second = self.structure([rows / m, columns / n], depth - 1);
                    Structure::kronecker(vec![first, second]).unwrap()
                }
                3 => {
                    let count =
                        [3, 2].into_iter().find(|d| rows.is_multiple_of(*d) && columns.is_multiple_of(*d));
                    let count = count.unwrap_or(1);
                    let of = self.structure([rows / count, columns / count], depth - 1);
                    Structure::blocks(count, of).unwrap()
                }
                _ => self.structure([columns, rows], depth - 1).transposed(),
            }
        }
    }

    pub(in super::super) fn all() -> Vec<Structure> {
        let some = some().into_iter().map(|text| text.parse().unwrap());
        some.chain((0..150).map(drawn)).collect()
    }

    /// By the definition of each kind, entry by entry.
    fn by_definition(s: &Structure, contents: &[Contents], block: usize) -> Matrix {
        let [rows, columns] = s.shape();
        let parts = || with_contents(s.parts(), contents);
        let number = |k: usize, i: usize| contents[k].numbers()[i];
        match s.kind() {
            Kind::Dense => Matrix::from_fn(rows, columns, |i, j| number(0, (block * rows + i) * columns + j)),
            Kind::Diagonal => {
                Matrix::from_fn(rows, rows, |i, j| if i == j { number(0, block * rows + i) } else { 0.0 })
            }
            Kind::Identity => Matrix::from_fn(rows, rows, |i, j| f64::from(i == j)),
            Kind::Shuffle(m, n) => {
                Matrix::from_fn(rows, rows, |i, j| f64::from((i / n, i % n) == (j % m, j / m)))
            }
            Kind::Select => Matrix::from_fn(rows, columns, |i, j| {
                f64::from(contents[0].positions()[block * columns + j] == block * rows + i)
            }),
            Kind::Sparse(each) => Matrix::from_fn(rows, columns, |i, j| {
                let entries = (0..*each).map(|k| (block * each + k) * columns + j);
                entries
                    .filter(|at| contents[0].positions()[*at] == block * rows + i)
                    .map(|at| number(1, at))
                    .sum()
            }),
            Kind::Circulant => {
                Matrix::from_fn(rows, rows, |i, j| number(0, block * rows + (i + rows - j) % rows))
            }
            Kind::Toeplitz => Matrix::from_fn(rows, columns, |i, j| {
                number(0, block * (rows + columns - 1) + i + columns - 1 - j)
            }),
            Kind::Product(_) => parts()
                .map(|(part, _, contents)| by_definition(part, contents, block))
                .reduce(|a, b| a.product(&b).unwrap())
                .unwrap(),
            Kind::Sum(_) => parts()
                .map(|(part, _, contents)| by_definition(part, contents, block))
                .reduce(|a, b| Matrix::from_fn(rows, columns, |i, j| a.at(i, j) + b.at(i, j)))
                .unwrap(),
            Kind::Kronecker(_) => parts()
                .map(|(part, _, contents)| by_definition(part, contents, block))
                .reduce(|a, b| {
                    let [p, r] = [b.rows(), b.columns()];
                    Matrix::from_fn(a.rows() * p, a.columns() * r, |i, j| {
                        a.at(i / p, j / r) * b.at(i % p, j % r)
                    })
                })
                .unwrap(),
            Kind::Blocks(count, of) => {
                let [p, r] = of.shape();
                let all: Vec<Matrix> =
                    (0..*count).map(|i| by_definition(of, contents, block * count + i)).collect();
                Matrix::from_fn(rows, columns, |i, j| match i / p == j / r {
                    true => all[i / p].at(i % p, j % r),
                    false => 0.0,
                })
            }
            Kind::Transpose(of) => by_definition(of, contents, block).transposed(),
        }
    }

    #[test]
    fn rows_are_multiplied_by_the_matrix_of_the_definition() {
        for s in all() {
            let contents = s.random(1, 2);
            let expected = by_definition(&s, &contents, 0);
            let found = s.to_matrix(&contents).unwrap();
            let error = |a: &Matrix, b: &Matrix| {
                let difference = Matrix::from_fn(a.rows(), a.columns(), |i, j| a.at(i, j) - b.at(i, j));
                (difference.squared_norm() / b.squared_norm().max(1e-9)).sqrt()
            };
            assert!(error(&found, &expected) < 1e-12, "{s}");
            let x = crate::random_matrix(crate::Distribution::Gaussian, 5, s.rows(), 7, 1);
            let found = s.apply(&contents, &x).unwrap();
            assert!(error(&found, &x.product(&expected).unwrap()) < 1e-12, "{s}");
        }
    }

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        for s in all() {
            let contents = s.random(1, 2);
            let x = crate::random_matrix(crate::Distribution::Gaussian, 3, s.rows(), 7, 1);
            let g = Rows::of(&crate::random_matrix(crate::Distribution::Gaussian, 3, s.columns(), 7, 2));
            let mut sums: Vec<Vec<f64>> = contents.iter().map(|c| vec![0.0; c.numbers().len()]).collect();
            s.add_derivatives(&contents, At::default(), Rows::of(&x), g.clone(), &mut sums);
            for (k, sums) in sums.iter().enumerate() {
                for (i, found) in sums.iter().enumerate().step_by(3) {
                    let moved = |by: f64| {
                        let mut contents = contents.clone();
                        if let Contents::Numbers(numbers) = &mut contents[k] {
                            numbers[i] += by;
                        }
                        let y = Rows::of(&s.apply(&contents, &x).unwrap());
                        y.data.iter().zip(&g.data).map(|(y, g)| y * g).sum::<f64>()
                    };
                    let expected = (moved(0.5) - moved(-0.5)) / 1.0;
                    assert!(
                        (found - expected).abs() < 1e-9 * (1.0 + expected.abs()),
                        "{s}: {found} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn contents_of_others_are_refused() {
        let s: Structure = "select(6x2) · 2x3".parse().unwrap();
        let right = s.random(1, 1);
        assert!(s.to_matrix(&right).is_ok());
        let wrong = vec![Contents::Positions(vec![1, 6]), right[1].clone()];
        let refused = s.to_matrix(&wrong).unwrap_err().to_string();
        assert_eq!(refused, "the contents are not those of `select(6x2) · 2x3`");
        assert!(s.to_matrix(&right[..1]).is_err());
        assert!(s.apply(&right, &Matrix::from_fn(2, 5, |_, _| 1.0)).is_err());
    }
}
