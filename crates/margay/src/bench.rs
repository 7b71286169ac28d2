//! Models against one another: time, bytes, and the error without which a time says nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use margay_artifact::StepNote;
use margay_driver::{Arrays, ErrorMeasure, ErrorScope, ErrorSum};
use serde::Serialize;

use crate::Error;
use crate::Predictor;
use crate::batches::{Chunk, chunks_of};
use crate::predictor::{borrowed, constant_bytes};
use crate::{Tolerance, compare_outputs};

/// What was measured of a model.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The outputs, for those who know what is right.
    pub outputs: Arrays,
    /// Times of one run, over all runs of all rounds, as the caller waits for it.
    pub times: RunTimes,
    /// The median time of one run by the clock of its device, in milliseconds, copies of inputs and outputs included; `None`
    /// on the processor.
    pub device_ms: Option<f64>,
    /// How often it runs in a second, from the median time of a run.
    pub runs_per_second: f64,
    /// How many times as fast as the first model it takes all inputs, from the median time of a run of each and the number of
    /// its runs.
    pub speed_up: f64,
    /// The median time of running all inputs once, in milliseconds: with whatever else the machine does in between.
    pub all_inputs_ms: f64,
    /// Bytes of all constants that its code reads.
    pub constant_bytes: u64,
    /// All memory that a run needs but for inputs: constants, code, intermediate results, scratch, outputs.
    pub peak_bytes: u64,
    /// The error of the floating point outputs against the first model; `None` where there are none.
    pub error: Option<ErrorMeasure>,
    /// How many elements of integer and boolean outputs differ from those of the first model.
    pub other_differences: u64,
    /// Predicted milliseconds of one run on as many threads; `None` where the graph is not at hand.
    pub predicted_ms: Option<f64>,
    /// Whether predicted times were compared with a machine of the class that the model is compiled for.
    pub prediction_is_measured: bool,
    /// Where the time goes, if asked for.
    pub steps: Option<Vec<StepTime>>,
    /// Into how many runs the inputs were cut.
    pub runs: usize,
}

/// Milliseconds of one run: quantiles by nearest rank.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct RunTimes {
    /// Half of the runs took no longer.
    pub median_ms: f64,
    /// 90% of the runs took no longer.
    pub p90_ms: f64,
    /// 99% of the runs took no longer.
    pub p99_ms: f64,
    /// The least.
    pub min_ms: f64,
}

impl RunTimes {
    /// Of some times, at least one.
    fn of(mut all: Vec<f64>) -> RunTimes {
        all.sort_unstable_by(f64::total_cmp);
        let rank = |share: f64| all[((share * all.len() as f64).ceil() as usize).clamp(1, all.len()) - 1];
        RunTimes {
            median_ms: median(&mut all.clone()),
            p90_ms: rank(0.9),
            p99_ms: rank(0.99),
            min_ms: all[0],
        }
    }
}

/// Rounds of all inputs before the clock starts.
pub const WARM_UP_ROUNDS: usize = 1;

/// How models are timed and compared.
#[derive(Clone, Debug, Default)]
pub struct BenchOptions {
    /// How often all models are run; `None` for about three seconds, 5 to 200 times.
    pub rounds: Option<usize>,
    /// Whether the time of every step is measured, too.
    pub steps: bool,
    /// What counts in errors.
    pub errors: ErrorScope,
    /// The text of a cost model that predicts times; without it that of the class each model is compiled for.
    pub cost_model: Option<String>,
}

