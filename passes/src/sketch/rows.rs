//! A value as rows of numbers: how calibration reads what goes into a site.

use margay_ir::Value;
use margay_ir::ops::{Conv, Numbers};
use margay_randnla::Gram;
use margay_tensor::Tensor;

/// Rows that are measured of one value, about: with more, windows of images are left out evenly, and samples of anything
/// else need not be run. For rows of a few thousand numbers these are enough.
pub const MAX_ROWS: usize = 1 << 16;

/// Of how many samples rows are measured, and how many in all, about: of more, windows are left out evenly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thinning {
    /// Samples, in all runs together.
    pub samples: usize,
    /// The most rows that windows give.
    pub rows: usize,
}

impl Thinning {
    /// At most [`MAX_ROWS`] windows of so many samples.
    pub fn of(samples: usize) -> Thinning {
        Thinning { samples, rows: MAX_ROWS }
    }

    /// One of how many windows is taken, where a sample has so many.
    fn every(self, windows: usize) -> usize {
        (self.samples * windows).div_ceil(self.rows).max(1)
    }
}

/// A value, and how rows are made of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rows {
    /// The value: of f32, or of integers where it holds places.
    pub value: Value,
    /// How rows are made of it.
    pub kind: RowKind,
    /// Length of a row.
    pub length: usize,
}

/// How rows are made of a value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RowKind {
    /// They run along its last axis.
    LastAxis,
    /// They are the windows of a convolution.
    Windows(Windows),
    /// Each of its elements is the place of the one in a row of zeros. Negative places count from the end.
    Places,
}

impl Rows {
    /// The rows of a tensor that has the place of the value, with some windows left out if there are so many in all.
    pub fn of(&self, x: &Tensor, thinning: Thinning) -> Vec<f32> {
        match &self.kind {
            RowKind::LastAxis => x.to_vec::<f32>().expect("sites read f32"),
            RowKind::Windows(windows) => {
                let [rows, columns] = windows.count(planar(&x.shape()[2..]));
                windows.rows(x, thinning.every(rows * columns))
            }
            RowKind::Places => {
                let one = |place: usize| (0..self.length).map(move |i| if i == place { 1.0 } else { 0.0 });
                self.places(x).unwrap_or_default().into_iter().flat_map(one).collect()
            }
        }
    }

    /// Of a tensor that holds places, those inside a row; `None` where rows are made in another way.
    pub fn places(&self, x: &Tensor) -> Option<Vec<usize>> {
        if self.kind != RowKind::Places {
            return None;
        }
        let length = self.length as i64;
        let place = |at: i64| usize::try_from(if at < 0 { at + length } else { at }).ok();
        let all = Numbers::of(x).map(Numbers::ints).unwrap_or_default().into_iter();
        Some(all.filter_map(|at| place(at).filter(|place| *place < self.length)).collect())
    }

    /// What sums up their moments.
    pub fn gram(&self) -> Gram {
        match self.kind {
            RowKind::Places => Gram::of_ones(self.length),
            _ => Gram::new(self.length),
        }
    }

    /// How many rows [`of`](Rows::of) gives for a tensor of this shape.
    pub fn count(&self, shape: &[usize], thinning: Thinning) -> usize {
        match &self.kind {
            RowKind::LastAxis => shape.iter().product::<usize>() / self.length.max(1),
            RowKind::Places => shape.iter().product(),
            RowKind::Windows(windows) => {
                let [rows, columns] = windows.count(planar(&shape[2..]));
                (shape[0] * rows * columns).div_ceil(thinning.every(rows * columns))
            }
        }
    }

    /// Rows of the result `y` of a site, those that belong to [`of`](Rows::of): channels second where there are windows.
    pub fn results(&self, y: &Tensor, thinning: Thinning) -> Vec<f32> {
        let data = y.to_vec::<f32>().expect("sites compute f32");
        if !matches!(self.kind, RowKind::Windows(_)) {
            return data;
        }
        let (channels, positions) = (y.shape()[1], y.shape()[2..].iter().product::<usize>());
        let windows = (0..y.shape()[0] * positions).step_by(thinning.every(positions));
        let row = |window: usize| {
            let (image, at) = (window / positions, window % positions);
            let data = &data;
            (0..channels).map(move |c| data[(image * channels + c) * positions + at])
        };
        windows.flat_map(row).collect()
    }
}

/// One or two spatial extents as those of an image.
fn planar(extents: &[usize]) -> [usize; 2] {
    match *extents {
        [height, width] => [height, width],
        _ => [1, extents.iter().product()],
    }
}

/// The windows of a convolution over images with the channels second, on the channels of one group. One spatial axis is that of
/// images of one row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Windows {
    group: usize,
    groups: usize,
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 2],
    pads_after: [usize; 2],
    dilations: [usize; 2],
}

impl Windows {
    /// The windows of a group of a convolution with a kernel of these taps over one or two spatial axes.
    pub fn new(conv: &Conv, taps: &[usize], group: usize) -> Windows {
        let pair = |along: &[usize], of_one_row: usize| match *along {
            [height, width] => [height, width],
            _ => [of_one_row, along.iter().product()],
        };
        Windows {
            group,
            groups: conv.groups,
            kernel: pair(taps, 1),
            strides: pair(&conv.strides, 1),
            pads: pair(&conv.pads_before, 0),
            pads_after: pair(&conv.pads_after, 0),
            dilations: pair(&conv.dilations, 1),
        }
    }

    /// Rows and columns of windows on an image of this height and width.
    pub fn count(&self, size: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|i| {
            let reach = self.dilations[i] * (self.kernel[i] - 1) + 1;
            (size[i] + self.pads[i] + self.pads_after[i]).saturating_sub(reach) / self.strides[i] + 1
        })
    }

    /// Every `every`th window of images `[n, c, h, w]` or `[n, c, w]` of f32, one after another, each as `c` times height times width
    /// numbers; zeros outside the image.
    pub fn rows(&self, x: &Tensor, every: usize) -> Vec<f32> {
        let data = x.to_vec::<f32>().expect("convolutions read f32");
        let ([n, all], [h, w]) = ([x.shape()[0], x.shape()[1]], planar(&x.shape()[2..]));
        let (c, first) = (all / self.groups, all / self.groups * self.group);
        let [rows, columns] = self.count([h, w]);
        let mut out = Vec::new();
        for window in (0..n * rows * columns).step_by(every) {
            let (image, y, x0) = (window / (rows * columns), window / columns % rows, window % columns);
            for channel in 0..c {
                for i in 0..self.kernel[0] {
                    for j in 0..self.kernel[1] {
                        let row = (y * self.strides[0] + i * self.dilations[0]).checked_sub(self.pads[0]);
                        let column = (x0 * self.strides[1] + j * self.dilations[1]).checked_sub(self.pads[1]);
                        out.push(match (row, column) {
                            (Some(r), Some(s)) if r < h && s < w => {
                                data[((image * all + first + channel) * h + r) * w + s]
                            }
                            _ => 0.0,
                        });
                    }
                }
            }
        }
        out
    }
}
