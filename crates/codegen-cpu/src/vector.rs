//! Which loops run four lanes at a time.
//!
//! A loop runs in lanes along its axis when every statement whose value differs from lane to lane (*varies*) has a
//! form for four lanes: f32 arithmetic and the truth values made from it, sums, differences and products of i32, loads and
//! stores of neighbours in f32, i32, 16-bit floats, 8-bit integers and as truth values, conversions between these. Of 8-bit
//! integers there is no arithmetic. What does not vary stays scalar, whatever its type, and is copied to all lanes where it meets something that varies. Loops
//! inside may be of any kind, so that a sum over the rows of a matrix runs in lanes along the columns.
//!
//! An innermost loop is preferred to the one around it. Where memory keeps neighbours of some accesses along the
//! innermost loop and those of others along the loop around it, as transpositions do, the two run in *tiles* of four by
//! four. Absent: strided and gathered lanes, lanes of other types.

use std::collections::HashSet;
use std::rc::Rc;

use margay_loops::{Axis, Binary, Combine, Extent, Index, Kernel, Reg, SizeId, Stmt, Unary};
use margay_tensor::DType;

/// Elements of a vector.
pub(crate) const LANES: i64 = 4;
/// Vectors that an iteration of the main loop works on.
pub(crate) const UNROLL: i64 = 4;

/// Tiles beside each other in a block of them.
pub(crate) const TILES: i64 = 4;

/// Blocks of tiles that keep several threads busy.
const MANY_BLOCKS: usize = 16;

/// The registers that vary.
pub(crate) type Varying = Rc<HashSet<Reg>>;

/// A loop as this module looks at it.
#[derive(Clone, Copy)]
pub(crate) struct LoopView<'k> {
    pub(crate) axis: Axis,
    /// `None` for a range known at run time only.
    pub(crate) extent: Option<usize>,
    /// The size that the extent is, and its least value.
    pub(crate) sized: Option<(SizeId, usize)>,
    /// What says the extent at run time, and its bound.
    pub(crate) read: Option<(Reg, usize)>,
    pub(crate) parallel: bool,
    pub(crate) body: &'k [Stmt],
    pub(crate) results: &'k [(Reg, Combine, Reg)],
}

impl<'k> LoopView<'k> {
    fn new(
        axis: Axis,
        extent: Extent<Reg>,
        parallel: bool,
        body: &'k [Stmt],
        results: &'k [(Reg, Combine, Reg)],
    ) -> LoopView<'k> {
        let (extent, sized, read) = match extent {
            Extent::Known(n) => (Some(n), None, None),
            Extent::Sized { size, least, .. } => (None, Some((size, least)), None),
            Extent::Read { from, bound } => (None, None, Some((from, bound))),
        };
        LoopView { axis, extent, sized, read, parallel, body, results }
    }

    /// The loop over a range that is known at run time only.
    pub(crate) fn over_a_range(self) -> LoopView<'k> {
        LoopView { extent: None, sized: None, ..self }
    }

    /// Whether it has fewer positions than so many: of a size, at its least value and by what the back end prefers at every
    /// other one.
    pub(crate) fn is_shorter_than(&self, n: usize) -> bool {
        self.extent.or(self.sized.map(|(_, least)| least)).is_some_and(|least| least < n)
    }

    /// The loop that a statement is.
    pub(crate) fn of(stmt: &'k Stmt) -> Option<LoopView<'k>> {
        match stmt {
            Stmt::Loop { axis, extent, parallel, body } => {
                Some(LoopView::new(*axis, *extent, *parallel, body, &[]))
            }
            Stmt::Reduce { axis, extent, results, body } => {
                Some(LoopView::new(*axis, *extent, false, body, results))
            }
            Stmt::Literal { .. }
            | Stmt::IndexValue { .. }
            | Stmt::Unary { .. }
            | Stmt::Binary { .. }
            | Stmt::Select { .. }
            | Stmt::Cast { .. }
            | Stmt::Load { .. }
            | Stmt::Store { .. }
            | Stmt::Size { .. }
            | Stmt::Require { .. } => None,
        }
    }
}

/// Decides whether a loop runs in lanes along its axis; if so, gives what varies.
pub(crate) fn lanes(kernel: &Kernel, view: LoopView<'_>) -> Option<Varying> {
    let varying = possible(kernel, view)?;
    let mut inner = view.body.iter().filter_map(LoopView::of).peekable();
    if inner.peek().is_some() && inner.all(|l| innermost_in_lanes(kernel, l)) {
        return None;
    }
    Some(Rc::new(varying))
}

