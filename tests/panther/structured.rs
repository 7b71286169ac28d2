//! Derivatives of layers of several factors by their rows and factors, against finite differences.

use margay_ir::{Cx, Graph, NodeId, Op, Pass};
use margay_passes::sketch::{learned, read_plan};
use margay_passes::{ApplyPlan, make_trainable};
use margay_tensor::Tensor;
use margay_testkit::parse_with_random_constants;

use crate::{check_by_differences, random, widened};

const LAYER: &str = "graph @layer(%x: f32[3, 12]) -> (y: f32[3, 12]) {
  %0 = const #w : f32[12, 12]  // fc.weight
  %1 = matmul %x, %0 : f32[3, 12]  // fc
  return %1
}";

/// The layer in a form.
fn replaced(choice: &str) -> Graph {
    let mut g = parse_with_random_constants(LAYER).0;
    let head = "version = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0";
    let plan = read_plan(&format!("[plan]\n{head}\n[modules]\nfc = {{ {choice} }}\n")).unwrap();
    ApplyPlan::of(&plan).run(&mut g, &mut Cx::default()).unwrap();
    g
}

/// The constants of a graph, which are all factors.
fn constants(g: &Graph) -> Vec<NodeId> {
    g.order().into_iter().filter(|n| matches!(g.op(*n), Op::Const(_))).collect()
}

#[test]
fn derivatives_are_those_of_finite_differences() {
    for (choice, factors) in [
        ("scheme = \"lowrank-diag\", rank = 2", 3),
        ("scheme = \"tt\", inputs = [2, 3, 2], outputs = [3, 2, 2], rank = 3", 3),
        ("scheme = \"tt\", inputs = [4, 3], outputs = [2, 6], rank = 2", 2),
        ("scheme = \"kronecker\", block = [3, 4], terms = 2", 2),
        ("scheme = \"monarch\", blocks = [3, 4]", 2),
        ("scheme = \"lowrank\", rank = 3", 2),
    ] {
        let mut g = widened(&replaced(choice));
        let of = constants(&g);
        make_trainable(&mut g, &of).unwrap();
        let inputs: Vec<(&'static str, Tensor)> = g
            .inputs()
            .iter()
            .enumerate()
            .map(|(i, n)| {
                let name: &'static str = g.node(*n).origin.name().to_owned().leak();
                (name, random(&g.ty((*n).into()).extents().unwrap(), i as u64))
            })
            .collect();
        assert_eq!(inputs.len(), 1 + factors, "{choice}");
        check_by_differences(choice, &g, &inputs, 1 + factors);
    }
}

/// What training moves by itself are the factors, all of them.
#[test]
fn factors_are_what_learns() {
    for choice in [
        "scheme = \"lowrank-diag\", rank = 2",
        "scheme = \"tt\", inputs = [4, 3], outputs = [3, 4], rank = 2",
    ] {
        let g = replaced(choice);
        assert_eq!(learned(&g).len(), constants(&g).len(), "{choice}");
    }
}
