//! Sketched linear layers and convolutions.

use margay_ir::{Cx, Graph, Op, Part, Pass, Value, eval};
use margay_passes::FoldConstants;
use margay_passes::sketch::{PantherTraining, Start, panther_for_training};
use margay_tensor::Tensor;
use margay_testkit::parse_with_random_constants;

use crate::kernels::by_all_factors;
use crate::{check, floats, multiply, random, transposed, widened};

/// The constant with a part, and its contents.
fn constant(g: &Graph, part: Option<Part>, has: impl Fn(&Tensor) -> bool) -> (Value, Vec<f64>) {
    let mut found = g.order().into_iter().filter_map(|n| match g.op(n) {
        Op::Const(c) if g.node(n).origin.part == part && has(c.payload.tensor()) => {
            Some((Value::from(n), floats(c.payload.tensor())))
        }
        _ => None,
    });
    found.next().expect("there is such a constant")
}

/// Columns `first..first + count` of a matrix, times a number.
fn columns(a: &[f64], of: usize, first: usize, count: usize, by: f64) -> Vec<f64> {
    a.chunks_exact(of).flat_map(|row| row[first..first + count].iter().map(move |x| x * by)).collect()
}

const ROWS: usize = 5;
const D_IN: usize = 40;
const D_OUT: usize = 36;
const TERMS: usize = 2;
const RANK: usize = 3;

fn sketched(source: &str, start: Start, rank: usize) -> (Graph, Graph) {
    let (before, _) = parse_with_random_constants(source);
    let mut g = before.clone();
    let options = PantherTraining { rank, terms: TERMS, start, two_sided: false, seed: 5, modules: None };
    let mut cx = Cx::default();
    panther_for_training(&mut g, &options, &mut cx).unwrap();
    assert!(cx.remarks.is_empty());
    assert_eq!(g.verify(margay_ir::Stage::Sketched), Ok(()));
    (before, g)
}

fn linear(start: Start) -> (Graph, Graph) {
    let source = format!(
        "graph @net(%x: f32[{ROWS}, {D_IN}]) -> (y: f32[{ROWS}, {D_OUT}]) {{
           %0 = const #w : f32[{D_IN}, {D_OUT}]  // fc.weight
           %1 = matmul %x, %0 : f32[{ROWS}, {D_OUT}]  // fc
           %2 = const #b : f32[{D_OUT}]  // fc.bias
           %3 = add %1, %2 : f32[{ROWS}, {D_OUT}]  // fc/Add
           return %3
         }}"
    );
    sketched(&source, start, RANK)
}

/// The parts of a sketched linear layer: S₁ and S₂ as they lie, and U₁ and U₂ with signs of size 1/√k.
struct Linear {
    s1: (Value, Vec<f64>),
    s2: (Value, Vec<f64>),
    u1: Vec<f64>,
    u2: Vec<f64>,
}

impl Linear {
    fn of(g: &Graph) -> Linear {
        let signs = |rows| {
            let (_, mut u) = constant(g, Some(Part::Random), |t| t.shape()[0] == rows);
            u.iter_mut().for_each(|x| *x *= 2.0 * TERMS as f64);
            assert!(u.iter().all(|x| (x.abs() - 1.0 / (RANK as f64).sqrt()).abs() < 1e-7));
            u
        };
        Linear {
            s1: constant(g, Some(Part::Left), |_| true),
            s2: constant(g, Some(Part::Right), |_| true),
            u1: signs(TERMS * RANK),
            u2: signs(D_IN),
        }
    }

    /// Term l of S₁ `[d_in, k]`, U₁ `[k, d_out]`, U₂ `[d_in, k]` and S₂ `[k, d_out]`.
    fn term(&self, l: usize) -> [Vec<f64>; 4] {
        let rows = |a: &[f64]| a[l * RANK * D_OUT..][..RANK * D_OUT].to_vec();
        let cols = |a: &[f64]| columns(a, TERMS * RANK, l * RANK, RANK, 1.0);
        [cols(&self.s1.1), rows(&self.u1), cols(&self.u2), rows(&self.s2.1)]
    }
}

