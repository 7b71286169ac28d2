//! Layers drawn at random with all that may stand around them: every pass keeps their numbers, and compiled code agrees
//! with the reference on every class of the processor.
//!
//! Operators meet in orders, with readers and with shapes that no single test thinks of: what is fused, copied, kept or
//! seen through is decided by neighbours. Layers with everything an epilogue can take are drawn as often as single
//! operators. Nothing is drawn whose result jumps where an operand is rounded.

use margay_driver::{Dump, Model, backend, build::jit};
use margay_ir::ops::{Const, Numbers};
use margay_ir::{Cx, Fidelity, Graph, Op, Origin, Pass, Payload, TensorType, Value, eval};
use margay_passes::{AssignLayout, PASSES, PassEntry, read_pass};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::random::Philox;
use margay_tensor::{Binding, DType, Tensor};

const SEED: u64 = 41;
/// Values with more elements are not made.
const MOST_ELEMENTS: usize = 6000;

/// A graph in the making.
struct Draw {
    stream: Philox,
    next: u64,
    g: Graph,
    values: Vec<Value>,
}

impl Draw {
    fn new(stream: u64) -> Draw {
        let mut draw = Draw {
            stream: Philox::new(SEED, stream),
            next: 0,
            g: Graph::new(&format!("random{stream}")),
            values: Vec::new(),
        };
        let images = draw.below(3) == 0;
        let shapes: &[&[usize]] = match images {
            true => &[&[2, 3, 5, 5], &[2, 3, 5, 5], &[3, 1, 1], &[5]],
            false => &[&[2, 3, 4], &[4, 4], &[3, 1], &[4], &[1]],
        };
        for (i, shape) in shapes.iter().enumerate() {
            let v = draw.g.add_input(&format!("x{i}"), TensorType::known(DType::F32, shape));
            draw.values.push(v);
        }
        draw
    }

    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        self.stream.block(self.next)[0] as usize % n
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// One of the values so far, late ones more often.
    fn value(&mut self) -> Value {
        let n = self.values.len();
        let at = self.below(n).max(self.below(n));
        self.values[at]
    }

    fn shape(&self, v: Value) -> Vec<usize> {
        self.g.ty(v).extents().expect("extents are known")
    }

    /// Adds an operator by its text; `None` if the operands do not fit or the result is too large.
    fn op(&mut self, name: &str, attributes: &[(&str, String)], operands: &[Value]) -> Option<Value> {
        let attributes: Vec<(&str, &str)> = attributes.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let op =
            Op::parse(name, &attributes).expect("a known operator").unwrap_or_else(|e| panic!("{name}: {e}"));
        let types: Vec<&TensorType> = operands.iter().map(|v| self.g.ty(*v)).collect();
        let types = op.infer(&types).ok()?;
        let small =
            types.iter().all(|t| (1..=MOST_ELEMENTS).contains(&t.extents().unwrap().iter().product()));
        let name = format!("n{}", self.values.len());
        let v = small.then(|| self.g.add(op, operands, Origin::named(&name)).unwrap())?;
        if self.g.ty(v).dtype == DType::F32 {
            self.values.push(v);
        }
        Some(v)
    }

    fn constant(&mut self, shape: &[usize]) -> Value {
        self.next += 1;
        let scale = 1.0 / (shape.first().copied().unwrap_or(1) as f32).sqrt();
        let mut data = vec![0f32; shape.iter().product()];
        Philox::new(self.next, 1).fill_normal_f32(0, &mut data);
        data.iter_mut().for_each(|x| *x *= scale);
        self.leaf(Tensor::from_slice(shape, &data).unwrap())
    }

    fn leaf(&mut self, tensor: Tensor) -> Value {
        let name = format!("c{}", self.next);
        self.g.add(Const { payload: Payload::new(tensor) }, &[], Origin::named(&name)).unwrap()
    }

