//! Attention, as ONNX and onnxruntime have it, and rotary embeddings.
//!
//! What the operator of the graph can say becomes that: masks are added to the scores. Capped scores, and scores that
//! are asked for as results, are spelled out. A row that sees no key is 0 here, where the graph makes it NaN.

use margay_ir::Value;
use margay_ir::ops::{Add, Attention, Bits, Concat, Gather, MatMul, Number, Pad, ReduceKind, Softmax, Tanh};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::pixels::exact;
use super::slices::slice_axes;

/// Which of the scores are a second result.
#[derive(Clone, Copy, PartialEq)]
enum Scores {
    /// The products, scaled.
    Products,
    /// With the cap.
    Capped,
    /// With the masks.
    Masked,
    /// After the softmax.
    Weights,
}

/// Attention of `[B, H, S, D]` queries, keys and values; the last two may have fewer heads.
pub(super) struct Attend {
    /// Multiplies the products.
    pub(super) scale: f64,
    /// Bound of the scores, by a tanh; 0 for none.
    pub(super) softcap: f64,
    /// Query i sees key j only where j <= i + T - S.
    pub(super) causal: bool,
    /// Added to the scores.
    pub(super) bias: Option<Value>,
    /// Whether some query may see no key; its result is 0.
    pub(super) may_be_blind: bool,
}

impl Attend {
    /// The result.
    pub(super) fn apply(&self, cx: &mut Importer, q: Value, k: Value, v: Value) -> Result<Value, Refusal> {
        if self.softcap != 0.0 {
            return Ok(self.spelled_out(cx, [q, k, v], None)?.0);
        }
        let op = Attention { scale: Bits::new(self.scale), causal: self.causal, log_sum_exp: false };
        let Some(bias) = self.bias else { return cx.add(op, &[q, k, v]) };
        let y = cx.add(op, &[q, k, v, bias])?;
        if !self.may_be_blind {
            return Ok(y);
        }
        let last = cx.ty(bias).ndim() - 1;
        let largest = cx.joined(ReduceKind::Max, bias, &[last], true)?;
        let none = cx.number(bias, f64::NEG_INFINITY)?;
        let sees = cx.less(none, largest)?;
        cx.chosen_or(sees, y, 0.0)
    }

    /// The result by the matrix of scores, and the scores that are asked for. Halves are computed in f32.
    fn spelled_out(
        &self,
        cx: &mut Importer,
        [q, k, v]: [Value; 3],
        wanted: Option<Scores>,
    ) -> Result<(Value, Option<Value>), Refusal> {
        let (dtype, wide) = (cx.ty(q).dtype, cx.wide(q));
        let heads = cx.ty(q).shape[1].clone();
        let q = cx.cast(q, wide)?;
        let (k, v) = (cx.cast(k, wide)?, cx.cast(v, wide)?);
        let (k, v) = (with_heads(cx, k, &heads)?, with_heads(cx, v, &heads)?);
        let swapped = cx.transposed(k, &[0, 1, 3, 2])?;
        let products = cx.add(MatMul, &[q, swapped])?;
        let products = cx.scaled(products, self.scale)?;
        let mut kept = [products; 4];
        let mut scores = products;
        if self.softcap != 0.0 {
            let inner = cx.scaled(scores, 1.0 / self.softcap)?;
            let bent = cx.add(Tanh, &[inner])?;
            scores = cx.scaled(bent, self.softcap)?;
        }
        kept[Scores::Capped as usize] = scores;
        if let Some(bias) = self.bias {
            let bias = cx.cast(bias, wide)?;
            scores = cx.plus(scores, bias)?;
        }
        if self.causal {
            let shape = cx.ty(scores).shape.clone();
            let (i, j) = (cx.positions(&shape[2..], 0)?, cx.positions(&shape[2..], 1)?);
            let offset = cx.extent(&(&shape[3] - &shape[2]), DType::I64)?;
            let last = cx.plus(i, offset)?;
            let seen = cx.at_most(j, last)?;
            scores = cx.chosen_or(seen, scores, f64::NEG_INFINITY)?;
        }
        kept[Scores::Masked as usize] = scores;
        let mut weights = cx.add(Softmax { axis: 3 }, &[scores])?;
        if self.may_be_blind {
            let largest = cx.joined(ReduceKind::Max, scores, &[3], true)?;
            let none = cx.number(scores, f64::NEG_INFINITY)?;
            let sees = cx.less(none, largest)?;
            weights = cx.chosen_or(sees, weights, 0.0)?;
        }
        kept[Scores::Weights as usize] = weights;
        let y = cx.add(MatMul, &[weights, v])?;
        let y = cx.cast(y, dtype)?;
        let asked = wanted.map(|which| cx.cast(kept[which as usize], dtype)).transpose()?;
        Ok((y, asked))
    }
}

