//! `margay inspect`: what is in a file.
//!
//! `--json` prints an object. Of an ONNX file:
//!
//! - `path`, `hash`; `inputs`, `outputs`: objects with `name` and `type`; `dimensions`: names of open extents.
//! - `nodes`: in the file; `canonical_nodes`: after canonicalization, without constants.
//! - `parameters`: floating point constants, counted in elements; `constant_bytes`.
//! - `layers`, `layer_bytes`: those that schemes can replace, embeddings not among them.
//! - `flops`: multiplications and additions of products and convolutions, for the dimensions given; null where one is
//!   open.
//!
//! Of an artifact:
//!
//! - `path`, `producer`, `model`, `file_bytes`, `weights_bytes`, `code_bytes`.
//! - `entries`: objects with `dims`, `inputs`, `outputs` and `sections`, their code: objects with `backend`, `target`,
//!   `machine`, `steps`, `arena_bytes`, `code_bytes`.
//! - `layer_bytes_before`, `layer_bytes_after`: stored bytes of the weights that schemes can replace; `held_out`:
//!   `relative_l2`, `cosine`, `samples`; `plan`: the plan as TOML. Null in a stripped artifact.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use margay_artifact::{Artifact, CodeSection, Entry};
use margay_driver::{Dump, ErrorMeasure, Source, backend, build, is_artifact};
use margay_ir::{Graph, Op};
use margay_onnx::Model;
use margay_passes::sketch::modules;
use margay_tensor::Binding;
use serde::Serialize;

use crate::args::dim;
use crate::error::Failure;
use crate::explain::report_of;
use crate::model::open_artifact;
use crate::table::{Table, bytes, count, percent, significant};
use crate::{Reply, json};

const JSON: &str = r#"With --json, of an ONNX file:
  {"path", "hash", "inputs": [{"name", "type"}], "outputs": [{"name", "type"}], "dimensions": [],
   "nodes", "canonical_nodes", "parameters", "constant_bytes", "layers", "layer_bytes", "flops"}
