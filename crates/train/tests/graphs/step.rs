//! Training steps as graphs: their text, what they refuse, and parameters put back.

use crate::support::{assert_near, constant, floats, input, normal, output, run};
use margay_ir::ops::{Bits, LayerNorm, MatMul, Mul};
use margay_ir::verify::Stage;
use margay_ir::{Graph, NodeId, Origin, TensorType, Value, text};
use margay_passes::parameter_names;
use margay_tensor::{DType, Tensor};
use margay_train::step::with_parameters;
use margay_train::{Optimizer, Schedule, TrainError, TrainingStep, Update, loss};

const PLAIN: Update = Update {
    optimizer: Optimizer::Sgd { momentum: 0.0 },
    learning_rate: 0.5,
    schedule: Schedule::Constant { warm_up: 0.0 },
    clip: None,
};

/// The mean squared error of the first output against an input `target`.
fn squared(g: &mut Graph) -> Result<Value, TrainError> {
    let prediction = g.outputs()[0].value;
    let target = g.add_input("target", g.ty(prediction).clone());
    loss::mse(g, prediction, target, None)
}

fn node(g: &Graph, name: &str) -> NodeId {
    parameter_names(g).into_iter().find(|(_, n)| n == name).unwrap_or_else(|| panic!("no `{name}`")).0
}

fn scaled() -> Graph {
    let source = "graph @scaled(%x: f32[N, 2]) -> (y: f32[N, 2]) {
      %0 = const [0.5, 2.0] : f32[2]  // w
      %1 = mul %x, %0 : f32[N, 2]  // scale
      return %1
    }";
    text::parse(source, &|_, _| None).unwrap()
}

#[test]
fn a_step_reads_as_a_graph() {
    let g = scaled();
    let update = Update { optimizer: Optimizer::Sgd { momentum: 0.9 }, ..PLAIN };
    let step = TrainingStep::new(&g, &[node(&g, "w")], &squared, &update).unwrap();
    assert_eq!(step.graph.verify(Stage::Canonical), Ok(()));
    let names: Vec<&str> = step.states.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["w", "momentum.w", "step", "total_steps", "peak_rate"]);
    let data: Vec<String> = step.data().into_iter().map(|(name, ty)| format!("{name}: {ty}")).collect();
    assert_eq!(data, ["x: f32[N, 2]", "target: f32[N, 2]"]);
    let printed = step.graph.to_string();
    assert_eq!(text::parse(&printed, &|_, _| None).unwrap().to_string(), printed);
    insta::assert_snapshot!(printed);
}

#[test]
fn gradients_of_a_weight_with_several_readers_are_summed() {
    // (x w) w: the derivative of the mean of squares has two parts.
    let (x, w) = (normal(&[3, 2], 1), normal(&[2, 2], 2));
    let mut g = Graph::new("tied");
    let v = input(&mut g, "x", &x);
    let weight = constant(&mut g, "w", &w);
    let first = g.add(MatMul, &[v, weight], Origin::named("first")).unwrap();
    let second = g.add(MatMul, &[first, weight], Origin::named("second")).unwrap();
    g.add_output("y", second);
    let step = TrainingStep::new(&g, &[weight.node], &squared, &PLAIN).unwrap();
    let target = Tensor::zeros(DType::F64, &[3, 2]).unwrap();
    let mean = |w: &[f64]| {
        let product = |a: &[f64], i: usize, j: usize| a[2 * i] * w[j] + a[2 * i + 1] * w[2 + j];
        let x = floats(&x);
        let once: Vec<f64> = (0..6).map(|k| product(&x, k / 2, k % 2)).collect();
        (0..6).map(|k| product(&once, k / 2, k % 2).powi(2)).sum::<f64>() / 6.0
    };
    let (zero, one) = (Tensor::scalar(0f32), Tensor::scalar(1f32));
    let half = Tensor::scalar(0.5f32);
    let inputs = [
        ("x", &x),
        ("target", &target),
        ("w", &w),
        ("step", &zero),
        ("total_steps", &one),
        ("peak_rate", &half),
    ];
    let found = run(&step.graph, &inputs);
    let w = floats(&w);
    let expected: Vec<f64> = (0..4)
        .map(|i| {
            let moved =
                |by: f64| mean(&(0..4).map(|k| w[k] + if k == i { by } else { 0.0 }).collect::<Vec<_>>());
            w[i] - 0.5 * (moved(1e-5) - moved(-1e-5)) / 2e-5
        })
        .collect();
    assert_near("next w", &floats(output(&found, "next.w")), &expected, 1e-8);
}

