//! The laws that sketches and randomized decompositions obey, as their papers state them.
//!
//! Where a law holds with a probability, it is checked over fixed seeds, and how many of them may miss it is said. All
//! inputs are drawn from named streams, so a test gives the same numbers on every run.

mod embedding;
mod features;
mod least_squares;
mod psd;
mod qr;
mod range;
mod sketches;
mod spectra;
mod tensors;
mod trace;
