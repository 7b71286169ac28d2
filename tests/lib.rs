//! Tests of the whole compiler; each file beside this one is a test target. What several programs share is here: graphs of
//! derivatives, and the readers of files against hostile ones.

mod derivatives;
pub mod hostile;

pub use derivatives::derivatives;
