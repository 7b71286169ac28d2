//! Attention by random features in place of a softmax over all pairs (FAVOR+; Choromanski and others, *Rethinking Attention
//! with Performers*, arXiv 2009.14794): `softmax(scale Q Kᵀ) V ≈ φ(Q) (φ(K)ᵀ V) / (φ(Q) φ(K)ᵀ 1)`, linear in the number of
//! positions.
//!
//! With random directions `W [D, M]` (see [`margay_randnla::random_directions`]) and `x' = √scale x` the features are
//!
//! ```text
//! softmax  φ(x) = exp(x' W - ‖x'‖² / 2 - c) + 10⁻⁶
//! relu     φ(x) = max(x W / √M, 0) + 10⁻³
//! ```
//!
//! where `c` is the greatest exponent, of a query its own, of keys that of all keys of the head. The quotient does not depend
//! on it but for the small number, and neither on the norm of a query, which is left out. Causal attention has no `c` for
//! keys: a result must not depend on keys that come later. `hyperbolic` features are `exp(± x' W)` of half as many
//! directions. A mask with one number for each key is added to the exponents of the keys; heads that share keys read them
//! from one head.
//!
//! The seed of the plan names the directions, with the name of the site; another seed draws them anew. Heads of one node
//! share them, as in the paper. `directions = "fitted"` changes them for each head, as the moments of its queries and keys on
//! samples say, with weights that keep the estimate unbiased ([`Proposal`]): keys are then multiplied by a matrix of the head
//! first. Where nobody else reads the features, attention makes them itself ([`RecognizeFeatureAttention`](crate::RecognizeFeatureAttention)).
//! `relative` puts functions of the distance of two positions into their product (`relative.rs`).
//!
//! Nothing chooses this scheme by itself: exact attention stays unless a plan asks for features, or who trains. With samples a
//! plan may set a `limit`: heads are replaced whose relative error, measured on these samples, is within it, and
//! the report says which are not. Without samples the error counts as 1, that of the mean in place of the values.
//!
//! ```text
//! graph @before(%q: f32[B, 4, S, 8], %k: f32[B, 4, S, 8], %v: f32[B, 4, S, 8]) -> (y: f32[B, 4, S, 8]) {
//!   %0 = attention %q, %k, %v {scale = 0.25} : f32[B, 4, S, 8]  // att
//!   return %0
//! }
//! graph @after(%q: f32[B, 4, S, 8], %k: f32[B, 4, S, 8], %v: f32[B, 4, S, 8]) -> (y: f32[B, 4, S, 8]) {
//!   %0 = const favor.directions(orthogonal, softmax, scale = 0.25, seed = 0, stream = 727817140) : f32[8, 16]  // att random
//!   %1 = matmul %q, %0 : f32[B, 4, S, 16]  // att left
//!   %2 = reduce %1 {kind = max, axes = [3], keepdims = true} : f32[B, 4, S, 1]  // att left
//!   %3 = sub %1, %2 : f32[B, 4, S, 16]  // att left
//!   %4 = exp %3 : f32[B, 4, S, 16]  // att left
//!   %5 = const 1e-6 : f32  // att random
//!   %6 = add %4, %5 : f32[B, 4, S, 16]  // att left
//!   %7 = matmul %k, %0 : f32[B, 4, S, 16]  // att left
//!   %8 = const 1e-6 : f32  // att random
//!   %9 = mul %k, %k : f32[B, 4, S, 8]  // att left
//!   %10 = reduce %9 {kind = sum, axes = [3], keepdims = true} : f32[B, 4, S, 1]  // att left
//!   %11 = const 0.125 : f32  // att random
//!   %12 = mul %10, %11 : f32[B, 4, S, 1]  // att left
//!   %13 = sub %7, %12 : f32[B, 4, S, 16]  // att left
//!   %14 = reduce %7 {kind = max, axes = [3], keepdims = true} : f32[B, 4, S, 1]  // att left
//!   %15 = sub %14, %12 : f32[B, 4, S, 1]  // att left
//!   %16 = reduce %15 {kind = max, axes = [2], keepdims = true} : f32[B, 4, 1, 1]  // att left
//!   %17 = sub %13, %16 : f32[B, 4, S, 16]  // att left
//!   %18 = exp %17 : f32[B, 4, S, 16]  // att left
//!   %19 = add %18, %8 : f32[B, 4, S, 16]  // att left
//!   %20 = linear_attention %6, %19, %v : f32[B, 4, S, 8]  // att right
//!   return %20
//! }
//! ```
//!
//! Declines a mask with a row for each query, causal attention with more keys than queries, relative positions of other keys
//! than queries, and fitted directions without samples.

