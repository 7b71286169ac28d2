//! Text to what a program leaves open.

use margay_tensor::Dim;

use super::parse::{Answer, number};
use super::print::axes_text;
use super::words::split_top;
use crate::open::numbers_in;
use crate::{Open, Size, SizeId, SizedAt, Work};

impl SizeId {
    /// Reads `$0`.
    pub(crate) fn read(text: &str) -> Answer<SizeId> {
        let digits =
            text.strip_prefix('$').ok_or_else(|| format!("expected a size such as `$0` at `{text}`"))?;
        number(digits).map(SizeId)
    }
}

/// `batch 1 to 8, seq 16 to 512`: the values of one line more.
pub(super) fn open_line(text: &str, open: &mut Open) -> Answer<()> {
    let not = || format!("expected `symbol N to N` at `{text}`");
    let (mut symbols, mut ranges) = (Vec::new(), Vec::new());
    for part in split_top(text) {
        let [symbol, least, "to", most] = part.split(' ').collect::<Vec<_>>()[..] else { return Err(not()) };
        symbols.push(symbol.into());
        ranges.push((number(least)?, number(most)?));
    }
    if ranges.is_empty() || ranges.iter().any(|(least, most)| least > most) {
        return Err(not());
    }
    if !open.is_closed() && open.symbols != symbols {
        return Err(format!("the symbols at `{text}` are not those of the line before"));
    }
    open.symbols = symbols;
    open.values.push(ranges);
    Ok(())
}

/// `$0: seq from 16 to 512`.
pub(super) fn size_line(text: &str, open: &mut Open) -> Answer<()> {
    let not = || format!("expected `${}: dimension from N to N` at `{text}`", open.sizes.len());
    let (name, rest) = text.split_once(": ").ok_or_else(not)?;
    let (value, bounds) = rest.split_once(" from ").ok_or_else(not)?;
    let (least, most) = bounds.split_once(" to ").ok_or_else(not)?;
    if SizeId::read(name)?.0 as usize != open.sizes.len() {
        return Err(not());
    }
    let (value, least, most) = (Dim::parse(value)?, number(least)?, number(most)?);
    let mut symbols = Vec::new();
    value.collect_symbols(&mut symbols);
    if let Some(unknown) = symbols.iter().find(|s| !open.symbols.contains(s)) {
        return Err(format!("`{unknown}` is not open"));
    }
    open.sizes.push(Size { value, least, most });
    Ok(())
}

/// `1 $0, 2 $3` of a port of a shape.
pub(super) fn port_axes(text: &str, shape: &[usize], open: &Open) -> Answer<Vec<(usize, SizeId)>> {
    let axis = |text: &str| -> Answer<(usize, SizeId)> {
        let (axis, size) = text.split_once(' ').ok_or_else(|| format!("expected `axis $N` at `{text}`"))?;
        let (axis, size) = (number::<usize>(axis)?, SizeId::read(size)?);
        let most = open.sizes.get(size.0 as usize).map(|s| s.most);
        match shape.get(axis) {
            Some(&extent) if most == i64::try_from(extent).ok() => Ok((axis, size)),
            _ => Err(format!("axis {axis} of {shape:?} is not the greatest {size}")),
        }
    };
    split_top(text).into_iter().map(axis).collect()
}

/// The numbers in the text of a step that are sizes.
pub(super) fn step_sizes(text: &str, work: &Work) -> Vec<(SizedAt, SizeId)> {
    let mut sizes = Vec::new();
    let head = match work {
        Work::Kernel { .. } | Work::Copy { .. } => text.find('('),
        Work::Call { .. } => text.find(" needs ").or_else(|| text.find(" (")),
        Work::If { .. } | Work::Loop(_) => return sizes,
    };
    let (head, args) = text.split_at(head.unwrap_or(text.len()));
    for (n, range) in numbers_in(head).into_iter().enumerate() {
        if let Ok(size) = SizeId::read(&head[range]) {
            let copy = matches!(work, Work::Copy { .. });
            sizes.push((if copy { SizedAt::Bytes } else { SizedAt::Call(n) }, size));
        }
    }
    let list = args.rfind('(').map_or("", |at| &args[at + 1..]);
    for (i, operand) in split_top(list.trim_end_matches(')')).into_iter().enumerate() {
        if let Some(Ok(size)) = operand.split_once('+').map(|(_, at)| SizeId::read(at)) {
            sizes.push((SizedAt::Offset(i), size));
        }
    }
    sizes
}

/// Reads what a program leaves open, as [`Open::to_text`] writes it.
///
/// # Errors
/// In words.
pub fn parse_open(text: &str) -> Result<Open, String> {
    let mut open = Open::default();
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "open" => open_line(rest, &mut open)?,
            "size" => size_line(rest, &mut open)?,
            "input" | "output" => {
                let axes = split_top(rest).into_iter().map(|text| {
                    let (axis, size) =
                        text.split_once(' ').ok_or_else(|| format!("expected `axis $N` at `{text}`"))?;
                    let size = SizeId::read(size)?;
                    match open.sizes.len() > size.0 as usize {
                        true => Ok((number(axis)?, size)),
                        false => Err(format!("there is no size {size}")),
                    }
                });
                let axes = axes.collect::<Answer<_>>()?;
                if word == "input" { open.inputs.push(axes) } else { open.outputs.push(axes) }
            }
            _ => return Err(format!("unexpected `{line}`")),
        }
    }
    Ok(open)
}

impl Open {
    /// The whole as text that [`parse_open`] reads: as it prints, and a line for every port.
    pub fn to_text(&self) -> String {
        let lines = |kind: &str, ports: &[Vec<(usize, SizeId)>]| -> String {
            ports.iter().map(|axes| format!("{kind} {}\n", axes_text(axes))).collect()
        };
        format!("{self}{}{}", lines("input", &self.inputs), lines("output", &self.outputs))
    }
}
