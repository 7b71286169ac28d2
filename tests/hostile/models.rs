//! Models of ONNX: read, written, imported, compiled, and exported again.

use margay_onnx::{
    Attribute, ExportOptions, Model, NEWEST_EXPORT_OPSET, OnnxDim, OnnxError, OnnxGraph, OnnxNode, OnnxValue,
    export, import, supported_operators,
};
use margay_tensor::{DType, Tensor};

use super::graphs::{cases, goes_on};
use super::{Draw, distinct, protobuf};
use crate::onnx_cases;

#[path = "../../crates/onnx/tests/support/mod.rs"]
mod support;

/// The most bytes of a model whose weights are read for numbers that are not finite, and which is exported.
const MAX_BYTES: usize = 1 << 20;

/// Accepts what can be imported.
pub(super) fn run(bytes: &[u8]) -> bool {
    let Ok(model) = Model::from_bytes(bytes) else { return false };
    model.non_finite();
    match model.to_bytes() {
        Ok(again) => {
            let again = Model::from_bytes(&again).unwrap_or_else(|e| panic!("{e}"));
            // As text: numbers that are not numbers compare equal in it.
            assert!(format!("{again:?}") == format!("{model:?}"), "{model:?}\nreads back as\n{again:?}");
        }
        Err(error) => {
            assert!(matches!(error, OnnxError::NotWritable { .. }), "{error}");
            assert!(has_other(&model.graph), "{error}");
        }
    }
    let Ok(g) = import(&model) else { return false };
    if bytes.len() <= MAX_BYTES
        && let Ok(exported) = export(&g, &ExportOptions::default())
    {
        let written = exported.to_bytes().unwrap_or_else(|e| panic!("{e}"));
        let read = Model::from_bytes(&written).unwrap_or_else(|e| panic!("{e}\n{g}"));
        assert!(format!("{read:?}") == format!("{exported:?}"), "{exported:?}\nreads back as\n{read:?}");
    }
    goes_on(g);
    true
}

fn has_other(graph: &OnnxGraph) -> bool {
    graph.nodes.iter().flat_map(|n| n.attributes.values()).any(|a| match a {
        Attribute::Other(_) => true,
        Attribute::Graph(g) => has_other(g),
        Attribute::Graphs(all) => all.iter().any(has_other),
        Attribute::Float(_)
        | Attribute::Int(_)
        | Attribute::String(_)
        | Attribute::Tensor(_)
        | Attribute::NarrowTensor(..)
        | Attribute::Floats(_)
        | Attribute::Ints(_)
        | Attribute::Strings(_)
        | Attribute::Tensors(_) => false,
    })
}

/// Models of all operators of ONNX, exports of all operators of graphs, and one with everything the format has.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let made = [support::everything(), support::linear()];
    let newest = ExportOptions { opset: NEWEST_EXPORT_OPSET, ..ExportOptions::default() };
    let exported = cases().filter_map(|g| export(&g, &newest).ok());
    let written = made.into_iter().chain(exported).filter_map(|model| model.to_bytes().ok());
    distinct(written.chain(onnx_cases().into_iter().map(|case| case.model)))
}

/// Changes a model: mostly so that it is still well formed, else the fields of its message.
pub(super) fn change(bytes: &[u8], draw: &mut Draw) -> Vec<u8> {
    let model = match Model::from_bytes(bytes) {
        Ok(model) if !draw.chance(4) => model,
        Ok(_) | Err(_) => return protobuf::change(bytes, draw),
    };
    let mut changed = model;
    for _ in 0..=draw.below(3) {
        change_graph(&mut changed.graph, draw);
    }
    if draw.chance(20) {
        changed.opset = draw.below(30) as i64;
    }
    changed.to_bytes().unwrap_or_else(|_| protobuf::change(bytes, draw))
}

