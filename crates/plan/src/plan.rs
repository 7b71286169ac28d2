//! The plan: what is done to each module of one model, as a value and as a text.
//!
//! A plan is TOML: a table `[plan]` that says what it was made for, and a table `[modules]` with one line per
//! module. The text is a function of the value, so equal plans are equal files. Modules that a plan does
//! not name stay dense. A plan holds no factors: those follow from model, calibration and plan.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::error::line_at;
use crate::{ChoiceProblem, Mismatch, PlanError};

/// The scheme that leaves a module as it is.
pub const DENSE: &str = "dense";

/// The format written and read here.
pub const FORMAT_VERSION: u32 = 1;

const HEAD: &str = "\
# A margay plan: what is done to each module of one model. Modules not named here stay dense.
#   scheme   how the module is approximated
#   rank     width of the sketch, for schemes that have one
#   terms    of `panther`: sketches that are averaged, where it is not 1
#   copy     of `panther`: `least-squares`, or `unbiased`, which is a start for training and no approximation
#   seed     of the random numbers, where it is not the seed of the plan
";

/// What is done to each module of one model.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// What the plan was made for.
    pub header: Header,
    /// What is done, by module.
    pub modules: BTreeMap<String, Choice>,
}

/// What a plan was made for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT_VERSION`].
    pub version: u32,
    /// Hash of the model.
    pub model: String,
    /// Hash of the calibration, if one was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// The processor class that times were predicted for.
    pub target_cpu: String,
    /// Name of the cost model that predicted them.
    pub cost_model: String,
    /// Seed of the modules that have none of their own; at most `i64::MAX` in a text.
    pub seed: u64,
}

/// What is done to one module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Choice {
    /// Name of the scheme, or [`DENSE`].
    pub scheme: String,
    /// Width of the sketch; 0 for a scheme that has none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rank: usize,
    /// Sketches that are averaged, for schemes that do; at least 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub terms: usize,
    /// How the weight is copied, for schemes that have a choice; `None` for [`CopyMode::LeastSquares`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyMode>,
    /// Seed of the random numbers; `None` for that of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// How a weight is copied into a sketch whose random part is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMode {
    /// With the least error.
    #[default]
    LeastSquares,
    /// So that the expectation over the random part is the weight. The error is larger than the weight wherever the
    /// sketch pays: a start for training.
    Unbiased,
}

/// The text form, for reading: as [`Plan`], with the places of the names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    plan: Header,
    #[serde(default)]
    modules: BTreeMap<Spanned<String>, Choice>,
}

/// As much of a text as every format has.
#[derive(Deserialize)]
struct AnyVersion {
    plan: AnyHeader,
}

#[derive(Deserialize)]
struct AnyHeader {
    version: u32,
}

impl Choice {
    /// The module stays as it is.
    pub fn dense() -> Choice {
        Choice::new(DENSE, 0)
    }

    /// A scheme with a rank, with the seed of the plan.
    pub fn new(scheme: impl Into<String>, rank: usize) -> Choice {
        Choice { scheme: scheme.into(), rank, terms: 1, copy: None, seed: None }
    }

    /// Whether the module stays as it is.
    pub fn is_dense(&self) -> bool {
        self.scheme == DENSE
    }

    fn problem(&self, schemes: &[&str]) -> Option<String> {
        if self.is_dense() {
            return (self.rank != 0).then(|| format!("scheme `{DENSE}` has no rank"));
        }
        if self.terms == 0 {
            return Some("0 terms, expected at least 1".to_owned());
        }
        if schemes.contains(&self.scheme.as_str()) {
            return None;
        }
        let mut known = vec![DENSE];
        known.extend(schemes.iter().filter(|s| **s != DENSE));
        Some(format!("unknown scheme `{}`; known are `{}`", self.scheme, known.join("`, `")))
    }
}

impl Plan {
    /// Reads a plan whose schemes are among `schemes`; [`DENSE`] is always known.
    ///
    /// # Errors
    /// [`PlanError::Syntax`] with line and key, [`PlanError::Version`], and [`PlanError::Choices`] with every
    /// entry that names an unknown scheme or contradicts itself.
    pub fn from_toml(text: &str, schemes: &[&str]) -> Result<Plan, PlanError> {
        let syntax = |error| PlanError::syntax(text, error);
        let found = toml::from_str::<AnyVersion>(text).map_err(syntax)?.plan.version;
        if found != FORMAT_VERSION {
            return Err(PlanError::Version { expected: FORMAT_VERSION, found });
        }
        let read: Text = toml::from_str(text).map_err(syntax)?;
        let problems = read.modules.iter().filter_map(|(name, choice)| {
            let (line, module) = (line_at(text, name.span().start), name.get_ref().clone());
            choice.problem(schemes).map(|why| ChoiceProblem { line, module, why })
        });
        let mut problems: Vec<ChoiceProblem> = problems.collect();
        problems.sort_by_key(|p| p.line);
        if !problems.is_empty() {
            return Err(PlanError::Choices(problems));
        }
        let modules = read.modules.into_iter().map(|(name, choice)| (name.into_inner(), choice));
        Ok(Plan { header: read.plan, modules: modules.collect() })
    }

