//! Lookups of rows of a table: low-rank rows and rows of a tensor train against formulas in f64, by how often samples look
//! rows up, and derivatives by finite differences.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_driver::{CompileOptions, Compiled, Dump, Model, Samples, Silent, compile};
use margay_ir::{Cx, Graph, NodeId, Op, Pass, eval};
use margay_onnx::{ExportOptions, export, import};
use margay_passes::sketch::{
    Context, Decompositions, LowRankTraining, Moments, StructuredForm, StructuredTraining, TrainingRank,
    lowrank_for_training, patch, read_plan, scheme, sites, structured_for_training,
};
use margay_passes::{ApplyPlan, make_trainable};
use margay_plan::{Budget, Choice, Goal};
use margay_randnla::{Matrix, svd};
use margay_tensor::{DType, Tensor};
use margay_testkit::parse_with_random_constants;

use crate::{check_range_by_differences, floats, random, widened};

const ROWS: usize = 50;
const COLUMNS: usize = 12;

const TABLE: &str = "graph @net(%t: i64[7, 2]) -> (y: f32[7, 2, 12]) {
  %0 = const #w : f32[50, 12]  // table.weight
  %1 = gather %0, %t {axis = 0} : f32[7, 2, 12]  // embed
  return %1
}";

const HEAD: &str =
    "[plan]\nversion = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0\n[modules]\n";

fn dense() -> Graph {
    parse_with_random_constants(TABLE).0
}

fn replaced(choice: &str) -> Graph {
    let mut g = dense();
    let plan = read_plan(&format!("{HEAD}embed = {{ {choice} }}\n")).unwrap();
    ApplyPlan::of(&plan).run(&mut g, &mut Cx::default()).unwrap();
    g
}

/// Places from either end.
fn places() -> Tensor {
    let at: Vec<i64> = vec![0, 1, 49, -1, -50, 7, 8, 15, 16, 31, 32, -3, 44, 25];
    Tensor::from_slice(&[7, 2], &at).unwrap()
}

