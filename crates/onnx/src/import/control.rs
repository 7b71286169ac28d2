//! Operators that hold graphs: `If`, `Loop`, `Scan`.
//!
//! A graph in an attribute becomes a region. What it reads of the graphs around it becomes an operand of the node;
//! constants and extents are repeated inside instead, so that weights there are weights like any others. A choice that
//! is made at compile time leaves only the graph that was chosen, without a region.
//!
//! Refused: branches whose results differ in type or have an extent that a run decides, and values that change their type from one repetition to the next. Rows
//! of a loop that ends by a condition are as many as a run decides, unless the condition counts repetitions.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use margay_ir::ops::{Const, Gather, If, IntTensor, Loop, Reshape, Slice, Sub, Transpose};
use margay_ir::{Builder, Graph, Op, Origin, Payload, Region, TensorType, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::call::{Call, Imported, Refusal, axis};
use super::trips::{Body, smaller};
use super::values::binding_of;
use super::{Importer, Slot};
use crate::check::free;
use crate::{OnnxDim, OnnxGraph, OnnxValue};

/// What the number of repetitions of a loop is called inside it.
const COUNT: &str = "repetitions";

/// What a region reads of the graph around it.
enum Read {
    /// A constant, repeated inside.
    Constant(Box<Payload>, Origin),
    /// Extents, repeated inside.
    Extents(IntTensor),
    /// An operand of the node.
    Operand(Value, TensorType),
}

/// A region with the values that its outputs are.
struct Inner {
    graph: Graph,
    outputs: Vec<Value>,
}

impl Inner {
    fn ty(&self, output: usize) -> &TensorType {
        self.graph.ty(self.outputs[output])
    }

    /// The region of a loop that counts its repetitions by the last of so many values that it hands on, behind the
    /// condition.
    fn counting(mut self, names: &[OnnxValue], carried: usize) -> Result<Region, Refusal> {
        let number = self.graph.inputs()[0];
        let mut builder = Builder::new(&mut self.graph, Origin::default());
        let next = builder.offset(number.into(), 1.0)?;
        self.outputs.insert(carried, next);
        for (at, value) in self.outputs.iter().enumerate() {
            let name = match at.cmp(&carried) {
                Ordering::Less => &names[at].name,
                Ordering::Equal => COUNT,
                Ordering::Greater => &names[at - 1].name,
            };
            self.graph.add_output(name, *value);
        }
        Ok(Region::new(self.graph))
    }

    /// The region with its outputs under names of the model, the last ones.
    fn named(mut self, names: &[OnnxValue]) -> Region {
        let unnamed = names.len() - self.outputs.len();
        for (value, output) in self.outputs.iter().zip(&names[unnamed..]) {
            self.graph.add_output(&output.name, *value);
        }
        Region::new(self.graph)
    }
}

pub(super) fn choose<'a>(importer: &mut Importer<'a>, call: &Call<'a>) -> Imported {
    let test = importer.single(call.input(0)?, DType::Bool)?;
    let branches = [call.graph("then_branch")?, call.graph("else_branch")?];
    if let Some(known) = importer.constant_of(test) {
        let [then, otherwise] = branches;
        return importer.inline(if known == 0 { otherwise } else { then });
    }
    let reads = importer.reads(&branches)?;
    let mut inner = Vec::new();
    for branch in branches {
        let found = importer.region(branch, &reads, |_| Ok(Vec::new()));
        inner.push(found.map_err(|refusal| match (refusal, fixing(importer, test)) {
            (Refusal::Reported, Some(fix)) => Refusal::Unsupported(format!(
                "a branch that is refused; where it is not taken, say so by {fix}"
            )),
            (refusal, _) => refusal,
        })?);
    }
    let types = |inner: &Inner| (0..inner.outputs.len()).map(|i| inner.ty(i).to_string()).collect::<Vec<_>>();
    let [then, otherwise] = [types(&inner[0]), types(&inner[1])];
    if then != otherwise {
        // Extents that are known say which branch is taken.
        let extents = importer.extents_behind(test);
        importer.values_of(&extents)?;
        let (then, otherwise) = (then.join(", "), otherwise.join(", "));
        let bind = binding_of(&extents).or_else(|| fixing(importer, test));
        let bind = bind.map(|bind| format!("; say which by {bind}")).unwrap_or_default();
        return Err(Refusal::Unsupported(format!(
            "branches that give different types, {then} and {otherwise}{bind}"
        )));
    }
    let mut regions = inner.into_iter().zip(branches).map(|(inner, branch)| inner.named(&branch.outputs));
    let (Some(then), Some(otherwise)) = (regions.next(), regions.next()) else {
        unreachable!("there are two branches")
    };
    importer.node_of(If { then, otherwise }, &[test], &reads)
}

