//! The text form of structures.
//!
//! `16x4` is a matrix of numbers, `'` behind a structure transposes it, `⊗` (or `(x)`) binds more tightly than `·` (or `*`), and
//! that more tightly than `+`. The others are functions: `diag(512)`, `I(8)`, `shuffle(8x64)`, `select(512x32)`,
//! `sparse(512x512, 4)` with 4 entries in each column, `circulant(512)`, `toeplitz(512x256)`, and `blocks(16, 32x8)` with 16 blocks.

use std::fmt;
use std::str::FromStr;

use super::{Kind, Structure};
use crate::RandnlaError;

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, columns] = self.shape();
        let own = binding(self);
        // A product in a sum is read without parentheses; of others they show the order.
        let bare = |part: &Structure| binding(part) >= 3 || (own, binding(part)) == (0, 1);
        let part = |f: &mut fmt::Formatter<'_>, part: &Structure| match bare(part) {
            true => write!(f, "{part}"),
            false => write!(f, "({part})"),
        };
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Structure], sign: &str| {
            for (i, each) in parts.iter().enumerate() {
                if i > 0 {
                    write!(f, " {sign} ")?;
                }
                part(f, each)?;
            }
            Ok(())
        };
        match self.kind() {
            Kind::Dense => write!(f, "{rows}x{columns}"),
            Kind::Diagonal => write!(f, "diag({rows})"),
            Kind::Identity => write!(f, "I({rows})"),
            Kind::Shuffle(rows, columns) => write!(f, "shuffle({rows}x{columns})"),
            Kind::Select => write!(f, "select({rows}x{columns})"),
            Kind::Sparse(each) => write!(f, "sparse({rows}x{columns}, {each})"),
            Kind::Circulant => write!(f, "circulant({rows})"),
            Kind::Toeplitz => write!(f, "toeplitz({rows}x{columns})"),
            Kind::Product(factors) => joined(f, factors, "·"),
            Kind::Sum(terms) => joined(f, terms, "+"),
            Kind::Kronecker(factors) => joined(f, factors, "⊗"),
            Kind::Blocks(count, of) => write!(f, "blocks({count}, {of})"),
            Kind::Transpose(of) => {
                match binding(of) >= own {
                    true => write!(f, "{of}")?,
                    false => write!(f, "({of})")?,
                }
                write!(f, "'")
            }
        }
    }
}

/// How tightly the parts of a structure are bound.
fn binding(of: &Structure) -> usize {
    match of.kind() {
        Kind::Sum(_) => 0,
        Kind::Product(_) => 1,
        Kind::Kronecker(_) => 2,
        Kind::Transpose(_) => 3,
        _ => 4,
    }
}

/// The deepest nesting that is read.
const MOST_DEEP: usize = 64;

/// The longest text that is read, in bytes.
const MOST_LONG: usize = 4096;

impl FromStr for Structure {
    type Err = RandnlaError;

