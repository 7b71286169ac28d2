//! Attention by random features in place of a softmax over all pairs (FAVOR+; Choromanski and others, *Rethinking Attention
//! with Performers*, arXiv 2009.14794): `softmax(scale Q Kᵀ) V ≈ φ(Q) (φ(K)ᵀ V) / (φ(Q) φ(K)ᵀ 1)`, linear in the number of
//! positions.
//!
//! With random directions `W [D, M]` (see [`margay_randnla::random_directions`]) and `x' = √scale x` the features are
//!
//! ```text
//! softmax  φ(x) = exp(x' W - ‖x'‖² / 2 - c) + 10⁻⁶
//! relu     φ(x) = max(x W / √M, 0) + 10⁻³
//! ```
//!
//! where `c` is the greatest exponent, of a query its own, of keys that of all keys of the head. The quotient does not depend
//! on it but for the small number, and neither on the norm of a query, which is left out. Causal attention has no `c` for
//! keys: a result must not depend on keys that come later. `hyperbolic` features are `exp(± x' W)` of half as many
//! directions. A mask with one number for each key is added to the exponents of the keys; heads that share keys read them
//! from one head.
//!
//! The seed of the plan names the directions, with the name of the site; another seed draws them anew. Heads of one node
//! share them, as in the paper.
//!
//! Nothing chooses this scheme by itself: exact attention stays unless a plan asks for features, or who trains. With samples a
//! plan may set a `limit`: heads are replaced whose relative error, measured on these samples, is within it, and
//! the report says which are not. Without samples the error counts as 1, that of the mean in place of the values.
//!
//! ```text
//! graph @before(%q: f32[B, 4, S, 8], %k: f32[B, 4, S, 8], %v: f32[B, 4, S, 8]) -> (y: f32[B, 4, S, 8]) {
//!   %0 = attention %q, %k, %v {scale = 0.25} : f32[B, 4, S, 8]  // att
//!   return %0
//! }
//! graph @after(%q: f32[B, 4, S, 8], %k: f32[B, 4, S, 8], %v: f32[B, 4, S, 8]) -> (y: f32[B, 4, S, 8]) {
//!   %0 = const favor.directions(orthogonal, softmax, scale = 0.25, seed = 0, stream = 727817140) : f32[8, 16]  // att random
//!   %1 = matmul %q, %0 : f32[B, 4, S, 16]  // att left
//!   %2 = reduce %1 {kind = max, axes = [3], keepdims = true} : f32[B, 4, S, 1]  // att left
//!   %3 = sub %1, %2 : f32[B, 4, S, 16]  // att left
//!   %4 = exp %3 : f32[B, 4, S, 16]  // att left
//!   %5 = const 1e-6 : f32  // att random
//!   %6 = add %4, %5 : f32[B, 4, S, 16]  // att left
//!   %7 = matmul %k, %0 : f32[B, 4, S, 16]  // att left
//!   %8 = const 1e-6 : f32  // att random
//!   %9 = mul %k, %k : f32[B, 4, S, 8]  // att left
//!   %10 = reduce %9 {kind = sum, axes = [3], keepdims = true} : f32[B, 4, S, 1]  // att left
//!   %11 = const 0.125 : f32  // att random
//!   %12 = mul %10, %11 : f32[B, 4, S, 1]  // att left
//!   %13 = sub %7, %12 : f32[B, 4, S, 16]  // att left
//!   %14 = reduce %13 {kind = max, axes = [2, 3], keepdims = true} : f32[B, 4, 1, 1]  // att left
//!   %15 = sub %13, %14 : f32[B, 4, S, 16]  // att left
//!   %16 = exp %15 : f32[B, 4, S, 16]  // att left
//!   %17 = add %16, %8 : f32[B, 4, S, 16]  // att left
//!   %18 = linear_attention %6, %17, %v : f32[B, 4, S, 8]  // att right
//!   return %18
//! }
//! ```
//!
//! Declines a mask with a row for each query, and causal attention with more keys than queries. Deliberately absent:
//! relative positions, and directions fitted to queries and keys.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use margay_ir::ops::{Attention, Bits, Concat, Gather, LinearAttention};
use margay_ir::{AddError, Graph, NodeId, Op, Origin, Part, TensorType, Value, eval};
use margay_plan::Settings;
use margay_randnla::{RandnlaError, random_directions};
use margay_tensor::random::stream_of;
use margay_tensor::{DType, Tensor};

