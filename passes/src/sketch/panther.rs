//! Sketches with random signs that stay, for training (Panther, arXiv 2601.15473; Kasiviswanathan et al., arXiv
//! 1711.07553): `x W` becomes `x (S₁ U₁ + U₂ S₂)`, two products of width `2 terms · rank`, and a convolution becomes
//! one with so many filters, then a 1x1 convolution with random signs alone. That sketches the outputs of a kernel; `two-sided`
//! also sketches its channels, as the second paper does: half of the filters are replaced by a 1x1 convolution with
//! random signs in front of one with a trained kernel, and both results are added.
//!
//! `U` are random signs, named by seed and stream, with the division by the number of sketches in their size (see
//! [`margay_randnla::panther`]). `S` is what training moves: constants with the part `left` or `right`, while those of
//! `U` have the part `random`. Both lie side by side through `concat`, which `fold-constants` removes where nothing is
//! trained. Streams follow from the layer's name, so that trained factors find their signs again.
//!
//! Predicted errors are expectations over the signs for white inputs. No allocator
//! chooses this scheme: a copy without bias has an error of at least √2 wherever a square weight takes fewer numbers, and
//! of what fits into two products of one width, `lowrank` is the best.
//!
//! ```text
//! graph @before(%x: f32[N, 256]) -> (y: f32[N, 256]) {
//!   %0 = const #5be1c0 : f32[256, 256]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 256]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 256]) -> (y: f32[N, 256]) {
//!   %0 = const panther.left(#5be1c0, k = 8, terms = 2, copy = unbiased, seed = 7, stream = 16421771880) : f32[256, 16]  // fc1.weight left
//!   %1 = const random(7, 16421771881, sign, 0.088388346) : f32[256, 16]  // fc1.weight random
//!   %2 = concat %0, %1 {axis = 1} : f32[256, 32]  // fc1.weight left
//!   %3 = const random(7, 16421771880, sign, 0.088388346) : f32[16, 256]  // fc1.weight random
//!   %4 = const panther.right(#5be1c0, k = 8, terms = 2, copy = unbiased, seed = 7, stream = 16421771880) : f32[16, 256]  // fc1.weight right
//!   %5 = concat %3, %4 {axis = 0} : f32[32, 256]  // fc1.weight right
//!   %6 = matmul %x, %2 : f32[N, 32]  // fc1/MatMul left
//!   %7 = matmul %6, %5 : f32[N, 256]  // fc1/MatMul right
//!   return %7
//! }
//! ```
//!
//! ```text
//! graph @before(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 64, 8, 8]) {
//!   %0 = const #77aa01 : f32[64, 16, 3, 3]  // conv.weight
//!   %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 64, 8, 8]  // conv
//!   return %1
//! }
//! graph @after(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 64, 8, 8]) {
//!   %0 = const panther.left(#77aa01, k = 8, terms = 2, copy = unbiased, seed = 7, stream = 15854570524) : f32[32, 16, 3, 3]  // conv.weight left
//!   %1 = const random(7, 15854570524, sign, 0.088388346) : f32[64, 32, 1, 1]  // conv.weight random
//!   %2 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 32, 8, 8]  // conv left
//!   %3 = conv %2, %1 : f32[N, 64, 8, 8]  // conv right
//!   return %3
//! }
//! ```
//!
//! ```text
//! graph @before(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 64, 8, 8]) {
//!   %0 = const #77aa01 : f32[64, 16, 3, 3]  // conv.weight
//!   %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 64, 8, 8]  // conv
//!   return %1
//! }
//! graph @after(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 64, 8, 8]) {
//!   %0 = const panther.left(#77aa01, k = 8, terms = 1, two-sided, copy = unbiased, seed = 7, stream = 15854570524) : f32[8, 16, 3, 3]  // conv.weight left
//!   %1 = const panther.right(#77aa01, k = 8, terms = 1, two-sided, copy = unbiased, seed = 7, stream = 15854570524) : f32[64, 8, 3, 3]  // conv.weight right
//!   %2 = const random(7, 15854570524, sign, 0.17677669) : f32[64, 8, 1, 1]  // conv.weight random
//!   %3 = const random(7, 15854570525, sign, 0.17677669) : f32[8, 16, 1, 1]  // conv.weight random
//!   %4 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 8, 8, 8]  // conv left
//!   %5 = conv %4, %2 : f32[N, 64, 8, 8]  // conv term
//!   %6 = conv %x, %3 : f32[N, 8, 8, 8]  // conv left
//!   %7 = conv %6, %1 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 64, 8, 8]  // conv term
//!   %8 = add %5, %7 : f32[N, 64, 8, 8]  // conv right
//!   return %8
//! }
//! ```
//!
//! Convolutions may have groups, of which each has a kernel, signs and factors of its own, and one spatial axis, two or three: those
//! over three are imported as such of planes.
//!
//! Deliberately absent: calibration.

