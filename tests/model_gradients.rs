//! Derivatives of whole models by all their parameters, by compiled code, against those of jax, which `make_gradients.py`
//! writes to the folder that the variable `MARGAY_TEST_DATA` names.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use margay_driver::{Runner, backend, open};
use margay_ir::ops::Numbers;
use margay_ir::{Cx, Pass};
use margay_passes::Differentiate;
use margay_tensor::Tensor;

/// The derivatives of a model by all its parameters, compiled, beside those of jax in f64.
fn gradients_of(folder: &Path, model: &str) {
    let path = folder.join(format!("{model}_gradients.npz"));
    let Ok(file) = std::fs::File::open(&path) else {
        println!("skipped: no derivatives of {model}");
        return;
    };
    let arrays =
        margay_npy::read_npz(BufReader::new(file)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let named = |prefix: &str| -> Vec<(String, Tensor)> {
        let own = arrays.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_string(), t.clone())));
        own.collect()
    };
    let source = open(&folder.join(format!("{model}.onnx"))).unwrap_or_else(|e| panic!("{e}"));
    let mut g = source.graph;
    let expected = named("gradient/");
    let (output, cotangent) = named("cotangent/").pop().expect("a cotangent");
    let by = expected.iter().map(|(name, _)| name.clone()).collect();
    Differentiate { output, by }.run(&mut g, &mut Cx::default()).unwrap_or_else(|e| panic!("{model}: {e}"));
    g.set_outputs(g.outputs()[1..].to_vec());
    g.remove_dead();
    let mut inputs = named("input/");
    inputs.push(("cotangent".into(), cotangent));
    let mut runner = Runner::new(g, &backend::native(), 2);
    let found = runner.run(&inputs).unwrap_or_else(|e| panic!("{model}: {e}"));
    assert_eq!(found.len(), expected.len());
    let floats = |t: &Tensor| Numbers::of(t).unwrap().floats();
    let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
    let whole = expected.iter().map(|(_, t)| norm(&floats(t)).powi(2)).sum::<f64>().sqrt();
    let (mut worst, mut product, mut squares) = ((2.0, String::new()), 0.0, 0.0);
    for ((name, t), (_, e)) in found.iter().zip(&expected) {
        let (mut f, e) = (floats(t), floats(e));
        if t.shape().len() == 2 && e.len() == f.len() && t.shape() != expected_shape(&expected, name) {
            // A matrix that the importer transposed.
            let [rows, columns] = [t.shape()[0], t.shape()[1]];
            f = (0..f.len()).map(|i| f[i % rows * columns + i / rows]).collect();
        }
        assert_eq!(f.len(), e.len(), "{model} {name}");
        product += dot(&f, &e);
        squares += dot(&f, &f);
        // Where the derivative is 0 but for rounding, as by the bias of keys, there is no direction to compare.
        let difference: Vec<f64> = f.iter().zip(&e).map(|(a, b)| a - b).collect();
        if norm(&e) <= 1e-9 * whole {
            assert!(norm(&difference) <= 1e-6 * whole, "{model} {name}: {}", norm(&difference) / whole);
            continue;
        }
        let cosine = dot(&f, &e) / (norm(&f) * norm(&e));
        if cosine < worst.0 {
            worst = (cosine, name.clone());
        }
        let size = norm(&f) / norm(&e);
        assert!(
            cosine >= 0.9999 && (size - 1.0).abs() <= 1e-3,
            "{model} {name}: cosine {cosine}, size {size}"
        );
    }
    let all = product / (squares.sqrt() * whole);
    let count = found.len();
    println!(
        "{model}: {count} parameters, 1 - cosine {:.1e}, worst {:.1e} at {}",
        1.0 - all,
        1.0 - worst.0,
        worst.1
    );
    assert!(all >= 0.9999, "{model}: {all}");
}

/// The shape that a derivative, named as an output, is expected to have.
fn expected_shape<'a>(expected: &'a [(String, Tensor)], output: &str) -> &'a [usize] {
    let parameter = output.strip_prefix("gradient.").expect("outputs are derivatives");
    expected.iter().find(|(name, _)| name == parameter).map_or(&[], |(_, t)| t.shape())
}

#[test]
fn derivatives_of_models_agree_with_another_autodiff() {
    let Some(folder) = std::env::var_os("MARGAY_TEST_DATA").map(PathBuf::from) else {
        println!("skipped: no test data");
        return;
    };
    for model in ["minilm_l6", "resnet50_small"] {
        gradients_of(&folder, model);
    }
}
