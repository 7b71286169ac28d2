//! A patch in the making: what schemes insert in place of a site.

use std::collections::HashMap;

use margay_ir::ops::Const;
use margay_ir::{AddError, Draw, Graph, NodeId, Op, Origin, Patch, Payload, TensorType, Value};
use margay_plan::Settings;
use margay_randnla::RandnlaError;
use margay_tensor::{Storage, StoredTensor, Tensor};

use super::{Fitted, Site};

/// A site could not be replaced.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The patch does not type (our fault).
    #[error(transparent)]
    Add(#[from] AddError),
    /// The weights have numbers that are not finite (the model's fault).
    #[error(transparent)]
    Randnla(#[from] RandnlaError),
    /// The settings are not offered (the plan's fault).
    #[error("{0}")]
    Settings(String),
}

/// A patch in the making for one site. Without contents, constants have their shapes and names only, and nothing is
/// computed for them: that is enough to know what the result costs.
pub struct Replacement<'a> {
    /// The graph that is changed.
    pub graph: &'a Graph,
    patch: Patch,
    contents: bool,
    /// Constants made without contents so far.
    shapes: usize,
    /// What stands in for values of the graph: uses of one weight may follow one another.
    done: HashMap<Value, Value>,
}

/// The patch that replaces a site.
///
/// # Errors
/// [`ApplyError`].
pub fn patch(fitted: &dyn Fitted, g: &Graph, site: &Site, settings: &Settings) -> Result<Patch, ApplyError> {
    replaced(fitted, g, site, settings, true)
}

/// The patch that replaces a site, with constants whose shapes alone say anything.
///
/// # Errors
/// [`ApplyError`].
pub fn form(fitted: &dyn Fitted, g: &Graph, site: &Site, settings: &Settings) -> Result<Patch, ApplyError> {
    replaced(fitted, g, site, settings, false)
}

fn replaced(
    fitted: &dyn Fitted,
    g: &Graph,
    site: &Site,
    settings: &Settings,
    contents: bool,
) -> Result<Patch, ApplyError> {
    let mut work = Replacement { graph: g, patch: Patch::new(), contents, shapes: 0, done: HashMap::new() };
    fitted.replace(&mut work, site, settings)?;
    Ok(work.patch)
}

