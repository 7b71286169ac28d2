//! A whole program as one block of machine code.

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{Function, Signature, UserFuncName};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use margay_kernels_cpu::{CpuCode, Import, Launch, Prepare, Term, lookup, prepare_at, table};
use margay_loops::{
    Arg, Axis, Binary, Extent, Index, Kernel, Program, Reg, SizeId, SizedAt, Step, Stmt, Unary, Work,
};
use margay_tensor::DType;

use crate::driver;
use crate::kernel;
use crate::scalar::Ops;
use crate::vector;
use crate::{CodegenError, CpuIsa};

/// Alignment in bytes of functions in the block.
const FUNCTION_ALIGN: usize = 64;

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
    let launches = Launches { program, prepare, points: points(program)?, scratch_bytes: 0 };
    let (launches, scratch_bytes) = launches.all(&mut kernels)?;
    code.scratch_bytes = scratch_bytes;
    for (i, kernel) in kernels.iter().enumerate() {
        let name = format!("k{i}");
        let (function, scratch_bytes) = write_kernel(kernel, &name, isa)?;
        code.scratch_bytes = code.scratch_bytes.max(scratch_bytes);
        let at = append(&mut code.machine_code, &compile(function, &name, isa)?);
        code.kernels.push(at);
    }
    let regions: Vec<usize> = launches.iter().map(|l| l.as_ref().map_or(0, Launch::regions)).collect();
    let function = write_driver(program, &regions, constant_offsets, isa);
    code.driver = append(&mut code.machine_code, &compile(function, "driver", isa)?);
    let launches: Vec<Launch> = launches.into_iter().flatten().collect();
    if program.open.is_closed() {
        let table = table(&launches, &[], 1 + kernels.len(), prepare).map_err(CodegenError::Launch)?;
        code.imports = table.imports.into_iter().map(import).collect();
        code.params = table.words;
    } else {
        code.launches = launches;
    }
    Ok((code, regions))
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

