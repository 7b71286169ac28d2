//! What a goal means, on a small model most of which is no layer: budgets are of the whole model, and what is left out
//! is left out for the reason that is given.

use margay_driver::{CompileOptions, Compiled, DriverError, Dump, Goal, Samples, Silent, Source, compile};
use margay_testkit::{normal, parse_with_random_constants};

/// Two layers, and attention that takes about as long as they do and that no layer scheme makes faster.
fn source() -> Source {
    let (graph, _) = parse_with_random_constants(
        "graph @goals(%x: f32[N, 1, 96, 256]) -> (y: f32[N, 1, 96, 256]) {
           %0 = const #u : f32[256, 512]  // up.weight
           %1 = matmul %x, %0 : f32[N, 1, 96, 512]  // up
           %2 = tanh %1 : f32[N, 1, 96, 512]
           %3 = const #d : f32[512, 256]  // down.weight
           %4 = matmul %2, %3 : f32[N, 1, 96, 256]  // down
           %5 = attention %4, %x, %x {scale = 0.0625} : f32[N, 1, 96, 256]  // look
           return %5
         }",
    );
    Source::new(graph, "goals", &mut Dump::none()).unwrap()
}

fn samples() -> Samples {
    Samples::new(vec![("x".into(), normal(&[6, 1, 96, 256], 5, 0))]).unwrap()
}

fn compiled(goal: Goal) -> Result<Compiled, DriverError> {
    let options = CompileOptions {
        goal,
        dims: vec![("N".into(), vec![2])],
        target_cpu: "x86-64-v3".into(),
        predict_threads: 1,
        ..CompileOptions::default()
    };
    compile(&source(), Some(&samples()), &options, &Silent)
}

/// The predicted times of the model and of its layers, in milliseconds.
fn times(c: &Compiled) -> [f64; 4] {
    let sum = |of: fn(&margay_driver::ModuleReport) -> f64| c.report.modules.iter().map(of).sum::<f64>();
    let (before, after) = (c.report.predicted_ms_before, c.report.predicted_ms_after);
    [before, after, sum(|m| m.predicted_ms_before), sum(|m| m.predicted_ms_after)]
}

#[test]
fn a_time_budget_is_of_the_whole_model() {
    // With time enough for everything no error is made without need.
    let found = compiled(Goal::Seconds(1.0)).unwrap();
    assert!(found.report.modules.iter().all(|m| m.scheme == "dense"));
    let [dense, _, layers, _] = times(&found);
    let fixed = dense - layers;
    assert!(fixed > 0.05 * dense && layers > 0.05 * dense, "{fixed} of {dense} ms is fixed");
    // What cannot be had is refused with what can.
    let Err(DriverError::Budget { asked_ms, best_ms }) = compiled(Goal::Seconds(1e-9)) else {
        panic!("a nanosecond is enough")
    };
    assert_eq!(asked_ms, 1e-6);
    assert!(best_ms > fixed && best_ms < dense, "{best_ms}");
    for share in [0.05, 0.3, 0.6, 0.9] {
        let asked = best_ms + share * (dense - best_ms);
        let found = compiled(Goal::Seconds(asked * 1e-3)).unwrap();
        let [_, after, _, layers_after] = times(&found);
        assert!(after <= asked * (1.0 + 1e-9), "{asked} ms asked, {after} ms predicted");
        assert!((after - layers_after - fixed).abs() < 1e-6 * dense, "{after} {layers_after} {fixed}");
    }
}

#[test]
fn a_byte_budget_is_of_the_layers() {
    let dense = compiled(Goal::Dense).unwrap();
    let all = 4 * 2 * 256 * 512;
    assert_eq!((dense.report.bytes_before, dense.report.bytes_after), (all, all));
    let mut last = f64::INFINITY;
    for percent in [25, 50, 75, 100] {
        let found = compiled(Goal::Bytes(format!("{percent}%").parse().unwrap())).unwrap();
        let after = found.report.bytes_after;
        assert!(after <= all * percent / 100, "{percent}%: {after} of {all} bytes");
        let sum: u64 = found.report.modules.iter().map(|m| m.bytes_after).sum();
        assert_eq!(sum, after);
        let error = found.report.held_out.map_or(0.0, |e| e.relative_l2);
        assert!(error < last || error == 0.0, "{percent}%: {error} after {last}");
        last = error;
    }
    assert_eq!(last, 0.0, "everything may stay dense");
}
