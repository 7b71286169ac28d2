//! Operators on quantized numbers, found again in the formulas that they are imported as.
//!
//! Quantization by the range of a value is a scale, a zero point and elements, each found from its last node. A product of
//! integers is found with what zero points add to it.

use margay_ir::ops::{ImageLayout, Numbers, ReduceKind};
use margay_ir::{Graph, NodeId, Op, Payload, Value};
use margay_tensor::{DType, Dim, Scales, Tensor};

use super::Exporter;
use super::operators::conv_attributes;
use crate::{OnnxError, OnnxNode};

/// An operator on quantized numbers that stands for a node and some before it.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Quantized {
    /// The scale that a value has by its range.
    Scale { x: Value },
    /// The zero point of such a scale, or the elements.
    OfScale { scale: Value, elements: bool },
    /// Sums of products of integers less their zero points.
    Product(Product),
    /// A value over a scale, rounded, plus a zero point; or the other way round.
    Linear { x: Value, scale: Payload, zero: Payload, back: bool },
    /// Parts of a constant of bytes with one scale, which are taken before numbers are made of them.
    Rows { table: Value, at: Value, axis: usize },
}

/// Sums of products of integers.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Product {
    /// The node that sums up.
    of: NodeId,
    a: Value,
    a_zero: Option<Value>,
    b: Value,
    /// The constant operand less a position of ones, and the zero points that it stands for.
    trimmed: Option<[Payload; 2]>,
}

/// A matrix of 8-bit integers with the terms first, and what makes numbers of them: one scale and zero point, or one of each for
/// every column.
#[derive(Clone, Debug)]
pub(super) struct Integers {
    /// i8 `[terms, columns]`.
    pub(super) elements: Tensor,
    /// f32, as many as there are zero points.
    pub(super) scales: Tensor,
    /// i8.
    pub(super) zeros: Tensor,
}

impl Integers {
    fn new(elements: Tensor, scales: &[f32], zeros: &[i8]) -> Option<Integers> {
        let count = scales.len().max(zeros.len());
        let scales: Vec<f32> = scales.iter().copied().cycle().take(count).collect();
        let zeros: Vec<i8> = zeros.iter().copied().cycle().take(count).collect();
        let columns = *elements.shape().get(1)?;
        (count == 1 || count == columns).then_some(Integers {
            elements,
            scales: Tensor::from_slice(&[count], &scales).ok()?,
            zeros: Tensor::from_slice(&[count], &zeros).ok()?,
        })
    }

    /// A constant matrix that is stored so.
    pub(super) fn stored(g: &Graph, v: Value) -> Option<Integers> {
        let stored = g.constant(v)?.stored();
        let storage = stored.storage();
        let known = matches!(storage.scales, Scales::Tensor | Scales::Axis(1)) && !storage.is_packed();
        let &[rows, columns] = stored.shape() else { return None };
        let scales = stored.scales().filter(|t| known && t.dtype() == DType::F32)?;
        let zeros = stored.zero_points().map_or(Some(vec![0]), |t| Some(Numbers::of(t).ok()?.ints()))?;
        // The upper half of what is unsigned keeps its bits as i8, the lower is moved down.
        let (flip, down) = match storage.dtype {
            DType::I8 => (0, 0),
            DType::U8 => (0x80, 128),
            _ => return None,
        };
        let bytes: Vec<u8> = stored.elements().bytes().iter().map(|byte| byte ^ flip).collect();
        let zeros: Vec<i8> =
            zeros.into_iter().map(|zero| i8::try_from(zero - down)).collect::<Result<_, _>>().ok()?;
        let elements = Tensor::from_bytes(DType::I8, &[rows, columns], &bytes).ok()?;
        Integers::new(elements, &scales.to_vec::<f32>().ok()?, &zeros)
    }
}

