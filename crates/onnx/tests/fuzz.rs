//! Random damage to valid models: any answer is fine but a panic, and what is accepted can be written again.

mod support;

use margay_onnx::{Attribute, Model, OnnxError, OnnxGraph, import};
use margay_tensor::random::Philox;
use support::everything;

const MUTATIONS: u64 = 20_000;

#[test]
fn damaged_models_never_panic() {
    let whole = everything().to_bytes().unwrap();
    let mut accepted = 0;
    for stream in 0..MUTATIONS {
        let bytes = damaged(&whole, stream);
        let Ok(model) = Model::from_bytes(&bytes) else { continue };
        accepted += 1;
        model.non_finite();
        _ = import(&model);
        match model.to_bytes() {
            Ok(again) => {
                assert_eq!(text(&Model::from_bytes(&again).unwrap()), text(&model), "stream {stream}")
            }
            Err(error) => {
                assert!(matches!(error, OnnxError::NotWritable { .. }), "stream {stream}: {error}");
                assert!(has_other(&model.graph), "stream {stream}: {error}");
            }
        }
    }
    // Most damage to weights and names is harmless; if nothing or everything passed, nothing was tested.
    assert!((MUTATIONS / 100..MUTATIONS * 9 / 10).contains(&accepted), "{accepted} accepted");
}

/// One to four changes of one to eight bytes: other bits, other bytes, missing bytes, repeated bytes, or a cut end.
fn damaged(whole: &[u8], stream: u64) -> Vec<u8> {
    let philox = Philox::new(0x6d61_7267_6179, stream);
    let mut bytes = whole.to_vec();
    let changes = 1 + philox.block(0)[0] as u64 % 4;
    for change in 1..=changes {
        let [what, at, length, value] = philox.block(change);
        if bytes.is_empty() {
            break;
        }
        let at = at as usize % bytes.len();
        let end = (at + 1 + length as usize % 8).min(bytes.len());
        match what % 6 {
            0 | 1 => bytes[at] ^= 1 << (value % 8),
            2 => bytes[at] = value as u8,
            3 => _ = bytes.drain(at..end),
            4 => {
                let repeated = bytes[at..end].repeat(1 + value as usize % 3);
                bytes.splice(at..at, repeated);
            }
            _ => bytes.truncate(if value % 16 == 0 { at } else { bytes.len() }),
        }
    }
    bytes
}

/// A model as text: numbers that are not numbers compare equal in it.
fn text(model: &Model) -> String {
    format!("{model:?}")
}

fn has_other(graph: &OnnxGraph) -> bool {
    graph.nodes.iter().flat_map(|n| n.attributes.values()).any(|a| match a {
        Attribute::Other(_) => true,
        Attribute::Graph(g) => has_other(g),
        Attribute::Graphs(all) => all.iter().any(has_other),
        _ => false,
    })
}
