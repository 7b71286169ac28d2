//! Laws that hold for every pass: its doc example, and that a second run changes nothing.

use std::collections::BTreeMap;
use std::path::Path;

use margay_ir::ops::{Numbers, Strided};
use margay_ir::{Changed, Cx, Fidelity, Graph, NodeId, Pass, TensorType, eval, text};
use margay_passes::sketch::{Layer, PantherTraining, Start, layers, panther_for_training};
use margay_passes::{BindDims, Differentiate, MakeTrainable, PASSES, StoreAs, StoreConstants, read_pass};
use margay_tensor::random::stream_of;
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::{
    DocExample, Tolerance, assert_close, doc_examples, max_error, normalized, parse_with_random_constants,
};

fn source_of(pass: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../passes/src")
        .join(format!("{}.rs", pass.replace('-', "_")));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The examples at the head of a pass, of which there is at least one.
fn examples_of(pass: &str) -> Vec<DocExample> {
    let examples = doc_examples(&source_of(pass));
    assert!(!examples.is_empty(), "{pass} has no example");
    examples
}

/// A pass that does nothing, or cannot be, without a configuration.
struct Configured {
    name: &'static str,
    /// For its example.
    for_example: &'static str,
    /// At its exact setting, where it keeps numbers as a pass does that only rounds.
    exactly: &'static str,
}

const CONFIGURED: &[Configured] = &[
    // Files that `file` writes for the graph.
    Configured { name: "apply-plan", for_example: "128 or 8", exactly: "full rank" },
    Configured { name: "bind-dims", for_example: "N = 4", exactly: "N = 4" },
    Configured {
        name: "differentiate",
        for_example: "output = loss, by = [w]",
        exactly: "output = loss, by = [w]",
    },
    Configured { name: "make-trainable", for_example: "fc.weight", exactly: "fc.weight" },
    Configured { name: "recompute", for_example: "max-saved-bytes = 0", exactly: "max-saved-bytes = 0" },
    // Exact for numbers that have few digits, which `number` gives it.
    Configured { name: "store-constants", for_example: "int8", exactly: "bf16" },
];

/// A pass with a configuration.
fn configured(name: &str, configuration: &str, g: &Graph) -> Box<dyn Pass> {
    read_pass(&format!("{name}{{{configuration}}}"), &|file| plan(g, file)).unwrap_or_else(|e| panic!("{e}"))
}

/// The passes that need no configuration.
fn unconfigured() -> impl Iterator<Item = Box<dyn Pass>> {
    let known = |name: &str| CONFIGURED.iter().any(|c| c.name == name);
    let names = PASSES.iter().map(|entry| entry.name).filter(move |name| !known(name));
    names.map(|name| read_pass(name, &|_| unreachable!()).unwrap_or_else(|e| panic!("{e}")))
}

/// The plan that replaces every layer by low rank.
fn plan(g: &Graph, file: &str) -> Result<String, String> {
    let rank = |layer: &Layer| match file {
        "full rank" => Ok(layer.d_in.min(layer.d_out)),
        "128 or 8" => Ok(if layer.is_product() { 128 } else { 8 }),
        _ => file.parse().map_err(|_| format!("there is no `{file}`")),
    };
    let choice = |layer: &Layer| {
        Ok(format!("\"{}\" = {{ scheme = \"lowrank\", rank = {} }}\n", layer.name, rank(layer)?))
    };
    let choices: String = layers(g).iter().map(choice).collect::<Result<_, String>>()?;
    let head =
        "[plan]\nversion = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0\n[modules]\n";
    Ok(format!("{head}{choices}"))
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

#[test]
fn every_pass_has_laws() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../passes/src");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_pass =
        |path: &Path| path.is_file() && std::fs::read_to_string(path).unwrap().contains("impl Pass for ");
    let mut found: Vec<String> = files
        .filter(|path| is_pass(path))
        .map(|path| path.file_stem().unwrap().to_string_lossy().replace('_', "-"))
        .collect();
    found.sort();
    let listed: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
    assert_eq!(found, listed, "left: files with a pass, right: `PASSES`, sorted");
}

#[test]
fn doc_examples_hold() {
    for pass in unconfigured() {
        examples_of(pass.name()).iter().for_each(|e| check(&*pass, e));
    }
    for entry in CONFIGURED {
        for example in examples_of(entry.name) {
            let (g, _) = parse_with_random_constants(&example.before);
            check(&*configured(entry.name, entry.for_example, &g), &example);
        }
    }
}

/// Values of the symbols of a graph, different from one another.
fn binding_of(g: &Graph) -> Binding {
    g.symbols().into_iter().zip(4..).collect()
}

/// Numbers for constants and inputs: normal, or integers of few digits that narrow types hold exactly.
fn number(ty: &TensorType, name: &str, digits: Digits) -> Tensor {
    let shape = ty.extents().expect("bound");
    let floats = margay_testkit::normal(&shape, 11, stream_of(name)).to_vec::<f32>().unwrap();
    let numbers = match (ty.dtype.is_float(), digits) {
        (true, Digits::Many) => Numbers::Float(floats.into_iter().map(f64::from).collect()),
        (true, Digits::Few) => {
            Numbers::Float(floats.into_iter().map(|x| f64::from(x * 3.0).round()).collect())
        }
        // Truth values, or positions of the shortest axes.
        (false, _) => Numbers::Int(floats.into_iter().map(|x| i128::from(x > 0.0)).collect()),
    };
    numbers.into_tensor(ty.dtype, &shape).unwrap()
}

#[derive(Clone, Copy, PartialEq)]
enum Digits {
    Many,
    Few,
}

fn graph_of(source: &str, digits: Digits) -> Graph {
    text::parse(source, &|key, ty| Some(number(ty, key, digits).into()))
        .unwrap_or_else(|e| panic!("{e}\n{source}"))
}

/// The longest sum in a graph: the most operations that any node of known extents spends on one number.
fn longest_sum(g: &Graph) -> f64 {
    let per_number = |n: NodeId| {
        let Some(io) = g.io_of(n) else { return 1.0 };
        let numbers: usize = io.outputs.iter().map(Strided::elements).sum();
        g.op(n).cost(&io).flops as f64 / numbers.max(1) as f64
    };
    g.order().into_iter().map(per_number).fold(1.0, f64::max)
}

/// Runs a pass and compares what the graph computes before and after, as its fidelity asks. Says whether it fired.
fn check_fidelity(pass: &dyn Pass, before: &Graph, digits: Digits) -> bool {
    let binding = binding_of(before);
    let mut after = before.clone();
    let changed = run(pass, &mut after) != Changed::No;
    let bind = |g: &Graph| BindDims { binding: binding.clone() }.bound(g).unwrap();
    let (before, after) = (bind(before), bind(&after));
    let types = before.inputs().iter().map(|n| (before.node(*n).origin.name(), before.ty((*n).into())));
    let mut given: BTreeMap<String, Tensor> =
        types.map(|(name, ty)| (name.to_string(), number(ty, name, digits))).collect();
    // Constants that have become inputs.
    for (n, name) in margay_passes::parameter_names(&before) {
        given.insert(name, before.constant(n.into()).unwrap().tensor().clone());
    }
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let (expected, found) = (eval::run(&before, &given).unwrap(), eval::run(&after, &given).unwrap());
    let rounding = 8.0 * f64::from(f32::EPSILON) * longest_sum(&before).max(longest_sum(&after));
    for (output, expected) in before.outputs().iter().zip(&expected) {
        let what = format!("{} on {}: `{}`", pass.name(), before.name(), output.name);
        let at = after.outputs().iter().position(|o| o.name == output.name).expect(&what);
        let numbers = Numbers::of(expected).unwrap().floats();
        assert!(numbers.iter().all(|x| x.is_finite()), "{what}: the numbers show nothing");
        match pass.fidelity() {
            Fidelity::Exact => assert_eq!(found[at].bytes(), expected.bytes(), "{what}"),
            Fidelity::Rounding | Fidelity::Approximate => {
                let size = numbers.iter().fold(0f64, |m, x| m.max(x.abs()));
                let error = max_error(&found[at], expected);
                // Values of 16 bits that are computed in another order may be the next ones.
                let step = match expected.dtype() {
                    DType::F16 => 2f64.powi(-10),
                    DType::BF16 => 2f64.powi(-7),
                    _ => 0.0,
                };
                assert!(error <= rounding.max(step) * size, "{what}: off by {error:.2e} of {size:.2e}");
            }
        }
    }
    changed
}

#[test]
fn passes_keep_numbers_as_their_fidelity_says() {
    let graphs = |digits| -> Vec<(&str, Graph)> {
        let of = |name| examples_of(name).into_iter().map(move |e| (name, graph_of(&e.before, digits)));
        PASSES.iter().flat_map(|entry| of(entry.name)).collect()
    };
    let (many, few) = (graphs(Digits::Many), graphs(Digits::Few));
    for pass in unconfigured() {
        // What is approximate is exact for numbers that narrow types hold.
        let (digits, graphs) = match pass.fidelity() {
            Fidelity::Approximate => (Digits::Few, &few),
            Fidelity::Exact | Fidelity::Rounding => (Digits::Many, &many),
        };
        for (of, graph) in graphs {
            let fired = check_fidelity(&*pass, graph, digits);
            assert!(fired || *of != pass.name(), "{of} did not fire on its example");
        }
    }
    for entry in CONFIGURED {
        for example in examples_of(entry.name) {
            let narrow = entry.name == "store-constants";
            let digits = if narrow { Digits::Few } else { Digits::Many };
            let graph = graph_of(&example.before, digits);
            let pass = configured(entry.name, entry.exactly, &graph);
            let fired = check_fidelity(&*pass, &graph, digits);
            assert!(fired, "{} did not fire on its example", entry.name);
        }
    }
}

#[test]
fn products_are_narrow_once() {
    let (mut g, _) = parse_with_random_constants(&examples_of("store-constants")[0].before);
    assert_eq!(run(&StoreConstants::default(), &mut g), Changed::No);
    assert_eq!(run(&products_in("int8"), &mut g), Changed::times(1));
    assert_eq!(run(&products_in("bf16"), &mut g), Changed::No);
}

fn products_in(storage: &str) -> StoreConstants {
    StoreConstants { products: StoreAs::parse(storage).unwrap(), ..StoreConstants::default() }
}

#[test]
fn products_are_sketched_for_training_once() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../passes/src/sketch/panther.rs");
    let examples = doc_examples(&std::fs::read_to_string(path).unwrap());
    assert_eq!(examples.len(), 3);
    for (example, two_sided) in examples.into_iter().zip([false, false, true]) {
        let (mut g, names) = parse_with_random_constants(&example.before);
        let options = PantherTraining {
            rank: 8,
            terms: 1 + usize::from(!two_sided),
            start: Start::Unbiased,
            two_sided,
            seed: 7,
            modules: None,
        };
        panther_for_training(&mut g, &options, &mut Cx::default()).unwrap();
        assert_eq!(normalized(&g, "after", &names), example.after);
        let again = panther_for_training(&mut g, &options, &mut Cx::default()).unwrap();
        assert_eq!(again, Changed::No);
    }
}

