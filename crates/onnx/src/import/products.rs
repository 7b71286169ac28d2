//! Matrix products.

use margay_ir::Value;
use margay_ir::ops::{Add, MatMul, Mul, Transpose};
use margay_tensor::Dim;

use super::Importer;
use super::call::{Call, Imported, Refusal};

/// `MatMul`: vectors are made matrices first, and what they add to the result is dropped.
pub(super) fn matmul(cx: &mut Importer, call: &Call) -> Imported {
    let (mut a, mut b) = (call.input(0)?, call.input(1)?);
    let one = Dim::from(1usize);
    let (row, column) = (cx.ty(a).ndim() == 1, cx.ty(b).ndim() == 1);
    if row {
        let shape = vec![one.clone(), cx.ty(a).shape[0].clone()];
        a = cx.shaped(a, shape)?;
    }
    if column {
        let shape = vec![cx.ty(b).shape[0].clone(), one];
        b = cx.shaped(b, shape)?;
    }
    let product = cx.add(MatMul, &[a, b])?;
    let mut shape = cx.ty(product).shape.clone();
    if column {
        shape.pop();
    }
    if row {
        shape.remove(shape.len() - if column { 1 } else { 2 });
    }
    cx.shaped(product, shape).map(|v| vec![v])
}

/// `Gemm`: α A B + β C, with A and B transposed on demand.
pub(super) fn gemm(cx: &mut Importer, call: &Call) -> Imported {
    let (a, b, c) = (call.input(0)?, call.input(1)?, call.optional(2));
    let (alpha, beta) = (call.float("alpha", 1.0)?, call.float("beta", 1.0)?);
    // An attribute of the oldest operator sets; the addition broadcasts anyway.
    call.ignore(&["broadcast"]);
    let a = transposed(cx, a, call.flag("transA", false)?)?;
    let b = transposed(cx, b, call.flag("transB", false)?)?;
    let product = cx.add(MatMul, &[a, b])?;
    let mut sum = scaled(cx, product, alpha)?;
    if let Some(c) = c.filter(|_| beta != 0.0) {
        let c = scaled(cx, c, beta)?;
        sum = cx.add(Add, &[sum, c])?;
    }
    Ok(vec![sum])
}

fn transposed(cx: &mut Importer, x: Value, wanted: bool) -> Result<Value, Refusal> {
    if wanted { cx.add(Transpose { perm: vec![1, 0] }, &[x]) } else { Ok(x) }
}

fn scaled(cx: &mut Importer, x: Value, factor: f64) -> Result<Value, Refusal> {
    if factor == 1.0 {
        return Ok(x);
    }
    let factor = cx.number(x, factor)?;
    cx.add(Mul, &[x, factor])
}
