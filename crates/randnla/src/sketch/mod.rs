//! Sketching matrices as values.
//!
//! A [`Sketch`] is a random matrix `S` of `rows x columns`, usually with far fewer rows than columns, named by its
//! [`Law`], shape, seed and stream. It holds no numbers: every entry is a function of these, so any block is made alone,
//! with the same bits however the matrix is cut, in any order, on any thread. Products with it make what they need of it
//! in pieces.
//!
//! Unless [`unscaled`](Sketch::unscaled), every law is scaled so that `E Sᵀ S = I`: squared norms of vectors are kept on
//! average. How closely a subspace is embedded, by law and size, is in `docs/randnla.md`.

mod apply;
mod entries;
mod gather;
mod signed;
mod srht;

use std::ops::Range;
use std::sync::Arc;

use margay_tensor::random::{Philox, below};

use crate::view::check_window;
use crate::{Distribution, Matrix, RandnlaError, Scalar};

/// How the entries of a sketch are distributed. `d` is the number of rows and `n` that of columns.
#[derive(Clone, Debug, PartialEq)]
pub enum Law {
    /// Independent entries of variance `1 / d`.
    Dense(Distribution),
    /// `nonzeros` entries `±1 / √nonzeros` in each column, in different rows: the sparse Johnson–Lindenstrauss transform
    /// (Kane and Nelson, *Sparser Johnson–Lindenstrauss transforms*, JACM 2014), also called OSNAP or a short-axis sparse
    /// operator. With one entry it is the CountSketch (Charikar, Chen and Farach-Colton, 2002).
    Sjlt {
        /// Entries in each column, 1 to `d`.
        nonzeros: usize,
    },
    /// In each row the sum of `nonzeros` unit vectors with random signs, drawn with replacement, each divided by
    /// `√(d · nonzeros · pᵢ)`: LESS embeddings (Dereziński, Liao, Dobriban and Mahoney, *Sparse sketches with small
    /// inversion bias*, COLT 2021), also called a long-axis sparse operator where the draw is uniform.
    Less {
        /// Draws for each row, at least 1.
        nonzeros: usize,
        /// Which column a draw hits.
        draw: Draw,
    },
    /// `√(1 / d) · R H D`: random signs `D`, the Walsh–Hadamard matrix `H` of the next power of two, and `d` of its rows
    /// without replacement (Ailon and Chazelle 2009; Tropp, *Improved analysis of the subsampled randomized Hadamard
    /// transform*, 2011). A product costs `O(log n)` operations per entry.
    Srht,
    /// In each row one entry `1 / √(d pᵢ)`: rows of the operand drawn with replacement.
    Rows(Draw),
    /// A CountSketch of the Kronecker product of vectors of these extents, whose rows and signs are sums and products of
    /// those of one CountSketch for each factor (Pham and Pagh, *Fast and scalable polynomial kernels via explicit
    /// feature maps*, KDD 2013). The last factor varies fastest.
    Tensor {
        /// Extents of the factors; their product is `n`.
        extents: Vec<usize>,
    },
}

/// The distribution of an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Running sums of probabilities, the last 1; `None` for the uniform distribution.
    sums: Option<Arc<[f64]>>,
}

impl Draw {
    /// Every index with the same probability.
    pub const UNIFORM: Draw = Draw { sums: None };

    /// Index `i` with a probability proportional to `weights[i]`: leverage scores, squared norms.
    ///
    /// # Errors
    /// [`RandnlaError::Parameter`] for a weight that is negative or not finite, or if all are 0.
    pub fn weighted(weights: &[f64]) -> Result<Draw, RandnlaError> {
        let wrong = |found| RandnlaError::Parameter {
            name: "weights",
            expected: "finite numbers of at least 0, not all 0",
            found,
        };
        let mut total = 0.0;
        let mut sums: Vec<f64> = Vec::with_capacity(weights.len());
        for &w in weights {
            if !(w.is_finite() && w >= 0.0) {
                return Err(wrong(w));
            }
            total += w;
            sums.push(total);
        }
        if !(total.is_finite() && total > 0.0) {
            return Err(wrong(total));
        }
        sums.iter_mut().for_each(|s| *s /= total);
        Ok(Draw { sums: Some(sums.into()) })
    }

