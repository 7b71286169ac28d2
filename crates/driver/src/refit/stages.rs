//! Runs a graph stage by stage over the same batches of data, so that nothing is computed twice.
//!
//! Between two stages the values that later ones read are kept. Constants may be replaced in between, as long as nothing
//! computed so far reads them.

use std::collections::HashSet;
use std::sync::Arc;

use margay_ir::{Graph, NodeId, Op, Value};
use margay_loops::Backend;
use margay_tensor::Tensor;

use crate::{Arrays, DriverError, Interruption, Runner};

/// A graph on its way through some batches.
pub struct Stages<'a> {
    batches: &'a [Arrays],
    backend: &'a Arc<dyn Backend>,
    threads: usize,
    interruption: Interruption,
    known: HashSet<NodeId>,
    kept: Vec<Value>,
    /// By batch, then as in `kept`.
    data: Vec<Vec<Tensor>>,
}

impl<'a> Stages<'a> {
    /// Nothing has been computed yet.
    pub fn new(
        batches: &'a [Arrays],
        backend: &'a Arc<dyn Backend>,
        threads: usize,
        interruption: &Interruption,
    ) -> Stages<'a> {
        let (data, interruption) = (vec![Vec::new(); batches.len()], interruption.clone());
        Stages { batches, backend, threads, interruption, known: HashSet::new(), kept: Vec::new(), data }
    }

    /// Goes on until these values of the graph are known. It must be the graph of the stages before, but for constants.
    ///
    /// # Errors
    /// Those of compiling and running the part of the graph that is new; after an interruption nothing can be asked of it.
    pub fn advance(&mut self, g: &Graph, wanted: &[Value]) -> Result<(), DriverError> {
        let leaf = |n: NodeId| matches!(g.op(n), Op::Input(_) | Op::Const(_));
        let mut stack: Vec<NodeId> = wanted.iter().map(|v| v.node).collect();
        while let Some(n) = stack.pop() {
            if !leaf(n) && self.known.insert(n) {
                stack.extend(g.inputs_of(n).iter().map(|v| v.node));
            }
        }
        let read_later = |v: Value| g.users_of(v).iter().any(|(user, _)| !self.known.contains(user));
        let mut live: Vec<Value> = Vec::new();
        for n in g.order().into_iter().filter(|n| self.known.contains(n)) {
            live.extend(g.values_of(n).filter(|v| read_later(*v) || wanted.contains(v)));
        }
        live.extend(wanted.iter().filter(|v| matches!(g.op(v.node), Op::Input(_))));
        let fresh: Vec<Value> = live.iter().copied().filter(|v| !self.kept.contains(v)).collect();
        let runner = Runner::new(self.part(g, &fresh), self.backend, self.threads);
        let mut runner = runner.until(&self.interruption);
        for batch in 0..self.batches.len() {
            let outputs = runner.run(&self.inputs(batch))?;
            let kept = &mut self.data[batch];
            let all: Vec<Tensor> = kept.iter().cloned().chain(outputs.into_iter().map(|(_, t)| t)).collect();
            let names: Vec<Value> = self.kept.iter().chain(&fresh).copied().collect();
            let find = |v: &Value| names.iter().position(|w| w == v).expect("live values are kept or fresh");
            *kept = live.iter().map(|v| all[find(v)].clone()).collect();
        }
        self.kept = live;
        Ok(())
    }

    /// A value of the last stage on a batch.
    ///
    /// # Panics
    /// If the last stage was not to compute it.
    pub fn value(&self, batch: usize, v: Value) -> &Tensor {
        let at = self.kept.iter().position(|w| *w == v).expect("the stage was to compute this value");
        &self.data[batch][at]
    }

    /// Bytes of the values that are kept, over all batches.
    pub fn kept_bytes(&self) -> usize {
        self.data.iter().flatten().map(|t| t.bytes().len()).sum()
    }

    /// What [`part`](Stages::part) reads: the inputs of the model on a batch, and the values that are kept.
    pub fn inputs(&self, batch: usize) -> Arrays {
        let kept = self.data[batch].iter().enumerate().map(|(i, t)| (kept_name(i), t.clone()));
        self.batches[batch].iter().cloned().chain(kept).collect()
    }

    /// The graph that computes some values from those that are kept. Nodes keep their ids.
    pub fn part(&self, g: &Graph, wanted: &[Value]) -> Graph {
        let named = |name: fn(usize) -> String, values: &[Value]| -> Vec<(String, Value)> {
            values.iter().enumerate().map(|(i, v)| (name(i), *v)).collect()
        };
        g.cut(&named(kept_name, &self.kept), &named(|i| format!("cut {i}"), wanted))
    }
}

fn kept_name(i: usize) -> String {
    format!("kept {i}")
}
