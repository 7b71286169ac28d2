//! What people who use the program would otherwise stumble over: numbers that agree, warnings, inputs that are checked before
//! work, runs that are kept, and the commands of the documentation.

use std::fs;
use std::process::{Command, Stdio};

use margay_onnx::{Attribute, OnnxNode};
use margay_onnx::{External, OnnxDim, OnnxGraph, OnnxValue};
use margay_tensor::{DType, Tensor};

use crate::place::{Place, images, json, node, write_model_of};

/// A folder with the demo model sketched to half its bytes, and labels: what the model itself answers, but for one.
fn place() -> Place {
    let place = Place::new();
    let rows = 40;
    let pixels = images(rows, 3);
    place.write_npz("data.npz", &[("image", pixels.clone())]);
    place.done("run model.onnx --data data.npz --outputs answers.npz");
    let answers = place.read_npz("answers.npz").remove(0).1.to_vec::<f32>().unwrap();
    let greatest = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
    let mut labels: Vec<i64> = answers.chunks_exact(10).map(greatest).collect();
    labels[7] = (labels[7] + 1) % 10;
    let labels = Tensor::from_slice(&[rows], &labels).unwrap();
    place.write_npz("labelled.npz", &[("image", pixels), ("label", labels)]);
    place
}

#[test]
fn every_command_counts_the_same_bytes_and_warns() {
    let place = place();
    // The same three images again and again.
    let few = images(3, 9).to_vec::<f32>().unwrap();
    let again: Vec<f32> = (0..12).flat_map(|i| few[i % 3 * 784..][..784].to_vec()).collect();
    place.write_npz("again.npz", &[("image", Tensor::from_slice(&[12, 1, 28, 28], &again).unwrap())]);
    let words = "compile model.onnx -o s.margay --data again.npz --budget-bytes 50% --curves c.csv \
                 --save-plan plan.toml --target-cpu portable";
    let ran = place.done(&format!("{words} --json"));
    let report = json(&ran.stdout);
    for said in ["12 samples are few", "9 of 12 samples are the same as others"] {
        assert!(ran.stderr.contains(&format!("warning: {said}")), "{said}: {}", ran.stderr);
        assert!(report["warnings"].to_string().contains(said));
    }
    let constants = &report["constant_bytes_after"];
    assert!(constants.as_u64() >= report["bytes_after"].as_u64());
    let inspected = json(&place.done("inspect s.margay --json").stdout);
    assert_eq!(&inspected["constant_bytes"], constants);
    let parts = ["constant_bytes", "graph_constant_bytes", "code_bytes", "source_bytes", "other_bytes"];
    let sum: u64 = parts.iter().map(|part| inspected[part].as_u64().unwrap()).sum();
    assert_eq!(sum, place.bytes("s.margay").len() as u64);
    let bench = json(&place.done("bench model.onnx s.margay --data data.npz --rounds 1 --json").stdout);
    assert_eq!(&bench["models"][1]["constant_bytes"], constants);

    let curves = String::from_utf8(place.bytes("c.csv")).unwrap();
    let mut lines = curves.lines();
    assert!(lines.next().unwrap().starts_with("layer,scheme,settings,layer_error,output_error,bytes_before"));
    let of = |layer: &str| curves.lines().filter(|l| l.starts_with(&format!("{layer},lowrank,"))).count();
    assert!(of("conv2") > 3 && of("fc1") > 3, "{curves}");

    // A plan is for its own samples, unless somebody says otherwise.
    let replay = "compile model.onnx -o r.margay --data samples.npz --plan plan.toml --target-cpu portable";
    let refused = place.run(replay);
    assert!(refused.code == 2 && refused.stderr.contains("`--recalibrate`"), "{}", refused.stderr);
    let replayed = place.done(&format!("{replay} --recalibrate --save-plan again.toml"));
    assert!(replayed.stdout.contains("replay of a plan"), "{}", replayed.stdout);
    let plans = ["plan.toml", "again.toml"].map(|name| String::from_utf8(place.bytes(name)).unwrap());
    let modules = |plan: &str| plan.split_once("[modules]").unwrap().1.to_owned();
    assert_eq!(modules(&plans[0]), modules(&plans[1]));
    assert_ne!(plans[0], plans[1], "the second one is for the other samples");

    // A sketch is compared with what its report states.
    let compared = place.done("compare model.onnx s.margay --data again.npz --json");
    let limit = json(&compared.stdout)["max_error"].as_f64().unwrap();
    let stated = report["held_out"]["relative_l2"].as_f64().unwrap();
    assert!((limit - (2.0 * stated).min(stated.max(1.0))).abs() < 1e-12, "{limit} {stated}");
    for check in ["--max-error 0.0001", "--rtol 0.001"] {
        let ran = place.run(&format!("compare model.onnx s.margay --data data.npz {check}"));
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(!ran.stderr.contains("help:"), "{}", ran.stderr);
    }
    place.done("compile model.onnx -o unmeasured.margay --budget-bytes 50%");
    let ran = place.run("compare model.onnx unmeasured.margay --data data.npz");
    assert!(ran.code == 1 && ran.stderr.contains("say by `--max-error E`"), "{}", ran.stderr);
    // Layers are compared on all samples, and an exported model is the same, whatever its nodes are called.
    assert_eq!(json(&compared.stdout)["layer_samples"], 12);
    place.done("export model.onnx -o dense.onnx");
    let same = json(&place.done("compare model.onnx dense.onnx --data data.npz --json").stdout);
    let layers = same["layers"].as_array().unwrap();
    assert!(layers.len() > 5, "{same}");
    assert!(layers.iter().all(|l| l["cumulative"] == 0.0 && l["isolated"].as_f64() < Some(1e-5)), "{same}");
    // Whatever works on samples tells what is wrong with them.
    for command in [
        "export model.onnx -o e.onnx --budget-bytes 50%",
        "pareto model.onnx",
        "sensitivity model.onnx",
        "recover s.margay --teacher model.onnx -o r.margay --layers-only",
    ] {
        let told = place.run(&format!("{command} --data again.npz")).stderr;
        assert!(told.contains("warning: 9 of 12 samples are the same as others"), "{command}: {told}");
        assert_eq!(told.contains("held out"), !command.starts_with("sensitivity"), "{command}: {told}");
    }
    for command in ["compile s.margay -o t.margay", "check s.margay"] {
        let ran = place.run(command);
        assert_eq!(ran.code, 2);
        assert!(ran.stderr.contains("`s.margay` is an artifact, expected an ONNX file"), "{}", ran.stderr);
    }
}

