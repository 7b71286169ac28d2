//! Two models beside each other: exact errors of small ones, by output and by layer.

use margay_driver::compare::layers;
use margay_driver::{Arrays, ErrorSum, MaskChoice, Named, backend};
use margay_ir::Graph;
use margay_tensor::{DType, Tensor};
use margay_testkit::parse_with_random_constants;

fn graph(source: &str) -> Graph {
    parse_with_random_constants(source).0
}

fn row(values: &[f32]) -> Tensor {
    Tensor::from_slice(&[1, values.len()], values).unwrap()
}

fn named(list: &[(&str, Tensor)]) -> Arrays {
    list.iter().map(|(n, t)| ((*n).to_string(), t.clone())).collect()
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1e-3), "{found}, expected {expected}");
}

#[test]
fn errors_are_sums_over_outputs_and_runs() {
    let mut sum = ErrorSum::default();
    let ids = Tensor::from_slice(&[1], &[1i64]).unwrap();
    let first = [("a", row(&[3.0, 0.0])), ("ids", ids.clone()), ("b", row(&[0.0, 4.0]))];
    let other = Tensor::from_slice(&[1], &[7i64]).unwrap();
    let found = [("b", row(&[0.0, 3.0])), ("a", row(&[3.0, 2.0])), ("ids", other)];
    let inputs = |rows: usize| named(&[("x", Tensor::zeros(DType::F32, &[rows, 4]).unwrap())]);
    sum.add(&inputs(2), &named(&first), &named(&found)).unwrap();
    sum.add(&inputs(3), &named(&[("a", row(&[12.0]))]), &named(&[("a", row(&[10.0]))])).unwrap();
    let measure = sum.measure();
    // Squares: 9 + 16 + 144 of the reference, 4 + 9 + 9 + 100 found, 4 + 1 + 4 apart; products 9 + 12 + 120.
    near(measure.relative_l2, (9.0f64 / 169.0).sqrt());
    near(measure.cosine, 141.0 / (169.0f64 * 122.0).sqrt());
    assert_eq!((measure.samples, sum.max_abs()), (5, 2.0));
    let of: Vec<(&str, f64)> = measure.outputs.iter().map(|o| (o.name.as_str(), o.max_abs)).collect();
    assert_eq!(of, [("a", 2.0), ("b", 1.0)]);
}

#[test]
fn errors_of_nothing_and_of_what_is_no_number() {
    let measured = |reference: &[f32], found: &[f32]| {
        let mut sum = ErrorSum::default();
        sum.add(&[], &named(&[("y", row(reference))]), &named(&[("y", row(found))])).unwrap();
        (sum.measure().relative_l2, sum.measure().cosine, sum.max_abs(), sum.is_finite())
    };
    assert_eq!(measured(&[0.0, 0.0], &[0.0, 0.0]), (0.0, 1.0, 0.0, true));
    assert_eq!(measured(&[0.0], &[1.0]).0, f64::INFINITY);
    let (relative, _, largest, finite) = measured(&[1.0, 2.0, 3.0], &[1.0, f32::NAN, 9.0]);
    assert!(relative == f64::INFINITY && largest.is_nan() && !finite);
}

#[test]
fn outputs_that_do_not_correspond_are_refused() {
    let refused = |reference: &[(&str, Tensor)], found: &[(&str, Tensor)]| {
        ErrorSum::default().add(&[], &named(reference), &named(found)).unwrap_err().to_string()
    };
    let wide = Tensor::from_slice(&[1, 1], &[1f64]).unwrap();
    let of = |other: &str| format!("output `y` is f32[1, 1] in the reference and {other} in the other model");
    assert_eq!(refused(&[("y", row(&[1.0]))], &[("z", row(&[1.0]))]), of("absent"));
    assert_eq!(refused(&[("y", row(&[1.0]))], &[("y", row(&[1.0, 2.0]))]), of("f32[1, 2]"));
    assert_eq!(refused(&[("y", row(&[1.0]))], &[("y", wide)]), of("f64[1, 1]"));
    let ids = Tensor::zeros(DType::I64, &[1]).unwrap();
    let expected = "the model has no floating point output to compare";
    assert_eq!(refused(&[("ids", ids.clone())], &[("ids", ids)]), expected);
}

/// Two layers; the first one of the other model is made of two nodes of one name.
const REFERENCE: &str = "graph @net(%x: f32[N, 2]) -> (y: f32[N, 2]) {
  %0 = const [1.0, 0.0, 0.0, 2.0] : f32[2, 2]  // a.weight
  %1 = matmul %x, %0 : f32[N, 2]  // a
  %2 = const [1.0, 1.0, 0.0, 1.0] : f32[2, 2]  // b.weight
  %3 = matmul %1, %2 : f32[N, 2]  // b
  return %3
}";

