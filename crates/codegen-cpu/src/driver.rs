//! The function that runs the steps of a program.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I64};
use cranelift_codegen::ir::{
    Block, InstBuilder, MemFlagsData, SigRef, StackSlot, StackSlotData, StackSlotKind, Value,
};
use margay_kernels_cpu::{Control, abi};
use margay_loops::{Extent, Loop, Operand, Place, Program, SizeId, Step, Work};

use crate::CpuIsa;
use crate::kernel::pointers;
use crate::scalar::Ops;

/// Writes the body of a function with the signature of a driver. `regions` are the numbers of parallel regions of every
/// step itself, in the order of the steps' numbers. The driver returns early when a region reports a fault.
pub(crate) fn build(
    program: &Program,
    regions: &[usize],
    constant_offsets: &[usize],
    isa: &CpuIsa,
    mut ops: Ops<'_>,
) {
    let entry = ops.b.create_block();
    let exit = ops.b.create_block();
    ops.b.append_block_params_for_function_params(entry);
    ops.b.switch_to_block(entry);
    let [table, context, bases, params] = *ops.b.block_params(entry) else {
        unreachable!("the signature of a driver has four parameters");
    };
    let most_args = program.steps().map(|(_, s)| s.operands().len()).max().unwrap_or(0);
    let slot = StackSlotData::new(StackSlotKind::ExplicitSlot, 8 * most_args.max(1) as u32, 3);
    let args = ops.b.create_sized_stack_slot(slot);
    let mut signature = pointers(isa, 7);
    signature.returns = signature.params[..1].to_vec();
    let parallel = ops.b.import_signature(signature);
    let mut w = Writer {
        ops,
        program,
        regions: regions.iter(),
        region: 0,
        constant_offsets,
        table,
        context,
        bases,
        params,
        args,
        parallel,
        exit,
    };
    w.block(&program.body);
    w.ops.b.ins().jump(exit, &[]);
    w.ops.b.switch_to_block(exit);
    w.ops.b.ins().return_(&[]);
    w.ops.b.seal_all_blocks();
    w.ops.b.finalize(isa.target().frontend_config());
}

struct Writer<'a, 'b> {
    ops: Ops<'b>,
    program: &'a Program,
    /// Those of the steps that are still to be written.
    regions: std::slice::Iter<'a, usize>,
    /// The number of the next region.
    region: usize,
    constant_offsets: &'a [usize],
    table: Value,
    context: Value,
    bases: Value,
    params: Value,
    args: StackSlot,
    parallel: SigRef,
    exit: Block,
}

impl Writer<'_, '_> {
    fn block(&mut self, steps: &[Step]) {
        for step in steps {
            let regions = *self.regions.next().expect("every step has its number of regions");
            match &step.work {
                Work::Kernel { .. } | Work::Call { .. } | Work::Copy { .. } => {
                    if regions > 0 {
                        self.fill_args(step);
                    }
                    (0..regions).for_each(|_| self.launch());
                }
                Work::If { test, then, otherwise } => self.branch(*test, then, otherwise),
                Work::Loop(l) => self.repeat(l),
            }
        }
    }

    fn branch(&mut self, test: Operand, then: &[Step], otherwise: &[Step]) {
        let [on_true, on_false, after] = std::array::from_fn(|_| self.ops.b.create_block());
        let test = self.truth(test);
        self.ops.b.ins().brif(test, on_true, &[], on_false, &[]);
        for (block, steps) in [(on_true, then), (on_false, otherwise)] {
            self.ops.b.switch_to_block(block);
            self.block(steps);
            self.ops.b.ins().jump(after, &[]);
        }
        self.ops.b.switch_to_block(after);
    }

