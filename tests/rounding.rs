//! Constants of a few bits that are rounded for what their products read: weights, and factors of sketches.

use std::sync::Arc;

use margay_driver::{CompileOptions, Compiled, Dump, Goal, Model, Samples, Silent, build, compile};
use margay_ir::{Cx, Graph, Pass, eval};
use margay_loops::Precision;
use margay_passes::sketch::Moments;
use margay_passes::{StoreAs, StoreConstants};
use margay_plan::Budget;
use margay_randnla::Gram;
use margay_tensor::Tensor;
use margay_testkit::{normal, parse_with_random_constants};

/// Rows of 128 numbers that depend on each other and do not vary about 0.
fn rows(count: usize, stream: u64) -> Tensor {
    let (shared, own) = (normal(&[count, 12], 3, stream), normal(&[count, 128], 3, stream + 1));
    let mixed = normal(&[12, 128], 9, 0);
    let [shared, own, mixed] = [shared, own, mixed].map(|t| t.to_vec::<f32>().unwrap());
    let number = |at: usize| {
        let (row, column) = (at / 128, at % 128);
        let common: f32 = (0..12).map(|k| shared[row * 12 + k] * mixed[k * 128 + column]).sum();
        common + 0.3 * own[at] + 0.5 + (column % 5) as f32 * 0.2
    };
    Tensor::from_slice(&[count, 128], &(0..count * 128).map(number).collect::<Vec<f32>>()).unwrap()
}

/// Two products of one constant, with and without a bias behind each.
fn products(bias: bool) -> Graph {
    let (added, results) = match bias {
        true => (
            "%4 = const #b : f32[40]  // bias
             %5 = add %1, %4 : f32[N, 40]
             %6 = add %2, %4 : f32[N, 40]",
            "%5, %6",
        ),
        false => ("", "%1, %2"),
    };
    let text = format!(
        "graph @products(%x: f32[N, 128], %z: f32[N, 128]) -> (y: f32[N, 40], w: f32[N, 40]) {{
           %0 = const #w : f32[128, 40]  // weight
           %1 = matmul %x, %0 : f32[N, 40]  // first
           %2 = matmul %z, %0 : f32[N, 40]  // second
           {added}
           return {results}
         }}"
    );
    parse_with_random_constants(&text).0
}

fn numbers(tensors: &[Tensor]) -> Vec<f64> {
    tensors.iter().flat_map(|t| t.to_vec::<f32>().unwrap()).map(f64::from).collect()
}

/// The mean squared difference, and the squared difference of means by column of 40.
fn differences(a: &[f64], b: &[f64]) -> (f64, f64) {
    let off: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let mean = |j: usize| off.iter().skip(j).step_by(40).sum::<f64>() / (off.len() / 40) as f64;
    (off.iter().map(|d| d * d).sum::<f64>() / off.len() as f64, (0..40).map(|j| mean(j).powi(2)).sum())
}

