//! Random small graphs, by way of their text: compiled code and the reference back end against the evaluation of the
//! graph. Each graph is named by its seed; what fails is printed as text.

use margay_driver::backend;
use margay_driver::build::jit;
use margay_ir::ops::{
    Abs, Add, Attention, Bits, Broadcast, Concat, Const, Cos, Div, Erf, LayerNorm, MatMul, Max, Min, Mul,
    Neg, Number, Pad, Reduce, ReduceKind, Relu, Reshape, Sigmoid, Silu, Sin, Slice, Softmax, Softplus, Sub,
    Tanh, Transpose,
};
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value, eval};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::random::Philox;
use margay_tensor::{Binding, DType, Dim, Tensor};
use margay_testkit::{Tolerance, assert_close, parse_with_random_constants};

/// Extents of axes. One, two and squares come often: views of them are where layouts are mistaken for each other.
const EXTENTS: [usize; 14] = [1, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 9, 17, 33];

/// The most elements of a value.
const MOST: usize = 6000;

/// Numbers of a random stream, one after the other.
struct Draw {
    philox: Philox,
    next: u64,
}

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        self.philox.block(self.next)[0] as usize % n.max(1)
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    fn extent(&mut self, empty: bool) -> usize {
        if empty && self.chance(12) { 0 } else { self.of(&EXTENTS) }
    }

    fn shape(&mut self, empty: bool) -> Vec<usize> {
        let ndim = self.below(5);
        let mut shape: Vec<usize> = (0..ndim).map(|_| self.extent(empty)).collect();
        // Square ones often.
        if ndim >= 2 && self.chance(3) {
            shape[ndim - 1] = shape[ndim - 2];
        }
        while shape.iter().product::<usize>() > MOST {
            let axis = self.below(ndim);
            shape[axis] = 1;
        }
        shape
    }

    fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut perm: Vec<usize> = (0..n).collect();
        (1..n).for_each(|i| perm.swap(i, self.below(i + 1)));
        perm
    }
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&d| Dim::from(d)).collect()
}

/// A graph being drawn.
struct Drawing {
    g: Graph,
    draw: Draw,
    values: Vec<Value>,
    /// Whether axes may be empty.
    empty: bool,
}

impl Drawing {
    fn shape(&self, v: Value) -> Vec<usize> {
        self.g.ty(v).extents().unwrap()
    }

    /// A new input or constant.
    fn leaf(&mut self, shape: &[usize]) -> Value {
        let ty = TensorType::known(DType::F32, shape);
        if self.draw.chance(2) {
            let name = format!("x{}", self.g.inputs().len());
            self.g.add_input(&name, ty)
        } else {
            let stream = self.draw.below(1 << 30) as u64;
            let payload = Payload::new(margay_testkit::normal(shape, 3, stream));
            self.g.add(Const { payload }, &[], Origin::default()).unwrap()
        }
    }

    fn any(&mut self) -> Value {
        // Late ones more often: chains, not stars.
        let n = self.values.len();
        let back = self.draw.below(n).min(self.draw.below(n));
        self.values[n - 1 - back]
    }

    /// Something that broadcasts with a shape: a value that there is, or a new one.
    fn partner(&mut self, shape: &[usize]) -> Value {
        let fits = |d: &Drawing, v: &Value| d.shape(*v) == shape;
        let known: Vec<Value> = self.values.iter().copied().filter(|v| fits(self, v)).collect();
        if self.draw.chance(2) && !known.is_empty() {
            return self.draw.of(&known);
        }
        let skip = self.draw.below(shape.len() + 1);
        let thinner: Vec<usize> =
            shape[skip..].iter().map(|&d| if self.draw.chance(3) { 1 } else { d }).collect();
        self.leaf(&thinner)
    }

    fn op(&mut self, op: impl Into<Op>, operands: &[Value]) -> Option<Value> {
        let label = format!("n{}", self.values.len());
        self.g.add(op, operands, Origin::named(&label)).ok()
    }

    fn unary(&mut self, x: Value) -> Option<Value> {
        match self.draw.below(11) {
            0 => self.op(Neg, &[x]),
            1 => self.op(Abs, &[x]),
            2 => self.op(Tanh, &[x]),
            3 => self.op(Sigmoid, &[x]),
            4 => self.op(Relu, &[x]),
            5 => self.op(Silu, &[x]),
            6 => self.op(Erf, &[x]),
            7 => self.op(Sin, &[x]),
            8 => self.op(Cos, &[x]),
            9 => self.op(Softplus, &[x]),
            _ => self.op(Relu, &[x]),
        }
    }

    fn binary(&mut self, x: Value) -> Option<Value> {
        let y = self.partner(&self.shape(x));
        let (x, y) = if self.draw.chance(2) { (x, y) } else { (y, x) };
        match self.draw.below(6) {
            0 | 1 => self.op(Add, &[x, y]),
            2 => self.op(Sub, &[x, y]),
            3 => self.op(Mul, &[x, y]),
            4 => self.op(Max, &[x, y]),
            _ => self.op(Min, &[x, y]),
        }
    }

