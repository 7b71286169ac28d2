//! Constants that products read as they are stored: codes with scales, and random signs; products of integers; and
//! Hadamard transforms, which have the bits of the processor.

use margay_codegen_gpu::GpuBackend;
use margay_driver::{Runner, backend};
use margay_emulator::Emulator;
use margay_ir::ops::{Const, MatMul};
use margay_ir::{Graph, Origin, Payload, TensorType, eval};
use margay_kernels_gpu::{Class, GpuTarget};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Signs, Storage, StoredTensor, Tensor};
use margay_testkit::{Tolerance, normal, parse_with_random_constants};

use crate::products::{compare, inputs};
use crate::{emulated_on, parts_of};

const SM80: GpuTarget = GpuTarget::emulated(Class::Sm80);

/// `y = x w` for a constant.
pub(crate) fn product(rows: usize, w: Payload) -> Graph {
    let (k, n) = (w.stored().shape()[0], w.stored().shape()[1]);
    let mut g = Graph::new("product");
    let x = g.add_input("x", TensorType::known(DType::F32, &[rows, k]));
    let w = g.add(Const { payload: w }, &[], Origin::named("w")).expect("a constant");
    let y = g.add(MatMul, &[x, w], Origin::named("product")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(g.ty(y).extents(), Some(vec![rows, n]));
    g.add_output("y", y);
    g
}

/// The steps of a graph, and the bytes of its constants.
fn steps_and_bytes(g: &Graph) -> (usize, usize) {
    let parts = parts_of(g, &Binding::new(), &GpuBackend::new(SM80)).unwrap_or_else(|e| panic!("{e}"));
    let constants = &parts.description.constants;
    let bytes = constants.iter().map(|c| c.range.len()).sum();
    (parts.description.entries[0].sections[0].parts.steps.len(), bytes)
}

/// Few rows and tiles.
const ROWS: [usize; 2] = [5, 70];

#[test]
fn codes_are_read_with_their_scales() {
    for text in [
        "i8(axis = 1)",
        "i8(axis = 0)",
        "u8(tensor, zero points)",
        "i8(axis = 1, block = 32)",
        "u4(axis = 0, block = 64, bf16 scales, zero points)",
        "u4(axis = 1, block = 16, zero points)",
        "i4(axis = 1)",
        "u3(axis = 0, block = 32, bf16 scales, zero points)",
        "i3(tensor)",
    ] {
        let storage = Storage::parse(text).unwrap_or_else(|| panic!("{text}"));
        // An odd number of columns: codes of several bits lie across bytes.
        let w = Payload::new(normal(&[201, 67], 7, 1)).stored_as(storage).unwrap_or_else(|e| panic!("{e}"));
        let held = storage.layout(&[201, 67]).bytes;
        for rows in ROWS {
            let g = product(rows, w.clone());
            assert_eq!(steps_and_bytes(&g), (1, held), "{text}: nothing is widened before");
            for target in [SM80, SM80.with_tf32(), GpuTarget::new(Class::Sm75)] {
                let tolerance = match target.allows_tf32() {
                    true => Tolerance { relative: 2e-3, absolute: 2e-2 },
                    false => Tolerance::REDUCTION,
                };
                let error = compare(text, &g, target, false, tolerance);
                println!("{text}, {rows} rows, {}: {error:.1e}", target.name());
            }
        }
    }
}

/// Signs at some positions of an axis of a matrix, numbers at the others.
pub(crate) fn with_signs([k, n]: [usize; 2], axis: usize, range: [usize; 2]) -> Payload {
    let signs = Signs::new(axis, range, [7 << 33 | 5, 3], 0.125);
    let mut others = [k, n];
    others[axis] -= signs.len();
    let numbers = normal(&others, 3, 4);
    Payload::new(StoredTensor::with_signs(numbers, signs).unwrap_or_else(|e| panic!("{e}")))
}

/// Shapes, axes and ranges: lines that begin with a block of the generator and others; all of a constant, its begin, its end,
/// and what lies between.
const SIGNS: [([usize; 2], usize, [usize; 2]); 8] = [
    ([150, 128], 1, [0, 128]),
    ([150, 70], 1, [0, 70]),
    ([150, 200], 1, [72, 200]),
    ([150, 96], 1, [0, 33]),
    ([150, 90], 1, [20, 61]),
    ([150, 128], 0, [0, 150]),
    ([150, 70], 0, [100, 150]),
    ([150, 45], 0, [0, 31]),
];

#[test]
fn signs_are_made_where_they_are_multiplied() {
    for (shape, axis, range) in SIGNS {
        let w = with_signs(shape, axis, range);
        let stored = shape[0] * shape[1] - (range[1] - range[0]) * shape[1 - axis];
        for rows in ROWS {
            let g = product(rows, w.clone());
            let what = format!("{rows} rows, {shape:?}, axis {axis}, {range:?}");
            assert_eq!(steps_and_bytes(&g), (1, 4 * stored), "{what}");
            for target in [SM80, GpuTarget::new(Class::Sm80)] {
                let error = compare(&what, &g, target, false, Tolerance::REDUCTION);
                println!("{what}, {}: {error:.1e}", target.name());
            }
        }
    }
}

#[test]
fn signs_have_the_bits_of_the_processor() {
    for (shape, axis, range) in SIGNS {
        let w = with_signs(shape, axis, range);
        let expected = w.tensor().to_vec::<f32>().expect("f32");
        // Rows of the identity give rows of the constant.
        for first in (0..shape[0]).step_by(70) {
            let rows = (shape[0] - first).min(70);
            let mut x = vec![0f32; rows * shape[0]];
            (0..rows).for_each(|row| x[row * shape[0] + first + row] = 1.0);
            let x = Tensor::from_slice(&[rows, shape[0]], &x).expect("a matrix");
            let g = product(rows, w.clone());
            let executable = emulated_on(&GpuBackend::new(SM80), &g, &Binding::new(), &Emulator::new(2));
            let executable = executable.unwrap_or_else(|e| panic!("{e}"));
            let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
            let found = session.run(&[("x", &x)]).unwrap_or_else(|e| panic!("{e}")).remove(0).1;
            let found = found.to_vec::<f32>().expect("f32");
            assert!(
                found == expected[first * shape[1]..][..found.len()],
                "{shape:?}, axis {axis}, {range:?}"
            );
        }
    }
}

#[test]
fn hadamard_transforms_have_the_bits_of_the_processor() {
    for (rows, len) in
        [(1, 1), (3, 2), (7, 8), (40, 64), (5, 256), (3, 512), (2, 4096), (3, 8192), (2, 16384), (1, 1 << 18)]
    {
        let text = format!(
            "graph @h(%x: f32[{rows}, {len}]) -> (y: f32[{rows}, {len}]) {{
               %0 = hadamard %x : f32[{rows}, {len}]
               return %0
             }}"
        );
        let (g, _) = parse_with_random_constants(&text);
        let given = inputs(&g, true);
        let expected =
            Runner::new(g.clone(), &backend::native(), 1).run(&given).unwrap_or_else(|e| panic!("{e}"));
        let targets = if len > 10_000 { &[SM80][..] } else { &[SM80, GpuTarget::new(Class::Sm75)] };
        for &target in targets {
            let error = compare(&text, &g, target, true, Tolerance::REDUCTION);
            let executable = emulated_on(&GpuBackend::new(target), &g, &Binding::new(), &Emulator::new(2));
            let executable = executable.unwrap_or_else(|e| panic!("{e}"));
            let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
            let by_name: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let found = session.run(&by_name).unwrap_or_else(|e| panic!("{e}"));
            assert!(found[0].1.bytes() == expected[0].1.bytes(), "{rows} x {len} on {}", target.name());
            println!("{rows} x {len}, {}: {error:.1e}", target.name());
        }
    }
}

