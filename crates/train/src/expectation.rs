//! Programs over discrete inputs, given as tables, whose inputs are known by their distributions: what is to be expected of
//! their output, added to a graph as ordinary operators. A network that gives the distributions learns through the table.
//!
//! A table has an axis for each of N inputs, `[n₁, …, n_N]`, and holds the value of the output; or it has one more axis,
//! `[n₁, …, n_N, m]`, and holds the distribution of an output that takes m values, such as a 1 at the result of the program.
//! Distributions `pₖ [B, nₖ]` are independent of each other, and so the expected output is
//!
//! ```text
//! E[b, …] = Σ p₁[b, i₁] … p_N[b, i_N] table[i₁, …, i_N, …]
//! ```
//!
//! of shape `[B]` or `[B, m]`. [`exact`] adds all terms, exponentially many in N. [`sketched`] contracts a tensor train of
//! the table with one distribution after the other: work and numbers grow linearly with N at bounded ranks. Larger programs
//! are trees of tables: an output `[B, m]` is the distribution of an input of the next one, exact where sub-programs share no
//! input (Choi, Solko-Breslin, Alur and Wong, *CTSketch: Compositional Tensor Sketching for Scalable Neurosymbolic Learning*,
//! 2025, arXiv 2503.24123).
//!
//! **Error.** Let T be the table and T' what the train stands for, `‖T - T'‖ ≤ ε ‖T‖` in the norm of Frobenius, as
//! [`tt_svd`](margay_randnla::tt_svd) with tolerance ε gives it. Then `|E - E'| ≤ ε ‖T‖` for each row, for m outputs in the
//! Euclidean norm. For E - E' is the unfolding of T - T' by its outputs times the vector of all products of the
//! probabilities; the norm of a matrix is at most that of Frobenius, and the norm of this vector is the product of all
//! `‖pₖ‖₂ ≤ ‖pₖ‖₁ = 1`. An approximate distribution may have numbers slightly below 0.
//!
//! A table is made by [`DenseTensor::from_fn`], or by [`tabulated`] of a program that is a graph itself. Deliberately absent:
//! sketches of tables that are too large to be held; a tree has small ones.

use margay_ir::ops::{MatMul, Numbers, Reshape};
use margay_ir::{AddError, Builder, Graph, Origin, TensorType, Value, eval};
use margay_randnla::{DenseTensor, TensorTrain};
use margay_tensor::Dim;

use crate::TrainError;

/// The table of a program that is a graph with one output: its inputs, in their order, are vectors of numbers, of which the
/// k-th takes the values 0 to `extents[k] - 1`, and its output is `[B]` or `[B, m]` for inputs `[B]`. The reference
/// interpreter runs it once, on all combinations.
///
/// # Errors
/// [`TrainError::Mismatch`] for another number of inputs, inputs and outputs of other shapes, and more combinations than there
/// are addresses; what the graph refuses.
pub fn tabulated(program: &Graph, extents: &[usize]) -> Result<DenseTensor, TrainError> {
    let mismatch = |what: &str, expected: String, found: String| {
        Err(TrainError::Mismatch { what: what.into(), expected, found })
    };
    let inputs = program.inputs();
    if inputs.len() != extents.len() {
        return mismatch("inputs of the program", extents.len().to_string(), inputs.len().to_string());
    }
    let Some(rows) = extents.iter().try_fold(1usize, |n, e| n.checked_mul(*e)) else {
        return mismatch("combinations of inputs", format!("at most {}", usize::MAX), format!("{extents:?}"));
    };
    let mut values = Vec::with_capacity(extents.len());
    let mut inner = rows;
    for (&n, &extent) in inputs.iter().zip(extents) {
        let (name, dtype) = (program.node(n).origin.name(), program.ty(n.into()).dtype);
        inner /= extent.max(1);
        let all = (0..rows).map(|row| row / inner.max(1) % extent);
        let numbers = match dtype.is_float() {
            true => Numbers::Float(all.map(|i| i as f64).collect()),
            false => Numbers::Int(all.map(|i| i as i128).collect()),
        };
        let numbers = numbers.into_tensor(dtype, &[rows]).map_err(|e| TrainError::Options(e.to_string()))?;
        values.push((name, numbers));
    }
    let values: Vec<_> = values.iter().map(|(name, t)| (*name, t)).collect();
    let found = eval::run(program, &values)?;
    let [output] = &found[..] else {
        return mismatch("outputs of the program", "1".into(), found.len().to_string());
    };
    let (shape, floats) = (output.shape(), Numbers::of(output).map(Numbers::floats));
    let fits = (1..=2).contains(&shape.len()) && shape[0] == rows;
    match floats {
        Ok(data) if fits => {
            let extents = [extents, &shape[1..]].concat();
            DenseTensor::new(extents, data).map_err(|e| TrainError::Options(e.to_string()))
        }
        _ => {
            let expected = format!("numbers of shape [{rows}] or [{rows}, m]");
            mismatch("output of the program", expected, TensorType::of(output).to_string())
        }
    }
}

