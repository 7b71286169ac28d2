//! Attention by landmarks (`nystrom`) and by windows (`local`), as these schemes put them there: against their formulas by loops,
//! and against exact attention where they are exact.

use std::collections::BTreeMap;

use margay_driver::{Runner, backend};
use margay_ir::{Changed, Cx, Graph, Pass, Stage, Value, eval};
use margay_onnx::{ExportOptions, export, import};
use margay_passes::ApplyPlan;
use margay_passes::sketch::{Context, Decompositions, read_plan, scheme, sites};
use margay_plan::Settings;
use margay_tensor::Tensor;
use margay_testkit::parse_with_random_constants;
use margay_tests::derivatives;

use crate::{check_by_differences, floats, narrow, random, wide, widened};

const HEADS: usize = 4;
const DIM: usize = 5;
const V_DIM: usize = 3;
const SCALE: f64 = 0.5;

/// Attention of 2 sequences with 4 heads; lengths are numbers or symbols.
fn attention(lengths: [&str; 2], shared: usize, causal: bool, mask: Option<&str>) -> Graph {
    let [s, t] = lengths;
    let (input, operand) = match mask {
        Some(shape) => (format!(", %m: f32[{shape}]"), ", %m"),
        None => (String::new(), ""),
    };
    let text = format!(
        "graph @net(%q: f32[2, {HEADS}, {s}, {DIM}], %k: f32[2, {shared}, {t}, {DIM}], \
         %v: f32[2, {shared}, {t}, {V_DIM}]{input}) -> (y: f32[2, {HEADS}, {s}, {V_DIM}]) {{
           %0 = attention %q, %k, %v{operand} {{scale = {SCALE}, causal = {causal}}} : f32[2, {HEADS}, {s}, {V_DIM}]  // att
           return %0
         }}"
    );
    parse_with_random_constants(&text).0
}

fn operands([s, t]: [usize; 2], shared: usize) -> Vec<(&'static str, Tensor)> {
    let of = |heads, length, width, stream| random(&[2, heads, length, width], stream);
    vec![("q", of(HEADS, s, DIM, 1)), ("k", of(shared, t, DIM, 2)), ("v", of(shared, t, V_DIM, 3))]
}

/// A mask that hides the last three keys of the last half of its rows, and adds something to the others.
fn hiding(shape: &[usize], number: f64) -> Tensor {
    let keys = shape[shape.len() - 1];
    let rows: usize = shape[..shape.len() - 1].iter().product();
    let hidden = |row: usize, key: usize| row >= rows / 2 && key + 3 >= keys;
    let value = |at: usize| if hidden(at / keys, at % keys) { number } else { 0.1 * (at % keys) as f64 };
    Tensor::from_slice(shape, &(0..rows * keys).map(value).collect::<Vec<f64>>()).unwrap()
}

/// The graph as a plan has it, and what was declined.
fn planned(g: &Graph, choice: &str) -> (Graph, Vec<String>) {
    let head = "version = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0";
    let plan = read_plan(&format!("[plan]\n{head}\n[modules]\natt = {{ {choice} }}\n"));
    let (mut g, mut cx) = (g.clone(), Cx::default());
    let pass = ApplyPlan::of(&plan.unwrap_or_else(|e| panic!("{e}")));
    let changed = pass.run(&mut g, &mut cx).unwrap_or_else(|e| panic!("{choice}: {e}"));
    assert_eq!(changed == Changed::No, !cx.remarks.is_empty());
    assert_eq!(g.verify(Stage::Sketched), Ok(()));
    (g, cx.remarks.into_iter().map(|r| r.message).collect())
}

fn replaced(g: &Graph, choice: &str) -> Graph {
    let (once, declined) = planned(g, choice);
    assert!(declined.is_empty(), "{choice}: {declined:?}");
    once
}

