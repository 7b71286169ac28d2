//! Replacing a file as a whole.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

/// A file being written, in which a writer may go back.
pub trait WriteSeek: Write + Seek {}

impl<T: Write + Seek> WriteSeek for T {}

/// Makes the file at `path` hold what `write` writes. Until that is complete and on disk it lies beside it, under
/// another name; if anything fails, that other file is removed and `path` is as it was.
///
/// # Errors
/// Those of `write`, and what the system says; folders and devices at `path` are refused.
pub fn replace_file<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn WriteSeek) -> Result<(), E>,
) -> Result<(), E> {
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file").into());
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::metadata(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".margay-").suffix(".part");
    if let Some(permissions) = new_file_permissions() {
        builder.permissions(permissions);
    }
    let mut part = builder.tempfile_in(folder)?;
    let mut buffered = BufWriter::with_capacity(1 << 16, part.as_file_mut());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    part.as_file().sync_all()?;
    part.persist(path).map_err(|e| E::from(e.error))?;
    sync_folder(folder);
    Ok(())
}

/// What new files get before the user's mask is taken off; temporary files are closed to others by default.
#[cfg(unix)]
fn new_file_permissions() -> Option<Permissions> {
    use std::os::unix::fs::PermissionsExt;
    Some(Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn new_file_permissions() -> Option<Permissions> {
    None
}

/// Makes the new name survive a power cut. Where folders cannot be synchronised the file is complete all the same.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
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
        let error = replace_file::<io::Error>(folder.path(), |f| f.write_all(b"x")).unwrap_err();
        assert_eq!(error.to_string(), "not a regular file");
        assert!(
            replace_file::<io::Error>(&folder.path().join("none/a.margay"), |f| f.write_all(b"x")).is_err()
        );
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
