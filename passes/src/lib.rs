//! Graph passes: one file each. Pipelines are lists of them, and every pass has a [`text`].
//!
//! A pass turns a graph into a graph; it never runs code. What was measured is handed to it as values. Each file's
//! head shows a graph before and after in text form, and a test checks that the pass does just that.

#![forbid(unsafe_code)]

mod apply_plan;
mod assign_layout;
mod bind_dims;
mod differentiate;
mod draw_signs;
mod expand_feature_attention;
mod expand_recurrences;
mod expand_sketches;
mod fold_constants;
mod fold_scales;
mod make_trainable;
mod matching;
mod merge_duplicates;
mod pad_decided;
mod pipeline;
mod recognize_attention;
mod recognize_feature_attention;
mod recognize_gelu;
mod recognize_integer_products;
mod recognize_kernel_gradients;
mod recognize_layer_norm;
mod recognize_linear_attention;
mod recognize_piecewise;
mod recognize_silu;
mod recompute;
mod remove_dead;
mod remove_dropout;
mod round_operands;
mod simplify;
pub mod sketch;
mod store_constants;
pub mod text;
mod widen_products;

pub use apply_plan::ApplyPlan;
pub use assign_layout::AssignLayout;
pub use bind_dims::BindDims;
pub use differentiate::{Differentiate, gradients};
pub use draw_signs::DrawSigns;
pub use expand_feature_attention::ExpandFeatureAttention;
pub use expand_recurrences::ExpandRecurrences;
pub use expand_sketches::ExpandSketches;
pub use fold_constants::FoldConstants;
pub use fold_scales::FoldScales;
pub use make_trainable::{
    MakeTrainable, make_trainable, parameter_names, with_constants, with_parameters, with_resized_parameters,
};
pub use merge_duplicates::MergeDuplicates;
pub use pad_decided::PadDecided;
pub use pipeline::{PassRun, Pipeline, PipelineError, PipelineFault, PipelineItem, Replay};
pub use recognize_attention::RecognizeAttention;
pub use recognize_feature_attention::RecognizeFeatureAttention;
pub use recognize_gelu::RecognizeGelu;
pub use recognize_integer_products::RecognizeIntegerProducts;
pub use recognize_kernel_gradients::RecognizeKernelGradients;
pub use recognize_layer_norm::RecognizeLayerNorm;
pub use recognize_linear_attention::RecognizeLinearAttention;
pub use recognize_piecewise::RecognizePiecewise;
pub use recognize_silu::RecognizeSilu;
pub use recompute::{Recompute, backward_nodes, bytes_of, saved};
pub use remove_dead::RemoveDead;
pub use remove_dropout::RemoveDropout;
pub use round_operands::RoundOperands;
pub use simplify::Simplify;
pub use store_constants::{StoreAs, StoreConstants};
pub use text::{Files, PASSES, PassEntry, PassRead, read_pass};
pub use widen_products::WidenProducts;
