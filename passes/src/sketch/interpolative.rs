//! Low rank without its redundancy, an interpolative decomposition: `x W ≈ (x[pivots] + x[rest] T) C` or
//! `(x W)[pivots] ≈ x C`, `(x W)[rest] ≈ x C T`.
//!
//! The product is that of `lowrank` at the same rank `k`. In this gauge a `k x k` block of a factor is the identity (see
//! [`margay_randnla::IdentityGauge`]), which leaves `k (d_in + d_out - k)` numbers and as many multiplications, and costs a
//! gather. Pivots are inputs of a product that is not wider than long, else outputs; of a convolution they are channels of
//! the result, of each group by itself where there are groups.
//!
//! ```text
//! graph @before(%x: f32[N, 32]) -> (y: f32[N, 64]) {
//!   %0 = const #5be1c0 : f32[32, 64]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 64]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 32]) -> (y: f32[N, 64]) {
//!   %0 = const interpolative.right(#5be1c0, k = 8) : f32[8, 64]  // fc1.weight right
//!   %1 = const interpolative.left(#5be1c0, k = 8) : f32[24, 8]  // fc1.weight left
//!   %2 = const interpolative.pivots(#5be1c0, k = 8) : i64[8]  // fc1.weight left
//!   %3 = const interpolative.rest(#5be1c0, k = 8) : i64[24]  // fc1.weight left
//!   %4 = gather %x, %2 {axis = 1} : f32[N, 8]  // fc1/MatMul left
//!   %5 = gather %x, %3 {axis = 1} : f32[N, 24]  // fc1/MatMul left
//!   %6 = matmul %5, %1 : f32[N, 8]  // fc1/MatMul left
//!   %7 = add %6, %4 : f32[N, 8]  // fc1/MatMul left
//!   %8 = matmul %7, %0 : f32[N, 64]  // fc1/MatMul right
//!   return %8
//! }
//! ```

use margay_ir::ops::{Add, Concat, Conv, Gather};
use margay_ir::{Graph, NodeId, Op, Part, Value};
use margay_plan::Settings;
use margay_randnla::{Factors, IdentityGauge, Matrix, RandnlaError, Side};
use margay_tensor::Tensor;

use super::factors::{Found, contents, maps, numbers, own_bias, product};
use super::lowrank::{FittedLowRank, RankSettings, correction};
use super::{
    ApplyError, Context, Factored, Fitted, Layer, Replacement, RowKind, Rows, Scheme, SchemeFacts, Site,
    Stored, layers,
};

/// Low-rank factors of which one holds an identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct InterpolativeScheme;

impl Scheme for InterpolativeScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "interpolative",
            only_by_name: None,
            is_storage: false,
            examples: &["rank = 8"],
            check: RankSettings::check,
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        layers(g).iter().map(|layer| layer.site(g, self.facts().name)).collect()
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        RankSettings::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        let layer = Layer::of(context.graph, context.site);
        let input = layer.is_product() && layer.d_in <= layer.d_out;
        let side = if input { Side::Input } else { Side::Output };
        Ok(Box::new(FittedInterpolative { lowrank: FittedLowRank::new(context)?, side }))
    }

    fn factors(&self, g: &Graph) -> Vec<Factored> {
        maps(
            g,
            |g, n| with_inputs(g, n).or_else(|| with_outputs(g, n)),
            |map, biases| Gauged { biases, ..map },
        )
    }
}

/// The decomposition of a layer's weight, in another gauge.
struct FittedInterpolative {
    lowrank: FittedLowRank,
    side: Side,
}

impl FittedInterpolative {
    /// Inputs or outputs of a group: what pivots are chosen among.
    fn coordinates(&self) -> usize {
        match self.side {
            Side::Input => self.lowrank.d_in,
            Side::Output => self.lowrank.outputs,
        }
    }