#[test]
fn a_sketched_layer_computes_the_formula_with_a_copy_of_the_weight() {
    let (before, g) = linear(Start::Unbiased);
    let (_, w) = constant(&before, None, |t| t.shape().len() == 2);
    let parts = Linear::of(&g);
    let mut effective = vec![0.0; D_IN * D_OUT];
    for l in 0..TERMS {
        let [s1, u1, u2, s2] = parts.term(l);
        // S₁ = W U₁ᵀ and S₂ = U₂ᵀ W, which the constants hold in f32.
        let (mut copy1, mut copy2) = (vec![0.0; D_IN * RANK], vec![0.0; RANK * D_OUT]);
        multiply(&mut copy1, &w, &transposed(&u1, RANK, D_OUT), [D_IN, D_OUT, RANK]);
        multiply(&mut copy2, &transposed(&u2, D_IN, RANK), &w, [RANK, D_IN, D_OUT]);
        for (found, expected) in s1.iter().zip(&copy1).chain(s2.iter().zip(&copy2)) {
            assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
        }
        multiply(&mut effective, &s1, &u1, [D_IN, RANK, D_OUT]);
        multiply(&mut effective, &u2, &s2, [D_IN, RANK, D_OUT]);
    }
    effective.iter_mut().for_each(|x| *x /= 2.0 * TERMS as f64);
    let x = random(&[ROWS, D_IN], 0);
    let (_, b) = constant(&g, None, |t| t.shape() == [D_OUT]);
    let mut expected = b.repeat(ROWS);
    multiply(&mut expected, &floats(&x), &effective, [ROWS, D_IN, D_OUT]);
    let mut folded = g.clone();
    FoldConstants::default().run(&mut folded, &mut Cx::default()).unwrap();
    assert_eq!(folded.to_string().matches(" = concat ").count(), 0);
    for (g, tolerance) in [(widened(&g), 1e-6), (widened(&folded), 1e-6)] {
        let found = floats(&eval::run(&g, &[("x", &x)]).unwrap()[0]);
        for (f, e) in found.iter().zip(&expected) {
            assert!((f - e).abs() <= tolerance * (1.0 + e.abs()), "{f}, expected {e}");
        }
    }
}

#[test]
fn random_factors_have_the_variance_of_he() {
    let (dense, _) = linear(Start::Random);
    let (mut squares, seeds) = (0.0, 40);
    for seed in 0..seeds {
        let mut g = dense.clone();
        let options = PantherTraining {
            rank: RANK,
            terms: TERMS,
            start: Start::Random,
            two_sided: false,
            seed,
            modules: None,
        };
        panther_for_training(&mut g, &options, &mut Cx::default()).unwrap();
        let parts = Linear::of(&g);
        let mut effective = vec![0.0; D_IN * D_OUT];
        for l in 0..TERMS {
            let [s1, u1, u2, s2] = parts.term(l);
            multiply(&mut effective, &s1, &u1, [D_IN, RANK, D_OUT]);
            multiply(&mut effective, &u2, &s2, [D_IN, RANK, D_OUT]);
        }
        let scale = 1.0 / (2.0 * TERMS as f64);
        squares += effective.iter().map(|x| (x * scale).powi(2)).sum::<f64>() / (D_IN * D_OUT) as f64;
    }
    let (variance, expected) = (squares / seeds as f64, 1.0 / (3.0 * D_IN as f64));
    assert!((variance / expected - 1.0).abs() < 0.05, "{variance}, expected {expected}");
}

