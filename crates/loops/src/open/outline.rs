//! Programs without their integers, and open programs out of closed ones.

use std::collections::HashMap;
use std::fmt::Write;

use margay_tensor::{Dim, Symbol};

use super::fit::fit;
use super::{Open, Ranges, Size, SizeId, numbers_in, replace_numbers};
use crate::text::Field;
use crate::{
    Buffer, Extent, Factor, Index, Kernel, KernelCall, Literal, Place, Program, SizedAt, Step, Stmt, Work,
};

/// A closed program in two parts: its text without integers, every step with a kernel of its own, and the integers in
/// the order of the text. Programs with equal outlines and equal numbers are the same but for where temporaries lie and for
/// bytes of temporaries and workspaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outline {
    /// The text.
    pub text: String,
    /// The integers.
    pub numbers: Vec<i64>,
    /// The bytes of every buffer.
    pub bytes: Vec<usize>,
}

impl Program {
    /// The outline of a closed program. Extents of loops that one of `extent_steps` lies between have different texts.
    pub fn outline(&self, extent_steps: &[usize]) -> Outline {
        let mut record = Record { numbers: Vec::new(), extent_steps };
        let mut bare = sized(self, &mut record);
        let mut text = String::new();
        for (n, c) in bare.constants.drain(..).enumerate() {
            let t = &c.stored;
            let packed = c.packed.map_or(String::new(), |(_, packed)| packed.write());
            let _ = writeln!(
                text,
                "c{n} {}{:?} {} {} {packed}",
                t.dtype(),
                t.shape(),
                t.storage(),
                t.content_hash()
            );
        }
        for port in bare.inputs.iter_mut().chain(&mut bare.outputs) {
            port.shape.fill(0);
        }
        bare.arena_bytes = 0;
        for buffer in &mut bare.buffers {
            buffer.bytes = 0;
            if let Place::Arena(at) = &mut buffer.place {
                *at = 0;
            }
        }
        let _ = write!(text, "{bare}");
        let bytes = self.buffers.iter().map(|b| b.bytes).collect();
        Outline { text, numbers: record.numbers, bytes }
    }
}

/// Says of every integer of a program, in the order of the text, which size it becomes.
trait Sizing {
    fn number(&mut self, value: i64) -> Option<SizeId>;
    /// Of an extent with its bounds, too.
    fn extent(&mut self, extent: usize) -> Option<(SizeId, usize, usize)>;
}

/// Notes every integer, and puts one size in the place of all.
struct Record<'a> {
    numbers: Vec<i64>,
    extent_steps: &'a [usize],
}

impl Sizing for Record<'_> {
    fn number(&mut self, value: i64) -> Option<SizeId> {
        self.numbers.push(value);
        Some(SizeId(0))
    }

    fn extent(&mut self, extent: usize) -> Option<(SizeId, usize, usize)> {
        self.numbers.push(extent as i64);
        let steps = || self.extent_steps.iter().copied();
        let least = steps().filter(|&step| step <= extent).max().unwrap_or(0);
        let most = steps().find(|&step| step > extent).map_or(usize::MAX, |step| step - 1);
        Some((SizeId(0), least, most))
    }
}

/// Puts sizes where they belong.
struct Placed<'a> {
    ids: std::slice::Iter<'a, Option<SizeId>>,
    sizes: &'a [Size],
}

impl Sizing for Placed<'_> {
    fn number(&mut self, _: i64) -> Option<SizeId> {
        self.ids.next().copied().flatten()
    }

    fn extent(&mut self, _: usize) -> Option<(SizeId, usize, usize)> {
        let id = self.ids.next().copied().flatten()?;
        let size = &self.sizes[id.0 as usize];
        let count = |v: i64| usize::try_from(v).unwrap_or(0);
        Some((id, count(size.least), count(size.most)))
    }
}

