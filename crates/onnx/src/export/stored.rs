//! Constants that are stored narrow: the elements as they are, and a node that makes numbers of them.

use margay_ir::Payload;
use margay_tensor::{DType, Scales, Storage, StoredTensor, Tensor};

use super::Exporter;
use crate::{Attribute, Narrow};

/// The operator set with scales for runs along an axis, and elements of 4 bits.
pub(super) const BLOCKS_SINCE: i64 = 21;

/// Whether a storage is written in operators of [`BLOCKS_SINCE`] alone.
pub(super) fn needs_blocks(storage: Storage) -> bool {
    matches!(storage.scales, Scales::Block { .. }) || storage.is_packed()
}

impl Exporter<'_> {
    /// The name of a constant's numbers. Where the operator set has no node for how it is stored, they are written as
    /// numbers.
    pub(super) fn constant(&mut self, payload: &Payload, wish: &str) -> String {
        if let Some(name) = self.constants.get(payload) {
            return name.clone();
        }
        let stored = payload.stored();
        let written = stored.dtype() == DType::F32
            && !stored.is_plain()
            && stored.storage().signs.is_none()
            && (self.opset >= BLOCKS_SINCE || !needs_blocks(stored.storage()));
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
        let elements = self.elements(stored.elements(), stored.storage(), wish);
        self.dequantized(elements, "numbers", stored, wish)
    }

    /// What elements stand for that are stored as a constant is.
    pub(super) fn dequantized(
        &mut self,
        elements: String,
        name: &str,
        stored: &StoredTensor,
        wish: &str,
    ) -> String {
        let (axis, mut attributes) = match stored.storage().scales {
            Scales::None => {
                // 1 is f32.
                return self.emit("Cast", name, &[&elements], vec![("to", Attribute::Int(1))]);
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
        if let Some(scales) = stored.scales() {
            let scales = self.tensor(part(scales), &format!("{wish}/scale"));
            // Numbers have the type of their scales: 1 is f32.
            inputs.push(match stored.storage().scale_type {
                DType::F32 => scales,
                _ => self.emit("Cast", "scale", &[&scales], vec![("to", Attribute::Int(1))]),
            });
        }
        if let Some(zeros) = stored.zero_points() {
            inputs.push(self.elements(&part(zeros), stored.storage(), &format!("{wish}/zero_point")));
        }
        if stored.zero_points().is_none() && !blocks && !stored.storage().is_packed() && axis.is_some() {
            inputs.extend(self.zeros(stored, &format!("{wish}/zero_point")));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.emit("DequantizeLinear", name, &inputs, attributes)
    }

    /// Elements or zero points of a storage.
    fn elements(&mut self, elements: &Tensor, storage: Storage, wish: &str) -> String {
        if !storage.is_packed() {
            return self.tensor(elements.clone(), wish);
        }
        let narrow = if storage.dtype == DType::I8 { Narrow::I4 } else { Narrow::U4 };
        let name = self.value_names.fresh(wish);
        self.graph.initializers.push((name.clone(), elements.clone()));
        self.graph.narrow.insert(name.clone(), narrow);
        name
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
