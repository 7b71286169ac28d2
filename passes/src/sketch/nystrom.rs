//! Attention by landmarks in place of a softmax over all pairs (Nyströmformer; Xiong and others, *Nyströmformer: A
//! Nyström-Based Algorithm for Approximating Self-Attention*, arXiv 2102.03902), linear in the number of positions.
//!
//! Queries and keys are cut into `landmarks` = m segments of one length, of which Q̃ and K̃ are the means, and
//!
//! ```text
//! softmax(s Q Kᵀ) V ≈ softmax(s Q K̃ᵀ) · A⁺ · softmax(s Q̃ Kᵀ) V,    A = softmax(s Q̃ K̃ᵀ)    [m, m]
//! ```
//!
//! with the pseudo-inverse A⁺ by `iterations` steps, 6 unless it is said, of
//!
//! ```text
//! Z₀ = Aᵀ / (‖A‖₁ ‖A‖∞)        Z ← ¼ Z (13 I - A Z (15 I - A Z (7 I - A Z)))
//! ```
//!
//! where ‖A‖∞ is 1, for rows of a softmax sum to 1. The paper takes the greatest ‖A‖₁ of all heads, here it is that of each
//! head. The two products with all positions are attention with m keys, and with m queries. With as many landmarks as
//! positions the result is that of exact attention, up to what the steps leave of the inverse of A.
//!
//! A mask with one number for each key weighs positions in the means: `exp(mask)`, relative to the greatest. Landmarks have the
//! logarithms of the sums of these weights for a mask. Where there are as many queries as keys, queries are weighed as keys
//! are: positions of padding are no part of landmarks. A last segment is shorter, and others are empty and hidden, where m
//! does not divide the length: with ⌈length / m⌉ positions each.
//!
//! ```text
//! graph @before(%q: f32[B, 4, 24, 8], %k: f32[B, 4, 24, 8], %v: f32[B, 4, 24, 8]) -> (y: f32[B, 4, 24, 8]) {
//!   %0 = attention %q, %k, %v {scale = 0.25} : f32[B, 4, 24, 8]  // att
//!   return %0
//! }
//! graph @after(%q: f32[B, 4, 24, 8], %k: f32[B, 4, 24, 8], %v: f32[B, 4, 24, 8]) -> (y: f32[B, 4, 24, 8]) {
//!   %0 = reshape %k {shape = [B, 4, 4, 6, 8]} : f32[B, 4, 4, 6, 8]  // att left
//!   %1 = reduce %0 {kind = mean, axes = [3]} : f32[B, 4, 4, 8]  // att left
//!   %2 = reshape %q {shape = [B, 4, 4, 6, 8]} : f32[B, 4, 4, 6, 8]  // att left
//!   %3 = reduce %2 {kind = mean, axes = [3]} : f32[B, 4, 4, 8]  // att left
//!   %4 = attention %3, %k, %v {scale = 0.25} : f32[B, 4, 4, 8]  // att left
//!   %5 = transpose %1 {perm = [0, 1, 3, 2]} : f32[B, 4, 8, 4]  // att left
//!   %6 = matmul %3, %5 : f32[B, 4, 4, 4]  // att left
//!   %7 = const 0.25 : f32  // att random
//!   %8 = mul %6, %7 : f32[B, 4, 4, 4]  // att left
//!   %9 = softmax %8 {axis = 3} : f32[B, 4, 4, 4]  // att left
//!   %10 = reduce %9 {kind = sum, axes = [2], keepdims = true} : f32[B, 4, 1, 4]  // att left
//!   %11 = reduce %10 {kind = max, axes = [3], keepdims = true} : f32[B, 4, 1, 1]  // att left
//!   %12 = transpose %9 {perm = [0, 1, 3, 2]} : f32[B, 4, 4, 4]  // att left
//!   %13 = div %12, %11 : f32[B, 4, 4, 4]  // att left
//!   %14 = const 7.0 : f32  // att random
//!   %15 = const 15.0 : f32  // att random
//!   %16 = const 3.25 : f32  // att random
//!   %17 = const 0.25 : f32  // att random
//!   %18 = matmul %9, %13 : f32[B, 4, 4, 4]  // att left
//!   %19 = mul %18, %14 : f32[B, 4, 4, 4]  // att left
//!   %20 = matmul %18, %18 : f32[B, 4, 4, 4]  // att left
//!   %21 = sub %19, %20 : f32[B, 4, 4, 4]  // att left
//!   %22 = mul %18, %15 : f32[B, 4, 4, 4]  // att left
//!   %23 = matmul %18, %21 : f32[B, 4, 4, 4]  // att left
//!   %24 = sub %22, %23 : f32[B, 4, 4, 4]  // att left
//!   %25 = mul %13, %16 : f32[B, 4, 4, 4]  // att left
//!   %26 = matmul %13, %24 : f32[B, 4, 4, 4]  // att left
//!   %27 = mul %26, %17 : f32[B, 4, 4, 4]  // att left
//!   %28 = sub %25, %27 : f32[B, 4, 4, 4]  // att left
//!   %29 = matmul %28, %4 : f32[B, 4, 4, 8]  // att left
//!   %30 = attention %q, %1, %29 {scale = 0.25} : f32[B, 4, 24, 8]  // att right
//!   return %30
//! }
//! ```
//!
//! Nothing chooses this scheme by itself. Declines causal attention, for a landmark has seen later positions; a mask with a
//! row for each query; and fewer positions than landmarks, where their number is known. Deliberately absent: the
//! convolution of values that the paper adds, which is trained.