fn change_graph(graph: &mut OnnxGraph, draw: &mut Draw) {
    match draw.below(12) {
        0 => change_value(graph, draw),
        1 => change_initializer(graph, draw),
        2 => {
            let at = draw.below(graph.nodes.len());
            if at < graph.nodes.len() {
                graph.nodes.remove(at);
            }
        }
        3 => {
            let copy = draw.of(&graph.nodes).cloned();
            graph.nodes.extend(copy.map(|mut node| {
                node.outputs.iter_mut().for_each(|name| name.push_str("_again"));
                node
            }));
        }
        4 => {
            let produced: Vec<String> = names(graph);
            let Some(name) = draw.of(&produced).cloned() else { return };
            match draw.chance(2) {
                true => graph.outputs.push(OnnxValue { name, dtype: None, narrow: None, dims: None }),
                false => {
                    let at = draw.below(graph.outputs.len());
                    graph.outputs.get_mut(at).into_iter().for_each(|o| o.name = name.clone());
                }
            }
        }
        _ => {
            let names = names(graph);
            let at = draw.below(graph.nodes.len());
            if let Some(node) = graph.nodes.get_mut(at) {
                change_node(node, &names, draw);
            }
        }
    }
}

/// Every value of a graph.
fn names(graph: &OnnxGraph) -> Vec<String> {
    let given = graph.inputs.iter().map(|v| &v.name).chain(graph.initializers.iter().map(|(name, _)| name));
    given.chain(graph.nodes.iter().flat_map(|n| &n.outputs)).cloned().collect()
}

fn change_value(graph: &mut OnnxGraph, draw: &mut Draw) {
    let at = draw.below(graph.inputs.len());
    let Some(input) = graph.inputs.get_mut(at) else { return };
    let dims = input.dims.get_or_insert_default();
    let axis = draw.below(dims.len());
    match draw.below(7) {
        0 => input.dtype = draw.of(&DType::ALL).copied(),
        1 => dims.push(OnnxDim::Value(draw.extent().max(0))),
        2 if axis < dims.len() => _ = dims.remove(axis),
        3 if axis < dims.len() => {
            dims[axis] = OnnxDim::Symbol(["N", "M", "N+1", "2*N", "", "x y"][draw.below(6)].to_owned());
        }
        4 if axis < dims.len() => dims[axis] = OnnxDim::Unknown,
        5 => input.dims = None,
        _ if axis < dims.len() => dims[axis] = OnnxDim::Value(draw.extent().max(0)),
        _ => {}
    }
}

fn change_initializer(graph: &mut OnnxGraph, draw: &mut Draw) {
    let at = draw.below(graph.initializers.len());
    let Some((name, tensor)) = graph.initializers.get_mut(at) else { return };
    let bytes = tensor.bytes().to_vec();
    let elements = tensor.len();
    let changed = match draw.below(4) {
        // The same bytes as numbers of another type.
        0 => {
            let dtype = DType::ALL[draw.below(DType::ALL.len())];
            let size = Tensor::zeros(dtype, &[1]).map_or(1, |t| t.bytes().len());
            let count = bytes.len() / size;
            Tensor::from_bytes(dtype, &[count], &bytes[..count * size]).ok()
        }
        1 => tensor.reshaped(&[[1, elements], [elements, 1]][draw.below(2)]).ok(),
        2 => Tensor::zeros(tensor.dtype(), &[draw.below(4), elements.min(64)]).ok(),
        // Integers hold shapes, axes and numbers of repetitions.
        _ if tensor.dtype() == DType::I64 && elements > 0 => {
            let mut numbers = tensor.to_vec::<i64>().unwrap_or_default();
            let at = draw.below(numbers.len());
            numbers[at] = draw.extent();
            Tensor::from_slice(tensor.shape(), &numbers).ok()
        }
        _ => {
            let bytes = super::bytes::change(&bytes, draw);
            Tensor::from_bytes(tensor.dtype(), tensor.shape(), &bytes).ok()
        }
    };
    match changed {
        Some(changed) => *tensor = changed,
        // An input instead of a constant.
        None => {
            let name = name.clone();
            let (_, tensor) = graph.initializers.remove(at);
            let dims = tensor.shape().iter().map(|&d| OnnxDim::Value(d as i64)).collect();
            graph.inputs.push(OnnxValue {
                name,
                dtype: Some(tensor.dtype()),
                narrow: None,
                dims: Some(dims),
            });
        }
    }
}

