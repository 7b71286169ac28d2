//! Artifacts: whoever opens one and loads its code gets an answer. Hashes find accidents, so changes put them right: what lies
//! behind them must bear anything. Code is a program, so that it is only run where it and the constants are those of a seed:
//! whatever the description says then, a run ends with outputs or an error.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use margay_artifact::Artifact;
use margay_driver::{CompileOptions, Dump, Kind, Model, Silent, backend, compile, open_artifact_graph};
use margay_ir::{TensorType, text};
use margay_passes::sketch::read_plan;
use margay_runtime::{Executable, Session, SessionOptions};
use margay_tensor::Tensor;

use super::graphs::{NETWORKS, goes_on};
use super::{Draw, bytes, protobuf, words};

/// Where the header has the table of sections, its own hash, and its end.
const TABLE: usize = 24;
const RECORD: usize = 48;
const HASHED: usize = 224;
const HEADER: usize = 256;

/// What offsets of sections are multiples of: that of the weights is a page.
const ALIGN: [usize; 4] = [64, 64, 64, 4096];

/// Accepts an artifact that can be opened. Goes on with its graph, its plan and its code as the program would.
pub(super) fn run(bytes: &[u8]) -> bool {
    let Ok(artifact) = Artifact::from_bytes(bytes, "hostile") else { return false };
    _ = artifact.verify_weights();
    let description = artifact.description();
    for name in description.sources.keys() {
        if let Ok(Some(piece)) = artifact.source(name)
            && let Ok(plan) = str::from_utf8(piece)
        {
            _ = read_plan(plan);
        }
    }
    for (index, constant) in description.constants.iter().enumerate() {
        let by = constant.layout.as_ref().map_or("cpu", |l| l.backend.as_str());
        if let Ok(backend) = backend::named(by, "native", margay_loops::Precision::F32) {
            _ = artifact.constant(index, &*backend);
        }
    }
    if let Ok(g) = open_artifact_graph(&artifact)
        && g.verify(margay_ir::verify::Stage::Imported).is_ok()
    {
        goes_on(g);
    }
    match backend::load(&artifact, None) {
        Err(error) => assert_ne!(error.kind(), Kind::Internal, "{error}"),
        Ok(executable) if trusted().contains(&code_and_weights(&artifact)) => runs(&executable),
        Ok(_) => {}
    }
    true
}

/// The hash of what a run trusts.
fn code_and_weights(artifact: &Artifact) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(artifact.code()).update(artifact.weights());
    *hasher.finalize().as_bytes()
}

/// What is trusted of the seeds.
fn trusted() -> &'static HashSet<[u8; 32]> {
    static TRUSTED: OnceLock<HashSet<[u8; 32]>> = OnceLock::new();
    TRUSTED.get_or_init(|| {
        let artifacts = seeds().into_iter().filter_map(|bytes| Artifact::from_bytes(&bytes, "seed").ok());
        artifacts.map(|artifact| code_and_weights(&artifact)).collect()
    })
}

/// Runs every entry on zeros of the shapes that the description says, where they are not large.
fn runs(executable: &Executable) {
    const MOST_BYTES: usize = 1 << 22;
    for entry in executable.entries() {
        let given: Vec<_> = entry.parts.given().map(|(_, port)| port).collect();
        let small = given.iter().all(|port| port.bytes() <= MOST_BYTES);
        let zeros =
            given.iter().map(|port| Some((port.name.as_str(), Tensor::zeros(port.dtype, &port.shape).ok()?)));
        let Some(inputs) = zeros.collect::<Option<Vec<_>>>().filter(|_| small) else { continue };
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
        let Ok(mut session) = Session::new(executable, SessionOptions { threads: 1 }) else { continue };
        _ = session.run(&inputs);
        _ = session.profile(&inputs);
    }
}

