//! What schemes of attention share: their sites, which heads of one are replaced, and how large the error of each is.
//!
//! A scheme says by a [`HeadForm`] which attention it has no form for, and which nodes stand for one. The rest is the same for
//! all: a plan names the `heads` that are replaced, or sets a `limit` of their relative errors, which are measured on
//! what the operands were in a few runs. Heads that stay exact are computed beside the others, and the results are put in
//! order. Forms get as many heads of keys and values as of queries.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use margay_ir::ops::{Attention, Concat, Gather};
use margay_ir::{AddError, Graph, NodeId, Op, Origin, Part, TensorType, Value, eval};
use margay_plan::Settings;
use margay_randnla::Gram;
use margay_tensor::{DType, Dim, Shape, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ApplyError, Context, Fitted, Replacement, Resolved, Site, name_of, patch};

/// Which heads a plan replaces; all where it says nothing. Every form has it among its settings.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct HeadChoice {
    /// The heads that are replaced, ascending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Vec<usize>>,
    /// The greatest relative error of a head that is replaced, about the mean of its output; needs samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
}

impl HeadChoice {
    /// These heads, whatever their errors.
    pub fn of(heads: Vec<usize>) -> HeadChoice {
        HeadChoice { heads: Some(heads), limit: None }
    }

    /// All heads whose errors are within a limit.
    pub fn within(limit: f64) -> HeadChoice {
        HeadChoice { heads: None, limit: Some(limit) }
    }

    fn check(&self) -> Result<(), String> {
        if let Some(heads) = self.heads.as_ref().filter(|heads| !heads.is_sorted_by(|a, b| a < b)) {
            return Err(format!("heads {heads:?} are not ascending"));
        }
        match self.limit.filter(|limit| !(*limit > 0.0 && limit.is_finite())) {
            Some(limit) => Err(format!("limit {limit}, expected a number above 0")),
            None => Ok(()),
        }
    }
}

/// What a plan says of a form of attention.
pub(super) trait HeadSettings: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Says what is wrong with the settings of the form alone, whatever the site.
    fn check(&self) -> Result<(), String>;

    /// The heads that get the form.
    fn choice(&self) -> &HeadChoice;

    /// The same form for other heads.
    fn with_choice(&self, choice: HeadChoice) -> Self;

    /// How large the form is, in words: `64 features`.
    fn size(&self) -> String;
}

/// Reads settings and checks them.
pub(super) fn read<S: HeadSettings>(settings: &Settings) -> Result<S, String> {
    let read: S = settings.read()?;
    read.check()?;
    read.choice().check()?;
    Ok(read)
}

/// Another form of attention.
pub(super) trait HeadForm: Send + Sync + 'static {
    /// What a plan says of it.
    type Settings: HeadSettings;

    /// Why an attention has no such form at these settings.
    fn refusal(&self, heads: &Heads, s: &Self::Settings) -> Option<String>;

    /// Adds the nodes that stand for an attention; gives the last.
    fn attend(
        &self,
        nodes: &mut Nodes<'_, '_>,
        heads: &Heads,
        s: &Self::Settings,
        operands: Operands,
    ) -> Result<Value, AddError>;
}

/// The nodes that are put in place of an attention.
pub(super) struct Nodes<'a, 'g> {
    pub(super) work: &'a mut Replacement<'g>,
    n: NodeId,
    /// What the last of them is of the node.
    part: Part,
}

impl Nodes<'_, '_> {
    /// The origin of a part.
    pub(super) fn origin(&self, part: Part) -> Origin {
        self.work.graph.node(self.n).origin.part(part)
    }

    /// The type of a value.
    pub(super) fn ty(&self, v: Value) -> &TensorType {
        self.work.ty(v)
    }