/// The graph with every module sketched at a rank, and the text it prints.
fn sketched(source: &str, rank: usize) -> String {
    let (mut g, names) = parse_with_random_constants(source);
    let pass = configured("apply-plan", &rank.to_string(), &g);
    assert!(run(&*pass, &mut g) != Changed::No);
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
fn parameters_before_training_stay_apart() {
    let source = "graph @untrained(%x: f32[N, 4]) -> (y: f32[N, 4]) {
      %0 = const splat(0.0) : f32[4]  // a.bias
      %1 = add %x, %0 : f32[N, 4]
      %2 = const splat(0.0) : f32[4]  // b.bias
      %3 = add %1, %2 : f32[N, 4]
      %4 = const splat(0.0) : f32[4]  // a.bias
      %5 = mul %3, %4 : f32[N, 4]
      %6 = const [1.0, 2.0, 3.0, 4.0] : f32[4]  // c
      %7 = mul %5, %6 : f32[N, 4]
      %8 = const [1.0, 2.0, 3.0, 4.0] : f32[4]  // d
      %9 = mul %7, %8 : f32[N, 4]
      return %9
    }";
    let (mut g, _) = parse_with_random_constants(source);
    assert_eq!(run(&margay_passes::MergeDuplicates, &mut g), Changed::times(1));
    let names: Vec<String> = margay_passes::parameter_names(&g).into_iter().map(|(_, n)| n).collect();
    assert_eq!(names, ["a.bias", "b.bias", "c", "d"]);
}

