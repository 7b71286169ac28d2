//! A recurrent cell over time: LSTM (Hochreiter and Schmidhuber 1997; Gers, Schraudolph and Schmidhuber 2002 with peepholes), GRU
//! (Cho et al. 2014) or plain, without the product of its inputs and their weights.
//!
//! Operands, f32 or f64: what the inputs contribute to the gates, `[T, B, gates H]`, with the biases; the weights of the state R, `[H, gates
//! H]`; the state h, `[B, H]`; of an LSTM the cell c, `[B, H]`; of `gru_reset_after` the bias of the state's contribution, `[gates
//! H]`; with `peepholes` their weights, `[3 H]`, of the gates input, output, forget; with `lengths` the number of times of each
//! element of the batch, i32\[B\]. Results: the states shown at all times, `[T, B, H]`; the last state, `[B, H]`; of an LSTM the last
//! cell. Behind the end of a shorter sequence the state stays and what is shown is 0. With `reverse` times are taken from the
//! last one to the first. Gates stand in the order of ONNX: input, output, forget, cell; update, reset, hidden.
//!
//! With `quantized` the product with R reads the state of an LSTM in f32 rounded to 8 bits: to the nearest of 256 numbers at equal
//! distances over the range of all its elements and 0. Where R is stored in 8 bits, it is a product of integers.
//!
//! For back ends it is a loop, which the pass `expand-recurrences` makes of it. Where R is the product of two constants that are
//! smaller than it, the loop multiplies with one and then with the other.

mod activation;
mod adjoint;
mod reference;
mod repeated;

pub use activation::Activation;

use margay_tensor::{Binding, DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::{Attribute, Bits, Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// The kind of a recurrent cell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cell {
    /// i, o, f = σ(x + h R), c' = f c + i g(x + h R), h' = o k(c').
    Lstm,
    /// The same with f = 1 - i.
    CoupledLstm,
    /// z, r = σ(x + h R), h' = (1 - z) g(x + (r h) R) + z h.
    Gru,
    /// The same with r (h R + bias) in place of (r h) R.
    GruResetAfter,
    /// h' = g(x + h R).
    Rnn,
}

impl Cell {
    const ALL: [Cell; 5] = [Cell::Lstm, Cell::CoupledLstm, Cell::Gru, Cell::GruResetAfter, Cell::Rnn];

    /// Its name in text.
    pub fn name(self) -> &'static str {
        match self {
            Cell::Lstm => "lstm",
            Cell::CoupledLstm => "coupled_lstm",
            Cell::Gru => "gru",
            Cell::GruResetAfter => "gru_reset_after",
            Cell::Rnn => "rnn",
        }
    }

    /// Gates, which the columns of weights are divided among.
    pub fn gates(self) -> usize {
        match self {
            Cell::Lstm | Cell::CoupledLstm => 4,
            Cell::Gru | Cell::GruResetAfter => 3,
            Cell::Rnn => 1,
        }
    }

    /// Values handed from one time to the next.
    pub fn states(self) -> usize {
        if matches!(self, Cell::Lstm | Cell::CoupledLstm) { 2 } else { 1 }
    }

    /// Its functions where nothing else is said, which are as many as it has.
    pub fn default_activations(self) -> &'static [Activation] {
        match self {
            Cell::Lstm | Cell::CoupledLstm => &[Activation::Sigmoid, Activation::Tanh, Activation::Tanh],
            Cell::Gru | Cell::GruResetAfter => &[Activation::Sigmoid, Activation::Tanh],
            Cell::Rnn => &[Activation::Tanh],
        }
    }
}

impl Attribute for Cell {
    fn write(&self) -> String {
        self.name().to_owned()
    }

    fn read(text: &str) -> Result<Self, String> {
        Cell::ALL.into_iter().find(|cell| cell.name() == text).ok_or_else(|| format!("`{text}` is no cell"))
    }

    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}

