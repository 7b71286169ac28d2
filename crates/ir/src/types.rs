//! Tensor types and the type rules that several operators share.

use std::fmt;

use margay_tensor::{Binding, DType, Dim, MAX_TERMS, Shape, Tensor};
use smallvec::SmallVec;

/// The type of a value: element type and extents.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Shape,
}

/// The types of the outputs of a node.
pub type Types = SmallVec<[TensorType; 1]>;

impl TensorType {
    /// A type with symbolic extents.
    pub fn new(dtype: DType, shape: Shape) -> TensorType {
        TensorType { dtype, shape }
    }

    /// A type with known extents.
    pub fn known(dtype: DType, shape: &[usize]) -> TensorType {
        TensorType { dtype, shape: margay_tensor::shape_of(shape) }
    }

    /// The type of a host tensor.
    pub fn of(tensor: &Tensor) -> TensorType {
        TensorType::known(tensor.dtype(), tensor.shape())
    }

    /// Number of axes.
    pub fn ndim(&self) -> usize {
        self.shape.len()
    }

    /// The extents, if all are known.
    pub fn extents(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(Dim::as_extent).collect()
    }

    /// The number of elements.
    pub fn elements(&self) -> Dim {
        self.shape.iter().fold(Dim::from(1usize), |n, d| &n * d)
    }

    /// An error for an extent below 0, and where the number of elements, multiplied out, would be a sum of more than
    /// [`MAX_TERMS`] products.
    pub(crate) fn check_extents(&self) -> Result<(), TypeError> {
        if let Some(extent) = self.shape.iter().filter_map(Dim::as_const).find(|&v| v < 0) {
            return Err(TypeError::attribute(format!("expected extents of at least 0, found {extent}")));
        }
        let terms = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(d.count_terms().max(1)));
        match terms.filter(|&n| n <= MAX_TERMS) {
            Some(_) => Ok(()),
            None => Err(TypeError::attribute(format!(
                "the number of elements of a tensor with {} axes is a sum of more than {MAX_TERMS} products",
                self.ndim()
            ))),
        }
    }

    /// The type with symbols replaced by their values.
    #[must_use]
    pub fn bind(&self, binding: &Binding) -> TensorType {
        TensorType::new(self.dtype, self.shape.iter().map(|d| d.substitute(binding)).collect())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        if self.shape.is_empty() {
            return Ok(());
        }
        write!(f, "{}", ShapeText(&self.shape))
    }
}

/// Prints a shape as `[B, S, 384]`.
pub struct ShapeText<'a>(pub &'a [Dim]);

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// Inputs an operator does not accept (the model's fault, or the pass's that built the node).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TypeError {
    /// Wrong number of inputs.
    #[error("expected {expected} inputs, found {found}")]
    Arity {
        /// What the operator takes, in words.
        expected: &'static str,
        /// Number given.
        found: usize,
    },
    /// Wrong element type.
    #[error("input {input} is {found}, expected {expected}")]
    DType {
        /// Position of the input.
        input: usize,
        /// What the operator takes, in words.
        expected: String,
        /// The type given.
        found: DType,
    },
    /// Wrong number of axes.
    #[error("input {input} has {found} axes, expected {expected}")]
    Ndim {
        /// Position of the input.
        input: usize,
        /// What the operator takes, in words.
        expected: String,
        /// Number given.
        found: usize,
    },
    /// Two extents that must be equal are not, or are not known to be.
    #[error("{what}: extents `{left}` and `{right}` differ or are not known to be equal")]
    Extent {
        /// Which extents.
        what: String,
        /// One.
        left: Dim,
        /// The other.
        right: Dim,
    },
    /// Two extents that broadcast against each other are not equal, nor is one of them 1, or neither is known.
    #[error("axis {axis} of a broadcast: extents `{left}` and `{right}` differ or are not known to be equal")]
    Broadcast {
        /// Axis of the result.
        axis: usize,
        /// One.
        left: Dim,
        /// The other.
        right: Dim,
    },
    /// An attribute does not fit the inputs.
    #[error("{0}")]
    Attribute(String),
}

impl TypeError {
    /// An attribute does not fit the inputs.
    pub fn attribute(message: impl Into<String>) -> TypeError {
        TypeError::Attribute(message.into())
    }
}

/// One output.
pub fn one(dtype: DType, shape: Shape) -> Result<Types, TypeError> {
    Ok(SmallVec::from_elem(TensorType::new(dtype, shape), 1))
}

/// Checks the number of inputs and hands them out.
pub fn inputs<'a, const N: usize>(
    inputs: &[&'a TensorType],
    expected: &'static str,
) -> Result<[&'a TensorType; N], TypeError> {
    inputs.try_into().map_err(|_| TypeError::Arity { expected, found: inputs.len() })
}

/// Checks that input number `input` is floating point.
pub fn expect_float(input: usize, ty: &TensorType) -> Result<(), TypeError> {
    expect(input, ty, ty.dtype.is_float(), "a float type")
}

/// Checks that input number `input` has the element type `dtype`.
pub fn expect_dtype(input: usize, ty: &TensorType, dtype: DType) -> Result<(), TypeError> {
    expect(input, ty, ty.dtype == dtype, dtype.name())
}

/// Checks a condition on the element type of input number `input`.
pub fn expect(input: usize, ty: &TensorType, ok: bool, expected: &str) -> Result<(), TypeError> {
    if ok {
        return Ok(());
    }
    Err(TypeError::DType { input, expected: expected.into(), found: ty.dtype })
}

/// Checks that input number `input` is one element of a type.
pub fn expect_single(input: usize, ty: &TensorType, dtype: DType) -> Result<(), TypeError> {
    expect_dtype(input, ty, dtype)?;
    match ty.ndim() {
        0 => Ok(()),
        found => Err(TypeError::Ndim { input, expected: "0".into(), found }),
    }
}

/// Checks that two extents are known to be equal.
pub fn same_extent(what: &str, left: &Dim, right: &Dim) -> Result<(), TypeError> {
    if left == right {
        return Ok(());
    }
    Err(TypeError::Extent { what: what.into(), left: left.clone(), right: right.clone() })
}

/// The shape two operands broadcast to: aligned at the last axis, extents equal or one of them 1.
pub fn broadcast_shapes(a: &[Dim], b: &[Dim]) -> Result<Shape, TypeError> {
    let ndim = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| {
        (i + s.len()).checked_sub(ndim).map_or_else(|| Dim::from(1usize), |j| s[j].clone())
    };
    (0..ndim)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, y) if x.is(1) => Ok(y),
            (x, y) if y.is(1) => Ok(x),
            (x, y) => Err(TypeError::Broadcast { axis: i, left: x, right: y }),
        })
        .collect()
}

/// Checks that an axis exists.
pub fn check_axis(axis: usize, ndim: usize) -> Result<(), TypeError> {
    if axis < ndim {
        return Ok(());
    }
    Err(TypeError::Attribute(format!("axis {axis} of a tensor with {ndim} axes")))
}
