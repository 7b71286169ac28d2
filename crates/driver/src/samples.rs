//! Calibration and held-out data.

use std::collections::{BTreeSet, HashSet};
use std::io::BufReader;
use std::path::Path;

use margay_ir::{Graph, Op};
use margay_tensor::{DType, Tensor};

use crate::DriverError;
use crate::expected::Expected;
use crate::finite::{far_out, spreading};
use crate::shared::{shared, unknown};

/// Named tensors.
pub type Arrays = Vec<(String, Tensor)>;

/// Named arrays that share their leading axis: one row is one sample. Some may be [given once](fn@crate::shared) for all
/// samples instead.
#[derive(Clone, Debug)]
pub struct Samples {
    arrays: Vec<(String, Tensor)>,
    /// Names of arrays that are given once.
    shared: BTreeSet<String>,
    rows: usize,
    /// Names of arrays in the file that were not asked for.
    others: Vec<String>,
}

impl Samples {
    /// Arrays with a common leading extent.
    ///
    /// # Errors
    /// As [`with_shared`](Samples::with_shared).
    pub fn new(arrays: Vec<(String, Tensor)>) -> Result<Samples, DriverError> {
        Samples::with_shared(arrays, BTreeSet::new())
    }

    /// The same, but that those named in `shared` are given once for all samples, in the shape that a model takes.
    ///
    /// # Errors
    /// [`DriverError::Samples`] where the others have no common leading extent, of at least 1.
    pub fn with_shared(
        arrays: Vec<(String, Tensor)>,
        shared: BTreeSet<String>,
    ) -> Result<Samples, DriverError> {
        let rows = |t: &Tensor| t.shape().first().copied();
        let mut several = arrays.iter().filter(|(name, _)| !shared.contains(name));
        let Some(first) = several.next() else {
            let why =
                if arrays.is_empty() { "there are none" } else { "no input has a row for each of them" };
            return Err(DriverError::Samples(why.into()));
        };
        let expected = rows(&first.1).filter(|rows| *rows > 0);
        for (name, t) in std::iter::once(first).chain(several) {
            if rows(t) != expected || expected.is_none() {
                let often = if *name == first.0 {
                    String::new()
                } else {
                    format!(", `{name}` has shape {:?}", t.shape())
                };
                return Err(DriverError::Samples(format!(
                    "`{}` has shape {:?}{often}; expected the same leading extent of at least 1, a row for each sample; \
                     an input that is given once for all samples is named by `--shared`",
                    first.0,
                    first.1.shape(),
                )));
            }
        }
        Ok(Samples { rows: expected.unwrap_or(0), arrays, shared, others: Vec::new() })
    }

    /// Reads an `.npz` file. Leading extents are compared [for a graph](Samples::for_graph): what else is in the file does
    /// not matter.
    pub fn open(path: &Path) -> Result<Samples, DriverError> {
        Samples::open_only(path, &|_| true)
    }

