//! Programs that small graphs lower to: what runs in one step, and what runs nothing.

use margay_driver::backend;
use margay_ir::{Cx, Graph, Pass, TensorType};
use margay_loops::Precision;
use margay_lower::lower;
use margay_passes::{AssignLayout, RecognizeSilu};
use margay_testkit::{normal, parse_with_random_constants};

fn program(source: &str) -> String {
    lowered(&parse_with_random_constants(source).0)
}

fn lowered(g: &Graph) -> String {
    lower(g, &*backend::named("cpu", "x86-64-v4", Precision::F32).unwrap())
        .unwrap_or_else(|e| panic!("{e}"))
        .to_string()
}

#[test]
fn a_chain_of_elementwise_nodes_is_one_loop() {
    insta::assert_snapshot!(program(
        "graph @chain(%x: f32[8, 16], %y: f32[16]) -> (z: f32[8, 16]) {
           %0 = add %x, %y : f32[8, 16]  // sum
           %1 = exp %0 : f32[8, 16]  // exp
           %2 = mul %1, %x : f32[8, 16]  // product
           return %2
         }"
    ), @r##"
    input x: f32[8, 16]
    input y: f32[16]
    output z: f32[8, 16]
    arena 0 bytes
    k0: kernel(r f32, r f32, w f32)
      for i0 in 0..8 parallel
        for i1 in 0..16 parallel
          %0 = load a0[16*i0 + i1]
          %1 = load a1[i1]
          %2 = add %0, %1
          %3 = exp %2
          %4 = load a0[16*i0 + i1]
          %5 = mul %3, %4
          store a2[16*i0 + i1] = %5
    steps
      k0 (in0, in1, out0)  // sum + exp + product
    "##);
}

#[test]
fn bias_activation_and_residual_join_the_product() {
    insta::assert_snapshot!(program(
        "graph @ffn(%x: f32[8, 64]) -> (y: f32[8, 64]) {
           %0 = const #w : f32[64, 64]
           %1 = matmul %x, %0 : f32[8, 64]  // fc
           %2 = const #b : f32[64]
           %3 = add %1, %2 : f32[8, 64]  // bias
           %4 = gelu %3 : f32[8, 64]  // act
           %5 = add %4, %x : f32[8, 64]  // residual
           return %5
         }"
    ), @r##"
    input x: f32[8, 64]
    output y: f32[8, 64]
    constant c0: f32[64] #3d0a68235482 ["#3d0a68235482"]
    constant c1: f32[64, 64] #fa25b8bca673 ["#fa25b8bca673"] packed {operand = 1, layout = f32_kn32, bytes = 16384} of matmul {m = 8, n = 64, k = 64, a = {row_stride = 64, col_stride = 1}, b = {row_stride = 64, col_stride = 1}, c_row_stride = 64, b_packed = true, epilogue = {bias = true, activation = gelu_erf, residual = true}}
    arena 0 bytes
    steps
      matmul {m = 8, n = 64, k = 64, a = {row_stride = 64, col_stride = 1}, b = {row_stride = 64, col_stride = 1}, c_row_stride = 64, b_packed = true, epilogue = {bias = true, activation = gelu_erf, residual = true}} needs {packed = [{operand = 1, layout = f32_kn32, bytes = 16384}]} (in0, c1, c0, in0, out0)  // fc + bias + act + residual
    "##);
}

