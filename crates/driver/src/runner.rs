//! Runs a graph on inputs of any shape, compiling for each shape once.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_ir::{Graph, Op, eval};
use margay_loops::Backend;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};

use crate::{DriverError, Interruption, build};

/// A graph and its compiled programs, one per value of its symbols.
pub struct Runner {
    graph: Graph,
    backend: Arc<dyn Backend>,
    threads: usize,
    huge_pages: bool,
    waits: bool,
    interruption: Interruption,
    sessions: BTreeMap<Binding, Session>,
}

impl Runner {
    /// Runs a graph at stage `Canonical` or `Sketched`. Compiles nothing yet.
    pub fn new(graph: Graph, backend: &Arc<dyn Backend>, threads: usize) -> Runner {
        let (backend, interruption) = (Arc::clone(backend), Interruption::never());
        Runner {
            graph,
            backend,
            threads,
            huge_pages: false,
            waits: false,
            interruption,
            sessions: BTreeMap::new(),
        }
    }

    /// The same, which gives up when it is interrupted, before a run or while it compiles.
    #[must_use]
    pub fn until(self, interruption: &Interruption) -> Runner {
        Runner { interruption: interruption.clone(), ..self }
    }

    /// What is compiled from now on runs in [huge pages](margay_runtime::Executable::in_huge_pages).
    pub fn use_huge_pages(&mut self) {
        self.huge_pages = true;
    }

    /// What is compiled from now on [waits for each step](Session::wait_for_each_step).
    pub fn wait_for_each_step(&mut self) {
        self.waits = true;
    }

    /// What the graph is compiled for.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The session for inputs of these shapes, compiled if there is none yet.
    pub fn session(&mut self, inputs: &[(String, Tensor)]) -> Result<&mut Session, DriverError> {
        self.check_names(inputs)?;
        let find = |name: &str| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
        let binding = eval::bind_symbols(&self.graph, find)?;
        if !self.sessions.contains_key(&binding) {
            let (graph, extents) = (self.graph.clone(), binding.clone());
            let backend = Arc::clone(&self.backend);
            let compile = move || build::jit(&graph, &extents, &*backend);
            let mut executable = self.interruption.run(compile)??;
            if self.huge_pages {
                executable = executable.in_huge_pages()?;
            }
            let mut session = Session::new(&executable, SessionOptions { threads: self.threads })?;
            session.wait_for_each_step(self.waits);
            self.sessions.insert(binding.clone(), session);
        }
        Ok(self.sessions.get_mut(&binding).expect("inserted above"))
    }

    /// Every input is given once, and nothing else.
    fn check_names(&self, inputs: &[(String, Tensor)]) -> Result<(), DriverError> {
        let mut problems = Vec::new();
        let mut expected = Vec::new();
        for n in self.graph.inputs() {
            let Op::Input(input) = self.graph.op(*n) else { continue };
            expected.push(format!("`{}`: {}", input.name, input.ty));
            match inputs.iter().find(|(name, _)| **name == *input.name) {
                None => problems.push(format!("input `{}` is missing", input.name)),
                Some((_, t)) if t.dtype() != input.ty.dtype || t.shape().len() != input.ty.ndim() => {
                    problems.push(format!(
                        "input `{}`: expected {}, found {}{:?}",
                        input.name,
                        input.ty,
                        t.dtype(),
                        t.shape()
                    ));
                }
                Some(_) => {}
            }
        }
        let known = |name: &str| expected.iter().any(|e| e.starts_with(&format!("`{name}`")));
        for (name, _) in inputs.iter().filter(|(n, _)| !known(n)) {
            problems.push(format!("the model has no input `{name}`"));
        }
        if problems.is_empty() {
            return Ok(());
        }
        problems.push(format!("the model takes {}", expected.join(", ")));
        Err(DriverError::Options(problems.join("; ")))
    }

    /// Runs the graph on inputs by name; outputs in the order of the graph.
    pub fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, DriverError> {
        self.interruption.check()?;
        let session = self.session(inputs)?;
        let borrowed: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        Ok(session.run(&borrowed)?)
    }
}
