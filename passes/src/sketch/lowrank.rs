//! Two thinner products in place of one: `x W ≈ (x A) B`, and the same for the unfolded kernel of a convolution.
//!
//! Factors come from the singular value decomposition of the weight, whitened by the module's inputs where calibration
//! measured them (see [`margay_randnla::LowRank`]). A convolution becomes one with `k` filters followed by a
//! 1x1 convolution. What the factors leave out of the mean output is added to the bias.

use std::collections::HashMap;

use margay_ir::ops::{Add, Const, Conv, ImageLayout};
use margay_ir::{AddError, Graph, NodeId, Op, Origin, Part, Patch, Payload, Value};
use margay_loops::{Epilogue, KernelCall};
use margay_randnla::{Factors, LowRank, LowRankOptions, Matrix, RandnlaError, RsvdOptions};
use margay_tensor::Tensor;

use super::{ApplyError, Fitted, InputStatistics, Module, ModuleKind, Point, Scheme};

/// Low-rank factors.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowRankScheme;

impl Scheme for LowRankScheme {
    fn name(&self) -> &'static str {
        "lowrank"
    }

    fn takes(&self, kind: ModuleKind) -> bool {
        match kind {
            ModuleKind::Linear | ModuleKind::Conv => true,
        }
    }

    fn fit(
        &self,
        g: &Graph,
        module: &Module,
        statistics: Option<&InputStatistics>,
        seed: u64,
    ) -> Result<Box<dyn Fitted>, RandnlaError> {
        let payload = g.constant(module.weight).expect("the weight of a module is a constant");
        let weights = payload.tensor().to_vec::<f32>().expect("the weight of a module is f32");
        let weight = match module.kind {
            ModuleKind::Linear => Matrix::from_row_major(module.d_in, module.d_out, &weights)?,
            ModuleKind::Conv => Matrix::from_row_major(module.d_out, module.d_in, &weights)?.transposed(),
        };
        let rsvd = RsvdOptions { seed, ..RsvdOptions::default() };
        let smaller = module.d_in.min(module.d_out);
        let exact_up_to = LowRankOptions::default().exact_up_to;
        // Large weights are decomposed by a randomized method, which pays for ranks well below the full one.
        let randomized = smaller > exact_up_to;
        let saving = (module.d_in * module.d_out).saturating_sub(1) / (module.d_in + module.d_out);
        let max_rank = if randomized { saving.min(2 * smaller / 5) } else { smaller };
        let options = LowRankOptions { max_rank: Some(max_rank.max(1)), exact_up_to, rsvd };
        let decomposition = LowRank::new(&weight, statistics.map(|s| &s.whitening), None, &options)?;
        Ok(Box::new(FittedLowRank {
            decomposition,
            source: payload.key().to_string(),
            inputs: statistics.map(|s| s.calibration.clone()),
            seed: randomized.then_some(seed),
            new_biases: match statistics {
                Some(_) => module.nodes.iter().filter(|&&n| bias_behind(g, module, n).is_none()).count(),
                None => 0,
            },
            d_in: module.d_in,
            d_out: module.d_out,
        }))
    }
}

struct FittedLowRank {
    decomposition: LowRank,
    /// What identifies the weight.
    source: String,
    /// What identifies the calibration.
    inputs: Option<String>,
    /// The seed, where the factors depend on it.
    seed: Option<u64>,
    /// Biases that the correction of the mean adds.
    new_biases: usize,
    d_in: usize,
    d_out: usize,
}

impl FittedLowRank {
    fn numbers(&self, rank: usize) -> usize {
        rank * (self.d_in + self.d_out) + self.new_biases * self.d_out
    }

    /// The name of a derived constant.
    fn derivation(&self, part: &str, rank: usize) -> String {
        let inputs = self.inputs.as_ref().map(|i| format!(", inputs = {i}")).unwrap_or_default();
        let seed = self.seed.map(|s| format!(", seed = {s}")).unwrap_or_default();
        format!("lowrank.{part}({}, k = {rank}{inputs}{seed})", self.source)
    }
}