    /// # Errors
    /// [`RandnlaError::Algebra`], which says what is expected and where.
    fn from_str(text: &str) -> Result<Structure, RandnlaError> {
        if text.len() > MOST_LONG {
            let found = text.len();
            return Err(RandnlaError::Algebra(format!(
                "{found} bytes of text, expected at most {MOST_LONG}"
            )));
        }
        let mut reader = Reader { text, at: 0, depth: 0, transposes: 0 };
        let found = reader.sum()?;
        match reader.rest() {
            "" => Ok(found),
            _ => reader.expected("the end"),
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    /// All that were read so far.
    transposes: usize,
}

impl<'a> Reader<'a> {
    fn rest(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        &self.text[self.at..]
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn expected<T>(&mut self, what: &str) -> Result<T, RandnlaError> {
        let found: String = self.rest().chars().take(12).collect();
        let found = if found.is_empty() { "the end".to_owned() } else { format!("`{found}`") };
        Err(RandnlaError::Algebra(format!("expected {what}, found {found}")))
    }

    fn need(&mut self, token: &str) -> Result<(), RandnlaError> {
        match self.take(token) {
            true => Ok(()),
            false => self.expected(&format!("`{token}`")),
        }
    }

    fn joined(
        &mut self,
        signs: &[&str],
        part: fn(&mut Self) -> Result<Structure, RandnlaError>,
        join: fn(Vec<Structure>) -> Result<Structure, RandnlaError>,
    ) -> Result<Structure, RandnlaError> {
        let mut parts = vec![part(self)?];
        while signs.iter().any(|sign| self.take(sign)) {
            parts.push(part(self)?);
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => join(parts),
        }
    }

    fn sum(&mut self) -> Result<Structure, RandnlaError> {
        self.joined(&["+"], Reader::product, Structure::sum)
    }

    fn product(&mut self) -> Result<Structure, RandnlaError> {
        self.joined(&["·", "*"], Reader::kronecker, Structure::product)
    }

    fn kronecker(&mut self) -> Result<Structure, RandnlaError> {
        self.joined(&["⊗", "(x)"], Reader::transposed, Structure::kronecker)
    }

    fn transposed(&mut self) -> Result<Structure, RandnlaError> {
        let mut found = self.single()?;
        while self.take("'") {
            self.transposes += 1;
            if self.transposes > MOST_DEEP {
                return self.too_deep();
            }
            found = found.transposed();
        }
        Ok(found)
    }

    fn too_deep<T>(&mut self) -> Result<T, RandnlaError> {
        Err(RandnlaError::Algebra(format!("more than {MOST_DEEP} structures in each other")))
    }

    fn single(&mut self) -> Result<Structure, RandnlaError> {
        self.depth += 1;
        if self.depth > MOST_DEEP {
            return self.too_deep();
        }
        let found = self.unbound();
        self.depth -= 1;
        found
    }

    fn unbound(&mut self) -> Result<Structure, RandnlaError> {
        if self.take("(") {
            let found = self.sum()?;
            self.need(")")?;
            return Ok(found);
        }
        if self.rest().starts_with(|c: char| c.is_ascii_digit()) {
            let [rows, columns] = self.extents()?;
            return Structure::dense(rows, columns);
        }
        let length = self.rest().find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(self.rest().len());
        let name = &self.rest()[..length];
        let known = ["diag", "I", "shuffle", "select", "sparse", "circulant", "toeplitz", "blocks"];
        if !known.contains(&name) {
            return self.expected("a structure such as `16x4`, `diag(8)` or `(`");
        }
        self.at += length;
        self.need("(")?;
        let found = match name {
            "diag" => Structure::diagonal(self.extent()?),
            "I" => Structure::identity(self.extent()?),
            "circulant" => Structure::circulant(self.extent()?),
            "blocks" => {
                let count = self.extent()?;
                self.need(",")?;
                Structure::blocks(count, self.sum()?)
            }
            _ => {
                let [rows, columns] = self.extents()?;
                match name {
                    "shuffle" => Structure::shuffle(rows, columns),
                    "select" => Structure::select(rows, columns),
                    "toeplitz" => Structure::toeplitz(rows, columns),
                    _ => {
                        self.need(",")?;
                        Structure::sparse(rows, columns, self.extent()?)
                    }
                }
            }
        }?;
        self.need(")")?;
        Ok(found)
    }

    fn extents(&mut self) -> Result<[usize; 2], RandnlaError> {
        let rows = self.extent()?;
        self.need("x")?;
        Ok([rows, self.extent()?])
    }

    fn extent(&mut self) -> Result<usize, RandnlaError> {
        let length = self.rest().find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest().len());
        match self.rest()[..length].parse() {
            Ok(number) => {
                self.at += length;
                Ok(number)
            }
            Err(_) => self.expected("a number"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::product::tests::{drawn, some};
    use super::*;

    #[test]
    fn text_is_read_back() {
        for text in some() {
            let found: Structure = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(found.to_string(), text);
        }
        for seed in 0..300 {
            let made = drawn(seed);
            let text = made.to_string();
            let read: Structure = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(read, made, "{text}");
        }
    }

    #[test]
    fn other_signs_and_spaces_are_read() {
        let read = |text: &str| text.parse::<Structure>().unwrap().to_string();
        assert_eq!(read("(16x4(x)64x8)+1024x8*8x32"), "(16x4 ⊗ 64x8) + 1024x8 · 8x32");
        assert_eq!(read(" blocks( 3 ,(4x2) ) ' "), "blocks(3, 4x2)'");
    }

    #[test]
    fn what_is_no_structure_is_refused() {
        let deep = format!("{}2x2{}", "(".repeat(65), ")".repeat(65));
        for (text, why) in [
            ("", "expected a structure such as `16x4`, `diag(8)` or `(`, found the end"),
            ("16", "expected `x`, found the end"),
            ("16x", "expected a number, found the end"),
            ("16x4 16x4", "expected the end, found `16x4`"),
            ("dig(4)", "expected a structure such as `16x4`, `diag(8)` or `(`, found `dig(4)`"),
            ("diag(4", "expected `)`, found the end"),
            ("99999999999999999999x4", "expected a number, found `999999999999`"),
            (&deep, "more than 64 structures in each other"),
            (&format!("2x2{}", "'".repeat(70)), "more than 64 structures in each other"),
            (&"2x2+".repeat(2000), "8000 bytes of text, expected at most 4096"),
        ] {
            assert_eq!(text.parse::<Structure>().unwrap_err().to_string(), why);
        }
    }
}
