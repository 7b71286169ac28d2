//! `rten-peer MODEL.onnx THREADS INPUTS`: rten's side of the comparison; see `../protocol.rs`.
//!
//! Weights are prepacked, as rten's documentation advises for models that run often; inputs are views.

use std::sync::Arc;
use std::time::Instant;

use rten::{ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView};
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

#[path = "../protocol.rs"]
mod protocol;

use protocol::{Arguments, Fallible, Input, Peer, Values};

struct Rten {
    model: rten::Model,
    options: RunOptions,
    inputs: Vec<(NodeId, Value)>,
    outputs: Vec<Value>,
}

impl Peer for Rten {
    fn run(&mut self) -> Fallible<()> {
        let inputs = self.inputs.iter().map(|(id, value)| (*id, ValueOrView::from(value))).collect();
        self.outputs = self.model.run(inputs, self.model.output_ids(), Some(self.options.clone()))?;
        Ok(())
    }

    fn outputs(&mut self) -> Fallible<Vec<Vec<f32>>> {
        let values = |value: &Value| -> Fallible<Vec<f32>> {
            let tensor: Tensor<f32> = value.clone().try_into().map_err(|_| "an output is not f32")?;
            Ok(tensor.to_vec())
        };
        self.outputs.iter().map(values).collect()
    }
}

/// rten keeps 64-bit integers as 32-bit ones.
fn value(input: Input) -> Fallible<Value> {
    Ok(match input.values {
        Values::F32(values) => Tensor::from_data(&input.shape, values).into(),
        Values::I64(values) => {
            let narrow = values.into_iter().map(i32::try_from).collect::<Result<Vec<i32>, _>>()?;
            Tensor::from_data(&input.shape, narrow).into()
        }
    })
}

fn main() -> Fallible<()> {
    let arguments = Arguments::read()?;
    let started = Instant::now();
    let model = ModelOptions::with_all_ops().prepack_weights(true).load_file(&arguments.model)?;
    let pool = Arc::new(ThreadPool::with_num_threads(arguments.threads));
    let options = RunOptions::default().with_thread_pool(Some(pool));
    let input = |input: Input| Ok((model.node_id(&input.name)?, value(input)?));
    let inputs = arguments.inputs.into_iter().map(input).collect::<Fallible<_>>()?;
    protocol::serve(&mut Rten { model, options, inputs, outputs: Vec::new() }, "0.27.0", started)
}
