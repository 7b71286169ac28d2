//! Graphs inside operators: `If` and `Loop`, whose graphs read values of the graph around them by name.

use std::collections::HashMap;

use margay_ir::ops::{If, Loop};
use margay_ir::{Graph, NodeId, Op, Region, Value};
use margay_tensor::{DType, Dim};

use super::{Exporter, declared, live};
use crate::{Attribute, OnnxDim, OnnxError, OnnxGraph, OnnxNode, OnnxValue};

impl<'a> Exporter<'a> {
    /// A choice between two graphs.
    pub(super) fn choice(&mut self, n: NodeId, x: &[&str], op: &'a If) -> Result<Vec<String>, OnnxError> {
        let mut branches = Vec::new();
        for (name, region) in [("then_branch", &op.then), ("else_branch", &op.otherwise)] {
            let given = x[1..].iter().map(|name| (*name).to_owned()).collect();
            let (graph, outputs) = self.region(region, given)?;
            let graph = OnnxGraph { outputs: self.declared_outputs(region.graph(), &outputs), ..graph };
            branches.push((name, Attribute::Graph(Box::new(graph))));
        }
        Ok(self.several(n, "If", &x[..1], branches))
    }

    /// A graph again and again.
    pub(super) fn repeated(&mut self, n: NodeId, x: &[&str], op: &'a Loop) -> Result<Vec<String>, OnnxError> {
        let g = self.g;
        let (head, inner) = (1 + usize::from(op.condition), op.body.graph());
        let operands = g.inputs_of(n);
        // Results of ONNX have as many rows as there were repetitions.
        let known = match g.op(operands[0].node) {
            Op::Const(c) => {
                c.payload.tensor().to_vec::<i64>().ok().and_then(|v| Some(Dim::from(*v.first()?)))
            }
            Op::Reshape(_) => match g.inputs_of(operands[0].node).first().map(|v| g.op(v.node)) {
                Some(Op::Dims(dims)) => dims.values.first().cloned(),
                _ => None,
            },
            _ => None,
        };
        let all_run = !op.condition && known.as_ref() == Some(&op.max);
        let most = op.max.as_const().filter(|max| *max < i64::MAX && known.as_ref() != Some(&op.max));
        let trips = match most {
            None => x[0].to_owned(),
            Some(max) => {
                let max = self.number(DType::I64, max as f64);
                self.emit("Min", "repetitions", &[x[0], &max], vec![])
            }
        };
        let names: Vec<String> = inner
            .inputs()
            .iter()
            .take(1 + op.carried)
            .map(|n| self.value_names.fresh(inner.node(*n).origin.name()))
            .collect();
        let around = x[head + op.carried..].iter().map(|name| (*name).to_owned());
        let (mut graph, mut outputs) =
            self.region(&op.body, names.iter().cloned().chain(around).collect())?;
        let goes_on = self.value_names.fresh("goes_on");
        let scalar = |name: &str, dtype| OnnxValue {
            name: name.to_owned(),
            dtype: Some(dtype),
            narrow: None,
            dims: Some(Vec::new()),
        };
        graph.inputs = vec![scalar(&names[0], DType::I64), scalar(&goes_on, DType::Bool)];
        let ty = |v: &NodeId| inner.ty(Value::from(*v)).clone();
        let carried = inner.inputs().iter().zip(&names).skip(1);
        graph.inputs.extend(carried.map(|(v, name)| declared(name, &ty(v), unnamed)));
        graph.outputs = self.declared_outputs(inner, &outputs);
        if !op.condition {
            let condition = self.value_names.fresh("goes_on");
            graph.nodes.push(node(
                "Identity",
                &condition,
                vec![goes_on],
                vec![condition.clone()],
                Vec::new(),
            ));
            graph.outputs.insert(0, scalar(&condition, DType::Bool));
            outputs.insert(0, condition);
        }
        let condition = if op.condition { x[1] } else { "" };
        let inputs: Vec<&str> = [trips.as_str(), condition]
            .into_iter()
            .chain(x[head..head + op.carried].iter().copied())
            .collect();
        let mut results = self.several(n, "Loop", &inputs, vec![("body", Attribute::Graph(Box::new(graph)))]);
        for (out, result) in results.iter_mut().enumerate().skip(op.carried) {
            let rows = Value { node: n, out: out as u16 };
            if !all_run && !self.is_only_counted(rows) {
                *result = self.with_rows_that_did_not_run(rows, result)?;
            }
        }
        Ok(results)
    }

