//! What can go wrong in a factorization.

/// A matrix cannot be factored, or a sample not be used, as asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RandnlaError {
    /// A number is NaN or infinite (the fault of the data).
    #[error("{what} is not finite: expected a number at row {row}, column {column}, found {value}")]
    NonFinite {
        /// The matrix or sample.
        what: &'static str,
        /// Row of the first such number.
        row: usize,
        /// Its column.
        column: usize,
        /// NaN or an infinity.
        value: f64,
    },
    /// A matrix has another shape than it must have here (the caller's fault).
    #[error(
        "{what} has the wrong shape: expected {} x {}, found {} x {}",
        expected.0, expected.1, found.0, found.1
    )]
    Shape {
        /// The matrix.
        what: &'static str,
        /// Rows and columns it must have.
        expected: (usize, usize),
        /// Rows and columns it has.
        found: (usize, usize),
    },
    /// A slice has another length than it must have here (the caller's fault).
    #[error("{what} has the wrong length: expected {expected}, found {found}")]
    Length {
        /// The slice.
        what: &'static str,
        /// Elements it must have; `usize::MAX` when that number overflows.
        expected: usize,
        /// Elements it has.
        found: usize,
    },
    /// A matrix without rows or columns was to be factored (the caller's fault).
    #[error("{what} is empty: expected rows and columns, found {rows} x {columns}")]
    Empty {
        /// The matrix.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
    /// A mean or covariance was asked of a sample without rows (the caller's fault).
    #[error("the sample is empty: expected at least 1 row of length {dim}, found 0")]
    EmptySample {
        /// Length of a row.
        dim: usize,
    },
    /// The arrays of a sparse matrix do not fit together (the caller's fault).
    #[error("{what} of a sparse matrix is out of order or range: expected less than {limit}, found {found}")]
    Structure {
        /// The number that is wrong.
        what: &'static str,
        /// What it must be below.
        limit: usize,
        /// The number.
        found: usize,
    },
    /// A range of rows or columns does not exist (the caller's fault).
    #[error("the range {start}..{end} is not in 0..{extent}")]
    Window {
        /// Its start.
        start: usize,
        /// Its end.
        end: usize,
        /// Rows or columns there are.
        extent: usize,
    },
    /// Columns that must be linearly independent are dependent to rounding (the fault of the data).
    #[error("the {columns} columns are linearly dependent: expected full column rank")]
    Dependent {
        /// How many columns there are.
        columns: usize,
    },
    /// A matrix that must be positive semidefinite is not (the fault of the data).
    #[error("the matrix is not positive semidefinite: expected no negative pivot, found {found}")]
    Indefinite {
        /// The pivot.
        found: f64,
    },
    /// The rank asked for is not available (the caller's fault).
    #[error("rank is out of range: expected 1 to {max}, found {found}")]
    Rank {
        /// The greatest rank available.
        max: usize,
        /// The rank asked for.
        found: usize,
    },
    /// A parameter is outside its range (the caller's fault).
    #[error("parameter `{name}` is out of range: expected {expected}, found {found}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value given.
        found: f64,
    },
    /// A structured matrix has parts that do not fit, or a text is none of one (the caller's fault).
    #[error("{0}")]
    Algebra(String),
    /// An iteration of the linear algebra library did not converge (nobody's fault; finite input makes it
    /// all but impossible).
    #[error("the {what} of a {rows} x {columns} matrix did not converge")]
    NoConvergence {
        /// The decomposition.
        what: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
}
