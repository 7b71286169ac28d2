//! Which thread does what of a loop nest: a pure function of the kernel.
//!
//! A *position* is one value of every parallel loop. Threads that are neighbours take positions that are neighbours along the
//! innermost parallel loop; blocks take what is left in turn until all are done. Where the loops inside a position are long
//! and their neighbours lie side by side in memory, the threads of a block share a position instead: these loops are spread
//! over them, and reductions are joined in a fixed order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use margay_kernels_gpu::WARP;
use margay_loops::{Axis, Index, Kernel, Literal, Stmt, Unary};
use margay_tensor::DType;

/// Threads of a block where each has positions of its own.
const BLOCK: usize = 128;
/// The most blocks of a launch; positions beyond are done in turn.
const MAX_BLOCKS: usize = 132 * 16;
/// The least extent of a loop that is spread over threads.
const MIN_SPREAD: usize = 16;
/// Below so many positions a device is not filled by a thread for each.
const FEW_POSITIONS: usize = 256;
/// Neighbours that one thread computes at once, where all accesses are aligned for it.
pub(crate) const LANES: usize = 4;

/// Who computes a position.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Share {
    /// One thread, that many neighbours along the innermost parallel loop at once: 1 or 4.
    Thread {
        /// Neighbours.
        lanes: usize,
    },
    /// All threads of a block, which the loops inside are spread over.
    Block,
}

/// How a kernel is spread over a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mapping {
    /// Who computes a position.
    pub share: Share,
    /// Threads of a block.
    pub threads: usize,
    /// Blocks.
    pub blocks: usize,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = match self.share {
            Share::Thread { lanes: 1 } => "a thread per position".to_owned(),
            Share::Thread { lanes } => format!("a thread per {lanes} positions"),
            Share::Block => "a block per position".to_owned(),
        };
        write!(f, "{share}, {} blocks of {}", self.blocks, self.threads)
    }
}

/// The mapping of a kernel. `aligned` says that every argument begins at a multiple of 16 bytes.
pub fn map(kernel: &Kernel, aligned: bool) -> Mapping {
    let (_, loops, inside) = kernel.parallel_nest();
    let positions: usize = kernel.parallel_extents().iter().product();
    let innermost = loops.last().and_then(|stmt| axis_of(stmt));
    let longest = inside.iter().filter_map(extent_of).max().unwrap_or(0);
    let along_inner: usize =
        inside.iter().filter_map(|s| axis_of(s).map(|a| neighbours(body_of(s), a))).sum();
    let along_outer = innermost.map_or(0, |axis| neighbours(inside, axis));
    if longest >= MIN_SPREAD
        && (along_inner > along_outer || positions < FEW_POSITIONS)
        && can_be_spread(kernel, inside)
    {
        let threads = match longest {
            0..=256 => WARP,
            257..=2048 => 4 * WARP,
            _ => 8 * WARP,
        };
        return Mapping { share: Share::Block, threads, blocks: positions.clamp(1, MAX_BLOCKS) };
    }
    let lanes = if aligned && takes_lanes(kernel, loops.last().copied(), inside) { LANES } else { 1 };
    let blocks = (positions / lanes).div_ceil(BLOCK).clamp(1, MAX_BLOCKS);
    // One thread is enough for one position.
    let threads = if positions <= 1 { WARP } else { BLOCK };
    Mapping { share: Share::Thread { lanes }, threads, blocks }
}

fn axis_of(stmt: &Stmt) -> Option<Axis> {
    match stmt {
        Stmt::Loop { axis, .. } | Stmt::Reduce { axis, .. } => Some(*axis),
        _ => None,
    }
}

fn extent_of(stmt: &Stmt) -> Option<usize> {
    match stmt {
        Stmt::Loop { extent, .. } | Stmt::Reduce { extent, .. } => Some(extent.bound()),
        _ => None,
    }
}

pub(crate) fn body_of(stmt: &Stmt) -> &[Stmt] {
    match stmt {
        Stmt::Loop { body, .. } | Stmt::Reduce { body, .. } => body,
        _ => &[],
    }
}

/// An access to memory.
struct Access<'k> {
    arg: usize,
    index: &'k Index,
}

/// Every access of statements and those inside them.
fn accesses<'k>(body: &'k [Stmt], found: &mut Vec<Access<'k>>) {
    for stmt in body {
        match stmt {
            Stmt::Load { arg, index, .. } | Stmt::Store { arg, index, .. } => {
                found.push(Access { arg: *arg, index });
            }
            other => accesses(body_of(other), found),
        }
    }
}

/// The number of accesses whose neighbours along an axis are neighbours in memory.
fn neighbours(body: &[Stmt], axis: Axis) -> usize {
    let mut found = Vec::new();
    accesses(body, &mut found);
    found.iter().filter(|access| access.index.coefficient(axis) == 1).count()
}

