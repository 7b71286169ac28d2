//! Whole programs: the driver, the shape of the block, the text form, and what is refused.

use margay_kernels_cpu::abi::KernelFn;
use margay_kernels_cpu::{Control, Phase, Prepared};
use margay_loops::{
    Arg, Buffer, BufferId, Constant, Epilogue, Index, Kernel, KernelCall, Literal, MatLayout, MatMul, Needs,
    NoKernel, Operand, Place, Port, Program, Reg, Step, Stmt, Unary, Work,
};
use margay_tensor::DType::{self, F16, F32, F64};
use margay_tensor::Tensor;

use super::{Bytes, Loaded, isas, map, no_kernels, noise};
use crate::emit::emit;
use crate::{CodegenError, CpuIsa, print_clif};

/// One hand-written kernel in two phases.
fn two_phases(_: &KernelCall) -> Result<Prepared, NoKernel> {
    let phase = |word| Phase { kernel: "scale", params: vec![word, 40], items: 40, grain: 8 };
    Ok(Prepared { phases: vec![phase(2), phase(3)], scratch_bytes: 256, needs: Needs::default() })
}

/// `args[1][i] = word * args[0][i]` in the first phase, `args[1][i] *= word` in the others.
unsafe extern "C" fn scale(params: *const u64, args: *const *mut u8, _: *mut u8, begin: u64, end: u64) {
    // SAFETY: the driver hands over the two words that `prepare` made and the two arguments of the step.
    unsafe {
        assert_eq!(*params.add(1), 40);
        let word = *params as f32;
        let from = *args.add(usize::from(word == 3.0)) as *const f32;
        let to = *args.add(1) as *mut f32;
        for i in begin as usize..end as usize {
            to.add(i).write_unaligned(from.add(i).read_unaligned() * word);
        }
    }
}

/// Runs the items last to first in runs of `grain`, and notes the call.
unsafe extern "C" fn backwards(
    context: *mut u8,
    function: KernelFn,
    params: *const u64,
    args: *const *mut u8,
    total: u64,
    grain: u64,
    region: u64,
) -> u64 {
    let mut scratch = [0u64; 64];
    // SAFETY: the context is the list that the test hands to the driver; everything else goes on as it came.
    unsafe {
        (*context.cast::<Vec<[u64; 4]>>()).push([region, *params, total, grain]);
        let mut end = total;
        while end > 0 {
            let begin = end.saturating_sub(grain);
            function(params, args, scratch.as_mut_ptr().cast(), begin, end);
            end = begin;
        }
    }
    0
}

fn call() -> KernelCall {
    let layout = MatLayout { row_stride: 1, col_stride: 1 };
    KernelCall::MatMul(MatMul {
        m: 1,
        n: 1,
        k: 1,
        batch: vec![],
        a: layout,
        b: layout,
        c_row_stride: 1,
        b_packed: false,
        types: margay_loops::ProductTypes::F32,
        epilogue: Epilogue::default(),
    })
}

/// `t = in + constant; u = 6 t by a hand-written kernel; out = ln(u)`.
fn program() -> Program {
    let n = 40;
    let port = |name: &str| Port { name: name.into(), dtype: F32, shape: vec![n] };
    let places = [Place::Input(0), Place::Constant(1), Place::Arena(64), Place::Arena(256), Place::Output(0)];
    let operand = |buffer, offset_bytes| Operand { buffer: BufferId(buffer), offset_bytes };
    let step = |work| Step { label: String::new(), work, sizes: vec![] };
    let constant = |v: &[f32]| Constant {
        names: vec![],
        stored: Tensor::from_slice(&[v.len()], v).unwrap().into(),
        packed: None,
    };
    Program {
        inputs: vec![port("x")],
        outputs: vec![port("y")],
        carried: vec![],
        counted: vec![],
        constants: vec![constant(&[0.0]), constant(&[0.0; 41])],
        buffers: places.into_iter().map(|place| Buffer { place, bytes: 4 * n }).collect(),
        kernels: vec![
            map(&[(F32, &[n]), (F32, &[n])], (F32, &[n]), |n, x| n.add(x[0], x[1])),
            map(&[(F32, &[n])], (F32, &[n]), |n, x| n.unary(Unary::Log, x[0])),
        ],
        body: vec![
            step(Work::Kernel { kernel: 0, args: vec![operand(0, 0), operand(1, 4), operand(2, 0)] }),
            step(Work::Call {
                call: call(),
                needs: Needs::default(),
                args: vec![operand(2, 0), operand(3, 0)],
            }),
            step(Work::Kernel { kernel: 1, args: vec![operand(3, 0), operand(4, 0)] }),
        ],
        arena_bytes: 512,
        ..Program::default()
    }
}

