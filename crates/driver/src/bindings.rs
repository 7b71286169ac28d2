//! Values of symbols for the entries of an artifact.

use std::collections::BTreeSet;

use margay_ir::{Graph, NodeId, Op};
use margay_tensor::{Binding, Symbol, is_named};

use crate::{CompileOptions, DriverError, Samples};

/// The values of the symbols, one binding per entry: options first, then the samples, then 1 for leading axes.
pub(crate) fn bindings(
    g: &Graph,
    options: &CompileOptions,
    samples: Option<&Samples>,
) -> Result<Vec<Binding>, DriverError> {
    let symbols = g.symbols();
    let given = || options.dims.iter().map(|(n, _)| n).chain(options.ranges.iter().map(|(n, _)| n));
    if let Some(name) = given().find(|n| symbol_named(g, n).is_none()) {
        let known: Vec<String> = named_symbols(g).iter().map(|s| format!("`{s}`")).collect();
        return Err(DriverError::Options(format!(
            "the model has no dimension `{name}`; it has {}",
            if known.is_empty() { "none".into() } else { known.join(", ") }
        )));
    }
    let mut base = Binding::new();
    if let Some(samples) = samples {
        let leading: Vec<Symbol> = leading_symbols(g, samples.shared());
        let first = samples.row(0, samples.bound_batch(g).unwrap_or(1).min(samples.rows()))?;
        let find = |name: &str| first.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
        for (symbol, v) in margay_ir::eval::bind_symbols(g, find)? {
            let v = if leading.contains(&symbol) { 1 } else { v };
            base.insert(symbol, v);
        }
    }
    let mut all = vec![base];
    // What is priced and reported is the greatest value of a range.
    let most = options.ranges.iter().map(|(name, (_, most))| (name.clone(), vec![*most]));
    for (name, values) in options.dims.iter().cloned().chain(most) {
        all = all
            .iter()
            .flat_map(|b| {
                values.iter().map(|v| {
                    let mut b = b.clone();
                    b.extend(symbol_named(g, &name).map(|symbol| (symbol, *v)));
                    b
                })
            })
            .collect();
    }
    for binding in &mut all {
        g.resolve_guards(binding).map_err(|e| DriverError::Options(e.to_string()))?;
        for symbol in leading_symbols(g, &BTreeSet::new()) {
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

/// For each binding those that differ from it by the ranges of the options, the last of which is the binding itself; nothing
/// without ranges.
pub(crate) fn range_points(
    g: &Graph,
    options: &CompileOptions,
    bindings: &[Binding],
) -> Result<Vec<Vec<Binding>>, DriverError> {
    if options.ranges.is_empty() {
        return Ok(Vec::new());
    }
    for (i, (name, (least, most))) in options.ranges.iter().enumerate() {
        let twice = options.ranges[..i].iter().any(|(other, _)| other == name);
        if twice || options.dims.iter().any(|(other, _)| other == name) {
            let message = format!("dimension `{name}` has a range and another range or value");
            return Err(DriverError::Options(message));
        }
        if *least < 0 || least > most {
            let message = format!("dimension `{name}`: {least} to {most} is no range of extents");
            return Err(DriverError::Options(message));
        }
    }
    let widths = options.ranges.iter().map(|(_, (least, most))| most.abs_diff(*least).saturating_add(1));
    let count = widths.fold(1u64, u64::saturating_mul);
    if count > MAX_POINTS {
        return Err(DriverError::Options(format!(
            "the ranges have {count} combinations of values, each of which is compared with its own program; at most \
             {MAX_POINTS} are, give narrower ones"
        )));
    }
    let points = |binding: &Binding| {
        // What follows from a symbol of a range is found anew.
        let mut base = binding.clone();
        let follows = |s: &Symbol| {
            g.guards().iter().any(|guard| {
                let mut symbols = Vec::new();
                guard.value.collect_symbols(&mut symbols);
                let ranged = |s: &Symbol| options.ranges.iter().any(|(name, _)| is_named(s, name));
                (guard.symbol == *s && symbols.iter().any(ranged))
                    || (ranged(&guard.symbol) && symbols.contains(s))
            })
        };
        base.retain(|s, _| !follows(s) && options.ranges.iter().all(|(name, _)| !is_named(s, name)));
        let mut points = vec![base];
        for (name, (least, most)) in &options.ranges {
            let with = |point: &Binding, v: i64| {
                let mut point = point.clone();
                point.extend(symbol_named(g, name).map(|symbol| (symbol, v)));
                point
            };
            points = points.iter().flat_map(|p| (*least..=*most).map(move |v| with(p, v))).collect();
        }
        for point in &mut points {
            g.resolve_guards(point).map_err(|e| DriverError::Options(e.to_string()))?;
        }
        Ok(points)
    };
    bindings.iter().map(points).collect()
}

/// The symbols that may be given values: those of the graph, and those that others stand for.
fn named_symbols(g: &Graph) -> Vec<Symbol> {
    g.symbols().into_iter().chain(g.guards().iter().map(|guard| guard.symbol.clone())).collect()
}

/// The symbol that a user calls so.
fn symbol_named(g: &Graph, name: &str) -> Option<Symbol> {
    named_symbols(g).into_iter().find(|symbol| is_named(symbol, name))
}

/// Combinations of values that ranges may have.
const MAX_POINTS: u64 = 1 << 12;

/// The symbols that stand alone as the leading extent of an input that is not given once.
fn leading_symbols(g: &Graph, shared: &BTreeSet<String>) -> Vec<Symbol> {
    let leading = |n: &NodeId| match g.op(*n) {
        Op::Input(input) if shared.contains(&*input.name) => None,
        Op::Input(input) => input.ty.shape.first()?.as_symbol(),
        _ => None,
    };
    g.inputs().iter().filter_map(leading).collect()
}
