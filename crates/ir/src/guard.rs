//! What a graph assumes of its extents.
//!
//! An operator may need two extents to be equal where the model gives both a name. The importer then takes them for
//! equal: one symbol is replaced everywhere, and the graph keeps the equation as a guard. Values for symbols are checked
//! against the guards when they are bound; a value for a symbol that was replaced counts as one for what replaced it.

use std::fmt;

use margay_tensor::{Binding, Dim, Symbol};

use crate::Name;

/// An equation that was assumed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guard {
    /// A symbol of the model. No type of the graph mentions it.
    pub symbol: Symbol,
    /// What it is equal to.
    pub value: Dim,
    /// The node that needs it.
    pub node: Name,
}

/// Values that break a guard (the fault of who gave them).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{node}` needs `{symbol}` = {value}, but {given}")]
pub struct GuardError {
    /// The node.
    pub node: Name,
    /// The symbol that was replaced.
    pub symbol: Symbol,
    /// What it has to be equal to.
    pub value: Dim,
    /// The values.
    pub given: String,
}

impl Guard {
    /// Checks values of symbols. Where one is missing there is nothing to check.
    pub fn check(&self, binding: &Binding) -> Result<(), GuardError> {
        let Some(&given) = binding.get(&self.symbol) else { return Ok(()) };
        let found = match self.value.eval(binding) {
            Ok(value) if value != given => value,
            _ => return Ok(()),
        };
        let given = match self.value.as_const() {
            Some(_) => format!("`{}` is {given}", self.symbol),
            None => format!("`{}` is {given} and `{}` is {found}", self.symbol, self.value),
        };
        let (node, symbol, value) = (self.node.clone(), self.symbol.clone(), self.value.clone());
        Err(GuardError { node, symbol, value, given })
    }
}

impl fmt::Display for Guard {
    /// `guard M = B  // node`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guard {} = {}", self.symbol, self.value)?;
        if self.node.is_empty() { Ok(()) } else { write!(f, "  // {}", crate::Origin::named(&self.node)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_where_they_are_known() {
        let guard = Guard { symbol: "T".into(), value: Dim::parse("P + S").unwrap(), node: "add".into() };
        let check = |values: &[(&str, i64)]| {
            let binding = values.iter().map(|(s, v)| ((*s).into(), *v)).collect();
            guard.check(&binding).map_err(|e| e.to_string())
        };
        assert_eq!(check(&[("T", 5), ("P", 2), ("S", 3)]), Ok(()));
        assert_eq!(check(&[("T", 5), ("P", 2)]), Ok(()));
        assert_eq!(check(&[("P", 2), ("S", 3)]), Ok(()));
        let message = "`add` needs `T` = P + S, but `T` is 4 and `P + S` is 5";
        assert_eq!(check(&[("T", 4), ("P", 2), ("S", 3)]), Err(message.into()));
    }
}
