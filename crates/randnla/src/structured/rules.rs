//! Equal structures that are simpler.
//!
//! - A transpose goes to the factors: `(A B)' = B' A'`, `(A ⊗ B)' = A' ⊗ B'`; two of them, and those of diagonals and identities, go.
//! - Sums, products and Kronecker products in those of their kind are one; so are blocks in blocks.
//! - Identities go from products; in Kronecker products neighbours are one, and those of one row go.
//! - `(A ⊗ B) · (C ⊗ D) = (A · C) ⊗ (B · D)` where sizes fit and that takes no more operations.
//!
//! Contents stay as they are and may come in another order.

use std::ops::Range;

use super::{Kind, Structure};

/// A structure with the tensors of the original that it stores, in its own order.
type Simple = (Structure, Vec<usize>);

impl Structure {
    /// An equal structure that is simpler, and for each tensor that it stores which of this one it is.
    pub fn simplified(&self) -> (Structure, Vec<usize>) {
        simple(self, 0, false)
    }
}

const FITS: &str = "the parts of a structure fit after an exact rule";

fn simple(s: &Structure, first: usize, transposed: bool) -> Simple {
    let (rows, columns) = (s.rows(), s.columns());
    match s.kind() {
        Kind::Transpose(of) => simple(of, first, !transposed),
        Kind::Identity => (s.clone(), Vec::new()),
        Kind::Shuffle(1, _) | Kind::Shuffle(_, 1) => (Structure::identity(rows).expect(FITS), Vec::new()),
        Kind::Shuffle(m, n) if transposed => (Structure::shuffle(*n, *m).expect(FITS), Vec::new()),
        Kind::Diagonal => (s.clone(), tensors(s, first).collect()),
        Kind::Product(factors) => {
            let mut factors = parts(factors, first, transposed);
            if transposed {
                factors.reverse();
            }
            product(factors, if transposed { columns } else { rows })
        }
        Kind::Sum(terms) => {
            let flat = flat(parts(terms, first, transposed), |kind| matches!(kind, Kind::Sum(_)));
            joined(flat, |terms| Structure::sum(terms).expect(FITS))
        }
        Kind::Kronecker(factors) => kronecker(parts(factors, first, transposed)),
        Kind::Blocks(count, of) => {
            let (of, tensors) = simple(of, first, transposed);
            let made = match of.kind() {
                _ if *count == 1 => of,
                Kind::Identity => Structure::identity(count * of.rows()).expect(FITS),
                Kind::Blocks(inner, of) => Structure::blocks(count * inner, (**of).clone()).expect(FITS),
                _ => Structure::blocks(*count, of).expect(FITS),
            };
            (made, tensors)
        }
        _ if transposed => (s.clone().transposed(), tensors(s, first).collect()),
        _ => (s.clone(), tensors(s, first).collect()),
    }
}

fn tensors(s: &Structure, first: usize) -> Range<usize> {
    first..first + s.stored_count()
}

fn parts(parts: &[Structure], mut first: usize, transposed: bool) -> Vec<Simple> {
    let each = |part: &Structure| {
        let found = simple(part, first, transposed);
        first += part.stored_count();
        found
    };
    parts.iter().map(each).collect()
}

/// The parts, with those of parts of the same kind in place of these.
fn flat(parts: Vec<Simple>, same: fn(&Kind) -> bool) -> Vec<Simple> {
    let each = |(part, tensors): Simple| match same(part.kind()) {
        false => vec![(part, tensors)],
        true => split(&part, &tensors),
    };
    parts.into_iter().flat_map(each).collect()
}

/// The parts of a structure with the tensors of each.
fn split(s: &Structure, tensors: &[usize]) -> Vec<Simple> {
    let mut rest = tensors;
    let each = |part: &Structure| {
        let (own, others) = rest.split_at(part.stored_count());
        rest = others;
        (part.clone(), own.to_vec())
    };
    s.parts().iter().map(each).collect()
}

fn joined(parts: Vec<Simple>, join: impl FnOnce(Vec<Structure>) -> Structure) -> Simple {
    let (parts, tensors): (Vec<Structure>, Vec<Vec<usize>>) = parts.into_iter().unzip();
    (join(parts), tensors.concat())
}

/// The product of simple factors, for rows of a length.
fn product(factors: Vec<Simple>, rows: usize) -> Simple {
    let mut factors = flat(factors, |kind| matches!(kind, Kind::Product(_)));
    factors.retain(|(factor, _)| !matches!(factor.kind(), Kind::Identity));
    let mut found: Vec<Simple> = Vec::new();
    for factor in factors {
        match found.last().and_then(|last| exchanged(last, &factor)) {
            Some(one) => {
                found.pop();
                found.push(one);
            }
            None => found.push(factor),
        }
    }
    match found.is_empty() {
        true => (Structure::identity(rows).expect(FITS), Vec::new()),
        false => joined(found, |factors| Structure::product(factors).expect(FITS)),
    }
}

