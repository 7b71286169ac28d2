//! The printed form of a graph, and its parser.
//!
//! ```text
//! graph @mlp(%x: f32[N, 64]) -> (y: f32[N, 10]) {
//!   %0 = const #5be1c0aa12ef : f32[64, 10]  // fc.weight
//!   %1 = matmul %x, %0 : f32[N, 10]  // fc
//!   return %1
//! }
//! ```
//!
//! Graphs that operators hold stand behind it, as `region &5be1c0aa12ef = graph @body(…) … {`, and are named by what
//! identifies them: `loop %n, %x {body = &5be1c0aa12ef, max = 10, carried = 1}`.
//!
//! One node a line: result, mnemonic, operands, attributes that differ from their defaults, types, origin. Numbers
//! are given in the order of printing. Constants of up to sixteen elements are literals, constants of one repeated
//! element are `splat(…)`, random numbers are `random(seed, stream, sign, size)` and drawn again; others print what
//! identifies them and are resolved when read. Behind the type of a constant that is not stored as it is stands how:
//! `: f32[64, 10] stored i8(axis = 1)`. Beside [signs](margay_tensor::Signs), a constant is identified by the numbers that
//! are stored.

mod parse;
mod print;

pub use parse::{ParseError, Resolve, parse};

use crate::{Draw, Graph, Key, Payload};

/// Stands between the type of a constant and its storage.
const STORED: &str = " stored ";

/// Constants with more elements than this print what identifies them.
const MAX_LITERAL: usize = 16;

/// Elements that a splat or random numbers may have when read, at most; more random numbers than these are resolved.
pub const MAX_SPLAT: usize = 1 << 24;

/// The constants that the text of a graph only names, so that whoever reads it has to find their contents: those of the
/// graph and of the graphs inside its operators, in order.
pub fn named_constants(g: &Graph) -> Vec<&Payload> {
    g.payloads().into_iter().filter(|payload| is_named(payload)).collect()
}

fn is_named(payload: &Payload) -> bool {
    let elements = payload.stored().elements();
    match payload.key() {
        Key::Derived(text) => Draw::parse(text).is_none() || elements.len() > MAX_SPLAT,
        Key::Content(_) if !payload.stored().is_plain() => true,
        Key::Content(_) if elements.len() <= MAX_LITERAL => false,
        Key::Content(_) => elements.len() > MAX_SPLAT || !elements.is_splat(),
    }
}
