//! The maximum or the average over windows of one or two spatial axes of X `[N, C, spatial…]`, or `[N, spatial…, C]`
//! with `layout` `nhwc`.
//!
//! Padding never is a maximum. It counts as zeros in an average with `count_include_pad` and not at all without.
//! A last window that reaches over the end (ONNX's `ceil_mode`) is expressed by a larger `pads_after`; that is the
//! same except in an average with `count_include_pad`, where all of `pads_after` counts. A window over nothing but
//! padding gives -∞ or NaN.

use margay_loops::{Combine, Index, KernelCall, Literal, Nest, Reg};
use margay_tensor::{Binding, DType, Dim, Tensor};

use crate::ops::attributes::{Attribute, attributes};
use crate::ops::elementwise::Numbers;
use crate::ops::facts::Image;
use crate::ops::nn::conv::Window;
use crate::ops::nn::layout::ImageLayout;
use crate::ops::shape::indices;
use crate::ops::{
    Bits, Broadcast, Case, Col2im, Cost, EvalError, Facts, Im2col, Io, Lowered, MaxPoolGradient, NotLowered,
    OpDef, Reshape,
};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Elements of a window that loops over channels join as fast as the kernel.
const SMALL_WINDOW: usize = 9;

/// What is taken from a window.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PoolKind {
    /// The largest element; NaN if any is.
    Max,
    /// The mean.
    Average,
}

impl Attribute for PoolKind {
    fn write(&self) -> String {
        match self {
            PoolKind::Max => "max".into(),
            PoolKind::Average => "average".into(),
        }
    }
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "max" => Ok(PoolKind::Max),
            "average" => Ok(PoolKind::Average),
            _ => Err(format!("`{text}` is not a kind of pooling")),
        }
    }
    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}

/// Pooling; the lists have one value per spatial axis. Defaults are those of two spatial axes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pool {
    /// What is taken from a window.
    pub kind: PoolKind,
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
    /// Padding counts in an average.
    pub count_include_pad: bool,
    /// The order of the axes of X and of the result.
    pub layout: ImageLayout,
}

attributes!(Pool {
    kind,
    kernel,
    strides = vec![1, 1],
    pads_before = vec![0, 0],
    pads_after = vec![0, 0],
    dilations = vec![1, 1],
    count_include_pad = false,
    layout = ImageLayout::Nchw,
});

impl OpDef for Pool {
    const NAME: &'static str = "pool";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        types::expect_float(0, x)?;
        let windows = self.windows()?;
        ImageLayout::check(x, windows.len())?;
        let x = &self.layout.type_to_nchw(x);
        let mut shape = x.shape[..2].to_vec();
        for (axis, w) in windows.iter().enumerate() {
            shape.push(w.outputs(axis, &x.shape[axis + 2], &Dim::from(self.kernel[axis]))?);
        }
        types::one(x.dtype, self.layout.shape_from_nchw(&shape))
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let shape = self.infer(&[&TensorType::of(x)])?[0].extents().unwrap_or_default();
        let shape = self.layout.extents_to_nchw(&shape);
        let windows = self.windows()?;
        let x = &self.layout.tensor_to_nchw(x)?;
        let size = &x.shape()[2..];
        let xs = Numbers::of(x)?.floats();
        let mut out = Vec::with_capacity(shape.iter().product());
        for at in indices(&shape) {
            let under = |tap: Vec<usize>| {
                windows.iter().enumerate().try_fold(at[0] * shape[1] + at[1], |flat, (axis, w)| {
                    Some(flat * size[axis] + w.position(at[axis + 2], tap[axis], size[axis])?)
                })
            };
            let values: Vec<f64> = indices(&self.kernel).filter_map(under).map(|p| xs[p]).collect();
            out.push(match self.kind {
                PoolKind::Max => {
                    let larger = |m: f64, v: f64| if m.is_nan() || m >= v { m } else { v };
                    values.into_iter().fold(f64::NEG_INFINITY, larger)
                }
                PoolKind::Average if self.count_include_pad => {
                    values.iter().sum::<f64>() / self.kernel.iter().product::<usize>() as f64
                }
                PoolKind::Average => values.iter().sum::<f64>() / values.len() as f64,
            });
        }
        let y = Numbers::Float(out).into_tensor(x.dtype(), &shape)?;
        Ok(vec![self.layout.tensor_from_nchw(&y)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        if self.layout != ImageLayout::Nchw {
            return Grad::none("there is no rule for channels last; layouts are assigned afterwards");
        }
        let (x, y, dy) = (cx.input(0), cx.output(), cx.cotangent()?);
        if self.kind == PoolKind::Max {
            return Grad::all([cx.op(MaxPoolGradient::of(self), &[x, y, dy])?]);
        }
        let spatial = self.kernel.len();
        let im2col = Im2col {
            kernel: self.kernel.clone(),
            strides: self.strides.clone(),
            pads_before: self.pads_before.clone(),
            pads_after: self.pads_after.clone(),
            dilations: self.dilations.clone(),
            value: Bits::new(0.0),
        };
        // Windows as [N, C, kernel…, places…], results as [N, C, 1…, places…].
        let mut shape = cx.ty(y).shape.clone();
        shape.splice(2..2, std::iter::repeat_n(Dim::from(1usize), spatial));
        let dy = cx.op(Reshape { shape }, &[dy])?;
        let count = if self.count_include_pad || !self.is_padded() {
            cx.number(x, self.kernel.iter().product::<usize>() as f64)?
        } else {
            let ones = cx.filled(x, 1.0)?;
            let inside = cx.op(im2col.clone(), &[ones])?;
            cx.sum_kept(inside, (2..2 + spatial).collect())?
        };
        let share = cx.div(dy, count)?;
        let shape = im2col.unfolded(cx.ty(x))?;
        let windows = cx.op(Broadcast { shape }, &[share])?;
        let size = cx.ty(x).shape[2..].to_vec();
        Grad::all([cx.op(Col2im { im2col, size }, &[windows])?])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let taps = Taps {
            kind: self.kind,
            kernel: self.kernel.clone(),
            windows: self.windows().map_err(|e| NotLowered(e.to_string()))?,
            size: self.layout.extents_to_nchw(&io.inputs[0].shape)[2..].to_vec(),
            layout: self.layout,
            counted: self.kind == PoolKind::Average && !self.count_include_pad && self.is_padded(),
        };
        let (shape, dtype) = (io.outputs[0].shape.clone(), io.outputs[0].dtype);
        let call = self.call(io);
        let nest = move |n: &mut Nest| {
            n.for_each(&shape, |n, i| {
                let joined = taps.join(n, i, &mut Vec::new(), None, dtype);
                let value = match (taps.kind, joined.as_slice()) {
                    (PoolKind::Average, &[sum, count]) => n.div(sum, count),
                    (PoolKind::Average, _) => {
                        let count = taps.kernel.iter().product::<usize>() as f64;
                        let scale = n.number(joined[0], 1.0 / count);
                        n.mul(joined[0], scale)
                    }
                    (PoolKind::Max, _) => joined[0],
                };
                n.store(0, i, value);
            });
        };
        Ok(match call {
            Some(call) => Lowered::call_or_nest(KernelCall::Pool(call), nest),
            None => Lowered::nest(nest),
        })
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, self.kernel.iter().product::<usize>() as u64)
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
                channels_last: Pool { layout: ImageLayout::Nhwc, ..self.clone() }.into(),
                operands: 1,
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
        cx.along(
            self.clone(),
            |input, axis| if (input, axis) == (0, 0) { Along::Apart } else { Along::Change },
        )
    }

