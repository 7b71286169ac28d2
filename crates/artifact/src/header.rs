//! The header of the file: magic, version and section table, in fixed places, little-endian.
//!
//! | Bytes | Meaning |
//! |---|---|
//! | 0..8 | [`MAGIC`] |
//! | 8..12 | [`FORMAT_VERSION`] |
//! | 16..24 | length of the file |
//! | 24..216 | per section: offset, length (8 bytes each), blake3 hash (32 bytes) |
//! | 224..256 | blake3 hash of bytes 0..224 |
//!
//! The rest is zero. Magic and version keep their places in every version to come. The hashes of source and
//! weights are zero here: they are kept by piece, in the description.

use std::ops::Range;
use std::path::Path;

use crate::ArtifactError;

/// The first bytes of an artifact. The first is not text, the last catches line-end conversion.
pub(crate) const MAGIC: [u8; 8] = *b"\x89margay\n";

/// Whether a file that starts with these bytes is an artifact, whole or not.
pub fn is_artifact(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// The version of the file format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 7;

/// What every section, block of code and constant begins at a multiple of.
pub(crate) const ALIGN: usize = 64;

/// Size of the header.
pub(crate) const HEADER_BYTES: usize = 256;

const HASHED_BYTES: usize = HEADER_BYTES - 32;
const TABLE_AT: usize = 24;
const RECORD_BYTES: usize = 48;

/// The largest description that is read. Messages in memory are larger than on file, so this bounds memory.
pub(crate) const MAX_DESCRIPTION_BYTES: usize = 32 << 20;

/// A section, as the position of its record in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Section {
    Description,
    Code,
    Source,
    Weights,
}

impl Section {
    /// Every section, in the order of the file.
    pub(crate) const ALL: [Section; 4] =
        [Section::Description, Section::Code, Section::Source, Section::Weights];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Section::Description => "description",
            Section::Code => "code",
            Section::Source => "source",
            Section::Weights => "weights",
        }
    }

    /// What its offset is a multiple of.
    fn align(self) -> usize {
        match self {
            Section::Weights => 4096,
            Section::Description | Section::Code | Section::Source => ALIGN,
        }
    }
}

/// Where the sections lie and what their hashes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) file_bytes: usize,
    ranges: [Range<usize>; 4],
    hashes: [[u8; 32]; 4],
}

impl Header {
    /// Lays out sections of the given sizes one after the other.
    pub(crate) fn lay_out(bytes: [usize; 4], description: [u8; 32], code: [u8; 32]) -> Header {
        let mut end = HEADER_BYTES;
        let ranges = Section::ALL.map(|s| {
            let begin = end.next_multiple_of(s.align());
            end = begin + bytes[s as usize];
            begin..end
        });
        Header { file_bytes: end, ranges, hashes: [description, code, [0; 32], [0; 32]] }
    }

    /// Where a section lies in the file.
    pub(crate) fn range(&self, section: Section) -> Range<usize> {
        self.ranges[section as usize].clone()
    }

    /// The hash of a section that is hashed as a whole.
    pub(crate) fn hash(&self, section: Section) -> [u8; 32] {
        self.hashes[section as usize]
    }

