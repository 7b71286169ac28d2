//! Dropout in training steps: random masks in place of the [`Dropout`] nodes of a model, which elsewhere are identities.
//!
//! Element `i` of a value stays where word `i` of the stream `Philox(seed, STREAMS + node · 2³² + step)` is at least
//! `ratio · 2³²`, and is then divided by `1 - ratio`, so that the expected value is the value (Srivastava et al., *Dropout*,
//! JMLR 15, 2014, section 10). `seed` is that of training, `node` the number of the node in the model, `step` the number of the
//! step, which is a state: the masks are the same on any number of threads, and after a checkpoint.
//!
//! The mask is computed by ordinary operators, Philox4x32-10 among them, and read by the derivative as it is by the
//! value. Two words of a block are the halves of one u64; a round on the pairs `X = (c₀, c₁)` and `Y = (c₂, c₃)` is
//!
//! ```text
//! X' = M₁ (Y >> 32) ^ (X << 32) ^ (k₀ << 32)
//! Y' = M₀ (X >> 32) ^ (Y << 32) ^ (k₁ << 32)
//! ```
//!
//! Masks of whole channels are deliberately absent, and so is dropout where the model has no node for it.

use margay_ir::ops::{
    Const, Dropout, LessOrEqual, Range, Reshape, Select, ShiftLeft, ShiftRight, Slice, Xor,
};
use margay_ir::{
    AddError, Builder, Graph, Node, NodeId, Op, OpDef, Origin, PassError, Patch, Payload, TensorType, Value,
};
use margay_tensor::random::Philox;
use margay_tensor::{DType, Dim, Tensor};

use crate::TrainError;
use crate::step::STEP;

/// The streams of masks begin here.
pub const STREAMS: u64 = 1 << 62;

/// Words of a block of Philox.
const WORDS: usize = 4;

/// Bits of a word.
const BITS: u64 = 32;

/// The nodes at which training drops elements.
pub fn places(g: &Graph) -> Vec<NodeId> {
    let drops = |n: &NodeId| matches!(g.op(*n), Op::Dropout(dropout) if threshold(dropout) > 0);
    g.order().into_iter().filter(drops).collect()
}

/// Puts masks in the [`places`] of a graph. They follow from an input [`STEP`], an f32 scalar, which is added and returned; a graph
/// without a place stays as it is. Ids of other nodes stay.
///
/// # Errors
/// None that a graph whose types are right leads to.
pub fn add_masks(g: &mut Graph, seed: u64) -> Result<Option<Value>, TrainError> {
    let places = places(g);
    if places.is_empty() {
        return Ok(None);
    }
    let step = g.add_input(STEP, TensorType::known(DType::F32, &[]));
    for n in places {
        let Node { op: Op::Dropout(dropout), origin, .. } = g.node(n) else { continue };
        let name = if origin.name().is_empty() { Dropout::NAME } else { origin.name() }.to_owned();
        let (x, mut patch) = (g.inputs_of(n)[0], Patch::new());
        let mut b = Builder::patching(g, &mut patch, Origin::named(&name));
        let y = dropped(&mut b, x, step, dropout, seed)?;
        patch.redirect(n.into(), y);
        g.apply(patch).map_err(|error| PassError::Patch {
            rule: "dropout",
            at: name,
            error: error.into(),
        })?;
    }
    g.remove_dead();
    Ok(Some(step))
}

/// Words below this number drop their elements.
fn threshold(dropout: &Dropout) -> u64 {
    let words = (1u64 << BITS) as f64;
    (dropout.ratio.get() * words).round().min(words - 1.0) as u64
}

