//! Operators that hold graphs: a choice, a repetition.

mod r#if;
mod r#loop;

pub use r#if::If;
pub use r#loop::Loop;

use margay_tensor::{DType, Tensor};

/// A single truth value, for cases.
fn truth(value: bool) -> Tensor {
    Tensor::from_bytes(DType::Bool, &[], &[u8::from(value)]).expect("a truth value is one byte")
}
