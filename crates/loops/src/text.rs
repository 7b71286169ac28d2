//! The text form of kernels and programs.

use std::fmt;

use crate::{Index, Kernel, Literal, Place, Program, Stmt, Work};

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
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
        match self.offset {
            o if first => write!(f, "{o}"),
            0 => Ok(()),
            o if o < 0 => write!(f, " - {}", o.unsigned_abs()),
            o => write!(f, " + {o}"),
        }
    }
}

fn write_body(f: &mut fmt::Formatter<'_>, k: &Kernel, body: &[Stmt], depth: usize) -> fmt::Result {
    let pad = "  ".repeat(depth);
    let name = |op: &dyn fmt::Debug| format!("{op:?}").to_lowercase();
    for stmt in body {
        match stmt {
            Stmt::Literal { to, value } => {
                writeln!(f, "{pad}%{} = {value} : {}", to.0, k.regs[to.0 as usize])?;
            }
            Stmt::IndexValue { to, index } => writeln!(f, "{pad}%{} = index {index}", to.0)?,
            Stmt::Unary { to, op, x } => writeln!(f, "{pad}%{} = {} %{}", to.0, name(op), x.0)?,
            Stmt::Binary { to, op, x, y } => {
                writeln!(f, "{pad}%{} = {} %{}, %{}", to.0, name(op), x.0, y.0)?;
            }
            Stmt::Select { to, test, x, y } => {
                writeln!(f, "{pad}%{} = select %{}, %{}, %{}", to.0, test.0, x.0, y.0)?;
            }
            Stmt::Cast { to, x } => {
                writeln!(f, "{pad}%{} = cast %{} : {}", to.0, x.0, k.regs[to.0 as usize])?;
            }
            Stmt::Load { to, arg, index, guard: None } => {
                writeln!(f, "{pad}%{} = load a{arg}[{index}]", to.0)?;
            }
            Stmt::Load { to, arg, index, guard: Some((test, other)) } => {
                writeln!(f, "{pad}%{} = load a{arg}[{index}] if %{} else {other}", to.0, test.0)?;
            }
            Stmt::Store { arg, index, value } => writeln!(f, "{pad}store a{arg}[{index}] = %{}", value.0)?,
            Stmt::Require { test } => writeln!(f, "{pad}require %{}", test.0)?,
            Stmt::Loop { axis, extent, parallel, body } => {
                let kind = if *parallel { " parallel" } else { "" };
                writeln!(f, "{pad}for i{} in 0..{extent}{kind}", axis.0)?;
                write_body(f, k, body, depth + 1)?;
            }
            Stmt::Reduce { axis, extent, results, body } => {
                let joined: Vec<String> = results
                    .iter()
                    .map(|(to, combine, value)| format!("%{} = {} %{}", to.0, name(combine), value.0))
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

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, ports) in [("input", &self.inputs), ("output", &self.outputs)] {
            for p in ports {
                writeln!(f, "{kind} {}: {}{:?}", p.name, p.dtype, p.shape)?;
            }
        }
        for c in &self.carried {
            writeln!(f, "carried out{} to in{}", c.output, c.input)?;
        }
        writeln!(f, "arena {} bytes", self.arena_bytes)?;
        for (i, kernel) in self.kernels.iter().enumerate() {
            write!(f, "k{i}: {kernel}")?;
        }
        for (i, (depth, step)) in self.steps().enumerate() {
            write!(f, "{}step {i}: ", "  ".repeat(depth))?;
            match &step.work {
                Work::Kernel { kernel, .. } => write!(f, "k{kernel}")?,
                Work::Call { call, .. } => write!(f, "{call}")?,
                Work::Copy { bytes, .. } => write!(f, "copy {bytes} bytes")?,
                Work::If { .. } => f.write_str("if")?,
                Work::Loop(_) => f.write_str("loop")?,
            }
            for (j, arg) in step.operands().iter().enumerate() {
                let buffer = &self.buffers[arg.buffer.0];
                let open = if j == 0 { " (" } else { ", " };
                match buffer.place {
                    Place::Input(n) => write!(f, "{open}in{n}")?,
                    Place::Output(n) => write!(f, "{open}out{n}")?,
                    Place::Constant(n) => write!(f, "{open}c{n}")?,
                    Place::Arena(at) => write!(f, "{open}@{at}")?,
                }
                if arg.offset_bytes > 0 {
                    write!(f, "+{}", arg.offset_bytes)?;
                }
            }
            writeln!(f, ")  // {}", step.label)?;
        }
        Ok(())
    }
}
