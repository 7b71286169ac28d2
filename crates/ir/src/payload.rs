//! The contents of constants.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use margay_tensor::random::Philox;
use margay_tensor::{ContentHash, DType, Signs, Storage, StorageError, StoredTensor, Tensor};

use crate::TensorType;
use crate::ops::Numbers;

/// What identifies a constant. Equality, hashing and printing use it and never touch the data.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    /// By its contents, before they were rounded to a storage.
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

/// The distribution of a [`Draw`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrawKind {
    /// The size with either sign.
    Sign,
    /// Uniform from minus the size up to the size.
    Uniform,
}

/// Random numbers: the elements of a Philox stream, scaled. Prints as `random(seed, stream, sign, 0.25)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Draw {
    /// The seed.
    pub seed: u64,
    /// The stream.
    pub stream: u64,
    /// The distribution.
    pub kind: DrawKind,
    /// The greatest magnitude.
    pub size: f32,
}

impl DrawKind {
    const ALL: [DrawKind; 2] = [DrawKind::Sign, DrawKind::Uniform];

    /// The word used in text forms.
    pub fn name(self) -> &'static str {
        match self {
            DrawKind::Sign => "sign",
            DrawKind::Uniform => "uniform",
        }
    }
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "random({}, {}, {}, {})", self.seed, self.stream, self.kind.name(), self.size)
    }
}

impl Draw {
    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Draw> {
        let inner = text.strip_prefix("random(")?.strip_suffix(')')?;
        let [seed, stream, kind, size] = inner.split(", ").collect::<Vec<_>>()[..] else { return None };
        Some(Draw {
            seed: seed.parse().ok()?,
            stream: stream.parse().ok()?,
            kind: DrawKind::ALL.into_iter().find(|k| k.name() == kind)?,
            size: size.parse().ok().filter(|s: &f32| s.is_finite())?,
        })
    }
}

/// The contents of a constant, as they are stored, and what identifies them.
#[derive(Clone)]
pub struct Payload {
    key: Key,
    stored: Arc<StoredTensor>,
    /// The numbers, once somebody asks for them, where they are not stored as they are.
    numbers: Arc<OnceLock<Tensor>>,
}

impl Payload {
    /// Identified by its contents.
    pub fn new(contents: impl Into<StoredTensor>) -> Payload {
        let stored = contents.into();
        Payload::of(Key::Content(stored.content_hash()), stored)
    }

    /// A number without axes, rounded to the type.
    pub fn number(dtype: DType, x: f64) -> Payload {
        let tensor = Numbers::Float(vec![x]).into_tensor(dtype, &[]);
        Payload::new(tensor.expect("a scalar of any type can be made"))
    }

    /// Identified by how it was computed; `derivation` must name everything the numbers depend on, before they were
    /// rounded to a storage.
    pub fn derived(derivation: &str, contents: impl Into<StoredTensor>) -> Payload {
        Payload::of(Key::Derived(derivation.into()), contents.into())
    }

    fn of(key: Key, stored: StoredTensor) -> Payload {
        Payload { key, stored: stored.into(), numbers: Arc::default() }
    }

    /// The numbers rounded to a storage. What identified them does so still, together with the storage.
    pub fn stored_as(&self, storage: Storage) -> Result<Payload, StorageError> {
        Ok(Payload::of(self.key.clone(), StoredTensor::encode(self.tensor(), storage)?))
    }

    /// The same numbers of f32 with random signs beside them. What identified the numbers does so still.
    ///
    /// # Errors
    /// Numbers that are of another type or not stored as they are, and signs that do not fit them.
    pub fn with_signs(&self, signs: Signs) -> Result<Payload, StorageError> {
        if !self.stored.is_plain() {
            let why = format!("the numbers beside them are stored {}", self.storage());
            return Err(StorageError { storage: Storage::with_signs(signs).to_string(), why });
        }
        let stored = StoredTensor::with_signs(self.stored.elements().clone(), signs)?;
        Ok(Payload::of(self.key.clone(), stored))
    }

    /// Random numbers of f32. They are identified by how they are drawn, and are drawn again when a text is read.
    pub fn random(draw: Draw, shape: &[usize]) -> Payload {
        let mut values = vec![0f32; shape.iter().product()];
        let stream = Philox::new(draw.seed, draw.stream);
        match draw.kind {
            DrawKind::Sign => stream.fill_signs(0, &mut values),
            DrawKind::Uniform => {
                stream.fill_uniform_f32(0, &mut values);
                values.iter_mut().for_each(|v| *v = *v * 2.0 - 1.0);
            }
        }
        values.iter_mut().for_each(|v| *v *= draw.size);
        let tensor = Tensor::from_slice(shape, &values).expect("as many numbers as the shape holds");
        Payload::derived(&draw.to_string(), tensor)
    }

    /// How the contents are drawn, where they are [`random`](Payload::random) numbers.
    pub fn draw(&self) -> Option<Draw> {
        match &self.key {
            Key::Derived(text) if self.stored.is_plain() => Draw::parse(text),
            Key::Derived(_) | Key::Content(_) => None,
        }
    }

    /// What identifies it.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The numbers, rounded as they are stored.
    pub fn tensor(&self) -> &Tensor {
        match self.stored.is_plain() {
            true => self.stored.elements(),
            false => self.numbers.get_or_init(|| self.stored.decode()),
        }
    }

    /// The contents as they are stored.
    pub fn stored(&self) -> &StoredTensor {
        &self.stored
    }

    /// How the contents are stored.
    pub fn storage(&self) -> Storage {
        self.stored.storage()
    }

    /// Type and extents of the numbers.
    pub fn ty(&self) -> TensorType {
        TensorType::known(self.stored.dtype(), self.stored.shape())
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        self.key == other.key
            && self.stored.dtype() == other.stored.dtype()
            && self.stored.shape() == other.stored.shape()
            && self.storage() == other.storage()
    }
}

impl Eq for Payload {}

impl Hash for Payload {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
        self.stored.shape().hash(state);
        self.storage().hash(state);
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} : {:?}", self.key, self.stored)
    }
}
