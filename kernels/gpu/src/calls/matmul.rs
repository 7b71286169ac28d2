//! Matrix products: extents, and where elements lie.

use margay_loops::{Arithmetic, KernelCall, MatMul};
use margay_tensor::DType;

use super::epilogue::{finished, load, read, write};
use super::product::{Along, Operands, Product};
use super::schedule::Shape;
use super::{Arguments, is_float};
use crate::value::{Type, Value};
use crate::writer::Writer;

/// Whether there is a kernel, and if not, why.
pub(super) fn supports(c: &MatMul) -> Result<(), String> {
    if c.types.left.is_int() || !is_float(c.types.left) || !is_float(c.types.result) {
        return Err(format!("elements of {} to {}", c.types.left, c.types.result));
    }
    if !c.types.right.is_plain(c.types.right.dtype) || !is_float(c.types.right.dtype) {
        return Err(format!("a right operand stored as {}", c.types.right));
    }
    match c.b_packed {
        true => Err("a packed right operand".to_owned()),
        false => Ok(()),
    }
}

impl Product for MatMul {
    fn call(&self) -> KernelCall {
        KernelCall::MatMul(self.clone())
    }

    fn kept_bytes(&self) -> usize {
        0
    }

    fn shape(&self) -> Shape {
        Shape {
            rows: self.m,
            columns: self.n,
            terms: self.k,
            repetitions: self.batch.iter().map(|axis| axis.extent).product(),
            left: self.types.left,
            left_rounded: self.types.left_rounded,
            right: self.types.right.dtype,
        }
    }

    fn operands<'p>(
        &'p self,
        w: &mut Writer,
        args: &mut Arguments,
        repetition: Value,
    ) -> Box<dyn Operands + 'p> {
        let ty = args.index();
        let mut repetition = repetition;
        let zero = w.int(ty, 0);
        let mut starts = [zero; 3];
        for axis in self.batch.iter().rev() {
            let extent = w.int(Type::I32, axis.extent as i64);
            let at = w.remainder(repetition, extent);
            repetition = w.divide(repetition, extent);
            let at = w.resize(at, ty.element, false);
            for (start, stride) in starts.iter_mut().zip([axis.a, axis.b, axis.c]) {
                let stride = w.int(ty, stride as i64);
                let further = w.imul(at, stride);
                *start = w.iadd(*start, further);
            }
        }
        Box::new(Matrices {
            c: self,
            ty,
            a: args.take(),
            b: args.take(),
            bias: self.epilogue.bias.then(|| args.take()),
            residual: self.epilogue.residual.then(|| args.take()),
            out: args.take(),
            starts,
        })
    }
}

/// One of the products of a call.
struct Matrices<'c> {
    c: &'c MatMul,
    /// The type of positions in memory.
    ty: Type,
    a: Value,
    b: Value,
    bias: Option<Value>,
    residual: Option<Value>,
    out: Value,
    /// Where A, B and C begin.
    starts: [Value; 3],
}

impl Matrices<'_> {
    /// `start + i * stride + j * step`.
    fn at(&self, w: &mut Writer, start: Value, [i, j]: [Value; 2], [stride, step]: [usize; 2]) -> Value {
        let mut sum = start;
        for (x, by) in [(i, stride), (j, step)] {
            let (x, by) = (w.resize(x, self.ty.element, false), w.int(self.ty, by as i64));
            let further = w.imul(x, by);
            sum = w.iadd(sum, further);
        }
        sum
    }
}

impl Operands for Matrices<'_> {
    fn left_along(&self) -> Along {
        if self.c.a.row_stride == 1 { Along::Results } else { Along::Terms }
    }

    fn right_along(&self) -> Along {
        if self.c.b.row_stride == 1 { Along::Terms } else { Along::Results }
    }

    fn left(&self, w: &mut Writer, row: Value, term: Value) -> Value {
        let at = self.at(w, self.starts[0], [row, term], [self.c.a.row_stride, self.c.a.col_stride]);
        load(w, self.a, at, self.c.types.left)
    }

    fn right(&self, w: &mut Writer, term: Value, column: Value) -> Value {
        let at = self.at(w, self.starts[1], [term, column], [self.c.b.row_stride, self.c.b.col_stride]);
        load(w, self.b, at, self.c.types.right.dtype)
    }

    fn finish(&self, w: &mut Writer, row: Value, column: Value, sum: Value) {
        let dtype: DType = self.c.types.result;
        let at = self.at(w, self.starts[2], [row, column], [self.c.c_row_stride, 1]);
        let bias = self.bias.map(|bias| read(w, bias, column, dtype));
        let residual = self.residual.map(|residual| read(w, residual, at, dtype));
        let x = finished(w, &self.c.epilogue, sum, bias, residual);
        write(w, self.out, at, dtype, x);
    }
}
