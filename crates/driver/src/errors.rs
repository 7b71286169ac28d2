//! How far the outputs of a model are from those of another: the one place where errors of outputs are computed.
//!
//! Beside the error relative to the outputs themselves stands one relative to how they vary from sample to sample: outputs
//! that are nearly the same for all samples have a small error of the first kind even where a model no longer tells samples
//! apart. One minus its square is the share of the variance that is explained.

use margay_ir::ops::Numbers;
use margay_tensor::Tensor;
use serde::{Deserialize, Deserializer, Serialize};

use crate::bounds::{self, ErrorBound};
use crate::mask::{Marks, Mask, MaskChoice};
use crate::samples::is_measured;
use crate::{Arrays, DriverError};

/// What counts in an error.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ErrorScope {
    /// The input that marks padding. It applies to the outputs whose first axes are those of the mask.
    pub mask: MaskChoice,
    /// The outputs that count; empty for all of floating point numbers.
    pub outputs: Vec<String>,
}

impl ErrorScope {
    /// Fails where it names inputs or outputs that a graph does not have.
    ///
    /// # Errors
    /// [`DriverError::Options`] with the names that there are.
    pub fn check(&self, g: &margay_ir::Graph) -> Result<(), DriverError> {
        Mask::find(g, &self.mask)?;
        let known: Vec<(&str, bool)> =
            g.outputs().iter().map(|o| (&*o.name, is_measured(g.ty(o.value).dtype))).collect();
        self.check_outputs(&known)
    }

    /// Fails where nothing counts in runs on these inputs.
    ///
    /// # Errors
    /// [`DriverError::Options`] for a mask that is not there, or marks everything as padding.
    pub fn check_inputs(&self, inputs: &[(String, Tensor)]) -> Result<(), DriverError> {
        let ndim_of = |name: &str| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape().len());
        Mask::among(&self.mask, &ndim_of)?.check(inputs)
    }

    /// As [`check`](ErrorScope::check) for outputs by their names, with whether each is of floating point numbers.
    fn check_outputs(&self, known: &[(&str, bool)]) -> Result<(), DriverError> {
        for name in &self.outputs {
            if known.iter().all(|(n, is_float)| n != name || !is_float) {
                let list: Vec<String> =
                    known.iter().filter(|(_, is_float)| *is_float).map(|(n, _)| format!("`{n}`")).collect();
                return Err(DriverError::Options(format!(
                    "the model has no floating point output `{name}`; it has {}",
                    list.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// The graph with no other outputs than those that count.
    pub fn restricted(&self, g: &margay_ir::Graph) -> margay_ir::Graph {
        let mut g = g.clone();
        g.set_outputs(g.outputs().iter().filter(|o| self.counts(&o.name)).cloned().collect());
        g
    }

    fn counts(&self, name: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|n| n == name)
    }
}

/// How far an output is from that of the dense model, over all samples together. `y` are the numbers of the dense model
/// that count, `ŷ` those of the other one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputError {
    /// Its name.
    pub name: String,
    /// `‖y - ŷ‖ / ‖y‖`; infinite where `y` is zero.
    #[serde(deserialize_with = "infinite_if_null")]
    pub relative_l2: f64,
    /// `‖y - ŷ‖ / ‖y - ȳ‖`, `ȳ` being the mean over samples of every element; absent with fewer than two samples, and where
    /// they all have the same outputs.
    pub centred_l2: Option<f64>,
    /// `⟨y, ŷ⟩ / (‖y‖ ‖ŷ‖)`.
    pub cosine: f64,
    /// The largest `|y - ŷ|` of an element.
    #[serde(deserialize_with = "infinite_if_null")]
    pub max_abs: f64,
    /// Of the mean over the places of a sample that count, where padding is marked and the output is a row of vectors for
    /// each sample: sentence encoders are used that way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled: Option<PooledError>,
}

/// How far means over places are from those of the dense model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PooledError {
    /// The norm of all differences, relative to that of the means of the dense model.
    #[serde(deserialize_with = "infinite_if_null")]
    pub relative_l2: f64,
    /// The mean over samples of the cosine of the angle between the two means.
    pub cosine: f64,
}

/// How far outputs are from those of the dense model, over all floating point outputs that count and samples together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorMeasure {
    /// `‖y - ŷ‖ / ‖y‖`.
    pub relative_l2: f64,
    /// `‖y - ŷ‖ / ‖y - ȳ‖`; see [`OutputError::centred_l2`].
    #[serde(default)]
    pub centred_l2: Option<f64>,
    /// `⟨y, ŷ⟩ / (‖y‖ ‖ŷ‖)`.
    pub cosine: f64,
    /// Number of samples.
    pub samples: usize,
    /// The input whose zeros mark what does not count.
    #[serde(default)]
    pub mask: Option<String>,
    /// The only outputs that count; empty where all of floating point numbers do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// Each output that counts.
    #[serde(default)]
    pub outputs: Vec<OutputError>,
    /// What a further sample errs by at most, with a probability of 90, 95 and 99%, where there are samples enough;
    /// none where these samples had a part in the choice.
    #[serde(default)]
    pub bounds: Vec<ErrorBound>,
    /// What the share of these samples that a limit is for does not exceed, where the limit is for a share of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantile: Option<ErrorBound>,
    /// Of each sample, ascending, where outputs are of single samples.
    #[serde(skip)]
    by_sample: Vec<f64>,
}

impl ErrorMeasure {
    /// What so large a share of the samples does not exceed, as [`ErrorBound`] counts; `None` with too few of them.
    pub(crate) fn bound(&self, level: f64) -> Option<f64> {
        bounds::bound(&self.by_sample, level)
    }
}

/// JSON has no infinity.
pub(crate) fn infinite_if_null<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::INFINITY))
}

