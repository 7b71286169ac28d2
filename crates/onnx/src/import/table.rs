//! The operators of ONNX that are imported.

use super::call::{Call, Imported};
use super::sequences::Slots;
use super::{
    Importer, Slot, activations, attention, control, convolutions, decided, einsum, elementwise, grouped,
    integers, learning, leaves, losses, machines, microsoft, normalizations, padding, pixels, places, pools,
    products, quantized, recurrent, reductions, resize, sampling, sequences, shapes, signals, sketches,
    slices, statistics, transposed, trees, trigonometry,
};
use crate::model::MICROSOFT;

/// The domain `ai.onnx`.
const DEFAULT: &str = "";

/// The domain of operators of classical machine learning.
const LEARNING: &str = "ai.onnx.ml";

/// The domain of our own operators, which others have no word for.
const MARGAY: &str = "margay";

/// Adds what a node means to the graph.
type Import = for<'a> fn(&mut Importer<'a>, &Call<'a>) -> Imported;

/// The same where sequences are read or yielded.
type ListImport = for<'a> fn(&mut Importer<'a>, &Call<'a>, &[Option<Slot>]) -> Slots;

/// An operator of ONNX, or of another domain.
pub(super) struct Operator {
    /// The domain; empty for the default one.
    pub(super) domain: &'static str,
    /// Its name there.
    pub(super) name: &'static str,
    /// The operator set of the domain that introduced it. Later changes are dealt with in the function.
    pub(super) since: i64,
    /// Adds what it means to the graph.
    pub(super) import: Meaning,
}

/// What an operator reads and yields.
pub(super) enum Meaning {
    /// Tensors.
    Values(Import),
    /// Sequences or optionals, and tensors.
    Lists(ListImport),
}

/// An operator of the default domain.
const fn op(name: &'static str, since: i64, import: Import) -> Operator {
    of(DEFAULT, name, since, import)
}

const fn of(domain: &'static str, name: &'static str, since: i64, import: Import) -> Operator {
    Operator { domain, name, since, import: Meaning::Values(import) }
}

/// An operator of the default domain on sequences or optionals.
const fn op_on_lists(name: &'static str, since: i64, import: ListImport) -> Operator {
    Operator { domain: DEFAULT, name, since, import: Meaning::Lists(import) }
}

/// The operator of a domain with a name.
pub(super) fn operator(domain: &str, name: &str) -> Option<&'static Operator> {
    let found = OPERATORS.binary_search_by(|o| (o.domain, o.name).cmp(&(domain, name)));
    found.ok().map(|at| &OPERATORS[at])
}

