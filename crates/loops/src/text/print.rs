//! Kernels and programs to text.

use std::fmt;

use super::Field;
use super::words::quoted;
use crate::{
    Extent, Factor, Index, Kernel, Literal, Needs, Open, Operand, Place, Port, Program, Reg, SizeId, SizedAt,
    Step, Stmt, Work,
};

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Literal::F32(bits) if f32::from_bits(bits).is_nan() => write!(f, "nan({bits:#x})"),
            Literal::F64(bits) if f64::from_bits(bits).is_nan() => write!(f, "nan({bits:#x})"),
            Literal::F32(bits) => write!(f, "{:?}", f32::from_bits(bits)),
            Literal::F64(bits) => write!(f, "{:?}", f64::from_bits(bits)),
            Literal::Int(_, v) => write!(f, "{v}"),
            Literal::Bool(v) => write!(f, "{v}"),
        }
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes = self.axes.iter().map(|(a, c)| (format!("i{}", a.0), *c));
        let regs = self.regs.iter().map(|(r, c)| (format!("%{}", r.0), *c));
        let mut first = true;
        for (name, c) in axes.chain(regs) {
            let sign = match (first, c < 0) {
                (true, false) => "",
                (true, true) => "-",
                (false, false) => " + ",
                (false, true) => " - ",
            };
            first = false;
            match c.unsigned_abs() {
                1 => write!(f, "{sign}{name}")?,
                n => write!(f, "{sign}{n}*{name}")?,
            }
        }
        for (size, factor) in &self.sizes {
            write!(f, "{}{size}", if first { "" } else { " + " })?;
            first = false;
            match factor {
                Factor::One => {}
                Factor::Axis(a) => write!(f, "*i{}", a.0)?,
                Factor::Reg(r) => write!(f, "*{r}")?,
            }
        }
        match self.offset {
            o if first => write!(f, "{o}"),
            0 => Ok(()),
            o if o < 0 => write!(f, " - {}", o.unsigned_abs()),
            o => write!(f, " + {o}"),
        }
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl fmt::Display for Extent<Reg> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Extent::Known(n) => write!(f, "{n}"),
            Extent::Sized { size, least, most } => write!(f, "{size} from {least} max {most}"),
            Extent::Read { from, bound } => write!(f, "{from} max {bound}"),
        }
    }
}

fn write_body(f: &mut fmt::Formatter<'_>, k: &Kernel, body: &[Stmt], depth: usize) -> fmt::Result {
    let pad = "  ".repeat(depth);
    let dtype = |r: &Reg| k.regs[r.0 as usize];
    for stmt in body {
        match stmt {
            Stmt::Literal { to, value } => writeln!(f, "{pad}{to} = {value} : {}", dtype(to))?,
            Stmt::Size { to, size, inverse } => {
                let over = if *inverse { "1/" } else { "" };
                writeln!(f, "{pad}{to} = size {over}{size} : {}", dtype(to))?;
            }
            Stmt::IndexValue { to, index } => writeln!(f, "{pad}{to} = index {index}")?,
            Stmt::Unary { to, op, x } => writeln!(f, "{pad}{to} = {} {x}", op.name())?,
            Stmt::Binary { to, op, x, y } => writeln!(f, "{pad}{to} = {} {x}, {y}", op.name())?,
            Stmt::Select { to, test, x, y } => writeln!(f, "{pad}{to} = select {test}, {x}, {y}")?,
            Stmt::Cast { to, x } => writeln!(f, "{pad}{to} = cast {x} : {}", dtype(to))?,
            Stmt::Load { to, arg, index, guard: None } => writeln!(f, "{pad}{to} = load a{arg}[{index}]")?,
            Stmt::Load { to, arg, index, guard: Some((test, other)) } => {
                writeln!(f, "{pad}{to} = load a{arg}[{index}] if {test} else {other}")?;
            }
            Stmt::Store { arg, index, value } => writeln!(f, "{pad}store a{arg}[{index}] = {value}")?,
            Stmt::Require { test, what } => writeln!(f, "{pad}require {test} {what:?}")?,
            Stmt::Loop { axis, extent, parallel, body } => {
                let kind = if *parallel { " parallel" } else { "" };
                writeln!(f, "{pad}for i{} in 0..{extent}{kind}", axis.0)?;
                write_body(f, k, body, depth + 1)?;
            }
            Stmt::Reduce { axis, extent, results, body } => {
                let joined: Vec<String> = results
                    .iter()
                    .map(|(to, combine, value)| format!("{to} = {} {value}", combine.name()))
                    .collect();
                writeln!(f, "{pad}reduce i{} in 0..{extent}: {}", axis.0, joined.join(", "))?;
                write_body(f, k, body, depth + 1)?;
            }
        }
    }
    Ok(())
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let args: Vec<String> =
            self.args.iter().map(|a| format!("{} {}", if a.written { "w" } else { "r" }, a.dtype)).collect();
        writeln!(f, "kernel({})", args.join(", "))?;
        write_body(f, self, &self.body, 1)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}{:?}", quoted(&self.name), self.dtype, self.shape)
    }
}

