//! Products of every form on the emulator: few rows, tiles, matrix units, and sums that are split.

use margay_codegen_gpu::GpuBackend;
use margay_driver::{Dump, build};
use margay_emulator::Emulator;
use margay_ir::ops::Numbers;
use margay_ir::{Graph, NodeId, eval};
use margay_kernels_gpu::{Class, GpuTarget, calls};
use margay_loops::{ConstantText, Precision, Work, parse_program};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, StoredTensor, Tensor};
use margay_testkit::{Tolerance, assert_close, max_error, normal, parse_with_random_constants};

use crate::{code_of, emulated_on};

/// Orders of threads that each product runs in.
const ORDERS: usize = 5;
/// The same for PTX, which is interpreted.
const ORDERS_OF_PTX: usize = 2;

const SM80: GpuTarget = GpuTarget::emulated(Class::Sm80);

/// A product.
struct Row {
    name: &'static str,
    text: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        name: "one row, columns side by side",
        text: "graph @g(%x: f32[1, 300], %w: f32[300, 70]) -> (y: f32[1, 70]) {
           %0 = matmul %x, %w : f32[1, 70]
           return %0
         }",
    },
    Row {
        name: "five rows, terms side by side",
        text: "graph @g(%x: f32[5, 300], %w: f32[70, 300]) -> (y: f32[5, 70]) {
           %0 = transpose %w {perm = [1, 0]} : f32[300, 70]
           %1 = matmul %x, %0 : f32[5, 70]
           return %1
         }",
    },
    Row {
        name: "sixteen rows that lie as columns, with a bias",
        text: "graph @g(%x: f32[40, 16], %w: f32[40, 33], %b: f32[33]) -> (y: f32[16, 33]) {
           %0 = transpose %x {perm = [1, 0]} : f32[16, 40]
           %1 = matmul %0, %w : f32[16, 33]
           %2 = add %1, %b : f32[16, 33]
           return %2
         }",
    },
    Row {
        name: "one row and many terms",
        text: "graph @g(%x: f32[1, 9000], %w: f32[9000, 40]) -> (y: f32[1, 40]) {
           %0 = matmul %x, %w : f32[1, 40]
           return %0
         }",
    },
    Row {
        name: "tiles",
        text: "graph @g(%x: f32[70, 40], %w: f32[40, 50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : f32[70, 50]
           return %0
         }",
    },
    Row {
        name: "few tiles and many terms",
        text: "graph @g(%x: f32[70, 3000], %w: f32[3000, 50], %b: f32[50], %r: f32[70, 50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : f32[70, 50]
           %1 = add %0, %b : f32[70, 50]
           %2 = gelu %1 : f32[70, 50]
           %3 = add %2, %r : f32[70, 50]
           return %3
         }",
    },
    Row {
        name: "several products of many terms",
        text: "graph @g(%x: f32[2, 3, 20, 2000], %w: f32[3, 2000, 18]) -> (y: f32[2, 3, 20, 18]) {
           %0 = matmul %x, %w : f32[2, 3, 20, 18]
           return %0
         }",
    },
    Row {
        name: "both operands transposed",
        text: "graph @g(%x: f32[45, 70], %w: f32[66, 45]) -> (y: f32[70, 66]) {
           %0 = transpose %x {perm = [1, 0]} : f32[70, 45]
           %1 = transpose %w {perm = [1, 0]} : f32[45, 66]
           %2 = matmul %0, %1 : f32[70, 66]
           return %2
         }",
    },
    Row {
        name: "large tiles",
        text: "graph @g(%x: f32[900, 130], %w: f32[130, 1000]) -> (y: f32[900, 1000]) {
           %0 = matmul %x, %w : f32[900, 1000]
           return %0
         }",
    },
    Row {
        name: "a convolution",
        text: "graph @g(%x: f32[2, 6, 9, 9], %w: f32[10, 6, 3, 3]) -> (y: f32[2, 10, 9, 9]) {
           %0 = conv %x, %w {pads_before = [1, 1], pads_after = [1, 1]} : f32[2, 10, 9, 9]
           return %0
         }",
    },
];

/// The graphs of all products.
pub(crate) fn graphs() -> Vec<Graph> {
    let narrow = [DType::BF16, DType::F16]
        .into_iter()
        .flat_map(|dtype| ROWS.iter().map(move |row| parse(&row.text.replace("f32", &dtype.to_string()))));
    ROWS.iter().map(|row| parse(row.text)).chain(narrow).collect()
}

fn parse(text: &str) -> Graph {
    parse_with_random_constants(text).0
}

