//! Padding that is cut off: samples of similar length run together, at the length of the longest.
//!
//! Texts of one file are padded to one length, which most of them do not have. Where a mask marks padding at the end of
//! samples, and the model leaves the length open, a batch is cut behind the last place that counts in any of its samples.
//! The lengths are a few, since code is made for each.

use std::sync::Arc;

use margay_ir::ops::{Input, Numbers};
use margay_ir::{Graph, NodeId, Op};
use margay_loops::Backend;
use margay_tensor::{Symbol, Tensor};

use crate::samples::spread;
use crate::{Arrays, DriverError, Interruption, Mask, Runner, Samples};

/// The most lengths that code is made for.
const MOST_LENGTHS: usize = 4;

/// Lengths are multiples of this.
const STEP: usize = 4;

/// Samples on which it is tried whether padding matters to what a model computes.
const TRIED: usize = 8;

/// Padding is cut where it is at least this share of all places.
const WORTHWHILE: f64 = 0.1;

/// The largest relative difference between what is computed with padding and without.
const TOLERANCE: f64 = 1e-3;

/// Where inputs have places that may be padding, and what their samples are cut to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Padding {
    /// The inputs that have an axis of places, with the axis.
    axes: Vec<(String, usize)>,
    mask: Mask,
    /// What samples are cut to, ascending; the last is enough for all.
    lengths: Vec<usize>,
}

impl Padding {
    /// Padding of samples that graphs with the same inputs compute the same without; `None` where there is little of it, or
    /// where it has to stay: where a graph says how long samples are, or computes something else without it for places
    /// that count.
    ///
    /// # Errors
    /// Those of compiling and running the graphs on samples with padding.
    pub fn find(
        graphs: &[&Graph],
        mask: &Mask,
        samples: &Samples,
        backend: &Arc<dyn Backend>,
        threads: usize,
        interruption: &Interruption,
    ) -> Result<Option<Padding>, DriverError> {
        let mut axes = graphs.iter().map(|g| axes_of_places(g, mask));
        let Some(first) =
            axes.next().flatten().filter(|first| axes.all(|other| other.as_ref() == Some(first)))
        else {
            return Ok(None);
        };
        if mask.input().is_some_and(|name| samples.shared().contains(name)) {
            return Ok(None);
        }
        let Some(of_samples) = lengths_of(samples.arrays(), mask) else { return Ok(None) };
        let input = samples.arrays().iter().find(|(name, _)| Some(name.as_str()) == mask.input());
        let full = input.map_or(0, |(_, t)| t.shape()[1]);
        let lengths = chosen(&of_samples, full);
        let left: usize = of_samples.iter().filter_map(|l| lengths.iter().find(|length| *length >= l)).sum();
        if left as f64 > (1.0 - WORTHWHILE) * (full * samples.rows()) as f64 {
            return Ok(None);
        }
        let padding = Padding { axes: first, mask: mask.clone(), lengths };
        for g in graphs {
            let runner = Runner::new((*g).clone(), backend, threads).until(interruption);
            if !padding.changes_nothing(runner, samples, &of_samples)? {
                return Ok(None);
            }
        }
        Ok(Some(padding))
    }

    /// The lengths that samples are cut to, ascending.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// By sample, the places up to the last that counts.
    pub fn of_samples(&self, samples: &Samples) -> Vec<usize> {
        lengths_of(samples.arrays(), &self.mask).unwrap_or_default()
    }

    /// A batch without what is padding in all of its samples.
    pub fn cut(&self, batch: Arrays) -> Arrays {
        let longest =
            lengths_of(&batch, &self.mask).and_then(|all| all.into_iter().max()).unwrap_or(usize::MAX);
        match self.lengths.iter().find(|l| **l >= longest) {
            Some(length) => self.cut_to(batch, *length),
            None => batch,
        }
    }

    /// A batch with no more than so many places.
    pub fn cut_to(&self, batch: Arrays, length: usize) -> Arrays {
        let axis = |name: &str| self.axes.iter().find(|(n, _)| n == name).map(|(_, axis)| *axis);
        let cut = |(name, t): (String, Tensor)| match axis(&name) {
            Some(axis) if t.shape()[axis] > length => (name, first_along(&t, axis, length)),
            _ => (name, t),
        };
        batch.into_iter().map(cut).collect()
    }

