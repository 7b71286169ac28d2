//! The operator `sketch`: its entries are those of `margay-randnla`, back ends run it without its matrix, and it is exported as ordinary
//! operators.

use margay_driver::{Dump, backend, build};
use margay_ir::ops::{Sketch, SketchLaw};
use margay_ir::{Graph, Origin, TensorType, eval};
use margay_onnx::{Attribute, ExportOptions, Model, OnnxDim, OnnxGraph, OnnxNode, OnnxValue, export, import};
use margay_randnla::{Distribution, Law};
use margay_tensor::{Binding, DType};

use crate::{check_by_differences, floats, narrow, random};

const LAWS: [(SketchLaw, fn() -> Law); 6] = [
    (SketchLaw::Gaussian, || Law::Dense(Distribution::Gaussian)),
    (SketchLaw::Uniform, || Law::Dense(Distribution::Uniform)),
    (SketchLaw::Rademacher, || Law::Dense(Distribution::Sign)),
    (SketchLaw::Sjlt(1), || Law::Sjlt { nonzeros: 1 }),
    (SketchLaw::Sjlt(4), || Law::Sjlt { nonzeros: 4 }),
    (SketchLaw::Srht, || Law::Srht),
];

fn graph(op: &Sketch, dtype: DType, vectors: usize) -> Graph {
    let mut g = Graph::new("sketch");
    let from = if op.adjoint { op.rows } else { op.columns };
    let x = g.add_input("x", TensorType::known(dtype, &[vectors, from]));
    let y = g.add(op.clone(), &[x], Origin::named("s")).unwrap();
    g.add_output("y", y);
    g
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect()
}

