//! Entries for ranges of extents: every value is served, with the bits of an entry for that very value and the numbers of
//! the evaluated graph, by every class of processors and by the reference back end.

use std::collections::BTreeSet;

use margay_artifact::{Artifact, ArtifactBuilder};
use margay_driver::range::{Form, add_entries, programs};
use margay_driver::{CompileOptions, Dump, Model, Silent, backend, build, compile};
use margay_ir::{Graph, eval};
use margay_loops::{Backend, Precision, Program, parse_program};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::{Tolerance, assert_close, normal, parse_with_random_constants};

/// An encoder with positions from a table, a mask, attention as it is written out, and views of everything.
const ENCODER: &str = "graph @encoder(%x: f32[B, S, 16], %m: f32[B, S]) -> (y: f32[B, S, 16], mean: f32[B, 16], both: f32[B, 2*S, 16], places: i64[S]) {
  %0 = const #table : f32[64, 16]
  %1 = slice %0 {starts = [0, 0], ends = [S, 16], steps = [1, 1]} : f32[S, 16]
  %2 = add %x, %1 : f32[B, S, 16]
  %3 = const #scale : f32[16]
  %4 = const #shift : f32[16]
  %5 = layer_norm %2, %3, %4 {axis = 2, epsilon = 1e-5} : f32[B, S, 16]
  %6 = const #weight : f32[16, 16]
  %7 = matmul %5, %6 : f32[B, S, 16]
  %8 = reshape %7 {shape = [B, S, 4, 4]} : f32[B, S, 4, 4]
  %9 = transpose %8 {perm = [0, 2, 1, 3]} : f32[B, 4, S, 4]
  %10 = transpose %8 {perm = [0, 2, 3, 1]} : f32[B, 4, 4, S]
  %11 = matmul %9, %10 : f32[B, 4, S, S]
  %12 = reshape %m {shape = [B, 1, 1, S]} : f32[B, 1, 1, S]
  %13 = add %11, %12 : f32[B, 4, S, S]
  %14 = softmax %13 {axis = 3} : f32[B, 4, S, S]
  %15 = matmul %14, %9 : f32[B, 4, S, 4]
  %16 = transpose %15 {perm = [0, 2, 1, 3]} : f32[B, S, 4, 4]
  %17 = reshape %16 {shape = [B, S, 16]} : f32[B, S, 16]
  %18 = gelu %17 : f32[B, S, 16]
  %19 = reduce %18 {kind = mean, axes = [1]} : f32[B, 16]
  %20 = concat %18, %x {axis = 1} : f32[B, 2*S, 16]
  %21 = range {start = 0, step = 1, count = S} : i64[S]
  return %18, %19, %20, %21
}";

/// Functions of rows and reductions along open axes, in both orders.
const ROWS: &str = "graph @rows(%x: f32[S, 5]) -> (y: f32[5, S], most: f32[S], sum: f32[5], flat: f32[5*S], copy: f32[S, 5]) {
  %0 = exp %x : f32[S, 5]
  %1 = transpose %0 {perm = [1, 0]} : f32[5, S]
  %2 = reduce %1 {kind = max, axes = [0]} : f32[S]
  %3 = reduce %x {kind = sum, axes = [0]} : f32[5]
  %4 = reshape %1 {shape = [5*S]} : f32[5*S]
  return %1, %2, %3, %4, %x
}";

