//! Passes as text: each prints as it is read, pipelines too, and what is wrong in a text is said.

use margay_passes::{PASSES, Pipeline, read_pass};

const PLAN: &str = "[plan]
version = 1
model = \"\"
target-cpu = \"\"
cost-model = \"\"
seed = 7

[modules]
\"a b\" = { scheme = \"panther\", rank = 4, terms = 2, seed = 3 }
fc = { scheme = \"lowrank\", rank = 16 }
head = { scheme = \"dense\" }
";

fn file(name: &str) -> Result<String, String> {
    if name == "plan.toml" { Ok(PLAN.to_owned()) } else { Err(format!("there is no `{name}`")) }
}

/// Every configuration in all of its forms, as it prints.
const TEXTS: &[&str] = &[
    "apply-plan{plan.toml}",
    "assign-layout",
    "bind-dims{N = 4, \"the length\" = 128}",
    "differentiate{output = \"the loss\", by = [w, \"fc.weight left\", \"a, b\"]}",
    "draw-signs",
    "expand-feature-attention",
    "expand-recurrences",
    "expand-sketches",
    "fold-constants",
    "fold-constants{max-growth-bytes = 1, max-flops = 2, max-total-growth-bytes = 3, max-total-flops = 4}",
    "fold-scales",
    "make-trainable{fc.weight, \"w#2\", \"fc.weight left\"}",
    "merge-duplicates",
    "pad-decided",
    "recognize-attention",
    "recognize-feature-attention",
    "recognize-gelu",
    "recognize-integer-products",
    "recognize-kernel-gradients",
    "recognize-layer-norm",
    "recognize-linear-attention",
    "recognize-piecewise",
    "recognize-silu",
    "recompute{max-saved-bytes = 40000}",
    "remove-dead",
    "remove-dropout",
    "round-operands",
    "simplify",
    "store-constants{f32, \"a = b\" = bf16, embeddings = i8(axis = 0, block = 32)}",
    "store-constants{i8(axis = 1)}",
    "store-constants{int4, embeddings = u3(axis = 1, block = 32, bf16 scales, zero points)}",
    "widen-products",
];

#[test]
fn passes_print_as_they_are_read() {
    for text in TEXTS {
        let pass = read_pass(text, &file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(pass.to_string(), *text);
    }
    for entry in PASSES {
        let named = |text: &&&str| text.split('{').next() == Some(entry.name);
        assert!(TEXTS.iter().any(|text| named(&text)), "{} has no text here", entry.name);
    }
    let all = format!("{}, @canonical, @lowerable", TEXTS.join(", "));
    assert_eq!(Pipeline::read(&all, &file).unwrap_or_else(|e| panic!("{e}")).to_string(), all);
}

#[test]
fn a_plan_is_written_into_a_file_of_its_own() {
    let pass = read_pass("apply-plan{plan.toml}", &file).unwrap_or_else(|e| panic!("{e}"));
    let written = pass.configuration().files;
    let [(name, plan)] = written.as_slice() else { panic!("one file") };
    assert_eq!(name, "plan.toml");
    assert!(plan.contains("\"a b\" = { scheme = \"panther\", rank = 4, terms = 2, seed = 3 }"), "{plan}");
    // The seed of the plan stands with each choice, and what stays dense is not in it.
    assert!(plan.contains("\"fc\" = { scheme = \"lowrank\", rank = 16, seed = 7 }"), "{plan}");
    assert!(!plan.contains("head"), "{plan}");
    let again = read_pass("apply-plan{plan.toml}", &|_| Ok(plan.clone())).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again.configuration().files, written);
}

#[test]
fn what_is_wrong_in_a_text_is_said() {
    let wrong = |text: &str| Pipeline::read(text, &file).err().unwrap_or_else(|| panic!("{text} is read"));
    let known: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
    assert_eq!(wrong("sketch"), format!("there is no pass `sketch`; known are {}", known.join(", ")));
    assert_eq!(
        wrong("simplify, @done"),
        "there is no stage `done`; known are @imported, @canonical, @sketched, @lowerable"
    );
    for (text, why) in [
        ("bind-dims{N = 4", "expected `}` at the end of `bind-dims{N = 4`"),
        ("simplify{4}", "pass `simplify`: it has no configuration, found `4`"),
        ("bind-dims{N = four}", "pass `bind-dims`: `N`: expected an integer, found `four`"),
        ("bind-dims{N}", "pass `bind-dims`: expected `name = value`, found `N`"),
        ("bind-dims{N = 1, N = 2}", "pass `bind-dims`: `N` is given twice"),
        ("recompute", "pass `recompute`: expected `max-saved-bytes = …`, found ``"),
        ("recompute{bytes = 4}", "pass `recompute`: expected `max-saved-bytes = …`, found `bytes = 4`"),
        ("differentiate{by = [w]}", "pass `differentiate`: `output` is missing"),
        ("differentiate{output = y}", "pass `differentiate`: `by` is missing"),
        ("differentiate{output = y, by = w}", "pass `differentiate`: expected `[name, name]`, found `w`"),
        ("differentiate{of = y}", "pass `differentiate`: unknown `of`, expected `output` and `by`"),
        ("fold-constants{max-bytes = 3}", "pass `fold-constants`: unknown limit `max-bytes`"),
        ("store-constants{int5}", "pass `store-constants`: `int5` is not a storage"),
        ("store-constants{int8, fc = int5}", "pass `store-constants`: `int5` is not a storage"),
        ("make-trainable{fc weight}", "pass `make-trainable`: unexpected ` weight`"),
        ("apply-plan", "pass `apply-plan`: expected the name of a file with a plan"),
        ("apply-plan{other.toml}", "pass `apply-plan`: there is no `other.toml`"),
    ] {
        assert_eq!(wrong(text), why);
    }
}
