//! Forms of kernels of any number of groups, over one, two and three spatial axes: the kernels that they stand for, their errors,
//! and derivatives by finite differences; and kernels of one tap, which are products.

use margay_driver::{CompileOptions, Dump, Model, Samples, Silent, compile};
use margay_ir::{Cx, Graph, NodeId, Op, Part, Pass, eval};
use margay_onnx::{Attribute, ExportOptions, OnnxDim, OnnxGraph, OnnxNode, OnnxValue, export, import};
use margay_passes::sketch::{Context, Decompositions, read_plan, scheme, sites};
use margay_passes::{ApplyPlan, make_trainable, with_parameters};
use margay_plan::Plan;
use margay_randnla::{Matrix, svd};
use margay_tensor::{DType, Tensor};
use margay_testkit::parse_with_random_constants;

use crate::{check_by_differences, floats, narrow, random, widened};

struct Case {
    x: &'static [usize],
    y: &'static [usize],
    kernel: &'static [usize],
    attributes: &'static str,
    groups: usize,
}

const CASES: [Case; 4] = [
    Case {
        x: &[2, 6, 7, 5],
        y: &[2, 10, 4, 5],
        kernel: &[10, 6, 3, 3],
        attributes: "strides = [2, 1], pads_before = [2, 1], pads_after = [2, 1], dilations = [2, 1]",
        groups: 1,
    },
    Case {
        x: &[2, 8, 5, 4],
        y: &[2, 14, 5, 4],
        kernel: &[14, 4, 3, 3],
        attributes: "pads_before = [2, 1], pads_after = [2, 1], dilations = [2, 1], groups = 2",
        groups: 2,
    },
    Case {
        x: &[2, 6, 11],
        y: &[2, 10, 6],
        kernel: &[10, 6, 5],
        attributes: "strides = [2], pads_before = [2], pads_after = [2], dilations = [1]",
        groups: 1,
    },
    Case {
        x: &[2, 12, 8],
        y: &[2, 18, 8],
        kernel: &[18, 4, 3],
        attributes: "strides = [1], pads_before = [2], pads_after = [2], dilations = [2], groups = 3",
        groups: 3,
    },
];

/// Settings of a scheme, and whether they only round.
const SETTINGS: [(&str, &str, &str); 5] = [
    ("lowrank", "rank = 2", "rank = {outputs}"),
    ("interpolative", "rank = 2", "rank = {outputs}"),
    ("tucker", "ranks = [2, 3]", "ranks = [{channels}, {outputs}]"),
    ("spatial", "rank = 3", "rank = {spatial}"),
    ("cp", "rank = 3", ""),
];

fn plan_text(scheme: &str, settings: &str, model: &str) -> String {
    format!(
        "[plan]\nversion = 1\nmodel = \"{model}\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0\n[modules]\n\
         conv = {{ scheme = \"{scheme}\", {settings} }}\n"
    )
}

fn plan(scheme: &str, settings: &str) -> Plan {
    read_plan(&plan_text(scheme, settings, "")).unwrap()
}

fn replaced(g: &Graph, scheme: &str, settings: &str) -> Graph {
    let (mut g, mut cx) = (g.clone(), Cx::default());
    ApplyPlan::of(&plan(scheme, settings)).run(&mut g, &mut cx).unwrap_or_else(|e| panic!("{e}"));
    assert!(cx.remarks.is_empty(), "{:?}", cx.remarks);
    g
}

impl Case {
    fn channels(&self) -> usize {
        self.kernel[1]
    }

    fn outputs(&self) -> usize {
        self.kernel[0] / self.groups
    }

    fn taps(&self) -> usize {
        self.kernel[2..].iter().product()
    }

    fn takes(&self, scheme: &str) -> bool {
        scheme != "spatial" || self.kernel.len() == 4
    }

