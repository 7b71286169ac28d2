//! The builder that operators write their loop nests with.
//!
//! An operator reads its inputs by [`Nest::load`] and writes its outputs by [`Nest::store`], at one [`Index`] per
//! axis. An input is read from a [`Producer`]: memory, or scalar code over other producers, which is then
//! computed in place of the load. An output is written to a [`Sink`]: memory, and scalar code that runs before the
//! store. This is the whole mechanism of fusion; operators do not know of it.

use std::rc::Rc;

use margay_tensor::DType;

use crate::{Arg, Axis, Binary, Combine, Extent, Index, Kernel, Literal, Reg, Stmt, Unary};

/// Code for one element: registers of the operands in, register of the result out.
pub type ScalarFn = Rc<dyn Fn(&mut Nest, &[Reg]) -> Reg>;

/// A register, under the name operators know it by.
pub type Scalar = Reg;

/// What an input of a nest is read from.
#[derive(Clone)]
pub enum Producer {
    /// Memory.
    Memory {
        /// Position among the kernel's arguments.
        arg: usize,
        /// Type of the elements.
        dtype: DType,
        /// Extents.
        shape: Vec<usize>,
        /// Distance between neighbours along each axis, in elements.
        strides: Vec<i64>,
    },
    /// Another source, read at the position along an axis divided by `size`: what a run of `size` elements shares.
    Runs {
        /// What is read.
        source: Box<Producer>,
        /// Extents of what is seen.
        shape: Vec<usize>,
        /// The axis.
        axis: usize,
        /// Elements of a run.
        size: usize,
    },
    /// Scalar code over sources that broadcast to `shape`.
    Computed {
        /// Extents.
        shape: Vec<usize>,
        /// The code.
        function: ScalarFn,
        /// Its operands.
        inputs: Vec<Producer>,
    },
}

/// An operand of scalar code that runs before a store.
#[derive(Clone)]
pub enum SinkInput {
    /// The value about to be stored.
    Value,
    /// Read at the element about to be stored; broadcasts to the shape of the sink.
    Read(Producer),
}

/// What an output of a nest is written to.
#[derive(Clone)]
pub struct Sink {
    /// Position among the kernel's arguments.
    pub arg: usize,
    /// Distance between neighbours along each axis, in elements.
    pub strides: Vec<i64>,
    /// Code applied to the value, in order, before it is stored.
    pub stages: Vec<(ScalarFn, Vec<SinkInput>)>,
}

/// A loop nest being written.
pub struct Nest {
    regs: Vec<DType>,
    axes: u16,
    blocks: Vec<Vec<Stmt>>,
    args: Vec<Arg>,
    inputs: Vec<Producer>,
    outputs: Vec<Sink>,
}

impl Nest {
    /// An empty nest over the given memory.
    pub fn new(args: Vec<Arg>, inputs: Vec<Producer>, outputs: Vec<Sink>) -> Nest {
        Nest { regs: Vec::new(), axes: 0, blocks: vec![Vec::new()], args, inputs, outputs }
    }

    /// The kernel, with loops joined where memory allows.
    pub fn finish(mut self) -> Kernel {
        let body = self.blocks.pop().expect("the outermost block is never closed");
        let mut kernel = Kernel { args: self.args, regs: self.regs, axes: self.axes, body };
        collapse(&mut kernel.body);
        kernel
    }

    fn push(&mut self, stmt: Stmt) {
        self.blocks.last_mut().expect("a block is open").push(stmt);
    }

    fn fresh(&mut self, dtype: DType) -> Reg {
        self.regs.push(dtype);
        Reg(self.regs.len() as u32 - 1)
    }

    fn fresh_axis(&mut self) -> Axis {
        self.axes += 1;
        Axis(self.axes - 1)
    }

    /// The type of a register.
    pub fn dtype(&self, reg: Reg) -> DType {
        self.regs[reg.0 as usize]
    }

