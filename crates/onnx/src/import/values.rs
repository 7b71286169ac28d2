//! Integers known at compile time, as expressions over symbols.
//!
//! Exporters compute shapes by `Shape`, `Gather`, `Concat`, … at run time. Here such integers never become
//! computation: [`Importer::add`] carries an operator out at once when all its operands are small constants or extents,
//! and the result is a leaf again, a constant or `dims` (behind a reshape or cast where its type asks for one). So
//! [`Importer::ints`] only has to look at a leaf, and what nobody reads in the end dies as dead code.
//!
//! Symbols are at least 1; comparisons are decided where that suffices (`B == -1` is false, `B == S` is open).
//! Integer division of symbols is taken where it is exact or the dividend is known not to be negative.

use std::collections::BTreeSet;

use margay_ir::ops::{Dims, IntTensor, Io, Numbers, Reshape, Strided};
use margay_ir::{Op, Origin, TensorType, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::Importer;
use super::call::{Call, Refusal};
use crate::reader::TEXTS;
use crate::{Attribute, OnnxNode};

/// Tensors with more elements are data, not shapes.
pub(super) const MAX_KNOWN: usize = 1024;

/// What takes more operations is left to the passes, which have a limit of their own.
pub(super) const MAX_FLOPS: u64 = 1 << 20;

/// Nodes between extents and a choice that they decide.
pub(super) const MAX_BEHIND: usize = 64;

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
                    let values = values.into_iter().map(i64::try_from).collect::<Result<Vec<_>, _>>().ok()?;
                    return Some(IntTensor {
                        dtype: ty.dtype,
                        shape,
                        values: values.into_iter().map(Dim::from).collect(),
                    });
                }
                Op::Dims(d) => return Some(IntTensor { dtype: ty.dtype, shape, values: d.values.clone() }),
                op if is_renamed(op) => at = *self.graph.inputs_of(at.node).first()?,
                _ => return None,
            }
            if self.ty(at).dtype.is_float() {
                return None;
            }
        }
        None
    }

    /// A single whole number known at compile time, of any type.
    pub(crate) fn whole(&self, v: Value) -> Option<Dim> {
        if !self.ty(v).dtype.is_float() {
            return self.ints(v).and_then(|t| <[Dim; 1]>::try_from(t.values).ok()).map(|[d]| d);
        }
        match self.graph.op(v.node) {
            Op::Const(c) => {
                let tensor = Some(c.payload.tensor()).filter(|t| t.len() == 1)?;
                let number = Numbers::of(tensor).ok()?.floats().pop()?;
                let whole = number.fract() == 0.0 && number.abs() < 2f64.powi(53);
                whole.then(|| Dim::from(number as i64))
            }
            op if is_renamed(op) => self.whole(*self.graph.inputs_of(v.node).first()?),
            _ => None,
        }
    }

    /// The elements of an input that must be known; `what` says what they are for. Where extents would say what they are,
    /// but not for all values of the symbols, those that are known are taken for fixed.
    pub(crate) fn known_ints(&mut self, call: &Call, at: usize, what: &str) -> Result<IntTensor, Refusal> {
        let v = call.input(at)?;
        if let Some(known) = self.ints(v) {
            return Ok(known);
        }
        let extents = self.extents_behind(v);
        self.values_of(&extents)?;
        Err(Refusal::Unsupported(match binding_of(&extents) {
            Some(bind) => format!("{what} is computed of extents that are open; say what they are by {bind}"),
            None => format!("{what} is computed at run time"),
        }))
    }

    /// The elements of an input that must be known and free of symbols.
    pub(crate) fn const_ints(&mut self, call: &Call, at: usize, what: &str) -> Result<Vec<i64>, Refusal> {
        let values = self.known_ints(call, at, what)?.values;
        let mut constants = Vec::new();
        for d in &values {
            let value = self.value_of(d)?;
            constants.push(value.ok_or_else(|| open(what, d))?);
        }
        Ok(constants)
    }

    /// The leaf that holds what an operator computes from leaves; `None` if it takes data, or cannot be decided.
    pub(super) fn known(&mut self, op: &Op, inputs: &[Value]) -> Result<Option<Value>, Refusal> {
        let types: Vec<&TensorType> = inputs.iter().map(|v| self.ty(*v)).collect();
        let types = op.infer(&types).map_err(|error| margay_ir::AddError { op: op.name(), error })?;
        let [ty] = types.as_slice() else { return Ok(None) };
        // A float is folded only as a single number; tables and weights are left to the passes.
        let limit = if ty.dtype.is_float() { 1 } else { MAX_KNOWN };
        let Some(shape) = ty.extents().filter(|s| !inputs.is_empty() && count(s) <= limit) else {
            return Ok(None);
        };
        let small = |v: &Value| self.graph.constant(*v).map(|p| p.tensor()).filter(|t| t.len() <= MAX_KNOWN);
        if let Some(tensors) = inputs.iter().map(small).collect::<Option<Vec<&Tensor>>>() {
            let known = |t: &Tensor| Strided::contiguous(t.dtype(), t.shape());
            let outputs = vec![Strided::contiguous(ty.dtype, &shape)];
            let io = Io { inputs: tensors.iter().map(|t| known(t)).collect(), outputs };
            // Windows may be large where operand and result are small.
            if op.cost(&io).flops > MAX_FLOPS {
                return Ok(None);
            }
            // An operator that fails on its constants is kept and fails when it runs.
            return match op.eval(&tensors).ok().and_then(|mut all| all.pop()) {
                Some(tensor) => self.constant(tensor).map(Some),
                None => Ok(None),
            };
        }
        if ty.dtype.is_float() {
            return Ok(None);
        }
        let readable = |d: &Dim| d.to_string().len() <= super::MAX_EXTENT_TEXT;
        if let (Op::Cast(_), [x]) = (op, inputs)
            && self.ty(*x).dtype.is_float()
            && ty.dtype.is_int()
        {
            if let Some(tensor) = self.folded_cast(op, *x) {
                return self.constant(tensor).map(Some);
            }
            let known = self.truncated(*x).filter(|values| values.iter().all(readable));
            return known.map_or(Ok(None), |values| self.int_leaf(ty.dtype, &shape, values));
        }
        let Some(known) = inputs.iter().map(|v| self.ints(*v)).collect::<Option<Vec<IntTensor>>>() else {
            return Ok(None);
        };
        match op.eval_symbolic(&known, &shape).filter(|values| values.iter().all(readable)) {
            Some(values) => self.int_leaf(ty.dtype, &shape, values),
            None => Ok(None),
        }
    }

    /// The extents that a value is computed from; none if it is computed from anything else but constants, or from more
    /// than a few nodes.
    pub(super) fn extents_behind(&self, v: Value) -> Vec<Dim> {
        let (mut open, mut extents) = (vec![v], Vec::new());
        for _ in 0..MAX_BEHIND {
            let Some(at) = open.pop() else { return extents };
            match self.graph.op(at.node) {
                Op::Const(_) => {}
                Op::Dims(d) => extents.extend(d.values.iter().cloned()),
                _ => match self.graph.inputs_of(at.node) {
                    inputs if inputs.is_empty() => break,
                    inputs => open.extend(inputs),
                },
            }
        }
        Vec::new()
    }

    /// The inputs of the model of one element among the few nodes that a value is computed from.
    pub(super) fn numbers_behind(&self, v: Value) -> BTreeSet<String> {
        let (mut open, mut names) = (vec![v], BTreeSet::new());
        for _ in 0..MAX_BEHIND {
            let Some(at) = open.pop() else { break };
            match self.graph.op(at.node) {
                Op::Input(input) if input.ty.shape.iter().all(|d| d.is(1)) => {
                    let given = self.model.graph.inputs.iter().any(|i| *i.name == *input.name);
                    names.extend(given.then(|| input.name.to_string()));
                }
                _ => open.extend(self.graph.inputs_of(at.node)),
            }
        }
        names
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

    pub(super) fn int_leaf(
        &mut self,
        dtype: DType,
        shape: &[usize],
        values: Vec<Dim>,
    ) -> Result<Option<Value>, Refusal> {
        if let Some(constants) = values.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
            let constants = constants.into_iter().map(i128::from).collect();
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

/// The refusal of what depends on an extent whose value is not known.
pub(super) fn open(what: &str, extent: &Dim) -> Refusal {
    let bind = binding_of(std::slice::from_ref(extent)).unwrap_or_default();
    let extent = shortened(extent);
    Refusal::Unsupported(format!("{what} depends on the extent `{extent}`; say what it is by {bind}"))
}

/// The options that give extents values; `None` if no symbol is among them.
pub(super) fn binding_of(extents: &[Dim]) -> Option<String> {
    let mut symbols = Vec::new();
    extents.iter().for_each(|d| d.collect_symbols(&mut symbols));
    let bind: BTreeSet<String> = symbols.iter().map(|s| format!("`--dim {s}=N`")).collect();
    (!bind.is_empty()).then(|| Vec::from_iter(bind).join(" and "))
}

/// An extent for a message.
fn shortened(extent: &Dim) -> String {
    let text = extent.to_string();
    if text.len() <= 60 { text } else { format!("{}…", text.chars().take(60).collect::<String>()) }
}

/// Whether it keeps the elements of its operand, in their order.
fn is_renamed(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Cast(_))
}

pub(super) fn count(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// Whether a node of one operand hands it on, texts included.
pub(super) fn hands_on(node: &OnnxNode) -> bool {
    let texts = Attribute::Int(TEXTS.into());
    match node.op_type.as_str() {
        "Identity" => true,
        "Cast" => node.attributes.get("to") == Some(&texts),
        _ => false,
    }
}