/// The program with sizes in the place of integers, and a kernel for every step that runs one.
fn sized(p: &Program, s: &mut dyn Sizing) -> Program {
    let mut out = Program { kernels: Vec::new(), body: Vec::new(), ..p.clone() };
    let mut ports = |ports: &[crate::Port]| -> Vec<Vec<(usize, SizeId)>> {
        let mut axes = |port: &crate::Port| {
            let sizes = port.shape.iter().enumerate().map(|(i, n)| s.number(*n as i64).map(|size| (i, size)));
            sizes.collect::<Vec<_>>().into_iter().flatten().collect()
        };
        ports.iter().map(&mut axes).collect()
    };
    out.open.inputs = ports(&p.inputs);
    out.open.outputs = ports(&p.outputs);
    out.body = steps(p, &p.body, &mut out.kernels, s);
    out
}

fn steps(p: &Program, body: &[Step], kernels: &mut Vec<Kernel>, s: &mut dyn Sizing) -> Vec<Step> {
    let mut out = Vec::new();
    for step in body {
        let mut sizes = Vec::new();
        let offsets = |args: &[crate::Operand], sizes: &mut Vec<(SizedAt, SizeId)>, s: &mut dyn Sizing| {
            // An operand at the start of its buffer has no number in the text.
            for (i, o) in args.iter().enumerate().filter(|(_, o)| o.offset_bytes > 0) {
                sizes.extend(s.number(o.offset_bytes as i64).map(|size| (SizedAt::Offset(i), size)));
            }
        };
        let mut work = step.work.clone();
        match &mut work {
            Work::Kernel { kernel, args } => {
                kernels.push(sized_kernel(&p.kernels[*kernel], s));
                *kernel = kernels.len() - 1;
                offsets(args, &mut sizes, s);
            }
            Work::Call { call, needs, args } => {
                let text = call.text();
                for (n, range) in numbers_in(&text).into_iter().enumerate() {
                    let value = text[range].parse().unwrap_or(0);
                    sizes.extend(s.number(value).map(|size| (SizedAt::Call(n), size)));
                }
                offsets(args, &mut sizes, s);
                needs.workspace_bytes = 0;
            }
            Work::Copy { from, to, bytes } => {
                sizes.extend(s.number(*bytes as i64).map(|size| (SizedAt::Bytes, size)));
                offsets(&[*from, *to], &mut sizes, s);
            }
            Work::If { then, otherwise, .. } => {
                *then = steps(p, then, kernels, s);
                *otherwise = steps(p, otherwise, kernels, s);
            }
            Work::Loop(l) => {
                if let Extent::Known(n) = l.trips
                    && let Some((size, least, most)) = s.extent(n)
                {
                    l.trips = Extent::Sized { size, least, most };
                }
                l.body = steps(p, &l.body, kernels, s);
            }
        }
        out.push(Step { label: step.label.clone(), work, sizes });
    }
    out
}

fn sized_kernel(kernel: &Kernel, s: &mut dyn Sizing) -> Kernel {
    Kernel { body: block(&kernel.body, s), ..kernel.clone() }
}

fn block(body: &[Stmt], s: &mut dyn Sizing) -> Vec<Stmt> {
    body.iter().map(|stmt| sized_stmt(stmt, s)).collect()
}

fn sized_stmt(stmt: &Stmt, s: &mut dyn Sizing) -> Stmt {
    match stmt {
        Stmt::Literal { to, value } => {
            let (to, whole, below) = (*to, whole(*value), one_over(*value));
            let size = whole.or(below).and_then(|v| s.number(v));
            let inverse = whole.is_none();
            size.map_or_else(|| stmt.clone(), |size| Stmt::Size { to, size, inverse })
        }
        Stmt::IndexValue { to, index } => Stmt::IndexValue { to: *to, index: sized_index(index, s) },
        Stmt::Load { to, arg, index, guard } => {
            Stmt::Load { to: *to, arg: *arg, index: sized_index(index, s), guard: *guard }
        }
        Stmt::Store { arg, index, value } => {
            Stmt::Store { arg: *arg, index: sized_index(index, s), value: *value }
        }
        Stmt::Require { test, what } => {
            let what = replace_numbers(what, &mut |_, number| {
                s.number(number.parse().ok()?).map(|size| size.to_string())
            });
            Stmt::Require { test: *test, what: what.into() }
        }
        Stmt::Loop { axis, extent, parallel, body } => {
            let extent = sized_extent(extent, s);
            Stmt::Loop { axis: *axis, extent, parallel: *parallel, body: block(body, s) }
        }
        Stmt::Reduce { axis, extent, results, body } => {
            let extent = sized_extent(extent, s);
            Stmt::Reduce { axis: *axis, extent, results: results.clone(), body: block(body, s) }
        }
        Stmt::Size { .. }
        | Stmt::Unary { .. }
        | Stmt::Binary { .. }
        | Stmt::Select { .. }
        | Stmt::Cast { .. } => stmt.clone(),
    }
}

