//! From a model to a sketched executable: the only place that assembles the pieces of margay.
//!
//! ```
//! use margay_driver::{CompileOptions, Goal, Samples, Silent, compile, open};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo");
//! let source = open(&demo.join("model.onnx"))?;
//! # let pixels = margay_tensor::Tensor::from_slice(&[4, 1, 28, 28], &[0.5f32; 4 * 784])?;
//! # let samples = Samples::new(vec![("image".into(), pixels)])?;
//! let options = CompileOptions { goal: Goal::Bytes("60%".parse()?), ..CompileOptions::default() };
//! let compiled = compile(&source, Some(&samples), &options, &Silent)?;
//! let error = compiled.report.held_out.as_ref().map(|e| e.relative_l2);
//! assert!(compiled.report.bytes_after < compiled.report.bytes_before && error.is_some());
//!
//! let mut runner = compiled.runner(1);
//! let outputs = runner.run(&samples.row(0, 1)?)?;
//! assert_eq!(outputs[0].0, "logits");
//! # Ok(())
//! # }
//! ```
//!
//! - [`source`](open): files to graphs.
//! - [`backend`]: names to back ends.
//! - [`build`]: graphs to code; [`range`]: graphs to code for every value in ranges of symbols.
//! - [`Runner`]: runs a graph on inputs of any shape, compiling for each shape once.
//! - [`Interruption`]: how long work is given up.
//! - [`Samples`]: calibration and held-out data. [`Padding`]: what of it is left out where samples run together.
//! - [`compile()`]: split, calibrate, fit, price, weigh, allocate, apply, check, report.
//! - [`Report`]: what was done and what it costs.
//! - [`ErrorSum`], [`ErrorMeasure`]: how far outputs are apart. [`compare`]: the same of layers.
//! - [`differentiate()`]: models that compute derivatives.
//! - [`mod@sensitivity`]: how much an error in each layer shows in the outputs.
//! - [`refit_layers`]: factors of layers fitted anew to what a dense model computes.

#![forbid(unsafe_code)]

pub mod backend;
mod backward;
mod bindings;
mod bounds;
pub mod build;
mod cache;
pub mod compare;
mod compile;
mod compiled;
mod consts;
mod differentiate;
mod dump;
mod error;
mod errors;
mod expected;
mod export;
mod finite;
mod floats;
mod interruption;
pub mod machine;
mod mask;
mod metric;
mod model;
pub mod padding;
mod parallel;
mod progress;
pub mod range;
mod recompile;
mod refit;
mod report;
mod rows;
mod runner;
mod samples;
pub mod sensitivity;
mod shared;
mod statistics;
mod twins;

pub use backend::Backend;
pub use bounds::ErrorBound;
pub use compile::{
    CompileOptions, CurvePoint, Front, FrontOptions, FrontPoint, compile, compile_with, front, input_moments,
    metrics,
};
pub use compiled::Compiled;
pub use consts::{Read, read_graph};
pub use differentiate::differentiate;
pub use dump::{BEFORE, Dump};
pub use error::{DriverError, Kind};
pub use errors::{ErrorMeasure, ErrorScope, ErrorSum, OutputError, PooledError, output_error};
pub use expected::Expected;
pub use export::export_graph;
pub use finite::{not_computable, spreading};
pub use interruption::Interruption;
pub use margay_plan::{Budgets, Goal, Resource};
pub use mask::{MASK_NAMES, Marks, Mask, MaskChoice};
pub use metric::{MetricReport, OwnMetric};
pub use model::{Model, is_artifact, open, open_artifact_graph, open_for_training, open_with};
pub use padding::Padding;
pub use parallel::parallel;
pub use progress::{Progress, Silent};
pub use recompile::{held_out_rows, measure_error, recompile};
pub use refit::{Contents, LayerRefit, Metrics, RefitData, Refitted, Stages, refit_layers, replace_constant};
pub use report::{ModuleReport, Report};
pub use runner::Runner;
pub use samples::{
    Arrays, Samples, bound_batch, bound_batch_of, doubts, doubts_where, hold_out, listed, missing_inputs,
    several,
};
pub use shared::shared;
pub use twins::Named;
