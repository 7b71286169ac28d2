//! Modules that can be sketched, and the schemes that do it.
//!
//! A [`Module`] is a set of nodes that share a constant. A [`Scheme`] looks at a module once, with what calibration
//! measured, and answers for every rank: error, kernel calls, and the patch. Choosing ranks is the business of the
//! plan crate and the driver; nothing here looks at a budget.
//!
//! What a patch inserts are ordinary operators over new constants. Constants name what they were derived from, and
//! nodes carry the module's name with a [`Part`](margay_ir::Part).

mod lowrank;
mod panther;
mod selection;
mod training;

pub use lowrank::LowRankScheme;
pub use panther::{PantherScheme, Start};
pub use selection::{Chosen, Selection};
pub use training::{PantherTraining, panther_for_training};

use std::collections::HashMap;

use margay_ir::{AddError, Graph, NodeId, Op, Patch, Value};
use margay_loops::{Epilogue, KernelCall};
use margay_plan::Choice;
use margay_randnla::{Matrix, RandnlaError, Whitening};
use margay_tensor::DType;

/// What kind of node a module consists of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ModuleKind {
    /// Products with one constant matrix \[d_in, d_out\].
    Linear,
    /// Convolutions with one constant kernel \[out, in, height, width\], seen as a matrix \[in·height·width, out\].
    Conv,
}

impl ModuleKind {
    /// The word used in reports.
    pub fn name(self) -> &'static str {
        match self {
            ModuleKind::Linear => "linear",
            ModuleKind::Conv => "conv",
        }
    }
}

/// Nodes that share a constant and change together.
#[derive(Clone, Debug)]
pub struct Module {
    /// The name in the model of the first node; unique.
    pub name: String,
    /// What the nodes are.
    pub kind: ModuleKind,
    /// The nodes, in topological order.
    pub nodes: Vec<NodeId>,
    /// The shared constant.
    pub weight: Value,
    /// Rows of the weight as a matrix: the length of the sums.
    pub d_in: usize,
    /// Columns of the weight as a matrix: the number of outputs.
    pub d_out: usize,
}

impl Module {
    /// Stored bytes of the weight.
    pub fn bytes(&self) -> u64 {
        (self.d_in * self.d_out * 4) as u64
    }
}

/// Finds the modules of a graph, in topological order. Nodes that a rewrite made are left out, so that applying a plan
/// twice changes nothing.
pub fn modules(g: &Graph) -> Vec<Module> {
    let mut found: Vec<Module> = Vec::new();
    let mut by_weight: HashMap<Value, usize> = HashMap::new();
    for n in g.order() {
        let operands = g.inputs_of(n);
        let kind = match g.op(n) {
            Op::MatMul(_) => ModuleKind::Linear,
            Op::Conv(c) if c.groups == 1 => ModuleKind::Conv,
            _ => continue,
        };
        let weight = operands[1];
        let Some(payload) = g.constant(weight) else { continue };
        let tensor = payload.tensor();
        let (d_in, d_out) = match (kind, tensor.shape()) {
            (ModuleKind::Linear, &[k, n]) => (k, n),
            (ModuleKind::Conv, &[o, c, h, w]) => (c * h * w, o),
            _ => continue,
        };
        if tensor.dtype() != DType::F32 || g.node(n).origin.part.is_some() || d_in * d_out == 0 {
            continue;
        }
        if let Some(&i) = by_weight.get(&weight) {
            if found[i].kind == kind {
                found[i].nodes.push(n);
            }
            continue;
        }
        by_weight.insert(weight, found.len());
        let name = unique_name(g, n, &found);
        found.push(Module { name, kind, nodes: vec![n], weight, d_in, d_out });
    }
    // A weight that somebody else reads too stays as it is: sketching would add to what is stored.
    found.retain(|m| g.users_of(m.weight).len() == m.nodes.len() && !g.is_output(m.weight));
    found
}

fn unique_name(g: &Graph, n: NodeId, found: &[Module]) -> String {
    let name = match g.node(n).origin.name() {
        "" => g.node(g.inputs_of(n)[1].node).origin.name(),
        name => name,
    };
    let name = if name.is_empty() { g.op(n).name() } else { name };
    let taken = |name: &str| found.iter().any(|m| m.name == name);
    match taken(name) {
        false => name.to_string(),
        true => (2..).map(|i| format!("{name}#{i}")).find(|n| !taken(n)).unwrap_or_default(),
    }
}

/// What calibration measured at the input of a module.
#[derive(Clone, Debug)]
pub struct InputStatistics {
    /// The centred second moment of the module's inputs, of dimension `d_in`.
    pub whitening: Whitening,
    /// Identifies the samples; part of the name of derived constants.
    pub calibration: String,
}

