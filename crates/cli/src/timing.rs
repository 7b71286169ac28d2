//! Timing models against one another.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use margay_artifact::StepNote;
use serde::Serialize;

use crate::error::Failure;
use crate::feed::Chunk;
use crate::model::{Model, borrowed};

/// Times of one model, in milliseconds for all chunks together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) median_ms: f64,
    pub(crate) min_ms: f64,
}

/// Rounds at least, so that a median means something.
const MIN_ROUNDS: usize = 5;

/// Rounds at most, unless asked for.
const MAX_ROUNDS: usize = 200;

/// Rounds are added until they took this long.
const BUDGET: Duration = Duration::from_secs(3);

/// Runs all models in turn, round by round, so that whatever else the machine does falls on all of them alike; one
/// round before the clock starts. Returns the times and the number of rounds.
pub(crate) fn interleaved(
    models: &mut [(&mut Model, &[Chunk])],
    rounds: Option<usize>,
) -> Result<(Vec<Times>, usize), Failure> {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); models.len()];
    for (model, chunks) in models.iter_mut() {
        once(model, chunks)?;
    }
    let start = Instant::now();
    let mut done = 0;
    let more = |done: usize| match rounds {
        Some(rounds) => done < rounds,
        None => done < MIN_ROUNDS || done < MAX_ROUNDS && start.elapsed() < BUDGET,
    };
    while more(done) {
        for ((model, chunks), times) in models.iter_mut().zip(&mut times) {
            times.push(once(model, chunks)?);
        }
        done += 1;
    }
    let summary = |mut all: Vec<f64>| Times {
        median_ms: median(&mut all),
        min_ms: all.iter().copied().fold(f64::INFINITY, f64::min),
    };
    Ok((times.into_iter().map(summary).collect(), done))
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    0.5 * (all[(all.len() - 1) / 2] + all[all.len() / 2])
}

/// The time of a step in a round, all chunks together.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StepTime {
    pub(crate) median_ms: f64,
    pub(crate) flops: u64,
    pub(crate) bytes: u64,
    pub(crate) work: String,
    pub(crate) label: String,
}

/// Where the time of a model goes. Chunks of several shapes run other steps: those of every shape are listed.
pub(crate) fn steps(model: &mut Model, chunks: &[Chunk], rounds: usize) -> Result<Vec<StepTime>, Failure> {
    let mut steps: Vec<(StepTime, Vec<f64>)> = Vec::new();
    let mut known: HashMap<(String, String), usize> = HashMap::new();
    for round in 0..rounds.max(1) {
        for chunk in chunks {
            let inputs = borrowed(&chunk.inputs);
            for (note, time) in model.session(&chunk.inputs)?.profile(&inputs)? {
                let StepNote { label, work, flops, bytes, .. } = note;
                let at = *known.entry((work.clone(), label.clone())).or_insert_with(|| {
                    steps.push((StepTime { median_ms: 0.0, flops: 0, bytes: 0, work, label }, Vec::new()));
                    steps.len() - 1
                });
                let (step, times) = &mut steps[at];
                times.resize(round + 1, 0.0);
                times[round] += time.as_secs_f64() * 1e3;
                if round == 0 {
                    (step.flops, step.bytes) = (step.flops + flops, step.bytes + bytes);
                }
            }
        }
    }
    let finished =
        steps.into_iter().map(|(step, mut times)| StepTime { median_ms: median(&mut times), ..step });
    Ok(finished.collect())
}

/// Milliseconds of the runs alone, without looking for sessions and without copies of the outputs.
fn once(model: &mut Model, chunks: &[Chunk]) -> Result<f64, Failure> {
    let mut seconds = 0.0;
    for chunk in chunks {
        let inputs = borrowed(&chunk.inputs);
        let session = model.session(&chunk.inputs)?;
        let start = Instant::now();
        session.run_in_place(&inputs)?;
        seconds += start.elapsed().as_secs_f64();
    }
    Ok(seconds * 1e3)
}
