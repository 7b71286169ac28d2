//! What the reference back end answers the compiler: it runs every call, stores constant right operands of products
//! column by column as numbers or bytes, and its code is the text of the program.

use margay_loops::{
    Backend, Code, CompileError, Constant, KernelCall, MatMul, Needs, NoKernel, Operations, Packed,
    Preferences, Program,
};
use margay_tensor::{DType, StoredTensor, Tensor};

/// Types of packed right operands, and the names of their layouts: element (i, j) of a matrix of k rows lies at j k + i.
const LAYOUTS: [(DType, &str); 3] =
    [(DType::F32, "columns"), (DType::I8, "columns_i8"), (DType::U8, "columns_u8")];

/// The type and the name of the layout of the packed right operand of a product: numbers, or bytes beside bytes.
fn layout(call: &MatMul) -> (DType, &'static str) {
    let dtype = if call.types.left.is_int() { call.types.right.dtype } else { DType::F32 };
    LAYOUTS.into_iter().find(|(of, _)| *of == dtype).unwrap_or(LAYOUTS[0])
}

/// The name of the back end and of the one class of machines it knows: all.
pub const NAME: &str = "reference";

/// What buffers begin at a multiple of, in bytes.
pub(crate) const BUFFER_ALIGN: usize = 16;

/// What an operation and a byte cost, in seconds: a guess at an interpreter. Threads do not help.
const SECONDS_PER_UNIT: f64 = 2e-8;

/// The reference back end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReferenceBackend;

impl ReferenceBackend {
    fn refused(&self, call: impl std::fmt::Display, why: String) -> NoKernel {
        NoKernel { target: NAME.to_owned(), call: call.to_string(), why }
    }
}

impl Backend for ReferenceBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn target(&self) -> &str {
        NAME
    }

    fn device(&self) -> String {
        NAME.to_owned()
    }

    fn preferences(&self) -> Preferences {
        Preferences {
            buffer_align: BUFFER_ALIGN,
            channels_last: false,
            features_in_attention: true,
            max_fused: 20,
            cheap_operations: 4,
            extent_steps: vec![],
        }
    }

    fn packs(&self, call: &KernelCall, operand: usize) -> bool {
        matches!((call, operand), (KernelCall::MatMul(_), 1))
    }

    fn prepare(&self, call: &KernelCall) -> Result<Needs, NoKernel> {
        if let KernelCall::Conv(c) = call
            && !c.types.right.is_plain(if c.types.left.is_int() { c.types.right.dtype } else { c.types.left })
        {
            return Err(self.refused(call, format!("a kernel stored {}", c.types.right)));
        }
        if let KernelCall::NonMaxSuppression(_) | KernelCall::Pool(_) | KernelCall::TopK(_) = call {
            return Err(self.refused(call, "it runs as a loop nest".to_owned()));
        }
        let packed = match call {
            KernelCall::MatMul(c) if c.b_packed => {
                let (dtype, layout) = layout(c);
                vec![Packed { operand: 1, layout: layout.to_owned(), bytes: c.k * c.n * dtype.bytes() }]
            }
            KernelCall::MatMul(_)
            | KernelCall::Conv(_)
            | KernelCall::ConvKernelGradient(_)
            | KernelCall::FeatureAttention(_)
            | KernelCall::Hadamard(_)
            | KernelCall::Attention(_)
            | KernelCall::AttentionGradient(_)
            | KernelCall::LinearAttention(_)
            | KernelCall::NonMaxSuppression(_)
            | KernelCall::Pool(_)
            | KernelCall::TopK(_) => Vec::new(),
        };
        Ok(Needs { workspace_bytes: 0, packed })
    }

    fn pack(&self, call: &KernelCall, operand: usize, stored: &StoredTensor) -> Result<Vec<u8>, NoKernel> {
        // A narrow constant is packed as its numbers.
        let tensor = stored.widened().decode();
        match (call, operand) {
            (KernelCall::MatMul(c), 1)
                if c.b_packed && tensor.len() == c.k * c.n && tensor.dtype() == layout(c).0 =>
            {
                Ok(transposed(tensor.bytes(), c.k, c.n, tensor.dtype().bytes()))
            }
            _ => Err(self.refused(call, format!("operand {operand}, {tensor:?}, is not packed"))),
        }
    }

    fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, NoKernel> {
        let asked = format_args!("unpack {layout} {shape:?}").to_string();
        let [outer @ .., k, n] = shape else {
            return Err(self.refused(asked, "it is no matrix".to_owned()));
        };
        let found = LAYOUTS.into_iter().find(|(_, name)| *name == layout).map(|(dtype, _)| dtype);
        let Some(dtype) = found
            .filter(|dtype| outer.iter().all(|&extent| extent == 1) && bytes.len() == dtype.bytes() * k * n)
        else {
            return Err(self.refused(asked, format!("{} bytes are no such matrix", bytes.len())));
        };
        let rows = transposed(bytes, *n, *k, dtype.bytes());
        Tensor::from_bytes(dtype, shape, &rows)
            .map(StoredTensor::from)
            .map_err(|e| self.refused(asked, e.to_string()))
    }

    fn compile(&self, program: &Program, constant_offsets: &[usize]) -> Result<Code, CompileError> {
        let offsets: String = constant_offsets.iter().map(|at| format!(" {at}")).collect();
        let text = format!("constants at{offsets}\n{program}");
        let regions = program.steps().map(|(_, step)| usize::from(step.blocks().is_empty()));
        Ok(Code { bytes: text.into_bytes(), machine: "any".to_owned(), regions: regions.collect() })
    }

    fn cost_model(&self) -> &str {
        "reference 1"
    }

    fn call_seconds(&self, call: &KernelCall, _threads: usize) -> f64 {
        call.flops() as f64 * SECONDS_PER_UNIT
    }

    fn loop_seconds(&self, bytes: u64, operations: Operations, _threads: usize) -> f64 {
        (bytes as f64 + operations.cheap as f64 + operations.evaluations as f64) * SECONDS_PER_UNIT
    }
}

