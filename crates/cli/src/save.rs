//! Writing result files: beside their place, then renamed, so that a file never carries its final name half written.

use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::Failure;

/// Makes the file at `path` hold what `write` writes; if anything fails, `path` is as it was.
pub(crate) fn save<E: std::fmt::Display + From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut (dyn Seekable + '_)) -> Result<(), E>,
) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::write(path, e);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".margay-").suffix(".part");
    if let Some(permissions) = new_file_permissions() {
        builder.permissions(permissions);
    }
    let part = builder.tempfile_in(folder(path)).map_err(|e| failed(&e.kind()))?;
    let mut out = BufWriter::new(part);
    write(&mut out).map_err(|e| failed(&e))?;
    let part = out.into_inner().map_err(|e| failed(e.error()))?;
    part.as_file().sync_all().map_err(|e| failed(&e))?;
    part.persist(path).map_err(|e| failed(&e.error))?;
    Ok(())
}

/// Writes a text.
pub(crate) fn save_text(path: &Path, text: &str) -> Result<(), Failure> {
    save::<io::Error>(path, |out| out.write_all(text.as_bytes()))
}

/// Fails early where a file cannot be written later: the folder is missing, or the path names something else.
pub(crate) fn check_writable(path: &Path) -> Result<(), Failure> {
    let folder = folder(path);
    match std::fs::metadata(folder) {
        Err(e) => return Err(Failure::write(path, format!("folder `{}`: {e}", folder.display()))),
        Ok(m) if !m.is_dir() => {
            return Err(Failure::write(path, format!("`{}` is not a folder", folder.display())));
        }
        Ok(_) => {}
    }
    match std::fs::metadata(path) {
        Ok(m) if !m.is_file() => Err(Failure::write(path, "not a regular file")),
        _ => Ok(()),
    }
}

/// Fails where a file would be written over another one that the command reads or writes. Each file comes with the
/// words that name it on the command line.
pub(crate) fn check_distinct(
    written: &[(&str, Option<&Path>)],
    read: &[(&str, Option<&Path>)],
) -> Result<(), Failure> {
    let place = |path: &Path| match path.canonicalize() {
        Ok(whole) => whole,
        Err(_) => folder(path)
            .canonicalize()
            .map_or_else(|_| path.to_path_buf(), |f| f.join(path.file_name().unwrap_or_default())),
    };
    let known = |list: &[(&str, Option<&Path>)]| -> Vec<(String, std::path::PathBuf)> {
        list.iter().filter_map(|(words, path)| Some((words.to_string(), place((*path)?)))).collect()
    };
    let mut taken = known(read);
    for (words, path) in known(written) {
        if let Some((other, _)) = taken.iter().find(|(_, p)| *p == path) {
            return Err(Failure::usage(format!(
                "{words} and {other} name the same file `{}`",
                path.display()
            )));
        }
        taken.push((words, path));
    }
    Ok(())
}

/// A file being written, in which a writer may go back.
pub(crate) trait Seekable: Write + io::Seek {}

impl<T: Write + io::Seek> Seekable for T {}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
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
