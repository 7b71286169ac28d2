//! Operators of neural networks.

mod attention;
mod attention_gradient;
mod conv;
mod conv_kernel_gradient;
mod fold_patches;
mod hadamard;
mod layer_norm;
mod layout;
mod linear_attention;
mod matmul;
mod max_pool_gradient;
mod patches;
mod pool;
mod softmax;
mod wide;

pub use attention::Attention;
pub use attention_gradient::AttentionGradient;
pub use conv::Conv;
pub use conv_kernel_gradient::ConvKernelGradient;
pub use fold_patches::FoldPatches;
pub use hadamard::Hadamard;
pub use layer_norm::LayerNorm;
pub use layout::ImageLayout;
pub use linear_attention::LinearAttention;
pub use matmul::MatMul;
pub use max_pool_gradient::MaxPoolGradient;
pub use patches::Patches;
pub use pool::{Pool, PoolKind};
pub use softmax::Softmax;
