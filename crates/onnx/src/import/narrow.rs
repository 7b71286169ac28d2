//! Conversions to and from element types that are narrower than those of graphs.
//!
//! A value of such a type is a value of bytes ([`Narrow::carrier`]) of which the importer knows what they stand for. Floats
//! are looked up in a table of all of them; a number becomes the nearest one, of two the even one, by looking for it among
//! the bounds between neighbours.

use margay_ir::Value;
use margay_ir::ops::{Floor, Gather, Round};
use margay_tensor::DType;

use super::Importer;
use super::call::{Call, Imported, Refusal};
use crate::{Narrow, OnnxNode};

/// Operators that only move elements of their first operand, or of all of them.
const MOVE: &[&str] = &[
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// Operators that convert.
const CONVERT: &[&str] = &["Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"];

/// What a node has to do with values of narrow types.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Handling {
    /// Its results have the type of its first operand.
    Moves,
    /// It knows what they are.
    Converts,
    /// It takes none.
    Refuses,
}

/// What a node does with them.
pub(super) fn handling(node: &OnnxNode) -> Handling {
    let name = node.op_type.as_str();
    match node.domain.is_empty() {
        true if MOVE.contains(&name) => Handling::Moves,
        true if CONVERT.contains(&name) => Handling::Converts,
        _ => Handling::Refuses,
    }
}

/// How numbers that lie between two powers of two are rounded to one.
#[derive(Clone, Copy, PartialEq)]
enum Rounding {
    Up,
    Down,
    Nearest,
}

/// What a conversion is to do with numbers that the type lacks.
#[derive(Clone, Copy)]
pub(super) struct Beyond {
    /// Numbers that are too large become the largest, not infinite or no number.
    saturate: bool,
    rounding: Rounding,
}

impl Beyond {
    /// As attributes of a node say.
    pub(super) fn of(call: &Call) -> Result<Beyond, Refusal> {
        let rounding = match call.text("round_mode", "up")? {
            "up" => Rounding::Up,
            "down" => Rounding::Down,
            "nearest" => Rounding::Nearest,
            other => return Err(Refusal::Invalid(format!("`{other}` is no way to round"))),
        };
        Ok(Beyond { saturate: call.flag("saturate", true)?, rounding })
    }
}

