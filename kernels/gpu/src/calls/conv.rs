//! Convolutions as products: a row is a place of an image, a column a channel of the result, a term a channel
//! of the image at a tap of the kernel. In the derivative by the kernel places are the terms. Nothing is copied: elements are
//! read where they lie.

use margay_loops::{Arithmetic, Comparison, Conv, ConvKernelGradient, KernelCall};

use super::epilogue::{finished, load, read, write, zero};
use super::product::{Along, Operands, Product};
use super::schedule::Shape;
use super::stored::Round;
use super::{Arguments, is_float};
use crate::value::{Type, Value};
use crate::writer::Writer;

/// Whether there is a kernel, and if not, why.
pub(super) fn supports(c: &Conv) -> Result<(), String> {
    if !is_float(c.types.left) || !is_float(c.types.result) || c.zero {
        return Err(format!("elements of {} to {}", c.types.left, c.types.result));
    }
    if !c.types.right.is_plain(c.types.right.dtype) || !is_float(c.types.right.dtype) {
        return Err(format!("a kernel stored as {}", c.types.right));
    }
    match c.k_packed {
        true => Err("a packed kernel".to_owned()),
        false => Ok(()),
    }
}

impl Product for Conv {
    fn call(&self) -> KernelCall {
        KernelCall::Conv(self.clone())
    }

    fn kept_bytes(&self) -> usize {
        0
    }

    fn shape(&self) -> Shape {
        Shape {
            rows: pixels(self),
            columns: self.out_channels / self.groups,
            terms: taps(self),
            repetitions: self.groups,
            left: self.types.left,
            left_rounded: self.types.left_rounded,
            right: self.types.right.dtype,
        }
    }

    fn operands<'p>(
        &'p self,
        _: &mut Writer,
        args: &mut Arguments,
        repetition: Value,
    ) -> Box<dyn Operands + 'p> {
        let images = Images { c: self, ty: args.index(), x: args.take(), group: repetition };
        Box::new(Forward {
            images,
            k: args.take(),
            bias: self.epilogue.bias.then(|| args.take()),
            residual: self.epilogue.residual.then(|| args.take()),
            out: args.take(),
        })
    }
}

impl Product for ConvKernelGradient {
    fn call(&self) -> KernelCall {
        KernelCall::ConvKernelGradient(self.clone())
    }

    fn kept_bytes(&self) -> usize {
        0
    }

    fn shape(&self) -> Shape {
        let c = &self.forward;
        Shape {
            rows: c.out_channels / c.groups,
            columns: taps(c),
            terms: pixels(c),
            repetitions: c.groups,
            left: c.types.result,
            left_rounded: c.types.result,
            right: c.types.left,
        }
    }

    fn operands<'p>(
        &'p self,
        _: &mut Writer,
        args: &mut Arguments,
        repetition: Value,
    ) -> Box<dyn Operands + 'p> {
        let images = Images { c: &self.forward, ty: args.index(), x: args.take(), group: repetition };
        Box::new(ByKernel { images, dy: args.take(), dk: args.take() })
    }
}

/// The images of one group of a convolution.
struct Images<'c> {
    c: &'c Conv,
    /// The type of positions in memory.
    ty: Type,
    x: Value,
    group: Value,
}

/// A place of an image.
struct Pixel {
    image: Value,
    row: Value,
    column: Value,
}

fn int(w: &mut Writer, n: usize) -> Value {
    w.int(Type::I32, n as i64)
}

/// `x * by + further`.
fn scaled(w: &mut Writer, x: Value, by: usize, further: Value) -> Value {
    let by = w.int(x.ty, by as i64);
    let x = w.imul(x, by);
    w.iadd(x, further)
}

/// Places of the result.
fn pixels(c: &Conv) -> usize {
    c.batch * c.out_size[0] * c.out_size[1]
}

/// Channels of the image in a group, at every tap.
fn taps(c: &Conv) -> usize {
    c.in_channels / c.groups * c.kernel[0] * c.kernel[1]
}

