//! Optimizers, clipping and schedules against the formulas in f64, over several steps.

use crate::support::{assert_near, constant, floats, input, normal, output, run};
use margay_ir::Graph;
use margay_ir::Origin;
use margay_ir::ops::{Add, MatMul};
use margay_tensor::Tensor;
use margay_train::{Optimizer, Schedule, TrainingStep, Update, loss};

const STEPS: usize = 12;

/// A linear layer `x w + b` in f64 with four inputs and three outputs.
fn linear() -> (Graph, Tensor, Tensor, Tensor, Tensor) {
    let (x, y, w, b) = (normal(&[5, 4], 1), normal(&[5, 3], 2), normal(&[4, 3], 3), normal(&[3], 4));
    let mut g = Graph::new("linear");
    let v = input(&mut g, "x", &x);
    let (weight, bias) = (constant(&mut g, "w", &w), constant(&mut g, "b", &b));
    let product = g.add(MatMul, &[v, weight], Origin::named("fc")).unwrap();
    let sum = g.add(Add, &[product, bias], Origin::named("fc/Add")).unwrap();
    g.add_output("y", sum);
    (g, x, y, w, b)
}

/// The derivatives of the mean squared error by weight (12 numbers) and bias (3).
fn by_hand(x: &[f64], y: &[f64], p: &[f64]) -> Vec<f64> {
    let mut gradient = vec![0.0; 15];
    for row in 0..5 {
        for out in 0..3 {
            let sum: f64 = (0..4).map(|i| x[4 * row + i] * p[3 * i + out]).sum();
            let slope = 2.0 * (sum + p[12 + out] - y[3 * row + out]) / 15.0;
            (0..4).for_each(|i| gradient[3 * i + out] += slope * x[4 * row + i]);
            gradient[12 + out] += slope;
        }
    }
    gradient
}

/// Runs the step of an optimizer beside its formula; `rule` changes parameters by a gradient, given the learning rate
/// and the number of the step from 1 on.
fn compare(update: &Update, rule: impl FnMut(&mut [f64], &[f64], f64, i32)) {
    compare_in(update, None, rule);
}

/// The same with other coordinates for the weight, `[4, 4]`.
fn compare_in(update: &Update, axes: Option<&[f32]>, mut rule: impl FnMut(&mut [f64], &[f64], f64, i32)) {
    let (g, x, y, w, b) = linear();
    let parameters = margay_passes::parameter_names(&g);
    let nodes: Vec<_> = parameters.iter().map(|(n, _)| *n).collect();
    let axes = axes.map(|s| (nodes[0], Tensor::from_slice(&[4, 4], s).unwrap()));
    let step = TrainingStep::in_axes(
        &g,
        &nodes,
        &|g| {
            let prediction = g.outputs()[0].value;
            let target = g.add_input("target", g.ty(prediction).clone());
            loss::mse(g, prediction, target, None)
        },
        update,
        &axes.into_iter().collect(),
    )
    .unwrap();
    assert_eq!(step.parameters, ["w", "b"]);
    let mut states: Vec<(String, Tensor)> =
        step.states.iter().map(|s| (s.name.clone(), s.initial.clone())).collect();
    let total = states.iter_mut().find(|(name, _)| name == "total_steps").unwrap();
    total.1 = Tensor::scalar(STEPS as f32);
    let mut p = [floats(&w), floats(&b)].concat();
    for t in 0..STEPS {
        let mut inputs = vec![("x", &x), ("target", &y)];
        inputs.extend(states.iter().map(|(name, t)| (name.as_str(), t)));
        let found = run(&step.graph, &inputs);
        let mut gradient = by_hand(&floats(&x), &floats(&y), &p);
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert_near("norm", &floats(output(&found, "gradient_norm")), &[norm], 1e-6);
        if let Some(limit) = update.clip.filter(|limit| *limit < norm) {
            gradient.iter_mut().for_each(|g| *g *= limit / norm);
        }
        let rate = update.schedule.rate(update.learning_rate, t as f64, STEPS as f64);
        assert_near("rate", &floats(output(&found, "learning_rate")), &[rate], 1e-6);
        rule(&mut p, &gradient, rate, t as i32 + 1);
        let after = [floats(output(&found, "next.w")), floats(output(&found, "next.b"))].concat();
        assert_near("parameters", &after, &p, 2e-6);
        for (name, value) in &mut states {
            *value = output(&found, &format!("next.{name}")).clone();
        }
    }
    assert_eq!(floats(&states.iter().find(|(name, _)| name == "step").unwrap().1), [STEPS as f64]);
}

fn update(optimizer: Optimizer) -> Update {
    Update { optimizer, learning_rate: 0.05, schedule: Schedule::Constant { warm_up: 0.0 }, clip: None }
}

#[test]
fn gradient_descent() {
    compare(&update(Optimizer::Sgd { momentum: 0.0 }), |p, g, rate, _| {
        p.iter_mut().zip(g).for_each(|(p, g)| *p -= rate * g);
    });
}

#[test]
fn momentum() {
    let mut kept = [0.0; 15];
    compare(&update(Optimizer::Sgd { momentum: 0.8 }), move |p, g, rate, _| {
        for i in 0..15 {
            kept[i] = 0.8 * kept[i] + g[i];
            p[i] -= rate * kept[i];
        }
    });
}

