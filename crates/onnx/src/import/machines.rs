//! `ai.onnx.ml`: `SVMClassifier`.
//!
//! Of each pair of classes a machine says which is it, and the class of most votes is taken. Probabilities are coupled from
//! those of the pairs by the second method of Wu, Lin and Weng, "Probability estimates for multi-class classification by
//! pairwise coupling" (2004): a fixed point, for which a loop stands in the graph. Each sample stays as it is from the
//! repetition on in which its error is small, as in other runtimes, whose results are off the fixed point by as much.

use margay_ir::ops::{Concat, Gather, Loop, MatMul, ReduceKind, Sigmoid};
use margay_ir::{Graph, Region, TensorType, Value};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::learning::{Labels, floats, kernel, linear, matrix, samples, transformed};
use super::places::place_of_extreme;

/// What probabilities of pairs are kept away from 0 and 1 by.
const LEAST: f64 = 1e-7;

/// More classes are refused: their pairs are written one by one.
const MOST_CLASSES: usize = 256;

/// The pairs of so many classes, in order.
fn pairs(classes: usize) -> Vec<(usize, usize)> {
    (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j))).collect()
}

/// By class, the columns of its pairs among those of all first and then all second classes.
fn columns(classes: usize) -> Vec<i64> {
    let pairs = pairs(classes);
    let of = |class: usize| {
        let column = move |(at, (i, j)): (usize, &(usize, usize))| match class {
            _ if class == *i => Some(at),
            _ if class == *j => Some(at + classes * (classes - 1) / 2),
            _ => None,
        };
        pairs.iter().enumerate().filter_map(column).map(|at| at as i64).collect::<Vec<i64>>()
    };
    (0..classes).flat_map(of).collect()
}

/// `SVMClassifier`: the label, and scores of the pairs, or probabilities of the classes.
pub(super) fn svm_classifier(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = cx.cast(x, DType::F32)?;
    let x = samples(cx, x)?;
    let labels = Labels::of(call, "classlabels_ints", "classlabels_strings")?;
    let classes = labels.count();
    if !(2..=MOST_CLASSES).contains(&classes) {
        return Err(Refusal::Unsupported(format!("{classes} classes, expected 2 to {MOST_CLASSES}")));
    }
    let (weights, rho) = (floats(call, "coefficients")?, floats(call, "rho")?);
    let counts = call.ints("vectors_per_class")?.unwrap_or_default();
    let counts = counts.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<usize>, _>>();
    let counts = counts.map_err(|_| Refusal::Invalid("a negative number of vectors".into()))?;
    let vectors = counts.iter().try_fold(0usize, |all, &n| all.checked_add(n)).unwrap_or(usize::MAX);
    let (a, b) = (floats(call, "prob_a")?, floats(call, "prob_b")?);
    if vectors == 0 {
        return without_vectors(cx, call, x, &labels, weights, &rho);
    }
    let machines = pairs(classes).len();
    let found = [counts.len(), weights.len() / vectors, rho.len(), a.len(), b.len()];
    let of_pairs = if a.is_empty() { 0 } else { machines };
    let expected = [classes, classes - 1, machines, of_pairs, of_pairs];
    if found != expected || !weights.len().is_multiple_of(vectors) {
        return Err(Refusal::Invalid(format!(
            "expected {expected:?} counts, rows of coefficients, offsets and parameters of probabilities, found {found:?}"
        )));
    }
    if machines.saturating_mul(vectors) > MOST_WEIGHTS {
        return Err(Refusal::Unsupported(format!(
            "{machines} pairs of classes with {vectors} support vectors are more than {MOST_WEIGHTS} weights"
        )));
    }
    let table = matrix(cx, x, vectors, floats(call, "support_vectors")?)?;
    let products =
        kernel(cx, x, table, call.text("kernel_type", "LINEAR")?, &floats(call, "kernel_params")?)?;
    let scores = linear(cx, products, machines, of_machines(&weights, &counts), rho)?;

    // One vote of each pair.
    let first = cx.above(scores, 0.0)?;
    let first = cx.cast(first, DType::F32)?;
    let second = cx.offset(first, -1.0)?;
    let second = cx.negated(second)?;
    let votes = joined_by_class(cx, &[first, second], classes)?;
    let place = place_of_extreme(cx, votes, 1, ReduceKind::Max, false, false)?;
    let label = labels.at(cx, place)?;
    if !a.is_empty() {
        let probabilities = probabilities(cx, scores, classes, [a, b])?;
        return Ok(vec![label, transformed(cx, call, probabilities)?]);
    }
    if classes > 2 {
        return Ok(vec![label, transformed(cx, call, scores)?]);
    }
    match call.text("post_transform", "NONE")? {
        "NONE" => {
            let other = cx.negated(scores)?;
            Ok(vec![label, cx.add(Concat { axis: 1 }, &[other, scores])?])
        }
        other => Err(Refusal::Unsupported(format!("transform `{other}` of one score for two classes"))),
    }
}