/// How inputs of one element that a value is computed from are given their values.
fn fixing(importer: &Importer, v: Value) -> Option<String> {
    let fix: Vec<String> =
        importer.numbers_behind(v).iter().map(|name| format!("`--fix {name}=NUMBER`")).collect();
    (!fix.is_empty()).then(|| fix.join(" and "))
}

pub(super) fn repeat<'a>(importer: &mut Importer<'a>, call: &Call<'a>) -> Imported {
    let body = call.graph("body")?;
    let (trips, start) = (call.optional(0), call.optional(1));
    let initial = (2..call.given()).map(|i| call.input(i)).collect::<Result<Vec<_>, _>>()?;
    let least = 1 + initial.len();
    if body.outputs.len() < least || body.inputs.len() != 1 + least {
        let (inputs, outputs) = (body.inputs.len(), body.outputs.len());
        return Err(Refusal::Invalid(format!(
            "expected a body from {} to {least} values or more, found one from {inputs} to {outputs}",
            1 + least
        )));
    }
    let trips = trips.map(|v| importer.single(v, DType::I64)).transpose()?;
    let limited = trips.is_some();
    let bound = trips.and_then(|v| importer.ints(v)).map(|known| known.values[0].clone());
    let bound = bound.map(|n| if n.as_const().is_some_and(|n| n < 0) { Dim::from(0usize) } else { n });
    let mut trips = match trips {
        Some(trips) => trips,
        None => importer.constant(Tensor::scalar(i64::MAX))?,
    };
    let start = start.map(|v| importer.single(v, DType::Bool)).transpose()?;
    // Whether it begins at all, if that is known.
    let begins = match start {
        Some(start) => importer.constant_of(start).map(|known| known != 0),
        None => Some(true),
    };
    let reads = importer.reads(&[body])?;
    let types: Vec<TensorType> = initial.iter().map(|v| importer.ty(*v).clone()).collect();
    let mut inner = importer.repetition(body, &reads, &types, false)?;
    for (i, ty) in types.iter().enumerate() {
        let found = inner.ty(1 + i);
        if found != ty {
            return Err(Refusal::Unsupported(format!(
                "a value that is {ty} before a repetition and {found} after it"
            )));
        }
    }
    let test = single(&mut inner.graph, inner.outputs[0], DType::Bool)?;
    let first: Vec<Option<Dim>> = initial.iter().map(|v| importer.whole(*v)).collect();
    let counted = Body { graph: &inner.graph, handed: &inner.outputs[1..least], initial: &first };
    let ends = counted.trips(test);
    let most = ends.most.clone().filter(|most| !most.is_decided());
    // How often it runs, if the condition says so and nothing ends it before.
    let exact = match (&bound, &most) {
        (Some(bound), Some(most)) => smaller(bound, most),
        (None, Some(most)) if !limited => Some(most.clone()),
        _ => None,
    };
    let (max, condition) = match (begins, exact) {
        (Some(false), _) => (Some(Dim::from(0usize)), false),
        (Some(true), _) if ends.exact && ends.most.is_none() => (bound, false),
        (Some(true), Some(exact)) if ends.exact => {
            trips = importer.dim(exact.clone())?;
            (Some(exact), false)
        }
        _ => (bound.or(most), true),
    };
    let rows = body.outputs.len() - least;
    if rows > 0 && max.is_none() {
        let why = "rows of a loop of which nothing says how often it runs at most";
        return Err(Refusal::Unsupported(why.to_owned()));
    }
    // Rows that a run decides are counted by a value that the loop hands on behind the others.
    let counted = rows > 0 && condition;
    let mut test = test;
    if counted {
        inner = importer.repetition(body, &reads, &types, true)?;
        test = single(&mut inner.graph, inner.outputs[0], DType::Bool)?;
    }
    match condition {
        true => inner.outputs[0] = test,
        false => drop(inner.outputs.remove(0)),
    }
    let max = max.unwrap_or(Dim::from(i64::MAX as usize));
    let (mut carried, mut initial) = (initial.len(), initial);
    let body = match counted {
        false => inner.named(&body.outputs),
        true => {
            initial.push(importer.scalar(DType::I64, 0.0)?);
            carried += 1;
            inner.counting(&body.outputs, carried)?
        }
    };
    let op = Loop { body, max, carried, condition };
    let mut operands = vec![trips];
    if condition {
        operands.push(match start {
            Some(start) => start,
            None => importer.scalar(DType::Bool, 1.0)?,
        });
    }
    operands.extend(initial);
    let mut results = importer.node_of(op, &operands, &reads)?;
    if counted {
        let count = results.remove(carried - 1);
        let rows = results.split_off(carried - 1);
        results.extend(importer.cut(&rows, 0, count)?);
    }
    Ok(results)
}

