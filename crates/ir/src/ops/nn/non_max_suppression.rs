//! Boxes chosen by their scores, for each image and class: the best one that is left, again and again, where every choice
//! takes away those that overlap it by more than a share of their union.
//!
//! Operands: boxes f32\[batch, boxes, 4\] as two corners (y, x, y, x) in any order; scores f32\[batch, classes, boxes\];
//! the most boxes for each class, i64; the share, f32; the score that a box has to exceed, f32. Results: rows of image,
//! class and box, i64, by image and class and then in the order in which they were chosen, zeros behind them; how many
//! there are, i64; scores f32\[boxes\] of the boxes that are left of the last class, which are of no use to anybody.
//!
//! Of equal scores the first box is chosen. A score that is no number is not chosen.

use margay_loops::{Binary, Combine, Extent, Index, KernelCall, Literal, Nest, Reg};
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::shape::known_extents;
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, Strided};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Chooses boxes that overlap little.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NonMaxSuppression {
    /// The most boxes that are chosen for one class, whatever the third operand says.
    pub most: Dim,
}

attributes!(NonMaxSuppression { most });

impl OpDef for NonMaxSuppression {
    const NAME: &'static str = "non_max_suppression";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [boxes, scores, most, share, least] = types::inputs(inputs, "5")?;
        for (input, ty) in [(0, boxes), (1, scores)] {
            types::expect_dtype(input, ty, DType::F32)?;
            if ty.ndim() != 3 {
                return Err(TypeError::Ndim { input, expected: "3".into(), found: ty.ndim() });
            }
        }
        types::expect_single(2, most, DType::I64)?;
        types::expect_single(3, share, DType::F32)?;
        types::expect_single(4, least, DType::F32)?;
        types::same_extent("numbers of a box", &Dim::from(4usize), &boxes.shape[2])?;
        types::same_extent("images", &boxes.shape[0], &scores.shape[0])?;
        types::same_extent("boxes", &boxes.shape[1], &scores.shape[2])?;
        if self.most.as_const().is_some_and(|v| v < 0) {
            return Err(TypeError::attribute(format!("{} boxes", self.most)));
        }
        let rows = &(&scores.shape[0] * &scores.shape[1]) * &self.most;
        let rows = TensorType::new(DType::I64, vec![rows, Dim::from(3usize)]);
        let left = TensorType::new(DType::F32, vec![boxes.shape[1].clone()]);
        Ok([rows, TensorType::new(DType::I64, Vec::new()), left].into_iter().collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let most = known_extents(std::slice::from_ref(&self.most))?[0];
        let [batch, classes, n] = [0, 1, 2].map(|axis| inputs[1].shape()[axis]);
        let (boxes, scores) = (Numbers::of(inputs[0])?.floats(), Numbers::of(inputs[1])?.floats());
        let wanted = usize::try_from(Numbers::of(inputs[2])?.ints()[0]).unwrap_or(0).min(most);
        let [share, least] = [3, 4].map(|i| Numbers::of(inputs[i]).map(|v| v.floats()[0]));
        let (share, least) = (share?, least?);
        let (mut rows, mut left) = (Vec::new(), vec![f64::NEG_INFINITY; n]);
        let pairs = (0..batch).flat_map(|b| (0..classes).map(move |c| (b, c)));
        for (image, class) in pairs.filter(|_| most > 0) {
            let of = |j: usize| &boxes[(image * n + j) * 4..][..4];
            let score = |j: usize| scores[(image * classes + class) * n + j];
            left = (0..n).map(|j| if score(j) > least { score(j) } else { f64::NEG_INFINITY }).collect();
            for _ in 0..wanted {
                let best = left.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let Some(chosen) = left.iter().position(|x| *x == best && best > f64::NEG_INFINITY) else {
                    break;
                };
                rows.extend([image as i64, class as i64, chosen as i64]);
                for (j, left) in left.iter_mut().enumerate() {
                    if j == chosen || overlap(of(chosen), of(j)) > share {
                        *left = f64::NEG_INFINITY;
                    }
                }
            }
        }
        let count = (rows.len() / 3) as i64;
        let all = batch * classes * most;
        rows.resize(all * 3, 0);
        let left = Numbers::Float(left).into_tensor(DType::F32, &[n])?;
        Ok(vec![Tensor::from_slice(&[all, 3], &rows)?, Tensor::scalar(count), left])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        match cx.cotangent_of(2) {
            None => Grad::zero(5),
            Some(_) => Grad::none("there is no rule for scores of boxes that are left"),
        }
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let [batch, classes, boxes] = [0, 1, 2].map(|axis| io.inputs[1].shape[axis]);
        let rows = io.outputs[0].shape[0];
        let most = rows / (batch * classes).max(1);
        let nest = move |n: &mut Nest| {
            n.for_each(&[] as &[usize], |n, _| {
                let zero = n.literal(Literal::Int(DType::I64, 0));
                n.store_raw(1, &[], zero);
                n.serial_each(&[rows, 3], &[], &mut |n, at| n.store_raw(0, at, zero));
                let none = n.literal(Literal::of(DType::F32, f64::NEG_INFINITY));
                n.serial(boxes, |n, j| n.store_raw(2, &[j], none));
                if rows == 0 || boxes == 0 {
                    return;
                }
                let wanted = n.load(2, &[]);
                n.serial_each(&[batch, classes], &[], &mut |n, of| {
                    let least = n.load(4, &[]);
                    n.serial(boxes, |n, j| {
                        let score = n.load(1, &[of, std::slice::from_ref(&j)].concat());
                        let above = n.binary(Binary::Lt, least, score);
                        let kept = n.select(above, score, none);
                        n.store_raw(2, &[j], kept);
                    });
                    n.serial(Extent::Read { from: wanted, bound: most }, |n, _| {
                        choose(n, of, boxes, rows, none)
                    });
                });
            });
        };
        if !io.inputs.iter().all(Strided::is_contiguous) {
            return Ok(Lowered::nest(nest));
        }
        let call = margay_loops::NonMaxSuppression { batch, classes, boxes, most };
        Ok(Lowered::call_or_nest(KernelCall::NonMaxSuppression(call), nest))
    }