use super::features::{FavorSettings, FeatureKernel, Features};
use super::{ApplyError, Context, Factored, Fitted, Replacement, Resolved, Scheme, SchemeFacts, Site, patch};

/// Attention by random features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FavorScheme;

impl Scheme for FavorScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "favor",
            only_by_name: Some("random features keep little of heads that were trained without them"),
            is_storage: false,
            check: |settings| FavorSettings::read(settings).map(drop),
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        g.order().into_iter().filter_map(|n| self.site(g, n)).collect()
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        let (g, n) = (context.graph, context.site.nodes[0]);
        Ok(Box::new(FittedFavor {
            heads: Heads::of(g, n).expect("sites have heads"),
            refused: refusal(g, n),
            seed: context.seed,
            stream: stream_of(&context.site.name),
            samples: context.samples.map(<[_]>::to_vec).unwrap_or_default(),
            errors: Mutex::default(),
        }))
    }

    /// None: directions are not trained.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

impl FavorScheme {
    fn site(&self, g: &Graph, n: NodeId) -> Option<Site> {
        let heads = Heads::of(g, n)?;
        let name = [g.node(n).origin.name(), g.op(n).name()].into_iter().find(|name| !name.is_empty());
        Some(Site {
            name: name.unwrap_or_default().to_owned(),
            kind: "attention",
            d_in: heads.d,
            d_out: heads.e,
            weights: Vec::new(),
            nodes: vec![n],
            measures: Vec::new(),
            samples: g.inputs_of(n).to_vec(),
            results: Vec::new(),
            schemes: vec![self.facts().name],
        })
    }
}

/// An attention, as far as it does not depend on extents that are open.
#[derive(Clone, Debug)]
struct Heads {
    op: Attention,
    /// Heads of queries, and those of keys and values that they share.
    count: usize,
    shared: usize,
    /// Length of a query, and of a value.
    d: usize,
    e: usize,
}

impl Heads {
    /// Those of a node of f32 whose logarithms nobody reads; `None` for a node that a rewrite made.
    fn of(g: &Graph, n: NodeId) -> Option<Heads> {
        let Op::Attention(op) = g.op(n) else { return None };
        let logarithms = Value { node: n, out: 1 };
        let read = op.log_sum_exp && (!g.users_of(logarithms).is_empty() || g.is_output(logarithms));
        if g.node(n).origin.part.is_some() || read {
            return None;
        }
        let operands = g.inputs_of(n);
        let [q, k, v] = [0, 1, 2].map(|i| g.ty(operands[i]));
        let extent = |ty: &TensorType, axis: usize| ty.shape[axis].as_extent().filter(|e| *e > 0);
        (q.dtype == DType::F32).then_some(())?;
        Some(Heads {
            op: op.clone(),
            count: extent(q, 1)?,
            shared: extent(k, 1)?,
            d: extent(q, 3)?,
            e: extent(v, 3)?,
        })
    }
}

/// Why an attention has no such form.
fn refusal(g: &Graph, n: NodeId) -> Option<String> {
    let Op::Attention(op) = g.op(n) else { return None };
    let operands = g.inputs_of(n);
    let [queries, keys] = [0, 1].map(|i| &g.ty(operands[i]).shape[2]);
    if op.causal && queries != keys {
        return Some(format!("causal attention of {queries} queries and {keys} keys, expected as many"));
    }
    if op.scale.get() <= 0.0 {
        return Some(format!("scale {}, expected a number above 0", op.scale.get()));
    }
    let shape = operands.get(3).map(|mask| &g.ty(*mask).shape)?;
    let rows = shape.len().checked_sub(2).map(|axis| &shape[axis])?;
    (!rows.is(1)).then(|| format!("the mask has a row for each of {rows} queries, expected one row for all"))
}

/// An attention, with what was seen of it.
struct FittedFavor {
    heads: Heads,
    refused: Option<String>,
    seed: u64,
    stream: u64,
    /// By run, its operands.
    samples: Vec<Vec<Tensor>>,
    /// By settings, the squared errors of the heads and their squared norms.
    errors: Mutex<HashMap<String, Vec<[f64; 2]>>>,
}