fn innermost_in_lanes(kernel: &Kernel, view: LoopView<'_>) -> bool {
    let mut inner = view.body.iter().filter_map(LoopView::of).peekable();
    if inner.peek().is_none() {
        return possible(kernel, view).is_some();
    }
    inner.all(|l| innermost_in_lanes(kernel, l))
}

/// How many items of a kernel run together at best.
pub(crate) fn block(kernel: &Kernel) -> usize {
    let loops: Vec<LoopView<'_>> = kernel.parallel_nest().1.into_iter().filter_map(LoopView::of).collect();
    match loops.as_slice() {
        [_] => (LANES * UNROLL) as usize,
        [.., outer, inner] if tile(kernel, *outer, *inner).is_some() => {
            // Of few rows a block is no more than a tile, so that there are several.
            let rows = loops[..loops.len() - 1]
                .iter()
                .try_fold(1, |rows: usize, l| Some(rows.saturating_mul(l.extent?)));
            let few = rows.is_some_and(|rows| rows < MANY_BLOCKS * (LANES * TILES) as usize);
            (if few { LANES } else { LANES * TILES }) as usize
        }
        _ => 1,
    }
}

/// Decides whether `inner`, which is all that `outer` consists of, runs in tiles with it: lanes along `inner`, and a copy for
/// each of four positions of `outer`. If so, gives what varies.
pub(crate) fn tile(kernel: &Kernel, outer: LoopView<'_>, inner: LoopView<'_>) -> Option<Varying> {
    let suits =
        |view: LoopView<'_>| view.parallel && view.read.is_none() && !view.is_shorter_than(LANES as usize);
    if !suits(outer) || !suits(inner) || inner.body.iter().any(|s| LoopView::of(s).is_some()) {
        return None;
    }
    let mut walk = Walk::new(kernel, inner.axis, Some(outer.axis));
    let fits = walk.block(inner.body) && walk.accesses.iter().any(|(_, index, _)| walk.is_across(index));
    fits.then_some(Rc::new(walk.varying))
}

fn possible(kernel: &Kernel, view: LoopView<'_>) -> Option<HashSet<Reg>> {
    if view.is_shorter_than(LANES as usize) {
        return None;
    }
    let mut walk = Walk::new(kernel, view.axis, None);
    let fits = walk.block(view.body)
        && view.results.iter().all(|(_, _, value)| walk.is_f32(*value))
        && (view.parallel || walk.stores_are_separate());
    fits.then_some(walk.varying)
}

fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8)
}

struct Walk<'k> {
    kernel: &'k Kernel,
    axis: Axis,
    /// The other loop of a tile.
    across: Option<Axis>,
    varying: HashSet<Reg>,
    accesses: Vec<(usize, &'k Index, bool)>,
}

impl<'k> Walk<'k> {
    fn new(kernel: &'k Kernel, axis: Axis, across: Option<Axis>) -> Walk<'k> {
        Walk { kernel, axis, across, varying: HashSet::new(), accesses: Vec::new() }
    }

    fn dtype(&self, r: Reg) -> DType {
        self.kernel.regs[r.0 as usize]
    }

    fn is_f32(&self, r: Reg) -> bool {
        self.dtype(r) == DType::F32
    }

    /// Whether values are chosen, loaded under a condition and stored in lanes.
    fn has_lanes(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::Bool | DType::I32)
    }

    /// Whether neighbours in memory can be loaded as lanes.
    fn loads_lanes(dtype: DType) -> bool {
        Self::has_lanes(dtype.computed()) || is_byte(dtype)
    }

    /// Whether there is a conversion of lanes.
    fn casts_lanes(from: DType, to: DType) -> bool {
        match (from, to) {
            (DType::I32, DType::Bool) | (DType::Bool, DType::I32) => false,
            (from, DType::F32 | DType::I32) => Self::loads_lanes(from),
            (DType::F32, to) if is_byte(to) => true,
            (from, to) => Self::has_lanes(from) && Self::has_lanes(to),
        }
    }

    fn varies(&self, r: Reg) -> bool {
        self.varying.contains(&r)
    }

    fn block(&mut self, body: &'k [Stmt]) -> bool {
        body.iter().all(|stmt| self.stmt(stmt))
    }

