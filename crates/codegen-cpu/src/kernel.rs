//! One loop nest as one function.
//!
//! The items of a kernel are the positions of its parallel loops, flattened; with two or more of them the innermost
//! one runs whole inside each item. A run of items counts its axes up instead of dividing anew for every item.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{
    AbiParam, AliasRegion, AliasRegionData, InstBuilder, MemFlagsData, SigRef, Signature, Value,
};
use margay_loops::{Axis, Kernel, Literal, Reg, SizeId};
use margay_tensor::DType;
use smallvec::SmallVec;

use crate::nested::Values;
use crate::scalar::Ops;
use crate::statement::Copies;
use crate::vector::{self, LoopView, Varying};
use crate::{CodegenError, CpuIsa, chunks};

/// What a register holds: one scalar, or one vector per copy of an unrolled loop.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) values: Copies,
    pub(crate) wide: bool,
    /// How many loops surround the definition.
    pub(crate) depth: u32,
    pub(crate) literal: Option<Literal>,
}

/// The loop that runs in lanes at the moment.
#[derive(Clone)]
pub(crate) struct Lanes {
    pub(crate) axis: Axis,
    /// The other loop of a tile, which copies follow; without one they follow the lanes.
    pub(crate) across: Option<Axis>,
    pub(crate) copies: usize,
    pub(crate) varying: Varying,
}

/// Writes one kernel.
pub(crate) struct Emitter<'k, 'b> {
    pub(crate) ops: Ops<'b>,
    pub(crate) kernel: &'k Kernel,
    pub(crate) name: &'k str,
    /// Pointers with the flags of what they point to.
    pub(crate) args: Vec<(Value, MemFlagsData)>,
    /// Positions of the loops around, with the depth of the loop.
    pub(crate) axes: Vec<Option<(Value, u32)>>,
    pub(crate) regs: Vec<Option<Slot>>,
    pub(crate) lanes: Option<Lanes>,
    /// Whether the positions that a loop in lanes left over are being written: loops inside them join values in the
    /// order in which they do inside lanes, one by one.
    pub(crate) left_over: bool,
    /// How many loops surround the current place.
    pub(crate) depth: u32,
    pub(crate) params: Value,
    /// The values of its sizes.
    pub(crate) sizes: Vec<(SizeId, Value)>,
    pub(crate) scratch: Value,
    pub(crate) isa: &'k CpuIsa,
    /// The signature of row functions, once one is called.
    pub(crate) row_signature: Option<SigRef>,
    /// The signature of scalar functions, once one is called.
    pub(crate) scalar_signature: Option<SigRef>,
    /// Buffers in the scratch memory that the kernel uses at once.
    pub(crate) buffers: usize,
}

/// Writes the body of a function with the signature of a compiled kernel.
/// Returns the bytes of scratch memory that it needs behind the header.
pub(crate) fn build(
    kernel: &Kernel,
    name: &str,
    isa: &CpuIsa,
    mut ops: Ops<'_>,
) -> Result<usize, CodegenError> {
    let entry = ops.b.create_block();
    ops.b.append_block_params_for_function_params(entry);
    ops.b.switch_to_block(entry);
    let [params, args, scratch, begin, end] = *ops.b.block_params(entry) else {
        unreachable!("the signature of a kernel has five parameters");
    };
    let args = load_args(&mut ops, kernel, args);
    let sizes = load_sizes(&mut ops, kernel, params);
    let mut e = Emitter {
        ops,
        kernel,
        name,
        args,
        axes: vec![None; usize::from(kernel.axes)],
        regs: vec![None; kernel.regs.len()],
        lanes: None,
        left_over: false,
        depth: 0,
        params,
        sizes,
        scratch,
        isa,
        row_signature: None,
        scalar_signature: None,
        buffers: 0,
    };
    e.items(begin, end)?;
    e.ops.b.ins().return_(&[]);
    e.ops.b.seal_all_blocks();
    e.ops.b.finalize(isa.target().frontend_config());
    Ok(chunks::scratch_bytes(e.buffers))
}

/// The signature of a compiled kernel.
pub(crate) fn signature(isa: &CpuIsa) -> Signature {
    pointers(isa, 5)
}

/// A function of `n` words.
pub(crate) fn pointers(isa: &CpuIsa, n: usize) -> Signature {
    let mut signature = Signature::new(isa.target().default_call_conv());
    signature.params = vec![AbiParam::new(I64); n];
    signature
}

/// The values of the sizes of a kernel, which are its parameters behind the number of the step.
fn load_sizes(ops: &mut Ops<'_>, kernel: &Kernel, params: Value) -> Vec<(SizeId, Value)> {
    let constant = MemFlagsData::trusted().with_readonly();
    let load = |(i, size): (usize, SizeId)| (size, ops.b.ins().load(I64, constant, params, 8 + 8 * i as i32));
    kernel.sizes().into_iter().enumerate().map(load).collect()
}

