//! The conditions of rules: graphs on which a pass must fire, and graphs beside them on which it must not.
//!
//! `rules/PASS.ir` holds the cases of a pass: graphs, each below a line that says what is expected.
//!
//! - `// fires: TEXT`: the pass changes the graph, and TEXT stands in what it prints then.
//! - `// leaves`: it changes nothing and says nothing.
//! - `// declines: TEXT`: it changes nothing and says why.
//!
//! In either case both graphs give the same numbers. Extents are equal where they can be, so that a wrong match is not
//! refused by its types. What no case thought of is tried at random: each graph with one thing changed, for which the
//! numbers must stay what they are whether or not the pass fires.

use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};
use std::path::Path;

use margay_ir::ops::{Const, Numbers};
use margay_ir::{Changed, Cx, Graph, Op, Pass, Payload, Value, eval, text};
use margay_passes::{PASSES, read_pass};
use margay_tensor::random::Philox;
use margay_tensor::{DType, Tensor};
use margay_testkit::parse_with_random_constants;

struct Case {
    expected: String,
    graph: String,
}

/// The cases of a file.
fn cases(pass: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules").join(format!("{pass}.ir"));
    let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut found: Vec<Case> = Vec::new();
    let mut expected = None;
    for line in source.lines() {
        let says = line.strip_prefix("// ").unwrap_or_default();
        if says == "leaves" || says.starts_with("fires: ") || says.starts_with("declines: ") {
            assert!(expected.replace(says.to_owned()).is_none(), "{pass}: two expectations at `{line}`");
        } else if line.starts_with("graph @") {
            let expected = expected.take().unwrap_or_else(|| panic!("{pass}: nothing expected of `{line}`"));
            found.push(Case { expected, graph: format!("{line}\n") });
        } else if !line.starts_with("//")
            && let Some(case) = found.last_mut()
        {
            case.graph += &format!("{line}\n");
        }
    }
    found
}

/// The passes that have a file of cases.
fn passes() -> Vec<Box<dyn Pass>> {
    let listed = |entry: &&margay_passes::PassEntry| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("rules").join(format!("{}.ir", entry.name)).exists()
    };
    PASSES.iter().filter(listed).map(|entry| read_pass(entry.name, &|_| unreachable!()).unwrap()).collect()
}

/// Random operands of a graph; open extents are 3.
fn inputs(g: &Graph) -> Vec<(String, Tensor)> {
    let binding = g.symbols().into_iter().map(|s| (s, 3)).collect();
    let mut inputs = Vec::new();
    for (stream, &n) in g.inputs().iter().enumerate() {
        let Op::Input(input) = g.op(n) else { panic!("an input is an input") };
        let shape = input.ty.bind(&binding).extents().expect("every symbol is bound");
        let tensor = match input.ty.dtype {
            DType::F32 => margay_testkit::normal(&shape, 11, stream as u64),
            dtype => {
                let numbers = (0..shape.iter().product::<usize>()).map(|i| (i % 3) as i128).collect();
                Numbers::Int(numbers).into_tensor(dtype, &shape).unwrap()
            }
        };
        inputs.push((input.name.to_string(), tensor));
    }
    inputs
}

fn values(g: &Graph, inputs: &[(String, Tensor)]) -> Result<Vec<Tensor>, eval::RunError> {
    let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    eval::run(g, &by_name)
}

fn floats(t: &Tensor) -> Vec<f64> {
    Numbers::of(t).unwrap().floats()
}

/// Whether two results are the same up to the rounding of their largest element.
fn same(found: &[Tensor], expected: &[Tensor], tolerance: f64) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(a, b)| {
            let largest = floats(b).into_iter().filter(|x| x.is_finite()).fold(1e-3, |m, x| x.abs().max(m));
            let near =
                |x: f64, y: f64| x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance * largest;
            a.shape() == b.shape() && floats(a).into_iter().zip(floats(b)).all(|(x, y)| near(x, y))
        })
}

