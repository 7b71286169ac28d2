//! `margay-peer MODEL.margay THREADS INPUTS`: margay's side of the comparison; see `protocol.rs`.
//!
//! Runs an artifact as a program that embeds the runtime would: inputs stay in place, and outputs are read where the
//! session left them.

use std::time::Instant;

use margay_artifact::Artifact;
use margay_runtime::{Executable, Session, SessionOptions};
use margay_tensor::Tensor;

mod protocol;

use protocol::{Arguments, Fallible, Input, Peer, Values};

struct Margay {
    session: Session,
    inputs: Vec<(String, Tensor)>,
}

impl Margay {
    fn run_in_place(&mut self) -> Fallible<margay_runtime::Outputs<'_>> {
        let inputs: Vec<(&str, &Tensor)> = self.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        Ok(self.session.run_in_place(&inputs)?)
    }
}

impl Peer for Margay {
    fn run(&mut self) -> Fallible<()> {
        self.run_in_place().map(|_| ())
    }

    fn outputs(&mut self) -> Fallible<Vec<Vec<f32>>> {
        let outputs = self.run_in_place()?;
        outputs.tensors().map(|t| Ok(t.to_vec::<f32>()?)).collect()
    }
}

fn tensor(input: Input) -> Fallible<(String, Tensor)> {
    let tensor = match input.values {
        Values::F32(values) => Tensor::from_slice(&input.shape, &values)?,
        Values::I64(values) => Tensor::from_slice(&input.shape, &values)?,
    };
    Ok((input.name, tensor))
}

fn main() -> Fallible<()> {
    let arguments = Arguments::read()?;
    let started = Instant::now();
    let executable = Executable::from_artifact(&Artifact::open(&arguments.model)?)?;
    let session = Session::new(&executable, SessionOptions { threads: arguments.threads })?;
    let inputs = arguments.inputs.into_iter().map(tensor).collect::<Fallible<_>>()?;
    protocol::serve(&mut Margay { session, inputs }, env!("CARGO_PKG_VERSION"), started)
}
