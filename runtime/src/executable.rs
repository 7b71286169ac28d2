//! From an artifact, or the parts of one, to code on a device.

use std::ops::Range;
use std::sync::Arc;

use margay_artifact::{Artifact, CodeSection, Description, Entry, Parts};
use margay_loops::Port;

use crate::device::{Device, Image, Module, Weights};
use crate::states::places_of;
use crate::{CpuDevice, RunError};

/// Code on a device that is ready to run, and its constants. Cloning is cheap; sessions share it.
#[derive(Clone, Debug)]
pub struct Executable {
    contents: Arc<Contents>,
    device: Arc<dyn Device>,
    /// The section of each entry that the device runs.
    sections: Arc<Vec<usize>>,
    module: Arc<dyn Module>,
    ports: Arc<Vec<PortAreas>>,
    planned_bytes: usize,
}

/// What is loaded.
#[derive(Debug)]
struct Contents {
    description: Arc<Description>,
    /// The code section.
    code: Box<[u8]>,
    weights: Weights,
}

/// Where the inputs and outputs of an entry lie in the memory of a session.
#[derive(Debug)]
pub(crate) struct PortAreas {
    /// Where each input would lie in the staging area.
    pub(crate) inputs: Vec<Range<usize>>,
    /// Where each output lies in the output area.
    pub(crate) outputs: Vec<Range<usize>>,
}

impl Executable {
    /// Loads the code of an artifact for the processor. **It is run as it is: load only what you trust.**
    ///
    /// Constants stay in the mapped file. Their hashes are not checked, but for those of
    /// [positions](Artifact::verify_positions); see [`Artifact::verify_weights`].
    pub fn from_artifact(artifact: &Artifact) -> Result<Executable, RunError> {
        Executable::from_artifact_on(artifact, &[Arc::new(CpuDevice)])
    }

    /// Loads the code of an artifact on the first of some devices that all entries have code for.
    pub fn from_artifact_on(
        artifact: &Artifact,
        devices: &[Arc<dyn Device>],
    ) -> Result<Executable, RunError> {
        artifact.verify_positions()?;
        let (map, range) = artifact.weights_map();
        let description = Arc::clone(artifact.description());
        let weights = Weights { map, range };
        Executable::load(Contents { description, code: artifact.code().into(), weights }, devices)
    }

    /// Whether a device accepts code of an artifact for every entry, as it has to where the artifact is loaded on it.
    ///
    /// # Errors
    /// What the device lacks; [`RunError::NoCode`] where an entry has no code for its back end.
    pub fn is_accepted(artifact: &Artifact, device: &dyn Device) -> Result<(), RunError> {
        sections_for(&artifact.description().entries, device).map(drop)
    }

    /// Loads code that was compiled in this process for the processor.
    pub fn from_parts(parts: Parts) -> Result<Executable, RunError> {
        Executable::from_parts_on(parts, &[Arc::new(CpuDevice)])
    }

    /// Loads code that was compiled in this process, on the first of some devices that all entries have code for.
    pub fn from_parts_on(parts: Parts, devices: &[Arc<dyn Device>]) -> Result<Executable, RunError> {
        let range = 0..parts.weights.len();
        let weights = Weights { map: Arc::new(parts.weights), range };
        let description = Arc::new(parts.description);
        Executable::load(Contents { description, code: parts.code.into(), weights }, devices)
    }

