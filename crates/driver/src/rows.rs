//! How many rows samples give of a value, and how many samples that takes.

use margay_ir::{Graph, Value, eval};
use margay_passes::sketch::{Rows, Site, Thinning};

use crate::{DriverError, Mask, Samples};

/// What sites ask calibration to measure.
pub(crate) fn measured(sites: &[Site]) -> impl Iterator<Item = &Rows> {
    sites.iter().flat_map(|site| site.measures.iter().flatten())
}

/// How many samples give each of some values about so many rows; no more than there are.
///
/// # Errors
/// Those of extents that samples have.
pub(crate) fn needed<'r>(
    g: &Graph,
    values: impl Iterator<Item = &'r Rows>,
    mask: &Mask,
    samples: &Samples,
    rows: usize,
) -> Result<usize, DriverError> {
    let fewest = rows_of_a_sample(g, values, mask, samples)?.into_iter().min();
    Ok(fewest.map_or(samples.rows(), |fewest| rows.div_ceil(fewest.max(1)).min(samples.rows())))
}

/// By value, the rows that a sample gives of it on average, padding left out; 0 where only a run
/// decides that.
///
/// # Errors
/// Those of extents that samples have.
pub(crate) fn rows_of_a_sample<'r>(
    g: &Graph,
    values: impl Iterator<Item = &'r Rows>,
    mask: &Mask,
    samples: &Samples,
) -> Result<Vec<usize>, DriverError> {
    let batch = samples.bound_batch(g).unwrap_or(1);
    let one = samples.row(0, batch)?;
    let binding = eval::bind_symbols(g, |name| one.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape()))?;
    let shape = |v: Value| -> Option<Vec<usize>> {
        let dims = g.ty(v).shape.iter();
        dims.map(|d| d.eval(&binding).ok().and_then(|extent| usize::try_from(extent).ok())).collect()
    };
    let counted = mask.marks(samples.arrays()).map_or(1.0, |marks| {
        let marks = marks.counts();
        marks.iter().filter(|counts| **counts).count() as f64 / marks.len().max(1) as f64
    });
    let of_a_sample = |rows: &Rows| {
        let all = shape(rows.value).map_or(0, |shape| rows.count(&shape, Thinning::of(batch)) / batch);
        (counted * all as f64) as usize
    };
    Ok(values.map(of_a_sample).collect())
}

#[cfg(test)]
mod tests {
    use margay_ir::text::parse;
    use margay_passes::sketch::sites;
    use margay_tensor::{DType, Tensor};

    use super::*;
    use crate::MaskChoice;

    /// The rows of a sample of 16 places, of which so many are marked, that a product of a graph reads.
    fn rows(batch: &str, lines: &str, read: &str, marked: usize) -> Vec<usize> {
        let text = format!(
            "graph @g(%x: f32[{batch}, S, 8], %attention_mask: i64[{batch}, S]) -> (y: {read}) {{\n{lines}  \
             %w = const #w : f32[8, 8]  // w\n  %y = matmul %z, %w : {read}  // product\n  return %y\n}}\n"
        );
        let weight = |_: &str, _: &_| Some(Tensor::from_slice(&[8, 8], &[1f32; 64]).unwrap().into());
        let g = parse(&text, &weight).unwrap_or_else(|e| panic!("{e}"));
        let marks: Vec<i64> = (0..64).map(|i| i64::from(i % 16 < marked)).collect();
        let samples = Samples::new(vec![
            ("x".into(), Tensor::zeros(DType::F32, &[4, 16, 8]).unwrap()),
            ("attention_mask".into(), Tensor::from_slice(&[4, 16], &marks).unwrap()),
        ]);
        let mask = Mask::find(&g, &MaskChoice::Default).unwrap();
        let mut all = rows_of_a_sample(&g, measured(&sites(&g)), &mask, &samples.unwrap()).unwrap();
        all.dedup();
        all
    }

    #[test]
    fn rows_are_those_that_count() {
        let tokens = "  %z = exp %x : f32[B, S, 8]\n";
        assert_eq!(rows("B", tokens, "f32[B, S, 8]", 16), [16]);
        assert_eq!(rows("B", tokens, "f32[B, S, 8]", 4), [4]);
        assert_eq!(rows("2", &tokens.replace('B', "2"), "f32[2, S, 8]", 16), [16]);
        let pooled = "  %z = reduce %x {kind = sum, axes = [1], keepdims = false} : f32[B, 8]\n";
        assert_eq!(rows("B", pooled, "f32[B, 8]", 16), [1]);
    }
}
