//! Inputs that are given once for all samples: a flag, a scale, the edges of a graph, a table of constants.
//!
//! Whether an input has a row for each sample is said by the model where it can be. One without axes has none, and one whose
//! leading extent is fixed has none where that of another input is open, for that is the batch. Where all leading extents
//! are fixed, an array of exactly the shape of its input is given once if other arrays are longer than their inputs.
//! Whatever remains open is said by name.

use std::collections::BTreeSet;

use crate::Arrays;
use crate::expected::Expected;
use crate::samples::listed;

/// The names of the inputs that are given once: those `asked` for, and those of which declarations and shapes tell it.
pub fn shared(expected: &[Expected], arrays: &Arrays, asked: &BTreeSet<String>) -> BTreeSet<String> {
    let mut shared = asked.clone();
    let has_no_axes = |e: &&Expected| e.extents.as_ref().is_some_and(Vec::is_empty);
    shared.extend(expected.iter().filter(has_no_axes).map(|e| e.name.clone()));
    let left: Vec<&Expected> = expected.iter().filter(|e| !shared.contains(&e.name)).collect();
    let leading = |e: &Expected| e.extents.as_ref().and_then(|extents| extents[0]);
    let is_open = |e: &&Expected| e.extents.is_some() && leading(e).is_none();
    if left.iter().any(is_open) {
        shared.extend(left.iter().filter(|e| leading(e).is_some()).map(|e| e.name.clone()));
        return shared;
    }
    let array = |e: &Expected| arrays.iter().find(|(name, _)| *name == e.name).map(|(_, t)| t);
    let is_whole = |e: &&&Expected| array(e).is_some_and(|t| e.misfit_of_shared(t).is_none());
    let found = left.iter().filter(|e| array(e).is_some());
    let (whole, longer): (Vec<&Expected>, Vec<&Expected>) = found.partition(is_whole);
    // Beside a batch of several rows, an array of as many rows may as well be too short.
    let is_batch = |e: &&Expected| {
        leading(e).is_some_and(|rows| rows > 1 && longer.iter().any(|l| leading(l) == Some(rows)))
    };
    if !longer.is_empty() {
        shared.extend(whole.iter().filter(|e| !is_batch(e)).map(|e| e.name.clone()));
    }
    shared
}

/// Why a name cannot be one of an input that is given once.
pub(crate) fn unknown(expected: &[Expected], asked: &[String]) -> Option<String> {
    let name = asked.iter().find(|name| expected.iter().all(|e| e.name != **name))?;
    let known = listed(expected.iter().map(|e| e.name.as_str()));
    Some(format!("the model has no input `{name}` to be given once; it has {known}"))
}

#[cfg(test)]
mod tests {
    use margay_tensor::{DType, Tensor};

    use super::*;

    /// What is shared where inputs have these extents, 0 for an open one, and arrays these shapes.
    fn found(inputs: &[(&str, &[usize], &[usize])], asked: &[&str]) -> Vec<String> {
        let expected: Vec<Expected> = inputs
            .iter()
            .map(|(name, extents, _)| Expected {
                name: (*name).to_owned(),
                dtype: Some(DType::F32),
                extents: Some(extents.iter().map(|e| Some(*e).filter(|e| *e > 0)).collect()),
                text: String::new(),
            })
            .collect();
        let array = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
        let arrays: Arrays =
            inputs.iter().map(|(name, _, shape)| ((*name).to_owned(), array(shape))).collect();
        let asked = asked.iter().map(|name| (*name).to_owned()).collect();
        shared(&expected, &arrays, &asked).into_iter().collect()
    }

    #[test]
    fn declarations_and_shapes_tell_what_is_given_once() {
        assert_eq!(found(&[("x", &[0, 3], &[9, 3]), ("flag", &[], &[])], &[]), ["flag"]);
        assert_eq!(found(&[("x", &[0, 3], &[9, 3]), ("edges", &[2, 0], &[2, 5])], &[]), ["edges"]);
        assert_eq!(found(&[("x", &[0, 3], &[9, 3]), ("speed", &[1], &[1])], &[]), ["speed"]);
        assert_eq!(found(&[("x", &[1, 3], &[9, 3]), ("table", &[7, 4], &[7, 4])], &[]), ["table"]);
        assert_eq!(found(&[("x", &[1, 3], &[9, 3]), ("speed", &[1], &[1])], &[]), ["speed"]);
        assert_eq!(found(&[("x", &[4, 3], &[8, 3]), ("edges", &[2, 5], &[2, 5])], &[]), ["edges"]);
    }

    #[test]
    fn what_may_be_rows_stays_so() {
        let none: [&str; 0] = [];
        assert_eq!(found(&[("x", &[0, 3], &[9, 3]), ("y", &[0, 4], &[9, 4])], &[]), none);
        assert_eq!(found(&[("x", &[0, 3], &[9, 3]), ("y", &[0, 4], &[7, 4])], &[]), none);
        assert_eq!(found(&[("x", &[1, 3], &[9, 3]), ("y", &[1], &[9])], &[]), none);
        assert_eq!(found(&[("x", &[8, 3], &[8, 3]), ("y", &[2, 4], &[2, 4])], &[]), none);
        assert_eq!(found(&[("x", &[4, 3], &[16, 3]), ("y", &[4, 5], &[4, 5])], &[]), none);
        assert_eq!(found(&[("x", &[0, 3], &[9, 3]), ("y", &[0, 4], &[7, 4])], &["y"]), ["y"]);
    }
}
