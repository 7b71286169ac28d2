//! The walk backwards over a graph that collects cotangents.

use std::collections::{HashMap, HashSet};

use super::{Grad, Vjp};
use crate::graph::AddError;
use crate::ops::{Broadcast, Reshape};
use crate::{Builder, Graph, NodeId, Origin, Part, Patch, Value};

/// There are no derivatives.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DerivativeError {
    /// A rule built a node that does not type (our fault).
    #[error("the derivative of `{op}` at `{at}`: {error}")]
    Add {
        /// The operator.
        op: &'static str,
        /// The node's name in the model.
        at: String,
        /// Why.
        error: Box<AddError>,
    },
    /// An operator has no derivative, or no rule for it (a limit of the model or of margay).
    #[error("`{op}` at `{at}` has no derivative: {why}")]
    None {
        /// The operator.
        op: &'static str,
        /// The node's name in the model.
        at: String,
        /// Why.
        why: String,
    },
}

/// The derivatives of `Σ seed · y` over the seeds `(y, seed)` by each of the values `by`, in a patch of the graph; `None` where
/// they are zero because nothing connects the two. Seeds and results are values of either.
///
/// # Errors
/// [`DerivativeError`].
pub fn derivatives(
    g: &Graph,
    patch: &mut Patch,
    seeds: &[(Value, Value)],
    by: &[Value],
) -> Result<Vec<Option<Value>>, DerivativeError> {
    let order = g.order();
    let active = depending(g, &order, by);
    let mut sums = Cotangents::default();
    for (y, seed) in seeds {
        sums.add(g, patch, *y, *seed, Origin::default())?;
    }
    for &n in order.iter().rev() {
        let inputs = g.inputs_of(n);
        let wanted: Vec<bool> =
            inputs.iter().map(|v| active.contains(v) && g.ty(*v).dtype.is_float()).collect();
        let cotangents: Vec<Option<Value>> = g.values_of(n).map(|v| sums.total.get(&v).copied()).collect();
        if cotangents.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        let (op, at) = (g.op(n).clone(), g.node(n).origin.name().to_string());
        let origin = g.node(n).origin.part(Part::Gradient);
        let answer = op.vjp(&mut Vjp::new(g, patch, n, cotangents, wanted.clone(), origin.clone()));
        let op = op.name();
        let found =
            match answer.map_err(|error| DerivativeError::Add { op, at: at.clone(), error: error.into() })? {
                Grad::Inputs(found) => found,
                Grad::None { why } => return Err(DerivativeError::None { op, at, why }),
            };
        for ((v, cotangent), wanted) in inputs.iter().zip(found).zip(wanted) {
            if let (Some(cotangent), true) = (cotangent, wanted) {
                sums.add(g, patch, *v, cotangent, origin.clone())?;
            }
        }
    }
    Ok(by.iter().map(|v| sums.total.get(v).copied()).collect())
}

/// Values that depend on one of `on`, these included.
fn depending(g: &Graph, order: &[NodeId], on: &[Value]) -> HashSet<Value> {
    let mut found: HashSet<Value> = on.iter().copied().collect();
    for &n in order {
        if g.inputs_of(n).iter().any(|v| found.contains(v)) {
            found.extend(g.values_of(n));
        }
    }
    found
}

/// The cotangents collected so far.
#[derive(Default)]
struct Cotangents {
    total: HashMap<Value, Value>,
}

impl Cotangents {
    /// Adds a contribution, brought to the shape of the value first.
    fn add(
        &mut self,
        g: &Graph,
        patch: &mut Patch,
        v: Value,
        cotangent: Value,
        origin: Origin,
    ) -> Result<(), DerivativeError> {
        let at = origin.name().to_string();
        let failed =
            |error: AddError| DerivativeError::Add { op: "collect", at: at.clone(), error: error.into() };
        let mut b = Builder::patching(g, patch, origin);
        let fitted = sum_to(&mut b, cotangent, v).map_err(failed)?;
        let total = match self.total.get(&v) {
            Some(so_far) => b.add(*so_far, fitted).map_err(failed)?,
            None => fitted,
        };
        self.total.insert(v, total);
        Ok(())
    }
}

/// Sums over the axes along which `like` was repeated to the shape of `x`.
fn sum_to(b: &mut Builder<'_>, x: Value, like: Value) -> Result<Value, AddError> {
    let (from, to) = (b.ty(x).shape.clone(), b.ty(like).shape.clone());
    if from == to {
        return Ok(x);
    }
    let Some(front) = from.len().checked_sub(to.len()) else {
        return b.op(Broadcast { shape: to }, &[x]);
    };
    let repeated = |axis: &usize| *axis < front || (to[*axis - front].is(1) && !from[*axis].is(1));
    let axes: Vec<usize> = (0..from.len()).filter(repeated).collect();
    let mut sum = x;
    if !axes.is_empty() {
        sum = b.sum_kept(x, axes)?;
    }
    if front > 0 {
        let shape = b.ty(sum).shape[front..].to_vec();
        sum = b.op(Reshape { shape }, &[sum])?;
    }
    // A rule may answer with less than the whole shape.
    if b.ty(sum).shape != to { b.op(Broadcast { shape: to }, &[sum]) } else { Ok(sum) }
}
