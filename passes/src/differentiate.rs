//! Adds to a graph the derivatives of one of its outputs, by reverse mode: the outputs `gradient.NAME` for inputs and
//! constants by name.
//!
//! Required stage: imported. An output that is not a scalar gets a weight for each of its elements through a new input
//! `cotangent`; the derivatives are those of the weighted sum. Fails on an operator without derivative on the way, and
//! names it.
//!
//! ```text
//! graph @before(%x: f32[N, 3]) -> (loss: f32) {
//!   %0 = const [1.0, 2.0, 3.0] : f32[3]  // w
//!   %1 = mul %x, %0 : f32[N, 3]  // scaled
//!   %2 = reduce %1 {kind = sum, axes = [0, 1]} : f32  // total
//!   return %2
//! }
//! graph @after(%x: f32[N, 3]) -> (loss: f32, gradient.w: f32[3]) {
//!   %0 = const [1.0, 2.0, 3.0] : f32[3]  // w
//!   %1 = mul %x, %0 : f32[N, 3]  // scaled
//!   %2 = reduce %1 {kind = sum, axes = [0, 1]} : f32  // total
//!   %3 = const 1.0 : f32
//!   %4 = reshape %3 {shape = [1, 1]} : f32[1, 1]  // total gradient
//!   %5 = broadcast %4 {shape = [N, 3]} : f32[N, 3]  // total gradient
//!   %6 = mul_or_zero %5, %x : f32[N, 3]  // scaled gradient
//!   %7 = reduce %6 {kind = sum, axes = [0], keepdims = true} : f32[1, 3]  // scaled gradient
//!   %8 = reshape %7 {shape = [3]} : f32[3]  // scaled gradient
//!   return %2, %8
//! }
//! ```

use margay_ir::vjp::DerivativeError;
use margay_ir::{
    AddError, Applied, Builder, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Origin, Pass,
    PassError, Patch, Remark, Value,
};
use margay_loops::text::words::quoted;
use margay_tensor::Dim;

use crate::text::{name, names, pairs};
use crate::{backward_nodes, parameter_names, saved};

/// Adds derivatives.
#[derive(Clone, Debug)]
pub struct Differentiate {
    /// The output whose derivatives are taken.
    pub output: String,
    /// The names of inputs and constants by which they are taken.
    pub by: Vec<String>,
}

impl Differentiate {
    /// Reads `output = loss, by = [w, b]`.
    pub(crate) fn read(text: &str) -> Result<Differentiate, String> {
        let (mut output, mut by) = (None, None);
        for (key, value) in pairs(text)? {
            match key.as_str() {
                "output" => output = Some(name(value)?),
                "by" => {
                    let list = value.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
                    by = Some(names(
                        list.ok_or_else(|| format!("expected `[name, name]`, found `{value}`"))?,
                    )?);
                }
                _ => return Err(format!("unknown `{key}`, expected `output` and `by`")),
            }
        }
        let missing = |what: &str| format!("`{what}` is missing");
        let output = output.ok_or_else(|| missing("output"))?;
        Ok(Differentiate { output, by: by.ok_or_else(|| missing("by"))? })
    }
}

impl Pass for Differentiate {
    fn name(&self) -> &'static str {
        "differentiate"
    }

    fn configuration(&self) -> Configuration {
        let by: Vec<String> = self.by.iter().map(|name| quoted(name)).collect();
        Configuration::of(format!("output = {}, by = [{}]", quoted(&self.output), by.join(", ")))
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let found = g.outputs().iter().find(|o| *o.name == *self.output);
        let Some(y) = found.map(|o| o.value) else {
            return Err(PassError::Refused(format!("the model has no output `{}`", self.output)));
        };
        let known = |name: &String| g.outputs().iter().any(|o| *o.name == format!("gradient.{name}"));
        let names: Vec<&String> = self.by.iter().filter(|name| !known(name)).collect();
        if names.is_empty() {
            return Ok(Changed::No);
        }
        let by = names.iter().map(|name| leaf(g, name)).collect::<Result<Vec<_>, _>>()?;
        let ty = g.ty(y).clone();
        if !ty.dtype.is_float() {
            return Err(PassError::Refused(format!("the output `{}` is {ty}, not of floats", self.output)));
        }
        let mut patch = Patch::new();
        let seed = match ty.shape.as_slice() {
            [] => Builder::patching(g, &mut patch, Origin::default()).number(y, 1.0).map_err(refused)?,
            _ => patch.add_input("cotangent", ty),
        };
        let gradients = derivatives(g, &mut patch, &[(y, seed)], &by)?;
        for ((name, v), gradient) in names.iter().zip(&by).zip(gradients) {
            let zeros = || Builder::patching(g, &mut patch, Origin::default()).filled(*v, 0.0);
            let value = gradient.map_or_else(zeros, Ok).map_err(refused)?;
            patch.add_output(&format!("gradient.{name}"), value);
        }
        apply(g, patch)?;
        g.remove_dead();
        let saved = saved(g, &backward_nodes(g));
        let bytes = saved
            .iter()
            .fold(Dim::default(), |n, v| &n + &(&g.ty(*v).elements() * &Dim::from(g.ty(*v).dtype.bytes())));
        cx.remarks.push(Remark {
            pass: self.name(),
            at: self.output.clone(),
            message: format!("{} values are kept for the backward pass, {bytes} bytes", saved.len()),
            declined: false,
        });
        Ok(Changed::Yes(by.len()))
    }
}

fn refused(error: AddError) -> PassError {
    PassError::Add { rule: "differentiate", at: String::new(), error: error.into() }
}

/// The input with a name, or the constant that [`parameter_names`] gives it to.
fn leaf(g: &Graph, name: &str) -> Result<Value, PassError> {
    let input = |n: &&NodeId| matches!(g.op(**n), Op::Input(input) if *input.name == *name);
    let constant = || parameter_names(g).into_iter().find(|(_, known)| known == name);
    let found = g.inputs().iter().find(input).copied().or_else(|| constant().map(|(n, _)| n));
    let Some(v) = found.map(Value::from) else {
        return Err(PassError::Refused(format!("the model has no input or constant `{name}`")));
    };
    match g.ty(v) {
        ty if ty.dtype.is_float() => Ok(v),
        ty => Err(PassError::Refused(format!("`{name}` is {ty}, which has no derivatives"))),
    }
}

fn apply(g: &mut Graph, patch: Patch) -> Result<Applied, PassError> {
    let (rule, at) = ("differentiate", String::new());
    g.apply(patch).map_err(|error| PassError::Patch { rule, at, error: error.into() })
}

/// Adds the derivatives of `Σ seed · y` over the seeds `(y, seed)` by each of the values `by`; `None` where they are
/// zero because nothing connects the two.
pub fn gradients(
    g: &mut Graph,
    seeds: &[(Value, Value)],
    by: &[Value],
) -> Result<Vec<Option<Value>>, PassError> {
    let mut patch = Patch::new();
    let found = derivatives(g, &mut patch, seeds, by)?;
    let applied = apply(g, patch)?;
    Ok(found.into_iter().map(|v| v.map(|v| applied.value(v))).collect())
}

/// As [`gradients`], in a patch of the graph. Seeds and results are values of either.
fn derivatives(
    g: &Graph,
    patch: &mut Patch,
    seeds: &[(Value, Value)],
    by: &[Value],
) -> Result<Vec<Option<Value>>, PassError> {
    margay_ir::vjp::derivatives(g, patch, seeds, by).map_err(|error| match error {
        DerivativeError::Add { op, at, error } => PassError::Add { rule: op, at, error },
        none => PassError::Refused(none.to_string()),
    })
}
