//! Kernel calls: which operands a kernel reads as they are, and what is made of the others.
//!
//! A call is asked for in the types and storages of the graph first. What the back end has no kernel for is then given up,
//! one by one: that the kernel rounds an operand; that it reads a constant as it is stored; that it reads and writes
//! 16-bit floats, which loops around it convert. Signs that are drawn where they are multiplied are given up, too, where the
//! back end predicts that this takes much longer than to read them.

use std::rc::Rc;

use margay_ir::ops::{Io, Lowered};
use margay_ir::{NodeId, Payload, Value};
use margay_loops::{KernelCall, Needs};
use margay_tensor::{DType, Storage, StoredTensor};

use crate::LowerError;
use crate::group::{Anchor, Anchored, Called, Expr, Feed, Form, Grouper, Held};
use crate::memory::Memory;

/// A call that draws signs may take so many times as long as one that reads them: those that are drawn take no bytes.
const MOST_FOR_NO_BYTES: f64 = 1.1;

impl Grouper<'_, '_, '_> {
    /// A node that a hand-written kernel runs.
    pub(crate) fn call(&mut self, n: NodeId, shape: Vec<usize>) -> Result<Held, LowerError> {
        let (form, mut call, needs) = self.form_of_call(n)?;
        let label = self.g.label(n);
        // A back end that does not pack a constant reads it row-major, in the type that it is stored in.
        let offered = call.packed().and_then(|(operand, packed)| (*packed && form.stored).then_some(operand));
        let mut operands = Vec::new();
        for (i, v) in self.g.inputs_of(n).into_iter().enumerate() {
            let as_stored = offered == Some(i) || needs.packed.iter().any(|p| p.operand == i);
            operands.push(self.operand(v, form, as_stored, call.rounds(i).is_some(), &label)?);
        }
        let mut io = self.io(n, form)?;
        show_strides(&mut io, &operands);
        // A kernel that cannot walk its operands as they lie gets row-major copies.
        let as_they_lie = self.g.op(n).lower(&io).ok().and_then(Lowered::into_call);
        let mut call = match as_they_lie.filter(|call| self.emit.needs(call).is_some()) {
            Some(call) => call,
            None => {
                for (memory, v) in operands.iter_mut().zip(self.g.inputs_of(n)) {
                    let copy = self.emit.contiguous(memory, std::slice::from_ref(&label))?;
                    if let Some(Held::Memory(held)) = self.held.get_mut(&v)
                        && held == memory
                    {
                        held.clone_from(&copy);
                    }
                    *memory = copy;
                }
                show_strides(&mut io, &operands);
                let Some(call) = self.lowered(n, &io)?.into_call() else {
                    unreachable!("a node that is a call stays one when its operands lie otherwise")
                };
                call
            }
        };
        let layouts: Vec<_> = self.g.values_of(n).map(|v| self.read_transposed(v, &mut call)).collect();
        let mut others = Vec::new();
        for (other, strides) in self.g.values_of(n).zip(&layouts).skip(1) {
            let (dtype, shape) = (self.written_as(other, form), self.known(n, other)?);
            let output = self.output_of(other).filter(|_| strides.is_none() && !form.widened);
            let mut memory = self.emit.result(dtype, &shape, output);
            if let Some(strides) = strides {
                memory.strides.clone_from(strides);
            }
            let held = self.narrowed(other, memory.clone(), &label);
            self.held.insert(other, held);
            others.push(memory);
        }
        let called = Called { call, operands, offset: None, scale: None, bias: None, residual: None, others };
        let anchor = Anchor::Call(Box::new(called));
        let strides = layouts.into_iter().next().flatten();
        if !form.widened {
            return Ok(self.anchored(n, anchor, shape, strides));
        }
        let anchored = Anchored { anchor, shape, strides, label: vec![label.clone()] };
        let memory = self.emit.anchored(self.written_as(n.into(), form), anchored, None)?;
        Ok(self.narrowed(n.into(), memory, &label))
    }

    /// The first form in which the back end has a kernel for a node; without any that of plain numbers, which is refused
    /// later with a reason.
    fn form_of_call(&self, n: NodeId) -> Result<(Form, KernelCall, Needs), LowerError> {
        let plain = Form::default();
        let mut forms = vec![];
        for widened in [false, true] {
            for (rounded, stored) in [(true, true), (false, true), (false, false)] {
                forms.push(Form { rounded, stored, widened });
            }
        }
        for form in forms {
            if let Some(call) = self.call_of(n, form)?
                && let Some(needs) = self.emit.needs(&call)
                && !self.draws_too_slowly(n, form, &call)?
            {
                return Ok((form, call, needs));
            }
        }
        match self.lowered(n, &self.io(n, plain)?)?.into_call() {
            Some(call) => Ok((plain, call, Needs::default())),
            None => unreachable!("only calls are asked for"),
        }
    }

    /// The call of a node in a form; `None` where the operator has none.
    fn call_of(&self, n: NodeId, form: Form) -> Result<Option<KernelCall>, LowerError> {
        Ok(self.g.op(n).lower(&self.io(n, form)?).ok().and_then(Lowered::into_call))
    }

    /// Whether a call that draws signs is predicted to take more than [`MOST_FOR_NO_BYTES`] times as long as the same with signs
    /// that are stored.
    fn draws_too_slowly(&self, n: NodeId, form: Form, call: &KernelCall) -> Result<bool, LowerError> {
        let draws = |v: &Value| self.g.constant(*v).is_some_and(|c| c.storage().signs.is_some());
        if !form.stored || !self.g.inputs_of(n).iter().any(draws) {
            return Ok(false);
        }
        let stored = self.call_of(n, Form { stored: false, ..form })?;
        let stored = stored.filter(|stored| self.emit.needs(stored).is_some());
        let seconds = |call: &KernelCall| self.emit.seconds(call);
        Ok(stored.is_some_and(|stored| seconds(call) > MOST_FOR_NO_BYTES * seconds(&stored)))
    }

    /// The memory that a call reads an operand from; a constant that is packed or read `as_stored` is handed over itself.
    fn operand(
        &mut self,
        v: Value,
        form: Form,
        as_stored: bool,
        rounds: bool,
        label: &str,
    ) -> Result<Memory, LowerError> {
        if as_stored && let Some(constant) = self.g.constant(v) {
            let stored = constant.stored();
            let numbers = if form.widened { stored.widened() } else { stored.clone() };
            return Ok(match form.stored {
                true => self.emit.constant(&constant.key().to_string(), stored),
                false => {
                    self.emit.constant(&name_of_numbers(constant), &StoredTensor::from(numbers.decode()))
                }
            });
        }
        let read = self.rounding(v).filter(|_| rounds).map_or(v, |(wide, _)| wide);
        let memory = self.memory_of(read)?;
        match memory.dtype.computed() == memory.dtype || !form.widened {
            true => Ok(memory),
            false => Ok(self.emit.converted(&memory, DType::F32, &[label.to_string()])),
        }
    }

    /// The type in which a call writes a result.
    fn written_as(&self, v: Value, form: Form) -> DType {
        let dtype = self.g.ty(v).dtype;
        if form.widened { dtype.computed() } else { dtype }
    }

    /// A value that a call has written, rounded to its type when somebody reads it.
    fn narrowed(&self, v: Value, memory: Memory, label: &str) -> Held {
        let dtype = self.g.ty(v).dtype;
        if memory.dtype == dtype {
            return Held::Memory(memory);
        }
        let shape = memory.shape.clone();
        Held::Expr(Rc::new(Expr {
            dtype,
            shape,
            function: Rc::new(|_, x| x[0]),
            inputs: vec![Feed::Memory(memory)],
            flops: 1,
            nodes: 1,
            label: vec![label.to_string()],
        }))
    }
}