/// The integer that a literal is, where its type tells it from its neighbours.
fn whole(value: Literal) -> Option<i64> {
    let exact = |v: f64, bits: i32| {
        let fits = v.fract() == 0.0 && v.abs() <= 2f64.powi(bits) && !(v == 0.0 && v.is_sign_negative());
        fits.then_some(v as i64)
    };
    match value {
        Literal::F32(bits) => exact(f64::from(f32::from_bits(bits)), 24),
        Literal::F64(bits) => exact(f64::from_bits(bits), 53),
        Literal::Int(_, v) => Some(v),
        Literal::Bool(_) => None,
    }
}

/// The integer that a literal between 0 and 1 is one over, such as the factor of a mean.
fn one_over(value: Literal) -> Option<i64> {
    let number = match value {
        Literal::F32(bits) => f64::from(f32::from_bits(bits)),
        Literal::F64(bits) => f64::from_bits(bits),
        Literal::Int(..) | Literal::Bool(_) => return None,
    };
    let n = (1.0 / number).round();
    let same = n > 1.0 && n < 2f64.powi(23) && Literal::of(value.dtype(), 1.0 / n) == value;
    same.then_some(n as i64)
}

fn sized_extent(extent: &Extent<crate::Reg>, s: &mut dyn Sizing) -> Extent<crate::Reg> {
    match extent {
        Extent::Known(n) => match s.extent(*n) {
            Some((size, least, most)) => Extent::Sized { size, least, most },
            None => *extent,
        },
        Extent::Sized { .. } | Extent::Read { .. } => *extent,
    }
}

/// A coefficient of 1 stays what it is: neighbours in memory are.
fn sized_index(index: &Index, s: &mut dyn Sizing) -> Index {
    let mut out = Index::default();
    match s.number(index.offset) {
        Some(size) => out.sizes.push((size, Factor::One)),
        None => out.offset = index.offset,
    }
    for &(axis, c) in &index.axes {
        match if c == 1 { None } else { s.number(c) } {
            Some(size) => out.sizes.push((size, Factor::Axis(axis))),
            None => out.axes.push((axis, c)),
        }
    }
    for &(reg, c) in &index.regs {
        match if c == 1 { None } else { s.number(c) } {
            Some(size) => out.sizes.push((size, Factor::Reg(reg))),
            None => out.regs.push((reg, c)),
        }
    }
    out
}

