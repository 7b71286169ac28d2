//! An algebra of structured matrices: what a weight consists of, as an expression over factors.
//!
//! A [`Structure`] is an expression such as `(16x4 ⊗ 64x8) + 1024x8 · 8x512`. It has a shape and holds no numbers: those of its
//! factors are [`Contents`], one for each [`Stored`] tensor, in the order of the text. Rows `x` are multiplied by a structure
//! from the left to the right, `x A B`, and by a Kronecker product one axis after the other, so that the matrix as a whole is
//! never made. Structures compose as in CoLA (Potapczynski, Finzi, Pleiss and Wilson, arXiv 2309.03060).
//!
//! - `text`: the text form.
//! - `rules`: equal structures that are simpler.
//! - `product`: products of rows and structures, and derivatives.
//! - `fit`: contents for a matrix that is given.
//!
//! Deliberately absent: inverses, decompositions, and blocks of different structures.

mod fit;
mod product;
mod rules;
mod text;

pub use fit::StructureOptions;

use crate::RandnlaError;

/// A structured matrix, as an expression whose shapes fit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Structure {
    kind: Kind,
    rows: usize,
    columns: usize,
    /// As it is, and transposed.
    operations: [u128; 2],
}

/// What a structure is made of.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A matrix of numbers of its own.
    Dense,
    /// A diagonal of numbers.
    Diagonal,
    /// The identity.
    Identity,
    /// The permutation that reads the row as a matrix of as many rows and columns, and transposes it.
    Shuffle(usize, usize),
    /// Some of the inputs, in the order of their positions: one 1 in each column.
    Select,
    /// So many entries in each column, each with its position.
    Sparse(usize),
    /// `W[i, j] = w[(i - j) mod n]`.
    Circulant,
    /// `W[i, j] = w[i - j + columns - 1]`.
    Toeplitz,
    /// A product, applied from the left to the right.
    Product(Vec<Structure>),
    /// A sum.
    Sum(Vec<Structure>),
    /// A Kronecker product: the row is a tensor with an axis for each factor.
    Kronecker(Vec<Structure>),
    /// A block-diagonal matrix of so many blocks of one structure, each with numbers of its own.
    Blocks(usize, Box<Structure>),
    /// A transposed structure.
    Transpose(Box<Structure>),
}

/// A tensor that a structure stores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stored {
    /// Numbers of this shape; factors in blocks have an axis for the blocks in front.
    Numbers(Vec<usize>),
    /// Positions: how many, and the number that all are below. Those in blocks count the inputs of all blocks.
    Positions {
        /// How many.
        count: usize,
        /// All are below it.
        below: usize,
    },
}

/// What a stored tensor holds.
#[derive(Clone, PartialEq, Debug)]
pub enum Contents {
    /// Row by row.
    Numbers(Vec<f64>),
    /// Positions.
    Positions(Vec<usize>),
}

impl Stored {
    /// How many elements it has.
    pub fn count(&self) -> usize {
        match self {
            Stored::Numbers(shape) => shape.iter().fold(1, |n, extent| n.saturating_mul(*extent)),
            Stored::Positions { count, .. } => *count,
        }
    }
}

impl Contents {
    /// The numbers; none for positions.
    pub fn numbers(&self) -> &[f64] {
        match self {
            Contents::Numbers(numbers) => numbers,
            Contents::Positions(_) => &[],
        }
    }

    /// The positions; none for numbers.
    pub fn positions(&self) -> &[usize] {
        match self {
            Contents::Numbers(_) => &[],
            Contents::Positions(positions) => positions,
        }
    }
}

/// The greatest extent of a structure.
const MOST: usize = 1 << 31;

fn refused<T>(message: String) -> Result<T, RandnlaError> {
    Err(RandnlaError::Algebra(message))
}

impl Structure {
    fn of(kind: Kind, rows: usize, columns: usize) -> Result<Structure, RandnlaError> {
        match (1..=MOST).contains(&rows) && (1..=MOST).contains(&columns) {
            true => {
                let operations = [false, true].map(|t| operations(&kind, [rows, columns], t));
                Ok(Structure { kind, rows, columns, operations })
            }
            false => refused(format!("a matrix of {rows} x {columns}, expected extents from 1 to {MOST}")),
        }
    }

    /// A matrix of numbers.
    ///
    /// # Errors
    /// [`RandnlaError::Algebra`] for an extent that is 0 or above 2³¹; so do all that make structures.
    pub fn dense(rows: usize, columns: usize) -> Result<Structure, RandnlaError> {
        Structure::of(Kind::Dense, rows, columns)
    }

