//! Extents that must be equal, or known, and are not shown to be.

use super::*;
use margay_onnx::{KnownInputs, import_for};

fn text_of(model: &Model, known: &KnownInputs) -> String {
    let mut g = import_for(model, known).unwrap().graph;
    g.verify(Stage::Imported).unwrap();
    g.remove_dead();
    let printed = g.to_string();
    let again = margay_ir::text::parse(&printed, &|_, _| None).unwrap();
    assert_eq!(again.to_string(), printed);
    printed
}

fn extents(inputs: &[(&str, &[usize])]) -> KnownInputs {
    let inputs = inputs.iter().map(|(n, e)| ((*n).to_owned(), e.to_vec())).collect();
    KnownInputs { extents: inputs, ..KnownInputs::default() }
}

/// x + y, with an extent of each that has a name of its own.
fn sum() -> Model {
    let inputs = vec![input("x", DType::F32, &["B", "3"]), input("y", DType::F32, &["M", "3"])];
    model(17, inputs, &[], vec![node("Add", &["x", "y"], &["z"], &[])], &["z"])
}

const EQUAL: &str = "graph @test(%x: f32[B, 3], %y: f32[B, 3]) -> (z: f32[B, 3]) {
  guard M = B  // z
  %0 = add %x, %y : f32[B, 3]  // z
  return %0
}
";

#[test]
fn extents_that_broadcast_are_taken_for_equal() {
    assert_eq!(text_of(&sum(), &KnownInputs::default()), EQUAL);
    assert_eq!(text_of(&sum(), &extents(&[("x", &[4, 3]), ("y", &[4, 3])])), EQUAL);
    let g = imported(&sum());
    let given = |rows: usize| {
        BTreeMap::from([("x".to_owned(), counting(&[2, 3])), ("y".to_owned(), counting(&[rows, 3]))])
    };
    assert_eq!(run_graph(&g, &given(2))[0], floats(&[2, 3], &[0., 2., 4., 6., 8., 10.]));
    let one = given(1);
    let one: Vec<(&str, &Tensor)> = one.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let error = eval::run(&g, &one).unwrap_err().to_string();
    assert_eq!(error, "dimension `B` is 2 in one input and 1 in `y`; `z` needs `M` = B");
}

#[test]
fn an_extent_that_is_known_to_be_one_broadcasts() {
    for known in [
        extents(&[("x", &[4, 3]), ("y", &[1, 3])]),
        KnownInputs { dims: [("B".into(), 7), ("M".into(), 1)].into(), ..KnownInputs::default() },
    ] {
        let expected = "graph @test(%x: f32[B, 3], %y: f32[1, 3]) -> (z: f32[B, 3]) {
  guard M = 1  // z
  %0 = add %x, %y : f32[B, 3]  // z
  return %0
}
";
        assert_eq!(text_of(&sum(), &known), expected);
    }
    let expected = "graph @test(%x: f32[1, 3], %y: f32[M, 3]) -> (z: f32[M, 3]) {
  guard B = 1  // z
  %0 = add %x, %y : f32[M, 3]  // z
  return %0
}
";
    assert_eq!(text_of(&sum(), &extents(&[("x", &[1, 3]), ("y", &[4, 3])])), expected);
}

#[test]
fn a_table_as_long_as_the_sequence_fixes_it() {
    let inputs = vec![input("x", DType::F32, &["B", "S"])];
    let nodes = vec![node("MatMul", &["x", "w"], &["y"], &[])];
    let expected = "graph @test(%x: f32[B, 5]) -> (y: f32[B, 2]) {
  guard S = 5  // y
  %0 = const [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0] : f32[5, 2]  // w
  %1 = matmul %x, %0 : f32[B, 2]  // y
  return %1
}
";
    let m = model(17, inputs, &[("w", counting(&[5, 2]))], nodes, &["y"]);
    assert_eq!(text_of(&m, &KnownInputs::default()), expected);
}

