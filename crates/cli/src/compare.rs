//! `margay compare`: how far two models are apart, end to end and layer by layer.
//!
//! An element of the second model is past the tolerance when `|a - b| > atol + rtol |a|`; then the exit code is 1.
//! `--json` prints an object:
//!
//! - `reference`, `other`: the files; `within`: whether no element is past the tolerance; `rtol`, `atol`.
//! - `outputs`: objects with `name`, `type`, `relative_l2`, `centred_l2`, `cosine`, `max_abs`, `pooled` where
//!   padding is marked, `elements` that count, `past_tolerance` (how many of them).
//! - `layers`: objects with `name`, `isolated` (relative L2 error when the layer is given the reference's inputs; null
//!   where it cannot be cut out) and `cumulative` (when the layers before it are the other model's too); null where a
//!   model carries no graph. Layers are measured on the first run of the inputs.
//!
//! Numbers that are not finite are null.

use std::path::PathBuf;

use margay::{
    Comparison, Kind, KnownInputs, LayerError, OutputComparison, Predictor, RunOptions, Tolerance, compare,
};
use serde::Serialize;

use crate::args::{ErrorArgs, InputArgs, RunArgs, not_negative, note_fixed};
use crate::error::Failure;
use crate::table::{Table, significant};
use crate::{Reply, json, note};

const JSON: &str = r#"With --json:
  {"reference", "other", "within", "rtol", "atol",
   "outputs": [{"name", "type", "relative_l2", "centred_l2", "cosine", "max_abs", "pooled",
                "elements", "past_tolerance"}],
   "layers": [{"name", "isolated", "cumulative"}]}
An element b is past the tolerance of a when |a - b| > A + R |a|; then the exit code is 1."#;

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
    /// Relative tolerance of every element.
    #[arg(long, value_name = "R", default_value_t = 1e-3, value_parser = not_negative)]
    rtol: f64,
    /// Absolute tolerance of every element.
    #[arg(long, value_name = "A", default_value_t = 1e-4, value_parser = not_negative)]
    atol: f64,
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
    outputs: Vec<OutputComparison>,
    layers: Option<Vec<LayerError>>,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let threads = args.how.threads.get();
    let inputs = args.inputs.read(&args.reference)?.inputs;
    let options = RunOptions {
        threads,
        in_batches: args.how.in_batches,
        huge_pages: args.how.huge_pages,
        ..RunOptions::default()
    };
    let known = KnownInputs::of(&inputs);
    let mut models = [
        Predictor::open_for(&args.reference, &options, &known)?,
        Predictor::open_for(&args.other, &options, &known)?,
    ];
    models.iter().for_each(note_fixed);
    let tolerance = Tolerance { rtol: args.rtol, atol: args.atol };
    let Comparison { outputs, layers } =
        compare(&mut models, &inputs, &args.errors.scope(), tolerance, threads)?;
    if layers.is_none() {
        note("a stripped artifact carries no graph, so layers are not compared");
    }
    let past: usize = outputs.iter().map(|o| o.past_tolerance).sum();
    let report = Report {
        reference: models[0].name().to_string(),
        other: models[1].name().to_string(),
        within: past == 0,
        rtol: args.rtol,
        atol: args.atol,
        outputs,
        layers,
    };
    let failure = past_tolerance(&report.outputs, args.rtol, args.atol);
    Ok(Reply { text: if args.json { json(&report)? } else { text(&report) }, failure })
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
    if let Some(layers) = &report.layers {
        let mut table = Table::new(&["layer", ">isolated", ">cumulative"]);
        for l in layers {
            table.row([
                l.name.clone(),
                l.isolated.map_or("-".into(), significant),
                significant(l.cumulative),
            ]);
        }
        if !table.is_empty() {
            text += &format!("\nRelative L2 error of the values both models name:\n{table}");
        }
    }
    text
}
