//! How far two models are apart, end to end and layer by layer.

use margay_driver::Arrays;
use margay_driver::backend;
use margay_driver::compare::{LayerError, layers};
use margay_ir::ops::Numbers;
use margay_tensor::Tensor;
use serde::Serialize;

use crate::batches::{chunks_of, rows};
use crate::{Error, Predictor};

/// An element `b` is past the tolerance of `a` when `|a - b| > atol + rtol |a|`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Relative to the element of the reference.
    pub rtol: f64,
    /// Everywhere.
    pub atol: f64,
}

/// How far an output of one model is from that of another.
#[derive(Clone, Debug, Serialize)]
pub struct OutputError {
    /// Its name.
    pub name: String,
    /// Its type, as printed.
    pub r#type: String,
    /// The largest difference of two elements.
    pub max_abs: f64,
    /// The norm of the difference, relative to that of the reference.
    pub relative_l2: f64,
    /// The cosine of the angle between the two.
    pub cosine: f64,
    /// How many elements it has.
    pub elements: usize,
    /// How many of them are past the tolerance.
    pub past_tolerance: usize,
}

/// How far two models are apart.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The outputs of the reference, in order.
    pub outputs: Vec<OutputError>,
    /// The layers that both models name, measured on the first run of the inputs; `None` where a model carries no graph.
    pub layers: Option<Vec<LayerError>>,
}

/// Runs two models, the first of which is the reference, on the same inputs.
///
/// # Errors
/// Inputs that do not fit, and outputs that are not of the same types.
pub fn compare(
    models: &mut [Predictor; 2],
    inputs: &Arrays,
    tolerance: Tolerance,
    threads: usize,
) -> Result<Comparison, Error> {
    let chunks = chunks_of(models, inputs)?;
    let a = models[0].run(&chunks[0])?;
    let b = models[1].run(&chunks[1])?;
    let outputs = compare_outputs(&a, &b, tolerance)?;
    let layers = match (models[0].graph()?, models[1].graph()?) {
        (Some(reference), Some(other)) => {
            // Both graphs take the smaller of the first runs.
            let smallest = chunks.iter().map(|c| &c[0].inputs).min_by_key(|i| rows(i));
            let inputs = smallest.unwrap_or(inputs);
            Some(layers(&reference, &other, inputs, &backend::native(), threads)?)
        }
        _ => None,
    };
    Ok(Comparison { outputs, layers })
}

/// How far outputs are from those of a reference, in the order of the reference.
///
/// # Errors
/// Outputs that are not of the same types.
pub fn compare_outputs(
    reference: &[(String, Tensor)],
    found: &[(String, Tensor)],
    tolerance: Tolerance,
) -> Result<Vec<OutputError>, Error> {
    let other = |name: &str| found.iter().find(|(n, _)| n == name).map(|(_, y)| y);
    reference.iter().map(|(name, x)| output_error(name, x, other(name), tolerance)).collect()
}

fn output_error(
    name: &str,
    x: &Tensor,
    y: Option<&Tensor>,
    Tolerance { rtol, atol }: Tolerance,
) -> Result<OutputError, Error> {
    let describe = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
    let Some(y) = y.filter(|y| y.dtype() == x.dtype() && y.shape() == x.shape()) else {
        let found = y.map_or("absent".into(), describe);
        let message =
            format!("output `{name}` is {} in the reference and {found} in the other model", describe(x));
        return Err(Error::Measure(message));
    };
    let numbers = |t: &Tensor| match Numbers::of(t) {
        Ok(numbers) => Ok(numbers.floats()),
        Err(e) => Err(Error::Options(format!("output `{name}`: {e}"))),
    };
    let (xs, ys) = (numbers(x)?, numbers(y)?);
    let (mut xx, mut yy, mut xy, mut dd, mut max_abs) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let mut past = 0;
    for (&a, &b) in xs.iter().zip(&ys) {
        let d = if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() };
        xx += a * a;
        yy += b * b;
        xy += a * b;
        dd += d * d;
        if d > max_abs || d.is_nan() {
            max_abs = d;
        }
        // A difference that is not a number is not within.
        let within = d <= atol + rtol * a.abs();
        past += usize::from(!within);
    }
    let relative_l2 = if dd == 0.0 { 0.0 } else { (dd / xx).sqrt() };
    let cosine = if dd == 0.0 { 1.0 } else { xy / (xx * yy).sqrt() };
    let (name, r#type) = (name.to_string(), describe(x));
    Ok(OutputError { name, r#type, max_abs, relative_l2, cosine, elements: xs.len(), past_tolerance: past })
}
