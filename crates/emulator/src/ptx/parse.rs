//! The text of a kernel of PTX, as LLVM writes it.

use std::collections::HashMap;

use margay_kernels_gpu::Unit;

use super::{
    Address, How, Instruction, Kind, One, Operand, Operation, Ptx, Register, Rounding, Space, Three, Two,
};

/// Reads a module with one kernel.
///
/// # Errors
/// The line that is not understood.
pub(crate) fn parse(text: &str) -> Result<Ptx, String> {
    let lines = statements(text);
    let mut p = Parser::default();
    // Arrays and labels are named before they are met.
    let mut position = 0;
    for line in lines.iter().map(String::as_str) {
        if let Some(rest) = line.strip_prefix(".shared .align") {
            p.array(rest).ok_or_else(|| format!("not understood: `{line}`"))?;
        } else if line.starts_with(".param") {
            p.params += 1;
        } else if let Some(label) = line.strip_suffix(':') {
            p.labels.insert(label, position);
        } else if begins_instruction(line) {
            position += 1;
        }
    }
    let mut instructions = Vec::with_capacity(position);
    for line in lines.iter().filter(|line| begins_instruction(line)) {
        instructions.push(p.instruction(line).ok_or_else(|| format!("not understood: `{line}`"))?);
    }
    let waits = |i: &Instruction| {
        matches!(i.operation, Operation::Barrier | Operation::Shuffle { .. } | Operation::Multiply { .. })
    };
    let waits = instructions.iter().any(waits);
    Ok(Ptx { instructions, registers: p.registers.len(), params: p.params, shared: p.bytes, waits })
}

/// Lines without comments, each instruction on one.
fn statements(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        match lines.last_mut().filter(|_| is_open) {
            Some(last) => *last = format!("{last} {line}"),
            None => lines.push(without_block(line).unwrap_or_else(|| line.to_owned())),
        }
        // Products on matrix units are written on several lines.
        is_open = lines.last().is_some_and(|last| begins_instruction(last) && !last.ends_with(';'));
    }
    lines
}

/// The instruction of a block on one line, `{ .reg .b32 tmp; mov.b64 {tmp, %r1}, %rd1; }`: so LLVM writes that nothing takes a
/// part where the version of PTX does not know `_`.
fn without_block(line: &str) -> Option<String> {
    let (declared, rest) = line.strip_prefix('{')?.split_once(';')?;
    let name = declared.trim().strip_prefix(".reg .b")?.split_once(' ')?.1.trim();
    let instruction = rest.trim().strip_suffix('}')?.trim();
    let is_one = instruction.starts_with("mov.") && instruction.matches(';').count() == 1;
    (is_one && instruction.matches(name).count() == 1).then(|| instruction.replace(name, "_"))
}

/// Whether a line begins with an instruction, and is no directive, label or bracket.
fn begins_instruction(line: &str) -> bool {
    let is_block = line.len() > 1 && line.starts_with('{');
    is_block || line.starts_with(|c: char| c == '@' || c.is_ascii_lowercase())
}

#[derive(Default)]
struct Parser<'t> {
    registers: HashMap<&'t str, Register>,
    labels: HashMap<&'t str, usize>,
    arrays: HashMap<&'t str, u32>,
    bytes: Vec<usize>,
    params: usize,
}

/// The list that a word of PTX holds between dots.
type Words<'t> = [&'t str];

impl<'t> Parser<'t> {
    /// `16 .b8 name[bytes];`
    fn array(&mut self, rest: &'t str) -> Option<()> {
        let (name, bytes) = rest.split_once(".b8")?.1.trim().strip_suffix("];")?.split_once('[')?;
        self.arrays.insert(name, u32::try_from(self.bytes.len()).ok()?);
        self.bytes.push(bytes.parse().ok()?);
        Some(())
    }

    fn register(&mut self, name: &'t str) -> Option<Register> {
        let next = self.registers.len();
        name.starts_with('%').then(|| *self.registers.entry(name).or_insert(next))
    }

