//! A whole program as one block of machine code.

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{Function, Signature, UserFuncName};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use margay_kernels_cpu::{CpuCode, Import, Prepared, lookup};
use margay_loops::{Arg, Axis, Binary, Index, Kernel, KernelCall, NoKernel, Program, Reg, Stmt, Unary, Work};
use margay_tensor::DType;

use crate::driver::{self, Launch};
use crate::kernel;
use crate::scalar::Ops;
use crate::vector::{LANES, UNROLL};
use crate::{CodegenError, CpuIsa};

/// Operations that a run of items is worth, in the units of [`operations`]: a kernel with fewer than two runs' worth
/// is one run.
const OPERATIONS_PER_RUN: u64 = 1 << 16;
/// Alignment in bytes of functions in the block.
const FUNCTION_ALIGN: usize = 64;

/// How calls are run.
pub(crate) type Prepare<'a> = &'a dyn Fn(&KernelCall) -> Result<Prepared, NoKernel>;

/// Compiles a program. The code depends on the arguments only, never on the machine that compiles. Besides it, the number
/// of parallel regions of each step itself, in the order of the steps' numbers.
///
/// `constant_offsets` says where the constants of the program lie in the section that the driver is handed, in bytes.
///
/// # Panics
/// When the program contradicts itself or has another number of constants.
pub(crate) fn emit(
    program: &Program,
    isa: &CpuIsa,
    prepare: Prepare<'_>,
    constant_offsets: &[usize],
) -> Result<(CpuCode, Vec<usize>), CodegenError> {
    assert_eq!(constant_offsets.len(), program.constants.len(), "one offset per constant");
    let mut code = CpuCode::default();
    let mut kernels = program.kernels.clone();
    let launches = launches(program, prepare, &mut kernels, &mut code)?;
    for (i, kernel) in kernels.iter().enumerate() {
        let name = format!("k{i}");
        let (function, scratch_bytes) = write_kernel(kernel, &name, isa)?;
        code.scratch_bytes = code.scratch_bytes.max(scratch_bytes);
        let at = append(&mut code.machine_code, &compile(function, &name, isa)?);
        code.kernels.push(at);
    }
    let function = write_driver(program, &launches, constant_offsets, isa);
    code.driver = append(&mut code.machine_code, &compile(function, "driver", isa)?);
    Ok((code, launches.iter().map(Vec::len).collect()))
}

/// The number of work items of a generated kernel: the positions of its parallel loops, without the innermost one
/// when there are several.
pub fn items(kernel: &Kernel) -> usize {
    match kernel.parallel_extents().as_slice() {
        [] => 1,
        [only] => *only,
        [outer @ .., _] => outer.iter().product(),
    }
}

/// The Cranelift IR of a kernel as Cranelift prints it, before optimization.
pub fn print_clif(kernel: &Kernel, isa: &CpuIsa) -> Result<String, CodegenError> {
    Ok(write_kernel(kernel, "kernel", isa)?.0.display().to_string())
}

fn write_kernel(kernel: &Kernel, name: &str, isa: &CpuIsa) -> Result<(Function, usize), CodegenError> {
    write_function(kernel::signature(isa), isa, |ops| kernel::build(kernel, name, isa, ops))
}

fn write_driver(
    program: &Program,
    launches: &[Vec<Launch>],
    constant_offsets: &[usize],
    isa: &CpuIsa,
) -> Function {
    let written = write_function(kernel::pointers(isa, 4), isa, |ops| {
        driver::build(program, launches, constant_offsets, isa, ops);
        Ok(())
    });
    written.expect("writing a driver cannot fail").0
}