/// A step of a decoder, whose keys and values of earlier steps may be none.
const DECODER: &str = "graph @decoder(%x: f32[B, S, 16], %keys: f32[B, 2, past?, 8], %values: f32[B, 2, past?, 8]) -> (y: f32[B, S, 16], keys_next: f32[B, 2, S + past?, 8], values_next: f32[B, 2, S + past?, 8]) {
  %0 = const #query : f32[16, 16]
  %1 = const #key : f32[16, 16]
  %2 = const #value : f32[16, 16]
  %3 = matmul %x, %0 : f32[B, S, 16]
  %4 = reshape %3 {shape = [B, S, 2, 8]} : f32[B, S, 2, 8]
  %5 = transpose %4 {perm = [0, 2, 1, 3]} : f32[B, 2, S, 8]
  %6 = matmul %x, %1 : f32[B, S, 16]
  %7 = reshape %6 {shape = [B, S, 2, 8]} : f32[B, S, 2, 8]
  %8 = transpose %7 {perm = [0, 2, 1, 3]} : f32[B, 2, S, 8]
  %9 = concat %keys, %8 {axis = 2} : f32[B, 2, S + past?, 8]
  %10 = matmul %x, %2 : f32[B, S, 16]
  %11 = reshape %10 {shape = [B, S, 2, 8]} : f32[B, S, 2, 8]
  %12 = transpose %11 {perm = [0, 2, 1, 3]} : f32[B, 2, S, 8]
  %13 = concat %values, %12 {axis = 2} : f32[B, 2, S + past?, 8]
  %14 = transpose %9 {perm = [0, 1, 3, 2]} : f32[B, 2, 8, S + past?]
  %15 = matmul %5, %14 : f32[B, 2, S, S + past?]
  %16 = softmax %15 {axis = 3} : f32[B, 2, S, S + past?]
  %17 = matmul %16, %13 : f32[B, 2, S, 8]
  %18 = transpose %17 {perm = [0, 2, 1, 3]} : f32[B, S, 2, 8]
  %19 = reshape %18 {shape = [B, S, 16]} : f32[B, S, 16]
  return %19, %9, %13
}";

fn graph(text: &str) -> Graph {
    parse_with_random_constants(text).0
}

fn point(values: &[(&str, i64)]) -> Binding {
    values.iter().map(|(s, v)| ((*s).into(), *v)).collect()
}

fn grid(batches: std::ops::RangeInclusive<i64>, lengths: std::ops::RangeInclusive<i64>) -> Vec<Binding> {
    batches.flat_map(|b| lengths.clone().map(move |s| point(&[("B", b), ("S", s)]))).collect()
}

fn lengths(range: std::ops::RangeInclusive<i64>) -> Vec<Binding> {
    range.map(|s| point(&[("S", s)])).collect()
}

/// Inputs for values of the symbols.
fn inputs(g: &Graph, at: &Binding) -> Vec<(String, Tensor)> {
    let ports = g.inputs().iter().enumerate().map(|(i, n)| {
        let shape = g.ty((*n).into()).shape.iter().map(|d| d.eval(at).unwrap() as usize);
        (g.node(*n).origin.name().to_string(), normal(&shape.collect::<Vec<_>>(), 11, i as u64))
    });
    ports.collect()
}

fn borrowed(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(n, t)| (n.as_str(), t)).collect()
}

