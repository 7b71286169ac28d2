//! Calls of functions of f64 that are written by hand: all functions in f64, and sin and cos of f32 far from 0.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, F64, I32, I64};
use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, Signature, Value};
use margay_kernels_cpu::abi::{SCALAR_TABLE_AT, ScalarFunction};
use margay_loops::Arithmetic;

use crate::kernel::Emitter;

/// The polynomials of sin and cos are exact enough for arguments of up to this size.
const NEAR: f64 = 1e4;

impl Emitter<'_, '_> {
    /// `f(x, y)` of scalars of f64.
    pub(crate) fn call_scalar(&mut self, function: ScalarFunction, x: Value, y: Value) -> Value {
        let trusted = MemFlagsData::trusted();
        let table = self.ops.b.ins().load(I64, trusted, self.scratch, SCALAR_TABLE_AT as i32);
        let address = self.ops.b.ins().load(I64, trusted, table, 8 * function as i32);
        let signature = match self.scalar_signature {
            Some(known) => known,
            None => {
                let mut signature = Signature::new(self.isa.target().default_call_conv());
                signature.params = vec![AbiParam::new(F64); 2];
                signature.returns = vec![AbiParam::new(F64)];
                self.ops.b.import_signature(signature)
            }
        };
        self.scalar_signature = Some(signature);
        let call = self.ops.b.ins().call_indirect(signature, address, &[x, y]);
        self.ops.b.inst_results(call)[0]
    }

    /// sin or cos of an f32 or of lanes of them: the polynomial near 0, a call elsewhere. Which of the two an element takes
    /// does not depend on its neighbours.
    pub(crate) fn circular(&mut self, function: ScalarFunction, x: Value) -> Value {
        let ty = self.ops.type_of(x);
        let size = self.ops.b.ins().fabs(x);
        let bound = self.ops.float(ty, NEAR);
        let near = self.ops.compare(FloatCC::LessThan, size, bound);
        let all = match ty {
            F32X4 => {
                let bytes = self.ops.bytes_of_mask(near);
                let ones = self.ops.iconst(I32, 0x0101_0101);
                self.ops.b.ins().icmp(IntCC::Equal, bytes, ones)
            }
            _ => near,
        };
        let (close, far, after) =
            (self.ops.b.create_block(), self.ops.b.create_block(), self.ops.b.create_block());
        let result = self.ops.b.append_block_param(after, ty);
        self.ops.b.ins().brif(all, close, &[], far, &[]);
        self.ops.b.switch_to_block(close);
        let y = if function == ScalarFunction::Sin { self.ops.sin(x) } else { self.ops.cos(x) };
        self.ops.b.ins().jump(after, &[y.into()]);
        self.ops.b.set_cold_block(far);
        self.ops.b.switch_to_block(far);
        let y = match ty {
            F32X4 => {
                let polynomial =
                    if function == ScalarFunction::Sin { self.ops.sin(x) } else { self.ops.cos(x) };
                let mut y = polynomial;
                for lane in 0..4 {
                    let x = self.ops.b.ins().extractlane(x, lane);
                    let exact = self.far(function, x);
                    y = self.ops.b.ins().insertlane(y, exact, lane);
                }
                self.ops.choose(near, polynomial, y)
            }
            _ => self.far(function, x),
        };
        self.ops.b.ins().jump(after, &[y.into()]);
        self.ops.b.switch_to_block(after);
        result
    }

    /// A function of one f32 by way of f64.
    fn far(&mut self, function: ScalarFunction, x: Value) -> Value {
        let wide = self.ops.b.ins().fpromote(F64, x);
        let y = self.call_scalar(function, wide, wide);
        self.ops.b.ins().fdemote(F32, y)
    }
}