#[test]
fn another_goal_takes_calibration_and_fits_from_the_cache() {
    let place = place();
    let compile = |name: &str, words: &str| {
        place.done(&format!(
            "compile model.onnx -o {name}.margay --data data.npz {words} --target-cpu portable"
        ));
        place.bytes(&format!("{name}.margay"))
    };
    let kept = || {
        let entries = fs::read_dir(place.path("kept")).unwrap().map(|e| e.unwrap());
        let mut all: Vec<_> =
            entries.map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap())).collect();
        all.sort();
        all
    };
    for budget in ["70%", "50%"] {
        let plain = compile("plain", &format!("--budget-bytes {budget}"));
        let cached = compile("cached", &format!("--budget-bytes {budget} --cache kept"));
        assert!(plain == cached, "{budget}: the cache changes the artifact");
    }
    let first = kept();
    // Sums of inputs and of gradients, decompositions, orders of hidden units, weights of layers, the error of int8.
    assert_eq!(first.len(), 6, "{first:?}");
    compile("again", "--budget-bytes 60% --cache kept");
    assert_eq!(kept(), first, "nothing was computed again");
    compile("again", "--budget-bytes 60% --cache kept --seed 1");
    assert_eq!(kept().len(), 12, "another seed draws other samples");
    // What was altered is computed again.
    let (name, _) = &first[0];
    let path = place.path("kept").join(name);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cached = compile("cached", "--budget-bytes 50% --cache kept");
    assert!(cached == compile("plain", "--budget-bytes 50%"));
    assert!(fs::read(&path).unwrap() == whole);
}

