//! Values of symbols for the entries of an artifact.

use std::collections::BTreeSet;

use margay_ir::{Graph, NodeId, Op};
use margay_tensor::{Binding, Symbol};

use crate::samples::bound_batch;
use crate::{CompileOptions, DriverError, Samples};

/// The values of the symbols, one binding per entry: options first, then the samples, then 1 for leading axes.
pub(crate) fn bindings(
    g: &Graph,
    options: &CompileOptions,
    samples: Option<&Samples>,
) -> Result<Vec<Binding>, DriverError> {
    let symbols = g.symbols();
    let named = || symbols.iter().chain(g.guards().iter().map(|guard| &guard.symbol));
    if let Some((name, _)) = options.dims.iter().find(|(n, _)| !named().any(|s| **s == **n)) {
        let known: Vec<String> = named().map(|s| format!("`{s}`")).collect();
        return Err(DriverError::Options(format!(
            "the model has no dimension `{name}`; it has {}",
            if known.is_empty() { "none".into() } else { known.join(", ") }
        )));
    }
    let mut base = Binding::new();
    if let Some(samples) = samples {
        let leading: Vec<Symbol> = leading_symbols(g);
        let first = samples.row(0, bound_batch(g).unwrap_or(1).min(samples.rows()))?;
        let find = |name: &str| first.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
        for (symbol, v) in margay_ir::eval::bind_symbols(g, find)? {
            let v = if leading.contains(&symbol) { 1 } else { v };
            base.insert(symbol, v);
        }
    }
    let mut all = vec![base];
    for (name, values) in &options.dims {
        all = all
            .iter()
            .flat_map(|b| {
                values.iter().map(|v| {
                    let mut b = b.clone();
                    b.insert(name.as_str().into(), *v);
                    b
                })
            })
            .collect();
    }
    for binding in &mut all {
        g.resolve_guards(binding).map_err(|e| DriverError::Options(e.to_string()))?;
        for symbol in leading_symbols(g) {
            binding.entry(symbol).or_insert(1);
        }
        let open: Vec<String> =
            symbols.iter().filter(|s| !binding.contains_key(*s)).map(|s| format!("`{s}`")).collect();
        if !open.is_empty() {
            return Err(DriverError::Options(format!(
                "dimensions without a value: {}; give `--dim NAME=N` or samples",
                open.join(", ")
            )));
        }
    }
    // The same entry twice would be the same code twice.
    let mut seen = BTreeSet::new();
    all.retain(|binding| seen.insert(binding.clone()));
    Ok(all)
}

/// The symbols that stand alone as the leading extent of an input.
fn leading_symbols(g: &Graph) -> Vec<Symbol> {
    let leading = |n: &NodeId| match g.op(*n) {
        Op::Input(input) => input.ty.shape.first()?.as_symbol(),
        _ => None,
    };
    g.inputs().iter().filter_map(leading).collect()
}
