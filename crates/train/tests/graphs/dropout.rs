//! Masks of dropout: their bits, how many elements stay, and that gradients see the mask that values see.

use margay_driver::{Runner, backend};
use margay_ir::verify::Stage;
use margay_ir::{Graph, NodeId, TensorType, Value, text};
use margay_passes::parameter_names;
use margay_tensor::Tensor;
use margay_tensor::random::Philox;
use margay_train::dropout::{STREAMS, add_masks, places};
use margay_train::{Optimizer, Schedule, TrainError, TrainingStep, Update, loss};

use crate::support::{assert_near, floats, normal, output, run};

const SEED: u64 = 0x0123_4567_89ab_cdef;

/// `x` with dropout alone.
fn dropping(dtype: &str, shape: &str, ratio: f64, stream: usize) -> Graph {
    let ty = format!("{dtype}[{shape}]");
    let source = format!(
        "graph @dropping(%x: {ty}) -> (y: {ty}) {{
          %0 = dropout %x {{ratio = {ratio:?}, stream = {stream}}} : {ty}  // drop
          return %0
        }}"
    );
    text::parse(&source, &|_, _| None).unwrap()
}

fn masked(graph: &Graph, seed: u64) -> Graph {
    let mut g = graph.clone();
    add_masks(&mut g, seed).unwrap();
    g
}

/// What dropout makes of ones, by the reference of random numbers.
fn expected(count: usize, ratio: f64, seed: u64, stream: u64, step: u64) -> Vec<f64> {
    let random = Philox::new(seed, STREAMS + (stream << 32) + step);
    let word = |i: usize| random.block(i as u64 / 4)[i % 4];
    let least = (ratio * f64::from(1u32 << 16) * f64::from(1u32 << 16)).round();
    let stays = |i: usize| f64::from(word(i)) >= least;
    (0..count).map(|i| if stays(i) { 1.0 / (1.0 - ratio) } else { 0.0 }).collect()
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::from_slice(shape, &vec![1f32; shape.iter().product()]).unwrap()
}

#[test]
fn masks_are_words_of_philox() {
    for (shape, ratio, seed, stream, step) in [
        (&[5, 7][..], 0.3, SEED, 0, 0),
        (&[4, 4], 0.5, 0, 3, 1),
        (&[1, 3], 0.9, u64::MAX, 1 << 20, 70_000),
        (&[2, 9], 0.1, 1, 5, 1 << 24),
    ] {
        let count = shape.iter().product();
        let expected = expected(count, ratio, seed, stream, step);
        let g = masked(&dropping("f32", "M, N", ratio, stream as usize), seed);
        assert_eq!(g.verify(Stage::Canonical), Ok(()));
        let (x, step) = (ones(shape), Tensor::scalar(step as f32));
        let found = run(&g, &[("x", &x), ("step", &step)]);
        assert_near("the reference interpreter", &floats(output(&found, "y")), &expected, 1e-7);
        for backend in backend::supported() {
            for threads in [1, 3] {
                let mut runner = Runner::new(g.clone(), &backend, threads);
                let found = runner.run(&[("x".into(), x.clone()), ("step".into(), step.clone())]).unwrap();
                assert_near(backend.target(), &floats(&found[0].1), &expected, 1e-7);
            }
        }
    }
}

#[test]
fn values_without_axes_and_of_f64_are_dropped_too() {
    let g = masked(&dropping("f64", "", 0.5, 2), 4);
    let one = Tensor::scalar(1f64);
    let mut kept = 0;
    for step in 0..32 {
        let found = run(&g, &[("x", &one), ("step", &Tensor::scalar(step as f32))]);
        let y = floats(output(&found, "y"));
        assert_eq!(y, expected(1, 0.5, 4, 2, step));
        kept += usize::from(y[0] > 0.0);
    }
    assert!((4..28).contains(&kept), "{kept} of 32");
}

