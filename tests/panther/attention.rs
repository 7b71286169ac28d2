//! Attention with random features.

use margay_ir::ops::{
    Add, Bits, Const, Div, Exp, LinearAttention, MatMul, Max, Mul, Reduce, ReduceKind, Sub, Transpose,
};
use margay_ir::{Cx, Graph, Op, Origin, Pass, Payload, TensorType, Value};
use margay_passes::RecognizeLinearAttention;
use margay_tensor::{DType, Tensor};

use crate::{check, floats, multiply, narrow, random, transposed};

/// What random-feature attention makes of queries and keys before it multiplies them.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Features {
    Softmax,
    Relu,
}

const HEADS: usize = 2;
const DIM: usize = 4;
const V_DIM: usize = 3;
const FEATURES: usize = 6;
const EPSILON: f64 = 1e-5;

impl Features {
    /// The nodes of the features of `x [1, HEADS, len, DIM]`, as a model has them.
    fn add(self, g: &mut Graph, x: Value, projection: Value, keys: bool) -> Value {
        let number = |g: &mut Graph, x: f64| {
            let t = Tensor::scalar(x as f32);
            g.add(Const { payload: Payload::new(t) }, &[], Origin::default()).unwrap()
        };
        let add = |g: &mut Graph, op: Op, inputs: &[Value]| g.add(op, inputs, Origin::default()).unwrap();
        let epsilon = number(g, EPSILON);
        let share = number(g, 0.5);
        match self {
            Features::Relu => {
                let u = add(g, MatMul.into(), &[x, projection]);
                let u = add(g, Mul.into(), &[u, share]);
                let zero = number(g, 0.0);
                let u = add(g, Max.into(), &[u, zero]);
                add(g, Add.into(), &[u, epsilon])
            }
            Features::Softmax => {
                let half = number(g, 0.5);
                let root = number(g, 0.75);
                let x = add(g, Mul.into(), &[x, root]);
                let u = add(g, MatMul.into(), &[x, projection]);
                let square = add(g, Mul.into(), &[x, x]);
                let over = |kind, axes: &[usize]| Reduce { kind, axes: axes.to_vec(), keepdims: true };
                let norm = add(g, over(ReduceKind::Sum, &[3]).into(), &[square]);
                let norm = add(g, Mul.into(), &[norm, half]);
                let axes: &[usize] = if keys { &[2, 3] } else { &[3] };
                let most = add(g, over(ReduceKind::Max, axes).into(), &[u]);
                let t = add(g, Sub.into(), &[u, norm]);
                let t = add(g, Sub.into(), &[t, most]);
                let e = add(g, Exp.into(), &[t]);
                let e = add(g, Add.into(), &[e, epsilon]);
                add(g, Mul.into(), &[e, share])
            }
        }
    }

    /// Features `[len, FEATURES]` of one head, by loops. `share` stands for 1/√m and `root` for d^(-1/4), with values
    /// that f32 holds exactly.
    fn of(self, x: &[f64], p: &[f64], keys: bool) -> (Vec<f64>, Vec<f64>) {
        let (epsilon, share, root) = (EPSILON, 0.5, 0.75);
        let len = x.len() / DIM;
        let root = if self == Features::Softmax { root } else { 1.0 };
        let mut u = vec![0.0; len * FEATURES];
        let scaled: Vec<f64> = x.iter().map(|x| x * root).collect();
        multiply(&mut u, &scaled, p, [len, DIM, FEATURES]);
        match self {
            Features::Relu => {
                let features = u.iter().map(|u| (u * share).max(0.0) + epsilon).collect();
                (features, u)
            }
            Features::Softmax => {
                let all = u.iter().copied().fold(f64::MIN, f64::max);
                let mut e = vec![0.0; u.len()];
                for t in 0..len {
                    let row = &u[t * FEATURES..][..FEATURES];
                    let norm: f64 = scaled[t * DIM..][..DIM].iter().map(|x| x * x / 2.0).sum();
                    let most = if keys { all } else { row.iter().copied().fold(f64::MIN, f64::max) };
                    (0..FEATURES).for_each(|i| e[t * FEATURES + i] = (row[i] - norm - most).exp());
                }
                (e.iter().map(|e| share * (e + epsilon)).collect(), e)
            }
        }
    }

