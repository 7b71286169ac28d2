//! Random changes to models that are fine: any answer will do but a panic, and what is accepted is a valid graph that
//! can be exported.

use margay_onnx::{ExportOptions, export, supported_operators};
use margay_tensor::random::Philox;

use super::*;

const CHANGED: u64 = 30_000;

/// Numbers that break careless arithmetic.
const ODD: [i64; 12] = [-1, 0, 1, 2, 3, 5, -7, 1 << 31, 1 << 40, i64::MAX, i64::MIN, -(1 << 40)];

const ATTRIBUTES: [&str; 16] = [
    "axis",
    "axes",
    "keepdims",
    "perm",
    "pads",
    "strides",
    "dilations",
    "kernel_shape",
    "group",
    "allowzero",
    "to",
    "start",
    "end",
    "num_outputs",
    "auto_pad",
    "ceil_mode",
];

fn layers() -> Model {
    let pool = [("kernel_shape", list(&[2, 2])), ("strides", list(&[2, 2])), ("ceil_mode", int(1))];
    let nodes = vec![
        node("Conv", &["image", "k", "b"], &["c"], &[("pads", list(&[1, 1, 1, 1]))]),
        node("BatchNormalization", &["c", "b", "b", "b", "b"], &["n"], &[]),
        node("MaxPool", &["n"], &["p"], &pool),
        node("Pad", &["p", "pads"], &["q"], &[]),
        node("Flatten", &["q"], &["f"], &[]),
        node("Gemm", &["f", "w", "b"], &["g"], &[("transB", int(1))]),
        node("Softmax", &["g"], &["s"], &[]),
        node("ReduceMean", &["s"], &["m"], &[("axes", list(&[1]))]),
        node("Split", &["s", "parts"], &["l", "r"], &[("axis", int(1))]),
        node("Tile", &["r", "parts"], &["t"], &[]),
        node("Slice", &["g", "zero", "parts_1"], &["u"], &[]),
        node("Transpose", &["u"], &["v"], &[("perm", list(&[1, 0]))]),
    ];
    let constants = [
        ("k", counting(&[2, 1, 3, 3])),
        ("b", floats(&[2], &[1.0, 2.0])),
        ("w", counting(&[2, 32])),
        ("pads", ints(&[0, 0, 0, 1, 0, 0, 1, 0])),
        ("parts", ints(&[1, 1])),
        ("parts_1", ints(&[1])),
        ("zero", ints(&[0])),
    ];
    let inputs = vec![input("image", DType::F32, &["n", "1", "6", "6"])];
    model(17, inputs, &constants, nodes, &["m", "l", "t", "v"])
}

/// Draws numbers below a bound.
struct Dice(Philox, u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.1 += 1;
        self.0.block(self.1)[0] as usize % bound.max(1)
    }

    fn odd(&mut self) -> i64 {
        ODD[self.below(ODD.len())]
    }

    fn attribute(&mut self) -> Attribute {
        match self.below(6) {
            0 | 1 => Attribute::Int(self.odd()),
            2 => Attribute::String("SAME_LOWER".to_owned()),
            _ => {
                let count = self.below(5);
                Attribute::Ints((0..count).map(|_| self.odd()).collect())
            }
        }
    }
}

fn change(model: &mut Model, dice: &mut Dice, names: &[String], operators: &[&str]) {
    let graph = &mut model.graph;
    let at = dice.below(graph.nodes.len());
    let node = &mut graph.nodes[at];
    match dice.below(9) {
        0 => node.op_type = operators[dice.below(operators.len())].to_owned(),
        1 => _ = node.inputs.pop(),
        2 => node.inputs.push(names[dice.below(names.len())].clone()),
        3 if !node.inputs.is_empty() => {
            let slot = dice.below(node.inputs.len());
            node.inputs[slot] = names[dice.below(names.len())].clone();
        }
        4 => {
            _ = node.attributes.insert(ATTRIBUTES[dice.below(ATTRIBUTES.len())].to_owned(), dice.attribute())
        }
        5 => {
            if let Some(value) = node.attributes.values_mut().next() {
                *value = dice.attribute();
            }
        }
        6 => {
            let (rank, extent) = (dice.below(5), ["n", "?", "0", "1", "4", "n + 1"][dice.below(6)]);
            let last = graph.inputs.len() - 1;
            graph.inputs[last] = input(&graph.inputs[last].name, DType::F32, &vec![extent; rank]);
        }
        7 => model.opset = 7 + dice.below(17) as i64,
        _ => {
            let at = dice.below(graph.initializers.len());
            let tensor = &mut graph.initializers[at].1;
            if tensor.dtype() == DType::I64 {
                let count = dice.below(6);
                *tensor = ints(&(0..count).map(|_| dice.odd()).collect::<Vec<i64>>());
            }
        }
    }
}

#[test]
fn changed_models_never_panic() {
    let operators: Vec<&str> = supported_operators().map(|(_, name, _)| name).collect();
    let bases = [layers(), noise::shape_model()];
    let (mut accepted, mut exported) = (0, 0);
    for stream in 0..CHANGED {
        let mut model = bases[stream as usize % 2].clone();
        let graph = &model.graph;
        let constants = graph.initializers.iter().map(|(n, _)| n.clone());
        let results = graph.nodes.iter().flat_map(|n| n.outputs.clone());
        let names: Vec<String> =
            constants.chain(graph.inputs.iter().map(|i| i.name.clone())).chain(results).collect();
        let mut dice = Dice(Philox::new(0x6f6e_6e78, stream), 0);
        for _ in 0..=dice.below(4) {
            change(&mut model, &mut dice, &names, &operators);
        }
        let Ok(g) = import(&model) else { continue };
        accepted += 1;
        assert_eq!(g.verify(Stage::Imported), Ok(()), "stream {stream}");
        exported += usize::from(export(&g, &ExportOptions::default()).is_ok());
    }
    assert!((CHANGED / 20..CHANGED * 9 / 10).contains(&accepted), "{accepted} accepted");
    assert!(exported > 0);
}
