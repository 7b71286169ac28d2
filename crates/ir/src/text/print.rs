//! Graph to text.

use std::collections::HashMap;
use std::fmt;

use margay_loops::text::words::quoted;
use margay_tensor::{DType, Tensor};

use super::{MAX_LITERAL, STORED, is_named};
use crate::ops::{Attribute, Numbers};
use crate::{Graph, Key, NodeId, Op, Origin, Payload, Region, Value};

impl fmt::Display for Graph {
    /// The graph, then the graphs inside its operators, each once, after those inside itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_nodes(f)?;
        let mut regions = Vec::new();
        self.collect_regions(&mut regions);
        for region in regions {
            write!(f, "region {} = ", region.write())?;
            region.graph().write_nodes(f)?;
        }
        Ok(())
    }
}

impl Graph {
    fn collect_regions<'g>(&'g self, all: &mut Vec<&'g Region>) {
        for n in self.order() {
            for region in self.op(n).regions() {
                if !all.contains(&region) {
                    region.graph().collect_regions(all);
                    all.push(region);
                }
            }
        }
    }

    fn write_nodes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: HashMap<NodeId, String> = HashMap::new();
        write!(f, "graph @{}(", quoted(self.name()))?;
        for (i, n) in self.inputs().iter().enumerate() {
            if let Op::Input(input) = self.op(*n) {
                let name = format!("%{}", quoted(&input.name));
                write!(f, "{}{name}: {}", if i > 0 { ", " } else { "" }, input.ty)?;
                names.insert(*n, name);
            }
        }
        f.write_str(") -> (")?;
        for (i, o) in self.outputs().iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{}: {}", quoted(&o.name), self.ty(o.value))?;
            if let Some(counts) = &o.counts {
                write!(f, " counts axis {} of {}", counts.axis, quoted(&counts.output))?;
            }
        }
        f.write_str(") {\n")?;
        for guard in self.guards() {
            writeln!(f, "  {guard}")?;
        }
        let printed = |v: Value, names: &HashMap<NodeId, String>| match v.out {
            0 => names[&v.node].clone(),
            out => format!("{}.{out}", names[&v.node]),
        };
        let mut next = 0;
        for n in self.order() {
            let node = self.node(n);
            if matches!(node.op, Op::Input(_)) {
                continue;
            }
            let name = format!("%{next}");
            next += 1;
            write!(f, "  {name} = {}", node.op.name())?;
            names.insert(n, name);
            if let Op::Const(c) = &node.op {
                write!(f, " {}", ConstText(&c.payload))?;
            }
            for (i, v) in self.inputs_of(n).into_iter().enumerate() {
                write!(f, "{} {}", if i > 0 { "," } else { "" }, printed(v, &names))?;
            }
            let attributes = node.op.attributes();
            if !attributes.is_empty() {
                let list: Vec<String> = attributes.iter().map(|(k, v)| format!("{k} = {v}")).collect();
                write!(f, " {{{}}}", list.join(", "))?;
            }
            let types: Vec<String> = node.types.iter().map(ToString::to_string).collect();
            write!(f, " : {}", types.join(", "))?;
            if let Op::Const(c) = &node.op
                && !c.payload.stored().is_plain()
            {
                write!(f, "{STORED}{}", c.payload.storage())?;
            }
            if !node.origin.names.is_empty() || node.origin.part.is_some() {
                write!(f, "  // {}", node.origin)?;
            }
            f.write_str("\n")?;
        }
        let outputs: Vec<String> = self.outputs().iter().map(|o| printed(o.value, &names)).collect();
        writeln!(f, "  return {}\n}}", outputs.join(", "))
    }
}

impl fmt::Display for Origin {
    /// Names joined by ` + `, then the part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain =
            |n: &str| !n.is_empty() && !n.contains([' ', '"', '\\']) && n.chars().all(|c| !c.is_control());
        for (i, name) in self.names.iter().enumerate() {
            f.write_str(if i > 0 { " + " } else { "" })?;
            if plain(name) { f.write_str(name)? } else { write!(f, "{name:?}")? }
        }
        match self.part {
            Some(part) if self.names.is_empty() => write!(f, "? {}", part.name()),
            Some(part) => write!(f, " {}", part.name()),
            None => Ok(()),
        }
    }
}

/// The contents of a constant as text.
struct ConstText<'a>(&'a Payload);

impl fmt::Display for ConstText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.0.stored().elements();
        if matches!(self.0.key(), Key::Derived(_)) || is_named(self.0) {
            return write!(f, "{}", self.0.key());
        }
        let items = element_texts(t);
        match t.len() {
            _ if t.shape().is_empty() => f.write_str(&items[0]),
            0..=MAX_LITERAL => write!(f, "[{}]", items.join(", ")),
            _ => write!(f, "splat({})", items[0]),
        }
    }
}

/// The first elements of a tensor, as text that reads back.
fn element_texts(t: &Tensor) -> Vec<String> {
    let head = t.len().min(MAX_LITERAL);
    let size = t.dtype().bytes();
    let head = Tensor::from_bytes(t.dtype(), &[head], &t.bytes()[..head * size]);
    let Ok(head) = head else { return Vec::new() };
    match t.dtype() {
        DType::Bool => head.bytes().iter().map(|b| (*b != 0).to_string()).collect(),
        DType::F32 => head.as_slice::<f32>().map_or(vec![], |v| v.iter().map(|x| format!("{x:?}")).collect()),
        _ => match Numbers::of(&head) {
            Ok(Numbers::Float(v)) => v.iter().map(|x| format!("{x:?}")).collect(),
            Ok(Numbers::Int(v)) => v.iter().map(ToString::to_string).collect(),
            Err(_) => Vec::new(),
        },
    }
}
