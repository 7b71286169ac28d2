//! The one place that turns a name into a back end. Everywhere else a back end is a value of
//! [`Backend`] that is handed down.

use std::path::Path;
use std::sync::Arc;

use margay_artifact::{Artifact, CodeSection, Parts};
pub(crate) use margay_codegen_cpu::CostModel;
use margay_codegen_cpu::CpuBackend;
use margay_codegen_gpu::GpuBackend;
pub use margay_codegen_gpu::{EMULATED, LaunchUse, ResourcesError};
use margay_kernels_cpu::{Class, CpuTarget};
use margay_kernels_gpu::{Class as GpuClass, GpuTarget};
pub use margay_loops::Backend;
use margay_loops::Precision;
use margay_reference::{ReferenceBackend, ReferenceDevice};
use margay_runtime::{CpuDevice, Device, Executable, GpuDevice, RunError};

use crate::DriverError;

/// A back end, or why there is none for a target.
type Made = Result<Arc<dyn Backend>, String>;

/// By step, what its launches take of a device; `None` where code has no launches.
type LaunchUses = Option<Result<Vec<Vec<LaunchUse>>, ResourcesError>>;

/// A back end, and the device that runs its code.
struct Entry {
    name: &'static str,
    /// Whether every machine has its device.
    is_everywhere: bool,
    /// The back end for a target, or `native`, and the precision of products, which may decide what is best for this machine.
    make: fn(&str, Precision) -> Made,
    /// The back end for the device of a number as it is on this machine: for the best class whose code it runs. The precision of
    /// products may decide which is best.
    here: fn(usize, Precision) -> Result<Arc<dyn Backend>, DriverError>,
    /// The back end for every target whose code runs here.
    supported: fn() -> Vec<Arc<dyn Backend>>,
    /// Whether its predicted times for a target were compared with a machine of that class.
    is_measured: fn(&str) -> bool,
    /// The least seconds of so many operations on f32 and bytes of memory, by the data sheet of a target that has one.
    least_seconds: fn(&str, u64, u64) -> Option<f64>,
    /// What the launches of each step of code for a target take of a device; see [`launch_uses`].
    launch_uses: fn(&str, &[u8], Option<&Path>) -> LaunchUses,
    /// Its device of a number; only some back ends have several.
    device: fn(usize) -> Result<Arc<dyn Device>, String>,
}

/// The back ends, in the order in which code of an artifact is preferred.
const BACKENDS: &[Entry] = &[
    Entry {
        name: margay_codegen_cpu::NAME,
        is_everywhere: true,
        make: |target, precision| {
            CpuTarget::by_name_for(target, precision).map_err(|e| e.to_string()).and_then(cpu)
        },
        here: |number, precision| {
            only(number, margay_codegen_cpu::NAME)
                .map(|()| native_for(precision))
                .map_err(DriverError::Options)
        },
        supported: || {
            let here = Class::ALL.into_iter().filter(|class| class.supported_here());
            here.filter_map(|class| cpu(CpuTarget::new(class)).ok()).collect()
        },
        is_measured: |_| true,
        least_seconds: |_, _, _| None,
        launch_uses: |_, _, _| None,
        device: |number| {
            only(number, margay_codegen_cpu::NAME)?;
            Ok(Arc::new(CpuDevice))
        },
    },
    Entry {
        name: margay_codegen_gpu::NAME,
        is_everywhere: false,
        make: |target, _| match (target, GpuTarget::from_name(target)) {
            // Later devices run the code of earlier ones.
            ("native", _) => Ok(Arc::new(GpuBackend::new(GpuTarget::new(GpuClass::Sm75)))),
            (_, Some(class)) => Ok(Arc::new(GpuBackend::new(class))),
            (_, None) => {
                let known: Vec<String> = GpuTarget::all().map(|t| format!("`{}`", t.name())).collect();
                let known = known.join(", ");
                Err(format!("unknown target `{target}`; this back end knows {known}"))
            }
        },
        here: |number, _| {
            let target = GpuDevice::cuda(number).target()?;
            Ok(Arc::new(GpuBackend::new(target).on(number)))
        },
        // The tests run it on an emulator, which is none of these devices.
        supported: Vec::new,
        // Rates are those of data sheets.
        is_measured: |_| false,
        least_seconds: |target, operations, bytes| {
            let rates = GpuTarget::from_name(target)?.rates();
            Some((operations as f64 / rates.operations).max(bytes as f64 / rates.bytes))
        },
        launch_uses: |target, code, ptxas| {
            // The code of an emulator is none of a device.
            let target = GpuTarget::from_name(target).filter(|target| !target.is_emulated())?;
            Some(margay_codegen_gpu::launch_uses(code, target, ptxas))
        },
        device: |number| Ok(Arc::new(GpuDevice::cuda(number))),
    },
    Entry {
        name: margay_reference::NAME,
        is_everywhere: true,
        make: |target, _| match target {
            "native" | margay_reference::NAME => Ok(Arc::new(ReferenceBackend)),
            _ => Err(format!("unknown target `{target}`; this back end knows `{}`", margay_reference::NAME)),
        },
        here: |number, _| match only(number, margay_reference::NAME) {
            Ok(()) => Ok(Arc::new(ReferenceBackend)),
            Err(problem) => Err(DriverError::Options(problem)),
        },
        supported: || vec![Arc::new(ReferenceBackend)],
        is_measured: |_| true,
        least_seconds: |_, _, _| None,
        launch_uses: |_, _, _| None,
        device: |number| {
            only(number, margay_reference::NAME)?;
            Ok(Arc::new(ReferenceDevice))
        },
    },
];

