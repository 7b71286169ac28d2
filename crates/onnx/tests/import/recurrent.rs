//! Recurrent layers, compared with their formulas written out time by time.

use super::*;

const TIMES: usize = 4;
const BATCH: usize = 2;
const IN: usize = 3;
const H: usize = 2;

/// Numbers between -1 and 1 that follow no pattern.
fn numbers(shape: &[usize], seed: u32) -> Tensor {
    let count = shape.iter().product::<usize>() as u32;
    let hash = |i: u32| (i + 1).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503)) >> 8;
    let values: Vec<f32> = (0..count).map(|i| (hash(i) % 2001) as f32 / 1000.0 - 1.0).collect();
    floats(shape, &values)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Cell {
    Lstm,
    Gru { reset_after: bool },
    Rnn,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::Gru { .. } => 3,
            Cell::Rnn => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Cell::Lstm => "LSTM",
            Cell::Gru { .. } => "GRU",
            Cell::Rnn => "RNN",
        }
    }
}

struct Layer {
    cell: Cell,
    /// `[D, gates H, I]`, `[D, gates H, H]`, `[D, 2 gates H]`, `[D, 3 H]`, `[D, BATCH, H]` twice.
    w: Vec<f32>,
    r: Vec<f32>,
    b: Vec<f32>,
    p: Vec<f32>,
    h: Vec<f32>,
    c: Vec<f32>,
}

impl Layer {
    /// The outputs of one element of the batch, by time, and the last states.
    fn run(&self, d: usize, x: &[Vec<f32>], element: usize) -> (Vec<Vec<f32>>, [Vec<f32>; 2]) {
        let gates = self.cell.gates();
        let row = |m: &[f32], at: usize, width: usize| m[at * width..(at + 1) * width].to_vec();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let mut h = row(&self.h, d * BATCH + element, H);
        let mut c = row(&self.c, d * BATCH + element, H);
        let mut all = Vec::new();
        for x in x {
            let input = |g: usize, j: usize| {
                let at = d * gates * H + g * H + j;
                dot(&row(&self.w, at, IN), x) + self.b[d * 2 * gates * H + g * H + j]
            };
            let bias = |g: usize, j: usize| self.b[d * 2 * gates * H + (gates + g) * H + j];
            let state = |g: usize, j: usize, h: &[f32]| dot(&row(&self.r, d * gates * H + g * H + j, H), h);
            let p = |g: usize, j: usize| self.p[d * 3 * H + g * H + j];
            let full = |g: usize, j: usize| input(g, j) + bias(g, j) + state(g, j, &h);
            let mut next = (Vec::new(), Vec::new());
            for j in 0..H {
                match self.cell {
                    Cell::Lstm => {
                        let i = sigmoid(full(0, j) + p(0, j) * c[j]);
                        let f = sigmoid(full(2, j) + p(2, j) * c[j]);
                        let cell = f * c[j] + i * full(3, j).tanh();
                        let o = sigmoid(full(1, j) + p(1, j) * cell);
                        next.0.push(o * cell.tanh());
                        next.1.push(cell);
                    }
                    Cell::Gru { reset_after } => {
                        let z = sigmoid(full(0, j));
                        let reset: Vec<f32> = (0..H).map(|j| sigmoid(full(1, j))).collect();
                        let hidden = if reset_after {
                            input(2, j) + reset[j] * (state(2, j, &h) + bias(2, j))
                        } else {
                            let kept: Vec<f32> = reset.iter().zip(&h).map(|(r, h)| r * h).collect();
                            input(2, j) + state(2, j, &kept) + bias(2, j)
                        };
                        next.0.push((1.0 - z) * hidden.tanh() + z * h[j]);
                    }
                    Cell::Rnn => next.0.push(full(0, j).tanh()),
                }
            }
            (h, c) = next;
            all.push(h.clone());
        }
        (all, [h, c])
    }
}

/// Runs a layer of every direction with and without lengths, batch first or time first, with constant and with
/// computed weights.
fn check(cell: Cell) {
    for direction in ["forward", "reverse", "bidirectional"] {
        for (lengths, batch_first, computed) in [
            (None, false, false),
            (Some([4, 2]), false, false),
            (None, true, true),
            (Some([1, 3]), true, false),
        ] {
            check_one(cell, direction, lengths, batch_first, computed);
        }
    }
}