    /// A product or a convolution, and what an epilogue may take, in any order; now and then somebody else reads what
    /// lies between.
    fn layer(&mut self) -> Option<Value> {
        let x = self.value();
        let shape = self.shape(x);
        let n = 1 + self.below(9);
        let image = shape.len() == 4;
        let mut y = if image {
            let (groups, kernel) = (self.pick(&[1, 1, shape[1]]), [1 + self.below(3), 1 + self.below(3)]);
            let k = self.constant(&[groups * n, shape[1] / groups, kernel[0], kernel[1]]);
            let mut pads = || format!("[{}, {}]", self.below(3), self.below(2));
            let pads = [pads(), pads()];
            let strides = format!("[{}, {}]", 1 + self.below(2), 1 + self.below(2));
            let attributes = [
                ("pads_before", pads[0].clone()),
                ("pads_after", pads[1].clone()),
                ("strides", strides),
                ("groups", groups.to_string()),
            ];
            self.op("conv", &attributes, &[x, k])?
        } else {
            let w = self.constant(&[*shape.last().filter(|_| shape.len() > 1)?, n]);
            self.op("matmul", &[], &[x, w])?
        };
        for _ in 0..self.below(4) {
            let out = self.shape(y);
            y = match self.below(5) {
                0 | 1 => {
                    let channels = if image { vec![out[1], 1, 1] } else { vec![*out.last()?] };
                    let bias = self.constant(&channels);
                    let operands = if self.below(2) == 0 { [y, bias] } else { [bias, y] };
                    self.op("add", &[], &operands)?
                }
                2 => self.activation(y)?,
                _ => {
                    let others: Vec<Value> =
                        self.values.iter().copied().filter(|v| *v != y && self.shape(*v) == out).collect();
                    let other = if others.is_empty() { self.constant(&out) } else { self.pick(&others) };
                    self.op(self.pick_binary(), &[], &[y, other])?
                }
            };
        }
        Some(y)
    }