/// A patch in the making for one module at one rank.
struct Replacement<'a> {
    fitted: &'a FittedLowRank,
    g: &'a Graph,
    module: &'a Module,
    rank: usize,
    patch: Patch,
    /// What stands in for values of the graph: uses of one weight may follow one another.
    done: HashMap<Value, Value>,
}

impl Replacement<'_> {
    fn weight_origin(&self) -> &Origin {
        &self.g.node(self.module.weight.node).origin
    }

    fn replace(&mut self, old: Value, new: Value) {
        self.patch.redirect(old, new);
        self.done.insert(old, new);
    }

    fn factor(&mut self, part: Part, shape: &[usize], data: &[f32]) -> Result<Value, AddError> {
        let tensor = Tensor::from_slice(shape, data).expect("factors have as many numbers as their shapes");
        let name = self.fitted.derivation(part.name(), self.rank);
        let constant = Const { payload: Payload::derived(&name, tensor) };
        let origin = self.weight_origin().part(part);
        self.patch.add(self.g, constant, &[], origin)
    }

    /// The two factors as constants.
    fn add_factors(&mut self, factors: &Factors) -> Result<(Value, Value), AddError> {
        let (d_in, d_out, rank) = (self.module.d_in, self.module.d_out, self.rank);
        let (left, right, left_shape, right_shape) = match self.module.kind {
            ModuleKind::Linear => (
                factors.left.to_row_major(),
                factors.right.to_row_major(),
                vec![d_in, rank],
                vec![rank, d_out],
            ),
            ModuleKind::Conv => {
                let kernel = self.g.ty(self.module.weight).extents().unwrap_or_default();
                (
                    factors.left.transposed().to_row_major(),
                    factors.right.transposed().to_row_major(),
                    vec![rank, kernel[1], kernel[2], kernel[3]],
                    vec![d_out, rank, 1, 1],
                )
            }
        };
        let left = self.factor(Part::Left, &left_shape, &left)?;
        Ok((left, self.factor(Part::Right, &right_shape, &right)?))
    }

    /// Adds the correction of the mean to the bias behind a node, or as a bias of its own.
    fn add_bias(&mut self, n: NodeId, product: Value, correction: &[f32]) -> Result<(), AddError> {
        let g = self.g;
        let own_shape = match self.module.kind {
            ModuleKind::Linear => vec![self.module.d_out],
            ModuleKind::Conv if channels_last(g, n) => vec![self.module.d_out],
            ModuleKind::Conv => vec![self.module.d_out, 1, 1],
        };
        let mut name = self.fitted.derivation("bias", self.rank);
        let (shape, values, bias_origin, sum_origin, replaced) = match bias_behind(g, self.module, n) {
            Some(found) => {
                name = format!("add({}, {name})", found.payload.key());
                let sum = found.values.iter().zip(correction).map(|(a, b)| a + b).collect();
                let shape = found.payload.tensor().shape().to_vec();
                (shape, sum, &g.node(found.constant).origin, g.node(found.add).origin.clone(), found.add)
            }
            None => {
                let origin = g.node(n).origin.part(Part::Bias);
                (own_shape, correction.to_vec(), self.weight_origin(), origin, n)
            }
        };
        let bias_origin = bias_origin.part(Part::Bias);
        let tensor = Tensor::from_slice::<f32>(&shape, &values).expect("a bias has one number per output");
        let constant = Const { payload: Payload::derived(&name, tensor) };
        let bias = self.patch.add(g, constant, &[], bias_origin)?;
        let sum = self.patch.add(g, Add, &[product, bias], sum_origin)?;
        self.replace(replaced.into(), sum);
        Ok(())
    }
}

/// Whether a node is a convolution of images with the channels last.
fn channels_last(g: &Graph, n: NodeId) -> bool {
    matches!(g.op(n), Op::Conv(c) if c.layout == ImageLayout::Nhwc)
}

