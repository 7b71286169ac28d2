//! What was done to a model, and what it costs.
//!
//! The JSON form of [`Report`] is what `--report` writes and `explain --json` prints: the fields below, under the same
//! names.

use margay_plan::{Choice, Settings};
use serde::{Deserialize, Serialize};

use crate::{ErrorMeasure, LayerRefit, MetricReport};

/// What was done to one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// Its name in plans.
    pub name: String,
    /// `linear`, `conv`, `embedding` and so on, as the site says.
    pub kind: String,
    /// Rows of the weight as a matrix.
    pub d_in: usize,
    /// Columns of the weight as a matrix.
    pub d_out: usize,
    /// The scheme, or `dense`.
    pub scheme: String,
    /// The settings of the scheme, such as `rank`.
    #[serde(flatten)]
    pub settings: Settings,
    /// How the constants are stored that its products read, where a plan says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// Stored bytes of the weight before.
    pub bytes_before: u64,
    /// Stored bytes after.
    pub bytes_after: u64,
    /// Predicted milliseconds of its nodes, and of what is computed along with them, before.
    pub predicted_ms_before: f64,
    /// Predicted milliseconds after.
    pub predicted_ms_after: f64,
    /// Relative L2 error of its own output on the calibration samples, before the refit, weighed by what the outputs of the
    /// model depend on where that is known (of its weight, without samples).
    pub layer_error: f64,
    /// Predicted relative L2 error of the model's outputs from this site alone; absent without samples.
    pub output_error: Option<f64>,
    /// Why it is as it is, in words with numbers.
    pub why: String,
}

impl ModuleReport {
    /// Whether it is sketched.
    pub fn is_sketched(&self) -> bool {
        self.scheme != margay_plan::plan::DENSE
    }

    /// The scheme with its settings, as in `lowrank, rank 16, stored int8`.
    pub fn now(&self) -> String {
        let (scheme, settings) = (self.scheme.clone(), self.settings.clone());
        Choice { scheme, settings, storage: self.storage.clone(), seed: None }.to_string()
    }
}

/// The precision of reports that do not name one.
fn plain() -> String {
    margay_loops::Precision::F32.name().into()
}

/// What was done to a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Identifies the model with its weights.
    pub model_hash: String,
    /// The processor class.
    pub target_cpu: String,
    /// The cost model that predicted times.
    pub cost_model: String,
    /// Threads that times were predicted for.
    pub threads: usize,
    /// Seed of the random numbers.
    pub seed: u64,
    /// How constants of products are stored, where nothing else was said: `f32`, `bf16` or `int8`.
    #[serde(default = "plain")]
    pub precision: String,
    /// The goal, in words.
    pub goal: String,
    /// Bytes of the weights of products and convolutions before, as kernels read them, padding included.
    pub bytes_before: u64,
    /// The same after: the bytes of these constants in the artifact.
    pub bytes_after: u64,
    /// Bytes of all constants that the code of the dense model reads: these weights, biases, tables and the rest.
    #[serde(default)]
    pub constant_bytes_before: u64,
    /// The same after.
    #[serde(default)]
    pub constant_bytes_after: u64,
    /// Multiplications and additions of products and convolutions before.
    pub flops_before: u64,
    /// Multiplications and additions of products and convolutions after.
    pub flops_after: u64,
    /// Predicted milliseconds of one run before.
    pub predicted_ms_before: f64,
    /// Predicted milliseconds of one run after.
    pub predicted_ms_after: f64,
    /// Error on samples that nothing was calibrated on; absent without samples. With an error limit these samples
    /// decided which choice meets it.
    pub held_out: Option<ErrorMeasure>,
    /// The numbers of the samples that this was measured on; nothing of the choice has seen them, but for an error limit.
    #[serde(default)]
    pub held_out_rows: Vec<usize>,
    /// Values of the symbols that times and operations are stated for.
    pub dims: std::collections::BTreeMap<String, i64>,
    /// The sites, in the order of the model; of those that share weights, the ones that are sketched.
    pub modules: Vec<ModuleReport>,
    /// What the refit made of each sketched layer, with its errors on the calibration samples that decided. Nothing where
    /// there was none, or where the limit of the error allowed none.
    #[serde(default)]
    pub refits: Vec<LayerRefit>,
    /// What the user's metric says, where the goal is a drop of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricReport>,
    /// What passes declined, in words.
    pub remarks: Vec<String>,
    /// What should make a reader doubt the result, in words with numbers.
    #[serde(default)]
    pub warnings: Vec<String>,
}