    fn pick_binary(&self) -> &'static str {
        ["add", "add", "sub", "mul"][(self.next % 4) as usize]
    }

    fn activation(&mut self, x: Value) -> Option<Value> {
        let name =
            self.pick(&["relu", "gelu", "silu", "tanh", "sigmoid", "erf", "neg", "abs", "softplus", "cos"]);
        let tanh = [("tanh", "true".to_string())];
        let approximate = name == "gelu" && self.below(2) == 0;
        self.op(name, if approximate { &tanh } else { &[] }, &[x])
    }

    /// One operator that changes shapes or joins elements.
    fn other(&mut self) -> Option<Value> {
        let x = self.value();
        let shape = self.shape(x);
        let axis = if shape.is_empty() { 0 } else { self.below(shape.len()) };
        let list = |v: &[usize]| format!("{v:?}");
        match self.below(12) {
            0 => {
                let mut perm: Vec<usize> = (0..shape.len()).collect();
                for i in (1..perm.len()).rev() {
                    let j = self.below(i + 1);
                    perm.swap(i, j);
                }
                self.op("transpose", &[("perm", list(&perm))], &[x])
            }
            1 => {
                // Two neighbours become one axis, or one axis becomes two.
                let mut to = shape.clone();
                if axis + 1 < to.len() && self.below(2) == 0 {
                    let d = to.remove(axis + 1);
                    to[axis] *= d;
                } else if let Some(d) = to.get(axis).copied().filter(|d| d % 2 == 0) {
                    to[axis] = d / 2;
                    to.insert(axis + self.next as usize % 2, 2);
                } else {
                    to.insert(axis, 1);
                }
                self.op("reshape", &[("shape", list(&to))], &[x])
            }
            2 => {
                let mut starts = vec![0i64; shape.len()];
                let mut ends: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
                let mut steps = vec![1i64; shape.len()];
                let extent = *ends.get(axis)?;
                match self.below(3) {
                    0 => (starts[axis], ends[axis], steps[axis]) = (extent - 1, -1, -1),
                    1 => steps[axis] = 2,
                    _ => starts[axis] = self.below(extent as usize) as i64,
                }
                let lists = [("starts", starts), ("ends", ends), ("steps", steps)];
                self.op("slice", &lists.map(|(n, v)| (n, format!("{v:?}"))), &[x])
            }
            3 => {
                let (mut before, mut after) = (vec![0usize; shape.len()], vec![0; shape.len()]);
                (*before.get_mut(axis)?, after[axis]) = (self.below(2), self.below(3));
                let value = ("value", self.pick(&["0.0", "0.5"]).to_string());
                self.op("pad", &[("before", list(&before)), ("after", list(&after)), value], &[x])
            }
            4 => {
                let y = self.value();
                self.op("concat", &[("axis", axis.to_string())], &[x, y])
            }
            5 | 6 => {
                let kind = self.pick(&["sum", "mean", "max", "min"]).to_string();
                let axes: Vec<usize> =
                    (0..shape.len()).filter(|a| *a == axis || self.below(3) == 0).collect();
                let keepdims = (self.below(2) == 0).to_string();
                self.op("reduce", &[("kind", kind), ("axes", list(&axes)), ("keepdims", keepdims)], &[x])
            }
            7 => self.op("softmax", &[("axis", axis.to_string())], &[x]),
            8 => {
                let inner = shape.get(axis..).filter(|s| !s.is_empty())?.to_vec();
                let (scale, bias) = (self.constant(&inner), self.constant(&inner));
                let epsilon = self.pick(&["0.1", "0.5"]).to_string();
                self.op("layer_norm", &[("axis", axis.to_string()), ("epsilon", epsilon)], &[x, scale, bias])
            }
            9 => {
                let extent = *shape.get(axis)?;
                let indices: Vec<i128> =
                    (0..3).map(|_| self.below(2 * extent) as i128 - extent as i128).collect();
                let indices = Numbers::Int(indices).into_tensor(DType::I64, &[3]).unwrap();
                let indices = self.leaf(indices);
                self.op("gather", &[("axis", axis.to_string())], &[x, indices])
            }
            10 => {
                let times = 2 + self.below(2);
                let to = [&[times], &shape[..]].concat();
                self.op("broadcast", &[("shape", list(&to))], &[x])
            }
            _ => {
                let kind = self.pick(&["max", "average"]).to_string();
                let attributes = [
                    ("kind", kind),
                    ("kernel", list(&[2, 1 + self.below(2)])),
                    ("pads_after", list(&[self.below(2), 0])),
                ];
                (shape.len() == 4).then(|| self.op("pool", &attributes, &[x]))?
            }
        }
    }

    /// An elementwise operator of several operands.
    fn elementwise(&mut self) -> Option<Value> {
        let (x, y) = (self.value(), self.value());
        if self.below(5) == 0 {
            // Inputs are compared: they are the same bits everywhere.
            let inputs: Vec<Value> = self.g.inputs().iter().map(|n| Value::from(*n)).collect();
            let (a, b) = (self.pick(&inputs), self.pick(&inputs));
            let test = self.op(self.pick_test(), &[], &[a, b])?;
            return self.op("select", &[], &[test, x, y]);
        }
        let name = self.pick(&["add", "sub", "mul", "max", "min"]);
        self.op(name, &[], &[x, y])
    }

    fn pick_test(&self) -> &'static str {
        ["less", "less_or_equal", "equal"][(self.next % 3) as usize]
    }

    /// The graph after so many draws that fit.
    fn graph(mut self, draws: usize) -> Graph {
        let mut made = 0;
        for _ in 0..20 * draws {
            let found = match self.below(5) {
                0 | 1 => self.layer(),
                2 => self.other(),
                3 => self.elementwise(),
                _ => {
                    let x = self.value();
                    self.activation(x)
                }
            };
            made += usize::from(found.is_some());
            if made == draws {
                break;
            }
        }
        let read = |g: &Graph, v: Value| !g.users_of(v).is_empty();
        for (i, v) in self.values.clone().into_iter().enumerate() {
            let input = matches!(self.g.op(v.node), Op::Input(_));
            if !input && (!read(&self.g, v) || self.below(12) == 0) {
                self.g.add_output(&format!("y{i}"), v);
            }
        }
        self.g.remove_dead();
        self.g
    }
}

fn inputs(g: &Graph) -> Vec<(String, Tensor)> {
    let tensor = |(i, n): (usize, &margay_ir::NodeId)| {
        let shape = g.ty((*n).into()).extents().unwrap();
        (g.node(*n).origin.name().to_string(), margay_testkit::normal(&shape, 3, i as u64))
    };
    g.inputs().iter().enumerate().map(tensor).collect()
}

