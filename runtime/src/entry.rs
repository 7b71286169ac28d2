//! Which entry fits given inputs.

use margay_artifact::{Entry, EntryParts};
use margay_loops::open::Ranges;
use margay_loops::{Open, Port, SizeId};
use margay_tensor::Tensor;

use crate::RunError;

/// The position of the entry that takes these inputs: one for exactly their shapes before one for a range. `symbols`
/// receives the values of what is open in it. Allocates nothing when there is one and `symbols` has room.
pub(crate) fn choose<'a>(
    entries: impl Iterator<Item = &'a Entry> + Clone,
    inputs: &[(&str, &Tensor)],
    symbols: &mut Vec<i64>,
) -> Result<usize, RunError> {
    for closed in [true, false] {
        let mut found = entries.clone().map(|e| &e.parts);
        let fits = |parts: &EntryParts| {
            parts.open.is_closed() == closed
                && fits(parts, inputs, symbols)
                && (closed || parts.open.serves(symbols))
        };
        if let Some(index) = found.position(fits) {
            return Ok(index);
        }
    }
    Err(explain(entries, inputs))
}

/// The input of a port. Names of ports differ, so that as many inputs as ports match only one to one.
pub(crate) fn input_of<'t>(port: &Port, inputs: &[(&str, &'t Tensor)]) -> Option<&'t Tensor> {
    inputs.iter().find(|(name, _)| *name == port.name).map(|(_, tensor)| *tensor)
}

/// Whether names, types and shapes are those of an entry, for some values of what it leaves open.
fn fits(parts: &EntryParts, inputs: &[(&str, &Tensor)], symbols: &mut Vec<i64>) -> bool {
    let typed = |p: &Port| input_of(p, inputs).is_some_and(|t| t.dtype() == p.dtype);
    let shape_of = |name: &str| inputs.iter().find(|(n, _)| *n == name).map(|(_, t)| t.shape());
    parts.given().count() == inputs.len()
        && parts.given().all(|(_, p)| typed(p))
        && parts.solve(&shape_of, symbols)
}

/// What inputs ask for that no range reaches, where their shapes are those of open entries otherwise.
fn beyond<'a>(
    entries: impl Iterator<Item = &'a Entry> + Clone,
    inputs: &[(&str, &Tensor)],
) -> Option<Vec<String>> {
    let mut symbols = Vec::new();
    let open = entries.clone().map(|e| &e.parts).filter(|parts| !parts.open.is_closed());
    let parts = open.clone().find(|parts| fits(parts, inputs, &mut symbols))?;
    let mut problems = Vec::new();
    for (k, symbol) in parts.open.symbols.iter().enumerate() {
        let same = open.clone().filter(|other| other.open.symbols == parts.open.symbols);
        let ranges = same.flat_map(|other| other.open.values.iter().map(|ranges| ranges[k]));
        // Values that have an entry of their own lie in no range.
        let own = entries.clone().filter(|e| e.parts.open.is_closed());
        let own = own.filter_map(|e| e.parts.symbols.get(&**symbol)).map(|v| (*v, *v));
        let (least, most) =
            ranges.chain(own).fold((i64::MAX, i64::MIN), |(a, b), (c, d)| (a.min(c), b.max(d)));
        if (least..=most).contains(&symbols[k]) {
            continue;
        }
        let mentions = |(_, size): &&(usize, SizeId)| {
            let mut found = Vec::new();
            parts.open.sizes[size.0 as usize].value.collect_symbols(&mut found);
            found.contains(symbol)
        };
        for (i, port) in parts.given() {
            let axes = parts.open.inputs.get(i).map_or(&[][..], Vec::as_slice);
            let Some((axis, _)) = axes.iter().find(mentions) else { continue };
            let found = input_of(port, inputs).map_or(0, |t| t.shape()[*axis]);
            problems.push(format!(
                "`{}`: extent {found} of axis {axis} makes `{symbol}` {}, expected {least} to {most}",
                port.name, symbols[k]
            ));
            break;
        }
    }
    Some(problems).filter(|problems| !problems.is_empty())
}

