//! Matrix products: extents, and where elements lie.

use margay_loops::{Arithmetic, KernelCall, MatMul, ProductTypes, Scale};
use margay_tensor::DType;

use super::epilogue::{finished, load, read, write};
use super::product::{Along, Operands, Product};
use super::schedule::Shape;
use super::stored::{self, Constant, Round};
use super::{Arguments, is_float};
use crate::value::{Type, Value};
use crate::writer::Writer;

/// Whether there is a kernel, and if not, why.
pub(super) fn supports(c: &MatMul) -> Result<(), String> {
    let ProductTypes { left, right, result, .. } = c.types;
    let is_byte = |dtype| matches!(dtype, DType::I8 | DType::U8);
    if left.is_int() {
        let sums = is_byte(left) && matches!(result, DType::I32 | DType::F32);
        return match sums && is_byte(right.dtype) && right.is_plain(right.dtype) && !c.b_packed {
            true => Ok(()),
            false => Err(format!("elements of {left} and {right} to {result}")),
        };
    }
    if !is_float(left) || !is_float(result) {
        return Err(format!("elements of {left} to {result}"));
    }
    let is_plain = right.is_plain(right.dtype) && is_float(right.dtype);
    match (c.b_packed, is_plain) {
        (false, true) => Ok(()),
        (true, false) if stored::is_read(&right) => Ok(()),
        _ => Err(format!("a right operand stored as {right}")),
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
        // What is read as it is stored is handed over as numbers.
        let right = if self.b_packed { DType::F32 } else { self.types.right.dtype };
        Shape {
            rows: self.m,
            columns: self.n,
            terms: self.k,
            repetitions: self.batch.iter().map(|axis| axis.extent).product(),
            left: self.types.left,
            left_rounded: self.types.left_rounded,
            right,
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
        let (a, b) = (args.take(), args.take());
        let stored = self.b_packed.then(|| Constant::new(self.types.right, [self.k, self.n], b, ty));
        Box::new(Matrices {
            c: self,
            ty,
            a,
            b,
            stored,
            offset: self.epilogue.offset.then(|| args.take()),
            scale: self.epilogue.scale.map(|scale| (args.take(), scale)),
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
    /// B, if it is a constant that is read as it is stored.
    stored: Option<Constant>,
    offset: Option<Value>,
    scale: Option<(Value, Scale)>,
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

impl Matrices<'_> {
    /// What a sum of integers becomes: with its offset, and times its scale where it becomes an f32.
    fn number(&self, w: &mut Writer, column: Value, sum: Value) -> Value {
        let mut sum = sum;
        if let Some(offset) = self.offset {
            let offset = load(w, offset, column, DType::I32);
            sum = w.iadd(sum, offset);
        }
        let Some((scales, of)) = self.scale else { return sum };
        let at = match of {
            Scale::One => w.int(Type::I32, 0),
            Scale::Columns => column,
        };
        let (number, scale) = (w.float_from_int(sum), load(w, scales, at, DType::F32));
        w.fmul(number, scale)
    }
}

impl Operands for Matrices<'_> {
    fn left_along(&self) -> Along {
        if self.c.a.row_stride == 1 { Along::Results } else { Along::Terms }
    }

    fn begin(&self, w: &mut Writer, round: &Round) {
        if let Some(constant) = &self.stored {
            constant.begin(w, round);
        }
    }

    fn right_along(&self) -> Along {
        if self.stored.is_none() && self.c.b.row_stride == 1 { Along::Terms } else { Along::Results }
    }

    fn left(&self, w: &mut Writer, row: Value, term: Value) -> Value {
        let at = self.at(w, self.starts[0], [row, term], [self.c.a.row_stride, self.c.a.col_stride]);
        load(w, self.a, at, self.c.types.left)
    }

    fn right(&self, w: &mut Writer, term: Value, column: Value) -> Value {
        if let Some(constant) = &self.stored {
            return constant.element(w, term, column);
        }
        let at = self.at(w, self.starts[1], [term, column], [self.c.b.row_stride, self.c.b.col_stride]);
        load(w, self.b, at, self.c.types.right.dtype)
    }

    fn finish(&self, w: &mut Writer, row: Value, column: Value, sum: Value) {
        let dtype: DType = self.c.types.result;
        let at = self.at(w, self.starts[2], [row, column], [self.c.c_row_stride, 1]);
        let sum = match self.c.types.left.is_int() {
            true => self.number(w, column, sum),
            false => sum,
        };
        if dtype == DType::I32 {
            write(w, self.out, at, dtype, sum);
            return;
        }
        let bias = self.bias.map(|bias| read(w, bias, column, dtype));
        let residual = self.residual.map(|residual| read(w, residual, at, dtype));
        let x = finished(w, &self.c.epilogue, sum, bias, residual);
        write(w, self.out, at, dtype, x);
    }
}
