//! Recurrences as `LSTM`, `GRU` and `RNN`, with the product and the bias of the inputs before them.
//!
//! What the inputs contribute is X Wᵀ + b in ONNX. Where it is no such product, W is the identity.
//!
//! One with a quantized state whose weights are integers is `DynamicQuantizeLSTM` of onnxruntime, if the inputs are multiplied in
//! the same manner; others are no layers.

use std::collections::BTreeMap;

use margay_ir::ops::recurrence::{Activation, Cell, Operands};
use margay_ir::ops::{Numbers, Recurrence};
use margay_ir::{Graph, NodeId, Op, Payload, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::Exporter;
use super::operators::axis;
use super::quantized::{Integers, dynamic_product};
use crate::model::MICROSOFT;
use crate::{Attribute, OnnxError, OnnxNode};

/// A recurrence with what stands before it.
#[derive(Clone, Debug)]
pub(super) struct Layer<'g> {
    n: NodeId,
    op: &'g Recurrence,
    given: Operands<Value>,
    /// `[T, B, I]`.
    x: Value,
    /// `[I, gates H]`.
    w: Option<Value>,
    /// `[gates H]`, perhaps behind axes of extent 1.
    bias: Option<Value>,
    /// In place of W and R.
    integers: Option<[Integers; 2]>,
}

