//! Constants stored narrow and 16-bit floats, from graphs to results, and what bytes are said of them.

use std::collections::BTreeMap;

use margay_artifact::Artifact;
use margay_driver::build::jit;
use margay_driver::{CompileOptions, Dump, Goal, Model, Samples, Silent, backend, compile, open};
use margay_ir::{Cx, Graph, Pass, eval};
use margay_loops::Precision;
use margay_lower::lower;
use margay_passes::{StoreAs, StoreConstants};
use margay_plan::{Budget, Choice, Plan};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::{Tolerance, assert_close, normal, normalized, parse_with_random_constants};

/// Compiles a graph for every class and compares it with the reference.
fn agrees(g: &Graph, inputs: &[(&str, &Tensor)], tolerance: Tolerance) {
    let expected = eval::run(g, inputs).unwrap();
    for backend in backend::supported() {
        let executable = jit(g, &Binding::new(), &*backend).unwrap_or_else(|e| panic!("{e}\n{g}"));
        let run =
            |threads| Session::new(&executable, SessionOptions { threads }).unwrap().run(inputs).unwrap();
        let found = run(1);
        for ((name, found), expected) in found.iter().zip(&expected) {
            assert_close(&format!("{name} on {}\n{g}", backend.target()), found, expected, tolerance);
        }
        assert_eq!(found, run(2), "with 1 and 2 threads");
    }
}

/// Bytes of constants that the program of a graph stores.
fn constant_bytes(g: &Graph) -> u64 {
    lower(g, &*backend::named("cpu", "x86-64-v4", Precision::F32).unwrap()).unwrap().constant_bytes()
}

#[test]
fn rows_of_a_table_are_read_as_they_are_stored() {
    let ids = Tensor::from_slice(&[5], &[3i64, 0, 39, -1, 7]).unwrap();
    for (storage, bytes) in [
        ("", 40 * 33 * 4),
        (" stored f16", 40 * 33 * 2),
        (" stored bf16", 40 * 33 * 2),
        (" stored i8(axis = 0)", 1344 + 40 * 4),
        (" stored i8(axis = 1)", 1344 + 33 * 4),
        (" stored i8(tensor)", 1344 + 4),
        (" stored u8(axis = 0, zero points)", 1344 + 192 + 40),
        (" stored i8(axis = 1, block = 8, zero points)", 1344 + 832 + 40 * 5),
        (" stored i8(axis = 0, block = 16)", 1344 + 3 * 33 * 4),
        // Loops read whole bytes.
        (" stored u4(axis = 1, block = 8, bf16 scales, zero points)", 1344 + 448 + 40 * 5),
        (" stored i3(axis = 0)", 1344 + 40 * 4),
    ] {
        let (g, _) = parse_with_random_constants(&format!(
            "graph @rows(%i: i64[5], %x: f32[5, 33]) -> (a: f32[5, 33], b: f32[40, 33]) {{
               %0 = const #t : f32[40, 33]{storage}  // table
               %1 = gather %0, %i {{axis = 0}} : f32[5, 33]  // rows
               %2 = add %1, %x : f32[5, 33]  // sum
               %3 = tanh %0 : f32[40, 33]  // all
               return %2, %3
             }}"
        ));
        agrees(&g, &[("i", &ids), ("x", &normal(&[5, 33], 1, 0))], Tolerance::ELEMENTWISE);
        assert_eq!(constant_bytes(&g), bytes, "{storage}");
    }
}

