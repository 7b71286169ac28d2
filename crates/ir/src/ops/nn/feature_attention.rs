//! Linear attention that makes its features of queries and keys (FAVOR+; Choromanski et al., arXiv 2009.14794): no array of features
//! of all positions is ever there.
//!
//! Operands are Q `[B, H, S, D]`, K `[B, H, T, D]`, V `[B, H, T, E]`, the directions W of queries and those of keys, `[D, M]` or
//! `[H, D, M]`; if `masked`, a mask m of keys that broadcasts to `[B, H, T, 1]`; if `weighted`, weights b of the features,
//! `[M]`, `[1, M]` or `[H, 1, M]`, where H may be 1. The result is `[B, H, S, E]`, that of
//! [`LinearAttention`] of these features, with `x = q W + b` or `k W + b`:
//!
//! ```text
//! relu  φq = max(x, 0) + least                              φk = (max(x, 0) + least) exp(m)
//! exp   φq = exp(x - max x - query_norm ‖q‖²) + least       φk = exp(x - key_norm ‖k‖² + m - c) + least exp(m)
//! ```
//!
//! The greatest x of a query is that over its features. c is 0 for `exp`, the greatest exponent of all keys of the head for
//! `exp-by-exponents` and their greatest x for `exp-by-products`; where that is -∞ it is 0, so that keys that are all hidden count as
//! nothing. Causal attention has no c: a result must not depend on keys that come later.
//!
//! Which back ends have it is a preference of theirs; in graphs for others, and in exported ones, its features are nodes
//! ([`decomposed`](FeatureAttention::decomposed)).

use margay_loops::{FeatureMap, KernelCall};
use margay_tensor::{Binding, Dim, Tensor};

use super::attention::{mask_strides, row_strides};
use crate::ops::attributes::{Attribute, attributes};
use crate::ops::elementwise::{Numbers, broadcast_positions};
use crate::ops::lowering::strides_of;
use crate::ops::{
    Add, Bits, Case, CaseInput, Cost, EvalError, Exp, Facts, Io, LinearAttention, Lowered, MatMul,
    NotLowered, OpDef, Reduce, ReduceKind, Relu, Strided,
};
use crate::padding::{Padded, Padding};
use crate::types::ShapeText;
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Builder, Op, TensorType, TypeError, Types, Value, types};

impl Attribute for FeatureMap {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        FeatureMap::from_name(text)
    }
    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}

/// Attention by products of features that are made of five operands or more.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FeatureAttention {
    /// What features are.
    pub map: FeatureMap,
    /// Multiplies the squared norms of queries; 0 for `relu`.
    pub query_norm: Bits,
    /// Multiplies the squared norms of keys; 0 for `relu`.
    pub key_norm: Bits,
    /// Added to every feature.
    pub least: Bits,
    /// Added to the denominators.
    pub epsilon: Bits,
    /// Whether queries see keys up to their own position only.
    pub causal: bool,
    /// Whether there is a mask.
    pub masked: bool,
    /// Whether there are weights of features.
    pub weighted: bool,
}

attributes!(FeatureAttention {
    map,
    query_norm = Bits::new(0.0),
    key_norm = Bits::new(0.0),
    least,
    epsilon = Bits::new(0.0),
    causal = false,
    masked = false,
    weighted = false,
});

/// Operands by what they are.
struct Operands<T> {
    q: T,
    k: T,
    v: T,
    /// Of queries and of keys.
    directions: [T; 2],
    mask: Option<T>,
    weights: Option<T>,
}

impl FeatureAttention {
    /// Operands in their order; `None` for another number of them.
    fn operands<T: Copy>(&self, all: &[T]) -> Option<Operands<T>> {
        let [q, k, v, of_queries, of_keys, ref more @ ..] = *all else { return None };
        let mut more = more.iter().copied();
        let mut next = |there: bool| if there { more.next().map(Some) } else { Some(None) };
        let (mask, weights) = (next(self.masked)?, next(self.weighted)?);
        more.next().is_none().then_some(Operands {
            q,
            k,
            v,
            directions: [of_queries, of_keys],
            mask,
            weights,
        })
    }

