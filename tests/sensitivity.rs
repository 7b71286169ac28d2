//! Predicted effects of errors in layers, against what happens when the layers have these errors.

use margay_driver::sensitivity::{RELATIVE_ERROR, Sensitivity, sensitivity};
use margay_driver::{Dump, Model, Runner, Samples, Silent};
use margay_driver::{ErrorScope, ErrorSum, backend};
use margay_ir::Graph;
use margay_passes::sketch::{Context, Decompositions, Moments, scheme, sites};
use margay_passes::{ApplyPlan, parameter_names, with_parameters};
use margay_plan::Choice;
use margay_randnla::Gram;
use margay_tensor::Tensor;
use margay_testkit::{normal, parse_with_random_constants};

/// Weights whose columns fall off in one basis, so that half the bytes lose little.
fn decaying(rows: usize, columns: usize, stream: u64) -> Vec<f32> {
    let (left, right) = (normal(&[rows, columns], 3, stream), normal(&[columns, columns], 3, stream + 100));
    let (left, right) = (left.to_vec::<f32>().unwrap(), right.to_vec::<f32>().unwrap());
    let mut out = vec![0f32; rows * columns];
    for i in 0..rows {
        for k in 0..columns {
            let share = left[i * columns + k] * 0.55f32.powi(k as i32) / (rows as f32).sqrt();
            (0..columns).for_each(|j| out[i * columns + j] += share * right[k * columns + j]);
        }
    }
    out
}

fn source(text: &str) -> Model {
    let (g, _) = parse_with_random_constants(text);
    let mut stream = 0;
    let weights: Vec<(String, Tensor)> = parameter_names(&g)
        .into_iter()
        .filter(|(n, _)| g.ty((*n).into()).ndim() > 1)
        .map(|(n, name)| {
            let shape = g.ty(n.into()).extents().unwrap();
            stream += 1;
            let values = match *shape {
                // Kernels are [out, in, height, width]; the inputs are rows.
                [out, ref taps @ ..] if shape.len() == 4 => {
                    let d_in: usize = taps.iter().product();
                    let w = decaying(d_in, out, stream);
                    (0..w.len()).map(|i| w[i % d_in * out + i / d_in]).collect()
                }
                [rows, columns] => decaying(rows, columns, stream),
                _ => unreachable!("weights are matrices or kernels"),
            };
            (name, Tensor::from_slice(&shape, &values).unwrap())
        })
        .collect();
    Model::new(with_parameters(&g, &weights).unwrap(), "net", &mut Dump::none()).unwrap()
}

fn network() -> (Model, Samples) {
    let source = source(
        "graph @net(%x: f32[N, 12]) -> (y: f32[N, 10]) {
           %0 = const #w1 : f32[12, 32]  // a.weight
           %1 = matmul %x, %0 : f32[N, 32]  // a
           %2 = tanh %1 : f32[N, 32]
           %3 = const #w2 : f32[32, 24]  // b.weight
           %4 = matmul %2, %3 : f32[N, 24]  // b
           %5 = gelu %4 : f32[N, 24]
           %6 = const #w3 : f32[24, 10]  // c.weight
           %7 = matmul %5, %6 : f32[N, 10]  // c
           return %7
         }",
    );
    (source, Samples::new(vec![("x".into(), normal(&[96, 12], 8, 0))]).unwrap())
}

fn images() -> (Model, Samples) {
    let source = source(
        "graph @net(%x: f32[N, 3, 9, 8]) -> (y: f32[N, 5]) {
           %0 = const #k1 : f32[8, 3, 3, 3]  // a.weight
           %1 = conv %x, %0 {strides = [2, 1], pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 8, 5, 8]  // a
           %2 = relu %1 : f32[N, 8, 5, 8]
           %3 = const #k2 : f32[6, 8, 3, 3]  // b.weight
           %4 = conv %2, %3 : f32[N, 6, 3, 6]  // b
           %5 = tanh %4 : f32[N, 6, 3, 6]
           %6 = reshape %5 {shape = [N, 108]} : f32[N, 108]
           %7 = const #w : f32[108, 5]  // c.weight
           %8 = matmul %6, %7 : f32[N, 5]  // c
           return %8
         }",
    );
    (source, Samples::new(vec![("x".into(), normal(&[64, 3, 9, 8], 9, 0))]).unwrap())
}

fn measured(g: &Graph, other: Graph, samples: &Samples) -> f64 {
    let inputs = samples.row(0, samples.rows()).unwrap();
    let run = |g: Graph| Runner::new(g, &backend::native(), 1).run(&inputs).unwrap();
    let mut sum = ErrorSum::default();
    sum.add(samples.arrays(), &run(g.clone()), &run(other)).unwrap();
    sum.measure().relative_l2
}

fn predicted(source: &Model, samples: &Samples, probes: usize) -> Sensitivity {
    sensitivity(source, samples, probes, 1, 2, &ErrorScope::default(), &Silent).unwrap()
}