fn run(g: &Graph, inputs: &[(&'static str, Tensor)]) -> Vec<f64> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    floats(&eval::run(g, &inputs).unwrap_or_else(|e| panic!("{e}\n{g}"))[0])
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    // A NaN is a difference.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
}

/// One head: rows of queries, keys and values, and the numbers that are added to scores of keys.
struct Head<'a> {
    q: Vec<&'a [f64]>,
    k: Vec<&'a [f64]>,
    v: Vec<&'a [f64]>,
    mask: Vec<f64>,
}

impl Head<'_> {
    fn score(&self, i: usize, j: usize) -> f64 {
        SCALE * dot(self.q[i], self.k[j]) + self.mask[j]
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let each: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = each.iter().sum();
    each.iter().map(|e| e / sum).collect()
}

/// What a form makes of each head, in the order of results.
fn by_head(
    inputs: &[(&'static str, Tensor)],
    shared: usize,
    form: &dyn Fn(&Head<'_>) -> Vec<Vec<f64>>,
) -> Vec<f64> {
    let values: Vec<Vec<f64>> = inputs.iter().map(|(_, t)| floats(t)).collect();
    let [s, t] = [0, 1].map(|i| inputs[i].1.shape()[2]);
    let rows = |i: usize, block: usize, length: usize, width: usize| {
        values[i][block * length * width..][..length * width].chunks_exact(width).collect()
    };
    let mut out = Vec::new();
    for (sample, head) in (0..2).flat_map(|sample| (0..HEADS).map(move |head| (sample, head))) {
        let keys = sample * shared + head * shared / HEADS;
        let mask = inputs.get(3).map(|(_, mask)| {
            let shape = mask.shape();
            let extent = |from_end: usize| shape.len().checked_sub(from_end).map_or(1, |axis| shape[axis]);
            let row = sample % extent(4) * extent(3) + head % extent(3);
            (0..t).map(|j| values[3][row * extent(1) + j % extent(1)]).collect()
        });
        let head = Head {
            q: rows(0, sample * HEADS + head, s, DIM),
            k: rows(1, keys, t, DIM),
            v: rows(2, keys, t, V_DIM),
            mask: mask.unwrap_or_else(|| vec![0.0; t]),
        };
        out.extend(form(&head).concat());
    }
    out
}

/// The mean of weighted rows.
fn mean(rows: &[&[f64]], weights: &[f64]) -> Vec<f64> {
    let sum = weights.iter().sum::<f64>().max(1e-30);
    (0..rows[0].len()).map(|d| rows.iter().zip(weights).map(|(r, w)| w * r[d]).sum::<f64>() / sum).collect()
}

fn product(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    a.iter()
        .map(|row| (0..b[0].len()).map(|j| row.iter().zip(b).map(|(x, b)| x * b[j]).sum()).collect())
        .collect()
}

/// `factor I - a`.
fn from_identity(factor: f64, a: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let at = |i: usize, j: usize| if i == j { factor } else { 0.0 };
    (0..a.len()).map(|i| (0..a.len()).map(|j| at(i, j) - a[i][j]).collect()).collect()
}

/// Landmarks of one head.
fn nystrom(head: &Head<'_>, m: usize, iterations: usize) -> Vec<Vec<f64>> {
    // By segment, its positions; none behind the last.
    let segments = |length: usize| -> Vec<std::ops::Range<usize>> {
        let size = length.div_ceil(m);
        (0..m).map(|i| (i * size).min(length)..((i + 1) * size).min(length)).collect()
    };
    let most = head.mask.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = head.mask.iter().map(|m| (m - most).exp()).collect();
    let own = head.q.len() == head.k.len();
    let means = |rows: &[&[f64]], weights: &[f64]| -> Vec<Vec<f64>> {
        let nothing = vec![0.0; rows[0].len()];
        let of = |s: std::ops::Range<usize>| match s.is_empty() {
            true => nothing.clone(),
            false => mean(&rows[s.clone()], &weights[s]),
        };
        segments(rows.len()).into_iter().map(of).collect()
    };
    let q = means(&head.q, if own { &weights } else { &[1.0; 64][..head.q.len()] });
    let k = means(&head.k, &weights);
    let sums = segments(head.k.len()).into_iter().map(|s| weights[s].iter().sum::<f64>().ln().max(-1e30));
    let hidden: Vec<f64> = sums.collect();
    let to_landmarks =
        |q: &[f64]| softmax(&(0..m).map(|j| SCALE * dot(q, &k[j]) + hidden[j]).collect::<Vec<f64>>());
    let first: Vec<Vec<f64>> = head.q.iter().map(|q| to_landmarks(q)).collect();
    let a: Vec<Vec<f64>> = q.iter().map(|q| to_landmarks(q)).collect();
    let scores =
        |q: &[f64]| head.k.iter().zip(&head.mask).map(|(k, m)| SCALE * dot(q, k) + m).collect::<Vec<f64>>();
    let last: Vec<Vec<f64>> = q.iter().map(|q| softmax(&scores(q))).collect();

    let columns: Vec<f64> = (0..m).map(|j| a.iter().map(|row| row[j].abs()).sum()).collect();
    let norm = columns.into_iter().fold(0.0, f64::max);
    let mut z: Vec<Vec<f64>> = (0..m).map(|i| (0..m).map(|j| a[j][i] / norm).collect()).collect();
    for _ in 0..iterations {
        let x = product(&a, &z);
        let r = product(&x, &from_identity(15.0, &product(&x, &from_identity(7.0, &x))));
        z = product(&z, &from_identity(13.0, &r));
        z.iter_mut().flatten().for_each(|z| *z /= 4.0);
    }
    let v: Vec<Vec<f64>> = head.v.iter().map(|v| v.to_vec()).collect();
    product(&product(&first, &z), &product(&last, &v))
}

/// Windows of one head.
fn local(head: &Head<'_>, causal: bool, window: usize, global: usize, means: bool) -> Vec<Vec<f64>> {
    let length = head.q.len();
    let block = |i: usize| i / window.min(length);
    let row = |i: usize| {
        let past = |j: usize| !causal || j <= i;
        let near = |j: usize| match means {
            true => block(i).abs_diff(block(j)) <= 1,
            false => i.abs_diff(j) <= window,
        };
        let (mut scores, mut values) = (Vec::new(), Vec::new());
        for j in (0..length).filter(|j| past(*j) && (near(*j) || *j < global || i < global)) {
            scores.push(head.score(i, j));
            values.push(head.v[j].to_vec());
        }
        for far in (0..=block(length - 1)).filter(|far| means && i >= global && block(i).abs_diff(*far) > 1) {
            let all: Vec<usize> = (global..length).filter(|j| block(*j) == far && past(*j)).collect();
            let weights: Vec<f64> = all.iter().map(|j| head.mask[*j].exp()).collect();
            let sum: f64 = weights.iter().sum();
            if sum == 0.0 {
                continue;
            }
            let of = |rows: &[&[f64]]| mean(&all.iter().map(|j| rows[*j]).collect::<Vec<_>>(), &weights);
            scores.push(SCALE * dot(head.q[i], &of(&head.k)) + sum.ln());
            values.push(of(&head.v));
        }
        let weights = softmax(&scores);
        mean(&values.iter().map(Vec::as_slice).collect::<Vec<_>>(), &weights)
    };
    (0..length).map(row).collect()
}

/// Compares a form with loops, for these lengths and numbers of heads of keys, without a mask and with all masks of keys.
fn check_formula(
    choice: &str,
    lengths: [usize; 2],
    shared: usize,
    causal: bool,
    form: &dyn Fn(&Head<'_>) -> Vec<Vec<f64>>,
) {
    let keys = lengths[1];
    let shapes: [Option<Vec<usize>>; 5] = [
        None,
        Some(vec![2, 1, 1, keys]),
        Some(vec![2, HEADS, 1, keys]),
        Some(vec![keys]),
        Some(vec![HEADS, 1, 1]),
    ];
    for shape in shapes {
        let text = shape.as_ref().map(|shape| format!("{shape:?}").replace(['[', ']'], ""));
        let names = lengths.map(|length| length.to_string());
        let names = [names[0].as_str(), names[1].as_str()];
        let g = widened(&replaced(&attention(names, shared, causal, text.as_deref()), choice));
        let mut inputs = operands(lengths, shared);
        inputs.extend(shape.as_ref().map(|shape| ("m", hiding(shape, f64::NEG_INFINITY))));
        if shape.as_ref().is_some_and(|shape| shape.last() == Some(&1)) {
            // One number for all keys, which changes nothing.
            inputs[3].1 = wide(&Tensor::from_slice(&[HEADS, 1, 1], &[0.5, -1.0, 2.0, 0.0]).unwrap());
        }
        let difference = largest_difference(&run(&g, &inputs), &by_head(&inputs, shared, form));
        // f64, but for factors and the least numbers, which constants hold in f32.
        assert!(difference < 1e-9, "{choice} {lengths:?} {shared} {causal} {shape:?}: {difference}");
    }
}

#[test]
fn landmarks_follow_the_formula_of_the_paper() {
    // Segments of one length, one that is shorter, one that is empty, other queries than keys.
    for (lengths, shared) in [([8, 8], HEADS), ([10, 10], 2), ([9, 9], HEADS), ([6, 11], 1)] {
        for (landmarks, iterations) in [(4, 6), (2, 3), (1, 1)] {
            let choice = format!("scheme = \"nystrom\", landmarks = {landmarks}, iterations = {iterations}");
            check_formula(&choice, lengths, shared, false, &|head| nystrom(head, landmarks, iterations));
        }
    }
}

#[test]
fn windows_follow_the_formula() {
    for (length, shared, causal) in [(12, HEADS, false), (13, 2, true), (11, 1, false), (12, HEADS, true)] {
        for (window, global) in [(3, 0), (4, 2), (1, 1), (2, 5), (20, 0), (3, 20)] {
            for means in [false, true] {
                let summary = if means { ", summary = \"means\"" } else { "" };
                let choice = format!("scheme = \"local\", window = {window}, global = {global}{summary}");
                check_formula(&choice, [length, length], shared, causal, &|head| {
                    local(head, causal, window, global, means)
                });
            }
        }
    }
}

/// With open lengths too: those that fill blocks, those that do not, and those of less than one block.
#[test]
fn forms_of_everything_are_exact() {
    for (choice, causal) in [
        ("scheme = \"nystrom\", landmarks = 9, iterations = 40", false),
        ("scheme = \"local\", window = 9", false),
        ("scheme = \"local\", window = 9, global = 1, summary = \"means\"", false),
        ("scheme = \"local\", window = 9", true),
        ("scheme = \"local\", window = 9, global = 1, summary = \"means\"", true),
    ] {
        for mask in [None, Some("2, 1, 1, T")] {
            let exact = attention(["T", "T"], HEADS, causal, mask);
            let open = widened(&replaced(&exact, choice));
            let exact = widened(&exact);
            // As many positions as landmarks; with fewer, segments of one position.
            for length in [1, 4, 9] {
                let mut inputs = operands([length, length], HEADS);
                let hidden = if length > 3 { f64::NEG_INFINITY } else { 0.0 };
                inputs.extend(mask.map(|_| ("m", hiding(&[2, 1, 1, length], hidden))));
                let difference = largest_difference(&run(&open, &inputs), &run(&exact, &inputs));
                assert!(difference < 1e-8, "{choice} {causal} {mask:?} {length}: {difference}");
            }
        }
    }
}

const FORMS: [(&str, bool); 8] = [
    ("scheme = \"nystrom\", landmarks = 4", false),
    ("scheme = \"nystrom\", landmarks = 3, heads = [1, 2]", false),
    ("scheme = \"local\", window = 3", false),
    ("scheme = \"local\", window = 3", true),
    ("scheme = \"local\", window = 3, global = 2, summary = \"means\"", false),
    ("scheme = \"local\", window = 2, global = 1, summary = \"means\"", true),
    ("scheme = \"local\", window = 2, global = 4", true),
    ("scheme = \"local\", window = 4, global = 3", false),
];

/// An open length gives what a known one gives: by the reference, compiled, and as the model that is exported.
#[test]
fn lengths_may_be_open() {
    for (choice, causal) in FORMS {
        let mask = Some("2, 1, 1, T");
        let open = replaced(&attention(["T", "T"], 2, causal, mask), choice);
        let model =
            export(&open, &ExportOptions::default()).unwrap_or_else(|e| panic!("{choice}: {e}\n{open}"));
        let read = import(&model).unwrap_or_else(|e| panic!("{choice}: {e}"));
        let mut runner = Runner::new(open.clone(), &backend::native(), 1);
        // One position; fewer than `global` and as many; a window, and one more; several blocks.
        for length in [1, 2, 3, 4, 5, 10, 12] {
            let (name, shape) = (length.to_string(), format!("2, 1, 1, {length}"));
            let mut inputs = operands([length, length], 2);
            let hidden = if length > 3 { f64::NEG_INFINITY } else { 0.0 };
            inputs.push(("m", hiding(&[2, 1, 1, length], hidden)));
            let inputs: Vec<_> = inputs.into_iter().map(|(name, t)| (name, narrow(&t))).collect();
            let found = run(&open, &inputs);
            // A known length has no more landmarks than positions.
            if length >= 4 || choice.contains("local") {
                let known = replaced(&attention([&name, &name], 2, causal, Some(&shape)), choice);
                assert_eq!(found, run(&known, &inputs), "{choice} {causal} {length}");
            }
            let difference = largest_difference(&run(&read, &inputs), &found);
            assert!(difference < 1e-5, "{choice} {causal} {length} exported: {difference}");
            let named: Vec<(String, Tensor)> =
                inputs.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
            let compiled =
                floats(&runner.run(&named).unwrap_or_else(|e| panic!("{choice} {length}: {e}"))[0].1);
            let difference = largest_difference(&compiled, &found);
            assert!(difference < 1e-5, "{choice} {causal} {length} compiled: {difference}");
        }
    }
}

#[test]
fn derivatives_of_forms_are_those_of_finite_differences() {
    for (choice, causal) in FORMS {
        for (shared, mask) in [(HEADS, None), (2, Some("2, 1, 1, 10"))] {
            let g = widened(&replaced(&attention(["10", "10"], shared, causal, mask), choice));
            let mut inputs = operands([10, 10], shared);
            inputs.extend(mask.map(|_| ("m", hiding(&[2, 1, 1, 10], f64::NEG_INFINITY))));
            check_by_differences(&format!("{choice} {causal}"), &g, &inputs, 3);
        }
    }
}

/// Queries, keys and values of an attention.
fn by_operands(g: &Graph) -> Vec<Value> {
    g.inputs()[..3].iter().map(|n| (*n).into()).collect()
}

/// Compiled for each length, against those of the reference in f64.
#[test]
fn derivatives_take_open_lengths() {
    for (choice, causal) in FORMS {
        let open = replaced(&attention(["T", "T"], 2, causal, Some("2, 1, 1, T")), choice);
        let g = derivatives(&open, &by_operands(&open));
        let wide_graph = widened(&g);
        let mut runner = Runner::new(g, &backend::native(), 1);
        for length in [12, 10, 5, 3, 2] {
            let mut inputs = operands([length, length], 2);
            inputs.push(("m", hiding(&[2, 1, 1, length], f64::NEG_INFINITY)));
            inputs.push(("dy", random(&[2, HEADS, length, V_DIM], 7)));
            let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
            let expected = eval::run(&wide_graph, &given).unwrap();
            let named: Vec<_> = inputs.iter().map(|(name, t)| (name.to_string(), narrow(t))).collect();
            let found = runner.run(&named).unwrap_or_else(|e| panic!("{choice} {length}: {e}"));
            for ((name, f), e) in found.iter().zip(&expected) {
                let e = floats(e);
                let scale = e.iter().fold(0f64, |m, e| m.max(e.abs()));
                let difference = largest_difference(&floats(f), &e);
                assert!(
                    difference < 1e-4 * scale,
                    "{choice} {causal} {length} {name}: {difference} of {scale}"
                );
            }
        }
    }
}

/// No result of causal attention depends on what comes later, to the bit.
#[test]
fn windows_of_causal_attention_see_nothing_later() {
    let length = 11;
    for (choice, _) in FORMS.into_iter().filter(|(_, causal)| *causal) {
        let g = replaced(&attention(["11", "11"], HEADS, true, None), choice);
        let inputs: Vec<_> =
            operands([length, length], HEADS).into_iter().map(|(name, t)| (name, narrow(&t))).collect();
        let first = run(&g, &inputs);
        for changed in 0..length {
            let moved = |(name, t): &(&'static str, Tensor)| {
                let width = t.shape()[3];
                let mut values = t.to_vec::<f32>().unwrap();
                let heads = values.chunks_exact_mut(length * width);
                heads.for_each(|head| head[changed * width..].iter_mut().for_each(|x| *x += 3.0));
                (*name, Tensor::from_slice(t.shape(), &values).unwrap())
            };
            let second = run(&g, &inputs.iter().map(moved).collect::<Vec<_>>());
            for (a, b) in first.chunks_exact(length * V_DIM).zip(second.chunks_exact(length * V_DIM)) {
                assert_eq!(a[..changed * V_DIM], b[..changed * V_DIM], "{choice} {changed}");
                assert_ne!(a[changed * V_DIM..], b[changed * V_DIM..], "{choice} {changed}");
            }
        }
    }
}

/// Results and derivatives are finite, whatever a mask hides and by which number.
#[test]
fn hidden_keys_give_numbers() {
    // Heads that stay exact are as they were, NaN where nothing is seen.
    for (choice, causal) in FORMS.into_iter().filter(|(choice, _)| !choice.contains("heads")) {
        let g = replaced(&attention(["12", "12"], HEADS, causal, Some("2, 1, 1, 12")), choice);
        for number in [f32::NEG_INFINITY, f32::MIN, -1e9, -1e4] {
            for seen in [0, 2] {
                let keys: Vec<f32> = (0..24).map(|at| if at % 12 < seen { 0.0 } else { number }).collect();
                let mut inputs: Vec<_> =
                    operands([12, 12], HEADS).into_iter().map(|(name, t)| (name, narrow(&t))).collect();
                inputs.push(("m", Tensor::from_slice(&[2, 1, 1, 12], &keys).unwrap()));
                let y = run(&g, &inputs);
                assert!(y.iter().all(|y| y.is_finite()), "{choice} {number} {seen}");
                inputs.push(("dy", narrow(&random(&[2, HEADS, 12, V_DIM], 7))));
                let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
                let found = eval::run(&derivatives(&g, &by_operands(&g)), &given).unwrap();
                let finite = found.iter().flat_map(floats).all(|d| d.is_finite());
                assert!(finite, "{choice} {number} {seen}: derivative");
            }
        }
    }
}

/// Blocks of equal keys weigh what their keys weigh.
#[test]
fn means_of_equal_keys_are_exact() {
    let window = 3;
    for causal in [false, true] {
        let exact = attention(["12", "12"], HEADS, causal, None);
        let choice = format!("scheme = \"local\", window = {window}, summary = \"means\"");
        let g = widened(&replaced(&exact, &choice));
        let mut inputs = operands([12, 12], HEADS);
        for (_, t) in &mut inputs[1..] {
            let (shape, mut values) = (t.shape().to_vec(), floats(t));
            for block in values.chunks_exact_mut(window * shape[3]) {
                let (first, rest) = block.split_at_mut(shape[3]);
                rest.chunks_exact_mut(shape[3]).for_each(|row| row.copy_from_slice(first));
            }
            *t = Tensor::from_slice(&shape, &values).unwrap();
        }
        let difference = largest_difference(&run(&g, &inputs), &run(&widened(&exact), &inputs));
        assert!(difference < 1e-12, "{causal}: {difference}");
    }
}

/// Steps towards an inverse take more than exact attention does, where there are many landmarks.
#[test]
fn the_work_of_a_form_counts_where_its_error_is_measured() {
    let g = attention(["256", "256"], HEADS, false, None);
    let samples: Vec<Tensor> = operands([256, 256], HEADS).iter().map(|(_, t)| narrow(t)).collect();
    let site = sites(&g).remove(0);
    let context = Context {
        graph: &g,
        site: &site,
        moments: None,
        samples: Some(&[samples]),
        metric: None,
        decompositions: &Decompositions::default(),
        seed: 0,
    };
    let fitted = scheme("nystrom").unwrap().fit(&context).unwrap();
    let error = |landmarks, iterations| {
        let settings = BTreeMap::from([("landmarks", landmarks), ("iterations", iterations)]);
        fitted.squared_error(&Settings::write(&settings))
    };
    assert!(error(4, 64).is_ok_and(|error| error > 0.0));
    let why = error(256, 64).unwrap_err();
    assert!(why.ends_with("operations to measure errors by, expected at most 8589934592"), "{why}");
}

#[test]
fn what_has_no_such_form_is_left_with_a_reason() {
    let plain = |causal, mask| attention(["6", "6"], HEADS, causal, mask);
    let per_query = "2, 1, 6, 6";
    for (g, choice, why) in [
        (plain(true, None), "scheme = \"nystrom\", landmarks = 2", "has seen later positions"),
        (plain(false, None), "scheme = \"nystrom\", landmarks = 7", "7 landmarks of 6 positions"),
        (
            attention(["1", "6"], HEADS, false, None),
            "scheme = \"nystrom\", landmarks = 2",
            "2 landmarks of 1 positions",
        ),
        (
            plain(false, Some(per_query)),
            "scheme = \"nystrom\", landmarks = 2",
            "a row for each of 6 queries, expected one row for all",
        ),
        (
            plain(false, Some(per_query)),
            "scheme = \"local\", window = 2",
            "a row for each of 6 queries, expected one row for all",
        ),
        (
            attention(["1", "6"], HEADS, false, None),
            "scheme = \"local\", window = 2",
            "attention of 1 queries and 6 keys, expected as many",
        ),
    ] {
        let (left, declined) = planned(&g, choice);
        assert!(declined.len() == 1 && declined[0].contains(why), "{choice}: {declined:?}");
        assert_eq!(left.to_string(), g.to_string());
    }
    let refused = |choice: &str| {
        let head = "version = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0";
        read_plan(&format!("[plan]\n{head}\n[modules]\natt = {{ {choice} }}\n")).unwrap_err().to_string()
    };
    for (choice, why) in [
        ("scheme = \"nystrom\", landmarks = 0", "0 landmarks, expected 1 to 4096"),
        ("scheme = \"nystrom\", landmarks = 4, iterations = 65", "65 iterations, expected 1 to 64"),
        ("scheme = \"nystrom\", landmarks = 4, heads = [2, 1]", "heads [2, 1] are not ascending"),
        ("scheme = \"nystrom\", landmarks = 4, window = 4", "unknown field"),
        ("scheme = \"local\", window = 0", "a window of 0 positions, expected 1 to"),
        ("scheme = \"local\", window = 4, global = 2000000", "2000000 global positions, expected at most"),
        ("scheme = \"local\", window = 4, summary = \"sums\"", "unknown variant"),
        ("scheme = \"local\", window = 4, limit = 0.0", "limit 0, expected a number above 0"),
    ] {
        let found = refused(choice);
        assert!(found.contains(why), "{choice}: {found}");
    }
}
