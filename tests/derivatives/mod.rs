//! Graphs of derivatives.

use margay_ir::{Graph, Value};
use margay_passes::gradients;

/// A graph of the derivatives of the first output of another one by some of its values, `d0`, `d1`, …, given the cotangent
/// of that output as the last input, `dy`.
///
/// # Panics
/// Where an operator has no derivative, and where the output does not depend on one of the values.
pub fn derivatives(g: &Graph, by: &[Value]) -> Graph {
    let (mut g, name) = (g.clone(), g.name());
    let y = g.outputs()[0].value;
    let cotangent = g.add_input("dy", g.ty(y).clone());
    let found = gradients(&mut g, &[(y, cotangent)], by).unwrap_or_else(|e| panic!("{name}: {e}"));
    g.set_outputs(vec![]);
    for (i, v) in found.into_iter().enumerate() {
        let v = v.unwrap_or_else(|| panic!("{name}: derivative {i} is zero"));
        g.add_output(&format!("d{i}"), v);
    }
    g.remove_dead();
    g
}