    /// A node that others read.
    pub(super) fn add(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, AddError> {
        let origin = self.origin(Part::Left);
        self.work.add(op, inputs, origin)
    }

    /// The node that gives the result.
    pub(super) fn last(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, AddError> {
        let origin = self.origin(self.part);
        self.work.add(op, inputs, origin)
    }

    /// A constant of one f32.
    pub(super) fn number(&mut self, x: f64) -> Result<Value, AddError> {
        let origin = self.origin(Part::Random);
        self.work.number(x, origin)
    }
}

/// Operands of an attention, with as many heads each: Q `[B, H, S, D]`, K `[B, H, T, D]`, V `[B, H, T, E]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub(super) q: Value,
    pub(super) k: Value,
    pub(super) v: Value,
    /// Added to the scores; it broadcasts to `[B, H, S, T]`.
    pub(super) mask: Option<Value>,
}

/// An attention.
#[derive(Clone, Debug)]
pub(super) struct Heads {
    pub(super) op: Attention,
    /// Heads of queries, and those of keys and values that they share.
    count: usize,
    shared: usize,
    /// Length of a query, and of a value.
    pub(super) d: usize,
    pub(super) e: usize,
    /// Number of queries, and of keys.
    pub(super) queries: Dim,
    pub(super) keys: Dim,
    /// The shape of the mask.
    mask: Option<Shape>,
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
            queries: q.shape[2].clone(),
            keys: k.shape[2].clone(),
            mask: operands.get(3).map(|mask| g.ty(*mask).shape.clone()),
        })
    }

    /// Why a form that needs one mask for all queries does not stand for this.
    pub(super) fn row_refusal(&self) -> Option<String> {
        let mask = self.mask.as_ref()?;
        let rows = mask.len().checked_sub(2).map(|axis| &mask[axis])?;
        let why = || format!("the mask has a row for each of {rows} queries, expected one row for all");
        (!rows.is(1)).then(why)
    }

    /// Moments of the queries and keys of each head, times the root of the scale, over the positions that masks show.
    pub(super) fn moments(&self, samples: &[Vec<Tensor>]) -> Result<Vec<[Gram; 2]>, String> {
        let root = self.op.scale.get().sqrt();
        let mut found: Vec<[Gram; 2]> =
            (0..self.count).map(|_| [Gram::new(self.d), Gram::new(self.d)]).collect();
        for operands in samples {
            let (queries, keys) = (operands[0].shape()[2], operands[1].shape()[2]);
            let (query, key) = (seen_queries(operands, queries), seen_keys(operands, keys));
            let seen: [&dyn Fn(usize, usize) -> bool; 2] = [&query, &key];
            for (operand, (count, seen)) in
                [(self.count, seen[0]), (self.shared, seen[1])].into_iter().enumerate()
            {
                let values = operands[operand].to_vec::<f32>().map_err(|e| e.to_string())?;
                let rows = operands[operand].shape()[2];
                for (at, row) in values.chunks_exact(self.d).enumerate() {
                    let (position, block) = (at % rows, at / rows);
                    if !seen(block / count, position) {
                        continue;
                    }
                    let scaled: Vec<f32> = row.iter().map(|x| (root * f64::from(*x)) as f32).collect();
                    let head = block % count;
                    let shared = (0..self.count).filter(|h| h * count / self.count == head);
                    for head in shared {
                        found[head][operand].add_rows(&scaled).map_err(|e| e.to_string())?;
                    }
                }
            }
        }
        Ok(found)
    }

    /// The axis of the mask that has a number for each head.
    fn mask_axis(&self) -> Option<usize> {
        let mask = self.mask.as_ref()?;
        mask.len().checked_sub(3).filter(|axis| !mask[*axis].is(1))
    }
}

/// The sites of a scheme in a graph.
pub(super) fn sites(g: &Graph, scheme: &'static str) -> Vec<Site> {
    g.order().into_iter().filter_map(|n| site(g, n, scheme)).collect()
}

fn site(g: &Graph, n: NodeId, scheme: &'static str) -> Option<Site> {
    let heads = Heads::of(g, n)?;
    Some(Site {
        name: name_of(g, &[n]),
        kind: "attention",
        only_by_name: false,
        d_in: heads.d,
        d_out: heads.e,
        weights: Vec::new(),
        nodes: vec![n],
        measures: Vec::new(),
        samples: g.inputs_of(n).to_vec(),
        results: Vec::new(),
        schemes: vec![scheme],
    })
}

/// An attention, with what was seen of it.
pub(super) struct FittedHeads<F> {
    form: F,
    heads: Heads,
    /// By run, its operands.
    samples: Vec<Vec<Tensor>>,
    /// By settings, the squared errors of the heads and their squared norms.
    errors: Mutex<HashMap<String, Vec<[f64; 2]>>>,
}

/// Operations that are done to measure an error in one run, at most: those of exact attention and those of the form.
const MOST_MEASURED: u64 = 1 << 33;