/// One setting of a scheme.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    /// The setting.
    pub rank: usize,
    /// Squared error of the module's output over its squared norm (centred where statistics are), on the
    /// calibration inputs.
    pub relative_error: f64,
    /// Stored bytes of what replaces the weight.
    pub bytes: u64,
}

/// A way to replace the nodes of a module.
pub trait Scheme: Sync {
    /// The name in plans.
    fn name(&self) -> &'static str;

    /// Whether the scheme is about this kind of module.
    fn takes(&self, kind: ModuleKind) -> bool;

    /// Looks at a module. Costs a factorization; everything afterwards is cheap.
    fn fit(
        &self,
        g: &Graph,
        module: &Module,
        statistics: Option<&InputStatistics>,
        seed: u64,
    ) -> Result<Box<dyn Fitted>, RandnlaError>;
}

/// A scheme that has looked at a module.
pub trait Fitted: Send + Sync {
    /// Settings with fewer stored bytes than the weight, by rising rank.
    fn points(&self) -> Vec<Point>;

    /// What stands in for the kernel call of a dense node, to be priced.
    fn calls(&self, dense: &KernelCall, rank: usize) -> Vec<KernelCall>;

    /// Why this is for plans that name it, and never to be chosen by its errors; `None` where an allocator may.
    fn only_by_name(&self) -> Option<&'static str>;

    /// Replaces the nodes of the module.
    fn apply(&self, g: &Graph, module: &Module, rank: usize) -> Result<Patch, ApplyError>;
}

/// The weight of a module as a matrix \[d_in, d_out\].
fn weight_of(g: &Graph, module: &Module) -> Result<Matrix, RandnlaError> {
    let payload = g.constant(module.weight).expect("the weight of a module is a constant");
    let weights = payload.tensor().to_vec::<f32>().expect("the weight of a module is f32");
    match module.kind {
        ModuleKind::Linear => Matrix::from_row_major(module.d_in, module.d_out, &weights),
        ModuleKind::Conv => Ok(Matrix::from_row_major(module.d_out, module.d_in, &weights)?.transposed()),
    }
}

/// The calls of two products in place of one, with so many columns between them.
fn two_calls(dense: &KernelCall, width: usize) -> Vec<KernelCall> {
    match dense {
        KernelCall::MatMul(c) => {
            let (mut left, mut right) = (c.clone(), c.clone());
            left.n = width;
            left.epilogue = Epilogue::default();
            right.k = width;
            vec![KernelCall::MatMul(left), KernelCall::MatMul(right)]
        }
        KernelCall::Conv(c) => {
            let (mut left, mut right) = (c.clone(), c.clone());
            left.out_channels = width;
            left.epilogue = Epilogue::default();
            right.in_channels = width;
            right.in_size = c.out_size;
            (right.kernel, right.strides, right.pads, right.dilations) = ([1, 1], [1, 1], [0, 0], [1, 1]);
            vec![KernelCall::Conv(left), KernelCall::Conv(right)]
        }
        other => vec![other.clone()],
    }
}

/// A scheme could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The patch does not type (our fault).
    #[error(transparent)]
    Add(#[from] AddError),
    /// The rank is outside what the scheme offers (the plan's fault), or the weight has numbers that are not finite
    /// (the model's).
    #[error(transparent)]
    Randnla(#[from] RandnlaError),
}

/// All schemes, sorted by name.
pub const SCHEMES: &[&dyn Scheme] = &[&LowRankScheme, &PantherScheme::DEFAULT];

/// The scheme with this name.
pub fn scheme(name: &str) -> Option<&'static dyn Scheme> {
    SCHEMES.iter().copied().find(|s| s.name() == name)
}

/// The scheme of a choice, with what the choice says besides rank and seed.
///
/// # Errors
/// What the scheme does not know (the plan's fault).
pub fn scheme_of(choice: &Choice) -> Result<Box<dyn Scheme>, String> {
    let plain = choice.terms == 1 && choice.copy.is_none();
    match choice.scheme.as_str() {
        "lowrank" if plain => Ok(Box::new(LowRankScheme)),
        "panther" => {
            let start = Start::of(choice.copy.unwrap_or_default());
            Ok(Box::new(PantherScheme { terms: choice.terms, start }))
        }
        name if scheme(name).is_some() => {
            Err(format!("`terms` and `copy` are no settings of scheme `{name}`"))
        }
        name => {
            let known: Vec<&str> = SCHEMES.iter().map(|s| s.name()).collect();
            Err(format!("scheme `{name}` is not one of {}", known.join(", ")))
        }
    }
}
