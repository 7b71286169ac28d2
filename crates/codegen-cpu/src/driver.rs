//! The function that runs the steps of a program.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I64};
use cranelift_codegen::ir::{
    Block, InstBuilder, MemFlagsData, SigRef, StackSlot, StackSlotData, StackSlotKind, Value,
};
use margay_kernels_cpu::abi;
use margay_loops::{Extent, Loop, Operand, Place, Program, Step, Work};

use crate::CpuIsa;
use crate::kernel::pointers;
use crate::scalar::Ops;

/// One parallel region: a kernel with its parameters.
pub(crate) struct Launch {
    /// Its number among the regions of the program.
    pub(crate) region: usize,
    /// The kernel's place in the table.
    pub(crate) slot: usize,
    /// The first word of the parameters.
    pub(crate) params: usize,
    /// Number of items, not 0.
    pub(crate) items: usize,
    /// Items that run together at least.
    pub(crate) grain: usize,
}

/// Writes the body of a function with the signature of a driver. `launches` are those of every step, in the order of
/// the steps' numbers. The driver returns early when a region reports a fault.
pub(crate) fn build(
    program: &Program,
    launches: &[Vec<Launch>],
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
    let mut launches = launches.iter();
    let launches: &mut dyn Iterator<Item = &Vec<Launch>> = &mut launches;
    let mut w = Writer {
        ops,
        program,
        launches,
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
    launches: &'a mut dyn Iterator<Item = &'a Vec<Launch>>,
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
            let launches = self.launches.next().expect("every step has its list of regions");
            match &step.work {
                Work::Kernel { .. } | Work::Call { .. } | Work::Copy { .. } => {
                    if !launches.is_empty() {
                        self.fill_args(&step.operands());
                    }
                    launches.iter().for_each(|launch| self.launch(launch));
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

    /// Writes the pointers of a step's arguments to the stack.
    fn fill_args(&mut self, args: &[Operand]) {
        for (i, operand) in args.iter().enumerate() {
            let pointer = self.pointer(*operand);
            self.ops.b.ins().stack_store(I64, pointer, self.args, 8 * i as i32);
        }
    }

    fn launch(&mut self, launch: &Launch) {
        let parallel = self.word(self.table, 0);
        let kernel = self.word(self.table, launch.slot);
        let params = self.ops.b.ins().iadd_imm_s(self.params, 8 * launch.params as i64);
        let args = self.ops.b.ins().stack_addr(I64, self.args, 0);
        let items = self.ops.iconst(I64, launch.items as i64);
        let grain = self.ops.iconst(I64, launch.grain as i64);
        let region = self.ops.iconst(I64, launch.region as i64);
        let call = [self.context, kernel, params, args, items, grain, region];
        let call = self.ops.b.ins().call_indirect(self.parallel, parallel, &call);
        let fault = self.ops.b.inst_results(call)[0];
        let next = self.ops.b.create_block();
        self.ops.b.ins().brif(fault, self.exit, &[], next, &[]);
        self.ops.b.switch_to_block(next);
    }

    fn word(&mut self, table: Value, index: usize) -> Value {
        self.ops.b.ins().load(I64, MemFlagsData::trusted().with_readonly(), table, 8 * index as i32)
    }
}
