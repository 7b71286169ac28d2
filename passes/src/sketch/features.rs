//! Random features of attention: what a plan says of them, and the nodes that compute them.

use margay_ir::ops::{Add, Exp, MatMul, Mul, Reduce, ReduceKind, Relu, Reshape, Sub, Transpose};
use margay_ir::{AddError, NodeId, Op, Part, Value};
use margay_plan::Settings;
use margay_randnla::Directions;
use margay_tensor::Dim;
use serde::{Deserialize, Serialize};

use super::Replacement;

/// What a plan says of random features.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FavorSettings {
    /// Features of a query or key; at least 1.
    pub features: usize,
    /// The function of products with directions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kernel: FeatureKernel,
    /// How directions are drawn.
    #[serde(default, skip_serializing_if = "is_default")]
    pub directions: FeatureDirections,
    /// Features come in pairs of opposite directions, which halves the number of directions; of the softmax kernel only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hyperbolic: bool,
    /// The heads that are replaced, ascending; all where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Vec<usize>>,
    /// The greatest relative error of a head that is replaced, about the mean of its output; needs samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
}

impl FavorSettings {
    /// Orthogonal features of the softmax kernel in all heads.
    pub fn new(features: usize) -> FavorSettings {
        FavorSettings {
            features,
            kernel: FeatureKernel::Softmax,
            directions: FeatureDirections::Orthogonal,
            hyperbolic: false,
            heads: None,
            limit: None,
        }
    }

    pub(super) fn read(settings: &Settings) -> Result<FavorSettings, String> {
        let read: FavorSettings = settings.read()?;
        if read.features == 0 {
            return Err("0 features, expected at least 1".to_owned());
        }
        if read.hyperbolic && (read.features % 2 == 1 || read.kernel == FeatureKernel::Relu) {
            return Err(format!(
                "hyperbolic features are pairs of the softmax kernel, found {} of kernel `{}`",
                read.features,
                read.kernel.name()
            ));
        }
        if read.heads.as_ref().is_some_and(|heads| !heads.is_sorted_by(|a, b| a < b)) {
            return Err(format!("heads {:?} are not ascending", read.heads.unwrap_or_default()));
        }
        match read.limit {
            Some(limit) if !(limit > 0.0 && limit.is_finite()) => {
                Err(format!("limit {limit}, expected a number above 0"))
            }
            _ => Ok(read),
        }
    }
}

/// The function of products with directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeatureKernel {
    /// Exponentials, whose products estimate those of a softmax.
    #[default]
    Softmax,
    /// The positive part: another kernel, for models that are trained with it.
    Relu,
}

impl FeatureKernel {
    /// The word used in plans.
    pub fn name(self) -> &'static str {
        match self {
            FeatureKernel::Softmax => "softmax",
            FeatureKernel::Relu => "relu",
        }
    }

    /// What is added to every feature, so that no sum of weights is 0.
    pub(super) fn epsilon(self) -> f64 {
        match self {
            FeatureKernel::Softmax => 1e-6,
            FeatureKernel::Relu => 1e-3,
        }
    }
}

/// How directions are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeatureDirections {
    /// At right angles in blocks, with the lengths of normal vectors.
    #[default]
    Orthogonal,
    /// At right angles in blocks, of one length.
    Regularized,
    /// Independent normal vectors.
    Independent,
}