/// The error for inputs that fit no entry: the shapes there are if only the shapes are wrong and several are known,
/// else everything that is wrong with respect to the entry that comes closest.
fn explain<'a>(entries: impl Iterator<Item = &'a Entry> + Clone, inputs: &[(&str, &Tensor)]) -> RunError {
    if let Some(problems) = beyond(entries.clone(), inputs) {
        return RunError::Inputs { problems };
    }
    let available = || entries.clone().map(|e| describe(&e.parts)).collect();
    let no_entry = || RunError::NoEntry { found: list(inputs), available: available() };
    let closest = entries
        .clone()
        .map(|e| problems(&e.parts, inputs))
        .min_by_key(|found| (found.iter().any(|p| !p.shape_only), found.len()));
    match closest {
        None => no_entry(),
        Some(found) if entries.clone().nth(1).is_some() && found.iter().all(|p| p.shape_only) => no_entry(),
        Some(found) => RunError::Inputs { problems: found.into_iter().map(|p| p.text).collect() },
    }
}

struct Problem {
    text: String,
    shape_only: bool,
}

fn problems(parts: &EntryParts, inputs: &[(&str, &Tensor)]) -> Vec<Problem> {
    let other = |text: String| Problem { text, shape_only: false };
    let mut out = Vec::new();
    let (shapes, _) = parts.shapes();
    for (i, port) in parts.given() {
        let (name, expected) = (&port.name, format!("{}[{}]", port.dtype, shapes[i].join(", ")));
        match input_of(port, inputs) {
            None => out.push(other(format!("`{name}` is missing, expected {expected}"))),
            Some(t) if t.dtype() == port.dtype && may_be(t.shape(), &shapes[i]) => {}
            Some(t) => out.push(Problem {
                text: format!("`{name}`: expected {expected}, found {}", typed(t.dtype(), t.shape())),
                shape_only: t.dtype() == port.dtype,
            }),
        }
    }
    for (i, (name, _)) in inputs.iter().enumerate() {
        if inputs[..i].iter().any(|(earlier, _)| earlier == name) {
            out.push(other(format!("`{name}` is given twice")));
        } else if !parts.given().any(|(_, p)| p.name == *name) {
            let known: Vec<String> = parts.given().map(|(_, p)| format!("`{}`", p.name)).collect();
            out.push(other(format!("`{name}` is not an input, expected {}", known.join(", "))));
        }
    }
    out
}

/// Whether a shape is one of some extents; one that follows from symbols may be any.
fn may_be(shape: &[usize], extents: &[String]) -> bool {
    let same = |(found, extent): (&usize, &String)| extent.parse::<usize>().is_ok_and(|n| n == *found);
    let open = |extent: &String| extent.parse::<usize>().is_err();
    shape.len() == extents.len() && shape.iter().zip(extents).all(|(n, e)| open(e) || same((n, e)))
}

fn typed(dtype: margay_tensor::DType, shape: &[usize]) -> String {
    format!("{dtype}{shape:?}")
}

fn list(inputs: &[(&str, &Tensor)]) -> String {
    let each: Vec<String> =
        inputs.iter().map(|(name, t)| format!("{name}: {}", typed(t.dtype(), t.shape()))).collect();
    each.join(", ")
}

fn describe(parts: &EntryParts) -> String {
    let (shapes, _) = parts.shapes();
    let each = parts.given().map(|(i, p)| format!("{}: {}[{}]", p.name, p.dtype, shapes[i].join(", ")));
    let each = each.collect::<Vec<String>>().join(", ");
    if parts.open.is_closed() { each } else { format!("{each} with {}", ranges_text(&parts.open)) }
}

