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

use margay_ir::{Changed, Configuration, Cx, Fidelity, Graph, Pass, PassError};
use margay_loops::text::words::quoted;
use margay_tensor::Binding;

use crate::text::{number, pairs};

/// Gives symbols their values.
#[derive(Clone, Debug, Default)]
pub struct BindDims {
    /// The values.
    pub binding: Binding,
}

impl BindDims {
    /// Reads `N = 4, seq = 128`.
    pub(crate) fn read(text: &str) -> Result<BindDims, String> {
        let value = |(name, text): (String, &str)| Ok((name.as_str().into(), number(&name, text)?));
        Ok(BindDims { binding: pairs(text)?.into_iter().map(value).collect::<Result<_, String>>()? })
    }

    /// A graph in which the symbols have their values.
    pub fn bound(&self, g: &Graph) -> Result<Graph, PassError> {
        let open: Vec<String> =
            g.symbols().iter().filter(|s| !self.binding.contains_key(*s)).map(|s| format!("`{s}`")).collect();
        if !open.is_empty() {
            return Err(PassError::Refused(format!("dimensions without a value: {}", open.join(", "))));
        }
        for guard in g.guards() {
            guard.check(&self.binding).map_err(|e| PassError::Refused(e.to_string()))?;
        }
        let (mut bound, _) = g.map(|n| g.op(n).bind(&self.binding)).map_err(|e| {
            let bound: Vec<String> = self.binding.iter().map(|(s, v)| format!("{s} = {v}")).collect();
            PassError::Refused(format!("with {}, {e}", bound.join(", ")))
        })?;
        bound.set_guards(Vec::new());
        Ok(bound)
    }
}

impl Pass for BindDims {
    fn name(&self) -> &'static str {
        "bind-dims"
    }

    fn configuration(&self) -> Configuration {
        let values: Vec<String> = self.binding.iter().map(|(s, v)| format!("{} = {v}", quoted(s))).collect();
        Configuration::of(values.join(", "))
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