    /// A constant.
    pub fn literal(&mut self, value: Literal) -> Reg {
        let to = self.fresh(value.dtype());
        self.push(Stmt::Literal { to, value });
        to
    }

    /// The number `value` in the type of `like`.
    pub fn number(&mut self, like: Reg, value: f64) -> Reg {
        // There are no literals of halves.
        let (dtype, literal) = (self.dtype(like), Literal::of(self.dtype(like), value));
        let number = self.literal(literal);
        if literal.dtype() == dtype { number } else { self.cast(number, dtype) }
    }

    /// A position as an I64.
    pub fn index_value(&mut self, index: &Index) -> Reg {
        let to = self.fresh(DType::I64);
        self.push(Stmt::IndexValue { to, index: index.clone() });
        to
    }

    /// A function of one operand.
    pub fn unary(&mut self, op: Unary, x: Reg) -> Reg {
        let dtype = if op == Unary::IsNan { DType::Bool } else { self.dtype(x) };
        let to = self.fresh(dtype);
        self.push(Stmt::Unary { to, op, x });
        to
    }

    /// A function of two operands of one type.
    pub fn binary(&mut self, op: Binary, x: Reg, y: Reg) -> Reg {
        debug_assert_eq!(self.dtype(x), self.dtype(y), "operands of {op:?}");
        let dtype = if op.is_test() { DType::Bool } else { self.dtype(x) };
        let to = self.fresh(dtype);
        self.push(Stmt::Binary { to, op, x, y });
        to
    }

    /// x + y.
    pub fn add(&mut self, x: Reg, y: Reg) -> Reg {
        self.binary(Binary::Add, x, y)
    }

    /// x - y.
    pub fn sub(&mut self, x: Reg, y: Reg) -> Reg {
        self.binary(Binary::Sub, x, y)
    }

    /// x y.
    pub fn mul(&mut self, x: Reg, y: Reg) -> Reg {
        self.binary(Binary::Mul, x, y)
    }

    /// x / y.
    pub fn div(&mut self, x: Reg, y: Reg) -> Reg {
        self.binary(Binary::Div, x, y)
    }

    /// `if test { x } else { y }`.
    pub fn select(&mut self, test: Reg, x: Reg, y: Reg) -> Reg {
        let to = self.fresh(self.dtype(x));
        self.push(Stmt::Select { to, test, x, y });
        to
    }

    /// Conversion to the type that `dtype` is computed in; the register itself when it has that type already.
    pub fn cast(&mut self, x: Reg, dtype: DType) -> Reg {
        let dtype = dtype.computed();
        if self.dtype(x) == dtype {
            return x;
        }
        let to = self.fresh(dtype);
        self.push(Stmt::Cast { to, x });
        to
    }

    /// A value of type `dtype` rounded to what that type can say: what a store and a load would make of it.
    pub fn rounded(&mut self, x: Reg, dtype: DType) -> Reg {
        match dtype {
            DType::F16 => self.unary(Unary::RoundF16, x),
            DType::BF16 => self.unary(Unary::RoundBf16, x),
            _ => x,
        }
    }

    /// Reports a fault of the step when `test` is false: that it requires `what`, a noun phrase with numbers.
    pub fn require(&mut self, test: Reg, what: &str) {
        self.push(Stmt::Require { test, what: what.into() });
    }

    /// Element `index` (one per axis) of input `input`.
    pub fn load(&mut self, input: usize, index: &[Index]) -> Reg {
        let producer = self.inputs[input].clone();
        self.read(&producer, index, None)
    }

    /// Like [`load`](Nest::load) where `guard` is true; `otherwise` where it is false, and then nothing is read.
    pub fn load_guarded(&mut self, input: usize, index: &[Index], guard: Reg, otherwise: f64) -> Reg {
        let producer = self.inputs[input].clone();
        match producer {
            Producer::Memory { dtype, .. } => {
                self.read(&producer, index, Some((guard, Literal::of(dtype, otherwise))))
            }
            Producer::Runs { .. } | Producer::Computed { .. } => {
                let zero = Literal::of(DType::F32, 0.0);
                let value = self.read(&producer, index, Some((guard, zero)));
                let other = self.number(value, otherwise);
                self.select(guard, value, other)
            }
        }
    }

