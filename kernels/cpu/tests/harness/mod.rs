//! Runs prepared calls on buffers that end, or begin, at an inaccessible page.

#![allow(dead_code, reason = "every test file uses a part")]

use margay_kernels_cpu::abi::SCRATCH_HEADER_BYTES;
use margay_kernels_cpu::{Class, CpuTarget, lookup};
use margay_loops::{Activation, Epilogue, KernelCall};
use margay_tensor::{DType, Storage, StoredTensor, Tensor};

pub(crate) mod random;

/// What an output holds where no kernel writes.
pub(crate) const UNTOUCHED: f32 = 777.25;

/// The classes this machine can run; says which it cannot.
pub(crate) fn classes() -> Vec<Class> {
    let (here, absent): (Vec<_>, Vec<_>) = Class::ALL.into_iter().partition(|c| c.supported_here());
    absent.iter().for_each(|c| println!("skipped: this machine is not {}", c.name()));
    here
}

/// Memory between two inaccessible pages, flush with one of them.
struct Guarded {
    map: *mut u8,
    map_bytes: usize,
    at: *mut u8,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Flush {
    Start,
    End,
}

const PAGE: usize = 4096;

impl Guarded {
    fn new(bytes: usize, flush: Flush) -> Guarded {
        let inner = bytes.next_multiple_of(PAGE).max(PAGE);
        let map_bytes = inner + 2 * PAGE;
        // SAFETY: a private anonymous map, then its first and last page made inaccessible.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let map = libc::mmap(std::ptr::null_mut(), map_bytes, protection, flags, -1, 0).cast::<u8>();
            assert_ne!(map.cast(), libc::MAP_FAILED);
            assert_eq!(libc::mprotect(map.cast(), PAGE, libc::PROT_NONE), 0);
            assert_eq!(libc::mprotect(map.add(PAGE + inner).cast(), PAGE, libc::PROT_NONE), 0);
            let at = match flush {
                Flush::Start => map.add(PAGE),
                Flush::End => map.add(PAGE + inner - bytes),
            };
            // Every bit set is a NaN: use of what nobody wrote shows.
            map.add(PAGE).write_bytes(0xff, inner);
            Guarded { map, map_bytes, at, bytes }
        }
    }

    fn holding(bytes: &[u8], flush: Flush) -> Guarded {
        let guarded = Guarded::new(bytes.len(), flush);
        // SAFETY: the buffer has this length.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), guarded.at, bytes.len()) };
        guarded
    }

    fn to_vec(&self) -> Vec<u8> {
        // SAFETY: the buffer is readable.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes).to_vec() }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the map is ours.
        unsafe { libc::munmap(self.map.cast(), self.map_bytes) };
    }
}

/// Runs a call on its inputs, and returns what is in the output afterwards.
///
/// Runs it several times, over different splits of the items and places of the buffers, and checks that the bits
/// are the same. `inputs` are the arguments before the output; packed ones are given row-major, as tensors with
/// the shape in `packed_shape`.
pub(crate) fn execute(
    class: Class,
    call: &KernelCall,
    inputs: &[Vec<f32>],
    packed_shape: &[usize],
    out: usize,
) -> Vec<f32> {
    execute_all(class, call, inputs, packed_shape, &[out]).swap_remove(0)
}

/// As [`execute`] for a call with several outputs, one after the other, of the given lengths.
pub(crate) fn execute_all(
    class: Class,
    call: &KernelCall,
    inputs: &[Vec<f32>],
    packed_shape: &[usize],
    outs: &[usize],
) -> Vec<Vec<f32>> {
    let target = CpuTarget::new(class);
    let prepared = target.prepare(call).unwrap();
    let mut operands: Vec<Vec<u8>> = inputs.iter().map(|x| bytes_of(x)).collect();
    for packed in &prepared.needs.packed {
        let plain = Tensor::from_bytes(DType::F32, packed_shape, &operands[packed.operand]).unwrap();
        let storage = match call {
            KernelCall::MatMul(c) => c.types.right,
            KernelCall::Conv(c) => c.types.right,
            _ => Storage::plain(DType::F32),
        };
        let stored = StoredTensor::encode(&plain, storage).unwrap();
        let bytes = target.pack(call, packed.operand, &stored).unwrap();
        assert_eq!(bytes.len(), packed.bytes);
        let back = target.unpack(&packed.layout, packed_shape, &bytes).unwrap();
        assert_eq!(back.to_bytes(), stored.to_bytes(), "unpack is the inverse of pack");
        assert_eq!(back.storage().signs, stored.storage().signs, "unpack is the inverse of pack");
        assert_eq!(back.shape(), stored.shape(), "unpack is the inverse of pack");
        operands[packed.operand] = bytes;
    }
    let outs: Vec<Vec<u8>> = outs.iter().map(|&out| bytes_of(&vec![UNTOUCHED; out])).collect();
    let floats = |bytes: &Vec<u8>| -> Vec<f32> {
        bytes.chunks_exact(4).map(|x| f32::from_ne_bytes(x.try_into().unwrap())).collect()
    };
    let runs = execute_bytes(class, call, &operands, &outs);
    let mut runs = runs.iter().map(|outs| outs.iter().map(floats).collect::<Vec<_>>());
    let result = runs.next().unwrap();
    for found in runs {
        let same = found
            .iter()
            .flatten()
            .zip(result.iter().flatten())
            .all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
        assert!(same, "{} {call}: bits depend on the split or on the place of buffers", class.name());
    }
    result
}

