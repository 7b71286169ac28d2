//! Text to programs.

use margay_tensor::{DType, Storage, StoredTensor};

use super::Field;
use super::parse_kernel::{kernel_args, read_kernel};
use super::parse_open::{open_line, port_axes, size_line, step_sizes};
use super::words::{split_top, take_name};
use crate::open::replace_sizes;
use crate::{
    Buffer, BufferId, Carried, Constant, Counted, Extent, KernelCall, Loop, Needs, Open, Operand, Packed,
    Place, Port, Program, SizeId, Step, Work,
};

/// A text that is not a program (the text's fault).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// What a text says of the contents of a constant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConstantText {
    /// Its names.
    pub names: Vec<String>,
    /// The content hash of the tensor, as it prints.
    pub hash: String,
    /// Type of the numbers.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// How they are stored.
    pub storage: Storage,
}

pub(super) type Answer<T> = Result<T, String>;

/// Reads a program. `resolve` finds the contents of constants, of the type that the text says.
pub fn parse_program(
    text: &str,
    resolve: &dyn Fn(&ConstantText) -> Option<StoredTensor>,
) -> Result<Program, ParseError> {
    let mut lines = Lines { all: read_lines(text)?, at: 0 };
    let mut program = Program::default();
    let mut temporaries: Vec<Buffer> = Vec::new();
    while let Some(line) = lines.next_at(0) {
        let fail = |message: String| ParseError { line: line.number, message };
        let (word, rest) = line.text.split_once([' ', ':']).unwrap_or((line.text, ""));
        match word {
            "open" => open_line(rest, &mut program.open).map_err(fail)?,
            "size" => size_line(rest, &mut program.open).map_err(fail)?,
            "input" | "output" => {
                let (port, axes) = port(rest, &program.open).map_err(fail)?;
                let open = !program.open.is_closed();
                let (ports, all) = match word {
                    "input" => (&mut program.inputs, &mut program.open.inputs),
                    _ => (&mut program.outputs, &mut program.open.outputs),
                };
                ports.push(port);
                all.extend(open.then_some(axes));
            }
            "carried" => program.carried.push(carried(rest).map_err(fail)?),
            "counted" => program.counted.push(counted(rest).map_err(fail)?),
            "constant" => {
                let number = program.constants.len();
                program.constants.push(constant(rest, number, resolve).map_err(fail)?);
            }
            "arena" => program.arena_bytes = bytes(rest).map_err(fail)?,
            "temporary" => temporaries.push(temporary(rest, temporaries.len()).map_err(fail)?),
            "steps" => {
                program.buffers = buffers(&program, std::mem::take(&mut temporaries)).map_err(fail)?;
                let names = super::buffer_names(&program);
                let mut steps = Steps { names, open: &program.open, lines: &mut lines };
                program.body = steps.block(1)?;
                return match lines.peek() {
                    None => Ok(program),
                    Some(line) => Err(ParseError { line: line.number, message: unexpected(line.text) }),
                };
            }
            _ => {
                let expected = format!("k{}", program.kernels.len());
                if word != expected {
                    return Err(fail(format!(
                        "expected `{expected}: kernel(…)` or `steps` at `{}`",
                        line.text
                    )));
                }
                let args = kernel_args(rest.trim()).map_err(fail)?;
                program.kernels.push(read_kernel(args, &mut lines)?);
            }
        }
    }
    Err(ParseError { line: text.lines().count(), message: "expected `steps`".into() })
}

pub(super) fn unexpected(text: &str) -> String {
    format!("`{text}` is indented as nothing around it is")
}

#[derive(Clone, Copy)]
pub(super) struct Line<'t> {
    pub(super) number: usize,
    pub(super) depth: usize,
    pub(super) text: &'t str,
}

fn read_lines(text: &str) -> Result<Vec<Line<'_>>, ParseError> {
    let mut lines = Vec::new();
    for (i, full) in text.lines().enumerate() {
        let text = full.trim_start();
        if text.is_empty() || text.starts_with("//") {
            continue;
        }
        let indent = full.len() - text.len();
        if !indent.is_multiple_of(2) {
            let message = format!("indented by {indent}, expected a multiple of 2");
            return Err(ParseError { line: i + 1, message });
        }
        lines.push(Line { number: i + 1, depth: indent / 2, text: text.trim_end() });
    }
    Ok(lines)
}

