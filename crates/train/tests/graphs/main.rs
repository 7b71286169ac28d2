//! Losses, optimizers and steps as graphs, run by the reference interpreter.

mod losses;
mod optimizers;
mod step;
mod support;