/// A layer norm with scale and shift, behind a product, and a constant that is a table and not trained.
fn normed() -> Graph {
    let mut g = Graph::new("normed");
    let x = input(&mut g, "x", &normal(&[3, 4], 1));
    let w = constant(&mut g, "w", &normal(&[4, 4], 2));
    let product = g.add(MatMul, &[x, w], Origin::named("fc")).unwrap();
    let (scale, shift) =
        (constant(&mut g, "w", &normal(&[4], 3)), constant(&mut g, "shift", &normal(&[4], 4)));
    let norm = LayerNorm { axis: 1, epsilon: Bits::new(1e-5) };
    let normed = g.add(norm, &[product, scale, shift], Origin::named("norm")).unwrap();
    let table = constant(&mut g, "table", &normal(&[4], 5));
    let y = g.add(Mul, &[normed, table], Origin::named("mul")).unwrap();
    g.add_output("y", y);
    g
}

#[test]
fn frozen_parameters_give_the_trained_model() {
    let g = normed();
    let names = ["w", "w#2", "shift"];
    let nodes: Vec<NodeId> = names.iter().map(|name| node(&g, name)).collect();
    let mut update = PLAIN;
    update.learning_rate = 1e-12;
    let step = TrainingStep::new(
        &g,
        &nodes,
        &|g| {
            let y = g.outputs()[0].value;
            g.add_output("prediction", y);
            squared(g)
        },
        &update,
    )
    .unwrap();
    assert_eq!(step.parameters, names);
    let trained: Vec<(String, Tensor)> = step.states[..3]
        .iter()
        .zip(10..)
        .map(|(s, stream)| (s.name.clone(), normal(s.initial.shape(), stream)))
        .collect();
    let frozen = with_parameters(&g, &trained).unwrap();
    assert_eq!(frozen.verify(Stage::Canonical), Ok(()));
    assert_eq!(
        parameter_names(&frozen).into_iter().map(|(_, name)| name).collect::<Vec<_>>(),
        parameter_names(&g).into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    );
    let x = normal(&[3, 4], 1);
    let expected = run(&frozen, &[("x", &x)]);
    let mut inputs = vec![("x", &x), ("target", &x)];
    inputs.extend(trained.iter().map(|(name, t)| (name.as_str(), t)));
    inputs.extend(step.states[3..].iter().map(|s| (s.name.as_str(), &s.initial)));
    let found = run(&step.graph, &inputs);
    assert_eq!(output(&found, "prediction"), output(&expected, "y"));
    // Their own contents change nothing.
    let same: Vec<(String, Tensor)> =
        step.states[..3].iter().map(|s| (s.name.clone(), s.initial.clone())).collect();
    assert_eq!(with_parameters(&g, &same).unwrap().to_string(), g.to_string());
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let g = normed();
    let w = node(&g, "w");
    let refused =
        |g: &Graph, nodes: &[NodeId], objective: &dyn Fn(&mut Graph) -> Result<Value, TrainError>| {
            TrainingStep::new(g, nodes, objective, &PLAIN).unwrap_err().to_string()
        };
    let mut said = Vec::new();
    // A node that was removed.
    let mut other = g.clone();
    other.set_outputs(Vec::new());
    other.remove_dead();
    said.push(refused(&other, &[w], &squared));
    // Nodes that are no constants, and one twice.
    said.push(refused(&g, &[g.inputs()[0]], &squared));
    said.push(refused(&g, &[g.outputs()[0].value.node], &squared));
    said.push(refused(&g, &[w, w], &squared));
    said.push(refused(&g, &[], &squared));
    // Losses that do not depend on what is trained.
    said.push(refused(&g, &[w, node(&g, "table")], &|g| {
        let x = g.inputs()[0].into();
        loss::mse(g, x, x, None)
    }));
    // Losses that are none.
    said.push(refused(&g, &[w], &|g| Ok(g.outputs()[0].value)));
    // Names of states.
    said.push(refused(&g, &[w], &|g| {
        g.add_input("step", TensorType::known(DType::F32, &[]));
        squared(g)
    }));
    said.push(refused(&g, &[w], &|g| {
        let y = squared(g)?;
        g.add_output("loss", y);
        Ok(y)
    }));
    // Parameters that do not fit.
    let wrong =
        |name: &str, t: Tensor| with_parameters(&g, &[(name.to_string(), t)]).unwrap_err().to_string();
    said.push(wrong("w#2", normal(&[5], 1)));
    said.push(wrong("fc", normal(&[4], 1)));
    insta::assert_snapshot!(said.join("\n"), @r"
    a constant to be trained is no longer in the graph
    `x` cannot be trained: expected a constant of floats, found `input` of type f64[3, 4]
    `mul` cannot be trained: expected a constant of floats, found `mul` of type f64[3, 4]
    `w` is to be trained twice
    there is no parameter to train
    the loss does not depend on `w`, `table`
    loss: expected a scalar of floats, found f64[3, 4]
    two inputs of the training step are called `step`
    two outputs of the training step are called `loss`
    constant `w#2`: expected f64[4], found f64[5]
    the model has no constant of floats `fc`
    ");
}