    /// The bytes of the header.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &FORMAT_VERSION.to_le_bytes());
        put(16, &(self.file_bytes as u64).to_le_bytes());
        for (i, (range, hash)) in self.ranges.iter().zip(&self.hashes).enumerate() {
            let at = TABLE_AT + i * RECORD_BYTES;
            put(at, &(range.start as u64).to_le_bytes());
            put(at + 8, &(range.len() as u64).to_le_bytes());
            put(at + 16, hash);
        }
        let hash = *blake3::hash(&out[..HASHED_BYTES]).as_bytes();
        out[HASHED_BYTES..].copy_from_slice(&hash);
        out
    }

    /// Reads and checks the header of a file with these bytes; all sections of the result lie in the file.
    pub(crate) fn decode(path: &Path, file: &[u8]) -> Result<Header, ArtifactError> {
        let path = || path.to_path_buf();
        let prefix = file.len().min(MAGIC.len());
        if file.is_empty() || file[..prefix] != MAGIC[..prefix] {
            return Err(ArtifactError::NotAnArtifact { path: path() });
        }
        let truncated =
            |expected: u64| ArtifactError::Truncated { path: path(), expected, found: file.len() as u64 };
        let too_short = || truncated(HEADER_BYTES as u64);
        let found = u32::from_le_bytes(*file.get(8..).and_then(|b| b.first_chunk()).ok_or_else(too_short)?);
        if found != FORMAT_VERSION {
            return Err(ArtifactError::Version { path: path(), expected: FORMAT_VERSION, found });
        }
        let header: &[u8; HEADER_BYTES] = file.first_chunk().ok_or_else(too_short)?;
        if blake3::hash(&header[..HASHED_BYTES]).as_bytes() != &header[HASHED_BYTES..] {
            return Err(ArtifactError::Altered { path: path(), part: "header".into() });
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let file_bytes = word(16);
        if (file.len() as u64) < file_bytes {
            return Err(truncated(file_bytes));
        }
        let malformed = |problem: String| ArtifactError::Malformed { path: path(), problem };
        if file.len() as u64 != file_bytes {
            let extra = file.len() as u64 - file_bytes;
            return Err(malformed(format!("{extra} bytes follow the expected {file_bytes}")));
        }
        let mut ranges = [const { 0..0 }; 4];
        let mut hashes = [[0; 32]; 4];
        for section in Section::ALL {
            let i = section as usize;
            let at = TABLE_AT + i * RECORD_BYTES;
            let (offset, bytes) = (word(at), word(at + 8));
            let range = checked_range(offset, bytes, file.len())
                .filter(|r| r.start >= HEADER_BYTES && r.start.is_multiple_of(section.align()));
            ranges[i] = range.ok_or_else(|| {
                let name = section.name();
                malformed(format!("section {name} of {bytes} bytes cannot begin at byte {offset}"))
            })?;
            hashes[i] = std::array::from_fn(|j| header[at + 16 + j]);
        }
        let description = ranges[Section::Description as usize].len();
        if description > MAX_DESCRIPTION_BYTES {
            return Err(malformed(format!(
                "a description of {description} bytes, expected at most {MAX_DESCRIPTION_BYTES}"
            )));
        }
        Ok(Header { file_bytes: file.len(), ranges, hashes })
    }
}

/// `offset..offset + bytes`, if that lies within `limit`.
pub(crate) fn checked_range(offset: u64, bytes: u64, limit: usize) -> Option<Range<usize>> {
    let end = usize::try_from(offset.checked_add(bytes)?).ok()?;
    (end <= limit).then_some(offset as usize..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_aligned_and_survive_encoding() {
        let header = Header::lay_out([100, 10, 0, 70], [1; 32], [2; 32]);
        assert_eq!(header.range(Section::Code), 384..394);
        assert_eq!(header.range(Section::Weights), 4096..4166);
        let mut file = header.encode().to_vec();
        file.resize(header.file_bytes, 0);
        assert_eq!(Header::decode(Path::new("x"), &file).unwrap(), header);
    }

    #[test]
    fn ranges_do_not_overflow() {
        assert_eq!(checked_range(u64::MAX, 2, 100), None);
        assert_eq!(checked_range(90, 11, 100), None);
        assert_eq!(checked_range(90, 10, 100), Some(90..100));
    }

    #[test]
    fn other_files_and_versions_are_told_apart() {
        let message = |file: &[u8]| Header::decode(Path::new("m"), file).unwrap_err().to_string();
        assert_eq!(message(b""), "`m` is not a margay artifact");
        assert_eq!(message(b"\x08\x0a\x12\x00"), "`m` is not a margay artifact");
        assert_eq!(message(&MAGIC), "`m` is cut short: expected 256 bytes, found 8");
        let later = [&MAGIC[..], &8u32.to_le_bytes()].concat();
        let expected =
            format!("`m` has format version 8, expected {FORMAT_VERSION}; compile the model again");
        assert_eq!(message(&later), expected);
        let mut file = Header::lay_out([0; 4], [0; 32], [0; 32]).encode();
        file[30] ^= 1;
        assert_eq!(message(&file), "`m` has been altered: its header does not match its hash");
    }

    #[test]
    fn a_section_outside_of_the_file_is_refused() {
        let mut header = Header::lay_out([64, 0, 0, 0], [0; 32], [0; 32]);
        header.ranges[1] = 1 << 40..1 << 41;
        let mut file = header.encode().to_vec();
        file.resize(header.file_bytes, 0);
        let message = Header::decode(Path::new("m"), &file).unwrap_err().to_string();
        assert_eq!(
            message,
            "`m` is malformed: section code of 1099511627776 bytes cannot begin at byte 1099511627776"
        );
    }
}
