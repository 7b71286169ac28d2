//! Nodes to groups: which neighbours run in one step.

use std::collections::HashMap;
use std::rc::Rc;

use margay_ir::ops::{Io, Lowered, View, range_of_integers};
use margay_ir::{Graph, NodeId, Op, Payload, Value};
use margay_loops::nest::{Nest, ScalarFn};
use margay_loops::{Backend, Carried, KernelCall, Preferences, Program, Scale};
use margay_tensor::{DType, Scales, Storage};

use crate::LowerError;
use crate::call::{name_of_numbers, whole};
use crate::control::Repeated;
use crate::emit::Emitter;
use crate::memory::Memory;

/// An operand of fused code.
#[derive(Clone)]
pub(crate) enum Feed {
    /// Read from memory.
    Memory(Memory),
    /// Read from memory, where a run of `size` elements along an axis shares one.
    Runs { memory: Memory, shape: Vec<usize>, axis: usize, size: usize },
    /// Computed where it is read.
    Expr(Rc<Expr>),
}

impl Feed {
    fn flops(&self) -> u64 {
        match self {
            Feed::Memory(_) | Feed::Runs { .. } => 0,
            Feed::Expr(e) => e.flops,
        }
    }
}

/// An elementwise computation that nobody has written to memory yet.
pub(crate) struct Expr {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// Gives the value before it is rounded to its type.
    pub(crate) function: ScalarFn,
    pub(crate) inputs: Vec<Feed>,
    /// Operations per element, of the whole tree.
    pub(crate) flops: u64,
    /// Nodes of the whole tree.
    pub(crate) nodes: usize,
    pub(crate) label: Label,
}

impl Expr {
    /// The function with the rounding that a store and a load would do.
    pub(crate) fn rounded(&self) -> ScalarFn {
        let (function, dtype) = (self.function.clone(), self.dtype);
        match dtype.computed() == dtype {
            true => function,
            false => Rc::new(move |n, x| {
                let y = function(n, x);
                n.rounded(y, dtype)
            }),
        }
    }
}

/// Code between an anchor and its store. `None` stands for the anchor's value.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) function: ScalarFn,
    pub(crate) inputs: Vec<Option<Feed>>,
}

/// The part of a group that is not elementwise.
pub(crate) enum Anchor {
    /// A loop nest, and the elementwise code between its values and its store.
    Nest {
        body: Rc<dyn Fn(&mut Nest)>,
        inputs: Vec<Feed>,
        stages: Vec<Stage>,
        /// Results after the first.
        others: Vec<Memory>,
    },
    /// A hand-written kernel.
    Call(Box<Called>),
}

/// A kernel call with its memory.
pub(crate) struct Called {
    pub(crate) call: KernelCall,
    pub(crate) operands: Vec<Memory>,
    pub(crate) offset: Option<Memory>,
    pub(crate) scale: Option<Memory>,
    pub(crate) bias: Option<Memory>,
    pub(crate) residual: Option<Memory>,
    /// Results after the first.
    pub(crate) others: Vec<Memory>,
}

/// A loop nest or kernel call that nobody has run yet.
pub(crate) struct Anchored {
    pub(crate) anchor: Anchor,
    pub(crate) shape: Vec<usize>,
    /// The layout of the result if it is not row-major.
    pub(crate) strides: Option<Vec<i64>>,
    pub(crate) label: Label,
}

/// Names of the nodes of a group.
pub(crate) type Label = Vec<String>;

/// What a value is so far.
pub(crate) enum Held {
    Memory(Memory),
    Expr(Rc<Expr>),
    Anchored(Box<Anchored>),
}

/// The most bytes of one tensor: a tebibyte.
const MAX_TENSOR_BYTES: u64 = 1 << 40;

/// Lowers a graph at stage `Lowerable` for a back end.
pub fn lower(g: &Graph, backend: &dyn Backend) -> Result<Program, LowerError> {
    lower_carrying(g, backend, &[])
}

