//! `margay bench`: models against one another: time, bytes, and the error without which a time says nothing.
//!
//! `--json` prints an object:
//!
//! - `models`: one object per model, in the order given, with `path` (and ` in ` the precision, if not f32); `runs`, into how
//!   many its inputs are cut; `median_ms`, `p90_ms`, `p99_ms`, `min_ms` of one run; `runs_per_second` and
//!   `speed_up`, from the medians of a run: how often as fast as the first model it takes all inputs; `all_inputs_ms`, the
//!   median of running all inputs once; `device_ms`, the median of a run by the clock of its device, from the copy of its inputs
//!   to that of its outputs, or null on the processor; `predicted_ms` of one run on as many threads from the cost model, or
//!   null without a graph; `prediction_is_measured`, whether that model was compared with such a machine; `constant_bytes`, all constants its code reads; `peak_bytes`, all memory a run needs but for inputs: constants,
//!   code, intermediate results, scratch, outputs; `error` against the first model as `margay compile --json` has it in
//!   `held_out`, or null without floating point outputs; `other_differences`, elements of integer and boolean outputs that
//!   differ from those of the first model; with `--steps` also `steps`, in the order they run: `median_ms` of one run,
//!   `flops`, `bytes`, `least_ms`, the time of these by the data sheet of a device or null, `occupancy`, the least share of a multiprocessor's warps that are there at once by its data sheet or null, `work` (a kernel call, or `loops`) and `label` (the nodes it stands for).
//! - `rounds`: how often all inputs were run; `warm_up_rounds`: how often before that; `threads`; `machine`: processor class
//!   and number of logical processors.

use std::path::PathBuf;

use margay::{
    BenchOptions, ErrorMeasure, KnownInputs, Measured, Precision, Predictor, RunOptions, RunTimes, StepTime,
    WARM_UP_ROUNDS, backend, bench, has_code_for, is_artifact, this_machine,
};
use serde::Serialize;

use crate::args::{ErrorArgs, InputArgs, RunArgs, at_least_one, note_fixed, precision, read_text};
use crate::device::chosen;
use crate::error::Failure;
use crate::table::{Table, bytes, percent, significant};
use crate::{Reply, errors, json, note};

const JSON: &str = r#"With --json:
  {"models": [{"path", "runs", "median_ms", "p90_ms", "p99_ms", "min_ms", "runs_per_second",
               "speed_up", "all_inputs_ms", "device_ms", "predicted_ms", "prediction_is_measured",
               "constant_bytes", "peak_bytes",
               "error": {"relative_l2", "centred_l2", "cosine", "samples", "mask", "outputs", "bounds"},
               "other_differences", "steps": [{"median_ms", "flops", "bytes", "least_ms",
               "occupancy", "work", "label"}]}],
   "rounds", "warm_up_rounds", "threads", "machine"}
Times are of one run, but for all_inputs_ms; errors are against the first model."#;

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
    errors: ErrorArgs,
    #[command(flatten)]
    how: RunArgs,
    /// Run every ONNX file in this precision of products with constant matrices as well.
    #[arg(long, value_name = "f32|bf16|int8|int4", default_value = "f32", value_parser = precision)]
    precision: Precision,
    /// How often all models are run [default: for about three seconds, 5 to 200 times].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    rounds: Option<usize>,
    /// Rates that times are predicted by, as `margay measure-machine` writes them [default: those of the class].
    #[arg(long, value_name = "FILE.toml")]
    cost_model: Option<PathBuf>,
    /// Device that runs the artifacts that have code for it: cuda, or cuda:1 for the second one, or emulated; cuda-or-cpu for cuda
    /// if a device is found that is not too old for the artifact, and else for cpu (too little memory and a device that fails are
    /// errors all the same); all other models run where they did [default: the first that an artifact has code for].
    #[arg(long, value_name = "NAME[:NUMBER]")]
    device: Option<String>,
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
    rounds: usize,
    warm_up_rounds: usize,
    threads: usize,
    machine: String,
}