use std::sync::{Mutex, PoisonError};

use margay_ir::ops::{Bits, LinearAttention, MatMul};
use margay_ir::{AddError, Graph, Part, Value};
use margay_randnla::{Matrix, Proposal, RandnlaError, random_directions};
use margay_tensor::Tensor;
use margay_tensor::random::stream_of;

use super::blocks::LEAST_SUM;
use super::features::{FavorSettings, FeatureDirections, FeatureKernel, Features};
use super::heads::{self, FittedHeads, HeadForm, Heads, Nodes, Operands};
use super::relative::Encoding;
use super::{Context, Factored, Fitted, Scheme, SchemeFacts, Site};

/// Attention by random features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FavorScheme;

impl Scheme for FavorScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "favor",
            only_by_name: Some("random features keep little of heads that were trained without them"),
            is_storage: false,
            examples: &["features = 16"],
            check: |settings| heads::read::<FavorSettings>(settings).map(drop),
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        heads::sites(g, self.facts().name)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        let form = RandomFeatures {
            seed: context.seed,
            stream: stream_of(&context.site.name),
            samples: context.samples.map(<[_]>::to_vec).unwrap_or_default(),
            laws: Mutex::default(),
        };
        Ok(Box::new(FittedHeads::new(context, form)))
    }

    /// None: directions are not trained.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

/// Features of directions that are named so.
struct RandomFeatures {
    seed: u64,
    stream: u64,
    /// By run, the operands of the attention.
    samples: Vec<Vec<Tensor>>,
    /// The laws of all heads, once they were asked for.
    laws: Mutex<Option<Vec<Proposal>>>,
}

impl HeadForm for RandomFeatures {
    type Settings = FavorSettings;

    fn refusal(&self, heads: &Heads, s: &FavorSettings) -> Option<String> {
        let Heads { op, queries, keys, .. } = heads;
        if op.causal && queries != keys {
            return Some(format!("causal attention of {queries} queries and {keys} keys, expected as many"));
        }
        if op.scale.get() <= 0.0 {
            return Some(format!("scale {}, expected a number above 0", op.scale.get()));
        }
        if s.relative.is_some() && queries != keys {
            return Some(format!(
                "relative positions of {queries} queries and {keys} keys, expected as many"
            ));
        }
        if s.directions == FeatureDirections::Fitted
            && let Err(why) = self.laws(heads)
        {
            return Some(why);
        }
        heads.row_refusal()
    }

    fn attend(
        &self,
        nodes: &mut Nodes<'_, '_>,
        heads: &Heads,
        s: &FavorSettings,
        Operands { mut q, mut k, v, mask }: Operands,
    ) -> Result<Value, AddError> {
        let count = nodes.ty(q).shape[1].as_extent().expect("heads are known");
        if let Some(relative) = &s.relative {
            let encoding =
                Encoding { s: relative, seed: self.seed, stream: self.stream, heads: count, d: heads.d };
            [q, k] = encoding.of(nodes, [q, k], &heads.queries)?;
        }
        let causal = heads.op.causal;
        let (directions, weights) = match s.directions {
            FeatureDirections::Fitted => {
                let fitted = self.fitted(nodes, heads, s, count)?;
                k = nodes.add(MatMul, &[k, fitted.keys])?;
                (fitted.directions, Some(fitted.weights))
            }
            _ => {
                let shared = self.directions(nodes, heads, s)?;
                ([shared; 2], None)
            }
        };
        let features = Features { s, scale: heads.op.scale.get(), causal, directions, weights };
        let q = features.of_queries(nodes, q)?;
        let mask = mask.map(|mask| features.column(nodes, mask)).transpose()?;
        let k = features.of_keys(nodes, k, mask)?;
        // Where a mask hides every key, the sum of the weights is 0.
        let epsilon = Bits::new(if mask.is_some() { LEAST_SUM } else { 0.0 });
        nodes.last(LinearAttention { causal, epsilon }, &[q, k, v])
    }
}