pub(super) struct Lines<'t> {
    pub(super) all: Vec<Line<'t>>,
    pub(super) at: usize,
}

impl<'t> Lines<'t> {
    pub(super) fn peek(&self) -> Option<Line<'t>> {
        self.all.get(self.at).copied()
    }

    /// The next line if it is so deep.
    pub(super) fn next_at(&mut self, depth: usize) -> Option<Line<'t>> {
        let line = self.peek().filter(|l| l.depth == depth)?;
        self.at += 1;
        Some(line)
    }
}

pub(super) fn number<T: std::str::FromStr>(text: &str) -> Answer<T> {
    text.parse().map_err(|_| format!("`{text}` is not a number"))
}

fn bytes(text: &str) -> Answer<usize> {
    number(text.trim().strip_suffix(" bytes").ok_or_else(|| format!("expected bytes at `{text}`"))?)
}

/// `f32[2, 3]` at the start of a text, and what follows.
fn typed(text: &str) -> Answer<(DType, Vec<usize>, &str)> {
    let not = || format!("expected a type such as `f32[2, 3]` at `{text}`");
    let (dtype, rest) = text.split_once('[').ok_or_else(not)?;
    let (shape, rest) = rest.split_once(']').ok_or_else(not)?;
    let dtype = DType::from_name(dtype.trim()).ok_or_else(not)?;
    let shape: Vec<usize> = split_top(shape).into_iter().map(number).collect::<Answer<_>>()?;
    let size = shape.iter().try_fold(dtype.bytes(), |n, &d| n.checked_mul(d));
    size.filter(|&n| i64::try_from(n).is_ok())
        .ok_or_else(|| format!("`{text}` is larger than any memory"))?;
    Ok((dtype, shape, rest.trim_start()))
}

fn port(text: &str, open: &Open) -> Answer<(Port, Vec<(usize, SizeId)>)> {
    let (name, rest) = take_name(text)?;
    let rest = rest.strip_prefix(": ").ok_or_else(|| format!("expected `: ` after `{name}`"))?;
    let (dtype, shape, rest) = typed(rest)?;
    let axes = match rest.strip_prefix("axis ") {
        None if rest.is_empty() => Vec::new(),
        None => return Err(format!("unexpected `{rest}`")),
        Some(rest) => port_axes(rest, &shape, open)?,
    };
    Ok((Port { name, dtype, shape }, axes))
}

fn carried(text: &str) -> Answer<Carried> {
    let parts =
        text.split_once(" to ").and_then(|(o, i)| Some((o.strip_prefix("out")?, i.strip_prefix("in")?)));
    let (output, input) = parts.ok_or_else(|| format!("expected `outN to inN` at `{text}`"))?;
    Ok(Carried { input: number(input)?, output: number(output)? })
}

fn counted(text: &str) -> Answer<Counted> {
    let parts = text.strip_prefix("out").and_then(|rest| {
        let (output, rest) = rest.split_once(" axis ")?;
        let (axis, count) = rest.split_once(" by out")?;
        Some((output, axis, count))
    });
    let (output, axis, count) = parts.ok_or_else(|| format!("expected `outN axis N by outN` at `{text}`"))?;
    Ok(Counted { output: number(output)?, axis: number(axis)?, count: number(count)? })
}

/// Splits off a bracketed text, brackets included.
fn bracketed(text: &str) -> Answer<(&str, &str)> {
    let (mut depth, mut quoted, mut escaped) = (0i32, false, false);
    for (i, c) in text.char_indices() {
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => quoted = true,
            '[' | '(' | '{' => depth += 1,
            ']' | ')' | '}' if depth == 1 => return Ok((&text[..=i], text[i + 1..].trim_start())),
            ']' | ')' | '}' => depth -= 1,
            _ if depth == 0 => break,
            _ => {}
        }
    }
    Err(format!("expected a bracketed list at `{text}`"))
}

