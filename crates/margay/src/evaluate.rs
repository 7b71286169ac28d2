//! Models on samples with labels: one number each, beside one another.

use std::str::FromStr;

use margay_driver::{Arrays, Samples};
use margay_ir::ops::Numbers;
use margay_tensor::{DType, Tensor};
use serde::Serialize;

use crate::{Error, Predictor};

/// Samples run at once where a model takes any number.
const SAMPLES_AT_ONCE: usize = 64;

/// A label that does not count, as in training.
const IGNORED: i64 = -100;

/// What is measured of outputs against labels. Labels of the first three are integers, one for each row of the output's
/// last axis; -100 does not count. Those of the last one are numbers like the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// The share of rows whose greatest number is that of the label; of equal ones the first is the greatest.
    Accuracy,
    /// The share of rows in which fewer than five numbers are greater than that of the label.
    Top5,
    /// The mean cross-entropy: `ln Σ exp(x) - x[label]`.
    Loss,
    /// The mean squared difference.
    Mse,
}

impl Metric {
    /// All of them, with the words for them.
    pub const ALL: [(&str, Metric); 4] = [
        ("accuracy", Metric::Accuracy),
        ("top5", Metric::Top5),
        ("loss", Metric::Loss),
        ("mse", Metric::Mse),
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        Metric::ALL.iter().find(|(_, m)| *m == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Metric, String> {
        let known: Vec<&str> = Metric::ALL.iter().map(|(name, _)| *name).collect();
        let found = Metric::ALL.iter().find(|(name, _)| *name == text).map(|(_, metric)| *metric);
        found.ok_or_else(|| format!("expected one of {}", known.join(", ")))
    }
}

/// What was measured of a model.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Evaluated {
    /// The model, as [`Predictor::name`] has it.
    pub path: String,
    /// The metric.
    pub value: f64,
    /// The share of rows whose greatest number is at the place where it is in the first model; `None` for numbers as labels.
    pub agreement: Option<f64>,
    /// Bytes of all constants that its code reads.
    pub constant_bytes: u64,
}

/// Measures models on samples, with a row of labels for each. `output` names the output; `None` for the
/// only one of floating point numbers.
///
/// # Errors
/// Inputs that do not fit; [`Error::Options`] for outputs and labels that do not.
pub fn evaluate(
    models: &mut [Predictor],
    samples: &Samples,
    labels: &Tensor,
    output: Option<&str>,
    metric: Metric,
) -> Result<Vec<Evaluated>, Error> {
    let inputs = samples.arrays().iter().cloned();
    let named = inputs.chain([("the labels".into(), labels.clone())]).collect();
    let samples = Samples::with_shared(named, samples.shared().clone())?;
    let mut sums = vec![Sum::default(); models.len()];
    for first in (0..samples.rows()).step_by(SAMPLES_AT_ONCE) {
        let mut batch = samples.row(first, SAMPLES_AT_ONCE.min(samples.rows() - first))?;
        let (_, labels) = batch.pop().expect("labels are the last array");
        let mut best: Option<Vec<usize>> = None;
        for (model, sum) in models.iter_mut().zip(&mut sums) {
            let outputs = model.predict(&batch)?;
            let found = the_output(&outputs, output)?;
            match metric {
                Metric::Mse => sum.add_numbers(found, &labels)?,
                _ => {
                    let rows = Rows::of(found, &labels)?;
                    let own = rows.best();
                    sum.add_rows(&rows, metric);
                    sum.agreed +=
                        own.iter().zip(best.get_or_insert(own.clone())).filter(|(a, b)| a == b).count();
                }
            }
        }
    }
    if sums.iter().any(|sum| sum.count == 0) {
        return Err(Error::Options("no label counts: all of them are -100".into()));
    }
    let evaluated = |(model, sum): (&mut Predictor, Sum)| {
        let first = samples.row(0, SAMPLES_AT_ONCE.min(samples.rows()))?;
        Ok(Evaluated {
            path: model.name().to_owned(),
            value: sum.total / sum.count as f64,
            agreement: (metric != Metric::Mse).then(|| sum.agreed as f64 / sum.count as f64),
            constant_bytes: model.constant_bytes(&first[..first.len() - 1])?,
        })
    };
    models.iter_mut().zip(sums).map(evaluated).collect()
}

/// The output of a name, or the only one of floating point numbers.
fn the_output<'o>(outputs: &'o Arrays, name: Option<&str>) -> Result<&'o Tensor, Error> {
    let known: Vec<&(String, Tensor)> = outputs.iter().filter(|(_, t)| t.dtype().is_float()).collect();
    let list = || known.iter().map(|(n, _)| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match (name, known.as_slice()) {
        (None, [(_, only)]) => Ok(only),
        (None, _) => Err(Error::Options(format!("which output is evaluated? the model has {}", list()))),
        (Some(name), known) => match known.iter().find(|(n, _)| n == name) {
            Some((_, t)) => Ok(t),
            None => Err(Error::Options(format!("the model has no output `{name}`; it has {}", list()))),
        },
    }
}

/// Rows of numbers with the labels that count.
struct Rows {
    numbers: Vec<f64>,
    classes: usize,
    /// The row and its label.
    labels: Vec<(usize, usize)>,
}