/// Of a device that there is one of, only the first is asked for.
fn only(number: usize, name: &str) -> Result<(), String> {
    match number {
        0 => Ok(()),
        _ => Err(format!("there is one device `{name}`, asked for number {number}")),
    }
}

fn entry(name: &str) -> Result<&'static Entry, DriverError> {
    BACKENDS.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let known = BACKENDS.iter().map(|e| format!("`{}`", e.name)).collect::<Vec<_>>().join(", ");
        DriverError::Options(format!("unknown back end `{name}`; known are {known}"))
    })
}

/// A back end by its name, which may be followed by a class of devices, as in `cuda:sm_80`. `target` is the class of processors to
/// compile for, or `native` for this machine, and other back ends take none; `precision` is that of the products, which may
/// decide what the best class of this machine is.
///
/// # Errors
/// [`DriverError::Options`] for names that are not known.
pub fn named(name: &str, target: &str, precision: Precision) -> Result<Arc<dyn Backend>, DriverError> {
    let (name, class) = parted(name);
    match (name == margay_codegen_cpu::NAME, class) {
        (true, Some(class)) => Err(DriverError::Options(format!(
            "`{name}:{class}`: a class of processors is the target, as in `--target-cpu {class}`"
        ))),
        (false, _) if target != NATIVE => Err(DriverError::Options(format!(
            "the target `{target}` is a class of processors; one of `{name}` is named behind it, as in `--device {name}:CLASS`"
        ))),
        (_, class) => made(name, class.unwrap_or(target), precision),
    }
}

/// The class that stands for what this machine is.
const NATIVE: &str = "native";

/// A back end for a class that it knows.
fn made(name: &str, target: &str, precision: Precision) -> Result<Arc<dyn Backend>, DriverError> {
    (entry(name)?.make)(target, precision).map_err(DriverError::Options)
}

/// A name, and what is behind a colon.
fn parted(name: &str) -> (&str, Option<&str>) {
    name.split_once(':').map_or((name, None), |(name, rest)| (name, Some(rest)))
}

/// As [`named`], with predicted times from the text of a cost model, such as
/// [`measure`](crate::machine::measure) gives.
///
/// # Errors
/// [`DriverError::Options`] for names that are not known, a text that is no cost model, and a back end without one.
pub fn with_cost_model(
    name: &str,
    target: &str,
    precision: Precision,
    text: &str,
) -> Result<Arc<dyn Backend>, DriverError> {
    let (name, _) = parted(name);
    if name != margay_codegen_cpu::NAME {
        return Err(DriverError::Options(format!("cost models are for the back end `cpu`, not `{name}`")));
    }
    let target =
        CpuTarget::by_name_for(target, precision).map_err(|e| DriverError::Options(e.to_string()))?;
    let cost = CostModel::from_toml(text).map_err(|e| DriverError::Options(e.to_string()))?;
    costed(target.name(), cost)
}

