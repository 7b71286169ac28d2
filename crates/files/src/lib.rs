//! Files that appear whole under their name, or not at all.
//!
//! A [`Pending`] file has no name in its folder while it is written, where the system can do that (Linux, on most file
//! systems): a process that is killed meanwhile leaves nothing behind. Elsewhere it has a hidden name, `.margay-….part`, and is removed
//! when the value is dropped. [`Pending::keep`] puts it in the place of what was there before, on disk and complete.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, TempPath};

/// A file being written, in which a writer may go back.
pub trait WriteSeek: Write + Seek {}

impl<T: Write + Seek> WriteSeek for T {}

/// Makes the file at `path` hold what `write` writes. If anything fails, `path` is as it was.
///
/// # Errors
/// Those of `write`, and those of [`Pending`].
pub fn replace_file<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn WriteSeek) -> Result<(), E>,
) -> Result<(), E> {
    let mut pending = Pending::create(path)?;
    write(&mut pending)?;
    Ok(pending.keep()?)
}

/// Fails where no file could be put at `place`; puts none there.
///
/// # Errors
/// Those of [`Pending::create`].
pub fn check_place(place: &Path) -> io::Result<()> {
    Pending::create(place).map(drop)
}

/// A file that is not in its place yet. Dropped without [`keep`](Pending::keep), nothing remains of it.
#[derive(Debug)]
pub struct Pending {
    out: BufWriter<File>,
    /// The name that it has meanwhile; none where files may be without one.
    name: Option<TempPath>,
    place: PathBuf,
}

impl Pending {
    /// An empty file that is to be put at `place`.
    ///
    /// # Errors
    /// What the system says where no file can be made in that folder; folders and devices at `place` are refused.
    pub fn create(place: &Path) -> io::Result<Pending> {
        if fs::metadata(place).is_ok_and(|m| !m.is_file()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let folder = folder(place);
        fs::metadata(folder)?;
        let (file, name) = match unnamed::create(folder) {
            Some(file) => (file, None),
            None => {
                let (file, name) = new_names().tempfile_in(folder).map_err(plain)?.into_parts();
                (file, Some(name))
            }
        };
        Ok(Pending { out: BufWriter::with_capacity(1 << 16, file), name, place: place.to_path_buf() })
    }

    /// Puts the file in its place, when all of it is on disk.
    ///
    /// # Errors
    /// What the system says where it cannot be completed or renamed; what was at its place remains.
    pub fn keep(self) -> io::Result<()> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        let folder = folder(&self.place);
        let name = match self.name {
            Some(name) => name,
            None => new_names()
                .make_in(folder, |name| unnamed::link(&file, name))
                .map_err(plain)?
                .into_temp_path(),
        };
        name.persist(&self.place).map_err(|e| e.error)?;
        sync_folder(folder);
        Ok(())
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Seek for Pending {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.out.seek(to)
    }
}

/// The error without the name that a file would have had meanwhile, which means nothing to a reader.
fn plain(error: io::Error) -> io::Error {
    error.kind().into()
}

fn folder(place: &Path) -> &Path {
    match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Names for files that wait, with the permissions of ordinary new files.
fn new_names() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(".margay-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

/// Files without a name.
#[cfg(target_os = "linux")]
mod unnamed {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::{Path, PathBuf};

    use rustix::fs::{AtFlags, CWD, Mode, OFlags};

    /// A new one in a folder; `None` where there are none, or none that could be given a name later.
    pub(crate) fn create(folder: &Path) -> Option<File> {
        let mode = Mode::from_raw_mode(0o666);
        let file = File::from(
            rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode).ok()?,
        );
        reference(&file).exists().then_some(file)
    }

    /// Gives it a name.
    pub(crate) fn link(file: &File, name: &Path) -> io::Result<()> {
        Ok(rustix::fs::linkat(CWD, reference(file), CWD, name, AtFlags::SYMLINK_FOLLOW)?)
    }

    fn reference(file: &File) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }
}

/// No system is known to be able to give such a file a name.
#[cfg(not(target_os = "linux"))]
mod unnamed {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    pub(crate) fn create(_: &Path) -> Option<File> {
        None
    }

    pub(crate) fn link(_: &File, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Makes the new name survive a power cut. Where folders cannot be synchronised the file is complete all the same.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.margay");
        replace_file::<io::Error>(&path, |f| f.write_all(b"old")).unwrap();
        let full = replace_file(&path, |f| {
            f.write_all(&[7; 1 << 20])?;
            Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.margay"]);
        replace_file::<io::Error>(&path, |f| f.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.margay"]);
    }

    #[test]
    fn folders_and_missing_folders_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let error = Pending::create(folder.path()).unwrap_err();
        assert_eq!(error.to_string(), "not a regular file");
        assert!(Pending::create(&folder.path().join("none/a.margay")).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn errors_do_not_tell_of_other_names() {
        let error = check_place(Path::new("/proc/a.margay")).unwrap_err().to_string();
        assert!(!error.contains(".part"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_has_no_name_before_it_is_kept() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = folder.path().join("a");
        let mut pending = Pending::create(&path).unwrap();
        pending.write_all(b"abd").unwrap();
        pending.seek(SeekFrom::Start(2)).unwrap();
        pending.write_all(b"c").unwrap();
        pending.flush().unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
        pending.keep().unwrap();
        assert_eq!(names(folder.path()), ["a"]);
        assert_eq!(fs::read(&path).unwrap(), b"abc");
    }

    #[cfg(unix)]
    #[test]
    fn files_are_as_readable_as_others() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("a"), folder.path().join("b"));
        replace_file::<io::Error>(&ours, |f| f.write_all(b"x")).unwrap();
        fs::write(&plain, b"x").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
