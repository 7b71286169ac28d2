//! Products of bytes of every class against sums of integers.

mod harness;

use harness::random::Random;
use harness::{ACTIVATIONS, Expected, classes, compare, execute_bytes, finished};
use margay_kernels_cpu::{Class, CpuTarget};
use margay_loops::{Activation, BatchAxis, Epilogue, KernelCall, MatLayout, MatMul, ProductTypes, Scale};
use margay_tensor::{DType, Storage, StoredTensor, Tensor};

const TYPES: [DType; 2] = [DType::U8, DType::I8];

/// A product with one batch axis at most, which moves A, and B where it is no constant.
struct Case {
    call: MatMul,
    a: Vec<u8>,
    b: Vec<u8>,
}

fn value(dtype: DType, byte: u8) -> i64 {
    if dtype == DType::I8 { i64::from(byte.cast_signed()) } else { i64::from(byte) }
}

fn bytes(random: &mut Random, len: usize) -> Vec<u8> {
    // Ends of the ranges are as likely as all else.
    let drawn = |random: &mut Random| {
        let any = random.below(256) as u8;
        random.pick(&[0, 1, 127, 128, 129, 255, any, any])
    };
    (0..len).map(|_| drawn(random)).collect()
}

fn case(random: &mut Random, [m, n, k]: [usize; 3], types: [DType; 2], packed: bool, batch: usize) -> Case {
    let layout = |random: &mut Random, rows: usize, cols: usize| {
        let gap = random.below(3) * 5;
        match random.below(2) {
            0 => (MatLayout { row_stride: cols + gap, col_stride: 1 }, rows * (cols + gap)),
            _ => (MatLayout { row_stride: 1, col_stride: rows + gap }, cols * (rows + gap)),
        }
    };
    let (a, a_len) = layout(random, m, k);
    let (b, b_len) = match packed {
        true => (MatLayout { row_stride: n, col_stride: 1 }, k * n),
        false => layout(random, k, n),
    };
    let b_moves = !packed && random.below(2) == 0;
    let c_row_stride = n + random.below(2) * 3;
    let axis = BatchAxis { extent: batch, a: a_len, b: if b_moves { b_len } else { 0 }, c: m * c_row_stride };
    let call = MatMul {
        m,
        n,
        k,
        batch: if batch == 1 { vec![] } else { vec![axis] },
        a,
        b,
        c_row_stride,
        b_packed: packed,
        types: ProductTypes {
            left: types[0],
            left_rounded: types[0],
            right: Storage::plain(types[1]),
            result: DType::I32,
        },
        epilogue: Epilogue::default(),
    };
    // The last row of A ends where its elements do.
    let end = |rows: usize, cols: usize, l: MatLayout| {
        if rows * cols == 0 { 0 } else { (rows - 1) * l.row_stride + (cols - 1) * l.col_stride + 1 }
    };
    let a_len = (batch - 1) * a_len + end(m, k, a);
    let b_len = if b_moves { (batch - 1) * b_len } else { 0 } + end(k, n, b);
    Case { call, a: bytes(random, a_len), b: bytes(random, b_len) }
}

impl Case {
    /// The sums, by batch, row and column, as integers without a bound, with those of magnitudes.
    fn sums(&self) -> Vec<(i64, f64)> {
        let c = &self.call;
        let repetitions = c.batch.first().map_or(1, |axis| axis.extent);
        let mut sums = Vec::new();
        for r in 0..repetitions {
            let (a_at, b_at) = c.batch.first().map_or((0, 0), |axis| (r * axis.a, r * axis.b));
            for (i, j) in (0..c.m).flat_map(|i| (0..c.n).map(move |j| (i, j))) {
                let product = |t: usize| {
                    let x = self.a[a_at + i * c.a.row_stride + t * c.a.col_stride];
                    let y = self.b[b_at + t * c.b.row_stride + j * c.b.col_stride];
                    value(c.types.left, x) * value(c.types.right.dtype, y)
                };
                let size = (0..c.k).map(|t| product(t).abs() as f64).sum();
                sums.push(((0..c.k).map(product).sum(), size));
            }
        }
        sums
    }