use margay_ir::ops::{Add, Attention, Div, MatMul, Mul, Reduce, ReduceKind, Softmax, Sub, Transpose};
use margay_ir::{AddError, Graph, Value};
use margay_randnla::RandnlaError;
use margay_tensor::Dim;
use serde::{Deserialize, Serialize};

use super::blocks::{Blocks, mask_of_keys, with_axis};
use super::heads::{self, FittedHeads, HeadChoice, HeadForm, HeadSettings, Heads, Nodes, Operands};
use super::{Context, Factored, Fitted, Scheme, SchemeFacts, Site};

/// Attention by landmarks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NystromScheme;

impl Scheme for NystromScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "nystrom",
            only_by_name: Some("its errors are known for what samples show of each head alone"),
            is_storage: false,
            examples: &["landmarks = 4, iterations = 1"],
            check: |settings| heads::read::<NystromSettings>(settings).map(drop),
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        heads::sites(g, self.facts().name)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Ok(Box::new(FittedHeads::new(context, Landmarks)))
    }

    /// None: it has no constants.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

/// What a plan says of landmarks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NystromSettings {
    /// Means of queries and of keys.
    pub landmarks: usize,
    /// Steps towards the pseudo-inverse.
    #[serde(default = "six", skip_serializing_if = "is_six")]
    pub iterations: usize,
    /// Which heads.
    #[serde(flatten)]
    pub choice: HeadChoice,
}

impl NystromSettings {
    /// So many landmarks in all heads, and six steps.
    pub fn new(landmarks: usize) -> NystromSettings {
        NystromSettings { landmarks, iterations: six(), choice: HeadChoice::default() }
    }
}

fn six() -> usize {
    6
}

fn is_six(iterations: &usize) -> bool {
    *iterations == six()
}

/// Of more, the matrix A of a head takes over 64 MB, and its inverse more time than exact attention.
const MOST_LANDMARKS: usize = 1 << 12;

/// More steps than any matrix in f32 takes: each multiplies what is near 0 of it by 13 / 4.
const MOST_ITERATIONS: usize = 64;

impl HeadSettings for NystromSettings {
    fn check(&self) -> Result<(), String> {
        if !(1..=MOST_LANDMARKS).contains(&self.landmarks) {
            return Err(format!("{} landmarks, expected 1 to {MOST_LANDMARKS}", self.landmarks));
        }
        match (1..=MOST_ITERATIONS).contains(&self.iterations) {
            true => Ok(()),
            false => Err(format!("{} iterations, expected 1 to {MOST_ITERATIONS}", self.iterations)),
        }
    }

    fn choice(&self) -> &HeadChoice {
        &self.choice
    }

    fn with_choice(&self, choice: HeadChoice) -> NystromSettings {
        NystromSettings { choice, ..self.clone() }
    }

    fn size(&self) -> String {
        format!("{} landmarks", self.landmarks)
    }
}

struct Landmarks;

impl HeadForm for Landmarks {
    type Settings = NystromSettings;

    fn refusal(&self, heads: &Heads, s: &NystromSettings) -> Option<String> {
        if heads.op.causal {
            let (queries, landmarks) = (&heads.queries, s.landmarks);
            return Some(format!(
                "causal attention of {queries} queries: a mean, as one of {landmarks} landmarks, has seen later positions"
            ));
        }
        let positions = [&heads.queries, &heads.keys].into_iter().filter_map(Dim::as_extent);
        if let Some(fewest) = positions.min().filter(|fewest| *fewest < s.landmarks) {
            return Some(format!(
                "{} landmarks of {fewest} positions, expected at most as many",
                s.landmarks
            ));
        }
        heads.row_refusal()
    }