/// Small networks compiled for one shape, for a range and for the reference back end.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let path = folder.path().join("seed.margay");
    let mut seeds = Vec::new();
    for (i, source) in NETWORKS.iter().enumerate() {
        let resolve = |_: &str, ty: &TensorType| Some(margay_testkit::normal(&ty.extents()?, 5, 0).into());
        let g = text::parse(source, &resolve).unwrap_or_else(|e| panic!("{e}\n{source}"));
        let model = Model::new(g, "seed", &mut Dump::none()).unwrap_or_else(|e| panic!("{e}"));
        let symbols: Vec<String> = model.graph.symbols().iter().map(ToString::to_string).collect();
        for name in ["cpu", "reference"] {
            let single = symbols.iter().map(|s| (s.clone(), vec![2])).collect();
            let mut options = CompileOptions {
                dims: single,
                backend: name.into(),
                threads: 1,
                ..CompileOptions::default()
            };
            if i == 0 {
                options.dims.clear();
                options.ranges = symbols.iter().map(|s| (s.clone(), (1, 5))).collect();
            }
            let compiled = compile(&model, None, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
            for strip in [false, true] {
                compiled.write(&path, strip, &mut Dump::none()).unwrap_or_else(|e| panic!("{e}"));
                seeds.push(read(&path));
            }
        }
    }
    seeds
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Changes the description as a message, a piece of source as text, code or weights as bytes, and puts the hashes right;
/// or changes any bytes, and leaves the hashes wrong.
pub(super) fn change(whole: &[u8], draw: &mut Draw) -> Vec<u8> {
    let what = draw.below(8);
    let Some(mut sections) = sections(whole).filter(|_| what > 0) else { return bytes::change(whole, draw) };
    match what {
        1..4 => sections[0] = protobuf::change(&sections[0], draw),
        4 => change_code(whole, &mut sections, draw),
        5 => {
            let old = hashes_of_constants(whole);
            sections[3] = bytes::change(&sections[3], draw);
            let (first, rest) = sections.split_at_mut(1);
            for (range, hash) in old {
                if let Some(bytes) = rest[2].get(range) {
                    replace(&mut first[0], &hash, blake3::hash(bytes).as_bytes());
                }
            }
        }
        _ => change_source(whole, &mut sections, draw),
    }
    together(&sections)
}

/// Code of the reference back end is text.
fn change_code(whole: &[u8], sections: &mut [Vec<u8>; 4], draw: &mut Draw) {
    let Ok(artifact) = Artifact::from_bytes(whole, "seed") else { return };
    let all: Vec<Range<usize>> =
        artifact.description().entries.iter().flat_map(|e| &e.sections).map(|s| s.code.clone()).collect();
    let Some(range) = draw.of(&all).cloned() else { return };
    let code = &sections[1][range.clone()];
    let mut changed = match str::from_utf8(code) {
        Ok(_) => words::change(code, draw, &[]),
        Err(_) => bytes::change(code, draw),
    };
    changed.resize(range.len(), b' ');
    sections[1][range].copy_from_slice(&changed);
}

/// A piece of source keeps its place: it is filled up with blanks, or cut.
fn change_source(whole: &[u8], sections: &mut [Vec<u8>; 4], draw: &mut Draw) {
    let Ok(artifact) = Artifact::from_bytes(whole, "seed") else { return };
    let pieces: Vec<_> = artifact.description().sources.values().cloned().collect();
    let Some(piece) = draw.of(&pieces) else { return };
    let mut changed = words::change(&sections[2][piece.range.clone()], draw, margay_ir::Op::ALL);
    changed.resize(piece.range.len(), b' ');
    replace(&mut sections[0], &piece.hash, blake3::hash(&changed).as_bytes());
    sections[2][piece.range.clone()].copy_from_slice(&changed);
}

fn hashes_of_constants(whole: &[u8]) -> Vec<(Range<usize>, [u8; 32])> {
    let artifact = Artifact::from_bytes(whole, "seed").ok();
    let all = artifact.iter().flat_map(|a| a.description().constants.clone());
    all.map(|c| (c.range, c.hash)).collect()
}

fn replace(bytes: &mut [u8], from: &[u8; 32], to: &[u8; 32]) {
    if let Some(at) = bytes.windows(32).position(|w| w == from) {
        bytes[at..at + 32].copy_from_slice(to);
    }
}

/// The bytes of the four sections.
fn sections(whole: &[u8]) -> Option<[Vec<u8>; 4]> {
    let word = |at: usize| {
        let bytes = whole.get(at..at + 8)?.first_chunk()?;
        usize::try_from(u64::from_le_bytes(*bytes)).ok()
    };
    let mut found: [Vec<u8>; 4] = Default::default();
    for (i, section) in found.iter_mut().enumerate() {
        let (offset, length) = (word(TABLE + i * RECORD)?, word(TABLE + i * RECORD + 8)?);
        *section = whole.get(offset..offset.checked_add(length)?)?.to_vec();
    }
    Some(found)
}

/// An artifact of four sections, with hashes that are right.
fn together(sections: &[Vec<u8>; 4]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    for (i, section) in sections.iter().enumerate() {
        out.resize(out.len().next_multiple_of(ALIGN[i]), 0);
        let record = TABLE + i * RECORD;
        let (offset, length) = (out.len() as u64, section.len() as u64);
        out[record..record + 8].copy_from_slice(&offset.to_le_bytes());
        out[record + 8..record + 16].copy_from_slice(&length.to_le_bytes());
        // Source and weights are hashed by piece, in the description.
        if i < 2 {
            out[record + 16..record + 48].copy_from_slice(blake3::hash(section).as_bytes());
        }
        out.extend(section);
    }
    out[..8].copy_from_slice(b"\x89margay\n");
    out[8..12].copy_from_slice(&margay_artifact::FORMAT_VERSION.to_le_bytes());
    let length = out.len() as u64;
    out[16..24].copy_from_slice(&length.to_le_bytes());
    let hash = blake3::hash(&out[..HASHED]);
    out[HASHED..HEADER].copy_from_slice(hash.as_bytes());
    out
}
