//! Sketches with random signs that stay, for training (Panther, arXiv 2601.15473; Kasiviswanathan et al., arXiv
//! 1711.07553): `x W` becomes `x (S₁ U₁ + U₂ S₂)`, two products of width `2 terms · rank`, and a convolution becomes
//! one with so many filters, then a 1x1 convolution with random signs alone.
//!
//! `U` are random signs, named by seed and stream, with the division by the number of sketches in their size (see
//! [`margay_randnla::panther`]). `S` is what training moves: constants with the part `left` or `right`, while those of
//! `U` have the part `random`. Both lie side by side through `concat`, which `fold-constants` removes where nothing is
//! trained. Streams follow from the module's name, so that trained factors find their signs again.
//!
//! The errors of [`points`](super::Fitted::points) are expectations over the signs for white inputs. No allocator
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
//! Deliberately absent: calibration, and the second sketch of convolutions over input channels.

use margay_ir::ops::{Concat, Const, Conv};
use margay_ir::{AddError, Draw, DrawKind, Graph, Op, Origin, Part, Patch, Payload, Value};
use margay_loops::KernelCall;
use margay_plan::CopyMode;
use margay_randnla::{Matrix, RandnlaError, panther};
use margay_tensor::Tensor;
use margay_tensor::random::stream_of;

use super::{ApplyError, Fitted, InputStatistics, Module, ModuleKind, Point, Scheme, two_calls, weight_of};

/// Random signs and trained factors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PantherScheme {
    /// Sketches that are averaged: `L` on either side of a weight, `2L` of a kernel.
    pub terms: usize,
    /// What the trained factors are at first.
    pub start: Start,
}

/// What trained factors are at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// The factors with the least error for the signs.
    LeastSquares,
    /// The factors with which the expectation over the signs is the weight.
    Unbiased,
    /// Uniform numbers, as for a model that was never trained: the variance of the whole weight's entries is
    /// `1 / (3 d_in)`, that of He's initialization with a slope of √5 by the number of inputs.
    Random,
}

impl Start {
    /// The start that copies a weight in this way.
    pub fn of(copy: CopyMode) -> Start {
        match copy {
            CopyMode::LeastSquares => Start::LeastSquares,
            CopyMode::Unbiased => Start::Unbiased,
        }
    }

    /// The word used in names of constants.
    fn name(self) -> &'static str {
        match self {
            Start::LeastSquares => "least-squares",
            Start::Unbiased => "unbiased",
            Start::Random => "random",
        }
    }
}

impl PantherScheme {
    /// One term, copied with the least error.
    pub const DEFAULT: PantherScheme = PantherScheme { terms: 1, start: Start::LeastSquares };
}

impl Scheme for PantherScheme {
    fn name(&self) -> &'static str {
        "panther"
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
        _: Option<&InputStatistics>,
        seed: u64,
    ) -> Result<Box<dyn Fitted>, RandnlaError> {
        let payload = g.constant(module.weight).expect("the weight of a module is a constant");
        Ok(Box::new(FittedPanther {
            scheme: *self,
            seed,
            stream: first_stream(&module.name),
            source: payload.key().to_string(),
            kind: module.kind,
            d_in: module.d_in,
            d_out: module.d_out,
        }))
    }
}

struct FittedPanther {
    scheme: PantherScheme,
    seed: u64,
    /// The first of the module's streams.
    stream: u64,
    /// What identifies the weight.
    source: String,
    kind: ModuleKind,
    d_in: usize,
    d_out: usize,
}

/// The streams of a module, counted from its first.
#[derive(Clone, Copy)]
enum Stream {
    OutputSigns,
    InputSigns,
    Left,
    Right,
}

/// The first of four streams of a module: that of its name on top of two bits.
fn first_stream(name: &str) -> u64 {
    stream_of(name) << 2
}

impl FittedPanther {
    /// Columns between the two products.
    fn width(&self, rank: usize) -> Option<usize> {
        self.scheme.terms.checked_mul(2)?.checked_mul(rank)
    }

    /// Numbers of both products, if they are fewer than those of the weight.
    fn numbers(&self, rank: usize) -> Option<usize> {
        let numbers = self.width(rank)?.checked_mul(self.d_in + self.d_out)?;
        (numbers < self.d_in * self.d_out).then_some(numbers)
    }

