//! Matrix products.

use margay_loops::MatMul;

use crate::number::rounded;

use crate::Problem;
use crate::calls::{Arguments, Sums, finished, positions};

pub(crate) fn run(c: &MatMul, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let (a, b) = (args.take(), args.take());
    let (offset, scale) = (args.take_if(c.epilogue.offset), args.take_if(c.epilogue.scale.is_some()));
    let (bias, residual) = (args.take_if(c.epilogue.bias), args.take_if(c.epilogue.residual));
    let out = args.take();
    // A packed B lies column by column.
    let b_strides = if c.b_packed { [1, c.k] } else { [c.b.row_stride, c.b.col_stride] };
    let c_strides = [c.c_row_stride, 1];
    let bias = bias.map(|bias| args.read(bias, 0, &[c.n], &[1])).transpose()?.unwrap_or(vec![0.0; c.n]);
    let sums = Sums::of(&c.types, &c.epilogue, c.n, [offset, scale], args)?;
    let extents: Vec<usize> = c.batch.iter().map(|axis| axis.extent).collect();
    let starts = |stride: fn(&margay_loops::BatchAxis) -> usize| {
        positions(0, &extents, &c.batch.iter().map(stride).collect::<Vec<_>>())
    };
    let starts_of_b = starts(|axis| axis.b).into_iter().zip(starts(|axis| axis.c));
    for (a_start, (b_start, c_start)) in starts(|axis| axis.a).into_iter().zip(starts_of_b) {
        let mut left = args.read(a, a_start, &[c.m, c.k], &[c.a.row_stride, c.a.col_stride])?;
        let right = args.read(b, b_start, &[c.k, c.n], &b_strides)?;
        left.iter_mut().for_each(|x| *x = rounded(c.types.left_rounded, *x));
        let added = residual.map(|r| args.read(r, c_start, &[c.m, c.n], &c_strides)).transpose()?;
        let mut product = vec![0.0; c.m * c.n];
        for i in 0..c.m {
            for l in 0..c.k {
                for j in 0..c.n {
                    product[i * c.n + j] += left[i * c.k + l] * right[l * c.n + j];
                }
            }
        }
        for (at, x) in product.iter_mut().enumerate() {
            *x = sums.finished(*x, at % c.n);
            *x = finished(&c.epilogue, *x, bias[at % c.n], added.as_ref().map_or(0.0, |r| r[at]));
        }
        args.write(out, c_start, &[c.m, c.n], &c_strides, &product)?;
    }
    Ok(())
}