impl Replacement<'_> {
    /// What the contents of constants are computed from; `None` where they are not wanted.
    ///
    /// # Errors
    /// Those of the computation.
    pub fn computed<T, E>(&self, compute: impl FnOnce() -> Result<T, E>) -> Result<Option<T>, E> {
        self.contents.then(compute).transpose()
    }

    /// The first operand of a node, as it is after what has been replaced so far.
    pub fn input(&self, n: NodeId) -> Value {
        self.operand(n, 0)
    }

    /// An operand of a node, as it is after what has been replaced so far.
    ///
    /// # Panics
    /// For an operand that the node does not have.
    pub fn operand(&self, n: NodeId, i: usize) -> Value {
        let x = self.graph.inputs_of(n)[i];
        self.done.get(&x).copied().unwrap_or(x)
    }

    /// The type of a value of the graph or of the patch.
    pub fn ty(&self, v: Value) -> &TensorType {
        self.patch.ty(self.graph, v)
    }

    /// A constant of f32 with a name that says everything its contents depend on.
    ///
    /// # Panics
    /// For contents that do not fill the shape.
    ///
    /// # Errors
    /// None but our own faults.
    pub fn constant(
        &mut self,
        name: &str,
        shape: &[usize],
        contents: Option<Vec<f32>>,
        origin: Origin,
    ) -> Result<Value, AddError> {
        let tensor = match contents {
            Some(values) => Tensor::from_slice(shape, &values),
            None => Tensor::from_slice(shape, &self.shape_only::<f32>(shape.iter().product())),
        };
        self.add_constant(name, tensor.expect("factors have as many numbers as their shapes"), origin)
    }

    /// A constant of f32 that is stored in some way, as [`constant`](Replacement::constant). Contents are of that storage.
    ///
    /// # Panics
    /// For a storage that does not fit the shape.
    ///
    /// # Errors
    /// None but our own faults.
    pub fn stored(
        &mut self,
        name: &str,
        shape: &[usize],
        storage: Storage,
        contents: Option<StoredTensor>,
        origin: Origin,
    ) -> Result<Value, AddError> {
        let stored = contents.unwrap_or_else(|| {
            let numbers = self.shape_only::<f32>(shape.iter().product());
            let tensor = Tensor::from_slice(shape, &numbers).expect("as many numbers as the shape has");
            StoredTensor::encode(&tensor, storage).expect("the storage fits the shape")
        });
        self.add(Const { payload: Payload::derived(name, stored) }, &[], origin)
    }

    /// A constant of f32 that was computed from samples, and is identified by its contents.
    ///
    /// # Panics
    /// For contents that do not fill the shape.
    ///
    /// # Errors
    /// None but our own faults.
    pub fn measured(
        &mut self,
        shape: &[usize],
        contents: Option<Vec<f32>>,
        origin: Origin,
    ) -> Result<Value, AddError> {
        let numbers = contents.unwrap_or_else(|| self.shape_only(shape.iter().product()));
        let tensor =
            Tensor::from_slice(shape, &numbers).expect("factors have as many numbers as their shapes");
        self.add(Const { payload: Payload::new(tensor) }, &[], origin)
    }

    /// A constant of positions, `length` of them.
    ///
    /// # Errors
    /// None but our own faults.
    pub fn positions(
        &mut self,
        name: &str,
        length: usize,
        contents: Option<&[usize]>,
        origin: Origin,
    ) -> Result<Value, AddError> {
        let tensor = match contents {
            Some(at) => Tensor::from_slice(&[length], &at.iter().map(|&p| p as i64).collect::<Vec<i64>>()),
            None => Tensor::from_slice(&[length], &self.shape_only::<i64>(length)),
        };
        self.add_constant(name, tensor.expect("there are as many positions as said"), origin)
    }

    /// A constant of one f32.
    ///
    /// # Errors
    /// None but our own faults.
    pub fn number(&mut self, x: f64, origin: Origin) -> Result<Value, AddError> {
        self.add(Const { payload: Payload::new(Tensor::scalar(x as f32)) }, &[], origin)
    }

    /// A constant of random numbers.
    ///
    /// # Errors
    /// None but our own faults.
    pub fn random(&mut self, draw: Draw, shape: &[usize], origin: Origin) -> Result<Value, AddError> {
        match self.contents {
            true => self.add(Const { payload: Payload::random(draw, shape) }, &[], origin),
            false => self.constant(&draw.to_string(), shape, None, origin),
        }
    }

    /// Numbers that differ from those of other constants, so that none are taken for equal.
    fn shape_only<T: Clone + From<u8>>(&mut self, length: usize) -> Vec<T> {
        self.shapes += 1;
        let mut numbers = vec![T::from(0); length];
        numbers.iter_mut().take(1).for_each(|first| *first = T::from((1 + self.shapes % 255) as u8));
        numbers
    }

    fn add_constant(&mut self, name: &str, tensor: Tensor, origin: Origin) -> Result<Value, AddError> {
        self.add(Const { payload: Payload::derived(name, tensor) }, &[], origin)
    }

    /// A node.
    ///
    /// # Errors
    /// For operands that do not fit, which is our fault.
    pub fn add(&mut self, op: impl Into<Op>, inputs: &[Value], origin: Origin) -> Result<Value, AddError> {
        self.patch.add(self.graph, op, inputs, origin)
    }

    /// Makes everybody who read a value of the graph read a new one.
    pub fn replace(&mut self, old: Value, new: Value) {
        self.patch.redirect(old, new);
        self.done.insert(old, new);
    }
}
