//! Losses, optimizers, masks and steps as graphs, run by the reference interpreter and compiled.

mod compiled;
mod dropout;
mod expectations;
mod losses;
mod optimizers;
mod step;
mod support;