#[test]
fn a_weight_that_others_read_is_no_site() {
    let (g, _) = parse_with_random_constants(
        "graph @shared(%x: f32[N, 64]) -> (y: f32[N, 64], w: f32[64, 64]) {
           %0 = const #w : f32[64, 64]  // w
           %1 = matmul %x, %0 : f32[N, 64]  // a
           return %1, %0
         }",
    );
    assert!(layers(&g).is_empty());
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

/// The attention found in `softmax(2 q k, with a mask) v` of three queries and four keys, as printed.
fn recognized(mask: &str) -> Option<String> {
    let source = format!(
        "graph @causal(%q: f32[1, 2, 3, 8], %k: f32[1, 2, 8, 4], %v: f32[1, 2, 4, 8], %p: f32[1, 1, 1, 4]) -> (y: f32[1, 2, 3, 8]) {{
           %0 = matmul %q, %k : f32[1, 2, 3, 4]
           %1 = const 2.0 : f32
           %2 = mul %0, %1 : f32[1, 2, 3, 4]
           {mask}
           %9 = softmax %8 {{axis = 3}} : f32[1, 2, 3, 4]
           %10 = matmul %9, %v : f32[1, 2, 3, 8]
           return %10
         }}"
    );
    let mut g = text::parse(&source, &|_, _| None).unwrap();
    run(&margay_passes::RecognizeAttention, &mut g);
    let printed = g.to_string();
    let line = printed.lines().find(|line| line.contains("= attention"))?;
    Some(line.trim().split_once("= ").unwrap().1.to_owned())
}