/// The open program that is `greatest` at the last of some points, values of `symbols`, and has the outline of `greatest`
/// and the numbers of `outlines` at each of them. `values` are the same points as ranges. Buffers have their greatest
/// bytes; temporaries have no places yet.
///
/// `None` where some number follows from the symbols by no polynomial of the second degree.
///
/// # Panics
/// If there are no points.
pub fn generalize(
    symbols: &[Symbol],
    points: &[Vec<i64>],
    values: Vec<Ranges>,
    greatest: &Program,
    outlines: &[&Outline],
) -> Option<Program> {
    let first = outlines.first().expect("an open program serves some values");
    let mut sizes: Vec<Size> = Vec::new();
    let mut known: HashMap<Vec<i64>, Option<SizeId>> = HashMap::new();
    let mut by_value: HashMap<Dim, SizeId> = HashMap::new();
    let mut ids = Vec::with_capacity(first.numbers.len());
    for n in 0..first.numbers.len() {
        let column: Vec<i64> = outlines.iter().map(|o| o.numbers[n]).collect();
        if column.iter().all(|v| *v == column[0]) {
            ids.push(None);
            continue;
        }
        if let Some(id) = known.get(&column) {
            ids.push(*id);
            continue;
        }
        let value = fit(symbols, points, &column)?;
        let id = *by_value.entry(value.clone()).or_insert_with(|| {
            let (least, most) = column.iter().fold((i64::MAX, i64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
            sizes.push(Size { value, least, most });
            SizeId(sizes.len() as u32 - 1)
        });
        known.insert(column, Some(id));
        ids.push(Some(id));
    }
    let mut out = sized(greatest, &mut Placed { ids: ids.iter(), sizes: &sizes });
    share_kernels(&mut out);
    for (b, buffer) in out.buffers.iter_mut().enumerate() {
        buffer.bytes = outlines.iter().map(|o| o.bytes[b]).max().unwrap_or(buffer.bytes);
        if let Place::Arena(at) = &mut buffer.place {
            *at = 0;
        }
    }
    let (buffers, open) = (out.buffers.clone(), &mut out.open);
    set_most(&mut out.body, &buffers, &sizes);
    for (ports, axes) in [(&mut out.inputs, &open.inputs), (&mut out.outputs, &open.outputs)] {
        for (port, axes) in ports.iter_mut().zip(axes) {
            for (axis, size) in axes {
                port.shape[*axis] = usize::try_from(sizes[size.0 as usize].most).unwrap_or(0);
            }
        }
    }
    *open = Open { symbols: symbols.to_vec(), values, sizes, ..std::mem::take(open) };
    Some(out)
}

/// Lets steps share equal kernels.
fn share_kernels(p: &mut Program) {
    let all = std::mem::take(&mut p.kernels);
    let mut numbers: HashMap<Kernel, usize> = HashMap::new();
    let mut places = Vec::new();
    for kernel in all {
        let next = numbers.len();
        let number = *numbers.entry(kernel.clone()).or_insert(next);
        if number == p.kernels.len() {
            p.kernels.push(kernel);
        }
        places.push(number);
    }
    fn go(steps: &mut [Step], places: &[usize]) {
        for step in steps {
            match &mut step.work {
                Work::Kernel { kernel, .. } => *kernel = places[*kernel],
                Work::If { then, otherwise, .. } => {
                    go(then, places);
                    go(otherwise, places);
                }
                Work::Loop(l) => go(&mut l.body, places),
                Work::Call { .. } | Work::Copy { .. } => {}
            }
        }
    }
    go(&mut p.body, &places);
}

/// Sets every number of a step that is a size to the greatest, and workspaces to the bytes of their buffers.
fn set_most(steps: &mut [Step], buffers: &[Buffer], sizes: &[Size]) {
    let most = |size: SizeId| sizes[size.0 as usize].most;
    for step in steps {
        for (at, size) in step.sizes.clone() {
            let bytes = usize::try_from(most(size)).unwrap_or(0);
            match (&mut step.work, at) {
                (Work::Kernel { args, .. } | Work::Call { args, .. }, SizedAt::Offset(n)) => {
                    args[n].offset_bytes = bytes;
                }
                (Work::Copy { from, .. }, SizedAt::Offset(0)) => from.offset_bytes = bytes,
                (Work::Copy { to, .. }, SizedAt::Offset(_)) => to.offset_bytes = bytes,
                (Work::Copy { bytes: all, .. }, SizedAt::Bytes) => *all = bytes,
                _ => {}
            }
        }
        let text = step.sizes.clone();
        match &mut step.work {
            Work::Call { call, needs, args } => {
                *call = with_most(call, &text, &most);
                if args.len() > call.args().len() {
                    needs.workspace_bytes = args.last().map_or(0, |a| buffers[a.buffer.0].bytes);
                }
            }
            Work::If { then, otherwise, .. } => {
                set_most(then, buffers, sizes);
                set_most(otherwise, buffers, sizes);
            }
            Work::Loop(l) => set_most(&mut l.body, buffers, sizes),
            Work::Kernel { .. } | Work::Copy { .. } => {}
        }
    }
}

fn with_most(call: &KernelCall, sizes: &[(SizedAt, SizeId)], most: &dyn Fn(SizeId) -> i64) -> KernelCall {
    let text = replace_numbers(&call.text(), &mut |n, _| {
        sizes.iter().find(|(at, _)| *at == SizedAt::Call(n)).map(|(_, size)| most(*size).to_string())
    });
    let read = text.split_once(' ').map(|(family, fields)| KernelCall::read(family, fields));
    read.and_then(Result::ok).unwrap_or_else(|| call.clone())
}
