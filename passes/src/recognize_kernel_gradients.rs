//! Finds derivatives of convolutions by their kernels, which are convolutions of images and cotangents whose axes of images and
//! channels are exchanged, as files of backward passes have them.
//!
//! ```text
//! graph @before(%x: f32[2, 3, 8, 8], %dy: f32[2, 4, 8, 8]) -> (dk: f32[4, 3, 3, 3]) {
//!   %0 = transpose %x {perm = [1, 0, 2, 3]} : f32[3, 2, 8, 8]
//!   %1 = transpose %dy {perm = [1, 0, 2, 3]} : f32[4, 2, 8, 8]
//!   %2 = conv %0, %1 {pads_before = [1, 1], pads_after = [1, 1]} : f32[3, 4, 3, 3]  // c gradient
//!   %3 = transpose %2 {perm = [1, 0, 2, 3]} : f32[4, 3, 3, 3]
//!   return %3
//! }
//! graph @after(%x: f32[2, 3, 8, 8], %dy: f32[2, 4, 8, 8]) -> (dk: f32[4, 3, 3, 3]) {
//!   %0 = transpose %x {perm = [1, 0, 2, 3]} : f32[3, 2, 8, 8]
//!   %1 = transpose %dy {perm = [1, 0, 2, 3]} : f32[4, 2, 8, 8]
//!   %2 = transpose %0 {perm = [1, 0, 2, 3]} : f32[2, 3, 8, 8]  // c gradient
//!   %3 = transpose %1 {perm = [1, 0, 2, 3]} : f32[2, 4, 8, 8]  // c gradient
//!   %4 = conv_kernel_gradient %2, %3 {kernel = [3, 3], pads_before = [1, 1], pads_after = [1, 1]} : f32[4, 3, 3, 3]  // c gradient
//!   %5 = transpose %4 {perm = [1, 0, 2, 3]} : f32[3, 4, 3, 3]  // c gradient
//!   %6 = transpose %5 {perm = [1, 0, 2, 3]} : f32[4, 3, 3, 3]
//!   return %6
//! }
//! ```
//!
//! A convolution of one group whose windows leave no room for more places is such a derivative; it is taken for one where its
//! kernel is computed and has more taps than its result has places. Not where spatial extents are open, since nothing tells then
//! which of both it is, and not of f64. The derivative has no derivatives itself: this comes behind all that takes some.

use margay_ir::ops::{Conv, ConvKernelGradient, ImageLayout, Transpose};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Verdict};
use margay_tensor::DType;

/// Finds derivatives of convolutions by their kernels.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeKernelGradients;

impl Pass for RecognizeKernelGradients {
    fn name(&self) -> &'static str {
        "recognize-kernel-gradients"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rule = Rule { name: "kernel-gradient-from-convolution", apply: kernel_gradient };
        rewrite(self.name(), g, cx, self, &[rule])
    }
}

fn kernel_gradient(g: &Graph, n: NodeId, _: &RecognizeKernelGradients) -> RuleResult {
    let Some(op) = found(g, n) else { return Ok(Verdict::NoMatch) };
    let (operands, origin, mut patch) = (g.inputs_of(n), g.node(n).origin.clone(), Patch::new());
    let perm: Vec<usize> = [1, 0].into_iter().chain(2..2 + op.kernel.len()).collect();
    let exchanged = Transpose { perm };
    let x = patch.add(g, exchanged.clone(), &[operands[0]], origin.clone())?;
    let dy = patch.add(g, exchanged.clone(), &[operands[1]], origin.clone())?;
    let gradient = patch.add(g, op, &[x, dy], origin.clone())?;
    let new = patch.add(g, exchanged, &[gradient], origin)?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// The derivative that a convolution is.
fn found(g: &Graph, n: NodeId) -> Option<ConvKernelGradient> {
    let Op::Conv(Conv { strides, pads_before, pads_after, dilations, groups: 1, layout: ImageLayout::Nchw }) =
        g.op(n)
    else {
        return None;
    };
    let [x, k] = g.inputs_of(n)[..] else { return None };
    // Only the convolution itself has code for f64.
    if !matches!(g.ty(x).dtype, DType::F32 | DType::F16 | DType::BF16) || g.constant(k).is_some() {
        return None;
    }
    let spatial = |v| g.ty(v).shape[2..].iter().map(|d| d.as_extent()).collect::<Option<Vec<usize>>>();
    let (image, cotangent, kernel) = (spatial(x)?, spatial(k)?, spatial(n.into())?);
    if cotangent.iter().product::<usize>() <= kernel.iter().product() {
        return None;
    }
    let mut after = Vec::new();
    for axis in 0..kernel.len() {
        let reach =
            dilations[axis] * (cotangent[axis] - 1) + strides[axis] * (kernel[axis].checked_sub(1)?) + 1;
        let padded = image[axis] + pads_before[axis];
        let needed = reach.saturating_sub(padded);
        // As many places of the forward convolution as the cotangent has.
        let places = (padded + needed - strides[axis] * (kernel[axis] - 1) - 1) / dilations[axis] + 1;
        if places != cotangent[axis] || needed > pads_after[axis] {
            return None;
        }
        after.push(needed);
    }
    Some(ConvKernelGradient {
        kernel,
        strides: dilations.clone(),
        pads_before: pads_before.clone(),
        pads_after: after,
        dilations: strides.clone(),
        groups: 1,
        layout: ImageLayout::Nchw,
    })
}
