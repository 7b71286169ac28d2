//! What every layer could be replaced by, as a file: `.csv` with a line for each setting of each layer, or `.json`, a list of
//! [`CurvePoint`].

use std::path::{Path, PathBuf};

use margay::CurvePoint;

use crate::error::Failure;
use crate::json;
use crate::save::{check_writable, save_text};

/// Where curves go.
#[derive(clap::Args)]
pub(crate) struct CurvesArgs {
    /// Write the error, bytes and predicted time of every layer at every setting that was fitted.
    #[arg(long, value_name = "OUT.csv|OUT.json", requires = "goal")]
    curves: Option<PathBuf>,
}

impl CurvesArgs {
    /// The file.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.curves.as_deref()
    }

    /// Fails early where the file cannot be written.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let Some(path) = self.path() else { return Ok(()) };
        if form(path).is_none() {
            let path = path.display();
            return Err(Failure::usage(format!(
                "curves `{path}`: expected a name that ends in .csv or .json"
            )));
        }
        check_writable(path)
    }

    /// Writes the file, if one was asked for.
    pub(crate) fn write(&self, points: &[CurvePoint]) -> Result<(), Failure> {
        let Some(path) = self.path() else { return Ok(()) };
        match form(path) {
            Some(Form::Json) => save_text(path, &json(&points)?),
            _ => save_text(path, &csv(points)),
        }
    }
}

enum Form {
    Csv,
    Json,
}

fn form(path: &Path) -> Option<Form> {
    match path.extension()?.to_str()? {
        "csv" => Some(Form::Csv),
        "json" => Some(Form::Json),
        _ => None,
    }
}

fn csv(points: &[CurvePoint]) -> String {
    let mut text =
        "layer,scheme,settings,layer_error,output_error,bytes_before,bytes_after,predicted_ms_before,\
                    predicted_ms_after\n"
            .to_owned();
    for p in points {
        let error = p.output_error.map_or(String::new(), |e| e.to_string());
        text += &format!(
            "{},{},{},{},{error},{},{},{},{}\n",
            quoted(&p.layer),
            p.scheme,
            quoted(&p.settings.to_string()),
            p.layer_error,
            p.bytes_before,
            p.bytes_after,
            p.predicted_ms_before,
            p.predicted_ms_after
        );
    }
    text
}

/// A cell; in quotes where it holds what separates cells.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