    fn graph(&self, x: &[usize], y: &[usize], attributes: &str) -> Graph {
        parse_with_random_constants(&format!(
            "graph @net(%x: f32{x:?}) -> (y: f32{y:?}) {{
               %0 = const #w : f32{:?}  // conv.weight
               %1 = conv %x, %0 {{{attributes}}} : f32{y:?}  // conv
               return %1
             }}",
            self.kernel
        ))
        .0
    }

    fn dense(&self) -> Graph {
        self.graph(self.x, self.y, self.attributes)
    }

    /// Numbers of the kernel, `[outputs, channels, taps]`.
    fn weight(&self) -> Vec<f64> {
        let g = self.dense();
        let n = g.order().into_iter().find(|n| g.constant((*n).into()).is_some()).unwrap();
        floats(g.constant(n.into()).unwrap().tensor())
    }

    /// The kernel that stands in for that of the case: what the same forms give for images of one window each, of which one number
    /// is a one.
    fn effective(&self, scheme: &str, settings: &str) -> Vec<f64> {
        let (all, axes) = (self.groups * self.channels(), self.kernel.len() - 2);
        let units = all * self.taps();
        let x = [&[units, all], &self.kernel[2..]].concat();
        let y = [vec![units, self.kernel[0]], vec![1; axes]].concat();
        let (zeros, ones) = (vec![0; axes], vec![1; axes]);
        let attributes = format!(
            "strides = {ones:?}, pads_before = {zeros:?}, pads_after = {zeros:?}, dilations = {ones:?}, groups = {}",
            self.groups
        );
        let g = replaced(&self.graph(&x, &y, &attributes), scheme, settings);
        let mut ones = vec![0f64; units * units];
        (0..units).for_each(|i| ones[i * units + i] = 1.0);
        let ones = Tensor::from_slice(&x, &ones).unwrap();
        let found = floats(&eval::run(&widened(&g), &[("x", &ones)]).unwrap()[0]);
        let at = |i: usize| {
            let (output, channel, tap) =
                (i / (self.channels() * self.taps()), i / self.taps() % self.channels(), i % self.taps());
            let channel = output / self.outputs() * self.channels() + channel;
            found[(channel * self.taps() + tap) * self.kernel[0] + output]
        };
        (0..self.kernel[0] * self.channels() * self.taps()).map(at).collect()
    }
}

fn exact(case: &Case, settings: &str) -> String {
    // Of a kernel unfolded into channels and rows of taps.
    let spatial = (case.channels() * case.kernel[2]).min(case.outputs() * case.taps() / case.kernel[2]);
    settings
        .replace("{outputs}", &case.outputs().to_string())
        .replace("{channels}", &case.channels().to_string())
        .replace("{spatial}", &spatial.to_string())
}

/// Strides, padding, dilation and groups stay: the convolution is that with the kernel that the form stands for, compiled and
/// exported too.
#[test]
fn forms_of_kernels_are_convolutions_with_the_kernels_they_stand_for() {
    for case in &CASES {
        let x = random(case.x, 3);
        for (scheme, settings, _) in SETTINGS.iter().filter(|(scheme, ..)| case.takes(scheme)) {
            let what = format!("{scheme} on {:?} of {} groups", case.kernel, case.groups);
            let g = replaced(&case.dense(), scheme, settings);
            let kernel: Vec<f32> = case.effective(scheme, settings).iter().map(|v| *v as f32).collect();
            let kernel = Tensor::from_slice(case.kernel, &kernel).unwrap();
            let whole = with_parameters(&case.dense(), &[("conv.weight".to_owned(), kernel)]).unwrap();
            let run = |g: &Graph| floats(&eval::run(&widened(g), &[("x", &x)]).unwrap()[0]);
            let expected = run(&whole);
            let read = import(&export(&g, &ExportOptions::default()).unwrap()).unwrap();
            let narrow_x = narrow(&x);
            let exported = floats(&eval::run(&read, &[("x", &narrow_x)]).unwrap()[0]);
            let scale = expected.iter().fold(0f64, |m, e| m.max(e.abs()));
            for ((f, again), e) in run(&g).iter().zip(&exported).zip(&expected) {
                assert!((f - e).abs() < 1e-6 * scale, "{what}: {f}, expected {e}");
                assert!((again - e).abs() < 1e-5 * scale, "{what} exported: {again}, expected {e}");
            }
        }
    }
}

