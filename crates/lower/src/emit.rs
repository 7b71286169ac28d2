//! Groups to steps, and buffers to places.

use std::cmp::Ordering;
use std::collections::HashMap;

use margay_ir::{Graph, NodeId, Op};
use margay_loops::nest::{Nest, Producer, Sink, SinkInput};
use margay_loops::{
    Arg, Backend, Buffer, BufferId, Carried, Constant, Counted, Index, Kernel, KernelCall, Literal, Needs,
    Operand, Packed, Place, Port, Program, Step, Work, for_each_operand, walk,
};
use margay_tensor::{ContentHash, DType, StoredTensor};

use crate::LowerError;
use crate::group::{Anchor, Anchored, Called, Expr, Feed};
use crate::memory::Memory;
use crate::places::{drop_unread_constants, order_buffers, place_temporaries};

/// Writes a program step by step.
pub(crate) struct Emitter<'a> {
    backend: &'a dyn Backend,
    program: Program,
    kernels: HashMap<Kernel, usize>,
    /// Constants by contents and packed layout.
    constants: HashMap<(ContentHash, Option<String>), BufferId>,
    /// The numbers of the constants of some contents.
    same: HashMap<ContentHash, Vec<usize>>,
    /// Inputs that have a buffer.
    inputs: usize,
    /// The output buffers that a step writes already.
    written: Vec<bool>,
    /// The lists of steps around the one that is being written, with the number of buffers there were when it began.
    around: Vec<(Vec<Step>, usize)>,
    /// Steps so far, in all lists.
    steps: usize,
}

/// The most steps of a program: some times those of the largest models. Code for each takes time and memory to make.
const MAX_STEPS: usize = 1 << 17;