/// Products of 8-bit integers with what is done to their sums.
const INTEGERS: [(&str, &str); 4] = [
    (
        "tiles, with and without a sign",
        "graph @g(%x: u8[70, 40], %w: i8[40, 50]) -> (y: i32[70, 50]) {
           %0 = matmul %x, %w : i32[70, 50]
           return %0
         }",
    ),
    (
        "one row of another layout",
        "graph @g(%x: i8[1, 300], %w: i8[70, 300]) -> (y: i32[1, 70]) {
           %0 = transpose %w {perm = [1, 0]} : i8[300, 70]
           %1 = matmul %x, %0 : i32[1, 70]
           return %1
         }",
    ),
    (
        "sums that are split",
        "graph @g(%x: i8[20, 4000], %w: u8[4000, 30]) -> (y: i32[20, 30]) {
           %0 = matmul %x, %w : i32[20, 30]
           return %0
         }",
    ),
    (
        "offsets, scales, a bias and a function",
        "graph @g(%x: u8[70, 40], %w: i8[40, 50], %o: i32[50], %s: f32[50], %b: f32[50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : i32[70, 50]
           %1 = add %0, %o : i32[70, 50]
           %2 = cast %1 {to = f32} : f32[70, 50]
           %3 = mul %2, %s : f32[70, 50]
           %4 = add %3, %b : f32[70, 50]
           %5 = relu %4 : f32[70, 50]
           return %5
         }",
    ),
];

