//! Convolutions of bytes of every class against sums of integers.

mod harness;

use harness::random::Random;
use harness::{classes, execute_bytes};
use margay_kernels_cpu::{Class, CpuTarget};
use margay_loops::{Conv, Epilogue, KernelCall, ProductTypes, Scale};
use margay_tensor::{DType, Storage, StoredTensor, Tensor};

const TYPES: [DType; 2] = [DType::U8, DType::I8];

struct Case {
    call: Conv,
    x: Vec<u8>,
    k: Vec<u8>,
    zero: u8,
}

fn value(dtype: DType, byte: u8) -> i64 {
    if dtype == DType::I8 { i64::from(byte.cast_signed()) } else { i64::from(byte) }
}

fn drawn(random: &mut Random, types: [DType; 2], k_packed: bool, zero: bool) -> Case {
    let axis = |random: &mut Random| {
        let (kernel, stride, dilation) = (1 + random.below(3), 1 + random.below(2), 1 + random.below(2));
        let pads = [random.below(3), random.below(3)];
        let span = (kernel - 1) * dilation + 1;
        let size = span.saturating_sub(pads[0] + pads[1]).max(1) + random.below(9);
        (kernel, stride, dilation, pads[0], size, (size + pads[0] + pads[1] - span) / stride + 1)
    };
    let (h, w) = (axis(random), axis(random));
    let [batch, in_channels, out_channels] = [1 + random.below(2), 1 + random.below(9), 1 + random.below(70)];
    let call = Conv {
        channels_last: true,
        batch,
        in_channels,
        out_channels,
        groups: 1,
        in_size: [h.4, w.4],
        out_size: [h.5, w.5],
        kernel: [h.0, w.0],
        strides: [h.1, w.1],
        pads: [h.3, w.3],
        dilations: [h.2, w.2],
        k_packed,
        zero,
        types: ProductTypes {
            left: types[0],
            left_rounded: types[0],
            right: Storage::plain(types[1]),
            result: DType::I32,
        },
        epilogue: Epilogue::default(),
    };
    case(random, call)
}

fn case(random: &mut Random, call: Conv) -> Case {
    let mut bytes = |len: usize| (0..len).map(|_| random.below(256) as u8).collect::<Vec<u8>>();
    let x = bytes(call.batch * call.in_size[0] * call.in_size[1] * call.in_channels);
    let k = bytes(call.out_channels * call.in_channels * call.kernel[0] * call.kernel[1]);
    let zero = if call.zero { bytes(1)[0] } else { 0 };
    Case { call, x, k, zero }
}

impl Case {
    fn sums(&self) -> Vec<i64> {
        let c = &self.call;
        let ([height, width], [rows, cols], [kh, kw]) = (c.in_size, c.out_size, c.kernel);
        let zero = value(c.types.left, self.zero);
        let place = |axis: usize, at: usize, tap: usize| {
            (at * c.strides[axis] + tap * c.dilations[axis]).checked_sub(c.pads[axis])
        };
        let mut sums = vec![0; c.batch * rows * cols * c.out_channels];
        for (at, sum) in sums.iter_mut().enumerate() {
            let (o, pixel) = (at % c.out_channels, at / c.out_channels);
            let (col, row, image) = (pixel % cols, pixel / cols % rows, pixel / cols / rows);
            for tap in 0..c.in_channels * kh * kw {
                let (channel, i, j) = (tap / (kh * kw), tap / kw % kh, tap % kw);
                let (y, x) = (place(0, row, i), place(1, col, j));
                let (Some(y), Some(x)) = (y.filter(|y| *y < height), x.filter(|x| *x < width)) else {
                    continue;
                };
                let x = self.x[((image * height + y) * width + x) * c.in_channels + channel];
                let k = self.k[o * c.in_channels * kh * kw + tap];
                *sum += (value(c.types.left, x) - zero) * value(c.types.right.dtype, k);
            }
        }
        sums
    }