fn artifact(g: &Graph, points: &[Binding], backend: &dyn Backend) -> Artifact {
    let mut builder = ArtifactBuilder::new(g.name());
    add_entries(&mut builder, g, points, backend, 2, &mut Dump::none()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("range.margay");
    builder.write(&path).unwrap();
    Artifact::open(&path).unwrap()
}

/// Runs a graph for a range at some of its values.
fn check(g: &Graph, points: &[Binding], at: &[Binding], name: &str) {
    let (kind, target) = if name == "reference" { ("reference", "native") } else { ("cpu", name) };
    let backend = backend::named(kind, target, Precision::F32).unwrap();
    let artifact = artifact(g, points, &*backend);
    let executable = backend::load(&artifact, Some(kind)).unwrap();
    let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
    for values in at {
        let given = inputs(g, values);
        let found = session.run(&borrowed(&given)).unwrap();
        let exact = build::jit(g, values, &*backend).unwrap();
        let mut exact = Session::new(&exact, SessionOptions { threads: 1 }).unwrap();
        assert!(found == exact.run(&borrowed(&given)).unwrap(), "{name} at {values:?}: other bits");
        let mut bound = g.clone();
        margay_passes::Pipeline::bind(values, &backend.preferences()).run(&mut bound, &mut |_| ()).unwrap();
        for ((output, found), expected) in found.iter().zip(eval::run(&bound, &borrowed(&given)).unwrap()) {
            assert_close(&format!("{name}, {output} at {values:?}"), found, &expected, Tolerance::REDUCTION);
        }
    }
}

#[test]
fn every_value_of_a_range_is_served_with_the_bits_of_its_own_entry() {
    let points = lengths(1..=70);
    for name in ["portable", "native", "reference"] {
        let at = if name == "reference" { lengths(1..=19) } else { points[..40].to_vec() };
        check(&graph(ROWS), &points, &at, name);
    }
    let points = grid(1..=3, 1..=40);
    for (name, step) in [("portable", 5), ("native", 4), ("reference", 13)] {
        let at: Vec<Binding> = points.iter().step_by(step).cloned().collect();
        check(&graph(ENCODER), &points, &at, name);
    }
}

#[test]
fn a_range_may_begin_at_nothing() {
    let step = |past: i64| point(&[("B", 1), ("S", 1), ("past?", past)]);
    let points: Vec<Binding> = (0..=20).map(step).collect();
    for name in ["portable", "native"] {
        check(&graph(DECODER), &points, &[step(0), step(1), step(2), step(17)], name);
    }
    let source = Model::new(graph(DECODER), "decoder", &mut Dump::none()).unwrap();
    let options = CompileOptions {
        dims: vec![("B".into(), vec![1]), ("S".into(), vec![1])],
        ranges: vec![("past".into(), (0, 20))],
        ..CompileOptions::default()
    };
    let executable = compile(&source, None, &options, &Silent).unwrap().executable().unwrap();
    let mut session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap();
    for past in [3, 0, 20] {
        let given = inputs(&source.graph, &step(past));
        let outputs = session.run(&borrowed(&given)).unwrap();
        assert_eq!(outputs[1].1.shape(), [1, 2, 1 + past as usize, 8]);
    }
}

#[test]
fn images_come_in_batches_of_any_size() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/model.onnx");
    let g = margay_driver::open(&path).unwrap().graph;
    let batches: Vec<Binding> = (1..=5).map(|n| point(&[("batch", n)])).collect();
    for name in ["portable", "native"] {
        check(&g, &batches, &batches[3..], name);
    }
}

#[test]
fn entries_are_as_few_as_forms_of_the_program() {
    let backend = backend::native();
    let forms = programs(&graph(ROWS), &lengths(1..=300), &*backend, 2).unwrap();
    let served = |form: &Form| match form {
        Form::Open(program, _) => program.open.values.clone(),
        Form::Closed(at) => vec![vec![(at["S"], at["S"])]],
    };
    let mut all: Vec<_> = forms.iter().flat_map(served).collect();
    all.sort_unstable();
    assert_eq!(all, [[(1, 1)], [(2, 3)], [(4, 15)], [(16, 300)]]);
    assert_eq!(forms.len(), 4);
}

#[test]
fn an_open_program_prints_reads_and_closes_to_what_it_stands_for() {
    let backend = backend::named("cpu", "portable", Precision::F32).unwrap();
    let points = grid(2..=3, 16..=20);
    let forms = programs(&graph(ENCODER), &points, &*backend, 1).unwrap();
    let [Form::Open(open, greatest)] = forms.as_slice() else { panic!("one form") };
    assert_eq!(*greatest, point(&[("B", 3), ("S", 20)]));
    let find = |names: &[String]| open.constants.iter().find(|c| c.names == names).map(|c| c.stored.clone());
    let read: Program = parse_program(&open.to_string(), &|c| find(&c.names)).unwrap();
    assert_eq!(read.to_string(), open.to_string());
    assert_eq!(read.open, open.open);
    assert_eq!((&read.kernels, &read.body, &read.buffers), (&open.kernels, &open.body, &open.buffers));
    read.verify().unwrap();
    let sizes = open.open.sizes_at(&[2, 17]).unwrap();
    let closed = open.at(&sizes).unwrap();
    closed.verify().unwrap();
    assert_eq!(closed.inputs[0].shape, [2, 17, 16]);
    assert!(closed.open.is_closed() && !closed.to_string().contains('$'));
    let mut wrong = sizes.clone();
    wrong[0] = 1 << 40;
    assert!(open.at(&wrong).is_err() && open.at(&sizes[1..]).is_err());
}