    fn operand(&mut self, text: &'t str) -> Option<Operand> {
        if text.starts_with('%') {
            return self.register(text).map(Operand::Register);
        }
        if let Some(array) = self.arrays.get(text) {
            return Some(Operand::Shared(*array));
        }
        let hexadecimal = ["0f", "0d", "0x"].iter().find_map(|prefix| text.strip_prefix(prefix));
        let bits = match hexadecimal {
            Some(digits) => u64::from_str_radix(digits.trim_end_matches('U'), 16).ok()?,
            None => text.parse::<i64>().map(i64::cast_unsigned).or_else(|_| text.parse()).ok()?,
        };
        Some(Operand::Bits(bits))
    }

    fn operands(&mut self, list: &[&'t str]) -> Option<Vec<Operand>> {
        list.iter().map(|text| self.operand(text)).collect()
    }

    /// `[base+offset]`.
    fn address(&mut self, space: Space, text: &'t str) -> Option<Address> {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        let (base, offset) = match inner.split_once('+') {
            Some((base, offset)) => (base, offset.parse().ok()?),
            None => (inner, 0),
        };
        Some(Address { space, base: self.operand(base)?, offset })
    }

    fn instruction(&mut self, line: &'t str) -> Option<Instruction> {
        let line = line.trim_end_matches(';').trim();
        let (guard, line) = match line.strip_prefix('@') {
            None => (None, line),
            Some(rest) => {
                let (test, rest) = rest.split_once(char::is_whitespace)?;
                let guard = match test.strip_prefix('!') {
                    Some(test) => (self.register(test)?, false),
                    None => (self.register(test)?, true),
                };
                (Some(guard), rest.trim())
            }
        };
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let words: Vec<&str> = word.split('.').collect();
        let list = split(rest);
        let operation = self.operation(&words, &list)?;
        Some(Instruction { guard, operation })
    }

