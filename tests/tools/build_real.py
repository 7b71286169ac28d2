"""Builds ONNX files around weights that packages hold as checkpoints of torch.

The graphs are those of the networks as exporters write them, with an open batch. The reader of checkpoints knows tensors
and nothing else: a pickle that asks for anything more is refused. Only numpy and onnx are needed.
"""

import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from build_minilm import IR_VERSION, OPSET, Encoder, GraphWriter, read_safetensors
from downloads import replace

STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8", "IntStorage": "<i4", "HalfStorage": "<f2", "DoubleStorage": "<f8"}


class Storage:
    """The numbers that tensors of a checkpoint are views of; they may be read after the tensors."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.numbers = None

    def view(self, offset, shape, strides):
        steps = [stride * self.dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(self.numbers[offset:], shape, steps).copy()


class Reader(pickle.Unpickler):
    """Reads names and views; `storage` gives the storage of a key and a type."""

    def __init__(self, file, storage):
        super().__init__(file)
        self.storage = storage

    def find_class(self, module, name):
        if name in STORAGES:
            return name
        known = {
            "_rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides),
            "OrderedDict": collections.OrderedDict,
        }
        if name not in known:
            raise pickle.UnpicklingError(f"a checkpoint with `{module}.{name}`")
        return known[name]

    def persistent_load(self, saved):
        return self.storage(saved[2], STORAGES[saved[1]])


def read_checkpoint(path):
    """The tensors of a file that torch wrote, in its form of today or in that of before version 1.6."""
    storages = {}

    def storage(key, dtype):
        return storages.setdefault(key, Storage(dtype))

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (tree,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            with archive.open(tree) as file:
                views = Reader(file, storage).load()
            for key, found in storages.items():
                content = archive.read(f"{tree.removesuffix('data.pkl')}data/{key}")
                found.numbers = np.frombuffer(content, found.dtype)
    else:
        with open(path, "rb") as file:
            for _ in range(3):  # a magic number, a version, sizes of integers
                Reader(file, storage).load()
            views = Reader(file, storage).load()
            for key in Reader(file, storage).load():
                count = int.from_bytes(file.read(8), "little")
                found = storages[key]
                found.numbers = np.frombuffer(file.read(count * found.dtype.itemsize), found.dtype)
    return {name: view[0].view(*view[1:]) for name, view in views.items()}


class Network(GraphWriter):
    """A graph writer that names nodes by what they do and the weights they have."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors

    def weight(self, name):
        return self.constant(name, self.tensors[name])

    def batch_norm(self, x, key, epsilon):
        parts = [self.weight(f"{key}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        return self.node("BatchNormalization", [x, *parts], key, epsilon=epsilon)

    def model(self, name, inputs, output, result, shape):
        """The model whose only output is the value `result`."""
        self.nodes.append(helper.make_node("Identity", [result], [output], name="output"))
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n, dims in inputs.items()]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, name, ports, outputs, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                 producer_name="margay tests")


def crepe(tensors):
    """The pitch network CREPE: six convolutions along the time of frames of 1024 samples, and a classifier."""
    g = Network(tensors)
    x = g.node("Unsqueeze", ["frames", g.axes("axes_1_3", 1, 3)], "image")
    for i in range(1, 7):
        kernel = tensors[f"conv{i}.weight"].shape[2]
        before, stride = ((kernel - 2) // 2, 1) if i > 1 else (254, 4)
        after = before + 1 if i > 1 else before
        x = g.node("Pad", [x, g.axes(f"pads{i}", 0, 0, before, 0, 0, 0, after, 0)], f"pad{i}")
        x = g.node("Conv", [x, g.weight(f"conv{i}.weight"), g.weight(f"conv{i}.bias")], f"conv{i}",
                   kernel_shape=[kernel, 1], strides=[stride, 1])
        x = g.batch_norm(g.node("Relu", [x], f"relu{i}"), f"conv{i}_BN", 1e-3)
        x = g.node("MaxPool", [x], f"pool{i}", kernel_shape=[2, 1], strides=[2, 1])
    x = g.node("Reshape", [g.node("Transpose", [x], "times", perm=[0, 2, 1, 3]), g.axes("flat", 0, -1)], "flatten")
    x = g.node("Gemm", [x, g.weight("classifier.weight"), g.weight("classifier.bias")], "classifier", transB=1)
    x = g.node("Sigmoid", [x], "sigmoid")
    return g.model("crepe", {"frames": ["batch", 1024]}, "salience", x, ["batch", 360])


# Blocks of each stage of EfficientNet-Lite0, and the stride of the first of them.
STAGES = [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)]