use margay_ir::ops::{Add, Concat};
use margay_ir::{Draw, DrawKind, Graph, NodeId, Origin, Part, Payload, Value};
use margay_plan::Settings;
use margay_randnla::{Matrix, RandnlaError, panther};
use margay_tensor::random::stream_of;
use serde::{Deserialize, Serialize};

use super::kernels::{Kernel, add_pointwise, matrices};
use super::{
    ApplyError, Context, Factored, Fitted, Layer, Replacement, Scheme, SchemeFacts, Site, check_rank, layers,
};

/// Random signs and trained factors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PantherScheme;

/// What a plan says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PantherSettings {
    /// Columns of each sketch.
    pub rank: usize,
    /// Sketches that are averaged: `L` on either side of a weight, `2L` of the outputs of a kernel, or `L` of these and `L` of its
    /// channels; at least 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub terms: usize,
    /// What the trained factors are at first.
    #[serde(default, rename = "copy", skip_serializing_if = "is_default")]
    pub start: Start,
    /// Whether kernels are sketched on both sides, as weights of products always are.
    #[serde(default, rename = "two-sided", skip_serializing_if = "is_default")]
    pub two_sided: bool,
}

impl PantherSettings {
    /// How many numbers the factors of a site are, beside those of its weight, in words.
    pub(super) fn numbers(&self, g: &Graph, site: &Site) -> String {
        let (a, half) = (site.d_in, self.terms.saturating_mul(self.rank));
        let layer = Layer::of(g, site);
        let (kernel, b) = (layer.kernel(), layer.outputs());
        let numbers = match kernel {
            Some(k) if self.two_sided => {
                format!("{half} x ({a} + {b} + {} + {} x {b})", k.channels, k.taps())
            }
            _ => format!("{} x ({a} + {b})", half.saturating_mul(2)),
        };
        let of = match layer.groups() {
            1 => "of the weight".to_owned(),
            groups => format!("of each of {groups} groups"),
        };
        format!("{numbers} numbers would not be fewer than the {a} x {b} {of}")
    }
}

/// What trained factors are at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The factors with the least error for the signs.
    #[default]
    LeastSquares,
    /// The factors with which the expectation over the signs is the weight.
    Unbiased,
    /// Uniform numbers, as for a model that was never trained: the variance of the whole weight's entries is
    /// `1 / (3 d_in)`, that of He's initialization with a slope of √5 by the number of inputs.
    Random,
}

fn one() -> usize {
    1
}

fn is_one(terms: &usize) -> bool {
    *terms == 1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Start {
    /// The word used in plans and in names of constants.
    fn name(self) -> &'static str {
        match self {
            Start::LeastSquares => "least-squares",
            Start::Unbiased => "unbiased",
            Start::Random => "random",
        }
    }
}

impl Scheme for PantherScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: "panther",
            only_by_name: Some("low rank of the same width loses less: it is a form to be trained"),
            is_storage: false,
            examples: &[
                "rank = 8, terms = 2, copy = \"unbiased\", seed = 7",
                "rank = 8, terms = 2, copy = \"unbiased\", seed = 7",
                "rank = 8, terms = 1, two-sided = true, copy = \"unbiased\", seed = 7",
            ],
            check: |settings| read(settings).map(drop),
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        layers(g).iter().map(|layer| layer.site(g, self.facts().name)).collect()
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        FittedPanther::new(g, site, 0).offered(settings).map(drop)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Ok(Box::new(FittedPanther::new(context.graph, context.site, context.seed)))
    }

    /// Nothing that could be refitted by itself: beside each trained factor there is a random one.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

fn read(settings: &Settings) -> Result<PantherSettings, String> {
    let read: PantherSettings = settings.read()?;
    if read.terms == 0 {
        return Err("0 terms, expected at least 1".to_owned());
    }
    Ok(read)
}

/// A layer with its random streams.
struct FittedPanther {
    seed: u64,
    /// The first of four streams.
    stream: u64,
    /// What identifies the weight.
    source: String,
    /// Rows and columns of the weight as a matrix; of a kernel, those of one group.
    d_in: usize,
    d_out: usize,
    /// That of the graph of the fit; `None` for a product.
    kernel: Option<Kernel>,
}

