//! One constant weight of a product, a convolution or a lookup: the site that most schemes take.

use std::collections::{HashMap, HashSet};

use margay_ir::ops::{Add, Conv, Gather, ImageLayout, MatMul, Recurrence};
use margay_ir::{AddError, Graph, NodeId, Op, Part, Payload, Value};
use margay_randnla::{Matrix, RandnlaError};
use margay_tensor::DType;

use super::kernels::{Kernel, add_pointwise};
use super::{Replacement, RowKind, Rows, Site, Windows, name_of, unique};
use crate::matching::is_weight_of_state;

/// Products with one constant matrix \[d_in, d_out\], or convolutions with one constant kernel
/// \[out, in, taps…\] over spatial axes, seen as a matrix \[in·taps, out\] whose columns may belong to
/// groups, or lookups of rows of one constant table: products of rows that have a single one each, or recurrences, whose
/// states are multiplied with one constant matrix \[d_in, gates d_in\].
#[derive(Clone, PartialEq, Debug)]
pub struct Layer {
    /// The name in the model of the first node; unique among layers.
    pub name: String,
    /// The nodes, in topological order.
    pub nodes: Vec<NodeId>,
    /// The shared constant.
    pub weight: Value,
    /// Rows of the weight as a matrix: the length of the sums, those of one group.
    pub d_in: usize,
    /// Columns of the weight as a matrix: the number of outputs of all groups.
    pub d_out: usize,
    reads: Reads,
}

/// What a weight is multiplied with.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Reads {
    /// Rows along the last axis.
    Rows,
    /// Windows of the extents of a kernel.
    Windows(Kernel),
    /// The rows of zeros with a single one that are given by their places.
    Places,
    /// The states of a recurrence.
    States,
}

/// The layers of a graph, in topological order. Nodes that a rewrite made are left out.
pub fn layers(g: &Graph) -> Vec<Layer> {
    of_nodes(g, Layer::at)
}

/// The lookups of rows of constant tables, which are seen as layers, in topological order. Nodes that a rewrite made are left
/// out, and so are tables that are also read in another way, such as by a product with the same weights at the end of a model, and those
/// that are read at places that no input decides.
pub fn lookups(g: &Graph) -> Vec<Layer> {
    of_nodes(g, Layer::lookup_at)
}

/// The recurrences of a graph whose weights of the state are constants, in topological order. Nodes that a rewrite made are left
/// out, and those that round their states.
pub fn recurrences(g: &Graph) -> Vec<Layer> {
    of_nodes(g, Layer::recurrence_at)
}

fn of_nodes(g: &Graph, at: fn(&Graph, NodeId) -> Option<Layer>) -> Vec<Layer> {
    let mut found: Vec<Layer> = Vec::new();
    let mut by_weight: HashMap<Value, usize> = HashMap::new();
    for n in g.order() {
        let Some(mut layer) = at(g, n) else { continue };
        if g.node(n).origin.part.is_some() {
            continue;
        }
        match by_weight.get(&layer.weight) {
            Some(&i) if found[i].reads == layer.reads => found[i].nodes.push(n),
            Some(_) => {}
            None => {
                layer.name = unique(layer.name, |name| found.iter().any(|l| l.name == name));
                by_weight.insert(layer.weight, found.len());
                found.push(layer);
            }
        }
    }
    // A weight that somebody else reads too stays as it is: sketching would add to what is stored.
    found.retain(|l| g.users_of(l.weight).len() == l.nodes.len() && !g.is_output(l.weight));
    found
}

impl Layer {
    /// The layer of one node.
    pub fn at(g: &Graph, n: NodeId) -> Option<Layer> {
        let groups = match g.op(n) {
            Op::MatMul(_) if is_weight_of_state(g, n) => return None,
            Op::MatMul(_) => None,
            Op::Conv(c) => Some(c.groups),
            _ => return None,
        };
        let weight = *g.inputs_of(n).get(1)?;
        let tensor = g.constant(weight)?.tensor();
        let (d_in, d_out, reads) = match (groups, tensor.shape()) {
            (None, &[k, n]) => (k, n, Reads::Rows),
            (Some(groups), shape) => {
                // A single output of each group has no smaller form.
                let kernel = Kernel::new(groups, shape).filter(|k| k.groups == 1 || k.outputs > 1)?;
                (kernel.d_in(), shape[0], Reads::Windows(kernel))
            }
            _ => return None,
        };
        if tensor.dtype() != DType::F32 || d_in * d_out == 0 {
            return None;
        }
        Some(Layer { name: name_of(g, &[n, weight.node]), nodes: vec![n], weight, d_in, d_out, reads })
    }