    /// Whether the outputs of a graph for the places that count are the same without padding, on the samples with most
    /// of it.
    fn changes_nothing(
        &self,
        mut runner: Runner,
        samples: &Samples,
        of_samples: &[usize],
    ) -> Result<bool, DriverError> {
        let mut shortest: Vec<usize> = (0..samples.rows()).collect();
        shortest.sort_by_key(|row| of_samples[*row]);
        let size = samples.bound_batch(runner.graph()).unwrap_or(TRIED.min(samples.rows()));
        if samples.rows() < size {
            return Ok(false);
        }
        let whole = samples.pick(&shortest[..size])?;
        let cut = self.cut(whole.clone());
        let marks = self.mask.marks(&cut);
        let expected = runner.run(&whole)?;
        let found = match runner.run(&cut) {
            Err(DriverError::Interrupted) => return Err(DriverError::Interrupted),
            // A graph may ask for a length that a cut batch has not.
            Err(_) => return Ok(false),
            Ok(found) => found,
        };
        Ok(expected.iter().zip(&found).all(|((_, expected), (_, found))| {
            let fitting = axis_that_differs(expected, found)
                .map(|axis| first_along(expected, axis, found.shape()[axis]));
            let expected = fitting.as_ref().unwrap_or(expected);
            if expected.shape() != found.shape() {
                return false;
            }
            let numbers = |t: &Tensor| {
                let floats = Numbers::of(t).map_or(Vec::new(), Numbers::floats);
                let mut floats: Vec<f32> = floats.into_iter().map(|v| v as f32).collect();
                if let Some(marks) = &marks {
                    marks.blank(t.shape(), &mut floats);
                }
                floats
            };
            let (expected, found) = (numbers(expected), numbers(found));
            let squared = |sum: f64, v: f64| sum + v * v;
            let size = expected.iter().map(|v| f64::from(*v)).fold(0.0, squared);
            let apart = expected.iter().zip(&found).map(|(a, b)| f64::from(a - b)).fold(0.0, squared);
            apart <= TOLERANCE * TOLERANCE * size
        }))
    }
}

/// Which runs are wanted where samples do not fill the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Runs {
    /// All; the last may be of fewer samples where the graph leaves their number open.
    All,
    /// Those of one number of samples.
    Whole,
}

/// So many of the samples, evenly spread, in the runs that a graph takes: as many at once as its inputs say, or `batch` where
/// they leave it open. The first few runs stand for all: each is spread over the samples, and where there is padding, so that
/// samples of similar length run together, the lengths of the runs alternate.
///
/// # Errors
/// None, for samples of the graph.
pub fn runs(
    g: &Graph,
    samples: &Samples,
    padding: Option<&Padding>,
    batch: usize,
    most: usize,
    wanted: Runs,
) -> Result<Vec<Arrays>, DriverError> {
    let bound = samples.bound_batch(g);
    let size = bound.unwrap_or(batch).max(1);
    let count = samples.rows().min(most.next_multiple_of(size));
    let count = if wanted == Runs::Whole || bound.is_some() { count / size * size } else { count };
    let mut rows = spread(samples.rows(), count);
    let mut order: Vec<usize> = (0..count.div_ceil(size)).collect();
    if let Some(padding) = padding {
        let lengths = padding.of_samples(samples);
        rows.sort_by_key(|row| lengths[*row]);
        order.sort_by_key(|run| run.reverse_bits());
    } else {
        let every = order.len();
        rows = (0..every).flat_map(|first| rows.iter().copied().skip(first).step_by(every)).collect();
    }
    let run = |run: usize| &rows[run * size..count.min((run + 1) * size)];
    order.into_iter().map(|i| Ok(without(padding, samples.pick(run(i))?))).collect()
}

/// A batch without its padding, as far as that may go; all of it where none may.
pub fn without(padding: Option<&Padding>, batch: Arrays) -> Arrays {
    match padding {
        Some(padding) => padding.cut(batch),
        None => batch,
    }
}

/// The axes of the inputs that have as many places as the mask, where that is open; `None` where it is not, or where an
/// input has an axis that follows from it in another way.
fn axes_of_places(g: &Graph, mask: &Mask) -> Option<Vec<(String, usize)>> {
    let input = |n: &NodeId| match g.op(*n) {
        Op::Input(input) => Some(input.clone()),
        _ => None,
    };
    let inputs: Vec<Input> = g.inputs().iter().filter_map(input).collect();
    let masks = inputs.iter().find(|input| Some(&*input.name) == mask.input())?;
    let places: Symbol = masks.ty.shape.get(1)?.as_symbol()?;
    let mut axes = Vec::new();
    for input in inputs {
        for (axis, dim) in input.ty.shape.iter().enumerate() {
            match dim.as_symbol() {
                Some(symbol) if symbol == places => axes.push((input.name.to_string(), axis)),
                Some(_) => {}
                None => {
                    let mut symbols = Vec::new();
                    dim.collect_symbols(&mut symbols);
                    if symbols.contains(&places) {
                        return None;
                    }
                }
            }
        }
    }
    let mut names: Vec<&String> = axes.iter().map(|(name, _)| name).collect();
    names.dedup();
    (names.len() == axes.len()).then_some(axes)
}