/// Runs all models on the same inputs, interleaved. Returns what was measured of each and the number of rounds.
///
/// # Errors
/// Inputs that do not fit, and outputs that cannot be compared with those of the first model.
pub fn bench(
    models: &mut [Predictor],
    inputs: &Arrays,
    options: &BenchOptions,
) -> Result<(Vec<Measured>, usize), Error> {
    options.errors.check_inputs(inputs)?;
    let chunks = chunks_of(models, inputs)?;
    let mut found: Vec<Arrays> = Vec::new();
    for (model, chunks) in models.iter_mut().zip(&chunks) {
        found.push(model.run(chunks)?);
    }
    let reference = found.first().cloned().unwrap_or_default();
    let mut pairs: Vec<(&mut Predictor, &[Chunk])> =
        models.iter_mut().zip(&chunks).map(|(m, c)| (m, c.as_slice())).collect();
    let (times, rounds) = interleaved(&mut pairs, options.rounds)?;
    let all_runs_ms = |times: &Times, chunks: &[Chunk]| times.runs.median_ms * chunks.len() as f64;
    let first_ms = times.first().map_or(f64::NAN, |first| all_runs_ms(first, &chunks[0]));
    let mut measured = Vec::new();
    for (((model, chunks), times), outputs) in models.iter_mut().zip(&chunks).zip(times).zip(found) {
        let (error, other_differences) = differences(inputs, &reference, &outputs, &options.errors)?;
        let session = model.session(&chunks[0].inputs)?;
        let executable = session.executable();
        let constants = constant_bytes(executable);
        measured.push(Measured {
            outputs,
            times: times.runs,
            device_ms: times.device_ms,
            runs_per_second: 1e3 / times.runs.median_ms,
            speed_up: first_ms / all_runs_ms(&times, chunks),
            all_inputs_ms: times.all_inputs_ms,
            constant_bytes: constants,
            peak_bytes: constants + (executable.code_bytes() + session.peak_bytes()) as u64,
            error,
            other_differences,
            predicted_ms: model
                .predicted_ms(chunks, options.cost_model.as_deref())?
                .map(|all| all / chunks.len() as f64),
            prediction_is_measured: model.prediction_is_measured()?,
            steps: options.steps.then(|| steps(model, chunks, rounds)).transpose()?,
            runs: chunks.len(),
        });
    }
    Ok((measured, rounds))
}

/// The error of floating point outputs, and how many elements of others differ.
fn differences(
    inputs: &Arrays,
    reference: &Arrays,
    found: &Arrays,
    scope: &ErrorScope,
) -> Result<(Option<ErrorMeasure>, u64), Error> {
    let mut sum = ErrorSum::new(scope);
    let error = match reference.iter().any(|(_, t)| t.dtype().is_float()) {
        true => {
            sum.add(inputs, reference, found)?;
            Some(sum.measure())
        }
        false => None,
    };
    let others: Arrays = reference.iter().filter(|(_, t)| !t.dtype().is_float()).cloned().collect();
    let all = ErrorScope { outputs: Vec::new(), ..scope.clone() };
    let others = compare_outputs(inputs, &others, found, &all, Tolerance { rtol: 0.0, atol: 0.0 })?;
    Ok((error, others.iter().map(|o| o.past_tolerance as u64).sum()))
}

/// Times of one model.
#[derive(Clone, Copy, Debug)]
struct Times {
    runs: RunTimes,
    device_ms: Option<f64>,
    all_inputs_ms: f64,
}

/// Rounds at least, so that a median means something.
const MIN_ROUNDS: usize = 5;

/// Rounds at most, unless asked for.
const MAX_ROUNDS: usize = 200;

/// Rounds are added until they took this long.
const BUDGET: Duration = Duration::from_secs(3);

