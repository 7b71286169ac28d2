//! Optimizers as graphs: from a parameter, its gradient and its moments to their next values.
//!
//! With the gradient `g` at step `t` (from 1 on), learning rate `η` and a parameter `p`:
//!
//! | | moments | next parameter |
//! |---|---|---|
//! | SGD | `b ← μ b + g` | `p - η b` |
//! | Adam | `m ← β₁ m + (1 - β₁) g`, `v ← β₂ v + (1 - β₂) g²` | `p - η m̂ / (√v̂ + ε)` |
//! | AdamW | as Adam | `p - η m̂ / (√v̂ + ε) - η λ p` |
//!
//! where `m̂ = m / (1 - β₁ᵗ)` and `v̂ = v / (1 - β₂ᵗ)`. Adam: Kingma and Ba, 2014 (arXiv 1412.6980). AdamW: Loshchilov
//! and Hutter, *Decoupled Weight Decay Regularization*, 2017 (arXiv 1711.05101). The decay `λ` is for parameters of at
//! least two axes: biases and the scales of normalizations, which have one, do not decay.

use std::fmt;

use margay_ir::ops::{Exp, MatMul, Tanh};
use margay_ir::{AddError, Builder, Graph, Origin, Value};
use margay_tensor::{DType, Tensor};

use crate::{State, TrainError};

/// A rule by which parameters follow gradients.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd {
        /// The share `μ` of the last change that is kept; 0 for none, and then no state.
        momentum: f64,
    },
    /// Adam.
    Adam {
        /// `β₁` and `β₂`, at least 0 and below 1.
        betas: [f64; 2],
        /// `ε`, above 0.
        epsilon: f64,
    },
    /// Adam with decoupled weight decay.
    AdamW {
        /// `β₁` and `β₂`, at least 0 and below 1.
        betas: [f64; 2],
        /// `ε`, above 0.
        epsilon: f64,
        /// `λ`, at least 0.
        weight_decay: f64,
    },
}

/// A running mean that an optimizer keeps for each parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// What its state is called, before the parameter's name.
    prefix: &'static str,
    /// Whether it is of squares of gradients.
    pub(crate) is_of_squares: bool,
}

impl Moment {
    const MOMENTUM: Moment = Moment { prefix: "momentum", is_of_squares: false };
    const FIRST: Moment = Moment { prefix: "m", is_of_squares: false };
    const SECOND: Moment = Moment { prefix: "v", is_of_squares: true };

    /// The name of the state of a parameter.
    pub(crate) fn state(&self, parameter: &str) -> String {
        format!("{}.{parameter}", self.prefix)
    }
}

impl fmt::Display for Optimizer {
    /// Its name with all settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Optimizer::Sgd { momentum } => write!(f, "sgd with momentum {momentum}"),
            Optimizer::Adam { betas: [a, b], epsilon } => {
                write!(f, "adam with betas {a} and {b}, epsilon {epsilon}")
            }
            Optimizer::AdamW { betas: [a, b], epsilon, weight_decay } => {
                write!(f, "adamw with betas {a} and {b}, epsilon {epsilon}, weight decay {weight_decay}")
            }
        }
    }
}

