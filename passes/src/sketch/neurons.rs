//! Fewer hidden units between two products: `f(x U + b) V ≈ f(x U_S + b_S) M + c` for a set `S` of units.
//!
//! Between the products are operators that work element by element, so that a unit is a column of `U` and a row of `V`.
//! Units are chosen one by one, each as the one that lowers the error of the output most, by the covariance of their
//! activations; `M` is the least squares fit of what all of them gave, and `c` is what that leaves out of the mean output
//! (see [`margay_randnla::Subset`]). The result are the same operators, only smaller.
//!
//! ```text
//! graph @before(%x: f32[N, 32]) -> (y: f32[N, 16]) {
//!   %0 = const #5be1c0 : f32[32, 64]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 64]  // fc1
//!   %2 = const #77aa01 : f32[64]  // fc1.bias
//!   %3 = add %1, %2 : f32[N, 64]  // fc1/Add
//!   %4 = gelu %3 : f32[N, 64]  // act
//!   %5 = const #c2b3a4 : f32[64, 16]  // fc2.weight
//!   %6 = matmul %4, %5 : f32[N, 16]  // fc2
//!   return %6
//! }
//! graph @after(%x: f32[N, 32]) -> (y: f32[N, 16]) {
//!   %0 = const neurons.left(#5be1c0, #c2b3a4, units = 24) : f32[32, 24]  // fc1.weight left
//!   %1 = matmul %x, %0 : f32[N, 24]  // fc1 left
//!   %2 = const neurons.hidden(#77aa01, #5be1c0, #c2b3a4, units = 24) : f32[24]  // fc1.bias left
//!   %3 = add %1, %2 : f32[N, 24]  // fc1/Add left
//!   %4 = gelu %3 : f32[N, 24]  // act left
//!   %5 = const neurons.right(#5be1c0, #c2b3a4, units = 24) : f32[24, 16]  // fc2.weight right
//!   %6 = matmul %4, %5 : f32[N, 16]  // fc2 right
//!   return %6
//! }
//! ```
//!
//! Declines pairs with more hidden units than [`Gram::MOST_DENSE`], pairs whose hidden values something else reads, and hidden constants that are neither one number nor one per
//! unit. Without samples all units count as independent, of one variance.

use std::sync::Arc;

use margay_ir::{Graph, NodeId, Part, Value};
use margay_plan::Settings;
use margay_randnla::{Factors, Gram, Matrix, RandnlaError, Subset};
use margay_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::factors::{Found, contents, maps, numbers, own_bias, product};
use super::{
    ApplyError, Context, Factored, Fitted, Layer, Moments, Replacement, Scheme, SchemeFacts, Site, Stored,
    check_rank, layers, moments, rank_grid, reads,
};

/// Fewer hidden units.
#[derive(Clone, Copy, Debug, Default)]
pub struct NeuronsScheme;

/// What a plan says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NeuronsSettings {
    /// Hidden units that stay.
    units: usize,
}

/// Operators between the two products, at most.
const MOST_BETWEEN: usize = 8;

impl Scheme for NeuronsScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "neurons",
            only_by_name: None,
            is_storage: false,
            examples: &["units = 24"],
            check: reads::<NeuronsSettings>,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        let all = layers(g);
        all.iter().filter_map(|second| self.pair(g, &all, second)).collect()
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        let NeuronsSettings { units } = settings.read()?;
        let [_, second] = ends(g, site);
        check_rank(units, second.d_in)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        let (g, moments) = (context.graph, context.moments.map(|m| &*m[0]));
        let [first, second] = ends(g, context.site);
        let choose = || {
            let weight = second.matrix(g)?;
            let moment = match moments {
                Some(moments) => moments.gram().covariance()?,
                None => Matrix::from_fn(second.d_in, second.d_in, |i, j| if i == j { 1.0 } else { 0.0 }),
            };
            let outputs = context.metric.map(|m| m.whitening()).transpose()?;
            Subset::new(&moment, &weight, outputs.as_ref(), Moments::INPUTS.shrinkage)
        };
        let mean = moments.map(|m| m.gram().mean()).transpose()?;
        let (up, down) = (first.payload(g).key(), second.payload(g).key());
        Ok(Box::new(FittedNeurons {
            subset: context.decompositions.subsets.get(&context.site.nodes, context.seed, choose)?,
            new_biases: if mean.is_some() { second.without_bias(g) } else { 0 },
            mean,
            source: format!("{up}, {down}{}", moments::source(context)),
            units: second.d_in,
            each: first.d_in + second.d_out,
            d_out: second.d_out,
        }))
    }

    /// The second product, which is of full rank: the first one is part of what it reads.
    fn factors(&self, g: &Graph) -> Vec<Factored> {
        maps(g, second_product, |layer, biases| FullRank { layer, biases })
    }
}

