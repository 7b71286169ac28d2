//! Branches and loops: what is made of them, and what is refused. What they compute is compared with onnxruntime by the
//! tests of the whole compiler.

use margay_ir::Op;

use super::*;

fn graph(inputs: &[(&str, DType, &[&str])], nodes: Vec<OnnxNode>, outputs: &[&str]) -> Attribute {
    let inputs = inputs.iter().map(|(name, dtype, dims)| input(name, *dtype, dims)).collect();
    let outputs = outputs.iter().map(|n| output(n)).collect();
    let graph = OnnxGraph { name: "inside".to_owned(), inputs, outputs, nodes, ..OnnxGraph::default() };
    Attribute::Graph(Box::new(graph))
}

const NUMBER: (&str, DType, &[&str]) = ("i", DType::I64, &[]);
const GOES_ON: (&str, DType, &[&str]) = ("go", DType::Bool, &[]);
const STATE: (&str, DType, &[&str]) = ("s", DType::F32, &["n"]);

/// A model of one node over a truth value, a number of repetitions and a vector.
fn of(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) -> Model {
    let given = vec![
        input("t", DType::Bool, &[]),
        input("trips", DType::I64, &[]),
        input("x", DType::F32, &["n"]),
        input("y", DType::F32, &["m"]),
    ];
    let constants = [("four", Tensor::scalar(4i64)), ("w", floats(&[1], &[0.5]))];
    model(17, given, &constants, vec![node(op, inputs, outputs, attributes)], outputs)
}

fn message(model: &Model) -> String {
    import(model).unwrap_err().to_string()
}

