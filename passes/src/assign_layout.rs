//! Puts the channels of images last, where the kernels of convolutions read them.
//!
//! Required stage: sketched. Every operator on images whose kernels demand it, such as a convolution, becomes one of
//! layout `nhwc` between two transposes, and so does every other operator on images behind one, such as pooling. The
//! transpose behind it then sinks through what follows, until it meets the one in front of the next convolution and both go. What is left stands at the inputs and
//! outputs of the graph and at operators that depend on the order of axes. Declines an operator whose other operands
//! would have to be moved in memory. A kernel keeps its order of axes; exported models keep theirs, since export comes
//! before.
//!
//! ```text
//! graph @before(%x: f32[N, 3, 8, 8]) -> (y: f32[N, 2]) {
//!   %0 = const #11aa22 : f32[2, 3, 3, 3]  // conv1.weight
//!   %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 2, 8, 8]  // conv1
//!   %2 = const [0.5, 1.5] : f32[2, 1, 1]  // conv1.bias
//!   %3 = add %1, %2 : f32[N, 2, 8, 8]  // bias1
//!   %4 = relu %3 : f32[N, 2, 8, 8]  // relu1
//!   %5 = const #33bb44 : f32[2, 2, 3, 3]  // conv2.weight
//!   %6 = conv %4, %5 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 2, 8, 8]  // conv2
//!   %7 = add %6, %4 : f32[N, 2, 8, 8]  // residual
//!   %8 = reduce %7 {kind = mean, axes = [2, 3]} : f32[N, 2]  // pool
//!   return %8
//! }
//! graph @after(%x: f32[N, 3, 8, 8]) -> (y: f32[N, 2]) {
//!   %0 = const #11aa22 : f32[2, 3, 3, 3]  // conv1.weight
//!   %1 = const #33bb44 : f32[2, 2, 3, 3]  // conv2.weight
//!   %2 = transpose %x {perm = [0, 2, 3, 1]} : f32[N, 8, 8, 3]
//!   %3 = conv %2, %0 {pads_before = [1, 1], pads_after = [1, 1], layout = nhwc} : f32[N, 8, 8, 2]  // conv1
//!   %4 = const [0.5, 1.5] : f32[2]  // conv1.bias
//!   %5 = add %3, %4 : f32[N, 8, 8, 2]  // bias1
//!   %6 = relu %5 : f32[N, 8, 8, 2]  // relu1
//!   %7 = conv %6, %1 {pads_before = [1, 1], pads_after = [1, 1], layout = nhwc} : f32[N, 8, 8, 2]  // conv2
//!   %8 = add %7, %6 : f32[N, 8, 8, 2]  // residual
//!   %9 = reduce %8 {kind = mean, axes = [1, 2]} : f32[N, 2]  // pool
//!   return %9
//! }
//! ```

use margay_ir::ops::{Broadcast, Const, Facts, ImageLayout, Reduce, Reshape, Transpose};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    AddError, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Origin, Pass, PassError, Patch,
    Payload, Value, Verdict,
};
use margay_tensor::{Dim, Tensor};

/// Puts the channels of images last.
#[derive(Clone, Copy, Debug, Default)]
pub struct AssignLayout;

impl Pass for AssignLayout {
    fn name(&self) -> &'static str {
        "assign-layout"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        // Sums run over the same terms in another order.
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rules = [
            Rule { name: "put-channels-last", apply: put_channels_last },
            Rule { name: "cancel-transposes", apply: cancel_transposes },
            Rule { name: "sink-transposes", apply: sink_transposes },
            Rule { name: "sink-through-reduction", apply: sink_through_reduction },
            Rule { name: "reshape-behind-ones", apply: reshape_behind_ones },
            Rule { name: "turn-weight-behind-flatten", apply: turn_weight_behind_flatten },
        ];
        rewrite(self.name(), g, cx, self, &rules)
    }
}

/// Axes of an image with one spatial axis.
const IMAGE_AXES: usize = 3;

const LAST: ImageLayout = ImageLayout::Nhwc;

/// A list of values per axis of NCHW in the order of NHWC.
fn channels_last<T: Clone>(list: &[T]) -> Vec<T> {
    LAST.perm_from_nchw(list.len()).iter().map(|&p| list[p].clone()).collect()
}

