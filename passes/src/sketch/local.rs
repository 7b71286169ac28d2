//! Attention to what is near in place of all pairs: query i reads the keys j with |i - j| <= `window`, as in Longformer (Beltagy
//! and others, arXiv 2004.05150), in time linear in the number of positions.
//!
//! Positions are cut into blocks of `window` positions. The queries of a block are one item of a batch, which reads three
//! blocks of keys, the block's own and its neighbours (two where attention is causal), with a mask for what is further away
//! than the window.
//!
//! Three settings let queries see further:
//!
//! - `global = g`: the first g positions are read by all, and read all.
//! - `summary = "means"`: a block that is not read key by key is read as one key and one value, the means of its own, whose score
//!   gets the logarithm of the number of keys (of the sum of their weights, under a mask), so that equal keys weigh what they
//!   weigh in exact attention. Then neighbours are read as a whole: each key counts once. Time grows with the square of the number
//!   of blocks.
//! - `summary = "features", features = M`: these blocks are read together, by random features of the softmax (`rest.rs`), in time
//!   linear in the number of positions. Seed and name of the site name the directions.
//!
//! A mask with one number for each key is honoured. A query whose keys are all hidden gets a mean of what is hidden from it, where
//! exact attention reads all positions.
//!
//! ```text
//! graph @before(%q: f32[B, 4, 24, 8], %k: f32[B, 4, 24, 8], %v: f32[B, 4, 24, 8]) -> (y: f32[B, 4, 24, 8]) {
//!   %0 = attention %q, %k, %v {scale = 0.25, causal = true} : f32[B, 4, 24, 8]  // att
//!   return %0
//! }
//! graph @after(%q: f32[B, 4, 24, 8], %k: f32[B, 4, 24, 8], %v: f32[B, 4, 24, 8]) -> (y: f32[B, 4, 24, 8]) {
//!   %0 = const 0.0 : f32  // att random
//!   %1 = broadcast %0 {shape = [1, 1, 24]} : f32[1, 1, 24]  // att left
//!   %2 = pad %k {before = [0, 0, 8, 0], after = [0, 0, 0, 0]} : f32[B, 4, 32, 8]  // att left
//!   %3 = slice %2 {starts = [0, 0, 0, 0], ends = [B, 4, 24, 8], steps = [1, 1, 1, 1]} : f32[B, 4, 24, 8]  // att left
//!   %4 = reshape %3 {shape = [B, 4, 3, 8, 8]} : f32[B, 4, 3, 8, 8]  // att left
//!   %5 = transpose %4 {perm = [0, 2, 1, 3, 4]} : f32[B, 3, 4, 8, 8]  // att left
//!   %6 = slice %2 {starts = [0, 0, 8, 0], ends = [B, 4, 32, 8], steps = [1, 1, 1, 1]} : f32[B, 4, 24, 8]  // att left
//!   %7 = reshape %6 {shape = [B, 4, 3, 8, 8]} : f32[B, 4, 3, 8, 8]  // att left
//!   %8 = transpose %7 {perm = [0, 2, 1, 3, 4]} : f32[B, 3, 4, 8, 8]  // att left
//!   %9 = pad %v {before = [0, 0, 8, 0], after = [0, 0, 0, 0]} : f32[B, 4, 32, 8]  // att left
//!   %10 = slice %9 {starts = [0, 0, 0, 0], ends = [B, 4, 24, 8], steps = [1, 1, 1, 1]} : f32[B, 4, 24, 8]  // att left
//!   %11 = reshape %10 {shape = [B, 4, 3, 8, 8]} : f32[B, 4, 3, 8, 8]  // att left
//!   %12 = transpose %11 {perm = [0, 2, 1, 3, 4]} : f32[B, 3, 4, 8, 8]  // att left
//!   %13 = slice %9 {starts = [0, 0, 8, 0], ends = [B, 4, 32, 8], steps = [1, 1, 1, 1]} : f32[B, 4, 24, 8]  // att left
//!   %14 = reshape %13 {shape = [B, 4, 3, 8, 8]} : f32[B, 4, 3, 8, 8]  // att left
//!   %15 = transpose %14 {perm = [0, 2, 1, 3, 4]} : f32[B, 3, 4, 8, 8]  // att left
//!   %16 = pad %1 {before = [0, 0, 8], after = [0, 0, 0], value = -inf} : f32[1, 1, 32]  // att left
//!   %17 = slice %16 {starts = [0, 0, 0], ends = [1, 1, 24], steps = [1, 1, 1]} : f32[1, 1, 24]  // att left
//!   %18 = reshape %17 {shape = [1, 1, 3, 8]} : f32[1, 1, 3, 8]  // att left
//!   %19 = transpose %18 {perm = [0, 2, 1, 3]} : f32[1, 3, 1, 8]  // att left
//!   %20 = slice %16 {starts = [0, 0, 8], ends = [1, 1, 32], steps = [1, 1, 1]} : f32[1, 1, 24]  // att left
//!   %21 = reshape %20 {shape = [1, 1, 3, 8]} : f32[1, 1, 3, 8]  // att left
//!   %22 = transpose %21 {perm = [0, 2, 1, 3]} : f32[1, 3, 1, 8]  // att left
//!   %23 = concat %19, %22 {axis = 3} : f32[1, 3, 1, 16]  // att left
//!   %24 = range {start = 0, step = 1, count = 8} : i64[8]  // att left
//!   %25 = reshape %24 {shape = [8, 1]} : i64[8, 1]  // att left
//!   %26 = range {start = -8, step = 1, count = 16} : i64[16]  // att left
//!   %27 = less %25, %26 : bool[8, 16]  // att left
//!   %28 = range {start = 0, step = 1, count = 16} : i64[16]  // att left
//!   %29 = less %28, %25 : bool[8, 16]  // att left
//!   %30 = or %27, %29 : bool[8, 16]  // att left
//!   %31 = const -inf : f32  // att random
//!   %32 = const 0.0 : f32  // att random
//!   %33 = select %30, %31, %32 : f32[8, 16]  // att left
//!   %34 = reshape %23 {shape = [1, 3, 1, 1, 16]} : f32[1, 3, 1, 1, 16]  // att left
//!   %35 = add %34, %33 : f32[1, 3, 1, 8, 16]  // att left
//!   %36 = broadcast %35 {shape = [B, 3, 1, 8, 16]} : f32[B, 3, 1, 8, 16]  // att left
//!   %37 = concat %5, %8 {axis = 3} : f32[B, 3, 4, 16, 8]  // att left
//!   %38 = reshape %37 {shape = [3*B, 4, 16, 8]} : f32[3*B, 4, 16, 8]  // att left
//!   %39 = concat %12, %15 {axis = 3} : f32[B, 3, 4, 16, 8]  // att left
//!   %40 = reshape %39 {shape = [3*B, 4, 16, 8]} : f32[3*B, 4, 16, 8]  // att left
//!   %41 = reshape %36 {shape = [3*B, 1, 8, 16]} : f32[3*B, 1, 8, 16]  // att left
//!   %42 = reshape %q {shape = [B, 4, 3, 8, 8]} : f32[B, 4, 3, 8, 8]  // att left
//!   %43 = transpose %42 {perm = [0, 2, 1, 3, 4]} : f32[B, 3, 4, 8, 8]  // att left
//!   %44 = reshape %43 {shape = [3*B, 4, 8, 8]} : f32[3*B, 4, 8, 8]  // att left
//!   %45 = attention %44, %38, %40, %41 {scale = 0.25} : f32[3*B, 4, 8, 8]  // att left
//!   %46 = reshape %45 {shape = [B, 3, 4, 8, 8]} : f32[B, 3, 4, 8, 8]  // att left
//!   %47 = transpose %46 {perm = [0, 2, 1, 3, 4]} : f32[B, 4, 3, 8, 8]  // att left
//!   %48 = reshape %47 {shape = [B, 4, 24, 8]} : f32[B, 4, 24, 8]  // att right
//!   return %48
//! }
//! ```
//!
//! With a window of as many positions as there are it computes what exact attention does. Nothing chooses this scheme by itself.
//! Where there are fewer positions than `window` or `global`, blocks are as long as all of them, and all are first ones; lengths may
//! be open. Declines a mask with a row for each query, and another number of queries than of keys. Deliberately absent: windows with gaps, and global positions elsewhere than at the front.