#[test]
fn inputs_outside_of_the_range_are_told_so() {
    let g = graph(ROWS);
    let backend = backend::native();
    let artifact = artifact(&g, &lengths(1..=20), &*backend);
    let mut session =
        Session::new(&backend::load(&artifact, None).unwrap(), SessionOptions { threads: 1 }).unwrap();
    let mut message = |shape: &[usize]| session.run(&[("x", &normal(shape, 1, 0))]).unwrap_err().to_string();
    assert_eq!(
        message(&[21, 5]),
        "inputs do not fit: `x`: extent 21 of axis 0 makes `S` 21, expected 1 to 20"
    );
    assert!(message(&[20, 6]).starts_with("not compiled for x: f32[20, 6]; available: x: f32["));
}

#[test]
fn the_compiler_takes_ranges_beside_values() {
    let source = Model::new(graph(ENCODER), "encoder", &mut Dump::none()).unwrap();
    let compiled = |dims: &[(&str, i64)], ranges: &[(&str, i64, i64)]| {
        let options = CompileOptions {
            dims: dims.iter().map(|(n, v)| ((*n).into(), vec![*v])).collect(),
            ranges: ranges.iter().map(|(n, a, b)| ((*n).into(), (*a, *b))).collect(),
            ..CompileOptions::default()
        };
        compile(&source, None, &options, &Silent).map_err(|e| e.to_string())
    };
    let executable = compiled(&[("B", 2)], &[("S", 4, 18)]).unwrap().executable().unwrap();
    let mut session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap();
    let mut shapes = BTreeSet::new();
    for s in [4, 15, 16, 18] {
        let given = inputs(&source.graph, &point(&[("B", 2), ("S", s)]));
        for _ in 0..2 {
            let outputs = session.run(&borrowed(&given)).unwrap();
            shapes.insert(outputs[2].1.shape().to_vec());
            assert_eq!(outputs[3].1.dtype(), DType::I64);
        }
    }
    assert_eq!(shapes.into_iter().collect::<Vec<_>>(), [[2, 8, 16], [2, 30, 16], [2, 32, 16], [2, 36, 16]]);
    let refused =
        |dims: &[(&str, i64)], ranges: &[(&str, i64, i64)]| compiled(dims, ranges).err().unwrap_or_default();
    assert_eq!(refused(&[], &[("S", 9, 8)]), "dimension `S`: 9 to 8 is no range of extents");
    assert_eq!(refused(&[("S", 2)], &[("S", 1, 8)]), "dimension `S` has a range and another range or value");
    assert!(refused(&[], &[("T", 1, 8)]).starts_with("the model has no dimension `T`"));
    assert!(refused(&[], &[("S", 1, 1 << 20)]).contains("combinations of values"));
}

#[test]
fn extents_that_tell_no_symbol_take_no_range() {
    let text = "graph @flat(%x: f32[B*S, 4]) -> (y: f32[B*S, 4]) {
      %0 = exp %x : f32[B*S, 4]
      return %0
    }";
    // 12 is 2 times 6 and 3 times 4.
    let error = programs(&graph(text), &grid(2..=3, 4..=6), &*backend::native(), 1).unwrap_err();
    assert_eq!(error.to_string(), "the extents of the inputs do not tell `B`, `S`: it takes no range");
    check(&graph(text), &grid(2..=2, 4..=5), &grid(2..=2, 4..=5), "native");
    // Where no two values look the same there is an entry for each.
    check(&graph(text), &grid(2..=3, 4..=5), &grid(2..=3, 4..=5), "native");
}