/// Keys or values with as many heads as the queries, each repeated for those that share it.
fn with_heads(cx: &mut Importer, x: Value, heads: &Dim) -> Result<Value, Refusal> {
    let shape = cx.ty(x).shape.clone();
    if shape[1] == *heads {
        return Ok(x);
    }
    let shared = exact(heads, &shape[1])?;
    let x = cx.unsqueezed(x, 2)?;
    let mut split = cx.ty(x).shape.clone();
    split[2] = shared;
    let x = cx.spread(x, split)?;
    cx.shaped(x, [&shape[..1], std::slice::from_ref(heads), &shape[2..]].concat())
}

/// `[B, S, H · D]` as `[B, H, S, D]`.
pub(super) fn split_heads(cx: &mut Importer, x: Value, heads: i64) -> Result<Value, Refusal> {
    let shape = cx.ty(x).shape.clone();
    if shape.len() != 3 || heads < 1 {
        return Err(Refusal::Invalid(format!("{heads} heads of {}", cx.ty(x))));
    }
    let heads = Dim::from(heads);
    let each = exact(&shape[2], &heads)?;
    let split = cx.shaped(x, vec![shape[0].clone(), shape[1].clone(), heads, each])?;
    cx.transposed(split, &[0, 2, 1, 3])
}

/// `[B, H, S, D]` as `[B, S, H · D]`.
pub(super) fn join_heads(cx: &mut Importer, x: Value) -> Result<Value, Refusal> {
    let swapped = cx.transposed(x, &[0, 2, 1, 3])?;
    let shape = cx.ty(swapped).shape.clone();
    cx.shaped(swapped, vec![shape[0].clone(), shape[1].clone(), &shape[2] * &shape[3]])
}

/// What was kept before what is new, along the third axis.
pub(super) fn appended(cx: &mut Importer, past: Option<Value>, x: Value) -> Result<Value, Refusal> {
    match past {
        Some(past) => cx.add(Concat { axis: 2 }, &[past, x]),
        None => Ok(x),
    }
}

/// `Attention` of the default domain.
pub(super) fn attention(cx: &mut Importer, call: &Call) -> Imported {
    let (mut q, mut k, mut v) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (mask, past) = (call.optional(3), [call.optional(4), call.optional(5)]);
    let filled = call.optional(6);
    let flat = cx.ty(q).ndim() == 3;
    let (q_heads, kv_heads) = (call.optional_int("q_num_heads")?, call.optional_int("kv_num_heads")?);
    if flat {
        let missing = || Refusal::Invalid("expected attributes `q_num_heads` and `kv_num_heads`".into());
        let (q_heads, kv_heads) = (q_heads.ok_or_else(missing)?, kv_heads.ok_or_else(missing)?);
        q = split_heads(cx, q, q_heads)?;
        (k, v) = (split_heads(cx, k, kv_heads)?, split_heads(cx, v, kv_heads)?);
    }
    for x in [q, k, v] {
        if cx.ty(x).ndim() != 4 {
            return Err(Refusal::Invalid(format!("expected 3 or 4 axes, found {}", cx.ty(x))));
        }
    }
    if past[0].is_some() != past[1].is_some() || past[0].is_some() && filled.is_some() {
        return Err(Refusal::Invalid("a cache is given in parts, or in two ways".into()));
    }
    let before = past[0].map_or_else(Dim::default, |p| cx.ty(p).shape.get(2).cloned().unwrap_or_default());
    (k, v) = (appended(cx, past[0], k)?, appended(cx, past[1], v)?);
    let head = cx.ty(q).shape[3].as_extent();
    let scale = match call.optional_float("scale")? {
        Some(scale) => scale,
        None => {
            let why = || Refusal::Unsupported("heads of unknown size are not supported".into());
            1.0 / (head.ok_or_else(why)? as f64).sqrt()
        }
    };
    // What softmax is computed in is never less than f32.
    call.ignore(&["softmax_precision"]);
    let softcap = call.float("softcap", 0.0)?;
    let window = [call.int("left_window_size", -1)?, call.int("right_window_size", -1)?];
    let causal = call.flag("is_causal", false)?;
    let (rows, keys) = (cx.ty(q).shape[2].clone(), cx.ty(k).shape[2].clone());
    let plain = mask.is_none() && filled.is_none() && window == [-1, -1];
    let by_operator = causal && plain && &keys - &rows == before;
    let bias = match by_operator || plain && !causal {
        true => None,
        false => Some(bias(cx, q, &keys, mask, causal, window, &before, filled)?),
    };
    let attend = Attend { scale, softcap, causal: by_operator, bias, may_be_blind: bias.is_some() };
    let wanted = match call.int("qk_matmul_output_mode", 0)? {
        0 => Scores::Products,
        1 => Scores::Capped,
        2 => Scores::Masked,
        3 => Scores::Weights,
        other => return Err(Refusal::Invalid(format!("expected mode 0 to 3, found {other}"))),
    };
    let (mut y, scores) = match call.wants(3) {
        true => attend.spelled_out(cx, [q, k, v], Some(wanted))?,
        false => (attend.apply(cx, q, k, v)?, None),
    };
    if flat {
        y = join_heads(cx, y)?;
    }
    Ok([y, k, v].into_iter().chain(scores).collect())
}