/// The streams of a layer, counted from its first.
#[derive(Clone, Copy)]
enum Stream {
    OutputSigns,
    InputSigns,
    Left,
    Right,
}

/// The first of four streams of a layer: that of its name on top of two bits.
fn first_stream(name: &str) -> u64 {
    stream_of(name) << 2
}

impl FittedPanther {
    fn new(g: &Graph, site: &Site, seed: u64) -> FittedPanther {
        let weight = g.constant(site.weights[0]).expect("the weight of a site is a constant");
        let layer = Layer::of(g, site);
        FittedPanther {
            seed,
            stream: first_stream(&site.name),
            source: weight.key().to_string(),
            d_in: site.d_in,
            d_out: layer.outputs(),
            kernel: layer.kernel().cloned(),
        }
    }

    /// The settings, if they make fewer numbers than the weight has: two products together are
    /// `2 terms · rank · (d_in + d_out)`, and the four convolutions of both sides
    /// `terms · rank · (d_in + d_out + channels + taps · d_out)`, for each group.
    fn offered(&self, settings: &Settings) -> Result<PantherSettings, String> {
        let read = read(settings)?;
        let each = match &self.kernel {
            Some(kernel) if read.two_sided => {
                self.d_in + self.d_out + kernel.channels + kernel.taps() * self.d_out
            }
            _ => 2 * (self.d_in + self.d_out),
        };
        let each = read.terms.saturating_mul(each);
        let most = (self.d_in * self.d_out).saturating_sub(1) / each;
        check_rank(read.rank, most)?;
        Ok(read)
    }

    fn draw(&self, stream: Stream, kind: DrawKind, size: f64) -> Draw {
        Draw { seed: self.seed, stream: self.stream + stream as u64, kind, size: size as f32 }
    }

    fn signs(&self, stream: Stream, s: &PantherSettings) -> Draw {
        self.draw(stream, DrawKind::Sign, panther::sign_size(s.terms, s.rank))
    }

    /// A trained factor: computed from the weight, or drawn where there is no weight to start from. The bound of the
    /// uniform numbers is `√(2L / d_in)`: an entry of the whole weight is a sum of `2Lk` products with signs of size
    /// `1 / (2L√k)`.
    fn trained(
        &self,
        work: &mut Replacement<'_>,
        s: &PantherSettings,
        (weight, stream, part): (Value, Stream, Part),
        (shape, values): (&[usize], Option<Vec<f32>>),
    ) -> Result<Value, ApplyError> {
        let origin = origin(work, weight, part);
        if s.start == Start::Random {
            let bound = (2.0 * s.terms as f64 / self.d_in as f64).sqrt();
            return Ok(work.random(self.draw(stream, DrawKind::Uniform, bound), shape, origin)?);
        }
        let sides = if s.two_sided && self.kernel.is_some() { ", two-sided" } else { "" };
        let name = format!(
            "panther.{}({}, k = {}, terms = {}{sides}, copy = {}, seed = {}, stream = {})",
            part.name(),
            self.source,
            s.rank,
            s.terms,
            s.start.name(),
            self.seed,
            self.stream
        );
        Ok(work.constant(&name, shape, values, origin)?)
    }

    /// The two matrices of a product, each of a trained and a random half.
    fn linear(
        &self,
        work: &mut Replacement<'_>,
        layer: &Layer,
        s: &PantherSettings,
    ) -> Result<[Value; 2], ApplyError> {
        let half = s.terms * s.rank;
        let (outputs, inputs) = (self.signs(Stream::OutputSigns, s), self.signs(Stream::InputSigns, s));
        let (left_shape, right_shape) = ([self.d_in, half], [half, self.d_out]);
        let factors = work.computed(|| {
            let (u1, u2) = (drawn(outputs, right_shape)?, drawn(inputs, left_shape)?);
            let weight = || layer.matrix(work.graph);
            Ok::<_, RandnlaError>(match s.start {
                Start::Random => None,
                Start::Unbiased => Some(panther::unbiased(&weight()?, &u1, &u2, s.terms)?),
                Start::LeastSquares => Some(panther::least_squares(&weight()?, &u1, &u2)?),
            })
        })?;
        let factors = factors.flatten();
        let weight = layer.weight;
        let parts = [Part::Left, Part::Random, Part::Right];
        let [left_origin, random, right_origin] = parts.map(|part| origin(work, weight, part));
        let left = factors.as_ref().map(|f| f.left.to_row_major());
        let left = self.trained(work, s, (weight, Stream::Left, Part::Left), (&left_shape, left))?;
        let inputs = work.random(inputs, &left_shape, random.clone())?;
        let left = work.add(Concat { axis: 1 }, &[left, inputs], left_origin)?;
        let outputs = work.random(outputs, &right_shape, random)?;
        let right = factors.as_ref().map(|f| f.right.to_row_major());
        let right = self.trained(work, s, (weight, Stream::Right, Part::Right), (&right_shape, right))?;
        Ok([left, work.add(Concat { axis: 0 }, &[outputs, right], right_origin)?])
    }