    /// Whether everybody who reads rows of a loop takes as many as the loop itself counts. ONNX has no others.
    fn is_only_counted(&self, rows: Value) -> bool {
        let counts = |user: NodeId| {
            matches!(self.g.op(user), Op::Cut(cut) if cut.axis == 0)
                && self.g.inputs_of(user)[1].node == rows.node
        };
        let users = self.g.users_of(rows);
        !self.g.is_output(rows) && users.iter().all(|(user, _)| counts(*user))
    }

    /// Rows of the repetitions that ran, and zeros for the others.
    fn with_rows_that_did_not_run(&mut self, rows: Value, name: &str) -> Result<String, OnnxError> {
        let ty = self.g.ty(rows).clone();
        let shape = self.emit("Shape", "shape", &[name], vec![]);
        let [zero, one] = [self.integers(&[0])?, self.integers(&[1])?];
        let ran = self.emit("Slice", "ran", &[&shape, &zero, &one, &zero], vec![]);
        self.padded(name, &ran, &ty.shape[0], ty.ndim())
    }

    /// A graph inside a node whose inputs are values of these names, and the names of its outputs, each of which a node
    /// of it yields.
    fn region(
        &mut self,
        region: &'a Region,
        given: Vec<String>,
    ) -> Result<(OnnxGraph, Vec<String>), OnnxError> {
        let inner = region.graph();
        let graph = OnnxGraph { name: inner.name().to_owned(), ..OnnxGraph::default() };
        let around = (self.g, std::mem::replace(&mut self.graph, graph), self.base.clone());
        // What is made inside is not there outside.
        let (results, constants) = (std::mem::take(&mut self.results), self.constants.clone());
        let (shapes, extents) = (self.shapes.clone(), self.extents.clone());
        self.constants = HashMap::new();
        let depth = std::mem::replace(&mut self.inner, true);
        self.g = inner;
        self.results = inner.inputs().iter().map(|n| Value::from(*n)).zip(given).collect();
        let outputs = self.inside(inner);
        (self.g, self.inner) = (around.0, depth);
        (self.results, self.constants, self.shapes, self.extents) = (results, constants, shapes, extents);
        self.base = around.2;
        let graph = std::mem::replace(&mut self.graph, around.1);
        Ok((graph, outputs?))
    }

    fn inside(&mut self, inner: &'a Graph) -> Result<Vec<String>, OnnxError> {
        for n in live(inner) {
            self.node(n)?;
        }
        let mut outputs: Vec<String> = Vec::new();
        for output in inner.outputs() {
            let name = self.results[&output.value].clone();
            let made = self.graph.nodes.iter().any(|node| node.outputs.contains(&name));
            self.base = output.name.to_string();
            outputs.push(match made && !outputs.contains(&name) {
                true => name,
                false => self.emit("Identity", "", &[&name], vec![]),
            });
        }
        Ok(outputs)
    }

    fn declared_outputs(&self, inner: &Graph, names: &[String]) -> Vec<OnnxValue> {
        let outputs = inner.outputs().iter().zip(names);
        outputs.map(|(o, name)| declared(name, inner.ty(o.value), unnamed)).collect()
    }

    /// Adds a node with as many outputs as the node of the graph has.
    fn several(
        &mut self,
        n: NodeId,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<(&str, Attribute)>,
    ) -> Vec<String> {
        let name = self.node_name("");
        let outputs: Vec<String> =
            self.g.values_of(n).map(|_| self.value_names.fresh(&format!("{name}_output"))).collect();
        let inputs = inputs.iter().map(|&i| i.to_owned()).collect();
        self.graph.nodes.push(node(op_type, &name, inputs, outputs.clone(), attributes));
        outputs
    }
}

fn node(
    op_type: &str,
    name: &str,
    inputs: Vec<String>,
    outputs: Vec<String>,
    attributes: Vec<(&str, Attribute)>,
) -> OnnxNode {
    OnnxNode {
        name: name.to_owned(),
        op_type: op_type.to_owned(),
        domain: String::new(),
        inputs,
        outputs,
        attributes: attributes.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
    }
}

/// Extents inside are not named: the names of the graph around are none of them.
fn unnamed(_: &Dim) -> OnnxDim {
    OnnxDim::Unknown
}