/// A recurrent cell over time.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Recurrence {
    /// What is computed at each time.
    pub cell: Cell,
    /// The functions of the gates: σ, g, k as far as the cell has them.
    pub activations: Vec<Activation>,
    /// Sums are cut off at this size before functions of gates, except k.
    pub clip: Bits,
    /// From the last time to the first.
    pub reverse: bool,
    /// Whether gates of an LSTM see the cell.
    pub peepholes: bool,
    /// Whether elements of the batch end at times of their own.
    pub lengths: bool,
    /// Whether the state is rounded to 8 bits before its product with the weights.
    pub quantized: bool,
}

attributes!(Recurrence {
    cell,
    activations,
    clip = Bits::new(f64::INFINITY),
    reverse = false,
    peepholes = false,
    lengths = false,
    quantized = false,
});

/// The operands of a [`Recurrence`] by what they are.
#[derive(Clone, Debug)]
pub struct Operands<T> {
    /// `[T, B, gates H]`.
    pub x: T,
    /// `[H, gates H]`.
    pub r: T,
    /// `[B, H]` each.
    pub states: Vec<T>,
    /// `[gates H]`.
    pub bias: Option<T>,
    /// `[3 H]`.
    pub peepholes: Option<T>,
    /// `[B]`.
    pub lengths: Option<T>,
}

impl<T: Copy> Operands<T> {
    /// In the order of the operator.
    pub fn list(&self) -> Vec<T> {
        let optional = [self.bias, self.peepholes, self.lengths].into_iter().flatten();
        [self.x, self.r].into_iter().chain(self.states.iter().copied()).chain(optional).collect()
    }
}

impl Recurrence {
    /// The operands by what they are.
    ///
    /// # Errors
    /// For another number of them.
    pub fn operands<T: Copy>(&self, all: &[T]) -> Result<Operands<T>, TypeError> {
        let bias = self.cell == Cell::GruResetAfter;
        let states = self.cell.states();
        let expected =
            2 + states + [bias, self.peepholes, self.lengths].map(usize::from).iter().sum::<usize>();
        if all.len() != expected {
            return Err(TypeError::attribute(format!("expected {expected} operands, found {}", all.len())));
        }
        let mut rest = all[2 + states..].iter().copied();
        let mut next = |there: bool| there.then(|| rest.next()).flatten();
        Ok(Operands {
            x: all[0],
            r: all[1],
            states: all[2..2 + states].to_vec(),
            bias: next(bias),
            peepholes: next(self.peepholes),
            lengths: next(self.lengths),
        })
    }
}

impl OpDef for Recurrence {
    const NAME: &'static str = "recurrence";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let given = self.operands(inputs)?;
        let (gates, expected) = (self.cell.gates(), self.cell.default_activations().len());
        if self.activations.len() != expected {
            let found = self.activations.len();
            return Err(TypeError::attribute(format!("expected {expected} activations, found {found}")));
        }
        if self.peepholes && gates != 4 {
            return Err(TypeError::attribute("peepholes are those of an LSTM".to_owned()));
        }
        if self.quantized && gates != 4 {
            return Err(TypeError::attribute("a quantized state is that of an LSTM".to_owned()));
        }
        let (wide, expected) = match self.quantized {
            true => (given.x.dtype == DType::F32, "f32"),
            false => (matches!(given.x.dtype, DType::F32 | DType::F64), "f32 or f64"),
        };
        types::expect(0, given.x, wide, expected)?;
        for (input, ty) in inputs.iter().enumerate() {
            let of_lengths = given.lengths.is_some() && input + 1 == inputs.len();
            let dtype = if of_lengths { DType::I32 } else { given.x.dtype };
            types::expect_dtype(input, ty, dtype)?;
            let axes = match input {
                0 => 3,
                _ if input < 2 + self.cell.states() => 2,
                _ => 1,
            };
            if ty.ndim() != axes {
                return Err(TypeError::Ndim { input, expected: axes.to_string(), found: ty.ndim() });
            }
        }
        let (times, batch, hidden) = (&given.x.shape[0], &given.x.shape[1], &given.r.shape[0]);
        let width = hidden * &Dim::from(gates);
        types::same_extent("columns of the inputs", &given.x.shape[2], &width)?;
        types::same_extent("columns of the weights", &given.r.shape[1], &width)?;
        for state in &given.states {
            types::same_extent("the batch of a state", &state.shape[0], batch)?;
            types::same_extent("a state", &state.shape[1], hidden)?;
        }
        for (ty, extent) in
            [(given.bias, &width), (given.peepholes, &(hidden * &Dim::from(3usize))), (given.lengths, batch)]
        {
            if let Some(ty) = ty {
                types::same_extent("an operand", &ty.shape[0], extent)?;
            }
        }
        let of = |shape: &[&Dim]| TensorType::new(given.x.dtype, shape.iter().map(|&d| d.clone()).collect());
        let last = std::iter::repeat_n(of(&[batch, hidden]), given.states.len());
        Ok(std::iter::once(of(&[times, batch, hidden])).chain(last).collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        reference::run(self, inputs)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        if self.quantized {
            return Grad::none("a state that is rounded to 8 bits has no derivative");
        }
        adjoint::adjoint(self, cx)
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Err(NotLowered("a recurrence is a loop for back ends".to_owned()))
    }

