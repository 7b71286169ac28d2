//! Names that are given once.

use std::collections::{HashMap, HashSet};

/// The names in use.
#[derive(Default)]
pub(super) struct Names {
    used: HashSet<String>,
    /// The number that was last put behind a name.
    numbers: HashMap<String, usize>,
}

impl Names {
    /// Takes a name; false if it is taken.
    pub(super) fn reserve(&mut self, name: &str) -> bool {
        self.used.insert(name.to_owned())
    }

    /// Takes the name, or the first of `NAME_1`, `NAME_2`, … that is free.
    pub(super) fn fresh(&mut self, wish: &str) -> String {
        let mut name = wish.to_owned();
        while !self.used.insert(name.clone()) {
            let number = self.numbers.entry(wish.to_owned()).or_default();
            *number += 1;
            name = format!("{wish}_{number}");
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbered() {
        let mut names = Names::default();
        assert!(names.reserve("x_1") && !names.reserve("x_1"));
        assert_eq!(["x", "x", "x"].map(|n| names.fresh(n)), ["x", "x_2", "x_3"]);
    }
}