/// Products of queries and keys that are computed to measure an error, at most.
const MOST_MEASURED: usize = 1 << 31;

impl FittedFavor {
    fn offered(&self, settings: &Settings) -> Result<FavorSettings, String> {
        if let Some(why) = &self.refused {
            return Err(why.clone());
        }
        let read = FavorSettings::read(settings)?;
        let found = read.heads.iter().flatten().find(|head| **head >= self.heads.count);
        match found {
            Some(head) => Err(format!("head {head} of heads 0 to {}", self.heads.count - 1)),
            None => Ok(read),
        }
    }

    /// The heads that settings name.
    fn chosen(&self, s: &FavorSettings) -> Vec<usize> {
        s.heads.clone().unwrap_or_else(|| (0..self.heads.count).collect())
    }

    /// Squared errors of all heads on the samples, each with the squared norm of the exact output about its mean; nothing
    /// without samples.
    fn measured(&self, s: &FavorSettings) -> Result<Option<Vec<[f64; 2]>>, String> {
        if self.samples.is_empty() {
            return Ok(None);
        }
        let all = Settings::write(&FavorSettings { heads: None, limit: None, ..s.clone() });
        let key = all.to_string();
        let known = |errors: &Mutex<HashMap<_, _>>| {
            errors.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
        };
        if let Some(found) = known(&self.errors) {
            return Ok(Some(found));
        }
        let mut sums = vec![[0.0; 2]; self.heads.count];
        for operands in &self.samples {
            self.add_errors(operands, &all, &mut sums)?;
        }
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).insert(key, sums.clone());
        Ok(Some(sums))
    }

    /// Adds the errors of one run.
    fn add_errors(&self, operands: &[Tensor], all: &Settings, sums: &mut [[f64; 2]]) -> Result<(), String> {
        let [q, k] = [0, 1].map(|i| operands[i].shape());
        let products = q[..3].iter().product::<usize>().saturating_mul(k[2]).saturating_mul(q[3]);
        if products > MOST_MEASURED {
            return Err(format!(
                "{products} products to measure errors by, expected at most {MOST_MEASURED}"
            ));
        }
        let mut g = Graph::new("attention");
        let names = ["q", "k", "v", "mask"];
        let inputs: Vec<Value> =
            names.iter().zip(operands).map(|(name, t)| g.add_input(name, TensorType::of(t))).collect();
        let exact = g.add(self.heads.op.clone(), &inputs, Origin::default()).map_err(|e| e.to_string())?;
        g.add_output("y", exact);
        let site = FavorScheme.site(&g, exact.node).ok_or("the samples have no heads")?;
        let patch = patch(self, &g, &site, all).map_err(|e| e.to_string())?;
        let given: Vec<(&str, &Tensor)> = names.into_iter().zip(operands).collect();
        let run = |g: &Graph| {
            let y = eval::run(g, &given).map_err(|e| e.to_string())?.swap_remove(0);
            y.to_vec::<f32>().map_err(|e| e.to_string())
        };
        let expected = run(&g)?;
        g.apply(patch).map_err(|e| e.to_string())?;
        let found = run(&g)?;
        let [batch, heads, queries] = [q[0], q[1], q[2]];
        let seen = seen_queries(operands, queries);
        for (head, sum) in sums.iter_mut().enumerate() {
            let rows: Vec<usize> = (0..batch)
                .flat_map(|b| (0..queries).map(move |i| (b, i)))
                .filter(|(b, i)| seen(*b, *i))
                .map(|(b, i)| ((b * heads + head) * queries + i) * self.heads.e)
                .collect();
            for j in 0..self.heads.e {
                let at = |y: &[f32], row: usize| f64::from(y[row + j]);
                let mean = rows.iter().map(|row| at(&expected, *row)).sum::<f64>() / rows.len().max(1) as f64;
                for row in &rows {
                    sum[0] += (at(&found, *row) - at(&expected, *row)).powi(2);
                    sum[1] += (at(&expected, *row) - mean).powi(2);
                }
            }
        }
        Ok(())
    }

    /// The scheme's form of an attention over operands with as many heads each.
    fn attend(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        s: &FavorSettings,
        [q, k, v, mask]: [Option<Value>; 4],
        part: Part,
    ) -> Result<Value, AddError> {
        let origin = work.graph.node(n).origin.part(Part::Random);
        let directions = self.directions(work, s, origin)?;
        let [q, k, v] = [q, k, v].map(|x| x.expect("attention has queries, keys and values"));
        let node =
            Features { n, s, scale: self.heads.op.scale.get(), causal: self.heads.op.causal, directions };
        let q = node.of_queries(work, q)?;
        let mask = mask.map(|mask| node.column(work, mask)).transpose()?;
        let k = node.of_keys(work, k, mask)?;
        // Where a mask hides every key, the sum of the weights is 0.
        let epsilon = Bits::new(if mask.is_some() { LEAST_SUM } else { 0.0 });
        let op = LinearAttention { causal: self.heads.op.causal, epsilon };
        work.add(op, &[q, k, v], work.graph.node(n).origin.part(part))
    }

    /// The directions, scaled as the kernel wants them: `[d, features]`.
    fn directions(
        &self,
        work: &mut Replacement<'_>,
        s: &FavorSettings,
        origin: Origin,
    ) -> Result<Value, AddError> {
        let (d, scale) = (self.heads.d, self.heads.op.scale.get());
        let (law, word) = s.directions.law();
        let factor = match s.kernel {
            FeatureKernel::Softmax => scale.sqrt(),
            FeatureKernel::Relu => 1.0 / (s.features as f64).sqrt(),
        };
        let contents = work.computed(|| {
            let drawn = if s.hyperbolic { s.features / 2 } else { s.features };
            let w = random_directions(law, d, drawn, self.seed, self.stream);
            let at = |i: usize, j: usize| if j < drawn { w.at(i, j) } else { -w.at(i, j - drawn) };
            let all = (0..d).flat_map(|i| (0..s.features).map(move |j| (i, j)));
            Ok::<_, AddError>(all.map(|(i, j)| (factor * at(i, j)) as f32).collect())
        })?;
        let pairs = if s.hyperbolic { ", hyperbolic" } else { "" };
        let name = format!(
            "favor.directions({word}{pairs}, {}, scale = {scale}, seed = {}, stream = {})",
            s.kernel.name(),
            self.seed,
            self.stream
        );
        work.constant(&name, &[d, s.features], contents, origin)
    }
}