/// Lowers a graph at stage `Lowerable` some of whose outputs are inputs of the next run; they are updated in place.
/// No input and no output occurs twice.
pub fn lower_carrying(g: &Graph, backend: &dyn Backend, carried: &[Carried]) -> Result<Program, LowerError> {
    for c in carried {
        let (input, output) = (g.ty(g.inputs()[c.input].into()), g.ty(g.outputs()[c.output].value));
        if input != output {
            let name = g.outputs()[c.output].name.to_string();
            return Err(LowerError::Carried { name, input: input.to_string(), output: output.to_string() });
        }
    }
    let mut emit = Emitter::new(g, backend);
    let mut grouper = Grouper {
        g,
        preferences: backend.preferences(),
        emit: &mut emit,
        held: HashMap::new(),
        inner: false,
    };
    let order = g.order();
    let last = last_readers(g, &order);
    for n in order {
        grouper.visit(n)?;
        for v in g.inputs_of(n) {
            if last.get(&v) == Some(&n) {
                grouper.held.remove(&v);
            }
        }
    }
    for (i, o) in g.outputs().iter().enumerate() {
        let memory = grouper.memory_of(o.value)?;
        grouper.emit.output(i, &memory)?;
        grouper.emit.expect_short(&o.name)?;
    }
    emit.carry(carried);
    let program = emit.finish();
    program.verify().map_err(LowerError::Broken)?;
    Ok(program)
}

/// By value the last of some nodes that reads it. Outputs have none, nor what casts read: what reads a cast may read that in
/// its place ([`Grouper::rounding`]).
fn last_readers(g: &Graph, order: &[NodeId]) -> HashMap<Value, NodeId> {
    let mut last: HashMap<Value, NodeId> = HashMap::with_capacity(order.len());
    for &n in order {
        last.extend(g.inputs_of(n).into_iter().map(|v| (v, n)));
    }
    let casts = order.iter().filter(|n| matches!(g.op(**n), Op::Cast(_)));
    for v in casts.flat_map(|n| g.inputs_of(*n)).chain(g.outputs().iter().map(|o| o.value)) {
        last.remove(&v);
    }
    last
}

/// How the operands of a node are shown to its operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Form {
    /// What is rounded by casts is shown as rounded.
    pub(crate) rounded: bool,
    /// Constants are shown as they are stored, not as numbers.
    pub(crate) stored: bool,
    /// 16-bit floats are shown as f32.
    pub(crate) widened: bool,
}

pub(crate) struct Grouper<'g, 'm, 'e> {
    pub(crate) g: &'g Graph,
    pub(crate) preferences: Preferences,
    pub(crate) emit: &'m mut Emitter<'e>,
    pub(crate) held: HashMap<Value, Held>,
    /// Whether the graph is inside an operator: its inputs are in memory already, and its outputs are not the program's.
    pub(crate) inner: bool,
}

