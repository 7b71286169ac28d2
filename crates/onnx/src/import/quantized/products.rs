//! Matrix products of 8-bit integers less their zero points.
//!
//! Σ (a - za) (b - zb) is Σ a b less za times the sums of the columns of B, less zb times those of the rows of A, plus k za zb.
//! Zero points of a constant B are taken off where bytes remain, else a column of ones gives the sums of the rows of A; the
//! sums of its columns are constants.

use margay_ir::Value;
use margay_ir::ops::{MatMul, ReduceKind};
use margay_tensor::DType;

use super::super::Importer;
use super::super::call::Refusal;

/// A B of integers less their zero points, as i32.
pub(super) fn integer_product(
    cx: &mut Importer,
    [a, b]: [Value; 2],
    [a_zero, b_zero]: [Option<Value>; 2],
) -> Result<Value, Refusal> {
    let (left, right) = (cx.ty(a).ndim(), cx.ty(b).ndim());
    if left == 0 || right < 2 {
        return Err(Refusal::Invalid(format!("a product of {} and {}", cx.ty(a), cx.ty(b))));
    }
    let (b, b_zero, rest) = match cx.signed(b, b_zero, right - 1)? {
        Some((b, rest)) => (b, None, rest),
        None => (b, b_zero, None),
    };
    let mut sums = cx.add(MatMul, &[a, b])?;
    let wide = |cx: &mut Importer, zero: Option<Value>| {
        let zero = zero.filter(|zero| !cx.is_zero(*zero));
        zero.map(|zero| cx.cast(zero, DType::I32)).transpose()
    };
    let (a_zero, b_zero) = (wide(cx, a_zero)?, wide(cx, b_zero)?);
    if let Some(zero) = a_zero {
        let zero = match cx.ty(zero).ndim() {
            // One for each row.
            1 if !cx.ty(zero).shape[0].is(1) => cx.unsqueezed(zero, 1)?,
            _ => zero,
        };
        let mut columns = cx.column_sums(b)?;
        if let Some(b_zero) = b_zero {
            let terms = known_terms(cx.ty(b).shape[right - 2].as_extent())?;
            let all = cx.scaled(b_zero, terms as f64)?;
            columns = cx.minus(columns, all)?;
        }
        let negative = cx.negated(zero)?;
        let offset = cx.times(negative, columns)?;
        sums = cx.plus(sums, offset)?;
    }
    if let Some(zero) = b_zero {
        let a = cx.cast(a, DType::I32)?;
        let rows = cx.joined(ReduceKind::Sum, a, &[left - 1], true)?;
        let offset = cx.times(rows, zero)?;
        sums = cx.minus(sums, offset)?;
    }
    let last = cx.ty(sums).ndim() - 1;
    cx.less_zero(sums, rest, last)
}

/// How many terms sums have, which must be known.
pub(super) fn known_terms(count: Option<usize>) -> Result<usize, Refusal> {
    count.ok_or_else(|| Refusal::Unsupported("integer products of unknown length are not supported".into()))
}
