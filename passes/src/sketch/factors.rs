//! What schemes have put into a graph: linear maps of limited rank in place of weights, for those who train them.
//!
//! In a graph that margay made, parts of origins tell. In any other, factors are found by structure: two products with
//! constants that follow each other, the thing between them narrower than what goes in and what comes out, and smaller
//! together than one product would be. A convolution followed by one of 1x1 counts as well.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use margay_ir::ops::{Conv, ImageLayout};
use margay_ir::{Graph, NodeId, Op, Part, Value};
use margay_randnla::Factors;
use margay_tensor::{DType, Tensor};

use super::projections::projections;
use super::{Layer, Rows, SCHEMES};

/// A linear map `x A B + bias` that stands in for one weight, with every place that computes it.
#[derive(Clone, Debug)]
pub struct Factored {
    /// The name in the model of its first place.
    pub name: String,
    /// Length of the rows that go in: channels times taps, for a convolution.
    pub d_in: usize,
    /// The greatest rank it can have.
    pub rank: usize,
    /// Length of the rows that come out.
    pub d_out: usize,
    /// The places, in topological order.
    pub places: Vec<Place>,
    /// The constants that learn: factors, then the biases of the places.
    pub constants: Vec<NodeId>,
    /// How its numbers are stored.
    pub stored: Arc<dyn Stored>,
}

/// One place that computes a linear map.
#[derive(Clone, Debug)]
pub struct Place {
    /// The rows that go in.
    pub input: Rows,
    /// What the place computes, bias included.
    pub output: Value,
}

/// How the numbers of a linear map lie in the constants of a graph.
pub trait Stored: Debug + Send + Sync {
    /// The map: `[d_in, k]` and `[k, d_out]`, and the bias of its first place.
    fn read(&self, g: &Graph) -> Factors;

    /// New contents of its constants for another map of the same rank; `None` for one that cannot be stored there.
    fn write(&self, g: &Graph, factors: &Factors) -> Option<Vec<(NodeId, Tensor)>>;

    /// Whether columns of the left factor may be scaled against rows of the right one.
    fn can_be_scaled(&self) -> bool;
}

/// The constants of a graph that a scheme put there and that training moves, in the order of the graph: the
/// [`constants`](Factored::constants) of what schemes find, and all that have the part of a factor or a corrected bias. Forms of
/// attention have no factors: the products around them learn, those of queries, keys, values and of the result.
pub fn learned(g: &Graph) -> Vec<NodeId> {
    let factors = factored(g).into_iter().flat_map(|factored| factored.constants);
    let found: Vec<NodeId> = factors.chain(projections(g)).collect();
    let learns = |n: &NodeId| {
        let part = matches!(g.node(*n).origin.part, Some(Part::Left | Part::Right | Part::Bias));
        let tensor = g.constant((*n).into()).map(margay_ir::Payload::tensor);
        let numbers = tensor.is_some_and(|t| t.dtype() == DType::F32 && !t.is_empty());
        numbers && (part || found.contains(n))
    };
    g.order().into_iter().filter(learns).collect()
}

/// What schemes have put into a graph, in the order of the schemes.
pub fn factored(g: &Graph) -> Vec<Factored> {
    SCHEMES.iter().flat_map(|s| s.factors(g)).collect()
}

/// New contents for a constant, as many numbers as before.
pub(super) fn contents(g: &Graph, n: NodeId, data: &[f32]) -> (NodeId, Tensor) {
    let shape = g.constant(n.into()).expect("factors are constants").tensor().shape();
    (n, Tensor::from_slice(shape, data).expect("as many numbers as before"))
}

/// The numbers of a constant.
pub(super) fn numbers(g: &Graph, n: NodeId) -> Vec<f32> {
    let tensor = g.constant(n.into()).expect("factors are constants").tensor();
    tensor.to_vec().expect("factors are f32")
}

/// Two products or convolutions with one constant each.
#[derive(Clone, Debug)]
struct TwoProducts {
    /// With its own weight, that is the left factor.
    left: Layer,
    right: Layer,
    /// Constants that are added behind the places.
    biases: Vec<NodeId>,
}

impl Stored for TwoProducts {
    fn read(&self, g: &Graph) -> Factors {
        let matrix = |layer: &Layer| layer.matrix(g).expect("a weight fills its shape");
        let bias = self.biases.first().map(|n| numbers(g, *n));
        Factors { left: matrix(&self.left), right: matrix(&self.right), bias }
    }

    fn write(&self, g: &Graph, factors: &Factors) -> Option<Vec<(NodeId, Tensor)>> {
        let put = |layer: &Layer, m| contents(g, layer.weight.node, &layer.factor(m));
        let mut new = vec![put(&self.left, &factors.left), put(&self.right, &factors.right)];
        if let Some(bias) = &factors.bias {
            new.extend(self.biases.iter().map(|n| contents(g, *n, bias)));
        }
        Some(new)
    }

    fn can_be_scaled(&self) -> bool {
        true
    }
}