/// A constant as loops read it, where that is not as it is stored: in whole bytes, and signs as the numbers that they are.
pub(crate) fn whole(payload: &Payload) -> Option<StoredTensor> {
    match payload.storage() {
        storage if storage.signs.is_some() => Some(payload.stored().decode().into()),
        storage => storage.is_packed().then(|| payload.stored().in_bytes()),
    }
}

/// Between the key of what lies beside signs and how both are stored.
const OF: &str = " of ";

/// The name of all numbers of a constant. Its key is that of what lies beside signs, if it has any.
pub(crate) fn name_of_numbers(payload: &Payload) -> String {
    match payload.storage() {
        storage if storage.signs.is_some() => format!("{}{OF}{storage}", payload.key()),
        _ => payload.key().to_string(),
    }
}

/// Where a constant of a program holds random signs as numbers, how it would be stored with signs that are drawn: `name` is one of
/// its names, `key` that of what lies beside them.
pub fn storage_with_signs(name: &str, key: &str) -> Option<Storage> {
    Storage::parse(name.strip_prefix(key)?.strip_prefix(OF)?).filter(|storage| storage.signs.is_some())
}

/// Shows an operator how its operands lie in memory.
fn show_strides(io: &mut Io, operands: &[Memory]) {
    for (port, memory) in io.inputs.iter_mut().zip(operands) {
        port.strides.clone_from(&memory.strides);
    }
}
