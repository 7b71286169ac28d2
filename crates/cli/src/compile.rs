//! `margay compile`: from a model to an artifact.
//!
//! `--json`, and `--report` into a file, give [`margay::Report`]: an object with `model`, `model_hash`,
//! `target_cpu`, `cost_model`, `threads`, `seed`, `precision`, `goal`; `bytes_before` and `bytes_after` of the weights of all
//! modules, `constant_bytes_before` and `constant_bytes_after` of all constants that code reads; `flops_before`,
//! `flops_after`, `predicted_ms_before`, `predicted_ms_after`; `held_out` ([`margay::ErrorMeasure`]; null without samples),
//! `refits`, `dims`, `modules` (`name`, `kind`, `d_in`, `d_out`, `scheme`, its settings, `storage` if planned, `bytes_before`,
//! `bytes_after`, `predicted_ms_before`, `predicted_ms_after`, `layer_error`, `output_error`, `why`), `remarks` and
//! `warnings`.

use std::path::PathBuf;

use margay::{
    CompileOptions, Compiled, Dump, LayerRefit, Precision, Report, Samples, compile_with, is_artifact,
    open_with,
};

use crate::args::GoalArgs;
use crate::curves::CurvesArgs;
use crate::error::{Failure, command_line};
use crate::progress::Bars;
use crate::save::{check_distinct, check_writable, rescued, save_text};
use crate::table::{Table, bytes, count, percent, significant};
use crate::{Reply, errors, json, memory, warn};

const JSON: &str = r#"With --json, and in the file of --report:
  {"model", "model_hash", "target_cpu", "cost_model", "threads", "seed", "precision", "goal",
   "bytes_before", "bytes_after", "constant_bytes_before", "constant_bytes_after",
   "flops_before", "flops_after", "predicted_ms_before", "predicted_ms_after",
   "held_out": {"relative_l2", "centred_l2", "cosine", "samples", "mask",
                "outputs": [{"name", "relative_l2", "centred_l2", "cosine", "max_abs", "pooled"}],
                "bounds": [{"level", "relative_l2"}],
                "quantile" if the limit is for a share of samples: {"level", "relative_l2"}},
   "held_out_rows": [], "refits": [{"name", "before", "after", "refitted"}],
   "metric" if asked for: {"name", "dense", "sketched"},
   "dims": {},
   "modules": [{"name", "kind", "d_in", "d_out", "scheme", its settings, "storage" if planned,
                "bytes_before", "bytes_after", "predicted_ms_before", "predicted_ms_after",
                "layer_error", "output_error", "why"}],
   "remarks": [], "warnings": []}"#;

/// Compile a model into an artifact, sketched if a goal or a plan is given.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// An ONNX file.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// The artifact to write; not needed where other files are.
    #[arg(
        short,
        long,
        value_name = "OUT.margay",
        required_unless_present_any = ["save_plan", "export", "report", "curves"]
    )]
    output: Option<PathBuf>,
    #[command(flatten)]
    goal: GoalArgs,
    /// Write what was chosen for each layer, to be replayed with --plan.
    #[arg(long, value_name = "FILE.toml")]
    save_plan: Option<PathBuf>,
    /// Write the sketched model as ONNX as well.
    #[arg(long, value_name = "FILE.onnx")]
    export: Option<PathBuf>,
    /// Write what was done and why.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    #[command(flatten)]
    curves: CurvesArgs,
    /// Write the graph after every pass, its constants, and the program into a folder, for `margay opt`.
    #[arg(long, value_name = "FOLDER")]
    dump_dir: Option<PathBuf>,
    /// Leave graph, plan and report out of the artifact; `export`, `explain` and `compare` by layers need them.
    #[arg(long)]
    strip: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    memory::return_large_blocks();
    let files = [args.output.as_ref(), args.save_plan.as_ref(), args.export.as_ref(), args.report.as_ref()];
    files.into_iter().flatten().try_for_each(|path| check_writable(path))?;
    args.curves.check()?;
    check_distinct(
        &[
            ("`-o`", args.output.as_deref()),
            ("`--save-plan`", args.save_plan.as_deref()),
            ("`--export`", args.export.as_deref()),
            ("`--report`", args.report.as_deref()),
            ("`--curves`", args.curves.path()),
        ],
        &[("the model", Some(&args.model)), ("`--data`", args.goal.data())],
    )?;
    if is_artifact(&args.model)? {
        return Err(Failure::usage(format!(
            "`{}` is an artifact, expected an ONNX file",
            args.model.display()
        ))
        .with_help("`margay export` makes ONNX of an artifact".into()));
    }
    let options = args.goal.options()?;
    let samples = args.goal.samples(&args.model)?;
    let mut dump = match &args.dump_dir {
        Some(folder) => Dump::to(folder, &format!("{}\n{options}", command_line()))?,
        None => Dump::none(),
    };
    let built = build(args, &options, samples.as_ref(), &mut dump);
    dump.finish()?;
    let (compiled, written) = built?;
    warn(&compiled.report.warnings);
    let plan = compiled.plan.to_toml().map_err(margay::Error::from)?;
    let report = json(&compiled.report)?;
    // A file that cannot be written is no reason to lose the others.
    let exported = match &args.export {
        Some(path) => rescued(path, |path| Ok(compiled.export(path)?)),
        None => Ok(()),
    };
    let planned = args.save_plan.as_ref().map_or(Ok(()), |path| save_text(path, &plan));
    let curves = args.curves.write(&compiled.curves);
    let reported = args.report.as_ref().map_or(Ok(()), |path| save_text(path, &report));
    [written, exported, planned, curves, reported].into_iter().collect::<Result<(), Failure>>()?;
    Ok(if args.json { report } else { summary(&compiled, args) }.into())
}

