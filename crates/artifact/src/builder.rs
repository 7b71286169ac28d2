//! What a compiler fills to write an artifact or to run what it compiled.

use std::collections::BTreeMap;
use std::io::{self, SeekFrom};
use std::path::Path;

use margay_files::{WriteSeek, replace_file};
use margay_tensor::Map;
use memmap2::MmapMut;

use crate::header::{ALIGN, Header, MAX_DESCRIPTION_BYTES, Section};
use crate::{
    ArtifactError, CodeSection, ConstantsLayout, Description, Entry, EntryParts, SectionParts, SourcePiece,
    StoredConstant, wire,
};

/// An artifact in the making.
///
/// For every entry and back end: place the constants of its program in [`constants`](ArtifactBuilder::constants), compile
/// the program with their offsets, and [`add_code`](ArtifactBuilder::add_code). Then [`write`](ArtifactBuilder::write)
/// a file or go on [in memory](ArtifactBuilder::into_parts).
#[derive(Debug)]
pub struct ArtifactBuilder<'b> {
    /// The constants of all entries.
    pub constants: ConstantsLayout<'b>,
    model: String,
    entries: Vec<Entry>,
    code: Vec<u8>,
    sources: BTreeMap<String, Vec<u8>>,
}

/// The contents of an artifact in memory.
#[derive(Debug)]
pub struct Parts {
    /// What they are; without sources.
    pub description: Description,
    /// The code section.
    pub code: Vec<u8>,
    /// The weights section, on a page boundary.
    pub weights: Map,
}

impl<'b> ArtifactBuilder<'b> {
    /// An artifact of a model, by name, without entries.
    pub fn new(model: &str) -> ArtifactBuilder<'b> {
        ArtifactBuilder {
            constants: ConstantsLayout::new(),
            model: model.to_owned(),
            entries: Vec::new(),
            code: Vec::new(),
            sources: BTreeMap::new(),
        }
    }

    /// Adds the code of an entry, as a back end wrote it. What takes and gives the same is one entry.
    ///
    /// # Panics
    /// If a constant was not placed before, or the entry has code for the back end and the target.
    pub fn add_code(&mut self, entry: EntryParts, parts: SectionParts, code: &[u8]) {
        let placed = self.constants.stored().len();
        assert!(parts.constants.iter().all(|&c| c < placed), "every constant has been placed");
        let begin = (self.code.len() + wire::SEAL_BYTES).next_multiple_of(ALIGN);
        let section = CodeSection { parts, code: begin..begin + code.len() };
        let seal = wire::seal(&entry, &section, self.constants.stored());
        self.code.resize(begin - seal.len(), 0);
        self.code.extend_from_slice(&seal);
        self.code.extend_from_slice(code);
        let at = self.entries.iter().position(|e| e.parts == entry).unwrap_or_else(|| {
            self.entries.push(Entry { parts: entry, sections: Vec::new() });
            self.entries.len() - 1
        });
        let sections = &mut self.entries[at].sections;
        let target = |s: &CodeSection| (s.parts.backend.clone(), s.parts.target.clone());
        let is_there = sections.iter().any(|s| target(s) == target(&section));
        assert!(!is_there, "code for `{}` is there", section.parts.target);
        sections.push(section);
    }

    /// Keeps a piece of what the artifact was compiled from: any bytes under a name.
    pub fn source(&mut self, name: &str, bytes: Vec<u8>) {
        self.sources.insert(name.to_owned(), bytes);
    }

    fn description(model: String, constants: Vec<StoredConstant>, entries: Vec<Entry>) -> Description {
        Description {
            producer: concat!("margay ", env!("CARGO_PKG_VERSION")).to_owned(),
            model,
            constants,
            entries,
            sources: BTreeMap::new(),
        }
    }

    /// Writes the file. It appears complete or not at all: an error leaves what was at `path` before.
    pub fn write(&self, path: &Path) -> Result<(), ArtifactError> {
        replace_file(path, |file| self.write_to(file))
            .map_err(|source| ArtifactError::Write { path: path.to_path_buf(), source })
    }

    /// Weights first, one at a time: the description holds their hashes.
    fn write_to(&self, file: &mut dyn WriteSeek) -> io::Result<()> {
        let mut description = ArtifactBuilder::description(
            self.model.clone(),
            self.constants.stored().to_vec(),
            self.entries.clone(),
        );
        let mut source_bytes = 0;
        for (name, bytes) in &self.sources {
            let range = source_bytes..source_bytes + bytes.len();
            source_bytes = range.end;
            let piece = SourcePiece { range, hash: *blake3::hash(bytes).as_bytes() };
            description.sources.insert(name.clone(), piece);
        }
        // Hashes have one length, whatever they are.
        let description_bytes = wire::encode(&description).len();
        if description_bytes > MAX_DESCRIPTION_BYTES {
            return Err(io::Error::other(format!(
                "its description has {description_bytes} bytes, the limit is {MAX_DESCRIPTION_BYTES}"
            )));
        }
        let sizes = [description_bytes, self.code.len(), source_bytes, self.constants.bytes()];
        let code = *blake3::hash(&self.code).as_bytes();
        let layout = Header::lay_out(sizes, [0; 32], code);
        let weights = layout.range(Section::Weights).start;
        file.seek(SeekFrom::Start(weights as u64))?;
        let mut out = Padded { file, at: weights };
        for ((constant, contents), noted) in self.constants.iter().zip(&mut description.constants) {
            let bytes = contents.bytes();
            noted.hash = *blake3::hash(&bytes).as_bytes();
            out.put(weights + constant.range.start, &bytes)?;
            contents.rest();
        }
        out.put(layout.file_bytes, &[])?;
        let encoded = wire::encode(&description);
        assert_eq!(encoded.len(), description_bytes, "hashes do not change the length of a description");
        let header = Header::lay_out(sizes, *blake3::hash(&encoded).as_bytes(), code);
        file.seek(SeekFrom::Start(0))?;
        let mut out = Padded { file, at: 0 };
        out.put(0, &header.encode())?;
        out.put(header.range(Section::Description).start, &encoded)?;
        out.put(header.range(Section::Code).start, &self.code)?;
        let mut at = header.range(Section::Source).start;
        for bytes in self.sources.values() {
            out.put(at, bytes)?;
            at += bytes.len();
        }
        out.put(weights, &[])
    }

    /// The contents in memory, to be run without a file. Sources are dropped, and constants have no hashes.
    pub fn into_parts(self) -> Result<Parts, ArtifactError> {
        let bytes = self.constants.bytes();
        let memory = |source| ArtifactError::Memory { bytes, source };
        let mut weights = MmapMut::map_anon(bytes).map_err(memory)?;
        let (stored, contents) = self.constants.into_parts();
        for (constant, contents) in stored.iter().zip(contents) {
            weights[constant.range.clone()].copy_from_slice(&contents.bytes());
            contents.rest();
        }
        Ok(Parts {
            description: ArtifactBuilder::description(self.model, stored, self.entries),
            code: self.code,
            weights: Map::sealed(weights).map_err(memory)?,
        })
    }
}

/// A writer that knows where it is and fills gaps with zeros.
struct Padded<'a> {
    file: &'a mut dyn WriteSeek,
    at: usize,
}

impl Padded<'_> {
    /// Writes `bytes` at `offset`, which is not behind the end so far.
    fn put(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.at < offset {
            let gap = (offset - self.at).min(ZEROS.len());
            self.file.write_all(&ZEROS[..gap])?;
            self.at += gap;
        }
        self.file.write_all(bytes)?;
        self.at += bytes.len();
        Ok(())
    }
}