#[test]
fn rules_fire_where_they_should_and_nowhere_else() {
    for pass in passes() {
        let name = pass.name();
        let cases = cases(name);
        assert!(cases.iter().any(|c| c.expected == "leaves"), "{name}: no graph that it must leave");
        assert!(
            cases.iter().any(|c| c.expected.starts_with("fires")),
            "{name}: no graph on which it must fire"
        );
        for Case { expected, graph } in cases {
            let (before, _) = parse_with_random_constants(&graph);
            let what = format!("{name} at @{}", before.name());
            let (mut after, mut cx) = (before.clone(), Cx::default());
            let changed = pass.run(&mut after, &mut cx).unwrap_or_else(|e| panic!("{what}: {e}"));
            let said: Vec<&str> =
                cx.remarks.iter().filter(|r| r.declined).map(|r| r.message.as_str()).collect();
            match expected.split_once(": ") {
                Some(("fires", text)) => {
                    assert!(changed != Changed::No, "{what} does not fire\n{before}");
                    assert!(after.to_string().contains(text), "{what}: no `{text}` in\n{after}");
                }
                Some((_, text)) => {
                    assert_eq!(changed, Changed::No, "{what} fires\n{after}");
                    assert_eq!(said, [text], "{what}");
                }
                None => {
                    assert_eq!(changed, Changed::No, "{what} fires\n{after}");
                    assert!(said.is_empty(), "{what}: {said:?}");
                }
            }
            let inputs = inputs(&before);
            let (expected, found) = (values(&before, &inputs).unwrap(), values(&after, &inputs).unwrap());
            assert!(same(&found, &expected, 1e-5), "{what}: {found:?} for {expected:?}\n{after}");
            let again = pass.run(&mut after, &mut Cx::default());
            assert_eq!(again, Ok(Changed::No), "{what}: a second run changes something");
        }
    }
}

/// Choices named by a seed.
struct Dice {
    stream: Philox,
    next: u64,
}

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        self.stream.block(self.next)[0] as usize % n
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

const UNARY: [&str; 8] = ["abs", "erf", "exp", "neg", "relu", "sigmoid", "sqrt", "tanh"];
const BINARY: [&str; 7] = ["add", "div", "max", "min", "mul", "pow", "sub"];
const KINDS: [&str; 4] = ["sum", "mean", "max", "prod"];
const NUMBERS: [f64; 9] = [0.0, 0.5, 1.0, 2.0, -1.0, 1e-5, FRAC_1_SQRT_2, SQRT_2, f64::NEG_INFINITY];

/// An operator with one thing changed, if it has anything to change.
fn changed_op(op: &Op, dice: &mut Dice) -> Option<Op> {
    if let Op::Const(c) = op {
        let t = c.payload.tensor();
        if !t.dtype().is_float() {
            return None;
        }
        let mut numbers = floats(t);
        if t.len() == 1 || dice.below(2) == 0 {
            numbers.fill(dice.pick(&NUMBERS));
        } else {
            let at = dice.below(numbers.len());
            numbers[at] = dice.pick(&NUMBERS);
        }
        let changed = Numbers::Float(numbers).into_tensor(t.dtype(), t.shape()).ok()?;
        return Some(Const { payload: Payload::new(changed) }.into());
    }
    for family in [&UNARY[..], &BINARY[..]] {
        if family.contains(&op.name()) {
            return Op::parse(dice.pick(family), &[])?.ok();
        }
    }
    let attributes = op.attributes();
    if attributes.is_empty() {
        return None;
    }
    let chosen = dice.below(attributes.len());
    let text: Vec<(&str, String)> = attributes
        .into_iter()
        .enumerate()
        .map(|(i, (name, value))| {
            let value = match (i == chosen, name) {
                (false, _) => value,
                (true, "kind") => dice.pick(&KINDS).to_owned(),
                (true, "perm") => permuted(&value, dice),
                (true, _) if value == "true" => "false".to_owned(),
                (true, _) if value == "false" => "true".to_owned(),
                (true, _) => with_another_digit(&value, dice),
            };
            (name, value)
        })
        .collect();
    let text: Vec<(&str, &str)> = text.iter().map(|(n, v)| (*n, v.as_str())).collect();
    Op::parse(op.name(), &text)?.ok()
}

