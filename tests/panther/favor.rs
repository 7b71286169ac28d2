//! Random features in place of attention, as a scheme puts them there: against the formulas of their papers, written out
//! here once more, and against exact attention.

use margay_driver::{CompileOptions, Dump, Model, Samples, Silent, compile};
use margay_ir::{Changed, Cx, Graph, Part, Stage, eval};
use margay_passes::sketch::{
    AttentionForm, AttentionTraining, Context, Decompositions, FavorSettings, FeatureDirections,
    FeatureKernel, HeadChoice, RelativePositions, attention_for_training, read_plan, scheme, sites,
};
use margay_plan::Settings;
use margay_tensor::Tensor;
use margay_testkit::parse_with_random_constants;

use crate::{check_by_differences, floats, narrow, random, widened};

pub(crate) const HEADS: usize = 4;
pub(crate) const LEN: usize = 6;
pub(crate) const DIM: usize = 5;
const SCALE: f64 = 0.25;

/// Attention with `shared` heads of keys, and a mask of a type.
pub(crate) fn attention(shared: usize, causal: bool, mask: Option<&str>) -> Graph {
    let (input, operand) = match mask {
        Some(ty) => (format!(", %m: {ty}"), ", %m"),
        None => (String::new(), ""),
    };
    let text = format!(
        "graph @net(%q: f32[2, {HEADS}, {LEN}, {DIM}], %k: f32[2, {shared}, {LEN}, {DIM}], \
         %v: f32[2, {shared}, {LEN}, 3]{input}) -> (y: f32[2, {HEADS}, {LEN}, 3]) {{
           %0 = attention %q, %k, %v{operand} {{scale = {SCALE}, causal = {causal}}} : f32[2, {HEADS}, {LEN}, 3]  // att
           return %0
         }}"
    );
    parse_with_random_constants(&text).0
}

pub(crate) fn operands(shared: usize) -> Vec<(&'static str, Tensor)> {
    let of = |heads, width, stream| random(&[2, heads, LEN, width], stream);
    vec![("q", of(HEADS, DIM, 1)), ("k", of(shared, DIM, 2)), ("v", of(shared, 3, 3))]
}

/// A mask that hides the last keys of the second sample.
fn hiding(shape: &[usize], number: f32) -> Tensor {
    let rows: usize = shape[..shape.len() - 1].iter().product();
    let hidden = |row: usize, key: usize| row >= rows / 2 && key >= LEN - 2;
    let value = |at: usize| if hidden(at / LEN, at % LEN) { number } else { 0.1 * (at % LEN) as f32 };
    Tensor::from_slice(shape, &(0..rows * LEN).map(value).collect::<Vec<f32>>()).unwrap()
}

pub(crate) fn with_features(g: &Graph, settings: &FavorSettings) -> Graph {
    let (mut g, mut cx) = (g.clone(), Cx::default());
    let options = AttentionTraining { form: AttentionForm::Favor(settings.clone()), seed: 3, modules: None };
    assert_eq!(attention_for_training(&mut g, &options, &mut cx).unwrap(), Changed::times(1));
    assert!(cx.remarks.is_empty(), "{:?}", cx.remarks);
    assert_eq!(g.verify(Stage::Sketched), Ok(()));
    // What is left of it is not looked at again.
    assert!(attention_for_training(&mut g, &options, &mut cx).is_err());
    g
}