    /// Numbers of four bytes; a position counts as two.
    fn numbers(&self, rank: usize) -> usize {
        let FittedLowRank { d_in, outputs, new_biases, .. } = self.lowrank;
        let each = rank * (d_in + outputs - rank) + 2 * self.coordinates();
        self.lowrank.decompositions.len() * each + new_biases * self.lowrank.d_out()
    }

    /// The name of a derived constant.
    fn derivation(&self, part: &str, rank: usize) -> String {
        format!("interpolative.{part}({})", self.lowrank.source(rank))
    }
}

/// The constants that stand in for a weight.
struct Constants {
    /// \[d_in, rank\] or, behind it, \[rank, d_out\].
    core: Value,
    /// Absent where every coordinate is a pivot.
    others: Option<Others>,
}

/// The coordinates that are computed from pivots.
struct Others {
    coefficients: Value,
    /// With pivots among the inputs: the pivots, and the other inputs. Among the outputs: where each output lies once the
    /// others follow the pivots.
    positions: Vec<Value>,
}

impl FittedInterpolative {
    fn constants(
        &self,
        work: &mut Replacement<'_>,
        layer: &Layer,
        rank: usize,
        gauges: Option<&[IdentityGauge]>,
    ) -> Result<Constants, ApplyError> {
        let g = work.graph;
        let origin = |part| g.node(layer.weight.node).origin.part(part);
        let rest = self.coordinates() - rank;
        let (core, others) = match self.side {
            Side::Input => {
                let shapes = (layer.right_shape(rank, layer.outputs()), layer.right_shape(rest, rank));
                ((Part::Right, shapes.0), (Part::Left, shapes.1))
            }
            Side::Output => {
                let [shape, _] = layer.factor_shapes(rank);
                ((Part::Left, shape), (Part::Right, layer.right_shape(rank, rest)))
            }
        };
        let mut factor = |(part, shape): (Part, Vec<usize>), matrix: fn(&IdentityGauge) -> &Matrix| {
            let values = gauges.map(|all| all.iter().flat_map(|g| layer.factor(matrix(g))).collect());
            work.constant(&self.derivation(part.name(), rank), &shape, values, origin(part))
        };
        let core = factor(core, |gauge| &gauge.core)?;
        if rest == 0 {
            return Ok(Constants { core, others: None });
        }
        let part = others.0;
        let coefficients = factor(others, |gauge| &gauge.coefficients)?;
        let lists = match self.side {
            Side::Input => vec![
                ("pivots", rank, gauges.map(|all| all[0].pivots.clone())),
                ("rest", rest, gauges.map(|all| all[0].rest.clone())),
            ],
            Side::Output => vec![("order", layer.d_out, gauges.map(order))],
        };
        let mut positions = Vec::new();
        for (name, length, list) in lists {
            let name = self.derivation(name, rank);
            positions.push(work.positions(&name, length, list.as_deref(), origin(part))?);
        }
        Ok(Constants { core, others: Some(Others { coefficients, positions }) })
    }

    /// What computes a node, without its bias.
    fn product(
        &self,
        work: &mut Replacement<'_>,
        layer: &Layer,
        n: NodeId,
        Constants { core, others }: &Constants,
    ) -> Result<Value, ApplyError> {
        let g = work.graph;
        let part = |part| g.node(n).origin.part(part);
        let Some(Others { coefficients, positions }) = others else {
            return Ok(layer.left_product(work, n, *core)?);
        };
        match self.side {
            Side::Input => {
                let x = work.input(n);
                let axis = g.ty(g.inputs_of(n)[0]).ndim() - 1;
                let kept = work.add(Gather { axis }, &[x, positions[0]], part(Part::Left))?;
                let rest = work.add(Gather { axis }, &[x, positions[1]], part(Part::Left))?;
                let thin = work.add(g.op(n).clone(), &[rest, *coefficients], part(Part::Left))?;
                let sum = work.add(Add, &[thin, kept], part(Part::Left))?;
                Ok(layer.right_product(work, n, [sum, *core])?)
            }
            Side::Output => {
                let axis = layer.output_axis(g, n);
                let kept = layer.left_product(work, n, *core)?;
                let rest = layer.right_product(work, n, [kept, *coefficients])?;
                let all = work.add(Concat { axis }, &[kept, rest], part(Part::Right))?;
                Ok(work.add(Gather { axis }, &[all, positions[0]], part(Part::Right))?)
            }
        }
    }
}

