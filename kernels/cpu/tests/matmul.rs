//! Products of every class against sums in f64.

mod harness;

use harness::random::Random;
use harness::{ACTIVATIONS, Expected, GAP, classes, compare, execute, finished};
use margay_kernels_cpu::{Class, CpuTarget, kernels};
use margay_loops::precision::{bf16, from_bf16};
use margay_loops::{Activation, BatchAxis, Epilogue, KernelCall, MatLayout, MatMul, Precision, ProductTypes};
use margay_tensor::{DType, Storage, StoredTensor, Tensor};

/// A call whose operands lie close together: A and B optionally transposed, `gap` elements between rows of C.
struct Case {
    call: MatMul,
    a_len: usize,
    b_len: usize,
    c_len: usize,
}

fn case(
    dims: [usize; 3],
    batch: &[(usize, [bool; 2])],
    transposed: [bool; 2],
    packed: bool,
    gap: usize,
) -> Case {
    let [m, n, k] = dims;
    let layout = |rows: usize, cols: usize, transposed: bool| {
        if transposed {
            (MatLayout { row_stride: 1, col_stride: rows + gap }, cols * (rows + gap))
        } else {
            (MatLayout { row_stride: cols + gap, col_stride: 1 }, rows * (cols + gap))
        }
    };
    let (a, mut a_len) = layout(m, k, transposed[0]);
    let (b, mut b_len) = layout(k, n, transposed[1]);
    if packed {
        b_len = k * n;
    }
    let mut c_len = m * (n + gap);
    let mut axes = Vec::new();
    for &(extent, [a_moves, b_moves]) in batch.iter().rev() {
        let step = |moves: bool, len: &mut usize| {
            let stride = if moves { *len } else { 0 };
            *len = if moves { *len * extent } else { *len };
            stride
        };
        axes.push(BatchAxis {
            extent,
            a: step(a_moves, &mut a_len),
            b: step(b_moves, &mut b_len),
            c: step(true, &mut c_len),
        });
    }
    axes.reverse();
    let call = MatMul {
        m,
        n,
        k,
        batch: axes,
        a,
        b,
        c_row_stride: n + gap,
        b_packed: packed,
        types: ProductTypes::F32,
        epilogue: Epilogue::default(),
    };
    Case { call, a_len, b_len, c_len }
}

/// The operands as a call rounds and stores them.
fn rounded(c: &MatMul, inputs: &[Vec<f32>]) -> [Vec<f64>; 2] {
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect();
    let (a, b) = (&inputs[0], &inputs[1]);
    let left = match c.types.left_rounded {
        DType::BF16 => a.iter().map(|&x| f64::from(from_bf16(bf16(x)))).collect(),
        _ => wide(a),
    };
    if !c.b_packed {
        return [left, wide(b)];
    }
    let b = Tensor::from_slice(&[c.k, c.n], b).unwrap();
    let stored = StoredTensor::encode(&b, c.types.right).unwrap();
    [left, wide(&stored.decode().to_vec::<f32>().unwrap())]
}

impl Case {
    fn with(mut self, epilogue: Epilogue) -> Case {
        self.call.epilogue = epilogue;
        self
    }

    fn of_types(mut self, types: ProductTypes) -> Case {
        self.call.types = types;
        self
    }

    fn inputs(&self, random: &mut Random) -> Vec<Vec<f32>> {
        let mut inputs = vec![random.normal(self.a_len), random.normal(self.b_len)];
        if self.call.epilogue.bias {
            inputs.push(random.normal(self.call.n));
        }
        if self.call.epilogue.residual {
            inputs.push(random.normal(self.c_len));
        }
        inputs
    }

