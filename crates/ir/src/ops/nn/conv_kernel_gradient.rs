//! The cotangent of the kernel of a [`Conv`]: `dK[o, c', i] = Σ X[n, c, y stride + i dilation - before] dY[n, o, y]` over
//! images and places, where `c` is the channel at place `c'` of the group of `o`, with zeros outside X.
//!
//! Operands are X and the cotangent of Y, both in `layout`; the result is `[O, C / groups, kernel…]`. As for the
//! convolution, only `nhwc` has a kernel of the processor, and the pass `assign-layout` goes there.

use margay_loops::{Epilogue, KernelCall, ProductTypes};
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::facts::Image;
use crate::ops::nn::conv::{Conv, planar};
use crate::ops::nn::layout::ImageLayout;
use crate::ops::shape::indices;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Derivative of a convolution by its kernel; the lists have one value per spatial axis.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConvKernelGradient {
    /// Spatial extents of the kernel; not 0.
    pub kernel: Vec<usize>,
    /// Steps between outputs.
    pub strides: Vec<usize>,
    /// Zeros in front of each spatial axis.
    pub pads_before: Vec<usize>,
    /// Zeros behind each spatial axis.
    pub pads_after: Vec<usize>,
    /// Steps between taps.
    pub dilations: Vec<usize>,
    /// Divides the channels of X and of Y.
    pub groups: usize,
    /// The order of the axes of X and of Y.
    pub layout: ImageLayout,
}

attributes!(ConvKernelGradient {
    kernel,
    strides = vec![1, 1],
    pads_before = vec![0, 0],
    pads_after = vec![0, 0],
    dilations = vec![1, 1],
    groups = 1,
    layout = ImageLayout::Nchw,
});

impl ConvKernelGradient {
    /// The derivative of a convolution whose kernel has these spatial extents.
    pub fn of(conv: &Conv, kernel: &[usize]) -> ConvKernelGradient {
        ConvKernelGradient {
            kernel: kernel.to_vec(),
            strides: conv.strides.clone(),
            pads_before: conv.pads_before.clone(),
            pads_after: conv.pads_after.clone(),
            dilations: conv.dilations.clone(),
            groups: conv.groups,
            layout: conv.layout,
        }
    }

    fn forward(&self) -> Conv {
        Conv {
            strides: self.strides.clone(),
            pads_before: self.pads_before.clone(),
            pads_after: self.pads_after.clone(),
            dilations: self.dilations.clone(),
            groups: self.groups,
            layout: self.layout,
        }
    }
}

