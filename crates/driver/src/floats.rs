//! Tensors of any type of floats, from numbers of f32.

use margay_tensor::{DType, Tensor, bf16_of, f16_of};

/// Numbers rounded to a type of floats; `None` for another type, and where they do not fill the shape.
pub(crate) fn tensor_of(dtype: DType, shape: &[usize], numbers: &[f32]) -> Option<Tensor> {
    let wide = || numbers.iter().map(|x| f64::from(*x));
    match dtype {
        DType::F16 => Tensor::from_slice(shape, &wide().map(f16_of).collect::<Vec<_>>()),
        DType::BF16 => Tensor::from_slice(shape, &wide().map(bf16_of).collect::<Vec<_>>()),
        DType::F32 => Tensor::from_slice(shape, numbers),
        DType::F64 => Tensor::from_slice(shape, &wide().collect::<Vec<_>>()),
        _ => return None,
    }
    .ok()
}