/// By sample of a batch, the places up to the last that counts, at least one.
fn lengths_of(batch: &[(String, Tensor)], mask: &Mask) -> Option<Vec<usize>> {
    let marks = mask.marks(batch)?;
    let (_, t) = batch.iter().find(|(name, _)| Some(name.as_str()) == mask.input())?;
    let places = t.shape()[1].max(1);
    let length = |row: &[bool]| row.iter().rposition(|counts| *counts).map_or(1, |last| last + 1);
    Some(marks.counts().chunks(places).map(length).collect())
}

/// The lengths, at most [`MOST_LENGTHS`] multiples of [`STEP`] or `full`, to which samples are cut with the fewest places in
/// all, ascending. The last is enough for all of them.
fn chosen(of_samples: &[usize], full: usize) -> Vec<usize> {
    let longest = of_samples.iter().max().map_or(full, |l| l.next_multiple_of(STEP).min(full));
    let mut steps: Vec<usize> = (1..longest.div_ceil(STEP)).map(|i| i * STEP).collect();
    steps.push(longest);
    let up_to = |length: usize| of_samples.iter().filter(|l| **l <= length).count();
    let counts: Vec<usize> = steps.iter().map(|l| up_to(*l)).collect();
    // The fewest places of all samples up to a step with so many lengths, and the length before the last.
    let mut best: Vec<Vec<(usize, Option<usize>)>> =
        vec![(0..steps.len()).map(|i| (counts[i] * steps[i], None)).collect()];
    for k in 1..MOST_LENGTHS {
        let of = |i: usize| {
            let with = |j: usize| (best[k - 1][j].0 + (counts[i] - counts[j]) * steps[i], Some(j));
            std::iter::once(best[k - 1][i])
                .chain((0..i).map(with))
                .min_by_key(|(places, _)| *places)
                .expect("one is there")
        };
        best.push((0..steps.len()).map(of).collect());
    }
    let (mut k, mut at) = (MOST_LENGTHS - 1, steps.len() - 1);
    let mut lengths = vec![steps[at]];
    while let Some(before) = best[k][at].1 {
        lengths.push(steps[before]);
        (k, at) = (k.saturating_sub(1), before);
    }
    lengths.reverse();
    lengths
}

/// The first `length` places along an axis.
fn first_along(t: &Tensor, axis: usize, length: usize) -> Tensor {
    let inner: usize = t.shape()[axis + 1..].iter().product::<usize>() * t.dtype().bytes();
    let mut shape = t.shape().to_vec();
    let row = std::mem::replace(&mut shape[axis], length) * inner;
    let kept: Vec<u8> =
        t.bytes().chunks_exact(row.max(1)).flat_map(|r| &r[..length * inner]).copied().collect();
    Tensor::from_bytes(t.dtype(), &shape, &kept).expect("as many bytes as the shape says")
}

