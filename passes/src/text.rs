//! Passes as text: `simplify`, `bind-dims{N = 4, seq = 128}`, `apply-plan{plan.toml}`.
//!
//! Every pass has a row in [`PASSES`] with a reader of its configuration, which is what
//! [`Pass::configuration`] writes. Files that a configuration names are asked for by name;
//! nothing here opens one.

use margay_ir::Pass;
use margay_loops::text::words::{split_top, take_name};

use crate::{
    ApplyPlan, AssignLayout, BindDims, Differentiate, DrawSigns, ExpandFeatureAttention, ExpandRecurrences,
    ExpandSketches, FoldConstants, FoldScales, MakeTrainable, MergeDuplicates, PadDecided,
    RecognizeAttention, RecognizeFeatureAttention, RecognizeGelu, RecognizeIntegerProducts,
    RecognizeKernelGradients, RecognizeLayerNorm, RecognizeLinearAttention, RecognizePiecewise,
    RecognizeSilu, Recompute, RemoveDead, RemoveDropout, RoundOperands, Simplify, StoreConstants,
    WidenProducts,
};

/// The contents of files that a configuration names, or why they cannot be had.
pub type Files<'a> = dyn Fn(&str) -> Result<String, String> + 'a;

/// A pass that was read, or what is wrong with the text.
pub type PassRead = Result<Box<dyn Pass>, String>;

/// A pass that can be asked for by name.
pub struct PassEntry {
    /// Its name.
    pub name: &'static str,
    /// Reads its configuration.
    read: fn(&str, &Files<'_>) -> PassRead,
}

/// All passes, sorted by name.
pub const PASSES: &[PassEntry] = &[
    PassEntry { name: "apply-plan", read: |text, files| boxed(ApplyPlan::read(text, files)) },
    PassEntry { name: "assign-layout", read: |text, _| plain(text, AssignLayout) },
    PassEntry { name: "bind-dims", read: |text, _| boxed(BindDims::read(text)) },
    PassEntry { name: "differentiate", read: |text, _| boxed(Differentiate::read(text)) },
    PassEntry { name: "draw-signs", read: |text, _| plain(text, DrawSigns) },
    PassEntry { name: "expand-feature-attention", read: |text, _| plain(text, ExpandFeatureAttention) },
    PassEntry { name: "expand-recurrences", read: |text, _| plain(text, ExpandRecurrences) },
    PassEntry { name: "expand-sketches", read: |text, _| plain(text, ExpandSketches) },
    PassEntry { name: "fold-constants", read: |text, _| boxed(FoldConstants::read(text)) },
    PassEntry { name: "fold-scales", read: |text, _| plain(text, FoldScales) },
    PassEntry { name: "make-trainable", read: |text, _| boxed(MakeTrainable::read(text)) },
    PassEntry { name: "merge-duplicates", read: |text, _| plain(text, MergeDuplicates) },
    PassEntry { name: "pad-decided", read: |text, _| plain(text, PadDecided) },
    PassEntry { name: "recognize-attention", read: |text, _| plain(text, RecognizeAttention) },
    PassEntry { name: "recognize-feature-attention", read: |text, _| plain(text, RecognizeFeatureAttention) },
    PassEntry { name: "recognize-gelu", read: |text, _| plain(text, RecognizeGelu) },
    PassEntry { name: "recognize-integer-products", read: |text, _| plain(text, RecognizeIntegerProducts) },
    PassEntry { name: "recognize-kernel-gradients", read: |text, _| plain(text, RecognizeKernelGradients) },
    PassEntry { name: "recognize-layer-norm", read: |text, _| plain(text, RecognizeLayerNorm) },
    PassEntry { name: "recognize-linear-attention", read: |text, _| plain(text, RecognizeLinearAttention) },
    PassEntry { name: "recognize-piecewise", read: |text, _| plain(text, RecognizePiecewise) },
    PassEntry { name: "recognize-silu", read: |text, _| plain(text, RecognizeSilu) },
    PassEntry { name: "recompute", read: |text, _| boxed(Recompute::read(text)) },
    PassEntry { name: "remove-dead", read: |text, _| plain(text, RemoveDead) },
    PassEntry { name: "remove-dropout", read: |text, _| plain(text, RemoveDropout) },
    PassEntry { name: "round-operands", read: |text, _| plain(text, RoundOperands) },
    PassEntry { name: "simplify", read: |text, _| plain(text, Simplify) },
    PassEntry { name: "store-constants", read: |text, _| boxed(StoreConstants::read(text)) },
    PassEntry { name: "widen-products", read: |text, _| plain(text, WidenProducts) },
];

/// Reads a pass as it prints.
///
/// # Errors
/// In words: there is no such pass, or what is wrong with its configuration.
pub fn read_pass(text: &str, files: &Files<'_>) -> PassRead {
    let (name, configuration) = match text.split_once('{') {
        None => (text, ""),
        Some((name, rest)) => {
            (name, rest.strip_suffix('}').ok_or_else(|| format!("expected `}}` at the end of `{text}`"))?)
        }
    };
    let Some(entry) = PASSES.iter().find(|p| p.name == name) else {
        let known: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
        return Err(format!("there is no pass `{name}`; known are {}", known.join(", ")));
    };
    (entry.read)(configuration.trim(), files).map_err(|why| format!("pass `{name}`: {why}"))
}

fn boxed<P: Pass + 'static>(pass: Result<P, String>) -> PassRead {
    Ok(Box::new(pass?))
}

/// A pass that has nothing to configure.
fn plain(text: &str, pass: impl Pass + 'static) -> PassRead {
    match text {
        "" => Ok(Box::new(pass)),
        text => Err(format!("it has no configuration, found `{text}`")),
    }
}

/// A name that is all of a text, bare or quoted.
pub(crate) fn name(text: &str) -> Result<String, String> {
    match take_name(text)? {
        (name, "") => Ok(name),
        (_, rest) => Err(format!("unexpected `{rest}`")),
    }
}

/// Names with commas between them.
pub(crate) fn names(text: &str) -> Result<Vec<String>, String> {
    split_top(text).into_iter().map(name).collect()
}

/// The name and the value of `name = value`; `None` where the text does not start like that.
pub(crate) fn pair(text: &str) -> Option<(String, &str)> {
    let (name, rest) = take_name(text).ok()?;
    rest.trim_start().strip_prefix('=').map(|value| (name, value.trim()))
}

/// Names with their values, in order, each once.
pub(crate) fn pairs(text: &str) -> Result<Vec<(String, &str)>, String> {
    let mut found: Vec<(String, &str)> = Vec::new();
    for item in split_top(text) {
        let (name, value) = pair(item).ok_or_else(|| format!("expected `name = value`, found `{item}`"))?;
        if found.iter().any(|(known, _)| *known == name) {
            return Err(format!("`{name}` is given twice"));
        }
        found.push((name, value));
    }
    Ok(found)
}

/// A number that is all of a text.
pub(crate) fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{name}`: expected an integer, found `{text}`"))
}
