//! Models that compute derivatives of their outputs.

use margay_ir::{Graph, Remark};
use margay_passes::{Differentiate, Pipeline, PipelineItem, parameter_names};

use crate::{DriverError, Dump};

/// The graph with the derivatives of one of its outputs as further outputs, `gradient.NAME`. `of` names the output; it may be
/// left out where there is one of floats. `by` names inputs and constants as
/// [`parameter_names`](margay_passes::parameter_names()) does; without it, all constants of floats with an axis. An output
/// that is no scalar gets an input `cotangent`.
///
/// # Errors
/// [`DriverError::Options`] where the output is not given and there are several; [`DriverError::Pipeline`] for names that
/// the model does not have, and for an operator without derivative.
pub fn differentiate(
    g: &Graph,
    of: Option<&str>,
    by: Option<&[String]>,
) -> Result<(Graph, Vec<Remark>), DriverError> {
    let floats = g.outputs().iter().filter(|o| g.ty(o.value).dtype.is_float());
    let floats: Vec<&str> = floats.map(|o| &*o.name).collect();
    let output = match (of, floats.as_slice()) {
        (Some(name), _) => name.to_string(),
        (None, [only]) => only.to_string(),
        (None, several) => {
            let list = several.join("`, `");
            let message = format!("expected one output of floats, found {}: `{list}`", several.len());
            return Err(DriverError::Options(message));
        }
    };
    let all = || {
        let named = parameter_names(g).into_iter().filter(|(n, _)| g.ty((*n).into()).ndim() > 0);
        named.map(|(_, name)| name).collect()
    };
    let by = by.map_or_else(all, <[String]>::to_vec);
    let mut out = g.clone();
    let pass = PipelineItem::Run(Box::new(Differentiate { output, by }));
    let remarks = Dump::none().run(&Pipeline::new(vec![pass]), &mut out)?;
    Ok((out, remarks))
}