#[test]
fn derivatives_of_a_sketched_linear_layer_are_those_of_its_backward_pass() {
    let (_, g) = linear(Start::Unbiased);
    let parts = Linear::of(&g);
    let (x, dy) = (random(&[ROWS, D_IN], 1), random(&[ROWS, D_OUT], 2));
    let (xs, dys) = (floats(&x), floats(&dy));
    let share: Vec<f64> = dys.iter().map(|d| d / (2.0 * TERMS as f64)).collect();
    let mut dx = vec![0.0; ROWS * D_IN];
    let (mut ds1, mut ds2) = (vec![0.0; D_IN * TERMS * RANK], Vec::new());
    for l in 0..TERMS {
        let [s1, u1, u2, s2] = parts.term(l);
        let mut through1 = vec![0.0; ROWS * RANK];
        multiply(&mut through1, &share, &transposed(&u1, RANK, D_OUT), [ROWS, D_OUT, RANK]);
        multiply(&mut dx, &through1, &transposed(&s1, D_IN, RANK), [ROWS, RANK, D_IN]);
        let mut through2 = vec![0.0; ROWS * RANK];
        multiply(&mut through2, &share, &transposed(&s2, RANK, D_OUT), [ROWS, D_OUT, RANK]);
        multiply(&mut dx, &through2, &transposed(&u2, D_IN, RANK), [ROWS, RANK, D_IN]);
        let mut one = vec![0.0; D_IN * RANK];
        multiply(&mut one, &transposed(&xs, ROWS, D_IN), &through1, [D_IN, ROWS, RANK]);
        for (i, row) in one.chunks_exact(RANK).enumerate() {
            ds1[i * TERMS * RANK + l * RANK..][..RANK].copy_from_slice(row);
        }
        let mut thin = vec![0.0; ROWS * RANK];
        multiply(&mut thin, &xs, &u2, [ROWS, D_IN, RANK]);
        let mut two = vec![0.0; RANK * D_OUT];
        multiply(&mut two, &transposed(&thin, ROWS, RANK), &share, [RANK, ROWS, D_OUT]);
        ds2.extend(two);
    }
    let db: Vec<f64> = (0..D_OUT).map(|o| (0..ROWS).map(|r| dys[r * D_OUT + o]).sum()).collect();
    let by = |g: &Graph| {
        let parts = [
            constant(g, Some(Part::Left), |_| true).0,
            constant(g, Some(Part::Right), |_| true).0,
            constant(g, None, |t| t.shape() == [D_OUT]).0,
        ];
        [&[g.inputs()[0].into()][..], &parts].concat()
    };
    // The signs are rounded to f32, the formulas take them so.
    check("sketched linear", &g, &by, &[("x", x)], &dy, &[dx, ds1, ds2, db]);
}

#[test]
fn derivatives_of_a_sketched_convolution_are_those_of_its_backward_pass() {
    const RANK: usize = 2;
    const WIDTH: usize = 2 * TERMS * RANK;
    let ([n, c, h, w], o) = ([2usize, 3usize, 7usize, 6usize], 16usize);
    let (strides, pads, [oh, ow]) = ([2usize, 1usize], [1usize, 1usize], [4usize, 6usize]);
    let (_, g) = sketched(
        "graph @net(%x: f32[2, 3, 7, 6]) -> (y: f32[2, 16, 4, 6]) {
           %0 = const #w : f32[16, 3, 3, 3]  // conv.weight
           %1 = conv %x, %0 {strides = [2, 1], pads_before = [1, 1], pads_after = [1, 1]} : f32[2, 16, 4, 6]  // conv
           %2 = const #b : f32[16, 1, 1]  // conv.bias
           %3 = add %1, %2 : f32[2, 16, 4, 6]  // conv/Add
           return %3
         }",
        Start::Unbiased,
        RANK,
    );
    let (_, s) = constant(&g, Some(Part::Left), |_| true);
    // u [o, R k] with the division by R in it: signs of size 1 / (R √k).
    let (_, u) = constant(&g, Some(Part::Random), |_| true);
    let (x, dy) = (random(&[n, c, h, w], 3), random(&[n, o, oh, ow], 4));
    let (xs, dys) = (floats(&x), floats(&dy));
    let (mut dx, mut ds) = (vec![0.0; xs.len()], vec![0.0; s.len()]);
    let mut db = vec![0.0; o];
    for image in 0..n {
        for (y, z) in (0..oh * ow).map(|p| (p / ow, p % ow)) {
            let at = |channel: usize| dys[((image * o + channel) * oh + y) * ow + z];
            (0..o).for_each(|channel| db[channel] += at(channel));
            for a in 0..WIDTH {
                let dt: f64 = (0..o).map(|channel| u[channel * WIDTH + a] * at(channel)).sum();
                for (ch, i, j) in (0..c * 9).map(|t| (t / 9, t / 3 % 3, t % 3)) {
                    let (Some(row), Some(column)) = (
                        (y * strides[0] + i).checked_sub(pads[0]),
                        (z * strides[1] + j).checked_sub(pads[1]),
                    ) else {
                        continue;
                    };
                    if row < h && column < w {
                        let from = ((image * c + ch) * h + row) * w + column;
                        let tap = ((a * c + ch) * 3 + i) * 3 + j;
                        ds[tap] += dt * xs[from];
                        dx[from] += dt * s[tap];
                    }
                }
            }
        }
    }
    let by = |g: &Graph| {
        let parts =
            [constant(g, Some(Part::Left), |_| true).0, constant(g, None, |t| t.shape().len() == 3).0];
        [&[g.inputs()[0].into()][..], &parts].concat()
    };
    check("sketched convolution", &g, &by, &[("x", x)], &dy, &[dx, ds, db]);
}