/// A spread below this share of the energy is that of rounding.
const ROUNDING: f64 = 1e-12;

/// Sums errors over outputs and samples.
#[derive(Clone, Debug, Default)]
pub struct ErrorSum {
    scope: ErrorScope,
    mask: Mask,
    outputs: Vec<OutputSum>,
    samples: usize,
    /// By sample the squared difference and the squared size of its outputs; `None` once an output is not of single samples.
    by_sample: Option<Vec<(f64, f64)>>,
}

impl ErrorSum {
    /// Nothing summed up yet.
    pub fn new(scope: &ErrorScope) -> ErrorSum {
        ErrorSum { scope: scope.clone(), by_sample: Some(Vec::new()), ..ErrorSum::default() }
    }

    /// Adds the outputs of one run with these inputs, of which the mask is one; they also say how many samples a run has, by
    /// the leading extent that they share. Integer outputs do not count.
    ///
    /// # Errors
    /// [`DriverError::Measure`] for outputs that do not correspond, or where there are none to compare;
    /// [`DriverError::Options`] for names that do not exist.
    pub fn add(
        &mut self,
        inputs: &[(String, Tensor)],
        reference: &[(String, Tensor)],
        found: &[(String, Tensor)],
    ) -> Result<(), DriverError> {
        let ndim_of = |name: &str| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape().len());
        self.mask = Mask::among(&self.scope.mask, &ndim_of)?;
        let known: Vec<(&str, bool)> =
            reference.iter().map(|(n, t)| (n.as_str(), is_measured(t.dtype()))).collect();
        self.scope.check_outputs(&known)?;
        let marks = self.mask.marks(inputs);
        let samples = rows_of(inputs);
        let mut by_sample = Some(vec![(0.0, 0.0); samples]);
        let mut any = false;
        for (name, a) in reference.iter().filter(|(n, t)| is_measured(t.dtype()) && self.scope.counts(n)) {
            let b = corresponding(name, a, found)?;
            any = true;
            let at = self.outputs.iter().position(|o| o.name == *name).unwrap_or_else(|| {
                self.outputs.push(OutputSum::new(name));
                self.outputs.len() - 1
            });
            let marks = marks.as_ref().filter(|marks| marks.apply_to(a.shape()));
            let single = self.outputs[at].add(a, b, samples, marks.map(Marks::counts))?;
            by_sample = by_sample.zip(single).map(|(mut sums, single)| {
                let both = sums.iter_mut().zip(single);
                both.for_each(|(sum, one)| *sum = (sum.0 + one.0, sum.1 + one.1));
                sums
            });
        }
        if !any {
            return Err(DriverError::Measure("the model has no floating point output to compare".into()));
        }
        self.samples += samples;
        self.by_sample = self.by_sample.take().zip(by_sample).map(|(mut all, more)| {
            all.extend(more);
            all
        });
        Ok(())
    }

    /// The error so far.
    pub fn measure(&self) -> ErrorMeasure {
        let mut all = Squares::default();
        self.outputs.iter().for_each(|o| all.merge(&o.squares));
        let spread: Option<f64> = self.outputs.iter().map(OutputSum::spread).sum();
        let by_sample = self.by_sample.as_deref().map_or(Vec::new(), bounds::ascending);
        ErrorMeasure {
            relative_l2: all.relative_l2(),
            centred_l2: centred(all.difference, spread.filter(|s| *s > ROUNDING * all.reference)),
            cosine: all.cosine(),
            samples: self.samples,
            mask: self.mask.input().map(str::to_owned),
            only: self.scope.outputs.clone(),
            outputs: self.outputs.iter().map(OutputSum::error).collect(),
            bounds: bounds::bounds(&by_sample),
            quantile: None,
            by_sample,
        }
    }

    /// The norm of what tells samples apart in the reference, relative to that of the reference: `‖y - ȳ‖ / ‖y‖`. `None`
    /// with fewer than two samples.
    pub fn relative_spread(&self) -> Option<f64> {
        let energy: f64 = self.outputs.iter().map(|o| o.squares.reference).sum();
        let spread = self.outputs.iter().map(OutputSum::spread).sum::<Option<f64>>()?;
        (energy > 0.0).then(|| if spread > ROUNDING * energy { (spread / energy).sqrt() } else { 0.0 })
    }

    /// The largest absolute difference of two elements.
    pub fn max_abs(&self) -> f64 {
        self.outputs.iter().fold(0.0, |most, o| larger(most, o.squares.max_abs))
    }

    /// Whether all numbers were finite.
    pub fn is_finite(&self) -> bool {
        self.outputs.iter().all(|o| o.squares.reference.is_finite() && o.squares.difference.is_finite())
    }
}