/// Feedback halves the squared error on other rows at least, and a bias keeps the mean of the rows that were seen.
#[test]
fn rounding_makes_up_for_its_errors_where_inputs_were_measured() {
    let (x, z) = (rows(400, 10), rows(400, 20));
    for bias in [true, false] {
        let g = products(bias);
        let pass =
            StoreConstants { products: StoreAs::Precision(Precision::Int4), ..StoreConstants::default() };
        let wanted = pass.to_measure(&g);
        let [(constant, asked)] = wanted.as_slice() else { panic!("one constant is rounded") };
        assert_eq!(asked.len(), 2, "what both products read");
        let mut gram = Gram::new(128);
        [&x, &z].iter().for_each(|rows| gram.add_rows(&rows.to_vec::<f32>().unwrap()).unwrap());
        let moments = Arc::new(Moments::of_inputs(gram, "seen"));
        let fed_back = StoreConstants { inputs: [(constant.clone(), moments)].into(), ..pass.clone() };
        let stored = |pass: &StoreConstants| {
            let mut g = g.clone();
            pass.run(&mut g, &mut Cx::default()).unwrap();
            assert!(pass.to_measure(&g).is_empty(), "what is stored is not stored again");
            g
        };
        let (nearest, fed) = (stored(&pass), stored(&fed_back));
        assert_eq!(fed.to_string().matches(" stored u4(").count(), 1, "one constant stays one:\n{fed}");
        let results =
            |g: &Graph, x: &Tensor, z: &Tensor| numbers(&eval::run(g, &[("x", x), ("z", z)]).unwrap());
        let others = (rows(300, 30), rows(300, 40));
        let of = |graph: &Graph, [x, z]: [&Tensor; 2]| differences(&results(&g, x, z), &results(graph, x, z));
        let (on_others, seen) = ([&others.0, &others.1], [&x, &z]);
        assert!(of(&fed, on_others).0 < 0.5 * of(&nearest, on_others).0, "bias {bias}");
        let (means, left) = (of(&nearest, seen).1, of(&fed, seen).1);
        assert!(if bias { left < 1e-6 * means } else { left < means }, "{left} of {means}");
    }
}

/// Layers whose inputs depend on each other, wide enough to be sketched.
fn source() -> Model {
    let (graph, _) = parse_with_random_constants(
        "graph @layers(%x: f32[N, 128]) -> (y: f32[N, 96]) {
           %0 = const #u : f32[128, 256]  // up.weight
           %1 = matmul %x, %0 : f32[N, 256]  // up
           %2 = const #b : f32[256]  // up.bias
           %3 = add %1, %2 : f32[N, 256]  // up/Add
           %4 = gelu %3 : f32[N, 256]  // act
           %5 = const #d : f32[256, 96]  // down.weight
           %6 = matmul %4, %5 : f32[N, 96]  // down
           return %6
         }",
    );
    Model::new(graph, "layers", &mut Dump::none()).unwrap()
}

/// The relative error on rows that nothing has seen.
fn error(g: &Graph, than: &Graph) -> f64 {
    let x = rows(200, 70);
    let of = |g: &Graph| numbers(&eval::run(g, &[("x", &x)]).unwrap());
    let (dense, found) = (of(than), of(g));
    let squared = |all: &mut dyn Iterator<Item = f64>| all.map(|d| d * d).sum::<f64>();
    let off = squared(&mut dense.iter().zip(&found).map(|(a, b)| a - b));
    (off / squared(&mut dense.iter().copied())).sqrt()
}

/// Of the same sketch, what is rounded with feedback errs less than what is rounded to nearest, and so does the dense model.
#[test]
fn sketches_of_four_bits_are_rounded_for_what_their_factors_read() {
    let source = source();
    let samples = Samples::new(vec![("x".into(), rows(600, 50))]).unwrap();
    let compiled = |goal: Goal, precision, plan| -> Compiled {
        let dims = vec![("N".into(), vec![16])];
        let options = CompileOptions { goal, precision, plan, dims, ..CompileOptions::default() };
        compile(&source, Some(&samples), &options, &Silent).unwrap()
    };
    for goal in [Goal::Dense, Goal::Bytes(Budget::Fraction(0.1)), Goal::Bytes(Budget::Fraction(0.06))] {
        let fed = compiled(goal.clone(), Precision::Int4, None);
        let sketched = match goal {
            Goal::Dense => source.graph.clone(),
            _ => compiled(Goal::Dense, Precision::F32, Some(fed.plan.clone())).graph,
        };
        let nearest = build::in_precision(sketched.clone(), Precision::Int4, &mut Dump::none()).unwrap();
        let stored = |g: &Graph| g.to_string().matches(" stored u4(").count();
        assert_eq!(stored(&fed.graph), stored(&nearest), "{goal:?}");
        // What rounding adds to the sketch.
        let [fed, nearest] = [&fed.graph, &nearest].map(|g| error(g, &sketched));
        assert!(fed < 0.8 * nearest, "{goal:?}: {fed}, to nearest {nearest}");
    }
}
