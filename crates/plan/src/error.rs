//! What can go wrong between a budget and a plan.

use std::fmt;

/// A plan or a quantity cannot be read, or a plan does not belong to a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A text is not TOML, or a key is unknown, missing or of another type (the file's fault).
    #[error("line {line}{}: {message}", key.as_ref().map(|k| format!(", key `{k}`")).unwrap_or_default())]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The key, with the tables it lies in, where one can be named.
        key: Option<String>,
        /// What the parser says.
        message: String,
    },
    /// A plan is written in another format (of an older or newer margay).
    #[error("the plan has format version {found}, expected {expected}")]
    Version {
        /// The version read and written here.
        expected: u32,
        /// The version of the text.
        found: u32,
    },
    /// Entries of a plan name schemes that do not exist, or settings that their scheme refuses (the file's fault).
    #[error("{}", lines(.0))]
    Choices(Vec<ChoiceProblem>),
    /// A plan was made for something else (the options' fault).
    #[error("{}", lines(.0))]
    Mismatch(Vec<Mismatch>),
    /// A seed is too large for TOML (the caller's fault).
    #[error("seed {found} cannot be written in a plan: expected at most {}", i64::MAX)]
    Seed {
        /// The seed.
        found: u64,
    },
    /// A budget cannot be understood (the options' fault).
    #[error(
        "`{text}` is not a budget: {why}; expected a share as in `50%`, or bytes as in `1500000`, `1.5MB` or `2MiB`"
    )]
    Quantity {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An entry of a plan that no pass could follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, site `{site}`: {why}")]
pub struct ChoiceProblem {
    /// The line, from 1.
    pub line: usize,
    /// The site.
    pub site: String,
    /// What is wrong.
    pub why: String,
}

/// A way in which a plan does not belong to a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The plan was made for another model.
    #[error("the plan is for the model with hash `{plan}`, found a model with hash `{found}`")]
    Model {
        /// The hash in the plan.
        plan: String,
        /// The hash of the model.
        found: String,
    },
    /// The plan was made from another calibration.
    #[error(
        "the plan is for the calibration with hash `{plan}`, found {}",
        found.as_ref().map_or("none".to_owned(), |f| format!("one with hash `{f}`"))
    )]
    Calibration {
        /// The hash in the plan.
        plan: String,
        /// The hash of the calibration, if there is one.
        found: Option<String>,
    },
    /// The model has no such site.
    #[error("the plan names the site `{site}`, which the model does not have")]
    Site {
        /// The site.
        site: String,
    },
}

/// No choice over the sites meets the goal, or the tables are unusable.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AllocateError {
    /// The budget is below the cheapest choice, or the limit is not a number (the options' fault).
    #[error("the {what} cannot be brought down to {asked}: the least possible is {best}")]
    Infeasible {
        /// `bytes`, `flops`, `seconds` or `error`.
        what: &'static str,
        /// The least possible total.
        best: f64,
        /// The total asked for.
        asked: f64,
    },
    /// An error or a time is negative or not a number (the fault of the scheme that made the table).
    #[error(
        "site `{site}`, {choice}: `{what}` is out of range: expected a finite number from 0, found {found}"
    )]
    Number {
        /// The site.
        site: String,
        /// Scheme and settings.
        choice: String,
        /// `squared error` or `seconds`.
        what: &'static str,
        /// The number.
        found: f64,
    },
    /// Each of several limits can be kept, and no choice was found that keeps all of them (the options' fault).
    #[error("no choice keeps all limits at once: {}", limits.join(", "))]
    Together {
        /// `bytes`, `flops` or `seconds`.
        limits: Vec<&'static str>,
    },
    /// Two tables are for the same site (the caller's fault).
    #[error("site `{site}` has more than one table of candidates")]
    Duplicate {
        /// The site.
        site: String,
    },
}

impl PlanError {
    /// An error of the TOML parser, with line and key.
    pub(crate) fn syntax(text: &str, mut error: toml::de::Error) -> PlanError {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = line_at(text, at);
        let message = error.message().to_owned();
        // The path of keys has no accessor; without the text, the error prints it after the message.
        error.set_input(None);
        let printed = error.to_string();
        let path = printed.strip_prefix(&message).and_then(|rest| rest.trim().strip_prefix("in `"));
        let key = path.and_then(|rest| rest.strip_suffix('`')).map(str::to_owned);
        PlanError::Syntax { line, key, message: message.replace('\n', " ") }
    }
}

/// The line, from 1, of a byte of a text.
pub(crate) fn line_at(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&b| b == b'\n').count()
}

fn lines(problems: &[impl fmt::Display]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
