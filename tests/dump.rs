//! Dumped graphs run again on their own constants, and what a broken pass leaves shows the failure again.

use std::path::Path;

use margay_driver::{BEFORE, Dump, read_graph};
use margay_ir::ops::{Const, Exp};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, Op, Origin, Pass, PassError, Patch, Stage, Value,
};
use margay_passes::{Pipeline, PipelineFault, PipelineItem, StoreAs, StoreConstants};
use margay_tensor::{DType, Storage};
use margay_testkit::parse_with_random_constants;

const SOURCE: &str = "graph @net(%x: f32[N, 48]) -> (y: f32[N, 40], z: f32[48]) {
  %0 = const #w : f32[48, 40]  // fc.weight
  %1 = matmul %x, %0 : f32[N, 40]  // fc
  %2 = const splat(0.5) : f32[40]  // scale
  %3 = mul %1, %2 : f32[N, 40]
  %4 = const [1.0, 2.0, 3.0] : f32[3]  // short
  %5 = const #b : f32[48]  // bias
  %6 = const #b : f32[48]  // again
  %7 = add %5, %6 : f32[48]
  return %3, %7
}";

/// The contents of a dumped graph's constants, in order, with what identifies them.
fn contents(g: &Graph) -> Vec<(String, Storage, Vec<u8>)> {
    let constant = |n| match g.op(n) {
        Op::Const(Const { payload }) => {
            Some((payload.key().to_string(), payload.storage(), payload.stored().to_bytes()))
        }
        _ => None,
    };
    g.order().into_iter().filter_map(constant).collect()
}

fn dumped(folder: &Path, graphs: &[(&str, &Graph)]) {
    let mut dump = Dump::to(folder, "margay test\nseed 5").unwrap();
    graphs.iter().for_each(|(name, g)| drop(dump.graph(name, g)));
    dump.finish().unwrap();
}

/// A dumped graph as it is read.
fn read(folder: &Path, name: &str) -> Graph {
    let read = read_graph(&folder.join(name)).unwrap();
    assert_eq!(read.made_up, 0, "{name}");
    read.graph
}

#[test]
fn dumped_graphs_have_their_own_constants() {
    let (g, _) = parse_with_random_constants(SOURCE);
    let stored = |storage: &str| {
        let products = StoreAs::parse(storage).unwrap();
        let mut g = g.clone();
        let pass = StoreConstants { products, ..StoreConstants::default() };
        assert_eq!(pass.run(&mut g, &mut Cx::default()), Ok(Changed::Yes(1)));
        g
    };
    for storage in
        ["bf16", "f16", "int8", "u8(axis = 0, zero points)", "i8(axis = 0, block = 32)", "i8(tensor)"]
    {
        let narrow = stored(storage);
        // The narrow graph alone, and with others that hold the same constant.
        for graphs in [vec![("n", &narrow)], vec![("n", &narrow), ("g", &g)], vec![("g", &g), ("n", &narrow)]]
        {
            let folder = tempfile::tempdir().unwrap();
            dumped(folder.path(), &graphs);
            for (i, (name, g)) in graphs.into_iter().enumerate() {
                let again = read(folder.path(), &format!("{i:02}-{name}.ir"));
                assert_eq!(again.to_string(), g.to_string(), "{storage}");
                assert_eq!(contents(&again), contents(g), "{storage}");
            }
        }
    }
}

#[test]
fn a_constant_is_written_once_and_what_the_text_holds_not_at_all() {
    let (g, _) = parse_with_random_constants(SOURCE);
    let folder = tempfile::tempdir().unwrap();
    dumped(folder.path(), &[("one", &g), ("two", &g)]);
    let bytes = std::fs::read(folder.path().join("consts.safetensors")).unwrap();
    let numbers = 4 * (48 * 40 + 48);
    assert!((numbers..numbers + 400).contains(&bytes.len()), "{} bytes", bytes.len());
    let text = std::fs::read_to_string(folder.path().join("01-two.ir")).unwrap();
    assert!(text.starts_with("// margay test\n// seed 5\ngraph @net("), "{text}");
    let index = std::fs::read_to_string(folder.path().join("index.txt")).unwrap();
    assert!(index.starts_with("// margay test\n// seed 5\n"), "{index}");
    // Without the file, numbers are made up, the same for the same name.
    std::fs::remove_file(folder.path().join("consts.safetensors")).unwrap();
    let made_up = |name: &str| read_graph(&folder.path().join(name)).unwrap();
    assert_eq!(made_up("00-one.ir").made_up, 3);
    assert_eq!(contents(&made_up("00-one.ir").graph), contents(&made_up("01-two.ir").graph));
}

/// Puts an operator into the graph that nobody reads, or fails.
struct Breaks {
    fails: bool,
}