    /// As [`open`](Samples::open), but only the arrays that are `wanted` by their names are loaded.
    pub fn open_only(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Samples, DriverError> {
        let (arrays, others) = read_npz(path, wanted)?;
        let rows = first_rows(&arrays, &BTreeSet::new());
        Ok(Samples { arrays, shared: BTreeSet::new(), rows, others })
    }

    /// Marks what is given once: the inputs with the names `asked`, and those of which the declarations of all inputs and
    /// the shapes of the arrays tell it.
    ///
    /// # Errors
    /// [`DriverError::Samples`] for a name that is no input.
    pub fn shared_as(mut self, expected: &[Expected], asked: &[String]) -> Result<Samples, DriverError> {
        if let Some(why) = unknown(expected, asked) {
            return Err(DriverError::Samples(why));
        }
        self.shared.extend(asked.iter().cloned());
        self.shared = shared(expected, &self.arrays, &self.shared);
        self.rows = first_rows(&self.arrays, &self.shared);
        Ok(self)
    }

    /// Keeps the arrays that are inputs of a graph; others are left out.
    ///
    /// # Errors
    /// [`DriverError::Samples`] that lists all that is missing, of another type, not finite, or too large to compute with.
    pub fn for_graph(&self, g: &Graph) -> Result<Samples, DriverError> {
        let mut arrays = Vec::new();
        let mut problems = Vec::new();
        let mut missing = Vec::new();
        let inputs = g.inputs().iter().filter_map(|n| match g.op(*n) {
            Op::Input(input) => Some(input),
            _ => None,
        });
        let expected: Vec<Expected> = inputs.clone().map(Expected::of).collect();
        let shared = shared(&expected, &self.arrays, &self.shared);
        for (input, expected) in inputs.zip(&expected) {
            match self.arrays.iter().find(|(name, _)| **name == *input.name) {
                Some((name, t)) => {
                    let misfit = expected.misfit_in(t, &shared);
                    match misfit.or_else(|| spreading(g, name, t)) {
                        None => arrays.push((name.clone(), t.clone())),
                        Some(problem) => problems.push(problem),
                    }
                }
                None => missing.push(format!("`{}`: {}", input.name, input.ty)),
            }
        }
        if !missing.is_empty() {
            problems.push(missing_inputs(&missing, self.names()));
        }
        if !problems.is_empty() {
            return Err(DriverError::Samples(several(&problems, "; ")));
        }
        // Only what is an input here: data of one content have one name.
        let shared = shared.into_iter().filter(|name| arrays.iter().any(|(own, _)| own == name)).collect();
        Samples::with_shared(arrays, shared)
    }

    /// The names of arrays that are given once for all samples.
    pub fn shared(&self) -> &BTreeSet<String> {
        &self.shared
    }

    /// Without the array of this name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Samples {
        self.arrays.retain(|(n, _)| n != name);
        self.rows = first_rows(&self.arrays, &self.shared);
        self
    }

    /// The number of rows that a graph takes at once: the leading extent that all inputs with rows share, `None` when it is
    /// open.
    pub fn bound_batch(&self, g: &Graph) -> Option<usize> {
        bound_batch_of(g, &self.shared)
    }

    /// Number of samples.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The names of all arrays, those in the file that were not loaded among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.iter().map(|(name, _)| name.as_str()).chain(self.others.iter().map(String::as_str))
    }

    /// The arrays.
    pub fn arrays(&self) -> &[(String, Tensor)] {
        &self.arrays
    }

    /// The samples `first..first + count`.
    pub fn row(&self, first: usize, count: usize) -> Result<Vec<(String, Tensor)>, DriverError> {
        self.pick(&(first..first + count).collect::<Vec<usize>>())
    }

    /// So many of the samples, evenly spread, since files are often sorted: as many more as complete a [run](Samples::runs) of a
    /// graph, or all where there are fewer.
    ///
    /// # Errors
    /// As [`part`](Samples::part).
    pub fn spread(&self, g: &Graph, count: usize, batch: usize) -> Result<Samples, DriverError> {
        let batch = self.bound_batch(g).unwrap_or(batch).max(1);
        self.part(&spread(self.rows, count.next_multiple_of(batch)))
    }

    /// The samples with these numbers, as samples.
    ///
    /// # Errors
    /// [`DriverError::Samples`] for none.
    pub fn part(&self, rows: &[usize]) -> Result<Samples, DriverError> {
        Samples::with_shared(self.pick(rows)?, self.shared.clone())
    }

    /// The samples with these numbers, and what is given once.
    pub fn pick(&self, rows: &[usize]) -> Result<Vec<(String, Tensor)>, DriverError> {
        let out_of_range = |e: margay_tensor::TensorError| DriverError::Samples(e.to_string());
        self.arrays
            .iter()
            .map(|(name, t)| {
                if self.shared.contains(name) {
                    return Ok((name.clone(), t.clone()));
                }
                let size = t.bytes().len() / self.rows;
                let mut bytes = Vec::with_capacity(size * rows.len());
                for &r in rows {
                    bytes.extend_from_slice(t.bytes().get(r * size..(r + 1) * size).unwrap_or_default());
                }
                let mut shape = t.shape().to_vec();
                shape[0] = rows.len();
                Ok((name.clone(), Tensor::from_bytes(t.dtype(), &shape, &bytes).map_err(out_of_range)?))
            })
            .collect()
    }

    /// The samples in the runs that a graph takes, in order: as many at once as its inputs say, and then only whole runs,
    /// or `batch` at once where they leave it open.
    pub fn runs(
        &self,
        g: &Graph,
        batch: usize,
    ) -> impl ExactSizeIterator<Item = Result<Arrays, DriverError>> + '_ {
        let bound = self.bound_batch(g);
        let batch = bound.unwrap_or(batch).max(1);
        let count = if bound.is_some() { self.rows / batch } else { self.rows.div_ceil(batch) };
        (0..count).map(move |i| self.row(i * batch, batch.min(self.rows - i * batch)))
    }

    /// Identifies names and contents, as sixteen hexadecimal digits.
    pub fn hash(&self) -> String {
        let mut h = blake3::Hasher::new();
        for (name, t) in &self.arrays {
            h.update(name.as_bytes());
            h.update(t.content_hash().as_bytes());
        }
        self.shared.iter().for_each(|name| _ = h.update(name.as_bytes()));
        h.finalize().to_hex()[..16].to_string()
    }
}