/// The operand of a transpose from NHWC to NCHW.
fn behind_transpose(g: &Graph, v: Value) -> Option<Value> {
    let Op::Transpose(t) = g.op(v.node) else { return None };
    let ndim = t.perm.len();
    (ndim >= IMAGE_AXES && t.perm == LAST.perm_to_nchw(ndim)).then(|| g.inputs_of(v.node)[0])
}

/// The image in NHWC that `v` is in NCHW: only of images that a convolution made, so that other transposes stay.
fn image_behind(g: &Graph, v: Value) -> Option<Value> {
    behind_transpose(g, v).filter(|x| is_image(g, *x))
}

/// Whether a value in NHWC comes from a convolution or pooling, through operators that transposes sink through.
fn is_image(g: &Graph, v: Value) -> bool {
    /// Far more than lie between two convolutions.
    const MOST: usize = 256;
    let ndim = g.ty(v).ndim();
    if ndim < IMAGE_AXES {
        return false;
    }
    let perm = LAST.perm_to_nchw(ndim);
    let mut stack = vec![v];
    for _ in 0..MOST {
        let Some(v) = stack.pop() else { return false };
        let op = g.op(v.node);
        if op.facts().image.is_some_and(|image| image.result && image.layout == LAST) {
            return true;
        }
        if op.permuted(&perm).is_some() {
            stack.extend(g.inputs_of(v.node).into_iter().filter(|x| g.ty(*x).ndim() == ndim));
        }
    }
    false
}

/// Replaces a node by a value of the patch that is the same in NHWC.
fn replace(g: &Graph, n: NodeId, mut patch: Patch, transposed: Value) -> RuleResult {
    let perm = LAST.perm_to_nchw(g.ty(n.into()).ndim());
    let back = patch.add(g, Transpose { perm }, &[transposed], Origin::default())?;
    patch.redirect(n.into(), back);
    Ok(Verdict::Rewrite(patch))
}

/// An operator in NHWC in place of a node: on the images behind all of its operands.
fn replace_op(g: &Graph, n: NodeId, mut patch: Patch, op: impl Into<Op>, operands: &[Value]) -> RuleResult {
    let new = patch.add(g, op, operands, g.node(n).origin.clone())?;
    replace(g, n, patch, new)
}

/// A value in NHWC: what it was before it was transposed, or transposed anew.
fn to_last(g: &Graph, patch: &mut Patch, v: Value) -> Result<Value, AddError> {
    match behind_transpose(g, v) {
        Some(x) => Ok(x),
        None => {
            let perm = LAST.perm_from_nchw(g.ty(v).ndim());
            patch.add(g, Transpose { perm }, &[v], Origin::default())
        }
    }
}