/// A length as a number, as an index and as a bound of a loop.
const LENGTHS: &str = "graph @lengths(%x: f32[B, S, 3]) -> (scaled: f32[B, S, 3], last: f32[B, 3], end: i64[3], walked: f32[B, 3]) {
  %0 = dims {values = [S, B*S + 2, 7]} : i64[3]
  %1 = dims {values = [S]} : i64[1]
  %2 = reshape %1 {shape = []} : i64
  %3 = cast %2 {to = f32} : f32
  %4 = div %x, %3 : f32[B, S, 3]
  %5 = const 1 : i64
  %6 = sub %2, %5 : i64
  %7 = gather %x, %6 {axis = 1} : f32[B, 3]
  %8 = loop %2, %7, %x {body = &step, max = S, carried = 1} : f32[B, 3]
  return %4, %7, %0, %8
}
region &step = graph @step(%i: i64, %h: f32[B, 3], %x: f32[B, S, 3]) -> (h: f32[B, 3]) {
  %0 = dims {values = [S - 1]} : i64[1]
  %1 = reshape %0 {shape = []} : i64
  %2 = sub %1, %i : i64
  %3 = gather %x, %2 {axis = 1} : f32[B, 3]
  %4 = add %h, %3 : f32[B, 3]
  %5 = tanh %4 : f32[B, 3]
  return %5
}
";

#[test]
fn extents_are_read_as_numbers() {
    let points = grid(1..=2, 1..=20);
    for (name, step) in [("portable", 3), ("native", 1), ("reference", 7)] {
        let at: Vec<Binding> = points.iter().step_by(step).cloned().collect();
        check(&graph(LENGTHS), &points, &at, name);
    }
    let forms = programs(&graph(LENGTHS), &grid(4..=9, 16..=40), &*backend::native(), 2).unwrap();
    assert!(matches!(forms.as_slice(), [Form::Open(..)]), "{} forms for one", forms.len());
}

/// Two sequences. Where they are as long as each other what follows from their lengths is computed once.
const TWO: &str = "graph @two(%x: f32[S, 4], %z: f32[T, 4]) -> (y: f32[S, 4], w: f32[T, 4]) {
  %0 = range {start = 0, step = 1, count = S} : i64[S]
  %1 = range {start = 0, step = 1, count = T} : i64[T]
  %2 = cumulate %0 {axis = 0} : i64[S]
  %3 = cumulate %1 {axis = 0} : i64[T]
  %4 = cast %2 {to = f32} : f32[S]
  %5 = cast %3 {to = f32} : f32[T]
  %6 = reshape %4 {shape = [S, 1]} : f32[S, 1]
  %7 = reshape %5 {shape = [T, 1]} : f32[T, 1]
  %8 = add %x, %6 : f32[S, 4]
  %9 = add %z, %7 : f32[T, 4]
  return %8, %9
}";

#[test]
fn lengths_that_are_equal_have_a_program_of_their_own() {
    let both = |s: i64, t: i64| point(&[("S", s), ("T", t)]);
    let points: Vec<Binding> = (4..=9).flat_map(|s| (4..=9).map(move |t| both(s, t))).collect();
    check(&graph(TWO), &points, &points, "native");
    let forms = programs(&graph(TWO), &points, &*backend::native(), 2).unwrap();
    // Fewer than the six values at which both are the same.
    assert!(forms.len() < 6, "{} forms", forms.len());
    // Two values of which one follows from the other by accident.
    let points = [both(4, 5), both(5, 4)];
    check(&graph(TWO), &points, &points, "native");
}
