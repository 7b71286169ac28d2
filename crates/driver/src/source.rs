//! Files to graphs.

use std::path::Path;

use margay_artifact::Artifact;
use margay_ir::{Graph, TensorType, text};
use margay_loops::Precision;
use margay_onnx::KnownExtents;
use margay_onnx::model::Model;
use margay_passes::Pipeline;
use margay_tensor::Tensor;

use crate::{DriverError, Dump, backend};

/// A model ready to be compiled: a graph in canonical form.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name people know it by.
    pub name: String,
    /// The graph, at stage `Canonical`.
    pub graph: Graph,
    /// Identifies the graph with its weights, as sixteen hexadecimal digits.
    pub hash: String,
    /// What canonicalization had to say.
    pub remarks: Vec<margay_ir::Remark>,
}

impl Source {
    /// A graph as imported, brought into canonical form.
    pub fn new(mut graph: Graph, name: &str, dump: &mut Dump) -> Result<Source, DriverError> {
        dump.graph("import", &graph);
        let remarks = dump.run(&Pipeline::canonicalize(), &mut graph)?;
        // The text names every constant by its contents.
        let hash = blake3::hash(graph.to_string().as_bytes()).to_hex()[..16].to_string();
        Ok(Source { name: name.to_string(), graph, hash, remarks })
    }
}

/// Opens an ONNX file, or an artifact that carries its graph.
pub fn open(path: &Path) -> Result<Source, DriverError> {
    open_with(path, &KnownExtents::default(), &mut Dump::none())
}

/// Larger inputs are data, never what shapes follow from.
const MAX_DECISIVE: usize = 1024;

/// As [`open_with`], of a file whose inputs are at hand. Where an ONNX file is refused because shapes, axes or the like
/// follow from inputs, small ones become constants: integers first, then floats too. Their names come second, none where
/// nothing had to be decided.
pub fn open_deciding(
    path: &Path,
    known: &KnownExtents,
    inputs: &[(String, Tensor)],
) -> Result<(Source, Vec<String>), DriverError> {
    let refusal = match open_with(path, known, &mut Dump::none()) {
        Ok(source) => return Ok((source, Vec::new())),
        Err(refusal) if is_artifact(path)? => return Err(refusal),
        Err(refusal) => refusal,
    };
    let Ok(model) = Model::open(path) else { return Err(refusal) };
    let name = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    for floats in [false, true] {
        let mut model = model.clone();
        let mut fixed = Vec::new();
        for (name, tensor) in inputs {
            let decides = tensor.len() <= MAX_DECISIVE && (floats || !tensor.dtype().is_float());
            let declared =
                model.graph.inputs.iter().position(|i| i.name == *name && i.dtype == Some(tensor.dtype()));
            if let (true, Some(at)) = (decides, declared) {
                model.graph.inputs.remove(at);
                model.graph.initializers.push((name.clone(), tensor.clone()));
                fixed.push(name.clone());
            }
        }
        if let Ok(graph) = margay_onnx::import_for(&model, known) {
            return Ok((Source::new(graph, &name, &mut Dump::none())?, fixed));
        }
    }
    Err(refusal)
}

/// As [`open`], for a use of which something is known, and with dumps of the passes.
pub fn open_with(path: &Path, known: &KnownExtents, dump: &mut Dump) -> Result<Source, DriverError> {
    let name = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    if is_artifact(path)? {
        let artifact = Artifact::open(path)?;
        let graph = open_artifact_graph(&artifact)?;
        return Source::new(graph, &name, dump);
    }
    let model = Model::open(path)?;
    let graph = margay_onnx::import_for(&model, known)?;
    Source::new(graph, &name, dump)
}

/// Whether a file starts as an artifact does.
pub fn is_artifact(path: &Path) -> Result<bool, DriverError> {
    use std::io::Read;
    let io = |source| DriverError::Io { path: path.to_path_buf(), source };
    let mut head = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(16).read_to_end(&mut head).map_err(io)?;
    Ok(margay_artifact::is_artifact(&head))
}

/// The sketched graph an artifact was compiled from. An error when it was stripped.
pub fn open_artifact_graph(artifact: &Artifact) -> Result<Graph, DriverError> {
    let path = artifact.path();
    let Some(bytes) = artifact.source(crate::compiled::GRAPH_PIECE)? else {
        let message = format!("`{}` was stripped: it does not carry its graph", path.display());
        return Err(DriverError::Options(message));
    };
    let text = String::from_utf8_lossy(bytes);
    let constants = &artifact.description().constants;
    let resolve = |key: &str, ty: &TensorType| {
        let index = constants.iter().position(|c| {
            c.is_named(key) && c.dtype == ty.dtype && Some(&c.shape) == ty.extents().as_ref()
        })?;
        let packed_by = constants[index].layout.as_ref().map_or("cpu", |l| l.backend.as_str());
        let backend = backend::named(packed_by, "native", Precision::F32).ok()?;
        artifact.constant(index, &*backend).ok()
    };
    text::parse(&text, &resolve).map_err(|error| DriverError::Text { path: path.to_path_buf(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let source = Source::new(g, "twins", &mut Dump::none()).unwrap();
        let compiled = compile(&source, None, &CompileOptions::default(), &Silent).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("twins.margay");
        compiled.write(&path, false, &mut Dump::none()).unwrap();
        assert_eq!(open(&path).unwrap().graph.to_string(), source.graph.to_string());
    }
}
