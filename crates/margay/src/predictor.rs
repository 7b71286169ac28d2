//! A model to run: an ONNX file, compiled for the shapes of the inputs, or an artifact.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use margay_artifact::{Artifact, ArtifactError, Entry, EntryParts};
use margay_driver::{
    Arrays, Dump, Expected, Runner, backend, bound_batch_of, build, is_artifact, open_artifact_graph,
    open_with, shared,
};
use margay_ir::{Graph, Op, eval};
use margay_loops::{Backend, Precision};
use margay_onnx::KnownInputs;
use margay_runtime::{Executable, Session, SessionOptions};
use margay_tensor::Tensor;

use crate::Error;
use crate::artifact::report_of;
use crate::batches::{self, Chunk};
use crate::given::expected_by;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Threads to run on; results do not depend on it.
    pub threads: usize,
    /// Precision of products with constant matrices of an ONNX file; an artifact has its own.
    pub precision: Precision,
    /// The back end whose code of an artifact is run; `None` for the first that this machine can run. An ONNX file is
    /// compiled for it, or for the processor.
    pub backend: Option<String>,
    /// Whether inputs with a leading axis of another length than the batch of the model are fed batch by batch, the last of
    /// them filled up with copies of its last row, and outputs put together again. Without it shapes have to fit.
    pub in_batches: bool,
    /// Inputs that are given once for all rows of the others, besides those of which their shapes [tell it](shared).
    pub shared: BTreeSet<String>,
    /// Hold weights and intermediate results in huge pages of memory, where the system has them.
    pub huge_pages: bool,
    /// On a device, wait for each step before the next one is submitted, so that a failure is told with its step.
    pub step_by_step: bool,
}

impl Default for RunOptions {
    /// On all processors, in f32, batch by batch.
    fn default() -> RunOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        RunOptions {
            threads,
            precision: Precision::F32,
            backend: None,
            in_batches: true,
            shared: BTreeSet::new(),
            huge_pages: false,
            step_by_step: false,
        }
    }
}

/// A model that can be run.
pub struct Predictor {
    name: String,
    options: RunOptions,
    form: Form,
    fixed: Arrays,
    warnings: Vec<String>,
    verification: Option<Verification>,
}

enum Form {
    Graph(Box<Runner>),
    Artifact(Box<Artifact>, Box<Session>),
}

/// The check of an artifact's weights, which goes on beside the first run: numbers are shown to nobody before it has
/// ended well.
type Verification = JoinHandle<Result<(), ArtifactError>>;

impl Predictor {
    /// Opens an ONNX file, which is compiled for the shapes of inputs when they are given, or an artifact.
    ///
    /// # Errors
    /// Files that cannot be read or run, and a precision for an artifact.
    pub fn open(path: &Path, options: &RunOptions) -> Result<Predictor, Error> {
        Predictor::open_for(path, options, &KnownInputs::default())
    }

    /// As [`open`](Predictor::open), where something of the inputs to come is known: it decides what an ONNX file leaves
    /// open, such as an extent of 1 that broadcasts. Small inputs that shapes follow from may be made constants; the model
    /// then takes them with these values only.
    ///
    /// # Errors
    /// See [`open`](Predictor::open).
    pub fn open_for(path: &Path, options: &RunOptions, known: &KnownInputs) -> Result<Predictor, Error> {
        let (threads, precision) = (options.threads, options.precision);
        let (mut verification, mut fixed, mut warnings) = (None, Arrays::new(), Vec::new());
        let form = if is_artifact(path)? {
            if precision != Precision::F32 {
                let message =
                    format!("`{}` has been compiled: `--precision` does not apply to it", path.display());
                return Err(Error::Options(message));
            }
            let artifact = Artifact::open(path)?;
            let checked = artifact.clone();
            verification = Some(std::thread::spawn(move || checked.verify_weights()));
            let executable = backend::load(&artifact, options.backend.as_deref())?;
            let mut session = Session::new(&executable, SessionOptions { threads })?;
            session.wait_for_each_step(options.step_by_step);
            Form::Artifact(Box::new(artifact), Box::new(session))
        } else {
            let source = open_with(path, known, &mut Dump::none())?;
            (fixed, warnings) = (source.fixed, source.warnings);
            let graph = build::in_precision(source.graph, precision, &mut Dump::none())?;
            let backend = match &options.backend {
                Some(name) => backend::on(name, precision)?,
                None => backend::native_for(precision),
            };
            let mut runner = Runner::new(graph, &backend, threads);
            if options.step_by_step {
                runner.wait_for_each_step();
            }
            Form::Graph(Box::new(runner))
        };
        let shown = match precision {
            Precision::F32 => path.display().to_string(),
            narrow => format!("{} in {}", path.display(), narrow.name()),
        };
        let mut predictor =
            Predictor { name: shown, options: options.clone(), form, fixed, warnings, verification };
        if options.huge_pages {
            predictor.use_huge_pages()?;
        }
        Ok(predictor)
    }