impl FeatureDirections {
    pub(super) fn law(self) -> (Directions, &'static str) {
        match self {
            FeatureDirections::Orthogonal => (Directions::Orthogonal, "orthogonal"),
            FeatureDirections::Regularized => (Directions::Regularized, "regularized"),
            FeatureDirections::Independent => (Directions::Independent, "independent"),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The features of one attention.
pub(super) struct Features<'a> {
    /// The node that is replaced.
    pub(super) n: NodeId,
    pub(super) s: &'a FavorSettings,
    /// Multiplies the products of queries and keys.
    pub(super) scale: f64,
    pub(super) causal: bool,
    /// The directions, scaled as the kernel wants them: `[d, features]`.
    pub(super) directions: Value,
}

impl Features<'_> {
    fn add(
        &self,
        work: &mut Replacement<'_>,
        op: impl Into<Op>,
        inputs: &[Value],
    ) -> Result<Value, AddError> {
        work.add(op, inputs, work.graph.node(self.n).origin.part(Part::Left))
    }

    fn number(&self, work: &mut Replacement<'_>, x: f64) -> Result<Value, AddError> {
        work.number(x, work.graph.node(self.n).origin.part(Part::Random))
    }

    fn without_greatest(
        &self,
        work: &mut Replacement<'_>,
        x: Value,
        axes: &[usize],
    ) -> Result<Value, AddError> {
        let most = Reduce { kind: ReduceKind::Max, axes: axes.to_vec(), keepdims: true };
        let most = self.add(work, most, &[x])?;
        self.add(work, Sub, &[x, most])
    }

    /// `[B, H, S, D]` as `[B, H, S, M]`.
    pub(super) fn of_queries(&self, work: &mut Replacement<'_>, q: Value) -> Result<Value, AddError> {
        let products = self.add(work, MatMul, &[q, self.directions])?;
        let positive = match self.s.kernel {
            FeatureKernel::Softmax => {
                let exponents = self.without_greatest(work, products, &[3])?;
                self.add(work, Exp, &[exponents])?
            }
            FeatureKernel::Relu => self.add(work, Relu, &[products])?,
        };
        let epsilon = self.number(work, self.s.kernel.epsilon())?;
        self.add(work, Add, &[positive, epsilon])
    }

    /// `[B, H, T, D]` as `[B, H, T, M]`, with a mask that has a column for every direction.
    pub(super) fn of_keys(
        &self,
        work: &mut Replacement<'_>,
        k: Value,
        mask: Option<Value>,
    ) -> Result<Value, AddError> {
        let products = self.add(work, MatMul, &[k, self.directions])?;
        let seen = mask.map(|mask| self.add(work, Exp, &[mask])).transpose()?;
        let epsilon = self.number(work, self.s.kernel.epsilon())?;
        if self.s.kernel == FeatureKernel::Relu {
            let positive = self.add(work, Relu, &[products])?;
            let features = self.add(work, Add, &[positive, epsilon])?;
            return seen.map_or(Ok(features), |seen| self.add(work, Mul, &[features, seen]));
        }
        let squares = self.add(work, Mul, &[k, k])?;
        let over = Reduce { kind: ReduceKind::Sum, axes: vec![3], keepdims: true };
        let norms = self.add(work, over, &[squares])?;
        let half = self.number(work, 0.5 * self.scale)?;
        let norms = self.add(work, Mul, &[norms, half])?;
        let mut exponents = self.add(work, Sub, &[products, norms])?;
        if let Some(mask) = mask {
            exponents = self.add(work, Add, &[exponents, mask])?;
        }
        if !self.causal {
            exponents = self.without_greatest(work, exponents, &[2, 3])?;
        }
        let positive = self.add(work, Exp, &[exponents])?;
        let least = seen.map_or(Ok(epsilon), |seen| self.add(work, Mul, &[seen, epsilon]))?;
        self.add(work, Add, &[positive, least])
    }

    /// A mask of keys along the last axis, or of `[…, 1, T]`, as `[…, T, 1]`.
    pub(super) fn column(&self, work: &mut Replacement<'_>, mask: Value) -> Result<Value, AddError> {
        let mut shape = work.ty(mask).shape.clone();
        let axes = shape.len();
        if axes < 2 {
            shape.push(Dim::from(1usize));
            return self.add(work, Reshape { shape }, &[mask]);
        }
        let mut perm: Vec<usize> = (0..axes).collect();
        perm.swap(axes - 2, axes - 1);
        self.add(work, Transpose { perm }, &[mask])
    }
}