    /// The index below `n` that 64 random bits stand for, and its probability.
    pub(crate) fn index(&self, bits: u64, n: usize) -> (usize, f64) {
        match &self.sums {
            None => (below(bits, n), 1.0 / n as f64),
            Some(sums) => {
                let u = (bits >> 11) as f64 / (1u64 << 53) as f64;
                let i = sums.partition_point(|s| *s <= u).min(sums.len() - 1);
                (i, sums[i] - if i == 0 { 0.0 } else { sums[i - 1] })
            }
        }
    }
}

/// A sketching matrix `S`, `rows x columns`, named by its [`Law`], shape, seed and stream.
///
/// It holds no numbers: every entry is a function of these, so any block is made alone, with the same bits however the
/// matrix is cut, in any order, on any thread. Unless [`unscaled`](Sketch::unscaled), it is scaled so that `E Sᵀ S = I`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    kind: Kind,
    /// The part of the whole matrix that this is.
    rows: Range<usize>,
    columns: Range<usize>,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Single(Single),
    Kronecker(Box<[Sketch; 2]>),
    /// Parts one below the other, times numbers.
    Stacked(Vec<(f64, Sketch)>),
}

/// A whole matrix with one law.
#[derive(Clone, Debug, PartialEq)]
struct Single {
    law: Law,
    rows: usize,
    columns: usize,
    seed: u64,
    stream: u64,
    scaled: bool,
}

impl Single {
    fn philox(&self) -> Philox {
        Philox::new(self.seed, self.stream)
    }

    /// What entries of the unscaled law are multiplied by.
    fn scale(&self) -> f64 {
        let root = |v: usize| 1.0 / (v as f64).sqrt();
        match &self.law {
            _ if !self.scaled => 1.0,
            Law::Dense(_) | Law::Srht | Law::Rows(_) => root(self.rows),
            Law::Sjlt { nonzeros } => root(*nonzeros),
            Law::Less { nonzeros, .. } => root(self.rows) * root(*nonzeros),
            Law::Tensor { .. } => 1.0,
        }
    }
}

impl Sketch {
    /// The sketch of `rows x columns` with this law, drawn from the stream of random numbers that `seed` and `stream`
    /// name. Different seeds or streams give independent matrices.
    ///
    /// # Errors
    /// [`RandnlaError::Empty`] without rows or columns; [`RandnlaError::Parameter`] for more nonzeros than fit, or 0;
    /// [`RandnlaError::Length`] for as many weights, or a product of extents, other than `columns`; and
    /// [`RandnlaError::Rank`] for an SRHT of more rows than the power of two that `columns` is padded to.
    pub fn new(
        law: Law,
        rows: usize,
        columns: usize,
        seed: u64,
        stream: u64,
    ) -> Result<Sketch, RandnlaError> {
        if rows == 0 || columns == 0 {
            return Err(RandnlaError::Empty { what: "the sketch", rows, columns });
        }
        let wrong = |expected, found: usize| {
            Err(RandnlaError::Parameter { name: "nonzeros", expected, found: found as f64 })
        };
        match &law {
            Law::Sjlt { nonzeros } if *nonzeros == 0 || *nonzeros > rows => {
                return wrong("1 to the number of rows", *nonzeros);
            }
            Law::Less { nonzeros: 0, .. } => return wrong("at least 1", 0),
            Law::Srht => {
                let max = columns.checked_next_power_of_two().unwrap_or(usize::MAX);
                if rows > max {
                    return Err(RandnlaError::Rank { max, found: rows });
                }
            }
            Law::Tensor { extents } => {
                let product = extents.iter().try_fold(1usize, |n, e| n.checked_mul(*e));
                let found = product.unwrap_or(usize::MAX);
                if found != columns {
                    let what = "the product of the extents";
                    return Err(RandnlaError::Length { what, expected: columns, found });
                }
            }
            Law::Sjlt { .. } | Law::Less { .. } | Law::Dense(_) | Law::Rows(_) => {}
        }
        if let Law::Less { draw, .. } | Law::Rows(draw) = &law {
            let found = draw.sums.as_ref().map_or(columns, |sums| sums.len());
            if found != columns {
                let what = "the list of weights";
                return Err(RandnlaError::Length { what, expected: columns, found });
            }
        }
        let single = Single { law, rows, columns, seed, stream, scaled: true };
        Ok(Sketch { kind: Kind::Single(single), rows: 0..rows, columns: 0..columns })
    }