    fn expected(&self, inputs: &[Vec<f32>]) -> Vec<Expected> {
        let c = &self.call;
        let [left, right] = rounded(c, inputs);
        let b_layout = if c.b_packed { MatLayout { row_stride: c.n, col_stride: 1 } } else { c.b };
        let bias = |j: usize| if c.epilogue.bias { inputs[2][j] as f64 } else { 0.0 };
        let residual = |at: usize| if c.epilogue.residual { inputs.last().unwrap()[at] as f64 } else { 0.0 };
        let mut expected = vec![GAP; self.c_len];
        let repetitions: usize = c.batch.iter().map(|x| x.extent).product();
        for repetition in 0..repetitions {
            let (mut index, mut at) = (repetition, [0; 3]);
            for axis in c.batch.iter().rev() {
                let i = index % axis.extent;
                index /= axis.extent;
                at = [at[0] + i * axis.a, at[1] + i * axis.b, at[2] + i * axis.c];
            }
            for i in 0..c.m {
                for j in 0..c.n {
                    let (mut sum, mut size) = (0.0, 0.0);
                    for t in 0..c.k {
                        let x = left[at[0] + i * c.a.row_stride + t * c.a.col_stride]
                            * right[at[1] + t * b_layout.row_stride + j * b_layout.col_stride];
                        sum += x;
                        size += x.abs();
                    }
                    let to = at[2] + i * c.c_row_stride + j;
                    expected[to] = finished(&c.epilogue, sum, size, c.k, bias(j), residual(to));
                }
            }
        }
        expected
    }

    fn check(&self, class: Class, inputs: &[Vec<f32>]) {
        let call = KernelCall::MatMul(self.call.clone());
        let found = execute(class, &call, inputs, &[self.call.k, self.call.n], self.c_len);
        compare(&format!("{} {:?}", class.name(), self.call), &found, &self.expected(inputs));
    }
}

#[test]
fn sampled_shapes_and_strides_agree() {
    for class in classes() {
        let mut random = Random::new(1);
        for _ in 0..150 {
            let dims = std::array::from_fn(|_| 1 + random.below(70));
            let batch: &[(usize, [bool; 2])] = random.pick(&[
                &[][..],
                &[],
                &[(3, [true, true])],
                &[(2, [true, false]), (3, [false, true])],
                &[(2, [true, true]), (1, [true, false]), (2, [false, false]), (2, [true, true])],
            ]);
            let transposed = [random.below(2) == 1, random.below(2) == 1];
            let packed = random.below(3) == 0 && batch.iter().all(|axis| !axis.1[1]);
            let gap = random.below(3) * 5;
            let epilogue = Epilogue {
                bias: random.below(2) == 1,
                activation: random.pick(&ACTIVATIONS),
                residual: random.below(2) == 1,
                residual_first: random.below(2) == 1,
                ..Epilogue::default()
            };
            let case = case(dims, batch, transposed, packed, gap).with(epilogue);
            case.check(class, &case.inputs(&mut random));
        }
    }
}

/// Every combination of what an epilogue does.
fn epilogues() -> Vec<Epilogue> {
    let mut all = Vec::new();
    for activation in ACTIVATIONS {
        for bias in [false, true] {
            for (residual, residual_first) in [(false, false), (true, false), (true, true)] {
                all.push(Epilogue { bias, activation, residual, residual_first, ..Epilogue::default() });
            }
        }
    }
    all
}

/// Extents at and around tiles, panels and blocks of sums; `k` beyond the block of every class as often as not.
fn drawn_extents(random: &mut Random) -> [usize; 3] {
    let small = 1 + random.below(70);
    let near = |random: &mut Random, at: usize| at + random.below(5) - 2;
    let k = match random.below(6) {
        0 => 1 + random.below(5),
        1 | 2 => small,
        3 => near(random, 256),
        4 => near(random, 1024),
        _ => 1025 + random.below(400),
    };
    let m = random.pick(&[1, 2, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 27, 29, 31, 43]);
    let n = match random.below(3) {
        0 => 1 + random.below(31),
        1 => 32 * (1 + random.below(3)),
        _ => 33 + random.below(60),
    };
    [m, n, k]
}

#[test]
fn everything_drawn_together_agrees() {
    let epilogues = epilogues();
    for class in classes() {
        let mut random = Random::new(15);
        for turn in 0..6 * epilogues.len() {
            let dims = drawn_extents(&mut random);
            let batch: &[(usize, [bool; 2])] = random.pick(&[
                &[][..],
                &[],
                &[(2, [true, true])],
                &[(2, [true, false])],
                &[(2, [false, true])],
            ]);
            let transposed = [random.below(2) == 1, random.below(2) == 1];
            let packed = random.below(2) == 0 && batch.iter().all(|axis| !axis.1[1]);
            let gap = random.pick(&[0, 0, 3]);
            let case = case(dims, batch, transposed, packed, gap).with(epilogues[turn % epilogues.len()]);
            case.check(class, &case.inputs(&mut random));
        }
    }
}

