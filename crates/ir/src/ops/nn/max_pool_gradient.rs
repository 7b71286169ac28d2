//! The cotangent of X under the maximum over windows, [`Pool`](crate::ops::Pool) of kind `max`: what reaches a window goes
//! to the first of its elements that are the maximum, in row-major order.
//!
//! Operands are X, the maxima Y and the cotangent of Y, all in `layout`; the result is as X. A window whose maximum is a
//! NaN passes nothing on.

use margay_loops::{Binary, Combine, Index, Literal, Nest, Reg};
use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::facts::Image;
use crate::ops::nn::conv::Window;
use crate::ops::nn::layout::ImageLayout;
use crate::ops::nn::pool::{Pool, PoolKind};
use crate::ops::shape::indices;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Derivative of the maximum over windows; the lists have one value per spatial axis.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MaxPoolGradient {
    /// Elements of a window; not 0.
    pub kernel: Vec<usize>,
    /// Steps between windows.
    pub strides: Vec<usize>,
    /// Padding in front of each spatial axis.
    pub pads_before: Vec<usize>,
    /// Padding behind each spatial axis.
    pub pads_after: Vec<usize>,
    /// Steps between the elements of a window.
    pub dilations: Vec<usize>,
    /// The order of the axes of X and of Y.
    pub layout: ImageLayout,
}

attributes!(MaxPoolGradient {
    kernel,
    strides = vec![1, 1],
    pads_before = vec![0, 0],
    pads_after = vec![0, 0],
    dilations = vec![1, 1],
    layout = ImageLayout::Nchw,
});

impl MaxPoolGradient {
    /// The derivative of pooling that takes maxima.
    pub fn of(pool: &Pool) -> MaxPoolGradient {
        MaxPoolGradient {
            kernel: pool.kernel.clone(),
            strides: pool.strides.clone(),
            pads_before: pool.pads_before.clone(),
            pads_after: pool.pads_after.clone(),
            dilations: pool.dilations.clone(),
            layout: pool.layout,
        }
    }

    fn forward(&self) -> Pool {
        Pool {
            kind: PoolKind::Max,
            kernel: self.kernel.clone(),
            strides: self.strides.clone(),
            pads_before: self.pads_before.clone(),
            pads_after: self.pads_after.clone(),
            dilations: self.dilations.clone(),
            count_include_pad: false,
            layout: self.layout,
        }
    }

    fn windows(&self) -> Result<Vec<Window>, TypeError> {
        let spatial = self.kernel.len();
        Window::all(spatial, &self.strides, &self.dilations, &self.pads_before, &self.pads_after)
    }
}

