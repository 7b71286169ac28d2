//! Finds `x/2 (1 + erf(x/√2))` in the pieces exporters write, in any order of its factors.
//!
//! Required stage: imported. Not about the tanh approximation, which is another function.
//!
//! ```text
//! graph @before(%x: f32[N, 8]) -> (y: f32[N, 8]) {
//!   %0 = const 1.4142135 : f32
//!   %1 = div %x, %0 : f32[N, 8]  // act/Div
//!   %2 = erf %1 : f32[N, 8]  // act/Erf
//!   %3 = const 1.0 : f32
//!   %4 = add %2, %3 : f32[N, 8]  // act/Add
//!   %5 = mul %x, %4 : f32[N, 8]  // act/Mul
//!   %6 = const 0.5 : f32
//!   %7 = mul %5, %6 : f32[N, 8]  // act/Mul_1
//!   return %7
//! }
//! graph @after(%x: f32[N, 8]) -> (y: f32[N, 8]) {
//!   %0 = gelu %x : f32[N, 8]  // act/Mul_1
//!   return %0
//! }
//! ```

use margay_ir::ops::Gelu;
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict,
};

use crate::matching::{both_orders, factors, is_number};

/// Finds GELU.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeGelu;

impl Pass for RecognizeGelu {
    fn name(&self) -> &'static str {
        "recognize-gelu"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "gelu-from-erf", apply: gelu }])
    }
}

fn gelu(g: &Graph, n: NodeId, _: &RecognizeGelu) -> RuleResult {
    if !matches!(g.op(n), Op::Mul(_)) {
        return Ok(Verdict::NoMatch);
    }
    let (parts, constant) = factors(g, n.into());
    let [a, b] = parts.as_slice() else { return Ok(Verdict::NoMatch) };
    if (constant - 0.5).abs() > 1e-6 {
        return Ok(Verdict::NoMatch);
    }
    for (x, bent) in [(*a, *b), (*b, *a)] {
        if is_one_plus_erf(g, bent, x) && g.ty(x) == g.ty(n.into()) {
            let mut patch = Patch::new();
            let new = patch.add(g, Gelu { tanh: false }, &[x], g.node(n).origin.clone())?;
            patch.redirect(n.into(), new);
            return Ok(Verdict::Rewrite(patch));
        }
    }
    Ok(Verdict::NoMatch)
}

/// Whether `v` is `1 + erf(x/√2)`.
fn is_one_plus_erf(g: &Graph, v: Value, x: Value) -> bool {
    matches!(g.op(v.node), Op::Add(_))
        && both_orders(g, v).into_iter().any(|[erf, one]| {
            is_number(g, one, 1.0) && matches!(g.op(erf.node), Op::Erf(_)) && {
                let (parts, constant) = factors(g, g.inputs_of(erf.node)[0]);
                parts == [x] && (constant - std::f64::consts::FRAC_1_SQRT_2).abs() < 1e-6
            }
        })
}
