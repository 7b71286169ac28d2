//! Integers known at compile time, as expressions over symbols.
//!
//! Exporters compute shapes by `Shape`, `Gather`, `Concat`, … at run time. Here such integers never become
//! computation: [`Importer::add`] carries an operator out at once when all its operands are small constants or extents,
//! and the result is a leaf again, a constant or `dims` (behind a reshape or cast where its type asks for one). So
//! [`Importer::ints`] only has to look at a leaf, and what nobody reads in the end dies as dead code.
//!
//! Symbols are at least 1; comparisons are decided where that suffices (`B == -1` is false, `B == S` is open).
//! Integer division of symbols is taken where it is exact or the dividend is known not to be negative.

use margay_ir::ops::{Dims, Numbers, ReduceKind, Reshape, broadcast_positions};
use margay_ir::{Op, Origin, TensorType, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::Importer;
use super::call::{Call, Refusal};

/// Integers (truth values as 0 and 1) and their shape.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct IntTensor {
    /// Extents.
    pub(crate) shape: Vec<usize>,
    /// Elements in row-major order.
    pub(crate) values: Vec<Dim>,
}

/// Tensors with more elements are data, not shapes.
const MAX_KNOWN: usize = 1024;

/// A leaf is at most a cast of a reshape of `dims`.
const MAX_LEAF_DEPTH: usize = 3;

impl Importer<'_> {
    /// The elements of a value, if they are integers known at compile time.
    pub(crate) fn ints(&self, v: Value) -> Option<IntTensor> {
        let ty = self.ty(v);
        let shape = ty.extents().filter(|s| !ty.dtype.is_float() && count(s) <= MAX_KNOWN)?;
        let mut at = v;
        for _ in 0..MAX_LEAF_DEPTH {
            match self.graph.op(at.node) {
                Op::Const(c) => {
                    let values = Numbers::of(c.payload.tensor()).ok()?.ints();
                    return Some(IntTensor { shape, values: values.into_iter().map(Dim::from).collect() });
                }
                Op::Dims(d) => return Some(IntTensor { shape, values: d.values.clone() }),
                Op::Reshape(_) | Op::Cast(_) => at = *self.graph.inputs_of(at.node).first()?,
                _ => return None,
            }
            if self.ty(at).dtype.is_float() {
                return None;
            }
        }
        None
    }

    /// The elements of an input that must be known; `what` says what they are for.
    pub(crate) fn known_ints(&self, call: &Call, at: usize, what: &str) -> Result<IntTensor, Refusal> {
        let v = call.input(at)?;
        let unknown = || Refusal::Unsupported(format!("{what} is computed at run time"));
        self.ints(v).ok_or_else(unknown)
    }

    /// The elements of an input that must be known and free of symbols.
    pub(crate) fn const_ints(&self, call: &Call, at: usize, what: &str) -> Result<Vec<i64>, Refusal> {
        let constant = |d: &Dim| {
            d.as_const().ok_or_else(|| Refusal::Unsupported(format!("{what} depends on the extent `{d}`")))
        };
        self.known_ints(call, at, what)?.values.iter().map(constant).collect()
    }

    /// The leaf that holds what an operator computes from leaves; `None` if it takes data, or cannot be decided.
    pub(super) fn known(&mut self, op: &Op, inputs: &[Value]) -> Result<Option<Value>, Refusal> {
        let types: Vec<&TensorType> = inputs.iter().map(|v| self.ty(*v)).collect();
        let types = op.infer(&types).map_err(|error| margay_ir::AddError { op: op.name(), error })?;
        let [ty] = types.as_slice() else { return Ok(None) };
        // A float is folded only as a single number; tables and weights are left to the passes.
        let limit = if ty.dtype.is_float() { 1 } else { MAX_KNOWN };
        // Windows may be large where operand and result are small.
        let windowed = matches!(op, Op::Conv(_) | Op::Pool(_));
        let Some(shape) = ty.extents().filter(|s| !inputs.is_empty() && !windowed && count(s) <= limit)
        else {
            return Ok(None);
        };
        let small = |v: &Value| self.graph.constant(*v).map(|p| p.tensor()).filter(|t| t.len() <= MAX_KNOWN);
        if let Some(tensors) = inputs.iter().map(small).collect::<Option<Vec<&Tensor>>>() {
            // An operator that fails on its constants is kept and fails when it runs.
            return match op.eval(&tensors).ok().and_then(|mut all| all.pop()) {
                Some(tensor) => self.constant(tensor).map(Some),
                None => Ok(None),
            };
        }
        if ty.dtype.is_float() {
            return Ok(None);
        }
        let Some(known) = inputs.iter().map(|v| self.ints(*v)).collect::<Option<Vec<IntTensor>>>() else {
            return Ok(None);
        };
        let readable = |d: &Dim| d.to_string().len() <= super::MAX_EXTENT_TEXT;
        match evaluate(op, &known, &shape).filter(|values| values.iter().all(readable)) {
            Some(values) => self.int_leaf(ty.dtype, &shape, values),
            None => Ok(None),
        }
    }

    /// Extents as an i64 tensor of one axis.
    pub(crate) fn dims(&mut self, values: Vec<Dim>) -> Result<Value, Refusal> {
        let shape = [values.len()];
        let leaf = self.int_leaf(DType::I64, &shape, values)?;
        leaf.ok_or_else(|| Refusal::Unsupported("extents of an unexpected type".into()))
    }

    /// One extent as an i64 tensor without axes.
    pub(crate) fn dim(&mut self, value: Dim) -> Result<Value, Refusal> {
        let leaf = self.int_leaf(DType::I64, &[], vec![value])?;
        leaf.ok_or_else(|| Refusal::Unsupported("extents of an unexpected type".into()))
    }

    fn int_leaf(
        &mut self,
        dtype: DType,
        shape: &[usize],
        values: Vec<Dim>,
    ) -> Result<Option<Value>, Refusal> {
        if let Some(constants) = values.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
            let tensor = Numbers::Int(constants).into_tensor(dtype, shape);
            return self.constant(tensor.map_err(|e| Refusal::Invalid(e.to_string()))?).map(Some);
        }
        if !matches!(dtype, DType::I64 | DType::I32) {
            return Ok(None);
        }
        let none = Origin::default;
        let mut v = self.graph.add(Dims { values }, &[], none())?;
        if shape.len() != 1 {
            let shape = margay_tensor::shape_of(shape);
            v = self.graph.add(Reshape { shape }, &[v], none())?;
        }
        if dtype != DType::I64 {
            v = self.graph.add(margay_ir::ops::Cast { to: dtype }, &[v], none())?;
        }
        Ok(Some(v))
    }
}

