//! `margay inspect`: what is in a file.
//!
//! `--json` prints an object. Of an ONNX file:
//!
//! - `path`, `hash`; `inputs`, `outputs`: objects with `name` and `type`; `dimensions`: names of open extents.
//! - `nodes`: in the file; `canonical_nodes`: after canonicalization, without constants.
//! - `parameters`: floating point constants, counted in elements; `constant_bytes` of all constants in the file.
//! - `layers`, `layer_bytes`: those that schemes can replace, embeddings not among them.
//! - `stored_constant_bytes`, `stored_layer_bytes`: the same as compiled code stores them, in layouts of this machine with their
//!   padding, as `margay compile` counts; null where the model is not compiled with 1 for dimensions that are not given.
//! - `flops`: multiplications and additions of products and convolutions, for the dimensions given; null where one is
//!   open.
//!
//! Of an artifact:
//!
//! - `path`, `producer`, `model`, `file_bytes`, and what these are: `constant_bytes` that code reads, `graph_constant_bytes`
//!   that only the graph has, `code_bytes`, `source_bytes` of graph, plan and report, `other_bytes`.
//! - `entries`: objects with `dims`, `ranges`, `inputs`, `outputs` and `sections`, their code: objects with `backend`, `target`,
//!   `machine`, `steps`, `arena_bytes`, `code_bytes`, and, for devices, `kernels`: a [`margay::KernelReport`] for each launch.
//! - `layer_bytes_before`, `layer_bytes_after`: stored bytes of the weights that schemes can replace; `held_out`:
//!   `relative_l2`, `cosine`, `samples`; `plan`: the plan as TOML. Null in a stripped artifact.

use std::path::PathBuf;

use margay::{
    ArtifactReport, EntryReport, KernelReport, ModelReport, Port, SectionReport, inspect_artifact,
    inspect_model, is_artifact, open_artifact,
};

use crate::args::dim;
use crate::error::Failure;
use crate::table::{Table, bytes, count, percent, significant};
use crate::{Reply, errors, json};

const JSON: &str = r#"With --json, of an ONNX file:
  {"path", "hash", "inputs": [{"name", "type"}], "outputs": [{"name", "type"}], "dimensions": [],
   "nodes", "canonical_nodes", "parameters", "constant_bytes", "layers", "layer_bytes",
   "stored_constant_bytes", "stored_layer_bytes", "flops"}
Of an artifact:
  {"path", "producer", "model", "file_bytes", "constant_bytes", "graph_constant_bytes",
   "code_bytes", "source_bytes", "other_bytes",
   "entries": [{"dims": {}, "ranges": [{NAME: [LEAST, GREATEST]}], "inputs", "outputs", "sections":
   [{"backend", "target", "machine", "steps", "arena_bytes", "code_bytes", "kernels": [{"step", "work",
     "label", "blocks", "threads", "registers", "registers_are_counted", "shared_bytes",
     "resident_warps", "most_warps", "flops_per_byte", "bound_by", "least_ms"}]}]}],
   "layer_bytes_before", "layer_bytes_after", "held_out", "plan"}"#;

/// Tell what is in an ONNX file or an artifact.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// An ONNX file or an artifact.
    #[arg(value_name = "MODEL.onnx|ARTIFACT")]
    model: PathBuf,
    /// Value of a dimension that an ONNX file leaves open, to count operations.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = dim)]
    dims: Vec<(String, Vec<i64>)>,
    /// Count the registers of kernels for devices with this program; without it the most that there can be are told.
    #[arg(long, value_name = "FILE")]
    ptxas: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let path = &args.model;
    if is_artifact(path)? {
        if !args.dims.is_empty() {
            return Err(Failure::usage(
                "the dimensions of an artifact are fixed: `--dim` does not apply to it",
            ));
        }
        let report = inspect_artifact(&open_artifact(path)?, args.ptxas.as_deref())?;
        return Ok(if args.json { json(&report)? } else { artifact_text(&report) }.into());
    }
    let report = inspect_model(path, &args.dims)?;
    Ok(if args.json { json(&report)? } else { model_text(&report) }.into())
}