/// An operator on images in its form for channels last: if its kernels demand it, or its first operand is such an image
/// already.
fn put_channels_last(g: &Graph, n: NodeId, _: &AssignLayout) -> RuleResult {
    let Some(image) = g.op(n).facts().image.filter(|image| image.layout != LAST) else {
        return Ok(Verdict::NoMatch);
    };
    let mut operands = g.inputs_of(n);
    if !image.demanding && image_behind(g, operands[0]).is_none() {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    for v in operands.iter_mut().take(image.operands) {
        *v = to_last(g, &mut patch, *v)?;
    }
    if image.result {
        return replace_op(g, n, patch, image.channels_last, &operands);
    }
    let new = patch.add(g, image.channels_last, &operands, g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

fn cancel_transposes(g: &Graph, n: NodeId, _: &AssignLayout) -> RuleResult {
    let Op::Transpose(t) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let Some(x) = image_behind(g, g.inputs_of(n)[0]) else { return Ok(Verdict::NoMatch) };
    if t.perm != LAST.perm_from_nchw(t.perm.len()) {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    patch.redirect(n.into(), x);
    Ok(Verdict::Rewrite(patch))
}

/// Whether reordering axes of these extents moves nothing in memory.
fn moves_only_ones(shape: &[Dim], perm: &[usize]) -> bool {
    perm.iter().filter(|&&p| !shape[p].is(1)).is_sorted()
}

/// What an operand of one of the axes of NCHW needs.
#[derive(Clone, Copy)]
struct Need {
    /// Axes of the result; those of the operand are the last ones.
    ndim: usize,
    /// Leading axes of extent 1 may be left out.
    broadcasts: bool,
}

/// A constant of this shape in NHWC.
fn transposed_constant(tensor: &Tensor, shape: &[Dim], need: Need) -> Option<Tensor> {
    let extents: Vec<usize> = shape.iter().map(Dim::as_extent).collect::<Option<_>>()?;
    let reshaped = tensor.reshaped(&extents).ok()?;
    let perm = LAST.perm_from_nchw(need.ndim);
    let moved = Op::from(Transpose { perm }).eval(&[&reshaped]).ok()?.pop()?;
    let ones = moved.shape().iter().take_while(|&&d| need.broadcasts && d == 1).count();
    moved.reshaped(&moved.shape()[ones..]).ok()
}

/// An operand in NHWC, if nothing but constants moves in memory for it.
fn transposed(g: &Graph, patch: &mut Patch, v: Value, need: Need) -> Result<Option<Value>, AddError> {
    let ty = g.ty(v);
    if ty.ndim() == need.ndim
        && let Some(x) = image_behind(g, v)
    {
        return Ok(Some(x));
    }
    if ty.ndim() == 0 && need.broadcasts {
        return Ok(Some(v));
    }
    let mut shape = vec![Dim::from(1usize); need.ndim - ty.ndim()];
    shape.extend(ty.shape.iter().cloned());
    let origin = || g.node(v.node).origin.clone();
    if let Some(payload) = g.constant(v) {
        let Some(tensor) = transposed_constant(payload.tensor(), &shape, need) else { return Ok(None) };
        return patch.add(g, Const { payload: Payload::new(tensor) }, &[], origin()).map(Some);
    }
    if moves_only_ones(&shape, &LAST.perm_from_nchw(need.ndim)) {
        let op = Reshape { shape: channels_last(&shape) };
        return patch.add(g, op, &[v], Origin::default()).map(Some);
    }
    if let Op::Broadcast(_) = g.op(v.node)
        && let Some(x) = transposed(g, patch, g.inputs_of(v.node)[0], Need { broadcasts: true, ..need })?
    {
        let op = Broadcast { shape: channels_last(&shape) };
        return patch.add(g, op, &[x], origin()).map(Some);
    }
    Ok(None)
}

/// All operands in NHWC, if one of them is an image and the others can be had; positions stay as they are.
fn transposed_operands(
    g: &Graph,
    n: NodeId,
    patch: &mut Patch,
    facts: &Facts,
) -> Result<Option<Vec<Value>>, AddError> {
    let need = Need { ndim: g.ty(n.into()).ndim(), broadcasts: facts.elementwise.is_some() };
    let positions = if need.broadcasts { &[] } else { facts.steering() };
    let operands = g.inputs_of(n);
    let whole = |v: &Value| g.ty(*v).ndim() == need.ndim;
    let mut moved = operands.iter().enumerate().filter(|(i, _)| !positions.contains(i)).map(|(_, v)| v);
    // Positions may be an image, too; what is looked up there is in another order than they are.
    let fit = moved.clone().all(|v| need.broadcasts || whole(v));
    if !fit || !moved.any(|v| whole(v) && image_behind(g, *v).is_some()) {
        return Ok(None);
    }
    let in_order = |(i, v): (usize, Value)| match positions.contains(&i) {
        true => Ok(Some(v)),
        false => transposed(g, patch, v, need),
    };
    operands.into_iter().enumerate().map(in_order).collect()
}

/// An operator that computes the same on images with channels last, with values per axis in their order.
fn sink_transposes(g: &Graph, n: NodeId, _: &AssignLayout) -> RuleResult {
    let (op, ndim) = (g.op(n), g.ty(n.into()).ndim());
    if ndim < IMAGE_AXES {
        return Ok(Verdict::NoMatch);
    }
    let Some(permuted) = op.permuted(&LAST.perm_from_nchw(ndim)) else { return Ok(Verdict::NoMatch) };
    let mut patch = Patch::new();
    match transposed_operands(g, n, &mut patch, &op.facts())? {
        Some(operands) => replace_op(g, n, patch, permuted, &operands),
        None => Ok(Verdict::NoMatch),
    }
}

/// A sum over axes that disappear: the others are put in order.
fn sink_through_reduction(g: &Graph, n: NodeId, _: &AssignLayout) -> RuleResult {
    let Op::Reduce(op @ Reduce { keepdims: false, .. }) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let v = g.inputs_of(n)[0];
    let Some(x) = image_behind(g, v) else { return Ok(Verdict::NoMatch) };
    let transposed = LAST.perm_to_nchw(g.ty(v).ndim());
    let mut axes: Vec<usize> = op.axes.iter().map(|&a| transposed[a]).collect();
    axes.sort_unstable();
    let new = Reduce { axes, ..op.clone() };
    // The axes that stay, in the order in which the result has them.
    let wanted: Vec<usize> =
        (0..transposed.len()).filter(|a| !op.axes.contains(a)).map(|a| transposed[a]).collect();
    let mut found = wanted.clone();
    found.sort_unstable();
    let perm = wanted.iter().map(|w| found.iter().take_while(|f| *f < w).count()).collect();
    let mut patch = Patch::new();
    let mut result = patch.add(g, new, &[x], g.node(n).origin.clone())?;
    if wanted != found {
        result = patch.add(g, Transpose { perm }, &[result], Origin::default())?;
    }
    patch.redirect(n.into(), result);
    Ok(Verdict::Rewrite(patch))
}

/// A reshape of an image whose transpose moves nothing.
fn reshape_behind_ones(g: &Graph, n: NodeId, _: &AssignLayout) -> RuleResult {
    let Op::Reshape(op) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let v = g.inputs_of(n)[0];
    let Some(x) = image_behind(g, v) else { return Ok(Verdict::NoMatch) };
    if !moves_only_ones(&g.ty(v).shape, &LAST.perm_from_nchw(g.ty(v).ndim())) {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    let new = patch.add(g, op.clone(), &[x], g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// A product of flattened images with a constant: the rows of the constant take the order of NHWC.
fn turn_weight_behind_flatten(g: &Graph, n: NodeId, _: &AssignLayout) -> RuleResult {
    let Op::MatMul(op) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let operands = g.inputs_of(n);
    let (flat, weight) = (operands[0], operands[1]);
    let Op::Reshape(reshape) = g.op(flat.node) else { return Ok(Verdict::NoMatch) };
    let image = g.inputs_of(flat.node)[0];
    let Some(x) = image_behind(g, image) else { return Ok(Verdict::NoMatch) };
    let Some(payload) = g.constant(weight) else { return Ok(Verdict::NoMatch) };
    let shape = &g.ty(image).shape;
    let rows: Option<Vec<usize>> = shape[1..].iter().map(Dim::as_extent).collect();
    let (Some(rows), &[k, _]) = (rows, payload.stored().shape()) else { return Ok(Verdict::NoMatch) };
    let flattens = reshape.shape.len() == 2 && reshape.shape[0] == shape[0];
    if !flattens || rows.iter().product::<usize>() != k {
        return Ok(Verdict::NoMatch);
    }
    let readers = g.users_of(weight).len() + g.users_of(flat).len();
    if readers > 2 || g.is_output(weight) || g.is_output(flat) {
        let found = format!("a flattened image or its weight has other readers, {readers} in all");
        return Ok(Verdict::Declined(found));
    }
    // Row c · pixels + p of the weight becomes row p · channels + c.
    let (channels, pixels) = (rows[0], rows[1..].iter().product::<usize>());
    let order: Vec<usize> = (0..pixels).flat_map(|p| (0..channels).map(move |c| c * pixels + p)).collect();
    let Some(moved) = payload.stored().reordered(&order) else {
        return Ok(Verdict::Declined(format!("rows of a weight stored as {} stay", payload.storage())));
    };
    let derivation = format!("channels_last({}, channels = {})", payload.key(), rows[0]);
    let mut patch = Patch::new();
    let constant = Const { payload: Payload::derived(&derivation, moved) };
    let weight = patch.add(g, constant, &[], g.node(weight.node).origin.clone())?;
    let flat = patch.add(g, reshape.clone(), &[x], g.node(flat.node).origin.clone())?;
    let product = patch.add(g, op.clone(), &[flat, weight], g.node(n).origin.clone())?;
    patch.redirect(n.into(), product);
    Ok(Verdict::Rewrite(patch))
}
