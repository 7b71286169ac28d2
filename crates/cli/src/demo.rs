//! `margay demo`: the main job on a small trained model that is part of the program.
//!
//! `--json` prints an object with `dense` and `sketched`, each with `constant_bytes`, `flops`, `median_ms`, `accuracy`;
//! `relative_l2` and `cosine` of the outputs on the labelled samples; `limit` and `held_out` error; `layers`: as
//! `modules` in `margay compile --json`. Operations and times are of one run of 16 images.

use std::path::Path;

use margay::{
    Arrays, BenchOptions, CompileOptions, Dump, ErrorSum, Goal, Measured, Model, ModuleReport, Predictor,
    Report, RunOptions, Samples, Silent, Tensor, bench, compile, open,
};
use serde::Serialize;

use crate::args::ThreadArgs;
use crate::error::Failure;
use crate::progress::Bars;
use crate::table::{Table, bytes, count, percent, significant};
use crate::{Reply, json};

const MODEL: &[u8] = include_bytes!("../../../demo/model.onnx");
const SAMPLES: &[u8] = include_bytes!("../../../demo/samples.npz");

/// Limit of the relative error of the outputs.
const LIMIT: f64 = 0.15;

/// Images in one run.
const BATCH: i64 = 16;

const JSON: &str = r#"With --json:
  {"dense": {"constant_bytes", "flops", "median_ms", "accuracy"}, "sketched": {the same},
   "relative_l2", "cosine", "limit", "held_out": {}, "layers": []}"#;

/// Sketch, compile and run a small trained model that comes with margay, and compare it with the dense one.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Outcome {
    dense: Line,
    sketched: Line,
    relative_l2: f64,
    cosine: f64,
    limit: f64,
    held_out: Option<margay::ErrorMeasure>,
    layers: Vec<ModuleReport>,
}

#[derive(Serialize)]
struct Line {
    constant_bytes: u64,
    flops: u64,
    median_ms: f64,
    accuracy: f64,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let threads = args.threads.get();
    let io = |e: std::io::Error| Failure::usage(format!("cannot make a temporary folder: {e}"));
    let folder = tempfile::Builder::new().prefix("margay-demo-").tempdir().map_err(io)?;
    let onnx = folder.path().join("model.onnx");
    std::fs::write(&onnx, MODEL).map_err(io)?;
    let source = open(&onnx)?;
    let arrays = margay::read_npz(std::io::Cursor::new(SAMPLES))
        .map_err(|e| crate::error::arrays(Path::new("demo/samples.npz"), e))?;
    let calibration = Samples::new(vec![("image".into(), pixels(&arrays, "calibration_image")?)])?;
    let images = vec![("image".to_string(), pixels(&arrays, "image")?)];
    let labels = array(&arrays, "label")?.to_vec::<i64>().unwrap_or_default();

    let dims = vec![("batch".to_string(), vec![BATCH])];
    let dense_goal = CompileOptions { dims, threads, predict_threads: threads, ..CompileOptions::default() };
    let sketched_goal = CompileOptions { goal: Goal::Error(LIMIT.into()), ..dense_goal.clone() };
    let (mut sketched, report) = artifact(
        &source,
        Some(&calibration),
        &sketched_goal,
        &folder.path().join("sketched.margay"),
        threads,
    )?;
    let (mut dense, _) = artifact(&source, None, &dense_goal, &folder.path().join("dense.margay"), threads)?;

    let (expected, found) = (dense.predict(&images)?, sketched.predict(&images)?);
    let mut sum = ErrorSum::default();
    sum.add(&images, &expected, &found)?;
    let error = sum.measure();
    let first = Samples::new(images)?.row(0, BATCH as usize)?;
    let options = BenchOptions { rounds: Some(300), ..BenchOptions::default() };
    let (measured, _) = bench(&mut [dense, sketched], &first, &options)?;

    let line = |measured: &Measured, flops, outputs: &Arrays| Line {
        constant_bytes: measured.constant_bytes,
        flops,
        median_ms: measured.times.median_ms,
        accuracy: accuracy(&outputs[0].1, &labels),
    };
    let outcome = Outcome {
        dense: line(&measured[0], report.flops_before, &expected),
        sketched: line(&measured[1], report.flops_after, &found),
        relative_l2: error.relative_l2,
        cosine: error.cosine,
        limit: LIMIT,
        held_out: report.held_out,
        layers: report.modules,
    };
    Ok(if args.json { json(&outcome)? } else { text(&outcome, labels.len(), threads) }.into())
}