/// Sorted by domain, then by name.
pub(super) const OPERATORS: &[Operator] = &[
    op("Abs", 1, elementwise::abs),
    op("Acos", 7, trigonometry::acos),
    op("Acosh", 9, trigonometry::acosh),
    op("Add", 1, elementwise::add),
    op("AffineGrid", 20, sampling::affine_grid),
    op("And", 1, elementwise::and),
    op("ArgMax", 1, places::arg_max),
    op("ArgMin", 1, places::arg_min),
    op("Asin", 7, trigonometry::asin),
    op("Asinh", 9, trigonometry::asinh),
    op("Atan", 7, elementwise::atan),
    op("Atanh", 9, trigonometry::atanh),
    op("Attention", 23, attention::attention),
    op("AveragePool", 1, pools::average_pool),
    op("BatchNormalization", 1, normalizations::batch_normalization),
    op("BitShift", 11, integers::bit_shift),
    op("BitwiseAnd", 18, integers::bitwise_and),
    op("BitwiseNot", 18, integers::bitwise_not),
    op("BitwiseOr", 18, integers::bitwise_or),
    op("BitwiseXor", 18, integers::xor),
    op("BlackmanWindow", 17, signals::blackman_window),
    op("Cast", 1, elementwise::cast),
    op("CastLike", 15, elementwise::cast_like),
    op("CausalConvWithState", 27, convolutions::causal_conv_with_state),
    op("Ceil", 1, elementwise::ceil),
    op("Celu", 12, activations::celu),
    op("CenterCropPad", 18, pixels::center_crop_pad),
    op("Clip", 1, elementwise::clip),
    op("Col2Im", 18, pixels::col_to_im),
    op("Compress", 9, places::compress),
    op("Concat", 1, shapes::concat),
    op_on_lists("ConcatFromSequence", 11, sequences::concat),
    op("Constant", 1, leaves::constant),
    op("ConstantOfShape", 9, leaves::constant_of_shape),
    op("Conv", 1, convolutions::conv),
    op("ConvInteger", 10, quantized::conv_integer),
    op("ConvTranspose", 1, transposed::conv_transpose),
    op("Cos", 7, elementwise::cos),
    op("Cosh", 9, trigonometry::cosh),
    op("CumProd", 26, places::cum_prod),
    op("CumSum", 11, places::cum_sum),
    op("DFT", 17, signals::dft),
    op("DepthToSpace", 1, pixels::depth_to_space),
    op("DequantizeLinear", 10, quantized::dequantize_linear),
    op("Det", 11, sampling::det),
    op("Div", 1, elementwise::div),
    op("Dropout", 1, leaves::dropout),
    op("DynamicQuantizeLinear", 11, quantized::dynamic_quantize_linear),
    op("Einsum", 12, einsum::einsum),
    op("Elu", 1, activations::elu),
    op("Equal", 1, elementwise::equal),
    op("Erf", 9, elementwise::erf),
    op("Exp", 1, elementwise::exp),
    op("Expand", 8, shapes::expand),
    op("EyeLike", 9, places::eye_like),
    op("Flatten", 1, shapes::flatten),
    op("Floor", 1, elementwise::floor),
    op("GRU", 1, recurrent::gru),
    op("Gather", 1, shapes::gather),
    op("GatherElements", 11, places::gather_elements),
    op("GatherND", 11, places::gather_nd),
    op("Gelu", 20, activations::gelu),
    op("Gemm", 1, products::gemm),
    op("GlobalAveragePool", 1, convolutions::global_average_pool),
    op("GlobalLpPool", 1, statistics::global_lp_pool),
    op("GlobalMaxPool", 1, convolutions::global_max_pool),
    op("Greater", 1, elementwise::greater),
    op("GreaterOrEqual", 12, elementwise::greater_or_equal),
    op("GridSample", 16, sampling::grid_sample),
    op("GroupNormalization", 18, statistics::group_normalization),
    op("HammingWindow", 17, signals::hamming_window),
    op("HannWindow", 17, signals::hann_window),
    op("HardSigmoid", 1, activations::hard_sigmoid),
    op("HardSwish", 14, activations::hard_swish),
    op("Hardmax", 1, places::hardmax),
    op_on_lists("Identity", 1, sequences::same),
    op("If", 1, control::choose),
    op("InstanceNormalization", 1, statistics::instance_normalization),
    op("IsInf", 10, integers::is_inf),
    op("IsNaN", 9, integers::is_nan),
    op("LRN", 1, statistics::lrn),
    op("LSTM", 1, recurrent::lstm),
    op("LayerNormalization", 17, normalizations::layer_normalization),
    op("LeakyRelu", 1, activations::leaky_relu),
    op("Less", 1, elementwise::less),
    op("LessOrEqual", 12, elementwise::less_or_equal),
    op("Log", 1, elementwise::log),
    op("LogSoftmax", 1, normalizations::log_softmax),
    op_on_lists("Loop", 1, sequences::repeat),
    op("LpNormalization", 1, statistics::lp_normalization),
    op("LpPool", 1, pools::lp_pool),
    op("MatMul", 1, products::matmul),
    op("MatMulInteger", 10, quantized::matmul_integer),
    op("Max", 1, elementwise::max),
    op("MaxPool", 1, pools::max_pool),
    op("MaxUnpool", 9, sampling::max_unpool),
    op("Mean", 1, elementwise::mean),
    op("MeanVarianceNormalization", 9, statistics::mean_variance_normalization),
    op("Min", 1, elementwise::min),
    op("Mish", 18, activations::mish),
    op("Mod", 10, integers::modulo),
    op("Mul", 1, elementwise::mul),
    op("Neg", 1, elementwise::neg),
    op("NegativeLogLikelihoodLoss", 12, losses::negative_log_likelihood),
    op("NonMaxSuppression", 10, decided::non_max_suppression),
    op("NonZero", 9, decided::non_zero),
    op("Not", 1, elementwise::not),
    op("OneHot", 9, places::one_hot),
    op_on_lists("Optional", 15, sequences::same),
    op_on_lists("OptionalGetElement", 15, sequences::same),
    op_on_lists("OptionalHasElement", 15, sequences::has_element),
    op("Or", 1, elementwise::or),
    op("PRelu", 1, activations::prelu),
    op("Pad", 1, padding::pad),
    op("Pow", 1, elementwise::pow),
    op("QLinearConv", 10, quantized::qlinear_conv),
    op("QLinearMatMul", 10, quantized::qlinear_matmul),
    op("QuantizeLinear", 10, quantized::quantize_linear),
    op("RMSNormalization", 23, statistics::rms_normalization),
    op("RNN", 1, recurrent::rnn),
    op("Range", 11, leaves::range),
    op("Reciprocal", 1, elementwise::reciprocal),
    op("ReduceL1", 1, reductions::l1),
    op("ReduceL2", 1, reductions::l2),
    op("ReduceLogSum", 1, reductions::log_sum),
    op("ReduceLogSumExp", 1, reductions::log_sum_exp),
    op("ReduceMax", 1, reductions::max),
    op("ReduceMean", 1, reductions::mean),
    op("ReduceMin", 1, reductions::min),
    op("ReduceProd", 1, reductions::prod),
    op("ReduceSum", 1, reductions::sum),
    op("ReduceSumSquare", 1, reductions::sum_square),
    op("Relu", 1, activations::relu),
    op("Reshape", 1, shapes::reshape),
    op("Resize", 10, resize::resize),
    op("ReverseSequence", 10, places::reverse_sequence),
    op("RoiAlign", 10, sampling::roi_align),
    op("RotaryEmbedding", 23, attention::rotary_embedding),
    op("Round", 11, elementwise::round),
    op("STFT", 17, signals::stft),
    op("Scan", 8, control::scan),
    op("Scatter", 9, places::scatter_elements),
    op("ScatterElements", 11, places::scatter_elements),
    op("ScatterND", 11, places::scatter_nd),
    op("Selu", 1, activations::selu),
    op_on_lists("SequenceAt", 11, sequences::at),
    op_on_lists("SequenceConstruct", 11, sequences::construct),
    op_on_lists("SequenceEmpty", 11, sequences::empty),
    op_on_lists("SequenceErase", 11, sequences::erase),
    op_on_lists("SequenceInsert", 11, sequences::insert),
    op_on_lists("SequenceLength", 11, sequences::length),
    op_on_lists("SequenceMap", 17, sequences::map),
    op("Shape", 1, leaves::shape),
    op("Shrink", 9, activations::shrink),
    op("Sigmoid", 1, activations::sigmoid),
    op("Sign", 9, integers::sign),
    op("SimplifiedLayerNormalization", 1, microsoft::simplified_layer_normalization),
    op("Sin", 7, elementwise::sin),
    op("Sinh", 9, trigonometry::sinh),
    op("Size", 1, leaves::size),
    op("Slice", 1, slices::slice),
    op("Softmax", 1, normalizations::softmax),
    op("SoftmaxCrossEntropyLoss", 12, losses::softmax_cross_entropy),
    op("Softplus", 1, activations::softplus),
    op("Softsign", 1, activations::softsign),
    op("SpaceToDepth", 1, pixels::space_to_depth),
    op("Split", 1, slices::split),
    op_on_lists("SplitToSequence", 11, sequences::split),
    op("Sqrt", 1, elementwise::sqrt),
    op("Squeeze", 1, shapes::squeeze),
    op("Sub", 1, elementwise::sub),
    op("Sum", 1, elementwise::sum),
    op("SwiGLU", 28, activations::swiglu),
    op("Swish", 24, activations::swish),
    op("Tan", 7, trigonometry::tan),
    op("Tanh", 1, elementwise::tanh),
    op("TensorScatter", 24, places::tensor_scatter),
    op("ThresholdedRelu", 10, activations::thresholded_relu),
    op("Tile", 1, shapes::tile),
    op("TopK", 1, places::top_k),
    op("Transpose", 1, shapes::transpose),
    op("Trilu", 14, places::trilu),
    op("Unique", 11, decided::unique),
    op("Unsqueeze", 1, shapes::unsqueeze),
    op("Upsample", 7, resize::upsample),
    op("Where", 9, elementwise::select),
    op("Xor", 1, integers::xor),
    of(LEARNING, "ArrayFeatureExtractor", 1, places::array_feature_extractor),
    of(LEARNING, "Binarizer", 1, learning::binarizer),
    of(LEARNING, "FeatureVectorizer", 1, learning::feature_vectorizer),
    of(LEARNING, "Imputer", 1, learning::imputer),
    of(LEARNING, "LabelEncoder", 2, learning::label_encoder),
    of(LEARNING, "LinearClassifier", 1, learning::linear_classifier),
    of(LEARNING, "LinearRegressor", 1, learning::linear_regressor),
    of(LEARNING, "Normalizer", 1, learning::normalizer),
    of(LEARNING, "OneHotEncoder", 1, learning::one_hot_encoder),
    of(LEARNING, "SVMClassifier", 1, machines::svm_classifier),
    of(LEARNING, "SVMRegressor", 1, learning::svm_regressor),
    of(LEARNING, "Scaler", 1, learning::scaler),
    of(LEARNING, "TreeEnsemble", 5, trees::tree_ensemble),
    of(LEARNING, "TreeEnsembleClassifier", 1, trees::tree_ensemble_classifier),
    of(LEARNING, "TreeEnsembleRegressor", 1, trees::tree_ensemble_regressor),
    of(LEARNING, "ZipMap", 1, learning::zip_map),
    of(MICROSOFT, "Attention", 1, microsoft::attention),
    of(MICROSOFT, "BiasGelu", 1, microsoft::bias_gelu),
    of(MICROSOFT, "DequantizeLinear", 1, quantized::dequantize_linear),
    of(MICROSOFT, "DynamicQuantizeLSTM", 1, recurrent::dynamic_quantize_lstm),
    of(MICROSOFT, "DynamicQuantizeMatMul", 1, quantized::dynamic_quantize_matmul),
    of(MICROSOFT, "EmbedLayerNormalization", 1, microsoft::embed_layer_normalization),
    of(MICROSOFT, "FastGelu", 1, microsoft::fast_gelu),
    of(MICROSOFT, "FusedConv", 1, microsoft::fused_conv),
    of(MICROSOFT, "FusedGemm", 1, microsoft::fused_gemm),
    of(MICROSOFT, "FusedMatMul", 1, microsoft::fused_matmul),
    of(MICROSOFT, "Gelu", 1, activations::gelu),
    of(MICROSOFT, "GroupQueryAttention", 1, grouped::group_query_attention),
    of(MICROSOFT, "MatMulIntegerToFloat", 1, quantized::matmul_integer_to_float),
    of(MICROSOFT, "MatMulNBits", 1, quantized::matmul_n_bits),
    of(MICROSOFT, "MultiHeadAttention", 1, microsoft::multi_head_attention),
    of(MICROSOFT, "NhwcConv", 1, convolutions::nhwc_conv),
    of(MICROSOFT, "QAttention", 1, microsoft::q_attention),
    of(MICROSOFT, "QGemm", 1, quantized::qgemm),
    of(MICROSOFT, "QLinearAdd", 1, quantized::qlinear_add),
    of(MICROSOFT, "QLinearAveragePool", 1, quantized::qlinear_average_pool),
    of(MICROSOFT, "QLinearConcat", 1, quantized::qlinear_concat),
    of(MICROSOFT, "QLinearGlobalAveragePool", 1, quantized::qlinear_global_average_pool),
    of(MICROSOFT, "QLinearLeakyRelu", 1, quantized::qlinear_leaky_relu),
    of(MICROSOFT, "QLinearMul", 1, quantized::qlinear_mul),
    of(MICROSOFT, "QLinearSigmoid", 1, quantized::qlinear_sigmoid),
    of(MICROSOFT, "QLinearSoftmax", 1, quantized::qlinear_softmax),
    of(MICROSOFT, "QLinearWhere", 1, quantized::qlinear_where),
    of(MICROSOFT, "QuantizeLinear", 1, quantized::quantize_linear),
    of(MICROSOFT, "QuickGelu", 1, microsoft::quick_gelu),
    of(MICROSOFT, "RotaryEmbedding", 1, microsoft::rotary_embedding),
    of(MICROSOFT, "SkipLayerNormalization", 1, microsoft::skip_layer_normalization),
    of(MICROSOFT, "SkipSimplifiedLayerNormalization", 1, microsoft::skip_simplified_layer_normalization),
    of(MARGAY, "Sketch", 1, sketches::sketch),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(OPERATORS.is_sorted_by(|a, b| (a.domain, a.name) < (b.domain, b.name)));
        assert!(
            OPERATORS.iter().all(|o| operator(o.domain, o.name).is_some_and(|found| found.since == o.since))
        );
    }
}
