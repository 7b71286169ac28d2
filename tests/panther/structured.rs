//! Derivatives of layers of several factors by their rows and factors, against finite differences.

use std::sync::Arc;

use margay_driver::{Runner, backend, build::jit};
use margay_ir::{Cx, Graph, NodeId, Op, Pass, eval};
use margay_onnx::{ExportOptions, export, import};
use margay_passes::sketch::{StructureStart, StructuredSettings, learned, read_plan};
use margay_passes::{ApplyPlan, make_trainable};
use margay_randnla::{Contents, Matrix};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::parse_with_random_constants;

use crate::{check_by_differences, floats, narrow, random, widened};

const LAYER: &str = "graph @layer(%x: f32[3, 12]) -> (y: f32[3, 12]) {
  %0 = const #w : f32[12, 12]  // fc.weight
  %1 = matmul %x, %0 : f32[3, 12]  // fc
  return %1
}";

/// The layer in a form.
fn replaced(choice: &str) -> Graph {
    replaced_in(parse_with_random_constants(LAYER).0, choice)
}

fn replaced_in(mut g: Graph, choice: &str) -> Graph {
    let head = "version = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0";
    let plan = read_plan(&format!("[plan]\n{head}\n[modules]\nfc = {{ {choice} }}\n")).unwrap();
    ApplyPlan::of(&plan).run(&mut g, &mut Cx::default()).unwrap();
    g
}

/// The constants of a graph that are numbers: all factors, but for positions.
fn constants(g: &Graph) -> Vec<NodeId> {
    let numbers = |n: &NodeId| matches!(g.op(*n), Op::Const(c) if c.payload.tensor().dtype() == DType::F32);
    g.order().into_iter().filter(numbers).collect()
}

/// Structures of 12 x 12 that have every kind of factor, in blocks and transposed too, with how many tensors of numbers they store.
const FORMS: &[(&str, usize)] = &[
    ("12x12'", 1),
    ("12x2 · 2x12 + sparse(12x12, 2) + diag(12)", 4),
    ("(3x4 ⊗ 4x3) + select(12x5) · 5x12", 3),
    ("12x5 · select(12x5)'", 1),
    ("sparse(12x12, 3)'", 1),
    ("circulant(12) · toeplitz(12x12)", 2),
    ("circulant(12)' + toeplitz(12x12)'", 2),
    ("blocks(3, 4x2 · 2x4) · shuffle(3x4) · blocks(4, circulant(3) + toeplitz(3x3)')", 4),
    ("blocks(2, sparse(6x6, 2) + sparse(6x6, 2)')", 2),
    ("blocks(3, select(4x2) · 2x2 · select(4x2)') + blocks(4, diag(3))'", 2),
    ("(2x3 ⊗ 3x2 ⊗ 2x2) · (I(2) ⊗ 6x6)", 4),
    ("blocks(2, blocks(3, 2x2)' ⊗ I(1)) · ((4x3 · 3x4) ⊗ diag(3))", 4),
    ("(6x2 ⊗ (2x1 + 2x1)) · 2x12", 4),
];

#[test]
fn derivatives_are_those_of_finite_differences() {
    for (choice, factors) in [
        ("scheme = \"lowrank-diag\", rank = 2", 3),
        ("scheme = \"tt\", inputs = [2, 3, 2], outputs = [3, 2, 2], rank = 3", 3),
        ("scheme = \"tt\", inputs = [4, 3], outputs = [2, 6], rank = 2", 2),
        ("scheme = \"kronecker\", block = [3, 4], terms = 2", 2),
        ("scheme = \"monarch\", blocks = [3, 4]", 2),
        ("scheme = \"lowrank\", rank = 3", 2),
        ("scheme = \"interpolative\", rank = 3", 2),
        ("scheme = \"lowrank-sparse\", rank = 3, inputs = 2", 3),
        ("scheme = \"lowrank-sparse\", rank = 3, entries = 2", 3),
    ] {
        derivatives_by_differences(choice, factors);
    }
    for (form, factors) in FORMS {
        derivatives_by_differences(&format!("scheme = \"structured\", form = \"{form}\""), *factors);
    }
}

