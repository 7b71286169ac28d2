//! Plans from files.

use std::path::Path;

use margay_passes::sketch;
use margay_plan::Plan;

use crate::Error;

/// Reads a plan, which names schemes that exist.
///
/// # Errors
/// A file that cannot be read or is no plan.
pub fn read_plan(path: &Path) -> Result<Plan, Error> {
    let io = |source| Error::Read { path: path.to_path_buf(), source };
    let text = std::fs::read_to_string(path).map_err(io)?;
    sketch::read_plan(&text).map_err(|error| Error::PlanFile { path: path.to_path_buf(), error })
}
