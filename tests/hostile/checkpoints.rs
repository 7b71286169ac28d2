//! Checkpoints: training goes on from one, or says why not.

use std::cell::RefCell;
use std::path::Path;

use margay_driver::{Silent, backend};
use margay_ir::{NodeId, Op, text};
use margay_tensor::Tensor;
use margay_train::checkpoint::Checkpoint;
use margay_train::{
    Evaluation, FitOptions, Length, Optimizer, Schedule, Task, Tensors, TrainError, Trainer, TrainingStep,
    Update, fit,
};

use super::{Draw, bytes, words};

/// `mean((x w)²)`.
const GRAPH: &str = "graph @net(%x: f32[2]) -> (loss: f32) {
  %0 = const [1.5, 0.5] : f32[2]  // w
  %1 = mul %x, %0 : f32[2]  // scaled
  %2 = mul %1, %1 : f32[2]  // squared
  %3 = reduce %2 {kind = mean, axes = [0]} : f32  // mean
  return %3
}";

/// The greatest length of the header that `change` looks into.
const MOST_HEADER: usize = 1 << 20;

struct Rows;

impl Task for Rows {
    fn rows(&self) -> usize {
        4
    }

    fn batch(&mut self, _: &[usize]) -> Result<Tensors, TrainError> {
        Ok(vec![("x".into(), Tensor::from_slice(&[2], &[1f32, 2.0])?)])
    }

    fn evaluate(&mut self, parameters: &[(String, Tensor)]) -> Result<Evaluation, TrainError> {
        let first =
            parameters.first().and_then(|(_, t)| Some(f64::from(*t.as_slice::<f32>().ok()?.first()?)));
        Ok(Evaluation { error: first.unwrap_or(f64::INFINITY), measures: Vec::new() })
    }
}

/// A trainer, and its states at first.
struct Begun {
    trainer: Trainer,
    states: Tensors,
}

fn begin() -> Begun {
    let g = text::parse(GRAPH, &|_, _| None).unwrap_or_else(|e| panic!("{e}"));
    let weight: Vec<NodeId> = g.order().into_iter().filter(|n| matches!(g.op(*n), Op::Const(_))).collect();
    let update = Update {
        optimizer: Optimizer::ADAM,
        learning_rate: 0.1,
        schedule: Schedule::Cosine { warm_up: 0.5, floor: 0.0 },
        clip: None,
    };
    let step = TrainingStep::new(&g, &weight, &|g| Ok(g.outputs()[0].value), &update);
    let step = step.unwrap_or_else(|e| panic!("{e}"));
    let example = Rows.batch(&[]).unwrap_or_else(|e| panic!("{e}"));
    let trainer = Trainer::new(&step, &example, &backend::native(), 1).unwrap_or_else(|e| panic!("{e}"));
    let states = trainer.states().unwrap_or_else(|e| panic!("{e}"));
    Begun { trainer, states }
}

fn options(path: &Path, steps: u64, resume: bool) -> FitOptions {
    FitOptions {
        length: Length::Steps(steps),
        batch: 2,
        evaluations: 2,
        checkpoint: Some(path.to_path_buf()),
        checkpoint_seconds: 0.0,
        resume,
        ..FitOptions::default()
    }
}

/// Accepts what training can go on from, and goes on for at most some steps.
pub(super) fn run(bytes: &[u8]) -> bool {
    thread_local! {
        static BEGUN: RefCell<Option<(Begun, tempfile::TempDir)>> = const { RefCell::new(None) };
    }
    BEGUN.with_borrow_mut(|begun| {
        let fresh = || (begin(), tempfile::tempdir().unwrap_or_else(|e| panic!("{e}")));
        let (Begun { trainer, states }, folder) = begun.get_or_insert_with(fresh);
        let path = folder.path().join("checkpoint");
        std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("{e}"));
        let Ok(read) = Checkpoint::read(&path, &Vec::new()) else { return false };
        let again = folder.path().join("again");
        read.write(&again).unwrap_or_else(|e| panic!("what was read is not written: {e}"));
        let same = Checkpoint::read(&again, &Vec::new()).unwrap_or_else(|e| panic!("{e}"));
        let parts = |c: &Checkpoint| {
            let all = c.states.iter().chain(&c.best);
            let bytes: Vec<(String, Vec<u8>)> = all.map(|(n, t)| (n.clone(), t.bytes().to_vec())).collect();
            (format!("{:?}", c.record), bytes)
        };
        assert_eq!(parts(&same), parts(&read), "what is written is read as something else");
        trainer.restore(states).unwrap_or_else(|e| panic!("{e}"));
        let fitted = fit(trainer, &mut Rows, &options(&path, 6, true), &mut Silent);
        fitted.is_ok_and(|fitted| {
            fitted.best().step <= fitted.history.iter().map(|p| p.step).max().unwrap_or(0)
        })
    })
}

/// Checkpoints after none and after some steps.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let one = |steps: u64| {
        let path = folder.path().join(steps.to_string());
        let mut begun = begin();
        let fitted = fit(&mut begun.trainer, &mut Rows, &options(&path, steps, false), &mut Silent);
        fitted.unwrap_or_else(|e| panic!("{e}"));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{e}"))
    };
    [1, 2, 5].map(one).into()
}

/// Changes words of the header, whose length is put right, or any bytes.
pub(super) fn change(whole: &[u8], draw: &mut Draw) -> Vec<u8> {
    const WORDS: [&str; 10] =
        ["F32", "F64", "I64", "BOOL", "state.step", "best.w", "-1", "18446744073709551615", "1e300", "null"];
    let header = || {
        let (length, rest) = whole.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|n| *n < MOST_HEADER)?;
        rest.split_at_checked(length)
    };
    let Some((header, data)) = header().filter(|_| !draw.chance(4)) else {
        return bytes::change(whole, draw);
    };
    let header = words::change(header, draw, &WORDS);
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}
