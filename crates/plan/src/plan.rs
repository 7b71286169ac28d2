//! The plan: what is done to each site of one model, as a value and as a text.
//!
//! A plan is TOML: a table `[plan]` that says what it was made for, and a table `[modules]` with one line per
//! site. The text is a function of the value, so equal plans are equal files. Sites that a plan does
//! not name stay dense. A plan holds no factors: those follow from model, calibration and plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::error::line_at;
use crate::{ChoiceProblem, Mismatch, PlanError};

/// The scheme that leaves a site as it is.
pub const DENSE: &str = "dense";

/// The format written and read here.
pub const FORMAT_VERSION: u32 = 1;

const HEAD: &str = "\
# A margay plan: what is done to each site of one model, a weight or several that change together. Sites not named
# here stay dense.
#   scheme   how the site is approximated, or dense; its settings follow, such as the `rank` of `lowrank`
#   storage  of the constants that its products read, such as \"int8\", where it is not that of the whole model
#   seed     of the random numbers, where it is not the seed of the plan
";

/// What is done to each site of one model.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// What the plan was made for.
    pub header: Header,
    /// What is done, by site: the table `[modules]` of the text.
    pub sites: BTreeMap<String, Choice>,
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
    /// Seed of the sites that have none of their own; at most `i64::MAX` in a text.
    pub seed: u64,
}

/// What is done to one site: a scheme, and settings that only the scheme understands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Name of the scheme, or [`DENSE`].
    pub scheme: String,
    /// Settings of the scheme, by name.
    #[serde(flatten)]
    pub settings: Settings,
    /// How the constants are stored that its products read: `f32`, `bf16`, `int8`, or a storage such as
    /// `i8(axis = 1)`. `None` for that of the whole model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// Seed of the random numbers; `None` for that of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// Settings of a scheme: a table of TOML that the scheme writes from a type of its own, and reads back.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(toml::Table);

impl Settings {
    /// The settings that a scheme writes.
    ///
    /// # Panics
    /// For a type that is no table of TOML, which is the scheme's fault.
    pub fn write<T: Serialize>(settings: &T) -> Settings {
        Settings(toml::Table::try_from(settings).expect("settings are a table of small integers and strings"))
    }

    /// Settings as they stand in an inline table of a plan: `rank = 16, terms = 2`.
    ///
    /// # Errors
    /// What is no such list.
    pub fn parse(text: &str) -> Result<Settings, String> {
        #[derive(Deserialize)]
        struct Line {
            settings: Settings,
        }
        let line: Result<Line, _> = toml::from_str(&format!("settings = {{ {text} }}"));
        let message = |error: toml::de::Error| error.message().trim().replace('\n', " ");
        line.map(|line| line.settings).map_err(message)
    }

    /// The settings as the scheme's type.
    ///
    /// # Errors
    /// What is unknown, missing or of another type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        T::deserialize(self.0.clone()).map_err(|error| error.to_string().trim().replace('\n', " "))
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Settings {
    /// `rank 16, terms 2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name} {value}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
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
    /// The site stays as it is.
    pub fn dense() -> Choice {
        Choice { scheme: DENSE.to_owned(), settings: Settings::default(), storage: None, seed: None }
    }

    /// A scheme with settings, with the seed of the plan.
    pub fn new<T: Serialize>(scheme: impl Into<String>, settings: &T) -> Choice {
        Choice { scheme: scheme.into(), settings: Settings::write(settings), storage: None, seed: None }
    }

    /// Whether the site stays as it is.
    pub fn is_dense(&self) -> bool {
        self.scheme == DENSE
    }
}

impl fmt::Display for Choice {
    /// `lowrank, rank 16`, and `lowrank, rank 16, stored int8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comma = if self.settings.is_empty() { "" } else { ", " };
        write!(f, "{}{comma}{}", self.scheme, self.settings)?;
        self.storage.iter().try_for_each(|storage| write!(f, ", stored {storage}"))
    }
}

