//! What the benches share: compiled graphs and the demo model.
//!
//! Names are `op/<op>/<shape>/<class>`, `model/<model>/<batch>/<dense|plan>` and `compile/<model>`. Everything runs on one
//! thread. A run with `--test` (as `cargo test` does) executes each bench once.

pub mod fma;

use std::path::Path;

use margay_driver::{CompileOptions, Compiled, Goal, Model, Samples, Silent, backend, build, compile, open};
use margay_ir::Graph;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};

/// A graph without symbols, ready to run on one thread.
///
/// # Panics
/// If the graph does not compile.
pub fn session(g: &Graph) -> Session {
    let executable = build::jit(g, &Binding::new(), &*backend::native()).unwrap_or_else(|e| panic!("{e}"));
    Session::new(&executable, SessionOptions { threads: 1 }).unwrap_or_else(|e| panic!("{e}"))
}

/// The demo's convolutional network.
///
/// # Panics
/// If it is not in the repository.
pub fn demo() -> Model {
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/model.onnx")).unwrap_or_else(|e| panic!("{e}"))
}

/// Pictures of noise for the demo.
pub fn noise(count: usize) -> Samples {
    let pixels = margay_testkit::normal(&[count, 1, 28, 28], 11, 0);
    Samples::new(vec![("image".into(), pixels)]).unwrap_or_else(|e| panic!("{e}"))
}

/// The demo at 40% of the bytes of its weights, for one shape.
///
/// # Panics
/// If it does not compile.
pub fn sketched_demo(batch: i64) -> Compiled {
    let options = CompileOptions {
        goal: Goal::Bytes("40%".parse().unwrap_or_else(|e| panic!("{e}"))),
        dims: vec![("batch".into(), vec![batch])],
        ..CompileOptions::default()
    };
    compile(&demo(), None, &options, &Silent).unwrap_or_else(|e| panic!("{e}"))
}

/// A random f32 tensor.
pub fn random(shape: &[usize]) -> Tensor {
    margay_testkit::normal(shape, 1, 1)
}
