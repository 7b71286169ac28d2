//! Every operator by its own cases: types, reference, text, and compiled code on every back end at hand.

use std::collections::{BTreeMap, BTreeSet};

use margay_driver::{Backend, Kind, backend, build::jit};
use margay_ir::ops::{Const, Lowered, strides_of};
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value, eval, text};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::{Tolerance, assert_close, case_inputs, in_other_types};

/// A graph of one node over inputs `x0`, `x1`, ….
fn graph_of(op: &Op, inputs: &[Tensor]) -> Graph {
    let mut g = Graph::new(op.name());
    let values: Vec<Value> =
        inputs.iter().enumerate().map(|(i, t)| g.add_input(&format!("x{i}"), TensorType::of(t))).collect();
    let v = g.add(op.clone(), &values, Origin::named("node")).unwrap_or_else(|e| panic!("{e}"));
    for out in 0..g.node(v.node).types.len() as u16 {
        g.add_output(&format!("y{out}"), Value { node: v.node, out });
    }
    g
}

fn named(inputs: &[Tensor]) -> Vec<(String, &Tensor)> {
    inputs.iter().enumerate().map(|(i, t)| (format!("x{i}"), t)).collect()
}

#[test]
fn inferred_types_are_the_types_produced() {
    for (op, case) in Op::cases() {
        let inputs = case_inputs(&case);
        let g = graph_of(&op, &inputs);
        let names = named(&inputs);
        let by_name: Vec<(&str, &Tensor)> = names.iter().map(|(n, t)| (n.as_str(), *t)).collect();
        let outputs = eval::run(&g, &by_name).unwrap_or_else(|e| panic!("{op:?}: {e}"));
        for (o, t) in g.outputs().iter().zip(&outputs) {
            assert_eq!(*g.ty(o.value), TensorType::of(t), "{op:?}");
        }
    }
}

#[test]
fn text_reads_back() {
    for (op, case) in Op::cases() {
        let g = graph_of(&op, &case_inputs(&case));
        let printed = g.to_string();
        let again = text::parse(&printed, &|_, _| None).unwrap_or_else(|e| panic!("{e}\n{printed}"));
        assert_eq!(again.to_string(), printed);
    }
}

#[test]
fn every_operator_has_cases() {
    let cases = Op::cases();
    let without: Vec<&str> =
        Op::ALL.iter().copied().filter(|name| !cases.iter().any(|(op, _)| op.name() == *name)).collect();
    // Inputs stand in the header of a graph.
    assert_eq!(without, ["input"]);
}

/// What compiled code makes of a graph, on some threads.
fn compiled(
    g: &Graph,
    inputs: &[(&str, &Tensor)],
    backend: &dyn Backend,
    threads: usize,
) -> Vec<(String, Tensor)> {
    let executable = jit(g, &Binding::new(), backend)
        .unwrap_or_else(|e| panic!("{} on {}: {e}\n{g}", g.name(), backend.target()));
    let mut session = Session::new(&executable, SessionOptions { threads }).unwrap_or_else(|e| panic!("{e}"));
    session.run(inputs).unwrap_or_else(|e| panic!("{}: {e}", g.name()))
}

#[test]
fn compiled_code_agrees_with_the_reference() {
    for (op, case) in Op::cases() {
        // Kernels of convolutions and right operands of products are constant or computed.
        let constants = match &op {
            Op::Conv(_) | Op::MatMul(_) => &[1, 0][..],
            _ => &[0],
        };
        constants
            .iter()
            .for_each(|&constants| agrees_with_the_reference(&op, &case_inputs(&case), constants));
    }
}

