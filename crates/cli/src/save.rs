//! Writing result files, which appear whole or not at all.

use std::io;
use std::path::Path;

use margay::WriteSeek;

use crate::error::Failure;

/// Makes the file at `path` hold what `write` writes; if anything fails, `path` is as it was.
pub(crate) fn save<E: std::fmt::Display + From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn WriteSeek) -> Result<(), E>,
) -> Result<(), Failure> {
    margay::replace_file(path, write).map_err(|e| Failure::write(path, e))
}

/// Writes a text.
pub(crate) fn save_text(path: &Path, text: &str) -> Result<(), Failure> {
    save::<io::Error>(path, |out| out.write_all(text.as_bytes()))
}

/// Writes a file that took long to make. Where it cannot be written, it goes to a new folder for temporary files, which the
/// failure names.
pub(crate) fn rescued(
    path: &Path,
    mut write: impl FnMut(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Err(failure) = write(path) else { return Ok(()) };
    let folder = tempfile::Builder::new().prefix("margay-").tempdir();
    let Ok(folder) = folder else { return Err(failure) };
    let place = folder.path().join(path.file_name().unwrap_or_default());
    if write(&place).is_err() {
        return Err(failure);
    }
    let kept = folder.keep().join(path.file_name().unwrap_or_default());
    Err(failure.with_help(format!("it was written to `{}` instead", kept.display())))
}

/// Fails early where a file cannot be written later: nothing can be made in its folder, or the path names something else.
pub(crate) fn check_writable(path: &Path) -> Result<(), Failure> {
    let folder = folder(path);
    match std::fs::metadata(folder) {
        Err(e) => return Err(Failure::write(path, format!("folder `{}`: {e}", folder.display()))),
        Ok(m) if !m.is_dir() => {
            return Err(Failure::write(path, format!("`{}` is not a folder", folder.display())));
        }
        Ok(_) => {}
    }
    margay::check_place(path).map_err(|e| Failure::write(path, e))
}

/// Fails where the course of a run cannot go to a file: it is that of another run, or to be a table, which is not written.
pub(crate) fn check_history(path: &Path, goes_on: bool) -> Result<(), Failure> {
    let shown = path.display();
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) {
        let message =
            format!("`--history {shown}`: lines of JSON are written, expected a name such as run.jsonl");
        return Err(Failure::usage(message));
    }
    match std::fs::metadata(path) {
        Ok(m) if m.len() > 0 && !goes_on => Err(Failure::usage(format!(
            "the history `{shown}` is there already: go on from its run with `--resume`, or give another name"
        ))),
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

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