use margay_ir::ops::{Add, Attention, Concat, Less, Or, Range, Reshape, Select, Transpose};
use margay_ir::{AddError, Graph, Value};
use margay_randnla::RandnlaError;
use margay_tensor::Dim;
use margay_tensor::random::stream_of;
use serde::{Deserialize, Serialize};

use super::blocks::{Blocks, LEAST, at_most, mask_of_keys, padded, part, part_of, repeated, with_axis};
use super::heads::{self, FittedHeads, HeadChoice, HeadForm, HeadSettings, Heads, Nodes, Operands};
use super::rest::Rest;
use super::{Context, Factored, Fitted, Scheme, SchemeFacts, Site};

/// Attention to what is near.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LocalScheme;

impl Scheme for LocalScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "local",
            only_by_name: Some("its errors are known for what samples show of each head alone"),
            is_storage: false,
            examples: &["window = 8"],
            check: |settings| heads::read::<LocalSettings>(settings).map(drop),
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        heads::sites(g, self.facts().name)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        let near = Near { seed: context.seed, stream: stream_of(&context.site.name) };
        Ok(Box::new(FittedHeads::new(context, near)))
    }

    /// None: it has no constants.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

/// What a plan says of windows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalSettings {
    /// Positions before a query that it reads, and as many after it; at least 1.
    pub window: usize,
    /// First positions that are read by all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub global: usize,
    /// How the rest is read; not at all where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<LocalSummary>,
    /// Features of a query or key where the rest is read by them, and 0 elsewhere.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub features: usize,
    /// Which heads.
    #[serde(flatten)]
    pub choice: HeadChoice,
}

