//! `margay export`: a sketched model as plain ONNX.

use std::path::PathBuf;

use margay::{Dump, compile, export_artifact, export_graph, is_artifact, open_artifact, open_with};

use crate::args::GoalArgs;
use crate::error::Failure;
use crate::progress::Bars;
use crate::save::{check_distinct, check_writable};
use crate::{Reply, note, warn};

/// Write the sketched model as ONNX: ordinary operators, original names, open dimensions still open.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An artifact, or an ONNX file, which is sketched if a goal or a plan is given.
    #[arg(value_name = "ARTIFACT|MODEL.onnx")]
    model: PathBuf,
    /// The ONNX file to write.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    #[command(flatten)]
    goal: GoalArgs,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    check_writable(&args.output)?;
    let read = [("the model", Some(args.model.as_path())), ("`--data`", args.goal.data())];
    check_distinct(&[("`-o`", Some(&args.output))], &read)?;
    if is_artifact(&args.model)? {
        if !args.goal.is_default() {
            return Err(Failure::usage(
                "an artifact has been compiled: goals and samples do not apply to it",
            ));
        }
        export_artifact(&open_artifact(&args.model)?, &args.output)?;
    } else {
        let (options, samples) = (args.goal.options()?, args.goal.samples(&args.model)?);
        let source = open_with(&args.model, &options.known_inputs(samples.as_ref()), &mut Dump::none())?;
        if args.goal.is_dense() {
            export_graph(&source.graph, None, &args.output)?;
        } else {
            let compiled = compile(&source, samples.as_ref(), &options, &Bars::new())?;
            warn(&compiled.report.warnings);
            compiled.export(&args.output)?;
        }
    }
    note(format!("wrote {}", args.output.display()));
    Ok(Reply::default())
}
