"""Trains the convolutional network of the demo with margay and writes `model.onnx` and `samples.npz`.

    cargo build --release
    python3 -m venv venv && venv/bin/pip install -r demo/requirements.txt
    venv/bin/python demo/train.py

Data: Fashion-MNIST (Zalando SE, MIT licence) from the Debian package dataset-fashion-mnist,
version 0.0~git20200523.55506a9-1, fetched with apt-get and not installed. The files are compared
with the SHA-256 below.

Network: five layers with weights, 257,162 f32 parameters.

    image [batch, 1, 28, 28] in [0, 1]
    conv1 3x3  1 -> 32, relu
    conv2 3x3 32 -> 64, relu, max pool 2
    conv3 3x3 64 -> 64, relu, max pool 2, flatten
    fc1 3136 -> 64, relu
    fc2 64 -> 10 = logits [batch, 10]

This script writes the untrained network and the samples, runs `margay train`, and has onnxruntime
count what the trained one gets right on the 10,000 test images, which training never sees. 3,000 of
the training images are held out: the parameters with the smallest loss on them are kept.

`samples.npz` holds `image` (uint8 [400, 1, 28, 28]) and `label` (int64 [400]), the first 400 test
images, and `calibration_image` (uint8 [256, 1, 28, 28]), 256 random training images. Divide by 255.
"""

import argparse
import gzip
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

PACKAGE = "dataset-fashion-mnist"
FILES = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}

SEED = 7
TEST_SAMPLES = 400
CALIBRATION_SAMPLES = 256
OPTIONS = "--batch 128 --epochs 3 --optimizer adamw --learning-rate 2e-3 --weight-decay 0.02"
OPTIONS += " --warm-up 0.07 --held-out 0.05"

CONVOLUTIONS = {"conv1": (1, 32), "conv2": (32, 64), "conv3": (64, 64)}
LINEARS = {"fc1": (7 * 7 * 64, 64), "fc2": (64, 10)}


# Data


def load_data():
    """Downloads Fashion-MNIST: images as uint8 [N, 1, 28, 28], labels as int64 [N]."""
    with tempfile.TemporaryDirectory() as work:
        # apt drops its rights to download; it may not write into a private directory.
        os.chmod(work, 0o777)
        subprocess.run(["apt-get", "-qq", "download", PACKAGE], cwd=work, check=True)
        (archive,) = Path(work).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), f"{work}/root"], check=True)
        folder = Path(work, "root/usr/share/datasets/fashion-mnist")
        arrays = [read_idx(folder / name, digest) for name, digest in FILES.items()]
    train_images, train_labels, test_images, test_labels = arrays
    return (
        (train_images[:, None], train_labels.astype(np.int64)),
        (test_images[:, None], test_labels.astype(np.int64)),
    )


def read_idx(path, digest):
    """A gzipped IDX file of unsigned bytes, compared with its SHA-256."""
    compressed = path.read_bytes()
    found = hashlib.sha256(compressed).hexdigest()
    if found != digest:
        raise SystemExit(f"error: {path.name} has sha256 {found}, expected {digest}")
    content = gzip.decompress(compressed)
    axes = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=axes, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


# Network


def initial_parameters(rng):
    """He initialisation; kernels are [out, in, 3, 3] and linear weights [out, in]."""
    parameters = {}
    for name, (inputs, outputs) in CONVOLUTIONS.items():
        parameters[name] = scaled_normal(rng, (outputs, inputs, 3, 3), 9 * inputs)
    for name, (inputs, outputs) in LINEARS.items():
        parameters[name] = scaled_normal(rng, (outputs, inputs), inputs)
    return parameters


def scaled_normal(rng, shape, fan_in):
    weight = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
    return {"weight": weight, "bias": np.zeros(shape[0], np.float32)}


# Files


def write_model(parameters, path):
    """The network as ordinary ONNX: channels first, opset 17, IR version 8, dynamic batch."""
    nodes, initializers = [], []

    def constant(name, array):
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(op_type, inputs, name, output=None, **attributes):
        output = output or f"{name}_output"
        nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def layer(op_type, x, name, **attributes):
        weight = constant(f"{name}.weight", parameters[name]["weight"])
        bias = constant(f"{name}.bias", parameters[name]["bias"])
        return node(op_type, [x, weight, bias], name, **attributes)

    def conv_relu(x, index):
        square = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
        x = layer("Conv", x, f"conv{index}", **square)
        return node("Relu", [x], f"relu{index}")

    def pool(x, name):
        return node("MaxPool", [x], name, kernel_shape=[2, 2], strides=[2, 2])

    x = conv_relu("image", 1)
    x = pool(conv_relu(x, 2), "pool2")
    x = pool(conv_relu(x, 3), "pool3")
    x = node("Flatten", [x], "flatten", axis=1)
    x = node("Relu", [layer("Gemm", x, "fc1", transB=1)], "relu4")
    layer("Gemm", x, "fc2", transB=1, output="logits")

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "fashion", [image], [logits], initializers)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="margay demo")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_samples(train_images, test_images, test_labels, path):
    rng = np.random.default_rng(SEED)
    chosen = np.sort(rng.choice(len(train_images), CALIBRATION_SAMPLES, replace=False))
    np.savez_compressed(
        path,
        image=test_images[:TEST_SAMPLES],
        label=test_labels[:TEST_SAMPLES],
        calibration_image=train_images[chosen],
    )


def accuracy(model, images, labels):
    """Share of uint8 images [N, 1, 28, 28] that onnxruntime classifies as labelled."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    correct = 0
    for begin in range(0, len(images), 500):
        batch = images[begin : begin + 500].astype(np.float32) / 255
        (logits,) = session.run(["logits"], {"image": batch})
        correct += int((logits.argmax(axis=1) == labels[begin : begin + 500]).sum())
    return correct / len(images)


def main():
    root = Path(__file__).parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=root / "demo", help="output folder")
    parser.add_argument("--margay", type=Path, default=root / "target/release/margay", help="the program")
    arguments = parser.parse_args()

    (train_images, train_labels), (test_images, test_labels) = load_data()
    model, samples = arguments.out / "model.onnx", arguments.out / "samples.npz"
    with tempfile.TemporaryDirectory() as work:
        untrained, data = Path(work, "fashion.onnx"), Path(work, "train.npz")
        write_model(initial_parameters(np.random.default_rng(SEED)), untrained)
        np.savez(data, image=train_images.astype(np.float32) / 255, label=train_labels)
        command = [arguments.margay, "train", untrained, "--data", data, "--labels", "label"]
        command += [*OPTIONS.split(), "--seed", str(SEED), "--export", model]
        subprocess.run(command, check=True)
    write_samples(train_images, test_images, test_labels, samples)

    test = accuracy(model, test_images, test_labels)
    with np.load(samples) as stored:
        embedded = accuracy(model, stored["image"], stored["label"])
    print(f"accuracy on {len(test_images)} test images: {test:.4f}")
    print(f"accuracy on the {TEST_SAMPLES} in {samples.name}: {embedded:.4f}")
    print(f"{model}: {model.stat().st_size} bytes, {samples}: {samples.stat().st_size} bytes")


if __name__ == "__main__":
    main()