fn write_function<T>(
    signature: Signature,
    isa: &CpuIsa,
    body: impl FnOnce(Ops<'_>) -> Result<T, CodegenError>,
) -> Result<(Function, T), CodegenError> {
    let mut function = Function::with_name_signature(UserFuncName::user(0, 0), signature);
    let mut scope = FunctionBuilderContext::new();
    let answer = body(Ops::new(FunctionBuilder::new(&mut function, &mut scope), isa))?;
    Ok((function, answer))
}

fn compile(function: Function, name: &str, isa: &CpuIsa) -> Result<Vec<u8>, CodegenError> {
    let mut context = Context::for_function(function);
    let compiled = context.compile(isa.target(), &mut ControlPlane::default()).map_err(|e| {
        CodegenError::Cranelift { function: name.to_string(), message: format!("{:?}", e.inner) }
    })?;
    assert!(compiled.buffer.alignment as usize <= FUNCTION_ALIGN, "a function asks for more alignment");
    match compiled.buffer.relocs().len() {
        0 => Ok(compiled.code_buffer().to_vec()),
        count => Err(CodegenError::Relocations { function: name.to_string(), count }),
    }
}

fn append(blob: &mut Vec<u8>, code: &[u8]) -> usize {
    let at = blob.len().next_multiple_of(FUNCTION_ALIGN);
    blob.resize(at, 0);
    blob.extend_from_slice(code);
    at
}

/// Asks how calls are run, and lists the parallel regions of each step with their parameters. Copies add the
/// kernels that do them.
fn launches(
    program: &Program,
    prepare: Prepare<'_>,
    kernels: &mut Vec<Kernel>,
    code: &mut CpuCode,
) -> Result<Vec<Vec<Launch>>, CodegenError> {
    let mut calls = Vec::new();
    let mut all: Vec<Vec<Launch>> = Vec::new();
    let mut region = 0;
    for (number, (_, step)) in program.steps().enumerate() {
        let mut launches = Vec::new();
        let generated = match &step.work {
            Work::Kernel { kernel, args } => {
                assert_eq!(program.kernels[*kernel].args.len(), args.len(), "arguments of step {number}");
                Some(*kernel)
            }
            Work::Copy { from, to, bytes } => {
                Some(copies(kernels, from.offset_bytes | to.offset_bytes, *bytes))
            }
            Work::Call { call, .. } => {
                let prepared = prepare(call)?;
                code.scratch_bytes = code.scratch_bytes.max(prepared.scratch_bytes);
                for phase in prepared.phases {
                    let params = code.params.len();
                    code.params.extend(&phase.params);
                    let slot = import(&mut code.imports, phase.kernel);
                    calls.push((number, launches.len()));
                    launches.push(Launch { region: 0, slot, params, items: phase.items, grain: phase.grain });
                }
                None
            }
            Work::If { .. } | Work::Loop(_) => None,
        };
        if let Some(k) = generated {
            let (items, params, grain) = (items(&kernels[k]), code.params.len(), grain(&kernels[k]));
            code.params.push(number as u64);
            launches.push(Launch { region: 0, slot: 1 + k, params, items, grain });
        }
        all.push(launches);
    }
    for (step, launch) in calls {
        all[step][launch].slot += 1 + kernels.len();
    }
    for launches in &mut all {
        launches.retain(|l| l.items > 0);
        for launch in launches.iter_mut() {
            launch.region = region;
            region += 1;
        }
    }
    Ok(all)
}

/// The number of the kernel that copies so many bytes to and from offsets whose bits are `offsets` together.
fn copies(kernels: &mut Vec<Kernel>, offsets: usize, bytes: usize) -> usize {
    let dtype = if (offsets | bytes).is_multiple_of(4) { DType::F32 } else { DType::U8 };
    let (axis, value) = (Axis(0), Reg(0));
    let kernel = Kernel {
        args: vec![Arg { dtype, written: false }, Arg { dtype, written: true }],
        regs: vec![dtype],
        axes: 1,
        body: vec![Stmt::Loop {
            axis,
            extent: (bytes / dtype.bytes()).into(),
            parallel: true,
            body: vec![
                Stmt::Load { to: value, arg: 0, index: Index::axis(axis), guard: None },
                Stmt::Store { arg: 1, index: Index::axis(axis), value },
            ],
        }],
    };
    kernels.iter().position(|k| *k == kernel).unwrap_or_else(|| {
        kernels.push(kernel);
        kernels.len() - 1
    })
}

fn import(imports: &mut Vec<Import>, name: &str) -> usize {
    imports.iter().position(|i| i.name == name).unwrap_or_else(|| {
        let version = lookup(name).map_or(0, |kernel| kernel.version);
        imports.push(Import { name: name.to_string(), version });
        imports.len() - 1
    })
}

/// Items per run: [`OPERATIONS_PER_RUN`], all items when that would leave less than two runs, and whole blocks of
/// lanes when items are elements.
pub(crate) fn grain(kernel: &Kernel) -> usize {
    let items = items(kernel) as u64;
    let operations = operations(&kernel.body);
    if operations < 2 * OPERATIONS_PER_RUN || items < 2 {
        return items.max(1) as usize;
    }
    let grain = (items * OPERATIONS_PER_RUN / operations).max(1) as usize;
    let block = if kernel.parallel_extents().len() == 1 { (LANES * UNROLL) as usize } else { 1 };
    grain.next_multiple_of(block)
}

/// An estimate of the work of a list of statements, with additions as the unit.
fn operations(body: &[Stmt]) -> u64 {
    body.iter().map(stmt_operations).fold(0, u64::saturating_add)
}

fn stmt_operations(stmt: &Stmt) -> u64 {
    match stmt {
        Stmt::Literal { .. } => 0,
        Stmt::Unary { op, .. } => match op {
            Unary::Exp | Unary::Log | Unary::Erf | Unary::Tanh => 16,
            Unary::Sigmoid | Unary::Sin | Unary::Cos => 20,
            Unary::RoundF16 => 14,
            Unary::RoundBf16 => 8,
            Unary::Sqrt => 4,
            Unary::Neg
            | Unary::Abs
            | Unary::Floor
            | Unary::Ceil
            | Unary::Round
            | Unary::Not
            | Unary::IsNan => 1,
        },
        Stmt::Binary { op, .. } => match op {
            Binary::Pow => 40,
            Binary::Div => 4,
            Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Min
            | Binary::Max
            | Binary::Eq
            | Binary::Lt
            | Binary::Le
            | Binary::And
            | Binary::Or
            | Binary::Xor => 1,
            Binary::ShiftLeft | Binary::ShiftRight => 3,
        },
        Stmt::IndexValue { .. }
        | Stmt::Select { .. }
        | Stmt::Cast { .. }
        | Stmt::Load { .. }
        | Stmt::Store { .. }
        | Stmt::Require { .. } => 1,
        Stmt::Loop { extent, body, .. } => operations(body).saturating_mul(extent.bound() as u64),
        Stmt::Reduce { extent, results, body, .. } => {
            (operations(body) + results.len() as u64).saturating_mul(extent.bound() as u64)
        }
    }
}