#[test]
fn inputs_are_checked_before_any_work() {
    let place = Place::new();
    place.done("compile model.onnx -o a.margay --target-cpu portable");
    let spoiled = |value: f32| {
        let mut pixels = images(20, 1).to_vec::<f32>().unwrap();
        pixels[784 * 6 + 5] = value;
        Tensor::from_slice(&[20, 1, 28, 28], &pixels).unwrap()
    };
    let label = || ("label", Tensor::zeros(DType::I64, &[20]).unwrap());
    let zeros = |dtype, shape: &[usize]| ("image", Tensor::zeros(dtype, shape).unwrap());
    place.write_npz("nan.npz", &[("image", spoiled(f32::NAN)), label()]);
    place.write_npz("infinite.npz", &[("image", spoiled(f32::INFINITY)), label()]);
    place.write_npz("wide.npz", &[zeros(DType::F32, &[20, 1, 28, 30]), label()]);
    place.write_npz("axes.npz", &[zeros(DType::F32, &[20, 28, 28]), label()]);
    place.write_npz("bytes.npz", &[zeros(DType::U8, &[20, 1, 28, 28]), label()]);
    place.write_npz("other.npz", &[("picture", images(20, 1)), label()]);
    let wide = "axis 3 is 30, expected 28";
    for (data, message) in [
        ("nan", "`image` is NaN in row 6, at [6, 0, 0, 5]"),
        ("infinite", "`image` is inf in row 6, at [6, 0, 0, 5]"),
        ("wide", wide),
        ("axes", "it has 3 axes instead of 4"),
        ("bytes", "in numpy, `image.astype(\"float32\")` converts it"),
        ("other", "the model takes `image`: f32["),
    ] {
        for command in [
            "compile model.onnx -o o.margay --max-error 0.1",
            "explain model.onnx --budget-bytes 50%",
            "export model.onnx -o o.onnx --budget-bytes 50%",
            "pareto model.onnx",
            "sensitivity model.onnx",
            "train model.onnx --labels label --export t.onnx --batch 4",
            "recover model.onnx --teacher model.onnx -o r.margay",
            "evaluate model.onnx a.margay --labels label",
            "evaluate a.margay --labels label",
            "bench model.onnx a.margay --rounds 1",
            "bench a.margay --rounds 1",
            "compare model.onnx a.margay",
            "compare a.margay model.onnx",
        ] {
            let ran = place.run(&format!("{command} --data {data}.npz"));
            assert_eq!(ran.code, 2, "{command} --data {data}.npz: {}", ran.stderr);
            assert!(ran.stderr.contains(message), "{command} --data {data}.npz: {}", ran.stderr);
            assert!(!ran.stderr.contains("help:"), "no other advice: {}", ran.stderr);
        }
    }
    // A model may take what is not finite, but that is told.
    let ran = place.done("run a.margay --data nan.npz --outputs out.npz");
    assert!(ran.stderr.contains("warning: `image` is NaN in row 6"), "{}", ran.stderr);
    let ran = place.run("run a.margay --data wide.npz --outputs out.npz");
    assert!(ran.code == 2 && ran.stderr.contains(wide), "{}", ran.stderr);
    let ran = place.run("explain model.onnx --output-name logit");
    assert!(ran.stderr.contains("no floating point output `logit`; it has `logits`"), "{}", ran.stderr);
    let ran = place.run("bench model.onnx --data in.npz --mask image --rounds 1");
    assert!(ran.stderr.contains("the mask `image` has 4 axes, expected two"), "{}", ran.stderr);
}