    fn cost(&self, io: &Io) -> Cost {
        let boxes = io.inputs[1].shape[2] as u64;
        Cost {
            flops: (io.outputs[0].shape[0] as u64).saturating_mul(boxes).saturating_mul(24),
            bytes: io.bytes(),
        }
    }

    fn facts(&self) -> Facts {
        Facts::plain(false)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        // Boxes without a score that exceeds anything are not chosen.
        cx.along(self.clone(), |input, axis| match (input, axis) {
            (0, 1) => Along::Apart,
            (1, 2) => Along::Neutral(f64::NEG_INFINITY),
            _ => Along::Change,
        })
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |[batch, classes, boxes]: [usize; 3], most: usize, wanted: i64, share: f32, least: f32| {
            let random = |shape: &[usize]| CaseInput::Random {
                dtype: DType::F32,
                shape: shape.to_vec(),
                low: 0.0,
                high: 1.0,
            };
            let inputs = vec![
                random(&[batch, boxes, 4]),
                random(&[batch, classes, boxes]),
                CaseInput::Values(Tensor::scalar(wanted)),
                CaseInput::Values(Tensor::scalar(share)),
                CaseInput::Values(Tensor::scalar(least)),
            ];
            (NonMaxSuppression { most: Dim::from(most) }, Case { inputs })
        };
        vec![
            case([1, 1, 6], 6, 6, 0.3, 0.2),
            case([2, 3, 9], 4, 3, 0.1, 0.0),
            case([1, 2, 5], 5, 9, 1.0, f32::NEG_INFINITY),
            case([1, 1, 3], 0, 2, 0.5, 0.0),
            case([1, 1, 0], 2, 2, 0.5, 0.0),
        ]
    }
}

