//! Kernels of convolutions of any number of groups, over one or two spatial axes: for schemes that do not see them as one
//! matrix.
//!
//! A [`Layer`](super::Layer) is a convolution of one group over two axes. The others are sites by themselves, each of one node,
//! which ask for nothing to be measured.

use margay_ir::ops::Conv;
use margay_ir::{AddError, Graph, NodeId, Op, Part, Value};
use margay_randnla::{Matrix, RandnlaError};
use margay_tensor::DType;

use super::{Replacement, Site, name_of};

/// A constant kernel `[groups · outputs, channels, taps…]`.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Kernel {
    pub(super) weight: Value,
    pub(super) groups: usize,
    /// Of one group.
    pub(super) outputs: usize,
    /// Of one group.
    pub(super) channels: usize,
    /// Extents of the spatial axes.
    taps: Vec<usize>,
}

impl Kernel {
    /// The kernel of a convolution.
    pub(super) fn at(g: &Graph, n: NodeId) -> Option<Kernel> {
        let Op::Conv(conv) = g.op(n) else { return None };
        let weight = *g.inputs_of(n).get(1)?;
        let tensor = g.constant(weight)?.tensor();
        let (&[outputs, channels], taps) = tensor.shape().split_first_chunk()?;
        let kernel = Kernel {
            weight,
            groups: conv.groups,
            outputs: outputs / conv.groups,
            channels,
            taps: taps.to_vec(),
        };
        (tensor.dtype() == DType::F32 && !tensor.is_empty()).then_some(kernel)
    }

    /// Taps over all spatial axes.
    pub(super) fn taps(&self) -> usize {
        self.taps.iter().product()
    }

    /// The length of the sums.
    pub(super) fn d_in(&self) -> usize {
        self.channels * self.taps()
    }

    /// The kernels of the groups as matrices `[d_in, outputs]`.
    ///
    /// # Errors
    /// None: the weight fills its shape.
    pub(super) fn matrices(&self, g: &Graph) -> Result<Vec<Matrix>, RandnlaError> {
        let weight = g.constant(self.weight).expect("the weight of a kernel is a constant");
        let values = weight.tensor().to_vec::<f32>().expect("the weight of a kernel is f32");
        let of_group = values.chunks_exact(self.outputs * self.d_in());
        of_group.map(|w| Ok(Matrix::from_row_major(self.outputs, self.d_in(), w)?.transposed())).collect()
    }

    /// The shape of a kernel of so many outputs of each group.
    pub(super) fn of_outputs(&self, width: usize) -> Vec<usize> {
        [&[self.groups * width, self.channels], self.taps.as_slice()].concat()
    }

    /// The shape of a kernel of so many channels of each group.
    pub(super) fn of_channels(&self, width: usize) -> Vec<usize> {
        [&[self.groups * self.outputs, width], self.taps.as_slice()].concat()
    }

    /// The shape of a kernel with one tap between so many channels and so many outputs of each group.
    pub(super) fn pointwise(&self, [channels, outputs]: [usize; 2]) -> Vec<usize> {
        [&[self.groups * outputs, channels], vec![1; self.taps.len()].as_slice()].concat()
    }
}

/// A convolution with one tap in place of a convolution, as a part of it.
pub(super) fn add_pointwise(
    work: &mut Replacement<'_>,
    n: NodeId,
    operands: [Value; 2],
    part: Part,
) -> Result<Value, AddError> {
    let g = work.graph;
    let Op::Conv(conv) = g.op(n) else { unreachable!("kernels are those of convolutions") };
    let axes = conv.strides.len();
    let pointwise = Conv {
        strides: vec![1; axes],
        pads_before: vec![0; axes],
        pads_after: vec![0; axes],
        dilations: vec![1; axes],
        groups: conv.groups,
        layout: conv.layout,
    };
    work.add(pointwise, &operands, g.node(n).origin.part(part))
}

/// The sites of kernels that are no layers: of several groups, or over one spatial axis.
pub(super) fn beside_layers(g: &Graph, scheme: &'static str) -> Vec<Site> {
    let site = |n: NodeId| {
        let kernel = Kernel::at(g, n).filter(|kernel| kernel.groups > 1 || kernel.taps.len() == 1)?;
        let alone = g.users_of(kernel.weight).len() == 1 && !g.is_output(kernel.weight);
        if !alone || g.node(n).origin.part.is_some() {
            return None;
        }
        Some(Site {
            name: name_of(g, &[n, kernel.weight.node]),
            kind: "conv",
            d_in: kernel.d_in(),
            d_out: kernel.groups * kernel.outputs,
            weights: vec![kernel.weight],
            nodes: vec![n],
            measures: Vec::new(),
            samples: Vec::new(),
            results: Vec::new(),
            schemes: vec![scheme],
        })
    };
    g.order().into_iter().filter_map(site).collect()
}