    /// The text of the plan, one line per module in the order of their names.
    ///
    /// # Errors
    /// [`PlanError::Seed`] for a seed above `i64::MAX`, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, PlanError> {
        let mut seeds = self.modules.values().filter_map(|c| c.seed).chain([self.header.seed]);
        if let Some(found) = seeds.find(|&seed| i64::try_from(seed).is_err()) {
            return Err(PlanError::Seed { found });
        }
        let header = toml::to_string(&self.header).expect("strings and small integers are TOML");
        let mut text = format!("{HEAD}\n[plan]\n{header}\n[modules]\n");
        for (name, choice) in &self.modules {
            text.push_str(&quoted(name));
            text.push_str(" = ");
            choice
                .serialize(toml::ser::ValueSerializer::new(&mut text))
                .expect("strings and small integers are TOML");
            text.push('\n');
        }
        Ok(text)
    }

    /// Whether the plan belongs to this model and calibration, and names only modules that exist.
    ///
    /// A plan made without a calibration goes with any.
    ///
    /// # Errors
    /// [`PlanError::Mismatch`] with everything that does not fit.
    pub fn check<S: AsRef<str>>(
        &self,
        model: &str,
        calibration: Option<&str>,
        modules: impl IntoIterator<Item = S>,
    ) -> Result<(), PlanError> {
        let mut problems = Vec::new();
        if self.header.model != model {
            problems.push(Mismatch::Model { plan: self.header.model.clone(), found: model.to_owned() });
        }
        if let Some(plan) = &self.header.calibration
            && calibration != Some(plan)
        {
            let found = calibration.map(str::to_owned);
            problems.push(Mismatch::Calibration { plan: plan.clone(), found });
        }
        let mut absent: BTreeSet<&str> = self.modules.keys().map(String::as_str).collect();
        modules.into_iter().for_each(|name| {
            absent.remove(name.as_ref());
        });
        problems.extend(absent.into_iter().map(|name| Mismatch::Module { module: name.to_owned() }));
        if problems.is_empty() { Ok(()) } else { Err(PlanError::Mismatch(problems)) }
    }
}

/// A quoted key of TOML, always on one line.
fn quoted(name: &str) -> String {
    let mut key = String::from("\"");
    for c in name.chars() {
        match c {
            '"' | '\\' => key.extend(['\\', c]),
            c if c.is_control() => key.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => key.push(c),
        }
    }
    key.push('"');
    key
}

fn one() -> usize {
    1
}