#[test]
fn what_stands_for_missing_data_is_measured() {
    let place = Place::new();
    let numbers = |values: &[f32]| Tensor::from_slice(&[1, 3], values).unwrap();
    let imputed = |last: &str| {
        vec![
            node("missing", "IsNaN", &["x"], "m"),
            node("filled", "Where", &["m", "mean", "x"], "f"),
            node("sum", "Add", &["f", last], "y"),
        ]
    };
    let mean = || vec![("mean".to_owned(), numbers(&[0.5, 1.0, 2.0]))];
    write_model_of(&place.path("imputed.onnx"), &[-1, 3], imputed("f"), mean());
    write_model_of(&place.path("spread.onnx"), &[-1, 3], imputed("x"), mean());
    let mut values = [0.25f32; 12];
    (values[4], values[11]) = (f32::NAN, f32::NAN);
    let label = Tensor::from_slice(&[4], &[0i64, 1, 0, 2]).unwrap();
    place.write_npz("data.npz", &[("x", Tensor::from_slice(&[4, 3], &values).unwrap()), ("label", label)]);
    place.done("compile imputed.onnx -o imputed.margay --dim N=1..4 --target-cpu portable");
    for command in ["bench MODEL --rounds 1", "compare MODEL imputed.onnx", "evaluate MODEL --labels label"] {
        for model in ["imputed.onnx", "imputed.margay"] {
            let ran = place.done(&format!("{} --data data.npz", command.replace("MODEL", model)));
            assert!(!ran.stderr.contains("NaN"), "{command}: {}", ran.stderr);
        }
        let ran = place.run(&format!("{} --data data.npz", command.replace("MODEL", "spread.onnx")));
        assert_eq!(ran.code, 2, "{command}");
        assert!(ran.stderr.contains("`x` is NaN in row 1, at [1, 1]"), "{command}: {}", ran.stderr);
    }
    place.done("run imputed.onnx --data data.npz --outputs out.npz");
    let [(_, y)] = &place.read_npz("out.npz")[..] else { panic!("one output") };
    assert_eq!(y.to_vec::<f32>().unwrap()[3..6], [0.5, 2.0, 0.5]);
}

/// Token ids and a mask of another name than most: a table, and two layers with an output each.
fn write_encoder(place: &Place) {
    let value = |name: &str, dtype: DType, axes: &[i64]| OnnxValue {
        name: name.into(),
        dtype: Some(dtype),
        narrow: None,
        dims: Some(
            [OnnxDim::Symbol("N".into())]
                .into_iter()
                .chain(axes.iter().map(|a| OnnxDim::Value(*a)))
                .collect(),
        ),
    };
    let normal = |shape: &[usize], stream: u64| {
        let mut numbers = vec![0f32; shape.iter().product()];
        margay_tensor::random::Philox::new(8, stream).fill_normal_f32(0, &mut numbers);
        Tensor::from_slice(shape, &numbers).unwrap()
    };
    let graph = OnnxGraph {
        name: "encoder".into(),
        inputs: vec![value("ids", DType::I64, &[4]), value("input_mask", DType::I64, &[4])],
        outputs: vec![value("y", DType::F32, &[4, 64]), value("z", DType::F32, &[4, 64])],
        initializers: vec![
            ("table".into(), normal(&[100, 64], 1)),
            ("w".into(), normal(&[64, 64], 2)),
            ("v".into(), normal(&[64, 64], 3)),
        ],
        nodes: vec![
            node("look", "Gather", &["table", "ids"], "x"),
            node("first", "MatMul", &["x", "w"], "y"),
            node("second", "MatMul", &["y", "v"], "z"),
        ],
        ..OnnxGraph::default()
    };
    margay_onnx::Model::new(17, graph).write(&place.path("encoder.onnx"), External::Never).unwrap();
    let ids: Vec<i64> = (0..160).map(|i| i * 37 % 100).collect();
    let write = |name: &str, mask: &dyn Fn(i64) -> i64| {
        let marks: Vec<i64> = (0..160).map(mask).collect();
        let of = |numbers: &[i64]| Tensor::from_slice(&[40, 4], numbers).unwrap();
        place.write_npz(name, &[("ids", of(&ids)), ("input_mask", of(&marks))]);
    };
    write("half.npz", &|i| i64::from(i % 4 < 2));
    write("none.npz", &|_| 0);
}