fn list(ports: &[Port]) -> String {
    ports.iter().map(|p| format!("{}: {}", p.name, p.r#type)).collect::<Vec<String>>().join(", ")
}

fn model_text(report: &ModelReport) -> String {
    let mut table = Table::new(&["model", &report.path]);
    let mut row = |name: &str, value: String| table.row([name.to_string(), value]);
    row("hash", report.hash.clone());
    row("inputs", list(&report.inputs));
    row("outputs", list(&report.outputs));
    let open = if report.dimensions.is_empty() { "none".into() } else { report.dimensions.join(", ") };
    row("open dimensions", open);
    row("nodes", format!("{}, in canonical form {}", report.nodes, report.canonical_nodes));
    let stored =
        |n: Option<u64>| n.map_or(String::new(), |n| format!("; {} as compiled code stores them", bytes(n)));
    let (all, layers) = (stored(report.stored_constant_bytes), stored(report.stored_layer_bytes));
    row("parameters", format!("{} ({}{all})", report.parameters, bytes(report.constant_bytes)));
    row(
        "layers",
        format!("{} that schemes can replace ({}{layers})", report.layers, bytes(report.layer_bytes)),
    );
    row(
        "operations",
        report.flops.map_or("give `--dim NAME=N` for the open dimensions".into(), |f| {
            format!("{} ({})", f, count(f))
        }),
    );
    table.to_string()
}

/// The values of dimensions: `batch_size = 1, seq = 16..512`.
fn values(entry: &EntryReport) -> String {
    let fixed: Vec<String> = entry.dims.iter().map(|(name, v)| format!("{name} = {v}")).collect();
    let range = |(name, (least, most)): (&String, &(i64, i64))| match least == most {
        true => format!("{name} = {least}"),
        false => format!("{name} = {least}..{most}"),
    };
    let ranges = entry.ranges.iter().map(|all| all.iter().map(range).collect::<Vec<_>>().join(", "));
    let ranges: Vec<String> = ranges.collect();
    fixed.into_iter().chain((!ranges.is_empty()).then(|| ranges.join(" or "))).collect::<Vec<_>>().join(", ")
}

fn artifact_text(report: &ArtifactReport) -> String {
    let mut table = Table::new(&["artifact", &report.path]);
    let mut row = |name: &str, value: String| table.row([name.to_string(), value]);
    row("model", report.model.clone());
    row("made by", report.producer.clone());
    row("file", format!("{} bytes ({})", report.file_bytes, bytes(report.file_bytes as u64)));
    row("all constants", bytes(report.constant_bytes));
    row("of the graph alone", bytes(report.graph_constant_bytes));
    row("code", bytes(report.code_bytes));
    row("graph, plan, report", bytes(report.source_bytes));
    row("the rest of the file", bytes(report.other_bytes));
    match (report.layer_bytes_before, report.layer_bytes_after) {
        (Some(before), Some(after)) => row(
            "weights of layers",
            format!("{} of {} ({})", bytes(after), bytes(before), percent(after as f64, before as f64)),
        ),
        _ => row("source", "stripped".into()),
    }
    if let Some(e) = &report.held_out {
        row(
            "error",
            format!("{}, on {} samples held out{}", errors::words(e), e.samples, errors::uncounted(e)),
        );
    }
    let ranged = report.entries.iter().any(|e| !e.ranges.is_empty());
    let mut entries = match ranged {
        true => Table::new(&["inputs", "outputs", "values", "code for", ">steps", ">arena", ">code"]),
        false => Table::new(&["inputs", "outputs", "code for", ">steps", ">arena", ">code"]),
    };
    for e in &report.entries {
        let mut ports = vec![list(&e.inputs), list(&e.outputs)];
        if ranged {
            ports.push(values(e));
        }
        for (i, s) in e.sections.iter().enumerate() {
            let what = if i == 0 { ports.clone() } else { vec![String::new(); ports.len()] };
            let code = [
                format!("{} {}, {}", s.backend, s.target, s.machine),
                s.steps.to_string(),
                bytes(s.arena_bytes as u64),
                bytes(s.code_bytes as u64),
            ];
            entries.row(what.into_iter().chain(code));
        }
    }
    let sections = report.entries.iter().flat_map(|e| &e.sections);
    let kernels: String = sections.filter_map(|s| Some(kernels_text(s, s.kernels.as_ref()?))).collect();
    let plan = report.plan.as_ref().map_or(String::new(), |plan| format!("\n{plan}"));
    format!("{table}\n{entries}{kernels}{plan}")
}

/// What kernels of a device take of it, and the least that they cost.
fn kernels_text(section: &SectionReport, kernels: &[KernelReport]) -> String {
    let mut table = Table::new(&[
        ">step",
        ">blocks",
        ">threads",
        ">registers",
        ">shared",
        ">warps",
        ">flops/byte",
        ">least us",
        "bound by",
        "work",
        "nodes",
    ]);
    for k in kernels {
        let (most, least) = if k.registers_are_counted { ("", "") } else { ("<= ", ">= ") };
        table.row([
            k.step.to_string(),
            k.blocks.to_string(),
            k.threads.to_string(),
            format!("{most}{}", k.registers),
            bytes(k.shared_bytes as u64),
            format!("{least}{} of {}", k.resident_warps, k.most_warps),
            significant(k.flops_per_byte),
            significant(1e3 * k.least_ms),
            k.bound_by.to_owned(),
            k.work.clone(),
            k.label.clone(),
        ]);
    }
    format!(
        "\nkernels for {}, not measured: by the data sheet of the device and the code; warps are those that a multiprocessor \
         holds at once, least times those of the bytes and operations of a step\n{table}",
        section.target
    )
}
