//! `margay run`: inputs in, outputs out.

use std::path::PathBuf;

use margay::{
    Error, ErrorScope, Given, KnownInputs, MaskChoice, Precision, Predictor, RunOptions, Tolerance,
    compare_outputs, write_npz,
};

use crate::args::{InputArgs, RunArgs, not_negative, note_fixed, note_runs, precision};
use crate::compare::past_tolerance;
use crate::device::chosen;
use crate::error::Failure;
use crate::save::{check_distinct, check_writable, save};
use crate::{Reply, note, warn};

/// Run a model on inputs and write its outputs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An ONNX file, compiled for the shapes of the inputs, or an artifact.
    #[arg(value_name = "MODEL.onnx|ARTIFACT")]
    model: PathBuf,
    #[command(flatten)]
    inputs: InputArgs,
    /// Where the outputs go, under their names. May be left out where test data say what is right.
    #[arg(long, value_name = "FILE.npz")]
    outputs: Option<PathBuf>,
    /// Relative tolerance of every element that test data say the right value of.
    #[arg(long, value_name = "R", default_value_t = 1e-3, value_parser = not_negative)]
    rtol: f64,
    /// Absolute tolerance of every such element.
    #[arg(long, value_name = "A", default_value_t = 1e-5, value_parser = not_negative)]
    atol: f64,
    /// Precision of products with constant matrices of an ONNX file.
    #[arg(long, value_name = "f32|bf16|int8|int4", default_value = "f32", value_parser = precision)]
    precision: Precision,
    /// Device that runs the model: cpu, cuda, or cuda:1 for the second one; cuda-or-cpu for cuda if a device is found that is not
    /// too old for the code, and else for cpu (a missing kernel, too little memory and a device that fails are errors all the same);
    /// or, slowly and with every access checked, reference, or emulated, which runs code for cuda [default: the first that an
    /// artifact has code for, and cpu for an ONNX file].
    #[arg(long = "device", alias = "backend", value_name = "NAME[:NUMBER]")]
    backend: Option<String>,
    /// On a device, wait for each step before the next one, so that a failure is told with the step. Slower.
    #[arg(long)]
    step_by_step: bool,
    #[command(flatten)]
    how: RunArgs,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    if let Some(outputs) = &args.outputs {
        check_writable(outputs)?;
        if outputs.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) {
            let message = format!(
                "`--outputs {}`: an archive of all outputs is written, expected a name such as out.npz",
                outputs.display()
            );
            return Err(Failure::usage(message));
        }
    }
    let inputs = args.inputs.paths();
    let mut read = vec![("the model", Some(args.model.as_path()))];
    read.extend(inputs.iter().map(|path| ("`--data`", Some(path.as_path()))));
    check_distinct(&[("`--outputs`", args.outputs.as_deref())], &read)?;
    let options = RunOptions {
        threads: args.how.threads.get(),
        precision: args.precision,
        backend: args.backend.as_deref().map(|name| chosen(name, Some(&args.model))).transpose()?,
        step_by_step: args.step_by_step,
        huge_pages: args.how.huge_pages,
        ..RunOptions::default()
    };
    let Given { inputs, expected, not_finite, .. } = args.inputs.read(&args.model)?;
    warn(&not_finite);
    if args.outputs.is_none() && expected.is_none() {
        return Err(Failure::usage("there is nothing to do with the outputs: give `--outputs FILE.npz`"));
    }
    let mut model = Predictor::open_for(&args.model, &options, &KnownInputs::of(&inputs))?;
    note_fixed(&model);
    let outputs = model.predict(&inputs).map_err(failed)?;
    note_runs(&model, &inputs)?;
    if let Some(path) = &args.outputs {
        save(path, |out| write_npz(out, &outputs))?;
        let list: Vec<String> =
            outputs.iter().map(|(name, t)| format!("{name} {}{:?}", t.dtype(), t.shape())).collect();
        note(format!("wrote {} to {}", list.join(", "), path.display()));
    }
    if let Some(expected) = expected {
        let found = compare_outputs(
            &inputs,
            &expected,
            &outputs,
            &ErrorScope { mask: MaskChoice::Nothing, outputs: Vec::new() },
            Tolerance { rtol: args.rtol, atol: args.atol },
        )?;
        if let Some(failure) = past_tolerance(&found, args.rtol, args.atol) {
            return Err(failure);
        }
        note(format!("{} outputs are what the test data say", found.len()));
    }
    Ok(Reply::default())
}

/// The failure of a run; where one of several steps is at fault, with what tells which one.
fn failed(error: Error) -> Failure {
    let is_open = match &error {
        Error::Run(error) => error.failed_steps().is_some_and(|steps| !steps.is_one()),
        _ => false,
    };
    let failure = Failure::from(error);
    match is_open {
        true => {
            failure.with_help("`--step-by-step` waits for each step, and tells which one it is".to_owned())
        }
        false => failure,
    }
}