/// What is added to the scores: the mask, and -∞ where a key is not seen for another reason.
#[allow(clippy::too_many_arguments, reason = "each says of its own what is seen")]
fn bias(
    cx: &mut Importer,
    q: Value,
    keys: &Dim,
    mask: Option<Value>,
    causal: bool,
    [left, right]: [i64; 2],
    before: &Dim,
    filled: Option<Value>,
) -> Result<Value, Refusal> {
    let (dtype, rows) = (cx.ty(q).dtype, cx.ty(q).shape[2].clone());
    let mut bias = cx.scalar(dtype, 0.0)?;
    if let Some(mut mask) = mask {
        if cx.ty(mask).dtype == DType::Bool {
            let (zero, hidden) = (cx.scalar(dtype, 0.0)?, cx.scalar(dtype, f64::NEG_INFINITY)?);
            mask = cx.chosen(mask, zero, hidden)?;
        }
        let ndim = cx.ty(mask).ndim();
        let found = cx.ty(mask).shape.last().cloned().unwrap_or_default();
        // Keys beyond the end of a mask are not seen.
        if let Some(missing) = (keys - &found).as_const().filter(|&m| m > 0 && !found.is(1)) {
            let mut after = vec![0; ndim];
            after[ndim - 1] = missing;
            mask = cx.add(
                Pad { before: vec![0; ndim], after, value: Number::float(f64::NEG_INFINITY) },
                &[mask],
            )?;
        }
        bias = mask;
    }
    let plane = [rows.clone(), keys.clone()];
    let (i, j) = (cx.positions(&plane, 0)?, cx.positions(&plane, 1)?);
    let filled = match filled {
        Some(filled) => {
            let filled = cx.cast(filled, DType::I64)?;
            Some(cx.along(filled, 0, 4)?)
        }
        None => None,
    };
    let mut seen: Option<Value> = None;
    let mut also = |cx: &mut Importer, test: Value| -> Result<(), Refusal> {
        seen = Some(match seen {
            Some(seen) => cx.both(seen, test)?,
            None => test,
        });
        Ok(())
    };
    if causal || left >= 0 || right >= 0 {
        let offset = match filled {
            Some(filled) => {
                let rows = cx.extent(&rows, DType::I64)?;
                cx.minus(filled, rows)?
            }
            None => cx.extent(before, DType::I64)?,
        };
        let here = cx.plus(i, offset)?;
        if causal {
            let test = cx.at_most(j, here)?;
            also(cx, test)?;
        }
        if left >= 0 {
            let first = cx.offset(here, -left as f64)?;
            let test = cx.at_most(first, j)?;
            also(cx, test)?;
        }
        if right >= 0 {
            let last = cx.offset(here, right as f64)?;
            let test = cx.at_most(j, last)?;
            also(cx, test)?;
        }
    }
    if let Some(filled) = filled {
        let test = cx.less(j, filled)?;
        also(cx, test)?;
    }
    match seen {
        Some(seen) => cx.chosen_or(seen, bias, f64::NEG_INFINITY),
        None => Ok(bias),
    }
}

