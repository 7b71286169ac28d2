//! Graphs with states: outputs that are inputs of the next run, updated in place where that is safe.

use margay_driver::backend;
use margay_driver::build::{CompiledStep, StepForm, jit_step, try_compile};
use margay_ir::Graph;
use margay_loops::{Carried, Precision, Work};
use margay_lower::lower_carrying;
use margay_runtime::{RunError, Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::parse_with_random_constants;

fn graph(source: &str) -> Graph {
    parse_with_random_constants(source).0
}

fn session(source: &str, states: &[(&str, &str)], threads: usize) -> Session {
    Session::new(&step(source, states).unwrap().executable, SessionOptions { threads }).unwrap()
}

fn step(source: &str, states: &[(&str, &str)]) -> Result<CompiledStep, String> {
    let states = states.iter().map(|(i, o)| ((*i).into(), (*o).into())).collect();
    let form = StepForm { states, max_saved_bytes: None };
    jit_step(&graph(source), &[Binding::new()].into(), &*backend::native(), &form).map_err(|e| e.to_string())
}

fn row(values: &[f32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.to_vec().unwrap()
}

const MEAN: &str = "graph @mean(%x: f32[4], %sum: f32[4], %count: f32[]) -> (mean: f32[4], next.sum: f32[4], next.count: f32[]) {
  %0 = add %sum, %x : f32[4]  // sum
  %1 = const 1 : f32[]
  %2 = add %count, %1 : f32[]  // count
  %3 = div %0, %2 : f32[4]  // mean
  return %3, %0, %2
}";

#[test]
fn a_state_holds_what_the_last_run_left() {
    let mut s = session(MEAN, &[("sum", "next.sum"), ("count", "next.count")], 2);
    assert_eq!(s.states().collect::<Vec<_>>(), ["sum", "count"]);
    for (i, expected) in [1.0f32, 1.5, 2.0].into_iter().enumerate() {
        let x = row(&[(i + 1) as f32; 4]);
        let outputs = s.run(&[("x", &x)]).unwrap();
        assert_eq!(outputs.len(), 1, "states are not returned");
        assert_eq!((outputs[0].0.as_str(), numbers(&outputs[0].1)), ("mean", vec![expected; 4]));
    }
    assert_eq!(numbers(&s.state("sum").unwrap()), [6.0; 4]);
    s.set_state("count", &Tensor::scalar(9.0f32)).unwrap();
    assert_eq!(numbers(&s.run(&[("x", &row(&[4.0; 4]))]).unwrap()[0].1), [1.0; 4]);
}

#[test]
fn states_of_other_types_and_names_are_refused() {
    let mut s = session(MEAN, &[("sum", "next.sum"), ("count", "next.count")], 1);
    let message = |r: Result<(), RunError>| r.unwrap_err().to_string();
    assert_eq!(message(s.set_state("sum", &row(&[0.0; 5]))), "state `sum` is f32[4], found f32[5]");
    assert_eq!(message(s.set_state("total", &row(&[0.0]))), "there is no state `total`");
    assert!(s.state("x").is_err());
    let given = s.run(&[("x", &row(&[0.0; 4])), ("sum", &row(&[0.0; 4]))]).unwrap_err();
    assert_eq!(given.to_string(), "inputs do not fit: `sum` is not an input, expected `x`");
    let message = |states: &[(&str, &str)]| step(MEAN, states).err().unwrap();
    assert_eq!(message(&[("x", "next.x")]), "the graph has no output `next.x`");
    assert_eq!(message(&[("y", "next.sum")]), "the graph has no input `y`");
    assert_eq!(
        message(&[("sum", "next.count")]),
        "output `next.count` is f32; the input it is carried to is f32[4]"
    );
    try_compile(&graph(MEAN), &Binding::new()).unwrap();
}

/// Each state becomes the other one: neither may be overwritten before it was read.
#[test]
fn states_that_exchange_places_keep_their_contents() {
    let source = "graph @swap(%a: f32[3], %b: f32[3]) -> (next.a: f32[3], next.b: f32[3]) {
      return %b, %a
    }";
    let mut s = session(source, &[("a", "next.a"), ("b", "next.b")], 1);
    s.set_state("a", &row(&[1.0, 2.0, 3.0])).unwrap();
    s.set_state("b", &row(&[4.0, 5.0, 6.0])).unwrap();
    s.run(&[]).unwrap();
    assert_eq!(numbers(&s.state("a").unwrap()), [4.0, 5.0, 6.0]);
    assert_eq!(numbers(&s.state("b").unwrap()), [1.0, 2.0, 3.0]);
}

/// Readers that see the state at other positions than the ones being written: a product, a reversal, a sum of the whole.
#[test]
fn a_state_is_not_overwritten_while_it_is_read() {
    let cases = [
        ("%0 = matmul %s, %x : f32[3, 3]", [[3.0f32, 3.0, 3.0], [12.0, 12.0, 12.0], [21.0, 21.0, 21.0]]),
        (
            "%0 = transpose %s {perm = [1, 0]} : f32[3, 3]",
            [[0.0, 3.0, 6.0], [1.0, 4.0, 7.0], [2.0, 5.0, 8.0]],
        ),
        (
            "%1 = reduce %s {kind = sum, axes = [0], keepdims = true} : f32[1, 3]
             %0 = add %s, %1 : f32[3, 3]",
            [[9.0, 13.0, 17.0], [12.0, 16.0, 20.0], [15.0, 19.0, 23.0]],
        ),
        (
            "%1 = matmul %x, %x : f32[3, 3]
             %0 = add %1, %s : f32[3, 3]",
            [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0], [9.0, 10.0, 11.0]],
        ),
    ];
    for (body, expected) in cases {
        let source = format!(
            "graph @g(%x: f32[3, 3], %s: f32[3, 3]) -> (next.s: f32[3, 3]) {{
               {body}
               return %0
             }}"
        );
        let mut s = session(&source, &[("s", "next.s")], 2);
        let counted: Vec<f32> = (0..9).map(|i| i as f32).collect();
        s.set_state("s", &Tensor::from_slice(&[3, 3], &counted).unwrap()).unwrap();
        s.run(&[("x", &Tensor::from_slice(&[3, 3], &[1.0f32; 9]).unwrap())]).unwrap();
        assert_eq!(numbers(&s.state("s").unwrap()), expected.concat(), "{body}");
    }
}

#[test]
fn an_update_of_moments_and_parameters_copies_nothing() {
    let source =
        "graph @momentum(%x: f32[64], %w: f32[64], %m: f32[64]) -> (next.w: f32[64], next.m: f32[64]) {
      %0 = mul %x, %w : f32[64]  // gradient
      %1 = const 0.9 : f32[]
      %2 = mul %m, %1 : f32[64]  // decay
      %3 = add %2, %0 : f32[64]  // m
      %4 = const 0.01 : f32[]
      %5 = mul %3, %4 : f32[64]  // step
      %6 = sub %w, %5 : f32[64]  // w
      return %6, %3
    }";
    let carried = [Carried { input: 1, output: 0 }, Carried { input: 2, output: 1 }];
    let program = lower_carrying(
        &graph(source),
        &*backend::named("cpu", "x86-64-v4", Precision::F32).unwrap(),
        &carried,
    )
    .unwrap();
    assert_eq!(program.body.len(), 2, "{program}");
    assert!(program.body.iter().all(|s| matches!(s.work, Work::Kernel { .. })));
    assert_eq!(program.arena_bytes, 0, "{program}");
}
