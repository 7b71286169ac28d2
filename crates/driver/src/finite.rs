//! Inputs that are not finite, or so large that what is computed of them is not: where they are so, and whether a model may
//! give outputs that are. Inputs that stand far out from the others are told, since they decide what is measured.
//!
//! NaN stands for what is missing in the data of trees and of imputers, which read it by comparisons; everywhere else it spreads
//! to the outputs, and a number that is measured there says nothing.

use std::collections::BTreeSet;

use margay_ir::ops::Numbers;
use margay_ir::{Graph, NodeId, Op};
use margay_tensor::{DType, Tensor};

/// Where an array is not a finite number, if it is so anywhere: `` `x` is NaN in row 6, at [6, 3] ``. Arrays of zeros and
/// -∞ alone are masks that are added, and as they should be.
fn not_finite(name: &str, t: &Tensor) -> Option<String> {
    if !t.dtype().is_float() {
        return None;
    }
    let (at, value) = first_not_finite(t)?;
    Some(told(name, t, at, value))
}

/// Where an element is: `` `x` is NaN in row 6, at [6, 3] ``.
fn told(name: &str, t: &Tensor, at: usize, value: f64) -> String {
    let (mut left, mut index) = (at, Vec::new());
    for extent in t.shape().iter().rev() {
        index.push(left % extent);
        left /= extent;
    }
    index.reverse();
    let row = index.first().map_or(String::new(), |row| format!(" in row {row}, at {index:?}"));
    // As few digits as tell a number of f32 from others.
    let value = match value as f32 {
        short if short.is_finite() => format!("{short:e}"),
        _ if value.is_finite() => format!("{value:e}"),
        _ => value.to_string(),
    };
    format!("`{name}` is {value}{row}")
}

/// Where a number of an array is so large that its square is beyond f32, in which models compute, if one is. Arrays of zeros
/// and one such number below zero are masks that are added.
fn too_large(name: &str, t: &Tensor) -> Option<String> {
    if t.dtype() == DType::F64 {
        return None;
    }
    let (number, largest) = (floats(t)?, f64::from(f32::MAX.sqrt()));
    let at = (0..t.len()).find(|at| number(*at).abs() > largest)?;
    let value = number(at);
    let is_mask = value < 0.0 && (0..t.len()).map(&number).all(|v| v == 0.0 || v == value);
    (!is_mask).then(|| format!("{}, and f32 does not hold its square", told(name, t, at, value)))
}

/// The numbers of an array of floats by their places. Most arrays are of f32, and large ones are looked at without a copy.
fn floats(t: &Tensor) -> Option<Box<dyn Fn(usize) -> f64 + '_>> {
    if let Ok(values) = t.as_slice::<f32>() {
        return Some(Box::new(move |at| f64::from(values[at])));
    }
    let numbers = t.dtype().is_float().then(|| Numbers::of(t).ok())??.floats();
    Some(Box::new(move |at| numbers[at]))
}

/// So many times the size that is usual is far out.
const FAR_OUT: f64 = 1e4;

/// Where an array of samples is much larger than it usually is, if it is so in less than half of the rows: the greatest size of
/// each row is compared with the median of those of all rows.
pub(crate) fn far_out(name: &str, t: &Tensor) -> Option<String> {
    let rows = t.shape().first().copied().filter(|rows| *rows > 0)?;
    let (number, width) = (floats(t)?, t.len() / rows);
    let places = |row: usize| row * width..(row + 1) * width;
    let greatest = |row: usize| places(row).map(|at| number(at).abs()).fold(0.0, f64::max);
    let sizes: Vec<f64> = (0..rows).map(greatest).collect();
    let mut sorted = sizes.clone();
    sorted.sort_by(f64::total_cmp);
    let usual = sorted[rows / 2];
    let row = (0..rows).max_by(|a, b| sizes[*a].total_cmp(&sizes[*b]))?;
    let at = places(row).find(|at| number(*at).abs() == sizes[row])?;
    (usual > 0.0 && sizes[row] > FAR_OUT * usual).then(|| {
        format!(
            "{}, {:.0e} times as large as the largest numbers of most samples: it decides what is measured of all",
            told(name, t, at, number(at)),
            sizes[row] / usual
        )
    })
}

fn first_not_finite(t: &Tensor) -> Option<(usize, f64)> {
    let numbers = match t.dtype() {
        DType::F32 => {
            // Most arrays are of this type, and large ones are looked at without a copy.
            let values = t.as_slice::<f32>().ok()?;
            let at = values.iter().position(|v| !v.is_finite())?;
            let is_mask = values.iter().all(|v| *v == 0.0 || *v == f32::NEG_INFINITY);
            return (!is_mask).then(|| (at, f64::from(values[at])));
        }
        _ => Numbers::of(t).ok()?.floats(),
    };
    let at = numbers.iter().position(|v| !v.is_finite())?;
    let is_mask = numbers.iter().all(|v| *v == 0.0 || *v == f64::NEG_INFINITY);
    (!is_mask).then(|| (at, numbers[at]))
}

/// Where an array has a number of which a model may compute what is not finite: one that is not finite itself, or whose square
/// is beyond f32.
pub fn not_computable(name: &str, t: &Tensor) -> Option<String> {
    not_finite(name, t).or_else(|| too_large(name, t))
}