#[test]
fn masks_of_usual_names_are_found_and_may_not_hide_everything() {
    let place = Place::new();
    write_encoder(&place);
    let half = "explain encoder.onnx --data half.npz --budget-bytes 60%";
    let told = place.done(&format!("{half} --output-name z")).stdout;
    assert!(told.contains("; padding, by `input_mask`, does not count; only `z` counts"), "{told}");
    assert!(!place.done(&format!("{half} --mask none")).stdout.contains("padding"));
    place.done("compile encoder.onnx -o e.margay --export e.onnx --data half.npz --budget-bytes 60%");
    for command in [
        "explain encoder.onnx --budget-bytes 60%",
        "sensitivity encoder.onnx",
        "recover e.onnx --teacher encoder.onnx --export r.onnx",
        "bench encoder.onnx e.margay --rounds 1",
        "compare encoder.onnx e.margay",
    ] {
        let ran = place.run(&format!("{command} --data none.npz"));
        let message =
            "error: the mask `input_mask` is zero everywhere: all 160 places of the samples are padding";
        assert!(ran.code == 2 && ran.stderr.contains(message), "{command}: {}", ran.stderr);
    }
    // What is padding has no part in what is measured, and neither has an output that does not count.
    let traces = |words: &str| {
        let found =
            json(&place.done(&format!("sensitivity encoder.onnx --data half.npz --json {words}")).stdout);
        let of = |i: usize| found["modules"][i]["gradient_trace"].as_f64().unwrap();
        (of(0), of(1))
    };
    let (all, masked, first) = (traces("--mask none"), traces(""), traces("--output-name y --mask none"));
    assert!((masked.1 / all.1 - 0.5).abs() < 1e-9, "signs are 0 in half of the places: {all:?} {masked:?}");
    assert_eq!(first.1, 0.0, "the second layer does not show in `y`: {first:?}");
    let learned = place.done(
        "recover e.onnx --teacher encoder.onnx --data half.npz --export r.onnx --output-name z --layers-only --batch 8 --json",
    );
    let error = &json(&learned.stdout)["error"];
    assert_eq!(error["only"], serde_json::json!(["z"]));
    assert_eq!(error["outputs"].as_array().unwrap().len(), 1);
}

#[test]
fn bytes_are_those_of_the_thing_that_is_told_of() {
    let place = Place::new();
    write_encoder(&place);
    let report =
        |words: &str| json(&place.done(&format!("compile encoder.onnx -o e.margay {words} --json")).stdout);
    let (plain, narrow) = (report(""), report("--precision int8"));
    let inspected = json(&place.done("inspect encoder.onnx --json").stdout);
    let dense = &plain["constant_bytes_before"];
    assert_eq!(&narrow["constant_bytes_before"], dense, "the dense model is the same");
    assert_eq!(&inspected["stored_constant_bytes"], dense);
    assert_eq!(inspected["stored_layer_bytes"], plain["bytes_before"]);
    assert!(dense.as_u64() > Some(4 * 100 * 64), "the table is f32: {dense}");
    assert!(narrow["constant_bytes_after"].as_u64() < Some(4 * 100 * 64), "and int8: {narrow}");
}

