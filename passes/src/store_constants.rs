//! Stores constants narrow: right operands of products, weights of the states of recurrences, tables, and what is named.
//!
//! Required stage: canonical. The last change but roundings before extents are bound: sketches are chosen, and their
//! factors computed, from the numbers as they were. A word such as `int8` stands for a scale for every result: the last
//! axis of the right operand of a product, the first axis of anything else, such as the rows of an embedding; `int4` for a scale
//! and a zero point for every 64 terms of a result. Tables of two axes whose rows are looked up, and that nothing else reads,
//! have int8 rows where products are stored in int8 or int4. A product
//! is named by itself or by its constant, and keeps other readers of that constant as they are. A constant that is not
//! f32, or is stored narrow already, is passed over, but one of a model in 16 bits that is to be stored with scales; and so is
//! by default whatever is neither a table nor such a weight, one matrix. Both factors of the weights of a state are weights.
//!
//! Where calibration measured the rows that a product multiplies its constant with, elements of fewer than 8 bits are rounded
//! with error feedback for these rows (see [`margay_randnla::Rounded`]), whoever made the constant: a weight, or a factor of a
//! sketch. Where a bias is behind each product of the constant, it takes what is left of the mean output, and the feedback is for
//! deviations from the mean alone.
//!
//! ```text
//! graph @before(%x: f32[N, 64]) -> (y: f32[N, N]) {
//!   %0 = const #w : f32[64, 32]  // fc.weight
//!   %1 = matmul %x, %0 : f32[N, 32]  // fc
//!   %2 = transpose %1 {perm = [1, 0]} : f32[32, N]  // turn
//!   %3 = matmul %1, %2 : f32[N, N]  // scores
//!   return %3
//! }
//! graph @after(%x: f32[N, 64]) -> (y: f32[N, N]) {
//!   %0 = const #w : f32[64, 32] stored i8(axis = 1)  // fc.weight
//!   %1 = matmul %x, %0 : f32[N, 32]  // fc
//!   %2 = transpose %1 {perm = [1, 0]} : f32[32, N]  // turn
//!   %3 = matmul %1, %2 : f32[N, N]  // scores
//!   return %3
//! }
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use margay_ir::ops::{Const, Recurrence};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Payload, Value, Verdict,
};
use margay_loops::Precision;
use margay_loops::text::words::{quoted, split_top};
use margay_randnla::{Centring, Gram, Matrix, RandnlaError, Rounded, Whitening};
use margay_tensor::{DType, Scales, Storage, StoredTensor, Tensor};

use crate::matching::is_weight_of_state;
use crate::sketch::{Bias, Layer, Moments, RowKind, Rows};
use crate::text::{pair, pairs};

/// How something is stored, as plans and options say it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StoreAs {
    /// By a word.
    Precision(Precision),
    /// In this very storage.
    Storage(Storage),
}

impl StoreAs {
    /// Reads `f32`, `bf16`, `int8`, `int4`, or a storage such as `i8(axis = 0, block = 32)`.
    pub fn parse(text: &str) -> Option<StoreAs> {
        let word = Precision::from_name(text).map(StoreAs::Precision);
        // Signs are no rounding of other numbers.
        let storage = || Storage::parse(text).filter(|storage| storage.signs.is_none());
        word.or_else(|| storage().map(StoreAs::Storage))
    }

    /// The storage of a constant whose axis of results has a number.
    fn storage(self, axis: usize) -> Storage {
        match self {
            StoreAs::Precision(precision) => precision.storage(axis),
            StoreAs::Storage(storage) => storage,
        }
    }
}

impl fmt::Display for StoreAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAs::Precision(precision) => f.write_str(precision.name()),
            StoreAs::Storage(storage) => storage.fmt(f),
        }
    }
}

/// Which constants are stored how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreConstants {
    /// Right operands of products, and tables, that are not named.
    pub products: StoreAs,
    /// Products and constants by their names in the model.
    pub named: BTreeMap<String, StoreAs>,
    /// What calibration measured of the rows that products multiply constants with, of those that
    /// [`to_measure`](StoreConstants::to_measure) lists. It is no part of the text of the pass.
    pub inputs: HashMap<Payload, Arc<Moments>>,
}