/// A list with two elements exchanged.
fn permuted(list: &str, dice: &mut Dice) -> String {
    let mut items: Vec<&str> = list.trim_matches(['[', ']']).split(", ").collect();
    let (i, j) = (dice.below(items.len()), dice.below(items.len()));
    items.swap(i, j);
    format!("[{}]", items.join(", "))
}

/// A text with one of its digits changed.
fn with_another_digit(text: &str, dice: &mut Dice) -> String {
    let digits: Vec<usize> =
        text.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(i, _)| i).collect();
    if digits.is_empty() {
        return text.to_owned();
    }
    let (at, digit) = (dice.pick(&digits), dice.below(4));
    format!("{}{digit}{}", &text[..at], &text[at + 1..])
}

/// A graph with one node changed: its operator, an operand, or who reads it. `None` if that does not type.
fn changed_graph(g: &Graph, dice: &mut Dice) -> Option<Graph> {
    let order = g.order();
    let chosen = loop {
        let n = dice.pick(&order);
        if !matches!(g.op(n), Op::Input(_)) {
            break n;
        }
    };
    let way = dice.below(4);
    let mut out = Graph::new(g.name());
    let mut values: Vec<(Value, Value)> = Vec::new();
    for &n in g.inputs() {
        let Op::Input(input) = g.op(n) else { return None };
        values.push((n.into(), out.add_input(&input.name, input.ty.clone())));
    }
    for n in order {
        let node = g.node(n);
        if matches!(node.op, Op::Input(_)) {
            continue;
        }
        let now = |v: &Value| values.iter().find(|(old, _)| old == v).map(|(_, new)| *new);
        let mut operands: Vec<Value> = g.inputs_of(n).iter().map(now).collect::<Option<_>>()?;
        let mut op = node.op.clone();
        if n == chosen {
            match way {
                0 if operands.len() > 1 => operands.swap(0, 1),
                1 if !operands.is_empty() => {
                    let slot = dice.below(operands.len());
                    operands[slot] = dice.pick(&values).1;
                }
                2 => {}
                _ => op = changed_op(&op, dice)?,
            }
        }
        let first = out.add(op, &operands, node.origin.clone()).ok()?;
        for slot in 0..node.types.len().min(out.node(first.node).types.len()) as u16 {
            values.push((Value { node: n, out: slot }, Value { node: first.node, out: slot }));
        }
    }
    let now = |v: Value| values.iter().find(|(old, _)| *old == v).map(|(_, new)| *new);
    for o in g.outputs() {
        out.add_output(&o.name, now(o.value)?);
    }
    if way == 2 {
        out.add_output("also", now(chosen.into())?);
    }
    out.remove_dead();
    Some(out)
}

#[test]
fn graphs_with_one_thing_changed_keep_their_numbers() {
    for pass in passes() {
        let (mut fired, mut left) = (0, 0);
        let mut dice = Dice { stream: Philox::new(23, 0), next: 0 };
        for case in cases(pass.name()) {
            let (g, _) = parse_with_random_constants(&case.graph);
            let inputs = inputs(&g);
            for _ in 0..120 {
                let Some(before) = changed_graph(&g, &mut dice) else { continue };
                let Ok(expected) = values(&before, &inputs) else { continue };
                if !expected.iter().flat_map(floats).all(f64::is_finite) {
                    continue;
                }
                let mut after = before.clone();
                let changed = pass
                    .run(&mut after, &mut Cx::default())
                    .unwrap_or_else(|e| panic!("{}: {e}\n{before}", pass.name()));
                *(if changed == Changed::No { &mut left } else { &mut fired }) += 1;
                let found = values(&after, &inputs).unwrap_or_else(|e| panic!("{e}\n{before}\n{after}"));
                let what = pass.name();
                assert!(same(&found, &expected, 1e-3), "{what}:\n{before}\n{after}\n{expected:?}\n{found:?}");
            }
        }
        assert!(fired > 20 && left > 20, "{}: fired {fired} times, left {left} graphs", pass.name());
    }
}

