"""Measures what sketches keep of all-MiniLM-L6-v2 and its three-layer sibling; prints a table and JSON lines.

    python tests/tools/measure_quality.py --models .cache/models [--binary target/release/margay]
        [--model minilm_l6] [--share 70,50,25] [--samples 256] [--out results.jsonl] [-- MORE OPTIONS OF compile]

Calibrates on fortunes and evaluates on glosses of WordNet, which nothing has seen: `cosine` is the mean cosine of the
mean-pooled sentence embeddings to those of the dense model, `p05` its 5 % quantile, `held out` the error that the compiler
states for its held-out samples. `--samples` calibrates on the first so many passages of `NAME_recovery.npz` instead of
the 256 texts of `NAME_calibration.npz`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from evaluate import cosine, load, mean_pool, run

OUTPUTS = {"minilm_l3": "onnx::Shape_422", "minilm_l6": "last_hidden_state"}


def measure(binary, data, model, share, samples, options):
    source = data / f"{model}.onnx"
    evaluation = load(data / f"{model}_evaluation.npz")
    mask = evaluation["attention_mask"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        calibration = data / f"{model}_calibration.npz"
        if samples:
            calibration = folder / "samples.npz"
            many = load(data / f"{model}_recovery.npz")
            np.savez(calibration, **{name: array[:samples] for name, array in many.items()})
        words = [binary, "compile", source, "--calibrate", calibration, "--budget-bytes", f"{share}%",
                 "-o", folder / "m.margay", "--export", folder / "m.onnx", "--report", folder / "m.json",
                 *options]
        begin = time.perf_counter()
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
        if done.returncode:
            sys.exit(f"error: {done.stderr.strip()[-600:]}")
        report = json.loads((folder / "m.json").read_text())
        found = run(str(folder / "m.onnx"), evaluation)[OUTPUTS[model]]
    reference = run(str(source), evaluation)[OUTPUTS[model]]
    similar = cosine(mean_pool(reference, mask), mean_pool(found, mask))
    return {
        "model": model,
        "share": share,
        "samples": samples or 256,
        "options": options,
        "cosine": round(float(similar.mean()), 4),
        "p05": round(float(np.quantile(similar, 0.05)), 4),
        "held_out": round(report["held_out"]["relative_l2"], 4),
        "bytes": round(report["bytes_after"] / report["bytes_before"], 4),
        "operations": round(report["flops_after"] / report["flops_before"], 4),
        "predicted_time": round(report["predicted_ms_after"] / report["predicted_ms_before"], 4),
        "seconds": round(seconds, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--binary", default="target/release/margay")
    parser.add_argument("--model", default="minilm_l6", help="names, separated by commas")
    parser.add_argument("--share", default="70,50,25", help="per cent of the bytes of the weights")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    for model in given.model.split(","):
        for share in given.share.split(","):
            row = measure(given.binary, given.models, model, share, given.samples, given.options)
            print(" ".join(f"{name}={value}" for name, value in row.items() if value != []), flush=True)
            if given.out:
                with given.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