fn count(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// The elements of the result of an operator on known integers.
fn evaluate(op: &Op, inputs: &[IntTensor], shape: &[usize]) -> Option<Vec<Dim>> {
    match op {
        Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Broadcast(_) | Op::Concat(_) => {
            moved(op, inputs, &[])
        }
        Op::Gather(_) => moved(op, inputs, &[1]),
        Op::Select(_) => moved(op, inputs, &[0]),
        Op::Cast(c) if c.to == DType::Bool => inputs[0].values.iter().map(truth).collect(),
        Op::Cast(_) => Some(inputs[0].values.clone()),
        Op::Add(_) => pairwise(inputs, shape, |x, y| Some(x + y)),
        Op::Sub(_) => pairwise(inputs, shape, |x, y| Some(x - y)),
        Op::Mul(_) => pairwise(inputs, shape, |x, y| Some(x * y)),
        Op::Div(_) => pairwise(inputs, shape, quotient),
        Op::Max(_) => pairwise(inputs, shape, |x, y| Some(if less_or_equal(x, y)? { y } else { x }.clone())),
        Op::Min(_) => pairwise(inputs, shape, |x, y| Some(if less_or_equal(x, y)? { x } else { y }.clone())),
        Op::Equal(_) => pairwise(inputs, shape, |x, y| equal(x, y).map(flag)),
        Op::LessOrEqual(_) => pairwise(inputs, shape, |x, y| less_or_equal(x, y).map(flag)),
        Op::Less(_) => pairwise(inputs, shape, |x, y| less_or_equal(y, x).map(|not| flag(!not))),
        Op::Neg(_) => Some(inputs[0].values.iter().map(|x| &Dim::default() - x).collect()),
        Op::Reduce(r) if count(shape) == 1 => {
            let joined = inputs[0].values.iter().cloned().map(Some).reduce(|x, y| {
                let (x, y) = (x?, y?);
                match r.kind {
                    ReduceKind::Sum => Some(&x + &y),
                    ReduceKind::Prod => Some(&x * &y),
                    ReduceKind::Max => Some(if less_or_equal(&x, &y)? { y } else { x }),
                    ReduceKind::Min => Some(if less_or_equal(&x, &y)? { x } else { y }),
                    ReduceKind::Mean => None,
                }
            })?;
            joined.map(|v| vec![v])
        }
        _ => None,
    }
}

/// Runs an operator that only moves elements on the positions of the elements of its inputs, and looks those up in
/// the result. Inputs listed in `steering` decide what is moved and must be free of symbols.
fn moved(op: &Op, inputs: &[IntTensor], steering: &[usize]) -> Option<Vec<Dim>> {
    let mut elements: Vec<&Dim> = Vec::new();
    let mut operands = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let (dtype, values) = if steering.contains(&i) {
            let values = input.values.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>()?;
            (if matches!(op, Op::Select(_)) { DType::Bool } else { DType::I64 }, values)
        } else {
            let first = elements.len() as i64;
            elements.extend(&input.values);
            (DType::I64, (first..elements.len() as i64).collect())
        };
        operands.push(Numbers::Int(values).into_tensor(dtype, &input.shape).ok()?);
    }
    let out = op.eval(&operands.iter().collect::<Vec<_>>()).ok()?.pop()?;
    let positions = Numbers::of(&out).ok()?.ints();
    positions.into_iter().map(|p| elements.get(usize::try_from(p).ok()?).map(|&d| d.clone())).collect()
}

