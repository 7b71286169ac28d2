//! Tests of the whole compiler; each file beside this one is a test target. What several programs share is here: the
//! readers of files against hostile ones.

pub mod hostile;
