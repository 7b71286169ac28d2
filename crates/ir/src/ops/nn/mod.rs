//! Operators of neural networks.

mod attention;
mod attention_gradient;
mod conv;
mod fold_patches;
mod layer_norm;
mod layout;
mod linear_attention;
mod matmul;
mod patches;
mod pool;
mod softmax;

pub use attention::Attention;
pub use attention_gradient::AttentionGradient;
pub use conv::Conv;
pub use fold_patches::FoldPatches;
pub use layer_norm::LayerNorm;
pub use layout::ImageLayout;
pub use linear_attention::LinearAttention;
pub use matmul::MatMul;
pub use patches::Patches;
pub use pool::{Pool, PoolKind};
pub use softmax::Softmax;
