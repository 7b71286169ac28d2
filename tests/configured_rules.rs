//! The conditions of passes that have a configuration: limits met exactly and missed by one, and graphs that must stay.

use margay_ir::{Changed, Cx, Graph, Pass, eval, text};
use margay_passes::{
    BindDims, Differentiate, FoldConstants, MakeTrainable, Recompute, parameter_names, with_parameters,
};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::parse_with_random_constants;

fn graph(source: &str) -> Graph {
    parse_with_random_constants(source).0
}

/// The graph after a pass, the number of changes, and what was declined.
fn after(pass: &dyn Pass, source: &str) -> (String, usize, Vec<String>) {
    let (mut g, mut cx) = (graph(source), Cx::default());
    let changed = pass.run(&mut g, &mut cx).unwrap_or_else(|e| panic!("{}: {e}", pass.name()));
    let changes = if let Changed::Yes(n) = changed { n } else { 0 };
    let declined =
        cx.remarks.into_iter().filter(|r| r.declined).map(|r| format!("`{}`: {}", r.at, r.message));
    (g.to_string(), changes, declined.collect())
}

fn refused(pass: &dyn Pass, source: &str) -> String {
    pass.run(&mut graph(source), &mut Cx::default()).expect_err("it is refused").to_string()
}

/// The number in front of a word.
fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap().trim_end();
    before.rsplit(' ').next().unwrap().parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Two constants of 4 bytes that become 16 and 24.
const GROWING: &str = "graph @growing(%x: f32[N, 4], %z: f32[N, 6]) -> (y: f32[N, 4], w: f32[N, 6]) {
  %0 = const 0.5 : f32  // half
  %1 = broadcast %0 {shape = [4]} : f32[4]  // four
  %2 = broadcast %0 {shape = [6]} : f32[6]  // six
  %3 = add %x, %1 : f32[N, 4]
  %4 = add %z, %2 : f32[N, 6]
  return %3, %4
}";

#[test]
fn folding_keeps_to_its_limits_of_bytes() {
    let fold = |growth: usize, total: usize| {
        let limits = FoldConstants {
            max_growth_bytes: growth,
            max_total_growth_bytes: total,
            ..FoldConstants::default()
        };
        let (_, changes, declined) = after(&limits, GROWING);
        (changes, declined)
    };
    let grows = |name: &str, bytes: usize| format!("`{name}`: folding would turn 4 bytes into {bytes}");
    assert_eq!(fold(24, 32), (2, vec![]));
    assert_eq!(fold(23, 32), (1, vec![grows("six", 24)]));
    assert_eq!(fold(16, 32), (1, vec![grows("six", 24)]));
    assert_eq!(fold(15, 32), (0, vec![grows("four", 16), grows("six", 24)]));
    // Twelve bytes more for the first, twenty for the second.
    let over = |bytes: usize| format!("`six`: the graph would grow by {bytes} bytes in ");
    for total in [31, 12] {
        let (changes, declined) = fold(24, total);
        assert_eq!(changes, 1);
        assert!(declined.len() == 1 && declined[0].starts_with(&over(32)), "{declined:?}");
    }
    let (changes, declined) = fold(24, 11);
    assert_eq!((changes, declined.len()), (0, 2), "{declined:?}");
    // What a product reads as its weight has a limit of its own.
    let weight = "graph @weight(%x: f32[N, 4]) -> (y: f32[N, 6]) {
      %0 = const 0.5 : f32  // half
      %1 = broadcast %0 {shape = [4, 6]} : f32[4, 6]  // w
      %2 = matmul %x, %1 : f32[N, 6]
      return %2
    }";
    for (limit, expected) in [(96, (1, vec![])), (95, (0, vec![grows("w", 96)]))] {
        let limits =
            FoldConstants { max_growth_bytes: 4, max_weight_growth_bytes: limit, ..FoldConstants::default() };
        let (_, changes, declined) = after(&limits, weight);
        assert_eq!((changes, declined), expected);
    }
    // What does not grow is folded whatever the limit.
    let same = "graph @same(%x: f32[N, 4]) -> (y: f32[N, 4]) {
      %0 = const [1.0, 2.0, 3.0, 4.0] : f32[4]
      %1 = neg %0 : f32[4]
      %2 = add %x, %1 : f32[N, 4]
      return %2
    }";
    let none = FoldConstants { max_growth_bytes: 0, max_total_growth_bytes: 0, ..FoldConstants::default() };
    assert_eq!(after(&none, same).1, 1);
}

