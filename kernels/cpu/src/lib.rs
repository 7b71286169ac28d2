//! Hand-written CPU kernels.
//!
//! Loops compiled by the code generator reach the hardware for everything that streams through memory; matrix
//! products, convolutions and attention need register tiles and packed operands, and are written here once,
//! over the small vector interface `isa::Isa`, and compiled for several processor classes.
//!
//! - [`CpuTarget`]: the answers of a class about a call; [`kernels`]: the list of kernels, from the rows of `families`.
//! - [`abi`]: the calling convention of kernels and drivers; [`Prepared`]: the parallel regions of a call;
//!   [`CpuCode`]: what the code generator writes and the runtime loads; [`table`]: the words that a driver launches by.
//! - `isa`: the vector interface and its members: portable, AVX2 with FMA, AVX-512.
//! - [`math`]: exp, erf, tanh, sigmoid and the activations, as vectors and as rows.
//! - `matmul`, `thin`, `narrow`, `bytes`, `attention`, `linear_attention`, `conv`, `conv_strips`,
//!   `conv_dots`, `conv_bytes`, `depthwise`, `hadamard`, `pool`,
//!   `top_k`, `non_max_suppression`: the families; `constants` are the
//!   layouts of products, `filters` brings filters that are no constants where they are
//!   read, `pack`, `pack_bytes`, `block` and `fetch`, `order` are what the families share.
//!
//! Every kernel has the signature [`abi::KernelFn`]. An item's result does not depend on the range of
//! items it is run in, so the same inputs give the same bits on any number of threads. Different classes may
//! round differently.
//!
//! Deliberately absent: narrow constants of convolutions, Winograd transforms, kernels specialised on a shape.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("kernel parameters are 64-bit words");

pub mod abi;
mod attention;
mod attention_gradient;
mod block;
mod bytes;
mod code;
mod constants;
mod conv;
mod conv_bytes;
mod conv_dots;
mod conv_gradient;
mod conv_strips;
mod depthwise;
mod drawn;
mod error;
mod families;
mod fetch;
mod few_bits;
mod filters;
mod hadamard;
mod isa;
mod launches;
mod linear_attention;
pub mod math;
mod matmul;
mod narrow;
mod non_max_suppression;
mod order;
mod pack;
mod pack_bytes;
mod panels;
mod params;
mod pool;
mod prepared;
mod strided;
pub mod target;
mod thin;
mod top_k;

pub use code::{CpuCode, Import, this_machine};
pub use error::UnknownTarget;
pub use families::{KernelEntry, kernels, lookup};
pub use launches::{Control, Launch, Prepare, Table, Term, prepare_at, table};
pub use prepared::{Phase, Prepared};
pub use target::{Class, CpuTarget};
