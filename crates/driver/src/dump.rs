//! The graphs between passes, written to a folder.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use margay_passes::pipeline::PassRun;

use crate::DriverError;

/// Writes `00-import.ir`, `01-fold-constants.ir`, … for passes that changed something, and `index.txt`.
pub struct Dump {
    folder: Option<PathBuf>,
    head: String,
    index: String,
    count: usize,
    failed: Option<DriverError>,
}

impl Dump {
    /// Writes nothing.
    pub fn none() -> Dump {
        Dump { folder: None, head: String::new(), index: String::new(), count: 0, failed: None }
    }

    /// Writes to a folder, which is made if it is not there. Each file starts with `options` as a comment.
    pub fn to(folder: &Path, options: &str) -> Result<Dump, DriverError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| DriverError::Io { path: folder.to_path_buf(), source })?;
        let head = options.lines().fold(String::new(), |s, l| s + "// " + l + "\n");
        let index = format!(
            "{:<24} {:>8} {:>8} {:>8} {:>9} {:<12} {:>8}\n",
            "pass", "changes", "before", "after", "ms", "fidelity", "declined"
        );
        Ok(Dump { folder: Some(folder.to_path_buf()), head, index, count: 0, failed: None })
    }

    /// Writes a graph under a name of its own.
    pub fn graph(&mut self, name: &str, g: &margay_ir::Graph) {
        let Some(folder) = &self.folder else { return };
        let path = folder.join(format!("{:02}-{name}.ir", self.count));
        self.count += 1;
        if let Err(source) = std::fs::write(&path, format!("{}{g}", self.head)) {
            self.failed.get_or_insert(DriverError::Io { path, source });
        }
    }

    /// Records a pass that ran.
    pub fn pass(&mut self, run: &PassRun<'_>) {
        if self.folder.is_none() {
            return;
        }
        let _ = writeln!(
            self.index,
            "{:<24} {:>8} {:>8} {:>8} {:>9.3} {:<12} {:>8}",
            run.pass,
            run.changes,
            run.nodes_before,
            run.graph.len(),
            run.seconds * 1e3,
            run.fidelity.to_string(),
            run.declined
        );
        if run.changes > 0 {
            self.graph(run.pass, run.graph);
        }
    }

    /// Writes a text under a name of its own.
    pub fn text(&mut self, name: &str, text: &str) {
        let Some(folder) = &self.folder else { return };
        let path = folder.join(name);
        if let Err(source) = std::fs::write(&path, text) {
            self.failed.get_or_insert(DriverError::Io { path, source });
        }
    }

    /// Writes the index; reports the first file that could not be written.
    pub fn finish(mut self) -> Result<(), DriverError> {
        let index = std::mem::take(&mut self.index);
        self.text("index.txt", &index);
        self.failed.map_or(Ok(()), Err)
    }
}