pub(super) fn scan<'a>(importer: &mut Importer<'a>, call: &Call<'a>) -> Imported {
    let body = call.graph("body")?;
    let inputs = match call.opset < 9 {
        true => of_one_batch(importer, call)?,
        false => call.all()?,
    };
    let mut results = scanned(importer, call, body, &inputs)?;
    if call.opset < 9 {
        results = results.into_iter().map(|v| importer.unsqueezed(v, 0)).collect::<Result<_, _>>()?;
    }
    Ok(results)
}

/// The inputs of a `Scan` of operator set 8, which has batches, without the axis of a batch of one.
fn of_one_batch(importer: &mut Importer, call: &Call) -> Imported {
    if call.optional(0).is_some() {
        return Err(Refusal::Unsupported("lengths of sequences are not supported".into()));
    }
    let mut inputs = Vec::new();
    for at in 1..call.given() {
        let v = call.input(at)?;
        let mut shape = importer.ty(v).shape.clone();
        if shape.is_empty() || !shape.remove(0).is(1) {
            let ty = importer.ty(v);
            return Err(Refusal::Unsupported(format!("a batch {ty} of other than one is not supported")));
        }
        inputs.push(importer.shaped(v, shape)?);
    }
    Ok(inputs)
}

fn scanned<'a>(
    importer: &mut Importer<'a>,
    call: &Call<'a>,
    body: &'a OnnxGraph,
    inputs: &[Value],
) -> Imported {
    let sliced = call.int("num_scan_inputs", 0)?;
    let carried = usize::try_from(sliced).ok().filter(|&n| n > 0).and_then(|n| inputs.len().checked_sub(n));
    let carried = carried
        .ok_or_else(|| Refusal::Invalid(format!("{sliced} of {} inputs are scanned", inputs.len())))?;
    let (initial, sliced) = inputs.split_at(carried);
    let Some(rows) = body.outputs.len().checked_sub(carried) else {
        let found = body.outputs.len();
        return Err(Refusal::Invalid(format!(
            "expected a body with {carried} outputs or more, found {found}"
        )));
    };
    let list = |name: &'static str, length: usize| {
        let given = call.ints(name)?.map_or_else(|| vec![0; length], <[i64]>::to_vec);
        match given.len() == length {
            true => Ok(given),
            false => {
                Err(Refusal::Invalid(format!("`{name}` has {} numbers, expected {length}", given.len())))
            }
        }
    };
    let directions = if call.opset < 9 { "directions" } else { "scan_input_directions" };
    let (axes, backwards) = (list("scan_input_axes", sliced.len())?, list(directions, sliced.len())?);
    let (out_axes, out_backwards) = (list("scan_output_axes", rows)?, list("scan_output_directions", rows)?);
    let axes: Vec<usize> =
        axes.iter().zip(sliced).map(|(&a, v)| axis(a, importer.ty(*v).ndim())).collect::<Result<_, _>>()?;
    let extents: Vec<Dim> = axes.iter().zip(sliced).map(|(&a, v)| importer.ty(*v).shape[a].clone()).collect();
    let max = extents[0].clone();
    if let Some(other) = extents.iter().find(|d| **d != max) {
        let message = format!("scanned extents `{max}` and `{other}` differ or are not known to be equal");
        return Err(match (max.as_const(), other.as_const()) {
            (Some(_), Some(_)) => Refusal::Invalid(message),
            _ => Refusal::Unsupported(message),
        });
    }
    let reads = importer.reads(&[body])?;
    let types: Vec<TensorType> = inputs.iter().map(|v| importer.ty(*v).clone()).collect();
    let inner = importer.region(body, &reads, |importer| {
        let number = importer.graph.add_input("number", single_of(DType::I64));
        let mut given = Vec::new();
        for (i, ty) in types.iter().enumerate() {
            let name = body.inputs.get(i).map_or("", |input| &input.name);
            given.push(importer.graph.add_input(name, ty.clone()));
        }
        for (at, v) in given[carried..].iter_mut().enumerate() {
            let mut row = number;
            if backwards[at] != 0 {
                let last = importer.dim(&max - &Dim::from(1usize))?;
                row = importer.add(Sub, &[last, number])?;
            }
            *v = importer.add(Gather { axis: axes[at] }, &[*v, row])?;
        }
        Ok(given)
    })?;
    for (i, ty) in types[..carried].iter().enumerate() {
        let found = inner.ty(i);
        if found != ty {
            return Err(Refusal::Unsupported(format!(
                "a value that is {ty} before a repetition and {found} after it"
            )));
        }
    }
    let trips = importer.dim(max.clone())?;
    let op = Loop { body: inner.named(&body.outputs), max, carried, condition: false };
    let operands: Vec<Value> = [&[trips], initial, sliced].concat();
    let mut results = importer.node_of(op, &operands, &reads)?;
    for (at, v) in results[carried..].iter_mut().enumerate() {
        let ty = importer.ty(*v).clone();
        if out_backwards[at] != 0 {
            let mut slice = Slice {
                starts: vec![Dim::from(0usize); ty.ndim()],
                ends: ty.shape.to_vec(),
                steps: vec![1; ty.ndim()],
            };
            slice.starts[0] = &ty.shape[0] - &Dim::from(1usize);
            slice.ends[0] = Dim::from(-1i64);
            slice.steps[0] = -1;
            *v = importer.add(slice, &[*v])?;
        }
        let to = axis(out_axes[at], ty.ndim())?;
        if to != 0 {
            let mut perm: Vec<usize> = (1..ty.ndim()).collect();
            perm.insert(to, 0);
            *v = importer.add(Transpose { perm }, &[*v])?;
        }
    }
    Ok(results)
}