    /// The expected squared error for white inputs, relative to the weight's norm.
    fn relative_error(&self, rank: usize) -> f64 {
        let [d_in, d_out, width] = [self.d_in, self.d_out, 2 * self.scheme.terms * rank].map(|n| n as f64);
        match (self.scheme.start, self.kind) {
            (Start::LeastSquares, ModuleKind::Linear) => {
                (1.0 - 0.5 * width / d_in) * (1.0 - 0.5 * width / d_out)
            }
            (Start::LeastSquares, ModuleKind::Conv) => 1.0 - width / d_out,
            (Start::Unbiased, ModuleKind::Linear) => (d_in + d_out - 2.0) / (2.0 * width),
            (Start::Unbiased, ModuleKind::Conv) => (d_out - 1.0) / width,
            // Nothing of the weight is left, and as much noise put in its place.
            (Start::Random, _) => 2.0,
        }
    }

    fn draw(&self, stream: Stream, kind: DrawKind, size: f64) -> Draw {
        Draw { seed: self.seed, stream: self.stream + stream as u64, kind, size: size as f32 }
    }

    fn signs(&self, stream: Stream, rank: usize, rows: usize, columns: usize) -> Payload {
        let size = panther::sign_size(self.scheme.terms, rank);
        Payload::random(self.draw(stream, DrawKind::Sign, size), &[rows, columns])
    }

    /// A trained factor that was computed from the weight.
    fn copied(&self, part: &str, rank: usize, shape: &[usize], data: &[f32]) -> Payload {
        let PantherScheme { terms, start } = self.scheme;
        let name = format!(
            "panther.{part}({}, k = {rank}, terms = {terms}, copy = {}, seed = {}, stream = {})",
            self.source,
            start.name(),
            self.seed,
            self.stream
        );
        let tensor = Tensor::from_slice(shape, data).expect("factors have as many numbers as their shapes");
        Payload::derived(&name, tensor)
    }

    /// A trained factor without a weight to start from. The bound of the uniform numbers is `√(2L / d_in)`: an entry of
    /// the whole weight is a sum of `2Lk` products with signs of size `1 / (2L√k)`.
    fn drawn(&self, stream: Stream, shape: &[usize]) -> Payload {
        let bound = (2.0 * self.scheme.terms as f64 / self.d_in as f64).sqrt();
        Payload::random(self.draw(stream, DrawKind::Uniform, bound), shape)
    }

    /// The two matrices of a linear module, each of a trained and a random half.
    fn linear(&self, work: &mut Replacement<'_>, rank: usize) -> Result<[Value; 2], ApplyError> {
        let (terms, half) = (self.scheme.terms, self.scheme.terms * rank);
        let outputs = self.signs(Stream::OutputSigns, rank, half, self.d_out);
        let inputs = self.signs(Stream::InputSigns, rank, self.d_in, half);
        let (left_shape, right_shape) = ([self.d_in, half], [half, self.d_out]);
        let factors = match self.scheme.start {
            Start::Random => None,
            Start::Unbiased => {
                let weight = weight_of(work.g, work.module)?;
                Some(panther::unbiased(&weight, &matrix(&outputs)?, &matrix(&inputs)?, terms)?)
            }
            Start::LeastSquares => {
                let weight = weight_of(work.g, work.module)?;
                Some(panther::least_squares(&weight, &matrix(&outputs)?, &matrix(&inputs)?)?)
            }
        };
        let (left, right) = match factors {
            Some(f) => (
                self.copied("left", rank, &left_shape, &f.left.to_row_major()),
                self.copied("right", rank, &right_shape, &f.right.to_row_major()),
            ),
            None => (self.drawn(Stream::Left, &left_shape), self.drawn(Stream::Right, &right_shape)),
        };
        let (left, inputs) = (work.constant(Part::Left, left)?, work.constant(Part::Random, inputs)?);
        let left = work.joined(1, &[left, inputs], Part::Left)?;
        let (outputs, right) = (work.constant(Part::Random, outputs)?, work.constant(Part::Right, right)?);
        Ok([left, work.joined(0, &[outputs, right], Part::Right)?])
    }