impl LocalSettings {
    /// Windows of so many positions on either side, in all heads, and nothing beyond them.
    pub fn new(window: usize) -> LocalSettings {
        LocalSettings { window, global: 0, summary: None, features: 0, choice: HeadChoice::default() }
    }
}

fn is_zero(global: &usize) -> bool {
    *global == 0
}

/// How blocks that are not read key by key are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalSummary {
    /// By its mean key and value.
    Means,
    /// By sums of random features of its keys.
    Features,
}

/// A block of more positions does not fit into memory with its scores.
const MOST_POSITIONS: usize = 1 << 16;

/// Most features of a query or key.
const MOST_FEATURES: usize = 1 << 16;

impl HeadSettings for LocalSettings {
    fn check(&self) -> Result<(), String> {
        if !(1..=MOST_POSITIONS).contains(&self.window) {
            return Err(format!("a window of {} positions, expected 1 to {MOST_POSITIONS}", self.window));
        }
        if self.global > MOST_POSITIONS {
            return Err(format!("{} global positions, expected at most {MOST_POSITIONS}", self.global));
        }
        let expected = match self.summary {
            Some(LocalSummary::Features) => 1..=MOST_FEATURES,
            Some(LocalSummary::Means) | None => 0..=0,
        };
        match expected.contains(&self.features) {
            true => Ok(()),
            false => {
                let (least, most, found) = (expected.start(), expected.end(), self.features);
                Err(format!("{found} features of the rest, expected {least} to {most}"))
            }
        }
    }

    fn choice(&self) -> &HeadChoice {
        &self.choice
    }

    fn with_choice(&self, choice: HeadChoice) -> LocalSettings {
        LocalSettings { choice, ..self.clone() }
    }

    fn size(&self) -> String {
        format!("windows of {} positions", self.window)
    }
}

/// Windows about each query.
struct Near {
    /// Name directions of features.
    seed: u64,
    stream: u64,
}

impl HeadForm for Near {
    type Settings = LocalSettings;

    fn refusal(&self, heads: &Heads, s: &LocalSettings) -> Option<String> {
        let Heads { op, queries, keys, .. } = heads;
        if s.summary == Some(LocalSummary::Features) && op.scale.get() <= 0.0 {
            return Some(format!("scale {}, expected a number above 0", op.scale.get()));
        }
        if queries != keys {
            return Some(format!("attention of {queries} queries and {keys} keys, expected as many"));
        }
        heads.row_refusal()
    }