/// What a rule does where it moves `P̃` of the weight `P = S P̃`.
fn in_coordinates(
    s: [f32; 16],
    mut rule: impl FnMut(&mut [f64], &[f64], f64, i32),
) -> impl FnMut(&mut [f64], &[f64], f64, i32) {
    let at = move |i: usize, j: usize| f64::from(s[4 * i + j]);
    move |p, g, rate, t| {
        let mut gradient = g.to_vec();
        for (i, column) in (0..4).flat_map(|i| (0..3).map(move |c| (i, c))) {
            gradient[3 * i + column] = (0..4).map(|j| at(j, i) * g[3 * j + column]).sum();
        }
        // The rules here do not look at where parameters are.
        let mut moved = vec![0.0; 15];
        rule(&mut moved, &gradient, rate, t);
        for (i, column) in (0..4).flat_map(|i| (0..3).map(move |c| (i, c))) {
            p[3 * i + column] += (0..4).map(|j| at(i, j) * moved[3 * j + column]).sum::<f64>();
        }
        (12..15).for_each(|i| p[i] += moved[i]);
    }
}

#[test]
fn coordinates_of_rows() {
    let s: [f32; 16] = std::array::from_fn(|i| [0.5, -1.25, 0.0, 2.0, 0.75, 1.0, -0.5][i * 3 % 7]);
    let descent = |p: &mut [f64], g: &[f64], rate: f64, _: i32| {
        p.iter_mut().zip(g).for_each(|(p, g)| *p -= rate * g);
    };
    let step = Update { learning_rate: 0.01, ..update(Optimizer::Sgd { momentum: 0.0 }) };
    compare_in(&step, Some(&s), in_coordinates(s, descent));
    let betas = [0.9, 0.99];
    let step = update(Optimizer::Adam { betas, epsilon: 1e-8 });
    compare_in(&step, Some(&s), in_coordinates(s, adam(betas, 1e-8, 0.0)));
}

/// Adam with decay of the first twelve parameters, the weight.
fn adam(betas: [f64; 2], epsilon: f64, decay: f64) -> impl FnMut(&mut [f64], &[f64], f64, i32) {
    let (mut m, mut v) = ([0.0; 15], [0.0; 15]);
    move |p, g, rate, t| {
        for i in 0..15 {
            m[i] = betas[0] * m[i] + (1.0 - betas[0]) * g[i];
            v[i] = betas[1] * v[i] + (1.0 - betas[1]) * g[i] * g[i];
            let (first, second) = (m[i] / (1.0 - betas[0].powi(t)), v[i] / (1.0 - betas[1].powi(t)));
            let decayed = if i < 12 { rate * decay * p[i] } else { 0.0 };
            p[i] -= rate * first / (second.sqrt() + epsilon) + decayed;
        }
    }
}

#[test]
fn adam_of_the_paper() {
    compare(&update(Optimizer::ADAM), adam([0.9, 0.999], 1e-8, 0.0));
    let other = Optimizer::Adam { betas: [0.0, 0.5], epsilon: 1e-3 };
    compare(&update(other), adam([0.0, 0.5], 1e-3, 0.0));
}

#[test]
fn adam_with_decoupled_decay_of_weights_but_not_of_biases() {
    let optimizer = Optimizer::AdamW { betas: [0.9, 0.98], epsilon: 1e-6, weight_decay: 0.3 };
    compare(&update(optimizer), adam([0.9, 0.98], 1e-6, 0.3));
}

#[test]
fn clipping_by_the_norm_of_all() {
    for limit in [0.2, 1e6] {
        let update = Update { clip: Some(limit), ..update(Optimizer::Sgd { momentum: 0.0 }) };
        compare(&update, |p, g, rate, _| p.iter_mut().zip(g).for_each(|(p, g)| *p -= rate * g));
    }
}

#[test]
fn schedules() {
    for schedule in [
        Schedule::Constant { warm_up: 0.3 },
        Schedule::Cosine { warm_up: 0.25, floor: 0.1 },
        Schedule::Cosine { warm_up: 0.0, floor: 0.0 },
        Schedule::Cosine { warm_up: 1.0, floor: 0.0 },
    ] {
        let update = Update { schedule, ..update(Optimizer::Sgd { momentum: 0.0 }) };
        compare(&update, |p, g, rate, _| p.iter_mut().zip(g).for_each(|(p, g)| *p -= rate * g));
    }
    let cosine = Schedule::Cosine { warm_up: 0.1, floor: 0.2 };
    let rates: Vec<f64> = [0, 4, 9, 55, 100, 150].map(|t| cosine.rate(1.0, f64::from(t), 100.0)).to_vec();
    assert_near("cosine", &rates, &[0.1, 0.5, 1.0, 0.6, 0.2, 0.2], 1e-12);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let sgd = update(Optimizer::Sgd { momentum: 0.0 });
    let wrong = [
        Update { learning_rate: 0.0, ..sgd },
        Update { clip: Some(f64::NAN), ..sgd },
        Update { schedule: Schedule::Cosine { warm_up: 1.5, floor: 0.0 }, ..sgd },
        Update { schedule: Schedule::Cosine { warm_up: 0.5, floor: -1.0 }, ..sgd },
        update(Optimizer::Sgd { momentum: 1.0 }),
        update(Optimizer::Adam { betas: [0.9, 1.0], epsilon: 1e-8 }),
        update(Optimizer::Adam { betas: [0.9, 0.9], epsilon: 0.0 }),
        update(Optimizer::AdamW { betas: [0.9, 0.9], epsilon: 1e-8, weight_decay: -0.1 }),
    ];
    let said: Vec<String> = wrong.iter().map(|u| u.check().unwrap_err().to_string()).collect();
    insta::assert_snapshot!(said.join("\n"), @r"
    learning rate: expected above 0, found 0
    clip: expected above 0, found NaN
    warm-up: expected 0 to 1, found 1.5
    floor of the schedule: expected 0 to 1, found -1
    momentum: expected at least 0 and below 1, found 1
    beta: expected at least 0 and below 1, found 1
    epsilon: expected above 0, found 0
    weight decay: expected at least 0, found -0.1
    ");
}