#[test]
fn silu_joins_the_product() {
    insta::assert_snapshot!(program(
        "graph @gate(%x: f32[8, 64]) -> (y: f32[8, 64]) {
           %0 = const #w : f32[64, 64] stored i8(axis = 1)
           %1 = matmul %x, %0 : f32[8, 64]  // fc
           %2 = silu %1 : f32[8, 64]  // act
           return %2
         }"
    ), @r##"
    input x: f32[8, 64]
    output y: f32[8, 64]
    constant c0: f32[64, 64] stored i8(axis = 1) #ea875ac1887d ["#w"] packed {operand = 1, layout = int8_kn32, bytes = 4352} of matmul {m = 8, n = 64, k = 64, a = {row_stride = 64, col_stride = 1}, b = {row_stride = 64, col_stride = 1}, c_row_stride = 64, b_packed = true, types = {right = i8(axis = 1)}, epilogue = {activation = silu}}
    arena 0 bytes
    steps
      matmul {m = 8, n = 64, k = 64, a = {row_stride = 64, col_stride = 1}, b = {row_stride = 64, col_stride = 1}, c_row_stride = 64, b_packed = true, types = {right = i8(axis = 1)}, epilogue = {activation = silu}} needs {packed = [{operand = 1, layout = int8_kn32, bytes = 4352}]} (in0, c0, out0)  // fc + act
    "##);
}

#[test]
fn transposes_sink_through_silu_between_convolutions() {
    // As exporters write it: x times its sigmoid.
    let (mut g, _) = parse_with_random_constants(
        "graph @net(%x: f32[1, 3, 8, 8]) -> (y: f32[1, 6]) {
           %0 = const #k1 : f32[4, 3, 3, 3]
           %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[1, 4, 8, 8]  // conv1
           %2 = sigmoid %1 : f32[1, 4, 8, 8]
           %3 = mul %1, %2 : f32[1, 4, 8, 8]
           %4 = const #k2 : f32[6, 4, 3, 3]
           %5 = conv %3, %4 {pads_before = [1, 1], pads_after = [1, 1]} : f32[1, 6, 8, 8]  // conv2
           %6 = sigmoid %5 : f32[1, 6, 8, 8]
           %7 = mul %5, %6 : f32[1, 6, 8, 8]
           %8 = reduce %7 {kind = mean, axes = [2, 3]} : f32[1, 6]
           return %8
         }",
    );
    let passes: [&dyn Pass; 2] = [&RecognizeSilu, &AssignLayout];
    for pass in passes {
        pass.run(&mut g, &mut Cx::default()).unwrap_or_else(|e| panic!("{e}"));
        g.remove_dead();
    }
    let transposes = |g: &Graph| g.order().iter().filter(|n| g.op(**n).name() == "transpose").count();
    assert_eq!(transposes(&g), 1, "{g}");
    let text = lowered(&g);
    let convolutions: Vec<&str> = text.lines().filter(|line| line.starts_with("  conv ")).collect();
    assert_eq!(convolutions.len(), 2, "{text}");
    assert!(convolutions.iter().all(|line| line.contains("activation = silu")), "{text}");
}

#[test]
fn bias_residual_and_activation_join_the_convolution() {
    insta::assert_snapshot!(program(
        "graph @block(%x: f32[2, 8, 8, 32]) -> (y: f32[2, 8, 8, 32]) {
           %0 = const #k : f32[32, 32, 3, 3]
           %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1], layout = nhwc} : f32[2, 8, 8, 32]  // conv
           %2 = const #b : f32[32]
           %3 = add %1, %2 : f32[2, 8, 8, 32]  // bias
           %4 = add %x, %3 : f32[2, 8, 8, 32]  // residual
           %5 = relu %4 : f32[2, 8, 8, 32]  // act
           return %5
         }"
    ), @r##"
    input x: f32[2, 8, 8, 32]
    output y: f32[2, 8, 8, 32]
    constant c0: f32[32] #1dc332785029 ["#1dc332785029"]
    constant c1: f32[32, 32, 3, 3] #5beadaa673e4 ["#5beadaa673e4"] packed {operand = 1, layout = f32_taps32_g1, bytes = 36864} of conv {batch = 2, in_channels = 32, out_channels = 32, groups = 1, in_size = [8, 8], out_size = [8, 8], kernel = [3, 3], strides = [1, 1], pads = [1, 1], dilations = [1, 1], k_packed = true, epilogue = {bias = true, activation = relu, residual = true, residual_first = true}}
    arena 0 bytes
    steps
      conv {batch = 2, in_channels = 32, out_channels = 32, groups = 1, in_size = [8, 8], out_size = [8, 8], kernel = [3, 3], strides = [1, 1], pads = [1, 1], dilations = [1, 1], k_packed = true, epilogue = {bias = true, activation = relu, residual = true, residual_first = true}} needs {packed = [{operand = 1, layout = f32_taps32_g1, bytes = 36864}]} (in0, c1, c0, in0, out0)  // conv + bias + residual + act
    "##);
}