    /// The lookup of one node.
    fn lookup_at(g: &Graph, n: NodeId) -> Option<Layer> {
        let (Op::Gather(Gather { axis: 0 }), &[weight, places]) = (g.op(n), g.inputs_of(n).as_slice()) else {
            return None;
        };
        let tensor = g.constant(weight)?.tensor();
        let &[d_in, d_out] = tensor.shape() else { return None };
        let found = tensor.dtype() == DType::F32 && d_in * d_out > 0;
        // Of a single place there is no product of rows; and what is looked up at places that follow from extents is a constant
        // once these are known, with nothing left of the table.
        (found && depends_on_inputs(g, places) && g.ty(places).ndim() > 0).then(|| Layer {
            name: name_of(g, &[n, weight.node]),
            nodes: vec![n],
            weight,
            d_in,
            d_out,
            reads: Reads::Places,
        })
    }

    /// The product of states in one node.
    fn recurrence_at(g: &Graph, n: NodeId) -> Option<Layer> {
        let Op::Recurrence(op @ Recurrence { quantized: false, .. }) = g.op(n) else { return None };
        let weight = op.operands(&g.inputs_of(n)).ok()?.r;
        let tensor = g.constant(weight)?.tensor();
        let &[d_in, d_out] = tensor.shape() else { return None };
        let found = tensor.dtype() == DType::F32 && d_in * d_out > 0;
        found.then(|| Layer {
            // The product of the inputs has the name of the operator.
            name: format!("{}/R", name_of(g, &[n, weight.node])),
            nodes: vec![n],
            weight,
            d_in,
            d_out,
            reads: Reads::States,
        })
    }

    /// The layer of a site of one weight.
    ///
    /// # Panics
    /// For a site that was not made of a layer of the graph.
    pub fn of(g: &Graph, site: &Site) -> Layer {
        let seen = |n| Layer::lookup_at(g, n).or_else(|| Layer::recurrence_at(g, n));
        let at = |n: NodeId| Layer::at(g, n).or_else(|| seen(n));
        let first = at(site.nodes[0]).expect("the nodes of a layer read its weight");
        Layer { name: site.name.clone(), nodes: site.nodes.clone(), ..first }
    }

    /// The layer as a site of a scheme, which asks for the moments of its inputs.
    pub fn site(&self, g: &Graph, scheme: &'static str) -> Site {
        Site {
            name: self.name.clone(),
            kind: self.word(),
            only_by_name: self.is_lookup(),
            d_in: self.d_in,
            d_out: self.d_out,
            weights: vec![self.weight],
            nodes: self.nodes.clone(),
            measures: (0..self.groups()).map(|group| self.inputs_of_group(g, group)).collect(),
            samples: Vec::new(),
            results: self.nodes.iter().map(|n| self.result(g, *n)).collect(),
            schemes: vec![scheme],
        }
    }