    fn read(&mut self, producer: &Producer, index: &[Index], guard: Option<(Reg, Literal)>) -> Reg {
        match producer {
            Producer::Memory { arg, dtype, shape, strides } => {
                let at = linear(&broadcast(index, shape), strides);
                let guard = guard.map(|(test, value)| match value {
                    v if v.dtype() == dtype.computed() => (test, v),
                    _ => (test, Literal::of(*dtype, 0.0)),
                });
                let to = self.fresh(dtype.computed());
                self.push(Stmt::Load { to, arg: *arg, index: at, guard });
                to
            }
            Producer::Runs { source, shape, axis, size } => {
                let mut index = broadcast(index, shape);
                index[*axis] = self.divided(&index[*axis], *size as i64);
                self.read(source, &index, guard)
            }
            Producer::Computed { shape, function, inputs } => {
                let index = broadcast(index, shape);
                let operands: Vec<Reg> = inputs.iter().map(|s| self.read(s, &index, guard)).collect();
                function(self, &operands)
            }
        }
    }

    /// A position divided by a number, rounded down; positions are not negative.
    pub fn divided(&mut self, index: &Index, by: i64) -> Index {
        if by == 1 {
            return index.clone();
        }
        if index.axes.is_empty() && index.regs.is_empty() {
            return Index::constant(index.offset / by);
        }
        let (at, by) = (self.index_value(index), self.literal(Literal::Int(DType::I64, by)));
        Index::reg(self.binary(Binary::Div, at, by))
    }

    /// Writes element `index` of output `output`.
    pub fn store(&mut self, output: usize, index: &[Index], value: Reg) {
        let sink = self.outputs[output].clone();
        let value = sink.stages.iter().fold(value, |value, (function, inputs)| {
            let operands: Vec<Reg> = inputs
                .iter()
                .map(|input| match input {
                    SinkInput::Value => value,
                    SinkInput::Read(s) => self.read(s, index, None),
                })
                .collect();
            function(self, &operands)
        });
        self.push(Stmt::Store { arg: sink.arg, index: linear(index, &sink.strides), value });
    }

    /// Writes an intermediate value to output `output`, without the code fused into its store.
    pub fn store_raw(&mut self, output: usize, index: &[Index], value: Reg) {
        let sink = &self.outputs[output];
        let (arg, index) = (sink.arg, linear(index, &sink.strides));
        self.push(Stmt::Store { arg, index, value });
    }

    /// Reads back what [`store_raw`](Nest::store_raw) wrote.
    pub fn reload(&mut self, output: usize, index: &[Index]) -> Reg {
        let sink = &self.outputs[output];
        let (arg, index) = (sink.arg, linear(index, &sink.strides));
        let to = self.fresh(self.args[arg].dtype.computed());
        self.push(Stmt::Load { to, arg, index, guard: None });
        to
    }

    fn nested(&mut self, extent: Extent<Reg>, parallel: bool, body: impl FnOnce(&mut Nest, Index)) {
        if extent == Extent::Known(1) {
            return body(self, Index::constant(0));
        }
        let axis = self.fresh_axis();
        self.blocks.push(Vec::new());
        body(self, Index::axis(axis));
        let body = self.blocks.pop().expect("opened above");
        self.push(Stmt::Loop { axis, extent, parallel, body });
    }

    /// Runs `body` for every position below `extent`, in order.
    pub fn serial(&mut self, extent: impl Into<Extent<Reg>>, body: impl FnOnce(&mut Nest, Index)) {
        self.nested(extent.into(), false, body);
    }