/// What two boxes have in common, as a share of their union; 0 if that is nothing.
fn overlap(a: &[f64], b: &[f64]) -> f64 {
    let side = |x: &[f64], axis: usize| (x[axis].min(x[axis + 2]), x[axis].max(x[axis + 2]));
    let common = |axis: usize| {
        let ((a0, a1), (b0, b1)) = (side(a, axis), side(b, axis));
        (a1.min(b1) - a0.max(b0)).max(0.0)
    };
    let area = |x: &[f64]| (side(x, 0).1 - side(x, 0).0) * (side(x, 1).1 - side(x, 1).0);
    let common = common(0) * common(1);
    if common > 0.0 { common / (area(a) + area(b) - common) } else { 0.0 }
}

/// Chooses the best box that is left for an image and a class, if there is one, and takes away what overlaps it.
fn choose(n: &mut Nest, of: &[Index], boxes: usize, rows: usize, none: Reg) {
    let best = n.reduce(boxes, &[Combine::Max], |n, j| vec![n.reload(2, &[j])])[0];
    let last = n.literal(Literal::Int(DType::I64, boxes as i64 - 1));
    let chosen = n.reduce(boxes, &[Combine::Min], |n, j| {
        let left = n.reload(2, std::slice::from_ref(&j));
        let same = n.binary(Binary::Eq, left, best);
        let at = n.index_value(&j);
        vec![n.select(same, at, last)]
    })[0];
    let valid = n.binary(Binary::Lt, none, best);
    let count = n.reload(1, &[]);
    let end = n.literal(Literal::Int(DType::I64, rows as i64 - 1));
    let row = n.binary(Binary::Min, count, end);
    let place = [n.index_value(&of[0]), n.index_value(&of[1]), chosen];
    for (column, value) in place.into_iter().enumerate() {
        let to = [Index::reg(row), Index::constant(column as i64)];
        let before = n.reload(0, &to);
        let value = n.select(valid, value, before);
        n.store_raw(0, &to, value);
    }
    let more = n.cast(valid, DType::I64);
    let count = n.add(count, more);
    n.store_raw(1, &[], count);
    let corners = |n: &mut Nest, at: Index| {
        let mut side = |first: i64| {
            let load = |n: &mut Nest, k: i64| n.load(0, &[of[0].clone(), at.clone(), Index::constant(k)]);
            let (a, b) = (load(n, first), load(n, first + 2));
            [n.binary(Binary::Min, a, b), n.binary(Binary::Max, a, b)]
        };
        [side(0), side(1)]
    };
    let own = corners(n, Index::reg(chosen));
    n.serial(boxes, |n, j| {
        let other = corners(n, j.clone());
        let area = |n: &mut Nest, [y, x]: [[Reg; 2]; 2]| {
            let (height, width) = (n.sub(y[1], y[0]), n.sub(x[1], x[0]));
            n.mul(height, width)
        };
        let common = [0, 1].map(|axis| {
            let low = n.binary(Binary::Max, own[axis][0], other[axis][0]);
            let high = n.binary(Binary::Min, own[axis][1], other[axis][1]);
            let length = n.sub(high, low);
            let zero = n.number(length, 0.0);
            n.binary(Binary::Max, length, zero)
        });
        let common = n.mul(common[0], common[1]);
        let (a, b) = (area(n, own), area(n, other));
        let both = n.add(a, b);
        let union = n.sub(both, common);
        let share = n.load(3, &[]);
        let found = n.binary(Binary::Div, common, union);
        let much = n.binary(Binary::Lt, share, found);
        let zero = n.number(common, 0.0);
        let some = n.binary(Binary::Lt, zero, common);
        let much = n.binary(Binary::And, some, much);
        // A share below 0 is exceeded by boxes that have nothing in common.
        let negative = n.binary(Binary::Lt, share, zero);
        let much = n.binary(Binary::Or, much, negative);
        let at = n.index_value(&j);
        let same = n.binary(Binary::Eq, at, chosen);
        let gone = n.binary(Binary::Or, much, same);
        let left = n.reload(2, std::slice::from_ref(&j));
        let left = n.select(gone, none, left);
        n.store_raw(2, &[j], left);
    });
}