/// The forms of the products of a graph.
fn forms(g: &Graph, target: GpuTarget) -> String {
    let code = code_of(g, &GpuBackend::new(target)).unwrap_or_else(|e| panic!("{e}"));
    // Of constants only the types matter.
    let zeros = |c: &ConstantText| {
        StoredTensor::from_bytes(c.dtype, &c.shape, c.storage, &vec![0; c.storage.layout(&c.shape).bytes])
            .ok()
    };
    let program = parse_program(&code.program, &zeros).unwrap_or_else(|e| panic!("{e}"));
    let of_step = |(_, step): (usize, &margay_loops::Step)| match &step.work {
        Work::Call { call, .. } => calls::form(call, target),
        _ => None,
    };
    program.steps().filter_map(of_step).collect::<Vec<_>>().join("; ")
}

/// Inputs, the same on every call; with bits that tf32 does not have if `whole`, or without.
pub(crate) fn inputs(g: &Graph, whole: bool) -> Vec<(String, Tensor)> {
    let input = |(i, n): (usize, &NodeId)| {
        let ty = g.ty((*n).into());
        let x = normal(&ty.extents().expect("closed extents"), 11, i as u64);
        let mut values = x.to_vec::<f32>().expect("f32");
        if !whole {
            values.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits() & !0x1fff));
        }
        let numbers = Numbers::Float(values.into_iter().map(f64::from).collect());
        let x = numbers.into_tensor(ty.dtype, x.shape());
        (g.node(*n).origin.name().to_string(), x.expect("a tensor"))
    };
    g.inputs().iter().enumerate().map(input).collect()
}

/// Runs a graph in several orders of threads, which give the same bits. Returns the greatest difference from the reference.
pub(crate) fn compare(what: &str, g: &Graph, target: GpuTarget, whole: bool, tolerance: Tolerance) -> f64 {
    let inputs = inputs(g, whole);
    let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let expected = eval::run(g, &by_name).unwrap_or_else(|e| panic!("{what}: {e}"));
    let backend = GpuBackend::new(target);
    let executable = emulated_on(&backend, g, &Binding::new(), &Emulator::new(4));
    let executable = executable.unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
    let run = |session: &mut Session| session.run(&by_name).unwrap_or_else(|e| panic!("{what}: {e}"));
    let first = run(&mut session);
    for ((_, found), expected) in first.iter().zip(&expected) {
        assert_close(what, found, expected, tolerance.of(expected.dtype()));
    }
    for _ in 1..if target.is_emulated() { ORDERS } else { ORDERS_OF_PTX } {
        assert_eq!(first, run(&mut session), "{what}: the same bits in every order");
    }
    first.iter().zip(&expected).map(|((_, f), e)| max_error(f, e)).fold(0.0, f64::max)
}

#[test]
fn every_form_agrees_with_the_reference_in_every_order_of_threads() {
    let mut lines = Vec::new();
    for Row { name, text } in ROWS {
        let g = parse(text);
        for target in [SM80, SM80.with_tf32()] {
            // What tf32 holds is not rounded, so that both are exact.
            let error = compare(name, &g, target, false, Tolerance::REDUCTION);
            println!("{name}, {}: {error:.1e}", target.name());
            lines.push(format!("{name}, {}: {}", target.name(), forms(&g, target)));
        }
    }
    insta::assert_snapshot!(lines.join("\n"), @r"
    one row, columns side by side, emulated-sm_80: few rows
    one row, columns side by side, emulated-sm_80+tf32: few rows
    five rows, terms side by side, emulated-sm_80: few rows
    five rows, terms side by side, emulated-sm_80+tf32: few rows
    sixteen rows that lie as columns, with a bias, emulated-sm_80: few rows
    sixteen rows that lie as columns, with a bias, emulated-sm_80+tf32: few rows
    one row and many terms, emulated-sm_80: few rows, 18 parts of 512 terms
    one row and many terms, emulated-sm_80+tf32: few rows, 18 parts of 512 terms
    tiles, emulated-sm_80: tiles of 64 x 64
    tiles, emulated-sm_80+tf32: matrix units of tf32, tiles of 64 x 64
    few tiles and many terms, emulated-sm_80: tiles of 64 x 64, 32 parts of 96 terms
    few tiles and many terms, emulated-sm_80+tf32: matrix units of tf32, tiles of 64 x 64, 16 parts of 192 terms
    several products of many terms, emulated-sm_80: tiles of 64 x 64, 16 parts of 128 terms
    several products of many terms, emulated-sm_80+tf32: matrix units of tf32, tiles of 64 x 64, 16 parts of 128 terms
    both operands transposed, emulated-sm_80: tiles of 64 x 64
    both operands transposed, emulated-sm_80+tf32: matrix units of tf32, tiles of 64 x 64
    large tiles, emulated-sm_80: tiles of 64 x 64
    large tiles, emulated-sm_80+tf32: matrix units of tf32, tiles of 128 x 128
    a convolution, emulated-sm_80: tiles of 64 x 64
    a convolution, emulated-sm_80+tf32: matrix units of tf32, tiles of 64 x 64
    ");
}

/// Rows but those that take minutes where they are interpreted.
fn small() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(|row| row.name != "large tiles")
}