/// Scores of the classes themselves, without vectors.
fn without_vectors(
    cx: &mut Importer,
    call: &Call,
    x: Value,
    labels: &Labels,
    weights: Vec<f64>,
    rho: &[f64],
) -> Imported {
    call.ignore(&["kernel_type", "kernel_params", "support_vectors"]);
    let classes = labels.count();
    let offset = *rho.first().ok_or_else(|| Refusal::Invalid("expected an offset, found none".into()))?;
    let positive = weights.iter().all(|w| *w >= 0.0);
    let scores = linear(cx, x, classes, weights, vec![offset; classes])?;
    let mut place = place_of_extreme(cx, scores, 1, ReduceKind::Max, false, false)?;
    if classes == 2 {
        // Of two classes the second, where any score is above a bound.
        let most = cx.joined(ReduceKind::Max, scores, &[1], false)?;
        let below = match positive {
            true => cx.below(most, 0.5)?,
            false => {
                let above = cx.above(most, 0.0)?;
                cx.not(above)?
            }
        };
        place = cx.chosen_or(below, place, 1.0)?;
    }
    Ok(vec![labels.at(cx, place)?, transformed(cx, call, scores)?])
}

/// Weights of all pairs of classes, at most: most of them are zero.
const MOST_WEIGHTS: usize = 1 << 26;

/// By pair, the weight of each vector: those of the first class stand in the row of the second, and the other way round.
fn of_machines(weights: &[f64], counts: &[usize]) -> Vec<f64> {
    let vectors: usize = counts.iter().sum();
    let start = |class: usize| counts[..class].iter().sum::<usize>();
    let mut all = Vec::new();
    for (i, j) in pairs(counts.len()) {
        let mut row = vec![0.0; vectors];
        for (class, from) in [(i, j - 1), (j, i)] {
            let range = start(class)..start(class) + counts[class];
            row[range.clone()].copy_from_slice(&weights[from * vectors..][range]);
        }
        all.extend(row);
    }
    all
}

/// `[N, classes]`: for each class the sum over its pairs, of two matrices `[N, pairs]` the first where it is the first of the
/// pair.
fn joined_by_class(cx: &mut Importer, parts: &[Value], classes: usize) -> Result<Value, Refusal> {
    let both = cx.add(Concat { axis: 1 }, parts)?;
    let places = cx.list(&columns(classes))?;
    let all = cx.add(Gather { axis: 1 }, &[both, places])?;
    let shape = vec![cx.ty(all).shape[0].clone(), Dim::from(classes), Dim::from(classes - 1)];
    let all = cx.shaped(all, shape)?;
    cx.joined(ReduceKind::Sum, all, &[2], false)
}

/// Probabilities `[N, classes]` of scores `[N, pairs]`.
fn probabilities(
    cx: &mut Importer,
    scores: Value,
    classes: usize,
    [a, b]: [Vec<f64>; 2],
) -> Result<Value, Refusal> {
    let machines = a.len();
    let (a, b) = (cx.table(DType::F32, &[machines], a)?, cx.table(DType::F32, &[machines], b)?);
    let scaled = cx.times(scores, a)?;
    let moved = cx.plus(scaled, b)?;
    let negated = cx.negated(moved)?;
    let first = cx.add(Sigmoid, &[negated])?;
    let first = cx.floored(first, LEAST)?;
    let first = cx.capped(first, 1.0 - LEAST)?;
    let second = cx.offset(first, -1.0)?;
    let second = cx.negated(second)?;

    // Q: on its diagonal squares of the probabilities of the other classes, elsewhere the negative product of both.
    let (of_first, of_second) = (cx.times(second, second)?, cx.times(first, first)?);
    let diagonal = joined_by_class(cx, &[of_first, of_second], classes)?;
    let product = cx.times(first, second)?;
    let product = cx.negated(product)?;
    let parts = cx.add(Concat { axis: 1 }, &[product, diagonal])?;
    let place = |i: usize, j: usize| match i == j {
        true => machines + i,
        // Pairs of a first class stand together, in the order of the second.
        false => {
            let (first, second) = (i.min(j), i.max(j));
            first * (2 * classes - first - 1) / 2 + second - first - 1
        }
    };
    let places: Vec<i64> =
        (0..classes * classes).map(|at| place(at / classes, at % classes) as i64).collect();
    let places = cx.list(&places)?;
    let q = cx.add(Gather { axis: 1 }, &[parts, places])?;
    let rows = cx.ty(q).shape[0].clone();
    let extent = Dim::from(classes);
    let q = cx.shaped(q, vec![rows.clone(), extent.clone(), extent.clone()])?;

    let equal = cx.scalar(DType::F32, 1.0 / classes as f64)?;
    let start = cx.spread(equal, vec![rows, extent])?;
    let body = coupling(cx, classes, [start, q].map(|v| cx.ty(v).clone()))?;
    let most = classes.max(100);
    let trips = cx.dim(Dim::from(most))?;
    let begins = cx.scalar(DType::Bool, 1.0)?;
    let op = Loop { body, max: Dim::from(most), carried: 1, condition: true };
    cx.add(op, &[trips, begins, start, q])
}

