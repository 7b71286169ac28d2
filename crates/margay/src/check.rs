//! Whether a model can be compiled: its operators, shapes and weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use margay_driver::{Dump, Kind, Model, build, is_artifact};
use margay_ir::{Graph, Op};
use margay_onnx::{KnownInputs, Model as OnnxModel, OnnxError, import_for, supported_operators};
use margay_passes::sketch::{layers, recurrences};
use margay_tensor::{Binding, Symbol, is_named};
use serde::Serialize;

use crate::Error;

/// What is wrong with a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemKind {
    /// It asks for what margay does not do.
    Unsupported,
    /// It breaks the rules of ONNX, or its weights are not numbers.
    Malformed,
    /// A bug of margay.
    Internal,
}

/// What is known of a model before it is compiled.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The file.
    pub path: String,
    /// Who wrote it.
    pub producer: String,
    /// The version of the format.
    pub ir_version: i64,
    /// The version of the default operator set.
    pub opset: i64,
    /// Whether it can be compiled.
    pub supported: bool,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Names of open extents.
    pub dimensions: Vec<String>,
    /// Equations between extents that the import assumed, as printed; values of dimensions are checked against them.
    pub guards: Vec<String>,
    /// What schemes can replace; `None` where the model cannot be imported.
    pub layers: Option<Layers>,
    /// Operators, sorted by name.
    pub operators: Vec<Operator>,
    /// Weights that hold infinities or what is not a number.
    pub non_finite: Vec<NonFinite>,
    /// Everything that is wrong.
    pub problems: Vec<Fault>,
}

/// An input or output.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// The name.
    pub name: String,
    /// The type, as printed.
    pub r#type: String,
}

/// The layers that schemes can replace.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Layers {
    /// How many there are.
    pub count: usize,
    /// Bytes of their weights.
    pub bytes: u64,
    /// Bytes of all constants.
    pub constant_bytes: u64,
}

/// An operator and how often a model uses it.
#[derive(Clone, Debug, Serialize)]
pub struct Operator {
    /// The name.
    pub name: String,
    /// How often it is used.
    pub count: usize,
    /// Whether it can be compiled.
    pub supported: bool,
}

/// A weight with elements that are not finite.
#[derive(Clone, Debug, Serialize)]
pub struct NonFinite {
    /// The weight.
    pub tensor: String,
    /// Elements that are not a number.
    pub nan: usize,
    /// Infinite elements.
    pub infinite: usize,
    /// The index of the first such element.
    pub first: usize,
}

/// Something that is wrong with a model.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// Whose fault it is.
    pub kind: ProblemKind,
    /// What is wrong, with numbers.
    pub message: String,
}

/// Reads a model, imports it and tries to compile it, with these values of open dimensions and these inputs as constants.
///
/// # Errors
/// A file that cannot be read at all, and dimensions that the model does not leave open; what is wrong with a model is in
/// the result.
pub fn check(path: &Path, dims: &[(String, i64)], fixed: &[(String, f64)]) -> Result<Check, Error> {
    if is_artifact(path)? {
        let message = format!(
            "`{}` is an artifact, expected an ONNX file; `margay inspect` tells what is in it",
            path.display()
        );
        return Err(Error::Options(message));
    }
    let model = OnnxModel::open(path)?;
    let mut problems = Vec::new();
    let given: Binding = dims.iter().map(|(name, value)| (name.as_str().into(), *value)).collect();
    let empty = given.iter().filter(|(_, value)| **value == 0).map(|(name, _)| name.clone()).collect();
    let known = KnownInputs { dims: given, empty, fixed: fixed.to_vec(), ..KnownInputs::default() };
    let graph = match import_for(&model, &known) {
        Ok(imported) => Some(imported.graph),
        Err(OnnxError::Invalid(found)) => {
            let word = |kind| match kind {
                margay_onnx::Kind::Malformed => ProblemKind::Malformed,
                margay_onnx::Kind::Unsupported => ProblemKind::Unsupported,
            };
            problems.extend(found.iter().map(|p| Fault { kind: word(p.kind()), message: p.to_string() }));
            None
        }
        Err(other) => return Err(other.into()),
    };
    let mut layers = None;
    if let Some(graph) = &graph {
        expect_open(graph, dims)?;
        let failed = match Model::new(graph.clone(), graph.name(), &mut Dump::none()) {
            Ok(source) => {
                layers = Some(Layers::of(&source.graph));
                build::try_compile(&source.graph, &values(&source.graph, dims)).err()
            }
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            let kind = match error.kind() {
                Kind::Internal => ProblemKind::Internal,
                Kind::Malformed => ProblemKind::Malformed,
                Kind::Usage | Kind::Check | Kind::Device => ProblemKind::Unsupported,
            };
            problems.push(Fault { kind, message: error.to_string() });
        }
    }
    let non_finite: Vec<NonFinite> = model
        .non_finite()
        .into_iter()
        .map(|f| NonFinite { tensor: f.tensor, nan: f.nan, infinite: f.infinite, first: f.first })
        .collect();
    let (inputs, outputs) = match &graph {
        Some(graph) => ports_of_graph(graph),
        None => (ports_of_model(&model.graph.inputs), ports_of_model(&model.graph.outputs)),
    };
    Ok(Check {
        path: path.display().to_string(),
        producer: [model.producer.as_str(), &model.producer_version].join(" ").trim().to_string(),
        ir_version: model.ir_version,
        opset: model.opset,
        supported: problems.is_empty(),
        inputs,
        outputs,
        dimensions: graph
            .iter()
            .flat_map(Graph::symbols)
            .map(|s| s.trim_end_matches('?').to_owned())
            .collect(),
        guards: graph.iter().flat_map(|g| g.guards()).map(ToString::to_string).collect(),
        layers,
        operators: operators(&model),
        non_finite,
        problems,
    })
}