    /// The same by nodes that make the features, and a [`LinearAttention`] of them.
    ///
    /// # Errors
    /// Operands that [`infer`](OpDef::infer) refuses.
    pub fn decomposed(&self, b: &mut Builder<'_>, operands: &[Value]) -> Result<Value, AddError> {
        let Some(all) = self.operands(operands) else {
            let error = TypeError::Arity { expected: self.arity(), found: operands.len() };
            return Err(AddError { op: FeatureAttention::NAME, error });
        };
        let products = |b: &mut Builder<'_>, x: Value, directions: Value| {
            let products = b.op(MatMul, &[x, directions])?;
            all.weights.map_or(Ok(products), |weights| b.op(Add, &[products, weights]))
        };
        let greatest = |b: &mut Builder<'_>, x: Value, axis: usize| {
            b.op(Reduce { kind: ReduceKind::Max, axes: vec![axis], keepdims: true }, &[x])
        };
        let norms = |b: &mut Builder<'_>, x: Value, by: Bits| {
            let squares = b.mul(x, x)?;
            let norms = b.sum_kept(squares, vec![3])?;
            b.scale(norms, by.get())
        };
        let x = products(b, all.q, all.directions[0])?;
        let of_queries = if self.map == FeatureMap::Relu {
            b.op(Relu, &[x])?
        } else {
            let mut exponents = x;
            if self.query_norm.get() != 0.0 {
                let norms = norms(b, all.q, self.query_norm)?;
                exponents = b.sub(exponents, norms)?;
            }
            let most = greatest(b, x, 3)?;
            exponents = b.sub(exponents, most)?;
            b.op(Exp, &[exponents])?
        };
        let of_queries = b.offset(of_queries, self.least.get())?;
        let x = products(b, all.k, all.directions[1])?;
        let seen = all.mask.map(|mask| b.op(Exp, &[mask])).transpose()?;
        let of_keys = if self.map == FeatureMap::Relu {
            let positive = b.op(Relu, &[x])?;
            let features = b.offset(positive, self.least.get())?;
            seen.map_or(Ok(features), |seen| b.mul(features, seen))?
        } else {
            let norms = if self.key_norm.get() == 0.0 { None } else { Some(norms(b, all.k, self.key_norm)?) };
            let exponents_of = |b: &mut Builder<'_>, x: Value| {
                let exponents = norms.map_or(Ok(x), |norms| b.sub(x, norms))?;
                all.mask.map_or(Ok(exponents), |mask| b.add(exponents, mask))
            };
            let mut exponents = exponents_of(b, x)?;
            if self.map.sees_all_keys() {
                let mut most = greatest(b, x, 3)?;
                if self.map == FeatureMap::ExpByExponents {
                    most = exponents_of(b, most)?;
                }
                let most = greatest(b, most, 2)?;
                exponents = b.sub(exponents, most)?;
            }
            let positive = b.op(Exp, &[exponents])?;
            match seen {
                None => b.offset(positive, self.least.get())?,
                Some(seen) => {
                    let least = b.scale(seen, self.least.get())?;
                    b.add(positive, least)?
                }
            }
        };
        b.op(LinearAttention { causal: self.causal, epsilon: self.epsilon }, &[of_queries, of_keys, all.v])
    }

    fn arity(&self) -> &'static str {
        ["5", "6", "7"][usize::from(self.masked) + usize::from(self.weighted)]
    }

    fn check_directions(
        &self,
        input: usize,
        w: &TensorType,
        [heads, dim, features]: [&Dim; 3],
    ) -> Result<(), TypeError> {
        let (what, axes) = (["queries", "keys"][input - 3], w.ndim());
        if !(2..=3).contains(&axes) {
            return Err(TypeError::Ndim { input, expected: "2 or 3".into(), found: axes });
        }
        types::same_extent(
            &format!("length of {what} and rows of their directions"),
            dim,
            &w.shape[axes - 2],
        )?;
        types::same_extent("features of queries and keys", features, &w.shape[axes - 1])?;
        match axes {
            3 => types::same_extent(&format!("heads of inputs 0 and {input}"), heads, &w.shape[0]),
            _ => Ok(()),
        }
    }

    /// Features `[rows, M]` of one head. `most` is what is subtracted from exponents besides the norm; `None` for the greatest
    /// product of each row.
    fn features(&self, head: &Head<'_>, norm: f64, most: Option<f64>) -> Vec<f64> {
        let mut out = Vec::with_capacity(head.rows() * head.features);
        for row in 0..head.rows() {
            let (x, mask) = (head.products(row), head.mask[row]);
            let top = most.unwrap_or_else(|| largest(x.iter().copied()));
            let (norm, seen) = (norm * head.squared_norm(row), libm::exp(mask));
            out.extend(x.iter().map(|x| match self.map {
                FeatureMap::Relu => (if *x < 0.0 { 0.0 } else { *x } + self.least.get()) * seen,
                _ => libm::exp(x - norm + mask - top) + self.least.get() * seen,
            }));
        }
        out
    }
}

