//! The function that runs the steps of a program.

use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{
    InstBuilder, MemFlagsData, SigRef, StackSlot, StackSlotData, StackSlotKind, Value,
};
use margay_kernels_cpu::abi;
use margay_loops::{Place, Program};

use crate::CpuIsa;
use crate::kernel::pointers;
use crate::scalar::Ops;

/// One parallel region: a kernel with its parameters.
pub(crate) struct Launch {
    /// The step whose arguments are handed over.
    pub(crate) step: usize,
    /// The kernel's place in the table.
    pub(crate) slot: usize,
    /// The first word of the parameters.
    pub(crate) params: usize,
    /// Number of items, not 0.
    pub(crate) items: usize,
    /// Items that run together at least.
    pub(crate) grain: usize,
}

/// Writes the body of a function with the signature of a driver.
pub(crate) fn build(
    program: &Program,
    launches: &[Launch],
    constant_offsets: &[usize],
    isa: &CpuIsa,
    mut ops: Ops<'_>,
) {
    let entry = ops.b.create_block();
    ops.b.append_block_params_for_function_params(entry);
    ops.b.switch_to_block(entry);
    let [table, context, bases, params] = *ops.b.block_params(entry) else {
        unreachable!("the signature of a driver has four parameters");
    };
    let most_args = program.steps.iter().map(|s| s.args.len()).max().unwrap_or(0);
    let slot = StackSlotData::new(StackSlotKind::ExplicitSlot, 8 * most_args.max(1) as u32, 3);
    let args = ops.b.create_sized_stack_slot(slot);
    let parallel = ops.b.import_signature(pointers(isa, 6));
    let mut w = Writer { ops, program, constant_offsets, table, context, bases, params, args, parallel };
    let mut filled = None;
    for launch in launches {
        if filled != Some(launch.step) {
            w.fill_args(launch.step);
            filled = Some(launch.step);
        }
        w.launch(launch);
    }
    w.ops.b.ins().return_(&[]);
    w.ops.b.seal_all_blocks();
    w.ops.b.finalize(isa.target().frontend_config());
}

struct Writer<'a, 'b> {
    ops: Ops<'b>,
    program: &'a Program,
    constant_offsets: &'a [usize],
    table: Value,
    context: Value,
    bases: Value,
    params: Value,
    args: StackSlot,
    parallel: SigRef,
}

impl Writer<'_, '_> {
    /// Writes the pointers of a step's arguments to the stack.
    fn fill_args(&mut self, step: usize) {
        for (i, operand) in self.program.steps[step].args.iter().enumerate() {
            let (base, offset) = match self.program.buffers[operand.buffer.0].place {
                Place::Arena(at) => (0, at),
                Place::Constant(c) => (1, self.constant_offsets[c]),
                Place::Input(n) => (abi::input_base(n), 0),
                Place::Output(n) => (abi::input_base(self.program.inputs.len() + n), 0),
            };
            let pointer = self.word(self.bases, base);
            let pointer = self.ops.b.ins().iadd_imm_s(pointer, (offset + operand.offset_bytes) as i64);
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
        let call = [self.context, kernel, params, args, items, grain];
        self.ops.b.ins().call_indirect(self.parallel, parallel, &call);
    }

    fn word(&mut self, table: Value, index: usize) -> Value {
        self.ops.b.ins().load(I64, MemFlagsData::trusted().with_readonly(), table, 8 * index as i32)
    }
}