    /// The path it was opened from, with the precision if it is not f32.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Inputs of the file that were made constants, with their values.
    pub fn fixed(&self) -> &[(String, Tensor)] {
        &self.fixed
    }

    /// What should make a user doubt what it computes; for artifacts, `explain` has it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The outputs for these inputs; see [`RunOptions::in_batches`].
    ///
    /// # Errors
    /// Inputs that do not fit; an artifact whose weights were altered.
    pub fn predict(&mut self, inputs: &[(String, Tensor)]) -> Result<Arrays, Error> {
        let inputs = &self.open_inputs(inputs)?;
        let shared = &self.shared(inputs);
        let chunks = batches::cut(inputs, shared, &self.batch_sizes(inputs, shared))?;
        self.run(&chunks)
    }

    /// In how many runs these inputs are fed.
    ///
    /// # Errors
    /// As [`predict`](Predictor::predict).
    pub fn runs_of(&self, inputs: &[(String, Tensor)]) -> Result<usize, Error> {
        let inputs = &self.open_inputs(inputs)?;
        let shared = &self.shared(inputs);
        Ok(batches::cut(inputs, shared, &self.batch_sizes(inputs, shared))?.len())
    }

    /// The inputs without those that were made constants.
    pub(crate) fn open_inputs(&self, inputs: &[(String, Tensor)]) -> Result<Arrays, Error> {
        let mut open = inputs.to_vec();
        for (name, value) in &self.fixed {
            let Some(at) = open.iter().position(|(n, _)| n == name) else { continue };
            if open.remove(at).1 != *value {
                let message = format!(
                    "input `{name}`: shapes follow from it, and the model was opened for other values"
                );
                return Err(Error::Options(message));
            }
        }
        Ok(open)
    }

    fn use_huge_pages(&mut self) -> Result<(), Error> {
        match &mut self.form {
            Form::Graph(runner) => runner.use_huge_pages(),
            Form::Artifact(_, session) => {
                let executable = session.executable().in_huge_pages()?;
                **session = Session::new(&executable, SessionOptions { threads: self.options.threads })?;
                session.wait_for_each_step(self.options.step_by_step);
            }
        }
        Ok(())
    }

    /// The graph; `None` for a stripped artifact.
    pub fn graph(&self) -> Result<Option<Graph>, Error> {
        match &self.form {
            Form::Graph(runner) => Ok(Some(runner.graph().clone())),
            Form::Artifact(artifact, _) if artifact.description().sources.is_empty() => Ok(None),
            Form::Artifact(artifact, _) => Ok(Some(open_artifact_graph(artifact)?)),
        }
    }