fn derivatives_by_differences(choice: &str, factors: usize) {
    {
        let mut g = widened(&replaced(choice));
        let of: Vec<NodeId> = g
            .order()
            .into_iter()
            .filter(|n| matches!(g.op(*n), Op::Const(c) if c.payload.tensor().dtype() == DType::F64))
            .collect();
        make_trainable(&mut g, &of).unwrap();
        let inputs: Vec<(&'static str, Tensor)> = g
            .inputs()
            .iter()
            .enumerate()
            .map(|(i, n)| {
                let name: &'static str = g.node(*n).origin.name().to_owned().leak();
                (name, random(&g.ty((*n).into()).extents().unwrap(), i as u64))
            })
            .collect();
        assert_eq!(inputs.len(), 1 + factors, "{choice}");
        check_by_differences(choice, &g, &inputs, 1 + factors);
    }
}

/// What training moves by itself are the factors, all of them.
#[test]
fn factors_are_what_learns() {
    for choice in [
        "scheme = \"lowrank-diag\", rank = 2",
        "scheme = \"tt\", inputs = [4, 3], outputs = [3, 4], rank = 2",
        "scheme = \"lowrank-sparse\", rank = 3, entries = 2",
        "scheme = \"structured\", form = \"(3x4 ⊗ 4x3) + select(12x5) · 5x12\"",
    ] {
        let g = replaced(choice);
        assert_eq!(learned(&g).len(), constants(&g).len(), "{choice}");
    }
}

/// What the constants of a structure hold, in the order of its text.
fn contents(g: &Graph) -> Vec<Contents> {
    let mut found: Vec<(usize, Contents)> = Vec::new();
    for n in g.order() {
        let Op::Const(c) = g.op(n) else { continue };
        let (key, tensor) = (c.payload.key().to_string(), c.payload.tensor());
        let number = key.strip_prefix("structured.factor").and_then(|rest| rest.split('(').next()).unwrap();
        found.push((
            number.parse().unwrap(),
            match tensor.to_vec::<i64>() {
                Ok(positions) => Contents::Positions(positions.into_iter().map(|p| p as usize).collect()),
                Err(_) => Contents::Numbers(floats(tensor)),
            },
        ));
    }
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, contents)| contents).collect()
}

/// Nodes, compiled code of every back end and the exported model compute the product with the matrix that the structure stands for.
#[test]
fn structures_are_computed_as_the_matrices_they_stand_for() {
    let text = LAYER.replace("f32[3, 12]", "f32[N, 3, 12]");
    let x = narrow(&random(&[4, 3, 12], 5));
    let rows = Matrix::from_row_major_f64(12, 12, &floats(&x)).unwrap();
    for (form, _) in FORMS {
        for start in ["fitted", "random"] {
            let choice = format!("scheme = \"structured\", form = \"{form}\", start = \"{start}\"");
            let g = replaced_in(parse_with_random_constants(&text).0, &choice);
            let settings = StructuredSettings { form: form.to_string(), start: StructureStart::Fitted };
            let structure = settings.structure().unwrap();
            let expected = structure.apply(&contents(&g), &rows).unwrap().to_row_major_f64();
            let most = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
            let close = |how: &str, found: &Tensor| {
                assert_eq!(found.shape(), [4, 3, 12], "{form}");
                for (found, expected) in floats(found).iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-5 * most, "{form} {how}: {found} {expected}\n{g}");
                }
            };
            close("by the reference", &eval::run(&g, &[("x", &x)]).unwrap()[0]);
            for backend in backend::supported() {
                let mut runner = Runner::new(g.clone(), &Arc::clone(&backend), 1);
                close("compiled", &runner.run(&[("x".to_string(), x.clone())]).unwrap()[0].1);
            }
            let model = export(&g, &ExportOptions::default()).unwrap_or_else(|e| panic!("{form}: {e}\n{g}"));
            let read = import(&model).unwrap_or_else(|e| panic!("{form}: {e}"));
            close("exported", &eval::run(&read, &[("x", &x)]).unwrap()[0]);
        }
    }
}

