//! The calling convention of compiled kernels, shared by generated code, hand-written kernels and the runtime.

/// A compiled kernel: runs the work items `begin..end` of one step.
///
/// - `params`: the words the target prepared for the step; for a generated kernel the first word is the
///   number of the step, and the others are the sizes that it uses, by their numbers.
/// - `args`: one pointer per argument, in the order of the step.
/// - `scratch`: memory of the calling thread, aligned to 64 bytes. The first [`SCRATCH_HEADER_BYTES`] bytes are
///   the header: its first word receives a fault (see [`fault_word`]), its second points at the table of
///   [`RowFn`]s of the processor class, its third at the table of [`ScalarFn`]s; what follows is the kernel's to use.
///
/// Items may run in any order and on any thread; two items never write the same byte.
pub type KernelFn =
    unsafe extern "C" fn(params: *const u64, args: *const *mut u8, scratch: *mut u8, begin: u64, end: u64);

/// Runs the items `0..total` of a kernel, spread over the threads of a session in runs of at least `grain`.
/// The first word of a driver's table points at one of these.
///
/// - `region`: which of the program's parallel regions this is; regions are numbered in the order of the steps.
///
/// Returns 0, or anything else after a fault: the driver returns then.
pub type ParallelFn = unsafe extern "C" fn(
    context: *mut u8,
    function: KernelFn,
    params: *const u64,
    args: *const *mut u8,
    total: u64,
    grain: u64,
    region: u64,
) -> u64;

/// The compiled whole program.
///
/// - `table`: `table[0]` is a [`ParallelFn`]; the others are [`KernelFn`]s in the order of the artifact's list.
/// - `context`: handed to the parallel function.
/// - `bases`: the arena, the constants, then one pointer per input and per output.
/// - `params`: the [table of words](crate::table).
pub type DriverFn =
    unsafe extern "C" fn(table: *const usize, context: *mut u8, bases: *const *mut u8, params: *const u64);

/// A function of one number, applied to a row of them by hand-written code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RowFunction {
    /// e to the power of x.
    Exp,
    /// The error function.
    Erf,
    /// The hyperbolic tangent.
    Tanh,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
}

impl RowFunction {
    /// Every function, in the order of the table. Artifacts rely on it: new ones go to the end.
    pub const ALL: [RowFunction; 4] =
        [RowFunction::Exp, RowFunction::Erf, RowFunction::Tanh, RowFunction::Sigmoid];
}

/// `y[i] = f(x[i])` for `len` elements; an element's result does not depend on its place.
///
/// - `x`, `y`: readable and writable for `len` elements, of any alignment; equal or disjoint.
/// - `len`: may be 0.
pub type RowFn = unsafe extern "C" fn(x: *const f32, y: *mut f32, len: usize);

/// A function of one f64 or two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ScalarFunction {
    /// e to the power of x.
    Exp,
    /// The natural logarithm.
    Log,
    /// The error function.
    Erf,
    /// The hyperbolic tangent.
    Tanh,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// The sine.
    Sin,
    /// The cosine.
    Cos,
    /// x to the power of y.
    Pow,
}

impl ScalarFunction {
    /// Every function, in the order of the table. Artifacts rely on it: new ones go to the end.
    pub const ALL: [ScalarFunction; 8] = [
        ScalarFunction::Exp,
        ScalarFunction::Log,
        ScalarFunction::Erf,
        ScalarFunction::Tanh,
        ScalarFunction::Sigmoid,
        ScalarFunction::Sin,
        ScalarFunction::Cos,
        ScalarFunction::Pow,
    ];
}

/// `f(x, y)`; a function of one number does not look at y. Errors are at most a few units in the last place, for arguments
/// of any size.
pub type ScalarFn = extern "C" fn(x: f64, y: f64) -> f64;

/// Where the header of the scratch memory points at the table of row functions, in bytes.
pub const ROW_TABLE_AT: usize = 8;

/// Where the header of the scratch memory points at the table of scalar functions, in bytes.
pub const SCALAR_TABLE_AT: usize = 16;

/// Bytes at the start of a thread's scratch that belong to the runtime.
pub const SCRATCH_HEADER_BYTES: usize = 64;

/// Alignment in bytes of the arena, the constants and every buffer in them.
pub const BUFFER_ALIGN: usize = 64;

/// Where a driver finds the pointer of input `i` in `bases`.
pub const fn input_base(i: usize) -> usize {
    2 + i
}

/// What a kernel stores into the first word of the scratch header when a [`Require`](margay_loops::Stmt::Require)
/// fails, if no greater word is there: one more than the number of the step, so that 0 means no fault, and above 32 bits
/// the number among [`Kernel::requirements`](margay_loops::Kernel::requirements).
pub const fn fault_word(step: u32, requirement: u32) -> u64 {
    step as u64 + 1 + ((requirement as u64) << 32)
}

/// The step and the number of the requirement in a [`fault_word`]; `None` for no fault.
pub const fn fault_of(word: u64) -> Option<(u32, u32)> {
    match word {
        0 => None,
        word => Some(((word as u32).wrapping_sub(1), (word >> 32) as u32)),
    }
}
