//! Files from which training goes on: safetensors with everything that a later step depends on.
//!
//! A checkpoint replaces the one before as a whole: whenever the process dies, one of the two is there. It is one file, in
//! which what no step changes is written again each time: beside a parameter's values, their best ones and two moments, those
//! that it began with are a fifth. In a file of their own they could be of another run than the rest.

use std::collections::HashMap;
use std::path::Path;

use margay_driver::DriverError;
use margay_tensor::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};

use crate::fit::{Point, Restart};
use crate::{RankChange, TrainError};

/// The key of the metadata under which the record lies, as JSON.
const RECORD: &str = "margay.training";
/// The version of the record that is written and read.
const VERSION: u32 = 4;
const STATE: &str = "state.";
const BEST: &str = "best.";
const FIXED: &str = "fixed.";

/// What decides the numbers that a run computes, by name, as text: hashes of model and data, options.
pub type Identity = Vec<(String, String)>;

/// A learning rate as part of an identity; one that a test finds is a state.
pub(crate) fn rate_words(rate: f64, is_searched: bool) -> String {
    if is_searched { "searched".to_owned() } else { rate.to_string() }
}

/// What is known besides tensors.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    pub version: u32,
    /// Identifies model, data and options: a run with others cannot go on from here.
    pub identity: Identity,
    /// Steps done.
    pub step: u64,
    /// Steps in all, as the schedule has them.
    pub total_steps: u64,
    /// Whether the total is settled, or was still being estimated.
    pub settled: bool,
    /// Time spent so far.
    pub seconds: f64,
    /// Sum of the losses since the last evaluation.
    pub loss_sum: f64,
    /// Their number.
    pub loss_count: u64,
    /// The step whose parameters are kept as the best.
    pub best_step: u64,
    /// Every evaluation so far.
    pub history: Vec<Point>,
    /// Every choice of ranks so far.
    pub rank_changes: Vec<RankChange>,
    /// Every time that learning began again with a smaller rate.
    #[serde(default)]
    pub restarts: Vec<Restart>,
}

/// A state of training.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Numbers.
    pub record: Record,
    /// The states of the step.
    pub states: Vec<(String, Tensor)>,
    /// The best parameters so far.
    pub best: Vec<(String, Tensor)>,
    /// What the run changed in the model before its first step and no step changes, by names that its caller gave.
    pub fixed: Vec<(String, Tensor)>,
}

impl Checkpoint {
    /// Writes the file, or leaves it as it was.
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        let failed =
            |why: String| TrainError::Checkpoint(format!("cannot write `{}`: {why}", path.display()));
        let unwritten = |source| DriverError::Write { path: path.to_path_buf(), source };
        let record = Record { version: VERSION, ..self.record.clone() };
        let record = serde_json::to_string(&record).map_err(|e| failed(e.to_string()))?;
        let mut views = Vec::new();
        for (prefix, tensors) in [(STATE, &self.states), (BEST, &self.best), (FIXED, &self.fixed)] {
            for (name, t) in tensors {
                let dtype = dtype_of(t.dtype())
                    .ok_or_else(|| failed(format!("`{name}` is {}, which the format lacks", t.dtype())))?;
                let view = TensorView::new(dtype, t.shape().to_vec(), t.bytes());
                views.push((format!("{prefix}{name}"), view.map_err(|e| failed(e.to_string()))?));
            }
        }
        let metadata = HashMap::from([(RECORD.to_string(), record)]);
        let bytes = serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))?;
        Ok(margay_files::replace_file(path, |out| out.write_all(&bytes)).map_err(unwritten)?)
    }

    /// Fails where a run would begin anew and its checkpoint would replace one that is there.
    pub fn claim(path: Option<&Path>, resume: bool) -> Result<(), TrainError> {
        match path.filter(|path| !resume && path.exists()) {
            None => Ok(()),
            Some(path) => Err(TrainError::Options(format!(
                "the checkpoint `{}` is there already: go on from it with `--resume`, or give another name",
                path.display()
            ))),
        }
    }

    /// Reads the file of a run with this identity.
    pub fn read(path: &Path, identity: &Identity) -> Result<Checkpoint, TrainError> {
        let failed =
            |why: String| TrainError::Checkpoint(format!("cannot go on from `{}`: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| failed(e.to_string()))?;
        let record = header.metadata().as_ref().and_then(|m| m.get(RECORD));
        let record = record.ok_or_else(|| failed("it is not a checkpoint of margay".into()))?;
        let record: Record = serde_json::from_str(record).map_err(|e| failed(e.to_string()))?;
        if record.version != VERSION {
            return Err(failed(format!("version {}, expected {VERSION}", record.version)));
        }
        if let Some(differences) = differences(&record.identity, identity) {
            return Err(failed(format!("it was written by another run: {differences}")));
        }
        if !record.history.iter().any(|point| point.step == record.best_step) {
            return Err(failed(format!("its best step {} was not evaluated", record.best_step)));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|e| failed(e.to_string()))?;
        let mut read = Checkpoint { record, states: Vec::new(), best: Vec::new(), fixed: Vec::new() };
        let mut views: Vec<_> = file.iter().collect();
        views.sort_by_key(|(name, _)| *name);
        for (name, view) in views {
            let dtype = DTYPES.iter().find(|(_, d)| *d == view.dtype()).map(|(d, _)| *d);
            let dtype = dtype.ok_or_else(|| failed(format!("`{name}` is {:?}", view.dtype())))?;
            let tensor = Tensor::from_bytes(dtype, view.shape(), view.data())?;
            let lists = [(STATE, &mut read.states), (BEST, &mut read.best), (FIXED, &mut read.fixed)];
            let list = lists.into_iter().find_map(|(prefix, list)| Some((name.strip_prefix(prefix)?, list)));
            let Some((name, list)) = list else {
                return Err(failed(format!("`{name}` is neither a state nor a parameter")));
            };
            list.push((name.to_string(), tensor));
        }
        Ok(read)
    }
}

/// What two runs differ in, in words.
fn differences(there: &Identity, here: &Identity) -> Option<String> {
    let find = |list: &Identity, name: &str| list.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let names = there.iter().chain(here.iter().filter(|(n, _)| find(there, n).is_none())).map(|(n, _)| n);
    let shown = |value: Option<String>| value.unwrap_or_else(|| "nothing".into());
    let different = names.filter(|n| find(there, n) != find(here, n));
    let words = different.map(|n| format!("{n} was {}, is {}", shown(find(there, n)), shown(find(here, n))));
    Some(words.collect::<Vec<_>>().join("; ")).filter(|words| !words.is_empty())
}

const DTYPES: [(DType, Dtype); 5] = [
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::Bool, Dtype::BOOL),
];

