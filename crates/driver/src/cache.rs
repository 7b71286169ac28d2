//! A folder in which what costs time is kept, so that the same is not computed twice: what calibration measured, decompositions
//! of weights, orders of hidden units, weights of layers.
//!
//! Each file is named by a hash of everything that its contents follow from, and holds the same bits that would be computed, so
//! that a result does not depend on what is in the folder. A file that is cut or altered counts as absent. Files may be removed
//! at any time; none is removed here.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fs, io};

use margay_files::replace_file;

use crate::DriverError;

/// The first bytes of every file; the number changes with what is kept or how it is computed.
const HEAD: &[u8] = b"margay cache 2\n";

/// A folder of results.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    /// Why something could not be kept, the first time.
    failure: OnceLock<io::Error>,
}

impl Cache {
    /// The folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`DriverError::Write`] if it cannot be made.
    pub(crate) fn open(folder: &Path) -> Result<Cache, DriverError> {
        let made = match fs::metadata(folder) {
            Ok(there) if !there.is_dir() => Err(io::Error::new(io::ErrorKind::NotADirectory, "not a folder")),
            _ => fs::create_dir_all(folder),
        };
        made.map_err(|source| DriverError::Write { path: folder.to_path_buf(), source })?;
        Ok(Cache { folder: folder.to_path_buf(), failure: OnceLock::new() })
    }

    fn path(&self, kind: &str, key: &str) -> PathBuf {
        let key = format!("{}\n{key}", env!("CARGO_PKG_VERSION"));
        self.folder.join(format!("{kind}-{}", &blake3::hash(key.as_bytes()).to_hex()[..32]))
    }

    /// What was kept under a key.
    pub(crate) fn get(&self, kind: &str, key: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path(kind, key)).ok()?;
        let (hash, contents) = bytes.strip_prefix(HEAD)?.split_first_chunk::<32>()?;
        (blake3::hash(contents).as_bytes() == hash).then(|| contents.to_vec())
    }

    /// Keeps something. What cannot be written is computed again another time, and [`doubt`](Cache::doubt) says so.
    pub(crate) fn put(&self, kind: &str, key: &str, contents: &[u8]) {
        let hash = blake3::hash(contents);
        let written = replace_file::<io::Error>(&self.path(kind, key), |out| {
            out.write_all(HEAD)?;
            out.write_all(hash.as_bytes())?;
            out.write_all(contents)
        });
        if let Err(error) = written {
            // Later failures mostly repeat the first.
            _ = self.failure.set(error);
        }
    }

    /// What a reader should know: that something could not be kept.
    pub(crate) fn doubt(&self) -> Option<String> {
        let (error, folder) = (self.failure.get()?, self.folder.display());
        Some(format!(
            "the cache `{folder}` cannot be written, so that the next run computes all of this again: {error}"
        ))
    }
}

/// Pieces one after the other, each behind its length.
pub(crate) fn joined<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        all.extend((piece.len() as u64).to_le_bytes());
        all.extend(piece);
    }
    all
}

/// The pieces that [`joined`] put together.
pub(crate) fn pieces(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk()?;
        let (piece, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        all.push(piece);
        bytes = rest;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_under_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("new")).unwrap();
        assert_eq!(cache.get("sums", "a"), None);
        cache.put("sums", "a", b"one");
        cache.put("sums", "b", b"");
        assert_eq!(cache.get("sums", "a").as_deref(), Some(&b"one"[..]));
        assert_eq!(cache.get("sums", "b").as_deref(), Some(&b""[..]));
        assert_eq!((cache.get("sums", "c"), cache.get("other", "a")), (None, None));
    }

    #[test]
    fn a_file_that_was_altered_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        cache.put("sums", "a", b"one");
        let path = cache.path("sums", "a");
        let whole = fs::read(&path).unwrap();
        for n in 0..whole.len() {
            fs::write(&path, &whole[..n]).unwrap();
            assert_eq!(cache.get("sums", "a"), None);
            let mut changed = whole.clone();
            changed[n] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert_eq!(cache.get("sums", "a"), None);
        }
    }

    #[test]
    fn what_cannot_be_kept_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("new")).unwrap();
        assert_eq!(cache.doubt(), None);
        fs::remove_dir(folder.path().join("new")).unwrap();
        cache.put("sums", "a", b"one");
        assert!(cache.doubt().unwrap().contains("new` cannot be written"), "{:?}", cache.doubt());
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Cache::open(file.path()).unwrap_err().to_string();
        assert!(error.ends_with("not a folder"), "{error}");
    }

    #[test]
    fn pieces_are_what_was_joined() {
        let all = joined([&b"one"[..], b"", b"three"]);
        assert_eq!(pieces(&all).unwrap(), [&b"one"[..], b"", b"three"]);
        assert!(pieces(&all[..all.len() - 1]).is_none());
    }
}