impl Pass for Breaks {
    fn name(&self) -> &'static str {
        "break"
    }

    fn configuration(&self) -> Configuration {
        Configuration {
            text: format!("fails = {}", self.fails),
            files: vec![("why.txt".to_owned(), "it is broken on purpose\n".to_owned())],
        }
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, _: &mut Cx) -> Result<Changed, PassError> {
        let x = Value::from(g.inputs()[0]);
        let mut patch = Patch::new();
        patch.add(g, Exp, &[x], Origin::named("lost")).unwrap();
        g.apply(patch).unwrap();
        match self.fails {
            true => Err(PassError::NoFixpoint { pass: "break", rounds: 64, rules: "a, b".to_owned() }),
            false => Ok(Changed::Yes(1)),
        }
    }
}

#[test]
fn what_a_broken_pass_leaves_shows_the_failure_again() {
    let fails =
        "pass `break`: pass `break` did not come to an end after 64 rounds; rules that fired last: a, b";
    let broken = "after pass `break` the graph is not canonical: exp `lost`: nobody reads it";
    for (breaks, said, items) in
        [(true, fails, "break{fails = true}"), (false, broken, "break{fails = false}, @canonical")]
    {
        let steps = || {
            let products = StoreAs::parse("int8").unwrap();
            vec![
                PipelineItem::Run(Box::new(StoreConstants { products, ..StoreConstants::default() })),
                PipelineItem::Run(Box::new(Breaks { fails: breaks })),
                PipelineItem::Reach(Stage::Canonical),
            ]
        };
        let (g, _) = parse_with_random_constants(SOURCE);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let mut dump = Dump::to(path, "margay test").unwrap();
        let error = dump.run(&Pipeline::new(steps()), &mut g.clone()).unwrap_err();
        dump.finish().unwrap();
        assert_eq!(error.to_string(), said);
        let margay_driver::DriverError::Pipeline { error, dumped } = error else { panic!("{error}") };
        assert_eq!(dumped.as_deref(), Some(path));
        assert_eq!(error.replay.items, items);
        assert_eq!(error.fault.missed_stage(), (!breaks).then_some(Stage::Canonical));

        // The graph before is that behind the pass before, on its own weights; the items on it fail as they did.
        let mut again = read(path, BEFORE);
        assert!(contents(&again).iter().any(|(_, storage, _)| *storage == Storage::int8(1)));
        let second = Pipeline::new(steps().split_off(1)).run(&mut again, &mut |_| {}).unwrap_err();
        assert_eq!(second.to_string(), said);
        let text = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(text("after.ir"), format!("// margay test\n{}", second.replay.after));
        assert_eq!(text("why.txt"), "it is broken on purpose\n");
        let violations = match &second.fault {
            PipelineFault::Pass { error, .. } => error.to_string(),
            PipelineFault::Broken { violations, .. } => violations[0].to_string(),
        };
        assert_eq!(text("violations.txt"), format!("// margay test\n{items}\n{violations}\n"));
    }
}

#[test]
fn dtypes_of_constants_survive() {
    for dtype in DType::ALL {
        let zeros = margay_tensor::Tensor::zeros(dtype, &[20]).unwrap();
        let mut bytes = zeros.bytes().to_vec();
        bytes[0] = 1;
        let tensor = margay_tensor::Tensor::from_bytes(dtype, &[20], &bytes).unwrap();
        let mut g = Graph::new("g");
        let constant = Const { payload: margay_ir::Payload::new(tensor.clone()) };
        let v = g.add(constant, &[], Origin::default()).unwrap();
        g.add_output("y", v);
        let folder = tempfile::tempdir().unwrap();
        dumped(folder.path(), &[("g", &g)]);
        assert_eq!(contents(&read(folder.path(), "00-g.ir"))[0].2, tensor.bytes(), "{dtype}");
    }
}

#[test]
fn constants_of_graphs_inside_operators_are_written_too() {
    let source = "graph @walk(%n: i64, %x: f32[1, 20]) -> (y: f32[1, 20]) {
  %0 = loop %n, %x {body = &step, max = 5, carried = 1} : f32[1, 20]  // walk
  return %0
}
region &step = graph @step(%i: i64, %x: f32[1, 20]) -> (x: f32[1, 20]) {
  %0 = const #w : f32[20, 20]  // w
  %1 = matmul %x, %0 : f32[1, 20]
  return %1
}
";
    let (g, _) = parse_with_random_constants(source);
    let folder = tempfile::tempdir().unwrap();
    dumped(folder.path(), &[("walk", &g)]);
    let again = read(folder.path(), "00-walk.ir");
    assert_eq!(again.to_string(), g.to_string());
    let [constant] = margay_ir::text::named_constants(&again)[..] else { panic!("one constant") };
    assert_eq!(constant.tensor(), margay_ir::text::named_constants(&g)[0].tensor());
}
