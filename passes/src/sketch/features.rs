//! Random features of attention: what a plan says of them, and the nodes that compute them.

use margay_ir::ops::{Add, Exp, MatMul, Mul, Reduce, ReduceKind, Relu, Reshape, Sub, Transpose};
use margay_ir::{AddError, Value};
use margay_randnla::Directions;
use margay_tensor::Dim;
use serde::{Deserialize, Serialize};

use super::heads::{HeadChoice, HeadSettings, Nodes};
use super::relative::RelativePositions;

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
    /// Positions that become a part of queries and keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative: Option<RelativePositions>,
    /// The heads that get them.
    #[serde(flatten)]
    pub choice: HeadChoice,
}

impl FavorSettings {
    /// Orthogonal features of the softmax kernel in all heads.
    pub fn new(features: usize) -> FavorSettings {
        FavorSettings {
            features,
            kernel: FeatureKernel::Softmax,
            directions: FeatureDirections::Orthogonal,
            hyperbolic: false,
            relative: None,
            choice: HeadChoice::default(),
        }
    }
}

/// More features than this cost more than exact attention of any sequence that fits into memory.
const MOST_FEATURES: usize = 1 << 20;

impl HeadSettings for FavorSettings {
    fn check(&self) -> Result<(), String> {
        if !(1..=MOST_FEATURES).contains(&self.features) {
            return Err(format!("{} features, expected 1 to {MOST_FEATURES}", self.features));
        }
        if self.hyperbolic && (self.features % 2 == 1 || self.kernel == FeatureKernel::Relu) {
            return Err(format!(
                "hyperbolic features are pairs of the softmax kernel, found {} of kernel `{}`",
                self.features,
                self.kernel.name()
            ));
        }
        if self.directions == FeatureDirections::Fitted {
            if self.kernel == FeatureKernel::Relu || self.hyperbolic {
                return Err("fitted directions are of single features of the softmax kernel".to_owned());
            }
            if self.relative.is_some() {
                return Err("directions are fitted to queries and keys without relative positions".to_owned());
            }
        }
        self.relative.as_ref().map_or(Ok(()), RelativePositions::check)
    }

    fn choice(&self) -> &HeadChoice {
        &self.choice
    }

    fn with_choice(&self, choice: HeadChoice) -> FavorSettings {
        FavorSettings { choice, ..self.clone() }
    }

    fn size(&self) -> String {
        format!("{} features", self.features)
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
    /// Those of [`Orthogonal`](FeatureDirections::Orthogonal), changed for each head as the moments of its queries and keys on
    /// samples say.
    Fitted,
}

impl FeatureDirections {
    pub(super) fn law(self) -> (Directions, &'static str) {
        match self {
            FeatureDirections::Orthogonal => (Directions::Orthogonal, "orthogonal"),
            FeatureDirections::Regularized => (Directions::Regularized, "regularized"),
            FeatureDirections::Independent => (Directions::Independent, "independent"),
            FeatureDirections::Fitted => (Directions::Orthogonal, "fitted"),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The maximum along an axis.
fn greatest(axis: usize) -> Reduce {
    Reduce { kind: ReduceKind::Max, axes: vec![axis], keepdims: true }
}

/// The features of one attention.
pub(super) struct Features<'a> {
    pub(super) s: &'a FavorSettings,
    /// Multiplies the products of queries and keys.
    pub(super) scale: f64,
    pub(super) causal: bool,
    /// The directions, scaled as the kernel wants them: `[d, features]`, or for each head its own, those of queries before those of
    /// keys.
    pub(super) directions: [Value; 2],
    /// Added to the exponents, `[heads, 1, features]`, where directions are not of the standard normal law.
    pub(super) weights: Option<Value>,
}

impl Features<'_> {
    fn products(&self, nodes: &mut Nodes<'_, '_>, x: Value, directions: Value) -> Result<Value, AddError> {
        let products = nodes.add(MatMul, &[x, directions])?;
        self.weights.map_or(Ok(products), |weights| nodes.add(Add, &[products, weights]))
    }

    /// `[B, H, S, D]` as `[B, H, S, M]`.
    pub(super) fn of_queries(&self, nodes: &mut Nodes<'_, '_>, q: Value) -> Result<Value, AddError> {
        let products = self.products(nodes, q, self.directions[0])?;
        let positive = match self.s.kernel {
            FeatureKernel::Softmax => {
                let most = nodes.add(greatest(3), &[products])?;
                let exponents = nodes.add(Sub, &[products, most])?;
                nodes.add(Exp, &[exponents])?
            }
            FeatureKernel::Relu => nodes.add(Relu, &[products])?,
        };
        let epsilon = nodes.number(self.s.kernel.epsilon())?;
        nodes.add(Add, &[positive, epsilon])
    }

    /// `[B, H, T, D]` as `[B, H, T, M]`, with a mask that has a column for every direction.
    pub(super) fn of_keys(
        &self,
        nodes: &mut Nodes<'_, '_>,
        k: Value,
        mask: Option<Value>,
    ) -> Result<Value, AddError> {
        let products = self.products(nodes, k, self.directions[1])?;
        let seen = mask.map(|mask| nodes.add(Exp, &[mask])).transpose()?;
        let epsilon = nodes.number(self.s.kernel.epsilon())?;
        if self.s.kernel == FeatureKernel::Relu {
            let positive = nodes.add(Relu, &[products])?;
            let features = nodes.add(Add, &[positive, epsilon])?;
            return seen.map_or(Ok(features), |seen| nodes.add(Mul, &[features, seen]));
        }
        let squares = nodes.add(Mul, &[k, k])?;
        let over = Reduce { kind: ReduceKind::Sum, axes: vec![3], keepdims: true };
        let norms = nodes.add(over, &[squares])?;
        let half = nodes.number(0.5 * self.scale)?;
        let norms = nodes.add(Mul, &[norms, half])?;
        let exponents_of = |nodes: &mut Nodes<'_, '_>, products: Value| {
            let exponents = nodes.add(Sub, &[products, norms])?;
            mask.map_or(Ok(exponents), |mask| nodes.add(Add, &[exponents, mask]))
        };
        let mut exponents = exponents_of(nodes, products)?;
        if !self.causal {
            // The greatest exponents of keys, to the bit: one array of features is read once less than by their maximum.
            let most = nodes.add(greatest(3), &[products])?;
            let most = exponents_of(nodes, most)?;
            let most = nodes.add(greatest(2), &[most])?;
            exponents = nodes.add(Sub, &[exponents, most])?;
        }
        let positive = nodes.add(Exp, &[exponents])?;
        let least = seen.map_or(Ok(epsilon), |seen| nodes.add(Mul, &[seen, epsilon]))?;
        nodes.add(Add, &[positive, least])
    }

    /// A mask of keys along the last axis, or of `[…, 1, T]`, as `[…, T, 1]`.
    pub(super) fn column(&self, nodes: &mut Nodes<'_, '_>, mask: Value) -> Result<Value, AddError> {
        let mut shape = nodes.ty(mask).shape.clone();
        let axes = shape.len();
        if axes < 2 {
            shape.push(Dim::from(1usize));
            return nodes.add(Reshape { shape }, &[mask]);
        }
        let mut perm: Vec<usize> = (0..axes).collect();
        perm.swap(axes - 2, axes - 1);
        nodes.add(Transpose { perm }, &[mask])
    }
}
