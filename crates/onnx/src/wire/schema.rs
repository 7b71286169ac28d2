//! The messages and fields of ONNX that this crate reads.
//!
//! One table: what is not in it is dropped before the parser runs. Numbers are those of `onnx.proto`.

use std::fmt;

use super::proto::{
    AttributeProto, Dimension, Empty, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorType, TypeProto,
    ValueInfoProto,
};

/// A kind of message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    Model,
    OperatorSet,
    Function,
    Graph,
    Node,
    Attribute,
    Tensor,
    Segment,
    SparseTensor,
    Entry,
    Value,
    Type,
    TensorType,
    /// A type that is not a tensor: only its presence is of interest.
    OtherType,
    Shape,
    Dimension,
}

/// How a field is laid out, and whether it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Encoding {
    /// Not read: dropped, whatever it holds.
    Dropped,
    Varint,
    Fixed32,
    /// Numbers of one to ten bytes, one by one or packed.
    Varints,
    Fixed32s,
    Fixed64s,
    Bytes,
    /// Bytes that stay in the file.
    Payload,
    Message(Message),
}

/// The wire types of protobuf but groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wire {
    Varint,
    Fixed64,
    Length,
    Fixed32,
}

impl Message {
    /// How the field with this number is laid out.
    pub(crate) fn field(self, number: u32) -> Encoding {
        use Encoding::{Bytes, Dropped, Fixed32, Fixed32s, Fixed64s, Payload, Varint, Varints};
        match (self, number) {
            (Message::Model, 1) => Varint,    // ir_version
            (Message::Model, 2 | 3) => Bytes, // producer_name, producer_version
            (Message::Model, 7) => Encoding::Message(Message::Graph),
            (Message::Model, 8) => Encoding::Message(Message::OperatorSet),
            (Message::Model, 14) => Encoding::Message(Message::Entry), // metadata_props
            (Message::Model, 25) => Encoding::Message(Message::Function),

            (Message::OperatorSet, 1) => Bytes,  // domain
            (Message::OperatorSet, 2) => Varint, // version

            (Message::Function, 1 | 4 | 5 | 10 | 13) => Bytes, // name, input, output, domain, overload
            (Message::Function, 7) => Encoding::Message(Message::Node),
            (Message::Function, 9) => Encoding::Message(Message::OperatorSet),
            (Message::Function, 11) => Encoding::Message(Message::Attribute), // attribute_proto

            (Message::Graph, 1) => Encoding::Message(Message::Node),
            (Message::Graph, 2) => Bytes,                              // name
            (Message::Graph, 5) => Encoding::Message(Message::Tensor), // initializer
            (Message::Graph, 11 | 12) => Encoding::Message(Message::Value), // input, output
            (Message::Graph, 15) => Encoding::Message(Message::SparseTensor), // sparse_initializer

            (Message::Node, 1..=4 | 7 | 8) => Bytes, // input, output, name, op_type, domain, overload
            (Message::Node, 5) => Encoding::Message(Message::Attribute),

            (Message::Attribute, 1 | 4 | 9 | 21) => Bytes, // name, s, strings, ref_attr_name
            (Message::Attribute, 2) => Fixed32,            // f
            (Message::Attribute, 3 | 20) => Varint,        // i, type
            (Message::Attribute, 5 | 10) => Encoding::Message(Message::Tensor), // t, tensors
            (Message::Attribute, 6 | 11) => Encoding::Message(Message::Graph), // g, graphs
            (Message::Attribute, 7) => Fixed32s,           // floats
            (Message::Attribute, 8) => Varints,            // ints

            (Message::Tensor, 1 | 5 | 7 | 11) => Varints, // dims, int32_data, int64_data, uint64_data
            (Message::Tensor, 2 | 14) => Varint,          // data_type, data_location
            (Message::Tensor, 3) => Encoding::Message(Message::Segment),
            (Message::Tensor, 4) => Fixed32s,  // float_data
            (Message::Tensor, 8) => Bytes,     // name
            (Message::Tensor, 9) => Payload,   // raw_data
            (Message::Tensor, 10) => Fixed64s, // double_data
            (Message::Tensor, 13) => Encoding::Message(Message::Entry), // external_data

            (Message::SparseTensor, 1) => Encoding::Message(Message::Tensor), // values

            (Message::Entry, 1 | 2) => Bytes, // key, value

            (Message::Value, 1) => Bytes, // name
            (Message::Value, 2) => Encoding::Message(Message::Type),

            (Message::Type, 1) => Encoding::Message(Message::TensorType),
            (Message::Type, 4 | 5 | 8 | 9) => Encoding::Message(Message::OtherType),

            (Message::TensorType, 1) => Varint, // elem_type
            (Message::TensorType, 2) => Encoding::Message(Message::Shape),

            (Message::Shape, 1) => Encoding::Message(Message::Dimension),

            (Message::Dimension, 1) => Varint, // dim_value
            (Message::Dimension, 2) => Bytes,  // dim_param

            _ => Dropped,
        }
    }