fn by_name(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(n, t)| (n.as_str(), t)).collect()
}

/// Compares up to the rounding of the largest number.
fn check(what: &str, g: &Graph, found: &[Tensor], expected: &[Tensor]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(TensorType::of(found), TensorType::of(expected), "{what}: output {i} of\n{g}");
        let floats = |t: &Tensor| Numbers::of(t).unwrap().floats();
        let largest = floats(expected).into_iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        for (at, (x, y)) in floats(found).into_iter().zip(floats(expected)).enumerate() {
            let near = (x - y).abs() <= 2e-4 * largest || x == y;
            assert!(near, "{what}: element {at} of output {i} is {x}, expected {y}\n{g}");
        }
    }
}

/// Random graphs whose numbers are finite, with these.
fn drawn(first: u64, count: usize) -> impl Iterator<Item = (Graph, Vec<(String, Tensor)>, Vec<Tensor>)> {
    let graph = |stream: u64| {
        let g = Draw::new(stream).graph(3 + stream as usize % 12);
        let inputs = inputs(&g);
        let expected = eval::run(&g, &by_name(&inputs)).unwrap_or_else(|e| panic!("{e}\n{g}"));
        let floats = |t: &Tensor| Numbers::of(t).unwrap().floats();
        let tame = expected.iter().flat_map(floats).all(|x| x.abs() < 1e4);
        (tame && !expected.is_empty()).then_some((g, inputs, expected))
    };
    (first..).filter_map(graph).take(count)
}

#[test]
fn compiled_graphs_agree_with_the_reference() {
    let backends: Vec<_> = backend::supported().into_iter().collect();
    for (i, (g, inputs, expected)) in drawn(0, 240).enumerate() {
        let backend = &*backends[i % backends.len()];
        let session = |g: &Graph, what: &str| {
            let executable = jit(g, &Binding::new(), backend).unwrap_or_else(|e| panic!("{what}: {e}\n{g}"));
            let mut session = Session::new(&executable, SessionOptions { threads: 1 + i % 2 }).unwrap();
            let found = session.run(&by_name(&inputs)).unwrap();
            let found: Vec<Tensor> = found.into_iter().map(|(_, t)| t).collect();
            check(&format!("{what} on {}", backend.target()), g, &found, &expected);
        };
        session(&g, "as drawn");
        let source = Model::new(g, "random", &mut Dump::none()).unwrap();
        session(&source.graph, "after all passes");
    }
}

/// The passes that need no configuration.
fn passes() -> Vec<Box<dyn Pass>> {
    let bare = |entry: &PassEntry| read_pass(entry.name, &|file| Err(format!("there is no `{file}`"))).ok();
    let found: Vec<Box<dyn Pass>> = PASSES.iter().filter_map(bare).collect();
    assert!(found.len() >= 11, "a pass asks for a configuration that it could do without");
    found
}

#[test]
fn passes_keep_the_numbers_of_random_graphs() {
    for (g, inputs, expected) in drawn(10_000, 400) {
        for pass in passes() {
            let (mut after, name) = (g.clone(), pass.name());
            pass.run(&mut after, &mut Cx::default()).unwrap_or_else(|e| panic!("{name}: {e}\n{g}"));
            assert_eq!(after.verify(margay_ir::Stage::Imported), Ok(()), "{name}\n{g}");
            let found = eval::run(&after, &by_name(&inputs)).unwrap();
            match pass.fidelity() {
                Fidelity::Exact => assert!(found == expected, "{name} is said to be exact\n{g}"),
                Fidelity::Rounding | Fidelity::Approximate => check(name, &g, &found, &expected),
            }
        }
        // What one pass leaves is what the next one gets.
        let source = Model::new(g.clone(), "random", &mut Dump::none()).unwrap();
        let mut after = source.graph;
        margay_ir::Pass::run(&AssignLayout, &mut after, &mut Cx::default()).unwrap();
        check("all passes", &g, &eval::run(&after, &by_name(&inputs)).unwrap(), &expected);
    }
}