#[derive(Serialize)]
struct Line {
    path: String,
    runs: usize,
    #[serde(flatten)]
    times: RunTimes,
    runs_per_second: f64,
    speed_up: f64,
    all_inputs_ms: f64,
    device_ms: Option<f64>,
    predicted_ms: Option<f64>,
    prediction_is_measured: bool,
    constant_bytes: u64,
    peak_bytes: u64,
    error: Option<ErrorMeasure>,
    other_differences: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<StepTime>>,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let threads = args.how.threads.get();
    let cost_model = args.cost_model.as_deref().map(read_text).transpose()?;
    let inputs = args.inputs.read_finite(&args.models[0])?.inputs;
    let known = KnownInputs::of(&inputs);
    let mut models = Vec::new();
    let mut on_device = 0;
    for path in &args.models {
        let mut plain = RunOptions { threads, huge_pages: args.how.huge_pages, ..RunOptions::default() };
        let device = match &args.device {
            // An ONNX file is compiled for the processor.
            Some(name) if name == backend::CUDA_OR_CPU && !is_artifact(path)? => None,
            Some(name) => Some(chosen(name, Some(path))?),
            None => None,
        };
        if let Some(device) = device
            && has_code_for(path, &device)?
        {
            plain.backend = Some(device);
            on_device += 1;
        }
        models.push(Predictor::open_for(path, &plain, &known)?);
        if args.precision != Precision::F32 && !is_artifact(path)? {
            let narrow = RunOptions { precision: args.precision, ..plain.clone() };
            models.push(Predictor::open_for(path, &narrow, &known)?);
        }
    }
    if let (Some(device), 0) = (&args.device, on_device) {
        let help = "compile one with `margay compile --device`";
        return Err(Failure::usage(format!("no artifact among the models has code for `{device}`: {help}")));
    }
    models.iter().for_each(note_fixed);
    let cost_model = cost_model.as_deref();
    for model in &models {
        if let Some((there, here)) = model.other_cost_model(cost_model)? {
            let name = model.name();
            note(format!(
                "`{name}` was compiled with times by `{there}`; here they are predicted by `{here}`"
            ));
        }
    }
    let options = BenchOptions {
        rounds: args.rounds,
        steps: args.steps,
        errors: args.errors.scope(),
        cost_model: cost_model.map(str::to_owned),
    };
    let (measured, rounds) = bench(&mut models, &inputs, &options)?;
    let line = |(model, m): (&Predictor, Measured)| Line {
        path: model.name().to_string(),
        runs: m.runs,
        times: m.times,
        runs_per_second: m.runs_per_second,
        speed_up: m.speed_up,
        all_inputs_ms: m.all_inputs_ms,
        device_ms: m.device_ms,
        predicted_ms: m.predicted_ms,
        prediction_is_measured: m.prediction_is_measured,
        constant_bytes: m.constant_bytes,
        peak_bytes: m.peak_bytes,
        error: m.error,
        other_differences: m.other_differences,
        steps: m.steps,
    };
    let models = models.iter().zip(measured).map(line).collect();
    let report = Report { models, rounds, warm_up_rounds: WARM_UP_ROUNDS, threads, machine: machine() };
    Ok(if args.json { json(&report)? } else { text(&report) }.into())
}

fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {processors} logical processors", this_machine())
}

/// The columns of the least times of steps and of their warps.
const BY_DATA_SHEET: [usize; 2] = [4, 5];
/// The column of times by the clock of a device.
const ON_DEVICE: usize = 4;