impl Fitted for FittedInterpolative {
    fn candidates(&self) -> Vec<Settings> {
        self.lowrank.candidates_of(|rank| self.numbers(rank))
    }

    fn probe(&self) -> Option<Settings> {
        self.lowrank.probe_of(|rank| self.numbers(rank))
    }

    fn squared_error(&self, settings: &Settings) -> Result<f64, String> {
        Ok(self.lowrank.relative_error(self.lowrank.rank(settings)?))
    }

    fn replace(
        &self,
        work: &mut Replacement<'_>,
        site: &Site,
        settings: &Settings,
    ) -> Result<(), ApplyError> {
        let rank = self.lowrank.rank(settings).map_err(ApplyError::Settings)?;
        let layer = Layer::of(work.graph, site);
        let computed = work.computed(|| {
            let factors = self.lowrank.factors(rank)?;
            let gauge = |f: &Factors| IdentityGauge::new(&f.left, &f.right, self.side)?.with_rank(rank);
            let gauges = factors.iter().map(gauge).collect::<Result<Vec<IdentityGauge>, _>>()?;
            Ok::<_, RandnlaError>((gauges, correction(&factors)))
        })?;
        let constants =
            self.constants(work, &layer, rank, computed.as_ref().map(|(all, _)| all.as_slice()))?;
        for &n in &layer.nodes {
            let product = self.product(work, &layer, n, &constants)?;
            match self.lowrank.corrects() {
                true => {
                    let correction = computed.as_ref().and_then(|(_, bias)| bias.as_deref());
                    layer.replace_corrected(
                        work,
                        n,
                        product,
                        (&self.derivation("bias", rank), correction),
                    )?;
                }
                false => work.replace(n.into(), product),
            }
        }
        Ok(())
    }
}

/// Where each coordinate lies in a list of the pivots of all groups and then the others of all.
fn order(gauges: &[IdentityGauge]) -> Vec<usize> {
    let size = |gauge: &IdentityGauge| gauge.pivots.len() + gauge.rest.len();
    let mut order = vec![0; gauges.iter().map(size).sum()];
    let starts: Vec<usize> = (0..gauges.len()).map(|k| gauges[..k].iter().map(size).sum()).collect();
    let all = || gauges.iter().zip(&starts);
    let pivots = all().flat_map(|(gauge, start)| gauge.pivots.iter().map(move |at| start + at));
    let rest = all().flat_map(|(gauge, start)| gauge.rest.iter().map(move |at| start + at));
    pivots.chain(rest).enumerate().for_each(|(place, at)| order[at] = place);
    order
}

/// A linear map in this gauge, as it lies in a graph.
#[derive(Clone, Debug)]
struct Gauged {
    side: Side,
    /// With their own weights, those are the core and the coefficients.
    core: Layer,
    coefficients: Layer,
    /// As in [`Others`].
    positions: Vec<NodeId>,
    /// Constants that are added behind the places.
    biases: Vec<NodeId>,
}