/// `(A · C) ⊗ (B · D)` for `A ⊗ B` and `C ⊗ D`, where sizes fit and it takes no more operations.
fn exchanged(left: &Simple, right: &Simple) -> Option<Simple> {
    let (Kind::Kronecker(lefts), Kind::Kronecker(rights)) = (left.0.kind(), right.0.kind()) else {
        return None;
    };
    let fit = lefts.len() == rights.len() && lefts.iter().zip(rights).all(|(l, r)| l.columns() == r.rows());
    if !fit {
        return None;
    }
    let pairs = split(&left.0, &left.1).into_iter().zip(split(&right.0, &right.1));
    let one = kronecker(
        pairs
            .map(|(l, r)| {
                let rows = l.0.rows();
                product(vec![l, r], rows)
            })
            .collect(),
    );
    (one.0.operations() <= left.0.operations().saturating_add(right.0.operations())).then_some(one)
}

fn kronecker(factors: Vec<Simple>) -> Simple {
    let factors = flat(factors, |kind| matches!(kind, Kind::Kronecker(_)));
    let mut found: Vec<Simple> = Vec::new();
    for factor in factors {
        let identity = |s: &Structure| matches!(s.kind(), Kind::Identity).then(|| s.rows());
        match (found.last().and_then(|(last, _)| identity(last)), identity(&factor.0)) {
            (_, Some(1)) => {}
            (Some(before), Some(more)) => {
                found.pop();
                found.push((Structure::identity(before * more).expect(FITS), Vec::new()));
            }
            _ => found.push(factor),
        }
    }
    match found.is_empty() {
        true => (Structure::identity(1).expect(FITS), Vec::new()),
        false => joined(found, |factors| Structure::kronecker(factors).expect(FITS)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::product::tests::all;
    use super::*;

    #[test]
    fn simpler_structures_stand_for_the_same_matrix() {
        for s in all() {
            let contents = s.random(3, 1);
            let (found, tensors) = s.simplified();
            let moved: Vec<_> = tensors.iter().map(|i| contents[*i].clone()).collect();
            let (expected, made) = (s.to_matrix(&contents).unwrap(), found.to_matrix(&moved).unwrap());
            let most = expected.to_row_major_f64().iter().fold(1e-9f64, |m, v| m.max(v.abs()));
            let error = expected
                .to_row_major_f64()
                .iter()
                .zip(made.to_row_major_f64())
                .fold(0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(error < 1e-12 * most, "{s} and {found}: {error}");
            assert!(found.operations() <= s.operations(), "{s} and {found}");
            assert_eq!(found.simplified(), (found.clone(), (0..tensors.len()).collect()), "{s}");
        }
    }

    #[test]
    fn rules_fire_and_decline() {
        for (text, expected) in [
            ("(4x2 · 2x5)'", "2x5' · 4x2'"),
            ("4x2''", "4x2"),
            ("(diag(3) ⊗ 4x2)'", "diag(3) ⊗ 4x2'"),
            ("shuffle(2x3)'", "shuffle(3x2)"),
            ("shuffle(1x3)", "I(3)"),
            ("4x2 · (2x3 · 3x5)", "4x2 · 2x3 · 3x5"),
            ("(4x2 · 2x2) + (4x2 + 4x2)", "4x2 · 2x2 + 4x2 + 4x2"),
            ("I(4) · 4x2 · I(2)", "4x2"),
            ("I(4) · I(4)", "I(4)"),
            ("I(2) ⊗ I(3) ⊗ 4x2 ⊗ I(1)", "I(6) ⊗ 4x2"),
            ("blocks(2, blocks(3, 4x2))", "blocks(6, 4x2)"),
            ("blocks(1, 4x2)", "4x2"),
            ("blocks(5, I(2))", "I(10)"),
            ("(I(4) ⊗ 3x5) · (4x2 ⊗ I(5))", "4x2 ⊗ 3x5"),
            ("(4x3 ⊗ 4x2) · (3x2 ⊗ 2x1)", "(4x3 · 3x2) ⊗ (4x2 · 2x1)"),
            // Sizes that do not fit.
            ("(I(4) ⊗ 3x10) · (8x2 ⊗ I(5))", "(I(4) ⊗ 3x10) · (8x2 ⊗ I(5))"),
            // The first axis grows and the second shrinks: joined, one of the two is multiplied while the other is long.
            ("(9x1 ⊗ 9x1) · (1x9 ⊗ 1x9)", "(9x1 ⊗ 9x1) · (1x9 ⊗ 1x9)"),
        ] {
            let s: Structure = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            let found = s.simplified().0.to_string();
            let expected: Structure = expected.parse().unwrap();
            assert_eq!(found, expected.to_string(), "{text}");
        }
    }
}
