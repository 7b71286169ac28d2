//! Two thinner products in place of one: `x W ≈ (x A) B`, and the same for the unfolded kernel of a convolution.
//!
//! Factors come from the singular value decomposition of the weight, whitened by the module's inputs where calibration
//! measured them (see [`margay_randnla::LowRank`]). A convolution becomes one with `k` filters followed by a
//! 1x1 convolution. What the factors leave out of the mean output is added to the bias.

use margay_ir::ops::{Add, Const, Conv};
use margay_ir::{Graph, NodeId, Op, Origin, Part, Patch, Payload, Value};
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
        let options = LowRankOptions { rsvd, ..LowRankOptions::default() };
        let decomposition = LowRank::new(&weight, statistics.map(|s| &s.whitening), None, &options)?;
        Ok(Box::new(FittedLowRank {
            decomposition,
            source: payload.key().to_string(),
            inputs: statistics.map(|s| s.calibration.clone()),
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
    d_in: usize,
    d_out: usize,
}

impl FittedLowRank {
    fn numbers(&self, rank: usize) -> usize {
        rank * (self.d_in + self.d_out)
    }

    /// The name of a derived constant.
    fn derivation(&self, part: &str, rank: usize) -> String {
        let inputs = self.inputs.as_ref().map(|i| format!(", inputs = {i}")).unwrap_or_default();
        format!("lowrank.{part}({}, k = {rank}{inputs})", self.source)
    }

    fn constant(&self, part: &str, rank: usize, shape: &[usize], data: &[f32]) -> Const {
        let tensor = Tensor::from_slice(shape, data).expect("factors have as many numbers as their shapes");
        Const { payload: Payload::derived(&self.derivation(part, rank), tensor) }
    }

    /// The two factors as constants of the patch.
    fn add_factors(
        &self,
        g: &Graph,
        patch: &mut Patch,
        module: &Module,
        factors: &Factors,
        rank: usize,
    ) -> Result<(Value, Value), ApplyError> {
        let weight = g.node(module.weight.node);
        let (left, right, left_shape, right_shape) = match module.kind {
            ModuleKind::Linear => (
                factors.left.to_row_major(),
                factors.right.to_row_major(),
                vec![self.d_in, rank],
                vec![rank, self.d_out],
            ),
            ModuleKind::Conv => {
                let kernel = weight.types[0].extents().unwrap_or_default();
                (
                    factors.left.transposed().to_row_major(),
                    factors.right.transposed().to_row_major(),
                    vec![rank, kernel[1], kernel[2], kernel[3]],
                    vec![self.d_out, rank, 1, 1],
                )
            }
        };
        let left = self.constant("left", rank, &left_shape, &left);
        let right = self.constant("right", rank, &right_shape, &right);
        let left = patch.add(g, left, &[], weight.origin.part(Part::Left))?;
        let right = patch.add(g, right, &[], weight.origin.part(Part::Right))?;
        Ok((left, right))
    }

    /// Adds the correction to the bias behind a node, or as a bias of its own.
    fn add_bias(
        &self,
        g: &Graph,
        patch: &mut Patch,
        module: &Module,
        n: NodeId,
        product: Value,
        correction: &[f32],
        rank: usize,
    ) -> Result<(), ApplyError> {
        let own_shape = match module.kind {
            ModuleKind::Linear => vec![self.d_out],
            ModuleKind::Conv => vec![self.d_out, 1, 1],
        };
        let behind = bias_behind(g, n, self.d_out)
            .and_then(|(add, bias)| Some((add, bias, g.constant(bias)?)))
            .and_then(|(add, bias, p)| Some((add, bias, p, p.tensor().to_vec::<f32>().ok()?)));
        let (shape, values, origin, replaced, old) = match behind {
            Some((add, bias, payload, old)) => {
                let sum = old.iter().zip(correction).map(|(a, b)| a + b).collect::<Vec<f32>>();
                let origin = g.node(bias.node).origin.clone();
                (payload.tensor().shape().to_vec(), sum, origin, add, Some(payload.key()))
            }
            None => {
                let origin = g.node(module.weight.node).origin.clone();
                (own_shape, correction.to_vec(), origin, n, None)
            }
        };
        let tensor = Tensor::from_slice(&shape, &values).expect("a bias has one number per output");
        let mut derivation = self.derivation("bias", rank);
        if let Some(key) = old {
            derivation = format!("add({key}, {derivation})");
        }
        let constant = Const { payload: Payload::derived(&derivation, tensor) };
        let bias = patch.add(g, constant, &[], origin.part(Part::Bias))?;
        let sum_origin = match replaced == n {
            true => g.node(n).origin.part(Part::Bias),
            false => g.node(replaced).origin.clone(),
        };
        let sum = patch.add(g, Add, &[product, bias], sum_origin)?;
        patch.redirect(replaced.into(), sum);
        Ok(())
    }
}

/// The addition of a constant with one element per output behind a node, if it is the node's only reader.
fn bias_behind(g: &Graph, n: NodeId, d_out: usize) -> Option<(NodeId, Value)> {
    let add = g.sole_user(n.into())?;
    let Op::Add(_) = g.op(add) else { return None };
    let bias = g.inputs_of(add).into_iter().find(|v| v.node != n)?;
    let fits = g.constant(bias)?.tensor().len() == d_out && g.ty(add.into()) == g.ty(n.into());
    fits.then_some((add, bias))
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
            KernelCall::Attention(_) => vec![dense.clone()],
        }
    }

    fn apply(&self, g: &Graph, module: &Module, rank: usize) -> Result<Patch, ApplyError> {
        let factors = self.decomposition.factors(rank)?;
        let mut patch = Patch::new();
        let (left, right) = self.add_factors(g, &mut patch, module, &factors, rank)?;
        for &n in &module.nodes {
            let x = g.inputs_of(n)[0];
            let origin = |part| -> Origin { g.node(n).origin.part(part) };
            let thin = patch.add(g, g.op(n).clone(), &[x, left], origin(Part::Left))?;
            let second: Op = match g.op(n) {
                Op::Conv(_) => Conv::pointwise().into(),
                op => op.clone(),
            };
            let product = patch.add(g, second, &[thin, right], origin(Part::Right))?;
            match &factors.bias {
                Some(correction) => {
                    self.add_bias(g, &mut patch, module, n, product, correction, rank)?;
                }
                None => patch.redirect(n.into(), product),
            }
        }
        Ok(patch)
    }
}