/// The name of a class of processors, or of the one of this machine, and what times are predicted by for it.
pub(crate) fn builtin_cost(target: &str) -> Result<(String, CostModel), DriverError> {
    let target = CpuTarget::by_name(target).map_err(|e| DriverError::Options(e.to_string()))?;
    let cost = CostModel::builtin(target.name()).expect("every class has a cost model");
    Ok((target.name().to_owned(), cost))
}

/// The back end for a class of processors with these predicted times.
pub(crate) fn costed(target: &str, cost: CostModel) -> Result<Arc<dyn Backend>, DriverError> {
    let target = CpuTarget::by_name(target).map_err(|e| DriverError::Options(e.to_string()))?;
    let backend = CpuBackend::new(target).map_err(|e| DriverError::Options(e.to_string()))?;
    Ok(Arc::new(backend.with_cost(cost)))
}

/// The processor of this machine.
pub fn native() -> Arc<dyn Backend> {
    native_for(Precision::F32)
}

/// The processor of this machine, for products of a precision.
pub fn native_for(precision: Precision) -> Arc<dyn Backend> {
    cpu(CpuTarget::native_for(precision)).expect("the classes of this machine are of its architecture")
}

/// The back end that runs what a choice measures when models are compiled for another: itself, if every machine has its device,
/// and else the processor. What is chosen does not depend on whether a device is at hand.
pub(crate) fn measuring(backend: &Arc<dyn Backend>) -> Arc<dyn Backend> {
    match entry(backend.name()) {
        Ok(entry) if !entry.is_everywhere => native(),
        _ => Arc::clone(backend),
    }
}

/// Whether the times that a back end predicts were compared with a machine of the class that it compiles for.
pub fn is_measured(backend: &dyn Backend) -> bool {
    entry(backend.name()).is_ok_and(|entry| (entry.is_measured)(backend.target()))
}

/// The least seconds that a device of a back end's class takes for so many operations on f32 and bytes of memory, by its data
/// sheet: its roofline. `None` for processors.
pub fn least_seconds(backend: &dyn Backend, operations: u64, bytes: u64) -> Option<f64> {
    (entry(backend.name()).ok()?.least_seconds)(backend.target(), operations, bytes)
}

/// What the launches of each step of an artifact's code take of a device, by the number of the step: with the path of ptxas as it
/// counts registers, and else at most. `None` for processors.
///
/// # Errors
/// [`DriverError::Resources`] for code that cannot be read, and where ptxas fails or says what cannot be read.
pub fn launch_uses(
    artifact: &Artifact,
    section: &CodeSection,
    ptxas: Option<&Path>,
) -> Result<Option<Vec<Vec<LaunchUse>>>, DriverError> {
    let parts = &section.parts;
    let Some(entry) = BACKENDS.iter().find(|entry| entry.name == parts.backend) else { return Ok(None) };
    let code = &artifact.code()[section.code.clone()];
    (entry.launch_uses)(&parts.target, code, ptxas).transpose().map_err(DriverError::Resources)
}

/// Every back end with every class of machines whose code runs here, for tests that compare them.
pub fn supported() -> Vec<Arc<dyn Backend>> {
    BACKENDS.iter().flat_map(|entry| (entry.supported)()).collect()
}

/// The device that runs code of a back end, by the name of the back end, and its number if there are several, as in
/// `cuda:1`; or [`EMULATED`].
///
/// # Errors
/// [`DriverError::Options`] for names and numbers that are not known, and for the emulator where it is not built in.
pub fn device(name: &str) -> Result<Arc<dyn Device>, DriverError> {
    if name == EMULATED {
        return emulated();
    }
    let (entry, number) = numbered(name)?;
    (entry.device)(number).map_err(DriverError::Options)
}

/// A back end and the number of one of its devices, by the name of a device.
fn numbered(name: &str) -> Result<(&'static Entry, usize), DriverError> {
    let (name, number) = parted(name);
    let entry = entry(name)?;
    match number.map(str::parse) {
        None => Ok((entry, 0)),
        Some(Ok(number)) => Ok((entry, number)),
        Some(Err(_)) => {
            let message = format!("`{name}:{}` is no device, expected a number", number.unwrap_or_default());
            Err(DriverError::Options(message))
        }
    }
}

