//! Laws that hold for every pass: its doc example, and that a second run changes nothing.

use std::path::Path;

use margay_ir::{Changed, Cx, Graph, Pass};
use margay_passes::sketch::{Chosen, Selection, modules, scheme};
use margay_passes::{BindDims, PASSES, SketchConv, SketchLinear};
use margay_testkit::{DocExample, doc_examples, normalized, parse_with_random_constants};

fn source_of(pass: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../passes/src")
        .join(format!("{}.rs", pass.replace('-', "_")));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn run(pass: &dyn Pass, g: &mut Graph) -> Changed {
    pass.run(g, &mut Cx::default()).unwrap_or_else(|e| panic!("{}: {e}", pass.name()))
}

fn check(pass: &dyn Pass, example: &DocExample) {
    let (mut g, names) = parse_with_random_constants(&example.before);
    assert!(run(pass, &mut g) != Changed::No, "{} did not fire on its example", pass.name());
    assert_eq!(normalized(&g, "after", &names), example.after, "{}", pass.name());
    assert_eq!(run(pass, &mut g), Changed::No, "{} fires twice", pass.name());
}

/// Every module of the graph by one scheme at one rank, without calibration.
fn select_all(g: &Graph, rank: usize) -> Selection {
    let mut selection = Selection::default();
    for module in modules(g) {
        let lowrank = scheme("lowrank").expect("listed");
        let fitted = lowrank.fit(g, &module, None, 0).unwrap_or_else(|e| panic!("{e}")).into();
        selection.choices.insert(module.name, Chosen { fitted, rank });
    }
    selection
}

#[test]
fn doc_examples_hold() {
    for entry in PASSES {
        let examples = doc_examples(&source_of(entry.name));
        assert!(!examples.is_empty(), "{} has no example", entry.name);
        examples.iter().for_each(|e| check(&*(entry.make)(), e));
    }
}

#[test]
fn doc_example_of_bind_dims_holds() {
    let binding: margay_tensor::Binding = [("N".into(), 4)].into_iter().collect();
    doc_examples(&source_of("bind-dims"))
        .iter()
        .for_each(|e| check(&BindDims { binding: binding.clone() }, e));
}

#[test]
fn doc_examples_of_sketches_hold() {
    for (pass, rank) in [("sketch-linear", 128), ("sketch-conv", 8)] {
        for example in doc_examples(&source_of(pass)) {
            let (g, _) = parse_with_random_constants(&example.before);
            let selection = select_all(&g, rank);
            match pass {
                "sketch-linear" => check(&SketchLinear { selection }, &example),
                _ => check(&SketchConv { selection }, &example),
            }
        }
    }
}

#[test]
fn passes_are_listed_and_sorted() {
    assert!(PASSES.is_sorted_by_key(|p| p.name));
    for entry in PASSES {
        assert_eq!((entry.make)().name(), entry.name);
    }
}