fn single_of(dtype: DType) -> TensorType {
    TensorType::new(dtype, Vec::new())
}

/// A value of one element, with its axes taken away.
fn single(g: &mut Graph, v: Value, dtype: DType) -> Result<Value, Refusal> {
    let ty = g.ty(v);
    if ty.dtype != dtype || ty.shape.iter().any(|d| !d.is(1)) {
        return Err(Refusal::Invalid(format!("expected one {dtype}, found {ty}")));
    }
    match ty.ndim() {
        0 => Ok(v),
        _ => Ok(g.add(Reshape { shape: Vec::new() }, &[v], Origin::default())?),
    }
}

impl<'a> Importer<'a> {
    fn single(&mut self, v: Value, dtype: DType) -> Result<Value, Refusal> {
        let ty = self.ty(v);
        match ty.ndim() > 0 && ty.shape.iter().all(|d| d.is(1)) {
            true => {
                let v = self.add(Reshape { shape: Vec::new() }, &[v])?;
                single(&mut self.graph, v, dtype)
            }
            false => single(&mut self.graph, v, dtype),
        }
    }

    /// The only element of a value, if it is an integer or a truth value known at compile time.
    fn constant_of(&self, v: Value) -> Option<i64> {
        self.ints(v)?.values.first()?.as_const()
    }

