//! Kernels of convolutions of any number of groups, over one or two spatial axes. Convolutions over three are imported as such of
//! planes.

use margay_ir::ops::{Conv, Slice, Transpose};
use margay_ir::{AddError, Graph, NodeId, Op, Part, Value};
use margay_randnla::{Matrix, RandnlaError};
use margay_tensor::Dim;

use super::{Layer, Replacement};

/// The extents of a kernel `[groups · outputs, channels, taps…]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Kernel {
    pub(super) groups: usize,
    /// Of one group.
    pub(super) outputs: usize,
    /// Of one group.
    pub(super) channels: usize,
    /// Extents of the spatial axes.
    pub(super) axes: Vec<usize>,
}

impl Kernel {
    /// The extents of a kernel of this shape, of a convolution of so many groups.
    pub(super) fn new(groups: usize, shape: &[usize]) -> Option<Kernel> {
        let (&[outputs, channels], axes) = shape.split_first_chunk()?;
        let whole = groups > 0 && outputs.is_multiple_of(groups);
        whole.then(|| Kernel { groups, outputs: outputs / groups, channels, axes: axes.to_vec() })
    }

    /// Taps over all spatial axes.
    pub(super) fn taps(&self) -> usize {
        self.axes.iter().product()
    }

    /// The length of the sums.
    pub(super) fn d_in(&self) -> usize {
        self.channels * self.taps()
    }

    /// The shape of a kernel of so many outputs of each group.
    pub(super) fn of_outputs(&self, width: usize) -> Vec<usize> {
        [&[self.groups * width, self.channels], self.axes.as_slice()].concat()
    }

    /// The shape of a kernel of so many channels of each group.
    pub(super) fn of_channels(&self, width: usize) -> Vec<usize> {
        [&[self.groups * self.outputs, width], self.axes.as_slice()].concat()
    }

    /// The shape of a kernel with one tap between so many channels and so many outputs of each group.
    pub(super) fn pointwise(&self, [channels, outputs]: [usize; 2]) -> Vec<usize> {
        [&[self.groups * outputs, channels], vec![1; self.axes.len()].as_slice()].concat()
    }

    /// The same extents with one group: what each of the groups has.
    pub(super) fn of_a_group(&self) -> Kernel {
        Kernel { groups: 1, ..self.clone() }
    }
}

/// The columns of a matrix \[d_in, groups · outputs\] that belong to each group.
///
/// # Errors
/// None: there are as many columns as outputs.
pub(super) fn matrices(g: &Graph, layer: &Layer) -> Result<Vec<Matrix>, RandnlaError> {
    let whole = layer.matrix(g)?;
    let outputs = layer.outputs();
    let of = |group| Matrix::from_fn(layer.d_in, outputs, |i, j| whole.at(i, group * outputs + j));
    Ok((0..layer.groups()).map(of).collect())
}

/// What a linear layer multiplies its weight with, as rows along the last axis: of a convolution the channels of each place that
/// its strides leave.
///
/// # Errors
/// None for linear layers.
pub(super) fn rows_in(work: &mut Replacement<'_>, n: NodeId) -> Result<Value, AddError> {
    let (g, mut x) = (work.graph, work.input(n));
    let Op::Conv(conv) = g.op(n) else { return Ok(x) };
    let origin = g.node(n).origin.part(Part::Left);
    if conv.strides.iter().any(|stride| *stride > 1) {
        let ends = work.ty(x).shape.clone();
        let steps = [1, 1].into_iter().chain(conv.strides.iter().map(|stride| *stride as i64)).collect();
        let left = Slice { starts: vec![Dim::default(); ends.len()], ends, steps };
        x = work.add(left, &[x], origin.clone())?;
    }
    let last = conv.strides.len() + 1;
    let perm = std::iter::once(0).chain(2..=last).chain([1]).collect();
    work.add(Transpose { perm }, &[x], origin)
}

/// The result of a linear layer from rows along the last axis.
///
/// # Errors
/// None for linear layers.
pub(super) fn rows_out(work: &mut Replacement<'_>, n: NodeId, rows: Value) -> Result<Value, AddError> {
    let g = work.graph;
    let Op::Conv(conv) = g.op(n) else { return Ok(rows) };
    let last = conv.strides.len() + 1;
    let perm = [0, last].into_iter().chain(1..last).collect();
    work.add(Transpose { perm }, &[rows], g.node(n).origin.part(Part::Right))
}

/// A convolution with one tap in place of a convolution of as many groups, as a part of it.
pub(super) fn add_pointwise(
    work: &mut Replacement<'_>,
    n: NodeId,
    operands: [Value; 2],
    part: Part,
) -> Result<Value, AddError> {
    let g = work.graph;
    let Op::Conv(conv) = g.op(n) else { unreachable!("kernels are those of convolutions") };
    let axes = conv.strides.len();
    let pointwise = Conv { groups: conv.groups, layout: conv.layout, ..Conv::pointwise_over(axes) };
    work.add(pointwise, &operands, g.node(n).origin.part(part))
}
