//! `Einsum`: products of operands two by two, each a product of matrices in batches.

use std::collections::BTreeMap;

use margay_ir::Value;
use margay_ir::ops::{MatMul, ReduceKind};
use margay_tensor::Dim;

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::slices::slice_axes;

/// An axis of an operand: a letter, or one of those an ellipsis stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Label {
    /// Counted from the last one.
    Ellipsis(usize),
    Letter(char),
}

/// A value with names for its axes.
struct Term {
    value: Value,
    labels: Vec<Label>,
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1usize), |n, d| &n * d)
}

/// The labels of a term of the equation with so many axes; unknown for the result.
fn labels(text: &str, axes: Option<usize>, ellipsis: usize) -> Result<Vec<Label>, Refusal> {
    let wrong = || Refusal::Invalid(format!("`{text}` is no term of an equation"));
    let (before, after) = text.split_once("...").map_or((text, None), |(b, a)| (b, Some(a)));
    let letters = |part: &str| -> Result<Vec<Label>, Refusal> {
        let letter = |c: char| c.is_ascii_alphabetic().then_some(Label::Letter(c)).ok_or_else(wrong);
        part.chars().map(letter).collect()
    };
    let mut all = letters(before)?;
    if let Some(after) = after {
        let behind = letters(after)?;
        let covered = match axes {
            Some(axes) => axes.checked_sub(all.len() + behind.len()).ok_or_else(wrong)?,
            None => ellipsis,
        };
        all.extend((0..covered).rev().map(Label::Ellipsis));
        all.extend(behind);
    }
    match axes {
        Some(axes) if axes != all.len() => Err(wrong()),
        _ => Ok(all),
    }
}

/// `Einsum`.
pub(super) fn einsum(cx: &mut Importer, call: &Call) -> Imported {
    let equation: String = call.text("equation", "")?.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left.to_owned(), Some(right.to_owned())),
        None => (equation, None),
    };
    let operands = call.all()?;
    let texts: Vec<&str> = left.split(',').collect();
    if texts.len() != operands.len() {
        let (expected, found) = (texts.len(), operands.len());
        return Err(Refusal::Invalid(format!("expected {expected} operands, found {found}")));
    }
    let mut terms = Vec::new();
    for (text, &value) in texts.iter().zip(&operands) {
        let labels = labels(text, Some(cx.ty(value).ndim()), 0)?;
        terms.push(diagonal(cx, Term { value, labels })?);
    }
    let mut extents: BTreeMap<Label, Dim> = BTreeMap::new();
    let mut ellipsis = 0;
    for term in &terms {
        for (label, extent) in term.labels.iter().zip(&cx.ty(term.value).shape.clone()) {
            if let Label::Ellipsis(n) = label {
                ellipsis = ellipsis.max(n + 1);
            }
            let known = extents.entry(*label).or_insert_with(|| extent.clone());
            if known.is(1) {
                *known = extent.clone();
            }
        }
    }
    let wanted = match right {
        Some(right) => labels(&right, None, ellipsis)?,
        None => {
            // What occurs once, by the alphabet, behind what the ellipsis stands for.
            let count = |l: &Label| texts.concat().chars().filter(|c| *l == Label::Letter(*c)).count();
            let mut once: Vec<Label> = (0..ellipsis).rev().map(Label::Ellipsis).collect();
            once.extend(extents.keys().filter(|l| matches!(l, Label::Letter(_)) && count(l) == 1));
            once
        }
    };
    if let Some(missing) = wanted.iter().find(|l| !extents.contains_key(l)) {
        return Err(Refusal::Invalid(format!("{missing:?} of the result occurs in no operand")));
    }
    let mut rest = terms.into_iter();
    let first = rest.next().ok_or_else(|| Refusal::Invalid("an equation without operands".into()))?;
    let rest: Vec<Term> = rest.collect();
    let mut joined = first;
    for (i, term) in rest.iter().enumerate() {
        let later = |l: &Label| wanted.contains(l) || rest[i + 1..].iter().any(|t| t.labels.contains(l));
        joined = contracted(cx, joined, term, &later, &extents)?;
    }
    // What is left over is summed, and the rest put in order.
    let gone: Vec<usize> =
        (0..joined.labels.len()).filter(|&i| !wanted.contains(&joined.labels[i])).collect();
    if !gone.is_empty() {
        joined.value = cx.joined(ReduceKind::Sum, joined.value, &gone, false)?;
        joined.labels.retain(|l| wanted.contains(l));
    }
    let place = |l: &Label| joined.labels.iter().position(|other| other == l);
    let perm = wanted.iter().map(place).collect::<Option<Vec<usize>>>();
    let perm = perm.ok_or_else(|| Refusal::Invalid("a result whose axes are not all different".into()))?;
    let y = cx.transposed(joined.value, &perm)?;
    let shape = wanted.iter().map(|l| extents[l].clone()).collect();
    Ok(vec![cx.spread(y, shape)?])
}