    /// Runs `body` for every element of `shape`, in order, with the positions appended to `prefix`.
    pub fn serial_each(
        &mut self,
        shape: &[usize],
        prefix: &[Index],
        body: &mut dyn FnMut(&mut Nest, &[Index]),
    ) {
        match shape.split_first() {
            None => body(self, prefix),
            Some((&extent, rest)) => {
                self.serial(extent, |n, i| n.serial_each(rest, &[prefix, &[i]].concat(), body));
            }
        }
    }

    /// Joins the values that `body` returns for every element of `shape`, with the positions appended to `prefix`.
    pub fn reduce_each(
        &mut self,
        shape: &[usize],
        prefix: &[Index],
        combine: Combine,
        body: &mut dyn FnMut(&mut Nest, &[Index]) -> Reg,
    ) -> Reg {
        match shape.split_first() {
            None => body(self, prefix),
            Some((&extent, rest)) => self.reduce(extent, &[combine], |n, i| {
                vec![n.reduce_each(rest, &[prefix, &[i]].concat(), combine, body)]
            })[0],
        }
    }

    /// Runs `body` for every element of `shape`, in any order. The outermost statement of a nest, once; what computes
    /// the first extent may stand before it.
    pub fn for_each<E: Copy + Into<Extent<Reg>>>(
        &mut self,
        shape: &[E],
        body: impl FnOnce(&mut Nest, &[Index]),
    ) {
        type Body<'b> = Box<dyn FnOnce(&mut Nest, &[Index]) + 'b>;
        fn go(nest: &mut Nest, shape: &[Extent<Reg>], index: &mut Vec<Index>, body: Body<'_>) {
            match shape.split_first() {
                None => body(nest, index),
                Some((&extent, rest)) => nest.nested(extent, true, |nest, i| {
                    index.push(i);
                    go(nest, rest, index, body);
                    index.pop();
                }),
            }
        }
        let shape: Vec<Extent<Reg>> = shape.iter().map(|&e| e.into()).collect();
        go(self, &shape, &mut Vec::new(), Box::new(body));
    }

    /// Joins the values that `body` returns for every position below `extent`.
    pub fn reduce(
        &mut self,
        extent: impl Into<Extent<Reg>>,
        combine: &[Combine],
        body: impl FnOnce(&mut Nest, Index) -> Vec<Reg>,
    ) -> Vec<Reg> {
        let extent = extent.into();
        if extent == Extent::Known(1) {
            return body(self, Index::constant(0));
        }
        let axis = self.fresh_axis();
        self.blocks.push(Vec::new());
        let values = body(self, Index::axis(axis));
        let body = self.blocks.pop().expect("opened above");
        let results: Vec<(Reg, Combine, Reg)> =
            combine.iter().zip(values).map(|(&c, v)| (self.fresh(self.dtype(v)), c, v)).collect();
        let regs = results.iter().map(|r| r.0).collect();
        self.push(Stmt::Reduce { axis, extent, results, body });
        regs
    }
}

/// Aligns an index with a shape at the last axis; axes of extent 1 are read at 0.
fn broadcast(index: &[Index], shape: &[usize]) -> Vec<Index> {
    let skip = index.len() - shape.len();
    index[skip..]
        .iter()
        .zip(shape)
        .map(|(i, &extent)| if extent == 1 { Index::constant(0) } else { i.clone() })
        .collect()
}

fn linear(index: &[Index], strides: &[i64]) -> Index {
    index.iter().zip(strides).fold(Index::default(), |sum, (i, &stride)| sum.plus(i, stride))
}

