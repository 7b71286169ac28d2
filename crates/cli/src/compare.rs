//! `margay compare`: how far two models are apart, end to end and layer by layer.
//!
//! What is checked, so that the exit code is 1 where it fails, is the first of these that is given: a limit of the relative
//! error of all floating point outputs, `--max-error`; a tolerance of every element, `--rtol` and `--atol`, which is missed
//! when `|a - b| > atol + rtol |a|`; twice the error that the report of the second model states, where it is a sketch; else
//! the default tolerance of every element.
//! `--json` prints an object:
//!
//! - `reference`, `other`: the files; `within`: whether the check was passed; `rtol`, `atol`: the tolerance of every element;
//!   `max_error`: the limit of the relative error, null where elements were checked; `error`: as in `margay bench --json`.
//! - `outputs`: objects with `name`, `type`, `relative_l2`, `centred_l2`, `cosine`, `max_abs`, `pooled` where
//!   padding is marked, `elements` that count, `past_tolerance` (how many of them).
//! - `layers`: objects with `name`, `isolated` (relative L2 error when the layer is given the reference's inputs) and
//!   `cumulative` (when the layers before it are the other model's too); null where a model carries no graph. A layer is what
//!   its node computes with the bias. `layer_samples`: on how many samples; those that do not fill a run are left out.
//!
//! Numbers that are not finite are null.

use std::path::{Path, PathBuf};

use margay::{
    Comparison, ErrorMeasure, Kind, KnownInputs, LayerError, OutputComparison, Predictor, RunOptions,
    Tolerance, compare, is_artifact, open_artifact, report_of,
};
use serde::Serialize;

use crate::args::{ErrorArgs, InputArgs, RunArgs, not_negative, note_fixed, note_runs, positive};
use crate::error::Failure;
use crate::table::{Table, significant};
use crate::{Reply, errors, json, note};

const JSON: &str = r#"With --json:
  {"reference", "other", "within", "rtol", "atol", "max_error", "error": {},
   "outputs": [{"name", "type", "relative_l2", "centred_l2", "cosine", "max_abs", "pooled",
                "elements", "past_tolerance"}],
   "layers": [{"name", "isolated", "cumulative"}], "layer_samples"}
An element b is past the tolerance of a when |a - b| > A + R |a|. The exit code is 1 where the
relative error is above --max-error, or else where an element is past the tolerance. Without any of
these options a sketch may have twice the error that its report states."#;

/// Tell how far the outputs of two models are apart, and in which layers it comes about.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// The reference: an ONNX file or artifact.
    #[arg(value_name = "A")]
    reference: PathBuf,
    /// The other model.
    #[arg(value_name = "B")]
    other: PathBuf,
    #[command(flatten)]
    inputs: InputArgs,
    /// Limit of the relative L2 error of all floating point outputs together.
    #[arg(long, value_name = "E", value_parser = positive, conflicts_with_all = ["rtol", "atol"])]
    max_error: Option<f64>,
    /// Relative tolerance of every element [default: 0.001].
    #[arg(long, value_name = "R", value_parser = not_negative)]
    rtol: Option<f64>,
    /// Absolute tolerance of every element [default: 0.0001].
    #[arg(long, value_name = "A", value_parser = not_negative)]
    atol: Option<f64>,
    #[command(flatten)]
    errors: ErrorArgs,
    #[command(flatten)]
    how: RunArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    reference: String,
    other: String,
    within: bool,
    rtol: f64,
    atol: f64,
    max_error: Option<f64>,
    error: Option<ErrorMeasure>,
    outputs: Vec<OutputComparison>,
    layers: Option<Vec<LayerError>>,
    layer_samples: usize,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let threads = args.how.threads.get();
    let inputs = args.inputs.read_finite(&args.reference)?.inputs;
    let options = RunOptions { threads, huge_pages: args.how.huge_pages, ..RunOptions::default() };
    let known = KnownInputs::of(&inputs);
    let mut models = [
        Predictor::open_for(&args.reference, &options, &known)?,
        Predictor::open_for(&args.other, &options, &known)?,
    ];
    models.iter().for_each(note_fixed);
    let tolerance = Tolerance { rtol: args.rtol.unwrap_or(RTOL), atol: args.atol.unwrap_or(ATOL) };
    let found = compare(&mut models, &inputs, &args.errors.scope(), tolerance, threads)?;
    models.iter().try_for_each(|model| note_runs(model, &inputs))?;
    let Comparison { outputs, error, layers, layer_samples } = found;
    if layers.is_none() {
        note("a stripped artifact carries no graph, so layers are not compared");
    }
    let elements = args.rtol.is_some() || args.atol.is_some();
    let max_error = match args.max_error {
        None if !elements => stated_limit(&args.other)?,
        given => given,
    };
    let failure = match (max_error, &error) {
        (Some(limit), Some(error)) => above(error, limit),
        _ => past_tolerance(&outputs, tolerance.rtol, tolerance.atol).map(|failure| match elements {
            true => failure,
            false => failure.with_help(format!(
                "no error is stated for `{}`: if it is a sketch, say by `--max-error E` what relative error it may have",
                args.other.display()
            )),
        }),
    };
    let report = Report {
        reference: models[0].name().to_string(),
        other: models[1].name().to_string(),
        within: failure.is_none(),
        rtol: tolerance.rtol,
        atol: tolerance.atol,
        max_error,
        error,
        outputs,
        layers,
        layer_samples,
    };
    Ok(Reply { text: if args.json { json(&report)? } else { text(&report) }, failure })
}

