//! Runs a graph stage by stage over the same batches of data, so that nothing is computed twice.
//!
//! Between two stages the values that later ones read are kept. Constants may be replaced in between, as long as nothing
//! computed so far reads them. A stage may need the first batches only; the others catch up when one needs them, and nothing
//! of them but the inputs is in memory until then.

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
    /// By batch; none is further than the one before it.
    reached: Vec<Reached>,
}

/// How far a batch is.
#[derive(Clone, Default)]
struct Reached {
    stage: Arc<Stage>,
    /// As `kept` of the stage.
    data: Vec<Tensor>,
}

/// What is known, and what of that is read later.
#[derive(Default)]
struct Stage {
    known: HashSet<NodeId>,
    kept: Vec<Value>,
}

impl Stage {
    /// The stage at which these values are known as well.
    fn with(&self, g: &Graph, wanted: &[Value]) -> Stage {
        let leaf = |n: NodeId| matches!(g.op(n), Op::Input(_) | Op::Const(_));
        let mut known = self.known.clone();
        let mut stack: Vec<NodeId> = wanted.iter().map(|v| v.node).collect();
        while let Some(n) = stack.pop() {
            if !leaf(n) && known.insert(n) {
                stack.extend(g.inputs_of(n).iter().map(|v| v.node));
            }
        }
        let read_later = |v: Value| g.users_of(v).iter().any(|(user, _)| !known.contains(user));
        let mut kept: Vec<Value> = Vec::new();
        for n in g.order().into_iter().filter(|n| known.contains(n)) {
            kept.extend(g.values_of(n).filter(|v| read_later(*v) || wanted.contains(v)));
        }
        kept.extend(wanted.iter().filter(|v| matches!(g.op(v.node), Op::Input(_))));
        Stage { known, kept }
    }

    fn position(&self, v: Value) -> Option<usize> {
        self.kept.iter().position(|w| *w == v)
    }

    /// The graph that computes some values from those that are kept. Nodes keep their ids.
    fn part(&self, g: &Graph, wanted: &[Value]) -> Graph {
        let named = |name: fn(usize) -> String, values: &[Value]| -> Vec<(String, Value)> {
            values.iter().enumerate().map(|(i, v)| (name(i), *v)).collect()
        };
        g.cut(&named(kept_name, &self.kept), &named(|i| format!("cut {i}"), wanted))
    }
}

impl<'a> Stages<'a> {
    /// Nothing has been computed yet.
    pub fn new(
        batches: &'a [Arrays],
        backend: &'a Arc<dyn Backend>,
        threads: usize,
        interruption: &Interruption,
    ) -> Stages<'a> {
        let (reached, interruption) = (vec![Reached::default(); batches.len()], interruption.clone());
        Stages { batches, backend, threads, interruption, reached }
    }

    /// Goes on until these values of the graph are known for the first `count` batches. It must be the graph of the stages
    /// before, but for constants.
    ///
    /// # Errors
    /// Those of compiling and running the part of the graph that is new; after an error nothing can be asked of it.
    pub fn advance(&mut self, g: &Graph, wanted: &[Value], count: usize) -> Result<(), DriverError> {
        let Some(furthest) = self.reached.first() else { return Ok(()) };
        let next = Arc::new(furthest.stage.with(g, wanted));
        let mut begin = 0;
        while begin < count.min(self.reached.len()) {
            let from = Arc::clone(&self.reached[begin].stage);
            let alike = |reached: &&Reached| Arc::ptr_eq(&reached.stage, &from);
            let end = count.min(begin + self.reached[begin..].iter().take_while(alike).count());
            let fresh: Vec<Value> =
                next.kept.iter().copied().filter(|v| from.position(*v).is_none()).collect();
            let runner = Runner::new(from.part(g, &fresh), self.backend, self.threads);
            let mut runner = runner.until(&self.interruption);
            // Where each value that is kept next comes from.
            let values: Vec<Value> = from.kept.iter().chain(&fresh).copied().collect();
            let at = |v: &Value| values.iter().position(|w| w == v).expect("values are kept or fresh");
            let sources: Vec<usize> = next.kept.iter().map(at).collect();
            for batch in begin..end {
                let outputs = runner.run(&self.inputs(batch))?;
                let before = &self.reached[batch].data;
                let all: Vec<&Tensor> = before.iter().chain(outputs.iter().map(|(_, t)| t)).collect();
                let data = sources.iter().map(|at| all[*at].clone()).collect();
                self.reached[batch] = Reached { stage: Arc::clone(&next), data };
            }
            begin = end;
        }
        Ok(())
    }

    /// A value of the last stage on a batch that was to reach it.
    ///
    /// # Panics
    /// If the last stage was not to compute it.
    pub fn value(&self, batch: usize, v: Value) -> &Tensor {
        let Reached { stage, data } = &self.reached[batch];
        &data[stage.position(v).expect("the stage was to compute this value")]
    }

    /// Bytes of the values that are kept, over all batches.
    pub fn kept_bytes(&self) -> usize {
        self.reached.iter().flat_map(|reached| &reached.data).map(|t| t.bytes().len()).sum()
    }

    /// What [`part`](Stages::part) reads: the inputs of the model on a batch, and the values that are kept.
    pub fn inputs(&self, batch: usize) -> Arrays {
        let kept = self.reached[batch].data.iter().enumerate().map(|(i, t)| (kept_name(i), t.clone()));
        self.batches[batch].iter().cloned().chain(kept).collect()
    }

    /// The graph that computes some values from those that are kept of the first batch. Nodes keep their ids.
    pub fn part(&self, g: &Graph, wanted: &[Value]) -> Graph {
        self.reached
            .first()
            .map_or_else(|| Stage::default().part(g, wanted), |reached| reached.stage.part(g, wanted))
    }
}

fn kept_name(i: usize) -> String {
    format!("kept {i}")
}
