//! How far two models are apart, end to end and layer by layer.

use std::collections::BTreeSet;

use margay_driver::compare::{LayerError, layers};
use margay_driver::{
    Arrays, ErrorMeasure, ErrorScope, ErrorSum, OutputError, backend, bound_batch_of, output_error,
};
use margay_ir::Graph;
use margay_tensor::Tensor;
use serde::Serialize;

use crate::batches::{chunks_of, cut, rows};
use crate::{Error, Predictor};

/// An element `b` is past the tolerance of `a` when `|a - b| > atol + rtol |a|`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Relative to the element of the reference.
    pub rtol: f64,
    /// Everywhere.
    pub atol: f64,
}

/// How far an output of one model, of any type, is from that of another.
#[derive(Clone, Debug, Serialize)]
pub struct OutputComparison {
    /// How far.
    #[serde(flatten)]
    pub error: OutputError,
    /// Its type, as printed.
    pub r#type: String,
    /// How many elements count.
    pub elements: usize,
    /// How many of them are past the tolerance.
    pub past_tolerance: usize,
}

/// How far two models are apart.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The outputs of the reference, in order.
    pub outputs: Vec<OutputComparison>,
    /// The error of the floating point outputs; `None` where there are none.
    pub error: Option<ErrorMeasure>,
    /// The layers that both models name; `None` where a model carries no graph.
    pub layers: Option<Vec<LayerError>>,
    /// How many samples layers were compared on: all, but for those that do not fill a run.
    pub layer_samples: usize,
}

/// Runs two models, the first of which is the reference, on the same inputs.
///
/// # Errors
/// Inputs that do not fit, Inputs that do not fit, and inputs that are all padding, and outputs that are not of the same types.
pub fn compare(
    models: &mut [Predictor; 2],
    inputs: &Arrays,
    scope: &ErrorScope,
    tolerance: Tolerance,
    threads: usize,
) -> Result<Comparison, Error> {
    scope.check_inputs(inputs)?;
    let chunks = chunks_of(models, inputs)?;
    let a = models[0].run(&chunks[0])?;
    let b = models[1].run(&chunks[1])?;
    let outputs = compare_outputs(inputs, &a, &b, scope, tolerance)?;
    let has_floats = |(name, t): &(String, Tensor)| {
        t.dtype().is_float() && (scope.outputs.is_empty() || scope.outputs.contains(name))
    };
    let error = match a.iter().any(has_floats) {
        true => {
            let mut sum = ErrorSum::new(scope);
            sum.add(inputs, &a, &b)?;
            Some(sum.measure())
        }
        false => None,
    };
    let (layers, layer_samples) = match (models[0].graph()?, models[1].graph()?) {
        (Some(reference), Some(other)) => {
            let shared = &models[0].shared(inputs);
            let given = rows(inputs, shared);
            let is_cut = chunks.iter().flatten().any(|chunk| rows(&chunk.inputs, shared) != given);
            let inputs = &models[1].open_inputs(&models[0].open_inputs(inputs)?)?;
            let runs = layer_runs([&reference, &other], inputs, shared, is_cut)?;
            // A run may be filled up with copies.
            let samples =
                runs.iter().filter_map(|run| rows(run, shared)).sum::<usize>().min(given.unwrap_or(0));
            (Some(layers(&reference, &other, &runs, &scope.mask, &backend::native(), threads)?), samples)
        }
        _ => (None, 0),
    };
    Ok(Comparison { outputs, error, layers, layer_samples })
}

/// Samples in a run of layers where graphs take any number, and inputs are cut: values inside are held for all of them.
const LAYER_RUN: usize = 64;

/// The inputs in runs of one shape that two graphs take; `is_cut` where outputs were compared in several runs.
fn layer_runs(
    graphs: [&Graph; 2],
    inputs: &Arrays,
    shared: &BTreeSet<String>,
    is_cut: bool,
) -> Result<Vec<Arrays>, Error> {
    let Some(rows) = rows(inputs, shared).filter(|_| is_cut) else { return Ok(vec![inputs.clone()]) };
    let bound = graphs.iter().filter_map(|g| bound_batch_of(g, shared)).min();
    let size = bound.unwrap_or(LAYER_RUN.min(rows));
    let mut runs: Vec<Arrays> = cut(inputs, shared, &[size])?.into_iter().map(|chunk| chunk.inputs).collect();
    // The last run of several would be filled up with copies.
    if rows > size && rows % size != 0 {
        runs.pop();
    }
    Ok(runs)
}

/// How far outputs of any type are from those of a reference, in the order of the reference. `inputs` are those of the run,
/// of which the mask may be one.
///
/// # Errors
/// Outputs that are not of the same types; a scope that names inputs or outputs which are not there.
pub fn compare_outputs(
    inputs: &Arrays,
    reference: &[(String, Tensor)],
    found: &[(String, Tensor)],
    scope: &ErrorScope,
    tolerance: Tolerance,
) -> Result<Vec<OutputComparison>, Error> {
    if let Some(unknown) = scope.outputs.iter().find(|name| reference.iter().all(|(n, _)| n != *name)) {
        let known: Vec<String> = reference.iter().map(|(n, _)| format!("`{n}`")).collect();
        let known = known.join(", ");
        return Err(Error::Options(format!("the model has no output `{unknown}`; it has {known}")));
    }
    let counts = |name: &String| scope.outputs.is_empty() || scope.outputs.contains(name);
    let compared = |(name, x): &(String, Tensor)| {
        let (error, pairs) = output_error(name, inputs, x, found, &scope.mask)?;
        let Tolerance { rtol, atol } = tolerance;
        // A difference that is not a number is not within; what is no number in both is.
        let within =
            |a: f64, b: f64| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= atol + rtol * a.abs();
        Ok(OutputComparison {
            error,
            r#type: format!("{}{:?}", x.dtype(), x.shape()),
            elements: pairs.len(),
            past_tolerance: pairs.iter().filter(|(a, b)| !within(*a, *b)).count(),
        })
    };
    reference.iter().filter(|(name, _)| counts(name)).map(compared).collect()
}
