//! Layer normalisation (Ba, Kiros and Hinton, arXiv 1607.06450): `(x - μ) / √(σ² + ε) · scale + bias`, where the
//! mean μ and the variance σ² are taken over the axes from `axis` on.
//!
//! Operands are x, and scale and bias of the shape of the normalised axes.

use margay_loops::{Combine, Unary};
use margay_tensor::Tensor;

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::facts::Parameter;
use crate::ops::{
    Bits, Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, Reduce, ReduceKind, Sqrt,
};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Normalises over the last axes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LayerNorm {
    /// The first of the normalised axes.
    pub axis: usize,
    /// Added to the variance.
    pub epsilon: Bits,
}

attributes!(LayerNorm { axis, epsilon = Bits::new(1e-5) });

impl OpDef for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x, scale, bias] = types::inputs(inputs, "3")?;
        types::expect_float(0, x)?;
        types::check_axis(self.axis, x.ndim())?;
        let inner = &x.shape[self.axis..];
        for (input, t) in [(1, scale), (2, bias)] {
            types::expect_dtype(input, t, x.dtype)?;
            if t.ndim() != inner.len() {
                return Err(TypeError::Ndim { input, expected: inner.len().to_string(), found: t.ndim() });
            }
            for (axis, (left, right)) in inner.iter().zip(&t.shape).enumerate() {
                types::same_extent(&format!("normalised axis {axis} of inputs 0 and {input}"), left, right)?;
            }
        }
        types::one(x.dtype, x.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = inputs[0].shape();
        let mut v = Numbers::of(inputs[0])?.floats();
        let (scale, bias) = (Numbers::of(inputs[1])?.floats(), Numbers::of(inputs[2])?.floats());
        let count = scale.len();
        for row in v.chunks_mut(count.max(1)) {
            let mean = row.iter().sum::<f64>() / count as f64;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count as f64;
            let deviation = (variance + self.epsilon.get()).sqrt();
            let parameters = scale.iter().zip(&bias);
            row.iter_mut().zip(parameters).for_each(|(x, (s, b))| *x = (*x - mean) / deviation * s + b);
        }
        Ok(vec![Numbers::Float(v).into_tensor(inputs[0].dtype(), shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        // With u = (x - μ) / d and g = dy scale: dx = (g - mean(g) - u mean(g u)) / d.
        let (x, scale, dy) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let axes: Vec<usize> = (self.axis..cx.ty(x).ndim()).collect();
        let mean = |cx: &mut Vjp<'_>, v| {
            cx.op(Reduce { kind: ReduceKind::Mean, axes: axes.clone(), keepdims: true }, &[v])
        };
        let centre = mean(cx, x)?;
        let centred = cx.sub(x, centre)?;
        let square = cx.mul(centred, centred)?;
        let variance = mean(cx, square)?;
        let widened = cx.offset(variance, self.epsilon.get())?;
        let deviation = cx.op(Sqrt, &[widened])?;
        let unit = cx.div(centred, deviation)?;
        let g = cx.mul(dy, scale)?;
        let (g_unit, g_mean) = (cx.mul(g, unit)?, mean(cx, g)?);
        let along = mean(cx, g_unit)?;
        let shift = cx.mul(unit, along)?;
        let rest = cx.sub(g, g_mean)?;
        let rest = cx.sub(rest, shift)?;
        Grad::all([cx.div(rest, deviation)?, cx.mul(dy, unit)?, dy])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (axis, epsilon) = (self.axis, self.epsilon.get());
        let shape = io.outputs[0].shape.clone();
        Ok(Lowered::nest(move |n| {
            let (outer, inner) = shape.split_at(axis);
            let count = inner.iter().product::<usize>() as f64;
            if count == 0.0 {
                return;
            }
            n.for_each(outer, |n, i| {
                // The operand goes through the output, so that code fused into its loads runs once.
                n.serial_each(inner, i, &mut |n, at| {
                    let x = n.load(0, at);
                    n.store_raw(0, at, x);
                });
                let sum = n.reduce_each(inner, i, Combine::Sum, &mut |n, at| n.reload(0, at));
                let share = n.number(sum, 1.0 / count);
                let mean = n.mul(sum, share);
                let squares = n.reduce_each(inner, i, Combine::Sum, &mut |n, at| {
                    let x = n.reload(0, at);
                    let centred = n.sub(x, mean);
                    n.mul(centred, centred)
                });
                let variance = n.mul(squares, share);
                let epsilon = n.number(variance, epsilon);
                let widened = n.add(variance, epsilon);
                let deviation = n.unary(Unary::Sqrt, widened);
                let one = n.number(deviation, 1.0);
                let factor = n.div(one, deviation);
                n.serial_each(inner, i, &mut |n, at| {
                    let x = n.reload(0, at);
                    let (scale, bias) = (n.load(1, &at[axis..]), n.load(2, &at[axis..]));
                    let centred = n.sub(x, mean);
                    let unit = n.mul(centred, factor);
                    let scaled = n.mul(unit, scale);
                    let y = n.add(scaled, bias);
                    n.store(0, at, y);
                });
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 8)
    }

    fn facts(&self) -> Facts {
        Facts {
            elementwise: None,
            cheap: true,
            identity: false,
            symbolic: None,
            parameters: &[None, Some(Parameter::Scale), Some(Parameter::Shift)],
            image: None,
            with_all_results: None,
        }
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.along(
            self.clone(),
            |input, axis| {
                if input == 0 && axis < self.axis { Along::Apart } else { Along::Change }
            },
        )
    }

    fn cases() -> Vec<(Self, Case)> {
        let norm = |axis| LayerNorm { axis, epsilon: Bits::new(1e-5) };
        vec![
            (norm(1), Case::f32(&[&[3, 17], &[17], &[17]])),
            (norm(2), Case::f32(&[&[2, 3, 32], &[32], &[32]])),
            (norm(1), Case::f32(&[&[2, 3, 5], &[3, 5], &[3, 5]])),
            (norm(0), Case::f32(&[&[7], &[7], &[7]])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::DType;

    #[test]
    fn scale_and_bias_have_the_normalised_shape() {
        let [x, wrong] = [[2usize, 5], [5, 5]].map(|s| TensorType::known(DType::F32, &s));
        let norm = LayerNorm { axis: 1, epsilon: Bits::new(1e-5) };
        let [scale, bias] = [5, 4].map(|d| TensorType::known(DType::F32, &[d]));
        let error = |inputs: &[&TensorType]| norm.infer(inputs).unwrap_err().to_string();
        assert_eq!(
            error(&[&x, &scale, &bias]),
            "normalised axis 0 of inputs 0 and 2: extents `5` and `4` differ or are not known to be equal"
        );
        assert_eq!(error(&[&x, &wrong, &bias]), "input 1 has 2 axes, expected 1");
    }
}
