//! Ways to reach memory: guards, positions computed at run time, strides, several outputs, carried loops.

use margay_kernels_cpu::abi::fault_word;
use margay_loops::nest::Sink;
use margay_loops::{Arg, Binary, Combine, Index, Kernel, Nest, Producer, Stmt};
use margay_tensor::DType::{self, *};

use super::{Bytes, STEP, isas, load_kernel, map, memory, nest, noise, row_major, run, run_split};

/// Whether `0 <= index < extent`.
fn inside(n: &mut Nest, index: &Index, extent: usize) -> margay_loops::Reg {
    let i = n.index_value(index);
    let (zero, last) = (n.number(i, 0.0), n.number(i, extent as f64 - 1.0));
    let low = n.binary(Binary::Le, zero, i);
    let high = n.binary(Binary::Le, i, last);
    n.binary(Binary::And, low, high)
}

#[test]
fn max_pool_with_padding() {
    let (c, h, w, k, stride, pad) = (2, 9, 11, 3, 2, 1);
    let (oh, ow) = (5, 6);
    let mut nest = nest(&[(F32, &[c, h, w])], (F32, &[c, oh, ow]));
    nest.for_each(&[c, oh, ow], |nest, i| {
        let position = |o: &Index, t: &Index| o.times(stride).plus(t, 1).plus(&Index::constant(-pad), 1);
        let top = nest.reduce(k, &[Combine::Max], |nest, ky| {
            nest.reduce(k, &[Combine::Max], |nest, kx| {
                let (y, x) = (position(&i[1], &ky), position(&i[2], &kx));
                let (in_y, in_x) = (inside(nest, &y, h), inside(nest, &x, w));
                let guard = nest.binary(Binary::And, in_y, in_x);
                vec![nest.load_guarded(0, &[i[0].clone(), y, x], guard, f64::NEG_INFINITY)]
            })
        });
        nest.store(0, i, top[0]);
    });
    let x = noise(1, c * h * w, 1.0);
    let mut expected = Vec::new();
    for (ch, y, xx) in (0..c * oh * ow).map(|i| (i / (oh * ow), i / ow % oh, i % ow)) {
        let mut top = f32::NEG_INFINITY;
        for (ky, kx) in (0..k * k).map(|t| (t / k, t % k)) {
            let (sy, sx) = ((2 * y + ky).wrapping_sub(1), (2 * xx + kx).wrapping_sub(1));
            if sy < h && sx < w {
                top = top.max(x[ch * h * w + sy * w + sx]);
            }
        }
        expected.push(top);
    }
    for out in run(&nest.finish(), &[f32::bytes(&x), vec![0; 4 * c * oh * ow]]) {
        assert_eq!(f32::values(&out), expected);
    }
}

#[test]
fn a_false_guard_touches_no_memory() {
    let mut nest = nest(&[(F32, &[1 << 40]), (Bool, &[1])], (F32, &[20]));
    nest.for_each(&[20], |nest, i| {
        let guard = nest.load(1, &[Index::constant(0)]);
        let far = i[0].plus(&Index::constant(1 << 38), 1);
        let value = nest.load_guarded(0, &[far], guard, 2.5);
        nest.store(0, i, value);
    });
    let kernel = nest.finish();
    for isa in isas() {
        let mut args = [Vec::new(), vec![0], vec![0; 80]];
        run_split(&load_kernel(&kernel, &isa), &mut args, &[(0, 20)]);
        assert_eq!(f32::values(&args[2]), [2.5; 20]);
    }
}

/// Rows of a table by position, as an embedding reads them; positions are checked and brought into range.
fn gather(rows: usize, width: usize, count: usize) -> Kernel {
    let mut nest = nest(&[(F32, &[rows, width]), (I64, &[count])], (F32, &[count, width]));
    nest.for_each(&[count, width], |nest, i| {
        let at = nest.load(1, &i[..1]);
        let (zero, last) = (nest.number(at, 0.0), nest.number(at, rows as f64 - 1.0));
        let (low, high) = (nest.binary(Binary::Le, zero, at), nest.binary(Binary::Le, at, last));
        let valid = nest.binary(Binary::And, low, high);
        nest.require(valid, "positions of rows");
        let at = nest.select(valid, at, zero);
        let value = nest.load(0, &[Index::reg(at), i[1].clone()]);
        nest.store(0, i, value);
    });
    nest.finish()
}

#[test]
fn gather_copies_rows_and_reports_positions_out_of_range() {
    for width in [1, 3, 21, 64] {
        let kernel = gather(7, width, 5);
        let table = noise(1, 7 * width, 1.0);
        let good = [6i64, 0, 3, 3, 1];
        let expected: Vec<f32> =
            good.iter().flat_map(|&r| table[r as usize * width..][..width].to_vec()).collect();
        for out in run(&kernel, &[f32::bytes(&table), i64::bytes(&good), vec![0; 20 * width]]) {
            assert_eq!(f32::values(&out), expected);
        }
        for isa in isas() {
            let bad = i64::bytes(&[0, 1, 7, -1, 2]);
            let mut args = [f32::bytes(&table), bad, vec![0; 20 * width]];
            let loaded = load_kernel(&kernel, &isa);
            assert_eq!(
                run_split(&loaded, &mut args, &[(0, crate::items(&kernel))]),
                fault_word(STEP as u32, 0)
            );
            assert_eq!(
                f32::values(&args[2])[4 * width..],
                table[2 * width..3 * width],
                "goes on after a fault"
            );
        }
    }
}

