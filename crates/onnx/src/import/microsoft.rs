//! `com.microsoft`: what onnxruntime's own optimizer and exporters write in place of several operators.

use margay_ir::Value;
use margay_ir::ops::{Add, Bits, Gather, Gelu, LayerNorm, MatMul, Relu, Sigmoid, Tanh};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::attention::{Attend, appended, join_heads, rotated, split_heads};
use super::call::{Call, Imported, Refusal};
use super::slices::slice_axes;
use super::statistics::root_mean_square;

/// The sum of operands, some of which may be absent.
fn summed(cx: &mut Importer, first: Value, others: &[Option<Value>]) -> Result<Value, Refusal> {
    let mut sum = first;
    for other in others.iter().flatten() {
        sum = cx.plus(sum, *other)?;
    }
    Ok(sum)
}

/// A layer norm over the last axis.
fn normalized(
    cx: &mut Importer,
    x: Value,
    scale: Value,
    bias: Option<Value>,
    epsilon: f64,
) -> Result<Value, Refusal> {
    let Some(last) = cx.ty(x).ndim().checked_sub(1) else {
        return Err(Refusal::Invalid("expected at least one axis, found none".into()));
    };
    let inner = cx.ty(x).shape[last..].to_vec();
    let scale = cx.spread(scale, inner.clone())?;
    let bias = match bias {
        Some(bias) => bias,
        None => cx.number(x, 0.0)?,
    };
    let bias = cx.spread(bias, inner)?;
    cx.add(LayerNorm { axis: last, epsilon: Bits::new(epsilon) }, &[x, scale, bias])
}

/// Results of a normalization of a sum: the second and third, of which nobody makes use, are not there.
fn with_sum(call: &Call, y: Value, sum: Value) -> Imported {
    match (1..3).find(|&i| call.wants(i)) {
        Some(i) => Err(Refusal::Unsupported(format!("output {i} is not supported"))),
        None => Ok(vec![y, sum, sum, sum]),
    }
}

/// `SkipLayerNormalization`.
pub(super) fn skip_layer_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let (x, skip, scale) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (shift, bias) = (call.optional(3), call.optional(4));
    let sum = summed(cx, x, &[Some(skip), bias])?;
    let y = normalized(cx, sum, scale, shift, call.float("epsilon", 1e-12)?)?;
    with_sum(call, y, sum)
}

/// `SkipSimplifiedLayerNormalization`.
pub(super) fn skip_simplified_layer_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let (x, skip, scale, bias) = (call.input(0)?, call.input(1)?, call.input(2)?, call.optional(3));
    let sum = summed(cx, x, &[Some(skip), bias])?;
    let last = cx.ty(sum).ndim().saturating_sub(1);
    let (y, _) = root_mean_square(cx, sum, scale, last, call.float("epsilon", 1e-12)?)?;
    with_sum(call, y, sum)
}

/// `SimplifiedLayerNormalization`: a root mean square norm, and the reciprocal root.
pub(super) fn simplified_layer_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let (x, scale) = (call.input(0)?, call.input(1)?);
    call.ignore(&["stash_type"]);
    let from = super::call::axis(call.int("axis", -1)?, cx.ty(x).ndim())?;
    let (y, factor) = root_mean_square(cx, x, scale, from, call.float("epsilon", 1e-5)?)?;
    Ok(vec![y, factor])
}

