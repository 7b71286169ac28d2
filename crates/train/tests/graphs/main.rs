//! Losses, optimizers and steps as graphs, run by the reference interpreter and compiled.

mod compiled;
mod losses;
mod optimizers;
mod step;
mod support;
