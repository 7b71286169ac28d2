//! The sum of windows where they overlap (known as col2im), the adjoint of [`Im2col`]: element `i` of the result
//! `[N, C, spatial…]` is the sum over all taps `t` and places `p` of the operand `[N, C, kernel…, places…]` with
//! `i = p stride + t dilation - before`.

use margay_loops::{Combine, Index, Nest, Reg};
use margay_tensor::{Binding, DType, Dim, Tensor};

use crate::ops::attributes::{Attribute, Attributes};
use crate::ops::elementwise::Numbers;
use crate::ops::nn::conv::Window;
use crate::ops::nn::im2col::samples;
use crate::ops::shape::indices;
use crate::ops::{Case, Cost, EvalError, Facts, Im2col, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Sums windows up to an image.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Col2im {
    /// How the windows lie in the image; the value of the padding plays no part.
    pub im2col: Im2col,
    /// Spatial extents of the image.
    pub size: Vec<Dim>,
}

impl Attributes for Col2im {
    fn write(&self) -> Vec<(&'static str, String)> {
        let mut all = self.im2col.write();
        all.push(("size", self.size.write()));
        all
    }

    fn read(attributes: &[(&str, &str)]) -> Result<Self, String> {
        let (size, rest): (Vec<_>, Vec<_>) =
            attributes.iter().copied().partition(|(name, _)| *name == "size");
        let [(_, size)] = size.as_slice() else { return Err("missing attribute `size`".into()) };
        Ok(Col2im { im2col: Im2col::read(&rest)?, size: Attribute::read(size)? })
    }

    fn bind(&self, binding: &Binding) -> Self {
        Col2im { im2col: self.im2col.bind(binding), size: Attribute::bind(&self.size, binding) }
    }
}

impl OpDef for Col2im {
    const NAME: &'static str = "col2im";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        types::expect_float(0, x)?;
        let spatial = self.im2col.kernel.len();
        if self.size.len() != spatial {
            let found = self.size.len();
            return Err(TypeError::attribute(format!("size has {found} values for {spatial} spatial axes")));
        }
        if x.ndim() != 2 + 2 * spatial {
            let expected = (2 + 2 * spatial).to_string();
            return Err(TypeError::Ndim { input: 0, expected, found: x.ndim() });
        }
        let taps = self.im2col.kernel.iter().map(|&k| Dim::from(k));
        let expected = taps.chain(self.im2col.places(&self.size)?);
        for (axis, extent) in expected.enumerate() {
            types::same_extent(&format!("axis {} of windows", axis + 2), &extent, &x.shape[axis + 2])?;
        }
        types::one(x.dtype, [&x.shape[..2], &self.size].concat())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let shape = self.infer(&[&TensorType::of(x)])?[0].extents().unwrap_or_default();
        let windows = self.im2col.windows()?;
        let values = Numbers::of(x)?.floats();
        let mut out = vec![0.0; shape.iter().product()];
        for (index, value) in indices(x.shape()).zip(values) {
            let to =
                windows.iter().enumerate().try_fold(index[0] * shape[1] + index[1], |flat, (axis, w)| {
                    let (tap, place) = (index[2 + axis], index[2 + windows.len() + axis]);
                    Some(flat * shape[2 + axis] + w.position(place, tap, shape[2 + axis])?)
                });
            if let Some(to) = to {
                out[to] += value;
            }
        }
        Ok(vec![Numbers::Float(out).into_tensor(x.dtype(), &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let dy = cx.cotangent()?;
        let im2col = Im2col { value: crate::ops::Bits::new(0.0), ..self.im2col.clone() };
        Grad::all([cx.op(im2col, &[dy])?])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let windows = self.im2col.windows().map_err(|e| NotLowered(e.to_string()))?;
        let (kernel, shape) = (self.im2col.kernel.clone(), io.outputs[0].shape.clone());
        let places = io.inputs[0].shape[2 + kernel.len()..].to_vec();
        if places.contains(&0) || kernel.contains(&0) {
            return Err(NotLowered("a sum of no windows".into()));
        }
        Ok(Lowered::nest(move |n| {
            n.for_each(&shape, |n, i| {
                let sum = join(n, i, &kernel, &windows, &places, &mut Vec::new(), &mut Vec::new(), None);
                n.store(0, i, sum);
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::plain(false)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.none(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |(im2col, shape): (Im2col, Vec<usize>)| {
            let size = margay_tensor::shape_of(&shape[2..]);
            let types = im2col.infer(&[&TensorType::known(DType::F32, &shape)]);
            let windows = types.ok().and_then(|t| t[0].extents()).unwrap_or_default();
            (Col2im { im2col, size }, Case::f32(&[&windows]))
        };
        samples().into_iter().map(case).collect()
    }
}

/// The sum over the taps of the axes left, at the element `i` of the image.
#[expect(clippy::too_many_arguments, reason = "a recursion over the axes carries its state")]
fn join(
    n: &mut Nest,
    i: &[Index],
    kernel: &[usize],
    windows: &[Window],
    places: &[usize],
    taps: &mut Vec<Index>,
    at: &mut Vec<Index>,
    guard: Option<Reg>,
) -> Reg {
    let axis = taps.len();
    if axis == kernel.len() {
        let from = [&i[..2], taps, at].concat();
        return match guard {
            Some(test) => n.load_guarded(0, &from, test, 0.0),
            None => n.load(0, &from),
        };
    }
    let w = &windows[axis];
    n.reduce(kernel[axis], &[Combine::Sum], |n, tap| {
        let (place, guard) = w.place(n, guard, &i[2 + axis], &tap, places[axis]);
        taps.push(tap);
        at.push(place);
        let sum = join(n, i, kernel, windows, places, taps, at, Some(guard));
        taps.pop();
        at.pop();
        vec![sum]
    })[0]
}
