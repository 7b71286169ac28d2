//! A command as a metric: it is given an ONNX file and prints a number.

use std::process::{Command, Stdio};

use margay_driver::{OwnMetric, export_graph};
use margay_ir::Graph;

/// What stands for the file in a command.
const PLACE: &str = "{}";

/// A metric that a command of the shell measures. `{}` in it stands for the path of an ONNX file, which comes last where
/// there is no `{}`. The last line that it prints is the number, larger for better models.
pub fn command_metric(command: &str) -> OwnMetric {
    let command = command.to_owned();
    OwnMetric::new(command.clone(), move |g: &Graph| {
        let folder = tempfile::tempdir().map_err(|e| format!("no folder for the model: {e}"))?;
        let path = folder.path().join("model.onnx");
        export_graph(g, None, &path).map_err(|e| e.to_string())?;
        let quoted = format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
        let words = match command.contains(PLACE) {
            true => command.replace(PLACE, &quoted),
            false => format!("{command} {quoted}"),
        };
        let ran = Command::new("/bin/sh").arg("-c").arg(&words).stdin(Stdio::null()).output();
        let ran = ran.map_err(|e| format!("it cannot be run: {e}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let last = |text: &str| {
            text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().to_owned()
        };
        if !ran.status.success() {
            return Err(format!("{}: {}", ran.status, last(&text(&ran.stderr))));
        }
        let line = last(&text(&ran.stdout));
        line.parse().map_err(|_| format!("expected a number in the last line that it prints, found `{line}`"))
    })
}
