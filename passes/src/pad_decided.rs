//! Gives extents that a run decides their bounds: values get room for the most there can be, with what was there first.
//!
//! Required stage: sketched, with all other symbols bound. What `cut` counts is what the graph computes it from. Where
//! further positions would change a result, operators put numbers there that do not, or look up where elements are. An
//! output of such an extent is packed, and another output says how much of it there is. Graphs inside operators are treated
//! alike, but that they have no such outputs. Declines a graph in which an operator has no answer, with its name and the
//! extent.
//!
//! ```text
//! graph @before(%x: f32[6], %n: i64) -> (y: f32, z: f32[n']) {
//!   %0 = cut %x, %n {axis = 0, extent = n'} : f32[n']
//!   %1 = reduce %0 {kind = sum, axes = [0]} : f32
//!   %2 = exp %0 : f32[n']
//!   return %1, %2
//! }
//! graph @after(%x: f32[6], %n: i64) -> (y: f32, z: f32[6], z.count0: i64 counts axis 0 of z) {
//!   %0 = range {start = 0, step = 1, count = 6} : i64[6]
//!   %1 = reshape %0 {shape = [6]} : i64[6]
//!   %2 = less %1, %n : bool[6]
//!   %3 = const 0.0 : f32
//!   %4 = select %2, %x, %3 : f32[6]
//!   %5 = reduce %4 {kind = sum, axes = [0]} : f32
//!   %6 = exp %x : f32[6]
//!   return %5, %6, %n
//! }
//! ```

use std::collections::HashMap;

use margay_ir::ops::{Pack, Reshape};
use margay_ir::padding::{Decided, Padding, PaddingError, count, decided_axes, decided_symbols, is_bounded};
use margay_ir::{
    Builder, Changed, Configuration, Counts, Cx, Fidelity, Graph, NodeId, Op, Origin, Output, Pass,
    PassError, TensorType, Value,
};

/// Gives extents that a run decides their bounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct PadDecided;

impl Pass for PadDecided {
    fn name(&self) -> &'static str {
        "pad-decided"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, _: &mut Cx) -> Result<Changed, PassError> {
        pad(g)
    }
}

fn pad(g: &mut Graph) -> Result<Changed, PassError> {
    // A graph inside decides extents of its own; what it reads of others is the business of its node.
    let reads =
        |inner: &Graph| inner.inputs().iter().any(|n| !decided_symbols(inner.ty((*n).into())).is_empty());
    let inside = g.change_regions(&mut |inner| if reads(inner) { Ok(Changed::No) } else { pad(inner) })?;
    let decides = |n: &NodeId| g.node(*n).types.iter().any(|ty| !decided_symbols(ty).is_empty());
    let nodes = g.order().iter().filter(|n| decides(n)).count();
    if nodes > 0 {
        *g = padded(g)?;
    }
    Ok(Changed::times(nodes).and(inside))
}

fn padded(g: &Graph) -> Result<Graph, PassError> {
    let mut out = Graph::new(g.name());
    out.set_guards(g.guards().to_vec());
    let mut decided = Decided::default();
    let mut values: HashMap<Value, Value> = HashMap::new();
    for &n in g.inputs() {
        if let Op::Input(input) = g.op(n) {
            values.insert(n.into(), out.add_input(&input.name, input.ty.clone()));
        }
    }
    for n in g.order() {
        if matches!(g.op(n), Op::Input(_)) {
            continue;
        }
        let results =
            node(g, n, &mut out, &mut decided, &values).map_err(|error| refused(&g.label(n), &error))?;
        values.extend(g.values_of(n).zip(results));
    }
    let mut outputs = Vec::new();
    let mut counts = Vec::new();
    for o in g.outputs() {
        let found = output(g, o, &mut out, &decided, values[&o.value]);
        let (value, counted) = found.map_err(|error| refused(&o.name, &error))?;
        outputs.push(Output { value, ..o.clone() });
        counts.extend(counted.into_iter().map(|(axis, value)| {
            let of = Counts { output: o.name.clone(), axis };
            Output { name: format!("{}.count{axis}", o.name).into(), value, counts: Some(of) }
        }));
    }
    outputs.extend(counts);
    out.set_outputs(outputs);
    Ok(out)
}

fn refused(name: &str, error: &PaddingError) -> PassError {
    PassError::Refused(format!("`{name}`: {error}"))
}

/// Adds a node with bounds; returns its results.
fn node(
    g: &Graph,
    n: NodeId,
    out: &mut Graph,
    decided: &mut Decided,
    values: &HashMap<Value, Value>,
) -> Result<Vec<Value>, PaddingError> {
    let given = g.inputs_of(n);
    let inputs: Vec<Value> = given.iter().map(|v| values[v]).collect();
    let types: Vec<TensorType> = given.iter().map(|v| g.ty(*v).clone()).collect();
    let (op, results) = (g.op(n), g.node(n).types.clone());
    let all = || types.iter().chain(&results);
    if let Some(dim) = all().flat_map(|ty| &ty.shape).find(|dim| !is_bounded(dim)) {
        return Err(PaddingError::Refused(format!("nothing bounds the extent `{dim}`, which a run decides")));
    }
    let origin = g.node(n).origin.clone();
    if all().all(|ty| decided_symbols(ty).is_empty()) && op.bind(&decided.bounds) == *op {
        let first = out.add(op.clone(), &inputs, origin)?;
        return Ok(out.values_of(first.node).collect());
    }
    op.padded(&mut Padding::new(out, origin, decided, types, results, inputs))
}

/// What an output holds, and the numbers of positions along its axes that a run decides.
fn output(
    g: &Graph,
    o: &Output,
    out: &mut Graph,
    decided: &Decided,
    value: Value,
) -> Result<(Value, Vec<(usize, Value)>), PaddingError> {
    let ty = g.ty(o.value);
    let axes = decided_axes(ty);
    let mut builder = Builder::new(out, Origin::named(&o.name));
    let mut counts = Vec::new();
    for &axis in &axes {
        counts.push((axis, count(&mut builder, decided, &ty.shape[axis])?));
    }
    // Rows of the first axis that matters lie in order as they are.
    let first = axes.first().is_none_or(|&axis| ty.shape[..axis].iter().all(|d| d.is(1)));
    if first && axes.len() < 2 {
        return Ok((value, counts));
    }
    let operands: Vec<Value> = std::iter::once(value).chain(counts.iter().map(|(_, v)| *v)).collect();
    let shape = builder.ty(value).shape.clone();
    let packed = builder.op(Pack { axes }, &operands)?;
    Ok((builder.op(Reshape { shape }, &[packed])?, counts))
}
