//! Random features that attention makes itself: compiled code against the graph of features by nodes, which `favor.rs` compares with
//! the formulas; memory; and graphs in which features stay nodes.

use margay_driver::{Backend, Dump, backend, build::bind, build::jit};
use margay_ir::{Graph, Op, eval};
use margay_loops::{Precision, Program, Work};
use margay_lower::lower;
use margay_onnx::{ExportOptions, export, import};
use margay_passes::sketch::{FavorSettings, FeatureDirections, FeatureKernel, HeadChoice};
use margay_passes::{Pipeline, gradients};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::parse_with_random_constants;

use crate::favor::with_features;
use crate::{floats, narrow, random};

/// Several spans of keys, and a last chunk that is short.
const LEN: usize = 300;
const WIDTHS: [usize; 2] = [8, 5];

/// Attention of `heads` heads of queries, read from rows in which heads lie beside each other.
fn attention(heads: usize, shared: usize, length: usize, causal: bool, mask: Option<&str>) -> Graph {
    let (input, operand) = match mask {
        Some(ty) => (format!(", %m: {ty}"), ", %m"),
        None => (String::new(), ""),
    };
    let [d, e] = WIDTHS;
    let text = format!(
        "graph @net(%q: f32[2, {length}, {heads}, {d}], %k: f32[2, {shared}, {length}, {d}], \
         %v: f32[2, {shared}, {length}, {e}]{input}) -> (y: f32[2, {length}, {heads}, {e}]) {{
           %0 = transpose %q {{perm = [0, 2, 1, 3]}} : f32[2, {heads}, {length}, {d}]
           %1 = attention %0, %k, %v{operand} {{scale = 0.25, causal = {causal}}} : f32[2, {heads}, {length}, {e}]  // att
           %2 = transpose %1 {{perm = [0, 2, 1, 3]}} : f32[2, {length}, {heads}, {e}]
           return %2
         }}"
    );
    parse_with_random_constants(&text).0
}

fn operands(heads: usize, shared: usize) -> Vec<(String, Tensor)> {
    let [d, e] = WIDTHS;
    let shapes = [[2, LEN, heads, d], [2, shared, LEN, d], [2, shared, LEN, e]];
    let operand = |(i, name): (usize, &str)| (name.to_owned(), narrow(&random(&shapes[i], 1 + i as u64)));
    ["q", "k", "v"].into_iter().enumerate().map(operand).collect()
}

fn bound(g: &Graph, backend: &dyn Backend) -> Graph {
    bind(g, &Binding::new(), backend, &mut Dump::none()).unwrap_or_else(|e| panic!("{e}\n{g}"))
}

fn count(g: &Graph, name: &str) -> usize {
    g.order().into_iter().filter(|n| g.op(*n).name() == name).count()
}

fn kinds() -> Vec<FavorSettings> {
    let softmax = FavorSettings::new(40);
    vec![
        softmax.clone(),
        FavorSettings { kernel: FeatureKernel::Relu, ..softmax.clone() },
        FavorSettings { directions: FeatureDirections::Independent, hyperbolic: true, ..softmax.clone() },
        FavorSettings { choice: HeadChoice::of(vec![1, 3]), ..softmax },
    ]
}