    /// The two kernels of a convolution: a trained one, and the random one that is 1x1.
    fn conv(&self, work: &mut Replacement<'_>, rank: usize) -> Result<[Value; 2], ApplyError> {
        let (terms, width) = (self.scheme.terms, 2 * self.scheme.terms * rank);
        let signs = self.signs(Stream::OutputSigns, rank, self.d_out, width);
        let kernel = work.g.ty(work.module.weight).extents().unwrap_or_default();
        let shape = [width, kernel[1], kernel[2], kernel[3]];
        let factor = match self.scheme.start {
            Start::Random => None,
            Start::Unbiased => {
                let (weight, u) = (weight_of(work.g, work.module)?, matrix(&signs)?.transposed());
                Some(panther::unbiased_outputs(&weight, &u, terms)?)
            }
            Start::LeastSquares => {
                let (weight, u) = (weight_of(work.g, work.module)?, matrix(&signs)?.transposed());
                Some(panther::least_squares_outputs(&weight, &u)?)
            }
        };
        let left = match factor {
            Some(s) => self.copied("left", rank, &shape, &s.transposed().to_row_major()),
            None => self.drawn(Stream::Left, &shape),
        };
        let left = work.constant(Part::Left, left)?;
        let draw = signs.draw().expect("signs are drawn");
        let signs = Payload::random(draw, &[self.d_out, width, 1, 1]);
        Ok([left, work.constant(Part::Random, signs)?])
    }
}

fn matrix(payload: &Payload) -> Result<Matrix, RandnlaError> {
    let values = payload.tensor().to_vec::<f32>().expect("signs are f32");
    Matrix::from_row_major(payload.tensor().shape()[0], payload.tensor().shape()[1], &values)
}

/// A patch in the making for one module.
struct Replacement<'a> {
    g: &'a Graph,
    module: &'a Module,
    patch: Patch,
}

impl Replacement<'_> {
    fn weight_origin(&self) -> &Origin {
        &self.g.node(self.module.weight.node).origin
    }

    fn constant(&mut self, part: Part, payload: Payload) -> Result<Value, AddError> {
        let origin = self.weight_origin().part(part);
        self.patch.add(self.g, Const { payload }, &[], origin)
    }

    fn joined(&mut self, axis: usize, parts: &[Value], part: Part) -> Result<Value, AddError> {
        let origin = self.weight_origin().part(part);
        self.patch.add(self.g, Concat { axis }, parts, origin)
    }
}

impl Fitted for FittedPanther {
    fn points(&self) -> Vec<Point> {
        (1..)
            .map_while(|rank| self.numbers(rank).map(|numbers| (rank, numbers)))
            .map(|(rank, numbers)| Point {
                rank,
                relative_error: self.relative_error(rank),
                bytes: (numbers * 4) as u64,
            })
            .collect()
    }

    fn calls(&self, dense: &KernelCall, rank: usize) -> Vec<KernelCall> {
        two_calls(dense, 2 * self.scheme.terms * rank)
    }

    fn only_by_name(&self) -> Option<&'static str> {
        Some(match self.scheme.start {
            Start::LeastSquares => "low rank of the same width loses less",
            Start::Unbiased => "the error of the copy is larger than the weight: it is a start for training",
            Start::Random => "nothing of the weight is kept: it is a start for training",
        })
    }

    fn apply(&self, g: &Graph, module: &Module, rank: usize) -> Result<Patch, ApplyError> {
        let offered = self.points().len();
        if rank == 0 || rank > offered {
            return Err(RandnlaError::Rank { max: offered, found: rank }.into());
        }
        let mut work = Replacement { g, module, patch: Patch::new() };
        let [left, right] = match self.kind {
            ModuleKind::Linear => self.linear(&mut work, rank)?,
            ModuleKind::Conv => self.conv(&mut work, rank)?,
        };
        // Uses of one weight may follow one another.
        let mut done = std::collections::HashMap::new();
        for &n in &module.nodes {
            let x = g.inputs_of(n)[0];
            let x = done.get(&x).copied().unwrap_or(x);
            let origin = |part| g.node(n).origin.part(part);
            let thin = work.patch.add(g, g.op(n).clone(), &[x, left], origin(Part::Left))?;
            let second: Op = match g.op(n) {
                Op::Conv(c) => Conv { layout: c.layout, ..Conv::pointwise() }.into(),
                op => op.clone(),
            };
            let product = work.patch.add(g, second, &[thin, right], origin(Part::Right))?;
            work.patch.redirect(n.into(), product);
            done.insert(Value::from(n), product);
        }
        Ok(work.patch)
    }
}
