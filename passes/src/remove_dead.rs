//! Removes nodes that no output depends on.
//!
//! Required stage: imported. Declines nothing; inputs stay, those of graphs inside operators too.
//!
//! ```text
//! graph @before(%x: f32[N]) -> (y: f32[N]) {
//!   %0 = exp %x : f32[N]
//!   %1 = neg %x : f32[N]
//!   return %1
//! }
//! graph @after(%x: f32[N]) -> (y: f32[N]) {
//!   %0 = neg %x : f32[N]
//!   return %0
//! }
//! ```

use margay_ir::{Changed, Configuration, Cx, Fidelity, Graph, Pass, PassError};

/// Removes nodes that no output depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveDead;

impl Pass for RemoveDead {
    fn name(&self) -> &'static str {
        "remove-dead"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, _: &mut Cx) -> Result<Changed, PassError> {
        let inside = g.change_regions(&mut |inner| self.run(inner, &mut Cx::default()))?;
        Ok(inside.and(Changed::times(g.remove_dead())))
    }
}
