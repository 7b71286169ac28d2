//! Training of models, from a graph to a trained graph: the loop, samples with labels, ranks, forms of attention,
//! structured weights, dropout.

mod attention_forms;
mod convolutions;
mod dropout;
mod fit;
mod ranks;
mod schemes;
mod structured;
mod supervised;
mod support;