/// `EmbedLayerNormalization`: words, positions and segments looked up, summed and normalized.
pub(super) fn embed_layer_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let (words, segments) = (call.input(0)?, call.optional(1));
    let (word_table, position_table, segment_table) = (call.input(2)?, call.input(3)?, call.optional(4));
    let (scale, bias, mask, positions) = (call.input(5)?, call.input(6)?, call.optional(7), call.optional(8));
    let kind = call.int("mask_index_type", 0)?;
    let look = |cx: &mut Importer, table: Value, at: Value| cx.add(Gather { axis: 0 }, &[table, at]);
    let word = look(cx, word_table, words)?;
    let position = match positions {
        Some(at) => look(cx, position_table, at)?,
        None => {
            let length = cx.ty(words).shape.get(1).cloned().unwrap_or_default();
            slice_axes(cx, position_table, &[0], &[Dim::default()], &[length], &[1])?
        }
    };
    let segment = match (segments, segment_table) {
        (Some(at), Some(table)) => Some(look(cx, table, at)?),
        _ => None,
    };
    let sum = summed(cx, word, &[Some(position), segment])?;
    let y = normalized(cx, sum, scale, Some(bias), call.float("epsilon", 1e-12)?)?;
    // How many words each sentence has.
    let lengths = match mask {
        Some(mask) if kind == 1 || call.wants(1) => {
            let mask = cx.cast(mask, DType::I32)?;
            cx.joined(margay_ir::ops::ReduceKind::Sum, mask, &[1], false)?
        }
        _ => {
            let zero = cx.scalar(DType::I32, 0.0)?;
            let batch = cx.ty(words).shape.first().cloned().unwrap_or_default();
            cx.spread(zero, vec![batch])?
        }
    };
    Ok(vec![y, lengths, sum])
}

/// `FastGelu`: the approximation by tanh, of a sum.
pub(super) fn fast_gelu(cx: &mut Importer, call: &Call) -> Imported {
    let (x, bias) = (call.input(0)?, call.optional(1));
    let sum = summed(cx, x, &[bias])?;
    cx.one(Gelu { tanh: true }, &[sum])
}

/// `BiasGelu`.
pub(super) fn bias_gelu(cx: &mut Importer, call: &Call) -> Imported {
    let (x, bias) = (call.input(0)?, call.input(1)?);
    let sum = cx.plus(x, bias)?;
    cx.one(Gelu { tanh: false }, &[sum])
}

/// `QuickGelu`: x sigmoid(α x).
pub(super) fn quick_gelu(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let inner = cx.scaled(x, call.float("alpha", 1.702)?)?;
    let share = cx.add(Sigmoid, &[inner])?;
    Ok(vec![cx.times(x, share)?])
}

/// `FusedMatMul`: α A B, with the last two axes of each exchanged on demand. Where the batch of an operand is its last axis but one,
/// its first axis is brought there, behind those of the batch.
pub(super) fn fused_matmul(cx: &mut Importer, call: &Call) -> Imported {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let in_front = |cx: &mut Importer, x: Value, wanted: bool| {
        let n = cx.ty(x).ndim();
        if !wanted || n < 3 {
            return Ok(x);
        }
        let perm: Vec<usize> = (1..n - 1).chain([0, n - 1]).collect();
        cx.transposed(x, &perm)
    };
    let a = in_front(cx, a, call.flag("transBatchA", false)?)?;
    let b = in_front(cx, b, call.flag("transBatchB", false)?)?;
    let exchanged = |cx: &mut Importer, x: Value, wanted: bool| {
        let n = cx.ty(x).ndim();
        if !wanted || n < 2 {
            return Ok(x);
        }
        let mut perm: Vec<usize> = (0..n).collect();
        perm.swap(n - 2, n - 1);
        cx.transposed(x, &perm)
    };
    let a = exchanged(cx, a, call.flag("transA", false)?)?;
    let b = exchanged(cx, b, call.flag("transB", false)?)?;
    let product = cx.add(MatMul, &[a, b])?;
    Ok(vec![cx.scaled(product, call.float("alpha", 1.0)?)?])
}

