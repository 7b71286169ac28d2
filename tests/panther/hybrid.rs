//! Windows with random features for the rest: against the formula by loops, by differences, and in how much work grows.

use margay_ir::{Changed, Cx, Graph, Part, Stage, eval};
use margay_onnx::{ExportOptions, export, import};
use margay_passes::sketch::{
    AttentionForm, AttentionTraining, LocalSettings, LocalSummary, attention_for_training,
};
use margay_tensor::{Binding, Tensor};
use margay_testkit::parse_with_random_constants;

use crate::{check_by_differences, floats, narrow, random, widened};

const DIM: usize = 5;
const SCALE: f64 = 0.5;
const FEATURES: usize = 7;

fn attention(length: &str, causal: bool, mask: bool) -> Graph {
    let (input, operand) =
        if mask { (format!(", %m: f32[2, 1, 1, {length}]"), ", %m") } else { (String::new(), "") };
    let text = format!(
        "graph @net(%q: f32[2, 2, {length}, {DIM}], %k: f32[2, 2, {length}, {DIM}], %v: f32[2, 2, {length}, 3]{input}) -> (y: f32[2, 2, {length}, 3]) {{
           %0 = attention %q, %k, %v{operand} {{scale = {SCALE}, causal = {causal}}} : f32[2, 2, {length}, 3]  // att
           return %0
         }}"
    );
    parse_with_random_constants(&text).0
}

fn settings(window: usize, global: usize) -> LocalSettings {
    LocalSettings {
        global,
        summary: Some(LocalSummary::Features),
        features: FEATURES,
        ..LocalSettings::new(window)
    }
}

fn replaced(g: &Graph, settings: LocalSettings) -> Graph {
    let (mut g, mut cx) = (g.clone(), Cx::default());
    let options = AttentionTraining { form: AttentionForm::Local(settings), seed: 3, modules: None };
    assert_eq!(attention_for_training(&mut g, &options, &mut cx).unwrap(), Changed::times(1));
    assert!(cx.remarks.is_empty(), "{:?}", cx.remarks);
    assert_eq!(g.verify(Stage::Sketched), Ok(()));
    g
}

/// The directions as they are stored, `[DIM, FEATURES]`, times the root of the scale.
fn directions(g: &Graph) -> Vec<f64> {
    let random = g.order().into_iter().filter(|n| g.node(*n).origin.part == Some(Part::Random));
    let mut tensors = random.filter_map(|n| g.constant(n.into())).map(|c| c.tensor().clone());
    floats(&tensors.find(|t| t.shape() == [DIM, FEATURES]).unwrap())
}

fn operands(length: usize, mask: bool) -> Vec<(&'static str, Tensor)> {
    let of = |width, stream| random(&[2, 2, length, width], stream);
    let mut all = vec![("q", of(DIM, 1)), ("k", of(DIM, 2)), ("v", of(3, 3))];
    if mask {
        // The last three keys of the second sample are hidden.
        let hidden =
            |at: usize| if at >= length && at % length + 3 >= length { -1e9 } else { 0.1 * (at % 5) as f64 };
        let numbers: Vec<f64> = (0..2 * length).map(hidden).collect();
        all.push(("m", Tensor::from_slice(&[2, 1, 1, length], &numbers).unwrap()));
    }
    all
}

/// Exponentials of scores where keys are read one by one, products of features where they are not.
fn by_formula(s: &LocalSettings, w: &[f64], inputs: &[(&str, Tensor)], causal: bool) -> Vec<f64> {
    let values: Vec<Vec<f64>> = inputs.iter().map(|(_, t)| floats(t)).collect();
    let length = inputs[0].1.shape()[2];
    let mut out = Vec::new();
    for head in 0..4 {
        let row = |i: usize, at: usize, width: usize| &values[i][(head * length + at) * width..][..width];
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mask = |j: usize| values.get(3).map_or(0.0, |m| m[head / 2 * length + j]);
        let feature = |x: &[f64], f: usize| {
            let along: f64 = (0..DIM).map(|d| x[d] * w[d * FEATURES + f]).sum();
            (along - SCALE / 2.0 * product(x, x)).exp()
        };
        for i in 0..length {
            let (q, block) = (row(0, i, DIM), i / s.window);
            let weight = |j: usize| {
                let k = row(1, j, DIM);
                let near = (j / s.window).abs_diff(block) <= 1 || j < s.global;
                match near || (i < s.global && !causal) {
                    _ if causal && j > i => 0.0,
                    true => (SCALE * product(q, k) + mask(j)).exp(),
                    false => {
                        let sum: f64 = (0..FEATURES).map(|f| feature(q, f) * feature(k, f)).sum();
                        sum / FEATURES as f64 * mask(j).exp()
                    }
                }
            };
            let weights: Vec<f64> = (0..length).map(weight).collect();
            let total: f64 = weights.iter().sum();
            out.extend(
                (0..3).map(|e| (0..length).map(|j| weights[j] * row(2, j, 3)[e]).sum::<f64>() / total),
            );
        }
    }
    out
}

