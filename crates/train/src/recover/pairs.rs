//! What student and teacher have in common: outputs, and values inside.

use std::fmt;

use margay_driver::{Named, listed};
use margay_ir::{Graph, Op, Value};

use crate::TrainError;

/// Which values inside the models are to agree, besides the outputs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Hidden {
    /// What normalizations give; without any, what is read more than once.
    #[default]
    Auto,
    /// None.
    None,
    /// The values of nodes with these names.
    Names(Vec<String>),
}

impl fmt::Display for Hidden {
    /// As an option says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hidden::Auto => f.write_str("auto"),
            Hidden::None => f.write_str("none"),
            Hidden::Names(names) => f.write_str(&listed(names.iter().map(String::as_str))),
        }
    }
}

/// Values that [`Hidden::Auto`] takes, at most.
const MOST_HIDDEN: usize = 16;

/// A value that both models have.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The name of the input that the target goes in by.
    pub target: String,
    /// The name in the model.
    pub name: String,
    /// In the student.
    pub student: Value,
    /// In the teacher.
    pub teacher: Value,
}

/// The outputs of floats, of these names or all, which both models must have with the same types.
///
/// # Errors
/// [`TrainError::Options`] that lists what does not fit.
pub fn outputs(student: &Graph, teacher: &Graph, names: &[String]) -> Result<Vec<Pair>, TrainError> {
    let mut pairs = Vec::new();
    let mut problems = Vec::new();
    let counts = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    for output in student.outputs() {
        let ty = student.ty(output.value);
        let other = teacher.outputs().iter().find(|o| o.name == output.name);
        match other.map(|o| (o.value, teacher.ty(o.value))) {
            None => problems.push(format!("the teacher has no output `{}`", output.name)),
            Some((_, found)) if found != ty => problems.push(format!(
                "output `{}` is {ty} in the sketched model and {found} in the teacher",
                output.name
            )),
            Some((value, _)) if ty.dtype.is_float() && counts(&output.name) => pairs.push(Pair {
                target: format!("target.{}", output.name),
                name: output.name.to_string(),
                student: output.value,
                teacher: value,
            }),
            Some(_) => {}
        }
    }
    problems.extend(input_problems(student, teacher));
    if pairs.is_empty() && problems.is_empty() {
        problems.push("the model has no output of floats to learn from".into());
    }
    if problems.is_empty() { Ok(pairs) } else { Err(TrainError::Options(problems.join("; "))) }
}

/// Inputs that one model takes and the other does not, or in another type.
fn input_problems(student: &Graph, teacher: &Graph) -> Vec<String> {
    let inputs = |g: &Graph| -> Vec<(String, String)> {
        let text = |op: &Op| match op {
            Op::Input(input) => Some((input.name.to_string(), input.ty.to_string())),
            _ => None,
        };
        g.inputs().iter().filter_map(|n| text(g.op(*n))).collect()
    };
    let (ours, theirs) = (inputs(student), inputs(teacher));
    let mut problems = Vec::new();
    for (name, ty) in &theirs {
        match ours.iter().find(|(n, _)| n == name) {
            None => problems.push(format!("the sketched model has no input `{name}`")),
            Some((_, found)) if found != ty => problems
                .push(format!("input `{name}` is {found} in the sketched model and {ty} in the teacher")),
            Some(_) => {}
        }
    }
    let more = ours.iter().filter(|(name, _)| !theirs.iter().any(|(n, _)| n == name));
    problems.extend(more.map(|(name, _)| format!("the teacher has no input `{name}`")));
    problems
}

/// The values inside that are to agree.
///
/// # Errors
/// [`TrainError::Options`] for a name that one of the models does not have, or in another type.
pub fn hidden(student: &Graph, teacher: &Graph, asked: &Hidden) -> Result<Vec<Pair>, TrainError> {
    let named = Named::of(teacher);
    let pair = |name: &str, student: Value, teacher: Value| Pair {
        target: format!("hidden.{name}"),
        name: name.to_owned(),
        student,
        teacher,
    };
    match asked {
        Hidden::None => Ok(Vec::new()),
        Hidden::Names(names) => {
            let own = Named::of(student);
            let find = |name: &String| match (own.get(name), named.get(name)) {
                (Some(s), Some(t)) if student.ty(s) == teacher.ty(t) => Ok(pair(name, s, t)),
                (Some(s), Some(t)) => Err(TrainError::Options(format!(
                    "hidden `{name}` is {} in the sketched model and {} in the teacher",
                    student.ty(s),
                    teacher.ty(t)
                ))),
                (s, _) => {
                    let where_ = if s.is_none() { "sketched model" } else { "teacher" };
                    Err(TrainError::Options(format!("the {where_} has no float value `{name}`")))
                }
            };
            names.iter().map(find).collect()
        }
        Hidden::Auto => {
            let normal = |n: &margay_ir::NodeId| matches!(student.op(*n), Op::LayerNorm(_));
            let forks = |n: &margay_ir::NodeId| student.users_of((*n).into()).len() > 1;
            let pairs = |wanted: &dyn Fn(&margay_ir::NodeId) -> bool| -> Vec<Pair> {
                let order = student.order().into_iter();
                let found = order.filter(|n| wanted(n) && !student.is_output((*n).into()));
                found
                    .filter_map(|n| {
                        let twin = named.twin(teacher, student, n)?;
                        Some(pair(student.node(n).origin.name(), n.into(), twin))
                    })
                    .collect()
            };
            let mut found = pairs(&normal);
            if found.is_empty() {
                found = pairs(&forks);
            }
            // A name that two nodes carry would name two inputs.
            let mut seen = std::collections::HashSet::new();
            found.retain(|p| seen.insert(p.target.clone()));
            let every = found.len().div_ceil(MOST_HIDDEN).max(1);
            let last = found.len().saturating_sub(1);
            let kept = found.into_iter().enumerate().filter(|(i, _)| (last - i) % every == 0);
            Ok(kept.map(|(_, p)| p).collect())
        }
    }
}