    /// Notes what varies; false when a statement has no form for lanes.
    fn stmt(&mut self, stmt: &'k Stmt) -> bool {
        match stmt {
            Stmt::Literal { .. } | Stmt::Size { .. } => true,
            Stmt::IndexValue { index, .. } => self.is_uniform(index),
            Stmt::Unary { to, op, x } => {
                let lanes = if *op == Unary::Not { self.dtype(*x) == DType::Bool } else { self.is_f32(*x) };
                self.result(*to, &[*x], lanes)
            }
            Stmt::Binary { to, op, x, y } => {
                let lanes = match op {
                    Binary::And | Binary::Or | Binary::Xor => self.dtype(*x) == DType::Bool,
                    Binary::ShiftLeft | Binary::ShiftRight => false,
                    Binary::Add | Binary::Sub | Binary::Mul => {
                        self.is_f32(*x) || self.dtype(*x) == DType::I32
                    }
                    Binary::Div
                    | Binary::Min
                    | Binary::Max
                    | Binary::Pow
                    | Binary::Eq
                    | Binary::Lt
                    | Binary::Le => self.is_f32(*x),
                };
                self.result(*to, &[*x, *y], lanes)
            }
            Stmt::Select { to, test, x, y } => {
                self.result(*to, &[*test, *x, *y], Self::has_lanes(self.dtype(*to)))
            }
            Stmt::Cast { to, x } => {
                let lanes = Self::casts_lanes(self.dtype(*x), self.dtype(*to));
                self.result(*to, &[*x], lanes)
            }
            Stmt::Load { to, arg, index, guard } => self.load(*to, *arg, index, guard.map(|g| g.0)),
            Stmt::Store { arg, index, value } => {
                self.accesses.push((*arg, index, true));
                let bytes = is_byte(self.dtype(*value)) && self.varies(*value);
                (self.is_next(index) || self.is_across(index))
                    && (bytes || Self::has_lanes(self.dtype(*value)))
            }
            Stmt::Require { test, .. } => !self.varies(*test),
            Stmt::Loop { extent, body, .. } => self.is_one_extent(extent) && self.block(body),
            Stmt::Reduce { extent, results, body, .. } => {
                self.is_one_extent(extent)
                    && self.block(body)
                    && results.iter().all(|(to, _, value)| self.result(*to, &[*value], self.is_f32(*value)))
            }
        }
    }

    fn result(&mut self, to: Reg, operands: &[Reg], has_form_for_lanes: bool) -> bool {
        if operands.iter().any(|r| self.varies(*r)) {
            self.varying.insert(to);
            return has_form_for_lanes;
        }
        true
    }

    fn load(&mut self, to: Reg, arg: usize, index: &'k Index, guard: Option<Reg>) -> bool {
        self.accesses.push((arg, index, false));
        if guard.is_some_and(|test| self.varies(test)) {
            return false;
        }
        if self.is_uniform(index) {
            return true;
        }
        self.varying.insert(to);
        let dtype = self.kernel.args[arg].dtype;
        let computed = Self::has_lanes(dtype.computed());
        (self.is_next(index) || self.is_across(index) || self.is_for_each(index) && computed)
            && Self::loads_lanes(dtype)
            && (guard.is_none() || computed)
    }

    /// Whether lanes repeat a loop equally often.
    fn is_one_extent(&self, extent: &Extent<Reg>) -> bool {
        match extent {
            Extent::Known(_) | Extent::Sized { .. } => true,
            Extent::Read { from, .. } => !self.varies(*from),
        }
    }

    fn registers_are_uniform(&self, index: &Index) -> bool {
        index.registers().all(|r| !self.varies(r))
    }

    fn is_uniform(&self, index: &Index) -> bool {
        !index.moves_along(self.axis)
            && !self.across.is_some_and(|across| index.moves_along(across))
            && self.registers_are_uniform(index)
    }

    /// Whether the other loop of a tile goes through neighbours in memory, and lanes through strides.
    fn is_across(&self, index: &Index) -> bool {
        index.moves_along(self.axis)
            && !self.is_next(index)
            && self.across.is_some_and(|across| index.coefficient(across) == 1)
            && self.registers_are_uniform(index)
    }

    /// Whether lanes share what each position of the other loop of a tile has.
    fn is_for_each(&self, index: &Index) -> bool {
        !index.moves_along(self.axis)
            && self.across.is_some_and(|across| index.moves_along(across))
            && self.registers_are_uniform(index)
    }

    /// Whether neighbouring lanes are neighbours in memory.
    fn is_next(&self, index: &Index) -> bool {
        index.coefficient(self.axis) == 1 && self.registers_are_uniform(index)
    }

    /// Whether no position touches an element that another position writes. Positions of a parallel loop do not;
    /// those of a serial one must reach a written argument by one index only.
    fn stores_are_separate(&self) -> bool {
        let stores = self.accesses.iter().filter(|a| a.2);
        stores.into_iter().all(|(arg, index, _)| {
            self.accesses.iter().filter(|a| a.0 == *arg).all(|(_, other, _)| other == index)
        })
    }
}
