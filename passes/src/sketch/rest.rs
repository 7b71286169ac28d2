//! What windows do not read, by random features: keys beyond the neighbours of a block of queries count by sums over blocks, so that
//! no part of attention grows with the square of the number of positions.
//!
//! With directions `W [D, M]` and `x' = √scale x`, `exp(scale q k)` is on average the product of `exp(q' W - ‖q'‖² / 2)` and
//! `exp(k' W - ‖k'‖² / 2) / M` (Choromanski and others, arXiv 2009.14794). The moments of a block are `Σ φ(k)ᵀ v` and `Σ φ(k)` of its
//! keys; a block of queries reads the sums of the moments of all blocks before its neighbours, and behind them unless attention is
//! causal. Softmax over both parts is the mean of their results, weighed by the sums of their exponentials, of which logarithms
//! are known: of what is read key by key those that [`Attention`](margay_ir::ops::Attention) gives, of the rest those of features.

use margay_ir::ops::{
    Add, Concat, Cumulate, Div, Exp, Less, Log, MatMul, Max, Mul, Reduce, ReduceKind, Select, Sub, Transpose,
};
use margay_ir::{AddError, Part, Value};
use margay_randnla::{Directions, random_directions};
use margay_tensor::Dim;

use super::blocks::{Blocks, LEAST, LEAST_SUM, padded, part, repeated, with_axis};
use super::heads::Nodes;

/// Features of the keys that are not read one by one.
pub(super) struct Rest<'a> {
    pub(super) blocks: &'a Blocks,
    /// Blocks before and after a block that it reads key by key.
    pub(super) sides: [usize; 2],
    pub(super) causal: bool,
    /// Multiplies the products of queries and keys.
    pub(super) scale: f64,
    pub(super) features: usize,
    /// Name the directions.
    pub(super) seed: u64,
    pub(super) stream: u64,
}

/// The part of attention that features stand for, of blocks of queries: `[B, H, blocks, size, …]`.
pub(super) struct Read {
    /// The mean of the values, `[…, E]`.
    means: Value,
    /// The logarithm of the sum of the weights, `[…, 1]`.
    logarithms: Value,
}

fn over(kind: ReduceKind, axis: usize) -> Reduce {
    Reduce { kind, axes: vec![axis], keepdims: true }
}