/// The pointers of the arguments, each with the flags of its memory: regions of written arguments are their own.
fn load_args(ops: &mut Ops<'_>, kernel: &Kernel, args: Value) -> Vec<(Value, MemFlagsData)> {
    let constant = MemFlagsData::trusted().with_readonly();
    let pointers: Vec<Value> =
        (0..kernel.args.len()).map(|i| ops.b.ins().load(I64, constant, args, 8 * i as i32)).collect();
    let mut region = |i: usize| -> AliasRegion {
        ops.b
            .func
            .dfg
            .alias_regions
            .insert(AliasRegionData { user_id: i as u32, description: format!("argument {i}").into() })
    };
    let flags = kernel.args.iter().enumerate().map(|(i, arg)| {
        let flags = MemFlagsData::new().with_notrap();
        if arg.written { flags.with_alias_region(Some(region(i))) } else { flags.with_readonly() }
    });
    let flags: Vec<MemFlagsData> = flags.collect();
    pointers.into_iter().zip(flags).collect()
}

impl<'k> Emitter<'k, '_> {
    /// The error for a construct without translation.
    pub(crate) fn unsupported<T>(&self, construct: String) -> Result<T, CodegenError> {
        Err(CodegenError::Unsupported { kernel: self.name.to_string(), construct })
    }

    pub(crate) fn dtype(&self, r: Reg) -> DType {
        self.kernel.regs[r.0 as usize]
    }

    fn items(&mut self, begin: Value, end: Value) -> Result<(), CodegenError> {
        let kernel = self.kernel;
        let (before, loops, inside) = kernel.parallel_nest();
        let parallel: Vec<LoopView<'k>> = loops.into_iter().filter_map(LoopView::of).collect();
        if parallel.iter().any(|l| l.extent == Some(0)) {
            return Ok(());
        }
        self.block(before)?;
        let end = match parallel.split_first() {
            Some((outermost, inner)) if outermost.read.is_some() => {
                // Items are those of the bound; those beyond what was read are left out.
                let counted = inner.split_last().map_or(&[][..], |(_, counted)| counted);
                let mut items = self.positions(*outermost);
                for view in counted {
                    let each = self.positions(*view);
                    items = self.ops.b.ins().imul(items, each);
                }
                self.ops.b.ins().smin(end, items)
            }
            _ => end,
        };
        match parallel.split_last() {
            None => self.block(inside),
            Some((only, [])) => self.run(only.over_a_range(), begin, end),
            Some((last, outer)) => self.run_items(outer, *last, begin, end),
        }
    }

    /// Runs `last` whole for the positions `begin..end` of the flattened `outer` loops.
    fn run_items(
        &mut self,
        outer: &[LoopView<'k>],
        last: LoopView<'k>,
        begin: Value,
        end: Value,
    ) -> Result<(), CodegenError> {
        let tiled = outer.last().and_then(|around| vector::tile(self.kernel, *around, last));
        if let Some(varying) = tiled {
            return self.run_items_in_tiles(outer, last, varying, begin, end);
        }
        let start = self.position(outer, begin);
        let one = self.ops.iconst(I64, 1);
        self.count(begin, end, 1, None, start, &mut |e, _, position| {
            e.enter(outer, position);
            e.run_whole(last)?;
            Ok(e.next_position(outer, position, one))
        })?;
        Ok(())
    }

    /// The position of an item in the flattened loops, innermost first.
    pub(crate) fn position(&mut self, outer: &[LoopView<'k>], item: Value) -> Values {
        let mut rest = item;
        let mut position: Values = SmallVec::new();
        for view in outer[1..].iter().rev() {
            let extent = self.positions(*view);
            position.push(self.ops.b.ins().urem(rest, extent));
            rest = self.ops.b.ins().udiv(rest, extent);
        }
        position.push(rest);
        position
    }

    /// What follows is inside of the loops, at a position, which is innermost first.
    pub(crate) fn enter(&mut self, outer: &[LoopView<'k>], position: &[Value]) {
        for (view, value) in outer.iter().rev().zip(position) {
            self.axes[usize::from(view.axis.0)] = Some((*value, self.depth));
        }
    }

    /// Counts the innermost axis up by a step that does not lead beyond its end, carrying into the others. Positions are
    /// innermost first.
    pub(crate) fn next_position(
        &mut self,
        outer: &[LoopView<'k>],
        position: &[Value],
        step: Value,
    ) -> Values {
        let (zero, mut carry) = (self.ops.iconst(I64, 0), step);
        let mut next: Values = SmallVec::new();
        for (view, &value) in outer[1..].iter().rev().zip(position) {
            let extent = self.positions(*view);
            let sum = self.ops.b.ins().iadd(value, carry);
            let full = self.ops.b.ins().icmp(IntCC::Equal, sum, extent);
            next.push(self.ops.b.ins().select(full, zero, sum));
            carry = self.ops.b.ins().uextend(I64, full);
        }
        let outermost = position[outer.len() - 1];
        next.push(self.ops.b.ins().iadd(outermost, carry));
        next
    }
}