/// A term whose axes have different names: of two with one name the elements are taken where both positions are equal.
fn diagonal(cx: &mut Importer, mut term: Term) -> Result<Term, Refusal> {
    while let Some((first, second)) = (0..term.labels.len())
        .flat_map(|i| (i + 1..term.labels.len()).map(move |j| (i, j)))
        .find(|&(i, j)| term.labels[i] == term.labels[j])
    {
        let ndim = term.labels.len();
        let perm: Vec<usize> =
            (0..ndim).filter(|&a| a != first && a != second).chain([first, second]).collect();
        let transposed = cx.transposed(term.value, &perm)?;
        let shape = cx.ty(transposed).shape.clone();
        let size = shape[ndim - 1].as_const().filter(|_| shape[ndim - 1] == shape[ndim - 2]);
        let size = size.ok_or_else(|| {
            Refusal::Unsupported(format!("a diagonal of `{}` and `{}`", shape[ndim - 2], shape[ndim - 1]))
        })?;
        let flat = [&shape[..ndim - 2], &[Dim::from(size * size)]].concat();
        let flat = cx.shaped(transposed, flat)?;
        let (start, end) = ([Dim::default()], [Dim::from(size * size)]);
        term.value = slice_axes(cx, flat, &[ndim - 2], &start, &end, &[size + 1])?;
        let label = term.labels[first];
        term.labels = perm[..ndim - 2].iter().map(|&a| term.labels[a]).chain([label]).collect();
    }
    Ok(term)
}

/// The product of two terms, summed over the names that nobody needs later.
fn contracted(
    cx: &mut Importer,
    mut left: Term,
    right: &Term,
    later: &dyn Fn(&Label) -> bool,
    extents: &BTreeMap<Label, Dim>,
) -> Result<Term, Refusal> {
    let mut right = Term { value: right.value, labels: right.labels.clone() };
    // What only one of them has, and nobody needs, is summed first.
    for (one, other) in [(&mut left, right.labels.clone()), (&mut right, Vec::new())] {
        let gone: Vec<usize> = (0..one.labels.len())
            .filter(|&i| !later(&one.labels[i]) && !other.contains(&one.labels[i]) && !other.is_empty())
            .collect();
        if !gone.is_empty() {
            one.value = cx.joined(ReduceKind::Sum, one.value, &gone, false)?;
            one.labels = (0..one.labels.len()).filter(|i| !gone.contains(i)).map(|i| one.labels[i]).collect();
        }
    }
    let gone: Vec<usize> = (0..right.labels.len())
        .filter(|&i| !later(&right.labels[i]) && !left.labels.contains(&right.labels[i]))
        .collect();
    if !gone.is_empty() {
        right.value = cx.joined(ReduceKind::Sum, right.value, &gone, false)?;
        right.labels =
            (0..right.labels.len()).filter(|i| !gone.contains(i)).map(|i| right.labels[i]).collect();
    }
    let shared = |l: &Label| left.labels.contains(l) && right.labels.contains(l);
    let batch: Vec<Label> = left.labels.iter().copied().filter(|l| shared(l) && later(l)).collect();
    let summed: Vec<Label> = left.labels.iter().copied().filter(|l| shared(l) && !later(l)).collect();
    let rows: Vec<Label> = left.labels.iter().copied().filter(|l| !shared(l)).collect();
    let columns: Vec<Label> = right.labels.iter().copied().filter(|l| !shared(l)).collect();
    let of = |cx: &Importer, term: &Term, label: &Label| {
        let place = term.labels.iter().position(|l| l == label);
        place.map_or_else(|| Dim::from(1usize), |p| cx.ty(term.value).shape[p].clone())
    };
    // Batch axes of extent 1 broadcast; those that are summed must be there.
    let arranged = |cx: &mut Importer, term: &Term, groups: [&[Label]; 3]| {
        let order: Vec<Label> = groups.concat();
        let perm: Vec<usize> =
            order.iter().filter_map(|l| term.labels.iter().position(|other| other == l)).collect();
        let mut value = cx.transposed(term.value, &perm)?;
        let full: Vec<Dim> =
            order
                .iter()
                .map(|l| {
                    if batch.contains(l) || summed.contains(l) { extents[l].clone() } else { of(cx, term, l) }
                })
                .collect();
        value = cx.spread(value, full)?;
        let sizes = groups.map(|g| {
            let dims: Vec<Dim> =
                g.iter().map(|l| if shared(l) { extents[l].clone() } else { of(cx, term, l) }).collect();
            product(&dims)
        });
        cx.shaped(value, sizes.to_vec())
    };
    let a = arranged(cx, &left, [&batch, &rows, &summed])?;
    let b = arranged(cx, &right, [&batch, &summed, &columns])?;
    let y = match cx.ty(a).dtype.is_float() {
        true => cx.add(MatMul, &[a, b])?,
        false => {
            let (a, b) = (cx.unsqueezed(a, 3)?, cx.unsqueezed(b, 1)?);
            let products = cx.times(a, b)?;
            cx.joined(ReduceKind::Sum, products, &[2], false)?
        }
    };
    let mut shape: Vec<Dim> = batch.iter().map(|l| extents[l].clone()).collect();
    shape.extend(rows.iter().map(|l| of(cx, &left, l)));
    shape.extend(columns.iter().map(|l| of(cx, &right, l)));
    let value = cx.shaped(y, shape)?;
    Ok(Term { value, labels: [batch, rows, columns].concat() })
}