fn build(
    args: &Args,
    options: &CompileOptions,
    samples: Option<&Samples>,
    dump: &mut Dump,
) -> Result<(Compiled, Result<(), Failure>), Failure> {
    let source = open_with(&args.model, &options.known_inputs(samples), dump)?;
    let compiled = {
        let bars = Bars::new();
        compile_with(&source, samples, options, &bars, dump)?
    };
    let written = match &args.output {
        Some(path) => rescued(path, |path| Ok(compiled.write(path, args.strip, dump)?)),
        None => Ok(()),
    };
    Ok((compiled, written))
}

fn summary(compiled: &Compiled, args: &Args) -> String {
    let mut text = totals(&compiled.report);
    text += "\n";
    if let Some(path) = &args.output {
        let size = std::fs::metadata(path).map_or(String::new(), |m| format!(" ({})", bytes(m.len())));
        text += &format!("wrote {}{size}\n", path.display());
    }
    for path in [&args.export, &args.save_plan, &args.report].into_iter().flatten() {
        text += &format!("wrote {}\n", path.display());
    }
    text
}

/// The goal of reports of models in which nothing was to be sketched.
const DENSE: &str = "dense";

/// The whole model before and after, and the error.
pub(crate) fn totals(report: &Report) -> String {
    let dims: Vec<String> = report.dims.iter().map(|(name, v)| format!("{name} = {v}")).collect();
    let dims = if dims.is_empty() { String::new() } else { format!(" for {}", dims.join(", ")) };
    let mut table = Table::new(&["", ">dense", ">sketched", ">share"]);
    let mut row = |name: String, before: String, after: String, share: String| {
        table.row([name, before, after, share]);
    };
    row(
        "weights of layers".into(),
        bytes(report.bytes_before),
        bytes(report.bytes_after),
        percent(report.bytes_after as f64, report.bytes_before as f64),
    );
    row(
        "all constants".into(),
        bytes(report.constant_bytes_before),
        bytes(report.constant_bytes_after),
        percent(report.constant_bytes_after as f64, report.constant_bytes_before as f64),
    );
    row(
        format!("operations{dims}"),
        count(report.flops_before),
        count(report.flops_after),
        percent(report.flops_after as f64, report.flops_before as f64),
    );
    row(
        format!("predicted ms, {} thread(s)", report.threads),
        significant(report.predicted_ms_before),
        significant(report.predicted_ms_after),
        percent(report.predicted_ms_after, report.predicted_ms_before),
    );
    let sketched = report.modules.iter().filter(|m| m.is_sketched()).count();
    let plain = report.precision == Precision::F32.name();
    let precision = if plain { String::new() } else { format!(", products in {}", report.precision) };
    let mut text =
        format!("{}: {}{precision}, for {}\n\n{table}\n", report.model, report.goal, report.target_cpu);
    text += &match report.modules.len() {
        0 if report.goal == DENSE => "nothing is sketched without a goal\n".to_string(),
        0 => String::new(),
        all => format!("{sketched} of {all} layers sketched\n"),
    };
    let refitted = report.refits.iter().filter(|r| r.refitted).count();
    if refitted > 0 {
        let mean = |of: fn(&LayerRefit) -> f64| {
            report.refits.iter().map(of).sum::<f64>() / report.refits.len() as f64
        };
        let (before, after) = (significant(mean(|r| r.before)), significant(mean(|r| r.after)));
        text +=
            &format!("{refitted} layers refitted on what is before them: mean error {before} -> {after}\n");
    }
    if let Some(metric) = &report.metric {
        let (dense, sketched) = (significant(metric.dense), significant(metric.sketched));
        text += &format!("{}: dense {dense}, sketched {sketched}\n", metric.name);
    }
    text += &match &report.held_out {
        Some(e) => {
            let table = errors::outputs(e);
            let table = if table.is_empty() { String::new() } else { format!("\n{table}") };
            format!(
                "on {} samples held out: {}{}\n{}{table}",
                e.samples,
                errors::words(e),
                errors::uncounted(e),
                errors::bounds(e)
            )
        }
        None if sketched > 0 || !plain => {
            "the error is not known: give samples with --data to measure it\n".to_string()
        }
        None => String::new(),
    };
    text
}
