//! Several nodes of a graph that are one operator of ONNX, for which other tools have a kernel.
//!
//! Each is found from its last node. The nodes before it are written only if others read them.

use margay_ir::ops::ImageLayout;
use margay_ir::{Graph, NodeId, Op, Payload, Value};
use margay_tensor::{Dim, Tensor};

use super::Exporter;
use crate::{Attribute, OnnxError};

/// An operator of ONNX that stands for a node and some before it.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Joined {
    /// x, and a multiple of x below 0.
    LeakyRelu { x: Value, slope: f32 },
    /// α x + β between 0 and 1.
    HardSigmoid { x: Value, alpha: f32, beta: f32 },
    /// Every element of an image repeated along its spatial axes, then under other extents where they are given.
    Upsample { x: Value, times: Vec<usize>, under: Option<[Vec<Dim>; 2]> },
    /// Blocks of channels moved into blocks of pixels of so many rows and columns.
    DepthToSpace { x: Value, block: usize, channels_first: bool },
    /// Every pixel of an image spread over a block by a kernel `[channels, channels of the result, rows, columns]`.
    ConvTranspose { x: Value, kernel: Box<Payload>, block: usize },
    /// An axis continued by elements of its own, as this mode of padding says.
    Pad { mode: &'static str, x: Value, axis: usize, before: usize, after: usize },
}

impl Joined {
    /// What a node is the last one of.
    pub(super) fn find(g: &Graph, n: NodeId) -> Option<Joined> {
        leaky_relu(g, n)
            .or_else(|| hard_sigmoid(g, n))
            .or_else(|| upsample(g, n))
            .or_else(|| depth_to_space(g, n))
            .or_else(|| padded(g, n))
    }

    /// The value it is computed from.
    pub(super) fn operand(&self) -> Value {
        match self {
            Joined::LeakyRelu { x, .. }
            | Joined::HardSigmoid { x, .. }
            | Joined::Upsample { x, .. }
            | Joined::DepthToSpace { x, .. }
            | Joined::ConvTranspose { x, .. }
            | Joined::Pad { x, .. } => *x,
        }
    }
}

/// The operator of a node and its operands.
fn parts(g: &Graph, v: Value) -> (&Op, Vec<Value>) {
    (g.op(v.node), g.inputs_of(v.node).to_vec())
}

/// A constant f32 of one element.
fn number(g: &Graph, v: Value) -> Option<f32> {
    let payload = g.constant(v).filter(|p| p.stored().is_plain() && p.tensor().len() == 1)?;
    payload.tensor().as_slice::<f32>().ok().map(|x| x[0])
}

fn leaky_relu(g: &Graph, n: NodeId) -> Option<Joined> {
    let (Op::Select(_), chosen) = parts(g, n.into()) else { return None };
    let [below, scaled, x] = chosen[..] else { return None };
    let ((Op::Less(_), compared), (Op::Mul(_), factors)) = (parts(g, below), parts(g, scaled)) else {
        return None;
    };
    let slope = match factors[..] {
        [a, b] if a == x => number(g, b)?,
        [a, b] if b == x => number(g, a)?,
        _ => return None,
    };
    let of_sign = compared[0] == x && number(g, compared[1]) == Some(0.0);
    (of_sign && g.ty(x) == g.ty(n.into())).then_some(Joined::LeakyRelu { x, slope })
}

/// The operand of an operator beside a constant f32 of one element, and that.
fn beside(g: &Graph, v: Value, kind: fn(&Op) -> bool) -> Option<(Value, f32)> {
    let (op, operands) = parts(g, v);
    let [a, b] = operands[..] else { return None };
    if !kind(op) {
        return None;
    }
    number(g, b).map(|x| (a, x)).or_else(|| number(g, a).map(|x| (b, x)))
}

fn hard_sigmoid(g: &Graph, n: NodeId) -> Option<Joined> {
    let (capped, low) = beside(g, n.into(), |op| matches!(op, Op::Max(_)))?;
    let (line, high) = beside(g, capped, |op| matches!(op, Op::Min(_)))?;
    let (scaled, beta) = beside(g, line, |op| matches!(op, Op::Add(_)))?;
    let (x, alpha) = beside(g, scaled, |op| matches!(op, Op::Mul(_))).unwrap_or((scaled, 1.0));
    let right = (low, high) == (0.0, 1.0) && g.ty(x) == g.ty(n.into());
    right.then_some(Joined::HardSigmoid { x, alpha, beta })
}

/// The product of extents.
fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1usize), |n, d| &n * d)
}