impl NeuronsScheme {
    /// The site that ends at a layer, if all that lies between it and another one works element by element.
    fn pair(&self, g: &Graph, all: &[Layer], second: &Layer) -> Option<Site> {
        let [last] = second.nodes[..] else { return None };
        if !second.is_product() || second.d_in > Gram::MOST_DENSE {
            return None;
        }
        let nodes = chain(g, last, second.d_in)?;
        let first = all.iter().find(|l| l.nodes == [nodes[0]])?;
        (first.d_out == second.d_in).then(|| Site {
            name: format!("{}+{}", first.name, second.name),
            kind: "ffn",
            only_by_name: false,
            d_in: first.d_in,
            d_out: second.d_out,
            weights: vec![first.weight, second.weight],
            nodes,
            measures: vec![second.inputs(g)],
            samples: Vec::new(),
            results: vec![second.result(g, last)],
            schemes: vec![self.facts().name],
        })
    }
}

/// The nodes from a product with a constant to a node, if those between them, at least one, work unit by unit and nothing
/// else reads what they give.
fn chain(g: &Graph, last: NodeId, units: usize) -> Option<Vec<NodeId>> {
    let mut nodes = vec![last];
    while nodes.len() <= MOST_BETWEEN + 1 {
        let v = g.inputs_of(nodes[nodes.len() - 1]).into_iter().find(|v| g.constant(*v).is_none())?;
        g.sole_user(v)?;
        nodes.push(v.node);
        if Layer::at(g, v.node).is_some_and(|layer| layer.is_product()) {
            nodes.reverse();
            return (nodes.len() > 2).then_some(nodes);
        }
        if !between(g, v, units) {
            return None;
        }
    }
    None
}

/// The second product of a pair that was replaced.
fn second_product(g: &Graph, last: NodeId) -> Option<Found<Layer>> {
    let part = |n: &NodeId| g.node(*n).origin.part;
    let layer = product(g, last).filter(Layer::is_product)?;
    let nodes = chain(g, last, layer.d_in)?;
    let replaced = part(&last) == Some(Part::Right)
        && nodes[..nodes.len() - 1].iter().all(|n| part(n) == Some(Part::Left));
    replaced.then(|| Found {
        factors: vec![layer.weight.node],
        learn: vec![layer.weight.node],
        sizes: [layer.d_in, layer.d_in.min(layer.d_out), layer.d_out],
        input: layer.input(g, last),
        last,
        bias: own_bias(g, &layer, last),
        map: layer,
    })
}

/// One matrix, as a product with an identity.
#[derive(Clone, Debug)]
struct FullRank {
    layer: Layer,
    biases: Vec<NodeId>,
}

impl Stored for FullRank {
    fn read(&self, g: &Graph) -> Factors {
        let matrix = self.layer.matrix(g).expect("a weight fills its shape");
        let rank = matrix.rows().min(matrix.columns());
        let identity = Matrix::from_fn(rank, rank, |i, j| if i == j { 1.0 } else { 0.0 });
        let bias = self.biases.first().map(|n| numbers(g, *n));
        match matrix.rows() == rank {
            true => Factors { left: identity, right: matrix, bias },
            false => Factors { left: matrix, right: identity, bias },
        }
    }

    fn write(&self, g: &Graph, factors: &Factors) -> Option<Vec<(NodeId, Tensor)>> {
        let matrix = factors.left.product(&factors.right).ok()?;
        let mut new = vec![contents(g, self.layer.weight.node, &self.layer.factor(&matrix))];
        if let Some(bias) = &factors.bias {
            new.extend(self.biases.iter().map(|n| contents(g, *n, bias)));
        }
        Some(new)
    }

    /// There is one factor only.
    fn can_be_scaled(&self) -> bool {
        false
    }
}

/// Whether a value follows from one other value unit by unit.
fn between(g: &Graph, v: Value, units: usize) -> bool {
    let operands = g.inputs_of(v.node);
    let (constants, values): (Vec<Value>, Vec<Value>) =
        operands.into_iter().partition(|x| g.constant(*x).is_some());
    let per_unit = |x: &Value| {
        let tensor = g.constant(*x).expect("only constants are here").tensor();
        let one_each = tensor.shape().last() == Some(&units) && tensor.len() == units;
        tensor.len() == 1 || one_each && tensor.dtype() == DType::F32
    };
    g.op(v.node).facts().elementwise.is_some()
        && matches!(values[..], [x] if g.ty(x) == g.ty(v))
        && constants.iter().all(per_unit)
}

/// The two layers of a site.
fn ends(g: &Graph, site: &Site) -> [Layer; 2] {
    let at =
        |n: Option<&NodeId>| n.and_then(|n| Layer::at(g, *n)).expect("a pair begins and ends with products");
    [at(site.nodes.first()), at(site.nodes.last())]
}

/// The order of the units, with the moments of what they give.
struct FittedNeurons {
    subset: Arc<Subset>,
    /// The mean of each unit, where there were samples.
    mean: Option<Vec<f64>>,
    /// What the contents of constants depend on, but for the number of units.
    source: String,
    new_biases: usize,
    units: usize,
    /// Numbers of the two weights for each unit.
    each: usize,
    d_out: usize,
}