    fn cases() -> Vec<(Self, Case)> {
        let plain = |kind| Pool {
            kind,
            kernel: vec![2, 3],
            strides: vec![1, 1],
            pads_before: vec![0, 0],
            pads_after: vec![0, 0],
            dilations: vec![1, 1],
            count_include_pad: false,
            layout: ImageLayout::Nchw,
        };
        let padded = |kind| Pool {
            strides: vec![2, 1],
            pads_before: vec![1, 0],
            pads_after: vec![0, 2],
            ..plain(kind)
        };
        let mut cases = Vec::new();
        for kind in [PoolKind::Max, PoolKind::Average] {
            cases.push((plain(kind), Case::f32(&[&[2, 3, 5, 7]])));
            cases.push((padded(kind), Case::f32(&[&[1, 3, 7, 5]])));
            let spread = Pool { dilations: vec![2, 2], pads_before: vec![1, 1], ..padded(kind) };
            cases.push((spread, Case::f32(&[&[1, 2, 6, 9]])));
            let one_axis = Pool {
                kernel: vec![3],
                strides: vec![2],
                pads_before: vec![1],
                pads_after: vec![1],
                dilations: vec![1],
                ..plain(kind)
            };
            cases.push((one_axis, Case::f32(&[&[2, 3, 11]])));
        }
        let apart = |strides: [usize; 2]| Pool {
            strides: strides.to_vec(),
            pads_before: vec![1, 2],
            pads_after: vec![1, 0],
            ..plain(PoolKind::Max)
        };
        cases.push((apart([2, 3]), Case::f32(&[&[1, 2, 8, 9]])));
        cases.push((apart([3, 4]), Case::f32(&[&[2, 1, 7, 11]])));
        let counting = Pool { count_include_pad: true, ..padded(PoolKind::Average) };
        cases.push((counting, Case::f32(&[&[1, 3, 7, 5]])));
        for (op, shape) in [
            (plain(PoolKind::Average), [2, 5, 7, 3]),
            (padded(PoolKind::Max), [1, 7, 5, 19]),
            (padded(PoolKind::Average), [2, 6, 8, 5]),
        ] {
            cases.push((Pool { layout: ImageLayout::Nhwc, ..op }, Case::f32(&[&shape])));
        }
        cases
    }
}

impl Pool {
    fn windows(&self) -> Result<Vec<Window>, TypeError> {
        let spatial = self.kernel.len();
        Window::all(spatial, &self.strides, &self.dilations, &self.pads_before, &self.pads_after)
    }