/// What is in the outputs, which begin as `outs`, after runs of a call on operands as they lie in memory: over different
/// splits of the items and places of the buffers.
pub(crate) fn execute_bytes(
    class: Class,
    call: &KernelCall,
    operands: &[Vec<u8>],
    outs: &[Vec<u8>],
) -> Vec<Vec<Vec<u8>>> {
    let prepared = CpuTarget::new(class).prepare(call).unwrap();
    let mut runs = Vec::new();
    for (flush, split) in [(Flush::End, usize::MAX), (Flush::Start, 1), (Flush::End, 3)] {
        let mut buffers: Vec<Guarded> = operands.iter().map(|x| Guarded::holding(x, flush)).collect();
        buffers.extend(outs.iter().map(|out| Guarded::holding(out, flush)));
        if prepared.needs.workspace_bytes > 0 {
            buffers.push(Guarded::new(prepared.needs.workspace_bytes.next_multiple_of(64), flush));
        }
        let args: Vec<*mut u8> = buffers.iter().map(|b| b.at).collect();
        for phase in &prepared.phases {
            let kernel = lookup(phase.kernel).expect("a prepared kernel is in the table");
            assert!(kernel.class <= class, "{} is no kernel of {}", kernel.name, class.name());
            let mut ranges = Vec::new();
            let mut begin = 0;
            while begin < phase.items {
                let end = begin.saturating_add(split).min(phase.items);
                ranges.push(begin..end);
                begin = end;
            }
            for range in ranges.into_iter().rev() {
                let bytes = (SCRATCH_HEADER_BYTES + prepared.scratch_bytes).next_multiple_of(64);
                let scratch = Guarded::new(bytes, Flush::End);
                // SAFETY: operands as the call says, scratch as prepared.
                unsafe {
                    (kernel.function)(
                        phase.params.as_ptr(),
                        args.as_ptr(),
                        scratch.at,
                        range.start as u64,
                        range.end as u64,
                    );
                }
            }
        }
        for (buffer, operand) in buffers.iter().zip(operands) {
            assert_eq!(buffer.to_vec(), *operand, "inputs are not written");
        }
        runs.push((0..outs.len()).map(|i| buffers[operands.len() + i].to_vec()).collect());
    }
    runs
}

fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

/// An expected element and how far from it a result may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) value: f64,
    pub(crate) tolerance: f64,
}

/// A place that no kernel writes.
pub(crate) const GAP: Expected = Expected { value: UNTOUCHED as f64, tolerance: 0.0 };

/// Compares all elements of a result.
pub(crate) fn compare(what: &str, found: &[f32], expected: &[Expected]) {
    assert_eq!(found.len(), expected.len());
    for (i, (&x, e)) in found.iter().zip(expected).enumerate() {
        let x = x as f64;
        let near = (x - e.value).abs() <= e.tolerance;
        let same = x == e.value || x.is_nan() && e.value.is_nan();
        assert!(near || same, "{what}: element {i}: expected {e:?}, found {x}");
    }
}

/// An activation in f64.
pub(crate) fn activation(a: Option<Activation>, x: f64) -> f64 {
    let tanh_inner = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    match a {
        None => x,
        Some(Activation::Relu) => {
            if x.is_nan() {
                x
            } else {
                x.max(0.0)
            }
        }
        Some(Activation::GeluErf) => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Some(Activation::GeluTanh) => 0.5 * x * (1.0 + tanh_inner.tanh()),
        Some(Activation::Relu6) => x.clamp(0.0, 6.0),
        Some(Activation::HardSwish) => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Some(Activation::Silu) => x / (1.0 + (-x).exp()),
        Some(Activation::Tanh) => x.tanh(),
        Some(Activation::Sigmoid) => 1.0 / (1.0 + (-x).exp()),
    }
}

/// Every activation and none.
pub(crate) const ACTIVATIONS: [Option<Activation>; 9] = [
    None,
    Some(Activation::Relu),
    Some(Activation::GeluErf),
    Some(Activation::GeluTanh),
    Some(Activation::Silu),
    Some(Activation::Tanh),
    Some(Activation::Sigmoid),
    Some(Activation::Relu6),
    Some(Activation::HardSwish),
];

/// The finished sum and its tolerance: rounding of a sum of `terms` products with the given sum of magnitudes, and
/// 1e-6 for the activation.
pub(crate) fn finished(
    e: &Epilogue,
    sum: f64,
    size: f64,
    terms: usize,
    bias: f64,
    residual: f64,
) -> Expected {
    let (before, after) = if e.residual_first { (residual, 0.0) } else { (0.0, residual) };
    let x = activation(e.activation, sum + bias + before);
    let rounding = (terms as f64).sqrt().max(4.0) * 4.0 * f32::EPSILON as f64;
    let steepest = 1.2; // no activation is steeper
    let tolerance = steepest * rounding * (size + bias.abs() + before.abs())
        + if e.activation.is_some() { 1e-6 * (1.0 + x.abs()) } else { 0.0 }
        + f32::EPSILON as f64 * (x.abs() + residual.abs());
    Expected { value: x + after, tolerance }
}