#[test]
fn the_share_that_stays_is_that_of_the_ratio() {
    const COUNT: usize = 40_000;
    for ratio in [0.1, 0.5, 0.9] {
        let g = masked(&dropping("f32", "N", ratio, 0), 7);
        let mut runner = Runner::new(g, &backend::native(), 2);
        for step in [0f32, 1.0, 1000.0] {
            let inputs = [("x".into(), ones(&[COUNT])), ("step".into(), Tensor::scalar(step))];
            let y = floats(&runner.run(&inputs).unwrap()[0].1);
            let share = y.iter().filter(|v| **v > 0.0).count() as f64 / COUNT as f64;
            let error = (ratio * (1.0 - ratio) / COUNT as f64).sqrt();
            assert!((share - (1.0 - ratio)).abs() < 4.0 * error, "{ratio}, step {step}: {share} stay");
        }
    }
}

#[test]
fn the_expected_value_is_the_value() {
    const SEEDS: u64 = 256;
    let ratio = 0.4;
    let x = normal(&[3, 5], 1);
    let graph = dropping("f64", "3, 5", ratio, 1);
    let mut sum = [0f64; 15];
    for seed in 0..SEEDS {
        let g = masked(&graph, seed);
        let found = run(&g, &[("x", &x), ("step", &Tensor::scalar(2f32))]);
        sum.iter_mut().zip(floats(output(&found, "y"))).for_each(|(s, y)| *s += y);
    }
    for (sum, x) in sum.iter().zip(floats(&x)) {
        let error = x.abs() * (ratio / (1.0 - ratio) / SEEDS as f64).sqrt();
        let mean = sum / SEEDS as f64;
        assert!((mean - x).abs() < 4.0 * error, "mean {mean} of {x}");
    }
}

#[test]
fn places_and_steps_and_seeds_have_masks_of_their_own() {
    let source = "graph @twice(%x: f32[64]) -> (y: f32[64], z: f32[64]) {
      %0 = dropout %x {ratio = 0.5, stream = 0} : f32[64]  // first
      %1 = dropout %x {ratio = 0.5, stream = 1} : f32[64]  // second
      return %0, %1
    }";
    let graph = text::parse(source, &|_, _| None).unwrap();
    assert_eq!(places(&graph).len(), 2);
    let masks = |seed: u64, step: f32| {
        let found = run(&masked(&graph, seed), &[("x", &ones(&[64])), ("step", &Tensor::scalar(step))]);
        [floats(output(&found, "y")), floats(output(&found, "z"))]
    };
    let all = [masks(0, 0.0), masks(0, 1.0), masks(1, 0.0)].concat();
    for (i, mask) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| other != mask), "mask {i} is there twice");
    }
    assert_eq!(masks(0, 1.0).concat(), all[2..4].concat());
}

#[test]
fn a_graph_without_dropout_or_of_ratio_0_stays_as_it_is() {
    for ratio in [0.0, 1e-12] {
        let g = dropping("f32", "N", ratio, 0);
        assert!(places(&g).is_empty());
        assert_eq!(masked(&g, 3).to_string(), g.to_string());
    }
}

fn squared(g: &mut Graph) -> Result<Value, TrainError> {
    let prediction = g.outputs()[0].value;
    let target = g.add_input("target", g.ty(prediction).clone());
    loss::mse(g, prediction, target, None)
}