/// The graph with a random error of the stated size in one of its weights.
fn disturbed(g: &Graph, weight: &str, seed: u64) -> Graph {
    let (n, _) = parameter_names(g).into_iter().find(|(_, name)| name == weight).unwrap();
    let t = g.constant(n.into()).unwrap().tensor();
    let (w, e) = (t.to_vec::<f32>().unwrap(), normal(t.shape(), seed, 77).to_vec::<f32>().unwrap());
    let norm = |x: &[f32]| x.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    let scale = (RELATIVE_ERROR * norm(&w) / norm(&e)) as f32;
    let moved: Vec<f32> = w.iter().zip(e).map(|(w, e)| w + scale * e).collect();
    let moved = Tensor::from_slice(t.shape(), &moved).unwrap();
    with_parameters(g, &[(weight.to_string(), moved)]).unwrap()
}

#[test]
fn small_random_errors_of_weights_have_the_predicted_effect() {
    for (source, samples) in [network(), images()] {
        let found = predicted(&source, &samples, 8);
        assert_eq!((found.samples, found.modules.len()), (samples.rows(), 3));
        for m in &found.modules {
            const TRIES: u64 = 12;
            let squares = (0..TRIES).map(|seed| {
                let moved = disturbed(&source.graph, &format!("{}.weight", m.name), seed);
                measured(&source.graph, moved, &samples).powi(2)
            });
            let measured = (squares.sum::<f64>() / TRIES as f64).sqrt();
            let ratio = m.output_error / measured;
            println!("{}: predicted {:.5}, measured {measured:.5}", m.name, m.output_error);
            assert!((0.75..1.25).contains(&ratio), "{}: {} for {measured}", m.name, m.output_error);
        }
    }
}

/// Low rank of half the bytes, whitened by all samples, as it is predicted.
fn at_half(source: &Model, samples: &Samples, name: &str, rank: usize) -> Option<Graph> {
    let g = &source.graph;
    let site = sites(g).into_iter().find(|s| s.name == name)?;
    let x = &samples.arrays()[0].1;
    // Only the first layer's inputs are at hand here.
    let mut gram = Gram::new(site.d_in);
    gram.add_rows(&x.to_vec::<f32>().unwrap()).unwrap();
    let moments = [std::sync::Arc::new(Moments::of_inputs(gram, "#x"))];
    let decompositions = &Decompositions::default();
    let context = Context {
        graph: g,
        site: &site,
        moments: Some(&moments),
        samples: None,
        metric: None,
        decompositions,
        seed: 0,
    };
    let fitted = scheme("lowrank")?.fit(&context).unwrap().into();
    let choice = Choice::new("lowrank", &std::collections::BTreeMap::from([("rank", rank)]));
    let mut pass = ApplyPlan::default();
    pass.choices.insert(site.name.clone(), choice);
    pass.fitted.insert(site.name, fitted);
    let mut out = g.clone();
    margay_ir::Pass::run(&pass, &mut out, &mut margay_ir::Cx::default()).unwrap();
    Some(out)
}

#[test]
fn factors_of_half_the_bytes_have_the_predicted_effect() {
    let (source, samples) = network();
    let found = predicted(&source, &samples, 64);
    let m = &found.modules[0];
    assert_eq!(m.half_rank, 12 * 32 / (2 * (12 + 32)));
    let sketched = at_half(&source, &samples, "a", m.half_rank).unwrap();
    let (predicted, measured) =
        (m.half_rank_output_error.unwrap(), measured(&source.graph, sketched, &samples));
    println!("predicted {predicted:.5}, measured {measured:.5}");
    assert!((0.75..1.25).contains(&(predicted / measured)), "{predicted} for {measured}");
}

#[test]
fn traces_are_those_of_the_inputs_and_of_the_gradients() {
    let (source, samples) = network();
    let found = predicted(&source, &samples, 2);
    let x = samples.arrays()[0].1.to_vec::<f32>().unwrap();
    let mut gram = Gram::new(12);
    gram.add_rows(&x).unwrap();
    let covariance = gram.covariance().unwrap();
    let trace: f64 = (0..12).map(|i| covariance.at(i, i)).sum();
    let first = &found.modules[0];
    assert!((first.input_trace / trace - 1.0).abs() < 1e-6, "{} for {trace}", first.input_trace);
    // The last layer's results are the outputs: their gradients are the signs themselves.
    let last = &found.modules[2];
    assert!((last.gradient_trace - 10.0).abs() < 1e-6, "{}", last.gradient_trace);
    // With one row per sample, moments say nearly the same.
    let ratio = last.output_error_by_moments / last.output_error;
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
}

#[test]
fn outputs_that_vanish_have_no_relative_error() {
    let (source, _) = network();
    let zero = Samples::new(vec![("x".into(), Tensor::from_slice(&[4, 12], &[0f32; 48]).unwrap())]).unwrap();
    let refused =
        sensitivity(&source, &zero, 1, 1, 1, &ErrorScope::default(), &Silent).unwrap_err().to_string();
    assert!(refused.contains("squared norm of 0"), "{refused}");
}
