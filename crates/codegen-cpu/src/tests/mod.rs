//! Kernels run from the emitted block, against plain Rust.

mod accuracy;
mod elementwise;
mod half;
mod memory;
mod program;
mod reductions;

use std::rc::Rc;

use margay_kernels_cpu::abi::{DriverFn, KernelFn, ROW_TABLE_AT, SCALAR_TABLE_AT, SCRATCH_HEADER_BYTES};
use margay_kernels_cpu::math::{RowTable, SCALARS, rows};
use margay_kernels_cpu::{Class, CpuCode, CpuTarget, Prepared};
use margay_loops::nest::Sink;
use margay_loops::{Arg, Kernel, KernelCall, Nest, NoKernel, Producer, Program, Reg};
use margay_tensor::DType;

use crate::CpuIsa;
use crate::emit::emit;

/// A target without hand-written kernels.
fn no_kernels(call: &KernelCall) -> Result<Prepared, NoKernel> {
    Err(NoKernel { target: "none".into(), call: call.to_string(), why: "there are none".into() })
}

/// The classes that this machine can run.
fn isas() -> Vec<CpuIsa> {
    let mut names = vec!["portable"];
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("bmi2")
        && std::is_x86_feature_detected!("lzcnt")
    {
        names.push("x86-64-v3");
    }
    if CpuTarget::native().class() == Class::Avx512 {
        names.push("x86-64-v4");
    }
    names.into_iter().map(|n| CpuIsa::for_class(n).unwrap()).collect()
}

/// Machine code mapped executable.
struct Loaded {
    map: memmap2::Mmap,
    code: CpuCode,
    rows: &'static RowTable,
}

impl Loaded {
    fn new(code: CpuCode, isa: &CpuIsa) -> Loaded {
        let class = CpuTarget::by_name(isa.name()).unwrap().class();
        let mut map = memmap2::MmapMut::map_anon(code.machine_code.len()).unwrap();
        map.copy_from_slice(&code.machine_code);
        Loaded { map: map.make_exec().unwrap(), code, rows: rows(class).unwrap() }
    }

    fn kernel(&self, i: usize) -> KernelFn {
        // SAFETY: `kernels` holds the offsets of functions with this signature inside the mapping.
        unsafe { std::mem::transmute(self.map.as_ptr().add(self.code.kernels[i])) }
    }

    fn driver(&self) -> DriverFn {
        // SAFETY: `driver` is the offset of a function with this signature inside the mapping.
        unsafe { std::mem::transmute(self.map.as_ptr().add(self.code.driver)) }
    }
}

fn load_kernel(kernel: &Kernel, isa: &CpuIsa) -> Loaded {
    let program = Program { kernels: vec![kernel.clone()], ..Program::default() };
    Loaded::new(emit(&program, isa, &no_kernels, &[]).unwrap().0, isa)
}

/// Step number that kernels are run as.
const STEP: u64 = 6;

/// Runs a kernel on the items in the given order of runs; returns the fault word.
fn run_split(loaded: &Loaded, args: &mut [Vec<u8>], runs: &[(usize, usize)]) -> u64 {
    let pointers: Vec<*mut u8> =
        args.iter_mut().map(|a| if a.is_empty() { std::ptr::null_mut() } else { a.as_mut_ptr() }).collect();
    let mut scratch = vec![0u64; (SCRATCH_HEADER_BYTES + loaded.code.scratch_bytes) / 8];
    scratch[ROW_TABLE_AT / 8] = loaded.rows.as_ptr() as u64;
    scratch[SCALAR_TABLE_AT / 8] = SCALARS.as_ptr() as u64;
    for &(begin, end) in runs {
        // SAFETY: the tests hand over as many arguments, each as large, as their kernels reach.
        unsafe {
            let scratch = scratch.as_mut_ptr().cast();
            loaded.kernel(0)([STEP].as_ptr(), pointers.as_ptr(), scratch, begin as u64, end as u64);
        }
    }
    scratch[0]
}

