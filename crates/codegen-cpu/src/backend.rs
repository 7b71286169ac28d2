//! The processor back end as a value: hand-written kernels, generated code and predicted times of one class.

use std::fmt;

use margay_kernels_cpu::abi::BUFFER_ALIGN;
use margay_kernels_cpu::{CpuTarget, this_machine};
use margay_loops::{
    Backend, Code, CompileError, KernelCall, Needs, NoKernel, Operations, Preferences, Program,
};
use margay_tensor::StoredTensor;

use crate::chunks::MIN_EXTENT;
use crate::emit::emit;
use crate::vector::LANES;
use crate::{CodegenError, CostModel, CpuIsa};

/// The name of the back end.
pub const NAME: &str = "cpu";

/// The back end for a class of processors.
#[derive(Clone)]
pub struct CpuBackend {
    target: CpuTarget,
    isa: CpuIsa,
    cost: CostModel,
}

impl CpuBackend {
    /// The back end for the class of a target.
    ///
    /// # Errors
    /// [`CodegenError::UnknownCpu`] for a class of another architecture.
    pub fn new(target: CpuTarget) -> Result<CpuBackend, CodegenError> {
        let isa = CpuIsa::for_class(target.name())?;
        let cost = CostModel::builtin(target.name()).expect("every class has a cost model, as a test checks");
        Ok(CpuBackend { target, isa, cost })
    }

    /// The same with other predicted times.
    #[must_use]
    pub fn with_cost(self, cost: CostModel) -> CpuBackend {
        CpuBackend { cost, ..self }
    }

    /// Its hand-written kernels.
    pub fn kernels(&self) -> CpuTarget {
        self.target
    }
}

impl fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuBackend({})", self.target.name())
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn target(&self) -> &str {
        self.target.name()
    }

    fn device(&self) -> String {
        NAME.to_owned()
    }

    fn preferences(&self) -> Preferences {
        let extent_steps = vec![LANES as usize, MIN_EXTENT];
        Preferences {
            buffer_align: BUFFER_ALIGN,
            channels_last: true,
            features_in_attention: true,
            max_fused: 48,
            cheap_operations: 4,
            extent_steps,
        }
    }

    fn packs(&self, _: &KernelCall, _: usize) -> bool {
        true
    }

    fn prepare(&self, call: &KernelCall) -> Result<Needs, NoKernel> {
        Ok(self.target.prepare(call)?.needs)
    }

    fn pack(&self, call: &KernelCall, operand: usize, stored: &StoredTensor) -> Result<Vec<u8>, NoKernel> {
        self.target.pack(call, operand, stored)
    }

    fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, NoKernel> {
        self.target.unpack(layout, shape, bytes)
    }

    fn compile(&self, program: &Program, constant_offsets: &[usize]) -> Result<Code, CompileError> {
        let prepare = |call: &KernelCall| self.target.prepare(call);
        let (code, regions) = emit(program, &self.isa, &prepare, constant_offsets)?;
        Ok(Code { bytes: code.encode(), machine: this_machine(), regions })
    }

    fn cost_model(&self) -> &str {
        &self.cost.name
    }

    fn call_seconds(&self, call: &KernelCall, threads: usize) -> f64 {
        self.cost.seconds(call, threads)
    }

    fn loop_seconds(&self, bytes: u64, operations: Operations, threads: usize) -> f64 {
        self.cost.loop_seconds(bytes, operations, threads)
    }
}