/// Without samples errors are relative to the norm of the kernel; low rank loses the least of all of its rank in each group.
#[test]
fn errors_of_forms_of_kernels_are_those_of_the_kernels_they_stand_for() {
    for case in &CASES {
        let (g, w) = (case.dense(), case.weight());
        let norm: f64 = w.iter().map(|w| w * w).sum();
        let site = sites(&g).into_iter().find(|site| site.name == "conv").unwrap();
        assert_eq!(site.measures.len(), case.groups);
        for (name, settings, whole) in SETTINGS.iter().filter(|(scheme, ..)| case.takes(scheme)) {
            let what = format!("{name} on {:?} of {} groups", case.kernel, case.groups);
            let decompositions = &Decompositions::default();
            let (moments, samples, metric) = (None, None, None);
            let context =
                Context { graph: &g, site: &site, moments, samples, metric, decompositions, seed: 0 };
            let fitted = scheme(name).unwrap().fit(&context).unwrap();
            let error = |settings: &str| {
                let predicted = fitted.squared_error(&plan(name, settings).sites["conv"].settings);
                let kernel = case.effective(name, settings);
                let made = kernel.iter().zip(&w).map(|(k, w)| (k - w).powi(2)).sum::<f64>() / norm;
                let predicted = predicted.unwrap_or_else(|why| panic!("{what}: {why}"));
                assert!((predicted - made).abs() < 1e-6, "{what}, {settings}: {predicted} {made}");
                made
            };
            let lossy = error(settings);
            assert!(lossy > 1e-3 && lossy < 1.0, "{what}: {lossy}");
            if !whole.is_empty() {
                assert!(error(&exact(case, whole)) < 1e-10, "{what}");
            }
            if ["lowrank", "interpolative"].contains(name) {
                let of_group = w.chunks(w.len() / case.groups).map(|group| {
                    let columns = group.len() / case.outputs();
                    let group = Matrix::from_fn(case.outputs(), columns, |i, j| group[i * columns + j]);
                    svd(&group).unwrap().singular_values[2..].iter().map(|s| s * s).sum::<f64>()
                });
                let least = of_group.sum::<f64>() / norm;
                assert!((lossy / least - 1.0).abs() < 1e-5, "{what}: {lossy}, at least {least}");
            }
        }
    }
}

/// By the image and by all factors.
#[test]
fn derivatives_of_forms_of_kernels_are_those_of_finite_differences() {
    for case in &CASES {
        for (scheme, settings, _) in SETTINGS.iter().filter(|(scheme, ..)| case.takes(scheme)) {
            let g = replaced(&case.dense(), scheme, settings);
            by_all_factors(&format!("{scheme} on {:?}", case.kernel), &g);
        }
    }
}

/// Against finite differences by the input and by all constants but random ones.
pub(crate) fn by_all_factors(what: &str, g: &Graph) {
    let mut g = widened(g);
    let moves = |n: &NodeId| {
        matches!(g.op(*n), Op::Const(c) if c.payload.tensor().dtype() == DType::F64)
            && g.node(*n).origin.part != Some(Part::Random)
    };
    let of: Vec<NodeId> = g.order().into_iter().filter(moves).collect();
    assert!(!of.is_empty(), "{what}");
    make_trainable(&mut g, &of).unwrap();
    let given = |(i, n): (usize, &NodeId)| {
        let name: &'static str = g.node(*n).origin.name().to_owned().leak();
        (name, random(&g.ty((*n).into()).extents().unwrap(), i as u64))
    };
    let inputs: Vec<(&'static str, Tensor)> = g.inputs().iter().enumerate().map(given).collect();
    check_by_differences(what, &g, &inputs, inputs.len());
}

/// With samples: a limit of bytes takes a form, and the error of a model of one convolution is that which is predicted.
#[test]
fn convolutions_of_groups_and_of_one_axis_are_measured_on_samples() {
    for case in &CASES {
        let open = |shape: &[usize]| format!("f32[N, {}", &format!("{:?}", &shape[1..])[1..]);
        let (x, y) = (open(case.x), open(case.y));
        let text = format!(
            "graph @net(%x: {x}) -> (y: {y}) {{
               %0 = const #w : f32{:?}  // conv.weight
               %1 = conv %x, %0 {{{}}} : {y}  // conv
               return %1
             }}",
            case.kernel, case.attributes
        );
        let model = Model::new(parse_with_random_constants(&text).0, "net", &mut Dump::none()).unwrap();
        let images = |count: usize, stream: u64| {
            let x = narrow(&random(&[&[count], &case.x[1..]].concat(), stream));
            // Neighbours are alike, so that windows are far from white.
            let mut values = x.to_vec::<f32>().unwrap();
            (1..values.len()).for_each(|i| values[i] += 0.8 * values[i - 1]);
            Tensor::from_slice(x.shape(), &values).unwrap()
        };
        let samples = Samples::new(vec![("x".into(), images(400, 1))]).unwrap();
        let fresh = images(200, 2);
        for (scheme, settings, _) in SETTINGS.iter().filter(|(scheme, ..)| case.takes(scheme)) {
            let plan = Some(read_plan(&plan_text(scheme, settings, &model.hash)).unwrap());
            let options = CompileOptions { plan, ..CompileOptions::default() };
            let made = compile(&model, Some(&samples), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
            let predicted = made.report.modules[0].layer_error;
            let run = |g: &Graph| floats(&eval::run(g, &[("x", &fresh)]).unwrap()[0]);
            let (found, expected) = (run(&made.graph), run(&model.graph));
            let error: f64 = found.iter().zip(&expected).map(|(f, e)| (f - e).powi(2)).sum();
            let size: f64 = expected.iter().map(|e| e * e).sum();
            let ratio = predicted / (error / size).sqrt();
            assert!((0.8..1.25).contains(&ratio), "{scheme} on {:?}: {ratio}, {predicted}", case.kernel);
        }
    }
}

