"""Builds the ONNX file of all-MiniLM-L6-v2 from its safetensors weights.

The graph is the sentence encoder as an exporter would write it: token ids to the last hidden state,
with dynamic axes `batch` and `seq`, exact GELU through `Erf` and an additive attention mask. Only
numpy and onnx are needed.
"""

import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from downloads import replace

OPSET = 17
IR_VERSION = 8
HEADS = 12
EPSILON = 1e-12
MASKED = -1e9


def read_safetensors(path):
    """The f32 tensors of a safetensors file as a dictionary of numpy arrays."""
    content = Path(path).read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + header_bytes])
    payload = memoryview(content)[8 + header_bytes :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            flat = np.frombuffer(payload[begin:end], dtype="<f4")
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


class GraphWriter:
    """Collects nodes and initializers; every method returns the name of the value it made."""

    def __init__(self):
        self.nodes = []
        self.initializers = {}

    def constant(self, name, array):
        """An initializer; one that exists already under this name is reused."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def scalar(self, name, value):
        """A rank-0 f32 initializer."""
        self.initializers.setdefault(name, numpy_helper.from_array(np.float32(value), name))
        return name

    def axes(self, name, *values):
        """An int64 vector: axes, shapes and slice bounds."""
        return self.constant(name, np.array(values, dtype=np.int64))

    def node(self, op_type, inputs, name, **attributes):
        """A node with one output, which carries the node's name."""
        output = f"{name}_output"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output


class Encoder:
    """Writes the layers of a BERT encoder with the weights `tensors`."""

    def __init__(self, tensors, name, heads):
        self.graph = GraphWriter()
        self.tensors = tensors
        self.name, self.head_count = name, heads
        self.hidden = tensors["embeddings.word_embeddings.weight"].shape[1]

    def table(self, key):
        return self.graph.constant(key, self.tensors[key])

    def linear(self, x, key, name):
        """x W^T + b, with the transposed weight stored."""
        weight = self.graph.constant(f"{key}.weight_T", self.tensors[f"{key}.weight"].T)
        product = self.graph.node("MatMul", [x, weight], f"{name}/MatMul")
        return self.graph.node("Add", [product, self.table(f"{key}.bias")], f"{name}/Add")

    def layer_norm(self, x, key, name):
        inputs = [x, self.table(f"{key}.weight"), self.table(f"{key}.bias")]
        return self.graph.node("LayerNormalization", inputs, name, axis=-1, epsilon=EPSILON)

    def gelu(self, x, name):
        """x (1 + erf(x / sqrt 2)) / 2"""
        g = self.graph
        scaled = g.node("Div", [x, g.scalar("sqrt_two", math.sqrt(2))], f"{name}/Div")
        erf = g.node("Erf", [scaled], f"{name}/Erf")
        shifted = g.node("Add", [erf, g.scalar("one", 1)], f"{name}/Add")
        product = g.node("Mul", [x, shifted], f"{name}/Mul")
        return g.node("Mul", [product, g.scalar("half", 0.5)], f"{name}/Mul_1")

    def embeddings(self):
        g = self.graph
        word = g.node(
            "Gather", [self.table("embeddings.word_embeddings.weight"), "input_ids"], "emb/word"
        )
        kind = g.node(
            "Gather",
            [self.table("embeddings.token_type_embeddings.weight"), "token_type_ids"],
            "emb/type",
        )
        shape = g.node("Shape", ["input_ids"], "emb/Shape")
        length = g.node("Gather", [shape, g.axes("axis_1", 1)], "emb/length", axis=0)
        position = g.node(
            "Slice",
            [
                self.table("embeddings.position_embeddings.weight"),
                g.axes("axis_0", 0),
                length,
                g.axes("axis_0", 0),
            ],
            "emb/position",
        )
        total = g.node("Add", [word, kind], "emb/Add")
        total = g.node("Add", [total, position], "emb/Add_1")
        return self.layer_norm(total, "embeddings.LayerNorm", "emb/LN")

    def mask_bias(self):
        """0 where a token is attended and `MASKED` where it is padding: [batch, 1, 1, seq]."""
        g = self.graph
        mask = g.node("Unsqueeze", ["attention_mask", g.axes("axes_1_2", 1, 2)], "mask/Unsqueeze")
        mask = g.node("Cast", [mask], "mask/Cast", to=TensorProto.FLOAT)
        padding = g.node("Sub", [g.scalar("one", 1), mask], "mask/Sub")
        return g.node("Mul", [padding, g.scalar("masked", MASKED)], "mask/Mul")

    def heads(self, x, name, perm):
        """[batch, seq, hidden] to one matrix per head, axes ordered by `perm`."""
        g = self.graph
        shape = g.axes("shape_heads", 0, 0, self.head_count, self.hidden // self.head_count)
        split = g.node("Reshape", [x, shape], f"{name}/Reshape")
        return g.node("Transpose", [split], f"{name}/Transpose", perm=perm)

    def attention(self, x, mask, key, name):
        g = self.graph
        query = self.linear(x, f"{key}.self.query", f"{name}/q")
        query = self.heads(query, f"{name}/q", [0, 2, 1, 3])
        keys = self.heads(self.linear(x, f"{key}.self.key", f"{name}/k"), f"{name}/k", [0, 2, 3, 1])
        value = self.linear(x, f"{key}.self.value", f"{name}/v")
        value = self.heads(value, f"{name}/v", [0, 2, 1, 3])
        scores = g.node("MatMul", [query, keys], f"{name}/qk")
        scale = g.scalar("sqrt_head", math.sqrt(self.hidden // self.head_count))
        scores = g.node("Div", [scores, scale], f"{name}/scale")
        scores = g.node("Add", [scores, mask], f"{name}/mask")
        weights = g.node("Softmax", [scores], f"{name}/softmax", axis=-1)
        mixed = g.node("MatMul", [weights, value], f"{name}/pv")
        mixed = g.node("Transpose", [mixed], f"{name}/merge/Transpose", perm=[0, 2, 1, 3])
        shape = g.axes("shape_hidden", 0, 0, self.hidden)
        mixed = g.node("Reshape", [mixed, shape], f"{name}/merge/Reshape")
        return self.linear(mixed, f"{key}.output.dense", f"{name}/o")

    def layer(self, x, mask, index):
        g = self.graph
        key, name = f"encoder.layer.{index}", f"layer.{index}"
        attended = self.attention(x, mask, f"{key}.attention", name)
        x = g.node("Add", [attended, x], f"{name}/residual1")
        x = self.layer_norm(x, f"{key}.attention.output.LayerNorm", f"{name}/LN1")
        wide = self.linear(x, f"{key}.intermediate.dense", f"{name}/ffn1")
        wide = self.gelu(wide, f"{name}/gelu")
        narrow = self.linear(wide, f"{key}.output.dense", f"{name}/ffn2")
        x = g.node("Add", [narrow, x], f"{name}/residual2")
        return self.layer_norm(x, f"{key}.output.LayerNorm", f"{name}/LN2")

    def language_head(self, x):
        """Logits of the tokens: a layer, its normalization, and the product with the table of words."""
        key, name = "cls.predictions", "head"
        x = self.gelu(self.linear(x, f"{key}.transform.dense", f"{name}/transform"), f"{name}/gelu")
        x = self.layer_norm(x, f"{key}.transform.LayerNorm", f"{name}/LN")
        weight = self.graph.constant(f"{key}.decoder.weight_T", self.tensors[f"{key}.decoder.weight"].T)
        logits = self.graph.node("MatMul", [x, weight], f"{name}/MatMul")
        return self.graph.node("Add", [logits, self.table(f"{key}.bias")], f"{name}/Add")

    def model(self, language=False):
        """The encoder, or a model of masked language, whose output is logits of the tokens."""
        x, mask = self.embeddings(), self.mask_bias()
        index = 0
        while f"encoder.layer.{index}.output.dense.weight" in self.tensors:
            x = self.layer(x, mask, index)
            index += 1
        output, width = "last_hidden_state", self.hidden
        if language:
            x, output, width = self.language_head(x), "logits", len(self.tensors["cls.predictions.bias"])
        self.graph.nodes.append(helper.make_node("Identity", [x], [output], name="output"))
        axes = ["batch", "seq"]
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, axes)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [*axes, width])
        graph = helper.make_graph(
            self.graph.nodes,
            self.name,
            inputs,
            [result],
            list(self.graph.initializers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="margay tests",
        )


def build(weights, path):
    """Writes the checked model to `path`."""
    model = Encoder(read_safetensors(weights), "all-MiniLM-L6-v2", HEADS).model()
    onnx.checker.check_model(model, full_check=True)
    replace(Path(path), lambda temporary: onnx.save(model, temporary))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="model.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    arguments = parser.parse_args()
    build(arguments.weights, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
