//! A sketched model in a file that learns from the dense one, and is compiled again as it was.

use std::path::{Path, PathBuf};

use margay_artifact::Artifact;
use margay_driver::{
    CompileOptions, Compiled, Dump, ErrorMeasure, ErrorScope, LayerRefit, Model, Progress, Samples, compile,
    held_out_rows, is_artifact, measure_error, open, recompile,
};
use margay_train::recover::{BlockReport, RecoverOptions, Recovered, has_narrow_constants, recover};
use margay_train::{Evaluation, Observer, Point, RateTest, Restart, Stop, TrainError};
use serde::Serialize;

use crate::{Error, open_artifact};

/// Held-out samples that the error is stated on, at most, where somebody waits for the end.
const MEASURED_IF_INTERRUPTED: usize = 32;

/// A sketched model, and the dense one that it was made from.
pub struct Recovery {
    student: Model,
    teacher: Model,
    artifact: Option<Artifact>,
    teacher_path: PathBuf,
    dims: Vec<(String, Vec<i64>)>,
}

impl Recovery {
    /// Opens both, each an ONNX file or an artifact. `dims` are values of dimensions that a sketched ONNX file leaves
    /// open; an artifact has its own.
    ///
    /// # Errors
    /// Files that cannot be read, `dims` for an artifact, and constants in narrow types, which do not learn.
    pub fn open(model: &Path, teacher: &Path, dims: &[(String, Vec<i64>)]) -> Result<Recovery, Error> {
        let artifact = if is_artifact(model)? { Some(open_artifact(model)?) } else { None };
        if artifact.is_some() && !dims.is_empty() {
            let message = "an artifact has its dimensions: `--dim` does not apply to it";
            return Err(Error::Options(message.into()));
        }
        let student = open(model)?;
        if has_narrow_constants(&student.graph) {
            return Err(Error::Narrow);
        }
        let (teacher_path, dims) = (teacher.to_path_buf(), dims.to_vec());
        Ok(Recovery { student, teacher: open(teacher)?, artifact, teacher_path, dims })
    }

    /// Lets the sketched model learn.
    ///
    /// # Errors
    /// As [`recover`](fn@recover).
    pub fn learn(
        &self,
        samples: &Samples,
        options: &RecoverOptions,
        progress: &dyn Progress,
        observer: &mut dyn Observer,
    ) -> Result<Recovered, TrainError> {
        let mut options = options.clone();
        if let Some(artifact) = &self.artifact {
            // What was chosen by the same samples is judged by those that it was not chosen by.
            options.held_out_rows = held_out_rows(artifact, &samples.for_graph(&self.student.graph)?)?;
        }
        recover(&self.student.graph, &self.teacher.graph, samples, &options, progress, observer)
    }

