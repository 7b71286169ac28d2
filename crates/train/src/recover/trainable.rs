//! Which constants of a sketched graph learn, and how factors are brought to one scale before they do.

use margay_ir::{Graph, NodeId, Op};
use margay_passes::parameter_names;
pub use margay_passes::sketch::factored;
use margay_passes::sketch::{Factored, learned};
use margay_randnla::{Factors, Matrix};
use margay_tensor::{DType, Tensor};

/// Which constants learn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Train {
    /// Factors of sketched layers, and the biases behind them; weights and biases of the products around attention in another
    /// form.
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
    let sketch = learned(g);
    let learns = |n: &NodeId| {
        let Op::Const(c) = g.op(*n) else { return false };
        let tensor = c.payload.tensor();
        if tensor.dtype() != DType::F32 || tensor.is_empty() {
            return false;
        }
        let users = g.users_of((*n).into());
        let normalizes = users.iter().any(|(user, _)| matches!(g.op(*user), Op::LayerNorm(_)));
        let looked_up = users.iter().any(|(user, _)| matches!(g.op(*user), Op::Gather(_) | Op::Slice(_)));
        match train {
            _ if sketch.contains(n) => true,
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
    let scaled = |f: &Factored| f.stored.write(g, &balance(f.stored.read(g))).unwrap_or_default();
    named(g, factored(g).iter().filter(|f| f.stored.can_be_scaled()).flat_map(scaled).collect())
}

fn balance(factors: Factors) -> Factors {
    let Factors { left, right, .. } = factors;
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x.powi(2)).sum::<f64>().sqrt();
    let scale = |r: usize| {
        let p = norm(&mut (0..left.rows()).map(|i| left.at(i, r)));
        let q = norm(&mut (0..right.columns()).map(|j| right.at(r, j)));
        Some((q / p).sqrt()).filter(|s| s.is_finite() && *s > 0.0).unwrap_or(1.0)
    };
    let scales: Vec<f64> = (0..left.columns()).map(scale).collect();
    Factors {
        left: Matrix::from_fn(left.rows(), left.columns(), |i, r| left.at(i, r) * scales[r]),
        right: Matrix::from_fn(right.rows(), right.columns(), |r, j| right.at(r, j) / scales[r]),
        bias: None,
    }
}
