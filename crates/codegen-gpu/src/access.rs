//! Loads and stores, and the joining of partial results.

use margay_kernels_gpu::{Element, Type, Value, WARP};
use margay_loops::{Arithmetic, Binary, Combine, Comparison, Index, Literal, Reg};
use margay_tensor::DType;

use crate::CodegenError;
use crate::mapping::{LANES, Share};
use crate::nest::Emitter;

impl Emitter<'_> {
    fn address(&mut self, arg: usize, index: &Index) -> Value {
        let at = self.index(index, self.index);
        self.w.element(self.args[arg], at, Element::in_memory(self.kernel.args[arg].dtype))
    }

    /// Reads an element, or neighbours that go together. With a guard that is false nothing is read.
    pub(crate) fn read(&mut self, arg: usize, index: &Index, guard: Option<(Reg, Literal)>) -> Value {
        let Some((test, otherwise)) = guard else { return self.read_element(arg, index) };
        let (test, otherwise) = (self.scalar(test), self.w.literal(otherwise));
        self.w.begin_if(test, &[otherwise.ty]);
        let value = self.read_element(arg, index);
        self.w.otherwise(&[value]);
        self.w.end_if(&[otherwise])[0]
    }

    fn read_element(&mut self, arg: usize, index: &Index) -> Value {
        let (dtype, address) = (self.kernel.args[arg].dtype, self.address(arg, index));
        let lanes = if self.moves_in_lanes(index) { LANES } else { 1 };
        let held = self.w.load(Type { element: Element::in_memory(dtype), lanes }, address);
        match dtype {
            DType::Bool => {
                let zero = self.w.int(held.ty, 0);
                self.w.compare_ints(Comparison::NotEqual, held, zero)
            }
            DType::F16 | DType::BF16 => {
                let bits = self.w.resize(held, Element::I32, false);
                self.w.widen_half(bits, dtype)
            }
            _ => held,
        }
    }

    /// Writes an element. Beside the loops of a position that a block shares, its first thread does.
    pub(crate) fn write(&mut self, arg: usize, index: &Index, value: Reg) {
        let alone = self.depth == 0 && self.mapping.share == Share::Block;
        if alone {
            let first = self.is_first();
            self.w.begin_if(first, &[]);
        }
        let (dtype, address) = (self.kernel.args[arg].dtype, self.address(arg, index));
        let lanes = if self.moves_in_lanes(index) { LANES } else { 1 };
        let value = self.get(value);
        let value = self.w.splat(value, lanes);
        let held = match dtype {
            DType::Bool => self.w.resize(value, Element::I8, false),
            DType::F16 | DType::BF16 => {
                let bits = self.w.narrow_half(value, dtype);
                self.w.resize(bits, Element::I16, false)
            }
            _ => value,
        };
        self.w.store(held, address);
        if alone {
            self.w.end_if(&[]);
        }
    }

    /// The value that a reduction starts from.
    pub(crate) fn identity(&mut self, combine: Combine, dtype: DType) -> Result<Value, CodegenError> {
        let ty = Type::scalar(Element::of(dtype));
        if dtype.is_float() {
            return Ok(match combine {
                Combine::Sum => self.w.float(ty, 0.0),
                Combine::Product => self.w.float(ty, 1.0),
                Combine::Max => self.w.float(ty, f64::NEG_INFINITY),
                Combine::Min => self.w.float(ty, f64::INFINITY),
            });
        }
        let bits = ty.element.bits();
        let (low, high) = match dtype {
            DType::Bool => (0, 1),
            d if margay_kernels_gpu::is_signed(d) => (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits)),
            _ => (0, -1),
        };
        match combine {
            Combine::Sum | Combine::Product if dtype == DType::Bool => {
                self.unsupported(format!("{combine:?} of bool"))
            }
            Combine::Sum => Ok(self.w.int(ty, 0)),
            Combine::Product => Ok(self.w.int(ty, 1)),
            Combine::Max => Ok(self.w.int(ty, low)),
            Combine::Min => Ok(self.w.int(ty, high)),
        }
    }

    /// Joins a value into a partial result.
    pub(crate) fn combine(
        &mut self,
        combine: Combine,
        dtype: DType,
        value: Value,
        partial: Value,
    ) -> Result<Value, CodegenError> {
        if dtype.is_float() {
            return Ok(match combine {
                Combine::Sum => self.w.fadd(partial, value),
                Combine::Product => self.w.fmul(partial, value),
                Combine::Max => self.w.max(value, partial),
                Combine::Min => self.w.min(value, partial),
            });
        }
        let op = match combine {
            Combine::Sum => Binary::Add,
            Combine::Product => Binary::Mul,
            Combine::Max => Binary::Max,
            Combine::Min => Binary::Min,
        };
        self.binary_int(op, dtype, value, partial)
    }

    /// Joins the partial results of the threads of a block; every thread gets the same. Within a warp both of two threads
    /// join their values with each other's, at half the distance each time; then the results of the warps are joined in order.
    pub(crate) fn join(
        &mut self,
        combine: Combine,
        dtype: DType,
        partial: Value,
    ) -> Result<Value, CodegenError> {
        let mut value = partial;
        let mut distance = WARP / 2;
        while distance > 0 {
            let other = self.w.shuffle(value, distance);
            value = self.combine(combine, dtype, other, value)?;
            distance /= 2;
        }
        let warps = self.mapping.threads / WARP;
        if warps == 1 {
            return Ok(value);
        }
        self.join_warps(combine, dtype, value, warps)
    }

    fn join_warps(
        &mut self,
        combine: Combine,
        dtype: DType,
        value: Value,
        warps: usize,
    ) -> Result<Value, CodegenError> {
        let held = match value.ty.element {
            Element::I1 => Element::I8,
            other => other,
        };
        let slots = match self.exchange {
            Some(slots) => slots,
            None => {
                let slots = self.w.shared(8 * warps);
                *self.exchange.insert(slots)
            }
        };
        // What was exchanged before has been read.
        self.w.barrier();
        let size = self.w.int(Type::I32, WARP as i64);
        let (lane, warp) = (self.w.remainder(self.thread, size), self.w.divide(self.thread, size));
        let zero = self.w.int(Type::I32, 0);
        let is_first = self.w.compare_ints(Comparison::Equal, lane, zero);
        self.w.begin_if(is_first, &[]);
        let slot = self.w.element(slots, warp, Element::I64);
        let narrow = self.w.resize(value, held, false);
        self.w.store(narrow, slot);
        self.w.end_if(&[]);
        self.w.barrier();
        let mut all = None;
        for warp in 0..warps {
            let at = self.w.int(Type::I32, warp as i64);
            let slot = self.w.element(slots, at, Element::I64);
            let part = self.w.load(Type::scalar(held), slot);
            let part = self.w.resize(part, value.ty.element, false);
            all = Some(match all {
                None => part,
                Some(all) => self.combine(combine, dtype, part, all)?,
            });
        }
        Ok(all.expect("a block has warps"))
    }
}
