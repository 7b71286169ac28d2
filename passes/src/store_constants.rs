//! Stores constants narrow: right operands of products, tables, and what is named.
//!
//! Required stage: canonical. The last change but roundings before extents are bound: sketches are chosen, and their
//! factors computed, from the numbers as they were. A word such as `int8` stands for a scale for every result: the last
//! axis of the right operand of a product, the first axis of anything else, such as the rows of an embedding; `int4` for a scale
//! and a zero point for every 64 terms of a result. Tables of two axes whose rows are looked up, and that nothing else reads,
//! have int8 rows where products are stored in int8 or int4. A product
//! is named by itself or by its constant, and keeps other readers of that constant as they are. A constant that is not
//! f32, or is stored narrow already, is passed over, and so is by default whatever is neither a table nor the right operand of a
//! product, one matrix.
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

use std::collections::BTreeMap;
use std::fmt;

use margay_ir::ops::Const;
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Payload, Verdict,
};
use margay_loops::Precision;
use margay_loops::text::words::{quoted, split_top};
use margay_tensor::{DType, Storage};

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
}

impl Default for StoreConstants {
    /// Everything as it is.
    fn default() -> StoreConstants {
        StoreConstants { products: StoreAs::Precision(Precision::F32), named: BTreeMap::new() }
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
            Rule { name: "right-operand", apply: right_operand },
            Rule { name: "table", apply: table },
            Rule { name: "named-constant", apply: named_constant },
        ];
        rewrite(self.name(), g, cx, self, &rules)
    }
}

fn right_operand(g: &Graph, n: NodeId, config: &StoreConstants) -> RuleResult {
    let Op::MatMul(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let operands = g.inputs_of(n);
    let Some(payload) = g.constant(operands[1]) else { return Ok(Verdict::NoMatch) };
    let shape = payload.stored().shape();
    if shape[..shape.len() - 2].iter().any(|&d| d != 1) {
        return Ok(Verdict::NoMatch);
    }
    let names = [n, operands[1].node].map(|n| g.node(n).origin.name());
    let named = names.into_iter().find_map(|name| config.named.get(name));
    let storage = named.unwrap_or(&config.products).storage(shape.len() - 1);
    let constant = match narrowed(payload, storage) {
        Ok(constant) => constant,
        Err(verdict) => return Ok(verdict),
    };
    let mut patch = Patch::new();
    let right = patch.add(g, constant, &[], g.node(operands[1].node).origin.clone())?;
    let product = patch.add(g, g.op(n).clone(), &[operands[0], right], g.node(n).origin.clone())?;
    patch.redirect(n.into(), product);
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
    let product = |user: NodeId| matches!(g.op(user), Op::MatMul(_)) && g.inputs_of(user)[1].node == n;
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
    let stored = payload.stored();
    if stored.storage().signs.is_some() && storage != Storage::plain(DType::F32) {
        return Err(Verdict::Declined(format!("numbers beside signs stay f32, found {storage}")));
    }
    if stored.dtype() != DType::F32 || !stored.is_plain() || storage == payload.storage() {
        return Err(Verdict::NoMatch);
    }
    match payload.stored_as(storage) {
        Ok(payload) => Ok(Const { payload }),
        Err(error) => Err(Verdict::Declined(error.to_string())),
    }
}
