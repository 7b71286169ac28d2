//! Floats known at compile time: what small constants give, and arithmetic of extents that some exporters do in floats.
//!
//! Neither is carried out where it stands, as that of [integers](super::values) is: a float may be a weight. Whoever needs
//! numbers asks for them here, and the few nodes behind a value are looked at. Extents with symbols become fractions of
//! expressions, which a cast to integers rounds. In f16 they would lose all but eleven bits, so that no expression holds for
//! all values of the symbols: there they are not known.

use margay_ir::ops::{Broadcast, IntTensor, Io, Numbers, Strided, Symbolic};
use margay_ir::{Op, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::Importer;
use super::values::{MAX_BEHIND, MAX_FLOPS, MAX_KNOWN, count};

/// Divisors of constants that are taken for fractions.
const MAX_DIVISOR: i64 = 1024;

/// Whole expressions over positive ones, in row-major order.
struct Fractions {
    shape: Vec<usize>,
    parts: Vec<Fraction>,
}

#[derive(Clone)]
struct Fraction {
    above: Dim,
    below: Dim,
}

impl Importer<'_> {
    /// The numbers of a value, if it is a constant or computed from small ones or from extents that are known.
    pub(crate) fn numbers(&self, v: Value) -> Option<Vec<f64>> {
        let of = |t: &Tensor| Numbers::of(t).ok().map(Numbers::floats);
        if let Some(payload) = self.graph.constant(v) {
            return of(payload.tensor());
        }
        if let Some(tensor) = self.folded(v) {
            return of(&tensor);
        }
        let number = |f: &Fraction| Some(f.above.as_const()? as f64 / f.below.as_const()? as f64);
        self.fractions(v)?.parts.iter().map(number).collect()
    }

    /// What a cast to integers makes of floats that are computed from small constants.
    pub(super) fn folded_cast(&self, cast: &Op, v: Value) -> Option<Tensor> {
        let tensor = self.folded(v)?;
        cast.eval(&[&tensor]).ok()?.into_iter().next()
    }

    /// The integers that a cast makes of floats, rounded towards zero, of extents that are open.
    pub(super) fn truncated(&self, v: Value) -> Option<Vec<Dim>> {
        let found = self.fractions(v)?;
        let truncate = |f: &Fraction| {
            let whole = f.floor()?;
            // Rounding down is rounding towards zero of what is not negative.
            (f.is_whole() || (&f.above + &Dim::from(1i64)).is_positive()).then_some(whole)
        };
        found.parts.iter().map(truncate).collect()
    }

    /// What a value is that follows from small constants by a few nodes.
    fn folded(&self, v: Value) -> Option<Tensor> {
        self.folded_in(v, &mut { MAX_BEHIND })
    }

    fn folded_in(&self, v: Value, left: &mut usize) -> Option<Tensor> {
        if let Some(payload) = self.graph.constant(v) {
            return Some(payload.tensor()).filter(|t| t.len() <= MAX_KNOWN).cloned();
        }
        *left = left.checked_sub(1)?;
        let (op, ty, operands) = (self.graph.op(v.node), self.ty(v), self.graph.inputs_of(v.node));
        let shape = ty.extents().filter(|shape| count(shape) <= MAX_KNOWN)?;
        if operands.is_empty() || v.out != 0 || matches!(op, Op::If(_) | Op::Loop(_)) {
            return None;
        }
        let tensors = operands.iter().map(|o| self.folded_in(*o, left)).collect::<Option<Vec<Tensor>>>()?;
        let known = |t: &Tensor| Strided::contiguous(t.dtype(), t.shape());
        let outputs = vec![Strided::contiguous(ty.dtype, &shape)];
        let io = Io { inputs: tensors.iter().map(known).collect(), outputs };
        if op.cost(&io).flops > MAX_FLOPS {
            return None;
        }
        op.eval(&tensors.iter().collect::<Vec<_>>()).ok()?.into_iter().next()
    }

    /// What a value is that follows from small constants and extents by a few nodes.
    fn fractions(&self, v: Value) -> Option<Fractions> {
        self.fractions_in(v, &mut { MAX_BEHIND })
    }

    fn fractions_in(&self, v: Value, left: &mut usize) -> Option<Fractions> {
        let ty = self.ty(v);
        let shape = ty.extents().filter(|shape| count(shape) <= MAX_KNOWN)?;
        if !ty.dtype.is_float() {
            let whole = |above: Dim| Fraction { above, below: Dim::from(1i64) };
            return Some(Fractions { shape, parts: self.ints(v)?.values.into_iter().map(whole).collect() });
        }
        if let Some(payload) = self.graph.constant(v) {
            let numbers = Numbers::of(payload.tensor()).ok()?.floats();
            let parts = numbers.into_iter().map(Fraction::of).collect::<Option<Vec<_>>>()?;
            return Some(Fractions { shape, parts });
        }
        *left = left.checked_sub(1)?;
        if !matches!(ty.dtype, DType::F32 | DType::F64) {
            return None;
        }
        let (op, operands) = (self.graph.op(v.node), self.graph.inputs_of(v.node));
        let found = operands.iter().map(|o| self.fractions_in(*o, left)).collect::<Option<Vec<_>>>()?;
        let parts = match (op, found.as_slice()) {
            (Op::Cast(_), [x]) => x.parts.clone(),
            (Op::Floor(_), [x]) => {
                x.parts.iter().map(|f| f.floor().map(Fraction::whole)).collect::<Option<_>>()?
            }
            (Op::Ceil(_), [x]) => {
                x.parts.iter().map(|f| f.ceil().map(Fraction::whole)).collect::<Option<_>>()?
            }
            (_, [x, y]) if op.facts().elementwise.is_some() => {
                let (x, y) = (x.broadcast(&shape)?, y.broadcast(&shape)?);
                x.iter().zip(&y).map(|(x, y)| x.with(op, y)).collect::<Option<_>>()?
            }
            (_, all) if matches!(op.facts().symbolic, Some(Symbolic::Moves(_))) => moved(op, all, &shape)?,
            _ => return None,
        };
        Some(Fractions { shape, parts })
    }
}