impl OpDef for MaxPoolGradient {
    const NAME: &'static str = "max_pool_gradient";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x, y, dy] = types::inputs(inputs, "3")?;
        let expected = &self.forward().infer(&[x])?[0];
        for (input, t) in [(1, y), (2, dy)] {
            types::expect_dtype(input, t, x.dtype)?;
            if t.ndim() != x.ndim() {
                return Err(TypeError::Ndim { input, expected: x.ndim().to_string(), found: t.ndim() });
            }
            for (axis, (found, expected)) in t.shape.iter().zip(&expected.shape).enumerate() {
                types::same_extent(
                    &format!("axis {axis} of input {input} and of the maxima"),
                    found,
                    expected,
                )?;
            }
        }
        types::one(x.dtype, x.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let nchw = |input: usize| self.layout.tensor_to_nchw(inputs[input]);
        let (x, y, dy) = (nchw(0)?, nchw(1)?, nchw(2)?);
        let (windows, size) = (self.windows()?, &x.shape()[2..]);
        let [xs, maxima, changes] = [&x, &y, &dy].map(|t| Numbers::of(t).map(Numbers::floats));
        let (xs, maxima) = (xs?, maxima?);
        let mut out = vec![0.0; xs.len()];
        for ((at, maximum), change) in indices(y.shape()).zip(maxima).zip(changes?) {
            let under = |tap: Vec<usize>| {
                windows.iter().enumerate().try_fold(at[0] * x.shape()[1] + at[1], |flat, (axis, w)| {
                    Some(flat * size[axis] + w.position(at[axis + 2], tap[axis], size[axis])?)
                })
            };
            let first = indices(&self.kernel).filter_map(under).find(|&p| xs[p] == maximum);
            first.into_iter().for_each(|p| out[p] += change);
        }
        let dx = Numbers::Float(out).into_tensor(x.dtype(), x.shape())?;
        Ok(vec![self.layout.tensor_from_nchw(&dx)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::none("second derivatives of pooling are not taken")
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let spatial = |shape: &[usize]| self.layout.extents_to_nchw(shape)[2..].to_vec();
        let taps = Taps {
            kernel: self.kernel.clone(),
            windows: self.windows().map_err(|e| NotLowered(e.to_string()))?,
            size: spatial(&io.inputs[0].shape),
            places: spatial(&io.inputs[1].shape),
            layout: self.layout,
        };
        if taps.places.contains(&0) {
            return Err(NotLowered("a derivative of no windows".into()));
        }
        let shape = io.outputs[0].shape.clone();
        Ok(Lowered::nest(move |n| {
            n.for_each(&shape, |n, i| {
                let sum = taps.gather(n, i, &mut Vec::new(), None);
                n.store(0, i, sum);
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 2 * self.kernel.iter().product::<usize>() as u64)
    }

    fn facts(&self) -> Facts {
        Facts {
            elementwise: None,
            cheap: true,
            identity: false,
            symbolic: None,
            parameters: &[],
            image: Some(Image {
                layout: self.layout,
                channels_last: MaxPoolGradient { layout: ImageLayout::Nhwc, ..self.clone() }.into(),
                operands: 3,
                result: true,
                demanding: false,
            }),
            with_all_results: None,
        }
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.none(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |(pool, case): (Pool, Case)| {
            let shape = crate::ops::input_shapes(&case).remove(0);
            let y = pool.infer(&[&TensorType::known(DType::F32, &shape)]).ok()?.remove(0).extents()?;
            // Few different values, so that there are ties and maxima that are met.
            let input = |shape: &[usize]| {
                let values = (0..shape.iter().product::<usize>()).map(|i| (i * 7 % 5) as f32 - 2.0);
                Tensor::from_slice(shape, &values.collect::<Vec<_>>()).ok().map(crate::ops::CaseInput::Values)
            };
            let operands = Case::f32(&[]).with(input(&shape)?).with(input(&y)?);
            let change = crate::ops::CaseInput::Random { dtype: DType::F32, shape: y, low: -2.0, high: 2.0 };
            Some((MaxPoolGradient::of(&pool), operands.with(change)))
        };
        Pool::cases().into_iter().filter(|(p, _)| p.kind == PoolKind::Max).filter_map(case).collect()
    }
}

/// The windows that an element lies in, at the loop level.
struct Taps {
    kernel: Vec<usize>,
    windows: Vec<Window>,
    size: Vec<usize>,
    places: Vec<usize>,
    layout: ImageLayout,
}

impl Taps {
    /// Sums what the windows around the element `i` send there. `at` holds the places of the windows along
    /// the spatial axes done so far, `guard` whether they exist; the axes left are looped over.
    fn gather(&self, n: &mut Nest, i: &[Index], at: &mut Vec<Index>, guard: Option<Reg>) -> Reg {
        let axis = at.len();
        let Some(w) = self.windows.get(axis) else { return self.share(n, i, at, guard) };
        let here = &i[self.layout.spatial_axis(axis)];
        if let Some((place, guard)) = w.only_place(n, guard, here, self.kernel[axis], self.places[axis]) {
            at.push(place);
            let sum = self.gather(n, i, at, Some(guard));
            at.pop();
            return sum;
        }
        n.reduce(self.kernel[axis], &[Combine::Sum], |n, tap| {
            let (place, guard) = w.place(n, guard, here, &tap, self.places[axis]);
            at.push(place);
            let sum = self.gather(n, i, at, Some(guard));
            at.pop();
            vec![sum]
        })[0]
    }

    /// What the window at a place sends to the element `i`.
    fn share(&self, n: &mut Nest, i: &[Index], at: &[Index], guard: Option<Reg>) -> Reg {
        let mut place = i.to_vec();
        at.iter().enumerate().for_each(|(axis, at)| place[self.layout.spatial_axis(axis)] = at.clone());
        let guarded = |n: &mut Nest, input: usize| match guard {
            Some(test) => n.load_guarded(input, &place, test, 0.0),
            None => n.load(input, &place),
        };
        let (maximum, change) = (guarded(n, 1), guarded(n, 2));
        let own = self.tap_of(n, i, at);
        let own = n.cast(own, n.dtype(maximum));
        let first = self.first(n, &place, maximum, &mut Vec::new(), &Index::constant(0), guard);
        let zero = n.number(change, 0.0);
        let chosen = n.binary(Binary::Eq, own, first);
        n.select(chosen, change, zero)
    }

    /// Which tap of the window at `at` the element `i` lies under; taps count in row-major order.
    fn tap_of(&self, n: &mut Nest, i: &[Index], at: &[Index]) -> Reg {
        let mut number = n.literal(Literal::Int(DType::I64, 0));
        for (axis, (w, place)) in self.windows.iter().zip(at).enumerate() {
            let padded = i[self.layout.spatial_axis(axis)].plus(&Index::constant(w.before as i64), 1);
            let distance = n.index_value(&padded.plus(place, -(w.stride as i64)));
            let int = |n: &mut Nest, v: usize| n.literal(Literal::Int(DType::I64, v as i64));
            let (dilation, taps) = (int(n, w.dilation), int(n, self.kernel[axis]));
            let tap = if w.dilation == 1 { distance } else { n.div(distance, dilation) };
            let before = n.mul(number, taps);
            number = n.add(before, tap);
        }
        number
    }

    /// The first tap of the window at `place` whose element is `maximum`, as a number of its type; infinite if none is.
    /// `number` counts the taps of the axes done so far.
    fn first(
        &self,
        n: &mut Nest,
        place: &[Index],
        maximum: Reg,
        from: &mut Vec<Index>,
        number: &Index,
        guard: Option<Reg>,
    ) -> Reg {
        let axis = from.len();
        let Some(w) = self.windows.get(axis) else {
            let mut at = place.to_vec();
            from.iter()
                .enumerate()
                .for_each(|(axis, from)| at[self.layout.spatial_axis(axis)] = from.clone());
            // Outside of the image nothing is a maximum.
            let value = match guard {
                Some(test) => n.load_guarded(0, &at, test, f64::NAN),
                None => n.load(0, &at),
            };
            let tap = n.index_value(number);
            let (tap, none) = (n.cast(tap, n.dtype(maximum)), n.number(maximum, f64::INFINITY));
            let equal = n.binary(Binary::Eq, value, maximum);
            return n.select(equal, tap, none);
        };
        n.reduce(self.kernel[axis], &[Combine::Min], |n, tap| {
            let start = place[self.layout.spatial_axis(axis)].times(w.stride as i64);
            let at = start.plus(&tap, w.dilation as i64).plus(&Index::constant(w.before as i64), -1);
            let guard = w.inside(n, guard, &at, self.size[axis]);
            from.push(at);
            let number = number.times(self.kernel[axis] as i64).plus(&tap, 1);
            let first = self.first(n, place, maximum, from, &number, guard);
            from.pop();
            vec![first]
        })[0]
    }
}
