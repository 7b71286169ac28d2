//! Bringing rows near while something else is computed, a few at a time, so that requests do not pile up.

use crate::isa::Isa;

/// Rows to be brought near while tiles are computed, some after each.
pub(crate) struct Fetch {
    /// The first row of each operand, their stride, and the elements of a row.
    operands: [(*const f32, usize, usize); 2],
    rows: usize,
    /// Rows asked for so far, and after each tile.
    done: usize,
    step: usize,
}

/// Elements of a cache line.
const LINE: usize = 16;

impl Fetch {
    /// Rows of two operands, each by its first row, stride and elements of a row. They may lie anywhere.
    #[inline(always)]
    pub(crate) fn new(operands: [(*const f32, usize, usize); 2], rows: usize) -> Fetch {
        Fetch { operands, rows, done: 0, step: 0 }
    }

    /// All of it goes into so many steps.
    #[inline(always)]
    pub(crate) fn divide(&mut self, steps: usize) {
        self.step = self.rows.div_ceil(steps.max(1));
    }

    /// Asks for what a step is due.
    #[inline(always)]
    pub(crate) fn advance<I: Isa>(&mut self, isa: I) {
        let last = (self.done + self.step).min(self.rows);
        for row in self.done..last {
            for (from, stride, len) in self.operands {
                for i in (0..len).step_by(LINE) {
                    isa.prefetch(from.wrapping_add(row * stride + i));
                }
            }
        }
        self.done = last;
    }
}
