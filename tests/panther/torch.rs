//! torch's layer `MultiheadAttention`, as its exporters write it, with random features in place of its softmax: against numbers of
//! performer-pytorch for the same weights and directions. `tests/tools/make_torch_attention.py` wrote the files.

use std::fs::File;
use std::path::{Path, PathBuf};

use margay_driver::{Samples, Silent, backend, open};
use margay_ir::{Cx, Graph, Op, Part, eval};
use margay_passes::sketch::{
    AttentionForm, AttentionTraining, FavorSettings, FeatureKernel, RelativePositions, attention_for_training,
};
use margay_passes::{parameter_names, with_parameters};
use margay_tensor::Tensor;
use margay_tensor::random::Philox;
use margay_train::{FitOptions, Length, Objective, Optimizer, Schedule, Selection, Supervised, Update};

use crate::floats;

const FILES: [&str; 8] = [
    "weights_script.onnx",
    "weights_dynamo.onnx",
    "fused_script.onnx",
    "fused_dynamo.onnx",
    "weights_causal_script.onnx",
    "weights_causal_dynamo.onnx",
    "fused_causal_script.onnx",
    "fused_causal_dynamo.onnx",
];

const FEATURES: usize = 12;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/torch_attention").join(name)
}

fn arrays() -> Vec<(String, Tensor)> {
    margay_npy::read_npz(File::open(fixture("performer.npz")).unwrap()).unwrap()
}

fn array(arrays: &[(String, Tensor)], name: &str) -> Tensor {
    arrays.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{name}")).1.clone()
}

fn with_features(g: &Graph, settings: FavorSettings) -> Graph {
    let (mut g, mut cx) = (g.clone(), Cx::default());
    let options = AttentionTraining { form: AttentionForm::Favor(settings), seed: 0, modules: None };
    attention_for_training(&mut g, &options, &mut cx).unwrap();
    assert!(cx.remarks.is_empty(), "{:?}", cx.remarks);
    g
}

/// The graph with directions `[features, d]` of somebody else, times a factor.
fn with_directions(g: &Graph, p: &Tensor, factor: f64) -> Graph {
    let [m, d] = [p.shape()[0], p.shape()[1]];
    let p = floats(p);
    let transposed: Vec<f32> = (0..d * m).map(|i| (factor * p[i % m * d + i / m]) as f32).collect();
    let is = |n: &margay_ir::NodeId| {
        g.node(*n).origin.part == Some(Part::Random)
            && g.constant((*n).into()).unwrap().tensor().shape() == [d, m]
    };
    let found: Vec<String> =
        parameter_names(g).into_iter().filter(|(n, _)| is(n)).map(|(_, name)| name).collect();
    let [name] = found.as_slice() else { panic!("{found:?}\n{g}") };
    with_parameters(g, &[(name.clone(), Tensor::from_slice(&[d, m], &transposed).unwrap())]).unwrap()
}

fn check(what: &str, g: &Graph, x: &Tensor, expected: &Tensor, tolerance: f64) {
    let found = floats(&eval::run(g, &[("x", x)]).unwrap()[0]);
    for (f, e) in found.iter().zip(floats(expected)) {
        assert!((f - e).abs() < tolerance, "{what}: {f} for {e}");
    }
}

