//! Inputs of the graph, and the symbols their extents name.

use std::collections::{BTreeMap, BTreeSet};

use margay_ir::TensorType;
use margay_tensor::{DType, Dim, may_be_empty};

use super::{Importer, Slot};
use crate::{OnnxDim, OnnxValue, Problem};

/// The names given to the extents of a model.
#[derive(Default)]
struct Symbols {
    /// By the name in the model.
    named: BTreeMap<String, Dim>,
    used: BTreeSet<String>,
}

impl<'a> Importer<'a> {
    /// Adds the inputs, and of those with a default value those that are given. Extents of 0 are taken for fixed.
    pub(super) fn inputs(&mut self) {
        let inputs: Vec<&'a OnnxValue> =
            self.model.graph.inputs.iter().chain(self.assumptions.overridden(self.model)).collect();
        let mut symbols = Symbols::default();
        let dims = || inputs.iter().flat_map(|i| i.dims.iter().flatten());
        // Plain names come first, so that they are kept and expressions over them are understood.
        let texts: Vec<&String> = dims()
            .filter_map(|d| if let OnnxDim::Symbol(text) = d { Some(text) } else { None })
            .filter(|text| is_name(text))
            .collect();
        texts.iter().filter(|text| is_plain(text)).for_each(|text| symbols.name(text, text));
        for text in texts {
            symbols.expression(text);
        }
        for input in &inputs {
            let slot = match shape(input, &mut symbols) {
                Ok((dtype, shape)) => {
                    let shape = self.assumptions.input(&input.name, &shape);
                    let v = self.graph.add_input(&input.name, TensorType::new(dtype, shape));
                    self.narrow.extend(input.narrow.map(|narrow| (v, narrow)));
                    Slot::Known(v)
                }
                Err(problem) => {
                    self.problems.push(problem);
                    Slot::Unknown
                }
            };
            self.slots.insert(&input.name, slot);
        }
        for symbol in self.assumptions.empty() {
            self.assumed(symbol, Dim::default());
        }
    }
}

fn shape(input: &OnnxValue, symbols: &mut Symbols) -> Result<(DType, Vec<Dim>), Problem> {
    let lacks = |expected| Problem::InputType { input: input.name.clone(), expected };
    let dtype = input.dtype.ok_or_else(|| lacks("an element type"))?;
    let dims = input.dims.as_ref().ok_or_else(|| lacks("a number of axes"))?;
    let extent = |(axis, dim): (usize, &OnnxDim)| match dim {
        OnnxDim::Value(v) => Dim::from(*v),
        OnnxDim::Symbol(text) if is_name(text) => symbols.named.get(text).cloned().unwrap_or_default(),
        OnnxDim::Symbol(_) | OnnxDim::Unknown => {
            Dim::symbol(&symbols.fresh(&format!("{}_d{axis}", input.name)))
        }
    };
    Ok((dtype, dims.iter().enumerate().map(extent).collect()))
}

impl Symbols {
    /// Gives an extent of the model a symbol like `wish`.
    fn name(&mut self, text: &str, wish: &str) {
        if !self.named.contains_key(text) {
            let symbol = Dim::symbol(&self.fresh(wish));
            self.named.insert(text.to_owned(), symbol);
        }
    }

    /// Gives an extent of the model a meaning: the expression it spells, if all symbols of that are extents of
    /// their own, else a symbol.
    fn expression(&mut self, text: &str) {
        if self.named.contains_key(text) {
            return;
        }
        let meaning = Dim::parse(text).ok().filter(|dim| {
            let mut symbols = Vec::new();
            dim.collect_symbols(&mut symbols);
            !symbols.is_empty() && symbols.iter().all(|s| self.used.contains(&**s))
        });
        match meaning {
            Some(dim) => _ = self.named.insert(text.to_owned(), dim),
            None => self.name(text, text),
        }
    }

    /// A symbol that is not used yet, as close to the wish as the rules for names allow.
    fn fresh(&mut self, wish: &str) -> String {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        let mut name: String = wish.chars().map(|c| if word(c) { c } else { '_' }).collect();
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            name.insert(0, '_');
        }
        if name == "floordiv" {
            name.push('_');
        }
        let base = name.clone();
        let mut number = 1;
        while !self.used.insert(name.clone()) {
            name = format!("{base}_{number}");
            number += 1;
        }
        name
    }
}

/// Whether a text names an extent. Some exporters write `?` for each that they do not know.
fn is_name(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric)
}

/// Whether a name is a symbol as it stands, and one of at least 1.
fn is_plain(text: &str) -> bool {
    Dim::parse(text).is_ok_and(|dim| dim == Dim::symbol(text)) && !may_be_empty(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_symbols() {
        let mut symbols = Symbols::default();
        assert_eq!(symbols.fresh("batch_size"), "batch_size");
        assert_eq!(symbols.fresh("batch_size"), "batch_size_1");
        assert_eq!(symbols.fresh("1st axis"), "_1st_axis");
        assert_eq!(symbols.fresh("größe"), "gr__e");
        assert_eq!(symbols.fresh(""), "_");
        symbols.expression("batch_size + 1");
        assert_eq!(symbols.named["batch_size + 1"], Dim::parse("batch_size + 1").unwrap());
        symbols.expression("past + 1");
        assert_eq!(symbols.named["past + 1"], Dim::symbol("past___1"));
    }
}
