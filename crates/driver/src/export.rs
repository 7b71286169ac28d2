//! Graphs to ONNX files, with notes of what was done to them.

use std::collections::BTreeMap;
use std::path::Path;

use margay_ir::Graph;
use margay_onnx::{ExportOptions, External};
use margay_plan::Plan;

use crate::{DriverError, Report};

/// Writes a graph as ONNX, its open dimensions still open. Plan and report of a sketched graph become metadata: `margay.`
/// and `model_hash`, `goal`, `seed`, `modules` (`NAME: SCHEME SETTINGS`, as in `fc1: lowrank rank 8`, separated by `; `), `held_out_relative_l2`.
pub fn export_graph(
    graph: &Graph,
    sketched: Option<(&Plan, &Report)>,
    path: &Path,
) -> Result<(), DriverError> {
    let metadata = sketched.map_or(BTreeMap::new(), |(plan, report)| notes(plan, report));
    let options = ExportOptions { metadata, ..ExportOptions::of(graph) };
    Ok(margay_onnx::export(graph, &options)?.write(path, External::Auto)?)
}

fn notes(plan: &Plan, report: &Report) -> BTreeMap<String, String> {
    let choices: Vec<String> = plan
        .sites
        .iter()
        .filter(|(_, c)| !c.is_dense())
        .map(|(name, c)| format!("{name}: {} {}", c.scheme, c.settings))
        .collect();
    let mut notes = BTreeMap::from([
        ("margay.model_hash".to_string(), report.model_hash.clone()),
        ("margay.goal".to_string(), report.goal.clone()),
        ("margay.seed".to_string(), report.seed.to_string()),
        ("margay.modules".to_string(), choices.join("; ")),
    ]);
    if let Some(e) = &report.held_out {
        notes.insert("margay.held_out_relative_l2".into(), e.relative_l2.to_string());
    }
    notes
}