fn run(g: &Graph, inputs: &[(&'static str, Tensor)]) -> Vec<f64> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    floats(&eval::run(g, &inputs).unwrap_or_else(|e| panic!("{e}\n{g}"))[0])
}

fn narrowed(inputs: &[(&'static str, Tensor)]) -> Vec<(&'static str, Tensor)> {
    inputs.iter().map(|(name, t)| (*name, narrow(t))).collect()
}

fn near(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < tolerance, "{what}: {f} for {e}");
    }
}

#[test]
fn the_rest_of_windows_follows_the_formula() {
    for (length, window, global) in [(24, 4, 0), (23, 4, 2), (12, 3, 1), (7, 8, 1), (17, 2, 0)] {
        for (causal, mask) in [(false, false), (true, false), (false, true), (true, true)] {
            let what =
                format!("{length} positions, window {window}, global {global}, causal {causal}, mask {mask}");
            let s = settings(window, global);
            let g = replaced(&attention(&length.to_string(), causal, mask), s.clone());
            let inputs = operands(length, mask);
            // Where there is one block nothing is left.
            let w = if length > window { directions(&g) } else { vec![0.0; DIM * FEATURES] };
            let expected = by_formula(&s, &w, &inputs, causal);
            // The logarithm of the number of features is an f32.
            near(&what, &run(&widened(&g), &inputs), &expected, 1e-7);
            near(&what, &run(&g, &narrowed(&inputs)), &expected, 1e-4);
            // A length that is open, and a file.
            let open = replaced(&attention("S", causal, mask), s.clone());
            near(&format!("{what}, open"), &run(&open, &narrowed(&inputs)), &expected, 1e-4);
            let again = import(&export(&open, &ExportOptions::of(&open)).unwrap()).unwrap();
            near(&format!("{what}, exported"), &run(&again, &narrowed(&inputs)), &expected, 1e-4);
        }
    }
}

#[test]
fn derivatives_of_windows_with_features_are_those_of_finite_differences() {
    for causal in [false, true] {
        let g = replaced(&attention("11", causal, false), settings(2, 1));
        check_by_differences("windows with features", &widened(&g), &operands(11, false), 3);
    }
}

/// Operations of programs, and bytes of what they hold, at lengths that double.
#[test]
fn no_part_grows_with_the_square_of_the_length() {
    let backend = margay_driver::backend::native();
    let growth = |settings: &LocalSettings| {
        let g = replaced(&attention("S", false, false), settings.clone());
        let of = |length: i64| {
            let binding = Binding::from([("S".into(), length)]);
            let bound = margay_driver::build::bind(&g, &binding, &*backend, &mut margay_driver::Dump::none())
                .unwrap();
            let cost = bound.cost();
            (cost.flops as f64, cost.bytes as f64)
        };
        let found = [4096, 8192, 16384].map(of);
        found.windows(2).map(|pair| (pair[1].0 / pair[0].0).max(pair[1].1 / pair[0].1)).fold(0.0, f64::max)
    };
    let features = growth(&settings(32, 0));
    assert!(features < 2.05, "{features}");
    let means = growth(&LocalSettings { summary: Some(LocalSummary::Means), features: 0, ..settings(32, 0) });
    assert!(means > 2.5, "{means}");
}

#[test]
fn numbers_of_features_are_checked() {
    let refused = |settings: LocalSettings| {
        let options = AttentionTraining { form: AttentionForm::Local(settings), seed: 3, modules: None };
        attention_for_training(&mut attention("16", false, false), &options, &mut Cx::default())
            .unwrap_err()
            .to_string()
    };
    let none = refused(LocalSettings { features: 0, ..settings(4, 0) });
    assert!(none.contains("0 features of the rest, expected 1 to 65536"), "{none}");
    let unread = refused(LocalSettings { summary: None, ..settings(4, 0) });
    assert!(unread.contains("7 features of the rest, expected 0 to 0"), "{unread}");
}