/// A product with a constant that kernels read as it is stored, or as numbers where they do not.
#[test]
fn products_read_constants_of_any_storage() {
    let x = normal(&[6, 40], 2, 0);
    for (storage, bytes) in [
        ("", 40 * 64 * 4),
        (" stored bf16", 40 * 64 * 2),
        (" stored i8(axis = 1)", 64 * 4 + 40 * 64),
        (" stored i8(tensor)", 64 * 4 + 40 * 64),
        (" stored f16", 40 * 64 * 4),
        (" stored i8(axis = 0)", 40 * 64 * 4),
        (" stored u8(axis = 1, zero points)", 40 * 64 * 4),
        (" stored i8(axis = 0, block = 8)", 40 * 64 * 4),
        // Scales, zero points in words of eight, and elements, of panels of 32 columns.
        (" stored u4(axis = 0, block = 16, bf16 scales, zero points)", 64 * (3 * 2 + 4 + 5 * 4)),
        (" stored i4(axis = 0, block = 8)", 64 * (5 * 4 + 5 * 4)),
        (" stored u3(axis = 0, block = 32, bf16 scales, zero points)", 64 * (2 * 2 + 4 + 2 * 3 * 4)),
        (" stored u4(axis = 0, block = 12)", 40 * 64 * 4),
        (" stored u4(axis = 1, block = 8)", 40 * 64 * 4),
    ] {
        let (g, _) = parse_with_random_constants(&format!(
            "graph @product(%x: f32[6, 40]) -> (y: f32[6, 33]) {{
               %0 = const #w : f32[40, 33]{storage}
               %1 = matmul %x, %0 : f32[6, 33]  // fc
               return %1
             }}"
        ));
        agrees(&g, &[("x", &x)], Tolerance::REDUCTION);
        assert_eq!(constant_bytes(&g), bytes, "{storage}");
    }
}

/// Matrices that are no one constant matrix are made numbers by loops.
#[test]
fn a_product_with_several_narrow_matrices_reads_numbers() {
    let (g, _) = parse_with_random_constants(
        "graph @matrices(%x: f32[3, 4, 20]) -> (y: f32[3, 4, 9]) {
           %0 = const #w : f32[3, 20, 9] stored i8(axis = 0)
           %1 = matmul %x, %0 : f32[3, 4, 9]  // fc
           return %1
         }",
    );
    agrees(&g, &[("x", &normal(&[3, 4, 20], 2, 0))], Tolerance::REDUCTION);
}

fn in_type(dtype: DType, shape: &[usize], stream: u64) -> Tensor {
    margay_ir::ops::Numbers::of(&normal(shape, 4, stream)).unwrap().into_tensor(dtype, shape).unwrap()
}

/// Rounding happens where the graph says, wherever code is fused.
#[test]
fn graphs_in_16_bits_round_every_value() {
    for (dtype, steps) in [(DType::F16, 2e-3), (DType::BF16, 1.6e-2)] {
        let (g, _) = parse_with_random_constants(&format!(
            "graph @half(%x: {d}[6, 37], %y: {d}[37], %z: f32[6, 37]) -> (a: {d}[6, 37], b: f32[6, 37], c: {d}[6], d: {d}[6, 37]) {{
               %0 = add %x, %y : {d}[6, 37]  // sum
               %1 = mul %0, %0 : {d}[6, 37]  // square
               %2 = sub %1, %x : {d}[6, 37]  // difference
               %3 = cast %2 {{to = f32}} : f32[6, 37]  // wide
               %4 = add %3, %z : f32[6, 37]  // wide_sum
               %5 = reduce %x {{axes = [1], kind = sum}} : {d}[6]  // total
               %6 = softmax %x {{axis = 1}} : {d}[6, 37]  // soft
               %7 = mul %6, %y : {d}[6, 37]  // scaled
               return %2, %4, %5, %7
             }}",
            d = dtype.name()
        ));
        let inputs = [in_type(dtype, &[6, 37], 0), in_type(dtype, &[37], 1), normal(&[6, 37], 4, 2)];
        let named = [("x", &inputs[0]), ("y", &inputs[1]), ("z", &inputs[2])];
        agrees(&g, &named, Tolerance { relative: steps, absolute: steps });
        // Sums, products and differences of two numbers are rounded as the reference rounds them.
        let expected = eval::run(&g, &named).unwrap();
        let executable = jit(&g, &Binding::new(), &*backend::native()).unwrap();
        let found = Session::new(&executable, SessionOptions { threads: 1 }).unwrap().run(&named).unwrap();
        assert_close("a", &found[0].1, &expected[0], Tolerance::EXACT);
        assert_close("b", &found[1].1, &expected[1], Tolerance::ELEMENTWISE);
    }
}