impl Grouper<'_, '_, '_> {
    /// The extents of a value. Their product fits: sums and products of sizes do not overflow later.
    pub(crate) fn known(&self, n: NodeId, v: Value) -> Result<Vec<usize>, LowerError> {
        let (op, name) = (self.g.op(n).name(), self.g.node(n).origin.name().to_string());
        let ty = self.g.ty(v);
        let Some(extents) = ty.extents() else {
            return Err(LowerError::Unbound { op, name, ty: ty.to_string() });
        };
        let bytes = extents.iter().try_fold(ty.dtype.bytes(), |n, &d| n.checked_mul(d.max(1)));
        match bytes {
            Some(b) if b as u64 <= MAX_TENSOR_BYTES => Ok(extents),
            _ => Err(LowerError::TooLarge { op, name, ty: ty.to_string(), limit: MAX_TENSOR_BYTES }),
        }
    }

    /// The operands and results of a node as its operator sees them, all row-major.
    pub(crate) fn io(&self, n: NodeId, form: Form) -> Result<Io, LowerError> {
        let operands = self.g.inputs_of(n);
        for v in operands.iter().copied().chain(self.g.values_of(n)) {
            self.known(n, v)?;
        }
        let mut io = self.g.io_of(n).expect("every extent is known");
        if form.widened {
            for shown in io.inputs.iter_mut().chain(&mut io.outputs) {
                let dtype = shown.dtype.computed();
                (shown.dtype, shown.storage) = (dtype, Storage::plain(dtype));
                if !form.rounded {
                    shown.rounded = dtype;
                }
            }
        }
        for (&v, shown) in operands.iter().zip(&mut io.inputs) {
            if form.rounded
                && let Some((_, to)) = self.rounding(v)
            {
                shown.rounded = to;
            }
            if let Some(constant) = self.g.constant(v) {
                shown.storage = if form.stored { constant.storage() } else { shown.storage };
                let read = constant.storage().is_plain(self.g.ty(v).dtype).then(|| constant.tensor());
                shown.range = read.and_then(range_of_integers);
            }
        }
        Ok(io)
    }

    /// What a value is made from and rounded to, if it is an f32 that was cast to a 16-bit float and back.
    pub(crate) fn rounding(&self, v: Value) -> Option<(Value, DType)> {
        let cast = |v: Value| match self.g.op(v.node) {
            Op::Cast(cast) => Some((cast.to, self.g.inputs_of(v.node)[0])),
            _ => None,
        };
        let (DType::F32, narrow) = cast(v)? else { return None };
        let (to, wide) = cast(narrow)?;
        (to.computed() != to && self.g.ty(wide).dtype == DType::F32).then_some((wide, to))
    }

    pub(crate) fn lowered(&self, n: NodeId, io: &Io) -> Result<Lowered, LowerError> {
        let node = self.g.node(n);
        node.op.lower(io).map_err(|e| LowerError::Unsupported {
            op: node.op.name(),
            name: node.origin.name().into(),
            why: e.to_string(),
        })
    }

    /// A constant: memory, or an expression that makes numbers of what is stored narrow.
    fn constant(&mut self, n: NodeId, payload: &Payload) -> Held {
        let whole = whole(payload);
        let stored = whole.as_ref().unwrap_or(payload.stored());
        let elements = self.emit.constant(&name_of_numbers(payload), stored);
        if stored.is_plain() {
            return Held::Memory(elements);
        }
        let (storage, shape) = (stored.storage(), stored.shape());
        let layout = storage.layout(shape);
        let mut inputs = vec![Feed::Memory(elements.clone())];
        for (present, dtype, at) in [
            (stored.scales().is_some(), storage.scale_type, layout.scales_at),
            (stored.zero_points().is_some(), storage.dtype, layout.zero_points_at),
        ] {
            let Some(steps) = storage.scales_shape(shape).filter(|_| present) else { continue };
            let mut memory = Memory::contiguous(elements.buffer, dtype, &steps);
            memory.offset = (at / dtype.bytes()) as i64;
            inputs.push(match storage.scales {
                Scales::Block { axis, size } => Feed::Runs { memory, shape: shape.to_vec(), axis, size },
                Scales::None | Scales::Tensor | Scales::Axis(_) => Feed::Memory(memory),
            });
        }
        let function: ScalarFn = Rc::new(|n, x| {
            let mut number = n.cast(x[0], DType::F32);
            if let Some(&zero) = x.get(2) {
                let zero = n.cast(zero, DType::F32);
                number = n.sub(number, zero);
            }
            x.get(1).map_or(number, |&scale| n.mul(number, scale))
        });
        let (dtype, flops) = (stored.dtype(), inputs.len() as u64);
        let label = vec![self.g.label(n)];
        Held::Expr(Rc::new(Expr { dtype, shape: shape.to_vec(), function, inputs, flops, nodes: 1, label }))
    }

    pub(crate) fn visit(&mut self, n: NodeId) -> Result<(), LowerError> {
        let node = self.g.node(n);
        self.emit.expect_short(node.origin.name())?;
        let v = Value::from(n);
        let shape = self.known(n, v)?;
        match &node.op {
            Op::Input(_) if self.inner => return Ok(()),
            Op::Input(_) => {
                let memory = self.emit.input(n, node.types[0].dtype, &shape);
                self.held.insert(v, Held::Memory(memory));
                return Ok(());
            }
            Op::Const(c) => {
                let held = self.constant(n, &c.payload);
                self.held.insert(v, held);
                return Ok(());
            }
            _ => {}
        }
        let lowered = match self.lowered(n, &self.io(n, Form::default())?)? {
            Lowered::CallOrNest(call, _) if self.emit.needs(&call).is_some() => Lowered::Call(call),
            Lowered::CallOrNest(_, nest) => Lowered::Nest(nest),
            other => other,
        };
        let held = match lowered {
            Lowered::Leaf => return Ok(()),
            Lowered::If { then, otherwise } => return self.branch(n, &then, &otherwise),
            Lowered::Loop { body, max, carried, condition } => {
                return self.repeat(n, &Repeated { body: &body, max, carried, condition });
            }
            Lowered::View(view) => self.view(n, &view, shape)?,
            Lowered::Elementwise(function) => self.elementwise(n, function, shape)?,
            Lowered::Nest(body) => {
                self.lay_out_rows(n)?;
                let inputs = self
                    .g
                    .inputs_of(n)
                    .into_iter()
                    .map(|v| self.feed(v, 1, true))
                    .collect::<Result<Vec<_>, _>>()?;
                let anchor = Anchor::Nest { body, inputs, stages: Vec::new(), others: self.others(n)? };
                self.anchored(n, anchor, shape, None)
            }
            Lowered::Call(_) | Lowered::CallOrNest(..) => self.call(n, shape)?,
        };
        self.held.insert(v, held);
        // Whoever reads another result reads it from memory.
        let kept = self.rounding(v).is_some();
        if !kept && (self.g.sole_user(v).is_none() || node.types.len() > 1) {
            self.memory_of(v)?;
        }
        Ok(())
    }

    /// The first output of the program that the value is, if any.
    pub(crate) fn output_of(&self, v: Value) -> Option<usize> {
        self.g.outputs_of(v).first().copied().filter(|_| !self.inner)
    }

    pub(crate) fn anchored(
        &self,
        n: NodeId,
        anchor: Anchor,
        shape: Vec<usize>,
        strides: Option<Vec<i64>>,
    ) -> Held {
        let label = vec![self.g.label(n)];
        Held::Anchored(Box::new(Anchored { anchor, shape, strides, label }))
    }

    /// A result [batch, head, row, dim] that is read as [batch, row, head, dim] is written in that order, if the kernel
    /// can. Changes the call and returns the strides of the result.
    pub(crate) fn read_transposed(&self, v: Value, call: &mut KernelCall) -> Option<Vec<i64>> {
        let strides = call.transposable(usize::from(v.out))?;
        let turns = |op: &Op| matches!(op, Op::Transpose(t) if t.perm == [0, 2, 1, 3]);
        let [_, heads, rows, dim] = *self.g.ty(v).extents()? else { return None };
        if !self.g.users_of(v).iter().any(|(user, _)| turns(self.g.op(*user))) {
            return None;
        }
        *strides = [rows * heads * dim, dim, heads * dim];
        Some([rows * heads * dim, dim, heads * dim, 1].map(|s| s as i64).to_vec())
    }

    /// The value in memory; runs what was put off.
    pub(crate) fn memory_of(&mut self, v: Value) -> Result<Memory, LowerError> {
        let memory = match self.held.remove(&v) {
            Some(Held::Memory(m)) => m,
            Some(Held::Expr(e)) => self.emit.expr(self.g.ty(v).dtype, &e, self.output_of(v))?,
            Some(Held::Anchored(a)) => self.emit.anchored(self.g.ty(v).dtype, *a, self.output_of(v))?,
            None => unreachable!("operands come before their readers in topological order"),
        };
        self.held.insert(v, Held::Memory(memory.clone()));
        Ok(memory)
    }

    /// The value as an operand of fused code that reads each of its elements `repeats` times or more.
    fn feed(&mut self, v: Value, repeats: usize, many_passes: bool) -> Result<Feed, LowerError> {
        let inline = match self.held.get(&v) {
            Some(Held::Expr(e)) => {
                e.nodes < self.preferences.max_fused
                    && (e.flops <= self.preferences.cheap_operations || (repeats == 1 && !many_passes))
            }
            _ => false,
        };
        if inline && let Some(Held::Expr(e)) = self.held.get(&v) {
            return Ok(Feed::Expr(e.clone()));
        }
        self.memory_of(v).map(Feed::Memory)
    }

    fn view(&mut self, n: NodeId, view: &View, shape: Vec<usize>) -> Result<Held, LowerError> {
        let operand = self.g.inputs_of(n)[0];
        let memory = self.memory_of(operand)?;
        let memory = match memory.view(view, &shape) {
            Some(m) => m,
            None => {
                let copy = self.emit.contiguous(&memory, &[self.g.label(n)])?;
                copy.view(view, &shape).unwrap_or_else(|| Memory::contiguous(copy.buffer, copy.dtype, &shape))
            }
        };
        Ok(Held::Memory(memory))
    }

    fn elementwise(&mut self, n: NodeId, function: ScalarFn, shape: Vec<usize>) -> Result<Held, LowerError> {
        let operands = self.g.inputs_of(n);
        for (slot, &v) in operands.iter().enumerate() {
            let once = operands.iter().filter(|&&w| w == v).count() == 1;
            let fits = matches!(self.held.get(&v), Some(Held::Anchored(a)) if a.shape == shape);
            let short = matches!(self.held.get(&v), Some(Held::Anchored(a)) if a.label.len() < self.preferences.max_fused);
            let same_dtype = self.g.ty(v).dtype == self.g.ty(n.into()).dtype;
            let converts = matches!(self.g.op(n), Op::Cast(_));
            if once
                && fits
                && short
                && (same_dtype || converts && self.is_call(v))
                && let Some(held) = self.absorb(n, slot, &function, &shape)?
            {
                return Ok(held);
            }
        }
        let elements = |s: &[usize]| s.iter().product::<usize>().max(1);
        let mut inputs = Vec::new();
        for &v in &operands {
            let readers = operands.iter().filter(|&&w| w == v).count();
            let repeats = readers * elements(&shape) / elements(&self.known(n, v)?);
            inputs.push(self.feed(v, repeats, false)?);
        }
        let io = self.io(n, Form::default())?;
        let own = self.g.op(n).cost(&io).flops / io.output_elements().max(1);
        let flops = own + inputs.iter().map(Feed::flops).sum::<u64>();
        let mut label: Label = Vec::new();
        let mut nodes = 1;
        for feed in &inputs {
            if let Feed::Expr(e) = feed {
                label.extend(e.label.iter().cloned());
                nodes += e.nodes;
            }
        }
        label.push(self.g.label(n));
        let dtype = self.g.ty(n.into()).dtype;
        Ok(Held::Expr(Rc::new(Expr { dtype, shape, function, inputs, flops, nodes, label })))
    }

    /// Whether a value is the result of a call that nobody has run yet.
    fn is_call(&self, v: Value) -> bool {
        matches!(self.held.get(&v), Some(Held::Anchored(a)) if matches!(a.anchor, Anchor::Call(_)))
    }

    /// Appends an elementwise node to the anchor that computes its operand number `slot`.
    fn absorb(
        &mut self,
        n: NodeId,
        slot: usize,
        function: &ScalarFn,
        shape: &[usize],
    ) -> Result<Option<Held>, LowerError> {
        let operands = self.g.inputs_of(n);
        let anchor_value = operands[slot];
        // The other operands first, so that the anchor can be taken out whole.
        let is_call = self.is_call(anchor_value);
        let mut others: Vec<Option<Feed>> = Vec::new();
        for (i, &v) in operands.iter().enumerate() {
            others.push(match (i == slot, is_call) {
                (true, _) => None,
                (false, true) => Some(Feed::Memory(self.memory_of(v)?)),
                (false, false) => {
                    let elements = |s: &[usize]| s.iter().product::<usize>().max(1);
                    let repeats = elements(shape) / elements(&self.known(n, v)?);
                    Some(self.feed(v, repeats, false)?)
                }
            });
        }
        let Some(Held::Anchored(mut a)) = self.held.remove(&anchor_value) else { return Ok(None) };
        let taken = match &mut a.anchor {
            Anchor::Nest { stages, .. } => {
                let dtype = self.g.ty(anchor_value).dtype;
                let function = with_rounded_operand(function.clone(), slot, dtype);
                stages.push(Stage { function, inputs: others });
                true
            }
            Anchor::Call(called) => {
                let other = others.into_iter().flatten().find_map(|f| match f {
                    Feed::Memory(m) => Some(m),
                    Feed::Runs { .. } | Feed::Expr(_) => None,
                });
                extend_epilogue(self.g.op(n), called, other, shape)
            }
        };
        if taken {
            a.label.push(self.g.label(n));
            return Ok(Some(Held::Anchored(a)));
        }
        self.held.insert(anchor_value, Held::Anchored(a));
        Ok(None)
    }
}