    /// The sizes that the leading axis of inputs has to be cut into, rising; none where they fit as they are, where
    /// cutting does not make them fit, or where it is not asked for.
    pub(crate) fn batch_sizes(&self, inputs: &[(String, Tensor)], shared: &BTreeSet<String>) -> Vec<usize> {
        let rows = batches::rows(inputs, shared).filter(|_| self.options.in_batches);
        let Some(rows) = rows else { return Vec::new() };
        let mut sizes: Vec<usize> = match &self.form {
            Form::Graph(runner) => bound_batch_of(runner.graph(), shared).into_iter().collect(),
            Form::Artifact(_, session) => {
                let entries = session.executable().entries().iter();
                entries.flat_map(|e| batches_of(&e.parts, inputs, shared)).collect()
            }
        };
        sizes.sort_unstable();
        sizes.dedup();
        if sizes.contains(&rows) { Vec::new() } else { sizes }
    }

    /// The names of inputs that are given once for all rows of the others.
    pub(crate) fn shared(&self, inputs: &Arrays) -> BTreeSet<String> {
        let expected: Vec<Expected> = match &self.form {
            Form::Graph(runner) => {
                let inputs = runner.graph().inputs().iter().map(|n| runner.graph().op(*n));
                let inputs =
                    inputs.filter_map(|op| if let Op::Input(input) = op { Some(input) } else { None });
                inputs.map(Expected::of).collect()
            }
            Form::Artifact(_, session) => {
                let entries = session.executable().entries();
                let named =
                    |e: &&Entry| e.parts.inputs.iter().all(|p| inputs.iter().any(|(n, _)| *n == p.name));
                entries.iter().find(named).map_or_else(Vec::new, |e| expected_by(&e.parts))
            }
        };
        shared(&expected, inputs, &self.options.shared)
    }

    /// Whether the batch is open.
    pub(crate) fn takes_any_batch(&self, shared: &BTreeSet<String>) -> bool {
        matches!(&self.form, Form::Graph(runner) if bound_batch_of(runner.graph(), shared).is_none())
    }

    /// The session for inputs of these shapes.
    pub(crate) fn session(&mut self, inputs: &[(String, Tensor)]) -> Result<&mut Session, Error> {
        match &mut self.form {
            Form::Graph(runner) => Ok(runner.session(inputs)?),
            Form::Artifact(_, session) => Ok(session),
        }
    }