#[test]
fn products_and_attention_in_16_bits_run_on_kernels_for_f32() {
    for (dtype, steps) in [(DType::F16, 3e-3), (DType::BF16, 2e-2)] {
        let d = dtype.name();
        let (g, _) = parse_with_random_constants(&format!(
            "graph @half(%x: {d}[2, 5, 24], %k: {d}[2, 24, 7]) -> (a: {d}[2, 5, 7], b: {d}[2, 5, 24], c: {d}[2, 5, 3]) {{
               %0 = matmul %x, %k : {d}[2, 5, 7]  // scores
               %1 = transpose %k {{perm = [0, 2, 1]}} : {d}[2, 7, 24]
               %2 = reshape %x {{shape = [2, 1, 5, 24]}} : {d}[2, 1, 5, 24]
               %3 = reshape %1 {{shape = [2, 1, 7, 24]}} : {d}[2, 1, 7, 24]
               %4 = attention %2, %3, %3 {{scale = 0.2}} : {d}[2, 1, 5, 24]  // attention
               %5 = reshape %4 {{shape = [2, 5, 24]}} : {d}[2, 5, 24]
               %6 = add %5, %x : {d}[2, 5, 24]  // residual
               %7 = slice %x {{starts = [0, 0, 0], ends = [2, 5, 3], steps = [1, 1, 1]}} : {d}[2, 5, 3]
               %8 = neg %7 : {d}[2, 5, 3]
               return %0, %6, %8
             }}"
        ));
        let inputs = [in_type(dtype, &[2, 5, 24], 0), in_type(dtype, &[2, 24, 7], 1)];
        agrees(&g, &[("x", &inputs[0]), ("k", &inputs[1])], Tolerance { relative: steps, absolute: steps });
    }
}

/// A weight of a model in bf16 is stored in bf16, and one in f16 as a kernel reads it.
#[test]
fn weights_of_16_bit_models_are_packed() {
    for (dtype, steps, bytes) in [(DType::F16, 3e-3, 24 * 32 * 4), (DType::BF16, 2e-2, 24 * 32 * 2)] {
        let d = dtype.name();
        let weight = margay_ir::Payload::new(in_type(dtype, &[24, 20], 3));
        let mut g = Graph::new("half");
        let x = g.add_input("x", margay_ir::TensorType::known(dtype, &[5, 24]));
        let w = g.add(margay_ir::ops::Const { payload: weight }, &[], margay_ir::Origin::default()).unwrap();
        let y = g.add(margay_ir::ops::MatMul, &[x, w], margay_ir::Origin::named("fc")).unwrap();
        g.add_output("y", y);
        agrees(&g, &[("x", &in_type(dtype, &[5, 24], 0))], Tolerance { relative: steps, absolute: steps });
        assert_eq!(constant_bytes(&g), bytes, "{d}");
    }
}

/// Three layers of 96, 160 and 33 units, the first of them wide enough to be sketched.
fn source() -> Model {
    let (graph, _) = parse_with_random_constants(
        "graph @layers(%x: f32[N, 96]) -> (y: f32[N, 33]) {
           %0 = const #u : f32[96, 160]  // up.weight
           %1 = matmul %x, %0 : f32[N, 160]  // up
           %2 = gelu %1 : f32[N, 160]  // act
           %3 = const #d : f32[160, 33]  // down.weight
           %4 = matmul %2, %3 : f32[N, 33]  // down
           return %4
         }",
    );
    Model::new(graph, "layers", &mut Dump::none()).unwrap()
}