Of an artifact:
  {"path", "producer", "model", "file_bytes", "weights_bytes", "code_bytes",
   "entries": [{"dims": {}, "inputs", "outputs", "sections":
   [{"backend", "target", "machine", "steps", "arena_bytes", "code_bytes"}]}],
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
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Port {
    name: String,
    r#type: String,
}

#[derive(Serialize)]
struct ModelReport {
    path: String,
    hash: String,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    dimensions: Vec<String>,
    nodes: usize,
    canonical_nodes: usize,
    parameters: usize,
    constant_bytes: usize,
    layers: usize,
    layer_bytes: u64,
    flops: Option<u64>,
}

#[derive(Serialize)]
struct ArtifactReport {
    path: String,
    producer: String,
    model: String,
    file_bytes: usize,
    weights_bytes: usize,
    code_bytes: usize,
    entries: Vec<EntryReport>,
    layer_bytes_before: Option<u64>,
    layer_bytes_after: Option<u64>,
    held_out: Option<ErrorMeasure>,
    plan: Option<String>,
}

#[derive(Serialize)]
struct EntryReport {
    dims: BTreeMap<String, i64>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    sections: Vec<SectionReport>,
}

#[derive(Serialize)]
struct SectionReport {
    backend: String,
    target: String,
    machine: String,
    steps: usize,
    arena_bytes: usize,
    code_bytes: usize,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let path = &args.model;
    if is_artifact(path)? {
        if !args.dims.is_empty() {
            return Err(Failure::usage(
                "the dimensions of an artifact are fixed: `--dim` does not apply to it",
            ));
        }
        let report = artifact_report(&open_artifact(path)?)?;
        return Ok(if args.json { json(&report)? } else { artifact_text(&report) }.into());
    }
    let report = model_report(path, &args.dims)?;
    Ok(if args.json { json(&report)? } else { model_text(&report) }.into())
}

fn model_report(path: &Path, dims: &[(String, Vec<i64>)]) -> Result<ModelReport, Failure> {
    let model = Model::open(path)?;
    let graph = margay_onnx::import(&model)?;
    let source = Source::new(graph, &path.display().to_string(), &mut Dump::none())?;
    let g = &source.graph;
    let mut constants = BTreeMap::new();
    for n in g.order() {
        if let Op::Const(c) = g.op(n) {
            constants.insert(c.payload.key().to_string(), c.payload.tensor().clone());
        }
    }
    let parameters = constants.values().filter(|t| t.dtype().is_float()).map(|t| t.len()).sum();
    let layers = modules(g);
    let inputs = g.inputs().iter().filter_map(|n| match g.op(*n) {
        Op::Input(input) => Some(Port { name: input.name.to_string(), r#type: input.ty.to_string() }),
        _ => None,
    });
    let outputs = g.outputs().iter();
    Ok(ModelReport {
        path: path.display().to_string(),
        hash: source.hash.clone(),
        inputs: inputs.collect(),
        outputs: outputs
            .map(|o| Port { name: o.name.to_string(), r#type: g.ty(o.value).to_string() })
            .collect(),
        dimensions: g.symbols().iter().map(ToString::to_string).collect(),
        nodes: model.graph.nodes.len(),
        canonical_nodes: g
            .order()
            .iter()
            .filter(|n| !matches!(g.op(**n), Op::Const(_) | Op::Input(_)))
            .count(),
        parameters,
        constant_bytes: constants.values().map(|t| t.bytes().len()).sum(),
        layers: layers.len(),
        layer_bytes: layers.iter().map(margay_passes::sketch::Module::bytes).sum(),
        flops: flops(g, dims)?,
    })
}

/// Operations for the dimensions given, if they are all.
fn flops(g: &Graph, dims: &[(String, Vec<i64>)]) -> Result<Option<u64>, Failure> {
    let symbols = g.symbols();
    let mut binding = Binding::new();
    for (name, values) in dims {
        let (true, [value]) = (symbols.iter().any(|s| **s == *name), values.as_slice()) else {
            let known: Vec<String> = symbols.iter().map(|s| format!("`{s}`")).collect();
            let message = format!("`--dim {name}`: expected one value of one of {}", known.join(", "));
            return Err(Failure::usage(message));
        };
        binding.insert(name.as_str().into(), *value);
    }
    if symbols.iter().any(|s| !binding.contains_key(s)) {
        return Ok(None);
    }
    let bound = build::bind(g, &binding, &mut Dump::none())?;
    let program =
        margay_lower::lower(&bound, &*backend::native()).map_err(margay_driver::DriverError::from)?;
    Ok(Some(program.flops()))
}

fn artifact_report(artifact: &Artifact) -> Result<ArtifactReport, Failure> {
    let description = artifact.description();
    let stripped = description.sources.is_empty();
    let report = if stripped { None } else { Some(report_of(artifact)?) };
    let plan = artifact.source("plan.toml")?.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    Ok(ArtifactReport {
        path: artifact.path().display().to_string(),
        producer: description.producer.clone(),
        model: description.model.clone(),
        file_bytes: artifact.file_bytes(),
        weights_bytes: artifact.weights().len(),
        code_bytes: artifact.code().len(),
        entries: description.entries.iter().map(entry_report).collect(),
        layer_bytes_before: report.as_ref().map(|r| r.bytes_before),
        layer_bytes_after: report.as_ref().map(|r| r.bytes_after),
        held_out: report.and_then(|r| r.held_out),
        plan,
    })
}

fn entry_report(entry: &Entry) -> EntryReport {
    let ports = |ports: &[margay_loops::Port]| {
        let each = ports.iter();
        each.map(|p| Port { name: p.name.clone(), r#type: format!("{}{:?}", p.dtype, p.shape) }).collect()
    };
    EntryReport {
        dims: entry.parts.symbols.clone(),
        inputs: ports(&entry.parts.inputs),
        outputs: ports(&entry.parts.outputs),
        sections: entry.sections.iter().map(section_report).collect(),
    }
}

fn section_report(section: &CodeSection) -> SectionReport {
    let parts = &section.parts;
    SectionReport {
        backend: parts.backend.clone(),
        target: parts.target.clone(),
        machine: parts.machine.clone(),
        steps: parts.steps.len(),
        arena_bytes: parts.arena_bytes,
        code_bytes: section.code.len(),
    }
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
    row("parameters", format!("{} ({})", report.parameters, bytes(report.constant_bytes as u64)));
    row("layers", format!("{} that schemes can replace ({})", report.layers, bytes(report.layer_bytes)));
    row(
        "operations",
        report.flops.map_or("give `--dim NAME=N` for the open dimensions".into(), |f| {
            format!("{} ({})", f, count(f))
        }),
    );
    table.to_string()
}

fn artifact_text(report: &ArtifactReport) -> String {
    let mut table = Table::new(&["artifact", &report.path]);
    let mut row = |name: &str, value: String| table.row([name.to_string(), value]);
    row("model", report.model.clone());
    row("made by", report.producer.clone());
    row("file", format!("{} bytes ({})", report.file_bytes, bytes(report.file_bytes as u64)));
    row("constants", bytes(report.weights_bytes as u64));
    row("code", bytes(report.code_bytes as u64));
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
            format!(
                "{} relative L2, cosine {:.5}, on {} samples held out",
                significant(e.relative_l2),
                e.cosine,
                e.samples
            ),
        );
    }
    let mut entries = Table::new(&["inputs", "outputs", "code for", ">steps", ">arena", ">code"]);
    for e in &report.entries {
        let ports = [list(&e.inputs), list(&e.outputs)];
        for (i, s) in e.sections.iter().enumerate() {
            let [inputs, outputs] = if i == 0 { ports.clone() } else { Default::default() };
            entries.row([
                inputs,
                outputs,
                format!("{} {}, {}", s.backend, s.target, s.machine),
                s.steps.to_string(),
                bytes(s.arena_bytes as u64),
                bytes(s.code_bytes as u64),
            ]);
        }
    }
    let plan = report.plan.as_ref().map_or(String::new(), |plan| format!("\n{plan}"));
    format!("{table}\n{entries}{plan}")
}