/// The function that a fused operator applies to its result.
fn activated(cx: &mut Importer, call: &Call, x: Value, parameters: &[f64]) -> Result<Value, Refusal> {
    let parameter = |i: usize, default: f64| parameters.get(i).copied().unwrap_or(default);
    match call.text("activation", "")? {
        "" => Ok(x),
        "Relu" => cx.add(Relu, &[x]),
        "Tanh" => cx.add(Tanh, &[x]),
        "Sigmoid" => cx.add(Sigmoid, &[x]),
        "LeakyRelu" => {
            let below = cx.scaled(x, parameter(0, 0.01))?;
            let negative = cx.below(x, 0.0)?;
            cx.chosen(negative, below, x)
        }
        "Clip" => {
            let capped = cx.capped(x, parameter(1, f64::INFINITY))?;
            cx.floored(capped, parameter(0, f64::NEG_INFINITY))
        }
        "HardSigmoid" => {
            let scaled = cx.scaled(x, parameter(0, 0.2))?;
            let line = cx.offset(scaled, parameter(1, 0.5))?;
            let capped = cx.capped(line, 1.0)?;
            cx.floored(capped, 0.0)
        }
        other => Err(Refusal::Unsupported(format!("activation `{other}` is not supported"))),
    }
}

/// `FusedConv`: a convolution, plus a residual, through an activation.
pub(super) fn fused_conv(cx: &mut Importer, call: &Call) -> Imported {
    let residual = call.optional(3);
    let y = super::convolutions::conv(cx, call)?[0];
    let y = summed(cx, y, &[residual])?;
    let parameters = super::learning::floats(call, "activation_params")?;
    Ok(vec![activated(cx, call, y, &parameters)?])
}

/// `FusedGemm`.
pub(super) fn fused_gemm(cx: &mut Importer, call: &Call) -> Imported {
    let y = super::products::gemm(cx, call)?[0];
    let mut parameters = Vec::new();
    for name in ["activation_alpha", "activation_beta", "activation_gamma"] {
        parameters.extend(call.optional_float(name)?);
    }
    Ok(vec![activated(cx, call, y, &parameters)?])
}

/// `RotaryEmbedding`, whose positions come second: one offset for all, or one position for each.
pub(super) fn rotary_embedding(cx: &mut Importer, call: &Call) -> Imported {
    let (x, at, cos, sin) = (call.input(0)?, call.input(1)?, call.input(2)?, call.input(3)?);
    let flat = cx.ty(x).ndim() == 3;
    if !flat && cx.ty(x).ndim() != 4 {
        return Err(Refusal::Invalid(format!("expected 3 or 4 axes, found {}", cx.ty(x))));
    }
    let (heads, part) = (call.int("num_heads", 0)?, call.int("rotary_embedding_dim", 0)?);
    let interleaved = call.flag("interleaved", false)?;
    if call.float("scale", 1.0)? != 1.0 || call.flag("is_packed_batching", false)? {
        return Err(Refusal::Unsupported("scales and packed batches are not supported".into()));
    }
    let x = match (flat, heads) {
        (false, _) => x,
        (true, 0) => {
            let width = cx.ty(cos).shape.get(1).and_then(Dim::as_const).map(|w| 2 * w);
            let hidden = cx.ty(x).shape[2].as_const();
            let heads = hidden.zip(width).filter(|(_, w)| *w > 0).map(|(hidden, width)| hidden / width);
            let heads = heads.ok_or_else(|| Refusal::Unsupported("an open number of heads".into()))?;
            split_heads(cx, x, heads)?
        }
        (true, heads) => split_heads(cx, x, heads)?,
    };
    let at = match cx.ty(at).ndim() {
        1 => {
            let length = cx.ty(x).shape[2].clone();
            let positions = cx.iota(&length)?;
            let positions = cx.along(positions, 1, 2)?;
            let start = cx.shaped(at, vec![Dim::from(1usize), Dim::from(1usize)])?;
            cx.add(Add, &[positions, start])?
        }
        _ => at,
    };
    let [cos, sin] = [cos, sin].map(|table| cx.add(Gather { axis: 0 }, &[table, at]));
    let y = rotated(cx, x, cos?, sin?, part, interleaved)?;
    Ok(vec![if flat { join_heads(cx, y)? } else { y }])
}

