//! The first operand with rows changed: row `at[j]` of the result joins row `at[j]` of `data` with `updates[j]`, for
//! all j in order. A row is the slice at one position of the first axis.
//!
//! Negative indices count from the end. An index outside the axis is an error of the reference interpreter and a
//! fault of a compiled program, which then changes the nearest row instead.

use margay_loops::{Binary, Index, Nest, Reg};
use margay_tensor::{Binding, DType, Dim, Tensor};

use crate::ops::attributes::{Attribute, attributes};
use crate::ops::elementwise::{Domain, Numbers};
use crate::ops::shape::checked_position;
use crate::ops::{
    Case, CaseInput, Cost, EvalError, Facts, Gather, Io, Lowered, NotLowered, Number, OpDef, Pad, Slice,
};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// How an update joins what is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ScatterKind {
    /// It takes its place; of several the last one.
    Set,
    /// Sum. Integers wrap.
    Add,
    /// Product. Integers wrap.
    Mul,
    /// The smaller; NaN if either is.
    Min,
    /// The larger; NaN if either is.
    Max,
}

impl ScatterKind {
    const ALL: [ScatterKind; 5] =
        [ScatterKind::Set, ScatterKind::Add, ScatterKind::Mul, ScatterKind::Min, ScatterKind::Max];

    /// The word in text form.
    pub fn name(self) -> &'static str {
        match self {
            ScatterKind::Set => "set",
            ScatterKind::Add => "add",
            ScatterKind::Mul => "mul",
            ScatterKind::Min => "min",
            ScatterKind::Max => "max",
        }
    }

    fn join(self, n: &mut Nest, x: impl FnOnce(&mut Nest) -> Reg, update: Reg) -> Reg {
        let op = match self {
            ScatterKind::Set => return update,
            ScatterKind::Add => Binary::Add,
            ScatterKind::Mul => Binary::Mul,
            ScatterKind::Min => Binary::Min,
            ScatterKind::Max => Binary::Max,
        };
        let x = x(n);
        n.binary(op, x, update)
    }

    fn join_floats(self, x: f64, update: f64) -> f64 {
        match self {
            ScatterKind::Set => update,
            ScatterKind::Add => x + update,
            ScatterKind::Mul => x * update,
            ScatterKind::Min if x.is_nan() || x < update => x,
            ScatterKind::Max if x.is_nan() || x > update => x,
            ScatterKind::Min | ScatterKind::Max => update,
        }
    }

    fn join_ints(self, x: i128, update: i128) -> i128 {
        match self {
            ScatterKind::Set => update,
            ScatterKind::Add => x.wrapping_add(update),
            ScatterKind::Mul => x.wrapping_mul(update),
            ScatterKind::Min => x.min(update),
            ScatterKind::Max => x.max(update),
        }
    }
}

impl Attribute for ScatterKind {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        let found = ScatterKind::ALL.into_iter().find(|k| k.name() == text);
        found.ok_or_else(|| format!("`{text}` is not a way to join"))
    }
    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}

/// Changes rows of the first operand by the third, at the places (i64 or i32, one axis) that the second names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Scatter {
    /// How an update joins what is there.
    pub kind: ScatterKind,
}

attributes!(Scatter { kind });

