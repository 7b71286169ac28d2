//! Branches and loops from the text of a graph to results.

use margay_driver::{CompileOptions, Dump, Model, Silent, backend, build::bind, build::jit, compile, open};
use margay_ir::{Changed, Cx, Graph, Op, Pass, eval, text};
use margay_loops::{Extent, Kernel, Precision, Program, Stmt, Work};
use margay_lower::lower;
use margay_passes::{Differentiate, FoldConstants, MergeDuplicates, RemoveDead, Simplify};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::{Tolerance, assert_close, normal, parse_with_random_constants};

fn program(g: &Graph) -> Program {
    let backend = backend::named("cpu", "x86-64-v4", Precision::F32).unwrap_or_else(|e| panic!("{e}"));
    let bound = bind(g, &Binding::new(), &*backend, &mut Dump::none()).unwrap_or_else(|e| panic!("{e}\n{g}"));
    lower(&bound, &*backend).unwrap_or_else(|e| panic!("{e}\n{bound}"))
}

/// Compiled code of every back end gives what the interpreter gives, in the first run and in the next.
fn agrees(g: &Graph, inputs: &[(&str, &Tensor)]) -> Vec<Tensor> {
    agrees_under(g, &Binding::new(), inputs)
}

fn agrees_under(g: &Graph, binding: &Binding, inputs: &[(&str, &Tensor)]) -> Vec<Tensor> {
    let expected = eval::run(g, inputs).unwrap_or_else(|e| panic!("{e}\n{g}"));
    for backend in backend::supported() {
        let executable =
            jit(g, binding, &*backend).unwrap_or_else(|e| panic!("{}: {e}\n{g}", backend.target()));
        let mut session =
            Session::new(&executable, SessionOptions { threads: 2 }).unwrap_or_else(|e| panic!("{e}"));
        for _ in 0..2 {
            let found = session.run(inputs).unwrap_or_else(|e| panic!("{}: {e}\n{g}", backend.target()));
            for ((name, found), expected) in found.iter().zip(&expected) {
                assert_close(
                    &format!("{name} on {}", backend.target()),
                    found,
                    expected,
                    Tolerance::REDUCTION,
                );
            }
        }
    }
    expected
}

fn parsed(source: &str) -> Graph {
    text::parse(source, &|_, _| None).unwrap_or_else(|e| panic!("{e}\n{source}"))
}

fn truth(value: bool) -> Tensor {
    Tensor::from_bytes(DType::Bool, &[], &[u8::from(value)]).unwrap()
}

/// As often as there are elements that are not zero, a row is multiplied with a matrix.
const COUNTED: &str = "graph @counted(%m: i64[3, 2], %x: f32[1, 4]) -> (y: f32[1, 4], n: i64) {
  %0 = non_zero %m : i64[6], i64  // find
  %1 = const #w : f32[4, 4]
  %2 = loop %0.1, %x, %1 {body = &step, max = 5, carried = 1} : f32[1, 4]  // walk
  %3 = neg %2 : f32[1, 4]  // neg
  return %3, %0.1
}
region &step = graph @step(%i: i64, %x: f32[1, 4], %w: f32[4, 4]) -> (x: f32[1, 4]) {
  %0 = matmul %x, %w : f32[1, 4]
  %1 = tanh %0 : f32[1, 4]
  return %1
}
";