fn check_one(cell: Cell, direction: &str, lengths: Option<[i32; 2]>, batch_first: bool, computed: bool) {
    let gates = cell.gates();
    let backwards: &[bool] = match direction {
        "forward" => &[false],
        "reverse" => &[true],
        _ => &[false, true],
    };
    let dirs = backwards.len();
    let tensors = [
        numbers(&[dirs, gates * H, IN], 1),
        numbers(&[dirs, gates * H, H], 2),
        numbers(&[dirs, 2 * gates * H], 3),
        numbers(&[dirs, 3 * H], 4),
        numbers(&[dirs, BATCH, H], 5),
        numbers(&[dirs, BATCH, H], 6),
    ];
    let v = |t: &Tensor| t.to_vec::<f32>().unwrap();
    let [w, r, b, p, h, c] = &tensors;
    let layer = Layer { cell, w: v(w), r: v(r), b: v(b), p: v(p), h: v(h), c: v(c) };
    let x = numbers(&[TIMES, BATCH, IN], 7);
    let at = |t: usize, e: usize| v(&x)[(t * BATCH + e) * IN..][..IN].to_vec();
    // [time, direction, batch, H] and the last states, [direction, batch, H].
    let mut y = vec![0f32; TIMES * dirs * BATCH * H];
    let mut last = [vec![0f32; dirs * BATCH * H], vec![0f32; dirs * BATCH * H]];
    for (d, &backwards) in backwards.iter().enumerate() {
        for e in 0..BATCH {
            let count = lengths.map_or(TIMES, |l| l[e] as usize);
            let mut times: Vec<usize> = (0..count).collect();
            if backwards {
                times.reverse();
            }
            let inputs: Vec<Vec<f32>> = times.iter().map(|&t| at(t, e)).collect();
            let (outputs, states) = layer.run(d, &inputs, e);
            for (&t, output) in times.iter().zip(outputs) {
                y[((t * dirs + d) * BATCH + e) * H..][..H].copy_from_slice(&output);
            }
            for (all, state) in last.iter_mut().zip(&states).filter(|(_, s)| !s.is_empty()) {
                all[(d * BATCH + e) * H..][..H].copy_from_slice(state);
            }
        }
    }
    let swapped = |t: &Tensor| -> Tensor {
        let op = margay_ir::Op::from(margay_ir::ops::Transpose { perm: vec![1, 0, 2] });
        if batch_first { op.eval(&[t]).unwrap().remove(0) } else { t.clone() }
    };
    let given = |t: Tensor| if computed { Input(t) } else { Constant(t) };
    let mut operands = vec![Input(swapped(&x)), given(w.clone()), given(r.clone()), given(b.clone())];
    operands.push(match lengths {
        Some(l) => Input(Tensor::from_slice(&[BATCH], &l).unwrap()),
        None => Absent,
    });
    operands.push(Input(swapped(h)));
    if cell == Cell::Lstm {
        operands.extend([Input(swapped(c)), given(p.clone())]);
    }
    let mut attributes = vec![
        ("direction", Attribute::String(direction.into())),
        ("hidden_size", int(H as i64)),
        ("layout", int(i64::from(batch_first))),
    ];
    if cell == (Cell::Gru { reset_after: true }) {
        attributes.push(("linear_before_reset", int(1)));
    }
    let outputs = if cell == Cell::Lstm { 3 } else { 2 };
    let found = run_all(14, cell.name(), &attributes, operands, outputs);
    let whole = floats(&[TIMES, dirs, BATCH, H], &y);
    let whole = match batch_first {
        true => {
            let op = margay_ir::Op::from(margay_ir::ops::Transpose { perm: vec![2, 0, 1, 3] });
            op.eval(&[&whole]).unwrap().remove(0)
        }
        false => whole,
    };
    let expected = std::iter::once(whole)
        .chain(last.iter().map(|l| swapped(&floats(&[dirs, BATCH, H], l))))
        .take(outputs);
    for (found, expected) in found.iter().zip(expected) {
        assert_floats(found, expected.shape(), &v(&expected));
    }
}

#[test]
fn lstm_is_its_formula() {
    check(Cell::Lstm);
}

#[test]
fn gru_is_its_formula_with_the_reset_before_and_after_the_product() {
    check(Cell::Gru { reset_after: false });
    check(Cell::Gru { reset_after: true });
}

#[test]
fn rnn_is_its_formula() {
    check(Cell::Rnn);
}

/// One time, one unit, from zero: the output of an RNN is its activation of `x`.
fn activated(name: &str, parameters: &[(&str, f32)], x: f32) -> f32 {
    let mut attributes = vec![("activations", Attribute::Strings(vec![name.into()]))];
    attributes.extend(parameters.iter().map(|(n, v)| (*n, Attribute::Floats(vec![*v]))));
    let one = || Constant(floats(&[1, 1, 1], &[1.0]));
    let operands = vec![Input(floats(&[1, 1, 1], &[x])), one(), one()];
    run(14, "RNN", &attributes, operands).to_vec::<f32>().unwrap()[0]
}

