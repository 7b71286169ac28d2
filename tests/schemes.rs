//! The laws of sketch schemes, over all of them: exact where they can be, with the errors that they predict, in ordinary
//! operators, and found again.

#[path = "schemes/rows.rs"]
mod rows;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use margay_driver::{CompileOptions, Dump, Model, ModuleReport, Samples, Silent, backend, build, compile};
use margay_ir::{Cx, Graph, Pass, eval};
use margay_onnx::{ExportOptions, export, import};
use margay_passes::sketch::{Context, Decompositions, Fitted, SCHEMES, Site, read_plan, scheme, sites};
use margay_passes::{ApplyPlan, with_parameters};
use margay_plan::{Budget, Goal, Plan, Settings};
use margay_randnla::{Distribution, Factors, random_matrix};
use margay_tensor::Tensor;
use margay_testkit::{doc_examples, normal, normalized, parse_with_random_constants};

use rows::{CONVNET, FFN, Found, LOOKUP, ROWS, Row};

/// The network, whose weights have spectra that fall.
fn source(network: &str) -> Model {
    let (mut g, _) = parse_with_random_constants(network);
    for (name, shape) in [
        ("up.weight", [24, 80]),
        ("down.weight", [80, 20]),
        ("conv.weight", [12, 27]),
        ("table.weight", [60, 16]),
    ] {
        let constant = margay_passes::parameter_names(&g).into_iter().find(|(_, found)| found == name);
        let Some((n, _)) = constant else { continue };
        let shape_in_graph = g.constant(n.into()).unwrap().tensor().shape().to_vec();
        let weight = Tensor::from_slice(&shape_in_graph, &falling(shape)).unwrap();
        g = with_parameters(&g, &[(name.to_owned(), weight)]).unwrap();
    }
    Model::new(g, "net", &mut Dump::none()).unwrap()
}

/// A matrix of random singular vectors and singular values that fall.
fn falling([rows, columns]: [usize; 2]) -> Vec<f32> {
    let inner = rows.min(columns);
    let left = random_matrix(Distribution::Gaussian, rows, inner, 3, 1);
    let right = random_matrix(Distribution::Gaussian, inner, columns, 3, 2);
    let scaled = margay_randnla::Matrix::from_fn(rows, inner, |i, k| {
        left.at(i, k) * 0.85f64.powi(k as i32) / (rows as f64).sqrt()
    });
    scaled.product(&right).unwrap().to_row_major()
}

/// Inputs of a network.
fn inputs(source: &Model, count: usize, stream: u64) -> Tensor {
    let n = source.graph.inputs()[0];
    let mut shape: Vec<usize> =
        source.graph.ty(n.into()).shape[1..].iter().map(|d| d.as_extent().unwrap()).collect();
    shape.insert(0, count);
    let numbers = normal(&shape, 8, stream);
    if source.graph.ty(n.into()).dtype.is_float() {
        return numbers;
    }
    // Places of a table, of which the first are the most frequent.
    let place = |x: &f32| (x.abs() * 14.0) as i64 % rows::PLACES;
    let places: Vec<i64> = numbers.to_vec::<f32>().unwrap().iter().map(place).collect();
    Tensor::from_slice(&shape, &places).unwrap()
}

fn plan(source: &Model, row: &Row, settings: &str) -> Plan {
    plan_of(&source.hash, row.site, row.scheme, settings)
}

fn plan_of(model: &str, site: &str, scheme: &str, settings: &str) -> Plan {
    let head = format!("version = 1\nmodel = \"{model}\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0");
    let choice = format!("\"{site}\" = {{ scheme = \"{scheme}\", {settings} }}");
    read_plan(&format!("[plan]\n{head}\n[modules]\n{choice}\n")).unwrap_or_else(|e| panic!("{e}"))
}

