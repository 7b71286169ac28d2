//! The text form of programs, and its parser.
//!
//! ```text
//! input x: f32[8, 64]
//! output y: f32[8, 64]
//! constant c0: f32[64, 64] #5be1c0aa12ef ["fc.weight"]
//! arena 2048 bytes
//! temporary t0: 2048 bytes at 0
//! k0: kernel(r f32, w f32)
//!   for i0 in 0..512 parallel
//!     %0 = load a0[i0]
//!     %1 = exp %0
//!     store a1[i0] = %1
//! steps
//!   matmul {m = 8, n = 64, k = 64, …} (in0, c0, t0)  // fc
//!   k0 (t0, out0)  // exp
//! ```
//!
//! Inputs, outputs and constants are numbered as they come, and each is one buffer: `in0`, `out0`, `c0`. Temporaries
//! are the buffers of the arena. An operand is a buffer, and bytes behind its start: `t0+64`. The types of registers
//! follow from the statements that define them. `if` and `loop` have their steps below them, indented.
//!
//! An [open](crate::Open) program says first which values of symbols it serves and what its sizes are; `$0` stands for one
//! from then on, in kernels, steps and behind the ports whose axes it is:
//!
//! ```text
//! open batch 1 to 8, seq 16 to 512
//! size $0: seq from 16 to 512
//! size $1: 64*seq from 1024 to 32768
//! input x: f32[512, 64] axis 0 $0
//! k0: kernel(r f32, w f32)
//!   for i0 in 0..$1 from 16 max 32768 parallel
//! ```
//!
//! What is printed is all there is: a program that is read back is the same, with buffers in the order of inputs,
//! outputs, constants, temporaries. Contents of constants are not in the text; who reads it finds them by their names.

mod fields;
mod parse;
mod parse_kernel;
mod parse_open;
mod print;
pub mod words;

pub use fields::Field;
pub(crate) use fields::{fields, pairs};
pub use parse::{ConstantText, ParseError, parse_program};
pub use parse_open::parse_open;
pub(crate) use print::buffer_names;