#[test]
fn entries_are_those_of_sketches_bit_by_bit() {
    for (law, named) in LAWS {
        for (rows, columns) in [(7, 19), (16, 64), (4, 33)] {
            let matrix = margay_randnla::Sketch::new(named(), rows, columns, 11, 1 << 40).unwrap();
            let op = Sketch { law, rows, columns, seed: 11, stream: 1 << 40, adjoint: false };
            let wide: Vec<f64> = matrix.to_matrix::<f64>().to_row_major_f64();
            let single = matrix.to_matrix::<f32>();
            let narrow: Vec<f64> =
                (0..rows * columns).map(|at| f64::from(single.at(at / columns, at % columns))).collect();
            for (dtype, entries) in [(DType::F64, wide), (DType::F32, narrow)] {
                for adjoint in [false, true] {
                    let op = Sketch { adjoint, ..op.clone() };
                    let n = if adjoint { rows } else { columns };
                    let one =
                        margay_ir::ops::Numbers::Float(identity(n)).into_tensor(dtype, &[n, n]).unwrap();
                    let found = floats(&eval::run(&graph(&op, dtype, n), &[("x", &one)]).unwrap()[0]);
                    for (at, found) in found.into_iter().enumerate() {
                        let (i, j) =
                            if adjoint { (at / columns, at % columns) } else { (at % rows, at / rows) };
                        assert_eq!(found, entries[i * columns + j], "{law:?} of {dtype} at {i}, {j}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_adjoint_is_the_derivative() {
    for (law, _) in LAWS {
        for adjoint in [false, true] {
            let op = Sketch { law, rows: 6, columns: 19, seed: 3, stream: 1, adjoint };
            let x = random(&[3, if adjoint { 6 } else { 19 }], 2);
            check_by_differences(&format!("{op:?}"), &graph(&op, DType::F64, 3), &[("x", x)], 1);
        }
    }
}

#[test]
fn squared_norms_are_kept_on_average() {
    let (rows, columns, vectors) = (64, 300, 40);
    let x = random(&[vectors, columns], 3);
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
    for (law, _) in LAWS {
        let mut ratios = Vec::new();
        for seed in 0..16 {
            let op = Sketch { law, rows, columns, seed, stream: 2, adjoint: false };
            let y = floats(&eval::run(&graph(&op, DType::F64, vectors), &[("x", &x)]).unwrap()[0]);
            let pairs =
                y.chunks(rows).zip(floats(&x).chunks(columns).map(<[f64]>::to_vec).collect::<Vec<_>>());
            ratios.extend(pairs.map(|(y, x)| norm(y) / norm(&x)).collect::<Vec<_>>());
        }
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        let variance = ratios.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / ratios.len() as f64;
        // Vectors of one seed share a matrix: as many draws as seeds at the worst.
        assert!((mean - 1.0).abs() < 4.0 * (variance / 16.0).sqrt(), "{law:?}: {mean}");
        assert!(variance < 3.0 * 2.0 / rows as f64, "{law:?}: variance {variance}");
    }
}

#[test]
fn programs_do_not_hold_the_matrix() {
    let (rows, columns, vectors) = (256, 4096, 3);
    let backend = backend::native();
    for (law, _) in LAWS {
        for adjoint in [false, true] {
            let op = Sketch { law, rows, columns, seed: 5, stream: 9, adjoint };
            let g = graph(&op, DType::F32, vectors);
            let bound = build::bind(&g, &Binding::new(), &*backend, &mut Dump::none()).unwrap();
            let program = margay_lower::lower(&bound, &*backend).unwrap();
            let entry = (std::mem::size_of::<i64>() + std::mem::size_of::<f32>()) as u64;
            let most = match law {
                SketchLaw::Gaussian | SketchLaw::Uniform => 4 * (rows * columns) as u64,
                SketchLaw::Rademacher => 0,
                // Rows are padded to the longest.
                SketchLaw::Sjlt(k) => 2 * entry * (k * columns) as u64,
                SketchLaw::Srht => entry * (rows + 2 * columns) as u64,
            };
            assert!(program.constant_bytes() <= most, "{law:?}: {} of {most}", program.constant_bytes());
            let from = if adjoint { rows } else { columns };
            let x = narrow(&random(&[vectors, from], 8));
            let expected = floats(&eval::run(&g, &[("x", &x)]).unwrap()[0]);
            let executable = build::jit(&g, &Binding::new(), &*backend).unwrap();
            let mut session =
                margay_runtime::Session::new(&executable, margay_runtime::SessionOptions { threads: 2 })
                    .unwrap();
            let found = floats(&session.run(&[("x", &x)]).unwrap()[0].1);
            for (f, e) in found.iter().zip(&expected) {
                assert!((f - e).abs() < 1e-4, "{law:?}, adjoint {adjoint}: {f} for {e}");
            }
        }
    }
}

fn value(name: &str, dims: &[i64]) -> OnnxValue {
    let dims = dims.iter().map(|&d| if d < 0 { OnnxDim::Symbol("N".into()) } else { OnnxDim::Value(d) });
    OnnxValue { name: name.to_owned(), dtype: Some(DType::F32), narrow: None, dims: Some(dims.collect()) }
}

/// A file that has the operator of the domain `margay` along an axis.
fn file(attributes: &[(&str, Attribute)], dims: [i64; 3]) -> Model {
    let node = OnnxNode {
        name: "s".to_owned(),
        op_type: "Sketch".to_owned(),
        domain: "margay".to_owned(),
        inputs: vec!["x".to_owned()],
        outputs: vec!["y".to_owned()],
        attributes: attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
    };
    let y = OnnxValue { name: "y".to_owned(), dtype: None, narrow: None, dims: None };
    let graph = OnnxGraph {
        name: "file".to_owned(),
        nodes: vec![node],
        inputs: vec![value("x", &dims)],
        outputs: vec![y],
        ..OnnxGraph::default()
    };
    Model::new(17, graph)
}

#[test]
fn files_have_sketches_and_others_read_them() {
    let text = |t: &str| Attribute::String(t.to_owned());
    for (law, nonzeros) in [
        ("gaussian", None),
        ("uniform", None),
        ("rademacher", None),
        ("sjlt", Some(3)),
        ("countsketch", None),
        ("srht", None),
    ] {
        for axis in [-1, 1] {
            let mut attributes = vec![
                ("law", text(law)),
                ("rows", Attribute::Int(6)),
                ("seed", Attribute::Int(-4)),
                ("stream", Attribute::Int(2)),
                ("axis", Attribute::Int(axis)),
            ];
            attributes.extend(nonzeros.map(|k| ("nonzeros", Attribute::Int(k))));
            let g = import(&file(&attributes, [-1, 20, 20])).unwrap();
            assert!(g.to_string().contains(" = sketch "), "{g}");
            let written = export(&g, &ExportOptions::of(&g)).unwrap();
            assert!(written.graph.nodes.iter().all(|n| n.domain.is_empty()), "{law}");
            let again = import(&written).unwrap();
            let x = narrow(&random(&[2, 20, 20], 4));
            let run = |g: &Graph| eval::run(g, &[("x", &x)]).unwrap().swap_remove(0);
            let (found, expected) = (run(&again), run(&g));
            assert_eq!(found.shape(), if axis == 1 { [2, 6, 20] } else { [2, 20, 6] });
            for (f, e) in floats(&found).into_iter().zip(floats(&expected)) {
                assert!((f - e).abs() < 1e-5, "{law}: {f} for {e}");
            }
        }
    }
    let refused =
        |attributes: &[(&str, Attribute)]| import(&file(attributes, [2, 3, 20])).unwrap_err().to_string();
    assert!(refused(&[("law", text("srht"))]).contains("expected attribute `rows`, found none"));
    assert!(refused(&[("law", text("fourier")), ("rows", Attribute::Int(2))]).contains("found `fourier`"));
    assert!(refused(&[("law", text("sjlt")), ("rows", Attribute::Int(2))]).contains("`nonzeros`"));
    let many = [("law", text("sjlt")), ("rows", Attribute::Int(2)), ("nonzeros", Attribute::Int(3))];
    assert!(refused(&many).contains("3 entries in a column of 2 rows, expected 1 to 2"));
    let long = [("law", text("gaussian")), ("rows", Attribute::Int(1 << 60))];
    assert!(refused(&long).contains("over the limit of"));
    let lists =
        [("law", text("sjlt")), ("rows", Attribute::Int(1 << 25)), ("nonzeros", Attribute::Int(1 << 20))];
    assert!(refused(&lists).contains("over the limit of"));
}