    /// Runs all chunks and puts their outputs together. Fails for an artifact whose weights were altered.
    pub(crate) fn run(&mut self, chunks: &[Chunk]) -> Result<Arrays, Error> {
        let mut outputs = Vec::new();
        for chunk in chunks {
            let borrowed = borrowed(&chunk.inputs);
            outputs.push(self.session(&chunk.inputs)?.run(&borrowed)?);
        }
        if let Some(verification) = self.verification.take() {
            verification.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        batches::join(chunks, outputs)
    }

    /// The cost model that an artifact was compiled with, where it is another one than times are predicted by here, and that:
    /// of the text that is given, or of the class.
    ///
    /// # Errors
    /// A report that cannot be read; a text that is no cost model.
    pub fn other_cost_model(&self, cost_model: Option<&str>) -> Result<Option<(String, String)>, Error> {
        let Form::Artifact(artifact, _) = &self.form else { return Ok(None) };
        if artifact.description().sources.is_empty() {
            return Ok(None);
        }
        let (there, here) =
            (report_of(artifact)?.cost_model, self.costed(cost_model)?.cost_model().to_owned());
        Ok((there != here).then_some((there, here)))
    }

    /// Whether predicted times were compared with a machine of the class that the model is compiled for.
    pub(crate) fn prediction_is_measured(&self) -> Result<bool, Error> {
        Ok(backend::is_measured(&*self.backend()?))
    }

    /// The least milliseconds of so many operations and bytes by the data sheet of a device; `None` on processors.
    pub(crate) fn least_ms(&self, operations: u64, bytes: u64) -> Result<Option<f64>, Error> {
        Ok(backend::least_seconds(&*self.backend()?, operations, bytes).map(|seconds| seconds * 1e3))
    }

    /// The share of a multiprocessor's warps that are there at once, by data sheets and with the most registers that there can be,
    /// of the kernel of each step that has fewest, by what runs and the nodes it stands for. Nothing for processors.
    pub(crate) fn occupancies(&self) -> Result<HashMap<(String, String), f64>, Error> {
        let Form::Artifact(artifact, session) = &self.form else { return Ok(HashMap::new()) };
        let mut least = HashMap::new();
        for section in session.executable().sections() {
            let Some(uses) = backend::launch_uses(artifact, section, None)? else { continue };
            for (note, launches) in section.parts.steps.iter().zip(uses) {
                for launch in launches {
                    let share = launch.resident_warps as f64 / launch.most_warps as f64;
                    let known = least.entry((note.work.clone(), note.label.clone())).or_insert(share);
                    *known = share.min(*known);
                }
            }
        }
        Ok(least)
    }

    /// Predicted milliseconds of running all chunks; `None` where the graph is not at hand.
    pub(crate) fn predicted_ms(
        &self,
        chunks: &[Chunk],
        cost_model: Option<&str>,
    ) -> Result<Option<f64>, Error> {
        let (Some(graph), backend) = (self.graph()?, self.costed(cost_model)?) else { return Ok(None) };
        let mut known = Vec::new();
        let mut total = 0.0;
        for chunk in chunks {
            let shape = |name: &str| chunk.inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
            let binding = eval::bind_symbols(&graph, shape)?;
            let seconds = match known.iter().find(|(b, _)| *b == binding) {
                Some((_, seconds)) => *seconds,
                None => {
                    let bound = build::bind(&graph, &binding, &*backend, &mut Dump::none())?;
                    let program = margay_lower::lower(&bound, &*backend)?;
                    let seconds = program.seconds(&*backend, self.options.threads);
                    known.push((binding, seconds));
                    seconds
                }
            };
            total += seconds * 1e3;
        }
        Ok(Some(total))
    }

    /// Bytes of all constants that the code for these inputs reads.
    pub(crate) fn constant_bytes(&mut self, inputs: &[(String, Tensor)]) -> Result<u64, Error> {
        let inputs = self.open_inputs(inputs)?;
        let shared = self.shared(&inputs);
        let chunks = batches::cut(&inputs, &shared, &self.batch_sizes(&inputs, &shared))?;
        let first = chunks.into_iter().next().map_or(inputs, |chunk| chunk.inputs);
        Ok(constant_bytes(self.session(&first)?.executable()))
    }

    /// The back end the model is compiled for, with times by a cost model if one is given.
    fn costed(&self, cost_model: Option<&str>) -> Result<Arc<dyn Backend>, Error> {
        let plain = self.backend()?;
        Ok(match cost_model {
            Some(text) => {
                backend::with_cost_model(plain.name(), plain.target(), self.options.precision, text)?
            }
            None => plain,
        })
    }

    /// The back end the model is compiled for.
    fn backend(&self) -> Result<Arc<dyn Backend>, Error> {
        match &self.form {
            Form::Graph(runner) => Ok(runner.backend().clone()),
            Form::Artifact(_, session) => backend::of_executable(session.executable()),
        }
    }
}

/// What a name of a device stands for where a model is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceChoice {
    /// The device, by a name that [`backend::device`] knows.
    pub device: String,
    /// Why it is this one, where the name left a choice.
    pub why: Option<String>,
}

/// The device that a name stands for: [`backend::CUDA_OR_CPU`] for the first GPU of this machine, or for the processor where none
/// is found or it is of an older class than the code is for; every other name for itself. An artifact that has code for one of
/// them alone is for that one, whether it is there or not. Without a model it is one that is compiled in this process, for the class of
/// the device.
///
/// What goes wrong later makes no difference: too little memory, a model that has no kernels, a device that fails.
///
/// # Errors
/// A file that cannot be read.
pub fn device_for(name: &str, model: Option<&Path>) -> Result<DeviceChoice, Error> {
    let chosen = |device: &str, why| Ok(DeviceChoice { device: device.to_owned(), why });
    if name != backend::CUDA_OR_CPU {
        return chosen(name, None);
    }
    let artifact = match model {
        Some(path) if is_artifact(path)? => {
            let artifact = Artifact::open(path)?;
            match ["cuda", "cpu"].map(|name| has_code(&artifact, name)) {
                [false, _] => return chosen("cpu", Some("the model has no code for `cuda`".to_owned())),
                [true, false] => return chosen("cuda", Some("the model has no code for `cpu`".to_owned())),
                [true, true] => Some(artifact),
            }
        }
        _ => None,
    };
    match backend::first_gpu(artifact.as_ref())? {
        Ok(found) => chosen("cuda", Some(found)),
        Err(lacking) => chosen("cpu", Some(lacking)),
    }
}