#[test]
fn folding_keeps_to_its_limits_of_operations() {
    let source = "graph @work(%x: f32[N, 4]) -> (y: f32[N, 4]) {
      %0 = const #a : f32[4, 4]
      %1 = const #b : f32[4, 4]
      %2 = matmul %0, %1 : f32[4, 4]  // product
      %3 = matmul %0, %2 : f32[4, 4]  // again
      %4 = matmul %x, %3 : f32[N, 4]
      return %4
    }";
    let fold = |each: u64, total: u64| {
        let limits = FoldConstants { max_flops: each, max_total_flops: total, ..FoldConstants::default() };
        let (_, changes, declined) = after(&limits, source);
        (changes, declined)
    };
    let (changes, declined) = fold(0, u64::MAX);
    assert_eq!((changes, declined.len()), (0, 1), "{declined:?}");
    let each = number_before(&declined[0], "operations");
    assert_eq!(each, 2 * 4 * 4 * 4);
    assert_eq!(fold(each - 1, u64::MAX).0, 0);
    assert_eq!(fold(each, 2 * each), (2, vec![]));
    let (changes, declined) = fold(each, 2 * each - 1);
    assert_eq!((changes, declined.len()), (1, 1), "{declined:?}");
    assert_eq!(number_before(&declined[0], "operations"), 2 * each);
    assert_eq!(fold(each, each - 1).0, 0);
}

#[test]
fn folding_leaves_what_depends_on_inputs_and_symbols_and_what_fails() {
    let source = "graph @leave(%x: f32[N, 4], %i: i64[2]) -> (a: f32[N, 4], b: i64[2], c: f32[2], d: f32[2], e: i64[1]) {
      %0 = const [1.0, 2.0, 3.0] : f32[3]  // table
      %1 = const splat(7) : i64[2]
      %2 = neg %x : f32[N, 4]
      %3 = dims {values = [N, 4]} : i64[2]
      %4 = gather %0, %1 {axis = 0} : f32[2]  // beyond
      %5 = gather %0, %i {axis = 0} : f32[2]
      %6 = dims {values = [4]} : i64[1]
      return %2, %3, %4, %5, %6
    }";
    let (text, changes, declined) = after(&FoldConstants::default(), source);
    assert_eq!(changes, 1, "the extent that is known\n{text}");
    assert!(text.contains("const [4] : i64[1]"), "{text}");
    assert_eq!(declined, ["`beyond`: folding failed: index 7 is outside an axis of 3"]);
}

#[test]
fn folded_weights_keep_their_names() {
    let source = "graph @names(%x: f32[N, 2]) -> (y: f32[N, 2]) {
      %0 = const [1.0, 2.0, 3.0, 4.0] : f32[2, 2]  // fc.weight
      %1 = transpose %0 {perm = [1, 0]} : f32[2, 2]  // fc/Transpose
      %2 = const [1.0, 2.0] : f32[2]  // scale
      %3 = mul %1, %2 : f32[2, 2]  // fc/Mul
      %4 = matmul %x, %3 : f32[N, 2]
      return %4
    }";
    let (text, ..) = after(&FoldConstants::default(), source);
    assert!(text.contains("const [1.0, 6.0, 2.0, 8.0] : f32[2, 2]  // fc/Mul"), "{text}");
    let one = source.replace("%3 = mul %1, %2", "%3 = transpose %1 {perm = [1, 0]}");
    let (text, ..) = after(&FoldConstants::default(), &one);
    assert!(text.contains("const [1.0, 2.0, 3.0, 4.0] : f32[2, 2]  // fc.weight"), "{text}");
}

#[test]
fn bindings_that_leave_symbols_open_or_do_not_fit_are_refused() {
    let source = "graph @open(%x: f32[N, M, 4]) -> (y: f32[N, 2, 4]) {
      %0 = slice %x {starts = [0, 0, 0], ends = [N, 2, 4], steps = [1, 1, 1]} : f32[N, 2, 4]  // cut
      return %0
    }";
    let bind = |list: &[(&str, i64)]| BindDims {
        binding: list.iter().map(|(s, v)| ((*s).into(), *v)).collect::<Binding>(),
    };
    assert_eq!(refused(&bind(&[]), source), "dimensions without a value: `N`, `M`");
    assert_eq!(refused(&bind(&[("N", 1)]), source), "dimensions without a value: `M`");
    let outside = "axis 1: `0` to `2` by 1 does not lie in the extent `1`";
    let message = refused(&bind(&[("N", 3), ("M", 1)]), source);
    assert_eq!(message, format!("with M = 1, N = 3, at `cut`: `slice`: {outside}"));
    let (text, changes, _) = after(&bind(&[("N", 3), ("M", 2), ("K", 9)]), source);
    assert_eq!(changes, 2);
    assert!(text.contains("%x: f32[3, 2, 4]") && text.contains("ends = [3, 2, 4]"), "{text}");
}

