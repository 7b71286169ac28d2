//! What every layer could be replaced by: error, bytes and time of all settings that schemes offer, from one fit.

use margay_plan::Settings;
use serde::{Deserialize, Serialize};

use super::Job;
use super::fit::Fit;
use super::price::Prices;
use crate::DriverError;

/// One way to sketch a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The site, as plans name it.
    pub layer: String,
    /// The scheme.
    pub scheme: String,
    /// Its settings, such as the rank.
    pub settings: Settings,
    /// Relative L2 error of the site's own output on the calibration samples, weighed by what the outputs of the model depend
    /// on where that is known (of its weight, without samples).
    pub layer_error: f64,
    /// Predicted relative L2 error of the model's outputs from this site alone; absent without samples.
    pub output_error: Option<f64>,
    /// Stored bytes of the weight as it is.
    pub bytes_before: u64,
    /// Stored bytes of what replaces it.
    pub bytes_after: u64,
    /// Predicted milliseconds of the site's nodes as they are.
    pub predicted_ms_before: f64,
    /// Predicted milliseconds of what replaces them.
    pub predicted_ms_after: f64,
}

/// All that was fitted, in the order of the sites.
pub(crate) fn curves(
    job: &Job<'_>,
    fits: &[Fit],
    prices: &Prices,
    weights: Option<&[f64]>,
) -> Result<Vec<CurvePoint>, DriverError> {
    let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
    let mut points = Vec::new();
    for (fit, prices_of) in fits.iter().zip(&prices.candidates) {
        let dense = prices.plain[fit.site];
        for (settings, price) in fit.settings.iter().zip(prices_of) {
            let error = fit.fitted.squared_error(settings).map_err(DriverError::Options)?;
            points.push(CurvePoint {
                layer: job.sites[fit.site].name.clone(),
                scheme: fit.scheme.to_owned(),
                settings: settings.clone(),
                layer_error: error.sqrt(),
                output_error: weights.map(|w| (error * w[fit.site]).sqrt()),
                bytes_before: bytes(dense.bytes),
                bytes_after: bytes(price.bytes),
                predicted_ms_before: dense.seconds * 1e3,
                predicted_ms_after: price.seconds * 1e3,
            });
        }
    }
    Ok(points)
}