#[test]
fn a_fault_says_which_requirement_failed() {
    let mut nest = nest(&[(I64, &[40])], (I64, &[40]));
    nest.for_each(&[40], |nest, i| {
        let x = nest.load(0, i);
        let (low, high) = (nest.number(x, -3.0), nest.number(x, 3.0));
        let (above, below) = (nest.binary(Binary::Le, low, x), nest.binary(Binary::Le, x, high));
        nest.require(above, "numbers from -3");
        nest.require(below, "numbers to 3");
        nest.store(0, i, x);
    });
    let kernel = nest.finish();
    assert_eq!(kernel.requirements(), ["numbers from -3", "numbers to 3"]);
    let step = u32::try_from(STEP).unwrap();
    let cases = [
        (vec![], 0),
        (vec![(7, -4)], fault_word(step, 0)),
        (vec![(7, 4)], fault_word(step, 1)),
        (vec![(7, 4), (30, -4)], fault_word(step, 1)),
        (vec![(7, -4), (30, 4)], fault_word(step, 1)),
    ];
    for isa in isas() {
        let loaded = load_kernel(&kernel, &isa);
        for (bad, expected) in &cases {
            let mut x = vec![0i64; 40];
            bad.iter().for_each(|&(at, v)| x[at] = v);
            let items = crate::items(&kernel);
            let mut args = [i64::bytes(&x), vec![0; 320]];
            assert_eq!(run_split(&loaded, &mut args, &[(0, items)]), *expected, "{bad:?}");
        }
    }
}

#[test]
fn transposition_of_every_type() {
    // Less than a tile, tiles with something left in both directions, and more than a block of them.
    for (a, b) in [(3, 9), (5, 19), (19, 5), (16, 16), (37, 50)] {
        for dtype in [F32, F64, F16, BF16, I64, I32, I16, I8, U8, Bool] {
            transposes(dtype, [a, b]);
        }
    }
}

fn transposes(dtype: DType, [a, b]: [usize; 2]) {
    let source = Producer::Memory { arg: 0, dtype, shape: vec![b, a], strides: vec![1, b as i64] };
    let args = [false, true].map(|written| Arg { dtype, written }).to_vec();
    let sink = Sink { arg: 1, strides: row_major(&[b, a]), stages: vec![] };
    let mut nest = Nest::new(args, vec![source], vec![sink]);
    nest.for_each(&[b, a], |nest, i| {
        let value = nest.load(0, i);
        nest.store(0, i, value);
    });
    let size = dtype.bytes();
    let x: Vec<u8> = (0..a * b * size).map(|i| if dtype == Bool { i % 2 } else { i % 120 } as u8).collect();
    let mut expected = Vec::new();
    for i in 0..a * b {
        expected.extend_from_slice(&x[(i % a * b + i / a) * size..][..size]);
    }
    for out in run(&nest.finish(), &[x.clone(), vec![0; a * b * size]]) {
        assert_eq!(out, expected, "{dtype}");
    }
}

/// Operands that lie across each other, one that is shared along a row, one along a column, and one by all; a result that lies
/// either way.
#[test]
fn operands_that_lie_across_each_other() {
    for [a, b] in [[7, 9], [20, 37], [34, 18]] {
        for across in [false, true] {
            let strides = [
                vec![b as i64, 1],
                vec![1, a as i64],
                vec![0, 1],
                vec![1, 0],
                vec![0, 0],
                if across { vec![1, a as i64] } else { vec![b as i64, 1] },
            ];
            let args =
                (0..6).map(|i| Arg { dtype: if i == 1 { BF16 } else { F32 }, written: i == 5 }).collect();
            let sources = (0..5)
                .map(|i| Producer::Memory {
                    arg: i,
                    dtype: if i == 1 { BF16 } else { F32 },
                    shape: vec![2, a, b],
                    strides: [vec![if i < 2 { (a * b) as i64 } else { 0 }], strides[i].clone()].concat(),
                })
                .collect();
            let sink =
                Sink { arg: 5, strides: [vec![(a * b) as i64], strides[5].clone()].concat(), stages: vec![] };
            let mut nest = Nest::new(args, sources, vec![sink]);
            nest.for_each(&[2, a, b], |nest, i| {
                let x: Vec<_> = (0..5).map(|k| nest.load(k, i)).collect();
                let product = nest.mul(x[0], x[1]);
                let sum = nest.add(product, x[2]);
                let product = nest.mul(sum, x[3]);
                let sum = nest.sub(product, x[4]);
                nest.store(0, i, sum);
            });
            let wholes = |seed: i64, n: usize| -> Vec<f32> {
                (0..n as i64).map(|i| ((i * 37 + seed) % 64 - 32) as f32).collect()
            };
            let x = [2 * a * b, 2 * a * b, b, a, 1].map(|n| wholes(n as i64, n));
            let mut expected = vec![0.0; 2 * a * b];
            for (n, i, j) in (0..2 * a * b).map(|at| (at / (a * b), at / b % a, at % b)) {
                let rows = n * a * b;
                let value = (x[0][rows + i * b + j] * x[1][rows + j * a + i] + x[2][j]) * x[3][i] - x[4][0];
                expected[rows + if across { j * a + i } else { i * b + j }] = value;
            }
            let mut args: Vec<Vec<u8>> = x.iter().map(|x| f32::bytes(x)).collect();
            args[1] = x[1].iter().flat_map(|v| (v.to_bits() >> 16).to_le_bytes()[..2].to_vec()).collect();
            args.push(vec![0; 8 * a * b]);
            for out in run(&nest.finish(), &args) {
                assert_eq!(f32::values(&out), expected, "{a} by {b}, {across}");
            }
        }
    }
}