/// The graph with the site replaced, from its weights alone.
fn replaced(source: &Model, row: &Row, settings: &str) -> Graph {
    let mut g = source.graph.clone();
    let pass = ApplyPlan::of(&plan(source, row, settings));
    let mut cx = Cx::default();
    pass.run(&mut g, &mut cx).unwrap_or_else(|e| panic!("{e}"));
    assert!(cx.remarks.is_empty() && g.to_string() != source.graph.to_string(), "{} {settings}", row.scheme);
    g
}

fn outputs(g: &Graph, x: &Tensor) -> Tensor {
    eval::run(g, &[("x", x)]).unwrap().remove(0)
}

/// The root of the squared error over the squared norm of what is expected, about its mean for each output.
fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let outputs = expected.shape()[1];
    let per_output: usize = expected.shape()[2..].iter().product();
    let (found, expected) = (found.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap());
    let count = (expected.len() / outputs) as f64;
    let mut sums = vec![(0f64, 0f64); outputs];
    for (i, e) in expected.iter().enumerate() {
        let (squared, sum) = &mut sums[i / per_output % outputs];
        *squared += f64::from(*e).powi(2);
        *sum += f64::from(*e);
    }
    let energy: f64 = sums.iter().map(|(squared, sum)| squared - sum * sum / count).sum();
    let error: f64 = found.iter().zip(&expected).map(|(f, e)| f64::from(f - e).powi(2)).sum();
    (error / energy).sqrt()
}

#[test]
fn every_scheme_has_rows() {
    let mut named: Vec<&str> = ROWS.iter().map(|r| r.scheme).collect();
    named.dedup();
    assert_eq!(named, SCHEMES.iter().map(|s| s.facts().name).collect::<Vec<_>>());
}

