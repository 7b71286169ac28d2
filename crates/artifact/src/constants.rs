//! Laying out constants before code is made that refers to them.

use std::collections::HashMap;

use margay_loops::{Backend, Constant, NoKernel};
use margay_tensor::{ContentHash, Tensor};

use crate::header::ALIGN;
use crate::{Layout, StoredConstant};

/// Hands out places in the weights section. The same tensor in the same layout is stored once, however many
/// entries or steps use it and under however many names.
#[derive(Debug, Default)]
pub struct ConstantsLayout {
    placed: HashMap<(ContentHash, Option<Layout>), usize>,
    stored: Vec<StoredConstant>,
    contents: Vec<Contents>,
    bytes: usize,
}

/// The place of a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Its position in [`Description::constants`](crate::Description::constants), for
    /// [`SectionParts::constants`](crate::SectionParts::constants).
    pub index: usize,
    /// Its first byte in the weights section, for code that refers to it.
    pub offset: usize,
}

/// The bytes of a stored constant.
#[derive(Debug)]
pub(crate) enum Contents {
    Plain(Tensor),
    Made(Vec<u8>),
}

impl Contents {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Contents::Plain(tensor) => tensor.bytes(),
            Contents::Made(bytes) => bytes,
        }
    }
}

impl ConstantsLayout {
    /// No constants.
    pub fn new() -> ConstantsLayout {
        ConstantsLayout::default()
    }

    /// The place of a constant, packed by the back end if the call it belongs to asks for that. It is found by all names
    /// under which it was added. Places never change.
    pub fn add(&mut self, constant: &Constant, backend: &dyn Backend) -> Result<Placed, NoKernel> {
        let stored = &constant.stored;
        let layout = |(_, packed): &(_, margay_loops::Packed)| Layout {
            backend: backend.name().to_owned(),
            name: packed.layout.clone(),
        };
        let layout = constant.packed.as_ref().map(layout);
        let key = (stored.content_hash(), layout.clone());
        if let Some(&index) = self.placed.get(&key) {
            let stored = &mut self.stored[index];
            for name in &constant.names {
                if !stored.is_named(name) {
                    stored.names.push(name.clone());
                }
            }
            return Ok(Placed { index, offset: self.stored[index].range.start });
        }
        let contents = match &constant.packed {
            None if stored.is_plain() => Contents::Plain(stored.elements().clone()),
            None => Contents::Made(stored.to_bytes()),
            Some((call, p)) => {
                let bytes = backend.pack(call, p.operand, stored)?;
                assert_eq!(bytes.len(), p.bytes, "back end `{}` packs what it prepared for", backend.name());
                Contents::Made(bytes)
            }
        };
        let offset = self.bytes.next_multiple_of(backend.preferences().buffer_align.max(ALIGN));
        self.bytes = offset + contents.bytes().len();
        let index = self.stored.len();
        self.stored.push(StoredConstant {
            names: constant.names.clone(),
            tensor: *key.0.as_bytes(),
            dtype: stored.dtype(),
            shape: stored.shape().to_vec(),
            storage: stored.storage(),
            layout,
            range: offset..self.bytes,
            hash: *blake3::hash(contents.bytes()).as_bytes(),
        });
        self.contents.push(contents);
        self.placed.insert(key, index);
        Ok(Placed { index, offset })
    }

    /// The constants placed so far, in the order of their bytes.
    pub fn stored(&self) -> &[StoredConstant] {
        &self.stored
    }

    /// Size of the weights section so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Descriptions with their bytes, in the order of the bytes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&StoredConstant, &Contents)> {
        self.stored.iter().zip(&self.contents)
    }

    /// Descriptions and bytes, each by itself.
    pub(crate) fn into_parts(self) -> (Vec<StoredConstant>, Vec<Contents>) {
        (self.stored, self.contents)
    }
}
