//! The operators of ONNX that are imported.

use super::call::{Call, Imported};
use super::{
    Importer, activations, control, convolutions, elementwise, leaves, normalizations, products, recurrent,
    reductions, shapes, slices, transposed,
};

/// The domain `ai.onnx`.
const DEFAULT: &str = "";

/// The domain of operators that onnxruntime adds.
const MICROSOFT: &str = "com.microsoft";

/// Adds what a node means to the graph.
type Import = for<'a> fn(&mut Importer<'a>, &Call<'a>) -> Imported;

/// An operator of ONNX, or of another domain.
pub(super) struct Operator {
    /// The domain; empty for the default one.
    pub(super) domain: &'static str,
    /// Its name there.
    pub(super) name: &'static str,
    /// The operator set of the domain that introduced it. Later changes are dealt with in the function.
    pub(super) since: i64,
    /// Adds what it means to the graph.
    pub(super) import: Import,
}

/// An operator of the default domain.
const fn op(name: &'static str, since: i64, import: Import) -> Operator {
    of(DEFAULT, name, since, import)
}

const fn of(domain: &'static str, name: &'static str, since: i64, import: Import) -> Operator {
    Operator { domain, name, since, import }
}

/// The operator of a domain with a name.
pub(super) fn operator(domain: &str, name: &str) -> Option<&'static Operator> {
    let found = OPERATORS.binary_search_by(|o| (o.domain, o.name).cmp(&(domain, name)));
    found.ok().map(|at| &OPERATORS[at])
}

/// Sorted by domain, then by name.
pub(super) const OPERATORS: &[Operator] = &[
    op("Abs", 1, elementwise::abs),
    op("Add", 1, elementwise::add),
    op("And", 1, elementwise::and),
    op("Atan", 7, elementwise::atan),
    op("AveragePool", 1, convolutions::average_pool),
    op("BatchNormalization", 1, normalizations::batch_normalization),
    op("Cast", 1, elementwise::cast),
    op("CastLike", 15, elementwise::cast_like),
    op("Ceil", 1, elementwise::ceil),
    op("Clip", 1, elementwise::clip),
    op("Concat", 1, shapes::concat),
    op("Constant", 1, leaves::constant),
    op("ConstantOfShape", 9, leaves::constant_of_shape),
    op("Conv", 1, convolutions::conv),
    op("ConvTranspose", 1, transposed::conv_transpose),
    op("Cos", 7, elementwise::cos),
    op("Div", 1, elementwise::div),
    op("Dropout", 1, leaves::dropout),
    op("Elu", 1, activations::elu),
    op("Equal", 1, elementwise::equal),
    op("Erf", 9, elementwise::erf),
    op("Exp", 1, elementwise::exp),
    op("Expand", 8, shapes::expand),
    op("Flatten", 1, shapes::flatten),
    op("Floor", 1, elementwise::floor),
    op("GRU", 1, recurrent::gru),
    op("Gather", 1, shapes::gather),
    op("Gelu", 20, activations::gelu),
    op("Gemm", 1, products::gemm),
    op("GlobalAveragePool", 1, convolutions::global_average_pool),
    op("GlobalMaxPool", 1, convolutions::global_max_pool),
    op("Greater", 1, elementwise::greater),
    op("GreaterOrEqual", 12, elementwise::greater_or_equal),
    op("HardSigmoid", 1, activations::hard_sigmoid),
    op("HardSwish", 14, activations::hard_swish),
    op("Identity", 1, leaves::identity),
    op("If", 1, control::choose),
    op("LSTM", 1, recurrent::lstm),
    op("LayerNormalization", 17, normalizations::layer_normalization),
    op("LeakyRelu", 1, activations::leaky_relu),
    op("Less", 1, elementwise::less),
    op("LessOrEqual", 12, elementwise::less_or_equal),
    op("Log", 1, elementwise::log),
    op("LogSoftmax", 1, normalizations::log_softmax),
    op("Loop", 1, control::repeat),
    op("MatMul", 1, products::matmul),
    op("Max", 1, elementwise::max),
    op("MaxPool", 1, convolutions::max_pool),
    op("Mean", 1, elementwise::mean),
    op("Min", 1, elementwise::min),
    op("Mul", 1, elementwise::mul),
    op("Neg", 1, elementwise::neg),
    op("Not", 1, elementwise::not),
    op("Or", 1, elementwise::or),
    op("PRelu", 1, activations::prelu),
    op("Pad", 1, shapes::pad),
    op("Pow", 1, elementwise::pow),
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
    op("Round", 11, elementwise::round),
    op("Scan", 9, control::scan),
    op("ScatterND", 11, shapes::scatter_nd),
    op("Shape", 1, leaves::shape),
    op("Sigmoid", 1, activations::sigmoid),
    op("Sin", 7, elementwise::sin),
    op("Size", 1, leaves::size),
    op("Slice", 1, slices::slice),
    op("Softmax", 1, normalizations::softmax),
    op("Softplus", 1, activations::softplus),
    op("Split", 1, slices::split),
    op("Sqrt", 1, elementwise::sqrt),
    op("Squeeze", 1, shapes::squeeze),
    op("Sub", 1, elementwise::sub),
    op("Sum", 1, elementwise::sum),
    op("Tanh", 1, elementwise::tanh),
    op("Tile", 1, shapes::tile),
    op("Transpose", 1, shapes::transpose),
    op("Unsqueeze", 1, shapes::unsqueeze),
    op("Where", 9, elementwise::select),
    of(MICROSOFT, "Gelu", 1, activations::gelu),
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
