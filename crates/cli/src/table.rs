//! Plain aligned text tables, and numbers as people read them.

use std::fmt;

/// A table: columns are as wide as their widest cell, two spaces apart.
#[derive(Debug, Default)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings. A heading that starts with `>` stands over a column of numbers, set to the right.
    pub(crate) fn new(head: &[&str]) -> Table {
        Table { head: head.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.head.iter().map(|h| h.trim_start_matches('>')).collect();
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
            cells.chain([names[i].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..names.len()).map(width).collect();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for (i, cell) in cells.enumerate() {
                let gap = if i > 0 { "  " } else { "" };
                let pad = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
                let right = self.head[i].starts_with('>');
                text += &if right { format!("{gap}{pad}{cell}") } else { format!("{gap}{cell}{pad}") };
            }
            writeln!(f, "{}", text.trim_end())
        };
        line(&mut names.iter().copied())?;
        self.rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
    }
}

/// `1.03 MB`: powers of 1000.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n as f64, &[("B", 1e0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)])
}

/// `11.2 M`: powers of 1000.
pub(crate) fn count(n: u64) -> String {
    scaled(n as f64, &[("", 1e0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)]).trim_end().to_string()
}

fn scaled(n: f64, units: &[(&str, f64)]) -> String {
    let (unit, scale) = units.iter().rfind(|(_, scale)| n >= *scale).unwrap_or(&units[0]);
    match n / scale {
        v if *scale == 1.0 => format!("{v:.0} {unit}"),
        v => format!("{} {unit}", significant(v)),
    }
}

/// Three significant digits, without an exponent where that is readable.
pub(crate) fn significant(v: f64) -> String {
    if !v.is_finite() {
        return v.to_string();
    }
    match v.abs() {
        0.0 => "0".into(),
        a if (1e-4..1e6).contains(&a) => {
            let digits = 2 - a.log10().floor() as i32;
            format!("{v:.*}", digits.max(0) as usize)
        }
        _ => format!("{v:.2e}"),
    }
}

/// A share as a percentage.
pub(crate) fn percent(part: f64, whole: f64) -> String {
    if whole == 0.0 { "-".into() } else { format!("{:.1}%", 100.0 * part / whole) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["name", ">bytes", "why"]);
        table.row(["conv1", "12", "first"]);
        table.row(["a longer name", "7", ""]);
        let expected = "name           bytes  why\nconv1             12  first\na longer name      7\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> =
            [0.0, 0.00001234, 0.05, 0.9999, 1.0, 12.345, 123.4, 98765.4, 2e7].map(significant).into();
        let expected = ["0", "1.23e-5", "0.0500", "1.000", "1.00", "12.3", "123", "98765", "2.00e7"];
        assert_eq!(shown, expected);
        assert_eq!(
            [bytes(999), bytes(1_029_937), count(12), count(11_230_000)].join(" | "),
            "999 B | 1.03 MB | 12 | 11.2 M"
        );
    }
}