/// A product of numbers that are quantized by their range and a constant matrix of integers: the numbers and the matrix.
pub(super) fn dynamic_product(g: &Graph, v: Value) -> Option<(Value, Integers)> {
    orders(g, v, |op| matches!(op, Op::Mul(_))).into_iter().find_map(|[numbers, factor]| {
        let [sums] = made(g, numbers, |op| matches!(op, Op::Cast(_)))?;
        let product = less_ones(g, sums).or_else(|| shifted(g, sums))?;
        let scale = elements_of(g, product.a)?;
        let x = scale_of(g, scale).filter(|_| product.a_zero.and_then(|v| zero_of(g, v)) == Some(scale))?;
        let scales = match factor == scale {
            true => vec![1.0],
            false => orders(g, factor, |op| matches!(op, Op::Mul(_)))
                .into_iter()
                .find_map(|[own, other]| g.constant(other).filter(|_| own == scale))
                .and_then(|payload| payload.tensor().to_vec::<f32>().ok())?,
        };
        let integers = match &product.trimmed {
            Some([elements, zeros]) => {
                Integers::new(elements.tensor().clone(), &scales, &zeros.tensor().to_vec::<i8>().ok()?)
            }
            None => Integers::new(g.constant(product.b)?.tensor().clone(), &scales, &[0]),
        };
        let right = matches!(g.op(product.of), Op::MatMul(_));
        Some((x, integers.filter(|i| right && i.elements.dtype() == DType::I8)?))
    })
}

impl Quantized {
    /// What a node is the last one of.
    pub(super) fn find(g: &Graph, n: NodeId) -> Option<Quantized> {
        let v = Value::from(n);
        if let Some(x) = scale_of(g, v) {
            return Some(Quantized::Scale { x });
        }
        if let Some(scale) = zero_of(g, v) {
            return Some(Quantized::OfScale { scale, elements: false });
        }
        if let Some(scale) = elements_of(g, v) {
            return Some(Quantized::OfScale { scale, elements: true });
        }
        let product = less_ones(g, v).or_else(|| shifted(g, v)).or_else(|| of_kernel(g, v));
        let product = product.map(Quantized::Product);
        product.or_else(|| quantized(g, v)).or_else(|| dequantized(g, v)).or_else(|| rows(g, v))
    }

    /// The values it is computed from.
    pub(super) fn operands(&self) -> Vec<Value> {
        match self {
            Quantized::Scale { x } => vec![*x],
            Quantized::OfScale { scale, .. } => vec![*scale],
            Quantized::Linear { x, .. } => vec![*x],
            Quantized::Rows { at, .. } => vec![*at],
            Quantized::Product(p) => {
                let b = p.trimmed.is_none().then_some(p.b);
                [Some(p.a), b, p.a_zero].into_iter().flatten().collect()
            }
        }
    }
}

/// The operands of a value that an operator of a kind makes.
fn made<const N: usize>(g: &Graph, v: Value, kind: fn(&Op) -> bool) -> Option<[Value; N]> {
    if !kind(g.op(v.node)) {
        return None;
    }
    g.inputs_of(v.node).as_slice().try_into().ok()
}

/// Whether a value is a constant f32 of one element.
fn is_number(g: &Graph, v: Value, number: f32) -> bool {
    let tensor = g.constant(v).map(Payload::tensor).filter(|t| t.len() == 1);
    tensor.and_then(|t| t.as_slice::<f32>().ok()).is_some_and(|x| x[0] == number)
}

/// The operand beside a number, in either order.
fn beside(g: &Graph, v: Value, kind: fn(&Op) -> bool, number: f32) -> Option<Value> {
    let [x, y] = made(g, v, kind)?;
    match (is_number(g, x, number), is_number(g, y, number)) {
        (_, true) => Some(x),
        (true, false) => Some(y),
        (false, false) => None,
    }
}

/// The two operands of a sum or product in both orders.
fn orders(g: &Graph, v: Value, kind: fn(&Op) -> bool) -> Vec<[Value; 2]> {
    made(g, v, kind).map_or(Vec::new(), |[x, y]| vec![[x, y], [y, x]])
}

