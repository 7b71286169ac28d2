//! Files to graphs.

use std::path::Path;

use margay_artifact::{Artifact, StoredConstant};
use margay_ir::{Graph, Op, TensorType, text};
use margay_loops::Precision;
use margay_lower::storage_with_signs;
use margay_onnx::{Dropout, Imported, KnownInputs, Model as OnnxModel};
use margay_passes::Pipeline;
use margay_tensor::{DType, StoredTensor};

use crate::floats::tensor_of;
use crate::statistics::normalized_by_batch;
use crate::{Arrays, DriverError, Dump, backend};

/// A model ready to be compiled: a graph in canonical form.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name people know it by.
    pub name: String,
    /// The graph, at stage `Canonical`.
    pub graph: Graph,
    /// Identifies the graph with its weights, as sixteen hexadecimal digits.
    pub hash: String,
    /// What canonicalization had to say.
    pub remarks: Vec<margay_ir::Remark>,
    /// Inputs of the file that are constants of the graph, with their values ([`margay_onnx::import_for`]).
    pub fixed: Arrays,
    /// What should make a user of the file doubt what it computes.
    pub warnings: Vec<String>,
}

impl Model {
    /// A graph as imported, brought into canonical form.
    pub fn new(graph: Graph, name: &str, dump: &mut Dump) -> Result<Model, DriverError> {
        Model::canonical(graph, name, &Pipeline::canonicalize(), dump)
    }

    fn canonical(
        mut graph: Graph,
        name: &str,
        pipeline: &Pipeline,
        dump: &mut Dump,
    ) -> Result<Model, DriverError> {
        dump.graph("import", &graph);
        let remarks = dump.run(pipeline, &mut graph)?;
        // The text names every constant by its contents.
        let hash = blake3::hash(graph.to_string().as_bytes()).to_hex()[..16].to_string();
        let (name, fixed, warnings) = (name.to_string(), Arrays::new(), Vec::new());
        Ok(Model { name, graph, hash, remarks, fixed, warnings })
    }
}

/// Opens an ONNX file, or an artifact that carries its graph.
pub fn open(path: &Path) -> Result<Model, DriverError> {
    open_with(path, &KnownInputs::default(), &mut Dump::none())
}

/// As [`open`], for inputs of which something is known, and with dumps of the passes.
pub fn open_with(path: &Path, known: &KnownInputs, dump: &mut Dump) -> Result<Model, DriverError> {
    let name = name_of(path);
    if is_artifact(path)? {
        let artifact = Artifact::open(path)?;
        let graph = open_artifact_graph(&artifact)?;
        return Model::new(graph, &name, dump);
    }
    let model = OnnxModel::open(path)?;
    let Imported { graph, fixed } = margay_onnx::import_for(&model, known)?;
    let gone = left_out(&model, &graph);
    let canonical = Model::new(graph, &name, dump)?;
    let warnings = [doubts(&model, &canonical.graph), gone].concat();
    Ok(Model { fixed, warnings, ..canonical })
}

/// As [`open`], for a model that is to be trained: what `dropout` says of its `Dropout` nodes. An artifact has none.
///
/// # Errors
/// As [`open`]; [`DriverError::Options`] where a ratio is given and the model has no `Dropout` node.
pub fn open_for_training(path: &Path, dropout: Dropout) -> Result<Model, DriverError> {
    let (name, mut none) = (name_of(path), Dump::none());
    let (graph, file) = match is_artifact(path)? {
        true => (open_artifact_graph(&Artifact::open(path)?)?, None),
        false => {
            let model = OnnxModel::open(path)?;
            (margay_onnx::import_for_training(&model, dropout)?, Some(model))
        }
    };
    let dropped = graph.order().into_iter().any(|n| matches!(graph.op(n), Op::Dropout(_)));
    if let Dropout::Ratio(ratio) = dropout
        && ratio > 0.0
        && !dropped
    {
        return Err(DriverError::Options(format!("a dropout of {ratio}: the model has no `Dropout` node")));
    }
    let gone = file.as_ref().map_or(Vec::new(), |file| left_out(file, &graph));
    let model = Model::canonical(graph, &name, &Pipeline::canonicalize_for_training(), &mut none)?;
    let warnings = file.map_or(Vec::new(), |file| doubts(&file, &model.graph));
    Ok(Model { warnings: [warnings, gone].concat(), ..model })
}

/// What should make a user of a file doubt what it computes; its graph is in canonical form.
fn doubts(model: &OnnxModel, g: &Graph) -> Vec<String> {
    let declared = model.batch_statistics();
    let (count, name, mode) = match (declared.first(), normalized_by_batch(g).as_slice()) {
        (Some(first), _) => (declared.len(), first.label(0), " (`training_mode = 1`)"),
        (None, all @ [first, ..]) => (all.len(), format!("at `{}`", g.label(*first)), ""),
        (None, []) => return Vec::new(),
    };
    vec![format!(
        "{count} batch normalization(s), the first of which is {name}, take mean and variance of the batch{mode}: \
         outputs of a sample depend on the others in its batch, and a batch of one is normalized to nothing; export the \
         model in evaluation mode to have the statistics that it learned"
    )]
}

/// Says which outputs of a file its graph does not have.
fn left_out(model: &OnnxModel, g: &Graph) -> Vec<String> {
    let is_there = |name: &str| g.outputs().iter().any(|o| *o.name == *name);
    let gone = model.graph.outputs.iter().filter(|o| !is_there(&o.name));
    let why = "holds labels that are texts, and is left out; the scores of the classes are in the order of the labels";
    gone.map(|o| format!("output `{}` {why}", o.name)).collect()
}

