//! Prints docs/operators.md: `cargo run --release -p margay-onnx --example operators > docs/operators.md`.

use margay_onnx::supported_operators;

/// The page, from the table of the importer.
pub(crate) fn page() -> String {
    let mut text = String::from(HEAD);
    let mut before = None;
    for (domain, name, since) in supported_operators() {
        if before != Some(domain) {
            let title = if domain.is_empty() { "ai.onnx" } else { domain };
            text += &format!("\n## {title}\n\n| operator | since |\n|---|---|\n");
            before = Some(domain);
        }
        text += &format!("| {name} | {since} |\n");
    }
    text
}

const HEAD: &str = "\
# Operators

*Written by `crates/onnx/examples/operators.rs` from the table of the importer; do not edit.*

The operators of ONNX files that margay imports, with the operator set of their domain that introduced them. Files of
operator sets from that one on are read, with the changes that later ones made; of `ai.onnx` up to 28. Functions that a
model brings along are expanded.

Element types of tensors: f32, f64, f16, bf16, i8, i16, i32, i64, u8, u16, u32, u64, bool. Outputs that are labels of
classes in texts are left out; files with other strings, complex numbers, and sequences and optionals as inputs or outputs
are refused. Elements of 8-bit floats and of types of fewer bits are converted and moved, not computed with; at the border
of a model each is a byte, integers by their value, floats by their bits. `margay check MODEL.onnx` says of
one file what is missing.
";

#[allow(dead_code, reason = "the test of the page reads this file as a module")]
fn main() {
    print!("{}", page());
}
