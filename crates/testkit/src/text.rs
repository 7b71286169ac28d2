//! Graphs in documentation.

use margay_ir::ops::Numbers;
use margay_ir::{Graph, TensorType, text};
use margay_tensor::random::{Philox, stream_of};
use margay_tensor::{DType, StoredTensor, Tensor};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// The two graphs at the head of a pass file.
#[derive(Clone, Debug)]
pub struct DocExample {
    /// The graph the pass is given.
    pub before: String,
    /// What it makes of it.
    pub after: String,
}

/// The examples of a source file: pairs of graphs `@before` and `@after` in its module documentation.
pub fn doc_examples(source: &str) -> Vec<DocExample> {
    let doc: String = source
        .lines()
        .take_while(|l| l.starts_with("//!"))
        .map(|l| format!("{}\n", l.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default()))
        .collect();
    // A graph ends where the next one begins, with the regions behind it.
    let of_block = |block: &str| {
        let text = format!("\n{}", block.split("```").next().unwrap_or_default());
        let graphs = text.split("\ngraph @").skip(1);
        graphs.map(|g| format!("graph @{}\n", g.trim_end())).collect::<Vec<_>>()
    };
    let graphs: Vec<String> = doc.split("```text\n").skip(1).flat_map(of_block).collect();
    let pairs = graphs.chunks_exact(2);
    pairs.map(|pair| DocExample { before: pair[0].clone(), after: pair[1].clone() }).collect()
}

/// Reads a graph; constants that are named but not given are random. Returns what each one's contents hash to, so that a
/// printed graph can be given the names back.
pub fn parse_with_random_constants(source: &str) -> (Graph, BTreeMap<String, String>) {
    let names: RefCell<BTreeMap<String, String>> = RefCell::default();
    let resolve = |key: &str, ty: &TensorType| -> Option<StoredTensor> {
        let shape = ty.extents()?;
        let mut data = vec![0f32; shape.iter().product()];
        Philox::new(5, stream_of(key)).fill_normal_f32(0, &mut data);
        let mut tensor = Tensor::from_slice(&shape, &data).ok()?;
        if matches!(ty.dtype, DType::F16 | DType::BF16) {
            tensor = Numbers::of(&tensor).ok()?.into_tensor(ty.dtype, &shape).ok()?;
        }
        names.borrow_mut().insert(format!("#{}", tensor.content_hash()), key.to_string());
        Some(tensor.into())
    };
    let g = text::parse(source, &resolve).unwrap_or_else(|e| panic!("{e}\n{source}"));
    (g, names.into_inner())
}

/// The text of a graph under another name, with the names of random constants put back.
pub fn normalized(g: &Graph, name: &str, names: &BTreeMap<String, String>) -> String {
    let mut out = g.to_string().replacen(&format!("@{}", g.name()), &format!("@{name}"), 1);
    for (hash, key) in names {
        out = out.replace(hash, key);
    }
    out
}
