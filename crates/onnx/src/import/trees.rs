//! `ai.onnx.ml`: ensembles of trees.
//!
//! All trees are walked at once, step by step: which node each sample is at in each tree is a matrix `[N, T]`, and what
//! the nodes hold is looked up. A leaf is its own child, so that as many steps as the deepest tree needs are enough.

use std::collections::{BTreeMap, BTreeSet};

use margay_ir::Value;
use margay_ir::ops::{Gather, Numbers, ReduceKind};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::learning::{Labels, Second, of_two, samples, transformed};
use super::places::place_of_extreme;

/// More steps than any honest tree takes.
const MAX_DEPTH: usize = 256;

/// The most numbers that the leaves say, those of targets they are silent about too.
const MAX_NUMBERS: usize = 1 << 26;

/// How a node decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Test {
    AtMost,
    Less,
    AtLeast,
    More,
    Equal,
    NotEqual,
}

/// A node of any tree; children are positions among all nodes, those of a leaf its own.
#[derive(Clone, Debug)]
struct Node {
    test: Option<Test>,
    feature: i64,
    threshold: f64,
    yes: usize,
    no: usize,
    /// Where a sample that is not a number goes.
    missing_is_yes: bool,
}

/// All trees of an ensemble.
struct Forest {
    nodes: Vec<Node>,
    roots: Vec<usize>,
    /// What leaves say: node, target, weight.
    weights: Vec<(usize, usize, f64)>,
}

/// How what the trees say is joined.
#[derive(Clone, Copy, PartialEq)]
enum Join {
    Sum,
    Mean,
    Min,
    Max,
}

impl Join {
    fn read(name: &str) -> Result<Join, Refusal> {
        Ok(match name {
            "SUM" => Join::Sum,
            "AVERAGE" => Join::Mean,
            "MIN" => Join::Min,
            "MAX" => Join::Max,
            other => return Err(Refusal::Invalid(format!("`{other}` is no way to join trees"))),
        })
    }
}

impl Forest {
    /// The most steps from a root to a leaf.
    fn depth(&self) -> Result<usize, Refusal> {
        let mut steps = 0;
        let mut level: BTreeSet<usize> = self.roots.iter().copied().collect();
        loop {
            level = level
                .into_iter()
                .filter_map(|n| self.nodes.get(n).filter(|n| n.test.is_some()))
                .flat_map(|n| [n.yes, n.no])
                .collect();
            if level.is_empty() {
                return Ok(steps);
            }
            steps += 1;
            if steps > MAX_DEPTH {
                return Err(Refusal::Invalid(format!(
                    "trees deeper than {MAX_DEPTH} nodes, or that never end"
                )));
            }
        }
    }

    /// Whether each leaf has a weight for each target.
    fn every_leaf_says_all(&self, targets: usize) -> bool {
        let said: BTreeSet<(usize, usize)> = self.weights.iter().map(|w| (w.0, w.1)).collect();
        said.len() == targets * self.nodes.iter().filter(|n| n.test.is_none()).count()
    }

