//! Graphs to code, for one value of every symbol.

use std::collections::BTreeSet;

use margay_artifact::{ArtifactBuilder, EntryParts, SectionParts, StepNote};
use margay_ir::{Graph, Remark, Value, verify::Stage};
use margay_loops::{Backend, Carried, Precision, Program};
use margay_lower::lower_carrying;
use margay_passes::{
    DrawSigns, FoldConstants, Pipeline, PipelineItem, Recompute, RoundOperands, StoreAs, StoreConstants,
    backward_nodes, bytes_of, saved,
};
use margay_runtime::Executable;
use margay_tensor::Binding;

use crate::{DriverError, Dump, backend};

/// The graph with its symbols bound, ready to be lowered for a back end.
pub fn bind(
    g: &Graph,
    binding: &Binding,
    backend: &dyn Backend,
    dump: &mut Dump,
) -> Result<Graph, DriverError> {
    let mut bound = g.clone();
    dump.run(&Pipeline::bind(binding, &backend.preferences()), &mut bound)?;
    Ok(bound)
}

/// The graph with its products with constants in a precision.
pub fn in_precision(g: Graph, precision: Precision, dump: &mut Dump) -> Result<Graph, DriverError> {
    let products = StoreAs::Precision(precision);
    Ok(stored(g, &StoreConstants { products, ..StoreConstants::default() }, dump)?.0)
}

/// What comes before constants are looked at that are to be stored in some way. Constants that a sketch puts side by side are
/// one constant before they are narrow; signs beside numbers as they are stay signs.
fn joining(storage: &StoreConstants) -> Vec<PipelineItem> {
    let mut steps = vec![PipelineItem::Run(Box::new(FoldConstants::default()))];
    if storage.products == StoreAs::Precision(Precision::F32) {
        steps.insert(0, PipelineItem::Run(Box::new(DrawSigns)));
    }
    steps
}

/// Makes constants those that [`stored`] will store.
pub fn joined(g: &mut Graph, storage: &StoreConstants, dump: &mut Dump) -> Result<(), DriverError> {
    dump.run(&Pipeline::new(joining(storage)), g)?;
    Ok(())
}

/// The graph with its constants stored in some way, and what was declined. Where all products are in bf16, their left
/// operands are too.
pub fn stored(
    mut g: Graph,
    storage: &StoreConstants,
    dump: &mut Dump,
) -> Result<(Graph, Vec<Remark>), DriverError> {
    if *storage == StoreConstants::default() {
        return Ok((g, Vec::new()));
    }
    let mut steps = joining(storage);
    steps.push(PipelineItem::Run(Box::new(storage.clone())));
    if storage.products == StoreAs::Precision(Precision::Bf16) {
        steps.push(PipelineItem::Run(Box::new(RoundOperands)));
    }
    let remarks = dump.run(&Pipeline::new(steps), &mut g)?;
    Ok((g, remarks))
}

/// Compiles a graph for one value of every symbol into an entry of an artifact. Returns the program, for reports.
pub fn add_entry<'b>(
    builder: &mut ArtifactBuilder<'b>,
    g: &Graph,
    binding: &Binding,
    backend: &'b dyn Backend,
    dump: &mut Dump,
) -> Result<Program, DriverError> {
    let bound = bind(g, binding, backend, dump)?;
    add_bound_entry(builder, &bound, binding, backend, &[], dump)
}

/// How a graph is compiled that does one step of many.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StepForm {
    /// Inputs that are states, each with the output that holds its next value. The session that runs the step keeps
    /// them, and updates them in place.
    pub states: Vec<(String, String)>,
    /// The most bytes that may be kept between the forward and the backward pass; the rest is computed twice. `None`:
    /// everything is kept.
    pub max_saved_bytes: Option<u64>,
}

/// A step that is ready to run.
pub struct CompiledStep {
    /// The code.
    pub executable: Executable,
    /// What is kept between the forward and the backward pass, where that is most: the nodes that compute it, and bytes.
    pub saved: Vec<(String, u64)>,
}

/// As [`add_entry`], of a graph with states. Returns what is kept between the forward and the backward pass, too.
pub fn add_step_entry<'b>(
    builder: &mut ArtifactBuilder<'b>,
    g: &Graph,
    binding: &Binding,
    backend: &'b dyn Backend,
    form: &StepForm,
    dump: &mut Dump,
) -> Result<(Program, Vec<(String, u64)>), DriverError> {
    let mut bound = bind(g, binding, backend, dump)?;
    if let Some(max_saved_bytes) = form.max_saved_bytes {
        let steps = vec![
            PipelineItem::Run(Box::new(Recompute { max_saved_bytes })),
            PipelineItem::Reach(Stage::Lowerable),
        ];
        dump.run(&Pipeline::new(steps), &mut bound)?;
    }
    let name = |v: Value| bound.node(v.node).origin.name().to_string();
    let saved = saved(&bound, &backward_nodes(&bound));
    let saved: Vec<(String, u64)> = saved.into_iter().map(|v| (name(v), bytes_of(&bound, v))).collect();
    dump.text(&format!("saved{}.txt", suffix(binding)), &saved_text(&saved));
    let program = add_bound_entry(builder, &bound, binding, backend, &form.states, dump)?;
    Ok((program, saved))
}