impl<'g> Layer<'g> {
    pub(super) fn find(g: &'g Graph, n: NodeId) -> Option<Layer<'g>> {
        let Op::Recurrence(op) = g.op(n) else { return None };
        let given = op.operands(&g.inputs_of(n)).ok()?;
        let mut layer = Layer { n, op, x: given.x, given, w: None, bias: None, integers: None };
        let of = |v: Value| (g.op(v.node), g.inputs_of(v.node));
        if let (Op::Add(_), parts) = of(layer.x) {
            let orders = [[parts[0], parts[1]], [parts[1], parts[0]]];
            if let Some([x, bias]) = orders.into_iter().find(|[x, bias]| is_bias(g, *x, *bias)) {
                (layer.x, layer.bias) = (x, Some(bias));
            }
        }
        if op.quantized {
            let (x, w) = dynamic_product(g, layer.x).filter(|(x, _)| g.ty(*x).ndim() == 3)?;
            layer.integers = Some([w, Integers::stored(g, layer.given.r)?]);
            layer.x = x;
            return Some(layer);
        }
        if let (Op::MatMul(_), parts) = of(layer.x)
            && (g.ty(parts[0]).ndim(), g.ty(parts[1]).ndim()) == (3, 2)
            && g.ty(parts[0]).dtype.is_float()
        {
            (layer.x, layer.w) = (parts[0], Some(parts[1]));
        }
        Some(layer)
    }

    /// The values that are read by name.
    pub(super) fn operands(&self, g: &Graph) -> Vec<Value> {
        let r = Some(self.given.r).filter(|_| self.integers.is_none());
        let numbers = [self.w, r, self.bias, self.given.bias, self.given.peepholes];
        let numbers = numbers.into_iter().flatten().filter(|v| plain(g, *v).is_none());
        let states = self.given.states.iter().filter(|v| !is_zero(g, **v)).map(|v| raised(g, *v).0);
        [self.x].into_iter().chain(numbers).chain(states).chain(self.given.lengths).collect()
    }
}

/// Whether a sum is that of a value of three axes and numbers along its last one.
fn is_bias(g: &Graph, x: Value, bias: Value) -> bool {
    let (of, with) = (&g.ty(x).shape, &g.ty(bias).shape);
    of.len() == 3 && with.last() == of.last() && with.iter().rev().skip(1).all(|d| d.is(1))
}

/// The numbers of a constant that is stored as numbers.
fn plain(g: &Graph, v: Value) -> Option<&Tensor> {
    g.constant(v).filter(|p| p.stored().is_plain()).map(Payload::tensor)
}

/// Whether a value is 0 everywhere.
fn is_zero(g: &Graph, v: Value) -> bool {
    let v = match g.op(v.node) {
        Op::Broadcast(_) => g.inputs_of(v.node)[0],
        _ => v,
    };
    let zeros = |t: &Tensor| t.dtype().is_float() && t.bytes().iter().all(|b| *b == 0);
    plain(g, v).is_some_and(zeros)
}

/// A state `[B, H]` as `[1, B, H]`: the value that it was made of, and whether it was.
fn raised(g: &Graph, v: Value) -> (Value, bool) {
    if let Op::Reshape(_) = g.op(v.node) {
        let of = g.inputs_of(v.node)[0];
        if is_raised(&g.ty(of).shape, &g.ty(v).shape, 0) {
            return (of, true);
        }
    }
    (v, false)
}

/// Whether a shape has an axis of extent 1 more than another one, at this place.
fn is_raised(shape: &[Dim], of: &[Dim], at: usize) -> bool {
    shape.len() == of.len() + 1 && shape[at].is(1) && shape[..at] == of[..at] && shape[at + 1..] == of[at..]
}

/// Where the axis of directions stands in a result.
fn directions(v: Value) -> usize {
    usize::from(v.out == 0)
}

/// Whether a result of a recurrence is written with the axis of directions: all its readers give it that axis.
pub(super) fn has_directions(g: &Graph, v: Value) -> bool {
    let gives = |n: NodeId| {
        matches!(g.op(n), Op::Reshape(_)) && is_raised(&g.ty(n.into()).shape, &g.ty(v).shape, directions(v))
    };
    let users = || g.users_of(v).into_iter();
    matches!(g.op(v.node), Op::Recurrence(_)) && !g.is_output(v) && users().all(|(user, _)| gives(user))
}

impl Exporter<'_> {
    /// Adds the operator and returns the names of its results.
    pub(super) fn recurrence(&mut self, layer: &Layer<'_>) -> Result<Vec<String>, OnnxError> {
        let (g, op, given) = (self.g, layer.op, &layer.given);
        let Some(hidden) = g.ty(given.r).shape[0].as_extent() else {
            return Err(self.refusal("a recurrence of unknown width is not exported".to_owned()));
        };
        let dtype = g.ty(given.x).dtype;
        let width = op.cell.gates() * hidden;
        let x = self.results[&layer.x].clone();
        let [w, r] = match &layer.integers {
            Some([w, r]) => [self.elements_of(w, "W")?, self.elements_of(r, "R")?],
            None => {
                let w = match layer.w {
                    Some(w) => self.weights(w, "W")?,
                    None => {
                        let at = |i: usize| if i.is_multiple_of(width + 1) { 1.0 } else { 0.0 };
                        let numbers = Numbers::Float((0..width * width).map(at).collect());
                        self.numbers(numbers.into_tensor(dtype, &[1, width, width]), "identity")?
                    }
                };
                [w, self.weights(given.r, "R")?]
            }
        };
        let bias = self.biases([layer.bias, given.bias], width, dtype)?;
        let peepholes =
            given.peepholes.map(|v| self.row(v, 3 * hidden, "P")).transpose()?.unwrap_or_default();
        let lengths = given.lengths.map(|v| self.results[&v].clone()).unwrap_or_default();
        let mut inputs = vec![x, w, r, bias, lengths];
        for v in &given.states {
            inputs.push(match raised(g, *v) {
                _ if is_zero(g, *v) => String::new(),
                (v, true) => self.results[&v].clone(),
                (v, false) => {
                    let (name, axes) = (self.results[&v].clone(), self.integers(&[0])?);
                    self.emit("Unsqueeze", "state", &[&name, &axes], vec![])
                }
            });
        }
        inputs.push(peepholes);
        if let Some(matrices) = &layer.integers {
            for (matrix, part) in matrices.iter().zip(["W", "R"]) {
                inputs.extend(self.steps_of(matrix, part)?);
            }
        }
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        let name = self.node_name("");
        let results: Vec<Value> = g.values_of(layer.n).collect();
        let outputs: Vec<String> =
            results.iter().map(|_| self.value_names.fresh(&format!("{name}_output"))).collect();
        let op_type = match op.cell {
            _ if layer.integers.is_some() => "DynamicQuantizeLSTM",
            Cell::Lstm | Cell::CoupledLstm => "LSTM",
            Cell::Gru | Cell::GruResetAfter => "GRU",
            Cell::Rnn => "RNN",
        };
        self.graph.nodes.push(OnnxNode {
            name,
            op_type: op_type.to_owned(),
            domain: if layer.integers.is_some() { MICROSOFT.to_owned() } else { String::new() },
            inputs,
            outputs: outputs.clone(),
            attributes: attributes(op, hidden),
        });
        let mut names = Vec::new();
        for (v, raw) in results.into_iter().zip(outputs) {
            names.push(match has_directions(g, v) {
                true => raw,
                false => {
                    let axes = self.integers(&[directions(v) as i64])?;
                    self.emit("Squeeze", "state", &[&raw, &axes], vec![])
                }
            });
        }
        Ok(names)
    }

    /// Integers as those of one direction, `[1, terms, columns]`.
    fn elements_of(&mut self, matrix: &Integers, part: &str) -> Result<String, OnnxError> {
        let t = &matrix.elements;
        self.numbers(t.reshaped(&[1, t.shape()[0], t.shape()[1]]), part)
    }

    /// Scales and zero points of a matrix: `[1]`, or `[1, columns]`.
    fn steps_of(&mut self, matrix: &Integers, part: &str) -> Result<[String; 2], OnnxError> {
        let count = matrix.scales.len();
        let shape = if count == 1 { vec![1] } else { vec![1, count] };
        Ok([
            self.numbers(matrix.scales.reshaped(&shape), &format!("{part}_scale"))?,
            self.numbers(matrix.zeros.reshaped(&shape), &format!("{part}_zero_point"))?,
        ])
    }