/// Tolerances where none are given.
const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-4;

/// Twice the error that the report of an artifact states, since other inputs may have a larger one than the samples had; but
/// not above 1, which outputs of zeros have, unless the report states more. `None` where there is no such report.
fn stated_limit(path: &Path) -> Result<Option<f64>, Failure> {
    if !is_artifact(path)? {
        return Ok(None);
    }
    match report_of(&open_artifact(path)?) {
        Ok(report) => {
            Ok(report.held_out.map(|e| e.relative_l2).filter(|e| *e > 0.0).map(|e| (2.0 * e).min(e.max(1.0))))
        }
        Err(margay::Error::Stripped { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The failure where an error is above a limit.
fn above(error: &ErrorMeasure, limit: f64) -> Option<Failure> {
    let found = error.relative_l2;
    let message = || format!("the relative error is {}, above {}", significant(found), significant(limit));
    // What is not a number is not within.
    let within = found <= limit;
    (!within).then(|| Failure::new(Kind::Check, message()))
}

/// The failure where elements are past a tolerance.
pub(crate) fn past_tolerance(outputs: &[OutputComparison], rtol: f64, atol: f64) -> Option<Failure> {
    let past: usize = outputs.iter().map(|o| o.past_tolerance).sum();
    let elements: usize = outputs.iter().map(|o| o.elements).sum();
    let message = || format!("{past} of {elements} elements are past the tolerance of {atol} + {rtol} |a|");
    (past > 0).then(|| Failure::new(Kind::Check, message()))
}

fn text(report: &Report) -> String {
    let mut outputs = Table::new(&[
        "output",
        "type",
        ">max abs",
        ">relative error",
        ">about the mean",
        ">cosine",
        ">elements",
        ">past tolerance",
    ]);
    for o in &report.outputs {
        outputs.row([
            o.error.name.clone(),
            o.r#type.clone(),
            significant(o.error.max_abs),
            significant(o.error.relative_l2),
            o.error.centred_l2.map_or("-".into(), significant),
            format!("{:.6}", o.error.cosine),
            o.elements.to_string(),
            o.past_tolerance.to_string(),
        ]);
    }
    let mut text = outputs.to_string();
    if let Some(error) = &report.error {
        let limit = report.max_error.map_or(String::new(), |l| format!("; the limit is {}", significant(l)));
        text += &format!("\nall outputs: {}{}{limit}\n", errors::words(error), errors::uncounted(error));
    }
    if let Some(layers) = &report.layers {
        let mut table = Table::new(&["layer", ">isolated", ">cumulative"]);
        for l in layers {
            table.row([l.name.clone(), significant(l.isolated), significant(l.cumulative)]);
        }
        if !table.is_empty() {
            text += &format!(
                "\nRelative L2 error of the values both models name, biases included, on {} samples:\n{table}",
                report.layer_samples
            );
        }
    }
    text
}