#[test]
fn a_run_says_how_often_a_loop_runs() {
    let (g, _) = parse_with_random_constants(COUNTED);
    let x = normal(&[1, 4], 1, 0);
    let mut results = Vec::new();
    for m in [[0i64, 0, 0, 0, 0, 0], [0, 7, 0, 0, -1, 0], [1, 1, 1, 1, 1, 1]] {
        let m = Tensor::from_slice(&[3, 2], &m).unwrap();
        results.push(agrees(&g, &[("m", &m), ("x", &x)]));
    }
    let counts: Vec<i64> = results.iter().map(|r| r[1].to_vec::<i64>().unwrap()[0]).collect();
    assert_eq!(counts, [0, 2, 6]);
    assert_ne!(results[0][0], results[1][0]);
    let program = program(&g);
    let bounds: Vec<usize> = program
        .steps()
        .filter_map(|(_, s)| match &s.work {
            Work::Loop(l) => Some(l.trips),
            _ => None,
        })
        .map(|trips| if let Extent::Read { bound, .. } = trips { bound } else { 0 })
        .collect();
    assert_eq!(bounds, [5], "{program}");
    // What `non_zero` leaves over is as long as a register says.
    let reads = |k: &Kernel| {
        let mut found = false;
        k.visit(&mut |s| found |= matches!(s, Stmt::Loop { extent: Extent::Read { bound: 6, .. }, .. }));
        found
    };
    assert!(program.kernels.iter().any(reads), "{program}");
}

#[test]
fn graphs_inside_operators_read_back() {
    let (g, _) = parse_with_random_constants(COUNTED);
    let printed = g.to_string();
    assert_eq!(printed.matches("\nregion &").count(), 1);
    let constant = g.order().into_iter().find_map(|n| g.constant(n.into())).unwrap().tensor().clone();
    let again = text::parse(&printed, &|_, _| Some(constant.clone().into()))
        .unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(again.to_string(), printed);
    let error =
        text::parse(&COUNTED.replace("&step,", "&walk,"), &|_, _| Some(constant.clone().into())).unwrap_err();
    assert_eq!(error.to_string(), "line 4: there is no `region &walk`");
}

#[test]
fn a_region_that_does_not_fit_is_refused() {
    let (_, wide) = COUNTED.split_once("region").unwrap();
    let wide = COUNTED.replace(wide, &wide.replace("f32[1, 4]", "f32[2, 4]"));
    let error = text::parse(&wide, &|_, ty| Tensor::zeros(ty.dtype, &ty.extents()?).ok().map(Into::into))
        .unwrap_err();
    let (line, what) = (error.line, error.message);
    assert_eq!(line, 4);
    assert!(what.contains("expected f32[2, 4], found f32[1, 4] as operand 1"), "{what}");
}

#[test]
fn equal_regions_share_their_kernels() {
    let region = "region &half = graph @half(%x: f32[7, 5]) -> (y: f32[7, 5]) {
      %0 = const 0.5 : f32
      %1 = mul %x, %0 : f32[7, 5]
      %2 = softmax %1 {axis = 1} : f32[7, 5]
      return %2
    }
    region &same = graph @same(%x: f32[7, 5]) -> (y: f32[7, 5]) {
      return %x
    }";
    let choose = |n: usize| {
        let nodes: String = (0..n)
            .map(|i| {
                let x = if i == 0 { "%x".to_owned() } else { format!("%{}", i - 1) };
                format!("%{i} = if %t, {x} {{then = &half, otherwise = &same}} : f32[7, 5]  // choice{i}\n")
            })
            .collect();
        let head = "graph @choose(%t: bool, %x: f32[7, 5]) -> (y: f32[7, 5]) {\n";
        let source = format!("{head}{nodes}return %{}\n}}\n{region}", n - 1);
        parsed(&source)
    };
    let (one, three) = (program(&choose(1)), program(&choose(3)));
    assert_eq!(one.kernels.len(), three.kernels.len(), "{three}");
    assert_eq!(three.body.iter().filter(|s| matches!(s.work, Work::If { .. })).count(), 3, "{three}");
    let x = normal(&[7, 5], 2, 0);
    for test in [false, true] {
        agrees(&choose(3), &[("t", &truth(test)), ("x", &x)]);
    }
}