    fn quotient(&mut self, x: Value) -> Option<Value> {
        let y = self.partner(&self.shape(x));
        let positive = self.op(Sigmoid, &[y])?;
        self.op(Div, &[x, positive])
    }

    fn reduce(&mut self, x: Value) -> Option<Value> {
        let shape = self.shape(x);
        let mut axes: Vec<usize> = (0..shape.len()).filter(|_| self.draw.chance(2)).collect();
        if axes.is_empty() && !shape.is_empty() {
            axes.push(self.draw.below(shape.len()));
        }
        let kinds = [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min];
        let (kind, keepdims) = (self.draw.of(&kinds), self.draw.chance(2));
        self.op(Reduce { kind, axes, keepdims }, &[x])
    }

    fn reshape(&mut self, x: Value) -> Option<Value> {
        let mut shape = self.shape(x);
        for _ in 0..2 {
            if shape.len() >= 2 && self.draw.chance(2) {
                let axis = self.draw.below(shape.len() - 1);
                let joined = shape.remove(axis);
                shape[axis] *= joined;
            } else if let Some(axis) = (!shape.is_empty()).then(|| self.draw.below(shape.len())) {
                let divisors: Vec<usize> =
                    (1..=shape[axis]).filter(|d| shape[axis].is_multiple_of(*d)).collect();
                if let Some(&d) = divisors.get(self.draw.below(divisors.len())) {
                    shape[axis] /= d;
                    shape.insert(axis, d);
                }
            } else {
                shape.push(1);
            }
        }
        self.op(Reshape { shape: dims(&shape) }, &[x])
    }

    fn slice(&mut self, x: Value) -> Option<Value> {
        let (mut starts, mut ends, mut steps) = (vec![], vec![], vec![]);
        for extent in self.shape(x) {
            let step = self.draw.of(&[1i64, 1, 1, 2, 3, -1, -2]);
            let first = self.draw.below(extent.max(1));
            let keep = self.draw.chance(2);
            let (start, end) = match (step > 0, keep) {
                (true, true) => (0, extent as i64),
                (true, false) => (first as i64, extent as i64),
                (false, _) => (extent as i64 - 1, -1),
            };
            starts.push(Dim::from(start));
            ends.push(Dim::from(end));
            steps.push(step);
        }
        self.op(Slice { starts, ends, steps }, &[x])
    }

    fn broadcast(&mut self, x: Value) -> Option<Value> {
        let shape = self.shape(x);
        let mut wide: Vec<usize> = shape
            .iter()
            .map(|&d| if d == 1 && self.draw.chance(2) { self.draw.extent(false) } else { d })
            .collect();
        if wide.len() < 4 && self.draw.chance(2) {
            wide.insert(0, self.draw.extent(false));
        }
        if wide.iter().product::<usize>() > MOST {
            return None;
        }
        self.op(Broadcast { shape: dims(&wide) }, &[x])
    }

    fn matmul(&mut self, x: Value) -> Option<Value> {
        let shape = self.shape(x);
        let [.., m, k] = shape[..] else { return None };
        match self.draw.below(4) {
            // With itself, transposed.
            0 if m * m * 8 <= MOST => {
                let mut perm: Vec<usize> = (0..shape.len()).collect();
                perm.swap(shape.len() - 1, shape.len() - 2);
                let transposed = self.op(Transpose { perm }, &[x])?;
                self.op(MatMul, &[x, transposed])
            }
            1 => {
                let mut other = shape[..shape.len() - 2].to_vec();
                other.iter_mut().for_each(|d| {
                    if self.draw.chance(3) {
                        *d = 1;
                    }
                });
                let n = self.draw.extent(self.empty);
                other.extend([k, n]);
                let y = self.leaf(&other);
                self.op(MatMul, &[x, y])
            }
            2 => {
                let n = self.draw.extent(self.empty);
                let y = self.leaf(&[n, k]);
                let transposed = self.op(Transpose { perm: vec![1, 0] }, &[y])?;
                self.op(MatMul, &[x, transposed])
            }
            _ => {
                let n = self.draw.extent(self.empty);
                let y = self.leaf(&[k, n]);
                let product = self.op(MatMul, &[x, y])?;
                if self.draw.chance(2) {
                    return Some(product);
                }
                let bias = self.leaf(&[n]);
                self.op(Add, &[product, bias])
            }
        }
    }

    fn attention(&mut self, x: Value) -> Option<Value> {
        let shape = self.shape(x);
        let [b, h, s, d] = shape[..] else { return None };
        let t = if self.draw.chance(2) { s } else { self.draw.extent(false) };
        let kv_heads = if self.draw.chance(3) { 1 } else { h };
        let (k, v) = (self.leaf(&[b, kv_heads, t, d]), self.leaf(&[b, kv_heads, t, d]));
        let causal = self.draw.chance(3) && s <= t;
        let mut operands = vec![x, k, v];
        if self.draw.chance(3) {
            operands.push(self.leaf(&[s, t]));
        }
        self.op(Attention { causal, ..Attention::new(0.5) }, &operands)
    }

