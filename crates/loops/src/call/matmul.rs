//! Matrix products.

use std::fmt;

use margay_tensor::DType;

use super::{Call, CallArg, Epilogue, ProductTypes, product};
use crate::text::fields;

/// The layout of a matrix operand: element (i, j) lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MatLayout {
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

/// One axis over which a product is repeated; a stride of 0 shares the operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BatchAxis {
    /// Number of repetitions.
    pub extent: usize,
    /// Distance between the left operands.
    pub a: usize,
    /// Distance between the right operands.
    pub b: usize,
    /// Distance between the results (and residuals).
    pub c: usize,
}

/// `C[m, n] = epilogue(A[m, k] · B[k, n])`, repeated over batch axes.
///
/// Arguments: A, B, offset, scale, bias and residual where there are any, C, workspace if any. The columns of C are
/// contiguous.
///
/// Of 8-bit integers A and B, each signed or not, sums and what is added to them are i32 and wrap around. C is i32, or
/// f32 made of the sums.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MatMul {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Repetitions, outermost first.
    pub batch: Vec<BatchAxis>,
    /// Layout of A.
    pub a: MatLayout,
    /// Layout of B; meaningless when B is a packed constant.
    pub b: MatLayout,
    /// Distance between rows of C and of the residual.
    pub c_row_stride: usize,
    /// B is a constant, stored in the layout the target packs it into. Never with batch strides of B.
    pub b_packed: bool,
    /// Element types of A, B and C. Beside an A of f32, B is narrower only where it is a packed constant.
    pub types: ProductTypes,
    /// What happens before the store.
    pub epilogue: Epilogue,
}

fields!(MatLayout { row_stride, col_stride });
fields!(BatchAxis { extent, a, b, c });
fields!(MatMul {
    m,
    n,
    k,
    batch = Vec::new(),
    a,
    b,
    c_row_stride,
    b_packed = false,
    types = ProductTypes::F32,
    epilogue = Epilogue::default(),
});

impl MatMul {
    /// Turns innermost batch axes that share B into further rows of A where these are evenly spaced.
    pub fn join_rows(&mut self) {
        while let Some(&BatchAxis { extent, a, b: 0, c }) = self.batch.last() {
            if self.m == 1 {
                (self.a.row_stride, self.c_row_stride) = (a, c);
            } else if a != self.m * self.a.row_stride || c != self.m * self.c_row_stride {
                return;
            }
            self.m *= extent;
            self.batch.pop();
        }
    }
}

impl Call for MatMul {
    const FAMILY: &'static str = "matmul";

    fn flops(&self) -> u64 {
        2 * product(&[self.m, self.n, self.k]) * self.batch.iter().map(|b| b.extent as u64).product::<u64>()
    }

    fn args(&self) -> Vec<CallArg> {
        let axes = |stride: fn(&BatchAxis) -> usize, matrix: [(usize, usize); 2]| -> Vec<(usize, usize)> {
            self.batch.iter().map(|b| (b.extent, stride(b))).chain(matrix).collect()
        };
        let a = axes(|b| b.a, [(self.m, self.a.row_stride), (self.k, self.a.col_stride)]);
        let b = axes(|b| b.b, [(self.k, self.b.row_stride), (self.n, self.b.col_stride)]);
        let c =
            CallArg::written(self.types.result, &axes(|b| b.c, [(self.m, self.c_row_stride), (self.n, 1)]));
        let mut args = vec![CallArg::read(self.types.left, &a), CallArg::read(self.types.right.dtype, &b)];
        args.extend(self.epilogue.args(self.n, &c));
        args.push(c);
        args
    }

    fn epilogue(&mut self) -> Option<&mut Epilogue> {
        Some(&mut self.epilogue)
    }

    fn packed(&mut self) -> Option<(usize, &mut bool)> {
        Some((1, &mut self.b_packed))
    }

    fn rounds(&self, operand: usize) -> Option<DType> {
        self.types.rounds(operand)
    }

    fn sums_of_integers(&mut self) -> Option<&mut DType> {
        self.types.left.is_int().then_some(&mut self.types.result)
    }

    fn transposable(&mut self, _: usize) -> Option<&mut [usize; 3]> {
        None
    }
}

impl fmt::Display for MatMul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("matmul ")?;
        self.batch.iter().try_for_each(|b| write!(f, "{}x", b.extent))?;
        write!(f, "[{}x{}x{}]", self.m, self.k, self.n)?;
        f.write_str(if self.b_packed { " packed" } else { "" })?;
        write!(f, "{}{}", self.types, self.epilogue)
    }
}