    /// What a class makes of the operands and what an epilogue takes.
    fn run(&self, class: Class, epilogue: &[Vec<u8>]) -> Vec<[u8; 4]> {
        let (c, call) = (&self.call, KernelCall::Conv(self.call.clone()));
        let target = CpuTarget::new(class);
        let mut operands = vec![self.x.clone(), self.k.clone()];
        for packed in &target.prepare(&call).unwrap().needs.packed {
            let shape = [c.out_channels, c.in_channels, c.kernel[0], c.kernel[1]];
            let stored =
                Tensor::from_bytes(c.types.right.dtype, &shape, &self.k).map(StoredTensor::from).unwrap();
            operands[1] = target.pack(&call, 1, &stored).unwrap();
            assert_eq!(operands[1].len(), packed.bytes);
            let back = target.unpack(&packed.layout, &shape, &operands[1]).unwrap();
            assert_eq!(back.to_bytes(), stored.to_bytes(), "unpack is the inverse of pack");
        }
        operands.extend(c.zero.then(|| vec![self.zero]));
        operands.extend_from_slice(epilogue);
        let out = vec![0x55; 4 * c.batch * c.out_size[0] * c.out_size[1] * c.out_channels];
        let runs = execute_bytes(class, &call, &operands, &[out]);
        assert!(runs.iter().all(|run| *run == runs[0]), "{} {call}: bits depend on the split", class.name());
        runs[0][0].chunks_exact(4).map(|x| x.try_into().unwrap()).collect()
    }

    fn check(&self, class: Class) {
        let found: Vec<i64> =
            self.run(class, &[]).into_iter().map(|x| i64::from(i32::from_ne_bytes(x))).collect();
        assert!(found == self.sums(), "{} {}", class.name(), self.call);
    }
}

#[test]
fn sums_are_exact_for_every_pair_of_types() {
    for class in classes() {
        let mut random = Random::new(1);
        for turn in 0..400 {
            let types = [TYPES[turn % 2], TYPES[turn / 2 % 2]];
            drawn(&mut random, types, turn / 4 % 2 == 0, turn / 8 % 2 == 0).check(class);
        }
    }
}

#[test]
fn larger_images_cross_every_block() {
    for class in classes() {
        let mut random = Random::new(2);
        for (kernel, pads) in [([3, 3], [1, 1]), ([1, 1], [0, 0])] {
            let mut call = drawn(&mut random, [DType::U8, DType::I8], true, true).call;
            (call.kernel, call.pads, call.strides, call.dilations) = (kernel, pads, [1, 1], [1, 1]);
            (call.in_size, call.out_size, call.batch) = ([19, 23], [19, 23], 2);
            (call.in_channels, call.out_channels) = (36, 300);
            case(&mut random, call).check(class);
        }
    }
}

#[test]
fn numbers_have_scales() {
    for class in classes() {
        let mut random = Random::new(3);
        for turn in 0..40 {
            let mut case = drawn(&mut random, [TYPES[turn % 2], DType::I8], true, turn % 3 == 0);
            case.call.types.result = DType::F32;
            case.call.epilogue =
                Epilogue { scale: Some(Scale::Columns), bias: turn % 2 == 0, ..Epilogue::default() };
            let n = case.call.out_channels;
            let (scales, bias) = (random.normal(n), random.normal(n));
            let floats = |x: &[f32]| -> Vec<u8> { x.iter().flat_map(|x| x.to_ne_bytes()).collect() };
            let mut given = vec![floats(&scales)];
            given.extend((turn % 2 == 0).then(|| floats(&bias)));
            let found = case.run(class, &given).into_iter().map(f32::from_ne_bytes);
            for ((at, sum), found) in case.sums().into_iter().enumerate().zip(found) {
                let scaled = sum as f32 * scales[at % n];
                let expected = if turn % 2 == 0 { scaled + bias[at % n] } else { scaled };
                assert_eq!(found, expected, "{} {}", class.name(), case.call);
            }
        }
    }
}

#[test]
fn what_no_kernel_does_is_refused() {
    let mut call = drawn(&mut Random::new(4), [DType::U8, DType::I8], true, false).call;
    (call.groups, call.in_channels, call.out_channels) = (2, 4, 4);
    let error = CpuTarget::new(Class::Portable).prepare(&KernelCall::Conv(call)).unwrap_err();
    assert_eq!(error.why, "integers in one group, found 2");
}