/// An addition of a constant.
struct BiasBehind<'a> {
    add: NodeId,
    constant: NodeId,
    payload: &'a Payload,
    values: Vec<f32>,
}

/// The addition of a constant with one element per output behind a node, if it is the node's only reader.
fn bias_behind<'g>(g: &'g Graph, module: &Module, n: NodeId) -> Option<BiasBehind<'g>> {
    let add = g.sole_user(n.into())?;
    let Op::Add(_) = g.op(add) else { return None };
    let bias = g.inputs_of(add).into_iter().find(|v| v.node != n)?;
    let payload = g.constant(bias)?;
    let result = g.ty(n.into());
    let output_axis = match module.kind {
        ModuleKind::Linear => result.ndim() - 1,
        ModuleKind::Conv if channels_last(g, n) => result.ndim() - 1,
        ModuleKind::Conv => 1,
    };
    let shape = payload.tensor().shape();
    let added = result.ndim().checked_sub(shape.len())?;
    let one_per_output = payload.tensor().len() == module.d_out
        && shape.iter().enumerate().all(|(i, &d)| d == 1 || i + added == output_axis);
    let values = payload.tensor().to_vec::<f32>().ok()?;
    (one_per_output && g.ty(add.into()) == result).then_some(BiasBehind {
        add,
        constant: bias.node,
        payload,
        values,
    })
}

impl Fitted for FittedLowRank {
    fn points(&self) -> Vec<Point> {
        let energy = self.decomposition.energy();
        let dense = self.d_in * self.d_out;
        let errors = self.decomposition.squared_errors();
        (1..errors.len())
            .take_while(|&rank| self.numbers(rank) < dense)
            .map(|rank| Point {
                rank,
                relative_error: if energy > 0.0 { errors[rank] / energy } else { 0.0 },
                bytes: (self.numbers(rank) * 4) as u64,
            })
            .collect()
    }

    fn calls(&self, dense: &KernelCall, rank: usize) -> Vec<KernelCall> {
        match dense {
            KernelCall::MatMul(c) => {
                let (mut left, mut right) = (c.clone(), c.clone());
                left.n = rank;
                left.epilogue = Epilogue::default();
                right.k = rank;
                vec![KernelCall::MatMul(left), KernelCall::MatMul(right)]
            }
            KernelCall::Conv(c) => {
                let (mut left, mut right) = (c.clone(), c.clone());
                left.out_channels = rank;
                left.epilogue = Epilogue::default();
                right.in_channels = rank;
                right.in_size = c.out_size;
                (right.kernel, right.strides, right.pads, right.dilations) = ([1, 1], [1, 1], [0, 0], [1, 1]);
                vec![KernelCall::Conv(left), KernelCall::Conv(right)]
            }
            KernelCall::Attention(_)
            | KernelCall::AttentionGradient(_)
            | KernelCall::ConvKernelGradient(_)
            | KernelCall::LinearAttention(_) => vec![dense.clone()],
        }
    }

    fn apply(&self, g: &Graph, module: &Module, rank: usize) -> Result<Patch, ApplyError> {
        let factors = self.decomposition.factors(rank)?;
        let mut work =
            Replacement { fitted: self, g, module, rank, patch: Patch::new(), done: HashMap::new() };
        let (left, right) = work.add_factors(&factors)?;
        for &n in &module.nodes {
            let x = g.inputs_of(n)[0];
            let x = work.done.get(&x).copied().unwrap_or(x);
            let origin = |part| g.node(n).origin.part(part);
            let thin = work.patch.add(g, g.op(n).clone(), &[x, left], origin(Part::Left))?;
            let second: Op = match g.op(n) {
                Op::Conv(c) => Conv { layout: c.layout, ..Conv::pointwise() }.into(),
                op => op.clone(),
            };
            let product = work.patch.add(g, second, &[thin, right], origin(Part::Right))?;
            match &factors.bias {
                Some(correction) => work.add_bias(n, product, correction)?,
                None => work.replace(n.into(), product),
            }
        }
        Ok(work.patch)
    }
}
