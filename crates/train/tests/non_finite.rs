//! A loss that is not finite: where that began, and what a step leaves as it was then.

use margay_driver::backend;
use margay_ir::{NodeId, Op, text};
use margay_tensor::Tensor;
use margay_train::{NonFinite, Optimizer, Schedule, Trainer, TrainingStep, Update};

/// `x / log(x w)`, whose mean is the loss.
const GRAPH: &str = "graph @net(%x: f32[4]) -> (y: f32) {
  %0 = const 1.5 : f32  // w
  %1 = mul %x, %0 : f32[4]  // scaled
  %2 = log %1 : f32[4]  // logarithm
  %3 = div %x, %2 : f32[4]  // quotient
  %4 = exp %3 : f32[4]  // power
  %5 = sub %4, %4 : f32[4]  // nothing
  %6 = add %5, %3 : f32[4]  // both
  %7 = reduce %6 {kind = mean, axes = [0]} : f32  // mean
  return %7
}";

fn trainer() -> Trainer {
    let g = text::parse(GRAPH, &|_, _| None).unwrap_or_else(|e| panic!("{e}"));
    let weight: Vec<NodeId> = g.order().into_iter().filter(|n| matches!(g.op(*n), Op::Const(_))).collect();
    let update = Update {
        optimizer: Optimizer::ADAM,
        learning_rate: 0.1,
        schedule: Schedule::Constant { warm_up: 0.0 },
        clip: None,
    };
    let step = TrainingStep::new(&g, &weight, &|g| Ok(g.outputs()[0].value), &update);
    let step = step.unwrap_or_else(|e| panic!("{e}"));
    let example = batch([1.0, 2.0, 3.0, 4.0]);
    Trainer::new(&step, &example, &backend::native(), 1).unwrap_or_else(|e| panic!("{e}"))
}

fn batch(x: [f32; 4]) -> Vec<(String, Tensor)> {
    vec![("x".to_string(), Tensor::from_slice(&[4], &x).unwrap())]
}

fn found(x: [f32; 4]) -> Option<NonFinite> {
    trainer().first_non_finite(&batch(x)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_first_value_that_is_no_number_is_found() {
    assert_eq!(found([1.0, 2.0, 3.0, 4.0]), None);
    let of = |at: &str, nan, from: Option<&str>| NonFinite {
        at: at.to_string(),
        nan,
        from_infinite: from.map(str::to_string),
    };
    assert_eq!(found([1.0, -2.0, 3.0, 4.0]), Some(of("`logarithm` (log)", true, None)));
    assert_eq!(found([1.0, f32::NAN, 3.0, 4.0]), Some(of("input `x`", true, None)));
    // Large quotients: their powers are infinite, and differences of those are no numbers.
    let near_one = 0.666_67;
    assert_eq!(found([1.0, near_one, 3.0, 4.0]), Some(of("`nothing` (sub)", true, Some("`power` (exp)"))));
    // An infinity that a later value is no number for, where the quotient is 0.
    assert_eq!(
        found([1.0, f32::INFINITY, 3.0, 4.0]).map(|f| f.from_infinite),
        Some(Some("input `x`".into()))
    );
}

#[test]
fn a_step_without_a_loss_leaves_states_as_they_were() {
    let mut trainer = trainer();
    trainer.step(&batch([1.0, 2.0, 3.0, 4.0])).unwrap();
    let kept = |trainer: &Trainer| -> Vec<(String, Vec<u8>)> {
        let states = trainer.states().unwrap().into_iter().filter(|(name, _)| name != "step");
        states.map(|(name, t)| (name, t.bytes().to_vec())).collect()
    };
    let before = kept(&trainer);
    let result = trainer.step(&batch([1.0, -2.0, 3.0, 4.0])).unwrap();
    assert!(result.loss.is_nan());
    assert_eq!(kept(&trainer), before);
    let result = trainer.step(&batch([1.0, 2.0, 3.0, 4.0])).unwrap();
    assert!(result.loss.is_finite());
    assert_ne!(kept(&trainer), before);
}