#[test]
fn one_equation_leads_to_the_next() {
    // P + S = T, then T = U, then U = 4.
    let inputs = vec![
        input("past", DType::F32, &["P"]),
        input("now", DType::F32, &["S"]),
        input("all", DType::F32, &["T"]),
        input("mask", DType::F32, &["U"]),
    ];
    let nodes = vec![
        node("Concat", &["past", "now"], &["keys"], &[("axis", int(0))]),
        node("Add", &["keys", "all"], &["a"], &[]),
        node("Mul", &["a", "mask"], &["b"], &[]),
    ];
    let m = model(17, inputs, &[], nodes, &["b"]);
    let g = imported(&m);
    let guards: Vec<String> = g.guards().iter().map(ToString::to_string).collect();
    assert_eq!(guards, ["guard T = P + S  // a", "guard U = P + S  // b"]);
    let mut binding = [("P".into(), 1), ("S".into(), 3), ("T".into(), 5)].into();
    let error = g.resolve_guards(&mut binding).unwrap_err().to_string();
    assert_eq!(error, "`a` needs `T` = P + S, but `T` is 5 and `P + S` is 4");
}

#[test]
fn an_equation_without_solution_is_checked_in_place() {
    // Halves of H, twice as many again, beside x: H has to be even.
    let inputs = vec![input("x", DType::F32, &["1", "1", "H", "2"])];
    let pool = [("kernel_shape", list(&[2, 1])), ("strides", list(&[2, 1]))];
    let nodes = vec![
        node("MaxPool", &["x"], &["p"], &pool),
        node("Concat", &["p", "p"], &["twice"], &[("axis", int(2))]),
        node("Add", &["x", "twice"], &["y"], &[]),
    ];
    let m = model(17, inputs, &[], nodes, &["y"]);
    let g = imported(&m);
    assert!(g.guards().is_empty());
    let run = |rows: usize| {
        let given = counting(&[1, 1, rows, 2]);
        eval::run(&g, &[("x", &given)]).map(|mut all| all.remove(0))
    };
    let expected = [2., 4., 8., 10., 6., 8., 12., 14.];
    assert_eq!(run(4).unwrap(), floats(&[1, 1, 4, 2], &expected));
    assert!(run(5).is_err());
}

#[test]
fn what_depends_on_an_extent_takes_the_known_one() {
    let inputs = || vec![input("x", DType::F32, &["1", "1", "n"])];
    let same = [("auto_pad", Attribute::String("SAME_UPPER".into())), ("strides", list(&[2]))];
    let nodes = vec![node("Conv", &["x", "k"], &["y"], &same)];
    let m = model(17, inputs(), &[("k", counting(&[1, 1, 3]))], nodes, &["y"]);
    let error = import(&m).unwrap_err().to_string();
    let says = "operator `Conv`: the padding depends on the extent `n`; say what it is by `--dim n=N`; used by \
                node `y` (Conv)";
    assert_eq!(error, says);
    let g = import_for(&m, &extents(&[("x", &[1, 1, 5])])).unwrap().graph;
    assert_eq!(g.guards()[0].to_string(), "guard n = 5  // y");
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[1, 1, 3]");
}

