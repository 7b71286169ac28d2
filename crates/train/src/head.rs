//! A fresh head: a linear layer of random weights behind an output of a model, to be trained for other classes.

use margay_ir::ops::{Add, Const, MatMul, Reduce, ReduceKind};
use margay_ir::{Graph, Origin, Output, Payload};
use margay_tensor::random::{Philox, stream_of};
use margay_tensor::{DType, Tensor};

use crate::TrainError;

/// The name of the new weight; that of the bias is `head.bias`.
pub const WEIGHT: &str = "head.weight";

/// The graph with `features W + b` in place of an output, under its name: `[.., classes]`. Features are those of the last axis
/// of the output; of images, `[samples, channels, height, width]`, they are means of the channels. Weights are normal with
/// variance 1 over the number of features, the bias is 0. `output` is `None` for the only output.
///
/// # Errors
/// [`TrainError::Options`] for an output that is not there or has no known number of features, and where names are taken.
pub fn with_head(g: &Graph, output: Option<&str>, classes: usize, seed: u64) -> Result<Graph, TrainError> {
    let refused = |why: String| Err(TrainError::Options(why));
    let outputs = g.outputs().to_vec();
    let known = || outputs.iter().map(|o| format!("`{}`", o.name)).collect::<Vec<_>>().join(", ");
    let at = match output {
        Some(name) => outputs.iter().position(|o| *o.name == *name),
        None if outputs.len() == 1 => Some(0),
        None => return refused(format!("which output gets the head? the model has {}", known())),
    };
    let Some(at) = at else {
        let name = output.unwrap_or_default();
        return refused(format!("the model has no output `{name}`; it has {}", known()));
    };
    let taken = g.order().into_iter().any(|n| g.node(n).origin.name().starts_with("head."));
    if taken {
        return refused("the model has a head: a node has a name that begins with `head.`".into());
    }
    let mut g = g.clone();
    let mut features = outputs[at].value;
    let ty = g.ty(features).clone();
    if ty.ndim() == 4 {
        let mean = Reduce { kind: ReduceKind::Mean, axes: vec![2, 3], keepdims: false };
        features = g.add(mean, &[features], Origin::named("head.mean"))?;
    }
    let width = g.ty(features).shape.last().and_then(|d| d.as_extent());
    let Some(width) = width.filter(|w| *w > 0 && ty.dtype == DType::F32 && ty.ndim() >= 2) else {
        return refused(format!(
            "output `{}` is {ty}, expected f32 with a known number of features on its last axis",
            outputs[at].name
        ));
    };
    let mut weights = vec![0f32; width * classes];
    Philox::new(seed, stream_of(WEIGHT)).fill_normal_f32(0, &mut weights);
    weights.iter_mut().for_each(|w| *w /= (width as f32).sqrt());
    let constant = |g: &mut Graph, name: &str, tensor: Tensor| {
        g.add(Const { payload: Payload::new(tensor) }, &[], Origin::named(name))
    };
    let weight = constant(&mut g, WEIGHT, Tensor::from_slice(&[width, classes], &weights)?)?;
    let bias = constant(&mut g, "head.bias", Tensor::from_slice(&[classes], &vec![0f32; classes])?)?;
    let product = g.add(MatMul, &[features, weight], Origin::named("head"))?;
    let value = g.add(Add, &[product, bias], Origin::named("head.add"))?;
    let mut outputs = outputs;
    outputs[at] = Output { value, ..outputs[at].clone() };
    g.set_outputs(outputs);
    Ok(g)
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_ir::text::parse;

    #[test]
    fn a_head_replaces_an_output_under_its_name() {
        let graph = |shape: &str| {
            let text = format!("graph @g(%x: f32{shape}) -> (y: f32{shape}) {{\n  return %x\n}}\n");
            parse(&text, &|_, _| None).unwrap()
        };
        for (shape, expected) in
            [("[N, 6]", "f32[N, 3]"), ("[N, S, 6]", "f32[N, S, 3]"), ("[N, 6, 4, 4]", "f32[N, 3]")]
        {
            let g = with_head(&graph(shape), None, 3, 1).unwrap();
            let output = &g.outputs()[0];
            assert_eq!((g.ty(output.value).to_string().as_str(), &*output.name), (expected, "y"), "{shape}");
            assert!(with_head(&g, None, 3, 1).unwrap_err().to_string().contains("has a head"));
        }
        let refused = |output| with_head(&graph("[N, S]"), output, 3, 1).unwrap_err().to_string();
        assert_eq!(refused(Some("z")), "the model has no output `z`; it has `y`");
        assert!(refused(None).contains("expected f32 with a known number of features"));
    }
}