/// Integers of all sizes, and floats.
fn integers(g: &Graph) -> Vec<(String, Tensor)> {
    let input = |(i, n): (usize, &margay_ir::NodeId)| {
        let ty = g.ty((*n).into());
        let shape = ty.extents().expect("closed extents");
        let numbers = normal(&shape, 11, i as u64).to_vec::<f32>().expect("f32");
        let tensor = match ty.dtype {
            DType::I8 => {
                let all: Vec<i8> = numbers.iter().map(|x| (90.0 * x).clamp(-128.0, 127.0) as i8).collect();
                Tensor::from_slice(&shape, &all)
            }
            DType::U8 => {
                let all: Vec<u8> =
                    numbers.iter().map(|x| (128.0 + 90.0 * x).clamp(0.0, 255.0) as u8).collect();
                Tensor::from_slice(&shape, &all)
            }
            DType::I32 => {
                let all: Vec<i32> = numbers.iter().map(|x| (1e4 * x) as i32).collect();
                Tensor::from_slice(&shape, &all)
            }
            _ => Tensor::from_slice(&shape, &numbers),
        };
        (g.node(*n).origin.name().to_string(), tensor.expect("a tensor"))
    };
    g.inputs().iter().enumerate().map(input).collect()
}

#[test]
fn products_of_integers_are_exact() {
    for (name, text) in INTEGERS {
        let (g, _) = parse_with_random_constants(text);
        let given = integers(&g);
        let by_name: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let expected = eval::run(&g, &by_name).unwrap_or_else(|e| panic!("{name}: {e}")).remove(0);
        assert_eq!(steps_and_bytes(&g), (1, 0), "{name}: one product");
        for target in [SM80, GpuTarget::new(Class::Sm75), GpuTarget::new(Class::Sm80)] {
            let executable = emulated_on(&GpuBackend::new(target), &g, &Binding::new(), &Emulator::new(4));
            let executable = executable.unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
            for _ in 0..3 {
                let found = session.run(&by_name).unwrap_or_else(|e| panic!("{name}: {e}")).remove(0).1;
                if expected.dtype() == DType::I32 {
                    assert!(found.bytes() == expected.bytes(), "{name} on {}", target.name());
                } else {
                    margay_testkit::assert_close(name, &found, &expected, Tolerance::ELEMENTWISE);
                }
            }
        }
    }
}

/// The graphs of these tests, for those of PTX.
pub(crate) fn graphs() -> Vec<Graph> {
    let codes = ["i8(axis = 1)", "u4(axis = 0, block = 64, bf16 scales, zero points)", "i3(tensor)"];
    let codes = codes.into_iter().map(|text| {
        let storage = Storage::parse(text).unwrap_or_else(|| panic!("{text}"));
        Payload::new(normal(&[201, 67], 7, 1)).stored_as(storage).unwrap_or_else(|e| panic!("{e}"))
    });
    let signs = SIGNS.into_iter().map(|(shape, axis, range)| with_signs(shape, axis, range));
    let constants: Vec<Payload> = codes.chain(signs).collect();
    let products = constants.iter().flat_map(|w| ROWS.map(|rows| product(rows, w.clone())));
    let texts = INTEGERS.iter().map(|(_, text)| parse_with_random_constants(text).0);
    products.chain(texts).collect()
}