#[test]
fn modules_that_would_not_shrink_are_left_with_a_remark() {
    let (before, _) = linear(Start::Unbiased);
    let run = |rank, modules: Option<Vec<String>>| {
        let (mut g, mut cx) = (before.clone(), Cx::default());
        let options = PantherTraining {
            rank,
            terms: 1,
            start: Start::LeastSquares,
            two_sided: false,
            seed: 0,
            modules,
        };
        let changed = panther_for_training(&mut g, &options, &mut cx);
        (changed, cx.remarks.iter().map(|r| format!("{} at `{}`: {}", r.pass, r.at, r.message)).collect())
    };
    let (changed, said): (_, Vec<String>) = run(10, None);
    assert_eq!(changed.unwrap(), margay_ir::Changed::No);
    assert_eq!(
        said,
        ["panther at `fc`: 20 x (40 + 36) numbers would not be fewer than the 40 x 36 of the weight"]
    );
    assert_eq!(run(9, Some(vec!["fc".into()])).0.unwrap(), margay_ir::Changed::times(1));
    let refusal = |rank, modules| run(rank, modules).0.unwrap_err().to_string();
    assert_eq!(refusal(9, Some(vec!["fc2".into()])), "the model has no module `fc2`; it has `fc`");
    assert_eq!(refusal(0, None), "rank 0 and 1 terms, expected at least 1");
}

/// A convolution: its input and result, its attributes, and groups, outputs, channels and taps of a group.
struct Convolution {
    x: &'static [usize],
    y: &'static [usize],
    taps: &'static [usize],
    attributes: &'static str,
    group: [usize; 4],
}

const CONVOLUTIONS: [Convolution; 4] = [
    Convolution {
        x: &[2, 8, 6, 5],
        y: &[2, 24, 3, 5],
        taps: &[3, 3],
        attributes: "strides = [2, 1], pads_before = [2, 1], pads_after = [2, 1], dilations = [2, 1]",
        group: [1, 24, 8, 9],
    },
    Convolution {
        x: &[2, 12, 5, 4],
        y: &[2, 42, 5, 4],
        taps: &[3, 3],
        attributes: "pads_before = [1, 1], pads_after = [1, 1], groups = 2",
        group: [2, 21, 6, 9],
    },
    Convolution {
        x: &[2, 8, 11],
        y: &[2, 24, 6],
        taps: &[5],
        attributes: "strides = [2], pads_before = [2], pads_after = [2], dilations = [1]",
        group: [1, 24, 8, 5],
    },
    Convolution {
        x: &[2, 21, 8],
        y: &[2, 45, 8],
        taps: &[5],
        attributes: "strides = [1], pads_before = [2], pads_after = [2], dilations = [1], groups = 3",
        group: [3, 15, 7, 5],
    },
];