/// The bytes that a report says are those in the file, for dense models and for ranks that fill no panel.
#[test]
fn reports_say_the_bytes_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let samples = Samples::new(vec![("x".into(), normal(&[24, 96], 5, 0))]).unwrap();
    let base = CompileOptions { dims: vec![("N".into(), vec![24])], ..CompileOptions::default() };
    let sketched = CompileOptions { goal: Goal::Bytes(Budget::Fraction(0.5)), ..base.clone() };
    let mut plan = compile(&source(), Some(&samples), &sketched, &Silent).unwrap().plan;
    plan.sites.insert("up".into(), Choice::new("lowrank", &BTreeMap::from([("rank", 18)])));
    let plans: [Option<Plan>; 2] = [None, Some(plan)];
    for (plan, precision) in plans.iter().flat_map(|p| Precision::ALL.map(|precision| (p, precision))) {
        let options = CompileOptions { plan: plan.clone(), precision, ..base.clone() };
        let compiled = compile(&source(), Some(&samples), &options, &Silent).unwrap();
        let path = folder.path().join("model.margay");
        compiled.write(&path, true, &mut Dump::none()).unwrap();
        let artifact = Artifact::open(&path).unwrap();
        let stored = &artifact.description().constants;
        let all: u64 = stored.iter().map(|c| c.range.len() as u64).sum();
        let (name, report) = (precision.name(), &compiled.report);
        assert_eq!(report.bytes_after, all, "{name}, planned: {}", plan.is_some());
        let sites: u64 = report.modules.iter().map(|m| m.bytes_after).sum();
        assert!(plan.is_none() || sites == all, "{name}: {sites} of {all}");
        // Panels of 32 columns.
        assert_eq!(report.bytes_before, 4 * (96 * 160 + 160 * 64), "{name}");
    }
}

/// A budget counts what is stored: padding of layouts, scales and new biases included.
#[test]
fn budgets_count_what_is_stored() {
    let samples = Samples::new(vec![("x".into(), normal(&[24, 96], 5, 0))]).unwrap();
    for (precision, shares) in [
        (Precision::F32, [0.9, 0.5, 0.25]),
        (Precision::Bf16, [0.45, 0.25, 0.12]),
        (Precision::Int8, [0.25, 0.2, 0.12]),
        (Precision::Int4, [0.14, 0.1, 0.08]),
    ] {
        for share in shares {
            for samples in [Some(&samples), None] {
                let goal = Goal::Bytes(Budget::Fraction(share));
                let dims = vec![("N".into(), vec![24])];
                let options = CompileOptions { goal, precision, dims, ..CompileOptions::default() };
                let compiled = compile(&source(), samples, &options, &Silent).unwrap();
                let report = &compiled.report;
                let found = report.bytes_after as f64 / report.bytes_before as f64;
                assert!(found <= share, "{} at {share}: {found}", precision.name());
                assert!(found > 0.6 * share, "{} at {share}: {found}", precision.name());
            }
        }
    }
}