#[test]
fn models_are_evaluated_and_get_a_new_head() {
    let place = place();
    place.done("compile model.onnx -o s.margay --budget-bytes 50% --target-cpu portable --dim batch=4");
    let words = "evaluate model.onnx s.margay --data labelled.npz --labels label --json";
    let report = json(&place.done(words).stdout);
    let models = report["models"].as_array().unwrap();
    assert_eq!((report["samples"].as_u64(), report["metric"].as_str()), (Some(40), Some("accuracy")));
    assert_eq!(
        (models[0]["value"].as_f64(), models[0]["agreement"].as_f64()),
        (Some(39.0 / 40.0), Some(1.0))
    );
    assert!(models[1]["agreement"].as_f64() <= Some(1.0));
    let of = |metric: &str| {
        let words = words.replace("--json", &format!("--json --metric {metric}"));
        json(&place.done(&words).stdout)["models"][0]["value"].as_f64().unwrap()
    };
    assert!(of("top5") >= 39.0 / 40.0 && of("loss") > 0.0);
    let refused = place.run(&format!("{words} --output-name probabilities"));
    assert!(refused.stderr.contains("no output `probabilities`; it has `logits`"), "{}", refused.stderr);

    let labels: Vec<i64> = (0..40).map(|i| i % 3).collect();
    place.write_npz(
        "three.npz",
        &[("image", images(40, 3)), ("label", Tensor::from_slice(&[40], &labels).unwrap())],
    );
    let train =
        "train model.onnx --data three.npz --labels label --head 3 --train head.* --batch 8 --threads 1";
    let told = json(&place.done(&format!("{train} --steps 4 --export t.onnx --json")).stdout);
    assert_eq!(told["parameters"], 10 * 3 + 3);
    place.done("run t.onnx --data in.npz --outputs y.npz");
    assert_eq!(place.read_npz("y.npz")[0].1.shape(), [2, 3]);
    let none = place.run(&format!("{} --export u.onnx", train.replace("head.*", "tail.*")));
    assert!(none.code == 2 && none.stderr.contains("no constant `tail.*`"), "{}", none.stderr);
}

