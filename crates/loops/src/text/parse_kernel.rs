//! Text to kernels.

use margay_tensor::DType;

use super::Field;
use super::parse::{Answer, Lines, ParseError, number, sized, unexpected};
use super::words::{split_top, take_name};
use crate::{Arg, Axis, Binary, Combine, Extent, Factor, Index, Kernel, Literal, Reg, SizeId, Stmt, Unary};

pub(super) fn kernel_args(text: &str) -> Answer<Vec<Arg>> {
    let list = text.strip_prefix("kernel(").and_then(|t| t.strip_suffix(')'));
    let list = list.ok_or_else(|| format!("expected `kernel(…)` at `{text}`"))?;
    let arg = |text: &str| {
        let (written, dtype) = match text.split_once(' ') {
            Some(("r", dtype)) => (false, dtype),
            Some(("w", dtype)) => (true, dtype),
            _ => return Err(format!("expected `r` or `w` and a type at `{text}`")),
        };
        Ok(Arg { dtype: DType::read(dtype)?, written })
    };
    split_top(list).into_iter().map(arg).collect()
}

pub(super) fn read_kernel(args: Vec<Arg>, lines: &mut Lines<'_>) -> Result<Kernel, ParseError> {
    let mut reader = KernelReader { args, regs: Vec::new(), axes: 0, lines };
    let body = reader.block(1)?;
    let last = reader.lines.all[reader.lines.at - 1].number;
    let KernelReader { args, regs, axes, .. } = reader;
    let missing = regs.iter().position(Option::is_none);
    if let Some(missing) = missing {
        return Err(ParseError { line: last, message: format!("nothing defines %{missing}") });
    }
    Ok(Kernel { args, regs: regs.into_iter().flatten().collect(), axes, body })
}

struct KernelReader<'a, 't> {
    args: Vec<Arg>,
    regs: Vec<Option<DType>>,
    axes: u16,
    lines: &'a mut Lines<'t>,
}

/// More registers or axes than these are no kernel.
const MAX_NAMES: usize = 1 << 20;

impl KernelReader<'_, '_> {
    fn block(&mut self, depth: usize) -> Result<Vec<Stmt>, ParseError> {
        let mut body = Vec::new();
        while let Some(line) = self.lines.next_at(depth) {
            let fail = |message: String| ParseError { line: line.number, message };
            let stmt = match line.text.split_once(' ').unwrap_or((line.text, "")) {
                ("for", rest) => {
                    let (axis, extent, tail) = self.range(rest).map_err(fail)?;
                    let parallel = match tail {
                        "" => false,
                        "parallel" => true,
                        _ => return Err(fail(format!("unexpected `{tail}`"))),
                    };
                    Stmt::Loop { axis, extent, parallel, body: self.block(depth + 1)? }
                }
                ("reduce", rest) => {
                    let (range, joined) = rest
                        .split_once(": ")
                        .ok_or_else(|| fail(format!("expected `: ` and results at `{rest}`")))?;
                    let (axis, extent, _) = self.range(range).map_err(fail)?;
                    let inner = self.block(depth + 1)?;
                    let results = split_top(joined).into_iter().map(|text| self.joined(text));
                    Stmt::Reduce {
                        axis,
                        extent,
                        results: results.collect::<Answer<_>>().map_err(fail)?,
                        body: inner,
                    }
                }
                _ => self.stmt(line.text).map_err(fail)?,
            };
            body.push(stmt);
        }
        match self.lines.peek() {
            Some(line) if line.depth > depth => {
                Err(ParseError { line: line.number, message: unexpected(line.text) })
            }
            _ => Ok(body),
        }
    }

