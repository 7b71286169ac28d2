//! Tensors from files: `.npz`, `.npy`, and `.pb` of ONNX.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use margay_driver::Arrays;
use margay_npy::{read_npy, read_npz};
use margay_onnx::read_tensor;
use margay_tensor::Tensor;

use crate::Error;

/// A file of inputs: an archive of named arrays, or one tensor with a name of its own or a given one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputFile {
    /// The name of the input.
    pub name: Option<String>,
    /// The file.
    pub path: PathBuf,
}

impl FromStr for InputFile {
    type Err = std::convert::Infallible;

    /// Reads `FILE` or `NAME=FILE`. A file whose path holds an equals sign is a file.
    fn from_str(text: &str) -> Result<InputFile, Self::Err> {
        let named = text.split_once('=').filter(|_| !Path::new(text).exists());
        Ok(InputFile {
            name: named.map(|(name, _)| name.to_string()),
            path: named.map_or(text, |(_, path)| path).into(),
        })
    }
}

impl InputFile {
    /// The tensors in the file by the names of inputs.
    ///
    /// # Errors
    /// Files that cannot be read, and kinds of files other than `.npz`, `.npy` with a name, and `.pb`.
    pub fn read(&self) -> Result<Arrays, Error> {
        let path = &self.path;
        match (extension(path).as_str(), &self.name) {
            ("npz", None) => {
                let file = File::open(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                read_npz(BufReader::new(file)).map_err(|source| Error::Arrays { path: path.clone(), source })
            }
            ("npy", Some(name)) => Ok(vec![(name.clone(), read_array(path)?)]),
            ("pb", name) => {
                let (own, tensor) = read_tensor(path)?;
                Ok(vec![(name.clone().unwrap_or(own), tensor)])
            }
            _ => {
                let text = self.name.iter().map(|n| format!("{n}=")).collect::<String>();
                Err(Error::Options(format!(
                    "inputs `{text}{}`: expected FILE.npz, NAME=FILE.npy, NAME=FILE.pb or FILE.pb",
                    path.display()
                )))
            }
        }
    }
}

/// All tensors of several files.
///
/// # Errors
/// Files that cannot be read, and a name that is given twice.
pub fn read_inputs(files: &[InputFile]) -> Result<Arrays, Error> {
    let mut all = Arrays::new();
    for (name, tensor) in
        files.iter().map(InputFile::read).collect::<Result<Vec<_>, _>>()?.into_iter().flatten()
    {
        if all.iter().any(|(n, _)| *n == name) {
            return Err(Error::Options(format!("input `{name}` is given twice")));
        }
        all.push((name, tensor));
    }
    Ok(all)
}

/// Whether a text names a file of arrays by its ending.
pub fn is_array_file(text: &str) -> bool {
    matches!(extension(Path::new(text)).as_str(), "npy" | "npz")
}

/// The array of an `.npy` file, or of an `.npz` file that holds one.
///
/// # Errors
/// A file that cannot be read, or that holds several arrays.
pub fn read_array(path: &Path) -> Result<Tensor, Error> {
    let arrays = |source| Error::Arrays { path: path.to_path_buf(), source };
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    if extension(path) == "npy" {
        return read_npy(&bytes).map_err(arrays);
    }
    let mut found = read_npz(std::io::Cursor::new(bytes)).map_err(arrays)?;
    match found.len() {
        1 => Ok(found.remove(0).1),
        n => {
            Err(Error::Options(format!("labels `{}`: expected a file of 1 array, found {n}", path.display())))
        }
    }
}

fn extension(path: &Path) -> String {
    path.extension().map_or(String::new(), |e| e.to_string_lossy().to_lowercase())
}