pub(crate) fn run(g: &Graph, inputs: &[(&'static str, Tensor)]) -> Vec<f64> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    floats(&eval::run(g, &inputs).unwrap()[0])
}

/// The directions of a graph with features, as they are stored: `[DIM, features]`.
pub(crate) fn directions(g: &Graph) -> Vec<f64> {
    let found = g.order().into_iter().filter(|n| g.node(*n).origin.part == Some(Part::Random));
    let mut tensors = found.filter_map(|n| g.constant(n.into())).map(|c| c.tensor().clone());
    floats(&tensors.find(|t| t.shape().len() == 2).unwrap())
}

/// Attention by features of one head, by loops, with the directions as they are stored.
pub(crate) fn by_formula(
    s: &FavorSettings,
    w: &[f64],
    [q, k, v]: [&[f64]; 3],
    mask: Option<&[f64]>,
    causal: bool,
) -> Vec<f64> {
    let m = s.features;
    let width = w.len() / m;
    let product = |x: &[f64], i: usize| (0..width).map(|d| x[d] * w[d * m + i]).sum::<f64>();
    let added = |j: usize| mask.map_or(0.0, |mask| mask[j]);
    let softmax = s.kernel == FeatureKernel::Softmax;
    let exponent = |j: usize, i: usize| {
        let x = &k[j * width..][..width];
        product(x, i) - SCALE / 2.0 * x.iter().map(|x| x * x).sum::<f64>() + added(j)
    };
    let all = (0..LEN).flat_map(|j| (0..m).map(move |i| (j, i)));
    let most = if causal { 0.0 } else { all.map(|(j, i)| exponent(j, i)).fold(f64::MIN, f64::max) };
    let of_key = |j: usize, i: usize| match softmax {
        true => (exponent(j, i) - most).exp() + 1e-6 * added(j).exp(),
        false => (product(&k[j * width..][..width], i).max(0.0) + 1e-3) * added(j).exp(),
    };
    let of_query = |at: usize, i: usize| {
        let x = &q[at * width..][..width];
        let most = (0..m).map(|i| product(x, i)).fold(f64::MIN, f64::max);
        if softmax { (product(x, i) - most).exp() + 1e-6 } else { product(x, i).max(0.0) + 1e-3 }
    };
    let mut out = Vec::new();
    for at in 0..LEN {
        let seen = if causal { at + 1 } else { LEN };
        let weight = |j: usize| (0..m).map(|i| of_query(at, i) * of_key(j, i)).sum::<f64>();
        let weights: Vec<f64> = (0..seen).map(weight).collect();
        let total: f64 = weights.iter().sum();
        out.extend(
            (0..3).map(|e| weights.iter().zip(0..).map(|(w, j)| w * v[j * 3 + e]).sum::<f64>() / total),
        );
    }
    out
}

fn kinds() -> Vec<FavorSettings> {
    let orthogonal = FavorSettings::new(8);
    vec![
        orthogonal.clone(),
        FavorSettings { kernel: FeatureKernel::Relu, ..orthogonal.clone() },
        FavorSettings { directions: FeatureDirections::Independent, hyperbolic: true, ..orthogonal.clone() },
        FavorSettings {
            directions: FeatureDirections::Regularized,
            choice: HeadChoice::of(vec![1, 2]),
            ..orthogonal
        },
    ]
}

#[test]
fn features_follow_the_formulas_of_the_paper() {
    let masks: [Option<&[usize]>; 4] = [None, Some(&[2, 1, 1, LEN]), Some(&[2, HEADS, 1, LEN]), Some(&[LEN])];
    for s in kinds() {
        for (shared, causal, mask) in
            masks.iter().flat_map(|mask| [(HEADS, false, *mask), (HEADS, true, *mask), (2, false, *mask)])
        {
            let ty = mask.map(|shape| format!("f32{shape:?}"));
            let g = attention(shared, causal, ty.as_deref());
            let replaced = with_features(&g, &s);
            let mut inputs = operands(shared);
            inputs.extend(mask.map(|shape| ("m", hiding(shape, -1e9))));
            let narrowed: Vec<_> = inputs.iter().map(|(name, t)| (*name, narrow(t))).collect();
            let (found, exact) = (run(&replaced, &narrowed), run(&g, &narrowed));
            let w = directions(&replaced);
            let given: Vec<Vec<f64>> = narrowed.iter().map(|(_, t)| floats(t)).collect();
            let size = LEN * 3;
            for (at, found) in found.chunks_exact(size).enumerate() {
                let (sample, head) = (at / HEADS, at % HEADS);
                let keys = sample * shared + head * shared / HEADS;
                let row = mask.map(|shape| match shape.len() {
                    4 => (sample * shape[1] + head % shape[1]) * LEN,
                    _ => 0,
                });
                let mask = row.map(|row| &given[3][row..][..LEN]);
                let part = |i: usize, at: usize, width: usize| &given[i][at * LEN * width..][..LEN * width];
                let operands = [part(0, at, DIM), part(1, keys, DIM), part(2, keys, 3)];
                let expected = match s.choice.heads.as_ref().is_some_and(|heads| !heads.contains(&head)) {
                    true => exact[at * size..][..size].to_vec(),
                    false => by_formula(&s, &w, operands, mask, causal),
                };
                for (f, e) in found.iter().zip(&expected) {
                    assert!((f - e).abs() < 2e-5, "{s:?}, {causal}, {mask:?}, head {head}: {f} for {e}");
                }
            }
        }
    }
}

/// A result of causal attention is the same to the bit whatever comes later.
#[test]
fn causal_results_do_not_depend_on_later_positions() {
    for s in kinds() {
        let g = with_features(&attention(HEADS, true, None), &s);
        let first: Vec<_> = operands(HEADS).into_iter().map(|(name, t)| (name, narrow(&t))).collect();
        let changed = |(name, t): &(&'static str, Tensor)| {
            let width = t.shape()[3];
            let mut values = t.to_vec::<f32>().unwrap();
            let last = values.chunks_exact_mut(LEN * width);
            last.for_each(|head| head[(LEN - 1) * width..].iter_mut().for_each(|x| *x += 3.0));
            (*name, Tensor::from_slice(t.shape(), &values).unwrap())
        };
        let second: Vec<_> = first.iter().map(changed).collect();
        for (a, b) in run(&g, &first).chunks_exact(LEN * 3).zip(run(&g, &second).chunks_exact(LEN * 3)) {
            assert_eq!(a[..(LEN - 1) * 3], b[..(LEN - 1) * 3], "{s:?}");
            assert_ne!(a[(LEN - 1) * 3..], b[(LEN - 1) * 3..], "{s:?}");
        }
    }
}

/// Half of the entries of one exponent are far from the others, and all keys of a sample may be hidden.
#[test]
fn large_operands_and_hidden_keys_give_numbers() {
    let g = with_features(&attention(HEADS, false, Some("f32[2, 1, 1, 6]")), &FavorSettings::new(8));
    let large = |(name, t): (&'static str, Tensor)| {
        let values: Vec<f32> = floats(&t).iter().map(|x| (40.0 * x) as f32).collect();
        (name, Tensor::from_slice(t.shape(), &values).unwrap())
    };
    for number in [f32::MIN, -1e9] {
        let mut inputs: Vec<_> = operands(HEADS).into_iter().map(large).collect();
        inputs.push(("m", Tensor::from_slice(&[2, 1, 1, LEN], &[number; 2 * LEN]).unwrap()));
        assert!(run(&g, &inputs).iter().all(|y| y.is_finite()), "{number}");
    }
    let mut inputs: Vec<_> = operands(HEADS).into_iter().map(large).collect();
    inputs.push(("m", hiding(&[2, 1, 1, LEN], f32::NEG_INFINITY)));
    assert!(run(&g, &inputs).iter().all(|y| y.is_finite()));
}

/// The mean squared error over seeds falls as one over the number of features, and is less for directions at right angles.
#[test]
fn errors_fall_with_the_number_of_features() {
    let g = attention(HEADS, false, None);
    // Estimates for long vectors have heavy tails.
    let halved = |(name, t): (&'static str, Tensor)| {
        let values: Vec<f32> = floats(&t).iter().map(|x| (0.5 * x) as f32).collect();
        (name, Tensor::from_slice(t.shape(), &values).unwrap())
    };
    let inputs: Vec<_> = operands(HEADS).into_iter().map(halved).collect();
    let exact = run(&g, &inputs);
    let error = |features: usize, directions: FeatureDirections| {
        let settings = FavorSettings { directions, ..FavorSettings::new(features) };
        let each = (0..16).map(|seed| {
            let mut replaced = g.clone();
            let options =
                AttentionTraining { form: AttentionForm::Favor(settings.clone()), seed, modules: None };
            attention_for_training(&mut replaced, &options, &mut Cx::default()).unwrap();
            run(&replaced, &inputs).iter().zip(&exact).map(|(f, e)| (f - e).powi(2)).sum::<f64>()
        });
        each.sum::<f64>() / 16.0 / exact.iter().map(|e| e * e).sum::<f64>()
    };
    let of = |features| error(features, FeatureDirections::Orthogonal);
    let errors: Vec<f64> = [DIM / 2, DIM, 2 * DIM, 4 * DIM, 40 * DIM].map(of).to_vec();
    assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
    let ratio = errors[3] / errors[4];
    assert!((4.0..25.0).contains(&ratio) && errors[4] < 0.01, "{errors:?}");
    let independent = error(2 * DIM, FeatureDirections::Independent);
    assert!(errors[2] < independent, "{} and {independent}", errors[2]);
}

#[test]
fn derivatives_are_those_of_finite_differences() {
    for s in kinds() {
        for (shared, causal, mask) in [(HEADS, true, None), (2, false, Some("f32[2, 1, 1, 6]"))] {
            let g = widened(&with_features(&attention(shared, causal, mask), &s));
            let mut inputs = operands(shared);
            inputs.extend(mask.map(|_| ("m", crate::wide(&hiding(&[2, 1, 1, LEN], -1e9)))));
            check_by_differences(&format!("{s:?} {causal}"), &g, &inputs, 3);
        }
    }
}

fn declined(g: &Graph, settings: FavorSettings) -> String {
    let (mut g, mut cx) = (g.clone(), Cx::default());
    let options = AttentionTraining { form: AttentionForm::Favor(settings), seed: 0, modules: None };
    match attention_for_training(&mut g, &options, &mut cx) {
        Ok(changed) => {
            assert_eq!(changed, Changed::No);
            cx.remarks[0].message.clone()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_has_no_such_form_is_declined() {
    let of = |mask: &str| declined(&attention(HEADS, false, Some(mask)), FavorSettings::new(4));
    assert!(
        of("f32[2, 1, 6, 6]").contains("the mask has a row for each of 6 queries, expected one row for all")
    );
    let g = attention(HEADS, false, None);
    for (settings, why) in [
        (FavorSettings::new(0), "0 features, expected 1 to 1048576"),
        (FavorSettings::new(1 << 60), "1152921504606846976 features, expected 1 to 1048576"),
        (FavorSettings { hyperbolic: true, ..FavorSettings::new(3) }, "found 3 of kernel `softmax`"),
        (
            FavorSettings { choice: HeadChoice::of(vec![4]), ..FavorSettings::new(4) },
            "head 4 of heads 0 to 3",
        ),
        (
            FavorSettings { choice: HeadChoice::of(vec![2, 1]), ..FavorSettings::new(4) },
            "heads [2, 1] are not ascending",
        ),
        (
            FavorSettings { choice: HeadChoice::within(-1.0), ..FavorSettings::new(4) },
            "limit -1, expected a number above 0",
        ),
        (
            FavorSettings { choice: HeadChoice::within(0.2), ..FavorSettings::new(4) },
            "a `limit` of the error of heads needs samples",
        ),
        (
            FavorSettings { directions: FeatureDirections::Fitted, ..FavorSettings::new(4) },
            "fitted directions need samples",
        ),
        (
            FavorSettings { directions: FeatureDirections::Fitted, ..crate::relative::settings(false) },
            "directions are fitted to queries and keys without relative positions",
        ),
        (
            FavorSettings {
                relative: Some(RelativePositions { sines: 0, realizations: 4, gated: false }),
                ..FavorSettings::new(4)
            },
            "0 sines of relative positions, expected 1 to 65536",
        ),
    ] {
        let found = declined(&g, settings);
        assert!(found.contains(why), "{found}");
    }
    let text = "graph @net(%q: f32[1, 2, 3, 4], %k: f32[1, 2, 5, 4]) -> (y: f32[1, 2, 3, 4]) {
        %0 = attention %q, %k, %k {scale = 0.5, causal = true} : f32[1, 2, 3, 4]  // att
        return %0
    }";
    let found = declined(&parse_with_random_constants(text).0, FavorSettings::new(4));
    assert!(found.contains("causal attention of 3 queries and 5 keys"), "{found}");
}

/// Heads of small products are close to their mean, which features estimate well; heads of large ones are not.
#[test]
fn heads_are_replaced_where_their_error_is_within_the_limit() {
    let text = "graph @net(%x: f32[N, 4, 16, 8]) -> (y: f32[N, 4, 16, 8]) {
        %0 = const #s : f32[4, 1, 1]  // sizes
        %1 = mul %x, %0 : f32[N, 4, 16, 8]  // q
        %2 = attention %1, %x, %x {scale = 1.0} : f32[N, 4, 16, 8]  // att
        return %2
    }";
    let (g, _) = parse_with_random_constants(text);
    let sizes = Tensor::from_slice(&[4, 1, 1], &[0.2f32, 30.0, 0.2, 30.0]).unwrap();
    let g = margay_passes::with_parameters(&g, &[("sizes".to_owned(), sizes)]).unwrap();
    let model = Model::new(g, "net", &mut Dump::none()).unwrap();
    let values: Vec<f32> = floats(&random(&[16, 4, 16, 8], 5)).iter().map(|x| (0.3 * x) as f32).collect();
    let x = Tensor::from_slice(&[16, 4, 16, 8], &values).unwrap();
    let samples = Samples::new(vec![("x".into(), x)]).unwrap();
    let compiled = |settings: &str| {
        let head = format!(
            "version = 1\nmodel = \"{}\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0",
            model.hash
        );
        let choice = format!("att = {{ scheme = \"favor\", features = 64, {settings} }}");
        let plan = read_plan(&format!("[plan]\n{head}\n[modules]\n{choice}\n")).unwrap();
        let options = CompileOptions { plan: Some(plan), ..CompileOptions::default() };
        compile(&model, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"))
    };
    let found = compiled("limit = 0.5");
    let text = found.graph.to_string();
    assert!(text.contains("const heads([0, 2])") && text.contains("const heads([1, 3])"), "{text}");
    let remark = found.report.remarks.iter().find(|r| r.starts_with("favor at `att`")).unwrap();
    assert!(
        remark.contains("2 of 4 heads stay exact, with relative errors above 0.5 of 64 features: 1 ("),
        "{remark}"
    );
    // What the report says of the layer is what samples show of it.
    let error = found.report.modules[0].layer_error;
    let all = compiled("limit = 1000.0");
    assert!(error > 0.0 && error < all.report.modules[0].layer_error, "{error}");
    assert!(all.report.remarks.iter().all(|r| !r.starts_with("favor")));
    // No head is within this limit.
    let none = compiled("limit = 1e-9");
    assert_eq!(none.graph.to_string(), model.graph.to_string());
}

/// The relative error on samples of all heads, with what was fitted to them.
fn error_on_samples(g: &Graph, samples: &[Vec<Tensor>], settings: &FavorSettings, seed: u64) -> f64 {
    let site = sites(g).into_iter().next().unwrap();
    let context = Context {
        graph: g,
        site: &site,
        moments: None,
        samples: Some(samples),
        metric: None,
        decompositions: &Decompositions::default(),
        seed,
    };
    let fitted = scheme("favor").unwrap().fit(&context).unwrap();
    fitted.squared_error(&Settings::write(settings)).unwrap()
}

/// Estimates by fitted directions come to the exact result as well, and sooner where queries and keys vary in few directions.
#[test]
fn fitted_directions_are_nearer_to_exact_attention() {
    for (shared, causal, mask) in
        [(HEADS, false, None), (2, false, Some([2, 1, 1, LEN])), (HEADS, true, None)]
    {
        let ty = mask.map(|shape| format!("f32{shape:?}"));
        let g = attention(shared, causal, ty.as_deref());
        let uneven = |(name, t): (&'static str, Tensor)| {
            let scales = [3.0, 2.0, 0.2, 0.1, 0.1];
            let scaled = floats(&t)
                .iter()
                .enumerate()
                .map(|(i, x)| match name {
                    "v" => *x as f32,
                    _ => (0.5 + x * scales[i % DIM]) as f32,
                })
                .collect::<Vec<f32>>();
            Tensor::from_slice(t.shape(), &scaled).unwrap()
        };
        let mut run: Vec<Tensor> = operands(shared).into_iter().map(uneven).collect();
        run.extend(mask.map(|shape| hiding(&shape, -1e9)));
        let of = |features, directions| {
            let settings = FavorSettings { directions, ..FavorSettings::new(features) };
            (0..8).map(|seed| error_on_samples(&g, &[run.clone()], &settings, seed)).sum::<f64>() / 8.0
        };
        let (plain, fitted) = (of(32, FeatureDirections::Orthogonal), of(32, FeatureDirections::Fitted));
        let many = of(4096, FeatureDirections::Fitted);
        assert!(fitted < 0.8 * plain && many < 0.05 * fitted, "{shared} {causal}: {plain} {fitted} {many}");
    }
}

/// Features are what linear attention multiplies: none is below 0, and no weight is 0.
#[test]
fn features_are_not_negative() {
    for (s, causal) in kinds().into_iter().flat_map(|s| [(s.clone(), false), (s, true)]) {
        let mut g = with_features(&attention(HEADS, causal, None), &s);
        let linear = g.order().into_iter().find(|n| g.op(*n).name() == "linear_attention").unwrap();
        let features = g.inputs_of(linear)[..2].to_vec();
        features.iter().zip(["fq", "fk"]).for_each(|(v, name)| g.add_output(name, *v));
        let inputs: Vec<(&str, Tensor)> = operands(HEADS)
            .into_iter()
            .map(|(name, t)| {
                let large: Vec<f32> = floats(&t).iter().map(|x| 9.0 * *x as f32).collect();
                (name, Tensor::from_slice(t.shape(), &large).unwrap())
            })
            .collect();
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
        for found in &eval::run(&g, &given).unwrap()[1..] {
            assert!(floats(found).iter().all(|x| *x > 0.0 && x.is_finite()), "{s:?}, causal {causal}");
        }
    }
}

/// What a session holds at most grows with the length, and not with its square.
#[test]
fn memory_is_linear_in_the_length() {
    let backend = margay_driver::backend::native();
    for causal in [false, true] {
        let text = format!(
            "graph @net(%q: f32[1, 2, S, 16], %k: f32[1, 2, S, 16], %v: f32[1, 2, S, 16]) -> (y: f32[1, 2, S, 16]) {{
               %0 = attention %q, %k, %v {{scale = 0.25, causal = {causal}}} : f32[1, 2, S, 16]  // att
               return %0
             }}"
        );
        let g = with_features(&parse_with_random_constants(&text).0, &FavorSettings::new(64));
        let bytes = |length: usize| {
            let binding = margay_tensor::Binding::from([("S".into(), length as i64)]);
            let executable = margay_driver::build::jit(&g, &binding, &*backend).unwrap();
            let options = margay_runtime::SessionOptions { threads: 1 };
            let mut session = margay_runtime::Session::new(&executable, options).unwrap();
            let inputs = ["q", "k", "v"].map(|name| (name, narrow(&random(&[1, 2, length, 16], 4))));
            session.run(&inputs.each_ref().map(|(name, t)| (*name, t))).unwrap();
            session.peak_bytes() as f64
        };
        let found = [1024, 2048, 4096, 8192].map(bytes);
        for pair in found.windows(2) {
            assert!((1.5..2.1).contains(&(pair[1] / pair[0])), "causal {causal}: {found:?}");
        }
        // All pairs of 8192 positions in two heads would be 512 MiB.
        assert!(found[3] < f64::from(1u32 << 26), "{found:?}");
    }
}