/// What is cast to bytes behind a rounding to all that they can be: their type, what is rounded, and what is added after
/// that.
fn bytes_of(g: &Graph, v: Value) -> Option<(DType, Value, Option<Value>)> {
    let (Op::Cast(cast), [x]) = (g.op(v.node), made::<1>(g, v, |op| matches!(op, Op::Cast(_)))?) else {
        return None;
    };
    let (low, high) = match cast.to {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        _ => return None,
    };
    let x = beside(g, x, |op| matches!(op, Op::Max(_)), low)?;
    let x = beside(g, x, |op| matches!(op, Op::Min(_)), high)?;
    let rounded = |x: Value| made::<1>(g, x, |op| matches!(op, Op::Round(_))).map(|[x]| x);
    if let Some(x) = rounded(x) {
        return Some((cast.to, x, None));
    }
    let parts = orders(g, x, |op| matches!(op, Op::Add(_)));
    parts.into_iter().find_map(|[x, zero]| Some((cast.to, rounded(x)?, Some(zero))))
}

/// A constant of one element as one without axes, of a type that holds it.
fn single(g: &Graph, v: Value, dtype: DType) -> Option<Payload> {
    let v = match g.op(v.node) {
        Op::Cast(_) => g.inputs_of(v.node)[0],
        _ => v,
    };
    let tensor = g.constant(v).map(Payload::tensor).filter(|t| t.len() == 1)?;
    let number = Numbers::of(tensor).ok()?.floats()[0];
    let payload = Payload::number(dtype, number);
    let kept = Numbers::of(payload.tensor()).ok()?.floats()[0];
    (kept == number).then_some(payload)
}

/// x over a constant scale, rounded, plus a constant zero point.
fn quantized(g: &Graph, v: Value) -> Option<Quantized> {
    let (dtype, quotient, zero) = bytes_of(g, v)?;
    let [x, scale] = made(g, quotient, |op| matches!(op, Op::Div(_)))?;
    let zero = zero.map_or_else(|| Some(Payload::number(dtype, 0.0)), |zero| single(g, zero, dtype))?;
    let scale = single(g, scale, DType::F32)?;
    let same = g.ty(x).shape == g.ty(v).shape && g.ty(x).dtype == DType::F32;
    same.then_some(Quantized::Linear { x, scale, zero, back: false })
}

/// Bytes less a constant zero point, times a constant scale.
fn dequantized(g: &Graph, v: Value) -> Option<Quantized> {
    let cast = |v: Value, to: DType| match g.op(v.node) {
        Op::Cast(cast) if cast.to == to => g.inputs_of(v.node).first().copied(),
        _ => None,
    };
    orders(g, v, |op| matches!(op, Op::Mul(_))).into_iter().find_map(|[number, scale]| {
        let whole = cast(number, DType::F32)?;
        let (wide, zero) = match made(g, whole, |op| matches!(op, Op::Sub(_))) {
            Some([wide, zero]) => (wide, Some(zero)),
            None => (whole, None),
        };
        let x = cast(wide, DType::I32).unwrap_or(wide);
        let dtype = g.ty(x).dtype;
        let zero = zero.map_or_else(|| Some(Payload::number(dtype, 0.0)), |zero| single(g, zero, dtype))?;
        let scale = single(g, scale, DType::F32)?;
        let right = matches!(dtype, DType::U8 | DType::I8) && g.ty(x).shape == g.ty(v).shape;
        right.then_some(Quantized::Linear { x, scale, zero, back: true })
    })
}

fn rows(g: &Graph, v: Value) -> Option<Quantized> {
    let (Op::Gather(op), operands) = (g.op(v.node), g.inputs_of(v.node)) else { return None };
    let stored = g.constant(operands[0])?.stored();
    let storage = stored.storage();
    let bytes = stored.dtype() == DType::F32 && storage.scales == Scales::Tensor && !storage.is_packed();
    bytes.then_some(Quantized::Rows { table: operands[0], at: operands[1], axis: op.axis })
}