/// Reshapes and broadcasts of single axes, back from a node: each broadcast repeats runs of so many elements so often.
fn upsample(g: &Graph, n: NodeId) -> Option<Joined> {
    let Op::Reshape(_) = g.op(n) else { return None };
    let (mut v, mut repeats) = (Value::from(n), Vec::new());
    loop {
        match parts(g, v) {
            (Op::Reshape(_), x) => v = x[0],
            (Op::Broadcast(_), x) => {
                let (from, to) = (&g.ty(x[0]).shape, &g.ty(v).shape);
                if from.len() != to.len() {
                    break;
                }
                let changed: Vec<usize> = (0..to.len()).filter(|i| from[*i] != to[*i]).collect();
                let [axis] = changed[..] else { break };
                let times = to[axis].as_extent().filter(|_| from[axis].is(1))?;
                repeats.push((times, product(&to[axis + 1..])));
                v = x[0];
            }
            _ => break,
        }
    }
    let (from, to) = (&g.ty(v).shape, &g.ty(n.into()).shape);
    if repeats.is_empty()
        || from.len() != to.len()
        || !(3..=5).contains(&to.len())
        || !g.ty(v).dtype.is_float()
    {
        return None;
    }
    // From the first broadcast on: the run of an axis is what lies behind it, as far as that has been repeated.
    let mut times = vec![1; to.len()];
    for (count, run) in repeats.into_iter().rev() {
        let behind = |axis: usize| {
            let rest = from[axis + 1..].iter().zip(&times[axis + 1..]);
            rest.fold(Dim::from(1usize), |n, (d, t)| &(&n * d) * &Dim::from(*t))
        };
        let axis = (2..to.len()).find(|axis| times[*axis] == 1 && behind(*axis) == run)?;
        times[axis] = count;
    }
    let reached: Vec<Dim> = from.iter().zip(&times).map(|(d, t)| d * &Dim::from(*t)).collect();
    let under = (reached != **to).then(|| [reached, to.to_vec()]);
    Some(Joined::Upsample { x: v, times, under })
}

fn depth_to_space(g: &Graph, n: NodeId) -> Option<Joined> {
    let (Op::Reshape(_), last) = parts(g, n.into()) else { return None };
    let (Op::Transpose(order), moved) = parts(g, last[0]) else { return None };
    let (Op::Reshape(_), split) = parts(g, moved[0]) else { return None };
    let (x, blocks, result) = (split[0], &g.ty(moved[0]).shape, &g.ty(n.into()).shape);
    let image = &g.ty(x).shape;
    let (channels_first, [rows, columns, channels]) = match order.perm[..] {
        [0, 1, 4, 2, 5, 3] => (true, [2, 3, 1]),
        [0, 3, 4, 1, 5, 2] => (false, [1, 2, 3]),
        _ => return None,
    };
    if image.len() != 4 || result.len() != 4 || blocks[rows] != blocks[columns] {
        return None;
    }
    let block = blocks[rows].as_extent().filter(|b| *b > 1)?;
    let size = Dim::from(block);
    let whole = [&blocks[0], &blocks[4], &blocks[5]] == [&image[0], &image[2], &image[3]];
    let expected = [blocks[0].clone(), blocks[channels].clone(), &image[2] * &size, &image[3] * &size];
    if !whole || **result != expected {
        return None;
    }
    let spread = (g.sole_user(x) == Some(moved[0].node)).then(|| spread_kernel(g, x, block, channels_first));
    Some(match spread.flatten() {
        Some((x, kernel)) => Joined::ConvTranspose { x, kernel: Box::new(kernel), block },
        None => Joined::DepthToSpace { x, block, channels_first },
    })
}

/// The image and the kernel of a convolution of single pixels whose channels become blocks of pixels.
fn spread_kernel(g: &Graph, v: Value, block: usize, channels_first: bool) -> Option<(Value, Payload)> {
    let (Op::Conv(op), operands) = parts(g, v) else { return None };
    let [x, kernel] = operands[..] else { return None };
    let plain = op.groups == 1
        && op.layout == ImageLayout::Nchw
        && op.strides.iter().all(|s| *s == 1)
        && op.pads_before.iter().chain(&op.pads_after).all(|p| *p == 0);
    let kernel = g.constant(kernel).filter(|p| plain && p.stored().is_plain())?.tensor();
    let &[filters, channels, 1, 1] = kernel.shape() else { return None };
    let numbers = kernel.as_slice::<f32>().ok()?;
    let (taps, results) = (block * block, filters / (block * block));
    let mut spread = Vec::with_capacity(numbers.len());
    for c in 0..channels {
        for o in 0..results {
            for tap in 0..taps {
                let filter = if channels_first { o * taps + tap } else { tap * results + o };
                spread.push(numbers[filter * channels + c]);
            }
        }
    }
    let spread = Tensor::from_slice(&[channels, results, block, block], &spread).ok()?;
    Some((x, Payload::new(spread)))
}

