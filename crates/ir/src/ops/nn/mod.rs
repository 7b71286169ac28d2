//! Operators of neural networks.

mod attention;
mod attention_gradient;
mod col2im;
mod conv;
mod conv_kernel_gradient;
mod feature_attention;
mod hadamard;
mod im2col;
mod layer_norm;
mod layout;
mod linear_attention;
mod matmul;
mod max_pool_gradient;
mod non_max_suppression;
mod pool;
pub mod recurrence;
mod softmax;
mod wide;

pub use attention::Attention;
pub use attention_gradient::AttentionGradient;
pub use col2im::Col2im;
pub use conv::Conv;
pub use conv_kernel_gradient::ConvKernelGradient;
pub use feature_attention::FeatureAttention;
pub use hadamard::Hadamard;
pub use im2col::Im2col;
pub use layer_norm::LayerNorm;
pub use layout::ImageLayout;
pub use linear_attention::LinearAttention;
pub use matmul::MatMul;
pub use max_pool_gradient::MaxPoolGradient;
pub use non_max_suppression::NonMaxSuppression;
pub use pool::{Pool, PoolKind};
pub use recurrence::Recurrence;
pub use softmax::Softmax;