    fn repeat(&mut self, l: &Loop) {
        let [head, body, after] = std::array::from_fn(|_| self.ops.b.create_block());
        let trips = match l.trips {
            Extent::Known(n) => self.ops.iconst(I64, n as i64),
            Extent::Sized { size, .. } => self.size(size),
            Extent::Read { from, bound } => {
                let pointer = self.pointer(from);
                let trips = self.ops.b.ins().load(I64, MemFlagsData::trusted(), pointer, 0);
                let bound = self.ops.iconst(I64, bound as i64);
                self.ops.b.ins().smin(trips, bound)
            }
        };
        let zero = self.ops.iconst(I64, 0);
        self.ops.b.append_block_param(head, I64);
        self.ops.b.ins().jump(head, &[zero.into()]);
        self.ops.b.switch_to_block(head);
        let at = self.ops.b.block_params(head)[0];
        let mut goes_on = self.ops.b.ins().icmp(IntCC::SignedLessThan, at, trips);
        if let Some(condition) = l.condition {
            let condition = self.truth(condition);
            goes_on = self.ops.b.ins().band(goes_on, condition);
        }
        self.ops.b.ins().brif(goes_on, body, &[], after, &[]);
        self.ops.b.switch_to_block(body);
        if let Some(counter) = l.counter {
            let pointer = self.pointer(counter);
            self.ops.b.ins().store(MemFlagsData::trusted(), at, pointer, 0);
        }
        self.block(&l.body);
        let next = self.ops.b.ins().iadd_imm_s(at, 1);
        self.ops.b.ins().jump(head, &[next.into()]);
        self.ops.b.switch_to_block(after);
    }

    /// A truth value in memory, as 0 or 1.
    fn truth(&mut self, operand: Operand) -> Value {
        let pointer = self.pointer(operand);
        let byte = self.ops.b.ins().load(I8, MemFlagsData::trusted(), pointer, 0);
        let zero = self.ops.iconst(I8, 0);
        self.ops.b.ins().icmp(IntCC::NotEqual, byte, zero)
    }

    fn pointer(&mut self, operand: Operand) -> Value {
        let (base, offset) = match self.program.buffers[operand.buffer.0].place {
            Place::Arena(at) => (0, at),
            Place::Constant(c) => (1, self.constant_offsets[c]),
            Place::Input(n) => (abi::input_base(n), 0),
            Place::Output(n) => (abi::input_base(self.program.inputs.len() + n), 0),
        };
        let pointer = self.word(self.bases, base);
        self.ops.b.ins().iadd_imm_s(pointer, (offset + operand.offset_bytes) as i64)
    }

    /// A size of the program.
    fn size(&mut self, size: SizeId) -> Value {
        self.word(self.params, size.0 as usize)
    }

    /// Writes the pointers of a step's arguments to the stack.
    fn fill_args(&mut self, step: &Step) {
        for (i, operand) in step.operands().into_iter().enumerate() {
            let pointer = match step.offset_size(i) {
                None => self.pointer(operand),
                Some(size) => {
                    let start = self.pointer(Operand { offset_bytes: 0, ..operand });
                    let offset = self.size(size);
                    self.ops.b.ins().iadd(start, offset)
                }
            };
            self.ops.b.ins().stack_store(I64, pointer, self.args, 8 * i as i32);
        }
    }

    /// Launches the next region as its control words say.
    fn launch(&mut self) {
        let region = self.region;
        self.region += 1;
        let parallel = self.word(self.table, 0);
        let sizes = self.program.open.sizes.len();
        let [items, grain, slot, params] = [Control::Items, Control::Grain, Control::Slot, Control::Params]
            .map(|control| self.word(self.params, control.at(sizes, region)));
        let kernel = self.indexed(self.table, slot);
        let kernel = self.ops.b.ins().load(I64, MemFlagsData::trusted().with_readonly(), kernel, 0);
        let params = self.indexed(self.params, params);
        let args = self.ops.b.ins().stack_addr(I64, self.args, 0);
        let region = self.ops.iconst(I64, region as i64);
        let call = [self.context, kernel, params, args, items, grain, region];
        let call = self.ops.b.ins().call_indirect(self.parallel, parallel, &call);
        let fault = self.ops.b.inst_results(call)[0];
        let next = self.ops.b.create_block();
        self.ops.b.ins().brif(fault, self.exit, &[], next, &[]);
        self.ops.b.switch_to_block(next);
    }

    /// Where the word of a number lies in a table.
    fn indexed(&mut self, table: Value, number: Value) -> Value {
        let bytes = self.ops.b.ins().ishl_imm_u(number, 3);
        self.ops.b.ins().iadd(table, bytes)
    }

    fn word(&mut self, table: Value, index: usize) -> Value {
        self.ops.b.ins().load(I64, MemFlagsData::trusted().with_readonly(), table, 8 * index as i32)
    }
}
