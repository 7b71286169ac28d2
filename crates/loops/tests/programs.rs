//! Programs as text: read back as they were written, and refused where they do not hold together.

use margay_loops::{Program, parse_program};
use margay_tensor::Tensor;

/// `y = -(-(x + w))`, the middle one in the arena, then everything that steps can be.
const PROGRAM: &str = r##"input x: f32[4]
input n: i64[]
input "the state": f32[4]
output y: f32[4]
output "the state": f32[4]
carried out1 to in2
constant c0: f32[4] #a0b1c2 ["#a0b1c2", fc.bias]
constant c1: f32[4, 4] #d3e4f5 ["w(k = 2)"] packed {operand = 1, layout = panels, bytes = 128} of matmul {m = 1, n = 4, k = 4, a = {row_stride = 4, col_stride = 1}, b = {row_stride = 4, col_stride = 1}, c_row_stride = 4, b_packed = true, epilogue = {bias = true, activation = relu}}
arena 128 bytes
temporary t0: 16 bytes at 0
temporary t1: 16 bytes at 64
temporary t2: 8 bytes at 32
temporary t3: 1 bytes at 48
k0: kernel(r f32, w f32)
  for i0 in 0..4 parallel
    %0 = load a0[i0]
    %1 = neg %0
    store a1[i0] = %1
k1: kernel(r i64, r f32, w f32)
  %0 = load a0[0]
  %1 = nan(0x7fc00001) : f32
  for i0 in 0..%0 max 4 parallel
    %2 = index -2*i0 + %0 - 3
    %3 = 0 : i64
    %4 = le %3, %2
    %5 = load a1[-2*i0 + %0 - 3] if %4 else -0.5
    %6 = add %5, %1
    reduce i1 in 0..0: %8 = sum %6, %9 = max %6
      %7 = cast %6 : u8
    %10 = select %4, %8, %9
    require %4 "positions of the table"
    store a2[i0] = %10
k2: kernel(r f32, w bool)
  %0 = load a0[0]
  %1 = isnan %0
  store a1[0] = %1
steps
  k0 (in0, t0)  // neg
  k2 (t0, t3)  // test
  matmul {m = 1, n = 4, k = 4, a = {row_stride = 4, col_stride = 1}, b = {row_stride = 4, col_stride = 1}, c_row_stride = 4, b_packed = true, epilogue = {bias = true, activation = relu}} needs {workspace_bytes = 8, packed = [{operand = 1, layout = panels, bytes = 128}]} (t0, c1, c0, t1, t2)  // "two\nlines"
  if t3  // choose
    k0 (t1, out0)  // then
  else
    copy 16 (t1, out0)
  loop in1 max 10 while t3 counter t2  // repeat
    loop 2
      k0 (t1, t0)  // inner
  k1 (in1, t1, t0)  // read
  copy 16 (in2, out1)  // next
"##;

/// The smallest program that shows most rules.
const SMALL: &str = "input x: f32[4]
output y: f32[4]
arena 64 bytes
temporary t0: 16 bytes at 0
temporary t1: 16 bytes at 16
k0: kernel(r f32, w f32)
  for i0 in 0..4 parallel
    %0 = load a0[i0]
    %1 = neg %0
    store a1[i0] = %1
steps
  k0 (in0, t0)  // first
  k0 (t0, out0)  // second
";

fn parse(text: &str) -> Result<Program, String> {
    let resolve = |c: &margay_loops::ConstantText| Tensor::zeros(c.dtype, &c.shape).ok().map(Into::into);
    parse_program(text, &resolve).map_err(|e| e.to_string())
}

#[test]
fn what_is_printed_reads_back() {
    let text = PROGRAM;
    let program = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    // Hashes are those of the contents, which this test has not.
    let hash = format!("#{} [", program.constants[0].stored.content_hash());
    let other = format!("#{} [", program.constants[1].stored.content_hash());
    let expected = text.replace("#a0b1c2 [", &hash).replace("#d3e4f5 [", &other);
    assert_eq!(program.to_string(), expected);
    assert_eq!(
        program.steps().map(|(depth, _)| depth).collect::<Vec<_>>(),
        [0, 0, 0, 0, 1, 1, 0, 1, 2, 0, 0]
    );
}