/// A plan stores the factors of one site narrow, and a site that it does not sketch.
#[test]
fn plans_say_how_sites_are_stored() {
    let samples = Samples::new(vec![("x".into(), normal(&[24, 96], 5, 0))]).unwrap();
    let plan = |choices: &str| {
        let head = format!(
            "version = 1\nmodel = \"{}\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0",
            source().hash
        );
        margay_passes::sketch::read_plan(&format!("[plan]\n{head}\n[modules]\n{choices}\n"))
    };
    let planned = |choices: &str, precision| {
        let plan = Some(plan(choices).unwrap());
        let dims = vec![("N".into(), vec![24])];
        let options = CompileOptions { plan, precision, dims, ..CompileOptions::default() };
        compile(&source(), Some(&samples), &options, &Silent).map_err(|e| e.to_string())
    };
    let up = "\"up\" = { scheme = \"lowrank\", rank = 18, storage = \"int8\" }";
    let storages = |choices: &str, precision| -> Vec<String> {
        let compiled = planned(choices, precision).unwrap();
        let text = compiled.graph.to_string();
        let of = |line: &str| {
            Some(line.split_once(" = const ")?.1.split_once(" : ")?.1.split("  //").next()?.to_owned())
        };
        let mut found: Vec<String> = text.lines().filter_map(of).filter(|c| c.contains(", ")).collect();
        found.sort();
        found
    };
    let f32 = Precision::F32;
    let narrow = ["f32[18, 160] stored i8(axis = 1)", "f32[96, 18] stored i8(axis = 1)"];
    assert_eq!(storages(up, f32), ["f32[160, 33]", narrow[0], narrow[1]]);
    // Elsewhere the model's own storage holds.
    assert_eq!(storages(up, Precision::Bf16), ["f32[160, 33] stored bf16", narrow[0], narrow[1]]);
    let both = format!("{up}\n\"down\" = {{ scheme = \"dense\", storage = \"bf16\" }}");
    assert_eq!(storages(&both, f32), ["f32[160, 33] stored bf16", narrow[0], narrow[1]]);
    let pair = "\"up+down\" = { scheme = \"neurons\", units = 64, storage = \"int8\" }";
    let units = ["f32[64, 33] stored i8(axis = 1)", "f32[96, 64] stored i8(axis = 1)"];
    assert_eq!(storages(pair, f32), units);
    // What is said of a site is what is stored and what it costs.
    let (wide, narrow) = (planned(&up.replace("int8", "f32"), f32).unwrap(), planned(&both, f32).unwrap());
    let module = |name: &str| narrow.report.modules.iter().find(|m| m.name == name).unwrap();
    assert_eq!(module("up").now(), "lowrank, rank 18, stored int8");
    assert_eq!(module("down").now(), "dense, stored bf16");
    assert!(module("up").bytes_after < wide.report.modules[0].bytes_after / 3);
    assert!(module("down").bytes_after < module("down").bytes_before);
    assert!(narrow.report.bytes_after < wide.report.bytes_after / 2);
    let error = |c: &margay_driver::Compiled| c.report.held_out.as_ref().unwrap().relative_l2;
    assert!(error(&narrow) > error(&wide) && error(&narrow) < 1.1 * error(&wide));
    // Plans keep it when they are written.
    assert_eq!(
        plan(&up.replace("int8", "i8(axis = 1)")).unwrap().sites["up"].storage.as_deref(),
        Some("i8(axis = 1)")
    );
    let few = planned(&up.replace("int8", "int4"), f32).unwrap();
    assert_eq!(
        few.report.modules.iter().find(|m| m.name == "up").unwrap().now(),
        "lowrank, rank 18, stored int4"
    );
    let refused = plan(&up.replace("int8", "int7")).unwrap_err().to_string();
    assert_eq!(
        refused,
        "line 8, site `up`: unknown storage `int7`; known are `f32`, `bf16`, `int8`, `int4`, and such as `i8(axis = 1)`"
    );
    let twice = format!("{up}\n\"up+down\" = {{ scheme = \"dense\", storage = \"bf16\" }}");
    let refused = planned(&twice, f32).err().unwrap();
    assert_eq!(refused, "plan: `up+down`: `up.weight` is to be stored as `bf16` and otherwise");
}

#[test]
fn convolutions_are_stored_as_they_are() {
    let (graph, _) = parse_with_random_constants(
        "graph @image(%x: f32[1, 3, 8, 8]) -> (y: f32[1, 16, 8, 8]) {
           %0 = const #k : f32[16, 3, 3, 3]  // conv.weight
           %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[1, 16, 8, 8]  // conv
           return %1
         }",
    );
    let source = Model::new(graph, "image", &mut Dump::none()).unwrap();
    let mut plan = compile(&source, None, &CompileOptions::default(), &Silent).unwrap().plan;
    plan.sites.insert("conv".into(), Choice { storage: Some("int8".into()), ..Choice::dense() });
    let options = CompileOptions { plan: Some(plan), ..CompileOptions::default() };
    let refused = compile(&source, None, &options, &Silent).err().unwrap().to_string();
    assert_eq!(refused, "plan: `conv`: storage `int8` is for products, found conv layers");
}