fn name_of(path: &Path) -> String {
    path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned())
}

/// Whether a file starts as an artifact does.
pub fn is_artifact(path: &Path) -> Result<bool, DriverError> {
    use std::io::Read;
    let io = |source| DriverError::Read { path: path.to_path_buf(), source };
    let mut head = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(16).read_to_end(&mut head).map_err(io)?;
    Ok(margay_artifact::is_artifact(&head))
}

/// The sketched graph an artifact was compiled from.
///
/// # Errors
/// [`DriverError::Stripped`] where it carries none; [`DriverError::Artifact`] for constants that are damaged.
pub fn open_artifact_graph(artifact: &Artifact) -> Result<Graph, DriverError> {
    let path = artifact.path();
    let Some(bytes) = artifact.source(crate::compiled::GRAPH_PIECE)? else {
        return Err(DriverError::Stripped { path: path.to_path_buf(), lacks: "graph" });
    };
    let text = String::from_utf8_lossy(bytes);
    let constants = &artifact.description().constants;
    let damage = std::cell::RefCell::new(None);
    let resolve = |key: &str, ty: &TensorType| {
        let extents = ty.extents()?;
        let of = |dtype: DType| {
            // A constant beside signs has the name of what is stored.
            let holds =
                |c: &StoredConstant| c.shape == extents || c.storage.elements_shape(&c.shape) == extents;
            constants.iter().position(|c| c.is_named(key) && c.dtype == dtype && holds(c))
        };
        // Beside signs that a program holds as numbers.
        let beside = || {
            constants.iter().enumerate().find_map(|(i, c)| {
                let storage = c.names.iter().find_map(|name| storage_with_signs(name, key))?;
                (storage.elements_shape(&c.shape) == extents).then_some((i, Some(storage)))
            })
        };
        // Kernels read some narrow floats widened, which loses nothing.
        let whole = of(ty.dtype).or_else(|| of(ty.dtype.computed())).map(|i| (i, None));
        let (index, with_signs) = whole.or_else(beside)?;
        let packed_by = constants[index].layout.as_ref().map_or("cpu", |l| l.backend.as_str());
        let backend = backend::named(packed_by, "native", Precision::F32).ok()?;
        let found = artifact.constant(index, &*backend);
        let found = found.map_err(|error| damage.replace(Some(error))).ok()?;
        if let Some(storage) = with_signs {
            return Some(StoredTensor::encode(&found.decode(), storage).ok()?.elements().clone().into());
        }
        if found.storage().signs.is_some() && found.elements().shape() == extents {
            return Some(found.elements().clone().into());
        }
        match constants[index].dtype == ty.dtype {
            true => Some(found),
            false => {
                let numbers = found.elements().to_vec::<f32>().ok()?;
                tensor_of(ty.dtype, &extents, &numbers).map(StoredTensor::from)
            }
        }
    };
    let graph = text::parse(&text, &resolve);
    match damage.into_inner() {
        Some(damage) => Err(damage.into()),
        None => graph.map_err(|error| DriverError::Text { path: path.to_path_buf(), error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::Tensor;

    use crate::{CompileOptions, Silent, compile};

    #[test]
    fn an_artifact_with_equal_constants_is_opened_again() {
        let twins = "graph @twins(%x: f32[N, 20]) -> (y: f32[N, 20]) {
          %0 = const #a : f32[20]  // a
          %1 = add %x, %0 : f32[N, 20]
          %2 = const lowrank.left(#b, k = 1) : f32[20]  // b
          %3 = mul %1, %2 : f32[N, 20]
          return %3
        }";
        let values: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let constant = Tensor::from_slice(&[20], &values).unwrap();
        let g = text::parse(twins, &|_, _| Some(constant.clone().into())).unwrap();
        let source = Model::new(g, "twins", &mut Dump::none()).unwrap();
        let compiled = compile(&source, None, &CompileOptions::default(), &Silent).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("twins.margay");
        compiled.write(&path, false, &mut Dump::none()).unwrap();
        assert_eq!(open(&path).unwrap().graph.to_string(), source.graph.to_string());
    }

    /// Kernels read them widened, and so they lie in the file.
    #[test]
    fn an_artifact_with_narrow_floats_is_opened_again() {
        for dtype in [DType::F16, DType::BF16] {
            let name = dtype.name();
            let written = format!(
                "graph @half(%x: {name}[N, 20]) -> (y: {name}[N, 3]) {{
                  %0 = const #a : {name}[20, 3]  // a
                  %1 = matmul %x, %0 : {name}[N, 3]
                  return %1
                }}"
            );
            let values: Vec<f32> = (0..60).map(|i| i as f32 / 7.0 - 4.0).collect();
            let constant = tensor_of(dtype, &[20, 3], &values).unwrap();
            let g = text::parse(&written, &|_, _| Some(constant.clone().into())).unwrap();
            let source = Model::new(g, "half", &mut Dump::none()).unwrap();
            let compiled = compile(&source, None, &CompileOptions::default(), &Silent).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("half.margay");
            compiled.write(&path, false, &mut Dump::none()).unwrap();
            assert_eq!(open(&path).unwrap().graph.to_string(), source.graph.to_string());
        }
    }
}
