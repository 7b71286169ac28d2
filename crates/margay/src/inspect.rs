//! What is in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use margay_artifact::{Artifact, CodeSection, Entry};
use margay_driver::backend::LaunchUse;
use margay_driver::{Dump, ErrorMeasure, Model, backend, build};
use margay_ir::{Graph, Op};
use margay_loops::Program;
use margay_onnx::Model as OnnxModel;
use margay_tensor::{Binding, is_named};
use serde::Serialize;

use crate::Error;
use crate::artifact::report_of;
use crate::check::{Layers, Port, ports_of_graph};

/// What is in an ONNX file.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// The file.
    pub path: String,
    /// Identifies the graph with its weights.
    pub hash: String,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Names of open extents.
    pub dimensions: Vec<String>,
    /// Nodes in the file.
    pub nodes: usize,
    /// Nodes after canonicalization, without constants.
    pub canonical_nodes: usize,
    /// Elements of floating point constants.
    pub parameters: usize,
    /// Bytes of constants in the file.
    pub constant_bytes: u64,
    /// The same as they are stored when the model is compiled as it is for this machine, in the layouts of kernels with their
    /// padding: what `compile` states of the dense model. `None` where the model is not compiled for the dimensions given,
    /// or for 1 in place of those that are open.
    pub stored_constant_bytes: Option<u64>,
    /// Layers that schemes can replace.
    pub layers: usize,
    /// Bytes of their weights in the file.
    pub layer_bytes: u64,
    /// Bytes of the weights of products and convolutions as they are stored.
    pub stored_layer_bytes: Option<u64>,
    /// Multiplications and additions for the dimensions given; `None` where one is open.
    pub flops: Option<u64>,
}

/// What is in an artifact.
#[derive(Clone, Debug, Serialize)]
pub struct ArtifactReport {
    /// The file.
    pub path: String,
    /// Who wrote it.
    pub producer: String,
    /// The name of the model.
    pub model: String,
    /// Size of the file.
    pub file_bytes: usize,
    /// Bytes of the constants that code reads.
    pub constant_bytes: u64,
    /// Bytes of further constants, which only the graph has, for `export`, `explain` and `recover`.
    pub graph_constant_bytes: u64,
    /// Bytes of code.
    pub code_bytes: u64,
    /// Bytes of the graph, the plan and the report.
    pub source_bytes: u64,
    /// The rest of the file: its description, and padding between parts.
    pub other_bytes: u64,
    /// Compiled graphs.
    pub entries: Vec<EntryReport>,
    /// Stored bytes of the weights that schemes can replace, of the dense model.
    pub layer_bytes_before: Option<u64>,
    /// Those of this one.
    pub layer_bytes_after: Option<u64>,
    /// The error on samples that were held out.
    pub held_out: Option<ErrorMeasure>,
    /// The plan as TOML; `None` in a stripped artifact.
    pub plan: Option<String>,
}

/// A compiled graph.
#[derive(Clone, Debug, Serialize)]
pub struct EntryReport {
    /// Values of the dimensions that have one.
    pub dims: BTreeMap<String, i64>,
    /// The values of those that have ranges: for each range of all of them together the least and the greatest.
    pub ranges: Vec<BTreeMap<String, (i64, i64)>>,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Code.
    pub sections: Vec<SectionReport>,
}

/// Code for one back end and target.
#[derive(Clone, Debug, Serialize)]
pub struct SectionReport {
    /// The back end.
    pub backend: String,
    /// The class of machines.
    pub target: String,
    /// Architecture and system.
    pub machine: String,
    /// Steps of the program.
    pub steps: usize,
    /// Memory for intermediate results.
    pub arena_bytes: usize,
    /// Size of the code.
    pub code_bytes: usize,
    /// What each kernel of a device takes of it, in the order in which they are launched; `None` for processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Vec<KernelReport>>,
}

/// What the launch of a kernel takes of a device, and the least that it costs, by data sheets: nothing of it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct KernelReport {
    /// The number of its step.
    pub step: usize,
    /// What runs: a kernel call, or `loops`.
    pub work: String,
    /// The nodes that the step stands for.
    pub label: String,
    /// Blocks of the launch.
    pub blocks: usize,
    /// Threads of a block.
    pub threads: usize,
    /// Registers of a thread: as ptxas counts them, or the most that there can be.
    pub registers: usize,
    /// Whether ptxas counted the registers.
    pub registers_are_counted: bool,
    /// Bytes of shared memory of a block.
    pub shared_bytes: usize,
    /// Warps that are on a multiprocessor at once; so many at least where registers were not counted.
    pub resident_warps: usize,
    /// The most that it holds.
    pub most_warps: usize,
    /// Multiplications and additions of the step for each byte that it touches.
    pub flops_per_byte: f64,
    /// What bounds the time of the step: `memory` or `operations`.
    pub bound_by: &'static str,
    /// The least milliseconds of the step's bytes and operations, on f32.
    pub least_ms: f64,
}

