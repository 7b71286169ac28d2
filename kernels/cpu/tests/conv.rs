//! Convolutions of every class against sums in f64.

mod harness;

use harness::random::Random;
use harness::{ACTIVATIONS, Expected, GAP, classes, compare, execute, finished};
use margay_kernels_cpu::{Class, CpuTarget};
use margay_loops::{Activation, Conv, ConvKernelGradient, Epilogue, KernelCall, ProductTypes};

fn inputs(c: &Conv, random: &mut Random) -> Vec<Vec<f32>> {
    let size = |s: [usize; 2]| s[0] * s[1];
    let out = c.batch * c.out_channels * size(c.out_size);
    let mut inputs = vec![
        random.normal(c.batch * c.in_channels * size(c.in_size)),
        random.normal(c.out_channels * c.in_channels / c.groups * size(c.kernel)),
    ];
    if c.epilogue.bias {
        inputs.push(random.normal(c.out_channels));
    }
    if c.epilogue.residual {
        inputs.push(random.normal(out));
    }
    inputs
}

fn check(class: Class, c: &Conv, inputs: &[Vec<f32>]) {
    let (in_group, out_group) = (c.in_channels / c.groups, c.out_channels / c.groups);
    let terms = in_group * c.kernel[0] * c.kernel[1];
    let mut expected = vec![GAP; c.batch * c.out_channels * c.out_size[0] * c.out_size[1]];
    for (at, e) in expected.iter_mut().enumerate() {
        let (channel, rest) = (at % c.out_channels, at / c.out_channels);
        let (x, rest) = (rest % c.out_size[1], rest / c.out_size[1]);
        let (y, image) = (rest % c.out_size[0], rest / c.out_size[0]);
        let (mut sum, mut size) = (0.0, 0.0);
        for i in 0..in_group {
            for ky in 0..c.kernel[0] {
                for kx in 0..c.kernel[1] {
                    let iy = (y * c.strides[0] + ky * c.dilations[0]).wrapping_sub(c.pads[0]);
                    let ix = (x * c.strides[1] + kx * c.dilations[1]).wrapping_sub(c.pads[1]);
                    if iy >= c.in_size[0] || ix >= c.in_size[1] {
                        continue;
                    }
                    let from = channel / out_group * in_group + i;
                    let weight = ((channel * in_group + i) * c.kernel[0] + ky) * c.kernel[1] + kx;
                    let product = inputs[0]
                        [((image * c.in_size[0] + iy) * c.in_size[1] + ix) * c.in_channels + from]
                        as f64
                        * inputs[1][weight] as f64;
                    sum += product;
                    size += product.abs();
                }
            }
        }
        let bias = if c.epilogue.bias { inputs[2][channel] as f64 } else { 0.0 };
        let residual = if c.epilogue.residual { inputs.last().unwrap()[at] as f64 } else { 0.0 };
        *e = finished(&c.epilogue, sum, size, terms, bias, residual);
    }
    let shape = [c.out_channels, in_group, c.kernel[0], c.kernel[1]];
    for k_packed in [true, false] {
        let call = KernelCall::Conv(Conv { k_packed, ..c.clone() });
        let found = execute(class, &call, inputs, &shape, expected.len());
        compare(&format!("{} {call:?}", class.name()), &found, &expected);
    }
}

/// The derivative by the kernel of the sum of all products with a random cotangent.
fn check_gradient(class: Class, c: &Conv, random: &mut Random, spoil: impl Fn(&mut [Vec<f32>])) {
    let (in_group, out_group) = (c.in_channels / c.groups, c.out_channels / c.groups);
    let size = |s: [usize; 2]| s[0] * s[1];
    let out = c.batch * c.out_channels * size(c.out_size);
    let mut inputs = vec![random.normal(c.batch * c.in_channels * size(c.in_size)), random.normal(out)];
    spoil(&mut inputs);
    let mut sums = vec![(0.0f64, 0.0f64); c.out_channels * in_group * size(c.kernel)];
    for (at, change) in inputs[1].iter().enumerate() {
        let (channel, rest) = (at % c.out_channels, at / c.out_channels);
        let (x, rest) = (rest % c.out_size[1], rest / c.out_size[1]);
        let (y, image) = (rest % c.out_size[0], rest / c.out_size[0]);
        for term in 0..in_group * size(c.kernel) {
            let (i, tap) = (term / size(c.kernel), term % size(c.kernel));
            let [ky, kx] = [tap / c.kernel[1], tap % c.kernel[1]];
            let iy = (y * c.strides[0] + ky * c.dilations[0]).wrapping_sub(c.pads[0]);
            let ix = (x * c.strides[1] + kx * c.dilations[1]).wrapping_sub(c.pads[1]);
            if iy >= c.in_size[0] || ix >= c.in_size[1] {
                continue;
            }
            let from = channel / out_group * in_group + i;
            let pixel = (image * c.in_size[0] + iy) * c.in_size[1] + ix;
            let product = inputs[0][pixel * c.in_channels + from] as f64 * *change as f64;
            let sum = &mut sums[channel * in_group * size(c.kernel) + term];
            *sum = (sum.0 + product, sum.1 + product.abs());
        }
    }
    let terms = (c.batch * size(c.out_size)) as f64;
    let rounding = terms.sqrt().max(4.0) * 4.0 * f32::EPSILON as f64;
    let expected: Vec<Expected> =
        sums.into_iter().map(|(value, size)| Expected { value, tolerance: rounding * size }).collect();
    let call = KernelCall::ConvKernelGradient(ConvKernelGradient { forward: c.clone() });
    let found = execute(class, &call, &inputs, &[], expected.len());
    compare(&format!("{} {call:?}", class.name()), &found, &expected);
}

