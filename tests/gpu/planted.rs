//! Bugs put into generated kernels: the emulator, or a wrong result, gives each of them away, in every order of threads.

use std::sync::Arc;

use margay_artifact::{ArtifactBuilder, Parts};
use margay_driver::{Dump, build};
use margay_emulator::Emulator;
use margay_ir::{Graph, eval};
use margay_kernels_gpu::GpuCode;
use margay_runtime::{Device, Executable, GpuDevice, Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::{normal, parse_with_random_constants};

use crate::EMULATED;

/// Orders of threads in which each bug has to be found.
const SEEDS: [u64; 5] = [1, 2, 3, 5, 8];

/// A change of the text of a kernel.
enum Bug {
    /// Occurrence number so and so of a text becomes another.
    One(&'static str, usize, &'static str),
    /// Every occurrence.
    All(&'static str, &'static str),
}

impl Bug {
    fn plant(&self, text: &str) -> String {
        match self {
            Bug::All(old, new) => text.replace(old, new),
            Bug::One(old, number, new) => {
                let at = text.match_indices(old).nth(*number).map(|(at, _)| at);
                let Some(at) = at else { return text.to_owned() };
                format!("{}{new}{}", &text[..at], &text[at + old.len()..])
            }
        }
    }
}

/// A graph, and the bugs that its one kernel is given.
struct Subject {
    graph: Graph,
    inputs: Vec<(String, Tensor)>,
    expected: Vec<Tensor>,
}

impl Subject {
    fn new(text: &str) -> Subject {
        let (graph, _) = parse_with_random_constants(text);
        let input = |(i, n): (usize, &margay_ir::NodeId)| {
            let shape = graph.ty((*n).into()).extents().expect("closed extents");
            (graph.node(*n).origin.name().to_string(), normal(&shape, 6, i as u64))
        };
        let inputs: Vec<(String, Tensor)> = graph.inputs().iter().enumerate().map(input).collect();
        let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let expected = eval::run(&graph, &by_name).expect("the reference runs");
        Subject { graph, inputs, expected }
    }

    /// The graph compiled, with a bug in its kernel if there is one.
    fn parts(&self, bug: Option<&Bug>) -> Parts {
        let mut builder = ArtifactBuilder::new("planted");
        build::add_entry(&mut builder, &self.graph, &Binding::new(), &EMULATED, &mut Dump::none())
            .unwrap_or_else(|e| panic!("{e}"));
        let mut parts = builder.into_parts().expect("parts");
        let section = &mut parts.description.entries[0].sections[0];
        let mut code = GpuCode::decode(&parts.code[section.code.clone()]).expect("code");
        assert_eq!(code.modules.len(), 1, "{}", self.graph);
        if let Some(bug) = bug {
            let planted = bug.plant(&code.modules[0]);
            assert_ne!(planted, code.modules[0], "nothing was changed");
            code.modules[0] = planted;
        }
        let bytes = code.encode();
        section.code = 0..bytes.len();
        parts.code = bytes;
        parts
    }

    /// What gives a kernel away; `None` if it runs and is right.
    fn found(&self, parts: Parts, seed: u64) -> Option<String> {
        let device: Arc<dyn Device> = Arc::new(GpuDevice::new(Arc::new(Emulator::new(seed))));
        let executable = Executable::from_parts_on(parts, &[device]).unwrap_or_else(|e| panic!("{e}"));
        let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
        let by_name: Vec<(&str, &Tensor)> = self.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        match session.run(&by_name) {
            Err(error) => Some(error.to_string()),
            Ok(outputs) => outputs.iter().zip(&self.expected).find_map(|((_, found), expected)| {
                let close = |(a, b): (f32, f32)| (a - b).abs() <= 1e-4 * b.abs().max(1.0);
                let (found, expected) =
                    (found.to_vec::<f32>().expect("f32"), expected.to_vec::<f32>().expect("f32"));
                let wrong = found.into_iter().zip(expected).filter(|pair| !close(*pair)).count();
                (wrong > 0).then(|| format!("{wrong} wrong results"))
            }),
        }
    }

    fn check(&self, bugs: &[(&str, Bug)]) {
        for seed in SEEDS {
            assert_eq!(self.found(self.parts(None), seed), None, "the kernel as it is");
        }
        for (name, bug) in bugs {
            let mut said = Vec::new();
            for seed in SEEDS {
                let found = self.found(self.parts(Some(bug)), seed);
                said.push(found.unwrap_or_else(|| panic!("`{name}` is not found with seed {seed}")));
            }
            println!("{name}: {}", said[0]);
        }
    }
}
