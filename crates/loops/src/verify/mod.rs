//! What holds in every program: whoever makes one may have it checked, and whoever runs one may rely on it.
//!
//! 1. Every buffer lies inside its place and has its size; an input, output or constant is one buffer; a pair of
//!    carried ports has one type, and no port is in two pairs.
//! 2. Kernels are well formed: see [`kernel`].
//! 3. Steps name kernels and buffers that there are, with as many operands as the kernel or call has arguments, each
//!    inside its buffer and large enough for what is read and written there; nothing writes to constants, nor to
//!    inputs that are not carried.
//! 4. What a step writes overlaps nothing else that it touches, but for an argument that is read
//!    [where it is written](crate::Kernel::reads_where_it_writes).
//! 5. No step reads bytes of a temporary or output that were not written before it, on every way that leads to it, or
//!    that another buffer has overwritten since.
//! 6. At the end every byte of every output is written.

pub mod kernel;
mod memory;

use std::collections::HashSet;
use std::fmt;

use margay_tensor::DType;

use crate::{BufferId, Counted, Extent, Operand, Place, Port, Program, Step, Work};
use memory::{Access, Flow};

/// What does not hold, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The step, kernel or buffer.
    pub at: String,
    /// What is wrong, with numbers.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.problem)
    }
}

impl Program {
    /// Checks all that holds in a program; everything that does not is reported. Of an open program, what it is at the
    /// least and at the greatest values of its symbols.
    pub fn verify(&self) -> Result<(), Vec<Violation>> {
        if self.open.is_closed() {
            return self.verify_closed();
        }
        for symbols in self.open.corners() {
            let at = || format!("at {symbols:?}");
            let closed = self.open.sizes_at(&symbols).map(|sizes| self.at(&sizes));
            match closed {
                Some(Ok(closed)) => closed.verify_closed()?,
                Some(Err(problem)) => return Err(vec![Violation { at: at(), problem }]),
                None => return Err(vec![Violation { at: at(), problem: "a size has no value".to_owned() }]),
            }
        }
        Ok(())
    }

