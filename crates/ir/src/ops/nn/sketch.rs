//! A random matrix that nobody stores, times the vectors along the last axis: `y = S x` for each of them, or `y = Sᵀ x` for the
//! `adjoint`, the derivative of the other.
//!
//! `S`, of `rows x columns`, is named by its law, shape, seed and stream, as sketches of `margay-randnla` are, with the same entries.
//! It is scaled so that `E Sᵀ S = I`: squared norms are kept on average. The operand is `[…, columns]` and the result `[…, rows]`,
//! or the other way round for the adjoint.
//!
//! | law | entries | stored for a product | operations for a vector |
//! |---|---|---|---|
//! | `gaussian`, `uniform` | independent, of variance `1 / rows` | all | `2 rows columns` |
//! | `rademacher` | `±1 / √rows` | none, where a back end makes signs as it multiplies | `2 rows columns` |
//! | `sjlt(k)` | k of `±1 / √k` in each column, in different rows (Kane and Nelson, JACM 2014; `sjlt(1)` is the CountSketch) | places and signs of the entries | about `2 k columns` |
//! | `srht` | `√(1 / rows) R H D`: signs D, the Walsh–Hadamard matrix H of the next power of two, rows R of it (Ailon and Chazelle 2009; Tropp 2011) | `columns` signs, `rows` places | `n log₂ n` of n = that power |
//!
//! Back ends run what [`Sketch::spelled`] makes of it.

use margay_tensor::random::Philox;
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::{Attribute, attributes};
use crate::ops::elementwise::Numbers;
use crate::ops::{
    Case, Const, Conv, Cost, EvalError, Facts, Gather, Hadamard, Io, Lowered, MatMul, NotLowered, OpDef, Pad,
    Reduce, ReduceKind, Reshape, Slice,
};
use crate::padding::{Along, Padded, Padding};
use crate::payload::{Draw, DrawKind};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Builder, Op, Payload, TensorType, TypeError, Types, Value, types};

/// How the entries of a sketch are distributed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SketchLaw {
    /// Normal.
    Gaussian,
    /// Uniform about 0.
    Uniform,
    /// Signs.
    Rademacher,
    /// So many signs in each column, in different rows.
    Sjlt(usize),
    /// Rows of a Walsh–Hadamard matrix with random signs of its columns.
    Srht,
}

impl Attribute for SketchLaw {
    fn write(&self) -> String {
        match self {
            SketchLaw::Gaussian => "gaussian".to_owned(),
            SketchLaw::Uniform => "uniform".to_owned(),
            SketchLaw::Rademacher => "rademacher".to_owned(),
            SketchLaw::Sjlt(nonzeros) => format!("sjlt({nonzeros})"),
            SketchLaw::Srht => "srht".to_owned(),
        }
    }

    fn read(text: &str) -> Result<Self, String> {
        let nonzeros = || text.strip_prefix("sjlt(")?.strip_suffix(')')?.parse().ok();
        match text {
            "gaussian" => Ok(SketchLaw::Gaussian),
            "uniform" => Ok(SketchLaw::Uniform),
            "rademacher" => Ok(SketchLaw::Rademacher),
            "srht" => Ok(SketchLaw::Srht),
            _ => nonzeros().map(SketchLaw::Sjlt).ok_or_else(|| {
                format!("`{text}` is none of `gaussian`, `uniform`, `rademacher`, `sjlt(4)` and `srht`")
            }),
        }
    }

    fn bind(&self, _: &margay_tensor::Binding) -> Self {
        *self
    }
}

/// A product with a random matrix.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sketch {
    /// How the entries are distributed.
    pub law: SketchLaw,
    /// Rows of the matrix.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// The seed.
    pub seed: u64,
    /// The stream.
    pub stream: u64,
    /// Whether it is transposed.
    pub adjoint: bool,
}

attributes!(Sketch { law, rows, columns, seed = 0, stream = 0, adjoint = false });

