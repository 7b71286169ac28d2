//! Losses, optimizers and steps as graphs, run by the reference interpreter and compiled.

mod compiled;
mod expectations;
mod losses;
mod optimizers;
mod step;
mod support;