#[test]
fn windows_are_rounded_up_over_open_extents() {
    let pool = |kernel: i64, stride: i64, pads: &[i64]| {
        let attributes = [
            ("kernel_shape", list(&[kernel])),
            ("strides", list(&[stride])),
            ("pads", list(pads)),
            ("ceil_mode", int(1)),
        ];
        let nodes = vec![node("MaxPool", &["x"], &["y"], &attributes)];
        model(17, vec![input("x", DType::F32, &["1", "1", "n"])], &[], nodes, &["y"])
    };
    for (kernel, stride, pads) in [(2, 2, [0, 0]), (3, 2, [0, 0]), (3, 2, [1, 1]), (5, 3, [2, 1])] {
        let open = imported(&pool(kernel, stride, &pads));
        for n in 5..10 {
            let fixed = import_for(&pool(kernel, stride, &pads), &KnownInputs::default());
            let given = BTreeMap::from([("x".to_owned(), counting(&[1, 1, n]))]);
            let (mut known, _) = single(17, "MaxPool", &[], vec![Input(counting(&[1, 1, n]))], 1);
            known.graph.nodes[0] = pool(kernel, stride, &pads).graph.nodes[0].clone();
            known.graph.nodes[0].inputs = vec!["x0".into()];
            known.graph.outputs[0].name = "y".into();
            let expected =
                run_graph(&imported(&known), &BTreeMap::from([("x0".to_owned(), counting(&[1, 1, n]))]));
            assert_eq!(run_graph(&open, &given), expected, "{kernel} {stride} {pads:?} {n} {fixed:?}");
        }
    }
    let error = import(&pool(2, 2, &[1, 1])).unwrap_err().to_string();
    assert!(error.contains("the number of windows depends on the extent `n`"), "{error}");
}

#[test]
fn ranges_stay_open() {
    let scalar = |v: i64| Tensor::scalar(v);
    let nodes = vec![
        node("Shape", &["x"], &["s"], &[]),
        node("Gather", &["s", "one"], &["length"], &[("axis", int(0))]),
        node("Range", &["zero", "length", "two"], &["even"], &[]),
        node("Cast", &["length"], &["float"], &[("to", int(1))]),
        node("Range", &["start", "float", "step"], &["floats"], &[]),
        node("Range", &["length", "zero", "back"], &["down"], &[]),
    ];
    let constants = [
        ("zero", scalar(0)),
        ("one", scalar(1)),
        ("two", scalar(2)),
        ("back", scalar(-1)),
        ("start", Tensor::scalar(-1f32)),
        ("step", Tensor::scalar(1f32)),
    ];
    let m =
        model(17, vec![input("x", DType::F32, &["B", "S"])], &constants, nodes, &["even", "floats", "down"]);
    let expected =
        "graph @test(%x: f32[B, S]) -> (even: i64[floordiv(S + 1, 2)], floats: f32[S + 1], down: i64[S]) {
  %0 = range {start = 0, step = 2, count = floordiv(S + 1, 2)} : i64[floordiv(S + 1, 2)]  // even
  %1 = range {start = -1, step = 1, count = S + 1} : i64[S + 1]  // floats
  %2 = cast %1 {to = f32} : f32[S + 1]  // floats
  %3 = range {start = S, step = -1, count = S} : i64[S]  // down
  return %0, %2, %3
}
";
    assert_eq!(text_of(&m, &KnownInputs::default()), expected);
    let found = run_graph(&imported(&m), &BTreeMap::from([("x".to_owned(), counting(&[1, 3]))]));
    assert_eq!(found[0], ints(&[0, 2]));
    assert_eq!(found[1], floats(&[4], &[-1., 0., 1., 2.]));
    assert_eq!(found[2], ints(&[3, 2, 1]));
}

/// x[:, from..to] of an extent with a name.
fn part(from: i64, to: i64) -> Model {
    let bounds = [("from", ints(&[from])), ("to", ints(&[to])), ("axes", ints(&[1]))];
    let slice = node("Slice", &["x", "from", "to", "axes"], &["y"], &[]);
    model(17, vec![input("x", DType::F32, &["B", "S"])], &bounds, vec![slice], &["y"])
}

#[test]
fn a_bound_that_is_known_to_lie_outside_fixes_the_extent() {
    // Bounds, the extent that is known, and the elements of a row that are left.
    let cases: [(i64, i64, usize, &[f32]); 6] = [
        (0, 512, 3, &[0., 1., 2.]),
        (4, 8, 3, &[]),
        (-5, i64::MAX, 3, &[0., 1., 2.]),
        (-5, -1, 3, &[0., 1.]),
        (2, 8, 3, &[2.]),
        (1, 2, 3, &[1.]),
    ];
    for (from, to, extent, expected) in cases {
        let known = extents(&[("x", &[1, extent])]);
        let mut g = import_for(&part(from, to), &known).unwrap().graph;
        g.remove_dead();
        let given = BTreeMap::from([("x".to_owned(), counting(&[1, extent]))]);
        assert_eq!(run_graph(&g, &given)[0], floats(&[1, expected.len()], expected), "{from}..{to}");
        let fixed = g.guards().iter().any(|guard| guard.symbol == "S".into());
        assert_eq!(fixed, (from, to) != (1, 2), "{from}..{to}");
    }
}

