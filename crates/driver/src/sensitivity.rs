//! How much an error in each layer shows in the outputs, from backward passes of random cotangents.
//!
//! To first order an error `E` of a weight changes the outputs by `J vec(E)`. For a cotangent `ξ` of independent signs the
//! mean of `(ξᵀ J vec(E))²` is the squared change of the outputs, and `ξᵀ J` comes from a backward pass (`backward.rs`).
//! Samples have cotangents of their own, so that their contributions add up.
//!
//! Deliberately absent: what is beyond the first order, which large errors have, and errors of several layers together.

use margay_ir::{Graph, Value, eval};
use margay_passes::sketch::{Layer, Rows, Thinning, layers};
use margay_randnla::{Factors, LowRank, LowRankOptions, Matrix};
use margay_tensor::Tensor;
use serde::Serialize;

use crate::backward::Backward;
use crate::compile::calibrate::{BATCH, Measuring, calibrate};
use crate::samples::doubts_where;
use crate::{DriverError, ErrorScope, Interruption, Marks, Mask, Model, Progress, Runner, Samples, parallel};

/// The relative error of weights that outputs are predicted for.
pub const RELATIVE_ERROR: f64 = 0.01;

/// What an error in each layer does to the outputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Samples run.
    pub samples: usize,
    /// Random cotangents per sample.
    pub probes: usize,
    /// Why what was found may not hold for other samples.
    pub warnings: Vec<String>,
    /// The layers, in order.
    pub modules: Vec<ModuleSensitivity>,
}

/// What an error in one layer does to the outputs. Errors of outputs are relative in L2 over all of them together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleSensitivity {
    /// The name in the model.
    pub name: String,
    /// `linear` or `conv`.
    pub kind: String,
    /// Rows of the weight as a matrix.
    pub d_in: usize,
    /// Columns of the weight as a matrix.
    pub d_out: usize,
    /// `‖W‖`.
    pub weight_norm: f64,
    /// The trace of the covariance of the inputs: the mean of `‖x - mean‖²` over rows.
    pub input_trace: f64,
    /// The trace of the Gram matrix of the gradients by the layer's outputs: the mean of `‖g‖²` over rows.
    pub gradient_trace: f64,
    /// The error of the outputs when the weight has a random error of [`RELATIVE_ERROR`] of its norm.
    pub output_error: f64,
    /// The same from second moments of inputs and of gradients alone, as if rows had nothing to do with each other.
    pub output_error_by_moments: f64,
    /// The rank that half the bytes of the weight hold; 0 if there is none.
    pub half_rank: usize,
    /// The error of the outputs with the weight's best factors of that rank for these inputs; `null` for rank 0. It is the
    /// root of a mean of squares, one for each of `n` runs backward, so that its own relative error is about `1 / √(2n)`;
    /// a run takes up to 8 samples and one cotangent of each.
    pub half_rank_output_error: Option<f64>,
}

