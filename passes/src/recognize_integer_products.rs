//! Multiplies integers where both operands of a product are integers times scales: `(q - z) s` of 8-bit integers q, and a
//! constant matrix that is stored in int8. The same for convolutions in one group.
//!
//! Required stage: imported. The left operand has one scale and one zero point for all, constant or computed; the matrix has a
//! scale for each column, a kernel for each filter, or one for all, and no zero points. What a constant zero point adds to the
//! sums of a column is a constant; a convolution takes it off itself, since padding is 0. Declines sums that may be too long for
//! 32 bits.
//!
//! ```text
//! graph @before(%q: u8[N, 64]) -> (y: f32[N, 32]) {
//!   %0 = cast %q {to = i32} : i32[N, 64]  // x_DequantizeLinear
//!   %1 = const 28 : i32  // x_zero_point
//!   %2 = sub %0, %1 : i32[N, 64]  // x_DequantizeLinear
//!   %3 = cast %2 {to = f32} : f32[N, 64]  // x_DequantizeLinear
//!   %4 = const 0.5 : f32  // x_scale
//!   %5 = mul %3, %4 : f32[N, 64]  // x_DequantizeLinear
//!   %6 = const #w : f32[64, 32] stored i8(axis = 1)  // fc.weight
//!   %7 = matmul %5, %6 : f32[N, 32]  // fc
//!   return %7
//! }
//! graph @after(%q: u8[N, 64]) -> (y: f32[N, 32]) {
//!   %0 = const integers(#w) : i8[64, 32]  // fc.weight
//!   %1 = matmul %q, %0 : i32[N, 32]  // fc
//!   %2 = const offset(#w, zero = 28) : i32[32]  // fc
//!   %3 = add %1, %2 : i32[N, 32]  // fc
//!   %4 = cast %3 {to = f32} : f32[N, 32]  // fc
//!   %5 = const scales(#w, scale = 0.5) : f32[32]  // fc
//!   %6 = mul %4, %5 : f32[N, 32]  // fc
//!   return %6
//! }
//! ```

use margay_ir::ops::{Const, ImageLayout, MatMul, Numbers, Reshape};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    AddError, Builder, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch,
    Payload, Value, Verdict,
};
use margay_tensor::{DType, Scales, StoredTensor, Tensor};

use crate::matching::both_orders;

/// Finds products of integers.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeIntegerProducts;

impl Pass for RecognizeIntegerProducts {
    fn name(&self) -> &'static str {
        "recognize-integer-products"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rules = [
            Rule { name: "product-of-integers", apply: product },
            Rule { name: "convolution-of-integers", apply: convolution },
        ];
        rewrite(self.name(), g, cx, self, &rules)
    }
}

/// The most that a product of two bytes adds to a sum.
const LARGEST: usize = 255 * 128;

