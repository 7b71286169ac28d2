//! Text to graph.

use std::collections::HashMap;

use margay_loops::text::words::{quoted, split_top, split_unquoted, take_name};
use margay_tensor::{ContentHash, DType, Dim, Storage, StoredTensor};
use smallvec::SmallVec;

use super::{MAX_SPLAT, STORED};
use crate::ops::Numbers;
use crate::{Counts, Draw, Graph, Guard, Op, Origin, Output, Part, Payload, Region, TensorType, Value, ops};

/// A text that is not a graph (the text's fault).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Finds the contents of a constant by what identifies it, such as `#5be1c0aa12ef` or `lowrank.left(#5be1c0, k = 128)`,
/// and its type. They may be stored as they are where the text says that they are stored narrow.
pub type Resolve<'a> = dyn Fn(&str, &TensorType) -> Option<StoredTensor> + 'a;

/// Reads a graph.
pub fn parse(text: &str, resolve: &Resolve<'_>) -> Result<Graph, ParseError> {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .map(|(i, l)| (i + 1, l.trim()))
        .filter(|(_, l)| !l.is_empty() && !l.starts_with("//"))
        .collect();
    // Regions stand behind the graph, each behind those it names.
    let mut regions = Regions::default();
    let starts: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].1.starts_with("region &")).collect();
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(lines.len());
        let (line, header) = lines[start];
        let named = header.strip_prefix("region &").and_then(|h| h.split_once(" = "));
        let (name, header) =
            named.ok_or_else(|| ParseError { line, message: "expected `region &name = graph`".into() })?;
        let block = [&[(line, header)][..], &lines[start + 1..end]].concat();
        let graph = read_graph(&block, resolve, &regions)?;
        let extent = regions.extent_of(&graph).map_err(|message| ParseError { line, message })?;
        let region = Region::new(graph);
        regions.extents.insert(region.hash(), extent);
        regions.named.insert(name.to_owned(), region);
    }
    let g = read_graph(&lines[..starts.first().copied().unwrap_or(lines.len())], resolve, &regions)?;
    regions.extent_of(&g).map_err(|message| ParseError { line: 1, message })?;
    Ok(g)
}

/// Nodes that graphs with all that they hold may have, those of a region once for each operator that holds it.
const MAX_NODES: usize = 1 << 20;

/// Graphs in one another, at most.
const MAX_DEPTH: usize = 32;

/// What the text has of regions.
#[derive(Default)]
struct Regions {
    /// By the names that the text has for them.
    named: HashMap<String, Region>,
    /// Of each its nodes, with those of the regions in it, and how deep these go.
    extents: HashMap<ContentHash, (usize, usize)>,
}

impl Regions {
    /// Nodes and depth of a graph with the regions in it. A short text can name a region twice in each of many.
    fn extent_of(&self, g: &Graph) -> Result<(usize, usize), String> {
        let (mut nodes, mut depth) = (g.len(), 1);
        for n in g.order() {
            for (inner, below) in g.op(n).regions().iter().filter_map(|r| self.extents.get(&r.hash())) {
                nodes = nodes.saturating_add(*inner);
                depth = depth.max(below + 1);
            }
        }
        match nodes <= MAX_NODES && depth <= MAX_DEPTH {
            true => Ok((nodes, depth)),
            false => Err(format!(
                "graphs in one another have at most {MAX_NODES} nodes and are at most {MAX_DEPTH} deep, \
                 found {nodes} nodes, {depth} deep"
            )),
        }
    }
}