/// The expected output of a table by enumeration of all inputs.
///
/// # Errors
/// [`TrainError::Mismatch`] unless there is at least one distribution, an axis of the table for each, and at most one more;
/// and unless all distributions are floats `[B, nₖ]` of one type, with the same B.
pub fn exact(g: &mut Graph, table: &DenseTensor, distributions: &[Value]) -> Result<Value, TrainError> {
    let outputs = expect_distributions(g, table.extents(), distributions)?;
    let mut n = Builder::new(g, Origin::named("expectation"));
    let mut all = distributions[0];
    for p in &distributions[1..] {
        all = joint(&mut n, all, *p)?;
    }
    let entries = through(&mut n, all, table.data(), outputs.unwrap_or(1))?;
    finished(&mut n, entries, outputs)
}

/// The expected output of a table that is given as a tensor train.
///
/// # Errors
/// As [`exact`], for the table that the train stands for.
pub fn sketched(g: &mut Graph, train: &TensorTrain, distributions: &[Value]) -> Result<Value, TrainError> {
    let extents: Vec<usize> = train.cores.iter().map(|core| core.extents()[1]).collect();
    let outputs = expect_distributions(g, &extents, distributions)?;
    let mut n = Builder::new(g, Origin::named("expectation"));
    let mut row = through(&mut n, distributions[0], train.cores[0].data(), train.cores[0].extents()[2])?;
    for (core, p) in train.cores[1..].iter().zip(&distributions[1..]) {
        let terms = joint(&mut n, row, *p)?;
        row = through(&mut n, terms, core.data(), core.extents()[2])?;
    }
    if let Some(outputs) = outputs {
        row = through(&mut n, row, train.cores[distributions.len()].data(), outputs)?;
    }
    finished(&mut n, row, outputs)
}

/// Products of numbers of two rows: `[B, a]` and `[B, n]` to `[B, a n]`.
fn joint(n: &mut Builder<'_>, x: Value, y: Value) -> Result<Value, AddError> {
    let (a, b) = (n.ty(x).shape.clone(), n.ty(y).shape.clone());
    let one = Dim::from(1usize);
    let x = n.op(Reshape { shape: vec![a[0].clone(), a[1].clone(), one.clone()] }, &[x])?;
    let y = n.op(Reshape { shape: vec![b[0].clone(), one, b[1].clone()] }, &[y])?;
    let products = n.mul(x, y)?;
    n.op(Reshape { shape: vec![a[0].clone(), &a[1] * &b[1]] }, &[products])
}

/// Rows `[B, k]` times a constant matrix `[k, columns]`.
fn through(n: &mut Builder<'_>, rows: Value, numbers: &[f64], columns: usize) -> Result<Value, TrainError> {
    let ty = n.ty(rows);
    let terms = ty.shape[1].as_extent().unwrap_or_default();
    let matrix = Numbers::Float(numbers.to_vec()).into_tensor(ty.dtype, &[terms, columns]);
    let matrix = n.constant(matrix.map_err(|e| TrainError::Options(e.to_string()))?)?;
    Ok(n.op(MatMul, &[rows, matrix])?)
}

/// A value, in place of one output, has no axis of outputs.
fn finished(n: &mut Builder<'_>, rows: Value, outputs: Option<usize>) -> Result<Value, TrainError> {
    if outputs.is_some() {
        return Ok(rows);
    }
    let shape = n.ty(rows).shape[..1].to_vec();
    Ok(n.op(Reshape { shape }, &[rows])?)
}

/// The number of outputs of a table of distributions; `None` for one of values.
fn expect_distributions(
    g: &Graph,
    extents: &[usize],
    distributions: &[Value],
) -> Result<Option<usize>, TrainError> {
    let inputs = distributions.len();
    if inputs == 0 || !(inputs..=inputs + 1).contains(&extents.len()) {
        return Err(TrainError::Mismatch {
            what: format!("axes of the table for {inputs} distributions"),
            expected: format!("{} or {}", inputs.max(1), inputs.max(1) + 1),
            found: extents.len().to_string(),
        });
    }
    let first = g.ty(distributions[0]);
    for (k, (p, extent)) in distributions.iter().zip(extents).enumerate() {
        let ty = g.ty(*p);
        let fits = ty.dtype.is_float()
            && ty.dtype == first.dtype
            && ty.ndim() == 2
            && ty.shape[0] == first.shape[0]
            && ty.shape[1].as_extent() == Some(*extent);
        if !fits {
            let batch = first.shape.first().cloned().unwrap_or(Dim::from(1usize));
            let dtype = if first.dtype.is_float() { first.dtype.to_string() } else { "floats".into() };
            let expected = format!("{dtype}[{batch}, {extent}]");
            return Err(TrainError::Mismatch {
                what: format!("distribution {k}"),
                expected,
                found: ty.to_string(),
            });
        }
    }
    Ok(extents.get(inputs).copied())
}