    /// The two kernels of a convolution: a trained one, and the random one that has one tap.
    fn outputs(
        &self,
        work: &mut Replacement<'_>,
        (layer, kernel): (&Layer, &Kernel),
        s: &PantherSettings,
    ) -> Result<[Value; 2], ApplyError> {
        let width = 2 * s.terms * s.rank;
        let signs = self.signs(Stream::OutputSigns, s);
        let values = work.computed(|| {
            let of = |(w, u): (Matrix, Matrix)| match s.start {
                Start::Random => Ok(None),
                Start::Unbiased => panther::unbiased_outputs(&w, &u, s.terms).map(Some),
                Start::LeastSquares => panther::least_squares_outputs(&w, &u).map(Some),
            };
            let us = by_group(kernel, drawn(signs, [kernel.groups * self.d_out, width])?);
            let factors = matrices(work.graph, layer)?.into_iter().zip(us).map(of);
            // By group, width and tap.
            let factors: Option<Vec<Matrix>> = factors.collect::<Result<_, RandnlaError>>()?;
            Ok::<_, RandnlaError>(
                factors.map(|all| all.iter().flat_map(|f| f.transposed().to_row_major()).collect()),
            )
        })?;
        let weight = layer.weight;
        let left_shape = kernel.of_outputs(width);
        let left = (weight, Stream::Left, Part::Left);
        let left = self.trained(work, s, left, (&left_shape, values.flatten()))?;
        let random = origin(work, weight, Part::Random);
        Ok([left, work.random(signs, &kernel.pointwise([width, self.d_out]), random)?])
    }

    /// The four kernels of a convolution on both sides: a trained one and the signs behind it, and the signs in front of a
    /// trained one. Signs have one tap.
    fn both_sides(
        &self,
        work: &mut Replacement<'_>,
        (layer, kernel): (&Layer, &Kernel),
        s: &PantherSettings,
    ) -> Result<[Value; 4], ApplyError> {
        let half = s.terms * s.rank;
        let (outputs, inputs) = (self.signs(Stream::OutputSigns, s), self.signs(Stream::InputSigns, s));
        let (taps, d_out, channels) = (kernel.taps(), self.d_out, kernel.channels);
        let factors = work.computed(|| {
            let u1 = by_group(kernel, drawn(outputs, [kernel.groups * d_out, half])?);
            let u2 = drawn(inputs, [kernel.groups * half, channels])?;
            // Rows are taps and outputs, columns are channels.
            let by_channel = |w: &Matrix| {
                Matrix::from_fn(taps * d_out, channels, |r, c| w.at(c * taps + r / d_out, r % d_out))
            };
            let (mut left, mut right) = (Vec::new(), Vec::new());
            for (group, (w, u1)) in matrices(work.graph, layer)?.into_iter().zip(u1).enumerate() {
                let u2 = Matrix::from_fn(half, channels, |i, c| u2.at(group * half + i, c));
                let (s1, s2) = match s.start {
                    Start::Random => return Ok(None),
                    Start::Unbiased => {
                        let s2 = panther::unbiased_outputs(&by_channel(&w), &u2, s.terms)?;
                        (panther::unbiased_outputs(&w, &u1, s.terms)?, s2)
                    }
                    Start::LeastSquares => {
                        let s1 = panther::least_squares_outputs(&w, &u1)?;
                        let covered = s1.product(&u1)?;
                        let rest =
                            Matrix::from_fn(w.rows(), w.columns(), |i, j| w.at(i, j) - covered.at(i, j));
                        (s1, panther::least_squares_outputs(&by_channel(&rest), &u2)?)
                    }
                };
                left.extend(s1.transposed().to_row_major());
                let at = |i: usize| s2.at(i % taps * d_out + i / taps / half, i / taps % half) as f32;
                right.extend((0..d_out * half * taps).map(at));
            }
            Ok::<_, RandnlaError>(Some((left, right)))
        })?;
        let (left, right) = factors.flatten().unzip();
        let weight = layer.weight;
        let shapes = [kernel.of_outputs(half), kernel.of_channels(half)];
        let left = self.trained(work, s, (weight, Stream::Left, Part::Left), (&shapes[0], left))?;
        let right = self.trained(work, s, (weight, Stream::Right, Part::Right), (&shapes[1], right))?;
        let random = origin(work, weight, Part::Random);
        let outputs = work.random(outputs, &kernel.pointwise([half, d_out]), random.clone())?;
        let inputs = work.random(inputs, &kernel.pointwise([channels, half]), random)?;
        Ok([left, outputs, inputs, right])
    }

