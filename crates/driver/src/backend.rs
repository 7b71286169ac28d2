//! The one place that turns a name into a back end. Everywhere else a back end is a value of
//! [`Backend`] that is handed down.

use std::sync::Arc;

use margay_artifact::{Artifact, Parts};
use margay_codegen_cpu::CpuBackend;
use margay_kernels_cpu::{Class, CpuTarget};
pub use margay_loops::Backend;
use margay_loops::Precision;
use margay_reference::{Reference, ReferenceDevice};
use margay_runtime::{CpuDevice, Device, Executable};

use crate::DriverError;

/// The back ends, by name.
pub const NAMES: &[&str] = &[margay_codegen_cpu::NAME, margay_reference::NAME];

/// A back end by its name. `target` is the class of machines to compile for, or `native` for this machine; `precision` is
/// that of the products, which may decide what the best class of this machine is.
///
/// # Errors
/// [`DriverError::Options`] for names that are not known.
pub fn named(name: &str, target: &str, precision: Precision) -> Result<Arc<dyn Backend>, DriverError> {
    match name {
        margay_codegen_cpu::NAME => {
            let target = CpuTarget::by_name_for(target, precision);
            cpu(target.map_err(|e| DriverError::Options(e.to_string()))?)
        }
        margay_reference::NAME => match target {
            "native" | margay_reference::NAME => Ok(Arc::new(Reference)),
            _ => Err(DriverError::Options(format!(
                "unknown target `{target}`; back end `{name}` knows `{name}`"
            ))),
        },
        _ => Err(unknown(name)),
    }
}

/// The processor of this machine.
pub fn native() -> Arc<dyn Backend> {
    native_for(Precision::F32)
}

/// The processor of this machine, for products of a precision.
pub fn native_for(precision: Precision) -> Arc<dyn Backend> {
    cpu(CpuTarget::native_for(precision)).expect("the classes of this machine are of its architecture")
}

/// Every back end with every class of machines whose code runs here, for tests that compare them.
pub fn supported() -> Vec<Arc<dyn Backend>> {
    let here = Class::ALL.into_iter().filter(|class| class.supported_here());
    let processors = here.filter_map(|class| cpu(CpuTarget::new(class)).ok());
    processors.chain([Arc::new(Reference) as Arc<dyn Backend>]).collect()
}

/// The device that runs code of a back end, by the name of the back end.
///
/// # Errors
/// [`DriverError::Options`] for names that are not known.
pub fn device(name: &str) -> Result<Arc<dyn Device>, DriverError> {
    match name {
        margay_codegen_cpu::NAME => Ok(Arc::new(CpuDevice)),
        margay_reference::NAME => Ok(Arc::new(ReferenceDevice)),
        _ => Err(unknown(name)),
    }
}

/// What was compiled in this process for a back end, loaded by its device.
pub(crate) fn executable(parts: Parts, backend: &dyn Backend) -> Result<Executable, DriverError> {
    Ok(Executable::from_parts_on(parts, &[device(backend.name())?])?)
}

/// The back end that an artifact was compiled for: that of its first code. An artifact without entries has none.
pub fn of_artifact(artifact: &Artifact) -> Result<Arc<dyn Backend>, DriverError> {
    let first = artifact.description().entries.iter().flat_map(|e| &e.sections).next();
    let first = first.ok_or_else(|| {
        let path = artifact.path().display();
        DriverError::Options(format!("`{path}` holds no code"))
    })?;
    named(&first.parts.backend, &first.parts.target, Precision::F32)
}

fn unknown(name: &str) -> DriverError {
    let known = NAMES.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    DriverError::Options(format!("unknown back end `{name}`; known are {known}"))
}

fn cpu(target: CpuTarget) -> Result<Arc<dyn Backend>, DriverError> {
    let backend = CpuBackend::new(target).map_err(|e| DriverError::Options(e.to_string()))?;
    Ok(Arc::new(backend))
}
