//! How often a loop runs whose condition compares counters: `i + 1 < n`, alone or several that hold together.
//!
//! A counter is what repetition t finds as a + b t: the number of the repetition, or a value that each repetition hands on
//! with the same number added to what it was given. Comparisons of such say when the first one fails.

use margay_ir::ops::{Const, Numbers, less_or_equal};
use margay_ir::{Graph, Op, Value};
use margay_tensor::{DType, Dim};

/// Nodes between a condition and what it counts.
const MAX_DEPTH: usize = 32;

/// Whole numbers below are exact in f32.
const EXACT: i64 = 1 << 24;

/// The body of a loop, with what its values are before the first repetition.
pub(super) struct Body<'g> {
    /// Its inputs are the number of the repetition, the values that are handed on, and others.
    pub graph: &'g Graph,
    /// The values for the next repetition.
    pub handed: &'g [Value],
    /// What each is at first, if that is one whole number.
    pub initial: &'g [Option<Dim>],
}

/// `start + step * t` in repetition t.
struct Counter {
    start: Dim,
    step: i64,
}

/// How often a condition lets a loop run.
pub(super) struct Trips {
    /// No more often; at least once. `None`: the comparisons that were read never fail.
    pub most: Option<Dim>,
    /// Whether it runs so often.
    pub exact: bool,
}

impl Trips {
    fn unknown() -> Trips {
        Trips { most: None, exact: false }
    }
}