fn saved_text(saved: &[(String, u64)]) -> String {
    let total: u64 = saved.iter().map(|(_, bytes)| bytes).sum();
    let lines: String = saved.iter().map(|(name, bytes)| format!("{bytes:>12}  {name}\n")).collect();
    format!("{lines}{total:>12}  bytes kept between the forward and the backward pass\n")
}

/// Compiles a graph whose symbols are bound.
fn add_bound_entry<'b>(
    builder: &mut ArtifactBuilder<'b>,
    bound: &Graph,
    binding: &Binding,
    backend: &'b dyn Backend,
    states: &[(String, String)],
    dump: &mut Dump,
) -> Result<Program, DriverError> {
    let program = lower_carrying(bound, backend, &carried(bound, states)?)?;
    add_program(builder, &program, binding, backend, dump)?;
    Ok(program)
}

/// Compiles a program, open or closed, into an entry. `binding` has the values of the symbols, of open ones the greatest.
pub(crate) fn add_program<'b>(
    builder: &mut ArtifactBuilder<'b>,
    program: &Program,
    binding: &Binding,
    backend: &'b dyn Backend,
    dump: &mut Dump,
) -> Result<(), DriverError> {
    dump.text(&format!("program{}.txt", suffix(binding)), &program.to_string());
    let mut offsets = Vec::new();
    let mut constants = Vec::new();
    for c in &program.constants {
        let placed = builder.constants.add(c, backend);
        offsets.push(placed.offset);
        constants.push(placed.index);
    }
    let code = backend.compile(program, &offsets)?;
    let entry = EntryParts {
        symbols: binding.iter().map(|(s, v)| (s.to_string(), *v)).collect(),
        open: program.open.clone(),
        inputs: program.inputs.clone(),
        outputs: program.outputs.clone(),
        carried: program.carried.clone(),
        counted: program.counted.clone(),
    };
    let section = SectionParts {
        backend: backend.name().to_owned(),
        target: backend.target().to_owned(),
        machine: code.machine,
        arena_bytes: program.arena_bytes,
        steps: StepNote::all(program, &code.regions),
        constants,
    };
    builder.add_code(entry, section, &code.bytes);
    Ok(())
}

/// States by position.
fn carried(g: &Graph, states: &[(String, String)]) -> Result<Vec<Carried>, DriverError> {
    let position = |state: &(String, String)| {
        let input = g.inputs().iter().position(|n| g.node(*n).origin.name() == state.0);
        let output = g.outputs().iter().position(|o| *o.name == *state.1);
        match (input, output) {
            (Some(input), Some(output)) => Ok(Carried { input, output }),
            (None, _) => Err(DriverError::Options(format!("the graph has no input `{}`", state.0))),
            (_, None) => Err(DriverError::Options(format!("the graph has no output `{}`", state.1))),
        }
    };
    states.iter().map(position).collect()
}

fn suffix(binding: &Binding) -> String {
    binding.iter().fold(String::new(), |s, (name, v)| format!("{s}-{name}{v}"))
}

/// Compiles a graph for one value of every symbol, to run in this process.
pub fn jit(g: &Graph, binding: &Binding, backend: &dyn Backend) -> Result<Executable, DriverError> {
    let mut builder = ArtifactBuilder::new(g.name());
    add_entry(&mut builder, g, binding, backend, &mut Dump::none())?;
    backend::executable(builder.into_parts()?, backend)
}

/// Compiles a step for some values of every symbol, to run in this process. States must not depend on them.
pub fn jit_step(
    g: &Graph,
    bindings: &BTreeSet<Binding>,
    backend: &dyn Backend,
    form: &StepForm,
) -> Result<CompiledStep, DriverError> {
    let mut builder = ArtifactBuilder::new(g.name());
    let mut saved = Vec::new();
    for binding in bindings {
        let (_, found) = add_step_entry(&mut builder, g, binding, backend, form, &mut Dump::none())?;
        let bytes = |all: &[(String, u64)]| all.iter().map(|(_, bytes)| bytes).sum::<u64>();
        if bytes(&found) >= bytes(&saved) {
            saved = found;
        }
    }
    Ok(CompiledStep { executable: backend::executable(builder.into_parts()?, backend)?, saved })
}

/// Whether a graph compiles, tried with these values and 1 for every other open dimension; no constant is packed. Where it
/// does not type with what was not given, nothing is said.
pub fn try_compile(g: &Graph, given: &Binding) -> Result<(), DriverError> {
    let value = |s: &margay_tensor::Symbol| given.get(s).copied().unwrap_or(1);
    let binding: Binding = g.symbols().into_iter().map(|s| (s.clone(), value(&s))).collect();
    let backend = &*backend::native();
    match bind(g, &binding, backend, &mut Dump::none()) {
        Ok(bound) => {
            let mut builder = ArtifactBuilder::new(g.name());
            add_bound_entry(&mut builder, &bound, &binding, backend, &[], &mut Dump::none()).map(|_| ())
        }
        Err(error) if binding.keys().all(|s| given.contains_key(s)) => Err(error),
        Err(_) => Ok(()),
    }
}
