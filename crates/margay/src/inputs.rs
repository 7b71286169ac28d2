//! Tensors from files: `.npz`, `.npy`, and `.pb` of ONNX.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use margay_driver::Arrays;
use margay_npy::{read_npy, read_npz, read_npz_only};
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
    /// The tensors in the file by the names of inputs, and the names of arrays in an archive that are not `wanted`, which
    /// are not loaded.
    ///
    /// # Errors
    /// Files that cannot be read, and kinds of files other than `.npz`, `.npy` with a name, and `.pb`.
    pub fn read(&self, wanted: &dyn Fn(&str) -> bool) -> Result<(Arrays, Vec<String>), Error> {
        let path = &self.path;
        match (extension(path).as_str(), &self.name) {
            ("npz", None) => {
                let file = File::open(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                let arrays = |source| Error::Arrays { path: path.clone(), source };
                read_npz_only(BufReader::new(file), wanted).map_err(arrays)
            }
            ("npy", Some(name)) => Ok((vec![(name.clone(), read_array(path)?)], Vec::new())),
            ("pb", name) => {
                let (own, tensor) = read_tensor(path)?;
                Ok((vec![(name.clone().unwrap_or(own), tensor)], Vec::new()))
            }
            _ => {
                let text = self.name.iter().map(|n| format!("{n}=")).collect::<String>();
                Err(Error::Options(format!(
                    "inputs `{text}{}`: expected FILE.npz, NAME=FILE.npy, NAME=FILE.pb, FILE.pb or a folder of test data",
                    path.display()
                )))
            }
        }
    }
}

/// The tensors of a folder of test data, with their positions and the names they carry, which may be empty.
pub(crate) struct TestData {
    pub(crate) inputs: Vec<(usize, String, Tensor)>,
    pub(crate) outputs: Vec<(usize, String, Tensor)>,
}

impl InputFile {
    /// Reads a folder as ONNX's test data are: `input_0.pb`, `input_1.pb`, …, and `output_0.pb`, … where they are known.
    pub(crate) fn read_folder(&self) -> Result<TestData, Error> {
        let read = |kind: &str| -> Result<Vec<(usize, String, Tensor)>, Error> {
            let file = |at: &usize| self.path.join(format!("{kind}_{at}.pb"));
            let files = (0..).map(|at| (at, file(&at))).take_while(|(_, path)| path.exists());
            files
                .map(|(at, path)| read_tensor(&path).map(|(name, t)| (at, name, t)).map_err(Error::from))
                .collect()
        };
        let data = TestData { inputs: read("input")?, outputs: read("output")? };
        if data.inputs.is_empty() {
            let message =
                format!("folder `{}`: expected input_0.pb and so on, found none", self.path.display());
            return Err(Error::Options(message));
        }
        Ok(data)
    }
}

/// Adds arrays to others.
///
/// # Errors
/// A name that is given twice.
pub(crate) fn merge(all: &mut Arrays, more: Arrays) -> Result<(), Error> {
    for (name, tensor) in more {
        if all.iter().any(|(n, _)| *n == name) {
            return Err(Error::Options(format!("input `{name}` is given twice")));
        }
        all.push((name, tensor));
    }
    Ok(())
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
