//! Matrix products.

use margay_loops::precision::{bf16, from_bf16, int8, int8_scale};
use margay_loops::{MatMul, Precision};

use crate::Problem;
use crate::calls::{Arguments, finished, positions};

pub(crate) fn run(c: &MatMul, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let (a, b) = (args.take(), args.take());
    let (bias, residual) = (args.take_if(c.epilogue.bias), args.take_if(c.epilogue.residual));
    let out = args.take();
    // A packed B lies column by column.
    let b_strides = if c.b_packed { [1, c.k] } else { [c.b.row_stride, c.b.col_stride] };
    let c_strides = [c.c_row_stride, 1];
    let bias = bias.map(|bias| args.read(bias, 0, &[c.n], &[1])).transpose()?.unwrap_or(vec![0.0; c.n]);
    let extents: Vec<usize> = c.batch.iter().map(|axis| axis.extent).collect();
    let starts = |stride: fn(&margay_loops::BatchAxis) -> usize| {
        positions(0, &extents, &c.batch.iter().map(stride).collect::<Vec<_>>())
    };
    let starts_of_b = starts(|axis| axis.b).into_iter().zip(starts(|axis| axis.c));
    for (a_start, (b_start, c_start)) in starts(|axis| axis.a).into_iter().zip(starts_of_b) {
        let mut left = args.read(a, a_start, &[c.m, c.k], &[c.a.row_stride, c.a.col_stride])?;
        let mut right = args.read(b, b_start, &[c.k, c.n], &b_strides)?;
        round(c.precision, &mut left, &mut right, c.n);
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
            *x = finished(&c.epilogue, *x, bias[at % c.n], added.as_ref().map_or(0.0, |r| r[at]));
        }
        args.write(out, c_start, &[c.m, c.n], &c_strides, &product)?;
    }
    Ok(())
}

/// Rounds the operands of a product whose right one has `n` columns.
fn round(precision: Precision, left: &mut [f64], right: &mut [f64], n: usize) {
    match precision {
        Precision::F32 => {}
        Precision::Bf16 => {
            left.iter_mut().chain(right).for_each(|x| *x = from_bf16(bf16(*x as f32)).into());
        }
        Precision::Int8 => {
            for j in 0..n {
                let scale = int8_scale(right.iter().skip(j).step_by(n).map(|&x| x as f32));
                for x in right.iter_mut().skip(j).step_by(n) {
                    *x = f64::from(int8(*x as f32, scale)) * f64::from(scale);
                }
            }
        }
    }
}