    fn operation(&mut self, words: &Words<'t>, list: &[&'t str]) -> Option<Operation> {
        match (words[0], list) {
            ("ret", []) => Some(Operation::Return),
            ("bra", [label]) => Some(Operation::Branch { to: *self.labels.get(label)? }),
            ("bar" | "barrier", ["0"]) => Some(Operation::Barrier),
            ("ld", [to, from]) => self.load(words, to, from),
            ("st", [to, from]) => {
                let address = self.address(space(words)?, to)?;
                let from = self.operands(&elements(from))?;
                Some(Operation::Store { from, bits: bits(words.last()?)?, address })
            }
            ("atom", [to, address, word]) if words.ends_with(&["max", "u64"]) => {
                let to = Some(self.register(to)?);
                self.raise(to, words, address, word)
            }
            ("red", [address, word]) if words.ends_with(&["max", "u64"]) => {
                self.raise(None, words, address, word)
            }
            ("mov" | "cvta", [to, from]) => self.moved(words, to, from),
            ("shfl", [to, value, distance, "31", "-1"]) if words.get(2) == Some(&"bfly") => {
                // The second result says whether there is such a thread; within a warp there is.
                let to = self.register(to.split('|').next()?)?;
                Some(Operation::Shuffle {
                    to,
                    value: self.operand(value)?,
                    distance: self.operand(distance)?,
                })
            }
            ("mma", [to, a, b, c]) => self.multiply(words, [to, a, b, c]),
            ("setp", [to, a, b, ..]) => self.compare(words, to, a, b, &list[3..]),
            ("selp", [to, a, b, test]) => {
                let (to, test) = (self.register(to)?, self.operand(test)?);
                Some(Operation::Select { to, a: self.operand(a)?, b: self.operand(b)?, test })
            }
            ("cvt", [to, a]) => self.convert(words, to, a),
            (_, [to, a]) => {
                let (function, kind) = (one(words)?, kind(words.last()?)?);
                Some(Operation::One { function, kind, to: self.register(to)?, a: self.operand(a)? })
            }
            (_, [to, a, b]) => {
                let (function, kind) = (two(words)?, kind(words.last()?)?);
                let (to, a, b) = (self.register(to)?, self.operand(a)?, self.operand(b)?);
                Some(Operation::Two { function, kind, to, a, b })
            }
            (_, [to, a, b, c]) => {
                let (function, kind) = (three(words)?, kind(words.last()?)?);
                let (to, a, b) = (self.register(to)?, self.operand(a)?, self.operand(b)?);
                Some(Operation::Three { function, kind, to, a, b, c: self.operand(c)? })
            }
            _ => None,
        }
    }

    fn load(&mut self, words: &Words<'t>, to: &'t str, from: &'t str) -> Option<Operation> {
        if words.get(1) == Some(&"param") {
            let name = from.strip_prefix('[')?.strip_suffix(']')?;
            let number = name.rsplit_once("_param_")?.1.parse().ok()?;
            return (number < self.params).then_some(Operation::Param { to: self.register(to)?, number });
        }
        let last = words.last()?;
        let signed = matches!(kind(last)?, Kind::Int { signed: true, .. });
        let to = elements(to).into_iter().map(|to| self.register(to)).collect::<Option<Vec<_>>>()?;
        Some(Operation::Load { to, bits: bits(last)?, signed, address: self.address(space(words)?, from)? })
    }

    fn raise(
        &mut self,
        to: Option<Register>,
        words: &Words<'t>,
        address: &'t str,
        word: &'t str,
    ) -> Option<Operation> {
        let address = self.address(space(words)?, address)?;
        Some(Operation::Raise { to, address, word: self.operand(word)? })
    }

    /// A move, a change of address space, or registers that are joined or taken apart.
    fn moved(&mut self, words: &Words<'t>, to: &'t str, from: &'t str) -> Option<Operation> {
        if let "%tid.x" | "%ctaid.x" = from {
            let to = self.register(to)?;
            return Some(if from == "%tid.x" { Operation::Thread { to } } else { Operation::Block { to } });
        }
        if from.starts_with('%') && from.contains('.') {
            return None;
        }
        let width = || bits(words.last()?);
        match (to.starts_with('{'), from.starts_with('{')) {
            (false, false) => Some(Operation::Move { to: self.register(to)?, from: self.operand(from)? }),
            (false, true) => {
                let parts = elements(from);
                let bits = width()? / u32::try_from(parts.len()).ok()?;
                Some(Operation::Pack { to: self.register(to)?, bits, from: self.operands(&parts)? })
            }
            (true, false) => {
                let parts = elements(to);
                let bits = width()? / u32::try_from(parts.len()).ok()?;
                let register = |to: &&'t str| match *to {
                    "_" => Some(None),
                    to => self.register(to).map(Some),
                };
                let to = parts.iter().map(register).collect::<Option<Vec<_>>>()?;
                Some(Operation::Unpack { to, bits, from: self.operand(from)? })
            }
            (true, true) => None,
        }
    }

    /// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`, each operand as registers in braces.
    fn multiply(&mut self, words: &Words<'t>, [to, a, b, c]: [&'t str; 4]) -> Option<Operation> {
        let unit = *Unit::ALL.iter().find(|unit| words.get(7) == Some(&unit.name()))?;
        let shape = format!("m16n8k{}", unit.terms());
        let form = ["sync", "aligned", &shape, "row", "col", "f32", unit.name(), unit.name(), "f32"];
        if words[1..] != form {
            return None;
        }
        let to = elements(to).into_iter().map(|to| self.register(to)).collect::<Option<Vec<_>>>()?;
        let mut operands = |text| self.operands(&elements(text));
        let (a, b, c) = (operands(a)?, operands(b)?, operands(c)?);
        Some(Operation::Multiply {
            unit,
            to: to.try_into().ok()?,
            a: a.try_into().ok()?,
            b: b.try_into().ok()?,
            c: c.try_into().ok()?,
        })
    }

    /// `setp.lt.s32`, or `setp.lt.and.s32` with one more operand.
    fn compare(
        &mut self,
        words: &Words<'t>,
        to: &'t str,
        a: &'t str,
        b: &'t str,
        more: &[&'t str],
    ) -> Option<Operation> {
        let kind = kind(words.last()?)?;
        let (how, unordered) = how(words.get(1)?, kind)?;
        let with = match (words, more) {
            ([_, _, _], []) => None,
            ([_, _, join, _], [other]) => Some((logic(join)?, self.operand(other)?)),
            _ => return None,
        };
        let (to, a, b) = (self.register(to)?, self.operand(a)?, self.operand(b)?);
        Some(Operation::Compare { how, unordered, kind, to, a, b, with })
    }

    /// `cvt.u32.u16`, `cvt.rn.f32.s32`, `cvt.rzi.s64.f32`.
    fn convert(&mut self, words: &Words<'t>, to: &'t str, a: &'t str) -> Option<Operation> {
        let [modes @ .., into, from] = &words[1..] else { return None };
        let rounding = match modes {
            [] | ["rn" | "rni"] => Rounding::Nearest,
            ["rmi"] => Rounding::Down,
            ["rpi"] => Rounding::Up,
            ["rzi"] => Rounding::TowardsZero,
            _ => return None,
        };
        let (into, from) = (kind(into)?, kind(from)?);
        Some(Operation::Convert { from, into, rounding, to: self.register(to)?, a: self.operand(a)? })
    }
}

