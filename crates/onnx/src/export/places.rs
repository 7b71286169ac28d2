//! Operators about positions along axes: what ONNX looks up, changes, ranks and runs through by them.

use margay_ir::ops::{Cumulate, Position, Scatter, ScatterKind, TopK};
use margay_ir::{Graph, NodeId, Op, Value};
use margay_tensor::{DType, Dim};

use super::Exporter;
use super::operators::axis;
use crate::{Attribute, OnnxError, OnnxNode, element_number};

/// The first operator set that has an operator for a node, where that is later than the oldest one that is written.
pub(super) fn since(g: &Graph, n: NodeId) -> i64 {
    match g.op(n) {
        Op::Scatter(op) => match op.kind {
            ScatterKind::Set => 0,
            ScatterKind::Add | ScatterKind::Mul => 16,
            ScatterKind::Min | ScatterKind::Max => 18,
        },
        Op::ScatterAdd(_) => 16,
        Op::And(_) | Op::Or(_) | Op::Xor(_) if g.ty(n.into()).dtype != DType::Bool => 18,
        _ => 0,
    }
}

impl Exporter<'_> {
    /// Indices with those that count from the end turned around.
    pub(super) fn position(&mut self, x: &str, dtype: DType, op: &Position) -> Result<String, OnnxError> {
        let to = Attribute::Int(element_number(DType::I64));
        let wide = match dtype {
            DType::I64 => x.to_owned(),
            _ => self.emit("Cast", "indices", &[x], vec![("to", to)]),
        };
        let extent = self.scalar_extent(&op.extent, "extent")?;
        let zero = self.number(DType::I64, 0.0);
        let negative = self.emit("Less", "negative", &[&wide, &zero], vec![]);
        let shifted = self.emit("Add", "shifted", &[&wide, &extent], vec![]);
        Ok(self.emit("Where", "", &[&negative, &shifted, &wide], vec![]))
    }

    /// An extent as an i64 without axes.
    fn scalar_extent(&mut self, extent: &Dim, part: &str) -> Result<String, OnnxError> {
        let list = self.extents(std::slice::from_ref(extent), part)?;
        let axes = self.integers(&[0])?;
        Ok(self.emit("Squeeze", part, &[&list, &axes], vec![]))
    }

    /// Rows changed at the places that indices name.
    pub(super) fn scatter(&mut self, n: NodeId, x: &[&str], op: &Scatter) -> Result<String, OnnxError> {
        self.needs(since(self.g, n), "a change of rows by indices")?;
        let at: Value = self.g.inputs_of(n)[1];
        let mut places = x[1].to_owned();
        if self.g.ty(at).dtype != DType::I64 {
            let to = Attribute::Int(element_number(DType::I64));
            places = self.emit("Cast", "places", &[&places], vec![("to", to)]);
        }
        let axes = self.integers(&[1])?;
        let places = self.emit("Unsqueeze", "places", &[&places, &axes], vec![]);
        let attributes = match op.kind {
            ScatterKind::Set => vec![],
            kind => vec![("reduction", Attribute::String(kind.name().to_owned()))],
        };
        Ok(self.emit("ScatterND", "", &[x[0], &places, x[2]], attributes))
    }

    /// Refuses operator sets before `opset`.
    pub(super) fn needs(&self, opset: i64, what: &str) -> Result<(), OnnxError> {
        let found = self.opset;
        match found < opset {
            true => Err(self.refusal(format!("{what} needs operator set {opset}, not {found}"))),
            false => Ok(()),
        }
    }

    /// Running sums; running products as products of what is left of all elements for each one.
    pub(super) fn cumulate(
        &mut self,
        x: &str,
        dtype: DType,
        shape: &[Dim],
        op: &Cumulate,
    ) -> Result<String, OnnxError> {
        if !op.product {
            let at = self.number(DType::I64, op.axis as f64);
            let flag = |v: bool| Attribute::Int(i64::from(v));
            let attributes = vec![("exclusive", flag(op.exclusive)), ("reverse", flag(op.reverse))];
            return Ok(self.emit("CumSum", "", &[x, &at], attributes));
        }
        let extent = &shape[op.axis];
        let positions = self.positions("positions", &Dim::default(), extent)?;
        let behind = (shape.len() - op.axis) as i64;
        let of_results: Vec<i64> = (1..=behind).collect();
        let of_results = self.integers(&of_results)?;
        let of_results = self.emit("Unsqueeze", "result", &[&positions, &of_results], vec![]);
        let of_elements: Vec<i64> = [0].into_iter().chain(2..=behind).collect();
        let of_elements = self.integers(&of_elements)?;
        let of_elements = self.emit("Unsqueeze", "element", &[&positions, &of_elements], vec![]);
        let pair = if op.reverse { [&of_results, &of_elements] } else { [&of_elements, &of_results] }
            .map(String::as_str);
        let test = if op.exclusive { "Less" } else { "LessOrEqual" };
        let taken = self.emit(test, "taken", &pair, vec![]);
        let axes = self.integers(&[op.axis as i64])?;
        let elements = self.emit("Unsqueeze", "elements", &[x, &axes], vec![]);
        let one = self.number(dtype, 1.0);
        let factors = self.emit("Where", "factors", &[&taken, &elements, &one], vec![]);
        self.reduction("ReduceProd", "", &factors, &[op.axis + 1], false)
    }

    /// The places of the largest or smallest elements; ONNX gives the elements too.
    pub(super) fn top_k(&mut self, x: &str, op: &TopK) -> Result<String, OnnxError> {
        let k = self.extents(std::slice::from_ref(&op.k), "k")?;
        let name = self.node_name("");
        let [elements, places] =
            ["elements", "output"].map(|part| self.value_names.fresh(&format!("{name}_{part}")));
        let mut attributes = axis(op.axis);
        attributes.push(("largest", Attribute::Int(i64::from(op.largest))));
        self.graph.nodes.push(OnnxNode {
            name,
            op_type: "TopK".to_owned(),
            domain: String::new(),
            inputs: vec![x.to_owned(), k],
            outputs: vec![elements, places.clone()],
            attributes: attributes.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        });
        Ok(places)
    }
}