#[test]
fn texts_that_are_no_programs_name_the_line() {
    for (from, to, expected) in [
        ("steps", "setps", "line 11: expected `k1: kernel(…)` or `steps` at `setps`"),
        ("k0 (in0, t0)", "k0 (in0, t9)", "line 12: there is no buffer `t9`"),
        ("%1 = neg %0", "%1 = neg %7", "line 9: `%7` is not defined here"),
        ("%1 = neg %0", "%0 = neg %0", "line 9: `%0` is defined twice"),
        ("%1 = neg %0", "%1 = nag %0", "line 9: `nag` is no operation and no literal"),
        ("%1 = neg %0", "%1 = add %0", "line 9: `add` takes 2 operands, found 1"),
        ("load a0[i0]", "load a2[i0]", "line 8: `a2` is beyond the 2 arguments"),
        ("    %1 = neg", "      %1 = neg", "line 9: `%1 = neg %0` is indented as nothing around it is"),
        ("    %1 = neg", "   %1 = neg", "line 9: indented by 3, expected a multiple of 2"),
        ("f32[4]\noutput", "f32[x]\noutput", "line 1: `x` is not a number"),
        ("f32[4]\noutput", "f32[4000000000, 4000000000]\noutput", "line 1: "),
        ("k0 (t0, out0)  // second", "else", "line 13: `else` without `if`"),
        ("k0 (t0, out0)", "matmul {m = 1} (t0)", "line 13: missing field `n`"),
        ("k0 (t0, out0)", "product {m = 1} (t0)", "line 13: there is no kernel call `product`"),
        ("temporary t0", "temporary t4", "line 4: expected `t0: N bytes at N`"),
    ] {
        let text = SMALL.replacen(from, to, 1);
        assert_ne!(text, SMALL, "`{from}` is in the text");
        let error = parse(&text).expect_err(&text);
        assert!(error.starts_with(expected), "{error}, expected {expected}");
    }
}

