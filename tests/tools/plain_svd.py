"""The baseline: truncated SVD of every linear weight, at one share of its bytes.

Each `MatMul` or `Gemm` by a constant matrix W [m, n] becomes two products by the factors of the
best rank-r approximation of W in the Frobenius norm, where r = floor(ratio m n / (m + n)). It knows
neither the data nor which layers matter. Convolutions and embedding tables are left alone, as are
matrices that no rank would make smaller.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from downloads import replace

SMALLEST_SIDE = 16


def truncated_svd(weight, rank):
    """Factors [m, rank] and [rank, n], the singular values shared evenly between them."""
    left, values, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    root = np.sqrt(values[:rank])
    left, right = left[:, :rank] * root, root[:, None] * right[:rank]
    return left.astype(np.float32), right.astype(np.float32)


def constants(graph):
    """The constant tensors of the graph by name: initializers and `Constant` nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def attribute(node, name, default):
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def factored(node, weight, ratio):
    """The two nodes and two initializers for `node`, or None where nothing would be saved."""
    m, n = weight.shape
    rank = int(ratio * m * n / (m + n))
    if min(m, n) < SMALLEST_SIDE or not 0 < rank < min(m, n):
        return None
    left, right = truncated_svd(weight, rank)
    # A factor is stored the way round that the node expects its weight.
    transposed = bool(attribute(node, "transB", 0))
    names = [f"{node.output[0]}/left", f"{node.output[0]}/right"]
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(w.T if transposed else w), name)
        for w, name in zip((left, right), names)
    ]
    between = f"{node.output[0]}/rank"
    inputs = [between, names[1], *node.input[2:]]
    first = helper.make_node(
        node.op_type, [node.input[0], names[0]], [between], name=f"{node.name}/left"
    )
    second = helper.make_node(node.op_type, inputs, node.output, name=f"{node.name}/right")
    if node.op_type == "Gemm":
        kept = [a for a in node.attribute if a.name in ("transA", "alpha", "transB")]
        first.attribute.extend(kept)
        second.attribute.extend(a for a in node.attribute if a.name in ("beta", "transB"))
    return [first, second], tensors


def compress(model, ratio):
    """Replaces the linear weights in place; returns their count and elements before and after."""
    graph = model.graph
    known = constants(graph)
    nodes, tensors, before, after = [], [], 0, 0
    for node in graph.node:
        replacement = None
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in known:
            weight = numpy_helper.to_array(known[node.input[1]])
            if weight.ndim == 2 and weight.dtype == np.float32:
                if attribute(node, "transB", 0):
                    weight = weight.T
                replacement = factored(node, weight, ratio)
        if replacement is None:
            nodes.append(node)
            continue
        nodes.extend(replacement[0])
        tensors.extend(replacement[1])
        before += weight.size
        after += sum(int(np.prod(tensor.dims)) for tensor in replacement[1])
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used] + tensors
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    return len(tensors) // 2, before, after


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ratio", type=float, required=True, help="bytes kept, e.g. 0.5")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    arguments = parser.parse_args()
    if not 0 < arguments.ratio < 1:
        sys.exit("error: --ratio lies between 0 and 1")
    model = onnx.load(arguments.model)
    layers, before, after = compress(model, arguments.ratio)
    onnx.checker.check_model(model)
    replace(arguments.out, lambda temporary: onnx.save(model, temporary))
    print(f"{layers} layers, {before} weights before, {after} after")


if __name__ == "__main__":
    main()