#[test]
fn activations_have_their_parameters() {
    let near =
        |found: f32, expected: f32| assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    let (alpha, beta) = ("activation_alpha", "activation_beta");
    near(activated("Affine", &[(alpha, 2.0), (beta, 0.5)], -1.5), -2.5);
    near(activated("Elu", &[(alpha, 2.0)], -1.0), 2.0 * ((-1f32).exp() - 1.0));
    near(activated("Elu", &[], 100.0), 100.0);
    near(activated("HardSigmoid", &[], 0.5), 0.6);
    near(activated("HardSigmoid", &[(alpha, 0.5), (beta, 0.1)], 0.5), 0.35);
    near(activated("LeakyRelu", &[], -2.0), -0.02);
    near(activated("LeakyRelu", &[(alpha, 0.5)], -2.0), -1.0);
    near(activated("Relu", &[], -2.0), 0.0);
    near(activated("ScaledTanh", &[(alpha, 2.0), (beta, 0.5)], 1.0), 2.0 * 0.5f32.tanh());
    near(activated("Softplus", &[], 1.0), (1.0 + 1f32.exp()).ln());
    near(activated("Softsign", &[], -3.0), -0.75);
    near(activated("ThresholdedRelu", &[], 0.9), 0.0);
    near(activated("ThresholdedRelu", &[(alpha, 0.5)], 0.9), 0.9);
    near(activated("Sigmoid", &[], 0.3), sigmoid(0.3));
}

#[test]
fn gates_are_clipped_and_coupled() {
    let one = || Constant(floats(&[1, 1, 1], &[1.0]));
    let clip = ("clip", Attribute::Float(0.5));
    let x = || Input(floats(&[1, 1, 1], &[3.0]));
    let found = run(14, "RNN", &[clip], vec![x(), one(), one()]);
    assert_floats(&found, &[1, 1, 1, 1], &[0.5f32.tanh()]);
    // The forget gate is what the input gate leaves.
    let w = Constant(floats(&[1, 4, 1], &[1.0, 0.0, 9.0, 1.0]));
    let r = Constant(floats(&[1, 4, 1], &[0.0; 4]));
    let c = Constant(floats(&[1, 1, 1], &[2.0]));
    let operands = vec![Input(floats(&[1, 1, 1], &[0.7])), w, r, Absent, Absent, Absent, c];
    let found = run_all(14, "LSTM", &[("input_forget", int(1))], operands, 3);
    let i = sigmoid(0.7);
    let cell = (1.0 - i) * 2.0 + i * 0.7f32.tanh();
    assert_floats(&found[2], &[1, 1, 1], &[cell]);
    assert_floats(&found[1], &[1, 1, 1], &[0.5 * cell.tanh()]);
}

#[test]
fn wrong_recurrent_layers_are_refused() {
    let one = || Constant(floats(&[1, 1, 1], &[1.0]));
    let refused = |attributes: &[(&str, Attribute)]| {
        refused(14, "RNN", attributes, vec![Input(floats(&[1, 1, 1], &[3.0])), one(), one()])
    };
    let text = |t: &str| Attribute::String(t.into());
    assert!(refused(&[("direction", text("up"))]).contains("`up` is no direction"));
    assert!(refused(&[("layout", int(2))]).contains("expected layout 0 or 1, found 2"));
    assert!(refused(&[("hidden_size", int(2))]).contains("expected a hidden size of 2, found 1"));
    let names = |n: &[&str]| Attribute::Strings(n.iter().map(|n| (*n).to_owned()).collect());
    assert!(refused(&[("activations", names(&["Cube"]))]).contains("activation `Cube` is not supported"));
    let two = refused(&[("activations", names(&["Tanh", "Tanh"]))]);
    assert!(two.contains("expected 1 activations, found 2"), "{two}");
}

#[test]
fn states_are_taken_to_have_the_batch_of_the_inputs() {
    let with = |batch: &str| {
        let inputs = vec![
            input("x", DType::F32, &["4", "B", "3"]),
            input("h", DType::F32, &["1", batch, "2"]),
            input("c", DType::F32, &["1", "B", "2"]),
        ];
        let constants = [("w", numbers(&[1, 8, 3], 1)), ("r", numbers(&[1, 8, 2], 2))];
        let names = ["x", "w", "r", "", "", "h", "c"];
        model(17, inputs, &constants, vec![node("LSTM", &names, &["y"], &[])], &["y"])
    };
    let g = imported(&with("M"));
    assert_eq!(
        g.guards().iter().map(|g| format!("{} = {}", g.symbol, g.value)).collect::<Vec<_>>(),
        ["M = B"]
    );
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[4, 1, B, 2]");
    let error = import(&with("B + 1")).unwrap_err().to_string();
    assert!(error.contains("a state of extent `B + 1`, expected `B`"), "{error}");
}
