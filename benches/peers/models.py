"""The models of the comparison, built with `onnx.helper` and numpy: random weights from fixed seeds, static shapes.

    python models.py --cache FOLDER [--minilm FILE.onnx] NAME...     builds what is missing
    python models.py --list

Each model is a folder of the cache: `model.onnx`, for attention and BERT also `mha.onnx` (the same function with
onnxruntime's own operator MultiHeadAttention, as its tools for transformers write it), and `inputs/`: `inputs.npz`,
and the same arrays as raw little-endian files that `index.txt` lists, one `NAME DTYPE DIMS FILE` a line, for peers
without numpy. `stamp` names the source that built it.

Every model is written the way exporters write it, so that each runtime has to recognize what it can. Linear layers
are MatMul with an [in, out] weight and Add, the form that every peer packs in advance.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
SEED = 20260


class Builder:
    """A graph that grows by one operator at a time; values are names."""

    def __init__(self, name):
        self.name = name
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self.random = np.random.Generator(np.random.Philox(key=[SEED, int.from_bytes(digest, "little")]))
        self.nodes, self.constants, self.inputs, self.outputs = [], {}, [], []
        self.arrays = {}

    def normal(self, shape, deviation):
        """A new weight from a normal distribution."""
        values = self.random.standard_normal(shape, dtype=np.float32)
        values *= np.float32(deviation)
        return self.constant(f"weight_{len(self.constants)}", values)

    def constant(self, name, values):
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def ints(self, *values):
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value):
        return self.constant(f"scalar_{value:g}", np.array(value, np.float32))

    def op(self, kind, *inputs, domain="", **attributes):
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def input(self, name, array):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        self.arrays[name] = np.ascontiguousarray(array)
        return name

    def normal_input(self, name, shape):
        return self.input(name, self.random.standard_normal(shape, dtype=np.float32))

    def output(self, value, shape):
        self.nodes.append(helper.make_node("Identity", [value], ["output"], name="output"))
        self.outputs.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, shape))

    def model(self):
        graph = helper.make_graph(
            self.nodes, self.name, self.inputs, self.outputs, list(self.constants.values()))
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid(d, 1) for d in sorted(domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="peers")
        if not domains:
            onnx.checker.check_model(model)
        return model


def dense(b, x, inner, outer, deviation=0.02):
    """x W + bias."""
    y = b.op("MatMul", x, b.normal((inner, outer), deviation))
    return b.op("Add", y, b.normal((outer,), deviation))


def quarter_rank(inner, outer):
    """The multiple of 32 at which two factors hold nearest to a quarter of the numbers of the matrix."""
    return max(32, 32 * round(inner * outer / 4 / (inner + outer) / 32))


def low_rank(b, x, inner, outer, deviation=0.02):
    """x A B + bias, with a quarter of the numbers of a dense layer and outputs of about the same size."""
    rank = quarter_rank(inner, outer)
    y = b.op("MatMul", x, b.normal((inner, rank), inner ** -0.5))
    y = b.op("MatMul", y, b.normal((rank, outer), deviation * (inner / rank) ** 0.5))
    return b.op("Add", y, b.normal((outer,), deviation))


def layer_norm(b, x, width):
    scale = b.constant(f"ones_{width}", np.ones(width, np.float32))
    shift = b.constant(f"zeros_{width}", np.zeros(width, np.float32))
    return b.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)


def gelu(b, x):
    """The exact form, x (1 + erf(x / sqrt 2)) / 2, spelled out."""
    erf = b.op("Erf", b.op("Div", x, b.constant("sqrt_2", np.array(2 ** 0.5, np.float32))))
    return b.op("Mul", b.op("Mul", x, b.op("Add", erf, b.scalar(1.0))), b.scalar(0.5))


def split_heads(b, x, heads, size, transposed=False):
    """[B, S, H D] to [B, H, S, D], or to [B, H, D, S]."""
    x = b.op("Reshape", x, b.ints(0, 0, heads, size))
    return b.op("Transpose", x, perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3])


def attend(b, q, k, v, heads, size, mask=None):
    """Softmax(q k' / sqrt(size) + mask) v over heads, spelled out, from and to [B, S, H D]."""
    q, v = split_heads(b, q, heads, size), split_heads(b, v, heads, size)
    scores = b.op("MatMul", q, split_heads(b, k, heads, size, transposed=True))
    scores = b.op("Div", scores, b.scalar(size ** 0.5))
    if mask is not None:
        scores = b.op("Add", scores, mask)
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    return b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.ints(0, 0, heads * size))