/// A call whose output size follows from the rest; `None` if nothing fits.
fn call(
    channels: [usize; 4],
    in_size: [usize; 2],
    kernel: [usize; 2],
    [strides, pads, dilations]: [[usize; 2]; 3],
) -> Option<Conv> {
    padded(channels, in_size, kernel, [strides, dilations], [pads, pads])
}

/// As [`call`], with padding before and after the image.
fn padded(
    [batch, in_channels, out_channels, groups]: [usize; 4],
    in_size: [usize; 2],
    kernel: [usize; 2],
    [strides, dilations]: [[usize; 2]; 2],
    [pads, after]: [[usize; 2]; 2],
) -> Option<Conv> {
    let out = |i: usize| {
        let room = (in_size[i] + pads[i] + after[i]).checked_sub((kernel[i] - 1) * dilations[i] + 1)?;
        Some(room / strides[i] + 1)
    };
    Some(Conv {
        channels_last: true,
        types: ProductTypes::F32,
        batch,
        in_channels,
        out_channels,
        groups,
        in_size,
        out_size: [out(0)?, out(1)?],
        kernel,
        strides,
        pads,
        dilations,
        k_packed: true,
        zero: false,
        epilogue: Epilogue::default(),
    })
}

#[test]
fn sampled_shapes_agree() {
    for class in classes() {
        let mut random = Random::new(1);
        let mut checked = 0;
        while checked < 150 {
            let groups = random.pick(&[1, 1, 2, 3]);
            let pair = |random: &mut Random, n: usize| [1 + random.below(n), 1 + random.below(n)];
            let channels = [
                1 + random.below(2),
                groups * (1 + random.below(9)),
                groups * (1 + random.below(40)),
                groups,
            ];
            let in_size = pair(&mut random, 40);
            let kernel = pair(&mut random, 4);
            let strides = pair(&mut random, 3);
            let pads = [random.below(4), random.below(4)];
            let dilations = pair(&mut random, 2);
            let Some(mut c) = call(channels, in_size, kernel, [strides, pads, dilations]) else { continue };
            c.epilogue = Epilogue {
                bias: random.below(2) == 1,
                activation: random.pick(&ACTIVATIONS),
                residual: random.below(2) == 1,
                residual_first: random.below(2) == 1,
                ..Epilogue::default()
            };
            check(class, &c, &inputs(&c, &mut random));
            check_gradient(class, &c, &mut random, |_| {});
            checked += 1;
        }
    }
}

#[test]
fn everything_drawn_together_agrees() {
    for class in classes() {
        let mut random = Random::new(9);
        let mut turn = 0;
        while turn < 240 {
            // Filters of one pixel, few channels, and sums beyond the block of every class.
            let groups = random.pick(&[1, 1, 1, 2, 4]);
            let (kernel, in_group) = match random.below(4) {
                0 => ([1, 1], 1 + random.below(40)),
                1 => ([1, 1], 250 + random.below(900)),
                2 => ([1 + random.below(3), 1 + random.below(3)], 1 + random.below(8)),
                _ => ([3, 1 + random.below(3)], 30 + random.below(100)),
            };
            // Groups of one channel each have kernels of their own.
            let one_each = groups > 1 && random.below(2) == 0;
            let (in_group, out_group) = if one_each { (1, 1) } else { (in_group, 1 + random.below(45)) };
            let groups = if one_each { 1 + random.below(40) } else { groups };
            let channels = [1 + random.below(2), groups * in_group, groups * out_group, groups];
            let pair = |random: &mut Random, of: &[usize]| [random.pick(of), random.pick(of)];
            let sizes: &[usize] = if in_group < 30 { &[1, 2, 3, 5, 7, 8, 11] } else { &[1, 2, 3, 4] };
            let in_size = pair(&mut random, sizes);
            let strides = pair(&mut random, &[1, 1, 2, 3]);
            let dilations = pair(&mut random, &[1, 1, 2]);
            let pads = [pair(&mut random, &[0, 0, 1, 2]), pair(&mut random, &[0, 0, 1, 3])];
            let Some(mut c) = padded(channels, in_size, kernel, [strides, dilations], pads) else { continue };
            c.epilogue = Epilogue {
                bias: turn % 2 == 1,
                residual: turn / 2 % 3 > 0,
                residual_first: turn / 2 % 3 > 1,
                activation: ACTIVATIONS[turn / 6 % ACTIVATIONS.len()],
                ..Epilogue::default()
            };
            check(class, &c, &inputs(&c, &mut random));
            check_gradient(class, &c, &mut random, |_| {});
            turn += 1;
        }
    }
}