/// A function one of whose operands is a value of a type that has not been stored, and so not been rounded, yet.
fn with_rounded_operand(function: ScalarFn, slot: usize, dtype: DType) -> ScalarFn {
    if dtype.computed() == dtype {
        return function;
    }
    Rc::new(move |n, x| {
        let mut x = x.to_vec();
        x[slot] = n.rounded(x[slot], dtype);
        function(n, &x)
    })
}

/// Moves an elementwise operator into the epilogue of a call, if the epilogue has a place for it.
fn extend_epilogue(op: &Op, called: &mut Called, other: Option<Memory>, shape: &[usize]) -> bool {
    let channel_axis = shape.len() - 1;
    let along_channels = other.as_ref().is_some_and(|other| {
        let added = shape.len() - other.shape.len();
        other.shape.iter().enumerate().all(|(i, &d)| d == 1 || i + added == channel_axis)
            && other.elements() == shape[channel_axis]
            && other.is_contiguous()
    });
    let sums = called.call.sums_of_integers().filter(|result| **result == DType::I32);
    if let Op::Cast(cast) = op {
        let made = sums.filter(|_| cast.to == DType::F32);
        return made.map(|result| *result = DType::F32).is_some();
    }
    if sums.is_some() {
        return extend_sums(op, called, other, along_channels);
    }
    if let (Op::Mul(_), Some(_)) = (op, called.call.sums_of_integers()) {
        return extend_scale(called, other, along_channels);
    }
    let Some(epilogue) = called.call.epilogue() else { return false };
    let activation = op.facts().elementwise.and_then(|e| e.activation);
    if activation.is_some() {
        let free = epilogue.activation.is_none();
        if free {
            epilogue.activation = activation;
            epilogue.residual_first = epilogue.residual;
        }
        return free;
    }
    let (Op::Add(_), Some(other)) = (op, other) else { return false };
    if along_channels && !epilogue.bias && epilogue.activation.is_none() && !epilogue.residual {
        epilogue.bias = true;
        called.bias = Some(other);
        return true;
    }
    if other.shape == shape && other.is_contiguous() && !epilogue.residual {
        epilogue.residual = true;
        called.residual = Some(other);
        return true;
    }
    false
}

/// Adds integers, one for each column, to sums of them.
fn extend_sums(op: &Op, called: &mut Called, other: Option<Memory>, along_channels: bool) -> bool {
    let (Op::Add(_), Some(other), Some(epilogue)) = (op, other, called.call.epilogue()) else { return false };
    let free = along_channels && !epilogue.offset;
    if free {
        epilogue.offset = true;
        called.offset = Some(other);
    }
    free
}

/// Multiplies what was made of sums of integers with one number, or with one for each column.
fn extend_scale(called: &mut Called, other: Option<Memory>, along_channels: bool) -> bool {
    let (Some(other), Some(epilogue)) = (other, called.call.epilogue()) else { return false };
    let scale = match other.elements() {
        1 => Scale::One,
        _ if along_channels => Scale::Columns,
        _ => return false,
    };
    let free =
        epilogue.scale.is_none() && !epilogue.bias && epilogue.activation.is_none() && !epilogue.residual;
    if free {
        epilogue.scale = Some(scale);
        called.scale = Some(other);
    }
    free
}
