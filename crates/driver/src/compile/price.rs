//! What every candidate would cost: time, operations and stored bytes of the program that it becomes.
//!
//! The neighbourhood of a site is cut out of the graph: its nodes, and the elementwise nodes behind them that a kernel may
//! take along. It is priced as it is and as each candidate makes it, all by the same way: symbols bound, lowered,
//! and costed step by step, with constants stored as those of the result will be. Constants have their shapes only, so
//! nothing is factorized for a price, and neighbourhoods that look alike are priced once.
//!
//! Layouts are free at the border of a neighbourhood: in the whole model they are passed on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use margay_ir::ops::Const;
use margay_ir::{Graph, NodeId, Op, Origin, Output, Patch, Payload, Value};
use margay_loops::{Backend, Constant, Program};
use margay_passes::StoreConstants;
use margay_passes::sketch::{ApplyError, Site, form};
use margay_plan::Price;
use margay_tensor::{Binding, Map, Tensor};

use super::Job;
use super::fit::Fit;
use crate::{DriverError, Dump, build};

/// What everything costs. Bytes are what is stored: in the layouts that kernels read, with scales and padding.
pub(crate) struct Prices {
    /// The model as it is; bytes are those of the weights of its products and convolutions, and of lookups
    /// that the plan names.
    pub(crate) before: Price,
    /// The same with its constants stored as those of the result.
    pub(crate) stored: Price,
    /// Bytes that this would take more if equal weights of different sites were not stored once: factors of theirs differ.
    pub(crate) repeated: i64,
    /// Each site as it is.
    pub(crate) plain: Vec<Price>,
    /// The same with its constants stored as those of the result.
    pub(crate) dense: Vec<Price>,
    /// By fit: what its site costs at each of its settings, stored so.
    pub(crate) candidates: Vec<Vec<Price>>,
    /// What the model as it is stores besides these weights, such as tables and biases.
    pub(crate) other_bytes_before: u64,
    /// What the result stores besides them.
    pub(crate) other_bytes: u64,
}

/// How programs are made and costed.
struct Pricing<'a> {
    binding: &'a Binding,
    /// The most that extents which a run decides can be.
    decided: Binding,
    backend: &'a dyn Backend,
    /// Threads that times are predicted for.
    threads: usize,
}

/// Prices the model, all sites and candidates.
pub(crate) fn price(job: &Job<'_>, fits: &[Fit]) -> Result<Prices, DriverError> {
    let pricing = Pricing::of(job);
    let order: HashMap<NodeId, usize> =
        job.graph().order().into_iter().enumerate().map(|(at, n)| (n, at)).collect();
    let of = |site: &Site| Neighbourhood::of(job.graph(), &order, site);
    let places: Vec<Neighbourhood> = job.sites.iter().map(of).collect();
    let mut known: HashMap<String, Price> = HashMap::new();
    let mut priced = |key: String, place: &Neighbourhood, graph: &dyn Fn() -> Result<Graph, DriverError>| {
        if let Some(price) = known.get(&key) {
            return Ok(*price);
        }
        let price = pricing.of_program(&pricing.lowered(&graph()?, true)?, place.other_bytes);
        known.insert(key, price);
        Ok::<Price, DriverError>(price)
    };
    let (mut plain, mut dense, mut candidates) = (Vec::new(), Vec::new(), Vec::new());
    for (site, place) in job.sites.iter().zip(&places) {
        let storage = job.storage_of(site);
        plain.push(priced(place.text.clone(), place, &|| Ok(place.graph.clone()))?);
        dense.push(priced(key(&place.text, &storage), place, &|| stored(place.graph.clone(), &storage))?);
    }
    for fit in fits {
        let (site, place) = (&job.sites[fit.site], &places[fit.site]);
        let storage = job.storage_of(site);
        let mut prices = Vec::new();
        for settings in &fit.settings {
            let key = key(&format!("{}{} {settings}", place.text, fit.scheme), &storage);
            let graph = || stored(place.with(fit, settings, &site.name)?, &storage);
            prices.push(priced(key, place, &graph)?);
        }
        candidates.push(prices);
    }
    let program = pricing.lowered(job.graph(), false)?;
    let other_bytes_before = others(job, &program);
    let before = pricing.of_program(&program, other_bytes_before);
    let program = match job.storage == StoreConstants::default() {
        true => program,
        // Tables may be stored otherwise, too.
        false => pricing.lowered(&stored(job.graph().clone(), &job.storage)?, false)?,
    };
    let other_bytes = others(job, &program);
    let stored = pricing.of_program(&program, other_bytes);
    let repeated = repeated(job, &dense);
    Ok(Prices { before, stored, repeated, plain, dense, candidates, other_bytes_before, other_bytes })
}