#[test]
fn attention_walks_heads_where_they_lie() {
    insta::assert_snapshot!(program(
        "graph @heads(%q: f32[2, 16, 64], %k: f32[2, 16, 64], %v: f32[2, 16, 64]) -> (y: f32[2, 16, 64]) {
           %0 = reshape %q {shape = [2, 16, 4, 16]} : f32[2, 16, 4, 16]
           %1 = transpose %0 {perm = [0, 2, 1, 3]} : f32[2, 4, 16, 16]
           %2 = reshape %k {shape = [2, 16, 4, 16]} : f32[2, 16, 4, 16]
           %3 = transpose %2 {perm = [0, 2, 1, 3]} : f32[2, 4, 16, 16]
           %4 = reshape %v {shape = [2, 16, 4, 16]} : f32[2, 16, 4, 16]
           %5 = transpose %4 {perm = [0, 2, 1, 3]} : f32[2, 4, 16, 16]
           %6 = attention %1, %3, %5 {scale = 0.25} : f32[2, 4, 16, 16]  // attention
           %7 = transpose %6 {perm = [0, 2, 1, 3]} : f32[2, 16, 4, 16]
           %8 = reshape %7 {shape = [2, 16, 64]} : f32[2, 16, 64]
           %9 = neg %8 : f32[2, 16, 64]  // neg
           return %9
         }"
    ), @r##"
    input q: f32[2, 16, 64]
    input k: f32[2, 16, 64]
    input v: f32[2, 16, 64]
    output y: f32[2, 16, 64]
    arena 8192 bytes
    temporary t0: 8192 bytes at 0
    k0: kernel(r f32, w f32)
      for i2 in 0..2048 parallel
        %0 = load a0[i2]
        %1 = neg %0
        store a1[i2] = %1
    steps
      attention {batch = 2, heads = 4, kv_heads = 4, q_len = 16, kv_len = 16, qk_dim = 16, v_dim = 16, scale_bits = 1048576000, q = [1024, 16, 64], k = [1024, 16, 64], v = [1024, 16, 64], o = [1024, 16, 64]} (in0, in1, in2, t0)  // attention
      k0 (t0, out0)  // neg
    "##);
}

/// The steps of a program without branches and loops.
fn steps(text: &str) -> usize {
    text.lines().skip_while(|line| *line != "steps").count() - 1
}

#[test]
fn a_reader_of_many_passes_reads_memory() {
    // A row of softmax is read more than once: the exponential before it is not repeated, the sum is.
    let costly = program(
        "graph @costly(%x: f32[4, 32]) -> (y: f32[4, 32]) {
           %0 = tanh %x : f32[4, 32]  // tanh
           %1 = softmax %0 {axis = 1} : f32[4, 32]  // softmax
           return %1
         }",
    );
    assert!(steps(&costly) == 2, "{costly}");
    let cheap = program(
        "graph @cheap(%x: f32[4, 32]) -> (y: f32[4, 32]) {
           %0 = add %x, %x : f32[4, 32]  // sum
           %1 = softmax %0 {axis = 1} : f32[4, 32]  // softmax
           return %1
         }",
    );
    assert!(steps(&cheap) == 1, "{cheap}");
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let (g, _) = parse_with_random_constants(
        "graph @open(%x: f32[N, 4]) -> (y: f32[N, 4]) {
           %0 = neg %x : f32[N, 4]  // neg
           return %0
         }",
    );
    let error = lower(&g, &*backend::named("cpu", "portable", Precision::F32).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "`input` at `x` has type f32[N, 4]; every dimension must be bound");
    assert_eq!(TensorType::of(&normal(&[2, 3], 0, 0)).to_string(), "f32[2, 3]");
}