    /// What a class makes of the operands and what an epilogue takes, with `untouched` between rows.
    fn run(&self, class: Class, epilogue: &[Vec<u8>], untouched: [u8; 4]) -> Vec<[u8; 4]> {
        let call = KernelCall::MatMul(self.call.clone());
        let target = CpuTarget::new(class);
        let mut operands = vec![self.a.clone(), self.b.clone()];
        for packed in &target.prepare(&call).unwrap().needs.packed {
            let shape = [self.call.k, self.call.n];
            let plain = Tensor::from_bytes(self.call.types.right.dtype, &shape, &self.b).unwrap();
            let stored = StoredTensor::from(plain);
            operands[1] = target.pack(&call, 1, &stored).unwrap();
            assert_eq!(operands[1].len(), packed.bytes);
            let back = target.unpack(&packed.layout, &shape, &operands[1]).unwrap();
            assert_eq!(back.to_bytes(), stored.to_bytes(), "unpack is the inverse of pack");
        }
        operands.extend_from_slice(epilogue);
        let repetitions = self.call.batch.first().map_or(1, |axis| axis.extent);
        let out = untouched.repeat(repetitions * self.call.m * self.call.c_row_stride);
        let runs = execute_bytes(class, &call, &operands, &[out]);
        assert!(runs.iter().all(|run| *run == runs[0]), "{} {call}: bits depend on the split", class.name());
        runs[0][0].chunks_exact(4).map(|x| x.try_into().unwrap()).collect()
    }

    /// Where elements of C lie, and at which of the sums they are.
    fn places(&self) -> Vec<Option<usize>> {
        let c = &self.call;
        let rows = c.m * c.batch.first().map_or(1, |axis| axis.extent);
        let place = |at: usize| {
            let (row, column) = (at / c.c_row_stride, at % c.c_row_stride);
            (column < c.n).then_some(row * c.n + column)
        };
        (0..rows * c.c_row_stride).map(place).collect()
    }

    fn check_sums(&self, class: Class, offset: Option<&[i32]>) {
        let mut case = Case { call: self.call.clone(), a: self.a.clone(), b: self.b.clone() };
        case.call.epilogue.offset = offset.is_some();
        let given: Vec<Vec<u8>> =
            offset.iter().map(|o| o.iter().flat_map(|x| x.to_ne_bytes()).collect()).collect();
        let found = case.run(class, &given, 777i32.to_ne_bytes());
        let sums = case.sums();
        for (at, place) in case.places().into_iter().enumerate() {
            let expected = place.map_or(777, |sum| {
                let added = offset.map_or(0, |offset| offset[sum % case.call.n]);
                (sums[sum].0 as i32).wrapping_add(added)
            });
            assert_eq!(i32::from_ne_bytes(found[at]), expected, "{} {:?}: {at}", class.name(), case.call);
        }
    }
}

#[test]
fn sums_are_exact_for_every_pair_of_types() {
    for class in classes() {
        let mut random = Random::new(1);
        for turn in 0..300 {
            let types = [TYPES[turn % 2], TYPES[turn / 2 % 2]];
            let dims = [1 + random.below(45), 1 + random.below(100), 1 + random.below(70)];
            let (packed, batch) = (random.below(2) == 0, random.pick(&[1, 1, 3]));
            let case = case(&mut random, dims, types, packed, batch);
            let offset: Vec<i32> = (0..dims[1]).map(|_| random.below(1 << 20) as i32 - (1 << 19)).collect();
            case.check_sums(class, (turn % 3 == 0).then_some(&offset));
        }
    }
}

#[test]
fn every_height_and_tail_of_terms_agrees() {
    for class in classes() {
        let mut random = Random::new(2);
        for types in TYPES.into_iter().flat_map(|a| TYPES.map(|b| [a, b])) {
            for m in 1..30 {
                for k in [1, 3, 4, 5, 16, 23] {
                    case(&mut random, [m, 37, k], types, true, 1).check_sums(class, None);
                }
            }
        }
    }
}

#[test]
fn larger_extents_cross_every_block() {
    for class in classes() {
        let mut random = Random::new(3);
        for types in TYPES.into_iter().flat_map(|a| TYPES.map(|b| [a, b])) {
            for (dims, packed) in [
                ([283, 97, 131], true),
                ([151, 193, 68], false),
                ([17, 101, 2053], false),
                ([1, 389, 1021], true),
                ([1, 1031, 256], true),
                ([2, 67, 5003], true),
            ] {
                case(&mut random, dims, types, packed, 1).check_sums(class, None);
            }
        }
    }
}

