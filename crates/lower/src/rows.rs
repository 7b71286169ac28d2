//! Where rows lie that operators look up.

use margay_ir::{NodeId, Op};

use crate::LowerError;
use crate::group::{Grouper, Held};

impl Grouper<'_, '_, '_> {
    /// Copies rows that a gather looks up to where their elements lie together, if as many are looked up as there are: a
    /// strided row takes as many lines of memory as it has elements, once for each time that it is read.
    pub(crate) fn lay_out_rows(&mut self, n: NodeId) -> Result<(), LowerError> {
        let Op::Gather(op) = self.g.op(n) else { return Ok(()) };
        let rows = self.g.inputs_of(n)[0];
        let Some(Held::Memory(memory)) = self.held.get(&rows).filter(|_| !self.inner) else { return Ok(()) };
        let memory = memory.clone();
        let last = memory.shape.len().saturating_sub(1);
        let is_strided = op.axis < last && memory.shape[last] > 1 && memory.strides[last] != 1;
        let readers = self.g.users_of(rows).len();
        let read: usize = self.known(n, n.into())?.iter().product();
        if is_strided && read.saturating_mul(readers) >= memory.elements() {
            let copy = self.emit.contiguous(&memory, &[self.g.label(n)])?;
            self.held.insert(rows, Held::Memory(copy));
        }
        Ok(())
    }
}
