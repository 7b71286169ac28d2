//! `margay compare`: how far two models are apart, end to end and layer by layer.
//!
//! An element of the second model is past the tolerance when `|a - b| > atol + rtol |a|`; then the exit code is 1.
//! `--json` prints an object:
//!
//! - `reference`, `other`: the files; `within`: whether no element is past the tolerance; `rtol`, `atol`.
//! - `outputs`: objects with `name`, `type`, `max_abs`, `relative_l2`, `cosine`, `elements`, `past_tolerance` (a count).
//! - `layers`: objects with `name`, `isolated` (relative L2 error when the layer is given the reference's inputs; null
//!   where it cannot be cut out) and `cumulative` (when the layers before it are the other model's too); null where a
//!   model carries no graph. Layers are measured on the first run of the inputs.
//!
//! Numbers that are not finite are null.

use std::path::PathBuf;

use margay_driver::backend;
use margay_driver::compare::{LayerError, layers};
use margay_ir::ops::Numbers;
use margay_tensor::Tensor;
use serde::Serialize;

use crate::args::{InputArgs, ThreadArgs, not_negative};
use crate::bench::chunks_of;
use crate::error::Failure;
use crate::model::Model;
use crate::table::{Table, significant};
use crate::{Reply, json, note};

const JSON: &str = r#"With --json:
  {"reference", "other", "within", "rtol", "atol",
   "outputs": [{"name", "type", "max_abs", "relative_l2", "cosine", "elements", "past_tolerance"}],
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
    threads: ThreadArgs,
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
    outputs: Vec<OutputError>,
    layers: Option<Vec<LayerError>>,
}

#[derive(Serialize)]
struct OutputError {
    name: String,
    r#type: String,
    max_abs: f64,
    relative_l2: f64,
    cosine: f64,
    elements: usize,
    past_tolerance: usize,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let threads = args.threads.get();
    let inputs = args.inputs.read()?;
    let mut models = vec![Model::open(&args.reference, threads)?, Model::open(&args.other, threads)?];
    let chunks = chunks_of(&models, &inputs)?;
    let a = models[0].run(&chunks[0])?;
    let b = models[1].run(&chunks[1])?;
    let mut outputs = Vec::new();
    for (name, x) in &a {
        let y = b.iter().find(|(n, _)| n == name).map(|(_, y)| y);
        outputs.push(output_error(name, x, y, args.rtol, args.atol)?);
    }
    let layers = match (models[0].graph()?, models[1].graph()?) {
        (Some(reference), Some(other)) => {
            // Both graphs take the smaller of the first runs.
            let smallest = chunks.iter().map(|c| &c[0].inputs).min_by_key(|i| crate::feed::rows(i));
            let inputs = smallest.unwrap_or(&inputs);
            Some(layers(&reference, &other, inputs, &backend::native(), threads)?)
        }
        _ => {
            note("a stripped artifact carries no graph, so layers are not compared");
            None
        }
    };
    let past: usize = outputs.iter().map(|o| o.past_tolerance).sum();
    let report = Report {
        reference: models[0].path.clone(),
        other: models[1].path.clone(),
        within: past == 0,
        rtol: args.rtol,
        atol: args.atol,
        outputs,
        layers,
    };
    let failure = (past > 0).then(|| {
        let elements: usize = report.outputs.iter().map(|o| o.elements).sum();
        Failure::new(
            margay_driver::Kind::Check,
            format!(
                "{past} of {elements} elements are past the tolerance of {} + {} |a|",
                args.atol, args.rtol
            ),
        )
    });
    Ok(Reply { text: if args.json { json(&report)? } else { text(&report) }, failure })
}

fn output_error(
    name: &str,
    x: &Tensor,
    y: Option<&Tensor>,
    rtol: f64,
    atol: f64,
) -> Result<OutputError, Failure> {
    let describe = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
    let Some(y) = y.filter(|y| y.dtype() == x.dtype() && y.shape() == x.shape()) else {
        let found = y.map_or("absent".into(), describe);
        let message =
            format!("output `{name}` is {} in the reference and {found} in the other model", describe(x));
        return Err(Failure::new(margay_driver::Kind::Check, message));
    };
    let numbers = |t: &Tensor| match Numbers::of(t) {
        Ok(numbers) => Ok(numbers.floats()),
        Err(e) => Err(Failure::usage(format!("output `{name}`: {e}"))),
    };
    let (xs, ys) = (numbers(x)?, numbers(y)?);
    let (mut xx, mut yy, mut xy, mut dd, mut max_abs) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let mut past = 0;
    for (&a, &b) in xs.iter().zip(&ys) {
        let d = if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() };
        xx += a * a;
        yy += b * b;
        xy += a * b;
        dd += d * d;
        if d > max_abs || d.is_nan() {
            max_abs = d;
        }
        // A difference that is not a number is not within.
        let within = d <= atol + rtol * a.abs();
        past += usize::from(!within);
    }
    let relative_l2 = if dd == 0.0 { 0.0 } else { (dd / xx).sqrt() };
    let cosine = if dd == 0.0 { 1.0 } else { xy / (xx * yy).sqrt() };
    let (name, r#type) = (name.to_string(), describe(x));
    Ok(OutputError { name, r#type, max_abs, relative_l2, cosine, elements: xs.len(), past_tolerance: past })
}

fn text(report: &Report) -> String {
    let mut outputs = Table::new(&[
        "output",
        "type",
        ">max abs",
        ">relative L2",
        ">cosine",
        ">elements",
        ">past tolerance",
    ]);
    for o in &report.outputs {
        outputs.row([
            o.name.clone(),
            o.r#type.clone(),
            significant(o.max_abs),
            significant(o.relative_l2),
            format!("{:.6}", o.cosine),
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