fn branches(then: Vec<OnnxNode>, otherwise: Vec<OnnxNode>) -> [(&'static str, Attribute); 2] {
    [("then_branch", graph(&[], then, &["a"])), ("else_branch", graph(&[], otherwise, &["b"]))]
}

#[test]
fn what_a_branch_reads_is_an_operand_and_constants_are_its_own() {
    let then = vec![node("Mul", &["x", "w"], &["a"], &[])];
    let otherwise = vec![node("Shape", &["x"], &["k"], &[]), node("Expand", &["w", "k"], &["b"], &[])];
    let g = imported(&of("If", &["t"], &["z"], &branches(then, otherwise)));
    let choice = g.outputs()[0].value.node;
    assert!(matches!(g.op(choice), Op::If(_)));
    assert_eq!(g.inputs_of(choice).len(), 2, "{g}");
    let [then, _] = g.op(choice).regions()[..] else { panic!("two regions") };
    assert_eq!(then.graph().inputs().len(), 1);
    assert_eq!(then.graph().payloads().len(), 1);
}

#[test]
fn a_choice_that_is_known_leaves_no_region() {
    let nodes = || vec![node("Neg", &["x"], &["a"], &[])];
    let mut chosen = of(
        "If",
        &["four_is_more"],
        &["z"],
        &branches(nodes(), vec![node("TfIdfVectorizer", &["x"], &["b"], &[])]),
    );
    chosen.graph.nodes.insert(0, node("Greater", &["four", "three"], &["four_is_more"], &[]));
    chosen.graph.initializers.push(("three".into(), Tensor::scalar(3i64)));
    let g = imported(&chosen);
    assert!(g.order().iter().all(|n| g.op(*n).regions().is_empty()), "{g}");
    assert_eq!(g.op(g.outputs()[0].value.node).name(), "neg");
}

#[test]
fn loops_that_only_their_number_ends_have_no_condition() {
    let body = |more: &str, read: &str| {
        let nodes = vec![node(more, &[read], &["more"], &[]), node("Neg", &["s"], &["next"], &[])];
        graph(&[NUMBER, GOES_ON, STATE], nodes, &["more", "next"])
    };
    let kept = |model: Model| {
        let g = imported(&model);
        match g.op(g.outputs()[0].value.node) {
            Op::Loop(l) => (l.condition, l.max.to_string()),
            op => panic!("{op:?}"),
        }
    };
    let attributes = [("body", body("Identity", "go"))];
    assert_eq!(kept(of("Loop", &["four", "", "x"], &["z"], &attributes)), (false, "4".to_owned()));
    assert_eq!(kept(of("Loop", &["trips", "", "x"], &["z"], &attributes)), (false, i64::MAX.to_string()));
    assert_eq!(kept(of("Loop", &["four", "t", "x"], &["z"], &attributes)), (true, "4".to_owned()));
    // A repetition runs only where it goes on, which is not so behind the first one.
    let attributes = [("body", body("Not", "go"))];
    assert_eq!(kept(of("Loop", &["four", "", "x"], &["z"], &attributes)), (false, "1".to_owned()));
}

#[test]
fn a_condition_that_counts_says_how_often_a_loop_runs() {
    // Conditions on the number `i`, and on `c`, which begins at 4 and is handed on as `d`.
    let rows = |limit: &str, nodes: Vec<OnnxNode>| {
        let counter = ("c", DType::I64, &[] as &[&str]);
        let outputs = ["more", "d", "next", "row"];
        let own = vec![node("Neg", &["s"], &["next"], &[]), node("Abs", &["s"], &["row"], &[])];
        let body = graph(&[NUMBER, GOES_ON, counter, STATE], [nodes, own].concat(), &outputs);
        let mut model = of("Loop", &[limit, "", "four", "x"], &["c1", "z", "rows"], &[("body", body)]);
        let numbers = [("one", 1i64), ("two", 2), ("nine", 9)];
        let constants = numbers.map(|(name, n)| (name.to_owned(), Tensor::scalar(n)));
        model.graph.initializers.extend(constants);
        model.graph.nodes.insert(0, node("Size", &["x"], &["n"], &[]));
        let g = imported(&model);
        let ty = g.ty(g.outputs()[2].value).to_string();
        ty.strip_prefix("f32[").and_then(|t| t.strip_suffix(", n]")).expect("rows of n").to_owned()
    };
    let step = |op: &str, by: &str| node(op, &["c", by], &["d"], &[]);
    let test = |op: &str, x: &str, y: &str| node(op, &[x, y], &["more"], &[]);
    let next = || node("Add", &["i", "one"], &["j"], &[]);
    let number = |op: &str, x: &str, y: &str| vec![step("Add", "one"), next(), test(op, x, y)];
    // The condition is looked at behind a repetition: the last one is the first behind which it fails.
    assert_eq!(rows("nine", number("Less", "j", "four")), "4");
    assert_eq!(rows("", number("Less", "j", "four")), "4");
    assert_eq!(rows("two", number("Less", "j", "four")), "2");
    assert_eq!(rows("nine", number("LessOrEqual", "j", "four")), "5");
    assert_eq!(rows("nine", number("Greater", "four", "i")), "5");
    assert_eq!(rows("nine", number("Less", "four", "j")), "1");
    assert_eq!(rows("nine", number("Less", "j", "n")), "n1'", "9 and `n` are not in order");
    assert_eq!(rows("", number("Less", "j", "n")), "n");
    assert_eq!(rows("n", number("Less", "j", "n")), "n");
    assert_eq!(rows("trips", number("Less", "j", "four")), "n1'");
    // d is 6, 8, 10 and 3, 2, 1.
    assert_eq!(rows("nine", vec![step("Add", "two"), test("Less", "d", "nine")]), "3");
    assert_eq!(rows("nine", vec![step("Sub", "one"), test("Less", "one", "d")]), "3");
    assert_eq!(rows("nine", vec![step("Add", "c"), test("Less", "d", "nine")]), "n1'", "it is doubled");
    let both = |x: OnnxNode, y: OnnxNode| {
        vec![step("Add", "two"), next(), x, y, node("And", &["p", "q"], &["more"], &[])]
    };
    let less = |x: &str, y: &str, out: &str| node("Less", &[x, y], &[out], &[]);
    assert_eq!(rows("nine", both(less("d", "nine", "p"), less("j", "two", "q"))), "2");
    let unknown = node("Not", &["go"], &["p"], &[]);
    assert_eq!(rows("nine", both(unknown, less("j", "four", "q"))), "1", "it does not go on where it does");
    let turned = vec![step("Add", "two"), less("d", "nine", "p"), node("Not", &["p"], &["more"], &[])];
    assert_eq!(rows("nine", turned), "1");
}

#[test]
fn what_is_wrong_inside_is_said_once_and_of_the_node_inside() {
    let then = vec![node("TfIdfVectorizer", &["x"], &["a"], &[])];
    let otherwise = vec![node("Neg", &["x"], &["b"], &[])];
    let found = message(&of("If", &["t"], &["z"], &branches(then, otherwise)));
    assert_eq!(
        found,
        "the model has several problems:\n  \
         operator `TfIdfVectorizer`: the operator is not supported; used by node `a` (TfIdfVectorizer)\n  \
         operator `If`: a branch that is refused; where it is not taken, say so by `--fix t=NUMBER`; used by node `z` (If)"
    );
}

#[test]
fn an_input_that_is_fixed_chooses_a_branch() {
    let (then, otherwise) =
        (vec![node("Neg", &["x"], &["a"], &[])], vec![node("TfIdfVectorizer", &["x"], &["b"], &[])]);
    let m = of("If", &["t"], &["z"], &branches(then, otherwise));
    let fixed = |name: &str, number: f64| {
        let known = margay_onnx::KnownInputs { fixed: vec![(name.to_owned(), number)], ..Default::default() };
        margay_onnx::import_for(&m, &known).map_err(|e| e.to_string())
    };
    let found = fixed("t", 1.0).unwrap();
    assert_eq!(found.fixed, [("t".to_owned(), Tensor::from_bools(&[], &[true]).unwrap())]);
    let inputs = |g: &margay_ir::Graph| g.inputs().iter().any(|n| g.node(*n).origin.name() == "t");
    assert!(!inputs(&found.graph) && found.graph.to_string().contains(" = neg %x"), "{}", found.graph);
    let says = "cannot fix input `u`: the model has no such input; it has `t`, `trips`, `x`, `y`";
    assert_eq!(fixed("u", 1.0).unwrap_err(), says);
    let says = "cannot fix input `trips`: it is i64, which 0.5 is not";
    assert_eq!(fixed("trips", 0.5).unwrap_err(), says);
    let says = "cannot fix input `x`: its extents are not known, or it has more than 1024 elements";
    assert_eq!(fixed("x", 1.0).unwrap_err(), says);
}

#[test]
fn branches_that_are_refused() {
    let plain = |op: &str, out: &str| vec![node(op, &["x"], &[out], &[])];
    let found = message(&of("If", &["t"], &["z"], &branches(plain("Neg", "a"), plain("Shape", "b"))));
    assert!(found.contains("branches that give different types, f32[n] and i64[1]"), "{found}");
    let found = message(&of("If", &["x"], &["z"], &branches(plain("Neg", "a"), plain("Exp", "b"))));
    assert!(found.contains("expected one bool, found f32[n]"), "{found}");
    let [then, _] = branches(plain("Neg", "a"), plain("Exp", "b"));
    let found = message(&of("If", &["t"], &["z"], std::slice::from_ref(&then)));
    assert!(found.contains("expected attribute `else_branch`, found none"), "{found}");
    let number = [then, ("else_branch", int(3))];
    let found = message(&of("If", &["t"], &["z"], &number));
    assert!(found.contains("expected attribute `else_branch` to be a graph"), "{found}");
    let given = [
        ("then_branch", graph(&[STATE], plain("Neg", "a"), &["a"])),
        branches(vec![], plain("Exp", "b"))[1].clone(),
    ];
    let found = message(&of("If", &["t"], &["z"], &given));
    assert!(found.contains("expected a graph of 0 inputs, found 1"), "{found}");
}

#[test]
fn extents_that_are_known_choose_a_branch() {
    let squeezed = vec![node("Reshape", &["x", "flat"], &["a"], &[])];
    let kept = vec![node("Unsqueeze", &["x", "flat_axis"], &["b"], &[])];
    let mut model = of("If", &["is_one"], &["z"], &branches(squeezed, kept));
    model.graph.nodes.insert(0, node("Shape", &["x"], &["shape"], &[]));
    model.graph.nodes.insert(1, node("Equal", &["shape", "one"], &["is_one"], &[]));
    let constants = [("one", ints(&[1])), ("flat", ints(&[-1])), ("flat_axis", ints(&[0]))];
    model.graph.initializers.extend(constants.map(|(n, t)| (n.to_owned(), t)));
    let found = message(&model);
    assert!(found.contains("f32[n] and f32[1, n]; say which by `--dim n=N`"), "{found}");
    for (extent, expected) in [(1usize, "f32[1]"), (5, "f32[1, 5]")] {
        let extents = vec![("x".to_owned(), vec![extent])];
        let known = margay_onnx::KnownInputs { extents, ..Default::default() };
        let g = margay_onnx::import_for(&model, &known).unwrap().graph;
        assert_eq!(g.ty(g.outputs()[0].value).to_string(), expected);
    }
}

#[test]
fn one_truth_value_may_have_axes() {
    let plain = |op: &str, out: &str| vec![node(op, &["x"], &[out], &[])];
    let mut model = of("If", &["test"], &["z"], &branches(plain("Neg", "a"), plain("Exp", "b")));
    model.graph.nodes.insert(0, node("Reshape", &["t", "ones"], &["test"], &[]));
    model.graph.initializers.push(("ones".into(), ints(&[1, 1, 1])));
    assert!(imported(&model).to_string().contains(" = if "));
}

#[test]
fn loops_that_are_refused() {
    let body =
        |nodes: Vec<OnnxNode>, outputs: &[&str]| [("body", graph(&[NUMBER, GOES_ON, STATE], nodes, outputs))];
    let refused = |inputs: &[&str], outputs: &[&str], body: &[(&str, Attribute)], says: &str| {
        let found = message(&of("Loop", inputs, outputs, body));
        assert!(found.contains(says), "expected `{says}`, found `{found}`");
    };
    let neg = || vec![node("Neg", &["s"], &["next"], &[])];
    let rows = body(neg(), &["go", "next", "s"]);
    let says = "rows of a loop of which nothing says how often it runs at most";
    refused(&["trips", "", "x"], &["z", "rows"], &rows, says);
    refused(&["", "", "x"], &["z", "rows"], &rows, says);
    imported(&of("Loop", &["four", "", "x"], &["z", "rows"], &rows));
    // Four rows at most, of which the first ones are there.
    let g = imported(&of("Loop", &["four", "t", "x"], &["z", "rows"], &rows));
    assert_eq!(g.ty(g.outputs()[1].value).to_string(), "f32[n1', n]");
    let shape = body(vec![node("Shape", &["s"], &["next"], &[])], &["go", "next"]);
    refused(
        &["four", "", "x"],
        &["z"],
        &shape,
        "a value that is f32[n] before a repetition and i64[1] after it",
    );
    let says = "expected a body from 3 to 2 values or more, found one from 3 to 1";
    refused(&["four", "", "x"], &["z"], &body(neg(), &["go"]), says);
    let says = "expected a body from 4 to 3 values or more, found one from 3 to 2";
    refused(&["four", "", "x", "y"], &["z", "z2"], &body(neg(), &["go", "next"]), says);
    refused(&["x", "", "x"], &["z"], &body(neg(), &["go", "next"]), "expected one i64, found f32[n]");
    refused(&["four", "x", "x"], &["z"], &body(neg(), &["go", "next"]), "expected one bool, found f32[n]");
    refused(&["four", "", "x"], &["z"], &body(neg(), &["s", "next"]), "expected one bool, found f32[n]");
    refused(&["four", "", "x"], &["z"], &[], "expected attribute `body`, found none");
}

#[test]
fn scans_that_are_refused() {
    let row: (&str, DType, &[&str]) = ("r", DType::F32, &[]);
    let body = |outputs: &[&str]| {
        let nodes = vec![node("Add", &["s", "r"], &["next"], &[])];
        ("body", graph(&[STATE, row], nodes, outputs))
    };
    let refused = |inputs: &[&str], attributes: &[(&str, Attribute)], says: &str| {
        let found = message(&of("Scan", inputs, &["z", "rows"], attributes));
        assert!(found.contains(says), "expected `{says}`, found `{found}`");
    };
    let with = |name: &'static str, value: Attribute| {
        [body(&["next", "r"]), ("num_scan_inputs", int(1)), (name, value)]
    };
    imported(&of("Scan", &["x", "y"], &["z", "rows"], &with("scan_input_axes", list(&[0]))));
    refused(&["x", "y"], &[body(&["next", "r"])], "0 of 2 inputs are scanned");
    refused(&["x", "y"], &[body(&["next", "r"]), ("num_scan_inputs", int(3))], "3 of 2 inputs are scanned");
    refused(&["x", "y"], &with("scan_input_axes", list(&[1])), "axis 1 of a tensor with 1 axes");
    refused(
        &["x", "y"],
        &with("scan_input_axes", list(&[0, 0])),
        "`scan_input_axes` has 2 numbers, expected 1",
    );
    refused(&["x", "y"], &with("scan_output_axes", list(&[1])), "axis 1 of a tensor with 1 axes");
    let both = [body(&["next", "r"]), ("num_scan_inputs", int(2))];
    let says = "scanned extents `n` and `m` differ or are not known to be equal";
    refused(&["x", "y"], &both, says);
    let few = [body(&[]), ("num_scan_inputs", int(1))];
    refused(&["x", "y"], &few, "expected a body with 1 outputs or more, found 0");
    let turned = [body(&["r", "r"]), ("num_scan_inputs", int(1))];
    refused(&["x", "y"], &turned, "a value that is f32[n] before a repetition and f32 after it");
}