fn product(g: &Graph, n: NodeId, _: &RecognizeIntegerProducts) -> RuleResult {
    let Op::MatMul(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let operands = g.inputs_of(n);
    let Some(payload) = g.constant(operands[1]) else { return Ok(Verdict::NoMatch) };
    let (Some(left), Some(matrix)) = (dequantized(g, operands[0]), Matrix::of(payload.stored())) else {
        return Ok(Verdict::NoMatch);
    };
    if let Some(declined) = too_long(matrix.rows) {
        return Ok(declined);
    }
    let (origin, key) = (&g.node(n).origin, payload.key());
    let mut patch = Patch::new();
    let integers = Const { payload: Payload::derived(&format!("integers({key})"), matrix.integers) };
    let right = patch.add(g, integers, &[], g.node(operands[1].node).origin.clone())?;
    let mut b = Builder::patching(g, &mut patch, origin.clone());
    let mut sums = b.op(MatMul, &[left.integers, right])?;
    // Both sums and what is added to them fit 32 bits.
    let shift = |zero: i64| matrix.sums.iter().map(|sum| (-zero * sum) as i32).collect::<Vec<_>>();
    let columns = |numbers: Vec<i32>| Tensor::from_slice(&[numbers.len()], &numbers).expect("one axis");
    let offset = match left.zero {
        Single::Known(0) => None,
        Single::Known(zero) => {
            let derivation = format!("offset({key}, zero = {zero})");
            Some(b.op(Const { payload: Payload::derived(&derivation, columns(shift(zero))) }, &[])?)
        }
        Single::Computed(zero) => {
            let payload = Payload::derived(&format!("sums({key})"), columns(shift(-1)));
            let sums = b.op(Const { payload }, &[])?;
            let zero = b.cast(zero, DType::I32)?;
            let negative = b.neg(zero)?;
            Some(b.mul(negative, sums)?)
        }
    };
    if let Some(offset) = offset {
        sums = b.add(sums, offset)?;
    }
    let numbers = b.cast(sums, DType::F32)?;
    let scales = scales_of(&mut b, &key.to_string(), left.scale, &matrix.scales, &[matrix.scales.len()])?;
    let scaled = b.mul(numbers, scales)?;
    patch.redirect(n.into(), scaled);
    Ok(Verdict::Rewrite(patch))
}

/// The scales of an operand times that of the other one.
fn scales_of(
    b: &mut Builder<'_>,
    key: &str,
    left: Single<f32>,
    right: &[f32],
    shape: &[usize],
) -> Result<Value, AddError> {
    let known = if let Single::Known(scale) = left { scale } else { 1.0 };
    let scales: Vec<f32> = right.iter().map(|scale| scale * known).collect();
    match (left, right) {
        // A number times a number, which is computed once.
        (Single::Computed(scale), [first, rest @ ..]) if rest.iter().all(|other| other == first) => {
            let one = b.number(scale, f64::from(*first))?;
            b.mul(scale, one)
        }
        _ => {
            let scales = Tensor::from_slice(shape, &scales).expect("as many scales as the shape holds");
            let payload = Payload::derived(&format!("scales({key}, scale = {known})"), scales);
            let scales = b.op(Const { payload }, &[])?;
            match left {
                Single::Known(_) => Ok(scales),
                Single::Computed(scale) => b.mul(scale, scales),
            }
        }
    }
}

/// The verdict on sums of so many terms, where they may be too long for 32 bits.
fn too_long(terms: usize) -> Option<Verdict> {
    let most = i32::MAX as usize / LARGEST;
    (terms > most).then(|| Verdict::Declined(format!("sums of {terms} terms, at most {most} fit 32 bits")))
}

/// A convolution in one group, whose kernel has a scale for each filter, or one for all. Its zero is what padding holds.
fn convolution(g: &Graph, n: NodeId, _: &RecognizeIntegerProducts) -> RuleResult {
    let Op::Conv(op) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let (operands, plain) = (g.inputs_of(n), op.groups == 1 && op.layout == ImageLayout::Nchw);
    let Some(payload) = g.constant(operands[1]).filter(|_| plain) else {
        return Ok(Verdict::NoMatch);
    };
    let Some(left) = dequantized(g, operands[0]) else { return Ok(Verdict::NoMatch) };
    let Some((integers, scales)) = scaled_integers(payload.stored(), 0) else { return Ok(Verdict::NoMatch) };
    let (filters, rest) = (integers.shape()[0], &integers.shape()[1..]);
    if let Some(declined) = too_long(rest.iter().product()) {
        return Ok(declined);
    }
    // Along the channels of the result, before its spatial axes.
    let along: Vec<usize> = [filters].into_iter().chain(rest[1..].iter().map(|_| 1)).collect();
    let (origin, key) = (&g.node(n).origin, payload.key());
    let mut patch = Patch::new();
    let integers = Const { payload: Payload::derived(&format!("integers({key})"), integers) };
    let kernel = patch.add(g, integers, &[], g.node(operands[1].node).origin.clone())?;
    let mut b = Builder::patching(g, &mut patch, origin.clone());
    let zero = match left.zero {
        Single::Known(0) => None,
        Single::Known(zero) => {
            let payload = Payload::number(g.ty(left.integers).dtype, zero as f64);
            Some(b.op(Const { payload }, &[])?)
        }
        Single::Computed(zero) => Some(b.op(Reshape { shape: Vec::new() }, &[zero])?),
    };
    let inputs: Vec<Value> = [left.integers, kernel].into_iter().chain(zero).collect();
    let sums = b.op(op.clone(), &inputs)?;
    let numbers = b.cast(sums, DType::F32)?;
    let scales = scales_of(&mut b, &key.to_string(), left.scale, &scales, &along)?;
    let scaled = b.mul(numbers, scales)?;
    patch.redirect(n.into(), scaled);
    Ok(Verdict::Rewrite(patch))
}

/// One number for all elements of an operand: known, or a value of one element.
#[derive(Clone, Copy)]
enum Single<T> {
    Known(T),
    Computed(Value),
}

/// (integers - zero) scale.
struct Dequantized {
    integers: Value,
    /// Computed in the type of the integers.
    zero: Single<i64>,
    scale: Single<f32>,
}

fn dequantized(g: &Graph, v: Value) -> Option<Dequantized> {
    let Op::Mul(_) = g.op(v.node) else { return None };
    let found = both_orders(g, v).into_iter().find_map(|[numbers, scale]| {
        let whole = cast(g, numbers, DType::F32)?;
        let one = g.ty(scale).shape.iter().all(|d| d.is(1));
        let scale = match single(g, scale) {
            Some(scale) => Single::Known(*scale.to_vec::<f32>().ok()?.first()?),
            None if one => Single::Computed(scale),
            None => return None,
        };
        Some((whole, scale))
    });
    let (whole, scale) = found?;
    let (integers, zero) = match g.op(whole.node) {
        Op::Sub(_) => {
            let operands = g.inputs_of(whole.node);
            let zero = match single(g, operands[1]) {
                Some(zero) => Single::Known(*Numbers::of(zero).ok()?.ints().first()?),
                None => Single::Computed(cast(g, operands[1], DType::I32)?),
            };
            (cast(g, operands[0], DType::I32)?, zero)
        }
        Op::Cast(_) => (cast(g, whole, DType::I32)?, Single::Known(0)),
        _ => (whole, Single::Known(0)),
    };
    let bounds = match g.ty(integers).dtype {
        DType::I8 => -128..=127,
        DType::U8 => 0..=255,
        _ => return None,
    };
    let fits = match zero {
        Single::Known(zero) => bounds.contains(&zero),
        Single::Computed(zero) => {
            let ty = g.ty(zero);
            ty.dtype == g.ty(integers).dtype && ty.shape.iter().all(|d| d.is(1))
        }
    };
    (fits && g.ty(integers).shape == g.ty(v).shape).then_some(Dequantized { integers, zero, scale })
}

/// A constant of one element.
fn single(g: &Graph, v: Value) -> Option<&Tensor> {
    g.constant(v).map(Payload::tensor).filter(|tensor| tensor.len() == 1)
}

/// What a cast to a type is of.
fn cast(g: &Graph, v: Value, to: DType) -> Option<Value> {
    matches!(g.op(v.node), Op::Cast(cast) if cast.to == to).then(|| g.inputs_of(v.node)[0])
}

/// A matrix of integers times scales, one for each column.
struct Matrix {
    rows: usize,
    integers: Tensor,
    /// Of the columns.
    sums: Vec<i64>,
    scales: Vec<f32>,
}

impl Matrix {
    fn of(stored: &StoredTensor) -> Option<Matrix> {
        let &[rows, columns] = stored.shape() else { return None };
        let (integers, scales) = scaled_integers(stored, 1)?;
        let mut sums = vec![0i64; columns];
        for row in Numbers::of(&integers).ok()?.ints().chunks_exact(columns.max(1)) {
            row.iter().zip(&mut sums).for_each(|(x, sum)| *sum += x);
        }
        Some(Matrix { rows, integers, sums, scales })
    }
}

/// The integers of a constant that is stored in int8 without zero points, and their scales along an axis.
fn scaled_integers(stored: &StoredTensor, axis: usize) -> Option<(Tensor, Vec<f32>)> {
    let storage = stored.storage();
    let known = storage.scales == Scales::Tensor || storage.scales == Scales::Axis(axis);
    let bytes = storage.dtype == DType::I8 && !storage.is_packed();
    if !bytes || stored.dtype() != DType::F32 || storage.zero_points || !known {
        return None;
    }
    let extent = *stored.shape().get(axis)?;
    let scales = stored.scales()?.to_vec::<f32>().ok()?;
    Some((stored.elements().clone(), scales.iter().copied().cycle().take(extent).collect()))
}

#[cfg(test)]
mod tests {
    use margay_ir::ops::{Cast, Mul};
    use margay_ir::{Origin, TensorType};
    use margay_tensor::Storage;

    use super::*;

    #[test]
    fn sums_that_may_not_fit_stay() {
        let product_of = |terms: usize| {
            let mut g = Graph::new("g");
            let q = g.add_input("q", TensorType::known(DType::I8, &[1, terms]));
            let x = g.add(Cast { to: DType::F32 }, &[q], Origin::default()).unwrap();
            let constant = |g: &mut Graph, stored: StoredTensor| {
                g.add(Const { payload: Payload::new(stored) }, &[], Origin::default()).unwrap()
            };
            let scale = constant(&mut g, Tensor::scalar(0.5f32).into());
            let scaled = g.add(Mul, &[x, scale], Origin::default()).unwrap();
            let ones = Tensor::from_slice(&[terms, 1], &vec![1f32; terms]).unwrap();
            let matrix = constant(&mut g, StoredTensor::encode(&ones, Storage::int8(1)).unwrap());
            let y = g.add(MatMul, &[scaled, matrix], Origin::default()).unwrap();
            g.add_output("y", y);
            product(&g, y.node, &RecognizeIntegerProducts).unwrap()
        };
        assert!(matches!(product_of(65_793), Verdict::Rewrite(_)));
        let Verdict::Declined(why) = product_of(65_794) else { panic!("sums of 65794 terms") };
        assert_eq!(why, "sums of 65794 terms, at most 65793 fit 32 bits");
    }
}