/// The same where it may reach an output of a graph.
pub fn spreading(g: &Graph, name: &str, t: &Tensor) -> Option<String> {
    not_computable(name, t).filter(|_| reaches_outputs(g, name))
}

/// Whether what is not finite in an input may reach an output. It ends at comparisons, whose results are no floating point
/// numbers, and at choices by a comparison of a value with itself, which is how NaN is told from numbers.
fn reaches_outputs(g: &Graph, input: &str) -> bool {
    let mut carried: BTreeSet<NodeId> = BTreeSet::new();
    let mut tests: BTreeSet<NodeId> = BTreeSet::new();
    for n in g.order() {
        let operands = g.inputs_of(n);
        let is_float = g.node(n).types.iter().any(|ty| ty.dtype.is_float());
        let is_carried = || operands.iter().any(|v| carried.contains(&v.node));
        match g.op(n) {
            Op::Input(i) if *i.name == *input => _ = carried.insert(n),
            Op::Equal(_) if operands[0] == operands[1] && is_carried() => _ = tests.insert(n),
            Op::Select(_) if tests.contains(&operands[0].node) => {}
            _ if is_float && is_carried() => _ = carried.insert(n),
            _ if !is_float && operands.iter().any(|v| tests.contains(&v.node)) => _ = tests.insert(n),
            _ => {}
        }
    }
    g.outputs().iter().any(|output| carried.contains(&output.value.node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_ir::text::parse;

    #[test]
    fn what_is_not_finite_is_told_by_its_place() {
        let of = |values: &[f32]| not_finite("x", &Tensor::from_slice(&[2, 3], values).unwrap());
        let inf = f32::INFINITY;
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), None);
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0, f32::NAN, inf]).unwrap(), "`x` is NaN in row 1, at [1, 1]");
        assert_eq!(of(&[0.0, 1.0, -inf, 3.0, 4.0, inf]).unwrap(), "`x` is -inf in row 0, at [0, 2]");
        assert_eq!(of(&[0.0, 0.0, -inf, 0.0, -inf, -inf]), None, "a mask that is added");
        let wide = Tensor::from_slice(&[1, 2], &[0.0f64, f64::INFINITY]).unwrap();
        assert_eq!(not_finite("x", &wide).unwrap(), "`x` is inf in row 0, at [0, 1]");
    }

    #[test]
    fn what_is_too_large_is_told_by_its_place() {
        let of = |values: &[f32]| too_large("x", &Tensor::from_slice(&[2, 3], values).unwrap());
        assert_eq!(
            of(&[0.0, 1.0, 2.0, 3.0, 1e30, 5.0]).unwrap(),
            "`x` is 1e30 in row 1, at [1, 1], and f32 does not hold its square"
        );
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0, 1e17, 5.0]), None);
        assert_eq!(of(&[0.0, 0.0, f32::MIN, 0.0, f32::MIN, 0.0]), None, "a mask that is added");
        assert!(of(&[0.0, 0.0, f32::MIN, 0.0, f32::MAX, 0.0]).is_some());
        assert_eq!(of(&[0.0, 0.0, 0.0, 0.0, 1.8e19, -1.8e19]), None);
        let wide = Tensor::from_slice(&[1, 2], &[0.0f64, 1e30]).unwrap();
        assert_eq!(too_large("x", &wide), None, "models compute in f64 with it");
    }

    #[test]
    fn what_is_far_out_is_told_by_its_place() {
        let mut values: Vec<f32> = (0..30).map(|i| (i % 7) as f32 - 3.0).collect();
        let of = |values: &[f32]| far_out("x", &Tensor::from_slice(&[10, 3], values).unwrap());
        assert_eq!(of(&values), None);
        values[13] = -3e6;
        let told = of(&values).unwrap();
        assert!(told.starts_with("`x` is -3e6 in row 4, at [4, 1], 1e6 times as large"), "{told}");
        values[13] = 1e3;
        assert_eq!(of(&values), None);
        assert_eq!(of(&[0.0; 30]), None);
    }

    #[test]
    fn what_trees_and_imputers_read_spreads_no_further() {
        let with_nan = Tensor::from_slice(&[1, 2], &[0.5f32, f32::NAN]).unwrap();
        let spreads = |body: &str| {
            let text = format!("graph @g(%x: f32[1, 2], %fill: f32[1, 2]) -> (y: f32[1, 2]) {{\n{body}}}\n");
            let g = parse(&text, &|_, _| None).unwrap_or_else(|e| panic!("{e}"));
            spreading(&g, "x", &with_nan).is_some()
        };
        assert!(spreads("  %1 = relu %x : f32[1, 2]\n  return %1\n"));
        assert!(!spreads(
            "  %1 = less %x, %fill : bool[1, 2]\n  %2 = cast %1 {to = f32} : f32[1, 2]\n  return %2\n"
        ));
        let imputed = |other: &str| {
            format!(
                "  %1 = equal %x, {other} : bool[1, 2]\n  %2 = not %1 : bool[1, 2]\n  \
                 %3 = select %2, %fill, %x : f32[1, 2]\n  return %3\n"
            )
        };
        assert!(!spreads(&imputed("%x")));
        assert!(spreads(&imputed("%fill")), "a comparison with another value tells NaN from nothing");
    }
}