/// What operators of `infer.txt` hold.
const REGIONS: &str = "region &neg = graph @neg(%x: f32[4]) -> (y: f32[4]) {
  %0 = neg %x : f32[4]
  return %0
}
region &sum = graph @sum(%x: f32[4]) -> (y: f32) {
  %0 = reduce %x {kind = sum, axes = [0]} : f32
  return %0
}
region &step = graph @step(%i: i64, %x: f32[4]) -> (y: f32[4]) {
  %0 = neg %x : f32[4]
  return %0
}
region &until = graph @until(%i: i64, %x: f32[4]) -> (more: i64, y: f32[4]) {
  return %i, %x
}
";

#[test]
fn type_rules_refuse_what_they_should() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules/infer.txt");
    let source = std::fs::read_to_string(path).unwrap();
    let mut refused: Vec<String> = Vec::new();
    for line in source.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (node, message) = line.split_once(" => ").unwrap_or_else(|| panic!("no message in `{line}`"));
        let (node, attributes) = node.split_once(" {").unwrap_or((node, ""));
        let (name, types) = node.split_once(' ').unwrap_or((node, ""));
        let types = split_types(types);
        let list = |sigil: &str, ty: bool| {
            let one =
                |(i, t): (usize, &&str)| if ty { format!("{sigil}{i}: {t}") } else { format!("{sigil}{i}") };
            types.iter().enumerate().map(one).collect::<Vec<_>>().join(", ")
        };
        let attributes = if attributes.is_empty() { String::new() } else { format!(" {{{attributes}") };
        let source = format!(
            "graph @refused({}) -> (y: f32) {{\n  %0 = {name} {}{attributes} : f32\n  return %0\n}}\n{REGIONS}",
            list("%x", true),
            list("%x", false),
        );
        let found = text::parse(&source, &|_, _| None).err().map(|e| e.message);
        assert_eq!(found, Some(format!("`{name}`: {message}")), "{line}");
        refused.push(name.to_owned());
    }
    for name in Op::ALL.iter().filter(|name| !["cast", "const", "dims", "input"].contains(name)) {
        let plain = UNARY.contains(name)
            || BINARY.contains(name)
            || Op::parse(name, &[]).is_some_and(|op| op.is_ok());
        assert!(
            plain || refused.iter().filter(|known| known == name).count() >= 2,
            "no refusals of `{name}`"
        );
    }
}

/// The types of a list, whose extents are separated by commas too.
fn split_types(list: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), list.trim());
    while !rest.is_empty() {
        let mut depth = 0;
        let end = rest.find(|c| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            c == ',' && depth == 0
        });
        let (first, after) = end.map_or((rest, ""), |end| (&rest[..end], rest[end + 1..].trim_start()));
        (found, rest) = ([found, vec![first]].concat(), after);
    }
    found
}

#[test]
fn operators_of_one_kind_have_one_domain() {
    let refuses = |name: &str, ty: &str| {
        let source =
            format!("graph @g(%x: {ty}[2]) -> (y: {ty}[2]) {{\n %0 = {name} %x : {ty}[2]\n return %0\n}}");
        text::parse(&source, &|_, _| None).is_err()
    };
    for name in
        ["ceil", "cos", "erf", "exp", "floor", "log", "round", "sigmoid", "sin", "softplus", "sqrt", "tanh"]
    {
        assert!(refuses(name, "i64") && refuses(name, "bool") && !refuses(name, "f64"), "{name}");
    }
    for name in ["abs", "neg", "relu"] {
        assert!(refuses(name, "bool") && !refuses(name, "i8") && !refuses(name, "f16"), "{name}");
    }
    assert!(refuses("not", "u8") && !refuses("not", "bool"));
}