    fn load(contents: Contents, devices: &[Arc<dyn Device>]) -> Result<Executable, RunError> {
        let mut refused = None;
        for device in devices {
            match sections_for(&contents.description.entries, &**device) {
                Ok(sections) => return Executable::on(Arc::new(contents), device, Arc::new(sections), false),
                // What a device lacks tells more than that there is no code for another.
                Err(error) if refused.is_none() || !matches!(error, RunError::NoCode { .. }) => {
                    refused = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(refused.unwrap_or_else(|| RunError::NoCode { backend: "none".into(), found: String::new() }))
    }

    fn on(
        contents: Arc<Contents>,
        device: &Arc<dyn Device>,
        sections: Arc<Vec<usize>>,
        huge_pages: bool,
    ) -> Result<Executable, RunError> {
        let entries = &contents.description.entries;
        let chosen = entries.iter().zip(&*sections).map(|(e, &s)| &e.sections[s]);
        let align = device.buffer_align();
        let ports: Vec<PortAreas> = entries.iter().map(|e| PortAreas::of(e, align)).collect();
        let chosen: Vec<&CodeSection> = chosen.collect();
        let planned_bytes = planned_bytes(&contents, &chosen, &ports, align);
        let image = Image {
            sections: chosen.iter().map(|s| (*s, &contents.code[s.code.clone()])).collect(),
            weights: contents.weights.clone(),
            huge_pages,
        };
        let module = device.load(&image).map_err(|error| error.of_all(planned_bytes))?;
        let (device, ports) = (Arc::clone(device), Arc::new(ports));
        Ok(Executable { contents, device, sections, module, ports, planned_bytes })
    }

    /// The same with its constants, and later the memory of its sessions, in huge pages where the system has some to
    /// give: fewer address translations where products stream through large weights, for a copy of the constants.
    pub fn in_huge_pages(&self) -> Result<Executable, RunError> {
        Executable::on(Arc::clone(&self.contents), &self.device, Arc::clone(&self.sections), true)
    }

    /// What the executable was compiled from and for.
    pub fn description(&self) -> &Description {
        &self.contents.description
    }

    /// The compiled graphs.
    pub fn entries(&self) -> &[Entry] {
        &self.contents.description.entries
    }

    /// The code that runs, of every entry.
    pub fn sections(&self) -> impl Iterator<Item = &CodeSection> {
        (0..self.sections.len()).map(|i| self.section(i))
    }

    /// Bytes of constants.
    pub fn weights_bytes(&self) -> usize {
        self.contents.weights.range.len()
    }

    /// Bytes of code.
    pub fn code_bytes(&self) -> usize {
        self.module.code_bytes()
    }

    /// Bytes that constants, and the intermediate results, states, inputs and outputs of a session take together, by the plan.
    pub fn planned_bytes(&self) -> usize {
        self.planned_bytes
    }

    /// The code of an entry.
    pub(crate) fn section(&self, index: usize) -> &CodeSection {
        &self.entries()[index].sections[self.sections[index]]
    }

    pub(crate) fn device(&self) -> &dyn Device {
        &*self.device
    }

    pub(crate) fn module(&self) -> &dyn Module {
        &*self.module
    }

    pub(crate) fn ports(&self) -> &[PortAreas] {
        &self.ports
    }
}

/// For every entry, the first section that a device accepts.
fn sections_for(entries: &[Entry], device: &dyn Device) -> Result<Vec<usize>, RunError> {
    let find = |entry: &Entry| {
        let mut refused = None;
        for (i, section) in entry.sections.iter().enumerate() {
            if section.parts.backend == device.backend() {
                match device.accepts(section) {
                    Ok(()) => return Ok(i),
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
        }
        let name = |s: &CodeSection| format!("`{}` of `{}`", s.parts.target, s.parts.backend);
        let found = || entry.sections.iter().map(name).collect::<Vec<_>>().join(", ");
        Err(refused.unwrap_or_else(|| RunError::NoCode { backend: device.backend().into(), found: found() }))
    };
    entries.iter().map(find).collect()
}

/// What a session takes besides code, with the constants: of every kind the most that an entry needs.
fn planned_bytes(contents: &Contents, sections: &[&CodeSection], ports: &[PortAreas], align: usize) -> usize {
    let end = |areas: &[Range<usize>]| areas.last().map_or(0, |a| a.end);
    let most = |of: &dyn Fn(&PortAreas) -> usize| ports.iter().map(of).max().unwrap_or(0);
    let arena = sections.iter().map(|s| s.parts.arena_bytes).max().unwrap_or(0);
    let places = most(&|p| end(&p.inputs)) + most(&|p| end(&p.outputs));
    // States that do not fit each other are told of when a session is made.
    let states = places_of(&contents.description.entries, align).map_or(0, |(_, bytes)| bytes);
    contents.weights.range.len() + arena + places + states
}

impl PortAreas {
    fn of(entry: &Entry, align: usize) -> PortAreas {
        let parts = &entry.parts;
        // States have memory of their own.
        let input = |i: usize| parts.carried.iter().all(|c| c.input != i);
        let output = |i: usize| parts.carried.iter().all(|c| c.output != i);
        PortAreas {
            inputs: areas(&parts.inputs, align, &input),
            outputs: areas(&parts.outputs, align, &output),
        }
    }
}

/// Aligned places one after the other for those of several tensors that need one; the others get no bytes.
fn areas(ports: &[Port], align: usize, needed: &dyn Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut end = 0;
    let place = |(i, port): (usize, &Port)| {
        let begin = usize::next_multiple_of(end, align);
        end = begin + if needed(i) { port.dtype.bytes() * port.shape.iter().product::<usize>() } else { 0 };
        begin..end
    };
    ports.iter().enumerate().map(place).collect()
}