/// What every buffer is called: `in0`, `out0`, `c0` where it lies in an input, output or constant, `t0` for the
/// first of those in the arena.
pub(crate) fn buffer_names(program: &Program) -> Vec<String> {
    let mut temporaries = 0..;
    let name = |place: &Place| match place {
        Place::Input(n) => format!("in{n}"),
        Place::Output(n) => format!("out{n}"),
        Place::Constant(n) => format!("c{n}"),
        Place::Arena(_) => format!("t{}", temporaries.next().unwrap_or(0)),
    };
    program.buffers.iter().map(|b| &b.place).map(name).collect()
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ranges in &self.values {
            let each = self.symbols.iter().zip(ranges);
            let each: Vec<String> = each.map(|(s, (least, most))| format!("{s} {least} to {most}")).collect();
            writeln!(f, "open {}", each.join(", "))?;
        }
        for (i, s) in self.sizes.iter().enumerate() {
            writeln!(f, "size ${i}: {} from {} to {}", s.value, s.least, s.most)?;
        }
        Ok(())
    }
}

/// The axes of a port that are sizes: `1 $0, 2 $3`.
pub(super) fn axes_text(axes: &[(usize, SizeId)]) -> String {
    let each: Vec<String> = axes.iter().map(|(axis, size)| format!("{axis} {size}")).collect();
    each.join(", ")
}

struct Writer<'p> {
    program: &'p Program,
    names: Vec<String>,
}