/// The rows of a weight behind a flattened image change their order for the sake of channels last, not their storage.
#[test]
fn a_weight_behind_an_image_stays_narrow() {
    let text = "graph @net(%x: f32[N, 8, 6, 6]) -> (y: f32[N, 64]) {
      %0 = const #k : f32[8, 8, 1, 1]  // conv.weight
      %1 = conv %x, %0 : f32[N, 8, 6, 6]  // conv
      %2 = reshape %1 {shape = [N, 288]} : f32[N, 288]
      %3 = const #w : f32[288, 64]  // fc.weight
      %4 = matmul %2, %3 : f32[N, 64]  // fc
      return %4
    }";
    let (g, _) = parse_with_random_constants(text);
    let source = Model::new(g, "net", &mut Dump::none()).unwrap();
    let bytes = |precision| {
        let options =
            CompileOptions { dims: vec![("N".into(), vec![4])], precision, ..CompileOptions::default() };
        compile(&source, None, &options, &Silent).unwrap().report.bytes_after
    };
    let [f32s, bf16, int8] = [Precision::F32, Precision::Bf16, Precision::Int8].map(bytes);
    let convolution = 4 * 8 * 8;
    assert!(f32s >= 4 * 288 * 64 + convolution);
    assert!(bf16 <= f32s / 2 + 4 * convolution, "{bf16} of {f32s}");
    assert!(int8 <= f32s / 4 + 4 * convolution + 4 * 64, "{int8} of {f32s}");
}

/// An exported model computes what the reference computes from the stored constants, rounding included.
#[test]
fn an_exported_model_has_the_numbers_that_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let x = normal(&[24, 96], 8, 0);
    let base = CompileOptions { dims: vec![("N".into(), vec![24])], ..CompileOptions::default() };
    let outputs = |g: &Graph| eval::run(g, &[("x", &x)]).unwrap();
    let exact = outputs(&source().graph);
    for precision in [Precision::Bf16, Precision::Int8, Precision::Int4] {
        let compiled =
            compile(&source(), None, &CompileOptions { precision, ..base.clone() }, &Silent).unwrap();
        let path = folder.path().join("model.onnx");
        compiled.export(&path).unwrap();
        let again = open(&path).unwrap().graph;
        let (expected, found) = (outputs(&compiled.graph), outputs(&again));
        // The file has the elements and their scales, and not the numbers.
        let bytes = std::fs::metadata(&path).unwrap().len() as usize;
        let elements: usize = again.payloads().iter().map(|p| p.tensor().len()).sum();
        assert!(bytes < 3 * elements, "{bytes} bytes of {elements} numbers");
        let kept = |p: &margay_ir::Payload| match precision {
            Precision::Int8 => p.storage().dtype == DType::I8,
            _ => p.storage() == precision.storage(1),
        };
        let stored = again.payloads().into_iter().any(kept);
        assert_eq!(stored, precision != Precision::Bf16, "{}", precision.name());
        assert_close(precision.name(), &found[0], &expected[0], Tolerance::ELEMENTWISE);
        assert!(
            margay_testkit::max_error(&found[0], &exact[0]) > 1e-4,
            "{}: nothing was rounded",
            precision.name()
        );
    }
}

