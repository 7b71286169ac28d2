//! Readers of what may come from anywhere, given bytes that were made to break them.
//!
//! A [`Target`] is one reader with everything behind it that trusts what it read: it takes any bytes, and panics only
//! where margay has a fault. `tests/hostile.rs` runs every target on its seeds and some thousand mutations of them;
//! `tests/fuzz` hands the same targets to libFuzzer. Neither adds checks of its own: what must hold stands here.
//!
//! Mutations know the structure of what they change, for random bytes hardly get past the first check: see `bytes`,
//! `protobuf` and `words`, and `models` for changes that leave a well-formed model.
//!
//! Deliberately absent: running code of an artifact that was changed, which is running a program, and files that only tests
//! read.

mod arrays;
mod artifacts;
mod bytes;
mod checkpoints;
mod draw;
mod graphs;
mod models;
mod plans;
mod programs;
mod protobuf;
mod words;

pub use draw::Draw;

/// One reader, with inputs that it accepts and a way to spoil them.
pub struct Target {
    /// Its name, which is that of the program in `tests/fuzz` too.
    pub name: &'static str,
    /// Reads some bytes, checks what must hold of the result, and goes on with it as far as the compiler would.
    /// Returns whether the bytes were accepted; panics where margay is at fault.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that are accepted, each once, the same on every call.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Changes an input.
    change: fn(&[u8], &mut Draw) -> Vec<u8>,
}

/// Every target.
pub const TARGETS: [Target; 7] = [
    Target { name: "onnx", run: models::run, seeds: models::seeds, change: models::change },
    Target { name: "graph_text", run: graphs::run, seeds: graphs::seeds, change: graphs::change },
    Target { name: "program_text", run: programs::run, seeds: programs::seeds, change: programs::change },
    Target { name: "artifact", run: artifacts::run, seeds: artifacts::seeds, change: artifacts::change },
    Target { name: "plan", run: plans::run, seeds: plans::seeds, change: plans::change },
    Target { name: "arrays", run: arrays::run, seeds: arrays::seeds, change: arrays::change },
    Target {
        name: "checkpoint",
        run: checkpoints::run,
        seeds: checkpoints::seeds,
        change: checkpoints::change,
    },
];

/// The target of a name.
///
/// # Panics
/// If there is none.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no target `{name}`"))
}

impl Target {
    /// Changes an input, as the stream `stream` of random numbers says; at most `max_len` bytes are left.
    pub fn mutate(&self, bytes: &[u8], stream: u64, max_len: usize) -> Vec<u8> {
        let mut changed = (self.change)(bytes, &mut Draw::new(stream));
        changed.truncate(max_len);
        changed
    }
}

/// Inputs without repetitions, the first of equal ones.
fn distinct(inputs: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut seen = std::collections::HashSet::new();
    inputs.into_iter().filter(|input| seen.insert(input.clone())).collect()
}
