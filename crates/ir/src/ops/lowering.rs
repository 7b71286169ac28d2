//! What operators say about themselves below the graph: how they run and what they cost.

use std::rc::Rc;

use margay_loops::nest::{Nest, ScalarFn};
use margay_loops::{KernelCall, Reg};
use margay_tensor::{DType, Storage, Tensor};

use crate::{Graph, NodeId, Region, Value};

/// An operand or result when every extent is known: its type, and how it lies in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Strided {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// Whether it is a constant of the program.
    pub constant: bool,
    /// How it is stored, for a constant; else its type. Only a kernel that packs it reads it so.
    pub storage: Storage,
    /// What its elements are rounded to in the graph: a reader that rounds them itself need not have them rounded
    /// before. Its type where they are not.
    pub rounded: DType,
    /// Distance between neighbours along each axis, in elements.
    pub strides: Vec<i64>,
    /// The least and the greatest element, where they are known: for constants of i64 and i32.
    pub range: Option<[i64; 2]>,
}

impl Strided {
    /// Row-major and not constant.
    pub fn contiguous(dtype: DType, shape: &[usize]) -> Strided {
        let storage = Storage::plain(dtype);
        let strides = strides_of(shape);
        let shape = shape.to_vec();
        Strided { dtype, shape, constant: false, storage, rounded: dtype, strides, range: None }
    }

    /// What a kernel reads: the storage of a constant, else the type.
    pub fn stored_type(&self) -> Storage {
        if self.constant { self.storage } else { Storage::plain(self.dtype) }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a row-major tensor of this type.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.bytes()
    }

    /// Whether elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        is_row_major(&self.shape, &self.strides)
    }
}

/// The least and the greatest element of a tensor of i64 or i32; `None` for others, and where there are none.
pub fn range_of_integers(tensor: &Tensor) -> Option<[i64; 2]> {
    let ends = |values: &mut dyn Iterator<Item = i64>| {
        values.fold(None, |found: Option<[i64; 2]>, v| {
            Some(found.map_or([v, v], |[least, greatest]| [least.min(v), greatest.max(v)]))
        })
    };
    match tensor.dtype() {
        DType::I64 => ends(&mut tensor.as_slice::<i64>().ok()?.iter().copied()),
        DType::I32 => ends(&mut tensor.as_slice::<i32>().ok()?.iter().map(|v| i64::from(*v))),
        _ => None,
    }
}

/// Whether strides walk a shape in row-major order without gaps.
pub fn is_row_major(shape: &[usize], strides: &[i64]) -> bool {
    shape.iter().zip(strides.iter().zip(&strides_of(shape))).all(|(&d, (a, b))| d == 1 || a == b)
}

/// The strides of a row-major tensor.
pub fn strides_of(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1] as i64;
    }
    strides
}

/// The operands and results of a node when every extent is known.
#[derive(Clone, Debug)]
pub struct Io {
    /// Operands.
    pub inputs: Vec<Strided>,
    /// Results.
    pub outputs: Vec<Strided>,
}

impl Graph {
    /// The operands and results of a node, row-major; `None` where an extent is open.
    pub fn io_of(&self, n: NodeId) -> Option<Io> {
        let known = |v: Value| -> Option<Strided> {
            let ty = self.ty(v);
            let constant = self.constant(v).is_some();
            Some(Strided { constant, ..Strided::contiguous(ty.dtype, &ty.extents()?) })
        };
        Some(Io {
            inputs: self.inputs_of(n).into_iter().map(known).collect::<Option<_>>()?,
            outputs: self.values_of(n).map(known).collect::<Option<_>>()?,
        })
    }

    /// What its nodes cost together, as far as their extents are known, and one operation for running each.
    pub fn cost(&self) -> Cost {
        let costs = self.order().into_iter().filter_map(|n| Some(self.op(n).cost(&self.io_of(n)?)));
        costs.fold(Cost::default(), |sum, c| Cost {
            flops: sum.flops.saturating_add(c.flops).saturating_add(1),
            bytes: sum.bytes.saturating_add(c.bytes),
        })
    }
}

impl Io {
    /// Elements of all results.
    pub fn output_elements(&self) -> u64 {
        self.outputs.iter().map(|p| p.elements() as u64).sum()
    }

    /// Bytes of all operands and results.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().chain(&self.outputs).map(|p| p.bytes() as u64).sum()
    }
}

/// Another way to see the memory of the first operand; nothing runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum View {
    /// Another shape over row-major memory.
    Reshape,
    /// Axis `i` of the result is axis `perm[i]` of the operand.
    Permute(Vec<usize>),
    /// Axis `i` starts at `starts[i]` and takes every `steps[i]`-th element.
    Slice {
        /// First element along each axis.
        starts: Vec<i64>,
        /// Distance along each axis.
        steps: Vec<i64>,
    },
    /// Axes of extent 1 are repeated; axes are added in front.
    Broadcast,
}

/// How an operator runs.
#[allow(clippy::large_enum_variant, reason = "one at a time, and on the stack")]
pub enum Lowered {
    /// Scalar code for one element; operands broadcast to the shape of the single result.
    Elementwise(ScalarFn),
    /// A loop nest. Inputs and outputs of the [`Nest`] are numbered as those of the node.
    Nest(Rc<dyn Fn(&mut Nest)>),
    /// A hand-written kernel. Its arguments are the operands in order, then the results.
    Call(KernelCall),
    /// A hand-written kernel as in `Call` where the back end has one, else a loop nest as in `Nest`.
    CallOrNest(KernelCall, Rc<dyn Fn(&mut Nest)>),
    /// One of two graphs, chosen by the first operand; the others are their inputs.
    If {
        /// Runs where it is true.
        then: Region,
        /// Runs where it is false.
        otherwise: Region,
    },
    /// A graph again and again, with operands as [`ops::Loop`](crate::ops::Loop) has them.
    Loop {
        /// The graph.
        body: Region,
        /// The most repetitions.
        max: usize,
        /// Values handed on.
        carried: usize,
        /// Whether a condition may end it.
        condition: bool,
    },
    /// No work.
    View(View),
    /// The node has no work of its own: an input or a constant.
    Leaf,
}

impl Lowered {
    /// Scalar code for one element.
    pub fn elementwise(f: impl Fn(&mut Nest, &[Reg]) -> Reg + 'static) -> Lowered {
        Lowered::Elementwise(Rc::new(f))
    }

    /// A loop nest.
    pub fn nest(f: impl Fn(&mut Nest) + 'static) -> Lowered {
        Lowered::Nest(Rc::new(f))
    }

    /// A hand-written kernel where the back end has one, else a loop nest.
    pub fn call_or_nest(call: impl Into<KernelCall>, f: impl Fn(&mut Nest) + 'static) -> Lowered {
        Lowered::CallOrNest(call.into(), Rc::new(f))
    }

    /// The kernel call, if it may run as one.
    pub fn into_call(self) -> Option<KernelCall> {
        match self {
            Lowered::Call(call) | Lowered::CallOrNest(call, _) => Some(call),
            _ => None,
        }
    }
}

/// An operator has no lowering for these operands (a limit of margay).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotLowered(pub String);

/// Work of one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Additions and multiplications, each counted as one; a transcendental function as ten.
    pub flops: u64,
    /// Bytes read and written, each operand once.
    pub bytes: u64,
}

impl Cost {
    /// `flops` operations per element of the result, each operand and result moved once.
    pub fn per_element(io: &Io, flops: u64) -> Cost {
        Cost { flops: flops * io.output_elements(), bytes: io.bytes() }
    }
}
