"""Writes derivatives of whole models by another autodiff: jax over a plain interpreter of ONNX.

For each model NAME there is `NAME_gradients.npz` with the arrays `input/…`, `cotangent/OUTPUT` and
`gradient/…`: the derivatives of the sum of the output times the cotangent by every f32 initializer
with an axis. `minilm_l6` is taken from the folder of models; `resnet50_small` is made here: the
topology of ResNet-50 with an eighth of its channels and images of 64 x 64.
"""

import argparse
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from downloads import replace
from make_reference import random_inputs, write_npz

BATCH, LENGTH = 2, 16
SEED = 30
BLOCKS = (3, 4, 6, 3)
WIDTH = 8
IMAGE = 64
CLASSES = 10


class ResNet:
    """Writes the bottleneck blocks of a residual network whose normalizations are folded into convolutions."""

    def __init__(self):
        self.rng = np.random.default_rng(SEED)
        self.nodes, self.initializers = [], []

    def parameter(self, name, shape, deviation):
        array = (self.rng.standard_normal(shape) * deviation).astype(np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type, inputs, name, **attributes):
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def conv(self, x, name, channels, size, stride=1, gain=1.0):
        before, after = channels
        fan = before * size * size
        weight = self.parameter(f"{name}.weight", (after, before, size, size), gain * math.sqrt(2 / fan))
        bias = self.parameter(f"{name}.bias", (after,), 0.1)
        pads = [size // 2] * 4
        return self.node("Conv", [x, weight, bias], name, kernel_shape=[size, size],
                         strides=[stride, stride], pads=pads)

    def block(self, x, name, before, width, stride):
        after = 4 * width
        y = self.node("Relu", [self.conv(x, f"{name}.conv1", (before, width), 1)], f"{name}.relu1")
        y = self.node("Relu", [self.conv(y, f"{name}.conv2", (width, width), 3, stride)], f"{name}.relu2")
        y = self.conv(y, f"{name}.conv3", (width, after), 1, gain=0.5)
        if stride != 1 or before != after:
            x = self.conv(x, f"{name}.downsample", (before, after), 1, stride, gain=0.7)
        return self.node("Relu", [self.node("Add", [y, x], f"{name}.add")], f"{name}.relu3")

    def model(self):
        x = self.node("Relu", [self.conv("image", "conv1", (3, WIDTH), 7, 2)], "relu")
        x = self.node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        channels = WIDTH
        for stage, blocks in enumerate(BLOCKS):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                width = WIDTH << stage
                x = self.block(x, f"layer{stage + 1}.{index}", channels, width, stride)
                channels = 4 * width
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x], "avgpool")], "flatten")
        weight = self.parameter("fc.weight", (CLASSES, channels), math.sqrt(1 / channels))
        self.nodes.append(helper.make_node(
            "Gemm", [x, weight, self.parameter("fc.bias", (CLASSES,), 0.1)], ["logits"], name="fc", transB=1
        ))
        graph = helper.make_graph(
            self.nodes, "resnet50_small",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, IMAGE, IMAGE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def layer_normalization(x, scale, bias, axis=-1, epsilon=1e-5):
    assert axis == -1
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + epsilon) * scale + bias


def conv(x, weight, bias=None, kernel_shape=None, strides=(1, 1), pads=(0, 0, 0, 0)):
    padding = [(pads[0], pads[2]), (pads[1], pads[3])]
    y = jax.lax.conv_general_dilated(x, weight, strides, padding)
    return y if bias is None else y + bias[:, None, None]


def max_pool(x, kernel_shape, strides, pads):
    padding = [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 1, *kernel_shape), (1, 1, *strides), padding
    )


def reshape(x, shape, **_):
    sizes = [x.shape[i] if n == 0 else int(n) for i, n in enumerate(np.asarray(shape))]
    return x.reshape(sizes)


def slice_of(x, starts, ends, axes, steps=None):
    assert steps is None
    for start, end, axis in zip(np.asarray(starts), np.asarray(ends), np.asarray(axes)):
        x = jax.lax.slice_in_dim(x, int(start), min(int(end), x.shape[axis]), axis=int(axis))
    return x


OPERATORS = {
    "Add": jnp.add,
    "Cast": lambda x, to: x.astype(helper.tensor_dtype_to_np_dtype(to)),
    "Conv": conv,
    "Div": jnp.divide,
    "Erf": jax.scipy.special.erf,
    "Flatten": lambda x: x.reshape(x.shape[0], -1),
    "Gather": lambda x, at, axis=0: jnp.take(x, at, axis=axis),
    "Gemm": lambda x, w, b, transB: x @ w.T + b,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdims=True),
    "Identity": lambda x: x,
    "LayerNormalization": layer_normalization,
    "MatMul": jnp.matmul,
    "MaxPool": max_pool,
    "Mul": jnp.multiply,
    "Relu": lambda x: jnp.maximum(x, 0),
    "Reshape": reshape,
    "Shape": lambda x: np.array(x.shape),
    "Slice": slice_of,
    "Softmax": lambda x, axis: jax.nn.softmax(x, axis),
    "Sub": jnp.subtract,
    "Transpose": jnp.transpose,
    "Unsqueeze": lambda x, axes: jnp.expand_dims(x, tuple(int(a) for a in np.asarray(axes))),
}


def forward(graph, constants, parameters, inputs):
    """The first output of a model."""
    values = {**constants, **parameters, **inputs}
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Transpose":
            attributes = {"axes": attributes["perm"]}
        operands = [values[name] for name in node.input]
        (values[node.output[0]],) = [OPERATORS[node.op_type](*operands, **attributes)]
    return values[graph.output[0].name]


def derivatives(path, inputs, out):
    model = onnx.load(path)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    trained = {n: a for n, a in arrays.items() if a.dtype == np.float32 and a.ndim > 0}
    constants = {n: a for n, a in arrays.items() if n not in trained}
    reference = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = reference.run([model.graph.output[0].name], inputs)
    with jax.enable_x64(True):
        wide = lambda a: a.astype(np.float64) if a.dtype == np.float32 else a
        trained = {n: wide(a) for n, a in trained.items()}
        constants = {n: wide(a) for n, a in constants.items()}
        given = {n: wide(a) for n, a in inputs.items()}
        cotangent = np.random.default_rng(SEED + 1).standard_normal(expected.shape).astype(np.float32)

        def loss(parameters):
            y = forward(model.graph, constants, parameters, given)
            return (y * cotangent).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    assert np.abs(np.asarray(y) - expected).max() <= 1e-3 * np.abs(expected).max(), path
    found = {f"input/{n}": a for n, a in inputs.items()}
    found[f"cotangent/{model.graph.output[0].name}"] = cotangent
    found |= {f"gradient/{n}": np.asarray(a, np.float32) for n, a in gradients.items()}
    write_npz(out, found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of fetch_models.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    arguments = parser.parse_args()
    rng = np.random.default_rng(SEED)
    names = ("input_ids", "attention_mask", "token_type_ids")
    derivatives(
        arguments.models / "minilm_l6.onnx", random_inputs(names, BATCH, LENGTH, rng),
        arguments.out / "minilm_l6_gradients.npz",
    )
    path = arguments.out / "resnet50_small.onnx"
    replace(path, lambda temporary: onnx.save(ResNet().model(), temporary))
    image = rng.standard_normal((BATCH, 3, IMAGE, IMAGE)).astype(np.float32)
    derivatives(path, {"image": image}, arguments.out / "resnet50_small_gradients.npz")


if __name__ == "__main__":
    main()
