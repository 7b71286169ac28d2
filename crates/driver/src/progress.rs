//! How far long work has come.

/// Hears how far long work has come.
pub trait Progress {
    /// `done` of `total` parts of `what` are finished.
    fn at(&self, what: &str, done: usize, total: usize);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn at(&self, _: &str, _: usize, _: usize) {}
}
