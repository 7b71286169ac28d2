//! The sketches in a graph, as far as that can be told from the graph alone.

use margay_ir::Graph;
use margay_passes::sketch::SCHEMES;
use serde::Serialize;

/// A layer that a scheme has replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FoundSketch {
    /// Its name in the model.
    pub name: String,
    /// The scheme that gives this form. Products with random signs have that of `lowrank` once they are folded.
    pub scheme: &'static str,
    /// Rows of the weight as a matrix.
    pub d_in: usize,
    /// Columns of the weight as a matrix.
    pub d_out: usize,
    /// The size of the sketch.
    pub rank: usize,
    /// Numbers that it stores.
    pub stored: usize,
}

/// What schemes have put into a graph, in the order of the schemes.
pub fn found_sketches(g: &Graph) -> Vec<FoundSketch> {
    let elements = |n: &margay_ir::NodeId| g.constant((*n).into()).map_or(0, |p| p.tensor().len());
    let of = |scheme: &'static dyn margay_passes::sketch::Scheme| {
        scheme.factors(g).into_iter().map(move |f| FoundSketch {
            scheme: scheme.facts().name,
            stored: f.constants.iter().map(elements).sum(),
            name: f.name,
            d_in: f.d_in,
            d_out: f.d_out,
            rank: f.rank,
        })
    };
    SCHEMES.iter().flat_map(|s| of(*s)).collect()
}
