#!/usr/bin/env python3
"""Trains the network of the demo dense and sketched, and writes what came of it.

    cargo build --release
    python3 -m venv venv && venv/bin/pip install -r demo/requirements.txt
    venv/bin/python benches/training.py --seeds 7,8,9

Each run begins with an untrained network, `margay train` does the rest, and onnxruntime counts what
the trained model gets right on the 10,000 test images of Fashion-MNIST, which training never sees.
Sketched networks are trained from the beginning in their sketched form (`--scheme panther`), with the
same samples, options and seed.

Written are `benches/results/training.json` (options, seeds, loss curves, accuracies) and the table between
the marks in `docs/training.md`. `--report` writes the table from the file of results alone.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "demo"))
import train as demo  # noqa: E402

RESULTS = ROOT / "benches/results/training.json"
DOCUMENT = ROOT / "docs/training.md"
BEGIN, END = "<!-- begin: benches/training.py -->", "<!-- end -->"


def train(margay, work, seed, rank, options, keep):
    """Trains one network; the report of margay with the accuracy on the test images."""
    untrained, trained = work / "fashion.onnx", work / "trained.onnx"
    demo.write_model(demo.initial_parameters(np.random.default_rng(seed)), untrained)
    command = [margay, "train", untrained, "--data", work / "train.npz", "--labels", "label"]
    command += [*options.split(), "--seed", str(seed), "--export", trained, "--json"]
    if rank:
        command += ["--scheme", "panther", "--rank", str(rank), "--start", "random"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    with np.load(work / "test.npz") as test:
        report["test_accuracy"] = demo.accuracy(trained, test["image"], test["label"])
    report["rank"] = rank
    if keep:
        shutil.copy(trained, keep / f"fashion-rank{rank}-seed{seed}.onnx")
    return report


def table(results):
    """Rows by rank: numbers stored, accuracies over the seeds, seconds."""
    lines = [
        "| | numbers stored | of dense | test accuracy | difference to dense | seconds |",
        "|---|---|---|---|---|---|",
    ]
    ranks = sorted({run["rank"] for run in results["runs"]})
    dense = {run["seed"]: run["test_accuracy"] for run in results["runs"] if run["rank"] == 0}
    for rank in ranks:
        runs = [run for run in results["runs"] if run["rank"] == rank]
        share = runs[0]["stored"] / runs[0]["dense_stored"]
        found = [100 * run["test_accuracy"] for run in runs]
        apart = [100 * (run["test_accuracy"] - dense[run["seed"]]) for run in runs if run["seed"] in dense]
        seconds = statistics.median(run["seconds"] for run in runs)
        name = f"panther, rank {rank}" if rank else "dense"
        lines.append(
            f"| {name} | {runs[0]['stored']:,} | {share:.1%} | {spread(found)} % "
            f"| {spread(apart) if rank else '-'} | {seconds:.0f} |"
        )
    seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in results["runs"]}))
    return "\n".join([*lines, "", f"Seeds: {seeds}. Options: `{results['options']}`."])


def spread(values):
    """The mean, and the extremes where there are several."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} [{min(values):.2f}, {max(values):.2f}]"


def report(results):
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{rest.split(END)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="7", help="separated by commas")
    parser.add_argument("--ranks", default="15,8", help="of the sketches, separated by commas")
    parser.add_argument("--options", default=demo.OPTIONS, help="of margay train")
    parser.add_argument("--margay", type=Path, default=ROOT / "target/release/margay", help="the program")
    parser.add_argument("--keep", type=Path, help="folder for the trained models")
    parser.add_argument("--report", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    if arguments.report:
        return report(json.loads(RESULTS.read_text()))

    results = {"options": arguments.options, "runs": []}
    (images, labels), (test_images, test_labels) = demo.load_data()
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        np.savez(work / "train.npz", image=images.astype(np.float32) / 255, label=labels)
        np.savez(work / "test.npz", image=test_images, label=test_labels)
        for seed in map(int, arguments.seeds.split(",")):
            for rank in [0, *map(int, arguments.ranks.split(","))]:
                run = train(arguments.margay, work, seed, rank, arguments.options, arguments.keep)
                results["runs"].append(run)
                print(f"seed {seed}, rank {rank}: {run['test_accuracy']:.4f} in {run['seconds']:.0f} s", flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    report(results)


if __name__ == "__main__":
    main()