fn is_one(terms: &usize) -> bool {
    *terms == 1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMES: &[&str] = &["lowrank", "neuron", "panther"];

    fn plan() -> Plan {
        let header = Header {
            version: FORMAT_VERSION,
            model: "5be1c0".to_owned(),
            calibration: Some("77aa01".to_owned()),
            target_cpu: "x86-64-v4".to_owned(),
            cost_model: "x86-64-v4/1".to_owned(),
            seed: 7,
        };
        let query = Choice::new("lowrank", 96);
        let modules = [
            ("layer.0.query", query),
            ("layer.0.ffn", Choice { seed: Some(3), ..Choice::new("neuron", 512) }),
            ("layer.1.query", Choice::dense()),
            ("pooler", Choice { terms: 2, copy: Some(CopyMode::Unbiased), ..Choice::new("panther", 16) }),
        ];
        Plan { header, modules: modules.map(|(name, choice)| (name.to_owned(), choice)).into() }
    }

    fn text_with(from: &str, to: &str) -> String {
        let text = plan().to_toml().unwrap();
        assert!(text.contains(from));
        text.replace(from, to)
    }

    fn refusal(text: &str) -> String {
        Plan::from_toml(text, SCHEMES).unwrap_err().to_string()
    }

    #[test]
    fn text_is_read_back() {
        let text = plan().to_toml().unwrap();
        let expected = r#"
[plan]
version = 1
model = "5be1c0"
calibration = "77aa01"
target-cpu = "x86-64-v4"
cost-model = "x86-64-v4/1"
seed = 7

[modules]
"layer.0.ffn" = { scheme = "neuron", rank = 512, seed = 3 }
"layer.0.query" = { scheme = "lowrank", rank = 96 }
"layer.1.query" = { scheme = "dense" }
"pooler" = { scheme = "panther", rank = 16, terms = 2, copy = "unbiased" }
"#;
        assert_eq!(text, format!("{HEAD}{expected}"));
        assert_eq!(Plan::from_toml(&text, SCHEMES), Ok(plan()));
    }

    #[test]
    fn odd_names_survive() {
        let mut plan = plan();
        plan.header.calibration = None;
        for name in ["", "a b", "/enc/MatMul:0", "say \"so\"\\", "new\nline\t\u{7f}", "größe", "a.b", "'"] {
            plan.modules.insert(name.to_owned(), Choice::new("lowrank", 32));
        }
        assert_eq!(Plan::from_toml(&plan.to_toml().unwrap(), SCHEMES), Ok(plan));
    }

    #[test]
    fn people_may_write_tables() {
        let inline = "\"layer.1.query\" = { scheme = \"dense\" }\n";
        let table = "[modules.\"layer.1.query\"]\nscheme = \"lowrank\"\nrank = 8";
        let read = Plan::from_toml(&format!("{}{table}", text_with(inline, "")), SCHEMES);
        assert_eq!(read.unwrap().modules["layer.1.query"], Choice::new("lowrank", 8));
    }

    #[test]
    fn refusals_name_line_and_key() {
        for (from, to, expected) in [
            ("rank = 512", "rnk = 512", "line 17, key `modules.layer.0.ffn`: unknown field `rnk`"),
            ("rank = 512", "rank = \"x\"", "line 17, key `modules.layer.0.ffn.rank`: invalid type"),
            ("rank = 512", "rank = -1", "line 17, key `modules.layer.0.ffn.rank`: invalid value"),
            ("rank = 96", "gauge = 1", "line 18, key `modules.layer.0.query`: unknown field `gauge`"),
            ("seed = 7", "sed = 7", "line 14, key `plan`: unknown field `sed`"),
            ("model = \"5be1c0\"\n", "", "line 8, key `plan`: missing field `model`"),
            ("[modules]", "[module]", "line 16: unknown field `module`"),
            ("target-cpu = ", "target-cpu ", "line 12: "),
            ("layer.1.query", "layer.0.query", "line 19: duplicate key"),
            (
                "copy = \"unbiased\"",
                "copy = \"best\"",
                "line 20, key `modules.pooler.copy`: unknown variant `best`",
            ),
            ("terms = 2", "terms = 0", "line 20, module `pooler`: 0 terms, expected at least 1"),
            ("version = 1", "version = 2", "the plan has format version 2, expected 1"),
        ] {
            let message = refusal(&text_with(from, to));
            assert!(message.starts_with(expected), "{to}: {message}");
        }
    }

    #[test]
    fn unknown_schemes_are_all_listed() {
        let text = text_with("\"neuron\"", "\"neurons\"").replace("\"dense\" }", "\"dense\", rank = 4 }");
        let expected = "line 17, module `layer.0.ffn`: unknown scheme `neurons`; known are `dense`, `lowrank`, \
                        `neuron`, `panther`\nline 19, module `layer.1.query`: scheme `dense` has no rank";
        assert_eq!(refusal(&text), expected);
    }

    #[test]
    fn seeds_must_fit() {
        let mut plan = plan();
        plan.header.seed = u64::MAX;
        assert_eq!(plan.to_toml(), Err(PlanError::Seed { found: u64::MAX }));
        plan.header.seed = i64::MAX as u64;
        assert_eq!(Plan::from_toml(&plan.to_toml().unwrap(), SCHEMES), Ok(plan));
    }

    #[test]
    fn a_plan_belongs_to_one_model() {
        let names = ["layer.0.query", "layer.0.ffn", "layer.1.query", "pooler"];
        assert_eq!(plan().check("5be1c0", Some("77aa01"), names), Ok(()));
        let message = plan().check("000000", None, ["layer.0.query"]).unwrap_err().to_string();
        let expected = "\
the plan is for the model with hash `5be1c0`, found a model with hash `000000`
the plan is for the calibration with hash `77aa01`, found none
the plan names the module `layer.0.ffn`, which the model does not have
the plan names the module `layer.1.query`, which the model does not have
the plan names the module `pooler`, which the model does not have";
        assert_eq!(message, expected);
        let mut uncalibrated = plan();
        uncalibrated.header.calibration = None;
        assert_eq!(uncalibrated.check("5be1c0", Some("any"), names), Ok(()));
    }
}
