//! How far two models are apart, layer by layer.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_ir::{Graph, Op, Value};
use margay_loops::Backend;
use margay_passes::BindDims;
use margay_tensor::Tensor;
use serde::Serialize;

use crate::samples::is_measured;
use crate::{DriverError, ErrorScope, ErrorSum, MaskChoice, Runner};

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
/// time, so that memory stays bounded. What `mask` marks as padding does not count in values that begin with its axes.
pub fn layers(
    reference: &Graph,
    other: &Graph,
    inputs: &[(String, Tensor)],
    mask: &MaskChoice,
    backend: &Arc<dyn Backend>,
    threads: usize,
) -> Result<Vec<LayerError>, DriverError> {
    const AT_ONCE: usize = 16;
    let scope = ErrorScope { mask: mask.clone(), outputs: Vec::new() };
    let how = How { scope: &scope, backend, threads };
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
            let isolated = isolated(reference, other, (*v, *w), inputs, &x.1, &how)?;
            let mut sum = ErrorSum::new(&scope);
            let as_one = |t: &Tensor| [(String::new(), t.clone())];
            sum.add(inputs, &as_one(&x.1), &as_one(&y.1))?;
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

/// How layers are run and compared.
#[derive(Clone, Copy)]
struct How<'a> {
    scope: &'a ErrorScope,
    backend: &'a Arc<dyn Backend>,
    threads: usize,
}

/// The error of the layer alone: the other graph from the values that the reference computes before it.
fn isolated(
    reference: &Graph,
    other: &Graph,
    (v, w): (Value, Value),
    inputs: &[(String, Tensor)],
    expected: &Tensor,
    how: &How<'_>,
) -> Result<Option<f64>, DriverError> {
    let How { scope, backend, threads } = *how;
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
    let mut sum = ErrorSum::new(scope);
    sum.add(inputs, &[("0".into(), expected.clone())], &found)?;
    Ok(Some(sum.measure().relative_l2))
}