/// The bytes of a constant as it is stored.
pub(crate) fn stored_bytes(constant: &Constant) -> Vec<u8> {
    match &constant.packed {
        None => constant.stored.to_bytes(),
        Some((call, packed)) => ReferenceBackend
            .pack(call, packed.operand, &constant.stored)
            .expect("what was asked for when it was lowered"),
    }
}

/// The transpose of a matrix of `rows` rows of elements of `size` bytes.
fn transposed(bytes: &[u8], rows: usize, columns: usize, size: usize) -> Vec<u8> {
    let element = |i: usize, j: usize| &bytes[size * (i * columns + j)..][..size];
    let order = (0..columns).flat_map(|j| (0..rows).map(move |i| (i, j)));
    order.flat_map(|(i, j)| element(i, j).to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use margay_loops::{Epilogue, MatLayout, ProductTypes};

    use super::*;

    #[test]
    fn what_is_packed_unpacks() {
        let tensor = Tensor::from_slice(&[2, 3], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let tensor = StoredTensor::from(tensor);
        let layout = MatLayout { row_stride: 3, col_stride: 1 };
        let call = KernelCall::MatMul(MatMul {
            m: 1,
            n: 3,
            k: 2,
            batch: vec![],
            a: layout,
            b: layout,
            c_row_stride: 3,
            b_packed: true,
            types: ProductTypes::F32,
            epilogue: Epilogue::default(),
        });
        let packed = ReferenceBackend.pack(&call, 1, &tensor).unwrap();
        let columns = Tensor::from_bytes(DType::F32, &[6], &packed).unwrap();
        assert_eq!(columns.to_vec::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(ReferenceBackend.unpack("columns", &[2, 3], &packed).unwrap(), tensor);
        assert!(ReferenceBackend.unpack("columns", &[2, 2], &packed).is_err());
        assert!(ReferenceBackend.pack(&call, 0, &tensor).is_err());
    }
}
