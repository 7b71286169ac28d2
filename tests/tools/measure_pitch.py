"""Measures what sketches keep of CREPE, a convolutional network that estimates pitch; prints a table and JSON lines.

    python tests/tools/measure_pitch.py [--binary target/release/margay] [--share 70,50] [--recover SECONDS]
        [--samples 768] [--out results.jsonl] [-- MORE OPTIONS OF compile]

The model is `crepe_full` of `check_models.py`, which fetches it. Frames are synthetic: 1024 samples at 16 kHz of a harmonic
tone of a known frequency between 60 and 1600 Hz, with up to 20 partials of random strength and noise at 0 to 30 dB, so that
the right answer is known and no recording is needed. `within 50` is the share of 512 other frames whose pitch is within 50
cents of that of the dense model, `right` the share within 50 cents of the truth (`dense` for the dense model). Pitch is read
as in Kim and others, *CREPE*, 2018 (arXiv 1802.06182): the mean of the bins around the largest, weighed by salience.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / ".cache" / "real" / "crepe_full.onnx"
RATE, LENGTH = 16000, 1024
LOWEST_CENTS, BINS = 1997.3794084376191, 360


def frames(count, seed):
    """Tones of known frequencies: `[count, 1024]` of mean 0 and variance 1, and hertz."""
    random = np.random.default_rng(seed)
    hertz = np.exp(random.uniform(np.log(60), np.log(1600), count))
    seconds = np.arange(LENGTH) / RATE
    tones = np.empty((count, LENGTH), np.float32)
    for row, base in zip(tones, hertz):
        partials = np.arange(1, 1 + min(20, int(7500 // base)))
        strength = random.uniform(0.1, 1, len(partials)) * partials ** -random.uniform(0.3, 1.5)
        phase = random.uniform(0, 2 * np.pi, len(partials))
        tone = (strength[:, None] * np.sin(2 * np.pi * base * partials[:, None] * seconds + phase[:, None])).sum(0)
        tone = tone / tone.std() + random.normal(size=LENGTH) * 10 ** (-random.uniform(0, 30) / 20)
        row[:] = (tone - tone.mean()) / tone.std()
    return tones, hertz


def cents(salience):
    """The pitch of each row of `[frames, 360]`, in cents above 10 Hz."""
    bins = LOWEST_CENTS + 20 * np.arange(BINS)
    found = np.empty(len(salience))
    for i, row in enumerate(salience):
        near = slice(max(0, row.argmax() - 4), row.argmax() + 5)
        found[i] = (row[near] * bins[near]).sum() / row[near].sum()
    return found


def run(path, tones):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: tones[i : i + 32]})[0] for i in range(0, len(tones), 32)]
    return np.concatenate(parts)


def margay(binary, *words):
    done = subprocess.run([binary, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {done.stderr.strip()[-600:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/margay")
    parser.add_argument("--share", default="70,50")
    parser.add_argument("--recover", type=float, default=0.0)
    parser.add_argument("--samples", type=int, default=768)
    parser.add_argument("--out", type=Path)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    tones, hertz = frames(512, 1)
    truth = 1200 * np.log2(hertz / 10)
    dense = cents(run(MODEL, tones))
    rows = [{"share": 100, "within 50": 1.0, "right": float((np.abs(dense - truth) < 50).mean())}]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        np.savez(folder / "samples.npz", frames=frames(given.samples, 0)[0])
        for share in given.share.split(","):
            begin = time.perf_counter()
            margay(given.binary, "compile", MODEL, "--data", folder / "samples.npz", "--budget-bytes", f"{share}%",
                   "-o", folder / "m.margay", "--export", folder / "m.onnx", "--report", folder / "m.json",
                   *given.options)
            report = json.loads((folder / "m.json").read_text())
            row = {"share": float(share), "held_out": report["held_out"]["relative_l2"],
                   "bytes": report["bytes_after"] / report["bytes_before"],
                   "operations": report["flops_after"] / report["flops_before"],
                   "predicted_time": report["predicted_ms_after"] / report["predicted_ms_before"],
                   "seconds": time.perf_counter() - begin}
            files = [("", folder / "m.onnx")]
            if given.recover:
                np.savez(folder / "many.npz", frames=frames(8 * given.samples, 2)[0])
                margay(given.binary, "recover", folder / "m.onnx", "--teacher", MODEL, "--data", folder / "many.npz",
                       "--max-seconds", given.recover, "--export", folder / "r.onnx")
                files.append(("recovered ", folder / "r.onnx"))
            for prefix, file in files:
                found = cents(run(file, tones))
                row[f"{prefix}within 50"] = float((np.abs(found - dense) < 50).mean())
                row[f"{prefix}right"] = float((np.abs(found - truth) < 50).mean())
            rows.append(row)
    for row in rows:
        row = {name: round(value, 4) for name, value in row.items()}
        print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
        if given.out:
            with given.out.open("a") as out:
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
