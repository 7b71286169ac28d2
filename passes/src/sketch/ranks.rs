//! Pairs of factors whose rank changes while they are trained.
//!
//! Only pairs that margay put into the graph count: their nodes have the parts of factors. Two thin layers of the model's own
//! are never one of them.

use margay_ir::{Graph, Part, Value};
use margay_randnla::{Matrix, RandnlaError};
use margay_tensor::Tensor;

use super::{Layer, Rows, factors};

/// Two factors in place of one weight: `x A B`, with `A` of `[d_in, rank]` and `B` of `[rank, d_out]` as matrices.
#[derive(Clone, Debug)]
pub struct FactorPair {
    /// The name in the model of the first node.
    pub name: String,
    /// Products with `A`, or convolutions.
    pub left: Layer,
    /// Products with `B` behind them, or 1x1 convolutions.
    pub right: Layer,
}

/// The pairs of a graph, in topological order of their first places.
pub fn factor_pairs(g: &Graph) -> Vec<FactorPair> {
    let mut pairs: Vec<FactorPair> = Vec::new();
    for second in g.order() {
        let Some((left, right)) = factors::pair_at(g, second).map(|found| found.map) else { continue };
        if g.node(second).origin.part != Some(Part::Right) {
            continue;
        }
        match pairs.iter_mut().find(|p| p.left.weight == left.weight && p.right.weight == right.weight) {
            Some(known) => {
                known.left.nodes.extend(left.nodes);
                known.right.nodes.extend(right.nodes);
            }
            None => pairs.push(FactorPair { name: left.name.clone(), left, right }),
        }
    }
    // A factor that somebody else reads too has to keep its shape.
    pairs.retain(|pair| {
        let alone = |layer: &Layer| g.users_of(layer.weight).len() == layer.nodes.len();
        alone(&pair.left) && alone(&pair.right)
    });
    pairs
}

impl FactorPair {
    /// Columns of `A`.
    pub fn rank(&self) -> usize {
        self.left.d_out
    }

    /// Numbers that one more column of `A` and row of `B` take.
    pub fn numbers_per_rank(&self) -> usize {
        self.left.d_in + self.right.d_out
    }

    /// Numbers of the weight that the pair stands in for.
    pub fn dense_numbers(&self) -> usize {
        self.left.d_in * self.right.d_out
    }

    /// The rows `x A` of all places.
    pub fn thin(&self, g: &Graph) -> Vec<Rows> {
        self.right.inputs(g)
    }

    /// What the places compute, without a bias.
    pub fn results(&self) -> Vec<Value> {
        self.right.nodes.iter().map(|n| (*n).into()).collect()
    }

    /// `A`, or numbers that lie as those of `A` do, as `[d_in, rank]`.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] for another number of them.
    pub fn left_matrix(&self, values: &[f32]) -> Result<Matrix, RandnlaError> {
        self.left.as_matrix(values)
    }

    /// `B`, or numbers that lie as those of `B` do, as `[rank, d_out]`.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] for another number of them.
    pub fn right_matrix(&self, values: &[f32]) -> Result<Matrix, RandnlaError> {
        self.right.as_matrix(values)
    }

    /// A matrix `[d_in, k]` of any rank as it lies in the graph in place of `A`.
    ///
    /// # Panics
    /// For another number of rows.
    pub fn left_tensor(&self, matrix: &Matrix) -> Tensor {
        let [shape, _] = self.left.factor_shapes(matrix.columns());
        Tensor::from_slice(&shape, &self.left.factor(matrix)).expect("a factor fills its shape")
    }

    /// A matrix `[k, d_out]` of any rank as it lies in the graph in place of `B`.
    ///
    /// # Panics
    /// For another number of columns.
    pub fn right_tensor(&self, matrix: &Matrix) -> Tensor {
        let shape = self.left.right_shape(matrix.rows(), self.right.d_out);
        Tensor::from_slice(&shape, &self.right.factor(matrix)).expect("a factor fills its shape")
    }
}