impl FittedNeurons {
    /// The most units that take at most so many numbers.
    fn most(&self, numbers: usize) -> usize {
        numbers.saturating_sub(self.new_biases * self.d_out) / self.each
    }

    /// All units are offered too: the result is then the same.
    fn units(&self, settings: &Settings) -> Result<usize, String> {
        let NeuronsSettings { units } = settings.read()?;
        check_rank(units, self.units)?;
        Ok(units)
    }

    /// The units that stay, the second weight for them, and what to add to the bias.
    fn chosen(&self, units: usize, weight: &Matrix) -> Result<Chosen, RandnlaError> {
        let (chosen, refit) = (self.subset.coordinates(units)?, self.subset.weight(units)?);
        let correction = self.mean.as_ref().map(|mean| {
            let all = |j: usize| mean.iter().enumerate().map(|(i, m)| m * weight.at(i, j)).sum::<f64>();
            let kept =
                |j: usize| chosen.iter().enumerate().map(|(i, at)| mean[*at] * refit.at(i, j)).sum::<f64>();
            (0..self.d_out).map(|j| (all(j) - kept(j)) as f32).collect()
        });
        Ok(Chosen { units: chosen, refit, correction })
    }
}

/// What stays of a site.
struct Chosen {
    units: Vec<usize>,
    refit: Matrix,
    correction: Option<Vec<f32>>,
}

/// The chosen ones of numbers that lie one per unit along the last axis.
fn picked(g: &Graph, v: Value, chosen: &Chosen) -> Vec<f32> {
    let tensor = g.constant(v).expect("only constants are picked from").tensor();
    let numbers = tensor.to_vec::<f32>().expect("hidden constants are f32");
    let all = tensor.shape().last().copied().unwrap_or(1).max(1);
    numbers.chunks_exact(all).flat_map(|row| chosen.units.iter().map(|&u| row[u])).collect()
}

impl Fitted for FittedNeurons {
    fn candidates(&self) -> Vec<Settings> {
        let most = self.most((self.units * self.each).saturating_sub(1));
        rank_grid(most).map(|units| Settings::write(&NeuronsSettings { units })).collect()
    }

    fn probe(&self) -> Option<Settings> {
        let units = self.most(self.units * self.each / 2);
        (units > 0).then(|| Settings::write(&NeuronsSettings { units }))
    }

    fn squared_error(&self, settings: &Settings) -> Result<f64, String> {
        let (errors, units) = (self.subset.squared_errors(), self.units(settings)?);
        Ok(if errors[0] > 0.0 { errors[units] / errors[0] } else { 0.0 })
    }

    fn replace(
        &self,
        work: &mut Replacement<'_>,
        site: &Site,
        settings: &Settings,
    ) -> Result<(), ApplyError> {
        let units = self.units(settings).map_err(ApplyError::Settings)?;
        let g = work.graph;
        let [first, second] = ends(g, site);
        let chosen = work.computed(|| self.chosen(units, &second.matrix(g)?))?;
        let chosen = chosen.as_ref();
        let name = |part: &str| format!("neurons.{part}({}, units = {units})", self.source);
        let part = |n: NodeId, part| g.node(n).origin.part(part);
        let (up, last) = (site.nodes[0], site.nodes[site.nodes.len() - 1]);
        let left = chosen.map(|c| picked(g, first.weight, c));
        let origin = part(first.weight.node, Part::Left);
        let left = work.constant(&name("left"), &[first.d_in, units], left, origin)?;
        let x = work.input(up);
        let mut hidden = work.add(g.op(up).clone(), &[x, left], part(up, Part::Left))?;
        for &n in &site.nodes[1..site.nodes.len() - 1] {
            let mut operands = Vec::new();
            for v in g.inputs_of(n) {
                let Some(payload) = g.constant(v) else {
                    operands.push(hidden);
                    continue;
                };
                let mut shape = payload.tensor().shape().to_vec();
                if payload.tensor().len() > 1 {
                    shape.iter_mut().last().into_iter().for_each(|extent| *extent = units);
                    let contents = chosen.map(|c| picked(g, v, c));
                    let source = format!("{}, {}", payload.key(), self.source);
                    let name = format!("neurons.hidden({source}, units = {units})");
                    operands.push(work.constant(&name, &shape, contents, part(v.node, Part::Left))?);
                } else {
                    operands.push(v);
                }
            }
            hidden = work.add(g.op(n).clone(), &operands, part(n, Part::Left))?;
        }
        let right = chosen.map(|c| c.refit.to_row_major());
        let origin = part(second.weight.node, Part::Right);
        let right = work.constant(&name("right"), &[units, second.d_out], right, origin)?;
        let result = work.add(g.op(last).clone(), &[hidden, right], part(last, Part::Right))?;
        match self.mean {
            Some(_) => {
                let correction = chosen.and_then(|c| c.correction.as_deref());
                second.replace_corrected(work, last, result, (&name("bias"), correction))?;
            }
            None => work.replace(last.into(), result),
        }
        Ok(())
    }
}