/// Memory of large layers, compiled: a small part of what the weight takes, whatever stands in for it.
#[test]
fn structures_never_make_the_weight() {
    const SIZE: usize = 2048;
    let layer = format!(
        "graph @layer(%x: f32[4, {SIZE}]) -> (y: f32[4, {SIZE}]) {{
  %0 = const #w : f32[{SIZE}, {SIZE}]  // fc.weight
  %1 = matmul %x, %0 : f32[4, {SIZE}]  // fc
  return %1
}}"
    );
    let dense = parse_with_random_constants(&layer).0;
    let x = narrow(&random(&[4, SIZE], 1));
    for form in [
        "64x64 ⊗ 32x32",
        "blocks(32, 64x64) · shuffle(32x64) · blocks(64, 32x32)",
        "2048x8 · 8x2048 + sparse(2048x2048, 2) + diag(2048)",
        "2048x8 · 8x2048 + select(2048x16) · 16x2048",
        "I(32) ⊗ toeplitz(64x64)",
    ] {
        let choice = format!("scheme = \"structured\", form = \"{form}\", start = \"random\"");
        let g = replaced_in(dense.clone(), &choice);
        let executable =
            jit(&g, &Binding::new(), &*backend::native()).unwrap_or_else(|e| panic!("{form}: {e}"));
        let mut session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap();
        let y = session.run(&[("x", &x)]).unwrap().remove(0).1;
        assert!(floats(&y).iter().any(|y| *y != 0.0), "{form}");
        let (peak, weight) = (session.peak_bytes() + executable.weights_bytes(), 4 * SIZE * SIZE);
        assert!(peak < weight / 8, "{form}: {peak} of {weight} bytes");
    }
}

#[test]
fn what_is_no_form_of_the_weight_is_refused() {
    let refused = |choice: &str| {
        let head = "version = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0";
        let plan = read_plan(&format!("[plan]\n{head}\n[modules]\nfc = {{ {choice} }}\n"));
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return error.to_string(),
        };
        let mut g = parse_with_random_constants(LAYER).0;
        let mut cx = Cx::default();
        match ApplyPlan::of(&plan).run(&mut g, &mut cx) {
            Ok(_) => cx.remarks.iter().map(|r| r.message.clone()).collect(),
            Err(error) => error.to_string(),
        }
    };
    for (choice, why) in [
        ("scheme = \"structured\", form = \"12x11\"", "`12x11` is 12 x 11, and the weight 12 x 12"),
        (
            "scheme = \"structured\", form = \"12x2147483648 · 2147483648x2147483648 · 2147483648x12\"",
            "expected extents of at most 48 and at most 576 numbers for a weight of 12 x 12",
        ),
        (
            "scheme = \"structured\", form = \"select(2147483648x12)' · select(2147483648x12)\"",
            "expected extents of at most 48",
        ),
        ("scheme = \"structured\", form = \"12x\"", "expected a number, found the end"),
        ("scheme = \"structured\", form = \"shuffle(3x4)\"", "`shuffle(3x4)` holds no numbers"),
        ("scheme = \"lowrank-sparse\", rank = 2", "either `inputs` or `entries` is expected"),
        (
            "scheme = \"lowrank-sparse\", rank = 2, inputs = 13",
            "a number of inputs of 13 is not offered, expected 1 to 12",
        ),
    ] {
        let found = refused(choice);
        assert!(found.contains(why), "{choice}: {found}");
    }
}