#[test]
fn triangular_masks_make_attention_causal() {
    let causal = |attributes: &str| Some(format!("attention %q, %0, %v {attributes} : f32[1, 2, 3, 8]"));
    let add = |list: &str| {
        recognized(&format!("%7 = const [{list}] : f32[3, 4]\n%8 = add %2, %7 : f32[1, 2, 3, 4]"))
    };
    let expected = causal("{scale = 2.0, causal = true}");
    assert_eq!(add("0, 0, -inf, -inf, 0, 0, 0, -1e9, 0, 0, 0, 0"), expected);
    // One key too many, one too few, a hidden score that may count, and an addend that is not 0.
    let other = Some("attention %q, %1, %v, %0 {scale = 2.0} : f32[1, 2, 3, 8]".to_owned());
    assert_eq!(add("0, 0, 0, -inf, 0, 0, 0, -inf, 0, 0, 0, 0"), other);
    assert_eq!(add("0, -inf, -inf, -inf, 0, 0, 0, -inf, 0, 0, 0, 0"), other);
    assert_eq!(add("0, 0, -1e4, -inf, 0, 0, 0, -inf, 0, 0, 0, 0"), other);
    assert_eq!(add("0, 0, -inf, -inf, 0, 0, 0, -inf, 0, 0, 0, 1e-9"), other);

    let choice = |list: &str, order: &str| {
        recognized(&format!(
            "%6 = const -inf : f32\n%7 = const [{list}] : bool[3, 4]\n%8 = select %7, {order} : f32[1, 2, 3, 4]"
        ))
    };
    let (t, f) = ("true", "false");
    let seen = [t, t, f, f, t, t, t, f, t, t, t, t].join(", ");
    let hidden = [f, f, t, t, f, f, f, t, f, f, f, f].join(", ");
    assert_eq!(choice(&seen, "%2, %6"), expected);
    assert_eq!(choice(&hidden, "%6, %2"), expected);
    assert_eq!(choice(&hidden, "%2, %6"), None);

    // With padding besides.
    let both = recognized(&format!(
        "%6 = const -inf : f32\n%7 = const [{seen}] : bool[3, 4]\n%5 = select %7, %2, %6 : f32[1, 2, 3, 4]
         %8 = add %5, %p : f32[1, 2, 3, 4]"
    ));
    assert_eq!(both.unwrap(), "attention %q, %0, %v, %p {scale = 2.0, causal = true} : f32[1, 2, 3, 8]");
}