impl<F: HeadForm> FittedHeads<F> {
    /// A form at a site of [`sites`].
    pub(super) fn new(context: &Context<'_>, form: F) -> FittedHeads<F> {
        FittedHeads {
            form,
            heads: Heads::of(context.graph, context.site.nodes[0]).expect("sites have heads"),
            samples: context.samples.map(<[_]>::to_vec).unwrap_or_default(),
            errors: Mutex::default(),
        }
    }

    fn offered(&self, settings: &Settings) -> Result<F::Settings, String> {
        let read: F::Settings = read(settings)?;
        if let Some(why) = self.form.refusal(&self.heads, &read) {
            return Err(why);
        }
        let count = self.heads.count;
        let found = read.choice().heads.iter().flatten().find(|head| **head >= count);
        match found {
            Some(head) => Err(format!("head {head} of heads 0 to {}", count - 1)),
            None => Ok(read),
        }
    }

    /// The heads that settings name.
    fn chosen(&self, s: &F::Settings) -> Vec<usize> {
        s.choice().heads.clone().unwrap_or_else(|| (0..self.heads.count).collect())
    }

    /// Squared errors of all heads on the samples, each with the squared norm of the exact output about its mean; nothing
    /// without samples.
    fn measured(&self, s: &F::Settings) -> Result<Option<Vec<[f64; 2]>>, String> {
        if self.samples.is_empty() {
            return Ok(None);
        }
        let all = Settings::write(&s.with_choice(HeadChoice::default()));
        let key = all.to_string();
        let known = |errors: &Mutex<HashMap<_, _>>| {
            errors.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
        };
        if let Some(found) = known(&self.errors) {
            return Ok(Some(found));
        }
        let mut sums = vec![[0.0; 2]; self.heads.count];
        let mut rows = 0;
        for operands in &self.samples {
            rows += self.add_errors(operands, &all, &mut sums)?;
        }
        if rows == 0 {
            return Err("no query of the samples sees a key, so that no error is known".to_owned());
        }
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).insert(key, sums.clone());
        Ok(Some(sums))
    }

    /// Adds the errors of one run; the rows of all heads that count. Those of queries that see no key do not.
    fn add_errors(
        &self,
        operands: &[Tensor],
        all: &Settings,
        sums: &mut [[f64; 2]],
    ) -> Result<usize, String> {
        let mut g = Graph::new("attention");
        let names = ["q", "k", "v", "mask"];
        let inputs: Vec<Value> =
            names.iter().zip(operands).map(|(name, t)| g.add_input(name, TensorType::of(t))).collect();
        let exact = g.add(self.heads.op.clone(), &inputs, Origin::default()).map_err(|e| e.to_string())?;
        g.add_output("y", exact);
        let site = site(&g, exact.node, "").ok_or("the samples have no heads")?;
        // Lengths that are open in the model are known here.
        let known = Heads::of(&g, exact.node).ok_or("the samples have no heads")?;
        if let Some(why) = self.form.refusal(&known, &self.offered(all)?) {
            return Err(why);
        }
        let patch = patch(self, &g, &site, all).map_err(|e| e.to_string())?;
        let mut replaced = g.clone();
        replaced.apply(patch).map_err(|e| e.to_string())?;
        replaced.remove_dead();
        let operations = g.cost().flops.saturating_add(replaced.cost().flops);
        if operations > MOST_MEASURED {
            return Err(format!(
                "{operations} operations to measure errors by, expected at most {MOST_MEASURED}"
            ));
        }
        let given: Vec<(&str, &Tensor)> = names.into_iter().zip(operands).collect();
        let run = |g: &Graph| {
            let y = eval::run(g, &given).map_err(|e| e.to_string())?.swap_remove(0);
            y.to_vec::<f32>().map_err(|e| e.to_string())
        };
        let (expected, found) = (run(&g)?, run(&replaced)?);
        let q = operands[0].shape();
        let [batch, heads, queries] = [q[0], q[1], q[2]];
        let seen = seen_queries(operands, queries);
        let mut counted = 0;
        for (head, sum) in sums.iter_mut().enumerate() {
            let rows: Vec<usize> = (0..batch)
                .flat_map(|b| (0..queries).map(move |i| (b, i)))
                .filter(|(b, i)| seen(*b, *i))
                .map(|(b, i)| ((b * heads + head) * queries + i) * self.heads.e)
                .filter(|row| expected[*row..*row + self.heads.e].iter().all(|y| y.is_finite()))
                .collect();
            counted += rows.len();
            for j in 0..self.heads.e {
                let at = |y: &[f32], row: usize| f64::from(y[row + j]);
                let mean = rows.iter().map(|row| at(&expected, *row)).sum::<f64>() / rows.len().max(1) as f64;
                for row in &rows {
                    sum[0] += (at(&found, *row) - at(&expected, *row)).powi(2);
                    sum[1] += (at(&expected, *row) - mean).powi(2);
                }
            }
        }
        Ok(counted)
    }

    /// The operands of some heads, each with a head of keys and values of its own.
    fn operands(
        &self,
        work: &mut Replacement<'_>,
        (n, part): (NodeId, Part),
        heads: &[usize],
    ) -> Result<Operands, AddError> {
        let Heads { count, shared, .. } = self.heads;
        let [q, k, v] = [0, 1, 2].map(|i| work.operand(n, i));
        let mask = self.heads.mask.as_ref().map(|_| work.operand(n, 3));
        let all = heads.len() == count;
        let keys: Vec<usize> = heads.iter().map(|head| head * shared / count).collect();
        let (at, own) = ((n, part), all && shared == count);
        Ok(Operands {
            q: if all { q } else { picked(work, at, q, 1, heads)? },
            k: if own { k } else { picked(work, at, k, 1, &keys)? },
            v: if own { v } else { picked(work, at, v, 1, &keys)? },
            mask: match (mask, self.heads.mask_axis()) {
                (Some(mask), Some(axis)) if !all => Some(picked(work, at, mask, axis, heads)?),
                (mask, _) => mask,
            },
        })
    }
}