/// The numbers of the factors, in the order in which they are applied.
fn factors(g: &Graph) -> Vec<(Vec<usize>, Vec<f64>)> {
    let mut found = Vec::new();
    for n in g.order() {
        let Op::Const(c) = g.op(n) else { continue };
        let tensor = c.payload.tensor();
        if tensor.dtype() == DType::F32 {
            found.push((c.payload.key().to_string(), tensor.shape().to_vec(), floats(tensor)));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.into_iter().map(|(_, shape, numbers)| (shape, numbers)).collect()
}

/// The whole table of a graph: what it gives for every place.
fn table(g: &Graph) -> Vec<f64> {
    let mut rows = Vec::new();
    for first in (0..ROWS).step_by(14) {
        let at: Vec<i64> = (first..first + 14).map(|i| (i % ROWS) as i64).collect();
        let at = Tensor::from_slice(&[7, 2], &at).unwrap();
        rows.extend(floats(&eval::run(&widened(g), &[("t", &at)]).unwrap()[0]));
    }
    rows.truncate(ROWS * COLUMNS);
    rows
}

/// Digits of 4, 4 and 4, of which those from 50 on are none of the table, and matrices of 12 = 2 x 2 x 3 columns.
#[test]
fn rows_of_a_train_are_products_of_the_matrices_of_their_digits() {
    let g = replaced("scheme = \"tt\", inputs = [4, 4, 4], outputs = [2, 2, 3], rank = 5");
    let cores = factors(&g);
    let shapes: Vec<&[usize]> = cores.iter().map(|(shape, _)| shape.as_slice()).collect();
    assert_eq!(shapes, [&[4, 10][..], &[4, 50], &[4, 15]]);
    let row = |i: usize| {
        let digits = [i / 16, i / 4 % 4, i % 4];
        let of = |k: usize| &cores[k].1[digits[k] * cores[k].0[1]..][..cores[k].0[1]];
        let (a, b, c) = (of(0), of(1), of(2));
        let column = |j: usize| {
            let (j1, j2, j3) = (j / 6, j / 3 % 2, j % 3);
            let mut sum = 0.0;
            for p in 0..5 {
                for q in 0..5 {
                    sum += a[j1 * 5 + p] * b[p * 10 + j2 * 5 + q] * c[q * 3 + j3];
                }
            }
            sum
        };
        (0..COLUMNS).map(column).collect::<Vec<f64>>()
    };
    for (i, found) in table(&g).chunks(COLUMNS).enumerate() {
        for (f, e) in found.iter().zip(row(i)) {
            assert!((f - e).abs() < 1e-12, "row {i}: {f} {e}");
        }
    }
    let at = floats(&eval::run(&widened(&g), &[("t", &places())]).unwrap()[0]);
    let wrapped = |i: i64| if i < 0 { (i + ROWS as i64) as usize } else { i as usize };
    for (found, i) in at.chunks(COLUMNS).zip(places().to_vec::<i64>().unwrap()) {
        for (f, e) in found.iter().zip(row(wrapped(i))) {
            assert!((f - e).abs() < 1e-12, "place {i}: {f} {e}");
        }
    }
}

#[test]
fn great_ranks_are_the_table_and_export_keeps_them() {
    let whole = floats(&eval::run(&widened(&dense()), &[("t", &places())]).unwrap()[0]);
    for choice in [
        "scheme = \"lowrank\", rank = 12",
        "scheme = \"tt\", inputs = [4, 4, 4], outputs = [2, 2, 3], rank = 100",
        "scheme = \"tt\", inputs = [7, 8], outputs = [4, 3], rank = 100",
    ] {
        let g = replaced(choice);
        let read = import(&export(&g, &ExportOptions::default()).unwrap()).unwrap();
        for g in [g, read] {
            let found = floats(&eval::run(&g, &[("t", &places())]).unwrap()[0]);
            assert!(found.iter().zip(&whole).all(|(f, e)| (f - e).abs() < 2e-6), "{choice}");
        }
    }
}

#[test]
fn derivatives_by_factors_are_those_of_finite_differences() {
    for (choice, factors) in [
        ("scheme = \"lowrank\", rank = 3", 2),
        ("scheme = \"tt\", inputs = [4, 4, 4], outputs = [2, 2, 3], rank = 3", 3),
        ("scheme = \"tt\", inputs = [7, 8], outputs = [4, 3], rank = 2", 2),
    ] {
        let mut g = widened(&replaced(choice));
        let numbers =
            |n: &NodeId| matches!(g.op(*n), Op::Const(c) if c.payload.tensor().dtype() == DType::F64);
        let of: Vec<NodeId> = g.order().into_iter().filter(numbers).collect();
        make_trainable(&mut g, &of).unwrap();
        let given = |(i, n): (usize, &NodeId)| {
            let name: &'static str = g.node(*n).origin.name().to_owned().leak();
            let shape = g.ty((*n).into()).extents().unwrap();
            (name, if i == 0 { places() } else { random(&shape, i as u64) })
        };
        let inputs: Vec<(&'static str, Tensor)> = g.inputs().iter().enumerate().map(given).collect();
        assert_eq!(inputs.len(), 1 + factors, "{choice}");
        check_range_by_differences(choice, &g, &inputs, 1..1 + factors);
    }
}

/// Places of 50 rows, of which the first are looked up more than the last; and how often.
fn samples() -> (Tensor, Vec<f64>) {
    let mut counts = vec![0.0; ROWS];
    let at: Vec<i64> = (0..40 * 14)
        .map(|i| {
            let place = (i * i / 7 + i) % (1 + i % 37);
            counts[place] += 1.0;
            // Every third place counts from the end.
            if i % 3 == 0 { place as i64 - ROWS as i64 } else { place as i64 }
        })
        .collect();
    (Tensor::from_slice(&[40 * 7, 2], &at).unwrap(), counts)
}

/// With `f_i` the times that row `i` was looked up, plus one: the error is that of the rows in this metric, and the least one of
/// its rank.
#[test]
fn rows_weigh_by_how_often_they_are_looked_up() {
    let g = dense();
    let (places, counts) = samples();
    let whole = table(&g);
    let weighed = Matrix::from_fn(ROWS, COLUMNS, |i, j| (counts[i] + 1.0).sqrt() * whole[i * COLUMNS + j]);
    let values = svd(&weighed).unwrap().singular_values;
    let energy: f64 = values.iter().map(|s| s * s).sum();
    let site = sites(&g).into_iter().find(|s| s.name == "embed").unwrap();
    assert_eq!((site.kind, site.schemes.as_slice()), ("embedding", &["lowrank", "tt"][..]));
    let rows = &site.measures[0][0];
    let mut gram = rows.gram();
    gram.add_ones(&rows.places(&places).unwrap()).unwrap();
    let moments = [Arc::new(Moments::of_inputs(gram, "places"))];
    for (name, settings) in [
        ("lowrank", "rank = 2"),
        ("lowrank", "rank = 7"),
        ("tt", "inputs = [7, 8], outputs = [4, 3], rank = 6"),
    ] {
        let context = Context {
            graph: &g,
            site: &site,
            moments: Some(&moments),
            samples: None,
            metric: None,
            decompositions: &Decompositions::default(),
            seed: 0,
        };
        let fitted = scheme(name).unwrap().fit(&context).unwrap();
        let plan = read_plan(&format!("{HEAD}embed = {{ scheme = \"{name}\", {settings} }}\n")).unwrap();
        let settings = &plan.sites["embed"].settings;
        let predicted = fitted.squared_error(settings).unwrap();
        let mut replaced = g.clone();
        replaced.apply(patch(&*fitted, &g, &site, settings).unwrap()).unwrap();
        let made = table(&replaced);
        let squared =
            |i: usize| (i * COLUMNS..(i + 1) * COLUMNS).map(|at| (made[at] - whole[at]).powi(2)).sum::<f64>();
        let measured: f64 = (0..ROWS).map(|i| (counts[i] + 1.0) * squared(i)).sum::<f64>() / energy;
        assert!((predicted / measured - 1.0).abs() < 1e-4, "{name} {settings}: {predicted} {measured}");
        if let Some(rank) = settings.to_string().strip_prefix("rank ").and_then(|r| r.parse::<usize>().ok()) {
            let least = values[rank..].iter().map(|s| s * s).sum::<f64>() / energy;
            assert!((measured / least - 1.0).abs() < 1e-4, "{rank}: {measured} {least}");
        }
    }
}

fn compiled(model: &Model, samples: Option<&Samples>, options: &CompileOptions) -> Compiled {
    compile(model, samples, options, &Silent).unwrap_or_else(|e| panic!("{e}"))
}

fn model(text: &str) -> Model {
    Model::new(parse_with_random_constants(text).0, "net", &mut Dump::none()).unwrap()
}

/// A table that is nearly of rank 2: budgets leave it, and do not count it; a plan that names it may replace it.
#[test]
fn tables_are_replaced_where_a_plan_names_them() {
    let made = model(
        "graph @net(%t: i64[N]) -> (y: f32[N, 64]) {
          %0 = const #l : f32[200, 2]  // left
          %1 = const #r : f32[2, 24]  // right
          %2 = matmul %0, %1 : f32[200, 24]  // table.weight
          %3 = gather %2, %t {axis = 0} : f32[N, 24]  // embed
          %4 = const #o : f32[24, 64]  // out.weight
          %5 = matmul %3, %4 : f32[N, 64]  // out
          return %5
        }",
    );
    let at: Vec<i64> = (0..400).map(|i| (i * 7 + i * i) % 200).collect();
    let samples = Samples::new(vec![("t".into(), Tensor::from_slice(&[400], &at).unwrap())]).unwrap();
    let options = CompileOptions { goal: Goal::Bytes(Budget::Fraction(0.9)), ..CompileOptions::default() };
    let mut found = compiled(&made, Some(&samples), &options);
    assert!(found.report.modules.iter().all(|m| m.name != "embed"));
    assert!(found.report.bytes_before < 4 * 200 * 24);
    found.plan.sites.clear();
    found.plan.sites.insert("embed".into(), Choice::new("lowrank", &BTreeMap::from([("rank", 2)])));
    let options = CompileOptions { plan: Some(found.plan), ..CompileOptions::default() };
    let found = compiled(&made, Some(&samples), &options);
    let of = |name: &str| found.report.modules.iter().find(|m| m.name == name).unwrap();
    assert!(of("embed").is_sketched());
    assert!(found.report.bytes_before > 4 * 200 * 24);
    assert!(found.report.bytes_after < found.report.bytes_before * 4 / 10);
    assert!(of("embed").layer_error < 1e-3, "{}", of("embed").layer_error);
}

/// A table that is also the weight of the outputs stays: factors of one use would be stored beside it.
#[test]
fn tied_tables_stay() {
    let text = |last: &str| {
        format!(
            "graph @net(%t: i64[N]) -> (y: f32[N, 50]) {{
              %0 = const #w : f32[50, 12]  // table.weight
              %1 = gather %0, %t {{axis = 0}} : f32[N, 12]  // embed
              {last}
              %4 = matmul %1, %3 : f32[N, 50]  // logits
              return %4
            }}"
        )
    };
    let names = |last: &str| -> Vec<String> {
        let (g, _) = parse_with_random_constants(&text(last));
        sites(&g).into_iter().map(|s| s.name).collect()
    };
    assert_eq!(names("%3 = const #o : f32[12, 50]  // out.weight"), ["embed", "logits"]);
    assert_eq!(names("%3 = transpose %0 {perm = [1, 0]} : f32[12, 50]  // turned"), [""; 0]);
}