    /// The sums `[N, targets]` of what the leaves say, in the type of the samples `[N, F]`.
    fn scores(&self, cx: &mut Importer, x: Value, targets: usize, join: Join) -> Result<Value, Refusal> {
        let dtype = cx.ty(x).dtype;
        let count = self.nodes.len();
        let samples = cx.ty(x).shape[0].clone();
        let trees = Dim::from(self.roots.len());
        let roots: Vec<i64> = self.roots.iter().map(|&r| r as i64).collect();
        let roots = cx.list(&roots)?;
        let mut at = cx.spread(roots, vec![samples, trees])?;
        let integers = |f: &dyn Fn(&Node) -> i64| self.nodes.iter().map(f).collect::<Vec<i64>>();
        let features = cx.list(&integers(&|n| n.feature))?;
        let thresholds = cx.table(dtype, &[count], self.nodes.iter().map(|n| n.threshold).collect())?;
        let (yes, no) = (cx.list(&integers(&|n| n.yes as i64))?, cx.list(&integers(&|n| n.no as i64))?);
        let tests: BTreeSet<Test> = self.nodes.iter().filter_map(|n| n.test).collect();
        let missing = self.nodes.iter().any(|n| n.missing_is_yes);
        let flags =
            |f: &dyn Fn(&Node) -> bool| self.nodes.iter().map(|n| f64::from(f(n))).collect::<Vec<f64>>();
        for _ in 0..self.depth()? {
            let look = |cx: &mut Importer, table: Value| cx.add(Gather { axis: 0 }, &[table, at]);
            let feature = look(cx, features)?;
            let value = cx.elements(x, feature, 1)?;
            let threshold = look(cx, thresholds)?;
            let mut taken: Option<Value> = None;
            for &test in &tests {
                let here = match test {
                    Test::AtMost => cx.at_most(value, threshold)?,
                    Test::Less => cx.less(value, threshold)?,
                    Test::AtLeast => cx.at_most(threshold, value)?,
                    Test::More => cx.less(threshold, value)?,
                    Test::Equal => cx.equal(value, threshold)?,
                    Test::NotEqual => {
                        let same = cx.equal(value, threshold)?;
                        cx.not(same)?
                    }
                };
                taken = Some(match taken {
                    None => here,
                    Some(before) => {
                        let of_test = cx.table(DType::Bool, &[count], flags(&|n| n.test == Some(test)))?;
                        let of_test = look(cx, of_test)?;
                        cx.chosen(of_test, here, before)?
                    }
                });
            }
            let Some(mut taken) = taken else { break };
            if missing {
                let tracks = cx.table(DType::Bool, &[count], flags(&|n| n.missing_is_yes))?;
                let tracks = look(cx, tracks)?;
                let same = cx.equal(value, value)?;
                let nan = cx.not(same)?;
                let tracks = cx.both(nan, tracks)?;
                taken = cx.either(taken, tracks)?;
            }
            let (yes, no) = (look(cx, yes)?, look(cx, no)?);
            at = cx.chosen(taken, yes, no)?;
        }
        let neutral = match join {
            Join::Sum | Join::Mean => 0.0,
            Join::Min => f64::INFINITY,
            Join::Max => f64::NEG_INFINITY,
        };
        if count.checked_mul(targets).is_none_or(|numbers| numbers > MAX_NUMBERS) {
            return Err(Refusal::Unsupported(format!(
                "{targets} targets of {count} nodes are not supported"
            )));
        }
        let mut table = vec![neutral; count * targets];
        for &(node, target, weight) in &self.weights {
            let place = table.get_mut(node * targets + target).filter(|_| target < targets);
            let place = place.ok_or_else(|| {
                Refusal::Invalid(format!("expected a target below {targets}, found {target}"))
            })?;
            *place = if *place == neutral { weight } else { *place + weight };
        }
        let table = cx.table(dtype, &[count, targets], table)?;
        let said = cx.add(Gather { axis: 0 }, &[table, at])?;
        let kind = match join {
            Join::Sum | Join::Mean => ReduceKind::Sum,
            Join::Min => ReduceKind::Min,
            Join::Max => ReduceKind::Max,
        };
        let sum = cx.joined(kind, said, &[1], false)?;
        match join {
            Join::Mean => cx.scaled(sum, 1.0 / self.roots.len() as f64),
            Join::Sum | Join::Min | Join::Max => Ok(sum),
        }
    }
}

/// Numbers as a list of f32 or as a tensor of f64, of two attributes.
fn numbers(call: &Call, list: &'static str, tensor: &'static str) -> Result<Vec<f64>, Refusal> {
    match (call.floats(list)?, call.tensor(tensor)?) {
        (_, Some(t)) => Ok(Numbers::of(t).map_err(|e| Refusal::Invalid(e.to_string()))?.floats()),
        (Some(list), None) => Ok(list.iter().map(|&v| f64::from(v)).collect()),
        (None, None) => Ok(Vec::new()),
    }
}