/// So many of `rows` numbers, or all where there are fewer, ascending and evenly spread.
pub(crate) fn spread(rows: usize, count: usize) -> Vec<usize> {
    let count = count.min(rows);
    (0..count).map(|i| (i as u128 * rows as u128 / count as u128) as usize).collect()
}

/// The numbers of samples to keep, and of those to hold out: `part` of every `of`, evenly spread, so that sorted data is
/// split evenly. A sample is held out where the number of those held out before falls behind its share.
pub fn hold_out(rows: usize, part: usize, of: usize) -> (Vec<usize>, Vec<usize>) {
    let share = |rows: usize| (rows as u128 * part as u128) / of.max(1) as u128;
    (0..rows).partition(|&r| share(r + 1) == share(r))
}

/// Reads the arrays of an `.npz` file that are wanted, and the names of the others.
fn read_npz(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<(Arrays, Vec<String>), DriverError> {
    let failed = |source| DriverError::Read { path: path.into(), source };
    if path.is_dir() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    margay_npy::read_npz_only(BufReader::new(file), wanted)
        .map_err(|source| DriverError::Arrays { path: path.into(), source })
}

/// Says that inputs, each with its type, are not in a file, and what is.
pub fn missing_inputs<'n>(missing: &[String], found: impl Iterator<Item = &'n str>) -> String {
    let holds = Some(listed(found)).filter(|list| !list.is_empty());
    let holds = holds.unwrap_or_else(|| "no array".into());
    format!("the model takes {}, the file holds {holds}", several(missing, ", "))
}

