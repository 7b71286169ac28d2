//! Graphs to ONNX files, with notes of what was done to them.

use std::collections::BTreeMap;
use std::path::Path;

use margay_ir::Graph;
use margay_onnx::{ExportOptions, External};
use margay_plan::{Plan, percent};

use crate::{DriverError, ErrorBound, MetricReport, Report};

/// Writes a graph as ONNX, its open dimensions still open. Plan and report of a sketched graph become metadata:
///
/// | key | value |
/// |---|---|
/// | `margay.model_hash` | the hash of the dense model |
/// | `margay.goal`, `margay.seed`, `margay.precision` | what was asked for |
/// | `margay.modules` | `NAME: SCHEME SETTINGS`, as in `fc1: lowrank rank 8`, separated by `; ` |
/// | `margay.held_out_relative_l2` | relative L2 error of the outputs on the samples held out |
/// | `margay.held_out_samples` | how many these are |
/// | `margay.held_out_mask` | the input whose zeros mark what did not count, if there is one |
/// | `margay.held_out_outputs` | the only outputs that counted, separated by `, `; absent where all did |
/// | `margay.bounds_relative_l2` | what a further sample errs by at most, as in `90%: 0.0996, 95%: 0.103`; absent where the samples held out had a part in the choice, or are too few |
/// | `margay.quantile_relative_l2` | what the share of the samples held out does not exceed that the limit is for, as in `95%: 0.098` |
/// | `margay.metric` | of the user's own: `NAME: dense D, sketched S` |
///
/// Numbers are decimal and read back as the same f64.
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
    let mut note = |key: &str, text: String| _ = notes.insert(format!("margay.{key}"), text);
    note("precision", report.precision.clone());
    if let Some(e) = &report.held_out {
        note("held_out_relative_l2", e.relative_l2.to_string());
        note("held_out_samples", e.samples.to_string());
        e.mask.iter().for_each(|mask| note("held_out_mask", mask.clone()));
        if !e.only.is_empty() {
            note("held_out_outputs", e.only.join(", "));
        }
        if !e.bounds.is_empty() {
            note("bounds_relative_l2", levels(&e.bounds));
        }
        e.quantile.iter().for_each(|found| note("quantile_relative_l2", levels(std::slice::from_ref(found))));
    }
    if let Some(MetricReport { name, dense, sketched }) = &report.metric {
        note("metric", format!("{name}: dense {dense}, sketched {sketched}"));
    }
    notes
}

/// `90%: 0.0996, 95%: 0.103`.
fn levels(bounds: &[ErrorBound]) -> String {
    let one = |bound: &ErrorBound| format!("{}%: {}", percent(bound.level), bound.relative_l2);
    bounds.iter().map(one).collect::<Vec<_>>().join(", ")
}
