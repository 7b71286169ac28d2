//! Devices by their names, and what is said of a choice.

use std::path::Path;
use std::sync::Arc;

use margay::backend::Backend;
use margay::{Precision, backend, device_for};

use crate::error::Failure;
use crate::note;

/// Where a model learns.
#[derive(clap::Args)]
pub(crate) struct LearningDevice {
    /// Device that runs training steps and evaluations: cpu; cuda, or cuda:1 for the second one; cuda-or-cpu for cuda if a device is
    /// found that code is made for, and else for cpu (a missing kernel, too little memory and a device that fails are errors all the
    /// same); or, slowly, emulated or reference. Checkpoints go from one to another. What is written is compiled for the processor.
    #[arg(long, value_name = "NAME[:NUMBER]", default_value = "cpu")]
    device: String,
}

impl LearningDevice {
    /// What compiles for it.
    ///
    /// # Errors
    /// A device that is not known, or not there.
    pub(crate) fn backend(&self) -> Result<Arc<dyn Backend>, Failure> {
        Ok(backend::on(&chosen(&self.device, None)?, Precision::F32)?)
    }
}

/// The device that a name stands for; says which one it is where the name leaves a choice. `model` is what it is to run, if that
/// is a file as it is.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn chosen(name: &str, model: Option<&Path>) -> Result<String, Failure> {
    let choice = device_for(name, model)?;
    if let Some(why) = choice.why {
        note(format!("`{name}` is `{}`: {why}", choice.device));
    }
    Ok(choice.device)
}