/// What a sum of weights is at least, where a mask may hide all keys.
const LEAST_SUM: f64 = 1e-30;

/// Which queries of which sample count: of as many queries as keys those at positions that the mask shows.
fn seen_queries(operands: &[Tensor], queries: usize) -> impl Fn(usize, usize) -> bool {
    let mask = operands.get(3).filter(|mask| mask.shape().last() == Some(&queries));
    let mask = mask.filter(|_| operands[1].shape()[2] == queries);
    let values = mask.and_then(|mask| mask.to_vec::<f32>().ok());
    let rows = values.as_ref().map_or(0, |values| values.len() / queries.max(1));
    let per_batch = rows / operands[0].shape()[0].max(1);
    move |batch, query| {
        let row = if per_batch == 0 { 0 } else { batch * per_batch };
        values.as_ref().is_none_or(|values| values[row * queries + query] > HIDDEN)
    }
}

/// The greatest number of a mask that hides a key.
const HIDDEN: f32 = -1e4;

/// The heads of a value at some places.
fn picked(
    work: &mut Replacement<'_>,
    (n, part): (NodeId, Part),
    v: Value,
    axis: usize,
    heads: &[usize],
) -> Result<Value, AddError> {
    let origin = work.graph.node(n).origin.clone();
    let name = format!("heads({heads:?})");
    let at = work.positions(&name, heads.len(), Some(heads), origin.part(Part::Random))?;
    work.add(Gather { axis }, &[v, at], origin.part(part))
}

