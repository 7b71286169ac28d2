//! Expected outputs of tables against sums over all inputs, in f64.

use margay_ir::ops::Const;
use margay_ir::{Graph, Op, Origin, Payload, Value};
use margay_passes::gradients;
use margay_randnla::{DenseTensor, tt_svd};
use margay_tensor::{DType, Dim, Tensor};
use margay_train::{TrainError, expectation};

use crate::support::{assert_near, floats, input, normal, output, run};

const BATCH: usize = 3;

/// How far sums of a few hundred terms of size 1 are from each other by rounding.
const ROUNDING: f64 = 1e-12;

/// What adds an expected output of distributions to a graph.
type Build<'a> = &'a dyn Fn(&mut Graph, &[Value]) -> Result<Value, TrainError>;

/// A table of normal numbers.
fn table(extents: &[usize], seed: u64) -> DenseTensor {
    DenseTensor::new(extents.to_vec(), floats(&normal(extents, seed))).unwrap()
}

/// Distributions `[BATCH, extent]`, positive and far from equal.
fn distributions(extents: &[usize], seed: u64) -> Vec<Tensor> {
    let one = |(k, extent): (usize, &usize)| {
        let numbers = floats(&normal(&[BATCH, *extent], 1000 + 16 * seed + k as u64));
        let rows = numbers.chunks_exact(*extent).flat_map(|row| {
            let powers: Vec<f64> = row.iter().map(|x| (2.0 * x).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(move |p| p / sum)
        });
        Tensor::from_slice(&[BATCH, *extent], &rows.collect::<Vec<f64>>()).unwrap()
    };
    extents.iter().enumerate().map(one).collect()
}

/// The sum over all elements of the table, one after the other; `[BATCH, outputs]`.
fn enumerated(table: &DenseTensor, distributions: &[Tensor]) -> Vec<f64> {
    let inputs = &table.extents()[..distributions.len()];
    let outputs: usize = table.extents()[distributions.len()..].iter().product();
    let distributions: Vec<Vec<f64>> = distributions.iter().map(floats).collect();
    let mut sums = vec![0.0; BATCH * outputs];
    for b in 0..BATCH {
        for (i, element) in table.data().iter().enumerate() {
            let mut rest = i / outputs;
            let mut probability = 1.0;
            for (p, extent) in distributions.iter().zip(inputs).rev() {
                probability *= p[b * extent + rest % extent];
                rest /= extent;
            }
            sums[b * outputs + i % outputs] += probability * element;
        }
    }
    sums
}

/// A graph of an expectation, and its inputs.
fn graph(distributions: &[Tensor], build: Build<'_>) -> (Graph, Vec<Value>, Value) {
    let mut g = Graph::new("expectation");
    let inputs = distributions.iter().enumerate().map(|(k, p)| input(&mut g, &format!("p{k}"), p));
    let inputs: Vec<Value> = inputs.collect();
    let e = build(&mut g, &inputs).unwrap_or_else(|e| panic!("{e}"));
    g.add_output("e", e);
    (g, inputs, e)
}

fn evaluated(g: &Graph, distributions: &[Tensor]) -> Vec<(String, Tensor)> {
    let names: Vec<String> = (0..distributions.len()).map(|k| format!("p{k}")).collect();
    run(g, &names.iter().map(String::as_str).zip(distributions).collect::<Vec<_>>())
}

fn expected_output(distributions: &[Tensor], build: Build<'_>) -> Tensor {
    let (g, ..) = graph(distributions, build);
    output(&evaluated(&g, distributions), "e").clone()
}

/// Extents of inputs, and the number of outputs where the table holds distributions.
const FORMS: [(&[usize], Option<usize>); 6] = [
    (&[4], None),
    (&[5, 3], None),
    (&[4, 5], Some(3)),
    (&[3, 4, 2], None),
    (&[2, 3, 4, 3], None),
    (&[3, 2, 4, 2], Some(5)),
];

fn extents((inputs, outputs): (&[usize], Option<usize>)) -> Vec<usize> {
    inputs.iter().copied().chain(outputs).collect()
}

#[test]
fn whole_tables_give_the_sum_over_all_inputs() {
    for (seed, form) in FORMS.into_iter().enumerate() {
        let (table, p) = (table(&extents(form), seed as u64), distributions(form.0, seed as u64));
        let expected = enumerated(&table, &p);
        let train = tt_svd(&table, 0.0).unwrap();
        let builds: [Build<'_>; 2] =
            [&|g, p| expectation::exact(g, &table, p), &|g, p| expectation::sketched(g, &train, p)];
        for build in builds {
            let found = expected_output(&p, build);
            let shape: Vec<usize> = [BATCH].into_iter().chain(form.1).collect();
            assert_eq!(found.shape(), shape);
            assert_near(&format!("{form:?}"), &floats(&found), &expected, ROUNDING);
        }
    }
}

#[test]
fn errors_of_sketched_tables_are_within_the_tolerance() {
    let tolerance = 0.6;
    for seed in 0..64 {
        for form in [(&[5, 4, 6][..], None), (&[4, 3, 5][..], Some(6))] {
            let (table, p) = (table(&extents(form), seed), distributions(form.0, seed));
            let train = tt_svd(&table, tolerance).unwrap();
            let found = floats(&expected_output(&p, &|g, p| expectation::sketched(g, &train, p)));
            let bound = tolerance * table.squared_norm().sqrt();
            let outputs = form.1.unwrap_or(1);
            let mut largest = 0f64;
            for (f, e) in found.chunks(outputs).zip(enumerated(&table, &p).chunks(outputs)) {
                let error = f.iter().zip(e).map(|(f, e)| (f - e).powi(2)).sum::<f64>().sqrt();
                assert!(error <= bound, "seed {seed}, {form:?}: {error} above {bound}");
                largest = largest.max(error);
            }
            assert!(largest > 1e-3, "seed {seed}, {form:?}: nothing was lost");
        }
    }
}

/// Where an input is certain and all that was lost lies in its element of the table, the error is the bound.
#[test]
fn the_bound_of_the_error_is_attained() {
    let table = DenseTensor::new(vec![2, 2], vec![3.0, 0.0, 0.0, 1.0]).unwrap();
    let tolerance = 1.0 / 10f64.sqrt() + 1e-9;
    let train = tt_svd(&table, tolerance).unwrap();
    let certain = Tensor::from_slice(&[1, 2], &[0.0, 1.0]).unwrap();
    let p = [certain.clone(), certain];
    let found = floats(&expected_output(&p, &|g, p| expectation::sketched(g, &train, p)))[0];
    let bound = tolerance * 10f64.sqrt();
    assert!((found - 1.0).abs() <= bound && (found - 1.0).abs() > 0.999 * bound, "{found}");
}

#[test]
fn graphs_hold_the_numbers_that_the_ranks_say() {
    // The value of a sum has ranks of 2, whatever the number of inputs.
    let sum = DenseTensor::from_fn(vec![6, 5, 4, 7], |i| i.iter().sum::<usize>() as f64);
    let train = tt_svd(&sum, 1e-12).unwrap();
    assert_eq!(train.ranks(), [2, 2, 2]);
    let (g, ..) = graph(&distributions(&[6, 5, 4, 7], 1), &|g, p| expectation::sketched(g, &train, p));
    let held = g.order().into_iter().filter_map(|n| match g.op(n) {
        Op::Const(c) => Some(c.payload.tensor().len()),
        _ => None,
    });
    assert_eq!(held.sum::<usize>(), 6 * 2 + 2 * 5 * 2 + 2 * 4 * 2 + 2 * 7);
}

/// Sums of digits 0 to 2: the distribution of the sum of four is that of the sum of two sums of two.
#[test]
fn trees_of_tables_give_what_the_whole_table_gives() {
    let sums = |inputs: usize, values: usize| {
        let outputs = inputs * (values - 1) + 1;
        let mut extents = vec![values; inputs];
        extents.push(outputs);
        DenseTensor::from_fn(extents, |i| f64::from(u8::from(i[..inputs].iter().sum::<usize>() == i[inputs])))
    };
    let p = distributions(&[3; 4], 9);
    let trains = [sums(2, 3), sums(2, 5)].map(|table| tt_svd(&table, 1e-12).unwrap());
    let found = expected_output(&p, &|g, p| {
        let left = expectation::sketched(g, &trains[0], &p[..2])?;
        let right = expectation::sketched(g, &trains[0], &p[2..])?;
        expectation::sketched(g, &trains[1], &[left, right])
    });
    assert_near("tree", &floats(&found), &enumerated(&sums(4, 3), &p), ROUNDING);
}

#[test]
fn derivatives_are_those_of_finite_differences() {
    for (seed, form) in FORMS.into_iter().enumerate() {
        let (table, p) = (table(&extents(form), seed as u64), distributions(form.0, seed as u64));
        let train = tt_svd(&table, 0.2).unwrap();
        let builds: [Build<'_>; 2] =
            [&|g, p| expectation::exact(g, &table, p), &|g, p| expectation::sketched(g, &train, p)];
        for build in builds {
            let (mut g, inputs, e) = graph(&p, build);
            let forward = g.clone();
            let weights = normal(output(&evaluated(&g, &p), "e").shape(), 77);
            let seed =
                g.add(Const { payload: Payload::new(weights.clone()) }, &[], Origin::default()).unwrap();
            let found = gradients(&mut g, &[(e, seed)], &inputs).unwrap();
            for (k, v) in found.into_iter().enumerate() {
                g.add_output(&format!("d{k}"), v.unwrap());
            }
            let derivatives = evaluated(&g, &p);
            let weighted = |p: &[Tensor]| {
                let e = floats(output(&evaluated(&forward, p), "e"));
                e.iter().zip(floats(&weights)).map(|(e, w)| e * w).sum::<f64>()
            };
            for k in 0..p.len() {
                let derivative = floats(output(&derivatives, &format!("d{k}")));
                for (at, found) in derivative.iter().enumerate() {
                    let moved = |by: f64| {
                        let mut p = p.clone();
                        let mut numbers = floats(&p[k]);
                        numbers[at] += by;
                        p[k] = Tensor::from_slice(p[k].shape(), &numbers).unwrap();
                        weighted(&p)
                    };
                    // The expectation is linear in each distribution: differences have no error but rounding.
                    let expected = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                    assert!((found - expected).abs() <= 1e-6, "{form:?} d{k}[{at}]: {found}, {expected}");
                }
            }
        }
    }
}

fn program(source: &str) -> Graph {
    margay_testkit::parse_with_random_constants(source).0
}

#[test]
fn graphs_are_tabulated_over_all_their_inputs() {
    let value = program(
        "graph @value(%a: i64[B], %b: i32[B], %c: f32[B]) -> (y: f32[B]) {
           %0 = cast %a {to = f32} : f32[B]
           %1 = cast %b {to = f32} : f32[B]
           %2 = mul %0, %c : f32[B]
           %3 = sub %2, %1 : f32[B]
           return %3
         }",
    );
    let expected = DenseTensor::from_fn(vec![3, 4, 2], |i| (i[0] * i[2]) as f64 - i[1] as f64);
    assert_eq!(expectation::tabulated(&value, &[3, 4, 2]).unwrap(), expected);

    // Both inputs beside each other, as an output of two values.
    let pair = program(
        "graph @pair(%a: i64[B], %b: i64[B]) -> (y: i64[B, 2]) {
           %0 = reshape %a {shape = [B, 1]} : i64[B, 1]
           %1 = reshape %b {shape = [B, 1]} : i64[B, 1]
           %2 = concat %0, %1 {axis = 1} : i64[B, 2]
           return %2
         }",
    );
    let expected = DenseTensor::from_fn(vec![2, 3, 2], |i| i[i[2]] as f64);
    assert_eq!(expectation::tabulated(&pair, &[2, 3]).unwrap(), expected);

    let message = |g: &Graph, extents: &[usize]| expectation::tabulated(g, extents).unwrap_err().to_string();
    assert_eq!(message(&pair, &[2]), "inputs of the program: expected 1, found 2");
    let many = "combinations of inputs: expected at most";
    assert!(message(&pair, &[usize::MAX, 2]).starts_with(many));
    let one = program(
        "graph @one(%a: f32[B]) -> (y: f32) {
           %0 = reduce %a {kind = sum, axes = [0]} : f32
           return %0
         }",
    );
    assert_eq!(
        message(&one, &[3]),
        "output of the program: expected numbers of shape [3] or [3, m], found f32"
    );
}