/// Runs all models in turn, round by round, so that whatever else the machine does falls on all of them alike. Returns the
/// times and the number of rounds.
fn interleaved(
    models: &mut [(&mut Predictor, &[Chunk])],
    rounds: Option<usize>,
) -> Result<(Vec<Times>, usize), Error> {
    // By model, by round, by run.
    let mut times: Vec<Vec<Vec<RunTime>>> = vec![Vec::new(); models.len()];
    for _ in 0..WARM_UP_ROUNDS {
        for (model, chunks) in models.iter_mut() {
            once(model, chunks)?;
        }
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
    let summary = |rounds: Vec<Vec<RunTime>>| {
        let mut sums: Vec<f64> = rounds.iter().map(|runs| runs.iter().map(|run| run.ms).sum()).collect();
        let all = || rounds.iter().flatten();
        let on_device: Option<Vec<f64>> = all().map(|run| run.device_ms).collect();
        Times {
            all_inputs_ms: median(&mut sums),
            runs: RunTimes::of(all().map(|run| run.ms).collect()),
            device_ms: on_device.map(|mut all| median(&mut all)),
        }
    };
    Ok((times.into_iter().map(summary).collect(), done))
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    0.5 * (all[(all.len() - 1) / 2] + all[all.len() / 2])
}

/// The time of a step in one run.
#[derive(Clone, Debug, Serialize)]
pub struct StepTime {
    /// The median over rounds.
    pub median_ms: f64,
    /// Multiplications and additions of its kernel call.
    pub flops: u64,
    /// Bytes it reads and writes.
    pub bytes: u64,
    /// The least time of these operations, on f32, and bytes by the data sheet of the device, which was compared with none; `None`
    /// on the processor.
    pub least_ms: Option<f64>,
    /// The share of a multiprocessor's warps that are there at once, at least, of the kernel that has fewest, by the data sheet of
    /// the device; `None` on the processor.
    pub occupancy: Option<f64>,
    /// What runs: a kernel call, or `loops`.
    pub work: String,
    /// The nodes it stands for.
    pub label: String,
}

/// Where the time of a model goes. Chunks of several shapes run other steps: those of every shape are listed.
fn steps(model: &mut Predictor, chunks: &[Chunk], rounds: usize) -> Result<Vec<StepTime>, Error> {
    let mut steps: Vec<(StepTime, Vec<f64>)> = Vec::new();
    let mut known: HashMap<(String, String), usize> = HashMap::new();
    for round in 0..rounds.max(1) {
        for chunk in chunks {
            let inputs = borrowed(&chunk.inputs);
            for (note, time) in model.session(&chunk.inputs)?.profile(&inputs)? {
                let StepNote { label, work, flops, bytes, .. } = note;
                let at = *known.entry((work.clone(), label.clone())).or_insert_with(|| {
                    steps.push((
                        StepTime {
                            median_ms: 0.0,
                            flops: 0,
                            bytes: 0,
                            least_ms: None,
                            occupancy: None,
                            work,
                            label,
                        },
                        Vec::new(),
                    ));
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
    let runs = chunks.len() as u64;
    let occupancies = model.occupancies()?;
    let finished = steps.into_iter().map(|(step, mut times)| {
        let (flops, bytes) = (step.flops / runs, step.bytes / runs);
        let median_ms = median(&mut times) / runs as f64;
        let occupancy = occupancies.get(&(step.work.clone(), step.label.clone())).copied();
        Ok(StepTime { median_ms, flops, bytes, least_ms: model.least_ms(flops, bytes)?, occupancy, ..step })
    });
    finished.collect()
}

/// Milliseconds of one run: by the clock of the host, and by that of its device.
#[derive(Clone, Copy, Debug)]
struct RunTime {
    ms: f64,
    device_ms: Option<f64>,
}

/// The times of each run alone, without looking for sessions and without copies of the outputs.
fn once(model: &mut Predictor, chunks: &[Chunk]) -> Result<Vec<RunTime>, Error> {
    let mut times = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let inputs = borrowed(&chunk.inputs);
        let session = model.session(&chunk.inputs)?;
        let start = Instant::now();
        session.run_in_place(&inputs)?;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        times.push(RunTime { ms: ms(start.elapsed()), device_ms: session.device_time().map(ms) });
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_nearest_rank() {
        let times = RunTimes::of((1..=200).rev().map(f64::from).collect());
        let expected = RunTimes { median_ms: 100.5, p90_ms: 180.0, p99_ms: 198.0, min_ms: 1.0 };
        assert_eq!(times, expected);
        let one = RunTimes::of(vec![3.0]);
        assert_eq!((one.median_ms, one.p90_ms, one.p99_ms, one.min_ms), (3.0, 3.0, 3.0, 3.0));
    }
}
