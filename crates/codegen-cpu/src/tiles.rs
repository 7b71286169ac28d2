//! Two parallel loops in tiles: where some accesses find neighbours in memory along the inner loop and others along the outer
//! one, as transpositions do.
//!
//! Row by row, each access of the second kind would touch a line of the cache for one element of it, and lines whose distance is
//! a power of two push each other out before the next row comes. A tile of four by four is loaded and stored in vectors, and
//! transposed in registers; tiles are walked in blocks of 16 by 16, so that lines are used up while they are there.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{BlockArg, InstBuilder, Value};

use crate::CodegenError;
use crate::kernel::{Emitter, Lanes};
use crate::nested::Values;
use crate::vector::{LANES, LoopView, TILES, Varying};

impl<'k> Emitter<'k, '_> {
    /// Runs `last` whole for the positions `begin..end` of the flattened `outer` loops, as many rows of the innermost of these
    /// at a time as make a block.
    pub(crate) fn run_items_in_tiles(
        &mut self,
        outer: &[LoopView<'k>],
        last: LoopView<'k>,
        varying: Varying,
        begin: Value,
        end: Value,
    ) -> Result<(), CodegenError> {
        let [head, tiled, single, next, exit] = std::array::from_fn(|_| self.ops.b.create_block());
        let start = self.position(outer, begin);
        let item = self.ops.b.append_block_param(head, I64);
        let position: Values = start.iter().map(|_| self.ops.b.append_block_param(head, I64)).collect();
        let step = self.ops.b.append_block_param(next, I64);
        let arguments = |item: Value, position: &[Value]| -> Vec<BlockArg> {
            std::iter::once(item).chain(position.iter().copied()).map(BlockArg::Value).collect()
        };
        let any = self.ops.b.ins().icmp(IntCC::SignedLessThan, begin, end);
        self.ops.b.ins().brif(any, head, &arguments(begin, &start), exit, &[]);

        self.ops.b.switch_to_block(head);
        self.depth += 1;
        self.enter(outer, &position);
        let mut rows = self.ops.b.ins().isub(end, item);
        if let [_, .., around] = outer {
            let extent = self.positions(*around);
            let left = self.ops.b.ins().isub(extent, position[0]);
            rows = self.ops.b.ins().smin(rows, left);
        }
        let most = self.ops.iconst(I64, TILES * LANES);
        let rows = self.ops.b.ins().smin(rows, most);
        let rows = self.whole_tiles(rows);
        self.ops.b.ins().brif(rows, tiled, &[], single, &[]);

        self.ops.b.switch_to_block(tiled);
        let around = *outer.last().expect("items have a loop");
        self.run_block(around, last, &varying, [position[0], rows])?;
        self.ops.b.ins().jump(next, &[BlockArg::Value(rows)]);

        self.ops.b.switch_to_block(single);
        self.enter(outer, &position);
        self.run_whole(last)?;
        let one = self.ops.iconst(I64, 1);
        self.ops.b.ins().jump(next, &[BlockArg::Value(one)]);

        self.ops.b.switch_to_block(next);
        let position = self.next_position(outer, &position, step);
        let item = self.ops.b.ins().iadd(item, step);
        let more = self.ops.b.ins().icmp(IntCC::SignedLessThan, item, end);
        self.ops.b.ins().brif(more, head, &arguments(item, &position), exit, &[]);
        self.depth -= 1;
        self.ops.b.switch_to_block(exit);
        Ok(())
    }

    /// Runs `last` whole for some rows of the loop around it, a multiple of [`LANES`].
    fn run_block(
        &mut self,
        around: LoopView<'k>,
        last: LoopView<'k>,
        varying: &Varying,
        [first, rows]: [Value; 2],
    ) -> Result<(), CodegenError> {
        let body: Vec<_> = last.body.iter().collect();
        let across = around.axis;
        let zero = self.ops.iconst(I64, 0);
        let extent = self.positions(last);
        let (below, whole) = (self.ops.b.ins().iadd(first, rows), self.whole_tiles(extent));
        let blocks = self.ops.b.ins().iadd_imm_s(whole, (TILES - 1) * LANES);
        self.count(zero, blocks, TILES * LANES, None, Values::new(), &mut |e, left, _| {
            let right = e.ops.b.ins().iadd_imm_s(left, TILES * LANES);
            let right = e.ops.b.ins().smin(right, whole);
            e.count(first, below, LANES, None, Values::new(), &mut |e, row, _| {
                e.axes[usize::from(across.0)] = Some((row, e.depth));
                e.lanes = Some(Lanes {
                    axis: last.axis,
                    across: Some(across),
                    copies: LANES as usize,
                    varying: varying.clone(),
                });
                e.steps(last, &body, left, right, LANES, None, Values::new())?;
                e.lanes = None;
                Ok(Values::new())
            })?;
            Ok(Values::new())
        })?;
        self.count(first, below, 1, None, Values::new(), &mut |e, row, _| {
            e.axes[usize::from(across.0)] = Some((row, e.depth));
            e.steps(last, &body, whole, extent, 1, None, Values::new())?;
            Ok(Values::new())
        })?;
        Ok(())
    }

    /// The greatest multiple of [`LANES`] that is not above a number.
    fn whole_tiles(&mut self, n: Value) -> Value {
        self.ops.b.ins().band_imm_s(n, -LANES)
    }
}