impl Images<'_> {
    /// Channels of the image in a group.
    fn inner(&self) -> usize {
        self.c.in_channels / self.c.groups
    }

    /// Channels of the result in a group.
    fn outer(&self) -> usize {
        self.c.out_channels / self.c.groups
    }

    /// A number of places: one after the other in the order of the result.
    fn pixel(&self, w: &mut Writer, number: Value) -> Pixel {
        let [height, width] = self.c.out_size;
        let (across, down) = (int(w, width), int(w, height));
        let (rest, column) = (w.divide(number, across), w.remainder(number, across));
        let (image, row) = (w.divide(rest, down), w.remainder(rest, down));
        Pixel { image, row, column }
    }

    /// The channel in the group and the row and column of the kernel that a number stands for. Channels vary fastest if
    /// `channels_last`, else slowest, as in the kernel.
    fn tap(&self, w: &mut Writer, number: Value, channels_last: bool) -> [Value; 3] {
        let [height, width] = self.c.kernel;
        let across = int(w, width);
        let (channel, tap) = if channels_last {
            let inner = int(w, self.inner());
            (w.remainder(number, inner), w.divide(number, inner))
        } else {
            let taps = int(w, height * width);
            (w.divide(number, taps), w.remainder(number, taps))
        };
        [channel, w.divide(tap, across), w.remainder(tap, across)]
    }

    /// A channel of the group among all.
    fn channel(&self, w: &mut Writer, in_group: usize, channel: Value) -> Value {
        scaled(w, self.group, in_group, channel)
    }

    /// Where an element of an image lies.
    fn element(
        &self,
        w: &mut Writer,
        [height, width]: [usize; 2],
        channels: usize,
        pixel: &Pixel,
        channel: Value,
    ) -> Value {
        let element = self.ty.element;
        let [image, row, column, channel] =
            [pixel.image, pixel.row, pixel.column, channel].map(|v| w.resize(v, element, true));
        let order = match self.c.channels_last {
            true => [(height, row), (width, column), (channels, channel)],
            false => [(channels, channel), (height, row), (width, column)],
        };
        order.into_iter().fold(image, |at, (by, further)| scaled(w, at, by, further))
    }

    /// Where the element of the result of a place and a channel of the group lies.
    fn result(&self, w: &mut Writer, pixel: Value, channel: Value) -> Value {
        let (pixel, channel) = (self.pixel(w, pixel), self.channel(w, self.outer(), channel));
        self.element(w, self.c.out_size, self.c.out_channels, &pixel, channel)
    }

    /// The element of the image that a place of the result sees at a tap, as it lies in memory; 0 for padding.
    fn seen(&self, w: &mut Writer, pixel: Value, [channel, i, j]: [Value; 3]) -> Value {
        let pixel = self.pixel(w, pixel);
        let mut at = [pixel.row, pixel.column];
        let mut inside = w.int(Type::I1, 1);
        for (axis, tap) in [i, j].into_iter().enumerate() {
            let pad = w.int(Type::I32, -(self.c.pads[axis] as i64));
            let place = scaled(w, at[axis], self.c.strides[axis], pad);
            at[axis] = scaled(w, tap, self.c.dilations[axis], place);
            let end = int(w, self.c.in_size[axis]);
            // A place before the first is beyond all others where it has no sign.
            let here = w.compare_unsigned(Comparison::Less, at[axis], end);
            inside = w.and(inside, here);
        }
        let channel = self.channel(w, self.inner(), channel);
        let zero = zero(w, self.c.types.left);
        w.begin_if(inside, &[zero.ty]);
        let from = Pixel { image: pixel.image, row: at[0], column: at[1] };
        let at = self.element(w, self.c.in_size, self.c.in_channels, &from, channel);
        let x = load(w, self.x, at, self.c.types.left);
        w.otherwise(&[x]);
        w.end_if(&[zero])[0]
    }

    /// Neighbouring places lie side by side where channels do not.
    fn pixels_along(&self, of_pixels: Along, of_channels: Along) -> Along {
        if self.c.channels_last { of_channels } else { of_pixels }
    }
}

/// The products of a convolution.
struct Forward<'c> {
    images: Images<'c>,
    k: Value,
    bias: Option<Value>,
    residual: Option<Value>,
    out: Value,
}

impl Operands for Forward<'_> {
    fn begin(&self, _: &mut Writer, _: &Round) {}

    fn left_along(&self) -> Along {
        self.images.pixels_along(Along::Results, Along::Terms)
    }

    fn right_along(&self) -> Along {
        Along::Terms
    }

    fn left(&self, w: &mut Writer, row: Value, term: Value) -> Value {
        let tap = self.images.tap(w, term, self.images.c.channels_last);
        self.images.seen(w, row, tap)
    }

    fn right(&self, w: &mut Writer, term: Value, column: Value) -> Value {
        let [channel, i, j] = self.images.tap(w, term, self.images.c.channels_last);
        let [height, width] = self.images.c.kernel;
        let at = self.images.channel(w, self.images.outer(), column);
        let order = [(self.images.inner(), channel), (height, i), (width, j)];
        let at = order.into_iter().fold(at, |at, (by, further)| scaled(w, at, by, further));
        load(w, self.k, at, self.images.c.types.right.dtype)
    }

    fn finish(&self, w: &mut Writer, row: Value, column: Value, sum: Value) {
        let dtype = self.images.c.types.result;
        let at = self.images.result(w, row, column);
        let channel = self.images.channel(w, self.images.outer(), column);
        let bias = self.bias.map(|bias| read(w, bias, channel, dtype));
        let residual = self.residual.map(|residual| read(w, residual, at, dtype));
        let x = finished(w, &self.images.c.epilogue, sum, bias, residual);
        write(w, self.out, at, dtype, x);
    }
}

/// The products of the derivative by the kernel.
struct ByKernel<'c> {
    images: Images<'c>,
    dy: Value,
    dk: Value,
}

impl Operands for ByKernel<'_> {
    fn begin(&self, _: &mut Writer, _: &Round) {}

    fn left_along(&self) -> Along {
        self.images.pixels_along(Along::Terms, Along::Results)
    }

    fn right_along(&self) -> Along {
        self.images.pixels_along(Along::Terms, Along::Results)
    }

    fn left(&self, w: &mut Writer, row: Value, term: Value) -> Value {
        let at = self.images.result(w, term, row);
        load(w, self.dy, at, self.images.c.types.result)
    }

    fn right(&self, w: &mut Writer, term: Value, column: Value) -> Value {
        let tap = self.images.tap(w, column, false);
        self.images.seen(w, term, tap)
    }

    fn finish(&self, w: &mut Writer, row: Value, column: Value, sum: Value) {
        let row = self.images.channel(w, self.images.outer(), row);
        let at = scaled(w, row, taps(self.images.c), column);
        write(w, self.dk, at, self.images.c.types.right.dtype, sum);
    }
}
