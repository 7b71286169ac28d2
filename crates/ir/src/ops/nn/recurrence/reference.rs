//! The formulas of the cells, time by time.

use margay_tensor::Tensor;

use super::{Cell, Recurrence};
use crate::ops::EvalError;
use crate::ops::elementwise::Numbers;

/// One element of a batch in the making.
struct Element<'a> {
    op: &'a Recurrence,
    /// `[H, gates H]`.
    r: &'a [f64],
    bias: Option<&'a [f64]>,
    peepholes: Option<&'a [f64]>,
    h: Vec<f64>,
    c: Vec<f64>,
    /// The state as the product with R reads it.
    read: Vec<f64>,
}

impl Element<'_> {
    /// h R, for one column.
    fn state(&self, h: &[f64], column: usize) -> f64 {
        let width = self.op.cell.gates() * h.len();
        let product: f64 = h.iter().enumerate().map(|(k, h)| h * self.r[k * width + column]).sum();
        product + self.bias.map_or(0.0, |bias| bias[column])
    }

    fn gate(&self, which: usize, x: f64) -> f64 {
        let clip = self.op.clip.get();
        // As a maximum and a minimum are computed: a number that is none stays so.
        let x = if x < -clip { -clip } else { x };
        let x = if x > clip { clip } else { x };
        self.op.activations[which].of(x)
    }

    /// One time, from what the inputs contribute.
    fn step(&mut self, x: &[f64]) {
        let hidden = self.h.len();
        let full = |gate: usize, j: usize| x[gate * hidden + j] + self.state(&self.read, gate * hidden + j);
        let peep = |part: usize, j: usize, cell: f64| {
            self.peepholes.map_or(0.0, |weights| weights[part * hidden + j] * cell)
        };
        match self.op.cell {
            Cell::Lstm | Cell::CoupledLstm => {
                let mut next = (Vec::with_capacity(hidden), Vec::with_capacity(hidden));
                for j in 0..hidden {
                    let input = self.gate(0, full(0, j) + peep(0, j, self.c[j]));
                    let forget = match self.op.cell {
                        Cell::CoupledLstm => 1.0 - input,
                        _ => self.gate(0, full(2, j) + peep(2, j, self.c[j])),
                    };
                    let cell = forget * self.c[j] + input * self.gate(1, full(3, j));
                    let output = self.gate(0, full(1, j) + peep(1, j, cell));
                    next.0.push(output * self.op.activations[2].of(cell));
                    next.1.push(cell);
                }
                (self.h, self.c) = next;
            }
            Cell::Gru | Cell::GruResetAfter => {
                let reset: Vec<f64> = (0..hidden).map(|j| self.gate(0, full(1, j))).collect();
                let kept: Vec<f64> = reset.iter().zip(&self.h).map(|(r, h)| r * h).collect();
                let next = |j: usize| {
                    let of_state = match self.op.cell {
                        Cell::GruResetAfter => reset[j] * self.state(&self.read, 2 * hidden + j),
                        _ => self.state(&kept, 2 * hidden + j),
                    };
                    let update = self.gate(0, full(0, j));
                    let new = self.gate(1, x[2 * hidden + j] + of_state);
                    (1.0 - update) * new + update * self.h[j]
                };
                self.h = (0..hidden).map(next).collect();
            }
            Cell::Rnn => self.h = (0..hidden).map(|j| self.gate(0, full(0, j))).collect(),
        }
    }
}

/// Numbers rounded to 8 bits by their range, in the arithmetic of f32, so that no tie goes another way than in compiled code.
fn rounded(numbers: &[f64]) -> Vec<f64> {
    let numbers: Vec<f32> = numbers.iter().map(|x| *x as f32).collect();
    let (low, high) = numbers.iter().fold((0f32, 0f32), |(low, high), x| (low.min(*x), high.max(*x)));
    let scale = if high > low { (high - low) / 255.0 } else { 1.0 };
    let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0);
    let level = |x: f32| ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0);
    numbers.into_iter().map(|x| f64::from((level(x) - zero) * scale)).collect()
}

/// The results of a recurrence.
pub(super) fn run(op: &Recurrence, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
    let given = op.operands(inputs)?;
    let floats = |t: &Tensor| Ok::<_, EvalError>(Numbers::of(t)?.floats());
    let &[times, batch, width] = given.x.shape() else { unreachable!("inference looked at the shape") };
    let hidden = given.r.shape()[0];
    let (x, r) = (floats(given.x)?, floats(given.r)?);
    let bias = given.bias.map(floats).transpose()?;
    let peepholes = given.peepholes.map(floats).transpose()?;
    let lengths = given.lengths.map(|t| Ok::<_, EvalError>(Numbers::of(t)?.ints())).transpose()?;
    let states = given.states.iter().map(|t| floats(t)).collect::<Result<Vec<_>, _>>()?;
    let element = |e: usize| {
        let of = |state: usize| states.get(state).map_or(Vec::new(), |s| s[e * hidden..][..hidden].to_vec());
        let (bias, peepholes) = (bias.as_deref(), peepholes.as_deref());
        Element { op, r: &r, bias, peepholes, h: of(0), c: of(1), read: Vec::new() }
    };
    let mut elements: Vec<Element> = (0..batch).map(element).collect();
    let mut y = vec![0.0; times * batch * hidden];
    for i in 0..times {
        let at = if op.reverse { times - 1 - i } else { i };
        let all: Vec<f64> = elements.iter().flat_map(|element| element.h.iter().copied()).collect();
        let read = if op.quantized { rounded(&all) } else { all };
        for (e, element) in elements.iter_mut().enumerate() {
            if lengths.as_ref().is_some_and(|lengths| at as i64 >= lengths[e]) {
                continue;
            }
            element.read = read[e * hidden..][..hidden].to_vec();
            element.step(&x[(at * batch + e) * width..][..width]);
            y[(at * batch + e) * hidden..][..hidden].copy_from_slice(&element.h);
        }
    }
    let mut last = vec![Vec::new(); states.len()];
    for element in elements {
        last.iter_mut().zip([element.h, element.c]).for_each(|(all, state)| all.extend(state));
    }
    let dtype = given.x.dtype();
    let whole = Numbers::Float(y).into_tensor(dtype, &[times, batch, hidden])?;
    let last = last.into_iter().map(|state| Numbers::Float(state).into_tensor(dtype, &[batch, hidden]));
    std::iter::once(Ok(whole)).chain(last).collect()
}
