//! Which bytes steps touch, and what they hold on the way.

use std::collections::BTreeMap;

use super::{Violation, control, name};
use crate::text::buffer_names;
use crate::{Axis, BufferId, Extent, Index, Kernel, Operand, Place, Program, Step, Stmt, Work};

/// Blocks of bytes that are looked at one by one; where an access has more of them, it counts as what lies between the
/// first and the last.
const MAX_BLOCKS: usize = 1 << 10;

/// Bytes of a buffer that one argument of a step reads or writes.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// Position among the operands of the step.
    pub(crate) argument: usize,
    /// The buffer.
    pub(crate) buffer: BufferId,
    /// The first byte.
    pub(crate) begin: i128,
    /// Behind the last byte.
    pub(crate) end: i128,
    /// Whether it is written.
    pub(crate) writes: bool,
    /// The very bytes.
    ranges: Ranges,
}

/// Disjoint ranges in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Ranges(Vec<(i128, i128)>);

impl Ranges {
    fn of(mut all: Vec<(i128, i128)>) -> Ranges {
        all.retain(|(begin, end)| begin < end);
        all.sort_unstable();
        let mut joined: Vec<(i128, i128)> = Vec::new();
        for (begin, end) in all {
            match joined.last_mut() {
                Some(last) if begin <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((begin, end)),
            }
        }
        Ranges(joined)
    }

    fn whole(bytes: usize) -> Ranges {
        Ranges::of(vec![(0, bytes as i128)])
    }

    fn with(&self, other: &Ranges) -> Ranges {
        Ranges::of(self.0.iter().chain(&other.0).copied().collect())
    }

    fn without(&self, other: &Ranges) -> Ranges {
        let mut left = Vec::new();
        let mut cuts = other.0.as_slice();
        for &(mut begin, end) in &self.0 {
            while let [(_, last), rest @ ..] = cuts
                && *last <= begin
            {
                cuts = rest;
            }
            for &(from, to) in cuts.iter().take_while(|c| c.0 < end) {
                left.push((begin, from));
                begin = begin.max(to);
            }
            left.push((begin, end));
        }
        Ranges::of(left)
    }

    fn both(&self, other: &Ranges) -> Ranges {
        self.without(&self.without(other))
    }

    fn shifted(&self, by: i128) -> Ranges {
        Ranges(self.0.iter().map(|(begin, end)| (begin + by, end + by)).collect())
    }

    fn clipped(&self, bytes: usize) -> Ranges {
        self.both(&Ranges::whole(bytes))
    }
}

/// The bytes from `start` on that elements of a size cover: `(extent, stride)` per axis, strides in elements.
fn cover(start: i128, size: usize, axes: &[(usize, i64)]) -> Ranges {
    if axes.iter().any(|(extent, _)| *extent == 0) {
        return Ranges::default();
    }
    let mut start = start;
    let mut axes: Vec<(i128, i128)> =
        axes.iter().map(|&(n, s)| (n as i128, s as i128 * size as i128)).collect();
    for (n, stride) in &mut axes {
        if *stride < 0 {
            start += (*n - 1) * *stride;
            *stride = -*stride;
        }
    }
    axes.retain(|(n, stride)| *n > 1 && *stride != 0);
    axes.sort_by_key(|a| a.1);
    // A block grows as long as the next axis leaves no gap.
    let mut block = size as i128;
    let dense = axes.iter().take_while(|(n, stride)| {
        let joins = *stride <= block;
        if joins {
            block += (n - 1) * stride;
        }
        joins
    });
    let apart = &axes[dense.count()..];
    let span: i128 = apart.iter().map(|(n, stride)| (n - 1) * stride).sum();
    let blocks = apart.iter().try_fold(1i128, |n, a| n.checked_mul(a.0));
    if blocks.is_none_or(|n| n > MAX_BLOCKS as i128) {
        return Ranges::of(vec![(start, start + span + block)]);
    }
    let mut starts = vec![start];
    for (n, stride) in apart {
        starts = starts.iter().flat_map(|s| (0..*n).map(move |i| s + i * stride)).collect();
    }
    Ranges::of(starts.into_iter().map(|s| (s, s + block)).collect())
}