#[test]
fn operators_compute_in_every_type_that_they_take() {
    let backend = backend::native();
    let (mut missing, mut compared): (BTreeMap<&str, BTreeSet<&str>>, usize) = (BTreeMap::new(), 0);
    for (op, case) in Op::cases() {
        for (dtype, case) in in_other_types(&op, &case) {
            let inputs = case_inputs(&case);
            let g = graph_of(&op, &inputs);
            let names = named(&inputs);
            let by_name: Vec<(&str, &Tensor)> = names.iter().map(|(n, t)| (n.as_str(), *t)).collect();
            let expected = eval::run(&g, &by_name).unwrap_or_else(|e| panic!("{op:?} of {dtype}: {e}"));
            match jit(&g, &Binding::new(), &*backend) {
                // A limit that is named, at whatever level it shows.
                Err(e) if e.kind() == Kind::Usage => {
                    missing.entry(op.name()).or_default().insert(dtype.name());
                }
                Err(e) => panic!("{op:?} of {dtype}: {e}"),
                Ok(_) => {
                    compared += 1;
                    let found = compiled(&g, &by_name, &*backend, 1);
                    for (found, expected) in found.iter().zip(&expected) {
                        let tolerance = Tolerance::REDUCTION.of(dtype).of(expected.dtype());
                        assert_close(&format!("{op:?} of {dtype}"), &found.1, expected, tolerance);
                    }
                }
            }
        }
    }
    assert!(compared > 500, "{compared}");
    println!("not compiled: {missing:?}");
    // What is not compiled: halves, and more than f32 where a kernel is written by hand.
    let by_hand = |name: &str| {
        Op::cases().iter().any(|(op, case)| {
            let g = graph_of(op, &case_inputs(case));
            let node = g.outputs()[0].value.node;
            let lowered = g.io_of(node).map(|io| op.lower(&io));
            // A recurrence is a loop around a product, and sketches are products.
            let called = matches!(lowered, Some(Ok(Lowered::Call(_))))
                || matches!(op, Op::Recurrence(_) | Op::Sketch(_));
            op.name() == name && called
        })
    };
    for (name, types) in missing {
        let wide = types.iter().any(|t| !["f16", "bf16"].contains(t));
        assert!(!wide || by_hand(name), "{name}: {types:?}");
    }
}

/// Runs an operator compiled and interpreted, the last so many operands as constants.
fn agrees_with_the_reference(op: &Op, inputs: &[Tensor], constants: usize) {
    let (given, fixed) = inputs.split_at(inputs.len() - constants);
    let mut g = Graph::new(op.name());
    let mut operands: Vec<Value> =
        given.iter().enumerate().map(|(i, t)| g.add_input(&format!("x{i}"), TensorType::of(t))).collect();
    for t in fixed {
        let payload = Payload::new(t.clone());
        operands.push(g.add(Const { payload }, &[], Origin::default()).unwrap());
    }
    let v = g.add(op.clone(), &operands, Origin::named("node")).unwrap_or_else(|e| panic!("{e}"));
    for out in 0..g.node(v.node).types.len() as u16 {
        g.add_output(&format!("y{out}"), Value { node: v.node, out });
    }
    let names = named(given);
    let by_name: Vec<(&str, &Tensor)> = names.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    let expected = eval::run(&g, &by_name).unwrap();
    for backend in backend::supported() {
        let outputs = compiled(&g, &by_name, &*backend, 2);
        let what = format!("{op:?} on {}", backend.target());
        for (found, expected) in outputs.iter().zip(&expected) {
            assert_close(&what, &found.1, expected, Tolerance::REDUCTION);
        }
        assert_eq!(outputs, compiled(&g, &by_name, &*backend, 1), "{what} with 1 and 2 threads");
    }
}

#[test]
fn packed_constants_agree_with_the_reference() {
    for [m, k, n] in [[1, 7, 5], [3, 64, 33], [17, 129, 70], [40, 33, 1]] {
        let [x, w, b] = [[m, k], [k, n], [1, n]].map(|s| margay_testkit::normal(&s, 3, (m * n) as u64));
        let text = format!(
            "graph @linear(%x: f32[{m}, {k}], %r: f32[{m}, {n}]) -> (y: f32[{m}, {n}]) {{
               %0 = const #w : f32[{k}, {n}]
               %1 = matmul %x, %0 : f32[{m}, {n}]
               %2 = const #b : f32[1, {n}]
               %3 = add %1, %2 : f32[{m}, {n}]
               %4 = gelu %3 : f32[{m}, {n}]
               %5 = add %4, %r : f32[{m}, {n}]
               return %5
             }}"
        );
        let resolve =
            |key: &str, _: &TensorType| Some(if key == "#w" { w.clone() } else { b.clone() }.into());
        let g = text::parse(&text, &resolve).unwrap();
        let r = margay_testkit::normal(&[m, n], 9, 0);
        let inputs = [("x", &x), ("r", &r)];
        let expected = eval::run(&g, &inputs).unwrap();
        for backend in backend::supported() {
            let found = compiled(&g, &inputs, &*backend, 2);
            assert_close(backend.target(), &found[0].1, &expected[0], Tolerance::REDUCTION);
        }
    }
}

