"""Writes the fixtures of `tests/panther/torch.rs`: torch's layer MultiheadAttention as its two exporters write it, and what
performer-pytorch computes with its weights.

    pip install torch onnx onnxscript numpy performer-pytorch
    python tests/tools/make_torch_attention.py tests/fixtures/torch_attention

A model is the layer, the sum with its input, the mean over positions and a linear layer. `weights` asks the layer for its
probabilities, as it does unless told otherwise: torch then writes products of three axes. `fused` does not. Names of nodes and
places in sources are taken out of the files. `performer.npz` has the input `x`, the directions `p` [features, d], and for each model
without and with a causal mask the outputs of exact attention and of `FastAttention` with both kernels in its place. Small
numbers that are added to features are those of margay: 10⁻⁶, and for relu 10⁻³ of features that are divided by √M.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from performer_pytorch.performer_pytorch import (
        causal_linear_attention_noncuda, gaussian_orthogonal_random_matrix, generalized_kernel, linear_attention,
        softmax_kernel)

WIDTH, HEADS, POSITIONS, BATCH, FEATURES, CLASSES = 16, 2, 6, 3, 12, 3
SIZE = WIDTH // HEADS


class Net(nn.Module):
    def __init__(self, weights, causal):
        super().__init__()
        self.weights, self.causal = weights, causal
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)
        nn.init.normal_(self.attention.in_proj_bias, std=0.2)
        nn.init.normal_(self.attention.out_proj.bias, std=0.2)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(POSITIONS) if self.causal else None
        y = self.attention(x, x, x, need_weights=self.weights, attn_mask=mask)[0]
        return self.head((x + y).mean(1))

    def performer(self, x, p, kernel):
        """The same with random features in place of the softmax."""
        q, k, v = (t.view(BATCH, POSITIONS, HEADS, SIZE).transpose(1, 2) for t in nn.functional.linear(
            x, self.attention.in_proj_weight, self.attention.in_proj_bias).chunk(3, -1))
        if kernel == "softmax":
            q = softmax_kernel(q, projection_matrix=p, is_query=True, eps=1e-6)
            k = softmax_kernel(k, projection_matrix=p, is_query=False, eps=1e-6)
        else:
            epsilon = 1e-3 * FEATURES ** 0.5 * SIZE ** -0.25
            q, k = (generalized_kernel(t, projection_matrix=p, kernel_epsilon=epsilon) for t in (q, k))
        y = causal_linear_attention_noncuda(q, k, v, eps=0.0) if self.causal else linear_attention(q, k, v)
        y = self.attention.out_proj(y.transpose(1, 2).reshape(BATCH, POSITIONS, WIDTH))
        return self.head((x + y).mean(1))


def stripped(path):
    model = onnx.load(path)
    del model.graph.value_info[:], model.metadata_props[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""
    onnx.save(model, path)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    x = torch.randn(BATCH, POSITIONS, WIDTH)
    p = gaussian_orthogonal_random_matrix(FEATURES, SIZE)
    arrays = {"x": x, "p": p}
    for causal in (False, True):
        for weights in (True, False):
            torch.manual_seed(8)
            net = Net(weights, causal).eval()
            name = f"{'weights' if weights else 'fused'}{'_causal' if causal else ''}"
            torch.onnx.export(net, (x,), folder / f"{name}_script.onnx", dynamo=False, input_names=["x"],
                              output_names=["y"], dynamic_axes={"x": {0: "batch"}}, opset_version=17)
            torch.onnx.export(net, (x,), folder / f"{name}_dynamo.onnx", dynamo=True, input_names=["x"],
                              output_names=["y"], dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
                              external_data=False, verbose=False)
        of = "causal_" if causal else ""
        with torch.no_grad():
            arrays[f"{of}exact"] = net(x)
            for kernel in ("softmax", "relu"):
                arrays[f"{of}{kernel}"] = net.performer(x, p, kernel)
    for path in folder.glob("*.onnx"):
        stripped(path)
    np.savez(folder / "performer.npz", **{name: np.ascontiguousarray(t.numpy()) for name, t in arrays.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