/// Kernels over three axes are imported as such of planes, and are sites as those are.
#[test]
fn convolutions_over_three_axes_are_sites() {
    let weight = narrow(&random(&[12, 4, 3, 3, 2], 5));
    let shape = |dims: &[i64]| Some(dims.iter().map(|d| OnnxDim::Value(*d)).collect());
    let value = |name: &str, dims: &[i64]| OnnxValue {
        name: name.to_owned(),
        dtype: Some(DType::F32),
        narrow: None,
        dims: shape(dims),
    };
    let conv = OnnxNode {
        name: "conv".to_owned(),
        op_type: "Conv".to_owned(),
        inputs: vec!["x".into(), "w".into()],
        outputs: vec!["y".into()],
        attributes: [
            ("pads".to_owned(), Attribute::Ints(vec![1, 1, 0, 1, 1, 1])),
            ("strides".to_owned(), Attribute::Ints(vec![2, 1, 1])),
            ("group".to_owned(), Attribute::Int(2)),
        ]
        .into_iter()
        .collect(),
        ..OnnxNode::default()
    };
    let graph = OnnxGraph {
        name: "volumes".to_owned(),
        inputs: vec![value("x", &[2, 8, 5, 4, 4])],
        outputs: vec![value("y", &[2, 12, 3, 4, 4])],
        initializers: vec![("w".to_owned(), weight)],
        nodes: vec![conv],
        ..OnnxGraph::default()
    };
    let g = import(&margay_onnx::Model::new(17, graph)).unwrap();
    let model = Model::new(g, "net", &mut Dump::none()).unwrap();
    let found = sites(&model.graph);
    let site = found.iter().find(|site| site.kind == "conv").unwrap();
    assert_eq!((site.d_in, site.d_out), (4 * 3 * 3 * 2, 12));
    let x = random(&[2, 8, 5, 4, 4], 9);
    let run = |g: &Graph| floats(&eval::run(&widened(g), &[("x", &x)]).unwrap()[0]);
    let dense = run(&model.graph);
    let scale = dense.iter().fold(0f64, |m, e| m.max(e.abs()));
    for (scheme, settings, exact) in [
        ("lowrank", "rank = 6", true),
        ("interpolative", "rank = 6", true),
        ("tucker", "ranks = [12, 6]", true),
        ("spatial", "rank = 12", true),
        ("cp", "rank = 4", false),
        ("panther", "rank = 1", false),
        ("panther", "rank = 1, two-sided = true", false),
    ] {
        let text = plan_text(scheme, settings, "").replace("conv = ", &format!("\"{}\" = ", site.name));
        let (mut g, mut cx) = (model.graph.clone(), Cx::default());
        ApplyPlan::of(&read_plan(&text).unwrap()).run(&mut g, &mut cx).unwrap_or_else(|e| panic!("{e}"));
        assert_ne!(g.to_string(), model.graph.to_string());
        let error = run(&g).iter().zip(&dense).fold(0f64, |m, (f, e)| m.max((f - e).abs())) / scale;
        assert_eq!(error < 1e-5, exact, "{scheme}: {error}");
    }
}

