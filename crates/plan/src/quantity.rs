//! Budgets and limits as people write them: `50%`, `1500000`, `1.5MB`, `2 MiB`; `0.1`, `0.1@95%`.

use std::fmt;
use std::str::FromStr;

use crate::PlanError;

/// How much of something a model may use.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Budget {
    /// A share of what the dense model uses, above 0 and at most 1.
    Fraction(f64),
    /// A number of bytes (or of whatever is counted).
    Absolute(u64),
}

/// A budget of operations of one run: as text, a share or a number with `k`, `M`, `G` or `T` for powers of 1000.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Operations(pub Budget);

/// How large errors may be. As text `0.1`, or `0.1@95%` for 95% of the samples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ErrorLimit {
    /// The relative L2 error of the outputs, at most.
    pub most: f64,
    /// The share of samples that is to err by no more, each by itself; without one it is the error of all samples together.
    pub level: Option<f64>,
}

/// A share in percent, for texts: of 0.55, which binary fractions hold only nearly, 55.
pub fn percent(share: f64) -> f64 {
    (share * 1e8).round() / 1e6
}

impl From<f64> for ErrorLimit {
    fn from(most: f64) -> ErrorLimit {
        ErrorLimit { most, level: None }
    }
}

impl fmt::Display for ErrorLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            None => write!(f, "{}", self.most),
            Some(level) => write!(f, "{} for {}% of the samples", self.most, percent(level)),
        }
    }
}

impl FromStr for ErrorLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<ErrorLimit, String> {
        let (most, level) = match text.split_once('@') {
            None => (text, None),
            Some((most, level)) => (most, Some(level)),
        };
        let most = most.trim().parse::<f64>().ok().filter(|e| *e > 0.0 && e.is_finite());
        let most = most.ok_or("expected a number above 0, or one with a share of samples as in 0.1@95%")?;
        let share = |level: &str| {
            let percent = level.trim().strip_suffix('%')?.trim_end().parse::<f64>().ok()?;
            Some(percent / 100.0).filter(|share| (0.5..1.0).contains(share))
        };
        let level = match level {
            None => None,
            Some(level) => Some(
                share(level).ok_or("expected a share of samples from 50% to below 100%, as in 0.1@95%")?,
            ),
        };
        Ok(ErrorLimit { most, level })
    }
}

/// Units of operations by their lower-case names.
const OPERATIONS: &[(&str, u64)] =
    &[("", 1), ("k", 1_000), ("m", 1_000_000), ("g", 1_000_000_000), ("t", 1_000_000_000_000)];

/// Units of bytes by their lower-case names, and what they stand for.
const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];

impl Budget {
    /// The number meant, where the dense model uses `dense`; rounded down.
    pub fn resolve(self, dense: u64) -> u64 {
        match self {
            Budget::Fraction(share) => (dense as f64 * share) as u64,
            Budget::Absolute(amount) => amount,
        }
    }
}

impl FromStr for Budget {
    type Err = PlanError;

    /// A percentage, or a number with a unit: none or `B` for bytes, `kB`, `MB`, `GB` for powers of 1000,
    /// `KiB`, `MiB`, `GiB` for powers of 1024, in either case. Bytes are rounded down.
    ///
    /// # Errors
    /// [`PlanError::Quantity`].
    fn from_str(text: &str) -> Result<Budget, PlanError> {
        parse(text.trim(), UNITS).map_err(|why| PlanError::Quantity { text: text.to_owned(), why })
    }
}

impl FromStr for Operations {
    type Err = PlanError;

    /// # Errors
    /// [`PlanError::Quantity`].
    fn from_str(text: &str) -> Result<Operations, PlanError> {
        let budget = parse(text.trim(), OPERATIONS);
        budget.map(Operations).map_err(|why| PlanError::Quantity { text: text.to_owned(), why })
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<Budget, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let value: f64 = match number.parse() {
        Ok(value) => value,
        Err(_) if number.is_empty() => return Err("it does not start with a number".to_owned()),
        Err(_) => return Err(format!("`{number}` is not a number")),
    };
    if value == 0.0 {
        return Err("it must be above 0".to_owned());
    }
    if unit == "%" {
        return if value <= 100.0 {
            Ok(Budget::Fraction(value / 100.0))
        } else {
            Err("a share is at most 100%".to_owned())
        };
    }
    let lower = unit.to_ascii_lowercase();
    let Some(&(_, scale)) = units.iter().find(|(name, _)| *name == lower) else {
        return Err(format!("the unit `{unit}` is unknown"));
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).map(Budget::Absolute).ok_or_else(too_large);
    }
    let bytes = value * scale as f64;
    if bytes < 1.0 {
        return Err("it is less than one byte".to_owned());
    }
    if scale == 1 && bytes.fract() != 0.0 {
        return Err("bytes come whole".to_owned());
    }
    if bytes >= u64::MAX as f64 { Err(too_large()) } else { Ok(Budget::Absolute(bytes as u64)) }
}

fn too_large() -> String {
    format!("it is above {} bytes", u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Budget, String> {
        text.parse::<Budget>().map_err(|e| e.to_string())
    }

    #[test]
    fn shares_and_amounts() {
        for (text, expected) in [
            ("50%", Budget::Fraction(0.5)),
            (" 12.5 % ", Budget::Fraction(0.125)),
            ("100%", Budget::Fraction(1.0)),
            ("1500000", Budget::Absolute(1_500_000)),
            ("18446744073709551615", Budget::Absolute(u64::MAX)),
            ("1.5MB", Budget::Absolute(1_500_000)),
            ("1.5 MiB", Budget::Absolute(3 << 19)),
            ("2gib", Budget::Absolute(2 << 30)),
            ("300 B", Budget::Absolute(300)),
            ("0.0015kB", Budget::Absolute(1)),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn operations_have_units_of_their_own() {
        let read = |text: &str| text.parse::<Operations>().map(|o| o.0).map_err(|e| e.to_string());
        assert_eq!(read("50%"), Ok(Budget::Fraction(0.5)));
        assert_eq!(read("1.5G"), Ok(Budget::Absolute(1_500_000_000)));
        assert_eq!(read("700 M"), Ok(Budget::Absolute(700_000_000)));
        assert_eq!(read("12"), Ok(Budget::Absolute(12)));
        assert!(read("3 MiB").is_err() && read("0").is_err());
    }

    #[test]
    fn refusals_say_why() {
        for (text, why) in [
            ("", "does not start with a number"),
            ("-5", "does not start with a number"),
            ("half", "does not start with a number"),
            ("1.2.3MB", "`1.2.3` is not a number"),
            (".", "`.` is not a number"),
            ("0", "above 0"),
            ("0%", "above 0"),
            ("120%", "at most 100%"),
            ("0.5", "less than one byte"),
            ("2.5", "bytes come whole"),
            ("3 parsecs", "the unit `parsecs` is unknown"),
            ("1e6", "the unit `e6` is unknown"),
            ("18446744073709551616", "it is above"),
            ("20000000000000GB", "it is above"),
            ("5µB", "the unit `µB` is unknown"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.contains(why) && message.contains("expected a share"), "{text}: {message}");
        }
    }

    #[test]
    fn shares_are_of_the_dense_amount() {
        assert_eq!(Budget::Fraction(0.5).resolve(101), 50);
        assert_eq!(Budget::Fraction(1.0).resolve(101), 101);
        assert_eq!(Budget::Absolute(7).resolve(101), 7);
    }
}