fn write_driver(program: &Program, regions: &[usize], constant_offsets: &[usize], isa: &CpuIsa) -> Function {
    let written = write_function(kernel::pointers(isa, 4), isa, |ops| {
        driver::build(program, regions, constant_offsets, isa, ops);
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

/// The values of all sizes at every value of the symbols that the program serves; of a closed program one without sizes.
fn points(program: &Program) -> Result<Vec<Vec<i64>>, CodegenError> {
    if program.open.is_closed() {
        return Ok(vec![Vec::new()]);
    }
    let at = |point: Vec<i64>| {
        let sizes = program.open.sizes_at(&point);
        sizes.ok_or_else(|| CodegenError::Launch(format!("a size has no value at {point:?}")))
    };
    program.open.points().into_iter().map(at).collect()
}

/// Asks how calls are run, and says what every step launches.
struct Launches<'a> {
    program: &'a Program,
    prepare: Prepare<'a>,
    /// The sizes at all values of the symbols.
    points: Vec<Vec<i64>>,
    scratch_bytes: usize,
}

impl Launches<'_> {
    /// What every step launches, in the order of their numbers, and the scratch that hand-written kernels need. Copies add
    /// the kernels that do them.
    fn all(mut self, kernels: &mut Vec<Kernel>) -> Result<(Vec<Option<Launch>>, usize), CodegenError> {
        let mut all = Vec::new();
        for (number, (_, step)) in self.program.steps().enumerate() {
            all.push(match &step.work {
                Work::Kernel { kernel, args } => {
                    assert_eq!(
                        self.program.kernels[*kernel].args.len(),
                        args.len(),
                        "arguments of step {number}"
                    );
                    let sizes = kernels[*kernel].sizes();
                    let params = sizes.into_iter().map(|size| Term::size(size.0, 1)).collect();
                    Some(generated(number, *kernel, &kernels[*kernel], 1, params))
                }
                Work::Copy { bytes, .. } => Some(self.copy(number, step, *bytes, kernels)),
                Work::Call { call, needs, .. } => {
                    let call = step.call_text(call);
                    let regions = self.regions(&call)?;
                    let (workspace_bytes, packed) = (needs.workspace_bytes, needs.packed.clone());
                    Some(Launch::Call { call, regions, workspace_bytes, packed })
                }
                Work::If { .. } | Work::Loop(_) => None,
            });
        }
        Ok((all, self.scratch_bytes))
    }

    /// The most regions of a call.
    fn regions(&mut self, call: &str) -> Result<usize, CodegenError> {
        let mut regions = 0;
        // Points with the same call are asked for once.
        let mut asked = std::collections::HashSet::new();
        for sizes in &self.points {
            if asked.insert(margay_loops::open::with_sizes(call, sizes)) {
                let prepared = prepare_at(call, sizes, self.prepare).map_err(CodegenError::Launch)?;
                self.scratch_bytes = self.scratch_bytes.max(prepared.scratch_bytes);
                regions = regions.max(prepared.phases.len());
            }
        }
        Ok(regions)
    }

    /// Whether a number is a multiple of 4 for all values of the symbols.
    fn is_words(&self, number: usize, size: Option<SizeId>) -> bool {
        match size {
            None => number.is_multiple_of(4),
            Some(size) => self.points.iter().all(|sizes| sizes[size.0 as usize] % 4 == 0),
        }
    }

    fn copy(&self, number: usize, step: &Step, bytes: usize, kernels: &mut Vec<Kernel>) -> Launch {
        let size = step.sizes.iter().find(|(at, _)| *at == SizedAt::Bytes).map(|(_, size)| *size);
        let offsets = step.operands().into_iter().enumerate();
        let words = self.is_words(bytes, size)
            && offsets.into_iter().all(|(i, o)| self.is_words(o.offset_bytes, step.offset_size(i)));
        let dtype = if words { DType::F32 } else { DType::U8 };
        let element = dtype.bytes();
        let extent = match size {
            None => Extent::Known(bytes / element),
            Some(size) => {
                let bounds = &self.program.open.sizes[size.0 as usize];
                let count = |v: i64| usize::try_from(v).unwrap_or(0) / element;
                Extent::Sized { size, least: count(bounds.least), most: count(bounds.most) }
            }
        };
        let k = copies(kernels, dtype, extent);
        let params = size.map(|size| Term::size(size.0, element as u64));
        generated(number, k, &kernels[k], element as u64, params.into_iter().collect())
    }
}

/// What a step launches that runs a generated kernel, whose extents are sizes divided by a number.
fn generated(number: usize, k: usize, kernel: &Kernel, divisor: u64, params: Vec<Term>) -> Launch {
    let extents: Vec<Extent<Reg>> = kernel.parallel_nest().1.into_iter().filter_map(extent_of).collect();
    let counted = match extents.as_slice() {
        [outer @ .., _] if !outer.is_empty() => outer,
        all => all,
    };
    let one = Term::number(1);
    Launch::Kernel {
        step: number as u64,
        slot: 1 + k,
        items: counted.iter().fold(one, |product, extent| product.times(&count(extent, divisor))),
        operations: operations(&kernel.body, divisor),
        block: vector::block(kernel),
        params,
    }
}

fn extent_of(stmt: &Stmt) -> Option<Extent<Reg>> {
    match stmt {
        Stmt::Loop { extent, .. } | Stmt::Reduce { extent, .. } => Some(*extent),
        _ => None,
    }
}

/// The number of positions of a loop, at most; a size is divided.
fn count(extent: &Extent<Reg>, divisor: u64) -> Term {
    match extent {
        Extent::Sized { size, .. } => Term::size(size.0, divisor),
        Extent::Known(_) | Extent::Read { .. } => Term::number(extent.bound() as u64),
    }
}

/// The number of the kernel that copies so many elements.
fn copies(kernels: &mut Vec<Kernel>, dtype: DType, extent: Extent<Reg>) -> usize {
    let (axis, value) = (Axis(0), Reg(0));
    let kernel = Kernel {
        args: vec![Arg { dtype, written: false }, Arg { dtype, written: true }],
        regs: vec![dtype],
        axes: 1,
        body: vec![Stmt::Loop {
            axis,
            extent,
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

fn import(name: &str) -> Import {
    Import { name: name.to_string(), version: lookup(name).map_or(0, |kernel| kernel.version) }
}

/// An estimate of the work of a list of statements, with additions as the unit: a sum. Sizes that are extents are divided.
fn operations(body: &[Stmt], divisor: u64) -> Vec<Term> {
    let mut sum: Vec<Term> = Vec::new();
    let mut add =
        |term: Term| match sum.iter_mut().find(|t| t.sizes == term.sizes && t.divisor == term.divisor) {
            Some(same) => same.factor = same.factor.saturating_add(term.factor),
            None => sum.push(term),
        };
    for stmt in body {
        match stmt {
            Stmt::Loop { extent, body, .. } => {
                let times = count(extent, divisor);
                operations(body, divisor).iter().for_each(|term| add(term.times(&times)));
            }
            Stmt::Reduce { extent, results, body, .. } => {
                let times = count(extent, divisor);
                operations(body, divisor).iter().for_each(|term| add(term.times(&times)));
                add(Term::number(results.len() as u64).times(&times));
            }
            _ => add(Term::number(cost_of(stmt))),
        }
    }
    sum
}

/// The work of a statement without a body.
fn cost_of(stmt: &Stmt) -> u64 {
    match stmt {
        Stmt::Literal { .. } | Stmt::Size { .. } => 0,
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
        Stmt::Loop { .. } | Stmt::Reduce { .. } => 0,
    }
}
