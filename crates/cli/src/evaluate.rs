//! `margay evaluate`: models on samples with labels, side by side.
//!
//! `--json` prints an object with `metric`, `samples` and `models`: for each, in the order given, `path`, `value`, `agreement`
//! (the share of answers that are those of the first model; null for `mse`) and `constant_bytes`.

use std::path::PathBuf;

use margay::{
    Evaluated, KnownInputs, Metric, Predictor, RunOptions, check_samples, doubts_where, evaluate,
    is_array_file, read_labels, samples_of,
};
use serde::Serialize;

use crate::args::{SharedArgs, ThreadArgs, note_fixed};
use crate::error::Failure;
use crate::table::{Table, bytes, percent, significant};
use crate::{Reply, json, warn};

const JSON: &str = r#"With --json:
  {"metric", "samples", "models": [{"path", "value", "agreement", "constant_bytes"}]}"#;

/// Measure models on samples with labels, such as a dense one and its sketch side by side.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// ONNX files or artifacts; answers are compared with those of the first one.
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Samples of the models' inputs, by name; one row is one sample.
    #[arg(long, value_name = "FILE.npz")]
    data: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
    /// The labels: the name of an array in the data, or a file of one array. Integers, of which -100 does not count; for
    /// mse, numbers like the output.
    #[arg(long, value_name = "NAME|FILE.npy|FILE.npz")]
    labels: String,
    /// What is measured: the share of right answers, the share of labels among the best five, the mean cross-entropy, the
    /// mean squared error.
    #[arg(long, value_name = "accuracy|top5|loss|mse", default_value = "accuracy")]
    metric: Metric,
    /// The output that is measured, where models have several.
    #[arg(long, value_name = "NAME")]
    output_name: Option<String>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    metric: Metric,
    samples: usize,
    models: Vec<Evaluated>,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let name = (!is_array_file(&args.labels)).then_some(args.labels.as_str());
    let samples =
        samples_of(&args.models[0], &args.data, args.shared.names(), &name.into_iter().collect::<Vec<_>>())?;
    check_samples(&args.models[0], &samples)?;
    let labels = read_labels(&args.labels, &samples)?;
    warn(&doubts_where(&samples, false));
    let samples = name.iter().fold(samples, |samples, name| samples.without(name));
    let shared = samples.shared().clone();
    let options = RunOptions { threads: args.threads.get(), shared, ..RunOptions::default() };
    let known = KnownInputs::of(samples.arrays());
    let mut models = Vec::new();
    for path in &args.models {
        models.push(Predictor::open_for(path, &options, &known)?);
    }
    models.iter().for_each(note_fixed);
    models.iter().for_each(|model| warn(model.warnings()));
    let evaluated = evaluate(&mut models, &samples, &labels, args.output_name.as_deref(), args.metric)?;
    let rows = labels.shape().first().copied().unwrap_or(0);
    let report = Report { metric: args.metric, samples: rows, models: evaluated };
    Ok(if args.json { json(&report)? } else { text(&report) }.into())
}

fn text(report: &Report) -> String {
    let metric = format!(">{}", report.metric.name());
    let mut table = Table::new(&["model", &metric, ">answers as the first", ">constants"]);
    for m in &report.models {
        let value = match report.metric {
            Metric::Accuracy | Metric::Top5 => percent(m.value, 1.0),
            Metric::Loss | Metric::Mse => significant(m.value),
        };
        let agreement = m.agreement.map_or("-".into(), |share| percent(share, 1.0));
        table.row([m.path.clone(), value, agreement, bytes(m.constant_bytes)]);
    }
    format!("{table}\non {} samples\n", report.samples)
}