    /// What it is, in one word for reports.
    pub fn word(&self) -> &'static str {
        match self.reads {
            Reads::Rows => "linear",
            Reads::Windows(_) => "conv",
            Reads::Places => "embedding",
            Reads::States => "recurrent",
        }
    }

    /// Whether it is a product of rows that are given in full.
    pub fn is_product(&self) -> bool {
        self.reads == Reads::Rows
    }

    /// Whether it is a product of rows, or convolutions over images that are one: of one tap and one group, without padding.
    /// Places that strides leave out have to be known.
    pub(super) fn is_linear(&self, g: &Graph) -> bool {
        let rows = |n: &NodeId| {
            let Op::Conv(conv) = g.op(*n) else { return true };
            let known = g.ty(g.inputs_of(*n)[0]).shape[2..].iter().all(|extent| extent.as_extent().is_some());
            let whole = conv.strides.iter().all(|stride| *stride == 1);
            let padded = conv.pads_before.iter().chain(&conv.pads_after).any(|pad| *pad > 0);
            conv.layout == ImageLayout::Nchw && !padded && (whole || known)
        };
        let one_tap = self.kernel().is_none_or(|kernel| kernel.taps() == 1 && kernel.groups == 1);
        matches!(self.reads, Reads::Rows | Reads::Windows(_)) && one_tap && self.nodes.iter().all(rows)
    }

    /// Whether it looks up rows of its weight.
    pub fn is_lookup(&self) -> bool {
        self.reads == Reads::Places
    }

    /// Whether it multiplies the states of a recurrence.
    pub fn is_recurrent(&self) -> bool {
        self.reads == Reads::States
    }

    /// The extents of a kernel; `None` for other layers.
    pub(super) fn kernel(&self) -> Option<&Kernel> {
        match &self.reads {
            Reads::Windows(kernel) => Some(kernel),
            Reads::Rows | Reads::Places | Reads::States => None,
        }
    }

    /// The extents of the kernel of each group of convolutions over images with the channels second; `None` for other layers.
    pub(super) fn kernel_of_images(&self, g: &Graph) -> Option<Kernel> {
        let images = self.kernel().filter(|_| self.nodes.iter().all(|n| !channels_last(g, *n)));
        images.map(Kernel::of_a_group)
    }

    /// Groups of inputs and outputs, each of which has a matrix of its own.
    pub fn groups(&self) -> usize {
        self.kernel().map_or(1, |kernel| kernel.groups)
    }

    /// Outputs of one group.
    pub fn outputs(&self) -> usize {
        self.d_out / self.groups()
    }

    /// How many numbers the weight holds.
    pub fn numbers(&self) -> usize {
        self.d_in * self.d_out
    }

    /// The rows that its nodes multiply the weight with, each once; with groups, those of the first.
    pub fn inputs(&self, g: &Graph) -> Vec<Rows> {
        self.inputs_of_group(g, 0)
    }

    fn inputs_of_group(&self, g: &Graph, group: usize) -> Vec<Rows> {
        let mut all: Vec<Rows> = Vec::new();
        for rows in self.nodes.iter().map(|n| self.input_of_group(g, *n, group)) {
            if !all.contains(&rows) {
                all.push(rows);
            }
        }
        all
    }

    /// What one of its nodes gives, as rows. The products of states are no value of the graph: what they are added to is, and has
    /// the same derivative, but for the gate of a GRU whose product is multiplied with another gate first.
    pub fn result(&self, g: &Graph, n: NodeId) -> Rows {
        let kind = match self.kernel() {
            Some(_) => RowKind::Windows(Windows::new(&Conv::pointwise(), &[1, 1], 0)),
            None => RowKind::LastAxis,
        };
        let value = if self.is_recurrent() { g.inputs_of(n)[0] } else { n.into() };
        Rows { value, kind, length: self.d_out }
    }

    /// The rows that one of its nodes multiplies the weight with; with groups, those of the first.
    pub fn input(&self, g: &Graph, n: NodeId) -> Rows {
        self.input_of_group(g, n, 0)
    }

    fn input_of_group(&self, g: &Graph, n: NodeId, group: usize) -> Rows {
        let operand = |i: usize| g.inputs_of(n)[i];
        let (value, kind) = match (g.op(n), &self.reads) {
            (Op::Conv(c), Reads::Windows(kernel)) => {
                (operand(0), RowKind::Windows(Windows::new(c, &kernel.axes, group)))
            }
            (_, Reads::Places) => (operand(1), RowKind::Places),
            // The states that are shown are those that the next time reads.
            (_, Reads::States) => (n.into(), RowKind::LastAxis),
            _ => (operand(0), RowKind::LastAxis),
        };
        Rows { value, kind, length: self.d_in }
    }

    /// The contents of the weight.
    pub fn payload<'g>(&self, g: &'g Graph) -> &'g Payload {
        g.constant(self.weight).expect("the weight of a layer is a constant")
    }

    /// The weight as a matrix \[d_in, d_out\].
    ///
    /// # Errors
    /// None: the weight fills its shape.
    pub fn matrix(&self, g: &Graph) -> Result<Matrix, RandnlaError> {
        let values = self.payload(g).tensor().to_vec::<f32>().expect("the weight of a layer is f32");
        self.as_matrix(&values)
    }

    /// Numbers that lie as those of the weight do, such as its gradient, as a matrix \[d_in, d_out\].
    ///
    /// # Errors
    /// [`RandnlaError::Length`] for another number of them.
    pub fn as_matrix(&self, values: &[f32]) -> Result<Matrix, RandnlaError> {
        match self.kernel() {
            None => Matrix::from_row_major(self.d_in, self.d_out, values),
            Some(_) => Ok(Matrix::from_row_major(self.d_out, self.d_in, values)?.transposed()),
        }
    }

    /// The shape of a factor \[d_in, rank\] on the side of the input, and of one \[rank, d_out\] on that of the output, of all
    /// groups together.
    pub fn factor_shapes(&self, rank: usize) -> [Vec<usize>; 2] {
        let left = match self.kernel() {
            None => vec![self.d_in, rank],
            Some(kernel) => kernel.of_outputs(rank),
        };
        [left, self.right_shape(rank, self.outputs())]
    }

    /// The shape of a factor \[rank, columns\] of each group that is read behind another one.
    pub fn right_shape(&self, rank: usize, columns: usize) -> Vec<usize> {
        match self.kernel() {
            None => vec![rank, columns],
            Some(kernel) => kernel.pointwise([rank, columns]),
        }
    }

    /// The numbers of a factor as they lie in the graph; those of groups follow one another.
    pub fn factor(&self, matrix: &Matrix) -> Vec<f32> {
        match self.kernel() {
            None => matrix.to_row_major(),
            Some(_) => matrix.transposed().to_row_major(),
        }
    }

    /// The product with a factor on the side of the input in place of a node, or the convolution or lookup with such a one.
    ///
    /// # Errors
    /// For a factor that does not fit, which is our fault.
    pub fn left_product(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        left: Value,
    ) -> Result<Value, AddError> {
        let g = work.graph;
        let operands = match self.is_lookup() {
            true => [left, work.operand(n, 1)],
            false => [work.input(n), left],
        };
        work.add(g.op(n).clone(), &operands, g.node(n).origin.part(Part::Left))
    }

    /// The product with another factor behind it, or the 1x1 convolution.
    ///
    /// # Errors
    /// For a factor that does not fit, which is our fault.
    pub fn right_product(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        [thin, right]: [Value; 2],
    ) -> Result<Value, AddError> {
        if self.kernel().is_some() {
            return add_pointwise(work, n, [thin, right], Part::Right);
        }
        work.add(MatMul, &[thin, right], work.graph.node(n).origin.part(Part::Right))
    }

    /// Puts a recurrence with the product of two factors as its weights in place of a node.
    ///
    /// # Errors
    /// For factors that do not fit, which is our fault.
    pub fn replace_recurrence(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        factors: [Value; 2],
    ) -> Result<(), AddError> {
        let (g, origin) = (work.graph, work.graph.node(n).origin.clone());
        let weights = work.add(MatMul, &factors, origin.part(Part::Right))?;
        let mut operands: Vec<Value> = (0..g.inputs_of(n).len()).map(|i| work.operand(n, i)).collect();
        operands[1] = weights;
        let new = work.add(g.op(n).clone(), &operands, origin)?.node;
        for old in g.values_of(n) {
            work.replace(old, Value { node: new, out: old.out });
        }
        Ok(())
    }

    /// Two products, or two convolutions of which the second is 1x1, in place of a node. Returns the result, which nothing
    /// reads yet.
    ///
    /// # Errors
    /// For factors that do not fit, which is our fault.
    pub fn two_products(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        [left, right]: [Value; 2],
    ) -> Result<Value, AddError> {
        let thin = self.left_product(work, n, left)?;
        self.right_product(work, n, [thin, right])
    }

    /// Puts a result in place of that of a node, with a correction added to the bias behind the node, or as a bias of its
    /// own. `correction` is \[d_out\], absent where contents are not wanted; `name` says what it depends on.
    ///
    /// # Errors
    /// For a result of another type, which is our fault.
    pub fn replace_corrected(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        result: Value,
        (name, correction): (&str, Option<&[f32]>),
    ) -> Result<(), AddError> {
        let (replaced, sum) = self.corrected(work, n, result, (name, correction))?;
        work.replace(replaced, sum);
        Ok(())
    }

    /// As [`replace_corrected`](Layer::replace_corrected), without putting it in place: the value that it stands for, and the
    /// result with the correction.
    ///
    /// # Errors
    /// For a result of another type, which is our fault.
    pub fn corrected(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        result: Value,
        (name, correction): (&str, Option<&[f32]>),
    ) -> Result<(Value, Value), AddError> {
        let g = work.graph;
        let (name, shape, values, bias_origin, sum_origin, replaced) = match self.bias(g, n) {
            Some(found) => {
                let name = format!("add({}, {name})", found.payload.key());
                let sum = correction.map(|c| found.values.iter().zip(c).map(|(a, b)| a + b).collect());
                let shape = found.payload.tensor().shape().to_vec();
                let (bias, add) = (&g.node(found.constant).origin, g.node(found.add).origin.clone());
                (name, shape, sum, bias, add, found.add)
            }
            None => {
                let origin = g.node(n).origin.part(Part::Bias);
                let shape = match self.kernel() {
                    Some(kernel) if !channels_last(g, n) => {
                        [vec![self.d_out], vec![1; kernel.axes.len()]].concat()
                    }
                    _ => vec![self.d_out],
                };
                let weight = &g.node(self.weight.node).origin;
                (name.to_owned(), shape, correction.map(<[f32]>::to_vec), weight, origin, n)
            }
        };
        let bias = work.constant(&name, &shape, values, bias_origin.part(Part::Bias))?;
        Ok((replaced.into(), work.add(Add, &[result, bias], sum_origin)?))
    }

    /// The axis of a node's result that its outputs lie along.
    pub fn output_axis(&self, g: &Graph, n: NodeId) -> usize {
        match self.kernel() {
            Some(_) if !channels_last(g, n) => 1,
            _ => g.ty(n.into()).ndim() - 1,
        }
    }

    /// Nodes without a bias: what a correction is added to in vain.
    pub fn without_bias(&self, g: &Graph) -> usize {
        self.nodes.iter().filter(|&&n| self.bias(g, n).is_none()).count()
    }

    /// The addition of a constant with one element per output behind a node, if it is the node's only reader.
    pub fn bias<'g>(&self, g: &'g Graph, n: NodeId) -> Option<Bias<'g>> {
        let add = g.sole_user(n.into())?;
        let Op::Add(_) = g.op(add) else { return None };
        let bias = g.inputs_of(add).into_iter().find(|v| v.node != n)?;
        let payload = g.constant(bias)?;
        let result = g.ty(n.into());
        let output_axis = self.output_axis(g, n);
        let shape = payload.tensor().shape();
        let added = result.ndim().checked_sub(shape.len())?;
        let one_per_output = payload.tensor().len() == self.d_out
            && shape.iter().enumerate().all(|(i, &d)| d == 1 || i + added == output_axis);
        let values = payload.tensor().to_vec::<f32>().ok()?;
        (one_per_output && g.ty(add.into()) == result).then_some(Bias {
            add,
            constant: bias.node,
            payload,
            values,
        })
    }
}

/// An addition of a constant behind a node.
pub struct Bias<'a> {
    /// The addition.
    pub add: NodeId,
    /// The constant.
    pub constant: NodeId,
    /// Its contents.
    pub payload: &'a Payload,
    /// Its numbers.
    pub values: Vec<f32>,
}

/// Whether a value depends on what is in the inputs of its graph, and not on their extents alone.
fn depends_on_inputs(g: &Graph, v: Value) -> bool {
    let (mut next, mut seen) = (vec![v.node], HashSet::from([v.node]));
    while let Some(n) = next.pop() {
        if matches!(g.op(n), Op::Input(_)) {
            return true;
        }
        next.extend(g.inputs_of(n).into_iter().map(|v| v.node).filter(|n| seen.insert(*n)));
    }
    false
}

/// Whether a node is a convolution of images with the channels last.
fn channels_last(g: &Graph, n: NodeId) -> bool {
    matches!(g.op(n), Op::Conv(c) if c.layout == ImageLayout::Nhwc)
}