impl OpDef for ConvKernelGradient {
    const NAME: &'static str = "conv_kernel_gradient";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x, dy] = types::inputs(inputs, "2")?;
        types::expect_float(0, x)?;
        types::expect_dtype(1, dy, x.dtype)?;
        ImageLayout::check(x, self.kernel.len())?;
        if dy.ndim() != x.ndim() {
            return Err(TypeError::Ndim { input: 1, expected: x.ndim().to_string(), found: dy.ndim() });
        }
        let channels = |t: &TensorType| t.shape[self.layout.channel_axis(t.ndim())].clone();
        let groups = Dim::from(self.groups);
        let per_group = channels(x).floor_div(&groups).filter(|d| (d * &groups) == channels(x));
        let Some(per_group) = per_group else {
            let (groups, found) = (self.groups, channels(x));
            return Err(TypeError::attribute(format!("{groups} groups do not divide `{found}` channels")));
        };
        let mut shape = vec![channels(dy), per_group];
        shape.extend(self.kernel.iter().map(|&k| Dim::from(k)));
        let kernel = TensorType::new(x.dtype, shape);
        let expected = &self.forward().infer(&[x, &kernel])?[0];
        for (axis, (found, expected)) in dy.shape.iter().zip(&expected.shape).enumerate() {
            types::same_extent(&format!("axis {axis} of input 1 and of the convolution"), found, expected)?;
        }
        Ok([kernel].into_iter().collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let types = self.infer(&[&TensorType::of(inputs[0]), &TensorType::of(inputs[1])])?;
        let shape = types[0].extents().unwrap_or_default();
        let [x, dy] = [self.layout.tensor_to_nchw(inputs[0])?, self.layout.tensor_to_nchw(inputs[1])?];
        let windows = self.forward().planar_windows()?;
        let (size, places) = (planar(&x.shape()[2..]), planar(&dy.shape()[2..]));
        let (channels, per_group, taps) = (x.shape()[1], shape[1], planar(&self.kernel));
        let (xs, changes) = (Numbers::of(&x)?.floats(), Numbers::of(&dy)?.floats());
        let mut out = vec![0.0; shape.iter().product()];
        for (at, change) in indices(&[dy.shape()[0], shape[0], places[0], places[1]]).zip(changes) {
            let first = at[1] / (shape[0] / self.groups) * per_group;
            for tap in indices(&[per_group, taps[0], taps[1]]) {
                let row = windows[0].position(at[2], tap[1], size[0]);
                let col = windows[1].position(at[3], tap[2], size[1]);
                if let (Some(row), Some(col)) = (row, col) {
                    let x = xs[((at[0] * channels + first + tap[0]) * size[0] + row) * size[1] + col];
                    out[((at[1] * per_group + tap[0]) * taps[0] + tap[1]) * taps[1] + tap[2]] += x * change;
                }
            }
        }
        Ok(vec![Numbers::Float(out).into_tensor(x.dtype(), &shape)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::none("second derivatives of convolutions are not taken")
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (x, dy, k) = (&io.inputs[0], &io.inputs[1], &io.outputs[0]);
        if !x.is_contiguous() || !dy.is_contiguous() {
            return Err(NotLowered(
                "a derivative of a convolution of an operand that is not row-major".into(),
            ));
        }
        let [h, w] = self.forward().planar_windows().map_err(|e| NotLowered(e.to_string()))?;
        let forward = margay_loops::Conv {
            channels_last: self.layout == ImageLayout::Nhwc,
            batch: x.shape[0],
            in_channels: x.shape[self.layout.channel_axis(x.shape.len())],
            out_channels: k.shape[0],
            groups: self.groups,
            in_size: planar(self.layout.spatial_extents(&x.shape)),
            out_size: planar(self.layout.spatial_extents(&dy.shape)),
            kernel: planar(&k.shape[2..]),
            strides: [h.stride, w.stride],
            pads: [h.before, w.before],
            dilations: [h.dilation, w.dilation],
            k_packed: false,
            zero: false,
            types: ProductTypes::of(x.dtype),
            epilogue: Epilogue::default(),
        };
        Ok(Lowered::Call(KernelCall::ConvKernelGradient(margay_loops::ConvKernelGradient { forward })))
    }

    fn cost(&self, io: &Io) -> Cost {
        let terms: usize = io.outputs[0].shape[1..].iter().product();
        Cost { flops: 2 * (terms * io.inputs[1].elements()) as u64, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts {
            elementwise: None,
            cheap: false,
            identity: false,
            symbolic: None,
            parameters: &[],
            image: Some(Image {
                layout: self.layout,
                channels_last: ConvKernelGradient { layout: ImageLayout::Nhwc, ..self.clone() }.into(),
                operands: 2,
                result: false,
                demanding: true,
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
        let case = |(conv, case): (Conv, Case)| {
            let shapes: Vec<Vec<usize>> = crate::ops::input_shapes(&case);
            let types: Vec<TensorType> = shapes.iter().map(|s| TensorType::known(DType::F32, s)).collect();
            let y = conv.infer(&types.iter().collect::<Vec<_>>()).ok()?.remove(0).extents()?;
            Some((ConvKernelGradient::of(&conv, &shapes[1][2..]), Case::f32(&[&shapes[0], &y])))
        };
        Conv::cases().into_iter().filter_map(case).collect()
    }
}
