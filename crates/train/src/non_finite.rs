//! Where a loss that is not finite comes from.

use std::collections::HashMap;
use std::fmt;

use margay_driver::Backend;
use margay_driver::build::jit;
use margay_ir::ops::{Abs, Reduce, ReduceKind};
use margay_ir::{AddError, Builder, Graph, NodeId, Op, Origin, Value};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};

use crate::TrainError;

/// The first node whose results are no numbers, or infinite, on the way to a loss.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NonFinite {
    /// Its label and operator, or the input it is.
    pub at: String,
    /// Whether it gives what is no number; else it gives infinities.
    pub nan: bool,
    /// Where infinities arose that it computed with, if it did.
    pub from_infinite: Option<String>,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.nan { "values that are no numbers" } else { "infinite values" };
        write!(f, "{} is the first to give {what}", self.at)?;
        match &self.from_infinite {
            Some(at) => write!(f, ", from infinite ones of {at}"),
            None => Ok(()),
        }
    }
}

/// Finds it by computing the loss again, with the largest magnitude of every value. `None` where all are finite.
pub(crate) fn find(
    graph: &Graph,
    inputs: &[(&str, &Tensor)],
    binding: &Binding,
    backend: &dyn Backend,
    threads: usize,
) -> Result<Option<NonFinite>, TrainError> {
    let loss: Vec<(String, Value)> = graph
        .outputs()
        .iter()
        .filter(|o| *o.name == *"loss")
        .map(|o| (o.name.to_string(), o.value))
        .collect();
    let mut part = graph.cut(&[], &loss);
    let floats = |g: &Graph, n: NodeId| -> Vec<Value> {
        g.values_of(n).filter(|v| g.ty(*v).dtype.is_float()).collect()
    };
    let values: Vec<Value> = part.order().into_iter().flat_map(|n| floats(&part, n)).collect();
    let mut probes = Vec::new();
    for v in &values {
        probes.push((format!("probe {}", probes.len()), largest(&mut part, *v)?));
    }
    let executable = jit(&part.cut(&[], &probes), binding, backend)?;
    let mut session = Session::new(&executable, SessionOptions { threads })?;
    let read = |name: &str| part.inputs().iter().any(|n| part.node(*n).origin.name() == name);
    let needed: Vec<(&str, &Tensor)> = inputs.iter().copied().filter(|(name, _)| read(name)).collect();
    let found = session.run(&needed)?;
    let number = |at: usize| found.iter().find(|(name, _)| *name == probes[at].0).and_then(|(_, t)| one(t));
    let sizes: HashMap<Value, f32> =
        values.iter().enumerate().map(|(at, v)| (*v, number(at).unwrap_or(0.0))).collect();
    let nan = values.iter().find(|v| sizes[v].is_nan());
    let infinite = values.iter().find(|v| sizes[v].is_infinite() && !is_constant(&part, **v));
    let Some(&first) = nan.or(infinite) else { return Ok(None) };
    Ok(Some(NonFinite {
        at: label(&part, first.node),
        nan: nan.is_some(),
        from_infinite: infinite_operand(&part, &sizes, first).map(|v| {
            let mut v = v;
            while let Some(before) = infinite_operand(&part, &sizes, v) {
                v = before;
            }
            label(&part, v.node)
        }),
    }))
}

/// An infinite operand of the node of a value.
fn infinite_operand(g: &Graph, sizes: &HashMap<Value, f32>, v: Value) -> Option<Value> {
    g.inputs_of(v.node).into_iter().find(|x| sizes.get(x).is_some_and(|size| size.is_infinite()))
}

fn is_constant(g: &Graph, v: Value) -> bool {
    g.constant(v).is_some()
}

/// The largest magnitude, as a scalar of f32.
fn largest(g: &mut Graph, v: Value) -> Result<Value, AddError> {
    let axes = (0..g.ty(v).ndim()).collect();
    let mut b = Builder::new(g, Origin::named("probe"));
    let magnitude = b.op(Abs, &[v])?;
    let largest = b.op(Reduce { kind: ReduceKind::Max, axes, keepdims: false }, &[magnitude])?;
    b.cast(largest, DType::F32)
}

fn one(t: &Tensor) -> Option<f32> {
    t.as_slice::<f32>().ok()?.first().copied()
}

fn label(g: &Graph, n: NodeId) -> String {
    match g.op(n) {
        Op::Input(input) => format!("input `{}`", input.name),
        op => format!("`{}` ({})", g.label(n), op.name()),
    }
}
