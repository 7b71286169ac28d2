//! Programs as text: what every operator and a few graphs lower to is read back as it was.

use margay_driver::{Dump, backend, build::bind};
use margay_ir::ops::Const;
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value};
use margay_loops::{Precision, Program, parse_program};
use margay_lower::lower;
use margay_tensor::{Binding, Tensor};
use margay_testkit::{case_inputs, parse_with_random_constants};

fn program(g: &Graph) -> Program {
    let backend = backend::named("cpu", "x86-64-v4", Precision::F32).unwrap_or_else(|e| panic!("{e}"));
    let bound = bind(g, &Binding::new(), &*backend, &mut Dump::none()).unwrap_or_else(|e| panic!("{e}\n{g}"));
    lower(&bound, &*backend).unwrap_or_else(|e| panic!("{e}\n{bound}"))
}

/// Prints, reads and prints again; the second program has all that the first one has.
fn reads_back(program: &Program) {
    let text = program.to_string();
    let resolve = |c: &margay_loops::ConstantText| {
        let same = |t: &&margay_loops::Constant| t.stored.content_hash().to_string() == c.hash;
        program.constants.iter().find(same).map(|c| c.stored.clone())
    };
    let again = parse_program(&text, &resolve).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(again.to_string(), text);
    assert_eq!(again.inputs, program.inputs);
    assert_eq!(again.outputs, program.outputs);
    assert_eq!(again.carried, program.carried);
    assert_eq!(again.buffers, program.buffers, "{text}");
    assert_eq!(again.body, program.body, "{text}");
    assert_eq!(again.arena_bytes, program.arena_bytes);
    for (again, kernel) in again.kernels.iter().zip(&program.kernels) {
        assert_eq!((&again.args, &again.regs, &again.body), (&kernel.args, &kernel.regs, &kernel.body));
    }
    for (again, constant) in again.constants.iter().zip(&program.constants) {
        assert_eq!((&again.names, &again.packed), (&constant.names, &constant.packed));
        assert_eq!(again.stored, constant.stored);
    }
    again.verify().unwrap_or_else(|v| panic!("{v:?}\n{text}"));
}

/// A graph of one node, its last operands constants.
fn graph_of(op: &Op, inputs: &[Tensor], constants: usize) -> Graph {
    let mut g = Graph::new(op.name());
    let mut operands: Vec<Value> = Vec::new();
    for (i, t) in inputs.iter().enumerate() {
        operands.push(if i + constants < inputs.len() {
            g.add_input(&format!("x{i}"), TensorType::of(t))
        } else {
            let payload = Payload::new(t.clone());
            g.add(Const { payload }, &[], Origin::default()).unwrap_or_else(|e| panic!("{e}"))
        });
    }
    let v = g.add(op.clone(), &operands, Origin::named("node")).unwrap_or_else(|e| panic!("{e}"));
    for out in 0..g.node(v.node).types.len() as u16 {
        g.add_output(&format!("y{out}"), Value { node: v.node, out });
    }
    g
}

#[test]
fn what_every_operator_lowers_to_reads_back() {
    for (op, case) in Op::cases() {
        let inputs = case_inputs(&case);
        let constants = match &op {
            Op::Conv(_) | Op::MatMul(_) => 1,
            _ => 0,
        };
        reads_back(&program(&graph_of(&op, &inputs, constants)));
    }
}

#[test]
fn what_graphs_lower_to_reads_back() {
    for source in [
        "graph @narrow(%x: f32[8, 64], %i: i64[3]) -> (y: f32[8, 32], z: f32[3, 64]) {
           %0 = const #w : f32[64, 32] stored i8(axis = 1)
           %1 = matmul %x, %0 : f32[8, 32]  // fc
           %2 = const #t : f32[16, 64] stored u8(axis = 0, zero points)
           %3 = gather %2, %i {axis = 0} : f32[3, 64]  // rows
           return %1, %3
         }",
        "graph @ffn(%x: f32[8, 64]) -> (y: f32[8, 64]) {
           %0 = const #w : f32[64, 64]
           %1 = matmul %x, %0 : f32[8, 64]  // fc
           %2 = const #b : f32[64]
           %3 = add %1, %2 : f32[8, 64]  // bias
           %4 = gelu %3 : f32[8, 64]  // act
           %5 = add %4, %x : f32[8, 64]  // \"a name\\n with a line\"
           return %5
         }",
        "graph @again(%x: f32[4, 32]) -> (y: f32[4, 32], z: f32[4, 32]) {
           %0 = tanh %x : f32[4, 32]
           %1 = softmax %0 {axis = 1} : f32[4, 32]
           %2 = concat %1, %0 {axis = 0} : f32[8, 32]
           %3 = slice %2 {starts = [2, 0], ends = [6, 32], steps = [1, 1]} : f32[4, 32]
           return %3, %3
         }",
    ] {
        reads_back(&program(&parse_with_random_constants(source).0));
    }
}

#[test]
fn numbers_of_indices_reach_the_ends_of_their_type_and_no_further() {
    let text = |index: &str| {
        format!(
            "input x: f32[4]\noutput y: f32[4]\narena 0 bytes\nk0: kernel(r f32, w f32)\n  for i0 in 0..4 parallel\n    \
             %0 = load a0[{index}]\n    store a1[i0] = %0\nsteps\n  k0 (in0, out0)\n"
        )
    };
    let least = parse_program(&text("i0 - 9223372036854775808*i0"), &|_| None);
    assert!(least.is_ok_and(|p| p.to_string().contains("a0[-9223372036854775807*i0]")));
    let least = parse_program(&text("-9223372036854775808*i0"), &|_| None).unwrap();
    assert_eq!(parse_program(&least.to_string(), &|_| None).unwrap().to_string(), least.to_string());
    for (index, says) in [
        ("9223372036854775808*i0", "`9223372036854775808*i0` is too large"),
        ("9223372036854775807*i0 + i0", "the numbers of `9223372036854775807*i0 + i0` are too large"),
        ("9223372036854775807 + 1", "the numbers of `9223372036854775807 + 1` are too large"),
    ] {
        let error = parse_program(&text(index), &|_| None).map(|p| p.to_string()).unwrap_err();
        assert_eq!(error.message, says);
    }
}