/// Most numbers that a product with a sketch may need: entries of dense and sparse ones, a vector of structured ones.
const MOST_NUMBERS: usize = 1 << 26;

impl Sketch {
    /// Extents of the last axis before and behind it.
    fn lengths(&self) -> [usize; 2] {
        if self.adjoint { [self.rows, self.columns] } else { [self.columns, self.rows] }
    }

    fn philox(&self) -> Philox {
        Philox::new(self.seed, self.stream)
    }

    /// What is wrong with the attributes.
    fn check(&self) -> Result<(), TypeError> {
        let Sketch { rows, columns, .. } = *self;
        let wrong = |why: String| Err(TypeError::attribute(why));
        if rows == 0 || columns == 0 {
            return wrong(format!("a sketch of {rows} rows and {columns} columns, expected at least 1"));
        }
        let numbers = match self.law {
            SketchLaw::Sjlt(nonzeros) if nonzeros == 0 || nonzeros > rows => {
                return wrong(format!("{nonzeros} entries in a column of {rows} rows, expected 1 to {rows}"));
            }
            // Lists of as many positions as the longest, one for each element of the result.
            SketchLaw::Sjlt(nonzeros) => nonzeros.checked_mul(columns.max(rows)),
            SketchLaw::Srht => {
                let most = columns.checked_next_power_of_two();
                if most.is_some_and(|most| rows > most) {
                    return wrong(format!("{rows} rows of a Hadamard matrix for {columns} columns"));
                }
                most
            }
            SketchLaw::Gaussian | SketchLaw::Uniform | SketchLaw::Rademacher => rows.checked_mul(columns),
        };
        match numbers.filter(|n| *n <= MOST_NUMBERS) {
            Some(_) => Ok(()),
            None => {
                wrong(format!("a sketch of {rows} x {columns}, over the limit of {MOST_NUMBERS} numbers"))
            }
        }
    }

    /// All entries of a dense law in row-major order, as numbers of a type.
    fn dense(&self, dtype: DType) -> Vec<f64> {
        let (philox, scale) = (self.philox(), 1.0 / (self.rows as f64).sqrt());
        let count = self.rows * self.columns;
        if self.law == SketchLaw::Rademacher {
            let mut signs = vec![0f64; count];
            philox.fill_signs(0, &mut signs);
            let scale = if dtype == DType::F64 { scale } else { f64::from(scale as f32) };
            return signs.into_iter().map(|sign| sign * scale).collect();
        }
        let uniform = self.law == SketchLaw::Uniform;
        if dtype == DType::F64 {
            let mut numbers = vec![0f64; count];
            if uniform {
                philox.fill_uniform_f64(0, &mut numbers);
                numbers.iter_mut().for_each(|u| *u = 3f64.sqrt() * (2.0 * *u - 1.0));
            } else {
                philox.fill_normal_f64(0, &mut numbers);
            }
            return numbers.into_iter().map(|x| x * scale).collect();
        }
        let mut numbers = vec![0f32; count];
        if uniform {
            philox.fill_uniform_f32(0, &mut numbers);
            numbers.iter_mut().for_each(|u| *u = 3f64.sqrt() as f32 * (2.0 * *u - 1.0));
        } else {
            philox.fill_normal_f32(0, &mut numbers);
        }
        numbers.into_iter().map(|x| f64::from(x * scale as f32)).collect()
    }

    /// By element of the result, which elements of the operand it is a sum of, with their signs: of a sparse law.
    fn terms(&self, nonzeros: usize) -> Vec<Vec<(usize, f64)>> {
        let (philox, mut column) = (self.philox(), vec![(0, 0.0); nonzeros]);
        let mut terms = vec![Vec::new(); self.lengths()[1]];
        for j in 0..self.columns {
            philox.draw_set(j, self.rows, &mut column);
            for &(i, sign) in &column {
                let (to, from) = if self.adjoint { (j, i) } else { (i, j) };
                terms[to].push((from, sign));
            }
        }
        terms
    }