/// One round over all classes, on probabilities and Q of these types.
fn coupling(cx: &mut Importer, classes: usize, [p, q]: [TensorType; 2]) -> Result<Region, Refusal> {
    let around = std::mem::replace(&mut cx.graph, Graph::new("coupling"));
    let outputs = round(cx, classes, p, q);
    let mut graph = std::mem::replace(&mut cx.graph, around);
    let [goes_on, next] = outputs?;
    graph.add_output("goes_on", goes_on);
    graph.add_output("next", next);
    Ok(Region::new(graph))
}

fn round(cx: &mut Importer, classes: usize, p: TensorType, q: TensorType) -> Result<[Value; 2], Refusal> {
    cx.graph.add_input("round", TensorType::new(DType::I64, Vec::new()));
    let before = cx.graph.add_input("probabilities", p);
    let q = cx.graph.add_input("q", q);
    let column = |cx: &mut Importer, x: Value, at: usize| {
        let (start, end) = ([Dim::from(at)], [Dim::from(at + 1)]);
        super::slices::slice_axes(cx, x, &[1], &start, &end, &[1])
    };
    let upright = cx.unsqueezed(before, 2)?;
    let product = cx.add(MatMul, &[q, upright])?;
    let shape = cx.ty(before).shape.clone();
    let mut qp = cx.shaped(product, shape.clone())?;
    let terms = cx.times(before, qp)?;
    let mut pqp = cx.joined(ReduceKind::Sum, terms, &[1], true)?;
    let error = cx.minus(qp, pqp)?;
    let error = cx.size(error)?;
    let error = cx.joined(ReduceKind::Max, error, &[1], true)?;
    let small = cx.below(error, 0.005 / classes as f64)?;
    let active = cx.not(small)?;
    let mut p = before;
    for t in 0..classes {
        let at = cx.dim(Dim::from(t))?;
        let row = cx.add(Gather { axis: 1 }, &[q, at])?;
        let (own, here) = (column(cx, row, t)?, column(cx, qp, t)?);
        let step = cx.minus(pqp, here)?;
        let step = cx.over(step, own)?;
        let one = cx.offset(step, 1.0)?;
        let twice = cx.scaled(here, 2.0)?;
        let linear = cx.times(step, own)?;
        let linear = cx.plus(linear, twice)?;
        let added = cx.times(step, linear)?;
        pqp = cx.plus(pqp, added)?;
        pqp = cx.over(pqp, one)?;
        pqp = cx.over(pqp, one)?;
        let moved = cx.times(row, step)?;
        qp = cx.plus(qp, moved)?;
        qp = cx.over(qp, one)?;
        let unit = cx.table(DType::F32, &[classes], (0..classes).map(|i| f64::from(i == t)).collect())?;
        let added = cx.times(step, unit)?;
        p = cx.plus(p, added)?;
        p = cx.over(p, one)?;
    }
    let active_everywhere = cx.spread(active, shape)?;
    let next = cx.chosen(active_everywhere, p, before)?;
    let flags = cx.cast(active, DType::I32)?;
    let any = cx.joined(ReduceKind::Max, flags, &[0, 1], false)?;
    Ok([cx.above(any, 0.0)?, next])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_the_columns_of_their_pairs() {
        assert_eq!(pairs(3), [(0, 1), (0, 2), (1, 2)]);
        assert_eq!(columns(3), [0, 1, 3, 2, 4, 5]);
        assert_eq!(columns(2), [0, 1]);
        // Coefficients of three classes with two, one and one vectors, in two rows.
        let weights: Vec<f64> = (1..=8).map(f64::from).collect();
        let rows = [[1.0, 2.0, 3.0, 0.0], [5.0, 6.0, 0.0, 4.0], [0.0, 0.0, 7.0, 8.0]].concat();
        assert_eq!(of_machines(&weights, &[2, 1, 1]), rows);
    }
}