impl Optimizer {
    /// SGD with momentum 0.9.
    pub const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9 };
    /// Adam with the numbers of the paper.
    pub const ADAM: Optimizer = Optimizer::Adam { betas: [0.9, 0.999], epsilon: 1e-8 };
    /// AdamW with a decay of 0.01.
    pub const ADAMW: Optimizer = Optimizer::AdamW { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.01 };

    /// What it keeps for each parameter.
    pub(crate) fn moments(&self) -> &'static [Moment] {
        match *self {
            Optimizer::Sgd { momentum: 0.0 } => &[],
            Optimizer::Sgd { .. } => &[Moment::MOMENTUM],
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => &[Moment::FIRST, Moment::SECOND],
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`TrainError::Options`] with the number that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        let wrong = |what: &str, expected: &str, found: f64| {
            Err(TrainError::Options(format!("{what}: expected {expected}, found {found}")))
        };
        let share = 0.0..1.0;
        match *self {
            Optimizer::Sgd { momentum } if !share.contains(&momentum) => {
                wrong("momentum", "at least 0 and below 1", momentum)
            }
            Optimizer::Sgd { .. } => Ok(()),
            Optimizer::Adam { betas, epsilon } | Optimizer::AdamW { betas, epsilon, .. } => {
                if let Some(beta) = betas.iter().find(|beta| !share.contains(beta)) {
                    return wrong("beta", "at least 0 and below 1", *beta);
                }
                if !(epsilon > 0.0 && epsilon.is_finite()) {
                    return wrong("epsilon", "above 0", epsilon);
                }
                match *self {
                    Optimizer::AdamW { weight_decay, .. } if !(0.0..f64::MAX).contains(&weight_decay) => {
                        wrong("weight decay", "at least 0", weight_decay)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// What the optimizer computes once for all parameters of a step: the number of the step from 1 on gives the sizes
    /// of Adam's corrections.
    pub(crate) fn scalars(
        &self,
        g: &mut Graph,
        step: Value,
        rate: Value,
        scale: Option<Value>,
    ) -> Result<Scalars, TrainError> {
        let betas = match *self {
            Optimizer::Sgd { .. } => {
                return Ok(Scalars { rate, scale, corrected_rate: rate, correction: rate });
            }
            Optimizer::Adam { betas, .. } | Optimizer::AdamW { betas, .. } => betas,
        };
        let mut n = Builder::new(g, Origin::named("correction"));
        let count = n.offset(step, 1.0)?;
        let first = one_minus_power(&mut n, betas[0], count)?;
        let second = one_minus_power(&mut n, betas[1], count)?;
        let (root, one) = (n.sqrt(second)?, n.number(second, 1.0)?);
        Ok(Scalars { rate, scale, corrected_rate: n.div(rate, first)?, correction: n.div(one, root)? })
    }

    /// The next value of a parameter, and its moments with their next values.
    pub(crate) fn update(
        &self,
        g: &mut Graph,
        name: &str,
        p: Value,
        gradient: Value,
        axes: Option<&Tensor>,
        scalars: &Scalars,
    ) -> Result<(Value, Vec<(State, Value)>), TrainError> {
        let dtype = g.ty(p).dtype;
        let axes = axes.map(|axes| Axes::new(g, name, axes, dtype)).transpose()?;
        let gradient = match &axes {
            Some(axes) => axes.gradient(g, name, gradient)?,
            None => gradient,
        };
        let Scalars { rate, scale, corrected_rate, correction } = scalars.cast(g, dtype)?;
        let (change, moments) = match *self {
            Optimizer::Sgd { momentum: 0.0 } => {
                let mut n = Builder::new(g, Origin::named(&format!("{name}/update")));
                let share = match scale {
                    Some(scale) => n.mul(scale, rate)?,
                    None => rate,
                };
                (n.mul(gradient, share)?, Vec::new())
            }
            Optimizer::Sgd { momentum } => {
                let (state, last) = moment(g, Moment::MOMENTUM, name, p)?;
                let mut n = Builder::new(g, Origin::named(&format!("{name}/update")));
                let kept = n.scale(last, momentum)?;
                let new = match scale {
                    Some(scale) => n.mul(gradient, scale)?,
                    None => gradient,
                };
                let next = n.add(kept, new)?;
                (n.mul(next, rate)?, vec![(state, next)])
            }
            Optimizer::Adam { betas, epsilon } | Optimizer::AdamW { betas, epsilon, .. } => {
                let (first, m) = moment(g, Moment::FIRST, name, p)?;
                let (second, v) = moment(g, Moment::SECOND, name, p)?;
                let mut n = Builder::new(g, Origin::named(&format!("{name}/update")));
                let mut shares = Vec::with_capacity(2);
                for (power, beta) in betas.into_iter().enumerate() {
                    let mut share = n.number(p, 1.0 - beta)?;
                    for scale in std::iter::repeat_n(scale, power + 1).flatten() {
                        share = n.mul(share, scale)?;
                    }
                    shares.push(share);
                }
                let (kept, new) = (n.scale(m, betas[0])?, n.mul(gradient, shares[0])?);
                let next_m = n.add(kept, new)?;
                let square = n.mul(gradient, gradient)?;
                let (kept, new) = (n.scale(v, betas[1])?, n.mul(square, shares[1])?);
                let next_v = n.add(kept, new)?;
                let size = n.sqrt(next_v)?;
                let size = n.mul(size, correction)?;
                let size = n.offset(size, epsilon)?;
                let change = n.mul(next_m, corrected_rate)?;
                (n.div(change, size)?, vec![(first, next_m), (second, next_v)])
            }
        };
        let change = match &axes {
            Some(axes) => axes.change(g, name, change)?,
            None => change,
        };
        let mut n = Builder::new(g, Origin::named(&format!("{name}/update")));
        let mut next = n.sub(p, change)?;
        if let Optimizer::AdamW { weight_decay, .. } = *self
            && weight_decay > 0.0
            && n.ty(p).ndim() > 1
        {
            let share = n.scale(rate, weight_decay)?;
            let lost = n.mul(p, share)?;
            next = n.sub(next, lost)?;
        }
        Ok((next, moments))
    }
}

/// Other coordinates for the rows of a parameter: `P = S P̃`. The optimizer moves `P̃`, of which only the moments are kept.
struct Axes {
    /// `S`.
    columns: Value,
    /// `Sᵀ`.
    rows: Value,
}

impl Axes {
    fn new(g: &mut Graph, name: &str, s: &Tensor, dtype: DType) -> Result<Axes, TrainError> {
        let mut n = Builder::new(g, Origin::named(&format!("{name}/axes")));
        let size = s.shape()[0];
        let values = s.to_vec::<f32>()?;
        let transposed: Vec<f32> = (0..size * size).map(|i| values[i % size * size + i / size]).collect();
        let (columns, rows) =
            (n.constant(s.clone())?, n.constant(Tensor::from_slice(&[size, size], &transposed)?)?);
        Ok(Axes { columns: n.cast(columns, dtype)?, rows: n.cast(rows, dtype)? })
    }

    /// The derivative by `P̃`.
    fn gradient(&self, g: &mut Graph, name: &str, by_parameter: Value) -> Result<Value, AddError> {
        Builder::new(g, Origin::named(&format!("{name}/axes"))).op(MatMul, &[self.rows, by_parameter])
    }

    /// The change of `P` that is one of `P̃`.
    fn change(&self, g: &mut Graph, name: &str, of_coordinates: Value) -> Result<Value, AddError> {
        Builder::new(g, Origin::named(&format!("{name}/axes"))).op(MatMul, &[self.columns, of_coordinates])
    }
}

/// Numbers (f32 scalars) that all updates of one step share.
pub(crate) struct Scalars {
    /// The learning rate.
    rate: Value,
    /// Multiplies gradients, where they are clipped.
    scale: Option<Value>,
    /// The learning rate for the first moment as it is: `η / (1 - β₁ᵗ)`.
    corrected_rate: Value,
    /// Multiplies the root of the second moment: `1 / √(1 - β₂ᵗ)`.
    correction: Value,
}

impl Scalars {
    fn cast(&self, g: &mut Graph, dtype: DType) -> Result<Scalars, TrainError> {
        let mut n = Builder::new(g, Origin::named("correction"));
        Ok(Scalars {
            rate: n.cast(self.rate, dtype)?,
            scale: self.scale.map(|scale| n.cast(scale, dtype)).transpose()?,
            corrected_rate: n.cast(self.corrected_rate, dtype)?,
            correction: n.cast(self.correction, dtype)?,
        })
    }
}

/// `1 - βᵗ`. For `x = -t log β` this is `tanh(x / 2) (1 + e⁻ˣ)`, which does not cancel where `βᵗ` is near 1.
fn one_minus_power(n: &mut Builder<'_>, beta: f64, count: Value) -> Result<Value, AddError> {
    if beta == 0.0 {
        return n.number(count, 1.0);
    }
    let half = n.scale(count, -0.5 * beta.ln())?;
    let power = n.scale(count, beta.ln())?;
    let (tanh, exp) = (n.op(Tanh, &[half])?, n.op(Exp, &[power])?);
    let one_plus_exp = n.offset(exp, 1.0)?;
    n.mul(tanh, one_plus_exp)
}

/// A state of zeros like a parameter, as an input.
fn moment(g: &mut Graph, moment: Moment, name: &str, p: Value) -> Result<(State, Value), TrainError> {
    let (name, ty) = (moment.state(name), g.ty(p).clone());
    let shape = ty.extents().ok_or_else(|| TrainError::Mismatch {
        what: format!("parameter `{name}`"),
        expected: "known extents".into(),
        found: ty.to_string(),
    })?;
    let initial = Tensor::zeros(ty.dtype, &shape)?;
    let input = g.add_input(&name, ty);
    Ok((State { name, initial }, input))
}

/// The root of the sum of squares of all gradients, and what they are to be multiplied by so that it is at most `clip`;
/// both f32 scalars. Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, 2012 (arXiv
/// 1211.5063).
pub(crate) fn clip(
    g: &mut Graph,
    gradients: &[Value],
    clip: Option<f64>,
) -> Result<(Value, Option<Value>), TrainError> {
    let mut n = Builder::new(g, Origin::named("gradient_norm"));
    let mut total: Option<Value> = None;
    for &gradient in gradients {
        let square = n.mul(gradient, gradient)?;
        let sum = n.sum_all(square)?;
        let sum = n.cast(sum, DType::F32)?;
        total = Some(match total {
            Some(total) => n.add(total, sum)?,
            None => sum,
        });
    }
    let total = total.ok_or_else(|| TrainError::Options("there is no parameter to train".into()))?;
    let norm = n.sqrt(total)?;
    let Some(limit) = clip else { return Ok((norm, None)) };
    // limit / max(norm, limit): 1 up to the limit, without a small number that would change the result.
    let bounded = n.at_least(norm, limit)?;
    let limit = n.number(norm, limit)?;
    Ok((norm, Some(n.div(limit, bounded)?)))
}
