//! Losses and their derivatives against closed forms in f64.

use crate::support::{assert_near, floats, input, normal, output, run};
use margay_ir::ops::{Const, Numbers};
use margay_ir::{Graph, Origin, Payload, TensorType, Value};
use margay_passes::gradients;
use margay_tensor::{DType, Tensor};
use margay_train::TrainError;
use margay_train::loss::{self, IGNORED};
use margay_train::masking::Masking;

const TIGHT: f64 = 1e-13;

type Build<'a> = &'a dyn Fn(&mut Graph, Value, &[Value]) -> Result<Value, TrainError>;

/// A loss of `x` and other inputs, and its derivative by `x`.
fn loss_and_gradient(x: &Tensor, others: &[&Tensor], build: Build<'_>) -> (f64, Vec<f64>) {
    let mut g = Graph::new("loss");
    let v = input(&mut g, "x", x);
    let names: Vec<String> = (0..others.len()).map(|i| format!("y{i}")).collect();
    let rest: Vec<Value> = names.iter().zip(others).map(|(name, t)| input(&mut g, name, t)).collect();
    let y = build(&mut g, v, &rest).unwrap_or_else(|e| panic!("{e}"));
    let one = Numbers::Float(vec![1.0]).into_tensor(g.ty(y).dtype, &[]).unwrap();
    let one = g.add(Const { payload: Payload::new(one) }, &[], Origin::default()).unwrap();
    let dx = gradients(&mut g, &[(y, one)], &[v]).unwrap()[0].expect("the loss depends on x");
    g.add_output("loss", y);
    g.add_output("gradient", dx);
    g.remove_dead();
    let mut inputs = vec![("x", x)];
    inputs.extend(names.iter().map(String::as_str).zip(others.iter().copied()));
    let found = run(&g, &inputs);
    (floats(output(&found, "loss"))[0], floats(output(&found, "gradient")))
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

#[test]
fn mean_squared_error() {
    let (x, y) = (normal(&[3, 4, 5], 1), normal(&[3, 4, 5], 2));
    let (found, gradient) = loss_and_gradient(&x, &[&y], &|g, x, y| loss::mse(g, x, y[0], None));
    let d: Vec<f64> = floats(&x).iter().zip(floats(&y)).map(|(x, y)| x - y).collect();
    assert_near("loss", &[found], &[d.iter().map(|d| d * d).sum::<f64>() / 60.0], TIGHT);
    assert_near("gradient", &gradient, &d.iter().map(|d| 2.0 * d / 60.0).collect::<Vec<_>>(), TIGHT);
}

#[test]
fn weights_leave_rows_out() {
    let (x, y) = (normal(&[2, 3, 5], 1), normal(&[2, 3, 5], 2));
    let mask = Tensor::from_slice(&[2, 3], &[1i64, 1, 0, 1, 0, 0]).unwrap();
    let (found, gradient) = loss_and_gradient(&x, &[&y, &mask], &|g, x, y| loss::mse(g, x, y[0], Some(y[1])));
    let d: Vec<f64> = floats(&x).iter().zip(floats(&y)).map(|(x, y)| x - y).collect();
    let weight = |i: usize| floats(&mask)[i / 5];
    let expected: f64 = d.iter().enumerate().map(|(i, d)| weight(i) * d * d).sum();
    assert_near("loss", &[found], &[expected / 15.0], TIGHT);
    let expected: Vec<f64> = d.iter().enumerate().map(|(i, d)| weight(i) * 2.0 * d / 15.0).collect();
    assert_near("gradient", &gradient, &expected, TIGHT);

    // Weights of whole samples, and none at all.
    let samples = Tensor::from_slice(&[2], &[0.5f64, 1.5]).unwrap();
    let (found, _) = loss_and_gradient(&x, &[&y, &samples], &|g, x, y| loss::mse(g, x, y[0], Some(y[1])));
    let half = |s: usize| d[15 * s..15 * s + 15].iter().map(|d| d * d / 15.0).sum::<f64>();
    assert_near("loss", &[found], &[(0.5 * half(0) + 1.5 * half(1)) / 2.0], TIGHT);
    let nothing = Tensor::zeros(DType::Bool, &[2, 3]).unwrap();
    let (found, gradient) =
        loss_and_gradient(&x, &[&y, &nothing], &|g, x, y| loss::mse(g, x, y[0], Some(y[1])));
    assert_near("loss", &[found], &[0.0], 0.0);
    assert_near("gradient", &gradient, &[0.0; 30], 0.0);
}

#[test]
fn rows_that_do_not_count_may_hold_anything() {
    let mask = Tensor::from_slice(&[2, 3], &[1i64, 1, 0, 1, 0, 0]).unwrap();
    let labels = Tensor::from_slice(&[2, 3], &[0i64, 3, 1, 2, IGNORED, 1]).unwrap();
    let losses: [Build<'_>; 4] = [
        &|g, x, y| loss::mse(g, x, y[0], Some(y[1])),
        &|g, x, y| loss::cosine(g, x, y[0], Some(y[1])),
        &|g, x, y| loss::kl_divergence(g, x, y[0], 2.0, Some(y[1])),
        &|g, x, y| loss::cross_entropy(g, x, y[2], Some(IGNORED), Some(y[1])),
    ];
    let with = |t: &Tensor, padding: f64| {
        let number = |(i, v)| if floats(&mask)[i / 5] == 0.0 { padding } else { v };
        let numbers: Vec<f64> = floats(t).into_iter().enumerate().map(number).collect();
        Tensor::from_slice(&[2, 3, 5], &numbers).unwrap()
    };
    let (x, y) = (normal(&[2, 3, 5], 1), normal(&[2, 3, 5], 2));
    for build in losses {
        let of =
            |padding| loss_and_gradient(&with(&x, padding), &[&with(&y, -padding), &mask, &labels], build);
        let expected = of(0.25);
        assert!(expected.0.is_finite() && expected.0 > 0.0 && expected.1.iter().any(|d| *d != 0.0));
        for padding in [f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(of(padding), expected, "{padding}");
        }
    }
}

#[test]
fn cosine_of_rows() {
    let (x, y) = (normal(&[4, 6], 1), normal(&[4, 6], 2));
    let (found, gradient) = loss_and_gradient(&x, &[&y], &|g, x, y| loss::cosine(g, x, y[0], None));
    let (x, y) = (floats(&x), floats(&y));
    let (mut expected, mut by_x) = (0.0, Vec::new());
    for (x, y) in x.chunks(6).zip(y.chunks(6)) {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (a, b) = (dot(x, x).sqrt(), dot(y, y).sqrt());
        let c = dot(x, y) / (a * b);
        expected += (1.0 - c) / 4.0;
        by_x.extend(x.iter().zip(y).map(|(x, y)| -(y / (a * b) - c * x / (a * a)) / 4.0));
    }
    assert_near("loss", &[found], &[expected], TIGHT);
    assert_near("gradient", &gradient, &by_x, TIGHT);
}

#[test]
fn a_vector_of_zeros_has_no_direction() {
    let (x, y) = (Tensor::zeros(DType::F64, &[2, 3]).unwrap(), normal(&[2, 3], 2));
    let (found, gradient) = loss_and_gradient(&x, &[&y], &|g, x, y| loss::cosine(g, x, y[0], None));
    assert_near("loss", &[found], &[1.0], 0.0);
    assert!(gradient.iter().all(|d| d.is_finite()), "{gradient:?}");
}

/// Cross-entropy of rows of `classes` logits, and its derivative, each row counted by its weight.
fn cross_entropy(x: &[f64], classes: usize, labels: &[i64], weights: &[f64]) -> (f64, Vec<f64>) {
    let total: f64 = weights.iter().sum();
    let (mut loss, mut by_x) = (0.0, Vec::new());
    for ((row, &label), weight) in x.chunks(classes).zip(labels).zip(weights) {
        let p = softmax(row);
        if *weight > 0.0 {
            loss -= weight * p[label as usize].ln() / total;
        }
        by_x.extend(p.iter().enumerate().map(|(c, p)| weight / total * (p - f64::from(c as i64 == label))));
    }
    (loss, by_x)
}

#[test]
fn cross_entropy_of_classes() {
    let x = normal(&[4, 7], 1);
    for labels in [Tensor::from_slice(&[4], &[6i64, 0, 3, 3]), Tensor::from_slice(&[4], &[6i32, 0, 3, 3])] {
        let labels = labels.unwrap();
        let (found, gradient) =
            loss_and_gradient(&x, &[&labels], &|g, x, y| loss::cross_entropy(g, x, y[0], None, None));
        let (expected, by_x) = cross_entropy(&floats(&x), 7, &[6, 0, 3, 3], &[1.0; 4]);
        assert_near("loss", &[found], &[expected], TIGHT);
        assert_near("gradient", &gradient, &by_x, TIGHT);
    }
}

#[test]
fn ignored_labels_and_padding_do_not_count() {
    let x = normal(&[2, 3, 5], 1);
    let labels = Tensor::from_slice(&[2, 3], &[4i64, IGNORED, 0, IGNORED, 2, 1]).unwrap();
    let (found, gradient) = loss_and_gradient(&x, &[&labels], &|g, x, y| loss::masked_lm(g, x, y[0], None));
    let flat = labels.to_vec::<i64>().unwrap();
    let (expected, by_x) = cross_entropy(&floats(&x), 5, &flat, &[1.0, 0.0, 1.0, 0.0, 1.0, 1.0]);
    assert_near("loss", &[found], &[expected], TIGHT);
    assert_near("gradient", &gradient, &by_x, TIGHT);

    let samples = Tensor::from_slice(&[2], &[0.25f64, 1.0]).unwrap();
    let (found, gradient) =
        loss_and_gradient(&x, &[&labels, &samples], &|g, x, y| loss::masked_lm(g, x, y[0], Some(y[1])));
    let (expected, by_x) = cross_entropy(&floats(&x), 5, &flat, &[0.25, 0.0, 0.25, 0.0, 1.0, 1.0]);
    assert_near("loss", &[found], &[expected], TIGHT);
    assert_near("gradient", &gradient, &by_x, TIGHT);

    let none = Tensor::from_slice(&[2, 3], &[IGNORED; 6]).unwrap();
    let (found, gradient) = loss_and_gradient(&x, &[&none], &|g, x, y| loss::masked_lm(g, x, y[0], None));
    assert_near("loss", &[found], &[0.0], 0.0);
    assert_near("gradient", &gradient, &[0.0; 30], 0.0);
}

#[test]
fn large_logits_neither_overflow_nor_vanish() {
    let x = Tensor::from_slice(&[3, 3], &[1e4, 1e4 - 1.5, -1e4, -3e38, -3e38, -3e38, 3e38, -3e38, 7.0f32])
        .unwrap();
    let labels = Tensor::from_slice(&[3], &[1i64, 2, 0]).unwrap();
    let (found, gradient) =
        loss_and_gradient(&x, &[&labels], &|g, x, y| loss::cross_entropy(g, x, y[0], None, None));
    let expected = ((1.0 + (-1.5f64).exp()).ln() + 1.5 + 3f64.ln()) / 3.0;
    assert_near("loss", &[found], &[expected], 1e-6);
    assert!(gradient.iter().all(|d| d.is_finite()), "{gradient:?}");
    assert_near("gradient of the last row", &gradient[6..], &[0.0; 3], 0.0);
}

#[test]
fn divergence_from_a_teacher() {
    let (student, teacher, temperature) = (normal(&[4, 6], 1), normal(&[4, 6], 2), 2.5);
    let (found, gradient) = loss_and_gradient(&student, &[&teacher], &|g, x, y| {
        loss::kl_divergence(g, x, y[0], temperature, None)
    });
    let soft = |row: &[f64]| softmax(&row.iter().map(|x| x / temperature).collect::<Vec<_>>());
    let (mut expected, mut by_x) = (0.0, Vec::new());
    for (s, t) in floats(&student).chunks(6).zip(floats(&teacher).chunks(6)) {
        let (q, p) = (soft(s), soft(t));
        expected += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>() * temperature.powi(2) / 4.0;
        by_x.extend(q.iter().zip(&p).map(|(q, p)| temperature * (q - p) / 4.0));
    }
    assert_near("loss", &[found], &[expected], TIGHT);
    assert_near("gradient", &gradient, &by_x, TIGHT);

    let sure = Tensor::from_slice(&[1, 3], &[5000f64, 0.0, f64::NEG_INFINITY]).unwrap();
    let unsure = Tensor::zeros(DType::F64, &[1, 3]).unwrap();
    let (found, gradient) =
        loss_and_gradient(&unsure, &[&sure], &|g, x, y| loss::kl_divergence(g, x, y[0], 1.0, None));
    assert_near("loss", &[found], &[3f64.ln()], TIGHT);
    assert_near("gradient", &gradient, &[-2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0], TIGHT);
}

#[test]
fn accuracy_counts_the_largest() {
    let mut g = Graph::new("accuracy");
    let x = Tensor::from_slice(&[4, 3], &[0.0f32, 2.0, 1.0, 5.0, 2.0, 1.0, 0.0, 0.0, 9.0, 3.0, 1.0, 2.0])
        .unwrap();
    let labels = Tensor::from_slice(&[4], &[1i64, 1, 2, IGNORED]).unwrap();
    let (v, y) = (input(&mut g, "x", &x), input(&mut g, "y", &labels));
    let all = loss::accuracy(&mut g, v, y, None).unwrap();
    let kept = loss::accuracy(&mut g, v, y, Some(IGNORED)).unwrap();
    g.add_output("all", all);
    g.add_output("kept", kept);
    let found = run(&g, &[("x", &x), ("y", &labels)]);
    assert_near("all", &floats(output(&found, "all")), &[0.5], 0.0);
    assert_near("kept", &floats(output(&found, "kept")), &[2.0 / 3.0], 1e-7);
}

#[test]
fn open_batches_stay_open() {
    let mut g = Graph::new("open");
    let logits = g.add_input("x", symbolic(DType::F32, &["N", "S", "7"]));
    let labels = g.add_input("y", symbolic(DType::I64, &["N", "S"]));
    let mask = g.add_input("mask", symbolic(DType::I64, &["N", "S"]));
    let y = loss::masked_lm(&mut g, logits, labels, Some(mask)).unwrap();
    assert_eq!(g.ty(y), &TensorType::known(DType::F32, &[]));
    assert_eq!(g.symbols().len(), 2);
}

fn symbolic(dtype: DType, shape: &[&str]) -> TensorType {
    TensorType::new(dtype, shape.iter().map(|d| margay_tensor::Dim::parse(d).unwrap()).collect())
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut g = Graph::new("refused");
    let x = g.add_input("x", symbolic(DType::F32, &["N", "7"]));
    let wide = g.add_input("wide", symbolic(DType::F64, &["N", "7"]));
    let labels = g.add_input("labels", symbolic(DType::I64, &["M"]));
    let open = g.add_input("open", symbolic(DType::F32, &["M", "C"]));
    let number = g.add_input("number", symbolic(DType::F32, &[]));
    let mut said = Vec::new();
    let mut refused = |found: Result<Value, TrainError>| said.push(found.unwrap_err().to_string());
    refused(loss::mse(&mut g, x, wide, None));
    refused(loss::mse(&mut g, labels, labels, None));
    refused(loss::mse(&mut g, x, x, Some(labels)));
    refused(loss::cosine(&mut g, number, number, None));
    refused(loss::cross_entropy(&mut g, x, labels, None, None));
    refused(loss::cross_entropy(&mut g, open, labels, None, None));
    refused(loss::kl_divergence(&mut g, x, x, 0.0, None));
    insta::assert_snapshot!(said.join("\n"), @r"
    target: expected f32[N, 7], found f64[N, 7]
    target: expected floats, found i64[M]
    weights: expected first axes of [N, 7], found [M]
    prediction: expected floats with at least 1 axis, found f32
    labels of logits f32[N, 7]: expected i64[N], found i64[M]
    classes along the last axis of the logits: expected a known number, found f32[M, C]
    temperature: expected above 0, found 0
    ");
}

#[test]
fn labels_are_checked() {
    let labels = Tensor::from_slice(&[4], &[0i64, 9, IGNORED, 10]).unwrap();
    let message = |ignore| loss::check_labels(&labels, 10, ignore).unwrap_err().to_string();
    assert_eq!(message(None), "label 2: expected 0 to 9, found -100");
    assert_eq!(message(Some(IGNORED)), "label 3: expected 0 to 9, or -100, found 10");
    assert!(loss::check_labels(&labels, 11, Some(IGNORED)).is_ok());
}

#[test]
fn tokens_are_masked_by_named_random_numbers() {
    let masking = Masking { mask: 103, vocabulary: 1000, special: vec![0, 101], share: 0.15 };
    let tokens: Vec<i64> = (0..40_000).map(|i| if i % 4 == 0 { 101 } else { 200 + i % 700 }).collect();
    let tokens = Tensor::from_slice(&[400, 100], &tokens).unwrap();
    let (inputs, labels) = masking.apply(&tokens, 3, 8).unwrap();
    assert_eq!(masking.apply(&tokens, 3, 8).unwrap(), (inputs.clone(), labels.clone()));
    assert_ne!(masking.apply(&tokens, 3, 9).unwrap().1, labels);
    let [tokens, inputs, labels] = [tokens, inputs, labels].map(|t| t.to_vec::<i64>().unwrap());
    let (mut chosen, mut masked, mut kept) = (0f64, 0f64, 0f64);
    for ((token, input), label) in tokens.iter().zip(&inputs).zip(&labels) {
        if *label == IGNORED {
            assert_eq!(token, input);
            continue;
        }
        assert_eq!(token, label);
        assert_ne!(*token, 101);
        assert!((0..1000).contains(input));
        chosen += 1.0;
        masked += f64::from(*input == 103);
        kept += f64::from(input == token);
    }
    // Four standard deviations of the counts, of 30,000 tokens that are not special.
    assert!((chosen - 4500.0).abs() < 4.0 * (30_000.0f64 * 0.15 * 0.85).sqrt(), "{chosen}");
    assert!((masked - 0.8 * chosen).abs() < 4.0 * (chosen * 0.16).sqrt() + 0.001 * chosen, "{masked}");
    assert!((kept - 0.1 * chosen).abs() < 4.0 * (chosen * 0.09).sqrt() + 0.001 * chosen, "{kept}");
}