/// Whether the loops right inside a position may be spread over threads without a barrier between them: what one of them
/// writes is reached, there and in the others, by one index along the axis that is spread, so that every thread reads back
/// only what it wrote itself.
fn can_be_spread(kernel: &Kernel, inside: &[Stmt]) -> bool {
    let mut beside = BTreeSet::new();
    let mut places: BTreeMap<usize, (Index, usize)> = BTreeMap::new();
    for stmt in inside {
        let mut found = Vec::new();
        let Some(axis) = axis_of(stmt) else {
            accesses(std::slice::from_ref(stmt), &mut found);
            beside.extend(found.iter().map(|access| access.arg).filter(|&arg| kernel.args[arg].written));
            continue;
        };
        accesses(body_of(stmt), &mut found);
        let extent = extent_of(stmt).unwrap_or(0);
        for access in found.iter().filter(|access| kernel.args[access.arg].written) {
            let index = access.index;
            let deeper = index.axes.iter().any(|(a, _)| a.0 > axis.0);
            if index.coefficient(axis) == 0
                || deeper
                || index.registers().next().is_some()
                || !index.sizes.is_empty()
            {
                return false;
            }
            let mut place = index.clone();
            for (a, _) in place.axes.iter_mut().filter(|(a, _)| *a == axis) {
                *a = Axis(u16::MAX);
            }
            place.axes.sort_unstable();
            if places.entry(access.arg).or_insert_with(|| (place.clone(), extent)) != &(place, extent) {
                return false;
            }
        }
    }
    // Beside the loops only the first thread writes. It may not be what others write or read.
    beside.iter().all(|arg| !places.contains_key(arg)) && beside_is_written_once(kernel, inside)
}

/// Whether nothing is read beside the loops that the kernel writes.
fn beside_is_written_once(kernel: &Kernel, inside: &[Stmt]) -> bool {
    inside.iter().all(|stmt| !matches!(stmt, Stmt::Load { arg, .. } if kernel.args[*arg].written))
}

/// Whether four neighbours along the innermost parallel loop can be computed at once: everything is f32 where it varies,
/// and every access that varies is of four neighbours at a multiple of 16 bytes.
fn takes_lanes(kernel: &Kernel, innermost: Option<&Stmt>, inside: &[Stmt]) -> bool {
    let Some(Stmt::Loop { axis, extent: margay_loops::Extent::Known(extent), .. }) = innermost else {
        return false;
    };
    if extent % LANES != 0 || inside.iter().any(|stmt| axis_of(stmt).is_some()) {
        return false;
    }
    let mut varying = Varying { kernel, axis: *axis, registers: BTreeSet::new() };
    inside.iter().all(|stmt| varying.takes(stmt)) && inside.iter().any(|s| matches!(s, Stmt::Store { .. }))
}

/// The registers that differ between neighbours.
struct Varying<'k> {
    kernel: &'k Kernel,
    axis: Axis,
    registers: BTreeSet<u32>,
}

impl Varying<'_> {
    /// Whether a statement has a form for lanes. Remembers what it defines.
    fn takes(&mut self, stmt: &Stmt) -> bool {
        let mut is_varying = false;
        let mut varies = |r: &margay_loops::Reg| {
            let found = self.registers.contains(&r.0);
            is_varying |= found;
            found
        };
        let dtype = |r: &margay_loops::Reg| self.kernel.regs[r.0 as usize];
        let is_f32 = |r: &margay_loops::Reg| dtype(r) == DType::F32;
        let takes = match stmt {
            Stmt::Literal { .. } | Stmt::Size { .. } => true,
            Stmt::IndexValue { index, .. } => !self.moves(index),
            Stmt::Unary { op, x, .. } => !varies(x) || is_f32(x) || *op == Unary::Not,
            Stmt::Binary { x, y, .. } => {
                let (x_varies, y_varies) = (varies(x), varies(y));
                !(x_varies || y_varies) || is_f32(x) || dtype(x) == DType::Bool
            }
            Stmt::Select { test, x, y, .. } => {
                let parts = [varies(test), varies(x), varies(y)];
                !parts.contains(&true) || is_f32(x) || dtype(x) == DType::Bool
            }
            Stmt::Cast { to, x } => !varies(x) || (is_f32(x) && is_f32(to)),
            Stmt::Load { arg, index, guard, .. } => match self.moves(index) {
                true => {
                    is_varying = true;
                    guard.is_none() && self.is_aligned(*arg, index)
                }
                false => !guard.is_some_and(|(test, _): (margay_loops::Reg, Literal)| varies(&test)),
            },
            Stmt::Store { arg, index, .. } => self.is_aligned(*arg, index),
            Stmt::Require { test, .. } => !varies(test),
            Stmt::Loop { .. } | Stmt::Reduce { .. } => false,
        };
        if is_varying {
            self.registers.extend(stmt.defines().iter().map(|r| r.0));
        }
        takes
    }

    /// Whether an index differs between neighbours.
    fn moves(&self, index: &Index) -> bool {
        index.moves_along(self.axis) || index.registers().any(|r| self.registers.contains(&r.0))
    }

    /// Whether four neighbours lie side by side from a multiple of 16 bytes on.
    fn is_aligned(&self, arg: usize, index: &Index) -> bool {
        let multiple = |c: i64| c % LANES as i64 == 0;
        self.kernel.args[arg].dtype == DType::F32
            && index.coefficient(self.axis) == 1
            && index.regs.is_empty()
            && index.sizes.is_empty()
            && multiple(index.offset)
            && index.axes.iter().all(|(a, c)| *a == self.axis || multiple(*c))
    }
}