#[test]
fn a_run_is_told_kept_and_made_longer() {
    let place = place();
    let train = "train model.onnx --data labelled.npz --labels label --train fc2.weight --batch 8 --threads 1 \
                 --evaluations 2 --history h.jsonl --checkpoint c.safetensors";
    place.done(&format!("{train} --steps 4 --export t.onnx"));
    let history = || {
        let text = String::from_utf8(place.bytes("h.jsonl")).unwrap();
        text.lines().map(|line| json(line)["step"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(history(), [0, 2, 4]);
    let before = place.bytes("c.safetensors");
    let again = place.run(&format!("{train} --steps 4 --export t.onnx").replace("h.jsonl", "g.jsonl"));
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("`c.safetensors` is there already"), "{}", again.stderr);
    assert!(place.bytes("c.safetensors") == before);
    let longer = json(&place.done(&format!("{train} --steps 8 --export t.onnx --resume --json")).stdout);
    assert_eq!((&longer["steps"], &longer["stop"]), (&8.into(), &"finished".into()));
    assert_eq!(history()[3..], [8]);
    // The course of a run is written over by no other one, and is no table.
    let other = train.replace("c.safetensors", "d.safetensors");
    for (words, message) in [
        (format!("{other} --export u.onnx"), "the history `h.jsonl` is there already"),
        (format!("{} --export u.onnx", other.replace("h.jsonl", "h.csv")), "lines of JSON are written"),
    ] {
        let refused = place.run(&words);
        assert!(refused.code == 2 && refused.stderr.contains(message), "{}", refused.stderr);
    }
    assert_eq!(history().len(), 4);
}

#[test]
fn sketches_that_were_trained_are_explained() {
    let place = place();
    place.done(
        "train model.onnx --data labelled.npz --labels label --scheme panther --rank 4 --layers fc1 --batch 8 \
         --steps 2 --threads 1 -o t.margay --dim batch=1",
    );
    let explained = place.done("explain t.margay").stdout;
    let (_, found) = explained.split_once("Sketches found in the graph, by their form:").expect(&explained);
    assert!(found.contains("fc1    3136 x 64  lowrank     8"), "{found}");
    assert!(
        explained.contains(": training with sketches: panther of rank 4, 1 term(s), for "),
        "{explained}"
    );
    assert!(!explained.contains("nothing is sketched"), "{explained}");
    let report = json(&place.done("explain t.margay --json").stdout);
    let dense = json(&place.done("explain model.onnx --json").stdout);
    assert_eq!(report["bytes_before"], dense["bytes_before"]);
    assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64());
    let both = "train model.onnx --data labelled.npz --labels label --scheme favor --features 8 --rank 4 --export t.onnx";
    let refused = place.run(both);
    assert_eq!(refused.code, 2);
    let why = "`--rank` is for `--scheme panther` and `--scheme lowrank`";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
}

/// Bytes of tables are not those of layers, in whatever they are stored.
#[test]
fn int8_is_named_where_it_reaches_the_goal() {
    let place = Place::new();
    let normal = |shape: &[usize], stream: u64| {
        let mut numbers = vec![0f32; shape.iter().product()];
        margay_tensor::random::Philox::new(7, stream).fill_normal_f32(0, &mut numbers);
        Tensor::from_slice(shape, &numbers).unwrap()
    };
    let nodes = vec![
        node("first", "MatMul", &["x", "w"], "a"),
        OnnxNode {
            attributes: [("axis", 1), ("keepdims", 0)]
                .map(|(name, value)| (name.to_owned(), Attribute::Int(value)))
                .into(),
            ..node("greatest", "ArgMax", &["x"], "g")
        },
        node("row", "Gather", &["table", "g"], "r"),
        node("moved", "Add", &["a", "r"], "b"),
        node("squash", "Tanh", &["b"], "c"),
        node("second", "MatMul", &["c", "v"], "y"),
    ];
    let initializers = vec![
        ("w".into(), normal(&[64, 64], 0)),
        ("v".into(), normal(&[64, 64], 1)),
        ("table".into(), normal(&[4096, 64], 2)),
    ];
    write_model_of(&place.path("net.onnx"), &[-1, 64], nodes, initializers);
    place.write_npz("x.npz", &[("x", normal(&[256, 64], 3))]);
    let said = |words: &str| place.done(&format!("explain net.onnx {words}")).stderr;
    let measured = said("--data x.npz --budget-bytes 60%");
    assert!(measured.contains("int8 without any sketch does better"), "{measured}");
    let unmeasured = said("--budget-bytes 60%");
    assert!(unmeasured.contains("int8 without any sketch reaches this goal, too"), "{unmeasured}");
    let out_of_reach = place.run("explain net.onnx --data x.npz --budget-bytes 1%");
    assert!(out_of_reach.stderr.contains("`--precision int8`"), "{}", out_of_reach.stderr);
}

#[test]
fn samples_that_saturate_the_model_are_told() {
    let place = Place::new();
    let mut numbers = vec![0f32; 64 * 64];
    margay_tensor::random::Philox::new(5, 0).fill_normal_f32(0, &mut numbers);
    let weight =
        |scale: f32| Tensor::from_slice(&[64, 64], &numbers.iter().map(|x| scale * x).collect::<Vec<f32>>());
    let nodes = vec![
        node("first", "MatMul", &["x", "w"], "a"),
        node("squash", "Tanh", &["a"], "b"),
        node("second", "MatMul", &["b", "w"], "c"),
        node("score", "Sigmoid", &["c"], "y"),
    ];
    write_model_of(&place.path("net.onnx"), &[-1, 64], nodes, vec![("w".into(), weight(0.3).unwrap())]);
    let mut pixels = vec![0f32; 40 * 64];
    margay_tensor::random::Philox::new(6, 0).fill_uniform_f32(0, &mut pixels);
    for (scale, is_told) in [(0.5, false), (255.0, true)] {
        let scaled: Vec<f32> = pixels.iter().map(|x| scale * x).collect();
        place.write_npz("x.npz", &[("x", Tensor::from_slice(&[40, 64], &scaled).unwrap())]);
        let told = place.done("explain net.onnx --data x.npz --budget-bytes 60%").stderr;
        assert_eq!(
            told.contains("of the values of `squash` are at the ends of their range"),
            is_told,
            "{told}"
        );
        assert!(!told.contains("`score`"), "outputs may be near 0 or 1: {told}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_a_result_is_one_sentence() {
    let place = Place::new();
    // A file of 512 bytes at most stands for a disk that is full.
    let before = place.files();
    let ran =
        place.shell("trap '' XFSZ; ulimit -f 1; margay run model.onnx --data samples.npz --outputs out.npz");
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.starts_with("error: cannot write `out.npz`: "), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert_eq!(place.files(), before);
}

/// Runs the commands of a document as they are written, one after the other.
fn as_written(place: &Place, document: &str) -> usize {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(document);
    let text = fs::read_to_string(path).unwrap().replace("\\\n", " ");
    // What is between fences is every second part.
    let blocks = text.split("```").skip(1).step_by(2);
    let commands = blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("margay "));
    let commands: Vec<&str> = commands.map(|line| line.split(" #").next().unwrap_or(line)).collect();
    commands.iter().for_each(|words| {
        place.done(words);
    });
    commands.len()
}

#[test]
fn the_documents_run_as_written() {
    let place = Place::new();
    let bright = (0..256).map(|i| i64::from(i % 2 == 0)).collect::<Vec<_>>();
    let label = Tensor::from_slice(&[256], &bright).unwrap();
    place.write_npz("samples.npz", &[("image", images(256, 2)), ("label", label)]);
    assert!(as_written(&place, "README.md") >= 12);
    assert!(as_written(&place, "docs/recovery.md") >= 2);
    assert!(as_written(&place, "docs/training.md") >= 1);
}

/// `2>&1 | head` closes it early.
#[test]
fn whoever_closes_stderr_misses_nothing_else() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_margay"))
        .args(["check", "nowhere.onnx"])
        .current_dir(place.path(""))
        .stdout(Stdio::null())
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(3));
}