impl<'a> Emitter<'a> {
    pub(crate) fn new(g: &Graph, backend: &'a dyn Backend) -> Emitter<'a> {
        let port = |name: &str, ty: &margay_ir::TensorType| Port {
            name: name.into(),
            dtype: ty.dtype,
            shape: ty.extents().unwrap_or_default(),
        };
        let mut program = Program::default();
        for n in g.inputs() {
            if let Op::Input(input) = g.op(*n) {
                program.inputs.push(port(&input.name, &input.ty));
            }
        }
        program.outputs = g.outputs().iter().map(|o| port(&o.name, g.ty(o.value))).collect();
        let place = |name: &str| g.outputs().iter().position(|o| *o.name == *name);
        let counts =
            g.outputs().iter().enumerate().filter_map(|(count, o)| Some((count, o.counts.as_ref()?)));
        let counted =
            counts.filter_map(|(count, c)| Some(Counted { output: place(&c.output)?, axis: c.axis, count }));
        program.counted = counted.collect();
        let written = vec![false; program.outputs.len()];
        Emitter {
            backend,
            program,
            kernels: HashMap::new(),
            constants: HashMap::new(),
            same: HashMap::new(),
            inputs: 0,
            written,
            around: Vec::new(),
            steps: 0,
        }
    }

    /// Fails where there are more steps than a program may have; `name` is that of the last one.
    pub(crate) fn expect_short(&self, name: &str) -> Result<(), LowerError> {
        match self.steps <= MAX_STEPS {
            true => Ok(()),
            false => Err(LowerError::TooLong { name: name.to_owned(), limit: MAX_STEPS }),
        }
    }

    /// Begins a list of steps inside a step to come.
    pub(crate) fn open(&mut self) {
        self.around.push((std::mem::take(&mut self.program.body), self.program.buffers.len()));
    }

    /// Ends the list of steps that was begun last.
    pub(crate) fn close(&mut self) -> Vec<Step> {
        let (around, _) = self.around.pop().expect("a list is open");
        std::mem::replace(&mut self.program.body, around)
    }

    /// Lets the open list of steps leave each value at its place. What the list makes is written there at once, if
    /// nothing reads the place from then on; the rest is copied. No value lies at the place of another one.
    pub(crate) fn leave(&mut self, values: &mut [Memory], places: &[Memory], label: &[String]) {
        let before = self.around.last().map_or(0, |(_, buffers)| *buffers);
        for (i, place) in places.iter().enumerate() {
            let value = &values[i];
            if value == place {
                continue;
            }
            let (from, to) = (value.buffer, place.buffer);
            let [made, target] = [from, to].map(|b| &self.program.buffers[b.0]);
            let whole = from.0 >= before
                && matches!(made.place, Place::Arena(_))
                && made.bytes == target.bytes
                && value.is_contiguous()
                && value.offset == 0;
            if !whole || !self.is_safe_in_place(&[to.0], &[from.0]) {
                self.copy(&values[i].clone(), place, label);
                continue;
            }
            for_each_operand(&mut self.program.body, &mut |operand| {
                if operand.buffer == from {
                    operand.buffer = to;
                }
            });
            values[i..].iter_mut().filter(|v| v.buffer == from).for_each(|v| v.buffer = to);
        }
    }

    /// Writes a value to one row of a tensor, the row that `number` says.
    pub(crate) fn store_row(&mut self, value: &Memory, rows: &Memory, number: &Memory, label: &[String]) {
        let mut args = Arguments::default();
        let sources = vec![args.memory(value), args.memory(number)];
        let shape = value.shape.clone();
        self.loops(args, sources, &[rows], &[], label, &|n| {
            n.for_each(&shape, |n, i| {
                let (x, row) = (n.load(0, i), n.load(1, &[]));
                n.store(0, &[&[Index::reg(row)], i].concat(), x);
            });
        });
    }

    /// Writes zeros.
    pub(crate) fn clear(&mut self, m: &Memory, label: &[String]) {
        let (shape, zero) = (m.shape.clone(), Literal::of(m.dtype.computed(), 0.0));
        self.loops(Arguments::default(), Vec::new(), &[m], &[], label, &|n| {
            n.for_each(&shape, |n, i| {
                let zero = n.literal(zero);
                n.store(0, i, zero);
            });
        });
    }

    fn buffer(&mut self, place: Place, bytes: usize) -> BufferId {
        self.program.buffers.push(Buffer { place, bytes });
        BufferId(self.program.buffers.len() - 1)
    }

    /// A new temporary; its place is found at the end.
    fn temporary(&mut self, bytes: usize) -> BufferId {
        self.buffer(Place::Arena(0), bytes)
    }

    pub(crate) fn input(&mut self, n: NodeId, dtype: DType, shape: &[usize]) -> Memory {
        let number = self.inputs;
        self.inputs += 1;
        debug_assert!(number < self.program.inputs.len(), "{n:?} is an input");
        let buffer = self.buffer(Place::Input(number), bytes_of(dtype, shape));
        Memory::contiguous(buffer, dtype, shape)
    }

    /// The elements of a constant as they are stored, row-major. `name` is what identifies it in the graph.
    pub(crate) fn constant(&mut self, name: &str, stored: &StoredTensor) -> Memory {
        let key = (stored.content_hash(), None);
        let buffer = match self.constants.get(&key) {
            Some(b) => *b,
            None => {
                let constant = Constant { names: Vec::new(), stored: stored.clone(), packed: None };
                self.add_constant(key, constant.bytes(), constant)
            }
        };
        for &number in self.same.get(&stored.content_hash()).into_iter().flatten() {
            let names = &mut self.program.constants[number].names;
            if !names.iter().any(|n| n == name) {
                names.push(name.to_string());
            }
        }
        Memory::contiguous(buffer, stored.storage().dtype, stored.shape())
    }

    /// What a call needs, if the back end has a kernel for it.
    pub(crate) fn needs(&self, call: &KernelCall) -> Option<Needs> {
        self.backend.prepare(&self.decided(call.clone())).ok()
    }

    /// The predicted time of a call, on one thread.
    pub(crate) fn seconds(&self, call: &KernelCall) -> f64 {
        self.backend.call_seconds(call, 1)
    }

    /// The constant of a buffer, packed for a call.
    fn packed(&mut self, from: BufferId, call: &KernelCall, packed: &Packed) -> BufferId {
        let Place::Constant(number) = self.program.buffers[from.0].place else { return from };
        let Constant { names, stored, .. } = self.program.constants[number].clone();
        let key = (stored.content_hash(), Some(packed.layout.clone()));
        if let Some(b) = self.constants.get(&key) {
            return *b;
        }
        let constant = Constant { names, stored, packed: Some((call.clone(), packed.clone())) };
        self.add_constant(key, packed.bytes, constant)
    }

    fn add_constant(
        &mut self,
        key: (ContentHash, Option<String>),
        bytes: usize,
        constant: Constant,
    ) -> BufferId {
        let number = self.program.constants.len();
        let buffer = self.buffer(Place::Constant(number), bytes);
        self.program.constants.push(constant);
        self.same.entry(key.0).or_default().push(number);
        self.constants.insert(key, buffer);
        buffer
    }

    /// Memory for a result: the caller's, if it is an output nobody has written yet.
    pub(crate) fn result(&mut self, dtype: DType, shape: &[usize], output: Option<usize>) -> Memory {
        let bytes = bytes_of(dtype, shape);
        let buffer = match output {
            Some(i) if !self.written[i] => {
                self.written[i] = true;
                self.buffer(Place::Output(i), bytes)
            }
            _ => self.temporary(bytes),
        };
        Memory::contiguous(buffer, dtype, shape)
    }

    /// Writes an expression to memory.
    pub(crate) fn expr(
        &mut self,
        dtype: DType,
        e: &Expr,
        output: Option<usize>,
    ) -> Result<Memory, LowerError> {
        let out = self.result(dtype, &e.shape, output);
        let mut args = Arguments::default();
        let source = Producer::Computed {
            shape: e.shape.clone(),
            function: e.function.clone(),
            inputs: e.inputs.iter().map(|f| args.source(f)).collect(),
        };
        let shape = e.shape.clone();
        self.loops(args, vec![source], &[&out], &[], &e.label, &|n| {
            n.for_each(&shape, |n, i| {
                let x = n.load(0, i);
                n.store(0, i, x);
            });
        });
        Ok(out)
    }

    /// A row-major copy, or the memory itself if it is row-major from the start of its buffer.
    pub(crate) fn contiguous(&mut self, m: &Memory, label: &[String]) -> Result<Memory, LowerError> {
        if m.is_contiguous() {
            return Ok(m.clone());
        }
        let out = self.result(m.dtype, &m.shape, None);
        self.copy(m, &out, label);
        Ok(out)
    }

    /// A row-major copy in another type.
    pub(crate) fn converted(&mut self, m: &Memory, dtype: DType, label: &[String]) -> Memory {
        let out = self.result(dtype, &m.shape, None);
        self.copy(m, &out, label);
        out
    }

    /// Copies a tensor to memory of its shape elsewhere, converted to the type of the target if that is another.
    pub(crate) fn copy(&mut self, from: &Memory, to: &Memory, label: &[String]) {
        if from.elements() == 0 {
            return;
        }
        if from.dtype == to.dtype && from.is_contiguous() && to.is_contiguous() {
            let bytes = bytes_of(from.dtype, &from.shape);
            return self.step(Work::Copy { from: from.operand(), to: to.operand(), bytes }, label);
        }
        let mut args = Arguments::default();
        let source = args.memory(from);
        let (shape, dtype) = (from.shape.clone(), to.dtype);
        self.loops(args, vec![source], &[to], &[], label, &|n| {
            n.for_each(&shape, |n, i| {
                let x = n.load(0, i);
                let x = n.cast(x, dtype);
                n.store(0, i, x);
            });
        });
    }

    /// Makes sure that output number `i` holds the value.
    pub(crate) fn output(&mut self, i: usize, m: &Memory) -> Result<(), LowerError> {
        let place = &self.program.buffers[m.buffer.0].place;
        if *place == Place::Output(i) && m.is_contiguous() && m.offset == 0 {
            return Ok(());
        }
        self.written[i] = true;
        let buffer = self.buffer(Place::Output(i), bytes_of(m.dtype, &m.shape));
        let out = Memory::contiguous(buffer, m.dtype, &m.shape);
        let label = vec![self.program.outputs[i].name.clone()];
        self.copy(m, &out, &label);
        Ok(())
    }

    /// Runs a loop nest or a kernel call with what was fused into it.
    pub(crate) fn anchored(
        &mut self,
        dtype: DType,
        a: Anchored,
        output: Option<usize>,
    ) -> Result<Memory, LowerError> {
        let mut out = self.result(dtype, &a.shape, output.filter(|_| a.strides.is_none()));
        match a.anchor {
            Anchor::Nest { body, inputs, stages, others } => {
                let mut args = Arguments::default();
                let sources = inputs.iter().map(|f| args.source(f)).collect();
                let stages: Vec<_> = stages
                    .into_iter()
                    .map(|s| {
                        let inputs = s
                            .inputs
                            .into_iter()
                            .map(|i| i.map_or(SinkInput::Value, |f| SinkInput::Read(args.source(&f))))
                            .collect();
                        (s.function, inputs)
                    })
                    .collect();
                let results: Vec<&Memory> = std::iter::once(&out).chain(&others).collect();
                self.loops(args, sources, &results, &stages, &a.label, &*body);
            }
            Anchor::Call(called) => self.call(*called, &out, &a.label)?,
        }
        if let Some(strides) = a.strides {
            out.strides = strides;
        }
        Ok(out)
    }

    fn loops(
        &mut self,
        mut args: Arguments,
        sources: Vec<Producer>,
        results: &[&Memory],
        stages: &[(margay_loops::ScalarFn, Vec<SinkInput>)],
        label: &[String],
        body: &dyn Fn(&mut Nest),
    ) {
        // What is fused behind a nest runs before the first result is stored.
        let sinks = results.iter().enumerate().map(|(i, out)| Sink {
            arg: args.push(out, true),
            strides: out.strides.clone(),
            stages: if i == 0 { stages.to_vec() } else { Vec::new() },
        });
        let sinks = sinks.collect();
        let mut nest = Nest::new(args.args, sources, sinks);
        body(&mut nest);
        let kernel = nest.finish();
        let number = match self.kernels.get(&kernel) {
            Some(k) => *k,
            None => {
                self.program.kernels.push(kernel.clone());
                self.kernels.insert(kernel, self.program.kernels.len() - 1);
                self.program.kernels.len() - 1
            }
        };
        self.step(Work::Kernel { kernel: number, args: args.operands }, label);
    }

    /// The call with the back end's decision on what is packed.
    fn decided(&self, mut call: KernelCall) -> KernelCall {
        let offered = call.packed().and_then(|(operand, packed)| packed.then_some(operand));
        let packs = offered.is_none_or(|operand| self.backend.packs(&call, operand));
        if let (false, Some((_, packed))) = (packs, call.packed()) {
            *packed = false;
        }
        call
    }

    fn call(&mut self, called: Called, out: &Memory, label: &[String]) -> Result<(), LowerError> {
        let Called { call, operands, offset, scale, bias, residual, others } = called;
        let call = self.decided(call);
        let needs = self.backend.prepare(&call).map_err(|error| LowerError::NoKernel {
            name: label.first().cloned().unwrap_or_default(),
            error,
        })?;
        let added = offset.iter().chain(&scale).chain(&bias).chain(&residual);
        let all = operands.iter().chain(added).chain([out]).chain(&others);
        let mut args: Vec<Operand> = all.map(Memory::operand).collect();
        for p in &needs.packed {
            let from = args[p.operand].buffer;
            args[p.operand].buffer = self.packed(from, &call, p);
        }
        if needs.workspace_bytes > 0 {
            let buffer = self.temporary(needs.workspace_bytes);
            args.push(Operand { buffer, offset_bytes: 0 });
        }
        self.step(Work::Call { call, needs, args }, label);
        Ok(())
    }

    pub(crate) fn step(&mut self, work: Work, label: &[String]) {
        self.steps += 1;
        let mut names = label.to_vec();
        names.dedup();
        self.program.body.push(Step { label: names.join(" + "), work, sizes: Vec::new() });
    }

    /// Lets outputs and the inputs they are carried to share memory. An output that would be written while its input is
    /// still to be read is written elsewhere, and copied when all else is done.
    pub(crate) fn carry(&mut self, carried: &[Carried]) {
        let mut late = Vec::new();
        for c in carried {
            let holds = |place: Place| -> Vec<usize> {
                let buffers = self.program.buffers.iter().enumerate();
                buffers.filter(|(_, b)| b.place == place).map(|(id, _)| id).collect()
            };
            let (inputs, outputs) = (holds(Place::Input(c.input)), holds(Place::Output(c.output)));
            // A state that is handed on as it is lies where it belongs.
            let bytes = self.program.outputs[c.output].bytes();
            self.program.body.retain(|step| match &step.work {
                Work::Copy { from, to, bytes: all } => {
                    !(inputs.contains(&from.buffer.0) && outputs.contains(&to.buffer.0) && *all == bytes)
                }
                _ => true,
            });
            if self.is_safe_in_place(&inputs, &outputs) {
                continue;
            }
            for &b in &outputs {
                self.program.buffers[b].place = Place::Arena(0);
            }
            late.extend(outputs.first().map(|&b| (BufferId(b), c.output)));
        }
        for (from, output) in late {
            let port = self.program.outputs[output].clone();
            let to = self.buffer(Place::Output(output), bytes_of(port.dtype, &port.shape));
            let contiguous = |buffer| Memory::contiguous(buffer, port.dtype, &port.shape);
            self.copy(&contiguous(from), &contiguous(to), std::slice::from_ref(&port.name));
        }
        self.program.carried = carried.to_vec();
    }

    /// Whether nothing reads the buffers of an input once those of an output are written, if both are one memory.
    fn is_safe_in_place(&self, inputs: &[usize], outputs: &[usize]) -> bool {
        let touches = |step: &Step, buffers: &[usize]| {
            let inside = walk(std::slice::from_ref(step)).flat_map(|(_, s)| s.operands());
            inside.into_iter().any(|a| buffers.contains(&a.buffer.0))
        };
        let steps = &self.program.body;
        let Some(last_read) = steps.iter().rposition(|s| touches(s, inputs)) else { return true };
        let Some(first_write) = steps.iter().position(|s| touches(s, outputs)) else { return true };
        match (last_read.cmp(&first_write), &steps[first_write].work) {
            (Ordering::Less, _) => true,
            (Ordering::Equal, Work::Kernel { kernel, args }) => {
                let at = |buffers: &[usize]| -> Vec<usize> {
                    (0..args.len()).filter(|&i| buffers.contains(&args[i].buffer.0)).collect()
                };
                let (reads, writes) = (at(inputs), at(outputs));
                let kernel = &self.program.kernels[*kernel];
                let whole = args.iter().all(|a| a.offset_bytes == 0);
                let [written] = writes.as_slice() else { return false };
                whole && reads.iter().all(|&r| kernel.reads_where_it_writes(r, *written))
            }
            _ => false,
        }
    }

    /// The program, with a place for every buffer and without what no step touches.
    pub(crate) fn finish(mut self) -> Program {
        let program = &mut self.program;
        let lives = place_temporaries(program, self.backend.preferences().buffer_align);
        drop_unread_constants(program, &lives);
        order_buffers(program, &lives);
        self.program
    }
}

fn bytes_of(dtype: DType, shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * dtype.bytes()
}

/// The memory arguments of a kernel, each once.
#[derive(Default)]
struct Arguments {
    args: Vec<Arg>,
    operands: Vec<Operand>,
}

impl Arguments {
    fn push(&mut self, m: &Memory, written: bool) -> usize {
        let operand = m.operand();
        let found =
            self.operands.iter().zip(&self.args).position(|(o, a)| *o == operand && a.dtype == m.dtype);
        found.filter(|_| !written).unwrap_or_else(|| {
            self.args.push(Arg { dtype: m.dtype, written });
            self.operands.push(operand);
            self.args.len() - 1
        })
    }

    fn memory(&mut self, m: &Memory) -> Producer {
        let arg = self.push(m, false);
        Producer::Memory { arg, dtype: m.dtype, shape: m.shape.clone(), strides: m.strides.clone() }
    }

    fn source(&mut self, feed: &Feed) -> Producer {
        match feed {
            Feed::Memory(m) => self.memory(m),
            Feed::Runs { memory, shape, axis, size } => Producer::Runs {
                source: Box::new(self.memory(memory)),
                shape: shape.clone(),
                axis: *axis,
                size: *size,
            },
            Feed::Expr(e) => Producer::Computed {
                shape: e.shape.clone(),
                function: e.rounded(),
                inputs: e.inputs.iter().map(|f| self.source(f)).collect(),
            },
        }
    }
}
