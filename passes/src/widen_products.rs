//! Lets products and convolutions with constants of 16-bit floats compute in f32, so that what is made for f32 applies to them.
//!
//! Required stage: canonical. The constant has the numbers that it had and is stored as it was; operands are cast to f32, and
//! the result is rounded once, to the type that it had. Operators behind that work element by element on the result and on
//! constants, such as a bias and an activation, compute in f32 too, before the rounding. What is cast to 16 bits only to be
//! read by such a product is read as it was.
//!
//! ```text
//! graph @before(%x: f16[N, 64]) -> (y: f16[N, 32]) {
//!   %0 = const #w : f16[64, 32]  // fc.weight
//!   %1 = matmul %x, %0 : f16[N, 32]  // fc
//!   %2 = const #b : f16[32]  // fc.bias
//!   %3 = add %1, %2 : f16[N, 32]  // fc/Add
//!   return %3
//! }
//! graph @after(%x: f16[N, 64]) -> (y: f16[N, 32]) {
//!   %0 = cast %x {to = f32} : f32[N, 64]  // fc term
//!   %1 = const widened(#w) : f32[64, 32] stored f16  // fc.weight
//!   %2 = matmul %0, %1 : f32[N, 32]  // fc
//!   %3 = const widened(#b) : f32[32]  // fc.bias
//!   %4 = add %2, %3 : f32[N, 32]  // fc/Add
//!   %5 = cast %4 {to = f16} : f16[N, 32]  // fc/Add term
//!   return %5
//! }
//! ```
//!
//! Deliberately absent: operators with no constant operand, such as normalization and attention, whose numbers stay as they
//! are, and f64.

use margay_ir::ops::{Cast, Const, Numbers};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Part, Pass, PassError, Patch, Payload, Value,
    Verdict,
};
use margay_tensor::{DType, Storage, StoredTensor};

/// Computes in f32 what products of 16-bit floats compute.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WidenProducts;

impl Pass for WidenProducts {
    fn name(&self) -> &'static str {
        "widen-products"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rules = [
            Rule { name: "product", apply: product },
            Rule { name: "behind-a-product", apply: behind_a_product },
        ];
        rewrite(self.name(), g, cx, &(), &rules)
    }
}

fn product(g: &Graph, n: NodeId, (): &()) -> RuleResult {
    let (Op::MatMul(_) | Op::Conv(_)) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let widens = is_narrow(g.ty(n.into()).dtype) && g.constant(g.inputs_of(n)[1]).is_some();
    if widens { widened(g, n) } else { Ok(Verdict::NoMatch) }
}

fn behind_a_product(g: &Graph, n: NodeId, (): &()) -> RuleResult {
    let (op, operands, narrow) = (g.op(n), g.inputs_of(n), g.ty(n.into()).dtype);
    if op.facts().elementwise.is_none() || matches!(op, Op::Cast(_)) || !is_narrow(narrow) {
        return Ok(Verdict::NoMatch);
    }
    let wide = operands.iter().filter(|v| rounded(g, **v).is_some()).count();
    let known =
        |v: &Value| g.ty(*v).dtype == narrow && (rounded(g, *v).is_some() || g.constant(*v).is_some());
    if wide > 0 && operands.iter().all(known) { widened(g, n) } else { Ok(Verdict::NoMatch) }
}

/// Whether a type is one of floats that this pass is about.
fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// The value of f32 that a value of 16 bits is the rounding of.
fn rounded(g: &Graph, v: Value) -> Option<Value> {
    let Op::Cast(cast) = g.op(v.node) else { return None };
    let wide = g.inputs_of(v.node)[0];
    (is_narrow(cast.to) && g.ty(wide).dtype == DType::F32).then_some(wide)
}

/// The node in f32, with a rounding behind it.
fn widened(g: &Graph, n: NodeId) -> RuleResult {
    let (origin, narrow) = (&g.node(n).origin, g.ty(n.into()).dtype);
    let mut patch = Patch::new();
    let mut operands = Vec::new();
    for (slot, v) in g.inputs_of(n).into_iter().enumerate() {
        operands.push(match (rounded(g, v), g.constant(v)) {
            (Some(wide), _) => wide,
            (None, Some(payload)) => {
                let is_matrix = slot == 1 && matches!(g.op(n), Op::MatMul(_));
                let Some(payload) = in_f32(payload, is_matrix) else { return Ok(Verdict::NoMatch) };
                patch.add(g, Const { payload }, &[], g.node(v.node).origin.clone())?
            }
            (None, None) => patch.add(g, Cast { to: DType::F32 }, &[v], origin.part(Part::Term))?,
        });
    }
    let result = patch.add(g, g.op(n).clone(), &operands, origin.clone())?;
    let result = patch.add(g, Cast { to: narrow }, &[result], origin.part(Part::Term))?;
    patch.redirect(n.into(), result);
    Ok(Verdict::Rewrite(patch))
}

/// The numbers of a constant as those of f32. Right operands of products, which kernels read as they are stored, stay in 16
/// bits.
fn in_f32(payload: &Payload, stays_narrow: bool) -> Option<Payload> {
    let tensor = payload.tensor();
    let numbers = Numbers::Float(Numbers::of(tensor).ok()?.floats());
    let wide = numbers.into_tensor(DType::F32, tensor.shape()).ok()?;
    let name = format!("widened({})", payload.key());
    Some(match stays_narrow {
        true => Payload::derived(&name, StoredTensor::encode(&wide, Storage::plain(tensor.dtype())).ok()?),
        false => Payload::derived(&name, wide),
    })
}