    fn cost(&self, io: &Io) -> Cost {
        let (columns, hidden) = (io.inputs[0].elements() as u64, io.inputs[1].shape[0] as u64);
        // Each column of each time is a sum over the state and a function.
        Cost { flops: columns.saturating_mul(2 * hidden + 14), bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::plain(false)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.none(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let plain = |cell: Cell| Recurrence {
            cell,
            activations: cell.default_activations().to_vec(),
            clip: Bits::new(f64::INFINITY),
            reverse: false,
            peepholes: false,
            lengths: false,
            quantized: false,
        };
        let (times, batch, hidden) = (5, 3, 6);
        let case = |op: &Recurrence| {
            let width = op.cell.gates() * hidden;
            let mut shapes = vec![vec![times, batch, width], vec![hidden, width]];
            shapes.extend(std::iter::repeat_n(vec![batch, hidden], op.cell.states()));
            shapes.extend((op.cell == Cell::GruResetAfter).then(|| vec![width]));
            shapes.extend(op.peepholes.then(|| vec![3 * hidden]));
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            let case = Case::random(DType::F32, -1.0, 1.0, &shapes);
            let lengths = || Tensor::from_slice(&[batch], &[4i32, 0, 9]).expect("three lengths");
            if op.lengths { case.with(CaseInput::Values(lengths())) } else { case }
        };
        let with = |op: Recurrence| (op.clone(), case(&op));
        let all_functions = |names: [&str; 3]| {
            let read = |name: &&str| Activation::read(name).expect("an activation");
            names.iter().map(read).collect::<Vec<_>>()
        };
        let mut cases: Vec<(Self, Case)> = Cell::ALL.map(|cell| with(plain(cell))).into();
        cases.extend([
            with(Recurrence { reverse: true, ..plain(Cell::Gru) }),
            with(Recurrence { lengths: true, clip: Bits::new(0.75), ..plain(Cell::Rnn) }),
            with(Recurrence { lengths: true, reverse: true, peepholes: true, ..plain(Cell::Lstm) }),
            with(Recurrence { reverse: true, lengths: true, ..plain(Cell::GruResetAfter) }),
            with(Recurrence { quantized: true, ..plain(Cell::Lstm) }),
            with(Recurrence { quantized: true, reverse: true, lengths: true, ..plain(Cell::CoupledLstm) }),
            with(Recurrence {
                activations: all_functions(["HardSigmoid(0.2, 0.5)", "ScaledTanh(1.5, 0.5)", "Softsign"]),
                peepholes: true,
                ..plain(Cell::CoupledLstm)
            }),
            with(Recurrence {
                activations: all_functions(["Affine(0.5, 0.25)", "Elu(0.5)", "LeakyRelu(0.125)"]),
                ..plain(Cell::Lstm)
            }),
            with(Recurrence {
                activations: all_functions(["Softplus", "ThresholdedRelu(0.25)", "Relu"]),
                ..plain(Cell::Lstm)
            }),
        ]);
        cases
    }
}