const PARAMETERS: &str = "graph @parameters(%x: f32[N, 2], %b: f32[2]) -> (y: f32[N, 2], i: i64[2]) {
  %0 = const [1.0, 2.0] : f32[2]  // w
  %1 = mul %x, %0 : f32[N, 2]
  %2 = const [3.0, 4.0] : f32[2]  // w
  %3 = mul %1, %2 : f32[N, 2]
  %4 = const [5.0, 6.0] : f32[2]  // b
  %5 = add %3, %4 : f32[N, 2]
  %6 = const [7.0, 8.0] : f32[2]
  %7 = add %5, %6 : f32[N, 2]
  %8 = const [9.0, 10.0] : f32[2]  // w left
  %9 = add %7, %8 : f32[N, 2]
  %10 = add %9, %b : f32[N, 2]
  %11 = const [1, 2] : i64[2]  // ids
  return %10, %11
}";

#[test]
fn parameters_have_names_of_their_own() {
    let g = graph(PARAMETERS);
    let names: Vec<String> = parameter_names(&g).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["w", "w#2", "b#2", "constant", "w left"]);
    let train = |names: &[&str]| MakeTrainable { names: names.iter().map(|n| (*n).to_string()).collect() };
    for name in ["ids", "w#3", "left"] {
        let expected = format!("the model has no constant of floats `{name}`");
        assert_eq!(refused(&train(&[name]), PARAMETERS), expected);
    }
    // A name given twice is one parameter, and one of an input is there already.
    let (text, changes, _) = after(&train(&["w#2", "w#2", "b", "w left"]), PARAMETERS);
    assert_eq!(changes, 2);
    let inputs = "(%x: f32[N, 2], %b: f32[2], %\"w#2\": f32[2], %\"w left\": f32[2])";
    assert!(text.contains(inputs), "{text}");
    let mut trained = graph(PARAMETERS);
    train(&["w#2"]).run(&mut trained, &mut Cx::default()).unwrap();
    let left: Vec<String> = parameter_names(&trained).into_iter().map(|(_, name)| name).collect();
    assert_eq!(left, ["w", "b#2", "constant", "w left"], "the others keep their names");
}

#[test]
fn other_contents_are_put_where_they_belong() {
    let g = graph(PARAMETERS);
    let row = |values: [f32; 2]| Tensor::from_slice(&[2], &values).unwrap();
    let changed = [("w#2".to_string(), row([30.0, 40.0])), ("constant".to_string(), row([0.0, 1.0]))];
    let new = with_parameters(&g, &changed).unwrap();
    let expected = g.to_string().replace("[3.0, 4.0]", "[30.0, 40.0]").replace("[7.0, 8.0]", "[0.0, 1.0]");
    assert_eq!(new.to_string(), expected);
    let refused = |name: &str, t: Tensor| with_parameters(&g, &[(name.into(), t)]).unwrap_err().to_string();
    assert_eq!(refused("ids", row([0.0, 0.0])), "the model has no constant of floats `ids`");
    let long = Tensor::zeros(DType::F32, &[3]).unwrap();
    assert_eq!(refused("w", long), "constant `w`: expected f32[2], found f32[3]");
    let wide = Tensor::zeros(DType::F64, &[2]).unwrap();
    assert_eq!(refused("w", wide), "constant `w`: expected f32[2], found f64[2]");
}