impl Body<'_> {
    /// How often the loop runs that begins, and goes on as long as `test` holds behind a repetition.
    pub(super) fn trips(&self, test: Value) -> Trips {
        self.while_holds(test, true, 0)
    }

    fn while_holds(&self, test: Value, wanted: bool, depth: usize) -> Trips {
        if depth > MAX_DEPTH {
            return Trips::unknown();
        }
        let test = self.reshaped(test);
        if let Op::Const(c) = self.graph.op(test.node) {
            return match Numbers::of(c.payload.tensor()).map(|n| n.ints()).as_deref() {
                Ok([holds]) if (*holds != 0) == wanted => Trips { most: None, exact: true },
                Ok([_]) => Trips { most: Some(Dim::from(1usize)), exact: true },
                _ => Trips::unknown(),
            };
        }
        let operands = self.graph.inputs_of(test.node);
        match (self.graph.op(test.node), operands.as_slice()) {
            (Op::And(_), [x, y]) if wanted => {
                let (x, y) = (self.while_holds(*x, true, depth + 1), self.while_holds(*y, true, depth + 1));
                let exact = x.exact && y.exact;
                match (x.most, y.most) {
                    (Some(x), Some(y)) => match smaller(&x, &y) {
                        Some(most) => Trips { most: Some(most), exact },
                        None => Trips { most: Some(x), exact: false },
                    },
                    (x, y) => Trips { most: x.or(y), exact },
                }
            }
            (Op::Not(_), [x]) => self.while_holds(*x, !wanted, depth + 1),
            _ => self.comparison(test, wanted),
        }
    }

    /// What an element was before it got other axes.
    fn reshaped(&self, mut v: Value) -> Value {
        for _ in 0..MAX_DEPTH {
            match self.graph.op(v.node) {
                Op::Reshape(_) => v = self.graph.inputs_of(v.node)[0],
                _ => break,
            }
        }
        v
    }

    fn comparison(&self, test: Value, wanted: bool) -> Trips {
        let operands = self.graph.inputs_of(test.node);
        match (self.graph.op(test.node), operands.as_slice()) {
            (Op::Less(_), [x, y]) => self.compared(*x, *y, wanted, true),
            (Op::LessOrEqual(_), [x, y]) => self.compared(*x, *y, wanted, false),
            _ => Trips::unknown(),
        }
    }

    /// `x < y`, or `x <= y` unless `strict`; the opposite unless `wanted`.
    fn compared(&self, x: Value, y: Value, wanted: bool, strict: bool) -> Trips {
        let (Some(x), Some(y)) = (self.counter(x, 0), self.counter(y, 0)) else { return Trips::unknown() };
        let (x, y, strict) = if wanted { (x, y, strict) } else { (y, x, !strict) };
        // It holds while room + step t is not negative.
        let room = &(&y.start - &x.start) - &Dim::from(i64::from(strict));
        let Some(step) = y.step.checked_sub(x.step) else { return Trips::unknown() };
        let from = |least: i64| less_or_equal(&Dim::from(least), &room);
        let some = |most: Dim| Trips { most: Some(most), exact: true };
        match (from(0), step) {
            (Some(true), 0..) => Trips { most: None, exact: true },
            (Some(false), _) => some(Dim::from(1usize)),
            (_, -1) if from(-1) == Some(true) => some(&room + &Dim::from(2usize)),
            (Some(true), _) => match (room.as_const(), step.checked_neg()) {
                (Some(room), Some(by)) => some(Dim::from((room / by).saturating_add(2))),
                _ => Trips::unknown(),
            },
            _ => Trips::unknown(),
        }
    }

    /// A value of one element as a counter.
    fn counter(&self, v: Value, depth: usize) -> Option<Counter> {
        let ty = self.graph.ty(v);
        if depth > MAX_DEPTH || ty.shape.iter().any(|d| !d.is(1)) {
            return None;
        }
        let v = self.reshaped(v);
        let fixed = |start: Dim| Counter { start, step: 0 };
        match self.graph.op(v.node) {
            Op::Const(c) => whole(c).map(|n| fixed(Dim::from(n))),
            Op::Dims(dims) => dims.values.first().cloned().map(fixed),
            Op::Input(_) => self.given(v),
            _ => self.computed(v, depth),
        }
    }

    /// A value that is computed from counters.
    fn computed(&self, v: Value, depth: usize) -> Option<Counter> {
        let operands = self.graph.inputs_of(v.node);
        match (self.graph.op(v.node), operands.as_slice()) {
            (Op::Cast(cast), [x]) => {
                let counter = self.counter(*x, depth + 1)?;
                // Numbers that the type cannot tell apart are compared otherwise.
                let small = counter.start.as_const().map(|n| n.abs() < EXACT);
                let same = match (self.graph.ty(*x).dtype, cast.to) {
                    (DType::I32 | DType::I64, DType::I64) => true,
                    // Extents fit, as everywhere.
                    (DType::I32 | DType::I64, DType::I32) => small != Some(false),
                    (DType::I32 | DType::I64, DType::F32 | DType::F64) => small == Some(true),
                    (from, to) => from == to,
                };
                same.then_some(counter)
            }
            (Op::Add(_), [x, y]) => {
                let (x, y) = (self.counter(*x, depth + 1)?, self.counter(*y, depth + 1)?);
                Some(Counter { start: &x.start + &y.start, step: x.step.checked_add(y.step)? })
            }
            (Op::Sub(_), [x, y]) => {
                let (x, y) = (self.counter(*x, depth + 1)?, self.counter(*y, depth + 1)?);
                Some(Counter { start: &x.start - &y.start, step: x.step.checked_sub(y.step)? })
            }
            _ => None,
        }
    }

    /// An input of the body as a counter.
    fn given(&self, v: Value) -> Option<Counter> {
        let at = self.graph.inputs().iter().position(|n| *n == v.node)?;
        let Some(at) = at.checked_sub(1) else { return Some(Counter { start: Dim::default(), step: 1 }) };
        let start = self.initial.get(at)?.clone()?;
        let step = self.added(*self.handed.get(at)?, v)?;
        Some(Counter { start, step })
    }

    /// The number by which a value is more than another one, if it is computed so.
    fn added(&self, mut v: Value, to: Value) -> Option<i64> {
        if self.graph.ty(v).dtype.is_float() {
            return None;
        }
        let constant = |v: Value| match self.graph.op(v.node) {
            Op::Const(c) => whole(c),
            _ => None,
        };
        let mut sum = 0i64;
        for _ in 0..MAX_DEPTH {
            if v == to {
                return Some(sum);
            }
            let operands = self.graph.inputs_of(v.node);
            let (next, more) = match (self.graph.op(v.node), operands.as_slice()) {
                (Op::Reshape(_), [x]) => (*x, 0),
                (Op::Add(_), [x, y]) => match (constant(*x), constant(*y)) {
                    (_, Some(more)) => (*x, more),
                    (Some(more), None) => (*y, more),
                    (None, None) => return None,
                },
                (Op::Sub(_), [x, y]) => (*x, constant(*y)?.checked_neg()?),
                _ => return None,
            };
            (v, sum) = (next, sum.checked_add(more)?);
        }
        None
    }
}

/// The only element of a constant, if it is a whole number that every type tells from its neighbours.
fn whole(c: &Const) -> Option<i64> {
    let tensor = Some(c.payload.tensor()).filter(|t| t.len() == 1)?;
    let numbers = Numbers::of(tensor).ok()?;
    if !tensor.dtype().is_float() {
        return numbers.ints().first().copied();
    }
    let number = *numbers.floats().first()?;
    (number.fract() == 0.0 && number.abs() < EXACT as f64).then_some(number as i64)
}

/// The smaller of two extents, if that is decided.
pub(super) fn smaller(x: &Dim, y: &Dim) -> Option<Dim> {
    match (less_or_equal(x, y), less_or_equal(y, x)) {
        (Some(true), _) => Some(x.clone()),
        (_, Some(true)) => Some(y.clone()),
        _ => None,
    }
}
