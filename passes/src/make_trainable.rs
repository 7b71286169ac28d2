//! Turns constants into inputs, so that derivatives can be taken by them and an optimizer can change them.
//!
//! Required stage: imported. The inputs are named after the constants. Fails for a name that no constant of floats has.
//! [`with_parameters`] is the way back.
//!
//! ```text
//! graph @before(%x: f32[N, 3]) -> (y: f32[N, 2]) {
//!   %0 = const #w : f32[3, 2]  // fc.weight
//!   %1 = matmul %x, %0 : f32[N, 2]  // fc
//!   %2 = const [1.0, 2.0] : f32[2]  // fc.bias
//!   %3 = add %1, %2 : f32[N, 2]  // fc/Add
//!   return %3
//! }
//! graph @after(%x: f32[N, 3], %fc.weight: f32[3, 2]) -> (y: f32[N, 2]) {
//!   %0 = const [1.0, 2.0] : f32[2]  // fc.bias
//!   %1 = matmul %x, %fc.weight : f32[N, 2]  // fc
//!   %2 = add %1, %0 : f32[N, 2]  // fc/Add
//!   return %2
//! }
//! ```

use std::collections::{HashMap, HashSet};

use margay_ir::ops::Const;
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Payload, TensorType,
    Value,
};
use margay_loops::text::words::quoted;
use margay_tensor::Tensor;

use crate::text::names;

/// Turns constants into inputs.
#[derive(Clone, Debug)]
pub struct MakeTrainable {
    /// The constants, by the names that [`parameter_names`] gives them. One that is an input already is passed over.
    pub names: Vec<String>,
}

impl MakeTrainable {
    /// Reads `fc1.weight, "fc2.weight left"`.
    pub(crate) fn read(text: &str) -> Result<MakeTrainable, String> {
        Ok(MakeTrainable { names: names(text)? })
    }
}

impl Pass for MakeTrainable {
    fn name(&self) -> &'static str {
        "make-trainable"
    }

    fn configuration(&self) -> Configuration {
        let names: Vec<String> = self.names.iter().map(|name| quoted(name)).collect();
        Configuration::of(names.join(", "))
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, _: &mut Cx) -> Result<Changed, PassError> {
        let known = parameter_names(g);
        let inputs = input_names(g);
        let mut chosen: Vec<NodeId> = Vec::new();
        for name in self.names.iter().filter(|name| !inputs.contains(name.as_str())) {
            match known.iter().find(|(_, n)| n == name) {
                Some((n, _)) if chosen.contains(n) => {}
                Some((n, _)) => chosen.push(*n),
                None => {
                    return Err(PassError::Refused(format!("the model has no constant of floats `{name}`")));
                }
            }
        }
        Ok(Changed::times(make_trainable(g, &chosen)?.len()))
    }
}

/// The constants of floats that a graph has, in order, and a name for each: the name of its origin with its part, as in
/// `fc1.weight left`; `constant` if it has none. Where a name is that of another constant or of an input already, it gets
/// a number: `fc1.weight#2`.
///
/// The names depend on the graph alone. They stay the same when some of the constants become inputs under these names,
/// and when [`with_parameters`] changes their contents.
pub fn parameter_names(g: &Graph) -> Vec<(NodeId, String)> {
    let mut taken: HashSet<String> = input_names(g).into_iter().map(str::to_string).collect();
    let mut found = Vec::new();
    for n in g.order() {
        if !matches!(g.op(n), Op::Const(_)) || !g.ty(n.into()).dtype.is_float() {
            continue;
        }
        let wish = g.node(n).origin.label().unwrap_or_else(|| "constant".to_owned());
        let numbered = (2..).map(|i| format!("{wish}#{i}"));
        let free = std::iter::once(wish.clone()).chain(numbered).find(|name| !taken.contains(name));
        let name = free.expect("there is no last number");
        taken.insert(name.clone());
        found.push((n, name));
    }
    found
}

fn input_names(g: &Graph) -> HashSet<&str> {
    let name = |n: &NodeId| match g.op(*n) {
        Op::Input(input) => Some(&*input.name),
        _ => None,
    };
    g.inputs().iter().filter_map(name).collect()
}

