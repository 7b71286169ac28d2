//! LLVM and MLIR: from the text of a kernel to PTX, or to machine code of the processor.

use std::cell::RefCell;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Once;

use margay_kernels_gpu::{ENTRY, GpuTarget};
use melior::dialect::DialectRegistry;
use melior::ir::attribute::AttributeLike;
use melior::ir::operation::OperationLike;
use melior::ir::{BlockLike, Module};
use melior::pass::PassManager;
use melior::{Context, utility};
use mlir_sys::{
    MlirExecutionEngine, MlirStringRef, mlirArrayAttrGetElement, mlirArrayAttrGetNumElements,
    mlirAttributeIsAGPUObjectAttr, mlirExecutionEngineCreate, mlirExecutionEngineDestroy,
    mlirExecutionEngineLookup, mlirExecutionEngineRegisterSymbol, mlirGPUObjectAttrGetObject,
};

use crate::CodegenError;
use crate::host::{HostFn, HostKernel, for_host};

/// From the dialects that kernels are written in to `llvm` and `nvvm`.
const LOWER: &str = "gpu.module(canonicalize,cse,loop-invariant-code-motion,convert-scf-to-cf,\
    convert-gpu-to-nvvm{use-bare-ptr-memref-call-conv=true},canonicalize,cse,reconcile-unrealized-casts)";

/// One block of a multiprocessor is enough: else ptxas keeps registers in memory to have room for several.
const ONE_BLOCK: &str = "nvvm.minctasm = 1 : i32";

/// How much of an operation a message shows.
const MOST_SHOWN: usize = 400;

/// LLVM's passes are registered once for the process, by a table that LLVM holds.
static REGISTERED: Once = Once::new();

/// A context of MLIR.
#[derive(Debug)]
pub struct Mlir {
    context: Context,
}

// SAFETY: a context belongs to no thread; whoever shares one between threads lets one at a time use it.
unsafe impl Send for Mlir {}

impl Default for Mlir {
    fn default() -> Mlir {
        Mlir::new()
    }
}

impl Mlir {
    /// A context with all dialects.
    pub fn new() -> Mlir {
        REGISTERED.call_once(utility::register_all_passes);
        let registry = DialectRegistry::new();
        utility::register_all_dialects(&registry);
        let context = Context::new_with_threading(false);
        context.append_dialect_registry(&registry);
        context.load_all_available_dialects();
        utility::register_all_llvm_translations(&context);
        Mlir { context }
    }

    /// The PTX of a kernel for a class of devices.
    ///
    /// # Errors
    /// What LLVM says.
    pub fn ptx(&self, kernel: &str, target: GpuTarget) -> Result<String, CodegenError> {
        // LLVM ends the process for a class and a version that do not belong together.
        let (chip, version) =
            target.ptx().ok_or_else(|| CodegenError::Mlir(format!("`{}` has no PTX", target.name())))?;
        let pipeline = format!(
            "builtin.module(nvvm-attach-target{{chip={chip} features={version} O=3}},\
             gpu-module-to-binary{{format=isa}})"
        );
        // The dialect takes the attribute only where the function is lowered already.
        let lowered = self.lower(kernel)?;
        let bounded = lowered.replacen("nvvm.kernel", &format!("nvvm.kernel, {ONE_BLOCK}"), 1);
        self.with(&bounded, &pipeline, |module| {
            let objects = objects(module);
            let object = objects.into_iter().next();
            object.ok_or_else(|| CodegenError::Mlir("the module holds no kernel".to_owned()))
        })
    }

    /// A kernel in the dialects `llvm` and `nvvm`, as LLVM is given it for a device.
    ///
    /// # Errors
    /// What LLVM says.
    pub fn lower(&self, kernel: &str) -> Result<String, CodegenError> {
        let pipeline = format!("builtin.module({LOWER})");
        self.with(kernel, &pipeline, |module| Ok(module.as_operation().to_string()))
    }

