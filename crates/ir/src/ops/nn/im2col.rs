//! The windows of X `[N, C, spatial…]` side by side (known as im2col): the result `[N, C, kernel…, places…]` holds at
//! tap `t` of place `p` the element `p stride + t dilation - before` of X, and `value` outside of X.
//!
//! A convolution is a product of its kernel with these columns, which is how the derivative by the kernel is taken.

use margay_loops::Index;
use margay_tensor::{Dim, Shape, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::lowering::strides_of;
use crate::ops::nn::conv::Window;
use crate::ops::shape::{indices, pick};
use crate::ops::{Bits, Case, Col2im, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Op, TensorType, TypeError, Types, types};

/// Windows side by side; the lists have one value per spatial axis.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Im2col {
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
    /// What the padding holds.
    pub value: Bits,
}

attributes!(Im2col {
    kernel,
    strides = vec![1, 1],
    pads_before = vec![0, 0],
    pads_after = vec![0, 0],
    dilations = vec![1, 1],
    value = Bits::new(0.0),
});

impl OpDef for Im2col {
    const NAME: &'static str = "im2col";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        types::expect_float(0, x)?;
        if x.ndim() != self.kernel.len() + 2 {
            let expected = (self.kernel.len() + 2).to_string();
            return Err(TypeError::Ndim { input: 0, expected, found: x.ndim() });
        }
        let mut shape = x.shape[..2].to_vec();
        shape.extend(self.kernel.iter().map(|&k| Dim::from(k)));
        shape.extend(self.places(&x.shape[2..])?);
        types::one(x.dtype, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let shape = self.infer(&[&TensorType::of(x)])?[0].extents().unwrap_or_default();
        let (windows, strides) = (self.windows()?, strides_of(x.shape()));
        let at = |index: Vec<usize>| {
            let start = index[0] * strides[0] as usize + index[1] * strides[1] as usize;
            windows.iter().enumerate().try_fold(start, |sum, (axis, w)| {
                let (tap, place) = (index[2 + axis], index[2 + windows.len() + axis]);
                Some(sum + w.position(place, tap, x.shape()[2 + axis])? * strides[2 + axis] as usize)
            })
        };
        let filler = Numbers::Float(vec![self.value.get()]).into_tensor(x.dtype(), &[])?;
        Ok(vec![pick(x, &shape, indices(&shape).map(at), filler.bytes())?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (dy, size) = (cx.cotangent()?, cx.ty(cx.input(0)).shape[2..].to_vec());
        Grad::all([cx.op(Col2im { im2col: self.clone(), size }, &[dy])?])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let windows = self.windows().map_err(|e| NotLowered(e.to_string()))?;
        let (size, shape, value) =
            (io.inputs[0].shape[2..].to_vec(), io.outputs[0].shape.clone(), self.value.get());
        Ok(Lowered::nest(move |n| {
            n.for_each(&shape, |n, i| {
                let (mut from, mut guard) = (i[..2].to_vec(), None);
                for (axis, w) in windows.iter().enumerate() {
                    let (tap, place) = (&i[2 + axis], &i[2 + windows.len() + axis]);
                    let start = place.times(w.stride as i64);
                    let at = start.plus(tap, w.dilation as i64).plus(&Index::constant(w.before as i64), -1);
                    guard = w.inside(n, guard, &at, size[axis]);
                    from.push(at);
                }
                let x = match guard {
                    Some(test) => n.load_guarded(0, &from, test, value),
                    None => n.load(0, &from),
                };
                n.store(0, i, x);
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 0)
    }

    fn facts(&self) -> Facts {
        Facts::plain(true)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.none(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        samples().into_iter().map(|(op, shape)| (op, Case::f32(&[&shape]))).collect()
    }
}

/// Instances with the shapes of images.
pub(super) fn samples() -> Vec<(Im2col, Vec<usize>)> {
    let plain = Im2col {
        kernel: vec![3, 2],
        strides: vec![1, 1],
        pads_before: vec![0, 0],
        pads_after: vec![0, 0],
        dilations: vec![1, 1],
        value: Bits::new(0.0),
    };
    let padded = Im2col { pads_before: vec![1, 0], pads_after: vec![2, 1], ..plain.clone() };
    vec![
        (plain.clone(), vec![2, 3, 5, 4]),
        (Im2col { strides: vec![2, 3], dilations: vec![1, 2], ..padded.clone() }, vec![1, 2, 7, 9]),
        (Im2col { strides: vec![3, 1], value: Bits::new(-1.5), ..padded }, vec![1, 1, 6, 5]),
        (
            Im2col {
                kernel: vec![4],
                strides: vec![2],
                pads_before: vec![3],
                pads_after: vec![1],
                dilations: vec![2],
                value: Bits::new(0.0),
            },
            vec![2, 2, 11],
        ),
    ]
}

impl Im2col {
    pub(super) fn windows(&self) -> Result<Vec<Window>, TypeError> {
        let (strides, dilations) = (&self.strides, &self.dilations);
        Window::all(self.kernel.len(), strides, dilations, &self.pads_before, &self.pads_after)
    }

    /// The shape of the windows of an image, for rules that build them.
    pub(super) fn unfolded(&self, image: &TensorType) -> Result<Shape, AddError> {
        let types = self.infer(&[image]).map_err(|error| AddError { op: Im2col::NAME, error })?;
        Ok(types[0].shape.clone())
    }

    /// The number of windows along each spatial axis of these extents.
    pub(super) fn places(&self, size: &[Dim]) -> Result<Vec<Dim>, TypeError> {
        let windows = self.windows()?;
        let along = |(axis, w): (usize, &Window)| w.outputs(axis, &size[axis], &Dim::from(self.kernel[axis]));
        windows.iter().enumerate().map(along).collect()
    }
}
