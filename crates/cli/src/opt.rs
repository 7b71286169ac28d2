//! `margay opt`: passes on the text form of a graph, one by one.
//!
//! Constants that the text only names are looked up in `consts.safetensors` beside the file, under the names the text
//! has for them; those that are not there are filled with random numbers that depend on the name alone.

use std::path::{Path, PathBuf};

use margay::ir::{TensorType, text};
use margay::passes::{PASSES, Pipeline, PipelineItem};
use margay::random::{Philox, stream_of};
use margay::{DType, Tensor};
use safetensors::SafeTensors;

use crate::error::Failure;
use crate::save::save_text;
use crate::{Reply, note};

/// Run passes on a graph in text form and print the result.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A graph in text form, as --dump-dir writes it.
    #[arg(value_name = "FILE.ir")]
    graph: PathBuf,
    /// The passes, in order.
    #[arg(long, value_name = "PASS,PASS", value_delimiter = ',', required = true)]
    passes: Vec<String>,
    /// Write the result into a file instead of printing it.
    #[arg(short, long, value_name = "OUT.ir")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let mut steps = Vec::new();
    for name in args.passes.iter().map(|n| n.trim()).filter(|n| !n.is_empty()) {
        let Some(entry) = PASSES.iter().find(|p| p.name == name) else {
            let known: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
            return Err(Failure::usage(format!("there is no pass `{name}`"))
                .help(format!("known are {}", known.join(", "))));
        };
        steps.push(PipelineItem::Run((entry.make)()));
    }
    let path = &args.graph;
    let text = std::fs::read_to_string(path).map_err(|e| Failure::read(path, e))?;
    let mut g = parse(path, &text)?;
    let remarks = Pipeline::new(steps).run(&mut g, &mut |_| {}).map_err(margay::Error::from)?;
    for r in remarks {
        note(format!("{} at `{}`: {}", r.pass, r.at, r.message));
    }
    let text = g.to_string();
    match &args.output {
        None => Ok(text.into()),
        Some(output) => {
            save_text(output, &text)?;
            Ok(Reply::default())
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<margay::ir::Graph, Failure> {
    let beside = path.with_file_name("consts.safetensors");
    let bytes = match std::fs::read(&beside) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Failure::read(&beside, e)),
    };
    let stored = bytes.as_deref().map(SafeTensors::deserialize).transpose();
    let stored = stored.map_err(|e| Failure::read(&beside, e))?;
    let made_up = std::cell::Cell::new(0);
    let resolve = |key: &str, ty: &TensorType| {
        if let Some(tensor) = stored.as_ref().and_then(|s| s.tensor(key).ok()) {
            return Tensor::from_bytes(dtype(tensor.dtype())?, tensor.shape(), tensor.data())
                .ok()
                .map(Into::into);
        }
        made_up.set(made_up.get() + 1);
        random(key, ty).map(Into::into)
    };
    let g = text::parse(text, &resolve)
        .map_err(|error| margay::Error::Text { path: path.to_path_buf(), error })?;
    if made_up.get() > 0 {
        let count = made_up.get();
        note(format!("{count} constants are not in `{}` and hold random numbers", beside.display()));
    }
    Ok(g)
}

fn dtype(dtype: safetensors::Dtype) -> Option<DType> {
    DType::from_name(&dtype.to_string().to_lowercase())
}

/// Numbers that depend on the name alone: normal with a small deviation, or zero where the type is no `f32` or `f64`.
fn random(key: &str, ty: &TensorType) -> Option<Tensor> {
    const LIMIT: usize = 1 << 28;
    let shape = ty.extents()?;
    let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= LIMIT)?;
    let stream = Philox::new(0, stream_of(key));
    match ty.dtype {
        DType::F32 => {
            let mut data = vec![0f32; len];
            stream.fill_normal_f32(0, &mut data);
            data.iter_mut().for_each(|v| *v *= 0.05);
            Tensor::from_slice(&shape, &data).ok()
        }
        DType::F64 => {
            let mut data = vec![0f64; len];
            stream.fill_normal_f64(0, &mut data);
            data.iter_mut().for_each(|v| *v *= 0.05);
            Tensor::from_slice(&shape, &data).ok()
        }
        other => Tensor::zeros(other, &shape).ok(),
    }
}