impl Fractions {
    fn broadcast(&self, shape: &[usize]) -> Option<Vec<Fraction>> {
        let to = Broadcast { shape: shape.iter().map(|&e| Dim::from(e)).collect() };
        moved(&to.into(), std::slice::from_ref(self), shape)
    }

    /// What is above or below all lines.
    fn side(&self, of: fn(&Fraction) -> &Dim) -> IntTensor {
        let values = self.parts.iter().map(|f| of(f).clone()).collect();
        IntTensor { dtype: DType::I64, shape: self.shape.clone(), values }
    }
}

/// What an operator gives that only moves elements.
fn moved(op: &Op, operands: &[Fractions], shape: &[usize]) -> Option<Vec<Fraction>> {
    let facts = op.facts();
    let side = |of: fn(&Fraction) -> &Dim| {
        let sides = operands.iter().enumerate().map(|(i, x)| match facts.steering().contains(&i) {
            true => x.side(|f| &f.above),
            false => x.side(of),
        });
        op.eval_symbolic(&sides.collect::<Vec<IntTensor>>(), shape)
    };
    let (above, below) = (side(|f| &f.above)?, side(|f| &f.below)?);
    Some(above.into_iter().zip(below).map(|(above, below)| Fraction { above, below }).collect())
}

impl Fraction {
    fn whole(above: Dim) -> Fraction {
        Fraction { above, below: Dim::from(1i64) }
    }

    /// A number, if it is a fraction of small ones.
    fn of(number: f64) -> Option<Fraction> {
        let below = (1..=MAX_DIVISOR).find(|&d| (number * d as f64).fract() == 0.0)?;
        let above = number * below as f64;
        let is_small = above.abs() < f64::from(1u32 << 31);
        is_small.then(|| Fraction { above: Dim::from(above as i64), below: Dim::from(below) })
    }

    /// The sum, difference, product or quotient, in lowest terms where the quotient is whole.
    fn with(&self, op: &Op, other: &Fraction) -> Option<Fraction> {
        let (a, b, c, d) = (&self.above, &self.below, &other.above, &other.below);
        let (above, below) = match op {
            Op::Mul(_) => (a * c, b * d),
            Op::Div(_) if c.is_positive() => (a * d, b * c),
            _ if b == d => (sum(op, a, c)?, b.clone()),
            _ => (sum(op, &(a * d), &(c * b))?, b * d),
        };
        let reduced = Fraction { above, below };
        Some(if reduced.is_whole() { Fraction::whole(reduced.floor()?) } else { reduced })
    }

    fn is_whole(&self) -> bool {
        self.floor().is_some_and(|quotient| &quotient * &self.below == self.above)
    }

    fn floor(&self) -> Option<Dim> {
        self.above.floor_div(&self.below)
    }

    fn ceil(&self) -> Option<Dim> {
        (&(&self.above + &self.below) - &Dim::from(1i64)).floor_div(&self.below)
    }
}

/// The sum or difference, if it is one of them.
fn sum(op: &Op, a: &Dim, b: &Dim) -> Option<Dim> {
    match op {
        Op::Add(_) => Some(a + b),
        Op::Sub(_) => Some(a - b),
        _ => None,
    }
}