#[test]
fn lookups_are_replaced_before_training() {
    let shapes = |g: &Graph| factors(g).into_iter().map(|(shape, _)| shape).collect::<Vec<_>>();
    let (mut g, mut cx) = (dense(), Cx::default());
    let low = |rank| LowRankTraining { rank, seed: 0, modules: Some(vec!["embed".into()]) };
    let unnamed = LowRankTraining { modules: None, ..low(TrainingRank::Fixed(4)) };
    lowrank_for_training(&mut g, &unnamed, &mut cx).unwrap();
    assert_eq!(shapes(&g), [[ROWS, COLUMNS]]);
    lowrank_for_training(&mut g, &low(TrainingRank::Fixed(4)), &mut cx).unwrap();
    assert_eq!((shapes(&g), cx.remarks.len()), (vec![vec![50, 4], vec![4, 12]], 0));
    let mut g = dense();
    let form = StructuredForm::TensorTrain { cores: 3, rank: 4 };
    structured_for_training(
        &mut g,
        &StructuredTraining { form, seed: 0, modules: Some(vec!["embed".into()]) },
        &mut cx,
    )
    .unwrap();
    assert_eq!((shapes(&g), cx.remarks.len()), (vec![vec![4, 8], vec![4, 32], vec![4, 12]], 0));
    let mut g = dense();
    lowrank_for_training(&mut g, &low(TrainingRank::Greatest), &mut cx).unwrap();
    assert_eq!(cx.remarks[0].message, "ranks of lookups are not chosen during training");
}