    /// `i0 in 0..8`, `i0 in 0..$1 from 4 max 8`, `i0 in 0..%3 max 8`, and what follows.
    fn range<'s>(&mut self, text: &'s str) -> Answer<(Axis, Extent<Reg>, &'s str)> {
        let not = || format!("expected `iN in 0..N` at `{text}`");
        let (axis, rest) = text.split_once(" in 0..").ok_or_else(not)?;
        let axis: u16 = number(axis.strip_prefix('i').ok_or_else(not)?)?;
        self.axes = self.axes.max(axis.checked_add(1).ok_or_else(not)?);
        let (from, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (extent, rest) = match from.starts_with('%') {
            false if from.starts_with('$') => {
                let words = rest.splitn(5, ' ').collect::<Vec<_>>();
                let ["from", least, "max", most, rest @ ..] = words.as_slice() else {
                    return Err(format!("expected `from N max N` at `{rest}`"));
                };
                (sized(from, least, most)?, rest.first().copied().unwrap_or(""))
            }
            false => (Extent::Known(number(from)?), rest),
            true => {
                let rest =
                    rest.strip_prefix("max ").ok_or_else(|| format!("expected `max N` at `{rest}`"))?;
                let (bound, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                (Extent::Read { from: self.reg(from)?, bound: number(bound)? }, rest)
            }
        };
        Ok((Axis(axis), extent, rest))
    }

    /// `%2 = sum %1`.
    fn joined(&mut self, text: &str) -> Answer<(Reg, Combine, Reg)> {
        let not = || format!("expected `%N = combine %N` at `{text}`");
        let (to, rest) = text.split_once(" = ").ok_or_else(not)?;
        let (combine, value) = rest.split_once(' ').ok_or_else(not)?;
        let combine = Combine::from_name(combine).ok_or_else(not)?;
        let value = self.reg(value)?;
        let dtype = self.dtype(value)?;
        Ok((self.define(to, dtype)?, combine, value))
    }

    fn reg(&self, text: &str) -> Answer<Reg> {
        let number = text.strip_prefix('%').and_then(|n| n.parse::<u32>().ok());
        number.map(Reg).ok_or_else(|| format!("expected a register such as `%0` at `{text}`"))
    }

    fn dtype(&self, reg: Reg) -> Answer<DType> {
        let dtype = self.regs.get(reg.0 as usize).copied().flatten();
        dtype.ok_or_else(|| format!("`{reg}` is not defined here"))
    }

    fn define(&mut self, text: &str, dtype: DType) -> Answer<Reg> {
        let reg = self.reg(text)?;
        let at = reg.0 as usize;
        if at >= MAX_NAMES {
            return Err(format!("`{reg}` is beyond the {MAX_NAMES} registers a kernel may have"));
        }
        if self.regs.len() <= at {
            self.regs.resize(at + 1, None);
        }
        match self.regs[at].replace(dtype) {
            None => Ok(reg),
            Some(_) => Err(format!("`{reg}` is defined twice")),
        }
    }

    fn defined(&self, text: &str) -> Answer<(Reg, DType)> {
        let reg = self.reg(text.trim())?;
        Ok((reg, self.dtype(reg)?))
    }

    /// `aN[index]`, and what follows.
    fn access<'s>(&self, text: &'s str) -> Answer<(usize, Index, &'s str)> {
        let not = || format!("expected `aN[index]` at `{text}`");
        let (arg, rest) = text.strip_prefix('a').and_then(|t| t.split_once('[')).ok_or_else(not)?;
        let (index, rest) = rest.split_once(']').ok_or_else(not)?;
        let arg: usize = number(arg)?;
        if arg >= self.args.len() {
            return Err(format!("`a{arg}` is beyond the {} arguments", self.args.len()));
        }
        Ok((arg, self.index(index)?, rest.trim_start()))
    }

    fn index(&self, text: &str) -> Answer<Index> {
        let mut index = Index::default();
        let mut rest = text.trim();
        let mut sign = 1;
        if let Some(positive) = rest.strip_prefix('-') {
            (sign, rest) = (-1, positive);
        }
        loop {
            let end = [rest.find(" + "), rest.find(" - ")].into_iter().flatten().min();
            let term = &rest[..end.unwrap_or(rest.len())];
            match term.starts_with('$') && sign > 0 {
                true => index.sizes.push(self.size_term(term)?),
                false => {
                    index = sum(&index, &self.term(term, sign)?)
                        .ok_or_else(|| format!("the numbers of `{text}` are too large"))?
                }
            }
            match end {
                None => return Ok(index),
                Some(end) => {
                    sign = if rest[end..].starts_with(" + ") { 1 } else { -1 };
                    rest = &rest[end + 3..];
                }
            }
        }
    }

    /// `3*i1`, `%2`, `64`, with a sign.
    fn term(&self, term: &str, sign: i64) -> Answer<Index> {
        let (factor, name) = term.split_once('*').unwrap_or(("1", term));
        // The smallest number has no positive one.
        let factor = i64::try_from(i128::from(sign) * number::<i128>(factor)?)
            .map_err(|_| format!("`{term}` is too large"))?;
        Ok(match name.as_bytes().first() {
            Some(b'i') => Index::axis(Axis(number(&name[1..])?)).times(factor),
            Some(b'%') => Index::reg(self.defined(name)?.0).times(factor),
            _ if sign < 0 => Index::constant(number::<i64>(&format!("-{name}"))?),
            _ => Index::constant(number(name)?),
        })
    }

    /// `$0`, `$0*i1`, `$0*%2`.
    fn size_term(&self, term: &str) -> Answer<(SizeId, Factor)> {
        let (size, factor) = term.split_once('*').unwrap_or((term, ""));
        let factor = match factor.as_bytes().first() {
            None => Factor::One,
            Some(b'i') => Factor::Axis(Axis(number(&factor[1..])?)),
            _ => Factor::Reg(self.defined(factor)?.0),
        };
        Ok((SizeId::read(size)?, factor))
    }

    fn stmt(&mut self, text: &str) -> Answer<Stmt> {
        if let Some(rest) = text.strip_prefix("store ") {
            let (arg, index, rest) = self.access(rest)?;
            let value = rest.strip_prefix("= ").ok_or_else(|| format!("expected `= %N` at `{rest}`"))?;
            return Ok(Stmt::Store { arg, index, value: self.defined(value)?.0 });
        }
        if let Some(rest) = text.strip_prefix("require ") {
            let (test, what) = rest.split_once(' ').ok_or("expected what is required")?;
            let (test, (what, _)) = (self.defined(test)?.0, take_name(what)?);
            return Ok(Stmt::Require { test, what: what.into() });
        }
        let (to, value) = text.split_once(" = ").ok_or_else(|| format!("`{text}` is not a statement"))?;
        let (word, rest) = value.split_once(' ').unwrap_or((value, ""));
        let operands = || -> Answer<Vec<(Reg, DType)>> {
            split_top(rest).into_iter().map(|r| self.defined(r)).collect()
        };
        let count = |n: usize| {
            let list = operands()?;
            if list.len() == n {
                Ok(list)
            } else {
                Err(format!("`{word}` takes {n} operands, found {}", list.len()))
            }
        };
        match word {
            "index" => {
                let index = self.index(rest)?;
                Ok(Stmt::IndexValue { to: self.define(to, DType::I64)?, index })
            }
            "size" => {
                let (size, dtype) =
                    rest.split_once(" : ").ok_or_else(|| format!("expected ` : type` at `{rest}`"))?;
                let (size, inverse) = size.strip_prefix("1/").map_or((size, false), |size| (size, true));
                let (size, dtype) = (SizeId::read(size)?, DType::read(dtype)?);
                Ok(Stmt::Size { to: self.define(to, dtype)?, size, inverse })
            }
            "load" => {
                let (arg, index, rest) = self.access(rest)?;
                let dtype = self.args[arg].dtype.computed();
                let guard = match rest.strip_prefix("if ") {
                    None if rest.is_empty() => None,
                    None => return Err(format!("unexpected `{rest}`")),
                    Some(rest) => {
                        let (test, other) = rest
                            .split_once(" else ")
                            .ok_or_else(|| format!("expected `else` at `{rest}`"))?;
                        Some((self.defined(test)?.0, literal(dtype, other)?))
                    }
                };
                Ok(Stmt::Load { to: self.define(to, dtype)?, arg, index, guard })
            }
            "select" => {
                let [(test, _), (x, dtype), (y, _)] = count(3)?[..] else { return Err("select".into()) };
                Ok(Stmt::Select { to: self.define(to, dtype)?, test, x, y })
            }
            "cast" => {
                let (x, dtype) =
                    rest.split_once(" : ").ok_or_else(|| format!("expected ` : type` at `{rest}`"))?;
                let (x, dtype) = (self.defined(x)?.0, DType::read(dtype)?);
                Ok(Stmt::Cast { to: self.define(to, dtype)?, x })
            }
            _ => {
                if let Some(op) = Unary::from_name(word) {
                    let (x, dtype) = count(1)?[0];
                    let dtype = op.result(dtype);
                    return Ok(Stmt::Unary { to: self.define(to, dtype)?, op, x });
                }
                if let Some(op) = Binary::from_name(word) {
                    let list = count(2)?;
                    let ((x, dtype), (y, _)) = (list[0], list[1]);
                    let dtype = op.result(dtype);
                    return Ok(Stmt::Binary { to: self.define(to, dtype)?, op, x, y });
                }
                let (value, dtype) = value
                    .split_once(" : ")
                    .ok_or_else(|| format!("`{word}` is no operation and no literal"))?;
                let dtype = DType::read(dtype)?;
                Ok(Stmt::Literal { to: self.define(to, dtype)?, value: literal(dtype, value)? })
            }
        }
    }
}