#[test]
fn distributions_that_do_not_fit_the_table_are_refused() {
    let table = table(&[3, 4], 0);
    let message = |shapes: &[(DType, &[usize])]| {
        let mut g = Graph::new("refused");
        let typed = |(dtype, shape): &(DType, &[usize])| {
            let shape = [Dim::symbol("B")].into_iter().chain(shape.iter().map(|d| Dim::from(*d)));
            margay_ir::TensorType::new(*dtype, shape.collect())
        };
        let types: Vec<_> = shapes.iter().map(typed).collect();
        let p = types.into_iter().enumerate().map(|(k, ty)| g.add_input(&format!("p{k}"), ty));
        let p: Vec<Value> = p.collect();
        expectation::exact(&mut g, &table, &p).unwrap_err().to_string()
    };
    let f32 = DType::F32;
    assert_eq!(message(&[]), "axes of the table for 0 distributions: expected 1 or 2, found 2");
    assert_eq!(
        message(&[(f32, &[3]), (f32, &[4]), (f32, &[2])]),
        "axes of the table for 3 distributions: expected 3 or 4, found 2"
    );
    assert_eq!(message(&[(f32, &[3]), (f32, &[5])]), "distribution 1: expected f32[B, 4], found f32[B, 5]");
    assert_eq!(
        message(&[(f32, &[3]), (DType::F64, &[4])]),
        "distribution 1: expected f32[B, 4], found f64[B, 4]"
    );
    assert_eq!(message(&[(f32, &[3, 1])]), "distribution 0: expected f32[B, 3], found f32[B, 3, 1]");
    assert_eq!(message(&[(DType::I64, &[3])]), "distribution 0: expected floats[B, 3], found i64[B, 3]");
}