impl Convolution {
    fn kernel_shape(&self) -> Vec<usize> {
        let [groups, outputs, channels, _] = self.group;
        [&[groups * outputs, channels], self.taps].concat()
    }

    fn dense(&self) -> Graph {
        let [x, y] = [self.x, self.y].map(|shape| format!("f32{shape:?}"));
        parse_with_random_constants(&format!(
            "graph @net(%x: {x}) -> (y: {y}) {{
               %0 = const #w : f32{:?}  // conv.weight
               %1 = conv %x, %0 {{{}}} : {y}  // conv
               return %1
             }}",
            self.kernel_shape(),
            self.attributes
        ))
        .0
    }

    fn sketched(&self, start: Start, two_sided: bool, [terms, rank]: [usize; 2], seed: u64) -> Graph {
        let (mut g, mut cx) = (self.dense(), Cx::default());
        let options = PantherTraining { rank, terms, start, two_sided, seed, modules: None };
        panther_for_training(&mut g, &options, &mut cx).unwrap();
        assert!(cx.remarks.is_empty(), "{:?}", cx.remarks);
        assert_eq!(g.verify(margay_ir::Stage::Sketched), Ok(()));
        g
    }

    /// The kernel that those of a sketch stand for, by the formula of Kasiviswanathan and others: the constants are
    /// found by their parts. `width` is that of one side of a group.
    fn effective(&self, g: &Graph, two_sided: bool, width: usize) -> Vec<f64> {
        let [groups, o, c, t] = self.group;
        let of = |part, first: usize| constant(g, Some(part), move |tensor| tensor.shape()[0] == first).1;
        let (s1, u1) = (of(Part::Left, groups * width), of(Part::Random, groups * o));
        let inputs = two_sided.then(|| (of(Part::Random, groups * width), of(Part::Right, groups * o)));
        let at = |i: usize| {
            let (output, channel, tap) = (i / (c * t), i / t % c, i % t);
            let of = |j: usize| {
                let thin = output / o * width + j;
                let first = u1[output * width + j] * s1[(thin * c + channel) * t + tap];
                let second = inputs.as_ref();
                let second =
                    second.map(|(u2, s2)| s2[(output * width + j) * t + tap] * u2[thin * c + channel]);
                first + second.unwrap_or(0.0)
            };
            (0..width).map(of).sum()
        };
        (0..groups * o * c * t).map(at).collect()
    }
}

/// With groups and without, over one axis and two, on one side and both; and derivatives by finite differences.
#[test]
fn sketches_of_kernels_compute_the_convolution_with_the_kernel_of_the_formula() {
    for (conv, two_sided) in CONVOLUTIONS.iter().flat_map(|conv| [(conv, false), (conv, true)]) {
        let x = random(conv.x, 3);
        for start in [Start::Unbiased, Start::LeastSquares, Start::Random] {
            let size = if two_sided { [2, 1] } else { [1, 1] };
            let g = conv.sketched(start, two_sided, size, 5);
            assert_eq!(g.to_string().matches(" = conv ").count(), if two_sided { 4 } else { 2 });
            let kernel = conv.effective(&g, two_sided, 2);
            let kernel: Vec<f32> = kernel.iter().map(|x| *x as f32).collect();
            let kernel = Tensor::from_slice(&conv.kernel_shape(), &kernel).unwrap();
            let whole =
                margay_passes::with_parameters(&conv.dense(), &[("conv.weight".to_owned(), kernel)]).unwrap();
            let run = |g: &Graph| floats(&eval::run(&widened(g), &[("x", &x)]).unwrap()[0]);
            let (found, expected) = (run(&g), run(&whole));
            let scale = expected.iter().fold(0f64, |m, e| m.max(e.abs()));
            for (f, e) in found.iter().zip(&expected) {
                assert!((f - e).abs() < 1e-6 * scale, "{:?} {start:?}: {f}, expected {e}", conv.group);
            }
            by_all_factors(&format!("{:?} {start:?}", conv.group), &g);
        }
    }
}

