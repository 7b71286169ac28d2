//! Boxes chosen by their scores.

use std::fmt;

use margay_tensor::DType;

use super::{Call, CallArg, Epilogue, product};
use crate::text::fields;

/// For each image and class the box of the best score that is left, again and again, where every choice takes away those
/// whose common area is more than a share of the union. Of equal scores the first box is chosen; neither -∞ nor NaN is.
///
/// Arguments, row-major: boxes f32 \[batch, boxes, 4\], two corners in any order; scores f32 \[batch, classes, boxes\];
/// the most boxes for each class, i64; the share, f32; the score that a box has to exceed, f32. Results: rows of image,
/// class and box, i64 \[batch classes most, 3\], in the order in which they were chosen, zeros behind them; how many there
/// are, i64; scores f32 \[boxes\] of what is left of the last class, -∞ elsewhere.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NonMaxSuppression {
    /// Images.
    pub batch: usize,
    /// Classes.
    pub classes: usize,
    /// Boxes of an image.
    pub boxes: usize,
    /// The most boxes that are chosen for one class, whatever the third operand says.
    pub most: usize,
}

fields!(NonMaxSuppression { batch, classes, boxes, most });

impl Call for NonMaxSuppression {
    const FAMILY: &'static str = "non_max_suppression";

    fn flops(&self) -> u64 {
        let chosen = self.most.min(self.boxes);
        // Scores are sorted. A box is compared with about half of those chosen before.
        let sorted = product(&[4, self.boxes, self.boxes.max(2).ilog2() as usize]);
        let compared = product(&[12, self.boxes, chosen]);
        product(&[self.batch, self.classes]).saturating_mul(sorted.saturating_add(compared))
    }

    fn args(&self) -> Vec<CallArg> {
        let NonMaxSuppression { batch, classes, boxes, most } = *self;
        let rows = batch * classes * most;
        vec![
            CallArg::read(DType::F32, &[(batch, boxes * 4), (boxes, 4), (4, 1)]),
            CallArg::read(DType::F32, &[(batch, classes * boxes), (classes, boxes), (boxes, 1)]),
            CallArg::read(DType::I64, &[]),
            CallArg::read(DType::F32, &[]),
            CallArg::read(DType::F32, &[]),
            CallArg::written(DType::I64, &[(rows, 3), (3, 1)]),
            CallArg::written(DType::I64, &[]),
            CallArg::written(DType::F32, &[(boxes, 1)]),
        ]
    }

    fn rounds(&self, _: usize) -> Option<DType> {
        None
    }

    fn epilogue(&mut self) -> Option<&mut Epilogue> {
        None
    }

    fn packed(&mut self) -> Option<(usize, &mut bool)> {
        None
    }

    fn sums_of_integers(&mut self) -> Option<&mut DType> {
        None
    }

    fn transposable(&mut self, _: usize) -> Option<&mut [usize; 3]> {
        None
    }
}

impl fmt::Display for NonMaxSuppression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NonMaxSuppression { batch, classes, boxes, most } = self;
        write!(f, "non_max_suppression {batch}x{classes}x[{boxes}] at most {most}")
    }
}