    /// The derivatives by `x` of one head, given those by the features and what [`of`](Features::of) gave besides.
    fn back(self, x: &[f64], p: &[f64], keys: bool, d: &[f64], kept: &[f64]) -> Vec<f64> {
        let (share, root) = (0.5, 0.75);
        let len = x.len() / DIM;
        let mut dx = vec![0.0; x.len()];
        match self {
            Features::Relu => {
                let through = |(d, u): (&f64, &f64)| if *u > 0.0 { d * share } else { 0.0 };
                let du: Vec<f64> = d.iter().zip(kept).map(through).collect();
                multiply(&mut dx, &du, &transposed(p, DIM, FEATURES), [len, FEATURES, DIM]);
            }
            Features::Softmax => {
                let dt: Vec<f64> = d.iter().zip(kept).map(|(d, e)| d * share * e).collect();
                let mut du = dt.clone();
                let scaled: Vec<f64> = x.iter().map(|x| x * root).collect();
                let mut u = vec![0.0; d.len()];
                multiply(&mut u, &scaled, p, [len, DIM, FEATURES]);
                let mut lower = |rows: std::ops::Range<usize>| {
                    let range = rows.start * FEATURES..rows.end * FEATURES;
                    let top = range.clone().max_by(|&a, &b| u[a].total_cmp(&u[b])).unwrap();
                    du[top] -= dt[range].iter().sum::<f64>();
                };
                match keys {
                    true => lower(0..len),
                    false => (0..len).for_each(|t| lower(t..t + 1)),
                }
                multiply(&mut dx, &du, &transposed(p, DIM, FEATURES), [len, FEATURES, DIM]);
                for (at, dx) in dx.iter_mut().enumerate() {
                    let t = at / DIM;
                    let d_norm: f64 = -dt[t * FEATURES..][..FEATURES].iter().sum::<f64>();
                    *dx = root * (*dx + d_norm * scaled[at]);
                }
            }
        }
        dx
    }
}

/// Derivatives by φq, φk and v of one head of `Σ dy · out`, by the recurrences of Panther's numerator and denominator.
fn linear_attention_backward([q, k, v, dy]: [&[f64]; 4], causal: bool) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (m, e) = (FEATURES, V_DIM);
    let (queries, keys) = (q.len() / m, k.len() / m);
    let seen = |t: usize| if causal { t + 1 } else { keys };
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let (mut dn, mut dz) = (vec![0.0; queries * e], vec![0.0; queries]);
    let (mut s, mut z, mut done) = (vec![0.0; m * e], vec![0.0; m], 0);
    for t in 0..queries {
        while done < seen(t) {
            (0..m).for_each(|i| z[i] += k[done * m + i]);
            (0..m * e).for_each(|at| s[at] += k[done * m + at / e] * v[done * e + at % e]);
            done += 1;
        }
        let row = &q[t * m..][..m];
        let total: f64 = row.iter().zip(&z).map(|(a, b)| a * b).sum();
        for j in 0..e {
            let numerator: f64 = (0..m).map(|i| row[i] * s[i * e + j]).sum();
            dn[t * e + j] = dy[t * e + j] / total;
            dz[t] -= dy[t * e + j] * numerator / (total * total);
        }
        for i in 0..m {
            dq[t * m + i] = z[i] * dz[t] + (0..e).map(|j| s[i * e + j] * dn[t * e + j]).sum::<f64>();
        }
    }
    let (mut g, mut gz) = (vec![0.0; m * e], vec![0.0; m]);
    let add = |t: usize, g: &mut [f64], gz: &mut [f64]| {
        (0..m * e).for_each(|at| g[at] += q[t * m + at / e] * dn[t * e + at % e]);
        (0..m).for_each(|i| gz[i] += q[t * m + i] * dz[t]);
    };
    if !causal {
        (0..queries).for_each(|t| add(t, &mut g, &mut gz));
    }
    for t in (0..keys).rev() {
        if causal {
            add(t, &mut g, &mut gz);
        }
        for i in 0..m {
            dk[t * m + i] = gz[i] + (0..e).map(|j| g[i * e + j] * v[t * e + j]).sum::<f64>();
        }
        for j in 0..e {
            dv[t * e + j] = (0..m).map(|i| g[i * e + j] * k[t * m + i]).sum();
        }
    }
    (dq, dk, dv)
}

