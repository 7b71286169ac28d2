//! How far two models are apart, layer by layer.

use std::collections::HashMap;
use std::sync::Arc;

use margay_ir::{Graph, Op, Value};
use margay_loops::Backend;
use margay_passes::BindDims;
use margay_tensor::Tensor;
use serde::Serialize;

use crate::{Arrays, DriverError, ErrorScope, ErrorSum, MaskChoice, Named, Runner};

/// The error of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerError {
    /// The name both graphs know the layer by.
    pub name: String,
    /// Error when the layer is given the reference's inputs.
    pub isolated: f64,
    /// Error when the layers before it are the other model's too.
    pub cumulative: f64,
}

/// Relative L2 errors of the values that two graphs name alike, a bias included, in the order of the reference, over all runs
/// together. The inputs of all runs have the same shapes. Layers are run a few at a time, so that memory stays bounded. What
/// `mask` marks as padding does not count in values that begin with its axes.
///
/// # Errors
/// Inputs that do not fit; what cannot be run; [`DriverError::Measure`] where a mask marks all of a value.
pub fn layers(
    reference: &Graph,
    other: &Graph,
    runs: &[Arrays],
    mask: &MaskChoice,
    backend: &Arc<dyn Backend>,
    threads: usize,
) -> Result<Vec<LayerError>, DriverError> {
    const AT_ONCE: usize = 16;
    let Some(first) = runs.first() else { return Ok(Vec::new()) };
    let find = |name: &str| first.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
    let bound = |g: &Graph| -> Result<Graph, DriverError> {
        let binding = margay_ir::eval::bind_symbols(g, find)?;
        let failed = |error| DriverError::Pass { pass: "bind-dims", error };
        BindDims { binding }.bound(g).map_err(failed)
    };
    let (reference, other) = (&bound(reference)?, &bound(other)?);
    let shared: Vec<Shared> = Named::of(reference)
        .shared(reference, &Named::of(other), other)
        .into_iter()
        .map(|(name, of_reference, of_other)| Shared { name: name.to_string(), of_reference, of_other })
        .collect();
    let known = shared.iter().map(|s| (s.of_other, s.of_reference)).collect();
    let scope = ErrorScope { mask: mask.clone(), outputs: Vec::new() };
    let comparison = Layers { reference, other, known, scope: &scope, backend, threads };
    let errors = shared.chunks(AT_ONCE).map(|part| comparison.errors(part, runs));
    Ok(errors.collect::<Result<Vec<_>, _>>()?.concat())
}

/// A value that two graphs share.
struct Shared {
    name: String,
    of_reference: Value,
    of_other: Value,
}

/// Two graphs of fixed extents, and how they are run.
struct Layers<'a> {
    reference: &'a Graph,
    other: &'a Graph,
    /// By values of the other graph, those of the reference that they share.
    known: HashMap<Value, Value>,
    scope: &'a ErrorScope,
    backend: &'a Arc<dyn Backend>,
    threads: usize,
}

impl Layers<'_> {
    /// The errors of some values.
    fn errors(&self, part: &[Shared], runs: &[Arrays]) -> Result<Vec<LayerError>, DriverError> {
        let mut of_reference = self.run_to(self.reference, part.iter().map(|s| s.of_reference));
        let mut of_other = self.run_to(self.other, part.iter().map(|s| s.of_other));
        let mut alone: Vec<Alone> = part.iter().map(|s| self.alone(s.of_other)).collect();
        let mut sums: Vec<[ErrorSum; 2]> =
            part.iter().map(|_| [ErrorSum::new(self.scope), ErrorSum::new(self.scope)]).collect();
        for inputs in runs {
            let (x, y) = (of_reference.run(inputs)?, of_other.run(inputs)?);
            for (((sums, alone), x), y) in sums.iter_mut().zip(&mut alone).zip(&x).zip(&y) {
                let [isolated, cumulative] = sums;
                isolated.add(inputs, &unnamed(&x.1), &unnamed(&alone.run(inputs)?))?;
                cumulative.add(inputs, &unnamed(&x.1), &unnamed(&y.1))?;
            }
        }
        let error = |(shared, [isolated, cumulative]): (&Shared, [ErrorSum; 2])| LayerError {
            name: shared.name.clone(),
            isolated: isolated.measure().relative_l2,
            cumulative: cumulative.measure().relative_l2,
        };
        Ok(part.iter().zip(sums).map(error).collect())
    }

    /// Runs a graph as far as some values, which are its outputs in this order.
    fn run_to(&self, g: &Graph, values: impl Iterator<Item = Value>) -> Runner {
        let outputs: Vec<(String, Value)> = values.enumerate().map(|(i, v)| (i.to_string(), v)).collect();
        Runner::new(g.cut(&[], &outputs), self.backend, self.threads)
    }

    /// The part of the other graph between the shared values before a layer and the layer.
    fn alone(&self, layer: Value) -> Alone {
        let mut borders: Vec<(Value, Value)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut stack: Vec<Value> = self.other.inputs_of(layer.node).to_vec();
        while let Some(x) = stack.pop() {
            if !seen.insert(x) || matches!(self.other.op(x.node), Op::Const(_) | Op::Input(_)) {
                continue;
            }
            match self.known.get(&x) {
                Some(r) => borders.push((x, *r)),
                None => stack.extend(self.other.inputs_of(x.node)),
            }
        }
        let before = self.run_to(self.reference, borders.iter().map(|(_, r)| *r));
        let border = |(i, (x, _)): (usize, &(Value, Value))| (format!("border {i}"), *x);
        let borders: Vec<(String, Value)> = borders.iter().enumerate().map(border).collect();
        let piece = self.other.cut(&borders, &[("0".into(), layer)]);
        let names = borders.into_iter().map(|(name, _)| name).collect();
        Alone { before, names, piece: Runner::new(piece, self.backend, self.threads) }
    }
}

/// A layer of the other model that is given what the reference computes before it.
struct Alone {
    before: Runner,
    /// The names under which the piece takes the outputs of `before`.
    names: Vec<String>,
    piece: Runner,
}

impl Alone {
    fn run(&mut self, inputs: &Arrays) -> Result<Tensor, DriverError> {
        let mut given = inputs.clone();
        if !self.names.is_empty() {
            let before = self.before.run(inputs)?;
            given.extend(self.names.iter().cloned().zip(before.into_iter().map(|(_, t)| t)));
        }
        Ok(self.piece.run(&given)?.remove(0).1)
    }
}

/// A tensor as the only output of a model.
fn unnamed(t: &Tensor) -> Arrays {
    vec![(String::new(), t.clone())]
}
