//! Whether samples drive bounded functions inside of the model to the ends of their ranges, as images do whose pixels were not
//! scaled as those of training were.
//!
//! Only functions are looked at that a layer reads: what a model gives at its outputs, such as the scores of a detector, may
//! well be near 0 everywhere.

use std::collections::HashSet;

use margay_ir::{NodeId, Op, Value};
use margay_tensor::DType;

use super::Job;
use super::check::Checker;
use crate::{DriverError, Runner};

/// More than this share of the values of a function at the ends of its range are many.
const MANY: f64 = 0.95;

/// Values this near to an end, as a share of the range, count as there.
const NEAR: f64 = 1e-3;

/// What is said of functions whose values are nearly all at the ends of their ranges, from some of the held-out samples.
///
/// # Errors
/// What running the model says.
pub(crate) fn saturated(job: &Job<'_>, checker: &Checker) -> Result<Option<String>, DriverError> {
    let g = job.graph();
    let read = before_layers(job);
    let ends = |n: NodeId| match g.op(n) {
        Op::Sigmoid(_) => Some((0.0, 1.0)),
        Op::Tanh(_) => Some((-1.0, 1.0)),
        Op::Relu6(_) => Some((0.0, 6.0)),
        _ => None,
    };
    let found =
        |n: NodeId| Some((n, ends(n).filter(|_| read.contains(&n) && g.ty(n.into()).dtype == DType::F32)?));
    let bounded: Vec<(NodeId, (f64, f64))> = g.order().into_iter().filter_map(found).collect();
    let Some(inputs) = checker.first_inputs().filter(|_| !bounded.is_empty()) else { return Ok(None) };
    let named = |(i, (n, _)): (usize, &(NodeId, _))| (format!("bounded {i}"), Value::from(*n));
    let part = g.cut(&[], &bounded.iter().enumerate().map(named).collect::<Vec<_>>());
    let outputs = Runner::new(part, &job.measures_on, job.threads()).run(inputs)?;
    let mut worst: Option<(f64, NodeId)> = None;
    let mut count = 0;
    for ((n, (low, high)), (_, values)) in bounded.iter().zip(&outputs) {
        let values = values.to_vec::<f32>().expect("bounded values are f32");
        let near = NEAR * (high - low);
        let at_end =
            values.iter().map(|v| f64::from(*v)).filter(|v| v - low < near || high - v < near).count();
        let share = at_end as f64 / values.len().max(1) as f64;
        if share > MANY {
            count += 1;
            if worst.is_none_or(|(most, _)| share > most) {
                worst = Some((share, *n));
            }
        }
    }
    Ok(worst.map(|(share, n)| {
        let others = if count > 1 { format!(" and more than {}% of those of {} others", 100.0 * MANY, count - 1) } else { String::new() };
        format!(
            "{:.1}% of the values of `{}`{others} are at the ends of their range: the samples may be scaled otherwise than \
             what the model was trained on",
            100.0 * share,
            g.node(n).origin.name()
        )
    }))
}

/// The nodes that a layer depends on.
fn before_layers(job: &Job<'_>) -> HashSet<NodeId> {
    let g = job.graph();
    let mut found = HashSet::new();
    let mut stack: Vec<NodeId> = job.sites.iter().flat_map(|site| site.nodes.iter().copied()).collect();
    while let Some(n) = stack.pop() {
        stack.extend(g.inputs_of(n).iter().map(|v| v.node).filter(|n| found.insert(*n)));
    }
    found
}