fn read_graph(
    lines: &[(usize, &str)],
    resolve: &Resolve<'_>,
    regions: &Regions,
) -> Result<Graph, ParseError> {
    let Some((&(line, header), lines)) = lines.split_first() else {
        return Err(ParseError { line: 1, message: "expected `graph @name(…)`".into() });
    };
    let at = |line: usize| move |message: String| ParseError { line, message };
    let (mut g, output_names, mut values) = read_header(header).map_err(at(line))?;
    for &(line, text) in lines {
        if text == "}" {
            break;
        }
        // Nothing stands behind it in a graph without outputs.
        if let Some(list) = text.strip_prefix("return").filter(|l| l.is_empty() || l.starts_with(' ')) {
            let found = split_top(list);
            if found.len() != output_names.len() {
                let message = format!("expected {} outputs, found {}", output_names.len(), found.len());
                return Err(ParseError { line, message });
            }
            let mut outputs = Vec::new();
            for (port, v) in output_names.into_iter().zip(found) {
                let value = operand(v, &values, &g).map_err(at(line))?;
                outputs.push(Output { name: port.name.into(), value, counts: port.counts });
            }
            g.set_outputs(outputs);
            return Ok(g);
        }
        if let Some(guard) = text.strip_prefix("guard ") {
            g.add_guard(read_guard(guard).map_err(at(line))?);
            continue;
        }
        read_node(text, &mut g, &mut values, resolve, regions).map_err(at(line))?;
    }
    Err(ParseError { line: lines.last().map_or(line, |l| l.0), message: "expected `return`".into() })
}

type Values = HashMap<String, Value>;

fn operand(text: &str, values: &Values, g: &Graph) -> Result<Value, String> {
    if let Some(v) = values.get(text) {
        return Ok(*v);
    }
    if let Some((base, out)) = text.rsplit_once('.')
        && let (Some(v), Ok(out)) = (values.get(base), out.parse::<u16>())
        && usize::from(out) < g.node(v.node).types.len()
    {
        return Ok(Value { node: v.node, out });
    }
    Err(format!("`{text}` is not defined"))
}

fn read_type(text: &str) -> Result<TensorType, String> {
    let (dtype, shape) = match text.split_once('[') {
        Some((d, rest)) => (d, rest.strip_suffix(']').ok_or_else(|| format!("`{text}` is not a type"))?),
        None => (text, ""),
    };
    let dtype = DType::from_name(dtype.trim()).ok_or_else(|| format!("`{text}` is not a type"))?;
    let shape = split_top(shape).into_iter().map(Dim::parse).collect::<Result<Vec<Dim>, _>>()?;
    let ty = TensorType::new(dtype, shape);
    ty.check_extents().map_err(|e| e.to_string())?;
    Ok(ty)
}

/// An input or output of a header.
struct Port {
    name: String,
    ty: TensorType,
    counts: Option<Counts>,
}

type Ports = Vec<Port>;

/// Reads `name: type` pairs up to the closing parenthesis.
fn read_ports<'a>(mut text: &'a str, sigil: &str) -> Result<(Ports, &'a str), String> {
    let mut ports = Vec::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix(')') {
            return Ok((ports, rest));
        }
        text = text.strip_prefix(',').unwrap_or(text).trim_start();
        text = text.strip_prefix(sigil).ok_or_else(|| format!("expected `{sigil}` at `{text}`"))?;
        let (name, rest) = take_name(text)?;
        let rest = rest.strip_prefix(':').ok_or_else(|| format!("expected `:` after `{name}`"))?;
        let mut depth = 0;
        let end = rest
            .find(|c| {
                depth += i32::from(matches!(c, '[' | '(')) - i32::from(matches!(c, ']' | ')'));
                depth < 0 || (c == ',' && depth == 0)
            })
            .ok_or("expected `)`")?;
        let (ty, counts) = match rest[..end].split_once(" counts axis ") {
            None => (&rest[..end], None),
            Some((ty, counts)) => (ty, Some(read_counts(counts)?)),
        };
        ports.push(Port { name, ty: read_type(ty.trim())?, counts });
        text = &rest[end..];
    }
}

/// Reads `0 of name`.
fn read_counts(text: &str) -> Result<Counts, String> {
    let expected = || format!("expected `counts axis 0 of output`, found `{text}`");
    let (axis, output) = text.split_once(" of ").ok_or_else(expected)?;
    let (output, _) = take_name(output)?;
    Ok(Counts { output: output.into(), axis: axis.parse().map_err(|_| expected())? })
}

