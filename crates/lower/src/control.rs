//! Operators that hold graphs: steps inside steps.
//!
//! The steps of a region are written like those of the graph around it, over memory that its operands lie in. Equal
//! kernels of all regions are one kernel of the program, equal constants one constant.

use margay_ir::{Graph, NodeId, Op, Region, Value};
use margay_loops::{Extent, Loop, Work};
use margay_tensor::DType;

use crate::LowerError;
use crate::group::{Grouper, Held};
use crate::memory::Memory;

/// A loop over a graph, with its operands as [`ops::Loop`](margay_ir::ops::Loop) has them.
pub(crate) struct Repeated<'r> {
    pub(crate) body: &'r Region,
    pub(crate) max: usize,
    pub(crate) carried: usize,
    pub(crate) condition: bool,
}

impl Grouper<'_, '_, '_> {
    /// Memory for the results of a node after the first, which is what those values are from now on.
    pub(crate) fn others(&mut self, n: NodeId) -> Result<Vec<Memory>, LowerError> {
        let mut others = Vec::new();
        for other in self.g.values_of(n).skip(1) {
            let (dtype, shape, output) =
                (self.g.ty(other).dtype, self.known(n, other)?, self.output_of(other));
            let memory = self.emit.result(dtype, &shape, output);
            self.held.insert(other, Held::Memory(memory.clone()));
            others.push(memory);
        }
        Ok(others)
    }

    /// Memory for all results of a node.
    fn results(&mut self, n: NodeId) -> Result<Vec<Memory>, LowerError> {
        let first = Value::from(n);
        let (shape, output) = (self.known(n, first)?, self.output_of(first));
        let memory = self.emit.result(self.g.ty(first).dtype, &shape, output);
        self.held.insert(first, Held::Memory(memory.clone()));
        Ok(std::iter::once(memory).chain(self.others(n)?).collect())
    }

    /// The operands of a node in memory.
    fn operands(&mut self, n: NodeId) -> Result<Vec<Memory>, LowerError> {
        self.g.inputs_of(n).into_iter().map(|v| self.memory_of(v)).collect()
    }

    /// Writes the steps of a graph inside an operator; returns where its outputs are.
    fn inside(&mut self, g: &Graph, inputs: &[Memory]) -> Result<Vec<Memory>, LowerError> {
        let values = g.inputs().iter().map(|n| Value::from(*n));
        let held = values.zip(inputs.iter().cloned().map(Held::Memory)).collect();
        let preferences = self.preferences.clone();
        let mut inner = Grouper { g, preferences, emit: &mut *self.emit, held, inner: true };
        for n in g.order() {
            inner.visit(n)?;
        }
        g.outputs().iter().map(|o| inner.memory_of(o.value)).collect()
    }

    /// A choice between two graphs.
    pub(crate) fn branch(&mut self, n: NodeId, then: &Region, otherwise: &Region) -> Result<(), LowerError> {
        let label = [self.g.label(n)];
        let operands = self.operands(n)?;
        let results = self.results(n)?;
        let mut blocks = Vec::new();
        for region in [then, otherwise] {
            self.emit.open();
            let mut outputs = self.inside(region.graph(), &operands[1..])?;
            self.emit.leave(&mut outputs, &results, &label);
            blocks.push(self.emit.close());
        }
        let (Some(otherwise), Some(then)) = (blocks.pop(), blocks.pop()) else {
            unreachable!("both graphs were written")
        };
        self.emit.step(Work::If { test: operands[0].operand(), then, otherwise }, &label);
        Ok(())
    }

    /// A graph again and again. Each repetition reads its values where the one before has left them, and where the
    /// results of the node are in the end.
    pub(crate) fn repeat(&mut self, n: NodeId, repeated: &Repeated<'_>) -> Result<(), LowerError> {
        let Repeated { body, max, carried, condition } = *repeated;
        let label = [self.g.label(n)];
        let operands = self.operands(n)?;
        let head = 1 + usize::from(condition);
        let trips = match known_number(self.g, self.g.inputs_of(n)[0]) {
            Some(trips) => Extent::Known(usize::try_from(trips).unwrap_or(0).min(max)),
            None => Extent::Read { from: operands[0].operand(), bound: max },
        };
        let goes_on = condition.then(|| self.emit.result(DType::Bool, &[], None));
        let results = self.results(n)?;
        let (values, rows) = results.split_at(carried);
        let places: Vec<Memory> = goes_on.iter().chain(values).cloned().collect();
        let first = &operands[1..head + carried];
        first.iter().zip(&places).for_each(|(from, to)| self.emit.copy(from, to, &label));
        if max == 0 {
            // What the body reads may have no rows.
            return Ok(());
        }
        if condition || trips != Extent::Known(max) {
            rows.iter().for_each(|rows| self.emit.clear(rows, &label));
        }
        let counter = self.emit.result(DType::I64, &[], None);
        self.emit.open();
        let inputs = [std::slice::from_ref(&counter), values, &operands[head + carried..]].concat();
        let mut next = self.inside(body.graph(), &inputs)?;
        for (value, rows) in next.drain(places.len()..).zip(rows) {
            self.emit.store_row(&value, rows, &counter, &label);
        }
        for (value, place) in next.iter_mut().zip(&places) {
            // What lies where another value belongs is set aside before that is put there.
            if value != place && places.iter().any(|p| p.buffer == value.buffer) {
                let aside = self.emit.result(value.dtype, &value.shape, None);
                self.emit.copy(value, &aside, &label);
                *value = aside;
            }
        }
        self.emit.leave(&mut next, &places, &label);
        let body = self.emit.close();
        let (condition, counter) = (goes_on.map(|m| m.operand()), Some(counter.operand()));
        self.emit.step(Work::Loop(Loop { trips, condition, counter, body }), &label);
        Ok(())
    }
}

/// The only element of an i64 value, if it is a constant or an extent.
fn known_number(g: &Graph, v: Value) -> Option<i64> {
    if let Some(constant) = g.constant(v) {
        return constant.tensor().to_vec::<i64>().ok()?.first().copied();
    }
    match g.op(v.node) {
        Op::Dims(dims) => dims.values.first()?.as_const(),
        Op::Reshape(_) => known_number(g, *g.inputs_of(v.node).first()?),
        _ => None,
    }
}