/// Operands, between commas outside of brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut found, mut begin, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                found.push(text[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    found.push(text[begin..].trim());
    found.retain(|operand| !operand.is_empty());
    found
}

/// What braces hold, or the text itself.
fn elements(text: &str) -> Vec<&str> {
    match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(inner) => split(inner),
        None => vec![text],
    }
}

/// The bits of a type.
fn bits(ty: &str) -> Option<u32> {
    match ty {
        "pred" => Some(1),
        _ => ty.trim_start_matches(|c: char| c.is_alphabetic()).parse().ok(),
    }
}

fn kind(ty: &str) -> Option<Kind> {
    match ty {
        "f32" => Some(Kind::F32),
        "f64" => Some(Kind::F64),
        "pred" => Some(Kind::Int { bits: 1, signed: false }),
        "s8" | "s16" | "s32" | "s64" => Some(Kind::Int { bits: bits(ty)?, signed: true }),
        "b8" | "b16" | "b32" | "b64" | "u8" | "u16" | "u32" | "u64" => {
            Some(Kind::Int { bits: bits(ty)?, signed: false })
        }
        _ => None,
    }
}

/// Where an access goes. Without a word it is to an address of any memory, which for kernels is global.
fn space(words: &Words<'_>) -> Option<Space> {
    match (words.contains(&"global"), words.contains(&"shared"), words.contains(&"local")) {
        (_, false, false) => Some(Space::Global),
        (false, true, false) => Some(Space::Shared),
        _ => None,
    }
}

fn logic(word: &str) -> Option<Two> {
    match word {
        "and" => Some(Two::And),
        "or" => Some(Two::Or),
        "xor" => Some(Two::Xor),
        _ => None,
    }
}

/// What a comparison asks for, and what it says where a number is NaN.
fn how(word: &str, kind: Kind) -> Option<(How, bool)> {
    let how = match word.strip_suffix('u').unwrap_or(word) {
        "eq" => How::Equal,
        "ne" => How::NotEqual,
        "lt" | "lo" => How::Less,
        "le" | "ls" => How::LessOrEqual,
        "gt" | "hi" => How::Greater,
        "ge" | "hs" => How::GreaterOrEqual,
        "num" => How::Ordered,
        "nan" => How::Unordered,
        _ => return None,
    };
    let unordered = word.ends_with('u');
    (!unordered || matches!(kind, Kind::F32 | Kind::F64)).then_some((how, unordered))
}

/// Whether the last word is a type of floats.
fn of_floats(words: &Words<'_>) -> bool {
    matches!(words.last(), Some(&"f32" | &"f64"))
}

fn one(words: &Words<'_>) -> Option<One> {
    match words {
        ["not", _] => Some(One::Not),
        ["neg", _] => Some(One::Negative),
        ["abs", _] => Some(One::Absolute),
        ["sqrt", "rn", _] if of_floats(words) => Some(One::Root),
        ["rcp", "rn", _] if of_floats(words) => Some(One::Reciprocal),
        _ => None,
    }
}

