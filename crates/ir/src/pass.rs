//! The pass interface and the rewrite driver.

use std::fmt;

use crate::{Graph, NodeId, Patch, PatchError, graph};

/// How the numbers of a graph may change by a pass.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fidelity {
    /// Bit by bit the same.
    Exact,
    /// The same up to the order of floating point operations.
    Rounding,
    /// Different by design.
    Approximate,
}

impl fmt::Display for Fidelity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fidelity::Exact => "exact",
            Fidelity::Rounding => "rounding",
            Fidelity::Approximate => "approximate",
        })
    }
}

/// Whether a pass changed the graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// It did, so many times.
    Yes(usize),
    /// It did not.
    No,
}

impl Changed {
    /// From a number of changes.
    pub fn times(n: usize) -> Changed {
        if n == 0 { Changed::No } else { Changed::Yes(n) }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Changed) -> Changed {
        let count = |changed| if let Changed::Yes(n) = changed { n } else { 0 };
        Changed::times(count(self) + count(other))
    }
}

/// What a pass has to say to the user about a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    /// The pass.
    pub pass: &'static str,
    /// The node's name in the model.
    pub at: String,
    /// The message, with numbers.
    pub message: String,
    /// The node was left as it was.
    pub declined: bool,
}

/// Collects what passes have to say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cx {
    /// Remarks, in order.
    pub remarks: Vec<Remark>,
}

/// A pass failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PassError {
    /// A rule built a node that does not type (our fault).
    #[error("rule `{rule}` at `{at}`: {error}")]
    Add {
        /// The rule.
        rule: &'static str,
        /// The node's name in the model.
        at: String,
        /// Why.
        error: Box<graph::AddError>,
    },
    /// A rule's patch was refused (our fault).
    #[error("rule `{rule}` at `{at}`: {error}")]
    Patch {
        /// The rule.
        rule: &'static str,
        /// The node's name in the model.
        at: String,
        /// Why.
        error: Box<PatchError>,
    },
    /// The rules of a pass undo each other (our fault).
    #[error("pass `{pass}` did not come to an end after {rounds} rounds; rules that fired last: {rules}")]
    NoFixpoint {
        /// The pass.
        pass: &'static str,
        /// Rounds run.
        rounds: usize,
        /// The rules of the last round.
        rules: String,
    },
    /// A rule made a node depend on itself (our fault).
    #[error("pass `{pass}` closed a cycle of nodes; rules that fired last: {rules}")]
    Cycle {
        /// The pass.
        pass: &'static str,
        /// The rules of the round that closed it.
        rules: String,
    },
    /// What the pass was asked for cannot be done (the options' or the model's fault).
    #[error("{0}")]
    Refused(String),
}

/// The configuration of a pass as text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configuration {
    /// What stands between the braces of `bind-dims{N = 4}`; empty where nothing differs from the default.
    pub text: String,
    /// The contents of files that the text names, by their names.
    pub files: Vec<(String, String)>,
}

impl Configuration {
    /// Nothing to configure, or nothing that differs from the default.
    pub fn none() -> Configuration {
        Configuration::default()
    }

    /// A text that names no file.
    pub fn of(text: impl Into<String>) -> Configuration {
        Configuration { text: text.into(), files: Vec::new() }
    }
}

/// A transformation of graphs.
pub trait Pass {
    /// In kebab case; also the file's name, the name on the command line and the prefix of dumps.
    fn name(&self) -> &'static str;
    /// The configuration, as it is read back.
    fn configuration(&self) -> Configuration;
    /// How numbers may change.
    fn fidelity(&self) -> Fidelity;
    /// Changes the graph.
    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError>;
}

impl fmt::Display for dyn Pass + '_ {
    /// `simplify`, `bind-dims{N = 4}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let text = self.configuration().text;
        if text.is_empty() { Ok(()) } else { write!(f, "{{{text}}}") }
    }
}

/// What a rule says about a node.
#[derive(Debug)]
pub enum Verdict {
    /// The rule is not about this node.
    NoMatch,
    /// The shape matched but a condition failed; says which, with numbers.
    Declined(String),
    /// Replace.
    Rewrite(Patch),
}

/// A rule's failure to build its patch becomes [`PassError::Add`].
pub type RuleResult = Result<Verdict, graph::AddError>;

/// A named rewrite rule.
pub struct Rule<C> {
    /// Verb first, kebab case.
    pub name: &'static str,
    /// Looks at one node.
    pub apply: fn(&Graph, NodeId, &C) -> RuleResult,
}

/// Rounds after which rules are taken to undo each other.
const MAX_ROUNDS: usize = 64;

/// Applies rules in topological order until none fires, first in the graphs inside operators, then in the graph. Dead
/// nodes are removed after every round. Remarks of declined rules are those of the last round, in which nothing fired.
pub fn rewrite<C>(
    pass: &'static str,
    g: &mut Graph,
    cx: &mut Cx,
    config: &C,
    rules: &[Rule<C>],
) -> Result<Changed, PassError> {
    let inside = g.change_regions(&mut |inner| rewrite(pass, inner, cx, config, rules))?;
    let mut changes = 0;
    let mut fired: Vec<&'static str> = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let order = g.order();
        if order.len() < g.len() {
            return Err(PassError::Cycle { pass, rules: names(fired) });
        }
        fired.clear();
        let mut declined = Vec::new();
        for n in order {
            for rule in rules {
                if !g.contains(n) {
                    break;
                }
                let at = || g.node(n).origin.name().to_string();
                let verdict = (rule.apply)(g, n, config).map_err(|error| PassError::Add {
                    rule: rule.name,
                    at: at(),
                    error: error.into(),
                })?;
                match verdict {
                    Verdict::NoMatch => {}
                    Verdict::Declined(message) => {
                        declined.push(Remark { pass, at: at(), message, declined: true });
                    }
                    Verdict::Rewrite(patch) => {
                        let at = at();
                        g.apply(patch).map_err(|error| PassError::Patch {
                            rule: rule.name,
                            at,
                            error: error.into(),
                        })?;
                        fired.push(rule.name);
                        break;
                    }
                }
            }
        }
        changes += fired.len();
        if fired.is_empty() {
            cx.remarks.extend(declined);
            return Ok(inside.and(Changed::times(changes)));
        }
        g.remove_dead();
    }
    Err(PassError::NoFixpoint { pass, rounds: MAX_ROUNDS, rules: names(fired) })
}

/// Each rule once.
fn names(mut rules: Vec<&'static str>) -> String {
    rules.sort_unstable();
    rules.dedup();
    rules.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Exp, Neg};
    use crate::{Op, Origin, TensorType, Value};
    use margay_tensor::DType;

    #[test]
    fn a_rule_that_closes_a_cycle_is_named() {
        let mut g = Graph::new("chain");
        let x = g.add_input("x", TensorType::known(DType::F32, &[3]));
        let a = g.add(Neg, &[x], Origin::named("first")).unwrap();
        let b = g.add(Exp, &[a], Origin::named("second")).unwrap();
        g.add_output("y", b);
        let apply = |g: &Graph, n: NodeId, _: &()| {
            let Op::Neg(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
            let mut patch = Patch::new();
            patch.redirect(n.into(), Value::from(g.users_of(n.into())[0].0));
            Ok(Verdict::Rewrite(patch))
        };
        let rules = [Rule { name: "bend", apply }];
        let error = rewrite("break", &mut g, &mut Cx::default(), &(), &rules).unwrap_err();
        assert_eq!(error.to_string(), "pass `break` closed a cycle of nodes; rules that fired last: bend");
    }
}
