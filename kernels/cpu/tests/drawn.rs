//! Products and convolutions with random signs that are made where they are multiplied, against sums in f64.

mod harness;

use harness::random::Random;
use harness::{ACTIVATIONS, classes, compare, execute, finished};
use margay_kernels_cpu::{Class, CpuTarget};
use margay_loops::{BatchAxis, Conv, Epilogue, KernelCall, MatLayout, MatMul, ProductTypes};
use margay_tensor::{Signs, Storage, StoredTensor, Tensor};

/// Signs at an end of an axis: the first or the last `count` positions.
fn signs(axis: usize, extent: usize, count: usize, first: bool, random: &mut Random) -> Signs {
    let range = if first { [0, count] } else { [extent - count, extent] };
    Signs::new(
        axis,
        range,
        [random.below(1 << 31) as u64 * 0x9_0000_0001, random.below(1 << 31) as u64 * 0x5_0000_0003],
        0.125,
    )
}

fn product([m, n, k]: [usize; 3], signs: Signs, epilogue: Epilogue) -> MatMul {
    MatMul {
        m,
        n,
        k,
        batch: Vec::new(),
        a: MatLayout { row_stride: k, col_stride: 1 },
        b: MatLayout { row_stride: n, col_stride: 1 },
        c_row_stride: n,
        b_packed: true,
        types: ProductTypes { right: Storage::with_signs(signs), ..ProductTypes::F32 },
        epilogue,
    }
}

/// A product against the numbers that its constant stands for.
fn check(class: Class, c: &MatMul, random: &mut Random) {
    let mut inputs = vec![random.normal(c.m * c.k), random.normal(c.k * c.n)];
    inputs.extend(c.epilogue.bias.then(|| random.normal(c.n)));
    inputs.extend(c.epilogue.residual.then(|| random.normal(c.m * c.n)));
    let b = Tensor::from_slice(&[c.k, c.n], &inputs[1]).unwrap();
    let b = StoredTensor::encode(&b, c.types.right).unwrap().decode().to_vec::<f32>().unwrap();
    let mut expected = Vec::new();
    for (i, j) in (0..c.m).flat_map(|i| (0..c.n).map(move |j| (i, j))) {
        let (mut sum, mut size) = (0.0, 0.0);
        for t in 0..c.k {
            let x = f64::from(inputs[0][i * c.k + t]) * f64::from(b[t * c.n + j]);
            (sum, size) = (sum + x, size + x.abs());
        }
        let bias = if c.epilogue.bias { f64::from(inputs[2][j]) } else { 0.0 };
        let residual = if c.epilogue.residual { f64::from(inputs.last().unwrap()[i * c.n + j]) } else { 0.0 };
        expected.push(finished(&c.epilogue, sum, size, c.k, bias, residual));
    }
    let call = KernelCall::MatMul(c.clone());
    let found = execute(class, &call, &inputs, &[c.k, c.n], c.m * c.n);
    compare(&format!("{} {c:?}", class.name()), &found, &expected);
}

fn epilogue(random: &mut Random) -> Epilogue {
    Epilogue {
        bias: random.below(2) == 1,
        activation: random.pick(&ACTIVATIONS),
        residual: random.below(2) == 1,
        residual_first: random.below(2) == 1,
        ..Epilogue::default()
    }
}

#[test]
fn signs_at_either_end_of_either_axis_agree() {
    for class in classes() {
        let mut random = Random::new(31);
        for turn in 0..240 {
            let m = random.pick(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 29, 40]);
            // Lines of a few panels, of whole blocks of the generator, and of neither.
            let widths = [1, 16, 31, 32, 33, 48, 64, 96, 128, 130, 200, 256, 257, 300, 384, 416, 1000, 1152];
            let (width, terms) = (random.pick(&widths), random.pick(&[1, 2, 16, 31, 127, 128, 129, 260]));
            let others = random.pick(&[0, 1, 16, 33, 70]);
            let axis = turn % 2;
            let (n, k) = if axis == 0 { (width, terms + others) } else { (width + others, terms) };
            let (extent, count) = if axis == 0 { (k, terms) } else { (n, width) };
            let signs = signs(axis, extent, count, turn % 4 < 2, &mut random);
            let call = product([m, n, k], signs, epilogue(&mut random));
            check(class, &call, &mut random);
        }
    }
}

#[test]
fn signs_beside_many_rows_and_terms_agree() {
    for class in classes() {
        let mut random = Random::new(32);
        for (dims, axis, count) in [
            ([283, 97, 131], 0, 100),
            ([149, 160, 1100], 0, 1100),
            ([17, 2080, 333], 1, 2048),
            ([1, 1024, 2053], 1, 1000),
            ([7, 1155, 1201], 0, 600),
            ([150, 48, 1500], 1, 16),
        ] {
            for first in [true, false] {
                let extent = if axis == 0 { dims[2] } else { dims[1] };
                let signs = signs(axis, extent, count, first, &mut random);
                check(class, &product(dims, signs, epilogue(&mut random)), &mut random);
            }
        }
    }
}