/// `x / (1 - ratio)` where elements stay, else 0.
fn dropped(
    b: &mut Builder<'_>,
    x: Value,
    step: Value,
    dropout: &Dropout,
    seed: u64,
) -> Result<Value, AddError> {
    let stays = mask(b, x, step, dropout, seed)?;
    // Constants of floats have names, so that those of the model are numbered as without masks.
    let (dtype, origin) = (b.ty(x).dtype, b.origin().clone());
    let [scale, zero] =
        [1.0 / (1.0 - dropout.ratio.get()), 0.0].map(|x| Const { payload: Payload::number(dtype, x) });
    let (scale, zero) = (b.op_for(scale, &[], origin.clone())?, b.op_for(zero, &[], origin)?);
    let kept = b.mul(x, scale)?;
    b.op(Select, &[stays, kept, zero])
}

/// Which elements stay: bool, of the shape of `x`.
fn mask(b: &mut Builder<'_>, x: Value, step: Value, dropout: &Dropout, seed: u64) -> Result<Value, AddError> {
    let (shape, elements) = (b.ty(x).shape.clone(), b.ty(x).elements());
    let words = Dim::from(WORDS);
    let rounded_up = &elements + &Dim::from(WORDS - 1);
    let blocks = rounded_up.floor_div(&words).expect("4 is not 0");
    let index = b.op(Range { start: Dim::default(), step: 1, count: blocks.clone() }, &[])?;
    let index = b.op(Reshape { shape: vec![blocks.clone(), Dim::from(1usize)] }, &[index])?;
    let index = b.cast(index, DType::U64)?;
    let node = STREAMS + ((dropout.stream as u64) << BITS);
    let [front, back] = philox(b, seed, index, node, step)?;
    // The word of a lane in the upper half; what is below it decides nothing.
    let first = b.constant(Tensor::from_bools(&[WORDS], &[true, true, false, false]).expect("four lanes"))?;
    let left = b.constant(Tensor::from_slice(&[WORDS], &[0, BITS, 0, BITS]).expect("four lanes"))?;
    let pair = b.op(Select, &[first, front, back])?; // [blocks, 4]
    let word = b.op(ShiftLeft, &[pair, left])?;
    let least = b.constant(Tensor::scalar(threshold(dropout) << BITS))?;
    let stays = b.op(LessOrEqual, &[least, word])?;
    let stays = b.op(Reshape { shape: vec![&blocks * &words] }, &[stays])?;
    let part = Slice { starts: vec![Dim::default()], ends: vec![elements], steps: vec![1] };
    let stays = b.op(part, &[stays])?;
    b.op(Reshape { shape }, &[stays])
}

/// The blocks with some indices (u64) of the stream `node + step`, two words in each number: the earlier one is the upper half.
fn philox(
    b: &mut Builder<'_>,
    seed: u64,
    index: Value,
    node: u64,
    step: Value,
) -> Result<[Value; 2], AddError> {
    let bits = b.constant(Tensor::scalar(BITS))?;
    let halves_swapped = |b: &mut Builder<'_>, v: Value| {
        let (low, high) = (b.op(ShiftLeft, &[v, bits])?, b.op(ShiftRight, &[v, bits])?);
        b.op(Xor, &[low, high])
    };
    let (node, step) = (b.constant(Tensor::scalar(node))?, b.cast(step, DType::U64)?);
    let stream = b.add(node, step)?;
    let mut pairs = [halves_swapped(b, index)?, halves_swapped(b, stream)?];
    let mut keys = [seed as u32, (seed >> BITS) as u32];
    for _ in 0..Philox::ROUNDS {
        let mut next = pairs;
        for half in 0..2 {
            let other = 1 - half;
            let upper = b.op(ShiftRight, &[pairs[other], bits])?;
            let multiplier = b.constant(Tensor::scalar(u64::from(Philox::MULTIPLIERS[other])))?;
            let product = b.mul(multiplier, upper)?;
            let moved = b.op(ShiftLeft, &[pairs[half], bits])?;
            let key = b.constant(Tensor::scalar(u64::from(keys[half]) << BITS))?;
            let mixed = b.op(Xor, &[product, moved])?;
            next[half] = b.op(Xor, &[mixed, key])?;
        }
        pairs = next;
        for (key, weyl) in keys.iter_mut().zip(Philox::WEYL) {
            *key = key.wrapping_add(weyl);
        }
    }
    Ok(pairs)
}