/// What a step touches, argument by argument.
pub(crate) fn accesses(p: &Program, step: &Step) -> Vec<Access> {
    let access = |argument: usize, operand: &Operand, ranges: Ranges, writes: bool| {
        let ranges = ranges.shifted(operand.offset_bytes as i128);
        let begin = ranges.0.first().map_or(0, |r| r.0);
        let end = ranges.0.last().map_or(0, |r| r.1);
        Access { argument, buffer: operand.buffer, begin, end, writes, ranges }
    };
    match &step.work {
        Work::Kernel { kernel, args } => {
            let k = &p.kernels[*kernel];
            let mut all = Vec::new();
            for (i, operand) in args.iter().enumerate() {
                let bytes = p.buffers[operand.buffer.0].bytes.saturating_sub(operand.offset_bytes);
                let (reads, writes) = kernel_ranges(k, i, bytes);
                all.extend(writes.map(|ranges| access(i, operand, ranges, true)));
                // What a kernel reads back it has written itself.
                if !k.args[i].written {
                    all.extend(reads.map(|ranges| access(i, operand, ranges, false)));
                }
            }
            all
        }
        Work::Call { call, needs, args } => {
            let described = call.args();
            let mut all = Vec::new();
            for (i, operand) in args.iter().enumerate() {
                let packed = needs.packed.iter().find(|p| p.operand == i);
                let (ranges, writes) = match (packed, described.get(i)) {
                    (Some(packed), _) => (Ranges::whole(packed.bytes), false),
                    (None, Some(arg)) => {
                        let axes: Vec<(usize, i64)> = arg.axes.iter().map(|&(n, s)| (n, s as i64)).collect();
                        (cover(0, arg.dtype.bytes(), &axes), arg.written)
                    }
                    (None, None) => (Ranges::whole(needs.workspace_bytes), true),
                };
                all.push(access(i, operand, ranges, writes));
            }
            all
        }
        Work::Copy { from, to, bytes } => {
            vec![access(0, from, Ranges::whole(*bytes), false), access(1, to, Ranges::whole(*bytes), true)]
        }
        Work::If { .. } | Work::Loop(_) => control(&step.work)
            .into_iter()
            .enumerate()
            .map(|(i, (operand, dtype, writes))| access(i, &operand, Ranges::whole(dtype.bytes()), writes))
            .collect(),
    }
}

/// The bytes that a kernel reads and writes of an argument with so many bytes. Where a register says which, it is
/// none for a read and all for a write; what a guard may leave out reaches no further than the memory.
fn kernel_ranges(k: &Kernel, arg: usize, bytes: usize) -> (Option<Ranges>, Option<Ranges>) {
    type See<'s> = dyn FnMut(&Stmt, &[(Axis, usize)]) + 's;
    fn visit(body: &[Stmt], around: &mut Vec<(Axis, usize)>, see: &mut See<'_>) {
        for stmt in body {
            see(stmt, around);
            if let Stmt::Loop { axis, extent, body, .. } | Stmt::Reduce { axis, extent, body, .. } = stmt
                && extent.bound() > 0
            {
                around.push((*axis, extent.bound()));
                visit(body, around, see);
                around.pop();
            }
        }
    }
    let size = k.args[arg].dtype.bytes();
    let cover = |index: &Index, around: &[(Axis, usize)]| {
        let axes = index.axes.iter().map(|(axis, c)| {
            let extent = around.iter().find(|(a, _)| a == axis).map_or(1, |(_, n)| *n);
            (extent, *c)
        });
        cover(index.offset as i128 * size as i128, size, &axes.collect::<Vec<_>>())
    };
    let (mut reads, mut writes): (Option<Ranges>, Option<Ranges>) = (None, None);
    let add = |to: &mut Option<Ranges>, more: Ranges| *to = Some(to.take().unwrap_or_default().with(&more));
    visit(&k.body, &mut Vec::new(), &mut |stmt, around| match stmt {
        Stmt::Load { arg: a, index, guard, .. } if *a == arg => match (index.regs.is_empty(), guard) {
            (false, _) => add(&mut reads, Ranges::default()),
            (true, None) => add(&mut reads, cover(index, around)),
            (true, Some(_)) => add(&mut reads, cover(index, around).clipped(bytes)),
        },
        Stmt::Store { arg: a, index, .. } if *a == arg => match index.regs.is_empty() {
            true => add(&mut writes, cover(index, around)),
            false => add(&mut writes, Ranges::whole(bytes)),
        },
        _ => {}
    });
    (reads, writes)
}

/// The kind of memory of inputs, and of outputs that are carried to them.
const CARRIED: usize = 2;

/// Which memory a buffer is in, and where it begins there. Carried outputs are in the memory of their inputs.
fn address(p: &Program, buffer: BufferId) -> (usize, usize, i128) {
    match p.buffers[buffer.0].place {
        Place::Arena(at) => (0, 0, at as i128),
        Place::Constant(n) => (1, n, 0),
        Place::Input(n) => (CARRIED, n, 0),
        Place::Output(n) => match p.carried.iter().find(|c| c.output == n) {
            Some(c) => (CARRIED, c.input, 0),
            None => (3, n, 0),
        },
    }
}