/// The smallest element of a value or 0, or the largest.
fn bound_of(g: &Graph, v: Value, kind: ReduceKind) -> Option<Value> {
    let joins: fn(&Op) -> bool = match kind {
        ReduceKind::Min => |op| matches!(op, Op::Min(_)),
        _ => |op| matches!(op, Op::Max(_)),
    };
    let reduced = beside(g, v, joins, 0.0)?;
    let Op::Reduce(reduce) = g.op(reduced.node) else { return None };
    let x = g.inputs_of(reduced.node)[0];
    let all = reduce.kind == kind && reduce.axes.len() == g.ty(x).ndim();
    (all && g.ty(x).dtype == DType::F32 && g.ty(reduced).ndim() == 0).then_some(x)
}

/// The lower bound and the value that a scale is of.
fn range_of(g: &Graph, v: Value) -> Option<(Value, Value)> {
    let [test, scale, one] = made(g, v, |op| matches!(op, Op::Select(_)))?;
    let [range, levels] = made(g, scale, |op| matches!(op, Op::Div(_)))?;
    let [zero, tested] = made(g, test, |op| matches!(op, Op::Less(_)))?;
    let right = is_number(g, one, 1.0) && is_number(g, levels, 255.0) && is_number(g, zero, 0.0);
    let [high, low] = made(g, range, |op| matches!(op, Op::Sub(_)))?;
    let x = bound_of(g, low, ReduceKind::Min)?;
    (right && tested == range && bound_of(g, high, ReduceKind::Max) == Some(x)).then_some((low, x))
}

fn scale_of(g: &Graph, v: Value) -> Option<Value> {
    range_of(g, v).map(|(_, x)| x)
}

fn zero_of(g: &Graph, v: Value) -> Option<Value> {
    let (DType::U8, quotient, None) = bytes_of(g, v)? else { return None };
    let [negative, scale] = made(g, quotient, |op| matches!(op, Op::Div(_)))?;
    let [low] = made(g, negative, |op| matches!(op, Op::Neg(_)))?;
    (range_of(g, scale)?.0 == low).then_some(scale)
}

fn elements_of(g: &Graph, v: Value) -> Option<Value> {
    let (DType::U8, quotient, Some(zero)) = bytes_of(g, v)? else { return None };
    let [x, scale] = made(g, quotient, |op| matches!(op, Op::Div(_)))?;
    let [zero] = made(g, zero, |op| matches!(op, Op::Cast(_)))?;
    (range_of(g, scale)?.1 == x && zero_of(g, zero) == Some(scale)).then_some(scale)
}

/// Sums of products as they stand.
fn sums(g: &Graph, v: Value) -> Option<Product> {
    let operands = g.inputs_of(v.node);
    let integers = g.ty(v).dtype == DType::I32 && operands.iter().all(|x| g.ty(*x).dtype.bytes() == 1);
    let a_zero = match g.op(v.node) {
        Op::MatMul(_) => None,
        Op::Conv(op) if op.layout == ImageLayout::Nchw => operands.get(2).copied(),
        _ => return None,
    };
    integers.then(|| Product { of: v.node, a: operands[0], a_zero, b: operands[1], trimmed: None })
}

/// A convolution with a constant kernel of i8.
fn of_kernel(g: &Graph, v: Value) -> Option<Product> {
    let found = sums(g, v).filter(|p| matches!(g.op(p.of), Op::Conv(_)))?;
    let kernel = g.constant(found.b).filter(|p| p.tensor().dtype() == DType::I8)?.clone();
    Some(Product { trimmed: Some([kernel, Payload::number(DType::I8, 0.0)]), ..found })
}

/// A matrix product whose left zero points are taken off by the sums of the columns of a constant.
fn shifted(g: &Graph, v: Value) -> Option<Product> {
    let found = orders(g, v, |op| matches!(op, Op::Add(_))).into_iter().find_map(|[product, offset]| {
        let found = sums(g, product).filter(|p| matches!(g.op(p.of), Op::MatMul(_)))?;
        let zero =
            orders(g, offset, |op| matches!(op, Op::Mul(_))).into_iter().find_map(|[zero, columns]| {
                let [zero] = made(g, zero, |op| matches!(op, Op::Neg(_)))?;
                let [zero] = made(g, zero, |op| matches!(op, Op::Cast(_)))?;
                let single =
                    g.ty(zero).shape.iter().all(|d| d.is(1)) && g.ty(zero).dtype == g.ty(found.a).dtype;
                (single && are_column_sums(g, columns, found.b)).then_some(zero)
            })?;
        Some(Product { a_zero: Some(zero), ..found })
    })?;
    (g.sole_user(found.of.into()) == Some(v.node)).then_some(found)
}

