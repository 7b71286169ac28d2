//! Which entry fits given inputs.

use margay_artifact::{Entry, EntryParts};
use margay_loops::Port;
use margay_tensor::Tensor;

use crate::RunError;

/// The position of the entry that takes exactly these inputs. Allocates nothing when there is one.
pub(crate) fn choose<'a>(
    entries: impl Iterator<Item = &'a Entry> + Clone,
    inputs: &[(&str, &Tensor)],
) -> Result<usize, RunError> {
    entries.clone().position(|e| fits(&e.parts, inputs)).ok_or_else(|| explain(entries, inputs))
}

/// The input of a port. Names of ports differ, so that as many inputs as ports match only one to one.
pub(crate) fn input_of<'t>(port: &Port, inputs: &[(&str, &'t Tensor)]) -> Option<&'t Tensor> {
    inputs.iter().find(|(name, _)| *name == port.name).map(|(_, tensor)| *tensor)
}

fn fits(parts: &EntryParts, inputs: &[(&str, &Tensor)]) -> bool {
    let has = |p: &Port| {
        input_of(p, inputs).is_some_and(|t| t.dtype() == p.dtype && t.shape() == p.shape.as_slice())
    };
    parts.given().count() == inputs.len() && parts.given().all(|(_, p)| has(p))
}

/// The error for inputs that fit no entry: the shapes there are if only the shapes are wrong and several are known,
/// else everything that is wrong with respect to the entry that comes closest.
fn explain<'a>(entries: impl Iterator<Item = &'a Entry> + Clone, inputs: &[(&str, &Tensor)]) -> RunError {
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
    for (_, port) in parts.given() {
        let (name, expected) = (&port.name, typed(port.dtype, &port.shape));
        match input_of(port, inputs) {
            None => out.push(other(format!("`{name}` is missing, expected {expected}"))),
            Some(t) if t.dtype() == port.dtype && t.shape() == port.shape.as_slice() => {}
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

fn typed(dtype: margay_tensor::DType, shape: &[usize]) -> String {
    format!("{dtype}{shape:?}")
}

fn list(inputs: &[(&str, &Tensor)]) -> String {
    let each: Vec<String> =
        inputs.iter().map(|(name, t)| format!("{name}: {}", typed(t.dtype(), t.shape()))).collect();
    each.join(", ")
}

fn describe(parts: &EntryParts) -> String {
    let each: Vec<String> =
        parts.given().map(|(_, p)| format!("{}: {}", p.name, typed(p.dtype, &p.shape))).collect();
    each.join(", ")
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
        choose(entries.iter(), inputs).unwrap_err().to_string()
    }

    #[test]
    fn the_entry_with_the_shapes_of_the_inputs_is_chosen() {
        let (ids, mask) = (Tensor::zeros(DType::I64, &[4, 8]), Tensor::zeros(DType::F32, &[4]));
        let (ids, mask) = (ids.unwrap(), mask.unwrap());
        let entries = [entry(1), entry(4)];
        assert_eq!(choose(entries.iter(), &[("mask", &mask), ("ids", &ids)]).unwrap(), 1);
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
