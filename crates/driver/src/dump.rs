//! The graphs between passes, written to a folder from which each can be run again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use margay_ir::{Graph, Remark};
use margay_passes::{PassRun, Pipeline, PipelineError, PipelineFault};

use crate::DriverError;
use crate::consts::Consts;

/// The graph before a pass that failed.
pub const BEFORE: &str = "before.ir";

/// Writes `00-import.ir`, `01-fold-constants.ir`, … for passes that changed something, `index.txt`, files that
/// configurations name, and `consts.safetensors` with the constants that the graphs name. Of a pipeline that failed it writes
/// `before.ir`, `after.ir` and `violations.txt`.
pub struct Dump {
    folder: Option<PathBuf>,
    head: String,
    index: String,
    consts: Consts,
    files: BTreeMap<String, String>,
    count: usize,
    failed: Option<DriverError>,
}

impl Dump {
    /// Writes nothing.
    pub fn none() -> Dump {
        Dump {
            folder: None,
            head: String::new(),
            index: String::new(),
            consts: Consts::default(),
            files: BTreeMap::new(),
            count: 0,
            failed: None,
        }
    }

    /// Writes to a folder, which is made if it is not there. Each text starts with `options` as a comment.
    pub fn to(folder: &Path, options: &str) -> Result<Dump, DriverError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| DriverError::Write { path: folder.to_path_buf(), source })?;
        let head = options.lines().fold(String::new(), |s, l| s + "// " + l + "\n");
        let index = format!(
            "{:<24} {:>8} {:>8} {:>8} {:>9} {:<12} {:>8}  {}\n",
            "graph", "changes", "before", "after", "ms", "fidelity", "declined", "pass"
        );
        Ok(Dump { folder: Some(folder.to_path_buf()), head, index, ..Dump::none() })
    }

    /// Runs a pipeline, and writes the graph after every pass that changed something.
    ///
    /// # Errors
    /// [`DriverError::Pipeline`], which says where its graphs were written if they were.
    pub fn run(&mut self, pipeline: &Pipeline, g: &mut Graph) -> Result<Vec<Remark>, DriverError> {
        pipeline.run(g, &mut |run| self.pass(run)).map_err(|error| {
            self.failure(&error);
            DriverError::Pipeline { error, dumped: self.folder.clone() }
        })
    }

    /// Writes a graph under a number and a name. Returns the name of the file without its ending.
    pub fn graph(&mut self, name: &str, g: &Graph) -> String {
        let numbered = format!("{:02}-{name}", self.count);
        self.count += 1;
        self.write_graph(&format!("{numbered}.ir"), g);
        numbered
    }

    fn write_graph(&mut self, name: &str, g: &Graph) {
        if self.folder.is_some() {
            self.consts.add(g);
            self.text(name, &g.to_string());
        }
    }

    /// Records a pass that ran.
    fn pass(&mut self, run: &PassRun<'_>) {
        if self.folder.is_none() {
            return;
        }
        self.files.extend(run.pass.configuration().files);
        let name = match run.changes {
            0 => "-".to_owned(),
            _ => self.graph(run.pass.name(), run.graph),
        };
        let _ = writeln!(
            self.index,
            "{name:<24} {:>8} {:>8} {:>8} {:>9.3} {:<12} {:>8}  {}",
            run.changes,
            run.nodes_before,
            run.graph.len(),
            run.seconds * 1e3,
            run.pass.fidelity().to_string(),
            run.declined,
            run.pass
        );
    }

    /// Writes what a pipeline left that failed.
    pub fn failure(&mut self, error: &PipelineError) {
        if self.folder.is_none() {
            return;
        }
        let replay = &error.replay;
        self.files.extend(replay.files.iter().cloned());
        self.write_graph(BEFORE, &replay.before);
        self.write_graph("after.ir", &replay.after);
        let lines = match &error.fault {
            PipelineFault::Pass { error, .. } => format!("{error}\n"),
            PipelineFault::Broken { violations, .. } => violations.iter().map(|v| format!("{v}\n")).collect(),
        };
        self.text("violations.txt", &format!("{}\n{lines}", replay.items));
    }

    /// Writes a text under a name of its own.
    pub fn text(&mut self, name: &str, text: &str) {
        let head = self.head.clone();
        self.file(name, &format!("{head}{text}"));
    }

    fn file(&mut self, name: &str, text: &str) {
        let Some(folder) = &self.folder else { return };
        let path = folder.join(name);
        if let Err(source) = std::fs::write(&path, text) {
            self.failed.get_or_insert(DriverError::Write { path, source });
        }
    }

    /// Writes the index and what the graphs name; reports the first file that could not be written.
    pub fn finish(mut self) -> Result<(), DriverError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let index = std::mem::take(&mut self.index);
        self.text("index.txt", &index);
        for (name, text) in std::mem::take(&mut self.files) {
            self.file(&name, &text);
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.consts.write(&folder)
    }
}