#[test]
fn ptx_of_every_form_agrees_with_the_reference() {
    let device = GpuTarget::new(Class::Sm80);
    for Row { name, text } in small() {
        for target in [device, device.with_tf32()] {
            let error = compare(name, &parse(text), target, false, Tolerance::REDUCTION);
            println!("{name}, {}: {error:.1e}", target.name());
        }
    }
}

#[test]
fn halves_agree_with_the_reference() {
    for dtype in [DType::BF16, DType::F16] {
        for Row { name, text } in small() {
            let g = parse(&text.replace("f32", &dtype.to_string()));
            // The reference rounds between a product and what follows, where the kernel does not.
            let tolerance = match text.contains("add") {
                true => Tolerance { relative: 1e-2, absolute: 5e-2 },
                false => Tolerance::REDUCTION,
            };
            for target in [SM80, GpuTarget::new(Class::Sm80)] {
                let error = compare(name, &g, target, true, tolerance);
                println!("{dtype} {name}, {}: {}: {error:.1e}", target.name(), forms(&g, SM80));
            }
        }
    }
}

#[test]
fn narrow_constants_are_read_as_they_are_stored_or_widened_before() {
    let product = "graph @g(%x: f32[70, 200]) -> (y: f32[70, 60]) {
       %0 = const #w : f32[200, 60]
       %1 = matmul %x, %0 : f32[70, 60]
       return %1
     }";
    let conv = "graph @g(%x: f32[2, 6, 9, 9]) -> (y: f32[2, 40, 9, 9]) {
       %0 = const #w : f32[40, 6, 3, 3]
       %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[2, 40, 9, 9]
       return %1
     }";
    let tiles = "tiles of 64 x 64";
    // Images are not rounded, so that a convolution multiplies f32. Kernels of convolutions in fewer bits are widened before.
    for (text, precision, form) in [
        (product, Precision::Bf16, "matrix units of bf16, tiles of 64 x 64"),
        (product, Precision::Int8, tiles),
        (product, Precision::Int4, tiles),
        (conv, Precision::Bf16, tiles),
        (conv, Precision::Int8, tiles),
    ] {
        let g = build::in_precision(parse(text), precision, &mut Dump::none());
        let g = g.unwrap_or_else(|e| panic!("{e}"));
        let found = forms(&g, SM80);
        assert!(found.starts_with(form), "{}: {found}", precision.name());
        for class in [Class::Sm75, Class::Sm80] {
            let target = GpuTarget::emulated(class);
            let error = compare(precision.name(), &g, target, false, Tolerance::REDUCTION);
            println!("{}, {}: {error:.1e}", precision.name(), target.name());
        }
    }
}

#[test]
fn factors_are_rounded_to_the_nearest_tf32() {
    let target = SM80.with_tf32();
    let row = ROWS.iter().find(|row| row.name == "tiles").expect("a row");
    let g = parse(row.text);
    let whole = inputs(&g, true);
    let round = |x: f32| f32::from_bits((x.to_bits() + 0x1000) & !0x1fff);
    let rounded: Vec<(String, Tensor)> = whole
        .iter()
        .map(|(name, t)| {
            let values: Vec<f32> = t.to_vec::<f32>().expect("f32").into_iter().map(round).collect();
            (name.clone(), Tensor::from_slice(t.shape(), &values).expect("as many as before"))
        })
        .collect();
    let reference = |inputs: &[(String, Tensor)]| {
        let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        eval::run(&g, &by_name).unwrap_or_else(|e| panic!("{e}")).remove(0)
    };
    let executable = emulated_on(&GpuBackend::new(target), &g, &Binding::new(), &Emulator::new(4));
    let executable = executable.unwrap_or_else(|e| panic!("{e}"));
    let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
    let by_name: Vec<(&str, &Tensor)> = whole.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let (_, found) = session.run(&by_name).unwrap_or_else(|e| panic!("{e}")).remove(0);
    assert_close("rounded factors", &found, &reference(&rounded), Tolerance::REDUCTION);
    let (exact, error) = (reference(&whole), max_error(&found, &reference(&whole)));
    let largest = exact.to_vec::<f32>().expect("f32").into_iter().fold(0f32, |a, x| a.max(x.abs()));
    assert!(error > 1e-4 && error <= 2e-3 * f64::from(largest), "{error} beside {largest}");
}