#[test]
fn compiled_attention_makes_its_features() {
    let masks: [Option<&[usize]>; 3] = [None, Some(&[2, 1, 1, LEN]), Some(&[LEN])];
    for (s, mask) in kinds().iter().flat_map(|s| masks.map(|mask| (s, mask))) {
        for (shared, causal) in [(4, false), (4, true), (2, false)] {
            let ty = mask.map(|shape| format!("f32{shape:?}"));
            let g = with_features(&attention(4, shared, LEN, causal, ty.as_deref()), s);
            let mut inputs = operands(4, shared);
            inputs.extend(mask.map(|shape| {
                // The last keys of the last sample are hidden.
                let len: usize = shape.iter().product();
                let number = |at: usize| if at + 70 >= len { -1e9 } else { 0.01 * (at % 50) as f32 };
                (
                    "m".to_owned(),
                    Tensor::from_slice(shape, &(0..len).map(number).collect::<Vec<f32>>()).unwrap(),
                )
            }));
            let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
            let expected = floats(&eval::run(&g, &given).unwrap()[0]);
            let what = format!("{s:?}, {shared} heads of keys, causal {causal}, {mask:?}");
            for backend in backend::supported() {
                let program = bound(&g, &*backend);
                let made = usize::from(backend.preferences().features_in_attention);
                assert_eq!(count(&program, "feature_attention"), made, "{what}: {program}");
                assert_eq!(count(&program, "linear_attention"), 1 - made, "{what}: {program}");
                let executable = jit(&g, &Binding::new(), &*backend).unwrap_or_else(|e| panic!("{e}"));
                let results = [1, 2].map(|threads| {
                    let mut session = Session::new(&executable, SessionOptions { threads }).unwrap();
                    session.run(&given).unwrap().swap_remove(0).1
                });
                assert_eq!(results[0], results[1], "{what}: bits with 1 and 2 threads");
                let found = floats(&results[0]);
                let far = found.iter().zip(&expected).position(|(f, e)| f.is_nan() || (f - e).abs() > 1e-4);
                let target = backend.target();
                assert_eq!(far, None, "{what} on {target}: {:?} for {:?}", &found[..4], &expected[..4]);
            }
        }
    }
}

fn program(length: usize, causal: bool, s: &FavorSettings) -> Program {
    let backend = backend::named("cpu", "x86-64-v4", Precision::F32).unwrap();
    let g = with_features(&attention(2, 2, length, causal, None), s);
    lower(&bound(&g, &*backend), &*backend).unwrap()
}

/// Sums of spans and panels of directions are all that is kept, where features would be 2 · 2 · 2 · 4 n M bytes.
#[test]
fn features_of_all_positions_are_nowhere_in_memory() {
    for kernel in [FeatureKernel::Softmax, FeatureKernel::Relu] {
        let s = FavorSettings { kernel, ..FavorSettings::new(256) };
        for causal in [false, true] {
            let [short, long] = [8192, 16384].map(|length| program(length, causal, &s));
            let calls = long.steps().filter(|(_, step)| matches!(step.work, Work::Call { .. })).count();
            // Heads lie beside each other in the output, which is a copy.
            assert_eq!((calls, long.steps().count()), (1, 2), "{long}");
            assert!(long.arena_bytes < 32 * 16384 * 256 / 16, "{} bytes", long.arena_bytes);
            assert!(long.arena_bytes as f64 <= 2.2 * short.arena_bytes as f64, "{}", long.arena_bytes);
        }
    }
}

/// What is exported are ordinary operators; read back, attention makes its features again.
#[test]
fn exported_features_are_recognized() {
    for s in &kinds()[..3] {
        let g = with_features(&attention(4, 4, LEN, false, Some("f32[2, 1, 1, 300]")), s);
        let mut again = import(&export(&g, &ExportOptions::default()).unwrap()).unwrap();
        Pipeline::canonicalize().run(&mut again, &mut |_| ()).unwrap();
        let program = bound(&again, &*backend::native());
        assert_eq!(count(&program, "feature_attention"), 1, "{s:?}: {program}");
    }
}

/// Derivatives read the features.
#[test]
fn features_of_a_step_are_nodes() {
    for s in kinds() {
        let mut g = with_features(&attention(4, 4, LEN, false, None), &s);
        let y = g.outputs()[0].value;
        let seed = g.add_input("dy", g.ty(y).clone());
        let by: Vec<_> = g.inputs()[..3].iter().map(|n| (*n).into()).collect();
        let found = gradients(&mut g, &[(y, seed)], &by).unwrap();
        found.into_iter().flatten().enumerate().for_each(|(i, v)| g.add_output(&format!("d{i}"), v));
        let program = bound(&g, &*backend::native());
        assert_eq!(count(&program, "feature_attention"), 0, "{s:?}: {program}");
        assert!(
            program.order().iter().any(|n| matches!(program.op(*n), Op::LinearAttention(_))),
            "{program}"
        );
    }
}