/// Compiled code and the exported model included.
#[test]
fn exact_settings_only_round() {
    for row in ROWS {
        let Some(exact) = row.exact else { continue };
        let source = source(row.network);
        let x = inputs(&source, 7, 1);
        let expected = outputs(&source.graph, &x);
        let g = replaced(&source, row, exact);
        let error = relative_error(&outputs(&g, &x), &expected);
        assert!(error < 2e-5, "{} on {}: {error}\n{g}", row.scheme, row.site);
        // With samples, other factors.
        let samples = Samples::new(vec![("x".into(), inputs(&source, 64, 0))]).unwrap();
        let plan = Some(plan(&source, row, exact));
        let options = CompileOptions { plan, ..CompileOptions::default() };
        let compiled = compile(&source, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
        let error = relative_error(&outputs(&compiled.graph, &x), &expected);
        assert!(error < 2e-5, "{} on {} calibrated: {error}", row.scheme, row.site);
    }
}

#[test]
fn sketches_compile_and_export_as_ordinary_operators() {
    for row in ROWS {
        let source = source(row.network);
        let x = inputs(&source, 5, 1);
        for settings in row.lossy.iter().copied().chain(row.exact) {
            let g = replaced(&source, row, settings);
            let expected = outputs(&g, &x);
            for backend in backend::supported() {
                let mut runner = margay_driver::Runner::new(g.clone(), &Arc::clone(&backend), 1);
                let found = runner.run(&[("x".to_string(), x.clone())]).unwrap();
                let error = relative_error(&found[0].1, &expected);
                assert!(error < 1e-5, "{} on {}: {error}", row.scheme, backend.target());
            }
            let model = export(&g, &ExportOptions::default()).unwrap_or_else(|e| panic!("{e}\n{g}"));
            let read = import(&model).unwrap_or_else(|e| panic!("{e}"));
            let error = relative_error(&outputs(&read, &x), &expected);
            assert!(error < 1e-5, "{} exported: {error}", row.scheme);
        }
    }
}

#[test]
fn errors_are_those_that_are_predicted() {
    for row in ROWS.iter().filter(|r| r.exact.is_some()) {
        let source = source(row.network);
        let samples = Samples::new(vec![("x".into(), inputs(&source, 3000, 0))]).unwrap();
        let x = inputs(&source, 500, 3);
        let mut last = f64::INFINITY;
        for settings in row.lossy {
            let plan = Some(plan(&source, row, settings));
            let options = CompileOptions { plan, ..CompileOptions::default() };
            let compiled =
                compile(&source, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
            let report = &compiled.report;
            let site: &ModuleReport = report.modules.iter().find(|m| m.is_sketched()).unwrap();
            // Where the site ends in the output, that is its error.
            if row.site == "down" || row.site == "up+down" {
                let measured = relative_error(&outputs(&compiled.graph, &x), &outputs(&source.graph, &x));
                let ratio = site.layer_error / measured;
                assert!((0.85..1.18).contains(&ratio), "{} {settings}: {ratio} of {measured}", row.scheme);
            }
            assert!(site.layer_error < last && site.layer_error > 0.0, "{} {settings}", row.scheme);
            last = site.layer_error;
            let fewer = report.flops_after < report.flops_before;
            assert!(fewer || !row.saves_operations, "{} {settings}", row.scheme);
        }
    }
}

/// Schemes without exact settings are fitted and measured with samples as well.
#[test]
fn sites_of_every_scheme_are_measured_on_samples() {
    for row in ROWS.iter().filter(|r| r.exact.is_none()) {
        let source = source(row.network);
        let samples = Samples::new(vec![("x".into(), inputs(&source, 64, 0))]).unwrap();
        for settings in row.lossy {
            let plan = Some(plan(&source, row, settings));
            let options = CompileOptions { plan, ..CompileOptions::default() };
            let compiled =
                compile(&source, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
            let site = compiled.report.modules.iter().find(|m| m.is_sketched()).unwrap();
            let error = site.layer_error;
            assert!(error > 0.0 && error.is_finite(), "{} {settings}: {error}", row.scheme);
        }
    }
}

/// Samples that never vary, that are all but zero, or that are few tell a scheme little; what it makes of them is still a layer
/// with outputs of about the size of the dense ones.
#[test]
fn samples_that_say_little_break_no_scheme() {
    let of = |x: &Tensor, change: &dyn Fn(usize, f32) -> f32| {
        let numbers: Vec<f32> = x.to_vec::<f32>().unwrap();
        let changed: Vec<f32> = numbers.iter().enumerate().map(|(i, v)| change(i, *v)).collect();
        Tensor::from_slice(x.shape(), &changed).unwrap()
    };
    let norm =
        |t: &Tensor| t.to_vec::<f32>().unwrap().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    for row in ROWS.iter().filter(|r| r.network != LOOKUP) {
        let source = source(row.network);
        let x = inputs(&source, 40, 0);
        let first: Vec<f32> = x.to_vec::<f32>().unwrap()[..x.len() / 40].to_vec();
        let kinds = [
            ("zeros", of(&x, &|_, _| 0.0)),
            ("ones", of(&x, &|_, _| 1.0)),
            ("one sample", of(&x, &|i, _| first[i % first.len()])),
            ("tiny", of(&x, &|_, v| v * 1e-20)),
            ("few", inputs(&source, 4, 0)),
        ];
        for (kind, x) in kinds {
            let samples = Samples::new(vec![("x".into(), x.clone())]).unwrap();
            let options =
                CompileOptions { plan: Some(plan(&source, row, row.lossy[0])), ..CompileOptions::default() };
            let compiled = compile(&source, Some(&samples), &options, &Silent);
            let compiled = compiled.unwrap_or_else(|e| panic!("{} on {}, {kind}: {e}", row.scheme, row.site));
            let (dense, sketched) = (outputs(&source.graph, &x), outputs(&compiled.graph, &x));
            let (dense, sketched) = (norm(&dense), norm(&sketched));
            assert!(sketched <= 3.0 * dense, "{} on {}, {kind}: {sketched} {dense}", row.scheme, row.site);
        }
    }
}

fn fitted(source: &Model, row: &Row) -> (Site, Box<dyn Fitted>) {
    let site = sites(&source.graph).into_iter().find(|s| s.name == row.site).unwrap();
    let decompositions = &Decompositions::default();
    let context = Context {
        graph: &source.graph,
        site: &site,
        moments: None,
        samples: None,
        metric: None,
        decompositions,
        seed: 0,
    };
    let fitted = scheme(row.scheme).unwrap().fit(&context).unwrap();
    (site, fitted)
}

/// What an allocator is given: errors that fall as sketches grow, below a whole and above nothing.
#[test]
fn candidates_are_offered_with_falling_errors() {
    for row in ROWS.iter().filter(|r| scheme(r.scheme).unwrap().facts().only_by_name.is_none()) {
        let (_, fitted) = fitted(&source(row.network), row);
        let errors: Vec<f64> = fitted.candidates().iter().map(|s| fitted.squared_error(s).unwrap()).collect();
        assert!(errors.len() > 2, "{}: {errors:?}", row.scheme);
        assert!(errors.windows(2).all(|w| w[0] >= w[1]), "{}: {errors:?}", row.scheme);
        assert!(errors.iter().all(|e| (0.0..1.0).contains(e)), "{}: {errors:?}", row.scheme);
        let half = fitted.squared_error(&fitted.probe().unwrap()).unwrap();
        assert!(half < errors[0] && half > errors[errors.len() - 1], "{}: {half}", row.scheme);
    }
}

/// A form that offers errors without making the weight it stands for is right about them.
#[test]
fn offered_errors_are_those_of_the_weight_that_is_made() {
    for row in ROWS.iter().filter(|r| r.scheme == "tucker") {
        let source = source(row.network);
        let samples = Samples::new(vec![("x".into(), inputs(&source, 400, 0))]).unwrap();
        let made = |settings: &Settings| {
            let mut plan = plan(&source, row, row.lossy[0]);
            plan.sites.get_mut(row.site).unwrap().settings = settings.clone();
            let plan = Some(plan);
            let options = CompileOptions { plan, ..CompileOptions::default() };
            let compiled =
                compile(&source, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
            compiled.report.modules.iter().find(|m| m.is_sketched()).unwrap().layer_error
        };
        let goal = Goal::Bytes(Budget::Fraction(0.9));
        let options = CompileOptions { goal, ..CompileOptions::default() };
        let all =
            compile(&source, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}")).curves;
        let offered: Vec<_> = all.iter().filter(|point| point.scheme == row.scheme).collect();
        assert!(offered.len() > 2);
        for point in offered {
            let (offered, made) = (point.layer_error, made(&point.settings));
            assert!((offered - made).abs() < 1e-4, "{}: {offered} {made}", point.settings);
        }
    }
}

const TWINS: &str = "graph @net(%x: f32[N, 96]) -> (y: f32[N, 96]) {
  %0 = const #w : f32[96, 96]  // first.weight
  %1 = matmul %x, %0 : f32[N, 96]  // first
  %2 = gelu %1 : f32[N, 96]  // act
  %3 = const #w : f32[96, 96]  // second.weight
  %4 = matmul %2, %3 : f32[N, 96]  // second
  %5 = add %4, %x : f32[N, 96]  // sum
  return %5
}";

/// Each reads something else: what is best for one is not best for the other.
#[test]
fn layers_with_equal_weights_get_factors_of_their_own() {
    let source = source(TWINS);
    let samples = Samples::new(vec![("x".into(), inputs(&source, 400, 0))]).unwrap();
    let x = inputs(&source, 9, 1);
    for scheme in ["lowrank", "interpolative"] {
        let mut plan = plan_of(&source.hash, "first", scheme, "rank = 6");
        plan.sites.extend(plan_of(&source.hash, "second", scheme, "rank = 6").sites);
        let options = CompileOptions { plan: Some(plan), ..CompileOptions::default() };
        let compiled = compile(&source, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
        let expected = outputs(&compiled.graph, &x);
        let found = compiled.runner(1).run(&[("x".to_string(), x.clone())]).unwrap();
        let error = relative_error(&found[0].1, &expected);
        assert!(error < 1e-5, "{scheme}: {error}");
        let model = export(&compiled.graph, &ExportOptions::default()).unwrap();
        let error = relative_error(&outputs(&import(&model).unwrap(), &x), &expected);
        assert!(error < 1e-5, "{scheme} exported: {error}");
    }
    // As they are they are stored once.
    let options = CompileOptions { goal: Goal::Bytes(Budget::Fraction(0.9)), ..CompileOptions::default() };
    let compiled = compile(&source, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    let (before, after) = (compiled.report.bytes_before, compiled.report.bytes_after);
    assert!(before < 2 * 96 * 96 * 4 && after * 10 <= before * 9, "{after} of {before}");
}

/// In the graph, and in the one that is read back from a file, where no origin tells.
#[test]
fn factors_are_found_again_and_take_others() {
    for row in ROWS.iter().filter(|r| r.found != Found::Never) {
        let source = source(row.network);
        let x = inputs(&source, 5, 1);
        for settings in row.lossy {
            let marked = replaced(&source, row, settings);
            check_factors(row, &marked, &x);
            if row.found == Found::ByStructure {
                let model = export(&marked, &ExportOptions::default()).unwrap();
                check_factors(row, &import(&model).unwrap(), &x);
            }
        }
    }
}

fn check_factors(row: &Row, g: &Graph, x: &Tensor) {
    let found = scheme(row.scheme).unwrap().factors(g);
    let [found] = found.as_slice() else { panic!("{}: {} maps in\n{g}", row.scheme, found.len()) };
    let factors = found.stored.read(g);
    assert_eq!((factors.left.rows(), factors.left.columns()), (found.d_in, found.rank));
    assert_eq!((factors.right.rows(), factors.right.columns()), (found.rank, found.d_out));
    let names: BTreeMap<_, _> = margay_passes::parameter_names(g).into_iter().collect();
    let all = |contents: Vec<(margay_ir::NodeId, Tensor)>| {
        let mut out = g.clone();
        for (n, tensor) in contents {
            assert!(names.contains_key(&n) || tensor.to_vec::<i64>().is_ok());
            let mut patch = margay_ir::Patch::new();
            let constant = margay_ir::ops::Const { payload: margay_ir::Payload::new(tensor) };
            let new = patch.add(&out, constant, &[], margay_ir::Origin::default()).unwrap();
            patch.redirect(n.into(), new);
            out.apply(patch).unwrap();
        }
        out
    };
    // The same map again changes nothing but roundings.
    let Some(same) = found.stored.write(g, &factors) else { panic!("{}: the map is refused", row.scheme) };
    let error = relative_error(&outputs(&all(same), x), &outputs(g, x));
    assert!(error < 1e-5, "{}: {error}", row.scheme);
    // Twice the map is the map of twice the left factor.
    let left = margay_randnla::Matrix::from_fn(found.d_in, found.rank, |i, j| 2.0 * factors.left.at(i, j));
    let doubled = Factors { left, right: factors.right.clone(), bias: None };
    let Some(contents) = found.stored.write(g, &doubled) else { return };
    let again = all(contents);
    let read = scheme(row.scheme).unwrap().factors(&again).remove(0).stored.read(&again);
    let expected = doubled.left.product(&doubled.right).unwrap().to_row_major();
    let product = read.left.product(&read.right).unwrap().to_row_major();
    let most = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(product.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4 * most), "{}", row.scheme);
}

/// The graphs before and after in the heads of the files.
#[test]
fn doc_examples_hold() {
    for facts in SCHEMES.iter().map(|s| s.facts()) {
        let scheme = facts.name;
        let path = format!("../passes/src/sketch/{}.rs", scheme.replace('-', "_"));
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let examples = doc_examples(&text);
        assert!(!examples.is_empty() && examples.len() == facts.examples.len(), "{scheme}");
        for (example, settings) in examples.iter().zip(facts.examples) {
            let (mut g, names) = parse_with_random_constants(&example.before);
            let site = sites(&g).into_iter().find(|s| s.schemes.contains(&scheme)).unwrap();
            let pass = ApplyPlan::of(&plan_of("", &site.name, scheme, settings));
            pass.run(&mut g, &mut Cx::default()).unwrap();
            assert_eq!(normalized(&g, "after", &names), example.after, "{scheme}");
        }
    }
}

/// The channels of an image are looked up where kernels leave them.
#[test]
fn pivots_among_channels_cost_no_transposes() {
    let row = ROWS.iter().find(|r| r.scheme == "interpolative" && r.network == CONVNET).unwrap();
    let g = replaced(&source(row.network), row, row.lossy[0]);
    let binding = [("N".into(), 2)].into_iter().collect();
    let bound = build::bind(&g, &binding, &*backend::native(), &mut Dump::none()).unwrap().to_string();
    let count = |op: &str| bound.matches(&format!(" = {op} ")).count();
    assert_eq!((count("gather"), count("transpose")), (1, 2), "{bound}");
}

/// Nothing else may read the units, and each value between the products follows from one unit.
#[test]
fn pairs_are_found_where_a_unit_is_a_unit() {
    let names = |text: &str| -> Vec<String> {
        let (g, _) = parse_with_random_constants(text);
        sites(&g).into_iter().filter(|s| s.weights.len() == 2).map(|s| s.name).collect()
    };
    let net = |between: &str, last: &str, outputs: &str, returned: &str| {
        format!(
            "graph @net(%x: f32[16, 16]) -> (y: f32[16, 16]{outputs}) {{
               %0 = const #u : f32[16, 16]  // up.weight
               %1 = matmul %x, %0 : f32[16, 16]  // up
               {between}
               %8 = const #v : f32[16, 16]  // down.weight
               %9 = matmul {last}, %8 : f32[16, 16]  // down
               return %9{returned}
             }}"
        )
    };
    let found = |between: &str, last: &str| names(&net(between, last, "", ""));
    assert_eq!(found("%2 = relu %1 : f32[16, 16]", "%2"), ["up+down"]);
    assert_eq!(names(&net("%2 = relu %1 : f32[16, 16]", "%2", ", h: f32[16, 16]", ", %2")), [""; 0]);
    for left in [
        "%2 = softmax %1 {axis = 1} : f32[16, 16]",
        "%2 = transpose %1 {perm = [1, 0]} : f32[16, 16]",
        "%2 = mul %1, %1 : f32[16, 16]",
        "%2 = add %1, %x : f32[16, 16]",
        // A number for each row, and one for each row and unit.
        "%3 = const #c : f32[16, 1]\n%2 = add %1, %3 : f32[16, 16]",
        "%3 = const #c : f32[16, 16]\n%2 = add %1, %3 : f32[16, 16]",
    ] {
        assert_eq!(found(left, "%2"), [""; 0], "{left}");
    }
    for pair in ["f32[1, 1]", "f32[16]", "f32[1, 16]"] {
        let between = format!("%3 = const #c : {pair}\n%2 = add %1, %3 : f32[16, 16]");
        assert_eq!(found(&between, "%2"), ["up+down"], "{pair}");
    }
    // Without anything between them they are one product.
    assert_eq!(found("", "%1"), [""; 0]);
}

#[test]
fn a_weight_is_replaced_once() {
    let source = source(FFN);
    let mut plan = plan_of(&source.hash, "up+down", "neurons", "units = 24");
    plan.sites.extend(plan_of(&source.hash, "up", "lowrank", "rank = 8").sites);
    let options = CompileOptions { plan: Some(plan), ..CompileOptions::default() };
    let error = compile(&source, None, &options, &Silent).err().unwrap().to_string();
    assert!(error.contains("replaces one of its weights already"), "{error}");
}

/// The weight behind the units is fitted anew: with its rows as they were the output is further away.
#[test]
fn least_squares_keep_more_of_the_output() {
    let source = source(FFN);
    let row = ROWS.iter().find(|r| r.scheme == "neurons").unwrap();
    let x = inputs(&source, 500, 3);
    let samples = Samples::new(vec![("x".into(), inputs(&source, 3000, 0))]).unwrap();
    let expected = outputs(&source.graph, &x);
    let planned = |samples: Option<&Samples>| {
        let options =
            CompileOptions { plan: Some(plan(&source, row, "units = 40")), ..CompileOptions::default() };
        let compiled = compile(&source, samples, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
        relative_error(&outputs(&compiled.graph, &x), &expected)
    };
    let (fitted, as_they_were) = (planned(Some(&samples)), planned(None));
    assert!(fitted < 0.8 * as_they_were, "{fitted} and {as_they_were}");
}

/// A weight that is a diagonal and two factors is found as that, where factors alone are far from it; and a diagonal never makes
/// an error greater.
#[test]
fn a_diagonal_is_found_beside_factors() {
    const SIZE: usize = 20;
    let made = source(rows::PASSING);
    let low = falling([SIZE, SIZE]);
    for (size, factor) in [(0.0, 1.0), (2.0, 0.5), (0.5, 1.0)] {
        let entry = |i: usize| match (i / SIZE, i % SIZE) {
            (r, c) if r == c => low[i] + size * (1.5 + (r as f32).sin()),
            _ => low[i],
        };
        let weight: Vec<f32> = (0..SIZE * SIZE).map(entry).collect();
        let weight = Tensor::from_slice(&[SIZE, SIZE], &weight).unwrap();
        let g = with_parameters(&made.graph, &[("square.weight".to_owned(), weight)]).unwrap();
        let source = Model::new(g, "net", &mut Dump::none()).unwrap();
        let samples = Samples::new(vec![("x".into(), inputs(&source, 3000, 0))]).unwrap();
        for rank in [3, 8] {
            let error = |scheme: &str| {
                let plan = Some(plan_of(&source.hash, "down", scheme, &format!("rank = {rank}")));
                let options = CompileOptions { plan, ..CompileOptions::default() };
                let compiled =
                    compile(&source, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
                compiled.report.modules.iter().find(|m| m.is_sketched()).unwrap().layer_error
            };
            let (with, without) = (error("lowrank-diag"), error("lowrank"));
            assert!(with <= factor * without * (1.0 + 1e-6), "{size} {rank}: {with} and {without}");
        }
    }
}

/// Memory of a layer as a tensor train, compiled: a small part of what its weight takes.
#[test]
fn a_tensor_train_never_makes_the_weight() {
    let text = "graph @wide(%x: f32[4, 1024]) -> (y: f32[4, 1024]) {
      %0 = const #w : f32[1024, 1024]  // fc.weight
      %1 = matmul %x, %0 : f32[4, 1024]  // fc
      return %1
    }";
    let source = Model::new(parse_with_random_constants(text).0, "wide", &mut Dump::none()).unwrap();
    let settings = "inputs = [8, 16, 8], outputs = [8, 16, 8], rank = 4";
    let plan = Some(plan_of(&source.hash, "fc", "tt", settings));
    let options = CompileOptions { plan, ..CompileOptions::default() };
    let compiled = compile(&source, None, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    let mut runner = compiled.runner(1);
    let x = normal(&[4, 1024], 8, 1);
    let session = runner.session(&[("x".to_owned(), x)]).unwrap();
    let (peak, weight) = (session.peak_bytes() + session.executable().weights_bytes(), 4 * 1024 * 1024);
    // 64 + 64 and 4096 numbers in the cores; rows between cores are four times as long as x at most.
    assert!(peak < weight / 8, "{peak} of {weight} bytes");
    let constants: usize = margay_passes::parameter_names(&compiled.graph)
        .iter()
        .map(|(n, _)| compiled.graph.constant((*n).into()).unwrap().tensor().len())
        .sum();
    assert_eq!(constants, 8 * 8 * 4 + 4 * 16 * 16 * 4 + 4 * 8 * 8);
}
