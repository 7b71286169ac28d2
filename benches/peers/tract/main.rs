//! `tract-peer MODEL.onnx THREADS INPUTS`: tract's side of the comparison; see `../protocol.rs`.
//!
//! The model is optimized for the shapes of the inputs; threads share matrix products, the one thing that tract
//! spreads.

use std::time::Instant;

use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::*;

#[path = "../protocol.rs"]
mod protocol;

use protocol::{Arguments, Fallible, Input, Peer, Values};

struct Tract {
    state: TypedSimpleState,
    inputs: TVec<TValue>,
    outputs: TVec<TValue>,
}

impl Peer for Tract {
    fn run(&mut self) -> Fallible<()> {
        self.outputs = self.state.run(self.inputs.clone())?;
        Ok(())
    }

    fn outputs(&mut self) -> Fallible<Vec<Vec<f32>>> {
        self.outputs.iter().map(|t| Ok(t.to_plain_array_view::<f32>()?.iter().copied().collect())).collect()
    }
}

fn tensor(values: &Values, shape: &[usize]) -> Fallible<Tensor> {
    Ok(match values {
        Values::F32(values) => Tensor::from_shape(shape, values)?,
        Values::I64(values) => Tensor::from_shape(shape, values)?,
    })
}

fn main() -> Fallible<()> {
    let arguments = Arguments::read()?;
    let started = Instant::now();
    if arguments.threads > 1 {
        set_default_executor(Executor::multithread(arguments.threads));
    }
    let mut model = tract_onnx::onnx().model_for_path(&arguments.model)?;
    let mut inputs = TVec::new();
    let names: Vec<String> =
        model.input_outlets()?.iter().map(|outlet| model.node(outlet.node).name.clone()).collect();
    for (i, name) in names.iter().enumerate() {
        let find = |input: &&Input| input.name == *name;
        let input = arguments.inputs.iter().find(find).ok_or_else(|| format!("no input `{name}`"))?;
        let tensor = tensor(&input.values, &input.shape)?;
        model.set_input_fact(i, InferenceFact::dt_shape(tensor.datum_type(), &input.shape))?;
        inputs.push(tensor.into_tvalue());
    }
    let state = model.into_optimized()?.into_runnable()?.spawn()?;
    protocol::serve(&mut Tract { state, inputs, outputs: TVec::new() }, "0.23.9", started)
}
