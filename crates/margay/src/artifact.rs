//! What an artifact carries besides code.

use std::path::Path;

use margay_artifact::Artifact;
use margay_driver::{Report, export_graph, open_artifact_graph};
use margay_passes::sketch;

use crate::Error;

/// Opens an artifact and checks all of it, weights too.
///
/// # Errors
/// A file that is no artifact, or is altered.
pub fn open_artifact(path: &Path) -> Result<Artifact, Error> {
    let artifact = Artifact::open(path)?;
    artifact.verify_weights()?;
    Ok(artifact)
}

/// Writes the graph that an artifact carries as ONNX, with its plan and its report.
///
/// # Errors
/// [`Error::Stripped`] where it carries none; files that cannot be written.
pub fn export_artifact(artifact: &Artifact, path: &Path) -> Result<(), Error> {
    let report = report_of(artifact)?;
    let graph = open_artifact_graph(artifact)?;
    let plan = artifact.source("plan.toml")?.unwrap_or_default();
    let plan = sketch::read_plan(&String::from_utf8_lossy(plan))?;
    export_graph(&graph, Some((&plan, &report)), path)
}

/// The report that an artifact carries.
///
/// # Errors
/// [`Error::Stripped`] where it carries none.
pub fn report_of(artifact: &Artifact) -> Result<Report, Error> {
    let path = artifact.path().to_path_buf();
    let Some(bytes) = artifact.source("report.json")? else {
        return Err(Error::Stripped { path, lacks: "report" });
    };
    serde_json::from_slice(bytes).map_err(|e| Error::Report { path, message: e.to_string() })
}