fn read_header(text: &str) -> Result<(Graph, Ports, Values), String> {
    let rest = text.strip_prefix("graph @").ok_or("expected `graph @name(…)`")?;
    let (name, rest) = take_name(rest)?;
    let (inputs, rest) = read_ports(rest.strip_prefix('(').ok_or("expected `(`")?, "%")?;
    let rest = rest.trim_start().strip_prefix("-> (").ok_or("expected `-> (`")?;
    let (outputs, _) = read_ports(rest, "")?;
    let mut g = Graph::new(&name);
    let mut values = Values::new();
    for Port { name, ty, .. } in inputs {
        let v = g.add_input(&name, ty);
        values.insert(format!("%{}", quoted(&name)), v);
    }
    Ok((g, outputs, values))
}

fn read_guard(text: &str) -> Result<Guard, String> {
    let (equation, origin) = match split_unquoted(text, "  //") {
        Some((equation, origin)) => (equation, read_origin(origin.trim())?),
        None => (text, Origin::default()),
    };
    let (symbol, value) = equation.split_once(" = ").ok_or("expected `guard symbol = dimension`")?;
    let symbol = Dim::parse(symbol)?.as_symbol().ok_or_else(|| format!("`{symbol}` is not a symbol"))?;
    Ok(Guard { symbol, value: Dim::parse(value)?, node: origin.name().into() })
}

fn read_node(
    text: &str,
    g: &mut Graph,
    values: &mut Values,
    resolve: &Resolve<'_>,
    regions: &Regions,
) -> Result<(), String> {
    let (text, origin) = match split_unquoted(text, "  //") {
        Some((node, origin)) => (node.trim(), read_origin(origin.trim())?),
        None => (text, Origin::default()),
    };
    let (name, rest) = text.split_once(" = ").ok_or("expected `%n = operator …`")?;
    let (mnemonic, rest) = match rest.find([' ', '{']) {
        Some(end) => (&rest[..end], rest[end..].trim_start()),
        None => (rest, ""),
    };
    let split = find_colon(rest).ok_or("expected ` : type`")?;
    let (body, types) = (rest[..split].trim(), &rest[split + 1..]);
    let (types, storage) = match types.split_once(STORED) {
        Some((types, storage)) if mnemonic == "const" => (types, Some(read_storage(storage)?)),
        _ => (types, None),
    };
    let types: Vec<TensorType> = split_top(types).into_iter().map(read_type).collect::<Result<_, _>>()?;
    let value = if mnemonic == "const" {
        let ty = types.first().ok_or("expected a type")?;
        g.add(ops::Const { payload: read_const(body, ty, storage, resolve)? }, &[], origin)
    } else {
        let (operands, attributes) = match split_unquoted(body, "{") {
            Some((o, a)) => (o.trim(), a.strip_suffix('}').ok_or("expected `}`")?),
            None => (body, ""),
        };
        let attributes = split_top(attributes)
            .into_iter()
            .map(|a| a.split_once(" = ").ok_or_else(|| format!("`{a}` is not an attribute")))
            .collect::<Result<Vec<_>, _>>()?;
        let mut op = Op::parse(mnemonic, &attributes)
            .ok_or_else(|| format!("unknown operator `{mnemonic}`"))?
            .map_err(|e| format!("`{mnemonic}`: {e}"))?;
        for region in op.regions_mut() {
            let name = region.graph().name();
            *region = regions.named.get(name).ok_or_else(|| format!("there is no `region &{name}`"))?.clone();
        }
        let inputs =
            split_top(operands).into_iter().map(|v| operand(v, values, g)).collect::<Result<Vec<_>, _>>()?;
        g.add(op, &inputs, origin)
    }
    .map_err(|e| e.to_string())?;
    let inferred = &g.node(value.node).types;
    if inferred.as_slice() != types.as_slice() {
        let list = |t: &[TensorType]| t.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(format!("`{mnemonic}` gives {}, the text says {}", list(inferred), list(&types)));
    }
    values.insert(name.trim().to_string(), value);
    Ok(())
}

/// The ` :` that separates operands from types: the last one outside braces and quotes.
fn find_colon(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0i32, None);
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in text.char_indices() {
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => quoted = true,
            '{' | '(' => depth += 1,
            '}' | ')' => depth -= 1,
            ':' if depth == 0 && (i == 0 || text[..i].ends_with(' ')) => at = Some(i),
            _ => {}
        }
    }
    at
}