/// Over seeds: the mean kernel is the dense one, and squared errors are those that are predicted.
#[test]
fn errors_of_sketched_kernels_follow_their_laws() {
    for (conv, two_sided) in CONVOLUTIONS.iter().flat_map(|conv| [(conv, false), (conv, true)]) {
        let [_, o, c, _] = conv.group.map(|n| n as f64);
        let (_, w) = constant(&conv.dense(), None, |t| t.shape().len() > 2);
        let norm: f64 = w.iter().map(|x| x * x).sum();
        let size = if two_sided { [2, 1] } else { [1, 1] };
        let of = |start, seed| conv.effective(&conv.sketched(start, two_sided, size, seed), two_sided, 2);
        let error = |kernel: &[f64]| kernel.iter().zip(&w).map(|(k, w)| (k - w).powi(2)).sum::<f64>() / norm;
        let seeds = 64;
        let (mut mean, mut unbiased, mut least) = (vec![0.0; w.len()], Vec::new(), Vec::new());
        for seed in 0..seeds {
            let kernel = of(Start::Unbiased, seed);
            mean.iter_mut().zip(&kernel).for_each(|(m, k)| *m += k / seeds as f64);
            unbiased.push(error(&kernel));
            least.push(error(&of(Start::LeastSquares, seed)));
        }
        let law = if two_sided { (o + c - 2.0) / 8.0 } else { (o - 1.0) / 2.0 };
        // The squared error of a mean of independent kernels is that of one over their number.
        let bias = error(&mean) * seeds as f64 / law;
        assert!((bias - 1.0).abs() < 0.35, "{:?} {two_sided}: {bias}", conv.group);
        let average = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
        let (found, n) = (average(&unbiased), seeds as f64);
        let variance = unbiased.iter().map(|f| (f - found).powi(2)).sum::<f64>() / (n - 1.0);
        assert!((found - law).abs() < 4.0 * (variance / n).sqrt(), "{:?} {two_sided}: {found}", conv.group);
        // Signs of few numbers may repeat, and then span less.
        let law = if two_sided { (1.0 - 2.0 / o) * (1.0 - 2.0 / c) } else { 1.0 - 2.0 / o };
        let found = average(&least) / law;
        assert!((found - 1.0).abs() < 0.05, "{:?} {two_sided}: {found}", conv.group);
    }
}

#[test]
fn kernels_that_would_not_shrink_are_left_with_a_remark() {
    let said = |conv: &Convolution, two_sided, rank| {
        let (mut g, mut cx) = (conv.dense(), Cx::default());
        let options =
            PantherTraining { rank, terms: 1, start: Start::LeastSquares, two_sided, seed: 0, modules: None };
        panther_for_training(&mut g, &options, &mut cx).unwrap();
        cx.remarks.iter().map(|r| r.message.clone()).collect::<Vec<_>>()
    };
    let [plain, grouped, ..] = &CONVOLUTIONS;
    // 5 (72 + 24 + 8 + 216) is 1600, the kernel has 1728.
    assert_eq!(said(plain, true, 5), [""; 0]);
    assert_eq!(
        said(plain, true, 6),
        ["6 x (72 + 24 + 8 + 9 x 24) numbers would not be fewer than the 72 x 24 of the weight"]
    );
    // 2 · 7 (54 + 21) is 1050, the kernel of a group has 1134.
    assert_eq!(said(grouped, false, 7), [""; 0]);
    assert_eq!(
        said(grouped, false, 8),
        ["16 x (54 + 21) numbers would not be fewer than the 54 x 21 of each of 2 groups"]
    );
}