/// Turns constants into inputs, in the order given, and says which inputs they became. All that read a constant read the
/// input.
///
/// # Errors
/// [`PassError::Refused`] for a node that was removed, that is no constant of floats, or that is given twice.
pub fn make_trainable(g: &mut Graph, constants: &[NodeId]) -> Result<Vec<(String, Value)>, PassError> {
    let names: HashMap<NodeId, String> = parameter_names(g).into_iter().collect();
    let mut inputs = Vec::with_capacity(constants.len());
    for &n in constants {
        if !g.contains(n) {
            return Err(PassError::Refused("a constant to be trained is no longer in the graph".into()));
        }
        let Some(name) = names.get(&n) else {
            let (name, ty) = (g.node(n).origin.name(), g.ty(n.into()));
            let found = g.op(n).name();
            return Err(PassError::Refused(format!(
                "`{name}` cannot be trained: expected a constant of floats, found `{found}` of type {ty}"
            )));
        };
        if inputs.iter().any(|(known, _)| known == name) {
            return Err(PassError::Refused(format!("`{name}` is to be trained twice")));
        }
        let input = g.add_input(name, g.ty(n.into()).clone());
        let mut patch = Patch::new();
        patch.redirect(n.into(), input);
        g.apply(patch).map_err(|error| PassError::Patch {
            rule: "make-trainable",
            at: name.clone(),
            error: error.into(),
        })?;
        inputs.push((name.clone(), input));
    }
    g.remove_dead();
    Ok(inputs)
}

/// The graph with other contents in some of its constants, named as [`parameter_names`] names them. Origins and order
/// stay; nodes get new ids.
///
/// # Errors
/// [`PassError::Refused`] for a name that no constant has, and for contents of another type than the constant's.
pub fn with_parameters(g: &Graph, values: &[(String, Tensor)]) -> Result<Graph, PassError> {
    with_constants(g, &named_contents(g, values)?)
}

/// The same graph with other contents of some constants. Order, origins and so [`parameter_names`] stay; all ids are new.
///
/// # Errors
/// [`PassError::Refused`] for a tensor of another type than the constant.
pub fn with_constants(g: &Graph, contents: &[(NodeId, Tensor)]) -> Result<Graph, PassError> {
    for (n, tensor) in contents {
        let (expected, found) = (g.ty((*n).into()), TensorType::of(tensor));
        if *expected != found {
            let known = parameter_names(g).into_iter().find(|(other, _)| other == n);
            let name = known.map_or_else(|| g.node(*n).origin.name().to_owned(), |(_, name)| name);
            return Err(PassError::Refused(format!("constant `{name}`: expected {expected}, found {found}")));
        }
    }
    replaced(g, contents)
}

/// As [`with_parameters`], with contents that may have another shape: types of what reads them are inferred anew. The outputs
/// of the model keep theirs.
///
/// # Errors
/// [`PassError::Refused`] for a name that no constant has, and where an output would get another type; [`PassError::Add`] where
/// an operator does not take the new shape.
pub fn with_resized_parameters(g: &Graph, values: &[(String, Tensor)]) -> Result<Graph, PassError> {
    let resized = replaced(g, &named_contents(g, values)?)?;
    let changed =
        g.outputs().iter().zip(resized.outputs()).find(|(a, b)| g.ty(a.value) != resized.ty(b.value));
    match changed {
        None => Ok(resized),
        Some((a, b)) => {
            let (expected, found) = (g.ty(a.value), resized.ty(b.value));
            Err(PassError::Refused(format!("output `{}`: expected {expected}, found {found}", a.name)))
        }
    }
}

/// Contents by constants, of contents by names.
fn named_contents(g: &Graph, values: &[(String, Tensor)]) -> Result<Vec<(NodeId, Tensor)>, PassError> {
    let names = parameter_names(g);
    let mut contents = Vec::with_capacity(values.len());
    for (name, tensor) in values {
        let Some((n, _)) = names.iter().find(|(_, known)| known == name) else {
            return Err(PassError::Refused(format!("the model has no constant of floats `{name}`")));
        };
        contents.push((*n, tensor.clone()));
    }
    Ok(contents)
}

/// The same graph with other contents of some constants, whatever their types.
fn replaced(g: &Graph, contents: &[(NodeId, Tensor)]) -> Result<Graph, PassError> {
    let contents: HashMap<NodeId, &Tensor> = contents.iter().map(|(n, tensor)| (*n, tensor)).collect();
    let op_of = |n: NodeId| match contents.get(&n) {
        Some(tensor) => Const { payload: Payload::new((*tensor).clone()) }.into(),
        None => g.op(n).clone(),
    };
    match g.map(op_of) {
        Ok((out, _)) => Ok(out),
        Err(e) => Err(PassError::Add { rule: "with-parameters", at: e.at, error: e.error.into() }),
    }
}
