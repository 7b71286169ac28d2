//! `margay run`: inputs in, outputs out.

use std::path::PathBuf;

use margay::{Precision, Predictor, RunOptions, write_npz};

use crate::args::{InputArgs, RunArgs, precision};
use crate::error::Failure;
use crate::save::{check_distinct, check_writable, save};
use crate::{Reply, note};

/// Run a model on inputs and write its outputs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An ONNX file, compiled for the shapes of the inputs, or an artifact.
    #[arg(value_name = "MODEL.onnx|ARTIFACT")]
    model: PathBuf,
    #[command(flatten)]
    inputs: InputArgs,
    /// Where the outputs go, under their names.
    #[arg(long, value_name = "FILE.npz")]
    outputs: PathBuf,
    /// Precision of products with constant matrices of an ONNX file.
    #[arg(long, value_name = "f32|bf16|int8", default_value = "f32", value_parser = precision)]
    precision: Precision,
    /// Back end whose code of an artifact is run: cpu, or reference, which interprets, slowly, and checks every access.
    #[arg(long, value_name = "NAME", hide = true)]
    backend: Option<String>,
    #[command(flatten)]
    how: RunArgs,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    check_writable(&args.outputs)?;
    let inputs = args.inputs.paths();
    let mut read = vec![("the model", Some(args.model.as_path()))];
    read.extend(inputs.iter().map(|path| ("`--inputs`", Some(path.as_path()))));
    check_distinct(&[("`--outputs`", Some(&args.outputs))], &read)?;
    let options = RunOptions {
        threads: args.how.threads.get(),
        precision: args.precision,
        backend: args.backend.clone(),
        huge_pages: args.how.huge_pages,
    };
    let mut inputs = args.inputs.read()?;
    let (mut model, fixed) = Predictor::open_deciding(&args.model, &options, &inputs)?;
    inputs.retain(|(name, _)| !fixed.contains(name));
    let outputs = model.predict(&inputs)?;
    if !fixed.is_empty() {
        note(format!("compiled for these values of `{}`", fixed.join("`, `")));
    }
    save(&args.outputs, |out| write_npz(out, &outputs))?;
    let list: Vec<String> =
        outputs.iter().map(|(name, t)| format!("{name} {}{:?}", t.dtype(), t.shape())).collect();
    note(format!("wrote {} to {}", list.join(", "), args.outputs.display()));
    Ok(Reply::default())
}
