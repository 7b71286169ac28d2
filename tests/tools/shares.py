"""What `measure_pitch.py`, `measure_antibodies.py` and `measure_images.py` have in common: a model at several shares of the
bytes of its layers, untrained and recovered, judged by the script's own measure; a table and JSON lines.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent


def arguments(documentation, share):
    """The options of a script, whose default shares are `share`, as an `argparse.Namespace`."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / "target" / "release" / "margay", type=Path)
    parser.add_argument("--share", default=share, help="per cent of the bytes of the layers")
    parser.add_argument("--recover", type=float, default=0.0, metavar="SECONDS", help="learn from the dense model")
    parser.add_argument("--steps", type=int, help="steps of that, in place of the time")
    parser.add_argument("--recover-options", default="", help="more options of recover, as one text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines to add to")
    parser.add_argument("options", nargs="*", help="more options of compile, after --")
    return parser.parse_args()


def margay(binary, *words):
    """Runs a command; the script ends where it fails."""
    done = subprocess.run([binary, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: margay {words[0]}: {done.stderr.strip()[-600:]}")
    return done.stdout


def measure(given, model, calibration, recovery, judge, outputs=()):
    """Compiles, recovers and judges; prints a row for each share.

    `calibration` and `recovery` are dictionaries of arrays; `judge(path)` gives a dictionary of numbers for an ONNX file;
    the first row is that of the dense model. `outputs` are the names of the outputs that count; without, all do.
    """
    counted = ["--output-name", ",".join(outputs)] if outputs else []
    tell(given, {"share": 100.0} | judge(model))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        np.savez(folder / "samples.npz", **calibration)
        for share in given.share.split(","):
            begin = time.perf_counter()
            margay(given.binary, "compile", model, "--data", folder / "samples.npz", "--budget-bytes", f"{share}%",
                   "--seed", given.seed, "-o", folder / "m.margay", "--export", folder / "m.onnx",
                   "--report", folder / "m.json", *counted, *given.options)
            report = json.loads((folder / "m.json").read_text())
            row = {"share": float(share), "held_out": report["held_out"]["relative_l2"],
                   "bytes": report["bytes_after"] / report["bytes_before"],
                   "operations": report["flops_after"] / report["flops_before"],
                   "predicted_time": report["predicted_ms_after"] / report["predicted_ms_before"],
                   "seconds": time.perf_counter() - begin} | judge(folder / "m.onnx")
            if given.recover:
                np.savez(folder / "many.npz", **recovery)
                steps = ["--steps", given.steps] if given.steps else []
                told = json.loads(margay(
                    given.binary, "recover", folder / "m.onnx", "--teacher", model, "--data", folder / "many.npz",
                    "--max-seconds", given.recover, "--seed", given.seed, "--export", folder / "r.onnx", "--json", *counted,
                    *steps, *given.recover_options.split()))
                row |= {"steps": told["steps"], "recover_seconds": told["seconds"]}
                row |= {f"recovered {name}": value for name, value in judge(folder / "r.onnx").items()}
            tell(given, row)


def tell(given, row):
    """Prints a row, and adds it to the file of results."""
    row = {name: round(value, 4) for name, value in row.items()}
    print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    if given.out:
        with given.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
