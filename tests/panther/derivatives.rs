//! Derivatives of what other files have no place for, against finite differences: pairs of layers with fewer units between them,
//! and random features whose directions were fitted to samples. And recurrences, whose products of inputs are layers.

use margay_driver::{CompileOptions, Dump, Model, Samples, Silent, compile};
use margay_ir::{Cx, Graph, Pass, eval};
use margay_onnx::{Attribute, OnnxDim, OnnxGraph, OnnxNode, OnnxValue, import};
use margay_passes::ApplyPlan;
use margay_passes::sketch::{
    Context, Decompositions, FavorSettings, FeatureDirections, patch, read_plan, scheme, sites,
};
use margay_plan::Settings;
use margay_tensor::{DType, Tensor};
use margay_testkit::parse_with_random_constants;

use crate::kernels::by_all_factors;
use crate::{check_by_differences, floats, narrow, random, widened};

fn plan(model: &str, site: &str, choice: &str) -> margay_plan::Plan {
    let head = format!("version = 1\nmodel = \"{model}\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0");
    read_plan(&format!("[plan]\n{head}\n[modules]\n\"{site}\" = {{ {choice} }}\n")).unwrap()
}

#[test]
fn derivatives_of_fewer_units_are_those_of_finite_differences() {
    let (mut g, _) = parse_with_random_constants(
        "graph @net(%x: f32[3, 6]) -> (y: f32[3, 5]) {
          %0 = const #u : f32[6, 12]  // up.weight
          %1 = matmul %x, %0 : f32[3, 12]  // up
          %2 = const #b : f32[12]  // up.bias
          %3 = add %1, %2 : f32[3, 12]  // up/Add
          %4 = gelu %3 : f32[3, 12]  // act
          %5 = const #v : f32[12, 5]  // down.weight
          %6 = matmul %4, %5 : f32[3, 5]  // down
          return %6
        }",
    );
    let plan = plan("", "up+down", "scheme = \"neurons\", units = 7");
    ApplyPlan::of(&plan).run(&mut g, &mut Cx::default()).unwrap_or_else(|e| panic!("{e}"));
    assert!(g.to_string().contains("f32[6, 7]"), "{g}");
    by_all_factors("neurons", &g);
}

/// By queries, keys and values, with directions that stay as they were fitted.
#[test]
fn derivatives_with_fitted_directions_are_those_of_finite_differences() {
    for causal in [false, true] {
        let (g, _) = parse_with_random_constants(&format!(
            "graph @net(%q: f32[2, 2, 4, 5], %k: f32[2, 2, 4, 5], %v: f32[2, 2, 4, 3]) -> (y: f32[2, 2, 4, 3]) {{
               %0 = attention %q, %k, %v {{scale = 0.4, causal = {causal}}} : f32[2, 2, 4, 3]  // att
               return %0
             }}"
        ));
        let site = sites(&g).into_iter().find(|site| site.schemes.contains(&"favor")).unwrap();
        let operands = [("q", [2, 2, 4, 5]), ("k", [2, 2, 4, 5]), ("v", [2, 2, 4, 3])];
        let inputs: Vec<(&'static str, Tensor)> =
            operands.iter().enumerate().map(|(i, (name, shape))| (*name, random(shape, i as u64))).collect();
        let run: Vec<Tensor> = inputs.iter().map(|(_, t)| narrow(t)).collect();
        let context = Context {
            graph: &g,
            site: &site,
            moments: None,
            samples: Some(&[run]),
            metric: None,
            decompositions: &Decompositions::default(),
            seed: 3,
        };
        let fitted = scheme("favor").unwrap().fit(&context).unwrap();
        let settings = FavorSettings { directions: FeatureDirections::Fitted, ..FavorSettings::new(6) };
        let settings = fitted.resolved(&Settings::write(&settings)).unwrap().settings;
        let mut made = g.clone();
        made.apply(patch(&*fitted, &g, &site, &settings).unwrap()).unwrap();
        assert_ne!(made.to_string(), g.to_string());
        check_by_differences(&format!("fitted, causal {causal}"), &widened(&made), &inputs, 3);
    }
}

/// An LSTM of 5 units over 6 inputs, as a model.
fn recurrent() -> Model {
    let value = |name: &str, dims: &[i64]| OnnxValue {
        name: name.to_owned(),
        dtype: Some(DType::F32),
        narrow: None,
        dims: Some(dims.iter().map(|d| OnnxDim::Value(*d)).collect()),
    };
    let weight = |shape: &[usize], stream: u64| {
        let numbers: Vec<f32> = floats(&random(shape, stream)).iter().map(|x| (0.4 * x) as f32).collect();
        Tensor::from_slice(shape, &numbers).unwrap()
    };
    let lstm = OnnxNode {
        name: "lstm".to_owned(),
        op_type: "LSTM".to_owned(),
        inputs: ["x", "w", "r", "b"].map(String::from).to_vec(),
        outputs: vec!["y".to_owned()],
        attributes: [("hidden_size".to_owned(), Attribute::Int(5))].into_iter().collect(),
        ..OnnxNode::default()
    };
    let graph = OnnxGraph {
        name: "recurrent".to_owned(),
        inputs: vec![value("x", &[7, 3, 16])],
        outputs: vec![value("y", &[7, 1, 3, 5])],
        initializers: vec![
            ("w".to_owned(), weight(&[1, 20, 16], 1)),
            ("r".to_owned(), weight(&[1, 20, 5], 2)),
            ("b".to_owned(), weight(&[1, 40], 3)),
        ],
        nodes: vec![lstm],
        ..OnnxGraph::default()
    };
    let g = import(&margay_onnx::Model::new(17, graph)).unwrap_or_else(|e| panic!("{e}"));
    Model::new(g, "net", &mut Dump::none()).unwrap()
}

/// What an LSTM reads is multiplied with its weights for all times at once, and that product is a layer like any other; the weights
/// of the state are another one (`recurrences.rs`).
#[test]
fn the_product_of_the_inputs_of_a_recurrence_is_sketched() {
    let model = recurrent();
    let found = sites(&model.graph);
    let [site, state] = &found[..] else { panic!("{}", model.graph) };
    assert_eq!((site.kind, site.d_in, site.d_out, state.kind), ("linear", 16, 20, "recurrent"));
    let x = narrow(&random(&[7, 3, 16], 8));
    let samples = Samples::new(vec![("x".into(), narrow(&random(&[70, 3, 16], 9)))]).unwrap();
    let run = |g: &Graph| floats(&eval::run(g, &[("x", &x)]).unwrap()[0]);
    let expected = run(&model.graph);
    let size: f64 = expected.iter().map(|e| e * e).sum();
    let mut last = f64::INFINITY;
    for (rank, exact) in [(3, false), (8, false), (16, true)] {
        for samples in [None, Some(&samples)] {
            let choice = format!("scheme = \"lowrank\", rank = {rank}");
            let plan = Some(plan(&model.hash, &site.name, &choice));
            let options = CompileOptions { plan, ..CompileOptions::default() };
            let made = compile(&model, samples, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
            let found = run(&made.graph);
            let lost: f64 = found.iter().zip(&expected).map(|(f, e)| (f - e).powi(2)).sum();
            let error = (lost / size).sqrt();
            assert_eq!(error < 1e-5, exact, "rank {rank}: {error}");
            // Gates bound what an error of the inputs does.
            assert!(error < last.max(1e-5), "rank {rank}: {error}, before {last}");
            last = if samples.is_some() { error } else { last };
        }
    }
}