/// Runs a kernel whole on every class this machine has and checks that other ways to split the items give the same
/// bytes. Returns the last argument of each class.
fn run(kernel: &Kernel, args: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let items = crate::items(kernel);
    let mut outputs = Vec::new();
    for isa in isas() {
        let loaded = load_kernel(kernel, &isa);
        let mut whole = args.to_vec();
        assert_eq!(run_split(&loaded, &mut whole, &[(0, items)]), 0, "no fault");
        let singles: Vec<(usize, usize)> = (0..items).rev().map(|i| (i, i + 1)).collect();
        let cut = items / 3;
        for runs in [singles, vec![(cut, items), (0, cut)]] {
            let mut split = args.to_vec();
            run_split(&loaded, &mut split, &runs);
            assert!(split == whole, "the split must not matter on {}", isa.name());
        }
        outputs.push(whole.pop().unwrap());
    }
    outputs
}

trait Bytes: Sized + Copy {
    fn bytes(values: &[Self]) -> Vec<u8>;
    fn values(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! bytes {
    ($($t:ty),*) => { $(impl Bytes for $t {
        fn bytes(values: &[Self]) -> Vec<u8> { values.iter().flat_map(|v| v.to_ne_bytes()).collect() }
        fn values(bytes: &[u8]) -> Vec<Self> {
            let size = std::mem::size_of::<Self>();
            bytes.chunks_exact(size).map(|c| Self::from_ne_bytes(c.try_into().unwrap())).collect()
        }
    })* };
}
bytes!(f32, f64, i8, u8, i16, u16, i32, u32, i64, u64);

fn row_major(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i] as i64;
    }
    strides
}

fn memory(arg: usize, dtype: DType, shape: &[usize]) -> Producer {
    Producer::Memory { arg, dtype, shape: shape.to_vec(), strides: row_major(shape) }
}

/// A nest that reads row-major arguments and writes one last argument of the given shape.
fn nest(inputs: &[(DType, &[usize])], output: (DType, &[usize])) -> Nest {
    let mut args: Vec<Arg> = inputs.iter().map(|(d, _)| Arg { dtype: *d, written: false }).collect();
    args.push(Arg { dtype: output.0, written: true });
    let sources = inputs.iter().enumerate().map(|(i, (d, shape))| memory(i, *d, shape)).collect();
    let sink = Sink { arg: inputs.len(), strides: row_major(output.1), stages: vec![] };
    Nest::new(args, sources, vec![sink])
}

/// `out[i] = f(in0[i], in1[i], …)` for inputs that broadcast to the output.
fn map(
    inputs: &[(DType, &[usize])],
    output: (DType, &[usize]),
    f: impl Fn(&mut Nest, &[Reg]) -> Reg + 'static,
) -> Kernel {
    let args: Vec<Arg> = inputs
        .iter()
        .map(|(d, _)| Arg { dtype: *d, written: false })
        .chain([Arg { dtype: output.0, written: true }])
        .collect();
    let sources = inputs.iter().enumerate().map(|(i, (d, shape))| memory(i, *d, shape)).collect();
    let computed = Producer::Computed { shape: output.1.to_vec(), function: Rc::new(f), inputs: sources };
    let sink = Sink { arg: inputs.len(), strides: row_major(output.1), stages: vec![] };
    let mut n = Nest::new(args, vec![computed], vec![sink]);
    n.for_each(output.1, |n, i| {
        let value = n.load(0, i);
        n.store(0, i, value);
    });
    n.finish()
}

/// Numbers in [-scale, scale), the same on every run.
fn noise(seed: u32, count: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * scale).collect()
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let equal = g == e || (g.is_nan() && e.is_nan());
        assert!(equal || (g - e).abs() <= tolerance * e.abs().max(1.0), "element {i}: {g}, expected {e}");
    }
}