fn violations(text: &str) -> Vec<String> {
    let program = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    program.verify().err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn what_holds_is_not_refused() {
    assert_eq!(violations(SMALL), Vec::<String>::new());
}

#[test]
fn every_rule_refuses_what_breaks_it() {
    let matmul = "matmul {m = 1, n = 4, k = 4, a = {row_stride = 4, col_stride = 1}, \
                  b = {row_stride = 4, col_stride = 1}, c_row_stride = 4}";
    let cases: &[(&str, String, &str)] = &[
        (
            "temporary t0: 16 bytes at 0",
            "temporary t0: 16 bytes at 60".into(),
            "t0: 16 bytes at 60 in an arena of 64",
        ),
        (
            "output y: f32[4]",
            "output y: f32[4]\noutput z: f32[4]\ncarried out1 to in0\ncarried out0 to in0".into(),
            "carried out0 to in0: one of them is in two pairs",
        ),
        (
            "output y: f32[4]",
            "output y: f32[4]\noutput z: f32[2]\ncarried out1 to in0".into(),
            "carried out1 to in0: f32[2] becomes f32[4]",
        ),
        (
            "output y: f32[4]",
            "output y: f32[4]\ncarried out3 to in0".into(),
            "carried out3 to in0: there is no such port",
        ),
        // Kernels.
        ("%1 = neg %0", "%1 = not %0".into(), "k0: `not %0` of f32"),
        ("%1 = neg %0", "%1 = and %0, %0".into(), "k0: `and %0, %0` of f32 and f32"),
        ("%1 = neg %0", "%1 = isnan %0".into(), "k0: value %1 is bool, expected f32"),
        ("load a0[i0]", "load a0[i1]".into(), "k0: index `i1` moves along i1, which no loop around it has"),
        ("store a1[i0] = %1", "store a0[i0] = %1".into(), "k0: a0 is stored to and not written"),
        (
            "    store a1[i0]",
            "    for i1 in 0..4\n      %2 = neg %1\n    store a1[%2]".into(),
            "k0: %2 is not defined where it is used",
        ),
        (
            "    %1 = neg %0\n",
            "    %1 = neg %0\n    for i1 in 0..2 parallel\n      %2 = neg %1\n".into(),
            "k0: a loop that is not outermost is parallel",
        ),
        (
            "  for i0 in 0..4 parallel",
            "  %2 = 1.0 : f32\n  store a1[0] = %2\n  for i0 in 0..4 parallel".into(),
            "k0: statements with effects stand before a parallel loop",
        ),
        (
            "  for i0 in 0..4 parallel",
            "  %2 = 1.0 : f32\n  for i0 in 0..%2 max 4 parallel".into(),
            "k0: extent %2 is f32, expected i64",
        ),
        // Steps.
        ("k0 (t0, out0)", "k1 (t0, out0)".into(), "step 1 (second): there is no kernel k1, only 1"),
        ("k0 (t0, out0)", "k0 (t0)".into(), "step 1 (second): 1 operands, expected 2"),
        ("k0 (t0, out0)", format!("{matmul} (t0, out0)"), "step 1 (second): 2 operands, expected 3"),
        ("k0 (t0, out0)", "k0 (t0+4, out0)".into(), "step 1 (second): reads bytes 4..20 of t0 with 16"),
        ("k0 (t0, out0)", "k0 (t0, out0+4)".into(), "step 1 (second): writes bytes 4..20 of out0 with 16"),
        ("k0 (t0, out0)", "copy 20 (t0, out0)".into(), "step 1 (second): reads bytes 0..20 of t0 with 16"),
        (
            "k0 (t0, out0)",
            format!("{matmul} (in0, t0, out0)"),
            "step 1 (second): reads bytes 0..64 of t0 with 16",
        ),
        ("k0 (t0, out0)", "k0 (t0, in0)".into(), "step 1 (second): writes to in0"),
        (
            "k0 (t0, out0)",
            "if t0+15\n    k0 (t0, out0)\n  loop t0+12 max 3".into(),
            "reads bytes 12..20 of t0 with 16",
        ),
        (
            "store a1[i0] = %1",
            "store a1[i0 + 1] = %1".into(),
            "step 0 (first): writes bytes 4..20 of t0 with 16",
        ),
        // What a step writes overlaps nothing else.
        ("k0 (t0, out0)", "copy 8 (t0, t0+4)".into(), "step 1 (second): t0 and t0 overlap"),
        // Bytes on their way.
        (
            "  k0 (in0, t0)  // first\n",
            String::new(),
            "step 0 (second): reads bytes 0..16 of t0, which hold nothing of it",
        ),
        (
            "k0 (in0, t0)",
            "copy 8 (in0, t0)".into(),
            "step 1 (second): reads bytes 8..16 of t0, which hold nothing of it",
        ),
        ("  k0 (t0, out0)", "  copy 16 (in0, t1)\n  k0 (t0, out0)".into(), ""),
        (
            "k0 (in0, t0)",
            "if in0\n    k0 (in0, t0)".into(),
            "reads bytes 0..16 of t0, which hold nothing of it",
        ),
        (
            "k0 (in0, t0)",
            "loop in0 max 3\n    k0 (in0, t0)".into(),
            "reads bytes 0..16 of t0, which hold nothing of it",
        ),
        (
            "k0 (in0, t0)",
            "loop 3\n    k0 (t0, t1)\n    k0 (in0, t0)".into(),
            "reads bytes 0..16 of t0, which hold nothing of it",
        ),
        // Outputs are complete.
        ("k0 (t0, out0)", "copy 12 (t0, out0)".into(), "output `y`: nothing writes its bytes 12..16"),
        ("store a1[i0] = %1", "store a1[0] = %1".into(), "reads bytes 4..16 of t0, which hold nothing of it"),
    ];
    for (from, to, expected) in cases {
        let text = SMALL.replacen(from, to, 1);
        assert_ne!(text, SMALL, "`{from}` is in the text");
        let found = violations(&text);
        match expected.is_empty() {
            true => assert_eq!(found, Vec::<String>::new(), "{text}"),
            false => {
                assert!(found.iter().any(|v| v.contains(expected)), "{found:?}, expected {expected}\n{text}")
            }
        }
    }
}

#[test]
fn bytes_that_another_buffer_overwrote_are_gone() {
    let text = SMALL
        .replace("temporary t1: 16 bytes at 16", "temporary t1: 16 bytes at 8")
        .replace("  k0 (t0, out0)", "  copy 16 (in0, t1)  // over\n  k0 (t0, out0)");
    assert_eq!(violations(&text), ["step 2 (second): reads bytes 8..16 of t0, which hold nothing of it"]);
    // A loop whose body reads what its last repetition has overwritten.
    let text = SMALL
        .replace("temporary t1: 16 bytes at 16", "temporary t1: 16 bytes at 8")
        .replace("  k0 (t0, out0)", "  loop 2\n    k0 (t0, out0)\n    copy 16 (in0, t1)");
    assert_eq!(violations(&text), ["step 2: reads bytes 8..16 of t0, which hold nothing of it"]);
}

#[test]
fn a_state_is_read_where_it_is_written_or_before() {
    let carried = SMALL.replace("arena", "carried out0 to in0\narena");
    assert_eq!(violations(&carried), Vec::<String>::new());
    let in_place =
        carried.replace("  k0 (in0, t0)  // first\n", "").replace("k0 (t0, out0)", "k0 (in0, out0)");
    assert_eq!(violations(&in_place), Vec::<String>::new());
    let elsewhere = in_place.replace("load a0[i0]", "load a0[-i0 + 3]");
    assert_eq!(violations(&elsewhere), ["step 0 (second): out0 and in0 overlap"]);
    let late =
        carried.replace("k0 (t0, out0)  // second", "k0 (t0, out0)  // second\n  k0 (in0, t1)  // late");
    assert_eq!(violations(&late), ["step 2 (late): reads bytes 0..16 of in0, which hold nothing of it"]);
}