/// Measures the sensitivity of the outputs to every module, with `probes` random cotangents per sample. `scope` says which
/// outputs, and which places of them, count.
///
/// # Errors
/// [`DriverError::Samples`] for samples that do not fit; [`DriverError::Pipeline`] for an operator without derivative
/// behind a module; [`DriverError::Measure`] for outputs that are zero or not finite.
pub fn sensitivity(
    source: &Model,
    samples: &Samples,
    probes: usize,
    seed: u64,
    threads: usize,
    scope: &ErrorScope,
    progress: &dyn Progress,
) -> Result<Sensitivity, DriverError> {
    scope.check(&source.graph)?;
    let g = &scope.restricted(&source.graph);
    let mask = Mask::find(g, &scope.mask)?;
    let samples = samples.for_graph(g)?;
    mask.check(samples.arrays())?;
    let found: Vec<Layer> = layers(g).into_iter().filter(|layer| layer.groups() == 1).collect();
    let backend = &crate::backend::native();
    let inputs: Vec<Vec<Rows>> = found.iter().map(|layer| layer.inputs(g)).collect();
    let inputs: Vec<&[Rows]> = inputs.iter().map(Vec::as_slice).collect();
    let never = Interruption::never();
    let measuring = Measuring::new(&mask, backend, threads, progress, &never);
    let moments = calibrate(g, &[], &inputs, &samples, &measuring)?;
    let fitted = parallel(threads, found.len(), progress, "factorizing weights", |i| {
        let (weight, k) = (found[i].matrix(g)?, half_rank(&found[i]));
        let options = LowRankOptions { max_rank: Some(k.max(1)), ..LowRankOptions::default() };
        let factors = match k {
            0 => None,
            k => {
                let whitening = moments[i].as_ref().map(|m| m.whitening()).transpose()?;
                Some(LowRank::new(&weight, whitening.as_ref(), None, &options)?.factors(k)?)
            }
        };
        Sums::new(&weight, factors.as_ref())
    });
    let mut sums = Vec::new();
    for (module, fitted) in found.iter().zip(fitted) {
        let error = |error| DriverError::Factorize { module: module.name.clone(), error };
        sums.push(fitted.map_err(error)?);
    }
    let probe = Probe::new(g, &found)?;
    let runs = samples.runs(g, BATCH).len();
    let mut energy = 0.0;
    let mut runner = Runner::new(probe.backward.graph.clone(), backend, threads);
    let mut taken = 0;
    for (run, inputs) in samples.runs(g, BATCH).enumerate() {
        let mut inputs = inputs?;
        let shape = |name: &str| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
        let binding = eval::bind_symbols(g, shape)?;
        let rows = inputs.first().map_or(0, |(_, t)| t.shape().first().copied().unwrap_or(0));
        taken += rows;
        let given = inputs.len();
        let marks = mask.marks(&inputs);
        for number in 0..probes {
            progress.at("running backward", run * probes + number, runs * probes);
            inputs.truncate(given);
            let name = (run * probes + number) as u64;
            inputs.extend(probe.backward.cotangents(g, &binding, marks.as_ref(), seed, name)?);
            let outputs = runner.run(&inputs)?;
            if number == 0 {
                let of_model = outputs[..probe.backward.outputs].iter();
                energy += of_model.map(|(_, t)| squares(&counted(t, marks.as_ref()))).sum::<f64>();
            }
            let added = parallel(threads, found.len(), &crate::Silent, "", |i| {
                let inputs = (number == 0).then_some(marks.as_ref());
                probe.add(i, &found[i], &outputs, inputs, rows, sums[i].clone())
            });
            sums = added;
        }
    }
    if !energy.is_finite() || energy == 0.0 {
        let message = format!("the outputs have a squared norm of {energy}: there is no relative error");
        return Err(DriverError::Measure(message));
    }
    let list = found.iter().zip(&sums).map(|(module, s)| s.report(module, energy, probes));
    Ok(Sensitivity {
        samples: taken,
        probes,
        warnings: doubts_where(&samples, false),
        modules: list.collect(),
    })
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.to_vec::<f32>().unwrap_or_default()
}

/// The numbers of an output, with zeros in place of those that do not count.
fn counted(t: &Tensor, marks: Option<&Marks>) -> Vec<f32> {
    let mut numbers = floats(t);
    if let Some(marks) = marks {
        marks.blank(t.shape(), &mut numbers);
    }
    numbers
}

