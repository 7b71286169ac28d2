//! `margay check`: whether margay can take a model, and what it could not.
//!
//! `--json` prints an object:
//!
//! - `path`, `producer`, `ir_version`, `opset`; `supported`: whether there are no problems.
//! - `inputs`, `outputs`: objects with `name` and `type`; `dimensions`: names of the extents the model leaves open.
//! - `operators`: objects with `name`, `count`, `supported`, sorted by name.
//! - `non_finite`: weights that hold infinities or what is not a number, as objects with `tensor`, `nan`, `infinite`,
//!   `first` (index of the first such element).
//! - `problems`: objects with `kind` (`unsupported` or `malformed`) and `message`.
//!
//! Weights that are not a number are a problem; infinities alone, as masks hold them, are not.

use std::collections::BTreeMap;
use std::path::PathBuf;

use margay_driver::{Dump, Kind, Source, build, check_numbers};
use margay_ir::{Graph, Op};
use margay_onnx::{Model, OnnxError, import, supported_operators};
use serde::Serialize;

use crate::error::Failure;
use crate::table::Table;
use crate::{Reply, json};

const JSON: &str = r#"With --json:
  {"path", "producer", "ir_version", "opset", "supported",
   "inputs": [{"name", "type"}], "outputs": [{"name", "type"}], "dimensions": [],
   "operators": [{"name", "count", "supported"}],
   "non_finite": [{"tensor", "nan", "infinite", "first"}],
   "problems": [{"kind", "message"}]}"#;

/// Tell whether a model can be compiled: its operators, shapes and weights.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// An ONNX file.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    path: String,
    producer: String,
    ir_version: i64,
    opset: i64,
    supported: bool,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    dimensions: Vec<String>,
    operators: Vec<Operator>,
    non_finite: Vec<NonFinite>,
    problems: Vec<Found>,
}

#[derive(Serialize)]
struct Port {
    name: String,
    r#type: String,
}

#[derive(Serialize)]
struct Operator {
    name: String,
    count: usize,
    supported: bool,
}

#[derive(Serialize)]
struct NonFinite {
    tensor: String,
    nan: usize,
    infinite: usize,
    first: usize,
}

#[derive(Serialize)]
struct Found {
    kind: &'static str,
    message: String,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let model = Model::open(&args.model)?;
    let mut problems = Vec::new();
    let graph = match import(&model) {
        Ok(graph) => Some(graph),
        Err(OnnxError::Invalid(found)) => {
            let word = |kind| match kind {
                margay_onnx::Kind::Malformed => "malformed",
                margay_onnx::Kind::Unsupported => "unsupported",
            };
            problems.extend(found.iter().map(|p| Found { kind: word(p.kind()), message: p.to_string() }));
            None
        }
        Err(other) => return Err(other.into()),
    };
    if let Some(graph) = &graph {
        let failed = match Source::new(graph.clone(), graph.name(), &mut Dump::none()) {
            Ok(source) => build::try_jit(&source.graph).err(),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            problems.push(Found { kind: "unsupported", message: error.to_string() });
        }
    }
    let non_finite: Vec<NonFinite> = model
        .non_finite()
        .into_iter()
        .map(|f| NonFinite { tensor: f.tensor, nan: f.nan, infinite: f.infinite, first: f.first })
        .collect();
    if let Err(error) = check_numbers(&model) {
        problems.push(Found { kind: "malformed", message: error.to_string() });
    }
    let (inputs, outputs) = match &graph {
        Some(graph) => ports_of_graph(graph),
        None => (ports_of_model(&model.graph.inputs), ports_of_model(&model.graph.outputs)),
    };
    let report = Report {
        path: args.model.display().to_string(),
        producer: [model.producer.as_str(), &model.producer_version].join(" ").trim().to_string(),
        ir_version: model.ir_version,
        opset: model.opset,
        supported: problems.is_empty(),
        inputs,
        outputs,
        dimensions: graph.iter().flat_map(Graph::symbols).map(|s| s.to_string()).collect(),
        operators: operators(&model),
        non_finite,
        problems,
    };
    let failure = (!report.supported).then(|| {
        let malformed = report.problems.iter().any(|p| p.kind == "malformed");
        let kind = if malformed { Kind::Malformed } else { Kind::Usage };
        let lines: Vec<String> = report.problems.iter().map(|p| format!("\n  {}", p.message)).collect();
        Failure::new(kind, format!("{} problem(s):{}", lines.len(), lines.concat()))
    });
    Ok(Reply { text: if args.json { json(&report)? } else { text(&report) }, failure })
}

fn ports_of_graph(g: &Graph) -> (Vec<Port>, Vec<Port>) {
    let inputs = g.inputs().iter().filter_map(|n| match g.op(*n) {
        Op::Input(input) => Some(Port { name: input.name.to_string(), r#type: input.ty.to_string() }),
        _ => None,
    });
    let outputs = g.outputs().iter();
    let outputs = outputs.map(|o| Port { name: o.name.to_string(), r#type: g.ty(o.value).to_string() });
    (inputs.collect(), outputs.collect())
}

fn ports_of_model(values: &[margay_onnx::OnnxValue]) -> Vec<Port> {
    let list = |dims: &[margay_onnx::OnnxDim]| {
        let texts: Vec<String> = dims.iter().map(ToString::to_string).collect();
        format!("[{}]", texts.join(", "))
    };
    let port = |v: &margay_onnx::OnnxValue| Port {
        name: v.name.clone(),
        r#type: v.dtype.map_or("?".into(), |d| d.to_string())
            + &v.dims.as_deref().map_or(String::new(), list),
    };
    values.iter().map(port).collect()
}

fn operators(model: &Model) -> Vec<Operator> {
    let mut counts: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    for node in &model.graph.nodes {
        let opset = model.opset_of(&node.domain);
        let supported = supported_operators()
            .any(|(domain, name, since)| domain == node.domain && name == node.op_type && opset >= since);
        counts.entry(node.operator()).or_insert((0, supported)).0 += 1;
    }
    counts.into_iter().map(|(name, (count, supported))| Operator { name, count, supported }).collect()
}

fn text(report: &Report) -> String {
    let list = |ports: &[Port]| {
        let each: Vec<String> = ports.iter().map(|p| format!("{}: {}", p.name, p.r#type)).collect();
        each.join(", ")
    };
    let mut head = Table::new(&["model", &report.path]);
    let producer = if report.producer.is_empty() { "unknown" } else { &report.producer };
    head.row(["made by".to_string(), format!("{producer}, operator set {}", report.opset)]);
    head.row(["inputs", &list(&report.inputs)]);
    head.row(["outputs", &list(&report.outputs)]);
    let open = if report.dimensions.is_empty() { "none".into() } else { report.dimensions.join(", ") };
    head.row(["open dimensions", &open]);
    let mut operators = Table::new(&["operator", ">nodes", "supported"]);
    for o in &report.operators {
        operators.row([o.name.clone(), o.count.to_string(), if o.supported { "yes" } else { "no" }.into()]);
    }
    let mut text = format!("{head}\n{operators}");
    for f in report.non_finite.iter().filter(|f| f.nan == 0) {
        text += &format!("\nweight `{}` holds {} infinities, as masks do\n", f.tensor, f.infinite);
    }
    if report.supported {
        text += "\nThe model can be compiled.\n";
    }
    text
}
