//! Polynomials through points.

use std::collections::BTreeMap;

use margay_tensor::{Dim, Symbol};

/// Coefficients by the exponents of the symbols.
type Polynomial = BTreeMap<Vec<u32>, i128>;

/// The polynomial of at most the second degree in every symbol, with integer coefficients, that has the given values at
/// all of the points; `None` if there is none.
pub(crate) fn fit(symbols: &[Symbol], points: &[Vec<i64>], values: &[i64]) -> Option<Dim> {
    let polynomial =
        interpolate(points.iter().map(Vec::as_slice).zip(values.iter().map(|v| i128::from(*v))).collect())?;
    let mut dim = Dim::default();
    for (exponents, coefficient) in polynomial {
        let mut term = Dim::from(i64::try_from(coefficient).ok()?);
        for (symbol, exponent) in symbols.iter().zip(exponents) {
            term = (0..exponent).fold(term, |term, _| &term * &Dim::symbol(symbol));
        }
        dim = &dim + &term;
    }
    let holds = |(point, value): (&Vec<i64>, &i64)| {
        let of = |name: &str| symbols.iter().position(|s| **s == *name).map(|i| point[i]);
        dim.value(&of) == Some(*value)
    };
    points.iter().zip(values).all(holds).then_some(dim)
}

/// A polynomial through some of the points: in the last symbol for every choice of the others, then in these for every
/// coefficient.
fn interpolate(points: Vec<(&[i64], i128)>) -> Option<Polynomial> {
    let (first, value) = points.first()?;
    if first.is_empty() {
        return Some(BTreeMap::from([(Vec::new(), *value)]));
    }
    let mut by_others: BTreeMap<&[i64], Vec<(i128, i128)>> = BTreeMap::new();
    for (point, value) in &points {
        let (last, others) = point.split_last()?;
        by_others.entry(others).or_default().push((i128::from(*last), *value));
    }
    // A choice with fewer points than another says less: its coefficients would be others.
    let most = by_others.values().map(|line| line.len().min(3)).max()?;
    let mut coefficients: [Vec<(&[i64], i128)>; 3] = Default::default();
    for (others, line) in by_others.into_iter().filter(|(_, line)| line.len() >= most) {
        for (all, c) in coefficients.iter_mut().zip(parabola(&line)?) {
            all.push((others, c));
        }
    }
    let mut polynomial = Polynomial::new();
    for (exponent, values) in (0..).zip(coefficients) {
        for (mut exponents, c) in interpolate(values)? {
            exponents.push(exponent);
            if c != 0 {
                polynomial.insert(exponents, c);
            }
        }
    }
    Some(polynomial)
}

/// The integer coefficients of the parabola through the first, the middle and the last of some points of a line; of the
/// line or the constant through one or two.
fn parabola(line: &[(i128, i128)]) -> Option<[i128; 3]> {
    let divided = |a: i128, by: i128| (by != 0 && a % by == 0).then(|| a / by);
    let (x, y) = *line.first()?;
    match line {
        [_] => Some([y, 0, 0]),
        [_, (x1, y1)] => {
            let c = divided(y1 - y, x1 - x)?;
            Some([y - c * x, c, 0])
        }
        _ => {
            let ((x1, y1), (x2, y2)) = (line[line.len() / 2], line[line.len() - 1]);
            // ((y2 - y) / (x2 - x) - (y1 - y) / (x1 - x)) / (x2 - x1), over one denominator.
            let over = (x1 - x) * (x2 - x) * (x2 - x1);
            let c2 = divided((y2 - y) * (x1 - x) - (y1 - y) * (x2 - x), over)?;
            let c1 = divided(y2 - y, x2 - x)? - c2 * (x2 + x);
            Some([y - c1 * x - c2 * x * x, c1, c2])
        }
    }
}
