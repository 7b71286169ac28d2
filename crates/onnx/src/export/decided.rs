//! Extents that a run decides: what is found, how much of it there is, and parts of that length.
//!
//! A part is a `Slice` up to a number; its extent is read from its own shape. What is found is padded with zeros to as much
//! as there can be, as the operators of the graph have it, unless everybody takes as much as was found.

use margay_ir::ops::{Cut, NonMaxSuppression};
use margay_ir::{NodeId, Op, Value};
use margay_tensor::Dim;

use super::Exporter;
use crate::OnnxError;

impl Exporter<'_> {
    /// The first positions along an axis.
    pub(super) fn cut(&mut self, n: NodeId, x: &[&str], op: &Cut) -> Result<String, OnnxError> {
        let part = match self.is_as_long_as_found(n) {
            true => x[0].to_owned(),
            false => self.first_of(x, op)?,
        };
        if let Some(symbol) = op.extent.as_symbol() {
            self.sources.entry(symbol).or_insert_with(|| (part.clone(), op.axis));
        }
        Ok(part)
    }

    /// Whether a part is all that a node found, which is written without zeros behind it.
    fn is_as_long_as_found(&self, n: NodeId) -> bool {
        let operands = self.g.inputs_of(n);
        operands.len() == 2 && operands[1] == Value { out: 1, ..operands[0] } && self.is_only_cut(operands[0])
    }

    /// Whether everybody who reads what a node found takes as much of it as there is.
    fn is_only_cut(&self, found: Value) -> bool {
        let finds = matches!(self.g.op(found.node), Op::NonZero(_) | Op::NonMaxSuppression(_));
        let count = Value { out: 1, ..found };
        let cuts = |user: NodeId| {
            matches!(self.g.op(user), Op::Cut(cut) if cut.axis == 0)
                && self.g.inputs_of(user)[..] == [found, count]
        };
        let users = self.g.users_of(found);
        finds && found.out == 0 && !self.g.is_output(found) && users.iter().all(|(user, _)| cuts(*user))
    }

    fn first_of(&mut self, x: &[&str], op: &Cut) -> Result<String, OnnxError> {
        let (one, zero) = (self.integers(&[1])?, self.integers(&[0])?);
        let axis = self.integers(&[op.axis as i64])?;
        let end = self.emit("Reshape", "end", &[x[1], &one], vec![]);
        Ok(self.emit("Slice", "", &[x[0], &zero, &end, &axis], vec![]))
    }

    /// Places of elements that are not zero, and how many they are.
    pub(super) fn non_zero(&mut self, n: NodeId, x: &[&str]) -> Result<Vec<String>, OnnxError> {
        let rest = self.integers(&[-1])?;
        let flat = self.emit("Reshape", "flat", &[x[0], &rest], vec![]);
        let found = self.emit("NonZero", "", &[&flat], vec![]);
        let places = self.emit("Reshape", "places", &[&found, &rest], vec![]);
        let count = self.emit("Size", "count", &[&places], vec![]);
        if self.is_only_cut(n.into()) {
            return Ok(vec![places, count]);
        }
        let all = self.g.ty(Value::from(n)).shape[0].clone();
        let places = self.padded(&places, &count, &all, 1)?;
        Ok(vec![places, count])
    }

    /// Boxes that were chosen, how many they are, and what is left, of which nobody makes use.
    pub(super) fn non_max_suppression(
        &mut self,
        n: NodeId,
        x: &[&str],
        op: &NonMaxSuppression,
    ) -> Result<Vec<String>, OnnxError> {
        let left = Value { node: n, out: 2 };
        if !self.g.users_of(left).is_empty() || self.g.is_output(left) {
            return Err(self.refusal("scores of boxes that are left are not exported".to_owned()));
        }
        let most = self.extents(std::slice::from_ref(&op.most), "most")?;
        let given = self.emit("Min", "boxes", &[x[2], &most], vec![]);
        let found = self.emit("NonMaxSuppression", "", &[x[0], x[1], &given, x[3], x[4]], vec![]);
        let three = self.number(margay_tensor::DType::I64, 3.0);
        let numbers = self.emit("Size", "numbers", &[&found], vec![]);
        let count = self.emit("Div", "count", &[&numbers, &three], vec![]);
        if self.is_only_cut(n.into()) {
            return Ok(vec![found, count, String::new()]);
        }
        let all = self.g.ty(Value::from(n)).shape[0].clone();
        let rows = self.padded(&found, &count, &all, 2)?;
        Ok(vec![rows, count, String::new()])
    }

    /// A value with zeros behind the first `count` positions of its first of `ndim` axes.
    pub(super) fn padded(
        &mut self,
        x: &str,
        count: &str,
        all: &Dim,
        ndim: usize,
    ) -> Result<String, OnnxError> {
        let all = self.extents(std::slice::from_ref(all), "all")?;
        let rest = self.emit("Sub", "rest", &[&all, count], vec![]);
        let mut before = self.integers(&vec![0; ndim])?;
        before = self.emit("Concat", "pads", &[&before, &rest], super::operators::axis(0));
        if ndim > 1 {
            let others = self.integers(&vec![0; ndim - 1])?;
            before = self.emit("Concat", "pads", &[&before, &others], super::operators::axis(0));
        }
        Ok(self.emit("Pad", "padded", &[x, &before], vec![]))
    }
}