/// Whether a file is an artifact with code for a device, by a name such as `cuda:1`, for every entry.
///
/// # Errors
/// Files that cannot be read, and names that are not known.
pub fn has_code_for(path: &Path, device: &str) -> Result<bool, Error> {
    let name = backend::device(device)?.backend().to_owned();
    if !is_artifact(path)? {
        return Ok(false);
    }
    Ok(has_code(&Artifact::open(path)?, &name))
}

/// Whether there are entries, and each has code for a back end.
fn has_code(artifact: &Artifact, backend: &str) -> bool {
    let entries = &artifact.description().entries;
    let has = |entry: &Entry| entry.sections.iter().any(|section| section.parts.backend == backend);
    !entries.is_empty() && entries.iter().all(has)
}

/// Names and references, as sessions take them.
pub(crate) fn borrowed(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(n, t)| (n.as_str(), t)).collect()
}

/// Stored bytes of the constants that the code of an executable reads.
pub(crate) fn constant_bytes(executable: &Executable) -> u64 {
    let constants = &executable.description().constants;
    let mut used: Vec<usize> =
        executable.sections().flat_map(|s| s.parts.constants.iter().copied()).collect();
    used.sort_unstable();
    used.dedup();
    used.iter().map(|&i| constants[i].range.len() as u64).sum()
}

/// The batches of an entry that takes these inputs but for their leading extent.
fn batches_of(parts: &EntryParts, inputs: &[(String, Tensor)], shared: &BTreeSet<String>) -> Vec<usize> {
    let first = parts.inputs.iter().position(|p| !shared.contains(&p.name));
    let Some((at, first)) = first.map(|at| (at, &parts.inputs[at])) else { return Vec::new() };
    let Some(&most) = first.shape.first() else { return Vec::new() };
    let leading = parts.open.inputs.get(at).and_then(|axes| axes.iter().find(|(axis, _)| *axis == 0));
    let least = match leading {
        None => most,
        Some((_, size)) => usize::try_from(parts.open.sizes[size.0 as usize].least).unwrap_or(most),
    };
    let typed = |(name, t): &(String, Tensor)| {
        let has_rows = shared.contains(name) || !t.shape().is_empty();
        parts.inputs.iter().any(|p| p.name == *name && p.dtype == t.dtype() && has_rows)
    };
    if parts.inputs.len() != inputs.len() || !inputs.iter().all(typed) {
        return Vec::new();
    }
    let mut symbols = Vec::new();
    let mut takes = |batch: &usize| {
        let of_batch = |name: &String, t: &Tensor| match shared.contains(name) {
            true => t.shape().to_vec(),
            false => [&[*batch], &t.shape()[1..]].concat(),
        };
        let shapes: Vec<(&str, Vec<usize>)> =
            inputs.iter().map(|(name, t)| (name.as_str(), of_batch(name, t))).collect();
        let shape_of = |name: &str| shapes.iter().find(|(n, _)| *n == name).map(|(_, s)| s.as_slice());
        parts.solve(&shape_of, &mut symbols) && (parts.open.is_closed() || parts.open.serves(&symbols))
    };
    // Larger ones than there are rows are asked for only where no smaller one is taken.
    let several = inputs.iter().filter(|(name, _)| !shared.contains(name));
    let rows = several.map(|(_, t)| t.shape()[0]).max().unwrap_or(most);
    let least = least.max(1);
    (least..=most.min(rows.max(least))).filter(|batch| takes(batch)).collect()
}