fn constant(
    text: &str,
    place: usize,
    resolve: &dyn Fn(&ConstantText) -> Option<StoredTensor>,
) -> Answer<Constant> {
    let name = format!("c{place}: ");
    let rest = text.strip_prefix(&name).ok_or_else(|| format!("expected `{name}` at `{text}`"))?;
    let (dtype, shape, whole) = typed(rest)?;
    let rest = whole;
    let (storage, rest) = match rest.strip_prefix("stored ") {
        None => (Storage::plain(dtype), rest),
        Some(rest) => {
            let (text, rest) = rest.split_once(" #").ok_or_else(|| format!("expected a hash at `{rest}`"))?;
            let storage = Storage::parse(text).ok_or_else(|| format!("`{text}` is not a storage"))?;
            storage.check(dtype, &shape).map_err(|e| e.to_string())?;
            (storage, &whole[whole.len() - rest.len() - 1..])
        }
    };
    let rest = rest.strip_prefix('#').ok_or_else(|| format!("expected a hash at `{rest}`"))?;
    let (hash, rest) = rest.split_once(' ').ok_or("expected a list of names")?;
    let (names, rest) = bracketed(rest)?;
    let key = ConstantText { names: Vec::read(names)?, hash: hash.into(), dtype, shape, storage };
    let packed = match rest.strip_prefix("packed ") {
        None if rest.is_empty() => None,
        None => return Err(format!("unexpected `{rest}`")),
        Some(rest) => {
            let (packed, rest) = bracketed(rest)?;
            let call = rest.strip_prefix("of ").ok_or_else(|| format!("expected `of` at `{rest}`"))?;
            let (call, rest) = read_call(call)?;
            if !rest.is_empty() {
                return Err(format!("unexpected `{rest}`"));
            }
            Some((call, Packed::read(packed)?))
        }
    };
    let stored = resolve(&key).ok_or_else(|| format!("constant c{place} #{hash} is not at hand"))?;
    let found = (stored.dtype(), stored.shape(), stored.storage());
    if found != (dtype, key.shape.as_slice(), storage) {
        let (shape, (found, extents, as_what)) = (&key.shape, found);
        return Err(format!(
            "constant c{place}: expected {dtype}{shape:?} stored {storage}, found {found}{extents:?} stored {as_what}"
        ));
    }
    Ok(Constant { names: key.names, stored, packed })
}

fn read_call(text: &str) -> Answer<(KernelCall, &str)> {
    let (family, rest) = text.split_once(' ').ok_or_else(|| format!("expected a kernel call at `{text}`"))?;
    let (fields, rest) = bracketed(rest)?;
    Ok((KernelCall::read(family, fields)?, rest))
}

fn temporary(text: &str, expected: usize) -> Answer<Buffer> {
    let shape = || format!("expected `t{expected}: N bytes at N` at `{text}`");
    let rest = text.strip_prefix(&format!("t{expected}: ")).ok_or_else(shape)?;
    let (size, at) = rest.split_once(" bytes at ").ok_or_else(shape)?;
    Ok(Buffer { place: Place::Arena(number(at)?), bytes: number(size)? })
}

/// The buffers of a program in their order.
fn buffers(program: &Program, temporaries: Vec<Buffer>) -> Answer<Vec<Buffer>> {
    let inputs = program.inputs.iter().enumerate().map(|(i, p)| (Place::Input(i), p.bytes()));
    let outputs = program.outputs.iter().enumerate().map(|(i, p)| (Place::Output(i), p.bytes()));
    let constants = program.constants.iter().enumerate().map(|(i, c)| (Place::Constant(i), c.bytes()));
    let placed = inputs.chain(outputs).chain(constants).map(|(place, bytes)| Buffer { place, bytes });
    Ok(placed.chain(temporaries).collect())
}

/// `$0` of so many at least and at most.
pub(super) fn sized<R>(size: &str, least: &str, most: &str) -> Answer<Extent<R>> {
    Ok(Extent::Sized { size: SizeId::read(size)?, least: number(least)?, most: number(most)? })
}

struct Steps<'a, 't> {
    names: Vec<String>,
    open: &'a Open,
    lines: &'a mut Lines<'t>,
}