impl Gauged {
    /// The gauge that the constants hold; `None` where the positions are not those of a gauge.
    fn gauge(&self, g: &Graph) -> Option<IdentityGauge> {
        let listed = |n: &NodeId| -> Option<Vec<usize>> {
            let values = g.constant((*n).into())?.tensor().to_vec::<i64>().ok()?;
            values.into_iter().map(|at| usize::try_from(at).ok()).collect()
        };
        let (pivots, rest) = match self.side {
            Side::Input => (listed(&self.positions[0])?, listed(&self.positions[1])?),
            Side::Output => {
                let order = listed(&self.positions[0])?;
                let mut all = vec![None; order.len()];
                for (at, place) in order.into_iter().enumerate() {
                    *all.get_mut(place)? = Some(at);
                }
                let mut all: Vec<usize> = all.into_iter().collect::<Option<_>>()?;
                let rest = all.split_off(self.core.d_out.min(all.len()));
                (all, rest)
            }
        };
        let mut all: Vec<usize> = pivots.iter().chain(&rest).copied().collect();
        all.sort_unstable();
        let (rank, others) = match self.side {
            Side::Input => (self.core.d_in, self.coefficients.d_in),
            Side::Output => (self.core.d_out, self.coefficients.d_out),
        };
        let every = all.iter().enumerate().all(|(i, at)| i == *at);
        let ascending = pivots.is_sorted() && rest.is_sorted();
        (every && ascending && pivots.len() == rank && rest.len() == others).then_some(())?;
        let (core, coefficients) = (self.core.matrix(g).ok()?, self.coefficients.matrix(g).ok()?);
        Some(IdentityGauge { side: self.side, pivots, rest, core, coefficients })
    }
}

impl Stored for Gauged {
    fn read(&self, g: &Graph) -> Factors {
        let gauge = self.gauge(g).expect("only gauges are found");
        let bias = self.biases.first().map(|n| numbers(g, *n));
        let order = order(std::slice::from_ref(&gauge));
        let rank = gauge.rank();
        let identity = |place: usize, pivot: usize| if place == pivot { 1.0 } else { 0.0 };
        let (left, right) = match self.side {
            Side::Input => {
                let row = |at: usize, pivot: usize| match order[at].checked_sub(rank) {
                    Some(other) => gauge.coefficients.at(other, pivot),
                    None => identity(order[at], pivot),
                };
                (Matrix::from_fn(order.len(), rank, row), gauge.core)
            }
            Side::Output => {
                let column = |pivot: usize, at: usize| match order[at].checked_sub(rank) {
                    Some(other) => gauge.coefficients.at(pivot, other),
                    None => identity(order[at], pivot),
                };
                let right = Matrix::from_fn(rank, order.len(), column);
                (gauge.core, right)
            }
        };
        Factors { left, right, bias }
    }

    fn write(&self, g: &Graph, factors: &Factors) -> Option<Vec<(NodeId, Tensor)>> {
        let gauge = IdentityGauge::new(&factors.left, &factors.right, self.side).ok()?;
        let gauge = gauge.with_rank(factors.left.columns()).ok()?;
        let put = |layer: &Layer, m| contents(g, layer.weight.node, &layer.factor(m));
        let mut new = vec![put(&self.core, &gauge.core), put(&self.coefficients, &gauge.coefficients)];
        let lists = match self.side {
            Side::Input => vec![gauge.pivots.clone(), gauge.rest.clone()],
            Side::Output => vec![order(std::slice::from_ref(&gauge))],
        };
        for (n, list) in self.positions.iter().zip(lists) {
            let list: Vec<i64> = list.into_iter().map(|at| at as i64).collect();
            new.push((*n, Tensor::from_slice(&[list.len()], &list).ok()?));
        }
        if let Some(bias) = &factors.bias {
            new.extend(self.biases.iter().map(|n| contents(g, *n, bias)));
        }
        Some(new)
    }

    /// Scaled, the identity would be none.
    fn can_be_scaled(&self) -> bool {
        false
    }
}

/// A lookup along an axis with constant positions: the value, and the positions.
fn lookup(g: &Graph, v: Value, axis: usize) -> Option<(Value, NodeId)> {
    let Op::Gather(found) = g.op(v.node) else { return None };
    let operands = g.inputs_of(v.node);
    let positions = g.constant(operands[1])?.tensor();
    let fits = found.axis == axis && positions.shape().len() == 1;
    (fits && positions.to_vec::<i64>().is_ok()).then(|| (operands[0], operands[1].node))
}