fn attention(features: Features, causal: bool, [queries, keys]: [usize; 2], recognize: bool) {
    let what = format!("{features:?} attention, causal {causal}, recognized {recognize}");
    let mut g = Graph::new("attention");
    let port = |g: &mut Graph, name: &str, len: usize, width: usize| {
        g.add_input(name, TensorType::known(DType::F32, &[1, HEADS, len, width]))
    };
    let q = port(&mut g, "q", queries, DIM);
    let k = port(&mut g, "k", keys, DIM);
    let v = port(&mut g, "v", keys, V_DIM);
    let p = narrow(&random(&[DIM, FEATURES], 5));
    let projection = g.add(Const { payload: Payload::new(p.clone()) }, &[], Origin::named("p")).unwrap();
    let fq = features.add(&mut g, q, projection, false);
    let fk = features.add(&mut g, k, projection, true);
    let add = |g: &mut Graph, op: Op, inputs: &[Value]| g.add(op, inputs, Origin::default()).unwrap();
    let y = if causal {
        let op = LinearAttention { causal, epsilon: Bits::new(0.0) };
        add(&mut g, op.into(), &[fq, fk, v])
    } else {
        let swap = || Op::from(Transpose { perm: vec![0, 1, 3, 2] });
        let transposed = add(&mut g, swap(), &[fk]);
        let moments = add(&mut g, MatMul.into(), &[transposed, v]);
        let numerator = add(&mut g, MatMul.into(), &[fq, moments]);
        let sum = Reduce { kind: ReduceKind::Sum, axes: vec![2], keepdims: true };
        let sum = add(&mut g, sum.into(), &[fk]);
        let sum = add(&mut g, swap(), &[sum]);
        let total = add(&mut g, MatMul.into(), &[fq, sum]);
        add(&mut g, Div.into(), &[numerator, total])
    };
    g.add_output("y", y);
    if recognize {
        RecognizeLinearAttention.run(&mut g, &mut Cx::default()).unwrap();
        g.remove_dead();
        assert!(g.to_string().contains(" = linear_attention "), "{g}");
    }
    let shapes = [[queries, DIM], [keys, DIM], [keys, V_DIM], [queries, V_DIM]];
    let tensors: Vec<Tensor> =
        (6..).zip(shapes).map(|(stream, [len, width])| random(&[1, HEADS, len, width], stream)).collect();
    let mut expected = vec![Vec::new(); 3];
    for head in 0..HEADS {
        let part = |i: usize| {
            let size = shapes[i].iter().product::<usize>();
            floats(&tensors[i])[head * size..][..size].to_vec()
        };
        let [q, k, v, dy] = [0, 1, 2, 3].map(part);
        let p = floats(&p);
        let ((fq, kept_q), (fk, kept_k)) = (features.of(&q, &p, false), features.of(&k, &p, true));
        let (dfq, dfk, dv) = linear_attention_backward([&fq, &fk, &v, &dy], causal);
        expected[0].extend(features.back(&q, &p, false, &dfq, &kept_q));
        expected[1].extend(features.back(&k, &p, true, &dfk, &kept_k));
        expected[2].extend(dv);
    }
    let inputs = ["q", "k", "v"].into_iter().zip(tensors.iter().cloned()).collect::<Vec<_>>();
    let by = |g: &Graph| g.inputs()[..3].iter().map(|n| (*n).into()).collect();
    check(&what, &g, &by, &inputs, &tensors[3], &expected);
}

#[test]
fn derivatives_of_random_feature_attention_are_those_of_its_backward_pass() {
    for features in [Features::Softmax, Features::Relu] {
        attention(features, false, [5, 7], false);
        attention(features, false, [5, 7], true);
        attention(features, true, [5, 5], false);
        // Three chunks, the last of them short.
        attention(features, true, [150, 150], false);
    }
}

