//! Low-rank weights of the state of LSTM, GRU and plain recurrences: against the operator with the product of the factors as its
//! weights, through compiled programs, exports, derivatives by finite differences, and as a choice for a budget.

use std::collections::BTreeMap;

use margay_driver::build::jit;
use margay_driver::{CompileOptions, Dump, Model, Samples, Silent, backend, build, compile};
use margay_ir::ops::recurrence::Cell;
use margay_ir::{Cx, Graph, NodeId, Op, Pass, TensorType, eval, text};
use margay_loops::Precision;
use margay_onnx::{ExportOptions, export, import};
use margay_passes::sketch::{recurrences, sites};
use margay_passes::{ApplyPlan, Pipeline, StoreAs, StoreConstants, make_trainable};
use margay_plan::{Budget, Choice, Goal};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};

use crate::{check_range_by_differences, floats, multiply, narrow, random, widened};

const TIMES: usize = 5;
const BATCH: usize = 2;
const HIDDEN: usize = 12;

/// A recurrence of every cell, with what they have besides weights and states.
const CELLS: [(Cell, &str); 5] = [
    (Cell::Lstm, "activations = [Sigmoid, Tanh, Tanh], reverse = true"),
    (Cell::CoupledLstm, "activations = [Sigmoid, Tanh, Tanh]"),
    (Cell::Gru, "activations = [Sigmoid, Tanh]"),
    (Cell::GruResetAfter, "activations = [Sigmoid, Tanh], reverse = true"),
    (Cell::Rnn, "activations = [Tanh]"),
];

