//! The windows of a convolution as rows of a matrix.

use margay_ir::ops::Conv;
use margay_tensor::Tensor;

/// The windows of a convolution over images with the channels second.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Unfold {
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 2],
    pads_after: [usize; 2],
    dilations: [usize; 2],
}

impl Unfold {
    /// The windows of a convolution with a kernel of this height and width; `None` unless it has two spatial axes.
    pub fn new(conv: &Conv, kernel: [usize; 2]) -> Option<Unfold> {
        let pair = |v: &[usize]| <[usize; 2]>::try_from(v).ok();
        Some(Unfold {
            kernel,
            strides: pair(&conv.strides)?,
            pads: pair(&conv.pads_before)?,
            pads_after: pair(&conv.pads_after)?,
            dilations: pair(&conv.dilations)?,
        })
    }

    /// Rows and columns of windows on an image of this height and width.
    pub fn windows(&self, size: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|i| {
            let reach = self.dilations[i] * (self.kernel[i] - 1) + 1;
            (size[i] + self.pads[i] + self.pads_after[i]).saturating_sub(reach) / self.strides[i] + 1
        })
    }

    /// Every `every`th window of images `[n, c, h, w]` of f32, one after another, each as `c` times height times width
    /// numbers; zeros outside the image.
    pub fn rows(&self, x: &Tensor, every: usize) -> Vec<f32> {
        let data = x.to_vec::<f32>().expect("convolutions read f32");
        let [n, c, h, w] = [0, 1, 2, 3].map(|i| x.shape()[i]);
        let [rows, columns] = self.windows([h, w]);
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
                                data[((image * c + channel) * h + r) * w + s]
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
