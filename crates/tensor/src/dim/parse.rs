//! Text to dimensions.

use super::{Dim, MAX_TERMS};

/// Reads what a dimension writes.
pub(super) fn parse(text: &str) -> Result<Dim, String> {
    let mut p = Parser { text, at: 0 };
    let dim = p.sum(0)?;
    p.space();
    if p.at < text.len() {
        return Err(format!("unexpected `{}` in dimension `{text}`", &text[p.at..]));
    }
    Ok(dim)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    const DEPTH: usize = 32;

    fn space(&mut self) {
        while self.text[self.at..].starts_with(' ') {
            self.at += 1;
        }
    }

    fn take(&mut self, token: &str) -> bool {
        self.space();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn sum(&mut self, depth: usize) -> Result<Dim, String> {
        if depth > Self::DEPTH {
            return Err("dimension is nested too deeply".into());
        }
        let mut total =
            if self.take("-") { &Dim::default() - &self.product(depth)? } else { self.product(depth)? };
        loop {
            if self.take("+") {
                total = &total + &self.product(depth)?;
            } else if self.take("-") {
                total = &total - &self.product(depth)?;
            } else {
                return Ok(total);
            }
        }
    }

    fn product(&mut self, depth: usize) -> Result<Dim, String> {
        let mut total = self.atom(depth)?;
        while self.take("*") {
            let factor = self.atom(depth)?;
            // A short text can stand for more terms than memory holds.
            if total.count_terms() * factor.count_terms() > MAX_TERMS {
                return Err(format!("dimension is a sum of more than {MAX_TERMS} products"));
            }
            total = &total * &factor;
        }
        Ok(total)
    }

    fn atom(&mut self, depth: usize) -> Result<Dim, String> {
        if self.take("(") {
            let inner = self.sum(depth + 1)?;
            return if self.take(")") { Ok(inner) } else { Err("expected `)` in dimension".into()) };
        }
        self.space();
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '\'' | '?')))
            .unwrap_or(rest.len());
        let word = &rest[..end];
        self.at += end;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse::<i64>().map(Dim::from).map_err(|_| format!("`{word}` is not an extent"));
        }
        if word.is_empty() {
            return Err(format!("expected a dimension at `{rest}`"));
        }
        if word != "floordiv" {
            return Ok(Dim::symbol(word));
        }
        let ok = self.take("(");
        let a = self.sum(depth + 1)?;
        let ok = self.take(",") && ok;
        let b = self.sum(depth + 1)?;
        if !(self.take(")") && ok) {
            return Err("expected `floordiv(a, b)` in dimension".into());
        }
        a.floor_div(&b).ok_or_else(|| "division by zero in dimension".into())
    }
}