    /// The sketch of a kernel in place of each of the convolutions.
    fn convolve(
        &self,
        work: &mut Replacement<'_>,
        kernel: (&Layer, &Kernel),
        s: &PantherSettings,
    ) -> Result<(), ApplyError> {
        let g = work.graph;
        let convolution = |work: &mut Replacement<'_>, n: NodeId, operands: [Value; 2], part| {
            work.add(g.op(n).clone(), &operands, g.node(n).origin.part(part))
        };
        if !s.two_sided {
            let [left, outputs] = self.outputs(work, kernel, s)?;
            for &n in &kernel.0.nodes {
                let x = work.input(n);
                let thin = convolution(work, n, [x, left], Part::Left)?;
                let result = add_pointwise(work, n, [thin, outputs], Part::Right)?;
                work.replace(n.into(), result);
            }
            return Ok(());
        }
        let [left, outputs, inputs, right] = self.both_sides(work, kernel, s)?;
        for &n in &kernel.0.nodes {
            let x = work.input(n);
            let thin = convolution(work, n, [x, left], Part::Left)?;
            let of_outputs = add_pointwise(work, n, [thin, outputs], Part::Term)?;
            let thin = add_pointwise(work, n, [x, inputs], Part::Left)?;
            let of_inputs = convolution(work, n, [thin, right], Part::Term)?;
            let sum = work.add(Add, &[of_outputs, of_inputs], g.node(n).origin.part(Part::Right))?;
            work.replace(n.into(), sum);
        }
        Ok(())
    }
}

/// The origin of a factor of a weight.
fn origin(work: &Replacement<'_>, weight: Value, part: Part) -> Origin {
    work.graph.node(weight.node).origin.part(part)
}

/// Signs `[groups · outputs, width]` as one `[width, outputs]` for each group.
fn by_group(kernel: &Kernel, signs: Matrix) -> Vec<Matrix> {
    let outputs = kernel.outputs;
    let of = |group| Matrix::from_fn(signs.columns(), outputs, |i, j| signs.at(group * outputs + j, i));
    (0..kernel.groups).map(of).collect()
}

/// Random numbers as a matrix.
fn drawn(draw: Draw, shape: [usize; 2]) -> Result<Matrix, RandnlaError> {
    let values = Payload::random(draw, &shape).tensor().to_vec::<f32>().expect("drawn numbers are f32");
    Matrix::from_row_major(shape[0], shape[1], &values)
}

impl Fitted for FittedPanther {
    /// The expectation over the signs for white inputs, relative to the weight's norm.
    fn squared_error(&self, settings: &Settings) -> Result<f64, String> {
        let s = self.offered(settings)?;
        let width = 2.0 * (s.terms * s.rank) as f64;
        let d_out = self.d_out as f64;
        // What is sketched beside the outputs.
        let other = match &self.kernel {
            None => Some(self.d_in as f64),
            Some(kernel) => s.two_sided.then_some(kernel.channels as f64),
        };
        Ok(match (s.start, other) {
            (Start::LeastSquares, Some(d_in)) => (1.0 - 0.5 * width / d_in) * (1.0 - 0.5 * width / d_out),
            (Start::LeastSquares, None) => 1.0 - width / d_out,
            (Start::Unbiased, Some(d_in)) => (d_in + d_out - 2.0) / (2.0 * width),
            (Start::Unbiased, None) => (d_out - 1.0) / width,
            // Nothing of the weight is left, and as much noise put in its place.
            (Start::Random, _) => 2.0,
        })
    }

    fn replace(
        &self,
        work: &mut Replacement<'_>,
        site: &Site,
        settings: &Settings,
    ) -> Result<(), ApplyError> {
        let settings = self.offered(settings).map_err(ApplyError::Settings)?;
        // The graph may be another one than that of the fit.
        let layer = Layer::of(work.graph, site);
        if let Some(kernel) = layer.kernel() {
            return self.convolve(work, (&layer, kernel), &settings);
        }
        let factors = self.linear(work, &layer, &settings)?;
        for &n in &layer.nodes {
            let product = layer.two_products(work, n, factors)?;
            work.replace(n.into(), product);
        }
        Ok(())
    }
}