/// A table that is gathered from and multiplied with; a product and a table by name.
#[test]
fn what_is_named_is_stored_as_it_says_and_other_readers_keep_their_numbers() {
    let source = "graph @before(%i: i64[4], %x: f32[N, 8]) -> (a: f32[4, 8], y: f32[N, 16], z: f32[N, 16]) {
           %0 = const #t : f32[16, 8]  // table
           %1 = gather %0, %i {axis = 0} : f32[4, 8]  // rows
           %2 = const #u : f32[8, 16]  // first.weight
           %3 = matmul %x, %2 : f32[N, 16]  // first
           %4 = matmul %x, %2 : f32[N, 16]  // second
           return %1, %3, %4
         }";
    let stored = |named: &[(&str, &str)]| {
        let (mut g, names) = parse_with_random_constants(source);
        let named = named.iter().map(|(n, s)| (n.to_string(), StoreAs::parse(s).unwrap())).collect();
        StoreConstants { named, ..StoreConstants::default() }.run(&mut g, &mut Cx::default()).unwrap();
        let text = normalized(&g, "after", &names);
        let constants = text.lines().filter(|l| l.contains("const")).map(|l| l.trim()[5..].to_string());
        let mut constants: Vec<String> = constants.collect();
        constants.sort();
        constants
    };
    let (table, weight) = ("const #t : f32[16, 8]", "const #u : f32[8, 16]");
    let origin = |text: &str, storage: &str, name: &str| format!("{text}{storage}  // {name}");
    let plain = origin(weight, "", "first.weight");
    assert_eq!(stored(&[("table", "int8")]), [origin(table, " stored i8(axis = 0)", "table"), plain.clone()]);
    assert_eq!(
        stored(&[("first", "i8(axis = 0, block = 4)"), ("nobody", "bf16")]),
        [
            origin(table, "", "table"),
            plain,
            origin(weight, " stored i8(axis = 0, block = 4)", "first.weight")
        ]
    );
    let both = stored(&[("first.weight", "bf16")]);
    assert_eq!(
        both[1..],
        [origin(weight, " stored bf16", "first.weight"), origin(weight, " stored bf16", "first.weight")]
    );
    assert_eq!(stored(&[("table", "i8(axis = 5)")])[0], origin(table, "", "table"));
}

/// Tables count for nothing in the bytes of the weights of products, however they are stored.
#[test]
fn tables_have_int8_rows_beside_narrow_products() {
    let (graph, _) = parse_with_random_constants(
        "graph @net(%i: i64[N]) -> (y: f32[N, 32], again: f32[N, 128]) {
           %0 = const #t : f32[50, 128]  // table
           %1 = gather %0, %i {axis = 0} : f32[N, 128]  // rows
           %2 = const #w : f32[128, 32]  // fc.weight
           %3 = matmul %1, %2 : f32[N, 32]  // fc
           return %3, %1
         }",
    );
    let source = Model::new(graph, "net", &mut Dump::none()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let compiled = |precision, name: &str| {
        let dims = vec![("N".into(), vec![4])];
        let options = CompileOptions { precision, dims, ..CompileOptions::default() };
        let compiled = compile(&source, None, &options, &Silent).unwrap();
        let path = folder.path().join(name);
        compiled.write(&path, true, &mut Dump::none()).unwrap();
        let artifact = Artifact::open(&path).unwrap();
        let all: u64 = artifact.description().constants.iter().map(|c| c.range.len() as u64).sum();
        (compiled.report.bytes_after, all, compiled.graph.to_string())
    };
    let (wide, numbers, _) = compiled(Precision::F32, "f32");
    assert_eq!((wide, numbers), (4 * 128 * 32, 4 * 128 * 32 + 4 * 50 * 128));
    let table = 50 * 128 + 50 * 4;
    for (precision, weights) in
        [(Precision::Int8, 32 * 4 + 128 * 32), (Precision::Int4, 32 * (2 * 2 + 4 + 16 * 4))]
    {
        let (bytes, all, text) = compiled(precision, precision.name());
        assert_eq!((bytes, all), (weights, weights + table), "{}", precision.name());
        assert!(text.contains(" : f32[50, 128] stored i8(axis = 0)  // table"), "{text}");
    }
}

