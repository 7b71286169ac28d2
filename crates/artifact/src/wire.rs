//! The description on file: protobuf messages, and what is checked when they are read.
//!
//! Field numbers are never used again for something else. Maps are ordered, so that the same description gives the
//! same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use margay_loops::{Carried, Counted, Open, Port, SizeId, parse_open};
use margay_tensor::{DType, Storage};
use prost::Message;

use crate::header::{ALIGN, checked_range};
use crate::{
    CodeSection, Description, Entry, EntryParts, Layout, SectionParts, SourcePiece, StepNote, StoredConstant,
};

#[derive(Clone, PartialEq, Message)]
struct DescriptionMessage {
    #[prost(string, tag = "1")]
    producer: String,
    #[prost(string, tag = "2")]
    model: String,
    // 3 and 4 were the one target of the file up to version 3.
    #[prost(message, repeated, tag = "5")]
    constants: Vec<ConstantMessage>,
    #[prost(message, repeated, tag = "6")]
    entries: Vec<EntryMessage>,
    #[prost(btree_map = "string, message", tag = "7")]
    sources: BTreeMap<String, PieceMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct ConstantMessage {
    // A single name until version 2, which reads as a list of one.
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
    #[prost(bytes = "vec", tag = "2")]
    tensor: Vec<u8>,
    #[prost(string, tag = "3")]
    dtype: String,
    #[prost(uint64, repeated, tag = "4")]
    shape: Vec<u64>,
    #[prost(string, optional, tag = "5")]
    layout: Option<String>,
    #[prost(message, optional, tag = "6")]
    piece: Option<PieceMessage>,
    #[prost(string, optional, tag = "7")]
    packed_by: Option<String>,
    #[prost(string, tag = "8")]
    storage: String,
}

#[derive(Clone, PartialEq, Message)]
struct PieceMessage {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(uint64, tag = "2")]
    bytes: u64,
    #[prost(bytes = "vec", tag = "3")]
    hash: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct EntryMessage {
    #[prost(btree_map = "string, int64", tag = "1")]
    symbols: BTreeMap<String, i64>,
    #[prost(message, repeated, tag = "2")]
    inputs: Vec<PortMessage>,
    #[prost(message, repeated, tag = "3")]
    outputs: Vec<PortMessage>,
    // 4 to 14 described the code up to version 3.
    #[prost(message, repeated, tag = "15")]
    carried: Vec<CarriedMessage>,
    #[prost(message, repeated, tag = "16")]
    sections: Vec<SectionMessage>,
    // The text of what is open; empty where nothing is.
    #[prost(string, tag = "17")]
    open: String,
    #[prost(message, repeated, tag = "18")]
    counted: Vec<CountedMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct CountedMessage {
    #[prost(uint64, tag = "1")]
    output: u64,
    #[prost(uint64, tag = "2")]
    axis: u64,
    #[prost(uint64, tag = "3")]
    count: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SectionMessage {
    #[prost(string, tag = "1")]
    backend: String,
    #[prost(string, tag = "2")]
    target: String,
    #[prost(string, tag = "3")]
    machine: String,
    #[prost(uint64, tag = "4")]
    arena_bytes: u64,
    #[prost(message, repeated, tag = "5")]
    steps: Vec<StepMessage>,
    #[prost(uint64, repeated, tag = "6")]
    constants: Vec<u64>,
    #[prost(uint64, tag = "7")]
    code_offset: u64,
    #[prost(uint64, tag = "8")]
    code_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct CarriedMessage {
    #[prost(uint64, tag = "1")]
    input: u64,
    #[prost(uint64, tag = "2")]
    output: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StepMessage {
    #[prost(string, tag = "1")]
    label: String,
    #[prost(string, tag = "2")]
    work: String,
    #[prost(uint64, tag = "3")]
    flops: u64,
    #[prost(uint64, tag = "4")]
    bytes: u64,
    #[prost(uint64, tag = "5")]
    regions: u64,
    #[prost(string, repeated, tag = "6")]
    requirements: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct PortMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    dtype: String,
    #[prost(uint64, repeated, tag = "3")]
    shape: Vec<u64>,
}

/// The bytes of a description.
pub(crate) fn encode(d: &Description) -> Vec<u8> {
    DescriptionMessage {
        producer: d.producer.clone(),
        model: d.model.clone(),
        constants: d.constants.iter().map(constant_message).collect(),
        entries: d.entries.iter().map(entry_message).collect(),
        sources: d.sources.iter().map(|(name, p)| (name.clone(), piece_message(&p.range, &p.hash))).collect(),
    }
    .encode_to_vec()
}

fn words(numbers: &[usize]) -> Vec<u64> {
    numbers.iter().map(|&n| n as u64).collect()
}

fn piece_message(range: &Range<usize>, hash: &[u8; 32]) -> PieceMessage {
    PieceMessage { offset: range.start as u64, bytes: range.len() as u64, hash: hash.to_vec() }
}

fn constant_message(c: &StoredConstant) -> ConstantMessage {
    ConstantMessage {
        names: c.names.clone(),
        tensor: c.tensor.to_vec(),
        dtype: c.dtype.name().to_owned(),
        shape: words(&c.shape),
        layout: c.layout.as_ref().map(|l| l.name.clone()),
        packed_by: c.layout.as_ref().map(|l| l.backend.clone()),
        piece: Some(piece_message(&c.range, &c.hash)),
        storage: c.storage.to_string(),
    }
}

fn port_message(p: &Port) -> PortMessage {
    PortMessage { name: p.name.clone(), dtype: p.dtype.name().to_owned(), shape: words(&p.shape) }
}

fn step_message(s: &StepNote) -> StepMessage {
    StepMessage {
        label: s.label.clone(),
        work: s.work.clone(),
        flops: s.flops,
        bytes: s.bytes,
        regions: s.regions as u64,
        requirements: s.requirements.clone(),
    }
}

fn entry_message(e: &Entry) -> EntryMessage {
    let parts = &e.parts;
    EntryMessage {
        symbols: parts.symbols.clone(),
        inputs: parts.inputs.iter().map(port_message).collect(),
        outputs: parts.outputs.iter().map(port_message).collect(),
        carried: parts
            .carried
            .iter()
            .map(|c| CarriedMessage { input: c.input as u64, output: c.output as u64 })
            .collect(),
        counted: parts.counted.iter().map(counted_message).collect(),
        sections: e.sections.iter().map(section_message).collect(),
        open: if parts.open.is_closed() { String::new() } else { parts.open.to_text() },
    }
}

fn counted_message(c: &Counted) -> CountedMessage {
    CountedMessage { output: c.output as u64, axis: c.axis as u64, count: c.count as u64 }
}

fn section_message(s: &CodeSection) -> SectionMessage {
    let parts = &s.parts;
    SectionMessage {
        backend: parts.backend.clone(),
        target: parts.target.clone(),
        machine: parts.machine.clone(),
        arena_bytes: parts.arena_bytes as u64,
        steps: parts.steps.iter().map(step_message).collect(),
        constants: words(&parts.constants),
        code_offset: s.code.start as u64,
        code_bytes: s.code.len() as u64,
    }
}

/// What binds a section of code to what a description says of it and of its entry: types of inputs and outputs, sizes, memory,
/// steps, places of its constants, and the length of the code. It lies in front of the code.
///
/// # Panics
/// If the section reads a constant that is not there.
pub(crate) fn seal(
    entry: &EntryParts,
    section: &CodeSection,
    constants: &[StoredConstant],
) -> [u8; SEAL_BYTES] {
    // Where the code lies may change.
    let section = CodeSection { parts: section.parts.clone(), code: 0..section.code.len() };
    let ranges = section.parts.constants.iter().map(|&c| &constants[c].range);
    let places: Vec<u8> =
        ranges.flat_map(|r| [r.start as u64, r.end as u64]).flat_map(u64::to_le_bytes).collect();
    let entry = Entry { parts: entry.clone(), sections: vec![section] };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&entry_message(&entry).encode_to_vec());
    hasher.update(&places);
    *hasher.finalize().as_bytes()
}

/// Size of a [`seal`].
pub(crate) const SEAL_BYTES: usize = 32;

/// Sizes of the sections that a description refers to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) code: usize,
    pub(crate) source: usize,
    pub(crate) weights: usize,
}

/// Reads a description. Every range and position in the result is valid, every size fits the address space.
pub(crate) fn decode(bytes: &[u8], limits: Limits) -> Result<Description, String> {
    let message = DescriptionMessage::decode(bytes).map_err(|e| format!("description: {e}"))?;
    let constants = message
        .constants
        .into_iter()
        .enumerate()
        .map(|(i, c)| constant(c, limits).map_err(|problem| format!("constant {i}: {problem}")))
        .collect::<Result<Vec<_>, _>>()?;
    let entries = message
        .entries
        .into_iter()
        .enumerate()
        .map(|(i, e)| entry(e, limits, constants.len()).map_err(|problem| format!("entry {i}: {problem}")))
        .collect::<Result<Vec<_>, _>>()?;
    let sources = message
        .sources
        .into_iter()
        .map(|(name, p)| match piece(Some(p), limits.source) {
            Ok((range, hash)) => Ok((name, SourcePiece { range, hash })),
            Err(problem) => Err(format!("source `{name}`: {problem}")),
        })
        .collect::<Result<BTreeMap<_, _>, _>>()?;
    Ok(Description { producer: message.producer, model: message.model, constants, entries, sources })
}

fn size(what: &str, n: u64) -> Result<usize, String> {
    match usize::try_from(n) {
        Ok(n) if n <= isize::MAX as usize / 2 => Ok(n),
        _ => Err(format!("{what} of {n} is more than memory can hold")),
    }
}

fn piece(message: Option<PieceMessage>, limit: usize) -> Result<(Range<usize>, [u8; 32]), String> {
    let p = message.ok_or("no place")?;
    let range = checked_range(p.offset, p.bytes, limit)
        .ok_or_else(|| format!("{} bytes at {} of a section of {limit}", p.bytes, p.offset))?;
    Ok((range, hash(&p.hash)?))
}

fn hash(bytes: &[u8]) -> Result<[u8; 32], String> {
    bytes.try_into().map_err(|_| format!("a hash of {} bytes, expected 32", bytes.len()))
}

/// An element type and extents whose product fits.
fn tensor_type(dtype: &str, shape: &[u64]) -> Result<(DType, Vec<usize>, usize), String> {
    let dtype = DType::from_name(dtype).ok_or_else(|| format!("unknown element type `{dtype}`"))?;
    let shape: Vec<usize> = shape.iter().map(|&d| size("an extent", d)).collect::<Result<_, _>>()?;
    let bytes = shape
        .iter()
        .try_fold(dtype.bytes(), |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize / 2)
        .ok_or_else(|| format!("shape {shape:?} is more than memory can hold"))?;
    Ok((dtype, shape, bytes))
}

fn constant(message: ConstantMessage, limits: Limits) -> Result<StoredConstant, String> {
    let (dtype, shape, _) = tensor_type(&message.dtype, &message.shape)?;
    let storage =
        Storage::parse(&message.storage).ok_or_else(|| format!("`{}` is not a storage", message.storage))?;
    storage.check(dtype, &shape).map_err(|e| e.to_string())?;
    let bytes = storage.layout(&shape).bytes;
    let (range, bytes_hash) = piece(message.piece, limits.weights)?;
    if !range.start.is_multiple_of(ALIGN) {
        return Err(format!("begins at {}, which is not aligned", range.start));
    }
    let layout = match (message.layout, message.packed_by) {
        (Some(name), Some(backend)) => Some(Layout { backend, name }),
        (None, None) => None,
        _ => return Err("a layout without a back end, or the other way round".into()),
    };
    if layout.is_some() && !may_hold(range.len(), &storage.elements_shape(&shape)) {
        return Err(format!("{} packed bytes cannot hold {dtype}{shape:?}", range.len()));
    }
    if layout.is_none() && range.len() != bytes {
        return Err(format!("{} bytes, expected {bytes} of {dtype}{shape:?}", range.len()));
    }
    Ok(StoredConstant {
        storage,
        names: message.names,
        tensor: hash(&message.tensor)?,
        dtype,
        shape,
        layout,
        range,
        hash: bytes_hash,
    })
}

/// Whether so many packed bytes may hold a tensor of this shape: every layout has at least one bit for an element. The extents of
/// an empty tensor are no larger than somebody would write, for whoever unpacks it goes over some of them.
fn may_hold(bytes: usize, shape: &[usize]) -> bool {
    const LARGEST_EMPTY: usize = 1 << 24;
    let most = if shape.contains(&0) { LARGEST_EMPTY } else { bytes.saturating_mul(8) };
    let elements = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent.max(1)));
    elements.is_some_and(|elements| elements <= most)
}

fn ports(messages: Vec<PortMessage>) -> Result<Vec<Port>, String> {
    let (mut ports, mut total) = (Vec::new(), 0u64);
    for p in messages {
        let (dtype, shape, bytes) =
            tensor_type(&p.dtype, &p.shape).map_err(|e| format!("`{}`: {e}", p.name))?;
        total = total.saturating_add((bytes + ALIGN) as u64);
        ports.push(Port { name: p.name, dtype, shape });
    }
    size("memory for inputs or outputs", total)?;
    let mut seen = BTreeSet::new();
    match ports.iter().find(|p| !seen.insert(&p.name)) {
        Some(twice) => Err(format!("two ports are called `{}`", twice.name)),
        None => Ok(ports),
    }
}

fn step(message: StepMessage) -> Result<StepNote, String> {
    let StepMessage { label, work, flops, bytes, regions, requirements } = message;
    Ok(StepNote { label, work, flops, bytes, regions: size("a number of regions", regions)?, requirements })
}

/// What an entry leaves open: every open axis is one of its port, and has the greatest extent there.
fn open(text: &str, inputs: &[Port], outputs: &[Port]) -> Result<Open, String> {
    if text.is_empty() {
        return Ok(Open::default());
    }
    let open = parse_open(text)?;
    // Whoever compiles compares all of them.
    const MAX_VALUES: u64 = 1 << 16;
    let width = |(least, most): &(i64, i64)| most.abs_diff(*least).saturating_add(1);
    let count = |ranges: &Vec<(i64, i64)>| ranges.iter().map(width).fold(1, u64::saturating_mul);
    let values = open.values.iter().map(count).fold(0, u64::saturating_add);
    if values > MAX_VALUES {
        return Err(format!("{values} values are open, expected at most {MAX_VALUES}"));
    }
    let fits = |ports: &[Port], all: &[Vec<(usize, SizeId)>]| {
        let axis = |port: &Port, (axis, size): &(usize, SizeId)| {
            let bounds = open.sizes.get(size.0 as usize);
            port.shape.get(*axis).is_some_and(|&n| bounds.is_some_and(|s| s.least >= 0 && s.most == n as i64))
        };
        ports.len() == all.len()
            && ports.iter().zip(all).all(|(port, axes)| axes.iter().all(|a| axis(port, a)))
    };
    match !open.is_closed() && fits(inputs, &open.inputs) && fits(outputs, &open.outputs) {
        true => Ok(open),
        false => Err("its open axes are not those of its ports".to_owned()),
    }
}

/// Pairs of ports of one type, none of them twice.
fn carried(messages: &[CarriedMessage], inputs: &[Port], outputs: &[Port]) -> Result<Vec<Carried>, String> {
    let (mut free_inputs, mut free_outputs) = (vec![true; inputs.len()], vec![true; outputs.len()]);
    let pair = |m: &CarriedMessage| -> Result<Carried, String> {
        let (Ok(input), Ok(output)) = (usize::try_from(m.input), usize::try_from(m.output)) else {
            return Err(format!("output {} is carried to input {}", m.output, m.input));
        };
        let free = |all: &mut [bool], at: usize| all.get_mut(at).is_some_and(std::mem::take);
        let same = |i: &Port, o: &Port| i.dtype == o.dtype && i.shape == o.shape;
        if free(&mut free_inputs, input)
            && free(&mut free_outputs, output)
            && same(&inputs[input], &outputs[output])
        {
            Ok(Carried { input, output })
        } else {
            Err(format!("output {output} is carried to input {input}"))
        }
    };
    messages.iter().map(pair).collect()
}

/// Axes of outputs, each with the number that another output says.
fn counted(messages: &[CountedMessage], outputs: &[Port]) -> Result<Vec<Counted>, String> {
    let one = |m: &CountedMessage| {
        let [output, axis, count] =
            [m.output, m.axis, m.count].map(|v| usize::try_from(v).unwrap_or(usize::MAX));
        let has_axis = outputs.get(output).is_some_and(|port| axis < port.shape.len());
        let single = |port: &Port| port.dtype == DType::I64 && port.shape.is_empty();
        match has_axis && output != count && outputs.get(count).is_some_and(single) {
            true => Ok(Counted { output, axis, count }),
            false => Err(format!("axis {axis} of output {output} is counted by output {count}")),
        }
    };
    messages.iter().map(one).collect()
}

fn entry(message: EntryMessage, limits: Limits, constants: usize) -> Result<Entry, String> {
    let (inputs, outputs) = (ports(message.inputs)?, ports(message.outputs)?);
    let mut seen = BTreeSet::new();
    let mut sections = Vec::new();
    for (i, s) in message.sections.into_iter().enumerate() {
        if !seen.insert((s.backend.clone(), s.target.clone())) {
            return Err(format!("two sections are for `{}` of `{}`", s.target, s.backend));
        }
        sections.push(section(s, limits, constants).map_err(|problem| format!("section {i}: {problem}"))?);
    }
    let carried = carried(&message.carried, &inputs, &outputs)?;
    let counted = counted(&message.counted, &outputs)?;
    let open = open(&message.open, &inputs, &outputs)?;
    let parts = EntryParts { symbols: message.symbols, open, inputs, outputs, carried, counted };
    Ok(Entry { parts, sections })
}

fn section(message: SectionMessage, limits: Limits, constants: usize) -> Result<CodeSection, String> {
    let code = checked_range(message.code_offset, message.code_bytes, limits.code)
        .filter(|r| r.start.is_multiple_of(ALIGN))
        .ok_or_else(|| {
            format!("{} bytes of code cannot begin at {}", message.code_bytes, message.code_offset)
        })?;
    let constant = |n: u64| match usize::try_from(n) {
        Ok(n) if n < constants => Ok(n),
        _ => Err(format!("constant {n}, expected less than {constants}")),
    };
    let mut regions = 0u64;
    for s in &message.steps {
        regions = regions.saturating_add(s.regions);
    }
    size("a number of regions", regions)?;
    Ok(CodeSection {
        parts: SectionParts {
            backend: message.backend,
            target: message.target,
            machine: message.machine,
            arena_bytes: size("an arena", message.arena_bytes)?,
            steps: message.steps.into_iter().map(step).collect::<Result<_, _>>()?,
            constants: message.constants.into_iter().map(constant).collect::<Result<_, _>>()?,
        },
        code,
    })
}

#[cfg(test)]
mod tests;
