//! Which constants of a sketched graph learn, and how factors are brought to one scale before they do.

use margay_ir::{Graph, NodeId, Op, Part};
use margay_passes::parameter_names;
use margay_passes::sketch::ModuleKind;
use margay_tensor::{DType, Tensor};

use super::factors::{FactoredModule, factored_modules};

/// Which constants learn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Train {
    /// Factors of sketched layers, and the biases behind them.
    #[default]
    Sketch,
    /// These, and what normalizations scale by and add.
    Norms,
    /// All constants of f32 with more than one number, embeddings aside.
    All,
}

impl Train {
    /// All of them, with the words for them.
    pub const ALL: [(&str, Train); 3] =
        [("sketch", Train::Sketch), ("norms", Train::Norms), ("all", Train::All)];

    /// The word for it.
    pub fn name(self) -> &'static str {
        Train::ALL.iter().find(|(_, t)| *t == self).map_or("", |(name, _)| name)
    }
}

/// The constants that learn, in the order of the graph.
pub fn trainable(g: &Graph, train: Train) -> Vec<NodeId> {
    let mut sketch: Vec<NodeId> = Vec::new();
    for module in factored_modules(g) {
        sketch.extend([module.left, module.right]);
        sketch.extend(module.places.iter().filter_map(|p| p.bias).map(|(_, constant)| constant));
    }
    let learns = |n: &NodeId| {
        let Op::Const(c) = g.op(*n) else { return false };
        let tensor = c.payload.tensor();
        if tensor.dtype() != DType::F32 || tensor.is_empty() {
            return false;
        }
        let part = matches!(g.node(*n).origin.part, Some(Part::Left | Part::Right | Part::Bias));
        let users = g.users_of((*n).into());
        let normalizes = users.iter().any(|(user, _)| matches!(g.op(*user), Op::LayerNorm(_)));
        let looked_up = users.iter().any(|(user, _)| matches!(g.op(*user), Op::Gather(_) | Op::Slice(_)));
        match train {
            _ if sketch.contains(n) || part => true,
            Train::Sketch => false,
            Train::Norms => normalizes,
            Train::All => tensor.len() > 1 && !looked_up,
        }
    };
    g.order().into_iter().filter(learns).collect()
}

/// The contents of constants, by the names that parameters have.
pub fn contents(g: &Graph, constants: &[NodeId]) -> Vec<(String, Tensor)> {
    let tensor = |n: &NodeId| Some((*n, g.constant((*n).into())?.tensor().clone()));
    named(g, constants.iter().filter_map(tensor).collect())
}

/// Contents for constants of a graph, by the names that parameters have.
pub fn named(g: &Graph, contents: Vec<(NodeId, Tensor)>) -> Vec<(String, Tensor)> {
    let names = parameter_names(g);
    let name = |n: NodeId| names.iter().find(|(m, _)| *m == n).map(|(_, name)| name.clone());
    contents.into_iter().filter_map(|(n, tensor)| Some((name(n)?, tensor))).collect()
}

/// Factors scaled so that what belongs together has one norm: for each position between two factors the column of the
/// left one and the row of the right one. Their product stays the same. Optimizers that give every number a step of
/// about the same size need it.
pub fn balanced(g: &Graph) -> Vec<(String, Tensor)> {
    named(g, factored_modules(g).iter().flat_map(|m| balance(g, m)).collect())
}

fn balance(g: &Graph, module: &FactoredModule) -> Vec<(NodeId, Tensor)> {
    let tensor = |n: NodeId| g.constant(n.into()).expect("factors are constants").tensor();
    let (left, right) = (tensor(module.left), tensor(module.right));
    let numbers = |t: &Tensor| t.to_vec::<f32>().expect("factors are f32");
    let (mut a, mut b) = (numbers(left), numbers(right));
    let (d_in, rank, d_out) = (module.d_in, module.rank, module.d_out);
    // Where the number at position `i` of factor `r` lies.
    let at_left = |i: usize, r: usize| match module.kind {
        ModuleKind::Linear => i * rank + r,
        ModuleKind::Conv => r * d_in + i,
    };
    let at_right = |r: usize, j: usize| match module.kind {
        ModuleKind::Linear => r * d_out + j,
        ModuleKind::Conv => j * rank + r,
    };
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for r in 0..rank {
        let p = norm(&mut (0..d_in).map(|i| a[at_left(i, r)]));
        let q = norm(&mut (0..d_out).map(|j| b[at_right(r, j)]));
        let scale = (q / p).sqrt();
        if !(scale.is_finite() && scale > 0.0) {
            continue;
        }
        (0..d_in).for_each(|i| a[at_left(i, r)] = (f64::from(a[at_left(i, r)]) * scale) as f32);
        (0..d_out).for_each(|j| b[at_right(r, j)] = (f64::from(b[at_right(r, j)]) / scale) as f32);
    }
    let like =
        |t: &Tensor, data: &[f32]| Tensor::from_slice(t.shape(), data).expect("as many numbers as before");
    vec![(module.left, like(left, &a)), (module.right, like(right, &b))]
}
