//! Tests of the whole compiler; each file beside this one is a test target. What several programs share is here: graphs of
//! derivatives, cases of the operators of ONNX, and the readers of files against hostile ones.

mod derivatives;
pub mod hostile;
mod onnx_cases;

pub use derivatives::derivatives;
pub use onnx_cases::{OnnxCase, onnx_cases};
