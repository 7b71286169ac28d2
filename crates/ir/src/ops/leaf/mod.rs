//! Operators without operands.

#[path = "const.rs"]
mod constant;
mod dims;
mod input;
mod range;

pub use constant::Const;
pub use dims::Dims;
pub use input::Input;
pub use range::Range;
