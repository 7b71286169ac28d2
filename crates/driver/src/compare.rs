//! How far two models are apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_ir::ops::Numbers;
use margay_ir::{Graph, Op, Value};
use margay_loops::Backend;
use margay_passes::BindDims;
use margay_tensor::Tensor;
use serde::Serialize;

use crate::samples::is_measured;
use crate::{DriverError, ErrorMeasure, Runner};

/// Sums errors over outputs and samples.
#[derive(Clone, Debug, Default)]
pub struct ErrorSum {
    reference: f64,
    found: f64,
    product: f64,
    difference: f64,
    /// The largest absolute difference.
    pub max_abs: f64,
    samples: usize,
}

impl ErrorSum {
    /// Adds the outputs of one run. Integer outputs do not count.
    pub fn add(
        &mut self,
        reference: &[(String, Tensor)],
        found: &[(String, Tensor)],
        samples: usize,
    ) -> Result<(), DriverError> {
        let mut any = false;
        for (name, a) in reference.iter().filter(|(_, t)| is_measured(t.dtype())) {
            let b = found.iter().find(|(n, _)| n == name).map(|(_, t)| t);
            let Some(b) = b.filter(|b| b.shape() == a.shape() && b.dtype() == a.dtype()) else {
                return Err(DriverError::Measure(format!(
                    "output `{name}` is {}{:?} in the reference and {} in the other model",
                    a.dtype(),
                    a.shape(),
                    b.map_or("absent".into(), |b| format!("{}{:?}", b.dtype(), b.shape()))
                )));
            };
            any = true;
            let numbers = |t: &Tensor| {
                let unreadable = |e| DriverError::Measure(format!("output `{name}`: {e}"));
                Ok::<_, DriverError>(Numbers::of(t).map_err(unreadable)?.floats())
            };
            for (x, y) in numbers(a)?.into_iter().zip(numbers(b)?) {
                self.reference += x * x;
                self.found += y * y;
                self.product += x * y;
                self.difference += (x - y) * (x - y);
                // A difference that is not a number stays.
                let gap = (x - y).abs();
                if gap.is_nan() || gap > self.max_abs {
                    self.max_abs = gap;
                }
            }
        }
        if !any {
            return Err(DriverError::Measure("the model has no floating point output to compare".into()));
        }
        self.samples += samples;
        Ok(())
    }

    /// The error so far.
    pub fn measure(&self) -> ErrorMeasure {
        let relative_l2 = match self.difference == 0.0 {
            true => 0.0,
            false if self.difference.is_nan() => f64::INFINITY,
            false => (self.difference / self.reference).sqrt(),
        };
        let scale = (self.reference * self.found).sqrt();
        let cosine = if scale == 0.0 && self.difference == 0.0 { 1.0 } else { self.product / scale };
        ErrorMeasure { relative_l2, cosine, samples: self.samples }
    }

    /// Whether all numbers were finite.
    pub fn is_finite(&self) -> bool {
        self.reference.is_finite() && self.difference.is_finite()
    }
}

/// The error of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerError {
    /// The name both graphs know the layer by.
    pub name: String,
    /// Error when the layer is given the reference's inputs; absent where the layer cannot be cut out.
    pub isolated: Option<f64>,
    /// Error when the layers before it are the other model's too.
    pub cumulative: f64,
}

/// Relative L2 errors of the values that two graphs name alike, in the order of the reference. Layers are run a few at a
/// time, so that memory stays bounded.
pub fn layers(
    reference: &Graph,
    other: &Graph,
    inputs: &[(String, Tensor)],
    backend: &Arc<dyn Backend>,
    threads: usize,
) -> Result<Vec<LayerError>, DriverError> {
    const AT_ONCE: usize = 16;
    let find = |name: &str| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
    let bound = |g: &Graph| -> Result<Graph, DriverError> {
        let binding = margay_ir::eval::bind_symbols(g, find)?;
        let failed = |error| DriverError::Pass { pass: "bind-dims", error };
        BindDims { binding }.bound(g).map_err(failed)
    };
    let (reference, other) = (&bound(reference)?, &bound(other)?);
    let (a, b) = (named_values(reference), named_values(other));
    let shared: Vec<(String, Value, Value)> = in_order(reference, &a)
        .into_iter()
        .filter_map(|(name, v)| {
            let w = *b.get(&name)?;
            (reference.ty(v) == other.ty(w)).then_some((name, v, w))
        })
        .collect();
    let mut out = Vec::new();
    for part in shared.chunks(AT_ONCE) {
        let x = run_to(reference, part.iter().map(|(_, v, _)| *v), inputs, backend, threads)?;
        let y = run_to(other, part.iter().map(|(_, _, w)| *w), inputs, backend, threads)?;
        for ((name, v, w), (x, y)) in part.iter().zip(x.iter().zip(&y)) {
            let isolated = isolated(reference, other, (*v, *w), inputs, &x.1, backend, threads)?;
            let mut sum = ErrorSum::default();
            let as_one = |t: &Tensor| [(String::new(), t.clone())];
            sum.add(&as_one(&x.1), &as_one(&y.1), 1)?;
            out.push(LayerError { name: name.clone(), isolated, cumulative: sum.measure().relative_l2 });
        }
    }
    Ok(out)
}