fn are_column_sums(g: &Graph, columns: Value, of: Value) -> bool {
    let (Some(columns), Some(matrix)) = (g.constant(columns), g.constant(of)) else { return false };
    let (columns, matrix) = (columns.tensor(), matrix.tensor());
    let (&[_, width], Ok(Numbers::Int(columns)), Ok(Numbers::Int(elements))) =
        (matrix.shape(), Numbers::of(columns), Numbers::of(matrix))
    else {
        return false;
    };
    let mut sums = vec![0i128; width];
    for row in elements.chunks_exact(width.max(1)) {
        row.iter().zip(&mut sums).for_each(|(x, sum)| *sum += x);
    }
    sums == columns
}

/// Sums less zero points times the sums of products with ones, which are the last ones along an axis.
fn less_ones(g: &Graph, v: Value) -> Option<Product> {
    let [kept, rest] = made(g, v, |op| matches!(op, Op::Sub(_)))?;
    let (of, zero) =
        orders(g, rest, |op| matches!(op, Op::Mul(_))).into_iter().find_map(|[ones, zero]| {
            let [of] = made(g, ones, |op| matches!(op, Op::Slice(_)))?;
            Some((of, g.constant(zero)?))
        })?;
    let [same] = made(g, kept, |op| matches!(op, Op::Slice(_)))?;
    let found = shifted(g, of).or_else(|| sums(g, of))?;
    let image = matches!(g.op(found.of), Op::Conv(_));
    // Positions of the constant operand and of the result.
    let (own, axis) = if image { (0, 1) } else { (1, g.ty(of).ndim() - 1) };
    let constant = g.constant(found.b)?.tensor();
    let count = constant.shape().get(own)?.checked_sub(1)?;
    let mut expected = g.ty(of).shape.clone();
    expected[axis] = Dim::from(count);
    let mut users: Vec<NodeId> = g.users_of(of).into_iter().map(|(n, _)| n).collect();
    users.dedup();
    let taken = same == of && g.ty(kept).shape == expected && users.len() == 2 && !g.is_output(of);
    let [b, ones] = split_last(constant, own, count)?;
    let ones = Numbers::of(&ones).ok()?.ints().iter().all(|x| *x == 1);
    let zeros = Numbers::of(zero.tensor()).ok()?.ints();
    // A convolution has one zero point for all channels.
    let enough = zeros.len() == 1 || !image && zeros.len() == count;
    let narrow: Vec<i8> = zeros.into_iter().map(i8::try_from).collect::<Result<_, _>>().ok()?;
    let shape: &[usize] = if narrow.len() == 1 { &[] } else { &[count] };
    let zeros = Tensor::from_slice(shape, &narrow).ok()?;
    let right =
        taken && ones && enough && constant.dtype() == DType::I8 && (image || constant.shape().len() == 2);
    right.then(|| Product { trimmed: Some([b, zeros].map(Payload::new)), ..found })
}

/// Integers of i8 as u8, 128 more.
fn unsigned(signed: &Payload) -> Payload {
    let tensor = signed.tensor();
    let bytes: Vec<u8> = tensor.bytes().iter().map(|byte| byte ^ 0x80).collect();
    Payload::new(Tensor::from_bytes(DType::U8, tensor.shape(), &bytes).expect("as many bytes as before"))
}