/// The largest number; NaN if one is, -∞ if there is none.
fn largest(mut numbers: impl Iterator<Item = f64>) -> f64 {
    numbers
        .try_fold(f64::NEG_INFINITY, |m, x| if x.is_nan() { Err(x) } else { Ok(m.max(x)) })
        .unwrap_or_else(|x| x)
}

/// Queries or keys of one head.
struct Head<'a> {
    /// `[rows, dim]`.
    x: &'a [f64],
    dim: usize,
    features: usize,
    /// `[dim, features]`.
    directions: &'a [f64],
    /// `[features]`.
    weights: &'a [f64],
    /// By row.
    mask: &'a [f64],
}

impl Head<'_> {
    fn rows(&self) -> usize {
        self.mask.len()
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.x[row * self.dim..][..self.dim]
    }

    fn products(&self, row: usize) -> Vec<f64> {
        let product = |i: usize| {
            let column = self.directions.iter().skip(i).step_by(self.features);
            self.weights[i] + self.row(row).iter().zip(column).map(|(x, w)| x * w).sum::<f64>()
        };
        (0..self.features).map(product).collect()
    }

    fn squared_norm(&self, row: usize) -> f64 {
        self.row(row).iter().map(|x| x * x).sum()
    }
}

impl OpDef for FeatureAttention {
    const NAME: &'static str = "feature_attention";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let Some(all) = self.operands(inputs) else {
            return Err(TypeError::Arity { expected: self.arity(), found: inputs.len() });
        };
        types::expect_float(0, all.q)?;
        for (input, t) in inputs.iter().enumerate() {
            types::expect_dtype(input, t, all.q.dtype)?;
            if input < 3 && t.ndim() != 4 {
                return Err(TypeError::Ndim { input, expected: "4".into(), found: t.ndim() });
            }
        }
        let Operands { q, k, v, .. } = all;
        for (input, t) in [(1, k), (2, v)] {
            types::same_extent(&format!("batch of inputs 0 and {input}"), &q.shape[0], &t.shape[0])?;
            types::same_extent(&format!("heads of inputs 0 and {input}"), &q.shape[1], &t.shape[1])?;
        }
        types::same_extent("length of queries and keys", &q.shape[3], &k.shape[3])?;
        types::same_extent("number of keys and values", &k.shape[2], &v.shape[2])?;
        let Some(features) = all.directions[0].shape.last() else {
            return Err(TypeError::Ndim { input: 3, expected: "2 or 3".into(), found: 0 });
        };
        for (input, w) in (3..).zip(all.directions) {
            self.check_directions(input, w, [&q.shape[1], &q.shape[3], features])?;
        }
        let broadcasts = |what: &str, t: &TensorType, to: &[Dim]| {
            if types::broadcast_shapes(&t.shape, to).ok().as_deref() == Some(to) {
                return Ok(());
            }
            let (from, to) = (ShapeText(&t.shape), ShapeText(to));
            Err(TypeError::attribute(format!("{what} `{from}` do not broadcast to `{to}`")))
        };
        let one = Dim::from(1usize);
        if let Some(mask) = all.mask {
            broadcasts(
                "masks",
                mask,
                &[k.shape[0].clone(), k.shape[1].clone(), k.shape[2].clone(), one.clone()],
            )?;
        }
        if let Some(weights) = all.weights {
            broadcasts("weights", weights, &[q.shape[1].clone(), one, features.clone()])?;
            if weights.shape.last() != Some(features) {
                return Err(TypeError::attribute(format!("expected `{features}` weights")));
            }
        }
        if self.causal {
            types::same_extent("number of queries and keys", &q.shape[2], &k.shape[2])?;
            if self.map.sees_all_keys() {
                return Err(TypeError::attribute(format!(
                    "causal features of keys cannot be `{}`",
                    self.map.name()
                )));
            }
        }
        if self.map == FeatureMap::Relu && [self.query_norm, self.key_norm].iter().any(|x| x.get() != 0.0) {
            return Err(TypeError::attribute("features `relu` have no norms"));
        }
        let mut shape = q.shape.clone();
        shape[3] = v.shape[3].clone();
        types::one(q.dtype, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let arity = || TypeError::Arity { expected: self.arity(), found: inputs.len() };
        let at: Vec<usize> = (0..inputs.len()).collect();
        let all = self.operands(&at).ok_or_else(arity)?;
        let read = |input: usize| Numbers::of(inputs[input]).map(Numbers::floats);
        let [batch, heads, queries, dim] = *inputs[all.q].shape() else { return Err(arity().into()) };
        let [_, _, keys, v_dim] = *inputs[all.v].shape() else { return Err(arity().into()) };
        let features = inputs[all.directions[0]].shape().last().copied().unwrap_or_default();
        let (q, k, v) = (read(all.q)?, read(all.k)?, read(all.v)?);
        let directions = [read(all.directions[0])?, read(all.directions[1])?];
        let spread = |input: Option<usize>, shape: &[usize]| -> Result<Vec<f64>, EvalError> {
            let Some(input) = input else { return Ok(vec![0.0; shape.iter().product()]) };
            let values = read(input)?;
            Ok(broadcast_positions(shape, inputs[input].shape()).into_iter().map(|p| values[p]).collect())
        };
        let mask = spread(all.mask, &[batch, heads, keys, 1])?;
        let weights = spread(all.weights, &[heads, 1, features])?;
        let none = vec![0.0; queries];
        let (mut of_queries, mut of_keys) = (Vec::new(), Vec::new());
        for block in 0..batch * heads {
            let head = block % heads;
            let of_head = |which: usize| -> &[f64] {
                let w = &directions[which];
                if w.len() > dim * features { &w[head * dim * features..][..dim * features] } else { w }
            };
            let weights = &weights[head * features..][..features];
            let x = &q[block * queries * dim..][..queries * dim];
            let of_query = Head { x, dim, features, directions: of_head(0), weights, mask: &none };
            of_queries.extend(self.features(&of_query, self.query_norm.get(), None));
            let (x, mask) = (&k[block * keys * dim..][..keys * dim], &mask[block * keys..][..keys]);
            let of_key = Head { x, dim, features, directions: of_head(1), weights, mask };
            let norm = self.key_norm.get();
            let exponent = |row: usize| -norm * of_key.squared_norm(row) + mask[row];
            let products = (0..keys).flat_map(|row| of_key.products(row).into_iter().map(move |x| (row, x)));
            let most = match self.map {
                FeatureMap::Relu | FeatureMap::Exp => 0.0,
                FeatureMap::ExpByExponents => largest(products.map(|(row, x)| x + exponent(row))),
                FeatureMap::ExpByProducts => largest(products.map(|(_, x)| x)),
            };
            let most = if most == f64::NEG_INFINITY { 0.0 } else { most };
            of_keys.extend(self.features(&of_key, norm, Some(most)));
        }
        let tensor = |numbers, rows| {
            Numbers::Float(numbers).into_tensor(margay_tensor::DType::F64, &[batch, heads, rows, features])
        };
        let v = Numbers::Float(v).into_tensor(margay_tensor::DType::F64, &[batch, heads, keys, v_dim])?;
        let attention = LinearAttention { causal: self.causal, epsilon: self.epsilon };
        let out = attention.eval(&[&tensor(of_queries, queries)?, &tensor(of_keys, keys)?, &v])?;
        let out = out.iter().map(|t| Numbers::of(t)?.into_tensor(inputs[0].dtype(), t.shape()));
        out.collect()
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::none(
            "there is no rule for features that are made on the way; they are nodes when derivatives are taken",
        )
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let inputs: Vec<&Strided> = io.inputs.iter().collect();
        let all = self.operands(&inputs).ok_or_else(|| NotLowered("operands are missing".into()))?;
        let (q, k, v, o) = (all.q, all.k, all.v, &io.outputs[0]);
        let o_strides = strides_of(&o.shape);
        let keys = [q.shape[0], q.shape[1], k.shape[2], 1];
        let bits = |x: Bits| (x.get() as f32).to_bits();
        let mask = all.mask.map(|mask| mask_strides(mask, keys)).transpose()?;
        let directions = |w: &Strided| -> Result<[usize; 3], NotLowered> {
            let [head, row, column] =
                mask_strides(w, [0, q.shape[1], q.shape[3], 0]).map(|s| [s[1], s[2], s[3]])?;
            Ok([head, row, column])
        };
        let weights = match all.weights {
            None => None,
            Some(b) if b.shape.last() != Some(&1) && b.strides.last() != Some(&1) => {
                return Err(NotLowered("weights of features that are not contiguous".into()));
            }
            Some(b) => Some(mask_strides(b, [0; 4])?[1]),
        };
        Ok(Lowered::Call(KernelCall::FeatureAttention(margay_loops::FeatureAttention {
            dtype: q.dtype,
            batch: q.shape[0],
            heads: q.shape[1],
            q_len: q.shape[2],
            kv_len: k.shape[2],
            dim: q.shape[3],
            features: all.directions[0].shape.last().copied().unwrap_or_default(),
            v_dim: v.shape[3],
            map: self.map,
            query_norm_bits: bits(self.query_norm),
            key_norm_bits: bits(self.key_norm),
            least_bits: bits(self.least),
            epsilon_bits: bits(self.epsilon),
            causal: self.causal,
            q: row_strides(q)?,
            k: row_strides(k)?,
            v: row_strides(v)?,
            o: [0, 1, 2].map(|axis| o_strides[axis] as usize),
            query_directions: directions(all.directions[0])?,
            key_directions: directions(all.directions[1])?,
            mask: mask.map(|[batch, head, key, _]| [batch, head, key]),
            weights,
        })))
    }

    fn cost(&self, io: &Io) -> Cost {
        let (q, v, w) = (&io.inputs[0].shape, &io.inputs[2].shape, &io.inputs[3].shape);
        let features = w.last().copied().unwrap_or_default();
        let of_feature = 2 * (q[3] + v[3] + 1) + FEATURE_FLOPS;
        Cost { flops: (q[0] * q[1] * (q[2] + v[2]) * features * of_feature) as u64, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::plain(false)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.none(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let op = |map, norms: [f64; 2], causal, epsilon| FeatureAttention {
            map,
            query_norm: Bits::new(norms[0]),
            key_norm: Bits::new(norms[1]),
            least: Bits::new(0.01),
            epsilon: Bits::new(epsilon),
            causal,
            masked: false,
            weighted: false,
        };
        let more = |masked, weighted, op| FeatureAttention { masked, weighted, ..op };
        let shared = |q: &[usize], k: &[usize], v: &[usize]| {
            Case::random(DTYPE, -1.0, 1.0, &[q, k, v, &[4, 11], &[4, 11]])
        };
        let each = || {
            let shapes: [&[usize]; 5] = [&[2, 3, 5, 4], &[2, 3, 9, 4], &[2, 3, 9, 7], &[3, 4, 6], &[3, 4, 6]];
            Case::random(DTYPE, -1.0, 1.0, &shapes)
        };
        let uneven = || shared(&[2, 3, 4, 4], &[2, 3, 9, 4], &[2, 3, 9, 5]);
        let square = || shared(&[1, 2, 70, 4], &[1, 2, 70, 4], &[1, 2, 70, 33]);
        let random =
            |shape: &[usize]| CaseInput::Random { dtype: DTYPE, shape: shape.to_vec(), low: -2.0, high: 0.0 };
        use FeatureMap::{Exp, ExpByExponents, ExpByProducts, Relu};
        vec![
            (op(Relu, [0.0; 2], false, 0.0), uneven()),
            (op(Relu, [0.0; 2], true, 0.5), square()),
            (op(ExpByExponents, [0.0, 0.25], false, 0.0), uneven()),
            (op(ExpByProducts, [0.5, 0.5], false, 1e-3), uneven()),
            (op(Exp, [0.0, 0.25], false, 0.0), uneven()),
            (op(Exp, [0.0, 0.5], true, 0.0), square()),
            (
                more(true, false, op(ExpByExponents, [0.0, 0.25], false, 0.0)),
                each().with(random(&[2, 1, 9, 1])),
            ),
            (more(true, false, op(Relu, [0.0; 2], false, 0.0)), each().with(random(&[9, 1]))),
            (
                more(true, true, op(ExpByExponents, [0.0, 0.5], false, 0.0)),
                each().with(random(&[2, 3, 9, 1])).with(random(&[3, 1, 6])),
            ),
            (more(false, true, op(Exp, [0.0, 0.5], false, 0.0)), each().with(random(&[6]))),
        ]
    }
}

/// The type of the cases.
const DTYPE: margay_tensor::DType = margay_tensor::DType::F32;

/// Operations per feature besides the products: an exponential, and what is added.
const FEATURE_FLOPS: usize = 13;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, Origin, eval};

    /// Operands of a case, the same on every call.
    fn operands(case: &Case) -> Vec<Tensor> {
        let operand = |(i, input): (usize, &CaseInput)| match input {
            CaseInput::Random { shape, low, high, .. } => {
                let at = |j: usize| ((i * 31 + j) * 37 % 101) as f64 / 101.0;
                let numbers = (0..shape.iter().product()).map(|j| low + (high - low) * at(j)).collect();
                Numbers::Float(numbers).into_tensor(DTYPE, shape).unwrap()
            }
            CaseInput::Values(t) => t.clone(),
        };
        case.inputs.iter().enumerate().map(operand).collect()
    }

    #[test]
    fn nodes_compute_the_same() {
        for (op, case) in FeatureAttention::cases() {
            let inputs = operands(&case);
            let mut g = Graph::new("features");
            let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
            let values: Vec<Value> =
                names.iter().zip(&inputs).map(|(name, t)| g.add_input(name, TensorType::of(t))).collect();
            let y = op.decomposed(&mut Builder::new(&mut g, Origin::default()), &values).unwrap();
            g.add_output("y", y);
            let given: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(&inputs).collect();
            let expected = eval::run(&g, &given).unwrap()[0].to_vec::<f32>().unwrap();
            let found = op.eval(&inputs.iter().collect::<Vec<_>>()).unwrap()[0].to_vec::<f32>().unwrap();
            assert_eq!(found.len(), expected.len());
            let near = |(f, e): (&f32, &f32)| (f - e).abs() <= 1e-5 * e.abs().max(1.0);
            assert!(found.iter().zip(&expected).all(near), "{op:?}: {found:?} for {expected:?}");
        }
    }

    #[test]
    fn keys_that_are_all_hidden_count_as_nothing() {
        let shapes: [&[usize]; 6] = [&[1, 1, 1, 1], &[1, 1, 2, 1], &[1, 1, 2, 1], &[1, 2], &[1, 2], &[2, 1]];
        let mut inputs: Vec<Tensor> = shapes
            .iter()
            .map(|shape| Numbers::Float(vec![0.5; shape.iter().product()]).into_tensor(DTYPE, shape).unwrap())
            .collect();
        let op = FeatureAttention {
            map: FeatureMap::ExpByExponents,
            query_norm: Bits::new(0.0),
            key_norm: Bits::new(0.5),
            least: Bits::new(0.1),
            epsilon: Bits::new(0.5),
            causal: false,
            masked: true,
            weighted: false,
        };
        let run = |inputs: &[Tensor]| {
            op.eval(&inputs.iter().collect::<Vec<_>>()).unwrap()[0].to_vec::<f32>().unwrap()
        };
        inputs[5] = Tensor::from_slice(&[2, 1], &[f32::NEG_INFINITY; 2]).unwrap();
        assert_eq!(run(&inputs), [0.0]);
        // One key of weight (exp(0) + 0.1)² for each of two features.
        inputs[5] = Tensor::from_slice(&[2, 1], &[0.0, f32::NEG_INFINITY]).unwrap();
        let weight = 2.0 * 1.1f32 * 1.1;
        assert!((run(&inputs)[0] - 0.5 * weight / (weight + 0.5)).abs() < 1e-6, "{:?}", run(&inputs));
    }
}
