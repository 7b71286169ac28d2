//! `margay pareto`: what error is paid for what saving.
//!
//! `--json` prints [`margay::Front`]: `model`, `target_cpu`, `threads`, `resource`, `refitted`, `dense` (`bytes`, `flops`,
//! `predicted_ms`), and `points`: objects with `sketched`, `bytes`, `flops`, `predicted_ms`, `predicted_error`, `held_out`
//! ([`margay::ErrorMeasure`]) and `dominated`.

mod plot;

use std::path::PathBuf;

use margay::{Dump, Front, FrontOptions, Resource, doubts, front, is_artifact, open_with, samples_of};

use crate::args::{SharedArgs, TargetArgs, at_least_one};
use crate::error::Failure;
use crate::progress::Bars;
use crate::save::{check_writable, save_text};
use crate::table::{Table, bytes, count, percent, significant};
use crate::{Reply, json, memory, warn};

const JSON: &str = r#"With --json:
  {"model", "target_cpu", "threads", "resource", "refitted", "dense": {"bytes", "flops", "predicted_ms"},
   "points": [{"sketched", "bytes", "flops", "predicted_ms", "predicted_error", "held_out", "dominated"}]}"#;

/// Show what error is paid for what saving: budgets from dense to the smallest sketch, from one fit.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// An ONNX file.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Samples of the model's inputs, by name. A quarter, at most 512, measures errors, the others
    /// calibrate.
    #[arg(long, value_name = "FILE.npz")]
    data: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
    /// What is saved: bytes of the weights, operations, or predicted time.
    #[arg(long, value_name = "bytes|flops|seconds", default_value = "flops", value_parser = resource)]
    by: Resource,
    /// How many budgets.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    points: usize,
    /// Refit factors at every budget, as `compile` does. It takes most of the time of a compilation each time, and errors are
    /// smaller.
    #[arg(long)]
    refit: bool,
    /// Write the plan of every point into a folder, to be replayed with `compile --plan`.
    #[arg(long, value_name = "FOLDER")]
    plans: Option<PathBuf>,
    /// Draw the front.
    #[arg(long, value_name = "OUT.svg")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn resource(text: &str) -> Result<Resource, String> {
    let known = Resource::ALL.map(Resource::name).join(", ");
    Resource::ALL.into_iter().find(|r| r.name() == text).ok_or_else(|| format!("expected one of {known}"))
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    memory::return_large_blocks();
    args.svg.iter().try_for_each(|path| check_writable(path))?;
    if is_artifact(&args.model)? {
        let message = format!("`{}` is an artifact, expected an ONNX file", args.model.display());
        return Err(Failure::usage(message).with_help("`margay export` makes ONNX of an artifact".into()));
    }
    if let Some(folder) = &args.plans {
        let failed = |e| Failure::usage(format!("cannot make the folder `{}`: {e}", folder.display()));
        std::fs::create_dir_all(folder).map_err(failed)?;
        check_writable(&folder.join(name(1)))?;
    }
    let options = args.target.options()?;
    let samples = samples_of(&args.model, &args.data, args.shared.names(), &[])?;
    warn(&doubts(&samples));
    let source = open_with(&args.model, &options.known_inputs(Some(&samples)), &mut Dump::none())?;
    let asked = FrontOptions { resource: args.by, points: args.points, refit: args.refit };
    let found = front(&source, &samples, &options, &asked, &Bars::new())?;
    if let Some(folder) = &args.plans {
        for (i, point) in found.points.iter().enumerate() {
            let plan = point.plan.to_toml().map_err(margay::Error::from)?;
            save_text(&folder.join(name(i + 1)), &plan)?;
        }
    }
    if let Some(path) = &args.svg {
        save_text(path, &plot::svg(&found, args.by)?)?;
    }
    Ok(if args.json { json(&found)? } else { text(&found, args) }.into())
}

/// The file of a point.
fn name(point: usize) -> String {
    format!("point{point:02}.toml")
}

fn text(front: &Front, args: &Args) -> String {
    let mut table = Table::new(&[
        ">point",
        ">layers sketched",
        ">bytes of weights",
        ">share",
        ">operations",
        ">share",
        ">predicted ms",
        ">share",
        ">predicted error",
        ">error",
        ">cosine",
        "",
    ]);
    let dense = &front.dense;
    for (i, p) in front.points.iter().enumerate() {
        table.row([
            (i + 1).to_string(),
            p.sketched.to_string(),
            bytes(p.bytes),
            percent(p.bytes as f64, dense.bytes as f64),
            count(p.flops),
            percent(p.flops as f64, dense.flops as f64),
            significant(p.predicted_ms),
            percent(p.predicted_ms, dense.predicted_ms),
            significant(p.predicted_error),
            significant(p.held_out.relative_l2),
            significant(p.held_out.cosine),
            if p.dominated { "dominated".into() } else { String::new() },
        ]);
    }
    if table.is_empty() {
        return "no layer has a sketch that saves anything\n".into();
    }
    let samples = front.points.first().map_or(0, |p| p.held_out.samples);
    let mut text = format!(
        "{}: dense {} of weights, {} operations, predicted {} ms with {} thread(s)\n\n{table}\n\
         errors are relative L2 errors of the outputs on {samples} samples held out",
        front.model,
        bytes(dense.bytes),
        count(dense.flops),
        significant(dense.predicted_ms),
        front.threads
    );
    text += if front.refitted { "\n" } else { ", before the refit of `compile`, which makes them smaller\n" };
    let svg = args.svg.iter().map(|path| path.display().to_string());
    let plans = args
        .plans
        .iter()
        .map(|path| format!("{}/{} to {}", path.display(), name(1), name(front.points.len())));
    svg.chain(plans).for_each(|written| text += &format!("wrote {written}\n"));
    text
}