/// The one axis along which two tensors have other extents.
fn axis_that_differs(a: &Tensor, b: &Tensor) -> Option<usize> {
    let differ: Vec<usize> = a
        .shape()
        .iter()
        .zip(b.shape())
        .enumerate()
        .filter(|(_, (a, b))| a != b)
        .map(|(axis, _)| axis)
        .collect();
    (a.shape().len() == b.shape().len() && differ.len() == 1).then(|| differ[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MaskChoice, backend};
    use margay_ir::text::parse;

    /// Texts of 16 places, of which so many count, with numbers for each place.
    fn texts(lengths: &[usize]) -> Samples {
        let marks: Vec<i64> =
            lengths.iter().flat_map(|l| (0..16).map(move |place| i64::from(place < *l))).collect();
        let numbers: Vec<f32> = (0..marks.len()).map(|i| (i % 7) as f32 - 2.5).collect();
        let shape = [lengths.len(), 16];
        Samples::new(vec![
            ("x".into(), Tensor::from_slice(&shape, &numbers).unwrap()),
            ("attention_mask".into(), Tensor::from_slice(&shape, &marks).unwrap()),
        ])
        .unwrap()
    }

    fn found(places: &str, body: &str, lengths: &[usize]) -> Option<Padding> {
        let text = format!(
            "graph @g(%x: f32[B, {places}], %attention_mask: i64[B, {places}]) -> (y: f32[B, {places}]) {{\n{}}}\n",
            body.replace("PLACES", places)
        );
        let g = parse(&text, &|_, _| None).unwrap_or_else(|e| panic!("{e}"));
        let mask = Mask::find(&g, &MaskChoice::Default).unwrap();
        Padding::find(&[&g], &mask, &texts(lengths), &backend::native(), 1, &Interruption::never()).unwrap()
    }

    const EACH: &str = "  %y = exp %x : f32[B, PLACES]\n  return %y\n";
    const LENGTHS: [usize; 10] = [3, 16, 5, 8, 2, 1, 6, 4, 7, 3];

    #[test]
    fn batches_are_as_long_as_their_longest_sample() {
        let padding = found("S", EACH, &LENGTHS).unwrap();
        assert_eq!(padding.lengths(), [4, 8, 16]);
        let samples = texts(&LENGTHS);
        assert_eq!(padding.of_samples(&samples), LENGTHS);
        let extents = |rows: &[usize]| -> Vec<usize> {
            let cut = padding.cut(samples.pick(rows).unwrap());
            cut.iter().map(|(_, t)| t.shape()[1]).collect()
        };
        assert_eq!([extents(&[0, 4, 7]), extents(&[0, 2]), extents(&[5, 1])], [[4, 4], [8, 8], [16, 16]]);
        let (whole, cut) = (samples.pick(&[2, 3]).unwrap(), padding.cut(samples.pick(&[2, 3]).unwrap()));
        let (whole, cut) = (whole[0].1.to_vec::<f32>().unwrap(), cut[0].1.to_vec::<f32>().unwrap());
        assert_eq!((&cut[..8], &cut[8..]), (&whole[..8], &whole[16..24]));
    }

    #[test]
    fn padding_stays_where_little_is_saved_or_it_matters() {
        assert_eq!(found("S", EACH, &[16, 15, 16, 14, 15, 16]), None, "hardly any padding");
        assert_eq!(found("16", EACH, &LENGTHS), None, "the graph says how long samples are");
        let of_all = "  %m = reduce %x {kind = sum, axes = [1], keepdims = true} : f32[B, 1]\n  \
                      %y = sub %x, %m : f32[B, PLACES]\n  return %y\n";
        assert_eq!(found("S", of_all, &LENGTHS), None, "every place depends on padding");
    }

    #[test]
    fn runs_hold_samples_of_similar_length() {
        let text =
            "graph @g(%x: f32[B, S], %attention_mask: i64[B, S]) -> (y: f32[B, S]) {\n  return %x\n}\n";
        let g = parse(text, &|_, _| None).unwrap();
        let (samples, padding) = (texts(&LENGTHS), found("S", EACH, &LENGTHS).unwrap());
        let shapes = |padding: Option<&Padding>, most, wanted| -> Vec<Vec<usize>> {
            let all = runs(&g, &samples, padding, 4, most, wanted).unwrap();
            all.into_iter().map(|run| run[0].1.shape().to_vec()).collect()
        };
        assert_eq!(shapes(Some(&padding), 10, Runs::All), [[4, 4], [2, 16], [4, 8]]);
        assert_eq!(shapes(Some(&padding), 6, Runs::Whole), [[4, 8], [4, 16]]);
        assert_eq!(shapes(None, 10, Runs::Whole), [[4, 16], [4, 16]]);
    }

    #[test]
    fn each_run_is_spread_over_the_samples() {
        let g = parse("graph @g(%x: f32[B]) -> (y: f32[B]) {\n  return %x\n}\n", &|_, _| None).unwrap();
        let numbers: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let samples = Samples::new(vec![("x".into(), Tensor::from_slice(&[20], &numbers).unwrap())]).unwrap();
        let all = |most| -> Vec<Vec<f32>> {
            let all = runs(&g, &samples, None, 4, most, Runs::All).unwrap();
            all.into_iter().map(|run| run[0].1.to_vec().unwrap()).collect()
        };
        assert_eq!(all(8), [[0.0, 5.0, 10.0, 15.0], [2.0, 7.0, 12.0, 17.0]]);
        let mut seen: Vec<f32> = all(20).into_iter().flatten().collect();
        seen.sort_by(f32::total_cmp);
        assert_eq!(seen, numbers);
    }

    #[test]
    fn lengths_are_those_with_the_fewest_places() {
        assert_eq!(chosen(&[16; 5], 16), [16]);
        assert_eq!(chosen(&[4, 4, 4, 20, 60], 64), [4, 20, 60]);
        // Five groups, of which one has to be cut to more than it needs: the one where that costs the least.
        assert_eq!(chosen(&[8, 8, 8, 24, 32, 32, 48, 64], 64), [8, 32, 48, 64]);
        assert_eq!(chosen(&[1, 5], 6), [4, 6]);
    }
}
