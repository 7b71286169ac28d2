//! `margay`: products with random matrices that are named and not stored.

use margay_ir::ops::{Sketch, SketchLaw};

use super::Importer;
use super::call::{Call, Imported, Refusal, axis};

/// `Sketch` of operator set 1: `S x` for the vectors x along an axis, or `Sᵀ x` where `adjoint` is not 0.
///
/// Attributes: `law` (`gaussian`, `uniform`, `rademacher`, `sjlt`, `countsketch` or `srht`), `rows` of S; `columns`, which `adjoint` needs;
/// `nonzeros` of each column, of `sjlt`; `seed` and `stream`, 0 unless given; `axis`, the last one unless given.
pub(super) fn sketch(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let ndim = cx.ty(x).ndim();
    let at = axis(call.int("axis", -1)?, ndim)?;
    let count = |name: &'static str| -> Result<Option<usize>, Refusal> {
        let found = call.optional_int(name)?;
        let wrong =
            |v: i64| Refusal::Invalid(format!("expected attribute `{name}` to be at least 1, found {v}"));
        found.map(|v| usize::try_from(v).ok().filter(|v| *v > 0).ok_or_else(|| wrong(v))).transpose()
    };
    let missing = |name: &str| Refusal::Invalid(format!("expected attribute `{name}`, found none"));
    let (rows, columns, nonzeros) = (count("rows")?, count("columns")?, count("nonzeros")?);
    let (adjoint, length) = (call.flag("adjoint", false)?, cx.ty(x).shape[at].as_extent());
    let given = if adjoint { columns } else { columns.or(length) };
    let law = match (call.text("law", "")?, nonzeros) {
        ("gaussian", None) => SketchLaw::Gaussian,
        ("uniform", None) => SketchLaw::Uniform,
        ("rademacher", None) => SketchLaw::Rademacher,
        ("srht", None) => SketchLaw::Srht,
        ("countsketch", None) => SketchLaw::Sjlt(1),
        ("sjlt", Some(nonzeros)) => SketchLaw::Sjlt(nonzeros),
        ("sjlt", None) => return Err(missing("nonzeros")),
        (law, _) => {
            return Err(Refusal::Invalid(format!(
                "expected attribute `law` to be gaussian, uniform, rademacher, srht or countsketch, or sjlt with \
                 `nonzeros`, found `{law}`"
            )));
        }
    };
    let op = Sketch {
        law,
        rows: rows.ok_or_else(|| missing("rows"))?,
        columns: given.ok_or_else(|| missing("columns"))?,
        // Any 64 bits.
        seed: call.int("seed", 0)? as u64,
        stream: call.int("stream", 0)? as u64,
        adjoint,
    };
    let mut perm: Vec<usize> = (0..ndim).collect();
    perm.swap(at, ndim - 1);
    let last = cx.transposed(x, &perm)?;
    let y = cx.add(op, &[last])?;
    Ok(vec![cx.transposed(y, &perm)?])
}