/// The map that ends at a node, with pivots among the inputs.
fn with_inputs(g: &Graph, last: NodeId) -> Option<Found<Gauged>> {
    let core = product(g, last).filter(Layer::is_product)?;
    let sum = g.inputs_of(last)[0];
    let (Op::Add(_), true) = (g.op(sum.node), g.sole_user(sum) == Some(last)) else { return None };
    let axis = g.ty(sum).ndim() - 1;
    let operands = g.inputs_of(sum.node);
    let read_by = |v: Value, n: NodeId| g.sole_user(v) == Some(n);
    let pick = |thin: Value, kept: Value| {
        let coefficients = product(g, thin.node).filter(Layer::is_product)?;
        let rest = g.inputs_of(thin.node)[0];
        let ((x, others), (y, pivots)) = (lookup(g, rest, axis)?, lookup(g, kept, axis)?);
        let alone = read_by(thin, sum.node) && read_by(kept, sum.node) && read_by(rest, thin.node);
        (x == y && alone).then_some((coefficients, x, [pivots, others]))
    };
    let (coefficients, x, positions) =
        pick(operands[0], operands[1]).or_else(|| pick(operands[1], operands[0]))?;
    let (rank, d_out, d_in) = (core.d_in, core.d_out, coefficients.d_in + core.d_in);
    let factors = [core.weight.node, coefficients.weight.node];
    let bias = own_bias(g, &core, last);
    let map =
        Gauged { side: Side::Input, core, coefficients, positions: positions.to_vec(), biases: Vec::new() };
    map.gauge(g)?;
    (g.ty(x).shape[axis].is(d_in as i64)).then(|| Found {
        factors: factors.into_iter().chain(positions).collect(),
        learn: factors.to_vec(),
        sizes: [d_in, rank, d_out],
        input: Rows { value: x, kind: RowKind::LastAxis, length: d_in },
        last,
        bias,
        map,
    })
}

/// The map that ends at a node, with pivots among the outputs.
fn with_outputs(g: &Graph, last: NodeId) -> Option<Found<Gauged>> {
    let Op::Gather(Gather { axis }) = *g.op(last) else { return None };
    let (all, order) = lookup(g, last.into(), axis)?;
    let Op::Concat(joined) = g.op(all.node) else { return None };
    let operands = g.inputs_of(all.node);
    let (&[kept, rest], true) = (operands.as_slice(), joined.axis == axis) else { return None };
    let (core, coefficients) = (product(g, kept.node)?, product(g, rest.node)?);
    let rank = core.d_out;
    let (d_in, d_out) = (core.d_in, rank + coefficients.d_out);
    let reads = |v: Value, users: usize| g.users_of(v).len() == users && !g.is_output(v);
    let pointwise = !matches!(g.op(rest.node), Op::Conv(c) if *c != Conv::pointwise_over(c.strides.len()));
    let fits = pointwise
        && core.output_axis(g, kept.node) == axis
        && core.is_product() == coefficients.is_product()
        && coefficients.d_in == rank
        && g.inputs_of(rest.node)[0] == kept
        && reads(kept, 2)
        && reads(rest, 1)
        && reads(all, 1);
    let mut whole = core.clone();
    whole.d_out = d_out;
    let (input, factors) = (core.input(g, kept.node), [core.weight.node, coefficients.weight.node]);
    let map = Gauged { side: Side::Output, core, coefficients, positions: vec![order], biases: Vec::new() };
    (fits && map.gauge(g).is_some()).then(|| Found {
        factors: factors.into_iter().chain([order]).collect(),
        learn: factors.to_vec(),
        sizes: [d_in, rank, d_out],
        input,
        last,
        bias: own_bias(g, &whole, last),
        map,
    })
}
