//! Small programs, written by hand, and their way into an artifact.

use margay_artifact::{ArtifactBuilder, EntryParts, SectionParts, StepNote};
use margay_codegen_cpu::CpuBackend;
use margay_kernels_cpu::{Class, CpuTarget};
use margay_loops::nest::Sink;
use margay_loops::{
    Arg, Backend, Buffer, BufferId, Constant, Epilogue, KernelCall, MatLayout, MatMul, Nest, Operand, Packed,
    Place, Port, Producer, Program, Step, Work,
};
use margay_tensor::{DType, Tensor};

/// Terms of the sums of [`linear`].
pub(crate) const TERMS: usize = 40;
/// Columns of the result of [`linear`].
pub(crate) const COLUMNS: usize = 70;

/// Compiles programs into the entries of one artifact.
pub(crate) fn assemble<'b>(backend: &'b dyn Backend, programs: &[Program]) -> ArtifactBuilder<'b> {
    let mut builder = ArtifactBuilder::new("by hand");
    for program in programs {
        let add = |c| builder.constants.add(c, backend);
        let placed: Vec<_> = program.constants.iter().map(add).collect();
        let offsets: Vec<usize> = placed.iter().map(|p| p.offset).collect();
        let code = backend.compile(program, &offsets).unwrap();
        let entry = EntryParts {
            open: program.open.clone(),
            inputs: program.inputs.clone(),
            outputs: program.outputs.clone(),
            carried: program.carried.clone(),
            counted: program.counted.clone(),
            ..EntryParts::default()
        };
        let section = SectionParts {
            backend: backend.name().into(),
            target: backend.target().into(),
            machine: code.machine,
            arena_bytes: program.arena_bytes,
            steps: StepNote::all(program, &code.regions),
            constants: placed.iter().map(|p| p.index).collect(),
        };
        builder.add_code(entry, section, &code.bytes);
    }
    builder
}

/// The back end for a class.
pub(crate) fn backend(class: Class) -> CpuBackend {
    CpuBackend::new(CpuTarget::new(class)).unwrap()
}

/// The back end for this machine.
pub(crate) fn native() -> CpuBackend {
    backend(CpuTarget::native().class())
}

/// Numbers that are neither round nor large.
pub(crate) fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// A named tensor.
pub(crate) fn port(name: &str, dtype: DType, shape: &[usize]) -> Port {
    Port { name: name.into(), dtype, shape: shape.to_vec() }
}

/// A region of memory.
pub(crate) fn buffer(place: Place, bytes: usize) -> Buffer {
    Buffer { place, bytes }
}

/// A constant.
pub(crate) fn constant(tensor: Tensor, packed: Option<(KernelCall, Packed)>) -> Constant {
    Constant { names: vec!["constant".into()], stored: tensor.into(), packed }
}

/// The start of a buffer, given by number.
pub(crate) fn operand(buffer: usize) -> Operand {
    Operand { buffer: BufferId(buffer), offset_bytes: 0 }
}

/// A step that runs a kernel, given by number, over whole buffers.
pub(crate) fn kernel(kernel: usize, args: &[usize], label: &str) -> Step {
    let args = args.iter().map(|&b| operand(b)).collect();
    Step { label: label.into(), work: Work::Kernel { kernel, args }, sizes: vec![] }
}

/// Arguments of which the last is written.
pub(crate) fn args(dtypes: &[DType]) -> Vec<Arg> {
    let last = dtypes.len() - 1;
    dtypes.iter().enumerate().map(|(i, &dtype)| Arg { dtype, written: i == last }).collect()
}

/// An input read from memory.
pub(crate) fn memory(arg: usize, dtype: DType, shape: &[usize], strides: &[i64]) -> Producer {
    Producer::Memory { arg, dtype, shape: shape.to_vec(), strides: strides.to_vec() }
}

/// An output written to memory.
pub(crate) fn sink(arg: usize, strides: &[i64]) -> Sink {
    Sink { arg, strides: strides.to_vec(), stages: vec![] }
}

/// `y[rows, COLUMNS] = x[rows, TERMS] · W + b`: a call over a packed constant, then a loop.
pub(crate) fn linear(rows: usize, backend: &dyn Backend) -> Program {
    let layout = |row_stride| MatLayout { row_stride, col_stride: 1 };
    let call = KernelCall::MatMul(MatMul {
        m: rows,
        n: COLUMNS,
        k: TERMS,
        batch: vec![],
        a: layout(TERMS),
        b: layout(COLUMNS),
        c_row_stride: COLUMNS,
        b_packed: true,
        types: margay_loops::ProductTypes::F32,
        epilogue: Epilogue::default(),
    });
    let needs = backend.prepare(&call).unwrap();
    let packed = needs.packed[0].clone();
    let packed_bytes = packed.bytes;
    let product_bytes = rows * COLUMNS * 4;
    let workspace_at = product_bytes.next_multiple_of(64);
    let shape = [rows, COLUMNS];
    let row_major = [COLUMNS as i64, 1];
    let sum = {
        let inputs = vec![memory(0, DType::F32, &shape, &row_major), memory(1, DType::F32, &[COLUMNS], &[1])];
        let mut n = Nest::new(args(&[DType::F32; 3]), inputs, vec![sink(2, &row_major)]);
        n.for_each(&shape, |n, i| {
            let (x, b) = (n.load(0, i), n.load(1, i));
            let sum = n.add(x, b);
            n.store(0, i, sum);
        });
        n.finish()
    };
    let weight = Tensor::from_slice(&[TERMS, COLUMNS], &numbers(TERMS * COLUMNS, 1)).unwrap();
    let bias = Tensor::from_slice(&[COLUMNS], &numbers(COLUMNS, 2)).unwrap();
    let call_args: &[usize] = if needs.workspace_bytes > 0 { &[0, 1, 2, 5] } else { &[0, 1, 2] };
    let call_args = call_args.iter().map(|&b| operand(b)).collect();
    let workspace_bytes = needs.workspace_bytes;
    Program {
        inputs: vec![port("x", DType::F32, &[rows, TERMS])],
        outputs: vec![port("y", DType::F32, &shape)],
        carried: vec![],
        counted: vec![],
        constants: vec![constant(weight, Some((call.clone(), packed))), constant(bias, None)],
        buffers: vec![
            buffer(Place::Input(0), rows * TERMS * 4),
            buffer(Place::Constant(0), packed_bytes),
            buffer(Place::Arena(0), product_bytes),
            buffer(Place::Constant(1), COLUMNS * 4),
            buffer(Place::Output(0), product_bytes),
            buffer(Place::Arena(workspace_at), workspace_bytes),
        ],
        kernels: vec![sum],
        body: vec![
            Step {
                label: "fc1/MatMul".into(),
                work: Work::Call { call, needs, args: call_args },
                sizes: vec![],
            },
            kernel(0, &[2, 3, 4], "fc1/Add"),
        ],
        arena_bytes: workspace_at + workspace_bytes,
        ..Program::default()
    }
}