impl Default for StoreConstants {
    /// Everything as it is.
    fn default() -> StoreConstants {
        let products = StoreAs::Precision(Precision::F32);
        StoreConstants { products, named: BTreeMap::new(), inputs: HashMap::new() }
    }
}

impl StoreConstants {
    /// Reads `int8, head = f32, embeddings = i8(axis = 0, block = 32)`: how products are stored, then what is named.
    pub(crate) fn read(text: &str) -> Result<StoreConstants, String> {
        let store = |text: &str| StoreAs::parse(text).ok_or_else(|| format!("`{text}` is not a storage"));
        let mut pass = StoreConstants::default();
        let mut rest = text;
        if let Some(first) = split_top(text).first().filter(|first| pair(first).is_none()) {
            pass.products = store(first)?;
            rest = text[first.len()..].trim_start().trim_start_matches(',');
        }
        for (name, storage) in pairs(rest)? {
            pass.named.insert(name, store(storage)?);
        }
        Ok(pass)
    }

    /// The constants that error feedback applies to, with all rows that products multiply them with, each once: those that
    /// only products read. Constants with more than [`Gram::MOST_DENSE`] rows, whose moments would be larger than they are,
    /// are rounded to nearest.
    pub fn to_measure(&self, g: &Graph) -> Vec<(Payload, Vec<Rows>)> {
        let mut found: Vec<(Payload, Vec<Rows>)> = Vec::new();
        for n in g.order() {
            let Some((payload, _)) = self.fed_back(g, n) else { continue };
            let at = found.iter().position(|(known, _)| known == payload).unwrap_or_else(|| {
                found.push((payload.clone(), Vec::new()));
                found.len() - 1
            });
            let length = payload.stored().shape()[0];
            for (user, _) in g.users_of(n.into()) {
                let rows = Rows { value: g.inputs_of(user)[0], kind: RowKind::LastAxis, length };
                if !found[at].1.contains(&rows) {
                    found[at].1.push(rows);
                }
            }
        }
        found
    }

    /// The contents of a constant that error feedback applies to, and how they are to be stored.
    fn fed_back<'g>(&self, g: &'g Graph, n: NodeId) -> Option<(&'g Payload, Storage)> {
        let v = Value::from(n);
        g.constant(v)?;
        let users = g.users_of(v);
        let (first, others) = users.split_first()?;
        // The rows that a recurrence multiplies are no value of the graph, and the numbers of a factor are no rows.
        let operand = |user: NodeId, slot: u16| match g.op(user) {
            Op::MatMul(_) if slot == 1 && !is_weight_of_state(g, user) => self.weight(g, user, 1),
            _ => None,
        };
        let (payload, storage) = operand(first.0, first.1)?;
        let same =
            |(user, slot): &(NodeId, u16)| operand(*user, *slot).is_some_and(|(_, other)| other == storage);
        let runs_of_terms = matches!(storage.scales, Scales::Block { axis: 0, .. } | Scales::Axis(1));
        let shape = payload.stored().shape();
        let applies =
            storage.is_packed() && runs_of_terms && shape.len() == 2 && shape[0] <= Gram::MOST_DENSE;
        let applies = applies && others.iter().all(same) && !g.is_output(v);
        (applies && may_be_stored(payload, storage).is_ok()).then_some((payload, storage))
    }

    /// A constant operand that a node multiplies with, if it is one matrix, and how it is to be stored.
    fn weight<'g>(&self, g: &'g Graph, n: NodeId, slot: usize) -> Option<(&'g Payload, Storage)> {
        let operand = g.inputs_of(n)[slot];
        let payload = g.constant(operand)?;
        let shape = payload.stored().shape();
        if shape[..shape.len() - 2].iter().any(|&d| d != 1) {
            return None;
        }
        let names = [n, operand.node].map(|n| g.node(n).origin.name());
        let named = names.into_iter().find_map(|name| self.named.get(name));
        Some((payload, named.unwrap_or(&self.products).storage(shape.len() - 1)))
    }
}

impl Pass for StoreConstants {
    fn name(&self) -> &'static str {
        "store-constants"
    }

    fn configuration(&self) -> Configuration {
        let named = self.named.iter().map(|(name, store)| format!("{} = {store}", quoted(name)));
        let items: Vec<String> = std::iter::once(self.products.to_string()).chain(named).collect();
        Configuration::of(items.join(", "))
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Approximate
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rules = [
            Rule { name: "error-feedback", apply: error_feedback },
            Rule { name: "weight", apply: weight },
            Rule { name: "table", apply: table },
            Rule { name: "named-constant", apply: named_constant },
        ];
        rewrite(self.name(), g, cx, self, &rules)
    }
}