impl OpDef for Scatter {
    const NAME: &'static str = "scatter";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [data, at, updates] = types::inputs(inputs, "3")?;
        let domain = if self.kind == ScatterKind::Set { Domain::Any } else { Domain::Number };
        domain.check(0, data)?;
        types::expect(1, at, matches!(at.dtype, DType::I64 | DType::I32), "i64 or i32")?;
        types::expect_dtype(2, updates, data.dtype)?;
        types::check_axis(0, data.ndim())?;
        if at.ndim() != 1 {
            return Err(TypeError::Ndim { input: 1, expected: "1".into(), found: at.ndim() });
        }
        if updates.ndim() != data.ndim() {
            let expected = data.ndim().to_string();
            return Err(TypeError::Ndim { input: 2, expected, found: updates.ndim() });
        }
        types::same_extent("indices and updates", &at.shape[0], &updates.shape[0])?;
        for axis in 1..data.ndim() {
            let what = format!("axis {axis} of inputs 0 and 2");
            types::same_extent(&what, &data.shape[axis], &updates.shape[axis])?;
        }
        types::one(data.dtype, data.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (data, updates) = (inputs[0], inputs[2]);
        let extent = data.shape()[0];
        let size: usize = data.shape()[1..].iter().product();
        let position = |&index: &i64| {
            let wrapped = if index < 0 { index.saturating_add(extent as i64) } else { index };
            let found = usize::try_from(wrapped).ok().filter(|&p| p < extent);
            found.ok_or(EvalError::Index { index, extent })
        };
        let at = Numbers::of(inputs[1])?.ints();
        let at = at.iter().map(position).collect::<Result<Vec<usize>, _>>()?;
        let pairs =
            at.iter().enumerate().flat_map(|(j, &p)| (0..size).map(move |i| (p * size + i, j * size + i)));
        let out = match (Numbers::of(data)?, Numbers::of(updates)?) {
            (Numbers::Int(mut x), Numbers::Int(u)) => {
                pairs.for_each(|(to, from)| x[to] = self.kind.join_ints(x[to], u[from]));
                Numbers::Int(x)
            }
            (x, u) => {
                let (mut x, u) = (x.floats(), u.floats());
                pairs.for_each(|(to, from)| x[to] = self.kind.join_floats(x[to], u[from]));
                Numbers::Float(x)
            }
        };
        Ok(vec![out.into_tensor(data.dtype(), data.shape())?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (at, updates, dy) = (cx.input(1), cx.input(2), cx.cotangent()?);
        let of_data = match self.kind {
            ScatterKind::Add => dy,
            ScatterKind::Set => {
                let none = cx.filled(updates, 0.0)?;
                cx.op(self.clone(), &[dy, at, none])?
            }
            ScatterKind::Mul | ScatterKind::Min | ScatterKind::Max => {
                return Grad::none("there is no rule for rows that are multiplied or compared");
            }
        };
        let of_updates = cx.op(Gather { axis: 0 }, &[dy, at])?;
        Ok(Grad::Inputs(vec![Some(of_data), None, Some(of_updates)]))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (kind, shape) = (self.kind, io.outputs[0].shape.clone());
        let (extent, count) = (shape[0], io.inputs[1].shape[0]);
        let dtype = io.outputs[0].dtype;
        if matches!(dtype, DType::F16 | DType::BF16) && matches!(kind, ScatterKind::Add | ScatterKind::Mul) {
            // What is joined lies in the result, which would round each step.
            return Err(NotLowered(format!("sums and products of {dtype} in memory")));
        }
        if extent == 0 && count > 0 {
            return Err(NotLowered("changes of an axis of extent 0".into()));
        }
        let range = io.inputs[1].range;
        Ok(Lowered::nest(move |n| {
            n.for_each(&[] as &[usize], |n, _| {
                n.serial_each(&shape, &[], &mut |n, at| {
                    let x = n.load(0, at);
                    n.store_raw(0, at, x);
                });
                n.serial(count, |n, j| {
                    let given = n.load(1, std::slice::from_ref(&j));
                    let row = Index::reg(checked_position(n, given, extent, range));
                    n.serial_each(&shape[1..], std::slice::from_ref(&j), &mut |n, from| {
                        let mut to = from.to_vec();
                        to[0] = row.clone();
                        let update = n.load(2, from);
                        let joined = kind.join(n, |n| n.reload(0, &to), update);
                        n.store_raw(0, &to, joined);
                    });
                });
                n.serial_each(&shape, &[], &mut |n, at| {
                    let x = n.reload(0, at);
                    n.store(0, at, x);
                });
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.inputs[2].elements() as u64, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::plain(true)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let extent = cx.type_of(0).shape[0].clone();
        let further = !cx.decided_axes(1).is_empty();
        let at = cx.indices(1, &extent)?;
        cx.replace(1, at);
        if !further {
            return cx.apart(self.clone());
        }
        // Updates that there were not change a row behind the others, which is taken away again.
        let at = if extent.is_decided() { at } else { cx.from_start(at, &extent)? };
        cx.replace(1, at);
        let ndim = cx.type_of(0).ndim();
        let bound = cx.bound(&extent);
        let row = bound.as_const().unwrap_or(0);
        let (mut after, value) = (vec![0; ndim], Number::float(0.0));
        after[0] = 1;
        let data = cx.op(Pad { before: vec![0; ndim], after, value }, &[cx.input(0)])?;
        cx.replace(0, data);
        let at = cx.masked(1, 0, row as f64)?;
        cx.replace(1, at);
        let changed = cx.apart(self.clone())?[0];
        let mut ends = cx.builder().ty(changed).shape.clone();
        ends[0] = bound;
        let starts = vec![Dim::default(); ndim];
        Ok(vec![cx.op(Slice { starts, ends, steps: vec![1; ndim] }, &[changed])?])
    }

    fn cases() -> Vec<(Self, Case)> {
        let values = |v: &[i64]| CaseInput::Values(Tensor::from_slice(&[v.len()], v).expect("one axis"));
        let updates = |shape: &[usize]| Case::f32(&[shape]).inputs.remove(0);
        let case = |data: &[usize], at: &[i64]| {
            let rows = [&[at.len()], &data[1..]].concat();
            Case::f32(&[data]).with(values(at)).with(updates(&rows))
        };
        let mut cases = vec![
            (Scatter { kind: ScatterKind::Set }, case(&[5, 3], &[4, 0, -4])),
            (Scatter { kind: ScatterKind::Set }, case(&[9], &[7, -9])),
            (Scatter { kind: ScatterKind::Set }, case(&[2, 2, 2], &[1])),
        ];
        for kind in [ScatterKind::Add, ScatterKind::Mul, ScatterKind::Min, ScatterKind::Max] {
            cases.push((Scatter { kind }, case(&[4, 3], &[1, 3, 1, -1])));
            let i64 = Case::random(DType::I64, -9.0, 9.0, &[&[5]]).with(values(&[2, 2, 0]));
            let last = Case::random(DType::I64, -9.0, 9.0, &[&[3]]).inputs.remove(0);
            cases.push((Scatter { kind }, i64.with(last)));
        }
        cases
    }
}
