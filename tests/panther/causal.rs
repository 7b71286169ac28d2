//! Causal linear attention in chunks of positions: what is exported, what is read back, and derivatives of open lengths.

use margay_driver::{Runner, backend};
use margay_ir::{Graph, eval, text};
use margay_onnx::{ExportOptions, export, import};
use margay_passes::{BindDims, Pipeline};
use margay_tensor::{Binding, Tensor};
use margay_tests::derivatives;

use crate::{floats, narrow, random, widened};

/// One position; a position less than a chunk has, as many, and one more; several chunks.
const LENGTHS: [usize; 5] = [1, 63, 64, 65, 200];

/// Causal linear attention by features that are positive.
fn causal(length: &str) -> Graph {
    let source = format!(
        "graph @causal(%q: f32[B, 2, {length}, 6], %k: f32[B, 2, {length}, 6], %v: f32[B, 2, {length}, 3]) -> (y: f32[B, 2, {length}, 3]) {{
           %0 = abs %q : f32[B, 2, {length}, 6]
           %1 = abs %k : f32[B, 2, {length}, 6]
           %2 = linear_attention %0, %1, %v {{causal = true, epsilon = 0.5}} : f32[B, 2, {length}, 3]  // att
           return %2
         }}"
    );
    text::parse(&source, &|_, _| None).unwrap_or_else(|e| panic!("{e}"))
}

fn operands(length: usize) -> Vec<(&'static str, Tensor)> {
    let widths = [("q", 6), ("k", 6), ("v", 3)].into_iter().zip(1..);
    widths.map(|((name, width), stream)| (name, random(&[2, 2, length, width], stream))).collect()
}

fn run(g: &Graph, inputs: &[(&str, Tensor)]) -> Vec<f64> {
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    floats(&eval::run(g, &given).unwrap_or_else(|e| panic!("{e}\n{g}"))[0])
}

/// Whether no value of a graph has a number for each pair of positions.
fn is_linear(g: &Graph, length: &str) -> bool {
    !g.to_string().contains(&format!("{length}, {length}]"))
}

fn assert_recognized(g: &Graph, length: &str) -> Graph {
    let mut g = g.clone();
    Pipeline::canonicalize().run(&mut g, &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
    let (found, batch) = (g.to_string(), &g.ty(g.outputs()[0].value).shape[0]);
    let result = format!("{{causal = true, epsilon = 0.5}} : f32[{batch}, 2, {length}, 3]");
    assert!(found.contains("= linear_attention ") && found.contains(&result), "{found}");
    assert!(is_linear(&g, length), "{found}");
    g
}

/// What is exported has chunks where there may be more than one, with a known length and an open one, and is one operator when it is
/// read back. So it is if the length gets its value before.
#[test]
fn causal_features_are_linear_when_they_are_read_back() {
    for length in ["S", "1", "40", "64", "65", "128", "200"] {
        let g = causal(length);
        let written = import(&export(&g, &ExportOptions::of(&g)).unwrap()).unwrap();
        let known: Option<usize> = length.parse().ok();
        assert_eq!(is_linear(&written, length), known.is_none_or(|n| n > 64), "{written}");
        let again = assert_recognized(&written, length);
        for positions in known.map_or_else(|| LENGTHS.to_vec(), |n| vec![n]) {
            let inputs: Vec<_> = operands(positions).into_iter().map(|(n, t)| (n, narrow(&t))).collect();
            let expected = run(&g, &inputs);
            let binding = Binding::from([("B".into(), 2), ("S".into(), positions as i64)]);
            let bound = BindDims { binding }.bound(&written).unwrap();
            let bound = assert_recognized(&bound, &positions.to_string());
            for (how, found) in [("written", &written), ("again", &again), ("bound", &bound)] {
                for (found, expected) in run(found, &inputs).into_iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-5, "{how} {positions}: {found} for {expected}");
                }
            }
        }
    }
}

/// In every float type, of which those of 16 bits sum chunks up in 32.
#[test]
fn chunks_of_other_types_are_read_back() {
    for (ty, tolerance) in [("f64", 1e-12), ("f16", 1e-2)] {
        let g = text::parse(&causal("S").to_string().replace("f32", ty), &|_, _| None).unwrap();
        let written = import(&export(&g, &ExportOptions::of(&g)).unwrap()).unwrap();
        let mut again = written.clone();
        Pipeline::canonicalize().run(&mut again, &mut |_| ()).unwrap();
        assert!(again.to_string().contains("= linear_attention "), "{again}");
        let dtype = g.ty(g.outputs()[0].value).dtype;
        let typed =
            |t: &Tensor| margay_ir::ops::Numbers::of(t).unwrap().into_tensor(dtype, t.shape()).unwrap();
        let inputs: Vec<_> = operands(150).into_iter().map(|(name, t)| (name, typed(&t))).collect();
        let expected = run(&g, &inputs);
        for found in [&written, &again] {
            for (found, expected) in run(found, &inputs).into_iter().zip(&expected) {
                assert!((found - expected).abs() < tolerance, "{ty}: {found} for {expected}");
            }
        }
    }
}

/// Derivatives of an open length: by the reference those of a known one, compiled, and as the model that is exported. None of them
/// has a number for each pair of positions or of chunks.
#[test]
fn derivatives_of_causal_features_take_open_lengths() {
    let of = |g: &Graph| derivatives(g, &g.inputs()[..3].iter().map(|n| (*n).into()).collect::<Vec<_>>());
    let open = of(&causal("S"));
    assert!(is_linear(&open, "S") && is_linear(&open, "floordiv(S + 63, 64)"), "{open}");
    let read = import(&export(&open, &ExportOptions::of(&open)).unwrap()).unwrap();
    let wide = widened(&open);
    let mut runner = Runner::new(open, &backend::native(), 1);
    for length in LENGTHS {
        let mut inputs = operands(length);
        inputs.push(("dy", random(&[2, 2, length, 3], 7)));
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
        let expected = eval::run(&wide, &given).unwrap();
        let known = eval::run(&widened(&of(&causal(&length.to_string()))), &given).unwrap();
        let narrow: Vec<(String, Tensor)> =
            inputs.iter().map(|(name, t)| (name.to_string(), narrow(t))).collect();
        let given: Vec<(&str, &Tensor)> = narrow.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let exported = eval::run(&read, &given).unwrap();
        let compiled: Vec<Tensor> = runner.run(&narrow).unwrap().into_iter().map(|(_, t)| t).collect();
        for (how, found, tolerance) in
            [("known", known, 1e-12), ("exported", exported, 1e-4), ("compiled", compiled, 1e-4)]
        {
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let expected = floats(expected);
                let scale = expected.iter().fold(1e-3f64, |m, e| m.max(e.abs()));
                for (f, e) in floats(found).iter().zip(&expected) {
                    assert!((f - e).abs() <= tolerance * scale, "{how} {length}, d{i}: {f} for {e}");
                }
            }
        }
    }
}
