//! Places of buffers in a program whose steps are written: lifetimes, the arena, and which constants are kept.

use margay_loops::{BufferId, Place, Program, Work, for_each_operand, walk};

use crate::arena::{Lifetime, plan_memory};

/// Gives every temporary that a step touches its place in the arena, at a multiple of `align` bytes. Returns from which step
/// to which every buffer is needed.
pub(crate) fn place_temporaries(program: &mut Program, align: usize) -> Vec<Option<Lifetime>> {
    let lives = lifetimes(program);
    let temporary: Vec<usize> = (0..program.buffers.len())
        .filter(|&b| matches!(program.buffers[b].place, Place::Arena(_)) && lives[b].is_some())
        .collect();
    let table: Vec<Lifetime> = temporary.iter().filter_map(|&b| lives[b]).collect();
    let (offsets, peak) = plan_memory(&table, align);
    for (&b, offset) in temporary.iter().zip(offsets) {
        program.buffers[b].place = Place::Arena(offset);
    }
    program.arena_bytes = peak;
    lives
}

/// Gives the temporaries of a program places for the bytes that they have.
pub fn place(program: &mut Program, align: usize) {
    place_temporaries(program, align);
}

/// From which step to which every buffer is needed, by the numbers of the steps; `None` for one that no step touches.
///
/// What a loop and a step outside of it touch is needed as long as the loop runs. What only steps inside it touch is
/// made anew in every repetition.
fn lifetimes(program: &Program) -> Vec<Option<Lifetime>> {
    let mut lives: Vec<Option<Lifetime>> = vec![None; program.buffers.len()];
    let mut loops = Vec::new();
    for (i, (_, step)) in program.steps().enumerate() {
        for operand in step.operands() {
            let bytes = program.buffers[operand.buffer.0].bytes;
            lives[operand.buffer.0].get_or_insert(Lifetime { first: i, last: i, bytes }).last = i;
        }
        if let Work::Loop(l) = &step.work {
            loops.push((i, i + walk(&l.body).count()));
        }
    }
    // Inner loops come after those around them.
    for (start, end) in loops.into_iter().rev() {
        for life in lives.iter_mut().flatten() {
            let inside = life.first <= end && life.last >= start;
            if inside && (life.first <= start || life.last > end) {
                life.first = life.first.min(start);
                life.last = life.last.max(end);
            }
        }
    }
    lives
}

/// Removes constants that no step reads, such as the row-major form of a packed weight.
pub(crate) fn drop_unread_constants(program: &mut Program, lives: &[Option<Lifetime>]) {
    let mut read = vec![false; program.constants.len()];
    for (buffer, life) in program.buffers.iter().zip(lives) {
        if let (&Place::Constant(n), true) = (&buffer.place, life.is_some()) {
            read[n] = true;
        }
    }
    let mut numbers = vec![0; read.len()];
    let mut kept = 0;
    for (number, is_read) in numbers.iter_mut().zip(&read) {
        *number = kept;
        kept += usize::from(*is_read);
    }
    let mut is_read = read.iter();
    program.constants.retain(|_| is_read.next() == Some(&true));
    for (buffer, _) in program.buffers.iter_mut().zip(lives).filter(|(_, l)| l.is_some()) {
        if let Place::Constant(n) = &mut buffer.place {
            *n = numbers[*n];
        }
    }
}

/// Brings buffers into the order of inputs, outputs, constants and temporaries, and drops constants and temporaries that
/// no step touches.
pub(crate) fn order_buffers(program: &mut Program, lives: &[Option<Lifetime>]) {
    let rank = |place: &Place| match *place {
        Place::Input(n) => (0, n),
        Place::Output(n) => (1, n),
        Place::Constant(n) => (2, n),
        Place::Arena(_) => (3, 0),
    };
    let port = |place: &Place| matches!(place, Place::Input(_) | Place::Output(_));
    let kept = |b: &usize| lives[*b].is_some() || port(&program.buffers[*b].place);
    let mut order: Vec<usize> = (0..program.buffers.len()).filter(kept).collect();
    order.sort_by_key(|&b| rank(&program.buffers[b].place));
    let mut numbers = vec![0; program.buffers.len()];
    order.iter().enumerate().for_each(|(to, &from)| numbers[from] = to);
    program.buffers = order.iter().map(|&b| program.buffers[b].clone()).collect();
    for_each_operand(&mut program.body, &mut |operand| operand.buffer = BufferId(numbers[operand.buffer.0]));
}
