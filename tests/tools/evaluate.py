"""Compares a candidate with the dense model it came from, on stored inputs; prints JSON.

The reference is run with onnxruntime. The candidate is another ONNX file, run the same way, or an
`.npz` of outputs under the names of the graph outputs. The report has

* `relative_l2`: for each output of floats, the Frobenius norm of the difference over that of the
  reference;
* for sentence encoders (an output [batch, seq, width] and an input `attention_mask`):
  `attended_relative_l2`, the same over attended tokens only, and `embedding_cosine`, the cosine of
  the mean-pooled sentence embeddings, as mean, 5 % quantile and minimum over the samples.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

BATCH = 32


def run(model, inputs):
    """All outputs of the model in batches of `BATCH` samples, as a dictionary."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    samples = len(next(iter(inputs.values())))
    parts = []
    for begin in range(0, samples, BATCH):
        batch = {name: array[begin : begin + BATCH] for name, array in inputs.items()}
        parts.append(session.run(names, batch))
    return {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts))}


def load(path):
    with np.load(path) as stored:
        return dict(stored)


def relative_l2(reference, candidate):
    difference = np.linalg.norm(candidate.astype(np.float64) - reference)
    return float(difference / np.linalg.norm(reference.astype(np.float64)))


def mean_pool(hidden, mask):
    """Mean over attended tokens: [batch, seq, width] and [batch, seq] to [batch, width]."""
    weights = mask[..., None].astype(np.float64)
    return (hidden * weights).sum(axis=1) / weights.sum(axis=1)


def cosine(a, b):
    """Row by row; a candidate that is not finite or zero counts as unrelated."""
    product = (a * b).sum(axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(product / norms, nan=0.0, posinf=0.0, neginf=0.0)


def compare(reference, candidate, mask):
    floats = {name: a for name, a in reference.items() if np.issubdtype(a.dtype, np.floating)}
    for name, array in floats.items():
        if name not in candidate:
            sys.exit(f"error: the candidate lacks the output `{name}`")
        if candidate[name].shape != array.shape:
            found = list(candidate[name].shape)
            sys.exit(f"error: `{name}` is {found} in the candidate, expected {list(array.shape)}")
    report = {"samples": len(next(iter(floats.values())))}
    report["relative_l2"] = {name: relative_l2(a, candidate[name]) for name, a in floats.items()}
    hidden = next((name for name, array in floats.items() if array.ndim == 3), None)
    if hidden is not None and mask is not None:
        attended = mask.astype(bool)
        a, b = floats[hidden], candidate[hidden]
        similarity = cosine(mean_pool(a, mask), mean_pool(b, mask))
        report["attended_relative_l2"] = relative_l2(a[attended], b[attended])
        report["embedding_cosine"] = {
            "mean": float(similarity.mean()),
            "p05": float(np.quantile(similarity, 0.05)),
            "min": float(similarity.min()),
        }
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True, help="dense ONNX file")
    parser.add_argument("--candidate", type=Path, required=True, help="ONNX file or .npz")
    parser.add_argument("--inputs", type=Path, required=True, help=".npz of inputs")
    arguments = parser.parse_args()
    inputs = load(arguments.inputs)
    reference = run(arguments.reference, inputs)
    if arguments.candidate.suffix == ".npz":
        candidate = load(arguments.candidate)
    else:
        candidate = run(arguments.candidate, inputs)
    print(json.dumps(compare(reference, candidate, inputs.get("attention_mask")), indent=2))


if __name__ == "__main__":
    main()
