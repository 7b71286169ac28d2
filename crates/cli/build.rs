//! With the feature `gpu` the program looks for LLVM and MLIR where it was linked with them, so that it runs in any
//! environment of that machine.

use std::env;

fn main() {
    const PREFIX: &str = "MLIR_SYS_220_PREFIX";
    println!("cargo:rerun-if-env-changed={PREFIX}");
    if env::var_os("CARGO_FEATURE_GPU").is_some()
        && let Ok(prefix) = env::var(PREFIX)
    {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{prefix}/lib");
    }
}