impl Layers {
    /// Those of a graph in canonical form. A weight counts once, however many layers read it.
    pub(crate) fn of(g: &Graph) -> Layers {
        let mut all: BTreeMap<String, usize> = BTreeMap::new();
        all.extend(g.payloads().iter().map(|p| (p.key().to_string(), p.tensor().bytes().len())));
        let layers = [layers(g), recurrences(g)].concat();
        let weights: BTreeSet<String> = layers.iter().map(|l| l.payload(g).key().to_string()).collect();
        let bytes = weights.iter().filter_map(|key| all.get(key)).sum::<usize>() as u64;
        Layers { count: layers.len(), bytes, constant_bytes: all.values().sum::<usize>() as u64 }
    }
}

pub(crate) fn ports_of_graph(g: &Graph) -> (Vec<Port>, Vec<Port>) {
    let inputs = g.inputs().iter().filter_map(|n| match g.op(*n) {
        Op::Input(input) => Some(Port { name: input.name.to_string(), r#type: input.ty.to_string() }),
        _ => None,
    });
    let outputs = g.outputs().iter();
    let outputs = outputs.map(|o| Port { name: o.name.to_string(), r#type: g.ty(o.value).to_string() });
    (inputs.collect(), outputs.collect())
}

fn ports_of_model(values: &[margay_onnx::OnnxValue]) -> Vec<Port> {
    let list = |dims: &[margay_onnx::OnnxDim]| {
        let texts: Vec<String> = dims.iter().map(ToString::to_string).collect();
        format!("[{}]", texts.join(", "))
    };
    let port = |v: &margay_onnx::OnnxValue| Port {
        name: v.name.clone(),
        r#type: v.dtype.map_or("?".into(), |d| d.to_string())
            + &v.dims.as_deref().map_or(String::new(), list),
    };
    values.iter().map(port).collect()
}

fn operators(model: &OnnxModel) -> Vec<Operator> {
    let mut counts: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    for node in &model.graph.nodes {
        let supported = || {
            let opset = model.opset_of(node);
            supported_operators()
                .any(|(domain, name, since)| domain == node.domain && name == node.op_type && opset >= since)
        };
        counts.entry(node.operator()).or_insert_with(|| (0, supported())).0 += 1;
    }
    counts.into_iter().map(|(name, (count, supported))| Operator { name, count, supported }).collect()
}

/// The values by the symbols that stand for these dimensions.
fn values(g: &Graph, dims: &[(String, i64)]) -> Binding {
    let value = |s: &Symbol| dims.iter().find(|(name, _)| is_named(s, name)).map(|(_, value)| *value);
    g.symbols().into_iter().filter_map(|s| Some((s.clone(), value(&s)?))).collect()
}

/// Fails for names that are not those of open dimensions.
fn expect_open(g: &Graph, dims: &[(String, i64)]) -> Result<(), Error> {
    let symbols = g.symbols();
    let is_open = |name: &str| symbols.iter().any(|s| is_named(s, name));
    let Some((name, _)) = dims.iter().find(|(name, _)| !is_open(name)) else { return Ok(()) };
    let open: Vec<&str> = symbols.iter().map(|s| s.trim_end_matches('?')).collect();
    let known = if open.is_empty() { "none".to_owned() } else { format!("`{}`", open.join("`, `")) };
    Err(Error::Options(format!("the model has no open dimension `{name}`; open are {known}")))
}