#[test]
fn derivatives_of_what_is_no_number_are_refused_and_of_what_is_not_connected_zero() {
    let source = "graph @d(%x: f32[2, 3], %i: i64[2], %z: f32[4]) -> (y: f32, n: i64[2], u: f32[4]) {
      %0 = const [1.0, 2.0, 3.0] : f32[3]  // w
      %1 = mul %x, %0 : f32[2, 3]
      %2 = reduce %1 {kind = sum, axes = [0, 1]} : f32
      %3 = neg %i : i64[2]
      %4 = neg %z : f32[4]
      return %2, %3, %4
    }";
    let by = |output: &str, names: &[&str]| Differentiate {
        output: output.into(),
        by: names.iter().map(|n| (*n).to_string()).collect(),
    };
    assert_eq!(refused(&by("n", &["x"]), source), "the output `n` is i64[2], not of floats");
    assert_eq!(refused(&by("y", &["i"]), source), "`i` is i64[2], which has no derivatives");
    let mut g = graph(source);
    by("y", &["w", "z"]).run(&mut g, &mut Cx::default()).unwrap();
    let x = Tensor::from_slice(&[2, 3], &[1f32, 2.0, 3.0, 10.0, 20.0, 30.0]).unwrap();
    let (i, z) = (Tensor::zeros(DType::I64, &[2]).unwrap(), Tensor::zeros(DType::F32, &[4]).unwrap());
    let found = eval::run(&g, &[("x", &x), ("i", &i), ("z", &z)]).unwrap();
    assert_eq!(found[3].to_vec::<f32>().unwrap(), [11.0, 22.0, 33.0]);
    assert_eq!(found[4].to_vec::<f32>().unwrap(), [0.0; 4]);
    // A second time adds what is missing and nothing else.
    let text = g.to_string();
    assert_eq!(by("y", &["w"]).run(&mut g, &mut Cx::default()), Ok(Changed::No));
    assert_eq!(g.to_string(), text);
    by("y", &["w", "x"]).run(&mut g, &mut Cx::default()).unwrap();
    let names: Vec<&str> = g.outputs().iter().map(|o| &*o.name).collect();
    assert_eq!(names, ["y", "n", "u", "gradient.w", "gradient.z", "gradient.x"]);
    assert!(text::parse(&g.to_string(), &|_, _| None).is_ok());
}

/// How many nodes are computed twice under a limit, and the graph then.
fn recomputed(max_saved_bytes: u64, forward: &str, backward: &str) -> (usize, String) {
    let source = format!(
        "graph @step(%x: f32[8, 4], %w: f32[4, 4], %v: f32[4, 4]) -> (y: f32[8, 4], d: f32[8, 4]) {{
           {forward}
           {backward}
           return %0, %9
         }}"
    );
    let (text, changes, _) = after(&Recompute { max_saved_bytes }, &source);
    (changes, text)
}

/// Bytes of f32\[8, 4\].
const SAVED: u64 = 128;

#[test]
fn what_the_backward_pass_does_not_read_is_not_computed_again() {
    let backward = "%9 = mul %x, %x : f32[8, 4]  // d gradient";
    assert_eq!(recomputed(0, "%0 = exp %x : f32[8, 4]  // a", backward).0, 0);
    // What an update reads besides derivatives is no part of the forward pass.
    let moments = "%8 = exp %x : f32[8, 4]  // moments
        %7 = mul %x, %x : f32[8, 4]  // d gradient
        %9 = add %7, %8 : f32[8, 4]  // update";
    assert_eq!(recomputed(0, "%0 = neg %x : f32[8, 4]", moments).0, 0);
}

#[test]
fn limits_are_met_exactly_and_the_first_of_equals_goes() {
    let forward = "%0 = exp %x : f32[8, 4]  // a
        %1 = exp %0 : f32[8, 4]  // b
        %2 = exp %x : f32[8, 4]  // c";
    let backward = "%8 = mul %1, %2 : f32[8, 4]  // d gradient
        %9 = mul %8, %0 : f32[8, 4]  // d gradient";
    assert_eq!(recomputed(3 * SAVED, forward, backward).0, 0);
    let (changes, text) = recomputed(3 * SAVED - 1, forward, backward);
    assert_eq!(changes, 1);
    assert!(text.contains("exp %x : f32[8, 4]  // a gradient"), "{text}");
    let (changes, text) = recomputed(2 * SAVED - 1, forward, backward);
    assert_eq!(changes, 2);
    assert!(text.contains("// b gradient") && !text.contains("// c gradient"), "{text}");
    assert_eq!(recomputed(SAVED - 1, forward, backward).0, 3);
}

