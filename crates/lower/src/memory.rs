//! Values as strided views of buffers.

use margay_ir::ops::{View, is_row_major, strides_of};
use margay_loops::{BufferId, Operand};
use margay_tensor::DType;

/// A tensor in memory: which buffer, and how to walk it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    pub(crate) buffer: BufferId,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<i64>,
    /// The first element, counted from the start of the buffer.
    pub(crate) offset: i64,
}

impl Memory {
    /// A row-major tensor that fills its buffer.
    pub(crate) fn contiguous(buffer: BufferId, dtype: DType, shape: &[usize]) -> Memory {
        Memory { buffer, dtype, shape: shape.to_vec(), strides: strides_of(shape), offset: 0 }
    }

    /// Whether elements lie in row-major order without gaps.
    pub(crate) fn is_contiguous(&self) -> bool {
        is_row_major(&self.shape, &self.strides)
    }

    /// The first element as an operand of a step.
    pub(crate) fn operand(&self) -> Operand {
        Operand { buffer: self.buffer, offset_bytes: self.offset as usize * self.dtype.bytes() }
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same memory seen through a view of the given shape; `None` where that needs a copy.
    pub(crate) fn view(&self, view: &View, shape: &[usize]) -> Option<Memory> {
        let mut out = self.clone();
        out.shape = shape.to_vec();
        match view {
            View::Reshape => out.strides = self.reshaped(shape)?,
            View::Permute(perm) => out.strides = perm.iter().map(|&p| self.strides[p]).collect(),
            View::Slice { starts, steps } => {
                out.offset += starts.iter().zip(&self.strides).map(|(a, b)| a * b).sum::<i64>();
                out.strides = steps.iter().zip(&self.strides).map(|(a, b)| a * b).collect();
            }
            View::Broadcast => {
                let added = shape.len() - self.shape.len();
                out.strides = (0..shape.len())
                    .map(|i| match i.checked_sub(added) {
                        Some(j) if self.shape[j] == shape[i] => self.strides[j],
                        _ => 0,
                    })
                    .collect();
            }
        }
        // An axis of one element has no direction; kernels that take no reversed operands take it.
        for (extent, stride) in shape.iter().zip(&mut out.strides) {
            if *extent == 1 {
                *stride = (*stride).max(0);
            }
        }
        Some(out)
    }

    /// Strides of another shape over the same elements in the same order, if there are any: each run of axes of
    /// one shape must cover a run of axes of the other, and be walkable with one stride.
    fn reshaped(&self, shape: &[usize]) -> Option<Vec<i64>> {
        if self.is_contiguous() || self.elements() == 0 {
            return Some(strides_of(shape));
        }
        let old: Vec<(usize, i64)> =
            self.shape.iter().copied().zip(self.strides.iter().copied()).filter(|(d, _)| *d != 1).collect();
        let mut strides = vec![0; shape.len()];
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let (first, mut have, mut want) = (i, old[i].0, 1);
            let start = j;
            loop {
                while j < shape.len() && want < have {
                    want *= shape[j];
                    j += 1;
                }
                if want <= have {
                    break;
                }
                i += 1;
                have *= old.get(i)?.0;
            }
            if have != want {
                return None;
            }
            let joined = old[first..=i].windows(2).all(|w| w[0].1 == w[1].1 * w[1].0 as i64);
            if i > first && !joined {
                return None;
            }
            let mut stride = old[i].1;
            for axis in (start..j).rev() {
                strides[axis] = stride;
                stride *= shape[axis] as i64;
            }
            i += 1;
        }
        Some(strides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(shape: &[usize], strides: &[i64]) -> Memory {
        let mut m = Memory::contiguous(BufferId(0), DType::F32, shape);
        m.strides = strides.to_vec();
        m
    }

    #[test]
    fn heads_of_a_transposed_tensor_cannot_merge_but_split() {
        // [B, S, H*D] seen as [B, H, S, D].
        let heads = memory(&[2, 3, 5, 4], &[60, 4, 12, 1]);
        assert_eq!(heads.reshaped(&[2, 15, 4]), None);
        assert_eq!(heads.reshaped(&[2, 3, 5, 2, 2]), Some(vec![60, 4, 12, 2, 1]));
        assert_eq!(heads.reshaped(&[2, 3, 1, 5, 4]).map(|s| s[3]), Some(12));
    }

    #[test]
    fn an_axis_of_one_element_is_never_reversed() {
        let m = Memory::contiguous(BufferId(0), DType::F32, &[4, 6]);
        let s = m.view(&View::Slice { starts: vec![3, 5], steps: vec![-1, -1] }, &[1, 6]).unwrap();
        assert_eq!((s.offset, s.strides), (23, vec![0, -1]));
    }

    #[test]
    fn a_slice_starts_later_and_strides_wider() {
        let m = Memory::contiguous(BufferId(0), DType::F32, &[4, 6]);
        let s = m.view(&View::Slice { starts: vec![1, 0], steps: vec![1, 2] }, &[3, 3]).unwrap();
        assert_eq!((s.offset, s.strides), (6, vec![6, 2]));
    }
}