/// What is added to scores `[B, H, S, T]` for a mask of keys: lengths of sentences, or 1 for each key that counts.
fn key_mask(cx: &mut Importer, mask: Value, keys: &Dim, hidden: f64, like: Value) -> Result<Value, Refusal> {
    let shape = cx.ty(mask).shape.clone();
    let one = || Dim::from(1usize);
    let (kept, shape) = match shape.len() {
        1 => {
            let positions = cx.iota(keys)?;
            let positions = cx.cast(positions, cx.ty(mask).dtype)?;
            let positions = cx.along(positions, 1, 2)?;
            let lengths = cx.unsqueezed(mask, 1)?;
            let kept = cx.less(positions, lengths)?;
            (kept, vec![shape[0].clone(), one(), one(), keys.clone()])
        }
        2 | 3 => {
            let kept = cx.cast(mask, DType::Bool)?;
            let middle = if shape.len() == 3 { shape[1].clone() } else { one() };
            (kept, vec![shape[0].clone(), one(), middle, shape[shape.len() - 1].clone()])
        }
        _ => return Err(Refusal::Unsupported(format!("a mask {} is not supported", cx.ty(mask)))),
    };
    let kept = cx.shaped(kept, shape)?;
    let (zero, hidden) = (cx.number(like, 0.0)?, cx.number(like, hidden)?);
    cx.chosen(kept, zero, hidden)
}

/// Attention of heads, with the masks of onnxruntime.
struct Masks {
    keys: Option<Value>,
    bias: Option<Value>,
    causal: bool,
    hidden: f64,
}

fn attended(
    cx: &mut Importer,
    [q, k, v]: [Value; 3],
    masks: &Masks,
    scale: Option<f64>,
) -> Result<Value, Refusal> {
    if let Some(x) = [q, k, v].into_iter().find(|x| cx.ty(*x).ndim() != 4) {
        return Err(Refusal::Invalid(format!("expected 4 axes, found {}", cx.ty(x))));
    }
    let keys = cx.ty(k).shape[2].clone();
    let mut bias = masks.bias;
    if let Some(mask) = masks.keys {
        let mask = key_mask(cx, mask, &keys, masks.hidden, q)?;
        bias = Some(summed(cx, mask, &[bias])?);
    }
    let size = cx.ty(q).shape[3].as_extent();
    let scale = match (scale, size) {
        (Some(scale), _) if scale != 0.0 => scale,
        (_, Some(size)) => 1.0 / (size as f64).sqrt(),
        (_, None) => return Err(Refusal::Unsupported("heads of unknown size are not supported".into())),
    };
    let attend = Attend { scale, softcap: 0.0, causal: masks.causal, bias, may_be_blind: false };
    attend.apply(cx, q, k, v)
}

/// Part `part` of the last axis of a value, which begins at `from`.
fn columns(cx: &mut Importer, x: Value, from: i64, to: i64) -> Result<Value, Refusal> {
    let last = cx.ty(x).ndim().saturating_sub(1);
    slice_axes(cx, x, &[last], &[Dim::from(from)], &[Dim::from(to)], &[1])
}

