//! Programs for a range of extents.
//!
//! An *open* program has integers that follow from the values of symbols: its *sizes*, each a polynomial. Nobody writes one
//! down. [`generalize`] makes it of closed programs, one per value of the symbols, that have one [`Outline`]: the same
//! text but for integers. [`Program::at`](crate::Program::at) gives the closed program for given sizes again, and
//! whoever generalizes compares:
//! it has the outline and the numbers of the program it stands for. So nothing has to be known of operators for an open
//! program to be right; only values that were compared are [served](Open::serves).
//!
//! Memory is that of the greatest extents. Where temporaries lie, and how large they and workspaces are, is not compared
//! for that reason.
//!
//! - `outline`: programs without their integers, and open programs out of closed ones.
//! - `fit`: polynomials through points.
//! - `close`: closed programs out of open ones.

mod close;
mod fit;
mod outline;
#[cfg(test)]
mod tests;

use std::fmt;

use margay_tensor::{Dim, Symbol};

pub use outline::{Outline, generalize};

use crate::Port;

/// Names a size by its number in [`Open::sizes`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SizeId(pub u32);

impl fmt::Display for SizeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", self.0)
    }
}

/// An integer that follows from symbols.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Size {
    /// How it follows.
    pub value: Dim,
    /// Its least value.
    pub least: i64,
    /// Its greatest value.
    pub most: i64,
}

/// Values that symbols have together: for each the least and the greatest, and all between them.
pub type Ranges = Vec<(i64, i64)>;

/// What a program leaves open.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Open {
    /// The symbols, by the alphabet; none in a closed program.
    pub symbols: Vec<Symbol>,
    /// The values it serves: those of any of these ranges, which do not overlap.
    pub values: Vec<Ranges>,
    /// The integers that follow from them.
    pub sizes: Vec<Size>,
    /// Of every input the axes whose extents are sizes.
    pub inputs: Vec<Vec<(usize, SizeId)>>,
    /// Of every output the axes whose extents are sizes.
    pub outputs: Vec<Vec<(usize, SizeId)>>,
}

impl Open {
    /// Whether nothing is left open.
    pub fn is_closed(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Whether it serves values of the symbols.
    pub fn serves(&self, symbols: &[i64]) -> bool {
        let inside = |(v, (least, most)): (&i64, &(i64, i64))| (least..=most).contains(&v);
        symbols.len() == self.symbols.len()
            && self.values.iter().any(|ranges| symbols.iter().zip(ranges).all(inside))
    }

    /// The value of a size where the symbols have the given ones. Allocates nothing.
    pub fn size_at(&self, size: SizeId, symbols: &[i64]) -> Option<i64> {
        let of = |name: &str| self.symbols.iter().position(|s| **s == *name).map(|i| symbols[i]);
        self.sizes.get(size.0 as usize)?.value.value(&of)
    }

    /// The values of all sizes where the symbols have the given ones.
    pub fn sizes_at(&self, symbols: &[i64]) -> Option<Vec<i64>> {
        (0..self.sizes.len() as u32).map(|i| self.size_at(SizeId(i), symbols)).collect()
    }

    /// Ports of the greatest extents with those for the values of all sizes, given the axes that are open in each; `None`
    /// where an extent has no value or is beyond the greatest.
    pub fn ports_at(ports: &[Port], axes: &[Vec<(usize, SizeId)>], sizes: &[i64]) -> Option<Vec<Port>> {
        let mut ports = ports.to_vec();
        for (port, axes) in ports.iter_mut().zip(axes) {
            for (axis, size) in axes {
                let extent = usize::try_from(*sizes.get(size.0 as usize)?).ok()?;
                let most = port.shape.get_mut(*axis).filter(|most| extent <= **most)?;
                *most = extent;
            }
        }
        Some(ports)
    }

    /// The least and the greatest values of each of the ranges.
    pub fn corners(&self) -> Vec<Vec<i64>> {
        let ends = |ranges: &Ranges| {
            let (least, most): (Vec<i64>, Vec<i64>) = ranges.iter().copied().unzip();
            if least == most { vec![least] } else { vec![least, most] }
        };
        self.values.iter().flat_map(ends).collect()
    }

    /// All values of the symbols that it serves.
    pub fn points(&self) -> Vec<Vec<i64>> {
        let grid = |ranges: &Ranges| {
            ranges.iter().fold(vec![Vec::new()], |points: Vec<Vec<i64>>, &(least, most)| {
                let longer = |p: Vec<i64>| (least..=most).map(move |v| [p.as_slice(), &[v]].concat());
                points.into_iter().flat_map(longer).collect()
            })
        };
        self.values.iter().flat_map(grid).collect()
    }

    /// A text that names sizes, such as what a kernel requires, with what they are instead.
    pub fn spelled(&self, text: &str) -> String {
        let sizes = |size: SizeId| self.sizes.get(size.0 as usize).map(|s| s.value.to_string());
        replace_sizes(text, &sizes)
    }
}

/// A text that names sizes, with their values.
pub fn with_sizes(text: &str, sizes: &[i64]) -> String {
    replace_sizes(text, &|size| sizes.get(size.0 as usize).map(i64::to_string))
}

/// A text with what `of` answers in the place of each `$n`.
pub(crate) fn replace_sizes(text: &str, of: &dyn Fn(SizeId) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let end = at + 1 + digits;
        out.push_str(&rest[..at]);
        match rest[at + 1..end].parse().ok().and_then(|n| of(SizeId(n))) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[at..end]),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Where the numbers of a text lie: digits that belong to no word, and names of sizes.
pub(crate) fn numbers_in(text: &str) -> Vec<std::ops::Range<usize>> {
    let bytes = text.as_bytes();
    let of_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'#' | b'$' | b'%');
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let digits = at + usize::from(bytes[at] == b'$');
        let end = digits + bytes[digits..].iter().take_while(|b| b.is_ascii_digit()).count();
        let starts = at == 0 || !of_word(bytes[at - 1]);
        if end > digits && starts && bytes.get(end).is_none_or(|b| !of_word(*b)) {
            found.push(at..end);
        }
        at = end.max(at + 1);
    }
    found
}

/// A text with what `of` answers in the place of each of its numbers.
pub(crate) fn replace_numbers(text: &str, of: &mut dyn FnMut(usize, &str) -> Option<String>) -> String {
    let (mut out, mut from) = (String::new(), 0);
    for (n, range) in numbers_in(text).into_iter().enumerate() {
        out.push_str(&text[from..range.start]);
        match of(n, &text[range.clone()]) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&text[range.clone()]),
        }
        from = range.end;
    }
    out + &text[from..]
}
