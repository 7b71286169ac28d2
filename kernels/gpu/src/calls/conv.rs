//! Convolutions as sums of products by tiles: a row is a place of an image, a column a channel of the result, a term a channel
//! of the image at a tap of the kernel. Nothing is copied: elements are read where they lie.

use margay_loops::{Arithmetic, Comparison, Conv, KernelCall};

use super::epilogue::{finished, read, write};
use super::tile::{self, Along, Operands};
use super::{Arguments, Written, is_float};
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

pub(super) fn write_kernel(c: &Conv) -> Written {
    let mut args = Arguments::new(&KernelCall::Conv(c.clone()));
    let (mut w, values) = Writer::new(args.params(), tile::THREADS);
    args.values(&values);
    let (x, k) = (args.take(), args.take());
    let bias = c.epilogue.bias.then(|| args.take());
    let residual = c.epilogue.residual.then(|| args.take());
    let out = args.take();
    let ty = args.index();
    let block = w.block_number();
    let mut operands = Taps { c, ty, x, k, bias, residual, out, group: block };
    let tiles = tile::blocks(operands.extents());
    let per_group = w.int(Type::I32, tiles as i64);
    let tile = w.remainder(block, per_group);
    operands.group = w.divide(block, per_group);
    tile::product(&mut w, tile, &mut operands);
    Written { text: w.finish(), blocks: tiles * c.groups, threads: tile::THREADS }
}

/// The products of one group.
struct Taps<'c> {
    c: &'c Conv,
    /// The type of positions in memory.
    ty: Type,
    x: Value,
    k: Value,
    bias: Option<Value>,
    residual: Option<Value>,
    out: Value,
    group: Value,
}

/// A place of an image.
struct Pixel {
    image: Value,
    row: Value,
    column: Value,
}

impl Taps<'_> {
    fn inner(&self) -> usize {
        self.c.in_channels / self.c.groups
    }

    fn outer(&self) -> usize {
        self.c.out_channels / self.c.groups
    }

    fn int(&self, w: &mut Writer, n: usize) -> Value {
        w.int(Type::I32, n as i64)
    }

    /// `x * by + further`.
    fn scaled(&self, w: &mut Writer, x: Value, by: usize, further: Value) -> Value {
        let by = w.int(x.ty, by as i64);
        let x = w.imul(x, by);
        w.iadd(x, further)
    }

    /// The place of the result that a row stands for.
    fn pixel(&self, w: &mut Writer, row: Value) -> Pixel {
        let [height, width] = self.c.out_size;
        let (across, down) = (self.int(w, width), self.int(w, height));
        let (rest, column) = (w.divide(row, across), w.remainder(row, across));
        let (image, row) = (w.divide(rest, down), w.remainder(rest, down));
        Pixel { image, row, column }
    }

    /// The channel of the group's input and the tap that a term stands for: channels vary fastest where they lie side by
    /// side.
    fn tap(&self, w: &mut Writer, term: Value) -> [Value; 3] {
        let [height, width] = self.c.kernel;
        let (inner, across) = (self.int(w, self.inner()), self.int(w, width));
        let taps = self.int(w, height * width);
        let (channel, tap) = match self.c.channels_last {
            true => (w.remainder(term, inner), w.divide(term, inner)),
            false => (w.divide(term, taps), w.remainder(term, taps)),
        };
        [channel, w.divide(tap, across), w.remainder(tap, across)]
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
        match self.c.channels_last {
            true => {
                let at = self.scaled(w, image, height, row);
                let at = self.scaled(w, at, width, column);
                self.scaled(w, at, channels, channel)
            }
            false => {
                let at = self.scaled(w, image, channels, channel);
                let at = self.scaled(w, at, height, row);
                self.scaled(w, at, width, column)
            }
        }
    }
}

impl Operands for Taps<'_> {
    fn extents(&self) -> [usize; 3] {
        let [height, width] = self.c.out_size;
        let taps = self.c.kernel[0] * self.c.kernel[1];
        [self.c.batch * height * width, self.outer(), self.inner() * taps]
    }

    fn left_along(&self) -> Along {
        if self.c.channels_last { Along::Terms } else { Along::Results }
    }

    fn right_along(&self) -> Along {
        // The kernel has its terms side by side, in the order of images with channels second.
        Along::Terms
    }

    fn left(&mut self, w: &mut Writer, row: Value, term: Value) -> Value {
        let pixel = self.pixel(w, row);
        let [channel, i, j] = self.tap(w, term);
        let mut at = [pixel.row, pixel.column];
        let mut inside = w.int(Type::I1, 1);
        for (axis, tap) in [i, j].into_iter().enumerate() {
            let pad = w.int(Type::I32, -(self.c.pads[axis] as i64));
            let place = self.scaled(w, at[axis], self.c.strides[axis], pad);
            let place = {
                let by = self.int(w, self.c.dilations[axis]);
                let further = w.imul(tap, by);
                w.iadd(place, further)
            };
            let end = self.int(w, self.c.in_size[axis]);
            // A place before the first is beyond all others where it has no sign.
            let here = w.compare_unsigned(Comparison::Less, place, end);
            inside = w.and(inside, here);
            at[axis] = place;
        }
        let first = self.int(w, self.inner());
        let first = w.imul(self.group, first);
        let channel = w.iadd(first, channel);
        w.begin_if(inside, &[Type::F32]);
        let from = Pixel { image: pixel.image, row: at[0], column: at[1] };
        let at = self.element(w, self.c.in_size, self.c.in_channels, &from, channel);
        let x = read(w, self.x, at, self.c.types.left);
        w.otherwise(&[x]);
        let zero = w.float(Type::F32, 0.0);
        let x = w.end_if(&[zero])[0];
        match self.c.types.left_rounded {
            to if to == self.c.types.left => x,
            to => w.round_half(x, to),
        }
    }

    fn right(&mut self, w: &mut Writer, term: Value, column: Value) -> Value {
        let [channel, i, j] = self.tap(w, term);
        let [height, width] = self.c.kernel;
        let first = self.int(w, self.outer());
        let first = w.imul(self.group, first);
        let column = w.iadd(first, column);
        let at = self.scaled(w, column, self.inner(), channel);
        let at = self.scaled(w, at, height, i);
        let at = self.scaled(w, at, width, j);
        read(w, self.k, at, self.c.types.right.dtype)
    }

    fn finish(&mut self, w: &mut Writer, row: Value, column: Value, sum: Value) {
        let dtype = self.c.types.result;
        let first = self.int(w, self.outer());
        let first = w.imul(self.group, first);
        let channel = w.iadd(first, column);
        let pixel = self.pixel(w, row);
        let at = self.element(w, self.c.out_size, self.c.out_channels, &pixel, channel);
        let bias = self.bias.map(|bias| read(w, bias, channel, dtype));
        let residual = self.residual.map(|residual| read(w, residual, at, dtype));
        let x = finished(w, &self.c.epilogue, sum, bias, residual);
        write(w, self.out, at, dtype, x);
    }
}