    /// Measures what was learned on the samples held out, on few of them after an interruption, and compiles it as the sketched
    /// model was.
    ///
    /// # Errors
    /// As [`compile`] and [`recompile`].
    pub fn finish(
        self,
        recovered: Recovered,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<RecoveredModel, Error> {
        let all = &recovered.held_out;
        let few = match recovered.interrupted {
            true => Some(all.spread(&self.student.graph, MEASURED_IF_INTERRUPTED, 1)?),
            false => None,
        };
        let held_out = few.as_ref().unwrap_or(all);
        let scope = ErrorScope { mask: recovered.mask.clone(), outputs: recovered.outputs.clone() };
        let (teacher, student) = (&self.teacher.graph, &recovered.graph);
        let mut error = measure_error(teacher, student, held_out, &scope, threads, progress)?;
        // These samples decided what was kept.
        error.bounds.clear();
        let graph = recovered.graph.clone();
        let compiled = match &self.artifact {
            Some(artifact) => {
                recompile(artifact, graph, Some(error.clone()), recovered.held_out_rows.clone())?
            }
            None => {
                let source = Model::new(graph, &self.student.name, &mut Dump::none())?;
                let options = CompileOptions { dims: self.dims, threads, ..CompileOptions::default() };
                let mut compiled = compile(&source, Some(held_out), &options, progress)?;
                compiled.report.held_out = Some(error.clone());
                compiled.report.held_out_rows.clear();
                let file = self.teacher_path.file_name().unwrap_or_default().to_string_lossy();
                compiled.report.goal = format!("recovery from {file}");
                compiled
            }
        };
        let (model, teacher) = (self.student.name, self.teacher.name);
        Ok(RecoveredModel { model, teacher, compiled, recovered, error })
    }
}

/// A model that has learned.
pub struct RecoveredModel {
    model: String,
    teacher: String,
    /// It, compiled as it was.
    pub compiled: Compiled,
    /// How it learned.
    pub recovered: Recovered,
    /// Its error on the samples held out, as [`compile`] states it.
    pub error: ErrorMeasure,
}

impl RecoveredModel {
    /// What was done. `seed` is that of the options.
    pub fn report(&self, seed: u64) -> RecoveryReport<'_> {
        let recovered = &self.recovered;
        let fitted = recovered.fitted.as_ref();
        RecoveryReport {
            model: &self.model,
            teacher: &self.teacher,
            seed,
            trained: recovered.trained,
            hidden: &recovered.hidden,
            samples: LearnedFrom {
                learned_from: recovered.learned_from,
                held_out: recovered.held_out.rows(),
                lengths: recovered.lengths.as_deref(),
            },
            before: (&recovered.before).into(),
            refitted: recovered.refitted.as_ref().map(StudentError::from),
            refined: recovered.refined.as_ref().map(StudentError::from),
            after: (&recovered.after).into(),
            layers: &recovered.layers,
            blocks: &recovered.blocks,
            steps: fitted.map_or(0, |f| f.steps),
            learning_rate: fitted.map(|f| f.learning_rate),
            rate_test: fitted.and_then(|f| f.rate_test.as_ref()),
            restarts: fitted.map_or(&[], |f| &f.restarts),
            stop: fitted.map(|f| f.stop).or(recovered.interrupted.then_some(Stop::Interrupted)),
            divergence: fitted.and_then(|f| f.divergence()),
            history: fitted.map_or(&[], |f| &f.history),
            error: &self.error,
            seconds: recovered.seconds,
        }
    }
}

/// What a recovery did.
#[derive(Serialize)]
pub struct RecoveryReport<'a> {
    /// The sketched model.
    pub model: &'a str,
    /// The dense one.
    pub teacher: &'a str,
    /// The seed.
    pub seed: u64,
    /// Numbers that could learn.
    pub trained: usize,
    /// The values inside that were to agree.
    pub hidden: &'a [String],
    /// What was learned from.
    pub samples: LearnedFrom<'a>,
    /// The error before anything was done.
    pub before: StudentError<'a>,
    /// The error with all layers refitted; absent where they were not.
    pub refitted: Option<StudentError<'a>>,
    /// The error with all blocks refined; absent where they were not.
    pub refined: Option<StudentError<'a>>,
    /// The error of the result.
    pub after: StudentError<'a>,
    /// What became of each layer.
    pub layers: &'a [LayerRefit],
    /// What became of each block.
    pub blocks: &'a [BlockReport],
    /// Steps in which all learned together.
    pub steps: u64,
    /// The largest learning rate of them.
    pub learning_rate: Option<f64>,
    /// How it was found, where a test did.
    pub rate_test: Option<&'a RateTest>,
    /// Where learning began again with a smaller rate, since it only made things worse.
    pub restarts: &'a [Restart],
    /// Why they ended.
    pub stop: Option<Stop>,
    /// Which step was no use and why, if that ended it.
    pub divergence: Option<String>,
    /// The course of the error.
    pub history: &'a [Point],
    /// The error of the result as [`compile`] states it.
    pub error: &'a ErrorMeasure,
    /// Seconds in all.
    pub seconds: f64,
}

/// What was learned from.
#[derive(Serialize)]
pub struct LearnedFrom<'a> {
    /// Samples that were learned from.
    pub learned_from: usize,
    /// Those that decided what is better.
    pub held_out: usize,
    /// The lengths that batches are cut to; `None` where padding is not cut.
    pub lengths: Option<&'a [usize]>,
}

/// An error on the samples held out.
#[derive(Serialize)]
pub struct StudentError<'a> {
    /// What learning makes small.
    pub error: f64,
    /// Names and numbers that say more.
    pub measures: &'a [(String, f64)],
}

impl<'a> From<&'a Evaluation> for StudentError<'a> {
    fn from(e: &'a Evaluation) -> StudentError<'a> {
        StudentError { error: e.error, measures: &e.measures }
    }
}
