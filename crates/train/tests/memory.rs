//! What a training step takes of the machine, beside what was planned. A program of its own: nothing else may allocate.

use margay_driver::backend;
use margay_ir::ops::{Const, Gelu, MatMul};
use margay_ir::{Graph, Origin, Payload, TensorType, Value};
use margay_tensor::{DType, Tensor};
use margay_train::{Optimizer, Schedule, TrainError, Trainer, TrainingStep, Update, loss};

const ROWS: usize = 2048;
const WIDTH: usize = 768;
const LAYERS: usize = 6;

/// Bytes of this process that lie in memory; `None` where the system does not say.
fn resident_bytes() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split_whitespace().nth(1)?.parse::<usize>().ok()? * 4096)
}

fn objective(g: &mut Graph) -> Result<Value, TrainError> {
    let y = g.outputs()[0].value;
    let target = g.add_input("target", g.ty(y).clone());
    loss::mse(g, y, target, None)
}

#[test]
fn a_step_takes_what_was_planned() {
    let mut g = Graph::new("net");
    let mut x = g.add_input("x", TensorType::known(DType::F32, &[ROWS, WIDTH]));
    let mut parameters = Vec::new();
    let numbers: Vec<f32> =
        (0..WIDTH * WIDTH).map(|i| ((i * 7919) % 2003) as f32 / 30_000.0 - 0.033).collect();
    for i in 0..LAYERS {
        let shift = Tensor::from_slice(&[WIDTH, WIDTH], &numbers).unwrap();
        let w = g.add(Const { payload: Payload::new(shift) }, &[], Origin::named(&format!("w{i}"))).unwrap();
        parameters.push(w.node);
        x = g.add(MatMul, &[x, w], Origin::named(&format!("fc{i}"))).unwrap();
        x = g.add(Gelu { tanh: false }, &[x], Origin::named(&format!("act{i}"))).unwrap();
    }
    g.add_output("y", x);
    let update = Update {
        optimizer: Optimizer::ADAM,
        learning_rate: 1e-3,
        schedule: Schedule::Constant { warm_up: 0.0 },
        clip: Some(1.0),
    };
    let mut step = TrainingStep::new(&g, &parameters, &objective, &update).unwrap();
    let batch: Vec<(String, Tensor)> = ["x", "target"]
        .map(|name| {
            (
                name.to_string(),
                Tensor::from_slice(&[ROWS, WIDTH], &numbers.repeat(4)[..ROWS * WIDTH]).unwrap(),
            )
        })
        .to_vec();
    let mut found = Vec::new();
    for limit in [None, Some(40_000_000)] {
        step.max_saved_bytes = limit;
        let mut trainer = Trainer::new(&step, &batch, &backend::native(), 2).unwrap();
        let planned = trainer.memory();
        let Some(before) = resident_bytes() else {
            println!("skipped: the system does not say what a process takes");
            return;
        };
        assert!(trainer.step(&batch).unwrap().loss.is_finite());
        let taken = resident_bytes().unwrap() - before;
        println!("planned {planned:?}, the first step took {taken} bytes");
        // States lie in memory since they were set; arena, scratch and outputs come with the first step.
        let expected = planned.session_bytes - planned.state_bytes;
        let share = taken as f64 / expected as f64;
        assert!((0.9..1.1).contains(&share), "{taken} bytes, planned {expected}");
        assert!(planned.arena_bytes as f64 > 0.9 * expected as f64, "the arena is most of it: {planned:?}");
        found.push((planned.arena_bytes, planned.saved_bytes));
        assert!(trainer.step(&batch).unwrap().loss.is_finite());
        assert!(resident_bytes().unwrap() - before <= taken + 1_000_000, "the second step takes no more");
    }
    let [(all, saved), (less, kept)] = found[..] else { unreachable!("two runs") };
    assert!(saved < all as u64 && saved > 70_000_000 && kept <= 40_000_000, "{saved} and {kept} bytes kept");
    assert!(
        all - less > (saved - kept) as usize / 2,
        "the arena shrinks with what is kept: {less} of {all} bytes"
    );
}