/// `MultiHeadAttention` of queries, keys and values `[B, S, H · D]`; keys and values may have their heads apart already.
pub(super) fn multi_head_attention(cx: &mut Importer, call: &Call) -> Imported {
    let q = call.input(0)?;
    let (k, v) = (call.optional(1), call.optional(2));
    let (bias, keys, scores) = (call.optional(3), call.optional(4), call.optional(5));
    let past = [call.optional(6), call.optional(7)];
    let heads = call.int("num_heads", 0)?;
    let (Some(k), Some(v)) = (k, v) else {
        return Err(Refusal::Unsupported("queries, keys and values in one are not supported".into()));
    };
    let widths = [q, k, v].map(|x| cx.ty(x).shape.last().and_then(Dim::as_const));
    let mut parts = Vec::new();
    let mut from = 0;
    for (x, width) in [q, k, v].into_iter().zip(widths) {
        if cx.ty(x).ndim() == 4 {
            parts.push(x);
            continue;
        }
        let mut x = x;
        if let Some(bias) = bias {
            let width = width.ok_or_else(|| Refusal::Unsupported("an open width is not supported".into()))?;
            let own = columns(cx, bias, from, from + width)?;
            from += width;
            x = cx.plus(x, own)?;
        }
        parts.push(split_heads(cx, x, heads)?);
    }
    let (k, v) = (appended(cx, past[0], parts[1])?, appended(cx, past[1], parts[2])?);
    let masks = Masks {
        keys,
        bias: scores,
        causal: call.flag("unidirectional", false)?,
        hidden: call.float("mask_filter_value", -10000.0)?,
    };
    let y = attended(cx, [parts[0], k, v], &masks, call.optional_float("scale")?)?;
    Ok(vec![join_heads(cx, y)?, k, v])
}

/// `Attention`: queries, keys and values are products of the operand with one matrix.
pub(super) fn attention(cx: &mut Importer, call: &Call) -> Imported {
    let (x, weights, bias) = (call.input(0)?, call.input(1)?, call.optional(2));
    let (keys, past, scores) = (call.optional(3), call.optional(4), call.optional(5));
    let heads = call.int("num_heads", 0)?;
    if past.is_some() || call.wants(1) || call.flag("do_rotary", false)? {
        return Err(Refusal::Unsupported("caches and rotations are not supported".into()));
    }
    call.ignore(&["past_present_share_buffer", "rotary_embedding_dim"]);
    let product = cx.add(MatMul, &[x, weights])?;
    let product = summed(cx, product, &[bias])?;
    attention_of(cx, call, product, keys, scores, heads)
}

/// `QAttention`: the same of 8-bit integers.
pub(super) fn q_attention(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [call.input(0)?, call.input(1)?];
    let (bias, scales) = (call.optional(2), [call.input(3)?, call.input(4)?]);
    let (keys, zeros, past) = (call.optional(5), [call.optional(6), call.optional(7)], call.optional(8));
    let heads = call.int("num_heads", 0)?;
    if past.is_some() || call.wants(1) || call.flag("do_rotary", false)? {
        return Err(Refusal::Unsupported("caches and rotations are not supported".into()));
    }
    call.ignore(&["past_present_share_buffer"]);
    let product = super::quantized::scaled_product(cx, operands, scales, zeros, bias)?;
    attention_of(cx, call, product, keys, None, heads)
}

/// Attention of queries, keys and values that stand side by side.
fn attention_of(
    cx: &mut Importer,
    call: &Call,
    product: Value,
    keys: Option<Value>,
    scores: Option<Value>,
    heads: i64,
) -> Imported {
    let width = cx.ty(product).shape.last().and_then(Dim::as_const);
    let width = width.ok_or_else(|| Refusal::Unsupported("an open width is not supported".into()))?;
    let widths = match call.ints("qkv_hidden_sizes")? {
        Some(list) if list.len() == 3 => list.to_vec(),
        Some(list) => return Err(Refusal::Invalid(format!("expected 3 widths, found {}", list.len()))),
        None => vec![width / 3; 3],
    };
    let mut parts = Vec::new();
    let mut from = 0;
    for width in widths {
        let part = columns(cx, product, from, from + width)?;
        from += width;
        parts.push(split_heads(cx, part, heads)?);
    }
    let masks = Masks {
        keys,
        bias: scores,
        causal: call.flag("unidirectional", false)?,
        hidden: call.float("mask_filter_value", -10000.0)?,
    };
    let y = attended(cx, [parts[0], parts[1], parts[2]], &masks, call.optional_float("scale")?)?;
    Ok(vec![join_heads(cx, y)?])
}