#[test]
fn every_small_height_and_no_extent_agree() {
    for class in classes() {
        let mut random = Random::new(33);
        for m in 0..30 {
            for (dims, axis, count) in [([m, 33, 20], 0, 7), ([m, 64, 3], 1, 40), ([m, 40, 0], 1, 8)] {
                let extent = if axis == 0 { dims[2] } else { dims[1] };
                let signs = signs(axis, extent, count, false, &mut random);
                check(class, &product(dims, signs, Epilogue::default()), &mut random);
            }
        }
    }
}

#[test]
fn repetitions_share_their_signs() {
    for class in classes() {
        let mut random = Random::new(34);
        let signs = signs(1, 72, 40, false, &mut random);
        let mut call = product([5, 72, 19], signs, Epilogue::default());
        call.batch = vec![BatchAxis { extent: 3, a: 5 * 20, b: 0, c: 5 * 72 }];
        call.a.row_stride = 20;
        let inputs = [random.normal(3 * 5 * 20), random.normal(19 * 72)];
        let found = execute(class, &KernelCall::MatMul(call.clone()), &inputs, &[19, 72], 3 * 5 * 72);
        let one = MatMul { batch: Vec::new(), ..call };
        for i in 0..3 {
            let inputs = [inputs[0][i * 100..][..100].to_vec(), inputs[1].clone()];
            let alone = execute(class, &KernelCall::MatMul(one.clone()), &inputs, &[19, 72], 5 * 72);
            assert_eq!(found[i * 360..][..360], alone);
        }
    }
}

#[test]
fn filters_of_one_tap_agree() {
    for class in classes() {
        let mut random = Random::new(35);
        for (axis, channels, count) in [
            (0, [32, 64], 64),
            (0, [24, 70], 33),
            (1, [130, 40], 130),
            (1, [256, 64], 128),
            (0, [128, 256], 256),
            (1, [300, 17], 140),
        ] {
            for first in [true, false] {
                let signs = signs(axis, channels[1 - axis], count, first, &mut random);
                let epilogue = epilogue(&mut random);
                let (pixels, [inputs, outputs]) = (5 * 4, channels);
                let c = Conv {
                    channels_last: true,
                    types: ProductTypes { right: Storage::with_signs(signs), ..ProductTypes::F32 },
                    batch: 1,
                    in_channels: inputs,
                    out_channels: outputs,
                    groups: 1,
                    in_size: [5, 4],
                    out_size: [5, 4],
                    kernel: [1, 1],
                    strides: [1, 1],
                    pads: [0, 0],
                    dilations: [1, 1],
                    k_packed: true,
                    zero: false,
                    epilogue,
                };
                let shape = [outputs, inputs, 1, 1];
                let mut operands = vec![random.normal(pixels * inputs), random.normal(outputs * inputs)];
                operands.extend(epilogue.bias.then(|| random.normal(outputs)));
                operands.extend(epilogue.residual.then(|| random.normal(pixels * outputs)));
                let filters = Tensor::from_slice(&shape, &operands[1]).unwrap();
                let filters = StoredTensor::encode(&filters, c.types.right).unwrap().decode();
                let filters = filters.to_vec::<f32>().unwrap();
                let mut expected = Vec::new();
                for (i, o) in (0..pixels).flat_map(|i| (0..outputs).map(move |o| (i, o))) {
                    let products = (0..inputs)
                        .map(|t| f64::from(operands[0][i * inputs + t]) * f64::from(filters[o * inputs + t]));
                    let (sum, size) = products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let bias = if epilogue.bias { f64::from(operands[2][o]) } else { 0.0 };
                    let residual = match epilogue.residual {
                        true => f64::from(operands.last().unwrap()[i * outputs + o]),
                        false => 0.0,
                    };
                    expected.push(finished(&epilogue, sum, size, inputs, bias, residual));
                }
                let found = execute(class, &KernelCall::Conv(c.clone()), &operands, &shape, pixels * outputs);
                compare(&format!("{} {c:?}", class.name()), &found, &expected);
            }
        }
    }
}

#[test]
fn signs_take_no_bytes() {
    let target = CpuTarget::native();
    let bytes = |signs: Signs| {
        let call = KernelCall::MatMul(product([4, 1024, 96], signs, Epilogue::default()));
        target.prepare(&call).map(|prepared| prepared.needs.packed[0].bytes)
    };
    assert_eq!(bytes(Signs::new(0, [0, 96], [1, 2], 1.0)), Ok(0));
    assert_eq!(bytes(Signs::new(0, [48, 96], [1, 2], 1.0)), Ok(4 * 48 * 1024));
    assert_eq!(bytes(Signs::new(1, [0, 512], [1, 2], 1.0)), Ok(4 * 96 * 512));
    let refused = bytes(Signs::new(1, [1, 512], [1, 2], 1.0)).unwrap_err().to_string();
    assert!(refused.ends_with("signs 1 to 512 at neither end of 1024"), "{refused}");
}