fn read_origin(text: &str) -> Result<Origin, String> {
    let mut origin = Origin { names: SmallVec::new(), part: None };
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = if rest.starts_with('"') {
            take_name(rest)?
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            (rest[..end].to_string(), &rest[end..])
        };
        if name != "?" {
            origin.names.push(name.as_str().into());
        }
        let after = after.trim_start();
        if let Some(next) = after.strip_prefix("+ ") {
            rest = next;
            continue;
        }
        if !after.is_empty() {
            let part = Part::ALL.into_iter().find(|p| p.name() == after);
            origin.part = Some(part.ok_or_else(|| format!("`{after}` is not a part"))?);
        }
        break;
    }
    Ok(origin)
}

fn read_storage(text: &str) -> Result<Storage, String> {
    Storage::parse(text.trim()).ok_or_else(|| format!("`{}` is not a storage", text.trim()))
}

/// The contents of a constant in the storage that the text says.
fn read_const(
    text: &str,
    ty: &TensorType,
    storage: Option<Storage>,
    resolve: &Resolve<'_>,
) -> Result<Payload, String> {
    if let Some(signs) = storage.and_then(|storage| storage.signs) {
        // The text names what lies beside the signs.
        let shape = ty.extents().ok_or("a constant needs known extents")?;
        let others = TensorType::known(ty.dtype, &Storage::with_signs(signs).elements_shape(&shape));
        let payload = read_contents(text, &others, false, resolve)?.with_signs(signs);
        let payload = payload.map_err(|e| e.to_string())?;
        return match payload.ty() == *ty {
            true => Ok(payload),
            false => Err(format!("constant `{text}`: expected {ty}, found {}", payload.ty())),
        };
    }
    let payload = read_contents(text, ty, storage.is_some(), resolve)?;
    match storage {
        Some(storage) if payload.stored().is_plain() => payload.stored_as(storage).map_err(|e| e.to_string()),
        _ => Ok(payload),
    }
}