/// As exporters write a model that they hold in training.
#[test]
fn normalization_by_the_batch_is_told() {
    let place = Place::new();
    let numbers = |v: [f32; 3]| Tensor::from_slice(&[3], &v).unwrap();
    let normalization = OnnxNode {
        attributes: [("training_mode".to_string(), Attribute::Int(1))].into(),
        outputs: vec!["y".into(), "mean'".into(), "variance'".into()],
        ..node("bn", "BatchNormalization", &["x", "scale", "bias", "mean", "variance"], "y")
    };
    let initializers = [("scale", [1.0; 3]), ("bias", [0.0; 3]), ("mean", [0.0; 3]), ("variance", [1.0; 3])];
    let initializers = initializers.map(|(name, v)| (name.to_string(), numbers(v))).to_vec();
    write_model_of(&place.path("bn.onnx"), &[-1, 3], vec![normalization], initializers);
    let x: Vec<f32> = (0..30).map(|i| (i * 7 % 11) as f32).collect();
    let x = Tensor::from_slice(&[10, 3], &x).unwrap();
    place.write_npz("d.npz", &[("x", x), ("label", Tensor::from_slice(&[10], &[0u8; 10]).unwrap())]);
    for command in ["compile bn.onnx -o bn.margay", "evaluate bn.onnx --data d.npz --labels label"] {
        let said = place.done(command).stderr;
        assert!(said.contains("`bn` (BatchNormalization), take mean and variance of the batch"), "{said}");
    }
    // The same, spelled out.
    let mean = |name: &str, of: &str, to: &str| OnnxNode {
        attributes: [("axes".to_string(), Attribute::Ints(vec![0]))].into(),
        ..node(name, "ReduceMean", &[of], to)
    };
    let nodes = vec![
        mean("mean", "x", "m"),
        node("centred", "Sub", &["x", "m"], "c"),
        node("squares", "Mul", &["c", "c"], "s"),
        mean("variance", "s", "v"),
        node("wider", "Add", &["v", "epsilon"], "w"),
        node("deviation", "Sqrt", &["w"], "d"),
        node("normal", "Div", &["c", "d"], "y"),
    ];
    write_model_of(
        &place.path("apart.onnx"),
        &[-1, 3],
        nodes,
        vec![("epsilon".into(), Tensor::scalar(1e-5f32))],
    );
    let said = place.done("compile apart.onnx -o apart.margay").stderr;
    assert!(said.contains("at `centred`, take mean and variance of the batch: outputs"), "{said}");
}