impl Rest<'_> {
    /// Reads keys and values `[B, H, length, …]`, of which a mask `[b, h, length]` hides some.
    pub(super) fn read(
        &self,
        nodes: &mut Nodes<'_, '_>,
        [q, k, v]: [Value; 3],
        mask: Value,
    ) -> Result<Read, AddError> {
        let d = nodes.ty(q).shape[3].as_extent().expect("the length of a query is known");
        let directions = self.directions(nodes, d)?;
        let mask = with_axis(nodes, mask, 3)?;
        // What features are divided by: nothing of keys where results may not depend on later ones.
        let exponents = self.exponents(nodes, k, directions)?;
        let mut exponents = nodes.add(Add, &[exponents, mask])?;
        let most = match self.causal {
            true => nodes.number(0.0)?,
            false => {
                let most = nodes.add(over(ReduceKind::Max, 3), &[exponents])?;
                nodes.add(over(ReduceKind::Max, 2), &[most])?
            }
        };
        exponents = nodes.add(Sub, &[exponents, most])?;
        let features = nodes.add(Exp, &[exponents])?;
        let moments = self.moments(nodes, features, v)?;
        let beyond = self.beyond(nodes, moments)?;

        let exponents = self.exponents(nodes, q, directions)?;
        let own = nodes.add(over(ReduceKind::Max, 3), &[exponents])?;
        let exponents = nodes.add(Sub, &[exponents, own])?;
        let features = nodes.add(Exp, &[exponents])?;
        let features = self.blocks.split(nodes, features, 2, 0.0)?;
        let sums = nodes.add(MatMul, &[features, beyond])?;
        let width = nodes.ty(v).shape[3].clone();
        let values = part(nodes, sums, 4, [&Dim::default(), &width])?;
        let sum = part(nodes, sums, 4, [&width, &(&width + &Dim::from(1usize))])?;
        let (least, zero) = (nodes.number(LEAST_SUM)?, nodes.number(0.0)?);
        let some = nodes.add(Max, &[sum, least])?;
        let means = nodes.add(Div, &[values, some])?;

        let number = nodes.number(-(self.features as f64).ln())?;
        let scales = nodes.add(Add, &[own, most])?;
        let scales = nodes.add(Add, &[scales, number])?;
        let scales = self.blocks.split(nodes, scales, 2, 0.0)?;
        let logarithms = nodes.add(Log, &[some])?;
        let logarithms = nodes.add(Add, &[logarithms, scales])?;
        let (any, least) = (nodes.add(Less, &[zero, sum])?, nodes.number(LEAST)?);
        let logarithms = nodes.add(Select, &[any, logarithms, least])?;
        Ok(Read { means, logarithms })
    }

    /// Both parts together: what was read key by key, `[B, H, blocks, size, E]`, with the logarithms of its sums of weights, and the
    /// rest.
    pub(super) fn joined(
        &self,
        nodes: &mut Nodes<'_, '_>,
        [near, logarithms]: [Value; 2],
        rest: &Read,
    ) -> Result<Value, AddError> {
        let most = nodes.add(Max, &[logarithms, rest.logarithms])?;
        let mut sums = Vec::new();
        let mut weights = Vec::new();
        for (mean, logarithms) in [(near, logarithms), (rest.means, rest.logarithms)] {
            let below = nodes.add(Sub, &[logarithms, most])?;
            let weight = nodes.add(Exp, &[below])?;
            sums.push(nodes.add(Mul, &[mean, weight])?);
            weights.push(weight);
        }
        let (sum, weight) = (nodes.add(Add, &sums)?, nodes.add(Add, &weights)?);
        nodes.add(Div, &[sum, weight])
    }

    /// `x' W - ‖x'‖² / 2` of `[B, H, n, D]`, `[B, H, n, M]`.
    fn exponents(&self, nodes: &mut Nodes<'_, '_>, x: Value, directions: Value) -> Result<Value, AddError> {
        let products = nodes.add(MatMul, &[x, directions])?;
        let squares = nodes.add(Mul, &[x, x])?;
        let norms = nodes.add(over(ReduceKind::Sum, 3), &[squares])?;
        let half = nodes.number(0.5 * self.scale)?;
        let norms = nodes.add(Mul, &[norms, half])?;
        nodes.add(Sub, &[products, norms])
    }

    /// The moments of the keys of each block with their values and with 1, `[B, H, blocks, M, E + 1]`.
    fn moments(&self, nodes: &mut Nodes<'_, '_>, features: Value, v: Value) -> Result<Value, AddError> {
        let one = nodes.number(1.0)?;
        let mut column = nodes.ty(v).shape.clone();
        column[3] = Dim::from(1usize);
        let ones = repeated(nodes, one, column)?;
        let values = nodes.add(Concat { axis: 3 }, &[v, ones])?;
        let values = self.blocks.split(nodes, values, 2, 0.0)?;
        let features = self.blocks.split(nodes, features, 2, 0.0)?;
        let features = nodes.add(Transpose { perm: vec![0, 1, 2, 4, 3] }, &[features])?;
        nodes.add(MatMul, &[features, values])
    }

    /// By block the sums of the moments of those that are no neighbours of it.
    fn beyond(&self, nodes: &mut Nodes<'_, '_>, moments: Value) -> Result<Value, AddError> {
        let mut found = None;
        let [before, after] = self.sides;
        for (reverse, skipped) in [(false, before), (true, after)] {
            if reverse && self.causal {
                continue;
            }
            let sums = Cumulate { axis: 2, product: false, exclusive: true, reverse };
            let sums = nodes.add(sums, &[moments])?;
            // Sums up to a neighbour leave out the neighbour and the block itself.
            let (count, skip) = (&self.blocks.count, &Dim::from(skipped));
            let shifted = match reverse {
                false => {
                    let all = padded(nodes, sums, (2, 0.0), [skipped, 0])?;
                    part(nodes, all, 2, [&Dim::default(), count])?
                }
                true => {
                    let all = padded(nodes, sums, (2, 0.0), [0, skipped])?;
                    part(nodes, all, 2, [skip, &(count + skip)])?
                }
            };
            found = Some(found.map_or(Ok(shifted), |sum| nodes.add(Add, &[sum, shifted]))?);
        }
        Ok(found.expect("there are blocks before"))
    }

    /// The directions times the root of the scale, `[d, features]`.
    fn directions(&self, nodes: &mut Nodes<'_, '_>, d: usize) -> Result<Value, AddError> {
        let (m, root) = (self.features, self.scale.sqrt());
        let contents = nodes.work.computed(|| {
            let w = random_directions(Directions::Orthogonal, d, m, self.seed, self.stream);
            let all = (0..d).flat_map(|i| (0..m).map(move |j| (i, j)));
            Ok::<_, AddError>(all.map(|(i, j)| (root * w.at(i, j)) as f32).collect())
        })?;
        let Rest { scale, seed, stream, .. } = self;
        let name = format!(
            "favor.directions(orthogonal, softmax, features = {m}, scale = {scale}, seed = {seed}, stream = {stream})"
        );
        let origin = nodes.origin(Part::Random);
        nodes.work.constant(&name, &[d, m], contents, origin)
    }
}