    /// A matrix `[terms, columns]` as weights of one direction, `[1, columns, terms]`.
    fn weights(&mut self, v: Value, part: &str) -> Result<String, OnnxError> {
        let g = self.g;
        if let Some(t) = plain(g, v) {
            let transposed = margay_ir::ops::Transpose { perm: vec![1, 0] };
            let turned = Op::from(transposed).eval(&[t]).ok().and_then(|mut all| all.pop());
            let raised = turned.and_then(|t| t.reshaped(&[1, t.shape()[0], t.shape()[1]]).ok());
            if let Some(t) = raised {
                let wish = super::label(&g.node(v.node).origin, part);
                return Ok(self.initializer(&Payload::new(t), &wish));
            }
        }
        let (name, axes) = (self.results[&v].clone(), self.integers(&[0])?);
        let raised = self.emit("Unsqueeze", part, &[&name, &axes], vec![]);
        // Last, as readers begin with a transpose.
        let perm = Attribute::Ints(vec![0, 2, 1]);
        Ok(self.emit("Transpose", part, &[&raised], vec![("perm", perm)]))
    }

    /// Numbers along one axis as those of one direction, `[1, count]`.
    fn row(&mut self, v: Value, count: usize, part: &str) -> Result<String, OnnxError> {
        let g = self.g;
        if let Some(t) = plain(g, v) {
            let wish = super::label(&g.node(v.node).origin, part);
            let t = t.reshaped(&[1, count]).map_err(|e| self.refusal(e.to_string()))?;
            return Ok(self.initializer(&Payload::new(t), &wish));
        }
        let name = self.results[&v].clone();
        let shape = [Dim::from(1usize), Dim::from(count)];
        self.reshape(part, &name, &g.ty(v).shape, &shape)
    }

    /// The biases of inputs and state, one behind the other; no name where there are none.
    fn biases(&mut self, given: [Option<Value>; 2], width: usize, dtype: DType) -> Result<String, OnnxError> {
        let g = self.g;
        if given == [None, None] {
            return Ok(String::new());
        }
        let zeros = Tensor::zeros(dtype, &[width]).map_err(|e| self.refusal(e.to_string()))?;
        let known: Option<Vec<&Tensor>> =
            given.iter().map(|v| v.map_or(Some(&zeros), |v| plain(g, v))).collect();
        if let Some(parts) = known {
            let bytes: Vec<u8> = parts.iter().flat_map(|t| t.bytes()).copied().collect();
            return self.numbers(Tensor::from_bytes(dtype, &[1, 2 * width], &bytes), "B");
        }
        let mut names = Vec::new();
        for v in given {
            names.push(match v {
                Some(v) => self.row(v, width, "B")?,
                None => {
                    let row = zeros.reshaped(&[1, width]);
                    self.numbers(row, "B")?
                }
            });
        }
        Ok(self.emit("Concat", "B", &[&names[0], &names[1]], axis(1)))
    }

    fn numbers<E: ToString>(&mut self, tensor: Result<Tensor, E>, wish: &str) -> Result<String, OnnxError> {
        let tensor = tensor.map_err(|e| self.refusal(e.to_string()))?;
        let wish = format!("{}/{wish}", self.base);
        Ok(self.initializer(&Payload::new(tensor), &wish))
    }
}

fn attributes(op: &Recurrence, hidden: usize) -> BTreeMap<String, Attribute> {
    let mut all = vec![("hidden_size", Attribute::Int(hidden as i64))];
    if op.reverse {
        all.push(("direction", Attribute::String("reverse".to_owned())));
    }
    match op.cell {
        Cell::CoupledLstm => all.push(("input_forget", Attribute::Int(1))),
        Cell::GruResetAfter => all.push(("linear_before_reset", Attribute::Int(1))),
        Cell::Lstm | Cell::Gru | Cell::Rnn => {}
    }
    if op.clip.get().is_finite() {
        all.push(("clip", Attribute::Float(op.clip.get() as f32)));
    }
    if op.activations != op.cell.default_activations() {
        let names = op.activations.iter().map(|a| a.name().to_owned()).collect();
        all.push(("activations", Attribute::Strings(names)));
        let parameters = |which: usize| -> Vec<f32> {
            op.activations
                .iter()
                .filter_map(|a: &Activation| a.parameters()[which])
                .map(|p| p as f32)
                .collect()
        };
        for (name, list) in [("activation_alpha", parameters(0)), ("activation_beta", parameters(1))] {
            if !list.is_empty() {
                all.push((name, Attribute::Floats(list)));
            }
        }
    }
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
