//! The GPU device: programs whose kernels run on a device behind a driver.
//!
//! - `driver`: the interface of drivers; `cuda`: that of NVIDIA devices.
//! - `queue`: the stream of a session, its graphs and its times.
//! - `run`: the steps of one run. The host follows the tree of a program; steps between two decisions of the host are
//!   captured as a graph and launched together from then on. A program without such decisions is one graph.
//! - `owned`: memory, streams, graphs and events of a driver.

#[cfg(feature = "cuda")]
mod cuda;
mod driver;
mod owned;
mod queue;
mod run;

use std::sync::{Arc, OnceLock};

use margay_artifact::CodeSection;
use margay_kernels_gpu::{BUFFER_ALIGN, GpuCode, GpuTarget, Launch, LaunchArg};
use margay_loops::{Place, Program, parse_program};
use margay_tensor::StoredTensor;

#[cfg(feature = "cuda")]
pub use cuda::CudaDriver;
pub use driver::{Driver, EventId, GraphId, LaunchForm, LoadedKernel, Region, StreamId};

use self::owned::Block;
use self::queue::GpuQueue;
use crate::RunError;
use crate::device::{Device, Image, Module, Queue};

/// The name of the back end.
pub const NAME: &str = "cuda";

/// A device behind a driver.
#[derive(Clone, Debug)]
pub struct GpuDevice {
    driver: Source,
}

/// Where the driver comes from.
#[derive(Clone, Debug)]
enum Source {
    /// It is there.
    Opened(Arc<dyn Driver>),
    /// That of an NVIDIA device of this machine, by its number. It is opened when something is to be loaded, once.
    Cuda { ordinal: usize, opened: Arc<OnceLock<Arc<dyn Driver>>> },
}

impl GpuDevice {
    /// The device of a driver.
    pub fn new(driver: Arc<dyn Driver>) -> GpuDevice {
        GpuDevice { driver: Source::Opened(driver) }
    }

    /// An NVIDIA device of this machine, which is looked for when code is to be loaded.
    pub fn cuda(ordinal: usize) -> GpuDevice {
        GpuDevice { driver: Source::Cuda { ordinal, opened: Arc::default() } }
    }

    /// The device in words. It is looked for if it was not yet.
    ///
    /// # Errors
    /// [`RunError::NoDevice`].
    pub fn name(&self) -> Result<String, RunError> {
        Ok(self.driver()?.name())
    }

    /// The newest class of devices whose code it runs. It is looked for if it was not yet.
    ///
    /// # Errors
    /// [`RunError::NoDevice`], also where the device is older than every class.
    pub fn target(&self) -> Result<GpuTarget, RunError> {
        let driver = self.driver()?;
        driver.target().ok_or_else(|| RunError::NoDevice {
            problem: format!(
                "the device is {}, older than every class that there is code for",
                driver.name()
            ),
        })
    }

    fn driver(&self) -> Result<Arc<dyn Driver>, RunError> {
        match &self.driver {
            Source::Opened(driver) => Ok(Arc::clone(driver)),
            Source::Cuda { ordinal, opened } => match opened.get() {
                Some(driver) => Ok(Arc::clone(driver)),
                None => {
                    let driver = cuda_driver(*ordinal)?;
                    Ok(Arc::clone(opened.get_or_init(|| driver)))
                }
            },
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda_driver(ordinal: usize) -> Result<Arc<dyn Driver>, RunError> {
    Ok(Arc::new(CudaDriver::open(ordinal)?))
}

#[cfg(not(feature = "cuda"))]
fn cuda_driver(_: usize) -> Result<Arc<dyn Driver>, RunError> {
    let problem = "this build of margay drives no GPUs: it is without the feature `cuda`".to_owned();
    Err(RunError::NoDevice { problem })
}

impl Device for GpuDevice {
    fn backend(&self) -> &str {
        NAME
    }

    fn buffer_align(&self) -> usize {
        BUFFER_ALIGN
    }

    fn accepts(&self, section: &CodeSection) -> Result<(), RunError> {
        match GpuTarget::from_name(&section.parts.target) {
            Some(target) => self.driver()?.accepts(target),
            None => Err(RunError::Code { problem: format!("unknown target `{}`", section.parts.target) }),
        }
    }

    fn load(&self, image: &Image<'_>) -> Result<Arc<dyn Module>, RunError> {
        let (driver, bytes) = (self.driver()?, image.weights.bytes());
        let weights = Block::new(&driver, "constants", bytes.len(), false)?;
        driver.write(weights.address, bytes)?;
        let load = |(_, code): &(&CodeSection, &[u8])| {
            Loaded::new(code, bytes.len(), &driver).map_err(|problem| RunError::Code { problem })
        };
        let entries = image.sections.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let code_bytes = image.sections.iter().map(|(_, code)| code.len()).sum();
        let shared = Shared { driver, entries, weights };
        Ok(Arc::new(GpuModule { shared: Arc::new(shared), code_bytes }))
    }
}

/// An entry on the device.
#[derive(Debug)]
struct Loaded {
    program: Program,
    constants: Vec<usize>,
    kernels: Vec<Box<dyn LoadedKernel>>,
    steps: Vec<Vec<Launch>>,
}

impl Loaded {
    fn new(code: &[u8], weights_bytes: usize, driver: &Arc<dyn Driver>) -> Result<Loaded, String> {
        let code = GpuCode::decode(code)?;
        let program = parse_program(&code.program, &|c| {
            // Contents are on the device; the text needs their types only.
            let zeros = vec![0; c.storage.layout(&c.shape).bytes.min(weights_bytes)];
            StoredTensor::from_bytes(c.dtype, &c.shape, c.storage, &zeros).ok()
        });
        let program = program.map_err(|e| e.to_string())?;
        program.verify().map_err(|v| v.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        let steps = program.steps().count();
        if code.steps.len() != steps || code.constants.len() != program.constants.len() {
            return Err(format!("launches of {} steps for {steps}", code.steps.len()));
        }
        for (i, &at) in code.constants.iter().enumerate() {
            let bytes = program.buffers.iter().find(|b| b.place == Place::Constant(i)).map_or(0, |b| b.bytes);
            if at.checked_add(bytes).is_none_or(|end| end > weights_bytes) {
                return Err(format!("constant {i} lies outside of the weights"));
            }
        }
        for (number, (_, step)) in program.steps().enumerate() {
            let operands = step.operands().len();
            for launch in &code.steps[number] {
                let known = |arg: &LaunchArg| match arg {
                    LaunchArg::Operand(i) => *i < operands,
                    LaunchArg::Size(i) => (*i as usize) < program.open.sizes.len(),
                    LaunchArg::Fault | LaunchArg::Word(_) => true,
                };
                if launch.module >= code.modules.len() || !launch.args.iter().all(known) {
                    return Err(format!("a launch of step {number} names what is not there"));
                }
            }
        }
        let kernels = code.modules.iter().map(|text| driver.load(text)).collect::<Result<_, _>>()?;
        Ok(Loaded { program, constants: code.constants, kernels, steps: code.steps })
    }
}

/// What sessions share.
#[derive(Debug)]
struct Shared {
    driver: Arc<dyn Driver>,
    entries: Vec<Loaded>,
    weights: Block,
}

#[derive(Debug)]
struct GpuModule {
    shared: Arc<Shared>,
    code_bytes: usize,
}

impl Module for GpuModule {
    fn code_bytes(&self) -> usize {
        self.code_bytes
    }

    fn queue(&self, _threads: usize) -> Result<Box<dyn Queue>, RunError> {
        Ok(Box::new(GpuQueue::new(&self.shared)?))
    }
}