/// The back end for a device of this machine, by a name as [`device`] takes it: what it compiles in this process runs there. It is
/// for the best class of that device, which is looked for.
///
/// # Errors
/// [`DriverError::Options`] for names and numbers that are not known; [`DriverError::Run`] for a device that is not there.
pub fn on(device: &str, precision: Precision) -> Result<Arc<dyn Backend>, DriverError> {
    if device == EMULATED {
        emulated()?;
        return Ok(Arc::new(GpuBackend::new(GpuTarget::emulated(GpuClass::Sm80))));
    }
    let (entry, number) = numbered(device)?;
    (entry.here)(number, precision)
}

/// The name that stands for the first GPU of this machine, or for the processor where there is none that can run the code.
pub const CUDA_OR_CPU: &str = "cuda-or-cpu";

/// Whether the first GPU of this machine can run something: the code of an artifact, by the rule that [`Executable`] loads by, or,
/// without one, what is compiled in this process. `Ok` has the device in words, `Err` says what is lacking.
///
/// # Errors
/// An artifact that has no code for GPUs, or not for every entry.
pub fn first_gpu(artifact: Option<&Artifact>) -> Result<Result<String, String>, DriverError> {
    if artifact.is_none() && !cfg!(feature = "gpu") {
        return Ok(Err(
            "this build of margay compiles nothing for GPUs: it is without the feature `gpu`".to_owned()
        ));
    }
    let device = GpuDevice::cuda(0);
    let accepted = match artifact {
        Some(artifact) => Executable::is_accepted(artifact, &device),
        None => device.target().map(drop),
    };
    match accepted.and_then(|()| device.name()) {
        Ok(name) => Ok(Ok(name)),
        Err(error @ (RunError::NoDevice { .. } | RunError::Class { .. })) => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

#[cfg(feature = "gpu")]
fn emulated() -> Result<Arc<dyn Device>, DriverError> {
    Ok(Arc::new(GpuDevice::new(Arc::new(margay_emulator::Emulator::new(1)))))
}

#[cfg(not(feature = "gpu"))]
fn emulated() -> Result<Arc<dyn Device>, DriverError> {
    Err(DriverError::Options(format!(
        "no device `{EMULATED}`: this build of margay is without the feature `gpu`"
    )))
}

/// What was compiled in this process for a back end, loaded by its device.
pub(crate) fn executable(parts: Parts, backend: &dyn Backend) -> Result<Executable, DriverError> {
    Ok(Executable::from_parts_on(parts, &[device(&backend.device())?])?)
}

/// The code of an artifact for a back end, or else on the first device that it has code for. **It is run as it is: load only
/// what you trust.**
pub fn load(artifact: &Artifact, backend: Option<&str>) -> Result<Executable, DriverError> {
    let devices: Vec<Arc<dyn Device>> = match backend {
        Some(name) => vec![device(name)?],
        None => {
            let devices = BACKENDS.iter().map(|entry| (entry.device)(0).map_err(DriverError::Options));
            devices.collect::<Result<_, _>>()?
        }
    };
    Ok(Executable::from_artifact_on(artifact, &devices)?)
}

/// The back end that an artifact was compiled for: that of its first code. An artifact without entries has none.
pub fn of_artifact(artifact: &Artifact) -> Result<Arc<dyn Backend>, DriverError> {
    of_code(artifact.description().entries.iter().flat_map(|e| &e.sections).next())
}

/// The back end of code that was loaded.
pub fn of_executable(executable: &Executable) -> Result<Arc<dyn Backend>, DriverError> {
    of_code(executable.sections().next())
}

fn of_code(first: Option<&CodeSection>) -> Result<Arc<dyn Backend>, DriverError> {
    of_section(first.ok_or_else(|| DriverError::Options("the artifact holds no code".to_owned()))?)
}

/// The back end that wrote code.
pub fn of_section(section: &CodeSection) -> Result<Arc<dyn Backend>, DriverError> {
    made(&section.parts.backend, &section.parts.target, Precision::F32)
}

fn cpu(target: CpuTarget) -> Made {
    let backend = CpuBackend::new(target).map_err(|e| e.to_string())?;
    Ok(Arc::new(backend))
}