    /// The name in `onnx.proto`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Message::Model => "ModelProto",
            Message::OperatorSet => "OperatorSetIdProto",
            Message::Function => "FunctionProto",
            Message::Graph => "GraphProto",
            Message::Node => "NodeProto",
            Message::Attribute => "AttributeProto",
            Message::Tensor => "TensorProto",
            Message::Segment => "TensorProto.Segment",
            Message::SparseTensor => "SparseTensorProto",
            Message::Entry => "StringStringEntryProto",
            Message::Value => "ValueInfoProto",
            Message::Type => "TypeProto",
            Message::TensorType => "TypeProto.Tensor",
            Message::OtherType => "TypeProto",
            Message::Shape => "TensorShapeProto",
            Message::Dimension => "TensorShapeProto.Dimension",
        }
    }

    /// Memory that one parsed message takes, less what its fields point to.
    pub(crate) fn memory_bytes(self) -> usize {
        match self {
            Message::Model => size_of::<ModelProto>(),
            Message::OperatorSet => size_of::<OperatorSetIdProto>(),
            Message::Function => size_of::<FunctionProto>(),
            Message::Graph => size_of::<GraphProto>(),
            Message::Node => size_of::<NodeProto>(),
            Message::Attribute => size_of::<AttributeProto>(),
            Message::Tensor => size_of::<TensorProto>(),
            Message::Segment => size_of::<Empty>(),
            Message::SparseTensor => size_of::<SparseTensorProto>(),
            Message::Entry => size_of::<StringStringEntryProto>(),
            Message::Value => size_of::<ValueInfoProto>(),
            Message::Type => size_of::<TypeProto>(),
            Message::TensorType => size_of::<TensorType>(),
            Message::OtherType => size_of::<Empty>(),
            Message::Shape => size_of::<TensorShapeProto>(),
            Message::Dimension => size_of::<Dimension>(),
        }
    }
}

impl Encoding {
    /// Whether a value of this wire type may hold the field.
    pub(crate) fn allows(self, wire: Wire) -> bool {
        match self {
            Encoding::Dropped => true,
            Encoding::Varint => wire == Wire::Varint,
            Encoding::Fixed32 => wire == Wire::Fixed32,
            Encoding::Varints => matches!(wire, Wire::Varint | Wire::Length),
            Encoding::Fixed32s => matches!(wire, Wire::Fixed32 | Wire::Length),
            Encoding::Fixed64s => matches!(wire, Wire::Fixed64 | Wire::Length),
            Encoding::Bytes | Encoding::Payload | Encoding::Message(_) => wire == Wire::Length,
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::Dropped => "anything",
            Encoding::Varint => "a number",
            Encoding::Fixed32 => "four bytes",
            Encoding::Varints => "numbers",
            Encoding::Fixed32s => "numbers of four bytes",
            Encoding::Fixed64s => "numbers of eight bytes",
            Encoding::Bytes | Encoding::Payload => "a run of bytes",
            Encoding::Message(_) => "a message",
        })
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wire::Varint => "a number",
            Wire::Fixed64 => "eight bytes",
            Wire::Length => "a run of bytes",
            Wire::Fixed32 => "four bytes",
        })
    }
}
