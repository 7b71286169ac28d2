//! Positions, addresses, loads and stores.

use cranelift_codegen::ir::types::{F32X4, I32, I32X4, I64};
use cranelift_codegen::ir::{BlockArg, InstBuilder, MemFlagsData, Value};
use margay_loops::{Axis, Factor, Index, Literal, Reg, SizeId};
use margay_tensor::DType;
use smallvec::{SmallVec, smallvec};

use crate::kernel::Emitter;
use crate::scalar::{register_type, signed};
use crate::statement::Copies;
use crate::vector::LANES;

/// A pointer, bytes to add, and the flags of the memory.
type Address = (Value, i32, MemFlagsData);

/// Those that the copies or lanes of an access have.
type Addresses = SmallVec<[Address; 4]>;

/// How an access meets the lanes.
enum Reach {
    /// They share one element.
    One,
    /// They share one element in each copy; copies follow a loop.
    Each { axis: Axis, copies: usize },
    /// Neighbours along the lanes; copies follow a loop, so many positions apart.
    Along { axis: Axis, step: i64, copies: usize },
    /// Neighbours across the copies of a tile; lanes follow a loop.
    Across { axis: Axis },
}

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

    /// The addresses of elements that lie `steps` positions of a loop behind the one at an index.
    fn addresses(&mut self, arg: usize, index: &Index, axis: Axis, steps: &[i64]) -> Addresses {
        let (base, offset, flags) = self.address(arg, index);
        let element = self.kernel.args[arg].dtype.bytes() as i64;
        let sized = index.sizes.iter().find(|(_, factor)| *factor == Factor::Axis(axis));
        let stride = sized.map(|(size, _)| {
            let size = self.size(*size);
            self.ops.b.ins().imul_imm_s(size, element)
        });
        let distance = index.coefficient(axis) * element;
        let mut found = Addresses::new();
        for step in steps {
            let place = match (stride, i32::try_from(i64::from(offset) + step * distance)) {
                (None, Ok(near)) if near < i32::MAX - 64 => (base, near, flags),
                (None, _) => (self.ops.b.ins().iadd_imm_s(base, step * distance), offset, flags),
                (Some(stride), _) => {
                    let by = self.ops.b.ins().imul_imm_s(stride, *step);
                    (self.ops.b.ins().iadd(base, by), offset, flags)
                }
            };
            found.push(place);
        }
        found
    }

    /// The address of an element, as a pointer and bytes to add.
    fn address(&mut self, arg: usize, index: &Index) -> Address {
        let (pointer, flags) = self.args[arg];
        let element = self.kernel.args[arg].dtype.bytes() as i64;
        let offset = index.offset * element;
        let (start, offset) = match i32::try_from(offset) {
            Ok(small) if small < i32::MAX - 64 => (pointer, small),
            Ok(_) | Err(_) => (self.ops.b.ins().iadd_imm_s(pointer, offset), 0),
        };
        (self.index_from(start, index, element), offset, flags)
    }

    /// How an access meets the lanes.
    fn reach(&self, index: &Index) -> Reach {
        let Some(lanes) = &self.lanes else { return Reach::One };
        let Some(across) = lanes.across else {
            return if index.moves_along(lanes.axis) {
                Reach::Along { axis: lanes.axis, step: LANES, copies: lanes.copies }
            } else {
                Reach::One
            };
        };
        match (index.moves_along(lanes.axis), index.moves_along(across)) {
            (false, false) => Reach::One,
            (false, true) => Reach::Each { axis: across, copies: lanes.copies },
            (true, moves) if index.coefficient(lanes.axis) == 1 => {
                Reach::Along { axis: across, step: 1, copies: if moves { lanes.copies } else { 1 } }
            }
            (true, _) => Reach::Across { axis: lanes.axis },
        }
    }

    /// The element at an index, or the vectors that the lanes and copies reach from there.
    pub(crate) fn read(&mut self, arg: usize, index: &Index) -> (Copies, bool) {
        match self.reach(index) {
            Reach::One => {
                let address = self.address(arg, index);
                (smallvec![self.read_scalar(arg, address)], false)
            }
            Reach::Each { axis, copies } => {
                let places = self.addresses(arg, index, axis, &steps(copies, 1));
                let splats = places.into_iter().map(|place| {
                    let value = self.read_scalar(arg, place);
                    self.ops.splat(self.kernel.args[arg].dtype, value)
                });
                (splats.collect(), true)
            }
            Reach::Along { axis, step, copies } => {
                let places = self.addresses(arg, index, axis, &steps(copies, step));
                (places.into_iter().map(|place| self.read_lanes(arg, place)).collect(), true)
            }
            Reach::Across { axis } => {
                let places = self.addresses(arg, index, axis, &steps(LANES as usize, 1));
                let rows: Copies = places.into_iter().map(|place| self.read_lanes(arg, place)).collect();
                (self.ops.transpose(&rows), true)
            }
        }
    }

    fn read_scalar(&mut self, arg: usize, (address, offset, flags): Address) -> Value {
        let dtype = self.kernel.args[arg].dtype;
        let value = match dtype {
            DType::F16 | DType::BF16 => self.ops.load_half(dtype, false, flags, address, offset),
            _ => self.ops.b.ins().load(register_type(dtype), flags, address, offset),
        };
        match dtype {
            DType::Bool => self.ops.convert(value, DType::U8, DType::Bool),
            _ => value,
        }
    }

    fn read_lanes(&mut self, arg: usize, (address, offset, flags): Address) -> Value {
        let dtype = self.kernel.args[arg].dtype;
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
    }

    /// A load in a block of its own, so that memory is not touched when the test fails.
    pub(crate) fn guarded_load(&mut self, to: Reg, arg: usize, index: &Index, test: Reg, other: Literal) {
        let (copies, wide) = match self.reach(index) {
            Reach::One => (1, false),
            Reach::Each { copies, .. } | Reach::Along { copies, .. } => (copies, true),
            Reach::Across { .. } => (LANES as usize, true),
        };
        let dtype = self.dtype(to);
        let mut otherwise = self.ops.literal(other);
        if wide {
            otherwise = self.ops.splat(dtype, otherwise);
        }
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

    /// Writes an element, or the vectors that the lanes and copies reach.
    pub(crate) fn store(&mut self, arg: usize, index: &Index, value: Reg) {
        let reach = self.reach(index);
        let values = self.values(value, !matches!(reach, Reach::One));
        match reach {
            Reach::One | Reach::Each { .. } => {
                let address = self.address(arg, index);
                self.write(arg, values[0], address);
            }
            Reach::Along { axis, step, copies } => {
                let places = self.addresses(arg, index, axis, &steps(copies, step));
                for (c, place) in places.into_iter().enumerate() {
                    self.write(arg, values[c % values.len()], place);
                }
            }
            Reach::Across { axis } => {
                let places = self.addresses(arg, index, axis, &steps(LANES as usize, 1));
                let rows: Copies = (0..LANES as usize).map(|c| values[c % values.len()]).collect();
                let columns = self.ops.transpose(&rows);
                for (column, place) in columns.into_iter().zip(places) {
                    self.write(arg, column, place);
                }
            }
        }
    }

    /// Writes a scalar or lanes.
    fn write(&mut self, arg: usize, value: Value, (address, offset, flags): Address) {
        let dtype = self.kernel.args[arg].dtype;
        let lanes = self.ops.type_of(value).is_vector();
        let value = match (lanes, dtype) {
            (_, DType::F16 | DType::BF16) => {
                return self.ops.store_half(dtype, value, flags, address, offset);
            }
            (true, DType::Bool) => self.ops.bytes_of_mask(value),
            (true, DType::I8 | DType::U8) => self.ops.bytes_of_lanes(value, signed(dtype)),
            (true | false, _) => value,
        };
        self.ops.b.ins().store(flags, value, address, offset);
    }
}

/// So many multiples of a step, from 0 on.
fn steps(count: usize, step: i64) -> SmallVec<[i64; 4]> {
    (0..count as i64).map(|i| i * step).collect()
}