/// The error of one pair of outputs of any type in a single run, and the pairs of numbers that count.
///
/// # Errors
/// As [`ErrorSum::add`].
pub fn output_error(
    name: &str,
    inputs: &Arrays,
    reference: &Tensor,
    found: &[(String, Tensor)],
    mask: &MaskChoice,
) -> Result<(OutputError, Vec<(f64, f64)>), DriverError> {
    let ndim_of = |name: &str| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape().len());
    let mask = Mask::among(mask, &ndim_of)?;
    let marks = mask.marks(inputs).filter(|marks| marks.apply_to(reference.shape()));
    let marks = marks.as_ref().map(Marks::counts);
    let other = corresponding(name, reference, found)?;
    let mut sum = OutputSum::new(name);
    sum.add(reference, other, rows_of(inputs), marks)?;
    let (x, y) = (numbers(name, reference)?, numbers(name, other)?);
    let width = width(x.len(), marks);
    let counted = |i: usize| marks.as_ref().is_none_or(|m| m[i / width]);
    let pairs = x.into_iter().zip(y).enumerate().filter(|(i, _)| counted(*i)).map(|(_, pair)| pair);
    Ok((sum.error(), pairs.collect()))
}

/// The output of the same name and type.
fn corresponding<'f>(
    name: &str,
    a: &Tensor,
    found: &'f [(String, Tensor)],
) -> Result<&'f Tensor, DriverError> {
    let b = found.iter().find(|(n, _)| n == name).map(|(_, t)| t);
    b.filter(|b| b.shape() == a.shape() && b.dtype() == a.dtype()).ok_or_else(|| {
        let describe = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
        DriverError::Measure(format!(
            "output `{name}` is {} in the reference and {} in the other model",
            describe(a),
            b.map_or("absent".into(), describe)
        ))
    })
}