/// A literal of a type. Narrow floats are written as f32.
fn literal(dtype: DType, text: &str) -> Answer<Literal> {
    let bits = text.strip_prefix("nan(0x").and_then(|t| t.strip_suffix(')'));
    let bits = bits.map(|b| u64::from_str_radix(b, 16).map_err(|_| format!("`{text}` is not a number")));
    Ok(match (dtype, bits.transpose()?) {
        (DType::F64, Some(bits)) => Literal::F64(bits),
        (DType::F64, None) => Literal::F64(number::<f64>(text)?.to_bits()),
        (d, Some(bits)) if d.is_float() => Literal::F32(bits as u32),
        (d, None) if d.is_float() => Literal::F32(number::<f32>(text)?.to_bits()),
        (DType::Bool, _) => Literal::Bool(bool::read(text)?),
        (d, _) => Literal::Int(d, number(text)?),
    })
}

/// The sum of two indices without sizes, unless it overflows.
fn sum(a: &Index, b: &Index) -> Option<Index> {
    let of = |all: &[(Reg, i64)], reg: Reg| all.iter().find(|(r, _)| *r == reg).map_or(0, |(_, c)| *c);
    a.offset.checked_add(b.offset)?;
    b.axes.iter().try_for_each(|(axis, c)| a.coefficient(*axis).checked_add(*c).map(drop))?;
    b.regs.iter().try_for_each(|(reg, c)| of(&a.regs, *reg).checked_add(*c).map(drop))?;
    Some(a.plus(b, 1))
}