impl Rows {
    fn of(output: &Tensor, labels: &Tensor) -> Result<Rows, Error> {
        let refused = |expected: String| {
            let found = format!("{}{:?}", labels.dtype(), labels.shape());
            Error::Options(format!("labels: expected {expected}, found {found}"))
        };
        let Some((&classes, rows)) = output.shape().split_last() else {
            return Err(refused("an output with classes on its last axis".into()));
        };
        if !labels.dtype().is_int() {
            return Err(refused("integers".into()));
        }
        if labels.shape() != rows {
            return Err(refused(format!("integers of shape {rows:?}")));
        }
        let numbers = |t: &Tensor| Numbers::of(t).map_err(|e| Error::Options(e.to_string()));
        let mut counted = Vec::new();
        for (row, label) in numbers(labels)?.ints().into_iter().enumerate().filter(|(_, l)| *l != IGNORED) {
            match usize::try_from(label).ok().filter(|l| *l < classes) {
                Some(label) => counted.push((row, label)),
                None => return Err(refused(format!("classes from 0 to {}, but for -100", classes - 1))),
            }
        }
        Ok(Rows { numbers: numbers(output)?.floats(), classes, labels: counted })
    }

    fn counted(&self) -> impl Iterator<Item = (&[f64], usize)> {
        self.labels.iter().map(|(row, label)| (&self.numbers[row * self.classes..][..self.classes], *label))
    }

    /// The place of the greatest number in each row that counts.
    fn best(&self) -> Vec<usize> {
        let best = |row: &[f64]| {
            let first = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
            first.unwrap_or(0)
        };
        self.counted().map(|(row, _)| best(row)).collect()
    }
}

/// What is summed up of a model.
#[derive(Clone, Copy, Default)]
struct Sum {
    total: f64,
    count: usize,
    agreed: usize,
}

impl Sum {
    fn add_rows(&mut self, rows: &Rows, metric: Metric) {
        let of = |(row, label): (&[f64], usize)| match metric {
            Metric::Accuracy => f64::from(greater(row, label) == 0),
            Metric::Top5 => f64::from(greater(row, label) < 5),
            Metric::Loss => {
                let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                most + row.iter().map(|x| (x - most).exp()).sum::<f64>().ln() - row[label]
            }
            Metric::Mse => unreachable!("numbers have no rows"),
        };
        self.total += rows.counted().map(of).sum::<f64>();
        self.count += rows.labels.len();
    }

    fn add_numbers(&mut self, output: &Tensor, labels: &Tensor) -> Result<(), Error> {
        if output.shape() != labels.shape() || !matches!(labels.dtype(), DType::F32 | DType::F64 | DType::F16)
        {
            let of = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
            let message = format!("labels: expected {}, found {}", of(output), of(labels));
            return Err(Error::Options(message));
        }
        let numbers = |t: &Tensor| match Numbers::of(t) {
            Ok(numbers) => Ok(numbers.floats()),
            Err(e) => Err(Error::Options(e.to_string())),
        };
        let (x, y) = (numbers(output)?, numbers(labels)?);
        self.total += x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        self.count += x.len();
        Ok(())
    }
}

/// How many numbers of a row come before that of a label.
fn greater(row: &[f64], label: usize) -> usize {
    let before = |(i, x): (usize, &f64)| match x.total_cmp(&row[label]) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => i < label,
        std::cmp::Ordering::Less => false,
    };
    row.iter().enumerate().filter(|(i, x)| before((*i, x))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(metric: Metric, labels: &[i64]) -> f64 {
        let output =
            Tensor::from_slice(&[2, 6], &[0.0f32, 3.0, 1.0, 3.0, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let labels = Tensor::from_slice(&[2], labels).unwrap();
        let rows = Rows::of(&output.unwrap(), &labels).unwrap();
        let mut sum = Sum::default();
        sum.add_rows(&rows, metric);
        sum.total / sum.count as f64
    }

    #[test]
    fn metrics_of_classes() {
        assert_eq!(measured(Metric::Accuracy, &[1, 5]), 1.0);
        // Of two equal numbers the first is the greatest.
        assert_eq!(measured(Metric::Accuracy, &[3, 5]), 0.5);
        assert_eq!(measured(Metric::Accuracy, &[3, -100]), 0.0);
        assert_eq!(measured(Metric::Top5, &[4, 5]), 0.5);
        assert_eq!(measured(Metric::Top5, &[0, 3]), 1.0);
        let second = (5.0 + 1f64.exp()).ln() - 1.0;
        assert!((measured(Metric::Loss, &[-100, 5]) - second).abs() < 1e-9);
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let output = Tensor::zeros(DType::F32, &[2, 3]).unwrap();
        let refused = |labels: Tensor| Rows::of(&output, &labels).err().unwrap().to_string();
        let classes = Tensor::from_slice(&[2], &[0i64, 3]).unwrap();
        assert_eq!(refused(classes), "labels: expected classes from 0 to 2, but for -100, found i64[2]");
        assert_eq!(
            refused(Tensor::zeros(DType::I64, &[3]).unwrap()),
            "labels: expected integers of shape [2], found i64[3]"
        );
        assert_eq!(
            refused(Tensor::zeros(DType::F32, &[2]).unwrap()),
            "labels: expected integers, found f32[2]"
        );
        let numbers = Sum::default().add_numbers(&output, &Tensor::zeros(DType::F32, &[2]).unwrap());
        assert_eq!(numbers.unwrap_err().to_string(), "labels: expected f32[2, 3], found f32[2]");
    }
}