impl Fitted for FittedFavor {
    fn resolved(&self, settings: &Settings) -> Result<Resolved, String> {
        let s = self.offered(settings)?;
        let Some(limit) = s.limit else {
            return Ok(Resolved { settings: settings.clone(), remarks: Vec::new() });
        };
        let measured = self.measured(&s)?.ok_or("a `limit` of the error of heads needs samples")?;
        let error = |head: usize| relative(measured[head]).sqrt();
        let (within, above): (Vec<usize>, Vec<usize>) =
            self.chosen(&s).into_iter().partition(|head| error(*head) <= limit);
        let list: Vec<String> = above.iter().map(|head| format!("{head} ({:.2})", error(*head))).collect();
        let remarks = match above.is_empty() {
            true => Vec::new(),
            false => vec![format!(
                "{} of {} heads stay exact, with relative errors above {limit} of {} features: {}",
                above.len(),
                self.heads.count,
                s.features,
                list.join(", ")
            )],
        };
        let settings = Settings::write(&FavorSettings { heads: Some(within), limit: None, ..s });
        Ok(Resolved { settings, remarks })
    }

    /// Of all heads together, on the samples; 1 where there are none.
    fn squared_error(&self, settings: &Settings) -> Result<f64, String> {
        let s = self.offered(settings)?;
        let Some(measured) = self.measured(&s)? else { return Ok(1.0) };
        let error = self.chosen(&s).iter().map(|head| measured[*head][0]).sum::<f64>();
        Ok(relative([error, measured.iter().map(|m| m[1]).sum::<f64>()]))
    }

    fn replace(
        &self,
        work: &mut Replacement<'_>,
        site: &Site,
        settings: &Settings,
    ) -> Result<(), ApplyError> {
        let s = self.offered(settings).map_err(ApplyError::Settings)?;
        let (n, chosen) = (site.nodes[0], self.chosen(&s));
        if chosen.is_empty() {
            return Ok(());
        }
        let Heads { count, shared, .. } = self.heads;
        let operands: Vec<Value> = (0..work.graph.inputs_of(n).len()).map(|i| work.operand(n, i)).collect();
        let mask = operands.get(3).copied();
        // The axis of a mask that has a number for each head.
        let mask_axis = mask.and_then(|mask| {
            let shape = &work.ty(mask).shape;
            shape.len().checked_sub(3).filter(|axis| !shape[*axis].is(1))
        });
        let part_of = |work: &mut Replacement<'_>, heads: &[usize], part: Part| {
            let at = (n, part);
            let keys: Vec<usize> = heads.iter().map(|head| head * shared / count).collect();
            let all = heads.len() == count;
            let q = if all { operands[0] } else { picked(work, at, operands[0], 1, heads)? };
            let mut read = [operands[1], operands[2]];
            if !(all && shared == count) {
                for v in &mut read {
                    *v = picked(work, at, *v, 1, &keys)?;
                }
            }
            let mask = match (mask, mask_axis) {
                (Some(mask), Some(axis)) if !all => Some(picked(work, at, mask, axis, heads)?),
                (mask, _) => mask,
            };
            Ok::<_, AddError>([Some(q), Some(read[0]), Some(read[1]), mask])
        };
        if chosen.len() == count {
            let operands = part_of(work, &chosen, Part::Left)?;
            let result = self.attend(work, n, &s, operands, Part::Right)?;
            work.replace(n.into(), result);
            return Ok(());
        }
        let exact: Vec<usize> = (0..count).filter(|head| !chosen.contains(head)).collect();
        let operands = part_of(work, &chosen, Part::Left)?;
        let features = self.attend(work, n, &s, operands, Part::Term)?;
        let operands = part_of(work, &exact, Part::Term)?;
        let operands: Vec<Value> = operands.into_iter().flatten().collect();
        let origin = work.graph.node(n).origin.clone();
        let rest = work.add(self.heads.op.clone(), &operands, origin.part(Part::Term))?;
        let both = work.add(Concat { axis: 1 }, &[features, rest], origin.part(Part::Term))?;
        let order: Vec<usize> = chosen.iter().chain(&exact).copied().collect();
        let places: Vec<usize> =
            (0..count).map(|head| order.iter().position(|h| *h == head).expect("every head")).collect();
        let result = picked(work, (n, Part::Right), both, 1, &places)?;
        work.replace(n.into(), result);
        Ok(())
    }
}

/// A squared error over a squared norm.
fn relative([error, norm]: [f64; 2]) -> f64 {
    match norm > 0.0 {
        true => error / norm,
        false if error > 0.0 => f64::INFINITY,
        false => 0.0,
    }
}
