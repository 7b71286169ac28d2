//! Inputs that are not finite: where they are so, and whether a model may give outputs that are.
//!
//! NaN stands for what is missing in the data of trees and of imputers, which read it by comparisons; everywhere else it spreads
//! to the outputs, and a number that is measured there says nothing.

use std::collections::BTreeSet;

use margay_ir::ops::Numbers;
use margay_ir::{Graph, NodeId, Op};
use margay_tensor::{DType, Tensor};

/// Where an array is not a finite number, if it is so anywhere: `` `x` is NaN in row 6, at [6, 3] ``. Arrays of zeros and
/// -∞ alone are masks that are added, and as they should be.
pub fn not_finite(name: &str, t: &Tensor) -> Option<String> {
    if !t.dtype().is_float() {
        return None;
    }
    let (at, value) = first_not_finite(t)?;
    let (mut left, mut index) = (at, Vec::new());
    for extent in t.shape().iter().rev() {
        index.push(left % extent);
        left /= extent;
    }
    index.reverse();
    let row = index.first().map_or(String::new(), |row| format!(" in row {row}, at {index:?}"));
    Some(format!("`{name}` is {value}{row}"))
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

/// The same where it may reach an output of a graph.
pub fn spreading(g: &Graph, name: &str, t: &Tensor) -> Option<String> {
    not_finite(name, t).filter(|_| reaches_outputs(g, name))
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