/// Where an operand begins.
pub(crate) fn start(p: &Program, operand: &Operand) -> (usize, usize, i128) {
    let (kind, number, at) = address(p, operand.buffer);
    (kind, number, at + operand.offset_bytes as i128)
}

/// Whether two accesses share a byte.
pub(crate) fn overlap(p: &Program, a: &Access, b: &Access) -> bool {
    let ((kind, number, at), (other_kind, other_number, other_at)) =
        (address(p, a.buffer), address(p, b.buffer));
    let meets = |a: &Access, at: i128, b: &Access, other: i128| a.begin + at < b.end + other;
    (kind, number) == (other_kind, other_number)
        && meets(a, at, b, other_at)
        && meets(b, other_at, a, at)
        && !a.ranges.shifted(at).both(&b.ranges.shifted(other_at)).0.is_empty()
}

/// Memory that buffers may share.
type Memory = (usize, usize);

/// The buffers that hold what was written to them in some bytes: one, or a carried input and its output before any step.
type Holders = (usize, Option<usize>);

/// For every byte of arena, inputs and outputs the buffers whose it is. What is no piece holds nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct State(BTreeMap<(Memory, i128), (i128, Holders)>);

impl State {
    /// The pieces that reach into a range, with their beginnings and ends.
    fn within(&self, memory: Memory, (begin, end): (i128, i128)) -> Vec<(i128, i128, Holders)> {
        let before = self.0.range(..(memory, begin)).next_back();
        let before = before.filter(|((other, _), (last, _))| *other == memory && *last > begin);
        let all = before.into_iter().chain(self.0.range((memory, begin)..(memory, end.max(begin))));
        all.map(|((_, from), (to, holders))| (*from, *to, *holders)).collect()
    }

    /// Makes a range that of some buffers, and joins it with what lies beside it and is theirs too.
    fn set(&mut self, memory: Memory, (mut begin, mut end): (i128, i128), holders: Holders) {
        for (from, to, old) in self.within(memory, (begin, end)) {
            self.0.remove(&(memory, from));
            if from < begin {
                self.0.insert((memory, from), (begin, old));
            }
            if to > end {
                self.0.insert((memory, end), (to, old));
            }
        }
        if let Some((&(_, from), _)) = self
            .0
            .range(..(memory, begin))
            .next_back()
            .filter(|((other, _), (to, old))| *other == memory && *to == begin && *old == holders)
        {
            self.0.remove(&(memory, from));
            begin = from;
        }
        if let Some((to, _)) = self.0.get(&(memory, end)).copied().filter(|(_, old)| *old == holders) {
            self.0.remove(&(memory, end));
            end = to;
        }
        self.0.insert((memory, begin), (end, holders));
    }

    /// What holds on both of two ways.
    fn meet(&self, other: &State) -> State {
        let mut met = State::default();
        for (&(memory, begin), &(end, ours)) in &self.0 {
            for (from, to, theirs) in other.within(memory, (begin, end)) {
                let holds = |b: usize| theirs.0 == b || theirs.1 == Some(b);
                let both = match (holds(ours.0), ours.1.filter(|b| holds(*b))) {
                    (true, second) => (ours.0, second),
                    (false, Some(second)) => (second, None),
                    (false, None) => continue,
                };
                met.set(memory, (from.max(begin), to.min(end)), both);
            }
        }
        met
    }
}

/// Follows the bytes of a program through its steps.
pub(crate) struct Flow<'p> {
    p: &'p Program,
    names: Vec<String>,
    /// Of every buffer the memory, and where it begins there; `None` for constants, which nothing writes.
    places: Vec<Option<(Memory, i128)>>,
    found: Vec<Violation>,
}