/// What becomes of `q (kt v)` divided by a sum, of which `%9` is the result.
fn divided_by(sum: &str, outputs: &str) -> (String, Vec<String>) {
    let source = format!(
        "graph @linear(%q: f32[1, 2, 5, 3], %k: f32[1, 2, 3, 7], %v: f32[1, 2, 7, 4]) -> (y: f32[1, 2, 5, 4]{outputs}) {{
           %0 = matmul %k, %v : f32[1, 2, 3, 4]
           %1 = matmul %q, %0 : f32[1, 2, 5, 4]
           {sum}
           %10 = div %1, %9 : f32[1, 2, 5, 4]
           return %10{}
         }}",
        if outputs.is_empty() { "" } else { ", %9" }
    );
    let mut g = text::parse(&source, &|_, _| None).unwrap();
    let mut cx = Cx::default();
    margay_passes::RecognizeLinearAttention.run(&mut g, &mut cx).unwrap();
    (g.to_string(), cx.remarks.iter().map(|r| r.message.clone()).collect())
}

#[test]
fn sums_of_keys_are_found_in_every_spelling() {
    let column = "%2 = reduce %k {kind = sum, axes = [3], keepdims = true} : f32[1, 2, 3, 1]";
    let product = format!("{column}\n%9 = matmul %q, %2 : f32[1, 2, 5, 1]");
    let reshaped = "%2 = reduce %k {kind = sum, axes = [3]} : f32[1, 2, 3]
                    %3 = reshape %2 {shape = [1, 2, 3, 1]} : f32[1, 2, 3, 1]
                    %9 = matmul %q, %3 : f32[1, 2, 5, 1]";
    let weighted = "%2 = reduce %k {kind = sum, axes = [3]} : f32[1, 2, 3]
                    %3 = reshape %2 {shape = [1, 2, 1, 3]} : f32[1, 2, 1, 3]
                    %4 = mul %q, %3 : f32[1, 2, 5, 3]
                    %9 = reduce %4 {kind = sum, axes = [3], keepdims = true} : f32[1, 2, 5, 1]";
    for sum in [product.as_str(), reshaped, weighted] {
        let (found, _) = divided_by(sum, "");
        assert!(found.contains("= linear_attention %q, %0, %v : f32[1, 2, 5, 4]"), "{found}");
    }
    // A sum over values, a mean, and a sum that somebody else reads.
    let mean = product.replace("kind = sum", "kind = mean");
    let other = "%2 = reduce %0 {kind = sum, axes = [3], keepdims = true} : f32[1, 2, 3, 1]
                 %9 = matmul %q, %2 : f32[1, 2, 5, 1]";
    for sum in [mean.as_str(), other] {
        let (found, said) = divided_by(sum, "");
        assert!(!found.contains("linear_attention") && said.is_empty(), "{found}");
    }
    let (found, said) = divided_by(&product, ", s: f32[1, 2, 5, 1]");
    assert!(!found.contains("linear_attention"));
    assert_eq!(said, ["the sum of linear attention has 2 readers"]);
}

