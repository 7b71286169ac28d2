//! `margay bench`: models against one another: time, bytes, and the error without which a time says nothing.
//!
//! `--json` prints an object:
//!
//! - `models`: one object per model, in the order given, with `path` (and ` in ` the precision, if not f32); `median_ms` and `min_ms` of running all inputs
//!   once; `stored_bytes`, the constants its code reads; `peak_bytes`, all memory a run needs but for inputs: constants,
//!   code, intermediate results, scratch, outputs; `error` with `relative_l2` and `cosine` of all floating point outputs
//!   together against the first model, or null without such outputs; `other_differences`, elements of integer and boolean
//!   outputs that differ from those of the first model; `predicted_ms` from the cost model, or null without one or without a graph;
//!   with `--steps` also `steps`, in the order they run: `median_ms` of all runs of a round together, `flops`, `bytes`,
//!   `work` (a kernel call, or `loops`) and `label` (the nodes it stands for).
//! - `runs`: into how many runs the inputs are cut for each model; `rounds`: how often all were run;
//!   `threads`; `machine`: processor class and number of logical processors.

use std::path::PathBuf;

use margay::{
    BenchOptions, KnownInputs, Measured, Precision, Predictor, RunOptions, StepTime, bench, is_artifact,
    this_machine,
};
use serde::Serialize;

use crate::args::{InputArgs, RunArgs, at_least_one, note_fixed, precision};
use crate::error::Failure;
use crate::table::{Table, bytes, significant};
use crate::{Reply, json};

const JSON: &str = r#"With --json:
  {"models": [{"path", "median_ms", "min_ms", "stored_bytes", "peak_bytes",
               "error": {"relative_l2", "cosine"}, "other_differences", "predicted_ms",
               "steps": [{"median_ms", "flops", "bytes", "work", "label"}]}],
   "runs", "rounds", "threads", "machine"}
Times are of running all inputs once; errors are against the first model."#;

/// Compare the speed of models, with the bytes they store and their error against the first.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// ONNX files or artifacts; the first one is the reference.
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    how: RunArgs,
    /// Run every ONNX file in this precision of products with constant matrices as well.
    #[arg(long, value_name = "f32|bf16|int8|int4", default_value = "f32", value_parser = precision)]
    precision: Precision,
    /// How often all models are run [default: for about three seconds, 5 to 200 times].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    rounds: Option<usize>,
    /// Also show where the time goes, step by step.
    #[arg(long)]
    steps: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    models: Vec<Line>,
    runs: Vec<usize>,
    rounds: usize,
    threads: usize,
    machine: String,
}

#[derive(Serialize)]
struct Line {
    path: String,
    median_ms: f64,
    min_ms: f64,
    stored_bytes: u64,
    peak_bytes: u64,
    error: Option<Error>,
    other_differences: u64,
    predicted_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<StepTime>>,
}

#[derive(Serialize)]
struct Error {
    relative_l2: f64,
    cosine: f64,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let threads = args.how.threads.get();
    let inputs = args.inputs.read(&args.models[0])?.inputs;
    let (in_batches, huge_pages) = (args.how.in_batches, args.how.huge_pages);
    let known = KnownInputs::of(&inputs);
    let mut models = Vec::new();
    for path in &args.models {
        let plain = RunOptions { threads, in_batches, huge_pages, ..RunOptions::default() };
        models.push(Predictor::open_for(path, &plain, &known)?);
        if args.precision != Precision::F32 && !is_artifact(path)? {
            let narrow = RunOptions { precision: args.precision, ..plain.clone() };
            models.push(Predictor::open_for(path, &narrow, &known)?);
        }
    }
    models.iter().for_each(note_fixed);
    let options = BenchOptions { rounds: args.rounds, steps: args.steps };
    let (measured, rounds) = bench(&mut models, &inputs, &options)?;
    let runs = measured.iter().map(|m| m.runs).collect();
    let line = |(model, m): (&Predictor, Measured)| Line {
        path: model.name().to_string(),
        median_ms: m.median_ms,
        min_ms: m.min_ms,
        stored_bytes: m.stored_bytes,
        peak_bytes: m.peak_bytes,
        error: m.error.map(|e| Error { relative_l2: e.relative_l2, cosine: e.cosine }),
        other_differences: m.other_differences,
        predicted_ms: m.predicted_ms,
        steps: m.steps,
    };
    let lines = models.iter().zip(measured).map(line).collect();
    let report = Report { models: lines, runs, rounds, threads, machine: machine() };
    Ok(if args.json { json(&report)? } else { text(&report) }.into())
}

fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {processors} logical processors", this_machine())
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&[
        "model",
        ">median ms",
        ">min ms",
        ">predicted ms",
        ">speed-up",
        ">stored",
        ">peak",
        ">relative error",
        ">cosine",
    ]);
    let first = report.models.first().map_or(f64::NAN, |m| m.median_ms);
    for m in &report.models {
        table.row([
            m.path.clone(),
            significant(m.median_ms),
            significant(m.min_ms),
            m.predicted_ms.map_or("-".into(), significant),
            format!("{:.2}x", first / m.median_ms),
            bytes(m.stored_bytes),
            bytes(m.peak_bytes),
            m.error.as_ref().map_or("-".into(), |e| significant(e.relative_l2)),
            m.error.as_ref().map_or("-".into(), |e| format!("{:.5}", e.cosine)),
        ]);
    }
    let others: String = report
        .models
        .iter()
        .filter(|m| m.other_differences > 0)
        .map(|m| format!("{}: {} elements of integer outputs differ\n", m.path, m.other_differences))
        .collect();
    let steps: String = report.models.iter().filter_map(|m| Some(steps_text(m, m.steps.as_ref()?))).collect();
    let runs: Vec<String> = report.runs.iter().map(ToString::to_string).collect();
    let same = report.runs.iter().all(|r| r == &report.runs[0]);
    let runs = if same { runs[0].clone() } else { runs.join(", ") };
    format!(
        "{table}{others}{steps}\n{}, {} threads; {} interleaved rounds of all inputs, cut into {runs} run(s)\n",
        report.machine, report.threads, report.rounds
    )
}

fn steps_text(model: &Line, steps: &[StepTime]) -> String {
    let mut table = Table::new(&[">ms", ">share", ">GFLOP/s", ">GB/s", "work", "nodes"]);
    let total: f64 = steps.iter().map(|s| s.median_ms).sum();
    for s in steps {
        let rate = |n: u64| if n == 0 { "-".to_string() } else { significant(n as f64 / s.median_ms / 1e6) };
        table.row([
            significant(s.median_ms),
            format!("{:.1}%", 100.0 * s.median_ms / total),
            rate(s.flops),
            rate(s.bytes),
            s.work.clone(),
            shortened(&s.label),
        ]);
    }
    format!("\nsteps of {}, {} ms in all:\n{table}", model.path, significant(total))
}

/// The first and the last of many nodes.
fn shortened(label: &str) -> String {
    match label.split(" + ").collect::<Vec<_>>().as_slice() {
        [first, _, .., last] => format!("{first} + ... + {last}"),
        _ => label.to_string(),
    }
}