/// The first positions of an axis and the last one.
fn split_last(t: &Tensor, axis: usize, count: usize) -> Option<[Tensor; 2]> {
    let part = |from: usize, to: usize| {
        let dims = |list: Vec<usize>| list.into_iter().map(Dim::from).collect::<Vec<_>>();
        let (mut starts, mut ends) = (vec![0; t.shape().len()], t.shape().to_vec());
        (starts[axis], ends[axis]) = (from, to);
        let steps = vec![1; t.shape().len()];
        let op = margay_ir::ops::Slice { starts: dims(starts), ends: dims(ends), steps };
        Op::from(op).eval(&[t]).ok()?.pop()
    };
    Some([part(0, count)?, part(count, count + 1)?])
}

impl Exporter<'_> {
    /// Adds the operator, if it is not there yet, and returns the name of its result.
    pub(super) fn quantized(&mut self, found: &Quantized) -> Result<String, OnnxError> {
        let g = self.g;
        match found {
            Quantized::Scale { x } => {
                let x = self.results[x].clone();
                let name = self.node_name("");
                let outputs: Vec<String> = ["", "_scale", "_zero_point"]
                    .map(|part| self.value_names.fresh(&format!("{name}_output{part}")))
                    .into();
                let scale = outputs[1].clone();
                self.graph.nodes.push(OnnxNode {
                    name,
                    op_type: "DynamicQuantizeLinear".to_owned(),
                    domain: String::new(),
                    inputs: vec![x],
                    outputs,
                    attributes: std::collections::BTreeMap::new(),
                });
                Ok(scale)
            }
            Quantized::OfScale { scale, elements } => {
                let (scale, which) = (&self.results[scale], if *elements { 0 } else { 2 });
                let of = |node: &&OnnxNode| {
                    node.op_type == "DynamicQuantizeLinear" && node.outputs.get(1) == Some(scale)
                };
                let node = self.graph.nodes.iter().rev().find(of);
                let name = node.map(|node| node.outputs[which].clone());
                name.ok_or_else(|| self.refusal("its scale is not that of a value".to_owned()))
            }
            Quantized::Linear { x, scale, zero, back } => {
                let x = self.results[x].clone();
                let (scale, zero) = (self.initializer(scale, "scale"), self.initializer(zero, "zero_point"));
                let op_type = if *back { "DequantizeLinear" } else { "QuantizeLinear" };
                Ok(self.emit(op_type, "", &[&x, &scale, &zero], vec![]))
            }
            Quantized::Rows { table, at, axis } => {
                let payload = g.constant(*table).ok_or_else(|| self.refusal("no table".to_owned()))?;
                let wish = super::label(&g.node(table.node).origin, "constant");
                let elements = self.initializer(&Payload::new(payload.stored().elements().clone()), &wish);
                let at = self.results[at].clone();
                let taken = self.emit("Gather", "integers", &[&elements, &at], super::operators::axis(*axis));
                Ok(self.dequantized(taken, "", payload.stored(), &wish))
            }
            Quantized::Product(p) => {
                let (b, b_zero) = match &p.trimmed {
                    Some(parts) => {
                        let wish = super::label(&g.node(p.b.node).origin, "constant");
                        // onnxruntime convolves with kernels of i8 several times as slowly as with those of u8.
                        let unsigned =
                            matches!(g.op(p.of), Op::Conv(_)).then(|| parts.each_ref().map(unsigned));
                        let [b, zero] = unsigned.unwrap_or_else(|| parts.clone());
                        (self.initializer(&b, &wish), self.initializer(&zero, "zero_point"))
                    }
                    None => (self.results[&p.b].clone(), String::new()),
                };
                let (a, a_zero) = (self.results[&p.a].clone(), p.a_zero.map(|v| self.results[&v].clone()));
                let a_zero = a_zero.unwrap_or_default();
                let mut inputs = vec![a.as_str(), &b, &a_zero, &b_zero];
                while inputs.last().is_some_and(|name| name.is_empty()) {
                    inputs.pop();
                }
                match g.op(p.of) {
                    Op::Conv(conv) => {
                        let kernel = g.ty(p.b).shape.clone();
                        Ok(self.emit("ConvInteger", "", &inputs, conv_attributes(conv, &kernel)))
                    }
                    _ => Ok(self.emit("MatMulInteger", "", &inputs, vec![])),
                }
            }
        }
    }
}