#[test]
fn views_of_every_kind_feed_every_kind_of_reader() {
    let text = "graph @views(%x: f32[2, 6, 8]) -> (a: f32[2, 48], b: f32[8, 12], c: f32[2, 4, 3, 8], d: f32[3, 8, 6]) {
      %0 = transpose %x {perm = [0, 2, 1]} : f32[2, 8, 6]
      %1 = reshape %0 {shape = [2, 48]} : f32[2, 48]
      %2 = transpose %x {perm = [2, 0, 1]} : f32[8, 2, 6]
      %3 = reshape %2 {shape = [8, 12]} : f32[8, 12]
      %4 = tanh %3 : f32[8, 12]
      %5 = slice %x {starts = [0, 1, 0], ends = [2, 4, 8], steps = [1, 1, 1]} : f32[2, 3, 8]
      %6 = reshape %5 {shape = [2, 1, 3, 8]} : f32[2, 1, 3, 8]
      %7 = broadcast %6 {shape = [2, 4, 3, 8]} : f32[2, 4, 3, 8]
      %8 = softmax %7 {axis = 3} : f32[2, 4, 3, 8]
      %9 = slice %0 {starts = [0, 0, 0], ends = [1, 8, 6], steps = [1, 1, 1]} : f32[1, 8, 6]
      %10 = broadcast %9 {shape = [3, 8, 6]} : f32[3, 8, 6]
      return %1, %4, %8, %10
    }";
    let g = text::parse(text, &|_, _| None).unwrap();
    let x = margay_testkit::normal(&[2, 6, 8], 4, 4);
    let expected = eval::run(&g, &[("x", &x)]).unwrap();
    for backend in backend::supported() {
        for (found, e) in compiled(&g, &[("x", &x)], &*backend, 2).iter().zip(&expected) {
            assert_close(&found.0, &found.1, e, Tolerance::ELEMENTWISE);
        }
    }
    assert_eq!(strides_of(&[2, 6, 8]), [48, 8, 1]);
}

#[test]
fn an_index_out_of_range_is_an_error_that_names_the_node() {
    let text = "graph @gather(%i: i64[2]) -> (y: f32[2]) {
      %0 = const [1.0, 2.0, 3.0] : f32[3]
      %1 = gather %0, %i {axis = 0} : f32[2]  // emb/word
      return %1
    }";
    let g = text::parse(text, &|_, _| None).unwrap();
    let executable = jit(&g, &Binding::new(), &*backend::native()).unwrap();
    let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
    let ids = Tensor::from_slice(&[2], &[-1i64, 3]).unwrap();
    let error = session.run(&[("i", &ids)]).unwrap_err();
    assert_eq!(error.to_string(), "`emb/word` requires indices from -3 to 2");
    let ids = Tensor::from_slice(&[2], &[-1i64, 0]).unwrap();
    let found = session.run(&[("i", &ids)]).unwrap();
    assert_eq!(found[0].1.to_vec::<f32>().unwrap(), [3.0, 1.0]);
}

/// Compiles a graph and compares it with the reference on random inputs.
fn check_text(source: &str, tolerance: Tolerance) {
    let (g, _) = margay_testkit::parse_with_random_constants(source);
    let inputs: Vec<(String, Tensor)> = g
        .inputs()
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let shape = g.ty((*n).into()).extents().unwrap();
            (g.node(*n).origin.name().to_string(), margay_testkit::normal(&shape, 6, i as u64))
        })
        .collect();
    let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let expected = eval::run(&g, &by_name).unwrap();
    for backend in backend::supported() {
        for (found, e) in compiled(&g, &by_name, &*backend, 2).iter().zip(&expected) {
            assert_close(&format!("{} on {}", g.name(), backend.target()), &found.1, e, tolerance);
        }
    }
}