#[test]
fn cheap_values_go_before_products_that_free_more_for_an_operation() {
    let source = "graph @step(%x: f32[8, 1], %w: f32[1, 64], %z: f32[8, 4]) -> (y: f32[8, 64], d: f32[8, 64], e: f32[8, 4]) {
      %0 = matmul %x, %w : f32[8, 64]  // fc
      %1 = tanh %z : f32[8, 4]  // act
      %2 = mul %0, %0 : f32[8, 64]  // d gradient
      %3 = mul %1, %1 : f32[8, 4]  // e gradient
      return %0, %2, %3
    }";
    let (fc, act) = (4 * 8 * 64, 4 * 8 * 4);
    let run = |max_saved_bytes: u64| after(&Recompute { max_saved_bytes }, source);
    assert_eq!(run(fc + act).1, 0);
    let (text, changes, _) = run(fc + act - 1);
    assert_eq!(changes, 1);
    assert!(
        text.contains("tanh %z : f32[8, 4]  // act gradient") && !text.contains("// fc gradient"),
        "{text}"
    );
    let (text, changes, _) = run(fc - 1);
    assert_eq!(changes, 2);
    assert!(text.contains("matmul %x, %w : f32[8, 64]  // fc gradient"), "{text}");
}

#[test]
fn what_would_keep_more_than_it_frees_is_kept() {
    // The sum again asks for two products: as cheap values they would be kept, as dear ones they are computed again.
    let forward = "%1 = matmul %x, %w : f32[8, 4]  // one
        %2 = matmul %x, %v : f32[8, 4]  // two
        %0 = add %1, %2 : f32[8, 4]  // sum";
    let backward = "%9 = mul %0, %0 : f32[8, 4]  // d gradient";
    assert_eq!(recomputed(SAVED, forward, backward).0, 0);
    let (changes, text) = recomputed(SAVED - 1, forward, backward);
    assert_eq!(changes, 3);
    assert!(["one", "two", "sum"].iter().all(|name| text.contains(&format!("// {name} gradient"))), "{text}");
    // With one of them kept anyway, the other one takes as much as the sum gives, and the product goes first.
    let both = "%8 = mul %1, %1 : f32[8, 4]  // d gradient
        %9 = mul %0, %8 : f32[8, 4]  // d gradient";
    assert_eq!(recomputed(2 * SAVED, forward, both).0, 0);
    let (changes, text) = recomputed(2 * SAVED - 1, forward, both);
    assert_eq!(changes, 1);
    assert!(text.contains("// one gradient") && !text.contains("// two gradient"), "{text}");
    assert_eq!(recomputed(SAVED - 1, forward, both).0, 3);
}

#[test]
fn operands_that_are_kept_are_read_and_others_computed_again() {
    let forward = "%1 = exp %x : f32[8, 4]  // a
        %0 = neg %1 : f32[8, 4]  // b";
    let one = "%9 = mul %0, %0 : f32[8, 4]  // d gradient";
    assert_eq!(recomputed(0, forward, one).0, 2);
    let both = "%8 = mul %1, %1 : f32[8, 4]  // d gradient
        %9 = mul %0, %8 : f32[8, 4]  // d gradient";
    let (changes, text) = recomputed(SAVED, forward, both);
    assert_eq!(changes, 1);
    assert!(text.contains("// b gradient") && !text.contains("// a gradient"), "{text}");
}

#[test]
fn views_show_memory_that_is_kept_once() {
    let forward = "%0 = exp %x : f32[8, 4]  // a
        %1 = reshape %0 {shape = [4, 8]} : f32[4, 8]  // view";
    let backward = "%7 = mul %1, %1 : f32[4, 8]  // d gradient
        %8 = reshape %7 {shape = [8, 4]} : f32[8, 4]  // d gradient
        %9 = mul %8, %0 : f32[8, 4]  // d gradient";
    assert_eq!(recomputed(SAVED, forward, backward).0, 0);
    let (changes, text) = recomputed(SAVED - 1, forward, backward);
    assert_eq!(changes, 1);
    assert!(text.contains("// a gradient") && text.contains("// view gradient"), "{text}");
}

#[test]
fn operators_of_several_results_are_not_computed_again() {
    let source = "graph @step(%q: f32[1, 2, 5, 4]) -> (l: f32[1, 2, 5], d: f32[1, 2, 5, 4]) {
      %0 = attention %q, %q, %q {scale = 0.5, log_sum_exp = true} : f32[1, 2, 5, 4], f32[1, 2, 5]  // att
      %1 = mul %0, %q : f32[1, 2, 5, 4]  // d gradient
      return %0.1, %1
    }";
    let bytes = 4 * 2 * 5 * 4;
    assert_eq!(after(&Recompute { max_saved_bytes: bytes }, source).1, 0);
    assert_eq!(
        refused(&Recompute { max_saved_bytes: bytes - 1 }, source),
        format!("{} bytes may be kept for the backward pass, expected at least {bytes}", bytes - 1)
    );
}