impl<'a> Importer<'a> {
    /// Imports a node that may read values of narrow types: it moves or converts them, or is refused.
    pub(super) fn with_narrow(
        &mut self,
        call: &Call<'a>,
        node: &OnnxNode,
        import: impl FnOnce(&mut Importer<'a>) -> Imported,
    ) -> Imported {
        let found = call.values().find_map(|v| self.narrow(v));
        let (Some(narrow), handling) = (found, handling(node)) else { return import(self) };
        match handling {
            Handling::Converts => import(self),
            Handling::Refuses => {
                let name = narrow.name();
                Err(Refusal::Unsupported(format!("element type `{name}` is not supported by it")))
            }
            Handling::Moves => {
                let all = if node.op_type == "Concat" { call.given() } else { 1 };
                if call.values().take(all).any(|v| self.narrow(v) != Some(narrow)) {
                    return Err(Refusal::Invalid(format!("expected elements of `{}` alone", narrow.name())));
                }
                let results = import(self)?;
                self.narrow.extend(results.iter().map(|v| (*v, narrow)));
                Ok(results)
            }
        }
    }

    /// The narrow type that a value stands for.
    pub(super) fn narrow(&self, v: Value) -> Option<Narrow> {
        self.narrow.get(&v).copied()
    }

    /// The value with its bytes taken for elements of a narrow type.
    pub(super) fn marked(&mut self, v: Value, narrow: Narrow) -> Result<Value, Refusal> {
        // The same bytes may stand for something else: they are a node of their own.
        let shape = self.ty(v).shape.clone();
        let own = self.graph.add(margay_ir::ops::Reshape { shape }, &[v], self.origin.clone())?;
        self.narrow.insert(own, narrow);
        Ok(own)
    }

    /// The numbers that a value stands for, those of a narrow type as f32 or their byte.
    pub(super) fn widened(&mut self, v: Value) -> Result<Value, Refusal> {
        match self.narrow(v) {
            Some(narrow) if narrow.is_float() => {
                let table = self.table(DType::F32, &[256], narrow.numbers())?;
                let at = self.cast(v, DType::I32)?;
                self.add(Gather { axis: 0 }, &[table, at])
            }
            Some(_) | None => Ok(v),
        }
    }

    /// Numbers as elements of a narrow type.
    pub(super) fn narrowed(&mut self, v: Value, to: Narrow, beyond: Beyond) -> Result<Value, Refusal> {
        let wide = self.widened(v)?;
        let bytes = match to.is_float() {
            true => self.float_bits(wide, to, beyond)?,
            false => self.wrapped(wide, to)?,
        };
        self.marked(bytes, to)
    }

    /// The lowest bits of whole numbers.
    fn wrapped(&mut self, v: Value, to: Narrow) -> Result<Value, Refusal> {
        let (low, high) = to.bounds();
        let values = high - low + 1.0;
        // Towards zero, and small enough for whole f32.
        let x = self.cast(v, DType::I32)?;
        let x = self.offset(x, -low)?;
        let count = self.number(x, values)?;
        let rest = super::integers::remainder(self, x, count, false)?;
        let y = self.offset(rest, low)?;
        self.cast(y, to.carrier())
    }

    /// The bits of the nearest numbers of a type.
    fn float_bits(&mut self, v: Value, to: Narrow, beyond: Beyond) -> Result<Value, Refusal> {
        let x = self.cast(v, DType::F32)?;
        let size = self.size(x)?;
        let magnitudes = to.magnitudes();
        let bounds = bounds(to, &magnitudes, beyond.rounding);
        // One more than there are bounds: the number that is too large.
        let levels = (bounds.len() + 1).next_power_of_two();
        // Padded, so that every step of the search finds a bound.
        let padded: Vec<f64> = (0..levels).map(|i| bounds.get(i).copied().unwrap_or(f64::INFINITY)).collect();
        let table = self.table(DType::F32, &[levels], padded)?;
        let zero = self.scalar(DType::I32, 0.0)?;
        let mut bits = self.spread(zero, self.ty(x).shape.clone())?;
        let mut step = levels;
        while step > 1 {
            step /= 2;
            let last = self.offset(bits, (step - 1) as f64)?;
            let bound = self.add(Gather { axis: 0 }, &[table, last])?;
            let reached = self.at_most(bound, size)?;
            let finite = self.below(bound, f64::INFINITY)?;
            let reached = self.both(reached, finite)?;
            let more = self.offset(bits, step as f64)?;
            bits = self.chosen(reached, more, bits)?;
        }
        let largest = magnitudes.len() as f64 - 1.0;
        let (nan, infinite, negative_zero) = to.special();
        let too_large = self.above(bits, largest)?;
        let instead = match (beyond.saturate, infinite, nan) {
            (true, ..) | (false, None, None) => largest,
            _ if to == Narrow::F4E2M1 => largest,
            (false, Some(bits), _) | (false, None, Some(bits)) => f64::from(bits),
        };
        let instead = self.number(bits, instead)?;
        bits = self.chosen(too_large, instead, bits)?;
        if to.is_signed() {
            let one = self.number(x, 1.0)?;
            let reciprocal = self.over(one, x)?;
            let (below, minus_zero) = (self.below(x, 0.0)?, self.below(reciprocal, 0.0)?);
            let mut negative = self.either(below, minus_zero)?;
            if !negative_zero {
                // 0 has no sign, and what is no number has it already.
                let some = self.above(bits, 0.0)?;
                let nan = f64::from(nan.unwrap_or(0));
                let number = self.below(bits, nan)?;
                let signed = self.both(some, number)?;
                negative = self.both(negative, signed)?;
            }
            let signed = self.offset(bits, f64::from(1u32 << (to.bits() - 1)))?;
            bits = self.chosen(negative, signed, bits)?;
        }
        if let Some(nan) = nan {
            let same = self.equal(x, x)?;
            let nan = self.number(bits, f64::from(nan))?;
            bits = self.chosen(same, bits, nan)?;
        }
        self.cast(bits, DType::U8)
    }

    /// x / scale in a narrow type: numbers rounded, integers plus the zero point and cut off at the bounds.
    pub(super) fn quantized_narrow(
        &mut self,
        quotient: Value,
        zero: Option<Value>,
        to: Narrow,
        beyond: Beyond,
    ) -> Result<Value, Refusal> {
        if to.is_float() {
            return self.narrowed(quotient, to, beyond);
        }
        let x = self.cast(quotient, DType::F32)?;
        let mut y = self.add(Round, &[x])?;
        if let Some(zero) = zero {
            let zero = self.cast(zero, DType::F32)?;
            y = self.plus(y, zero)?;
        }
        let (low, high) = to.bounds();
        let y = self.capped(y, high)?;
        let y = self.floored(y, low)?;
        let y = self.add(Floor, &[y])?;
        let bytes = self.cast(y, to.carrier())?;
        self.marked(bytes, to)
    }
}

/// Where the bits grow by one: the least f32 that becomes each number behind the first, the last of them too large.
fn bounds(to: Narrow, magnitudes: &[f64], rounding: Rounding) -> Vec<f64> {
    let above = |x: f64| f64::from((x as f32).next_up());
    let last = magnitudes[magnitudes.len() - 1];
    let behind = 2.0 * last - magnitudes[magnitudes.len() - 2];
    let behind = if to == Narrow::F8E8M0 { 2.0 * last } else { behind };
    let next = magnitudes[1..].iter().copied().chain([behind]);
    let pairs = magnitudes.iter().copied().zip(next).enumerate();
    let bound = |(bits, (low, high)): (usize, (f64, f64))| match (to, rounding) {
        (Narrow::F8E8M0, Rounding::Up) => above(low),
        (Narrow::F8E8M0, Rounding::Down) => high,
        _ => {
            let middle = (low + high) / 2.0;
            // Of two equally near ones the even one.
            if bits % 2 == 0 { above(middle) } else { middle }
        }
    };
    pairs.map(bound).collect()
}

/// A constant of a narrow type, as a value that stands for it.
pub(super) fn constant(cx: &mut Importer, narrow: Narrow, tensor: margay_tensor::Tensor) -> Imported {
    let origin = cx.origin.clone();
    let v = cx.leaf(tensor, origin)?;
    cx.narrow.insert(v, narrow);
    Ok(vec![v])
}