impl<'p> Flow<'p> {
    pub(crate) fn new(p: &'p Program) -> Flow<'p> {
        let place = |b: usize| {
            let (kind, number, at) = address(p, BufferId(b));
            (!matches!(p.buffers[b].place, Place::Constant(_))).then_some(((kind, number), at))
        };
        let places = (0..p.buffers.len()).map(place).collect();
        Flow { p, names: buffer_names(p), places, found: Vec::new() }
    }

    /// Rules 5 and 6 of programs.
    pub(crate) fn check(mut self) -> Vec<Violation> {
        let mut state = State::default();
        let mut outputs = vec![None; self.p.outputs.len()];
        for (b, buffer) in self.p.buffers.iter().enumerate() {
            if let Place::Output(n) = buffer.place {
                outputs[n] = Some(b);
            }
            let Some((memory, at)) = self.places[b] else { continue };
            // Inputs, and the states that the run before has left.
            if memory.0 == CARRIED && buffer.bytes > 0 {
                let whole = (at, at + buffer.bytes as i128);
                let other = state.within(memory, whole).first().map(|(_, _, holders)| holders.0);
                state.set(memory, whole, other.map_or((b, None), |first| (first, Some(b))));
            }
        }
        self.block(&self.p.body, &mut state, &mut 0, true);
        for (port, buffer) in self.p.outputs.iter().zip(outputs) {
            let at = format!("output `{}`", port.name);
            let whole = Ranges::whole(port.bytes());
            let left = match buffer {
                Some(b) => self.missing(b, &whole, &state),
                None => whole,
            };
            if let Some((begin, end)) = left.0.first() {
                self.found
                    .push(Violation { at, problem: format!("nothing writes its bytes {begin}..{end}") });
            }
        }
        self.found
    }

    /// The bytes of some of a buffer that hold nothing of it.
    fn missing(&self, b: usize, ranges: &Ranges, state: &State) -> Ranges {
        let Some((memory, at)) = self.places[b] else { return Ranges::default() };
        let mut left = Vec::new();
        for &(begin, end) in &ranges.0 {
            let mut from = begin;
            for (first, last, holders) in state.within(memory, (begin + at, end + at)) {
                if holders.0 == b || holders.1 == Some(b) {
                    left.push((from, first - at));
                    from = last - at;
                }
            }
            left.push((from, end));
        }
        Ranges::of(left)
    }

    fn block(&mut self, steps: &[Step], state: &mut State, number: &mut usize, report: bool) {
        for step in steps {
            let here = *number;
            *number += 1;
            let accesses = accesses(self.p, step);
            match &step.work {
                Work::Kernel { .. } | Work::Call { .. } | Work::Copy { .. } => {
                    self.touch(&accesses, state, here, step, report);
                }
                Work::If { then, otherwise, .. } => {
                    self.touch(&accesses, state, here, step, report);
                    let mut other = state.clone();
                    self.block(then, state, number, report);
                    self.block(otherwise, &mut other, number, report);
                    *state = state.meet(&other);
                }
                Work::Loop(l) => {
                    // Whatever holds before a repetition holds at the start and after any repetition before it.
                    let mut entry = state.clone();
                    loop {
                        let mut after = entry.clone();
                        self.touch(&accesses, &mut after, here, step, false);
                        self.block(&l.body, &mut after, &mut { *number }, false);
                        let next = entry.meet(&after);
                        if next == entry {
                            break;
                        }
                        entry = next;
                    }
                    let mut after = entry.clone();
                    self.touch(&accesses, &mut after, here, step, report);
                    self.block(&l.body, &mut after, number, report);
                    let runs = matches!(l.trips, Extent::Known(1..)) && l.condition.is_none();
                    *state = if runs { after } else { entry };
                }
            }
        }
    }

    fn touch(&mut self, accesses: &[Access], state: &mut State, number: usize, step: &Step, report: bool) {
        for read in accesses.iter().filter(|a| !a.writes && report) {
            let b = read.buffer.0;
            let missing = self.missing(b, &read.ranges, state);
            if let Some((begin, end)) = missing.0.first() {
                let problem =
                    format!("reads bytes {begin}..{end} of {}, which hold nothing of it", self.names[b]);
                self.found.push(Violation { at: name(number, step), problem });
            }
        }
        for write in accesses.iter().filter(|a| a.writes) {
            let b = write.buffer.0;
            let Some((memory, at)) = self.places[b] else { continue };
            for &(begin, end) in &write.ranges.0 {
                state.set(memory, (begin + at, end + at), (b, None));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sets() {
        let a = Ranges::of(vec![(8, 12), (0, 4), (4, 6)]);
        assert_eq!(a, Ranges(vec![(0, 6), (8, 12)]));
        assert_eq!(a.without(&Ranges::of(vec![(2, 9), (11, 20)])), Ranges(vec![(0, 2), (9, 11)]));
        assert_eq!(a.both(&Ranges::of(vec![(2, 9), (11, 20)])), Ranges(vec![(2, 6), (8, 9), (11, 12)]));
        assert_eq!(a.without(&a), Ranges::default());
    }

    #[test]
    fn a_walk_covers_what_it_reaches() {
        assert_eq!(cover(0, 4, &[(3, 5), (5, 1)]), Ranges(vec![(0, 60)]));
        assert_eq!(cover(4, 4, &[(2, 10), (3, 1)]), Ranges(vec![(4, 16), (44, 56)]));
        assert_eq!(cover(36, 4, &[(10, -1)]), Ranges(vec![(0, 40)]));
        assert_eq!(cover(0, 4, &[(10, 0)]), Ranges(vec![(0, 4)]));
        assert_eq!(cover(0, 4, &[(0, 1)]), Ranges::default());
    }
}