/// What is in an ONNX file. Operations are counted for the values of the dimensions.
///
/// # Errors
/// A file that cannot be imported, and dimensions that the model does not have.
pub fn inspect_model(path: &Path, dims: &[(String, Vec<i64>)]) -> Result<ModelReport, Error> {
    let model = OnnxModel::open(path)?;
    let graph = margay_onnx::import(&model)?;
    let source = Model::new(graph, &path.display().to_string(), &mut Dump::none())?;
    let g = &source.graph;
    let floats = |p: &&margay_ir::Payload| p.tensor().dtype().is_float();
    let elements: BTreeMap<String, usize> =
        g.payloads().into_iter().filter(floats).map(|p| (p.key().to_string(), p.tensor().len())).collect();
    let layers = Layers::of(g);
    let (inputs, outputs) = ports_of_graph(g);
    let (binding, is_closed) = bound(g, dims)?;
    let program = program(g, &binding);
    // An extent of 1 that nobody asked for may be one that the model cannot have.
    let program = if is_closed { Some(program?) } else { program.ok() };
    Ok(ModelReport {
        path: path.display().to_string(),
        hash: source.hash.clone(),
        inputs,
        outputs,
        dimensions: g.symbols().iter().map(ToString::to_string).collect(),
        nodes: model.graph.nodes.len(),
        canonical_nodes: g
            .order()
            .iter()
            .filter(|n| !matches!(g.op(**n), Op::Const(_) | Op::Input(_)))
            .count(),
        parameters: elements.values().sum(),
        constant_bytes: layers.constant_bytes,
        stored_constant_bytes: program.as_ref().map(Program::constant_bytes),
        layers: layers.count,
        layer_bytes: layers.bytes,
        stored_layer_bytes: program.as_ref().map(Program::packed_bytes),
        flops: program.filter(|_| is_closed).map(|p| p.flops()),
    })
}

/// The values of all symbols, which are 1 for those that are not given; and whether all were.
fn bound(g: &Graph, dims: &[(String, Vec<i64>)]) -> Result<(Binding, bool), Error> {
    let symbols = g.symbols();
    let named = || symbols.iter().chain(g.guards().iter().map(|guard| &guard.symbol));
    let mut binding = Binding::new();
    for (name, values) in dims {
        let (Some(symbol), [value]) = (named().find(|s| is_named(s, name)), values.as_slice()) else {
            let known: Vec<String> = named().map(|s| format!("`{s}`")).collect();
            let message = format!("`--dim {name}`: expected one value of one of {}", known.join(", "));
            return Err(Error::Options(message));
        };
        binding.insert(symbol.clone(), *value);
    }
    g.resolve_guards(&mut binding).map_err(|e| Error::Options(e.to_string()))?;
    let open: Vec<_> = symbols.into_iter().filter(|s| !binding.contains_key(s)).collect();
    let is_closed = open.is_empty();
    binding.extend(open.into_iter().map(|s| (s, 1)));
    Ok((binding, is_closed))
}

/// What the model becomes for these extents on this machine.
fn program(g: &Graph, binding: &Binding) -> Result<Program, Error> {
    let backend = &*backend::native();
    let bound = build::bind(g, binding, backend, &mut Dump::none())?;
    Ok(margay_lower::lower(&bound, backend)?)
}