impl Plan {
    /// Reads a plan. `check` says what is wrong with the scheme, the settings or the storage of a choice.
    ///
    /// # Errors
    /// [`PlanError::Syntax`] with line and key, [`PlanError::Version`], and [`PlanError::Choices`] with every
    /// entry that `check` refuses, by line.
    pub fn from_toml(text: &str, check: &dyn Fn(&Choice) -> Result<(), String>) -> Result<Plan, PlanError> {
        let syntax = |error| PlanError::syntax(text, error);
        let found = toml::from_str::<AnyVersion>(text).map_err(syntax)?.plan.version;
        if found != FORMAT_VERSION {
            return Err(PlanError::Version { expected: FORMAT_VERSION, found });
        }
        let read: Text = toml::from_str(text).map_err(syntax)?;
        let problem = |choice: &Choice| match choice.is_dense() && !choice.settings.is_empty() {
            true => Some(format!("scheme `{DENSE}` has no settings, found `{}`", choice.settings)),
            false => check(choice).err(),
        };
        // Places count up from the one before, so that many problems cost one way through the text.
        let wrong = read.modules.iter().filter_map(|(name, choice)| Some((name, problem(choice)?)));
        let mut wrong: Vec<(&Spanned<String>, String)> = wrong.collect();
        wrong.sort_by_key(|(name, _)| name.span().start);
        let (mut at, mut line) = (0, 1);
        let problems = wrong.into_iter().map(|(name, why)| {
            let start = name.span().start;
            line += line_at(text.get(at..).unwrap_or_default(), start - at) - 1;
            at = start;
            ChoiceProblem { line, site: name.get_ref().clone(), why }
        });
        let problems: Vec<ChoiceProblem> = problems.collect();
        if !problems.is_empty() {
            return Err(PlanError::Choices(problems));
        }
        let sites = read.modules.into_iter().map(|(name, choice)| (name.into_inner(), choice));
        Ok(Plan { header: read.plan, sites: sites.collect() })
    }

