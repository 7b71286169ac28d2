//! `margay check`: whether margay can take a model, and what it could not.
//!
//! `--json` prints an object:
//!
//! - `path`, `producer`, `ir_version`, `opset`; `supported`: whether there are no problems.
//! - `inputs`, `outputs`: objects with `name` and `type`; `dimensions`: names of the extents the model leaves open.
//! - `guards`: equations between extents that the import assumed, as text; `layers`: what schemes can replace, as an
//!   object with `count`, `bytes` and `constant_bytes`, or null where the model cannot be imported.
//! - `operators`: objects with `name`, `count`, `supported`, sorted by name.
//! - `non_finite`: weights that hold infinities or what is not a number, as objects with `tensor`, `nan`, `infinite`,
//!   `first` (index of the first such element).
//! - `problems`: objects with `kind` (`unsupported`, `malformed`, or `internal` for a bug of margay) and `message`.
//!
//! Weights that are not a number are a problem; infinities alone, as masks hold them, are not.

use std::path::PathBuf;

use margay::{Check, Kind, Port, ProblemKind, check};

use crate::args::{fixed_input, named_extent};
use crate::error::Failure;
use crate::table::{Table, bytes};
use crate::{Reply, json};

const JSON: &str = r#"With --json:
  {"path", "producer", "ir_version", "opset", "supported",
   "inputs": [{"name", "type"}], "outputs": [{"name", "type"}], "dimensions": [], "guards": [],
   "layers": {"count", "bytes", "constant_bytes"},
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
    /// Value of a dimension the model leaves open.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = named_extent)]
    dims: Vec<(String, usize)>,
    /// Take an input for a constant: this number in every element.
    #[arg(long = "fix", value_name = "INPUT=NUMBER", value_parser = fixed_input)]
    fixed: Vec<(String, f64)>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let dims: Vec<(String, i64)> = args.dims.iter().map(|(name, n)| (name.clone(), *n as i64)).collect();
    let report = check(&args.model, &dims, &args.fixed)?;
    let failure = (!report.supported).then(|| {
        let any = |kind| report.problems.iter().any(|p| p.kind == kind);
        let kind = match (any(ProblemKind::Internal), any(ProblemKind::Malformed)) {
            (true, _) => Kind::Internal,
            (false, true) => Kind::Malformed,
            (false, false) => Kind::Usage,
        };
        let lines: Vec<String> = report.problems.iter().map(|p| format!("\n  {}", p.message)).collect();
        Failure::new(kind, format!("{} problem(s):{}", lines.len(), lines.concat()))
    });
    Ok(Reply { text: if args.json { json(&report)? } else { text(&report, &args.dims) }, failure })
}

fn text(report: &Check, given: &[(String, usize)]) -> String {
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
    for guard in &report.guards {
        head.row(["assumed", guard]);
    }
    if let Some(layers) = report.layers {
        let share = 100.0 * layers.bytes as f64 / (layers.constant_bytes as f64).max(1.0);
        let (own, all) = (bytes(layers.bytes), bytes(layers.constant_bytes));
        head.row([
            "layers",
            &format!("{} that schemes can replace, {own} of {all} of constants ({share:.0}%)", layers.count),
        ]);
    }
    let mut operators = Table::new(&["operator", ">nodes", "supported"]);
    for o in &report.operators {
        operators.row([o.name.clone(), o.count.to_string(), if o.supported { "yes" } else { "no" }.into()]);
    }
    let mut text = format!("{head}\n{operators}");
    for f in &report.non_finite {
        let found = match f.nan {
            0 => format!("{} infinities, as masks do", f.infinite),
            nan => {
                format!(
                    "{nan} elements that are not a number; the first that is not finite is at {}",
                    f.first
                )
            }
        };
        text += &format!("\nweight `{}` holds {found}\n", f.tensor);
    }
    if report.supported {
        text += "\nThe model can be compiled.\n";
        let is_given = |name: &String| given.iter().any(|(of, _)| of == name);
        if let Some(first) = report.dimensions.iter().find(|name| !is_given(name)) {
            text += &format!(
                "Give every open dimension a value or a range, `--dim {first}=1` or `--dim {first}=1..8`.\n"
            );
        }
    }
    text
}
