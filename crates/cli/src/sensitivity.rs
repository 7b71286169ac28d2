//! `margay sensitivity`: how much an error in each layer shows in the outputs.
//!
//! `--json` prints an object:
//!
//! - `model`: the file; `samples`, `probes`: how many; `warnings`; `relative_error`: the error of weights that is predicted for.
//! - `modules`: objects with `name`, `kind`, `d_in`, `d_out`, `weight_norm`, `input_trace`, `gradient_trace`,
//!   `output_error`, `output_error_by_moments`, `half_rank` and `half_rank_output_error`, which are explained at
//!   `ModuleSensitivity` of the crate `margay`.

use std::path::PathBuf;

use margay::sensitivity::{RELATIVE_ERROR, Sensitivity, sensitivity};
use margay::{open, samples_of};
use serde::Serialize;

use crate::args::{ErrorArgs, SharedArgs, ThreadArgs, at_least_one};
use crate::error::Failure;
use crate::progress::Bars;
use crate::table::{Table, significant};
use crate::{Reply, json, memory, warn};

const JSON: &str = r#"With --json:
  {"model", "relative_error", "samples", "probes", "warnings": [],
   "modules": [{"name", "kind", "d_in", "d_out", "weight_norm", "input_trace", "gradient_trace",
                "output_error", "output_error_by_moments", "half_rank", "half_rank_output_error"}]}"#;

/// Tell how much an error in each layer shows in the outputs.
///
/// Predictions are of first order, from backward passes of random cotangents. The norm of a weight W, the trace tr C of
/// the covariance of its inputs and the trace tr G of the Gram matrix of the gradients by its results are what makes a
/// layer matter.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// An ONNX file, or an artifact that carries its graph.
    #[arg(value_name = "MODEL.onnx|ARTIFACT")]
    model: PathBuf,
    /// Samples: the inputs under their names, one sample per row.
    #[arg(long, value_name = "FILE.npz")]
    data: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
    /// Random cotangents per sample; the error of an estimate falls with the root of it.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    probes: usize,
    /// Seed of the cotangents.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    errors: ErrorArgs,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    model: String,
    relative_error: f64,
    #[serde(flatten)]
    sensitivity: Sensitivity,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    memory::return_large_blocks();
    let source = open(&args.model)?;
    let samples = samples_of(&args.model, &args.data, args.shared.names(), &[])?;
    let (threads, scope) = (args.threads.get(), args.errors.scope());
    let found = sensitivity(&source, &samples, args.probes, args.seed, threads, &scope, &Bars::new())?;
    warn(&found.warnings);
    let report = Report {
        model: args.model.display().to_string(),
        relative_error: RELATIVE_ERROR,
        sensitivity: found,
    };
    Ok(if args.json { json(&report)? } else { text(&report) }.into())
}

fn text(report: &Report) -> String {
    let found = &report.sensitivity;
    let one_percent = format!(">output error at {}%", RELATIVE_ERROR * 100.0);
    let mut table = Table::new(&[
        "layer",
        "kind",
        "shape",
        ">||W||",
        ">tr C",
        ">tr G",
        &one_percent,
        ">half rank",
        ">output error at it",
    ]);
    for m in &found.modules {
        table.row([
            m.name.clone(),
            m.kind.clone(),
            format!("{} x {}", m.d_in, m.d_out),
            significant(m.weight_norm),
            significant(m.input_trace),
            significant(m.gradient_trace),
            significant(m.output_error),
            m.half_rank.to_string(),
            m.half_rank_output_error.map_or("-".into(), significant),
        ]);
    }
    format!(
        "{table}\nPredicted to first order from {} samples with {} random cotangents each; relative L2 errors.\n",
        found.samples, found.probes
    )
}
