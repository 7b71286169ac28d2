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
//! - [`build`]: graphs to code.
//! - [`Runner`]: runs a graph on inputs of any shape, compiling for each shape once.
//! - [`Samples`]: calibration and held-out data.
//! - [`compile`]: calibrate, fit, allocate, rewrite, check, adjust: the one loop there is.
//! - [`Report`]: what was done and what it costs.
//! - [`compare`]: how far two models are apart.
//! - [`differentiate()`]: models that compute derivatives.
//! - [`mod@sensitivity`]: how much an error in each layer shows in the outputs.

#![forbid(unsafe_code)]

pub mod backend;
mod bindings;
pub mod build;
mod calibrate;
mod checker;
mod choose;
pub mod compare;
mod compile;
mod curves;
mod differentiate;
mod dump;
mod error;
mod export;
mod progress;
mod recompile;
mod report;
mod runner;
mod samples;
pub mod sensitivity;
mod source;
mod unfold;

pub use backend::Backend;
pub use calibrate::{MAX_PATCHES, parallel};
pub use compile::{CompileOptions, Compiled, Goal, compile, compile_with};
pub use differentiate::differentiate;
pub use dump::Dump;
pub use error::{DriverError, Kind};
pub use export::export_graph;
pub use progress::{Progress, Silent};
pub use recompile::{measure_error, recompile};
pub use report::{ErrorMeasure, ModuleReport, Report};
pub use runner::Runner;
pub use samples::{Arrays, Samples, bound_batch, hold_out};
pub use source::{Source, check_numbers, is_artifact, open, open_artifact_graph, open_with};
pub use unfold::Unfold;