const OTHER: &str = "graph @net(%x: f32[N, 2]) -> (y: f32[N, 2]) {
  %0 = const [1.0, 0.0, 0.0, 1.0] : f32[2, 2]  // a.weight
  %1 = matmul %x, %0 : f32[N, 2]  // a
  %2 = const [1.0, 5.0] : f32[2]  // a.scale
  %3 = mul %1, %2 : f32[N, 2]  // a
  %4 = const [1.0, 1.0, 0.0, 0.5] : f32[2, 2]  // b.weight
  %5 = matmul %3, %4 : f32[N, 2]  // b
  return %5
}";

#[test]
fn layers_are_compared_at_the_last_value_of_their_name_alone_and_behind_each_other() {
    let inputs = named(&[("x", row(&[3.0, 1.0]))]);
    let found =
        layers(&graph(REFERENCE), &graph(OTHER), &[inputs], &MaskChoice::Default, &backend::native(), 1)
            .unwrap();
    let names: Vec<&str> = found.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    // a: [3, 2] and [3, 5]. b of the reference's a: [3, 5] and [3, 4]; of the other's a: [3, 5.5].
    near(found[0].cumulative, (9.0f64 / 13.0).sqrt());
    near(found[0].isolated, (9.0f64 / 13.0).sqrt());
    near(found[1].isolated, (1.0f64 / 34.0).sqrt());
    near(found[1].cumulative, (0.25f64 / 34.0).sqrt());
}

#[test]
fn layers_of_one_name_only_and_of_other_types_are_passed_over() {
    let other = OTHER.replace("// b\n", "// c\n");
    let inputs = named(&[("x", row(&[3.0, 1.0]))]);
    let found = layers(
        &graph(REFERENCE),
        &graph(&other),
        std::slice::from_ref(&inputs),
        &MaskChoice::Default,
        &backend::native(),
        1,
    )
    .unwrap();
    assert_eq!(found.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let other = "graph @net(%x: f32[N, 2]) -> (y: f32[N, 1]) {
      %0 = const [1.0, 0.0] : f32[2, 1]  // a.weight
      %1 = matmul %x, %0 : f32[N, 1]  // a
      return %1
    }";
    assert!(
        layers(
            &graph(REFERENCE),
            &graph(other),
            std::slice::from_ref(&inputs),
            &MaskChoice::Default,
            &backend::native(),
            1
        )
        .unwrap()
        .is_empty()
    );
}

/// A layer with a factor and a bias as nodes of its own, and what reads it.
const SPELLED: &str = "graph @net(%x: f32[N, 2]) -> (y: f32[N, 2]) {
  %0 = const [1.0, 0.0, 0.0, 2.0] : f32[2, 2]  // a.weight
  %1 = matmul %x, %0 : f32[N, 2]  // a
  %2 = const [0.5, 0.5] : f32[2]  // a.scale
  %3 = mul %1, %2 : f32[N, 2]  // a_1
  %4 = const [9.0, 9.0] : f32[2]  // a.bias
  %5 = add %3, %4 : f32[N, 2]  // a_2
  %6 = relu %5 : f32[N, 2]  // b
  return %6
}";

#[test]
fn a_layer_is_the_same_place_however_its_bias_is_written() {
    let alone = SPELLED.replace("// a_1", "// a").replace("// a_2", "// a");
    let runs = [named(&[("x", row(&[3.0, 1.0]))]), named(&[("x", row(&[2.0, 5.0]))])];
    for (reference, other) in [(SPELLED, alone.as_str()), (&alone, SPELLED), (SPELLED, SPELLED)] {
        let (a, b) = (graph(reference), graph(other));
        let found = layers(&a, &b, &runs, &MaskChoice::Default, &backend::native(), 1).unwrap();
        let found: Vec<(&str, f64, f64)> =
            found.iter().map(|l| (l.name.as_str(), l.isolated, l.cumulative)).collect();
        assert_eq!(found, [("a", 0.0, 0.0), ("b", 0.0, 0.0)]);
        // What a node computes has its twin behind as many constants.
        let twins = Named::of(&a);
        let twin = |name: &str| {
            let n = b.order().into_iter().find(|n| b.node(*n).origin.names.iter().any(|o| **o == *name))?;
            twins.twin(&a, &b, n).map(|v| a.op(v.node).name())
        };
        assert_eq!((twin("a"), twin("b")), (Some("matmul"), Some("relu")));
    }
}

#[test]
fn layers_are_compared_over_all_runs() {
    let other = SPELLED.replace("[9.0, 9.0]", "[10.0, 9.0]");
    let run = |x: &[f32]| named(&[("x", row(x))]);
    let (near_zero, large) = (run(&[0.0, 0.0]), run(&[20.0, -9.0]));
    let errors = |runs: &[Arrays]| {
        layers(&graph(SPELLED), &graph(&other), runs, &MaskChoice::Default, &backend::native(), 1).unwrap()[0]
            .cumulative
    };
    near(errors(std::slice::from_ref(&near_zero)), (1.0f64 / 162.0).sqrt());
    near(errors(&[near_zero, large]), (2.0f64 / (162.0 + 19.0 * 19.0)).sqrt());
}