#[test]
fn an_extent_that_is_known_to_be_nothing_is_fixed() {
    let inputs = vec![input("past", DType::F32, &["P", "2"]), input("x", DType::F32, &["S", "2"])];
    let join = node("Concat", &["past", "x"], &["y"], &[("axis", int(0))]);
    let m = model(17, inputs, &[], vec![join], &["y"]);
    let expected = "graph @test(%past: f32[0, 2], %x: f32[S, 2]) -> (y: f32[S, 2]) {
  guard P = 0
  %0 = concat %past, %x {axis = 0} : f32[S, 2]  // y
  return %0
}
";
    let from_inputs = extents(&[("past", &[0, 2]), ("x", &[3, 2])]);
    let from_dims = KnownInputs { dims: [("P".into(), 0)].into(), ..KnownInputs::default() };
    for known in [from_inputs, from_dims] {
        assert_eq!(text_of(&m, &known), expected);
    }
}

#[test]
fn an_extent_that_may_be_nothing_decides_nothing() {
    let inputs = vec![input("past", DType::F32, &["P", "2"]), input("x", DType::F32, &["S", "2"])];
    // One row where P is 0, else P.
    let nodes = vec![
        node("Concat", &["past", "x"], &["y"], &[("axis", int(0))]),
        node("Shape", &["past"], &["shape"], &[("end", int(1))]),
        node("Equal", &["shape", "zero"], &["none"], &[]),
        node("Where", &["none", "one", "shape"], &["rows"], &[]),
        node("Concat", &["rows", "two"], &["both"], &[("axis", int(0))]),
        node("ConstantOfShape", &["both"], &["z"], &[]),
    ];
    let constants = [("zero", ints(&[0])), ("one", ints(&[1])), ("two", ints(&[2]))];
    let m = model(17, inputs, &constants, nodes, &["y", "z"]);
    let types = |known: &KnownInputs| {
        let g = import_for(&m, known).map_err(|e| e.to_string())?.graph;
        Ok::<_, String>(g.outputs().iter().map(|o| g.ty(o.value).to_string()).collect::<Vec<_>>())
    };
    assert_eq!(types(&KnownInputs::default()).unwrap(), ["f32[P + S, 2]", "f32[P, 2]"]);
    let empty = KnownInputs { empty: vec!["P".into()], ..KnownInputs::default() };
    let refusal = types(&empty).unwrap_err();
    assert!(refusal.contains("`z`") || refusal.contains("ConstantOfShape"), "{refusal}");
    let joined = model(
        17,
        vec![input("past", DType::F32, &["P", "2"]), input("x", DType::F32, &["S", "2"])],
        &[],
        vec![node("Concat", &["past", "x"], &["y"], &[("axis", int(0))])],
        &["y"],
    );
    let expected = "graph @test(%past: f32[P?, 2], %x: f32[S, 2]) -> (y: f32[P? + S, 2]) {
  %0 = concat %past, %x {axis = 0} : f32[P? + S, 2]  // y
  return %0
}
";
    assert_eq!(text_of(&joined, &empty), expected);
    let g = import_for(&joined, &empty).unwrap().graph;
    let x = counting(&[1, 2]);
    let given = BTreeMap::from([("past".to_owned(), floats(&[0, 2], &[])), ("x".to_owned(), x.clone())]);
    assert_eq!(run_graph(&g, &given)[0], x);
}