impl Steps<'_, '_> {
    fn block(&mut self, depth: usize) -> Result<Vec<Step>, ParseError> {
        let mut steps = Vec::new();
        while let Some(line) = self.lines.peek().filter(|l| l.depth == depth && l.text != "else") {
            self.lines.at += 1;
            let fail = |message: String| ParseError { line: line.number, message };
            let (text, label) = line.text.split_once("  // ").unwrap_or((line.text, ""));
            let label = match label.starts_with('"') {
                true => take_name(label).map_err(fail)?.0,
                false => label.to_string(),
            };
            let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
            let work = match word {
                "if" => {
                    let test = self.operand(rest).map_err(fail)?;
                    let then = self.block(depth + 1)?;
                    let otherwise = match self.lines.peek() {
                        Some(next) if next.depth == depth && next.text == "else" => {
                            self.lines.at += 1;
                            self.block(depth + 1)?
                        }
                        _ => Vec::new(),
                    };
                    Work::If { test, then, otherwise }
                }
                "loop" => {
                    let mut l = self.head(rest).map_err(fail)?;
                    l.body = self.block(depth + 1)?;
                    Work::Loop(l)
                }
                _ => self.plain(text).map_err(fail)?,
            };
            let sizes = step_sizes(text, &work);
            steps.push(Step { label, work, sizes });
        }
        match self.lines.peek() {
            Some(line) if line.depth > depth => {
                Err(ParseError { line: line.number, message: unexpected(line.text) })
            }
            Some(line) if line.depth == depth && line.text == "else" => {
                Err(ParseError { line: line.number, message: "`else` without `if`".into() })
            }
            _ => Ok(steps),
        }
    }

    fn operand(&self, text: &str) -> Answer<Operand> {
        let (name, offset) = text.split_once('+').unwrap_or((text, "0"));
        let buffer = self.names.iter().position(|n| n == name);
        let buffer = buffer.ok_or_else(|| format!("there is no buffer `{name}`"))?;
        Ok(Operand { buffer: BufferId(buffer), offset_bytes: number(offset)? })
    }

    fn args(&self, text: &str) -> Answer<Vec<Operand>> {
        let list = text.trim().strip_prefix('(').and_then(|t| t.strip_suffix(')'));
        let list = list.ok_or_else(|| format!("expected operands in parentheses at `{text}`"))?;
        split_top(list).into_iter().map(|o| self.operand(o)).collect()
    }

    /// `10 while t0 counter t1`, `t2 max 10`.
    fn head(&self, text: &str) -> Answer<Loop> {
        let words: Vec<&str> = text.split(' ').collect();
        let (trips, mut rest) = match words.as_slice() {
            [from, "max", bound, rest @ ..] => {
                (Extent::Read { from: self.operand(from)?, bound: number(bound)? }, rest)
            }
            [size, "from", least, "max", most, rest @ ..] => (sized(size, least, most)?, rest),
            [n, rest @ ..] => (Extent::Known(number(n)?), rest),
            [] => return Err("expected a number of repetitions".into()),
        };
        let mut l = Loop { trips, condition: None, counter: None, body: Vec::new() };
        while let [word, operand, tail @ ..] = rest {
            let operand = self.operand(operand)?;
            match *word {
                "while" => l.condition = Some(operand),
                "counter" => l.counter = Some(operand),
                _ => return Err(format!("unexpected `{word}`")),
            }
            rest = tail;
        }
        if rest.is_empty() { Ok(l) } else { Err(format!("unexpected `{}`", rest.join(" "))) }
    }

    fn plain(&self, text: &str) -> Answer<Work> {
        // The work has the greatest of every size.
        let most = |size: SizeId| self.open.sizes.get(size.0 as usize).map(|s| s.most.to_string());
        let text = &replace_sizes(text, &most);
        let (word, rest) = text.split_once(' ').ok_or_else(|| format!("`{text}` is not a step"))?;
        if word == "copy" {
            let (bytes, args) = rest.split_once(' ').ok_or("expected bytes and operands")?;
            let args = self.args(args)?;
            let [from, to] = args[..] else {
                return Err(format!("a copy has 2 operands, found {}", args.len()));
            };
            return Ok(Work::Copy { from, to, bytes: number(bytes)? });
        }
        if let Some(kernel) = word.strip_prefix('k').and_then(|n| n.parse().ok()) {
            return Ok(Work::Kernel { kernel, args: self.args(rest)? });
        }
        let (call, rest) = read_call(text)?;
        let (needs, rest) = match rest.strip_prefix("needs ") {
            None => (Needs::default(), rest),
            Some(rest) => {
                let (needs, rest) = bracketed(rest)?;
                (Needs::read(needs)?, rest)
            }
        };
        Ok(Work::Call { call, needs, args: self.args(rest)? })
    }
}