#[test]
fn derivatives_through_loops_are_refused_with_the_reason() {
    let source = "graph @walk(%n: i64, %x: f32[4]) -> (y: f32) {
      %0 = loop %n, %x {body = &step, max = 5, carried = 1} : f32[4]  // walk
      %1 = reduce %0 {kind = sum, axes = [0]} : f32
      return %1
    }
    region &step = graph @step(%i: i64, %x: f32[4]) -> (x: f32[4]) {
      %0 = tanh %x : f32[4]
      return %0
    }";
    let (mut g, _) = parse_with_random_constants(source);
    let pass = Differentiate { output: "y".into(), by: vec!["x".into()] };
    let refusal = pass.run(&mut g, &mut Cx::default()).unwrap_err().to_string();
    assert!(refusal.contains("the values of every repetition, which are not kept"), "{refusal}");
}

/// The steps inside the loops of a program, by what they run.
fn inside_loops(p: &Program) -> Vec<&'static str> {
    let loops = p.steps().filter_map(|(_, s)| if let Work::Loop(l) = &s.work { Some(&l.body) } else { None });
    let word = |work: &Work| match work {
        Work::Kernel { .. } => "kernel",
        Work::Call { .. } => "call",
        Work::Copy { .. } => "copy",
        Work::If { .. } => "if",
        Work::Loop(_) => "loop",
    };
    loops.flatten().map(|s| word(&s.work)).collect()
}

#[test]
fn carried_values_are_written_where_they_stay() {
    let walk = |body: &str, out: &str| {
        parsed(&format!(
            "graph @walk(%n: i64, %x: f32[6, 6], %z: f32[6, 6]) -> (y: f32[6, 6], w: f32[6, 6]) {{
               %0 = loop %n, %x, %z {{body = &step, max = 5, carried = 2}} : f32[6, 6], f32[6, 6]  // walk
               return %0, %0.1
             }}
             region &step = graph @step(%i: i64, %x: f32[6, 6], %z: f32[6, 6]) -> (x: f32[6, 6], z: f32[6, 6]) {{
               {body}
               return {out}
             }}"
        ))
    };
    let run = |g: &Graph| {
        for n in [0i64, 1, 2, 5] {
            agrees(
                g,
                &[("n", &Tensor::scalar(n)), ("x", &normal(&[6, 6], 1, 0)), ("z", &normal(&[6, 6], 2, 0))],
            );
        }
    };
    // A value that is read where it is written needs no copy, and neither does one that stays.
    let g = walk("%0 = tanh %x : f32[6, 6]", "%0, %z");
    assert_eq!(inside_loops(&program(&g)), ["kernel"]);
    run(&g);
    // A product reads its whole operand: it is written elsewhere, and copied.
    let g = walk("%0 = matmul %x, %z : f32[6, 6]", "%0, %z");
    assert_eq!(inside_loops(&program(&g)), ["call", "copy"]);
    run(&g);
    // Written at once although the old value was read by a product before.
    let g = walk("%0 = matmul %x, %z : f32[6, 6]\n%1 = softmax %0 {axis = 1} : f32[6, 6]", "%1, %z");
    assert_eq!(inside_loops(&program(&g)), ["call", "kernel"]);
    run(&g);
    // Both change places: one is set aside.
    let g = walk("", "%z, %x");
    assert_eq!(inside_loops(&program(&g)), ["copy", "copy", "copy"]);
    run(&g);
    // One value in two places; a view of a value; a value and what was made of the other one.
    run(&walk("%0 = exp %x : f32[6, 6]\n%1 = tanh %0 : f32[6, 6]", "%1, %1"));
    run(&walk("%0 = transpose %x {perm = [1, 0]} : f32[6, 6]", "%z, %0"));
    run(&walk("%0 = tanh %x : f32[6, 6]", "%z, %0"));
    run(&walk("%0 = tanh %x : f32[6, 6]\n%1 = add %0, %z : f32[6, 6]", "%0, %1"));
    run(&walk("%0 = transpose %z {perm = [1, 0]} : f32[6, 6]\n%1 = add %x, %0 : f32[6, 6]", "%0, %1"));
}