/// A convolution of one tap is a product of the rows of its channels: each scheme makes of it what it makes of that.
#[test]
fn kernels_of_one_tap_are_products() {
    for (x, steps, y) in [("6, 5", 1, "6, 5"), ("6, 5", 2, "3, 3"), ("9", 1, "9")] {
        let axes = x.split(',').count();
        let ones = vec!["1"; axes].join(", ");
        let (strides, zeros) = (vec![steps; axes], vec![0; axes]);
        let bias = ["12".to_owned(), ones.clone()].join(", ");
        let of_images = format!(
            "graph @net(%x: f32[N, 12, {x}]) -> (y: f32[N, 12, {y}]) {{
               %0 = const #w : f32[12, 12, {ones}]  // conv.weight
               %1 = conv %x, %0 {{strides = {strides:?}, pads_before = {zeros:?}, pads_after = {zeros:?}, dilations = [{ones}]}} : f32[N, 12, {y}]  // conv
               %2 = const #b : f32[{bias}]  // conv.bias
               %3 = add %1, %2 : f32[N, 12, {y}]  // conv/Add
               return %3
             }}"
        );
        let of_rows = "graph @net(%x: f32[N, 12]) -> (y: f32[N, 12]) {
          %0 = const #v : f32[12, 12]  // fc.weight
          %1 = matmul %x, %0 : f32[N, 12]  // conv
          %2 = const #c : f32[12]  // fc.bias
          %3 = add %1, %2 : f32[N, 12]  // conv/Add
          return %3
        }";
        let (images, _) = parse_with_random_constants(&of_images);
        let contents = |name: &str| {
            let names = margay_passes::parameter_names(&images);
            let (n, _) = names.into_iter().find(|(_, found)| found == name).unwrap();
            floats(images.constant(n.into()).unwrap().tensor())
        };
        let (weight, bias) = (contents("conv.weight"), contents("conv.bias"));
        let turned: Vec<f32> = (0..144).map(|i| weight[i % 12 * 12 + i / 12] as f32).collect();
        let bias: Vec<f32> = bias.iter().map(|b| *b as f32).collect();
        let rows = with_parameters(
            &parse_with_random_constants(of_rows).0,
            &[
                ("fc.weight".to_owned(), Tensor::from_slice(&[12, 12], &turned).unwrap()),
                ("fc.bias".to_owned(), Tensor::from_slice(&[12], &bias).unwrap()),
            ],
        )
        .unwrap();
        let extents: Vec<usize> = x.split(", ").map(|d| d.parse().unwrap()).collect();
        let shape = [&[40, 12], extents.as_slice()].concat();
        let image = narrow(&random(&shape, 4));
        let places: usize = extents.iter().product();
        // The places that are read, as rows of channels.
        let read = |at: usize| {
            extents.len() < 2 || [at / extents[1], at % extents[1]].iter().all(|i| i.is_multiple_of(steps))
        };
        let values = floats(&image);
        let mut as_rows = Vec::new();
        for n in 0..40 {
            for at in (0..places).filter(|at| read(*at)) {
                as_rows.extend((0..12).map(|c| values[(n * 12 + c) * places + at] as f32));
            }
        }
        let count = as_rows.len() / 12;
        let as_rows = Tensor::from_slice(&[count, 12], &as_rows).unwrap();
        let image_model = Model::new(images, "net", &mut Dump::none()).unwrap();
        let rows_model = Model::new(rows, "net", &mut Dump::none()).unwrap();
        for (scheme, settings) in [
            ("kronecker", "block = [3, 4], terms = 2"),
            ("monarch", "blocks = [3, 4]"),
            ("tt", "inputs = [4, 3], outputs = [2, 6], rank = 2"),
            ("lowrank-diag", "rank = 3"),
            ("lowrank-sparse", "rank = 2, inputs = 3"),
            ("lowrank-sparse", "rank = 2, entries = 2"),
            ("structured", "form = \"(3x4 ⊗ 4x3) + 12x2 · 2x12\""),
            ("quantized", "bits = 4"),
            ("quantized", "bits = 4, rank = 2"),
        ] {
            let made = |model: &Model, x: Option<&Tensor>| {
                let samples = x.map(|x| Samples::new(vec![("x".into(), x.clone())]).unwrap());
                let plan = Some(read_plan(&plan_text(scheme, settings, &model.hash)).unwrap());
                let options = CompileOptions { plan, ..CompileOptions::default() };
                let made = compile(model, samples.as_ref(), &options, &Silent);
                made.unwrap_or_else(|e| panic!("{scheme} {settings}: {e}")).graph
            };
            let (g, h) = (made(&image_model, None), made(&rows_model, None));
            let found = floats(&eval::run(&g, &[("x", &image)]).unwrap()[0]);
            let expected = floats(&eval::run(&h, &[("x", &as_rows)]).unwrap()[0]);
            let left = count / 40;
            let scale = expected.iter().fold(0f64, |m, e| m.max(e.abs()));
            for (i, e) in expected.iter().enumerate() {
                let (row, channel) = (i / 12, i % 12);
                let f = found[(row / left * 12 + channel) * left + row % left];
                assert!((f - e).abs() < 1e-5 * scale, "{scheme} {settings} on {x}: {f} {e}");
            }
            // With samples there are a correction of the bias, and the same error as that of the rows.
            let calibrated = made(&image_model, Some(&image));
            let found = floats(&eval::run(&calibrated, &[("x", &image)]).unwrap()[0]);
            assert!(found.iter().all(|v| v.is_finite()));
        }
    }
}