fn error_feedback(g: &Graph, n: NodeId, config: &StoreConstants) -> RuleResult {
    let Some((payload, storage)) = config.fed_back(g, n) else { return Ok(Verdict::NoMatch) };
    let Some(moments) = config.inputs.get(payload) else { return Ok(Verdict::NoMatch) };
    let products: Vec<NodeId> = g.users_of(n.into()).into_iter().map(|(user, _)| user).collect();
    let bias = |n: &NodeId| Layer::at(g, *n)?.bias(g, *n);
    let biases: Option<Vec<Bias<'_>>> = products.iter().map(bias).collect();
    // Without biases to correct the mean counts as any other direction does.
    let centring = if biases.is_some() { Centring::Centred } else { Centring::Uncentred };
    let (rounded, missed) = match rounded(payload, storage, moments, centring) {
        Ok(found) => found,
        Err(error) => return Ok(Verdict::Declined(error.to_string())),
    };
    let source = format!("{}, {storage}, inputs = {}", payload.key(), moments.identity());
    let mut patch = Patch::new();
    let constant = Payload::derived(&format!("rounded.weight({source})"), rounded);
    let constant = patch.add(g, Const { payload: constant }, &[], g.node(n).origin.clone())?;
    patch.redirect(n.into(), constant);
    for Bias { add, constant, payload, values } in biases.unwrap_or_default() {
        let sums: Vec<f32> = values.iter().zip(&missed).map(|(b, m)| (f64::from(*b) + m) as f32).collect();
        let tensor = Tensor::from_slice(payload.tensor().shape(), &sums).expect("as many numbers as before");
        let name = format!("add({}, rounded.bias({source}))", payload.key());
        let payload = Payload::derived(&name, tensor);
        let bias = patch.add(g, Const { payload }, &[], g.node(constant).origin.clone())?;
        let operands: Vec<Value> =
            g.inputs_of(add).iter().map(|v| if v.node == constant { bias } else { *v }).collect();
        let sum = patch.add(g, g.op(add).clone(), &operands, g.node(add).origin.clone())?;
        patch.redirect(add.into(), sum);
    }
    Ok(Verdict::Rewrite(patch))
}

/// Constant contents `[d_in, d_out]` rounded with error feedback for the rows that were seen, and what that leaves of the
/// mean result `[d_out]`.
fn rounded(
    payload: &Payload,
    storage: Storage,
    moments: &Moments,
    centring: Centring,
) -> Result<(StoredTensor, Vec<f64>), RandnlaError> {
    let shape = payload.stored().shape();
    let numbers = payload.tensor().to_vec::<f32>().expect("only f32 is stored narrow");
    let weight = Matrix::from_row_major(shape[0], shape[1], &numbers)?;
    let triangle = Whitening::from_gram(moments.gram(), centring, &Moments::INPUTS)?.triangle();
    let Rounded { stored, rest, .. } = Rounded::new(&weight, Some(&triangle), storage)?;
    let mean = moments.gram().mean()?;
    let missed = Matrix::from_row_major_f64(1, mean.len(), &mean)?.product(&rest)?;
    Ok((stored, missed.to_row_major_f64()))
}

/// The operands of a node that are weights: the right one of a product, those of the state of a recurrence, and both factors of
/// these.
fn weights(g: &Graph, n: NodeId) -> &'static [usize] {
    match g.op(n) {
        Op::MatMul(_) if is_weight_of_state(g, n) => &[0, 1],
        Op::MatMul(_) | Op::Recurrence(Recurrence { quantized: false, .. }) => &[1],
        _ => &[],
    }
}