/// The first of very many texts, and how many more there are.
pub fn several(texts: &[String], between: &str) -> String {
    const SHOWN: usize = 20;
    let shown = texts[..texts.len().min(SHOWN)].join(between);
    match texts.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Names in backquotes, the first of very many.
pub fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const SHOWN: usize = 8;
    let names: Vec<&str> = names.collect();
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(SHOWN);
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// Fewer samples than this are few.
const FEW: usize = 32;

/// Why what is measured on samples that are held out may not hold for others, in words with numbers.
pub fn doubts(samples: &Samples) -> Vec<String> {
    doubts_where(samples, true)
}

/// The same, where samples are held out or all have one use.
pub fn doubts_where(samples: &Samples, held_out: bool) -> Vec<String> {
    let (rows, mut all) = (samples.rows(), Vec::new());
    if rows == 0 {
        return all;
    }
    if rows < FEW {
        all.push(format!("{rows} samples are few: errors on other data may be larger"));
    }
    let mut known = HashSet::new();
    let several = || samples.arrays().iter().filter(|(name, _)| !samples.shared.contains(name));
    let row_hash = |r: &usize| {
        let mut h = blake3::Hasher::new();
        for (_, t) in several() {
            let size = t.bytes().len() / rows.max(1);
            h.update(&t.bytes()[r * size..(r + 1) * size]);
        }
        *h.finalize().as_bytes()
    };
    let again = (0..rows).filter(|r| !known.insert(row_hash(r))).count();
    if again > 0 {
        let seen = if held_out { ", so that what is held out has been seen in part" } else { "" };
        all.push(format!("{again} of {rows} samples are the same as others{seen}"));
    }
    for (name, t) in several().filter(|(_, t)| t.dtype().is_float() && t.bytes().len() > 4) {
        let size = t.dtype().bytes();
        if t.bytes().chunks_exact(size).all(|e| *e == t.bytes()[..size]) {
            all.push(format!("`{name}` is the same number everywhere"));
        }
        all.extend(far_out(name, t));
    }
    all
}

/// The number of rows a graph takes at once: the leading extent that all its inputs share but those without axes, `None` when
/// it is open. Of [samples](Samples::bound_batch) some may be given once.
pub fn bound_batch(g: &Graph) -> Option<usize> {
    bound_batch_of(g, &BTreeSet::new())
}

/// The same, where the inputs of these names are given once.
pub fn bound_batch_of(g: &Graph, shared: &BTreeSet<String>) -> Option<usize> {
    let mut extents = g.inputs().iter().filter_map(|n| match g.op(*n) {
        Op::Input(input) if shared.contains(&*input.name) => None,
        Op::Input(input) => Some(input.ty.shape.first()?.as_extent()),
        _ => Some(None),
    });
    let first = extents.next()??;
    extents.all(|e| e == Some(first)).then_some(first).filter(|&b| b > 0)
}

/// The leading extent of the first array that is not given once.
fn first_rows(arrays: &Arrays, shared: &BTreeSet<String>) -> usize {
    let first = arrays.iter().find(|(name, t)| !shared.contains(name) && !t.shape().is_empty());
    first.map_or(0, |(_, t)| t.shape()[0])
}

/// Whether a type holds numbers that errors can be measured on.
pub(crate) fn is_measured(dtype: DType) -> bool {
    dtype.is_float()
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_ir::text::parse;
    use margay_tensor::DType;

    #[test]
    fn only_inputs_need_one_leading_extent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.npz");
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
        let arrays =
            [("labels", zeros(&[3])), ("x", zeros(&[8, 2])), ("z", zeros(&[7, 2])), ("n", zeros(&[]))];
        margay_npy::write_npz(std::fs::File::create(&path).unwrap(), &arrays).unwrap();
        let samples = Samples::open(&path).unwrap();
        let graph = |inputs: &str| {
            let text = format!("graph @g({inputs}) -> (y: f32[N, 2]) {{\n  return %x\n}}\n");
            parse(&text, &|_, _| None).unwrap()
        };
        assert_eq!(samples.for_graph(&graph("%x: f32[N, 2]")).unwrap().rows(), 8);
        let error = samples.for_graph(&graph("%x: f32[N, 2], %z: f32[M, 2]")).unwrap_err().to_string();
        assert!(error.contains("expected the same leading extent"), "{error}");
        assert!(error.contains("`--shared`"), "{error}");
        let shared = samples.for_graph(&graph("%x: f32[N, 2], %n: f32")).unwrap();
        assert_eq!((shared.rows(), shared.shared().iter().map(String::as_str).collect()), (8, vec!["n"]));
    }
}