def attend_at_once(b, q, k, v, heads, padding=""):
    """The same as one operator of onnxruntime; `padding` says which positions may be attended to."""
    return b.op("MultiHeadAttention", q, k, v, "", padding, domain="com.microsoft", num_heads=heads)


def encoder(name, linear, layers=12, width=768, heads=12, inner=3072, length=128, words=30522, fused=False):
    """BERT without its pooler: embeddings, layers with the norm behind the sum, hidden states out."""
    b = Builder(name)
    ids = b.input("input_ids", b.random.integers(0, words, (1, length)))
    attended = b.input("attention_mask", np.ones((1, length), np.int64))
    kinds = b.input("token_type_ids", np.zeros((1, length), np.int64))
    x = b.op("Gather", b.normal((words, width), 0.02), ids)
    x = b.op("Add", x, b.op("Gather", b.normal((2, width), 0.02), kinds))
    x = b.op("Add", x, b.normal((1, length, width), 0.02))
    x = layer_norm(b, x, width)
    if fused:
        mask = b.op("Cast", attended, to=TensorProto.INT32)
    else:
        mask = b.op("Cast", b.op("Unsqueeze", attended, b.ints(1, 2)), to=TensorProto.FLOAT)
        mask = b.op("Mul", b.op("Sub", b.scalar(1.0), mask), b.scalar(-1e9))
    for _ in range(layers):
        q, k, v = (linear(b, x, width, width) for _ in range(3))
        if fused:
            y = attend_at_once(b, q, k, v, heads, mask)
        else:
            y = attend(b, q, k, v, heads, width // heads, mask)
        y = linear(b, y, width, width)
        x = layer_norm(b, b.op("Add", y, x), width)
        y = linear(b, gelu(b, linear(b, x, width, inner)), inner, width)
        x = layer_norm(b, b.op("Add", y, x), width)
    b.output(x, [1, length, width])
    return b


def resnet50(name, batch):
    """ResNet-50 in the form of torchvision, v1.5: strides in the 3x3 convolutions. Norms are folded into biases."""
    b = Builder(name)

    def conv(x, inner, outer, kernel, stride=1, gain=1.0):
        weight = b.normal((outer, inner, kernel, kernel), gain * (2 / (inner * kernel * kernel)) ** 0.5)
        return b.op("Conv", x, weight, b.normal((outer,), 0.05), kernel_shape=[kernel] * 2,
                    strides=[stride] * 2, pads=[kernel // 2] * 4)

    def relu(x):
        return b.op("Relu", x)

    x = relu(conv(b.normal_input("image", (batch, 3, 224, 224)), 3, 64, 7, stride=2))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for inner, blocks, stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for block in range(blocks):
            step = stride if block == 0 else 1
            y = relu(conv(x, channels, inner, 1))
            y = relu(conv(y, inner, inner, 3, stride=step))
            y = conv(y, inner, 4 * inner, 1, gain=0.4)
            if block == 0:
                x = conv(x, channels, 4 * inner, 1, stride=step, gain=0.7)
            x = relu(b.op("Add", y, x))
            channels = 4 * inner
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    x = b.op("Gemm", x, b.normal((1000, channels), channels ** -0.5), b.normal((1000,), 0.05), transB=1)
    b.output(x, [batch, 1000])
    return b


def linear(name, batch, width=8192):
    b = Builder(name)
    b.output(dense(b, b.normal_input("x", (batch, width)), width, width, width ** -0.5), [batch, width])
    return b


def panther(name, terms, rank, batch=32, width=8192):
    """The map of Panther's SKLinear, its 2 `terms` sketches of rank `rank` concatenated: two products and a bias."""
    b = Builder(name)
    middle = 2 * terms * rank
    y = b.op("MatMul", b.normal_input("x", (batch, width)), b.normal((width, middle), width ** -0.5))
    y = b.op("MatMul", y, b.normal((middle, width), middle ** -0.5))
    b.output(b.op("Add", y, b.normal((width,), 0.05)), [batch, width])
    return b


def product(name, m, n, k):
    b = Builder(name)
    b.output(b.op("MatMul", b.normal_input("x", (m, k)), b.normal((k, n), k ** -0.5)), [m, n])
    return b


def attention(name, length, heads=8, size=64, fused=False):
    """Attention alone, without projections, from [1, n, 512] three times to [1, n, 512]."""
    b = Builder(name)
    q, k, v = (b.normal_input(i, (1, length, heads * size)) for i in ("query", "key", "value"))
    if fused:
        y = attend_at_once(b, q, k, v, heads)
    else:
        y = attend(b, q, k, v, heads, size)
    b.output(y, [1, length, heads * size])
    return b


def minilm(name, path, length=128):
    """all-MiniLM-L6-v2 as a file has it, with its open dimensions bound."""
    b = Builder(name)
    model = onnx.load(path)
    for value in list(model.graph.input) + list(model.graph.output):
        extents = {"batch": 1, "seq": length, "sequence": length}
        for d in value.type.tensor_type.shape.dim:
            if d.HasField("dim_param"):
                d.dim_value = extents[d.dim_param]
    del model.graph.value_info[:]
    for value in model.graph.input:
        b.arrays[value.name] = {
            "input_ids": lambda: b.random.integers(1000, 30000, (1, length)),
            "attention_mask": lambda: np.ones((1, length), np.int64),
            "token_type_ids": lambda: np.zeros((1, length), np.int64),
        }[value.name]()
    b.model = lambda: model
    return b


GEMMS = [(128, 768, 768), (128, 3072, 768), (128, 768, 3072), (512, 1024, 1024)]
LENGTHS = [512, 2048, 8192]

MODELS = {
    "bert_base": lambda **form: encoder("bert_base", dense, **form),
    "bert_base_quarter": lambda **form: encoder("bert_base_quarter", low_rank, **form),
    "minilm_l6": None,  # needs --minilm
    "resnet50": lambda: resnet50("resnet50", 1),
    "resnet50_b8": lambda: resnet50("resnet50_b8", 8),
    "linear8192_b1": lambda: linear("linear8192_b1", 1),
    "linear8192_b32": lambda: linear("linear8192_b32", 32),
    "panther_l1k16": lambda: panther("panther_l1k16", 1, 16),
    "panther_l3k64": lambda: panther("panther_l3k64", 3, 64),
    **{f"gemm_{m}x{n}x{k}": lambda m=m, n=n, k=k: product(f"gemm_{m}x{n}x{k}", m, n, k) for m, n, k in GEMMS},
    **{f"attention_n{n}": lambda n=n, **form: attention(f"attention_n{n}", n, **form) for n in LENGTHS},
    # For the tests.
    "tiny": lambda: encoder("tiny", dense, layers=1, width=64, heads=2, inner=128, length=16, words=100),
}
# What also comes as `mha.onnx`.
WITH_MHA = ["bert_base", "bert_base_quarter", *(f"attention_n{n}" for n in LENGTHS)]


def write(folder, builder, stamp, variants):
    """Writes a model into its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    onnx.save(builder.model(), folder / "model.onnx")
    for name, other in variants.items():
        onnx.save(other.model(), folder / f"{name}.onnx")
    np.savez(inputs / "inputs.npz", **builder.arrays)
    lines = []
    for i, (name, array) in enumerate(builder.arrays.items()):
        kind = {"float32": "f32", "int64": "i64"}[array.dtype.name]
        (inputs / f"{i}.bin").write_bytes(array.tobytes())
        lines.append(f"{name} {kind} {','.join(map(str, array.shape))} {i}.bin\n")
    (inputs / "index.txt").write_text("".join(lines))
    (folder / "stamp").write_text(stamp)


def ensure(cache, name, minilm_path):
    """Builds a model unless the cache has it from this very source; returns whether it is there."""
    path = minilm_path if name == "minilm_l6" else None
    if name == "minilm_l6" and not path:
        return False
    stamp = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16).hexdigest()
    if path:
        stamp += hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    folder = cache / name
    if (folder / "stamp").exists() and (folder / "stamp").read_text() == stamp:
        return True
    builder = minilm(name, path) if path else MODELS[name]()
    write(folder, builder, stamp, {"mha": MODELS[name](fused=True)} if name in WITH_MHA else {})
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--minilm", type=Path, metavar="FILE.onnx")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    if args.list:
        return print("\n".join(MODELS))
    for name in args.names:
        print(name, "ready" if ensure(args.cache, name, args.minilm) else "left out: give --minilm", flush=True)


if __name__ == "__main__":
    main()