def efficientnet(tensors):
    """EfficientNet-Lite0 for images of 224 by 224."""
    g = Network(tensors)

    def convolved(x, conv, norm, stride=1, capped=True):
        channels, inner, kernel, _ = tensors[f"{conv}.weight"].shape
        # What is padded to even extents for a stride of 2 lies behind.
        before, after = (kernel - stride) // 2, (kernel - 1) // 2
        depthwise = inner == 1 and kernel > 1
        y = g.node("Conv", [x, g.weight(f"{conv}.weight")], conv, kernel_shape=[kernel, kernel], strides=[stride, stride],
                   pads=[before, before, after, after], group=channels if depthwise else 1)
        y = g.batch_norm(y, norm, 1e-3)
        return g.node("Clip", [y, g.scalar("zero", 0), g.scalar("six", 6)], f"{norm}/Clip") if capped else y

    x = convolved("image", "_conv_stem", "_bn0", stride=2)
    strides = [first if at == 0 else 1 for count, first in STAGES for at in range(count)]
    for block, stride in enumerate(strides):
        key, skipped = f"_blocks.{block}", x
        if f"{key}._expand_conv.weight" in tensors:
            x = convolved(x, f"{key}._expand_conv", f"{key}._bn0")
        x = convolved(x, f"{key}._depthwise_conv", f"{key}._bn1", stride)
        x = convolved(x, f"{key}._project_conv", f"{key}._bn2", capped=False)
        widened = tensors.get(f"{key}._expand_conv.weight", tensors[f"{key}._depthwise_conv.weight"])
        given = widened.shape[1] if f"{key}._expand_conv.weight" in tensors else widened.shape[0]
        if stride == 1 and given == tensors[f"{key}._project_conv.weight"].shape[0]:
            x = g.node("Add", [x, skipped], f"{key}/Add")
    x = convolved(x, "_conv_head", "_bn1")
    x = g.node("Flatten", [g.node("GlobalAveragePool", [x], "pool")], "flatten")
    x = g.node("Gemm", [x, g.weight("_fc.weight"), g.weight("_fc.bias")], "_fc", transB=1)
    return g.model("efficientnet_lite0", {"image": ["batch", 3, 224, 224]}, "logits", x, ["batch", 1000])


def antiberty(tensors):
    """AntiBERTy, 8 layers of 512, which says what residues of antibodies were masked."""
    own = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    return Encoder(own, "AntiBERTy", heads=8).model(language=True)


def minilm(tensors):
    """all-MiniLM-L6-v2."""
    return Encoder(tensors, "all-MiniLM-L6-v2", heads=12).model()


# What is built, and how its weights are read.
NETWORKS = {
    "antiberty": (read_checkpoint, antiberty),
    "crepe": (read_checkpoint, crepe),
    "efficientnet": (read_checkpoint, efficientnet),
    "minilm": (read_safetensors, minilm),
}


def build(network, weights, path):
    """Writes the checked model of a network of `NETWORKS` to `path`."""
    read, write = NETWORKS[network]
    model = write(read(weights))
    onnx.checker.check_model(model, full_check=True)
    replace(Path(path), lambda temporary: onnx.save(model, temporary))
