//! Walsh–Hadamard transforms.

use margay_loops::Hadamard;

use crate::Problem;
use crate::calls::Arguments;

pub(crate) fn run(c: &Hadamard, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let (x, out) = (args.take(), args.take());
    let x = args.read(x, 0, &[c.rows, c.len], &[c.len, 1])?;
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let element = |at: usize| {
        let (row, i) = (at / c.len * c.len, at % c.len);
        let sum: f64 = (0..c.len).map(|j| sign(i, j) * x[row + j]).sum();
        sum / (c.len as f64).sqrt()
    };
    let y: Vec<f64> = (0..c.rows * c.len).map(element).collect();
    args.write(out, 0, &[c.rows, c.len], &[c.len, 1], &y)
}
