#!/usr/bin/env python3
"""Compares ranks chosen during training with one rank for all layers, at as many numbers.

    cargo build --release
    python3 -m venv venv && venv/bin/pip install -r demo/requirements.txt
    venv/bin/python benches/ranks.py

Two networks are trained from random parameters, with the same samples, options and seeds: dense, with factors of
one rank for all layers, and with `--rank auto`. The share of numbers that `--rank auto` keeps is the
one that the factors of one rank take, so that both forms have as many numbers, up to less than one rank.

* `images`: Fashion-MNIST, fully connected, 784-256-256-10; tested on the 10,000 test images.
* `characters`: the next character of aphorisms of the Debian package fortunes from the 32 before, fully
  connected, 32 embeddings of 16 numbers, 512-256-256-96; tested on the last tenth of the text.

onnxruntime counts what the exported models get right. Written are `benches/results/ranks.json` and the table between the
marks in `docs/training.md`. `--report` writes the table from the file of results alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "benches")]
import train as demo  # noqa: E402
from training import spread  # noqa: E402

RESULTS = ROOT / "benches/results/ranks.json"
DOCUMENT = ROOT / "docs/training.md"
BEGIN, END = "<!-- begin: benches/ranks.py -->", "<!-- end -->"

OPTIONS = "--batch 128 --optimizer adamw --learning-rate 2e-3 --weight-decay 0.02 --warm-up 0.07 --held-out 0.05"
CONTEXT, CHARACTERS, EMBEDDING = 32, 96, 16
PACKAGE, TEXT = "fortunes", "usr/share/games/fortunes"
FILES = ["law", "people", "science", "wisdom", "work"]
STRIDE = 4


# Data


def images():
    """Samples to train on, and those of the test."""
    (train, labels), (test, test_labels) = demo.load_data()
    rows = lambda x: x.reshape(len(x), -1).astype(np.float32) / 255  # noqa: E731
    return (rows(train), labels), (rows(test), test_labels)


def characters():
    """The numbers of 32 characters, and the next one, at every fourth place."""
    with tempfile.TemporaryDirectory() as work:
        Path(work).chmod(0o777)
        subprocess.run(["apt-get", "-qq", "download", PACKAGE], cwd=work, check=True)
        (archive,) = Path(work).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), f"{work}/root"], check=True)
        text = b"\n".join(Path(work, "root", TEXT, name).read_bytes() for name in FILES)
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 32
    codes = np.where((codes >= 0) & (codes < CHARACTERS - 1), codes, CHARACTERS - 1)
    starts = np.arange(0, len(codes) - CONTEXT, STRIDE)
    windows, following = codes[starts[:, None] + np.arange(CONTEXT)], codes[starts + CONTEXT]
    cut = len(starts) * 9 // 10
    return (windows[:cut], following[:cut]), (windows[cut + CONTEXT // STRIDE :], following[cut + CONTEXT // STRIDE :])


# Networks


def write_model(path, rng, widths, embedding):
    """Linear layers with relu between them, behind embeddings of characters or not."""
    nodes, initializers = [], []

    def constant(name, array):
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    if embedding:
        table = constant("embedding.weight", rng.standard_normal((CHARACTERS, EMBEDDING)) * 0.3)
        nodes.append(helper.make_node("Gather", [table, "x"], ["embedded"], name="embedding"))
        nodes.append(helper.make_node("Flatten", ["embedded"], ["h0"], name="flatten", axis=1))
        x = helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", CONTEXT])
    else:
        nodes.append(helper.make_node("Identity", ["x"], ["h0"], name="identity"))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", widths[0]])
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        last = i + 2 == len(widths)
        weight = constant(f"fc{i + 1}.weight", rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs))
        bias = constant(f"fc{i + 1}.bias", np.zeros(outputs))
        result = "logits" if last else f"z{i + 1}"
        nodes.append(helper.make_node("Gemm", [f"h{i}", weight, bias], [result], name=f"fc{i + 1}"))
        if not last:
            nodes.append(helper.make_node("Relu", [result], [f"h{i + 1}"], name=f"relu{i + 1}"))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", widths[-1]])
    graph = helper.make_graph(nodes, "network", [x], [logits], initializers)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="margay benches")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


NETWORKS = {
    "images": {"data": images, "widths": [784, 256, 256, 10], "embedding": False, "epochs": 5, "ranks": [16, 8, 4]},
    "characters": {
        "data": characters,
        "widths": [CONTEXT * EMBEDDING, 256, 256, CHARACTERS],
        "embedding": True,
        "epochs": 5,
        "ranks": [32, 16, 8],
    },
}


def share_of(widths, rank):
    """The share of numbers that factors of a rank take of the layers that they make smaller."""
    layers = [(a, b) for a, b in zip(widths, widths[1:]) if rank * (a + b) < a * b]
    return sum(rank * (a + b) for a, b in layers) / sum(a * b for a, b in layers)


# Runs


def accuracy(model, x, labels):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    right = 0
    for begin in range(0, len(x), 1000):
        (logits,) = session.run(["logits"], {"x": x[begin : begin + 1000]})
        right += int((logits.argmax(axis=1) == labels[begin : begin + 1000]).sum())
    return right / len(x)


def run(margay, work, network, form, seed, test):
    """Trains one network; the report of margay with the accuracy on the samples of the test."""
    config = NETWORKS[network]
    untrained, trained = work / "network.onnx", work / "trained.onnx"
    write_model(untrained, np.random.default_rng(seed), config["widths"], config["embedding"])
    command = [margay, "train", untrained, "--data", work / "train.npz", "--labels", "label", *OPTIONS.split()]
    command += ["--epochs", str(config["epochs"]), "--seed", str(seed), "--export", trained, "--json"]
    if form["kind"] != "dense":
        command += ["--scheme", "lowrank", "--rank", "auto" if form["kind"] == "auto" else str(form["rank"])]
        # The small last layer has no factors in either form.
        sizes = list(zip(config["widths"], config["widths"][1:]))
        names = [f"fc{i + 1}" for i, (a, b) in enumerate(sizes) if form["rank"] * (a + b) < a * b]
        command += ["--layers", ",".join(names)]
    if form["kind"] == "auto":
        command += ["--keep", str(share_of(config["widths"], form["rank"]))]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    kept = ["parameters", "stored", "steps", "seconds", "rank_changes"]
    found = {"network": network, **form, "seed": seed, "accuracy": accuracy(trained, *test)}
    return {**found, "loss": report["best"]["error"], **{name: report[name] for name in kept}}


def table(results):
    lines = [
        "| network | rank | numbers trained | test accuracy, % | chosen minus one rank | held-out loss | ranks of the last seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in NETWORKS:
        runs = [r for r in results["runs"] if r["network"] == network]
        forms = sorted({(-r["rank"], r["kind"] == "auto") for r in runs}, key=lambda f: (f[0] == 0 and -1e9 or f[0], f[1]))
        for minus_rank, auto in forms:
            some = [r for r in runs if r["rank"] == -minus_rank and (r["kind"] == "auto") == auto]
            found = {r["seed"]: 100 * r["accuracy"] for r in some}
            kind = some[0]["kind"]
            other = {r["seed"]: 100 * r["accuracy"] for r in runs if r["rank"] == -minus_rank and r["kind"] == "uniform"}
            apart = spread([found[s] - other[s] for s in found if s in other]) if auto else "-"
            ranks = ", ".join(str(r) for _, r in some[-1]["rank_changes"][-1]["ranks"]) if auto else "-"
            name = {"dense": "dense", "uniform": f"{-minus_rank} in all layers", "auto": "chosen"}[kind]
            numbers = max(r["parameters"] for r in some)
            loss = f"{np.mean([r['loss'] for r in some]):.4f}"
            lines.append(f"| {network} | {name} | {numbers:,} | {spread(list(found.values()))} | {apart} | {loss} | {ranks} |")
    seeds = ", ".join(str(s) for s in sorted({r["seed"] for r in results["runs"]}))
    return "\n".join([*lines, "", f"Seeds: {seeds}. Options: `{results['options']} --epochs 5`."])


def report(results):
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{rest.split(END, 1)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3", help="separated by commas")
    parser.add_argument("--margay", type=Path, default=ROOT / "target/release/margay", help="the program")
    parser.add_argument("--report", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    if arguments.report:
        return report(json.loads(RESULTS.read_text()))
    results = {"options": OPTIONS, "runs": []}
    for network, config in NETWORKS.items():
        train, test = config["data"]()
        forms = [{"kind": "dense", "rank": 0}]
        forms += [{"kind": kind, "rank": rank} for rank in config["ranks"] for kind in ("uniform", "auto")]
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            np.savez(work / "train.npz", x=train[0], label=train[1])
            for seed in map(int, arguments.seeds.split(",")):
                for form in forms:
                    found = run(arguments.margay, work, network, form, seed, test)
                    results["runs"].append(found)
                    print(network, form, seed, f"{found['accuracy']:.4f} in {found['seconds']:.0f} s", flush=True)
                    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    report(results)


if __name__ == "__main__":
    main()
