//! `margay explain`: what became of every layer, and why.
//!
//! `--json` prints the report that `margay compile --json` prints.

use std::path::PathBuf;

use margay::{
    Dump, Graph, Model, Report, compile, found_sketches, is_artifact, open_artifact, open_artifact_graph,
    open_with, report_of, sites,
};

use crate::args::GoalArgs;
use crate::compile::totals;
use crate::curves::CurvesArgs;
use crate::error::Failure;
use crate::progress::Bars;
use crate::table::{Table, bytes, significant};
use crate::{Reply, json, warn};

/// Tell for every layer what it is replaced by and why, or why it is kept.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An ONNX file, which is then compiled but not written, or an artifact.
    #[arg(value_name = "MODEL.onnx|ARTIFACT")]
    model: PathBuf,
    #[command(flatten)]
    goal: GoalArgs,
    #[command(flatten)]
    curves: CurvesArgs,
    /// Print JSON, in the form of `margay compile --json`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    args.curves.check()?;
    let (report, layers) = if is_artifact(&args.model)? {
        if !args.goal.is_default() {
            return Err(Failure::usage(
                "an artifact has been compiled: goals and samples do not apply to it",
            ));
        }
        let artifact = open_artifact(&args.model)?;
        let report = report_of(&artifact)?;
        // One that was trained has sketches that no goal chose.
        let found =
            if report.modules.is_empty() { found(&open_artifact_graph(&artifact)?) } else { String::new() };
        (report, found)
    } else {
        let (options, samples) = (args.goal.options()?, args.goal.samples(&args.model)?);
        let known = options.known_inputs(samples.as_ref());
        let source = open_with(&args.model, &known, &mut Dump::none())?;
        let bars = Bars::new();
        let compiled = compile(&source, samples.as_ref(), &options, &bars)?;
        args.curves.write(&compiled.curves)?;
        (compiled.report, if args.goal.is_dense() { candidates(&source) } else { String::new() })
    };
    warn(&report.warnings);
    Ok(if args.json { json(&report)? } else { text(&report) + &layers }.into())
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&[
        "layer",
        "kind",
        ">matrix",
        "now",
        ">bytes",
        ">share",
        ">layer error",
        ">output error",
        "why",
    ]);
    for m in &report.modules {
        table.row([
            m.name.clone(),
            m.kind.clone(),
            format!("{} x {}", m.d_in, m.d_out),
            m.now(),
            bytes(m.bytes_after),
            crate::table::percent(m.bytes_after as f64, m.bytes_before as f64),
            significant(m.layer_error),
            m.output_error.map_or("-".into(), significant),
            m.why.clone(),
        ]);
    }
    let mut text = totals(report);
    if !table.is_empty() {
        text += &format!("\n{table}");
    }
    if !report.remarks.is_empty() {
        text += "\nRewrites that were considered:\n";
        report.remarks.iter().for_each(|r| text += &format!("  {r}\n"));
    }
    text
}

/// The sketches of a graph that has no report of them.
fn found(g: &Graph) -> String {
    let mut table = Table::new(&["layer", "matrix", "form", ">rank", ">numbers", ">share"]);
    for s in found_sketches(g) {
        let matrix = (s.d_in * s.d_out) as f64;
        table.row([
            s.name,
            format!("{} x {}", s.d_in, s.d_out),
            s.scheme.into(),
            s.rank.to_string(),
            s.stored.to_string(),
            crate::table::percent(s.stored as f64, matrix),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        format!(
            "\nSketches found in the graph, by their form: one of panther is lowrank, of a rank that counts all its terms\n{table}"
        )
    }
}

/// The layers that could be sketched, where no goal was given.
fn candidates(source: &Model) -> String {
    let mut table = Table::new(&["layer", "kind", ">matrix", ">bytes"]);
    let g = &source.graph;
    for site in sites(g) {
        table.row([
            site.name.clone(),
            site.kind.into(),
            format!("{} x {}", site.d_in, site.d_out),
            bytes(site.bytes(g)),
        ]);
    }
    if table.is_empty() {
        return "\nThe model has no layers that could be sketched.\n".into();
    }
    format!(
        "\nLayers that could be sketched; give --max-error, --budget-bytes or --budget-ms to see what for:\n{table}"
    )
}