    /// The signs of the columns and the rows of a Hadamard matrix of an SRHT.
    fn hadamard(&self) -> (Vec<f64>, Vec<usize>) {
        let mut signs = vec![0f64; self.columns];
        self.philox().fill_signs(128 * Philox::SECOND, &mut signs);
        (signs, self.philox().draw_order(self.columns.next_power_of_two(), 0..self.rows))
    }

    /// Ordinary operators that compute it.
    ///
    /// # Errors
    /// None for an operand that the operator takes.
    pub fn spelled(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, AddError> {
        match self.law {
            SketchLaw::Gaussian | SketchLaw::Uniform | SketchLaw::Rademacher => self.spelled_dense(b, x),
            SketchLaw::Sjlt(nonzeros) => self.spelled_sparse(b, x, nonzeros),
            SketchLaw::Srht => self.spelled_hadamard(b, x),
        }
    }

    /// A product with a constant. Signs that are read transposed are the kernel of a convolution of one tap.
    fn spelled_dense(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, AddError> {
        let (dtype, shape) = (b.ty(x).dtype, b.ty(x).shape.clone());
        let Sketch { rows, columns, seed, stream, .. } = *self;
        let is_sign = self.law == SketchLaw::Rademacher && dtype == DType::F32;
        if is_sign {
            let size = (1.0 / (rows as f64).sqrt()) as f32;
            let draw = Draw { seed, stream, kind: DrawKind::Sign, size };
            if self.adjoint {
                let payload = Payload::random(draw, &[rows, columns]);
                let s = b.op(Const { payload }, &[])?;
                return b.op(MatMul, &[x, s]);
            }
            let payload = Payload::random(draw, &[rows, columns, 1, 1]);
            let s = b.op(Const { payload }, &[])?;
            let outer = &shape[..shape.len() - 1];
            let count = outer.iter().fold(Dim::from(1usize), |all, d| &all * d);
            let one = || Dim::from(1usize);
            let images = vec![count, Dim::from(columns), one(), one()];
            let images = b.op(Reshape { shape: images }, &[x])?;
            let y = b.op(Conv::pointwise(), &[images, s])?;
            return b.op(Reshape { shape: [outer, &[Dim::from(rows)]].concat() }, &[y]);
        }
        let entries = self.dense(dtype);
        let (extents, entries) = match self.adjoint {
            true => ([rows, columns], entries),
            false => {
                let transposed = (0..columns).flat_map(|j| (0..rows).map(move |i| (i, j)));
                ([columns, rows], transposed.map(|(i, j)| entries[i * columns + j]).collect())
            }
        };
        let payload = Payload::derived(&self.name("entries"), numbers(dtype, &extents, entries));
        let s = b.op(Const { payload }, &[])?;
        b.op(MatMul, &[x, s])
    }

    /// Sums of elements that are looked up, as many for each element of the result: 0 times the first for those that are missing.
    fn spelled_sparse(&self, b: &mut Builder<'_>, x: Value, nonzeros: usize) -> Result<Value, AddError> {
        let (dtype, terms) = (b.ty(x).dtype, self.terms(nonzeros));
        let axis = b.ty(x).ndim() - 1;
        let (count, most) = (terms.len(), terms.iter().map(Vec::len).max().unwrap_or(0).max(1));
        let scale = 1.0 / (nonzeros as f64).sqrt();
        let padded = |list: &Vec<(usize, f64)>| {
            let missing = most - list.len();
            list.iter().copied().chain(std::iter::repeat_n((0, 0.0), missing)).collect::<Vec<_>>()
        };
        let all: Vec<(usize, f64)> = terms.iter().flat_map(padded).collect();
        let places: Vec<i64> = all.iter().map(|(place, _)| *place as i64).collect();
        let places = Tensor::from_slice(&[count, most], &places).expect("as many places as terms");
        let places = Payload::derived(&self.name("places"), places);
        let signs = numbers(dtype, &[count, most], all.iter().map(|(_, sign)| sign * scale).collect());
        let signs = Payload::derived(&self.name("signs"), signs);
        let places = b.op(Const { payload: places }, &[])?;
        let signs = b.op(Const { payload: signs }, &[])?;
        let read = b.op(Gather { axis }, &[x, places])?;
        let read = b.mul(read, signs)?;
        b.op(Reduce { kind: ReduceKind::Sum, axes: vec![axis + 1], keepdims: false }, &[read])
    }

    /// Signs, a transform of the next power of two, and rows of it; or rows put among zeros, the transform, and signs.
    fn spelled_hadamard(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, AddError> {
        let (dtype, shape) = (b.ty(x).dtype, b.ty(x).shape.clone());
        let (axis, padded) = (shape.len() - 1, self.columns.next_power_of_two());
        let (signs, rows) = self.hadamard();
        // The transform divides by the root of its length.
        let scale = (padded as f64 / self.rows as f64).sqrt();
        let signs = numbers(dtype, &[self.columns], signs.into_iter().map(|sign| sign * scale).collect());
        let signs = b.op(Const { payload: Payload::derived(&self.name("signs"), signs) }, &[])?;
        let zeros = |count: usize| Pad {
            before: vec![0; axis + 1],
            after: (0..=axis).map(|a| if a == axis { count as i64 } else { 0 }).collect(),
            value: crate::ops::Number::float(0.0),
        };
        let places = |places: Vec<i64>| {
            let places = Tensor::from_slice(&[places.len()], &places).expect("a list");
            Const { payload: Payload::derived(&self.name("places"), places) }
        };
        if self.adjoint {
            // A zero behind the rows stands for all that are not among them.
            let mut from = vec![self.rows as i64; padded];
            rows.iter().enumerate().for_each(|(i, row)| from[*row] = i as i64);
            let places = b.op(places(from), &[])?;
            let x = b.op(zeros(1), &[x])?;
            let x = b.op(Gather { axis }, &[x, places])?;
            let y = b.op(Hadamard, &[x])?;
            let mut ends = shape;
            ends[axis] = Dim::from(self.columns);
            let part = Slice { starts: vec![Dim::default(); axis + 1], ends, steps: vec![1; axis + 1] };
            let y = b.op(part, &[y])?;
            return b.mul(y, signs);
        }
        let x = b.mul(x, signs)?;
        let x = if padded > self.columns { b.op(zeros(padded - self.columns), &[x])? } else { x };
        let y = b.op(Hadamard, &[x])?;
        let places = b.op(places(rows.iter().map(|row| *row as i64).collect()), &[])?;
        b.op(Gather { axis }, &[y, places])
    }

    /// What identifies a constant that it is made of.
    fn name(&self, what: &str) -> String {
        let Sketch { rows, columns, seed, stream, .. } = *self;
        let adjoint = if self.adjoint { ", adjoint" } else { "" };
        format!(
            "sketch.{what}({}, {rows} x {columns}, seed = {seed}, stream = {stream}{adjoint})",
            self.law.write()
        )
    }
}

fn numbers(dtype: DType, shape: &[usize], numbers: Vec<f64>) -> Tensor {
    Numbers::Float(numbers).into_tensor(dtype, shape).expect("as many numbers as the shape holds")
}

impl OpDef for Sketch {
    const NAME: &'static str = "sketch";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        types::expect(0, x, matches!(x.dtype, DType::F32 | DType::F64), "f32 or f64")?;
        self.check()?;
        let [from, to] = self.lengths();
        let Some((last, outer)) = x.shape.split_last() else {
            return Err(TypeError::Ndim { input: 0, expected: "at least 1".into(), found: 0 });
        };
        types::same_extent("the last axis of the operand and the sketch", last, &Dim::from(from))?;
        types::one(x.dtype, [outer, &[Dim::from(to)]].concat())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, [from, to]) = (inputs[0], self.lengths());
        let (dtype, values) = (x.dtype(), Numbers::of(x)?.floats());
        let mut out = Vec::with_capacity(values.len() / from * to);
        if values.is_empty() {
            // No vector asks for an entry.
        } else if let SketchLaw::Sjlt(nonzeros) = self.law {
            let (terms, scale) = (self.terms(nonzeros), 1.0 / (nonzeros as f64).sqrt());
            let scale = if dtype == DType::F64 { scale } else { f64::from(scale as f32) };
            for row in values.chunks_exact(from) {
                out.extend(
                    terms.iter().map(|t| t.iter().map(|(j, sign)| sign * scale * row[*j]).sum::<f64>()),
                );
            }
        } else {
            let (rows, columns) = (self.rows, self.columns);
            let srht = (self.law == SketchLaw::Srht).then(|| self.hadamard());
            let dense = if srht.is_none() { self.dense(dtype) } else { Vec::new() };
            let scale = 1.0 / (rows as f64).sqrt();
            let scale = if dtype == DType::F64 { scale } else { f64::from(scale as f32) };
            let entry = |i: usize, j: usize| match &srht {
                None => dense[i * columns + j],
                Some((signs, places)) if (places[i] & j).count_ones() % 2 == 1 => -signs[j] * scale,
                Some((signs, _)) => signs[j] * scale,
            };
            for row in values.chunks_exact(from) {
                out.extend((0..to).map(|o| {
                    let term =
                        |(t, x): (usize, &f64)| x * if self.adjoint { entry(t, o) } else { entry(o, t) };
                    row.iter().enumerate().map(term).sum::<f64>()
                }));
            }
        }
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("there is a last axis") = to;
        Ok(vec![Numbers::Float(out).into_tensor(dtype, &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let dy = cx.cotangent()?;
        Grad::all([cx.op(Sketch { adjoint: !self.adjoint, ..self.clone() }, &[dy])?])
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Err(NotLowered("a sketch is spelled as other operators for back ends".to_owned()))
    }

    fn cost(&self, io: &Io) -> Cost {
        let [from, _] = self.lengths();
        let vectors = (io.inputs[0].elements() / from.max(1)) as u64;
        let each = match self.law {
            SketchLaw::Sjlt(nonzeros) => 2 * nonzeros as u64 * self.columns as u64,
            SketchLaw::Srht => {
                let n = self.columns.next_power_of_two() as u64;
                n * (u64::from(n.ilog2()) + 1)
            }
            SketchLaw::Gaussian | SketchLaw::Uniform | SketchLaw::Rademacher => {
                2 * self.rows as u64 * self.columns as u64
            }
        };
        Cost { flops: vectors.saturating_mul(each), bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::plain(false)
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        // The last axis stays where it is.
        (perm.last()? + 1 == perm.len()).then(|| self.clone().into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let last = cx.type_of(0).ndim() - 1;
        cx.along(self.clone(), |_, axis| if axis == last { Along::Change } else { Along::Apart })
    }

    fn cases() -> Vec<(Self, Case)> {
        let laws = [
            (SketchLaw::Gaussian, 5, 12),
            (SketchLaw::Uniform, 3, 7),
            (SketchLaw::Rademacher, 6, 17),
            (SketchLaw::Sjlt(1), 4, 9),
            (SketchLaw::Sjlt(3), 8, 33),
            (SketchLaw::Srht, 5, 11),
            (SketchLaw::Srht, 8, 8),
        ];
        let outer: [&[usize]; 2] = [&[4], &[2, 3]];
        let op = |(law, rows, columns), adjoint| Sketch { law, rows, columns, seed: 7, stream: 3, adjoint };
        laws.into_iter()
            .enumerate()
            .flat_map(|(i, law)| [false, true].map(|adjoint| (op(law, adjoint), outer[i % 2])))
            .map(|(op, outer)| {
                let shape = [outer, &[op.lengths()[0]]].concat();
                (op, Case::f32(&[&shape]))
            })
            .collect()
    }
}
