//! The factors of a sketched graph, and what they stand in for.
//!
//! In a graph that margay made, parts of origins tell. In any other they are found by structure: two products with
//! constants that follow each other, the thing between them narrower than what goes in and what comes out, and smaller
//! together than one product would be. A convolution followed by one of 1x1 counts as well.

use std::collections::BTreeMap;

use margay_ir::ops::{Conv, ImageLayout};
use margay_ir::{Graph, NodeId, Op, Part, Value};
use margay_passes::sketch::ModuleKind;
use margay_tensor::DType;

/// Two factors that stand in for one weight, with every place that reads them.
#[derive(Clone, Debug)]
pub struct FactoredModule {
    /// The name in the model of its first place.
    pub name: String,
    /// What the places are.
    pub kind: ModuleKind,
    /// The constant on the side of the input.
    pub left: NodeId,
    /// The constant on the side of the output.
    pub right: NodeId,
    /// Length of the rows that go in: channels times taps, for a convolution.
    pub d_in: usize,
    /// Length of the rows between the factors.
    pub rank: usize,
    /// Length of the rows that come out.
    pub d_out: usize,
    /// The places, in topological order.
    pub places: Vec<Place>,
}

/// One place that reads the factors of a module.
#[derive(Clone, Debug)]
pub struct Place {
    /// The product with the left factor.
    pub first: NodeId,
    /// The product with the right factor.
    pub second: NodeId,
    /// The addition of a constant behind it with one number per output, and that constant.
    pub bias: Option<(NodeId, NodeId)>,
}

impl FactoredModule {
    /// The constant on the side of the input, as a value.
    pub fn left_value(&self) -> Value {
        self.left.into()
    }
}

impl Place {
    /// What the place computes, bias included.
    pub fn output(&self) -> Value {
        self.bias.map_or(self.second, |(add, _)| add).into()
    }
}

/// The modules of a graph that consist of two factors, in topological order. Left out are factors that something else
/// reads too, and modules some of whose places have a bias and others have none.
pub fn factored_modules(g: &Graph) -> Vec<FactoredModule> {
    let mut found: Vec<FactoredModule> = Vec::new();
    let mut by_factors: BTreeMap<(NodeId, NodeId), usize> = BTreeMap::new();
    for second in g.order() {
        let Some(module) = factored_at(g, second) else { continue };
        match by_factors.get(&(module.left, module.right)) {
            Some(&i) => found[i].places.extend(module.places),
            None => {
                by_factors.insert((module.left, module.right), found.len());
                found.push(module);
            }
        }
    }
    found.retain(|m| {
        let alone = |n: NodeId| g.users_of(n.into()).len() == m.places.len() && !g.is_output(n.into());
        let biased = m.places.iter().filter(|p| p.bias.is_some()).count();
        alone(m.left) && alone(m.right) && (biased == 0 || biased == m.places.len())
    });
    found
}

/// The module whose right product is a node, with that place alone.
fn factored_at(g: &Graph, second: NodeId) -> Option<FactoredModule> {
    let (kind, right) = product(g, second)?;
    let thin = g.inputs_of(second)[0];
    let (first, left) = (thin.node, g.inputs_of(thin.node).get(1)?.node);
    let pointwise = |op: &Op| !matches!(op, Op::Conv(c) if *c != Conv::pointwise());
    if product(g, first)? != (kind, left) || g.sole_user(thin) != Some(second) || !pointwise(g.op(second)) {
        return None;
    }
    let extents = |n: NodeId| g.ty(n.into()).extents();
    let (d_in, rank, d_out) = match (kind, extents(left)?.as_slice(), extents(right)?.as_slice()) {
        (ModuleKind::Linear, &[d_in, rank], &[inner, d_out]) if inner == rank => (d_in, rank, d_out),
        (ModuleKind::Conv, &[rank, c, h, w], &[d_out, inner, 1, 1]) if inner == rank => {
            (c * h * w, rank, d_out)
        }
        _ => return None,
    };
    let part = |n: NodeId| g.node(n).origin.part;
    let marked = part(first) == Some(Part::Left) && part(second) == Some(Part::Right);
    let thinner = rank < d_in.min(d_out) && rank * (d_in + d_out) < d_in * d_out;
    let unmarked = part(first).is_none() && part(second).is_none();
    if rank == 0 || !(marked || unmarked && thinner) {
        return None;
    }
    let bias = bias_behind(g, kind, second, d_out);
    let place = Place { first, second, bias };
    let name = match g.node(second).origin.name() {
        "" => g.node(place.output().node).origin.name().to_owned(),
        name => name.to_owned(),
    };
    Some(FactoredModule { name, kind, left, right, d_in, rank, d_out, places: vec![place] })
}

/// The kind of a product with a constant of f32, and the constant.
fn product(g: &Graph, n: NodeId) -> Option<(ModuleKind, NodeId)> {
    let kind = match g.op(n) {
        Op::MatMul(_) => ModuleKind::Linear,
        Op::Conv(c) if c.groups == 1 && c.layout == ImageLayout::Nchw => ModuleKind::Conv,
        _ => return None,
    };
    let weight = *g.inputs_of(n).get(1)?;
    let tensor = g.constant(weight)?.tensor();
    (tensor.dtype() == DType::F32).then_some((kind, weight.node))
}

/// The addition of a constant with one number per output behind a node that nobody else reads.
fn bias_behind(g: &Graph, kind: ModuleKind, n: NodeId, d_out: usize) -> Option<(NodeId, NodeId)> {
    let add = g.sole_user(n.into())?;
    let Op::Add(_) = g.op(add) else { return None };
    let bias = g.inputs_of(add).into_iter().find(|v| v.node != n)?;
    let tensor = g.constant(bias)?.tensor();
    let result = g.ty(n.into());
    let axis = match kind {
        ModuleKind::Linear => result.ndim() - 1,
        ModuleKind::Conv => 1,
    };
    let added = result.ndim().checked_sub(tensor.shape().len())?;
    let one_each = tensor.shape().iter().enumerate().all(|(i, &d)| d == 1 || i + added == axis);
    let alone = g.users_of(bias).len() == 1 && !g.is_output(bias);
    (tensor.len() == d_out && tensor.dtype() == DType::F32 && one_each && alone && g.ty(add.into()) == result)
        .then_some((add, bias.node))
}