fn numbers(name: &str, t: &Tensor) -> Result<Vec<f64>, DriverError> {
    let numbers = Numbers::of(t).map_err(|e| DriverError::Measure(format!("output `{name}`: {e}")))?;
    Ok(numbers.floats())
}

/// The samples of a run: the leading extent that all inputs share, or 1.
fn rows_of(inputs: &[(String, Tensor)]) -> usize {
    let mut extents = inputs.iter().map(|(_, t)| t.shape().first().copied());
    let Some(Some(first)) = extents.next() else { return 1 };
    if first > 0 && extents.all(|e| e == Some(first)) { first } else { 1 }
}

/// How many elements of an output each mark stands for.
fn width(elements: usize, marks: Option<&[bool]>) -> usize {
    marks.map_or(1, |m| (elements / m.len().max(1)).max(1))
}

/// The larger of two sizes; what is no number stays.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn centred(difference: f64, spread: Option<f64>) -> Option<f64> {
    spread.filter(|s| *s > 0.0).map(|s| (difference / s).sqrt()).filter(|e| e.is_finite())
}

/// Sums over pairs of numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Squares {
    reference: f64,
    found: f64,
    product: f64,
    difference: f64,
    max_abs: f64,
}

impl Squares {
    fn add(&mut self, x: f64, y: f64) {
        // Infinities and what is no number are alike where both have them.
        let gap = if x == y || x.is_nan() && y.is_nan() { 0.0 } else { (x - y).abs() };
        self.reference += x * x;
        self.found += y * y;
        self.product += x * y;
        self.difference += gap * gap;
        self.max_abs = larger(self.max_abs, gap);
    }

    fn merge(&mut self, other: &Squares) {
        self.reference += other.reference;
        self.found += other.found;
        self.product += other.product;
        self.difference += other.difference;
        self.max_abs = larger(self.max_abs, other.max_abs);
    }

    fn relative_l2(&self) -> f64 {
        match self.difference == 0.0 {
            true => 0.0,
            false if self.difference.is_nan() => f64::INFINITY,
            false => (self.difference / self.reference).sqrt(),
        }
    }

    fn cosine(&self) -> f64 {
        let scale = (self.reference * self.found).sqrt();
        match (self.difference == 0.0, scale == 0.0) {
            (true, _) => 1.0,
            (false, true) => 0.0,
            (false, false) => self.product / scale,
        }
    }
}

/// Sums of one output.
#[derive(Clone, Debug)]
struct OutputSum {
    name: String,
    squares: Squares,
    /// By element of a sample: in how many samples it counted, and the sum of the reference there.
    elements: Vec<(u32, f64)>,
    /// Samples have different numbers of elements, so that elements have no mean.
    uneven: bool,
    pooled: Option<PooledSum>,
}

/// Sums over means of places.
#[derive(Clone, Copy, Debug, Default)]
struct PooledSum {
    squares: Squares,
    cosines: f64,
    samples: usize,
}

impl OutputSum {
    fn new(name: &str) -> OutputSum {
        OutputSum {
            name: name.to_owned(),
            squares: Squares::default(),
            elements: Vec::new(),
            uneven: false,
            pooled: None,
        }
    }

    /// Adds one run; returns the squared difference and the squared size by sample, where the output has a part for each.
    fn add(
        &mut self,
        a: &Tensor,
        b: &Tensor,
        samples: usize,
        marks: Option<&[bool]>,
    ) -> Result<Option<Vec<(f64, f64)>>, DriverError> {
        let (x, y) = (numbers(&self.name, a)?, numbers(&self.name, b)?);
        let of_samples = a.shape().first() == Some(&samples) || samples == 1;
        let samples = if of_samples { samples } else { 1 };
        let mut single = vec![Squares::default(); samples];
        let size = x.len() / samples.max(1);
        if self.elements.is_empty() {
            self.elements = vec![(0, 0.0); size];
        }
        self.uneven |= self.elements.len() != size;
        let width = width(x.len(), marks);
        for (i, (&x, &y)) in x.iter().zip(&y).enumerate() {
            if marks.is_some_and(|m| !m[i / width]) {
                continue;
            }
            single[i / size].add(x, y);
            if !self.uneven {
                let (count, sum) = &mut self.elements[i % size];
                *count += 1;
                *sum += x;
            }
        }
        if let (Some(marks), &[samples, places, features]) = (marks, a.shape()) {
            let pooled = self.pooled.get_or_insert_default();
            for s in 0..samples {
                let marks = &marks[s * places..][..places];
                let part = s * places * features..(s + 1) * places * features;
                pooled.add(&x[part.clone()], &y[part], marks, features);
            }
        }
        single.iter().for_each(|one| self.squares.merge(one));
        Ok(of_samples.then(|| single.iter().map(|s| (s.difference, s.reference)).collect()))
    }