/// The last value of every name that is not in a role of a rewrite, where its elements are numbers.
fn named_values(g: &Graph) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for n in g.order() {
        let node = g.node(n);
        if matches!(node.op, Op::Input(_) | Op::Const(_)) || !is_measured(node.types[0].dtype) {
            continue;
        }
        // What stands at the end of a rewritten module computes what the module did.
        for name in &node.origin.names {
            out.insert(name.to_string(), Value::from(n));
        }
    }
    out
}

fn in_order(g: &Graph, names: &BTreeMap<String, Value>) -> Vec<(String, Value)> {
    let order = g.order();
    let mut list: Vec<(String, Value)> = names.iter().map(|(n, v)| (n.clone(), *v)).collect();
    list.sort_by_key(|(name, v)| (order.iter().position(|n| *n == v.node), name.clone()));
    list
}

fn run_to(
    g: &Graph,
    values: impl Iterator<Item = Value>,
    inputs: &[(String, Tensor)],
    backend: &Arc<dyn Backend>,
    threads: usize,
) -> Result<Vec<(String, Tensor)>, DriverError> {
    let outputs: Vec<(String, Value)> = values.enumerate().map(|(i, v)| (i.to_string(), v)).collect();
    Runner::new(g.cut(&[], &outputs), backend, threads).run(inputs)
}

/// The error of the layer alone: the other graph from the values that the reference computes before it.
fn isolated(
    reference: &Graph,
    other: &Graph,
    (v, w): (Value, Value),
    inputs: &[(String, Tensor)],
    expected: &Tensor,
    backend: &Arc<dyn Backend>,
    threads: usize,
) -> Result<Option<f64>, DriverError> {
    // The part of the other graph between the shared values before the layer and the layer.
    let known = named_values(reference);
    let own = &other.node(w.node).origin;
    let mut borders: Vec<(Value, Value)> = Vec::new();
    let mut stack: Vec<Value> = other.inputs_of(w.node).to_vec();
    while let Some(x) = stack.pop() {
        if borders.iter().any(|(b, _)| *b == x) || matches!(other.op(x.node), Op::Const(_) | Op::Input(_)) {
            continue;
        }
        let origin = &other.node(x.node).origin;
        let inside = origin.part.is_some() && origin.names.iter().any(|n| own.names.contains(n));
        let counterpart = origin
            .names
            .iter()
            .find_map(|n| known.get(&**n))
            .filter(|r| !inside && origin.part.is_none() && reference.ty(**r) == other.ty(x));
        match counterpart {
            Some(r) => borders.push((x, *r)),
            None => stack.extend(other.inputs_of(x.node)),
        }
    }
    if borders.iter().any(|(_, r)| *r == v) {
        return Ok(None);
    }
    let given = run_to(reference, borders.iter().map(|(_, r)| *r), inputs, backend, threads)?;
    let border = |(i, (x, _)): (usize, &(Value, Value))| (format!("border {i}"), *x);
    let borders: Vec<(String, Value)> = borders.iter().enumerate().map(border).collect();
    let piece = other.cut(&borders, &[("0".into(), w)]);
    let names = borders.into_iter().map(|(name, _)| name);
    let piece_inputs: Vec<(String, Tensor)> =
        inputs.iter().cloned().chain(names.zip(given.into_iter().map(|(_, t)| t))).collect();
    let found = Runner::new(piece, backend, threads).run(&piece_inputs)?;
    let mut sum = ErrorSum::default();
    sum.add(&[("0".into(), expected.clone())], &found, 1)?;
    Ok(Some(sum.measure().relative_l2))
}