fn dtype_of(dtype: DType) -> Option<Dtype> {
    DTYPES.iter().find(|(d, _)| *d == dtype).map(|(_, d)| *d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(model: &str) -> Identity {
        vec![("the model".into(), model.into()), ("the seed".into(), "0".into())]
    }

    fn sample() -> Checkpoint {
        let weights = Tensor::from_slice(&[2, 2], &[1.0f32, -0.0, f32::MIN_POSITIVE, 3.5]).unwrap();
        Checkpoint {
            record: Record {
                version: VERSION,
                identity: identity("abc"),
                step: 12,
                total_steps: 100,
                settled: true,
                seconds: 1.25,
                loss_sum: 0.3,
                loss_count: 2,
                best_step: 10,
                history: vec![Point {
                    step: 10,
                    seconds: 1.0,
                    loss: 0.1 + 0.2,
                    error: 0.5,
                    measures: vec![],
                }],
                rank_changes: vec![],
                restarts: vec![Restart { step: 3, learning_rate: 0.25 }],
            },
            states: vec![("step".into(), Tensor::scalar(12f32)), ("w".into(), weights.clone())],
            best: vec![("w".into(), weights)],
            fixed: vec![("positions".into(), Tensor::from_slice(&[2], &[3i64, 1]).unwrap())],
        }
    }

    #[test]
    fn what_is_written_is_read_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        let written = sample();
        written.write(&path).unwrap();
        let read = Checkpoint::read(&path, &identity("abc")).unwrap();
        assert_eq!(read.record, written.record);
        assert_eq!(read.best[0].1.bytes(), written.best[0].1.bytes());
        assert_eq!(read.fixed[0].1.bytes(), written.fixed[0].1.bytes());
        let state = |c: &Checkpoint, name: &str| c.states.iter().find(|(n, _)| n == name).unwrap().1.clone();
        assert_eq!(state(&read, "step").bytes(), state(&written, "step").bytes());
        let bytes = std::fs::read(&path).unwrap();
        written.write(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the same state gives the same file");
    }

    #[test]
    fn other_runs_and_damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        sample().write(&path).unwrap();
        let message = |model: &str| {
            let text = Checkpoint::read(&path, &identity(model)).unwrap_err().to_string();
            text.split_once("`: ").unwrap().1.to_string()
        };
        assert_eq!(message("abd"), "it was written by another run: the model was abc, is abd");
        let mut other = identity("abc");
        other[1] = ("the clip".into(), "1".into());
        assert_eq!(
            differences(&identity("abc"), &other).unwrap(),
            "the seed was 0, is nothing; the clip was nothing, is 1"
        );
        assert!(Checkpoint::claim(Some(&path), true).is_ok() && Checkpoint::claim(None, false).is_ok());
        assert!(Checkpoint::claim(Some(&path), false).unwrap_err().to_string().contains("`--resume`"));
        let mut lost = sample();
        lost.record.best_step = 11;
        lost.write(&path).unwrap();
        assert_eq!(message("abc"), "its best step 11 was not evaluated");
        sample().write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        assert!(!message("abc").is_empty());
        std::fs::write(&path, b"text").unwrap();
        assert!(!message("abc").is_empty());
    }
}