/// One place where a graph computes a linear map that a scheme may have put there.
pub(super) struct Found<S> {
    /// What the map is stored in, the same at all of its places but for the nodes.
    pub(super) map: S,
    /// The constants that belong to no other map.
    pub(super) factors: Vec<NodeId>,
    /// Of these, the ones that learn.
    pub(super) learn: Vec<NodeId>,
    /// Length of the rows that go in, the greatest rank, and length of the rows that come out.
    pub(super) sizes: [usize; 3],
    /// The rows that go in.
    pub(super) input: Rows,
    /// The node that computes it, without a bias.
    pub(super) last: NodeId,
    /// The addition of a constant behind it with one number per output, and that constant.
    pub(super) bias: Option<(NodeId, NodeId)>,
}

/// The bias of a layer behind a node, if nothing else reads the constant.
pub(super) fn own_bias(g: &Graph, layer: &Layer, n: NodeId) -> Option<(NodeId, NodeId)> {
    let bias = layer.bias(g, n)?;
    let constant = Value::from(bias.constant);
    (g.users_of(constant).len() == 1 && !g.is_output(constant)).then_some((bias.add, bias.constant))
}

/// The maps of a graph, in topological order, from `at`, which knows the one that ends at a node. Left out are maps with
/// factors that something else reads too, and those some of whose places have a bias and others have none. `stored` is
/// given the constants that are added behind the places.
pub(super) fn maps<S, T: Stored + 'static>(
    g: &Graph,
    at: impl Fn(&Graph, NodeId) -> Option<Found<S>>,
    stored: impl Fn(S, Vec<NodeId>) -> T,
) -> Vec<Factored> {
    let mut found: Vec<Vec<Found<S>>> = Vec::new();
    let mut by_factors: BTreeMap<Vec<NodeId>, usize> = BTreeMap::new();
    for place in g.order().into_iter().filter_map(|n| at(g, n)) {
        let next = found.len();
        match *by_factors.entry(place.factors.clone()).or_insert(next) {
            i if i == next => found.push(vec![place]),
            i => found[i].push(place),
        }
    }
    found.retain(|places| {
        let alone = |n: &NodeId| g.users_of((*n).into()).len() == places.len() && !g.is_output((*n).into());
        let biased = places.iter().filter(|p| p.bias.is_some()).count();
        places[0].factors.iter().all(alone) && (biased == 0 || biased == places.len())
    });
    let factored = |places: Vec<Found<S>>| {
        let output = |p: &Found<S>| p.bias.map_or(p.last, |(add, _)| add);
        let place = |p: &Found<S>| Place { input: p.input.clone(), output: output(p).into() };
        let biases: Vec<NodeId> =
            places.iter().filter_map(|p| p.bias).map(|(_, constant)| constant).collect();
        let name = match g.node(places[0].last).origin.name() {
            "" => g.node(output(&places[0])).origin.name().to_owned(),
            name => name.to_owned(),
        };
        let constants = places[0].learn.iter().chain(&biases).copied().collect();
        let ([d_in, rank, d_out], positions) = (places[0].sizes, places.iter().map(place).collect());
        let map = places.into_iter().next().expect("a map has a place").map;
        Factored {
            name,
            d_in,
            rank,
            d_out,
            places: positions,
            constants,
            stored: Arc::new(stored(map, biases)),
        }
    };
    found.into_iter().map(factored).collect()
}

/// What of a graph are two factors.
pub(super) fn two_products(g: &Graph) -> Vec<Factored> {
    maps(g, pair_at, |(left, right), biases| TwoProducts { left, right, biases })
}

/// The two products of which a node is the second.
pub(super) fn pair_at(g: &Graph, second: NodeId) -> Option<Found<(Layer, Layer)>> {
    let right = product(g, second)?;
    let thin = g.inputs_of(second)[0];
    let first = thin.node;
    let left = product(g, first)?;
    let pointwise = |op: &Op| !matches!(op, Op::Conv(c) if *c != Conv::pointwise_over(c.strides.len()));
    // The second kernel has as many channels as the first one has filters: it is 1x1 where its rows are no longer.
    let fits = left.is_product() == right.is_product() && right.d_in == left.d_out;
    if !fits || g.sole_user(thin) != Some(second) || !pointwise(g.op(second)) {
        return None;
    }
    let (d_in, rank, d_out) = (left.d_in, left.d_out, right.d_out);
    let part = |n: NodeId| g.node(n).origin.part;
    let marked = part(first) == Some(Part::Left) && part(second) == Some(Part::Right);
    let thinner = rank < d_in.min(d_out) && rank * (d_in + d_out) < d_in * d_out;
    let unmarked = part(first).is_none() && part(second).is_none();
    if !(marked || unmarked && thinner) {
        return None;
    }
    let factors = vec![left.weight.node, right.weight.node];
    Some(Found {
        factors: factors.clone(),
        learn: factors,
        sizes: [d_in, rank, d_out],
        input: left.input(g, first),
        last: second,
        bias: own_bias(g, &right, second),
        map: (left, right),
    })
}

/// A product with a constant of f32, or a convolution of one group with the channels second.
pub(super) fn product(g: &Graph, n: NodeId) -> Option<Layer> {
    match g.op(n) {
        Op::Conv(c) if c.layout != ImageLayout::Nchw || c.groups > 1 => None,
        _ => Layer::at(g, n),
    }
}