/// What is in an artifact. With the path of ptxas, it counts the registers of kernels for devices.
///
/// # Errors
/// A report that cannot be read, and a ptxas that fails.
pub fn inspect_artifact(artifact: &Artifact, ptxas: Option<&Path>) -> Result<ArtifactReport, Error> {
    let description = artifact.description();
    let stripped = description.sources.is_empty();
    let report = if stripped { None } else { Some(report_of(artifact)?) };
    let plan = artifact.source("plan.toml")?.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let used: BTreeSet<usize> = description
        .entries
        .iter()
        .flat_map(|e| &e.sections)
        .flat_map(|s| s.parts.constants.iter().copied())
        .collect();
    let (mut constant_bytes, mut graph_constant_bytes) = (0, 0);
    for (i, constant) in description.constants.iter().enumerate() {
        let bytes = constant.range.len() as u64;
        *if used.contains(&i) { &mut constant_bytes } else { &mut graph_constant_bytes } += bytes;
    }
    let code_bytes = artifact.code().len() as u64;
    let source_bytes = description.sources.values().map(|piece| piece.range.len() as u64).sum();
    let known = constant_bytes + graph_constant_bytes + code_bytes + source_bytes;
    Ok(ArtifactReport {
        path: artifact.path().display().to_string(),
        producer: description.producer.clone(),
        model: description.model.clone(),
        file_bytes: artifact.file_bytes(),
        constant_bytes,
        graph_constant_bytes,
        code_bytes,
        source_bytes,
        other_bytes: (artifact.file_bytes() as u64).saturating_sub(known),
        entries: description
            .entries
            .iter()
            .map(|e| entry_report(e, artifact, ptxas))
            .collect::<Result<_, _>>()?,
        layer_bytes_before: report.as_ref().map(|r| r.bytes_before),
        layer_bytes_after: report.as_ref().map(|r| r.bytes_after),
        held_out: report.and_then(|r| r.held_out),
        plan,
    })
}

fn entry_report(entry: &Entry, artifact: &Artifact, ptxas: Option<&Path>) -> Result<EntryReport, Error> {
    let ports = |ports: &[margay_loops::Port], shapes: Vec<Vec<String>>| {
        let each = ports.iter().zip(shapes);
        each.map(|(p, s)| Port { name: p.name.clone(), r#type: format!("{}[{}]", p.dtype, s.join(", ")) })
            .collect()
    };
    let (parts, (inputs, outputs)) = (&entry.parts, entry.parts.shapes());
    let open = |name: &String| parts.open.symbols.iter().any(|s| **s == **name);
    let named = |ranges: &margay_loops::open::Ranges| {
        parts.open.symbols.iter().map(ToString::to_string).zip(ranges.iter().copied()).collect()
    };
    let sections = entry.sections.iter().map(|section| section_report(section, artifact, ptxas));
    Ok(EntryReport {
        dims: parts.symbols.iter().filter(|(name, _)| !open(name)).map(|(s, v)| (s.clone(), *v)).collect(),
        ranges: parts.open.values.iter().map(named).collect(),
        inputs: ports(&parts.inputs, inputs),
        outputs: ports(&parts.outputs, outputs),
        sections: sections.collect::<Result<_, _>>()?,
    })
}

fn section_report(
    section: &CodeSection,
    artifact: &Artifact,
    ptxas: Option<&Path>,
) -> Result<SectionReport, Error> {
    let parts = &section.parts;
    let uses = backend::launch_uses(artifact, section, ptxas)?;
    Ok(SectionReport {
        backend: parts.backend.clone(),
        target: parts.target.clone(),
        machine: parts.machine.clone(),
        steps: parts.steps.len(),
        arena_bytes: parts.arena_bytes,
        code_bytes: section.code.len(),
        kernels: uses.map(|uses| kernel_reports(section, &uses)).transpose()?,
    })
}

/// The launches of all steps of code for a device.
fn kernel_reports(section: &CodeSection, uses: &[Vec<LaunchUse>]) -> Result<Vec<KernelReport>, Error> {
    let parts = &section.parts;
    let backend = backend::of_section(section)?;
    let mut reports = Vec::new();
    for (step, (note, launches)) in parts.steps.iter().zip(uses).enumerate() {
        let seconds = |flops, bytes| backend::least_seconds(&*backend, flops, bytes).unwrap_or_default();
        let (computed, moved) = (seconds(note.flops, 0), seconds(0, note.bytes));
        reports.extend(launches.iter().map(|launch| KernelReport {
            step,
            work: note.work.clone(),
            label: note.label.clone(),
            blocks: launch.blocks,
            threads: launch.block.threads,
            registers: launch.block.registers,
            registers_are_counted: launch.is_counted,
            shared_bytes: launch.block.shared_bytes,
            resident_warps: launch.resident_warps,
            most_warps: launch.most_warps,
            flops_per_byte: note.flops as f64 / note.bytes.max(1) as f64,
            bound_by: if computed > moved { "operations" } else { "memory" },
            least_ms: 1e3 * computed.max(moved),
        }));
    }
    Ok(reports)
}