/// One tap per channel on the pixel it belongs to is a product only where nothing is padded: not before, not after.
#[test]
fn filters_of_one_pixel_with_padding_are_no_products() {
    for class in classes() {
        let mut random = Random::new(10);
        for pads in [[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 1]], [[1, 1], [1, 1]]]
        {
            for strides in [[1, 1], [1, 2], [2, 1], [2, 2]] {
                for epilogue in [Epilogue::default(), Epilogue { bias: true, ..Epilogue::default() }] {
                    let c = padded([2, 5, 7, 1], [4, 3], [1, 1], [strides, [1, 1]], pads).unwrap();
                    let c = Conv { epilogue, ..c };
                    check(class, &c, &inputs(&c, &mut random));
                    check_gradient(class, &c, &mut random, |_| {});
                }
            }
        }
    }
}

#[test]
fn many_channels_cross_every_block() {
    for class in classes() {
        let mut random = Random::new(2);
        let same = [[1, 1], [1, 1], [1, 1]];
        for c in [
            call([1, 131, 97, 1], [13, 11], [3, 3], same),
            call([1, 600, 35, 1], [9, 15], [1, 1], [[1, 1], [0, 0], [1, 1]]),
            call([2, 70, 70, 1], [29, 31], [3, 3], [[2, 2], [1, 1], [1, 1]]),
        ] {
            let mut c = c.unwrap();
            c.epilogue = Epilogue {
                bias: true,
                activation: Some(Activation::Relu),
                residual: true,
                residual_first: false,
                ..Epilogue::default()
            };
            check(class, &c, &inputs(&c, &mut random));
            check_gradient(class, &c, &mut random, |_| {});
        }
    }
}

/// Rows that are long enough for windows that overlap in a strip, with channels in one piece, in several, and padded apart; and
/// as few output channels as inner products serve.
#[test]
fn long_rows_and_few_output_channels_agree() {
    for class in classes() {
        let mut random = Random::new(12);
        for (in_group, groups) in [(8, 1), (24, 2), (256, 1), (400, 1)] {
            for out_group in [1, 2, 3, 5, 8, 9, 40] {
                for (kernel, strides, dilations) in
                    [([3, 3], [1, 1], [1, 1]), ([2, 5], [1, 2], [1, 1]), ([3, 2], [2, 1], [2, 3])]
                {
                    let channels = [2, groups * in_group, groups * out_group, groups];
                    let pads = [[1, 2], [random.below(3), random.below(3)]];
                    // Some rows are longer than a block.
                    let size = match in_group == 8 && out_group != 5 {
                        true => [5, 1030 + random.below(300)],
                        false => [6 + random.below(4), 15 + random.below(12)],
                    };
                    let mut c = padded(channels, size, kernel, [strides, dilations], pads).unwrap();
                    c.epilogue = Epilogue {
                        bias: random.below(2) == 1,
                        activation: random.pick(&ACTIVATIONS),
                        residual: random.below(2) == 1,
                        residual_first: random.below(2) == 1,
                        ..Epilogue::default()
                    };
                    check(class, &c, &inputs(&c, &mut random));
                }
            }
        }
    }
}

/// Between taps that are far apart lie pixels that nothing reads: no copy of them is made.
#[test]
fn taps_far_apart_take_no_more_room() {
    let far = 1 << 20;
    for class in classes() {
        for (channels, kernel, dilations, size) in [
            ([1, 4, 1, 1], [2, 2], [far, far], [8, 8]),
            ([1, 8, 16, 1], [2, 3], [far, 1], [8, 512]),
            ([1, 8, 16, 1], [3, 3], [64, 64], [65, 65]),
        ] {
            let pads = [dilations[0] * (kernel[0] - 1), dilations[1] * (kernel[1] - 1)];
            let c = padded(channels, size, kernel, [[1, 1], dilations], [pads, [0, 0]]).unwrap();
            let prepared = CpuTarget::new(class).prepare(&KernelCall::Conv(c)).unwrap();
            assert!(prepared.scratch_bytes <= 1 << 20, "{} bytes", prepared.scratch_bytes);
        }
    }
}