fn pairwise(
    inputs: &[IntTensor],
    shape: &[usize],
    f: impl Fn(&Dim, &Dim) -> Option<Dim>,
) -> Option<Vec<Dim>> {
    let [x, y] = inputs else { return None };
    let at = [x, y].map(|i| broadcast_positions(shape, &i.shape));
    at[0].iter().zip(&at[1]).map(|(&i, &j)| f(x.values.get(i)?, y.values.get(j)?)).collect()
}

fn flag(v: bool) -> Dim {
    Dim::from(i64::from(v))
}

fn truth(x: &Dim) -> Option<Dim> {
    equal(x, &Dim::default()).map(|zero| flag(!zero))
}

fn equal(x: &Dim, y: &Dim) -> Option<bool> {
    let difference = x - y;
    match difference.as_const() {
        Some(d) => Some(d == 0),
        None if difference.is_positive() || (y - x).is_positive() => Some(false),
        None => None,
    }
}

/// Whether x <= y, if that holds or fails for all symbols.
pub(super) fn less_or_equal(x: &Dim, y: &Dim) -> Option<bool> {
    if (&(y - x) + &Dim::from(1i64)).is_positive() {
        return Some(true);
    }
    (x - y).is_positive().then_some(false)
}

/// The quotient rounded towards zero.
fn quotient(x: &Dim, y: &Dim) -> Option<Dim> {
    if let (Some(x), Some(y)) = (x.as_const(), y.as_const()) {
        return x.checked_div(y).map(Dim::from);
    }
    let quotient = x.floor_div(y)?;
    let exact = &quotient * y == *x;
    (exact || y.is_positive() && less_or_equal(&Dim::default(), x)?).then_some(quotient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_symbols_decide() {
        let d = |t: &str| Dim::parse(t).unwrap();
        assert_eq!(equal(&d("B"), &d("-1")), Some(false));
        assert_eq!(equal(&d("B"), &d("B")), Some(true));
        assert_eq!(equal(&d("B"), &d("S")), None);
        assert_eq!(equal(&d("B"), &d("1")), None);
        assert_eq!(less_or_equal(&d("1"), &d("S")), Some(true));
        assert_eq!(less_or_equal(&d("S + 1"), &d("S")), Some(false));
        assert_eq!(less_or_equal(&d("2"), &d("S")), None);
        assert_eq!(quotient(&d("4*B*S"), &d("2*S")), Some(d("2*B")));
        assert_eq!(quotient(&d("S - 1"), &d("2")), Some(d("floordiv(S - 1, 2)")));
        assert_eq!(quotient(&d("S - 3"), &d("2")), None);
        assert_eq!(quotient(&d("-7"), &d("2")), Some(d("-3")));
    }
}