/// What is fitted to each head.
struct FittedNodes {
    /// What keys are multiplied by, `[heads, d, d]`.
    keys: Value,
    /// Of queries and of keys, `[heads, d, features]`.
    directions: [Value; 2],
    /// `[heads, 1, features]`.
    weights: Value,
}

impl RandomFeatures {
    /// The directions, scaled as the kernel wants them: `[d, features]`.
    fn directions(
        &self,
        nodes: &mut Nodes<'_, '_>,
        heads: &Heads,
        s: &FavorSettings,
    ) -> Result<Value, AddError> {
        let (d, scale) = (s.relative.as_ref().map_or(heads.d, |r| r.realizations), heads.op.scale.get());
        let (law, word) = s.directions.law();
        let factor = match s.kernel {
            FeatureKernel::Softmax => scale.sqrt(),
            FeatureKernel::Relu => 1.0 / (s.features as f64).sqrt(),
        };
        let contents = nodes.work.computed(|| {
            let drawn = if s.hyperbolic { s.features / 2 } else { s.features };
            let w = random_directions(law, d, drawn, self.seed, self.stream);
            let at = |i: usize, j: usize| if j < drawn { w.at(i, j) } else { -w.at(i, j - drawn) };
            let all = (0..d).flat_map(|i| (0..s.features).map(move |j| (i, j)));
            Ok::<_, AddError>(all.map(|(i, j)| (factor * at(i, j)) as f32).collect())
        })?;
        let pairs = if s.hyperbolic { ", hyperbolic" } else { "" };
        let name = format!(
            "favor.directions({word}{pairs}, {}, scale = {scale}, seed = {}, stream = {})",
            s.kernel.name(),
            self.seed,
            self.stream
        );
        let origin = nodes.origin(Part::Random);
        nodes.work.constant(&name, &[d, s.features], contents, origin)
    }

    /// The directions of each head that gets features, from what samples show of it.
    fn fitted(
        &self,
        nodes: &mut Nodes<'_, '_>,
        heads: &Heads,
        s: &FavorSettings,
        count: usize,
    ) -> Result<FittedNodes, AddError> {
        let (d, m, root) = (heads.d, s.features, heads.op.scale.get().sqrt());
        let contents = nodes.work.computed(|| {
            let laws = self.laws(heads).expect("settings that are offered have laws");
            let u = random_directions(s.directions.law().0, d, m, self.seed, self.stream);
            let all: Vec<usize> = (0..count).collect();
            let mut parts: [Vec<f32>; 4] = Default::default();
            for head in s.choice.heads.as_ref().unwrap_or(&all) {
                let law = &laws[*head];
                let (w, b) = law.directions(&u).expect("directions of the length of a query");
                let of_queries = law.of_queries().product(&w).expect("the law is of the same length");
                let scaled = |m: &Matrix| -> Vec<f32> {
                    m.to_row_major_f64().iter().map(|x| (root * x) as f32).collect()
                };
                parts[0].extend(law.of_keys().to_row_major());
                parts[1].extend(scaled(&of_queries));
                parts[2].extend(scaled(&w));
                parts[3].extend(b.iter().map(|b| *b as f32));
            }
            Ok::<_, AddError>(parts)
        })?;
        let origin = nodes.origin(Part::Random);
        let [keys, of_queries, of_keys, weights] = match contents {
            Some(parts) => parts.map(Some),
            None => Default::default(),
        };
        let mut add = |shape: &[usize], contents| nodes.work.measured(shape, contents, origin.clone());
        Ok(FittedNodes {
            keys: add(&[count, d, d], keys)?,
            directions: [add(&[count, d, m], of_queries)?, add(&[count, d, m], of_keys)?],
            weights: add(&[count, 1, m], weights)?,
        })
    }

    /// The laws of all heads, of queries and keys times the root of the scale.
    fn laws(&self, heads: &Heads) -> Result<Vec<Proposal>, String> {
        let mut known = self.laws.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(laws) = &*known {
            return Ok(laws.clone());
        }
        if self.samples.is_empty() {
            return Err("fitted directions need samples".to_owned());
        }
        let laws = heads.moments(&self.samples)?;
        let laws = laws.iter().map(|[q, k]| Proposal::fitted(q, k).map_err(|e| e.to_string()));
        Ok(known.insert(laws.collect::<Result<_, _>>()?).clone())
    }
}