#[test]
fn one_channel_per_group_agrees() {
    for class in classes() {
        let mut random = Random::new(3);
        for multiplier in [1, 3] {
            for strides in [[1, 1], [2, 2], [1, 3]] {
                for dilations in [[1, 1], [2, 3]] {
                    for size in [[7, 7], [30, 61], [5, 70]] {
                        let geometry = [strides, [2, 3], dilations];
                        let mut c = call([2, 4, 4 * multiplier, 4], size, [3, 5], geometry).unwrap();
                        let activation = random.pick(&ACTIVATIONS);
                        c.epilogue = Epilogue {
                            bias: true,
                            activation,
                            residual: true,
                            residual_first: false,
                            ..Epilogue::default()
                        };
                        check(class, &c, &inputs(&c, &mut random));
                        check_gradient(class, &c, &mut random, |_| {});
                    }
                }
            }
        }
    }
}

#[test]
fn one_dimension_is_a_height_of_one() {
    for class in classes() {
        let mut random = Random::new(4);
        let geometry = [[1, 2], [0, 3], [1, 2]];
        let c = call([2, 5, 6, 1], [1, 101], [1, 7], geometry).unwrap();
        check(class, &c, &inputs(&c, &mut random));
    }
}

/// Filters of groups that do not fill whole panels, and taps of which whole rows lie outside of the image.
#[test]
fn groups_and_wide_padding_agree() {
    for class in classes() {
        let mut random = Random::new(7);
        for (channels, size, kernel, geometry) in [
            ([1, 10, 82, 2], [9, 8], [3, 3], [[1, 1], [1, 1], [1, 1]]),
            ([2, 12, 66, 6], [5, 6], [2, 3], [[2, 1], [1, 2], [1, 2]]),
            ([1, 3, 64, 1], [23, 21], [7, 7], [[2, 2], [3, 3], [1, 1]]),
            ([1, 5, 33, 1], [2, 3], [3, 4], [[1, 2], [7, 9], [3, 2]]),
            ([3, 40, 48, 1], [7, 7], [1, 1], [[2, 2], [0, 0], [1, 1]]),
            ([1, 2, 6, 2], [4, 4], [3, 3], [[1, 1], [4, 4], [1, 1]]),
        ] {
            let mut c = call(channels, size, kernel, geometry).unwrap();
            let activation = random.pick(&ACTIVATIONS);
            c.epilogue = Epilogue {
                bias: true,
                activation,
                residual: true,
                residual_first: true,
                ..Epilogue::default()
            };
            check(class, &c, &inputs(&c, &mut random));
            check_gradient(class, &c, &mut random, |_| {});
        }
    }
}

#[test]
fn subnormal_and_huge_numbers_keep_their_size() {
    for class in classes() {
        let mut random = Random::new(8);
        for groups in [1, 4] {
            let c = call([1, 4, 4, groups], [6, 9], [3, 3], [[1, 1], [1, 1], [1, 1]]);
            let c = c.unwrap();
            let mut inputs = inputs(&c, &mut random);
            inputs[0].iter_mut().step_by(3).for_each(|x| *x *= 1e-40);
            inputs[0].iter_mut().skip(1).step_by(3).for_each(|x| *x *= 1e30);
            check(class, &c, &inputs);
            check_gradient(class, &c, &mut random, |inputs| {
                inputs[0].iter_mut().for_each(|x| *x *= 1e30);
                inputs[1].iter_mut().for_each(|x| *x *= 1e-40);
            });
        }
    }
}

#[test]
fn nan_and_infinity_reach_what_reads_them() {
    for class in classes() {
        let mut random = Random::new(5);
        let geometry = [[1, 1], [0, 0], [1, 1]];
        for groups in [1, 4] {
            let c = call([1, 4, 8, groups], [12, 40], [3, 3], geometry).unwrap();
            let mut inputs = inputs(&c, &mut random);
            inputs[0][100] = f32::NAN;
            inputs[0][700] = f32::INFINITY;
            check(class, &c, &inputs);
            check_gradient(class, &c, &mut random, |inputs| inputs[0][100] = f32::NAN);
        }
    }
}

#[test]
fn empty_extents_are_fine() {
    for class in classes() {
        let mut random = Random::new(6);
        let geometry = [[1, 1], [0, 0], [1, 1]];
        for channels in [[0, 3, 5, 1], [1, 0, 5, 1], [1, 3, 0, 1]] {
            let c = call(channels, [6, 6], [3, 3], geometry).unwrap();
            check(class, &c, &inputs(&c, &mut random));
            check_gradient(class, &c, &mut random, |_| {});
        }
    }
}