#[test]
fn the_driver_runs_the_steps_in_order() {
    let x = noise(1, 40, 0.1);
    let constants: Vec<f32> = (0..64).map(|i| i as f32 / 100.0).collect();
    for isa in isas() {
        let loaded = Loaded::new(emit(&program(), &isa, &two_phases, &[0, 64]).unwrap().0, &isa);
        assert_eq!(loaded.code.imports.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["scale"]);
        let control = [40, 40, 1, 16, 40, 8, 3, 17, 40, 8, 3, 19, 40, 40, 2, 21];
        assert_eq!(loaded.code.params, [control.as_slice(), &[0, 2, 40, 3, 40, 2]].concat());
        assert_eq!(loaded.code.scratch_bytes, 256);
        let (mut arena, mut constants, mut x) = (vec![0u8; 512], f32::bytes(&constants), f32::bytes(&x));
        let mut y = vec![0u8; 160];
        let mut calls: Vec<[u64; 4]> = Vec::new();
        let table = [
            backwards as *const () as usize,
            loaded.kernel(0) as *const () as usize,
            loaded.kernel(1) as *const () as usize,
            scale as *const () as usize,
        ];
        let bases = [&mut arena, &mut constants, &mut x, &mut y].map(|b| b.as_mut_ptr());
        // SAFETY: the table, the bases and the parameters are those the program asks for.
        unsafe {
            let context = (&raw mut calls).cast();
            loaded.driver()(table.as_ptr(), context, bases.as_ptr(), loaded.code.params.as_ptr());
        }
        assert_eq!(calls, [[0, 0, 40, 40], [1, 2, 40, 8], [2, 3, 40, 8], [3, 2, 40, 40]]);
        for (i, (x, y)) in f32::values(&x).iter().zip(f32::values(&y)).enumerate() {
            let expected = (6.0 * (x + (17 + i) as f32 / 100.0)).ln();
            assert!(
                (y - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                "element {i}: {y}, expected {expected}"
            );
        }
    }
}

#[test]
fn functions_are_aligned_and_the_bytes_are_reproducible() {
    let isa = &isas()[0];
    let code = emit(&program(), isa, &two_phases, &[0, 64]).unwrap().0;
    assert!(code.kernels.iter().chain([&code.driver]).all(|at| at % 64 == 0));
    assert_eq!(code, emit(&program(), isa, &two_phases, &[0, 64]).unwrap().0);
}

#[test]
fn large_kernels_are_cut_into_runs_of_whole_vectors() {
    let n = 1 << 20;
    let mut p = program();
    p.kernels = vec![map(&[(F32, &[n])], (F32, &[n]), |_, x| x[0])];
    p.body.truncate(1);
    p.body[0].work = match &p.body[0].work {
        Work::Kernel { args, .. } => Work::Kernel { kernel: 0, args: vec![args[0], args[2]] },
        _ => unreachable!("the first step runs a kernel"),
    };
    let code = emit(&p, &isas()[0], &no_kernels, &[0, 64]).unwrap().0;
    let grain = code.params[Control::Grain.at(0, 0)] as usize;
    assert!(grain < n / 2 && grain.is_multiple_of(16), "grain {grain}");
}

#[test]
fn unknown_classes_and_constructs_are_errors() {
    let error = CpuIsa::for_class("z80").err().unwrap().to_string();
    assert!(error.starts_with("unknown processor class `z80`, expected one of portable"), "{error}");
    let unary = |dtype: DType, op| {
        let p = Program {
            kernels: vec![map(&[(dtype, &[4])], (dtype, &[4]), move |n, x| n.unary(op, x[0]))],
            ..Program::default()
        };
        emit(&p, &isas()[0], &no_kernels, &[]).err().map(|e| e.to_string())
    };
    let tail = "which the processor back end does not support";
    assert_eq!(unary(DType::I64, Unary::Exp).unwrap(), format!("kernel `k0` uses Exp of i64, {tail}"));
    assert_eq!(unary(F64, Unary::Exp), None);
    assert_eq!(unary(F16, Unary::Neg), None);
    let mut p = program();
    p.body.remove(0);
    assert!(matches!(emit(&p, &isas()[0], &no_kernels, &[0, 64]), Err(CodegenError::Launch(_))));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn text_of_a_tiny_kernel() {
    let kernel = Kernel {
        args: vec![Arg { dtype: F32, written: false }, Arg { dtype: F32, written: true }],
        regs: vec![F32, F32, F32],
        axes: 1,
        body: vec![Stmt::Loop {
            axis: margay_loops::Axis(0),
            extent: 6.into(),
            parallel: false,
            body: vec![
                Stmt::Literal { to: Reg(0), value: Literal::f32(2.0) },
                Stmt::Load { to: Reg(1), arg: 0, index: Index::axis(margay_loops::Axis(0)), guard: None },
                Stmt::Binary { to: Reg(2), op: margay_loops::Binary::Mul, x: Reg(1), y: Reg(0) },
                Stmt::Store { arg: 1, index: Index::axis(margay_loops::Axis(0)), value: Reg(2) },
            ],
        }],
    };
    let isa = CpuIsa::for_class("x86-64-v3").unwrap();
    insta::assert_snapshot!(print_clif(&kernel, &isa).unwrap());
}
