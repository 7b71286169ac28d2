//! Whole networks on the emulator, against the processor.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use margay_driver::{Runner, backend, open};
use margay_emulator::Emulator;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::max_error;

use crate::emulated;

fn arrays(path: &Path) -> Vec<(String, Tensor)> {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    margay_npy::read_npz(BufReader::new(file)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Runs a model on both and returns the greatest difference. `extents` are those of its symbols, in order.
fn difference(model: &Path, inputs: &[(String, Tensor)], extents: &[i64]) -> f64 {
    let source = open(model).unwrap_or_else(|e| panic!("{e}"));
    let symbols = source.graph.symbols();
    let binding: Binding = symbols.into_iter().zip(extents.iter().copied()).collect();
    let executable = emulated(&source.graph, &binding, &Emulator::new(3)).unwrap_or_else(|e| panic!("{e}"));
    let mut session =
        Session::new(&executable, SessionOptions { threads: 1 }).unwrap_or_else(|e| panic!("{e}"));
    let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let found = session.run(&by_name).unwrap_or_else(|e| panic!("{e}"));
    let expected =
        Runner::new(source.graph, &backend::native(), 2).run(inputs).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(found.len(), expected.len());
    found.iter().zip(&expected).map(|((_, f), (_, e))| max_error(f, e)).fold(0.0, f64::max)
}

#[test]
fn a_transformer_agrees_with_the_processor() {
    let Some(folder) = std::env::var_os("MARGAY_TEST_DATA").map(PathBuf::from) else {
        println!("skipped: no test data");
        return;
    };
    let inputs = arrays(&folder.join("minilm_l3_b2_s16.in.npz"));
    let error = difference(&folder.join("minilm_l3.onnx"), &inputs, &[2, 16]);
    println!("minilm_l3 b2_s16: {error:.1e}");
    assert!(error <= 1e-4, "{error}");
}

#[test]
fn a_network_of_convolutions_agrees_with_the_processor() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo");
    let all = arrays(&demo.join("samples.npz"));
    let (_, pixels) = all.iter().find(|(name, _)| name == "image").expect("the samples have images");
    let image: usize = pixels.shape()[1..].iter().product();
    let scaled: Vec<f32> = pixels.bytes()[..2 * image].iter().map(|&p| f32::from(p) / 255.0).collect();
    let mut shape = pixels.shape().to_vec();
    shape[0] = 2;
    let inputs = [("image".to_owned(), Tensor::from_slice(&shape, &scaled).expect("pictures"))];
    let error = difference(&demo.join("model.onnx"), &inputs, &[2]);
    println!("demo: {error:.1e}");
    assert!(error <= 1e-4, "{error}");
}
