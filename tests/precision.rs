//! Models with narrow constants, errors that are predicted, and plans that are refused, from the driver's options to results.

use std::collections::BTreeMap;

use margay_driver::{
    CompileOptions, Dump, Goal, Model, Progress, Report, Runner, Samples, Silent, backend, compile, open,
};
use margay_ir::eval;
use margay_loops::Precision;
use margay_plan::{Budget, Choice};
use margay_tensor::Tensor;
use margay_testkit::{Tolerance, assert_close, normal, parse_with_random_constants};

const D_IN: usize = 96;
const D_HIDDEN: usize = 160;

/// Two layers with a SiLU between them.
fn source() -> Model {
    let (graph, _) = parse_with_random_constants(
        "graph @layers(%x: f32[N, 96]) -> (y: f32[N, 33]) {
           %0 = const #u : f32[96, 160]  // up.weight
           %1 = matmul %x, %0 : f32[N, 160]  // up
           %2 = sigmoid %1 : f32[N, 160]  // act/Sigmoid
           %3 = mul %1, %2 : f32[N, 160]  // act
           %4 = const #d : f32[160, 33]  // down.weight
           %5 = matmul %3, %4 : f32[N, 33]  // down
           return %5
         }",
    );
    Model::new(graph, "layers", &mut Dump::none()).unwrap()
}

fn samples() -> Samples {
    Samples::new(vec![("x".into(), normal(&[24, D_IN], 5, 0))]).unwrap()
}

fn options(precision: Precision, goal: Goal) -> CompileOptions {
    CompileOptions { precision, goal, dims: vec![("N".into(), vec![24])], ..CompileOptions::default() }
}

fn report(precision: Precision, goal: Goal) -> Report {
    compile(&source(), Some(&samples()), &options(precision, goal), &Silent).unwrap().report
}

#[test]
fn the_error_of_a_precision_is_measured_and_its_bytes_are_counted() {
    // Columns fill panels of 32.
    let parameters = (D_IN * D_HIDDEN + D_HIDDEN * 64) as u64;
    for (precision, bytes, smallest, largest) in [
        (Precision::Bf16, 2 * parameters, 1e-4, 1e-2),
        (Precision::Int8, parameters + 4 * (D_HIDDEN as u64 + 64), 1e-3, 3e-2),
    ] {
        let report = report(precision, Goal::Dense);
        let error = report.held_out.unwrap().relative_l2;
        assert!((smallest..largest).contains(&error), "{precision:?}: {error}");
        assert_eq!((report.bytes_before, report.bytes_after), (4 * parameters, bytes));
        assert_eq!(report.precision, precision.name());
        assert_eq!(report.target_cpu, backend::native_for(precision).target());
    }
    assert!(report(Precision::F32, Goal::Dense).held_out.is_none());
}

#[test]
fn an_error_limit_counts_the_precision() {
    let report = report(Precision::Bf16, Goal::Error(0.5.into()));
    assert!(report.held_out.unwrap().relative_l2 <= 0.5);
    let strict = options(Precision::Bf16, Goal::Error(1e-5.into()));
    let error = compile(&source(), Some(&samples()), &strict, &Silent).err().unwrap().to_string();
    assert!(error.contains("in bf16 the relative error is") && error.contains("above 1.00e-5"), "{error}");
}

#[test]
fn an_artifact_carries_its_precision() {
    let folder = tempfile::tempdir().unwrap();
    for precision in [Precision::Bf16, Precision::Int8] {
        let compiled = compile(&source(), None, &options(precision, Goal::Dense), &Silent).unwrap();
        let path = folder.path().join(format!("{}.margay", precision.name()));
        compiled.write(&path, false, &mut Dump::none()).unwrap();
        let again = open(&path).unwrap().graph;
        let stored = format!(" stored {}  //", precision.storage(1));
        assert_eq!(again.to_string().matches(&stored).count(), 2, "{again}");
        assert_eq!(again.to_string(), compiled.graph.to_string());

        let x = normal(&[24, D_IN], 6, 0);
        let inputs = vec![("x".to_string(), x.clone())];
        let first = compiled.runner(1).run(&inputs).unwrap();
        let second = Runner::new(again, &backend::native_for(precision), 2).run(&inputs).unwrap();
        assert_eq!(first, second, "what was rounded once is rounded to itself");
        let expected: Vec<Tensor> = eval::run(&compiled.graph, &[("x", &x)]).unwrap();
        // The reference rounds the operand of the second layer from f64, the kernel from f32: it may fall to the
        // other side of a tie.
        let tolerance = match precision {
            Precision::Bf16 => Tolerance { relative: 2e-3, absolute: 2e-3 },
            _ => Tolerance::REDUCTION,
        };
        assert_close(precision.name(), &first[0].1, &expected[0], tolerance);
    }
}

/// A layer whose sketches show no error says nothing of how errors of a pair weigh that ends where it does.
#[test]
fn errors_of_pairs_weigh_by_what_they_do_to_the_outputs() {
    let (graph, _) = parse_with_random_constants(
        "graph @deficient(%x: f32[N, 64]) -> (y: f32[N, 8]) {
           %0 = const #u : f32[64, 256]  // up.weight
           %1 = matmul %x, %0 : f32[N, 256]  // up
           %2 = relu %1 : f32[N, 256]  // act
           %3 = const #a : f32[256, 1]  // a
           %4 = const #c : f32[1, 8]  // c
           %5 = matmul %3, %4 : f32[256, 8]  // down.weight
           %6 = matmul %2, %5 : f32[N, 8]  // down
           %7 = const 20000.0 : f32
           %8 = add %6, %7 : f32[N, 8]  // far
           return %8
         }",
    );
    let source = Model::new(graph, "deficient", &mut Dump::none()).unwrap();
    let samples = Samples::new(vec![("x".into(), normal(&[400, 64], 5, 0))]).unwrap();
    let goal = Goal::Bytes(Budget::Fraction(0.4));
    let report = compile(&source, Some(&samples), &options(Precision::F32, goal), &Silent).unwrap().report;
    let predicted: f64 = report.modules.iter().map(|m| m.output_error.unwrap().powi(2)).sum::<f64>().sqrt();
    let measured = report.held_out.unwrap().relative_l2;
    assert!(measured > 0.0 && (0.3..3.0).contains(&(predicted / measured)), "{predicted}, found {measured}");
}

/// Fails when something is measured.
struct NothingRuns;

impl Progress for NothingRuns {
    fn at(&self, what: &str, _: usize, _: usize) {
        panic!("{what}");
    }
}

/// All ranks of a plan that are not offered are told at once, before the model runs.
#[test]
fn all_mistakes_of_a_plan_are_told() {
    let base = options(Precision::F32, Goal::Bytes(Budget::Fraction(0.5)));
    let mut plan = compile(&source(), Some(&samples()), &base, &Silent).unwrap().plan;
    plan.sites.clear();
    for (site, rank) in [("up", 400), ("down", 34)] {
        plan.sites.insert(site.into(), Choice::new("lowrank", &BTreeMap::from([("rank", rank)])));
    }
    let options = CompileOptions { plan: Some(plan), ..base };
    let error = compile(&source(), Some(&samples()), &options, &NothingRuns).err().unwrap().to_string();
    let up = "plan: `up`: rank 400 is not offered, expected 1 to 96";
    let down = "plan: `down`: rank 34 is not offered, expected 1 to 33";
    assert_eq!(error, format!("{up}; {down}"));
}
