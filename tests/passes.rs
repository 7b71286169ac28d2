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

/// The graph with every module sketched at a rank, and the text it prints.
fn sketched(source: &str, rank: usize) -> String {
    let (mut g, names) = parse_with_random_constants(source);
    let selection = select_all(&g, rank);
    assert!(run(&SketchLinear { selection }, &mut g) != Changed::No);
    assert_eq!(g.verify(margay_ir::Stage::Canonical), Ok(()));
    normalized(&g, "after", &names)
}

#[test]
fn uses_of_one_weight_that_follow_one_another_are_all_sketched() {
    let text = sketched(
        "graph @tied(%x: f32[N, 64]) -> (y: f32[N, 64]) {
           %0 = const #w : f32[64, 64]  // w
           %1 = matmul %x, %0 : f32[N, 64]  // a
           %2 = matmul %1, %0 : f32[N, 64]  // b
           return %2
         }",
        8,
    );
    assert_eq!(text.matches(" = matmul ").count(), 4, "{text}");
    assert!(!text.contains("const #w"), "{text}");
}

#[test]
fn a_weight_that_others_read_is_no_module() {
    let (g, _) = parse_with_random_constants(
        "graph @shared(%x: f32[N, 64]) -> (y: f32[N, 64], w: f32[64, 64]) {
           %0 = const #w : f32[64, 64]  // w
           %1 = matmul %x, %0 : f32[N, 64]  // a
           return %1, %0
         }",
    );
    assert!(modules(&g).is_empty());
}

#[test]
fn what_is_declined_says_why() {
    let (mut g, _) = parse_with_random_constants(
        "graph @grow(%x: f32[N, 1024, 1024]) -> (y: f32[N, 1024, 1024]) {
           %0 = const 0.5 : f32  // half
           %1 = broadcast %0 {shape = [1024, 1024]} : f32[1024, 1024]  // expand
           %2 = add %x, %1 : f32[N, 1024, 1024]
           return %2
         }",
    );
    let mut cx = Cx::default();
    margay_passes::FoldConstants::default().run(&mut g, &mut cx).unwrap();
    let said: Vec<String> =
        cx.remarks.iter().map(|r| format!("{} at `{}`: {}", r.pass, r.at, r.message)).collect();
    assert_eq!(said, ["fold-constants at `expand`: folding would turn 4 bytes into 4194304"]);

    let (mut g, _) = parse_with_random_constants(
        "graph @shared(%q: f32[1, 2, 5, 4], %k: f32[1, 2, 4, 5], %v: f32[1, 2, 5, 4]) -> (y: f32[1, 2, 5, 4], p: f32[1, 2, 5, 5]) {
           %0 = matmul %q, %k : f32[1, 2, 5, 5]
           %1 = softmax %0 {axis = 3} : f32[1, 2, 5, 5]
           %2 = matmul %1, %v : f32[1, 2, 5, 4]  // context
           return %2, %1
         }",
    );
    let mut cx = Cx::default();
    margay_passes::RecognizeAttention.run(&mut g, &mut cx).unwrap();
    assert_eq!(cx.remarks[0].message, "the attention weights have 2 readers");
}

#[test]
fn keys_shared_by_heads_are_left_as_they_are() {
    let (mut g, _) = parse_with_random_constants(
        "graph @one(%q: f32[1, 2, 5, 4], %k: f32[1, 1, 4, 5], %v: f32[1, 2, 5, 4]) -> (y: f32[1, 2, 5, 4]) {
           %0 = matmul %q, %k : f32[1, 2, 5, 5]
           %1 = softmax %0 {axis = 3} : f32[1, 2, 5, 5]
           %2 = matmul %1, %v : f32[1, 2, 5, 4]
           return %2
         }",
    );
    assert_eq!(run(&margay_passes::RecognizeAttention, &mut g), Changed::No);
}

#[test]
fn passes_are_listed_and_sorted() {
    assert!(PASSES.is_sorted_by_key(|p| p.name));
    for entry in PASSES {
        assert_eq!((entry.make)().name(), entry.name);
    }
}

#[test]
fn doc_example_of_differentiate_holds() {
    let pass = margay_passes::Differentiate { output: "loss".into(), by: vec!["w".into()] };
    doc_examples(&source_of("differentiate")).iter().for_each(|e| check(&pass, e));
}

#[test]
fn derivatives_that_do_not_exist_are_refused_by_name() {
    let source = "graph @prod(%x: f32[3]) -> (y: f32) {
      %0 = reduce %x {kind = prod, axes = [0]} : f32  // all
      return %0
    }";
    let refusal = |output: &str, by: &str| {
        let (mut g, _) = parse_with_random_constants(source);
        let pass = margay_passes::Differentiate { output: output.into(), by: vec![by.into()] };
        pass.run(&mut g, &mut Cx::default()).unwrap_err().to_string()
    };
    assert_eq!(
        refusal("y", "x"),
        "`reduce` at `all` has no derivative: there is no rule for products of elements"
    );
    assert_eq!(refusal("z", "x"), "the model has no output `z`");
    assert_eq!(refusal("y", "w"), "the model has no input or constant `w`");
}
