//! Gives symbols their values. Types, attributes and extents used as data become numbers.
//!
//! Required stage: sketched. The last pass before lowering: until here one graph serves every shape. Refuses a binding
//! that leaves a symbol open, or under which a node no longer types (a slice past the end of its axis).
//!
//! ```text
//! graph @before(%x: f32[N, 6]) -> (y: f32[2*N, 3]) {
//!   %0 = reshape %x {shape = [2*N, 3]} : f32[2*N, 3]
//!   return %0
//! }
//! graph @after(%x: f32[4, 6]) -> (y: f32[8, 3]) {
//!   %0 = reshape %x {shape = [8, 3]} : f32[8, 3]
//!   return %0
//! }
//! ```

use std::collections::HashMap;

use margay_ir::{Changed, Cx, Fidelity, Graph, Op, Pass, PassError, Value};
use margay_tensor::Binding;

/// Gives symbols their values.
#[derive(Clone, Debug, Default)]
pub struct BindDims {
    /// The values.
    pub binding: Binding,
}

impl BindDims {
    /// A graph in which the symbols have their values.
    pub fn bound(&self, g: &Graph) -> Result<Graph, PassError> {
        let open: Vec<String> =
            g.symbols().iter().filter(|s| !self.binding.contains_key(*s)).map(|s| format!("`{s}`")).collect();
        if !open.is_empty() {
            return Err(PassError::Refused(format!("dimensions without a value: {}", open.join(", "))));
        }
        let mut out = Graph::new(g.name());
        let mut values: HashMap<Value, Value> = HashMap::new();
        for n in g.inputs() {
            if let Op::Input(input) = g.op(*n) {
                let v = out.add_input(&input.name, input.ty.bind(&self.binding));
                values.insert((*n).into(), v);
            }
        }
        for n in g.order() {
            let node = g.node(n);
            if matches!(node.op, Op::Input(_)) {
                continue;
            }
            let operands: Vec<Value> = g.inputs_of(n).iter().map(|v| values[v]).collect();
            let first =
                out.add(node.op.bind(&self.binding), &operands, node.origin.clone()).map_err(|e| {
                    let bound: Vec<String> = self.binding.iter().map(|(s, v)| format!("{s} = {v}")).collect();
                    let name = node.origin.name();
                    PassError::Refused(format!("with {}, at `{name}`: {e}", bound.join(", ")))
                })?;
            for slot in 0..node.types.len() as u16 {
                values.insert(Value { node: n, out: slot }, Value { node: first.node, out: slot });
            }
        }
        for o in g.outputs() {
            out.add_output(&o.name, values[&o.value]);
        }
        Ok(out)
    }
}

impl Pass for BindDims {
    fn name(&self) -> &'static str {
        "bind-dims"
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, _: &mut Cx) -> Result<Changed, PassError> {
        let symbols = g.symbols().len();
        *g = self.bound(g)?;
        Ok(Changed::times(symbols))
    }
}