#[test]
fn narrow_constants_drawn_together_agree() {
    let epilogues = epilogues();
    for class in classes() {
        let mut random = Random::new(16);
        for turn in 0..6 * epilogues.len() {
            let dims = drawn_extents(&mut random);
            let batch: &[(usize, [bool; 2])] = random.pick(&[&[][..], &[(2, [true, false])]]);
            let transposed = [random.below(3) == 0, false];
            let gap = random.pick(&[0, 0, 3]);
            let types = random.pick(&narrow());
            let epilogue = epilogues[turn % epilogues.len()];
            let case = case(dims, batch, transposed, true, gap).with(epilogue).of_types(types);
            case.check(class, &case.inputs(&mut random));
        }
    }
}

#[test]
fn larger_primes_cross_every_block() {
    for class in classes() {
        let mut random = Random::new(2);
        for (dims, packed, transposed) in [
            ([283, 97, 131], true, [false, false]),
            ([151, 193, 67], false, [false, true]),
            ([149, 67, 1031], true, [true, false]),
            ([17, 101, 2053], false, [true, true]),
            ([1, 389, 1021], true, [false, false]),
            ([7, 131, 1201], true, [false, false]),
            ([16, 64, 1024], true, [false, false]),
        ] {
            let epilogue = Epilogue {
                bias: true,
                activation: Some(Activation::GeluErf),
                residual: true,
                residual_first: false,
                ..Epilogue::default()
            };
            let case = case(dims, &[], transposed, packed, 0).with(epilogue);
            case.check(class, &case.inputs(&mut random));
        }
    }
}

#[test]
fn a_few_rows_read_computed_matrices_where_they_lie() {
    for class in classes() {
        let mut random = Random::new(13);
        for m in 1..10 {
            for transposed in [[false, false], [false, true], [true, true]] {
                let epilogue = Epilogue {
                    bias: true,
                    activation: Some(Activation::Tanh),
                    residual: true,
                    residual_first: false,
                    ..Epilogue::default()
                };
                let batch = [(2, [true, true])];
                let case = case([m, 1093, 61], &batch, transposed, false, 3).with(epilogue);
                let mut inputs = case.inputs(&mut random);
                inputs[0][case.call.a.col_stride * 60] = f32::NAN;
                inputs[1][case.call.b.row_stride * 60 + case.call.b.col_stride * 1092] = f32::INFINITY;
                case.check(class, &inputs);
                let call = KernelCall::MatMul(case.call.clone());
                let phases = CpuTarget::new(class).prepare(&call).unwrap().phases;
                let thin = phases.last().unwrap().kernel.contains("_thin__");
                assert_eq!(thin, m <= 8, "{call}");
                // Whatever its rows, B is not copied; only a transposed A is.
                assert_eq!(phases.len(), 1 + usize::from(transposed[0]));
            }
        }
    }
}

#[test]
fn results_larger_than_any_cache_agree() {
    for class in classes() {
        let mut random = Random::new(14);
        // Rows that begin at lines of the cache, and rows that do not.
        for (gap, activation) in [(0, None), (0, Some(Activation::Relu)), (3, None)] {
            let epilogue = Epilogue { bias: activation.is_some(), activation, ..Epilogue::default() };
            let case = case([4100, 4128, 2], &[], [true, false], false, gap).with(epilogue);
            case.check(class, &case.inputs(&mut random));
        }
    }
}

#[test]
fn every_small_height_agrees() {
    for class in classes() {
        let mut random = Random::new(3);
        for m in 1..30 {
            for k in [1, 2, 3, 4, 5, 9] {
                let case = case([m, 33, k], &[], [false, false], true, 0);
                case.check(class, &case.inputs(&mut random));
            }
        }
    }
}

/// Both operands rounded to bf16; the right one in int8; the right one in bf16 beside a left one in f32; elements of a few
/// bits.
fn narrow() -> [ProductTypes; 8] {
    let [_, bf16, int8, int4] = Precision::ALL.map(Precision::types);
    let of = |text| ProductTypes { right: Storage::parse(text).unwrap(), ..ProductTypes::F32 };
    [
        bf16,
        int8,
        ProductTypes { left_rounded: DType::F32, ..bf16 },
        int4,
        of("u3(axis = 0, block = 32, bf16 scales, zero points)"),
        of("i4(axis = 0, block = 8)"),
        of("i3(axis = 0, block = 64, zero points)"),
        of("u4(axis = 0, block = 16, zero points)"),
    ]
}

