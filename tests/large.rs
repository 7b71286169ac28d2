//! Models of very many nodes: time grows with their number and not with its square, and what is too much is refused with a
//! limit.

use std::path::Path;
use std::time::Instant;

use margay::{Check, check, export_graph};
use margay_ir::ops::{Add, Concat, Exp, MatMul, Mul, Neg, Relu, Slice, Softmax, Tanh};
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value};
use margay_tensor::{DType, Tensor};

fn add(g: &mut Graph, op: impl Into<Op>, inputs: &[Value]) -> Value {
    let name = format!("node {}", g.len());
    g.add(op, inputs, Origin::named(&name)).unwrap()
}

/// A constant unlike all others.
fn constant(g: &mut Graph, shape: &[usize]) -> Value {
    let number = g.len() as f32;
    let numbers = vec![number; shape.iter().product()];
    let payload = Payload::new(Tensor::from_slice(shape, &numbers).unwrap());
    add(g, margay_ir::ops::Const { payload }, &[])
}

/// Adds about so many nodes behind a value; the results.
type Grow = fn(&mut Graph, Value, usize) -> Vec<Value>;

fn cheap(g: &mut Graph, mut x: Value, nodes: usize) -> Vec<Value> {
    for i in 0..nodes {
        x = if i % 2 == 0 { add(g, Relu, &[x]) } else { add(g, Neg, &[x]) };
    }
    vec![x]
}

fn unfused(g: &mut Graph, mut x: Value, nodes: usize) -> Vec<Value> {
    for i in 0..nodes {
        x = if i % 2 == 0 { add(g, Softmax { axis: 1 }, &[x]) } else { add(g, Tanh, &[x]) };
    }
    vec![x]
}

/// A step for every node.
fn apart(g: &mut Graph, mut x: Value, nodes: usize) -> Vec<Value> {
    for _ in 0..nodes {
        x = add(g, Softmax { axis: 1 }, &[x]);
    }
    vec![x]
}

fn products(g: &mut Graph, mut x: Value, nodes: usize) -> Vec<Value> {
    for _ in 0..nodes / 2 {
        let weight = constant(g, &[4, 4]);
        x = add(g, MatMul, &[x, weight]);
    }
    vec![x]
}

/// One value that very many read, and as many outputs.
fn outputs(g: &mut Graph, x: Value, nodes: usize) -> Vec<Value> {
    let scaled = |g: &mut Graph| {
        let scale = constant(g, &[4]);
        add(g, Mul, &[x, scale])
    };
    (0..nodes / 2).map(|_| scaled(g)).collect()
}

/// The same, summed again.
fn fan(g: &mut Graph, x: Value, nodes: usize) -> Vec<Value> {
    let all = outputs(g, x, nodes / 3 * 2);
    vec![all.into_iter().reduce(|a, b| add(g, Add, &[a, b])).unwrap()]
}

fn halves(g: &mut Graph, mut x: Value, nodes: usize) -> Vec<Value> {
    let half = |start: usize| Slice {
        starts: vec![0usize.into(), start.into()],
        ends: vec![2usize.into(), (start + 2).into()],
        steps: vec![1, 1],
    };
    for _ in 0..nodes / 4 {
        let parts = [0, 2].map(|start| add(g, half(start), &[x]));
        let parts = [add(g, Exp, &[parts[1]]), parts[0]];
        x = add(g, Concat { axis: 1 }, &parts);
    }
    vec![x]
}

/// Seconds for which this thread has run, which other programs do not add to; where the system does not say, by the clock.
fn seconds_run(begin: Instant) -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let run = told.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    run.map_or(begin.elapsed().as_secs_f64(), |nanoseconds| nanoseconds * 1e-9)
}

/// What is found of a model, and the seconds that it took.
fn checked(path: &Path, grow: Grow, nodes: usize) -> (Check, f64) {
    let mut g = Graph::new("large");
    let x = g.add_input("x", TensorType::known(DType::F32, &[2, 4]));
    for (i, y) in grow(&mut g, x, nodes).into_iter().enumerate() {
        g.add_output(&format!("y{i}"), y);
    }
    export_graph(&g, None, path).unwrap();
    let begin = Instant::now();
    let before = seconds_run(begin);
    let found = check(path, &[], &[]).unwrap();
    (found, seconds_run(begin) - before)
}

#[test]
fn time_grows_with_the_number_of_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.onnx");
    let kinds: [(&str, Grow); 6] = [
        ("cheap", cheap),
        ("unfused", unfused),
        ("products", products),
        ("outputs", outputs),
        ("fan", fan),
        ("halves", halves),
    ];
    let (few, times) = (2500, 8);
    for (name, grow) in kinds {
        let least = |nodes: usize| {
            let seconds = (0..2).map(|_| {
                let (found, seconds) = checked(&path, grow, nodes);
                assert!(found.supported, "{name}: {:?}", found.problems);
                seconds
            });
            seconds.fold(f64::INFINITY, f64::min)
        };
        let (short, long) = (least(few), least(few * times));
        // What is linear takes 8 times as long; what is not, 64 times in the end.
        assert!(long < 2.2 * times as f64 * short, "{name}: {short:.3} s, {times} times as many {long:.3} s");
    }
}

#[test]
fn a_program_of_too_many_steps_is_refused_with_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let (found, _) = checked(&folder.path().join("large.onnx"), apart, 132_000);
    let messages: Vec<&str> = found.problems.iter().map(|p| p.message.as_str()).collect();
    assert_eq!(messages.len(), 1, "{messages:?}");
    let expected = "the program has more than 131072 steps, the most that are compiled; at `node 131";
    assert!(messages[0].starts_with(expected), "{messages:?}");
    assert!(found.layers.is_some());
}
