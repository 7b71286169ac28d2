//! Extents as data: what a running model computes from the shapes of its inputs.
//!
//! An extent is read from an input that has it along an axis, by one `Shape` per input and one `Gather` per symbol.
//! Expressions are computed from those and everything is kept for the next one who asks.

use margay_ir::ops::Range;
use margay_tensor::Dim;

use super::Exporter;
use crate::{Attribute, OnnxError};

/// What the text of an extent says. Its text form is the only view of the inside of a [`Dim`].
#[derive(Clone, PartialEq, Debug)]
enum Expression {
    Constant(i64),
    Symbol(String),
    /// Operator of ONNX, left, right.
    Binary(&'static str, Box<Expression>, Box<Expression>),
}

impl Exporter<'_> {
    /// The name of an i64 tensor of one axis that holds extents; `part` names the node that puts them together.
    pub(super) fn extents(&mut self, dims: &[Dim], part: &str) -> Result<String, OnnxError> {
        let mut pieces = Vec::new();
        let mut constants = Vec::new();
        for dim in dims {
            match dim.as_const() {
                Some(v) => constants.push(v),
                None => {
                    if !constants.is_empty() {
                        pieces.push(self.integers(&constants)?);
                        constants.clear();
                    }
                    pieces.push(self.extent(dim)?);
                }
            }
        }
        if !constants.is_empty() || pieces.is_empty() {
            pieces.push(self.integers(&constants)?);
        }
        match pieces.as_slice() {
            [only] => Ok(only.clone()),
            _ => {
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                Ok(self.emit("Concat", part, &pieces, vec![("axis", Attribute::Int(0))]))
            }
        }
    }

    /// A range whose bounds may be expressions.
    pub(super) fn range(&mut self, op: &Range) -> Result<String, OnnxError> {
        let limit = &op.start + &(&Dim::from(op.step) * &op.count);
        let scalar = self.integers(&[])?;
        let mut bounds = Vec::new();
        for (bound, part) in [(&op.start, "start"), (&limit, "limit"), (&Dim::from(op.step), "step")] {
            let extent = self.extents(std::slice::from_ref(bound), &in_part("", part))?;
            bounds.push(self.emit("Reshape", part, &[&extent, &scalar], vec![]));
        }
        let bounds: Vec<&str> = bounds.iter().map(String::as_str).collect();
        Ok(self.emit("Range", "", &bounds, vec![]))
    }

    fn extent(&mut self, dim: &Dim) -> Result<String, OnnxError> {
        if let Some(name) = self.extents.get(dim) {
            return Ok(name.clone());
        }
        let text = dim.to_string();
        let expression = Reader { text: &text }.sum();
        let expression =
            expression.ok_or_else(|| self.refusal(format!("extent `{text}` is not understood")))?;
        let base = std::mem::replace(&mut self.base, "extents".to_owned());
        let name = self.expression(&expression);
        self.base = base;
        let name = match name {
            Ok(name) => name,
            Err(symbol) => {
                return Err(self.refusal(format!("`{symbol}` in `{text}` is no extent of an input")));
            }
        };
        self.extents.insert(dim.clone(), name.clone());
        Ok(name)
    }

    /// Fails with the symbol that is nowhere.
    fn expression(&mut self, expression: &Expression) -> Result<String, String> {
        match expression {
            Expression::Constant(v) => self.integers(&[*v]).map_err(|_| v.to_string()),
            Expression::Symbol(name) => self.symbol(name),
            Expression::Binary(op, left, right) => {
                let (left, right) = (self.expression(left)?, self.expression(right)?);
                Ok(self.emit(op, op, &[&left, &right], vec![]))
            }
        }
    }

    fn symbol(&mut self, symbol: &str) -> Result<String, String> {
        let dim = Dim::symbol(symbol);
        if let Some(name) = self.extents.get(&dim) {
            return Ok(name.clone());
        }
        let (input, axis) = self.sources.get(symbol).cloned().ok_or_else(|| symbol.to_owned())?;
        let shape = match self.shapes.get(&input) {
            Some(shape) => shape.clone(),
            None => {
                let shape = self.emit("Shape", &format!("{input}/Shape"), &[&input], vec![]);
                self.shapes.insert(input, shape.clone());
                shape
            }
        };
        let index = self.integers(&[axis as i64]).map_err(|_| symbol.to_owned())?;
        let attributes = vec![("axis", Attribute::Int(0))];
        let name = self.emit("Gather", &format!("{symbol}/Gather"), &[&shape, &index], attributes);
        self.extents.insert(dim, name.clone());
        Ok(name)
    }