/// See [`Prices::repeated`].
fn repeated(job: &Job<'_>, dense: &[Price]) -> i64 {
    let mut known = BTreeSet::new();
    let mut more = 0;
    for (site, price) in job.sites.iter().zip(dense) {
        let [weight] = site.weights[..] else { continue };
        let contents = job.graph().constant(weight).map(|payload| payload.key().to_string());
        if !contents.is_none_or(|contents| known.insert((contents, price.bytes))) {
            more += price.bytes;
        }
    }
    more
}

/// What a model without sketches costs; bytes are those of the weights of its products and convolutions, and of lookups
/// that the plan names.
pub(crate) fn of_whole(job: &Job<'_>, g: &Graph) -> Result<Price, DriverError> {
    let pricing = Pricing::of(job);
    let program = pricing.lowered(g, false)?;
    Ok(pricing.of_program(&program, others(job, &program)))
}

/// Bytes of the constants that are no weights of products and convolutions, and no tables of lookups that the plan names.
fn others(job: &Job<'_>, program: &Program) -> u64 {
    let weights = job.sites.iter().filter(|site| site.only_by_name).flat_map(|site| &site.weights);
    let tables: BTreeSet<String> =
        weights.filter_map(|w| job.graph().constant(*w)).map(|table| table.key().to_string()).collect();
    let is_table = |c: &&Constant| c.packed.is_none() && c.names.iter().any(|name| tables.contains(name));
    let tables: u64 = program.constants.iter().filter(is_table).map(|table| table.bytes() as u64).sum();
    program.constant_bytes() - program.packed_bytes() - tables
}

/// What the sketched model costs.
pub(crate) fn after(job: &Job<'_>, prices: &Prices, g: &Graph) -> Result<Price, DriverError> {
    let pricing = Pricing::of(job);
    Ok(pricing.of_program(&pricing.lowered(g, false)?, prices.other_bytes))
}

/// What tells a graph with its constants stored in some way from others.
fn key(text: &str, storage: &StoreConstants) -> String {
    match *storage == StoreConstants::default() {
        true => text.to_owned(),
        false => format!("{:?}\n{text}", storage.products),
    }
}

fn stored(g: Graph, storage: &StoreConstants) -> Result<Graph, DriverError> {
    Ok(build::stored(g, storage, &mut Dump::none())?.0)
}

impl<'a> Pricing<'a> {
    fn of(job: &'a Job<'_>) -> Pricing<'a> {
        let threads = job.options.predict_threads;
        let decided = job.graph().bounds_of_decided(&job.bindings[0]);
        Pricing { binding: &job.bindings[0], decided, backend: &*job.backend, threads }
    }

    /// The program of a graph, or of a part of one, whose border is open.
    fn lowered(&self, g: &Graph, part: bool) -> Result<Program, DriverError> {
        let mut binding = self.binding.clone();
        if part {
            // What decides an extent may lie outside of the part.
            binding.extend(self.decided.clone());
        }
        let mut bound = build::bind(g, &binding, self.backend, &mut Dump::none())?;
        if part {
            open_border(&mut bound);
        }
        Ok(margay_lower::lower(&bound, self.backend)?)
    }

    /// The bytes are those of all constants but for so many of others.
    fn of_program(&self, program: &Program, other_bytes: u64) -> Price {
        Price {
            bytes: program.constant_bytes() as i64 - other_bytes as i64,
            flops: program.flops() as i64,
            seconds: program.seconds(self.backend, self.threads),
        }
    }
}

/// A site with what is around it, as a graph of its own. Constants have no contents, but for small ones.
struct Neighbourhood {
    graph: Graph,
    site: Site,
    /// The text of the graph: equal for neighbourhoods that look alike.
    text: String,
    /// Bytes of constants that are no weights of the site.
    other_bytes: u64,
}

/// Elements of constants whose contents decide what a graph is lowered to, at most.
const SMALL: usize = 16;

/// Elementwise nodes that are taken along behind each node of a site, at most.
const BEHIND: usize = 4;