/// `RotaryEmbedding` of the default domain.
pub(super) fn rotary_embedding(cx: &mut Importer, call: &Call) -> Imported {
    let (x, cos, sin, at) = (call.input(0)?, call.input(1)?, call.input(2)?, call.optional(3));
    let flat = cx.ty(x).ndim() == 3;
    let heads = call.int("num_heads", 0)?;
    let part = call.int("rotary_embedding_dim", 0)?;
    let interleaved = call.flag("interleaved", false)?;
    let x = if flat { split_heads(cx, x, heads)? } else { x };
    let [cos, sin] = match at {
        Some(at) => [cos, sin].map(|table| cx.add(Gather { axis: 0 }, &[table, at])),
        None => [Ok(cos), Ok(sin)],
    };
    let y = rotated(cx, x, cos?, sin?, part, interleaved)?;
    Ok(vec![if flat { join_heads(cx, y)? } else { y }])
}

/// `[B, H, S, D]` rotated, pair by pair, by angles whose cosines and sines are `[B, S, R/2]`, where R is `part`, or D if
/// that is 0.
pub(super) fn rotated(
    cx: &mut Importer,
    x: Value,
    cos: Value,
    sin: Value,
    part: i64,
    interleaved: bool,
) -> Result<Value, Refusal> {
    let shape = cx.ty(x).shape.clone();
    if shape.len() != 4 || cx.ty(cos).ndim() != 3 {
        return Err(Refusal::Invalid(format!(
            "expected 4 and 3 axes, found {} and {}",
            cx.ty(x),
            cx.ty(cos)
        )));
    }
    let size = shape[3].as_const();
    let size = size.ok_or_else(|| Refusal::Unsupported("heads of unknown size are not supported".into()))?;
    let part = if part == 0 { size } else { part };
    if part % 2 != 0 || part > size {
        return Err(Refusal::Invalid(format!("{part} of {size} elements to be rotated")));
    }
    let cut = |cx: &mut Importer, from: i64, to: i64, step: i64| {
        slice_axes(cx, x, &[3], &[Dim::from(from)], &[Dim::from(to)], &[step])
    };
    let (first, second) = match interleaved {
        true => (cut(cx, 0, part, 2)?, cut(cx, 1, part, 2)?),
        false => (cut(cx, 0, part / 2, 1)?, cut(cx, part / 2, part, 1)?),
    };
    let half = slice_of(part / 2);
    let mut angles = |table: Value| {
        let table = slice_axes(cx, table, &[2], &half.0, &half.1, &[1])?;
        cx.unsqueezed(table, 1)
    };
    let (cos, sin) = (angles(cos)?, angles(sin)?);
    let product = |cx: &mut Importer, x: Value, y: Value| cx.times(x, y);
    let (cc, ss) = (product(cx, first, cos)?, product(cx, second, sin)?);
    let (cs, sc) = (product(cx, second, cos)?, product(cx, first, sin)?);
    let (real, imaginary) = (cx.minus(cc, ss)?, cx.add(Add, &[sc, cs])?);
    let rotated = if interleaved {
        let (real, imaginary) = (cx.unsqueezed(real, 4)?, cx.unsqueezed(imaginary, 4)?);
        let pairs = cx.add(Concat { axis: 4 }, &[real, imaginary])?;
        let mut flat = shape.clone();
        flat[3] = Dim::from(part);
        cx.shaped(pairs, flat)?
    } else {
        cx.add(Concat { axis: 3 }, &[real, imaginary])?
    };
    if part == size {
        return Ok(rotated);
    }
    let rest = cut(cx, part, size, 1)?;
    cx.add(Concat { axis: 3 }, &[rotated, rest])
}

fn slice_of(end: i64) -> ([Dim; 1], [Dim; 1]) {
    ([Dim::default()], [Dim::from(end)])
}