    fn attend(
        &self,
        nodes: &mut Nodes<'_, '_>,
        heads: &Heads,
        s: &NystromSettings,
        Operands { q, k, v, mask }: Operands,
    ) -> Result<Value, AddError> {
        let [queries, keys] = [q, k].map(|x| nodes.ty(x).shape[2].clone());
        let mask = mask.map(|mask| mask_of_keys(nodes, mask, &keys)).transpose()?;
        let of_keys = Blocks::of_count(&keys, s.landmarks);
        let of_queries = Blocks::of_count(&queries, s.landmarks);
        let weights = of_keys.weights(nodes, mask)?;
        let k_means = of_keys.means(nodes, k, weights.as_ref())?;
        let own = if of_queries == of_keys { weights } else { of_queries.weights(nodes, None)? };
        let q_means = of_queries.means(nodes, q, own.as_ref())?;

        let attention = Attention::new(heads.op.scale.get());
        let mut operands = vec![q_means, k, v];
        if let Some(mask) = mask {
            operands.push(with_axis(nodes, mask, 2)?);
        }
        let values = nodes.add(attention.clone(), &operands)?;
        let hidden = weights.map(|weights| with_axis(nodes, weights.logarithms, 2)).transpose()?;
        let a = self.kernel(nodes, heads.op.scale.get(), [q_means, k_means], hidden)?;
        let inverse = pseudo_inverse(nodes, a, s.iterations)?;
        let values = nodes.add(MatMul, &[inverse, values])?;
        let mut operands = vec![q, k_means, values];
        operands.extend(hidden);
        nodes.last(attention, &operands)
    }
}

impl Landmarks {
    /// `softmax(scale Q̃ K̃ᵀ + hidden)`.
    fn kernel(
        &self,
        nodes: &mut Nodes<'_, '_>,
        scale: f64,
        [q, k]: [Value; 2],
        hidden: Option<Value>,
    ) -> Result<Value, AddError> {
        let transposed = nodes.add(transpose(), &[k])?;
        let products = nodes.add(MatMul, &[q, transposed])?;
        let scale = nodes.number(scale)?;
        let mut scores = nodes.add(Mul, &[products, scale])?;
        if let Some(hidden) = hidden {
            scores = nodes.add(Add, &[scores, hidden])?;
        }
        nodes.add(Softmax { axis: 3 }, &[scores])
    }
}

fn transpose() -> Transpose {
    Transpose { perm: vec![0, 1, 3, 2] }
}

/// Of matrices `[B, H, m, m]` whose rows sum to 1.
fn pseudo_inverse(nodes: &mut Nodes<'_, '_>, a: Value, iterations: usize) -> Result<Value, AddError> {
    let over = |kind, axis| Reduce { kind, axes: vec![axis], keepdims: true };
    let sums = nodes.add(over(ReduceKind::Sum, 2), &[a])?;
    let norm = nodes.add(over(ReduceKind::Max, 3), &[sums])?;
    let transposed = nodes.add(transpose(), &[a])?;
    let mut z = nodes.add(Div, &[transposed, norm])?;
    let factors = [7.0, 15.0, 13.0 / 4.0, 1.0 / 4.0];
    let mut numbers = [z; 4];
    for (number, factor) in numbers.iter_mut().zip(factors) {
        *number = nodes.number(factor)?;
    }
    let [seven, fifteen, more, quarter] = numbers;
    for _ in 0..iterations {
        // X = A Z, P = X (7 I - X), R = X (15 I - P), Z = 13/4 Z - 1/4 Z R.
        let x = nodes.add(MatMul, &[a, z])?;
        let mut r = x;
        for factor in [seven, fifteen] {
            let times = nodes.add(Mul, &[x, factor])?;
            let product = nodes.add(MatMul, &[x, r])?;
            r = nodes.add(Sub, &[times, product])?;
        }
        let (times, product) = (nodes.add(Mul, &[z, more])?, nodes.add(MatMul, &[z, r])?);
        let product = nodes.add(Mul, &[product, quarter])?;
        z = nodes.add(Sub, &[times, product])?;
    }
    Ok(z)
}
