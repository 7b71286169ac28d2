//! Laying out constants before code is made that refers to them.

use std::borrow::Cow;
use std::collections::HashMap;

use margay_loops::{Backend, Constant, KernelCall};
use margay_tensor::{ContentHash, StoredTensor};

use crate::header::ALIGN;
use crate::{Layout, StoredConstant};

/// Hands out places in the weights section. The same tensor in the same layout is stored once, however many
/// entries or steps use it and under however many names. Constants are packed when the section is written, one after the
/// other.
#[derive(Debug, Default)]
pub struct ConstantsLayout<'b> {
    placed: HashMap<(ContentHash, Option<Layout>), usize>,
    stored: Vec<StoredConstant>,
    contents: Vec<Contents<'b>>,
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

/// What the bytes of a constant are made of.
#[derive(Debug)]
pub(crate) struct Contents<'b> {
    stored: StoredTensor,
    /// Who packs it, for which call, as which operand.
    packed: Option<(&'b dyn Backend, KernelCall, usize)>,
}

impl Contents<'_> {
    /// The bytes in their layout.
    pub(crate) fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.packed {
            Some((backend, call, operand)) => {
                let packed = backend.pack(call, *operand, &self.stored);
                Cow::Owned(packed.unwrap_or_else(|e| panic!("a back end packs what it prepared for: {e}")))
            }
            None if self.stored.is_plain() => Cow::Borrowed(self.stored.elements().bytes()),
            None => Cow::Owned(self.stored.to_bytes()),
        }
    }

    /// Says that the tensor is not read for a while: what lies in a mapped file needs no memory then.
    pub(crate) fn rest(&self) {
        self.stored.elements().rest();
    }
}

impl<'b> ConstantsLayout<'b> {
    /// No constants.
    pub fn new() -> ConstantsLayout<'b> {
        ConstantsLayout::default()
    }

    /// The place of a constant, packed by the back end if the call it belongs to asks for that. It is found by all names
    /// under which it was added. Places never change.
    pub fn add(&mut self, constant: &Constant, backend: &'b dyn Backend) -> Placed {
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
            return Placed { index, offset: self.stored[index].range.start };
        }
        let packed = constant.packed.as_ref().map(|(call, p)| (backend, call.clone(), p.operand));
        let offset = self.bytes.next_multiple_of(backend.preferences().buffer_align.max(ALIGN));
        self.bytes = offset + constant.bytes();
        let index = self.stored.len();
        self.stored.push(StoredConstant {
            names: constant.names.clone(),
            tensor: *key.0.as_bytes(),
            dtype: stored.dtype(),
            shape: stored.shape().to_vec(),
            storage: stored.storage(),
            layout,
            range: offset..self.bytes,
            hash: [0; 32],
        });
        self.contents.push(Contents { stored: stored.clone(), packed });
        self.placed.insert(key, index);
        Placed { index, offset }
    }

    /// The constants placed so far, without hashes, in the order of their bytes.
    pub fn stored(&self) -> &[StoredConstant] {
        &self.stored
    }

    /// Size of the weights section so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Descriptions with their bytes, in the order of the bytes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&StoredConstant, &Contents<'b>)> {
        self.stored.iter().zip(&self.contents)
    }

    /// Descriptions and bytes, each by itself.
    pub(crate) fn into_parts(self) -> (Vec<StoredConstant>, Vec<Contents<'b>>) {
        (self.stored, self.contents)
    }
}