/// The graph of a decoder in `docs/attention.md`, compiled with its sums as states, gives the batched causal result position by
/// position, and so it does by the reference with sums that the caller carries.
#[test]
fn sums_that_are_carried_give_the_causal_result() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attention.md");
    let document = std::fs::read_to_string(path).unwrap();
    let start = document.find("graph @decode").expect("the document has the graph of a decoder");
    let source = &document[start..][..document[start..].find("```").unwrap()];
    let decode = margay_testkit::parse_with_random_constants(source).0;
    let (length, features, width) = (150, 8, 3);
    let positive = |stream| {
        let x: Vec<f32> =
            floats(&random(&[1, HEADS, length, features], stream)).iter().map(|x| x.exp() as f32).collect();
        Tensor::from_slice(&[1, HEADS, length, features], &x).unwrap()
    };
    let (fq, fk) = (positive(1), positive(2));
    let v = narrow(&random(&[1, HEADS, length, width], 3));
    let op = LinearAttention { causal: true, epsilon: Bits::new(0.0) };
    let ty = |t: &Tensor| TensorType::of(t);
    let mut batched = Graph::new("batched");
    let inputs = [("fq", &fq), ("fk", &fk), ("v", &v)].map(|(name, t)| batched.add_input(name, ty(t)));
    let y = batched.add(op, &inputs, Origin::default()).unwrap();
    batched.add_output("y", y);
    let all = [("fq", &fq), ("fk", &fk), ("v", &v)];
    let expected = floats(&margay_ir::eval::run(&batched, &all).unwrap()[0]);

    let states = [("moments", "next.moments"), ("sums", "next.sums")];
    let form = margay_driver::build::StepForm {
        states: states.iter().map(|(i, o)| ((*i).into(), (*o).into())).collect(),
        max_saved_bytes: None,
    };
    let backend = margay_driver::backend::native();
    let step =
        margay_driver::build::jit_step(&decode, &[margay_tensor::Binding::new()].into(), &*backend, &form)
            .unwrap();
    let mut session =
        margay_runtime::Session::new(&step.executable, margay_runtime::SessionOptions { threads: 1 })
            .unwrap();
    assert_eq!(session.states().collect::<Vec<_>>(), ["moments", "sums"]);
    let zeros = |shape: &[usize]| Tensor::from_slice(shape, &vec![0f32; shape.iter().product()]).unwrap();
    let mut carried = [zeros(&[1, HEADS, features, width]), zeros(&[1, HEADS, features, 1])];
    for at in 0..length {
        let row = |t: &Tensor| {
            let width = t.shape()[3];
            let values = t.to_vec::<f32>().unwrap();
            let rows = (0..HEADS).flat_map(|h| values[(h * length + at) * width..][..width].to_vec());
            Tensor::from_slice(&[1, HEADS, 1, width], &rows.collect::<Vec<f32>>()).unwrap()
        };
        let [q, k, x] = [&fq, &fk, &v].map(row);
        let given = [("fq", &q), ("fk", &k), ("v", &x)];
        let found = floats(&session.run(&given).unwrap()[0].1);
        let [moments, sums] = &carried;
        let with_sums = [given[0], given[1], given[2], ("moments", moments), ("sums", sums)];
        let mut outputs = margay_ir::eval::run(&decode, &with_sums).unwrap();
        let by_reference = floats(&outputs[0]);
        carried = [outputs.remove(1), outputs.remove(1)];
        for (i, (f, r)) in found.iter().zip(&by_reference).enumerate() {
            let e = expected[(i / width * length + at) * width + i % width];
            assert!((f - e).abs() < 1e-4 && (r - e).abs() < 1e-4, "position {at}: {f} and {r} for {e}");
        }
    }
    let kept = floats(&session.state("moments").unwrap());
    assert!(kept.iter().zip(floats(&carried[0])).all(|(a, b)| (a - b).abs() < 1e-4 * b.abs().max(1.0)));
}
