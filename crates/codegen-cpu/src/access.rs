//! Positions, addresses, loads and stores.

use cranelift_codegen::ir::types::{F32X4, I32, I32X4, I64};
use cranelift_codegen::ir::{BlockArg, InstBuilder, MemFlagsData, Value};
use margay_loops::{Factor, Index, Literal, Reg, SizeId};
use margay_tensor::DType;
use smallvec::{SmallVec, smallvec};

use crate::kernel::Emitter;
use crate::scalar::{register_type, signed};
use crate::statement::Copies;
use crate::vector::LANES;

impl Emitter<'_, '_> {
    /// `scale · (Σ coefficient · axis + Σ coefficient · register)` plus `offset`, terms of outer loops first so that
    /// inner loops have little to add.
    pub(crate) fn index(&mut self, index: &Index, scale: i64, offset: i64) -> Value {
        let start = self.ops.iconst(I64, offset);
        self.index_from(start, index, scale)
    }

    fn index_from(&mut self, start: Value, index: &Index, scale: i64) -> Value {
        let mut terms: SmallVec<[(u32, Value, i64); 8]> = SmallVec::new();
        for (axis, c) in &index.axes {
            let (value, depth) =
                self.axes[usize::from(axis.0)].expect("an axis is used inside its loop only");
            terms.push((depth, value, *c));
        }
        for (r, c) in &index.regs {
            terms.push((self.slot(*r).depth, self.scalar(*r), *c));
        }
        for (size, factor) in &index.sizes {
            let size = self.size(*size);
            terms.push(match *factor {
                Factor::One => (0, size, 1),
                Factor::Axis(axis) => {
                    let (value, depth) =
                        self.axes[usize::from(axis.0)].expect("an axis is used inside its loop only");
                    (depth, self.ops.b.ins().imul(value, size), 1)
                }
                Factor::Reg(r) => {
                    let (value, depth) = (self.scalar(r), self.slot(r).depth);
                    (depth, self.ops.b.ins().imul(value, size), 1)
                }
            });
        }
        terms.sort_by_key(|t| t.0);
        terms.into_iter().fold(start, |sum, (_, value, coefficient)| {
            let factor = coefficient * scale;
            let term = match factor {
                1 => value,
                f if f > 0 && f.count_ones() == 1 => {
                    self.ops.b.ins().ishl_imm_u(value, i64::from(f.trailing_zeros()))
                }
                f => self.ops.b.ins().imul_imm_s(value, f),
            };
            self.ops.b.ins().iadd(sum, term)
        })
    }

    /// The value of a size, which was read from the parameters at the start.
    pub(crate) fn size(&self, size: SizeId) -> Value {
        let place = self.sizes.iter().position(|(known, _)| *known == size);
        self.sizes[place.expect("a kernel lists its own sizes")].1
    }

    /// The address of an element, as a pointer and bytes to add.
    fn address(&mut self, arg: usize, index: &Index) -> (Value, i32, MemFlagsData) {
        let (pointer, flags) = self.args[arg];
        let element = self.kernel.args[arg].dtype.bytes() as i64;
        let offset = index.offset * element;
        let (start, offset) = match i32::try_from(offset) {
            Ok(small) if small < i32::MAX - 64 => (pointer, small),
            Ok(_) | Err(_) => (self.ops.b.ins().iadd_imm_s(pointer, offset), 0),
        };
        (self.index_from(start, index, element), offset, flags)
    }

    /// How many vectors an access along an index moves; `None` for a scalar one.
    fn lanes_of(&self, index: &Index) -> Option<usize> {
        self.lanes.as_ref().filter(|l| index.moves_along(l.axis)).map(|l| l.copies)
    }

    /// The element at an index, or the vectors that start there when the index moves along the lanes.
    pub(crate) fn read(&mut self, arg: usize, index: &Index) -> (Copies, bool) {
        let dtype = self.kernel.args[arg].dtype;
        let (address, offset, flags) = self.address(arg, index);
        let Some(copies) = self.lanes_of(index) else {
            let value = match dtype {
                DType::F16 | DType::BF16 => self.ops.load_half(dtype, false, flags, address, offset),
                _ => self.ops.b.ins().load(register_type(dtype), flags, address, offset),
            };
            let value = match dtype {
                DType::Bool => self.ops.convert(value, DType::U8, DType::Bool),
                _ => value,
            };
            return (smallvec![value], false);
        };
        let step = LANES as i32 * dtype.bytes() as i32;
        let values = (0..copies as i32).map(|c| {
            let offset = offset + c * step;
            match dtype {
                DType::Bool => {
                    let word = self.ops.load_lanes(I32, flags, address, offset);
                    self.ops.mask_of_bytes(word)
                }
                DType::F16 | DType::BF16 => self.ops.load_half(dtype, true, flags, address, offset),
                DType::I8 | DType::U8 => self.ops.load_bytes(signed(dtype), flags, address, offset),
                DType::I32 => self.ops.load_lanes(I32X4, flags, address, offset),
                _ => self.ops.load_lanes(F32X4, flags, address, offset),
            }
        });
        (values.collect(), true)
    }

    /// A load in a block of its own, so that memory is not touched when the test fails.
    pub(crate) fn guarded_load(&mut self, to: Reg, arg: usize, index: &Index, test: Reg, other: Literal) {
        let wide = self.lanes_of(index).is_some();
        let dtype = self.dtype(to);
        let mut otherwise = self.ops.literal(other);
        if wide {
            otherwise = self.ops.splat(dtype, otherwise);
        }
        let copies = self.lanes_of(index).unwrap_or(1);
        let (inside, after) = (self.ops.b.create_block(), self.ops.b.create_block());
        let ty = self.ops.type_of(otherwise);
        let results: Copies = (0..copies).map(|_| self.ops.b.append_block_param(after, ty)).collect();
        let test = self.scalar(test);
        self.ops.b.ins().brif(test, inside, &[], after, &vec![BlockArg::Value(otherwise); copies]);
        self.ops.b.switch_to_block(inside);
        let (values, _) = self.read(arg, index);
        let values: Vec<BlockArg> = values.into_iter().map(BlockArg::Value).collect();
        self.ops.b.ins().jump(after, &values);
        self.ops.b.switch_to_block(after);
        self.define(to, results, wide);
    }

    /// Writes an element, or vectors.
    pub(crate) fn store(&mut self, arg: usize, index: &Index, value: Reg) {
        let dtype = self.kernel.args[arg].dtype;
        let copies = self.lanes_of(index);
        let values = self.values(value, copies.is_some());
        let (address, offset, flags) = self.address(arg, index);
        let step = LANES as i32 * dtype.bytes() as i32;
        for c in 0..copies.unwrap_or(1) {
            let value = values[c % values.len()];
            let offset = offset + c as i32 * step;
            let value = match (copies, dtype) {
                (_, DType::F16 | DType::BF16) => {
                    self.ops.store_half(dtype, value, flags, address, offset);
                    continue;
                }
                (Some(_), DType::Bool) => self.ops.bytes_of_mask(value),
                (Some(_), DType::I8 | DType::U8) => self.ops.bytes_of_lanes(value, signed(dtype)),
                (Some(_) | None, _) => value,
            };
            self.ops.b.ins().store(flags, value, address, offset);
        }
    }
}