#[test]
fn images_keep_their_values_with_channels_last() {
    let (before, _) = parse_with_random_constants(
        "graph @net(%x: f32[N, 3, 9, 8], %z: f32[N, 4, 9, 8]) -> (y: f32[N, 5], m: f32[N, 4, 9, 8], c: f32[N, 8, 11, 9], s: f32[N, 9]) {
           %0 = const #k1 : f32[4, 3, 3, 3]
           %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 4, 9, 8]
           %2 = const #b1 : f32[4, 1, 1]
           %3 = broadcast %2 {shape = [N, 4, 9, 8]} : f32[N, 4, 9, 8]
           %4 = mul %3, %1 : f32[N, 4, 9, 8]
           %5 = const #row : f32[9, 8]
           %6 = add %4, %5 : f32[N, 4, 9, 8]
           %7 = const 0.5 : f32
           %8 = less %7, %6 : bool[N, 4, 9, 8]
           %9 = select %8, %6, %7 : f32[N, 4, 9, 8]
           %10 = reduce %9 {kind = mean, axes = [2, 3], keepdims = true} : f32[N, 4, 1, 1]
           %11 = const #k2 : f32[4, 4, 1, 1]
           %12 = conv %10, %11 : f32[N, 4, 1, 1]
           %13 = sigmoid %12 : f32[N, 4, 1, 1]
           %14 = mul %9, %13 : f32[N, 4, 9, 8]
           %15 = pool %14 {kind = max, kernel = [3, 3], pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 4, 9, 8]
           %16 = softmax %15 {axis = 1} : f32[N, 4, 9, 8]
           %17 = concat %16, %14 {axis = 1} : f32[N, 8, 9, 8]
           %18 = pad %17 {before = [0, 0, 2, 0], after = [0, 0, 0, 1]} : f32[N, 8, 11, 9]
           %19 = slice %14 {starts = [0, 1, 0, 0], ends = [N, 4, 9, 8], steps = [1, 2, 1, 3]} : f32[N, 2, 9, 3]
           %20 = reshape %19 {shape = [N, 54]} : f32[N, 54]
           %21 = const #w : f32[54, 5]
           %22 = matmul %20, %21 : f32[N, 5]
           %23 = add %14, %z : f32[N, 4, 9, 8]
           %24 = reduce %14 {kind = sum, axes = [1, 3]} : f32[N, 9]
           return %22, %23, %18, %24
         }",
    );
    let mut after = before.clone();
    run(&margay_passes::AssignLayout, &mut after);
    let text = after.to_string();
    // One in front of the first convolution; the second output adds an input of the graph, the third is an image.
    assert_eq!(text.matches(" = transpose ").count(), 3, "{text}");
    let bind = |g: &Graph| BindDims { binding: [("N".into(), 2)].into_iter().collect() }.bound(g).unwrap();
    let x = margay_testkit::normal(&[2, 3, 9, 8], 1, 0);
    let z = margay_testkit::normal(&[2, 4, 9, 8], 1, 1);
    let values = |g: &Graph| eval::run(&bind(g), &[("x", &x), ("z", &z)]).unwrap();
    for (found, expected) in values(&after).iter().zip(&values(&before)) {
        assert_close("with channels last", found, expected, Tolerance::REDUCTION);
    }
}

#[test]
fn transposes_of_heads_stay_where_they_are() {
    let source = "graph @heads(%x: f32[2, 5, 6]) -> (y: f32[2, 6, 5]) {
      %0 = transpose %x {perm = [0, 2, 1]} : f32[2, 6, 5]
      %1 = tanh %0 : f32[2, 6, 5]
      return %1
    }";
    let (mut g, _) = parse_with_random_constants(source);
    assert_eq!(run(&margay_passes::AssignLayout, &mut g), Changed::No);
}

#[test]
fn only_constants_of_floats_are_made_trainable() {
    let unknown = MakeTrainable { names: vec!["fc".into()] };
    let (mut g, _) = parse_with_random_constants(&examples_of("make-trainable")[0].before);
    let refusal = unknown.run(&mut g, &mut Cx::default()).unwrap_err().to_string();
    assert_eq!(refusal, "the model has no constant of floats `fc`");
}

#[test]
fn derivatives_that_do_not_exist_are_refused_by_name() {
    let source = "graph @prod(%x: f32[3]) -> (y: f32) {
      %0 = reduce %x {kind = prod, axes = [0]} : f32  // all
      return %0
    }";
    let refusal = |output: &str, by: &str| {
        let (mut g, _) = parse_with_random_constants(source);
        let pass = Differentiate { output: output.into(), by: vec![by.into()] };
        pass.run(&mut g, &mut Cx::default()).unwrap_err().to_string()
    };
    assert_eq!(
        refusal("y", "x"),
        "`reduce` at `all` has no derivative: there is no rule for products of elements"
    );
    assert_eq!(refusal("z", "x"), "the model has no output `z`");
    assert_eq!(refusal("y", "w"), "the model has no input or constant `w`");
}