impl Neighbourhood {
    /// `order` says at which place of the topological order each node is.
    fn of(g: &Graph, order: &HashMap<NodeId, usize>, site: &Site) -> Neighbourhood {
        let mut inside = site.nodes.clone();
        for &n in &site.nodes {
            let mut last = n;
            for _ in 0..BEHIND {
                let Some(next) = g.sole_user(last.into()) else { break };
                let same = g.node(next).types == g.node(last).types;
                if inside.contains(&next) || !same || g.op(next).facts().elementwise.is_none() {
                    break;
                }
                inside.push(next);
                last = next;
            }
        }
        inside.sort_unstable_by_key(|n| order[n]);
        let mut small = Graph::new("site");
        let mut map: HashMap<Value, Value> = HashMap::new();
        let mut other_bytes = 0;
        for &n in &inside {
            let mut operands = Vec::new();
            for v in g.inputs_of(n) {
                let new = map.get(&v).copied().unwrap_or_else(|| match g.constant(v) {
                    Some(payload) => {
                        let count = payload.tensor().len();
                        if count > 1 && !site.weights.contains(&v) {
                            other_bytes += payload.tensor().bytes().len() as u64;
                        }
                        let payload =
                            if count > SMALL { shape_of(payload, map.len()) } else { payload.clone() };
                        let added = small.add(Const { payload }, &[], Origin::default());
                        added.expect("constants take no operands")
                    }
                    None => small.add_input(&format!("x{}", map.len()), g.ty(v).clone()),
                });
                map.insert(v, new);
                operands.push(new);
            }
            let part = Origin { part: g.node(n).origin.part, ..Origin::default() };
            let new = small.add(g.op(n).clone(), &operands, part).expect("a part of a graph has its types");
            for out in 0..g.node(n).types.len() as u16 {
                map.insert(Value { node: n, out }, Value { out, ..new });
            }
        }
        for &n in &inside {
            for out in 0..g.node(n).types.len() as u16 {
                let v = Value { node: n, out };
                if g.is_output(v) || g.users_of(v).iter().any(|(user, _)| !inside.contains(user)) {
                    small.add_output(&format!("y{}", small.outputs().len()), map[&v]);
                }
            }
        }
        let mapped = |n: NodeId| map[&Value::from(n)].node;
        let text = small.to_string();
        Neighbourhood { site: site.mapped(&mapped), graph: small, text, other_bytes }
    }

    /// The graph with the site replaced.
    fn with(&self, fit: &Fit, settings: &margay_plan::Settings, name: &str) -> Result<Graph, DriverError> {
        let mut graph = self.graph.clone();
        let failed = |why: String| DriverError::Options(format!("`{name}`: {why}"));
        let patch = form(&*fit.fitted, &graph, &self.site, settings);
        let patch = patch.map_err(|e: ApplyError| failed(e.to_string()))?;
        graph.apply(patch).map_err(|e| failed(e.to_string()))?;
        graph.remove_dead();
        Ok(graph)
    }
}

/// Zeros in place of the contents, but for a first byte that tells one constant from another.
fn shape_of(payload: &Payload, number: usize) -> Payload {
    let tensor = payload.tensor();
    let bytes = tensor.bytes().len();
    let zeros = Map::zeros(bytes, 1 + (number % 255) as u8).expect("addresses for one more constant");
    let other = Tensor::from_map(tensor.dtype(), tensor.shape(), Arc::new(zeros), 0..bytes);
    Payload::derived(&format!("constant({number})"), other.expect("as many bytes as before"))
}

/// Takes transposes away that nothing but an input is before, or nothing but an output behind.
fn open_border(g: &mut Graph) {
    let mut patch = Patch::new();
    for n in g.inputs().to_vec() {
        for (user, _) in g.users_of(n.into()) {
            if matches!(g.op(user), Op::Transpose(_)) && !g.is_output(user.into()) {
                let ty = g.ty(user.into()).clone();
                let input = g.add_input(&format!("inner {}", g.inputs().len()), ty);
                patch.redirect(user.into(), input);
            }
        }
    }
    g.apply(patch).expect("an input has the type of what it stands for");
    let inner = |o: &Output| match g.op(o.value.node) {
        Op::Transpose(_) => g.inputs_of(o.value.node)[0],
        _ => o.value,
    };
    let outputs = g.outputs().iter().map(|o| Output { value: inner(o), ..o.clone() }).collect();
    g.set_outputs(outputs);
    g.remove_dead();
}
