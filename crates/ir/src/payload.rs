//! The contents of constants.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use margay_tensor::{ContentHash, Tensor};

/// What identifies a constant. Equality, hashing and printing use it and never touch the data.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    /// By its contents.
    Content(ContentHash),
    /// By how it was computed, such as `lowrank.left(#5be1c0, k = 128)`. The text names everything the contents
    /// depend on.
    Derived(Arc<str>),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Content(hash) => write!(f, "#{hash}"),
            Key::Derived(text) => f.write_str(text),
        }
    }
}

/// The contents of a constant and what identifies them.
#[derive(Clone)]
pub struct Payload {
    key: Key,
    tensor: Tensor,
}

impl Payload {
    /// Identified by its contents.
    pub fn new(tensor: Tensor) -> Payload {
        Payload { key: Key::Content(tensor.content_hash()), tensor }
    }

    /// Identified by how it was computed; `derivation` must name everything the contents depend on.
    pub fn derived(derivation: &str, tensor: Tensor) -> Payload {
        Payload { key: Key::Derived(derivation.into()), tensor }
    }

    /// What identifies it.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The contents.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        self.key == other.key
            && self.tensor.dtype() == other.tensor.dtype()
            && self.tensor.shape() == other.tensor.shape()
    }
}

impl Eq for Payload {}

impl Hash for Payload {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
        self.tensor.shape().hash(state);
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} : {:?}", self.key, self.tensor)
    }
}