/// Sums of powers: the outer loop has rows, the inner one, whose length is the number of the row, has a choice.
const NESTED: &str = "graph @nested(%n: i64, %x: f32[N]) -> (y: f32[N], rows: f32[N, N]) {
  %0 = const 1 : i64
  %1 = loop %n, %x, %0 {body = &rows, max = N, carried = 1} : f32[N], f32[N, N]  // rows
  return %1, %1.1
}
region &half = graph @half(%x: f32[N]) -> (y: f32[N]) {
  %0 = const 0.5 : f32
  %1 = mul %x, %0 : f32[N]
  return %1
}
region &grow = graph @grow(%x: f32[N]) -> (y: f32[N]) {
  %0 = const 1.5 : f32
  %1 = add %x, %0 : f32[N]
  return %1
}
region &powers = graph @powers(%k: i64, %x: f32[N], %one: i64) -> (y: f32[N]) {
  %0 = less %k, %one : bool
  %1 = if %0, %x {then = &half, otherwise = &grow} : f32[N]  // choice
  return %1
}
region &rows = graph @rows(%i: i64, %x: f32[N], %one: i64) -> (y: f32[N], row: f32[N]) {
  %0 = loop %i, %x, %one {body = &powers, max = 3, carried = 1} : f32[N]  // powers
  %1 = exp %0 : f32[N]
  return %0, %1
}
";

#[test]
fn branches_and_loops_stand_in_loops() {
    let g = parsed(NESTED);
    let printed = g.to_string();
    assert_eq!(text::parse(&printed, &|_, _| None).unwrap().to_string(), printed);
    // Text that names a region in front of it would have no meaning: those inside come first.
    let starts: Vec<&str> = printed.lines().filter(|l| l.starts_with("region")).collect();
    let order: Vec<usize> = ["@half", "@grow", "@powers", "@rows"]
        .iter()
        .map(|n| starts.iter().position(|l| l.contains(n)).unwrap())
        .collect();
    assert!(order.is_sorted(), "{printed}");
    for (extent, trips) in [(1usize, 1i64), (3, 2), (5, 5), (4, 9), (4, 0), (4, -3)] {
        let binding = Binding::from([("N".into(), extent as i64)]);
        let x = normal(&[extent], 3, 0);
        let found = agrees_under(&g, &binding, &[("n", &Tensor::scalar(trips)), ("x", &x)]);
        let rows = usize::try_from(trips).unwrap_or(0).min(extent);
        let numbers = found[1].to_vec::<f32>().unwrap();
        assert!(
            numbers[rows * extent..].iter().all(|&v| v == 0.0),
            "rows that no repetition wrote are zeros"
        );
        assert!(numbers[..rows * extent].iter().all(|&v| v > 0.0));
    }
}

#[test]
fn a_condition_ends_a_loop_and_its_rows() {
    let g = parsed(
        "graph @until(%n: i64, %go: bool, %x: f32[2]) -> (x: f32[2], rows: f32[6, 2]) {
           %0 = loop %n, %go, %x {body = &double, max = 6, carried = 1, condition = true} : f32[2], f32[6, 2]
           return %0, %0.1
         }
         region &double = graph @double(%i: i64, %x: f32[2]) -> (more: bool, x: f32[2], row: f32[2]) {
           %0 = add %x, %x : f32[2]
           %1 = reduce %0 {kind = sum, axes = [0]} : f32
           %2 = const 20.0 : f32
           %3 = less %1, %2 : bool
           return %3, %0, %x
         }",
    );
    let x = Tensor::from_slice(&[2], &[1f32, 2.0]).unwrap();
    let run = |n: i64, go: bool| agrees(&g, &[("n", &Tensor::scalar(n)), ("go", &truth(go)), ("x", &x)]);
    let found = run(6, true);
    // 3, 6, 12, 24: the third doubling passes 20.
    assert_eq!(found[0].to_vec::<f32>().unwrap(), [8.0, 16.0]);
    assert_eq!(
        found[1].to_vec::<f32>().unwrap(),
        [1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    );
    assert_eq!(run(2, true)[0].to_vec::<f32>().unwrap(), [4.0, 8.0]);
    assert_eq!(run(6, false)[0], x);
}