#[test]
fn concatenation_writes_one_output_from_two_inputs() {
    let (rows, left, right) = (3, 18, 7);
    let width = left + right;
    let args = [false, false, true].map(|written| Arg { dtype: F32, written }).to_vec();
    let sources = vec![memory(0, F32, &[rows, left]), memory(1, F32, &[rows, right])];
    let sink = Sink { arg: 2, strides: row_major(&[rows, width]), stages: vec![] };
    let mut nest = Nest::new(args, sources, vec![sink]);
    nest.for_each(&[rows], |nest, i| {
        for (input, count, start) in [(0, left, 0), (1, right, left)] {
            nest.serial(count, |nest, k| {
                let value = nest.load(input, &[i[0].clone(), k.clone()]);
                let to = k.plus(&Index::constant(start as i64), 1);
                nest.store(0, &[i[0].clone(), to], value);
            });
        }
    });
    let (x, y) = (noise(1, rows * left, 1.0), noise(2, rows * right, 1.0));
    let expected: Vec<f32> =
        (0..rows).flat_map(|r| [&x[r * left..][..left], &y[r * right..][..right]].concat()).collect();
    for out in run(&nest.finish(), &[f32::bytes(&x), f32::bytes(&y), vec![0; 4 * rows * width]]) {
        assert_eq!(f32::values(&out), expected);
    }
}

#[test]
fn a_loop_that_reads_what_it_wrote_stays_in_order() {
    let (rows, n) = (2, 40);
    let args = [false, true].map(|written| Arg { dtype: F32, written }).to_vec();
    let strides = row_major(&[rows, n]);
    let sources = vec![memory(0, F32, &[rows, n]), memory(1, F32, &[rows, n])];
    let mut nest = Nest::new(args, sources, vec![Sink { arg: 1, strides, stages: vec![] }]);
    nest.for_each(&[rows], |nest, i| {
        let row = i[0].clone();
        let first = nest.load(0, &[row.clone(), Index::constant(0)]);
        nest.store(0, &[row.clone(), Index::constant(0)], first);
        nest.serial(n - 1, |nest, k| {
            let next = k.plus(&Index::constant(1), 1);
            let before = nest.load(1, &[row.clone(), k]);
            let x = nest.load(0, &[row.clone(), next.clone()]);
            let sum = nest.add(before, x);
            nest.store(0, &[row.clone(), next], sum);
        });
    });
    let x = noise(1, rows * n, 1.0);
    let expected: Vec<f32> = x
        .chunks(n)
        .flat_map(|row| {
            row.iter().scan(0.0, |sum, v| {
                *sum += v;
                Some(*sum)
            })
        })
        .collect();
    for out in run(&nest.finish(), &[f32::bytes(&x), vec![0; 4 * rows * n]]) {
        assert_eq!(f32::values(&out), expected);
    }
}

#[test]
fn a_serial_kernel_is_one_item_and_an_empty_one_writes_nothing() {
    let mut nest = nest(&[(F32, &[9])], (F32, &[9]));
    nest.serial(9, |nest, i| {
        let at = nest.index_value(&i);
        let x = nest.load(0, std::slice::from_ref(&i));
        let at = nest.cast(at, F32);
        let sum = nest.add(x, at);
        nest.store(0, &[i], sum);
    });
    let kernel = nest.finish();
    assert_eq!(crate::items(&kernel), 1);
    for out in run(&kernel, &[f32::bytes(&[1.0; 9]), vec![0; 36]]) {
        assert_eq!(f32::values(&out), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    }
    let empty = map(&[(F32, &[0, 4])], (F32, &[0, 4]), |_, x| x[0]);
    assert!(matches!(empty.body[0], Stmt::Loop { .. }));
    assert_eq!(crate::items(&empty), 0);
    load_kernel(&empty, &isas()[0]);
}