    /// A diagonal.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense).
    pub fn diagonal(size: usize) -> Result<Structure, RandnlaError> {
        Structure::of(Kind::Diagonal, size, size)
    }

    /// The identity.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense).
    pub fn identity(size: usize) -> Result<Structure, RandnlaError> {
        Structure::of(Kind::Identity, size, size)
    }

    /// The permutation that reads a row as a matrix of this shape, row by row, and transposes it.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense).
    pub fn shuffle(rows: usize, columns: usize) -> Result<Structure, RandnlaError> {
        let size = rows.saturating_mul(columns);
        Structure::of(Kind::Shuffle(rows, columns), size, size)
    }

    /// So many of the inputs.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense), and for more than there are.
    pub fn select(from: usize, count: usize) -> Result<Structure, RandnlaError> {
        match count <= from {
            true => Structure::of(Kind::Select, from, count),
            false => refused(format!("{count} of {from} are selected")),
        }
    }

    /// So many entries in each column.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense), and for more entries than rows or none.
    pub fn sparse(rows: usize, columns: usize, each: usize) -> Result<Structure, RandnlaError> {
        match (1..=rows).contains(&each) {
            true => Structure::of(Kind::Sparse(each), rows, columns),
            false => refused(format!("{each} entries in a column of {rows}, expected 1 to {rows}")),
        }
    }

    /// A circulant matrix.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense).
    pub fn circulant(size: usize) -> Result<Structure, RandnlaError> {
        Structure::of(Kind::Circulant, size, size)
    }

    /// A Toeplitz matrix.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense).
    pub fn toeplitz(rows: usize, columns: usize) -> Result<Structure, RandnlaError> {
        Structure::of(Kind::Toeplitz, rows, columns)
    }

    /// A product; of one factor, that factor.
    ///
    /// # Errors
    /// [`RandnlaError::Algebra`] for factors that do not fit, and none.
    pub fn product(mut factors: Vec<Structure>) -> Result<Structure, RandnlaError> {
        if factors.len() == 1 {
            return Ok(factors.remove(0));
        }
        for pair in factors.windows(2) {
            let (columns, rows) = (pair[0].columns, pair[1].rows);
            if columns != rows {
                return refused(format!(
                    "`{}` has {columns} columns and `{}` behind it {rows} rows",
                    pair[0], pair[1]
                ));
            }
        }
        match (factors.first(), factors.last()) {
            (Some(first), Some(last)) => {
                let (rows, columns) = (first.rows, last.columns);
                Structure::of(Kind::Product(factors), rows, columns)
            }
            _ => refused("a product of nothing".to_owned()),
        }
    }

    /// A sum; of one term, that term.
    ///
    /// # Errors
    /// [`RandnlaError::Algebra`] for terms of different shapes, and none.
    pub fn sum(mut terms: Vec<Structure>) -> Result<Structure, RandnlaError> {
        if terms.len() == 1 {
            return Ok(terms.remove(0));
        }
        let Some([rows, columns]) = terms.first().map(Structure::shape) else {
            return refused("a sum of nothing".to_owned());
        };
        match terms.iter().find(|term| term.shape() != [rows, columns]) {
            None => Structure::of(Kind::Sum(terms), rows, columns),
            Some(other) => refused(format!(
                "`{}` is {rows} x {columns} and `{other}` beside it {} x {}",
                terms[0], other.rows, other.columns
            )),
        }
    }

    /// A Kronecker product; of one factor, that factor.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense), and for none.
    pub fn kronecker(mut factors: Vec<Structure>) -> Result<Structure, RandnlaError> {
        if factors.len() == 1 {
            return Ok(factors.remove(0));
        }
        if factors.is_empty() {
            return refused("a Kronecker product of nothing".to_owned());
        }
        let product =
            |of: fn(&Structure) -> usize| factors.iter().map(of).fold(1usize, usize::saturating_mul);
        let (rows, columns) = (product(|f| f.rows), product(|f| f.columns));
        Structure::of(Kind::Kronecker(factors), rows, columns)
    }

    /// A block-diagonal matrix.
    ///
    /// # Errors
    /// As [`dense`](Structure::dense).
    pub fn blocks(count: usize, of: Structure) -> Result<Structure, RandnlaError> {
        let (rows, columns) = (of.rows.saturating_mul(count), of.columns.saturating_mul(count));
        Structure::of(Kind::Blocks(count, Box::new(of)), rows, columns)
    }

