//! What passes, the importer and the trainer may know of an operator without knowing which it is.

use margay_loops::Activation;
use margay_tensor::{DType, Dim};

use crate::Op;
use crate::ops::elementwise::{Numbers, broadcast_positions};
use crate::ops::nn::ImageLayout;

/// What every operator says of itself. There is no default value: a new field is answered by all of them.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Each element of the only result follows from the elements at the same place of the operands, which broadcast.
    pub elementwise: Option<Elementwise>,
    /// Computing the results again takes little beside the products that a model consists of.
    pub cheap: bool,
    /// The result is the only operand if both have one type.
    pub identity: bool,
    /// How it computes on integers that are expressions over symbols; `None` where it needs numbers.
    pub symbolic: Option<Symbolic>,
    /// What a constant is to a layer, by the operand that it is; operands that are not listed are none.
    pub parameters: &'static [Option<Parameter>],
    /// What it has to do with images.
    pub image: Option<Image>,
    /// The same operator with all results that it can have; its own are the first of them. `None` if it has all.
    pub with_all_results: Option<Op>,
}

/// What an operator says that works element by element.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Elementwise {
    /// The number that changes nothing as an operand.
    pub neutral: Option<Neutral>,
    /// The function that kernels of products can apply to their results in its place.
    pub activation: Option<Activation>,
}

/// `x ∘ number = x`, the sign of zero included: of sums of floats -0 is neutral and 0 is not, as -0 + 0 = 0.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Neutral {
    /// The number.
    pub number: f64,
    /// `number ∘ x = x` too.
    pub commutes: bool,
}

/// A constant of a layer.
#[derive(Clone, Copy, Debug)]
pub enum Parameter {
    /// Multiplied with the other operand; sums run over so many terms for a weight of these extents.
    Weight(fn(&[usize]) -> usize),
    /// Rows that are looked up.
    Table,
    /// Multiplied element by element.
    Scale,
    /// Added element by element.
    Shift,
}

/// An operator on images, whose kernels may need the channels last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The order of axes of its images.
    pub layout: ImageLayout,
    /// The same operator on images with channels last.
    pub channels_last: Op,
    /// So many operands, the first ones, are images.
    pub operands: usize,
    /// The result is an image.
    pub result: bool,
    /// Whether images are brought into that order for its sake. If not, it follows those that are.
    pub demanding: bool,
}

/// How an operator computes on integers with symbols, by the same rule as on numbers.
#[derive(Clone, Copy, Debug)]
pub enum Symbolic {
    /// It only moves elements. The operands listed say where to, and must be numbers.
    Moves(&'static [usize]),
    /// Each element by itself.
    Each(fn(&Dim) -> Option<Dim>),
    /// Two operands, which broadcast.
    Pairs(fn(&Dim, &Dim) -> Option<Dim>),
    /// All elements to one.
    Joins(fn(&Dim, &Dim) -> Option<Dim>),
}

impl Facts {
    /// The operands that say where the elements of the others move to.
    pub fn steering(&self) -> &'static [usize] {
        match self.symbolic {
            Some(Symbolic::Moves(steering)) => steering,
            _ => &[],
        }
    }

    /// Of an operator that works element by element.
    pub(crate) fn elementwise(
        elementwise: Elementwise,
        symbolic: Option<Symbolic>,
        parameters: &'static [Option<Parameter>],
    ) -> Facts {
        Facts {
            elementwise: Some(elementwise),
            cheap: true,
            identity: false,
            symbolic,
            parameters,
            image: None,
            with_all_results: None,
        }
    }

    /// Of an operator that only moves elements of its operands; those of `steering` say where to.
    pub(crate) fn moving(
        identity: bool,
        steering: &'static [usize],
        parameters: &'static [Option<Parameter>],
    ) -> Facts {
        Facts {
            elementwise: None,
            cheap: true,
            identity,
            symbolic: Some(Symbolic::Moves(steering)),
            parameters,
            image: None,
            with_all_results: None,
        }
    }

    /// Of an operator that holds graphs: what they do is not looked into.
    pub(crate) fn region() -> Facts {
        Facts::plain(false)
    }

    /// Of an operator of which nothing else is to be said.
    pub(crate) fn plain(cheap: bool) -> Facts {
        Facts {
            elementwise: None,
            cheap,
            identity: false,
            symbolic: None,
            parameters: &[],
            image: None,
            with_all_results: None,
        }
    }

    /// Of an operator without operands.
    pub(crate) fn leaf() -> Facts {
        Facts::plain(true)
    }
}

impl Neutral {
    /// On either side.
    pub(crate) const fn either(number: f64) -> Neutral {
        Neutral { number, commutes: true }
    }

    /// As the second operand.
    pub(crate) const fn second(number: f64) -> Neutral {
        Neutral { number, commutes: false }
    }
}

/// Integers (truth values as 0 and 1) with symbols, and their shape.
#[derive(Clone, PartialEq, Debug)]
pub struct IntTensor {
    /// Their type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub values: Vec<Dim>,
}