    /// `‖y - ȳ‖²`; `None` where it cannot be known.
    fn spread(&self) -> Option<f64> {
        if self.uneven || self.elements.iter().all(|(count, _)| *count < 2) {
            return None;
        }
        let of_means = self.elements.iter().filter(|(count, _)| *count > 0);
        let of_means: f64 = of_means.map(|(count, sum)| sum * sum / f64::from(*count)).sum();
        Some((self.squares.reference - of_means).max(0.0))
    }

    fn error(&self) -> OutputError {
        let s = &self.squares;
        OutputError {
            name: self.name.clone(),
            relative_l2: s.relative_l2(),
            centred_l2: centred(s.difference, self.spread().filter(|v| *v > ROUNDING * s.reference)),
            cosine: s.cosine(),
            max_abs: s.max_abs,
            pooled: self.pooled.filter(|p| p.samples > 0).map(|p| PooledError {
                relative_l2: p.squares.relative_l2(),
                cosine: p.cosines / p.samples as f64,
            }),
        }
    }
}

impl PooledSum {
    /// Adds a sample: rows of `features` numbers, of which those count that are marked.
    fn add(&mut self, x: &[f64], y: &[f64], marks: &[bool], features: usize) {
        let count = marks.iter().filter(|m| **m).count();
        if count == 0 || features == 0 {
            return;
        }
        let mean = |numbers: &[f64]| {
            let mut sum = vec![0.0; features];
            for (row, _) in numbers.chunks_exact(features).zip(marks).filter(|(_, marked)| **marked) {
                sum.iter_mut().zip(row).for_each(|(s, v)| *s += v / count as f64);
            }
            sum
        };
        let mut sample = Squares::default();
        mean(x).into_iter().zip(mean(y)).for_each(|(x, y)| sample.add(x, y));
        self.cosines += sample.cosine();
        self.samples += 1;
        self.squares.merge(&sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::DType;

    fn named(list: &[(&str, &[usize], &[f32])]) -> Arrays {
        let array = |(name, shape, data): &(&str, &[usize], &[f32])| {
            (name.to_string(), Tensor::from_slice(shape, data).unwrap())
        };
        list.iter().map(array).collect()
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }

    #[test]
    fn outputs_that_are_nearly_alike_have_a_large_centred_error() {
        let inputs = named(&[("x", &[2, 1], &[0.0, 1.0])]);
        let reference = named(&[("y", &[2, 2], &[10.0, 1.0, 10.0, 3.0])]);
        // The model no longer tells the samples apart.
        let found = named(&[("y", &[2, 2], &[10.0, 2.0, 10.0, 2.0])]);
        let mut sum = ErrorSum::new(&ErrorScope::default());
        sum.add(&inputs, &reference, &found).unwrap();
        let measure = sum.measure();
        near(measure.relative_l2, (2.0f64 / 210.0).sqrt());
        near(measure.centred_l2.unwrap(), 1.0);
        near(sum.relative_spread().unwrap(), (2.0f64 / 210.0).sqrt());
        assert_eq!((measure.samples, measure.outputs[0].max_abs), (2, 1.0));
        let mut same = ErrorSum::new(&ErrorScope::default());
        same.add(&inputs, &found, &found).unwrap();
        assert_eq!((same.measure().centred_l2, same.relative_spread()), (None, Some(0.0)));
        let mut one = ErrorSum::new(&ErrorScope::default());
        one.add(&[], &reference, &found).unwrap();
        assert_eq!((one.measure().centred_l2, one.relative_spread()), (None, None));
    }

    #[test]
    fn padding_and_other_outputs_do_not_count() {
        let mask = Tensor::from_slice(&[2, 2], &[1i64, 1, 1, 0]).unwrap();
        let mut inputs = named(&[("x", &[2, 2], &[0.0; 4])]);
        inputs.push(("attention_mask".into(), mask.clone()));
        let reference = named(&[
            ("tokens", &[2, 2, 2], &[1.0, 0.0, 3.0, 0.0, 0.0, 2.0, 9.0, 9.0]),
            ("logits", &[2, 1], &[1.0, 1.0]),
        ]);
        let found = named(&[
            ("tokens", &[2, 2, 2], &[1.0, 0.0, 3.0, 0.0, 0.0, 1.0, -9.0, 9.0]),
            ("logits", &[2, 1], &[5.0, 1.0]),
        ]);
        let measured = |mask: MaskChoice, outputs: &[&str], inputs: &Arrays| {
            let outputs = outputs.iter().map(ToString::to_string).collect();
            let mut sum = ErrorSum::new(&ErrorScope { mask, outputs });
            sum.add(inputs, &reference, &found).map(|()| sum.measure())
        };
        let tokens = measured(MaskChoice::Default, &["tokens"], &inputs).unwrap();
        near(tokens.relative_l2, (1.0f64 / 14.0).sqrt());
        assert_eq!(tokens.mask.as_deref(), Some("attention_mask"));
        let pooled = tokens.outputs[0].pooled.as_ref().unwrap();
        // Means (2, 0) and (0, 2), of which the second becomes (0, 1).
        near(pooled.relative_l2, (1.0f64 / 8.0).sqrt());
        near(pooled.cosine, 1.0);
        let all = measured(MaskChoice::Default, &[], &inputs).unwrap();
        near(all.relative_l2, (17.0f64 / 16.0).sqrt());
        assert_eq!(all.outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["tokens", "logits"]);
        let unmasked = measured(MaskChoice::Nothing, &["tokens"], &inputs).unwrap();
        near(unmasked.relative_l2, (325.0f64 / 176.0).sqrt());
        assert_eq!((unmasked.mask, &unmasked.outputs[0].pooled), (None, &None));
        let other = vec![inputs[0].clone(), ("keep".to_string(), mask)];
        let named = measured(MaskChoice::Input("keep".into()), &["tokens"], &other).unwrap();
        assert_eq!(named.relative_l2, tokens.relative_l2);
        let refused = |mask, outputs: &[&str]| measured(mask, outputs, &inputs).unwrap_err().to_string();
        assert_eq!(
            refused(MaskChoice::Default, &["token"]),
            "the model has no floating point output `token`; it has `tokens`, `logits`"
        );
        assert_eq!(refused(MaskChoice::Input("m".into()), &[]), "the model has no input `m` to mask by");
    }

    #[test]
    fn a_report_with_an_infinite_error_is_read_again() {
        let mut sum = ErrorSum::new(&ErrorScope::default());
        let outputs = |a: f32| named(&[("zero", &[1], &[a]), ("one", &[1], &[1.0])]);
        sum.add(&[], &outputs(0.0), &outputs(1.0)).unwrap();
        let measure = sum.measure();
        assert_eq!((measure.relative_l2, measure.outputs[0].relative_l2), (1.0, f64::INFINITY));
        let text = serde_json::to_string(&measure).unwrap();
        let read: ErrorMeasure = serde_json::from_str(&text).unwrap();
        assert_eq!(ErrorMeasure { by_sample: measure.by_sample.clone(), ..read }, measure);
        let old = r#"{"relative_l2": 0.5, "cosine": 0.9, "samples": 4}"#;
        assert_eq!(serde_json::from_str::<ErrorMeasure>(old).unwrap().outputs, []);
        let ids = vec![("ids".to_string(), Tensor::zeros(DType::I64, &[1]).unwrap())];
        assert!(ErrorSum::default().add(&[], &ids, &ids).is_err());
    }
}