/// Joins two directly nested loops of one kind into one wherever every index moves through both as through one.
fn collapse(body: &mut [Stmt]) {
    for stmt in body {
        match stmt {
            Stmt::Loop { axis, extent, parallel, body } => {
                collapse(body);
                while let [
                    Stmt::Loop { axis: inner, extent: Extent::Known(count), parallel: p, body: deeper },
                ] = body.as_mut_slice()
                    && let Extent::Known(extent) = extent
                {
                    let (outer, inner_axis, n) = (*axis, *inner, *count as i64);
                    let fits =
                        |i: &Index| i.coefficient(outer) == n.saturating_mul(i.coefficient(inner_axis));
                    if p != parallel || !all_indices(deeper, &fits) {
                        break;
                    }
                    let (count, mut joined) = (*count, std::mem::take(deeper));
                    visit_indices(&mut joined, &mut |i| i.axes.retain(|(a, _)| *a != outer));
                    *axis = inner_axis;
                    *extent *= count;
                    *body = joined;
                }
            }
            Stmt::Reduce { body, .. } => collapse(body),
            _ => {}
        }
    }
}

fn all_indices(body: &[Stmt], test: &dyn Fn(&Index) -> bool) -> bool {
    body.iter().all(|stmt| match stmt {
        Stmt::IndexValue { index, .. } | Stmt::Load { index, .. } | Stmt::Store { index, .. } => test(index),
        Stmt::Loop { body, .. } | Stmt::Reduce { body, .. } => all_indices(body, test),
        _ => true,
    })
}

fn visit_indices(body: &mut [Stmt], change: &mut dyn FnMut(&mut Index)) {
    for stmt in body {
        match stmt {
            Stmt::IndexValue { index, .. } | Stmt::Load { index, .. } | Stmt::Store { index, .. } => {
                change(index);
            }
            Stmt::Loop { body, .. } | Stmt::Reduce { body, .. } => visit_indices(body, change),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(arg: usize, shape: &[usize], strides: &[i64]) -> Producer {
        Producer::Memory { arg, dtype: DType::F32, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    fn args(n: usize) -> Vec<Arg> {
        (0..n).map(|i| Arg { dtype: DType::F32, written: i + 1 == n }).collect()
    }

    fn sink(arg: usize, strides: &[i64]) -> Sink {
        Sink { arg, strides: strides.to_vec(), stages: vec![] }
    }

    #[test]
    fn contiguous_loops_collapse_into_one() {
        let source = memory(0, &[2, 3, 4], &[12, 4, 1]);
        let mut n = Nest::new(args(2), vec![source], vec![sink(1, &[12, 4, 1])]);
        n.for_each(&[2, 3, 4], |n, i| {
            let x = n.load(0, i);
            n.store(0, i, x);
        });
        let k = n.finish();
        assert_eq!(k.parallel_extents(), [24]);
        assert_eq!(
            k.to_string(),
            "kernel(r f32, w f32)\n  for i2 in 0..24 parallel\n    %0 = load a0[i2]\n    store a1[i2] = %0\n"
        );
    }

    #[test]
    fn a_broadcast_operand_keeps_the_loops_apart() {
        let bias = memory(1, &[4], &[1]);
        let sum = Producer::Computed {
            shape: vec![2, 3, 4],
            function: Rc::new(|n, x| n.add(x[0], x[1])),
            inputs: vec![memory(0, &[2, 3, 4], &[12, 4, 1]), bias],
        };
        let mut n = Nest::new(args(3), vec![sum], vec![sink(2, &[12, 4, 1])]);
        n.for_each(&[2, 3, 4], |n, i| {
            let x = n.load(0, i);
            n.store(0, i, x);
        });
        assert_eq!(n.finish().parallel_extents(), [6, 4]);
    }

    #[test]
    fn stages_of_a_sink_run_before_the_store() {
        let mut out = sink(1, &[1]);
        out.stages.push((Rc::new(|n, x| n.mul(x[0], x[0])), vec![SinkInput::Value]));
        let mut n = Nest::new(args(2), vec![memory(0, &[8], &[1])], vec![out]);
        n.for_each(&[8], |n, i| {
            let x = n.load(0, i);
            n.store(0, i, x);
        });
        assert!(n.finish().to_string().contains("store a1[i0] = %1"));
    }
}