fn two(words: &Words<'_>) -> Option<Two> {
    match (of_floats(words), words) {
        (true, ["add", _] | ["add", "rn", _]) | (false, ["add", _]) => Some(Two::Add),
        (true, ["sub", _] | ["sub", "rn", _]) | (false, ["sub", _]) => Some(Two::Subtract),
        (true, ["mul", _] | ["mul", "rn", _]) | (false, ["mul", "lo", _]) => Some(Two::Multiply),
        (true, ["div", "rn", _]) | (false, ["div", _]) => Some(Two::Divide),
        (_, ["min", _]) => Some(Two::Least),
        (_, ["max", _]) => Some(Two::Greatest),
        (true, ["copysign", _]) => Some(Two::CopySign),
        (false, ["mul", "hi", _]) => Some(Two::MultiplyHigh),
        (false, ["mul", "wide", _]) => Some(Two::MultiplyWide),
        (false, ["rem", _]) => Some(Two::Remainder),
        (false, ["shl", _]) => Some(Two::ShiftLeft),
        (false, ["shr", _]) => Some(Two::ShiftRight),
        (false, [word, _]) => logic(word),
        _ => None,
    }
}

fn three(words: &Words<'_>) -> Option<Three> {
    match (of_floats(words), words) {
        (true, ["fma", "rn", _]) | (false, ["mad", "lo", _]) => Some(Three::MultiplyAdd),
        (false, ["mad", "wide", _]) => Some(Three::MultiplyAddWide),
        (false, ["prmt", "b32"]) => Some(Three::Permute),
        (false, ["shf", "l", "wrap", "b32"]) => Some(Three::FunnelLeft),
        (false, ["shf", "r", "wrap", "b32"]) => Some(Three::FunnelRight),
        (false, ["bfe", "u32" | "u64" | "s32" | "s64"]) => Some(Three::Extract),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "
.version 6.3
.target sm_75
.visible .entry kernel(
	.param .u64 .ptr .align 1 kernel_param_0,
	.param .u64 kernel_param_1
)
.maxntid 32
{
	.reg .pred 	%p<2>;
	// demoted variable
	.shared .align 16 .b8 shared0[512];
	ld.param.b64 	%rd1, [kernel_param_0];  // a comment
	mov.u32 	%r1, %tid.x;
	setp.gtu.f32 	%p1, %r2, 0f3F800000;
	@!%p1 bra 	$L__BB0_2;
	st.shared.v2.b32 	[shared0+16], {%r1, %r2};
$L__BB0_2:                              // %exit
	ret;
}";

    #[test]
    fn a_kernel_is_read() {
        let kernel = parse(KERNEL).unwrap();
        assert_eq!((kernel.params, kernel.shared.as_slice(), kernel.waits), (2, &[512][..], false));
        assert_eq!(kernel.instructions.len(), 6);
        assert_eq!(kernel.instructions[3].operation, Operation::Branch { to: 5 });
        assert!(matches!(kernel.instructions[3].guard, Some((_, false))));
        let Operation::Compare { how, unordered, kind, b, .. } = kernel.instructions[2].operation else {
            panic!("{:?}", kernel.instructions[2]);
        };
        assert_eq!((how, unordered, kind), (How::Greater, true, Kind::F32));
        assert_eq!(b, Operand::Bits(0x3f80_0000));
        let Operation::Store { from, bits: 32, address } = &kernel.instructions[4].operation else {
            panic!("{:?}", kernel.instructions[4]);
        };
        assert_eq!((from.len(), address.base, address.offset), (2, Operand::Shared(0), 16));
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_line() {
        for line in [
            "ex2.approx.f32 \t%r1, %r2;",
            "add.ftz.f32 \t%r1, %r2, %r3;",
            "div.full.f32 \t%r1, %r2, %r3;",
            "ld.local.b32 \t%r1, [%rd1];",
            "mov.u32 \t%r1, %tid.y;",
            "bra \t$nowhere;",
            "shfl.sync.down.b32 \t%r1|%p1, %r2, 16, 31, -1;",
            "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 \t{%r1}, {%r1}, {%r1}, {%r1};",
        ] {
            assert_eq!(parse(line), Err(format!("not understood: `{line}`")));
        }
    }
}