    /// The Kronecker product `a ⊗ b`: row `(i, k)` and column `(j, l)`, the second varying fastest, hold `aᵢⱼ bₖₗ`. A
    /// product with it works on one mode after the other.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] if the product has more rows or columns than can be counted.
    pub fn kronecker(a: Sketch, b: Sketch) -> Result<Sketch, RandnlaError> {
        let what = "a Kronecker product";
        let overflow = RandnlaError::Length { what, expected: usize::MAX, found: usize::MAX };
        let rows = a.rows().checked_mul(b.rows()).ok_or(overflow.clone())?;
        let columns = a.columns().checked_mul(b.columns()).ok_or(overflow)?;
        Ok(Sketch { kind: Kind::Kronecker(Box::new([a, b])), rows: 0..rows, columns: 0..columns })
    }

    /// Sketches of the same columns one below the other, each times its weight. Weights are divided by the root of the
    /// sum of their squares, so that `E Sᵀ S = I` if it is so for each part.
    ///
    /// # Errors
    /// [`RandnlaError::Empty`] without parts, [`RandnlaError::Shape`] if their columns differ, and
    /// [`RandnlaError::Parameter`] for weights that are not finite or all 0.
    pub fn stacked(parts: Vec<(f64, Sketch)>) -> Result<Sketch, RandnlaError> {
        let Some(columns) = parts.first().map(|(_, s)| s.columns()) else {
            return Err(RandnlaError::Empty { what: "the stack", rows: 0, columns: 0 });
        };
        for (_, part) in &parts {
            if part.columns() != columns {
                let (expected, found) = ((part.rows(), columns), (part.rows(), part.columns()));
                return Err(RandnlaError::Shape { what: "a part of the stack", expected, found });
            }
        }
        let norm = parts.iter().map(|(w, _)| w * w).sum::<f64>().sqrt();
        if !(norm.is_finite() && norm > 0.0) {
            let expected = "finite numbers, not all 0";
            return Err(RandnlaError::Parameter { name: "weights", expected, found: norm });
        }
        let rows = parts.iter().map(|(_, s)| s.rows()).sum();
        let parts = parts.into_iter().map(|(w, s)| (w / norm, s)).collect();
        Ok(Sketch { kind: Kind::Stacked(parts), rows: 0..rows, columns: 0..columns })
    }

    /// The same sketch without the factor that makes it isometric on average: entries of variance 1, `±1`, or sums of
    /// them. Those of weighted draws are divided by `√(n pᵢ)`. Parts of a product or stack are taken as they are.
    pub fn unscaled(mut self) -> Sketch {
        if let Kind::Single(single) = &mut self.kind {
            single.scaled = false;
        }
        self
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns.len()
    }

    /// The block of these rows and columns, as a sketch of its own: its entries are those of the whole.
    ///
    /// # Errors
    /// [`RandnlaError::Window`] if they do not exist.
    pub fn window(&self, rows: Range<usize>, columns: Range<usize>) -> Result<Sketch, RandnlaError> {
        check_window(&rows, self.rows())?;
        check_window(&columns, self.columns())?;
        Ok(self.part(rows, columns))
    }

    fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Sketch {
        Sketch {
            kind: self.kind.clone(),
            rows: self.rows.start + rows.start..self.rows.start + rows.end,
            columns: self.columns.start + columns.start..self.columns.start + columns.end,
        }
    }

    /// The mean square of an entry.
    pub(crate) fn entry_variance(&self) -> f64 {
        match &self.kind {
            Kind::Single(single) if single.scaled => 1.0 / single.rows as f64,
            Kind::Single(single) => {
                let scale = Single { scaled: true, ..single.clone() }.scale();
                1.0 / (single.rows as f64 * scale * scale)
            }
            Kind::Kronecker(factors) => factors.iter().map(Sketch::entry_variance).product(),
            Kind::Stacked(parts) => {
                let whole: f64 =
                    parts.iter().map(|(w, s)| w * w * s.entry_variance() * s.rows() as f64).sum();
                whole / parts.iter().map(|(_, s)| s.rows() as f64).sum::<f64>()
            }
        }
    }

    /// All entries.
    pub fn to_matrix<T: Scalar>(&self) -> Matrix<T> {
        Matrix::new(self.dense(0..self.columns()))
    }
}