impl Writer<'_> {
    /// An operand that begins at a size, if there is one.
    fn sized(&self, operand: &Operand, size: Option<SizeId>) -> String {
        match size {
            None => self.operand(operand),
            Some(size) => format!("{}+{size}", self.names[operand.buffer.0]),
        }
    }

    fn operand(&self, operand: &Operand) -> String {
        let name = &self.names[operand.buffer.0];
        match operand.offset_bytes {
            0 => name.clone(),
            offset => format!("{name}+{offset}"),
        }
    }

    fn args(&self, step: &Step, args: &[Operand]) -> String {
        let args = args.iter().enumerate().map(|(i, a)| self.sized(a, step.offset_size(i)));
        args.collect::<Vec<String>>().join(", ")
    }

    fn constants(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.program.constants.iter().enumerate() {
            let t = &c.stored;
            write!(f, "constant c{i}: {}{:?}", t.dtype(), t.shape())?;
            if !t.is_plain() {
                write!(f, " stored {}", t.storage())?;
            }
            write!(f, " #{}", t.content_hash())?;
            write!(f, " {}", c.names.write())?;
            if let Some((call, packed)) = &c.packed {
                write!(f, " packed {} of {}", packed.write(), call.text())?;
            }
            f.write_str("\n")?;
        }
        Ok(())
    }

    fn steps(&self, f: &mut fmt::Formatter<'_>, steps: &[Step], depth: usize) -> fmt::Result {
        let pad = "  ".repeat(depth);
        for step in steps {
            write!(f, "{pad}")?;
            match &step.work {
                Work::Kernel { kernel, args } => write!(f, "k{kernel} ({})", self.args(step, args))?,
                Work::Call { call, needs, args } => {
                    write!(f, "{}", step.call_text(call))?;
                    if *needs != Needs::default() {
                        write!(f, " needs {}", needs.write())?;
                    }
                    write!(f, " ({})", self.args(step, args))?;
                }
                Work::Copy { from, to, bytes } => {
                    match step.sizes.iter().find(|(at, _)| *at == SizedAt::Bytes) {
                        Some((_, size)) => write!(f, "copy {size}")?,
                        None => write!(f, "copy {bytes}")?,
                    }
                    write!(f, " ({})", self.args(step, &[*from, *to]))?;
                }
                Work::If { test, .. } => write!(f, "if {}", self.operand(test))?,
                Work::Loop(l) => {
                    match &l.trips {
                        Extent::Known(n) => write!(f, "loop {n}")?,
                        Extent::Sized { size, least, most } => {
                            write!(f, "loop {size} from {least} max {most}")?;
                        }
                        Extent::Read { from, bound } => write!(f, "loop {} max {bound}", self.operand(from))?,
                    }
                    for (word, operand) in [("while", l.condition), ("counter", l.counter)] {
                        if let Some(operand) = operand {
                            write!(f, " {word} {}", self.operand(&operand))?;
                        }
                    }
                }
            }
            match step.label.chars().any(char::is_control) || step.label.starts_with('"') {
                _ if step.label.is_empty() => f.write_str("\n")?,
                true => writeln!(f, "  // {:?}", step.label)?,
                false => writeln!(f, "  // {}", step.label)?,
            }
            match &step.work {
                Work::Kernel { .. } | Work::Call { .. } | Work::Copy { .. } => {}
                Work::If { then, otherwise, .. } => {
                    self.steps(f, then, depth + 1)?;
                    if !otherwise.is_empty() {
                        writeln!(f, "{pad}else")?;
                        self.steps(f, otherwise, depth + 1)?;
                    }
                }
                Work::Loop(l) => self.steps(f, &l.body, depth + 1)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let w = Writer { program: self, names: buffer_names(self) };
        let (inputs, outputs) = ((&self.inputs, &self.open.inputs), (&self.outputs, &self.open.outputs));
        write!(f, "{}", self.open)?;
        for (kind, (ports, open)) in [("input", inputs), ("output", outputs)] {
            for (i, port) in ports.iter().enumerate() {
                match open.get(i).filter(|axes| !axes.is_empty()) {
                    None => writeln!(f, "{kind} {port}")?,
                    Some(axes) => writeln!(f, "{kind} {port} axis {}", axes_text(axes))?,
                }
            }
        }
        for c in &self.carried {
            writeln!(f, "carried out{} to in{}", c.output, c.input)?;
        }
        for c in &self.counted {
            writeln!(f, "counted out{} axis {} by out{}", c.output, c.axis, c.count)?;
        }
        w.constants(f)?;
        writeln!(f, "arena {} bytes", self.arena_bytes)?;
        for (buffer, name) in self.buffers.iter().zip(&w.names) {
            if let Place::Arena(at) = buffer.place {
                writeln!(f, "temporary {name}: {} bytes at {at}", buffer.bytes)?;
            }
        }
        for (i, kernel) in self.kernels.iter().enumerate() {
            write!(f, "k{i}: {kernel}")?;
        }
        writeln!(f, "steps")?;
        w.steps(f, &self.body, 1)
    }
}