/// Compiles into a file and opens it.
fn artifact(
    source: &Model,
    samples: Option<&Samples>,
    options: &CompileOptions,
    path: &Path,
    threads: usize,
) -> Result<(Predictor, Report), Failure> {
    let compiled = match samples {
        Some(_) => compile(source, samples, options, &Bars::new())?,
        None => compile(source, None, options, &Silent)?,
    };
    compiled.write(path, true, &mut Dump::none())?;
    let options = RunOptions { threads, ..RunOptions::default() };
    Ok((Predictor::open(path, &options)?, compiled.report))
}

fn array<'a>(arrays: &'a Arrays, name: &str) -> Result<&'a Tensor, Failure> {
    let found = arrays.iter().find(|(n, _)| n == name).map(|(_, t)| t);
    found.ok_or_else(|| Failure::new(margay::Kind::Internal, format!("the samples have no `{name}`")))
}

/// Images as the model takes them: from bytes to numbers from 0 to 1.
fn pixels(arrays: &Arrays, name: &str) -> Result<Tensor, Failure> {
    let bytes = array(arrays, name)?;
    let data: Vec<f32> = bytes.bytes().iter().map(|&b| f32::from(b) / 255.0).collect();
    Tensor::from_slice(bytes.shape(), &data).map_err(|e| Failure::new(margay::Kind::Internal, e.to_string()))
}

/// The share of rows whose largest element is at the place the label says.
fn accuracy(logits: &Tensor, labels: &[i64]) -> f64 {
    let data = logits.to_vec::<f32>().unwrap_or_default();
    let classes = (data.len() / labels.len().max(1)).max(1);
    let right = data.chunks_exact(classes).zip(labels).filter(|(row, label)| {
        let best = (0..classes).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        best.is_some_and(|b| b as i64 == **label)
    });
    right.count() as f64 / labels.len().max(1) as f64
}

fn text(o: &Outcome, samples: usize, threads: usize) -> String {
    let mut table = Table::new(&["", ">dense", ">sketched", ">share"]);
    let (d, s) = (&o.dense, &o.sketched);
    let mut row = |name: &str, dense: String, sketched: String, share: String| {
        table.row([name.to_string(), dense, sketched, share]);
    };
    let share = |a: f64, b: f64| percent(b, a);
    let stored = share(d.constant_bytes as f64, s.constant_bytes as f64);
    row("bytes of all constants", bytes(d.constant_bytes), bytes(s.constant_bytes), stored);
    row("operations of a run", count(d.flops), count(s.flops), share(d.flops as f64, s.flops as f64));
    let times = share(d.median_ms, s.median_ms);
    row("median ms of a run", significant(d.median_ms), significant(s.median_ms), times);
    row("accuracy", percent(d.accuracy, 1.0), percent(s.accuracy, 1.0), String::new());
    row("relative output error", "0".into(), significant(o.relative_l2), String::new());

    let mut layers = Table::new(&["layer", "kind", ">matrix", "now", ">bytes", ">layer error"]);
    for m in &o.layers {
        layers.row([
            m.name.clone(),
            m.kind.clone(),
            format!("{} x {}", m.d_in, m.d_out),
            m.now(),
            format!("{} of {}", bytes(m.bytes_after), bytes(m.bytes_before)),
            significant(m.layer_error),
        ]);
    }
    let held_out = o.held_out.as_ref().map_or(String::new(), |e| {
        format!("; on {} images held out it is {}", e.samples, significant(e.relative_l2))
    });
    format!(
        "A small convolutional network for images of clothes, trained beforehand. Limit of the relative error of its\n\
         outputs: {}{held_out}. Compiled for this processor and run on {samples} labelled\n\
         images, {BATCH} in a run, {threads} thread(s):\n\n{table}\nWhat became of its layers:\n\n{layers}\n\
         With a model of your own:\n\n\
         \x20   margay check   MODEL.onnx\n\
         \x20   margay compile MODEL.onnx -o MODEL.margay --data SAMPLES.npz --max-error 0.05\n\
         \x20   margay bench   MODEL.onnx MODEL.margay --data SAMPLES.npz\n\n\
         SAMPLES.npz holds arrays under the names of the model's inputs, one sample a row.\n",
        o.limit
    )
}