/// The values that symbols have: `seq 2 to 3 or 16 to 512`.
fn ranges_text(open: &Open) -> String {
    let one = |ranges: &Ranges| {
        let each = open.symbols.iter().zip(ranges).map(|(s, (least, most))| format!("{s} {least} to {most}"));
        each.collect::<Vec<_>>().join(", ")
    };
    open.values.iter().map(one).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::DType;

    fn entry(rows: usize) -> Entry {
        let port =
            |name: &str, dtype, shape: &[usize]| Port { name: name.into(), dtype, shape: shape.to_vec() };
        let inputs = vec![port("ids", DType::I64, &[rows, 8]), port("mask", DType::F32, &[rows])];
        Entry { parts: EntryParts { inputs, ..EntryParts::default() }, sections: Vec::new() }
    }

    fn message(entries: &[Entry], inputs: &[(&str, &Tensor)]) -> String {
        choose(entries.iter(), inputs, &mut Vec::new()).unwrap_err().to_string()
    }

    #[test]
    fn the_entry_with_the_shapes_of_the_inputs_is_chosen() {
        let (ids, mask) = (Tensor::zeros(DType::I64, &[4, 8]), Tensor::zeros(DType::F32, &[4]));
        let (ids, mask) = (ids.unwrap(), mask.unwrap());
        let entries = [entry(1), entry(4)];
        let inputs = [("mask", &mask), ("ids", &ids)];
        assert_eq!(choose(entries.iter(), &inputs, &mut Vec::new()).unwrap(), 1);
    }

    /// Rows of so many values, twice as many in the mask.
    fn open_entry(least: usize, most: usize) -> Entry {
        let mut entry = entry(most);
        entry.parts.inputs[1].shape = vec![2 * most];
        let text = format!(
            "open rows {least} to {most}\nsize $0: rows from {least} to {most}\nsize $1: 2*rows from {} to {}\n\
             input 0 $0\ninput 0 $1\n",
            2 * least,
            2 * most
        );
        entry.parts.open = margay_loops::parse_open(&text).unwrap();
        entry
    }

    #[test]
    fn a_range_serves_what_lies_in_it_after_the_entry_of_that_very_shape() {
        let rows = |rows: usize, other: usize| {
            let ids = Tensor::zeros(DType::I64, &[rows, 8]).unwrap();
            (ids, Tensor::zeros(DType::F32, &[other]).unwrap())
        };
        let mut exact = entry(5);
        exact.parts.inputs[1].shape = vec![10];
        let entries = [open_entry(1, 3), open_entry(4, 9), exact];
        let chosen = |(ids, mask): &(Tensor, Tensor)| {
            let mut symbols = Vec::new();
            let found = choose(entries.iter(), &[("ids", ids), ("mask", mask)], &mut symbols);
            found.map(|index| (index, symbols)).map_err(|e| e.to_string())
        };
        assert_eq!(chosen(&rows(3, 6)), Ok((0, vec![3])));
        assert_eq!(chosen(&rows(4, 8)), Ok((1, vec![4])));
        assert_eq!(chosen(&rows(5, 10)), Ok((2, vec![])));
        assert_eq!(
            chosen(&rows(10, 20)).unwrap_err(),
            "inputs do not fit: `ids`: extent 10 of axis 0 makes `rows` 10, expected 1 to 9"
        );
        assert_eq!(
            chosen(&rows(4, 7)).unwrap_err(),
            "not compiled for ids: i64[4, 8], mask: f32[7]; available: ids: i64[rows, 8], mask: f32[2*rows] with rows \
             1 to 3 | ids: i64[rows, 8], mask: f32[2*rows] with rows 4 to 9 | ids: i64[5, 8], mask: f32[10]"
        );
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let (ids, extra) =
            (Tensor::zeros(DType::I32, &[1, 8]).unwrap(), Tensor::zeros(DType::F32, &[2]).unwrap());
        assert_eq!(
            message(&[entry(1), entry(4)], &[("ids", &ids), ("tokens", &extra), ("ids", &ids)]),
            "inputs do not fit: `ids`: expected i64[1, 8], found i32[1, 8]; `mask` is missing, expected f32[1]; \
             `tokens` is not an input, expected `ids`, `mask`; `ids` is given twice"
        );
    }

    #[test]
    fn unknown_shapes_are_answered_with_the_known_ones() {
        let (ids, mask) = (Tensor::zeros(DType::I64, &[3, 8]), Tensor::zeros(DType::F32, &[3]));
        let inputs = [("ids", &ids.unwrap()), ("mask", &mask.unwrap())];
        assert_eq!(
            message(&[entry(1), entry(4)], &inputs),
            "not compiled for ids: i64[3, 8], mask: f32[3]; available: ids: i64[1, 8], mask: f32[1] | ids: i64[4, 8], \
             mask: f32[4]"
        );
        assert_eq!(
            message(&[entry(1)], &inputs),
            "inputs do not fit: `ids`: expected i64[1, 8], found i64[3, 8]; `mask`: expected f32[1], found f32[3]"
        );
    }
}