/// Layers of 96, 160 and 33 units that compute in a type.
fn in_floats(dtype: DType) -> Model {
    let text = "graph @layers(%x: f32[N, 96]) -> (y: f32[N, 33]) {
           %0 = const #u : f32[96, 160]  // up.weight
           %1 = matmul %x, %0 : f32[N, 160]  // up
           %2 = const #b : f32[160]  // up.bias
           %3 = add %1, %2 : f32[N, 160]  // up/Add
           %4 = gelu %3 : f32[N, 160]  // act
           %5 = const #d : f32[160, 33]  // down.weight
           %6 = matmul %4, %5 : f32[N, 33]  // down
           return %6
         }";
    let (graph, _) = parse_with_random_constants(&text.replace("f32", dtype.name()));
    Model::new(graph, "layers", &mut Dump::none()).unwrap()
}

/// Layers in 16 bits are sketched and rounded as those in f32 are, and what replaces a weight is stored as that was.
#[test]
fn layers_in_16_bits_are_sketched_and_rounded() {
    let compiled = |dtype, goal: &Goal, precision| {
        let samples = Samples::new(vec![("x".into(), in_type(dtype, &[400, 96], 0))]).unwrap();
        let dims = vec![("N".into(), vec![24])];
        let options = CompileOptions { goal: goal.clone(), precision, dims, ..CompileOptions::default() };
        compile(&in_floats(dtype), Some(&samples), &options, &Silent).unwrap()
    };
    let half = Goal::Flops(Budget::Fraction(0.5));
    for (goal, precision) in
        [(&half, Precision::F32), (&half, Precision::Int4), (&Goal::Dense, Precision::Int8)]
    {
        let wide = compiled(DType::F32, goal, precision);
        for (dtype, steps) in [(DType::F16, 0.01), (DType::BF16, 0.05)] {
            let found = compiled(dtype, goal, precision);
            let error = |c: &margay_driver::Compiled| c.report.held_out.as_ref().unwrap().relative_l2;
            let (expected, error) = (error(&wide), error(&found));
            assert!((error - expected).abs() < steps + 0.1 * expected, "{dtype}: {error}, f32 {expected}");
            let sketched =
                |c: &margay_driver::Compiled| c.report.modules.iter().filter(|m| m.is_sketched()).count();
            assert_eq!(sketched(&found), sketched(&wide), "{dtype}");
            assert_eq!(found.report.flops_after, wide.report.flops_after, "{dtype}");
            let stays = found.report.warnings.iter().any(|w| w.contains("stay as they are"));
            assert!(!stays, "{:?}", found.report.warnings);
            let text = found.graph.to_string();
            let output = &found.graph.outputs()[0];
            assert_eq!(found.graph.ty(output.value).dtype, dtype);
            let products = text.matches(" = matmul ").count();
            let stored = match precision {
                Precision::F32 => format!(" stored {}  //", dtype.name()),
                precision => format!(" stored {}  //", precision.storage(1)),
            };
            // Of the constants with two axes.
            let matrix =
                |line: &&str| line.rsplit(" : ").next().unwrap().split(']').next().unwrap().contains(", ");
            let found = text.lines().filter(|line| line.contains(&stored)).filter(matrix).count();
            assert_eq!(found, products, "{stored}\n{text}");
        }
    }
}

/// Numbers that f16 does not hold stay f32.
#[test]
fn what_f16_does_not_hold_is_not_stored_so() {
    let (mut g, _) = parse_with_random_constants(
        "graph @large(%x: f32[4, 8]) -> (y: f32[4, 8]) {
           %0 = const #w : f32[8, 8]  // w
           %1 = const 1e5 : f32
           %2 = mul %0, %1 : f32[8, 8]
           %3 = matmul %x, %2 : f32[4, 8]  // fc
           return %3
         }",
    );
    margay_passes::FoldConstants::default().run(&mut g, &mut Cx::default()).unwrap();
    let products = StoreAs::parse("f16").unwrap();
    let mut cx = Cx::default();
    StoreConstants { products, ..StoreConstants::default() }.run(&mut g, &mut cx).unwrap();
    assert!(!g.to_string().contains("stored"), "{g}");
    assert!(cx.remarks[0].message.starts_with("f16 holds numbers up to 65504, found"), "{:?}", cx.remarks);
}