#[test]
fn sums_wrap_around() {
    for class in classes() {
        let k = 70_000;
        for (types, x, y) in [([DType::U8; 2], 255, 255), ([DType::U8, DType::I8], 255, 128)] {
            let mut case = case(&mut Random::new(4), [2, 3, k], types, true, 1);
            case.a.fill(x);
            case.b.fill(y);
            assert!(i32::try_from(case.sums()[0].0).is_err(), "the sums are too large for i32");
            case.check_sums(class, None);
        }
    }
}

#[test]
fn no_extent_is_fine() {
    for class in classes() {
        for dims in [[0, 5, 5], [5, 0, 5], [5, 7, 0], [1, 7, 0], [0, 0, 0]] {
            for types in [[DType::U8, DType::I8], [DType::I8, DType::I8]] {
                case(&mut Random::new(5), dims, types, true, 1).check_sums(class, None);
            }
        }
    }
}

#[test]
fn numbers_have_scales_and_epilogues() {
    for class in classes() {
        let mut random = Random::new(6);
        for turn in 0..240 {
            let types = [TYPES[turn % 2], TYPES[turn / 2 % 2]];
            let dims = [1 + random.below(33), 1 + random.below(90), 1 + random.below(60)];
            let (packed, batch) = (random.below(2) == 0, random.pick(&[1, 2]));
            let mut case = case(&mut random, dims, types, packed, batch);
            let n = dims[1];
            case.call.types.result = DType::F32;
            case.call.epilogue = Epilogue {
                offset: random.below(2) == 1,
                scale: random.pick(&[None, Some(Scale::One), Some(Scale::Columns)]),
                bias: random.below(2) == 1,
                activation: random.pick(&ACTIVATIONS),
                residual: random.below(2) == 1,
                residual_first: random.below(2) == 1,
            };
            let e = case.call.epilogue;
            let places = case.places();
            let offset: Vec<i32> = (0..n).map(|_| random.below(4000) as i32 - 2000).collect();
            let scales: Vec<f32> = random.normal(n).iter().map(|x| x * 1e-3).collect();
            let (bias, residual) = (random.normal(n), random.normal(places.len()));
            let floats = |x: &[f32]| -> Vec<u8> { x.iter().flat_map(|x| x.to_ne_bytes()).collect() };
            let mut given = Vec::new();
            if e.offset {
                given.push(offset.iter().flat_map(|x| x.to_ne_bytes()).collect());
            }
            given.extend(e.scale.map(|scale| floats(&scales[..scale.elements(n)])));
            given.extend(e.bias.then(|| floats(&bias)));
            given.extend(e.residual.then(|| floats(&residual)));
            let found = case.run(class, &given, harness::UNTOUCHED.to_ne_bytes());
            let found: Vec<f32> = found.into_iter().map(f32::from_ne_bytes).collect();
            let sums = case.sums();
            let expected: Vec<Expected> = places
                .iter()
                .enumerate()
                .map(|(at, place)| {
                    let Some(place) = *place else { return harness::GAP };
                    let column = place % n;
                    let (sum, size) = sums[place];
                    let added = if e.offset { f64::from(offset[column]) } else { 0.0 };
                    let scale = match e.scale {
                        None => 1.0,
                        Some(Scale::One) => f64::from(scales[0]),
                        Some(Scale::Columns) => f64::from(scales[column]),
                    };
                    let bias = if e.bias { f64::from(bias[column]) } else { 0.0 };
                    let residual = if e.residual { f64::from(residual[at]) } else { 0.0 };
                    let size = (size + added.abs()) * scale.abs();
                    finished(&e, (sum as f64 + added) * scale, size, 1, bias, residual)
                })
                .collect();
            compare(&format!("{} {:?}", class.name(), case.call), &found, &expected);
        }
    }
}

#[test]
fn what_no_kernel_does_is_refused() {
    let refusal = |change: &dyn Fn(&mut MatMul)| {
        let mut call = case(&mut Random::new(7), [2, 3, 4], [DType::U8, DType::I8], true, 1).call;
        change(&mut call);
        CpuTarget::new(Class::Portable).prepare(&KernelCall::MatMul(call)).unwrap_err().why
    };
    let bias = Epilogue { bias: true, activation: Some(Activation::Relu), ..Epilogue::default() };
    assert_eq!(refusal(&|c| c.epilogue = bias), "sums as i32 without an epilogue, found +bias relu");
    assert_eq!(refusal(&|c| c.types.result = DType::I8), "a result of i32 or f32, found i8");
    assert_eq!(
        refusal(&|c| c.types.right = Storage::int8(1)),
        "a right operand of i8 or u8, found i8(axis = 1)"
    );
}
