//! What kernels become: which thread does what, and the text itself. Needs no LLVM.

use margay_codegen_gpu::{CodegenError, Form, map, write};
use margay_loops::{Kernel, parse_program};

const FORM: Form = Form { aligned: true, in_place: false, large: false };

/// A kernel by its text, which begins `kernel(…)`.
fn kernel(text: &str) -> Kernel {
    let program = format!("arena 0 bytes\nk0: {text}\nsteps\n");
    let program = parse_program(&program, &|_| None).unwrap_or_else(|e| panic!("{e}\n{program}"));
    program.kernels.into_iter().next().expect("a kernel")
}

/// Rows of a softmax.
fn rows(rows: usize, columns: usize) -> String {
    format!(
        "kernel(r f32, w f32)
  for i0 in 0..{rows} parallel
    reduce i1 in 0..{columns}: %1 = max %0
      %0 = load a0[{columns}*i0 + i1]
    reduce i2 in 0..{columns}: %5 = sum %4
      %2 = load a0[{columns}*i0 + i2]
      %3 = sub %2, %1
      %4 = exp %3
    for i3 in 0..{columns}
      %6 = load a0[{columns}*i0 + i3]
      %7 = sub %6, %1
      %8 = exp %7
      %9 = div %8, %5
      store a1[{columns}*i0 + i3] = %9"
    )
}

fn elementwise(extent: usize, offset: usize) -> String {
    format!(
        "kernel(r f32, w f32)
  for i0 in 0..{extent} parallel
    %0 = load a0[i0 + {offset}]
    %1 = neg %0
    store a1[i0] = %1"
    )
}

#[test]
fn threads_are_mapped_by_what_lies_side_by_side() {
    let columns = "kernel(r f32, w f32)
  for i0 in 0..1000 parallel
    reduce i1 in 0..300: %1 = sum %0
      %0 = load a0[1000*i1 + i0]
    store a1[i0] = %1";
    let scan = "kernel(r f32, w f32)
  for i0 in 0..3 parallel
    for i1 in 0..64
      %0 = load a0[64*i0 + i1]
      store a1[i0] = %0
      %1 = load a1[i0]";
    let cases = [
        ("elementwise", elementwise(4096, 0)),
        ("elementwise, 3 more", elementwise(4099, 0)),
        ("elementwise, off by one", elementwise(4096, 1)),
        ("one element", elementwise(1, 0)),
        ("a million elements", elementwise(1 << 20, 0)),
        ("short rows", rows(1000, 8)),
        ("rows", rows(1000, 200)),
        ("long rows", rows(1000, 1000)),
        ("one very long row", rows(1, 100_000)),
        ("sums of columns", columns.to_owned()),
        ("one place written again and again", scan.to_owned()),
    ];
    let lines: Vec<String> =
        cases.iter().map(|(name, text)| format!("{name}: {}", map(&kernel(text), true))).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    elementwise: a thread per 4 positions, 8 blocks of 128
    elementwise, 3 more: a thread per position, 33 blocks of 128
    elementwise, off by one: a thread per position, 32 blocks of 128
    one element: a thread per position, 1 blocks of 32
    a million elements: a thread per 4 positions, 2048 blocks of 128
    short rows: a thread per position, 8 blocks of 128
    rows: a block per position, 1000 blocks of 32
    long rows: a block per position, 1000 blocks of 128
    one very long row: a block per position, 1 blocks of 256
    sums of columns: a thread per position, 8 blocks of 128
    one place written again and again: a thread per position, 1 blocks of 128
    ");
    let unaligned = map(&kernel(&elementwise(4096, 0)), false);
    assert_eq!(unaligned.to_string(), "a thread per position, 32 blocks of 128");
}

#[test]
fn a_loop_over_elements_is_one_operation_on_four() {
    let written = write(&kernel(&elementwise(4096, 0)), "k0", FORM).unwrap();
    let (head, body) = written.text.split_once("      %4 =").expect("operations follow the constants");
    assert!(head.contains("known_block_size = array<i32: 128, 1, 1>"));
    assert!(head.contains("%c0 = arith.constant 1024") && head.contains("%c3 = arith.constant 4 "));
    insta::assert_snapshot!(format!("      %4 ={body}"), @r"
          %4 = gpu.thread_id x
          %5 = arith.index_cast %4 : index to i32
          %6 = gpu.block_id x
          %7 = arith.index_cast %6 : index to i32
          %8 = arith.muli %7, %c2 : i32
          %9 = arith.addi %8, %5 : i32
          scf.for %10 = %9 to %c0 step %c0 : i32 {
            %12 = arith.muli %10, %c3 : i32
            %13 = llvm.getelementptr %0[%12] : (!llvm.ptr, i32) -> !llvm.ptr, f32
            %14 = llvm.load %13 {alignment = 16 : i64} : !llvm.ptr -> vector<4xf32>
            %15 = arith.negf %14 : vector<4xf32>
            %16 = llvm.getelementptr %1[%12] : (!llvm.ptr, i32) -> !llvm.ptr, f32
            llvm.store %15, %16 {alignment = 16 : i64} : vector<4xf32>, !llvm.ptr
          }
          gpu.return
        }
      }
    }
    ");
}

#[test]
fn rows_are_joined_within_warps() {
    let text = "kernel(r f32, w f32)
  for i0 in 0..2 parallel
    reduce i1 in 0..64: %1 = sum %0
      %0 = load a0[64*i0 + i1]
    store a1[i0] = %1";
    let written = write(&kernel(text), "k0", FORM).unwrap();
    assert_eq!(written.text.matches("gpu.shuffle").count(), 5);
    assert!(!written.text.contains("gpu.barrier"), "one warp needs none");
    let long = write(&kernel(&rows(2, 1000)), "k0", FORM).unwrap();
    assert_eq!((long.text.matches("gpu.shuffle").count(), long.text.matches("gpu.barrier").count()), (10, 4));
}

#[test]
fn what_may_be_written_elsewhere_is_no_constant() {
    let text = elementwise(4, 0);
    let apart = write(&kernel(&text), "k0", FORM).unwrap().text;
    let in_place = write(&kernel(&text), "k0", Form { in_place: true, ..FORM }).unwrap().text;
    assert!(apart.contains("llvm.noalias, llvm.readonly"));
    assert!(!in_place.contains("noalias"));
}

#[test]
fn large_buffers_have_positions_of_64_bits() {
    let text = elementwise(4, 0);
    let large = write(&kernel(&text), "k0", Form { large: true, ..FORM }).unwrap().text;
    assert!(large.contains("-> !llvm.ptr, f32") && large.contains("(!llvm.ptr, i64)"));
}

#[test]
fn what_has_no_translation_is_named() {
    let text = "kernel(r f64, w f64)
  for i0 in 0..4 parallel
    %0 = load a0[i0]
    %1 = tanh %0
    store a1[i0] = %1";
    let error = write(&kernel(text), "k7", FORM).unwrap_err();
    assert!(matches!(error, CodegenError::Unsupported { .. }));
    assert_eq!(error.to_string(), "no translation of Tanh of f64 in `k7`");
}