    fn verify_closed(&self) -> Result<(), Vec<Violation>> {
        let mut found = Vec::new();
        buffers(self, &mut found);
        for (i, k) in self.kernels.iter().enumerate() {
            let at = format!("k{i}");
            found.extend(kernel::verify(k).into_iter().map(|problem| Violation { at: at.clone(), problem }));
        }
        if found.is_empty() {
            for (number, (_, step)) in self.steps().enumerate() {
                let problems = self::step(self, step);
                found.extend(
                    problems.into_iter().map(|problem| Violation { at: name(number, step), problem }),
                );
            }
        }
        // What follows relies on all that comes before.
        if found.is_empty() {
            found = Flow::new(self).check();
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    }
}

fn name(number: usize, step: &Step) -> String {
    if step.label.is_empty() { format!("step {number}") } else { format!("step {number} ({})", step.label) }
}

fn buffers(p: &Program, found: &mut Vec<Violation>) {
    let names = crate::text::buffer_names(p);
    let mut seen = HashSet::new();
    for (buffer, at) in p.buffers.iter().zip(&names) {
        let expected = match buffer.place {
            Place::Input(n) => p.inputs.get(n).map(|port| port.bytes()),
            Place::Output(n) => p.outputs.get(n).map(|port| port.bytes()),
            Place::Constant(n) => p.constants.get(n).map(|c| c.bytes()),
            Place::Arena(from) => {
                let end = from.checked_add(buffer.bytes).filter(|&end| end <= p.arena_bytes);
                if end.is_none() {
                    let problem =
                        format!("{} bytes at {from} in an arena of {}", buffer.bytes, p.arena_bytes);
                    found.push(Violation { at: at.clone(), problem });
                }
                continue;
            }
        };
        let problem = match expected {
            None => "there is no such place".to_owned(),
            Some(bytes) if bytes != buffer.bytes => format!("{} bytes, expected {bytes}", buffer.bytes),
            Some(_) if !seen.insert(at.clone()) => "two buffers lie there".to_owned(),
            Some(_) => continue,
        };
        found.push(Violation { at: at.clone(), problem });
    }
    let (mut inputs, mut outputs) = (HashSet::new(), HashSet::new());
    for c in &p.carried {
        let at = format!("carried out{} to in{}", c.output, c.input);
        let problem = match (p.inputs.get(c.input), p.outputs.get(c.output)) {
            (Some(i), Some(o)) if (i.dtype, &i.shape) != (o.dtype, &o.shape) => {
                format!("{}{:?} becomes {}{:?}", o.dtype, o.shape, i.dtype, i.shape)
            }
            (Some(_), Some(_)) if inputs.insert(c.input) & outputs.insert(c.output) => continue,
            (Some(_), Some(_)) => "one of them is in two pairs".to_owned(),
            _ => "there is no such port".to_owned(),
        };
        found.push(Violation { at, problem });
    }
    for c in &p.counted {
        let at = format!("counted out{} axis {} by out{}", c.output, c.axis, c.count);
        if let Some(problem) = counted(&p.outputs, c) {
            found.push(Violation { at, problem });
        }
    }
}

/// What is wrong with what an output counts of another.
fn counted(outputs: &[Port], c: &Counted) -> Option<String> {
    let (Some(output), Some(count)) = (outputs.get(c.output), outputs.get(c.count)) else {
        return Some("there is no such port".to_owned());
    };
    if count.dtype != DType::I64 || !count.shape.is_empty() || c.count == c.output {
        return Some(format!("{}{:?} is no number of positions", count.dtype, count.shape));
    }
    (c.axis >= output.shape.len()).then(|| format!("{:?} has no such axis", output.shape))
}

/// Rules 3 and 4.
fn step(p: &Program, step: &Step) -> Vec<String> {
    let missing: Vec<BufferId> =
        step.operands().iter().map(|o| o.buffer).filter(|b| b.0 >= p.buffers.len()).collect();
    if let Some(b) = missing.first() {
        return vec![format!("there is no buffer {}, only {}", b.0, p.buffers.len())];
    }
    let arguments = match &step.work {
        Work::Kernel { kernel, args } => match p.kernels.get(*kernel) {
            None => return vec![format!("there is no kernel k{kernel}, only {}", p.kernels.len())],
            Some(k) => (args.len(), k.args.len()),
        },
        Work::Call { call, needs, args } => {
            (args.len(), call.args().len() + usize::from(needs.workspace_bytes > 0))
        }
        Work::Copy { .. } | Work::If { .. } | Work::Loop(_) => (0, 0),
    };
    if arguments.0 != arguments.1 {
        return vec![format!("{} operands, expected {}", arguments.0, arguments.1)];
    }
    let accesses = memory::accesses(p, step);
    let mut problems = Vec::new();
    for access in &accesses {
        let buffer = &p.buffers[access.buffer.0];
        if access.begin < 0 || access.end > buffer.bytes as i128 {
            let verb = if access.writes { "writes" } else { "reads" };
            let (begin, end, bytes) = (access.begin, access.end, buffer.bytes);
            problems.push(format!("{verb} bytes {begin}..{end} of {} with {bytes}", operand(p, access)));
        }
        let fixed = match buffer.place {
            Place::Constant(_) => true,
            Place::Input(n) => p.carried.iter().all(|c| c.input != n),
            Place::Output(_) | Place::Arena(_) => false,
        };
        if access.writes && fixed {
            problems.push(format!("writes to {}", operand(p, access)));
        }
    }
    for (i, a) in accesses.iter().enumerate().filter(|(_, a)| a.writes) {
        for (j, b) in accesses.iter().enumerate() {
            // A pair of writes is looked at once; what one argument reads and writes is its own affair.
            if i == j || (b.writes && j < i) || b.argument == a.argument {
                continue;
            }
            if memory::overlap(p, a, b) && !in_place(p, step, a, b) {
                problems.push(format!("{} and {} overlap", operand(p, a), operand(p, b)));
            }
        }
    }
    problems
}

/// Whether an argument that overlaps a written one is read only where that is written.
fn in_place(p: &Program, step: &Step, written: &Access, read: &Access) -> bool {
    let Work::Kernel { kernel, args } = &step.work else { return false };
    let (w, r) = (written.argument, read.argument);
    let starts = |i: usize| memory::start(p, &args[i]);
    !read.writes && starts(w) == starts(r) && p.kernels[*kernel].reads_where_it_writes(r, w)
}

fn operand(p: &Program, access: &Access) -> String {
    crate::text::buffer_names(p)[access.buffer.0].clone()
}

/// What the control of a step reads and writes: operand, type, whether written.
pub(crate) fn control(work: &Work) -> Vec<(Operand, DType, bool)> {
    match work {
        Work::If { test, .. } => vec![(*test, DType::Bool, false)],
        Work::Loop(l) => {
            let trips = match l.trips {
                Extent::Known(_) | Extent::Sized { .. } => None,
                Extent::Read { from, .. } => Some((from, DType::I64, false)),
            };
            let condition = l.condition.map(|o| (o, DType::Bool, false));
            let counter = l.counter.map(|o| (o, DType::I64, true));
            trips.into_iter().chain(condition).chain(counter).collect()
        }
        Work::Kernel { .. } | Work::Call { .. } | Work::Copy { .. } => Vec::new(),
    }
}