    fn attend(
        &self,
        nodes: &mut Nodes<'_, '_>,
        heads: &Heads,
        s: &LocalSettings,
        Operands { q, k, v, mask }: Operands,
    ) -> Result<Value, AddError> {
        let shape = nodes.ty(q).shape.clone();
        let length = shape[2].clone();
        let (global, blocks) = (at_most(&length, s.global), Blocks::of_size(&length, s.window));
        let neighbours = usize::from(!blocks.count.is(1));
        let causal = heads.op.causal;
        let sides = [neighbours, if causal { 0 } else { neighbours }];
        let mask = mask.map(|mask| mask_of_keys(nodes, mask, &length)).transpose()?;

        let windows = Windows { s, causal, global: global.clone(), sides, blocks, batch: shape[0].clone() };
        let [keys, values, hiding] = windows.read(nodes, [k, v], mask)?;
        let items = windows.about(nodes, q, 0.0, [0, 0])?;
        let items = windows.items(nodes, 3, &items)?;
        let attention = Attention::new(heads.op.scale.get());
        let by_features = s.summary == Some(LocalSummary::Features) && neighbours > 0;
        let near = Attention { log_sum_exp: by_features, ..attention.clone() };
        let near = nodes.add(near, &[items, keys, values, hiding])?;
        let mut y = windows.apart(nodes, near)?;
        if by_features {
            let rest = Rest {
                blocks: &windows.blocks,
                sides,
                causal,
                scale: heads.op.scale.get(),
                features: s.features,
                seed: self.seed,
                stream: self.stream,
            };
            let logarithms = with_axis(nodes, Value { out: 1, ..near }, 3)?;
            let logarithms = windows.apart(nodes, logarithms)?;
            let hidden = windows.mask(nodes, mask)?;
            let hidden = windows.others(nodes, hidden)?;
            let read = rest.read(nodes, [q, k, v], hidden)?;
            y = rest.joined(nodes, [y, logarithms], &read)?;
        }
        let mut shape = shape;
        (shape[2], shape[3]) = (windows.blocks.whole(), nodes.ty(y).shape[4].clone());
        let whole = Reshape { shape: shape.clone() };
        let reads_all = s.global > 0 && !causal;
        if windows.blocks.are_full() && !reads_all {
            return nodes.last(whole, &[y]);
        }
        let y = nodes.add(whole, &[y])?;
        if !reads_all {
            return nodes.last(part_of(&shape, 2, [&Dim::default(), &length]), &[y]);
        }
        let mut operands = vec![part(nodes, q, 2, [&Dim::default(), &global])?, k, v];
        if let Some(mask) = mask {
            operands.push(with_axis(nodes, mask, 2)?);
        }
        let first = nodes.add(attention, &operands)?;
        let rest = part(nodes, y, 2, [&global, &length])?;
        nodes.last(Concat { axis: 2 }, &[first, rest])
    }
}

/// Blocks of queries as items of a batch, and what they read: keys and values `[B blocks, H, read, D]`.
struct Windows<'a> {
    s: &'a LocalSettings,
    causal: bool,
    /// First positions that are read by all.
    global: Dim,
    /// Blocks before and after a block that it reads key by key.
    sides: [usize; 2],
    blocks: Blocks,
    batch: Dim,
}