fn text(report: &Report) -> String {
    let on_device = report.models.iter().any(|m| m.device_ms.is_some());
    let columns = [
        "model",
        ">ms per run",
        ">p90",
        ">p99",
        ">on device",
        ">predicted",
        ">runs/s",
        ">speed-up",
        ">constants",
        ">peak",
        ">relative error",
        ">centred",
        ">cosine",
    ];
    let shown = |column: &usize| on_device || *column != ON_DEVICE;
    let heads: Vec<&str> = (0..columns.len()).filter(shown).map(|i| columns[i]).collect();
    let mut table = Table::new(&heads);
    for m in &report.models {
        let of_error = |f: &dyn Fn(&ErrorMeasure) -> String| m.error.as_ref().map_or("-".into(), f);
        let predicted = |ms: f64| match m.prediction_is_measured {
            true => significant(ms),
            false => format!("{}, not measured", significant(ms)),
        };
        let cells = [
            m.path.clone(),
            significant(m.times.median_ms),
            significant(m.times.p90_ms),
            significant(m.times.p99_ms),
            m.device_ms.map_or("-".into(), significant),
            m.predicted_ms.map_or("-".into(), predicted),
            significant(m.runs_per_second),
            format!("{:.2}x", m.speed_up),
            bytes(m.constant_bytes),
            bytes(m.peak_bytes),
            of_error(&|e| significant(e.relative_l2)),
            of_error(&|e| e.centred_l2.map_or("-".into(), significant)),
            of_error(&|e| format!("{:.5}", e.cosine)),
        ];
        table.row(cells.into_iter().enumerate().filter(|(i, _)| shown(i)).map(|(_, cell)| cell));
    }
    let others: String = report
        .models
        .iter()
        .filter(|m| m.other_differences > 0)
        .map(|m| format!("{}: {} elements of integer outputs differ\n", m.path, m.other_differences))
        .collect();
    let outputs: String = report.models.iter().skip(1).map(outputs_of).collect();
    let steps: String = report.models.iter().filter_map(|m| Some(steps_text(m, m.steps.as_ref()?))).collect();
    let runs: Vec<String> = report.models.iter().map(|m| m.runs.to_string()).collect();
    let same = runs.iter().all(|r| r == &runs[0]);
    let runs = if same { runs[0].clone() } else { runs.join(", ") };
    let clocks = match on_device {
        true => {
            "; ms per run is what the caller waits, `on device` the time between the events of the driver around it"
        }
        false => "",
    };
    let unmeasured = match report.models.iter().all(|m| m.prediction_is_measured) {
        true => "",
        false => {
            "; predictions that are `not measured` follow from data sheets and were compared with no such device"
        }
    };
    format!(
        "{table}{others}{outputs}{steps}\n{}, {} thread(s), for which times are predicted too; {} interleaved rounds of all \
         inputs in {runs} run(s) after {} of warm-up; ms per run is the median, from which runs/s and speed-up follow: the \
         first model's for all inputs to this one's{clocks}{unmeasured}\n",
        report.machine, report.threads, report.rounds, report.warm_up_rounds
    )
}

/// The errors of a model output by output, where there is more to say than in one line.
fn outputs_of(model: &Line) -> String {
    let Some(error) = model.error.as_ref() else { return String::new() };
    let table = errors::outputs(error);
    if table.is_empty() { String::new() } else { format!("\noutputs of {}:\n{table}", model.path) }
}

fn steps_text(model: &Line, steps: &[StepTime]) -> String {
    let on_device = steps.iter().any(|s| s.least_ms.is_some());
    let heads = [">ms", ">share", ">GFLOP/s", ">GB/s", ">by data sheet", ">warps", "work", "nodes"];
    let shown = |column: &usize| on_device || !BY_DATA_SHEET.contains(column);
    let shown_heads: Vec<&str> = (0..heads.len()).filter(shown).map(|i| heads[i]).collect();
    let mut table = Table::new(&shown_heads);
    let total: f64 = steps.iter().map(|s| s.median_ms).sum();
    for s in steps {
        let rate = |n: u64| if n == 0 { "-".to_string() } else { significant(n as f64 / s.median_ms / 1e6) };
        let least = |ms: f64| format!("{}, not measured", significant(ms));
        let cells = [
            significant(s.median_ms),
            format!("{:.1}%", 100.0 * s.median_ms / total),
            rate(s.flops),
            rate(s.bytes),
            s.least_ms.map_or("-".into(), least),
            s.occupancy.map_or("-".into(), |share| format!(">= {}, not measured", percent(share, 1.0))),
            s.work.clone(),
            shortened(&s.label),
        ];
        table.row(cells.into_iter().enumerate().filter(|(i, _)| shown(i)).map(|(_, cell)| cell));
    }
    format!("\nsteps of {}, {} ms of a run in all:\n{table}", model.path, significant(total))
}

/// The first and the last of many nodes.
fn shortened(label: &str) -> String {
    match label.split(" + ").collect::<Vec<_>>().as_slice() {
        [first, _, .., last] => format!("{first} + ... + {last}"),
        _ => label.to_string(),
    }
}
