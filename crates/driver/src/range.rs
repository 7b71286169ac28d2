//! Graphs to code that serves every value in ranges of symbols.
//!
//! The graph is lowered at every value. Programs that are the same but for integers become one
//! [open program](margay_loops::Open), which is compiled once; it is compared with each of the programs that it stands for,
//! number by number. Values whose programs have another form, such as an extent of 1 where axes vanish, have entries of
//! their own: whoever runs the artifact sees only that every value is served.
//!
//! Two symbols that are equal everywhere in a group are one in it, and a group of which inputs do not tell the values is cut.
//!
//! What a graph computes of its extents alone, such as the first rows of a table of positions, is a constant where extents
//! are known. It would be another one for every value; so it is left to be computed when the code runs.

use std::collections::{BTreeMap, HashMap, HashSet};

use margay_artifact::{ArtifactBuilder, EntryParts};
use margay_ir::Graph;
use margay_loops::open::Ranges;
use margay_loops::{Backend, Outline, Program, generalize};
use margay_lower::{lower, place};
use margay_passes::Pipeline;
use margay_tensor::{Binding, Symbol};

use crate::{DriverError, Dump, Silent, build, parallel};

/// The most programs that the values of one range may need.
const MAX_PROGRAMS: usize = 64;

/// Compiles a graph for all of some values of its symbols, into as many entries as there are forms of its program.
///
/// # Errors
/// [`DriverError::Options`] where these are more than 64; what lowering and compilation refuse at any of the values.
pub fn add_entries<'b>(
    builder: &mut ArtifactBuilder<'b>,
    g: &Graph,
    points: &[Binding],
    backend: &'b dyn Backend,
    threads: usize,
    dump: &mut Dump,
) -> Result<(), DriverError> {
    for form in programs(g, points, backend, threads)? {
        match form {
            Form::Open(program, greatest) => build::add_program(builder, &program, &greatest, backend, dump)?,
            Form::Closed(binding) => drop(build::add_entry(builder, g, &binding, backend, dump)?),
        }
    }
    Ok(())
}

/// How some values are served.
#[derive(Clone, Debug)]
pub enum Form {
    /// By a program for all of them, of which these are the greatest.
    Open(Box<Program>, Binding),
    /// By a program of their own.
    Closed(Binding),
}

/// The programs that serve all of some values of the symbols of a graph, each compared with the programs it stands for.
///
/// # Errors
/// As [`add_entries`]; [`DriverError::Options`] where extents of inputs are the same at two of the values.
pub fn programs(
    g: &Graph,
    points: &[Binding],
    backend: &dyn Backend,
    threads: usize,
) -> Result<Vec<Form>, DriverError> {
    let symbols = open_symbols(g, points);
    if !points_differ(g, points) {
        return Err(untold(&symbols));
    }
    let values: Vec<Vec<i64>> = points.iter().map(|p| symbols.iter().map(|s| p[s]).collect()).collect();
    let job = Job { g, points, backend, steps: backend.preferences().extent_steps, symbols, values, threads };
    let outlines = parallel(threads, points.len(), &Silent, "", |i| job.outline(i));
    let outlines = outlines.into_iter().collect::<Result<Vec<Outline>, DriverError>>()?;
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (i, outline) in outlines.iter().enumerate() {
        let group = *known.entry(&outline.text).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(i);
    }
    let mut forms = Vec::new();
    // The last group is looked at first; a group that is cut puts its halves in its place.
    groups.reverse();
    while let Some(group) = groups.pop() {
        match job.form(&group, &outlines)? {
            Some(form) => forms.push(form),
            None => {
                let (low, high) = group.split_at(group.len() / 2);
                groups.extend([high.to_vec(), low.to_vec()]);
            }
        }
        if forms.len() + groups.len() > MAX_PROGRAMS {
            let names: Vec<String> = job.symbols.iter().map(|s| format!("`{s}`")).collect();
            return Err(DriverError::Options(format!(
                "the program of the model has another form for more than {MAX_PROGRAMS} values of {}; give a narrower \
                 range, or single values",
                names.join(", ")
            )));
        }
    }
    Ok(forms)
}

/// The symbols of the graph that have more than one value, by the alphabet.
fn open_symbols(g: &Graph, points: &[Binding]) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = g.symbols().into_iter().collect();
    symbols.retain(|s| points.iter().any(|p| p.get(s) != points[0].get(s)));
    symbols.sort();
    symbols
}

/// Whether inputs have other extents at every point.
fn points_differ(g: &Graph, points: &[Binding]) -> bool {
    let extents = |at: &Binding| -> Vec<Option<i64>> {
        let types = g.inputs().iter().map(|n| g.ty((*n).into()));
        types.flat_map(|ty| ty.shape.iter().map(|d| d.eval(at).ok())).collect()
    };
    let mut known = HashSet::new();
    points.iter().all(|at| known.insert(extents(at)))
}

fn untold(symbols: &[Symbol]) -> DriverError {
    let names: Vec<String> = symbols.iter().map(|s| format!("`{s}`")).collect();
    let names = names.join(", ");
    DriverError::Options(format!("the extents of the inputs do not tell {names}: it takes no range"))
}

