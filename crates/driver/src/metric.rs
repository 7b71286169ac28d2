//! A measure of models that the user brings.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use margay_ir::Graph;
use serde::{Deserialize, Serialize};

use crate::DriverError;

/// A number for a model, larger for better ones, and the words that name it.
#[derive(Clone)]
pub struct OwnMetric {
    name: String,
    measure: Arc<Measure>,
}

type Measure = dyn Fn(&Graph) -> Result<f64, String> + Send + Sync;

impl OwnMetric {
    /// A metric that a function measures; what it says of a failure is shown to the user.
    pub fn new(
        name: impl Into<String>,
        measure: impl Fn(&Graph) -> Result<f64, String> + Send + Sync + 'static,
    ) -> OwnMetric {
        OwnMetric { name: name.into(), measure: Arc::new(measure) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number for a model.
    ///
    /// # Errors
    /// [`DriverError::Options`] where it cannot be measured, or is no number.
    pub fn of(&self, g: &Graph) -> Result<f64, DriverError> {
        let found = (self.measure)(g);
        let found =
            found.map_err(|why| DriverError::Options(format!("the metric `{}`: {why}", self.name)))?;
        match found.is_nan() {
            true => Err(DriverError::Options(format!("the metric `{}` is no number", self.name))),
            false => Ok(found),
        }
    }
}

impl fmt::Debug for OwnMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnMetric({})", self.name)
    }
}

/// A metric during one compilation, which is asked once for every graph: it may take long.
pub(crate) struct Asked<'a> {
    metric: &'a OwnMetric,
    /// Of the dense model.
    pub(crate) dense: f64,
    /// By the hash of a graph's text, which names constants by what they hold.
    known: RefCell<HashMap<blake3::Hash, f64>>,
}

impl<'a> Asked<'a> {
    /// Asks for the dense model.
    ///
    /// # Errors
    /// As [`OwnMetric::of`], and [`DriverError::Options`] where it is infinite.
    pub(crate) fn new(metric: &'a OwnMetric, dense: &Graph) -> Result<Asked<'a>, DriverError> {
        let mut asked = Asked { metric, dense: 0.0, known: RefCell::default() };
        asked.dense = asked.of(dense)?;
        match asked.dense.is_finite() {
            true => Ok(asked),
            false => Err(DriverError::Options(format!(
                "the metric `{}` is {} for the dense model: nothing can be compared with that",
                metric.name, asked.dense
            ))),
        }
    }

    /// As [`OwnMetric::of`].
    pub(crate) fn of(&self, g: &Graph) -> Result<f64, DriverError> {
        let key = blake3::hash(g.to_string().as_bytes());
        if let Some(found) = self.known.borrow().get(&key) {
            return Ok(*found);
        }
        let found = self.metric.of(g)?;
        self.known.borrow_mut().insert(key, found);
        Ok(found)
    }

    /// What it says of the result.
    ///
    /// # Errors
    /// As [`OwnMetric::of`].
    pub(crate) fn report(&self, sketched: &Graph) -> Result<MetricReport, DriverError> {
        let (name, sketched) = (self.metric.name().to_owned(), self.of(sketched)?);
        Ok(MetricReport { name, dense: self.dense, sketched })
    }
}

/// What a metric says of a compilation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricReport {
    /// Its name.
    pub name: String,
    /// Of the dense model.
    pub dense: f64,
    /// Of the sketched one.
    pub sketched: f64,
}