fn change_node(node: &mut OnnxNode, names: &[String], draw: &mut Draw) {
    const ATTRIBUTES: [&str; 16] = [
        "axis",
        "axes",
        "keepdims",
        "pads",
        "strides",
        "dilations",
        "group",
        "kernel_shape",
        "perm",
        "to",
        "mode",
        "epsilon",
        "alpha",
        "shape",
        "value",
        "num_outputs",
    ];
    let (at, other) = (draw.below(node.inputs.len()), draw.below(node.inputs.len()));
    match draw.below(10) {
        0 => {
            let all: Vec<_> = supported_operators().collect();
            let Some((domain, name, _)) = draw.of(&all) else { return };
            (node.domain, node.op_type) = ((*domain).to_owned(), (*name).to_owned());
        }
        1 if !node.inputs.is_empty() => node.inputs.swap(at, other),
        2 if !node.inputs.is_empty() => _ = node.inputs.remove(at),
        3 if !node.inputs.is_empty() => node.inputs[at] = draw.of(names).cloned().unwrap_or_default(),
        4 => node.inputs.push(draw.of(names).cloned().unwrap_or_default()),
        5 => {
            let kept = draw.below(node.outputs.len() + 1);
            node.outputs.truncate(kept);
            if draw.chance(2) {
                node.outputs.push(format!("{}_more", node.op_type));
            }
        }
        _ => {
            let own: Vec<String> = node.attributes.keys().cloned().collect();
            let known = ATTRIBUTES[draw.below(ATTRIBUTES.len())].to_owned();
            let name = draw.of(&own).filter(|_| !draw.chance(6)).cloned();
            let name = name.unwrap_or(known);
            match node.attributes.get_mut(&name) {
                Some(_) if draw.chance(8) => _ = node.attributes.remove(&name),
                Some(attribute) => change_attribute(attribute, draw),
                None => {
                    let value = match draw.chance(2) {
                        true => Attribute::Int(draw.extent()),
                        false => Attribute::Ints((0..draw.below(5)).map(|_| draw.extent()).collect()),
                    };
                    node.attributes.insert(name, value);
                }
            }
        }
    }
}

fn change_attribute(attribute: &mut Attribute, draw: &mut Draw) {
    const FLOATS: [f32; 9] = [0.0, -0.0, 1.0, -1.0, 1e-40, 1e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    match attribute {
        Attribute::Float(x) => *x = FLOATS[draw.below(FLOATS.len())],
        Attribute::Int(n) => *n = draw.extent(),
        Attribute::String(text) => {
            let words = ["", "SAME_UPPER", "VALID", "linear", "cubic", "NOTSET", "none", "🦊"];
            *text = words[draw.below(words.len())].to_owned();
        }
        Attribute::Floats(all) => change_list(all, FLOATS[draw.below(FLOATS.len())], draw),
        Attribute::Ints(all) => {
            let number = draw.extent();
            change_list(all, number, draw);
        }
        Attribute::Strings(all) => change_list(all, "é".to_owned(), draw),
        Attribute::Graph(graph) => change_graph(graph, draw),
        Attribute::Graphs(all) => {
            let at = draw.below(all.len());
            all.get_mut(at).into_iter().for_each(|graph| change_graph(graph, draw));
        }
        // A constant under a name becomes a number.
        Attribute::Tensor(_) | Attribute::NarrowTensor(..) | Attribute::Tensors(_) | Attribute::Other(_) => {
            *attribute = Attribute::Int(draw.extent());
        }
    }
}

fn change_list<T: Clone>(all: &mut Vec<T>, value: T, draw: &mut Draw) {
    let at = draw.below(all.len());
    match draw.below(4) {
        0 => all.push(value),
        1 if !all.is_empty() => _ = all.remove(at),
        2 => all.clear(),
        _ => all.get_mut(at).into_iter().for_each(|old| *old = value.clone()),
    }
}