struct Job<'a> {
    g: &'a Graph,
    points: &'a [Binding],
    backend: &'a dyn Backend,
    steps: Vec<usize>,
    symbols: Vec<Symbol>,
    /// The values of the symbols at every point.
    values: Vec<Vec<i64>>,
    threads: usize,
}

impl Job<'_> {
    fn program(&self, i: usize) -> Result<Program, DriverError> {
        let mut bound = self.g.clone();
        let pipeline = Pipeline::bind_for_range(&self.points[i], &self.backend.preferences());
        Dump::none().run(&pipeline, &mut bound)?;
        Ok(lower(&bound, self.backend)?)
    }

    fn outline(&self, i: usize) -> Result<Outline, DriverError> {
        Ok(self.program(i)?.outline(&self.steps))
    }

    /// How a group of points with one outline is served; `None` if it has to be cut.
    fn form(&self, group: &[usize], outlines: &[Outline]) -> Result<Option<Form>, DriverError> {
        let last = *group.last().expect("a group has a point");
        if group.len() == 1 {
            return Ok(Some(Form::Closed(self.points[last].clone())));
        }
        // What has one value in the group is not open in it: an extent of 1 may tell nothing of its symbol. Nor is what has
        // the value of another symbol everywhere, as where programs are smaller if two extents are equal.
        let varies = |k: &usize| group.iter().any(|&i| self.values[i][*k] != self.values[last][*k]);
        let same = |k: usize, other: usize| group.iter().all(|&i| self.values[i][k] == self.values[i][other]);
        let mut open: Vec<usize> = Vec::new();
        for k in (0..self.symbols.len()).filter(varies) {
            if !open.iter().any(|&other| same(k, other)) {
                open.push(k);
            }
        }
        let symbols: Vec<Symbol> = open.iter().map(|&k| self.symbols[k].clone()).collect();
        let values: Vec<Vec<i64>> =
            group.iter().map(|&i| open.iter().map(|&k| self.values[i][k]).collect()).collect();
        let of: Vec<&Outline> = group.iter().map(|&i| &outlines[i]).collect();
        let greatest = self.program(last)?;
        let Some(mut open) = generalize(&symbols, &values, ranges(&values), &greatest, &of) else {
            return Ok(None);
        };
        place(&mut open, self.backend.preferences().buffer_align);
        let (inputs, outputs) = (open.inputs.clone(), open.outputs.clone());
        let parts = EntryParts { open: open.open.clone(), inputs, outputs, ..EntryParts::default() };
        let same = parallel(self.threads, values.len(), &Silent, "", |i| {
            let sizes = open.open.sizes_at(&values[i])?;
            let (closed, mut found) = (open.at(&sizes).ok()?, Vec::new());
            let outline = closed.outline(&self.steps);
            let shape_of =
                |name: &str| closed.inputs.iter().find(|p| p.name == name).map(|p| p.shape.as_slice());
            let told = parts.solve(&shape_of, &mut found) && found == values[i];
            (outline.text == of[i].text && outline.numbers == of[i].numbers).then_some(told)
        });
        let right = same.iter().all(|same| *same == Some(true)) && open.verify().is_ok();
        Ok(right.then(|| Form::Open(Box::new(open), self.points[last].clone())))
    }
}

/// Points as ranges that do not overlap: neighbours along the last symbol are joined, then those ranges that are the same
/// for neighbours along the one before it, and so on.
fn ranges(points: &[Vec<i64>]) -> Vec<Ranges> {
    let ndim = points.first().map_or(0, Vec::len);
    let mut all: Vec<Ranges> = points.iter().map(|p| p.iter().map(|v| (*v, *v)).collect()).collect();
    for axis in (0..ndim).rev() {
        // Ranges that differ along the axis alone, in its order.
        let mut lines: BTreeMap<Ranges, Vec<(i64, i64)>> = BTreeMap::new();
        for mut range in all {
            let own = range.remove(axis);
            lines.entry(range).or_default().push(own);
        }
        all = Vec::new();
        for (others, mut line) in lines {
            line.sort_unstable();
            let mut joined: Vec<(i64, i64)> = Vec::new();
            for (least, most) in line {
                match joined.last_mut() {
                    Some((_, end)) if *end + 1 == least => *end = most,
                    _ => joined.push((least, most)),
                }
            }
            for own in joined {
                let mut range = others.clone();
                range.insert(axis, own);
                all.push(range);
            }
        }
    }
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        let points = |ranges: &[(i64, i64, i64, i64)]| -> Vec<Vec<i64>> {
            let grid = |&(a, b, c, d): &(i64, i64, i64, i64)| {
                (a..=b).flat_map(move |x| (c..=d).map(move |y| vec![x, y])).collect::<Vec<_>>()
            };
            ranges.iter().flat_map(grid).collect()
        };
        assert_eq!(ranges(&points(&[(1, 4, 16, 512)])), [[(1, 4), (16, 512)]]);
        assert_eq!(ranges(&points(&[(1, 1, 2, 3), (2, 4, 2, 9)])), [[(1, 1), (2, 3)], [(2, 4), (2, 9)]]);
        assert_eq!(ranges(&[vec![1], vec![2], vec![4]]), [[(1, 2)], [(4, 4)]]);
    }
}
