//! Constants that are stored narrow: the elements as they are, and a node that makes numbers of them.

use margay_ir::Payload;
use margay_tensor::{DType, Scales, StoredTensor, Tensor};

use super::Exporter;
use crate::Attribute;

/// The operator set with scales for runs along an axis.
const BLOCKS_SINCE: i64 = 21;

impl Exporter<'_> {
    /// The name of a constant's numbers. Where the operator set has no node for how it is stored, they are written as
    /// numbers.
    pub(super) fn constant(&mut self, payload: &Payload, wish: &str) -> String {
        if let Some(name) = self.constants.get(payload) {
            return name.clone();
        }
        let stored = payload.stored();
        let written = stored.dtype() == DType::F32
            && match stored.storage().scales {
                Scales::None => !stored.is_plain(),
                Scales::Tensor | Scales::Axis(_) => true,
                Scales::Block { .. } => self.opset >= BLOCKS_SINCE,
            };
        if !written {
            return self.initializer(payload, wish);
        }
        let base = std::mem::replace(&mut self.base, wish.to_owned());
        let name = self.numbers_of(stored, wish);
        self.base = base;
        self.constants.insert(payload.clone(), name.clone());
        name
    }

    fn numbers_of(&mut self, stored: &StoredTensor, wish: &str) -> String {
        let elements = self.tensor(stored.elements().clone(), wish);
        let (axis, mut attributes) = match stored.storage().scales {
            Scales::None => {
                // 1 is f32.
                return self.emit("Cast", "numbers", &[&elements], vec![("to", Attribute::Int(1))]);
            }
            Scales::Tensor => (None, Vec::new()),
            Scales::Axis(axis) => (Some(axis), Vec::new()),
            Scales::Block { axis, size } => (Some(axis), vec![("block_size", Attribute::Int(size as i64))]),
        };
        let blocks = !attributes.is_empty();
        attributes.extend(axis.map(|axis| ("axis", Attribute::Int(axis as i64))));
        // Scales of runs have as many axes as the constant; others stand along one axis, or alone.
        let part = |t: &Tensor| match (blocks, axis) {
            (true, _) => t.clone(),
            (false, Some(_)) => t.reshaped(&[t.len()]).unwrap_or_else(|_| t.clone()),
            (false, None) => t.reshaped(&[]).unwrap_or_else(|_| t.clone()),
        };
        let mut inputs = vec![elements];
        for (name, t) in [("scale", stored.scales()), ("zero_point", stored.zero_points())] {
            inputs.extend(t.map(|t| self.tensor(part(t), &format!("{wish}/{name}"))));
        }
        if stored.zero_points().is_none() && !blocks && axis.is_some() {
            inputs.extend(self.zeros(stored, &format!("{wish}/zero_point")));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.emit("DequantizeLinear", "numbers", &inputs, attributes)
    }

    /// Zero points of 0, as many as there are scales: where they are missing onnxruntime may take them for a single one, and
    /// where several nodes share them it may refuse to change them.
    fn zeros(&mut self, stored: &StoredTensor, wish: &str) -> Option<String> {
        let count = stored.scales()?.len();
        let dtype = stored.storage().dtype;
        let zeros = Tensor::zeros(dtype, &[count]).ok()?;
        let name = self.value_names.fresh(wish);
        self.graph.initializers.push((name.clone(), zeros));
        Some(name)
    }

    fn tensor(&mut self, tensor: Tensor, wish: &str) -> String {
        self.initializer(&Payload::new(tensor), wish)
    }
}