/// Which queries of which sample count: of as many queries as keys those at positions that the mask shows.
fn seen_queries(operands: &[Tensor], queries: usize) -> impl Fn(usize, usize) -> bool {
    let same = operands[1].shape()[2] == queries;
    let seen = seen_keys(operands, queries);
    move |batch, query| !same || seen(batch, query)
}

/// Which keys of which sample the mask shows, in the first of its rows.
fn seen_keys(operands: &[Tensor], keys: usize) -> impl Fn(usize, usize) -> bool {
    let mask = operands.get(3).filter(|mask| mask.shape().last() == Some(&keys));
    let values = mask.and_then(|mask| mask.to_vec::<f32>().ok());
    let rows = values.as_ref().map_or(0, |values| values.len() / keys.max(1));
    let per_batch = rows / operands[0].shape()[0].max(1);
    move |batch, key| {
        let row = if per_batch == 0 { 0 } else { batch * per_batch };
        values.as_ref().is_none_or(|values| values[row * keys + key] > HIDDEN)
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

impl<F: HeadForm> Fitted for FittedHeads<F> {
    fn resolved(&self, settings: &Settings) -> Result<Resolved, String> {
        let s = self.offered(settings)?;
        let Some(limit) = s.choice().limit else {
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
                "{} of {} heads stay exact, with relative errors above {limit} of {}: {}",
                above.len(),
                self.heads.count,
                s.size(),
                list.join(", ")
            )],
        };
        let settings = Settings::write(&s.with_choice(HeadChoice::of(within)));
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
        let count = self.heads.count;
        if chosen.len() == count {
            let operands = self.operands(work, (n, Part::Left), &chosen)?;
            let nodes = &mut Nodes { work, n, part: Part::Right };
            let result = self.form.attend(nodes, &self.heads, &s, operands)?;
            work.replace(n.into(), result);
            return Ok(());
        }
        let exact: Vec<usize> = (0..count).filter(|head| !chosen.contains(head)).collect();
        let operands = self.operands(work, (n, Part::Left), &chosen)?;
        let nodes = &mut Nodes { work, n, part: Part::Term };
        let replaced = self.form.attend(nodes, &self.heads, &s, operands)?;
        let Operands { q, k, v, mask } = self.operands(work, (n, Part::Term), &exact)?;
        let operands: Vec<Value> = [Some(q), Some(k), Some(v), mask].into_iter().flatten().collect();
        let origin = work.graph.node(n).origin.clone();
        let rest = work.add(self.heads.op.clone(), &operands, origin.part(Part::Term))?;
        let both = work.add(Concat { axis: 1 }, &[replaced, rest], origin.part(Part::Term))?;
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
        false if error == 0.0 => 0.0,
        false => f64::INFINITY,
    }
}