#[test]
fn layers_of_torch_become_performers() {
    let arrays = arrays();
    let (x, p) = (array(&arrays, "x"), array(&arrays, "p"));
    for file in FILES {
        let model = open(&fixture(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let g = &model.graph;
        let causal = file.contains("causal");
        let found: Vec<bool> = g
            .order()
            .into_iter()
            .filter_map(|n| match g.op(n) {
                Op::Attention(attention) => Some(attention.causal),
                _ => None,
            })
            .collect();
        assert_eq!(found, [causal], "{file}\n{g}");
        let of = |name: &str| array(&arrays, &format!("{}{name}", if causal { "causal_" } else { "" }));
        check(file, g, &x, &of("exact"), 1e-5);
        let (d, m) = (p.shape()[1] as f64, FEATURES as f64);
        let softmax = with_features(g, FavorSettings::new(FEATURES));
        let name = format!("{file}, softmax");
        check(&name, &with_directions(&softmax, &p, d.powf(-0.25)), &x, &of("softmax"), 2e-4);
        let relu = FavorSettings { kernel: FeatureKernel::Relu, ..FavorSettings::new(FEATURES) };
        let relu = with_features(g, relu);
        let name = format!("{file}, relu");
        check(&name, &with_directions(&relu, &p, m.powf(-0.5)), &x, &of("relu"), 2e-4);
        // The two forms are not the same function.
        assert_ne!(floats(&of("softmax")), floats(&of("exact")));
    }
}

/// Sequences whose class is the sum that one position says, marked by a large number.
fn samples(rows: usize) -> (Samples, Tensor) {
    let (positions, width) = (6, 16);
    let mut x = vec![0f32; rows * positions * width];
    Philox::new(4, 1).fill_normal_f32(0, &mut x);
    x.iter_mut().for_each(|x| *x *= 0.1);
    let label = |r: usize| (r * 7 + r / 5) % 3;
    for (r, sample) in x.chunks_exact_mut(positions * width).enumerate() {
        for (at, row) in sample.chunks_exact_mut(width).enumerate() {
            let marked = at == (r * 5 + r / 3) % positions;
            row[0] += if marked { 2.0 } else { 0.0 };
            row[1 + if marked { label(r) } else { (r + at) % 3 }] += 1.0;
        }
    }
    let labels: Vec<u8> = (0..rows).map(|r| label(r) as u8).collect();
    let x = Tensor::from_slice(&[rows, positions, width], &x).unwrap();
    (Samples::new(vec![("x".into(), x)]).unwrap(), Tensor::from_slice(&[rows], &labels).unwrap())
}

/// With its own projections, of both exporters, and with relative positions, whose parameters are trained too.
#[test]
fn performers_of_torch_layers_are_trained() {
    let (samples, labels) = samples(240);
    let relative = Some(RelativePositions { sines: 2, realizations: 16, gated: true });
    let relu = FavorSettings { kernel: FeatureKernel::Relu, ..FavorSettings::new(16) };
    for (file, settings) in [
        ("weights_script.onnx", FavorSettings::new(16)),
        ("fused_causal_dynamo.onnx", relu),
        ("fused_script.onnx", FavorSettings { relative, ..FavorSettings::new(16) }),
    ] {
        let g = with_features(&open(&fixture(file)).unwrap().graph, settings.clone());
        let options = Supervised {
            objective: Objective::CrossEntropy,
            output: None,
            weights: None,
            selection: Selection::All,
            update: Update {
                optimizer: Optimizer::ADAM,
                learning_rate: 0.01,
                schedule: Schedule::Cosine { warm_up: 0.1, floor: 0.0 },
                clip: Some(1.0),
            },
            fit: FitOptions {
                length: Length::Steps(150),
                batch: 16,
                evaluations: 3,
                ..FitOptions::default()
            },
            held_out: 0.2,
            ranks: None,
            redraw: None,
            max_saved_bytes: None,
            threads: 1,
            backend: backend::native(),
        };
        let trained =
            options.train(&g, &samples, Some(&labels), &mut Silent).unwrap_or_else(|e| panic!("{file}: {e}"));
        let (first, best) = (trained.fitted.first(), trained.fitted.best());
        assert!(best.error < 0.8 * first.error, "{file}: {} of {}", best.error, first.error);
        let terms = |g: &Graph| -> Vec<Vec<f64>> {
            let constants = g.order().into_iter().filter(|n| g.node(*n).origin.part == Some(Part::Term));
            constants.filter_map(|n| g.constant(n.into()).map(|c| floats(c.tensor()))).collect()
        };
        let (before, after) = (terms(&g), terms(&trained.graph));
        assert_eq!(before.len(), if settings.relative.is_some() { 4 } else { 0 });
        assert!(before.iter().zip(&after).all(|(b, a)| b != a), "{file}");
    }
}
