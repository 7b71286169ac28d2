//! margay compiles ONNX models into sketched executables: expensive layers are replaced by randomized or low-rank ones
//! where that pays and where the error stays inside a budget.
//!
//! This crate is the front door: all that a program needs, in types, under one name. The command line is a caller of it.
//!
//! ```
//! use margay::{CompileOptions, Goal, Predictor, RunOptions, Samples, Silent, Tensor, compile, open};
//!
//! # let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
//! # let model = repository.join("demo/model.onnx");
//! # let folder = std::env::temp_dir().join(format!("margay-front-door-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let artifact = folder.join("model.margay");
//! let images = Tensor::zeros(margay::DType::F32, &[8, 1, 28, 28]).expect("small");
//! let samples = Samples::new(vec![("image".into(), images)])?;
//!
//! // An ONNX file, to be compiled for images in runs of four. With a goal other than `Dense` it is sketched.
//! let options = CompileOptions {
//!     goal: Goal::Dense,
//!     dims: vec![("batch".into(), vec![4])],
//!     ..CompileOptions::default()
//! };
//! let compiled = compile(&open(&model)?, Some(&samples), &options, &Silent)?;
//! compiled.write(&artifact, false, &mut margay::Dump::none())?;
//! println!("{} operations in a run", compiled.report.flops_after);
//!
//! // What was written runs without a compiler; more images than a run holds are fed four by four.
//! let mut predictor = Predictor::open(&artifact, &RunOptions { threads: 1, ..RunOptions::default() })?;
//! let outputs = predictor.predict(samples.arrays())?;
//! assert_eq!(outputs[0].1.shape()[0], 8);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`open`], [`check()`], [`inspect_model`], [`inspect_artifact`]: what is in a file, and whether it can be compiled.
//! - [`compile`] with [`CompileOptions`] and [`Samples`]: a [`Compiled`] model with its [`Report`] and [`Plan`].
//! - [`Predictor`]: runs an ONNX file or an artifact.
//! - [`bench()`], [`compare()`], [`evaluate()`], [`sensitivity()`]: speed, bytes and errors.
//! - [`Training`] with [`Supervised`], [`Recovery`] with [`RecoverOptions`], [`differentiate`]: learning.
//! - [`selftest()`]: kernels of a device against the processor.
//! - [`read_graph`], [`Pipeline`], [`Dump`]: graphs as text, and passes on them.
//! - [`InputSource`], [`InputFile`], [`read_array`]: tensors from files, or random ones.

#![forbid(unsafe_code)]
#![allow(clippy::result_large_err, reason = "errors are rare, and what they say is worth its bytes")]

mod artifact;
mod batches;
mod bench;
mod check;
mod compare;
mod evaluate;
mod found;
mod given;
mod inputs;
mod inspect;
mod metric;
mod plan;
mod predictor;
mod recovery;
mod selftest;
mod training;

pub use artifact::{export_artifact, open_artifact, report_of};
pub use bench::{BenchOptions, Measured, RunTimes, StepTime, WARM_UP_ROUNDS, bench};
pub use check::{Check, Fault, Layers, NonFinite, Operator, Port, ProblemKind, check};
pub use compare::{Comparison, OutputComparison, Tolerance, compare, compare_outputs};
pub use evaluate::{Evaluated, Metric, evaluate};
pub use found::{FoundSketch, found_sketches};
pub use given::{Given, InputSource, check_samples, input_names, samples_of};
pub use inputs::{InputFile, is_array_file, read_array};
pub use inspect::{
    ArtifactReport, EntryReport, KernelReport, ModelReport, SectionReport, inspect_artifact, inspect_model,
};
pub use metric::command_metric;
pub use plan::read_plan;
pub use predictor::{DeviceChoice, Predictor, RunOptions, device_for, has_code_for};
pub use recovery::{LearnedFrom, RecoveredModel, Recovery, RecoveryReport, StudentError};
pub use selftest::{Family, SelftestOptions, SelftestResult, selftest, write_selftest};
pub use training::{
    TrainedModel, TrainedOn, Training, TrainingReport, read_labels, training_batch, vocabulary,
};

pub use margay_artifact::{Artifact, ArtifactError};
pub use margay_driver::compare::LayerError;
pub use margay_driver::machine;
pub use margay_driver::sensitivity::{self, sensitivity};
pub use margay_driver::{
    Arrays, BEFORE, Budgets, CompileOptions, Compiled, CurvePoint, DriverError as Error, Dump, ErrorBound,
    ErrorMeasure, ErrorScope, ErrorSum, Front, FrontOptions, FrontPoint, Goal, Interruption, Kind,
    LayerRefit, MaskChoice, MetricReport, Model, ModuleReport, OutputError, OwnMetric, PooledError, Progress,
    Read, Report, Resource, Samples, Silent, backend, bound_batch, compile, compile_with, differentiate,
    doubts, doubts_where, export_graph, front, is_artifact, listed, measure_error, open, open_artifact_graph,
    open_for_training, open_with, read_graph, recompile,
};
pub use margay_files::{WriteSeek, check_place, replace_file};
pub use margay_ir::{Graph, Remark};
pub use margay_loops::Precision;
pub use margay_npy::{NpyError, read_npz, write_npz};
pub use margay_onnx::{Dropout, KnownInputs, OnnxError, Problem};
pub use margay_passes::sketch::{
    AttentionForm, AttentionTraining, FavorSettings, FeatureKernel, HeadChoice, LocalSettings, LocalSummary,
    LowRankTraining, NystromSettings, PantherTraining, RelativePositions, SCHEMES, SchemeTraining,
    SketchTraining, Start, StructureStart, StructuredForm, StructuredSettings, StructuredTraining,
    TrainingRank, sites,
};
pub use margay_passes::{Pipeline, PipelineError};
pub use margay_plan::{Budget, ErrorLimit, Operations, Plan, Settings};
pub use margay_runtime::{FailedSteps, RunError};
pub use margay_tensor::{DType, Tensor};
pub use margay_train::masking::Masking;
pub use margay_train::recover::{
    BlockReport, Hidden, RecoverOptions, Recovered, Train as Trainable, recover,
};
pub use margay_train::{
    Evaluation, FitOptions, Fitted, Length, Objective, Observer, Optimizer, Point, RankChange, RankLimit,
    RankSelection, RateTest, Restart, Schedule, Selection, StepMemory, Stop, Supervised, TrainError, Trained,
    Update,
};

/// The examples of the README, which compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// The class of machines that this one belongs to.
pub fn this_machine() -> String {
    backend::native().target().to_string()
}