fn weight(g: &Graph, n: NodeId, config: &StoreConstants) -> RuleResult {
    let (mut operands, mut patch) = (g.inputs_of(n).to_vec(), Patch::new());
    for &slot in weights(g, n) {
        let Some((payload, storage)) = config.weight(g, n, slot) else { continue };
        match narrowed(payload, storage) {
            Ok(constant) => {
                let origin = g.node(operands[slot].node).origin.clone();
                operands[slot] = patch.add(g, constant, &[], origin)?;
            }
            Err(Verdict::NoMatch) => {}
            Err(verdict) => return Ok(verdict),
        }
    }
    if patch.is_empty() {
        return Ok(Verdict::NoMatch);
    }
    let new = patch.add(g, g.op(n).clone(), &operands, g.node(n).origin.clone())?.node;
    for old in g.values_of(n) {
        patch.redirect(old, Value { node: new, out: old.out });
    }
    Ok(Verdict::Rewrite(patch))
}

fn table(g: &Graph, n: NodeId, config: &StoreConstants) -> RuleResult {
    let (Op::Const(constant), origin) = (g.op(n), &g.node(n).origin) else { return Ok(Verdict::NoMatch) };
    let StoreAs::Precision(Precision::Int8 | Precision::Int4) = config.products else {
        return Ok(Verdict::NoMatch);
    };
    let looked_up = |(user, slot): &(NodeId, u16)| matches!(g.op(*user), Op::Gather(gather) if gather.axis == 0 && *slot == 0);
    let users = g.users_of(n.into());
    // The scale of a row takes the bytes of a number.
    let saves = matches!(constant.payload.stored().shape(), [_, width] if *width > 1);
    let table = saves && !users.is_empty() && users.iter().all(looked_up) && !g.is_output(n.into());
    if !table || config.named.contains_key(origin.name()) {
        return Ok(Verdict::NoMatch);
    }
    match narrowed(&constant.payload, Storage::int8(0)) {
        Ok(constant) => stored_so(g, n, constant),
        Err(verdict) => Ok(verdict),
    }
}

/// A constant in place of another one.
fn stored_so(g: &Graph, n: NodeId, constant: Const) -> RuleResult {
    let mut patch = Patch::new();
    let new = patch.add(g, constant, &[], g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

fn named_constant(g: &Graph, n: NodeId, config: &StoreConstants) -> RuleResult {
    let (Op::Const(constant), origin) = (g.op(n), &g.node(n).origin) else { return Ok(Verdict::NoMatch) };
    let product = |user: NodeId| weights(g, user).iter().any(|slot| g.inputs_of(user)[*slot].node == n);
    let Some(store) = config.named.get(origin.name()) else { return Ok(Verdict::NoMatch) };
    if g.users_of(n.into()).iter().all(|(user, _)| product(*user)) && !g.is_output(n.into()) {
        return Ok(Verdict::NoMatch);
    }
    match narrowed(&constant.payload, store.storage(0)) {
        Ok(constant) => stored_so(g, n, constant),
        Err(verdict) => Ok(verdict),
    }
}

/// A constant in a storage that is not the one it has.
fn narrowed(payload: &Payload, storage: Storage) -> Result<Const, Verdict> {
    may_be_stored(payload, storage)?;
    match payload.stored_as(storage) {
        Ok(payload) => Ok(Const { payload }),
        Err(error) => Err(Verdict::Declined(error.to_string())),
    }
}

/// Says why a constant is not to be stored so.
fn may_be_stored(payload: &Payload, storage: Storage) -> Result<(), Verdict> {
    let stored = payload.stored();
    if stored.storage().signs.is_some() && storage != Storage::plain(DType::F32) {
        return Err(Verdict::Declined(format!("numbers beside signs stay f32, found {storage}")));
    }
    // Numbers of a model in 16 bits may get fewer; they are not rounded to other floats.
    let floats = stored.storage().scales == Scales::None && stored.storage().signs.is_none();
    let is_number = stored.is_plain() || floats && storage.scales != Scales::None;
    if stored.dtype() != DType::F32 || !is_number || storage == payload.storage() {
        return Err(Verdict::NoMatch);
    }
    if storage == Storage::plain(DType::F16)
        && let Some(most) = beyond_f16(payload.tensor())
    {
        return Err(Verdict::Declined(format!("f16 holds numbers up to {LARGEST_F16}, found {most:e}")));
    }
    Ok(())
}

/// The largest number of f16.
const LARGEST_F16: f32 = 65504.0;

/// The greatest size of numbers that f16 does not hold.
fn beyond_f16(numbers: &Tensor) -> Option<f32> {
    let greatest = numbers.as_slice::<f32>().ok()?.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    (greatest > LARGEST_F16).then_some(greatest)
}