    /// The kernel call for images in f32 that lie without gaps, of at most two axes. With channels last loops over channels
    /// are as good where windows are small.
    fn call(&self, io: &Io) -> Option<margay_loops::Pool> {
        let (x, y) = (&io.inputs[0], &io.outputs[0]);
        let worth = self.layout == ImageLayout::Nchw || self.kernel.iter().product::<usize>() > SMALL_WINDOW;
        if x.dtype != DType::F32 || !x.is_contiguous() || self.kernel.len() > 2 || !worth {
            return None;
        }
        let (size, out) = (self.layout.extents_to_nchw(&x.shape), self.layout.extents_to_nchw(&y.shape));
        let (outer, channels) = match self.layout {
            ImageLayout::Nchw => (size[0] * size[1], 1),
            ImageLayout::Nhwc => (size[0], size[1]),
        };
        // An image of one axis is one row.
        let pair = |list: &[usize], absent: usize| match *list {
            [one] => [absent, one],
            [first, second, ..] => [first, second],
            [] => [absent; 2],
        };
        Some(margay_loops::Pool {
            average: self.kind == PoolKind::Average,
            outer,
            size: pair(&size[2..], 1),
            channels,
            out: pair(&out[2..], 1),
            kernel: pair(&self.kernel, 1),
            strides: pair(&self.strides, 1),
            dilations: pair(&self.dilations, 1),
            pads: pair(&self.pads_before, 0),
            inside_only: self.kind == PoolKind::Average && !self.count_include_pad && self.is_padded(),
        })
    }

    fn is_padded(&self) -> bool {
        self.pads_before.iter().chain(&self.pads_after).any(|&p| p > 0)
    }
}

/// The elements of a window, at the loop level.
struct Taps {
    kind: PoolKind,
    kernel: Vec<usize>,
    windows: Vec<Window>,
    size: Vec<usize>,
    layout: ImageLayout,
    /// The number of elements outside the padding is a second result.
    counted: bool,
}

impl Taps {
    /// Joins the elements of window `i`. `from` holds the position in X along the spatial axes done so far, `guard`
    /// whether it lies outside the padding; the axes left are looped over.
    fn join(
        &self,
        n: &mut Nest,
        i: &[Index],
        from: &mut Vec<Index>,
        guard: Option<Reg>,
        dtype: DType,
    ) -> Vec<Reg> {
        let axis = from.len();
        let (combine, filler) = match self.kind {
            PoolKind::Max => (Combine::Max, f64::NEG_INFINITY),
            PoolKind::Average => (Combine::Sum, 0.0),
        };
        let Some(w) = self.windows.get(axis) else {
            let mut at = i.to_vec();
            for (axis, from) in from.iter().enumerate() {
                at[self.layout.spatial_axis(axis)] = from.clone();
            }
            let value = match guard {
                Some(test) => n.load_guarded(0, &at, test, filler),
                None => n.load(0, &at),
            };
            let mut values = vec![value];
            if let (true, Some(test)) = (self.counted, guard) {
                let [one, zero] = [1.0, 0.0].map(|v| n.literal(Literal::of(dtype, v)));
                values.push(n.select(test, one, zero));
            }
            return values;
        };
        let results = [combine; 2];
        n.reduce(self.kernel[axis], &results[..1 + usize::from(self.counted)], |n, tap| {
            let start = i[self.layout.spatial_axis(axis)].times(w.stride as i64);
            let at = start.plus(&tap, w.dilation as i64).plus(&Index::constant(w.before as i64), -1);
            let guard = w.inside(n, guard, &at, self.size[axis]);
            from.push(at);
            let values = self.join(n, i, from, guard, dtype);
            from.pop();
            values
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(kind: PoolKind, kernel: usize, pad: usize) -> Pool {
        Pool {
            kind,
            kernel: vec![kernel],
            strides: vec![1],
            pads_before: vec![pad],
            pads_after: vec![pad],
            dilations: vec![1],
            count_include_pad: false,
            layout: ImageLayout::Nchw,
        }
    }

    #[test]
    fn padding_counts_only_when_asked() {
        let x = Tensor::from_slice(&[1, 1, 2], &[2f32, -4.0]).unwrap();
        let run = |p: Pool| p.eval(&[&x]).unwrap()[0].to_vec::<f32>().unwrap();
        assert_eq!(run(pool(PoolKind::Average, 2, 1)), [2.0, -1.0, -4.0]);
        let counting = Pool { count_include_pad: true, ..pool(PoolKind::Average, 2, 1) };
        assert_eq!(run(counting), [1.0, -1.0, -2.0]);
        assert_eq!(run(pool(PoolKind::Max, 2, 1)), [2.0, 2.0, -4.0]);
    }

    #[test]
    fn windows_must_fit() {
        let x = TensorType::known(DType::F32, &[1, 1, 2]);
        let error = |p: Pool| p.infer(&[&x]).unwrap_err().to_string();
        let message = "spatial axis 0: a window of `5` does not fit a padded extent of `4`";
        assert_eq!(error(pool(PoolKind::Max, 5, 1)), message);
        let message = "spatial axis 0: a window of `0` does not fit a padded extent of `2`";
        assert_eq!(error(pool(PoolKind::Max, 0, 0)), message);
    }
}