impl Op {
    /// The elements of the only result, of this shape, on integers with symbols; `None` if it takes data or cannot be
    /// decided for all values of the symbols, which are at least 1.
    pub fn eval_symbolic(&self, inputs: &[IntTensor], shape: &[usize]) -> Option<Vec<Dim>> {
        match self.facts().symbolic? {
            Symbolic::Moves(steering) => moved(self, inputs, steering),
            Symbolic::Each(f) => inputs.first()?.values.iter().map(f).collect(),
            Symbolic::Pairs(f) => {
                let [x, y] = inputs else { return None };
                let at = [x, y].map(|i| broadcast_positions(shape, &i.shape));
                at[0].iter().zip(&at[1]).map(|(&i, &j)| f(x.values.get(i)?, y.values.get(j)?)).collect()
            }
            Symbolic::Joins(f) => {
                if shape.iter().product::<usize>() != 1 {
                    return None;
                }
                let mut values = inputs.first()?.values.iter();
                let first = values.next()?.clone();
                Some(vec![values.try_fold(first, |so_far, x| f(&so_far, x))?])
            }
        }
    }
}

/// Runs an operator that only moves elements on the positions of the elements of its inputs, and looks those up in the
/// result.
fn moved(op: &Op, inputs: &[IntTensor], steering: &[usize]) -> Option<Vec<Dim>> {
    let mut elements: Vec<&Dim> = Vec::new();
    let mut operands = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let (dtype, values) = if steering.contains(&i) {
            (input.dtype, input.values.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>()?)
        } else {
            let first = elements.len() as i64;
            elements.extend(&input.values);
            (DType::I64, (first..elements.len() as i64).collect())
        };
        let values = values.into_iter().map(i128::from).collect();
        operands.push(Numbers::Int(values).into_tensor(dtype, &input.shape).ok()?);
    }
    let out = op.eval(&operands.iter().collect::<Vec<_>>()).ok()?.pop()?;
    let positions = Numbers::of(&out).ok()?.ints();
    positions.into_iter().map(|p| elements.get(usize::try_from(p).ok()?).map(|&d| d.clone())).collect()
}

/// 1 or 0.
pub(crate) fn flag(v: bool) -> Dim {
    Dim::from(i64::from(v))
}

/// Whether x is not 0, as 1 or 0.
pub(crate) fn truth(x: &Dim) -> Option<Dim> {
    equal(x, &Dim::default()).map(|zero| flag(!zero))
}

/// Whether x = y, if that holds or fails for all values of the symbols.
pub(crate) fn equal(x: &Dim, y: &Dim) -> Option<bool> {
    let difference = x - y;
    match difference.as_const() {
        Some(d) => Some(d == 0),
        None if difference.is_positive() || (y - x).is_positive() => Some(false),
        None => None,
    }
}

/// Whether x <= y, if that holds or fails for all values of the symbols.
pub fn less_or_equal(x: &Dim, y: &Dim) -> Option<bool> {
    if (&(y - x) + &Dim::from(1i64)).is_positive() {
        return Some(true);
    }
    (x - y).is_positive().then_some(false)
}

/// The larger one.
pub(crate) fn larger(x: &Dim, y: &Dim) -> Option<Dim> {
    Some(if less_or_equal(x, y)? { y } else { x }.clone())
}

/// The smaller one.
pub(crate) fn smaller(x: &Dim, y: &Dim) -> Option<Dim> {
    Some(if less_or_equal(x, y)? { x } else { y }.clone())
}

/// The quotient rounded towards zero, where it is exact or known not to be negative.
pub(crate) fn quotient(x: &Dim, y: &Dim) -> Option<Dim> {
    if let (Some(x), Some(y)) = (x.as_const(), y.as_const()) {
        return x.checked_div(y).map(Dim::from);
    }
    let quotient = x.floor_div(y)?;
    let exact = &quotient * y == *x;
    (exact || y.is_positive() && less_or_equal(&Dim::default(), x)?).then_some(quotient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_symbols_decide() {
        let d = |t: &str| Dim::parse(t).unwrap();
        assert_eq!(equal(&d("B"), &d("-1")), Some(false));
        assert_eq!(equal(&d("B"), &d("B")), Some(true));
        assert_eq!(equal(&d("B"), &d("S")), None);
        assert_eq!(equal(&d("B"), &d("1")), None);
        assert_eq!(less_or_equal(&d("1"), &d("S")), Some(true));
        assert_eq!(less_or_equal(&d("S + 1"), &d("S")), Some(false));
        assert_eq!(less_or_equal(&d("2"), &d("S")), None);
        assert_eq!(quotient(&d("4*B*S"), &d("2*S")), Some(d("2*B")));
        assert_eq!(quotient(&d("S - 1"), &d("2")), Some(d("floordiv(S - 1, 2)")));
        assert_eq!(quotient(&d("S - 3"), &d("2")), None);
        assert_eq!(quotient(&d("-7"), &d("2")), Some(d("-3")));
    }
}