#[test]
fn a_bias_that_is_a_strided_view_is_not_read_as_a_row() {
    check_text(
        "graph @bias(%x: f32[2, 4], %s: f32[1]) -> (y: f32[2, 8]) {
           %0 = const #w : f32[4, 8]
           %1 = matmul %x, %0 : f32[2, 8]
           %2 = broadcast %s {shape = [8]} : f32[8]
           %3 = add %1, %2 : f32[2, 8]
           return %3
         }",
        Tolerance::REDUCTION,
    );
}

#[test]
fn a_convolution_of_a_transposed_image_gets_a_copy() {
    check_text(
        "graph @nhwc(%x: f32[2, 6, 5, 3]) -> (y: f32[2, 4, 6, 5]) {
           %0 = transpose %x {perm = [0, 3, 1, 2]} : f32[2, 3, 6, 5]
           %1 = const #k : f32[4, 3, 3, 3]
           %2 = conv %0, %1 {pads_before = [1, 1], pads_after = [1, 1]} : f32[2, 4, 6, 5]
           return %2
         }",
        Tolerance::REDUCTION,
    );
}

#[test]
fn attention_over_transposed_keys_gets_a_copy() {
    check_text(
        "graph @keys(%q: f32[1, 2, 5, 4], %k: f32[1, 2, 4, 5], %v: f32[1, 2, 5, 4]) -> (y: f32[1, 2, 5, 4]) {
           %0 = transpose %k {perm = [0, 1, 3, 2]} : f32[1, 2, 5, 4]
           %1 = attention %q, %0, %v {scale = 0.5} : f32[1, 2, 5, 4]
           return %1
         }",
        Tolerance::REDUCTION,
    );
}

#[test]
fn a_constant_matrix_may_have_leading_axes_of_one() {
    check_text(
        "graph @ones(%x: f32[3, 2, 4]) -> (y: f32[3, 2, 5]) {
           %0 = const #w : f32[1, 4, 5]
           %1 = matmul %x, %0 : f32[3, 2, 5]
           return %1
         }",
        Tolerance::REDUCTION,
    );
}

#[test]
fn long_chains_are_cut_into_steps() {
    let mut source = String::from("graph @chain(%x: f32[33]) -> (y: f32[33]) {\n");
    for i in 0..300 {
        let (op, from) = (["neg", "abs"][i % 2], if i == 0 { "%x".into() } else { format!("%{}", i - 1) });
        source += &format!("  %{i} = {op} {from} : f32[33]\n");
    }
    check_text(&(source + "  return %299\n}"), Tolerance::EXACT);
}

#[test]
fn a_tensor_larger_than_any_machine_is_refused() {
    let source = "graph @huge(%x: f32[4]) -> (y: f32[1152921504606846976, 4]) {
      %0 = broadcast %x {shape = [1152921504606846976, 4]} : f32[1152921504606846976, 4]
      %1 = exp %0 : f32[1152921504606846976, 4]
      return %1
    }";
    let g = text::parse(source, &|_, _| None).unwrap();
    let error =
        jit(&g, &Binding::new(), &*backend::native()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("of more than 1099511627776 bytes"), "{error}");
}

#[test]
fn comparisons_read_rows_that_are_not_aligned() {
    check_text(
        "graph @rows(%x: f32[3, 5], %y: f32[1, 5]) -> (a: f32[3, 5], b: f32[3, 5]) {
           %0 = less %y, %x : bool[3, 5]
           %1 = cast %0 {to = f32} : f32[3, 5]
           %2 = less_or_equal %x, %y : bool[3, 5]
           %3 = cast %2 {to = f32} : f32[3, 5]
           return %1, %3
         }",
        Tolerance::EXACT,
    );
}

#[test]
fn one_row_read_backwards_is_a_row() {
    check_text(
        "graph @backwards(%x: f32[3, 1, 4]) -> (y: f32[3, 1, 5]) {
           %0 = slice %x {starts = [0, 0, 0], ends = [3, -1, 4], steps = [1, -1, 1]} : f32[3, 1, 4]
           %1 = const #w : f32[4, 5]
           %2 = matmul %0, %1 : f32[3, 1, 5]
           return %2
         }",
        Tolerance::REDUCTION,
    );
}

#[test]
fn parts_of_vectors_are_no_images() {
    check_text(
        "graph @vector(%x: f32[7]) -> (y: f32[3]) {
           %0 = slice %x {starts = [1], ends = [7], steps = [2]} : f32[3]
           return %0
         }",
        Tolerance::EXACT,
    );
}