#[test]
fn narrow_constants_agree_on_sampled_shapes_and_strides() {
    for class in classes() {
        let mut random = Random::new(8);
        for _ in 0..300 {
            let dims = [1 + random.below(40), 1 + random.below(100), 1 + random.below(170)];
            let batch: &[(usize, [bool; 2])] = random.pick(&[&[][..], &[(3, [true, false])]]);
            let transposed = [random.below(3) == 0, false];
            let epilogue = Epilogue {
                bias: random.below(2) == 1,
                activation: random.pick(&ACTIVATIONS),
                residual: random.below(2) == 1,
                residual_first: random.below(2) == 1,
                ..Epilogue::default()
            };
            let types = random.pick(&narrow());
            let gap = random.below(3) * 5;
            let case = case(dims, batch, transposed, true, gap).with(epilogue).of_types(types);
            case.check(class, &case.inputs(&mut random));
        }
    }
}

#[test]
fn narrow_constants_agree_across_every_block() {
    for class in classes() {
        let mut random = Random::new(9);
        for types in narrow() {
            for (dims, transposed) in [
                ([283, 97, 131], [false, false]),
                ([149, 67, 1031], [true, false]),
                ([17, 101, 2053], [false, false]),
                ([1, 389, 1021], [false, false]),
                ([7, 131, 1201], [true, false]),
                ([16, 64, 1024], [false, false]),
            ] {
                let epilogue = Epilogue {
                    bias: true,
                    activation: Some(Activation::Silu),
                    residual: true,
                    residual_first: false,
                    ..Epilogue::default()
                };
                let case = case(dims, &[], transposed, true, 0).with(epilogue).of_types(types);
                case.check(class, &case.inputs(&mut random));
            }
            for m in 1..30 {
                for k in [1, 2, 3, 4, 5, 9] {
                    let case = case([m, 33, k], &[], [false, false], true, 0).of_types(types);
                    case.check(class, &case.inputs(&mut random));
                }
            }
        }
    }
}

#[test]
fn narrow_constants_of_no_extent_are_fine() {
    for class in classes() {
        for types in narrow() {
            for dims in [[0, 5, 5], [5, 0, 5], [5, 7, 0], [1, 7, 0], [0, 0, 0]] {
                let epilogue = Epilogue {
                    bias: true,
                    activation: Some(Activation::Relu),
                    residual: false,
                    residual_first: false,
                    ..Epilogue::default()
                };
                let case = case(dims, &[], [false, false], true, 0).with(epilogue).of_types(types);
                case.check(class, &case.inputs(&mut Random::new(10)));
            }
        }
    }
}

#[test]
fn narrow_constants_keep_what_is_no_number() {
    for class in classes() {
        for types in narrow() {
            for m in [2, 7, 19] {
                let case = case([m, 37, 23], &[], [false, false], true, 0).of_types(types);
                let mut inputs = case.inputs(&mut Random::new(11));
                inputs[0][2] = f32::NAN;
                inputs[0][23 + 5] = f32::INFINITY;
                inputs[1][4 * 37 + 36] = f32::NEG_INFINITY;
                inputs[1][9 * 37 + 11] = f32::NAN;
                case.check(class, &inputs);
            }
        }
    }
}

#[test]
fn extreme_numbers_of_narrow_constants_are_near() {
    let tiny = f32::from_bits(3);
    for class in classes() {
        for m in [1, 7, 19] {
            let case = case([m, 35, 21], &[], [false, false], true, 0);
            let mut inputs = case.inputs(&mut Random::new(12));
            // A column of subnormal numbers, one of zeros, and terms that vanish or grow.
            for t in 0..21 {
                inputs[1][t * 35] = tiny * t as f32;
                inputs[1][t * 35 + 1] = 0.0;
                inputs[1][t * 35 + 2] *= 1e30;
                inputs[1][t * 35 + 3] *= 1e-30;
            }
            inputs[0].iter_mut().step_by(5).for_each(|x| *x *= 1e-39);
            for types in narrow() {
                let case = Case { call: MatMul { types, ..case.call.clone() }, ..case };
                let call = KernelCall::MatMul(case.call.clone());
                let found = execute(class, &call, &inputs, &[21, 35], case.c_len);
                let mut expected = case.expected(&inputs);
                // A subnormal number that counts as zero; int8 rounds to a subnormal step.
                expected.iter_mut().for_each(|e| e.tolerance += 1e-36);
                compare(&format!("{} {call}", class.name()), &found, &expected);
            }
        }
    }
}