    /// The text of the plan, one line per site in the order of their names.
    ///
    /// # Errors
    /// [`PlanError::Seed`] for a seed above `i64::MAX`, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, PlanError> {
        let mut seeds = self.sites.values().filter_map(|c| c.seed).chain([self.header.seed]);
        if let Some(found) = seeds.find(|&seed| i64::try_from(seed).is_err()) {
            return Err(PlanError::Seed { found });
        }
        let header = toml::to_string(&self.header).expect("strings and small integers are TOML");
        let mut text = format!("{HEAD}\n[plan]\n{header}\n[modules]\n");
        for (name, choice) in &self.sites {
            text.push_str(&quoted(name));
            text.push_str(" = ");
            choice
                .serialize(toml::ser::ValueSerializer::new(&mut text))
                .expect("strings and small integers are TOML");
            text.push('\n');
        }
        Ok(text)
    }

    /// Whether the plan belongs to this model and calibration, and names only sites that exist.
    ///
    /// A plan made without a calibration goes with any.
    ///
    /// # Errors
    /// [`PlanError::Mismatch`] with everything that does not fit.
    pub fn check<S: AsRef<str>>(
        &self,
        model: &str,
        calibration: Option<&str>,
        sites: impl IntoIterator<Item = S>,
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
        let mut absent: BTreeSet<&str> = self.sites.keys().map(String::as_str).collect();
        sites.into_iter().for_each(|name| {
            absent.remove(name.as_ref());
        });
        problems.extend(absent.into_iter().map(|name| Mismatch::Site { site: name.to_owned() }));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A scheme with settings that are read strictly, and two that take any.
    fn check(choice: &Choice) -> Result<(), String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Lowrank {
            rank: usize,
        }
        if let Some(storage) = choice.storage.as_deref().filter(|s| *s != "int8") {
            return Err(format!("unknown storage `{storage}`"));
        }
        match choice.scheme.as_str() {
            "lowrank" => choice.settings.read::<Lowrank>().and_then(|s| match s.rank {
                0 => Err("rank 0, expected at least 1".to_owned()),
                _ => Ok(()),
            }),
            DENSE | "neuron" | "panther" => Ok(()),
            scheme => Err(format!("unknown scheme `{scheme}`")),
        }
    }

    /// Settings of the schemes of the tests.
    #[derive(Serialize, Default)]
    struct Sizes {
        #[serde(skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        terms: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        copy: Option<&'static str>,
    }

    fn ranked(scheme: &str, rank: usize) -> Choice {
        Choice::new(scheme, &Sizes { rank: Some(rank), ..Sizes::default() })
    }

    fn plan() -> Plan {
        let header = Header {
            version: FORMAT_VERSION,
            model: "5be1c0".to_owned(),
            calibration: Some("77aa01".to_owned()),
            target_cpu: "x86-64-v4".to_owned(),
            cost_model: "x86-64-v4/1".to_owned(),
            seed: 7,
        };
        let query = ranked("lowrank", 96);
        let signs = Sizes { rank: Some(16), terms: Some(2), copy: Some("unbiased") };
        let sites = [
            ("layer.0.query", query),
            ("layer.0.ffn", Choice { seed: Some(3), ..ranked("neuron", 512) }),
            ("layer.1.query", Choice::dense()),
            ("pooler", Choice { storage: Some("int8".to_owned()), ..Choice::new("panther", &signs) }),
        ];
        Plan { header, sites: sites.map(|(name, choice)| (name.to_owned(), choice)).into() }
    }

    fn text_with(from: &str, to: &str) -> String {
        let text = plan().to_toml().unwrap();
        assert!(text.contains(from));
        text.replace(from, to)
    }

    fn refusal(text: &str) -> String {
        Plan::from_toml(text, &check).unwrap_err().to_string()
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
"pooler" = { scheme = "panther", copy = "unbiased", rank = 16, terms = 2, storage = "int8" }
"#;
        assert_eq!(text, format!("{HEAD}{expected}"));
        assert_eq!(Plan::from_toml(&text, &check), Ok(plan()));
    }

    #[test]
    fn odd_names_survive() {
        let mut plan = plan();
        plan.header.calibration = None;
        for name in ["", "a b", "/enc/MatMul:0", "say \"so\"\\", "new\nline\t\u{7f}", "größe", "a.b", "'"] {
            plan.sites.insert(name.to_owned(), ranked("lowrank", 32));
        }
        assert_eq!(Plan::from_toml(&plan.to_toml().unwrap(), &check), Ok(plan));
    }

    #[test]
    fn people_may_write_tables() {
        let inline = "\"layer.1.query\" = { scheme = \"dense\" }\n";
        let table = "[modules.\"layer.1.query\"]\nscheme = \"lowrank\"\nrank = 8";
        let read = Plan::from_toml(&format!("{}{table}", text_with(inline, "")), &check);
        assert_eq!(read.unwrap().sites["layer.1.query"], ranked("lowrank", 8));
    }

    #[test]
    fn refusals_name_line_and_key() {
        for (from, to, expected) in [
            ("rank = 96", "rnk = 96", "line 17, site `layer.0.query`: unknown field `rnk`, expected `rank`"),
            ("rank = 96", "rank = \"x\"", "line 17, site `layer.0.query`: invalid type: string"),
            ("rank = 96", "rank = -1", "line 17, site `layer.0.query`: invalid value: integer `-1`"),
            ("rank = 96", "rank = 0", "line 17, site `layer.0.query`: rank 0, expected at least 1"),
            (", rank = 96", "", "line 17, site `layer.0.query`: missing field `rank`"),
            ("rank = 96", "rank = 96, gauge = 1", "line 17, site `layer.0.query`: unknown field `gauge`"),
            ("scheme = \"lowrank\"", "scheme = 7", "line 17, key `modules.layer.0.query"),
            ("seed = 3", "seed = \"x\"", "line 16, key `modules.layer.0.ffn"),
            ("\"int8\"", "\"int7\"", "line 19, site `pooler`: unknown storage `int7`"),
            ("\"int8\"", "8", "line 19, key `modules.pooler"),
            ("seed = 7", "sed = 7", "line 13, key `plan`: unknown field `sed`"),
            ("model = \"5be1c0\"\n", "", "line 7, key `plan`: missing field `model`"),
            ("[modules]", "[module]", "line 15: unknown field `module`"),
            ("target-cpu = ", "target-cpu ", "line 11: "),
            ("layer.1.query", "layer.0.query", "line 18: duplicate key"),
            ("version = 1", "version = 2", "the plan has format version 2, expected 1"),
        ] {
            let message = refusal(&text_with(from, to));
            assert!(message.starts_with(expected), "{to}: {message}");
        }
    }

    #[test]
    fn unknown_schemes_are_all_listed() {
        let text = text_with("\"neuron\"", "\"neurons\"").replace("\"dense\" }", "\"dense\", rank = 4 }");
        let expected = "line 16, site `layer.0.ffn`: unknown scheme `neurons`\n\
                        line 18, site `layer.1.query`: scheme `dense` has no settings, found `rank 4`";
        assert_eq!(refusal(&text), expected);
    }

    #[test]
    fn seeds_must_fit() {
        let mut plan = plan();
        plan.header.seed = u64::MAX;
        assert_eq!(plan.to_toml(), Err(PlanError::Seed { found: u64::MAX }));
        plan.header.seed = i64::MAX as u64;
        assert_eq!(Plan::from_toml(&plan.to_toml().unwrap(), &check), Ok(plan));
    }

    #[test]
    fn a_plan_belongs_to_one_model() {
        let names = ["layer.0.query", "layer.0.ffn", "layer.1.query", "pooler"];
        assert_eq!(plan().check("5be1c0", Some("77aa01"), names), Ok(()));
        let message = plan().check("000000", None, ["layer.0.query"]).unwrap_err().to_string();
        let expected = "\
the plan is for the model with hash `5be1c0`, found a model with hash `000000`
the plan is for the calibration with hash `77aa01`, found none
the plan names the site `layer.0.ffn`, which the model does not have
the plan names the site `layer.1.query`, which the model does not have
the plan names the site `pooler`, which the model does not have";
        assert_eq!(message, expected);
        let mut uncalibrated = plan();
        uncalibrated.header.calibration = None;
        assert_eq!(uncalibrated.check("5be1c0", Some("any"), names), Ok(()));
    }
}
