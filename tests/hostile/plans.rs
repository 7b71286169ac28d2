//! Plans: what is read is written, and read as the same plan.

use std::collections::BTreeMap;

use margay_passes::sketch::read_plan;
use margay_plan::plan::{FORMAT_VERSION, Header};
use margay_plan::{Choice, Plan};

use super::{Draw, words};

/// Accepts what is a plan with schemes and settings that exist.
pub(super) fn run(bytes: &[u8]) -> bool {
    let Ok(source) = str::from_utf8(bytes) else { return false };
    let Ok(plan) = read_plan(source) else { return false };
    let printed = plan.to_toml().unwrap_or_else(|e| panic!("{e}"));
    let again = read_plan(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(again, plan, "{printed}");
    assert_eq!(again.to_toml().unwrap_or_else(|e| panic!("{e}")), printed);
    for choice in plan.sites.values() {
        _ = choice.to_string();
    }
    true
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let choices = [
        "scheme = \"dense\"",
        "scheme = \"lowrank\"\nrank = 16\nstorage = \"int8\"\nseed = 9",
        "scheme = \"interpolative\"\nrank = 8",
        "scheme = \"neurons\"\nunits = 24\nstorage = \"i8(axis = 1)\"",
        "scheme = \"panther\"\nrank = 4\nterms = 2",
        "scheme = \"favor\"\nfeatures = 64\nkernel = \"relu\"\nheads = [0, 3]\nlimit = 0.2",
        "scheme = \"favor\"\nfeatures = 8\nrelative = { sines = 2, realizations = 9, gated = true }",
        "scheme = \"nystrom\"\nlandmarks = 32\niterations = 9",
        "scheme = \"local\"\nwindow = 64\nglobal = 1\nsummary = \"means\"\nlimit = 0.1",
        "scheme = \"kronecker\"\nblock = [4, 8]\nterms = 2",
        "scheme = \"monarch\"\nblocks = [4, 8]\nrank = 3",
        "scheme = \"tucker\"\nranks = [8, 16]",
        "scheme = \"cp\"\nrank = 8\nstart = 3",
    ];
    let choices: Vec<Choice> = choices.iter().map(|text| toml::from_str(text).expect(text)).collect();
    let header = Header {
        version: FORMAT_VERSION,
        model: "0123456789abcdef".into(),
        calibration: Some("fedcba9876543210".into()),
        target_cpu: "x86-64-v4".into(),
        cost_model: "x86-64-v4".into(),
        seed: 42,
    };
    let plan = |sites: BTreeMap<String, Choice>| {
        let plan = Plan { header: header.clone(), sites };
        plan.to_toml().unwrap_or_else(|e| panic!("{e}")).into_bytes()
    };
    let single =
        choices.iter().map(|choice| plan(BTreeMap::from([("encoder/layer.0".into(), choice.clone())])));
    let all = choices.iter().enumerate().map(|(i, choice)| (format!("fc{i} \"{i}\""), choice.clone()));
    let mut seeds: Vec<Vec<u8>> = single.collect();
    seeds.push(plan(all.collect()));
    seeds.push(plan(BTreeMap::new()));
    seeds
}

pub(super) fn change(text: &[u8], draw: &mut Draw) -> Vec<u8> {
    const WORDS: [&str; 33] = [
        "[plan]",
        "[modules]",
        "[[modules]]",
        "scheme",
        "rank",
        "units",
        "terms",
        "seed",
        "storage",
        "dense",
        "lowrank",
        "interpolative",
        "neurons",
        "panther",
        "favor",
        "features",
        "nystrom",
        "landmarks",
        "local",
        "window",
        "global",
        "summary",
        "heads",
        "limit",
        "block",
        "ranks",
        "int8",
        "bf16",
        "f32",
        "1e400",
        "nan",
        "1979-05-27",
        "'''",
    ];
    words::change(text, draw, &WORDS)
}
