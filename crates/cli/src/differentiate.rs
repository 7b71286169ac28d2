//! `margay differentiate`: a model that computes derivatives of its output, as plain ONNX.

use std::path::PathBuf;

use margay::{differentiate, export_graph, open};

use crate::error::Failure;
use crate::save::{check_distinct, check_writable};
use crate::{Reply, note};

/// Write a model as ONNX that also computes the derivatives of its output.
///
/// They are further outputs, `gradient.NAME`. For an output that is no scalar, they are those of its sum weighted by a
/// further input `cotangent` of the same shape.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An ONNX file, or an artifact that carries its graph.
    #[arg(value_name = "MODEL.onnx|ARTIFACT")]
    model: PathBuf,
    /// The ONNX file to write.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// The output that derivatives are taken of; needed where the model has several of floats.
    #[arg(long, value_name = "NAME")]
    of: Option<String>,
    /// The inputs and weights that derivatives are taken by, several separated by commas [default: all weights].
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    by: Option<Vec<String>>,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    check_writable(&args.output)?;
    let read = [("the model", Some(args.model.as_path()))];
    check_distinct(&[("`-o`", Some(&args.output))], &read)?;
    let source = open(&args.model)?;
    let (graph, remarks) = differentiate(&source.graph, args.of.as_deref(), args.by.as_deref())?;
    export_graph(&graph, None, &args.output)?;
    for r in remarks {
        note(format!("{} at `{}`: {}", r.pass, r.at, r.message));
    }
    note(format!("wrote {}", args.output.display()));
    Ok(Reply::default())
}