#[test]
fn gradients_are_those_of_the_mask_of_the_step() {
    let source = "graph @net(%x: f64[6, 4]) -> (y: f64[6, 3]) {
      %0 = const #a : f64[4, 8]  // a
      %1 = matmul %x, %0 : f64[6, 8]  // hidden
      %2 = tanh %1 : f64[6, 8]
      %3 = dropout %2 {ratio = 0.3, stream = 0} : f64[6, 8]  // drop
      %4 = const #b : f64[8, 3]  // b
      %5 = matmul %3, %4 : f64[6, 3]  // out
      %6 = dropout %5 {ratio = 0.2, stream = 1} : f64[6, 3]  // drop2
      return %6
    }";
    let (a, b) = (normal(&[4, 8], 1), normal(&[8, 3], 2));
    let of_type = |ty: &TensorType| [&a, &b].into_iter().find(|t| TensorType::of(t) == *ty);
    let constants = |_: &str, ty: &TensorType| of_type(ty).map(|t| t.clone().into());
    let graph = text::parse(source, &constants).unwrap();
    let nodes: Vec<NodeId> = parameter_names(&graph).into_iter().map(|(n, _)| n).collect();
    let update = Update {
        optimizer: Optimizer::Sgd { momentum: 0.0 },
        learning_rate: 0.5,
        schedule: Schedule::Constant { warm_up: 0.0 },
        clip: None,
    };
    let step = TrainingStep::dropping(&graph, [&nodes, &[]], &squared, &update, SEED).unwrap();
    assert_eq!(step.parameters, ["a", "b"]);
    assert_eq!(step.data().len(), 2, "the number of the step is a state");
    let renamed = text::parse(&source.replace("%x", "%step"), &constants).unwrap();
    let nodes: Vec<NodeId> = parameter_names(&renamed).into_iter().map(|(n, _)| n).collect();
    let refused =
        TrainingStep::dropping(&renamed, [&nodes, &[]], &squared, &update, SEED).unwrap_err().to_string();
    assert_eq!(refused, "two inputs of the training step are called `step`");
    let (x, target) = (normal(&[6, 4], 3), normal(&[6, 3], 4));
    let (one, rate) = (Tensor::scalar(1f32), Tensor::scalar(0.5f32));
    let stepped = |a: &Tensor, b: &Tensor, number: f32| {
        let number = Tensor::scalar(number);
        run(
            &step.graph,
            &[
                ("x", &x),
                ("target", &target),
                ("a", a),
                ("b", b),
                ("step", &number),
                ("total_steps", &one),
                ("peak_rate", &rate),
            ],
        )
    };
    // The loss itself is given as f32: it is computed here from the outputs of the forward half.
    let forward = masked(&graph, SEED);
    let loss = |a: &Tensor, b: &Tensor, number: f32| {
        let changed =
            margay_passes::with_parameters(&forward, &[("a".into(), a.clone()), ("b".into(), b.clone())]);
        let y = run(&changed.unwrap(), &[("x", &x), ("step", &Tensor::scalar(number))]);
        let y = floats(output(&y, "y"));
        y.iter().zip(floats(&target)).map(|(y, t)| (y - t).powi(2)).sum::<f64>() / y.len() as f64
    };
    let moved = |t: &Tensor, i: usize, by: f64| {
        let mut values = floats(t);
        values[i] += by;
        Tensor::from_slice(t.shape(), &values).unwrap()
    };
    for number in [0f32, 5.0] {
        let found = stepped(&a, &b, number);
        let by_a: Vec<f64> = (0..a.len())
            .map(|i| (loss(&moved(&a, i, 1e-5), &b, number) - loss(&moved(&a, i, -1e-5), &b, number)) / 2e-5)
            .collect();
        let by_b: Vec<f64> = (0..b.len())
            .map(|i| (loss(&a, &moved(&b, i, 1e-5), number) - loss(&a, &moved(&b, i, -1e-5), number)) / 2e-5)
            .collect();
        for (name, before, gradient) in [("next.a", &a, by_a), ("next.b", &b, by_b)] {
            let expected: Vec<f64> = floats(before).iter().zip(&gradient).map(|(w, g)| w - 0.5 * g).collect();
            assert_near(name, &floats(output(&found, name)), &expected, 1e-8);
        }
        assert_eq!(floats(output(&found, "next.step")), [f64::from(number) + 1.0]);
    }
    assert_ne!(output(&stepped(&a, &b, 0.0), "next.a"), output(&stepped(&a, &b, 1.0), "next.a"));
}
