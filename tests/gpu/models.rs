//! Whole networks on the emulator, against the processor.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use margay_driver::{Runner, backend, open};
use margay_emulator::Emulator;
use margay_ir::{Cx, Graph};
use margay_passes::sketch::{PantherTraining, SketchTraining, Start};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::max_error;

use crate::{EMULATED, code_in, emulated, parts_of};

/// Orders of threads that a network runs in.
const ORDERS: usize = 5;

fn arrays(path: &Path) -> Vec<(String, Tensor)> {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    margay_npy::read_npz(BufReader::new(file)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A network, closed.
pub(crate) struct Network {
    pub(crate) name: &'static str,
    pub(crate) graph: Graph,
    pub(crate) binding: Binding,
}

impl Network {
    /// `extents` are those of its symbols, in order.
    fn new(name: &'static str, graph: Graph, extents: &[i64]) -> Network {
        let binding = graph.symbols().into_iter().zip(extents.iter().copied()).collect();
        Network { name, graph, binding }
    }

    /// Runs it on the processor and on the emulator in so many orders of threads, which give the same bits, and checks the greatest
    /// difference.
    fn check(&self, inputs: &[(String, Tensor)], orders: usize) {
        let Network { name, graph, binding } = self;
        let executable =
            emulated(graph, binding, &Emulator::new(3)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
        let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut run = || session.run(&by_name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = run();
        for _ in 1..orders {
            assert_eq!(found, run(), "{name}: the same bits in every order");
        }
        let expected = Runner::new(graph.clone(), &backend::native(), 2).run(inputs);
        let expected = expected.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found.len(), expected.len());
        let error = found.iter().zip(&expected).map(|((_, f), (_, e))| max_error(f, e)).fold(0.0, f64::max);
        println!("{name}, {orders} orders: {error:.1e}");
        assert!(error <= 1e-4, "{name}: {error}");
    }
}

/// The folder of models that are fetched, if there is one.
fn fetched() -> Option<PathBuf> {
    std::env::var_os("MARGAY_TEST_DATA").map(PathBuf::from)
}

fn minilm(folder: &Path) -> Network {
    let source = open(&folder.join("minilm_l3.onnx")).unwrap_or_else(|e| panic!("{e}"));
    Network::new("minilm_l3 b2_s16", source.graph, &[2, 16])
}

fn demo() -> Network {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/model.onnx");
    Network::new("demo", open(&model).unwrap_or_else(|e| panic!("{e}")).graph, &[2])
}

/// The network of convolutions with Panther's sketches in place of its layers, whose signs no memory holds.
fn sketched() -> Network {
    let mut graph = demo().graph;
    let settings = PantherTraining {
        rank: 12,
        terms: 2,
        start: Start::LeastSquares,
        two_sided: false,
        seed: 3,
        modules: None,
    };
    let sketch = SketchTraining::Panther(settings);
    sketch.apply(&mut graph, &mut Cx::default()).unwrap_or_else(|e| panic!("{e}"));
    Network::new("demo, sketched", graph, &[2])
}

/// All networks that are at hand.
pub(crate) fn networks() -> Vec<Network> {
    let fetched = fetched().map(|folder| minilm(&folder));
    [demo(), sketched()].into_iter().chain(fetched).collect()
}

#[test]
fn a_transformer_agrees_with_the_processor() {
    let Some(folder) = fetched() else {
        println!("skipped: no test data");
        return;
    };
    let inputs = arrays(&folder.join("minilm_l3_b2_s16.in.npz"));
    minilm(&folder).check(&inputs, 2);
}

/// Two pictures for the network of convolutions.
fn pictures() -> Vec<(String, Tensor)> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo");
    let all = arrays(&demo.join("samples.npz"));
    let (_, pixels) = all.iter().find(|(name, _)| name == "image").expect("the samples have images");
    let image: usize = pixels.shape()[1..].iter().product();
    let scaled: Vec<f32> = pixels.bytes()[..2 * image].iter().map(|&p| f32::from(p) / 255.0).collect();
    let mut shape = pixels.shape().to_vec();
    shape[0] = 2;
    vec![("image".to_owned(), Tensor::from_slice(&shape, &scaled).expect("pictures"))]
}

#[test]
fn a_network_of_convolutions_agrees_with_the_processor() {
    demo().check(&pictures(), ORDERS);
}

#[test]
fn a_sketched_network_agrees_with_the_processor() {
    let network = sketched();
    let parts = parts_of(&network.graph, &network.binding, &EMULATED).unwrap_or_else(|e| panic!("{e}"));
    assert!(code_in(&parts).program.contains("f32(signs, "), "signs are made where they are multiplied");
    network.check(&pictures(), ORDERS);
}