fn squares(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

fn half_rank(module: &Layer) -> usize {
    module.d_in * module.d_out / (2 * (module.d_in + module.d_out))
}

/// What is summed up for a module.
#[derive(Clone)]
struct Sums {
    weight_norm: f64,
    /// What the factors of half the bytes leave out of the weight, and what they add to the bias.
    missing: Option<(Matrix, Vec<f64>)>,
    /// Squared norms of the gradients by the weight.
    gradients: f64,
    /// Squared changes of outputs along what the factors leave out.
    changes: f64,
    input_rows: f64,
    input_sum: Vec<f64>,
    input_squares: f64,
    gradient_rows: f64,
    gradient_squares: f64,
}

impl Sums {
    fn new(weight: &Matrix, factors: Option<&Factors>) -> Result<Sums, margay_randnla::RandnlaError> {
        let missing = match factors {
            None => None,
            Some(f) => {
                let kept = f.left.product(&f.right)?;
                let rest = |i, j| weight.at(i, j) - kept.at(i, j);
                let rest = Matrix::from_fn(weight.rows(), weight.columns(), rest);
                let bias = f.bias.as_ref().map(|b| b.iter().map(|&v| f64::from(v)).collect());
                Some((rest, bias.unwrap_or_else(|| vec![0.0; weight.columns()])))
            }
        };
        Ok(Sums {
            weight_norm: weight.squared_norm().sqrt(),
            missing,
            gradients: 0.0,
            changes: 0.0,
            input_rows: 0.0,
            input_sum: vec![0.0; weight.rows()],
            input_squares: 0.0,
            gradient_rows: 0.0,
            gradient_squares: 0.0,
        })
    }

    fn report(&self, module: &Layer, energy: f64, probes: usize) -> ModuleSensitivity {
        let per_probe = |x: f64| x / probes.max(1) as f64;
        let numbers = (module.d_in * module.d_out) as f64;
        // The squared size of each entry of the error.
        let entry = (RELATIVE_ERROR * self.weight_norm).powi(2) / numbers;
        let input_squares = self.input_squares / self.input_rows.max(1.0);
        let mean: f64 = self.input_sum.iter().map(|s| (s / self.input_rows.max(1.0)).powi(2)).sum();
        ModuleSensitivity {
            name: module.name.clone(),
            kind: module.word().into(),
            d_in: module.d_in,
            d_out: module.d_out,
            weight_norm: self.weight_norm,
            input_trace: (input_squares - mean).max(0.0),
            gradient_trace: self.gradient_squares / self.gradient_rows.max(1.0),
            output_error: (entry * per_probe(self.gradients) / energy).sqrt(),
            output_error_by_moments: (entry * input_squares * per_probe(self.gradient_squares) / energy)
                .sqrt(),
            half_rank: if self.missing.is_some() { half_rank(module) } else { 0 },
            half_rank_output_error: self.missing.as_ref().map(|_| (per_probe(self.changes) / energy).sqrt()),
        }
    }
}

/// The graph that runs forward and backward, and where its outputs are.
struct Probe {
    backward: Backward,
    places: Vec<Places>,
}

/// Numbers of outputs.
struct Places {
    /// The gradient by the weight.
    weight: Option<usize>,
    /// For each node: how rows are made of its input, the input, and the gradient by its result.
    nodes: Vec<(Rows, usize, Option<usize>)>,
}

impl Probe {
    fn new(g: &Graph, found: &[Layer]) -> Result<Probe, DriverError> {
        let mut by = Vec::new();
        for m in found {
            by.push(m.weight);
            by.extend(m.nodes.iter().map(|n| Value::from(*n)));
        }
        let inputs: Vec<Value> =
            found.iter().flat_map(|m| m.nodes.iter().map(|&n| g.inputs_of(n)[0])).collect();
        let (backward, numbered) = Backward::new(g, &by, &inputs)?;
        let (mut gradients, mut values) = (numbered.gradients.into_iter(), numbered.values.into_iter());
        let mut next = || gradients.next().flatten();
        let places = found.iter().map(|m| Places {
            weight: next(),
            nodes: m
                .nodes
                .iter()
                .map(|&n| (m.input(g, n), values.next().expect("one for each node"), next()))
                .collect(),
        });
        let places = places.collect();
        Ok(Probe { backward, places })
    }

    /// Adds what one run says of a module. `inputs` is given where these inputs were not seen before, with what of them
    /// counts.
    fn add(
        &self,
        i: usize,
        module: &Layer,
        outputs: &[(String, Tensor)],
        inputs: Option<Option<&Marks>>,
        samples: usize,
        mut sums: Sums,
    ) -> Sums {
        let mut by_bias = vec![0.0; module.d_out];
        for (rows, x, gradient) in &self.places[i].nodes {
            if let Some(marks) = inputs {
                let all = rows.of(&outputs[*x].1, Thinning::of(samples));
                let kept = match marks {
                    Some(marks) => marks.kept(all, module.d_in),
                    None => all,
                };
                for row in kept.chunks_exact(module.d_in) {
                    sums.input_rows += 1.0;
                    sums.input_squares += squares(row);
                    sums.input_sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
                }
            }
            let Some(gradient) = gradient else { continue };
            let tensor = &outputs[*gradient].1;
            let values = floats(tensor);
            sums.gradient_squares += squares(&values);
            sums.gradient_rows += (values.len() / module.d_out) as f64;
            // Elements from one channel to the next.
            let inner: usize = match module.is_product() {
                true => 1,
                false => tensor.shape()[2..].iter().product(),
            };
            for (at, v) in values.iter().enumerate() {
                by_bias[at / inner.max(1) % module.d_out] += f64::from(*v);
            }
        }
        let Some(weight) = self.places[i].weight else { return sums };
        let values = floats(&outputs[weight].1);
        sums.gradients += squares(&values);
        if let (Some((missing, bias)), Ok(gradient)) = (&sums.missing, module.as_matrix(&values)) {
            let mut change: f64 = bias.iter().zip(&by_bias).map(|(a, b)| a * b).sum();
            for row in 0..missing.rows() {
                change -=
                    (0..missing.columns()).map(|j| missing.at(row, j) * gradient.at(row, j)).sum::<f64>();
            }
            sums.changes += change * change;
        }
        sums
    }
}