/// The contents of a constant. What is `rounded` to a storage need not be what its name is the hash of.
fn read_contents(
    text: &str,
    ty: &TensorType,
    rounded: bool,
    resolve: &Resolve<'_>,
) -> Result<Payload, String> {
    let shape = ty.extents().ok_or("a constant needs known extents")?;
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("extents overflow")?;
    if let Some(draw) = Draw::parse(text).filter(|_| ty.dtype == DType::F32 && count <= MAX_SPLAT) {
        return Ok(Payload::random(draw, &shape));
    }
    if text.starts_with('#') || text.ends_with(')') && !text.starts_with("splat(") {
        let contents = resolve(text, ty).ok_or_else(|| format!("constant `{text}` is not at hand"))?;
        let payload = match text.starts_with('#') && !rounded {
            true => Payload::new(contents),
            false => Payload::derived(text, contents),
        };
        let found = payload.ty();
        if found != *ty {
            return Err(format!("constant `{text}`: expected {ty}, found {found}"));
        }
        return Ok(payload);
    }
    let splat = text.strip_prefix("splat(").and_then(|t| t.strip_suffix(')'));
    let items: Vec<&str> = match (splat, text.strip_prefix('[').and_then(|t| t.strip_suffix(']'))) {
        (Some(one), _) => {
            if count > MAX_SPLAT {
                return Err(format!("a splat of {count} elements is over the limit of {MAX_SPLAT}"));
            }
            vec![one; count]
        }
        (None, Some(list)) => split_top(list),
        (None, None) => vec![text],
    };
    if items.len() != count {
        return Err(format!("expected {count} elements, found {}", items.len()));
    }
    let bad = |item: &str| format!("`{item}` is not a {}", ty.dtype);
    let numbers = match ty.dtype {
        DType::Bool => Numbers::Int(
            items
                .iter()
                .map(|i| i.parse::<bool>().map(i128::from).map_err(|_| bad(i)))
                .collect::<Result<_, _>>()?,
        ),
        d if d.is_float() => Numbers::Float(
            items.iter().map(|i| i.parse::<f64>().map_err(|_| bad(i))).collect::<Result<_, _>>()?,
        ),
        _ => Numbers::Int(
            items
                .iter()
                .map(|i| {
                    let wide = i.parse::<i128>().map_err(|_| bad(i))?;
                    let widest = i128::from(i64::MIN)..=i128::from(u64::MAX);
                    if widest.contains(&wide) { Ok(wide) } else { Err(bad(i)) }
                })
                .collect::<Result<_, _>>()?,
        ),
    };
    numbers.into_tensor(ty.dtype, &shape).map(Payload::new).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Relu;

    #[test]
    fn extents_that_multiply_to_more_than_memory_holds_are_refused() {
        let extents: Vec<String> = (0..60).map(|i| format!("a{i} + b{i}")).collect();
        let (shape, product) = (extents.join(", "), extents.join(") * ("));
        let flat = format!(
            "graph @flat(%x: f32[{shape}]) -> (y: f32[N]) {{\n  %0 = reshape %x {{shape = [N]}} : f32[N]\n  return %0\n}}"
        );
        let multiplied = format!("graph @product(%x: f32[({product})]) -> (y: f32[N]) {{\n  return %x\n}}");
        for text in [flat, multiplied] {
            let message = parse(&text, &|_, _| None).map(|g| g.to_string()).unwrap_err().to_string();
            assert!(message.contains("a sum of more than 4096 products"), "{message}");
        }
    }

    #[test]
    fn regions_that_hold_each_other_again_and_again_are_refused() {
        let choice = |i: usize| format!("%0 = if %t, %t, %x {{then = &r{i}, otherwise = &r{i}}} : f32[2]");
        let header = |name: &str| format!("graph @{name}(%t: bool, %x: f32[2]) -> (y: f32[2]) {{\n");
        let text = |levels: usize| {
            let mut text = format!("{}  {}\n  return %0\n}}\n", header("main"), choice(levels - 1));
            text += &format!("region &r0 = {}  return %x\n}}\n", header("r0"));
            for i in 1..levels {
                let line = choice(i - 1);
                text += &format!("region &r{i} = {}  {line}\n  return %0\n}}\n", header(&format!("r{i}")));
            }
            text
        };
        let read = |levels| parse(&text(levels), &|_, _| None).map(|g| g.len()).map_err(|e| e.to_string());
        assert_eq!(read(5), Ok(3));
        for levels in [24, 200] {
            let message = read(levels).unwrap_err();
            assert!(message.contains("graphs in one another have at most"), "{message}");
        }
    }

    #[test]
    fn extents_below_zero_are_refused() {
        let input = "graph @below(%x: f32[-1, 4]) -> (y: f32[-1, 4]) {\n  return %x\n}";
        let cut = "graph @cut(%x: f32[2]) -> (y: f32[-3]) {\n  %0 = pad %x {before = [-5], after = [0]} : f32[-3]\n  return %0\n}";
        for (text, extent) in [(input, -1), (cut, -3)] {
            let message = parse(text, &|_, _| None).map(|g| g.to_string()).unwrap_err().to_string();
            assert!(message.contains(&format!("extents of at least 0, found {extent}")), "{message}");
        }
    }

    #[test]
    fn a_graph_without_outputs_reads_back() {
        let g = Graph::new("empty");
        let again = parse(&g.to_string(), &|_, _| None).unwrap_or_else(|e| panic!("{e}\n{g}"));
        assert_eq!(again.to_string(), g.to_string());
    }

    #[test]
    fn names_of_any_characters_read_back() {
        for name in [
            "im,ge",
            "i  //",
            "a {b}",
            "q\"uote\\",
            "new = line",
            "%0",
            "x : y",
            "tab\there",
            "größe",
            "(",
            "//",
        ] {
            let mut g = Graph::new(name);
            let x = g.add_input(name, TensorType::known(DType::F32, &[2]));
            let y = g.add(Relu, &[x], Origin::named(name).and(&Origin::named("plain"))).unwrap();
            g.add_output(name, y);
            let text = g.to_string();
            let again = parse(&text, &|_, _| None).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(again.to_string(), text);
            assert_eq!(again.node(again.outputs()[0].value.node).origin, g.node(y.node).origin);
        }
    }
}