#[test]
fn images_in_loops_lie_as_kernels_want_them() {
    let (g, _) = parse_with_random_constants(
        "graph @net(%n: i64, %x: f32[B, 3, 6, 5]) -> (y: f32[B, 3, 6, 5]) {
           %0 = loop %n, %x {body = &block, max = 4, carried = 1} : f32[B, 3, 6, 5]  // blocks
           return %0
         }
         region &block = graph @block(%i: i64, %x: f32[B, 3, 6, 5]) -> (y: f32[B, 3, 6, 5]) {
           %0 = const #k : f32[3, 3, 3, 3]
           %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[B, 3, 6, 5]  // conv
           %2 = sigmoid %1 : f32[B, 3, 6, 5]
           return %2
         }",
    );
    let x = normal(&[2, 3, 6, 5], 7, 0);
    for n in [0i64, 3] {
        agrees_under(&g, &Binding::from([("B".into(), 2)]), &[("n", &Tensor::scalar(n)), ("x", &x)]);
    }
}

#[test]
fn passes_work_inside_of_regions() {
    let source = "graph @outer(%t: bool, %x: f32[4]) -> (y: f32[4], z: f32[4]) {
      %0 = if %t, %x {then = &work, otherwise = &same} : f32[4]
      %1 = if %t, %0 {then = &work, otherwise = &same} : f32[4]
      return %0, %1
    }
    region &work = graph @work(%x: f32[4]) -> (y: f32[4]) {
      %0 = const 1.0 : f32
      %1 = const 2.0 : f32
      %2 = sub %1, %0 : f32
      %3 = mul %x, %2 : f32[4]
      %4 = tanh %3 : f32[4]
      %5 = tanh %3 : f32[4]
      %6 = neg %x : f32[4]
      %7 = add %4, %5 : f32[4]
      return %7
    }
    region &same = graph @same(%x: f32[4]) -> (y: f32[4]) {
      return %x
    }";
    let mut g = parsed(source);
    let passes: [&dyn Pass; 4] = [&FoldConstants::default(), &Simplify, &MergeDuplicates, &RemoveDead];
    for pass in passes {
        pass.run(&mut g, &mut Cx::default()).unwrap();
        g.verify(margay_ir::Stage::Imported).unwrap();
    }
    let choice = g.outputs()[0].value.node;
    let [then, otherwise] = g.op(choice).regions()[..] else { panic!("an `if` has two regions") };
    assert_eq!(
        then.graph().to_string(),
        "graph @work(%x: f32[4]) -> (y: f32[4]) {
  %0 = tanh %x : f32[4]
  %1 = add %0, %0 : f32[4]
  return %1
}
"
    );
    assert_eq!(otherwise.graph().len(), 1);
    assert_eq!(g.to_string().matches("\nregion &").count(), 2, "equal regions stay equal\n{g}");
    for pass in passes {
        assert_eq!(pass.run(&mut g, &mut Cx::default()).unwrap(), Changed::No, "{}", pass.name());
    }
    // What a region reads is an operand, and so is kept.
    assert!(g.order().iter().any(|n| matches!(g.op(*n), Op::If(_))));
    g.verify(margay_ir::Stage::Canonical).unwrap();
}

#[test]
fn the_verifier_looks_into_regions() {
    let mut g = parsed(
        "graph @outer(%t: bool, %x: f32[4]) -> (y: f32[4]) {
           %0 = if %t, %x {then = &dead, otherwise = &same} : f32[4]  // choice
           return %0
         }
         region &dead = graph @dead(%x: f32[4]) -> (y: f32[4]) {
           %0 = neg %x : f32[4]  // last
           return %x
         }
         region &same = graph @same(%x: f32[4]) -> (y: f32[4]) {
           return %x
         }",
    );
    g.verify(margay_ir::Stage::Imported).unwrap();
    let found = g.verify(margay_ir::Stage::Canonical).unwrap_err();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["if `choice`: in a region: neg `last`: nobody reads it"]);
    RemoveDead.run(&mut g, &mut Cx::default()).unwrap();
    g.verify(margay_ir::Stage::Canonical).unwrap();
}