    /// The transpose.
    #[must_use]
    pub fn transposed(self) -> Structure {
        let (rows, columns, [as_it_is, transposed]) = (self.columns, self.rows, self.operations);
        let operations = [transposed, as_it_is];
        Structure { kind: Kind::Transpose(Box::new(self)), rows, columns, operations }
    }

    /// What it is made of.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Number of rows: the length of the rows that it multiplies.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The length of the rows that it multiplies, transposed or not, and of what comes of them.
    pub fn extents(&self, transposed: bool) -> [usize; 2] {
        if transposed { [self.columns, self.rows] } else { [self.rows, self.columns] }
    }

    /// The parts of a product, a sum, a Kronecker product, blocks or a transpose; none of anything else.
    pub fn parts(&self) -> &[Structure] {
        match &self.kind {
            Kind::Product(parts) | Kind::Sum(parts) | Kind::Kronecker(parts) => parts,
            Kind::Blocks(_, of) | Kind::Transpose(of) => std::slice::from_ref(of),
            _ => &[],
        }
    }

    /// What it stores, in the order of its text.
    pub fn stored(&self) -> Vec<Stored> {
        let mut found = Vec::new();
        self.add_stored(1, &mut found);
        found
    }

    fn add_stored(&self, copies: usize, found: &mut Vec<Stored>) {
        let (rows, columns) = (self.rows, self.columns);
        let numbers = |shape: &[usize]| {
            let blocks = (copies > 1).then_some(copies);
            Stored::Numbers(blocks.into_iter().chain(shape.iter().copied()).collect())
        };
        let flat = |each: usize| Stored::Numbers(vec![copies.saturating_mul(each)]);
        let positions = |each: usize| Stored::Positions {
            count: copies.saturating_mul(each),
            below: copies.saturating_mul(rows),
        };
        match &self.kind {
            Kind::Dense => found.push(numbers(&[rows, columns])),
            Kind::Diagonal | Kind::Circulant => found.push(flat(rows)),
            Kind::Identity | Kind::Shuffle(..) => {}
            Kind::Select => found.push(positions(columns)),
            Kind::Sparse(each) => {
                found.push(positions(each.saturating_mul(columns)));
                found.push(numbers(&[*each, columns]));
            }
            Kind::Toeplitz => found.push(flat(rows + columns - 1)),
            Kind::Blocks(count, of) => of.add_stored(copies.saturating_mul(*count), found),
            _ => self.parts().iter().for_each(|part| part.add_stored(copies, found)),
        }
    }

    /// How many tensors it stores.
    pub fn stored_count(&self) -> usize {
        match &self.kind {
            Kind::Identity | Kind::Shuffle(..) => 0,
            Kind::Sparse(_) => 2,
            _ if self.parts().is_empty() => 1,
            _ => self.parts().iter().map(Structure::stored_count).sum(),
        }
    }

    /// How many numbers it stores, positions included.
    pub fn numbers(&self) -> usize {
        self.stored().iter().map(Stored::count).fold(0, usize::saturating_add)
    }

    /// Multiplications of a row, and additions of sums. Toeplitz and circulant matrices are applied as convolutions, which
    /// multiply as often as a dense matrix does, or more.
    pub fn operations(&self) -> u128 {
        self.operations[0]
    }

    /// The order in which the axes of a Kronecker product, transposed or not, are multiplied with the fewest operations: those that shrink most
    /// for their operations first. Exchanging two neighbours shows that no order takes fewer.
    pub fn order(&self, transposed: bool) -> Vec<usize> {
        match &self.kind {
            Kind::Kronecker(factors) => order(factors, transposed),
            _ => Vec::new(),
        }
    }
}

fn operations(kind: &Kind, [rows, columns]: [usize; 2], transposed: bool) -> u128 {
    let [length, new] = if transposed { [columns, rows] } else { [rows, columns] }.map(|e| e as u128);
    let of = |part: &Structure| part.operations[usize::from(transposed)];
    let all = |parts: &[Structure]| parts.iter().fold(0u128, |sum, part| sum.saturating_add(of(part)));
    match kind {
        Kind::Dense | Kind::Circulant => length * new,
        Kind::Diagonal => length,
        Kind::Identity | Kind::Shuffle(..) | Kind::Select => 0,
        Kind::Sparse(each) => *each as u128 * columns as u128,
        Kind::Toeplitz => new * (length + new - 1),
        Kind::Product(factors) => all(factors),
        Kind::Sum(terms) => all(terms).saturating_add((terms.len() as u128 - 1) * new),
        Kind::Kronecker(factors) => {
            let (mut others, mut total) = (length, 0u128);
            for at in order(factors, transposed) {
                let factor = &factors[at];
                let [length, new] = factor.extents(transposed).map(|e| e as u128);
                others /= length;
                total = total.saturating_add(others.saturating_mul(of(factor)));
                others = others.saturating_mul(new);
            }
            total
        }
        Kind::Blocks(count, part) => of(part).saturating_mul(*count as u128),
        Kind::Transpose(part) => part.operations[usize::from(!transposed)],
    }
}

