//! Maxima and averages of every class against plain loops in f64.

mod harness;

use harness::random::Random;
use harness::{Expected, classes, compare, execute};
use margay_kernels_cpu::Class;
use margay_loops::{KernelCall, Pool};

fn expected(c: &Pool, x: &[f32]) -> Vec<Expected> {
    let mut out = Vec::new();
    let within = |axis: usize, at: usize, tap: usize| {
        let position = (at * c.strides[axis] + tap * c.dilations[axis]).checked_sub(c.pads[axis])?;
        (position < c.size[axis]).then_some(position)
    };
    for place in 0..c.outer * c.out[0] * c.out[1] * c.channels {
        let (place, channel) = (place / c.channels, place % c.channels);
        let (place, column) = (place / c.out[1], place % c.out[1]);
        let (image, row) = (place / c.out[0], place % c.out[0]);
        let mut values = Vec::new();
        for (i, j) in (0..c.kernel[0]).flat_map(|i| (0..c.kernel[1]).map(move |j| (i, j))) {
            if let (Some(y), Some(z)) = (within(0, row, i), within(1, column, j)) {
                let at = ((image * c.size[0] + y) * c.size[1] + z) * c.channels + channel;
                values.push(f64::from(x[at]));
            }
        }
        let size: f64 = values.iter().map(|v| v.abs()).sum();
        let value = match (c.average, c.inside_only) {
            (false, _) if values.iter().any(|v| v.is_nan()) => f64::NAN,
            (false, _) => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            (true, true) => values.iter().sum::<f64>() / values.len() as f64,
            (true, false) => values.iter().sum::<f64>() / (c.kernel[0] * c.kernel[1]) as f64,
        };
        let tolerance = if c.average { size * 1e-6 } else { 0.0 };
        out.push(Expected { value, tolerance });
    }
    out
}

fn check(class: Class, c: &Pool, x: Vec<f32>) {
    let expected = expected(c, &x);
    let found = execute(class, &KernelCall::Pool(c.clone()), &[x], &[], expected.len());
    compare(&format!("{} {c:?}", class.name()), &found, &expected);
}

/// Calls over images with windows and padding in front and behind; the number of windows follows.
fn calls() -> Vec<Pool> {
    let mut all = Vec::new();
    let images = [([1, 1], 1), ([7, 9], 1), ([20, 33], 1), ([5, 6], 5), ([1, 70], 1), ([4, 3], 19)];
    let windows = [
        ([1, 1], [1, 1], [1, 1], [0, 0, 0, 0]),
        ([3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
        ([3, 3], [2, 2], [1, 1], [1, 1, 0, 1]),
        ([2, 3], [3, 4], [1, 1], [0, 2, 1, 0]),
        ([5, 9], [1, 1], [1, 1], [2, 4, 2, 4]),
        ([2, 3], [2, 3], [2, 2], [1, 3, 4, 2]),
        ([1, 4], [1, 2], [3, 3], [0, 5, 0, 6]),
        // Windows over nothing but padding.
        ([1, 2], [1, 1], [1, 1], [3, 4, 2, 5]),
    ];
    for (size, channels) in images {
        for (kernel, strides, dilations, [top, left, bottom, right]) in windows {
            let fits = |axis: usize, pads: usize| {
                let reach: usize = (kernel[axis] - 1) * dilations[axis] + 1;
                Some((size[axis] + pads).checked_sub(reach)? / strides[axis] + 1)
            };
            let (Some(rows), Some(columns)) = (fits(0, top + bottom), fits(1, left + right)) else {
                continue;
            };
            for (average, inside_only) in [(false, false), (true, false), (true, true)] {
                let (out, pads) = ([rows, columns], [top, left]);
                let c = Pool {
                    average,
                    outer: 2,
                    size,
                    channels,
                    out,
                    kernel,
                    strides,
                    dilations,
                    pads,
                    inside_only,
                };
                all.push(c);
            }
        }
    }
    assert!(all.len() > 80, "{}", all.len());
    all
}

fn elements(c: &Pool) -> usize {
    c.outer * c.size[0] * c.size[1] * c.channels
}

#[test]
fn windows_agree() {
    for class in classes() {
        let mut random = Random::new(3);
        for c in calls() {
            check(class, &c, random.normal(elements(&c)));
        }
    }
}

#[test]
fn a_nan_is_the_maximum_of_its_windows_alone() {
    for class in classes() {
        let mut random = Random::new(4);
        for c in calls().into_iter().filter(|c| !c.average) {
            let mut x = random.normal(elements(&c));
            x.iter_mut().step_by(11).for_each(|x| *x = f32::NAN);
            x.iter_mut().skip(3).step_by(11).for_each(|x| *x = f32::NEG_INFINITY);
            check(class, &c, x);
        }
    }
}

#[test]
fn images_without_elements_have_no_windows() {
    for class in classes() {
        for (outer, out, channels) in [(0, [2, 3], 1), (2, [0, 3], 1), (2, [2, 0], 1), (2, [2, 3], 0)] {
            let c = Pool {
                average: false,
                outer,
                size: [4, 5],
                channels,
                out,
                kernel: [3, 3],
                strides: [1, 1],
                dilations: [1, 1],
                pads: [0, 0],
                inside_only: false,
            };
            check(class, &c, vec![1.0; elements(&c)]);
        }
    }
}