#[test]
fn what_is_carried_may_be_empty() {
    let g = parsed(
        "graph @empty(%n: i64, %x: f32[0, 3], %y: f32[2]) -> (x: f32[0, 3], y: f32[2], rows: f32[4, 0, 3]) {
           %0 = loop %n, %x, %y {body = &step, max = 4, carried = 2} : f32[0, 3], f32[2], f32[4, 0, 3]
           return %0, %0.1, %0.2
         }
         region &step = graph @step(%i: i64, %x: f32[0, 3], %y: f32[2]) -> (x: f32[0, 3], y: f32[2], row: f32[0, 3]) {
           %0 = exp %x : f32[0, 3]
           %1 = reduce %0 {kind = sum, axes = [0, 1]} : f32
           %2 = add %y, %1 : f32[2]
           %3 = exp %2 : f32[2]
           return %0, %3, %x
         }",
    );
    let (x, y) = (Tensor::zeros(DType::F32, &[0, 3]).unwrap(), normal(&[2], 1, 0));
    for n in [0i64, 2] {
        agrees(&g, &[("n", &Tensor::scalar(n)), ("x", &x), ("y", &y)]);
    }
    let none = parsed(
        "graph @never(%n: i64, %x: f32[3]) -> (x: f32[3], rows: f32[0, 3]) {
           %0 = loop %n, %x {body = &step, max = 0, carried = 1} : f32[3], f32[0, 3]
           return %0, %0.1
         }
         region &step = graph @step(%i: i64, %x: f32[3]) -> (x: f32[3], row: f32[3]) {
           %0 = exp %x : f32[3]
           return %0, %0
         }",
    );
    let x = normal(&[3], 2, 0);
    let found = agrees(&none, &[("n", &Tensor::scalar(7i64)), ("x", &x)]);
    assert_eq!((&found[0], found[1].len()), (&x, 0));
}

#[test]
fn artifacts_carry_the_constants_of_regions() {
    // Folding leaves nothing of the kernel and of the matrix as they are in the text.
    let (g, _) = parse_with_random_constants(
        "graph @net(%n: i64, %x: f32[N, 6], %b: f32[6]) -> (y: f32[N, 6]) {
           %0 = loop %n, %x, %b {body = &layer, max = 4, carried = 1} : f32[N, 6]  // layers
           return %0
         }
         region &layer = graph @layer(%i: i64, %x: f32[N, 6], %b: f32[6]) -> (y: f32[N, 6]) {
           %0 = const #w : f32[6, 6]  // weight
           %1 = transpose %0 {perm = [1, 0]} : f32[6, 6]
           %2 = matmul %x, %1 : f32[N, 6]  // product
           %3 = const #scale : f32[20]  // scale
           %4 = reduce %3 {kind = sum, axes = [0]} : f32
           %5 = mul %2, %4 : f32[N, 6]
           %6 = add %5, %b : f32[N, 6]
           %7 = tanh %6 : f32[N, 6]
           return %7
         }",
    );
    let source = Model::new(g, "net", &mut Dump::none()).unwrap();
    let options = CompileOptions { dims: vec![("N".into(), vec![3])], ..CompileOptions::default() };
    let compiled = compile(&source, None, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.margay");
    compiled.write(&path, false, &mut Dump::none()).unwrap();
    let again = open(&path).unwrap_or_else(|e| panic!("{e}")).graph;
    assert_eq!(again.to_string(), source.graph.to_string());
    let inputs = [("n", &Tensor::scalar(3i64)), ("x", &normal(&[3, 6], 4, 0)), ("b", &normal(&[6], 5, 0))];
    agrees_under(&again, &Binding::from([("N".into(), 3)]), &inputs);
}
