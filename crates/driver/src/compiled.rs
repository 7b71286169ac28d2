//! A compiled model: to be run, written or exported.

use std::path::Path;
use std::sync::Arc;

use margay_artifact::ArtifactBuilder;
use margay_ir::{Graph, text};
use margay_loops::Backend;
use margay_lower::storage_with_signs;
use margay_plan::Plan;
use margay_runtime::Executable;
use margay_tensor::Binding;

use crate::{CurvePoint, DriverError, Dump, Report, Runner, backend, build, export_graph, range};

/// The piece of an artifact's source that holds its graph.
pub(crate) const GRAPH_PIECE: &str = "graph.ir";

/// A compiled model.
pub struct Compiled {
    /// What was done.
    pub report: Report,
    /// The choices, to be replayed.
    pub plan: Plan,
    /// What every site could be replaced by, where something was fitted.
    pub curves: Vec<CurvePoint>,
    /// The sketched graph.
    pub graph: Graph,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) bindings: Vec<Binding>,
    /// Values that share entries where they can.
    pub(crate) ranges: Vec<Vec<Binding>>,
    pub(crate) threads: usize,
}

impl Compiled {
    /// A runner of the sketched graph, for inputs of any shape.
    pub fn runner(&self, threads: usize) -> Runner {
        Runner::new(self.graph.clone(), &self.backend, threads)
    }

    /// The executable for the shapes that were asked for, to run in this process.
    pub fn executable(&self) -> Result<Executable, DriverError> {
        backend::executable(self.builder(true, &mut Dump::none())?.into_parts()?, &*self.backend)
    }

    /// Writes the artifact. With `strip` it does not carry its graph, plan and report.
    pub fn write(&self, path: &Path, strip: bool, dump: &mut Dump) -> Result<(), DriverError> {
        Ok(self.builder(strip, dump)?.write(path)?)
    }

    /// Writes the sketched graph as ONNX, its open dimensions still open.
    pub fn export(&self, path: &Path) -> Result<(), DriverError> {
        export_graph(&self.graph, Some((&self.plan, &self.report)), path)
    }

    fn builder(&self, strip: bool, dump: &mut Dump) -> Result<ArtifactBuilder<'_>, DriverError> {
        let mut builder = ArtifactBuilder::new(&self.report.model);
        for binding in &self.bindings {
            build::add_entry(&mut builder, &self.graph, binding, &*self.backend, dump)?;
        }
        for points in &self.ranges {
            range::add_entries(&mut builder, &self.graph, points, &*self.backend, self.threads, dump)?;
        }
        if !strip {
            self.add_sources(&mut builder)?;
        }
        Ok(builder)
    }

    /// The text of the graph, and those of its constants that no entry reads as they are.
    fn add_sources<'b>(&'b self, builder: &mut ArtifactBuilder<'b>) -> Result<(), DriverError> {
        for payload in text::named_constants(&self.graph) {
            let key = payload.key().to_string();
            let holds = |name: &String| *name == key || storage_with_signs(name, &key).is_some();
            if !builder.constants.stored().iter().any(|s| s.names.iter().any(holds)) {
                let stored = payload.stored().clone();
                let constant = margay_loops::Constant { names: vec![key], stored, packed: None };
                builder.constants.add(&constant, &*self.backend);
            }
        }
        let report = serde_json::to_vec_pretty(&self.report)
            .map_err(|e| DriverError::Options(format!("the report cannot be written: {e}")))?;
        builder.source(GRAPH_PIECE, self.graph.to_string().into_bytes());
        builder.source("plan.toml", self.plan.to_toml()?.into_bytes());
        builder.source("report.json", report);
        Ok(())
    }
}