    /// A reshape. Extents that stay where they are, and one more, need no computation.
    pub(super) fn reshape(
        &mut self,
        part: &str,
        x: &str,
        from: &[Dim],
        to: &[Dim],
    ) -> Result<String, OnnxError> {
        if to.iter().any(|d| d.is(0)) {
            return self.reshape_to_nothing(part, x, from, to);
        }
        let mut shape = Vec::new();
        let mut open = Vec::new();
        for (i, d) in to.iter().enumerate() {
            shape.push(match d.as_const() {
                Some(v) => v,
                None if from.get(i) == Some(d) => 0,
                None => {
                    open.push(i);
                    -1
                }
            });
        }
        let product = |dims: &mut dyn Iterator<Item = &Dim>| dims.fold(Dim::from(1usize), |n, d| &n * d);
        let inferred = |open: usize| {
            let known = product(&mut to.iter().enumerate().filter(|(i, _)| *i != open).map(|(_, d)| d));
            product(&mut from.iter()).floor_div(&known).as_ref() == Some(&to[open])
        };
        let shape = match open.as_slice() {
            [] => self.integers(&shape)?,
            [i] if inferred(*i) => self.integers(&shape)?,
            _ => self.extents(to, &in_part(part, "shape"))?,
        };
        Ok(self.emit("Reshape", part, &[x, &shape], vec![]))
    }

    /// A reshape of no elements: 0 must mean 0.
    fn reshape_to_nothing(
        &mut self,
        part: &str,
        x: &str,
        from: &[Dim],
        to: &[Dim],
    ) -> Result<String, OnnxError> {
        let kept = to.iter().enumerate().all(|(i, d)| !d.is(0) || from.get(i) == Some(d));
        let attributes = match (kept, self.opset) {
            (true, _) => vec![],
            (false, 14..) => vec![("allowzero", Attribute::Int(1))],
            (false, opset) => {
                return Err(self.refusal(format!("a reshape to extent 0 needs operator set 14, not {opset}")));
            }
        };
        let shape = self.extents(to, &in_part(part, "shape"))?;
        Ok(self.emit("Reshape", part, &[x, &shape], attributes))
    }

    /// A broadcast. Extents that the operand has already need no computation.
    pub(super) fn expand(&mut self, x: &str, from: &[Dim], to: &[Dim]) -> Result<String, OnnxError> {
        let new = to.len().saturating_sub(from.len());
        let shape = to.iter().enumerate().map(|(i, d)| match i.checked_sub(new).and_then(|i| from.get(i)) {
            Some(has) if has == d => Dim::from(1usize),
            _ => d.clone(),
        });
        let shape: Vec<Dim> = shape.collect();
        let shape = self.extents(&shape, "shape")?;
        Ok(self.emit("Expand", "", &[x, &shape], vec![]))
    }
}

fn in_part(part: &str, name: &str) -> String {
    if part.is_empty() { name.to_owned() } else { format!("{part}/{name}") }
}

/// Reads the text form of an extent: `2*B*S + floordiv(T, 2) - 1`.
struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn take(&mut self, token: &str) -> bool {
        let rest = self.text.trim_start().strip_prefix(token);
        if let Some(rest) = rest {
            self.text = rest;
        }
        rest.is_some()
    }

    /// Reads to where a sum ends: the end of the text, or what follows an operand of `floordiv`.
    fn sum(mut self) -> Option<Expression> {
        let sum = self.sum_here()?;
        self.text.is_empty().then_some(sum)
    }

    fn sum_here(&mut self) -> Option<Expression> {
        let mut sum = match self.take("-") {
            true => binary("Mul", Expression::Constant(-1), self.product()?),
            false => self.product()?,
        };
        loop {
            if self.take("+") {
                sum = binary("Add", sum, self.product()?);
            } else if self.take("-") {
                sum = binary("Sub", sum, self.product()?);
            } else {
                return Some(sum);
            }
        }
    }

    fn product(&mut self) -> Option<Expression> {
        let mut product = self.atom()?;
        while self.take("*") {
            product = binary("Mul", product, self.atom()?);
        }
        Some(product)
    }

    fn atom(&mut self) -> Option<Expression> {
        if self.take("floordiv(") {
            let dividend = self.sum_here()?;
            let divisor = self.take(",").then(|| self.sum_here())??;
            return self.take(")").then(|| binary("Div", dividend, divisor));
        }
        let text = self.text.trim_start();
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '\'' | '?');
        let (found, rest) = text.split_at(text.find(|c| !word(c)).unwrap_or(text.len()));
        self.text = rest;
        match found.chars().next()? {
            '0'..='9' => found.parse().ok().map(Expression::Constant),
            _ => Some(Expression::Symbol(found.to_owned())),
        }
    }
}

fn binary(op: &'static str, left: Expression, right: Expression) -> Expression {
    Expression::Binary(op, Box::new(left), Box::new(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(e: &Expression) -> String {
        match e {
            Expression::Constant(v) => v.to_string(),
            Expression::Symbol(s) => s.clone(),
            Expression::Binary(op, x, y) => format!("{op}({}, {})", shown(x), shown(y)),
        }
    }

    #[test]
    fn extents_are_read() {
        let read = |text: &str| {
            let text = Dim::parse(text).unwrap().to_string();
            shown(&Reader { text: &text }.sum().unwrap())
        };
        assert_eq!(read("2*B*S + 1"), "Add(Mul(Mul(2, B), S), 1)");
        assert_eq!(read("-S.x + 3"), "Add(Mul(-1, S.x), 3)");
        assert_eq!(read("floordiv(H - 1, 2) - 4"), "Sub(Div(Sub(H, 1), 2), 4)");
        assert_eq!(read("3*floordiv(S, T)*S"), "Mul(Mul(3, S), Div(S, T))");
        assert_eq!(Reader { text: "S )" }.sum(), None);
    }
}