/// The trees of the operators that list nodes by tree and number; `what` is `target` or `class`.
fn forest(
    call: &Call,
    [nodes_of, trees_of, targets_of]: [&'static str; 3],
    weights: Vec<f64>,
) -> Result<Forest, Refusal> {
    let missing = |name: &str| Refusal::Invalid(format!("expected attribute `{name}`, found none"));
    let list = |name: &'static str| call.ints(name)?.ok_or_else(|| missing(name));
    let (trees, numbers_in_tree) = (list("nodes_treeids")?, list("nodes_nodeids")?);
    let (features, yes, no) =
        (list("nodes_featureids")?, list("nodes_truenodeids")?, list("nodes_falsenodeids")?);
    let modes = call.texts("nodes_modes")?.ok_or_else(|| missing("nodes_modes"))?;
    let thresholds = numbers(call, "nodes_values", "nodes_values_as_tensor")?;
    let tracks = call.ints("nodes_missing_value_tracks_true")?.unwrap_or_default();
    // How often nodes were visited.
    call.ignore(&["nodes_hitrates", "nodes_hitrates_as_tensor"]);
    let count = trees.len();
    let lengths = [numbers_in_tree.len(), features.len(), yes.len(), no.len(), modes.len(), thresholds.len()];
    if let Some(found) = lengths.into_iter().find(|&l| l != count) {
        return Err(Refusal::Invalid(format!("expected {count} nodes, found {found}")));
    }
    let places: BTreeMap<(i64, i64), usize> =
        (0..count).map(|i| ((trees[i], numbers_in_tree[i]), i)).collect();
    let find = |tree: i64, node: i64| {
        let found = places.get(&(tree, node)).copied();
        found.ok_or_else(|| Refusal::Invalid(format!("node {node} of tree {tree} is not there")))
    };
    let mut nodes = Vec::new();
    for i in 0..count {
        let test = match modes[i].as_str() {
            "LEAF" => None,
            "BRANCH_LEQ" => Some(Test::AtMost),
            "BRANCH_LT" => Some(Test::Less),
            "BRANCH_GTE" => Some(Test::AtLeast),
            "BRANCH_GT" => Some(Test::More),
            "BRANCH_EQ" => Some(Test::Equal),
            "BRANCH_NEQ" => Some(Test::NotEqual),
            other => return Err(Refusal::Invalid(format!("`{other}` is no kind of node"))),
        };
        let (yes, no) = match test {
            Some(_) => (find(trees[i], yes[i])?, find(trees[i], no[i])?),
            None => (i, i),
        };
        let missing_is_yes = test.is_some() && tracks.get(i).is_some_and(|&t| t != 0);
        // A leaf may name any feature, and does not look at it.
        let feature = if test.is_some() { features[i] } else { 0 };
        nodes.push(Node { test, feature, threshold: thresholds[i], yes, no, missing_is_yes });
    }
    let children: BTreeSet<usize> =
        nodes.iter().filter(|n| n.test.is_some()).flat_map(|n| [n.yes, n.no]).collect();
    let roots: Vec<usize> = (0..count).filter(|i| !children.contains(i)).collect();
    if roots.len() != trees.iter().collect::<BTreeSet<_>>().len() {
        return Err(Refusal::Invalid(format!("{} roots of trees", roots.len())));
    }
    let (in_node, in_tree, target) = (list(nodes_of)?, list(trees_of)?, list(targets_of)?);
    if [in_tree.len(), target.len(), weights.len()].into_iter().any(|l| l != in_node.len()) {
        return Err(Refusal::Invalid(format!("expected {} weights, found {}", in_node.len(), weights.len())));
    }
    let mut said = Vec::new();
    for (i, weight) in weights.into_iter().enumerate() {
        let target =
            usize::try_from(target[i]).map_err(|_| Refusal::Invalid(format!("target {}", target[i])))?;
        said.push((find(in_tree[i], in_node[i])?, target, weight));
    }
    Ok(Forest { nodes, roots, weights: said })
}

fn plus_base(cx: &mut Importer, scores: Value, base: Vec<f64>) -> Result<Value, Refusal> {
    if base.iter().all(|&b| b == 0.0) {
        return Ok(scores);
    }
    let (dtype, count) = (cx.ty(scores).dtype, base.len());
    let base = cx.table(dtype, &[count], base)?;
    cx.plus(scores, base)
}

/// `TreeEnsembleRegressor`.
pub(super) fn tree_ensemble_regressor(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = samples(cx, x)?;
    let targets = call.int("n_targets", 1)?;
    let targets = usize::try_from(targets).map_err(|_| Refusal::Invalid(format!("{targets} targets")))?;
    let weights = numbers(call, "target_weights", "target_weights_as_tensor")?;
    let forest = forest(call, ["target_nodeids", "target_treeids", "target_ids"], weights)?;
    let join = Join::read(call.text("aggregate_function", "SUM")?)?;
    let scores = forest.scores(cx, x, targets, join)?;
    let scores = plus_base(cx, scores, numbers(call, "base_values", "base_values_as_tensor")?)?;
    let scores = cx.cast(scores, DType::F32)?;
    Ok(vec![transformed(cx, call, scores)?])
}

/// `TreeEnsembleClassifier`: the scores of the classes, and the label of the largest. Trees that know one of two
/// classes only score that one.
pub(super) fn tree_ensemble_classifier(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = samples(cx, x)?;
    let labels = Labels::of(call, "classlabels_int64s", "classlabels_strings")?;
    let weights = numbers(call, "class_weights", "class_weights_as_tensor")?;
    let mut forest = forest(call, ["class_nodeids", "class_treeids", "class_ids"], weights)?;
    let base = numbers(call, "base_values", "base_values_as_tensor")?;
    let scored: BTreeSet<usize> = forest.weights.iter().map(|w| w.1).collect();
    if labels.count() == 2 && scored.len() == 1 {
        if base.len() > 1 {
            let why = format!("{} base values for one score of two classes are not supported", base.len());
            return Err(Refusal::Unsupported(why));
        }
        let positive = forest.weights.iter().all(|w| w.2 >= 0.0);
        forest.weights.iter_mut().for_each(|w| w.1 = 0);
        let score = forest.scores(cx, x, 1, Join::Sum)?;
        let score = plus_base(cx, score, base)?;
        let score = cx.cast(score, DType::F32)?;
        let (bound, second) = if positive { (0.5, Second::Rest) } else { (0.0, Second::Opposite) };
        return of_two(cx, call, &labels, score, bound, second);
    }
    let scores = forest.scores(cx, x, labels.count(), Join::Sum)?;
    let mut compared = plus_base(cx, scores, base.clone())?;
    let scores = compared;
    if base.is_empty() && !forest.every_leaf_says_all(labels.count()) {
        // Classes that no tree has said anything about do not take part.
        forest.weights.iter_mut().for_each(|w| w.2 = 1.0);
        let said = forest.scores(cx, x, labels.count(), Join::Sum)?;
        let said = cx.above(said, 0.0)?;
        compared = cx.chosen_or(said, scores, f64::NEG_INFINITY)?;
    }
    let place = place_of_extreme(cx, compared, 1, ReduceKind::Max, false, false)?;
    let scores = cx.cast(scores, DType::F32)?;
    Ok(vec![labels.at(cx, place)?, transformed(cx, call, scores)?])
}

/// `TreeEnsemble`: nodes and leaves in lists of their own.
pub(super) fn tree_ensemble(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = match cx.ty(x).dtype.is_float() {
        true => x,
        false => return Err(Refusal::Invalid(format!("expected floats, found {}", cx.ty(x)))),
    };
    let missing = |name: &str| Refusal::Invalid(format!("expected attribute `{name}`, found none"));
    let list = |name: &'static str| call.ints(name)?.ok_or_else(|| missing(name));
    let table = |name: &'static str| -> Result<Vec<f64>, Refusal> {
        let tensor = call.tensor(name)?.ok_or_else(|| missing(name))?;
        Ok(Numbers::of(tensor).map_err(|e| Refusal::Invalid(e.to_string()))?.floats())
    };
    let (modes, thresholds) = (table("nodes_modes")?, table("nodes_splits")?);
    let (features, roots) = (list("nodes_featureids")?, list("tree_roots")?);
    let (yes, no) = (list("nodes_truenodeids")?, list("nodes_falsenodeids")?);
    let (yes_leaf, no_leaf) = (list("nodes_trueleafs")?, list("nodes_falseleafs")?);
    let tracks = call.ints("nodes_missing_value_tracks_true")?.unwrap_or_default();
    let (targets_of, weights) = (list("leaf_targetids")?, table("leaf_weights")?);
    call.ignore(&["nodes_hitrates"]);
    if call.tensor("membership_values")?.is_some() {
        return Err(Refusal::Unsupported("tests of membership are not supported".into()));
    }
    let targets = call.int("n_targets", 1)?;
    let targets = usize::try_from(targets).map_err(|_| Refusal::Invalid(format!("{targets} targets")))?;
    let count = modes.len();
    let lengths = [thresholds.len(), features.len(), yes.len(), no.len(), yes_leaf.len(), no_leaf.len()];
    if lengths.into_iter().any(|l| l != count) || targets_of.len() != weights.len() {
        return Err(Refusal::Invalid(format!("expected {count} nodes, found lists of other lengths")));
    }
    let child = |to: i64, leaf: i64| {
        let (first, size) = if leaf != 0 { (count, weights.len()) } else { (0, count) };
        let to = usize::try_from(to).ok().filter(|&t| t < size);
        to.map(|t| first + t).ok_or_else(|| Refusal::Invalid("a child that is not there".into()))
    };
    let mut nodes = Vec::new();
    for i in 0..count {
        let test = match modes[i] as u8 {
            0 => Test::AtMost,
            1 => Test::Less,
            2 => Test::AtLeast,
            3 => Test::More,
            4 => Test::Equal,
            5 => Test::NotEqual,
            other => return Err(Refusal::Unsupported(format!("test number {other} is not supported"))),
        };
        nodes.push(Node {
            test: Some(test),
            feature: features[i],
            threshold: thresholds[i],
            yes: child(yes[i], yes_leaf[i])?,
            no: child(no[i], no_leaf[i])?,
            missing_is_yes: tracks.get(i).is_some_and(|&t| t != 0),
        });
    }
    for leaf in count..count + weights.len() {
        nodes.push(Node {
            test: None,
            feature: 0,
            threshold: 0.0,
            yes: leaf,
            no: leaf,
            missing_is_yes: false,
        });
    }
    let roots = roots.iter().map(|&r| child(r, 0)).collect::<Result<Vec<_>, _>>()?;
    let mut said = Vec::new();
    for (i, weight) in weights.into_iter().enumerate() {
        let target = usize::try_from(targets_of[i]);
        let target = target.map_err(|_| Refusal::Invalid(format!("target {}", targets_of[i])))?;
        said.push((count + i, target, weight));
    }
    let join = match call.int("aggregate_function", 1)? {
        0 => Join::Mean,
        1 => Join::Sum,
        2 => Join::Min,
        3 => Join::Max,
        other => return Err(Refusal::Invalid(format!("`{other}` is no way to join trees"))),
    };
    match call.int("post_transform", 0)? {
        0 => {}
        other => return Err(Refusal::Unsupported(format!("transform number {other} is not supported"))),
    }
    Ok(vec![Forest { nodes, roots, weights: said }.scores(cx, x, targets, join)?])
}
