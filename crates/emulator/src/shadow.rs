//! What is remembered of memory: who wrote and read each element last, and which bytes hold something.
//!
//! Two accesses to an element by different threads, one of them a write, are a race unless a barrier of the block
//! lies between them. Threads of different blocks are never ordered within a launch.

use std::fmt;

/// A thread at a time: between two barriers of its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    pub(crate) block: u32,
    pub(crate) thread: u32,
    /// Barriers that the thread has passed.
    pub(crate) epoch: u32,
}

impl Stamp {
    /// Nobody.
    const NONE: Stamp = Stamp { block: u32::MAX, thread: 0, epoch: 0 };

    /// Whether what happened then lies before what a thread does now.
    fn is_before(self, now: Stamp) -> bool {
        self == Stamp::NONE
            || (self.block == now.block && (self.thread == now.thread || self.epoch < now.epoch))
    }
}

/// The last accesses to an element: a write, and reads by two threads at most, which is enough to see that there was
/// another one.
#[derive(Clone, Copy, Debug)]
struct Cell {
    write: Stamp,
    reads: [Stamp; 2],
}

const UNTOUCHED: Cell = Cell { write: Stamp::NONE, reads: [Stamp::NONE; 2] };

/// What is wrong with an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Problem {
    /// It reaches outside of every region that the kernel may touch.
    OutOfBounds,
    /// It writes what the kernel may only read.
    ReadOnly,
    /// Its address is not the multiple that it has to be.
    Misaligned,
    /// It reads what nobody has written.
    Uninitialized,
    /// Another thread writes the same element, and no barrier lies between.
    WriteRace,
    /// One thread reads what another writes, and no barrier lies between.
    ReadRace,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Problem::OutOfBounds => "an access outside of the buffers of the step",
            Problem::ReadOnly => "a write to what is only read",
            Problem::Misaligned => "an address that is not aligned",
            Problem::Uninitialized => "a read of what nobody has written",
            Problem::WriteRace => "two threads write one element",
            Problem::ReadRace => "a thread reads what another one writes",
        })
    }
}

/// The accesses to a region of memory in one launch.
#[derive(Debug)]
pub(crate) struct Shadow {
    cells: Vec<Cell>,
    /// Bytes of a cell.
    element: usize,
}

impl Shadow {
    /// Of a region of elements of a size that nobody has touched.
    pub(crate) fn new(bytes: usize, element: usize) -> Shadow {
        Shadow { cells: vec![UNTOUCHED; bytes.div_ceil(element.max(1))], element: element.max(1) }
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.cells.fill(UNTOUCHED);
    }

    /// Notes an access to the bytes from `at` on; `atomic` ones do not race with each other.
    pub(crate) fn access(
        &mut self,
        at: usize,
        bytes: usize,
        writes: bool,
        atomic: bool,
        now: Stamp,
    ) -> Option<Problem> {
        let mut problem = None;
        for cell in &mut self.cells[at / self.element..(at + bytes).div_ceil(self.element)] {
            if atomic {
                continue;
            }
            if !cell.write.is_before(now) {
                problem = Some(if writes { Problem::WriteRace } else { Problem::ReadRace });
            }
            if writes {
                if cell.reads.iter().any(|read| !read.is_before(now)) {
                    problem = Some(Problem::ReadRace);
                }
                *cell = Cell { write: now, ..UNTOUCHED };
            } else {
                // Of two slots one always holds a thread other than the next writer.
                let free = cell.reads[0].is_before(now);
                cell.reads[usize::from(!free)] = now;
            }
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(block: u32, thread: u32, epoch: u32) -> Stamp {
        Stamp { block, thread, epoch }
    }

    #[test]
    fn accesses_of_one_thread_are_ordered() {
        let mut shadow = Shadow::new(8, 4);
        assert_eq!(shadow.access(0, 8, true, false, at(0, 1, 0)), None);
        assert_eq!(shadow.access(4, 4, false, false, at(0, 1, 0)), None);
        assert_eq!(shadow.access(0, 4, true, false, at(0, 1, 3)), None);
    }

    #[test]
    fn a_barrier_orders_threads_of_a_block() {
        let mut shadow = Shadow::new(4, 4);
        shadow.access(0, 4, true, false, at(0, 1, 0));
        assert_eq!(shadow.access(0, 4, false, false, at(0, 2, 1)), None);
        assert_eq!(shadow.access(0, 4, true, false, at(0, 3, 2)), None);
    }

    #[test]
    fn races_are_found_in_either_order() {
        for (first, second, expected) in [
            (true, true, Some(Problem::WriteRace)),
            (true, false, Some(Problem::ReadRace)),
            (false, true, Some(Problem::ReadRace)),
            (false, false, None),
        ] {
            let mut shadow = Shadow::new(4, 4);
            assert_eq!(shadow.access(0, 4, first, false, at(0, 1, 5)), None);
            assert_eq!(shadow.access(0, 4, second, false, at(0, 2, 5)), expected);
        }
    }

    #[test]
    fn a_read_of_the_writer_itself_hides_no_other() {
        let mut shadow = Shadow::new(4, 4);
        shadow.access(0, 4, false, false, at(0, 2, 0));
        shadow.access(0, 4, false, false, at(0, 1, 0));
        assert_eq!(shadow.access(0, 4, true, false, at(0, 2, 0)), Some(Problem::ReadRace));
    }

    #[test]
    fn reads_before_a_barrier_hide_none_behind_it() {
        let mut shadow = Shadow::new(4, 4);
        for (thread, epoch) in [(1, 0), (2, 1), (3, 1)] {
            shadow.access(0, 4, false, false, at(0, thread, epoch));
        }
        assert_eq!(shadow.access(0, 4, true, false, at(0, 3, 1)), Some(Problem::ReadRace));
    }

    #[test]
    fn blocks_are_never_ordered() {
        let mut shadow = Shadow::new(4, 4);
        shadow.access(0, 4, true, false, at(0, 0, 0));
        assert_eq!(shadow.access(0, 4, true, false, at(1, 0, 9)), Some(Problem::WriteRace));
        assert_eq!(shadow.access(0, 4, true, true, at(2, 0, 9)), None);
    }
}