#[test]
fn empty_extents_are_fine() {
    for class in classes() {
        let mut random = Random::new(4);
        for dims in [[0, 5, 5], [5, 0, 5], [5, 7, 0], [0, 0, 0]] {
            for packed in [false, true] {
                let epilogue = Epilogue {
                    bias: true,
                    activation: Some(Activation::Relu),
                    residual: false,
                    residual_first: false,
                    ..Epilogue::default()
                };
                let case = case(dims, &[], [false, false], packed, 0).with(epilogue);
                case.check(class, &case.inputs(&mut random));
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_rows_and_columns() {
    for class in classes() {
        for activation in ACTIVATIONS {
            let mut random = Random::new(5);
            let epilogue = Epilogue {
                bias: true,
                activation,
                residual: true,
                residual_first: false,
                ..Epilogue::default()
            };
            let case = case([19, 37, 23], &[], [false, false], false, 1).with(epilogue);
            let mut inputs = case.inputs(&mut random);
            inputs[0][case.call.a.row_stride * 3 + 2] = f32::NAN;
            inputs[0][case.call.a.row_stride * 7 + 5] = f32::INFINITY;
            inputs[1][case.call.b.row_stride * 4 + 36] = f32::NEG_INFINITY;
            inputs[1][case.call.b.row_stride * 9 + 11] = f32::NAN;
            case.check(class, &inputs);
        }
    }
}

#[test]
fn packed_constants_depend_on_neither_class_nor_rows() {
    let tensor = Tensor::from_slice(&[5, 40], &Random::new(6).normal(200)).unwrap();
    for types in Precision::ALL.map(Precision::types) {
        let packed = |class, m| {
            let case = case([m, 40, 5], &[], [false, false], true, 0).of_types(types);
            let call = KernelCall::MatMul(case.call);
            let target = CpuTarget::new(class);
            let layout = target.prepare(&call).unwrap().needs.packed.remove(0);
            let stored = StoredTensor::encode(&tensor, types.right).unwrap();
            (layout, target.pack(&call, 1, &stored).unwrap())
        };
        let first = packed(Class::Portable, 1);
        for class in Class::ALL {
            for m in [1, 8, 200] {
                assert!(packed(class, m) == first);
            }
        }
    }
}

#[test]
fn batch_axes_that_share_b_become_rows() {
    for class in classes() {
        let mut random = Random::new(7);
        let batch = [(2, [true, true]), (5, [true, false]), (3, [true, false])];
        for dims in [[1, 40, 33], [4, 40, 33]] {
            let folded = case(dims, &batch, [false, false], false, 2);
            folded.check(class, &folded.inputs(&mut random));
            let mut rows = folded.call.clone();
            (rows.m, rows.batch) = (15 * dims[0], vec![rows.batch[0]]);
            let target = CpuTarget::new(class);
            let prepared = |call: &MatMul| target.prepare(&KernelCall::MatMul(call.clone())).unwrap();
            assert!(prepared(&folded.call) == prepared(&rows));
        }
    }
}

#[test]
fn names_are_unique_and_found() {
    for entry in kernels() {
        assert_eq!(margay_kernels_cpu::lookup(entry.name).unwrap().class, entry.class);
        assert_eq!(kernels().filter(|other| other.name == entry.name).count(), 1);
    }
    assert!(CpuTarget::by_name("native").unwrap().supported_here());
    for class in Class::ALL {
        assert_eq!(CpuTarget::by_name(class.name()).unwrap().class(), class);
    }
    let error = CpuTarget::by_name("z80").unwrap_err().to_string();
    let known = "`native`, `portable`, `x86-64-v3`, `x86-64-v4`, `x86-64-v4-bf16`";
    assert_eq!(error, format!("unknown target cpu `z80`; known are {known}"));
}