fn dense(cell: Cell, attributes: &str, hidden: usize) -> Graph {
    let width = cell.gates() * hidden;
    let (state, shown) = (format!("f32[{BATCH}, {hidden}]"), format!("f32[{TIMES}, {BATCH}, {hidden}]"));
    let two = cell.states() == 2;
    let bias = cell == Cell::GruResetAfter;
    let more_inputs = if two { format!(", %c: {state}") } else { String::new() };
    let more_results = if two { format!(", {state}") } else { String::new() };
    let operands = format!("%x, %0, %h{}{}", if two { ", %c" } else { "" }, if bias { ", %1" } else { "" });
    let constant =
        if bias { format!("  %1 = const #b : f32[{width}]  // rnn.bias\n") } else { String::new() };
    let text = format!(
        "graph @net(%x: f32[{TIMES}, {BATCH}, {width}], %h: {state}{more_inputs}) -> (y: {shown}, last: {state}) {{\n  \
         %0 = const #w : f32[{hidden}, {width}]  // rnn.weight\n{constant}  \
         %2 = recurrence {operands} {{cell = {}, {attributes}}} : {shown}, {state}{more_results}  // rnn\n  \
         return %2, %2.1\n}}",
        cell.name()
    );
    // Weights at which states neither die away nor amplify roundings.
    let constant = |key: &str, ty: &TensorType| {
        let shape = ty.extents()?;
        let numbers = floats(&random(&shape, key.len() as u64 + hidden as u64));
        let numbers: Vec<f32> = numbers.iter().map(|x| *x as f32 / (shape[0] as f32).sqrt()).collect();
        Some(Tensor::from_slice(&shape, &numbers).ok()?.into())
    };
    text::parse(&text, &constant).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn replaced(g: &Graph, rank: usize) -> Graph {
    let mut g = g.clone();
    let mut pass = ApplyPlan::default();
    pass.choices.insert("rnn/R".into(), Choice::new("lowrank", &BTreeMap::from([("rank", rank as i64)])));
    pass.run(&mut g, &mut Cx::default()).unwrap();
    g
}

fn inputs(g: &Graph) -> Vec<(String, Tensor)> {
    let one = |(i, n): (usize, &NodeId)| {
        let shape = g.ty((*n).into()).extents().unwrap();
        (g.node(*n).origin.name().to_owned(), narrow(&random(&shape, 7 + i as u64)))
    };
    g.inputs().iter().enumerate().map(one).collect()
}

fn reference(g: &Graph, inputs: &[(String, Tensor)]) -> Vec<Vec<f64>> {
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    eval::run(g, &given).unwrap().iter().map(floats).collect()
}

fn compiled(g: &Graph, inputs: &[(String, Tensor)]) -> Vec<Vec<f64>> {
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let executable = jit(g, &Binding::new(), &*backend::native()).unwrap_or_else(|e| panic!("{e}\n{g}"));
    let mut session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap();
    session.run(&given).unwrap().iter().map(|(_, t)| floats(t)).collect()
}

fn constant_bytes(g: &Graph) -> u64 {
    let backend = backend::native();
    let bound = build::bind(g, &Binding::new(), &*backend, &mut Dump::none()).unwrap();
    margay_lower::lower(&bound, &*backend).unwrap().constant_bytes()
}

fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn programs_compute_with_the_factors_what_their_product_gives() {
    for (cell, attributes) in CELLS {
        let g = dense(cell, attributes, HIDDEN);
        let given = inputs(&g);
        let whole = reference(&g, &given);
        let full = replaced(&g, HIDDEN);
        assert!(difference(&reference(&full, &given), &whole) < 1e-5, "{cell:?}");
        let low = replaced(&g, 3);
        let expected = reference(&low, &given);
        assert!(difference(&expected, &whole) > 1e-3, "{cell:?}");
        assert!(difference(&compiled(&low, &given), &expected) < 1e-5, "{cell:?}");
        let read = import(&export(&low, &ExportOptions::of(&low)).unwrap()).unwrap();
        assert!(difference(&reference(&read, &given), &expected) < 1e-5, "{cell:?}");
        assert_eq!(sites(&low).len(), 0, "{cell:?}: {low}");
        // Read back, the weights have their factors.
        let mut read = read;
        Pipeline::canonicalize().run(&mut read, &mut |_| ()).unwrap();
        let is = |n: &NodeId| matches!(read.op(*n), Op::Recurrence(_));
        let recurrence = read.order().into_iter().find(is).unwrap();
        let weights = read.inputs_of(recurrence)[1].node;
        let shapes: Vec<_> = read.inputs_of(weights).iter().map(|v| read.ty(*v).extents().unwrap()).collect();
        assert_eq!(shapes, [[HIDDEN, 3], [3, HIDDEN * cell.gates()]], "{cell:?}: {read}");
    }
}

/// The loop holds 32 (128 + columns) numbers in place of 128 columns; that of a GRU reads the columns of its last gate by themselves
/// once more.
#[test]
fn programs_hold_the_factors_alone() {
    for (cell, attributes) in CELLS {
        let g = dense(cell, attributes, 128);
        let (before, after) = (constant_bytes(&g), constant_bytes(&replaced(&g, 32)));
        let columns = 128 * if cell == Cell::Gru { 4 } else { cell.gates() };
        assert_eq!(before - after, 4 * (128 * columns - 32 * (128 + columns)) as u64, "{cell:?}");
    }
}

/// Weights and factors take a half or a quarter, with their scales; a GRU reads the columns of its last gate as numbers once more.
#[test]
fn weights_of_a_state_are_stored_narrow() {
    let kinds = [(Precision::Int8, [0.3, 0.6]), (Precision::Bf16, [0.52, 0.75])];
    for ((cell, attributes), (precision, [most, most_of_gru])) in
        CELLS.into_iter().flat_map(|cell| kinds.map(|kind| (cell, kind)))
    {
        let what = format!("{cell:?} {precision:?}");
        let g = dense(cell, attributes, 128);
        let given = inputs(&g);
        for g in [g.clone(), replaced(&g, 32)] {
            let storage =
                StoreConstants { products: StoreAs::Precision(precision), ..StoreConstants::default() };
            let stored = build::stored(g.clone(), &storage, &mut Dump::none()).unwrap().0;
            let (before, after) = (constant_bytes(&g), constant_bytes(&stored));
            let most = if cell == Cell::Gru { most_of_gru } else { most };
            assert!(after as f64 <= most * before as f64, "{what}: {after} of {before}");
            let expected = reference(&stored, &given);
            let error = difference(&expected, &reference(&g, &given));
            assert!(error > 1e-5 && error < 0.1, "{what}: {error}");
            assert!(difference(&compiled(&stored, &given), &expected) < 1e-5, "{what}");
            let read = import(&export(&stored, &ExportOptions::of(&stored)).unwrap()).unwrap();
            assert!(difference(&reference(&read, &given), &expected) < 1e-5, "{what}");
        }
    }
}

#[test]
fn derivatives_by_factors_are_those_of_finite_differences() {
    for (cell, attributes) in CELLS {
        let mut g = widened(&replaced(&dense(cell, attributes, 6), 2));
        let numbers = |n: &NodeId| matches!(g.op(*n), Op::Const(_)) && g.node(*n).origin.part.is_some();
        let of: Vec<NodeId> = g.order().into_iter().filter(numbers).collect();
        assert_eq!(of.len(), 2);
        make_trainable(&mut g, &of).unwrap();
        let given = |(i, n): (usize, &NodeId)| {
            let name: &'static str = g.node(*n).origin.name().to_owned().leak();
            (name, random(&g.ty((*n).into()).extents().unwrap(), i as u64))
        };
        let inputs: Vec<(&'static str, Tensor)> = g.inputs().iter().enumerate().map(given).collect();
        let states = cell.states();
        check_range_by_differences(&format!("{cell:?}"), &g, &inputs, 1 + states..3 + states);
    }
}

/// Weights of the state that are of rank 4: a budget takes them, and the model errs as little as that.
#[test]
fn budgets_choose_the_rank_of_a_state() {
    let (hidden, width) = (32, 128);
    let text = format!(
        "graph @net(%t: f32[N, 6, {width}]) -> (y: f32[6, N, {hidden}]) {{
          %x = transpose %t {{perm = [1, 0, 2]}} : f32[6, N, {width}]
          %2 = const #r : f32[{hidden}, {width}]  // rnn.weight
          %3 = const 0.0 : f32
          %4 = broadcast %3 {{shape = [N, {hidden}]}} : f32[N, {hidden}]
          %5 = recurrence %x, %2, %4, %4 {{cell = lstm, activations = [Sigmoid, Tanh, Tanh]}} : \
             f32[6, N, {hidden}], f32[N, {hidden}], f32[N, {hidden}]  // rnn
          return %5
        }}"
    );
    let factors = [random(&[hidden, 4], 1), random(&[4, width], 2)];
    let mut weight = vec![0.0; hidden * width];
    multiply(&mut weight, &floats(&factors[0]), &floats(&factors[1]), [hidden, 4, width]);
    let weight: Vec<f32> = weight.into_iter().map(|w| 0.1 * w as f32).collect();
    let weight = Tensor::from_slice(&[hidden, width], &weight).unwrap();
    let graph = text::parse(&text, &|_, _| Some(weight.clone().into())).unwrap_or_else(|e| panic!("{e}"));
    let model = Model::new(graph, "net", &mut Dump::none()).unwrap();
    let samples = Samples::new(vec![("t".into(), narrow(&random(&[64, 6, width], 3)))]).unwrap();
    let options = CompileOptions { goal: Goal::Bytes(Budget::Fraction(0.4)), ..CompileOptions::default() };
    let found = compile(&model, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    let module = found.report.modules.iter().find(|m| m.name == "rnn/R").unwrap();
    assert!(module.is_sketched());
    assert!(found.report.bytes_after <= found.report.bytes_before * 4 / 10);
    let error = found.report.held_out.unwrap().relative_l2;
    assert!(error < 1e-4, "{error}");
}

#[test]
fn states_that_are_rounded_stay() {
    let g = dense(Cell::Lstm, "activations = [Sigmoid, Tanh, Tanh], quantized = true", HIDDEN);
    assert!(recurrences(&g).is_empty());
    let g = dense(Cell::Gru, "activations = [Sigmoid, Tanh]", HIDDEN);
    let [site] = &sites(&g)[..] else { panic!("one site") };
    assert_eq!((&*site.name, site.kind, site.schemes.as_slice()), ("rnn/R", "recurrent", &["lowrank"][..]));
    assert_eq!((site.d_in, site.d_out), (HIDDEN, 3 * HIDDEN));
}