/// The place of the element that stands so far behind the first one, by the last place.
type Continued = fn(i64, i64) -> i64;

fn padded(g: &Graph, n: NodeId) -> Option<Joined> {
    let (Op::Gather(op), operands) = parts(g, n.into()) else { return None };
    let [x, places] = operands[..] else { return None };
    let extent = g.ty(x).shape[op.axis].as_extent().filter(|e| *e > 0)?;
    let payload = g.constant(places).filter(|p| p.tensor().shape().len() == 1)?;
    let places = payload.tensor().as_slice::<i64>().ok()?;
    let added = places.len().checked_sub(extent).filter(|added| *added > 0)?;
    let last = extent as i64 - 1;
    let modes: [(&str, Continued); 2] = [
        ("edge", |at, last| at.clamp(0, last)),
        ("reflect", |at, last| if at > last { 2 * last - at } else { at.abs() }),
    ];
    let all = |before: usize, place: Continued| {
        places.iter().enumerate().all(|(at, found)| *found == place(at as i64 - before as i64, last))
    };
    let zeros = places.iter().take_while(|p| **p == 0).count();
    let first = places.iter().position(|p| *p == 0)?;
    let before = [zeros.saturating_sub(1), first];
    let mut found = modes.into_iter().zip(before);
    let ((mode, _), before) = found.find(|((mode, place), before)| {
        // A reflection goes no further than to the other end.
        let most = if *mode == "reflect" { extent - 1 } else { usize::MAX };
        *before <= added && *before <= most && added - before <= most && all(*before, *place)
    })?;
    Some(Joined::Pad { mode, x, axis: op.axis, before, after: added - before })
}

impl Exporter<'_> {
    /// Adds the operator and returns the name of its result.
    pub(super) fn joined(&mut self, found: &Joined) -> Result<String, OnnxError> {
        let g = self.g;
        let x = self.results[&found.operand()].clone();
        let text = |s: &str| Attribute::String(s.to_owned());
        Ok(match found {
            Joined::LeakyRelu { slope, .. } => {
                self.emit("LeakyRelu", "", &[&x], vec![("alpha", Attribute::Float(*slope))])
            }
            Joined::HardSigmoid { alpha, beta, .. } => {
                let attributes = vec![("alpha", Attribute::Float(*alpha)), ("beta", Attribute::Float(*beta))];
                self.emit("HardSigmoid", "", &[&x], attributes)
            }
            Joined::Upsample { times, under, .. } => {
                let scales: Vec<f32> = times.iter().map(|t| *t as f32).collect();
                let scales = Tensor::from_slice(&[scales.len()], &scales);
                let scales = scales.map_err(|e| self.refusal(e.to_string()))?;
                let scales = self.initializer(&Payload::new(scales), "scales");
                let attributes = vec![
                    ("mode", text("nearest")),
                    ("nearest_mode", text("floor")),
                    ("coordinate_transformation_mode", text("asymmetric")),
                ];
                let image = self.emit("Resize", "", &[&x, "", &scales], attributes);
                match under {
                    None => image,
                    Some([from, to]) => self.reshape("extents", &image, from, to)?,
                }
            }
            Joined::DepthToSpace { block, channels_first, .. } => {
                let mode = if *channels_first { "CRD" } else { "DCR" };
                let attributes = vec![("blocksize", Attribute::Int(*block as i64)), ("mode", text(mode))];
                self.emit("DepthToSpace", "", &[&x], attributes)
            }
            Joined::ConvTranspose { kernel, block, .. } => {
                let wish = format!("{}/kernel", self.base);
                let kernel = self.initializer(kernel, &wish);
                let size = || Attribute::Ints(vec![*block as i64; 2]);
                let attributes = vec![("kernel_shape", size()), ("strides", size())];
                self.emit("ConvTranspose", "", &[&x, &kernel], attributes)
            }
            Joined::Pad { mode, x: of, axis, before, after } => {
                let ndim = g.ty(*of).ndim();
                let mut pads = vec![0; 2 * ndim];
                (pads[*axis], pads[ndim + axis]) = (*before as i64, *after as i64);
                let pads = self.integers(&pads)?;
                self.emit("Pad", "", &[&x, &pads], vec![("mode", text(mode))])
            }
        })
    }
}