    /// A kernel as machine code of the processor, see [`for_host`]. `symbols` are the functions that it calls.
    ///
    /// # Safety
    /// The symbols are functions of the names and types that [`for_host`] states.
    ///
    /// # Errors
    /// What LLVM says.
    pub unsafe fn host(
        &self,
        kernel: &str,
        symbols: &[(&str, *mut c_void)],
    ) -> Result<HostCode, CodegenError> {
        let host = for_host(&self.lower(kernel)?)?;
        let engine = self.with(&host.text, "builtin.module(canonicalize)", |module| {
            // SAFETY: the module is alive; no shared library is named.
            let raw =
                unsafe { mlirExecutionEngineCreate(module.to_raw(), 2, 0, std::ptr::null(), false, false) };
            match raw.ptr.is_null() {
                true => Err(CodegenError::Mlir("the kernel has no machine code".to_owned())),
                false => Ok(Engine(raw)),
            }
        })?;
        for (name, function) in symbols {
            // SAFETY: the engine is alive, and the names are copied.
            unsafe { mlirExecutionEngineRegisterSymbol(engine.0, text(name), *function) };
        }
        // The form that takes a list of addresses of arguments.
        let name = format!("_mlir_{ENTRY}");
        // SAFETY: the engine is alive.
        let function = unsafe { mlirExecutionEngineLookup(engine.0, text(&name)) };
        if function.is_null() {
            return Err(CodegenError::Mlir(format!("the machine code lacks `{name}`")));
        }
        // SAFETY: the engine makes this form of every function, with this type.
        let function = unsafe { std::mem::transmute::<*mut c_void, HostFn>(function) };
        Ok(HostCode { _engine: engine, function, kernel: host })
    }

    /// Parses a module, runs passes on it, and looks at the result.
    fn with<T>(
        &self,
        text: &str,
        pipeline: &str,
        then: impl FnOnce(&Module<'_>) -> Result<T, CodegenError>,
    ) -> Result<T, CodegenError> {
        let messages: Rc<RefCell<Vec<String>>> = Rc::default();
        let sink = Rc::clone(&messages);
        let handler = self.context.attach_diagnostic_handler(move |diagnostic| {
            let message: String = diagnostic.to_string().chars().take(MOST_SHOWN).collect();
            sink.borrow_mut().push(format!("{}: {message}", diagnostic.location()));
            true
        });
        let result = self.run(text, pipeline).map_err(|problem| {
            let messages = messages.borrow().join("; ");
            CodegenError::Mlir(format!("{problem}: {messages}"))
        });
        let result = result.and_then(|module| then(&module));
        self.context.detach_diagnostic_handler(handler);
        result
    }

    fn run(&self, text: &str, pipeline: &str) -> Result<Module<'_>, String> {
        let mut module = Module::parse(&self.context, text).ok_or("the text is no module")?;
        let manager = PassManager::new(&self.context);
        manager.enable_verifier(true);
        utility::parse_pass_pipeline(manager.as_operation_pass_manager(), pipeline)
            .map_err(|e| e.to_string())?;
        manager.run(&mut module).map_err(|e| e.to_string())?;
        Ok(module)
    }
}

fn text(name: &str) -> MlirStringRef {
    MlirStringRef { data: name.as_ptr().cast(), length: name.len() }
}

/// The texts of the objects in a module.
fn objects(module: &Module<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = module.body().first_operation();
    while let Some(operation) = next {
        if let Ok(objects) = operation.attribute("objects") {
            let raw = objects.to_raw();
            // SAFETY: the attribute is alive as long as the module; each element is asked what it is before it is read.
            let texts = unsafe {
                (0..mlirArrayAttrGetNumElements(raw)).filter_map(|i| {
                    let object = mlirArrayAttrGetElement(raw, i);
                    mlirAttributeIsAGPUObjectAttr(object).then(|| {
                        let text = mlirGPUObjectAttrGetObject(object);
                        std::slice::from_raw_parts(text.data.cast::<u8>(), text.length).to_vec()
                    })
                })
            };
            found
                .extend(texts.map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()));
        }
        next = operation.next_in_block();
    }
    found
}

/// An execution engine of LLVM, which holds machine code.
#[derive(Debug)]
struct Engine(MlirExecutionEngine);

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: it is alive until now, and nothing else destroys it.
        unsafe { mlirExecutionEngineDestroy(self.0) };
    }
}

// SAFETY: once it is made the engine is only read, and its code may run on any thread.
unsafe impl Send for Engine {}
// SAFETY: as above.
unsafe impl Sync for Engine {}

/// Machine code of a kernel.
#[derive(Debug)]
pub struct HostCode {
    _engine: Engine,
    /// The function; alive as long as this is.
    pub function: HostFn,
    /// What it was made of.
    pub kernel: HostKernel,
}