#[test]
fn a_default_value_gives_way_to_a_value() {
    let product = node("Mul", &["x", "s"], &["y"], &[]);
    let two = [("s", floats(&[1], &[2.0]))];
    let mut m = model(17, vec![input("x", DType::F32, &["3"])], &two, vec![product], &["y"]);
    m.graph.defaults.push(input("s", DType::F32, &["1"]));
    let (x, s) = (counting(&[3]), floats(&[1], &[5.0]));
    let y = run_graph(&imported(&m), &BTreeMap::from([("x".to_owned(), x.clone())]));
    assert_eq!(y[0], floats(&[3], &[0., 2., 4.]));
    let g = import_for(&m, &extents(&[("x", &[3]), ("s", &[1])])).unwrap().graph;
    let y = run_graph(&g, &BTreeMap::from([("x".to_owned(), x), ("s".to_owned(), s)]));
    assert_eq!(y[0], floats(&[3], &[0., 5., 10.]));
}

#[test]
fn a_bound_behind_the_end_of_a_known_extent_is_the_end() {
    let bound = |end: i64, step: i64| {
        let inputs = vec![input("x", DType::F32, &["S"])];
        let constants = [("start", ints(&[if step > 0 { 1 } else { end }])), ("axis", ints(&[0]))];
        let more = [("end", ints(&[if step > 0 { end } else { 0 }])), ("step", ints(&[step]))];
        let constants: Vec<(&str, Tensor)> = constants.into_iter().chain(more).collect();
        let nodes = vec![node("Slice", &["x", "start", "end", "axis", "step"], &["y"], &[])];
        model(17, inputs, &constants, nodes, &["y"])
    };
    let known = extents(&[("x", &[4])]);
    let type_of = |m: &Model, known: &KnownInputs| {
        let g = import_for(m, known).unwrap().graph;
        g.ty(g.outputs()[0].value).to_string()
    };
    assert_eq!(type_of(&bound(3, 1), &known), "f32[2]", "inside: S stays open");
    assert_eq!(type_of(&bound(7, 1), &known), "f32[3]");
    assert_eq!(type_of(&bound(7, -1), &known), "f32[3]");
    assert_eq!(type_of(&bound(7, 1), &extents(&[("x", &[9])])), "f32[6]");
    assert_eq!(type_of(&bound(1_000_000_000, 1), &KnownInputs::default()), "f32[S - 1]");
}

#[test]
fn names_without_letters_name_no_extent() {
    let inputs = vec![input("x", DType::F32, &["??", "??", "N"]), input("y", DType::F32, &["N"])];
    let g = imported(&model(17, inputs, &[], vec![node("Add", &["x", "y"], &["z"], &[])], &["z"]));
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[x_d0, x_d1, N]");
}

#[test]
fn arithmetic_that_no_form_decides_takes_known_extents() {
    // (n - 9) / 4 + 3: rounded towards zero, which for numbers below zero is not down.
    let nodes = vec![
        node("Shape", &["x"], &["shape"], &[]),
        node("Sub", &["shape", "nine"], &["less"], &[]),
        node("Div", &["less", "four"], &["over"], &[]),
        node("Add", &["over", "three"], &["end"], &[]),
        node("Slice", &["x", "none", "end"], &["y"], &[]),
    ];
    let constants = [("nine", ints(&[9])), ("four", ints(&[4])), ("three", ints(&[3])), ("none", ints(&[0]))];
    let m = model(17, vec![input("x", DType::F32, &["n"])], &constants, nodes, &["y"]);
    for (extent, expected) in [(2usize, "f32[2]"), (5, "f32[2]"), (6, "f32[3]"), (13, "f32[4]")] {
        let g = import_for(&m, &extents(&[("x", &[extent])])).unwrap().graph;
        assert_eq!(g.ty(g.outputs()[0].value).to_string(), expected, "of {extent}");
        assert_eq!(g.guards().len(), 1);
    }
    let open = import_for(&m, &KnownInputs::default()).unwrap().graph;
    assert_eq!(open.ty(open.outputs()[0].value).to_string(), "f32[n1']", "a run says");
}