    /// The body of a loop with values of these types; `counted` adds one more that it hands on, the number of repetitions.
    fn repetition(
        &mut self,
        body: &'a OnnxGraph,
        reads: &[(&'a str, Read)],
        types: &[TensorType],
        counted: bool,
    ) -> Result<Inner, Refusal> {
        self.region(body, reads, |importer| {
            let number = importer.graph.add_input(&body.inputs[0].name, single_of(DType::I64));
            let mut given = vec![importer.as_declared(number, &body.inputs[0])?];
            // A repetition runs only where the condition holds.
            let goes_on = importer.scalar(DType::Bool, 1.0)?;
            given.push(importer.as_declared(goes_on, &body.inputs[1])?);
            for (input, ty) in body.inputs[2..].iter().zip(types) {
                given.push(importer.graph.add_input(&input.name, ty.clone()));
            }
            if counted {
                importer.graph.add_input(COUNT, single_of(DType::I64));
            }
            Ok(given)
        })
    }

    /// A single value with the axis that an input of a body is declared with.
    fn as_declared(&mut self, v: Value, input: &OnnxValue) -> Result<Value, Refusal> {
        match input.dims.as_deref() {
            Some([OnnxDim::Value(1)]) => self.add(Reshape { shape: vec![Dim::from(1usize)] }, &[v]),
            _ => Ok(v),
        }
    }

    /// What graphs inside a node read of the graph at hand, each once, in the order of names.
    fn reads(&mut self, graphs: &[&'a OnnxGraph]) -> Result<Vec<(&'a str, Read)>, Refusal> {
        let names: BTreeSet<&'a str> = graphs.iter().flat_map(|g| free(g)).collect();
        let mut reads = Vec::new();
        for name in names {
            let v = match self.slot(name) {
                Some(Slot::Known(v)) => v,
                Some(Slot::Unknown) => return Err(Refusal::Reported),
                Some(Slot::List(_) | Slot::Nothing) => {
                    let why = "a sequence in a graph inside is not supported";
                    return Err(Refusal::Unsupported(why.into()));
                }
                None => {
                    return Err(Refusal::Invalid(format!(
                        "a graph inside reads `{name}`, which nothing yields"
                    )));
                }
            };
            if let Some(narrow) = self.narrow(v) {
                let name = narrow.name();
                return Err(Refusal::Unsupported(format!(
                    "element type `{name}` in a graph inside is not supported"
                )));
            }
            let read = match (self.graph.op(v.node), self.ints(v)) {
                (Op::Const(c), _) => {
                    Read::Constant(c.payload.clone().into(), self.graph.node(v.node).origin.clone())
                }
                (_, Some(known)) if matches!(known.dtype, DType::I64 | DType::I32) => Read::Extents(known),
                _ => Read::Operand(v, self.ty(v).clone()),
            };
            reads.push((name, read));
        }
        Ok(reads)
    }

    /// Imports a graph of its own. `declare` makes the inputs that the operator gives it and returns what the graph's
    /// inputs are; the inputs behind them are the operands among `reads`.
    fn region(
        &mut self,
        graph: &'a OnnxGraph,
        reads: &[(&'a str, Read)],
        declare: impl FnOnce(&mut Importer<'a>) -> Imported,
    ) -> Result<Inner, Refusal> {
        let name = if graph.name.is_empty() { "region" } else { &graph.name };
        let around = std::mem::replace(&mut self.graph, Graph::new(name));
        let slots = std::mem::take(&mut self.slots);
        let narrow = std::mem::take(&mut self.narrow);
        let initializers = std::mem::take(&mut self.initializers);
        let origin = self.origin.clone();
        self.depth += 1;
        let outputs = self.inside(graph, reads, declare);
        self.depth -= 1;
        (self.slots, self.initializers, self.origin) = (slots, initializers, origin);
        self.narrow = narrow;
        let graph = std::mem::replace(&mut self.graph, around);
        Ok(Inner { graph, outputs: outputs? })
    }

    fn inside(
        &mut self,
        graph: &'a OnnxGraph,
        reads: &[(&'a str, Read)],
        declare: impl FnOnce(&mut Importer<'a>) -> Imported,
    ) -> Imported {
        let given = declare(self)?;
        if given.len() != graph.inputs.len() {
            let (expected, found) = (given.len(), graph.inputs.len());
            return Err(Refusal::Invalid(format!("expected a graph of {expected} inputs, found {found}")));
        }
        for (input, v) in graph.inputs.iter().zip(given) {
            self.slots.insert(&input.name, Slot::Known(v));
        }
        for (name, read) in reads {
            let v = match read {
                Read::Constant(payload, origin) => {
                    self.graph.add(Const { payload: (**payload).clone() }, &[], origin.clone())?
                }
                Read::Extents(known) => {
                    let shape: &[usize] = &known.shape;
                    let leaf = self.int_leaf(known.dtype, shape, known.values.clone())?;
                    leaf.ok_or_else(|| Refusal::Unsupported("extents of an unexpected type".into()))?
                }
                Read::Operand(_, ty) => self.graph.add_input(name, ty.clone()),
            };
            self.slots.insert(name, Slot::Known(v));
        }
        let outputs = self.body(graph)?;
        for (v, output) in outputs.iter().zip(&graph.outputs) {
            if let Some(dim) = self.ty(*v).shape.iter().find(|dim| dim.is_decided()) {
                return Err(Refusal::Unsupported(format!(
                    "`{}`, which a graph inside yields, has an extent `{dim}` that a run decides",
                    output.name
                )));
            }
        }
        Ok(outputs)
    }

    /// Imports the nodes of a graph; returns what its outputs are.
    fn body(&mut self, graph: &'a OnnxGraph) -> Imported {
        self.nodes_of(graph);
        let output = |importer: &mut Self, name: &'a str| match importer.slot(name) {
            Some(Slot::Known(v)) => Ok(v),
            Some(Slot::Unknown) => Err(Refusal::Reported),
            Some(Slot::List(_) | Slot::Nothing) => {
                Err(Refusal::Unsupported("a sequence that a graph inside yields is not supported".into()))
            }
            None => Err(Refusal::Invalid(format!("nothing yields the output `{name}` of a graph inside"))),
        };
        graph.outputs.iter().map(|o| output(self, &o.name)).collect()
    }

    /// Imports the nodes of a graph.
    pub(super) fn nodes_of(&mut self, graph: &'a OnnxGraph) {
        self.initializers.extend(graph.initializers.iter().map(|(name, t)| (name.as_str(), t)));
        self.narrow_names.extend(graph.narrow.iter().map(|(name, narrow)| (name.as_str(), *narrow)));
        for (index, node) in graph.nodes.iter().enumerate() {
            self.node(index, node);
        }
    }

    /// Imports the nodes of a graph as nodes of the graph at hand. Its names mean nothing afterwards.
    fn inline(&mut self, graph: &'a OnnxGraph) -> Imported {
        let constants = graph.initializers.iter().map(|(name, _)| name.as_str());
        let names = graph.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str)).chain(constants);
        let names: BTreeSet<&'a str> = names.filter(|n| !n.is_empty()).collect();
        let hidden: HashMap<&'a str, Slot> =
            names.iter().filter_map(|n| Some((*n, self.slots.remove(n)?))).collect();
        let covered: HashMap<&'a str, &'a Tensor> =
            names.iter().filter_map(|n| Some((*n, self.initializers.remove(n)?))).collect();
        let origin = self.origin.clone();
        let outputs = self.body(graph);
        for name in &names {
            self.slots.remove(name);
            self.initializers.remove(name);
        }
        self.slots.extend(hidden);
        self.initializers.extend(covered);
        self.origin = origin;
        outputs
    }

    /// A node with the operands that its regions read behind its own; returns all results.
    fn node_of(&mut self, op: impl Into<Op>, operands: &[Value], reads: &[(&str, Read)]) -> Imported {
        let read = reads.iter().filter_map(|(_, read)| match read {
            Read::Operand(v, _) => Some(*v),
            Read::Constant(..) | Read::Extents(_) => None,
        });
        let operands: Vec<Value> = operands.iter().copied().chain(read).collect();
        let first = self.graph.add(op, &operands, self.origin.clone())?;
        Ok(self.graph.values_of(first.node).collect())
    }
}