/// The order of the axes of a Kronecker product.
fn order(factors: &[Structure], transposed: bool) -> Vec<usize> {
    let cost = |f: &Structure| {
        let [length, new] = f.extents(transposed).map(|e| e as i128);
        (length - new, f.operations[usize::from(transposed)].clamp(1, 1 << 62) as i128)
    };
    let mut order: Vec<usize> = (0..factors.len()).collect();
    // `f` is before `g` where (r_f - c_f) / o_f is above (r_g - c_g) / o_g.
    order.sort_by(|f, g| {
        let ((shrinks_f, f), (shrinks_g, g)) = (cost(&factors[*f]), cost(&factors[*g]));
        (shrinks_g * f).cmp(&(shrinks_f * g))
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Structure {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn shapes_numbers_and_operations_follow_from_the_factors() {
        for (text, shape, numbers, operations) in [
            ("16x4", [16, 4], 64, 64),
            ("16x4'", [4, 16], 64, 64),
            ("diag(7)", [7, 7], 7, 7),
            ("I(5)", [5, 5], 0, 0),
            ("shuffle(2x3)", [6, 6], 0, 0),
            ("select(9x4) · 4x3", [9, 3], 4 + 12, 12),
            ("sparse(9x5, 2)", [9, 5], 20, 10),
            ("circulant(6)", [6, 6], 6, 36),
            ("toeplitz(6x4)", [6, 4], 9, 36),
            ("8x2 · 2x8 + diag(8)", [8, 8], 40, 32 + 8 + 8),
            // Of 4 axes of 16 rows, then of 8 of 4 columns.
            ("16x4 ⊗ 4x8", [64, 32], 64 + 32, 4 * 64 + 4 * 32),
            ("blocks(3, 4x2 · 2x5)", [12, 15], 3 * 18, 3 * 18),
            ("blocks(3, sparse(4x2, 1))", [12, 6], 12, 6),
        ] {
            let found = read(text);
            assert_eq!(found.shape(), shape, "{text}");
            assert_eq!(found.numbers(), numbers, "{text}");
            assert_eq!(found.operations(), operations, "{text}");
            assert_eq!(found.stored().len(), found.stored_count(), "{text}");
        }
    }

    /// Against all orders of three axes.
    #[test]
    fn axes_are_multiplied_in_the_cheapest_order() {
        for text in ["16x4 ⊗ 4x8 ⊗ 3x3", "2x9 ⊗ 9x2 ⊗ 5x6", "4x5 ⊗ 5x4 ⊗ I(3)", "7x7 ⊗ 2x3 ⊗ 3x2"]
        {
            let found = read(text);
            let factors = found.parts();
            let cost = |order: [usize; 3]| {
                let mut extents: Vec<u128> = factors.iter().map(|f| f.rows as u128).collect();
                let mut total = 0;
                for at in order {
                    let others: u128 = (0..3).filter(|i| *i != at).map(|i| extents[i]).product();
                    total += others * factors[at].operations();
                    extents[at] = factors[at].columns as u128;
                }
                total
            };
            let all = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
            assert_eq!(found.operations(), all.into_iter().map(cost).min().unwrap(), "{text}");
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        for (text, why) in [
            ("16x4 · 5x8", "`16x4` has 4 columns and `5x8` behind it 5 rows"),
            ("16x4 + 4x16", "`16x4` is 16 x 4 and `4x16` beside it 4 x 16"),
            ("select(3x4)", "4 of 3 are selected"),
            ("sparse(3x4, 4)", "4 entries in a column of 3, expected 1 to 3"),
            ("0x4", "a matrix of 0 x 4, expected extents from 1 to 2147483648"),
            (
                "3000000x4 ⊗ 3000000x4",
                "a matrix of 9000000000000 x 16, expected extents from 1 to 2147483648",
            ),
        ] {
            assert_eq!(text.parse::<Structure>().unwrap_err().to_string(), why);
        }
    }
}