    fn concat(&mut self, x: Value) -> Option<Value> {
        let shape = self.shape(x);
        let axis = (!shape.is_empty()).then(|| self.draw.below(shape.len()))?;
        let mut other = shape.clone();
        other[axis] = self.draw.extent(self.empty);
        let y = self.leaf(&other);
        let operands = if self.draw.chance(2) { vec![x, y] } else { vec![y, x, x] };
        self.op(Concat { axis }, &operands)
    }

    fn pad(&mut self, x: Value) -> Option<Value> {
        let mut some = |n: usize| -> Vec<i64> { (0..n).map(|_| self.draw.of(&[0, 0, 1, 2])).collect() };
        let ndim = self.g.ty(x).ndim();
        let (before, after) = (some(ndim), some(ndim));
        self.op(Pad { before, after, value: Number::float(0.5) }, &[x])
    }

    fn step(&mut self) {
        let x = self.any();
        let ndim = self.g.ty(x).ndim();
        let y = match self.draw.below(20) {
            0..4 => self.unary(x),
            4..8 => self.binary(x),
            8 => self.quotient(x),
            9 => self.reduce(x),
            10 | 11 => {
                let perm = self.draw.permutation(ndim);
                self.op(Transpose { perm }, &[x])
            }
            12 => self.reshape(x),
            13 => self.slice(x),
            14 => self.broadcast(x),
            15 | 16 => self.matmul(x),
            17 => match self.draw.below(3) {
                0 if ndim > 0 => {
                    let axis = self.draw.below(ndim);
                    self.op(Softmax { axis }, &[x])
                }
                1 if ndim > 0 => {
                    let axis = ndim - 1;
                    let extent = self.shape(x)[axis];
                    let (scale, shift) = (self.leaf(&[extent]), self.leaf(&[extent]));
                    self.op(LayerNorm { axis, epsilon: Bits::new(0.01) }, &[x, scale, shift])
                }
                _ => self.attention(x),
            },
            18 => self.concat(x),
            _ => self.pad(x),
        };
        if let Some(y) = y
            && self.shape(y).iter().product::<usize>() <= MOST
        {
            self.values.push(y);
        }
    }
}

/// The text of the graph with a number.
fn drawn(seed: u64, empty: bool) -> String {
    let draw = Draw { philox: Philox::new(17, seed), next: 0 };
    let mut d = Drawing { g: Graph::new(&format!("drawn{seed}")), draw, values: vec![], empty };
    for _ in 0..=d.draw.below(2) {
        let shape = d.draw.shape(empty);
        let name = format!("x{}", d.g.inputs().len());
        let v = d.g.add_input(&name, TensorType::known(DType::F32, &shape));
        d.values.push(v);
    }
    for _ in 0..3 + d.draw.below(10) {
        d.step();
    }
    let unread: Vec<Value> = d.values.iter().copied().filter(|v| d.g.users_of(*v).is_empty()).collect();
    let mut outputs = unread;
    if d.draw.chance(3) {
        let again = d.any();
        outputs.push(again);
    }
    for (i, v) in outputs.into_iter().enumerate() {
        d.g.add_output(&format!("y{i}"), v);
    }
    d.g.remove_dead();
    d.g.to_string()
}

/// Runs the graph in every way there is. Returns whether it says anything: not if numbers are huge.
fn check(seed: u64, empty: bool) -> bool {
    let source = drawn(seed, empty);
    let (g, _) = parse_with_random_constants(&source);
    assert_eq!(g.verify(margay_ir::Stage::Imported), Ok(()), "{source}");
    let inputs: Vec<(String, Tensor)> = g
        .inputs()
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let shape = g.ty((*n).into()).extents().unwrap();
            (g.node(*n).origin.name().to_string(), margay_testkit::normal(&shape, seed, i as u64))
        })
        .collect();
    let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let expected = eval::run(&g, &by_name).unwrap_or_else(|e| panic!("{e}\n{source}"));
    let tame = |t: &Tensor| t.to_vec::<f32>().unwrap().iter().all(|x| x.abs() < 1e3);
    if !expected.iter().all(tame) {
        return false;
    }

    for backend in backend::supported() {
        let executable = jit(&g, &Binding::new(), &*backend).unwrap_or_else(|e| panic!("{e}\n{source}"));
        let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
        let found = session.run(&by_name).unwrap_or_else(|e| panic!("{e}\n{source}"));
        for (f, e) in found.iter().zip(&expected) {
            assert_close(&format!("{} {source}", backend.target()), &f.1, e, Tolerance::REDUCTION);
        }
    }
    true
}

/// Checks graphs by their numbers; at least half of them must say something.
fn check_all(seeds: std::ops::Range<u64>, empty: bool) {
    let count = seeds.end - seeds.start;
    let said = seeds.filter(|&seed| check(seed, empty)).count() as u64;
    assert!(2 * said > count, "{said} of {count} graphs compared");
}

#[test]
fn random_graphs_give_the_same_results_everywhere() {
    check_all(0..150, false);
    // One row that is read backwards by a product.
    check_all(1946..1947, false);
}
