//! Inputs longer than the batch a model was compiled for: fed batch by batch, outputs put together again.

use std::collections::BTreeSet;

use margay_driver::{Arrays, Samples};
use margay_tensor::Tensor;

use crate::{Error, Predictor};

/// Inputs are not repeated to fill a batch larger than this.
const MAX_PADDED_BYTES: usize = 1 << 30;

/// The inputs of one run.
pub(crate) struct Chunk {
    pub(crate) inputs: Arrays,
    /// The rows that were asked for and those that are run, where the leading axis was cut; a last chunk that would
    /// be too short repeats its last row.
    cut: Option<(usize, usize)>,
}

/// The extent of the leading axis that all arrays share but those that are given once, if they do.
pub(crate) fn rows(inputs: &[(String, Tensor)], shared: &BTreeSet<String>) -> Option<usize> {
    let mut several =
        inputs.iter().filter(|(name, _)| !shared.contains(name)).map(|(_, t)| t.shape().first());
    let first = several.next()??;
    several.all(|rows| rows == Some(first)).then_some(*first)
}

/// Cuts inputs along their leading axis, but those that are given once, into chunks of the sizes given, rising; no sizes: one
/// run with all of them.
pub(crate) fn cut(
    inputs: &[(String, Tensor)],
    shared: &BTreeSet<String>,
    sizes: &[usize],
) -> Result<Vec<Chunk>, Error> {
    let (Some(rows), Some(&smallest)) = (rows(inputs, shared), sizes.first()) else {
        return Ok(vec![Chunk { inputs: inputs.to_vec(), cut: None }]);
    };
    let several = inputs.iter().filter(|(name, _)| !shared.contains(name));
    let padded = several.map(|(_, t)| (t.bytes().len() / rows.max(1)).saturating_mul(smallest)).max();
    if rows < smallest && padded.is_some_and(|bytes| bytes > MAX_PADDED_BYTES) {
        return Ok(vec![Chunk { inputs: inputs.to_vec(), cut: None }]);
    }
    let samples = Samples::with_shared(inputs.to_vec(), shared.clone())?;
    let mut chunks = Vec::new();
    let mut at = 0;
    while at < rows {
        let left = rows - at;
        let size = sizes.iter().rfind(|s| **s <= left).copied().unwrap_or(smallest);
        let taken = size.min(left);
        let picked: Vec<usize> = (0..size).map(|i| at + i.min(taken - 1)).collect();
        chunks.push(Chunk { inputs: samples.pick(&picked)?, cut: Some((taken, size)) });
        at += taken;
    }
    Ok(chunks)
}

/// The chunks for each model. One that takes any batch is run on the same chunks as the first that does not, so that
/// the same work is compared.
pub(crate) fn chunks_of(models: &[Predictor], inputs: &Arrays) -> Result<Vec<Vec<Chunk>>, Error> {
    let inputs = models.iter().map(|m| m.open_inputs(inputs)).collect::<Result<Vec<_>, _>>()?;
    let shared: Vec<BTreeSet<String>> =
        models.iter().zip(&inputs).map(|(m, inputs)| m.shared(inputs)).collect();
    let sizes: Vec<Vec<usize>> =
        models.iter().zip(inputs.iter().zip(&shared)).map(|(m, (i, s))| m.batch_sizes(i, s)).collect();
    let bound = sizes.iter().find(|s| !s.is_empty()).cloned().unwrap_or_default();
    let chunks =
        models.iter().zip(inputs.iter().zip(&shared)).zip(&sizes).map(|((model, (inputs, shared)), own)| {
            let takes_any = own.is_empty() && model.takes_any_batch(shared);
            cut(inputs, shared, if takes_any { &bound } else { own })
        });
    chunks.collect()
}

/// The outputs of all chunks, put together along their leading axis.
pub(crate) fn join(chunks: &[Chunk], mut outputs: Vec<Arrays>) -> Result<Arrays, Error> {
    if chunks.iter().all(|c| c.cut.is_none()) {
        return Ok(outputs.pop().unwrap_or_default());
    }
    let names: Vec<String> = outputs.first().map_or(vec![], |o| o.iter().map(|(n, _)| n.clone()).collect());
    let mut joined = Vec::new();
    for (i, name) in names.into_iter().enumerate() {
        let (mut bytes, mut total) = (Vec::new(), 0);
        for (chunk, output) in chunks.iter().zip(&outputs) {
            let t = &output[i].1;
            let (taken, size) = chunk.cut.unwrap_or_default();
            if t.shape().first() != Some(&size) {
                return Err(Error::NoBatch { output: name, shape: t.shape().to_vec(), batch: size });
            }
            bytes.extend_from_slice(&t.bytes()[..t.bytes().len() / size * taken]);
            total += taken;
        }
        let first = &outputs[0][i].1;
        let mut shape = first.shape().to_vec();
        shape[0] = total;
        let tensor = Tensor::from_bytes(first.dtype(), &shape, &bytes)
            .map_err(|e| Error::Options(format!("output `{name}`: {e}")))?;
        joined.push((name, tensor));
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(rows: usize) -> Arrays {
        let data: Vec<f32> = (0..rows * 2).map(|i| i as f32).collect();
        vec![("x".into(), Tensor::from_slice(&[rows, 2], &data).unwrap())]
    }

    #[test]
    fn chunks_join_to_what_was_cut() {
        for (rows, sizes, expected) in [
            (5, vec![2], vec![2, 2, 2]),
            (5, vec![1, 4], vec![4, 1]),
            (3, vec![4], vec![4]),
            (3, vec![], vec![3]),
        ] {
            let chunks = cut(&array(rows), &BTreeSet::new(), &sizes).unwrap();
            let extents: Vec<usize> = chunks.iter().map(|c| c.inputs[0].1.shape()[0]).collect();
            assert_eq!(extents, expected);
            let outputs = chunks.iter().map(|c| c.inputs.clone()).collect();
            assert_eq!(join(&chunks, outputs).unwrap(), array(rows));
        }
    }

    #[test]
    fn what_is_given_once_is_in_every_chunk() {
        let flag = || vec![("flag".to_owned(), Tensor::from_slice(&[], &[2.0f32]).unwrap())];
        let inputs = [array(5), flag()].concat();
        let shared = BTreeSet::from(["flag".to_owned()]);
        assert_eq!((rows(&inputs, &BTreeSet::new()), rows(&inputs, &shared)), (None, Some(5)));
        let chunks = cut(&inputs, &shared, &[2]).unwrap();
        assert_eq!(chunks.len(), 3);
        assert!(chunks.iter().all(|c| c.inputs[0].1.shape() == [2, 2] && c.inputs[1..] == flag()));
    }
}