impl Windows<'_> {
    /// Keys, values, and what hides keys, `[B blocks, h, size, read]`. The mask is `[b, h, length]`.
    fn read(
        &self,
        nodes: &mut Nodes<'_, '_>,
        kv: [Value; 2],
        mask: Option<Value>,
    ) -> Result<[Value; 3], AddError> {
        let mask = self.mask(nodes, mask)?;
        let others = self.others(nodes, mask)?;

        let mut read: [Vec<Value>; 2] = Default::default();
        for (x, all) in kv.into_iter().zip(&mut read) {
            all.extend(self.about(nodes, x, 0.0, self.sides)?);
        }
        let keys = self.about(nodes, others, f64::NEG_INFINITY, self.sides)?;
        let (keys, near) = (joined(nodes, 3, &keys)?, self.near(nodes)?);
        let mut hiding = vec![self.hiding(nodes, keys, near)?];
        if self.s.global > 0 {
            for (x, all) in kv.into_iter().zip(&mut read) {
                let first = part(nodes, x, 2, [&Dim::default(), &self.global])?;
                all.push(self.shared(nodes, first)?);
            }
            let keys = part(nodes, mask, 2, [&Dim::default(), &self.global])?;
            let keys = with_axis(nodes, keys, 1)?;
            let later = self.later(nodes)?;
            hiding.push(self.hiding(nodes, keys, later)?);
        }
        if self.s.summary == Some(LocalSummary::Means) && !self.blocks.count.is(1) {
            let weights = self.blocks.weights(nodes, Some(others))?.expect("a mask gives weights");
            for (x, all) in kv.into_iter().zip(&mut read) {
                let means = self.blocks.means(nodes, x, Some(&weights))?;
                all.push(self.shared(nodes, means)?);
            }
            let keys = with_axis(nodes, weights.logarithms, 1)?;
            let far = self.far(nodes)?;
            hiding.push(self.hiding(nodes, keys, Some(far))?);
        }
        let [k, v] = &read;
        Ok([self.items(nodes, 3, k)?, self.items(nodes, 3, v)?, self.items(nodes, 4, &hiding)?])
    }

    /// The mask, of zeros where there is none.
    fn mask(&self, nodes: &mut Nodes<'_, '_>, mask: Option<Value>) -> Result<Value, AddError> {
        if let Some(mask) = mask {
            return Ok(mask);
        }
        let one = || Dim::from(1usize);
        let zero = nodes.number(0.0)?;
        repeated(nodes, zero, vec![one(), one(), self.blocks.length.clone()])
    }

    /// The mask without the first positions, which are read as such and not once more.
    fn others(&self, nodes: &mut Nodes<'_, '_>, mask: Value) -> Result<Value, AddError> {
        if self.s.global == 0 {
            return Ok(mask);
        }
        let keys = positions(nodes, &Dim::default(), self.blocks.length.clone(), &[])?;
        let end = positions(nodes, &self.global, Dim::from(1usize), &[])?;
        let first = nodes.add(Less, &[keys, end])?;
        let least = nodes.number(LEAST)?;
        nodes.add(Select, &[first, least, mask])
    }

    /// `[B, H, length, …]` as one `[B, blocks, H, size, …]` for each of so many blocks before and after a block, and for the block
    /// itself; `filler` where there are none.
    fn about(
        &self,
        nodes: &mut Nodes<'_, '_>,
        x: Value,
        filler: f64,
        [before, after]: [usize; 2],
    ) -> Result<Vec<Value>, AddError> {
        let mut perm: Vec<usize> = (0..=nodes.ty(x).ndim()).collect();
        perm.swap(1, 2);
        let most = self.blocks.size.as_extent().unwrap_or(self.s.window);
        let around = [before * most, after * most + self.blocks.filled];
        let x = padded(nodes, x, (2, filler), around)?;
        let unread = &Dim::from(around[0]) - &self.span(before);
        let mut found = Vec::new();
        for first in 0..=before + after {
            let blocks = self.blocks.split_from(nodes, x, 2, &(&unread + &self.span(first)))?;
            found.push(nodes.add(Transpose { perm: perm.clone() }, &[blocks])?);
        }
        Ok(found)
    }

    /// Positions of so many blocks.
    fn span(&self, blocks: usize) -> Dim {
        &Dim::from(blocks) * &self.blocks.size
    }

    /// `[B, blocks, …]` one after the other along an axis, as `[B blocks, …]`.
    fn items(&self, nodes: &mut Nodes<'_, '_>, axis: usize, parts: &[Value]) -> Result<Value, AddError> {
        let x = joined(nodes, axis, parts)?;
        let mut shape = nodes.ty(x).shape.clone();
        let items = &shape[0] * &shape[1];
        shape.splice(..2, [items]);
        nodes.add(Reshape { shape }, &[x])
    }

    /// `[B, H, n, D]` that every block reads, as `[B, blocks, H, n, D]`.
    fn shared(&self, nodes: &mut Nodes<'_, '_>, x: Value) -> Result<Value, AddError> {
        let x = with_axis(nodes, x, 1)?;
        let mut shape = nodes.ty(x).shape.clone();
        shape[1] = self.blocks.count.clone();
        repeated(nodes, x, shape)
    }

    /// `[B blocks, H, size, E]` as `[B, H, blocks, size, E]`.
    fn apart(&self, nodes: &mut Nodes<'_, '_>, y: Value) -> Result<Value, AddError> {
        let mut shape = nodes.ty(y).shape.clone();
        shape.splice(..1, [self.batch.clone(), self.blocks.count.clone()]);
        let y = nodes.add(Reshape { shape }, &[y])?;
        nodes.add(Transpose { perm: vec![0, 2, 1, 3, 4] }, &[y])
    }

    /// The mask `[B, blocks, h, size, n]` of one of keys, `[b, blocks or 1, h, n]`, and one of pairs of queries and keys.
    fn hiding(
        &self,
        nodes: &mut Nodes<'_, '_>,
        keys: Value,
        pairs: Option<Value>,
    ) -> Result<Value, AddError> {
        let mut mask = with_axis(nodes, keys, 3)?;
        let mut shape = nodes.ty(mask).shape.clone();
        shape.splice(..2, [self.batch.clone(), self.blocks.count.clone()]);
        shape[3] = self.blocks.size.clone();
        if let Some(pairs) = pairs {
            mask = nodes.add(Add, &[mask, pairs])?;
        }
        repeated(nodes, mask, shape)
    }

    /// The first number where a test holds, the second elsewhere.
    fn chosen(&self, nodes: &mut Nodes<'_, '_>, test: Value, numbers: [f64; 2]) -> Result<Value, AddError> {
        let [x, y] = numbers;
        let (x, y) = (nodes.number(x)?, nodes.number(y)?);
        nodes.add(Select, &[test, x, y])
    }

    /// Which keys of a block and its neighbours are further away than the window, or later where that counts: `[size, read]`.
    fn near(&self, nodes: &mut Nodes<'_, '_>) -> Result<Option<Value>, AddError> {
        let [before, after] = self.sides;
        let read = self.span(before + 1 + after);
        // Positions from the first query of the block on.
        let (first, window) = (&Dim::default() - &self.span(before), Dim::from(self.s.window));
        let banded = self.s.summary.is_none();
        let queries = positions(nodes, &Dim::default(), self.blocks.size.clone(), &[1])?;
        let mut hidden = Vec::new();
        if banded || self.causal {
            let from = if self.causal { first.clone() } else { &first - &window };
            let keys = positions(nodes, &from, read.clone(), &[])?;
            hidden.push(nodes.add(Less, &[queries, keys])?);
        }
        if banded {
            let keys = positions(nodes, &(&first + &window), read, &[])?;
            hidden.push(nodes.add(Less, &[keys, queries])?);
        }
        match self.any(nodes, &hidden)? {
            Some(hidden) => self.chosen(nodes, hidden, [f64::NEG_INFINITY, 0.0]).map(Some),
            None => Ok(None),
        }
    }

    /// Which of the first positions come after a query, where that counts: `[blocks, 1, size, global]`.
    fn later(&self, nodes: &mut Nodes<'_, '_>) -> Result<Option<Value>, AddError> {
        if !self.causal {
            return Ok(None);
        }
        let queries = positions(nodes, &Dim::default(), self.blocks.whole(), &[])?;
        let one = Dim::from(1usize);
        let shape = vec![self.blocks.count.clone(), one.clone(), self.blocks.size.clone(), one];
        let queries = nodes.add(Reshape { shape }, &[queries])?;
        let keys = positions(nodes, &Dim::default(), self.global.clone(), &[])?;
        let later = nodes.add(Less, &[queries, keys])?;
        self.chosen(nodes, later, [f64::NEG_INFINITY, 0.0]).map(Some)
    }

    /// Which blocks are read by their means: `[blocks, 1, 1, blocks]`.
    fn far(&self, nodes: &mut Nodes<'_, '_>) -> Result<Value, AddError> {
        let count = || self.blocks.count.clone();
        let queries = positions(nodes, &Dim::default(), count(), &[1, 1, 1])?;
        let [before, after] = self.sides.map(Dim::from);
        let earlier = positions(nodes, &before, count(), &[])?;
        let mut far = vec![nodes.add(Less, &[earlier, queries])?];
        if !self.causal {
            let later = positions(nodes, &(&Dim::default() - &after), count(), &[])?;
            far.push(nodes.add(Less, &[queries, later])?);
        }
        let any = self.any(nodes, &far)?.expect("a test for blocks before");
        self.chosen(nodes, any, [0.0, f64::NEG_INFINITY])
    }

    /// Where one of at most two tests holds.
    fn any(&self, nodes: &mut Nodes<'_, '_>, tests: &[Value]) -> Result<Option<Value>, AddError> {
        match *tests {
            [one, other] => nodes.add(Or, &[one, other]).map(Some),
            _ => Ok(tests.first().copied()),
        }
    }
}

/// Values one after the other along an axis.
fn joined(nodes: &mut Nodes<'_, '_>, axis: usize, parts: &[Value]) -> Result<Value, AddError> {
    match parts {
        [one] => Ok(*one),
        several => nodes.add(Concat { axis }, several),
    }
}

/// So many integers from the first on, along the first axis of `[count, 1, …]`.
fn positions(
    nodes: &mut Nodes<'_, '_>,
    first: &Dim,
    count: Dim,
    behind: &[usize],
) -> Result<Value, AddError> {
    let range = Range { start: first.clone(), step: 1, count: count.clone() };
    let range = nodes.add(range, &[])?;
    if behind.is_empty() {
        return Ok(range);
    }
    let shape = std::iter::once(count).chain(behind.iter().map(|&extent| Dim::from(extent))).collect();
    nodes.add(Reshape { shape }, &[range])
}
